"""Clearing and erasing long conversations: an interrupted deletion is finished, and no content reappears."""

import asyncio

import httpx
import pytest

from shared.domain.conversation import Session
from shared.services import services
from tests.conftest import Serve, Tables
from tests.support.azure_openai import AzureOpenAI
from tests.support.chat_client import answer, closed_ledger, fill, get_json, row_keys, send_message, stored, total_of
from tests.support.clock import ManualClock
from tests.support.conservation import assert_conserved
from tests.support.faults import deletion_insert
from tests.support.proxy import Action, Answer, Close, Match, Stall, TcpProxy

pytestmark = pytest.mark.usefixtures("storage")  # requested before `api`, so that the app connects through it

SESSION, MESSAGES = "/api/sessions/s", "/api/sessions/s/messages"
ERASE, CLEAR = SESSION, MESSAGES
BATCH = Match("POST", r"/\$batch")
HEAD = Match("PUT", "sessions.PartitionKey='s',RowKey='head'")
MARK = Match("DELETE", "sessions.PartitionKey='~erasing'")


async def delete(api: httpx.AsyncClient, path: str) -> int:
    return (await api.delete(path)).status_code


async def interrupted_delete(api: httpx.AsyncClient, path: str) -> None:
    response = await api.delete(path)
    assert (response.status_code, response.json()["error"]["code"]) == (503, "storage_unavailable")
    assert response.headers["retry-after"] == "5"


async def assert_cleared(api: httpx.AsyncClient, tables: Tables, before: Session) -> None:
    """No content is left, but all costs are."""
    assert (await get_json(api, MESSAGES))["turns"] == []
    head, turns = await stored(tables)
    assert (head.turns, head.totals, head.deletion) == (before.turns, before.totals, None)
    assert [turn.number for turn in turns] == list(range(1, before.turns + 1))
    assert not any(turn.messages or turn.extras for turn in turns)
    assert total_of([turn.call for turn in turns]) == head.totals
    assert await row_keys(tables, "~erasing") == []


async def assert_erased(api: httpx.AsyncClient, tables: Tables) -> None:
    assert (await api.get(SESSION)).status_code == (await api.get(MESSAGES)).status_code == 404
    assert await row_keys(tables) == await row_keys(tables, "~erasing") == []


async def assert_starts_new_session(api: httpx.AsyncClient, fake: AzureOpenAI, tables: Tables) -> None:
    """A message under the erased session id sees nothing of the old session."""
    response = await answer(api, "new")
    assert [message["content"] for message in fake.requests[-1].body["messages"][1:]] == ["new"]
    assert response["turn"] == response["session"]["turns"] == 1
    assert response["session"]["cost_usd"] == response["cost_usd"]
    assert len(await row_keys(tables)) == 2
    assert await row_keys(tables, "~erasing") == []


# Long conversations


async def test_session_of_1000_turns_is_cleared(api: httpx.AsyncClient, fake: AzureOpenAI, tables: Tables) -> None:
    await fill(tables, 1_000)
    before, _ = await stored(tables)

    assert await delete(api, CLEAR) == 204

    await assert_cleared(api, tables, before)
    assert (await answer(api, "new"))["turn"] == 1_001
    assert [message["content"] for message in fake.requests[-1].body["messages"][1:]] == ["new"]


async def test_session_of_1000_turns_is_erased(api: httpx.AsyncClient, fake: AzureOpenAI, tables: Tables) -> None:
    await fill(tables, 1_000)

    assert await delete(api, ERASE) == 204

    await assert_erased(api, tables)
    await assert_starts_new_session(api, fake, tables)


@pytest.mark.table_storage
async def test_interrupted_clear_of_1000_turns_is_finished_by_next_read(
    api: httpx.AsyncClient, tables: Tables, storage: TcpProxy
) -> None:
    await fill(tables, 1_000)
    before, _ = await stored(tables)
    storage.on(BATCH, Close(), nth=6, times=None)
    await interrupted_delete(api, CLEAR)
    _, turns = await stored(tables)
    assert sum(bool(turn.messages) for turn in turns) == 1_000 - 5 * 99

    storage.clear()

    await assert_cleared(api, tables, before)


@pytest.mark.acceptance
async def test_interrupted_erasure_of_1000_turns_is_finished_by_next_message(
    api: httpx.AsyncClient, fake: AzureOpenAI, tables: Tables, storage: TcpProxy
) -> None:
    await fill(tables, 1_000)
    storage.on(BATCH, Close(), nth=6, times=None)
    await interrupted_delete(api, ERASE)
    assert len(await row_keys(tables)) == 1 + 1_000 - 5 * 99

    storage.clear()

    await assert_starts_new_session(api, fake, tables)


# Interruptions


INTERRUPTIONS: dict[str, tuple[Match, Action, int]] = {
    "at the first batch": (BATCH, Close(), 1),
    "at the last batch": (BATCH, Close(), 2),
    "after the first batch": (BATCH, Close(after_answer=True), 1),
    "after the last batch": (BATCH, Close(after_answer=True), 2),
    "while rows are listed": (Match("GET", r"sessions\(\)"), Close(), 1),
    "before the mark is deleted": (MARK, Close(), 1),
}


@pytest.mark.parametrize("point", INTERRUPTIONS)
async def test_clear_interrupted_at_any_point_is_finished_by_next_message(
    api: httpx.AsyncClient, fake: AzureOpenAI, tables: Tables, storage: TcpProxy, point: str
) -> None:
    match, action, nth = INTERRUPTIONS[point]
    await fill(tables, 150)
    before, _ = await stored(tables)
    rule = storage.on(match, action, nth=nth, times=None)
    await interrupted_delete(api, CLEAR)
    assert rule.hits
    storage.clear()

    response = await answer(api, "new")

    assert response["turn"] == 151
    assert [message["content"] for message in fake.requests[-1].body["messages"][1:]] == ["new"]
    head, turns = await stored(tables)
    assert not any(turn.messages for turn in turns[:-1])
    assert head.totals == before.totals.plus(total_of([turns[-1].call])) == total_of([turn.call for turn in turns])
    assert [turn["turn"] for turn in (await get_json(api, MESSAGES))["turns"]] == [151]


@pytest.mark.parametrize("point", INTERRUPTIONS)
async def test_erasure_interrupted_at_any_point_is_finished_by_next_read(
    api: httpx.AsyncClient, fake: AzureOpenAI, tables: Tables, storage: TcpProxy, point: str
) -> None:
    match, action, nth = INTERRUPTIONS[point]
    await fill(tables, 150)
    rule = storage.on(match, action, nth=nth, times=None)
    await interrupted_delete(api, ERASE)
    assert rule.hits
    storage.clear()

    assert (await api.get(SESSION)).status_code == 404
    assert await row_keys(tables) == []

    response = await answer(api, "new")
    assert [message["content"] for message in fake.requests[-1].body["messages"][1:]] == ["new"]
    assert response["turn"] == response["session"]["turns"] == 1
    assert (await get_json(api, SESSION))["turns"] == 1


@pytest.mark.parametrize("path", [CLEAR, ERASE], ids=["clear", "erase"])
async def test_another_process_finishes_deletion_interrupted_by_storage_outage(
    storage: TcpProxy, serve: Serve, environ: dict[str, str], tables: Tables, path: str
) -> None:
    async with serve(environ) as api:
        await fill(tables, 150)
        before, _ = await stored(tables)
        batch = storage.on(BATCH, Stall(), nth=2)
        deleting = asyncio.create_task(delete(api, path))
        await batch.until_reached()
        storage.down()
        assert await deleting == 503

    storage.clear()
    storage.up()
    async with serve(environ) as api:
        if path == CLEAR:
            await assert_cleared(api, tables, before)
        else:
            await assert_erased(api, tables)


@pytest.mark.parametrize("path", [CLEAR, ERASE], ids=["clear", "erase"])
async def test_deletion_that_never_reached_the_head_changes_nothing(
    api: httpx.AsyncClient, tables: Tables, storage: TcpProxy, path: str
) -> None:
    await fill(tables, 3)
    before = await stored(tables)
    storage.on(HEAD, Close(), times=None)
    await interrupted_delete(api, path)
    storage.clear()

    assert [turn["turn"] for turn in (await get_json(api, MESSAGES))["turns"]] == [3, 2, 1]
    assert await stored(tables) == before
    assert (await answer(api, "more"))["turn"] == 4


@pytest.mark.parametrize("path", [CLEAR, ERASE], ids=["clear", "erase"])
async def test_deletion_completes_when_response_to_head_write_is_lost(
    api: httpx.AsyncClient, tables: Tables, storage: TcpProxy, path: str
) -> None:
    await fill(tables, 3)
    before, _ = await stored(tables)
    rule = storage.on(HEAD, Close(after_answer=True))

    assert await delete(api, path) == 204

    assert rule.hits == 1
    if path == CLEAR:
        await assert_cleared(api, tables, before)
    else:
        await assert_erased(api, tables)


@pytest.mark.parametrize("path", [CLEAR, ERASE], ids=["clear", "erase"])
async def test_deletion_completes_when_first_write_succeeds_but_returns_500(
    api: httpx.AsyncClient, tables: Tables, storage: TcpProxy, path: str
) -> None:
    """The storage client retries the insert and conflicts with its own row."""
    await fill(tables, 3)
    before, _ = await stored(tables)
    rule = storage.on(deletion_insert("s"), Answer(500, after_answer=True))

    assert await delete(api, path) == 204

    assert (rule.hits, storage.count(deletion_insert("s"))) == (1, 2)
    if path == CLEAR:
        await assert_cleared(api, tables, before)
    else:
        await assert_erased(api, tables)


# Storage requests


@pytest.mark.table_storage
async def test_erasure_asks_for_no_ledger_row_of_a_call_that_was_final_long_ago(
    clock: ManualClock, api: httpx.AsyncClient, tables: Tables, storage: TcpProxy
) -> None:
    """Such a row holds no name; a call of the last hour may still have one, if its process died."""
    for session in ("s", "recent"):
        await answer(api, session=session)
    await services().turns.finish()
    storage.seen.clear()
    assert await delete(api, "/api/sessions/recent") == 204
    assert storage.count(Match(None, "usage")) == 1

    await clock.advance(2 * 3600)
    storage.seen.clear()
    assert await delete(api, ERASE) == 204

    assert storage.count(Match(None, "usage")) == 0
    assert len(storage.seen) == 7


@pytest.mark.table_storage
async def test_figures_of_a_day_are_read_once_for_all_old_calls(
    api: httpx.AsyncClient, tables: Tables, storage: TcpProxy
) -> None:
    await fill(tables, 20)
    storage.seen.clear()

    assert await delete(api, ERASE) == 204

    assert storage.count(Match("GET", "daily")) == 1


# Concurrent requests


async def test_concurrent_erasures_erase_once(api: httpx.AsyncClient, tables: Tables) -> None:
    await fill(tables, 150)

    statuses = await asyncio.gather(delete(api, ERASE), delete(api, ERASE), delete(api, CLEAR))

    assert 204 in statuses
    assert set(statuses) <= {204, 404}
    await assert_erased(api, tables)


async def test_concurrent_clears_clear_once(api: httpx.AsyncClient, tables: Tables) -> None:
    await fill(tables, 150)
    before, _ = await stored(tables)

    assert {*await asyncio.gather(delete(api, CLEAR), delete(api, CLEAR))} == {204}

    await assert_cleared(api, tables, before)


async def test_messages_concurrent_with_an_erasure_run_before_or_after_it(
    api: httpx.AsyncClient, fake: AzureOpenAI, tables: Tables
) -> None:
    for _ in range(4):
        await send_message(api)
        responses = await asyncio.gather(
            send_message(api, "one"),
            api.delete(ERASE),
            send_message(api, "two"),
            api.delete(CLEAR),
            send_message(api, "three"),
        )
        assert {response.status_code for response in responses} <= {200, 204, 404, 409}

    await closed_ledger(tables)
    assert await delete(api, ERASE) in (204, 404)
    await assert_erased(api, tables)
    await assert_conserved(tables, fake, erased={"s"})
    await assert_starts_new_session(api, fake, tables)
