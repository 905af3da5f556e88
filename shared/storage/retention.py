"""Erases sessions when their time is over: those not used for RETENTION_DAYS, and temporary ones.

An index has one row for each session: in the partition `~seen-{day}` of the day of its last use, or `~expires-{day}` of
the day on which a temporary session expires. A session's first turn of a day moves its row, so other turns cost
nothing. The head has the days under which the session can have a row: during a move two, or after a crash. A row may be
out of date; the session's head decides.
"""

import logging
from collections.abc import AsyncIterator, Awaitable
from contextlib import suppress
from dataclasses import replace
from datetime import date, timedelta

from shared.domain.clock import Clock
from shared.domain.conversation import Session
from shared.errors import StorageUnavailable, VersionConflict
from shared.storage.deletion import Deletions
from shared.storage.entities import Row
from shared.storage.session_rows import EXPIRES, HEAD, SEEN, index_partition, index_partitions, seen_text
from shared.storage.sessions import Sessions
from shared.storage.tables import Table

log = logging.getLogger(__name__)

_SCANNED = ("~retention", "scanned")  # a row that says that older sessions are in the index


class Retention:
    """`days`: how long an unused session is kept; None: for ever. Raises StorageUnavailable."""

    def __init__(
        self, table: Table, sessions: Sessions, deletions: Deletions, clock: Clock, *, days: int | None
    ) -> None:
        self._table = table
        self._sessions = sessions
        self._deletions = deletions
        self._clock = clock
        self._days = days

    async def prepare(self, session: Session) -> Session:
        """Before a turn is reserved: the session to store with it. Its head names a day before the index does, so that
        an erasure finds every row. Only a new session, which has no head yet, is entered here."""
        today = self._clock.now().date()
        if not session.etag and session.expires:
            await self._insert(index_partition(EXPIRES, session.expires.date()), session.id)
        if not self._by_use(session) or session.seen[-1:] == (today,):
            return session
        if not session.etag:
            await self._insert(index_partition(SEEN, today), session.id)
            return replace(session, seen=(today,))
        before = session.seen or (min(session.updated.date(), today - timedelta(days=1)),)
        return replace(session, seen=(*(day for day in before if day != today), today))

    async def enter(self, session: Session) -> Session:
        """After a turn is reserved: move the session's row to the day of the turn. Returns the session to store with
        the turn's settlement. If storage fails, the session's next turn does it."""
        *before, today = session.seen or (None,)
        if self._days is None or today is None or not before:
            return session
        try:
            await self._insert(index_partition(SEEN, today), session.id)
            for day in before:  # not at the same time: one row must exist
                await self._delete(index_partition(SEEN, day), session.id)
        except StorageUnavailable:
            return session
        return replace(session, seen=(today,))

    async def remove(self, session: Session) -> None:
        """Delete the rows of a session that no longer exists."""
        if await self._sessions.head(session.id) is None:
            for partition in index_partitions(session):
                await self._delete(partition, session.id)

    async def erase_expired(self, after: str) -> AsyncIterator[str]:
        """Erase every session whose time is over. Finished rows are gone, so a run that is cut short needs no position:
        the next one begins with what is left."""
        today = self._clock.now().date()
        async for row in self._rows(EXPIRES, today + timedelta(days=1)):
            await _guarded(self._check(row))
            yield ""
        if self._days is not None:
            async for row in self._rows(SEEN, today - timedelta(days=self._days)):
                await _guarded(self._check(row))
                yield ""

    async def enter_older(self, after: str) -> AsyncIterator[str]:
        """Enter the sessions of before RETENTION_DAYS was set, once."""
        scanned = await self._table.get(*_SCANNED)
        if self._days is None:
            if scanned:
                await self._delete(*_SCANNED)
            return
        if scanned:
            return
        heads = self._table.query(
            "RowKey eq @head and PartitionKey gt @after", {"head": HEAD, "after": after}, select=["PartitionKey"]
        )
        async for row in heads:
            await _guarded(self._enter_older(row["PartitionKey"]))
            yield row["PartitionKey"]
        await self._insert(*_SCANNED)

    async def _enter_older(self, session_id: str) -> None:
        while session := await self._sessions.head(session_id):
            if session.deletion or not self._by_use(session):
                return
            with suppress(VersionConflict):  # a turn has begun or ended: read it again
                session = await self._note(session, session.seen[-1] if session.seen else session.updated.date())
                await self._insert(index_partition(SEEN, session.seen[-1]), session.id)
                return

    async def _check(self, row: Row) -> None:
        """Erase the session of a row that is due, or correct the row."""
        session = await self._sessions.head(row["RowKey"])
        if session and session.deletion:
            await self._deletions.finish(session)
            session = await self._sessions.head(row["RowKey"])
        if session and session.busy(self._clock.now()):
            return
        needed: date | None = None
        if session and self._is_over(session) and not (needed := await self._continued_in(session)):
            marked = await self._deletions.begin(session, erase=True)
            if marked is None:
                return  # it is used at this moment
            await self._deletions.finish(marked)
            if row["PartitionKey"] in index_partitions(session):
                return  # deleted with it
        elif session and row["PartitionKey"].startswith(EXPIRES):
            if row["PartitionKey"] in index_partitions(session):
                return  # later today
        elif session:
            try:
                session = await self._note(session, needed or session.updated.date())
            except VersionConflict:
                return
            await self._insert(index_partition(SEEN, session.seen[-1]), session.id)
        await self._delete(row["PartitionKey"], row["RowKey"])

    async def _continued_in(self, session: Session) -> date | None:
        """A day on which a branch was used whose time is not over: its prompts need this session. None if there is no
        such branch. It is the first one that is read, because a session may have very many branches."""
        pending = [] if session.expired(self._clock.now()) else [session.id]
        while pending:
            async for branch, _ in self._sessions.branches(pending.pop()):
                head = await self._sessions.head(branch)
                if head and not head.deletion:
                    if not self._is_over(head):
                        return head.updated.date()
                    pending.append(branch)
        return None

    async def _note(self, session: Session, day: date) -> Session:
        """Name the day on the head, before a row is inserted under it. Raises VersionConflict."""
        if session.seen[-1:] == (day,):
            return session
        seen = (*(each for each in session.seen if each != day), day)
        head = {"PartitionKey": session.id, "RowKey": HEAD, "seen": seen_text(seen)}
        return replace(session, seen=seen, etag=await self._table.merge(head, session.etag))

    def _by_use(self, session: Session) -> bool:
        """True if the index has a row for its last use. A temporary session that expires sooner needs none."""
        if self._days is None:
            return False
        return not session.expires or session.expires > self._clock.now() + timedelta(days=self._days)

    def _is_over(self, session: Session) -> bool:
        now = self._clock.now()
        unused = self._days is not None and session.updated.date() < now.date() - timedelta(days=self._days)
        return session.expired(now) or unused

    def _rows(self, kind: str, before: date) -> AsyncIterator[Row]:
        """The rows of the days before this one."""
        span = {"first": index_partition(kind, date.min), "before": index_partition(kind, before)}
        return self._table.query("PartitionKey ge @first and PartitionKey lt @before", span)

    async def _insert(self, partition: str, key: str) -> None:
        with suppress(VersionConflict):  # it exists
            await self._table.put({"PartitionKey": partition, "RowKey": key})

    async def _delete(self, partition: str, key: str) -> None:
        with suppress(VersionConflict):  # it is gone
            await self._table.delete(partition, key, "*")


async def _guarded(step: Awaitable[None]) -> None:
    try:
        await step
    except StorageUnavailable:
        raise
    except Exception:  # one unreadable session must not keep the others
        log.exception("retention: a session could not be read or erased")
