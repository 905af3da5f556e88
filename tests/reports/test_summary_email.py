"""The summary email: its content, and the escaping of names from outside this app."""

import re
from dataclasses import replace
from datetime import date, timedelta
from decimal import Decimal
from html.parser import HTMLParser
from typing import Any

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from shared.domain.budget_costs import BudgetCost
from shared.domain.calls import Usage
from shared.domain.daily import Adjustment, DailySummary, DayCost, Figures, SessionCost, UsageBreakdown
from shared.domain.hashing import sha256_hex
from shared.domain.limits import PER_DAY, PER_MONTH
from shared.reports.summary_email import WIDTH, SummaryEmail, summary_email
from shared.reports.wording import approximate, change, dollars, exact

DAY = date(2026, 11, 20)
VOID, INLINE = {"meta", "br"}, {"strong", "span"}
IDS = [f"session-{n}" for n in range(10)]
CHAT, FAST = ("chat", "gpt-5.4-mini-2026-03-17"), ("fast", "gpt-5.6-luna")


def summary(cost: str = "12.3370315", before: str = "11.421844", **changes: Any) -> DailySummary:
    """A typical day. `changes` replace some of its figures."""
    figures = Figures(
        usage=Usage(prompt_tokens=1_000_000, cached_tokens=640_000, completion_tokens=90_210, reasoning_tokens=12_345),
        cost=Decimal(cost),
        saved=Decimal("0.0004321"),
        sessions=310,
        turns=2_120,
        calls=2_204,
        models={
            CHAT: UsageBreakdown(cost=Decimal(cost), calls=2_204, prompt_tokens=1_000_000, completion_tokens=90_210)
        },
        callers={
            "(no key)": UsageBreakdown(
                cost=Decimal(cost), calls=2_204, prompt_tokens=1_000_000, completion_tokens=90_210
            )
        },
        costliest=tuple(
            SessionCost(cost=Decimal(9 - n).scaleb(-3), session=name, is_reference=False)
            for n, name in enumerate(IDS[:9])
        ),
    )
    costs = [*(Decimal(n).scaleb(-1) for n in range(12)), Decimal(before), Decimal(cost)]
    history = tuple(DayCost(day=DAY - timedelta(days=13 - n), cost=cost) for n, cost in enumerate(costs))
    figures = replace(figures, **changes)
    return DailySummary(day=DAY, final=True, figures=figures, history=history, month_to_date=Decimal("214.5012345"))


def quiet(before: str = "0") -> DailySummary:
    day = summary("0", before)
    return replace(day, figures=Figures())


class Document(HTMLParser):
    """Reads HTML as strictly as XML: every element must be closed, in the right order."""

    def __init__(self, html: str) -> None:
        super().__init__()
        self.tags: set[str] = set()
        self.attributes: set[str] = set()
        self.text = ""
        self.rows: list[list[str]] = []  # the cells of each table row; <br> becomes a newline
        self._open: list[str] = []
        self._rows: list[list[str]] = []  # rows that are still open
        self.feed(html)
        self.close()
        assert not self._open

    def handle_starttag(self, tag: str, attrs: list[tuple[str, str | None]]) -> None:
        self.tags.add(tag)
        self.attributes |= {f"{name}={value}" for name, value in attrs}
        if tag not in VOID:
            self._open.append(tag)
        if tag == "tr":
            self._rows.append([])
            self.rows.append(self._rows[-1])
        elif tag == "td":
            self._rows[-1].append("")
        elif tag == "br":
            self.handle_data("\n")

    def handle_endtag(self, tag: str) -> None:
        assert self._open.pop() == tag
        if tag == "tr":
            self._rows.pop()

    def handle_data(self, data: str) -> None:
        self.text += data
        if next((tag for tag in reversed(self._open) if tag not in INLINE), "") == "td":
            self._rows[-1][-1] += data


def html_of(email: SummaryEmail) -> str:
    """The text of the HTML body, on one line."""
    return " ".join(Document(email.html).text.split())


def text_of(email: SummaryEmail) -> str:
    """The plain text body, on one line."""
    return " ".join(email.text.split())


@pytest.mark.parametrize(
    ("cost", "before", "expected"),
    [
        ("12.337", "11.42", "$12.34 (+8% from the day before)"),
        ("1.5", "3", "$1.50 (-50% from the day before)"),
        ("12.337", "12.337", "$12.34 (unchanged from the day before)"),
        ("12.337", "12.336", "$12.34 (+0% from the day before)"),
        ("3", "0", "$3.00 ($0.00 the day before)"),
        ("0", "3", "$0.00 (-100% from the day before)"),
        ("0.001", "3", "less than $0.01 (-99% from the day before)"),
        ("0", "0", "$0.00 (unchanged from the day before)"),
        ("1234.5", "1", "$1,234.50 (1,234 times the day before)"),
    ],
)
def test_subject_has_the_cost_and_its_change(cost: str, before: str, expected: str) -> None:
    assert summary_email(summary(cost, before)).subject == f"Chat cost 2026-11-20: {expected}"


def test_subject_of_a_day_without_turns() -> None:
    assert summary_email(quiet("3")).subject == "Chat cost 2026-11-20: no turns"


def test_subject_mentions_unpriced_calls() -> None:
    email = summary_email(summary("0", "3", unpriced=2))
    assert email.subject == "Chat cost 2026-11-20: $0.00 and 2 unpriced calls (-100% from the day before)"


@pytest.mark.parametrize(
    ("amount", "prose", "average", "table"),
    [
        ("0", "$0.00", "about $0.00", "0.00"),
        ("0E-9", "$0.00", "about $0.00", "0.00"),
        ("1E-12", "less than $0.01", "about $0.000000000001000", "0.000000000001"),
        ("0.0099", "less than $0.01", "about $0.009900", "0.0099"),
        ("0.01", "$0.01", "about $0.01000", "0.01"),
        ("1E+3", "$1,000.00", "about $1000.00", "1000.00"),
        ("1234567.8901234567890123456789", "$1,234,567.89", "about $1234567.89", "1234567.8901234567890123456789"),
        ("0.12340000", "$0.12", "about $0.1234", "0.1234"),
    ],
)
def test_amount_is_rounded_to_the_cent_in_sentences_and_exact_in_tables(
    amount: str, prose: str, average: str, table: str
) -> None:
    assert dollars(Decimal(amount)) == prose
    assert approximate(Decimal(amount)) == average
    assert exact(Decimal(amount)) == table


@given(st.decimals(0, 10**9, allow_nan=False, places=None), st.integers(0, 20))
def test_exact_amount_has_plain_digits_and_the_same_value(amount: Decimal, places: int) -> None:
    assert re.fullmatch(r"[0-9]+\.[0-9]{2,}", exact(amount, max(2, places)))
    assert Decimal(exact(amount, places)) == amount


@given(st.decimals(0, 10**6, places=9), st.decimals(0, 10**6, places=9))
def test_change_has_the_right_sign(cost: Decimal, before: Decimal) -> None:
    text = change(cost, before)
    assert ("-100%" in text) == (cost == 0 < before)
    if "%" in text:
        assert text.startswith("-" if cost < before * Decimal("0.99") else ("+", "-"))
        assert cost <= before * Decimal("1.01") or not text.startswith(("-", "+0"))


def test_text_and_html_contain_every_figure() -> None:
    models = {
        CHAT: UsageBreakdown(cost=Decimal("11.5"), calls=2_000, prompt_tokens=900_000, completion_tokens=80_000),
        FAST: UsageBreakdown(cost=Decimal("0.8370315"), calls=204, prompt_tokens=100_000, completion_tokens=10_210),
    }
    callers = {"desk": models[CHAT], "(no key)": models[FAST]}
    day = summary(models=models, callers=callers, failed=4, unaccounted=3, unaccounted_cost=Decimal("0.4212"), open=7)
    at_least, at_most = Decimal("0.0312"), Decimal("0.6543")
    figures = replace(day.figures, stopped=5, stopped_at_least=at_least, stopped_at_most=at_most)
    adjustment = Adjustment(day=DAY - timedelta(days=2), difference=Decimal("-0.0123"), cost=Decimal(1))
    email = summary_email(replace(day, figures=figures, adjustments=(adjustment,)))
    for body in (text_of(email), html_of(email)):
        for part in [
            "That is 8% more than the day before ($11.42), for 2,120 turns in 310 sessions.",
            "The average of the previous seven days is $2.36 a day; the month to date is $214.50.",
            "3 calls may have been billed, but no usage was reported",
            "The maximum cost is $0.42; the cost above does not include it.",
            "Stopped: 5 calls ended on request before the end of the answer, and no usage was reported.",
            "The minimum cost is $0.03. The maximum cost is $0.65; the cost above does not include it.",
            "Failed: 4 calls, not billed.",
            "Open: 7 calls still running or waiting for recovery.",
            "chat · gpt-5.4-mini-2026-03-17",
            "2,000 calls, 900,000 prompt and 80,000 completion tokens",
            "204 calls, 100,000 prompt and 10,210 completion tokens",
        ]:
            assert part in body
    shown = [
        ("Cost", "$12.3370315"),
        ("Average per turn", "about $0.005819"),
        ("Average of the previous seven days", "about $2.36"),
        ("Month to date", "$214.5012345"),
        ("Turns", "2,120"),
        ("Sessions", "310"),
        ("Calls", "2,204"),
        ("of which unaccounted", "3"),
        ("their maximum cost, not included", "$0.4212"),
        ("of which stopped", "5"),
        ("their minimum cost, not included", "$0.0312"),
        ("their maximum cost, not included", "$0.6543"),
        ("of which failed", "4"),
        ("of which still open", "7"),
        ("Prompt", "1,000,000"),
        ("of which cached", "640,000"),
        ("Completion", "90,210"),
        ("of which reasoning", "12,345"),
        ("Cache hit rate", "64.0%"),
        ("Saved by the cache", "$0.0004321"),
        ("desk", "11.5000000"),
        ("(no key)", "0.8370315"),
        ("Wed 18 Nov", "-0.0123"),
    ]
    rows = [(row[0].split("\n")[0], row[-1]) for row in Document(email.html).rows if row]
    for name, value in shown:
        assert (name, value) in rows
        assert re.search(rf"^ *{re.escape(name)}  +{re.escape(value)}$", email.text, re.MULTILINE)


def test_bar_length_is_proportional_to_the_cost_of_the_day() -> None:
    email = summary_email(summary("12", "6"))
    assert re.search(r"^Fri 20 Nov  █{40} +12\.00$", email.text, re.MULTILINE)
    assert re.search(r"^Thu 19 Nov  █{20} +6\.00$", email.text, re.MULTILINE)
    assert re.search(r"^Sat  7 Nov +0\.00$", email.text, re.MULTILINE)
    days = [row for row in Document(email.html).rows if re.match(r"[A-Z][a-z]{2} +\d+ Nov$", (row or [""])[0])]
    assert len(days) == 14
    widths = re.findall(r'width="(\d+)%" cellspacing="0" cellpadding="0" border="0"><tr><td bgcolor', email.html)
    assert widths[-2:] == ["50", "100"]


def test_most_expensive_sessions_are_shown_as_labels_never_as_ids() -> None:
    references = tuple(SessionCost(cost=Decimal(n + 1), session=sha256_hex(f"{n}")[:32]) for n in range(3))
    old = summary().figures.costliest
    for costliest in (references, old, references + old):
        email = summary_email(summary(costliest=costliest))
        for body in (email.text, email.html):
            assert not any(name in body for name in IDS)
            assert all(session.label in body for session in costliest)
        assert ("SHA-256 hash of the ID" in text_of(email)) == (costliest != references)
    assert all(re.search(rf"^{each.session[:12]} ", email.text, re.MULTILINE) for each in references)


def budget(caller: str, name: str, cost: str, limit: str, before: str = "0") -> BudgetCost:
    return BudgetCost(caller=caller, name=name, limit=Decimal(limit), cost=Decimal(cost), before=Decimal(before))


def test_month_forecast_is_in_the_lead_and_the_table() -> None:
    email = summary_email(replace(summary(), month_forecast=Decimal("321.7518517500")))
    for body in (text_of(email), html_of(email)):
        assert "the month to date is $214.50. At this rate, November will cost about $321.75." in body
    assert re.search(r"^Forecast for the month +about \$321\.75$", email.text, re.MULTILINE)


@pytest.mark.parametrize(
    "day",
    [
        replace(quiet("3"), month_forecast=Decimal(300)),  # no cost on the day
        summary(),  # no cost in the month
        replace(summary(), month_forecast=summary().month_to_date),  # its last day
    ],
)
def test_month_forecast_is_not_in_the_lead_without_a_cost_or_when_the_month_is_over(day: DailySummary) -> None:
    assert "At this rate" not in text_of(summary_email(day))


def test_costs_are_shown_beside_budgets() -> None:
    budgets = (
        budget("total", PER_DAY, "12.3370315", "20"),
        budget("total", PER_MONTH, "214.5012345", "255", before="202.1642030"),
        budget("key:desk", PER_DAY, "5.05", "5"),
        budget("anonymous", PER_MONTH, "8.9", "10", before="8.5"),
    )
    email = summary_email(replace(summary(), budgets=budgets))
    rows = [row for row in Document(email.html).rows if len(row) == 2]
    for shown in [
        ["All callers together, Fri 20 Nov\n61% of $20.00 a day", "12.3370315"],
        ["All callers together, November to date\n84% of $255.00 a month", "214.5012345"],
        ["key:desk, Fri 20 Nov\n101% of $5.00 a day", "5.0500000"],
        ["(no key), November to date\n89% of $10.00 a month", "8.9000000"],
    ]:
        assert shown in rows
    for body in (text_of(email), html_of(email)):
        assert "Budgets: All callers together reached 80% of the monthly budget; key:desk reached 100% of" in body
        assert "the budgets that LIMITS sets now" in body


@pytest.mark.parametrize("budgets", [None, ()])
def test_email_without_budgets_does_not_mention_them(budgets: tuple[BudgetCost, ...] | None) -> None:
    email = summary_email(replace(summary(), budgets=budgets))
    for body in (email.text.upper(), email.html.upper()):
        assert "BUDGET" not in body
        assert "LIMITS" not in body


def test_budgets_beyond_the_maximum_are_counted() -> None:
    budgets = tuple(budget(f"key:c{n}", PER_DAY, "9", "10") for n in range(23))
    email = summary_email(replace(summary(), budgets=budgets))
    assert "key:c19, Fri 20 Nov" in email.text
    assert "key:c20" not in email.text
    assert re.search(r"^3 others$", email.text, re.MULTILINE)
    assert "key:c19 reached 80% of the daily budget; 3 more budgets." in text_of(email)


def test_names_from_outside_are_escaped() -> None:
    hostile_name, breakdown = "<script>alert(1)</script>&\r\n\u202e", UsageBreakdown(cost=Decimal(1), calls=1)
    day = summary(models={("chat", hostile_name): breakdown}, callers={hostile_name: breakdown})
    email = summary_email(replace(day, budgets=(budget(hostile_name, PER_DAY, "1", "1"),)))
    assert "script" not in Document(email.html).tags
    assert html_of(email).count("<script>alert(1)</script>&") == 4
    assert email.text.count("<script>alert(1)</script>&") == 4
    assert "\u202e" not in email.text + email.html


def test_unpriced_model_is_named_together_with_the_prices_setting() -> None:
    breakdown = UsageBreakdown(cost=Decimal(0), calls=5, unpriced_turns=5, prompt_tokens=10)
    email = summary_email(summary(unpriced=5, models={**summary().figures.models, ("lab", "unpriced"): breakdown}))
    for body in (text_of(email), html_of(email)):
        assert (
            "Unpriced: 5 calls not included in the cost above, because the price of lab · unpriced is unknown." in body
        )
        assert "PRICES" in body
    assert re.search(r"^lab · unpriced +unknown$", email.text, re.MULTILINE)


def test_model_that_costs_nothing_is_not_listed_as_unpriced() -> None:
    free = UsageBreakdown(cost=Decimal(0), calls=9)
    unpriced = UsageBreakdown(cost=Decimal(0), calls=5, unpriced_turns=5)
    models = {**summary().figures.models, ("lab", "free"): free, ("lab", "unpriced"): unpriced}
    email = summary_email(summary(unpriced=5, models=models))
    assert "because the price of lab · unpriced is unknown" in text_of(email)
    assert re.search(r"^lab · free +0\.0000000$", email.text, re.MULTILINE)


def test_unaccounted_call_without_a_price_has_no_maximum_cost() -> None:
    email = summary_email(summary(unaccounted=1, unbounded=1))
    assert "The maximum cost is unknown, because the price is unknown;" in text_of(email)
    assert "their maximum cost" not in email.text


def test_unaccounted_calls_with_and_without_a_price_are_listed_separately() -> None:
    email = summary_email(summary(unaccounted=3, unaccounted_cost=Decimal("0.42"), unbounded=1))
    assert "The maximum cost is $0.42, plus 1 call at an unknown price;" in text_of(email)


def test_stopped_call_without_a_price_has_no_maximum_cost() -> None:
    email = summary_email(summary(stopped=1, stopped_unbounded=1))
    assert "The minimum cost is $0.00. The maximum cost is unknown, because the price is unknown;" in text_of(email)
    email = summary_email(summary(stopped=3, stopped_at_most=Decimal("0.42"), stopped_unbounded=1))
    assert "The maximum cost is $0.42, plus 1 call at an unknown price;" in text_of(email)


def test_empty_notices_and_tables_are_omitted() -> None:
    email = summary_email(summary(costliest=(), saved=Decimal(0)))
    for body in (email.text.upper(), email.html.upper()):
        for part in (
            "UNACCOUNTED",
            "STOPPED",
            "UNPRICED",
            "FAILED",
            "OPEN:",
            "STILL OPEN",
            "NOT FINAL",
            "BY CALLER",
            "ADJUSTED",
        ):
            assert part not in body
        assert "EXPENSIVE" not in body
        assert "SAVED" not in body


def test_day_without_turns_gets_a_short_email() -> None:
    email = summary_email(quiet("3.456"))
    for body in (text_of(email), html_of(email)):
        assert "There were no turns, so the cost is zero. The day before cost $3.46." in body
        assert "the month to date is $214.50" in body
    assert len(email.text.splitlines()) < 15
    assert "0.00" not in email.text


def test_day_without_turns_still_lists_adjustments() -> None:
    adjustment = Adjustment(day=DAY - timedelta(days=3), difference=Decimal("0.5"), cost=Decimal(1))
    email = summary_email(replace(quiet(), adjustments=(adjustment,)))
    assert re.search(r"^Tue 17 Nov +\+0\.50$", email.text, re.MULTILINE)


def test_day_that_is_not_final_has_a_notice() -> None:
    email = summary_email(replace(summary(), final=False))
    assert "Not final: The figures of this day may still change." in text_of(email)


def test_callers_beyond_the_maximum_are_added_up_in_the_last_row() -> None:
    callers = {f"caller-{n:02}": UsageBreakdown(cost=Decimal(n).scaleb(-3), calls=n) for n in range(1, 51)}
    email = summary_email(summary(callers=callers))
    assert re.search(r"^caller-50 +0\.050$", email.text, re.MULTILINE)
    assert "caller-30\n" not in email.text
    rest = sum(range(1, 31))
    assert re.search(rf"^30 others +0\.{rest}\n  {rest} calls", email.text, re.MULTILINE)


def test_html_is_a_complete_document_without_external_resources() -> None:
    html = summary_email(summary(unaccounted=3, failed=1)).html
    document = Document(html)
    assert html.startswith("<!doctype html>")
    assert {"html", "head", "title", "body"} <= document.tags
    assert not {"script", "style", "link", "img", "a", "iframe", "form"} & document.tags
    assert not [attribute for attribute in document.attributes if re.match("on|src|href|class", attribute)]
    assert "url(" not in html
    assert "http" not in html
    assert len(html) < 60_000  # Gmail truncates an email at 102 KB


names = st.text(st.characters(codec="utf-8"), max_size=100)
costs = st.decimals(0, 10**6, places=10)
breakdowns = st.builds(
    UsageBreakdown,
    cost=costs,
    calls=st.integers(0, 10**9),
    unpriced_turns=st.integers(0, 10**9),
    prompt_tokens=st.integers(0, 10**12),
    completion_tokens=st.integers(0, 10**12),
)
counts = st.integers(0, 10**6)
budgets = st.none() | st.lists(
    st.builds(
        BudgetCost,
        caller=names | st.sampled_from(["total", "anonymous"]),
        name=st.sampled_from([PER_DAY, PER_MONTH]),
        limit=costs,
        cost=costs,
        before=costs,
    ),
    max_size=30,
).map(tuple)
figures = st.builds(
    Figures,
    usage=st.builds(Usage, prompt_tokens=st.integers(0, 10**12), completion_tokens=st.integers(0, 10**12)),
    cost=costs,
    saved=costs,
    turns=counts,
    unaccounted=counts,
    unaccounted_cost=costs,
    stopped=counts,
    stopped_at_least=costs,
    stopped_at_most=costs,
    stopped_unbounded=counts,
    unpriced=counts,
    failed=counts,
    open=counts,
    models=st.dictionaries(st.tuples(names, names), breakdowns, max_size=3),
    callers=st.dictionaries(names, breakdowns, max_size=3),
    costliest=st.lists(st.builds(SessionCost, cost=costs, session=names, is_reference=st.booleans()), max_size=3).map(
        tuple
    ),
)


@settings(deadline=None, max_examples=100)
@given(figures, st.lists(costs, min_size=14, max_size=14), st.none() | costs, budgets)
def test_random_figures_never_break_the_email(
    figures: Figures,
    history: list[Decimal],
    forecast: Decimal | None,
    budgets: tuple[BudgetCost, ...] | None,
) -> None:
    day = replace(
        summary(),
        figures=figures,
        month_forecast=forecast,
        budgets=budgets,
        history=tuple(DayCost(day=DAY - timedelta(days=13 - n), cost=cost) for n, cost in enumerate(history)),
    )
    email = summary_email(day)
    assert max(map(len, email.text.splitlines())) <= WIDTH
    assert email.subject.isprintable()
    values = [row[-1] for row in Document(email.html).rows if row]
    exact_amounts = {Decimal(value.lstrip("$")) for value in values if re.fullmatch(r"\$?[0-9]+\.[0-9]{2,}", value)}
    if figures.turns:
        assert {figures.cost, *history, *(session.cost for session in figures.costliest)} <= exact_amounts
    else:
        assert not exact_amounts
