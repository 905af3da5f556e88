"""Why a limit refuses a call."""

import math
from collections.abc import Iterable, Iterator, Sequence
from datetime import UTC, datetime
from decimal import Decimal
from typing import Any

from shared.domain.calls import ZERO, Call, Totals
from shared.domain.limits import TOTAL, Budget, Counter, Limit, Limits
from shared.errors import BudgetExceeded, ChatError, InvalidRequest, LimitReached

_SETTLES_S = 2  # a running call may settle, and give back what it holds, within seconds


def refusal(counters: Iterable[tuple[Limit, Counter]], call: Call, now: datetime) -> ChatError | None:
    """Why the call can't be opened, or None: a budget that is used up, else what lasts longest. `counters`: of each
    limit, in the minute in which the call would count, without it."""
    errors = [error for limit, counter in counters for error in _refusals(limit, counter, call, now)]
    return max(errors, key=lambda error: (isinstance(error, BudgetExceeded), error.retry_after or 0), default=None)


def check_possible(limits: Sequence[Limit], call: Call) -> None:
    """Raises InvalidRequest if the limits never admit the call, whatever is used of them."""
    if call.worst_case is None and any(limit.in_usd for limit in limits):
        raise _price_unknown(call)
    for limit in limits:
        if limit.tokens_per_minute is not None and call.max_tokens > limit.tokens_per_minute:
            raise _too_large(limit.tokens_per_minute, call)


def check_session(limits: Limits, totals: Totals, call: Call) -> None:
    """Raises the refusal of a session with these totals."""
    budget = limits.session_usd
    if budget is None:
        return
    if call.worst_case is None:
        raise _price_unknown(call)
    if totals.unbounded_calls or totals.stopped_unbounded or totals.unpriced_turns:
        message = (
            "A budget applies to this session, and it has turns whose cost is not known. Continue in a new session."
        )
        raise InvalidRequest(message, param="session_id")
    held = totals.unaccounted + totals.stopped_at_most
    if totals.cost + held + call.worst_case > budget:
        message = (
            f"This session's budget of {_usd(budget)} does not allow this call, which may cost up to"
            f" {_usd(call.worst_case)}. Continue in a new session."
        )
        raise BudgetExceeded(message, details=_amounts(budget, totals.cost, held))


def _refusals(limit: Limit, counter: Counter, call: Call, now: datetime) -> Iterator[ChatError]:
    for budget in counter.budgets(limit):
        if not budget.has_room(call.worst_case or ZERO):
            yield _over_budget(limit, budget, call.worst_case or ZERO, now)
    if limit.requests_per_minute is not None and counter.minute_requests >= limit.requests_per_minute:
        yield _rate_limited(limit, _count(limit.requests_per_minute, "request"), counter, now)
    if limit.tokens_per_minute is not None and counter.minute_tokens + call.max_tokens > limit.tokens_per_minute:
        yield _rate_limited(limit, _count(limit.tokens_per_minute, "token"), counter, now)


def _over_budget(limit: Limit, budget: Budget, worst_case: Decimal, now: datetime) -> ChatError:
    """Used up, or only held by calls that are running: then it may fit in seconds."""
    period = budget.name.removeprefix("usd_per_")
    if budget.spent_and_held - budget.running + worst_case <= budget.limit:
        message = f"{_whose(limit, f'budget per {period}')} is held by running calls. Retry in a few seconds."
        return LimitReached(message, _SETTLES_S)
    resets_at, whose = budget.resets_at, _whose(limit, f"budget per {period}")
    message = f"{whose} has no room for this call until {_written(resets_at)}."
    retry_after: int | None = _seconds(now, resets_at)
    if worst_case > budget.limit:  # then waiting does not help
        retry_after = None
        message = f"{whose} never has room for this call. Shorten it or, for chat, set a smaller max_tokens."
        if not budget.limit:
            message = f"{whose} is 0, so it has no room for any call."
    details: dict[str, Any] = {"resets_at": _written(resets_at)}
    if limit.name != TOTAL:
        message += (
            f" Of {_usd(budget.limit)}, {_usd(budget.spent)} is spent and {_usd(budget.held)} held; this call may cost"
            f" up to {_usd(worst_case)}."
        )
        details = {"limit": budget.name, **_amounts(budget.limit, budget.spent, budget.held), **details}
    return BudgetExceeded(message, retry_after=retry_after, details=details)


def _rate_limited(limit: Limit, rate: str, counter: Counter, now: datetime) -> ChatError:
    rates = counter.rates(limit, now)
    resets_at = rates.resets_at if rates else now
    seconds = _seconds(now, resets_at)
    own = limit.name != TOTAL
    message = f"{_whose(limit, f'limit of {rate} a minute' if own else 'limit per minute')} is reached."
    return LimitReached(f"{message} Retry in the next minute.", seconds, rates if own else None)


def _too_large(tokens: int, call: Call) -> ChatError:
    message = (
        f"This request may use {call.max_tokens} tokens, more than the {tokens} that a limit allows"
        " per minute. Shorten it or, for chat, set a smaller max_tokens."
    )
    return InvalidRequest(message, param="max_tokens")


def _price_unknown(call: Call) -> ChatError:
    return InvalidRequest(
        f"A budget applies to this call, and the price of deployment {call.deployment!r} is not known. The operator of"
        " this app must set it in PRICES.",
        param="deployment",
    )


def _count(number: int, noun: str) -> str:
    return f"{number} {noun}" if number == 1 else f"{number} {noun}s"


def _whose(limit: Limit, what: str) -> str:
    return f"The {what} of all callers together" if limit.name == TOTAL else f"Your {what}"


def _amounts(limit: Decimal, spent: Decimal, held: Decimal) -> dict[str, Any]:
    return {"limit_usd": limit, "spent_usd": spent, "held_usd": held}


def _usd(amount: Decimal) -> str:
    return f"{amount.normalize():f} USD" if amount else "0 USD"


def _written(time: datetime) -> str:
    return f"{time.astimezone(UTC):%Y-%m-%dT%H:%M:%SZ}"


def _seconds(now: datetime, until: datetime) -> int:
    return max(1, math.ceil((until - now).total_seconds()))
