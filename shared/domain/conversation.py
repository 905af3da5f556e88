"""A conversation: the session's head and its turns. Frozen values.

Raising a call changes the session's totals by the difference (`raise_call`), so each call is counted once, however
often and by whichever process that is repeated.
"""

from collections.abc import Mapping
from dataclasses import dataclass, field, replace
from datetime import datetime
from decimal import Decimal
from typing import Any, TypeAlias

from shared.domain.calls import NO_TOTALS, Call, State, Totals, Usage

Message: TypeAlias = Mapping[str, Any]
"""One chat message in OpenAI's format: role, content, tool_calls, tool_call_id, refusal."""


@dataclass(frozen=True, slots=True, kw_only=True)
class Lease:
    """The call that a session is busy with, and until when at least."""

    call: str
    until: datetime


@dataclass(frozen=True, slots=True, kw_only=True)
class Deletion:
    """A clear or an erasure that is under way."""

    id: str
    erase: bool


@dataclass(frozen=True, slots=True, kw_only=True)
class Session:
    """The head of a conversation. `turns` is the number of the latest turn; `window_start` the first turn that was part
    of the prompt of the latest answered turn; `etag` the version that was read, empty where none is stored yet."""

    id: str
    created: datetime
    updated: datetime
    system: str
    deployment: str
    owner: str | None = None  # the name of the principal that began it
    turns: int = 0
    totals: Totals = NO_TOTALS
    window_start: int = 1
    cleared_through: int = 0
    lease: Lease | None = None
    deletion: Deletion | None = None
    first_key: str | None = None  # hash of the Idempotency-Key of the request that began it, where its id was made here
    etag: str = field(default="", compare=False)

    def visible_to(self, caller: str | None) -> bool:
        """A session that has an owner is visible to that owner only."""
        return self.owner is None or self.owner == caller

    def leased_to(self, call: Call) -> bool:
        """Whether this call holds the lease, expired or not."""
        return self.lease is not None and self.lease.call == call.id

    def busy(self, now: datetime) -> bool:
        return self.lease is not None and now < self.lease.until


@dataclass(frozen=True, slots=True, kw_only=True)
class TurnResult:
    """What settling a turn writes into it beside its call. `messages`: the request's, then the answer where there is
    one."""

    messages: tuple[Message, ...]
    finish_reason: str | None
    finished: datetime
    extras: Mapping[str, Any] = field(default_factory=dict)


@dataclass(frozen=True, slots=True, kw_only=True)
class Turn:
    """One exchange: the request's messages, the answer, and every call that it took. Its calls are one or more steps,
    each with at most one retry."""

    number: int
    started: datetime
    calls: tuple[Call, ...]
    messages: tuple[Message, ...] = ()
    window_start: int = 1
    past_tokens: int | None = 0  # size of the prompt before its own messages; None where the caller made the prompt
    finished: datetime | None = None
    finish_reason: str | None = None
    truncated: bool = False
    extras: Mapping[str, Any] = field(default_factory=dict)  # content_filter, logprobs: as the service sent them
    etag: str = field(default="", compare=False)

    @property
    def call(self) -> Call:
        """The latest call; once the turn is settled, the one that answered."""
        return self.calls[-1]

    @property
    def totals(self) -> Totals:
        return Totals.of_turn(self.calls)

    @property
    def usage(self) -> Usage | None:
        """Tokens of its settled calls; None where none is settled."""
        return self.totals.usage if self._settled else None

    @property
    def cost(self) -> Decimal | None:
        """USD of its settled calls; None where none is settled or a price is unknown."""
        totals = self.totals
        return totals.cost if self._settled and not totals.unpriced_turns else None

    @property
    def replayable(self) -> bool:
        """Whether later turns show it to the model."""
        return self.call.state is State.SETTLED and self.finish_reason != "content_filter" and bool(self.messages)

    @property
    def _settled(self) -> bool:
        return any(call.state is State.SETTLED for call in self.calls)

    def find(self, call_id: str) -> Call | None:
        return next((call for call in self.calls if call.id == call_id), None)

    def with_call(self, call: Call) -> "Turn":
        """This turn with the call of the same id replaced."""
        return replace(self, calls=tuple(call if old.id == call.id else old for old in self.calls))

    def with_result(self, result: TurnResult) -> "Turn":
        return replace(
            self,
            messages=result.messages,
            finish_reason=result.finish_reason,
            finished=result.finished,
            extras=result.extras,
        )


@dataclass(frozen=True, slots=True, kw_only=True)
class IdempotencyRecord:
    """A used Idempotency-Key: the turn that used it (0 before that) and the SHA-256 of its request."""

    key: str  # SHA-256 of caller and key
    request: str
    turn: int = 0
    etag: str = field(default="", compare=False)


def raise_call(session: Session, turn: Turn, call: Call) -> tuple[Session, Turn] | None:
    """The session and turn with the call in its new state and the totals changed by the difference.

    None where there is nothing to do: the turn does not hold the call, or its state is as high already.
    """
    before = turn.find(call.id)
    if before is None or call.state.rank <= before.state.rank:
        return None
    after = turn.with_call(call)
    totals = session.totals.plus(after.totals).plus(turn.totals, sign=-1)
    start = session.window_start
    if call.state is State.SETTLED:  # a turn that was refused must not move the window
        start = max(start, turn.window_start)
    lease = None if session.leased_to(call) else session.lease
    return replace(session, totals=totals, window_start=start, lease=lease), after
