"""Turns while the table service fails: committed writes count once, others leave no trace."""

import asyncio
from dataclasses import dataclass
from operator import attrgetter

import httpx
import pytest

from shared.domain.calls import State
from shared.services import services
from tests.conftest import Tables
from tests.support.azure_openai import AzureOpenAI
from tests.support.chat_client import (
    answer,
    closed_ledger,
    expire_lease,
    fill,
    get_json,
    ledger,
    ok_json,
    send_message,
    stored,
    until,
)
from tests.support.conservation import assert_conserved
from tests.support.proxy import Action, Answer, Close, Cut, Match, TcpProxy
from tests.support.rude_upstream import with_rude_fake_in_acceptance
from tests.support.stored_responses import OWNER, respond

pytestmark = [
    with_rude_fake_in_acceptance,
    pytest.mark.usefixtures("storage"),  # started before `api`, so that the app uses the proxy
]

LOST = Close(after_answer=True)  # committed, response lost
LOST_OR_CUT = pytest.mark.parametrize("lost", [LOST, Cut(), Cut(framing="chunked")], ids=["lost", "cut", "cut chunk"])


@dataclass(frozen=True)
class Requests:
    """The storage requests of a turn, as the proxy sees them."""

    read: Match
    commit: Match  # the first one of a turn reserves, the last one settles
    head: Match
    pointer: Match  # the row of an Idempotency-Key without a session_id
    insert_row: Match
    raise_row: Match


@pytest.fixture
def requests(prefix: str) -> Requests:
    return Requests(
        read=Match("GET", rf"/{prefix}sessions\(\)"),
        commit=Match("POST", r"/\$batch", f"{prefix}sessions"),
        head=Match("GET", f"/{prefix}sessions.PartitionKey='s',RowKey='head'"),
        pointer=Match("POST", f"/{prefix}sessions$", "~key-"),
        insert_row=Match("POST", f"/{prefix}usage$"),
        raise_row=Match("PUT", rf"/{prefix}usage\("),
    )


async def complete_first_turn(api: httpx.AsyncClient, tables: Tables) -> None:
    """A first turn, including its settlement."""
    await answer(api, "before")
    await closed_ledger(tables)


# The response to a write is lost


@LOST_OR_CUT
@pytest.mark.parametrize("write", ["reserve", "insert_row", "settle", "raise_row"])
async def test_write_with_a_lost_response_counts_once(
    api: httpx.AsyncClient,
    fake: AzureOpenAI,
    tables: Tables,
    storage: TcpProxy,
    requests: Requests,
    write: str,
    lost: Action,
) -> None:
    await complete_first_turn(api, tables)
    match write:
        case "reserve":
            rule = storage.on(requests.commit, lost)
        case "insert_row":
            rule = storage.on(requests.insert_row, lost)
        case "settle":
            rule = storage.on(requests.commit, lost, nth=2)
        case _:
            rule = storage.on(requests.raise_row, lost)

    second = await answer(api, "hi")

    states = [entry.call.state for entry in await closed_ledger(tables)]
    assert rule.hits == 1
    assert (second["turn"], second["message"]["content"]) == (2, "echo: hi")
    assert second["session"]["unaccounted_calls"] == 0
    assert states == [State.SETTLED] * 2
    assert len(fake.meter) == 2
    assert (await answer(api, "after"))["turn"] == 3
    await assert_conserved(tables, fake)


@pytest.mark.parametrize("write", ["reserve", "insert_row", "settle", "raise_row", "enter_branch"])
@pytest.mark.parametrize("kind", ["in place", "branch", "conversation"])
async def test_write_of_a_response_with_a_lost_response_counts_once(
    api: httpx.AsyncClient,
    fake: AzureOpenAI,
    tables: Tables,
    storage: TcpProxy,
    requests: Requests,
    prefix: str,
    kind: str,
    write: str,
) -> None:
    root = await respond("root")
    if kind == "branch":
        await respond("in place", after=root)
    conversation = (await services().conversations.create(OWNER)).id if kind == "conversation" else None
    await closed_ledger(tables)
    match write:
        case "reserve":
            rule = storage.on(requests.commit, LOST)
        case "settle":
            rule = storage.on(requests.commit, LOST, nth=2)
        case "enter_branch":
            rule = storage.on(Match("POST", f"/{prefix}sessions$", "branch-"), LOST)
        case _:
            rule = storage.on(getattr(requests, write), LOST)

    answered = await respond("hi", after=None if conversation else root, conversation=conversation)

    assert answered.turn.messages[-1]["content"] == "echo: hi"
    assert (answered.session.id == root.session.id) == (kind == "in place")
    entries = await assert_conserved(tables, fake)
    assert {entry.call.state for entry in entries} == {State.SETTLED}
    assert len(entries) == len(fake.meter) == (3 if kind == "branch" else 2)
    assert rule.hits == (kind == "branch" or write != "enter_branch")


@LOST_OR_CUT
async def test_retry_transaction_with_a_lost_response_counts_once(
    api: httpx.AsyncClient, fake: AzureOpenAI, tables: Tables, storage: TcpProxy, requests: Requests, lost: Action
) -> None:
    await complete_first_turn(api, tables)
    fake.fault(504)
    rule = storage.on(requests.commit, lost, nth=2)

    retried = await answer(api, "hi")

    assert rule.hits == 1
    assert retried["session"]["unaccounted_calls"] == 1
    assert [entry.call.state for entry in await closed_ledger(tables)][1:] == [State.UNACCOUNTED, State.SETTLED]
    await assert_conserved(tables, fake)


@LOST_OR_CUT
async def test_first_turn_of_a_session_counts_once_after_lost_responses(
    api: httpx.AsyncClient, fake: AzureOpenAI, tables: Tables, storage: TcpProxy, requests: Requests, lost: Action
) -> None:
    rules = [storage.on(match, lost) for match in (requests.pointer, requests.commit, requests.insert_row)]

    response = await api.post("/api/chat", json={"message": "hi"}, headers={"idempotency-key": "k" * 22})

    first = ok_json(response)
    assert [rule.hits for rule in rules] == [1, 1, 1]
    assert first["turn"] == first["session"]["turns"] == 1
    assert first["session"]["cost_usd"] == first["cost_usd"]
    assert [entry.call.state for entry in await closed_ledger(tables)] == [State.SETTLED]


async def test_recovery_of_a_reservation_that_could_not_be_confirmed(
    api: httpx.AsyncClient, fake: AzureOpenAI, tables: Tables, storage: TcpProxy, requests: Requests
) -> None:
    await complete_first_turn(api, tables)
    storage.on(requests.commit, LOST)
    storage.on(requests.head, Close(), times=None)

    refused = await send_message(api, "lost words")

    assert (refused.status_code, refused.headers["retry-after"]) == (503, "5")
    assert len(fake.requests) == 1
    storage.clear()
    assert (await send_message(api)).status_code == 409
    await expire_lease(tables)
    assert (await answer(api, "after"))["turn"] == 3
    assert [entry.call.state for entry in await closed_ledger(tables)] == [
        State.SETTLED,
        State.ABANDONED,
        State.SETTLED,
    ]
    await assert_conserved(tables, fake)


# A write is lost


async def test_failed_reservation_returns_503_and_stores_nothing(
    api: httpx.AsyncClient, fake: AzureOpenAI, tables: Tables, storage: TcpProxy, requests: Requests
) -> None:
    await complete_first_turn(api, tables)
    storage.on(requests.commit, Close())

    refused = await send_message(api, "lost words")

    error = refused.json()["error"]
    assert (refused.status_code, error["code"]) == (503, "storage_unavailable")
    assert refused.headers["retry-after"] == "5"
    assert len(fake.requests) == 1
    assert (await get_json(api, "/api/sessions/s"))["turns"] == 1
    assert (await answer(api, "after"))["turn"] == 2
    await assert_conserved(tables, fake)


@pytest.mark.parametrize("streamed", [True, False])
async def test_failed_ledger_insert_returns_503_and_calls_no_model(
    api: httpx.AsyncClient,
    fake: AzureOpenAI,
    tables: Tables,
    storage: TcpProxy,
    requests: Requests,
    streamed: bool,
) -> None:
    await complete_first_turn(api, tables)
    storage.on(requests.insert_row, Close())

    refused = await send_message(api, "lost words", stream=streamed)

    assert (refused.status_code, refused.headers["retry-after"]) == (503, "5")
    assert refused.json()["error"]["code"] == "storage_unavailable"
    await services().turns.finish()
    assert [entry.call.state for entry in sorted(await ledger(tables), key=attrgetter("turn"))] == ["settled", "failed"]
    assert len(fake.requests) == 1
    assert (await get_json(api, "/api/sessions/s"))["unaccounted_calls"] == 0
    _, [_, lost] = await stored(tables)
    assert (lost.call.state, lost.finish_reason) == (State.FAILED, "error")
    await answer(api, "after")
    assert [m["content"] for m in fake.requests[1].body["messages"][1:]] == ["before", "echo: before", "after"]


# The table service is down


async def test_all_session_routes_return_503_while_storage_is_down(
    api: httpx.AsyncClient, fake: AzureOpenAI, tables: Tables, storage: TcpProxy
) -> None:
    await complete_first_turn(api, tables)
    storage.down()

    refused = await asyncio.gather(
        send_message(api, "lost words"),
        api.get("/api/sessions/s"),
        api.get("/api/sessions/s/messages"),
        api.delete("/api/sessions/s/messages"),
        api.delete("/api/sessions/s"),
    )

    assert {answer.status_code for answer in refused} == {503}
    assert {answer.headers["retry-after"] for answer in refused} == {"5"}
    assert {answer.json()["error"]["code"] for answer in refused} == {"storage_unavailable"}
    assert "127.0.0.1" not in "".join(answer.text for answer in refused)
    assert len(fake.requests) == 1
    storage.up()
    assert (await answer(api, "after"))["turn"] == 2
    await assert_conserved(tables, fake)


async def test_health_does_not_use_storage(api: httpx.AsyncClient, storage: TcpProxy) -> None:
    storage.down()

    assert ok_json(await api.get("/api/health")) == {"status": "ok"}


async def test_turn_retries_settlement_until_storage_is_back(
    api: httpx.AsyncClient,
    fake: AzureOpenAI,
    tables: Tables,
    storage: TcpProxy,
    caplog: pytest.LogCaptureFixture,
) -> None:
    await complete_first_turn(api, tables)

    async def is_logged() -> bool | None:
        return "storage can't be reached" in caplog.text or None

    async def interrupt_storage() -> None:
        await hold.until_reached()
        storage.down()
        hold.release()
        await until(is_logged)
        storage.up()

    with fake.hold() as hold:
        second, _ = await asyncio.gather(answer(api, "hi"), interrupt_storage())

    assert (second["turn"], second["message"]["content"]) == (2, "echo: hi")
    await assert_conserved(tables, fake)


@pytest.mark.parametrize("status", [500, 503])
async def test_single_storage_error_is_retried_by_the_sdk(
    api: httpx.AsyncClient, fake: AzureOpenAI, tables: Tables, storage: TcpProxy, status: int
) -> None:
    await complete_first_turn(api, tables)
    rule = storage.on(Match(), Answer(status), nth=2, times=1)

    assert (await answer(api, "hi"))["turn"] == 2
    assert rule.hits == 1
    await assert_conserved(tables, fake)


# Storage requests of a turn


@pytest.mark.parametrize("before", [1, 63, 64, 999])
async def test_turn_takes_five_storage_requests_for_any_history_length(
    api: httpx.AsyncClient, tables: Tables, storage: TcpProxy, requests: Requests, before: int
) -> None:
    await fill(tables, before)
    seen = len(storage.seen)

    assert (await answer(api, "hi"))["turn"] == before + 1

    await closed_ledger(tables)
    order = [requests.read, requests.commit, requests.insert_row, requests.commit, requests.raise_row]
    turn_requests = storage.seen[seen:]
    assert len(turn_requests) == 5
    assert all(match.matches(request) for match, request in zip(order, turn_requests, strict=True))
