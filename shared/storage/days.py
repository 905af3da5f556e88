"""The daily table: one row a UTC day with its figures, whether they are final, and whether they were mailed."""

from dataclasses import replace
from datetime import date

from shared.domain.daily import Day
from shared.errors import VersionConflict
from shared.storage.day_rows import from_day, to_day
from shared.storage.tables import Table

_CONSTANTS = "~fixed"  # a partition of the app's own: no month has this name


class Days:
    """Raises VersionConflict where a row is not the version that was read, and StorageUnavailable."""

    def __init__(self, table: Table) -> None:
        self._table = table

    async def constant(self, name: str, value: str) -> str:
        """The value that was first given for this name, by any process; from now on this one, if it is the first."""
        while True:
            if row := await self._table.get(_CONSTANTS, name):
                return str(row["value"])
            try:
                await self._table.put({"PartitionKey": _CONSTANTS, "RowKey": name, "value": value})
            except VersionConflict:
                continue
            return value

    async def get(self, day: date) -> Day | None:
        row = await self._table.get(f"{day:%Y-%m}", f"{day:%d}")
        return to_day(row) if row else None

    async def between(self, first: date, last: date) -> dict[date, Day]:
        """The stored days of the span, both ends included."""
        months = {"first": f"{first:%Y-%m}", "last": f"{last:%Y-%m}"}
        rows = self._table.query("PartitionKey ge @first and PartitionKey le @last", months)
        days = [to_day(row) async for row in rows]
        return {day.day: day for day in days if first <= day.day <= last}

    async def put(self, day: Day) -> Day:
        """Write the day over the version that was read, or as new."""
        return replace(day, etag=await self._table.put(from_day(day), day.etag))
