"""Deletes ledger rows, and the counters of limits beside them, after LEDGER_RETENTION_MONTHS."""

from collections.abc import AsyncIterator, Sequence
from contextlib import suppress
from datetime import date, timedelta

from shared.domain.clock import Clock
from shared.errors import VersionConflict
from shared.storage.limits import MAX_WRITES
from shared.storage.tables import Table, Write


class LedgerRetention:
    """`months`: complete months before the current one whose rows are kept; None: all. Raises StorageUnavailable."""

    def __init__(self, table: Table, clock: Clock, *, months: int | None) -> None:
        self._table = table
        self._clock = clock
        self._months = months

    async def delete_old(self, after: str) -> AsyncIterator[str]:
        """Yields after each transaction. Deleted rows are gone, so a run that is cut short needs no position: the next
        one begins with what is left."""
        if self._months is None:
            return
        first_kept = {"first": f"{self._first_kept(self._months):%Y-%m}"}  # each partition begins with year and month
        rows = self._table.query("PartitionKey lt @first", first_kept, select=["PartitionKey", "RowKey"])
        batch: list[Write] = []
        async for row in rows:
            if batch and (batch[0].row["PartitionKey"] != row["PartitionKey"] or len(batch) == MAX_WRITES):
                await self._delete(batch)
                yield ""
                batch = []
            batch.append(Write("delete", row, row["etag"]))
        if batch:
            await self._delete(batch)

    def _first_kept(self, months: int) -> date:
        first = self._clock.now().date().replace(day=1)
        for _ in range(months):
            first = (first - timedelta(days=1)).replace(day=1)
        return first

    async def _delete(self, batch: Sequence[Write]) -> None:
        with suppress(VersionConflict):  # a row has changed, or another process does the same: the next run reads again
            await self._table.commit(batch)
