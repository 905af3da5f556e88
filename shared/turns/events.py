"""A running turn as its caller sees it: a stream of events."""

import asyncio
from collections.abc import Mapping
from dataclasses import dataclass
from datetime import datetime
from typing import Any, NamedTuple, Self, TypeAlias

from shared.domain.conversation import Session, Turn
from shared.domain.limits import Budget, RateStatus
from shared.turns.ports import ServerEvent
from shared.turns.stopping import Stop


@dataclass(frozen=True, slots=True)
class Started:
    """The turn is reserved."""

    session_id: str
    turn: int
    deployment: str
    started: datetime
    replayed: bool = False  # the stored answer to a repeated Idempotency-Key


@dataclass(frozen=True, slots=True)
class Opened:
    """The model service has started to respond, with these headers. `deployment`: the one that responds. `rates`: what
    is left of the caller's limits. `instead_of`: the deployment that was chosen, if its fallback responds."""

    headers: Mapping[str, str]
    deployment: str
    rates: RateStatus | None = None
    instead_of: str | None = None


class Delta(NamedTuple):
    """A part of the answer (content, refusal or tool calls) and the event that contained it."""

    pieces: Mapping[str, Any]
    event: ServerEvent = ServerEvent()
    only_usage: bool = False


@dataclass(frozen=True, slots=True)
class Answer:
    """The turn is settled. `data`: the answer as one JSON document; empty in a replay. `budgets`: those of the caller
    of which most is used. `instead_of`: as in Opened."""

    session: Session
    turn: Turn
    data: bytes = b""
    budgets: tuple[Budget, ...] = ()
    instead_of: str | None = None


@dataclass(frozen=True, slots=True)
class Metered:
    """A call without a session is settled. `data`: as in Answer; `turn`: as it would be stored."""

    data: bytes
    turn: Turn


Event: TypeAlias = Started | Opened | Delta | Answer | Metered


class TurnStream:
    """The events of one turn in order: Started (only with a session), Opened (again after a retry, not for a replay),
    Deltas (if `deltas`), and finally Answer or Metered. Iterating raises the turn's error: a ChatError, or a bug's
    exception.

    Sending never blocks, so a slow or absent reader does not delay or stop the turn.
    """

    def __init__(self, *, deltas: bool) -> None:
        self._queue: asyncio.Queue[Event | Exception] = asyncio.Queue()
        self._deltas = deltas
        self.ended = False
        self.delta_sent = False  # a delta may have reached the caller
        self.stop = Stop()

    def send(self, event: Event) -> None:
        if isinstance(event, Delta):
            if not self._deltas:
                return
            self.delta_sent = True
        self._queue.put_nowait(event)

    def fail(self, error: Exception) -> None:
        self._queue.put_nowait(error)

    def __aiter__(self) -> Self:
        return self

    async def __anext__(self) -> Event:
        if self.ended:
            raise StopAsyncIteration
        event = await self._queue.get()
        self.ended = isinstance(event, Exception | Answer | Metered)
        if isinstance(event, Exception):
            raise event
        return event

    async def answer(self) -> Answer:
        """Wait for the answer of a session's turn; ignore earlier events."""
        async for event in self:
            if isinstance(event, Answer):
                return event
        raise RuntimeError("the stream has already ended")
