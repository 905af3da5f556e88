"""Sessions as their callers read, clear and erase them."""

from shared.domain.clock import Clock
from shared.domain.conversation import Session, Turn
from shared.domain.principal import Principal
from shared.errors import SessionBusy, SessionNotFound
from shared.turns.ports import Deletions, Sessions
from shared.turns.recovery import Recovery

MAX_ATTEMPTS = 10  # at marking a head that others write at the same time


class SessionAccess:
    """All methods raise SessionNotFound where the session is not the caller's, and StorageUnavailable."""

    def __init__(self, sessions: Sessions, deletions: Deletions, recovery: Recovery, clock: Clock) -> None:
        self._sessions = sessions
        self._deletions = deletions
        self._recovery = recovery
        self._clock = clock

    async def get(self, session_id: str, principal: Principal) -> Session:
        """The session as it stands, after finishing a deletion that was interrupted."""
        session = await self._sessions.head(session_id)
        if session and session.deletion:
            await self._deletions.finish(session)
            session = await self._sessions.head(session_id)
        if session is None or not session.visible_to(principal.name):
            raise SessionNotFound
        return session

    async def history(self, session: Session, *, before: int, limit: int) -> list[Turn]:
        return await self._sessions.history(session, before=before, limit=limit)

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
        """Delete the session. A turn that still runs finishes for its caller and its ledger row, and stores nothing."""
        for _ in range(MAX_ATTEMPTS):
            session = await self.get(session_id, principal)
            if marked := await self._deletions.begin(session, erase=True):
                await self._deletions.finish(marked)
                return
        raise SessionBusy
