"""The published contract: it names every route, and what the app answers is what it says."""

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
from local.places import ROOT
from shared.web.openapi import document
from tests.support.azure_openai import AzureOpenAI
from tests.support.loopback import MAX_WAIT_S
from tests.support.processes import HostFactory

KEY = new_key()
CHECKS = [not_a_server_error, status_code_conformance, content_type_conformance, response_schema_conformance]
SCHEMA = schemathesis.openapi.from_dict(document())


@pytest.fixture(scope="module")
def base(azurite_port: int, tmp_path_factory: pytest.TempPathFactory) -> Iterator[str]:
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
            "SUMMARY_RECIPIENTS": "ann@example.com",
            "OUTBOX_DIR": str(folder / "outbox"),
        }
        yield host_factory.host(environ, folder / "log").base


@SCHEMA.parametrize()
@settings(
    max_examples=12,
    phases=[Phase.explicit, Phase.generate],
    suppress_health_check=list(HealthCheck),
    deadline=None,
    derandomize=True,
)
def test_whatever_is_asked_is_answered_as_published(case: Any, base: str) -> None:
    """Valid and invalid requests, of every route."""
    response = case.call(base_url=base, headers={"authorization": f"Bearer {KEY}"})
    case.validate_response(response, checks=CHECKS)


def test_a_day_and_a_turn_are_as_published(base: str) -> None:
    """With something in them, which no made-up request has."""
    with httpx.Client(base_url=base, headers={"api-key": KEY}, trust_env=False, timeout=MAX_WAIT_S) as client:
        today = f"{datetime.now(UTC):%Y-%m-%d}"
        asked: list[tuple[str, str, str, Any]] = [
            ("POST", "/api/chat", "/api/chat", {"message": "hi", "session_id": "s"}),
            ("GET", "/api/sessions/{session_id}", "/api/sessions/s", None),
            ("GET", "/api/sessions/{session_id}/messages", "/api/sessions/s/messages", None),
            ("GET", "/api/usage/daily/{date}", f"/api/usage/daily/{today}", None),
        ]
        for method, published, path, body in asked:
            response = client.request(method, path, json=body)
            assert response.status_code == 200
            SCHEMA[published][method].validate_response(schemathesis.Response.from_httpx(response, verify=False))


def test_every_route_is_published() -> None:
    published = {(path[1:], method) for path, methods in document()["paths"].items() for method in methods}
    declared = (ROOT / "function_app.py").read_text()
    path = r'"((?:api|openai)/[^"]+)"'
    served = {(route, "get") for route in re.findall(rf'public\(\s*"\w+",\s*{path}', declared)}
    for method, route in re.findall(rf'route\(\s*"\w+",\s*"([A-Z]+)",\s*{path}', declared):
        served.add((route, method.lower()))
    assert published == served - {("api/openapi.json", "get")}


async def test_it_is_served_to_anyone(api: httpx.AsyncClient) -> None:
    del api.headers["x-functions-key"]
    assert (await api.get("/api/openapi.json")).json() == document()
