"""Positions of resumable maintenance jobs, as rows of the daily table."""

from shared.storage.tables import Table

_PARTITION = "~cursors"  # reserved: the partitions of days are months (YYYY-MM)


class Cursors:
    """Raises VersionConflict if another instance has moved the same cursor, and StorageUnavailable."""

    def __init__(self, table: Table) -> None:
        self._table = table

    async def get(self, job: str) -> tuple[str, str]:
        """The position from which the job resumes ("" for the beginning), and the row's etag."""
        row = await self._table.get(_PARTITION, job)
        return (row["position"], row["etag"]) if row else ("", "")

    async def put(self, job: str, position: str, etag: str) -> None:
        await self._table.put({"PartitionKey": _PARTITION, "RowKey": job, "position": position}, etag)
