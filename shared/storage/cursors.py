"""How far resumable maintenance jobs came, as rows of the daily table."""

from shared.storage.tables import Table

_PARTITION = "~cursors"  # a partition of the app's own: no month has this name


class Cursors:
    """Raises VersionConflict where another instance moved the same cursor, and StorageUnavailable."""

    def __init__(self, table: Table) -> None:
        self._table = table

    async def get(self, job: str) -> tuple[str, str]:
        """Where the job goes on, "" for its beginning; and the etag of that."""
        row = await self._table.get(_PARTITION, job)
        return (row["position"], row["etag"]) if row else ("", "")

    async def put(self, job: str, position: str, etag: str) -> None:
        await self._table.put({"PartitionKey": _PARTITION, "RowKey": job, "position": position}, etag)
