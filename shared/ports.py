"""What a turn needs of the world: Protocols that the adapters fulfil and `services` hands in."""

from collections.abc import AsyncIterator, Mapping
from contextlib import AbstractAsyncContextManager
from dataclasses import dataclass
from typing import Any, Protocol

from shared.completion import Chunk
from shared.conversation import Call, Entry, Message, Session, Turn, Used


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
    async def settle(self, entry: Entry, call: Call) -> None: ...


class Removals(Protocol):
    """Finishes a clear or an erasure that was interrupted."""

    async def finish(self, session: Session) -> None: ...


@dataclass(frozen=True, slots=True, kw_only=True)
class Prompt:
    """What one call of the model is asked."""

    call_id: str
    deployment: str
    messages: tuple[Message, ...]
    max_tokens: int
    options: Mapping[str, Any]


class Stream(Protocol):
    """An answer on its way. Iterating raises UpstreamFailure where it breaks off."""

    endpoint: str

    def __aiter__(self) -> AsyncIterator[Chunk]: ...


class Model(Protocol):
    """The model service. `stream` raises UpstreamFailure, or InvalidRequest where the service refuses the prompt."""

    def stream(self, prompt: Prompt) -> AbstractAsyncContextManager[Stream]: ...
