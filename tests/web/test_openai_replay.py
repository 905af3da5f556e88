"""The replay of a stored answer on openai/*: the message whole, whether the first answer or the replay is streamed."""

import json
from typing import Any

import httpx
import pytest

from local.keys import line, new_key
from tests.conftest import Serve, Tables
from tests.support.chat_client import JSON, exact, ok_json
from tests.support.conservation import assert_conserved
from tests.support.rude_upstream import RudeUpstream, chunk, end, usage, whole

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


def delta_of(message: JSON) -> JSON:
    """The message as one delta: without empty fields, and tool calls with an index."""
    delta = {name: value for name, value in message.items() if value is not None}
    delta["tool_calls"] = [{"index": at, **call} for at, call in enumerate(message["tool_calls"])]
    return delta


@pytest.mark.parametrize("streamed", [False, True], ids=["first as JSON", "first streamed"])
async def test_replay_has_every_field_of_the_first_answer(
    serve: Serve, environ: dict[str, str], tables: Tables, streamed: bool
) -> None:
    """Without the thought signature of a call, for example, Gemini rejects the next turn (tidyverse/ellmer#869,
    0xsline/OpenChatCut#6)."""
    choice = {"content_filter_results": FILTERED["content_filter_results"], "logprobs": LOGPROBS}
    opening = {"prompt_filter_results": FILTERED["prompt_filter_results"]}
    with RudeUpstream() as upstream:
        settings = {"AZURE_OPENAI_ENDPOINT": upstream.endpoint, "CLIENT_KEYS": line("ann", KEY)}
        async with serve(environ | settings) as api:
            if streamed:
                first_chunk = chunk(delta_of(MESSAGE))
                first_chunk["choices"][0] |= choice
                upstream.stream(chunk(**opening), first_chunk, end("tool_calls"), usage())
            else:
                completion = json.loads(whole(MESSAGE, "tool_calls", **opening))
                completion["choices"][0] |= choice
                upstream.raw(json.dumps(completion).encode(), media_type="application/json", framing="length")
            first = await complete(api, stream=streamed)
            assert first.status_code == 200, first.text

            as_json = await complete(api)
            as_stream = await complete(api, stream=True, stream_options={"include_usage": True})

        for replayed in (as_json, as_stream):
            assert replayed.headers["idempotent-replayed"] == "true"
        [replayed_choice] = ok_json(as_json)["choices"]
        assert replayed_choice == exact(
            json.dumps({"index": 0, "finish_reason": "tool_calls", "message": MESSAGE, **choice})
        )
        assert ok_json(as_json)["prompt_filter_results"] == FILTERED["prompt_filter_results"]
        replayed_chunk, usage_chunk = chunks(as_stream)
        assert replayed_chunk["choices"][0]["delta"] == exact(json.dumps({"content": None} | delta_of(MESSAGE)))
        assert usage_chunk["usage"] == ok_json(as_json)["usage"]
        assert len(upstream.requests) == 1
        await assert_conserved(tables, upstream)
