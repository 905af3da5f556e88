"""Clearing and erasing conversations, so that an interruption at any point is finished later and nothing comes back.

A row in the partition `~erasing` comes first, then its id goes on the session's head: from then on an erased session is
not found, and a cleared one shows no content. The rows go next, in transactions that the head guards, so that a write
of another process is never missed. Last the id leaves the head (or the head goes), then the row of `~erasing`.
"""

import uuid
from collections.abc import AsyncIterator, Sequence
from contextlib import suppress
from dataclasses import replace
from datetime import datetime, timedelta

from shared.domain.clock import Clock
from shared.domain.conversation import Deletion, Session
from shared.errors import VersionConflict
from shared.storage import session_rows as rows
from shared.storage.sessions import Sessions
from shared.storage.tables import Row, Table, Write

ERASING = "~erasing"
_STALE = timedelta(minutes=15)  # age of a row of `~erasing` whose head is marked by now, or never will be
_BATCH = 99  # rows of one transaction beside the head: a transaction takes 100 writes


class Deletions:
    """Raises StorageUnavailable."""

    def __init__(self, table: Table, sessions: Sessions, clock: Clock) -> None:
        self._table = table
        self._sessions = sessions
        self._clock = clock

    async def begin(self, session: Session, *, erase: bool) -> Session | None:
        """Put the deletion on the head, where it takes effect. None: the head has changed, read it again."""
        deletion = Deletion(id=uuid.uuid4().hex, erase=erase)
        marked = replace(session, deletion=deletion, updated=self._clock.now())
        if not erase:
            marked = replace(marked, cleared_through=session.turns, window_start=session.turns + 1)
        with suppress(VersionConflict):  # the id is new: the row there is this one, and only the answer was lost
            await self._table.put(
                {"PartitionKey": ERASING, "RowKey": deletion.id, "session": session.id, "begun": marked.updated}
            )
        try:
            return replace(marked, etag=await self._table.put(rows.from_session(marked), session.etag))
        except VersionConflict:
            stored = await self._sessions.head(session.id)
            if stored and stored.deletion == deletion:  # it was written, and only the answer was lost
                return stored
            await self._forget(deletion)
            return None

    async def finish(self, session: Session) -> None:
        """Carry out the deletion that is on the head. Another process may do so at the same time."""
        deletion = session.deletion
        head: Session | None = session
        while deletion and head and head.deletion == deletion:
            try:
                await self._carry_out(head, deletion)
                break
            except VersionConflict:  # a turn that still runs has settled, or another process is doing the same
                head = await self._sessions.head(session.id)
        if deletion:
            await self._forget(deletion)

    async def finish_interrupted(self, after: str) -> AsyncIterator[str]:
        """Carry out the deletions that were left unfinished, and drop rows of `~erasing` that never reached their
        session's head. `after` and what is yielded: the id of the deletion that was looked at last."""
        marks = self._table.query("PartitionKey eq @erasing and RowKey gt @after", {"erasing": ERASING, "after": after})
        async for mark in marks:
            head = await self._sessions.head(mark["session"])
            if head and head.deletion and head.deletion.id == mark["RowKey"]:
                await self.finish(head)
            elif self._is_stale(mark["begun"]):
                with suppress(VersionConflict):
                    await self._table.delete(ERASING, mark["RowKey"], mark["etag"])
            yield mark["RowKey"]

    def _is_stale(self, begun: datetime) -> bool:
        return self._clock.now() - begun > _STALE

    async def _carry_out(self, head: Session, deletion: Deletion) -> None:
        batch: list[Write] = []
        async for row in self._rows_behind(head):
            batch += _deleting(row, head, deletion)
            if len(batch) == _BATCH:
                head, batch = await self._commit(head, batch, left=head), []
        await self._forget_first_key(head)
        left = None if deletion.erase else replace(head, deletion=None, first_key=None)
        await self._commit(head, batch, left)

    async def _commit(self, head: Session, batch: Sequence[Write], left: Session | None) -> Session:
        """The batch and the head in one transaction: the head as `left`, or gone where that is None."""
        row = rows.from_session(left or head)
        etags = await self._table.commit([Write("put" if left else "delete", row, head.etag), *batch])
        return replace(head, etag=etags[0])

    def _rows_behind(self, session: Session) -> AsyncIterator[Row]:
        return self._table.query(
            "PartitionKey eq @session and RowKey gt @head", {"session": session.id, "head": rows.HEAD}
        )

    async def _forget_first_key(self, head: Session) -> None:
        if head.first_key is None:
            return
        pointer = await self._table.get(rows.pointer_partition(head.first_key), rows.POINTER)
        if pointer and pointer["session"] == head.id:
            with suppress(VersionConflict):
                await self._table.delete(pointer["PartitionKey"], rows.POINTER, pointer["etag"])

    async def _forget(self, deletion: Deletion) -> None:
        if mark := await self._table.get(ERASING, deletion.id):
            with suppress(VersionConflict):  # another process was quicker
                await self._table.delete(ERASING, deletion.id, mark["etag"])


def _deleting(row: Row, head: Session, deletion: Deletion) -> list[Write]:
    """The write for one row: deleted, or, for a cleared turn, its money without its content."""
    if deletion.erase or not row["RowKey"].startswith("turn-"):
        return [Write("delete", row, row["etag"])]
    turn = rows.to_turn(row)
    if not turn.messages or turn.number > head.cleared_through:
        return []
    bare = replace(turn, messages=(), extras={})
    return [Write("put", rows.from_turn(head.id, bare), turn.etag)]
