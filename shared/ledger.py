"""The usage table: one row for every model call that may be billed, by UTC day. It holds no content.

A row is inserted `open` before its call and raised afterwards. Rows are never lowered and never removed.
"""

from collections.abc import AsyncIterator
from dataclasses import replace
from datetime import date

from shared import rows
from shared.conversation import Call, Entry, State
from shared.errors import Changed
from shared.tables import Table


class Ledger:
    """Raises Changed where an inserted row is there already, and StorageUnavailable."""

    def __init__(self, table: Table) -> None:
        self._table = table

    async def insert(self, entry: Entry) -> Entry:
        return replace(entry, etag=await self._table.put(rows.from_entry(entry)))

    async def find(self, call: Call, session_id: str | None, turn: int) -> Entry | None:
        """The row of a call as it stands."""
        row = await self._table.get(*rows.ledger_keys(call, session_id, turn))
        return rows.to_entry(row) if row else None

    async def settle(self, entry: Entry, call: Call) -> bool:
        """Raise the row to the call's state, unless it is as high already or is not there any more. One that was never
        read (without an etag) is made. Returns whether it was this that raised it."""
        found: Entry | None = entry
        while found and call.state.rank > found.call.state.rank:
            try:
                await self._table.put(rows.from_entry(replace(found, call=call)), found.etag)
            except Changed:
                found = await self.find(call, entry.session_id, entry.turn)
            else:
                return True
        return False

    async def shard(self, day: date, shard: int) -> AsyncIterator[Entry]:
        """A sixteenth of a day's rows; those of one session together, in the order of its turns."""
        partition = rows.ledger_partition(day, shard)
        selected = self._table.query("PartitionKey eq @partition", {"partition": partition}, select=rows.COUNTED)
        async for row in selected:
            yield rows.to_entry(row)

    async def unfinished(self, day: date) -> AsyncIterator[Entry]:
        """The day's rows that are open or unaccounted."""
        # A parameter ends at a space: the parentheses stand apart.
        condition = "PartitionKey ge @first and PartitionKey le @last and ( state eq @open or state eq @unaccounted )"
        span = {"first": rows.ledger_partition(day, 0), "last": rows.ledger_partition(day, rows.SHARDS - 1)}
        states = {"open": State.OPEN.value, "unaccounted": State.UNACCOUNTED.value}
        async for row in self._table.query(condition, span | states):
            yield rows.to_entry(row)
