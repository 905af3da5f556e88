"""Tables through azure-data-tables: by the TABLES_CLIENT setting, and below `cosmos_tables`."""

import logging
import traceback
from collections.abc import AsyncGenerator, Awaitable, Callable, Mapping, Sequence
from datetime import datetime
from typing import Any, TypeVar

from azure.core import MatchConditions
from azure.core.exceptions import AzureError, ClientAuthenticationError, HttpResponseError
from azure.data.tables import EdmType, EntityProperty, TableEntity, UpdateMode
from azure.data.tables.aio import TableClient, TableServiceClient

from shared.access.identity import Identity, ServiceAccess
from shared.errors import StorageUnavailable, VersionConflict
from shared.storage.conditions import filter_text
from shared.storage.entities import Row, checked_etag, joined, properties
from shared.storage.tables import MAX_TRANSACTION_BYTES, Write

log = logging.getLogger(__name__)

T = TypeVar("T")
_OPTIONS: dict[str, Any] = {
    "retry_total": 3,
    "retry_backoff_factor": 0.2,
    "connection_timeout": 5,
    "read_timeout": 15,
}


class SdkTables:
    """Implements Tables. `connection_string` wins over `endpoint`."""

    def __init__(
        self, connection_string: str | None, endpoint: str | None, identity: Identity, access: ServiceAccess
    ) -> None:
        self._access = access
        if connection_string:
            self._service = TableServiceClient.from_connection_string(connection_string, **_OPTIONS)
        else:
            self._service = TableServiceClient(endpoint or "", credential=identity, **_OPTIONS)

    def table(self, name: str) -> "SdkTable":
        return SdkTable(self._service.get_table_client(name), self._access)

    async def close(self) -> None:
        await self._service.close()


class SdkTable:
    """Implements Table."""

    in_key_order = True
    max_transaction_bytes = MAX_TRANSACTION_BYTES

    def __init__(self, client: TableClient, access: ServiceAccess) -> None:
        self._client = client
        self._access = access

    async def get(self, partition: str, key: str) -> Row | None:
        async def request() -> Row:
            return _row(await self._client.get_entity(partition, key))

        try:
            return await self._attempt(request)
        except VersionConflict:
            return None

    async def put(self, row: Row, etag: str = "") -> str:
        entity = _entity(row)
        if not etag:
            return await self._attempt(lambda: _written(self._client.create_entity(entity)))
        return await self._attempt(
            lambda: _written(self._client.update_entity(entity, UpdateMode.REPLACE, **_unchanged(etag)))
        )

    async def merge(self, row: Row, etag: str) -> str:
        entity = _entity(row)
        return await self._attempt(
            lambda: _written(self._client.update_entity(entity, UpdateMode.MERGE, **_unchanged(etag)))
        )

    async def delete(self, partition: str, key: str, etag: str) -> None:
        await self._attempt(lambda: self._client.delete_entity(partition, key, **_unchanged(etag)))

    async def commit(self, writes: Sequence[Write]) -> list[str]:
        operations = [_operation(write) for write in writes]

        async def request() -> list[str]:
            results = await self._client.submit_transaction(operations)
            return [
                "" if write.kind == "delete" else checked_etag(metadata.get("etag"))
                for write, metadata in zip(writes, results, strict=True)
            ]

        return await self._attempt(request)

    async def query(
        self, condition: str, parameters: Mapping[str, str], *, page: int = 1_000, select: list[str] | None = None
    ) -> AsyncGenerator[Row]:
        pages = self._client.query_entities(
            filter_text(condition, parameters), results_per_page=page, select=select
        ).by_page()

        async def next_page() -> list[Row]:
            return [_row(entity) async for entity in await anext(pages)]

        while True:
            try:
                rows = await self._attempt(next_page)
            except StopAsyncIteration:
                return
            except VersionConflict as error:  # not a missing row, since no key was given: no table service
                raise StorageUnavailable from error
            for row in rows:
                yield row

    async def _attempt(self, request: Callable[[], Awaitable[T]]) -> T:
        try:
            return await self._send(request)
        except HttpResponseError as error:
            if error.status_code in (404, 409, 412):
                raise VersionConflict(_code(error), getattr(error, "index", 0)) from error
            reason = f"{error.status_code} {_code(error)}" if error.status_code else type(error).__name__
            log.warning("storage returned %s", reason)
            if error.status_code in (401, 403) or isinstance(error, ClientAuthenticationError):
                self._access.log_refusal(reason)
                raise StorageUnavailable(self._access.message, retry_after=30) from error
            raise StorageUnavailable from error
        except (AzureError, OSError) as error:
            log.warning("storage can't be reached: %s", type(error).__name__)
            raise StorageUnavailable from error
        except StopAsyncIteration:  # the end of a query
            raise
        except Exception as error:
            # A bug of the SDK, not a refusal: an insert whose 201 is cut is an AttributeError of create_entity, because
            # azure-core's IncompleteReadError has no response (azure-data-tables 12.7.0, _table_client_async.py).
            log.warning("storage's answer can't be read: %s in %s", type(error).__name__, _raised_in(error))
            raise StorageUnavailable from error

    async def _send(self, request: Callable[[], Awaitable[T]]) -> T:
        """The answer. Creates the table if it is missing."""
        try:
            return await request()
        except HttpResponseError as error:
            if "TableNotFound" not in str(error):  # after an insert, only the text has the error code
                raise
        await self._create()
        return await request()

    async def _create(self) -> None:
        try:
            await self._client.create_table()
        except HttpResponseError as error:
            if error.status_code != 409:  # another process was faster
                raise


def _code(error: HttpResponseError) -> str:
    code = getattr(error, "error_code", None) or ""
    return str(getattr(code, "value", code))


def _raised_in(error: Exception) -> str:
    """The function that raised it. Its text is not logged, because it may quote a row."""
    return traceback.extract_tb(error.__traceback__)[-1].name


async def _written(write: Awaitable[Mapping[str, Any]]) -> str:
    return checked_etag((await write).get("etag"))


def _unchanged(etag: str) -> dict[str, Any]:
    """The condition that the row is still the version `etag`."""
    return {"etag": etag, "match_condition": MatchConditions.IfNotModified}


def _operation(write: Write) -> tuple[Any, ...]:
    if write.kind == "delete":
        return "delete", write.row, _unchanged(write.etag)
    if not write.etag:
        return "create", _entity(write.row)
    return "update", _entity(write.row), {"mode": UpdateMode.REPLACE, **_unchanged(write.etag)}


def _entity(row: Row) -> dict[str, Any]:
    return {
        name: EntityProperty(value, EdmType.INT64) if type(value) is int else value for name, value in properties(row)
    }


def _row(entity: TableEntity) -> Row:
    row: Row = {"etag": checked_etag(entity.metadata.get("etag"))}
    for name, value in entity.items():
        if value is not None:  # a selected property that the row lacks may be null
            row[name] = _plain(value)
    return joined(row)


def _plain(value: Any) -> Any:
    match value:
        case EntityProperty():
            return value.value
        case datetime():  # the SDK's subclass also carries the service's text
            return datetime.combine(value.date(), value.timetz())
        case _:
            return value
