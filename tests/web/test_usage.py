"""The usage routes over HTTP: one day as JSON and as a page, date ranges, manual sending, authentication."""

import asyncio
from collections.abc import AsyncIterator
from dataclasses import replace
from datetime import UTC, date, datetime, time, timedelta
from decimal import Decimal
from email import message_from_bytes, policy
from email.message import EmailMessage
from functools import partial
from pathlib import Path
from typing import Any

import httpx
import pytest

from local.keys import line, new_key
from shared.domain.calls import LedgerEntry, State, Usage
from shared.domain.daily import Adjustment, Day, Figures
from shared.services import services
from shared.storage.days import Days
from tests.conftest import FUNCTION_KEY, Serve, Tables
from tests.support.azure_openai import AzureOpenAI
from tests.support.chat_client import answer, closed_ledger, exact, get_json, ok_json, until
from tests.support.clock import ManualClock
from tests.support.ledger_rows import RATES, WORST_CASE, entry, entry_costing, still_running, write, write_quiet_days

KEY = new_key()
MONDAY = date(2024, 3, 11)
DAY = timedelta(days=1)
ROUTE = f"/api/usage/daily/{MONDAY}"
RECIPIENTS = ["ann@example.com", "bob@example.com"]
CHEAP = "0.000000000000000001"  # more digits than a float has


@pytest.fixture
def outbox(tmp_path: Path) -> Path:
    return tmp_path / "outbox"


@pytest.fixture
def environ(environ: dict[str, str], outbox: Path) -> dict[str, str]:
    mail_settings = {"OUTBOX_DIR": str(outbox), "SUMMARY_RECIPIENTS": ", ".join(RECIPIENTS)}
    return environ | mail_settings | {"USAGE_KEYS": line("ann", KEY), "CLIENT_KEYS": line("ann", KEY)}


@pytest.fixture
async def api(serve: Serve, environ: dict[str, str]) -> AsyncIterator[httpx.AsyncClient]:
    async with serve(environ) as client:
        client.headers["api-key"] = KEY
        yield client


@pytest.fixture
async def quiet_month(api: httpx.AsyncClient) -> None:
    """Store empty earlier days, so that a day's summary does not have to compute them."""
    await write_quiet_days(days(), MONDAY)


def days() -> Days:
    """The daily table of the running app."""
    return Days(services()._table("daily"))


def emails(outbox: Path) -> dict[str, EmailMessage]:
    """Operation ID -> email."""
    return {
        file.stem: message_from_bytes(file.read_bytes(), EmailMessage, policy=policy.SMTP)
        for file in outbox.glob("*.eml")
    }


def error_of(response: httpx.Response, status: int) -> dict[str, Any]:
    assert response.status_code == status, response.text
    error: dict[str, Any] = response.json()["error"]
    return error


# One day as JSON


@pytest.mark.usefixtures("quiet_month")
async def test_day_contains_adjustments_sent_in_its_email(api: httpx.AsyncClient) -> None:
    adjustment = Adjustment(day=MONDAY - DAY, difference=Decimal("0.10"), cost=Decimal("0.30"))
    await days().put(Day(day=MONDAY, figures=Figures(), final=True, adjustments=(adjustment,)))

    summary = await get_json(api, ROUTE)

    assert summary["adjustments"] == [
        {"date": str(MONDAY - DAY), "difference_usd": Decimal("0.10"), "cost_usd": Decimal("0.30")}
    ]


async def test_day_adds_up_all_its_ledger_rows(api: httpx.AsyncClient, tables: Tables) -> None:
    yesterday = MONDAY - DAY
    stopped = entry(MONDAY, "other", 2, state=State.STOPPED)
    rows: list[LedgerEntry] = [
        entry(MONDAY, "trip", 1, prompt=1000, cached=600, completion=100, reasoning=40, caller="web"),
        entry(MONDAY, "trip", 2, prompt=2000, cached=1000, completion=50, caller="web"),
        entry(MONDAY, "other", 1, state=State.FAILED),
        entry(MONDAY, "other", 1, state=State.UNACCOUNTED),
        replace(stopped, call=replace(stopped.call, at_least=Decimal("0.001"))),
        entry(MONDAY, None, prompt=10, completion=0, rates=None, deployment="large", model="unheard-of"),
        entry(MONDAY, "fenced", 1, state=State.ABANDONED),
        entry_costing(MONDAY, "0.1"),
        entry_costing(yesterday, "0.2"),
        entry_costing(date(2024, 3, 1), "0.05"),
        entry_costing(date(2024, 2, 29), "0.01"),
    ]
    await write(tables.usage, rows)
    trip = cost_of(400, 600, 100) + cost_of(1000, 1000, 50)
    saved = 1600 * (RATES.input - RATES.cached_input) / 1_000_000
    cost = trip + Decimal("0.1")

    summary = await get_json(api, ROUTE)

    history = summary.pop("history")
    assert summary == {
        "date": "2024-03-11",
        "final": True,
        "cost_usd": cost,
        "usage": {
            "prompt_tokens": 4010,
            "cached_tokens": 1600,
            "cache_write_tokens": 0,
            "completion_tokens": 250,
            "reasoning_tokens": 40,
            "total_tokens": 4260,
        },
        "turns": 6,
        "calls": 7,
        "sessions": 3,
        "failed_calls": 1,
        "unaccounted_calls": 1,
        "unaccounted_usd": WORST_CASE,
        "stopped_calls": 1,
        "stopped_at_least_usd": Decimal("0.001"),
        "stopped_at_most_usd": WORST_CASE,
        "unpriced_turns": 1,
        "cost_per_turn_usd": (cost / 6).quantize(Decimal("1e-10")),
        "cache_hit_rate": Decimal("0.399"),
        "cache_saved_usd": saved,
        "by_model": [
            {"deployment": "chat", "model": "gpt-5.4-mini-2026-03-17"} | breakdown(3, 4000, 250, cost),
            {"deployment": "large", "model": "unheard-of"} | breakdown(1, 10, 0, Decimal(0), unpriced=1),
        ],
        "by_caller": [
            {"caller": "(no key)"} | breakdown(2, 1010, 100, Decimal("0.1"), unpriced=1),
            {"caller": "web"} | breakdown(2, 3000, 150, trip),
        ],
        "costliest_sessions": [
            {"session_id": "s", "reference": None, "cost_usd": Decimal("0.1")},
            {"session_id": "trip", "reference": None, "cost_usd": trip},
        ],
        "previous_day_usd": Decimal("0.2"),
        "week_average_usd": (Decimal("0.2") / 7).quantize(Decimal("1e-10")),
        "month_to_date_usd": cost + Decimal("0.25"),
        "month_forecast_usd": ((cost + Decimal("0.25")) * 31 / 11).quantize(Decimal("1e-10")),
        "adjustments": [],
    }
    assert [each["date"] for each in history] == [str(MONDAY - n * DAY) for n in range(13, -1, -1)]
    assert [each["cost_usd"] for each in history if each["cost_usd"]] == [
        Decimal("0.01"),
        Decimal("0.05"),
        Decimal("0.2"),
        cost,
    ]


def cost_of(uncached: int, cached: int, completion: int) -> Decimal:
    return (uncached * RATES.input + cached * RATES.cached_input + completion * (RATES.output or 0)) / 1_000_000


def breakdown(calls: int, prompt: int, completion: int, cost: Decimal, unpriced: int = 0) -> dict[str, Any]:
    tokens = {"prompt_tokens": prompt, "completion_tokens": completion}
    return {"calls": calls, "unpriced_turns": unpriced, **tokens, "cost_usd": cost}


@pytest.mark.usefixtures("quiet_month")
async def test_amounts_are_exact_decimals_never_floats(api: httpx.AsyncClient, tables: Tables) -> None:
    await write(tables.usage, [entry_costing(MONDAY, "12345678"), entry_costing(MONDAY, CHEAP, "other")])

    response = await api.get(ROUTE)

    assert exact(response.text)["cost_usd"] == 12345678 + Decimal(CHEAP)
    assert '"cost_usd":12345678.000000000000000001' in response.text
    assert "E-" not in response.text.upper()


@pytest.mark.usefixtures("quiet_month")
async def test_token_counts_above_32_bits_are_added_up(api: httpx.AsyncClient, tables: Tables) -> None:
    await write(tables.usage, [entry(MONDAY, f"s{n}", prompt=2**40) for n in range(2)])

    assert (await get_json(api, ROUTE))["usage"]["prompt_tokens"] == 2**41


async def test_today_is_a_running_total_and_not_stored(
    api: httpx.AsyncClient, fake: AzureOpenAI, tables: Tables
) -> None:
    fake.reply("Lisbon.", prompt_tokens=812, cached_tokens=640, completion_tokens=90)
    await answer(api, session="trip")
    (row,) = await closed_ledger(tables)
    today = row.call.day
    first = await get_json(api, f"/api/usage/daily/{today}")
    await answer(api, session="trip")
    await closed_ledger(tables)

    second = await get_json(api, f"/api/usage/daily/{today}")

    assert (first["final"], first["turns"], first["cost_usd"]) == (False, 1, Decimal("0.000582"))
    assert (second["final"], second["turns"], second["sessions"]) == (False, 2, 1)
    session = await get_json(api, "/api/sessions/trip")
    assert (second["cost_usd"], second["usage"]) == (session["cost_usd"], session["usage"])
    assert second["costliest_sessions"] == [
        {"session_id": None, "reference": session["reference"], "cost_usd": session["cost_usd"]}
    ]
    assert await days().get(today) is None


@pytest.mark.usefixtures("quiet_month")
async def test_final_day_is_computed_once_and_stored(api: httpx.AsyncClient, tables: Tables) -> None:
    await write(tables.usage, [entry_costing(MONDAY, 1)])
    first = await api.get(ROUTE)
    stored = await days().get(MONDAY)
    assert stored is not None
    await write(tables.usage, [entry_costing(MONDAY, 2, "too-late")])

    assert (await api.get(ROUTE)).content == first.content
    assert stored.etag == getattr(await days().get(MONDAY), "etag", None)


# One day as a page


@pytest.mark.usefixtures("quiet_month")
async def test_browser_gets_html_with_strict_content_security_policy(api: httpx.AsyncClient, tables: Tables) -> None:
    await write(tables.usage, [entry_costing(MONDAY, "12.34", "secret-session")])

    page = await api.get(ROUTE, headers={"accept": "text/html,application/xhtml+xml,*/*;q=0.8"})

    assert page.status_code == 200
    assert page.headers["content-type"].startswith("text/html")
    assert page.headers["content-security-policy"].startswith("default-src 'none'")
    assert page.headers["x-content-type-options"] == "nosniff"
    assert page.headers["cache-control"] == "no-store"
    assert "12.34" in page.text
    assert "secret-session" not in page.text


@pytest.mark.usefixtures("quiet_month")
@pytest.mark.parametrize("accept", ["Text/HTML", "application/json;q=0.5, text/html", "*/*, text/html;level=1;q=0.8"])
async def test_accept_header_that_prefers_html_gets_html(api: httpx.AsyncClient, accept: str) -> None:
    response = await api.get(ROUTE, headers={"accept": accept})

    assert response.headers["content-type"].startswith("text/html")


@pytest.mark.usefixtures("quiet_month")
@pytest.mark.parametrize(
    "accept",
    ["application/json", "*/*", "", "application/json, text/html;q=0.9", "text/html;q=0, */*", "text/htmlx"],
)
async def test_other_accept_headers_get_json(api: httpx.AsyncClient, accept: str) -> None:
    response = await api.get(ROUTE, headers={"accept": accept})

    assert response.headers["content-type"] == "application/json"
    assert ok_json(response)["cost_usd"] == 0


# Date ranges


async def test_date_range_has_totals_of_each_day_and_their_sum(api: httpx.AsyncClient, tables: Tables) -> None:
    unaccounted = entry(MONDAY, "other", state=State.UNACCOUNTED)
    await write(tables.usage, [entry_costing(MONDAY, "0.1"), unaccounted, entry_costing(MONDAY + 2 * DAY, "0.2")])

    totals = await get_json(api, f"/api/usage/daily?from={MONDAY}&to={MONDAY + 2 * DAY}")

    assert totals["cost_usd"] == Decimal("0.3")
    assert [(each["date"], each["cost_usd"], each["turns"], each["final"]) for each in totals["days"]] == [
        ("2024-03-11", Decimal("0.1"), 2, True),
        ("2024-03-12", 0, 0, True),
        ("2024-03-13", Decimal("0.2"), 1, True),
    ]
    assert totals["days"][0]["unaccounted_usd"] == WORST_CASE
    assert totals["days"][0].keys() == (await get_json(api, ROUTE)).keys() & totals["days"][0].keys()


async def test_date_range_of_92_days_is_accepted(api: httpx.AsyncClient) -> None:
    figures = Figures(usage=Usage(prompt_tokens=1), cost=Decimal("0.01"), turns=1)
    await asyncio.gather(*(days().put(Day(day=MONDAY + n * DAY, figures=figures, final=True)) for n in range(92)))

    totals = await get_json(api, f"/api/usage/daily?from={MONDAY}&to={MONDAY + 91 * DAY}")

    assert len(totals["days"]) == 92
    assert totals["cost_usd"] == Decimal("0.92")


@pytest.mark.parametrize(
    ("query", "param"),
    [
        (f"from={MONDAY}&to={MONDAY + 92 * DAY}", "to"),
        (f"from={MONDAY}&to={MONDAY - DAY}", "to"),
        (f"to={MONDAY}", "from"),
        (f"from={MONDAY}", "to"),
        (f"from=&to={MONDAY}", "from"),
        (f"from={MONDAY}&to=yesterday", "to"),
        (f"from=2024-2-1&to={MONDAY}", "from"),
        (f"from={MONDAY}&to=9999-12-31", "to"),
        ("", "from"),
    ],
)
async def test_invalid_date_range_returns_400_naming_the_parameter(
    api: httpx.AsyncClient, query: str, param: str
) -> None:
    error = error_of(await api.get(f"/api/usage/daily?{query}"), 400)

    assert (error["code"], error["param"]) == ("invalid_request", param)
    assert param in error["message"]


async def test_invalid_date_returns_400_naming_the_parameter(api: httpx.AsyncClient) -> None:
    invalid = ["2024-02-30", "2024-13-01", "20240311", "2024-W11-1", "2024-3-1", "today", "-1", "2024-03-11%20"]
    fullwidth = "".join(chr(ord(digit) + 0xFEE0) for digit in "2024") + "-03-11"
    for value in (*invalid, fullwidth, "2024-03-11T00:00:00", "9999-12-31", "0001-01-01"):
        for method, route in (("GET", f"/api/usage/daily/{value}"), ("POST", f"/api/usage/daily/{value}/email")):
            error = error_of(await api.request(method, route), 400)

            assert (error["code"], error["param"]) == ("invalid_request", "date"), value
            assert "date" in error["message"]


# Authentication


ROUTES = [("GET", ROUTE), ("GET", f"/api/usage/daily?from={MONDAY}&to={MONDAY}"), ("POST", f"{ROUTE}/email")]


@pytest.mark.usefixtures("quiet_month")
@pytest.mark.parametrize(("method", "route"), ROUTES)
async def test_usage_key_is_accepted_in_either_header_and_other_keys_return_401(
    api: httpx.AsyncClient, method: str, route: str
) -> None:
    del api.headers["api-key"]
    assert api.headers["x-functions-key"] == FUNCTION_KEY

    for headers in ({}, {"api-key": new_key()}, {"authorization": f"Bearer {KEY}x"}, {"authorization": KEY}):
        error = error_of(await api.request(method, route, headers=headers), 401)
        assert error["code"] == "unauthorized"
    for headers in ({"api-key": KEY}, {"authorization": f"Bearer {KEY}"}):
        assert (await api.request(method, route, headers=headers)).status_code == 200


@pytest.mark.parametrize(("method", "route"), ROUTES)
async def test_unset_usage_keys_return_401_naming_the_setting(
    serve: Serve, environ: dict[str, str], method: str, route: str
) -> None:
    del environ["USAGE_KEYS"]
    async with serve(environ) as api:
        error = error_of(await api.request(method, route, headers={"api-key": KEY}), 401)

    assert "USAGE_KEYS" in error["message"]


async def test_authentication_precedes_validation(api: httpx.AsyncClient) -> None:
    error_of(await api.get("/api/usage/daily/nonsense", headers={"api-key": "wrong"}), 401)
    error_of(await api.get("/api/usage/daily", headers={"api-key": "wrong"}), 401)


async def test_keys_are_never_logged_or_returned(api: httpx.AsyncClient, caplog: pytest.LogCaptureFixture) -> None:
    caplog.set_level("DEBUG")
    wrong = new_key()
    responses = [
        await api.request(method, route, headers=headers)
        for method, route in ROUTES
        for headers in ({}, {"api-key": wrong}, {"authorization": f"Bearer {wrong}"})
    ]

    output = caplog.text + "".join(f"{response.text}{response.headers}" for response in responses)
    assert KEY not in output
    assert wrong not in output


# Manual sending


@pytest.mark.usefixtures("quiet_month")
async def test_summary_email_can_be_sent_again_repeatedly(api: httpx.AsyncClient, tables: Tables, outbox: Path) -> None:
    await write(tables.usage, [entry_costing(MONDAY, "12.34", "secret-session")])

    answers = [await send_email(api) for _ in range(2)]

    assert answers == [{"date": "2024-03-11", "sent_to": RECIPIENTS}] * 2
    assert len(emails(outbox)) == 2
    for operation, email in emails(outbox).items():
        assert email["Subject"].startswith("Chat cost 2024-03-11: $12.34")
        assert email["To"] == ", ".join(RECIPIENTS)
        assert operation in email["Message-ID"]
        assert "secret-session" not in email.as_string()


async def send_email(api: httpx.AsyncClient) -> dict[str, Any]:
    return ok_json(await api.post(f"{ROUTE}/email"))


async def test_timer_sends_summary_email_despite_manual_sending(
    clock: ManualClock, api: httpx.AsyncClient, tables: Tables, outbox: Path
) -> None:
    clock.set(datetime.combine(MONDAY + DAY, time(6), UTC))
    await write(tables.usage, [entry_costing(MONDAY, 1)])
    await send_email(api)
    sent_manually = set(emails(outbox))

    await services().delivery.send_due()

    stored = await days().get(MONDAY)
    assert stored is not None
    assert (stored.outcome, list(stored.sent_to)) == ("sent", RECIPIENTS)
    assert len(set(emails(outbox)) - sent_manually) == 1


async def test_summary_email_of_today_returns_400(api: httpx.AsyncClient, tables: Tables, outbox: Path) -> None:
    await answer(api)
    (row,) = await closed_ledger(tables)

    error = error_of(await api.post(f"/api/usage/daily/{row.call.day}/email"), 400)

    assert (error["code"], error["param"]) == ("invalid_request", "date")
    assert "not final" in error["message"]
    assert emails(outbox) == {}


async def test_summary_email_of_day_with_open_call_returns_400(api: httpx.AsyncClient, tables: Tables) -> None:
    await write(tables.usage, [still_running(entry(MONDAY, state=State.OPEN))])

    assert "not final" in error_of(await api.post(f"{ROUTE}/email"), 400)["message"]


async def test_failed_summary_email_returns_502(serve: Serve, environ: dict[str, str]) -> None:
    environ["OUTBOX_DIR"] = f"{__file__}/is-no-folder"
    async with serve(environ) as api:
        error = error_of(await api.post(f"{ROUTE}/email", headers={"api-key": KEY}), 502)

    assert error["code"] == "upstream_error"
    assert "could not be sent" in error["message"]


@pytest.mark.parametrize(
    ("missing", "setting"), [("OUTBOX_DIR", "ACS_ENDPOINT"), ("SUMMARY_RECIPIENTS", "SUMMARY_RECIPIENTS")]
)
async def test_unconfigured_summary_email_returns_500_naming_the_setting(
    serve: Serve, environ: dict[str, str], missing: str, setting: str
) -> None:
    del environ[missing]
    async with serve(environ) as api:
        error = error_of(await api.post(f"{ROUTE}/email", headers={"api-key": KEY}), 500)
        stored = await days().get(MONDAY)

    assert stored is not None
    assert stored.sends == 0
    assert setting in error["message"]


@pytest.mark.parametrize("setting", ["SUMMARY_RECIPIENTS", "SUMMARY_SENDER"])
async def test_malformed_address_stops_only_the_email(serve: Serve, environ: dict[str, str], setting: str) -> None:
    async with serve(environ | {setting: "jürgen@example.com"}) as api:
        await answer(api)
        error = error_of(await api.post(f"{ROUTE}/email", headers={"api-key": KEY}), 500)

    assert setting in error["message"]


# The timer


async def test_timer_sends_missed_summary_emails(api: httpx.AsyncClient, tables: Tables, outbox: Path) -> None:
    today = datetime.now(UTC).date()
    missed = today - 4 * DAY
    await days().constant("first_day", str(missed - DAY))
    await write(tables.usage, [entry_costing(missed, "12.34")])

    response = await api.post("/admin/functions/daily_cost_summary", json={"input": ""})
    assert response.status_code == 202
    stored = await until(partial(outcome, missed))

    assert (stored.outcome, list(stored.sent_to)) == ("sent", RECIPIENTS)
    (email,) = [email for email in emails(outbox).values() if str(missed) in email["Subject"]]
    assert "$12.34" in email["Subject"]


async def outcome(day: date) -> Day | None:
    stored = await days().get(day)
    return stored if stored and stored.outcome else None
