"""Two people, an administrator and a client key: what belongs to one does not exist for the others, on any route."""

import json
import logging
import re
from collections.abc import AsyncIterator, Iterator
from dataclasses import dataclass
from typing import Any

import httpx
import pytest
from openai import AsyncOpenAI
from starlette.applications import Starlette

from local.keys import line
from tests.conftest import FUNCTION_KEY, Serve, Tables
from tests.support.azure_openai import AzureOpenAI
from tests.support.chat_client import JSON, closed_ledger, ok_json
from tests.support.conservation import all_rows
from tests.support.entra import ADA, BOB, CAROL, SCOPE, TENANT, EntraIssuer
from tests.support.indexed import indexed

CLIENT_KEY = "a-client-key-of-the-tests"
KEY_HEADERS = {"api-key": CLIENT_KEY}
LIMITS: dict[str, Any] = {
    "total": {"usd_per_month": 100},
    ADA.name: {"usd_per_day": 7},
    "*": {"usd_per_day": 2},
}
UNKNOWN = "0123456789abcdef" * 2
ITEM = "msg_" + UNKNOWN
SECRET = "the-content-of-ada"


@pytest.fixture
def issuer() -> Iterator[EntraIssuer]:
    with EntraIssuer() as server:
        yield server


@pytest.fixture
def environ(environ: dict[str, str], issuer: EntraIssuer) -> dict[str, str]:
    return environ | issuer.environ | {"CLIENT_KEYS": line("ann", CLIENT_KEY), "LIMITS": json.dumps(LIMITS)}


@pytest.fixture
def host(environ: dict[str, str], monkeypatch: pytest.MonkeyPatch) -> Starlette:
    for name, value in environ.items():
        monkeypatch.setenv(name, value)
    return indexed()


@pytest.fixture
async def api(serve: Serve, environ: dict[str, str]) -> AsyncIterator[httpx.AsyncClient]:
    """Without credentials of its own."""
    async with serve(environ) as client:
        del client.headers["x-functions-key"]
        yield client


@dataclass(frozen=True)
class Ids:
    """What one caller has."""

    session: str
    forwarded: str  # a session begun on openai/*
    response: str
    conversation: str
    item: str
    turn: int = 1


NOTHING = Ids(UNKNOWN, UNKNOWN, f"resp_{UNKNOWN}00000001", f"conv_{UNKNOWN}", ITEM)


async def begin(api: httpx.AsyncClient, headers: dict[str, str]) -> Ids:
    """Begin one of everything."""
    chat = ok_json(await api.post("/api/chat", json={"message": SECRET}, headers=headers))
    forwarded = "forwarded-" + chat["session_id"][:8]
    completion = {"model": "chat", "messages": [{"role": "user", "content": SECRET}]}
    ok_json(
        await api.post("/openai/v1/chat/completions", json=completion, headers=headers | {"x-session-id": forwarded})
    )
    response = ok_json(await api.post("/openai/v1/responses", json={"model": "chat", "input": SECRET}, headers=headers))
    items = {"items": [{"type": "message", "role": "user", "content": SECRET}]}
    conversation = ok_json(await api.post("/openai/v1/conversations", json=items, headers=headers))["id"]
    listed = ok_json(await api.get(f"/openai/v1/conversations/{conversation}/items", headers=headers))
    return Ids(chat["session_id"], forwarded, response["id"], conversation, listed["data"][0]["id"])


def requests(ids: Ids) -> list[tuple[str, str, JSON | None, dict[str, str]]]:
    """Every request that names something by its id: method, path, body, headers."""
    session = f"/api/sessions/{ids.session}"
    branch = {"session_id": ids.session, "turn": ids.turn}
    response: JSON = {"model": "chat", "input": "x"}
    by_azure = [
        ("GET", f"responses/{ids.response}", None),
        ("GET", f"responses/{ids.response}/input_items", None),
        ("POST", f"responses/{ids.response}/cancel", {}),
        ("DELETE", f"responses/{ids.response}", None),
        ("POST", "responses", response | {"previous_response_id": ids.response}),
        ("POST", "responses", response | {"conversation": ids.conversation}),
        ("POST", "responses", response | {"conversation": {"id": ids.conversation}}),
        ("GET", f"conversations/{ids.conversation}", None),
        ("POST", f"conversations/{ids.conversation}", {"metadata": {"a": "b"}}),
        ("GET", f"conversations/{ids.conversation}/items", None),
        ("POST", f"conversations/{ids.conversation}/items", {"items": [{"role": "user", "content": "x"}]}),
        ("GET", f"conversations/{ids.conversation}/items/{ids.item}", None),
        ("DELETE", f"conversations/{ids.conversation}/items/{ids.item}", None),
        ("DELETE", f"conversations/{ids.conversation}", None),
    ]
    return [
        ("GET", session, None, {}),
        ("GET", f"{session}/messages", None, {}),
        ("GET", f"{session}/export", None, {}),
        ("GET", f"{session}/export?format=markdown", None, {}),
        ("POST", f"{session}/stop", None, {}),
        ("DELETE", f"{session}/messages", None, {}),
        ("DELETE", session, None, {}),
        ("GET", f"/api/sessions/{ids.forwarded}/messages", None, {}),
        ("POST", "/api/chat", {"message": "x", "branch_from": branch}, {}),
        ("POST", "/api/chat", {"message": "x", "branch_from": branch, "stream": True}, {}),
        *((method, f"/openai/{version}{path}", body, {}) for version in ("v1/", "") for method, path, body in by_azure),
    ]


def writes(ids: Ids) -> list[tuple[str, JSON, dict[str, str]]]:
    """Requests that begin a session if there is none with this id: path, body, headers."""
    completion = {"model": "chat", "messages": [{"role": "user", "content": "x"}]}
    return [
        ("/api/chat", {"message": "x", "session_id": ids.session}, {}),
        ("/api/chat", {"message": "x", "session_id": ids.session, "stream": True}, {}),
        ("/api/chat", {"message": "x", "session_id": ids.forwarded}, {}),
        ("/openai/v1/chat/completions", completion, {"x-session-id": ids.forwarded}),
        ("/openai/v1/chat/completions", completion, {"x-session-id": ids.session}),
        ("/openai/deployments/chat/chat/completions", completion, {"x-session-id": ids.forwarded}),
    ]


async def sent(api: httpx.AsyncClient, ids: Ids, credentials: dict[str, str]) -> list[tuple[str, str, int, str]]:
    """The answers, without the ids."""
    answers = []
    for method, path, body, headers in requests(ids):
        response = await api.request(method, path, json=body, headers=credentials | headers)
        pattern = re.compile("|".join(re.escape(each) for each in (*named(ids), "$^")))
        answers.append((method, pattern.sub("ID", path), response.status_code, pattern.sub("ID", response.text)))
    return answers


def named(ids: Ids) -> list[str]:
    return sorted((ids.session, ids.forwarded, ids.response, ids.conversation, ids.item), key=len, reverse=True)


async def everything(tables: Tables) -> list[str]:
    return [repr(row) for table in (tables.sessions, tables.usage, tables.daily) async for row in all_rows(table)]


def callers(issuer: EntraIssuer) -> dict[str, dict[str, str]]:
    return {
        "Ada": issuer.bearer(ADA),
        "Bob": issuer.bearer(BOB),
        "administrator": issuer.bearer(CAROL),
        "client key": KEY_HEADERS,
    }


@pytest.mark.parametrize("owner", ["Ada", "client key"])
async def test_what_belongs_to_one_caller_is_unknown_to_every_other(
    api: httpx.AsyncClient, issuer: EntraIssuer, fake: AzureOpenAI, tables: Tables, owner: str
) -> None:
    credentials = callers(issuer)
    ids = await begin(api, credentials.pop(owner))
    await closed_ledger(tables)
    before, called = sorted(await everything(tables)), len(fake.requests)

    for headers in credentials.values():
        answers = await sent(api, ids, headers)
        assert answers == await sent(api, NOTHING, headers)
        assert {status for _, path, status, _ in answers if not path.endswith("responses")} == {404}
        for path, body, more in writes(ids):
            response = await api.post(path, json=body, headers=headers | more)
            assert (response.status_code, response.json()["error"]["code"]) == (404, "session_not_found"), path

    assert sorted(await everything(tables)) == before
    assert len(fake.requests) == called


async def test_running_turn_is_stopped_by_its_owner_only(
    api: httpx.AsyncClient, issuer: EntraIssuer, fake: AzureOpenAI
) -> None:
    ada, *others = callers(issuer).values()
    fake.reply("one two three")
    body = {"message": "count", "session_id": "s", "stream": True}
    with fake.hold(after=1) as hold:
        async with api.stream("POST", "/api/chat", json=body, headers=ada) as response:
            received = response.aiter_bytes()
            assert b"start" in await anext(received)
            for headers in others:
                for path, request in (("/api/sessions/s/stop", None), ("/api/chat", body)):
                    answer = await api.post(path, json=request, headers=headers)
                    assert (answer.status_code, answer.json()["error"]["code"]) == (404, "session_not_found")
            hold.release()
            assert b"event: done" in b"".join([part async for part in received])
    last = ok_json(await api.get("/api/sessions/s/messages", headers=ada))["turns"][0]
    assert last["state"] == "settled"


@pytest.mark.parametrize(
    ("path", "body"),
    [
        ("/api/chat", {"message": "hi"}),
        ("/openai/v1/chat/completions", {"model": "chat", "messages": [{"role": "user", "content": "hi"}]}),
        ("/openai/v1/responses", {"model": "chat", "input": "hi"}),
    ],
)
async def test_idempotency_keys_are_each_callers_own(
    api: httpx.AsyncClient, issuer: EntraIssuer, fake: AzureOpenAI, path: str, body: JSON
) -> None:
    for caller, headers in callers(issuer).items():
        fake.reply(f"for {caller}")
        answer = await api.post(path, json=body, headers=headers | {"idempotency-key": "once"})
        assert (answer.status_code, f"for {caller}" in answer.text) == (200, True)


async def test_erasing_ones_own_sessions_leaves_those_of_the_others(
    api: httpx.AsyncClient, issuer: EntraIssuer
) -> None:
    sessions = {}
    for caller, headers in callers(issuer).items():
        sessions[caller] = ok_json(await api.post("/api/chat", json={"message": "hi"}, headers=headers))["session_id"]
    ada, *others = callers(issuer).values()

    assert (await api.delete("/api/me/sessions", headers=ada)).status_code == 200

    for headers in others:
        erasure = await api.get("/api/me/sessions/erasure", headers=headers)
        assert (erasure.status_code, erasure.json()["error"]["code"]) == (404, "erasure_not_found")
    for caller, headers in callers(issuer).items():
        status = (await api.get(f"/api/sessions/{sessions[caller]}", headers=headers)).status_code
        assert status == (404 if caller == "Ada" else 200), caller


async def test_ledger_and_limits_go_by_the_person(api: httpx.AsyncClient, issuer: EntraIssuer, tables: Tables) -> None:
    for headers in callers(issuer).values():
        ok_json(await api.post("/api/chat", json={"message": "hi"}, headers=headers))
    names = {ADA.name, BOB.name, CAROL.name, "key:ann"}

    assert {entry.caller for entry in await closed_ledger(tables)} == names
    for person, limit in ((ADA, 7), (BOB, 2)):
        [own] = ok_json(await api.get("/api/limits", headers=issuer.bearer(person)))["limits"]
        assert (own["caller"], own["budgets"][0]["limit_usd"]) == (person.name, limit)
        assert own["budgets"][0]["spent_usd"] > 0
    for path in ("/api/limits", "/api/usage/limits"):
        every = ok_json(await api.get(path, headers=issuer.bearer(CAROL)))["limits"]
        assert {each["caller"] for each in every} == {"total", *names}


async def test_administrator_reads_usage_by_caller_without_content(
    api: httpx.AsyncClient, issuer: EntraIssuer, tables: Tables
) -> None:
    await begin(api, issuer.bearer(ADA))
    path = f"/api/usage/daily/{(await closed_ledger(tables))[0].call.day}"

    response = await api.get(path, headers=issuer.bearer(CAROL))

    assert ADA.name in json.dumps(response.json()["by_caller"])
    assert SECRET not in response.text
    refused = await api.get(path, headers=issuer.bearer(BOB))
    assert (refused.status_code, refused.json()["error"]["code"]) == (403, "forbidden")


async def test_display_names_and_tokens_are_neither_stored_nor_logged(
    api: httpx.AsyncClient, issuer: EntraIssuer, tables: Tables, caplog: pytest.LogCaptureFixture
) -> None:
    caplog.set_level(logging.DEBUG)
    token = issuer.token(ADA)
    await begin(api, {"authorization": f"Bearer {token}"})
    for refused in (issuer.token(ADA, exp=1), f"{token}x", issuer.token(ADA, aud="other")):
        assert (await api.get("/api/about", headers={"api-key": refused})).status_code == 401
    await closed_ledger(tables)

    rows = await everything(tables)
    logged = [caplog.handler.format(record) for record in caplog.records]
    traces = ("Ada", "Lovelace", "ada@example.com", *token.split(".")[1:])
    assert [text for text in (*rows, *logged) if any(trace in text for trace in traces)] == []
    assert ADA.name in "".join(rows)


async def test_openai_sdk_takes_a_token_as_its_key(api: httpx.AsyncClient, issuer: EntraIssuer) -> None:
    async with AsyncOpenAI(base_url=f"{api.base_url}/openai/v1", api_key=issuer.token(ADA), max_retries=0) as sdk:
        assert (await sdk.responses.create(model="chat", input="hi")).output_text


PATHS = ["/api/about", "/openai/v1/models", "/openai/v1/responses/resp_a"]


class TestRefusals:
    @pytest.mark.parametrize("path", PATHS)
    async def test_bad_token_is_explained_in_the_routes_format(
        self, api: httpx.AsyncClient, issuer: EntraIssuer, path: str
    ) -> None:
        response = await api.get(path, headers={"authorization": f"Bearer {issuer.token(ADA, exp=1)}"})

        error = response.json()["error"]
        assert (response.status_code, error["message"]) == (401, "The access token has expired. Sign in again.")
        assert ("type" in error) == path.startswith("/openai")
        authority = f"{issuer.authority}/{TENANT}/oauth2/v2.0/authorize"
        challenge = f'Bearer authorization_uri="{authority}", scope="{SCOPE}", error="invalid_token"'
        assert response.headers["www-authenticate"] == challenge

    @pytest.mark.parametrize("path", PATHS)
    async def test_unreachable_issuer_is_a_503_that_says_when_to_try_again(
        self, api: httpx.AsyncClient, issuer: EntraIssuer, path: str
    ) -> None:
        issuer.answer = (500, {}, b"")
        response = await api.get(path, headers=issuer.bearer(ADA))

        assert (response.status_code, response.json()["error"]["code"]) == (503, "sign_in_unavailable")
        assert response.headers["retry-after"] == "5"
        assert (await api.get(path, headers=KEY_HEADERS)).status_code in (200, 404)  # keys need no issuer

    @pytest.mark.parametrize("name", ["authorization", "api-key"])
    async def test_header_that_is_sent_twice_is_refused(
        self, api: httpx.AsyncClient, issuer: EntraIssuer, name: str
    ) -> None:
        scheme = "Bearer " if name == "authorization" else ""
        for both in ((ADA, BOB), (BOB, ADA)):
            headers = [(name, scheme + issuer.token(person)) for person in both]
            response = await api.get("/api/about", headers=headers)
            assert (response.status_code, "several" in response.text) == (401, True)

    async def test_function_key_no_longer_opens_anything(self, api: httpx.AsyncClient) -> None:
        in_header = await api.get("/api/about", headers={"x-functions-key": FUNCTION_KEY})
        for response in (in_header, await api.get(f"/api/about?code={FUNCTION_KEY}")):
            assert (response.status_code, "Function keys are not taken." in response.text) == (401, True)

    async def test_identity_headers_of_the_platform_prove_nothing(self, api: httpx.AsyncClient) -> None:
        headers = {"x-ms-client-principal-id": ADA.object_id, "x-ms-client-principal": "eyJ9", "x-ms-token-aad": "x"}
        assert (await api.get("/api/about", headers=headers)).status_code == 401
