"""Model calls: their states, tokens and cost.

A call's state only ever rises (`State.rank`), so any process can repeat any step of its accounting.
"""

from collections.abc import Iterable
from dataclasses import dataclass, field, fields
from datetime import date, datetime
from decimal import Decimal
from enum import StrEnum
from typing import Literal

from shared.domain.hashing import session_label

ZERO = Decimal(0)

ReasoningEffort = Literal["none", "minimal", "low", "medium", "high", "xhigh"]


class State(StrEnum):
    """What is known about a call's cost."""

    OPEN = "open"  # it may be running
    ABANDONED = "abandoned"  # fenced before any spending
    UNACCOUNTED = "unaccounted"  # it may have been billed; the amount is unknown
    STOPPED = "stopped"  # billed for what was generated until it was stopped; the amount is known only within bounds
    SETTLED = "settled"  # billed, and the cost is known
    FAILED = "failed"  # certainly not billed

    @property
    def rank(self) -> int:
        return _RANK[self]

    @property
    def final(self) -> bool:
        """True if nothing more is expected: the cost is known, or there is none."""
        return self not in (State.OPEN, State.UNACCOUNTED, State.STOPPED)


_RANK = {
    State.OPEN: 0,
    State.ABANDONED: 1,
    State.UNACCOUNTED: 2,
    State.STOPPED: 3,
    State.SETTLED: 4,
    State.FAILED: 4,
}


@dataclass(frozen=True, slots=True, kw_only=True)
class Usage:
    """Tokens of one or more calls. Cached, cache-write and audio prompt tokens are part of the prompt's, reasoning and
    audio completion tokens of the completion's. `unpriced_kinds`: kinds of token that no rate covers."""

    prompt_tokens: int = 0
    cached_tokens: int = 0
    cache_write_tokens: int = 0
    completion_tokens: int = 0
    reasoning_tokens: int = 0
    audio_prompt_tokens: int = 0
    audio_completion_tokens: int = 0
    unpriced_kinds: int = 0

    @property
    def total_tokens(self) -> int:
        return self.prompt_tokens + self.completion_tokens

    @property
    def conversation_tokens(self) -> int:
        """The conversation's size after this call: the prompt, and the answer without its reasoning."""
        return self.prompt_tokens + self.completion_tokens - self.reasoning_tokens

    def plus(self, other: "Usage", sign: int = 1) -> "Usage":
        return Usage(**{name: getattr(self, name) + sign * getattr(other, name) for name in USAGE_FIELDS})


USAGE_FIELDS = tuple(each.name for each in fields(Usage))
NO_USAGE = Usage()


@dataclass(frozen=True, slots=True, kw_only=True)
class Rates:
    """USD per 1,000,000 tokens, by kind. None: the rate is not known."""

    input: Decimal
    cached_input: Decimal
    cache_write: Decimal
    output: Decimal | None = None  # an embedding has none
    audio_input: Decimal | None = None
    audio_output: Decimal | None = None


@dataclass(frozen=True, slots=True, kw_only=True)
class Call:
    """One model call, which may be billed. `day`: UTC day of its reservation, even if it settles on a later day. After
    `deadline` no row of the call is inserted and no attempt begins. `step`: number of the call in its turn, from 0; a
    retry has the number of the call that it retries."""

    id: str
    day: date
    deadline: datetime
    deployment: str
    worst_case: Decimal | None  # USD; None if the price is unknown
    max_tokens: int = 0  # prompt and answer together: an upper bound
    minute: datetime | None = None  # in which it was reserved, if limits apply to it
    reference: str | None = None  # of its session; None if it has none, or was stored before sessions had references
    step: int = 0
    state: State = State.OPEN
    usage: Usage | None = None
    cost: Decimal | None = None  # USD; None if the price is unknown
    at_least: Decimal | None = None  # USD, of a stopped call: what the service had reported by then
    rates: Rates | None = None
    model: str | None = None
    endpoint: str | None = None
    reason: str | None = None  # why it failed, or is unaccounted


@dataclass(frozen=True, slots=True, kw_only=True)
class Totals:
    """Sums over calls."""

    usage: Usage = NO_USAGE
    cost: Decimal = ZERO  # USD, of settled calls
    unpriced_turns: int = 0
    unaccounted_calls: int = 0
    unaccounted: Decimal = ZERO  # USD, the worst case of the unaccounted calls that have one
    unbounded_calls: int = 0  # the other unaccounted calls
    stopped_calls: int = 0
    stopped_at_least: Decimal = ZERO  # USD, what the services had reported of the stopped calls
    stopped_at_most: Decimal = ZERO  # USD, the worst case of the stopped calls that have one
    stopped_unbounded: int = 0  # the other stopped calls

    @classmethod
    def of_turn(cls, calls: Iterable[Call]) -> "Totals":
        """Sums over the calls of one turn in their current states."""
        calls = tuple(calls)
        settled = [call for call in calls if call.state is State.SETTLED]
        unaccounted = [call for call in calls if call.state is State.UNACCOUNTED]
        stopped = [call for call in calls if call.state is State.STOPPED]
        usage = NO_USAGE
        for call in settled:
            usage = usage.plus(call.usage or NO_USAGE)
        return cls(
            usage=usage,
            cost=sum((call.cost or ZERO for call in settled), ZERO),
            unpriced_turns=int(any(call.cost is None for call in settled)),
            unaccounted_calls=len(unaccounted),
            unaccounted=sum((call.worst_case or ZERO for call in unaccounted), ZERO),
            unbounded_calls=sum(call.worst_case is None for call in unaccounted),
            stopped_calls=len(stopped),
            stopped_at_least=sum((call.at_least or ZERO for call in stopped), ZERO),
            stopped_at_most=sum((call.worst_case or ZERO for call in stopped), ZERO),
            stopped_unbounded=sum(call.worst_case is None for call in stopped),
        )

    def plus(self, other: "Totals", sign: int = 1) -> "Totals":
        sums = {name: getattr(self, name) + sign * getattr(other, name) for name in _SUMS}
        return Totals(usage=self.usage.plus(other.usage, sign), **sums)


_SUMS = tuple(each.name for each in fields(Totals) if each.name != "usage")
NO_TOTALS = Totals()


@dataclass(frozen=True, slots=True, kw_only=True)
class LedgerEntry:
    """A ledger row: one call, its caller and its turn, without content. `session_id` is known while the call is not
    final, afterwards only if the call has no reference. `limits`: the names of the limits that the call
    counts against, in `minute`, which is the call's own or a later one of the same day."""

    call: Call
    session_id: str | None  # None for a call without a session
    turn: int
    caller: str | None  # the principal's name
    limits: tuple[str, ...] = ()
    minute: datetime | None = None
    keys: tuple[str, str] | None = field(default=None, compare=False)  # of the row that was read
    etag: str = field(default="", compare=False)

    @property
    def session(self) -> str | None:
        """The session in the row's key: its reference, or in rows of 0.2.0 and earlier its id."""
        return self.call.reference or self.session_id

    @property
    def session_label(self) -> str | None:
        """The name of the session in logs and traces. None for calls of 0.2.0 and earlier, which have only its id: even
        a hash of an id that a caller chose could be guessed."""
        return session_label(self.call.reference, is_reference=True) if self.call.reference else None
