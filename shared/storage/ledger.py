"""The usage table: one row for each model call that may be billed, by UTC day. It holds no content.

The row of a call is inserted as `open` before the call is made. Afterwards it is raised: its state is replaced by one
of a higher rank. Rows of calls that never started are inserted as `abandoned` (recovery's fence) or `failed`. A row is
never lowered to a state of a lower rank. Only ledger_retention deletes rows; an erasure replaces those of 0.2.0.
"""

from collections.abc import AsyncIterator, Sequence
from dataclasses import replace
from datetime import date

from shared.domain.calls import Call, LedgerEntry, State
from shared.domain.clock import Clock
from shared.domain.limits import Counter, Limit
from shared.errors import ChatError, VersionConflict
from shared.storage.counter_rows import limits_partition
from shared.storage.entities import Row
from shared.storage.ledger_rows import (
    SHARDS,
    SUMMARY_COLUMNS,
    entry_keys,
    from_entry,
    ledger_keys,
    ledger_partition,
    limited_prefix,
    to_entry,
    with_reference,
)
from shared.storage.limits import LimitedCalls
from shared.storage.tables import Table, Write
from shared.turns.ports import LaterDay

_AFTER = "~~~"  # sorts after every key with the same prefix


class Ledger:
    """Raises VersionConflict if a row to insert exists already, and StorageUnavailable."""

    def __init__(self, table: Table, clock: Clock) -> None:
        self._table = table
        self._limited = LimitedCalls(table, clock)

    async def open(
        self, entry: LedgerEntry, limits: Sequence[Limit] = (), *, replaces: tuple[LedgerEntry, Call] | None = None
    ) -> LedgerEntry:
        """Insert the row of a new call, and raise the one that it replaces, if any: in one transaction if both are
        limited calls of a month, else the old one first. Raises the refusal of a limit, or LaterDay."""
        if replaces and entry.call.minute and entry_keys(replaces[0])[0] == entry_keys(entry)[0]:
            try:
                return await self._limited.open(entry, limits, replaces)
            except VersionConflict:  # either row
                pass
            except (ChatError, LaterDay):
                await self.raise_call(*replaces)
                raise
        if replaces:
            await self.raise_call(*replaces)
        if entry.call.minute:
            return await self._limited.open(entry, limits, None)
        return await self._insert(entry)

    def known_refusal(self, limits: Sequence[Limit], call: Call) -> ChatError | None:
        return self._limited.known_refusal(limits, call)

    def known_counter(self, name: str, day: date) -> Counter | None:
        return self._limited.known_counter(name, day)

    async def recent_counter(self, name: str, day: date) -> Counter:
        return await self._limited.recent_counter(name, day)

    async def counter(self, name: str, day: date) -> Counter:
        """What is used of a limit in the day's month."""
        return await self._limited.counter(name, day)

    async def counters(self, day: date) -> list[Counter]:
        """What is used of all limits in the day's month."""
        return await self._limited.counters(day)

    async def fence(self, entry: LedgerEntry) -> LedgerEntry:
        return await self._insert(entry)

    async def find(self, call: Call, session_id: str | None, turn: int) -> LedgerEntry | None:
        """The current row of a call."""
        row = await self._table.get(*ledger_keys(call, session_id, turn))
        return to_entry(row) if row else None

    async def raise_call(self, entry: LedgerEntry, call: Call) -> bool:
        """Raise the row to the call's state, and its limits by the difference, unless the row's state ranks as high
        already or the row is gone. An entry without an etag (never read) is inserted. Returns True if this changed the
        row."""
        current: LedgerEntry | None = entry
        while current and call.state.rank > current.call.state.rank:
            try:
                if current.limits:
                    await self._limited.raise_row(current, call)
                else:
                    await self._table.put(from_entry(replace(current, call=call)), current.etag)
            except VersionConflict:
                current = await self.find(call, entry.session_id, entry.turn)
            else:
                return True
        return False

    async def forget_session(self, call: Call, session_id: str, turn: int, reference: str) -> None:
        """Remove the id of an erased session from a call's row, and raise the row to the session's state of the call. A
        row of 0.2.0 and earlier, which has the id in its key, is replaced by one with the reference, in the same
        partition."""
        while entry := await self.find(call, session_id, turn):
            if await self.raise_call(entry, call):
                continue
            if call.reference and entry.session_id is None:
                return
            anonymous = replace(entry, call=replace(entry.call, reference=reference), session_id=None)
            try:
                if call.reference:
                    await self._table.put(from_entry(anonymous), entry.etag)
                else:
                    partition, key = entry_keys(entry)
                    anonymous = replace(anonymous, keys=(partition, with_reference(key, reference)))
                    old = Write("delete", {"PartitionKey": partition, "RowKey": key}, entry.etag)
                    await self._table.commit([old, Write("put", from_entry(anonymous))])
            except VersionConflict:  # the call is settled meanwhile, or another process does the same
                continue
            return

    def parts(self, day: date) -> list[AsyncIterator[LedgerEntry]]:
        """A day's rows in 16 parts, to be read concurrently. Within a part, the rows of a session are adjacent and in
        the order of its turns."""
        return [self._part(day, shard) for shard in range(SHARDS)]

    async def unfinished(self, day: date) -> AsyncIterator[LedgerEntry]:
        """The day's rows that are open, unaccounted or stopped."""
        states = {state.value: state.value for state in State if not state.final}
        unfinished = f"({' or '.join(f'state eq @{name}' for name in states)})"
        partitions = f"PartitionKey ge @first and PartitionKey le @last and {unfinished}"
        span = {"first": ledger_partition(day, 0), "last": ledger_partition(day, SHARDS - 1)}
        async for row in self._table.query(partitions, span | states):
            yield to_entry(row)
        first, after = limited_prefix(day, 0), limited_prefix(day, SHARDS - 1) + _AFTER
        keys = f"PartitionKey eq @month and RowKey ge @first and RowKey lt @after and {unfinished}"
        span = {"month": limits_partition(day), "first": first, "after": after}
        async for row in self._table.query(keys, span | states):
            yield to_entry(row)

    async def _part(self, day: date, shard: int) -> AsyncIterator[LedgerEntry]:
        partition = {"partition": ledger_partition(day, shard)}
        unlimited = self._table.query("PartitionKey eq @partition", partition, select=SUMMARY_COLUMNS)
        prefix = limited_prefix(day, shard)
        span = {"month": limits_partition(day), "first": prefix, "after": prefix + _AFTER}
        keys = "PartitionKey eq @month and RowKey ge @first and RowKey lt @after"
        limited = self._table.query(keys, span, select=SUMMARY_COLUMNS)
        async for entry in _merged(unlimited, limited):
            yield entry

    async def _insert(self, entry: LedgerEntry) -> LedgerEntry:
        return replace(entry, etag=await self._table.put(from_entry(entry)))


async def _merged(rows: AsyncIterator[Row], others: AsyncIterator[Row]) -> AsyncIterator[LedgerEntry]:
    """The entries of both, in the order of session and turn, in which each of them is."""
    other = await _next(others)
    async for row in rows:
        entry = to_entry(row)
        while other and _order(other) < _order(entry):
            yield other
            other = await _next(others)
        yield entry
    while other:
        yield other
        other = await _next(others)


async def _next(rows: AsyncIterator[Row]) -> LedgerEntry | None:
    row = await anext(rows, None)
    return to_entry(row) if row else None


def _order(entry: LedgerEntry) -> str:
    return f"{entry.session or ''}~{entry.turn:010}"
