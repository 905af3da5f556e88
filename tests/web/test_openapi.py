"""The OpenAPI document lists every route, and the responses of the app conform to it."""

import re
import uuid
from collections.abc import Iterator
from datetime import UTC, datetime
from typing import Any

import httpx
import pytest
import schemathesis
from hypothesis import HealthCheck, Phase, settings
from schemathesis.checks import not_a_server_error
from schemathesis.specs.openapi.checks import (
    content_type_conformance,
    response_schema_conformance,
    status_code_conformance,
)

from local import azurite
from local.keys import line, new_key
from shared.web.openapi import document
from tests.conftest import Serve
from tests.support.azure_openai import AzureOpenAI
from tests.support.budgets import limited, reply_long, until_settled
from tests.support.chat_client import streaming
from tests.support.clock import ManualClock
from tests.support.declared import triggers
from tests.support.loopback import MAX_WAIT_S
from tests.support.processes import HostFactory

KEY = new_key()
CHECKS = [not_a_server_error, status_code_conformance, content_type_conformance, response_schema_conformance]
SCHEMA = schemathesis.openapi.from_dict(document())
AZURE = r"^/openai/(responses|conversations)"  # the same as at /openai/v1
GENERATED = settings(
    phases=[Phase.explicit, Phase.generate],
    suppress_health_check=list(HealthCheck),
    deadline=None,
    derandomize=True,
)


@pytest.fixture(scope="module")
def base_url(azurite_port: int, tmp_path_factory: pytest.TempPathFactory) -> Iterator[str]:
    folder = tmp_path_factory.mktemp("openapi")
    with AzureOpenAI() as fake, HostFactory() as host_factory:
        environ = {
            "AZURE_OPENAI_ENDPOINT": fake.endpoint,
            "AZURE_OPENAI_API_KEY": "test-key",
            "AZURE_OPENAI_MODEL": "chat",
            "AZURE_OPENAI_MAX_RETRIES": "0",
            "TABLES_CONNECTION_STRING": azurite.connection_string(azurite_port),
            "TABLE_PREFIX": f"t{uuid.uuid4().hex[:20]}",
            "CLIENT_KEYS": line("ann", KEY),
            "USAGE_KEYS": line("ann", KEY),
            "LIMITS": '{"total": {"requests_per_minute": 100000}}',
            "SUMMARY_RECIPIENTS": "ann@example.com",
            "OUTBOX_DIR": str(folder / "outbox"),
        }
        yield host_factory.host(environ, folder / "log").base


@SCHEMA.exclude(path_regex=AZURE).parametrize()
@settings(GENERATED, max_examples=12)
def test_responses_conform_to_the_openapi_document(case: Any, base_url: str) -> None:
    """Generated requests, valid and invalid, to every route."""
    call_and_check(case, base_url)


@SCHEMA.include(path_regex=AZURE).exclude(path="/openai/responses").parametrize()
@settings(GENERATED, max_examples=3)
def test_responses_of_azures_paths_conform_to_the_openapi_document(case: Any, base_url: str) -> None:
    """The same handlers as those of OpenAI's paths. Only a new response is left to the tests below: its bodies take
    seconds to generate."""
    call_and_check(case, base_url)


def call_and_check(case: Any, base_url: str) -> None:
    headers = {"authorization": f"Bearer {KEY}"}
    ids = case.path_parameters or {}
    if {"response_id", "conversation_id"} & {*ids} and len(str(ids)) % 3:  # others name nothing that exists
        with httpx.Client(base_url=base_url, headers=headers, trust_env=False, timeout=MAX_WAIT_S) as client:
            case.path_parameters = ids | {name: each for name, each in stored_ids(client).items() if name in ids}
    case.validate_response(case.call(base_url=base_url, headers=headers), checks=CHECKS)


def stored_ids(client: httpx.Client) -> dict[str, str]:
    """Of a new response, and of a new conversation and an item of it."""
    response = client.post("/openai/v1/responses", json={"model": "chat", "input": "hi"}).json()
    new = {"items": [{"role": "user", "content": "hi"}]}
    conversation = client.post("/openai/v1/conversations", json=new).json()
    [item] = client.get(f"/openai/v1/conversations/{conversation['id']}/items").json()["data"]
    return {"response_id": response["id"], "conversation_id": conversation["id"], "item_id": item["id"]}


def test_chat_session_and_daily_usage_conform_to_the_openapi_document(base_url: str) -> None:
    """With stored data, which generated requests do not reach."""
    with httpx.Client(base_url=base_url, headers={"api-key": KEY}, trust_env=False, timeout=MAX_WAIT_S) as client:
        today = f"{datetime.now(UTC):%Y-%m-%d}"
        requests: list[tuple[str, str, str, Any]] = [
            ("POST", "/api/chat", "/api/chat", {"message": "hi", "session_id": "s"}),
            ("GET", "/api/sessions/{session_id}", "/api/sessions/s", None),
            ("GET", "/api/sessions/{session_id}/messages", "/api/sessions/s/messages", None),
            ("GET", "/api/sessions/{session_id}/export", "/api/sessions/s/export", None),
            ("GET", "/api/sessions/{session_id}/export", "/api/sessions/s/export?format=markdown", None),
            ("POST", "/api/sessions/{session_id}/stop", "/api/sessions/s/stop", None),
            ("DELETE", "/api/me/sessions", "/api/me/sessions", None),
            ("GET", "/api/me/sessions/erasure", "/api/me/sessions/erasure", None),
            ("GET", "/api/usage/daily/{date}", f"/api/usage/daily/{today}", None),
            ("GET", "/api/limits", "/api/limits", None),
            ("GET", "/api/usage/limits", "/api/usage/limits", None),
        ]
        for method, template, path, body in requests:
            response = client.request(method, path, json=body)
            assert response.status_code == 200
            SCHEMA[template][method].validate_response(schemathesis.Response.from_httpx(response, verify=False))


@pytest.mark.parametrize("root", ["/openai/v1", "/openai"])
def test_stored_responses_and_conversations_conform_to_the_openapi_document(base_url: str, root: str) -> None:
    with httpx.Client(base_url=base_url, headers={"api-key": KEY}, trust_env=False, timeout=MAX_WAIT_S) as client:
        ids = stored_ids(client)
        new, items = {"model": "chat", "input": "hi"}, {"items": [{"role": "user", "content": "hi"}]}
        requests: list[tuple[str, str, Any]] = [
            ("POST", "/responses", new | {"previous_response_id": ids["response_id"]}),
            ("POST", "/responses", new | {"conversation": ids["conversation_id"], "stream": True}),
            ("GET", "/responses/{response_id}", None),
            ("GET", "/responses/{response_id}/input_items", None),
            ("DELETE", "/responses/{response_id}", None),
            ("POST", "/conversations", items),
            ("GET", "/conversations/{conversation_id}", None),
            ("POST", "/conversations/{conversation_id}", {"metadata": {"a": "b"}}),
            ("GET", "/conversations/{conversation_id}/items", None),
            ("POST", "/conversations/{conversation_id}/items", items),
            ("GET", "/conversations/{conversation_id}/items/{item_id}", None),
            ("DELETE", "/conversations/{conversation_id}/items/{item_id}", None),
            ("DELETE", "/conversations/{conversation_id}", None),
        ]
        for method, template, body in requests:
            response = client.request(method, root + template.format(**ids), json=body)
            assert response.status_code == 200, (method, template, response.text)
            checked = schemathesis.Response.from_httpx(response, verify=False)
            SCHEMA[root + template][method].validate_response(checked)


async def test_stopped_turn_conforms_to_the_openapi_document(api: httpx.AsyncClient, fake: AzureOpenAI) -> None:
    with fake.hold(after=1):
        async with streaming(api) as answering:
            assert [(await answering.next()).name for _ in range(2)] == ["start", "delta"]
            stop = await api.post("/api/sessions/s/stop")
            [done] = await answering.rest()
    documents = {
        "/api/sessions/{session_id}/stop": stop,
        "/api/sessions/{session_id}": await api.get("/api/sessions/s"),
        "/api/sessions/{session_id}/messages": (history := await api.get("/api/sessions/s/messages")),
        "/api/sessions/{session_id}/export": await api.get("/api/sessions/s/export"),
    }
    for template, response in documents.items():
        method = "POST" if response is stop else "GET"
        SCHEMA[template][method].validate_response(schemathesis.Response.from_httpx(response, verify=False))
    [turn] = history.json()["turns"]
    bounds = {"stopped_at_least_usd", "stopped_at_most_usd"}
    schemas = document()["components"]["schemas"]
    for shown, model in ((turn, "TurnAnswer"), (done.data, "ChatAnswer")):
        assert bounds < {*shown} <= {*schemas[model]["properties"]}


async def test_limits_and_refusals_conform_to_the_openapi_document(
    serve: Serve, environ: dict[str, str], fake: AzureOpenAI, clock: ManualClock
) -> None:
    limits = {"key:ann": {"usd_per_day": 0.1, "requests_per_minute": 2}}
    error_fields = document()["components"]["schemas"]["ErrorFields"]["properties"]
    keys = {"CLIENT_KEYS": line("ann", KEY), "USAGE_KEYS": line("ann", KEY)}
    completion = {"model": "chat", "messages": [{"role": "user", "content": "hi"}], "max_tokens": 1000}
    async with serve(limited(environ | keys, limits)) as api:
        api.headers["api-key"] = KEY
        reply_long(fake)
        for path, body, status in [
            ("/api/chat", {"message": "hi", "session_id": "s"}, 200),  # uses 80 % of the budget
            ("/api/chat", {"message": "hi", "session_id": "s"}, 429),
            ("/api/chat", {"message": "hi"}, 429),
            ("/openai/v1/chat/completions", completion, 429),
            ("/openai/v1/chat/completions", completion | {"max_tokens": 1}, 200),
            ("/openai/v1/chat/completions", completion | {"max_tokens": 1}, 429),  # the third in a minute
            ("/api/limits", None, 200),
            ("/api/usage/limits", None, 200),
            ("/api/usage/daily/2026-11-28", None, 200),
        ]:
            await until_settled(api)
            clock.set(datetime(2026, 11, 28, 12, tzinfo=UTC))  # all in one minute
            method, template = "POST" if body else "GET", re.sub("daily/.*", "daily/{date}", path)
            response = await api.request(method, path, json=body)
            assert response.status_code == status, response.text
            SCHEMA[template][method].validate_response(schemathesis.Response.from_httpx(response, verify=False))
            documented = document()["paths"][template][method.lower()]["responses"][str(status)].get("headers", {})
            described = {name.lower() for name in documented}
            sent = {name for name in response.headers if name.startswith(("x-ratelimit", "x-should", "retry"))}
            assert sent <= described
            if status == 429:
                assert sent
                assert {*response.json()["error"]} <= {*error_fields}


def test_every_route_is_in_the_openapi_document() -> None:
    documented = {(path[1:], method) for path, methods in document()["paths"].items() for method in methods}
    served = {
        (trigger["route"], method.lower())
        for trigger in triggers().values()
        for method in trigger.get("methods", ())
        if re.match(r"(api|openai)/(?!\{\*)", trigger["route"])
    }
    assert documented == served - {("api/openapi.json", "get")}


async def test_openapi_document_needs_no_key(api: httpx.AsyncClient) -> None:
    del api.headers["x-functions-key"]
    assert (await api.get("/api/openapi.json")).json() == document()
