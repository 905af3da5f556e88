"""OpenAI's and Azure OpenAI's own wire format, spoken by OpenAI's SDK: as it was sent, metered, and once paid for."""

import asyncio
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
from tests.support.azure_openai import Request as Asked
from tests.support.conservation import assert_conserved
from tests.support.proxy import Answer, Match, TcpProxy
from tests.support.talking import answer, answered, closed_ledger, exact, lines, say, stored

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
    told: dict[str, Any] = response.json()["error"]
    assert told.keys() >= {"message", "type", "param", "code"}
    return told


def data(response: httpx.Response) -> list[str]:
    """What a stream's events hold."""
    assert response.headers["content-type"].startswith("text/event-stream")
    return [part.removeprefix("data: ") for part in response.text.split("\n\n") if part]


# As it was sent, as it came


async def test_a_request_goes_on_and_its_answer_comes_back_as_they_are(
    api: httpx.AsyncClient, fake: Fake, tables: Tables
) -> None:
    sent = {
        "model": "chat",
        "messages": [{"role": "developer", "content": "Be odd."}, {"role": "user", "content": "hi", "name": "ann"}],
        "temperature": 0.123456789,
        "user": "someone",
        "metadata": {"a": "b"},
        "unheard_of": [None, 1e-7, "ü"],
    }

    got = await api.post(ROUTE, json=sent)

    (asked,) = fake.requests
    assert asked.body == sent
    assert not asked.streamed
    told = answered(got)
    assert told["choices"][0]["message"]["content"] == "echo: hi"
    assert told["choices"][0]["content_filter_results"]
    assert told["prompt_filter_results"]
    [entry] = await assert_conserved(tables, fake)
    assert (entry.session_id, entry.turn, entry.caller) == (None, 0, "key:ann")
    assert entry.call.usage
    assert entry.call.usage.total_tokens == told["usage"]["total_tokens"]


@pytest.mark.parametrize("wanted", [True, False, None])
async def test_a_streams_chunks_come_as_they_are_and_usage_only_to_who_wants_it(
    api: httpx.AsyncClient, fake: Fake, tables: Tables, wanted: bool | None
) -> None:
    options: dict[str, Any] = (
        {} if wanted is None else {"stream_options": {"include_usage": wanted, "include_obfuscation": False}}
    )

    *chunks, last = data(await post(api, stream=True, **options))

    assert last == "[DONE]"
    parsed = [exact(chunk) for chunk in chunks]
    assert parsed[0]["choices"] == []  # Azure's filter results of the prompt
    said = "".join(chunk["choices"][0]["delta"].get("content") or "" for chunk in parsed if chunk["choices"])
    assert said == "echo: hi"
    assert bool(parsed[-1].get("usage")) is bool(wanted)
    (asked,) = fake.requests
    assert asked.body["stream_options"] == options.get("stream_options", {}) | {"include_usage": True}
    assert (await closed_ledger(tables))[0].call.state is State.SETTLED
    await assert_conserved(tables, fake)


async def test_words_come_as_they_are_made(sdk: AsyncOpenAI, fake: Fake) -> None:
    with fake.hold(after=2) as hold:
        stream = await sdk.chat.completions.create(model="chat", messages=HELLO, stream=True)
        words = []
        async for chunk in stream:
            words += [choice.delta.content for choice in chunk.choices if choice.delta.content]
            if len(words) == 2:
                await asyncio.to_thread(hold.wait)
                hold.release()

    assert "".join(words) == "echo: hi"


async def test_the_services_own_headers_come_along(api: httpx.AsyncClient) -> None:
    for streamed in (False, True):
        headers = (await post(api, stream=streamed)).headers

        assert headers["apim-request-id"]
        assert "x-ms-region" not in headers


async def test_the_paths_deployment_wins(api: httpx.AsyncClient, fake: Fake, tables: Tables) -> None:
    client = AsyncAzureOpenAI(azure_endpoint=root(api), api_key=ANN, api_version="2025-04-01-preview")
    async with client:
        told = await client.chat.completions.create(model="another", messages=HELLO)
        for model in ("chat", ""):
            body = {"model": model, "messages": HELLO}
            await api.post("/openai/deployments/another/chat/completions?api-version=2024-10-21", json=body)

    assert told.choices[0].message.content == "echo: hi"
    assert [request.body["model"] for request in fake.requests] == ["another"] * 3
    assert [entry.call.deployment for entry in await closed_ledger(tables)] == ["another"] * 3


async def test_the_models_are_the_deployments(sdk: AsyncOpenAI) -> None:
    assert [model.id async for model in sdk.models.list()] == ["another", "chat"]


@pytest.mark.parametrize("kind", ["OpenAI", "AzureOpenAI"])
async def test_the_synchronous_sdk_gets_the_same(api: httpx.AsyncClient, kind: str) -> None:
    def ask() -> list[str | None]:
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

    assert await asyncio.to_thread(ask) == ["echo: hi", "echo: hi"]


async def test_tools_and_several_choices_come_through(sdk: AsyncOpenAI, fake: Fake, tables: Tables) -> None:
    fake.reply(tool_calls=(("call_1", "look", "{}"), ("call_2", "look", '{"a": 1}')))
    told = await sdk.chat.completions.create(model="chat", messages=HELLO, tools=[TOOL])

    assert [call.id for call in told.choices[0].message.tool_calls or []] == ["call_1", "call_2"]
    several = await sdk.chat.completions.create(model="chat", messages=HELLO, n=3)
    assert [choice.index for choice in several.choices] == [0, 1, 2]
    stream = await sdk.chat.completions.create(model="chat", messages=HELLO, n=3, stream=True)
    assert {choice.index async for chunk in stream for choice in chunk.choices} == {0, 1, 2}
    await assert_conserved(tables, fake)


# What it may cost at worst


async def worst(tables: Tables, call: Callable[[], Any]) -> Decimal:
    await call()
    *_, entry = sorted(await closed_ledger(tables), key=lambda entry: entry.call.deadline)
    assert entry.call.worst_case is not None
    return entry.call.worst_case


async def test_the_worst_case_counts_every_choice_and_the_longest_answer(
    api: httpx.AsyncClient, tables: Tables
) -> None:
    one = await worst(tables, partial(post, api, max_tokens=1_000))
    three = await worst(tables, partial(post, api, max_completion_tokens=1_000, n=3))
    unlimited = await worst(tables, partial(post, api))
    absurd = await worst(tables, partial(post, api, max_tokens=10**18))

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
        [{"type": "input_audio", "input_audio": {"data": "AAAA" * 200, "format": "wav"}}],
        [{"type": "file", "file": {"file_data": "data:application/pdf;base64," + "A" * 900}}],
    ],
    ids=["text", "image", "audio", "file"],
)
async def test_the_worst_case_counts_whatever_is_sent(
    api: httpx.AsyncClient, tables: Tables, content: list[Any]
) -> None:
    plain = await worst(tables, partial(post, api, max_tokens=1))
    more = await worst(tables, partial(post, api, max_tokens=1, messages=[{"role": "user", "content": content}]))

    assert more > plain


# Errors are the SDK's own


async def test_an_error_of_the_service_keeps_its_words_and_status(
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


@pytest.mark.parametrize("said", [b"<html>", b'{"statusCode": 429, "message": "Too fast."}', b'{"error": "Too fast."}'])
@pytest.mark.parametrize(
    ("status", "kind"),
    [(429, "rate_limit_error"), (404, "invalid_request_error"), (413, "invalid_request_error"), (503, "server_error")],
)
async def test_a_gateways_error_gets_the_shape_that_it_lacks(
    serve: Serve, environ: dict[str, str], fake: Fake, said: bytes, status: int, kind: str
) -> None:
    headers = (("retry-after", "7"), ("x-ratelimit-remaining-tokens", "0"))
    with TcpProxy(urlsplit(fake.endpoint).port or 0) as gateway:
        gateway.on(Match("POST", "/"), Answer(status, said, headers), times=None)
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
async def test_each_failure_is_the_exception_that_it_should_be(
    sdk: AsyncOpenAI, fake: Fake, tables: Tables, fault: Fault, raised: type[openai.APIStatusError]
) -> None:
    fake.responder = lambda _: fault

    with pytest.raises(raised):
        await sdk.chat.completions.create(model="chat", messages=HELLO)

    await assert_conserved(tables, fake)


async def test_a_stream_that_breaks_off_ends_in_an_error(sdk: AsyncOpenAI, fake: Fake, tables: Tables) -> None:
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


async def test_the_sdks_own_retries_each_are_a_call(api: httpx.AsyncClient, fake: Fake, tables: Tables) -> None:
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
async def test_what_cant_be_metered_is_refused_and_costs_nothing(
    api: httpx.AsyncClient, fake: Fake, body: dict[str, Any], param: str
) -> None:
    told = error(await api.post(ROUTE, json={"model": "chat", **body}), 400)

    assert told["type"] == "invalid_request_error"
    assert told["param"] == param
    assert not fake.requests


async def test_a_model_that_is_not_there_is_a_404_that_lists_those_that_are(api: httpx.AsyncClient) -> None:
    told = error(await post(api, model="gpt-9"), 404)

    assert (told["code"], told["param"]) == ("model_not_found", "model")
    assert "another, chat" in told["message"]


async def test_no_json_is_a_400_and_no_json_type_a_415(api: httpx.AsyncClient) -> None:
    error(await api.post(ROUTE, content=b"{", headers={"content-type": "application/json"}), 400)
    error(await api.post(ROUTE, content=b"{}", headers={"content-type": "text/plain"}), 415)


async def test_a_body_may_be_large_but_not_larger_and_is_read_after_the_key(
    serve: Serve, environ: dict[str, str]
) -> None:
    large = {"model": "chat", "messages": [{"role": "user", "content": "x" * 300_000}]}
    async with serve(environ | {"MAX_REQUEST_BYTES": "400000"}) as api:
        named = {"api-key": ANN}
        assert (await api.post(ROUTE, json=large, headers=named)).status_code == 200
        larger = large | {"user": "y" * 200_000}
        error(await api.post(ROUTE, json=larger, headers=named), 413)
        error(await api.post(ROUTE, json=larger, headers={"api-key": "wrong"}), 401)


# Time


async def test_what_is_not_streamed_has_no_first_byte_timeout_but_the_turns(
    serve: Serve, environ: dict[str, str], fake: Fake, tables: Tables
) -> None:
    fake.chunk_delay = 0.2
    fake.responder = lambda _: Reply("one two three four")
    hasty = {"AZURE_OPENAI_TIMEOUT_SECONDS": "0.4", "TURN_TIMEOUT_SECONDS": "5"}
    async with serve(environ | hasty) as api:
        api.headers["api-key"] = ANN
        patient = await post(api)
        fake.responder = lambda _: Reply("word " * 300)
        late = await post(api)

    assert patient.status_code == 200
    assert error(late, 504)["code"] == "upstream_timeout"
    assert [entry.call.state for entry in await closed_ledger(tables)].count(State.UNACCOUNTED) == 1


async def test_only_a_stream_says_when_the_model_began(
    api: httpx.AsyncClient, caplog: pytest.LogCaptureFixture
) -> None:
    caplog.set_level("INFO", "shared.telemetry.call_log")
    for streamed in (False, True):
        await post(api, stream=streamed)

    whole, pieces = lines(caplog)
    assert whole["seconds"] > 0
    assert whole["seconds_to_first_token"] is None
    assert 0 < pieces["seconds_to_first_token"] <= pieces["seconds"]


async def test_a_caller_that_hangs_up_is_billed_what_was_said(
    api: httpx.AsyncClient, fake: Fake, tables: Tables
) -> None:
    with fake.hold(after=1):
        async with api.stream("POST", ROUTE, json={"model": "chat", "messages": HELLO, "stream": True}) as response:
            await anext(response.aiter_bytes())

    assert [entry.call.state for entry in await closed_ledger(tables)] == [State.SETTLED]
    await assert_conserved(tables, fake)


async def test_whatever_goes_wrong_the_money_adds_up(api: httpx.AsyncClient, fake: Fake, tables: Tables) -> None:
    """Every kind of failure, streamed and not, with a session and without, many at once."""
    kinds: list[Script] = [
        Reply("fine"),
        *(Fault("status", status) for status in (400, 429, 500, 502, 504)),
        *(Fault(kind, after=after) for kind in ("reset", "close") for after in (None, 1)),
        *(Fault(kind) for kind in ("truncated", "no_usage", "malformed", "error_event", "content_filter")),
    ]

    def respond(request: Asked) -> Script:
        return kinds[int(request.body["messages"][-1]["content"])]

    fake.responder = respond
    posts = []
    for at in range(len(kinds)):
        for streamed in (False, True):
            for session in (None, f"s{at}-{streamed}"):
                headers = {"x-session-id": session} if session else {}
                posts.append(post(api, headers, messages=[{"role": "user", "content": str(at)}], stream=streamed))

    responses = await asyncio.gather(*posts)

    assert sum(response.status_code == 200 for response in responses) >= 4
    assert not [response.text for response in responses if "internal_error" in response.text]
    await assert_conserved(tables, fake)


# A turn of a session


async def test_with_a_session_it_is_a_turn_that_adds_what_is_new(
    api: httpx.AsyncClient, fake: Fake, tables: Tables
) -> None:
    system: list[Any] = [{"role": "system", "content": "Be brief."}]
    heard = [*system, *HELLO]
    first = answered(await post(api, {"x-session-id": "s"}, messages=heard))
    heard += [first["choices"][0]["message"], {"role": "user", "content": "and more"}]
    await post(api, {"x-session-id": "s"}, messages=heard, stream=True)

    session, turns = await stored(tables)
    assert (session.system, session.owner, session.turns) == ("Be brief.", "key:ann", 2)
    assert [[message["content"] for message in turn.messages] for turn in turns] == [
        ["hi", "echo: hi"],
        ["and more", "echo: and more"],
    ]
    await assert_conserved(tables, fake)


async def test_a_conversation_goes_on_by_either_way(serve: Serve, environ: dict[str, str], fake: Fake) -> None:
    async with serve(environ) as api:
        api.headers["api-key"] = ANN
        await post(api, {"x-session-id": "s"}, messages=[{"role": "system", "content": "Be brief."}, *HELLO])
        told = await answer(api, "again")
        await post(api, {"x-session-id": "s"}, messages=[{"role": "user", "content": "and again"}])
        last = await answer(api, "at last")

    assert (told["turn"], last["turn"]) == (2, 4)
    contents = [message["content"] for message in fake.requests[-1].body["messages"]]
    assert contents == [
        "Be brief.",
        *("hi", "echo: hi", "again", "echo: again", "and again", "echo: and again"),
        "at last",
    ]


async def test_a_session_is_its_owners_alone(serve: Serve, environ: dict[str, str], tables: Tables) -> None:
    async with serve(environ) as api:
        ann, bob = {"api-key": ANN}, {"authorization": f"Bearer {BOB}"}
        assert (await api.post("/api/chat", json={"message": "hi", "session_id": "s"}, headers=ann)).status_code == 200
        for method, path in [
            ("GET", "/api/sessions/s"),
            ("GET", "/api/sessions/s/messages"),
            ("DELETE", "/api/sessions/s/messages"),
            ("DELETE", "/api/sessions/s"),
        ]:
            for stranger in (bob, {}):
                assert (await api.request(method, path, headers=stranger)).status_code == 404
        chat = {"message": "hi", "session_id": "s"}
        assert (await api.post("/api/chat", json=chat, headers=bob)).status_code == 404
        assert (await post(api, bob | {"x-session-id": "s"})).status_code == 404
        wrong = {"api-key": "nobody's"}
        assert (await api.get("/api/sessions/s", headers=wrong)).status_code == 401
        assert (await api.post("/api/chat", json=chat, headers=wrong)).status_code == 401
        for method, path in [("GET", "s/messages?limit=x"), ("DELETE", "-/messages"), ("DELETE", "-"), ("GET", "-")]:
            assert (await api.request(method, f"/api/sessions/{path}", headers=wrong)).status_code == 401
        assert (await api.get("/api/sessions/s", headers=ann)).json()["turns"] == 1
        # One without an owner is open to who knows its id, and its rows name who called.
        await say(api, "hi", "open")
        assert (await api.post("/api/chat", json=chat | {"session_id": "open"}, headers=bob)).status_code == 200

    callers = {(entry.session_id, entry.turn): entry.caller for entry in await closed_ledger(tables)}
    assert callers == {("s", 1): "key:ann", ("open", 1): None, ("open", 2): "key:bob"}
    assert (await stored(tables, "open"))[0].owner is None


async def test_what_a_session_can_t_hold_is_refused_before_anything_is_spent(
    api: httpx.AsyncClient, fake: Fake
) -> None:
    system = {"role": "system", "content": "x" * 600_000}

    told = error(await post(api, {"x-session-id": "s"}, messages=[system, *HELLO]), 413)

    assert "system prompt" in told["message"]
    assert not fake.requests


async def test_what_nests_too_deeply_to_be_shown_again_is_refused(api: httpx.AsyncClient, fake: Fake) -> None:
    nested: Any = "x"
    for _ in range(248):
        nested = {"a": nested}

    error(await post(api, {"x-session-id": "s"}, messages=[*HELLO, {**HELLO[0], "x": nested}]), 400)
    assert not fake.requests


async def test_a_busy_session_is_a_409(api: httpx.AsyncClient, fake: Fake, sdk: AsyncOpenAI) -> None:
    with fake.hold(after=0) as hold:
        first = asyncio.create_task(post(api, {"x-session-id": "s"}))
        await hold.until_reached()
        with pytest.raises(openai.ConflictError) as busy:
            await sdk.chat.completions.create(model="chat", messages=HELLO, extra_headers={"X-Session-Id": "s"})

    assert busy.value.code == "session_busy"
    assert busy.value.response.headers["retry-after"]
    assert (await first).status_code == 200


@pytest.mark.parametrize("streamed", [False, True])
async def test_an_idempotency_key_gives_the_first_answer_again(
    sdk: AsyncOpenAI, api: httpx.AsyncClient, fake: Fake, tables: Tables, streamed: bool
) -> None:
    fake.reply("one two", tool_calls=(("call_1", "look", "{}"),))
    headers = {"X-Session-Id": "s", "Idempotency-Key": "k1"}
    first = await post(api, headers, tools=[TOOL])

    again = await post(api, headers, tools=[TOOL], stream=streamed, stream_options={"include_usage": True})

    assert again.headers["idempotent-replayed"] == "true"
    told = answered(first)["choices"][0]
    if streamed:
        chunk, usage = [exact(part) for part in data(again)[:-1]]
        assert chunk["object"] == "chat.completion.chunk"
        assert chunk["choices"][0]["delta"]["content"] == "one two"
        assert chunk["choices"][0]["delta"]["tool_calls"][0]["index"] == 0
        assert usage["usage"]["total_tokens"] == answered(first)["usage"]["total_tokens"]
        parsed = await sdk.chat.completions.create(
            model="chat", messages=HELLO, tools=[TOOL], stream=True, extra_headers=headers
        )
        assert [part.choices[0].finish_reason async for part in parsed] == [told["finish_reason"]]
    else:
        choice = answered(again)["choices"][0]
        assert choice["message"]["tool_calls"] == told["message"]["tool_calls"]
        assert choice["finish_reason"] == told["finish_reason"]
    assert len(fake.requests) == 1
    assert error(await post(api, headers), 422)["code"] == "idempotency_mismatch"
    await assert_conserved(tables, fake)


async def test_without_a_session_an_idempotency_key_is_ignored(api: httpx.AsyncClient, fake: Fake) -> None:
    for _ in range(2):
        assert (await post(api, {"Idempotency-Key": "k"})).status_code == 200

    assert len(fake.requests) == 2


@pytest.mark.parametrize(
    ("session", "body", "param"), [("s", {"n": 2}, "n"), ("../s", {}, "X-Session-Id"), ("", {}, "X-Session-Id")]
)
async def test_a_turn_has_one_answer_and_a_proper_session(
    api: httpx.AsyncClient, fake: Fake, session: str, body: dict[str, Any], param: str
) -> None:
    assert error(await post(api, {"X-Session-Id": session}, **body), 400)["param"] == param
    assert not fake.requests


# Who may


async def test_without_a_key_or_with_a_wrong_one_it_is_a_401(api: httpx.AsyncClient, sdk: AsyncOpenAI) -> None:
    del api.headers["api-key"]
    for headers in ({}, {"api-key": "wrong"}, {"authorization": "Bearer wrong"}):
        told = error(await post(api, headers), 401)
        assert told["type"] == "authentication_error"
        assert (await api.get("/openai/v1/models", headers=headers)).status_code == 401
    with pytest.raises(openai.AuthenticationError):
        await sdk.with_options(api_key="wrong").models.list()


async def test_where_no_key_is_configured_the_setting_is_named(serve: Serve, environ: dict[str, str]) -> None:
    async with serve(environ | {"CLIENT_KEYS": ""}) as api:
        assert "CLIENT_KEYS" in error(await post(api, {"api-key": ANN}), 401)["message"]


async def test_a_key_is_never_logged(api: httpx.AsyncClient, fake: Fake, caplog: pytest.LogCaptureFixture) -> None:
    caplog.set_level("DEBUG", "shared")
    fake.fault(500)
    await post(api)
    await post(api, {"api-key": "wrong-key-of-somebody"})

    assert "answered 500" in caplog.text
    assert ANN not in caplog.text
    assert "wrong-key-of-somebody" not in caplog.text
