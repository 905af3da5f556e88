"""Erases sessions when their time is over: those not used for RETENTION_DAYS, and temporary ones.

An index has one row for each session: in the partition `~seen-{day}` of the day of its last use, or `~expires-{day}` of
the day on which a temporary session expires. A session's first turn of a day moves its row, so other turns cost
nothing. A row may be out of date, for example after a crash; the session's head decides.
"""

import asyncio
import logging
from collections.abc import AsyncIterator
from contextlib import suppress
from dataclasses import replace
from datetime import date, timedelta

from shared.domain.clock import Clock
from shared.domain.conversation import Session
from shared.errors import StorageUnavailable, VersionConflict
from shared.storage.deletion import Deletions
from shared.storage.entities import Row
from shared.storage.session_rows import EXPIRES, HEAD, SEEN, index_partition
from shared.storage.sessions import Sessions
from shared.storage.tables import Table

log = logging.getLogger(__name__)

_SCANNED = ("~retention", "scanned")  # a row that says that older sessions are in the index
_HEAD = ["PartitionKey", "RowKey", "updated", "seen", "expires"]


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

    async def enter(self, session: Session) -> Session:
        """Move the session's row to today, before a turn; returns the session to store. Does nothing if the row is
        there already."""
        today = self._clock.now().date()
        if session.expires:
            if not session.etag:
                await self._insert(index_partition(EXPIRES, session.expires.date()), session.id)
            return session
        if self._days is None or session.seen == today:
            return session
        moves = [self._insert(index_partition(SEEN, today), session.id)]
        if session.seen:
            moves.append(self._delete(index_partition(SEEN, session.seen), session.id))
        await asyncio.gather(*moves)
        return replace(session, seen=today)

    async def erase_expired(self, after: str) -> AsyncIterator[str]:
        """Erase every session whose time is over. Finished rows are gone, so a run that is cut short needs no position:
        the next one begins with what is left."""
        today = self._clock.now().date()
        async for row in self._rows(EXPIRES, today + timedelta(days=1)):
            await self._guarded(row)
            yield ""
        if self._days is not None:
            async for row in self._rows(SEEN, today - timedelta(days=self._days)):
                await self._guarded(row)
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
            "RowKey eq @head and PartitionKey gt @after", {"head": HEAD, "after": after}, select=_HEAD
        )
        async for row in heads:
            if "seen" not in row and "expires" not in row:
                await self._insert(index_partition(SEEN, row["updated"].date()), row["PartitionKey"])
            yield row["PartitionKey"]
        await self._insert(*_SCANNED)

    async def _guarded(self, row: Row) -> None:
        try:
            await self._check(row)
        except StorageUnavailable:
            raise
        except Exception:  # one unreadable session must not keep the others
            log.exception("retention: a session could not be erased")

    async def _check(self, row: Row) -> None:
        """Erase the session of a row that is due, or correct the row."""
        now, session = self._clock.now(), await self._sessions.head(row["RowKey"])
        if session and session.busy(now):
            return
        if session and self._is_over(session):
            if session.deletion is None:
                session = await self._deletions.begin(session, erase=True)
            if session is None:
                return  # it is used at this moment
            await self._deletions.finish(session)
        elif session and session.expires:
            return  # later today
        elif session and self._days is not None:
            await self._insert(index_partition(SEEN, session.updated.date()), session.id)
        await self._delete(row["PartitionKey"], row["RowKey"])

    def _is_over(self, session: Session) -> bool:
        now = self._clock.now()
        if session.expires:
            return session.expires <= now
        return self._days is not None and session.updated.date() < now.date() - timedelta(days=self._days)

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
