"""Cross-origin requests: which web pages of other origins may call api/* and openai/*, and what they can read."""

import asyncio
import re
from collections.abc import AsyncIterator, Iterator
from dataclasses import dataclass
from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer
from threading import Thread
from typing import Any

import httpx
import pytest
import pytest_asyncio
from azurefunctions.extensions.http.fastapi import Request, Response
from playwright.async_api import Browser, Page
from playwright.async_api import Error as BrowserError

from local.keys import line, new_key
from shared.web.cors import with_cors
from tests.conftest import FUNCTION_KEY, Serve
from tests.support.azure_openai import AzureOpenAI
from tests.support.browser import chromium

pytestmark = pytest.mark.asyncio(loop_scope="module")  # the browser is shared by the module's tests

KEY = new_key()
ORIGIN, OTHER = "https://app.example.com", "https://evil.example"
COMPLETION = {"model": "chat", "messages": [{"role": "user", "content": "hi"}]}
# openai-node 6.49.0 in a browser (src/internal/detect-platform.ts, src/client.ts, src/lib/ChatCompletionStream.ts)
STAINLESS = [
    *("x-stainless-arch", "x-stainless-helper-method", "x-stainless-lang", "x-stainless-os"),
    *("x-stainless-package-version", "x-stainless-retry-count", "x-stainless-runtime"),
    *("x-stainless-runtime-version", "x-stainless-timeout"),
]
ALLOWED = {
    *("content-type", "authorization", "api-key", "x-functions-key", "idempotency-key", "x-session-id"),
    *("x-on-disconnect", "user-agent"),
}
EXPOSED = {
    *("retry-after", "retry-after-ms", "x-should-retry", "x-cost-usd", "idempotent-replayed", "x-truncated"),
    "www-authenticate",
    "x-requested-deployment",
    *("x-request-id", "apim-request-id"),
}
OTHERS = [
    *(OTHER, "null", "", "*", f"{ORIGIN}.evil.example", f"{ORIGIN}:443", f"{ORIGIN}/", f"{ORIGIN}, {ORIGIN}"),
    *(ORIGIN.upper(), ORIGIN.replace("https", "http"), "https://example.com", "http://[::1]"),
]
PATHS = ["/api/chat", "/api/sessions/s/messages", "/api", "/openai/v1/chat/completions", "/OpenAI/nothing"]


@pytest_asyncio.fixture(loop_scope="module")
async def api(serve: Serve, environ: dict[str, str]) -> AsyncIterator[httpx.AsyncClient]:
    async with serve(
        environ | {"CLIENT_KEYS": line("ann", KEY), "CORS_ORIGINS": f"{ORIGIN}, http://[::1]:8080"}
    ) as client:
        yield client


def names(response: httpx.Response, header: str) -> set[str]:
    return set(response.headers.get(header, "").split(", "))


def cors_headers(response: httpx.Response) -> list[str]:
    return [name for name in response.headers if name.startswith("access-control-")]


async def preflight(api: httpx.AsyncClient, path: str, origin: str = ORIGIN, requested: str = "") -> httpx.Response:
    headers = {"origin": origin, "access-control-request-method": "POST", "access-control-request-headers": requested}
    async with httpx.AsyncClient(base_url=api.base_url, trust_env=False) as browser:  # without a key
        return await browser.options(path, headers=headers)


class TestPreflight:
    async def test_allowed_origin_may_send_the_documented_headers(
        self, api: httpx.AsyncClient, subtests: pytest.Subtests
    ) -> None:
        for path in PATHS:
            with subtests.test(path=path):
                response = await preflight(api, path)
                assert (response.status_code, response.content) == (204, b"")
                assert response.headers["access-control-allow-origin"] == ORIGIN
                assert names(response, "access-control-allow-methods") == {"DELETE", "GET", "PATCH", "POST"}
                assert names(response, "access-control-allow-headers") == ALLOWED
                assert int(response.headers["access-control-max-age"]) > 0
                assert response.headers["vary"] == "Origin"
                assert "access-control-allow-credentials" not in response.headers

    async def test_headers_of_openais_sdk_are_allowed_by_their_names(self, api: httpx.AsyncClient) -> None:
        requested = ",".join(["authorization", "content-type", *STAINLESS, "X-Stainless-New"])
        response = await preflight(api, "/openai/v1/chat/completions", requested=requested)
        assert names(response, "access-control-allow-headers") == ALLOWED | {*STAINLESS, "x-stainless-new"}

    async def test_other_headers_are_not_allowed(self, api: httpx.AsyncClient) -> None:
        requested = 'x-evil, x-stainless-, x-stainless-"a", x-stainless-a b, x-not-x-stainless-a, *'
        response = await preflight(api, "/api/chat", requested=requested)
        assert names(response, "access-control-allow-headers") == ALLOWED

    async def test_other_origin_gets_no_permission(self, api: httpx.AsyncClient, subtests: pytest.Subtests) -> None:
        for origin in OTHERS:
            with subtests.test(origin=origin):
                refused = await preflight(api, "/api/chat", origin)
                about = await api.get("/api/about", headers={"origin": origin})
                assert cors_headers(refused) == cors_headers(about) == []
                assert refused.headers["vary"] == about.headers["vary"] == "Origin"

    async def test_other_paths_have_no_preflight(self, api: httpx.AsyncClient) -> None:
        for path in ("/", "/chat", "/v1/chat/completions", "/pages/chat.js"):
            assert (await preflight(api, path)).status_code == 404
            assert cors_headers(await api.get(path, headers={"origin": ORIGIN})) == []


async def test_request_without_a_path_is_no_path_of_the_api() -> None:
    """A target such as `http://app` or `*` has none: RFC 9112, 3.2."""
    for path in ("", "*"):
        scope: dict[str, Any] = {
            "type": "http",
            "method": "GET",
            "path": path,
            "headers": [],
            "query_string": b"",
            "server": ("a", 80),
        }
        assert "access-control-allow-origin" not in with_cors(Request(scope), Response()).headers


RESPONSES: list[tuple[str, str, int, dict[str, Any]]] = [
    ("POST", "/api/chat", 200, {"json": {"message": "hi"}}),
    ("POST", "/api/chat", 200, {"json": {"message": "hi", "stream": True}}),
    ("POST", "/api/chat", 400, {"json": {}}),
    ("POST", "/api/chat", 415, {"content": b"{}"}),
    ("GET", "/api/sessions/unknown", 404, {}),
    ("GET", "/api/health", 200, {}),
    ("GET", "/api/openapi.json", 200, {}),
    ("GET", "/api/nothing", 404, {}),
    ("PUT", "/api/chat", 405, {}),
    ("GET", "/api/usage/daily", 401, {}),
    ("GET", "/openai/v1/models", 200, {}),
    ("GET", "/openai/v1/models", 401, {"headers": {"authorization": "Bearer wrong"}}),
    ("POST", "/openai/v1/chat/completions", 200, {"json": COMPLETION}),
    ("POST", "/openai/v1/chat/completions", 200, {"json": COMPLETION | {"stream": True}}),
    ("POST", "/openai/v1/chat/completions", 404, {"json": COMPLETION | {"model": "unknown"}}),
    ("GET", "/openai/nothing", 404, {}),
]


class TestResponses:
    async def test_every_response_can_be_read(self, api: httpx.AsyncClient, subtests: pytest.Subtests) -> None:
        for method, path, status, fields in RESPONSES:
            with subtests.test(method=method, path=path, status=status):
                headers = {"origin": ORIGIN, "authorization": f"Bearer {KEY}"} | fields.get("headers", {})
                response = await api.request(method, path, **(fields | {"headers": headers}))
                assert response.status_code == status
                assert response.headers["access-control-allow-origin"] == ORIGIN
                assert names(response, "access-control-expose-headers") >= EXPOSED
                assert "access-control-allow-credentials" not in response.headers
                assert "Origin" in response.headers["vary"]

    async def test_rate_limits_are_exposed_by_their_names(self, api: httpx.AsyncClient) -> None:
        headers = {"origin": ORIGIN, "authorization": f"Bearer {KEY}"}
        response = await api.post("/openai/v1/chat/completions", json=COMPLETION, headers=headers)
        sent = {name for name in response.headers if name.startswith("x-ratelimit-")}
        assert sent
        assert names(response, "access-control-expose-headers") == EXPOSED | sent

    async def test_request_without_an_origin_only_varies(self, api: httpx.AsyncClient) -> None:
        response = await api.get("/api/health")
        assert (cors_headers(response), response.headers["vary"]) == ([], "Origin")


async def test_error_of_a_wrong_setting_can_be_read(serve: Serve, environ: dict[str, str]) -> None:
    async with serve(environ | {"CORS_ORIGINS": ORIGIN, "CONTEXT_TOKENS": "x"}) as api:
        response = await api.post("/api/chat", json={"message": "hi"}, headers={"origin": ORIGIN})
        allowed = await preflight(api, "/api/chat")
    assert (response.status_code, allowed.status_code) == (500, 204)
    for each in (response, allowed):
        assert each.headers["access-control-allow-origin"] == ORIGIN


async def test_malformed_cors_origins_is_named_and_allows_nothing(serve: Serve, environ: dict[str, str]) -> None:
    async with serve(environ | {"CORS_ORIGINS": "app.example.com"}) as api:
        response = await api.post("/api/chat", json={"message": "hi"}, headers={"origin": "app.example.com"})
        refused = await preflight(api, "/api/chat", "app.example.com")
    assert "CORS_ORIGINS" in response.json()["error"]["message"]
    assert cors_headers(response) == cors_headers(refused) == []


async def test_by_default_no_other_origin_is_allowed(serve: Serve, environ: dict[str, str]) -> None:
    async with serve(environ) as api:
        responses = [await preflight(api, "/api/chat"), await api.get("/api/about", headers={"origin": ORIGIN})]
    assert [response.status_code for response in responses] == [204, 200]
    for response in responses:
        assert cors_headers(response) == []
        assert "vary" not in response.headers


async def test_star_allows_every_origin(serve: Serve, environ: dict[str, str]) -> None:
    async with serve(environ | {"CORS_ORIGINS": " * "}) as api:
        responses = [await preflight(api, "/api/chat", OTHER), await api.get("/api/about", headers={"origin": "null"})]
    for response in responses:
        assert response.headers["access-control-allow-origin"] == "*"
        assert response.headers["vary"] == "Origin"
        assert "access-control-allow-credentials" not in response.headers


# In a browser


class _Blank(BaseHTTPRequestHandler):
    def do_GET(self) -> None:
        self.send_response(200)
        self.send_header("content-type", "text/html")
        self.end_headers()

    def log_message(self, *_: object) -> None:
        pass


@pytest.fixture(scope="module")
def elsewhere() -> Iterator[int]:
    """The port of a server with an empty page, which has the origins http://127.0.0.1:PORT and http://localhost:PORT."""
    with ThreadingHTTPServer(("127.0.0.1", 0), _Blank) as server:
        Thread(target=server.serve_forever, kwargs={"poll_interval": 0.01}, daemon=True).start()
        yield server.server_port
        server.shutdown()


@pytest_asyncio.fixture(scope="module", loop_scope="module")
async def browser() -> AsyncIterator[Browser]:
    async with chromium() as launched:
        yield launched


SEND = """async ([url, method, headers, body]) => {
    const response = await fetch(url, {method, headers, body: body && JSON.stringify(body)})
    const reader = (response.body ?? new Blob().stream()).pipeThrough(new TextDecoderStream()).getReader()
    window.text = ""
    for (let part; !(part = await reader.read()).done;) window.text += part.value
    return {status: response.status, headers: Object.fromEntries(response.headers), text: window.text}
}"""


@dataclass
class OtherPage:
    """A page that another server delivered."""

    page: Page
    app: str  # base URL

    async def send(self, method: str, path: str, headers: dict[str, str], body: object = None) -> dict[str, Any]:
        """The response as the page's script can read it. Raises BrowserError if the browser refuses."""
        response: dict[str, Any] = await self.page.evaluate(SEND, [self.app + path, method, headers, body])
        return response


@pytest_asyncio.fixture(loop_scope="module")
async def other_page(
    browser: Browser, serve: Serve, environ: dict[str, str], elsewhere: int
) -> AsyncIterator[OtherPage]:
    """A page of the only allowed origin."""
    settings = {"CLIENT_KEYS": line("ann", KEY), "CORS_ORIGINS": f"http://127.0.0.1:{elsewhere}"}
    async with serve(environ | settings) as api:
        page = await browser.new_page()
        await page.goto(f"http://127.0.0.1:{elsewhere}/")
        yield OtherPage(page, str(api.base_url).rstrip("/"))
        await page.close()


API = {"x-functions-key": FUNCTION_KEY, "content-type": "application/json"}
OPENAI = {"authorization": f"Bearer {KEY}", "content-type": "application/json"} | dict.fromkeys(STAINLESS, "x")


async def test_page_chats_streams_and_erases(other_page: OtherPage, fake: AzureOpenAI) -> None:
    headers = API | {"idempotency-key": "key-1"}
    message = {"message": "hi", "session_id": "s"}
    first = await other_page.send("POST", "/api/chat", headers, message)
    again = await other_page.send("POST", "/api/chat", headers, message)
    assert (first["status"], again["headers"]["idempotent-replayed"]) == (200, "true")
    assert "echo: hi" in again["text"]

    streamed = await other_page.send("POST", "/api/chat", API, message | {"stream": True})
    assert re.findall(r"^event: (start|done)$", streamed["text"], re.MULTILINE) == ["start", "done"]

    erased = await other_page.send("DELETE", "/api/sessions/s", API)
    assert erased["status"] == 204


async def test_page_reads_an_openai_stream_as_it_arrives(other_page: OtherPage, fake: AzureOpenAI) -> None:
    with fake.hold(after=2) as hold:
        body = COMPLETION | {"stream": True}
        waiting = asyncio.create_task(other_page.send("POST", "/openai/v1/chat/completions", OPENAI, body))
        await other_page.page.wait_for_function("window.text?.includes('data: {')")
        hold.release()
        streamed = await waiting
    assert streamed["text"].endswith("data: [DONE]\n\n")
    assert any(name.startswith("x-ratelimit-") for name in streamed["headers"])


async def test_page_reads_errors_and_how_long_to_wait(other_page: OtherPage, fake: AzureOpenAI) -> None:
    refused = await other_page.send("GET", "/openai/v1/models", OPENAI | {"authorization": "Bearer wrong"})
    assert (refused["status"], "unauthorized" in refused["text"]) == (401, True)
    fake.fault(429, retry_after=7)
    limited = await other_page.send("POST", "/openai/v1/chat/completions", OPENAI, COMPLETION)
    assert (limited["status"], limited["headers"]["retry-after"]) == (429, "7")


async def test_page_of_another_origin_reads_nothing(other_page: OtherPage, elsewhere: int, fake: AzureOpenAI) -> None:
    await other_page.page.goto(f"http://localhost:{elsewhere}/")
    for path in ("/api/chat", "/api/health"):
        with pytest.raises(BrowserError, match="Failed to fetch"):
            await other_page.send("POST" if path == "/api/chat" else "GET", path, API, None)
    assert fake.requests == []
