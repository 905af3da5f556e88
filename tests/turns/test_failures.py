"""Turns with a failing model service: the error response, the unchanged conversation and the recorded costs."""

import asyncio
from dataclasses import dataclass, field
from decimal import Decimal
from typing import Any

import httpx
import pytest

from shared.domain.calls import State
from shared.model.circuits import RETRY_PAUSE_S
from shared.model.sse import DRAIN_TIMEOUT_S
from tests.conftest import Serve, Tables
from tests.support.azure_openai import AzureOpenAI, Kind
from tests.support.azure_openai_answers import PROMPT_FILTERED
from tests.support.chat_client import (
    Event,
    answer,
    closed_ledger,
    events,
    get_json,
    send_message,
    stored,
    streaming,
)
from tests.support.clock import ManualClock
from tests.support.conservation import assert_conserved


@dataclass(frozen=True)
class Failure:
    """A fault and the response that the caller gets. `billable`: the call may have been billed."""

    fault: Kind | int
    status: int
    code: str
    retry_after: str | None = None
    billable: bool = False
    details: dict[str, Any] = field(default_factory=dict)

    def script(self, fake: AzureOpenAI) -> None:
        fake.fault(self.fault, **self.details)

    def __str__(self) -> str:
        return " ".join([str(self.fault), *(f"{name} {value}" for name, value in self.details.items())])


BEFORE_ANSWER = [
    Failure(400, 400, "invalid_request", details={"message": "Unknown parameter: 'x'."}),
    Failure(401, 503, "upstream_unavailable", "30"),
    Failure(403, 503, "upstream_unavailable", "30"),
    Failure(404, 502, "upstream_error"),
    Failure(408, 504, "upstream_timeout", "5", billable=True),
    Failure(409, 503, "upstream_unavailable", "5"),
    Failure(429, 429, "rate_limited", "1"),
    Failure(429, 429, "rate_limited", "7", details={"retry_after": 7}),
    Failure(429, 429, "rate_limited", "2", details={"retry_after_ms": 1_500}),
    Failure(500, 503, "upstream_unavailable", "5"),
    Failure(502, 502, "upstream_error", billable=True),
    Failure(503, 503, "upstream_unavailable", "9", details={"retry_after": 9}),
    Failure(504, 504, "upstream_timeout", "5", billable=True),
    Failure("stall", 504, "upstream_timeout", "5", billable=True),
    Failure("reset", 502, "upstream_error", billable=True),
    Failure("close", 502, "upstream_error", billable=True),
]
DURING_ANSWER = [
    Failure("stall", 504, "upstream_timeout", "5", billable=True, details={"after": 2}),
    Failure("reset", 502, "upstream_error", billable=True, details={"after": 2}),
    Failure("close", 502, "upstream_error", billable=True, details={"after": 2}),
    Failure("truncated", 502, "upstream_error", billable=True),
    Failure("malformed", 502, "upstream_error", billable=True),
    Failure("error_event", 502, "upstream_error", billable=True),
]


@pytest.fixture
def environ(environ: dict[str, str], clock: ManualClock) -> dict[str, str]:
    """A short model timeout, and no wait before a retry."""
    clock.skip_sleeps_up_to = RETRY_PAUSE_S
    return environ | {"AZURE_OPENAI_TIMEOUT_SECONDS": "2"}


def user(content: str) -> dict[str, Any]:
    return {"role": "user", "content": content}


def assistant(content: str) -> dict[str, Any]:
    return {"role": "assistant", "content": content}


def sent(fake: AzureOpenAI, request: int = -1) -> list[dict[str, Any]]:
    """The messages that the model received, without the system prompt."""
    messages: list[dict[str, Any]] = fake.requests[request].body["messages"]
    return messages[1:]


def assert_nothing_leaks(text: str, environ: dict[str, str], fake: AzureOpenAI) -> None:
    account = environ["TABLES_CONNECTION_STRING"].split("AccountKey=")[1].split(";")[0]
    for secret in (fake.endpoint, str(fake.port), "127.0.0.1", "test-key", account, "Traceback", ".py", "devstore"):
        assert secret not in text


@pytest.mark.parametrize("failure", [*BEFORE_ANSWER, *DURING_ANSWER], ids=str)
async def test_failed_turn_returns_its_error_and_leaves_the_conversation_unchanged(
    api: httpx.AsyncClient, environ: dict[str, str], fake: AzureOpenAI, tables: Tables, failure: Failure
) -> None:
    before = await answer(api, "before")
    for _ in range(2 if failure.billable else 1):
        failure.script(fake)

    failed = await send_message(api, "lost words")

    error = failed.json()["error"]
    assert (failed.status_code, error["code"]) == (failure.status, failure.code)
    assert failed.headers.get("retry-after") == failure.retry_after
    assert_nothing_leaks(failed.text, environ, fake)

    session, [_, *calls] = await get_json(api, "/api/sessions/s"), await closed_ledger(tables)
    outcome = State.UNACCOUNTED if failure.billable else State.FAILED
    assert [entry.call.state for entry in calls] == [outcome] * (2 if failure.billable else 1)
    assert session["cost_usd"] == before["cost_usd"]
    assert session["unaccounted_calls"] == (len(calls) if failure.billable else 0)
    worst = sum((entry.call.worst_case or Decimal(0) for entry in calls), Decimal(0))
    assert session["unaccounted_usd"] == (worst if failure.billable else 0)
    assert not session["busy"]

    history = await get_json(api, "/api/sessions/s/messages")
    turn = history["turns"][0]
    assert (turn["turn"], turn["state"], turn["finish_reason"]) == (2, outcome, "error")
    assert turn["messages"] == [user("lost words")] + ([] if failure in BEFORE_ANSWER else [assistant("echo:")])
    await answer(api, "after")
    assert sent(fake) == [user("before"), assistant("echo: before"), user("after")]
    await assert_conserved(tables, fake)


@pytest.mark.parametrize("failure", [f for f in [*BEFORE_ANSWER, *DURING_ANSWER] if f.billable], ids=str)
async def test_retry_once_as_a_new_call_if_the_first_may_be_billed(
    api: httpx.AsyncClient, fake: AzureOpenAI, tables: Tables, failure: Failure
) -> None:
    failure.script(fake)

    retried = await answer(api)

    first, second = await closed_ledger(tables)
    assert [request.call_id for request in fake.requests] == [first.call.id, second.call.id]
    assert (first.call.state, first.call.reason) == (State.UNACCOUNTED, failure.code)
    assert second.call.state is State.SETTLED
    assert retried["cost_usd"] == retried["session"]["cost_usd"] == second.call.cost
    assert retried["session"]["unaccounted_calls"] == 1
    assert retried["session"]["unaccounted_usd"] == first.call.worst_case
    _, [turn] = await stored(tables)
    assert [call.id for call in turn.calls] == [first.call.id, second.call.id]
    await assert_conserved(tables, fake)


async def test_unbilled_retry_failure_leaves_only_the_first_call_unaccounted(
    api: httpx.AsyncClient, fake: AzureOpenAI, tables: Tables
) -> None:
    fake.fault(504)
    fake.fault(429, retry_after=3)

    failed = await send_message(api)

    assert (failed.status_code, failed.headers["retry-after"]) == (429, "3")
    assert [entry.call.state for entry in await closed_ledger(tables)] == [State.UNACCOUNTED, State.FAILED]
    assert (await get_json(api, "/api/sessions/s"))["unaccounted_calls"] == 1
    await assert_conserved(tables, fake)


async def test_no_retry_after_a_delta_has_been_sent(api: httpx.AsyncClient, fake: AzureOpenAI, tables: Tables) -> None:
    fake.fault("reset", after=1)

    received = events((await send_message(api, stream=True)).content)

    assert [event.name for event in received] == ["start", "delta", "error"]
    assert len(fake.requests) == len(await closed_ledger(tables)) == 1


async def test_stream_is_retried_before_its_first_delta(
    api: httpx.AsyncClient, fake: AzureOpenAI, tables: Tables
) -> None:
    fake.fault("reset")

    received = events((await send_message(api, stream=True)).content)

    assert [event.name for event in received] == ["start", *["delta"] * 3, "done"]
    assert received[-1].data["session"]["unaccounted_calls"] == 1
    await assert_conserved(tables, fake)


@pytest.mark.parametrize("failure", DURING_ANSWER, ids=str)
async def test_stream_that_breaks_off_ends_with_an_error_event(
    api: httpx.AsyncClient, environ: dict[str, str], fake: AzureOpenAI, tables: Tables, failure: Failure
) -> None:
    failure.script(fake)

    response = await send_message(api, "lost words", stream=True)

    assert response.status_code == 200
    assert_nothing_leaks(response.text, environ, fake)
    *before, last = events(response.content)
    assert before == [
        Event("start", {"session_id": "s", "turn": 1, "deployment": "chat"}),
        Event("delta", {"content": "echo"}),
        Event("delta", {"content": ":"}),
    ]
    assert last.name == "error"
    assert last.data.keys() == {"code", "message", "param", "status", "retry_after"}
    assert (last.data["code"], last.data["status"]) == (failure.code, failure.status)


async def test_partial_answer_is_stored_but_not_sent_in_later_prompts(
    api: httpx.AsyncClient, fake: AzureOpenAI, tables: Tables
) -> None:
    fake.reply("one two three")
    fake.fault("reset", after=2)
    await send_message(api, "hi")
    await send_message(api, "lost words", stream=True)

    history = await get_json(api, "/api/sessions/s/messages")
    broken = history["turns"][0]
    assert broken["messages"] == [user("lost words"), assistant("echo:")]
    assert (broken["state"], broken["finish_reason"], broken["usage"]) == ("unaccounted", "error", None)
    await answer(api, "after")
    assert sent(fake) == [user("hi"), assistant("one two three"), user("after")]
    await assert_conserved(tables, fake)


async def test_answer_without_usage_is_unaccounted_and_not_retried(
    api: httpx.AsyncClient, fake: AzureOpenAI, tables: Tables
) -> None:
    fake.fault("no_usage")

    response = await answer(api)

    assert (response["message"], response["usage"], response["cost_usd"]) == (assistant("echo: hi"), None, None)
    assert [entry.call.state for entry in await closed_ledger(tables)] == [State.UNACCOUNTED]
    assert len(fake.requests) == 1  # a retry would probably not return usage either
    await assert_conserved(tables, fake)


async def test_complete_answer_settles_if_the_connection_breaks_after_it(
    api: httpx.AsyncClient, fake: AzureOpenAI, tables: Tables
) -> None:
    fake.fault("unended")

    completed = await answer(api)

    assert (completed["message"]["content"], completed["finish_reason"]) == ("echo: hi", "stop")
    assert completed["session"]["unaccounted_calls"] == 0
    assert [entry.call.state for entry in await closed_ledger(tables)] == [State.SETTLED]
    assert len(fake.requests) == 1
    await assert_conserved(tables, fake)


async def test_complete_answer_is_not_delayed_by_a_stream_that_never_ends(
    clock: ManualClock, api: httpx.AsyncClient, fake: AzureOpenAI, tables: Tables
) -> None:
    fake.fault("endless")
    started = clock.monotonic()
    running = asyncio.create_task(answer(api))
    await clock.until_timeout_started(DRAIN_TIMEOUT_S)
    await clock.advance(DRAIN_TIMEOUT_S)

    assert (await running)["message"]["content"] == "echo: hi"
    assert clock.monotonic() - started < 10  # the turn's timeout is 220 s
    await assert_conserved(tables, fake)


async def test_call_without_an_access_token_fails_unbilled(
    serve: Serve, environ: dict[str, str], fake: AzureOpenAI, tables: Tables
) -> None:
    del environ["AZURE_OPENAI_API_KEY"]
    environ["AZURE_TOKEN_CREDENTIALS"] = "ManagedIdentityCredential"
    no_identity = {"IDENTITY_ENDPOINT": f"{fake.endpoint}/no-identity", "IDENTITY_HEADER": "secret-of-the-platform"}
    async with serve(environ | no_identity) as api:
        failed = await send_message(api)

    error = failed.json()["error"]
    assert (failed.status_code, error["code"], failed.headers["retry-after"]) == (503, "upstream_unavailable", "30")
    assert_nothing_leaks(failed.text, environ, fake)
    assert [entry.call.state for entry in await closed_ledger(tables)] == [State.FAILED]
    assert not fake.meter


async def test_call_to_an_unreachable_model_fails_unbilled(
    api: httpx.AsyncClient, environ: dict[str, str], fake: AzureOpenAI, tables: Tables
) -> None:
    fake.stop()
    failed = await send_message(api, "lost words")
    fake.start()

    error = failed.json()["error"]
    assert (failed.status_code, error["code"], failed.headers["retry-after"]) == (503, "upstream_unavailable", "5")
    assert_nothing_leaks(failed.text, environ, fake)
    assert [entry.call.state for entry in await closed_ledger(tables)] == [State.FAILED]
    assert (await answer(api, "after"))["turn"] == 2
    assert sent(fake) == [user("after")]
    await assert_conserved(tables, fake)


async def test_turn_timeout_ends_a_stream_that_keeps_sending(
    clock: ManualClock, serve: Serve, environ: dict[str, str], fake: AzureOpenAI, tables: Tables
) -> None:
    """Each chunk arrives in time, but the whole answer does not."""
    fake.chunk_delay = 0.1
    fake.reply("word " * 1_000)
    async with serve(environ | {"TURN_TIMEOUT_SECONDS": "300"}) as api, streaming(api) as answering:
        assert [(await answering.next()).name for _ in range(2)] == ["start", "delta"]
        await clock.advance(200)
        assert await answering.next() == Event("", "still working")
        assert (await answering.next()).name == "delta"
        await clock.advance(100)
        while (event := await answering.next()).name in ("delta", ""):
            pass

    assert event.name == "error"
    assert (event.data["status"], event.data["code"]) == (504, "upstream_timeout")
    assert "300 s" in event.data["message"]
    await fake.until(lambda: fake.meter)
    await assert_conserved(tables, fake)


async def test_turn_timeout_ends_a_turn_without_streaming(
    clock: ManualClock, api: httpx.AsyncClient, fake: AzureOpenAI, tables: Tables
) -> None:
    fake.chunk_delay = 0.1
    fake.reply("word " * 1_000)
    running = asyncio.create_task(send_message(api))
    await fake.until(lambda: fake.requests)
    await clock.advance(220)

    failed = await running
    assert (failed.status_code, failed.json()["error"]["code"]) == (504, "upstream_timeout")
    assert "220 s" in failed.json()["error"]["message"]
    await fake.until(lambda: fake.meter)
    await assert_conserved(tables, fake)


async def test_no_retry_after_the_turn_timeout(
    clock: ManualClock, serve: Serve, environ: dict[str, str], fake: AzureOpenAI, tables: Tables
) -> None:
    fake.fault("stall")
    async with serve(environ | {"AZURE_OPENAI_TIMEOUT_SECONDS": "60"}) as api:
        running = asyncio.create_task(send_message(api))
        await fake.until(lambda: fake.meter)
        await clock.advance(220)
        failed = await running

    assert (failed.status_code, failed.json()["error"]["code"]) == (504, "upstream_timeout")
    assert len(fake.requests) == len(await closed_ledger(tables)) == 1
    await assert_conserved(tables, fake)


@pytest.mark.parametrize("streamed", [True, False])
async def test_rate_limit_is_returned_as_429_or_as_an_error_event(
    api: httpx.AsyncClient, fake: AzureOpenAI, streamed: bool
) -> None:
    fake.fault(429, retry_after=4)

    response = await send_message(api, stream=streamed)

    if streamed:
        assert [event.name for event in events(response.content)] == ["start", "error"]
        error = events(response.content)[1].data
        assert (error["code"], error["status"], error["retry_after"]) == ("rate_limited", 429, 4)
    else:
        assert (response.status_code, response.headers["retry-after"]) == (429, "4")


async def test_rejected_request_returns_the_message_of_the_model_service(
    api: httpx.AsyncClient, fake: AzureOpenAI
) -> None:
    fake.rejected = {"chat": frozenset({"top_p"})}

    refused = await send_message(api, top_p=0.5)

    error = refused.json()["error"]
    assert (refused.status_code, error["param"]) == (400, "top_p")
    assert "'top_p' does not support 0.5" in error["message"]


async def test_content_filter_error_names_the_categories(api: httpx.AsyncClient, fake: AzureOpenAI) -> None:
    fake.fault("content_filter")

    refused = await send_message(api)

    error = refused.json()["error"]
    assert (refused.status_code, error["code"], error["param"]) == (400, "content_filter", "message")
    assert error["message"] == "The content filter stopped this prompt (violence). Rephrase it."


@pytest.mark.parametrize("inner", [None, "x", {}, {"content_filter_result": []}, {"content_filter_result": {"a": 1}}])
async def test_content_filter_error_without_categories(
    api: httpx.AsyncClient, fake: AzureOpenAI, inner: Any, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setitem(PROMPT_FILTERED["error"], "innererror", inner)
    fake.fault("content_filter")

    refused = await send_message(api)

    assert refused.status_code == 400
    assert refused.json()["error"]["message"] == "The content filter stopped this prompt. Rephrase it."


# Prompts that exceed the context window


async def converse(api: httpx.AsyncClient, turns: int) -> None:
    for number in range(1, turns + 1):
        await answer(api, f"message {number}")


def numbers(fake: AzureOpenAI, request: int = -1) -> list[int]:
    """The numbers of the messages that the model received."""
    return [int(m["content"].split()[-1]) for m in sent(fake, request) if m["role"] == "user"]


async def test_retry_after_context_length_error_sends_half_of_the_history(
    api: httpx.AsyncClient, fake: AzureOpenAI, tables: Tables
) -> None:
    await converse(api, 4)
    fake.fault("context_length")

    shortened = await answer(api, "message 5")

    assert numbers(fake, -2) == [1, 2, 3, 4, 5]
    assert numbers(fake, -1) == [3, 4, 5]
    *_, first, second = await closed_ledger(tables)
    assert (first.call.state, first.call.reason) == (State.UNACCOUNTED, "context_too_long")
    assert second.call.state is State.SETTLED
    assert shortened["session"]["unaccounted_calls"] == 1
    await answer(api, "message 6")
    assert numbers(fake) == [3, 4, 5, 6]
    await assert_conserved(tables, fake)


async def test_context_length_error_without_any_turn_left_to_drop_returns_400(
    api: httpx.AsyncClient, fake: AzureOpenAI, tables: Tables
) -> None:
    await converse(api, 4)
    for _ in range(4):  # with 4, 2, 1 and no earlier turns
        fake.fault("context_length")

    refused = await send_message(api, "message 5")

    assert (refused.status_code, refused.json()["error"]["code"]) == (400, "context_too_long")
    assert [entry.call.state for entry in await closed_ledger(tables)][4:] == [State.UNACCOUNTED] * 4
    await answer(api, "message 6")
    assert numbers(fake) == [1, 2, 3, 4, 6]
    await assert_conserved(tables, fake)


async def test_no_retry_after_context_length_error_without_history(
    api: httpx.AsyncClient, fake: AzureOpenAI, tables: Tables
) -> None:
    fake.fault("context_length")

    refused = await send_message(api)

    assert (refused.status_code, refused.json()["error"]["code"]) == (400, "context_too_long")
    assert len(fake.requests) == len(await closed_ledger(tables)) == 1
    await assert_conserved(tables, fake)


async def test_session_is_free_when_the_error_event_of_its_failed_turn_arrives(
    api: httpx.AsyncClient, fake: AzureOpenAI
) -> None:
    fake.fault("reset", after=1)

    async with streaming(api) as answering:
        received = [await answering.next() for _ in range(3)]
        assert received[-1].name == "error"
        assert (await answer(api, "again"))["turn"] == 2
