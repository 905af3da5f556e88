"""Turns over HTTP: answers, streaming, history, requests to the model, size limits and costs."""

import json
import re
from decimal import Decimal
from typing import Any

import h11
import httpx
import pytest

from shared.web.http import KEEP_ALIVE_S
from tests.conftest import Serve, Tables
from tests.support.azure_openai import AzureOpenAI
from tests.support.chat_client import (
    JSON,
    Event,
    answer,
    closed_ledger,
    events,
    exact,
    get_json,
    ok_json,
    send_message,
    streaming,
)
from tests.support.clock import ManualClock
from tests.support.conservation import assert_conserved
from tests.support.loopback import Loopback, Wire

SYSTEM = {"role": "system", "content": "You are a helpful assistant. Answer briefly and say so when you do not know."}
SAFE = {kind: {"filtered": False, "severity": "safe"} for kind in ("hate", "self_harm", "sexual", "violence")}
JAILBREAK = {"jailbreak": {"filtered": False, "detected": False}}
FAMILY = "👨‍👩‍👧‍👦 🏳️‍🌈 e\u0301 \U0001f642\U0001f643"


def user(content: object) -> dict[str, object]:
    return {"role": "user", "content": content}


def assistant(content: str) -> dict[str, object]:
    return {"role": "assistant", "content": content}


async def stream(api: httpx.AsyncClient, message: object = "hi", session: str = "s") -> list[Event]:
    response = await send_message(api, message, session, stream=True)
    assert response.status_code == 200, response.text
    return events(response.content)


def text(received: list[Event]) -> str:
    return "".join(event.data.get("content", "") for event in received if event.name == "delta")


# Answers


async def test_answer_contains_message_usage_cost_session_totals_and_filter_results(
    api: httpx.AsyncClient, fake: AzureOpenAI
) -> None:
    fake.reply("Lisbon.", prompt_tokens=812, cached_tokens=640, completion_tokens=90, reasoning_tokens=4)

    assert await answer(api, "Where?", "trip") == {
        "session_id": "trip",
        "turn": 1,
        "message": {"role": "assistant", "content": "Lisbon."},
        "finish_reason": "stop",
        "deployment": "chat",
        "model": "gpt-5.4-mini-2026-03-17",
        "usage": {
            "prompt_tokens": 812,
            "cached_tokens": 640,
            "cache_write_tokens": 0,
            "completion_tokens": 90,
            "reasoning_tokens": 4,
            "total_tokens": 902,
        },
        "cost_usd": Decimal("0.000582"),
        "session": {
            "turns": 1,
            "total_tokens": 902,
            "cost_usd": Decimal("0.000582"),
            "unpriced_turns": 0,
            "unaccounted_calls": 0,
            "unaccounted_usd": 0,
            "stopped_calls": 0,
            "stopped_at_least_usd": 0,
            "stopped_at_most_usd": 0,
        },
        "content_filter": {
            "prompt": [{"prompt_index": 0, "content_filter_results": SAFE | JAILBREAK}],
            "completion": SAFE,
        },
    }


async def test_request_without_session_id_gets_a_random_one(api: httpx.AsyncClient) -> None:
    first, other = await answer(api, "hi", None), await answer(api, "hi", None)

    assert re.fullmatch("[0-9a-f]{32}", first["session_id"])
    assert other["session_id"] != first["session_id"]
    assert (await answer(api, "again", first["session_id"]))["turn"] == 2


async def test_answer_cut_at_max_tokens_has_finish_reason_length(api: httpx.AsyncClient, fake: AzureOpenAI) -> None:
    fake.reply("one two six ten")

    cut = await answer(api, max_tokens=3)

    assert (cut["message"]["content"], cut["finish_reason"]) == ("one two six", "length")
    assert cut["usage"]["completion_tokens"] == 3


async def test_logprobs_are_returned_and_not_sent_back_to_the_model(api: httpx.AsyncClient, fake: AzureOpenAI) -> None:
    fake.reply("ja nein")

    turn = await answer(api, logprobs=True, top_logprobs=1)

    tokens = turn["logprobs"]["content"]
    assert [token["token"] for token in tokens] == ["ja", " nein"]
    assert [len(token["top_logprobs"]) for token in tokens] == [1, 1]
    assert tokens[0]["logprob"] == Decimal("-0.25")
    await answer(api, "more")
    assert fake.requests[1].body["messages"][2] == assistant("ja nein")


# Streaming


async def test_stream_begins_with_start_and_ends_with_the_whole_answer(
    api: httpx.AsyncClient, fake: AzureOpenAI
) -> None:
    fake.reply("Guten Tag, Welt!")
    fake.reply("Guten Tag, Welt!")

    response = await send_message(api, stream=True)
    received = events(response.content)

    assert response.headers["content-type"].startswith("text/event-stream")
    assert response.headers["cache-control"] == "no-store"
    assert received[0] == Event("start", {"session_id": "s", "turn": 1, "deployment": "chat"})
    assert [event.name for event in received[1:]] == ["delta"] * 6 + ["done"]
    assert text(received) == "Guten Tag, Welt!"
    done = received[-1].data
    assert done == await answer(api, session="other") | {"session_id": "s"}


@pytest.mark.parametrize("accept", ["text/event-stream", "application/json;q=0.5, text/event-stream"])
async def test_accept_header_requests_a_stream(api: httpx.AsyncClient, accept: str) -> None:
    response = await api.post("/api/chat", json={"message": "hi", "session_id": "s"}, headers={"accept": accept})

    assert [event.name for event in events(response.content)][::3] == ["start", "delta"]
    assert events(response.content)[-1].name == "done"


async def test_stream_delivers_deltas_before_the_model_finishes(api: httpx.AsyncClient, fake: AzureOpenAI) -> None:
    fake.reply("one two three")

    with fake.hold(after=1) as hold:
        async with streaming(api) as response:
            assert (await response.next()).name == "start"
            assert await response.next() == Event("delta", {"content": "one"})
            assert not hold.open
            hold.release()
            assert text(await response.rest()) == " two three"


async def test_idle_stream_sends_keep_alive_comments(
    clock: ManualClock, api: httpx.AsyncClient, fake: AzureOpenAI
) -> None:
    fake.reply("at last")

    with fake.hold(after=0) as hold:
        async with streaming(api) as response:
            assert (await response.next()).name == "start"
            await fake.until(lambda: fake.requests)
            for _ in range(3):
                await clock.until_timeout_started(KEEP_ALIVE_S)
                await clock.advance(KEEP_ALIVE_S)
                assert await response.next() == Event("", "still working")
            hold.release()
            assert text(await response.rest()) == "at last"


@pytest.mark.parametrize("streamed", [True, False])
async def test_multi_unit_characters_survive_chunks_of_one_token(
    api: httpx.AsyncClient, fake: AzureOpenAI, streamed: bool
) -> None:
    fake.reply(FAMILY)

    if streamed:
        received = await stream(api)
        assert text(received) == FAMILY
        turn = received[-1].data
    else:
        turn = await answer(api)

    assert turn["message"]["content"] == FAMILY
    await answer(api, FAMILY)
    assert fake.requests[1].body["messages"][2:] == [assistant(FAMILY), user(FAMILY)]


@pytest.mark.parametrize("separator", ["\u2028", "\u2029", "\x85", "\x1c", "\x0b", "\r\n", "\\n", "\x00"])
async def test_stream_preserves_line_separators_inside_an_answer(
    api: httpx.AsyncClient, fake: AzureOpenAI, separator: str
) -> None:
    fake.chunk_tokens = 5
    fake.reply(f"above{separator}below")

    received = await stream(api)

    assert text(received) == f"above{separator}below"
    assert received[-1].data["message"]["content"] == f"above{separator}below"


class ByteByByte(Loopback):
    """A model service that sends its answer byte by byte, so that every character is split."""

    def __init__(self, *, ends: bool = True) -> None:
        super().__init__()
        self._ends = ends

    async def converse(self, wire: Wire) -> None:
        await wire.message()
        chunks = [
            '{"model":"m","choices":[{"index":0,"delta":{"role":"assistant","content":"né 🙂"}}]}',
            '{"model":"m","choices":[{"index":0,"delta":{"content":"日本"},"finish_reason":"stop"}]}',
            '{"model":"m","choices":[],"usage":{"prompt_tokens":7,"completion_tokens":5,"total_tokens":12}}',
            "[DONE]",
        ]
        await wire.send(h11.Response(status_code=200, headers=[("content-type", "text/event-stream")]))
        for byte in "".join(f"data: {chunk}\n\n" for chunk in chunks).encode():
            await wire.send(h11.Data(data=bytes([byte])))
        if self._ends:
            await wire.send(h11.EndOfMessage())


@pytest.mark.parametrize("ends", [True, False])
async def test_upstream_stream_may_be_split_at_any_byte(serve: Serve, environ: dict[str, str], ends: bool) -> None:
    with ByteByByte(ends=ends) as model:
        async with serve(environ | {"AZURE_OPENAI_ENDPOINT": f"http://127.0.0.1:{model.port}"}) as api:
            turn = await answer(api)

    assert turn["message"] == assistant("né 🙂日本")
    assert turn["usage"]["total_tokens"] == 12


async def test_connection_to_the_model_is_reused_across_turns(
    fake: AzureOpenAI, api: httpx.AsyncClient, monkeypatch: pytest.MonkeyPatch
) -> None:
    wires: set[Wire] = set()
    converse = fake.converse

    async def recorded(wire: Wire) -> None:
        wires.add(wire)
        await converse(wire)

    monkeypatch.setattr(fake, "converse", recorded)
    for _ in range(3):
        await answer(api)

    assert len(wires) == 1


# History in the prompt


async def test_second_turn_sends_the_first_turn_to_the_model(api: httpx.AsyncClient, fake: AzureOpenAI) -> None:
    await answer(api, "My name is Ada.")
    await answer(api, "What is my name?")

    first = [SYSTEM, user("My name is Ada.")]
    assert fake.requests[0].body["messages"] == first
    assert fake.requests[1].body["messages"] == [
        *first,
        assistant("echo: My name is Ada."),
        user("What is my name?"),
    ]


async def test_sessions_are_isolated_from_each_other(api: httpx.AsyncClient, fake: AzureOpenAI) -> None:
    await answer(api, "a secret", "one")
    assert (await answer(api, "hi", "two"))["turn"] == 1

    assert fake.requests[1].body["messages"] == [SYSTEM, user("hi")]


async def test_system_prompt_of_the_first_turn_applies_to_the_whole_session(
    api: httpx.AsyncClient, fake: AzureOpenAI
) -> None:
    await answer(api, "Hello", system="Speak French.")
    await answer(api, "again", system="Speak French.")
    await answer(api, "and again")

    prompts = [request.body["messages"][0] for request in fake.requests]
    assert prompts == [{"role": "system", "content": "Speak French."}] * 3
    assert (await get_json(api, "/api/sessions/s"))["system"] == "Speak French."


async def test_later_turn_cannot_change_the_system_prompt(api: httpx.AsyncClient, fake: AzureOpenAI) -> None:
    await answer(api, system="Speak French.")

    refused = await send_message(api, system="Speak Dutch.")

    assert (refused.status_code, refused.json()["error"]["param"]) == (400, "system")
    assert len(fake.requests) == 1
    assert (await answer(api))["turn"] == 2


# Requests to the model


async def test_model_request_always_streams_and_includes_usage(
    api: httpx.AsyncClient, fake: AzureOpenAI, tables: Tables
) -> None:
    await answer(api)

    [request], [entry] = fake.requests, await closed_ledger(tables)
    assert request.body == {
        "model": "chat",
        "messages": [SYSTEM, user("hi")],
        "stream": True,
        "stream_options": {"include_usage": True},
        "max_completion_tokens": 800,
    }
    assert request.call_id == entry.call.id


OPTIONS: dict[str, Any] = {
    "temperature": 0.25,
    "top_p": 0.5,
    "stop": ["END", "\n"],
    "seed": 2**53 + 1,
    "response_format": {
        "type": "json_schema",
        "json_schema": {
            "name": "n",
            "strict": True,
            "schema": {"type": "object", "properties": {"ok": {"type": "boolean"}}},
        },
    },
    "tools": [{"type": "function", "function": {"name": "weather", "parameters": {"type": "object"}}}],
    "tool_choice": {"type": "function", "function": {"name": "weather"}},
    "logprobs": True,
    "top_logprobs": 2,
    "reasoning_effort": "none",
}


@pytest.mark.parametrize("names", [("tools", "tool_choice"), ("logprobs", "top_logprobs"), *((n,) for n in OPTIONS)])
async def test_options_are_sent_to_the_model_unchanged_and_for_one_turn_only(
    api: httpx.AsyncClient, fake: AzureOpenAI, names: tuple[str, ...]
) -> None:
    options = {name: OPTIONS[name] for name in names}

    await answer(api, **options)
    await answer(api, "more")

    usual = {"model", "messages", "stream", "stream_options", "max_completion_tokens"}
    first, second = ({k: v for k, v in request.body.items() if k not in usual} for request in fake.requests)
    assert first == options
    assert second == {}


async def test_max_tokens_applies_to_one_turn_only(api: httpx.AsyncClient, fake: AzureOpenAI) -> None:
    await answer(api, max_tokens=8_000)
    await answer(api)

    assert [request.body["max_completion_tokens"] for request in fake.requests] == [8_000, 800]


async def test_max_tokens_above_half_of_the_context_returns_400(
    api: httpx.AsyncClient, fake: AzureOpenAI, tables: Tables
) -> None:
    refused = await send_message(api, max_tokens=8_001)

    assert (refused.status_code, refused.json()["error"]["param"]) == (400, "max_tokens")
    assert "8000" in refused.json()["error"]["message"]
    assert not fake.requests
    assert not await closed_ledger(tables)
    assert (await api.get("/api/sessions/s")).status_code == 404


async def test_turn_can_select_a_configured_deployment(
    serve: Serve, environ: dict[str, str], fake: AzureOpenAI
) -> None:
    fake.deployments = {"chat": "gpt-5.4-mini-2026-03-17", "big": "gpt-5.4-2026-03-05"}
    prices = '{"chat": {"input": 1, "output": 1}, "big": {"input": 10, "output": 10}}'
    offered = "chat=gpt-5.4-mini@2026-03-17, big=gpt-5.4@2026-03-05"

    async with serve(environ | {"AZURE_OPENAI_DEPLOYMENTS": offered, "PRICES": prices}) as api:
        turns = [await answer(api), await answer(api, deployment="big"), await answer(api)]
        other_session = [await answer(api, session="t", deployment="big"), await answer(api, session="t")]
        refused = await send_message(api, deployment="huge")

    assert [turn["deployment"] for turn in turns] == ["chat", "big", "chat"]
    assert [turn["model"] for turn in turns[:2]] == ["gpt-5.4-mini-2026-03-17", "gpt-5.4-2026-03-05"]
    assert [turn["cost_usd"] * 1_000_000 / turn["usage"]["total_tokens"] for turn in turns] == [1, 10, 1]
    assert [turn["deployment"] for turn in other_session] == ["big", "big"]
    assert (refused.status_code, refused.json()["error"]["param"]) == (400, "deployment")
    assert "big, chat" in refused.json()["error"]["message"]
    assert len(fake.requests) == 5


async def test_images_are_stored_and_replayed_unchanged(api: httpx.AsyncClient, fake: AzureOpenAI) -> None:
    parts = [
        {"type": "text", "text": "What is this?"},
        {"type": "image_url", "image_url": {"url": "data:image/png;base64,iVBORw0KGgo=", "detail": "low"}},
        {"type": "image_url", "image_url": {"url": "https://example.com/cat.png?a=1&b=2"}},
    ]

    await answer(api, parts)
    await answer(api, "And the colour?")

    assert fake.requests[0].body["messages"][1] == user(parts)
    assert fake.requests[1].body["messages"][1] == user(parts)
    history = await get_json(api, "/api/sessions/s/messages")
    assert history["turns"][1]["messages"][0] == user(parts)


# Size


LARGE = {  # message and answer
    "ascii": ("lorem ipsum " * 16_667, "dolor sit amet " * 13_334),
    "emoji": ("🙂" * 50_000, "🙃" * 25_000),
    "one unit off": ("x" + "🙂" * 50_000, "x" + "🙃" * 25_000),
    "everything": ('aé日🙂\u0000\u2028"\\' * 11_000, '\\"\u2028\u0001🙂日éa' * 5_500),
}


@pytest.mark.filterwarnings("ignore:Sending a large body directly:ResourceWarning")  # aiohttp's, above 1 MiB
@pytest.mark.parametrize("kind", LARGE)
async def test_long_messages_and_answers_are_stored_and_replayed_byte_for_byte(
    serve: Serve, environ: dict[str, str], fake: AzureOpenAI, tables: Tables, kind: str
) -> None:
    (sent, back), fake.chunk_tokens = LARGE[kind], 2_000
    async with serve(environ | {"CONTEXT_TOKENS": "1000000"}) as api:
        fake.reply(back, prompt_tokens=60_000)
        turn = await answer(api, sent, max_tokens=60_000)
        await answer(api, "more")
        history = await get_json(api, "/api/sessions/s/messages")

    assert len(json.dumps(sent, ensure_ascii=False).encode()) >= 200_000
    assert (turn["message"], turn["finish_reason"]) == (assistant(back), "stop")
    assert fake.requests[0].body["messages"][1:] == [user(sent)]
    assert fake.requests[1].body["messages"][1:3] == [user(sent), assistant(back)]
    assert history["turns"][1]["messages"] == [user(sent), assistant(back)]


async def test_answer_too_large_for_a_row_is_given_whole_stored_truncated_and_charged(
    serve: Serve, environ: dict[str, str], fake: AzureOpenAI, tables: Tables
) -> None:
    back, fake.chunk_tokens = " abcd" * 60_000, 2_000
    request = {"session_id": "s", "message": "x" * 250_000, "max_tokens": 60_000}
    key = {"idempotency-key": "k"}
    async with serve(environ | {"CONTEXT_TOKENS": "1000000"}) as api:
        fake.reply(back)
        turn = ok_json(await api.post("/api/chat", json=request, headers=key))
        again = ok_json(await api.post("/api/chat", json=request, headers=key))
        history = await get_json(api, "/api/sessions/s/messages")

    assert turn["message"]["content"] == back
    assert turn["truncated"] == again["truncated"] == ["content"]
    content = again["message"]["content"]
    assert content == back[: len(content)]
    assert 100_000 < len(content) < len(back)
    assert history["turns"][0]["messages"] == [user("x" * 250_000), assistant(content)]
    await assert_conserved(tables, fake)


@pytest.mark.parametrize("streamed", [False, True])
async def test_logprobs_too_large_for_a_row_are_given_but_not_stored(
    api: httpx.AsyncClient, fake: AzureOpenAI, tables: Tables, streamed: bool
) -> None:
    back, fake.chunk_tokens = "abcd " * 1_000, 100
    fake.reply(back)
    request = {"session_id": "s", "message": "hi", "logprobs": True, "top_logprobs": 20, "max_tokens": 8_000}

    async def chat() -> JSON:
        body = request | {"stream": streamed}
        response = await api.post("/api/chat", json=body, headers={"idempotency-key": "k"})
        return events(response.content)[-1].data if streamed else ok_json(response)

    turn, again = await chat(), await chat()

    assert turn["message"] == assistant(back)
    assert turn["truncated"] == ["logprobs"]
    assert "".join(token["token"] for token in turn["logprobs"]["content"]) == back
    assert "content_filter" in turn
    assert again == {name: value for name, value in turn.items() if name != "logprobs"}
    assert len(fake.requests) == 1
    await assert_conserved(tables, fake)


async def test_message_larger_than_the_context_is_sent_without_history(
    api: httpx.AsyncClient, fake: AzureOpenAI
) -> None:
    await answer(api, "before")
    await answer(api, "x" * 100_000)

    assert fake.requests[1].body["messages"] == [SYSTEM, user("x" * 100_000)]


async def test_turn_too_large_for_a_row_returns_413_before_the_model_is_called(
    serve: Serve, environ: dict[str, str], fake: AzureOpenAI
) -> None:
    async with serve(environ | {"CONTEXT_TOKENS": "1000000"}) as api:
        refused = await send_message(api, "x" * 250_000, max_tokens=100_000)
        assert (refused.status_code, refused.json()["error"]["code"]) == (413, "message_too_large")
        assert not fake.requests
        assert (await answer(api))["turn"] == 1


# Cost


async def test_cost_is_written_without_exponent(api: httpx.AsyncClient, fake: AzureOpenAI) -> None:
    fake.reply("x", prompt_tokens=1, completion_tokens=1)

    raw = (await send_message(api)).text

    assert len(re.findall(r'"cost_usd":0\.000005250*[,}]', raw)) == 2  # the turn's and the session's
    assert exact(raw)["cost_usd"] == Decimal("0.00000525")


async def test_each_kind_of_token_is_charged_once_at_its_rate(
    api: httpx.AsyncClient, fake: AzureOpenAI, tables: Tables
) -> None:
    fake.reply(
        "x",
        prompt_tokens=10_000,
        cached_tokens=6_400,
        cache_write_tokens=1_600,
        completion_tokens=333,
        reasoning_tokens=300,
    )

    turn = await answer(api)

    expected = 2_000 * Decimal("0.75") + 6_400 * Decimal("0.075") + 1_600 * Decimal("0.9") + 333 * Decimal("4.5")
    assert turn["cost_usd"] == expected / 1_000_000
    assert turn["usage"] == {
        "prompt_tokens": 10_000,
        "cached_tokens": 6_400,
        "cache_write_tokens": 1_600,
        "completion_tokens": 333,
        "reasoning_tokens": 300,
        "total_tokens": 10_333,
    }
    assert (await get_json(api, "/api/sessions/s"))["usage"] == turn["usage"]
    await assert_conserved(tables, fake)


async def test_session_totals_equal_the_exact_sum_of_its_turns(
    api: httpx.AsyncClient, fake: AzureOpenAI, tables: Tables
) -> None:
    for index in range(7):
        fake.reply("x", prompt_tokens=101 + index, cached_tokens=13 * index, completion_tokens=7 * index + 1)

    turns = [await answer(api, f"turn {index}") for index in range(7)]

    session = await get_json(api, "/api/sessions/s")
    assert session["cost_usd"] == sum(turn["cost_usd"] for turn in turns) == turns[-1]["session"]["cost_usd"]
    assert session["total_tokens"] == sum(turn["usage"]["total_tokens"] for turn in turns)
    assert [turn["session"]["turns"] for turn in turns] == [1, 2, 3, 4, 5, 6, 7]
    await assert_conserved(tables, fake)


async def test_unknown_price_is_null_cost_and_counted_as_unpriced(
    serve: Serve, environ: dict[str, str], fake: AzureOpenAI, tables: Tables
) -> None:
    fake.model_name = "a-model-without-a-price"
    async with serve(environ | {"PRICES": "{}"}) as api:
        raw = [(await send_message(api)).text, (await send_message(api)).text]
        session = await get_json(api, "/api/sessions/s")

    turns = [exact(body) for body in raw]
    assert [turn["cost_usd"] for turn in turns] == [None, None]
    assert [turn["session"]["unpriced_turns"] for turn in turns] == [1, 2]
    assert (session["cost_usd"], session["unpriced_turns"]) == (0, 2)
    assert session["total_tokens"] == sum(turn["usage"]["total_tokens"] for turn in turns) > 0
    assert [(entry.call.cost, entry.call.worst_case) for entry in await closed_ledger(tables)] == [(None, None)] * 2


# Content filter and refusals


async def test_refusal_is_returned_and_replayed(api: httpx.AsyncClient, fake: AzureOpenAI) -> None:
    fake.reply(refusal="I will not.")
    fake.reply(refusal="I will not.")

    turn = await answer(api, "Do wrong.")
    received = await stream(api, "Do wrong.", session="t")

    assert turn["message"] == {"role": "assistant", "content": None, "refusal": "I will not."}
    assert "".join(event.data["refusal"] for event in received if event.name == "delta") == "I will not."
    await answer(api, "Why not?")
    assert fake.requests[2].body["messages"][2] == {"role": "assistant", "content": "", "refusal": "I will not."}


async def test_answer_cut_by_content_filter_is_returned_charged_and_not_replayed(
    api: httpx.AsyncClient, fake: AzureOpenAI, tables: Tables
) -> None:
    await answer(api, "before")
    fake.fault("completion_filter", after=2)

    turn = await answer(api, "something violent")

    assert turn["finish_reason"] == "content_filter"
    assert turn["message"]["content"] == "echo:"
    assert turn["content_filter"]["completion"]["violence"] == {"filtered": True, "severity": "high"}
    assert turn["cost_usd"] > 0
    await answer(api, "after")
    assert fake.requests[2].body["messages"] == [SYSTEM, user("before"), assistant("echo: before"), user("after")]
    history = await get_json(api, "/api/sessions/s/messages")
    assert [turn["finish_reason"] for turn in history["turns"]] == ["stop", "content_filter", "stop"]
    await assert_conserved(tables, fake)


async def test_prompt_blocked_by_content_filter_is_unaccounted(
    api: httpx.AsyncClient, fake: AzureOpenAI, tables: Tables
) -> None:
    await answer(api, "before")
    fake.fault("content_filter")

    refused = await send_message(api, "something violent")

    assert refused.status_code == 400
    assert refused.json()["error"]["code"] == "content_filter"
    session = await get_json(api, "/api/sessions/s")
    [_, entry] = await closed_ledger(tables)
    assert (entry.call.state, entry.call.reason) == ("unaccounted", "content_filter")
    assert (session["unaccounted_calls"], session["unaccounted_usd"]) == (1, entry.call.worst_case)
    assert session["unaccounted_usd"] > 0
    await answer(api, "after")
    assert fake.requests[2].body["messages"] == [SYSTEM, user("before"), assistant("echo: before"), user("after")]
    assert len(fake.requests) == 3
    await assert_conserved(tables, fake)


async def test_unaccounted_usd_is_null_without_a_price(
    serve: Serve, environ: dict[str, str], fake: AzureOpenAI
) -> None:
    async with serve(environ | {"PRICES": ""}) as api:
        fake.fault("content_filter")
        await send_message(api, "something violent")
        session = await get_json(api, "/api/sessions/s")
        assert (session["unaccounted_calls"], session["unaccounted_usd"]) == (1, None)
        assert (await answer(api, "after"))["session"]["unaccounted_usd"] is None


@pytest.mark.parametrize("content", ["text/plain", "application/x-www-form-urlencoded", None])
async def test_content_type_other_than_json_returns_415(
    api: httpx.AsyncClient, fake: AzureOpenAI, content: str | None
) -> None:
    headers = {} if content is None else {"content-type": content}

    refused = await api.post("/api/chat", content=b'{"message": "hi"}', headers=headers)

    assert (refused.status_code, refused.json()["error"]["code"]) == (415, "unsupported_media_type")
    assert not fake.requests


async def test_content_type_may_have_other_case_and_a_charset(api: httpx.AsyncClient) -> None:
    sent = await api.post(
        "/api/chat", content=b'{"message": "hi"}', headers={"content-type": "Application/JSON; charset=utf-8"}
    )

    assert ok_json(sent)["message"] == assistant("echo: hi")


async def test_about_returns_deployments_and_region(serve: Serve, environ: dict[str, str]) -> None:
    several = {"AZURE_OPENAI_DEPLOYMENTS": "chat=gpt-5.4-mini, another=gpt-4.1", "REGION_NAME": "East US"}
    async with serve(environ | several) as api:
        about = await get_json(api, "/api/about")

    assert about == {
        "deployment": "chat",
        "deployments": ["another", "chat"],
        "embedding_deployments": [],
        "region": "East US",
    }
