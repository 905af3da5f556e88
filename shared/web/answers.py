"""Domain values to response models of the contract."""

from collections.abc import Sequence
from datetime import datetime
from typing import Any

from shared.domain.calls import Usage
from shared.domain.conversation import ADDED, OwnerErasure, Session, Turn
from shared.domain.listing import SessionPage
from shared.reports.limits import LimitUse
from shared.turns.events import Answer
from shared.web.contract.chat import (
    ChatAnswer,
    ErasureAnswer,
    HistoryAnswer,
    ListedSession,
    SessionAnswer,
    SessionListAnswer,
    SessionTotals,
    TurnAddress,
    TurnAnswer,
)
from shared.web.contract.fields import TokenUsage
from shared.web.contract.limits import BudgetAnswer, CallerLimits, RateAnswer, RemainingAnswer

EMPTY_ANSWER = (
    "The answer is empty because reasoning used up the maximum of tokens. Retry with a larger max_tokens or a lower"
    " reasoning_effort."
)
FALLBACK = "Your budget is nearly used up, so {} answered in place of {}."


def chat_answer(answer: Answer) -> ChatAnswer:
    session, turn, call = answer.session, answer.turn, answer.turn.call
    optional = {**turn.extras, **_stopped(turn)}
    if turn.truncated:
        optional["truncated"] = list(turn.truncated)
    if answer.budgets:
        optional["limits"] = [
            RemainingAnswer(name=budget.name, remaining_usd=budget.remaining, resets_at=budget.resets_at)
            for budget in answer.budgets
        ]
    message = turn.messages[-1]
    if message["role"] != "assistant":  # stopped before its first token
        message = {"role": "assistant", "content": ""}
    if turn.finish_reason == "length" and not any(message.get(kind) for kind in ("content", "refusal", "tool_calls")):
        optional["notice"] = EMPTY_ANSWER
    if answer.instead_of:
        optional["requested_deployment"] = answer.instead_of
        optional.setdefault("notice", FALLBACK.format(call.deployment, answer.instead_of))
    return ChatAnswer(
        session_id=session.id,
        turn=turn.number,
        message=dict(message),
        finish_reason=turn.finish_reason,
        deployment=call.deployment,
        model=call.model,
        usage=token_usage(turn.usage) if turn.usage else None,
        cost_usd=turn.cost,
        session=SessionTotals(**_totals(session)),
        **optional,
    )


def session_answer(session: Session, branches: Sequence[tuple[str, int]], now: datetime) -> SessionAnswer:
    """`branches`: the sessions that continue it, each with the number of the turn."""
    parent = session.parent
    return SessionAnswer(
        **_listed(session, now),
        reference=session.reference,
        system=session.system,
        usage=token_usage(session.totals.usage),
        parent=TurnAddress(session_id=parent.session_id, turn=parent.turn) if parent else None,
        branches=[TurnAddress(session_id=branch, turn=turn) for branch, turn in branches],
    )


def listed_session(session: Session, now: datetime) -> ListedSession:
    return ListedSession(**_listed(session, now))


def session_list_answer(page: SessionPage, now: datetime) -> SessionListAnswer:
    sessions = [listed_session(session, now) for session in page.sessions]
    return SessionListAnswer(sessions=sessions, next_after=page.next)


def erasure_answer(progress: OwnerErasure) -> ErasureAnswer:
    return ErasureAnswer(begun=progress.begun, erased_sessions=progress.erased, done=progress.done)


def history_answer(session: Session, turns: Sequence[tuple[Session, Turn]]) -> HistoryAnswer:
    """A page of history, of turns with their sessions. It is the last one if it contains the oldest turn that has not
    been cleared."""
    oldest = turns[-1][1].number if turns else 0
    return HistoryAnswer(
        session_id=session.id,
        turns=[turn_answer(each, turn) for each, turn in turns],
        next_before=oldest if oldest > session.cleared_through + 1 else None,
    )


def limit_answer(use: LimitUse) -> CallerLimits:
    limit, rates = use.limit, use.rates
    budgets = [
        BudgetAnswer(
            name=budget.name,
            limit_usd=budget.limit,
            spent_usd=budget.spent,
            held_usd=budget.held,
            remaining_usd=budget.remaining,
            resets_at=budget.resets_at,
        )
        for budget in use.budgets
    ]
    per_minute = []
    if rates and limit.requests_per_minute is not None:
        per_minute.append(("requests_per_minute", limit.requests_per_minute, rates.requests))
    if rates and limit.tokens_per_minute is not None:
        per_minute.append(("tokens_per_minute", limit.tokens_per_minute, rates.tokens))
    return CallerLimits(
        caller=limit.name,
        budgets=budgets,
        rates=[
            RateAnswer(name=name, limit=most, remaining=left, resets_at=rates.resets_at)
            for name, most, left in per_minute
            if rates
        ],
        max_tokens=limit.max_tokens,
        **({"fallback_deployment": limit.fallback_deployment} if limit.fallback_deployment else {}),
    )


def turn_answer(session: Session, turn: Turn) -> TurnAnswer:
    call = turn.call if turn.calls else None
    return TurnAnswer(
        session_id=session.id,
        turn=turn.number,
        state=call.state.value if call else ADDED,
        messages=[dict(message) for message in turn.messages],
        finish_reason=turn.finish_reason,
        started=turn.started,
        finished=turn.finished,
        deployment=call.deployment if call else session.deployment,
        model=call.model if call else None,
        usage=token_usage(turn.usage) if turn.usage else None,
        cost_usd=turn.cost,
        **_stopped(turn),
    )


def _stopped(turn: Turn) -> dict[str, Any]:
    """The bounds of what a stopped turn cost; nothing if its cost is known."""
    totals = turn.totals
    if not totals.stopped_calls:
        return {}
    return {
        "stopped_at_least_usd": totals.stopped_at_least,
        "stopped_at_most_usd": None if totals.stopped_unbounded else totals.stopped_at_most,
    }


def _listed(session: Session, now: datetime) -> dict[str, Any]:
    return {
        "session_id": session.id,
        "kind": session.kind,
        "title": session.title,
        "pinned": session.pinned,
        "archived": session.archived,
        "created": session.created,
        "updated": session.updated,
        "deployment": session.deployment,
        "busy": session.busy(now),
        **_totals(session),
    }


def _totals(session: Session) -> dict[str, Any]:
    totals = session.totals
    return {
        "turns": session.turns,
        "total_tokens": totals.usage.total_tokens,
        "cost_usd": totals.cost,
        "unpriced_turns": totals.unpriced_turns,
        "unaccounted_calls": totals.unaccounted_calls,
        "unaccounted_usd": None if totals.unbounded_calls else totals.unaccounted,
        "stopped_calls": totals.stopped_calls,
        "stopped_at_least_usd": totals.stopped_at_least,
        "stopped_at_most_usd": None if totals.stopped_unbounded else totals.stopped_at_most,
    }


def token_usage(usage: Usage) -> TokenUsage:
    return TokenUsage.model_validate(usage, from_attributes=True)
