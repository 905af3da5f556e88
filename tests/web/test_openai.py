"""The OpenAI and Azure OpenAI compatible routes, called by OpenAI's SDK: forwarded unchanged, metered, charged once."""

import asyncio
import gzip
import re
from collections.abc import AsyncIterator, Callable
from decimal import Decimal
from functools import partial
from typing import Any
from urllib.parse import urlsplit

import httpx
import openai
import pytest
from openai import AsyncAzureOpenAI, AsyncOpenAI, AzureOpenAI, OpenAI

from local.keys import line, new_key
from shared.domain.calls import State
from tests.conftest import Serve, Tables
from tests.support.azure_openai import AzureOpenAI as Fake
from tests.support.azure_openai import Fault, Reply, Script
from tests.support.azure_openai import Request as UpstreamRequest
from tests.support.chat_client import (
    answer,
    call_log_lines,
    closed_ledger,
    exact,
    ok_json,
    reference,
    send_message,
    stored,
)
from tests.support.conservation import assert_conserved
from tests.support.proxy import Answer, Match, TcpProxy

ANN, BOB = new_key(), new_key()
HELLO: list[Any] = [{"role": "user", "content": "hi"}]
ROUTE = "/openai/v1/chat/completions"
TOOL: Any = {"type": "function", "function": {"name": "look", "parameters": {"type": "object", "properties": {}}}}


@pytest.fixture
def environ(environ: dict[str, str]) -> dict[str, str]:
    return environ | {
        "CLIENT_KEYS": f"{line('ann', ANN)},{line('bob', BOB)}",
        "AZURE_OPENAI_DEPLOYMENTS": "chat=gpt-5.4-mini, another=gpt-5.4-mini",
        "PRICES": environ["PRICES"].replace("}}", '}, "another": {"input": 1, "output": 5}}'),
    }


@pytest.fixture
async def api(serve: Serve, environ: dict[str, str]) -> AsyncIterator[httpx.AsyncClient]:
    async with serve(environ) as client:
        del client.headers["x-functions-key"]
        client.headers["api-key"] = ANN
        yield client


@pytest.fixture
async def sdk(api: httpx.AsyncClient) -> AsyncIterator[AsyncOpenAI]:
    async with AsyncOpenAI(base_url=base(api), api_key=ANN, max_retries=0) as client:
        yield client


def root(api: httpx.AsyncClient) -> str:
    return str(api.base_url).rstrip("/")


def base(api: httpx.AsyncClient) -> str:
    return f"{root(api)}/openai/v1"


async def post(api: httpx.AsyncClient, headers: dict[str, str] | None = None, **body: Any) -> httpx.Response:
    return await api.post(ROUTE, json={"model": "chat", "messages": HELLO, **body}, headers=headers or {})


def error(response: httpx.Response, status: int) -> dict[str, Any]:
    assert response.status_code == status, response.text
    body: dict[str, Any] = response.json()["error"]
    assert body.keys() >= {"message", "type", "param", "code"}
    return body


def data(response: httpx.Response) -> list[str]:
    """The data of each event of a stream."""
    assert response.headers["content-type"].startswith("text/event-stream")
    return [part.removeprefix("data: ") for part in response.text.split("\n\n") if part]


# Requests and answers are forwarded unchanged


async def test_request_and_answer_are_forwarded_unchanged(api: httpx.AsyncClient, fake: Fake, tables: Tables) -> None:
    sent = {
        "model": "chat",
        "messages": [{"role": "developer", "content": "Be odd."}, {"role": "user", "content": "hi", "name": "ann"}],
        "temperature": 0.123456789,
        "user": "u-1",
        "metadata": {"a": "b"},
        "unknown_field": [None, 1e-7, "ü"],
    }

    response = await api.post(ROUTE, json=sent)

    (request,) = fake.requests
    assert request.body == sent
    assert not request.streamed
    completion = ok_json(response)
    assert completion["choices"][0]["message"]["content"] == "echo: hi"
    assert completion["choices"][0]["content_filter_results"]
    assert completion["prompt_filter_results"]
    [entry] = await assert_conserved(tables, fake)
    assert (entry.session_id, entry.turn, entry.caller) == (None, 0, "key:ann")
    assert entry.call.usage
    assert entry.call.usage.total_tokens == completion["usage"]["total_tokens"]


@pytest.mark.parametrize("include_usage", [True, False, None])
async def test_stream_chunks_are_forwarded_unchanged_and_usage_only_if_requested(
    api: httpx.AsyncClient, fake: Fake, tables: Tables, include_usage: bool | None
) -> None:
    options: dict[str, Any] = (
        {}
        if include_usage is None
        else {"stream_options": {"include_usage": include_usage, "include_obfuscation": False}}
    )

    *chunks, last = data(await post(api, stream=True, **options))

    assert last == "[DONE]"
    parsed = [exact(chunk) for chunk in chunks]
    assert parsed[0]["choices"] == []  # Azure's filter results of the prompt
    text = "".join(chunk["choices"][0]["delta"].get("content") or "" for chunk in parsed if chunk["choices"])
    assert text == "echo: hi"
    assert bool(parsed[-1].get("usage")) is bool(include_usage)
    (request,) = fake.requests
    assert request.body["stream_options"] == options.get("stream_options", {}) | {"include_usage": True}
    assert (await closed_ledger(tables))[0].call.state is State.SETTLED
    await assert_conserved(tables, fake)


async def test_stream_delivers_deltas_before_the_model_finishes(sdk: AsyncOpenAI, fake: Fake) -> None:
    with fake.hold(after=2) as hold:
        stream = await sdk.chat.completions.create(model="chat", messages=HELLO, stream=True)
        words = []
        async for chunk in stream:
            words += [choice.delta.content for choice in chunk.choices if choice.delta.content]
            if len(words) == 2:
                await asyncio.to_thread(hold.wait)
                hold.release()

    assert "".join(words) == "echo: hi"


async def test_response_includes_the_services_request_id_header_but_not_its_region(api: httpx.AsyncClient) -> None:
    for streamed in (False, True):
        headers = (await post(api, stream=streamed)).headers

        assert headers["apim-request-id"]
        assert "x-ms-region" not in headers


@pytest.mark.parametrize("session", [{}, {"x-session-id": "s", "idempotency-key": "k"}])
async def test_known_cost_of_an_answer_is_in_a_header(
    serve: Serve, environ: dict[str, str], fake: Fake, tables: Tables, session: dict[str, str]
) -> None:
    prices = '{"chat": {"input": 0.000003, "output": 0.000001}}'  # an exponent in Decimal's own form
    deployments = {"AZURE_OPENAI_DEPLOYMENTS": "chat=gpt-5.4-mini, another=unknown"}
    async with serve(environ | deployments | {"PRICES": prices}) as api:
        headers = {"authorization": f"Bearer {ANN}", **session}
        first, again = [await post(api, headers) for _ in range(2)]
        streamed = await post(api, {**headers, "idempotency-key": "another"}, stream=True)
        fake.responder = lambda _: Reply("fine", model="unknown")
        unpriced = await post(api, {**headers, "idempotency-key": "third"}, model="another")
    costs = [entry.call.cost for entry in await closed_ledger(tables) if entry.call.deployment == "chat"]
    assert re.fullmatch(r"0\.0+[1-9]\d*", first.headers["x-cost-usd"])
    assert Decimal(first.headers["x-cost-usd"]) in costs
    assert ("x-cost-usd" in again.headers) is not bool(session)  # a replay costs nothing
    assert unpriced.status_code == 200
    assert [r.headers.get("x-cost-usd") for r in (streamed, unpriced)] == [None, None]


async def test_deployment_in_the_path_wins_over_the_model_in_the_body(
    api: httpx.AsyncClient, fake: Fake, tables: Tables
) -> None:
    client = AsyncAzureOpenAI(azure_endpoint=root(api), api_key=ANN, api_version="2025-04-01-preview")
    async with client:
        completion = await client.chat.completions.create(model="another", messages=HELLO)
        for model in ("chat", ""):
            body = {"model": model, "messages": HELLO}
            await api.post("/openai/deployments/another/chat/completions?api-version=2024-10-21", json=body)

    assert completion.choices[0].message.content == "echo: hi"
    assert [request.body["model"] for request in fake.requests] == ["another"] * 3
    assert [entry.call.deployment for entry in await closed_ledger(tables)] == ["another"] * 3


@pytest.mark.parametrize("kind", ["OpenAI", "AzureOpenAI"])
async def test_synchronous_sdk_works(api: httpx.AsyncClient, kind: str) -> None:
    def complete() -> list[str | None]:
        options: dict[str, Any] = {"api_key": ANN, "max_retries": 0}
        with (
            OpenAI(base_url=base(api), **options)
            if kind == "OpenAI"
            else AzureOpenAI(azure_endpoint=root(api), api_version="2024-10-21", **options)
        ) as client:
            whole = client.chat.completions.create(model="chat", messages=HELLO)
            pieces = client.chat.completions.create(model="chat", messages=HELLO, stream=True)
            text = "".join(c.choices[0].delta.content or "" for c in pieces if c.choices)
            return [whole.choices[0].message.content, text]

    assert await asyncio.to_thread(complete) == ["echo: hi", "echo: hi"]


async def test_tool_calls_and_several_choices_are_forwarded(sdk: AsyncOpenAI, fake: Fake, tables: Tables) -> None:
    fake.reply(tool_calls=(("call_1", "look", "{}"), ("call_2", "look", '{"a": 1}')))
    completion = await sdk.chat.completions.create(model="chat", messages=HELLO, tools=[TOOL])

    assert [call.id for call in completion.choices[0].message.tool_calls or []] == ["call_1", "call_2"]
    several = await sdk.chat.completions.create(model="chat", messages=HELLO, n=3)
    assert [choice.index for choice in several.choices] == [0, 1, 2]
    stream = await sdk.chat.completions.create(model="chat", messages=HELLO, n=3, stream=True)
    assert {choice.index async for chunk in stream for choice in chunk.choices} == {0, 1, 2}
    await assert_conserved(tables, fake)


# Worst case


async def worst_case(tables: Tables, call: Callable[[], Any]) -> Decimal:
    await call()
    *_, entry = sorted(await closed_ledger(tables), key=lambda entry: entry.call.deadline)
    assert entry.call.worst_case is not None
    return entry.call.worst_case


async def test_worst_case_counts_every_choice_and_the_max_output_tokens(api: httpx.AsyncClient, tables: Tables) -> None:
    one = await worst_case(tables, partial(post, api, max_tokens=1_000))
    three = await worst_case(tables, partial(post, api, max_completion_tokens=1_000, n=3))
    unlimited = await worst_case(tables, partial(post, api))
    absurd = await worst_case(tables, partial(post, api, max_tokens=10**18))

    thousand = Decimal("4.5") / 1_000
    assert thousand < one < thousand * 2
    assert thousand * 3 < three < thousand * 4
    assert thousand * 128 < unlimited < thousand * 129
    assert thousand * 128 < absurd < thousand * 129


@pytest.mark.parametrize(
    "content",
    [
        [{"type": "text", "text": "ü" * 500}],
        [{"type": "image_url", "image_url": {"url": "https://example.com/a.png"}}],
        [{"type": "file", "file": {"file_data": "data:application/pdf;base64," + "A" * 900}}],
    ],
    ids=["text", "image", "file"],
)
async def test_worst_case_counts_every_kind_of_content(
    api: httpx.AsyncClient, tables: Tables, content: list[Any]
) -> None:
    plain = await worst_case(tables, partial(post, api, max_tokens=1))
    more = await worst_case(tables, partial(post, api, max_tokens=1, messages=[{"role": "user", "content": content}]))

    assert more > plain


@pytest.mark.parametrize(
    "body",
    [
        {"messages": [{"role": "user", "content": [{"type": "input_audio", "input_audio": {"data": "AAAA"}}]}]},
        {"messages": [*HELLO, {"role": "assistant", "audio": {"id": "audio_1"}}, *HELLO]},
        {"messages": HELLO, "modalities": ["text", "audio"]},
    ],
    ids=["prompt", "earlier answer", "answer"],
)
async def test_audio_without_a_known_rate_has_no_worst_case(
    api: httpx.AsyncClient, tables: Tables, body: dict[str, Any]
) -> None:
    await post(api, **body)
    [entry] = await closed_ledger(tables)
    assert entry.call.worst_case is None


async def test_message_without_audio_has_a_worst_case(api: httpx.AsyncClient, tables: Tables) -> None:
    await post(api, messages=[*HELLO, {"role": "assistant", "content": "x", "audio": None}, *HELLO])
    [entry] = await closed_ledger(tables)
    assert entry.call.worst_case is not None


# Errors


async def test_service_error_keeps_its_status_message_and_retry_after(
    api: httpx.AsyncClient, sdk: AsyncOpenAI, fake: Fake, tables: Tables
) -> None:
    fake.fault("content_filter")
    with pytest.raises(openai.BadRequestError) as filtered:
        await sdk.chat.completions.create(model="chat", messages=HELLO)

    assert filtered.value.code == "content_filter"
    assert "innererror" in str(filtered.value.body)
    assert [entry.call.state for entry in await closed_ledger(tables)] == [State.UNACCOUNTED]
    for streamed in (False, True):
        fake.fault(429, retry_after=7, message="Slow down.")
        limited = await post(api, stream=streamed)
        assert (limited.status_code, limited.headers["retry-after"]) == (429, "7")
        assert limited.json()["error"]["message"] == "Slow down."
    await assert_conserved(tables, fake)


@pytest.mark.parametrize("body", [b"<html>", b'{"statusCode": 429, "message": "Too fast."}', b'{"error": "Too fast."}'])
@pytest.mark.parametrize(
    ("status", "kind"),
    [(429, "rate_limit_error"), (404, "invalid_request_error"), (413, "invalid_request_error"), (503, "server_error")],
)
async def test_gateway_error_is_returned_in_openai_format(
    serve: Serve, environ: dict[str, str], fake: Fake, body: bytes, status: int, kind: str
) -> None:
    headers = (("retry-after", "7"), ("x-ratelimit-remaining-tokens", "0"))
    with TcpProxy(urlsplit(fake.endpoint).port or 0) as gateway:
        gateway.on(Match("POST", "/"), Answer(status, body, headers), times=None)
        async with serve(environ | {"AZURE_OPENAI_ENDPOINT": gateway.endpoint}) as api:
            refused = await post(api, {"api-key": ANN})

    assert error(refused, status)["type"] == kind
    assert refused.headers.items() >= dict(headers).items()


@pytest.mark.parametrize(
    ("fault", "raised"),
    [
        (Fault("status", 400, message="No."), openai.BadRequestError),
        (Fault("status", 404), openai.NotFoundError),
        (Fault("status", 409), openai.ConflictError),
        (Fault("status", 429), openai.RateLimitError),
        (Fault("status", 401), openai.InternalServerError),  # this app's credentials, not the caller's
        (Fault("status", 500), openai.InternalServerError),
        (Fault("status", 503), openai.InternalServerError),
        (Fault("status", 502), openai.InternalServerError),
        (Fault("reset"), openai.InternalServerError),
        (Fault("close", after=1), openai.InternalServerError),
        (Fault("malformed"), openai.InternalServerError),
        (Fault("context_length"), openai.BadRequestError),
    ],
    ids=lambda value: getattr(value, "outcome", getattr(value, "__name__", "")),
)
async def test_each_failure_raises_the_matching_sdk_exception(
    sdk: AsyncOpenAI, fake: Fake, tables: Tables, fault: Fault, raised: type[openai.APIStatusError]
) -> None:
    fake.responder = lambda _: fault

    with pytest.raises(raised):
        await sdk.chat.completions.create(model="chat", messages=HELLO)

    await assert_conserved(tables, fake)


async def test_interrupted_stream_ends_with_an_error(sdk: AsyncOpenAI, fake: Fake, tables: Tables) -> None:
    fake.fault("reset", after=2)
    words: list[str] = []

    async def read() -> None:
        async for chunk in await sdk.chat.completions.create(model="chat", messages=HELLO, stream=True):
            words.extend(choice.delta.content for choice in chunk.choices if choice.delta.content)

    with pytest.raises(openai.APIError, match="broke off"):
        await read()

    assert words == ["echo", ":"]
    assert [entry.call.state for entry in await closed_ledger(tables)] == [State.UNACCOUNTED]
    await assert_conserved(tables, fake)


async def test_each_retry_of_the_sdk_is_a_separate_call(api: httpx.AsyncClient, fake: Fake, tables: Tables) -> None:
    for _ in range(2):
        fake.fault(429, retry_after_ms=1)
    async with AsyncOpenAI(base_url=base(api), api_key=ANN, max_retries=2) as client:
        await client.chat.completions.create(model="chat", messages=HELLO)

    assert sorted(entry.call.state for entry in await closed_ledger(tables)) == ["failed", "failed", "settled"]


@pytest.mark.parametrize(
    ("body", "param"),
    [
        ({"messages": []}, "messages"),
        ({"messages": "hi"}, "messages"),
        ({"messages": [{"content": "hi"}]}, "messages[0].role"),
        ({"messages": [{"role": "user", "content": 5}]}, "messages[0].content"),
        ({"messages": HELLO, "service_tier": "priority"}, "service_tier"),
        ({"messages": HELLO, "web_search_options": {"search_context_size": "low"}}, "web_search_options"),
        ({"messages": HELLO, "web_search_options": {}}, "web_search_options"),
        ({"messages": HELLO, "search_parameters": {"mode": "on"}}, "search_parameters"),
        ({"messages": HELLO, "tools": [TOOL, {"type": "web_search"}]}, "tools[1].type"),
        ({"messages": HELLO * 2_049}, "messages"),
        ({"messages": [{"role": "tool", "content": "x", "tool_call_id": ["a"]}]}, "messages[0].tool_call_id"),
        ({"messages": HELLO, "n": 0}, "n"),
        ({"messages": HELLO, "max_tokens": "many"}, "max_tokens"),
        ({"messages": HELLO, "stream": "yes"}, "stream"),
        ({"messages": HELLO, "model": None}, "model"),
        ({"messages": HELLO, "model": ""}, "model"),
        ({}, "messages"),
    ],
)
async def test_request_that_cannot_be_metered_returns_400_and_costs_nothing(
    api: httpx.AsyncClient, fake: Fake, body: dict[str, Any], param: str
) -> None:
    problem = error(await api.post(ROUTE, json={"model": "chat", **body}), 400)

    assert problem["type"] == "invalid_request_error"
    assert problem["param"] == param
    assert not fake.requests


async def test_unknown_model_returns_404_and_lists_the_deployments(api: httpx.AsyncClient) -> None:
    problem = error(await post(api, model="gpt-9"), 404)

    assert (problem["code"], problem["param"]) == ("model_not_found", "model")
    assert "another, chat" in problem["message"]


async def test_invalid_json_returns_400_and_other_content_type_415(api: httpx.AsyncClient) -> None:
    error(await api.post(ROUTE, content=b"{", headers={"content-type": "application/json"}), 400)
    error(await api.post(ROUTE, content=b"{}", headers={"content-type": "text/plain"}), 415)


@pytest.mark.parametrize("route", [ROUTE, "/openai/deployments/chat/chat/completions"])
async def test_compressed_body_returns_415_that_names_content_encoding(api: httpx.AsyncClient, route: str) -> None:
    headers = {"content-type": "application/json", "content-encoding": "gzip"}

    problem = error(await api.post(route, content=gzip.compress(b"{}"), headers=headers), 415)

    assert (problem["code"], problem["param"]) == ("unsupported_media_type", "Content-Encoding")
    assert "Content-Encoding" in problem["message"]


async def test_body_above_max_request_bytes_returns_413_after_the_key_is_checked(
    serve: Serve, environ: dict[str, str]
) -> None:
    large = {"model": "chat", "messages": [{"role": "user", "content": "x" * 300_000}]}
    async with serve(environ | {"MAX_REQUEST_BYTES": "400000"}) as api:
        with_key = {"api-key": ANN}
        assert (await api.post(ROUTE, json=large, headers=with_key)).status_code == 200
        larger = large | {"user": "y" * 200_000}
        error(await api.post(ROUTE, json=larger, headers=with_key), 413)
        error(await api.post(ROUTE, json=larger, headers={"api-key": "wrong"}), 401)


# Timeouts, disconnects and conservation of costs


async def test_request_without_streaming_has_only_the_turn_timeout(
    serve: Serve, environ: dict[str, str], fake: Fake, tables: Tables
) -> None:
    fake.chunk_delay = 0.2
    fake.responder = lambda _: Reply("one two three four")
    short_timeouts = {"AZURE_OPENAI_TIMEOUT_SECONDS": "0.4", "TURN_TIMEOUT_SECONDS": "5"}
    async with serve(environ | short_timeouts) as api:
        api.headers["api-key"] = ANN
        slow = await post(api)
        fake.responder = lambda _: Reply("word " * 300)
        too_slow = await post(api)

    assert slow.status_code == 200
    assert error(too_slow, 504)["code"] == "upstream_timeout"
    assert [entry.call.state for entry in await closed_ledger(tables)].count(State.UNACCOUNTED) == 1


async def test_seconds_to_first_token_is_logged_for_streams_only(
    api: httpx.AsyncClient, caplog: pytest.LogCaptureFixture
) -> None:
    caplog.set_level("INFO", "shared.telemetry.call_log")
    for streamed in (False, True):
        await post(api, stream=streamed)

    whole, pieces = call_log_lines(caplog)
    assert whole["seconds"] > 0
    assert whole["seconds_to_first_token"] is None
    assert 0 < pieces["seconds_to_first_token"] <= pieces["seconds"]


async def test_call_is_settled_after_the_client_disconnects(api: httpx.AsyncClient, fake: Fake, tables: Tables) -> None:
    with fake.hold(after=1):
        async with api.stream("POST", ROUTE, json={"model": "chat", "messages": HELLO, "stream": True}) as response:
            await anext(response.aiter_bytes())

    assert [entry.call.state for entry in await closed_ledger(tables)] == [State.SETTLED]
    await assert_conserved(tables, fake)


async def test_costs_are_conserved_for_every_kind_of_failure(
    api: httpx.AsyncClient, fake: Fake, tables: Tables
) -> None:
    """Every kind of failure, with and without streaming, with and without a session, all concurrently."""
    kinds: list[Script] = [
        Reply("fine"),
        *(Fault("status", status) for status in (400, 429, 500, 502, 504)),
        *(Fault(kind, after=after) for kind in ("reset", "close") for after in (None, 1)),
        *(Fault(kind) for kind in ("truncated", "no_usage", "malformed", "error_event", "content_filter")),
    ]

    def respond(request: UpstreamRequest) -> Script:
        return kinds[int(request.body["messages"][-1]["content"])]

    fake.responder = respond
    requests = []
    for index in range(len(kinds)):
        for streamed in (False, True):
            for session in (None, f"s{index}-{streamed}"):
                headers = {"x-session-id": session} if session else {}
                requests.append(post(api, headers, messages=[{"role": "user", "content": str(index)}], stream=streamed))

    responses = await asyncio.gather(*requests)

    assert sum(response.status_code == 200 for response in responses) >= 4
    assert not [response.text for response in responses if "internal_error" in response.text]
    await assert_conserved(tables, fake)


# Turns of a session (X-Session-Id)


async def test_request_with_session_id_stores_a_turn_with_the_new_messages(
    api: httpx.AsyncClient, fake: Fake, tables: Tables
) -> None:
    system: list[Any] = [{"role": "system", "content": "Be brief."}]
    history = [*system, *HELLO]
    first = ok_json(await post(api, {"x-session-id": "s"}, messages=history))
    history += [first["choices"][0]["message"], {"role": "user", "content": "and more"}]
    await post(api, {"x-session-id": "s"}, messages=history, stream=True)

    session, turns = await stored(tables)
    assert (session.system, session.owner, session.turns) == ("Be brief.", "key:ann", 2)
    assert [[message["content"] for message in turn.messages] for turn in turns] == [
        ["hi", "echo: hi"],
        ["and more", "echo: and more"],
    ]
    await assert_conserved(tables, fake)


async def test_session_can_continue_on_either_route(serve: Serve, environ: dict[str, str], fake: Fake) -> None:
    async with serve(environ) as api:
        api.headers["api-key"] = ANN
        await post(api, {"x-session-id": "s"}, messages=[{"role": "system", "content": "Be brief."}, *HELLO])
        second = await answer(api, "again")
        await post(api, {"x-session-id": "s"}, messages=[{"role": "user", "content": "and again"}])
        fourth = await answer(api, "at last")

    assert (second["turn"], fourth["turn"]) == (2, 4)
    contents = [message["content"] for message in fake.requests[-1].body["messages"]]
    assert contents == [
        "Be brief.",
        *("hi", "echo: hi", "again", "echo: again", "and again", "echo: and again"),
        "at last",
    ]


async def test_session_with_an_owner_is_404_for_other_callers(
    serve: Serve, environ: dict[str, str], tables: Tables
) -> None:
    async with serve(environ) as api:
        ann, bob = {"api-key": ANN}, {"authorization": f"Bearer {BOB}"}
        assert (await api.post("/api/chat", json={"message": "hi", "session_id": "s"}, headers=ann)).status_code == 200
        for method, path in [
            ("GET", "/api/sessions/s"),
            ("GET", "/api/sessions/s/messages"),
            ("DELETE", "/api/sessions/s/messages"),
            ("DELETE", "/api/sessions/s"),
        ]:
            for other_caller in (bob, {}):
                assert (await api.request(method, path, headers=other_caller)).status_code == 404
        chat = {"message": "hi", "session_id": "s"}
        assert (await api.post("/api/chat", json=chat, headers=bob)).status_code == 404
        assert (await post(api, bob | {"x-session-id": "s"})).status_code == 404
        wrong = {"api-key": "unknown-key"}
        assert (await api.get("/api/sessions/s", headers=wrong)).status_code == 401
        assert (await api.post("/api/chat", json=chat, headers=wrong)).status_code == 401
        for method, path in [("GET", "s/messages?limit=x"), ("DELETE", "-/messages"), ("DELETE", "-"), ("GET", "-")]:
            assert (await api.request(method, f"/api/sessions/{path}", headers=wrong)).status_code == 401
        assert (await api.get("/api/sessions/s", headers=ann)).json()["turns"] == 1
        # A session without an owner is open to every caller that knows its ID; its ledger rows name the caller.
        await send_message(api, "hi", "open")
        assert (await api.post("/api/chat", json=chat | {"session_id": "open"}, headers=bob)).status_code == 200

    callers = {(entry.session, entry.turn): entry.caller for entry in await closed_ledger(tables)}
    s, is_open = await reference(tables, "s"), await reference(tables, "open")
    assert callers == {(s, 1): "key:ann", (is_open, 1): None, (is_open, 2): "key:bob"}
    assert (await stored(tables, "open"))[0].owner is None


async def test_system_prompt_too_large_to_store_returns_413_before_the_model_is_called(
    api: httpx.AsyncClient, fake: Fake
) -> None:
    system = {"role": "system", "content": "x" * 600_000}

    problem = error(await post(api, {"x-session-id": "s"}, messages=[system, *HELLO]), 413)

    assert "system prompt" in problem["message"]
    assert not fake.requests


async def test_deeply_nested_message_returns_400(api: httpx.AsyncClient, fake: Fake) -> None:
    nested: Any = "x"
    for _ in range(248):
        nested = {"a": nested}

    error(await post(api, {"x-session-id": "s"}, messages=[*HELLO, {**HELLO[0], "x": nested}]), 400)
    assert not fake.requests


async def test_busy_session_returns_409_with_retry_after(api: httpx.AsyncClient, fake: Fake, sdk: AsyncOpenAI) -> None:
    with fake.hold(after=0) as hold:
        first = asyncio.create_task(post(api, {"x-session-id": "s"}))
        await hold.until_reached()
        with pytest.raises(openai.ConflictError) as busy:
            await sdk.chat.completions.create(model="chat", messages=HELLO, extra_headers={"X-Session-Id": "s"})

    assert busy.value.code == "session_busy"
    assert busy.value.response.headers["retry-after"]
    assert (await first).status_code == 200


@pytest.mark.parametrize("streamed", [False, True])
async def test_idempotency_key_replays_the_first_answer(
    sdk: AsyncOpenAI, api: httpx.AsyncClient, fake: Fake, tables: Tables, streamed: bool
) -> None:
    fake.reply("one two", tool_calls=(("call_1", "look", "{}"),))
    headers = {"X-Session-Id": "s", "Idempotency-Key": "k1"}
    first = await post(api, headers, tools=[TOOL])

    replayed = await post(api, headers, tools=[TOOL], stream=streamed, stream_options={"include_usage": True})

    assert replayed.headers["idempotent-replayed"] == "true"
    original = ok_json(first)["choices"][0]
    if streamed:
        chunk, usage = [exact(part) for part in data(replayed)[:-1]]
        assert chunk["object"] == "chat.completion.chunk"
        assert chunk["choices"][0]["delta"]["content"] == "one two"
        assert chunk["choices"][0]["delta"]["tool_calls"][0]["index"] == 0
        assert usage["usage"]["total_tokens"] == ok_json(first)["usage"]["total_tokens"]
        parsed = await sdk.chat.completions.create(
            model="chat", messages=HELLO, tools=[TOOL], stream=True, extra_headers=headers
        )
        assert [part.choices[0].finish_reason async for part in parsed] == [original["finish_reason"]]
    else:
        choice = ok_json(replayed)["choices"][0]
        assert choice["message"]["tool_calls"] == original["message"]["tool_calls"]
        assert choice["finish_reason"] == original["finish_reason"]
    assert len(fake.requests) == 1
    assert error(await post(api, headers), 422)["code"] == "idempotency_mismatch"
    await assert_conserved(tables, fake)


async def test_idempotency_key_without_session_is_ignored(api: httpx.AsyncClient, fake: Fake) -> None:
    for _ in range(2):
        assert (await post(api, {"Idempotency-Key": "k"})).status_code == 200

    assert len(fake.requests) == 2


@pytest.mark.parametrize(
    ("session", "body", "param"),
    [
        ("s", {"n": 2}, "n"),
        ("../s", {}, "X-Session-Id"),
        ("", {}, "X-Session-Id"),
        (f"conv_{'0a' * 16}", {}, "X-Session-Id"),
    ],
)
async def test_turn_with_several_choices_or_invalid_session_id_returns_400(
    api: httpx.AsyncClient, fake: Fake, session: str, body: dict[str, Any], param: str
) -> None:
    assert error(await post(api, {"X-Session-Id": session}, **body), 400)["param"] == param
    assert not fake.requests


# Authentication


async def test_missing_or_invalid_key_returns_401(api: httpx.AsyncClient, sdk: AsyncOpenAI) -> None:
    del api.headers["api-key"]
    for headers in ({}, {"api-key": "wrong"}, {"authorization": "Bearer wrong"}):
        problem = error(await post(api, headers), 401)
        assert problem["type"] == "authentication_error"
        assert (await api.get("/openai/v1/models", headers=headers)).status_code == 401
    with pytest.raises(openai.AuthenticationError):
        await sdk.with_options(api_key="wrong").models.list()


async def test_401_names_client_keys_if_none_is_configured(serve: Serve, environ: dict[str, str]) -> None:
    async with serve(environ | {"CLIENT_KEYS": ""}) as api:
        assert "CLIENT_KEYS" in error(await post(api, {"api-key": ANN}), 401)["message"]


async def test_keys_are_never_logged(api: httpx.AsyncClient, fake: Fake, caplog: pytest.LogCaptureFixture) -> None:
    caplog.set_level("DEBUG", "shared")
    fake.fault(500)
    await post(api)
    await post(api, {"api-key": "wrong-key-of-the-tests"})

    assert "answered 500" in caplog.text
    assert ANN not in caplog.text
    assert "wrong-key-of-the-tests" not in caplog.text
