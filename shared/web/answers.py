"""A turn's answer as the response model of the contract."""

from typing import Any

from shared.domain.calls import Usage
from shared.domain.conversation import Session, Turn
from shared.turns.events import Answer
from shared.web.contract.chat import ChatAnswer, SessionTotals
from shared.web.contract.fields import TokenUsage
from shared.web.contract.limits import RemainingAnswer

EMPTY_ANSWER = (
    "The answer is empty because reasoning used up the maximum of tokens. Retry with a larger max_tokens or a lower"
    " reasoning_effort."
)
FALLBACK = "Your budget is nearly used up, so {} answered in place of {}."


def chat_answer(answer: Answer) -> ChatAnswer:
    session, turn, call = answer.session, answer.turn, answer.turn.call
    optional = {**turn.extras, **stopped_bounds(turn)}
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
        session=SessionTotals(**session_totals(session)),
        **optional,
    )


def stopped_bounds(turn: Turn) -> dict[str, Any]:
    """The bounds of what a stopped turn cost; nothing if its cost is known."""
    totals = turn.totals
    if not totals.stopped_calls:
        return {}
    return {
        "stopped_at_least_usd": totals.stopped_at_least,
        "stopped_at_most_usd": None if totals.stopped_unbounded else totals.stopped_at_most,
    }


def session_totals(session: Session) -> dict[str, Any]:
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
