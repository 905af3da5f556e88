"""A conversation: the session's head and its turns. Frozen values.

Raising a call changes the session's totals by the difference (`raise_call`). So each call is counted exactly once, even
if several processes repeat the step.
"""

from collections.abc import Mapping
from dataclasses import dataclass, field, replace
from datetime import date, datetime
from decimal import Decimal
from enum import StrEnum
from typing import Any, TypeAlias

from shared.domain.calls import NO_TOTALS, Call, State, Totals, Usage

STOPPED = "stopped"  # finish_reason of a turn that was stopped
Message: TypeAlias = Mapping[str, Any]
"""One chat message in OpenAI's format: role, content, tool_calls, tool_call_id, refusal."""
Item: TypeAlias = Mapping[str, Any]
"""One item of OpenAI's Responses API, without its id: see domain/items.py."""
ADDED = "added"  # finish_reason of a turn that only adds items to a conversation, without a call


@dataclass(frozen=True, slots=True, kw_only=True)
class Lease:
    """The call that a session is reserved for, and until when."""

    call: str
    until: datetime


@dataclass(frozen=True, slots=True, kw_only=True)
class Deletion:
    """A clear or an erasure in progress."""

    id: str
    erase: bool


@dataclass(frozen=True, slots=True, kw_only=True)
class OwnerErasure:
    """An erasure of the owner's sessions that existed when it was begun. `position`: the last session that was
    checked."""

    owner: str
    begun: datetime
    erased: int = 0
    position: str = ""
    done: bool = False
    etag: str = field(default="", compare=False)


class Kind(StrEnum):
    """Which API began a session: api/chat, openai/v1/responses or openai/v1/conversations. The routes of openai/v1 do
    not find sessions of api/chat; those of api/* serve all."""

    CHAT = "chat"
    RESPONSES = "responses"
    CONVERSATION = "conversation"


@dataclass(frozen=True, slots=True, kw_only=True)
class Parent:
    """The session and turn that a branch continues. The branch's own turns are numbered from there on."""

    session_id: str
    turn: int


@dataclass(frozen=True, slots=True, kw_only=True)
class Session:
    """The head of a session. `turns`: number of the latest turn. `window_start`: number of the first turn in the
    latest answered turn's prompt. `etag`: the version that was read; empty if the session is not stored yet."""

    id: str
    created: datetime
    updated: datetime
    system: str
    deployment: str
    owner: str | None = None  # name of the principal that created it
    kind: Kind = Kind.CHAT
    metadata: Mapping[str, str] = field(default_factory=dict)  # of a conversation, from its caller
    parent: Parent | None = None  # of a branch
    parent_created: datetime | None = None  # when the parent was begun: a later session can have the same id
    reference: str | None = None  # its name in the ledger and in reports; None until the next turn of an old session
    seen: tuple[date, ...] = ()  # days under which the retention's index may have it, that of its last use last
    expires: datetime | None = None  # of a temporary session
    title: str | None = None
    pinned: bool = False
    archived: bool = False
    places: tuple[str, ...] = ()  # that it may have in its owner's list, the one that it is to have last: see listing
    turns: int = 0
    totals: Totals = NO_TOTALS
    stop: int | None = None  # number of the turn that is to be stopped
    window_start: int = 1
    cleared_through: int = 0
    lease: Lease | None = None
    deletion: Deletion | None = None
    first_key: str | None = None  # hash of the creating request's Idempotency-Key, if the server made the id
    etag: str = field(default="", compare=False)

    def visible_to(self, caller: str | None) -> bool:
        """True for the owner, and for every caller if the session has no owner."""
        return self.owner is None or self.owner == caller

    def continues(self, parent: "Session") -> bool:
        """True if this is a branch of that session, and not of an earlier one with its id."""
        return self.parent is not None and (self.parent.session_id, self.parent_created) == (parent.id, parent.created)

    def leased_to(self, call: Call) -> bool:
        """True if this call holds the lease, even an expired one."""
        return self.lease is not None and self.lease.call == call.id

    def expired(self, now: datetime) -> bool:
        return self.expires is not None and self.expires <= now

    def busy(self, now: datetime) -> bool:
        return self.lease is not None and now < self.lease.until


@dataclass(frozen=True, slots=True, kw_only=True)
class TurnResult:
    """What settling a turn stores besides its call. `messages`: the request's, then the answer if there is one.
    `output`: the answer's items, if the turn keeps items."""

    messages: tuple[Message, ...]
    output: tuple[Item | None, ...] = ()
    finish_reason: str | None
    finished: datetime
    extras: Mapping[str, Any] = field(default_factory=dict)


@dataclass(frozen=True, slots=True, kw_only=True)
class Turn:
    """One exchange: the request's messages, the answer, and all model calls for it; or messages that were added to a
    conversation without a call. The calls form one or more steps, each with at most one retry, and one more call each
    time that a prompt was too long and is shortened."""

    number: int
    started: datetime
    calls: tuple[Call, ...]
    messages: tuple[Message, ...] = ()  # those of `input` and `output`, if it keeps items
    input: tuple[Item | None, ...] = ()
    output: tuple[Item | None, ...] = ()
    window_start: int = 1
    past_tokens: int | None = 0  # of the prompt before this turn's messages; None if the caller made the prompt
    finished: datetime | None = None
    finish_reason: str | None = None
    truncated: tuple[str, ...] = ()  # what was cut to fit into its row: `logprobs`, or fields of the answer's message
    extras: Mapping[str, Any] = field(default_factory=dict)  # content_filter, logprobs: as the service sent them
    etag: str = field(default="", compare=False)

    @property
    def call(self) -> Call:
        """The latest call. In a settled turn it is the one with the answer."""
        return self.calls[-1]

    @property
    def totals(self) -> Totals:
        return Totals.of_turn(self.calls)

    @property
    def usage(self) -> Usage | None:
        """Tokens of the settled calls; None if there are none."""
        return self.totals.usage if self._settled else None

    @property
    def cost(self) -> Decimal | None:
        """USD of the settled calls; None if there are none or a price is unknown."""
        totals = self.totals
        return totals.cost if self._settled and not totals.unpriced_turns else None

    @property
    def answered(self) -> bool:
        """True if it has a complete answer."""
        if self.finish_reason == ADDED:
            return False
        has_answer = bool(self.messages) and self.messages[-1]["role"] == "assistant"
        if self.input and self.finish_reason == STOPPED:  # an earlier answer may end the input
            has_answer = bool(self.output)
        return has_answer and self.finish_reason not in (None, "error")

    @property
    def replayable(self) -> bool:
        """True if later prompts include this turn."""
        if self.finish_reason == ADDED:
            return bool(self.messages)
        return self.answered and self.finish_reason != "content_filter"

    @property
    def _settled(self) -> bool:
        return any(call.state is State.SETTLED for call in self.calls)

    def find(self, call_id: str) -> Call | None:
        return next((call for call in self.calls if call.id == call_id), None)

    def with_call(self, call: Call) -> "Turn":
        """This turn with its call of the same id replaced."""
        return replace(self, calls=tuple(call if old.id == call.id else old for old in self.calls))

    def without_content(self) -> "Turn":
        """This turn without messages and items. Its calls and costs stay."""
        return replace(self, messages=(), input=(), output=(), extras={})

    def with_result(self, result: TurnResult) -> "Turn":
        return replace(
            self,
            messages=result.messages,
            output=result.output,
            finish_reason=result.finish_reason,
            finished=result.finished,
            extras=result.extras,
        )


@dataclass(frozen=True, slots=True, kw_only=True)
class IdempotencyRecord:
    """A used Idempotency-Key: the SHA-256 of its request, and the turns that used it, in ascending order: the latest,
    and those earlier ones that may still be answered, because their process has not stored a result yet."""

    key: str  # SHA-256 of caller and key
    request: str
    turns: tuple[int, ...] = ()
    etag: str = field(default="", compare=False)


def raise_call(session: Session, turn: Turn, call: Call) -> tuple[Session, Turn] | None:
    """The session and turn with the call in its new state and the totals changed by the difference.

    None if nothing changes: the turn does not have the call, or the call's state is already as high.
    """
    before = turn.find(call.id)
    if before is None or call.state.rank <= before.state.rank:
        return None
    after = turn.with_call(call)
    totals = session.totals.plus(after.totals).plus(turn.totals, sign=-1)
    start = session.window_start
    if call.state is State.SETTLED:  # a rejected turn must not move the window
        start = max(start, turn.window_start)
    lease = None if session.leased_to(call) else session.lease
    return replace(session, totals=totals, window_start=start, lease=lease), after
