"""What the app makes of the model service's statuses and headers, beyond those that Azure OpenAI documents."""

import json
from collections.abc import Iterator
from typing import Any

import httpx
import pytest

from local.keys import line
from shared.domain.calls import State
from tests.conftest import Tables
from tests.support.chat_client import send_message, states
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


def refuse(fake: RudeUpstream, status: int, body: Any = "", *headers: tuple[str, bytes | str]) -> None:
    fake.raw_responder = lambda _: refusal(status, body, *headers)


@pytest.mark.parametrize(
    ("status", "body", "returned", "code", "state"),
    [
        (403, {"error": {"message": "Input was flagged", "code": 403}}, 400, "content_filter", State.UNACCOUNTED),
        (
            404,
            {"error": {"message": "No endpoints found that support image input"}},
            400,
            "invalid_request",
            State.FAILED,
        ),
        (400, {"error": {"message": "Budget has been exceeded!"}}, 429, "insufficient_quota", State.FAILED),
        (410, {"error": {"message": "It has been deprecated.", "code": "x"}}, 502, "upstream_error", State.FAILED),
        (405, {"detail": "Method Not Allowed"}, 502, "upstream_error", State.FAILED),
        (431, "", 502, "upstream_error", State.FAILED),
        (204, "", 502, "upstream_error", State.UNACCOUNTED),
    ],
)
async def test_refusal_that_a_retry_does_not_change_is_returned_at_once_and_skips_no_endpoint(
    api: httpx.AsyncClient,
    fake: RudeUpstream,
    tables: Tables,
    status: int,
    body: Any,
    returned: int,
    code: str,
    state: State,
) -> None:
    refuse(fake, status, body)
    response = await send_message(api)
    assert (response.status_code, response.json()["error"]["code"]) == (returned, code)
    assert "Retry the request" not in response.text
    assert "AZURE_OPENAI_API_KEY" not in response.text
    assert len(fake.requests) == 1
    assert await states(tables) == [state]
    fake.raw_responder = lambda _: None
    assert (await send_message(api)).status_code == 200
    assert len(fake.requests) == 2


async def test_quota_of_a_gateway_has_the_status_of_a_rate_limit_on_every_route(
    api: httpx.AsyncClient, fake: RudeUpstream, tables: Tables
) -> None:
    words = "Out of call volume quota. Quota will be replenished in 00:20:00."
    refuse(fake, 403, {"statusCode": 403, "message": words}, ("retry-after", "1200"))
    for response in (await send_message(api), await openai_post(api)):
        assert (response.status_code, response.json()["error"]["code"]) == (429, "rate_limited")
        assert int(response.headers["retry-after"]) > 500
    assert set(await states(tables)) == {State.FAILED}


async def test_overload_is_retried_within_the_call(api: httpx.AsyncClient, fake: RudeUpstream, tables: Tables) -> None:
    fake.queue(refusal(529, {"error": {"message": "Overloaded", "type": "overloaded_error"}}))
    assert (await send_message(api)).status_code == 200
    assert await states(tables) == [State.SETTLED]
    await assert_conserved(tables, fake)


@pytest.mark.parametrize("code", ["content_policy_violation", "data_inspection_failed"])
async def test_content_filter_may_come_inside_a_200(api: httpx.AsyncClient, fake: RudeUpstream, code: str) -> None:
    fake.stream({"error": {"message": "no", "code": code}}, billed=False)
    response = await send_message(api)
    assert (response.status_code, response.json()["error"]["code"]) == (400, "content_filter")
    assert len(fake.requests) == 1
