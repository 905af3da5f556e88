"""One turn of a conversation over HTTP: what is answered, streamed, remembered, sent to the model and charged."""

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
from tests.support.clock import ManualClock
from tests.support.conservation import assert_conserved
from tests.support.loopback import Loopback, Wire
from tests.support.talking import (
    Event,
    answer,
    answered,
    closed_ledger,
    events,
    exact,
    look,
    say,
    streaming,
)

SYSTEM = {"role": "system", "content": "You are a helpful assistant. Answer briefly and say so when you do not know."}
SAFE = {kind: {"filtered": False, "severity": "safe"} for kind in ("hate", "self_harm", "sexual", "violence")}
JAILBREAK = {"jailbreak": {"filtered": False, "detected": False}}
FAMILY = "👨‍👩‍👧‍👦 🏳️‍🌈 e\u0301 \U0001f642\U0001f643"


def user(content: object) -> dict[str, object]:
    return {"role": "user", "content": content}


def assistant(content: str) -> dict[str, object]:
    return {"role": "assistant", "content": content}


async def stream(api: httpx.AsyncClient, message: object = "hi", session: str = "s") -> list[Event]:
    response = await say(api, message, session, stream=True)
    assert response.status_code == 200, response.text
    return events(response.content)


def text(spoken: list[Event]) -> str:
    return "".join(event.data.get("content", "") for event in spoken if event.name == "delta")


# What is answered


async def test_an_answer_tells_all_about_its_turn(api: httpx.AsyncClient, fake: AzureOpenAI) -> None:
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
        },
        "content_filter": {
            "prompt": [{"prompt_index": 0, "content_filter_results": SAFE | JAILBREAK}],
            "completion": SAFE,
        },
    }


async def test_a_post_without_a_session_id_is_given_one_that_nobody_guesses(api: httpx.AsyncClient) -> None:
    first, other = await answer(api, "hi", None), await answer(api, "hi", None)

    assert re.fullmatch("[0-9a-f]{32}", first["session_id"])
    assert other["session_id"] != first["session_id"]
    assert (await answer(api, "again", first["session_id"]))["turn"] == 2


async def test_an_answer_that_met_its_maximum_says_so(api: httpx.AsyncClient, fake: AzureOpenAI) -> None:
    fake.reply("one two six ten")

    cut = await answer(api, max_tokens=3)

    assert (cut["message"]["content"], cut["finish_reason"]) == ("one two six", "length")
    assert cut["usage"]["completion_tokens"] == 3


async def test_logprobs_come_along_and_are_not_sent_back(api: httpx.AsyncClient, fake: AzureOpenAI) -> None:
    fake.reply("ja nein")

    told = await answer(api, logprobs=True, top_logprobs=1)

    tokens = told["logprobs"]["content"]
    assert [token["token"] for token in tokens] == ["ja", " nein"]
    assert [len(token["top_logprobs"]) for token in tokens] == [1, 1]
    assert tokens[0]["logprob"] == Decimal("-0.25")
    await answer(api, "more")
    assert fake.requests[1].body["messages"][2] == assistant("ja nein")


# Streaming


async def test_a_stream_begins_with_start_and_ends_with_the_whole_answer(
    api: httpx.AsyncClient, fake: AzureOpenAI
) -> None:
    fake.reply("Guten Tag, Welt!")
    fake.reply("Guten Tag, Welt!")

    response = await say(api, stream=True)
    spoken = events(response.content)

    assert response.headers["content-type"].startswith("text/event-stream")
    assert response.headers["cache-control"] == "no-store"
    assert spoken[0] == Event("start", {"session_id": "s", "turn": 1, "deployment": "chat"})
    assert [event.name for event in spoken[1:]] == ["delta"] * 6 + ["done"]
    assert text(spoken) == "Guten Tag, Welt!"
    done = spoken[-1].data
    assert done == await answer(api, session="other") | {"session_id": "s"}


@pytest.mark.parametrize("accept", ["text/event-stream", "application/json;q=0.5, text/event-stream"])
async def test_an_accept_header_asks_for_a_stream_too(api: httpx.AsyncClient, accept: str) -> None:
    response = await api.post("/api/chat", json={"message": "hi", "session_id": "s"}, headers={"accept": accept})

    assert [event.name for event in events(response.content)][::3] == ["start", "delta"]
    assert events(response.content)[-1].name == "done"


async def test_words_are_passed_on_while_the_model_still_speaks(api: httpx.AsyncClient, fake: AzureOpenAI) -> None:
    fake.reply("one two three")

    with fake.hold(after=1) as hold:
        async with streaming(api) as answering:
            assert (await answering.next()).name == "start"
            assert await answering.next() == Event("delta", {"content": "one"})
            assert not hold.open
            hold.release()
            assert text(await answering.rest()) == " two three"


async def test_a_stream_that_has_nothing_to_say_is_kept_open_by_comments(
    clock: ManualClock, api: httpx.AsyncClient, fake: AzureOpenAI
) -> None:
    fake.reply("at last")

    with fake.hold(after=0) as hold:
        async with streaming(api) as answering:
            assert (await answering.next()).name == "start"
            await fake.until(lambda: fake.requests)
            for _ in range(3):
                await clock.until_limiting(KEEP_ALIVE_S)
                await clock.advance(KEEP_ALIVE_S)
                assert await answering.next() == Event("", "still working")
            hold.release()
            assert text(await answering.rest()) == "at last"


@pytest.mark.parametrize("streamed", [True, False])
async def test_characters_of_several_units_survive_chunks_of_one_token(
    api: httpx.AsyncClient, fake: AzureOpenAI, streamed: bool
) -> None:
    fake.reply(FAMILY)

    if streamed:
        spoken = await stream(api)
        assert text(spoken) == FAMILY
        said = spoken[-1].data
    else:
        said = await answer(api)

    assert said["message"]["content"] == FAMILY
    await answer(api, FAMILY)
    assert fake.requests[1].body["messages"][2:] == [assistant(FAMILY), user(FAMILY)]


@pytest.mark.parametrize("separator", ["\u2028", "\u2029", "\x85", "\x1c", "\x0b", "\r\n", "\\n", "\x00"])
async def test_line_separators_inside_an_answer_do_not_break_it(
    api: httpx.AsyncClient, fake: AzureOpenAI, separator: str
) -> None:
    fake.chunk_tokens = 5
    fake.reply(f"above{separator}below")

    spoken = await stream(api)

    assert text(spoken) == f"above{separator}below"
    assert spoken[-1].data["message"]["content"] == f"above{separator}below"


class Dribble(Loopback):
    """A model whose answer comes one byte at a time, so that every character is cut somewhere."""

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
async def test_an_answer_may_be_cut_anywhere_on_its_way(serve: Serve, environ: dict[str, str], ends: bool) -> None:
    with Dribble(ends=ends) as model:
        async with serve(environ | {"AZURE_OPENAI_ENDPOINT": f"http://127.0.0.1:{model.port}"}) as api:
            said = await answer(api)

    assert said["message"] == assistant("né 🙂日本")
    assert said["usage"]["total_tokens"] == 12


async def test_one_connection_to_the_model_serves_turn_after_turn(
    fake: AzureOpenAI, api: httpx.AsyncClient, monkeypatch: pytest.MonkeyPatch
) -> None:
    wires: set[Wire] = set()
    converse = fake.converse

    async def noticed(wire: Wire) -> None:
        wires.add(wire)
        await converse(wire)

    monkeypatch.setattr(fake, "converse", noticed)
    for _ in range(3):
        await answer(api)

    assert len(wires) == 1


# Memory


async def test_the_second_turn_sends_the_first_to_the_model(api: httpx.AsyncClient, fake: AzureOpenAI) -> None:
    await answer(api, "My name is Ada.")
    await answer(api, "What is my name?")

    first = [SYSTEM, user("My name is Ada.")]
    assert fake.requests[0].body["messages"] == first
    assert fake.requests[1].body["messages"] == [
        *first,
        assistant("echo: My name is Ada."),
        user("What is my name?"),
    ]


async def test_sessions_do_not_see_each_other(api: httpx.AsyncClient, fake: AzureOpenAI) -> None:
    await answer(api, "a secret", "one")
    assert (await answer(api, "hi", "two"))["turn"] == 1

    assert fake.requests[1].body["messages"] == [SYSTEM, user("hi")]


async def test_the_first_turn_sets_the_system_prompt_for_all(api: httpx.AsyncClient, fake: AzureOpenAI) -> None:
    await answer(api, "Hello", system="Speak French.")
    await answer(api, "again", system="Speak French.")
    await answer(api, "and again")

    prompts = [request.body["messages"][0] for request in fake.requests]
    assert prompts == [{"role": "system", "content": "Speak French."}] * 3
    assert (await look(api, "/api/sessions/s"))["system"] == "Speak French."


async def test_a_later_turn_cannot_change_the_system_prompt(api: httpx.AsyncClient, fake: AzureOpenAI) -> None:
    await answer(api, system="Speak French.")

    refused = await say(api, system="Speak Dutch.")

    assert (refused.status_code, refused.json()["error"]["param"]) == (400, "system")
    assert len(fake.requests) == 1
    assert (await answer(api))["turn"] == 2


# What the model is asked


async def test_the_model_is_asked_for_a_stream_whatever_the_caller_wants(
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
async def test_options_go_to_the_model_as_given_for_one_turn(
    api: httpx.AsyncClient, fake: AzureOpenAI, names: tuple[str, ...]
) -> None:
    given = {name: OPTIONS[name] for name in names}

    await answer(api, **given)
    await answer(api, "more")

    usual = {"model", "messages", "stream", "stream_options", "max_completion_tokens"}
    first, second = ({k: v for k, v in request.body.items() if k not in usual} for request in fake.requests)
    assert first == given
    assert second == {}


async def test_max_tokens_is_the_turns_own(api: httpx.AsyncClient, fake: AzureOpenAI) -> None:
    await answer(api, max_tokens=8_000)
    await answer(api)

    assert [request.body["max_completion_tokens"] for request in fake.requests] == [8_000, 800]


async def test_a_turn_may_ask_for_half_of_the_context_at_most(
    api: httpx.AsyncClient, fake: AzureOpenAI, tables: Tables
) -> None:
    refused = await say(api, max_tokens=8_001)

    assert (refused.status_code, refused.json()["error"]["param"]) == (400, "max_tokens")
    assert "8000" in refused.json()["error"]["message"]
    assert not fake.requests
    assert not await closed_ledger(tables)
    assert (await api.get("/api/sessions/s")).status_code == 404


async def test_a_turn_may_choose_a_deployment_that_the_app_offers(
    serve: Serve, environ: dict[str, str], fake: AzureOpenAI
) -> None:
    fake.deployments = {"chat": "gpt-5.4-mini-2026-03-17", "big": "gpt-5.4-2026-03-05"}
    prices = '{"chat": {"input": 1, "output": 1}, "big": {"input": 10, "output": 10}}'
    offered = "chat=gpt-5.4-mini@2026-03-17, big=gpt-5.4@2026-03-05"

    async with serve(environ | {"AZURE_OPENAI_DEPLOYMENTS": offered, "PRICES": prices}) as api:
        told = [await answer(api), await answer(api, deployment="big"), await answer(api)]
        begun = [await answer(api, session="t", deployment="big"), await answer(api, session="t")]
        refused = await say(api, deployment="huge")

    assert [turn["deployment"] for turn in told] == ["chat", "big", "chat"]
    assert [turn["model"] for turn in told[:2]] == ["gpt-5.4-mini-2026-03-17", "gpt-5.4-2026-03-05"]
    assert [turn["cost_usd"] * 1_000_000 / turn["usage"]["total_tokens"] for turn in told] == [1, 10, 1]
    assert [turn["deployment"] for turn in begun] == ["big", "big"]
    assert (refused.status_code, refused.json()["error"]["param"]) == (400, "deployment")
    assert "big, chat" in refused.json()["error"]["message"]
    assert len(fake.requests) == 5


async def test_images_are_kept_and_sent_again_as_they_came(api: httpx.AsyncClient, fake: AzureOpenAI) -> None:
    parts = [
        {"type": "text", "text": "What is this?"},
        {"type": "image_url", "image_url": {"url": "data:image/png;base64,iVBORw0KGgo=", "detail": "low"}},
        {"type": "image_url", "image_url": {"url": "https://example.com/cat.png?a=1&b=2"}},
    ]

    await answer(api, parts)
    await answer(api, "And the colour?")

    assert fake.requests[0].body["messages"][1] == user(parts)
    assert fake.requests[1].body["messages"][1] == user(parts)
    history = await look(api, "/api/sessions/s/messages")
    assert history["turns"][1]["messages"][0] == user(parts)


# Size


LARGE = {  # what is said, and what is answered
    "ascii": ("lorem ipsum " * 16_667, "dolor sit amet " * 13_334),
    "emoji": ("🙂" * 50_000, "🙃" * 25_000),
    "one unit off": ("x" + "🙂" * 50_000, "x" + "🙃" * 25_000),
    "everything": ('aé日🙂\u0000\u2028"\\' * 11_000, '\\"\u2028\u0001🙂日éa' * 5_500),
}


@pytest.mark.filterwarnings("ignore:Sending a large body directly:ResourceWarning")  # aiohttp's, above 1 MiB
@pytest.mark.parametrize("kind", LARGE)
async def test_long_messages_and_answers_return_byte_for_byte(
    serve: Serve, environ: dict[str, str], fake: AzureOpenAI, tables: Tables, kind: str
) -> None:
    (sent, back), fake.chunk_tokens = LARGE[kind], 2_000
    async with serve(environ | {"CONTEXT_TOKENS": "1000000"}) as api:
        fake.reply(back, prompt_tokens=60_000)
        said = await answer(api, sent, max_tokens=60_000)
        await answer(api, "more")
        history = await look(api, "/api/sessions/s/messages")

    assert len(json.dumps(sent, ensure_ascii=False).encode()) >= 200_000
    assert (said["message"], said["finish_reason"]) == (assistant(back), "stop")
    assert fake.requests[0].body["messages"][1:] == [user(sent)]
    assert fake.requests[1].body["messages"][1:3] == [user(sent), assistant(back)]
    assert history["turns"][1]["messages"] == [user(sent), assistant(back)]


async def test_an_answer_that_no_row_can_hold_is_cut_and_paid(
    serve: Serve, environ: dict[str, str], fake: AzureOpenAI, tables: Tables
) -> None:
    back, fake.chunk_tokens = "abcd " * 60_000, 2_000
    async with serve(environ | {"CONTEXT_TOKENS": "1000000"}) as api:
        fake.reply(back)
        said = await answer(api, "x" * 250_000, max_tokens=60_000)
        history = await look(api, "/api/sessions/s/messages")

    kept = said["message"]["content"]
    assert said["truncated"] is True
    assert kept == back[: len(kept)]
    assert 100_000 < len(kept) < len(back)
    assert history["turns"][0]["messages"] == [user("x" * 250_000), assistant(kept)]
    await assert_conserved(tables, fake)


async def test_logprobs_that_no_row_can_hold_are_left_out(
    api: httpx.AsyncClient, fake: AzureOpenAI, tables: Tables
) -> None:
    back, fake.chunk_tokens = "abcd " * 1_000, 100
    fake.reply(back)

    said = await answer(api, logprobs=True, top_logprobs=20, max_tokens=8_000)

    assert said["message"] == assistant(back)
    assert "logprobs" not in said
    assert "content_filter" in said
    await assert_conserved(tables, fake)


async def test_a_message_larger_than_the_context_goes_alone(api: httpx.AsyncClient, fake: AzureOpenAI) -> None:
    await answer(api, "before")
    await answer(api, "x" * 100_000)

    assert fake.requests[1].body["messages"] == [SYSTEM, user("x" * 100_000)]


async def test_a_turn_that_no_row_could_hold_is_refused_before_it_costs(
    serve: Serve, environ: dict[str, str], fake: AzureOpenAI
) -> None:
    async with serve(environ | {"CONTEXT_TOKENS": "1000000"}) as api:
        refused = await say(api, "x" * 250_000, max_tokens=100_000)
        assert (refused.status_code, refused.json()["error"]["code"]) == (413, "message_too_large")
        assert not fake.requests
        assert (await answer(api))["turn"] == 1


# Cost


async def test_a_cost_is_written_in_plain_digits(api: httpx.AsyncClient, fake: AzureOpenAI) -> None:
    fake.reply("x", prompt_tokens=1, completion_tokens=0)

    raw = (await say(api)).text

    assert len(re.findall(r'"cost_usd":0\.000000750*[,}]', raw)) == 2  # the turn's and the session's
    assert exact(raw)["cost_usd"] == Decimal("0.00000075")


async def test_every_kind_of_token_is_charged_once_at_its_rate(
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

    told = await answer(api)

    charged = 2_000 * Decimal("0.75") + 6_400 * Decimal("0.075") + 1_600 * Decimal("0.9") + 333 * Decimal("4.5")
    assert told["cost_usd"] == charged / 1_000_000
    assert told["usage"] == {
        "prompt_tokens": 10_000,
        "cached_tokens": 6_400,
        "cache_write_tokens": 1_600,
        "completion_tokens": 333,
        "reasoning_tokens": 300,
        "total_tokens": 10_333,
    }
    assert (await look(api, "/api/sessions/s"))["usage"] == told["usage"]
    await assert_conserved(tables, fake)


async def test_a_sessions_totals_are_its_turns_to_the_last_digit(
    api: httpx.AsyncClient, fake: AzureOpenAI, tables: Tables
) -> None:
    for index in range(7):
        fake.reply("x", prompt_tokens=101 + index, cached_tokens=13 * index, completion_tokens=7 * index + 1)

    told = [await answer(api, f"turn {index}") for index in range(7)]

    session = await look(api, "/api/sessions/s")
    assert session["cost_usd"] == sum(turn["cost_usd"] for turn in told) == told[-1]["session"]["cost_usd"]
    assert session["total_tokens"] == sum(turn["usage"]["total_tokens"] for turn in told)
    assert [turn["session"]["turns"] for turn in told] == [1, 2, 3, 4, 5, 6, 7]
    await assert_conserved(tables, fake)


async def test_an_unknown_price_is_null_and_counted(
    serve: Serve, environ: dict[str, str], fake: AzureOpenAI, tables: Tables
) -> None:
    fake.model_name = "a-model-without-a-price"
    async with serve(environ | {"PRICES": "{}"}) as api:
        raw = [(await say(api)).text, (await say(api)).text]
        session = await look(api, "/api/sessions/s")

    told = [exact(answer) for answer in raw]
    assert [turn["cost_usd"] for turn in told] == [None, None]
    assert [turn["session"]["unpriced_turns"] for turn in told] == [1, 2]
    assert (session["cost_usd"], session["unpriced_turns"]) == (0, 2)
    assert session["total_tokens"] == sum(turn["usage"]["total_tokens"] for turn in told) > 0
    assert [(entry.call.cost, entry.call.worst_case) for entry in await closed_ledger(tables)] == [(None, None)] * 2


# What the filter and the model decline


async def test_a_refusal_is_told_and_remembered(api: httpx.AsyncClient, fake: AzureOpenAI) -> None:
    fake.reply(refusal="I will not.")
    fake.reply(refusal="I will not.")

    told = await answer(api, "Do wrong.")
    spoken = await stream(api, "Do wrong.", session="t")

    assert told["message"] == {"role": "assistant", "content": None, "refusal": "I will not."}
    assert "".join(event.data["refusal"] for event in spoken if event.name == "delta") == "I will not."
    await answer(api, "Why not?")
    assert fake.requests[2].body["messages"][2] == {"role": "assistant", "content": "", "refusal": "I will not."}


async def test_an_answer_that_the_filter_cut_is_told_and_not_replayed(
    api: httpx.AsyncClient, fake: AzureOpenAI, tables: Tables
) -> None:
    await answer(api, "before")
    fake.fault("completion_filter", after=2)

    told = await answer(api, "something violent")

    assert told["finish_reason"] == "content_filter"
    assert told["message"]["content"] == "echo:"
    assert told["content_filter"]["completion"]["violence"] == {"filtered": True, "severity": "high"}
    assert told["cost_usd"] > 0
    await answer(api, "after")
    assert fake.requests[2].body["messages"] == [SYSTEM, user("before"), assistant("echo: before"), user("after")]
    history = await look(api, "/api/sessions/s/messages")
    assert [turn["finish_reason"] for turn in history["turns"]] == ["stop", "content_filter", "stop"]
    await assert_conserved(tables, fake)


async def test_a_prompt_that_the_filter_stopped_may_be_billed(
    api: httpx.AsyncClient, fake: AzureOpenAI, tables: Tables
) -> None:
    await answer(api, "before")
    fake.fault("content_filter")

    refused = await say(api, "something violent")

    assert refused.status_code == 400
    assert refused.json()["error"]["code"] == "content_filter"
    session = await look(api, "/api/sessions/s")
    [_, entry] = await closed_ledger(tables)
    assert (entry.call.state, entry.call.reason) == ("unaccounted", "content_filter")
    assert (session["unaccounted_calls"], session["unaccounted_usd"]) == (1, entry.call.worst_case)
    assert session["unaccounted_usd"] > 0
    await answer(api, "after")
    assert fake.requests[2].body["messages"] == [SYSTEM, user("before"), assistant("echo: before"), user("after")]
    assert len(fake.requests) == 3
    await assert_conserved(tables, fake)


async def test_what_an_unaccounted_call_costs_at_most_is_null_where_no_price_is_known(
    serve: Serve, environ: dict[str, str], fake: AzureOpenAI
) -> None:
    async with serve(environ | {"PRICES": ""}) as api:
        fake.fault("content_filter")
        await say(api, "something violent")
        session = await look(api, "/api/sessions/s")
        assert (session["unaccounted_calls"], session["unaccounted_usd"]) == (1, None)
        assert (await answer(api, "after"))["session"]["unaccounted_usd"] is None


@pytest.mark.parametrize("content", ["text/plain", "application/x-www-form-urlencoded", None])
async def test_only_json_is_taken(api: httpx.AsyncClient, fake: AzureOpenAI, content: str | None) -> None:
    headers = {} if content is None else {"content-type": content}

    refused = await api.post("/api/chat", content=b'{"message": "hi"}', headers=headers)

    assert (refused.status_code, refused.json()["error"]["code"]) == (415, "unsupported_media_type")
    assert not fake.requests


async def test_the_content_type_may_be_spelt_as_clients_do(api: httpx.AsyncClient) -> None:
    sent = await api.post(
        "/api/chat", content=b'{"message": "hi"}', headers={"content-type": "Application/JSON; charset=utf-8"}
    )

    assert answered(sent)["message"] == assistant("echo: hi")


async def test_the_service_tells_what_it_is(serve: Serve, environ: dict[str, str]) -> None:
    several = {"AZURE_OPENAI_DEPLOYMENTS": "chat=gpt-5.4-mini, another=gpt-4.1", "REGION_NAME": "East US"}
    async with serve(environ | several) as api:
        told = await look(api, "/api/about")

    assert told == {"deployment": "chat", "deployments": ["another", "chat"], "region": "East US"}
