"""The list of each owner's sessions: a partition `~owner-{hash}` with a row for each session, in the list's order.

A row has the session's place and id as its key, and the title, so that a search reads titles alone. The head names the
places at which the session can have a row, the last one is where it belongs: during a move two, or after a crash. A row
may be out of date; the session's head decides, and reading the list corrects it.
"""

import asyncio
import logging
from collections.abc import AsyncIterator
from contextlib import aclosing, suppress
from dataclasses import replace
from datetime import datetime, timedelta

from shared.domain.clock import Clock
from shared.domain.conversation import Session
from shared.domain.listing import (
    ARCHIVED,
    SessionPage,
    begins,
    first_use,
    listed,
    newest_first,
    placed,
    rewritten,
    title_of,
)
from shared.errors import StorageUnavailable, VersionConflict
from shared.storage.entities import Row
from shared.storage.session_rows import HEAD, owner_key, owner_partition
from shared.storage.sessions import Sessions
from shared.storage.tables import Table, Write

log = logging.getLogger(__name__)

_SCANNED = ("~owners", "scanned")  # a row that says that older sessions are in the lists
_MAX_SEARCHED = 10_000  # rows that one request reads
_UNSTORED = timedelta(hours=1)  # after its row, by then a session's first turn is stored, or never will be


class OwnerIndex:
    """Raises StorageUnavailable."""

    def __init__(self, table: Table, sessions: Sessions, clock: Clock) -> None:
        self._table = table
        self._sessions = sessions
        self._clock = clock

    async def prepare(self, session: Session) -> Session:
        """Before a turn is reserved: the session to store with it. Its head names a place before the list does, so that
        an erasure finds every row. Only a session that is in no list is entered here."""
        now = self._clock.now()
        if not listed(session):
            return session
        if not session.places:
            return await self._entered(placed(session, now))
        if first_use(session.places[-1]).date() != now.date():
            return placed(session, now)
        return rewritten(session) if begins(session) else session

    async def enter(self, session: Session) -> Session:
        """After a turn is reserved: move the session's row to its place. Returns the session to store with the turn's
        settlement. If storage fails, the session's next turn of another day does it, or a reader of the list."""
        with suppress(StorageUnavailable):
            return await self.move(session)
        return session

    async def move(self, session: Session) -> Session:
        """Make the rows of the session what its head says, and return what to store next time."""
        *before, place = session.places or ("",)
        if not before:
            return session
        others = {each for each in before if each != place}
        moves = [Write("delete", self._key(session, each), "*") for each in others]
        try:
            await self._table.commit([*moves, Write("put", self._row(session), "" if others else "*")])
        except VersionConflict:  # another process has moved it, or erased it, or this one before a crash
            head = await self._sessions.head(session.id)
            if head is None or head.owner != session.owner or not head.places:
                await self.delete(session)
                return session
            await self._put(head)
            await self.delete(replace(session, places=(*{*session.places, *head.places} - {head.places[-1]},)))
            await self.remove(head)  # it may be erased by now
            return replace(session, places=head.places[-1:])
        return replace(session, places=(place,))

    async def remove(self, session: Session) -> None:
        """Delete the row of a session that was not stored, or no longer exists."""
        if session.places:
            head = await self._sessions.head(session.id)
            named = head.places if head and head.owner == session.owner else ()
            await self.delete(replace(session, places=tuple(each for each in session.places if each not in named)))

    async def delete(self, session: Session) -> None:
        """Delete every row that the session may have."""
        for place in session.places:
            await self._delete(self._key(session, place))

    async def adopt(self, session: Session) -> Session:
        """An older session, or one that gets an owner, as it is to be stored before `move` enters it: under the day of
        its last use, with a title from its first turn."""
        if session.title is None and session.cleared_through == 0:
            first = await self._sessions.turn(session.id, session.parent.turn + 1 if session.parent else 1)
            session = replace(session, title=title_of(first.messages) if first else None)
        return rewritten(placed(session, session.updated))

    async def sweep(self, owner: str, before: datetime) -> None:
        """Delete the rows from before this time that stand for no session of the owner (any more)."""
        rows = self._table.query("PartitionKey eq @owner", {"owner": owner_partition(owner)})
        async for row in rows:
            head = await self._sessions.head(row["RowKey"].rpartition("~")[2])
            if (head is None or head.owner != owner) and first_use(row["RowKey"].rpartition("~")[0]) < before:
                await self._delete(row)

    async def page(self, owner: str, *, after: str, limit: int, archived: bool, search: str) -> SessionPage:
        """At most `limit` sessions of the owner, in the order of the list, after the row `after` ("": from the start).
        `search`: only those whose title contains it. There may be fewer, or none, although there are more."""
        page, examined, position = list[Session](), 0, after or (ARCHIVED if archived else "")
        words = search.casefold()
        condition = "PartitionKey eq @owner and RowKey gt @after and RowKey lt @end"
        span = {"owner": owner_partition(owner), "after": position, "end": ARCHIVED * (2 if archived else 1)}
        rows = self._table.query(condition, span, page=1_000 if words else limit + 1)
        block = list[Row]()
        async with aclosing(rows):
            async for row in rows:
                if len(page) + len(block) == limit:
                    page += await self._sessions_of(block, owner)
                    block = []
                if len(page) == limit or examined == _MAX_SEARCHED:
                    return SessionPage(newest_first([*page, *await self._sessions_of(block, owner)]), position)
                examined, position = examined + 1, row["RowKey"]
                if words in row.get("title", "").casefold():
                    block.append(row)
        return SessionPage(newest_first([*page, *await self._sessions_of(block, owner)]), None)

    async def enter_older(self, after: str) -> AsyncIterator[str]:
        """Enter the sessions of before there were lists, once."""
        if await self._table.get(*_SCANNED):
            return
        heads = self._table.query(
            "RowKey eq @head and PartitionKey gt @after",
            {"head": HEAD, "after": after},
            select=["PartitionKey", "owner", "places"],
        )
        async for row in heads:
            if "owner" in row and ("places" not in row or "," in row["places"]):
                await self._enter_older(row["PartitionKey"])
            yield row["PartitionKey"]
        with suppress(VersionConflict):  # another instance was faster
            await self._table.put({"PartitionKey": _SCANNED[0], "RowKey": _SCANNED[1]})

    async def _enter_older(self, session_id: str) -> None:
        try:
            while session := await self._sessions.head(session_id):
                if not listed(session) or session.deletion:
                    return
                with suppress(VersionConflict):  # a turn has begun or ended: read it again
                    await self.move(
                        session if session.places else await self._sessions.update(await self.adopt(session))
                    )
                    return
        except StorageUnavailable:
            raise
        except Exception:  # one unreadable session must not keep the others
            log.exception("list of sessions: a session could not be read")

    async def _sessions_of(self, rows: list[Row], owner: str) -> list[Session]:
        heads = await asyncio.gather(*(self._sessions.head(row["RowKey"].split("~")[-1]) for row in rows))
        pairs = zip(rows, heads, strict=True)
        return [head for row, head in pairs if await self._checked(row, head, owner) and head]

    async def _checked(self, row: Row, head: Session | None, owner: str) -> bool:
        """True if the row stands for a session here. Corrects a row that is out of date."""
        if head is None or head.owner != owner:
            if self._clock.now() - first_use(row["RowKey"].rpartition("~")[0]) > _UNSTORED:
                await self._delete(row)
            return False
        if head.deletion and head.deletion.erase:
            return False
        if not head.places:  # an earlier version, which knows of no lists, has written the head
            return True
        place = owner_key(head.places[-1], head.id)
        if row["RowKey"] == place:
            if row.get("title") != head.title:
                with suppress(VersionConflict):  # it was moved or erased meanwhile
                    await self._table.put(self._row(head), row["etag"])
            return True
        moved = await self._put(head)
        await self._delete(row)
        if moved:
            await self.remove(head)  # it may be erased by now
        return moved and place <= row["RowKey"]  # else it is listed there, or if that is read already, by the next list

    async def _entered(self, session: Session) -> Session:
        await self._put(session)
        return session

    async def _put(self, session: Session) -> bool:
        """Insert or replace the session's row. Returns whether there was none."""
        with suppress(VersionConflict):
            await self._table.put(self._row(session))
            return True
        with suppress(VersionConflict):  # it was moved or erased meanwhile
            await self._table.put(self._row(session), "*")
        return False

    async def _delete(self, row: Row) -> None:
        with suppress(VersionConflict):  # it is gone
            await self._table.delete(row["PartitionKey"], row["RowKey"], "*")

    def _key(self, session: Session, place: str | None = None) -> Row:
        key = owner_key(place or session.places[-1], session.id)
        return {"PartitionKey": owner_partition(session.owner or ""), "RowKey": key}

    def _row(self, session: Session) -> Row:
        return {**self._key(session), "title": session.title}
