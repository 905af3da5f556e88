"""The daily summary as an email: subject, plain text and HTML.

Both bodies have the same content; the templates only lay it out. The HTML uses neither images nor style sheets, because
mail clients block them; browsers get the same document. Jinja is imported on first use, because only this module needs
it.
"""

import textwrap
from collections.abc import Sequence
from dataclasses import dataclass
from decimal import Decimal
from functools import cache
from pathlib import Path
from typing import TYPE_CHECKING

from shared.domain.budget_costs import BudgetCost
from shared.domain.daily import DailySummary, Figures
from shared.domain.limits import PER_DAY, PER_MONTH
from shared.reports.tables import MAX_ROWS, Row, caller_name, model_name, tables
from shared.reports.wording import change, change_in_words, dollars, month_name, pluralize

if TYPE_CHECKING:
    from jinja2 import Environment

WIDTH = 72  # columns of the plain text
BAR = 40  # columns of the longest bar
_PERIODS = {PER_DAY: "daily", PER_MONTH: "monthly"}


@dataclass(frozen=True, slots=True, kw_only=True)
class SummaryEmail:
    subject: str
    text: str
    html: str


def summary_email(summary: DailySummary) -> SummaryEmail:
    figures = summary.figures
    content = {
        "title": f"Chat cost, {summary.day:%A} {summary.day.day} {summary.day:%B %Y}",
        "headline": dollars(figures.cost) if figures.turns else "No turns",
        "lead": _lead(summary),
        "notices": _notices(summary),
        "tables": tables(summary),
        "note": f"Days are UTC days. The same figures as JSON: GET api/usage/daily/{summary.day}.",
    }
    text, html = (_templates().get_template(name).render(content) for name in ("summary.txt", "summary.html"))
    return SummaryEmail(subject=_subject(summary), text=text, html=html)


def _subject(summary: DailySummary) -> str:
    start, figures = f"Chat cost {summary.day}:", summary.figures
    if not figures.turns:
        return f"{start} no turns"
    unpriced = f" and {pluralize(figures.unpriced, 'unpriced call')}" if figures.unpriced else ""
    return f"{start} {dollars(figures.cost)}{unpriced} ({change(figures.cost, summary.day_before)})"


def _lead(summary: DailySummary) -> str:
    figures = summary.figures
    if figures.turns:
        compared = change_in_words(figures.cost, summary.day_before)
        turns = f"{pluralize(figures.turns, 'turn')} in {pluralize(figures.sessions, 'session')}"
        day = f"That is {compared}, for {turns}."
    else:
        day = f"There were no turns, so the cost is zero. The day before cost {dollars(summary.day_before)}."
    return (
        f"{day} The average of the previous seven days is {dollars(summary.week_average)} a day;"
        f" the month to date is {dollars(summary.month_to_date)}.{_forecast(summary)}"
    )


def _forecast(summary: DailySummary) -> str:
    forecast = summary.month_forecast
    if not summary.figures.cost or forecast is None or forecast == summary.month_to_date:  # the month is over
        return ""
    return f" At this rate, {month_name(summary.day)} will cost about {dollars(forecast)}."


def _notices(summary: DailySummary) -> list[tuple[str, str]]:
    """What the reader should know or do: a heading and a text each."""
    figures = summary.figures
    notices = [
        ("Not final", "" if summary.final else "The figures of this day may still change."),
        ("Budgets", _reached(summary.budgets or ())),
        ("Unaccounted", _unaccounted(figures) if figures.unaccounted else ""),
        ("Stopped", _stopped(figures) if figures.stopped else ""),
        ("Unpriced", _unpriced(figures) if figures.unpriced else ""),
        ("Failed", f"{pluralize(figures.failed, 'call')}, not billed." if figures.failed else ""),
        ("Open", f"{pluralize(figures.open, 'call')} still running or waiting for recovery." if figures.open else ""),
    ]
    return [(heading, text) for heading, text in notices if text]


def _reached(budgets: Sequence[BudgetCost]) -> str:
    """The budgets of which 80 or 100 % was reached on this day."""
    texts = [
        f"{caller_name(each.caller)} reached {each.reached}% of the {_PERIODS[each.name]} budget"
        for each in budgets
        if each.reached
    ]
    if others := texts[MAX_ROWS:]:
        texts = [*texts[:MAX_ROWS], pluralize(len(others), "more budget")]
    return "; ".join(texts) + "." if texts else ""


def _unaccounted(figures: Figures) -> str:
    maximum = _maximum(figures.unaccounted_cost, figures.unaccounted, figures.unbounded)
    return (
        f"{pluralize(figures.unaccounted, 'call')} may have been billed, but no usage was reported (timeout,"
        f" crash or content filter). The maximum cost is {maximum}; the cost above does not include it."
    )


def _stopped(figures: Figures) -> str:
    """Those whose usage is known are part of the cost."""
    maximum = _maximum(figures.stopped_at_most, figures.stopped, figures.stopped_unbounded)
    return (
        f"{pluralize(figures.stopped, 'call')} ended on request before the end of the answer, and no usage was"
        f" reported. The minimum cost is {dollars(figures.stopped_at_least)}. The maximum cost is {maximum}; the cost"
        " above does not include it."
    )


def _maximum(bounded: Decimal, calls: int, unbounded: int) -> str:
    """`bounded`: USD, the worst case of the calls whose price is known."""
    if unbounded == calls:
        return "unknown, because the price is unknown"
    others = f", plus {pluralize(unbounded, 'call')} at an unknown price" if unbounded else ""
    return dollars(bounded) + others


def _unpriced(figures: Figures) -> str:
    names = ", ".join(sorted(model_name(model) for model, each in figures.models.items() if each.unpriced_turns))
    return (
        f"{pluralize(figures.unpriced, 'call')} not included in the cost above, because the price of {names} is"
        " unknown. Set it in PRICES, by deployment or by model, in USD per 1M tokens."
    )


def _columns(row: Row) -> str:
    """A row as plain text: the name on the left, the value on the right, the detail below."""
    name = row.name if row.bar is None else f"{row.name}  {'█' * -(-row.bar * BAR // 100)}"
    name_width = WIDTH - 2 - len(row.value)
    indent = "  " if row.part else ""
    *above, last = textwrap.wrap(name, name_width, initial_indent=indent, subsequent_indent=indent) or [""]
    below = textwrap.wrap(row.detail, WIDTH, initial_indent="  ", subsequent_indent="  ")
    return "\n".join([*above, f"{last:<{name_width}}  {row.value}".rstrip(), *below])


@cache
def _templates() -> "Environment":
    from jinja2 import Environment, FileSystemLoader, StrictUndefined, select_autoescape

    environment = Environment(
        loader=FileSystemLoader(Path(__file__).with_name("templates")),
        autoescape=select_autoescape(["html"]),
        undefined=StrictUndefined,
        trim_blocks=True,
        lstrip_blocks=True,
    )
    environment.filters["columns"] = _columns
    environment.globals["width"] = WIDTH
    return environment
