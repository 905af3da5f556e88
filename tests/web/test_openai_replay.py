"""The replay of a stored answer on openai/*: the message whole, whether the first answer or the replay is streamed."""

import json
from collections.abc import AsyncIterator, Iterator
from typing import Any

import httpx
import pytest

from local.keys import line, new_key
from tests.conftest import Serve, Tables
from tests.support.chat_client import JSON, exact, ok_json
from tests.support.conservation import assert_conserved
from tests.support.rude_upstream import RudeUpstream, chunk, end, text, usage, whole

KEY = new_key()
HEADERS = {"authorization": f"Bearer {KEY}", "x-session-id": "s", "idempotency-key": "k"}
MESSAGE: JSON = {
    "role": "assistant",
    "content": None,
    "refusal": None,
    "audio": {"id": "audio_1", "data": "UklGRg==", "expires_at": 1_790_000_000, "transcript": "one two"},
    "annotations": [{"type": "url_citation", "url_citation": {"url": "https://example.com", "title": "One"}}],
    "reasoning_content": "First one, then two.",
    "tool_calls": [
        {
            "id": "call_1",
            "type": "function",
            "function": {"name": "look", "arguments": "{}"},
            "extra_content": {"google": {"thought_signature": "c2ln"}},
        }
    ],
    "anything_else": {"nested": [1, {"two": 3.5}]},
}
EMPTY: JSON = {"refusal": None, "function_call": None, "annotations": [], "reasoning_content": ""}
AUDIO: JSON = {"role": "assistant", "content": None, "audio": MESSAGE["audio"]}
WHOLE = {
    "every field": MESSAGE,
    "empty fields": {"role": "assistant", "content": "one two", "tool_calls": [], **EMPTY},
    "audio alone": {"refusal": None, **AUDIO},
}
FILTERED: JSON = {
    "prompt_filter_results": [{"prompt_index": 0, "content_filter_results": {"hate": {"filtered": False}}}],
    "content_filter_results": {"hate": {"filtered": False, "severity": "safe"}},
}
LOGPROBS: JSON = {"content": [{"token": "one", "logprob": -0.5, "bytes": [111, 110, 101], "top_logprobs": []}]}


async def complete(api: httpx.AsyncClient, **body: Any) -> httpx.Response:
    request = {"model": "chat", "messages": [{"role": "user", "content": "hi"}], **body}
    return await api.post("/openai/v1/chat/completions", json=request, headers=HEADERS)


def chunks(response: httpx.Response) -> list[JSON]:
    *blocks, done = response.text.strip().split("\n\n")
    assert done == "data: [DONE]"
    return [exact(block.removeprefix("data: ")) for block in blocks]


def calls_of(message: JSON) -> JSON:
    """The tool calls as in a delta, which numbers them."""
    calls = message.get("tool_calls")
    return {"tool_calls": [{"index": at, **call} for at, call in enumerate(calls)]} if calls else {}


@pytest.fixture
def upstream() -> Iterator[RudeUpstream]:
    with RudeUpstream() as upstream:
        yield upstream


@pytest.fixture
async def api(serve: Serve, environ: dict[str, str], upstream: RudeUpstream) -> AsyncIterator[httpx.AsyncClient]:
    environ |= {"AZURE_OPENAI_ENDPOINT": upstream.endpoint, "CLIENT_KEYS": line("ann", KEY)}
    async with serve(environ) as client:
        yield client


@pytest.mark.parametrize("message", WHOLE.values(), ids=WHOLE)
async def test_replay_has_the_message_of_the_first_answer(
    api: httpx.AsyncClient, upstream: RudeUpstream, message: JSON
) -> None:
    upstream.raw(whole(message), media_type="application/json", framing="length")
    first = ok_json(await complete(api))

    replayed = await complete(api)
    streamed = await complete(api, stream=True)

    assert ok_json(replayed)["choices"][0]["message"] == first["choices"][0]["message"]
    assert chunks(streamed)[0]["choices"][0]["delta"] == exact(json.dumps(message | calls_of(message)))


@pytest.mark.parametrize("name", ["empty fields", "audio alone"])
async def test_later_turn_sends_no_empty_field_of_a_stored_message(
    api: httpx.AsyncClient, upstream: RudeUpstream, name: str
) -> None:
    """Services reject an empty list of tool calls, and a message without content."""
    upstream.raw(whole(WHOLE[name]), media_type="application/json", framing="length")
    await complete(api)
    upstream.stream(text("hello"), end(), usage())

    body = {"session_id": "s", "message": "more"}
    ok_json(await api.post("/api/chat", json=body, headers={"authorization": HEADERS["authorization"]}))

    assert upstream.requests[-1].body["messages"][-2] == {
        "role": "assistant",
        "content": WHOLE[name]["content"] or "",
    }


@pytest.mark.parametrize("streamed", [False, True], ids=["first as JSON", "first streamed"])
async def test_replay_has_every_field_of_the_first_answer(
    api: httpx.AsyncClient, upstream: RudeUpstream, tables: Tables, streamed: bool
) -> None:
    """Without the thought signature of a call, for example, Gemini rejects the next turn (tidyverse/ellmer#869,
    0xsline/OpenChatCut#6)."""
    choice = {"content_filter_results": FILTERED["content_filter_results"], "logprobs": LOGPROBS}
    opening = {"prompt_filter_results": FILTERED["prompt_filter_results"]}
    message = {name: value for name, value in MESSAGE.items() if name == "content" or value is not None}
    if streamed:
        first_chunk = chunk(message | calls_of(message))
        first_chunk["choices"][0] |= choice
        upstream.stream(chunk(**opening), first_chunk, end("tool_calls"), usage())
    else:
        completion = json.loads(whole(message, "tool_calls", **opening))
        completion["choices"][0] |= choice
        upstream.raw(json.dumps(completion).encode(), media_type="application/json", framing="length")
    first = await complete(api, stream=streamed)
    assert first.status_code == 200, first.text

    as_json = await complete(api)
    as_stream = await complete(api, stream=True, stream_options={"include_usage": True})

    assert as_json.headers["idempotent-replayed"] == as_stream.headers["idempotent-replayed"] == "true"
    expected = {"index": 0, "finish_reason": "tool_calls", "message": message, **choice}
    assert ok_json(as_json)["choices"] == [exact(json.dumps(expected))]
    assert ok_json(as_json)["prompt_filter_results"] == FILTERED["prompt_filter_results"]
    replayed_chunk, usage_chunk = chunks(as_stream)
    assert replayed_chunk["choices"][0]["delta"] == exact(json.dumps(message | calls_of(message)))
    assert usage_chunk["usage"] == ok_json(as_json)["usage"]
    assert len(upstream.requests) == 1
    await assert_conserved(tables, upstream)
