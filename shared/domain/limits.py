"""Limits of callers, and what is used of them: USD a day and a month, requests and tokens a minute. All in UTC.

A call holds its worst case until its cost is known. docs/limits_protocol.py specifies how calls and limits change
together, and shows what breaks without each rule.
"""

from collections.abc import Iterator, Mapping
from dataclasses import dataclass, field, replace
from datetime import UTC, date, datetime, time, timedelta
from decimal import Decimal

from shared.domain.calls import ZERO, Call, State
from shared.domain.principal import Principal

TOTAL, ANONYMOUS, OTHERS = "total", "anonymous", "*"  # names of limits beside those of callers
PER_DAY, PER_MONTH = "usd_per_day", "usd_per_month"  # names of budgets
_MINUTE = timedelta(minutes=1)
_NEARLY = Decimal("0.8")  # of a budget: callers see what is left from here on


@dataclass(frozen=True, slots=True, kw_only=True)
class Limit:
    """A limit of one caller, of all anonymous callers together, or of all callers together. None: no limit. `name` is
    the caller's name, `anonymous` or `total`; `max_tokens` is the maximum of an answer; `fallback_deployment` answers
    chat while a budget is nearly used."""

    name: str = ""
    usd_per_day: Decimal | None = None
    usd_per_month: Decimal | None = None
    requests_per_minute: int | None = None
    tokens_per_minute: int | None = None
    max_tokens: int | None = None
    fallback_deployment: str | None = None

    @property
    def counts(self) -> bool:
        """True if calls count against it, so that it has a row."""
        return self.in_usd or self.requests_per_minute is not None or self.tokens_per_minute is not None

    @property
    def in_usd(self) -> bool:
        return self.usd_per_day is not None or self.usd_per_month is not None


@dataclass(frozen=True, slots=True, kw_only=True)
class Limits:
    """The LIMITS setting. `by_name`: limits of callers, and TOTAL, ANONYMOUS and OTHERS: every other named caller, each
    by itself. `session_usd`: USD of any one session in its life; `session_max_tokens`: maximum of its answers."""

    by_name: Mapping[str, Limit] = field(default_factory=dict)
    session_usd: Decimal | None = None
    session_max_tokens: int | None = None

    def own(self, principal: Principal) -> Limit | None:
        if principal.name is None:
            return self.by_name.get(ANONYMOUS)
        others = self.by_name.get(OTHERS)
        return self.by_name.get(principal.name) or (replace(others, name=principal.name) if others else None)

    def fallback(self, principal: Principal) -> str | None:
        """The deployment that answers the caller while a budget of its own is nearly used."""
        own = self.own(principal)
        return own.fallback_deployment if own else None

    def counted(self, principal: Principal) -> tuple[Limit, ...]:
        """The limits that the caller's calls count against: its own, then the total."""
        limits = (self.own(principal), self.by_name.get(TOTAL))
        return tuple(limit for limit in limits if limit and limit.counts)

    def max_tokens(self, principal: Principal, *, session: bool) -> int | None:
        """The maximum of an answer for this caller, of a session's turn or of a call without one; None: no limit."""
        limits = (self.own(principal), self.by_name.get(TOTAL))
        maxima = [limit.max_tokens for limit in limits if limit]
        maxima.append(self.session_max_tokens if session else None)
        return min((maximum for maximum in maxima if maximum is not None), default=None)


@dataclass(frozen=True, slots=True, kw_only=True)
class Counter:
    """What is used of a limit in one month, and in the latest day and minute in which one of its calls was opened.

    `spent`: cost of the settled calls; `held`: worst case of those whose cost is not known; `running`: the part of
    `held` that is of open calls, and may be given back within seconds. `minute` only rises.
    """

    name: str
    month: date  # its first day
    since: datetime
    minute: datetime | None = None
    spent: Decimal = ZERO
    held: Decimal = ZERO
    day_spent: Decimal = ZERO
    day_held: Decimal = ZERO
    running: Decimal = ZERO
    day_running: Decimal = ZERO
    minute_tokens: int = 0
    minute_requests: int = 0
    etag: str = field(default="", compare=False)

    def at(self, minute: datetime) -> "Counter":
        """The counter in this minute, if it is a later one: a new minute and a new day begin with nothing used."""
        if self.minute is not None and minute <= self.minute:
            return self
        begun = replace(self, minute=minute, minute_tokens=0, minute_requests=0)
        if self.minute is None or minute.date() > self.minute.date():
            begun = replace(begun, day_spent=ZERO, day_held=ZERO, day_running=ZERO)
        return begun

    def opened(self, call: Call, minute: datetime) -> "Counter":
        """With a new call that counts in this minute, which is not before the counter's."""
        counter = self.at(minute)
        return replace(counter._plus(call, minute, 1), minute_requests=counter.minute_requests + 1)

    def raised(self, before: Call, after: Call, minute: datetime) -> "Counter":
        """With a call in another state. `minute`: in which it counts."""
        return self._plus(after, minute, 1)._plus(before, minute, -1)

    def _plus(self, call: Call, minute: datetime, sign: int) -> "Counter":
        spent, held, running = sign * spent_by(call), sign * held_by(call), sign * running_by(call)
        counter = replace(self, spent=self.spent + spent, held=self.held + held, running=self.running + running)
        if self.minute and self.minute.date() == minute.date():
            counter = replace(
                counter,
                day_spent=self.day_spent + spent,
                day_held=self.day_held + held,
                day_running=self.day_running + running,
            )
        if self.minute == minute:
            counter = replace(counter, minute_tokens=self.minute_tokens + sign * tokens_of(call))
        return counter

    def budgets(self, limit: Limit) -> Iterator["Budget"]:
        """The limit's budgets in USD, and what is used of them. `resets_at` is in the counter's day or month."""
        minute = self.minute or datetime.combine(self.month, time(), UTC)
        midnight = datetime.combine(minute.date() + timedelta(days=1), time(), UTC)
        if limit.usd_per_day is not None:
            yield Budget(PER_DAY, limit.usd_per_day, self.day_spent, self.day_held, self.day_running, midnight)
        if limit.usd_per_month is not None:
            first = (self.month + timedelta(days=31)).replace(day=1)
            resets_at = datetime.combine(first, time(), UTC)
            yield Budget(PER_MONTH, limit.usd_per_month, self.spent, self.held, self.running, resets_at)

    def rates(self, limit: Limit, now: datetime) -> "RateStatus | None":
        """What is left of the limits per minute; None if there are none."""
        if limit.requests_per_minute is None and limit.tokens_per_minute is None:
            return None
        counter = self.at(minute_of(now))
        return RateStatus(
            limit,
            requests=max(0, (limit.requests_per_minute or 0) - counter.minute_requests),
            tokens=max(0, (limit.tokens_per_minute or 0) - counter.minute_tokens),
            resets_at=(counter.minute or minute_of(now)) + _MINUTE,
        )


@dataclass(frozen=True, slots=True)
class Budget:
    """What is used of one budget, in USD. `name`: PER_DAY or PER_MONTH."""

    name: str
    limit: Decimal
    spent: Decimal
    held: Decimal
    running: Decimal  # the part of `held` that is of open calls
    resets_at: datetime

    @property
    def spent_and_held(self) -> Decimal:
        return self.spent + self.held

    @property
    def nearly_used(self) -> bool:
        return self.spent_and_held >= _NEARLY * self.limit

    def has_room(self, worst_case: Decimal) -> bool:
        return self.spent_and_held + worst_case <= self.limit

    @property
    def remaining(self) -> Decimal:
        return max(ZERO, self.limit - self.spent_and_held)


@dataclass(frozen=True, slots=True)
class RateStatus:
    """What is left of a limit's requests and tokens in the minute that ends at `resets_at`."""

    limit: Limit
    requests: int
    tokens: int
    resets_at: datetime


def held_by(call: Call) -> Decimal:
    """USD that the call holds: its worst case while its cost is not known, even if it is settled."""
    unknown = not call.state.final or (call.state is State.SETTLED and call.cost is None)
    return (call.worst_case or ZERO) if unknown else ZERO


def spent_by(call: Call) -> Decimal:
    return (call.cost or ZERO) if call.state is State.SETTLED else ZERO


def running_by(call: Call) -> Decimal:
    return held_by(call) if call.state is State.OPEN else ZERO


def tokens_of(call: Call) -> int:
    """Tokens that the call counts for in its minute: the most there may be, until they are known."""
    if call.state is State.SETTLED and call.usage:
        return call.usage.total_tokens
    return 0 if call.state.final else call.max_tokens


def value_of(call: Call) -> tuple[Decimal, Decimal, Decimal, int]:
    """What the call counts for: USD spent, held, and held by an open call; tokens."""
    return spent_by(call), held_by(call), running_by(call), tokens_of(call)


def minute_of(now: datetime) -> datetime:
    return now.replace(second=0, microsecond=0)
