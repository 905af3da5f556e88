"""A table of Table Storage, as the other modules of this package use it."""

from collections.abc import AsyncGenerator, Mapping, Sequence
from dataclasses import dataclass
from typing import Literal, Protocol

from shared.storage.entities import Row

# https://learn.microsoft.com/rest/api/storageservices/performing-entity-group-transactions#requirements-for-entity-group-transactions
MAX_TRANSACTION_BYTES = 4 * 1024 * 1024
MAX_COSMOS_TRANSACTION_BYTES = 2_000_000  # https://learn.microsoft.com/azure/cosmos-db/table/faq: "up to 2 MBs"


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

    @property
    def in_key_order(self) -> bool:
        """False if the service returns rows in any order, so that `query` reads all of them before the first."""

    @property
    def max_transaction_bytes(self) -> int:
        """The largest request of a transaction, of JSON with every character beyond ASCII as \\uXXXX."""

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
