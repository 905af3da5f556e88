"""Reads and writes rows through azure-data-tables, and translates its errors."""

import logging
import traceback
from collections.abc import AsyncIterator, Awaitable, Callable, Mapping, Sequence
from contextlib import suppress
from dataclasses import dataclass
from typing import Any, Literal, TypeVar

from azure.core import MatchConditions
from azure.core.exceptions import AzureError, ClientAuthenticationError, HttpResponseError, ResourceExistsError
from azure.data.tables import UpdateMode
from azure.data.tables.aio import TableClient

from shared.access.identity import ServiceAccess
from shared.errors import StorageUnavailable, VersionConflict
from shared.storage.entities import Row, etag_of, from_entity, to_entity

log = logging.getLogger(__name__)

T = TypeVar("T")


@dataclass(frozen=True, slots=True)
class Write:
    """One write of a transaction. `etag`: the version to replace or delete, empty to insert."""

    kind: Literal["put", "delete"]
    row: Row
    etag: str = ""


class Table:
    """One table, created on first use if it is missing. Raises VersionConflict if a condition fails, and
    StorageUnavailable if the service can't be reached, rejects the request, or its answer is lost, cut or garbled: a
    write may then be committed."""

    def __init__(self, client: TableClient, access: ServiceAccess) -> None:
        self._client = client
        self._access = access

    async def get(self, partition: str, key: str) -> Row | None:
        """The row with its `etag`, or None."""

        async def request() -> Row:
            return from_entity(await self._client.get_entity(partition, key))

        try:
            return await self._attempt(request)
        except VersionConflict:
            return None

    async def put(self, row: Row, etag: str = "") -> str:
        """Insert the row, or replace its version `etag`; returns the new etag."""
        entity = to_entity(row)
        if not etag:
            return await self._attempt(lambda: _written(self._client.create_entity(entity)))
        return await self._attempt(
            lambda: _written(self._client.update_entity(entity, UpdateMode.REPLACE, **_unchanged(etag)))
        )

    async def merge(self, row: Row, etag: str) -> str:
        """Change only the given properties of the row's version `etag`; returns the new etag."""
        entity = to_entity(row)
        return await self._attempt(
            lambda: _written(self._client.update_entity(entity, UpdateMode.MERGE, **_unchanged(etag)))
        )

    async def delete(self, partition: str, key: str, etag: str) -> None:
        await self._attempt(lambda: self._client.delete_entity(partition, key, **_unchanged(etag)))

    async def commit(self, writes: Sequence[Write]) -> list[str]:
        """Do all writes or none, in one partition; returns the new etag of each (empty for a delete)."""
        operations = [_operation(write) for write in writes]

        async def request() -> list[str]:
            results = await self._client.submit_transaction(operations)
            return [
                "" if write.kind == "delete" else etag_of(metadata)
                for write, metadata in zip(writes, results, strict=True)
            ]

        return await self._attempt(request)

    async def query(
        self, condition: str, parameters: Mapping[str, Any], *, page: int = 1_000, select: list[str] | None = None
    ) -> AsyncIterator[Row]:
        """Rows in key order, with the properties in `select` or all. Further pages are fetched only as the caller reads
        on."""
        pages = self._client.query_entities(
            condition, parameters=dict(parameters), results_per_page=page, select=select
        ).by_page()

        async def next_page() -> list[Row]:
            return [from_entity(entity) async for entity in await anext(pages)]

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
            try:
                return await request()
            except HttpResponseError as error:
                if "TableNotFound" not in str(error):  # after an insert, only the text has the error code
                    raise
            await self._create()
            return await request()
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

    async def _create(self) -> None:
        with suppress(ResourceExistsError):
            await self._client.create_table()


def _code(error: HttpResponseError) -> str:
    code = getattr(error, "error_code", None) or ""
    return str(getattr(code, "value", code))


def _raised_in(error: Exception) -> str:
    """The function that raised it. Its text is not logged, because it may quote a row."""
    return traceback.extract_tb(error.__traceback__)[-1].name


async def _written(write: Awaitable[Mapping[str, Any]]) -> str:
    return etag_of(await write)


def _unchanged(etag: str) -> dict[str, Any]:
    """The condition that the row is still the version `etag`."""
    return {"etag": etag, "match_condition": MatchConditions.IfNotModified}


def _operation(write: Write) -> tuple[Any, ...]:
    if write.kind == "delete":
        return "delete", write.row, _unchanged(write.etag)
    if not write.etag:
        return "create", to_entity(write.row)
    return "update", to_entity(write.row), {"mode": UpdateMode.REPLACE, **_unchanged(write.etag)}
