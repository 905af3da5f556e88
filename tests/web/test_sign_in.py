"""People sign in on the pages, in a real browser, at the local issuer."""

import json
import re
from collections.abc import AsyncIterator, Iterator
from contextlib import AbstractAsyncContextManager
from pathlib import Path

import pytest
import pytest_asyncio
from playwright.async_api import Browser, Page, expect

from local.keys import line, new_key
from local.people import Person
from tests.support.azure_openai import AzureOpenAI
from tests.support.browser import chromium, open_page
from tests.support.issuer import ADA, BOB, CAROL, LocalIssuer
from tests.support.processes import Host, HostFactory

pytestmark = pytest.mark.asyncio(loop_scope="module")  # the browser is shared by the module's tests

KEY, USAGE_KEY = new_key(), new_key()
SOON_S = 200  # a token that the pages renew before every request


@pytest.fixture(scope="module")
def issuer() -> Iterator[LocalIssuer]:
    with LocalIssuer() as started:
        yield started


@pytest_asyncio.fixture(scope="module", loop_scope="module")
async def browser() -> AsyncIterator[Browser]:
    async with chromium() as launched:
        yield launched


@pytest.fixture
def host(host_factory: HostFactory, issuer: LocalIssuer, environ: dict[str, str], tmp_path: Path) -> Host:
    keys = {"CLIENT_KEYS": line("ann", KEY), "USAGE_KEYS": line("ops", USAGE_KEY)}
    return host_factory.host(environ | issuer.environ | keys, tmp_path / "log")


def open_at(browser: Browser, host: Host, issuer: LocalIssuer) -> AbstractAsyncContextManager[Page]:
    return open_page(browser, host.base, others=(issuer.authority,))


async def sign_in(page: Page, person: Person, path: str = "/chat") -> None:
    """From the dialog that the page shows to a stranger."""
    if not page.url.endswith(path):
        await page.goto(path)
    await page.get_by_role("dialog").get_by_role("button", name="Sign in").click()
    await page.get_by_role("button", name=person.name).click()
    await expect(page.locator("#person")).to_have_text(person.name)
    await expect(page).to_have_url(re.compile(f"{path}$"))  # the code is in no history entry


async def ask(page: Page, text: str) -> None:
    before = await page.locator(".answer footer:not(:empty)").count()
    await page.get_by_role("textbox", name="Message").fill(text)
    await page.keyboard.press("Enter")
    await expect(page.locator(".answer footer:not(:empty)")).to_have_count(before + 1)


async def open_id(page: Page, session: str) -> None:
    await page.get_by_role("button", name="Open", exact=True).click()
    await page.get_by_role("textbox", name="ID").fill(session)
    await page.keyboard.press("Enter")


async def test_two_people_and_a_key_chat_at_once_and_reach_only_their_own(
    browser: Browser, host: Host, issuer: LocalIssuer
) -> None:
    async with open_at(browser, host, issuer) as ada, open_at(browser, host, issuer) as bob:
        await ada.goto("/chat")
        earlier = json.dumps([{"id": "0" * 32, "title": "Old news"}])  # of before people signed in
        await ada.evaluate("list => localStorage.setItem('conversations', list)", earlier)
        await ada.reload()
        await expect(ada.get_by_text("Sign in to see your conversations.")).to_be_visible()
        await expect(ada.get_by_text("Old news")).to_have_count(0)
        await sign_in(ada, ADA)
        await ada.get_by_role("button", name="Take over").click()
        await expect(ada.locator("#offer")).to_contain_text("Not taken over: 1 (deleted, or of another owner).")
        await ada.evaluate("localStorage.clear()")
        await sign_in(bob, BOB)
        await ask(ada, "of Ada")
        await ask(bob, "of Bob")
        session = await ada.evaluate("sessionStorage.getItem('open-conversation')")
        await open_id(bob, session)
        await expect(bob.get_by_role("status")).to_contain_text("belongs to another account")
        await expect(bob.get_by_text("of Ada")).to_have_count(0)

        response = await bob.reload()
        assert response
        policy = await response.header_value("content-security-policy")
        assert f"connect-src 'self' {issuer.authority};" in str(policy)
        await expect(bob.locator("#person")).to_have_text(BOB.name)

        await bob.get_by_role("button", name="Sign out").click()  # and goes on with a client key
        dialog = bob.get_by_role("dialog")
        await expect(dialog.get_by_label("Function key")).to_have_count(0)
        await dialog.get_by_label("Client key").fill(KEY)
        await bob.keyboard.press("Enter")
        await ask(bob, "with a key")
        await open_id(bob, session)
        await expect(bob.get_by_role("status")).to_contain_text("belongs to another account")
        await ask(ada, "still here")
        await expect(ada.locator("#conversations li")).to_have_text(["of Ada"])
        assert await ada.evaluate("JSON.stringify({...localStorage}) + document.cookie") == "{}"

        await ada.get_by_role("button", name="Sign out").click()
        await expect(ada.get_by_role("dialog", name="Sign in")).to_be_visible()
        await expect(ada.get_by_text("of Ada")).to_have_count(0)
        assert await ada.evaluate("JSON.stringify({...localStorage, ...sessionStorage})") == "{}"
        await ada.go_back()
        await expect(ada.get_by_role("dialog", name="Sign in")).to_be_visible()
        await expect(ada.get_by_text("of Ada")).to_have_count(0)


@pytest.mark.acceptance
async def test_token_is_renewed_until_the_issuer_refuses_and_the_message_is_kept(
    browser: Browser, host_factory: HostFactory, environ: dict[str, str], tmp_path: Path
) -> None:
    with LocalIssuer(token_s=SOON_S) as issuer:
        host = host_factory.host(environ | issuer.environ, tmp_path / "log")
        async with open_at(browser, host, issuer) as page:
            renewals: list[str] = []
            page.on("request", lambda request: renewals.append(request.url) if "/token" in request.url else None)
            await sign_in(page, ADA)
            before = len(renewals)
            await ask(page, "one")
            await ask(page, "two")
            assert len(renewals) >= before + 2
            issuer.stop()
            await ask(page, "the token is still valid")
            issuer.start()
            await page.get_by_role("textbox", name="Message").fill("three")
            await page.keyboard.press("Enter")
            dialog = page.get_by_role("dialog")
            await expect(dialog).to_contain_text("Your sign-in has expired.")
            await sign_in(page, ADA)
            await expect(page.get_by_role("textbox", name="Message")).to_have_value("three")


@pytest.mark.acceptance
async def test_usage_is_for_administrators(browser: Browser, host: Host, issuer: LocalIssuer) -> None:
    async with open_at(browser, host, issuer) as page:
        await sign_in(page, ADA, "/usage")
        await expect(page.get_by_role("status")).to_contain_text("needs the app role Chat.Admin")
        await page.get_by_role("button", name="Sign out").click()
        await sign_in(page, CAROL, "/usage")
        await expect(page.locator("#days table")).to_be_visible()
        await expect(page.get_by_role("button", name="Use a key")).to_have_count(0)


async def test_person_who_is_no_administrator_can_enter_a_usage_key(
    browser: Browser, host: Host, issuer: LocalIssuer
) -> None:
    async with open_at(browser, host, issuer) as page:
        await sign_in(page, ADA, "/usage")
        await page.get_by_role("button", name="Use a key").click()
        await page.get_by_role("dialog").get_by_label("Usage key").fill(USAGE_KEY)
        await page.keyboard.press("Enter")
        await expect(page.locator("#days table")).to_be_visible()
        await expect(page.locator("#account")).to_be_hidden()


@pytest.mark.parametrize("path", ["/chat", "/usage"])
async def test_sign_in_whose_last_request_is_lost_is_completed_by_another_try(
    browser: Browser, host: Host, issuer: LocalIssuer, path: str
) -> None:
    async with open_at(browser, host, issuer) as page:
        await page.goto(path)
        await page.route("**/oauth2/v2.0/token", lambda route: route.abort())
        await page.get_by_role("dialog").get_by_role("button", name="Sign in").click()
        await page.get_by_role("button", name=CAROL.name).click()
        await expect(page.get_by_role("status")).to_contain_text("The sign-in service can't be reached.")
        await page.reload()
        await expect(page.get_by_role("status")).to_contain_text("The sign-in service can't be reached.")
        await page.unroute("**/oauth2/v2.0/token")
        await page.get_by_role("button", name="Sign in").click()
        await expect(page.locator("#person")).to_have_text(CAROL.name)
        await expect(page.get_by_role("dialog")).to_have_count(0)
        await expect(page.locator("#status")).to_have_text("")
        assert await page.evaluate("sessionStorage.getItem('sign-in-pending')") is None


async def test_conversation_has_no_actions_after_the_sign_in_has_ended(
    browser: Browser, host: Host, issuer: LocalIssuer
) -> None:
    async with open_at(browser, host, issuer) as page:
        await sign_in(page, ADA)
        await ask(page, "one")
        await expect(page.get_by_role("button", name="Rename")).to_be_visible()
        await page.evaluate(
            "const key = 'sign-in-tokens', tokens = JSON.parse(sessionStorage.getItem(key));"
            "sessionStorage.setItem(key, JSON.stringify({...tokens, expires: 0, refresh: 'unknown'}))"
        )
        await page.get_by_role("textbox", name="Message").fill("two")
        await page.keyboard.press("Enter")
        await expect(page.get_by_role("dialog")).to_contain_text("Your sign-in has expired.")
        await page.get_by_role("dialog").get_by_role("button", name="Cancel").click()
        await expect(page.locator(".answer")).to_have_count(2)
        await expect(page.locator(".answer").last).to_contain_text("Sign in")
        await expect(page.get_by_role("dialog")).to_have_count(0)  # it asks once
        for name in ("Rename", "Pin", "Archive", "Clear", "Delete"):
            await expect(page.get_by_role("button", name=name, exact=True)).to_be_hidden()
        await page.get_by_role("button", name="Sign in").click()
        await sign_in(page, ADA)
        await expect(page.get_by_role("button", name="Rename")).to_be_visible()


@pytest.mark.acceptance
async def test_failed_sign_in_is_explained_and_not_repeated(
    browser: Browser, host: Host, issuer: LocalIssuer, fake: AzureOpenAI
) -> None:
    async with open_at(browser, host, issuer) as page:
        await page.goto("/chat")
        dialog = page.get_by_role("dialog")
        await dialog.get_by_role("button", name="Sign in").click()
        await expect(page.get_by_role("button", name="Cancel")).to_be_visible()
        await expect(page).to_have_url(re.compile("/authorize"))
        await page.go_back()
        await dialog.get_by_role("button", name="Sign in").click()
        await page.get_by_role("button", name="Cancel").click()
        await expect(dialog).to_contain_text("Signing in was cancelled.")
        await dialog.get_by_label("Client key").fill("wrong")
        await page.keyboard.press("Enter")
        await expect(dialog).to_contain_text("Invalid API key")
        assert page.url == f"{host.base}/chat"
        for answer, shown in (
            ("code=x&state=y", "not started in this tab"),
            ("error=server_error&error_description=AADSTS90033%3A+Busy.+Trace+ID%3A+1&state=y", "not started"),
        ):
            await page.goto("/docs")
            await page.goto(f"/chat#{answer}")
            await expect(dialog).to_contain_text(shown)
            assert page.url == f"{host.base}/chat"
        await page.evaluate('sessionStorage.setItem(\'sign-in-pending\', \'{"state": "y", "verifier": "v"}\')')
        await page.goto("/docs")
        await page.goto("/chat#error=server_error&error_description=AADSTS90033%3A+Busy.+Trace+ID%3A+1&state=y")
        await expect(dialog).to_contain_text("Signing in failed: AADSTS90033: Busy.")
        await page.keyboard.press("Escape")
        assert not fake.requests
