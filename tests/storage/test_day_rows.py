"""Days stored by earlier versions are read correctly."""

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
    """The day's row as storage returns it. `changed`: fields of its figures to replace; None removes one."""
    row = stored(from_day(day))
    figures = json.loads(row["figures"]) | changed
    row["figures"] = json.dumps({name: value for name, value in figures.items() if value is not None})
    return row


def test_day_stored_without_unpriced_turns_uses_its_unpriced_calls() -> None:
    """In those versions each turn had one call."""
    assert to_day(row_of(DAY, unpriced_turns=None)) == DAY


def test_unpriced_calls_and_unpriced_turns_are_separate_figures() -> None:
    figures = to_day(row_of(replace(DAY, figures=replace(DAY.figures, unpriced=3)))).figures
    assert (figures.unpriced, figures.unpriced_turns) == (3, 2)


def test_day_stored_without_unbounded_calls_has_zero() -> None:
    assert to_day(row_of(DAY, unbounded=None)).figures.unbounded == 0


def test_stored_names_match_existing_rows() -> None:
    row = row_of(DAY)
    assert row["told"] == "1.50"
    figures = json.loads(row["figures"])
    assert [breakdown[-1]["unpriced"] for breakdown in (*figures["models"], *figures["callers"])] == [2, 2]
