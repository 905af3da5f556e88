"""The embeddings of OpenAI and Azure OpenAI, called by OpenAI's SDK: forwarded unchanged, metered, charged once."""

import asyncio
import base64
import json
from array import array
from collections.abc import AsyncIterator, Iterator
from decimal import Decimal
from typing import Any

import httpx
import pytest
from openai import AsyncAzureOpenAI, AsyncOpenAI

from local.keys import line, new_key
from shared.domain.calls import State
from tests.conftest import Serve, Tables
from tests.support.azure_openai import AzureOpenAI, Fault, Reply
from tests.support.azure_openai_embeddings import INVALID_INPUT, vector
from tests.support.chat_client import call_log_lines, closed_ledger, ledger, ok_json
from tests.support.clock import ManualClock
from tests.support.conservation import assert_conserved
from tests.support.rude_upstream import RudeUpstream

ANN = new_key()
ROUTE, AZURE_ROUTE = "/openai/v1/embeddings", "/openai/deployments/vectors/embeddings?api-version=2024-10-21"
JSON = dict[str, Any]
PRICE = Decimal("0.75")  # of a million tokens


@pytest.fixture
def environ(environ: dict[str, str]) -> dict[str, str]:
    prices = {"vectors": {"input": 0.75}, "more": {"input": 0.75}}
    return environ | {
        "CLIENT_KEYS": line("ann", ANN),
        "AZURE_OPENAI_DEPLOYMENTS": "chat=gpt-5.4-mini, more=text-embedding-3-large",
        "AZURE_OPENAI_EMBEDDING_DEPLOYMENTS": "vectors",
        "PRICES": json.dumps(json.loads(environ["PRICES"]) | prices),
    }


@pytest.fixture
async def api(serve: Serve, environ: dict[str, str]) -> AsyncIterator[httpx.AsyncClient]:
    async with serve(environ) as client:
        client.headers["api-key"] = ANN
        yield client


@pytest.fixture
async def sdk(api: httpx.AsyncClient) -> AsyncIterator[AsyncOpenAI]:
    async with AsyncOpenAI(base_url=f"{api.base_url}/openai/v1", api_key=ANN, max_retries=0) as client:
        yield client


@pytest.fixture
def second() -> Iterator[AzureOpenAI]:
    with AzureOpenAI() as server:
        yield server


async def embed(api: httpx.AsyncClient, value: Any = "hi", model: str = "vectors", **options: Any) -> httpx.Response:
    return await api.post(ROUTE, json={"model": model, "input": value, **options})


def problem(response: httpx.Response, status: int) -> JSON:
    assert response.status_code == status, response.text
    error: JSON = response.json()["error"]
    assert error.keys() >= {"message", "type", "param", "code"}
    return error


def vectors(answer: JSON) -> list[Any]:
    return [each["embedding"] for each in answer["data"]]


# Requests and answers


@pytest.mark.parametrize("route", [ROUTE, AZURE_ROUTE])
async def test_request_and_answer_are_forwarded_unchanged(
    api: httpx.AsyncClient, fake: AzureOpenAI, tables: Tables, route: str
) -> None:
    sent = {"input": ["hi", "ü"], "model": "vectors", "dimensions": 3, "user": "u-1", "encoding_format": "float"}

    response = await api.post(route, json=sent)

    [request] = fake.requests
    assert (request.path, request.body) == ("/openai/v1/embeddings", sent)
    answer = response.json()
    assert answer == {
        "object": "list",
        "data": [
            {"object": "embedding", "index": at, "embedding": vector(text, 3).tolist()}
            for at, text in enumerate(("hi", "ü"))
        ],
        "model": fake.model_name,
        "usage": {"prompt_tokens": 2, "total_tokens": 2},
    }
    assert Decimal(response.headers["x-cost-usd"]) == 2 * PRICE / 1_000_000
    assert response.headers["x-request-id"]
    [entry] = await assert_conserved(tables, fake)
    assert (entry.session_id, entry.turn, entry.caller) == (None, 0, "key:ann")
    assert (entry.call.cost, entry.call.state) == (2 * PRICE / 1_000_000, State.SETTLED)


async def test_deployment_in_the_path_wins_over_the_model_in_the_body(
    api: httpx.AsyncClient, fake: AzureOpenAI
) -> None:
    ok_json(await api.post(AZURE_ROUTE, json={"model": "chat", "input": "hi"}))
    ok_json(await api.post(AZURE_ROUTE, json={"input": "hi"}))
    assert [request.body["model"] for request in fake.requests] == ["vectors"] * 2


@pytest.mark.parametrize("only_floats", [False, True])
async def test_vectors_have_the_requested_format_even_if_the_service_ignores_it(
    api: httpx.AsyncClient, fake: AzureOpenAI, only_floats: bool
) -> None:
    fake.only_floats = only_floats
    expected = [vector(text, 8) for text in ("one", "two")]
    for form in ({}, {"encoding_format": "float"}):
        assert vectors((await embed(api, ["one", "two"], **form)).json()) == [each.tolist() for each in expected]
    encoded = vectors(ok_json(await embed(api, ["one", "two"], encoding_format="base64")))
    assert [array("f", base64.b64decode(each)) for each in encoded] == expected
    assert [request.body.get("encoding_format") for request in fake.requests] == [None, "float", "base64"]


async def test_openai_sdks_decode_the_vectors(api: httpx.AsyncClient, sdk: AsyncOpenAI, fake: AzureOpenAI) -> None:
    azure = AsyncAzureOpenAI(azure_endpoint=str(api.base_url), api_key=ANN, api_version="2024-10-21", max_retries=0)
    async with azure:
        for client in (sdk, azure):
            texts = await client.embeddings.create(model="vectors", input=["one", "two"], dimensions=4)
            tokens = await client.embeddings.create(model="vectors", input=[[1, 2], [3]], encoding_format="float")
            assert [each.embedding for each in texts.data] == [vector(text, 4).tolist() for text in ("one", "two")]
            assert [each.embedding for each in tokens.data] == [vector(each, 8).tolist() for each in ([1, 2], [3])]
            assert tokens.usage.prompt_tokens == 3
    assert [request.path for request in fake.requests] == ["/openai/v1/embeddings"] * 4


async def test_answer_of_many_megabytes_is_whole(api: httpx.AsyncClient, fake: AzureOpenAI, tables: Tables) -> None:
    fake.dimensions = 1_536
    value = [f"text {number}" for number in range(100)]
    fake.only_floats = True
    whole = await embed(api, value)
    assert int(whole.headers["content-length"]) == len(whole.content) > 2**20
    floats, encoded = [ok_json(await embed(api, value, encoding_format=form)) for form in ("float", "base64")]
    assert [array("f", map(float, each)) for each in vectors(floats)] == [vector(text, 1_536) for text in value]
    assert [array("f", base64.b64decode(each)) for each in vectors(encoded)] == [vector(text, 1_536) for text in value]
    await assert_conserved(tables, fake)


async def test_call_log_names_the_operation_and_the_tokens(
    api: httpx.AsyncClient, tables: Tables, caplog: pytest.LogCaptureFixture
) -> None:
    caplog.set_level("INFO", "shared.telemetry.call_log")
    await embed(api, "a bc")
    await closed_ledger(tables)
    [logged] = call_log_lines(caplog)
    assert (logged["deployment"], logged["prompt_tokens"], logged["completion_tokens"]) == ("vectors", 2, 0)


# Odd requests


def each(expected: int | str, *values: Any) -> list[tuple[Any, int | str]]:
    return [(value, expected) for value in values]


ALIKE = '{"model": "vectors", "input": '
TOO_LONG = "maximum context length is 8192 tokens"
NOT_JSON = "not valid JSON in UTF-8"
MODELS = "Choose one of: more, vectors."
# Each with what the answer says: the number of its vectors, or words of a refusal.
ODD_INPUTS = [
    *each(INVALID_INPUT, [], "", [""], ["a", ""], ["", "a"], [[]], [[1], []], ["a"] * 2_049, [[1]] * 2_049),
    *each(INVALID_INPUT, ["a", 1], [1, "a"], ["a", [1]], [[1], "a"], [[[1]]], [["a"]], [["a"], "b"], [1, [1]]),
    *each(INVALID_INPUT, None, [None], ["a", None], [[None]], True, False, [True], [[True]], [0, False], 0, 5),
    *each(INVALID_INPUT, -1, 1.5, [1.5], [-1], [[-1]], [1, -1], [1.0], [[1.0]], {}, {"text": "a"}, [{}], ["a", {}]),
    *each(INVALID_INPUT, 10**18, [10**18], [[10**30]], [2**31], [1, 2**63], [[[[[[]]]]]], [[[[[["a"]]]]]]),
    *each(1, "a", " ", "\n", "\0", "\u2028", "\ufeff", "\ufffd", "\U0001f642", "e\u0301", "\\", '"', "\x7f"),
    *each(1, "null", "[1]", "<|endoftext|>", '"embedding": [1]', "data: [DONE]", "a" * 8_192, "ü" * 8_192, ["a"]),
    *each(1, [0], [1, 2], [99_999], [[1]], [1] * 8_192),
    *each(2, ["a", "a"], [[1], [2]], [" ", "\n"], ["a" * 8_192, "b"], [[1] * 8_192, [2]]),
    *each(2_048, ["a"] * 2_048, [[1]] * 2_048),
    *each(TOO_LONG, "word" * 8_193, "a bc " * 400_000, [1] * 8_193, ["a", "b" * 100_000]),  # the second has 2 MB
    *each("max 300000 tokens per request", [[1] * 8_192] * 37, ["word" * 8_192] * 37),
]
ODD_OPTIONS = [
    *(
        ({"encoding_format": value}, words)
        for value, words in each("'float' and 'base64'", "int8", "", "FLOAT", None, 5)
    ),
    *(({"dimensions": value}, words) for value, words in each("'dimensions'", 0, -1, 1.5, "3", True, [], {}, 1_537)),
    *(({"dimensions": value}, words) for value, words in each(1, 1, 1_536)),
    ({"stream": True}, "stream should be false: embeddings are not streamed."),
    *(({"stream": value}, words) for value, words in each("stream should be true or false.", "yes", 0, 1, [])),
    *(({"stream": value}, words) for value, words in each(1, False, None)),
    *(({name: None}, f"supplied: {name}") for name in ("input_type", "truncate", "messages", "max_tokens", "ü", "")),
    *(({"model": value}, words) for value, words in each(f"does not exist. {MODELS}", "gpt-9", "Vectors", " v", "\0")),
    *(({"model": value}, words) for value, words in each("Name a model", "", None)),
    *(({"model": value}, words) for value, words in each("model: ", 5, True, ["vectors"], {})),
    ({"model": "chat"}, f"'chat' is for chat, not for embeddings. {MODELS}"),
    ({"service_tier": "flex"}, "service_tier"),
    ({"tools": [{"type": "web_search"}]}, "Only function and custom tools"),
    ({"web_search_options": {}}, "web_search_options"),
    ({"user": "u" * 100_000}, 1),
]
ODD_BODIES = [
    *each(NOT_JSON, "", "{", "vectors", ALIKE + '"a"', ALIKE + '"\\ud800"}', ALIKE + '["\\udc00"]}', ALIKE + "NaN}"),
    *each(NOT_JSON, ALIKE + '"\n"}', ALIKE + "01}", ALIKE + "1e400}", "\ufeff" + ALIKE + '"a"}'),
    *each(NOT_JSON, ALIKE + "[" * 300 + "1" + "]" * 300 + "}", ALIKE + "[" * 5_000 + "]" * 5_000 + "}"),
    *each("must be a JSON object", "[]", "null", "5", '"a"', "[{}]"),
    *each("input: ", '{"model": "vectors"}', "{}"),
    ('{"input": "a"}', "Name a model"),
    (ALIKE + '1, "input": "a"}', 1),  # the last one counts
]


@pytest.mark.filterwarnings("ignore:Sending a large body directly:ResourceWarning")  # of aiohttp, above 1 MB
async def test_odd_requests_get_vectors_or_a_clear_refusal(
    api: httpx.AsyncClient, fake: AzureOpenAI, tables: Tables
) -> None:
    bodies = [({"input": value}, expected) for value, expected in ODD_INPUTS] + ODD_OPTIONS
    cases = [(json.dumps({"model": "vectors", "input": "a", **body}), expected) for body, expected in bodies]
    cases += ODD_BODIES
    room = asyncio.Semaphore(8)

    async def answered(body: str) -> httpx.Response:
        async with room:
            return await api.post(ROUTE, content=body.encode(), headers={"content-type": "application/json"})

    responses = await asyncio.gather(*(answered(body) for body, _ in cases))

    assert len(cases) > 100
    for (body, expected), response in zip(cases, responses, strict=True):
        shown = f"{body[:80]}: {response.status_code} {response.text[:200]}"
        if isinstance(expected, int):
            assert (response.status_code, len(response.json().get("data") or ())) == (200, expected), shown
        else:
            assert response.status_code == (404 if "does not exist" in expected else 400), shown
            error = response.json()["error"]
            assert expected in f"{error['param']}: {error['message']}", shown
            assert error["type"] in ("invalid_request_error", "max_tokens_per_request"), shown
    await assert_conserved(tables, fake)


# Deployments by kind


async def test_deployment_of_the_wrong_kind_is_refused_by_name(api: httpx.AsyncClient, fake: AzureOpenAI) -> None:
    for deployment in ("vectors", "more"):
        chat = {"messages": [{"role": "user", "content": "hi"}]}
        for path, body in (
            ("/openai/v1/chat/completions", {"model": deployment, **chat}),
            (f"/openai/deployments/{deployment}/chat/completions", chat),
            ("/openai/v1/responses", {"model": deployment, "input": "hi"}),
            ("/api/chat", {"deployment": deployment, "message": "hi"}),
        ):
            error = (response := await api.post(path, json=body)).json()["error"]
            assert (response.status_code, error["param"]) == (400, "deployment" if "api" in path[:4] else "model"), path
            assert f"'{deployment}'" in error["message"]
            assert "Choose one of: chat." in error["message"]
    for path in (ROUTE, "/openai/deployments/chat/embeddings"):
        error = problem(await api.post(path, json={"model": "chat", "input": "hi"}), 400)
        assert error["message"] == f"Model 'chat' is for chat, not for embeddings. {MODELS}"
    assert not fake.requests


async def test_kinds_are_listed(api: httpx.AsyncClient) -> None:
    listed = ok_json(await api.get("/openai/v1/models"))["data"]
    assert {each["id"]: each["kind"] for each in listed} == {
        "chat": "chat",
        "more": "embedding",
        "vectors": "embedding",
    }
    assert ok_json(await api.get("/openai/v1/models/vectors"))["kind"] == "embedding"
    about = ok_json(await api.get("/api/about"))
    assert (about["deployments"], about["embedding_deployments"]) == (["chat"], ["more", "vectors"])


async def test_app_without_embedding_deployments_says_so(serve: Serve, environ: dict[str, str]) -> None:
    without = {"AZURE_OPENAI_DEPLOYMENTS": "chat", "AZURE_OPENAI_EMBEDDING_DEPLOYMENTS": "", "PRICES": ""}
    async with serve(environ | without) as api:
        api.headers["api-key"] = ANN
        wrong, unknown = problem(await embed(api, model="chat"), 400), problem(await embed(api), 404)
        assert "not for embeddings" in wrong["message"]
        assert "'vectors' does not exist" in unknown["message"]
        for each in (wrong, unknown):
            assert each["message"].endswith("its operator can set AZURE_OPENAI_EMBEDDING_DEPLOYMENTS.")
        assert ok_json(await api.get("/api/about"))["embedding_deployments"] == []


# Money


@pytest.mark.parametrize(
    ("value", "tokens"),
    [("hü", 3 + 16), ([1, 2], 2 + 16), (["a", "b"], 2 + 32), (["a" * 8_000] * 100, 300_000)],
)
async def test_row_is_opened_before_with_the_worst_case_of_bytes_or_tokens(
    api: httpx.AsyncClient, fake: AzureOpenAI, tables: Tables, value: Any, tokens: int
) -> None:
    with fake.hold(after=0) as hold:
        running = asyncio.create_task(embed(api, value))
        await hold.until_reached()
        [entry] = await ledger(tables)
        assert (entry.call.state, entry.call.worst_case) == (State.OPEN, tokens * PRICE / 1_000_000)
    ok_json(await running)
    await assert_conserved(tables, fake)


@pytest.mark.parametrize(
    ("limit", "status"), [({"usd_per_day": 0.00001}, 429), ({"tokens_per_minute": 15}, 400)]
)  # as for chat: such a request fits into no minute
async def test_call_above_a_limit_is_refused_before_the_service_is_called(
    serve: Serve, environ: dict[str, str], fake: AzureOpenAI, limit: JSON, status: int
) -> None:
    async with serve(environ | {"LIMITS": json.dumps({"key:ann": limit})}) as api:
        api.headers["api-key"] = ANN
        problem(await embed(api), status)
    assert not fake.requests


async def test_requests_of_a_minute_are_counted_with_those_of_chat(
    clock: ManualClock, serve: Serve, environ: dict[str, str], fake: AzureOpenAI
) -> None:
    async with serve(environ | {"LIMITS": json.dumps({"key:ann": {"requests_per_minute": 2}})}) as api:
        api.headers["api-key"] = ANN
        chat = {"model": "chat", "messages": [{"role": "user", "content": "hi"}]}
        ok_json(await api.post("/openai/v1/chat/completions", json=chat))
        first, refused = await embed(api), await embed(api)
    assert (first.status_code, first.headers["x-ratelimit-remaining-requests"]) == (200, "0")
    assert problem(refused, 429)["type"] == "rate_limit_error"
    assert len(fake.requests) == 2


async def test_unknown_price_is_refused_where_a_budget_applies_and_has_no_cost_elsewhere(
    serve: Serve, environ: dict[str, str], fake: AzureOpenAI
) -> None:
    environ = environ | {"PRICES": ""}
    fake.embedding_responder = lambda request: Reply(
        model=request.body["model"].replace("more", "text-embedding-3-large")
    )
    async with serve(environ) as api:
        api.headers["api-key"] = ANN
        assert "x-cost-usd" not in (await embed(api)).headers
        assert (await embed(api, model="more")).headers["x-cost-usd"] == "0.00000013"  # the list price
    async with serve(environ | {"LIMITS": '{"total": {"usd_per_day": 1}}'}) as api:
        api.headers["api-key"] = ANN
        error = problem(await embed(api), 400)
        assert "PRICES" in error["message"]
    assert len(fake.requests) == 2


# Failures


@pytest.mark.parametrize(
    ("fault", "status", "code", "state"),
    [
        (Fault("status", 400, message="No.", param="input", code="odd"), 400, "odd", State.FAILED),
        (Fault("status", 401), 503, "upstream_unavailable", State.FAILED),
        (Fault("status", 404), 404, "DeploymentNotFound", State.FAILED),
        (Fault("status", 429, retry_after=7), 429, "RateLimitReached", State.FAILED),
        (Fault("status", 500), 500, "InternalServerError", State.FAILED),
        (Fault("status", 502), 502, "upstream_error", State.UNACCOUNTED),
        (Fault("status", 503), 503, "ServiceUnavailable", State.FAILED),
        (Fault("slow", seconds=0.1), 200, None, State.SETTLED),
        (Fault("reset"), 502, "upstream_error", State.UNACCOUNTED),
        (Fault("reset", after=1), 502, "upstream_error", State.UNACCOUNTED),
        (Fault("close"), 502, "upstream_error", State.UNACCOUNTED),
        (Fault("close", after=1), 502, "upstream_error", State.UNACCOUNTED),
        (Fault("truncated", after=1), 502, "upstream_error", State.UNACCOUNTED),
        (Fault("truncated", after=0), 502, "upstream_error", State.UNACCOUNTED),
        (Fault("malformed"), 502, "upstream_error", State.UNACCOUNTED),
        (Fault("no_usage"), 200, None, State.UNACCOUNTED),
        (Fault("error_event"), 502, None, State.UNACCOUNTED),
        (Fault("content_filter"), 400, "content_filter", State.UNACCOUNTED),
    ],
    ids=lambda value: getattr(value, "outcome", None),
)
async def test_each_failure_has_its_status_and_is_accounted(
    api: httpx.AsyncClient, fake: AzureOpenAI, tables: Tables, fault: Fault, status: int, code: str | None, state: State
) -> None:
    fake.embedding_responder = lambda _: fault
    response = await embed(api)
    assert response.status_code == status, response.text
    assert code is None or response.json()["error"]["code"] == code
    assert fault.retry_after is None or response.headers["retry-after"] == "7"
    [entry] = await assert_conserved(tables, fake)
    assert entry.call.state is state
    assert entry.call.worst_case == (2 + 16) * PRICE / 1_000_000
    assert (response.headers.get("x-cost-usd") is not None) == (state is State.SETTLED)


@pytest.mark.parametrize("fake", [RudeUpstream], indirect=True)
@pytest.mark.parametrize(
    "document",
    [b"", b"null", b"[]", b"{}", b'{"data": null}', b"<html></html>", b'{"object": "list"}', b"\xff", b"[" * 9_999],
)
async def test_answer_without_embeddings_is_an_error(
    api: httpx.AsyncClient, fake: RudeUpstream, tables: Tables, document: bytes
) -> None:
    fake.raw(document, media_type="application/json", prompt_tokens=1, completion_tokens=0)
    assert problem(await embed(api), 502)["code"] == "upstream_error"
    assert [entry.call.state for entry in await closed_ledger(tables)] == [State.UNACCOUNTED]


@pytest.mark.parametrize("fake", [RudeUpstream], indirect=True)
async def test_error_with_status_200_has_its_own_status(api: httpx.AsyncClient, fake: RudeUpstream) -> None:
    error = {"message": "Slow down.", "type": "rate_limit_error", "param": None, "code": "429"}
    fake.raw(json.dumps({"error": error}).encode(), media_type="application/json", billed=False)
    assert problem(await embed(api), 429)["message"] == "Slow down."


async def test_call_is_settled_after_the_client_disconnects(
    api: httpx.AsyncClient, fake: AzureOpenAI, tables: Tables
) -> None:
    with fake.hold(after=0) as hold:
        running = asyncio.create_task(embed(api))
        await hold.until_reached()
        running.cancel()
        await asyncio.gather(running, return_exceptions=True)
    [entry] = await assert_conserved(tables, fake)
    assert entry.call.state is State.SETTLED


async def test_stalled_answer_ends_at_the_turns_timeout(
    serve: Serve, environ: dict[str, str], fake: AzureOpenAI, tables: Tables
) -> None:
    fake.fault("stall", after=1)
    async with serve(environ | {"TURN_TIMEOUT_SECONDS": "1"}) as api:
        api.headers["api-key"] = ANN
        assert problem(await embed(api), 504)["code"] == "upstream_timeout"
    await assert_conserved(tables, fake)


# Several endpoints


async def test_failing_endpoint_is_replaced_and_cools_down(
    clock: ManualClock,
    serve: Serve,
    environ: dict[str, str],
    fake: AzureOpenAI,
    second: AzureOpenAI,
    tables: Tables,
) -> None:
    fake.fault(503, retry_after=4)
    async with serve(environ | {"AZURE_OPENAI_ENDPOINT": f"{fake.endpoint}, {second.endpoint}"}) as api:
        api.headers["api-key"] = ANN
        for value in ("one", "two"):
            ok_json(await embed(api, value))
        await clock.advance(4)
        ok_json(await embed(api, "three"))
    assert [request.body["input"] for request in fake.requests] == ["one", "three"]
    assert [request.body["input"] for request in second.requests] == ["one", "two"]
    entries = await assert_conserved(tables, fake, second)
    assert [entry.call.endpoint for entry in entries].count(second.endpoint.removeprefix("http://")) == 2


async def test_attempts_that_were_not_billed_are_retried(
    clock: ManualClock, serve: Serve, environ: dict[str, str], fake: AzureOpenAI, tables: Tables
) -> None:
    clock.skip_sleeps_up_to = 5
    for _ in range(2):
        fake.fault(429, retry_after=1)
    async with serve(environ | {"AZURE_OPENAI_MAX_RETRIES": "2"}) as api:
        api.headers["api-key"] = ANN
        ok_json(await embed(api))
    assert len(fake.requests) == 3
    assert len(await assert_conserved(tables, fake)) == 1


async def test_cooldown_of_an_embedding_deployment_is_its_own(
    clock: ManualClock, serve: Serve, environ: dict[str, str], fake: AzureOpenAI, second: AzureOpenAI
) -> None:
    fake.fault(429, retry_after=60)
    async with serve(environ | {"AZURE_OPENAI_ENDPOINT": f"{fake.endpoint}, {second.endpoint}"}) as api:
        api.headers["api-key"] = ANN
        ok_json(await embed(api))
        ok_json(await embed(api))
        ok_json(await api.post("/api/chat", json={"message": "hi"}))
        ok_json(await embed(api, model="more"))
    assert [request.body["model"] for request in fake.requests] == ["vectors", "chat", "more"]
    assert [request.body["model"] for request in second.requests] == ["vectors", "vectors"]


@pytest.mark.parametrize("own_key", [False, True])
async def test_embeddings_have_an_endpoint_and_a_key_of_their_own(
    serve: Serve, environ: dict[str, str], fake: AzureOpenAI, second: AzureOpenAI, tables: Tables, own_key: bool
) -> None:
    second.api_key = "another-key" if own_key else fake.api_key
    elsewhere = {"AZURE_OPENAI_EMBEDDING_ENDPOINT": second.endpoint}
    elsewhere |= {"AZURE_OPENAI_EMBEDDING_API_KEY": second.api_key} if own_key else {}
    async with serve(environ | elsewhere) as api:
        api.headers["api-key"] = ANN
        for model in ("vectors", "more"):
            ok_json(await embed(api, model=model))
        ok_json(await api.post("/api/chat", json={"message": "hi"}))
        second.api_key = "changed"
        assert problem(await embed(api), 503)["code"] == "upstream_unavailable"
    assert [request.body["model"] for request in fake.requests] == ["chat"]
    assert [request.body["model"] for request in second.requests] == ["vectors", "more", "vectors"]
    await assert_conserved(tables, fake, second)


# Access


async def test_client_key_is_required(api: httpx.AsyncClient, fake: AzureOpenAI) -> None:
    del api.headers["api-key"]
    for path in (ROUTE, AZURE_ROUTE):
        assert problem(await api.post(path, json={"model": "vectors", "input": "hi"}), 401)
    assert not fake.requests
