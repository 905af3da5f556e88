"""Reads and writes rows through azure-data-tables, and translates its errors.

A row is a dict of plain values. Integers are stored as Int64 and Decimals as text. Long text is split into `name`,
`name_1`, … because a string property holds at most 32,768 UTF-16 units
(https://learn.microsoft.com/rest/api/storageservices/understanding-the-table-service-data-model#property-types).
"""

import logging
from collections.abc import AsyncIterator, Awaitable, Callable, Mapping, Sequence
from contextlib import suppress
from dataclasses import dataclass
from datetime import datetime
from decimal import Decimal
from typing import Any, Literal, TypeAlias, TypeVar

from azure.core import MatchConditions
from azure.core.exceptions import AzureError, ClientAuthenticationError, HttpResponseError, ResourceExistsError
from azure.data.tables import EdmType, EntityProperty, TableEntity, UpdateMode
from azure.data.tables.aio import TableClient

from shared.access.identity import ServiceAccess
from shared.errors import StorageUnavailable, VersionConflict

log = logging.getLogger(__name__)

Row: TypeAlias = dict[str, Any]
T = TypeVar("T")

MAX_PROPERTY_UNITS = 32_768  # UTF-16 units in one property


@dataclass(frozen=True, slots=True)
class Write:
    """One write of a transaction. `etag`: the version to replace or delete, empty to insert."""

    kind: Literal["put", "delete"]
    row: Row
    etag: str = ""


class Table:
    """One table, created on first use if it is missing. Raises VersionConflict if a condition fails, and
    StorageUnavailable if the service can't be reached or rejects the request."""

    def __init__(self, client: TableClient, access: ServiceAccess) -> None:
        self._client = client
        self._access = access

    async def get(self, partition: str, key: str) -> Row | None:
        """The row with its `etag`, or None."""
        try:
            return _decoded(await self._attempt(lambda: self._client.get_entity(partition, key)))
        except VersionConflict:
            return None

    async def put(self, row: Row, etag: str = "") -> str:
        """Insert the row, or replace its version `etag`; returns the new etag."""
        entity = _encoded(row)
        if not etag:
            metadata = await self._attempt(lambda: self._client.create_entity(entity))
        else:
            metadata = await self._attempt(
                lambda: self._client.update_entity(entity, UpdateMode.REPLACE, **_unchanged(etag))
            )
        return str(metadata["etag"])

    async def merge(self, row: Row, etag: str) -> str:
        """Change only the given properties of the row's version `etag`; returns the new etag."""
        entity = _encoded(row)
        metadata = await self._attempt(lambda: self._client.update_entity(entity, UpdateMode.MERGE, **_unchanged(etag)))
        return str(metadata["etag"])

    async def delete(self, partition: str, key: str, etag: str) -> None:
        await self._attempt(lambda: self._client.delete_entity(partition, key, **_unchanged(etag)))

    async def commit(self, writes: Sequence[Write]) -> list[str]:
        """Do all writes or none, in one partition; returns the new etag of each (empty for a delete)."""
        operations = [_operation(write) for write in writes]
        results = await self._attempt(lambda: self._client.submit_transaction(operations))
        return [str(metadata.get("etag", "")) for metadata in results]

    async def query(
        self, condition: str, parameters: Mapping[str, Any], *, page: int = 1_000, select: list[str] | None = None
    ) -> AsyncIterator[Row]:
        """Rows in key order, with the properties in `select` or all. Further pages are fetched only as the caller reads
        on."""
        pages = self._client.query_entities(
            condition, parameters=dict(parameters), results_per_page=page, select=select
        ).by_page()
        while True:
            try:
                entities = await self._attempt(pages.__anext__)
            except StopAsyncIteration:
                return
            except VersionConflict as error:  # not a missing row, since no key was given: no table service
                raise StorageUnavailable from error
            async for entity in entities:
                yield _decoded(entity)

    async def _attempt(self, request: Callable[[], Awaitable[T]]) -> T:
        try:
            try:
                return await request()
            except HttpResponseError as error:
                if "TableNotFound" not in str(error):  # after an insert, only the text has the error code
                    raise
            await self._create()
            return await request()
        except HttpResponseError as error:
            if error.status_code in (404, 409, 412):
                raise VersionConflict(_code(error)) from error
            reason = f"{error.status_code} {_code(error)}" if error.status_code else type(error).__name__
            log.warning("storage returned %s", reason)
            if error.status_code in (401, 403) or isinstance(error, ClientAuthenticationError):
                self._access.log_refusal(reason)
                raise StorageUnavailable(self._access.message, retry_after=30) from error
            raise StorageUnavailable from error
        except (AzureError, OSError) as error:
            log.warning("storage can't be reached: %s", type(error).__name__)
            raise StorageUnavailable from error

    async def _create(self) -> None:
        with suppress(ResourceExistsError):
            await self._client.create_table()


def _code(error: HttpResponseError) -> str:
    code = getattr(error, "error_code", None) or ""
    return str(getattr(code, "value", code))


def _unchanged(etag: str) -> dict[str, Any]:
    """The condition that the row is still the version `etag`."""
    return {"etag": etag, "match_condition": MatchConditions.IfNotModified}


def _operation(write: Write) -> tuple[Any, ...]:
    if write.kind == "delete":
        return "delete", write.row, _unchanged(write.etag)
    if not write.etag:
        return "create", _encoded(write.row)
    return "update", _encoded(write.row), {"mode": UpdateMode.REPLACE, **_unchanged(write.etag)}


def _encoded(row: Row) -> dict[str, Any]:
    entity: dict[str, Any] = {}
    for name, value in row.items():
        match value:
            case None:
                pass
            case bool() | datetime():
                entity[name] = value
            case int():
                entity[name] = EntityProperty(value, EdmType.INT64)
            case Decimal():
                entity[name] = format(value, "f")
            case str():
                entity |= {f"{name}_{i}" if i else name: piece for i, piece in enumerate(_pieces(value))}
            case _:
                raise TypeError(f"{name} can't be stored: it is a {type(value).__name__}")
    return entity


def _pieces(text: str) -> list[str]:
    """Split the text, between characters, into pieces that fit in a property."""
    if len(text) * 2 <= MAX_PROPERTY_UNITS:
        return [text]
    units, pieces, start = text.encode("utf-16-le"), [], 0
    while start < len(units):
        end = start + MAX_PROPERTY_UNITS * 2
        if end < len(units) and 0xD8 <= units[end - 1] <= 0xDB:
            end -= 2  # the first half of a surrogate pair: move it to the next piece
        pieces.append(units[start:end].decode("utf-16-le"))
        start = end
    return pieces


def _decoded(entity: TableEntity) -> Row:
    row: Row = {"etag": entity.metadata["etag"]}
    for name, value in entity.items():
        if value is not None:  # a selected property that the row lacks may be null
            row[name] = _plain(value)
    for name in [name for name in row if f"{name}_1" in row]:
        pieces = [row.pop(name)]
        while (piece := row.pop(f"{name}_{len(pieces)}", None)) is not None:
            pieces.append(piece)
        row[name] = "".join(pieces)
    return row


def _plain(value: Any) -> Any:
    match value:
        case EntityProperty():
            return value.value
        case datetime():  # the SDK's subclass also carries the service's text
            return datetime.combine(value.date(), value.timetz())
        case _:
            return value
