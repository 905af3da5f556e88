"""The usage routes over HTTP: a day as JSON and as a page, spans of days, sending by hand, and who may."""

import asyncio
from collections.abc import AsyncIterator
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
from tests.support.clock import ManualClock
from tests.support.ledger_rows import RATES, WORST, entry, keep_quiet, spent, still_running, write
from tests.support.talking import answer, answered, closed_ledger, exact, look, until

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
    mail = {"OUTBOX_DIR": str(outbox), "SUMMARY_RECIPIENTS": ", ".join(RECIPIENTS)}
    return environ | mail | {"USAGE_KEYS": line("ann", KEY), "CLIENT_KEYS": line("ann", KEY)}


@pytest.fixture
async def api(serve: Serve, environ: dict[str, str]) -> AsyncIterator[httpx.AsyncClient]:
    async with serve(environ) as client:
        client.headers["api-key"] = KEY
        yield client


@pytest.fixture
async def quiet_month(api: httpx.AsyncClient) -> None:
    """So that a day's summary need not add up the days before it."""
    await keep_quiet(days(), MONDAY)


def days() -> Days:
    """The daily table of the app that is being served."""
    return Days(services()._table("daily"))


def mails(outbox: Path) -> dict[str, EmailMessage]:
    """Operation id -> mail."""
    return {
        file.stem: message_from_bytes(file.read_bytes(), EmailMessage, policy=policy.SMTP)
        for file in outbox.glob("*.eml")
    }


def refusal(response: httpx.Response, status: int) -> dict[str, Any]:
    assert response.status_code == status, response.text
    error: dict[str, Any] = response.json()["error"]
    return error


# A day as JSON


@pytest.mark.usefixtures("quiet_month")
async def test_a_day_tells_what_its_mail_corrected(api: httpx.AsyncClient) -> None:
    told = Adjustment(day=MONDAY - DAY, difference=Decimal("0.10"), cost=Decimal("0.30"))
    await days().put(Day(day=MONDAY, figures=Figures(), final=True, adjustments=(told,)))

    said = await look(api, ROUTE)

    assert said["adjustments"] == [
        {"date": str(MONDAY - DAY), "difference_usd": Decimal("0.10"), "cost_usd": Decimal("0.30")}
    ]


async def test_a_day_tells_all_that_its_ledger_rows_come_to(api: httpx.AsyncClient, tables: Tables) -> None:
    yesterday = MONDAY - DAY
    rows: list[LedgerEntry] = [
        entry(MONDAY, "trip", 1, prompt=1000, cached=600, completion=100, reasoning=40, caller="web"),
        entry(MONDAY, "trip", 2, prompt=2000, cached=1000, completion=50, caller="web"),
        entry(MONDAY, "other", 1, state=State.FAILED),
        entry(MONDAY, "other", 1, state=State.UNACCOUNTED),
        entry(MONDAY, None, prompt=10, completion=0, rates=None, deployment="large", model="unheard-of"),
        entry(MONDAY, "fenced", 1, state=State.ABANDONED),
        spent(MONDAY, "0.1"),
        spent(yesterday, "0.2"),
        spent(date(2024, 3, 1), "0.05"),
        spent(date(2024, 2, 29), "0.01"),
    ]
    await write(tables.usage, rows)
    trip = cost_of(400, 600, 100) + cost_of(1000, 1000, 50)
    saved = 1600 * (RATES.input - RATES.cached_input) / 1_000_000
    cost = trip + Decimal("0.1")

    told = await look(api, ROUTE)

    history = told.pop("history")
    assert told == {
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
        "turns": 5,
        "calls": 6,
        "sessions": 3,
        "failed_calls": 1,
        "unaccounted_calls": 1,
        "unaccounted_usd": WORST,
        "unpriced_turns": 1,
        "cost_per_turn_usd": cost / 5,
        "cache_hit_rate": Decimal("0.399"),
        "cache_saved_usd": saved,
        "by_model": [
            {"deployment": "chat", "model": "gpt-5.4-mini-2026-03-17"} | share(3, 4000, 250, cost),
            {"deployment": "large", "model": "unheard-of"} | share(1, 10, 0, Decimal(0), unpriced=1),
        ],
        "by_caller": [
            {"caller": "(no key)"} | share(2, 1010, 100, Decimal("0.1"), unpriced=1),
            {"caller": "web"} | share(2, 3000, 150, trip),
        ],
        "costliest_sessions": [
            {"session_id": "s", "cost_usd": Decimal("0.1")},
            {"session_id": "trip", "cost_usd": trip},
        ],
        "previous_day_usd": Decimal("0.2"),
        "week_average_usd": (Decimal("0.2") / 7).quantize(Decimal("1e-10")),
        "month_to_date_usd": cost + Decimal("0.25"),
        "adjustments": [],
    }
    assert [one["date"] for one in history] == [str(MONDAY - n * DAY) for n in range(13, -1, -1)]
    assert [one["cost_usd"] for one in history if one["cost_usd"]] == [
        Decimal("0.01"),
        Decimal("0.05"),
        Decimal("0.2"),
        cost,
    ]


def cost_of(plain: int, cached: int, completion: int) -> Decimal:
    return (plain * RATES.input + cached * RATES.cached_input + completion * RATES.output) / 1_000_000


def share(calls: int, prompt: int, completion: int, cost: Decimal, unpriced: int = 0) -> dict[str, Any]:
    tokens = {"prompt_tokens": prompt, "completion_tokens": completion}
    return {"calls": calls, "unpriced_turns": unpriced, **tokens, "cost_usd": cost}


@pytest.mark.usefixtures("quiet_month")
async def test_an_amount_is_written_to_its_last_digit_and_never_as_a_float(
    api: httpx.AsyncClient, tables: Tables
) -> None:
    await write(tables.usage, [spent(MONDAY, "12345678"), spent(MONDAY, CHEAP, "other")])

    response = await api.get(ROUTE)

    assert exact(response.text)["cost_usd"] == 12345678 + Decimal(CHEAP)
    assert '"cost_usd":12345678.000000000000000001' in response.text
    assert "E-" not in response.text.upper()


@pytest.mark.usefixtures("quiet_month")
async def test_more_tokens_than_32_bits_hold_are_counted(api: httpx.AsyncClient, tables: Tables) -> None:
    await write(tables.usage, [entry(MONDAY, f"s{n}", prompt=2**40) for n in range(2)])

    assert (await look(api, ROUTE))["usage"]["prompt_tokens"] == 2**41


async def test_today_is_a_running_total(api: httpx.AsyncClient, fake: AzureOpenAI, tables: Tables) -> None:
    fake.reply("Lisbon.", prompt_tokens=812, cached_tokens=640, completion_tokens=90)
    await answer(api, session="trip")
    (row,) = await closed_ledger(tables)
    today = row.call.day
    first = await look(api, f"/api/usage/daily/{today}")
    await answer(api, session="trip")
    await closed_ledger(tables)

    second = await look(api, f"/api/usage/daily/{today}")

    assert (first["final"], first["turns"], first["cost_usd"]) == (False, 1, Decimal("0.000582"))
    assert (second["final"], second["turns"], second["sessions"]) == (False, 2, 1)
    session = await look(api, "/api/sessions/trip")
    assert (second["cost_usd"], second["usage"]) == (session["cost_usd"], session["usage"])
    assert second["costliest_sessions"] == [{"session_id": "trip", "cost_usd": session["cost_usd"]}]
    assert await days().get(today) is None


@pytest.mark.usefixtures("quiet_month")
async def test_a_finished_day_is_added_up_once_and_kept(api: httpx.AsyncClient, tables: Tables) -> None:
    await write(tables.usage, [spent(MONDAY, 1)])
    first = await api.get(ROUTE)
    kept = await days().get(MONDAY)
    assert kept is not None
    await write(tables.usage, [spent(MONDAY, 2, "never")])

    assert (await api.get(ROUTE)).content == first.content
    assert kept.etag == getattr(await days().get(MONDAY), "etag", None)


# A day as a page


@pytest.mark.usefixtures("quiet_month")
async def test_a_browser_is_shown_a_page_that_runs_and_loads_nothing(api: httpx.AsyncClient, tables: Tables) -> None:
    await write(tables.usage, [spent(MONDAY, "12.34", "secret-session")])

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
async def test_a_page_is_for_who_would_rather_have_it(api: httpx.AsyncClient, accept: str) -> None:
    response = await api.get(ROUTE, headers={"accept": accept})

    assert response.headers["content-type"].startswith("text/html")


@pytest.mark.usefixtures("quiet_month")
@pytest.mark.parametrize(
    "accept",
    ["application/json", "*/*", "", "application/json, text/html;q=0.9", "text/html;q=0, */*", "text/htmlx"],
)
async def test_all_others_are_given_json(api: httpx.AsyncClient, accept: str) -> None:
    response = await api.get(ROUTE, headers={"accept": accept})

    assert response.headers["content-type"] == "application/json"
    assert answered(response)["cost_usd"] == 0


# Spans


async def test_a_span_has_each_days_totals_and_their_sum(api: httpx.AsyncClient, tables: Tables) -> None:
    doubtful = entry(MONDAY, "other", state=State.UNACCOUNTED)
    await write(tables.usage, [spent(MONDAY, "0.1"), doubtful, spent(MONDAY + 2 * DAY, "0.2")])

    told = await look(api, f"/api/usage/daily?from={MONDAY}&to={MONDAY + 2 * DAY}")

    assert told["cost_usd"] == Decimal("0.3")
    assert [(one["date"], one["cost_usd"], one["turns"], one["final"]) for one in told["days"]] == [
        ("2024-03-11", Decimal("0.1"), 2, True),
        ("2024-03-12", 0, 0, True),
        ("2024-03-13", Decimal("0.2"), 1, True),
    ]
    assert told["days"][0]["unaccounted_usd"] == WORST
    assert told["days"][0].keys() == (await look(api, ROUTE)).keys() & told["days"][0].keys()


async def test_a_span_may_have_92_days(api: httpx.AsyncClient) -> None:
    usage = Figures(usage=Usage(prompt_tokens=1), cost=Decimal("0.01"), turns=1)
    await asyncio.gather(*(days().put(Day(day=MONDAY + n * DAY, figures=usage, final=True)) for n in range(92)))

    told = await look(api, f"/api/usage/daily?from={MONDAY}&to={MONDAY + 91 * DAY}")

    assert len(told["days"]) == 92
    assert told["cost_usd"] == Decimal("0.92")


@pytest.mark.parametrize(
    ("query", "named"),
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
async def test_a_span_that_is_none_is_refused_by_name(api: httpx.AsyncClient, query: str, named: str) -> None:
    error = refusal(await api.get(f"/api/usage/daily?{query}"), 400)

    assert (error["code"], error["param"]) == ("invalid_request", named)
    assert named in error["message"]


async def test_a_date_that_is_none_is_refused_by_name(api: httpx.AsyncClient) -> None:
    none = ["2024-02-30", "2024-13-01", "20240311", "2024-W11-1", "2024-3-1", "today", "-1", "2024-03-11%20"]
    fullwidth = "".join(chr(ord(digit) + 0xFEE0) for digit in "2024") + "-03-11"
    for given in (*none, fullwidth, "2024-03-11T00:00:00", "9999-12-31", "0001-01-01"):
        for method, route in (("GET", f"/api/usage/daily/{given}"), ("POST", f"/api/usage/daily/{given}/email")):
            error = refusal(await api.request(method, route), 400)

            assert (error["code"], error["param"]) == ("invalid_request", "date"), given
            assert "date" in error["message"]


# Who may


ROUTES = [("GET", ROUTE), ("GET", f"/api/usage/daily?from={MONDAY}&to={MONDAY}"), ("POST", f"{ROUTE}/email")]


@pytest.mark.usefixtures("quiet_month")
@pytest.mark.parametrize(("method", "route"), ROUTES)
async def test_a_key_opens_in_either_header_and_nothing_else_does(
    api: httpx.AsyncClient, method: str, route: str
) -> None:
    del api.headers["api-key"]
    assert api.headers["x-functions-key"] == FUNCTION_KEY

    for headers in ({}, {"api-key": new_key()}, {"authorization": f"Bearer {KEY}x"}, {"authorization": KEY}):
        error = refusal(await api.request(method, route, headers=headers), 401)
        assert error["code"] == "unauthorized"
    for headers in ({"api-key": KEY}, {"authorization": f"Bearer {KEY}"}):
        assert (await api.request(method, route, headers=headers)).status_code == 200


@pytest.mark.parametrize(("method", "route"), ROUTES)
async def test_without_any_key_configured_nobody_may_and_the_setting_is_named(
    serve: Serve, environ: dict[str, str], method: str, route: str
) -> None:
    del environ["USAGE_KEYS"]
    async with serve(environ) as api:
        error = refusal(await api.request(method, route, headers={"api-key": KEY}), 401)

    assert "USAGE_KEYS" in error["message"]


async def test_who_may_not_is_told_nothing_of_the_request(api: httpx.AsyncClient) -> None:
    refusal(await api.get("/api/usage/daily/nonsense", headers={"api-key": "wrong"}), 401)
    refusal(await api.get("/api/usage/daily", headers={"api-key": "wrong"}), 401)


async def test_no_key_is_ever_logged_or_answered(api: httpx.AsyncClient, caplog: pytest.LogCaptureFixture) -> None:
    caplog.set_level("DEBUG")
    wrong = new_key()
    responses = [
        await api.request(method, route, headers=headers)
        for method, route in ROUTES
        for headers in ({}, {"api-key": wrong}, {"authorization": f"Bearer {wrong}"})
    ]

    said = caplog.text + "".join(f"{response.text}{response.headers}" for response in responses)
    assert KEY not in said
    assert wrong not in said


# By hand


@pytest.mark.usefixtures("quiet_month")
async def test_a_day_is_mailed_again_as_often_as_asked(api: httpx.AsyncClient, tables: Tables, outbox: Path) -> None:
    await write(tables.usage, [spent(MONDAY, "12.34", "secret-session")])

    told = [await sent(api) for _ in range(2)]

    assert told == [{"date": "2024-03-11", "sent_to": RECIPIENTS}] * 2
    assert len(mails(outbox)) == 2
    for operation, mail in mails(outbox).items():
        assert mail["Subject"].startswith("Chat cost 2024-03-11: $12.34")
        assert mail["To"] == ", ".join(RECIPIENTS)
        assert operation in mail["Message-ID"]
        assert "secret-session" not in mail.as_string()


async def sent(api: httpx.AsyncClient) -> dict[str, Any]:
    return answered(await api.post(f"{ROUTE}/email"))


async def test_the_timer_mails_what_was_mailed_by_hand_all_the_same(
    clock: ManualClock, api: httpx.AsyncClient, tables: Tables, outbox: Path
) -> None:
    clock.set(datetime.combine(MONDAY + DAY, time(6), UTC))
    await write(tables.usage, [spent(MONDAY, 1)])
    await sent(api)
    by_hand = set(mails(outbox))

    await services().delivery.send_due()

    kept = await days().get(MONDAY)
    assert kept is not None
    assert (kept.outcome, list(kept.sent_to)) == ("sent", RECIPIENTS)
    assert len(set(mails(outbox)) - by_hand) == 1


async def test_an_unfinished_day_is_not_mailed(api: httpx.AsyncClient, tables: Tables, outbox: Path) -> None:
    await answer(api)
    (row,) = await closed_ledger(tables)

    error = refusal(await api.post(f"/api/usage/daily/{row.call.day}/email"), 400)

    assert (error["code"], error["param"]) == ("invalid_request", "date")
    assert "not final" in error["message"]
    assert mails(outbox) == {}


async def test_a_day_with_a_call_that_still_runs_is_not_mailed(api: httpx.AsyncClient, tables: Tables) -> None:
    await write(tables.usage, [still_running(entry(MONDAY, state=State.OPEN))])

    assert "not final" in refusal(await api.post(f"{ROUTE}/email"), 400)["message"]


async def test_a_mail_that_cant_leave_is_a_502_that_says_so(serve: Serve, environ: dict[str, str]) -> None:
    environ["OUTBOX_DIR"] = f"{__file__}/is-no-folder"
    async with serve(environ) as api:
        error = refusal(await api.post(f"{ROUTE}/email", headers={"api-key": KEY}), 502)

    assert error["code"] == "upstream_error"
    assert "could not be sent" in error["message"]


@pytest.mark.parametrize(
    ("absent", "named"), [("OUTBOX_DIR", "ACS_ENDPOINT"), ("SUMMARY_RECIPIENTS", "SUMMARY_RECIPIENTS")]
)
async def test_mail_that_is_not_set_up_is_an_error_that_names_the_setting(
    serve: Serve, environ: dict[str, str], absent: str, named: str
) -> None:
    del environ[absent]
    async with serve(environ) as api:
        error = refusal(await api.post(f"{ROUTE}/email", headers={"api-key": KEY}), 500)
        kept = await days().get(MONDAY)

    assert kept is not None
    assert kept.sends == 0
    assert named in error["message"]


# The timer


async def test_the_timer_mails_the_days_that_were_missed(api: httpx.AsyncClient, tables: Tables, outbox: Path) -> None:
    today = datetime.now(UTC).date()
    missed = today - 4 * DAY
    await days().constant("first_day", str(missed - DAY))
    await write(tables.usage, [spent(missed, "12.34")])

    fired = await api.post("/admin/functions/daily_cost_summary", json={"input": ""})
    assert fired.status_code == 202
    kept = await until(partial(outcome, missed))

    assert (kept.outcome, list(kept.sent_to)) == ("sent", RECIPIENTS)
    (mail,) = [mail for mail in mails(outbox).values() if str(missed) in mail["Subject"]]
    assert "$12.34" in mail["Subject"]


async def outcome(day: date) -> Day | None:
    kept = await days().get(day)
    return kept if kept and kept.outcome else None
