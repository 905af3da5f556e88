"""Idempotency-Key: the same request is answered again and never paid for again, whatever happened in between."""

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
from tests.support.conservation import assert_conserved, everything
from tests.support.faults import REFUSED, entering, kept, transaction
from tests.support.proxy import TcpProxy
from tests.support.talking import (
    JSON,
    age_lease,
    answer,
    answered,
    closed_ledger,
    events,
    look,
    row_keys,
    stored,
)

KEY = "5f0c6f0e-4d0b-4c58-8f0a-1d2b3c4d5e6f"


async def post(api: httpx.AsyncClient, message: object = "hi", key: str = KEY, **fields: object) -> httpx.Response:
    return await api.post("/api/chat", json={"message": message, **fields}, headers={"idempotency-key": key})


def replayed(response: httpx.Response) -> JSON:
    assert response.headers["idempotent-replayed"] == "true", response.text
    return answered(response)


def fresh(response: httpx.Response) -> JSON:
    assert "idempotent-replayed" not in response.headers
    return answered(response)


async def pointers(tables: Tables) -> list[str]:
    """The sessions that first posts' keys lead to."""
    return [row["session"] async for row in everything(tables.sessions) if row["PartitionKey"].startswith("~key-")]


NAMED: list[dict[str, str]] = [{"session_id": "s"}, {}]
EITHER = pytest.mark.parametrize("where", NAMED, ids=["a known session", "a first post"])


# The first answer again


@EITHER
async def test_the_same_request_has_the_same_answer_byte_for_byte(
    api: httpx.AsyncClient, fake: AzureOpenAI, tables: Tables, where: dict[str, str]
) -> None:
    first = await post(api, **where)
    again = [await post(api, **where) for _ in range(3)]

    fresh(first)
    assert [replayed(response) for response in again] == [answered(first)] * 3
    assert {response.content for response in again} == {first.content}
    assert len(fake.requests) == len(fake.meter) == 1
    await assert_conserved(tables, fake)


@EITHER
async def test_an_answer_from_long_ago_comes_with_the_totals_of_today(
    api: httpx.AsyncClient, fake: AzureOpenAI, tables: Tables, where: dict[str, str]
) -> None:
    first = fresh(await post(api, **where))
    session = first["session_id"]
    for _ in range(3):
        last = await answer(api, "more", session)

    again = replayed(await post(api, **where))

    assert again == first | {"session": last["session"]}
    assert (again["turn"], again["session"]["turns"]) == (1, 4)
    assert len(fake.requests) == 4
    assert (await look(api, f"/api/sessions/{session}"))["cost_usd"] == last["session"]["cost_usd"]
    await assert_conserved(tables, fake)


REPLIES: dict[str, dict[str, Any]] = {
    "text": {"text": "Ünï 🙂 \u2028 code"},
    "refusal": {"refusal": "I will not."},
    "tool calls": {"tool_calls": (("call_1", "f", '{"a": 1}'), ("call_2", "g", "{}"))},
    "nothing": {"text": ""},
}


@pytest.mark.parametrize("reply", REPLIES)
@pytest.mark.parametrize("streamed", [False, True], ids=["first as JSON", "first streamed"])
async def test_an_answer_may_be_had_again_as_a_stream_or_as_json(
    api: httpx.AsyncClient, fake: AzureOpenAI, reply: str, streamed: bool
) -> None:
    fake.reply(**REPLIES[reply])
    await post(api, session_id="s", logprobs=True, stream=streamed)

    whole = replayed(await post(api, session_id="s", logprobs=True))
    response = await post(api, session_id="s", logprobs=True, stream=True)

    assert response.headers["idempotent-replayed"] == "true"
    start, *deltas, done = events(response.content)
    assert (start.name, start.data) == ("start", {"session_id": "s", "turn": 1, "deployment": "chat"})
    assert (done.name, done.data) == ("done", whole)
    pieces = {name: value for delta in deltas for name, value in delta.data.items()}
    said = {name: value for name, value in whole["message"].items() if name != "role" and value}
    if calls := said.get("tool_calls"):  # as of any stream, by which its reader puts pieces together
        said["tool_calls"] = [{"index": at, **call} for at, call in enumerate(calls)]
    assert pieces == said
    assert {delta.name for delta in deltas} <= {"delta"}
    assert len(fake.requests) == 1


async def test_a_stream_that_broke_off_at_the_caller_may_be_had_again_whole(
    api: httpx.AsyncClient, fake: AzureOpenAI, tables: Tables
) -> None:
    body = {"message": "one two three four", "session_id": "s", "stream": True}
    with fake.hold(after=1) as hold:
        async with api.stream("POST", "/api/chat", json=body, headers={"idempotency-key": KEY}) as response:
            async for _ in response.aiter_bytes():
                break
            await hold.until_reached()
    await services().turns.finish()

    assert replayed(await post(api, "one two three four", session_id="s"))["message"]["content"]
    assert len(fake.requests) == 1
    await assert_conserved(tables, fake)


@EITHER
async def test_an_answer_outlives_a_restart(
    serve: Serve, environ: dict[str, str], fake: AzureOpenAI, tables: Tables, where: dict[str, str]
) -> None:
    async with serve(environ) as api:
        first = await post(api, **where)
    async with serve(environ) as api:
        again = await post(api, **where)

        replayed(again)
        assert again.content == first.content
        assert len(fake.requests) == 1
        await assert_conserved(tables, fake)


async def test_a_replay_does_not_wait_for_another_turn(api: httpx.AsyncClient, fake: AzureOpenAI) -> None:
    first = fresh(await post(api, session_id="s"))
    with fake.hold() as hold:
        running = asyncio.create_task(answer(api, "another"))
        await hold.until_reached()

        assert replayed(await post(api, session_id="s"))["message"] == first["message"]
    await running


# While the first one runs


@EITHER
async def test_while_the_first_runs_the_second_is_told_to_wait(
    api: httpx.AsyncClient, fake: AzureOpenAI, tables: Tables, where: dict[str, str]
) -> None:
    with fake.hold() as hold:
        first = asyncio.create_task(post(api, **where))
        await hold.until_reached()
        for stream in (False, True):
            waiting = await post(api, **where, stream=stream)
            assert (waiting.status_code, waiting.json()["error"]["code"]) == (409, "session_busy")
            assert 1 <= int(waiting.headers["retry-after"]) <= 30
    assert replayed(await post(api, **where)) == fresh(await first)
    assert len(fake.requests) == 1
    await assert_conserved(tables, fake)


@EITHER
async def test_of_twenty_at_once_one_is_paid(
    api: httpx.AsyncClient, fake: AzureOpenAI, tables: Tables, where: dict[str, str]
) -> None:
    posts = await asyncio.gather(*(post(api, **where) for _ in range(20)))

    assert {response.status_code for response in posts} <= {200, 409}
    told = [response for response in posts if response.status_code == 200]
    assert len({response.content for response in told}) == 1
    assert sum("idempotent-replayed" not in response.headers for response in told) == 1
    assert len(fake.meter) == len(fake.requests) == 1
    assert len(await assert_conserved(tables, fake)) == 1


async def test_a_retry_that_overtakes_its_first_attempt_is_the_one_that_is_paid(
    storage: TcpProxy, api: httpx.AsyncClient, fake: AzureOpenAI, tables: Tables
) -> None:
    with kept(storage, transaction("s")) as reservation:
        slow = asyncio.create_task(post(api, session_id="s"))
        await reservation.until_reached()
        quick = fresh(await post(api, session_id="s"))
    late = await slow
    assert (late.status_code, late.json()["error"]["code"]) == (409, "session_busy")
    assert replayed(await post(api, session_id="s")) == quick
    assert len(fake.requests) == 1
    await assert_conserved(tables, fake)


# Another request under the same key


OTHERS: list[dict[str, Any]] = [
    {"message": "other"},
    {"message": [{"type": "text", "text": "hi"}]},
    {"temperature": 0.5},
    {"max_tokens": 7},
    {"system": "Be brief."},
    {"deployment": "chat"},
]


@EITHER
async def test_another_request_is_refused_and_learns_nothing(
    api: httpx.AsyncClient, fake: AzureOpenAI, where: dict[str, str]
) -> None:
    first = fresh(await post(api, **where))

    for other in OTHERS:
        refused = await post(api, **where | {"message": "hi"} | other)

        assert (refused.status_code, refused.json()["error"]["code"]) == (422, "idempotency_mismatch"), other
        assert refused.json()["error"]["param"] == "Idempotency-Key"
        assert where or first["session_id"] not in refused.text + str(refused.headers)
    assert len(fake.requests) == 1
    assert replayed(await post(api, **where)) == first


@EITHER
async def test_another_request_is_refused_while_the_first_runs(
    api: httpx.AsyncClient, fake: AzureOpenAI, where: dict[str, str]
) -> None:
    with fake.hold() as hold:
        first = asyncio.create_task(post(api, **where))
        await hold.until_reached()
        assert (await post(api, "other", **where)).status_code == 422
    fresh(await first)


async def test_how_a_request_is_written_makes_no_difference(api: httpx.AsyncClient, fake: AzureOpenAI) -> None:
    first = fresh(await post(api, session_id="s", temperature=1, stop=["a"]))

    spellings = [
        '{ "stop": ["a"], "temperature": 1.0, "session_id": "s", "message": "h\\u0069" }',
        '{"message":"hi","session_id":"s","temperature":1e0,"stop":["a"],"stream":false,"seed":null}',
    ]
    for content in spellings:
        headers = {"idempotency-key": KEY, "content-type": "application/json"}
        assert replayed(await api.post("/api/chat", content=content, headers=headers)) == first
    assert len(fake.requests) == 1


# After a turn that gave no answer


UNLUCKY = {
    "failed": Fault("status", 500),
    "unaccounted": Fault("no_usage"),
    "unaccounted for its prompt": Fault("content_filter"),
}


@EITHER
@pytest.mark.parametrize("fault", UNLUCKY)
async def test_a_turn_that_gave_no_answer_may_be_tried_again(
    api: httpx.AsyncClient, fake: AzureOpenAI, tables: Tables, where: dict[str, str], fault: str
) -> None:
    usual, fake.responder = fake.responder, lambda _: UNLUCKY[fault]
    for _ in range(2):
        refused = await post(api, **where)
        assert refused.status_code in (400, 502, 503)
        assert "idempotent-replayed" not in refused.headers
    fake.responder = usual

    told = fresh(await post(api, **where))

    assert told["turn"] == 3
    assert replayed(await post(api, **where)) == told
    keys = [key for key in await row_keys(tables, told["session_id"]) if key.startswith("used-")]
    assert len(keys) == 1
    assert len(await assert_conserved(tables, fake)) == 3


@EITHER
async def test_a_turn_that_was_interrupted_may_be_tried_again(
    api: httpx.AsyncClient, fake: AzureOpenAI, tables: Tables, where: dict[str, str]
) -> None:
    with fake.hold() as hold:
        first = asyncio.create_task(post(api, **where))
        await hold.until_reached()
        session = where.get("session_id") or (await pointers(tables))[0]
        await age_lease(tables, session)

        again = fresh(await post(api, **where))

        assert (again["turn"], again["session_id"]) == (2, session)
        assert again["session"]["unaccounted_calls"] == 1
    assert fresh(await first)["turn"] == 1
    assert replayed(await post(api, **where))["turn"] == 2
    await assert_conserved(tables, fake)


@EITHER
async def test_a_turn_that_was_abandoned_may_be_tried_again(
    storage: TcpProxy, api: httpx.AsyncClient, fake: AzureOpenAI, tables: Tables, where: dict[str, str]
) -> None:
    with kept(storage, entering("[^~]*")) as insertion:
        first = asyncio.create_task(post(api, **where))
        await insertion.until_reached()
        session = where.get("session_id") or (await pointers(tables))[0]
        await age_lease(tables, session)

        again = fresh(await post(api, **where))

        assert (again["turn"], again["session_id"]) == (2, session)
    assert (await first).status_code == 503
    assert replayed(await post(api, **where))["turn"] == 2
    assert len(fake.requests) == 1
    await assert_conserved(tables, fake)


async def test_of_twenty_second_attempts_at_once_one_is_paid(
    api: httpx.AsyncClient, fake: AzureOpenAI, tables: Tables
) -> None:
    fake.fault("no_usage")
    assert (await post(api, session_id="s")).status_code == 502
    await closed_ledger(tables)

    posts = await asyncio.gather(*(post(api, session_id="s") for _ in range(20)))

    assert {response.status_code for response in posts} <= {200, 409}
    assert len(fake.meter) == 2
    await assert_conserved(tables, fake)


# A first post without a session id


async def test_a_first_posts_retry_finds_the_session_that_it_made(
    api: httpx.AsyncClient, fake: AzureOpenAI, tables: Tables
) -> None:
    first = fresh(await post(api))
    session = first["session_id"]

    assert replayed(await post(api)) == first
    assert replayed(await post(api, session_id=session)) == first
    assert await pointers(tables) == [session]
    assert fresh(await post(api, "next", key="short", session_id=session))["turn"] == 2


async def test_a_first_post_that_could_not_be_reserved_keeps_its_session_id(
    storage: TcpProxy, api: httpx.AsyncClient, fake: AzureOpenAI, tables: Tables
) -> None:
    storage.on(transaction("[0-9a-f]{32}"), REFUSED)
    assert (await post(api)).status_code == 503
    [session] = await pointers(tables)

    assert fresh(await post(api))["session_id"] == session
    assert replayed(await post(api))["session_id"] == session
    await assert_conserved(tables, fake)


@pytest.mark.parametrize(
    ("body", "status"),
    [
        ({"tool_results": [{"tool_call_id": "call_1", "content": "4"}]}, 400),
        ({"message": "m" * 200_000, "max_tokens": 100_000}, 413),
    ],
)
async def test_a_first_post_that_is_refused_does_not_use_up_its_key(
    serve: Serve, environ: dict[str, str], tables: Tables, body: JSON, status: int
) -> None:
    async with serve(environ | {"CONTEXT_TOKENS": "300000"}) as api:
        refused = await api.post("/api/chat", json=body, headers={"idempotency-key": KEY})
        assert refused.status_code == status
        assert [row async for row in everything(tables.sessions)] == []
        fresh(await post(api))


async def test_a_session_id_says_nothing_of_its_key(serve: Serve, environ: dict[str, str], prefix: str) -> None:
    made = []
    for app in range(2):
        async with serve(environ | {"TABLE_PREFIX": f"{prefix}{app}"}) as api:
            made.append(fresh(await post(api))["session_id"])

    assert made[0] != made[1]
    assert all(re.fullmatch("[0-9a-f]{32}", session) for session in made)


async def test_a_first_posts_key_is_hard_to_guess(api: httpx.AsyncClient, fake: AzureOpenAI, tables: Tables) -> None:
    refused = await post(api, key="k" * 21)
    assert (refused.status_code, refused.json()["error"]["param"]) == (400, "Idempotency-Key")
    assert "22" in refused.json()["error"]["message"]
    assert not fake.requests

    fresh(await post(api, key="k" * 22))
    fresh(await post(api, key="k", session_id="s"))
    assert len(await pointers(tables)) == 1


# Whose key it is, and how long


async def test_a_key_belongs_to_the_session_that_its_post_names(api: httpx.AsyncClient, fake: AzureOpenAI) -> None:
    told = [fresh(await post(api, **where)) for where in ({"session_id": "a"}, {"session_id": "b"}, {})]

    assert len({answer["session_id"] for answer in told}) == 3
    assert replayed(await post(api, session_id="a")) == told[0]
    assert replayed(await post(api)) == told[2]
    assert len(fake.requests) == 3


@EITHER
async def test_other_keys_are_other_requests(api: httpx.AsyncClient, fake: AzureOpenAI, where: dict[str, str]) -> None:
    for _ in range(3):
        fresh(await post(api, key=str(uuid.uuid4()), **where))
    assert len(fake.requests) == 3


@EITHER
@pytest.mark.parametrize("ending", ["cleared", "erased"])
async def test_keys_go_with_the_session(
    api: httpx.AsyncClient, fake: AzureOpenAI, tables: Tables, where: dict[str, str], ending: str
) -> None:
    first = fresh(await post(api, **where))
    session = first["session_id"]
    await post(api, "more", key="another", session_id=session)
    path = f"/api/sessions/{session}" + ("/messages" if ending == "cleared" else "")
    assert (await api.delete(path)).status_code == 204
    left = [row["RowKey"] async for row in everything(tables.sessions)]
    assert not [key for key in left if key.startswith("used-") or key == rows.POINTER]

    again = fresh(await post(api, **where))

    assert again["turn"] == (3 if where and ending == "cleared" else 1)
    assert (again["session_id"] == session) == bool(where)
    assert fresh(await post(api, "another body", key="another", session_id=session))
    await assert_conserved(tables, fake, erased={session} if ending == "erased" else ())


async def test_a_malformed_key_is_refused(api: httpx.AsyncClient, fake: AzureOpenAI) -> None:
    for key in ["", "two words", "k" * 256, "tab\there", "ä" * 22]:
        headers, body = {b"idempotency-key": key.encode()}, {"message": "hi", "session_id": "s"}
        refused = await api.post("/api/chat", json=body, headers=headers)
        assert (refused.status_code, refused.json()["error"]["param"]) == (400, "Idempotency-Key"), key
    assert not fake.requests


async def test_a_key_of_255_characters_will_do(api: httpx.AsyncClient) -> None:
    key = "".join(map(chr, range(0x21, 0x7F))) * 3
    fresh(await post(api, key=key[:255]))
    replayed(await post(api, key=key[:255]))


async def test_a_key_is_not_stored_as_it_is(api: httpx.AsyncClient, tables: Tables) -> None:
    await post(api)
    await post(api, session_id="s")

    for table in (tables.sessions, tables.usage):
        assert KEY not in repr([row async for row in everything(table)])


# What it costs


async def test_a_key_takes_one_request_to_storage_and_two_on_a_first_post(
    storage: TcpProxy, api: httpx.AsyncClient, tables: Tables
) -> None:
    async def requests(**post: Any) -> int:
        before = len(storage.seen)
        answered(await api.post("/api/chat", **post))
        await services().turns.finish()
        return len(storage.seen) - before

    key, named = {"idempotency-key": KEY}, {"message": "hi", "session_id": "s"}
    assert await requests(json=named) == 5
    assert await requests(json=named, headers=key) == 5 + 1
    assert await requests(json={"message": "hi"}) == 5
    assert await requests(json={"message": "hi"}, headers=key) == 5 + 2
    _, turns = await stored(tables)
    assert len(turns) == 2
