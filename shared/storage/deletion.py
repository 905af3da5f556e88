"""Clears and erases conversations. An interrupted deletion is finished later, and deleted content never reappears.

1. Insert a row (the mark) into the partition `~erasing`.
2. Write its id to the session's head. From now on an erased session is not found, and a cleared one shows no content.
3. Delete the session's rows in transactions that check the head's ETag, so that no write of another process is missed.
   Before a turn of an erased session, remove the session's id from the ledger rows of its calls.
4. Remove the id from the head (or delete the head), then delete the mark.
"""

import uuid
from collections.abc import AsyncIterator, Sequence
from contextlib import suppress
from dataclasses import replace
from datetime import date, datetime, timedelta

from shared.domain.clock import Clock
from shared.domain.conversation import Deletion, Session, Turn
from shared.domain.listing import without_title
from shared.errors import VersionConflict
from shared.storage import session_rows as rows
from shared.storage.days import Days
from shared.storage.entities import Row
from shared.storage.ledger import Ledger
from shared.storage.owner_index import OwnerIndex
from shared.storage.sessions import Sessions
from shared.storage.tables import Table, Write

ERASING = "~erasing"
_STALE = timedelta(minutes=15)  # age of a mark: if its id is not on the head by now, it never will be
_RECOVERED = timedelta(hours=1)  # after its deadline a call that its session has as final is final in the ledger too
_BATCH = 99  # rows in a transaction besides the head: a transaction takes at most 100 writes


class Deletions:
    """Raises StorageUnavailable."""

    def __init__(
        self, table: Table, sessions: Sessions, owners: OwnerIndex, ledger: Ledger, days: Days, clock: Clock
    ) -> None:
        self._table = table
        self._sessions = sessions
        self._owners = owners
        self._ledger = ledger
        self._days = days
        self._clock = clock

    async def begin(self, session: Session, *, erase: bool) -> Session | None:
        """Write the deletion to the head; from then on it is in effect. Returns None if the head has changed."""
        deletion = Deletion(id=uuid.uuid4().hex, erase=erase)
        marked, now = replace(session, deletion=deletion), self._clock.now()
        if not erase:
            marked = replace(marked, updated=now, cleared_through=session.turns, window_start=session.turns + 1)
            marked = without_title(marked)
        with suppress(VersionConflict):  # the id is new: the row was written, only the response was lost
            await self._table.put({"PartitionKey": ERASING, "RowKey": deletion.id, "session": session.id, "begun": now})
        try:
            return replace(marked, etag=await self._table.put(rows.from_session(marked), session.etag))
        except VersionConflict:
            stored = await self._sessions.head(session.id)
            if stored and stored.deletion == deletion:  # the head was written, only the response was lost
                return stored
            await self._delete_mark(deletion)
            return None

    async def finish(self, session: Session) -> None:
        """Carry out the deletion that is on the head. Another process may do the same at the same time."""
        deletion = session.deletion
        head: Session | None = session
        while deletion and head and head.deletion == deletion:
            try:
                await self._carry_out(head, deletion)
                break
            except VersionConflict:  # a running turn has settled, or another process does the same
                head = await self._sessions.head(session.id)
        if deletion:
            await self._delete_mark(deletion)

    async def finish_interrupted(self, after: str) -> AsyncIterator[str]:
        """Carry out interrupted deletions, and delete stale marks whose id never reached their session's head. Starts
        after the id `after`; yields the id of each deletion that was handled."""
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
        forgotten: set[date] = set()
        async for row in self._other_rows(head, deletion):
            if deletion.erase and rows.is_turn(row):
                await self._forget_session(head, deletion, rows.to_turn(row), forgotten)
            batch += _deletion_writes(row, head, deletion)
            if len(batch) == _BATCH:
                head, batch = await self._commit(head, batch, new_head=head), []
        await self._delete_pointer(head)
        if deletion.erase:
            await self._delete_from_index(head)
            await self._owners.delete(head)
            await self._sessions.leave_branch(head)
        new_head = None if deletion.erase else replace(await self._owners.move(head), deletion=None, first_key=None)
        await self._commit(head, batch, new_head)

    async def _commit(self, head: Session, batch: Sequence[Write], new_head: Session | None) -> Session:
        """Write the batch and the head in one transaction. `new_head`: None deletes the head."""
        row = rows.from_session(new_head or head)
        etags = await self._table.commit([Write("put" if new_head else "delete", row, head.etag), *batch])
        return replace(head, etag=etags[0])

    async def _forget_session(self, head: Session, deletion: Deletion, turn: Turn, days: set[date]) -> None:
        """Remove the session's id from the ledger and the daily figures, where it can still be. `days`: those whose
        figures are done."""
        for call in turn.calls:
            if call.reference and call.state.final and self._clock.now() > call.deadline + _RECOVERED:
                continue
            reference = call.reference or head.reference or deletion.id  # random; the same if this is resumed
            await self._ledger.forget_session(call, head.id, turn.number, reference)
            if not call.reference and call.day not in days:
                await self._days.forget_session(call.day, head.id, reference)
                days.add(call.day)

    def _other_rows(self, session: Session, deletion: Deletion) -> AsyncIterator[Row]:
        """All rows but the head; for a clear without those before it, which name branches."""
        compared = "ne" if deletion.erase else "gt"
        return self._table.query(
            f"PartitionKey eq @session and RowKey {compared} @head", {"session": session.id, "head": rows.HEAD}
        )

    async def _delete_from_index(self, head: Session) -> None:
        for partition in rows.index_partitions(head):
            with suppress(VersionConflict):  # it is gone
                await self._table.delete(partition, head.id, "*")

    async def _delete_pointer(self, head: Session) -> None:
        if head.first_key is None:
            return
        pointer = await self._table.get(rows.pointer_partition(head.first_key), rows.POINTER)
        if pointer and pointer["session"] == head.id:
            with suppress(VersionConflict):
                await self._table.delete(pointer["PartitionKey"], rows.POINTER, pointer["etag"])

    async def _delete_mark(self, deletion: Deletion) -> None:
        if mark := await self._table.get(ERASING, deletion.id):
            with suppress(VersionConflict):  # another process has deleted it
                await self._table.delete(ERASING, deletion.id, mark["etag"])


def _deletion_writes(row: Row, head: Session, deletion: Deletion) -> list[Write]:
    """The write for one row: delete it, or, for a cleared turn, remove its content and keep its cost."""
    if deletion.erase or not rows.is_turn(row):
        return [Write("delete", row, row["etag"])]
    turn = rows.to_turn(row)
    if not turn.messages or turn.number > head.cleared_through:
        return []
    return [Write("put", rows.from_turn(head.id, turn.without_content()), turn.etag)]
