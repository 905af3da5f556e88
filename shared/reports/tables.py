"""The tables of the summary email: names and values as text.

Amounts are exact. All amounts of a table have the same number of decimals, so that they are easy to compare.
"""

from collections.abc import Iterable, Sequence
from dataclasses import dataclass
from decimal import Decimal
from functools import reduce

from shared.domain.daily import ANONYMOUS_CALLER, DailySummary, Figures, SessionCost, UsageBreakdown
from shared.domain.limits import ANONYMOUS, PER_DAY, TOTAL
from shared.reports.wording import approximate, decimals, exact, month_name, pluralize, short_date

MAX_ROWS = 20  # per table; mail clients truncate long emails
_BUDGETS_NOTE = (
    "The cost of settled calls, beside the budgets that LIMITS sets now. Unaccounted and stopped calls hold their"
    " maximum cost in addition. Callers are listed from 80% of a budget on."
)


@dataclass(frozen=True, slots=True, kw_only=True)
class Row:
    name: str
    value: str
    detail: str = ""
    bar: int | None = None  # length in percent of the longest bar; None in tables without bars
    strong: bool = False
    part: bool = False  # of the row above


@dataclass(frozen=True, slots=True, kw_only=True)
class Table:
    title: str
    rows: Sequence[Row]
    unit: str = ""
    note: str = ""


def tables(summary: DailySummary) -> list[Table]:
    """The tables that are not empty."""
    figures = summary.figures
    day_tables = [
        Table(title="The last 14 days", unit="USD", rows=_days(summary)),
        Table(title="The day", rows=_day(summary)),
        Table(title="Budgets", unit="USD", rows=_budgets(summary), note=_BUDGETS_NOTE),
        Table(title="Tokens", rows=_tokens(figures)),
        Table(title="By deployment and model", unit="USD", rows=_models(figures)),
        Table(title="By caller", unit="USD", rows=_callers(figures)),
        Table(
            title="Most expensive sessions",
            unit="USD",
            rows=_amounts([(session.label, session.cost) for session in figures.costliest]),
            note=_sessions_note(figures.costliest),
        ),
    ]
    adjustments = Table(
        title="Earlier days, adjusted",
        unit="USD",
        rows=_amounts(
            [(short_date(adjustment.day), adjustment.difference) for adjustment in summary.adjustments], sign="+"
        ),
        note="Cost changes since the emails for these days were sent.",
    )
    return [table for table in [*(day_tables if figures.turns else []), adjustments] if table.rows]


def _sessions_note(costliest: Sequence[SessionCost]) -> str:
    note = "A label is the start of a session's reference, which GET api/sessions/ID shows beside the session's ID."
    if all(each.is_reference for each in costliest):
        return note
    return f"{note} Of sessions without one, it is the start of the SHA-256 hash of the ID."


def caller_name(caller: str) -> str:
    """A caller of limits, as the other tables name it."""
    return {TOTAL: "All callers together", ANONYMOUS: ANONYMOUS_CALLER}.get(caller) or clean(caller)


def model_name(model: tuple[str, str]) -> str:
    return clean(" · ".join(filter(None, model)))


def clean(name: str) -> str:
    """A name from outside this app, on one line and without control characters."""
    return " ".join("".join(character if character.isprintable() else " " for character in name).split())


def _days(summary: DailySummary) -> list[Row]:
    costs = [day.cost for day in summary.history]
    places, highest = _places(costs), max(costs) or 1
    return [
        Row(
            name=short_date(day.day),
            value=exact(day.cost, places),
            bar=max(round(100 * day.cost / highest), 1 if day.cost else 0),
            strong=day.day == summary.day,
        )
        for day in summary.history
    ]


def _day(summary: DailySummary) -> list[Row]:
    figures = summary.figures
    return _rows_with_value(
        ("Cost", f"${exact(figures.cost)}"),
        ("Average per turn", approximate(figures.cost_per_turn)),
        ("Average of the previous seven days", approximate(summary.week_average)),
        ("Month to date", f"${exact(summary.month_to_date)}"),
        ("Forecast for the month", approximate(summary.month_forecast) if summary.month_forecast else ""),
        ("Turns", f"{figures.turns:,}"),
        ("Sessions", f"{figures.sessions:,}"),
        ("Calls", f"{figures.calls:,}"),
        ("of which unaccounted", _count(figures.unaccounted)),
        ("their maximum cost, not included", f"${exact(figures.unaccounted_cost)}" if figures.unaccounted_cost else ""),
        ("of which stopped", _count(figures.stopped)),
        ("their minimum cost, not included", f"${exact(figures.stopped_at_least)}" if figures.stopped else ""),
        ("their maximum cost, not included", f"${exact(figures.stopped_at_most)}" if figures.stopped_at_most else ""),
        ("of which unpriced", _count(figures.unpriced)),
        ("of which failed", _count(figures.failed)),
        ("of which still open", _count(figures.open)),
    )


def _budgets(summary: DailySummary) -> list[Row]:
    """Costs beside budgets. Entries after the first MAX_ROWS are counted in one row."""
    budgets = summary.budgets or ()
    shown = budgets[:MAX_ROWS]
    places = _places(budget.cost for budget in shown)
    periods = {True: (short_date(summary.day), "day"), False: (f"{month_name(summary.day)} to date", "month")}
    rows = []
    for budget in shown:
        covered, period = periods[budget.name == PER_DAY]
        name, value = f"{caller_name(budget.caller)}, {covered}", exact(budget.cost, places)
        rows.append(Row(name=name, value=value, detail=f"{budget.percent}% of ${exact(budget.limit)} a {period}"))
    others = len(budgets) - len(shown)
    return [*rows, Row(name=f"{others} others", value="")] if others else rows


def _tokens(figures: Figures) -> list[Row]:
    usage = figures.usage
    if not usage.total_tokens:
        return []
    return _rows_with_value(
        ("Prompt", f"{usage.prompt_tokens:,}"),
        ("of which cached", f"{usage.cached_tokens:,}"),
        ("of which written to the cache", _count(usage.cache_write_tokens)),
        ("Completion", f"{usage.completion_tokens:,}"),
        ("of which reasoning", f"{usage.reasoning_tokens:,}"),
        ("Cache hit rate", f"{figures.cache_hit_rate:.1%}"),
        ("Saved by the cache", f"${exact(figures.saved)}" if figures.saved else ""),
    )


def _models(figures: Figures) -> list[Row]:
    return _breakdowns([(model_name(model), breakdown) for model, breakdown in figures.models.items()])


def _callers(figures: Figures) -> list[Row]:
    if set(figures.callers) <= {ANONYMOUS_CALLER}:
        return []
    return _breakdowns([(clean(caller), breakdown) for caller, breakdown in figures.callers.items()])


def _breakdowns(breakdowns: Iterable[tuple[str, UsageBreakdown]]) -> list[Row]:
    """Highest cost first. Entries after the first MAX_ROWS are added up in one row."""
    ranked = sorted(breakdowns, key=lambda named: (-named[1].cost, named[0]))
    if others := ranked[MAX_ROWS:]:
        rest = reduce(UsageBreakdown.plus, (breakdown for _, breakdown in others))
        ranked = [*ranked[:MAX_ROWS], (f"{len(others)} others", rest)]
    places = _places(breakdown.cost for _, breakdown in ranked)
    return [
        Row(
            name=name,
            value="unknown" if breakdown.unpriced_turns and not breakdown.cost else exact(breakdown.cost, places),
            detail=f"{pluralize(breakdown.calls, 'call')}, {breakdown.prompt_tokens:,} prompt and"
            f" {breakdown.completion_tokens:,} completion tokens",
        )
        for name, breakdown in ranked
    ]


def _amounts(amounts: Sequence[tuple[str, Decimal]], sign: str = "") -> list[Row]:
    places = _places(amount for _, amount in amounts)
    return [Row(name=name, value=exact(amount, places, sign)) for name, amount in amounts]


def _places(amounts: Iterable[Decimal]) -> int:
    return max((2, *map(decimals, amounts)))


def _count(count: int) -> str:
    return f"{count:,}" if count else ""


def _rows_with_value(*rows: tuple[str, str]) -> list[Row]:
    """The rows that have a value. A row whose name starts in lower case is part of the row above."""
    return [Row(name=name, value=value, part=name[0].islower()) for name, value in rows if value]
