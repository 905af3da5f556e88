"""Costs beside budgets at the end of a UTC day, and what the month will cost."""

from calendar import monthrange
from collections.abc import Iterator, Mapping
from dataclasses import dataclass
from datetime import UTC, date, datetime, time, timedelta
from decimal import Decimal

from shared.domain.calls import ZERO
from shared.domain.limits import ANONYMOUS, PER_DAY, PER_MONTH, TOTAL, Limit, Limits
from shared.domain.principal import Principal

_STEPS = (100, 80)  # percent of a budget that are reported
_DAY = timedelta(days=1)
_SECOND = timedelta(seconds=1)


@dataclass(frozen=True, slots=True, kw_only=True)
class BudgetCost:
    """A budget in USD, as it is set now, and the cost of the settled calls of its day, or of its month up to the end of
    the day. `caller`: as in Limit.name; `name`: PER_DAY or PER_MONTH; `before`: the cost when the day began."""

    caller: str
    name: str
    limit: Decimal
    cost: Decimal
    before: Decimal = ZERO

    @property
    def percent(self) -> int:
        """The part of the budget, rounded down: 100 only if all of it is spent."""
        return int(100 * self.cost / self.limit) if self.limit else 100

    @property
    def nearly_spent(self) -> bool:
        return self.cost > 0 and self._exceeds(_STEPS[-1], self.cost)

    @property
    def reached(self) -> int | None:
        """80 or 100: the percentage that the cost reached on this day; None if it reached neither."""
        steps = (step for step in _STEPS if self._exceeds(step, self.cost))
        step = next(steps, None) if self.cost else None
        return None if step is None or (self.before and self._exceeds(step, self.before)) else step

    def _exceeds(self, percent: int, cost: Decimal) -> bool:
        return 100 * cost >= percent * self.limit


def budget_costs(
    limits: Limits, day: Mapping[str, Decimal], earlier: Mapping[str, Decimal]
) -> tuple[BudgetCost, ...] | None:
    """The total's budgets, and those of the day's callers of which 80 % or more is spent, the most first. None if there
    are no budgets in USD. `day`, `earlier`: USD of the day and of the month's days before it, by caller (ANONYMOUS for
    calls without a key) and of all (TOTAL)."""
    if not any(limit.in_usd for limit in limits.by_name.values()):
        return None
    totals, callers = list[BudgetCost](), list[BudgetCost]()
    for name, cost in day.items():
        limit = limits.by_name.get(TOTAL) if name == TOTAL else limits.own(_principal(name))
        if limit:
            (totals if name == TOTAL else callers).extend(_costs(limit, cost, earlier.get(name, ZERO)))
    nearly = [each for each in callers if each.nearly_spent]
    return *totals, *sorted(nearly, key=lambda each: (-each.percent, each.caller, each.name))


def _principal(name: str) -> Principal:
    return Principal(None if name == ANONYMOUS else name)


def _costs(limit: Limit, cost: Decimal, earlier: Decimal) -> Iterator[BudgetCost]:
    if limit.usd_per_day is not None:
        yield BudgetCost(caller=limit.name, name=PER_DAY, limit=limit.usd_per_day, cost=cost)
    if limit.usd_per_month is not None:
        month = earlier + cost
        yield BudgetCost(caller=limit.name, name=PER_MONTH, limit=limit.usd_per_month, cost=month, before=earlier)


def month_forecast(month_to_date: Decimal, day: date, now: datetime) -> Decimal | None:
    """USD of the whole month if its other days cost as much as those up to `day`; None if these cost nothing. Today
    counts as far as it has passed, but a month's first day as a whole: its first minutes say too little."""
    first = datetime.combine(day.replace(day=1), time(), UTC)
    so_far = max(_DAY, min(now, datetime.combine(day + _DAY, time(), UTC)) - first)
    whole = _DAY * monthrange(day.year, day.month)[1]
    return month_to_date * (whole // _SECOND) / (so_far // _SECOND) if month_to_date else None
