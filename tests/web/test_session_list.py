"""The chat page's list of a named caller's sessions, and taking over those of the browser, in a real browser."""

import asyncio
import json
import re
import uuid
from collections.abc import AsyncIterator
from contextlib import AbstractAsyncContextManager
from datetime import UTC, datetime, timedelta
from typing import Any
from zoneinfo import ZoneInfo

import httpx
import pytest
import pytest_asyncio
from playwright.async_api import Browser, Locator, Page, expect

from shared.domain.conversation import Session
from shared.domain.listing import placed
from shared.storage import session_rows as rows
from shared.storage.tables import Write
from tests.conftest import FUNCTION_KEY, Serve, Tables, opened
from tests.support.azure_openai import AzureOpenAI
from tests.support.browser import chromium, controls_of, open_page
from tests.support.chat_client import answer, ok_json
from tests.support.proxy import TcpProxy
from tests.support.responses_api import ANN, BOB, KEYS

pytestmark = pytest.mark.asyncio(loop_scope="module")  # the browser is shared by the module's tests

FUNCTION, AS_ANN, AS_BOB = {"function-key": FUNCTION_KEY}, {"api-key": ANN}, {"api-key": BOB}
WITH_KEYS = FUNCTION | {"client-key": ANN}
ZONE = "Pacific/Auckland"  # whose days are not UTC's
STORED = "JSON.stringify({...localStorage})"


@pytest_asyncio.fixture(scope="module", loop_scope="module")
async def browser() -> AsyncIterator[Browser]:
    async with chromium() as launched:
        yield launched


@pytest_asyncio.fixture(loop_scope="module")
async def api(serve: Serve, environ: dict[str, str]) -> AsyncIterator[httpx.AsyncClient]:
    async with serve(environ | KEYS) as client:
        yield client


@pytest_asyncio.fixture(loop_scope="module")
async def tables(azurite_port: int, prefix: str) -> AsyncIterator[Tables]:
    async with opened(azurite_port, prefix) as client:
        yield client


def open_at(
    browser: Browser, api: httpx.AsyncClient, stored: dict[str, str], **options: Any
) -> AbstractAsyncContextManager[Page]:
    return open_page(browser, str(api.base_url).rstrip("/"), stored, **options)


async def write_sessions(tables: Tables, last_uses: dict[str, datetime], **fields: Any) -> None:
    """Sessions of Ann, by their titles, with the times of their last use."""
    for title, updated in last_uses.items():
        head = Session(
            id=uuid.uuid4().hex,
            created=updated,
            updated=updated,
            system="",
            deployment="chat",
            owner="key:ann",
            title=title,
            turns=1,
            **fields,
        )
        head = placed(head, updated)
        await tables.sessions.put(rows.from_session(head))
        key = {"PartitionKey": rows.owner_partition("key:ann"), "RowKey": rows.owner_key(head.places[-1], head.id)}
        await tables.sessions.commit([Write("put", {**key, "title": title})])


def listed(page: Page) -> Locator:
    return page.locator("#conversations li")


async def groups(page: Page) -> dict[str, list[str]]:
    """The headings of the list, with the titles below them."""
    titles: dict[str, list[str]] = await page.evaluate("""() => Object.fromEntries(
      [...document.querySelectorAll("#conversations h3")].map((heading) =>
        [heading.textContent, [...heading.nextElementSibling.children].map((row) => row.textContent)]))""")
    return titles


def button(page: Page, name: str) -> Locator:
    return page.get_by_role("button", name=name, exact=True)


async def ask(page: Page, text: str) -> None:
    before = await page.locator(".answer footer:not(:empty)").count()
    await page.get_by_role("textbox", name="Message").fill(text)
    await page.keyboard.press("Enter")
    await expect(page.locator(".answer footer:not(:empty)")).to_have_count(before + 1)


async def enter_client_key(page: Page, key: str) -> None:
    await button(page, "Keys").click()
    field = page.get_by_role("dialog").get_by_role("textbox", name="Client key (optional)")
    await field.fill(key)
    await field.press("Enter")


async def test_sessions_are_grouped_by_local_day_searched_and_loaded_on_scrolling(
    browser: Browser, api: httpx.AsyncClient, tables: Tables
) -> None:
    ok_json(await api.get("/api/sessions", headers=AS_ANN))  # creates the tables
    now = datetime.now(UTC)
    midnight = datetime.now(ZoneInfo(ZONE)).replace(hour=0, minute=0, second=0, microsecond=0)
    ages = {"late": timedelta(minutes=1), "week": timedelta(days=3), "month": timedelta(days=15)}
    older = {days: midnight - timedelta(days=days) for days in (40, 75)}
    newer = {name: midnight - age for name, age in ages.items()}
    await write_sessions(tables, {"now": now} | newer | {f"{days} days": each for days, each in older.items()})
    await write_sessions(tables, {"important": older[75]}, pinned=True)
    await write_sessions(tables, {f"many {n}": older[75] - timedelta(days=1, minutes=n) for n in range(40)})
    await write_sessions(tables, {"put away": older[40]}, archived=True)
    async with open_at(browser, api, WITH_KEYS, timezone_id=ZONE) as page:
        await page.goto("/chat")
        await expect(listed(page)).to_have_count(30)
        shown = await groups(page)
        assert list(shown.items())[:6] == [
            ("Pinned", ["important"]),
            ("Today", ["now"]),
            ("Yesterday", ["late"]),
            ("Previous 7 days", ["week"]),
            ("Previous 30 days", ["month"]),
            (f"{older[40]:%B %Y}", ["40 days"]),
        ]
        nav = page.get_by_role("navigation", name="Conversations")
        await nav.evaluate("nav => nav.scrollTop = nav.scrollHeight")
        scrolled = await nav.evaluate("nav => nav.scrollTop")
        await expect(listed(page)).to_have_count(47)
        assert await nav.evaluate("nav => nav.scrollTop") == scrolled > 0
        await expect(button(page, "More")).to_be_hidden()
        assert [title for each in (await groups(page)).values() for title in each][-2:] == ["many 38", "many 39"]

        search = page.get_by_role("searchbox", name="Search titles")
        await page.route("**/api/sessions?*search=many*", lambda route: None)  # never answered
        async with page.expect_request("**/api/sessions?*search=many*") as outdated:
            await search.fill("many 3")
        await search.fill(" DAYS ")
        await expect(listed(page)).to_have_text(["40 days", "75 days"])
        assert (await outdated.value).failure == "net::ERR_ABORTED"
        await search.fill("nowhere")
        await expect(page.get_by_text("No conversation has “nowhere” in its title.")).to_be_visible()
        await expect(listed(page)).to_have_count(0)
        await search.press("Escape")
        await expect(listed(page)).to_have_count(30)

        await button(page, "Archived").press("Enter")
        await expect(listed(page)).to_have_text(["put away"])
        await expect(button(page, "Archived")).to_have_attribute("aria-pressed", "true")
        controls = await controls_of(page)
        assert {("button", "put away"), ("button", "Archived")} <= {*controls}
        assert all(name.strip() for _, name in controls)


async def test_used_session_moves_up_and_is_pinned_renamed_and_archived_on_every_device(
    browser: Browser, api: httpx.AsyncClient, tables: Tables, fake: AzureOpenAI
) -> None:
    ok_json(await api.get("/api/sessions", headers=AS_ANN))
    yesterday = datetime.now(UTC) - timedelta(days=1, hours=1)
    await write_sessions(tables, {"older": yesterday, "newer": yesterday + timedelta(hours=1)})
    async with open_at(browser, api, WITH_KEYS) as page, open_at(browser, api, WITH_KEYS) as other:
        await page.goto("/chat")
        await expect(listed(page)).to_have_text(["newer", "older"])
        await button(page, "older").click()
        await ask(page, "go on")
        await expect(listed(page)).to_have_text(["older", "newer"])
        await button(page, "New").click()
        long = f"{'word ' * 12}more"
        await ask(page, long)
        await expect(listed(page)).to_have_text([f"{'word ' * 10}word…", "older", "newer"])  # as the server cuts it
        await button(page, "Rename").click()
        await page.get_by_role("textbox", name="Title").fill("<b>Fruit</b>")
        await page.keyboard.press("Enter")
        await expect(page.get_by_role("heading", name="<b>Fruit</b>")).to_be_visible()
        await button(page, "newer").click()
        await expect(button(page, "Pin")).to_be_enabled()
        await button(page, "Pin").press("Enter")
        await expect(button(page, "Unpin")).to_be_focused()
        await expect(listed(page)).to_have_text(["newer", "<b>Fruit</b>", "older"])

        await other.goto("/chat")
        await expect(listed(other)).to_have_text(["newer", "<b>Fruit</b>", "older"])
        await button(other, "older").click()
        await button(other, "Archive").click()
        await expect(other.get_by_role("status")).to_have_text("Archived.")
        await expect(listed(other)).to_have_text(["newer", "<b>Fruit</b>"])
        await other.set_viewport_size({"width": 360, "height": 640})
        assert await other.evaluate("document.documentElement.scrollWidth") == 360
        await other.set_viewport_size({"width": 1_200, "height": 640})
        await button(other, "Archived").click()
        await expect(listed(other)).to_have_text(["older"])
        await button(other, "Unarchive").click()
        await expect(other.get_by_text("No archived conversations yet.")).to_be_visible()
        await button(other, "Archived").click()
        await expect(listed(other)).to_have_text(["newer", "<b>Fruit</b>", "older"])
        await button(other, "Delete").click()
        await other.get_by_role("dialog").get_by_role("button", name="Delete").click()
        await expect(listed(other)).to_have_text(["newer", "<b>Fruit</b>"])

        await button(page, "older").click()  # deleted on the other device
        await expect(page.get_by_role("status")).to_have_text("“older” was deleted and is no longer listed.")
        await expect(listed(page)).to_have_text(["newer", "<b>Fruit</b>"])

        assert await page.evaluate(STORED) == "{}"
        await enter_client_key(page, BOB)
        await expect(page.get_by_text("No conversations yet.")).to_be_visible()
        await ask(page, "of Bob")
        await expect(listed(page)).to_have_text(["of Bob"])
        await enter_client_key(page, "")
        await expect(page.get_by_role("status")).to_contain_text("There is no conversation with this ID, or it")
        await expect(listed(page)).to_have_count(0)
        await ask(page, "without owner")
        await expect(listed(page)).to_have_text(["without owner"])
        await expect(page.get_by_role("searchbox")).to_have_count(0)
        assert "of Bob" not in await page.evaluate(STORED)


async def test_conversations_of_the_browser_are_taken_over_once_and_failures_are_counted(
    browser: Browser, api: httpx.AsyncClient
) -> None:
    async with open_at(browser, api, FUNCTION) as page:
        await page.goto("/chat")
        for text in ("lost", "of Bob", "apples", "pears"):
            await button(page, "New").click()
            await ask(page, text)
        await button(page, "Rename").click()
        await page.get_by_role("textbox", name="Title").fill("Fruit")
        await page.keyboard.press("Enter")
        await expect(listed(page)).to_have_text(["Fruit", "apples", "of Bob", "lost"])
        _, _, of_bob, lost = [each["id"] for each in await stored(page)]
        await answer(api, "hi", "chosen")
        ok_json(await api.post(f"/api/sessions/{of_bob}/claim", headers=AS_BOB))
        await api.delete(f"/api/sessions/{lost}")
        entries = [{"id": "chosen", "title": "chosen"}, {"id": "a" * 32, "title": "secret", "owned": True}]
        await page.evaluate(
            "list => localStorage.setItem('conversations', JSON.stringify(list))", [*await stored(page), *entries]
        )
        await page.reload()
        await expect(listed(page)).to_have_text(["Fruit", "apples", "of Bob", "lost", "chosen"])
        assert "secret" not in await page.evaluate(STORED)
        offer = page.get_by_role("region", name="Conversations of this browser")
        await expect(offer).to_have_count(0)

        await enter_client_key(page, ANN)
        await expect(offer).to_contain_text("Take over 5 conversations of this browser?")
        await offer.get_by_role("button", name="Not now").press("Enter")
        await expect(offer).to_have_count(0)
        await page.reload()
        await expect(page.get_by_text("No conversations yet.")).to_be_visible()
        await expect(offer).to_have_count(0)
        assert len(await stored(page)) == 5

        tab = await page.context.new_page()
        await tab.goto("/chat")
        await enter_client_key(tab, ANN)
        offer = tab.get_by_role("region", name="Conversations of this browser")
        claims = 0

        async def fail_once(route: Any) -> None:
            nonlocal claims
            claims += 1
            await (route.abort() if claims == 2 else route.continue_())

        await tab.route("**/claim", fail_once)
        await offer.get_by_role("button", name="Take over").click()
        await expect(offer).to_contain_text("Took over 1 conversation. The server can't be reached.")
        await expect(listed(tab)).to_have_text(["Fruit"])
        await offer.get_by_role("button", name="Try again").press("Enter")
        await expect(offer).to_contain_text(
            "Took over 1 conversation. Not taken over: 2 (deleted, or of another owner), 1 (an ID of your own choice,"
            " which others could guess). They stay in this browser."
        )
        await expect(listed(tab)).to_have_text(["Fruit", "apples"])
        assert [each["title"] for each in await stored(tab)] == ["of Bob", "lost", "chosen"]
        mine = ok_json(await api.get("/api/sessions", headers=AS_ANN))["sessions"]
        assert [session["title"] for session in mine] == ["Fruit", "apples"]
        await offer.get_by_role("button", name="Close").press("Enter")

        await page.evaluate("sessionStorage.removeItem('take-over-declined')")
        await page.reload()
        await expect(listed(page)).to_have_count(2)
        await expect(page.locator("#offer")).to_be_hidden()  # what can't be taken over is not offered again


async def stored(page: Page) -> list[dict[str, Any]]:
    entries: list[dict[str, Any]] = json.loads(await page.evaluate("localStorage.getItem('conversations')"))
    return entries


async def test_list_says_that_storage_cannot_be_reached_and_is_loaded_again_on_request(
    browser: Browser, storage: TcpProxy, api: httpx.AsyncClient
) -> None:
    ok_json(await api.post("/api/chat", json={"message": "hi"}, headers=AS_ANN))
    await asyncio.to_thread(storage.down)
    async with open_at(browser, api, WITH_KEYS) as page:
        await page.goto("/chat")
        await expect(page.locator("#list-note")).to_have_text(re.compile("[Ss]torage"))
        await asyncio.to_thread(storage.up)
        await button(page, "Try again").press("Enter")
        await expect(listed(page)).to_have_text(["hi"])
        await expect(button(page, "hi")).to_be_focused()
        await expect(page.locator("#list-note")).to_be_empty()
