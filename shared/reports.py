"""A day's figures: recovered, added up from the ledger, and kept once nothing in them can be open any more.

A day is final when no turn that began in it can write another row, and none of its rows is open.
"""

import asyncio
from dataclasses import replace
from datetime import UTC, date, datetime, time, timedelta
from functools import reduce

from shared.days import Day, Days
from shared.errors import Changed
from shared.ledger import Ledger
from shared.recovery import Recovery
from shared.removals import Removals
from shared.rows import SHARDS
from shared.summary import ZERO, Adjustment, DailySummary, DayCost, Figures, Tally

LOOK_BACK = timedelta(days=31)  # how long a day is caught up with, and corrected
HISTORY = timedelta(days=13)  # shown before a day
DAY = timedelta(days=1)
_AT_ONCE = 4  # days that are added up side by side, each by its shards


class Reports:
    """`grace`: how long after its end a day's turns may still write. Raises StorageUnavailable."""

    def __init__(self, ledger: Ledger, days: Days, *, recovery: Recovery, removals: Removals, grace: timedelta) -> None:
        self._ledger = ledger
        self._days = days
        self._recovery = recovery
        self._removals = removals
        self._grace = grace

    async def recover(self, now: datetime) -> None:
        """Account for every call that nobody finished, and finish removals that were interrupted. Final days that had
        unaccounted calls are added up anew."""
        await self._removals.finish_interrupted(now)
        first = now.date() - LOOK_BACK
        stored = await self._days.between(first, now.date())
        for day in _span(first, now.date()):
            known = stored.get(day)
            if known and not known.figures.unaccounted:
                continue
            await self._recover(day)
            if known:
                await self._keep(replace(known, figures=await self.figures(day)))

    async def day(self, day: date, now: datetime) -> Day:
        """The day as it was kept, else as it stands in the ledger; kept from now on if it is final."""
        kept = await self._days.get(day)
        return kept or await self._added_up(day, now)

    async def days(self, first: date, last: date, now: datetime) -> list[Day]:
        """The same for a span, both ends included."""
        kept = await self._days.between(first, last)
        missing = [day for day in _span(first, last) if day not in kept]
        for batch in (missing[at : at + _AT_ONCE] for at in range(0, len(missing), _AT_ONCE)):
            for added_up in await asyncio.gather(*(self._added_up(day, now) for day in batch)):
                kept[added_up.day] = added_up
        return [kept[day] for day in _span(first, last)]

    async def summary(
        self, day: date, now: datetime, adjustments: tuple[Adjustment, ...] | None = None
    ) -> DailySummary:
        """The day beside those before it, with what its mail said of them."""
        first_of_month = day.replace(day=1)
        days = await self.days(min(first_of_month, day - HISTORY), day, now)
        return DailySummary(
            day=day,
            final=days[-1].final,
            figures=days[-1].figures,
            history=tuple(DayCost(day=d.day, cost=d.figures.cost) for d in days if d.day >= day - HISTORY),
            month_to_date=sum((d.figures.cost for d in days if d.day >= first_of_month), ZERO),
            adjustments=days[-1].adjustments if adjustments is None else adjustments,
        )

    async def figures(self, day: date) -> Figures:
        """Added up from the ledger, its shards read side by side and none of its rows held."""
        shards = await asyncio.gather(*(self._tally(day, shard) for shard in range(SHARDS)))
        return reduce(Figures.plus, shards)

    async def _tally(self, day: date, shard: int) -> Figures:
        tally = Tally()
        async for entry in self._ledger.shard(day, shard):
            tally.add(entry)
        return tally.figures()

    async def _added_up(self, day: date, now: datetime) -> Day:
        figures = await self.figures(day)
        over = now >= datetime.combine(day + DAY, time(), UTC) + self._grace
        if over and figures.open:  # further back than the timer looks, or it has not fired yet
            await self._recover(day)
            figures = await self.figures(day)
        fresh = Day(day=day, figures=figures, final=over and not figures.open)
        return await self._keep(fresh) if fresh.final else fresh

    async def _recover(self, day: date) -> None:
        async for entry in self._ledger.unfinished(day):
            await self._recovery.reconcile(entry)

    async def _keep(self, day: Day) -> Day:
        try:
            return await self._days.put(day)
        except Changed:  # another instance was quicker
            return await self._days.get(day.day) or day


def _span(first: date, last: date) -> list[date]:
    return [first + DAY * i for i in range((last - first).days + 1)]
