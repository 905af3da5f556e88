"""Tables of Azure Cosmos DB for Table, through azure-data-tables. How it differs from Table Storage:

- It returns the rows of a query in any order: they are sorted here.
- It reserves some names of properties: those are stored under others.
- Its answer for a missing table may be the same as for a missing row.
- It refuses requests above the provisioned throughput with 429, also within the answer to a transaction.
- Its answer to a failed transaction may not say which write failed.

https://learn.microsoft.com/azure/cosmos-db/table/faq, and the answers recorded in the tests of azure-data-tables
(https://github.com/Azure/azure-sdk-for-python, sdk/tables/azure-data-tables/tests, `*_cosmos*`).
"""

from collections.abc import AsyncGenerator, Awaitable, Callable, Mapping, Sequence
from contextlib import aclosing
from typing import TypeVar

from azure.core.exceptions import HttpResponseError
from azure.data.tables.aio import TableClient

from shared.access.identity import Identity, ServiceAccess
from shared.domain.clock import Clock
from shared.errors import VersionConflict
from shared.storage.entities import Row
from shared.storage.sdk_tables import SdkTable, SdkTables
from shared.storage.tables import MAX_COSMOS_TRANSACTION_BYTES, Write

T = TypeVar("T")
MAX_ROWS, MAX_CHARACTERS = 5_000, 4_000_000  # sorted at once; a larger result is read in several ranges of keys
_RESERVED = {"id", "rid", "etag", "resourceid"}  # in any case
_PREFIX = "reserved_"  # of such a property, as it is stored
_PAUSES_S = (0.1, 0.3, 1.0, 3.0)  # after a 429 that says no time
_MAX_PAUSE_S = 5.0


class CosmosTables(SdkTables):
    """Implements Tables."""

    def __init__(
        self,
        connection_string: str | None,
        endpoint: str | None,
        identity: Identity,
        access: ServiceAccess,
        clock: Clock,
    ) -> None:
        super().__init__(connection_string, endpoint, identity, access)
        self._clock = clock

    def table(self, name: str) -> "CosmosTable":
        return CosmosTable(self._service.get_table_client(name), self._access, self._clock)


class CosmosTable(SdkTable):
    """Implements Table."""

    in_key_order = False
    max_transaction_bytes = MAX_COSMOS_TRANSACTION_BYTES

    def __init__(self, client: TableClient, access: ServiceAccess, clock: Clock) -> None:
        super().__init__(client, access)
        self._clock = clock
        self._exists = False  # as far as this process knows

    async def get(self, partition: str, key: str) -> Row | None:
        row = await super().get(partition, key)
        return _read(row) if row else None

    async def put(self, row: Row, etag: str = "") -> str:
        return await super().put(_stored(row), etag)

    async def merge(self, row: Row, etag: str) -> str:
        return await super().merge(_stored(row), etag)

    async def commit(self, writes: Sequence[Write]) -> list[str]:
        stored = [Write(write.kind, _stored(write.row), write.etag) for write in writes]
        try:
            return await super().commit(stored)
        except VersionConflict as conflict:
            if conflict.index or len(writes) == 1:
                raise
            raise VersionConflict(str(conflict), await self._failed(writes)) from conflict

    async def query(
        self, condition: str, parameters: Mapping[str, str], *, page: int = 1_000, select: list[str] | None = None
    ) -> AsyncGenerator[Row]:
        """Reads the rows between two keys, all of them, and sorts them; then those behind. Where they are too many to
        sort, the range ends at the median of those that were read."""
        names = None if select is None else [_stored_name(name) for name in {*select, "PartitionKey", "RowKey"}]
        first: tuple[str, str] | None = None
        ends: list[tuple[str, str] | None] = [None]  # of the ranges to read, the next one last
        while ends:
            limits, values = _within(condition, first, ends[-1])
            rows, complete = await self._rows(limits, {**parameters, **values}, names)
            rows.sort(key=_key)
            if not complete:
                ends.append(_key(rows[len(rows) // 2]))
                continue
            for row in rows:
                yield row if select is None else {name: row[name] for name in row if name in {*select, "etag"}}
            first = ends.pop()

    async def _rows(
        self, condition: str, parameters: Mapping[str, str], names: list[str] | None
    ) -> tuple[list[Row], bool]:
        """The rows, in any order, and whether these are all: at least two of them, if not."""
        rows, characters = list[Row](), 0
        async with aclosing(super().query(condition, parameters, select=names)) as stored:
            async for row in stored:
                characters += sum(len(value) for value in row.values() if isinstance(value, str))
                rows.append(_read(row))
                if len(rows) > MAX_ROWS or (characters > MAX_CHARACTERS and len(rows) > 1):
                    return rows, False
        return rows, True

    async def _failed(self, writes: Sequence[Write]) -> int:
        """The first write whose condition does not hold (any more); 0 if there is none."""
        for index, write in enumerate(writes):
            row = await self.get(write.row["PartitionKey"], write.row["RowKey"])
            if (row is None) == bool(write.etag) or (row and write.etag not in ("*", row["etag"])):
                return index
        return 0

    async def _send(self, request: Callable[[], Awaitable[T]]) -> T:
        try:
            return await self._throttled(request)
        except HttpResponseError as error:
            if self._exists or error.status_code != 404:
                raise
        await self._throttled(self._create)
        self._exists = True
        return await self._throttled(request)

    async def _throttled(self, request: Callable[[], Awaitable[T]]) -> T:
        """Repeat what was refused with 429: nothing has been carried out. The SDK repeats some of these requests, too,
        but no transactions."""
        for pause in _PAUSES_S:
            try:
                return await request()
            except HttpResponseError as error:
                if error.status_code != 429:
                    raise
                await self._clock.sleep(min(_retry_after(error) or pause, _MAX_PAUSE_S))
        return await request()


def _stored_name(name: str) -> str:
    return _PREFIX + name if name.lower() in _RESERVED else name


def _stored(row: Row) -> Row:
    return {_stored_name(name): value for name, value in row.items()}


def _read(row: Row) -> Row:
    return {name.removeprefix(_PREFIX): value for name, value in row.items()}


def _key(row: Row) -> tuple[str, str]:
    return row["PartitionKey"], row["RowKey"]


def _within(
    condition: str, first: tuple[str, str] | None, end: tuple[str, str] | None
) -> tuple[str, Mapping[str, str]]:
    """The condition, for keys from `first` on and before `end`, with its further parameters."""
    values: dict[str, str] = {}
    if first:
        condition = (
            f"({condition}) and (PartitionKey gt @_partition or (PartitionKey eq @_partition and RowKey ge @_key))"
        )
        values |= {"_partition": first[0], "_key": first[1]}
    if end:
        condition = (
            f"({condition}) and (PartitionKey lt @_end_partition"
            " or (PartitionKey eq @_end_partition and RowKey lt @_end_key))"
        )
        values |= {"_end_partition": end[0], "_end_key": end[1]}
    return condition, values


def _retry_after(error: HttpResponseError) -> float:
    """Seconds; 0 if the answer has none."""
    headers: Mapping[str, str] = getattr(error.response, "headers", {})
    for name, factor in (("x-ms-retry-after-ms", 0.001), ("Retry-After", 1.0)):
        if str(headers.get(name, "")).isdecimal():
            return float(headers[name]) * factor
    return 0.0
