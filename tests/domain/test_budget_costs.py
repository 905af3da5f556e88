"""Costs beside budgets at the end of a day, and the forecast of a month."""

from dataclasses import replace
from datetime import UTC, date, datetime, timedelta
from decimal import Decimal

import pytest

from shared.domain.budget_costs import BudgetCost, budget_costs, month_forecast
from shared.domain.limits import PER_DAY, PER_MONTH, Limit, Limits

NOON = datetime(2026, 11, 20, 12, tzinfo=UTC)
DAY = NOON.date()


def limits(**by_name: Limit) -> Limits:
    names = {"others": "*", "ann": "key:ann"}
    named = {names.get(name, name): limit for name, limit in by_name.items()}
    return Limits(by_name={name: replace(limit, name=name) for name, limit in named.items()})


def per_day(usd: int) -> Limit:
    return Limit(usd_per_day=Decimal(usd))


def per_month(usd: int) -> Limit:
    return Limit(usd_per_month=Decimal(usd))


def costs(**by_caller: int) -> dict[str, Decimal]:
    """`ann`: the caller key:ann."""
    named = {name if name in ("total", "anonymous") else f"key:{name}": usd for name, usd in by_caller.items()}
    return {"total": Decimal(0)} | {name: Decimal(usd) for name, usd in named.items()}


def shown(budgets: tuple[BudgetCost, ...] | None) -> list[tuple[str, str, int, int | None]]:
    return [(each.caller, each.name, int(each.cost), each.reached) for each in budgets or ()]


def test_total_is_always_shown_and_callers_from_80_percent_on() -> None:
    configured = limits(total=per_day(100), ann=per_day(10), others=per_day(10), anonymous=per_day(10))
    day = costs(total=30, ann=7, ben=8, cid=12, anonymous=9)
    assert shown(budget_costs(configured, day, costs())) == [
        ("total", PER_DAY, 30, None),
        ("key:cid", PER_DAY, 12, 100),
        ("anonymous", PER_DAY, 9, 80),
        ("key:ben", PER_DAY, 8, 80),
    ]


@pytest.mark.parametrize(
    ("before", "day", "reached"),
    [
        (0, 79, None),
        (0, 80, 80),
        (79, 1, 80),
        (80, 1, None),
        (80, 20, 100),
        (99, 5, 100),
        (100, 1, None),
        (0, 100, 100),
    ],
)
def test_percentage_of_a_month_is_reached_on_one_day(before: int, day: int, reached: int | None) -> None:
    budgets = budget_costs(limits(total=per_month(100)), costs(total=day), costs(total=before))
    assert shown(budgets) == [("total", PER_MONTH, before + day, reached)]


def test_caller_without_calls_on_the_day_is_not_shown() -> None:
    assert budget_costs(limits(ann=per_month(10)), costs(), costs(ann=10)) == ()


@pytest.mark.parametrize("configured", [Limits(), Limits(by_name={"total": Limit(requests_per_minute=1)})])
def test_without_budgets_in_usd_there_is_nothing(configured: Limits) -> None:
    assert budget_costs(configured, costs(total=1), costs()) is None


def test_percentage_is_rounded_down() -> None:
    one = BudgetCost(caller="total", name=PER_DAY, limit=Decimal(3), cost=Decimal("2.9999"))
    assert (one.percent, one.reached) == (99, 80)


@pytest.mark.parametrize(("cost", "percent", "reached"), [(0, 100, None), (1, 100, 100)])
def test_budget_of_zero(cost: int, percent: int, reached: int | None) -> None:
    one = BudgetCost(caller="total", name=PER_DAY, limit=Decimal(0), cost=Decimal(cost))
    assert (one.percent, one.reached) == (percent, reached)


@pytest.mark.parametrize(
    ("day", "now", "forecast"),
    [
        (DAY, NOON + timedelta(days=1), 30),  # 20 USD in 20 days
        (DAY, NOON, Decimal(20) * 30 / Decimal("19.5")),  # half of today has passed
        (date(2026, 11, 30), NOON + timedelta(days=30), 20),  # the whole month
        (date(2026, 11, 1), datetime(2026, 11, 1, 0, 5, tzinfo=UTC), 600),  # five minutes count as a day
        (date(2024, 2, 10), NOON, 58),  # 29 days
    ],
)
def test_month_forecast(day: date, now: datetime, forecast: Decimal) -> None:
    assert month_forecast(Decimal(20), day, now) == pytest.approx(forecast)


def test_month_without_cost_has_no_forecast() -> None:
    assert month_forecast(Decimal(0), DAY, NOON) is None
