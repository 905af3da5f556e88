"""Clearing and erasing conversations, so that an interruption at any point is finished later and nothing comes back.

A row in the partition `~erasing` comes first, then its id goes on the session's head: from then on an erased session is
not found and a cleared one shows nothing of what was said. The rows go next, in transactions that the head guards, so
that nobody else's write is met unseen. Last the id leaves the head (or the head goes), then the row of `~erasing`.
"""

import uuid
from collections.abc import AsyncIterator, Sequence
from contextlib import suppress
from dataclasses import replace
from datetime import UTC, datetime, timedelta

from shared import rows
from shared.conversation import Removal, Session
from shared.errors import Changed, SessionBusy, SessionNotFound
from shared.ports import Sessions
from shared.recovery import Recovery
from shared.tables import Row, Table, Write

ERASING = "~erasing"
_STALE = timedelta(minutes=15)  # of a row of `~erasing`: by then its head is marked, or never will be
_BATCH = 99  # rows of one transaction beside the head; it takes 100 writes
_ATTEMPTS = 10  # at marking a head that others write to at the same time


class Removals:
    """Sessions as their callers may see and end them. Raises SessionNotFound and StorageUnavailable."""

    def __init__(self, table: Table, sessions: Sessions, recovery: Recovery) -> None:
        self._table = table
        self._sessions = sessions
        self._recovery = recovery

    async def visible(self, session_id: str, caller: str | None) -> Session:
        """The session as it stands, an interrupted removal finished first."""
        session = await self._sessions.head(session_id)
        if session and session.removal:
            await self.finish(session)
            session = await self._sessions.head(session_id)
        if session is None or not session.open_to(caller):
            raise SessionNotFound
        return session

    async def clear(self, session_id: str, caller: str | None) -> None:
        """Forget what was said and keep the totals. Raises SessionBusy while a turn runs."""
        for _ in range(_ATTEMPTS):
            session = await self.visible(session_id, caller)
            if session.cleared_through == session.turns:
                return
            if session.busy(datetime.now(UTC)):
                raise SessionBusy
            if session.lease:
                await self._recovery.free(session)
            elif marked := await self._mark(session, erase=False):
                await self.finish(marked)
                return
        raise SessionBusy

    async def erase(self, session_id: str, caller: str | None) -> None:
        """Remove the session. A turn that still runs finishes for its caller and its ledger row, and leaves nothing."""
        for _ in range(_ATTEMPTS):
            session = await self.visible(session_id, caller)
            if marked := await self._mark(session, erase=True):
                await self.finish(marked)
                return
        raise SessionBusy

    async def finish(self, session: Session) -> None:
        """Carry out the removal that is on the head. Whoever else does so at the same time does no harm."""
        removal = session.removal
        head: Session | None = session
        while removal and head and head.removal == removal:
            try:
                await self._carry_out(head, removal)
                break
            except Changed:  # a turn that still runs has settled, or another process is doing the same
                head = await self._sessions.head(session.id)
        if removal:
            await self._forget(removal)

    async def finish_interrupted(self, now: datetime) -> None:
        """Carry out what was begun and left, and drop rows of `~erasing` that never reached their session's head."""
        async for mark in self._table.query("PartitionKey eq @erasing", {"erasing": ERASING}):
            head = await self._sessions.head(mark["session"])
            if head and head.removal and head.removal.id == mark["RowKey"]:
                await self.finish(head)
            elif now - mark["begun"] > _STALE:
                with suppress(Changed):
                    await self._table.delete(ERASING, mark["RowKey"], mark["etag"])

    async def _mark(self, session: Session, *, erase: bool) -> Session | None:
        """Put the removal on the head, where it takes effect. None: the head has changed, read it again."""
        removal = Removal(id=uuid.uuid4().hex, erase=erase)
        marked = replace(session, removal=removal, updated=datetime.now(UTC))
        if not erase:
            marked = replace(marked, cleared_through=session.turns, window_start=session.turns + 1)
        with suppress(Changed):  # the id is new: the row there is this one, and only the answer was lost
            await self._table.put(
                {"PartitionKey": ERASING, "RowKey": removal.id, "session": session.id, "begun": marked.updated}
            )
        try:
            return replace(marked, etag=await self._table.put(rows.from_session(marked), session.etag))
        except Changed:
            stored = await self._sessions.head(session.id)
            if stored and stored.removal == removal:  # it was written, and only the answer was lost
                return stored
            await self._forget(removal)
            return None

    async def _carry_out(self, head: Session, removal: Removal) -> None:
        batch: list[Write] = []
        async for row in self._behind(head):
            batch += _removed(row, head, removal)
            if len(batch) == _BATCH:
                head, batch = await self._commit(head, batch, left=head), []
        await self._forget_first_key(head)
        left = None if removal.erase else replace(head, removal=None, first_key=None)
        await self._commit(head, batch, left)

    async def _commit(self, head: Session, batch: Sequence[Write], left: Session | None) -> Session:
        """The batch and the head in one transaction: the head as `left`, or gone where that is None."""
        row = rows.from_session(left or head)
        etags = await self._table.commit([Write("put" if left else "delete", row, head.etag), *batch])
        return replace(head, etag=etags[0])

    def _behind(self, session: Session) -> AsyncIterator[Row]:
        return self._table.query(
            "PartitionKey eq @session and RowKey gt @head", {"session": session.id, "head": rows.HEAD}
        )

    async def _forget_first_key(self, head: Session) -> None:
        pointer = await self._table.get(head.first_key, rows.POINTER) if head.first_key else None
        if pointer and pointer["session"] == head.id:
            with suppress(Changed):
                await self._table.delete(pointer["PartitionKey"], rows.POINTER, pointer["etag"])

    async def _forget(self, removal: Removal) -> None:
        if mark := await self._table.get(ERASING, removal.id):
            with suppress(Changed):  # another process was quicker
                await self._table.delete(ERASING, removal.id, mark["etag"])


def _removed(row: Row, head: Session, removal: Removal) -> list[Write]:
    """What becomes of a row: gone, or, where a turn was cleared, its money without what was said."""
    if removal.erase or not row["RowKey"].startswith("turn-"):
        return [Write("delete", row, row["etag"])]
    turn = rows.to_turn(row)
    if not turn.messages or turn.number > head.cleared_through:
        return []
    bare = replace(turn, messages=(), extras={})
    return [Write("put", rows.from_turn(head.id, bare), turn.etag)]
