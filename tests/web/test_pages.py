"""The web pages in a real browser, against the app, Azurite and the fake model."""

import asyncio
import json
import random
import re
from collections.abc import AsyncIterator
from dataclasses import replace
from datetime import UTC, datetime, timedelta
from decimal import Decimal
from pathlib import Path
from typing import Any
from urllib.parse import urlsplit

import httpx
import pytest
import pytest_asyncio
from playwright.async_api import Browser, FloatRect, Locator, Page, Request, Route, expect

from local.keys import line, new_key
from shared.domain.calls import State
from tests.conftest import FUNCTION_KEY, Serve, Tables, opened
from tests.support.agent import QUESTION, connected, use_two_tools
from tests.support.azure_openai import AzureOpenAI
from tests.support.browser import chromium, controls_of, open_page
from tests.support.chat_client import (
    answer,
    closed_ledger,
    expire_lease,
    fill,
    get_json,
    ledger,
    ok_json,
    streaming,
    until,
)
from tests.support.clock import ManualClock
from tests.support.conservation import assert_conserved
from tests.support.ledger_rows import entry, rates_costing, write
from tests.support.processes import HostFactory
from tests.support.proxy import TcpProxy
from tests.support.responses_api import ANN, KEYS

pytestmark = pytest.mark.asyncio(loop_scope="module")  # the browser is shared by the module's tests

USAGE_KEY = new_key()
WITH_KEY = {"function-key": FUNCTION_KEY}
PHONE: dict[str, Any] = {"viewport": {"width": 360, "height": 640}, "has_touch": True, "is_mobile": True}

WAITING = "Another turn of this conversation is still running. Waiting until it ends…"


@pytest_asyncio.fixture(scope="module", loop_scope="module")
async def browser() -> AsyncIterator[Browser]:
    async with chromium() as launched:
        yield launched


@pytest_asyncio.fixture(loop_scope="module")
async def api(serve: Serve, environ: dict[str, str]) -> AsyncIterator[httpx.AsyncClient]:
    async with serve(environ | {"USAGE_KEYS": line("ann", USAGE_KEY)}) as client:
        yield client


@pytest_asyncio.fixture(loop_scope="module")
async def tables(azurite_port: int, prefix: str) -> AsyncIterator[Tables]:
    async with opened(azurite_port, prefix) as client:
        yield client


@pytest_asyncio.fixture(loop_scope="module")
async def page(browser: Browser, api: httpx.AsyncClient) -> AsyncIterator[Page]:
    """The chat page, with the function key stored."""
    async with open_page(browser, base_url(api), WITH_KEY) as page:
        await page.goto("/chat")
        yield page


def base_url(api: httpx.AsyncClient) -> str:
    return str(api.base_url).rstrip("/")


def button(page: Page, name: str) -> Locator:
    return page.get_by_role("button", name=name, exact=True)


def answer_text(page: Page) -> Locator:
    """The text of the last answer."""
    return page.get_by_role("article", name="Answer").last.locator(".text")


def answer_footer(page: Page) -> Locator:
    return page.get_by_role("article", name="Answer").last.locator("footer")


async def write_message(page: Page, text: str) -> None:
    await page.get_by_role("textbox", name="Message").fill(text)
    await page.keyboard.press("Enter")


async def ask(page: Page, text: str = "hi") -> None:
    """Send a message and wait for the answer."""
    before = await page.locator(".answer footer:not(:empty)").count()
    await write_message(page, text)
    await expect(page.locator(".answer footer:not(:empty)")).to_have_count(before + 1)


async def session_of(page: Page) -> str:
    session: str = await page.evaluate("sessionStorage.getItem('open-conversation')")
    return session


async def open_listed(page: Page, session: str, title: str = "Listed") -> None:
    """Open a stored session as a conversation from this browser's list."""
    conversations = json.dumps([{"id": session, "title": title}])
    await page.evaluate("list => localStorage.setItem('conversations', list)", conversations)
    await page.evaluate("id => sessionStorage.setItem('open-conversation', id)", session)
    await page.reload()


def idempotency_keys(page: Page) -> list[str]:
    """The Idempotency-Key header of all later POST requests."""
    keys: list[str] = []

    def add_key(request: Request) -> None:
        if request.method == "POST":
            keys.append(request.headers["idempotency-key"])

    page.on("request", add_key)
    return keys


# A message and its answer


async def test_answer_streams_in_deltas(page: Page, fake: AzureOpenAI) -> None:
    fake.reply("One **two** three.")
    with fake.hold(after=8) as hold:
        await write_message(page, "count")
        await expect(answer_text(page)).to_contain_text("One two")
        await expect(button(page, "Stop")).to_be_visible()
        await expect(button(page, "Send")).to_be_hidden()
        assert not hold.open
        hold.release()
    await expect(answer_text(page)).to_have_text("One two three.")
    await expect(answer_text(page).locator("strong")).to_have_text("two")
    await expect(button(page, "Stop")).to_be_hidden()
    await expect(page.get_by_role("article", name="You")).to_have_text("count")


async def test_tokens_and_cost_are_exact_per_message_and_conversation(page: Page, api: httpx.AsyncClient) -> None:
    await ask(page, "one")
    await ask(page, "two")
    session = await session_of(page)
    history = (await api.get(f"/api/sessions/{session}/messages")).text
    totals = (await api.get(f"/api/sessions/{session}")).text
    tokens = re.findall(r'"total_tokens":(\d+)', history)
    costs = re.findall(r'"cost_usd":([\d.]+)', history)
    await expect(answer_footer(page)).to_contain_text(f"gpt-5.4-mini-2026-03-17 · {tokens[0]} tokens · $0.0000")
    assert await page.locator(".answer footer data").evaluate_all("all => all.map(each => each.title)") == [
        f"${costs[1]}",
        f"${costs[0]}",
    ]
    [total] = re.findall(r'"cost_usd":([\d.]+)', totals)
    await expect(page.locator("#totals data")).to_have_attribute("title", f"${total}")
    await expect(page.locator("#totals")).to_contain_text(f"2 turns · {int(tokens[0]) + int(tokens[1])} tokens")


async def test_unknown_price_is_not_shown_as_zero_cost(
    browser: Browser, serve: Serve, environ: dict[str, str], fake: AzureOpenAI
) -> None:
    fake.model_name = "unheard-of"
    async with serve(environ | {"PRICES": ""}) as api, open_page(browser, base_url(api), WITH_KEY) as page:
        await page.goto("/chat")
        await ask(page)
        await expect(answer_footer(page)).to_contain_text("price not known")
        await expect(page.locator("#totals")).to_contain_text("price not known · 1 turn of unknown price")
        fake.fault("content_filter")
        await write_message(page, "something violent")
        await expect(page.locator("#totals")).to_contain_text("1 call unaccounted, price not known")
        await expect(page.locator("main")).not_to_contain_text("$0")


async def test_deployment_can_be_chosen_if_there_are_several(
    browser: Browser, serve: Serve, environ: dict[str, str], fake: AzureOpenAI
) -> None:
    deployments = {"AZURE_OPENAI_DEPLOYMENTS": "chat=gpt-5.4-mini, large=gpt-5.4", "REGION_NAME": "Sweden Central"}
    async with serve(environ | deployments) as api, open_page(browser, base_url(api), WITH_KEY) as page:
        await page.goto("/chat")
        await expect(page.locator("#about")).to_have_text("chat · Sweden Central")
        await page.get_by_role("combobox", name="Deployment").select_option("large")
        await ask(page)
        assert [request.body["model"] for request in fake.requests] == ["large"]


async def test_opening_another_conversation_ends_streaming_but_not_the_turn(page: Page, fake: AzureOpenAI) -> None:
    with fake.hold(after=0) as hold:
        await write_message(page, "count")
        await hold.until_reached()  # otherwise the other message could be held instead
        await button(page, "New").click()
        await expect(page.get_by_role("article")).to_have_count(0)
        await ask(page, "something else")
        hold.release()
    await page.get_by_role("navigation", name="Conversations").get_by_role("button", name="count").click()
    await expect(answer_text(page)).to_have_text("echo: count")


async def test_copy_button_copies_code_unchanged(browser: Browser, api: httpx.AsyncClient, fake: AzureOpenAI) -> None:
    fake.reply("```python\nif x:\n\treturn '<b>'\n```")
    allowed = ["clipboard-read", "clipboard-write"]
    async with open_page(browser, base_url(api), WITH_KEY, permissions=allowed) as page:
        await page.goto("/chat")
        await ask(page)
        await button(page, "Copy the code").click()
        await expect(page.locator(".code button")).to_have_text("Copied")
        assert await page.evaluate("navigator.clipboard.readText()") == "if x:\n\treturn '<b>'"


async def test_enter_that_ends_input_composition_does_not_send(page: Page, fake: AzureOpenAI) -> None:
    """In Safari it comes after the composition has ended and only its keyCode, 229, marks it."""
    box = page.get_by_role("textbox", name="Message")
    await box.fill("にほん")
    for details in ({"isComposing": True}, {"keyCode": 229}):
        await box.dispatch_event("keydown", {"key": "Enter", "cancelable": True, **details})
        await expect(box).to_have_value("にほん")
    assert fake.requests == []


async def test_chat_page_works_by_keyboard_alone(page: Page, fake: AzureOpenAI) -> None:
    await expect(page.get_by_role("textbox", name="Message")).to_be_focused()
    await page.keyboard.type("one")
    await page.keyboard.press("Shift+Enter")
    await page.keyboard.type("two")
    await page.keyboard.press("Enter")
    await expect(answer_text(page)).to_contain_text("echo")
    assert fake.requests[0].body["messages"][-1]["content"] == "one\ntwo"
    focused = []
    await page.get_by_role("link", name="Skip to the message").focus()
    for _ in range(13):
        await page.keyboard.press("Tab")
        focused.append(await page.evaluate("document.activeElement.id || document.activeElement.textContent"))
    sidebar, header = ["open", "new", "one two", "Usage", "API", "keys", "theme"], ["rename", "clear", "delete"]
    assert focused == [*sidebar, *header, "messages", "message", "send"]
    await page.get_by_role("textbox", name="Message").fill("three")
    with fake.hold(after=1) as hold:
        await button(page, "Send").press("Enter")
        await expect(button(page, "Stop")).to_be_focused()
        await expect(answer_text(page)).to_have_text("echo")
        await page.keyboard.press("Enter")
        await expect(button(page, "Send")).to_be_focused()
        hold.release()


# Stopping an answer


STOPPED = re.compile(r"Stopped\. It costs between \$0 and \$0\.\d+, counted apart from the total cost\.")


async def begin_answer(page: Page, text: str = "count", shown: str = "echo") -> None:
    """Send a message whose answer is held after its first word."""
    await write_message(page, text)
    await expect(answer_text(page)).to_have_text(shown)


def answer_notes(page: Page, nth: int = -1) -> Locator:
    return page.get_by_role("article", name="Answer").nth(nth).locator(".notes")


async def held_requests(page: Page, url: str) -> list[Route]:
    """The later requests to this URL, which are not sent until the test does so."""
    held: list[Route] = []

    def hold(route: Route) -> None:
        held.append(route)

    await page.route(url, hold)
    return held


async def hang_up_seen(fake: AzureOpenAI) -> None:
    """Wait until the model service has seen its connection close before the end of the answer."""

    async def seen() -> bool | None:
        return [call.outcome for call in fake.meter] == ["hang_up"] or None

    await until(seen)


async def test_stop_ends_the_turn_and_keeps_the_partial_answer(
    page: Page, api: httpx.AsyncClient, fake: AzureOpenAI, tables: Tables
) -> None:
    fake.reply("One two three.")
    with fake.hold(after=1):
        await begin_answer(page, shown="One")
        await page.keyboard.press("Escape")
        await hang_up_seen(fake)
        await expect(answer_notes(page)).to_have_text(STOPPED)
    await expect(answer_text(page)).to_have_text("One")
    await expect(answer_footer(page)).to_have_text("gpt-5.4-mini-2026-03-17")
    await expect(page.locator("#totals")).to_have_text(
        re.compile(r"^1 turn · 0 tokens · \$0 · 1 call stopped, between \$0 and \$0\.\d+$")
    )
    totals = (await api.get(f"/api/sessions/{await session_of(page)}")).text
    bounds = re.findall(r'"stopped_at_(?:least|most)_usd":([\d.]+)', totals)
    assert await titles(page.locator("#totals")) == ["$0", *(f"${bound}" for bound in bounds)]
    assert await titles(answer_notes(page)) == [f"${bound}" for bound in bounds]
    await assert_conserved(tables, fake)

    await page.reload()

    await expect(answer_text(page)).to_have_text("One")
    await expect(answer_notes(page)).to_have_text(STOPPED)


async def test_message_sent_during_a_stop_waits_for_it_and_is_then_answered(page: Page, fake: AzureOpenAI) -> None:
    stops = await held_requests(page, "**/stop")
    with fake.hold(after=1):
        await begin_answer(page)
        await button(page, "Stop").click()
        await expect(button(page, "Send")).to_be_focused()
        await expect(answer_notes(page)).to_have_text("Stopping…")
        keys = idempotency_keys(page)
        await write_message(page, "more")
        await expect(page.get_by_role("article", name="You")).to_have_count(2)
        assert keys == []
        assert [stop.request.headers["x-functions-key"] for stop in stops] == [FUNCTION_KEY]
        await stops[0].continue_()
        await expect(answer_text(page)).to_have_text("echo: more")
    await expect(answer_notes(page, 0)).to_have_text(STOPPED)
    await expect(answer_notes(page)).to_be_empty()
    await expect(page.locator("#totals")).to_contain_text("2 turns")
    assert len(keys) == 1
    assert [m["content"] for m in fake.requests[1].body["messages"][1:]] == ["count", "echo", "more"]


async def test_stop_before_the_answer_begins_stops_the_turn_once_it_has_begun(
    page: Page, fake: AzureOpenAI, tables: Tables
) -> None:
    requests = await held_requests(page, "**/api/chat")
    with fake.hold(after=0):
        async with page.expect_request("**/api/chat"):
            await write_message(page, "count")
        await page.keyboard.press("Escape")
        await expect(answer_notes(page)).to_have_text("Stopping…")
        await requests[0].continue_()
        await expect(answer_notes(page)).to_contain_text("Stopped")
    await expect(button(page, "Send")).to_be_visible()
    assert {entry.call.state for entry in await closed_ledger(tables)} <= {State.STOPPED, State.FAILED}
    await assert_conserved(tables, fake)


@pytest.mark.acceptance
async def test_stop_of_an_answer_on_another_instance_takes_effect_with_its_next_renewal(
    browser: Browser,
    clock: ManualClock,
    api: httpx.AsyncClient,
    environ: dict[str, str],
    fake: AzureOpenAI,
    tmp_path: Path,
) -> None:
    with HostFactory() as host_factory:
        other = host_factory.host(environ, tmp_path / "other.log")

        async def send_to_other(route: Route) -> None:
            path = urlsplit(route.request.url).path
            await route.fulfill(response=await route.fetch(url=f"{other.base}{path}"))

        async with open_page(browser, base_url(api), WITH_KEY) as page:
            await page.goto("/chat")
            await page.route("**/stop", send_to_other)
            with fake.hold(after=1):
                await begin_answer(page)
                await button(page, "Stop").click()
                await expect(answer_notes(page)).to_contain_text("Another instance of the server runs this answer")
                await write_message(page, "more")
                await expect(page.get_by_role("status")).to_have_text(
                    "The stopped answer ends within 10 seconds. Then this message is sent…"
                )
                assert fake.meter == []
                await clock.advance(10)
                await expect(answer_text(page)).to_have_text("echo: more")
            await expect(answer_notes(page, 0)).to_have_text(STOPPED)
            assert [call.outcome for call in fake.meter] == ["hang_up", "ok"]


async def test_failed_stop_is_reported_and_the_full_answer_can_be_shown(page: Page, fake: AzureOpenAI) -> None:
    fake.reply("One two three.")
    await page.route("**/stop", lambda route: route.fulfill(status=503, body="", headers={"retry-after": "1"}))
    with fake.hold(after=1) as hold:
        await begin_answer(page, shown="One")
        await page.keyboard.press("Escape")
        await expect(answer_notes(page)).to_contain_text("The answer could not be stopped: the server completes")
        hold.release()
    await expect(answer_notes(page)).to_contain_text("Stopped too late: the server completed and counted the answer.")
    await expect(answer_text(page)).to_have_text("One")
    await expect(answer_footer(page)).to_contain_text("tokens · $0.0000")
    await button(page, "Show the full answer").click()
    await expect(answer_text(page)).to_have_text("One two three.")


async def test_closing_the_tab_does_not_stop_the_turn(
    browser: Browser, api: httpx.AsyncClient, fake: AzureOpenAI, tables: Tables
) -> None:
    with fake.hold(after=1) as hold:
        async with open_page(browser, base_url(api), WITH_KEY) as page:
            await page.goto("/chat")
            await begin_answer(page)
            await page.close()
        await asyncio.sleep(0.3)  # a stop would be noticed immediately
        assert fake.busy == 1
        hold.release()
    assert [entry.call.state for entry in await closed_ledger(tables)] == [State.SETTLED]
    assert [call.outcome for call in fake.meter] == ["ok"]


async def test_message_is_retried_with_same_idempotency_key_while_session_is_busy(
    page: Page, api: httpx.AsyncClient, fake: AzureOpenAI
) -> None:
    await ask(page)
    with fake.hold(after=1) as hold:
        async with streaming(api, "in another tab", await session_of(page)):
            await hold.until_reached()
            keys = idempotency_keys(page)
            await write_message(page, "more")
            await expect(page.get_by_role("status")).to_have_text(WAITING)
            hold.release()
            await expect(answer_text(page)).to_have_text("echo: more")
    await expect(answer_notes(page)).to_be_empty()
    assert len(keys) >= 2
    assert len(set(keys)) == 1


async def test_stop_of_a_waiting_message_does_not_stop_the_turn_that_it_waits_for(
    page: Page, api: httpx.AsyncClient, fake: AzureOpenAI
) -> None:
    await ask(page)
    with fake.hold(after=1) as hold:
        async with streaming(api, "in another tab", await session_of(page)) as other:
            await hold.until_reached()
            await write_message(page, "more")
            await expect(page.get_by_role("status")).to_have_text(WAITING)
            await page.route("**/api/chat", lambda _: None)  # never responds
            async with page.expect_request("**/api/chat"):
                pass
            await page.keyboard.press("Escape")
            await expect(button(page, "Send")).to_be_visible()
            await expect(answer_notes(page)).to_contain_text("Stopped. If the server has accepted the message")
            hold.release()
            assert (await other.rest())[-1].data["finish_reason"] == "stop"


# Errors


async def test_function_key_is_requested_and_stored_only_in_session_storage(
    browser: Browser, api: httpx.AsyncClient
) -> None:
    async with open_page(browser, base_url(api)) as page:
        await page.goto("/chat")
        dialog = page.get_by_role("dialog", name="A function key is required")
        field = dialog.get_by_role("textbox", name="Function key")
        await field.fill("wrong")
        await field.press("Enter")
        await expect(dialog).to_contain_text("The key was rejected")
        await expect(dialog).to_contain_text("If the app was just deployed: wait some minutes")
        await field.fill(FUNCTION_KEY)
        await field.press("Enter")
        await expect(page.locator("#about")).to_have_text("chat")
        await ask(page)
        assert FUNCTION_KEY not in page.url
        assert FUNCTION_KEY not in await page.evaluate("JSON.stringify({...localStorage}) + document.cookie")
        await page.reload()
        await ask(page, "again")
        await expect(page.get_by_role("dialog")).to_have_count(0)


async def test_missing_key_is_reported_and_message_is_kept(browser: Browser, api: httpx.AsyncClient) -> None:
    async with open_page(browser, base_url(api)) as page:
        await page.goto("/chat")
        await expect(page.get_by_role("dialog")).to_be_visible()
        await page.keyboard.press("Escape")
        await expect(page.get_by_role("status")).to_contain_text("A valid key is required.")
        await write_message(page, "hi")
        await button(page, "Cancel").click()
        await expect(page.locator(".notes")).to_contain_text("A valid key is required.")
        await expect(page.get_by_role("textbox", name="Message")).to_have_value("hi")


async def test_send_again_waits_for_retry_after_and_reuses_idempotency_key(page: Page, fake: AzureOpenAI) -> None:
    keys = idempotency_keys(page)
    fake.fault(429, retry_after=1)
    await write_message(page, "hi")
    send_again = page.get_by_role("button", name="Send again")
    await expect(send_again).to_be_disabled()
    await expect(send_again).to_be_enabled()
    await expect(page.locator(".notes")).to_contain_text("rate limit is exceeded. Retry the request in 1 second.")
    await send_again.click()
    await expect(answer_text(page)).to_have_text("echo: hi")
    assert len(keys) == 2
    assert len(set(keys)) == 1


async def test_rejected_message_returns_to_input_for_editing(page: Page, fake: AzureOpenAI) -> None:
    fake.fault("content_filter")
    await write_message(page, "something bad")
    await expect(page.locator(".notes")).to_contain_text("filter")
    await expect(page.get_by_role("button", name="Send again")).to_have_count(0)
    await expect(page.get_by_role("textbox", name="Message")).to_have_value("something bad")

    await page.reload()

    await expect(page.locator(".notes")).to_contain_text("The content filter stopped this message. It may have been")
    await expect(page.locator(".notes")).not_to_contain_text("interrupted")


@pytest.mark.parametrize("body", ["", '{"statusCode": 429, "message": "Too fast."}', '{"error": "Too fast."}', "null"])
async def test_429_from_gateway_shows_readable_error(page: Page, body: str) -> None:
    await page.route(
        "**/api/chat",
        lambda route: route.fulfill(status=429, headers={"retry-after": "1"}, body=body),
        times=1,
    )
    await write_message(page, "hi")
    await expect(page.locator(".notes")).to_contain_text("The server is overloaded. Wait a moment")
    await button(page, "Send again").click()
    await expect(answer_text(page)).to_have_text("echo: hi")


@pytest.mark.parametrize("body", ["", "<html>Web App - Unavailable</html>"])
@pytest.mark.parametrize(
    ("status", "problem", "buttons"),
    [(403, "The platform in front of the server refused (403).", 0), (503, "The server is not available (503).", 1)],
)
async def test_answer_of_the_platform_after_a_deployment_says_to_wait(
    page: Page, status: int, problem: str, buttons: int, body: str
) -> None:
    await page.route("**/api/chat", lambda route: route.fulfill(status=status, body=body), times=1)
    await write_message(page, "hi")
    notes = page.locator(".notes")
    await expect(notes).to_contain_text(
        f"{problem} If the app was just deployed: wait some minutes, then run azd deploy."
    )
    await expect(page.get_by_role("button", name="Send again")).to_have_count(buttons)


async def test_retry_after_lost_connection_is_not_billed_twice(
    browser: Browser, api: httpx.AsyncClient, fake: AzureOpenAI
) -> None:
    assert api.base_url.port
    fake.reply("One two three.")
    with TcpProxy(api.base_url.port) as proxy:
        async with open_page(browser, proxy.endpoint, WITH_KEY) as page:
            await page.goto("/chat")
            keys = idempotency_keys(page)
            with fake.hold(after=1) as hold:
                await write_message(page, "count")
                await expect(answer_text(page)).to_have_text("One")
                proxy.down()
                await expect(page.get_by_role("status")).to_contain_text("The connection was lost. Retrying")
                proxy.up()
                await expect(page.get_by_role("status")).to_contain_text("still answering this message")
                hold.release()
            await expect(answer_text(page)).to_have_text("One two three.")
            await expect(page.locator("#totals")).to_contain_text("1 turn ")
            await expect(page.locator(".notes")).to_be_empty()
    assert len(keys) >= 3
    assert len(set(keys)) == 1
    assert len(fake.meter) == 1


async def test_server_crash_while_streaming_is_retried_and_first_call_unaccounted(
    browser: Browser, environ: dict[str, str], fake: AzureOpenAI, tables: Tables, tmp_path: Path
) -> None:
    with HostFactory() as host_factory:
        first = host_factory.host(environ, tmp_path / "first.log")
        with TcpProxy(first.port) as proxy:
            async with open_page(browser, proxy.endpoint) as page:
                await page.goto("/chat")
                with fake.hold(after=1):
                    await write_message(page, "count")
                    await expect(answer_text(page)).to_have_text("echo")
                    session = await session_of(page)
                    first.kill()
                    await expect(page.get_by_role("status")).to_contain_text("The connection was lost. Retrying")
                await expire_lease(tables, session)
                second = host_factory.host(environ, tmp_path / "second.log")
                proxy.target_port = second.port
                await expect(answer_text(page)).to_have_text("echo: count")
                await expect(page.locator(".notes")).to_contain_text("An earlier attempt was interrupted")
                await expect(page.locator("#totals")).to_contain_text("1 call unaccounted, at most $0.0")
                second.kill()
    assert {row.call.state for row in await ledger(tables)} >= {State.UNACCOUNTED}


# Sessions of a client key


@pytest_asyncio.fixture(loop_scope="module")
async def keyed(serve: Serve, environ: dict[str, str]) -> AsyncIterator[httpx.AsyncClient]:
    """The app with client keys."""
    async with serve(environ | KEYS) as client:
        yield client


async def open_by_id(page: Page, text: str) -> None:
    await button(page, "Open").click()
    field = page.get_by_role("dialog", name="Open a conversation").get_by_role("textbox", name="ID")
    await field.fill(text)
    await field.press("Enter")


async def enter_client_key(page: Page, key: str) -> None:
    field = page.get_by_role("dialog").get_by_role("textbox", name="Client key (optional)")
    await field.fill(key)
    await field.press("Enter")
    await expect(field).to_have_count(0)


async def test_conversation_of_an_agent_is_opened_by_its_id_and_continued(
    browser: Browser, keyed: httpx.AsyncClient, fake: AzureOpenAI, tables: Tables
) -> None:
    async with connected(keyed) as sdk, open_page(browser, base_url(keyed), WITH_KEY) as page:
        conversation = await use_two_tools(sdk, fake)
        added: Any = [{"role": "user", "content": "In Celsius."}, {"role": "assistant", "content": "*Yes.*"}]
        await sdk.conversations.items.create(conversation, items=added)
        await page.goto("/chat")
        await open_by_id(page, conversation)
        await expect(page.get_by_role("status")).to_contain_text("There is no conversation with this ID, or it")
        await button(page, "Keys").click()
        await enter_client_key(page, ANN)
        await open_by_id(page, f" {conversation} ")
        await expect(page.get_by_role("heading", name=QUESTION)).to_be_visible()
        await expect(page.get_by_role("article")).to_have_text(
            [
                QUESTION,
                re.compile(r"^Calls get_weather city: Paris, days: 3\D.*Calls get_weather city: Oslo.*\$0\.00021$"),
                re.compile("^Result of get_weather celsius: 18, sky: clear"),
                re.compile("^Result of get_weather 7 °C, rain"),
                re.compile(r"^Yes: 18 °C in Paris.*\$0\.00022$"),
                "In Celsius.",
                "Yes.Added by a program, without an answer. It cost nothing.",
            ]
        )
        await ask(page, "And Rome?")
        session = conversation.removeprefix("conv_")
        shown = ok_json(await keyed.get(f"/api/sessions/{session}", headers={"api-key": ANN}))
        await expect(page.locator("#totals data")).to_have_attribute("value", f"{shown['cost_usd']:f}")
        assert [sent["role"] for sent in fake.requests[-1].body["messages"]][-3:] == ["user", "assistant", "user"]

        response = await sdk.responses.create(model="chat", input="Ping.")
        await open_by_id(page, response.id)
        await expect(answer_text(page)).to_have_text("echo: Ping.")
        await ask(page, "Pong.")
        branch = await sdk.responses.create(model="chat", input="Again.", previous_response_id=response.id)
        await open_by_id(page, branch.id)
        await expect(page.locator("#totals")).to_contain_text("2 turns, 1 since the branch · ")
        await open_by_id(page, "a/b")
        await expect(page.get_by_role("status")).to_have_text("“a/b” is not the ID of a conversation.")
        assert ANN not in page.url + await page.evaluate("JSON.stringify({...localStorage}) + document.cookie")
        await assert_conserved(tables, fake)


async def test_tool_calls_and_results_open_by_keyboard(
    browser: Browser, keyed: httpx.AsyncClient, fake: AzureOpenAI
) -> None:
    async with (
        connected(keyed) as sdk,
        open_page(browser, base_url(keyed), WITH_KEY | {"client-key": ANN}) as page,
    ):
        conversation = await use_two_tools(sdk, fake)
        await page.goto("/chat")
        await open_by_id(page, conversation)
        paris = page.locator(".tool").first
        await expect(paris.locator("dl")).to_be_hidden()
        await paris.locator("summary").press("Enter")
        await expect(paris.locator("dl")).to_be_visible()
        await expect(paris.locator("dd")).to_have_text(["Paris", "3"])
        assert ("DisclosureTriangle", "Calls get_weather city: Paris, days: 3") in await controls_of(page)


async def test_rejected_client_key_is_requested_again_and_is_optional(
    browser: Browser, keyed: httpx.AsyncClient
) -> None:
    async with open_page(browser, base_url(keyed), WITH_KEY | {"client-key": "wrong"}) as page:
        await page.goto("/chat")
        dialog = page.get_by_role("dialog", name="A client key is required")
        await expect(dialog).to_contain_text("The key was rejected. Invalid API key: not listed in CLIENT_KEYS.")
        await expect(dialog.get_by_role("textbox", name="Client key (optional)")).to_be_focused()
        await expect(dialog.get_by_role("textbox", name="Function key")).to_have_value(FUNCTION_KEY)
        await page.keyboard.press("Enter")
        await expect(page.locator("#about")).to_have_text("chat")


# The list of conversations


async def test_reload_resumes_conversation(page: Page, fake: AzureOpenAI) -> None:
    await ask(page, "What is *this*?")
    await page.reload()
    await expect(page.get_by_role("article", name="You")).to_have_text("What is *this*?")
    await expect(page.get_by_role("heading", name="What is *this*?")).to_be_visible()
    await expect(answer_text(page)).to_have_text("echo: What is this?")
    await ask(page, "more")
    assert [m["content"] for m in fake.requests[1].body["messages"][1:]][::2] == ["What is *this*?", "more"]


async def test_reload_while_streaming_shows_answer_once_completed(page: Page, fake: AzureOpenAI) -> None:
    with fake.hold(after=1) as hold:
        await write_message(page, "count")
        await expect(answer_text(page)).to_have_text("echo")
        await page.reload()
        await expect(page.get_by_text("This answer is not complete yet.")).to_be_visible()
        hold.release()
    await expect(answer_text(page)).to_have_text("echo: count")
    await expect(page.get_by_text("This answer is not complete yet.")).to_have_count(0)


async def test_long_conversation_is_loaded_in_pages(page: Page, tables: Tables) -> None:
    await fill(tables, 45, "long")
    await open_listed(page, "long")
    for shown in (20, 40, 45):
        await expect(page.get_by_role("article", name="You")).to_have_count(shown)
        if shown < 45:
            await button(page, "Earlier messages").click()
    messages = await page.get_by_role("article", name="You").all_text_contents()
    assert messages == [f"message {number}" for number in range(1, 46)]
    await expect(button(page, "Earlier messages")).to_be_hidden()


async def test_tool_calls_of_every_kind_are_shown(page: Page, tables: Tables) -> None:
    custom = {"id": "c1", "type": "custom", "custom": {"name": "code", "input": "print(1)"}}
    function = {"id": "c2", "type": "function", "function": {"name": "look", "arguments": "{}"}}
    await ask(page)  # creates the tables
    legacy = {"name": "ask", "arguments": "[]"}  # together with the others only in this test
    await fill(tables, 1, "tools", content=None, tool_calls=[custom, function], function_call=legacy)
    await open_listed(page, "tools")
    await expect(page.locator("summary")).to_have_text(["Calls code print(1)", "Calls look", "Calls ask []"])


async def test_conversations_can_be_started_renamed_and_switched(page: Page, fake: AzureOpenAI) -> None:
    await ask(page, "apples")
    await button(page, "New").click()
    await expect(page.get_by_role("article")).to_have_count(0)
    await ask(page, "pears")
    await button(page, "Rename").click()
    title = page.get_by_role("dialog").get_by_role("textbox", name="Title")
    await expect(title).to_have_value("pears")
    await title.fill("<b>Fruit</b>")
    await title.press("Enter")
    listed = page.get_by_role("navigation", name="Conversations").get_by_role("button")
    await expect(listed).to_have_text(["<b>Fruit</b>", "apples"])
    await listed.nth(1).click()
    await expect(answer_text(page)).to_have_text("echo: apples")
    await expect(listed.nth(1)).to_have_attribute("aria-current", "page")
    assert await page.evaluate("localStorage.getItem('conversations')") is not None
    assert "echo" not in await page.evaluate("JSON.stringify({...localStorage})")


async def test_clear_deletes_messages_and_keeps_cost(page: Page, api: httpx.AsyncClient) -> None:
    await ask(page, "secret")
    await button(page, "Clear").click()
    await page.get_by_role("dialog", name="Clear this conversation?").get_by_role("button", name="Clear").click()
    await expect(page.get_by_role("status")).to_have_text("Cleared.")
    await expect(page.get_by_role("article")).to_have_count(0)
    await expect(page.locator("#totals")).to_contain_text("1 turn")
    assert (await get_json(api, f"/api/sessions/{await session_of(page)}/messages"))["turns"] == []


async def test_delete_asks_for_confirmation_and_deletes_session(page: Page, api: httpx.AsyncClient) -> None:
    await ask(page)
    session = await session_of(page)
    dialog = page.get_by_role("dialog", name="Delete this conversation?")
    await button(page, "Delete").click()
    await page.keyboard.press("Escape")
    await expect(dialog).to_have_count(0)
    assert (await get_json(api, f"/api/sessions/{session}"))["turns"] == 1
    await button(page, "Delete").click()
    await dialog.get_by_role("button", name="Delete").click()
    await expect(page.get_by_role("status")).to_have_text("Deleted.")
    await expect(page.get_by_role("navigation").get_by_role("button")).to_have_count(0)
    assert (await api.get(f"/api/sessions/{session}")).status_code == 404


async def test_session_deleted_elsewhere_is_removed_from_list_with_notice(page: Page, api: httpx.AsyncClient) -> None:
    await answer(api, "hi", "deleted")
    await api.delete("/api/sessions/deleted")
    await open_listed(page, "deleted", "Holidays")
    await expect(page.get_by_role("status")).to_have_text("“Holidays” was deleted and is no longer listed.")
    await expect(page.get_by_role("navigation").get_by_role("button")).to_have_count(0)


async def test_deletion_in_another_tab_closes_conversation(page: Page, api: httpx.AsyncClient) -> None:
    await ask(page, "secret")
    session = await session_of(page)
    other = await page.context.new_page()
    await other.goto("/chat")
    await open_listed(other, session, "secret")
    await expect(answer_text(other)).to_have_text("echo: secret")
    await button(page, "Delete").click()
    await page.get_by_role("dialog").get_by_role("button", name="Delete").click()
    await expect(other.get_by_role("status")).to_have_text("“secret” was deleted and is no longer listed.")
    await expect(other.get_by_role("article")).to_have_count(0)
    await ask(other, "again")
    assert await session_of(other) != session
    assert (await api.get(f"/api/sessions/{session}")).status_code == 404


# Model output

HEADINGS, TABLE = {"h3", "h4", "h5", "h6"}, {"table", "thead", "tbody", "tr", "th", "td"}
ELEMENTS = (
    {"p", "pre", "code", "ul", "ol", "li", "blockquote", "hr", "strong", "em", "del", "a", "br"} | HEADINGS | TABLE
)
INSPECT = """async texts => {
  const { markdown } = await import("/pages/markdown.js");
  return texts.map(text => {
    const box = document.createElement("div");
    document.body.append(box);
    box.append(markdown(text));
    const elements = [...box.querySelectorAll("*")].map(each => ({
      name: each.localName, svg: each.namespaceURI.endsWith("svg"),
      attributes: [...each.attributes].map(({ name, value }) => [name, value]),
    }));
    box.remove();
    return elements;
  });
}"""
MALICIOUS = [
    "<script>window.ran = 1; alert(1)</script>",
    "<img src=x onerror=alert(1)>",
    "<svg onload=alert(1)><script>alert(1)</script></svg>",
    "<iframe src=javascript:alert(1)></iframe><style>*{display:none}</style><base href=//evil.example>",
    "[x](javascript:alert(1)) [x](JaVaScRiPt:alert(1)) [x](&#106;avascript:alert(1)) [x](java\nscript:alert(1))",
    "[x](data:text/html,<script>alert(1)</script>) [x](vbscript:x) [x](//evil.example) [x]( javascript:alert(1))",
    '![x](https://evil.example/pixel.png) ![x](javascript:alert(1)) ![x](x"onerror="alert(1))',
    '[x](https://example.com/"onmouseover="alert(1)) <https://example.com/"onclick="alert(1)>',
    "[x](https://example.com 'title\" onclick=\"alert(1)')",
    '```"><script>alert(1)</script>\n<b>\n```\n~~~html onload=alert(1)\n</code></pre><script>alert(1)</script>',
    "| <script>alert(1)</script> | b |\n|---|---|\n| <img src=x onerror=alert(1)> | `</td><script>` |",
    "> <script>alert(1)</script>\n\n1. <form action=//evil.example><button>x</button></form>\n- <a href=javascript:x>",
    "__proto__ constructor **__proto__** `constructor` ~~<del>~~ ***<em>***\u2028<script>alert(1)</script>\x00<b>",
    "http://user:password@evil.example/ https://[x] http://%zz https:// http://a\u202eb",
]


async def inspected(page: Page, texts: list[str]) -> list[list[dict[str, Any]]]:
    elements: list[list[dict[str, Any]]] = await page.evaluate(INSPECT, texts)
    return elements


def forbidden_in(element: dict[str, Any]) -> list[Any]:
    """The parts of an element that Markdown may not create."""
    forbidden = [] if element["name"] in ELEMENTS and not element["svg"] else [element["name"]]
    for name, value in element["attributes"]:
        allowed = {"href": r"https?://.*", "rel": "noopener noreferrer", "target": "_blank"}
        of_list = name == "start" and element["name"] == "ol" and value.isdigit()
        of_cell = name == "class" and element["name"] in {"th", "td"} and value in {"center", "right"}
        of_link = element["name"] == "a" and re.fullmatch(allowed.get(name, "$^"), value)
        if not (of_list or of_cell or of_link):
            forbidden.append((element["name"], name, value))
    return forbidden


async def test_model_output_creates_no_element_or_attribute_beyond_markdown(page: Page) -> None:
    """Random mixtures of malicious fragments and Markdown syntax."""
    rng = random.Random(7)
    pieces = [piece for text in MALICIOUS for piece in re.findall(r"\w+|\W", text)]
    pieces += [
        *MALICIOUS,
        *"*_`~[]()<>!#|-+>\\\n\n\n \t\"'&;:/",
        "**",
        "```",
        "~~~\n",
        "\n|",
        "|-|-|\n",
        "\n- ",
        "\n1. ",
        "https://a.b/",
    ]
    texts = ["".join(rng.choices(pieces, k=rng.randrange(1, 40))) for _ in range(2_000)]
    for text, elements in zip([*MALICIOUS, *texts], await inspected(page, [*MALICIOUS, *texts]), strict=True):
        assert [forbidden_in(element) for element in elements if forbidden_in(element)] == [], text


async def test_model_output_never_runs_script_or_loads_resource(page: Page, fake: AzureOpenAI) -> None:
    """End to end: model, stream, page and content security policy."""
    fake.chunk_tokens = 40
    for text in MALICIOUS:
        fake.reply(text)
        await ask(page, text[:30])
    await page.reload()
    await expect(page.get_by_role("article", name="Answer")).to_have_count(len(MALICIOUS))
    assert await page.evaluate("window.ran") is None
    assert await page.locator("#turns :is(script, img, svg, iframe, style, form)").count() == 0


async def run_attack(browser: Browser, api: httpx.AsyncClient) -> None:
    """Do what a mistake in one of the page's scripts could allow."""
    async with open_page(browser, base_url(api), WITH_KEY) as page:
        await page.goto("/chat")
        await page.evaluate(
            """() => {
              const image = document.createElement("img");
              image.src = "https://evil.example/x.png";
              const script = document.createElement("script");
              script.append("window.ran = 1");
              document.body.append(image, script);
              try { document.body.innerHTML = "<b>x</b>"; } catch { window.blocked = true; }
            }"""
        )
        assert await page.evaluate("[window.ran, window.blocked]") == [None, True]


async def test_content_security_policy_blocks_injected_script(browser: Browser, api: httpx.AsyncClient) -> None:
    """This also proves that the other tests' PageWatch detects violations."""
    with pytest.raises(AssertionError, match="Content Security Policy"):
        await run_attack(browser, api)


MARKDOWN = """# Title

One *two* **three** ***four*** `five` ~~six~~ [seven](https://example.com/a_(b)) https://example.com/x. a_b_c
2*3*4 \\*x\\*
second line

- a
  - b

    deep
- [ ] c
- [x] d

3. three
4. four

> quoted
> > twice

| a | b | c |
|---|--:|:-:|
| `1` | **2** | 3 |

```python
def f(x):
\treturn "<b>"
```
***
a | b
---
end"""
EXPECTED_HTML = (
    "<h3>Title</h3><p>One <em>two</em> <strong>three</strong> <strong><em>four</em></strong> <code>five</code>"
    ' <del>six</del> <a href="https://example.com/a_(b)">seven</a> <a href="https://example.com/x">'
    "https://example.com/x</a>. a_b_c<br>2<em>3</em>4 *x*<br>second line</p>"
    "<ul><li><p>a</p><ul><li><p>b</p><p>deep</p></li></ul></li><li><p>☐ c</p></li><li><p>☑ d</p></li></ul>"
    '<ol start="3"><li><p>three</p></li><li><p>four</p></li></ol>'
    "<blockquote><p>quoted</p><blockquote><p>twice</p></blockquote></blockquote>"
    '<table><thead><tr><th>a</th><th class="right">b</th><th class="center">c</th></tr></thead><tbody><tr><td>'
    '<code>1</code></td><td class="right"><strong>2</strong></td><td class="center">3</td></tr></tbody>'
    '</table><pre><code>def f(x):\n\treturn "&lt;b&gt;"</code></pre><hr><p>a | b</p><hr><p>end</p>'
)


async def test_markdown_is_rendered(page: Page) -> None:
    drawn = await page.evaluate(
        """async text => {
          const box = document.createElement("div");
          box.append((await import("/pages/markdown.js")).markdown(text));
          return box.innerHTML;
        }""",
        MARKDOWN,
    )
    assert drawn.replace(' rel="noopener noreferrer" target="_blank"', "") == EXPECTED_HTML


async def test_text_direction_controls_are_removed(page: Page, fake: AzureOpenAI) -> None:
    controls = "".join(map(chr, (*range(0x202A, 0x202F), *range(0x2066, 0x206A))))
    fake.reply(f"left{controls}right `c{controls}de` [ex{controls}ample](https://exam{controls}ple.com/) שלום")
    await ask(page)
    await expect(answer_text(page)).to_have_text("leftright cde example שלום")
    await expect(answer_text(page).get_by_role("link")).to_have_attribute("href", "https://example.com/")


async def test_markdown_is_parsed_in_linear_time(page: Page) -> None:
    pieces = [
        "*a ",
        "**a",
        "[",
        "![a](",
        "`a``",
        "> ",
        "- ",
        "|a",
        "\n\n",
        "  \n",
        "https://",
        "_a*b",
        "\\",
        "|-\n",
        "\n1. ",
    ]
    durations = await page.evaluate(
        """async texts => {
          const { markdown } = await import("/pages/markdown.js");
          return texts.map(text => {
            const began = performance.now();
            markdown(text);
            return performance.now() - began;
          });
        }""",
        [piece * (100_000 // len(piece)) for piece in pieces],
    )
    assert max(durations) < 2_000, dict(zip(pieces, durations, strict=True))  # ms; quadratic time would be minutes


async def test_page_stays_responsive_while_streaming_a_long_answer(page: Page) -> None:
    drawn, text = await page.evaluate(
        """async () => {
          const { AnswerView } = await import("/pages/transcript.js");
          const view = new AnswerView();
          document.body.append(view.article);
          const text = view.article.querySelector(".text");
          let drawn = 0;
          new MutationObserver(() => drawn++).observe(text, { childList: true });
          for (let frame = 0; frame < 20; frame++) {
            view.write("|a|b|\\n|-|-|\\n" + "|1|2|\\n".repeat(10_000) + frame);
            await new Promise(requestAnimationFrame);
          }
          const drawnWhileStreaming = drawn;
          view.finish();
          return [drawnWhileStreaming, text.textContent];
        }"""
    )
    assert 1 <= drawn <= 10
    assert text.endswith("19")


# Layout and accessibility


@pytest.mark.parametrize("path", ["/chat", "/usage"])
async def test_page_fits_a_phone_without_horizontal_scrolling(
    browser: Browser, api: httpx.AsyncClient, fake: AzureOpenAI, path: str
) -> None:
    fake.reply("Aw" * 90 + "\n\n```\n" + "x " * 200 + "\n```\n\n|" + " cell |" * 20 + "\n|" + "---|" * 20)
    async with open_page(browser, base_url(api), WITH_KEY | {"usage-key": USAGE_KEY}, **PHONE) as page:
        await page.goto("/chat")
        await ask(page, "Bw" * 90)
        await page.goto(path)
        await expect(page.locator(".answer, .column").last).to_be_visible()
        assert await page.evaluate("document.documentElement.scrollWidth") == 360
        if path == "/chat":
            assert await page.evaluate("document.querySelector('#turns').scrollWidth") <= 360
            await expect(button(page, "New")).to_be_hidden()
            await button(page, "Conversations").click()
            await button(page, "New").click()
            await expect(page.get_by_role("article")).to_have_count(0)
            await expect(button(page, "New")).to_be_hidden()


# The number of lines that the text of each cell takes.
LINE_COUNTS = """cells => cells.map(cell => {
  const range = document.createRange();
  range.selectNodeContents(cell);
  return new Set([...range.getClientRects()].map(({ top }) => top)).size;
})"""


async def test_wide_table_on_a_phone_scrolls_without_breaking_words(
    browser: Browser, api: httpx.AsyncClient, fake: AzureOpenAI
) -> None:
    fake.reply("|Name|Amount|Description|Reference|Settlement|\n" + "|-" * 5 + "|\n" + "|1" * 5 + "|")
    async with open_page(browser, base_url(api), WITH_KEY, **PHONE) as page:
        await page.goto("/chat")
        await ask(page)
        assert await page.locator(".answer th").evaluate_all(LINE_COUNTS) == [1] * 5
        assert await page.locator(".answer table").evaluate("table => table.scrollWidth > table.clientWidth")
        await page.goto("/docs")
        types = page.locator("#schemas td").get_by_text(re.compile("^(string|integer|boolean)$"))
        await expect(types).not_to_have_count(0)
        names = page.locator("#schemas td:first-child code")
        assert {*await types.evaluate_all(LINE_COUNTS), *await names.evaluate_all(LINE_COUNTS)} == {1}


async def test_phone_shows_deployment_and_send_on_one_line(
    browser: Browser, serve: Serve, environ: dict[str, str]
) -> None:
    deployments = {"AZURE_OPENAI_DEPLOYMENTS": "chat=gpt-5.4-mini, large=gpt-5.4"}
    async with serve(environ | deployments) as api, open_page(browser, base_url(api), WITH_KEY, **PHONE) as page:
        await page.goto("/chat")
        await expect(page.get_by_role("combobox", name="Deployment")).to_be_visible()
        below, send = await box(page.locator(".below")), await box(button(page, "Send"))
        assert below["height"] == send["height"]
        assert below["x"] + below["width"] == send["x"] + send["width"]


async def box(shown: Locator) -> FloatRect:
    rect = await shown.bounding_box()
    assert rect
    return rect


async def test_every_control_has_an_accessible_name(page: Page, fake: AzureOpenAI) -> None:
    fake.reply("[a link](https://example.com)\n```\ncode\n```")
    await ask(page, "first")
    controls = await controls_of(page)
    assert {*controls} >= {
        ("link", "Skip to the message"),
        ("button", "Open"),
        ("button", "New"),
        ("button", "first"),
        ("link", "Usage"),
        ("link", "API"),
        ("button", "Keys"),
        ("button", "Dark mode"),
        ("button", "Rename"),
        ("button", "Clear"),
        ("button", "Delete"),
        ("log", "Messages"),
        ("button", "Copy the code"),
        ("link", "a link"),
        ("textbox", "Message"),
        ("button", "Send"),
    }
    await button(page, "Rename").click()
    dialog = await controls_of(page)
    assert {*dialog} >= {("dialog", "Rename this conversation"), ("textbox", "Title"), ("button", "Cancel")}
    await page.goto("/usage")
    await expect(page.get_by_role("dialog")).to_be_visible()
    await page.keyboard.press("Escape")
    usage = await controls_of(page)
    assert {*usage} >= {("Date", "From"), ("Date", "To"), ("button", "Show"), ("link", "Chat"), ("link", "API")}
    assert [control for control in controls + dialog + usage if not control[1].strip()] == []


async def test_dark_mode_follows_system_until_user_chooses(page: Page) -> None:
    background = "getComputedStyle(document.documentElement).backgroundColor"
    dark, light = "rgb(22, 24, 29)", "rgb(255, 255, 255)"
    assert await page.evaluate(background) == light
    await page.emulate_media(color_scheme="dark")
    assert await page.evaluate(background) == dark
    await button(page, "Dark mode").click()
    assert await page.evaluate(background) == light
    await page.reload()
    assert await page.evaluate(background) == light
    await expect(button(page, "Dark mode")).to_have_attribute("aria-pressed", "false")


# The usage page


async def test_usage_page_shows_exact_costs(browser: Browser, api: httpx.AsyncClient, tables: Tables) -> None:
    await answer(api)  # creates the tables
    today = datetime.now(UTC).date()
    day = today - timedelta(days=3)
    tiny = rates_costing("0.000000000000000001")  # more digits than a float has
    stopped = entry(day, "s", 5, state=State.STOPPED)
    await write(
        tables.usage,
        [
            entry(day, "s", 1, rates=rates_costing("0.1"), caller="web"),
            entry(day, "s", 2, rates=tiny, model="tiny"),
            entry(day, "s", 3, state=State.UNACCOUNTED),
            replace(stopped, call=replace(stopped.call, at_least=Decimal("0.000001"))),
            entry(day + timedelta(days=1), "s", 4, rates=rates_costing("0.25"), caller="web"),
        ],
    )
    api.headers["api-key"] = USAGE_KEY
    days = (await api.get(f"/api/usage/daily?from={today - timedelta(days=13)}&to={today}")).text
    detail = (await api.get(f"/api/usage/daily/{day}")).text
    labels = [f"{date}: ${cost}" for date, cost in re.findall(r'"date":"([\d-]+)".*?"cost_usd":([\d.]+)', days)]
    assert labels[10].startswith(f"{day}: $0.100000000000000001")
    async with open_page(browser, base_url(api), {"usage-key": USAGE_KEY}) as page:
        await page.goto("/usage")
        models, callers = (page.get_by_role("table", name=name) for name in ("By Model", "By Caller"))
        await expect(models.locator("tbody tr")).to_have_count(2)
        columns = page.locator(".column")
        assert await columns.evaluate_all("all => all.map(each => each.ariaLabel)") == labels
        assert (await columns.nth(10).locator("title").text_content() or "").split("\n")[0] == labels[10]
        await expect(page.locator("#total data")).to_have_attribute("title", f"${days.rpartition(':')[2][:-1]}")
        assert (await titles(models))[0].startswith("$0.35")

        await columns.nth(10).press("Enter")
        await expect(page.get_by_role("heading", name=str(day))).to_be_visible()
        assert await titles(models) == costs(detail, "by_model")
        assert await titles(callers) == costs(detail, "by_caller")
        row = page.get_by_role("table", name="Day by day").get_by_role("row").filter(has_text=str(day))
        [unaccounted] = re.findall(r'"unaccounted_usd":([\d.]+)', detail)
        bounds = re.findall(r'"stopped_at_(?:least|most)_usd":([\d.]+)', detail)
        cost = labels[10].partition(": ")[2]
        assert await titles(row) == [cost, f"${unaccounted}", *(f"${bound}" for bound in bounds)]
        assert await row.locator("td").all_inner_texts() == [
            *("$0.10", "4", "2,200", "1", "$0.012", "1", "between $0.0000010 and $0.012", "0")
        ]


async def titles(within: Locator) -> list[str]:
    amounts: list[str] = await within.locator("data").evaluate_all("all => all.map(each => each.title)")
    return amounts


def costs(detail: str, kind: str) -> list[str]:
    """The amounts, with exactly the digits sent."""
    listed = detail.partition(f'"{kind}":')[2].partition("]")[0]
    return [f"${cost}" for cost in re.findall(r'"cost_usd":([\d.]+)', listed)]


async def test_usage_page_does_not_show_unknown_price_as_zero(
    browser: Browser, serve: Serve, environ: dict[str, str], fake: AzureOpenAI
) -> None:
    fake.model_name = "unheard-of"
    async with serve(environ | {"PRICES": "", "USAGE_KEYS": line("ann", USAGE_KEY)}) as api:
        await answer(api)
        async with open_page(browser, base_url(api), {"usage-key": USAGE_KEY}) as page:
            await page.goto("/usage")
            rows = page.locator("table:not([aria-label='Day by day']) tbody tr, tr:has-text('not final')")
            await expect(rows).to_have_count(3)  # of the model, the caller and today
            for part in (page.locator("#total"), *await rows.all()):
                await expect(part).to_contain_text("price not known")
                await expect(part).not_to_contain_text("$0")
            await expect(page.locator(".column").last).to_have_attribute("aria-label", re.compile("price not known"))


async def test_usage_page_requires_usage_key(browser: Browser, api: httpx.AsyncClient) -> None:
    async with open_page(browser, base_url(api), WITH_KEY) as page:
        await page.goto("/usage")
        field = page.get_by_role("textbox", name="Usage key")
        await field.fill(FUNCTION_KEY)
        await field.press("Enter")
        await expect(page.get_by_role("dialog")).to_contain_text("Invalid API key: not listed in USAGE_KEYS.")
        await field.fill(USAGE_KEY)
        await field.press("Enter")
        await expect(page.locator(".column")).to_have_count(14)
        assert USAGE_KEY not in await page.evaluate("JSON.stringify({...localStorage}) + location")


async def test_usage_page_reports_too_long_date_range(browser: Browser, api: httpx.AsyncClient) -> None:
    async with open_page(browser, base_url(api), {"usage-key": USAGE_KEY}) as page:
        await page.goto("/usage")
        await page.get_by_label("From").fill("2020-01-01")
        await button(page, "Show").click()
        await expect(page.get_by_role("status")).to_have_text(
            "`from` must not be after `to`, and the range may span at most 92 days."
        )


async def test_docs_page_opens_at_url_fragment(browser: Browser, api: httpx.AsyncClient) -> None:
    async with open_page(browser, base_url(api)) as page:
        await page.goto("/docs#ChatAnswer")
        await expect(page.get_by_role("heading", name="ChatAnswer", exact=True)).to_be_in_viewport()
    async with open_page(browser, base_url(api)) as page:
        await page.goto("/docs#%")  # no percent-encoding
        await expect(page.get_by_role("heading", name="Objects")).to_be_visible()
        await expect(page.locator("#status")).not_to_contain_text("can't be loaded")


async def test_docs_page_shows_all_routes_and_schemas(browser: Browser, api: httpx.AsyncClient) -> None:
    contract = (await api.get("/api/openapi.json")).json()
    async with open_page(browser, base_url(api), {}, **PHONE) as page:
        await page.goto("/docs")
        for path, methods in contract["paths"].items():
            for method in methods:
                await expect(page.get_by_role("heading", name=f"{method.upper()} {path}", exact=True)).to_be_visible()
                for response in methods[method]["responses"].values():
                    for header in response.get("headers", {}):
                        section = page.locator("section", has_text=f"{method.upper()} {path}")
                        await expect(section.get_by_text(header, exact=True).first).to_be_attached()
        for name, model in contract["components"]["schemas"].items():
            rows = page.get_by_role("table", name=name, exact=True).locator("tbody tr")
            await expect(rows).to_have_count(len(model.get("properties", {})))
        assert await page.evaluate("document.documentElement.scrollWidth <= innerWidth")
        await page.get_by_role("link", name="ChatAnswer", exact=True).first.click()
        await expect(page.get_by_role("heading", name="ChatAnswer", exact=True)).to_be_in_viewport()
