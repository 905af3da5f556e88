"""The ports of a turn: Protocols that adapters implement and `services` injects."""

from collections.abc import AsyncIterator, Callable, Mapping, Sequence
from dataclasses import dataclass, replace
from datetime import date, datetime
from typing import Any, NamedTuple, Protocol

from shared.domain.calls import Call, LedgerEntry, Usage
from shared.domain.conversation import IdempotencyRecord, Message, Session, Turn
from shared.domain.limits import Counter, Limit
from shared.domain.listing import SessionPage
from shared.errors import ChatError, UpstreamError

MAX_PAST_TURNS = 512  # read for one turn at most; failed turns count, though they are not replayed


class Sessions(Protocol):
    """Storage of conversations. Writes raise VersionConflict if a version is not the stored one; all methods with
    I/O raise StorageUnavailable."""

    def check_size(self, session: Session, turn: Turn, answer_tokens: int, view: str | None = None) -> None:
        """Raises MessageTooLarge if the session, the view, or the turn with an answer of that many tokens, can't be
        stored."""

    async def read(
        self, session_id: str, *, through: int | None = None, whole: bool = False
    ) -> tuple[Session | None, list[Turn]]:
        """The head and the latest turns up to the number `through`, newest first, with those that a branch continues:
        as many as a window can need, or MAX_PAST_TURNS (`whole`). They end early if a session that it continues is
        gone."""

    async def head(self, session_id: str) -> Session | None: ...
    async def turn(self, session_id: str, number: int) -> Turn | None: ...

    async def history(self, session_id: str, *, first: int, last: int, limit: int) -> list[Turn]:
        """At most `limit` of the session's own turns from the number `first` to `last`, newest first."""

    async def view(self, session_id: str, number: int) -> str | None:
        """What the turn's response repeats of its request; None if there is none, or it was deleted."""

    def branches(self, session_id: str) -> AsyncIterator[tuple[str, int]]:
        """The sessions that continue a turn of this one, by their ids, each with the number of that turn. Some may not
        exist."""

    async def enter_branch(self, session: Session) -> bool:
        """Before a branch is stored: enter it with its parent. False if the parent is gone."""

    async def leave_branch(self, session: Session) -> None:
        """Remove a branch that does not exist from its parent."""

    async def idempotency_record(self, session_id: str, key: str) -> IdempotencyRecord | None: ...

    async def first_session(self, record: IdempotencyRecord, session_id: str) -> tuple[str, IdempotencyRecord]:
        """The session that the first request with this key created, and that request's record. Returns the arguments if
        the key is new."""

    async def commit(
        self, session: Session, turn: Turn, record: IdempotencyRecord | None = None, view: str | None = None
    ) -> tuple[Session, Turn]:
        """Write everything in one transaction; returns both as stored. A turn that is too large is stored without log
        probabilities and, if still too large, with a truncated answer."""

    async def write(self, session: Session, turn: Turn | None = None, *, delete_view: int | None = None) -> Session:
        """Write the head, with a turn, without the view of a turn, in one transaction. Returns the head as stored."""

    async def renew(self, session: Session) -> Session:
        """Write only the session's lease."""

    async def update(self, session: Session) -> Session:
        """Write only the session's owner, title and place in its owner's list. It is no use of the session."""

    async def request_stop(self, session: Session) -> None:
        """Write only that the session's latest turn is to be stopped."""


class Indexes(Protocol):
    """Where sessions are found by the day of their last use, for retention, and by owner."""

    async def prepare(self, session: Session) -> Session:
        """Before a turn is reserved: the session to store with it. Enters a new session."""

    async def enter(self, session: Session) -> Session:
        """After a turn is reserved: move the session to its day. Returns the session to store later."""

    async def remove(self, session: Session) -> None:
        """After a turn whose session was not stored, or erased: remove what it entered. Raises StorageUnavailable."""


class OwnerIndex(Protocol):
    """The list of each owner's sessions."""

    async def page(self, owner: str, *, after: str, limit: int, archived: bool, search: str) -> SessionPage:
        """At most `limit` sessions, after the row `after` ("": from the start). `search`: only those whose title
        contains it. There may be fewer, or none, although there are more."""

    async def adopt(self, session: Session) -> Session:
        """A session that is in no list, as it is to be stored before `move` enters it: with a title and a place."""

    async def move(self, session: Session) -> Session:
        """Bring the list up to date with the session. Returns the session to store."""

    async def remove(self, session: Session) -> None:
        """Remove what was entered of a session that was not stored, or is erased."""


class Deletions(Protocol):
    """Clears and erasures. Each one completes even after repeated interruptions."""

    async def begin(self, session: Session, *, erase: bool) -> Session | None:
        """Mark the session and return it. None if it changed meanwhile: read it again."""

    async def finish(self, session: Session) -> None: ...


class LaterDay(Exception):
    """A limit of the call is at a minute of a later day already: the call must be replaced by one of that minute."""

    def __init__(self, minute: datetime) -> None:
        super().__init__(minute)
        self.minute = minute


class Ledger(Protocol):
    """The rows of all calls, one for each. All methods raise StorageUnavailable."""

    async def open(
        self, entry: LedgerEntry, limits: Sequence[Limit] = (), *, replaces: tuple[LedgerEntry, Call] | None = None
    ) -> LedgerEntry:
        """Insert the row of a new call, the only way to start spending, and hold its worst case against the limits. For
        a retry, `replaces` is the old call's row and the state to raise it to, at the latest before. Raises the refusal
        of a limit, LaterDay, and VersionConflict if the row already exists."""

    def known_refusal(self, limits: Sequence[Limit], call: Call) -> ChatError | None:
        """Why `open` would refuse the call, as far as this process knows without a request to storage."""

    async def counter(self, name: str, day: date) -> Counter:
        """What is used of a limit in the day's month, as stored."""

    async def recent_counter(self, name: str, day: date) -> Counter:
        """The same, but at most a second old: without a request to storage if this process has just read or written
        it."""

    def known_counter(self, name: str, day: date) -> Counter | None:
        """What is used of a limit in the day's month, as far as this process knows."""

    async def fence(self, entry: LedgerEntry) -> LedgerEntry:
        """Insert a row that stops a stalled process from opening the call. Raises VersionConflict if one exists."""

    async def find(self, call: Call, session_id: str | None, turn: int) -> LedgerEntry | None: ...

    async def raise_call(self, entry: LedgerEntry, call: Call) -> bool:
        """Raise the row to the call's state, unless it is already as high or no longer exists. Insert an entry that was
        never read (one without an etag). Returns whether the row changed."""

    async def forget_session(self, call: Call, session_id: str, turn: int, reference: str) -> None:
        """Remove the id of an erased session from a call's row."""


DONE = b"[DONE]"  # the data of a stream's last event


class ServerEvent(NamedTuple):
    """One event of a stream, or the one document of an answer that was not streamed."""

    data: bytes = b""
    name: bytes = b""


class Piece(NamedTuple):
    """What one event adds to an answer. `shown`: content, refusal or tool-call deltas; {} if there are none.
    `only_usage`: a chunk that holds usage and nothing else. `chunk`: a whole document as the chunk of a stream."""

    shown: Mapping[str, Any]
    only_usage: bool = False
    chunk: bytes = b""


class AnswerReader(Protocol):
    """Reads one answer, whole or event by event. Whatever the service sends, it never raises.

    `usage` is None until it is final. `running_usage`: as last reported, final or not; it is exact if it covers all
    that was generated. `error`: the error that the service ended its answer with.
    """

    model: str | None
    service_tier: str | None
    extras: dict[str, Any]
    error: UpstreamError | None

    @property
    def calls_first(self) -> bool:
        """True if a tool call began before the answer's text."""

    @property
    def usage(self) -> Usage | None: ...
    @property
    def running_usage(self) -> Usage | None: ...
    @property
    def running_usage_is_exact(self) -> bool: ...
    @property
    def finish_reason(self) -> str | None: ...
    @property
    def complete(self) -> bool:
        """True if the answer is complete, with or without usage."""

    def add(self, data: bytes, name: bytes = b"") -> Piece | None:
        """Read one event. Returns None for what is not passed on: the end of a stream, a repeated document."""

    def end(self) -> None:
        """The response ended cleanly."""

    def stop(self) -> bytes:
        """The answer was stopped, and is complete as it is. Returns the event that ends its stream."""

    def message(self, *, empty_fields: bool = False) -> Message:
        """The assistant's message so far. `empty_fields`: with those that are null or empty in an answer that was not
        streamed."""

    def document(self) -> bytes:
        """The answer as one JSON document."""


class Dialect(Protocol):
    """One of the model service's wire formats. `path`: its route, relative to the endpoint's base URL. `operation`: its
    name in traces. `may_stream`: an answer may be a stream, whatever was requested; else it is one document, perhaps a
    large one, which only its reader parses."""

    path: str
    operation: str
    may_stream: bool

    def compose(
        self, messages: Sequence[Message], *, max_tokens: int | None, options: Mapping[str, Any]
    ) -> Mapping[str, Any]:
        """The streamed request for these messages, without the model's name. `max_tokens`: None sends no maximum."""

    def prompt_bound(self, body: Mapping[str, Any]) -> int:
        """An upper bound on the tokens in a request's prompt."""

    def has_audio(self, body: Mapping[str, Any]) -> bool:
        """True if a request sends audio or asks for it."""

    def reader(self, body: Mapping[str, Any]) -> AnswerReader:
        """A reader for the answer to this request."""


def _no_shorter_plan(limit: int | None) -> "Plan | None":
    return None


@dataclass(frozen=True, slots=True, kw_only=True)
class Plan:
    """A planned model call."""

    deployment: str
    dialect: Dialect
    body: Mapping[str, Any]  # the request without the model's name
    forwarded: bool  # the body is the caller's; model/options.py lists what may change in it
    added: frozenset[str]  # fields of the body that this app added
    prompt_bound: int  # tokens
    max_tokens: int  # of all the answer's choices together; 0: embeddings
    requested_max_tokens: int | None  # the maximum in the body, if there is one
    stored_answer_tokens: int  # the answer size that must fit into the turn's row
    window_start: int = 0
    past_tokens: int | None = None  # see Turn
    instead_of: str | None = None  # the deployment that was chosen, if its caller's fallback is called
    # At most half of the past turns, and no more than fit into a context window of so many tokens; None: none to drop.
    shortened: Callable[[int | None], "Plan | None"] = _no_shorter_plan

    @property
    def streamed(self) -> bool:
        return bool(self.body.get("stream"))

    def fallback_for(self, plan: "Plan") -> "Plan":
        """This plan as one in place of the given one, which is the same if it is for the same deployment."""
        if self.deployment == plan.deployment:
            return plan

        def shortened(limit: int | None) -> "Plan | None":
            shorter = self.shortened(limit)
            return shorter.fallback_for(plan) if shorter else None

        return replace(self, instead_of=plan.deployment, shortened=shortened)


class ModelCall(Protocol):
    """One model call; leaving the block ends it. Entering raises UpstreamFailure, or InvalidRequest if the service
    rejects the prompt; iterating raises UpstreamFailure if the answer is cut off.

    Iterating yields the events of a stream, or one with the whole document. `endpoint` (the last one tried), `attempts`
    and `maybe_billed` (by the latest attempt) are valid at any time; `headers` are the response headers that callers
    may see.
    """

    attempts: int
    maybe_billed: bool
    headers: Mapping[str, str]

    @property
    def endpoint(self) -> str | None: ...

    async def __aenter__(self) -> AsyncIterator[ServerEvent]: ...
    async def __aexit__(self, kind: object, error: object, trace: object) -> None: ...


class Model(Protocol):
    """The model service."""

    def call(self, plan: Plan, *, call_id: str, deadline: float) -> ModelCall:
        """`deadline`: monotonic seconds; no attempt starts after it."""

    def pause(self, deployment: str) -> float:
        """Seconds to wait before retrying a failed call; 0 if the retry would use another endpoint."""


@dataclass(frozen=True, slots=True, kw_only=True)
class CallRecord:
    """A finished call, for logs and traces. Times in UTC."""

    entry: LedgerEntry  # as it was opened
    call: Call  # as it ended
    operation: str  # of the dialect
    attempts: int
    max_tokens: int | None  # as requested
    streamed: bool
    finish_reason: str | None
    started: datetime
    first_token: datetime | None
    finished: datetime

    @property
    def seconds(self) -> float:
        return (self.finished - self.started).total_seconds()

    @property
    def seconds_to_first_token(self) -> float | None:
        """None for an answer that was not streamed: its arrival does not show when the model began."""
        return (self.first_token - self.started).total_seconds() if self.first_token and self.streamed else None


class CallLog(Protocol):
    """Telemetry of calls. Never raises."""

    def record(self, record: CallRecord) -> None: ...

    def recovered(self, entry: LedgerEntry, call: Call) -> None:
        """Log a call recovered after its process died: `entry` as opened, `call` as recovered."""
