"""What the app makes of the model service's statuses and headers, beyond those that Azure OpenAI documents."""

import json
from collections.abc import Iterator
from typing import Any

import httpx
import pytest

from local.keys import line
from tests.conftest import Tables
from tests.support.conservation import assert_conserved
from tests.support.rude_upstream import Raw, RudeUpstream, end, frame, text, usage

KEY = "a-client-key-of-the-tests"
JSON = dict[str, Any]


@pytest.fixture
def fake() -> Iterator[RudeUpstream]:
    with RudeUpstream() as server:
        yield server


@pytest.fixture
def environ(environ: dict[str, str]) -> dict[str, str]:
    return environ | {"CLIENT_KEYS": line("app", KEY), "AZURE_OPENAI_MAX_RETRIES": "2"}


async def openai_post(api: httpx.AsyncClient, **fields: Any) -> httpx.Response:
    body = {"model": "chat", "messages": [{"role": "user", "content": "hi"}], **fields}
    return await api.post("/openai/v1/chat/completions", json=body, headers={"authorization": f"Bearer {KEY}"})


def refusal(status: int, body: Any, *headers: tuple[str, bytes | str]) -> Raw:
    content = body if isinstance(body, str) else json.dumps(body)
    return Raw([content.encode()], status=status, media_type="application/json", billed=False, headers=headers)


ODD_HEADERS = (
    ("x-request-id", "€".encode()),
    ("apim-request-id", b"\xe9\xff"),
    ("x-ratelimit-remaining-tokens", "€5".encode()),
    ("x-ratelimit-limit-tokens", "5"),
)


@pytest.mark.parametrize("stream", [True, False])
async def test_headers_outside_ascii_are_left_out_of_an_answer(
    api: httpx.AsyncClient, fake: RudeUpstream, tables: Tables, stream: bool
) -> None:
    fake.queue(Raw([*map(frame, [text("hi"), end(), usage()]), b"data: [DONE]\n\n"], headers=ODD_HEADERS))
    response = await openai_post(api, stream=stream)
    assert (response.status_code, "hi" in response.text) == (200, True)
    assert [name for name, _ in ODD_HEADERS if name in response.headers] == ["x-ratelimit-limit-tokens"]
    await assert_conserved(tables, fake)


async def test_headers_outside_ascii_are_left_out_of_a_refusal(api: httpx.AsyncClient, fake: RudeUpstream) -> None:
    body = {"error": {"message": "no", "type": "invalid_request_error"}}
    fake.queue(refusal(400, body, *ODD_HEADERS))
    response = await openai_post(api)
    assert (response.status_code, response.json()) == (400, body)
    assert [name for name, _ in ODD_HEADERS if name in response.headers] == ["x-ratelimit-limit-tokens"]
