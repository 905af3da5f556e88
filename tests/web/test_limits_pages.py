"""The web pages and the limits of callers, in a real browser: what is left of budgets, and refusals in words."""

import re
from collections.abc import AsyncIterator
from contextlib import asynccontextmanager
from datetime import UTC, datetime
from typing import Any

import httpx
import pytest
import pytest_asyncio
from playwright.async_api import Browser, Page, expect

from local.keys import line, new_key
from tests.conftest import FUNCTION_KEY, Serve
from tests.support.azure_openai import AzureOpenAI
from tests.support.browser import chromium, open_page
from tests.support.budgets import limited, reply_long, until_settled
from tests.support.chat_client import answer, send_message, until
from tests.support.clock import ManualClock

pytestmark = pytest.mark.asyncio(loop_scope="module")  # the browser is shared by the module's tests

KATHMANDU = "Asia/Kathmandu"  # 5:45 ahead of UTC
NOON = datetime(2026, 11, 28, 12, tzinfo=UTC)
USAGE_KEY = new_key()
WITH_KEY = {"function-key": FUNCTION_KEY}


@pytest_asyncio.fixture(scope="module", loop_scope="module")
async def browser() -> AsyncIterator[Browser]:
    async with chromium() as launched:
        yield launched


@pytest.fixture(autouse=True)
def noon(clock: ManualClock) -> None:
    clock.set(NOON)


def base_url(api: httpx.AsyncClient) -> str:
    return str(api.base_url).rstrip("/")


async def send(page: Page, text: str) -> None:
    await page.get_by_role("textbox", name="Message").fill(text)
    await page.keyboard.press("Enter")


async def test_chat_page_shows_what_is_left_of_a_budget_and_why_it_refuses(
    browser: Browser, serve: Serve, environ: dict[str, str], fake: AzureOpenAI
) -> None:
    reply_long(fake)
    limits = {"anonymous": {"usd_per_day": 0.1}}
    async with (
        serve(limited(environ, limits)) as api,
        open_page(browser, base_url(api), WITH_KEY, timezone_id=KATHMANDU) as page,
    ):
        await page.goto("/chat")
        await send(page, "What is the capital of France?")
        notes = page.get_by_role("article", name="Answer").last.locator(".notes")
        await expect(notes).to_have_text("$0.020 of your daily budget is left until Sun 29 Nov, 05:45.")
        await expect(notes.locator("data")).to_have_attribute("title", "$0.019840")
        await expect(notes.locator("time")).to_have_attribute("datetime", re.compile("^2026-11-29T00:00:00"))

        await until_settled(api)
        await send(page, "And of Italy?")
        await expect(notes).to_contain_text(
            "Your budget per day has no room for this call until Sun 29 Nov, 05:45. Of 0.1 USD"
        )
        await expect(page.get_by_role("button", name="Send again")).to_have_count(0)
        await expect(page.get_by_role("textbox", name="Message")).to_have_value("And of Italy?")
    assert len(fake.requests) == 1


async def test_chat_page_names_a_limit_per_minute_and_does_not_send_again_by_itself(
    browser: Browser, serve: Serve, environ: dict[str, str], fake: AzureOpenAI, clock: ManualClock
) -> None:
    limits = {"anonymous": {"requests_per_minute": 1}}
    async with serve(limited(environ, limits)) as api, open_page(browser, base_url(api), WITH_KEY) as page:
        await page.goto("/chat")
        await send(page, "one")
        await expect(page.locator(".answer footer")).to_contain_text("tokens")
        clock.set(NOON)
        await send(page, "two")
        notes = page.get_by_role("article", name="Answer").last.locator(".notes")
        await expect(notes).to_contain_text("Your limit of 1 request a minute is reached. Retry in the next minute.")
        await expect(page.get_by_role("button", name=re.compile(r"Send again in \d\d s"))).to_be_disabled()
    assert len(fake.requests) == 1


@asynccontextmanager
async def usage_page(browser: Browser, api: httpx.AsyncClient, **options: Any) -> AsyncIterator[Page]:
    async with open_page(browser, base_url(api), {"usage-key": USAGE_KEY}, timezone_id=KATHMANDU, **options) as page:
        await page.clock.set_fixed_time(NOON)
        await page.goto("/usage")
        await expect(page.locator("#status")).to_be_hidden()  # it is empty
        yield page


async def test_usage_page_shows_budgets_beside_costs(
    browser: Browser, serve: Serve, environ: dict[str, str], fake: AzureOpenAI
) -> None:
    limits = {"total": {"usd_per_day": 0.5}, "anonymous": {"usd_per_month": 0.25, "requests_per_minute": 9}}
    keys = {"USAGE_KEYS": line("ann", USAGE_KEY)}
    async with serve(limited(environ | keys, limits)) as api:
        reply_long(fake)
        await answer(api)
        await until_settled(api)
        fake.fault("content_filter")  # unaccounted, so it holds its worst case
        await send_message(api)
        api.headers["api-key"] = USAGE_KEY
        sent = (await api.get("/api/usage/limits")).json(parse_float=str)["limits"]
        async with usage_page(browser, api) as page:
            rows = page.get_by_role("table", name="Budgets").locator("tbody tr")
            await expect(rows).to_have_count(2)
            for row, caller in zip(await rows.all(), sent, strict=True):
                [budget] = caller["budgets"]
                shown = await row.locator("data").evaluate_all("all => all.map(each => each.title)")
                assert shown == [f"${budget[name]}" for name in ("limit_usd", "spent_usd", "held_usd", "remaining_usd")]
                assert float(budget["held_usd"]) > 0
            await expect(rows.first).to_contain_text("All callers together")
            await expect(rows.first).to_contain_text("$0.50 a day")
            await expect(rows.first).to_contain_text("Sun 29 Nov, 05:45")
            await expect(rows.last).to_contain_text("(no key)")
            await expect(rows.last).to_contain_text("Tue 1 Dec, 05:45")
            widths = await rows.first.locator("rect").evaluate_all("all => all.map(each => each.width.baseVal.value)")
            assert widths[0] == pytest.approx(16.032)  # percent: 0.08016 of 0.5 USD
            assert 0 < widths[1] < 20

        async with usage_page(browser, api, viewport={"width": 360, "height": 640}, is_mobile=True) as phone:
            await expect(phone.get_by_role("table", name="Budgets")).to_be_visible()
            assert await phone.evaluate("document.documentElement.scrollWidth") == 360


async def cost_of_today(api: httpx.AsyncClient) -> bool | None:
    """None while the day costs nothing."""
    day = await api.get(f"/api/usage/daily/{NOON.date()}", headers={"api-key": USAGE_KEY})
    return day.json()["cost_usd"] > 0 or None


async def test_usage_page_without_limits_has_a_forecast_and_no_budgets(
    browser: Browser, serve: Serve, environ: dict[str, str], fake: AzureOpenAI
) -> None:
    reply_long(fake)
    async with serve(limited(environ | {"USAGE_KEYS": line("ann", USAGE_KEY)}, {})) as api:
        async with usage_page(browser, api) as page:
            await expect(page.locator("#month")).to_be_empty()
        await answer(api)
        await until(lambda: cost_of_today(api))
        async with usage_page(browser, api) as page:
            expected = "This month: $0.080 so far, about $0.087 at its end if it goes on like this."
            await expect(page.locator("#month")).to_have_text(expected)  # 0.08016 / 27.5 * 30
            await expect(page.get_by_text("Budgets")).to_be_hidden()
