"""The files of the web pages over HTTP: names, headers, caching. test_pages.py tests what the pages do."""

import re

import httpx
import pytest

from local.places import ROOT
from shared.web.pages import FILES
from tests.conftest import Serve
from tests.support.entra import CLIENT, TENANT

FOLDER = ROOT / "shared" / "web" / "pages"
OUTSIDE = ["..%2fpages.py", "..%2f..%2fservices.py"]  # existing files outside the folder
SERVED = ["/chat", "/docs", "/usage", *(f"/pages/{name}" for name in sorted(FILES))]


def test_every_file_of_the_folder_is_served() -> None:
    assert {path.name for path in FOLDER.iterdir()} == FILES | {"chat.html", "docs.html", "usage.html"}


async def test_files_need_no_key_and_have_their_media_type(api: httpx.AsyncClient) -> None:
    del api.headers["x-functions-key"]
    media_types = {"css": "text/css", "html": "text/html", "js": "text/javascript", "svg": "image/svg+xml"}
    for path in SERVED:
        response = await api.get(path)
        assert response.status_code == 200
        name = path.removeprefix("/pages/") if "." in path else f"{path[1:]}.html"
        assert response.content == (FOLDER / name).read_bytes()
        assert response.headers["content-type"].partition(";")[0] == media_types[name.rpartition(".")[2]]


async def test_every_file_has_a_content_security_policy(api: httpx.AsyncClient) -> None:
    for path in SERVED:
        headers = (await api.get(path)).headers
        policy = dict(rule.split(" ", 1) for rule in headers["content-security-policy"].split("; "))
        assert {policy[name] for name in ("default-src", "base-uri", "form-action", "frame-ancestors")} == {"'none'"}
        assert {policy[name] for name in ("script-src", "style-src", "connect-src", "img-src")} == {"'self'"}
        assert policy["require-trusted-types-for"] == "'script'"
        assert (headers["x-content-type-options"], headers["referrer-policy"]) == ("nosniff", "no-referrer")


async def test_policy_names_the_authority_only_where_people_sign_in(serve: Serve, environ: dict[str, str]) -> None:
    authority = "https://login.example.com"
    auth = {"AUTH_TENANT_ID": TENANT, "AUTH_CLIENT_ID": CLIENT, "AUTH_AUTHORITY": authority}
    for accepted, sources in (("people", f"'self' {authority}"), ("keys", "'self'")):
        async with serve(environ | auth | {"AUTH_ACCEPT": accepted}) as api:
            policy = (await api.get("/chat")).headers["content-security-policy"]
        assert f" connect-src {sources};" in policy


async def test_root_leads_to_the_chat_page(api: httpx.AsyncClient) -> None:
    del api.headers["x-functions-key"]
    for method, path in (("GET", "/"), ("GET", "/?a=b"), ("HEAD", "/")):
        response = await api.request(method, path)
        assert (response.status_code, response.headers["location"]) == (302, "/chat")


@pytest.mark.parametrize("name", [*OUTSIDE, "chat.html", "%2e%2e", "chat.js%00", "CHAT.JS", "x"])
async def test_any_other_name_returns_404(api: httpx.AsyncClient, name: str) -> None:
    response = await api.get(f"/pages/{name}")
    assert (response.status_code, response.content) == (404, b"")


async def test_matching_etag_returns_304(api: httpx.AsyncClient) -> None:
    first = await api.get("/pages/chat.js")
    assert (
        first.headers["cache-control"] == "no-cache"
    )  # revalidate each time, so that a deployment takes effect at once
    for etag in (first.headers["etag"], f"W/{first.headers['etag']}", f'"other", {first.headers["etag"]}'):
        second = await api.get("/pages/chat.js", headers={"if-none-match": etag})
        assert (second.status_code, second.content) == (304, b"")
    assert (await api.get("/pages/chat.js", headers={"if-none-match": '"other"'})).status_code == 200


def test_pages_contain_no_inline_script_or_style() -> None:
    pages = list(FOLDER.glob("*.html"))
    assert pages
    for page in pages:
        text = page.read_text()
        assert not re.search(r"<style|\sstyle=|\son\w+=|javascript:", text), page.name
        assert all(re.search(r'src="/pages/[\w.]+"></script>', script) for script in re.findall(r"<script.*", text))


def test_scripts_never_parse_html() -> None:
    files = list(FOLDER.glob("*.js"))
    assert files
    for file in files:
        assert not re.search(
            r"innerHTML\s*=|outerHTML|insertAdjacentHTML|document\.write|\beval\(|DOMParser", file.read_text()
        )
