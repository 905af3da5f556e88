"""A table of Table Storage, as the other modules of this package use it."""

from collections.abc import AsyncGenerator, Mapping, Sequence
from dataclasses import dataclass
from typing import Literal, Protocol

from shared.storage.entities import Row


@dataclass(frozen=True, slots=True)
class Write:
    """One write of a transaction. `etag`: the version to replace or delete, empty to insert."""

    kind: Literal["put", "delete"]
    row: Row
    etag: str = ""


class Tables(Protocol):
    """The tables of a storage account."""

    def table(self, name: str) -> "Table": ...
    async def close(self) -> None: ...


class Table(Protocol):
    """One table, created on first use if it is missing. Raises VersionConflict if a condition fails, and
    StorageUnavailable if the service can't be reached, rejects the request, or its answer is lost, cut or garbled: a
    write may then be committed."""

    async def get(self, partition: str, key: str) -> Row | None:
        """The row with its `etag`, or None."""

    async def put(self, row: Row, etag: str = "") -> str:
        """Insert the row, or replace its version `etag`; returns the new etag."""

    async def merge(self, row: Row, etag: str) -> str:
        """Change only the given properties of the row's version `etag`; returns the new etag."""

    async def delete(self, partition: str, key: str, etag: str) -> None:
        """Delete the row's version `etag`. Does nothing if there is no row."""

    async def commit(self, writes: Sequence[Write]) -> list[str]:
        """Do all writes or none, in one partition; returns the new etag of each (empty for a delete)."""

    def query(
        self, condition: str, parameters: Mapping[str, str], *, page: int = 1_000, select: list[str] | None = None
    ) -> AsyncGenerator[Row]:
        """Rows in key order, with the properties in `select` or all. Further pages are fetched only as the caller reads
        on."""
