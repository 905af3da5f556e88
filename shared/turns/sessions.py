"""Reading, clearing and erasing sessions on behalf of callers."""

import re
from collections.abc import AsyncIterator
from contextlib import suppress
from dataclasses import dataclass, replace

from shared.domain.clock import Clock
from shared.domain.conversation import Session, Turn
from shared.domain.listing import SessionPage, listed, rewritten
from shared.domain.principal import Principal
from shared.errors import InvalidRequest, SessionBusy, SessionNotFound, VersionConflict
from shared.turns.ports import MAX_PAST_TURNS, Deletions, OwnerIndex, Sessions
from shared.turns.recovery import Recovery

MAX_ATTEMPTS = 10  # to mark a head while others write it
_MADE_HERE = re.compile("[0-9a-f]{32}")
BLOCK_TURNS = 20  # in memory at once: a turn takes up to 1 MiB


@dataclass(frozen=True, slots=True)
class Part:
    """The turns `first` to `last` of one session, as a part of a conversation that continues in branches."""

    session: Session
    first: int
    last: int


class SessionAccess:
    """All methods raise StorageUnavailable, and SessionNotFound if the caller has no such session."""

    def __init__(
        self, sessions: Sessions, owners: OwnerIndex, deletions: Deletions, recovery: Recovery, clock: Clock
    ) -> None:
        self._sessions = sessions
        self._owners = owners
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

    async def page(self, owner: str, *, after: str, limit: int, archived: bool, search: str) -> SessionPage:
        """At most `limit` of the owner's sessions after the row `after`, in the order of docs/api.md."""
        return await self._owners.page(owner, after=after, limit=limit, archived=archived, search=search)

    async def update(
        self,
        session_id: str,
        principal: Principal,
        *,
        title: str | None = None,
        pinned: bool | None = None,
        archived: bool | None = None,
    ) -> Session:
        """Change what is given, also while a turn runs."""
        for _ in range(MAX_ATTEMPTS):
            session = await self.get(session_id, principal)
            changed = replace(
                session,
                title=session.title if title is None else title,
                pinned=session.pinned if pinned is None else pinned,
                archived=session.archived if archived is None else archived,
            )
            if changed == session and len(session.places) < 2:
                return session
            if listed(changed) and not changed.places:  # as an earlier version stored it
                changed = await self._owners.adopt(changed)
            with suppress(VersionConflict):
                return await self._relisted(await self._sessions.update(rewritten(changed)))
        raise SessionBusy

    async def claim(self, session_id: str, principal: Principal) -> Session:
        """Make the caller the owner of a session that has none. Raises InvalidRequest if it has a chosen id, which
        others may have guessed, and SessionBusy while a turn runs."""
        for _ in range(MAX_ATTEMPTS):
            session = await self.get(session_id, principal)
            if session.owner is not None:
                return await self._relisted(session)  # of this caller, perhaps by a request that was interrupted
            if not _MADE_HERE.fullmatch(session_id):
                message = "Only sessions whose ID this API has made can be taken over: others can be guessed."
                raise InvalidRequest(message, param="session_id")
            if session.busy(self._clock.now()):
                raise SessionBusy
            if session.lease:
                await self._recovery.free(session)
                continue
            owned = replace(session, owner=principal.name)
            owned = await self._owners.adopt(owned) if listed(owned) else owned
            with suppress(VersionConflict):
                return await self._relisted(await self._sessions.update(owned))
        raise SessionBusy

    async def _relisted(self, session: Session) -> Session:
        """Bring the list up to date with a session that was written."""
        moved = await self._owners.move(session)
        if moved is not session:
            try:
                return await self._sessions.update(moved)
            except VersionConflict:  # it is used, or erased
                await self._owners.remove(moved)
        return moved

    async def branches(self, session: Session, limit: int) -> list[tuple[str, int]]:
        """At most `limit` of the sessions that continue a turn of this one, in the order of their ids, each with the
        number of that turn. One may have expired."""
        branches: list[tuple[str, int]] = []
        async for branch in self._sessions.branches(session.id):
            if len(branches) == limit:
                break
            branches.append(branch)
        return branches

    async def history(self, session: Session, *, before: int, limit: int) -> list[tuple[Session, Turn]]:
        """At most `limit` turns with numbers below `before`, newest first, without cleared ones, with those that a
        branch continues; each with its session."""
        page: list[tuple[Session, Turn]] = []
        async for part in self.parts(session, last=before - 1):
            if part.first <= part.last:
                turns = await self._sessions.history(
                    part.session.id, first=part.first, last=part.last, limit=limit - len(page)
                )
                page += [(part.session, turn) for turn in turns]
            if len(page) == limit:
                break
        return page

    async def parts(self, session: Session, *, last: int, newest_first: bool = True) -> AsyncIterator[Part]:
        """The parts of the session's conversation up to the turn `last`: its own turns, and those of the sessions that
        it continues, as far as they exist. Newest first, each head is read when it is needed. Raises InvalidRequest
        where they are too many to be read."""
        if not newest_first:
            parts = [part async for part in self.parts(session, last=last)]
            for part in reversed(parts):
                yield part
            return
        head, last = session, min(last, session.turns)
        for _ in range(MAX_PAST_TURNS):  # no prompt has more turns, and each part has at least one
            if head.deletion or head.expired(self._clock.now()):
                return
            cleared, parent = max(session.cleared_through, head.cleared_through), head.parent
            yield Part(head, max(parent.turn if parent else 0, cleared) + 1, last)
            if parent is None or cleared > parent.turn:
                return
            ancestor = await self._sessions.head(parent.session_id)
            if ancestor is None or not head.continues(ancestor):
                return
            head, last = ancestor, min(last, parent.turn)
        raise InvalidRequest(f"It continues more than {MAX_PAST_TURNS} sessions, one after another: too many to read.")

    async def turns(
        self, session: Session, first: int, last: int, *, newest_first: bool, block: int = BLOCK_TURNS
    ) -> AsyncIterator[Turn]:
        """The session's own turns with these numbers, at most `block` of them in memory at once."""
        block = min(block, BLOCK_TURNS)
        while first <= last:
            low, high = (max(first, last - block + 1), last) if newest_first else (first, min(last, first + block - 1))
            turns = await self._sessions.history(session.id, first=low, last=high, limit=block)
            for turn in turns if newest_first else reversed(turns):
                yield turn
            first, last = (first, low - 1) if newest_first else (high + 1, last)

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
