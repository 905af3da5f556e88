"""A turn while the table service fails: what was committed counts once, what was not is not there at all."""

import asyncio
from dataclasses import dataclass

import httpx
import pytest

from shared.domain.calls import State
from tests.conftest import Tables
from tests.support.azure_openai import AzureOpenAI
from tests.support.conservation import assert_conserved
from tests.support.proxy import Answer, Close, Match, TcpProxy
from tests.support.talking import (
    age_lease,
    answer,
    answered,
    closed_ledger,
    events,
    fill,
    ledger,
    look,
    say,
    stored,
    until,
)

pytestmark = pytest.mark.usefixtures("storage")  # before `api`, so that the app goes through it

LOST = Close(after_answer=True)  # done, and not acknowledged


@dataclass(frozen=True)
class Requests:
    """The storage requests of a turn, as the proxy sees them."""

    read: Match
    commit: Match  # the first of a turn reserves, the last settles
    head: Match
    insert_row: Match
    raise_row: Match


@pytest.fixture
def requests(prefix: str) -> Requests:
    return Requests(
        read=Match("GET", rf"/{prefix}sessions\(\)"),
        commit=Match("POST", r"/\$batch", f"{prefix}sessions"),
        head=Match("GET", f"/{prefix}sessions.PartitionKey='s',RowKey='head'"),
        insert_row=Match("POST", f"/{prefix}usage$"),
        raise_row=Match("PUT", rf"/{prefix}usage\("),
    )


async def begin(api: httpx.AsyncClient, tables: Tables) -> None:
    """A first turn, all of it."""
    await answer(api, "before")
    await closed_ledger(tables)


# An acknowledgement is lost


@pytest.mark.parametrize("kept", ["reserve", "insert_row", "settle", "raise_row"])
async def test_a_write_whose_answer_was_lost_counts_once(
    api: httpx.AsyncClient, fake: AzureOpenAI, tables: Tables, storage: TcpProxy, requests: Requests, kept: str
) -> None:
    await begin(api, tables)
    match kept:
        case "reserve":
            rule = storage.on(requests.commit, LOST)
        case "insert_row":
            rule = storage.on(requests.insert_row, LOST)
        case "settle":
            rule = storage.on(requests.commit, LOST, nth=2)
        case _:
            rule = storage.on(requests.raise_row, LOST)

    told = await answer(api, "hi")

    states = [entry.call.state for entry in await closed_ledger(tables)]
    assert rule.hits == 1
    assert (told["turn"], told["message"]["content"]) == (2, "echo: hi")
    assert told["session"]["unaccounted_calls"] == 0
    assert states == [State.SETTLED] * 2
    assert len(fake.meter) == 2
    assert (await answer(api, "after"))["turn"] == 3
    await assert_conserved(tables, fake)


async def test_a_retry_whose_transaction_was_not_acknowledged_counts_once(
    api: httpx.AsyncClient, fake: AzureOpenAI, tables: Tables, storage: TcpProxy, requests: Requests
) -> None:
    await begin(api, tables)
    fake.fault(504)
    rule = storage.on(requests.commit, LOST, nth=2)

    told = await answer(api, "hi")

    assert rule.hits == 1
    assert told["session"]["unaccounted_calls"] == 1
    assert [entry.call.state for entry in await closed_ledger(tables)][1:] == [State.UNACCOUNTED, State.SETTLED]
    await assert_conserved(tables, fake)


async def test_a_first_turns_writes_count_once_too(
    api: httpx.AsyncClient, fake: AzureOpenAI, tables: Tables, storage: TcpProxy, requests: Requests
) -> None:
    rules = [storage.on(requests.commit, LOST), storage.on(requests.insert_row, LOST)]

    told = await answer(api)

    assert [rule.hits for rule in rules] == [1, 1]
    assert told["turn"] == told["session"]["turns"] == 1
    assert told["session"]["cost_usd"] == told["cost_usd"]
    assert [entry.call.state for entry in await closed_ledger(tables)] == [State.SETTLED]


async def test_a_reservation_that_nobody_could_confirm_is_recovered(
    api: httpx.AsyncClient, fake: AzureOpenAI, tables: Tables, storage: TcpProxy, requests: Requests
) -> None:
    await begin(api, tables)
    storage.on(requests.commit, LOST)
    storage.on(requests.head, Close(), times=None)

    refused = await say(api, "lost words")

    assert (refused.status_code, refused.headers["retry-after"]) == (503, "5")
    assert len(fake.requests) == 1
    storage.clear()
    assert (await say(api)).status_code == 409
    await age_lease(tables)
    assert (await answer(api, "after"))["turn"] == 3
    assert [entry.call.state for entry in await closed_ledger(tables)] == [
        State.SETTLED,
        State.ABANDONED,
        State.SETTLED,
    ]
    await assert_conserved(tables, fake)


# A write does not arrive


async def test_a_turn_that_could_not_be_reserved_is_not_there(
    api: httpx.AsyncClient, fake: AzureOpenAI, tables: Tables, storage: TcpProxy, requests: Requests
) -> None:
    await begin(api, tables)
    storage.on(requests.commit, Close())

    refused = await say(api, "lost words")

    error = refused.json()["error"]
    assert (refused.status_code, error["code"]) == (503, "storage_unavailable")
    assert refused.headers["retry-after"] == "5"
    assert len(fake.requests) == 1
    assert (await look(api, "/api/sessions/s"))["turns"] == 1
    assert (await answer(api, "after"))["turn"] == 2
    await assert_conserved(tables, fake)


@pytest.mark.parametrize("streamed", [True, False])
async def test_nothing_is_spent_that_the_ledger_does_not_hold(
    api: httpx.AsyncClient,
    fake: AzureOpenAI,
    tables: Tables,
    storage: TcpProxy,
    requests: Requests,
    streamed: bool,
) -> None:
    await begin(api, tables)
    storage.on(requests.insert_row, Close())

    refused = await say(api, "lost words", stream=streamed)

    if streamed:
        assert [event.name for event in events(refused.content)] == ["start", "error"]
        assert events(refused.content)[1].data["code"] == "storage_unavailable"
    else:
        assert (refused.status_code, refused.headers["retry-after"]) == (503, "5")
    assert len(fake.requests) == len(await ledger(tables)) == 1
    assert (await look(api, "/api/sessions/s"))["unaccounted_calls"] == 0
    _, [_, lost] = await stored(tables)
    assert (lost.call.state, lost.finish_reason) == (State.FAILED, "error")
    await answer(api, "after")
    assert [m["content"] for m in fake.requests[1].body["messages"][1:]] == ["before", "echo: before", "after"]


# The table service is away


async def test_a_storage_that_is_away_is_told_and_leaves_nothing_half_done(
    api: httpx.AsyncClient, fake: AzureOpenAI, tables: Tables, storage: TcpProxy
) -> None:
    await begin(api, tables)
    storage.down()

    refused = await asyncio.gather(
        say(api, "lost words"),
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


async def test_health_asks_nobody(api: httpx.AsyncClient, storage: TcpProxy) -> None:
    storage.down()

    assert answered(await api.get("/api/health")) == {"status": "ok"}


async def test_a_turn_settles_once_storage_is_back(
    api: httpx.AsyncClient,
    fake: AzureOpenAI,
    tables: Tables,
    storage: TcpProxy,
    caplog: pytest.LogCaptureFixture,
) -> None:
    await begin(api, tables)

    async def tried() -> bool | None:
        return "storage can't be reached" in caplog.text or None

    async def back() -> None:
        await hold.until_reached()
        storage.down()
        hold.release()
        await until(tried)
        storage.up()

    with fake.hold() as hold:
        told, _ = await asyncio.gather(answer(api, "hi"), back())

    assert (told["turn"], told["message"]["content"]) == (2, "echo: hi")
    await assert_conserved(tables, fake)


@pytest.mark.parametrize("status", [500, 503])
async def test_a_storage_that_stumbles_goes_unnoticed(
    api: httpx.AsyncClient, fake: AzureOpenAI, tables: Tables, storage: TcpProxy, status: int
) -> None:
    await begin(api, tables)
    rule = storage.on(Match(), Answer(status), nth=2, times=1)

    assert (await answer(api, "hi"))["turn"] == 2
    assert rule.hits == 1
    await assert_conserved(tables, fake)


# What a turn asks of storage


@pytest.mark.parametrize("before", [1, 63, 64, 999])
async def test_a_turn_takes_five_storage_requests_however_long_the_past(
    api: httpx.AsyncClient, tables: Tables, storage: TcpProxy, requests: Requests, before: int
) -> None:
    await fill(tables, before)
    seen = len(storage.seen)

    assert (await answer(api, "hi"))["turn"] == before + 1

    await closed_ledger(tables)
    order = [requests.read, requests.commit, requests.insert_row, requests.commit, requests.raise_row]
    asked = storage.seen[seen:]
    assert len(asked) == 5
    assert all(match.fits(request) for match, request in zip(order, asked, strict=True))
