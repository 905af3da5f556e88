"""A reserved turn: the lease that locks its session, and the settlement of its calls.

The lease only prevents concurrent turns; the accounting does not depend on it. A turn that loses its lease still
completes and settles.
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
from shared.domain.limits import Limits
from shared.domain.refusals import check_session
from shared.errors import ChatError, StorageUnavailable, VersionConflict
from shared.turns.ports import Plan, Sessions
from shared.turns.recovery import read_turn
from shared.turns.stopping import Stop

log = logging.getLogger(__name__)

T = TypeVar("T")

LEASE = timedelta(seconds=30)
RENEWAL_S = 10.0


def lease_for(call: Call, now: datetime) -> Lease:
    return Lease(call=call.id, until=now + LEASE)


async def persist(call: Call, write: Callable[[], Awaitable[T]], clock: Clock) -> T:
    """Write; while storage can't be reached, retry with backoff until the call's deadline. Then raise
    StorageUnavailable."""
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
    """A turn with a call that can be opened. `plan` and `call` belong to its latest call."""

    plan: Plan
    turn: Turn
    erased: bool  # True once its session was found to be erased

    @property
    def session_id(self) -> str | None: ...
    @property
    def number(self) -> int: ...
    @property
    def call(self) -> Call: ...

    def renewing(self, stop: Stop) -> contextlib.AbstractAsyncContextManager[None]:
        """Renew the lease while the block runs. Requests a stop that another instance has written to the head."""

    async def settle(self, call: Call, result: TurnResult) -> tuple[Session, Turn] | None:
        """Raise the call in the session and write the turn's result. Returns both as the caller sees them, or None if
        there is no session. Raises StorageUnavailable once the call's deadline has passed."""

    async def retry(self, failed: Call, new: Call, plan: Plan) -> bool:
        """Raise the failed call and add a new one under the same lease, in one transaction. False if impossible."""

    async def replace_call(self, failed: Call, new: Call) -> bool:
        """The same for a call that was never opened."""


class SessionlessTurn:
    """A call without a session: it is stored only in the ledger."""

    session_id = None
    number = 0
    erased = False

    def __init__(self, turn: Turn, plan: Plan) -> None:
        self.turn = turn
        self.plan = plan

    @property
    def call(self) -> Call:
        return self.turn.call

    @contextlib.asynccontextmanager
    async def renewing(self, stop: Stop) -> AsyncIterator[None]:
        yield

    async def settle(self, call: Call, result: TurnResult) -> None:
        """Store nothing: only the ledger row has to be settled."""
        self.turn = self.turn.with_call(call).with_result(result)

    async def retry(self, failed: Call, new: Call, plan: Plan) -> bool:
        """Calls without a session are not retried; the client retries."""
        return False

    async def replace_call(self, failed: Call, new: Call) -> bool:
        self.turn = replace(self.turn, calls=(new,))
        return True


class LeasedTurn:
    """A session and its running turn, as last stored. A lock keeps renewal and settlement from overlapping."""

    def __init__(
        self, sessions: Sessions, clock: Clock, limits: Limits, session: Session, turn: Turn, plan: Plan
    ) -> None:
        self._limits = limits
        self._sessions = sessions
        self._clock = clock
        self._lock = asyncio.Lock()
        self.erased = False
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
    async def renewing(self, stop: Stop) -> AsyncIterator[None]:
        """Renew the lease every 10 s until the block ends or the lease is lost."""
        task = asyncio.create_task(self._keep_renewing(stop))
        try:
            yield
        finally:
            task.cancel()

    async def settle(self, call: Call, result: TurnResult) -> tuple[Session, Turn]:
        """Write nothing if the session was erased meanwhile, and no content if the turn was cleared."""
        async with self._lock:
            return await persist(call, lambda: self._settle(call, result), self._clock)

    async def retry(self, failed: Call, new: Call, plan: Plan) -> bool:
        """Returns False if the lease is lost, or the session's budget does not allow the new call."""
        return await self._replace_call(failed, new, plan)

    async def replace_call(self, failed: Call, new: Call) -> bool:
        return await self._replace_call(failed, new, self.plan)

    async def _replace_call(self, failed: Call, new: Call, plan: Plan) -> bool:
        async with self._lock:
            while self.session.leased_to(failed):
                raised = raise_call(self.session, self.turn, failed)
                if raised is None:
                    break
                session, turn = raised
                try:
                    check_session(self._limits, session.totals, new)
                except ChatError:
                    break
                calls = (*turn.calls, new)
                turn = replace(turn, calls=calls, window_start=plan.window_start, past_tokens=plan.past_tokens)
                try:
                    await self._commit(replace(session, lease=lease_for(new, self._clock.now())), turn)
                except (VersionConflict, StorageUnavailable) as error:
                    # If it was committed and only the response was lost, the new call holds the lease.
                    if not await self._read_again():
                        break
                    if isinstance(error, StorageUnavailable) and self.session.leased_to(failed):
                        raise
            if retrying := self.session.leased_to(new):
                self.plan = plan
            return retrying

    async def _settle(self, call: Call, result: TurnResult) -> tuple[Session, Turn]:
        while settled := self._settled(call, result):
            session, turn = settled
            try:
                await self._commit(session, turn)
            except VersionConflict:
                if not await self._read_again():
                    return session, turn.with_result(result)
        # The caller gets the whole answer, even if the stored one was cut to fit, or cleared.
        return self.session, self.turn.with_result(result)

    def _settled(self, call: Call, result: TurnResult) -> tuple[Session, Turn] | None:
        """What is to be stored; None if it is stored already, for example by an attempt whose response was lost. The
        result is stored even if recovery has raised the call as high meanwhile."""
        raised = raise_call(self.session, self.turn, call)
        session, turn = raised or (self.session, self.turn)
        if turn.number <= session.cleared_through or turn.finished:
            return raised
        return session, turn.with_result(result)

    async def _commit(self, session: Session, turn: Turn) -> None:
        self.session, self.turn = await self._sessions.commit(session, turn)

    async def _read_again(self) -> bool:
        """Load the stored state. Returns False if this turn is no longer in the session."""
        session, turn = await read_turn(self._sessions, self.session.id, self.turn.number)
        if session is None or turn is None or turn.find(self.turn.calls[0].id) is None:
            self.erased = True
            return False
        self.session, self.turn = session, turn
        return True

    async def _keep_renewing(self, stop: Stop) -> None:
        while True:
            await self._clock.sleep(RENEWAL_S)
            async with self._lock:
                try:
                    if not await self._renew(stop):
                        return
                except StorageUnavailable:
                    log.warning("lease not renewed: storage can't be reached")

    async def _renew(self, stop: Stop) -> bool:
        """Returns False if the lease is lost to another turn, recovery or an erasure."""
        while self.session.leased_to(self.turn.call):
            if self.session.stop == self.turn.number:
                stop.request()
            renewed = replace(self.session, lease=lease_for(self.turn.call, self._clock.now()))
            try:
                self.session = await self._sessions.renew(renewed)
            except VersionConflict:
                if not await self._read_again():
                    return False
            else:
                return True
        return False
