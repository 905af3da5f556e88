"""The usage table: one row for each model call that may be billed, by UTC day. It holds no content.

The row of a call is inserted as `open` before the call is made. Afterwards it is raised: its state is replaced by one
of a higher rank. Rows of calls that never started are inserted as `abandoned` (recovery's fence) or `failed`. A row is
never lowered to a state of a lower rank, and never deleted.
"""

from collections.abc import AsyncIterator
from dataclasses import replace
from datetime import date

from shared.domain.calls import Call, LedgerEntry, State
from shared.domain.principal import Principal
from shared.errors import VersionConflict
from shared.storage.ledger_rows import SHARDS, SUMMARY_COLUMNS, from_entry, ledger_keys, ledger_partition, to_entry
from shared.storage.tables import Table


class Ledger:
    """Raises VersionConflict if a row to insert exists already, and StorageUnavailable."""

    def __init__(self, table: Table) -> None:
        self._table = table

    async def open(
        self, principal: Principal, entry: LedgerEntry, *, replaces: tuple[LedgerEntry, Call] | None = None
    ) -> LedgerEntry:
        """Raise the row that is replaced, if any, then insert the new one. These are two separate writes: either can be
        lost in a crash. No call is refused yet; limits of the principal belong here."""
        if replaces:
            await self.raise_call(*replaces)
        return await self._insert(entry)

    async def fence(self, entry: LedgerEntry) -> LedgerEntry:
        return await self._insert(entry)

    async def find(self, call: Call, session_id: str | None, turn: int) -> LedgerEntry | None:
        """The current row of a call."""
        row = await self._table.get(*ledger_keys(call, session_id, turn))
        return to_entry(row) if row else None

    async def raise_call(self, entry: LedgerEntry, call: Call) -> bool:
        """Raise the row to the call's state, unless the row's state ranks as high already or the row is gone. An entry
        without an etag (never read) is inserted. Returns True if this changed the row."""
        current: LedgerEntry | None = entry
        while current and call.state.rank > current.call.state.rank:
            try:
                await self._table.put(from_entry(replace(current, call=call)), current.etag)
            except VersionConflict:
                current = await self.find(call, entry.session_id, entry.turn)
            else:
                return True
        return False

    def parts(self, day: date) -> list[AsyncIterator[LedgerEntry]]:
        """A day's rows in 16 parts, to be read concurrently. Within a part, the rows of a session are adjacent and in
        the order of its turns."""
        return [self._part(ledger_partition(day, shard)) for shard in range(SHARDS)]

    async def unfinished(self, day: date) -> AsyncIterator[LedgerEntry]:
        """The day's rows that are open or unaccounted."""
        # The SDK ends a parameter's name at a space, so the parentheses need spaces around them.
        condition = "PartitionKey ge @first and PartitionKey le @last and ( state eq @open or state eq @unaccounted )"
        span = {"first": ledger_partition(day, 0), "last": ledger_partition(day, SHARDS - 1)}
        states = {"open": State.OPEN.value, "unaccounted": State.UNACCOUNTED.value}
        async for row in self._table.query(condition, span | states):
            yield to_entry(row)

    async def _part(self, partition: str) -> AsyncIterator[LedgerEntry]:
        rows = self._table.query("PartitionKey eq @partition", {"partition": partition}, select=SUMMARY_COLUMNS)
        async for row in rows:
            yield to_entry(row)

    async def _insert(self, entry: LedgerEntry) -> LedgerEntry:
        return replace(entry, etag=await self._table.put(from_entry(entry)))
