"""Requests that match no route get a 404 or 405 that names the routes; the functions for them hide no route."""

import itertools
import re
from collections.abc import AsyncIterator
from typing import Any

import httpx
import openai
import pytest
from hypothesis import given
from hypothesis import strategies as st
from openai import AsyncAzureOpenAI, AsyncOpenAI

from local.keys import line, new_key
from local.routing import in_order, pattern
from local.triggers import HttpTrigger
from shared.web.openapi import document
from shared.web.unknown import METHODS, PREFIXES
from tests.conftest import Serve
from tests.support import declared

KEY = new_key()
OPENAI_ROUTES = [path for path in document()["paths"] if path.startswith("/openai/")]
API_ROUTES = [path for path in document()["paths"] if path.startswith("/api/")]
HELLO: list[Any] = [{"role": "user", "content": "hi"}]
WORDS = [word for path in document()["paths"] for word in path.split("/") if word]
SLIPS = [
    "/openai",
    "/openai/",
    "/openai/chat/completions",
    "/openai/openai/v1/chat/completions",
    "/openai/v1",
    "/openai/v1/models/org/model",
    "/openai/v1/responses/resp_1/other",
    "/openai/v1/v1/chat/completions",
    "/openai/v1/deployments/chat/chat/completions",
    "/openai/v1/openai/deployments/chat/chat/completions",
    "/openai/deployments/chat/images/generations",
    "/openai/deployments//chat/completions",
    "/OpenAI/V1/Chat/Completion",
    "/v1",
    "/v1/chat/completions",
    "/V1/models",
    "/chat/completions",
    "/completions",
    "/deployments/chat/chat/completions",
    "/embeddings",
    "/models",
    "/responses",
    "/engines/chat/chat/completions",
    "/inference/chat/completions",
    "/v1beta/openai/chat/completions",
    "/v1beta/openai/models",
]


@pytest.fixture
async def api(serve: Serve, environ: dict[str, str]) -> AsyncIterator[httpx.AsyncClient]:
    async with serve(environ | {"CLIENT_KEYS": line("ann", KEY)}) as client:
        del client.headers["x-functions-key"]
        yield client


def error(response: httpx.Response, status: int, code: str) -> dict[str, Any]:
    assert (response.status_code, response.headers["content-type"]) == (status, "application/json"), response.text
    body: dict[str, Any] = response.json()["error"]
    assert body["code"] == code
    return body


# The responses


@pytest.mark.parametrize("method", METHODS)
async def test_unknown_path_is_a_404_in_openais_format_that_names_the_routes(
    api: httpx.AsyncClient, method: str
) -> None:
    for path in SLIPS:
        response = await api.request(method, path, json={"model": "chat", "messages": HELLO})
        if method == "HEAD":
            assert (response.status_code, response.content) == (404, b"")
            continue
        problem = error(response, 404, "route_not_found")
        assert problem.keys() == {"code", "message", "param", "type"}
        assert problem["type"] == "invalid_request_error"
        assert f"There is no route {method} {path}. " in problem["message"]
        assert [route for route in OPENAI_ROUTES if f" {route}" not in problem["message"]] == []
        assert "ends in /openai/v1" in problem["message"]


@pytest.mark.parametrize("path", ["/api", "/api/", "/api/tags", "/api/chat/completions", "/API/v1/models", "/api/me"])
async def test_unknown_api_path_is_a_404_in_this_apps_format(api: httpx.AsyncClient, path: str) -> None:
    problem = error(await api.get(path), 404, "route_not_found")
    assert problem.keys() == {"code", "message", "param"}
    assert [route for route in API_ROUTES if f" {route}" not in problem["message"]] == []


async def test_wrong_method_of_every_route_is_a_405_that_names_the_right_ones(api: httpx.AsyncClient) -> None:
    for path, operations in document()["paths"].items():
        allowed = {method.upper() for method in operations}
        for wrong, slash in itertools.product({"DELETE", "GET", "PATCH", "POST", "PUT"} - allowed, ("", "/")):
            filled = re.sub(r"\{\w+\}", "a%2Fb", path.replace("{response_id}", "resp_a%2Fb"))
            response = await api.request(wrong, filled + slash)
            problem = error(response, 405, "method_not_allowed")
            assert ("type" in problem) is path.startswith("/openai/")
            assert set(response.headers["allow"].split(", ")) == allowed
            assert all(method in problem["message"].partition(".")[2] for method in allowed)


async def test_unknown_path_needs_no_key_and_no_settings(serve: Serve) -> None:
    async with serve({}) as client:
        error(await client.get("/v1/models", headers={"authorization": "Bearer wrong"}), 404, "route_not_found")


async def test_long_path_is_cut_in_the_message(api: httpx.AsyncClient) -> None:
    problem = error(await api.get(f"/v1/{'x' * 5_000}"), 404, "route_not_found")
    assert len(problem["message"]) < 2_000


OTHER_SLIPS = [
    pytest.param(base, marks=pytest.mark.acceptance) for base in ("/openai/v1/chat", "/openai/v1/v1", "/api/v1")
]


@pytest.mark.parametrize("base", ["", "/v1", "/openai", "/api", *OTHER_SLIPS])
async def test_openais_sdk_with_a_wrong_base_url_shows_what_is_wrong(api: httpx.AsyncClient, base: str) -> None:
    async with AsyncOpenAI(base_url=f"{root(api)}{base}", api_key=KEY) as sdk:
        with pytest.raises(openai.NotFoundError, match="ends in /openai/v1") as caught:
            await sdk.chat.completions.create(model="chat", messages=HELLO)
        assert caught.value.code == "route_not_found"
        if base != "/openai":  # there are Azure OpenAI's models
            with pytest.raises(openai.NotFoundError, match="ends in /openai/v1"):
                await sdk.models.list()


@pytest.mark.parametrize("endpoint", ["/openai", "/v1"])
async def test_azure_openais_sdk_with_a_wrong_endpoint_shows_what_is_wrong(
    api: httpx.AsyncClient, endpoint: str
) -> None:
    for client in (
        AsyncAzureOpenAI(azure_endpoint=f"{root(api)}{endpoint}", api_key=KEY, api_version="2024-10-21"),
        AsyncAzureOpenAI(base_url=f"{root(api)}{endpoint.removesuffix('openai')}", api_key=KEY, api_version="v1"),
    ):
        async with client as sdk:
            with pytest.raises(openai.NotFoundError, match="endpoint of an Azure OpenAI client has no path"):
                await sdk.chat.completions.create(model="chat", messages=HELLO)


async def test_route_that_clients_use_but_this_app_lacks_is_not_retried(api: httpx.AsyncClient) -> None:
    async with AsyncOpenAI(base_url=f"{root(api)}/openai/v1", api_key=KEY) as sdk:
        with pytest.raises(openai.NotFoundError, match="no route GET /openai/v1/files"):
            await sdk.files.list()
        with pytest.raises(openai.NotFoundError, match="no route POST /openai/v1/responses/compact"):
            await sdk.responses.compact(model="gpt-5.4", input="hi")
        with pytest.raises(openai.NotFoundError, match="no route POST /openai/v1/responses/input_tokens"):
            await sdk.responses.input_tokens.count(model="chat", input="hi")
        with pytest.raises(openai.NotFoundError, match="no route POST /openai/v1/moderations"):
            await sdk.moderations.create(model="chat", input="hi")


def root(api: httpx.AsyncClient) -> str:
    return str(api.base_url).rstrip("/")


# The routing of the platform


def routes() -> list[HttpTrigger]:
    """The routes of the app in the platform's order: Azure/azure-functions-host, FunctionMetadataManager.cs."""
    return in_order(
        HttpTrigger(name, print, binding["name"], binding["route"], frozenset(binding["methods"]), binding["authLevel"])
        for name, binding in declared.triggers().items()
        if binding["type"] == "httpTrigger"
    )


def first_match(method: str, path: str) -> str | None:
    return next((route.function for route in routes() if method in route.methods and matches(route, path)), None)


def matches(route: HttpTrigger, path: str) -> bool:
    return bool(pattern(route.route, route.function).fullmatch(path))


def test_functions_for_unknown_paths_sort_last() -> None:
    names = [route.function for route in routes()]
    assert names[-len(PREFIXES) :] == sorted(f"zz_{prefix}" for prefix in PREFIXES)
    assert all(re.fullmatch(r"[A-Za-z][\w-]{0,127}", name) for name in names)  # the platform's rule


@given(st.data())
def test_no_route_is_hidden_by_another(data: st.DataObject) -> None:
    route = data.draw(st.sampled_from([route for route in routes() if "{*" not in route.route]))
    texts = st.sampled_from(WORDS) | st.text("abz09.-_~", min_size=1, max_size=9)
    path = "/" + re.sub(r"\{\w+\}", lambda _: data.draw(texts), route.route.strip("/"))
    for method in route.methods:
        assert first_match(method, path) == route.function


async def test_wrong_method_is_a_405_with_the_declared_methods(api: httpx.AsyncClient) -> None:
    """Pages are not in the OpenAPI document, but clients with a wrong base URL call `/chat` too."""
    named = [route for route in routes() if "{*" not in route.route]
    tested = set()
    filled = {route.route.strip("/").replace("{response_id}", "resp_a") for route in named}
    for path in {"/" + re.sub(r"\{\w+\}", "a", route) for route in filled}:
        allowed = {method for route in named if matches(route, path) for method in route.methods}
        for wrong in {*METHODS} - allowed:
            if (first_match(wrong, path) or "").startswith("zz_"):
                response = await api.request(wrong, path)
                assert (response.status_code, {*response.headers["allow"].split(", ")}) == (405, allowed), path
                tested.add(path)
    assert tested > {"/chat", "/api/chat", "/api/openapi.json", "/openai/v1/models"}


def test_functions_for_unknown_paths_match_none_of_the_platforms_own() -> None:
    """Its routes that are tried after the app's: WebScriptHostHttpRoutesManager.cs, and the extensions' webhooks."""
    for path in ("/", "/admin/warmup", "/admin/host/status", "/runtime/webhooks/durabletask", "/robots933456.txt"):
        assert not [r.function for r in routes() if r.function.startswith("zz_") and matches(r, path)]


def test_routes_do_not_conflict() -> None:
    """The platform refuses a function that shares route and method with another: ScriptHost.cs, HttpRoutesConflict."""
    for one, other in itertools.combinations(routes(), 2):
        assert one.route.strip("/").lower() != other.route.strip("/").lower() or not one.methods & other.methods
    assert all(route.methods for route in routes())
