"""A real browser: Chromium as the machine has it, driven by Playwright, and what must never happen in it."""

import os
import shutil
from collections.abc import AsyncIterator
from contextlib import asynccontextmanager
from typing import Any

import pytest
from playwright.async_api import Browser, Page, async_playwright, expect

from tests.support.loopback import PATIENCE

NAMES = ("chromium", "chromium-browser", "google-chrome")
MISSING = (
    "NO CHROMIUM WAS FOUND, SO THE WEB PAGES WERE NOT TRIED: install one ('apt-get install chromium', or"
    " '.venv/bin/python -m playwright install chromium')"
)
# Without these it asks Google's servers for things, and waits for a graphics card.
QUIETLY = ["--disable-gpu", "--disable-quic", "--disable-background-networking", "--disable-component-update"]

expect.set_options(timeout=PATIENCE * 1000)


@asynccontextmanager
async def chromium() -> AsyncIterator[Browser]:
    """Skips the test where there is none."""
    found = next(filter(None, map(shutil.which, NAMES)), None)
    sandbox = [] if hasattr(os, "geteuid") and os.geteuid() else ["--no-sandbox"]  # which root can't have
    async with async_playwright() as playwright:
        if not found and not os.path.exists(playwright.chromium.executable_path):  # noqa: ASYNC240, PTH110
            pytest.skip(MISSING)
        browser = await playwright.chromium.launch(executable_path=found, args=[*QUIETLY, *sandbox])
        yield browser
        await browser.close()


class Watch:
    """What a page did that it must not: a dialog, a script's error, a breach of its policy, a request elsewhere."""

    def __init__(self, page: Page, base: str) -> None:
        self.breaches: list[str] = []
        self._base = base
        page.on("dialog", lambda dialog: self.breaches.append(f"dialog: {dialog.message}"))
        page.on("pageerror", lambda error: self.breaches.append(f"error: {error}"))
        page.on("console", lambda message: self._heard(message.text))
        page.on("request", lambda request: self._requested(request.url))
        page.on("popup", lambda popup: self.breaches.append(f"popup: {popup.url}"))

    def _heard(self, text: str) -> None:
        if not text.startswith("Failed to load resource"):  # a refusal of the service's, which the page tells itself
            self.breaches.append(f"console: {text}")

    def _requested(self, url: str) -> None:
        if not url.startswith(self._base) or "code=" in url:
            self.breaches.append(f"request: {url}")


@asynccontextmanager
async def visiting(
    browser: Browser, base: str, session_storage: dict[str, str] | None = None, **options: Any
) -> AsyncIterator[Page]:
    """A page of a new, empty profile; nothing of what Watch sees may have happened when the block ends."""
    context = await browser.new_context(base_url=base, **options)
    context.set_default_timeout(PATIENCE * 1000)
    try:
        for name, value in (session_storage or {}).items():
            await context.add_init_script(
                f"sessionStorage.getItem({name!r}) ?? sessionStorage.setItem({name!r}, {value!r})"
            )
        page = await context.new_page()
        watch = Watch(page, base)
        yield page
        assert not watch.breaches, "\n".join(watch.breaches)
    finally:
        await context.close()


async def names_of_controls(page: Page) -> list[tuple[str, str]]:
    """Role and accessible name of everything that can be used, as assistive technology is told."""
    session = await page.context.new_cdp_session(page)
    tree: dict[str, Any] = await session.send("Accessibility.getFullAXTree")
    await session.detach()
    found = [node for node in tree["nodes"] if not node["ignored"] and node["role"]["value"] in CONTROLS]
    return [(node["role"]["value"], node.get("name", {}).get("value", "")) for node in found]


CONTROLS = frozenset({"button", "textbox", "link", "combobox", "checkbox", "menuitem", "Date", "dialog", "log"})
