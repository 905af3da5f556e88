"""The web pages and the limits of callers, in a real browser: what is left of budgets, and refusals in words."""

import re
from collections.abc import AsyncIterator
from datetime import UTC, datetime

import httpx
import pytest
import pytest_asyncio
from playwright.async_api import Browser, Page, expect

from tests.conftest import FUNCTION_KEY, Serve
from tests.support.azure_openai import AzureOpenAI
from tests.support.browser import chromium, open_page
from tests.support.budgets import limited, reply_long
from tests.support.clock import ManualClock

pytestmark = pytest.mark.asyncio(loop_scope="module")  # the browser is shared by the module's tests

KATHMANDU = "Asia/Kathmandu"  # 5:45 ahead of UTC
WITH_KEY = {"function-key": FUNCTION_KEY}


@pytest_asyncio.fixture(scope="module", loop_scope="module")
async def browser() -> AsyncIterator[Browser]:
    async with chromium() as launched:
        yield launched


@pytest.fixture(autouse=True)
def noon(clock: ManualClock) -> None:
    clock.set(datetime(2026, 11, 28, 12, tzinfo=UTC))


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

        await send(page, "And of Italy?")
        await expect(notes).to_contain_text("Your budget per day is used up until Sun 29 Nov, 05:45. Of 0.1 USD")
        await expect(page.get_by_role("button", name="Send again")).to_have_count(0)
        await expect(page.get_by_role("textbox", name="Message")).to_have_value("And of Italy?")
    assert len(fake.requests) == 1


async def test_chat_page_names_a_limit_per_minute_and_does_not_send_again_by_itself(
    browser: Browser, serve: Serve, environ: dict[str, str], fake: AzureOpenAI
) -> None:
    limits = {"anonymous": {"requests_per_minute": 1}}
    async with serve(limited(environ, limits)) as api, open_page(browser, base_url(api), WITH_KEY) as page:
        await page.goto("/chat")
        await send(page, "one")
        await expect(page.locator(".answer footer")).to_contain_text("tokens")
        await send(page, "two")
        notes = page.get_by_role("article", name="Answer").last.locator(".notes")
        await expect(notes).to_contain_text("Your limit of 1 request a minute is reached. Retry in the next minute.")
        await expect(page.get_by_role("button", name=re.compile(r"Send again in \d\d s"))).to_be_disabled()
    assert len(fake.requests) == 1
