"""The web pages in a real browser, against the app, Azurite and the fake model."""

import json
import random
import re
from collections.abc import AsyncIterator
from datetime import UTC, datetime, timedelta
from pathlib import Path
from typing import Any

import httpx
import pytest
import pytest_asyncio
from playwright.async_api import Browser, FloatRect, Locator, Page, Request, expect

from local.keys import line, new_key
from shared.domain.calls import State
from tests.conftest import FUNCTION_KEY, Serve, Tables, opened
from tests.support.azure_openai import AzureOpenAI
from tests.support.browser import chromium, names_of_controls, visiting
from tests.support.killing import Nursery
from tests.support.ledger_rows import entry, money, write
from tests.support.proxy import TcpProxy
from tests.support.talking import age_lease, answer, fill, ledger, look

pytestmark = pytest.mark.asyncio(loop_scope="module")  # the browser's loop, and so everybody's

USAGE_KEY = new_key()
WITH_KEY = {"function-key": FUNCTION_KEY}
PHONE: dict[str, Any] = {"viewport": {"width": 360, "height": 640}, "has_touch": True, "is_mobile": True}

WAITING = "Another turn of this conversation is still running. Waiting for its end…"


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
    async with opened(azurite_port, prefix) as found:
        yield found


@pytest_asyncio.fixture(loop_scope="module")
async def page(browser: Browser, api: httpx.AsyncClient) -> AsyncIterator[Page]:
    """The chat page, its key known."""
    async with visiting(browser, base(api), WITH_KEY) as page:
        await page.goto("/chat")
        yield page


def base(api: httpx.AsyncClient) -> str:
    return str(api.base_url).rstrip("/")


def named(page: Page, button: str) -> Locator:
    return page.get_by_role("button", name=button, exact=True)


def words(page: Page) -> Locator:
    """Of the last answer."""
    return page.get_by_role("article", name="Answer").last.locator(".text")


def figures(page: Page) -> Locator:
    return page.get_by_role("article", name="Answer").last.locator("footer")


async def write_message(page: Page, text: str) -> None:
    await page.get_by_role("textbox", name="Message").fill(text)
    await page.keyboard.press("Enter")


async def ask(page: Page, text: str = "hi") -> None:
    """And wait until it is answered."""
    before = await page.locator(".answer footer:not(:empty)").count()
    await write_message(page, text)
    await expect(page.locator(".answer footer:not(:empty)")).to_have_count(before + 1)


async def session_of(page: Page) -> str:
    found: str = await page.evaluate("sessionStorage.getItem('open-conversation')")
    return found


async def open_kept(page: Page, session: str, title: str = "Kept") -> None:
    """Open a conversation that this browser knows of."""
    kept = json.dumps([{"id": session, "title": title}])
    await page.evaluate("kept => localStorage.setItem('conversations', kept)", kept)
    await page.evaluate("id => sessionStorage.setItem('open-conversation', id)", session)
    await page.reload()


def keys_sent(page: Page) -> list[str]:
    """The Idempotency-Key of every post from now on."""
    keys: list[str] = []

    def note(request: Request) -> None:
        if request.method == "POST":
            keys.append(request.headers["idempotency-key"])

    page.on("request", note)
    return keys


# A message and its answer


async def test_words_arrive_while_the_model_still_speaks(page: Page, fake: AzureOpenAI) -> None:
    fake.reply("One **two** three.")
    with fake.hold(after=8) as hold:
        await write_message(page, "count")
        await expect(words(page)).to_contain_text("One two")
        await expect(named(page, "Stop")).to_be_visible()
        await expect(named(page, "Send")).to_be_hidden()
        assert not hold.open
        hold.release()
    await expect(words(page)).to_have_text("One two three.")
    await expect(words(page).locator("strong")).to_have_text("two")
    await expect(named(page, "Stop")).to_be_hidden()
    await expect(page.get_by_role("article", name="You")).to_have_text("count")


async def test_tokens_and_cost_are_told_by_message_and_conversation_exactly(page: Page, api: httpx.AsyncClient) -> None:
    await ask(page, "one")
    await ask(page, "two")
    session = await session_of(page)
    told = (await api.get(f"/api/sessions/{session}/messages")).text
    totals = (await api.get(f"/api/sessions/{session}")).text
    tokens = re.findall(r'"total_tokens":(\d+)', told)
    costs = re.findall(r'"cost_usd":([\d.]+)', told)
    await expect(figures(page)).to_contain_text(f"gpt-5.4-mini-2026-03-17 · {tokens[0]} tokens · $0.0000")
    assert await page.locator(".answer footer data").evaluate_all("all => all.map(one => one.title)") == [
        f"${costs[1]}",
        f"${costs[0]}",
    ]
    [whole] = re.findall(r'"cost_usd":([\d.]+)', totals)
    await expect(page.locator("#totals data")).to_have_attribute("title", f"${whole}")
    await expect(page.locator("#totals")).to_contain_text(f"2 turns · {int(tokens[0]) + int(tokens[1])} tokens")


async def test_a_cost_that_is_not_known_is_not_a_zero(
    browser: Browser, serve: Serve, environ: dict[str, str], fake: AzureOpenAI
) -> None:
    fake.model_name = "unheard-of"
    async with serve(environ | {"PRICES": ""}) as api, visiting(browser, base(api), WITH_KEY) as page:
        await page.goto("/chat")
        await ask(page)
        await expect(figures(page)).to_contain_text("price not known")
        await expect(page.locator("#totals")).to_contain_text("price not known · 1 turn of unknown price")
        fake.fault("content_filter")
        await write_message(page, "something violent")
        await expect(page.locator("#totals")).to_contain_text("1 call unaccounted, price not known")
        await expect(page.locator("main")).not_to_contain_text("$0")


async def test_a_deployment_is_chosen_where_there_are_several(
    browser: Browser, serve: Serve, environ: dict[str, str], fake: AzureOpenAI
) -> None:
    several = {"AZURE_OPENAI_DEPLOYMENTS": "chat=gpt-5.4-mini, large=gpt-5.4", "REGION_NAME": "Sweden Central"}
    async with serve(environ | several) as api, visiting(browser, base(api), WITH_KEY) as page:
        await page.goto("/chat")
        await expect(page.locator("#about")).to_have_text("chat · Sweden Central")
        await page.get_by_role("combobox", name="Deployment").select_option("large")
        await ask(page)
        assert [request.body["model"] for request in fake.requests] == ["large"]


async def test_stopping_ends_the_reading_and_not_the_turn(page: Page, fake: AzureOpenAI, tables: Tables) -> None:
    fake.reply("One two three.")
    with fake.hold(after=1) as hold:
        await write_message(page, "count")
        await expect(words(page)).to_have_text("One")
        await page.keyboard.press("Escape")
        await expect(page.get_by_text("You stopped reading. If the message has reached the service")).to_be_visible()
        await expect(named(page, "Send")).to_be_visible()
        hold.release()
    await expect(page.get_by_text("The answer was completed, and is counted.")).to_be_visible()
    await expect(words(page)).to_have_text("One")
    await expect(figures(page)).to_contain_text("tokens · $0.0000")
    assert [billed.outcome for billed in fake.meter] == ["ok"]
    await named(page, "Show the whole answer").click()
    await expect(words(page)).to_have_text("One two three.")


async def test_a_message_waits_for_the_turn_before_it_and_is_sent_by_itself(page: Page, fake: AzureOpenAI) -> None:
    with fake.hold(after=1) as hold:
        await write_message(page, "count")
        await expect(words(page)).to_have_text("echo")
        await page.keyboard.press("Escape")
        await expect(named(page, "Send")).to_be_visible()
        keys = keys_sent(page)
        await write_message(page, "more")
        await expect(page.get_by_role("status")).to_have_text(WAITING)
        hold.release()
    await expect(words(page)).to_have_text("echo: more")
    await expect(page.get_by_role("article", name="Answer").last.locator(".notes")).to_be_empty()
    assert len(keys) >= 2
    assert len(set(keys)) == 1


async def test_a_message_that_waits_is_stopped_at_once(page: Page, fake: AzureOpenAI) -> None:
    with fake.hold(after=1):
        await write_message(page, "count")
        await expect(words(page)).to_have_text("echo")
        await page.keyboard.press("Escape")
        await expect(named(page, "Send")).to_be_visible()
        await write_message(page, "more")
        await expect(page.get_by_role("status")).to_have_text(WAITING)
        await page.route("**/api/chat", lambda _: None)  # never answered
        async with page.expect_request("**/api/chat"):
            pass
        await page.keyboard.press("Escape")
        await expect(page.get_by_role("article", name="Answer").last).to_contain_text("You stopped reading.")


async def test_going_elsewhere_ends_the_reading_and_not_the_turn(page: Page, fake: AzureOpenAI) -> None:
    with fake.hold(after=0) as hold:
        await write_message(page, "count")
        await hold.until_reached()  # or the other message may be the one that is held
        await named(page, "New").click()
        await expect(page.get_by_role("article")).to_have_count(0)
        await ask(page, "something else")
        hold.release()
    await page.get_by_role("navigation", name="Conversations").get_by_role("button", name="count").click()
    await expect(words(page)).to_have_text("echo: count")


async def test_code_is_copied_as_it_stands(browser: Browser, api: httpx.AsyncClient, fake: AzureOpenAI) -> None:
    fake.reply("```python\nif x:\n\treturn '<b>'\n```")
    allowed = ["clipboard-read", "clipboard-write"]
    async with visiting(browser, base(api), WITH_KEY, permissions=allowed) as page:
        await page.goto("/chat")
        await ask(page)
        await named(page, "Copy the code").click()
        await expect(page.locator(".code button")).to_have_text("Copied")
        assert await page.evaluate("navigator.clipboard.readText()") == "if x:\n\treturn '<b>'"


async def test_the_enter_that_ends_a_composition_sends_nothing(page: Page, fake: AzureOpenAI) -> None:
    """Safari's comes after the composition has ended, so its code alone tells it."""
    box = page.get_by_role("textbox", name="Message")
    await box.fill("にほん")
    for details in ({"isComposing": True}, {"keyCode": 229}):
        await box.dispatch_event("keydown", {"key": "Enter", "cancelable": True, **details})
        await expect(box).to_have_value("にほん")
    assert fake.requests == []


async def test_it_is_all_done_by_keyboard(page: Page, fake: AzureOpenAI) -> None:
    await expect(page.get_by_role("textbox", name="Message")).to_be_focused()
    await page.keyboard.type("one")
    await page.keyboard.press("Shift+Enter")
    await page.keyboard.type("two")
    await page.keyboard.press("Enter")
    await expect(words(page)).to_contain_text("echo")
    assert fake.requests[0].body["messages"][-1]["content"] == "one\ntwo"
    focused = []
    await page.get_by_role("link", name="Skip to the message").focus()
    for _ in range(11):
        await page.keyboard.press("Tab")
        focused.append(await page.evaluate("document.activeElement.id || document.activeElement.textContent"))
    side, top = ["new", "one two", "Usage", "API", "theme"], ["rename", "clear", "delete"]
    assert focused == [*side, *top, "messages", "message", "send"]
    await page.get_by_role("textbox", name="Message").fill("three")
    with fake.hold(after=1) as hold:
        await named(page, "Send").press("Enter")
        await expect(named(page, "Stop")).to_be_focused()
        await expect(words(page)).to_have_text("echo")
        await page.keyboard.press("Enter")
        await expect(named(page, "Send")).to_be_focused()
        hold.release()


# Where something goes wrong


async def test_it_asks_for_the_key_and_keeps_it_for_the_session_only(browser: Browser, api: httpx.AsyncClient) -> None:
    async with visiting(browser, base(api)) as page:
        await page.goto("/chat")
        dialog = page.get_by_role("dialog", name="This service wants a key")
        field = dialog.get_by_role("textbox", name="Function key")
        await field.fill("wrong")
        await field.press("Enter")
        await expect(dialog).to_contain_text("was not accepted")
        await field.fill(FUNCTION_KEY)
        await field.press("Enter")
        await expect(page.locator("#about")).to_have_text("chat")
        await ask(page)
        assert FUNCTION_KEY not in page.url
        assert FUNCTION_KEY not in await page.evaluate("JSON.stringify({...localStorage}) + document.cookie")
        await page.reload()
        await ask(page, "again")
        await expect(page.get_by_role("dialog")).to_have_count(0)


async def test_without_a_key_it_says_so_and_keeps_what_was_written(browser: Browser, api: httpx.AsyncClient) -> None:
    async with visiting(browser, base(api)) as page:
        await page.goto("/chat")
        await expect(page.get_by_role("dialog")).to_be_visible()
        await page.keyboard.press("Escape")
        await expect(page.get_by_role("status")).to_have_text("The service wants a key.")
        await write_message(page, "hi")
        await named(page, "Cancel").click()
        await expect(page.locator(".notes")).to_contain_text("The service wants a key.")
        await expect(page.get_by_role("textbox", name="Message")).to_have_value("hi")


async def test_what_may_be_sent_again_is_with_the_same_key_once_it_may(page: Page, fake: AzureOpenAI) -> None:
    keys = keys_sent(page)
    fake.fault(429, retry_after=1)
    await write_message(page, "hi")
    again = page.get_by_role("button", name="Send again")
    await expect(again).to_be_disabled()
    await expect(again).to_be_enabled()
    await expect(page.locator(".notes")).to_contain_text("over its rate limit. Send this again in 1 second.")
    await again.click()
    await expect(words(page)).to_have_text("echo: hi")
    assert len(keys) == 2
    assert len(set(keys)) == 1


async def test_what_can_not_be_sent_is_given_back_to_be_mended(page: Page, fake: AzureOpenAI) -> None:
    fake.fault("content_filter")
    await write_message(page, "something bad")
    await expect(page.locator(".notes")).to_contain_text("filter")
    await expect(page.get_by_role("button", name="Send again")).to_have_count(0)
    await expect(page.get_by_role("textbox", name="Message")).to_have_value("something bad")


@pytest.mark.parametrize("said", ["", '{"statusCode": 429, "message": "Too fast."}', '{"error": "Too fast."}', "null"])
async def test_a_refusal_that_is_not_the_services_is_told_in_words(page: Page, said: str) -> None:
    await page.route(
        "**/api/chat",
        lambda route: route.fulfill(status=429, headers={"retry-after": "1"}, body=said),
        times=1,
    )
    await write_message(page, "hi")
    await expect(page.locator(".notes")).to_contain_text("The service has too much to do. Wait a moment")
    await named(page, "Send again").click()
    await expect(words(page)).to_have_text("echo: hi")


async def test_a_lost_connection_is_not_paid_for_twice(
    browser: Browser, api: httpx.AsyncClient, fake: AzureOpenAI
) -> None:
    assert api.base_url.port
    fake.reply("One two three.")
    with TcpProxy(api.base_url.port) as proxy:
        async with visiting(browser, proxy.endpoint, WITH_KEY) as page:
            await page.goto("/chat")
            keys = keys_sent(page)
            with fake.hold(after=1) as hold:
                await write_message(page, "count")
                await expect(words(page)).to_have_text("One")
                proxy.down()
                await expect(page.get_by_role("status")).to_contain_text("The connection was lost. Trying again")
                proxy.up()
                await expect(page.get_by_role("status")).to_contain_text("still busy with this message")
                hold.release()
            await expect(words(page)).to_have_text("One two three.")
            await expect(page.locator("#totals")).to_contain_text("1 turn ")
            await expect(page.locator(".notes")).to_be_empty()
    assert len(keys) >= 3
    assert len(set(keys)) == 1
    assert len(fake.meter) == 1


async def test_a_server_that_is_killed_in_mid_answer_is_asked_again_and_the_first_call_told(
    browser: Browser, environ: dict[str, str], fake: AzureOpenAI, tables: Tables, tmp_path: Path
) -> None:
    with Nursery() as nursery:
        first = nursery.host(environ, tmp_path / "first.log")
        with TcpProxy(first.port) as proxy:
            async with visiting(browser, proxy.endpoint) as page:
                await page.goto("/chat")
                with fake.hold(after=1):
                    await write_message(page, "count")
                    await expect(words(page)).to_have_text("echo")
                    session = await session_of(page)
                    first.kill()
                    await expect(page.get_by_role("status")).to_contain_text("The connection was lost. Trying again")
                await age_lease(tables, session)
                second = nursery.host(environ, tmp_path / "second.log")
                proxy.target_port = second.port
                await expect(words(page)).to_have_text("echo: count")
                await expect(page.locator(".notes")).to_contain_text("An earlier attempt was interrupted")
                await expect(page.locator("#totals")).to_contain_text("1 call unaccounted, at most $0.0")
                second.kill()
    assert {found.call.state for found in await ledger(tables)} >= {State.UNACCOUNTED}


# The list of conversations


async def test_a_conversation_is_resumed_after_a_reload(page: Page, fake: AzureOpenAI) -> None:
    await ask(page, "What is *this*?")
    await page.reload()
    await expect(page.get_by_role("article", name="You")).to_have_text("What is *this*?")
    await expect(page.get_by_role("heading", name="What is *this*?")).to_be_visible()
    await expect(words(page)).to_have_text("echo: What is this?")
    await ask(page, "more")
    assert [m["content"] for m in fake.requests[1].body["messages"][1:]][::2] == ["What is *this*?", "more"]


async def test_an_answer_that_a_reload_cut_off_is_shown_once_it_is_there(page: Page, fake: AzureOpenAI) -> None:
    with fake.hold(after=1) as hold:
        await write_message(page, "count")
        await expect(words(page)).to_have_text("echo")
        await page.reload()
        await expect(page.get_by_text("This answer is not finished.")).to_be_visible()
        hold.release()
    await expect(words(page)).to_have_text("echo: count")
    await expect(page.get_by_text("This answer is not finished.")).to_have_count(0)


async def test_a_long_conversation_is_read_by_pages(page: Page, tables: Tables) -> None:
    await fill(tables, 45, "long")
    await open_kept(page, "long")
    for shown in (20, 40, 45):
        await expect(page.get_by_role("article", name="You")).to_have_count(shown)
        if shown < 45:
            await named(page, "Earlier messages").click()
    said = await page.get_by_role("article", name="You").all_text_contents()
    assert said == [f"message {number}" for number in range(1, 46)]
    await expect(named(page, "Earlier messages")).to_be_hidden()


async def test_calls_of_tools_of_every_kind_are_shown(page: Page, tables: Tables) -> None:
    custom = {"id": "c1", "type": "custom", "custom": {"name": "code", "input": "print(1)"}}
    usual = {"id": "c2", "type": "function", "function": {"name": "look", "arguments": "{}"}}
    await ask(page)  # makes the tables
    older = {"name": "ask", "arguments": "[]"}  # which never comes beside tools
    await fill(tables, 1, "tools", content=None, tool_calls=[custom, usual], function_call=older)
    await open_kept(page, "tools")
    for called in ("[calls code(print(1))]", "[calls look({})]", "[calls ask([])]"):
        await expect(words(page)).to_contain_text(called)


async def test_conversations_are_begun_renamed_and_changed_between(page: Page, fake: AzureOpenAI) -> None:
    await ask(page, "apples")
    await named(page, "New").click()
    await expect(page.get_by_role("article")).to_have_count(0)
    await ask(page, "pears")
    await named(page, "Rename").click()
    title = page.get_by_role("dialog").get_by_role("textbox", name="Title")
    await expect(title).to_have_value("pears")
    await title.fill("<b>Fruit</b>")
    await title.press("Enter")
    listed = page.get_by_role("navigation", name="Conversations").get_by_role("button")
    await expect(listed).to_have_text(["<b>Fruit</b>", "apples"])
    await listed.nth(1).click()
    await expect(words(page)).to_have_text("echo: apples")
    await expect(listed.nth(1)).to_have_attribute("aria-current", "page")
    assert await page.evaluate("localStorage.getItem('conversations')") is not None
    assert "echo" not in await page.evaluate("JSON.stringify({...localStorage})")


async def test_clearing_forgets_what_was_said_and_keeps_what_it_cost(page: Page, api: httpx.AsyncClient) -> None:
    await ask(page, "secret")
    await named(page, "Clear").click()
    await page.get_by_role("dialog", name="Clear this conversation?").get_by_role("button", name="Clear").click()
    await expect(page.get_by_role("status")).to_have_text("Cleared.")
    await expect(page.get_by_role("article")).to_have_count(0)
    await expect(page.locator("#totals")).to_contain_text("1 turn")
    assert (await look(api, f"/api/sessions/{await session_of(page)}/messages"))["turns"] == []


async def test_deleting_erases_it_once_that_is_confirmed(page: Page, api: httpx.AsyncClient) -> None:
    await ask(page)
    session = await session_of(page)
    dialog = page.get_by_role("dialog", name="Delete this conversation?")
    await named(page, "Delete").click()
    await page.keyboard.press("Escape")
    await expect(dialog).to_have_count(0)
    assert (await look(api, f"/api/sessions/{session}"))["turns"] == 1
    await named(page, "Delete").click()
    await dialog.get_by_role("button", name="Delete").click()
    await expect(page.get_by_role("status")).to_have_text("Deleted.")
    await expect(page.get_by_role("navigation").get_by_role("button")).to_have_count(0)
    assert (await api.get(f"/api/sessions/{session}")).status_code == 404


async def test_one_that_was_erased_elsewhere_leaves_the_list_with_a_word(page: Page, api: httpx.AsyncClient) -> None:
    await answer(api, "hi", "gone")
    await api.delete("/api/sessions/gone")
    await open_kept(page, "gone", "Holidays")
    await expect(page.get_by_role("status")).to_have_text("“Holidays” was erased, so it has left the list.")
    await expect(page.get_by_role("navigation").get_by_role("button")).to_have_count(0)


async def test_one_that_is_erased_in_another_tab_is_shown_no_longer(page: Page, api: httpx.AsyncClient) -> None:
    await ask(page, "secret")
    session = await session_of(page)
    other = await page.context.new_page()
    await other.goto("/chat")
    await open_kept(other, session, "secret")
    await expect(words(other)).to_have_text("echo: secret")
    await named(page, "Delete").click()
    await page.get_by_role("dialog").get_by_role("button", name="Delete").click()
    await expect(other.get_by_role("status")).to_have_text("“secret” was erased, so it has left the list.")
    await expect(other.get_by_role("article")).to_have_count(0)
    await ask(other, "again")
    assert await session_of(other) != session
    assert (await api.get(f"/api/sessions/{session}")).status_code == 404


# What the model writes

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
    const found = [...box.querySelectorAll("*")].map(one => ({
      name: one.localName, svg: one.namespaceURI.endsWith("svg"),
      attributes: [...one.attributes].map(({ name, value }) => [name, value]),
    }));
    box.remove();
    return found;
  });
}"""
NASTY = [
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
    found: list[list[dict[str, Any]]] = await page.evaluate(INSPECT, texts)
    return found


def wrong_in(element: dict[str, Any]) -> list[Any]:
    """What of an element a model's text may not have made."""
    wrong = [] if element["name"] in ELEMENTS and not element["svg"] else [element["name"]]
    for name, value in element["attributes"]:
        allowed = {"href": r"https?://.*", "rel": "noopener noreferrer", "target": "_blank"}
        of_list = name == "start" and element["name"] == "ol" and value.isdigit()
        of_cell = name == "class" and element["name"] in {"th", "td"} and value in {"center", "right"}
        of_link = element["name"] == "a" and re.fullmatch(allowed.get(name, "$^"), value)
        if not (of_list or of_cell or of_link):
            wrong.append((element["name"], name, value))
    return wrong


async def test_what_the_model_writes_makes_no_element_or_attribute_of_its_own(page: Page) -> None:
    """Nasty pieces in every order, among all that Markdown knows."""
    chance = random.Random(7)
    pieces = [piece for text in NASTY for piece in re.findall(r"\w+|\W", text)]
    pieces += [
        *NASTY,
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
    texts = ["".join(chance.choices(pieces, k=chance.randrange(1, 40))) for _ in range(2_000)]
    for text, elements in zip([*NASTY, *texts], await inspected(page, [*NASTY, *texts]), strict=True):
        assert [wrong_in(element) for element in elements if wrong_in(element)] == [], text


async def test_what_the_model_writes_never_runs_or_loads_anything(page: Page, fake: AzureOpenAI) -> None:
    """Through the whole of it: the model, the stream, the page and its policy."""
    fake.chunk_tokens = 40
    for text in NASTY:
        fake.reply(text)
        await ask(page, text[:30])
    await page.reload()
    await expect(page.get_by_role("article", name="Answer")).to_have_count(len(NASTY))
    assert await page.evaluate("window.ran") is None
    assert await page.locator("#turns :is(script, img, svg, iframe, style, form)").count() == 0


async def attacked(browser: Browser, api: httpx.AsyncClient) -> None:
    """As if a script of ours had been careless."""
    async with visiting(browser, base(api), WITH_KEY) as page:
        await page.goto("/chat")
        await page.evaluate(
            """() => {
              const image = document.createElement("img");
              image.src = "https://evil.example/x.png";
              const script = document.createElement("script");
              script.append("window.ran = 1");
              document.body.append(image, script);
              try { document.body.innerHTML = "<b>x</b>"; } catch { window.refused = true; }
            }"""
        )
        assert await page.evaluate("[window.ran, window.refused]") == [None, True]


async def test_the_policy_stops_a_script_that_got_in_all_the_same(browser: Browser, api: httpx.AsyncClient) -> None:
    """And the other tests' watch would see it: neither is there for nothing."""
    with pytest.raises(AssertionError, match="Content Security Policy"):
        await attacked(browser, api)


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
SHAPE = (
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


async def test_markdown_is_drawn(page: Page) -> None:
    drawn = await page.evaluate(
        """async text => {
          const box = document.createElement("div");
          box.append((await import("/pages/markdown.js")).markdown(text));
          return box.innerHTML;
        }""",
        MARKDOWN,
    )
    assert drawn.replace(' rel="noopener noreferrer" target="_blank"', "") == SHAPE


async def test_nothing_turns_the_direction_of_the_text(page: Page, fake: AzureOpenAI) -> None:
    turns = "".join(map(chr, (*range(0x202A, 0x202F), *range(0x2066, 0x206A))))
    fake.reply(f"left{turns}right `c{turns}de` [ex{turns}ample](https://exam{turns}ple.com/) שלום")
    await ask(page)
    await expect(words(page)).to_have_text("leftright cde example שלום")
    await expect(words(page).get_by_role("link")).to_have_attribute("href", "https://example.com/")


async def test_no_answer_makes_the_page_stand_still(page: Page) -> None:
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
    took = await page.evaluate(
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
    assert max(took) < 2_000, dict(zip(pieces, took, strict=True))  # ms, on a busy machine; quadratic is minutes


async def test_a_long_answer_leaves_the_page_time_for_its_reader(page: Page) -> None:
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
          const drawnMeanwhile = drawn;
          view.finish();
          return [drawnMeanwhile, text.textContent];
        }"""
    )
    assert 1 <= drawn <= 10
    assert text.endswith("19")


# How it looks and reads


@pytest.mark.parametrize("path", ["/chat", "/usage"])
async def test_a_phone_need_not_scroll_sideways(
    browser: Browser, api: httpx.AsyncClient, fake: AzureOpenAI, path: str
) -> None:
    fake.reply("Aw" * 90 + "\n\n```\n" + "x " * 200 + "\n```\n\n|" + " cell |" * 20 + "\n|" + "---|" * 20)
    async with visiting(browser, base(api), WITH_KEY | {"usage-key": USAGE_KEY}, **PHONE) as page:
        await page.goto("/chat")
        await ask(page, "Bw" * 90)
        await page.goto(path)
        await expect(page.locator(".answer, .column").last).to_be_visible()
        assert await page.evaluate("document.documentElement.scrollWidth") == 360
        if path == "/chat":
            assert await page.evaluate("document.querySelector('#turns').scrollWidth") <= 360
            await expect(named(page, "New")).to_be_hidden()
            await named(page, "Conversations").click()
            await named(page, "New").click()
            await expect(page.get_by_role("article")).to_have_count(0)
            await expect(named(page, "New")).to_be_hidden()


# The lines that each text stands on.
LINES = """cells => cells.map(cell => {
  const range = document.createRange();
  range.selectNodeContents(cell);
  return new Set([...range.getClientRects()].map(({ top }) => top)).size;
})"""


async def test_a_table_on_a_phone_scrolls_and_keeps_its_words_whole(
    browser: Browser, api: httpx.AsyncClient, fake: AzureOpenAI
) -> None:
    fake.reply("|Name|Amount|Description|Reference|Settlement|\n" + "|-" * 5 + "|\n" + "|1" * 5 + "|")
    async with visiting(browser, base(api), WITH_KEY, **PHONE) as page:
        await page.goto("/chat")
        await ask(page)
        assert await page.locator(".answer th").evaluate_all(LINES) == [1] * 5
        assert await page.locator(".answer table").evaluate("table => table.scrollWidth > table.clientWidth")
        await page.goto("/docs")
        plain = page.locator("#schemas td").get_by_text(re.compile("^(string|integer|boolean)$"))
        await expect(plain).not_to_have_count(0)
        names = page.locator("#schemas td:first-child code")
        assert {*await plain.evaluate_all(LINES), *await names.evaluate_all(LINES)} == {1}


async def test_a_phone_shows_the_deployment_and_send_on_one_line(
    browser: Browser, serve: Serve, environ: dict[str, str]
) -> None:
    several = {"AZURE_OPENAI_DEPLOYMENTS": "chat=gpt-5.4-mini, large=gpt-5.4"}
    async with serve(environ | several) as api, visiting(browser, base(api), WITH_KEY, **PHONE) as page:
        await page.goto("/chat")
        await expect(page.get_by_role("combobox", name="Deployment")).to_be_visible()
        below, send = await box(page.locator(".below")), await box(named(page, "Send"))
        assert below["height"] == send["height"]
        assert below["x"] + below["width"] == send["x"] + send["width"]


async def box(shown: Locator) -> FloatRect:
    found = await shown.bounding_box()
    assert found
    return found


async def test_everything_that_can_be_used_has_a_name(page: Page, fake: AzureOpenAI) -> None:
    fake.reply("[a link](https://example.com)\n```\ncode\n```")
    await ask(page, "first")
    controls = await names_of_controls(page)
    assert {*controls} >= {
        ("link", "Skip to the message"),
        ("button", "New"),
        ("button", "first"),
        ("link", "Usage"),
        ("link", "API"),
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
    await named(page, "Rename").click()
    dialog = await names_of_controls(page)
    assert {*dialog} >= {("dialog", "Rename this conversation"), ("textbox", "Title"), ("button", "Cancel")}
    await page.goto("/usage")
    await expect(page.get_by_role("dialog")).to_be_visible()
    await page.keyboard.press("Escape")
    usage = await names_of_controls(page)
    assert {*usage} >= {("Date", "From"), ("Date", "To"), ("button", "Show"), ("link", "Chat"), ("link", "API")}
    assert [control for control in controls + dialog + usage if not control[1].strip()] == []


async def test_dark_is_the_systems_choice_until_it_is_the_readers(page: Page) -> None:
    ground = "getComputedStyle(document.documentElement).backgroundColor"
    dark, light = "rgb(22, 24, 29)", "rgb(255, 255, 255)"
    assert await page.evaluate(ground) == light
    await page.emulate_media(color_scheme="dark")
    assert await page.evaluate(ground) == dark
    await named(page, "Dark mode").click()
    assert await page.evaluate(ground) == light
    await page.reload()
    assert await page.evaluate(ground) == light
    await expect(named(page, "Dark mode")).to_have_attribute("aria-pressed", "false")


# The usage page


async def test_usage_is_told_to_the_last_digit(browser: Browser, api: httpx.AsyncClient, tables: Tables) -> None:
    await answer(api)  # makes the tables
    today = datetime.now(UTC).date()
    day = today - timedelta(days=3)
    tiny = money("0.000000000000000001")  # more digits than a float has
    await write(
        tables.usage,
        [
            entry(day, "s", 1, rates=money("0.1"), caller="web"),
            entry(day, "s", 2, rates=tiny, model="tiny"),
            entry(day, "s", 3, state=State.UNACCOUNTED),
            entry(day + timedelta(days=1), "s", 4, rates=money("0.25"), caller="web"),
        ],
    )
    api.headers["api-key"] = USAGE_KEY
    days = (await api.get(f"/api/usage/daily?from={today - timedelta(days=13)}&to={today}")).text
    detail = (await api.get(f"/api/usage/daily/{day}")).text
    told = [f"{date}: ${cost}" for date, cost in re.findall(r'"date":"([\d-]+)".*?"cost_usd":([\d.]+)', days)]
    assert told[10].startswith(f"{day}: $0.100000000000000001")
    async with visiting(browser, base(api), {"usage-key": USAGE_KEY}) as page:
        await page.goto("/usage")
        models, callers = (page.get_by_role("table", name=name) for name in ("By Model", "By Caller"))
        await expect(models.locator("tbody tr")).to_have_count(2)
        columns = page.locator(".column")
        assert await columns.evaluate_all("all => all.map(one => one.ariaLabel)") == told
        assert (await columns.nth(10).locator("title").text_content() or "").split("\n")[0] == told[10]
        await expect(page.locator("#total data")).to_have_attribute("title", f"${days.rpartition(':')[2][:-1]}")
        assert (await titles(models))[0].startswith("$0.35")

        await columns.nth(10).press("Enter")
        await expect(page.get_by_role("heading", name=str(day))).to_be_visible()
        assert await titles(models) == costs(detail, "by_model")
        assert await titles(callers) == costs(detail, "by_caller")
        row = page.get_by_role("table", name="Day by day").get_by_role("row").filter(has_text=str(day))
        [unaccounted] = re.findall(r'"unaccounted_usd":([\d.]+)', detail)
        assert await titles(row) == [told[10].partition(": ")[2], f"${unaccounted}"]


async def titles(within: Locator) -> list[str]:
    found: list[str] = await within.locator("data").evaluate_all("all => all.map(one => one.title)")
    return found


def costs(detail: str, kind: str) -> list[str]:
    """As they were sent."""
    listed = detail.partition(f'"{kind}":')[2].partition("]")[0]
    return [f"${cost}" for cost in re.findall(r'"cost_usd":([\d.]+)', listed)]


async def test_usage_shows_no_zero_where_the_price_is_not_known(
    browser: Browser, serve: Serve, environ: dict[str, str], fake: AzureOpenAI
) -> None:
    fake.model_name = "unheard-of"
    async with serve(environ | {"PRICES": "", "USAGE_KEYS": line("ann", USAGE_KEY)}) as api:
        await answer(api)
        async with visiting(browser, base(api), {"usage-key": USAGE_KEY}) as page:
            await page.goto("/usage")
            rows = page.locator("table:not([aria-label='Day by day']) tbody tr, tr:has-text('not final')")
            await expect(rows).to_have_count(3)  # of the model, the caller and today
            for told in (page.locator("#total"), *await rows.all()):
                await expect(told).to_contain_text("price not known")
                await expect(told).not_to_contain_text("$0")
            await expect(page.locator(".column").last).to_have_attribute("aria-label", re.compile("price not known"))


async def test_usage_wants_its_own_key(browser: Browser, api: httpx.AsyncClient) -> None:
    async with visiting(browser, base(api), WITH_KEY) as page:
        await page.goto("/usage")
        field = page.get_by_role("textbox", name="Usage key")
        await field.fill(FUNCTION_KEY)
        await field.press("Enter")
        await expect(page.get_by_role("dialog")).to_contain_text("This key is none of USAGE_KEYS.")
        await field.fill(USAGE_KEY)
        await field.press("Enter")
        await expect(page.locator(".column")).to_have_count(14)
        assert USAGE_KEY not in await page.evaluate("JSON.stringify({...localStorage}) + location")


async def test_a_span_that_is_too_long_is_refused_in_words(browser: Browser, api: httpx.AsyncClient) -> None:
    async with visiting(browser, base(api), {"usage-key": USAGE_KEY}) as page:
        await page.goto("/usage")
        await page.get_by_label("From").fill("2020-01-01")
        await named(page, "Show").click()
        await expect(page.get_by_role("status")).to_have_text("from and to are not 1 to 92 days in their order.")


async def test_the_contract_opens_at_the_place_that_its_address_names(browser: Browser, api: httpx.AsyncClient) -> None:
    async with visiting(browser, base(api)) as page:
        await page.goto("/docs#ChatAnswer")
        await expect(page.get_by_role("heading", name="ChatAnswer", exact=True)).to_be_in_viewport()
    async with visiting(browser, base(api)) as page:
        await page.goto("/docs#%")  # no percent-encoding
        await expect(page.get_by_role("heading", name="Objects")).to_be_visible()
        await expect(page.locator("#status")).not_to_contain_text("can't be read")


async def test_the_contract_is_shown_whole(browser: Browser, api: httpx.AsyncClient) -> None:
    contract = (await api.get("/api/openapi.json")).json()
    async with visiting(browser, base(api), {}, **PHONE) as page:
        await page.goto("/docs")
        for path, methods in contract["paths"].items():
            for method in methods:
                await expect(page.get_by_role("heading", name=f"{method.upper()} {path}", exact=True)).to_be_visible()
        for name, model in contract["components"]["schemas"].items():
            rows = page.get_by_role("table", name=name, exact=True).locator("tbody tr")
            await expect(rows).to_have_count(len(model.get("properties", {})))
        assert await page.evaluate("document.documentElement.scrollWidth <= innerWidth")
        await page.get_by_role("link", name="ChatAnswer", exact=True).first.click()
        await expect(page.get_by_role("heading", name="ChatAnswer", exact=True)).to_be_in_viewport()
