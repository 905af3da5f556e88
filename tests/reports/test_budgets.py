"""Budgets beside costs and the month's forecast: in the email that an SMTP server receives, and in api/usage."""

import json
from collections.abc import Iterator
from datetime import UTC, date, datetime, timedelta
from decimal import Decimal
from email import message_from_bytes, policy
from email.message import EmailMessage

import pytest
from aiosmtpd.controller import Controller
from aiosmtpd.smtp import Envelope

from local.keys import line, new_key
from local.parts import free_port
from shared.services import Services
from shared.settings import Settings
from shared.storage.days import Days
from tests.conftest import Serve, Tables
from tests.support.chat_client import get_json
from tests.support.ledger_rows import entry, rates_costing, write, write_quiet_days
from tests.support.still_clock import StillClock

SUNDAY, MONDAY, TUESDAY = (date(2024, 3, day) for day in (10, 11, 12))
MORNING = datetime(2024, 3, 12, 6, tzinfo=UTC)
KEY = new_key()
LIMITS = {
    "total": {"usd_per_day": 10, "usd_per_month": 20},
    "key:ann": {"usd_per_day": 5},
    "*": {"usd_per_month": 3},
    "anonymous": {"usd_per_day": 1},
}
COSTS = [  # of Tuesday only what is settled before the email of Monday is sent
    *((SUNDAY, "key:ann", "8"), (SUNDAY, "key:ben", "1")),
    *((MONDAY, "key:ann", "4.5"), (MONDAY, "key:ben", "1.5"), (MONDAY, None, "0.5")),
    *((TUESDAY, "key:ann", "3"), (TUESDAY, None, "1")),
]
LIMITED = {"LIMITS": json.dumps(LIMITS), "CLIENT_KEYS": line("ann", KEY)}
FORECAST = Decimal("15.5") / 11 * 31


class Inbox:
    """The handler of an SMTP server."""

    def __init__(self) -> None:
        self.emails: list[EmailMessage] = []

    async def handle_DATA(self, _: object, __: object, envelope: Envelope) -> str:  # noqa: N802
        assert isinstance(envelope.content, bytes)
        self.emails.append(message_from_bytes(envelope.content, EmailMessage, policy=policy.SMTP))
        return "250 OK"

    def bodies(self) -> list[str]:
        """Text and HTML of the only email, each on one line."""
        (email,) = self.emails
        parts = [email.get_body((kind,)) for kind in ("plain", "html")]
        return [" ".join(part.get_content().split()) for part in parts if part]


@pytest.fixture
def inbox(environ: dict[str, str]) -> Iterator[Inbox]:
    inbox = Inbox()
    server = Controller(inbox, hostname="127.0.0.1", port=free_port())
    server.start()
    environ |= {"SMTP_URL": f"smtp://127.0.0.1:{server.port}", "SUMMARY_SENDER": "chat@example.com"}
    environ["SUMMARY_RECIPIENTS"] = "ann@example.com"
    yield inbox
    server.stop()


async def send_email_of_monday(environ: dict[str, str], tables: Tables) -> None:
    services = Services(Settings.from_env(environ), StillClock(MORNING))
    try:
        await write_quiet_days(Days(services._table("daily")), SUNDAY)
        await write_costs(tables)
        await services.delivery.send_due()
    finally:
        await services.close()


async def write_costs(tables: Tables) -> None:
    rows = [entry(day, "s", n, rates=rates_costing(usd), caller=caller) for n, (day, caller, usd) in enumerate(COSTS)]
    await write(tables.usage, rows)


async def test_email_shows_costs_beside_budgets_and_who_reached_them_on_the_day(
    environ: dict[str, str], tables: Tables, inbox: Inbox
) -> None:
    await send_email_of_monday(environ | LIMITED, tables)

    text, html = inbox.bodies()
    for shown in [
        "All callers together, Mon 11 Mar 6.50 65% of $10.00 a day",
        "All callers together, March to date 15.50 77% of $20.00 a month",
        "key:ann, Mon 11 Mar 4.50 90% of $5.00 a day",
        "key:ben, March to date 2.50 83% of $3.00 a month",
        "Budgets: key:ann reached 80% of the daily budget; key:ben reached 80% of the monthly budget.",
        "the month to date is $15.50. At this rate, March will cost about $43.68.",
    ]:
        assert shown in text
    assert "(no key), Mon" not in text
    for shown in ["77% of $20.00 a month", "key:ann reached 80% of the daily budget", "will cost about $43.68"]:
        assert shown in html


async def test_email_without_limits_has_a_forecast_and_no_budgets(
    environ: dict[str, str], tables: Tables, inbox: Inbox
) -> None:
    await send_email_of_monday(environ, tables)

    for body in inbox.bodies():
        assert "At this rate, March will cost about $43.68." in body
        assert "budget" not in body.lower()


async def test_day_of_the_api_has_costs_beside_budgets_and_the_forecast(
    serve: Serve, environ: dict[str, str], tables: Tables
) -> None:
    keys = {"USAGE_KEYS": line("ann", KEY)}
    async with serve(environ | keys | LIMITED) as api:
        api.headers["api-key"] = KEY
        await write_costs(tables)
        day = await get_json(api, f"/api/usage/daily/{MONDAY}")
    async with serve(environ | keys | {"LIMITS": ""}) as api:
        api.headers["api-key"] = KEY
        unlimited = await get_json(api, f"/api/usage/daily/{MONDAY}")
        quiet = await get_json(api, f"/api/usage/daily/{MONDAY - timedelta(days=10)}")

    assert day["budgets"] == [
        budget("total", "usd_per_day", 10, "6.5", None),
        budget("total", "usd_per_month", 20, "15.5", None),
        budget("key:ann", "usd_per_day", 5, "4.5", 80),
        budget("key:ben", "usd_per_month", 3, "2.5", 80),
    ]
    assert day["month_forecast_usd"] == FORECAST.quantize(Decimal("1e-10"))
    assert "budgets" not in unlimited
    assert unlimited["month_forecast_usd"] == day["month_forecast_usd"]
    assert quiet["month_forecast_usd"] is None


def budget(caller: str, name: str, limit: int, cost: str, reached: int | None) -> dict[str, object]:
    amounts = {"limit_usd": Decimal(limit), "cost_usd": Decimal(cost)}
    return {"caller": caller, "name": name, **amounts, "reached_percent": reached}
