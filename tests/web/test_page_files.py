"""The web pages' files over HTTP: which there are, to whom, and under which policy. What they do is in test_pages."""

import re

import httpx
import pytest

from local.places import ROOT
from shared.web.pages import FILES

FOLDER = ROOT / "shared" / "web" / "pages"
HIDDEN = ["..%2fpages.py", "..%2f..%2fservices.py"]  # files that exist, outside of the folder
SERVED = ["/chat", "/docs", "/usage", *(f"/pages/{name}" for name in sorted(FILES))]


def test_every_file_is_served_and_no_other() -> None:
    assert {path.name for path in FOLDER.iterdir()} == FILES | {"chat.html", "docs.html", "usage.html"}


async def test_they_need_no_key_and_come_as_what_they_are(api: httpx.AsyncClient) -> None:
    del api.headers["x-functions-key"]
    kinds = {"css": "text/css", "html": "text/html", "js": "text/javascript", "svg": "image/svg+xml"}
    for path in SERVED:
        answer = await api.get(path)
        assert answer.status_code == 200
        name = path.removeprefix("/pages/") if "." in path else f"{path[1:]}.html"
        assert answer.content == (FOLDER / name).read_bytes()
        assert answer.headers["content-type"].partition(";")[0] == kinds[name.rpartition(".")[2]]


async def test_a_policy_comes_with_each(api: httpx.AsyncClient) -> None:
    for path in SERVED:
        headers = (await api.get(path)).headers
        policy = dict(rule.split(" ", 1) for rule in headers["content-security-policy"].split("; "))
        assert {policy[name] for name in ("default-src", "base-uri", "form-action", "frame-ancestors")} == {"'none'"}
        assert {policy[name] for name in ("script-src", "style-src", "connect-src", "img-src")} == {"'self'"}
        assert policy["require-trusted-types-for"] == "'script'"
        assert (headers["x-content-type-options"], headers["referrer-policy"]) == ("nosniff", "no-referrer")


@pytest.mark.parametrize("name", [*HIDDEN, "chat.html", "%2e%2e", "chat.js%00", "CHAT.JS", "x"])
async def test_anything_else_is_404(api: httpx.AsyncClient, name: str) -> None:
    answer = await api.get(f"/pages/{name}")
    assert (answer.status_code, answer.content) == (404, b"")


async def test_a_browser_that_has_a_file_is_not_sent_it_again(api: httpx.AsyncClient) -> None:
    first = await api.get("/pages/chat.js")
    assert first.headers["cache-control"] == "no-cache"  # asks each time, so that a deployment shows at once
    for known in (first.headers["etag"], f"W/{first.headers['etag']}", f'"other", {first.headers["etag"]}'):
        again = await api.get("/pages/chat.js", headers={"if-none-match": known})
        assert (again.status_code, again.content) == (304, b"")
    assert (await api.get("/pages/chat.js", headers={"if-none-match": '"other"'})).status_code == 200


def test_the_pages_hold_no_inline_script_or_style() -> None:
    pages = list(FOLDER.glob("*.html"))
    assert pages
    for page in pages:
        text = page.read_text()
        assert not re.search(r"<style|\sstyle=|\son\w+=|javascript:", text), page.name
        assert all(re.search(r'src="/pages/[\w.]+"></script>', script) for script in re.findall(r"<script.*", text))


def test_the_pages_never_parse_html() -> None:
    files = list(FOLDER.glob("*.js"))
    assert files
    for file in files:
        assert not re.search(
            r"innerHTML\s*=|outerHTML|insertAdjacentHTML|document\.write|\beval\(|DOMParser", file.read_text()
        )
