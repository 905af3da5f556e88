"""A reserved turn: the lease that keeps other turns of its session away, and the settling of its calls.

The lease only keeps turns apart; the money does not depend on it. A turn that loses its lease still finishes and
settles.
"""

import asyncio
import contextlib
import logging
from collections.abc import AsyncIterator, Awaitable, Callable
from dataclasses import replace
from datetime import datetime, timedelta
from typing import Protocol, TypeVar

from tenacity import AsyncRetrying, retry_if_exception_type, wait_exponential_jitter

from shared.domain.calls import Call
from shared.domain.clock import Clock
from shared.domain.conversation import Lease, Session, Turn, TurnResult, raise_call
from shared.errors import StorageUnavailable, VersionConflict
from shared.turns.ports import Plan, Sessions
from shared.turns.recovery import read_turn

log = logging.getLogger(__name__)

T = TypeVar("T")

LEASE = timedelta(seconds=30)
RENEWAL_S = 10.0


def lease_for(call: Call, now: datetime) -> Lease:
    return Lease(call=call.id, until=now + LEASE)


async def persist(call: Call, write: Callable[[], Awaitable[T]], clock: Clock) -> T:
    """Write, and retry with back-off while storage can't be reached, until the call's deadline. Raises
    StorageUnavailable after that."""
    retrying = AsyncRetrying(
        retry=retry_if_exception_type(StorageUnavailable),
        wait=wait_exponential_jitter(multiplier=0.2, max=5),
        stop=lambda _: clock.now() > call.deadline,
        sleep=clock.sleep,
        reraise=True,
    )
    async for attempt in retrying:
        with attempt:
            return await write()
    raise AssertionError("unreachable: the last attempt raises")


class ReservedTurn(Protocol):
    """A turn whose call may be opened. `plan` and `call`: of its latest call."""

    plan: Plan

    @property
    def session_id(self) -> str | None: ...
    @property
    def number(self) -> int: ...
    @property
    def call(self) -> Call: ...

    def renewing(self) -> contextlib.AbstractAsyncContextManager[None]:
        """Keeps the session for as long as the block runs."""

    async def settle(self, call: Call, result: TurnResult) -> tuple[Session, Turn] | None:
        """Raise the call in the session, and write the turn's result; returns both as the caller is to see them, None
        where there is no session. Raises StorageUnavailable once the call's deadline has passed."""

    async def retry(self, failed: Call, new: Call, plan: Plan) -> bool:
        """Raise the failed call and add a new one under the same lease, in one transaction. False: not possible."""


class SessionlessTurn:
    """A call without a session: only the ledger knows of it."""

    session_id = None
    number = 0

    def __init__(self, call: Call, plan: Plan) -> None:
        self.call = call
        self.plan = plan

    @contextlib.asynccontextmanager
    async def renewing(self) -> AsyncIterator[None]:
        yield

    async def settle(self, call: Call, result: TurnResult) -> None:
        """Nothing to settle but the ledger's row."""

    async def retry(self, failed: Call, new: Call, plan: Plan) -> bool:
        """Calls without a session are not retried; the client retries."""
        return False


class LeasedTurn:
    """A session and its running turn, as last stored. One writer at a time: renewing and settling take turns."""

    def __init__(self, sessions: Sessions, clock: Clock, session: Session, turn: Turn, plan: Plan) -> None:
        self._sessions = sessions
        self._clock = clock
        self._lock = asyncio.Lock()
        self.session = session
        self.turn = turn
        self.plan = plan

    @property
    def session_id(self) -> str:
        return self.session.id

    @property
    def number(self) -> int:
        return self.turn.number

    @property
    def call(self) -> Call:
        return self.turn.call

    @contextlib.asynccontextmanager
    async def renewing(self) -> AsyncIterator[None]:
        """Renews the lease every 10 s until the block ends or the lease is lost."""
        task = asyncio.create_task(self._keep_renewing())
        try:
            yield
        finally:
            task.cancel()

    async def settle(self, call: Call, result: TurnResult) -> tuple[Session, Turn]:
        """A session that was erased meanwhile is left alone; of a cleared turn only the money is written."""
        async with self._lock:
            return await persist(call, lambda: self._settle(call, result), self._clock)

    async def retry(self, failed: Call, new: Call, plan: Plan) -> bool:
        """False: the lease is lost."""
        async with self._lock:
            while self.session.leased_to(failed):
                raised = raise_call(self.session, self.turn, failed)
                if raised is None:
                    break
                session, turn = raised
                calls = (*turn.calls, new)
                turn = replace(turn, calls=calls, window_start=plan.window_start, past_tokens=plan.past_tokens)
                try:
                    await self._commit(replace(session, lease=lease_for(new, self._clock.now())), turn)
                except (VersionConflict, StorageUnavailable) as error:
                    # It may be committed, with only the answer lost: then the lease is the new call's.
                    if not await self._read_again():
                        break
                    if isinstance(error, StorageUnavailable) and self.session.leased_to(failed):
                        raise
            if retrying := self.session.leased_to(new):
                self.plan = plan
            return retrying

    async def _settle(self, call: Call, result: TurnResult) -> tuple[Session, Turn]:
        while raised := raise_call(self.session, self.turn, call):
            session, turn = raised
            answered = turn.with_result(result)
            cleared = turn.number <= session.cleared_through
            try:
                await self._commit(session, turn if cleared else answered)
            except VersionConflict:
                if not await self._read_again():
                    return session, answered
            else:
                return self.session, answered if cleared else self.turn
        # It is stored: an earlier attempt was committed and its answer lost, or recovery raised the call as high.
        complete = self.turn.finished and self.turn.messages
        return self.session, self.turn if complete else self.turn.with_result(result)

    async def _commit(self, session: Session, turn: Turn) -> None:
        self.session, self.turn = await self._sessions.commit(session, turn)

    async def _read_again(self) -> bool:
        """Load what is stored now; False where this turn is not in the session any more."""
        session, turn = await read_turn(self._sessions, self.session.id, self.turn.number)
        if session is None or turn is None or turn.find(self.turn.calls[0].id) is None:
            return False
        self.session, self.turn = session, turn
        return True

    async def _keep_renewing(self) -> None:
        while True:
            await self._clock.sleep(RENEWAL_S)
            async with self._lock:
                try:
                    if not await self._renew():
                        return
                except StorageUnavailable:
                    log.warning("lease not renewed: storage can't be reached")

    async def _renew(self) -> bool:
        """False where the lease is lost: another turn, recovery or an erasure took the session."""
        while self.session.leased_to(self.turn.call):
            renewed = replace(self.session, lease=lease_for(self.turn.call, self._clock.now()))
            try:
                self.session = await self._sessions.renew(renewed)
            except VersionConflict:
                if not await self._read_again():
                    return False
            else:
                return True
        return False
