"""The values of a conversation: what was said, what was called, what it cost. Frozen; no I/O, no wire format.

A call's state only ever rises, and raising it changes the session's totals by the difference, so whoever does it, and
however often, each call is counted once (`raised`).
"""

import hashlib
from collections.abc import Mapping
from dataclasses import dataclass, field, replace
from datetime import date, datetime
from decimal import Decimal
from enum import StrEnum
from typing import Any, TypeAlias

Message: TypeAlias = Mapping[str, Any]
"""One chat message in OpenAI's shape: role, content, tool_calls, tool_call_id, refusal."""


class State(StrEnum):
    """What is known of a call's cost."""

    OPEN = "open"  # it may be running
    ABANDONED = "abandoned"  # it was fenced off before it could spend
    UNACCOUNTED = "unaccounted"  # it may have been billed; nobody knows how much
    SETTLED = "settled"  # billed, and the cost is known
    FAILED = "failed"  # certainly not billed

    @property
    def rank(self) -> int:
        return _RANK[self]


_RANK = {State.OPEN: 0, State.ABANDONED: 1, State.UNACCOUNTED: 2, State.SETTLED: 3, State.FAILED: 3}


@dataclass(frozen=True, slots=True, kw_only=True)
class Usage:
    """Tokens of one or more calls. Cached and cache-write tokens are part of the prompt's, reasoning of the
    completion's."""

    prompt_tokens: int = 0
    cached_tokens: int = 0
    cache_write_tokens: int = 0
    completion_tokens: int = 0
    reasoning_tokens: int = 0

    @property
    def total_tokens(self) -> int:
        return self.prompt_tokens + self.completion_tokens

    @property
    def through(self) -> int:
        """The conversation's size after this call, in tokens: the prompt and what was said of the answer."""
        return self.prompt_tokens + self.completion_tokens - self.reasoning_tokens

    def plus(self, other: "Usage", sign: int = 1) -> "Usage":
        return Usage(
            prompt_tokens=self.prompt_tokens + sign * other.prompt_tokens,
            cached_tokens=self.cached_tokens + sign * other.cached_tokens,
            cache_write_tokens=self.cache_write_tokens + sign * other.cache_write_tokens,
            completion_tokens=self.completion_tokens + sign * other.completion_tokens,
            reasoning_tokens=self.reasoning_tokens + sign * other.reasoning_tokens,
        )


@dataclass(frozen=True, slots=True, kw_only=True)
class Rates:
    """USD per 1,000,000 tokens, by kind."""

    input: Decimal
    cached_input: Decimal
    cache_write: Decimal
    output: Decimal


@dataclass(frozen=True, slots=True, kw_only=True)
class Call:
    """One call of the model that may be billed. `day` is the UTC day of its reservation, whenever it is settled."""

    id: str
    day: date
    deadline: datetime
    deployment: str
    worst_case: Decimal | None  # USD; None where the price is unknown
    state: State = State.OPEN
    usage: Usage | None = None
    cost: Decimal | None = None  # USD; None where the price is unknown
    rates: Rates | None = None
    model: str | None = None
    endpoint: str | None = None
    reason: str | None = None  # why it failed, or can't be accounted for


@dataclass(frozen=True, slots=True, kw_only=True)
class Totals:
    """What a number of calls came to."""

    usage: Usage = Usage()
    cost: Decimal = Decimal(0)  # USD, of settled calls
    unpriced_turns: int = 0
    unaccounted_calls: int = 0
    unaccounted: Decimal = Decimal(0)  # USD, at worst, of those whose worst case is known
    unbounded_calls: int = 0  # the others

    @classmethod
    def of(cls, call: Call) -> "Totals":
        """What one call adds in its present state."""
        if call.state is State.SETTLED and call.usage is not None:
            return cls(usage=call.usage, cost=call.cost or Decimal(0), unpriced_turns=int(call.cost is None))
        if call.state is State.UNACCOUNTED:
            unbounded = int(call.worst_case is None)
            return cls(unaccounted_calls=1, unaccounted=call.worst_case or Decimal(0), unbounded_calls=unbounded)
        return cls()

    def plus(self, other: "Totals", sign: int = 1) -> "Totals":
        return Totals(
            usage=self.usage.plus(other.usage, sign),
            cost=self.cost + sign * other.cost,
            unpriced_turns=self.unpriced_turns + sign * other.unpriced_turns,
            unaccounted_calls=self.unaccounted_calls + sign * other.unaccounted_calls,
            unaccounted=self.unaccounted + sign * other.unaccounted,
            unbounded_calls=self.unbounded_calls + sign * other.unbounded_calls,
        )


@dataclass(frozen=True, slots=True, kw_only=True)
class Lease:
    """Which call a session is busy with, and until when at least."""

    call: str
    until: datetime


@dataclass(frozen=True, slots=True, kw_only=True)
class Removal:
    """A clear or an erasure that is under way."""

    id: str
    erase: bool


@dataclass(frozen=True, slots=True, kw_only=True)
class Session:
    """The head of a conversation. `turns` is the number of the latest turn; `window_start` of the first that was sent
    to the model in a turn that was answered; `etag` storage's mark of the version that was read, empty for one that is
    not stored yet."""

    id: str
    created: datetime
    updated: datetime
    system: str
    deployment: str
    owner: str | None = None
    turns: int = 0
    totals: Totals = Totals()
    window_start: int = 1
    cleared_through: int = 0
    lease: Lease | None = None
    removal: Removal | None = None
    first_key: str | None = None  # where the pointer of the first post's Idempotency-Key is kept
    etag: str = field(default="", compare=False)

    def open_to(self, caller: str | None) -> bool:
        """Whether the caller may know of it: an owner's session is nobody else's."""
        return self.owner is None or self.owner == caller

    def holds(self, call: Call) -> bool:
        """Whether its lease is this call's, over or not."""
        return self.lease is not None and self.lease.call == call.id

    def busy(self, now: datetime) -> bool:
        return self.lease is not None and now < self.lease.until


@dataclass(frozen=True, slots=True, kw_only=True)
class Turn:
    """One exchange: what was sent, what came back, and every call that it took; the last one answered."""

    number: int
    started: datetime
    calls: tuple[Call, ...]
    messages: tuple[Message, ...] = ()
    window_start: int = 1
    past_tokens: int | None = 0  # what its prompt held before its own messages; None where its caller made the prompt
    finished: datetime | None = None
    finish_reason: str | None = None
    truncated: bool = False
    extras: Mapping[str, Any] = field(default_factory=dict)  # content_filter, logprobs: as the service sent them
    etag: str = field(default="", compare=False)

    @property
    def call(self) -> Call:
        return self.calls[-1]

    @property
    def replayable(self) -> bool:
        """Whether later turns show it to the model."""
        return self.call.state is State.SETTLED and self.finish_reason != "content_filter" and bool(self.messages)

    def find(self, call_id: str) -> Call | None:
        return next((call for call in self.calls if call.id == call_id), None)

    def with_call(self, call: Call) -> "Turn":
        """This turn with the call of the same id replaced."""
        return replace(self, calls=tuple(call if old.id == call.id else old for old in self.calls))


def raised(session: Session, turn: Turn, call: Call) -> tuple[Session, Turn] | None:
    """The session and turn with the call in its new state and the totals moved by the difference.

    None where there is nothing to do: the turn does not hold the call, or its state is as high already.
    """
    before = turn.find(call.id)
    if before is None or call.state.rank <= before.state.rank:
        return None
    totals = session.totals.plus(Totals.of(call)).plus(Totals.of(before), sign=-1)
    start = session.window_start
    if call.state is State.SETTLED:  # a turn that was refused forgets nothing
        start = max(start, turn.window_start)
    session = replace(session, totals=totals, window_start=start, lease=None if session.holds(call) else session.lease)
    return session, turn.with_call(call)


@dataclass(frozen=True, slots=True, kw_only=True)
class Used:
    """An Idempotency-Key that was used: by which turn, and the SHA-256 of what it asked. `turn` is 0 before that."""

    key: str  # SHA-256 of caller and key
    request: str
    turn: int = 0
    etag: str = field(default="", compare=False)


@dataclass(frozen=True, slots=True, kw_only=True)
class Entry:
    """A row of the ledger: one call, who made it, and where it belongs. No content."""

    call: Call
    session_id: str | None
    turn: int
    caller: str | None
    etag: str = field(default="", compare=False)


def digest(text: str) -> str:
    """SHA-256 of a text, in hex: how ids and keys are written where they must not be readable."""
    return hashlib.sha256(text.encode()).hexdigest()


def hashed(session_id: str) -> str:
    """A session as logs, traces and mails name it."""
    return digest(session_id)[:12]
