"""What a turn needs of the world: Protocols that the adapters fulfil and `services` hands in."""

from collections.abc import AsyncIterator, Mapping
from dataclasses import dataclass
from datetime import datetime
from typing import Any, Protocol

from shared.conversation import Call, Entry, Session, Turn, Used


class Sessions(Protocol):
    """Where conversations are kept. `commit` and `renew` raise errors.Changed where a version is not the stored one;
    all raise StorageUnavailable."""

    async def read(self, session_id: str) -> tuple[Session | None, list[Turn]]: ...
    async def head(self, session_id: str) -> Session | None: ...
    async def turn(self, session_id: str, number: int) -> Turn | None: ...
    async def used(self, session_id: str, key: str) -> Used | None: ...
    async def first(self, used: Used, session_id: str) -> tuple[str, Used]: ...
    async def commit(self, session: Session, turn: Turn, used: Used | None = None) -> tuple[Session, Turn]: ...
    async def renew(self, session: Session) -> Session: ...


class Ledger(Protocol):
    """Where every call is written down. `insert` raises errors.Changed where the row is there already."""

    async def insert(self, entry: Entry) -> Entry: ...
    async def find(self, call: Call, session_id: str | None, turn: int) -> Entry | None: ...
    async def settle(self, entry: Entry, call: Call) -> bool: ...


class Removals(Protocol):
    """Finishes a clear or an erasure that was interrupted."""

    async def finish(self, session: Session) -> None: ...


@dataclass(frozen=True, slots=True, kw_only=True)
class Prompt:
    """What one call of the model is asked: `body` is the request but for its model. `as_sent`: by the caller, so
    nothing is added to it and nothing left out. `deadline`: on the event loop's clock; no attempt begins after it."""

    call_id: str
    deployment: str
    body: Mapping[str, Any]
    as_sent: bool
    deadline: float


class Asking(Protocol):
    """One call of the model, over once the block is left. Entering it raises UpstreamFailure, or InvalidRequest where
    the service refuses the prompt; iterating raises UpstreamFailure where the answer breaks off.

    What is iterated is JSON: each event's of a stream, else the one document. `endpoint` (asked last) and `attempts`
    say how it went, whatever came of it; `headers` are those of the answer that callers may see.
    """

    attempts: int
    headers: Mapping[str, str]

    @property
    def endpoint(self) -> str | None: ...

    async def __aenter__(self) -> AsyncIterator[bytes]: ...
    async def __aexit__(self, kind: object, raised: object, trace: object) -> None: ...


class Model(Protocol):
    """The model service. `pause`: seconds to wait before a call in place of one that failed, none where it would go to
    another endpoint."""

    def ask(self, prompt: Prompt) -> Asking: ...
    def pause(self, deployment: str) -> float: ...


@dataclass(frozen=True, slots=True, kw_only=True)
class Happened:
    """A call that is over, for those who run the app. Times in UTC."""

    entry: Entry  # as it was opened
    call: Call  # as it ended
    attempts: int
    max_tokens: int | None  # that was asked for
    streamed: bool
    finish_reason: str | None
    begun: datetime
    first_token: datetime | None
    finished: datetime

    @property
    def seconds(self) -> float:
        return (self.finished - self.begun).total_seconds()

    @property
    def seconds_to_first_token(self) -> float | None:
        """None of an answer that came whole: it says nothing of when the model began."""
        return (self.first_token - self.begun).total_seconds() if self.first_token and self.streamed else None


class Journal(Protocol):
    """Where it is written down how each call went. Never raises."""

    def record(self, happened: Happened) -> None: ...

    def recovered(self, entry: Entry, call: Call) -> None:
        """A call whose process is gone, as it was opened and as it is counted now."""
