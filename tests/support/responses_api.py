"""Requests to openai/v1/responses."""

import json
from typing import Any

import httpx

from local.keys import line, new_key
from tests.support.chat_client import JSON, ok_json
from tests.support.processes import Host
from tests.support.response_streams import checked

ANN, BOB = new_key(), new_key()
KEYS = {"CLIENT_KEYS": f"{line('ann', ANN)},{line('bob', BOB)}"}
ROUTE = "/openai/v1/responses"
_AT: JSON = {"type": "object", "properties": {"at": {"type": "string"}}}
TOOL: JSON = {"type": "function", "name": "look", "parameters": _AT}


def client_of_ann(host: Host) -> httpx.AsyncClient:
    client = host.client()
    client.headers["authorization"] = f"Bearer {ANN}"
    return client


async def post(client: httpx.AsyncClient, headers: dict[str, str] | None = None, **body: Any) -> httpx.Response:
    return await client.post(ROUTE, json={"model": "chat", "input": "hi", **body}, headers=headers or {})


async def create(client: httpx.AsyncClient, **body: Any) -> JSON:
    """The response; fails unless it is a 200."""
    return ok_json(await post(client, **body))


async def stream(client: httpx.AsyncClient, **body: Any) -> list[JSON]:
    """The events of a streamed response, checked."""
    response = await post(client, stream=True, **body)
    assert response.status_code == 200, response.text
    return checked(response.text)


async def created_in(response: httpx.Response) -> JSON:
    """The response of the first event of a stream that is still arriving."""
    async for text in response.aiter_lines():
        if text.startswith("data: "):
            created: JSON = json.loads(text.removeprefix("data: "))["response"]
            return created
    raise AssertionError("no event")


async def get(client: httpx.AsyncClient, response: JSON) -> JSON:
    """The response as it is stored."""
    return ok_json(await client.get(f"{ROUTE}/{response['id']}"))


def refused(response: httpx.Response, status: int = 400) -> JSON:
    """The error of a response."""
    assert response.status_code == status, response.text
    error: JSON = response.json()["error"]
    assert {*error} == {"message", "type", "param", "code"}
    return error
