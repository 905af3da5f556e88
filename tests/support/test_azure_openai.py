"""The Azure OpenAI fake, called by the real SDK: it must behave like the service, or tests against it prove nothing."""

import asyncio
import json
from collections.abc import AsyncIterator, Iterator
from typing import Any

import httpx
import openai
import pytest
from openai import AsyncOpenAI
from openai.types.chat import ChatCompletionChunk
from pydantic import BaseModel

from tests.support.azure_openai import AzureOpenAI, Fault, Kind, Reply, Request
from tests.support.azure_openai_answers import pieces
from tests.support.loopback import MAX_WAIT_S

HELLO: Any = [{"role": "user", "content": "hello, wörld 🙂🙃"}]
TOOL: Any = {
    "type": "function",
    "function": {"name": "weather", "parameters": {"type": "object", "properties": {"city": {"type": "string"}}}},
}


@pytest.fixture
def fake() -> Iterator[AzureOpenAI]:
    with AzureOpenAI() as fake:
        yield fake


@pytest.fixture
async def client(fake: AzureOpenAI) -> AsyncIterator[AsyncOpenAI]:
    async with AsyncOpenAI(
        base_url=f"{fake.endpoint}/openai/v1/", api_key="test-key", max_retries=0, timeout=MAX_WAIT_S
    ) as client:
        yield client


async def ask(client: AsyncOpenAI, messages: Any = HELLO, **options: Any) -> Any:
    return await client.chat.completions.create(model="chat", messages=messages, **options)


async def stream(client: AsyncOpenAI, messages: Any = HELLO, **options: Any) -> list[ChatCompletionChunk]:
    chunks: list[ChatCompletionChunk] = []
    await read(chunks, client, messages, **options)
    return chunks


async def read(chunks: list[ChatCompletionChunk], client: AsyncOpenAI, messages: Any = HELLO, **options: Any) -> None:
    options = {"stream_options": {"include_usage": True}} | options
    async for chunk in await ask(client, messages, stream=True, **options):
        chunks.append(chunk)  # noqa: PERF401 - chunks before a failure must be in the list


async def collect(received: list[bytes], answer: httpx.Response) -> None:
    async for part in answer.aiter_bytes():
        received.append(part)  # noqa: PERF401 - as above


def text(chunks: list[ChatCompletionChunk]) -> str:
    return "".join(chunk.choices[0].delta.content or "" for chunk in chunks if chunk.choices)


async def test_answer_has_usage_and_filter_results(fake: AzureOpenAI, client: AsyncOpenAI) -> None:
    answer = await ask(client, extra_headers={"x-ms-client-request-id": "call-1"})

    assert answer.choices[0].message.content == "echo: hello, wörld 🙂🙃"
    assert answer.choices[0].finish_reason == "stop"
    assert answer.model == "gpt-5.4-mini-2026-03-17"
    assert answer.choices[0].content_filter_results["hate"] == {"filtered": False, "severity": "safe"}
    assert answer.prompt_filter_results[0]["content_filter_results"]["jailbreak"]["detected"] is False
    (billed,) = fake.meter
    assert (billed.call_id, billed.deployment, billed.outcome, billed.streamed) == ("call-1", "chat", "ok", False)
    assert (billed.prompt_tokens, billed.completion_tokens) == (
        answer.usage.prompt_tokens,
        answer.usage.completion_tokens,
    )
    assert answer.usage.total_tokens == answer.usage.prompt_tokens + answer.usage.completion_tokens


async def test_stream_begins_without_choices_and_ends_with_usage(fake: AzureOpenAI, client: AsyncOpenAI) -> None:
    chunks = await stream(client)

    assert (chunks[0].choices, chunks[0].id, chunks[0].model) == ([], "", "")
    assert chunks[0].model_extra is not None
    assert "prompt_filter_results" in chunks[0].model_extra
    assert chunks[1].choices[0].delta.role == "assistant"
    assert text(chunks) == "echo: hello, wörld 🙂🙃"
    assert chunks[-2].choices[0].finish_reason == "stop"
    assert chunks[-1].choices == []
    assert chunks[-1].usage is not None
    assert chunks[-1].usage.completion_tokens == fake.meter[0].completion_tokens
    assert fake.meter[0].streamed


async def test_stream_has_no_usage_unless_requested(fake: AzureOpenAI, client: AsyncOpenAI) -> None:
    chunks = await stream(client, stream_options={"include_usage": False})

    assert chunks[-1].choices[0].finish_reason == "stop"
    assert all(chunk.usage is None for chunk in chunks)


async def test_each_emoji_is_a_chunk_of_its_own(client: AsyncOpenAI) -> None:
    chunks = await stream(client)

    assert [chunk.choices[0].delta.content for chunk in chunks[2:-2]][-2:] == ["🙂", "🙃"]


def test_tokenizer_makes_at_most_one_token_per_byte_and_loses_no_text() -> None:
    content = "Ünïcode 🙂👩‍👩‍👧 tabs\t\tnewlines\r\n\n中文字 x_y-z  _ \u00a0 end"

    assert "".join(pieces(content)) == content
    assert 0 < len(pieces(content)) <= len(content.encode())


async def test_answer_is_cut_to_the_requested_max_tokens(fake: AzureOpenAI, client: AsyncOpenAI) -> None:
    answer = await ask(client, max_completion_tokens=3)

    assert answer.choices[0].message.content == "echo: hell"
    assert answer.choices[0].finish_reason == "length"
    assert answer.usage.completion_tokens == 3


async def test_reasoning_tokens_count_towards_max_tokens(fake: AzureOpenAI, client: AsyncOpenAI) -> None:
    fake.reply("not visible", reasoning_tokens=50)

    answer = await ask(client, max_completion_tokens=20)

    assert (answer.choices[0].message.content, answer.choices[0].finish_reason) == ("", "length")
    assert answer.usage.completion_tokens_details.reasoning_tokens == 20
    assert (fake.meter[0].completion_tokens, fake.meter[0].reasoning_tokens) == (20, 20)


async def test_several_choices_logprobs_and_model_name_without_version(fake: AzureOpenAI, client: AsyncOpenAI) -> None:
    fake.reply("one 🙂", model="gpt-5.4-mini")

    answer = await ask(client, n=2, logprobs=True, top_logprobs=2)

    assert [choice.index for choice in answer.choices] == [0, 1]
    tokens = answer.choices[1].logprobs.content
    assert b"".join(bytes(token.bytes) for token in tokens).decode() == "one 🙂"
    assert len(tokens[0].top_logprobs) == 2
    assert answer.model == "gpt-5.4-mini"
    assert answer.usage.completion_tokens == 2 * len(pieces("one 🙂"))


async def test_streamed_logprobs_cover_the_text(client: AsyncOpenAI) -> None:
    chunks = await stream(client, logprobs=True)

    logprobs = [chunk.choices[0].logprobs for chunk in chunks if chunk.choices]
    assert "".join(token.token for part in logprobs if part for token in part.content or ()) == text(chunks)


async def test_required_tool_is_called_and_its_result_accepted(client: AsyncOpenAI) -> None:
    first = await ask(client, tools=[TOOL], tool_choice="required")
    called = first.choices[0].message
    result = {"role": "tool", "tool_call_id": called.tool_calls[0].id, "content": "rain"}
    second = await ask(client, [*HELLO, called.model_dump(include={"role", "tool_calls"}), result])

    assert first.choices[0].finish_reason == "tool_calls"
    assert called.content is None
    assert json.loads(called.tool_calls[0].function.arguments) == {"city": "echo: hello, wörld 🙂🙃"}
    assert second.choices[0].finish_reason == "stop"


async def test_parallel_tool_calls_are_streamed_in_pieces(fake: AzureOpenAI, client: AsyncOpenAI) -> None:
    calls = (("call_1", "weather", '{"city":"Oslo"}'), ("call_2", "weather", '{"city":"Rome"}'))
    fake.reply(tool_calls=calls)

    gathered: dict[int, list[str]] = {}
    for chunk in await stream(client, tools=[TOOL]):
        for piece in chunk.choices[0].delta.tool_calls or () if chunk.choices else ():
            assert piece.function
            call = gathered.setdefault(piece.index, [piece.id or "", piece.function.name or "", ""])
            call[2] += piece.function.arguments or ""

    assert tuple(map(tuple, gathered.values())) == calls


async def test_structured_output_matches_its_schema(client: AsyncOpenAI) -> None:
    class Place(BaseModel):
        name: str
        rooms: int
        open: bool

    answer = await client.chat.completions.parse(model="chat", messages=HELLO, response_format=Place)

    assert answer.choices[0].message.parsed == Place(name="echo: hello, wörld 🙂🙃", rooms=7, open=True)
    plain = await ask(client, response_format={"type": "json_object"})
    assert json.loads(plain.choices[0].message.content)


async def test_refusal_is_in_its_own_field(fake: AzureOpenAI, client: AsyncOpenAI) -> None:
    fake.reply(refusal="I cannot.")
    fake.reply(refusal="I cannot.")

    answer = await ask(client)
    streamed = await stream(client)

    assert (answer.choices[0].message.content, answer.choices[0].message.refusal) == (None, "I cannot.")
    assert "".join(chunk.choices[0].delta.refusal or "" for chunk in streamed if chunk.choices) == "I cannot."


async def test_repeated_long_prefix_is_cached_in_steps_of_128_tokens(fake: AzureOpenAI, client: AsyncOpenAI) -> None:
    long = [{"role": "system", "content": "word " * 1200}]

    first = await ask(client, [*long, {"role": "user", "content": "a"}])
    second = await ask(client, [*long, {"role": "user", "content": "b"}])
    other = await ask(client, [{"role": "system", "content": "other " * 1200}, *HELLO])

    assert first.usage.prompt_tokens_details.cached_tokens == 0
    assert second.usage.prompt_tokens_details.cached_tokens == fake.meter[1].cached_tokens == 1204 // 128 * 128
    assert other.usage.prompt_tokens_details.cached_tokens == 0


async def test_short_prefix_is_not_cached(client: AsyncOpenAI) -> None:
    short = [{"role": "user", "content": "word " * 900}]
    await ask(client, short)

    assert (await ask(client, short)).usage.prompt_tokens_details.cached_tokens == 0


async def test_token_counts_can_be_scripted(fake: AzureOpenAI, client: AsyncOpenAI) -> None:
    fake.reply("x", prompt_tokens=2000, cached_tokens=1024, cache_write_tokens=512, completion_tokens=9)

    usage = (await ask(client)).usage

    assert usage.prompt_tokens_details.model_dump(exclude_none=True) == {
        "audio_tokens": 0,
        "cached_tokens": 1024,
        "cache_write_tokens": 512,
    }
    (billed,) = fake.meter
    assert (billed.prompt_tokens, billed.cache_write_tokens, billed.completion_tokens) == (2000, 512, 9)


async def test_wrong_key_returns_401(fake: AzureOpenAI, client: AsyncOpenAI) -> None:
    with pytest.raises(openai.AuthenticationError, match="Access token is missing"):
        await ask(client.with_options(api_key="wrong"))
    async with httpx.AsyncClient(timeout=MAX_WAIT_S) as plain:
        answer = await plain.post(f"{fake.endpoint}/openai/v1/chat/completions", headers={"api-key": "wrong"}, json={})

    assert (answer.status_code, answer.json()["error"]["code"]) == (401, "401")
    assert fake.meter == []


async def test_authorization_can_be_a_function(fake: AzureOpenAI, client: AsyncOpenAI) -> None:
    fake.authorize = lambda headers: headers.get("authorization") == "Bearer minted"

    with pytest.raises(openai.AuthenticationError):
        await ask(client)
    assert await ask(client.with_options(api_key="minted"))


async def test_unknown_deployment_returns_404(fake: AzureOpenAI, client: AsyncOpenAI) -> None:
    fake.deployments = {"other": "gpt-4.1-2025-04-14"}

    with pytest.raises(openai.NotFoundError) as error:
        await ask(client)
    answer = await client.chat.completions.create(model="other", messages=HELLO)

    assert error.value.code == "DeploymentNotFound"
    assert answer.model == "gpt-4.1-2025-04-14"
    assert [model.id async for model in client.models.list()] == ["other"]


async def test_deployment_can_be_in_the_path(fake: AzureOpenAI) -> None:
    path = f"{fake.endpoint}/openai/deployments/chat/chat/completions"
    async with httpx.AsyncClient(headers={"api-key": "test-key"}, timeout=MAX_WAIT_S) as plain:
        answer = await plain.post(path + "?api-version=2024-10-21", json={"messages": HELLO})
        unversioned = await plain.post(path, json={"messages": HELLO})

    assert (answer.status_code, unversioned.status_code) == (200, 404)
    assert answer.headers["x-ms-region"] == "East US"
    assert fake.meter[0].deployment == "chat"


@pytest.mark.parametrize(
    ("options", "param", "code"),
    [
        ({"max_tokens": 5}, "max_tokens", "unsupported_parameter"),
        ({"temperature": 0.5}, "temperature", "unsupported_value"),
    ],
)
async def test_reasoning_deployment_rejects_parameters(options: Any, param: str, code: str) -> None:
    with AzureOpenAI(reasoning=frozenset({"chat"})) as fake:
        async with AsyncOpenAI(base_url=f"{fake.endpoint}/openai/v1/", api_key="test-key", max_retries=0) as client:
            with pytest.raises(openai.BadRequestError) as error:
                await ask(client, **options)
            assert await ask(client, max_completion_tokens=5, temperature=1)

    assert (error.value.param, error.value.code) == (param, code)


TOOL_CALL: Any = {
    "role": "assistant",
    "tool_calls": [{"id": "call_1", "type": "function", "function": {"name": "weather", "arguments": "{}"}}],
}


@pytest.mark.parametrize(
    ("messages", "message"),
    [
        ([], "empty array"),
        ([{"role": "boss", "content": "x"}], "Invalid value: 'boss'"),
        ([*HELLO, {"role": "tool", "tool_call_id": "call_1", "content": "x"}], "preceeding message with 'tool_calls'"),
        ([*HELLO, TOOL_CALL, *HELLO], "did not have response messages: call_1"),
        ([*HELLO, TOOL_CALL], "did not have response messages: call_1"),
        ([*HELLO, TOOL_CALL, {"role": "tool", "tool_call_id": "call_2", "content": "x"}], "preceeding message"),
    ],
)
async def test_invalid_conversation_returns_400(
    fake: AzureOpenAI, client: AsyncOpenAI, messages: Any, message: str
) -> None:
    with pytest.raises(openai.BadRequestError, match=message):
        await ask(client, messages)

    assert fake.meter == []


async def test_prompt_and_max_tokens_beyond_the_context_return_400(fake: AzureOpenAI, client: AsyncOpenAI) -> None:
    fake.context_tokens = 100

    assert await ask(client, max_completion_tokens=80)
    with pytest.raises(openai.BadRequestError) as error:
        await ask(client, max_completion_tokens=99)

    assert error.value.code == "context_length_exceeded"
    assert len(fake.meter) == 1


@pytest.mark.parametrize(
    ("status", "error"),
    [
        (401, openai.AuthenticationError),
        (403, openai.PermissionDeniedError),
        (404, openai.NotFoundError),
        (408, openai.APIStatusError),
        (409, openai.ConflictError),
        (429, openai.RateLimitError),
        (500, openai.InternalServerError),
        (502, openai.InternalServerError),
        (503, openai.InternalServerError),
        (504, openai.InternalServerError),
    ],
)
async def test_scripted_status_raises_the_sdks_error(
    fake: AzureOpenAI, client: AsyncOpenAI, status: int, error: type[openai.APIStatusError]
) -> None:
    fake.fault(status, retry_after=2, retry_after_ms=1500)

    with pytest.raises(error) as raised:
        await ask(client)
    await ask(client)

    assert raised.value.status_code == status
    assert raised.value.response.headers["retry-after"] == "2"
    assert raised.value.response.headers["retry-after-ms"] == "1500"
    assert [billed.outcome for billed in fake.meter] == ["ok"]


async def test_error_status_can_be_billed(fake: AzureOpenAI, client: AsyncOpenAI) -> None:
    fake.fault(504, billed=True, reply=Reply("lost"))

    with pytest.raises(openai.InternalServerError):
        await ask(client)

    assert [(billed.outcome, billed.completion_tokens) for billed in fake.meter] == [("504", 1)]


async def test_filtered_prompt_bills_prompt_tokens_only(fake: AzureOpenAI, client: AsyncOpenAI) -> None:
    fake.fault("content_filter")

    with pytest.raises(openai.BadRequestError) as error:
        await ask(client, stream=True)

    assert error.value.code == "content_filter"
    inner = error.value.body["innererror"]  # type: ignore[index]
    assert inner["code"] == "ResponsibleAIPolicyViolation"
    assert inner["content_filter_result"]["violence"] == {"filtered": True, "severity": "high"}
    (billed,) = fake.meter
    assert billed.prompt_tokens > 0
    assert (billed.completion_tokens, billed.outcome) == (0, "content_filter")


@pytest.mark.parametrize("billed", [False, True])
async def test_context_length_error_is_billed_as_scripted(fake: AzureOpenAI, client: AsyncOpenAI, billed: bool) -> None:
    fake.fault("context_length", billed=billed)

    with pytest.raises(openai.BadRequestError, match="maximum context length"):
        await ask(client)

    assert [entry.completion_tokens for entry in fake.meter] == [0] * billed


async def test_filtered_answer_is_partial(fake: AzureOpenAI, client: AsyncOpenAI) -> None:
    fake.fault("completion_filter", after=2)
    fake.fault("completion_filter", after=2)

    answer, chunks = await ask(client), await stream(client)

    assert (answer.choices[0].message.content, answer.choices[0].finish_reason) == ("echo:", "content_filter")
    assert answer.choices[0].content_filter_results["violence"]["filtered"] is True
    assert (text(chunks), chunks[-2].choices[0].finish_reason) == ("echo:", "content_filter")
    assert [billed.completion_tokens for billed in fake.meter] == [2, 2]


DISCONNECTS: list[tuple[Kind, type[Exception], str]] = [
    ("reset", httpx.ReadError, "echo: hell"),
    ("close", httpx.RemoteProtocolError, "echo: hell"),
    ("stall", httpx.ReadTimeout, "echo: hell"),
]


@pytest.mark.parametrize(("kind", "error", "text_before"), DISCONNECTS)
async def test_stream_breaks_after_the_scripted_number_of_chunks(
    fake: AzureOpenAI, kind: Kind, error: type[Exception], text_before: str
) -> None:
    fake.fault(kind, after=3)
    body = {"model": "chat", "messages": HELLO, "stream": True}
    received: list[bytes] = []
    async with (
        httpx.AsyncClient(headers={"api-key": "test-key"}, timeout=httpx.Timeout(MAX_WAIT_S, read=1)) as plain,
        plain.stream("POST", f"{fake.endpoint}/openai/v1/chat/completions", json=body) as answer,
    ):
        with pytest.raises(error):
            await collect(received, answer)

    events = [json.loads(event.removeprefix(b"data: ")) for event in b"".join(received).split(b"\n\n") if event]
    assert "".join(event["choices"][0]["delta"]["content"] for event in events[1:]) == text_before
    assert [(billed.outcome, billed.completion_tokens) for billed in fake.meter] == [
        (kind, len(pieces("echo: hello, wörld 🙂🙃")))
    ]


@pytest.mark.parametrize("kind", ["reset", "close"])
@pytest.mark.parametrize("streamed", [False, True])
async def test_lost_connection_raises_the_sdks_connection_error(
    fake: AzureOpenAI, client: AsyncOpenAI, kind: Kind, streamed: bool
) -> None:
    fake.fault(kind)
    fake.fault(kind, billed=False)

    for _ in range(2):
        with pytest.raises(openai.APIConnectionError):
            await ask(client, stream=streamed)

    assert [billed.outcome for billed in fake.meter] == [kind]


async def test_stall_before_the_first_byte_is_a_timeout(fake: AzureOpenAI, client: AsyncOpenAI) -> None:
    fake.fault("stall")

    with pytest.raises(openai.APITimeoutError):
        await ask(client.with_options(timeout=openai.Timeout(MAX_WAIT_S, read=0.3)))

    assert [billed.outcome for billed in fake.meter] == ["stall"]
    await fake.until(lambda: fake.busy == 0)


async def test_unbilled_fault_stays_unbilled_if_the_client_times_out(fake: AzureOpenAI, client: AsyncOpenAI) -> None:
    fake.fault(503, seconds=60)

    with pytest.raises(openai.APITimeoutError):
        await ask(client.with_options(timeout=openai.Timeout(MAX_WAIT_S, read=0.3)))
    await fake.until(lambda: fake.requests and fake.busy == 0)

    assert fake.meter == []


async def test_slow_first_byte_only_delays_the_answer(fake: AzureOpenAI, client: AsyncOpenAI) -> None:
    fake.fault("slow", seconds=0.2)
    started = asyncio.get_running_loop().time()

    assert text(await stream(client))
    assert asyncio.get_running_loop().time() - started >= 0.2
    assert fake.meter[0].outcome == "ok"


@pytest.mark.parametrize("kind", ["truncated", "malformed", "error_event"])
async def test_stream_can_end_truncated_malformed_or_with_an_error_event(
    fake: AzureOpenAI, client: AsyncOpenAI, kind: Kind
) -> None:
    fake.fault(kind, after=2)
    chunks: list[ChatCompletionChunk] = []

    if kind == "truncated":
        await read(chunks, client)
    else:
        with pytest.raises(json.JSONDecodeError if kind == "malformed" else openai.APIError):
            await read(chunks, client)

    assert text(chunks) == "echo:"
    assert all(chunk.choices[0].finish_reason is None for chunk in chunks[1:])
    assert [billed.outcome for billed in fake.meter] == [kind]


async def test_usage_can_be_missing(fake: AzureOpenAI, client: AsyncOpenAI) -> None:
    fake.fault("no_usage")
    fake.fault("no_usage")

    chunks, answer = await stream(client), await ask(client)

    assert (chunks[-1].choices[0].finish_reason, chunks[-1].usage) == ("stop", None)
    assert answer.usage is None
    assert len(fake.meter) == 2


async def test_client_that_disconnects_is_billed_for_the_whole_answer(fake: AzureOpenAI, client: AsyncOpenAI) -> None:
    fake.reply("one two three")
    with fake.hold(after=1) as hold:
        answer = await ask(client, stream=True)
        await hold.until_reached()
        await answer.close()
        await fake.until(lambda: fake.meter)

    assert [(billed.outcome, billed.completion_tokens) for billed in fake.meter] == [("hang_up", 4)]


async def test_held_stream_waits_after_the_given_number_of_chunks(fake: AzureOpenAI, client: AsyncOpenAI) -> None:
    chunks: list[ChatCompletionChunk] = []
    with fake.hold(after=2) as hold:
        turn = asyncio.create_task(read(chunks, client))
        await hold.until_reached()
        await fake.until(lambda: text(chunks) == "echo:")
        assert (fake.busy, fake.meter, turn.done()) == (1, [], False)

    await turn
    await fake.until(lambda: fake.busy == 0)
    assert text(chunks) == "echo: hello, wörld 🙂🙃"
    assert len(fake.meter) == 1


async def test_held_json_answer_waits_before_the_first_byte(fake: AzureOpenAI, client: AsyncOpenAI) -> None:
    with fake.hold() as hold:
        turn = asyncio.create_task(ask(client))
        await hold.until_reached()
        assert (fake.busy, fake.meter, turn.done()) == (1, [], False)

    assert (await turn).choices[0].finish_reason == "stop"


async def test_fake_refuses_connections_while_stopped_and_serves_after_restart(
    fake: AzureOpenAI, client: AsyncOpenAI
) -> None:
    hold = fake.hold()
    turn = asyncio.create_task(ask(client))
    await hold.until_reached()
    fake.stop()

    with pytest.raises(openai.APIConnectionError):
        await turn
    with pytest.raises(openai.APIConnectionError) as refused:
        await ask(client)
    fake.start()

    assert "ConnectError" in repr(refused.value.__cause__)
    assert await ask(client)
    assert [billed.outcome for billed in fake.meter] == ["stopped", "ok"]


async def test_responder_chooses_the_answer_by_request(fake: AzureOpenAI, client: AsyncOpenAI) -> None:
    def responder(request: Request) -> Reply | Fault:
        return Fault("status", 503) if request.headers["x-ms-client-request-id"] == "1" else Reply("fine")

    fake.responder = responder

    outcomes = await asyncio.gather(
        *(ask(client, extra_headers={"x-ms-client-request-id": str(call)}) for call in range(20)),
        return_exceptions=True,
    )

    assert [isinstance(outcome, openai.InternalServerError) for outcome in outcomes].count(True) == 1
    assert {billed.call_id for billed in fake.meter} == {str(call) for call in range(20) if call != 1}
    assert [request.body["messages"] for request in fake.requests] == [HELLO] * 20
