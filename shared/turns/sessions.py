"""Reading, clearing and erasing sessions on behalf of callers."""

from contextlib import suppress

from shared.domain.clock import Clock
from shared.domain.conversation import Session, Turn
from shared.domain.principal import Principal
from shared.errors import SessionBusy, SessionNotFound, VersionConflict
from shared.turns.ports import Deletions, Sessions
from shared.turns.recovery import Recovery

MAX_ATTEMPTS = 10  # to mark a head while others write it


class SessionAccess:
    """All methods raise StorageUnavailable, and SessionNotFound if the caller has no such session."""

    def __init__(self, sessions: Sessions, deletions: Deletions, recovery: Recovery, clock: Clock) -> None:
        self._sessions = sessions
        self._deletions = deletions
        self._recovery = recovery
        self._clock = clock

    async def get(self, session_id: str, principal: Principal) -> Session:
        """The stored session. Finishes an interrupted deletion first."""
        session = await self._sessions.head(session_id)
        if session and session.expired(self._clock.now()) and not session.deletion:
            session = await self._deletions.begin(session, erase=True)
            if session is None:
                raise SessionNotFound  # another process has changed it; it has expired all the same
        if session and session.deletion:
            await self._deletions.finish(session)
            session = await self._sessions.head(session_id)
        if session is None or not session.visible_to(principal.name):
            raise SessionNotFound
        return session

    async def history(self, session: Session, *, before: int, limit: int) -> list[Turn]:
        return await self._sessions.history(session, before=before, limit=limit)

    async def request_stop(self, session: Session) -> bool:
        """Ask the instance that runs the session's latest turn to stop it; it notices within 10 s. False if the turn
        has ended meanwhile."""
        for _ in range(MAX_ATTEMPTS):
            with suppress(VersionConflict):
                await self._sessions.request_stop(session)
                return True
            stored = await self._sessions.head(session.id)
            if stored is None or stored.lease is None or stored.turns != session.turns:
                return False
            session = stored
        raise SessionBusy

    async def clear(self, session_id: str, principal: Principal) -> None:
        """Delete the content and keep the totals. Raises SessionBusy while a turn runs."""
        for _ in range(MAX_ATTEMPTS):
            session = await self.get(session_id, principal)
            if session.cleared_through == session.turns:
                return
            if session.busy(self._clock.now()):
                raise SessionBusy
            if session.lease:
                await self._recovery.free(session)
            elif marked := await self._deletions.begin(session, erase=False):
                await self._deletions.finish(marked)
                return
        raise SessionBusy

    async def erase(self, session_id: str, principal: Principal) -> None:
        """Delete the session. A running turn still answers and settles its ledger row, but stores nothing."""
        for _ in range(MAX_ATTEMPTS):
            session = await self.get(session_id, principal)
            if marked := await self._deletions.begin(session, erase=True):
                await self._deletions.finish(marked)
                return
        raise SessionBusy
