"""`fallback_deployment` of LIMITS: a cheaper deployment answers while a caller's budget is nearly used."""

import asyncio
import json
import random
from contextlib import ExitStack
from dataclasses import replace
from decimal import Decimal
from functools import partial
from typing import Any

import httpx
import pytest

from local.keys import line
from shared.domain.calls import State
from shared.storage.counter_rows import counter_keys, from_counter, to_counter
from tests.conftest import EMBEDDING, Serve, Tables, with_embeddings
from tests.support.azure_openai import AzureOpenAI
from tests.support.chat_client import closed_ledger, events, ok_json
from tests.support.clock import ManualClock
from tests.support.conservation import assert_conserved, assert_counted
from tests.support.terminal import run_piped
from tests.turns.test_limits import ANN, BEN, NOON, ask

JSON = dict[str, Any]
TOKENS = 800
BUDGET = {"usd_per_day": 0.02, "fallback_deployment": "small"}  # a longest answer of `chat` costs 0.0036 USD
RESPONSES, COMPLETIONS = "/openai/v1/responses", "/openai/v1/chat/completions"


@pytest.fixture
def limits() -> JSON:
    return {"key:ann": BUDGET, "anonymous": BUDGET, "total": {"usd_per_day": 0.5}}


@pytest.fixture
def environ(environ: dict[str, str], clock: ManualClock, limits: JSON) -> dict[str, str]:
    clock.set(NOON)
    prices = json.loads(environ["PRICES"]) | {"small": {"input": 0.05, "output": 0.4}}  # as in chat_client
    return environ | {
        "CLIENT_KEYS": f"{line('ann', ANN)},{line('ben', BEN)}",
        "LIMITS": json.dumps(limits),
        "PRICES": json.dumps(prices),
        "AZURE_OPENAI_DEPLOYMENTS": "chat, small, other",
        "AZURE_OPENAI_MAX_OUTPUT_TOKENS": f"small=2000, {TOKENS}",
    }


def with_key(key: str | None) -> dict[str, str]:
    return {"authorization": f"Bearer {key}"} if key else {}


async def use(api: httpx.AsyncClient, fake: AzureOpenAI, tables: Tables, key: str | None = ANN, times: int = 5) -> None:
    """Spend 0.0036 USD a time: with 5 of them 90 % of the budget are used."""
    for _ in range(times):
        fake.reply("long", completion_tokens=TOKENS)
        ok_json(await ask(api, key))
    await closed_ledger(tables)


def responses_in(response: httpx.Response) -> list[JSON]:
    """The response, or all those of a stream's events."""
    if not response.headers["content-type"].startswith("text/event-stream"):
        return [ok_json(response)]
    return [each.data["response"] for each in events(response.content) if "response" in each.data]


def has_requests(fake: AzureOpenAI, count: int) -> bool:
    return len(fake.requests) == count


def called(fake: AzureOpenAI) -> str:
    """The deployment of the latest call."""
    return str(fake.requests[-1].body["model"])


async def test_fallback_answers_from_80_percent_on_and_says_so(
    api: httpx.AsyncClient, fake: AzureOpenAI, tables: Tables
) -> None:
    await use(api, fake, tables, times=4)
    before = ok_json(await ask(api, ANN))
    assert (before["deployment"], before.get("requested_deployment")) == ("chat", None)
    await closed_ledger(tables)  # else what it holds counts
    await use(api, fake, tables, times=1)

    after = ok_json(await ask(api, ANN, session_id="s"))

    assert (after["deployment"], after["requested_deployment"], called(fake)) == ("small", "chat", "small")
    assert after["notice"] == "Your budget is nearly used up, so small answered in place of chat."
    session = ok_json(await api.get("/api/sessions/s", headers=with_key(ANN)))
    assert session["deployment"] == "chat", "the session goes on with it when there is money again"
    await assert_conserved(tables, fake)


async def test_stream_has_both_deployments(api: httpx.AsyncClient, fake: AzureOpenAI, tables: Tables) -> None:
    await use(api, fake, tables)
    sent = events((await ask(api, ANN, stream=True)).content)
    assert sent[0].data["deployment"] == "small"
    assert sent[-1].data["requested_deployment"] == "chat"


@pytest.mark.parametrize("stream", [False, True])
@pytest.mark.parametrize("headers", [{}, {"x-session-id": "s"}])
async def test_openai_routes_name_it_in_a_header(
    api: httpx.AsyncClient, fake: AzureOpenAI, tables: Tables, stream: bool, headers: dict[str, str]
) -> None:
    await use(api, fake, tables)
    body = {"model": "chat", "messages": [{"role": "user", "content": "hi"}], "stream": stream}
    response = await api.post(COMPLETIONS, json=body, headers=with_key(ANN) | headers)
    assert (response.status_code, response.headers["x-requested-deployment"]) == (200, "chat")
    assert called(fake) == "small"
    await closed_ledger(tables)
    await assert_conserved(tables, fake)


@pytest.mark.parametrize("store", [False, True])
@pytest.mark.parametrize("stream", [False, True])
async def test_response_is_of_the_fallback_and_continues_with_the_chosen_one(
    api: httpx.AsyncClient, fake: AzureOpenAI, tables: Tables, store: bool, stream: bool, clock: ManualClock
) -> None:
    await use(api, fake, tables)
    body = {"model": "chat", "input": "hi", "stream": stream, "store": store}
    response = await api.post(RESPONSES, json=body, headers=with_key(ANN))
    assert (response.status_code, response.headers["x-requested-deployment"], called(fake)) == (200, "chat", "small")
    shown = responses_in(response)
    assert {each["model"] for each in shown} == {"small"}
    await closed_ledger(tables)
    if store:
        stored = ok_json(await api.get(f"{RESPONSES}/{shown[-1]['id']}", headers=with_key(ANN)))
        assert stored["model"] == "small"
        await clock.advance(86_400)
        body |= {"previous_response_id": shown[-1]["id"]}
        response = await api.post(RESPONSES, json=body, headers=with_key(ANN))
        assert {each["model"] for each in responses_in(response)} == {"chat"}
        await closed_ledger(tables)
    await assert_conserved(tables, fake)


@pytest.mark.parametrize("stream", [False, True])
async def test_repeated_response_is_still_of_the_fallback(
    api: httpx.AsyncClient, fake: AzureOpenAI, tables: Tables, stream: bool
) -> None:
    await use(api, fake, tables)
    body = {"model": "chat", "input": "hi", "stream": stream}
    headers = with_key(ANN) | {"idempotency-key": "k" * 22}
    first, again = [await api.post(RESPONSES, json=body, headers=headers) for _ in range(2)]
    assert again.headers["idempotent-replayed"] == "true"
    assert responses_in(again)[-1]["id"] == responses_in(first)[-1]["id"]
    assert {each["model"] for each in responses_in(again)} == {"small"}


@pytest.mark.parametrize("deployment", ["small", "chat"])
async def test_deployment_that_is_named_falls_back_unless_it_is_the_fallback(
    api: httpx.AsyncClient, fake: AzureOpenAI, tables: Tables, deployment: str
) -> None:
    await use(api, fake, tables)
    answer = ok_json(await ask(api, ANN, deployment=deployment))
    assert answer["deployment"] == "small"
    assert answer.get("requested_deployment") == (None if deployment == "small" else "chat")


async def test_only_the_callers_own_budget_counts(api: httpx.AsyncClient, fake: AzureOpenAI, tables: Tables) -> None:
    await use(api, fake, tables)
    for key, deployment in ((BEN, "chat"), (None, "chat"), (ANN, "small")):
        assert ok_json(await ask(api, key))["deployment"] == deployment
    await use(api, fake, tables, key=None)
    assert ok_json(await ask(api))["deployment"] == "small"


@pytest.mark.parametrize(
    ("limits", "deployment"),
    [
        ({"key:ann": {"usd_per_month": 0.02, "fallback_deployment": "small"}}, "small"),
        ({"*": BUDGET}, "small"),
        ({"key:ann": BUDGET | {"usd_per_day": 5}, "total": {"usd_per_day": 0.02}}, "chat"),
        ({"key:ann": {"usd_per_day": 0.02}, "anonymous": BUDGET}, "chat"),
    ],
    ids=["month", "others", "total", "another-caller"],
)
async def test_caller_falls_back_by_each_budget_of_its_own(
    api: httpx.AsyncClient, fake: AzureOpenAI, tables: Tables, deployment: str
) -> None:
    await use(api, fake, tables)
    answer = await ask(api, ANN, max_tokens=100)
    assert ok_json(answer)["deployment"] == deployment


async def test_prompt_that_is_shortened_stays_with_the_fallback(
    api: httpx.AsyncClient, fake: AzureOpenAI, tables: Tables
) -> None:
    for _ in range(4):
        ok_json(await ask(api, ANN, session_id="s", message="a message " * 20))
    await use(api, fake, tables)
    fake.fault("context_length")
    answer = ok_json(await ask(api, ANN, session_id="s"))
    first, second = fake.requests[-2:]
    assert len(second.body["messages"]) < len(first.body["messages"])
    assert [first.body["model"], second.body["model"]] == ["small", "small"]
    assert (answer["deployment"], answer["requested_deployment"]) == ("small", "chat")
    await closed_ledger(tables)
    await assert_conserved(tables, fake)


async def test_terminal_says_both_that_the_answer_is_cut_off_and_whose_it_is(
    api: httpx.AsyncClient, fake: AzureOpenAI, tables: Tables
) -> None:
    await use(api, fake, tables, key=None)
    fake.reply("Paris is", finish_reason="length")
    cut = await run_piped(api, "hi")
    fake.reply("", finish_reason="length")
    empty = await run_piped(api, "hi")
    assert "(Your budget is nearly used up, so small answered in place of chat.)\n(Cut off at the token" in cut.err
    assert "because reasoning used up" in empty.err
    assert "Cut off" not in empty.err


async def test_embeddings_have_no_fallback(
    serve: Serve, environ: dict[str, str], fake: AzureOpenAI, tables: Tables
) -> None:
    async with serve(with_embeddings(environ)) as api:
        await use(api, fake, tables)
        body = {"model": EMBEDDING, "input": "hi"}
        response = await api.post("/openai/v1/embeddings", json=body, headers=with_key(ANN))
    assert (response.status_code, called(fake)) == (200, EMBEDDING)
    assert "x-requested-deployment" not in response.headers


async def test_limits_of_a_caller_name_it(api: httpx.AsyncClient) -> None:
    for key, expected in ((ANN, "small"), (None, "small")):
        [limits] = ok_json(await api.get("/api/limits", headers=with_key(key)))["limits"]
        assert limits["fallback_deployment"] == expected


async def test_new_day_ends_it(api: httpx.AsyncClient, fake: AzureOpenAI, tables: Tables, clock: ManualClock) -> None:
    await use(api, fake, tables)
    assert ok_json(await ask(api, ANN))["deployment"] == "small"
    await clock.advance(86_400)
    assert ok_json(await ask(api, ANN))["deployment"] == "chat"


async def test_process_without_any_call_yet_reads_the_budget(
    serve: Serve, environ: dict[str, str], fake: AzureOpenAI, tables: Tables
) -> None:
    async with serve(environ) as api:
        await use(api, fake, tables)
    async with serve(environ) as api:
        assert ok_json(await ask(api, ANN))["deployment"] == "small"


async def test_budget_that_another_process_has_used_falls_back(
    api: httpx.AsyncClient, fake: AzureOpenAI, tables: Tables, clock: ManualClock
) -> None:
    await use(api, fake, tables, times=1)
    row = await tables.usage.get(*counter_keys("key:ann", NOON.date().replace(day=1)))
    assert row
    counter = to_counter(row)
    spent = replace(counter, spent=Decimal("0.019"), day_spent=Decimal("0.019"))
    await tables.usage.put(from_counter(spent), counter.etag)
    await clock.advance(2)
    assert ok_json(await ask(api, ANN))["deployment"] == "small"


async def test_budget_that_running_calls_hold_falls_back(
    api: httpx.AsyncClient, fake: AzureOpenAI, tables: Tables
) -> None:
    """Each holds some 0.0036 USD, of 0.02."""
    turns = []
    with ExitStack() as stack:
        holds = [stack.enter_context(fake.hold()) for _ in range(6)]
        for number in range(1, 7):
            turns.append(asyncio.create_task(ask(api, ANN)))
            await fake.until(partial(has_requests, fake, number))
        for hold in holds:
            hold.release()
        answers = [ok_json(each) for each in await asyncio.gather(*turns)]
    assert [each["deployment"] for each in answers] == ["chat"] * 5 + ["small"]
    await closed_ledger(tables)
    await assert_conserved(tables, fake)


async def test_refused_where_the_fallback_has_no_room_either(
    api: httpx.AsyncClient, fake: AzureOpenAI, tables: Tables
) -> None:
    for _ in range(40):
        fake.reply("long", completion_tokens=2_000)
        response = await ask(api, ANN, max_tokens=800)
        await closed_ledger(tables)
        if response.status_code != 200:
            break
    assert (response.status_code, response.json()["error"]["code"]) == (429, "budget_exceeded")
    assert called(fake) == "small"
    await assert_conserved(tables, fake)


async def test_retry_is_of_the_fallback_too(api: httpx.AsyncClient, fake: AzureOpenAI, tables: Tables) -> None:
    await use(api, fake, tables)
    fake.fault("reset")
    answer = ok_json(await ask(api, ANN))
    assert (answer["deployment"], answer["requested_deployment"]) == ("small", "chat")
    assert [request.body["model"] for request in fake.requests[-2:]] == ["small", "small"]
    await assert_conserved(tables, fake)


async def test_repeated_request_gets_the_stored_answer(
    api: httpx.AsyncClient, fake: AzureOpenAI, tables: Tables
) -> None:
    headers = {"idempotency-key": "once"}
    first = ok_json(await ask(api, ANN, headers, session_id="s"))
    await use(api, fake, tables)
    again = await ask(api, ANN, headers, session_id="s")
    assert (again.headers["idempotent-replayed"], again.json()["message"]) == ("true", first["message"])
    assert again.json()["deployment"] == "chat"


async def test_worst_case_is_that_of_the_fallback(api: httpx.AsyncClient, fake: AzureOpenAI, tables: Tables) -> None:
    await use(api, fake, tables)
    body = {"model": "chat", "messages": [{"role": "user", "content": "hi"}]}
    await api.post(COMPLETIONS, json=body, headers=with_key(ANN))
    latest = max(await closed_ledger(tables), key=lambda entry: entry.call.deployment == "small")
    assert latest.call.worst_case is not None
    assert Decimal("0.0008") < latest.call.worst_case < Decimal("0.0009"), "2,000 tokens of `small`"


@pytest.mark.parametrize("seed", [1, pytest.param(None, marks=pytest.mark.acceptance)])
async def test_money_adds_up_with_fallbacks_in_the_mix(
    seed: int | None, api: httpx.AsyncClient, fake: AzureOpenAI, tables: Tables
) -> None:
    seed = random.randrange(2**32) if seed is None else seed
    print(f"seed {seed}")
    rng, deployments = random.Random(seed), set[str]()

    async def one(number: int) -> None:
        if rng.random() < 0.2:
            fake.fault(rng.choice(("reset", "no_usage")))
        else:
            fake.reply("x", completion_tokens=rng.randrange(1, TOKENS))
        response = await ask(api, rng.choice((ANN, None)), session_id=f"s{number}")
        assert response.status_code in (200, 429, 502, 503), response.text
        if response.status_code == 200:
            deployments.add(response.json()["deployment"])

    for at in range(10):
        await asyncio.gather(*(one(10 * at + number) for number in range(5)))
    entries = await closed_ledger(tables)
    assert deployments == {"chat", "small"}
    assert {entry.call.state for entry in entries} >= {State.SETTLED}
    await assert_conserved(tables, fake)
    await assert_counted(tables, entries)
