"""The usage table: one row for every model call that may be billed, by UTC day. It holds no content.

The row of a call is inserted `open` before the call is made, and raised afterwards. Rows of calls that never began are
inserted `abandoned` (recovery's fence) or `failed`. Rows are never lowered and never deleted.
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
    """Raises VersionConflict where an inserted row exists already, and StorageUnavailable."""

    def __init__(self, table: Table) -> None:
        self._table = table

    async def open(
        self, principal: Principal, entry: LedgerEntry, *, replaces: tuple[LedgerEntry, Call] | None = None
    ) -> LedgerEntry:
        """Raise the row that is replaced, then insert the new one: two writes, either of which may be lost, as after a
        crash. Nothing is refused yet; this is where the principal's limits apply."""
        if replaces:
            await self.raise_call(*replaces)
        return await self._insert(entry)

    async def fence(self, entry: LedgerEntry) -> LedgerEntry:
        return await self._insert(entry)

    async def find(self, call: Call, session_id: str | None, turn: int) -> LedgerEntry | None:
        """The row of a call as it stands."""
        row = await self._table.get(*ledger_keys(call, session_id, turn))
        return to_entry(row) if row else None

    async def raise_call(self, entry: LedgerEntry, call: Call) -> bool:
        """Raise the row to the call's state, unless it is as high already or does not exist any more. An entry that was
        never read (without an etag) is inserted. Returns whether this changed the row."""
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
        """A day's rows in 16 parts, to be read side by side. In each, the rows of one session are together, in the
        order of its turns."""
        return [self._part(ledger_partition(day, shard)) for shard in range(SHARDS)]

    async def unfinished(self, day: date) -> AsyncIterator[LedgerEntry]:
        """The day's rows that are open or unaccounted."""
        # A parameter ends at a space: the parentheses stand apart.
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
