"""A day's figures: added up from the ledger after recovery, and stored once the day is final.

A day is final once all its calls have settled and none can still be written.
"""

import asyncio
import logging
from collections.abc import AsyncIterator, Iterable
from dataclasses import replace
from datetime import UTC, date, datetime, time, timedelta
from decimal import Decimal
from functools import reduce

from shared.domain.budget_costs import budget_costs, month_forecast
from shared.domain.calls import ZERO, LedgerEntry
from shared.domain.clock import Clock
from shared.domain.daily import ANONYMOUS_CALLER, Adjustment, DailySummary, Day, DayCost, Figures
from shared.domain.limits import ANONYMOUS, TOTAL, Limits
from shared.domain.tally import Tally
from shared.errors import StorageUnavailable, VersionConflict
from shared.storage.days import Days
from shared.storage.ledger import Ledger
from shared.turns.recovery import Recovery

log = logging.getLogger(__name__)

LOOK_BACK = timedelta(days=31)  # older days are neither recovered nor corrected
HISTORY = timedelta(days=13)  # shown before a day
DAY = timedelta(days=1)
_PARALLEL_DAYS = 4  # added up concurrently, each in parts


class Reports:
    """`grace`: how long after the end of a day its turns may still write. Methods raise StorageUnavailable."""

    def __init__(
        self, ledger: Ledger, days: Days, recovery: Recovery, clock: Clock, *, limits: Limits, grace: timedelta
    ) -> None:
        self._ledger = ledger
        self._days = days
        self._recovery = recovery
        self._clock = clock
        self._limits = limits
        self._grace = grace

    async def recover(self, after: str = "") -> AsyncIterator[str]:
        """Recover every call whose process died, day by day, and add up final days with unaccounted calls again.

        Yields each completed day as YYYY-MM-DD. Days up to and including `after` are skipped."""
        today = self._clock.now().date()
        stored = await self._days.between(today - LOOK_BACK, today)
        for day in _span(today - LOOK_BACK, today):
            if day.isoformat() <= after:
                continue
            stored_day = stored.get(day)
            if stored_day is None or stored_day.figures.unaccounted or stored_day.figures.stopped:
                await self._recover(day)
                if stored_day:
                    await self._store(replace(stored_day, figures=await self.figures(day)))
            yield day.isoformat()

    async def day(self, day: date) -> Day:
        """The stored day, or else its current figures from the ledger. A final day is stored."""
        stored = await self._days.get(day)
        return stored or await self._added_up(day)

    async def days(self, first: date, last: date) -> list[Day]:
        """Every day from `first` to `last`, both included."""
        days = await self._days.between(first, last)
        missing = [day for day in _span(first, last) if day not in days]
        for batch in (missing[at : at + _PARALLEL_DAYS] for at in range(0, len(missing), _PARALLEL_DAYS)):
            for added_up in await asyncio.gather(*(self._added_up(day) for day in batch)):
                days[added_up.day] = added_up
        return [days[day] for day in _span(first, last)]

    async def summary(self, day: date, adjustments: tuple[Adjustment, ...] | None = None) -> DailySummary:
        """The day compared with the days before it. `adjustments` default to those of the day's email."""
        first_of_month = day.replace(day=1)
        days = await self.days(min(first_of_month, day - HISTORY), day)
        month = [d.figures for d in days if d.day >= first_of_month]
        month_to_date = sum((figures.cost for figures in month), ZERO)
        return DailySummary(
            day=day,
            final=days[-1].final,
            figures=days[-1].figures,
            history=tuple(DayCost(day=d.day, cost=d.figures.cost) for d in days if d.day >= day - HISTORY),
            month_to_date=month_to_date,
            month_forecast=month_forecast(month_to_date, day, self._clock.now()),
            budgets=budget_costs(self._limits, _costs(month[-1:]), _costs(month[:-1])),
            adjustments=days[-1].adjustments if adjustments is None else adjustments,
        )

    async def figures(self, day: date) -> Figures:
        """Added up from the ledger. Its parts are read concurrently, and their rows are not kept in memory."""
        parts = await asyncio.gather(*(_tally(part) for part in self._ledger.parts(day)))
        return reduce(Figures.plus, parts)

    async def _added_up(self, day: date) -> Day:
        figures = await self.figures(day)
        over = self._clock.now() >= datetime.combine(day + DAY, time(), UTC) + self._grace
        if over and figures.open:  # older than LOOK_BACK, or recovery has not run yet
            await self._recover(day)
            figures = await self.figures(day)
        fresh = Day(day=day, figures=figures, final=over and not figures.open)
        return await self._store(fresh) if fresh.final else fresh

    async def _recover(self, day: date) -> None:
        async for entry in self._ledger.unfinished(day):
            try:
                await self._recovery.reconcile(entry)
            except StorageUnavailable:
                raise
            except Exception:  # one unreadable call must not keep the others from being recovered
                log.exception("call %s: recovery failed", entry.call.id)

    async def _store(self, day: Day) -> Day:
        try:
            return await self._days.put(day)
        except VersionConflict:  # another instance stored it first
            return await self._days.get(day.day) or day


def _costs(days: Iterable[Figures]) -> dict[str, Decimal]:
    """USD of these days by caller and of all, by the names of their limits."""
    costs = {TOTAL: ZERO}
    for figures in days:
        costs[TOTAL] += figures.cost
        for caller, breakdown in figures.callers.items():
            name = ANONYMOUS if caller == ANONYMOUS_CALLER else caller
            costs[name] = costs.get(name, ZERO) + breakdown.cost
    return costs


async def _tally(entries: AsyncIterator[LedgerEntry]) -> Figures:
    tally = Tally()
    async for entry in entries:
        tally.add(entry)
    return tally.figures()


def _span(first: date, last: date) -> list[date]:
    return [first + DAY * i for i in range((last - first).days + 1)]
