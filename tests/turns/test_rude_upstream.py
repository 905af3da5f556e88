"""Whatever the model service sends: no billed answer is lost, none is paid for twice, no cost is understated.

Beside each kind of scenario is the public report that shows it (repository#number), or the rule that it stands for.
SSE: https://html.spec.whatwg.org/multipage/server-sent-events.html#event-stream-interpretation
"""

import json
from collections.abc import AsyncIterator, Iterator
from decimal import Decimal
from typing import Any

import httpx
import openai
import pytest

from local.keys import line
from shared.domain.calls import State
from tests.conftest import Tables
from tests.support.chat_client import answer, events, get_json, send_message, states
from tests.support.conservation import assert_conserved
from tests.support.rude_upstream import (
    COMPLETION_TOKENS,
    PROMPT_TOKENS,
    USAGE,
    RudeUpstream,
    chunk,
    end,
    frame,
    text,
    usage,
    whole,
)

COST = Decimal("0.00002025")  # of USAGE: 9 tokens at 0.75 USD per million and 3 at 4.5
JSON = dict[str, Any]


@pytest.fixture
def fake() -> Iterator[RudeUpstream]:
    with RudeUpstream() as server:
        yield server


@pytest.fixture
def environ(environ: dict[str, str]) -> dict[str, str]:
    return environ | {"CLIENT_KEYS": line("app", KEY)}


KEY = "a-client-key-of-the-tests"


@pytest.fixture
async def sdk(api: httpx.AsyncClient) -> AsyncIterator[openai.AsyncOpenAI]:
    base = f"{str(api.base_url).rstrip('/')}/openai/v1/"
    async with openai.AsyncOpenAI(base_url=base, api_key=KEY, max_retries=0) as client:
        yield client


USABLE: dict[str, list[Any]] = {
    # omnigent-ai/omnigent#1474, netease-lcap/wave-agent#1326: the keep-alive lines of relays
    "empty data between chunks": [text("hel"), b"data:\n\n", b"data: \n\n", text("lo"), end(), usage()],
    # betalgo/openai#472 (event: ping), openai-php/client#556 (type: ping)
    "ping events": [
        b"event: ping\ndata: ping\n\n",
        text("hel"),
        b"event: ping\ndata: {}\n\n",
        {"type": "ping"},
        text("lo"),
        end(),
        usage(),
    ],
    # openai/openai-python#3819, from the rule in HTML, 9.2.6: one is dropped
    "byte order mark": [b"\xef\xbb\xbf" + frame(text("hel")), text("lo"), end(), usage()],
    # hey-api/hey-api#3054 (CR LF), a2aproject/a2a-js#714 (CR), brainlid/langchain#569 (comments),
    # openai/openai-python#3833 (fields without data)
    "CR LF, CR and comments": [
        frame(text("hel")).replace(b"\n", b"\r\n"),
        b": comment\r\n\r\n",
        frame(text("lo")).replace(b"\n", b"\r"),
        b"retry: 10\nid: 7\n\n",
        end(),
        usage(),
    ],
    # HTML, 9.2.6: they are joined with LF
    "data over several lines": [frame(text("hel")).replace(b', "', b',\ndata: "'), text("lo"), end(), usage()],
    # openai/openai-python#498
    "no space after the colon": [frame(text("hel")).replace(b"data: ", b"data:"), text("lo"), end(), usage()],
    # NousResearch/hermes-agent#4748
    "content parts": [text([{"type": "text", "text": "hel"}]), text([{"type": "text", "text": "lo"}]), end(), usage()],
    # BerriAI/litellm#16272, agentjido/req_llm#742
    "thinking parts": [
        text([{"type": "thinking", "thinking": [{"type": "text", "text": "hm"}]}]),
        text([{"type": "text", "text": "hello"}]),
        end(),
        usage(),
    ],
    # theopenco/llmgateway#2861 (only details); null counts are the same kind
    "usage without counts first": [
        text("hel", usage={"prompt_tokens_details": {"cached_tokens": 0}}),
        text("lo", usage={"prompt_tokens": None, "completion_tokens": None, "total_tokens": None}),
        end(),
        usage(),
    ],
    # RFC 8259, 6: JSON has one type of number
    "counts as floats": [text("hello"), end(), usage(prompt_tokens=9.0, completion_tokens=3.0, total_tokens=12.0)],
    # elizaOS/eliza#30904, Kohaku-Lab/KohakuTerrarium#48
    "surrogate halves": [
        b'data: {"choices":[{"index":0,"delta":{"content":"hello\\ud83d"}}]}\n\n',
        b'data: {"choices":[{"index":0,"delta":{"content":"\\ude00"}}]}\n\n',
        end(),
        usage(),
    ],
    # sgl-project/sglang#4097: engines compute it for tokens that are impossible
    "logprob -Infinity": [
        b'data: {"choices":[{"index":0,"delta":{"content":"hello"},"logprobs":{"content":[{"token":"hello",'
        b'"logprob":-Infinity,"bytes":null,"top_logprobs":[]}]}}]}\n\n',
        end(),
        usage(),
    ],
    # anomalyco/opencode#43882, jakobdylanc/llmcord#84
    "no finish_reason": [text("hello"), usage()],
    # ollama/ollama#4357, sgl-project/sglang#3912
    "empty finish_reason": [chunk({"content": "hel"}, ""), chunk({"content": "lo"}, ""), usage()],
    # vllm-project/vllm#5708 (continuous_usage_stats), open-webui/open-webui#29064
    "running usage, no finish_reason": [text("hel", usage={**USAGE, "completion_tokens": 1}), text("lo", usage=USAGE)],
    # BerriAI/litellm#2195, BerriAI/litellm#4339 (Gemini)
    "finish_reason and usage on every chunk": [
        chunk({"content": "hel"}, "stop", usage={**USAGE, "completion_tokens": 1}),
        chunk({"content": "lo"}, "stop", usage=USAGE),
    ],
    # earendil-works/pi#2017 (Moonshot)
    "usage in the choice": [
        text("hello"),
        {"choices": [{"index": 0, "delta": {}, "finish_reason": "stop", "usage": USAGE}]},
    ],
    # pydantic/pydantic-ai#5170
    "choices null": [{"choices": None, "model": "m"}, text("hello"), end(), {"choices": None, "usage": USAGE}],
    # NousResearch/hermes-agent#75525 (null), bagofwords1/bagofwords#742 (a null delta of Azure's)
    "null for a chunk or a delta": [
        "null",
        {"choices": [{"index": 0, "delta": None, "content_filter_offsets": {}}]},
        text("hello"),
        end(),
        usage(),
    ],
    # microsoft/foundry-local#263, which also repeats the delta as a message; huggingface/text-generation-inference#1648
    "index counts the chunks": [
        {"choices": [{"index": at, "delta": {"content": each}, "message": {"role": "assistant", "content": each}}]}
        for at, each in enumerate(("hel", "lo"))
    ]
    + [end(), usage()],
    # spring-projects/spring-ai#6221
    "index begins at 1": [{"choices": [{"index": 1, "delta": {"content": "hello"}}]}, end(), usage()],
    # songquanpeng/one-api#1037
    "choice without index": [{"choices": [{"delta": {"content": "hello"}}]}, end(), usage()],
    # CopilotC-Nvim/CopilotChat.nvim#619 has one in its filter results; some gateways put one into every answer
    "error object that says nothing": [
        text("hel", error={"message": "", "type": "", "param": "", "code": None}),
        text("lo", error={"message": None, "code": None}),
        end(error={"message": "success", "code": 0}),
        usage() | {"error": {"message": "", "type": "", "param": "", "code": None}},
    ],
    # RFC 8259, 7 forbids them: a tab, and a line feed, which SSE takes for the end of the line
    "raw control characters in strings": [
        frame(text("hel")).replace(b'"c"', b'"\t"'),
        frame(text("lo")).replace(b'"c"', b'"a\nb"'),
        end(),
        usage(),
    ],
    # By the standard this is one event
    "no blank lines": [b"".join(frame(each)[:-1] for each in (text("hel"), text("lo"), end(), usage())) + b"\n"],
    # The legacy format: https://platform.openai.com/docs/api-reference/completions
    "text in the choice": [
        {"choices": [{"index": 0, "text": "hel", "finish_reason": None}]},
        {"choices": [{"index": 0, "text": "lo", "finish_reason": "stop"}]},
        usage(),
    ],
    "parts with other names of their text": [
        text([{"type": "text", "content": "hel"}]),
        text([{"type": "text", "text": {"value": "lo"}}]),
        end(),
        usage(),
    ],
    # The kind of microsoft/foundry-local#263: the whole message at the end
    "whole message after its deltas": [
        text("hel"),
        text("lo"),
        {"choices": [{"index": 0, "message": {"role": "assistant", "content": "hello"}, "finish_reason": "stop"}]},
        usage(),
    ],
    "empty calls": [
        text("hello", service_tier=None),
        chunk({"tool_calls": [{}]}),
        chunk({"tool_calls": [{"index": 0, "id": "", "function": {"name": "", "arguments": ""}}]}),
        chunk({"function_call": {"name": "", "arguments": ""}}),
        end(),
        usage(),
    ],
    # Python converts no text of more than 4,300 digits, and nothing nests without end
    "numbers and nesting of any size": [
        b'data: {"choices":[{"index":0,"delta":{"content":"hello"},"x":%s}]}\n\n' % (b"9" * 5_000),
        b'data: {"choices":[{"index":0,"delta":{"x":%s}}]}\n\n' % (b"[" * 9_000 + b"]" * 9_000),
        end(created=10**25),
        usage(),
    ],
    "error after the usage of a complete answer": [
        text("hello"),
        end(),
        usage(),
        {"error": {"message": "logging failed", "code": 500}},
    ],
    # earendil-works/pi#2466 (chunks and choices of other types); the rest is the same kind
    "odd types everywhere": [
        {"model": 5, "choices": "none", "usage": "none", "prompt_filter_results": 7},
        {"choices": [None, 3, {"index": 0, "delta": "text"}, {"index": "x", "delta": {"content": "no"}}]},
        {
            "choices": [
                {"index": 0, "delta": {"content": "hello", "tool_calls": 5, "function_call": 5, "refusal": None}}
            ]
        },
        {"choices": [{"index": 0, "finish_reason": 7, "logprobs": 5, "content_filter_results": 5, "delta": None}]},
        [1, 2],
        end(),
        usage(prompt_tokens_details=None, completion_tokens_details=[]),
    ],
}


@pytest.mark.parametrize("name", USABLE)
@pytest.mark.parametrize("streamed", [False, True])
async def test_usable_answer_is_given_and_settled_with_one_call(
    api: httpx.AsyncClient, fake: RudeUpstream, tables: Tables, name: str, streamed: bool
) -> None:
    fake.stream(*USABLE[name])

    response = await send_message(api, stream=streamed)

    assert response.status_code == 200, response.text
    done = events(response.content)[-1].data if streamed else response.json(parse_float=Decimal)
    assert done["message"]["content"].startswith("hello"), done
    assert len(done["message"]["content"]) <= len("hello") + 1
    assert done["finish_reason"] == "stop"
    assert (done["usage"]["prompt_tokens"], done["usage"]["completion_tokens"]) == (PROMPT_TOKENS, COMPLETION_TOKENS)
    if streamed:
        deltas = [event.data.get("content", "") for event in events(response.content) if event.name == "delta"]
        assert "".join(deltas) == done["message"]["content"]
    await assert_conserved(tables, fake)
    assert len(fake.requests) == 1


MENDED = {"raw control characters in strings", "no blank lines"}  # events that are none by the standard


@pytest.mark.parametrize("name", [name for name in USABLE if name not in MENDED])
async def test_openai_stream_passes_every_event_on_unchanged(
    api: httpx.AsyncClient, fake: RudeUpstream, tables: Tables, name: str
) -> None:
    fake.stream(*USABLE[name])
    body = {"model": "chat", "messages": [{"role": "user", "content": "hi"}], "stream": True}

    response = await api.post("/openai/v1/chat/completions", json=body, headers={"authorization": f"Bearer {KEY}"})

    sent = data_of(b"".join(map(frame, USABLE[name])))
    received = data_of(response.content)
    only_usage = [each for each in sent if is_only_usage(each)]
    assert received == [*(each for each in sent if each not in only_usage), b"[DONE]"]
    await assert_conserved(tables, fake)


def data_of(stream: bytes) -> list[bytes]:
    """The data of each event, by the standard (and without [DONE]'s exception)."""
    lines = stream.removeprefix(b"\xef\xbb\xbf").replace(b"\r\n", b"\n").replace(b"\r", b"\n").split(b"\n")
    received, data = [], list[bytes]()
    for each in lines:
        if each.startswith(b"data:"):
            data.append(each[5:].removeprefix(b" "))
        elif not each:
            if any(data):
                received.append(b"\n".join(data))
            data = []
    return received


def is_only_usage(data: bytes) -> bool:
    try:
        parsed = json.loads(data)
    except (ValueError, RecursionError):
        return False
    return isinstance(parsed, dict) and not parsed.get("choices") and isinstance(parsed.get("usage"), dict)


HELLO = {"role": "assistant", "content": "hello"}


async def openai_post(api: httpx.AsyncClient, **fields: Any) -> httpx.Response:
    body = {"model": "chat", "messages": [{"role": "user", "content": "hi"}], **fields}
    return await api.post("/openai/v1/chat/completions", json=body, headers={"authorization": f"Bearer {KEY}"})


class TestForm:
    """The answer is a stream or a document, whatever was requested."""

    async def test_document_in_place_of_a_stream_is_answered(
        self, api: httpx.AsyncClient, fake: RudeUpstream, tables: Tables
    ) -> None:
        """ChatGPTBox-dev/chatGPTBox#294, tinyhumansai/tinyagents#56"""
        fake.raw(whole({"content": "hello"}), media_type="application/json")
        assert (await answer(api))["message"] == HELLO
        await assert_conserved(tables, fake)
        assert len(fake.requests) == 1

    async def test_content_parts_of_a_document_are_text(self, api: httpx.AsyncClient, fake: RudeUpstream) -> None:
        """langchain4j/langchain4j#4474"""
        thinking = {"type": "thinking", "thinking": [{"type": "text", "text": "hm"}]}
        fake.raw(whole({"content": [thinking, {"type": "text", "text": "hello"}]}), media_type="application/json")
        assert (await answer(api))["message"] == {**HELLO, "reasoning_content": "hm"}

    async def test_document_in_place_of_a_stream_becomes_a_chunk_on_openai_routes(
        self, sdk: openai.AsyncOpenAI, fake: RudeUpstream, tables: Tables
    ) -> None:
        calls = [{"id": "c1", "type": "function", "function": {"name": "look", "arguments": "{}"}}]
        fake.raw(whole({"content": "hello", "tool_calls": calls}), media_type="application/json")
        messages: Any = [{"role": "user", "content": "hi"}]
        stream = await sdk.chat.completions.create(model="chat", messages=messages, stream=True)
        deltas = [piece.choices[0].delta async for piece in stream]
        assert "".join(delta.content or "" for delta in deltas) == "hello"
        assert [call.id for delta in deltas for call in delta.tool_calls or ()] == ["c1"]
        await assert_conserved(tables, fake)

    @pytest.mark.parametrize("fields", [{"choices": None}, {"choices": []}, {"object": None, "choices": "none"}])
    async def test_document_without_a_readable_choice_is_passed_on_unchanged(
        self, api: httpx.AsyncClient, fake: RudeUpstream, tables: Tables, fields: JSON
    ) -> None:
        document = whole({"content": "hello"}, **fields)
        fake.raw(document, media_type="application/json")
        assert (await openai_post(api)).content == document
        await assert_conserved(tables, fake)

    async def test_document_is_complete_without_finish_reason_and_usage(
        self, api: httpx.AsyncClient, fake: RudeUpstream, tables: Tables
    ) -> None:
        fake.raw(whole({"content": "hello"}, None, usage=None), media_type="application/json")
        assert (await answer(api))["message"] == HELLO
        await assert_conserved(tables, fake)
        assert len(fake.requests) == 1

    async def test_done_after_a_document_is_dropped(
        self, api: httpx.AsyncClient, fake: RudeUpstream, tables: Tables
    ) -> None:
        """decolua/9router#3492"""
        document = whole({"content": "hello"})
        fake.raw(document + b"\n\ndata: [DONE]\n\n")
        assert (await openai_post(api)).content.rstrip() == document
        await assert_conserved(tables, fake)
        assert len(fake.requests) == 1

    async def test_event_that_is_cut_is_not_passed_on(
        self, api: httpx.AsyncClient, fake: RudeUpstream, tables: Tables
    ) -> None:
        """HTML, 9.2.6: pending data at the end is discarded. In the SDK it would be an error, before it could show ours
        (AgentEra/Agently#26)."""
        fake.stream(text("hel"), frame(text("lo")).strip()[:-9], done=False)
        first, last = data_of((await openai_post(api, stream=True)).content)
        assert (json.loads(first), json.loads(last).keys()) == (text("hel"), {"error"})
        await assert_conserved(tables, fake)

    async def test_last_event_needs_no_blank_line(
        self, api: httpx.AsyncClient, fake: RudeUpstream, tables: Tables
    ) -> None:
        fake.stream(text("hello"), end(), frame(usage()).strip(), done=False)
        assert (await answer(api))["usage"]
        await assert_conserved(tables, fake)

    async def test_stream_in_place_of_a_document_becomes_a_document(
        self, sdk: openai.AsyncOpenAI, fake: RudeUpstream, tables: Tables
    ) -> None:
        """unslothai/unsloth#6570"""
        fake.stream(text("hel"), text("lo"), end(), usage())
        messages: Any = [{"role": "user", "content": "hi"}]
        completion = await sdk.chat.completions.create(model="chat", messages=messages)
        assert (completion.choices[0].message.content, completion.choices[0].finish_reason) == ("hello", "stop")
        assert completion.usage
        assert completion.usage.total_tokens == 12
        await assert_conserved(tables, fake)


DOC = whole({"content": "hello"})
JSON_BODIES = {
    "chunks of lines": b"\n".join(json.dumps(each).encode() for each in (text("hel"), text("lo"), end(), usage())),
    "chunks of a list": json.dumps([text("hel"), text("lo"), end(), usage()]).encode(),  # the form of Gemini's own API
    "comments before": b": keep-alive\n\n: keep-alive\n\n" + DOC,
    "NUL behind": DOC + b"\n\x00",
    "twice": DOC + DOC,
    "a list": b"[" + DOC + b"]",
    "an envelope": b'{"code": 0, "message": "success", "data": ' + DOC + b"}",
    "an empty error": whole({"content": "hello"}, error={"message": "", "type": "", "param": "", "code": None}),
    "a successful error": whole({"content": "hello"}, error={"message": "success", "code": 0}),
    "raw control characters": whole({"content": "hello"}).replace(b'"c"', b'"a\n\tb"'),
    "legacy format": json.dumps(
        {
            "object": "text_completion",
            "choices": [{"index": 0, "text": "hello", "finish_reason": "stop"}],
            "usage": USAGE,
        }
    ).encode(),
    "empty calls": whole({"content": "hello", "tool_calls": [{}], "function_call": {"name": "", "arguments": ""}}),
    "a deep list": whole({"content": "hello"}, x=0).replace(b'"x": 0', b'"x": ' + b"[" * 9_000 + b"]" * 9_000),
}


class TestBodies:
    """JSON in place of a stream, in other forms than one document."""

    @pytest.mark.parametrize("name", JSON_BODIES)
    @pytest.mark.parametrize("streamed", [False, True])
    async def test_answer_is_given_and_settled_with_one_call(
        self, api: httpx.AsyncClient, fake: RudeUpstream, tables: Tables, name: str, streamed: bool
    ) -> None:
        fake.raw(JSON_BODIES[name], media_type="application/json")
        response = await send_message(api, stream=streamed)
        done = events(response.content)[-1].data if streamed else response.json()
        assert (done["message"], done["finish_reason"]) == (HELLO, "stop")
        assert await states(tables) == [State.SETTLED]
        await assert_conserved(tables, fake)
        assert len(fake.requests) == 1

    @pytest.mark.parametrize("name", ["chunks of lines", "comments before", "twice", "a list", "an envelope"])
    async def test_answer_is_one_document_on_openai_routes(
        self, sdk: openai.AsyncOpenAI, fake: RudeUpstream, name: str
    ) -> None:
        messages: Any = [{"role": "user", "content": "hi"}]
        fake.raw(JSON_BODIES[name], media_type="application/json")
        completion = await sdk.chat.completions.create(model="chat", messages=messages)
        assert completion.choices[0].message.content == "hello"
        fake.raw(JSON_BODIES[name], media_type="application/json")
        stream = await sdk.chat.completions.create(model="chat", messages=messages, stream=True)
        assert "".join([piece.choices[0].delta.content or "" async for piece in stream]) == "hello"

    async def test_lines_that_are_cut_are_not_taken_for_the_whole(
        self, api: httpx.AsyncClient, fake: RudeUpstream, tables: Tables
    ) -> None:
        lines = [text("hel", usage={**USAGE, "completion_tokens": 1}), end()]
        fake.raw(b"\n".join(json.dumps(each).encode() for each in lines), framing="close")
        await send_message(api, stream=True)
        assert State.UNACCOUNTED in await states(tables)
        await assert_conserved(tables, fake)


NO_HTTP = {
    "no HTTP": b"garbage, not HTTP\r\n\r\n",
    "TLS": b"\x16\x03\x01\x02\x00",
    "a length that is no number": b"HTTP/1.1 200 OK\r\nContent-Length: x\r\n\r\n",
    "a header without a colon": b"HTTP/1.1 200 OK\r\nno colon\r\n\r\n",
    "a header of 100 KB": b"HTTP/1.1 200 OK\r\nx: " + b"x" * 100_000 + b"\r\n\r\n",
    "a status of six digits": b"HTTP/1.1 200000 OK\r\n\r\n",
    "a chunk without a size": b"HTTP/1.1 200 OK\r\nTransfer-Encoding: chunked\r\n\r\nzz\r\n",
    "a broken encoding": b"HTTP/1.1 200 OK\r\nContent-Encoding: gzip\r\nContent-Length: 5\r\n\r\nabcde",
    "more than no content": b"HTTP/1.1 204 No Content\r\nContent-Length: 5\r\n\r\nabcde",
}


class TestNoHttp:
    """A response that is no HTTP, or breaks its rules: it may be billed, and no library's exception comes through."""

    @pytest.mark.parametrize("name", NO_HTTP)
    async def test_turn_fails_with_its_cost_unaccounted(
        self, api: httpx.AsyncClient, fake: RudeUpstream, tables: Tables, name: str
    ) -> None:
        for streamed in (False, True):
            for _ in range(2):  # the app retries once
                fake.raw(NO_HTTP[name], framing="none", ending="reset")
            response = await send_message(api, stream=streamed)
            failed = events(response.content)[-1].data if streamed else response.json()["error"]
            assert failed["code"] == "upstream_error", response.text
        assert set(await states(tables)) == {State.UNACCOUNTED}
        await assert_conserved(tables, fake)
        assert (await send_message(api)).status_code == 200

    @pytest.mark.parametrize("name", NO_HTTP)
    async def test_openai_route_answers_with_the_same(
        self, sdk: openai.AsyncOpenAI, fake: RudeUpstream, name: str
    ) -> None:
        fake.raw(NO_HTTP[name], framing="none", ending="reset")
        with pytest.raises(openai.InternalServerError) as failed:
            await sdk.with_options(max_retries=0).chat.completions.create(
                model="chat", messages=[{"role": "user", "content": "hi"}]
            )
        assert failed.value.status_code == 502


class TestUsage:
    @pytest.mark.parametrize("closing", [end(), b""], ids=["finish_reason", "only [DONE]"])
    async def test_complete_answer_without_usage_is_given_and_unaccounted(
        self, api: httpx.AsyncClient, fake: RudeUpstream, tables: Tables, closing: JSON | bytes
    ) -> None:
        """tidyverse/ellmer#117 (Ollama), BerriAI/litellm#23847"""
        fake.stream(text("hello"), closing)
        response = await answer(api)
        assert (response["message"], response["usage"], response["cost_usd"]) == (HELLO, None, None)
        assert response["session"]["unaccounted_calls"] == 1
        assert (await answer(api))["message"]["content"] == "echo: hi"
        prompt = [message["content"] for message in fake.requests[-1].body["messages"]]
        assert prompt[1:] == ["hi", "hello", "hi"]  # later turns show the model what the caller saw
        await assert_conserved(tables, fake)
        assert len(fake.requests) == 2

    @pytest.mark.parametrize("ending", ["reset", "clean"])
    async def test_running_usage_of_a_broken_stream_is_not_taken_for_the_whole(
        self, api: httpx.AsyncClient, fake: RudeUpstream, tables: Tables, ending: str
    ) -> None:
        """BerriAI/litellm#4339. Clean, but without framing or [DONE]: nothing shows that the end is its end."""
        fake.stream(
            text("hel", usage={**USAGE, "completion_tokens": 1}),
            chunk({"content": "lo"}, "stop", usage={**USAGE, "completion_tokens": 2}),
            done=False,
            framing="close",
            ending=ending,
        )
        failed = await send_message(api, stream=True)
        assert events(failed.content)[-1].name == "error"
        assert await states(tables) == [State.UNACCOUNTED]
        await assert_conserved(tables, fake)
        assert len(fake.requests) == 1

    @pytest.mark.parametrize("framing", ["chunked", "length"])
    async def test_running_usage_is_final_at_a_clean_end(
        self, api: httpx.AsyncClient, fake: RudeUpstream, tables: Tables, framing: str
    ) -> None:
        """ikawrakow/ik_llama.cpp#467, mlc-ai/mlc-llm#1300: some services never send [DONE]."""
        fake.stream(text("hello", usage=USAGE), done=False, framing=framing)
        assert (await answer(api))["message"] == HELLO
        await assert_conserved(tables, fake)

    async def test_content_after_the_last_usage_leaves_the_call_unaccounted(
        self, api: httpx.AsyncClient, fake: RudeUpstream, tables: Tables
    ) -> None:
        fake.stream(text("hel", usage={**USAGE, "completion_tokens": 1}), text("lo"), end())
        assert (await answer(api))["usage"] is None
        await assert_conserved(tables, fake)

    async def test_usage_before_the_answer_is_not_taken_for_the_whole(
        self, api: httpx.AsyncClient, fake: RudeUpstream, tables: Tables
    ) -> None:
        """vllm-project/semantic-router#2215: a preview of the usage is the first chunk."""
        fake.stream(usage(completion_tokens=1), done=False, ending="reset")
        assert (await answer(api))["message"]["content"] == "echo: hi"
        assert await states(tables) == [State.UNACCOUNTED, State.SETTLED]
        await assert_conserved(tables, fake)

    async def test_usage_only_chunk_settles_although_the_connection_is_lost_after_it(
        self, api: httpx.AsyncClient, fake: RudeUpstream, tables: Tables
    ) -> None:
        fake.stream(text("hello"), end(), usage(), done=False, ending="reset")
        assert (await answer(api))["message"] == HELLO
        await assert_conserved(tables, fake)

    async def test_usage_without_a_finish_reason_settles_an_answer_that_broke_off(
        self, api: httpx.AsyncClient, fake: RudeUpstream, tables: Tables
    ) -> None:
        fake.stream(text("hel"), usage(), done=False, ending="reset")
        assert (await send_message(api)).status_code == 502
        turn = (await get_json(api, "/api/sessions/s/messages"))["turns"][0]
        assert (turn["state"], turn["finish_reason"], turn["cost_usd"]) == ("settled", "error", COST)
        await assert_conserved(tables, fake)
        assert len(fake.requests) == 1

    @pytest.mark.parametrize("tier", [{"service_tier": ["priority"]}, {"usage": {**USAGE, "service_tier": "priority"}}])
    async def test_tier_without_a_known_price_has_no_cost(
        self, api: httpx.AsyncClient, fake: RudeUpstream, tier: JSON
    ) -> None:
        fake.stream(text("hello"), end(), usage() | tier)
        response = await answer(api)
        assert (response["usage"]["prompt_tokens"], response["cost_usd"]) == (PROMPT_TOKENS, None)


ERRORS = [
    # vercel/ai#2698 (OpenRouter)
    ({"error": {"message": "too fast", "code": 429}}, 429, "rate_limited"),
    # epam/ai-dial-adapter-openai#348 (gpt-5.2 on Azure)
    ({"error": {"message": "no_kv_space", "type": "server_error", "code": "rate_limit_exceeded"}}, 429, "rate_limited"),
    # The same kind: the code as text, or only a type
    ({"error": {"message": "wrong", "code": 400}}, 400, "invalid_request"),
    ({"error": {"message": "wrong", "code": "400"}}, 400, "invalid_request"),
    ({"error": {"message": "wrong", "type": "invalid_request_error", "code": None}}, 400, "invalid_request"),
    # vercel/ai#10653 (Anthropic)
    ({"error": {"message": "later", "type": "overloaded_error"}}, 503, "upstream_unavailable"),
    # pepperoni21/ollama-rs#357 (Ollama)
    ({"error": "broken"}, 502, "upstream_error"),
    # n4ze3m/page-assist#406 (Gemini's compatible API)
    ([{"error": {"code": 429, "message": "Quota", "status": "RESOURCE_EXHAUSTED"}}], 429, "rate_limited"),
    (b'event: error\ndata: {"code": 429, "message": "too fast"}\n\n', 429, "rate_limited"),
    (b'[{"error": {"code": 429, "message": "Quota"}}]', 429, "rate_limited"),
    # modelscope/ms-agent#489 (vLLM)
    ({"object": "error", "message": "wrong", "code": 400}, 400, "invalid_request"),
]


class TestErrors:
    @pytest.mark.parametrize(("event", "status", "code"), ERRORS)
    async def test_error_as_first_event_is_what_its_status_would_have_been(
        self, api: httpx.AsyncClient, fake: RudeUpstream, event: JSON, status: int, code: str
    ) -> None:
        fake.stream(event, billed=False)
        fake.stream(event, billed=False)  # a 502 may be billed and is retried once
        response = await send_message(api)
        assert (response.status_code, response.json()["error"]["code"]) == (status, code)
        assert len(fake.requests) == (2 if status == 502 else 1)

    @pytest.mark.parametrize("streamed", [False, True])
    async def test_error_as_first_event_is_passed_on_with_its_status_on_openai_routes(
        self, api: httpx.AsyncClient, fake: RudeUpstream, streamed: bool
    ) -> None:
        event = {"error": {"message": "too fast", "code": 429, "type": "x"}}
        fake.stream(event, billed=False)
        response = await openai_post(api, stream=streamed)
        assert (response.status_code, response.json()) == (429, event)

    @pytest.mark.parametrize(
        "parts",
        [
            [{"error": {"code": 500}, "usage": USAGE}],
            [{"error": {"code": 500, "message": "no"}, "choices": [{"index": 0, "delta": {}}], "usage": USAGE}],
            [{"error": {"code": 500, "message": "no"}}, usage()],
            [
                text("hel"),
                {
                    "error": {"code": 502, "message": "Provider disconnected"},
                    "choices": [{"index": 0, "delta": {"content": ""}, "finish_reason": "error"}],
                    "usage": USAGE,
                },
            ],
            [whole({"content": "hello"}, error={"message": "no", "code": 500})],
        ],
    )
    @pytest.mark.parametrize("ending", ["clean", "reset"])
    @pytest.mark.parametrize("streamed", [False, True])
    async def test_error_with_usage_is_settled_and_not_retried(
        self,
        api: httpx.AsyncClient,
        fake: RudeUpstream,
        tables: Tables,
        parts: list[Any],
        ending: str,
        streamed: bool,
    ) -> None:
        """https://openrouter.ai/docs/api-reference/errors (in mid-stream)"""
        fake.stream(*parts, done=False, ending="clean" if isinstance(parts[0], bytes) else ending)
        response = await send_message(api, stream=streamed)
        failed = response.json()["error"] if response.status_code != 200 else events(response.content)[-1].data
        assert failed["code"] == "upstream_error"
        assert await states(tables) == [State.SETTLED]
        await assert_conserved(tables, fake)
        assert len(fake.requests) == 1

    @pytest.mark.parametrize("event", [{"code": 500, "message": "the engine died"}, b"event: error\ndata: died\n\n"])
    async def test_error_in_mid_stream_without_an_error_object_becomes_one(
        self, api: httpx.AsyncClient, fake: RudeUpstream, tables: Tables, event: Any
    ) -> None:
        """Clients would take it for a chunk, and the answer for a whole one."""
        fake.stream(text("hel"), event)
        first, last = data_of((await openai_post(api, stream=True)).content)
        assert json.loads(first) == text("hel")
        assert "died" in json.loads(last)["error"]["message"]
        await assert_conserved(tables, fake)

    async def test_error_in_mid_stream_is_passed_on_in_the_services_words(
        self, api: httpx.AsyncClient, fake: RudeUpstream, tables: Tables
    ) -> None:
        """damianvtran/local-operator#223, diegosouzapw/OmniRoute#8210 (OpenRouter)"""
        event = {"error": {"message": "the engine died", "code": 500}}
        fake.stream(text("hel"), event, usage())
        response = await openai_post(api, stream=True)
        assert [json.loads(data) for data in data_of(response.content)] == [text("hel"), event]
        assert await states(tables) == [State.SETTLED]  # usage came after the error
        await assert_conserved(tables, fake)

    async def test_error_in_mid_stream_ends_a_turn_that_is_settled_if_its_usage_came(
        self, api: httpx.AsyncClient, fake: RudeUpstream, tables: Tables
    ) -> None:
        fake.stream(text("hel"), {"error": {"message": "the engine died"}}, usage())
        failed = events((await send_message(api, stream=True)).content)[-1]
        assert (failed.name, failed.data["code"]) == ("error", "upstream_error")
        assert "the engine died" in failed.data["message"]
        turn = (await get_json(api, "/api/sessions/s/messages"))["turns"][0]
        assert (turn["state"], turn["finish_reason"], turn["cost_usd"]) == ("settled", "error", COST)
        await answer(api)
        assert "hel" not in [message["content"] for message in fake.requests[-1].body["messages"]]
        await assert_conserved(tables, fake)

    # vllm-project/vllm#40986 ([DONE] without an answer); the others are the same kind
    @pytest.mark.parametrize("body", [b"", b"data: [DONE]\n\n", b": ping\n\n", b"data: ping\n\n", b"<html></html>"])
    async def test_response_without_an_answer_is_retried_once(
        self, api: httpx.AsyncClient, fake: RudeUpstream, tables: Tables, body: bytes
    ) -> None:
        fake.raw(body)
        assert (await answer(api))["message"]["content"] == "echo: hi"
        assert await states(tables) == [State.UNACCOUNTED, State.SETTLED]
        await assert_conserved(tables, fake)


def call(call_id: str | None = None, name: str | None = None, arguments: Any = None, **fields: Any) -> JSON:
    inside = {key: value for key, value in (("name", name), ("arguments", arguments)) if value is not None}
    return ({} if call_id is None else {"id": call_id, "type": "function"}) | {"function": inside} | fields


TOOL_CALLS: dict[str, tuple[list[list[JSON]], list[tuple[str, str]]]] = {
    # ollama/ollama#7881, AstrBotDevs/AstrBot#6692
    "ids without index": (
        [[call("a", "look", '{"x"')], [call(None, None, ":1}")], [call("b", "find", "{}")]],
        [("look", '{"x":1}'), ("find", "{}")],
    ),
    # davidmigloz/ai_clients_dart#64
    "index null": (
        [[call("a", "look", "{}", index=None)], [call("b", "find", "{}", index=None)]],
        [("look", "{}"), ("find", "{}")],
    ),
    # ollama/ollama#15457, BerriAI/litellm#33678
    "a new id under a taken index": (
        [[call("a", "look", "{}", index=0)], [call("b", "find", "{}", index=0)]],
        [("look", "{}"), ("find", "{}")],
    ),
    # SillyTavern/SillyTavern#5948 (Fireworks), NousResearch/hermes-agent#11984
    "the id repeated in every piece": (
        [[call("a", "look", '{"x"', index=0)], [call("a", "look", ":1}", index=0)]],
        [("look", '{"x":1}')],
    ),
    # anomalyco/opencode#43328 (null), anomalyco/opencode#37841 (empty)
    "null and empty fields in later pieces": (
        [
            [call("a", "look", "{", index=0)],
            [{"index": 0, "id": None, "type": None, "function": {"name": None, "arguments": '"x":'}}],
            [{"index": 0, "id": "", "function": {"name": "", "arguments": "1}"}}],
        ],
        [("look", '{"x":1}')],
    ),
    # ggml-org/llama.cpp#20198, BerriAI/litellm#8313
    "arguments as an object": ([[call("a", "look", {"x": 1}, index=0)]], [("look", '{"x":1}')]),
    # MetaFARS/codex-relay#57, pydantic/pydantic-ai#1802
    "no arguments": ([[call("a", "look", index=0)]], [("look", "")]),
    # vercel/ai#7834 (Gemini), openai/openai-dotnet#428
    "no id": ([[call(None, "look", "{}", index=0)]], [("look", "{}")]),
    # huggingface/smolagents#1958
    "neither id nor index, two names": (
        [[call(None, "look", "{}")], [call(None, "find", "{}")]],
        [("look", "{}"), ("find", "{}")],
    ),
    "an empty id, two names": (
        [[call("", "look", "{}", index=0)], [call("", "find", "{}", index=0)]],
        [("look", "{}"), ("find", "{}")],
    ),
    "one id for two calls": (
        [[call("a", "look", "{}")], [call("a", "find", '{"x"')], [call("a", None, ":1}")]],
        [("look", "{}"), ("find", '{"x":1}')],
    ),
    "one id at two indexes": (
        [[call("a", "look", "{}", index=0)], [call("a", "find", "{}", index=1)]],
        [("look", "{}"), ("find", "{}")],
    ),
    # BerriAI/litellm#4537, openai/openai-agents-js#712 (gateways to Anthropic)
    "an empty object before the arguments": (
        [[call("a", "look", {}, index=0)], [call(None, None, '{"x":1}', index=0)]],
        [("look", '{"x":1}')],
    ),
    "an empty object alone": ([[call("a", "look", {}, index=0)]], [("look", "{}")]),
    "fields without the object around": ([[{"id": "a", "name": "look", "arguments": "{}"}]], [("look", "{}")]),
    "function as text": ([[{"id": "a", "function": "look", "arguments": {"x": 1}}]], [("look", '{"x":1}')]),
    "an index that is no index": (
        [[call("a", "look", "{}", index=10**25)], [call("b", "find", "{}", index="9" * 5_000)]],
        [("look", "{}"), ("find", "{}")],
    ),
    "an empty call between": (
        [[call("a", "look", "{}", index=0)], [{}], [call("", "", "", index=1)]],
        [("look", "{}")],
    ),
    # The same kind as above: the index in other types
    "index as a float and as text": (
        [[call("a", "look", "{", index=0.0)], [call("b", "find", "{}", index="1")], [call(None, None, "}", index=0)]],
        [("look", "{}"), ("find", "{}")],
    ),
}


class TestToolCalls:
    @pytest.mark.parametrize("name", TOOL_CALLS)
    @pytest.mark.parametrize("streamed", [False, True])
    async def test_tool_calls_of_every_dialect_can_be_answered(
        self, api: httpx.AsyncClient, fake: RudeUpstream, tables: Tables, name: str, streamed: bool
    ) -> None:
        pieces, expected = TOOL_CALLS[name]
        fake.stream(*(chunk({"tool_calls": piece}) for piece in pieces), end("tool_calls"), usage())

        response = await send_message(api, stream=streamed)

        done = events(response.content)[-1].data if streamed else response.json()
        calls = done["message"]["tool_calls"]
        assert [(each["function"]["name"], each["function"]["arguments"]) for each in calls] == expected
        ids = [each["id"] for each in calls]
        assert all(ids)
        assert len(set(ids)) == len(ids)
        results = [{"tool_call_id": each, "content": "ok"} for each in ids]
        await answer(api, message=None, tool_results=results)
        sent = fake.requests[-1].body["messages"][-len(ids) - 1]["tool_calls"]
        assert [each["id"] for each in sent] == ids
        assert all(isinstance(json.loads(each["function"]["arguments"]), dict) for each in sent)
        await assert_conserved(tables, fake)

    @pytest.mark.parametrize(
        "calls",
        [
            [call("a", "look", "{}"), call("a", "find", "{}")],
            {"0": call("a", "look", "{}"), "1": call("b", "find", "{}")},
            [{"name": "look", "arguments": {}}, {"function": "find"}],
        ],
    )
    async def test_calls_of_a_document_can_be_answered(
        self, api: httpx.AsyncClient, fake: RudeUpstream, calls: Any
    ) -> None:
        fake.raw(whole({"content": None, "tool_calls": calls}, "tool_calls"), media_type="application/json")
        made = (await answer(api))["message"]["tool_calls"]
        assert [each["function"]["name"] for each in made] == ["look", "find"]
        assert len({each["id"] for each in made}) == 2
        results = [{"tool_call_id": each["id"], "content": "ok"} for each in made]
        await answer(api, message=None, tool_results=results)

    async def test_empty_function_call_is_not_sent_back(self, api: httpx.AsyncClient, fake: RudeUpstream) -> None:
        fake.stream(
            text(
                "hello",
            ),
            chunk({"function_call": {"name": "", "arguments": ""}}),
            end(),
            usage(),
        )
        assert (await answer(api))["message"] == HELLO
        await answer(api)
        assert fake.requests[-1].body["messages"][-2] == HELLO

    @pytest.mark.parametrize("apart", [False, True])
    async def test_extra_fields_of_a_call_are_sent_back(
        self, api: httpx.AsyncClient, fake: RudeUpstream, apart: bool
    ) -> None:
        """theopenco/llmgateway#1267, inference-gateway/inference-gateway#275: Gemini answers 400 without them."""
        extra = {"extra_content": {"google": {"thought_signature": "abc"}}}
        called = [call("a", "look", "{}", index=0, **extra)]
        if apart:
            called = [call("a", "look", "{}", index=0), {"index": 0, **extra}]
        fake.stream(chunk({"tool_calls": called}), end("tool_calls"), usage())
        await answer(api)
        await answer(api, message=None, tool_results=[{"tool_call_id": "a", "content": "ok"}])
        assert fake.requests[-1].body["messages"][-2]["tool_calls"][0]["extra_content"] == extra["extra_content"]


async def test_thinking_is_kept_apart_and_not_sent_back(api: httpx.AsyncClient, fake: RudeUpstream) -> None:
    fake.stream(chunk({"reasoning_content": "hm"}), chunk({"reasoning_content": "m"}), text("hello"), end(), usage())
    assert (await answer(api))["message"] == {**HELLO, "reasoning_content": "hmm"}
    await answer(api)
    assert fake.requests[-1].body["messages"][2] == HELLO


@pytest.mark.parametrize("field", ["model", "service_tier", "finish_reason"])
async def test_name_too_long_for_a_row_is_cut(
    api: httpx.AsyncClient, fake: RudeUpstream, tables: Tables, field: str
) -> None:
    """The turn could not be stored otherwise: its caller would wait for the call's deadline, and get an error."""
    name = {field: "n" * 1_200_000}
    finish_reason = name.pop("finish_reason", "stop")
    fake.stream(text("hello", **name), end(finish_reason, **name), usage(**name))

    await answer(api)

    async for row in tables.sessions.query("PartitionKey eq @session", {"session": "s"}):
        assert sum(len(str(value)) for value in row.values()) < 10_000
    assert len(fake.meter) == 1
    if field != "service_tier":  # a tier without a known price
        await assert_conserved(tables, fake)
