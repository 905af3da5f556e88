"""Idempotency-Key: a repeated request gets the stored answer and is never billed again."""

import asyncio
import re
import uuid
from typing import Any

import httpx
import pytest

from shared.services import services
from shared.storage import session_rows as rows
from tests.conftest import Serve, Tables
from tests.support.azure_openai import AzureOpenAI, Fault
from tests.support.chat_client import (
    JSON,
    answer,
    closed_ledger,
    events,
    expire_lease,
    get_json,
    ok_json,
    row_keys,
    stored,
)
from tests.support.conservation import all_rows, assert_conserved
from tests.support.faults import REFUSED, ledger_insert, session_transaction, stall_request
from tests.support.proxy import TcpProxy

KEY = "5f0c6f0e-4d0b-4c58-8f0a-1d2b3c4d5e6f"


async def chat(api: httpx.AsyncClient, message: object = "hi", key: str = KEY, **fields: object) -> httpx.Response:
    return await api.post("/api/chat", json={"message": message, **fields}, headers={"idempotency-key": key})


def replayed(response: httpx.Response) -> JSON:
    assert response.headers["idempotent-replayed"] == "true", response.text
    return ok_json(response)


def fresh(response: httpx.Response) -> JSON:
    assert "idempotent-replayed" not in response.headers
    return ok_json(response)


async def first_sessions(tables: Tables) -> list[str]:
    """The sessions that first requests with a key created."""
    return [row["session"] async for row in all_rows(tables.sessions) if row["PartitionKey"].startswith("~key-")]


SESSION_FIELDS: list[dict[str, str]] = [{"session_id": "s"}, {}]
EITHER = pytest.mark.parametrize("target", SESSION_FIELDS, ids=["with session_id", "without session_id"])


# Replay of the stored answer


@EITHER
async def test_idempotent_replay_returns_the_same_bytes(
    api: httpx.AsyncClient, fake: AzureOpenAI, tables: Tables, target: dict[str, str]
) -> None:
    first = await chat(api, **target)
    again = [await chat(api, **target) for _ in range(3)]

    fresh(first)
    assert [replayed(response) for response in again] == [ok_json(first)] * 3
    assert {response.content for response in again} == {first.content}
    assert len(fake.requests) == len(fake.meter) == 1
    await assert_conserved(tables, fake)


@EITHER
async def test_idempotent_replay_contains_the_current_session_totals(
    api: httpx.AsyncClient, fake: AzureOpenAI, tables: Tables, target: dict[str, str]
) -> None:
    first = fresh(await chat(api, **target))
    session = first["session_id"]
    for _ in range(3):
        last = await answer(api, "more", session)

    again = replayed(await chat(api, **target))

    assert again == first | {"session": last["session"]}
    assert (again["turn"], again["session"]["turns"]) == (1, 4)
    assert len(fake.requests) == 4
    assert (await get_json(api, f"/api/sessions/{session}"))["cost_usd"] == last["session"]["cost_usd"]
    await assert_conserved(tables, fake)


REPLIES: dict[str, dict[str, Any]] = {
    "text": {"text": "Ünï 🙂 \u2028 code"},
    "refusal": {"refusal": "I will not."},
    "tool calls": {"tool_calls": (("call_1", "f", '{"a": 1}'), ("call_2", "g", "{}"))},
    "nothing": {"text": ""},
}


@pytest.mark.parametrize("reply", REPLIES)
@pytest.mark.parametrize("streamed", [False, True], ids=["first as JSON", "first streamed"])
async def test_idempotent_replay_works_as_stream_and_as_json(
    api: httpx.AsyncClient, fake: AzureOpenAI, reply: str, streamed: bool
) -> None:
    fake.reply(**REPLIES[reply])
    await chat(api, session_id="s", logprobs=True, stream=streamed)

    whole = replayed(await chat(api, session_id="s", logprobs=True))
    response = await chat(api, session_id="s", logprobs=True, stream=True)

    assert response.headers["idempotent-replayed"] == "true"
    start, *deltas, done = events(response.content)
    assert (start.name, start.data) == ("start", {"session_id": "s", "turn": 1, "deployment": "chat"})
    assert (done.name, done.data) == ("done", whole)
    pieces = {name: value for delta in deltas for name, value in delta.data.items()}
    message = {name: value for name, value in whole["message"].items() if name != "role" and value}
    if calls := message.get("tool_calls"):  # streamed tool calls have an index
        message["tool_calls"] = [{"index": at, **call} for at, call in enumerate(calls)]
    assert pieces == message
    assert {delta.name for delta in deltas} <= {"delta"}
    assert len(fake.requests) == 1


async def test_idempotent_replay_is_complete_after_the_client_left_the_stream(
    api: httpx.AsyncClient, fake: AzureOpenAI, tables: Tables
) -> None:
    body = {"message": "one two three four", "session_id": "s", "stream": True}
    with fake.hold(after=1) as hold:
        async with api.stream("POST", "/api/chat", json=body, headers={"idempotency-key": KEY}) as response:
            async for _ in response.aiter_bytes():
                break
            await hold.until_reached()
    await services().turns.finish()

    assert replayed(await chat(api, "one two three four", session_id="s"))["message"]["content"]
    assert len(fake.requests) == 1
    await assert_conserved(tables, fake)


@EITHER
async def test_idempotent_replay_works_after_a_restart(
    serve: Serve, environ: dict[str, str], fake: AzureOpenAI, tables: Tables, target: dict[str, str]
) -> None:
    async with serve(environ) as api:
        first = await chat(api, **target)
    async with serve(environ) as api:
        again = await chat(api, **target)

        replayed(again)
        assert again.content == first.content
        assert len(fake.requests) == 1
        await assert_conserved(tables, fake)


async def test_idempotent_replay_does_not_wait_for_another_turn(api: httpx.AsyncClient, fake: AzureOpenAI) -> None:
    first = fresh(await chat(api, session_id="s"))
    with fake.hold() as hold:
        running = asyncio.create_task(answer(api, "another"))
        await hold.until_reached()

        assert replayed(await chat(api, session_id="s"))["message"] == first["message"]
    await running


# While the first request runs


@EITHER
async def test_idempotency_key_returns_409_while_the_first_request_runs(
    api: httpx.AsyncClient, fake: AzureOpenAI, tables: Tables, target: dict[str, str]
) -> None:
    with fake.hold() as hold:
        first = asyncio.create_task(chat(api, **target))
        await hold.until_reached()
        for stream in (False, True):
            waiting = await chat(api, **target, stream=stream)
            assert (waiting.status_code, waiting.json()["error"]["code"]) == (409, "session_busy")
            assert 1 <= int(waiting.headers["retry-after"]) <= 30
    answered = fresh(await first)
    assert replayed(await chat(api, **target)) == answered
    assert len(fake.requests) == 1
    await assert_conserved(tables, fake)


@EITHER
async def test_idempotency_key_bills_one_of_twenty_concurrent_requests(
    api: httpx.AsyncClient, fake: AzureOpenAI, tables: Tables, target: dict[str, str]
) -> None:
    responses = await asyncio.gather(*(chat(api, **target) for _ in range(20)))

    assert {response.status_code for response in responses} <= {200, 409}
    answered = [response for response in responses if response.status_code == 200]
    assert len({response.content for response in answered}) == 1
    assert sum("idempotent-replayed" not in response.headers for response in answered) == 1
    assert len(fake.meter) == len(fake.requests) == 1
    assert len(await assert_conserved(tables, fake)) == 1


async def test_idempotency_key_bills_only_the_retry_that_overtakes_the_first_attempt(
    storage: TcpProxy, api: httpx.AsyncClient, fake: AzureOpenAI, tables: Tables
) -> None:
    with stall_request(storage, session_transaction("s")) as reservation:
        slow = asyncio.create_task(chat(api, session_id="s"))
        await reservation.until_reached()
        quick = fresh(await chat(api, session_id="s"))
    late = await slow
    assert (late.status_code, late.json()["error"]["code"]) == (409, "session_busy")
    assert replayed(await chat(api, session_id="s")) == quick
    assert len(fake.requests) == 1
    await assert_conserved(tables, fake)


# Another request with the same key


OTHERS: list[dict[str, Any]] = [
    {"message": "other"},
    {"message": [{"type": "text", "text": "hi"}]},
    {"temperature": 0.5},
    {"max_tokens": 7},
    {"system": "Be brief."},
    {"deployment": "chat"},
]


@EITHER
async def test_idempotency_mismatch_returns_422_without_the_session_id(
    api: httpx.AsyncClient, fake: AzureOpenAI, target: dict[str, str]
) -> None:
    first = fresh(await chat(api, **target))

    for other in OTHERS:
        refused = await chat(api, **target | {"message": "hi"} | other)

        assert (refused.status_code, refused.json()["error"]["code"]) == (422, "idempotency_mismatch"), other
        assert refused.json()["error"]["param"] == "Idempotency-Key"
        assert target or first["session_id"] not in refused.text + str(refused.headers)
    assert len(fake.requests) == 1
    assert replayed(await chat(api, **target)) == first


@EITHER
async def test_idempotency_mismatch_returns_422_while_the_first_request_runs(
    api: httpx.AsyncClient, fake: AzureOpenAI, target: dict[str, str]
) -> None:
    with fake.hold() as hold:
        first = asyncio.create_task(chat(api, **target))
        await hold.until_reached()
        assert (await chat(api, "other", **target)).status_code == 422
    fresh(await first)


async def test_idempotency_key_ignores_json_formatting(api: httpx.AsyncClient, fake: AzureOpenAI) -> None:
    first = fresh(await chat(api, session_id="s", temperature=1, stop=["a"]))

    spellings = [
        '{ "stop": ["a"], "temperature": 1.0, "session_id": "s", "message": "h\\u0069" }',
        '{"message":"hi","session_id":"s","temperature":1e0,"stop":["a"],"stream":false,"seed":null}',
    ]
    for content in spellings:
        headers = {"idempotency-key": KEY, "content-type": "application/json"}
        assert replayed(await api.post("/api/chat", content=content, headers=headers)) == first
    assert len(fake.requests) == 1


# After a turn without an answer


FAULTS = {
    "failed": Fault("status", 500),
    "unaccounted": Fault("context_length", billed=True),
    "unaccounted, content filter": Fault("content_filter"),
}


@EITHER
@pytest.mark.parametrize("fault", FAULTS)
async def test_idempotency_key_allows_a_retry_after_a_failed_turn(
    api: httpx.AsyncClient, fake: AzureOpenAI, tables: Tables, target: dict[str, str], fault: str
) -> None:
    responder, fake.responder = fake.responder, lambda _: FAULTS[fault]
    for _ in range(2):
        refused = await chat(api, **target)
        assert refused.status_code in (400, 502, 503)
        assert "idempotent-replayed" not in refused.headers
    fake.responder = responder

    retried = fresh(await chat(api, **target))

    assert retried["turn"] == 3
    assert replayed(await chat(api, **target)) == retried
    keys = [key for key in await row_keys(tables, retried["session_id"]) if key.startswith("used-")]
    assert len(keys) == 1
    assert len(await assert_conserved(tables, fake)) == 3


@EITHER
async def test_idempotency_key_allows_a_retry_after_an_interrupted_turn(
    api: httpx.AsyncClient, fake: AzureOpenAI, tables: Tables, target: dict[str, str]
) -> None:
    with fake.hold() as hold:
        first = asyncio.create_task(chat(api, **target))
        await hold.until_reached()
        session = target.get("session_id") or (await first_sessions(tables))[0]
        await expire_lease(tables, session)

        again = fresh(await chat(api, **target))

        assert (again["turn"], again["session_id"]) == (2, session)
        assert again["session"]["unaccounted_calls"] == 1
    assert fresh(await first)["turn"] == 1
    assert replayed(await chat(api, **target))["turn"] == 2
    await assert_conserved(tables, fake)


@EITHER
async def test_idempotency_key_allows_a_retry_after_an_abandoned_turn(
    storage: TcpProxy, api: httpx.AsyncClient, fake: AzureOpenAI, tables: Tables, target: dict[str, str]
) -> None:
    with stall_request(storage, ledger_insert("[^~]*")) as insertion:
        first = asyncio.create_task(chat(api, **target))
        await insertion.until_reached()
        session = target.get("session_id") or (await first_sessions(tables))[0]
        await expire_lease(tables, session)

        again = fresh(await chat(api, **target))

        assert (again["turn"], again["session_id"]) == (2, session)
    assert (await first).status_code == 503
    assert replayed(await chat(api, **target))["turn"] == 2
    assert len(fake.requests) == 1
    await assert_conserved(tables, fake)


async def test_idempotency_key_bills_one_of_twenty_concurrent_retries(
    api: httpx.AsyncClient, fake: AzureOpenAI, tables: Tables
) -> None:
    fake.fault("content_filter")
    assert (await chat(api, session_id="s")).status_code == 400
    await closed_ledger(tables)

    responses = await asyncio.gather(*(chat(api, session_id="s") for _ in range(20)))

    assert {response.status_code for response in responses} <= {200, 409}
    assert len(fake.meter) == 2
    await assert_conserved(tables, fake)


# A first request without a session_id


async def test_idempotency_key_without_session_id_finds_the_session_it_created(
    api: httpx.AsyncClient, fake: AzureOpenAI, tables: Tables
) -> None:
    first = fresh(await chat(api))
    session = first["session_id"]

    assert replayed(await chat(api)) == first
    assert replayed(await chat(api, session_id=session)) == first
    assert await first_sessions(tables) == [session]
    assert fresh(await chat(api, "next", key="short", session_id=session))["turn"] == 2


async def test_idempotency_key_reserves_a_session_id_even_if_the_turn_fails(
    storage: TcpProxy, api: httpx.AsyncClient, fake: AzureOpenAI, tables: Tables
) -> None:
    storage.on(session_transaction("[0-9a-f]{32}"), REFUSED)
    assert (await chat(api)).status_code == 503
    [session] = await first_sessions(tables)

    assert fresh(await chat(api))["session_id"] == session
    assert replayed(await chat(api))["session_id"] == session
    await assert_conserved(tables, fake)


@pytest.mark.parametrize(
    ("body", "status"),
    [
        ({"tool_results": [{"tool_call_id": "call_1", "content": "4"}]}, 400),
        ({"message": "m" * 200_000, "max_tokens": 100_000}, 413),
    ],
)
async def test_invalid_first_request_does_not_use_up_its_idempotency_key(
    serve: Serve, environ: dict[str, str], tables: Tables, body: JSON, status: int
) -> None:
    async with serve(environ | {"CONTEXT_TOKENS": "300000"}) as api:
        refused = await api.post("/api/chat", json=body, headers={"idempotency-key": KEY})
        assert refused.status_code == status
        assert [row async for row in all_rows(tables.sessions)] == []
        fresh(await chat(api))


async def test_session_id_cannot_be_derived_from_the_idempotency_key(
    serve: Serve, environ: dict[str, str], prefix: str
) -> None:
    sessions = []
    for app in range(2):
        async with serve(environ | {"TABLE_PREFIX": f"{prefix}{app}"}) as api:
            sessions.append(fresh(await chat(api))["session_id"])

    assert sessions[0] != sessions[1]
    assert all(re.fullmatch("[0-9a-f]{32}", session) for session in sessions)


async def test_idempotency_key_without_session_id_needs_22_characters(
    api: httpx.AsyncClient, fake: AzureOpenAI, tables: Tables
) -> None:
    refused = await chat(api, key="k" * 21)
    assert (refused.status_code, refused.json()["error"]["param"]) == (400, "Idempotency-Key")
    assert "22" in refused.json()["error"]["message"]
    assert not fake.requests

    fresh(await chat(api, key="k" * 22))
    fresh(await chat(api, key="k", session_id="s"))
    assert len(await first_sessions(tables)) == 1


# Scope and lifetime of a key


async def test_idempotency_key_is_scoped_to_the_session(api: httpx.AsyncClient, fake: AzureOpenAI) -> None:
    answers = [fresh(await chat(api, **target)) for target in ({"session_id": "a"}, {"session_id": "b"}, {})]

    assert len({answer["session_id"] for answer in answers}) == 3
    assert replayed(await chat(api, session_id="a")) == answers[0]
    assert replayed(await chat(api)) == answers[2]
    assert len(fake.requests) == 3


@EITHER
async def test_different_idempotency_keys_are_different_requests(
    api: httpx.AsyncClient, fake: AzureOpenAI, target: dict[str, str]
) -> None:
    for _ in range(3):
        fresh(await chat(api, key=str(uuid.uuid4()), **target))
    assert len(fake.requests) == 3


@EITHER
@pytest.mark.parametrize("ending", ["cleared", "erased"])
async def test_idempotency_keys_are_deleted_with_the_session_content(
    api: httpx.AsyncClient, fake: AzureOpenAI, tables: Tables, target: dict[str, str], ending: str
) -> None:
    first = fresh(await chat(api, **target))
    session = first["session_id"]
    await chat(api, "more", key="another", session_id=session)
    path = f"/api/sessions/{session}" + ("/messages" if ending == "cleared" else "")
    assert (await api.delete(path)).status_code == 204
    remaining = [row["RowKey"] async for row in all_rows(tables.sessions)]
    assert not [key for key in remaining if key.startswith("used-") or key == rows.POINTER]

    again = fresh(await chat(api, **target))

    assert again["turn"] == (3 if target and ending == "cleared" else 1)
    assert (again["session_id"] == session) == bool(target)
    assert fresh(await chat(api, "another body", key="another", session_id=session))
    await assert_conserved(tables, fake, erased={session} if ending == "erased" else ())


async def test_malformed_idempotency_key_returns_400(api: httpx.AsyncClient, fake: AzureOpenAI) -> None:
    for key in ["", "two words", "k" * 256, "tab\there", "ä" * 22]:
        headers, body = {b"idempotency-key": key.encode()}, {"message": "hi", "session_id": "s"}
        refused = await api.post("/api/chat", json=body, headers=headers)
        assert (refused.status_code, refused.json()["error"]["param"]) == (400, "Idempotency-Key"), key
    assert not fake.requests


async def test_idempotency_key_may_have_255_characters(api: httpx.AsyncClient) -> None:
    key = "".join(map(chr, range(0x21, 0x7F))) * 3
    fresh(await chat(api, key=key[:255]))
    replayed(await chat(api, key=key[:255]))


async def test_idempotency_key_is_stored_only_as_a_hash(api: httpx.AsyncClient, tables: Tables) -> None:
    await chat(api)
    await chat(api, session_id="s")

    for table in (tables.sessions, tables.usage):
        assert KEY not in repr([row async for row in all_rows(table)])


# Storage requests


async def test_idempotency_key_adds_one_storage_request_or_two_without_session_id(
    storage: TcpProxy, api: httpx.AsyncClient, tables: Tables
) -> None:
    async def count_requests(**request: Any) -> int:
        before = len(storage.seen)
        ok_json(await api.post("/api/chat", **request))
        await services().turns.finish()
        return len(storage.seen) - before

    key, named = {"idempotency-key": KEY}, {"message": "hi", "session_id": "s"}
    assert await count_requests(json=named) == 5
    assert await count_requests(json=named, headers=key) == 5 + 1
    assert await count_requests(json={"message": "hi"}) == 5
    assert await count_requests(json={"message": "hi"}, headers=key) == 5 + 2
    _, turns = await stored(tables)
    assert len(turns) == 2
