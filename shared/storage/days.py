"""The daily table: one row per UTC day with its figures, whether they are final, and whether they were emailed."""

from contextlib import suppress
from dataclasses import replace
from datetime import date

from shared.domain.daily import Day, SessionCost
from shared.errors import VersionConflict
from shared.storage.day_rows import from_day, to_day
from shared.storage.tables import Table

_CONSTANTS = "~fixed"  # reserved: the partitions of days are months (YYYY-MM)


class Days:
    """Raises VersionConflict if a row has changed since it was read, and StorageUnavailable."""

    def __init__(self, table: Table) -> None:
        self._table = table

    async def constant(self, name: str, value: str) -> str:
        """Store the value under this name, unless some process has stored one before; return the stored value."""
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
        """The stored days from `first` to `last`, both included."""
        months = {"first": f"{first:%Y-%m}", "last": f"{last:%Y-%m}"}
        rows = self._table.query("PartitionKey ge @first and PartitionKey le @last", months)
        days = [to_day(row) async for row in rows]
        return {day.day: day for day in days if first <= day.day <= last}

    async def put(self, day: Day) -> Day:
        """Replace the version that was read, or insert the day if it has no etag."""
        return replace(day, etag=await self._table.put(from_day(day), day.etag))

    async def forget_session(self, day: date, session_id: str, reference: str) -> None:
        """Replace the id of an erased session by its reference in a stored day."""
        while stored := await self.get(day):
            costliest = tuple(_without_id(each, session_id, reference) for each in stored.figures.costliest)
            if costliest == stored.figures.costliest:
                return
            with suppress(VersionConflict):  # read it again
                await self.put(replace(stored, figures=replace(stored.figures, costliest=costliest)))


def _without_id(cost: SessionCost, session_id: str, reference: str) -> SessionCost:
    if cost.is_reference or cost.session != session_id:
        return cost
    return replace(cost, session=reference, is_reference=True)
