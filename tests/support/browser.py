"""The installed Chromium, driven by Playwright, with a watch for errors and policy violations in every page."""

import os
import shutil
from collections.abc import AsyncIterator, Sequence
from contextlib import asynccontextmanager
from typing import Any

import pytest
from playwright.async_api import Browser, Page, async_playwright, expect

from tests.support.loopback import MAX_WAIT_S

EXECUTABLES = ("chromium", "chromium-browser", "google-chrome")
MISSING = (
    "NO CHROMIUM FOUND, SO THE WEB PAGES WERE NOT TESTED: install it ('apt-get install chromium', or"
    " '.venv/bin/python -m playwright install chromium')"
)
# Without these Chromium sends requests to Google's servers and waits for a graphics card.
CHROMIUM_FLAGS = ["--disable-gpu", "--disable-quic", "--disable-background-networking", "--disable-component-update"]

expect.set_options(timeout=MAX_WAIT_S * 1000)


@asynccontextmanager
async def chromium() -> AsyncIterator[Browser]:
    """Skips the test if Chromium is not installed."""
    executable = next(filter(None, map(shutil.which, EXECUTABLES)), None)
    sandbox = [] if hasattr(os, "geteuid") and os.geteuid() else ["--no-sandbox"]  # root cannot use the sandbox
    async with async_playwright() as playwright:
        if not executable and not os.path.exists(playwright.chromium.executable_path):  # noqa: ASYNC240, PTH110
            pytest.skip(MISSING)
        browser = await playwright.chromium.launch(executable_path=executable, args=[*CHROMIUM_FLAGS, *sandbox])
        yield browser
        await browser.close()


class PageWatch:
    """Records what a page must not do: dialogs, script errors, policy violations, requests to other servers."""

    def __init__(self, page: Page, *bases: str) -> None:
        self.violations: list[str] = []
        self._bases = bases
        page.on("dialog", lambda dialog: self.violations.append(f"dialog: {dialog.message}"))
        page.on("pageerror", lambda error: self.violations.append(f"error: {error}"))
        page.on("console", lambda message: self._on_console(message.text))
        page.on("request", lambda request: self._on_request(request.url))
        page.on("popup", lambda popup: self.violations.append(f"popup: {popup.url}"))

    def _on_console(self, text: str) -> None:
        if not text.startswith("Failed to load resource"):  # an error response, which the page itself shows
            self.violations.append(f"console: {text}")

    def _on_request(self, url: str) -> None:
        if not url.startswith(self._bases) or "code=" in url:
            self.violations.append(f"request: {url}")


@asynccontextmanager
async def open_page(
    browser: Browser,
    base: str,
    session_storage: dict[str, str] | None = None,
    others: Sequence[str] = (),
    **options: Any,
) -> AsyncIterator[Page]:
    """A page in a new, empty profile. Fails at the end of the block if PageWatch has recorded a violation. `others`:
    servers that it may also call."""
    context = await browser.new_context(base_url=base, **options)
    context.set_default_timeout(MAX_WAIT_S * 1000)
    try:
        for name, value in (session_storage or {}).items():
            await context.add_init_script(
                f"sessionStorage.getItem({name!r}) ?? sessionStorage.setItem({name!r}, {value!r})"
            )
        page = await context.new_page()
        watch = PageWatch(page, base, *others)
        yield page
        assert not watch.violations, "\n".join(watch.violations)
    finally:
        await context.close()


async def controls_of(page: Page) -> list[tuple[str, str]]:
    """Role and accessible name of every control, as assistive technology reads them."""
    session = await page.context.new_cdp_session(page)
    tree: dict[str, Any] = await session.send("Accessibility.getFullAXTree")
    await session.detach()
    controls = [node for node in tree["nodes"] if not node["ignored"] and node["role"]["value"] in CONTROL_ROLES]
    return [(node["role"]["value"], node.get("name", {}).get("value", "")) for node in controls]


CONTROL_ROLES = frozenset(
    {"button", "textbox", "link", "combobox", "checkbox", "menuitem", "Date", "dialog", "log", "DisclosureTriangle"}
)
