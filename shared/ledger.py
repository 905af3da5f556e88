"""The usage table: one row for every model call that may be billed, by UTC day. It holds no content.

A row is inserted `open` before its call and raised afterwards. Rows are never lowered and never removed.
"""

from dataclasses import replace

from shared import rows
from shared.conversation import Call, Entry
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

    async def settle(self, entry: Entry, call: Call) -> None:
        """Raise the row to the call's state, unless it is as high already or is not there."""
        found: Entry | None = entry
        while found and call.state.rank > found.call.state.rank:
            try:
                await self._table.put(rows.from_entry(replace(found, call=call)), found.etag)
            except Changed:
                found = await self.find(call, entry.session_id, entry.turn)
            else:
                return
