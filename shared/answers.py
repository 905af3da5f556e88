"""From a conversation's values to the contract's answers, and those to JSON. Pure."""

from collections.abc import Mapping
from datetime import date, datetime
from decimal import Decimal
from typing import Any, TypeVar

import orjson
from pydantic import BaseModel

from shared.contract import (
    AdjustmentAnswer,
    CallerCost,
    ChatAnswer,
    CostliestSession,
    DailyAnswer,
    DayCostAnswer,
    DayTotals,
    HistoryAnswer,
    ModelCost,
    SessionAnswer,
    SessionTotals,
    TokenUsage,
    TurnAnswer,
)
from shared.conversation import Session, Turn, Usage
from shared.summary import DailySummary, Figures, Share

T = TypeVar("T")

EMPTY = (
    "The answer is empty because the model used up its maximum of tokens for reasoning. Send this again with a larger"
    " max_tokens, or a lower reasoning_effort."
)


def json_bytes(value: Any) -> bytes:
    """JSON with Decimals as numbers in plain digits (an amount never goes through a float), and of a model the fields
    that were given, null ones included."""
    return orjson.dumps(value, default=_plain)


def chat_answer(session: Session, turn: Turn) -> ChatAnswer:
    call = turn.call
    rest = dict(turn.extras)
    if turn.truncated:
        rest["truncated"] = True
    said = turn.messages[-1]
    if turn.finish_reason == "length" and not any(said.get(kind) for kind in ("content", "refusal", "tool_calls")):
        rest["notice"] = EMPTY
    return ChatAnswer(
        session_id=session.id,
        turn=turn.number,
        message=dict(turn.messages[-1]),
        finish_reason=turn.finish_reason,
        deployment=call.deployment,
        model=call.model,
        usage=_usage(call.usage) if call.usage else None,
        cost_usd=call.cost,
        session=SessionTotals(**_totals(session)),
        **rest,
    )


def session_answer(session: Session, now: datetime) -> SessionAnswer:
    return SessionAnswer(
        session_id=session.id,
        created=session.created,
        updated=session.updated,
        system=session.system,
        deployment=session.deployment,
        busy=session.busy(now),
        usage=_usage(session.totals.usage),
        **_totals(session),
    )


def history_answer(session: Session, turns: list[Turn]) -> HistoryAnswer:
    """A page of history; there is another unless the page reaches the first turn that is left."""
    more = bool(turns) and turns[-1].number > session.cleared_through + 1
    return HistoryAnswer(
        session_id=session.id,
        turns=[_turn_answer(turn) for turn in turns],
        next_before=turns[-1].number if more else None,
    )


def day_totals(day: date, figures: Figures, *, final: bool) -> DayTotals:
    return DayTotals(**_day(day, figures, final))


def daily_answer(summary: DailySummary) -> DailyAnswer:
    figures = summary.figures
    return DailyAnswer(
        **_day(summary.day, figures, summary.final),
        cost_per_turn_usd=_rounded(figures.cost_per_turn),
        cache_hit_rate=round(figures.cache_hit_rate, 4),
        cache_saved_usd=figures.saved,
        by_model=[
            ModelCost(deployment=deployment, model=model, **_share(share))
            for (deployment, model), share in _costliest_first(figures.models)
        ],
        by_caller=[CallerCost(caller=name, **_share(share)) for name, share in _costliest_first(figures.callers)],
        costliest_sessions=[
            CostliestSession(session_id=session.session_id, cost_usd=session.cost) for session in figures.costliest
        ],
        previous_day_usd=summary.day_before,
        week_average_usd=_rounded(summary.week_average),
        month_to_date_usd=summary.month_to_date,
        adjustments=[
            AdjustmentAnswer(date=told.day, difference_usd=told.difference, cost_usd=told.cost)
            for told in summary.adjustments
        ],
        history=[DayCostAnswer(date=day.day, cost_usd=day.cost) for day in summary.history],
    )


def _day(day: date, figures: Figures, final: bool) -> dict[str, Any]:
    return {
        "date": day,
        "final": final,
        "cost_usd": figures.cost,
        "usage": _usage(figures.usage),
        "turns": figures.turns,
        "calls": figures.calls,
        "sessions": figures.sessions,
        "failed_calls": figures.failed,
        "unaccounted_calls": figures.unaccounted,
        "unaccounted_usd": None if figures.unbounded else figures.unaccounted_cost,
        "unpriced_turns": figures.unpriced,
    }


def _share(share: Share) -> dict[str, Any]:
    return {
        "calls": share.calls,
        "unpriced_turns": share.unpriced,
        "prompt_tokens": share.prompt_tokens,
        "completion_tokens": share.completion_tokens,
        "cost_usd": share.cost,
    }


def _costliest_first(shares: Mapping[T, Share]) -> list[tuple[T, Share]]:
    return sorted(shares.items(), key=lambda item: item[1].cost, reverse=True)


def _rounded(average: Decimal) -> Decimal:
    """An average has no last digit: ten decimals are more than any price."""
    return average.quantize(Decimal("1e-10"))


def _turn_answer(turn: Turn) -> TurnAnswer:
    call = turn.call
    return TurnAnswer(
        turn=turn.number,
        state=call.state.value,
        messages=[dict(message) for message in turn.messages],
        finish_reason=turn.finish_reason,
        started=turn.started,
        finished=turn.finished,
        deployment=call.deployment,
        model=call.model,
        usage=_usage(call.usage) if call.usage else None,
        cost_usd=call.cost,
    )


def _totals(session: Session) -> dict[str, Any]:
    totals = session.totals
    return {
        "turns": session.turns,
        "total_tokens": totals.usage.total_tokens,
        "cost_usd": totals.cost,
        "unpriced_turns": totals.unpriced_turns,
        "unaccounted_calls": totals.unaccounted_calls,
        "unaccounted_usd": None if totals.unbounded_calls else totals.unaccounted,
    }


def _usage(usage: Usage) -> TokenUsage:
    return TokenUsage.model_validate(usage, from_attributes=True)


def _plain(value: object) -> orjson.Fragment | dict[str, Any]:
    if isinstance(value, Decimal):
        return orjson.Fragment(format(value, "f"))
    if isinstance(value, BaseModel):
        return value.model_dump(exclude_unset=True)
    raise TypeError(f"{type(value).__name__} has no place in an answer")
