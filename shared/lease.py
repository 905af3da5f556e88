"""A session while one of its turns runs: the lease that keeps other turns away, and the calls that are raised under it.

The lease keeps turns apart; the money does not depend on it. Who finds it lost still finishes and settles.
"""

import asyncio
import contextlib
import logging
from collections.abc import AsyncIterator, Awaitable, Callable
from dataclasses import replace
from datetime import UTC, datetime, timedelta
from typing import Any

from tenacity import AsyncRetrying, retry_if_exception_type, wait_exponential_jitter

from shared.conversation import Call, Lease, Session, Turn, raised
from shared.errors import Changed, StorageUnavailable
from shared.ports import Sessions
from shared.recovery import find
from shared.rows import fitted
from shared.window import Window

log = logging.getLogger(__name__)

LEASE = timedelta(seconds=30)
RENEWAL = timedelta(seconds=10)


def lease_for(call: Call) -> Lease:
    return Lease(call=call.id, until=datetime.now(UTC) + LEASE)


async def persist(call: Call, write: Callable[[], Awaitable[object]]) -> None:
    """Write, and while storage can't be reached try again until the call's deadline. Raises StorageUnavailable."""
    retrying = AsyncRetrying(
        retry=retry_if_exception_type(StorageUnavailable),
        wait=wait_exponential_jitter(multiplier=0.2, max=5),
        stop=lambda _: datetime.now(UTC) > call.deadline,
        reraise=True,
    )
    async for attempt in retrying:
        with attempt:
            await write()


class Unheld:
    """A call without a session: the ledger alone knows of it."""

    session_id = None
    number = 0

    def __init__(self, call: Call) -> None:
        self.call = call

    @contextlib.asynccontextmanager
    async def renewing(self) -> AsyncIterator[None]:
        yield

    async def settle(self, call: Call, **said: Any) -> None:
        """There is nothing to be settled but the ledger's row."""

    async def retry(self, failed: Call, again: Call, window: Window) -> bool:
        """Who calls without a session tries again himself."""
        return False


class Held:
    """A session and its running turn, as last stored. One writer at a time: renewing and settling take turns."""

    def __init__(self, sessions: Sessions, session: Session, turn: Turn) -> None:
        self._sessions = sessions
        self._lock = asyncio.Lock()
        self.session = session
        self.turn = turn

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
        """Renew the lease every 10 s until the block ends or the lease is lost."""
        task = asyncio.create_task(self._keep_renewing())
        try:
            yield
        finally:
            task.cancel()

    async def settle(self, call: Call, **said: Any) -> tuple[Session, Turn]:
        """Raise the call, with the session's totals, and write what was said into its turn; returns both as their
        caller is to see them.

        Tried again while storage can't be reached, until the call's deadline; then StorageUnavailable. A session that
        was erased meanwhile is left alone; of a turn that was cleared, only the money is written.
        """
        async with self._lock:
            await persist(call, lambda: self._settle(call, said))
            session, turn = raised(self.session, self.turn, call) or (self.session, self.turn)
            return session, fitted(replace(turn, **said))

    async def retry(self, failed: Call, again: Call, window: Window) -> bool:
        """Mark the failed call and open another under the same lease, in one transaction. False: the lease is lost."""
        async with self._lock:
            while self.session.holds(failed):
                after = raised(self.session, self.turn, failed)
                if after is None:
                    break
                session, turn = after
                calls = (*turn.calls, again)
                turn = replace(turn, calls=calls, window_start=window.first, past_tokens=window.past_tokens)
                try:
                    await self._commit(replace(session, lease=lease_for(again)), turn)
                except (Changed, StorageUnavailable) as error:
                    # Or it is committed, and only the answer was lost: then the lease says so.
                    if not await self._read_again():
                        break
                    if isinstance(error, StorageUnavailable) and self.session.holds(failed):
                        raise
            return self.session.holds(again)

    async def _settle(self, call: Call, said: dict[str, Any]) -> None:
        while after := raised(self.session, self.turn, call):
            session, turn = after
            if turn.number > session.cleared_through:
                turn = fitted(replace(turn, **said))
            try:
                await self._commit(session, turn)
            except Changed:
                if not await self._read_again():
                    return

    async def _commit(self, session: Session, turn: Turn) -> None:
        self.session, self.turn = await self._sessions.commit(session, turn)

    async def _read_again(self) -> bool:
        """Take over what is stored now; False where this turn is not in the session any more."""
        session, turn = await find(self._sessions, self.session.id, self.turn.number)
        if session is None or turn is None or turn.find(self.turn.calls[0].id) is None:
            return False
        self.session, self.turn = session, turn
        return True

    async def _keep_renewing(self) -> None:
        while True:
            await asyncio.sleep(RENEWAL.total_seconds())
            async with self._lock:
                try:
                    if not await self._renew():
                        return
                except StorageUnavailable:
                    log.warning("lease not renewed: storage can't be reached")

    async def _renew(self) -> bool:
        """False where the lease is lost: another turn, recovery or an erasure took the session."""
        while self.session.holds(self.turn.call):
            try:
                self.session = await self._sessions.renew(replace(self.session, lease=lease_for(self.turn.call)))
            except Changed:
                if not await self._read_again():
                    return False
            else:
                return True
        return False
