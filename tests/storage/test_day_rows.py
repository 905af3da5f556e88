"""Days that are in the table already are read as what they were."""

import json
from dataclasses import replace
from datetime import date
from decimal import Decimal
from typing import Any

from shared.domain.daily import Day, Figures, UsageBreakdown
from shared.storage.day_rows import from_day, to_day
from tests.storage.strategies import stored

DAY = Day(
    day=date(2026, 2, 28),
    figures=Figures(
        calls=5,
        unpriced=2,
        unpriced_turns=2,
        models={("chat", ""): UsageBreakdown(calls=5, unpriced_turns=2)},
        callers={"web": UsageBreakdown(calls=5, unpriced_turns=2)},
    ),
    final=True,
    mailed_cost=Decimal("1.50"),
)


def row_of(day: Day, **changed: Any) -> dict[str, Any]:
    """As storage gives it back. `changed`: figures; None for one that is absent."""
    row = stored(from_day(day))
    figures = json.loads(row["figures"]) | changed
    row["figures"] = json.dumps({name: value for name, value in figures.items() if value is not None})
    return row


def test_a_day_that_was_stored_without_unpriced_turns_has_its_unpriced_calls_as_such() -> None:
    """Each turn was one call then."""
    assert to_day(row_of(DAY, unpriced_turns=None)) == DAY


def test_calls_and_turns_without_a_price_are_two_figures() -> None:
    figures = to_day(row_of(replace(DAY, figures=replace(DAY.figures, unpriced=3)))).figures
    assert (figures.unpriced, figures.unpriced_turns) == (3, 2)


def test_a_day_that_was_stored_without_unbounded_calls_has_none() -> None:
    assert to_day(row_of(DAY, unbounded=None)).figures.unbounded == 0


def test_stored_names_are_those_of_rows_that_exist() -> None:
    row = row_of(DAY)
    assert row["told"] == "1.50"
    figures = json.loads(row["figures"])
    assert [breakdown[-1]["unpriced"] for breakdown in (*figures["models"], *figures["callers"])] == [2, 2]
