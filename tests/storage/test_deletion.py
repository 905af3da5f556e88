"""Clearing and erasing long conversations, interrupted anywhere: what was begun is finished, nothing comes back."""

import asyncio

import httpx
import pytest

from shared.domain.conversation import Session
from tests.conftest import Serve, Tables
from tests.support.azure_openai import AzureOpenAI
from tests.support.conservation import assert_conserved
from tests.support.faults import announcing
from tests.support.proxy import Action, Answer, Close, Match, Stall, TcpProxy
from tests.support.talking import answer, closed_ledger, fill, look, row_keys, say, stored, summed

pytestmark = pytest.mark.usefixtures("storage")  # before `api`, so that the app goes through it

SESSION, MESSAGES = "/api/sessions/s", "/api/sessions/s/messages"
ERASE, CLEAR = SESSION, MESSAGES
BATCH = Match("POST", r"/\$batch")
HEAD = Match("PUT", "sessions.PartitionKey='s',RowKey='head'")
MARK = Match("DELETE", "sessions.PartitionKey='~erasing'")


async def delete(api: httpx.AsyncClient, path: str) -> int:
    return (await api.delete(path)).status_code


async def interrupted(api: httpx.AsyncClient, path: str) -> None:
    refused = await api.delete(path)
    assert (refused.status_code, refused.json()["error"]["code"]) == (503, "storage_unavailable")
    assert refused.headers["retry-after"] == "5"


async def assert_cleared(api: httpx.AsyncClient, tables: Tables, before: Session) -> None:
    """No content is left, and every cost is."""
    assert (await look(api, MESSAGES))["turns"] == []
    head, turns = await stored(tables)
    assert (head.turns, head.totals, head.deletion) == (before.turns, before.totals, None)
    assert [turn.number for turn in turns] == list(range(1, before.turns + 1))
    assert not any(turn.messages or turn.extras for turn in turns)
    assert summed([turn.call for turn in turns]) == head.totals
    assert await row_keys(tables, "~erasing") == []


async def assert_erased(api: httpx.AsyncClient, tables: Tables) -> None:
    assert (await api.get(SESSION)).status_code == (await api.get(MESSAGES)).status_code == 404
    assert await row_keys(tables) == await row_keys(tables, "~erasing") == []


async def assert_begins_again(api: httpx.AsyncClient, fake: AzureOpenAI, tables: Tables) -> None:
    """A post under the erased id meets nothing of the old session."""
    told = await answer(api, "new")
    assert [message["content"] for message in fake.requests[-1].body["messages"][1:]] == ["new"]
    assert told["turn"] == told["session"]["turns"] == 1
    assert told["session"]["cost_usd"] == told["cost_usd"]
    assert len(await row_keys(tables)) == 2
    assert await row_keys(tables, "~erasing") == []


# A thousand turns


async def test_a_thousand_turns_are_cleared(api: httpx.AsyncClient, fake: AzureOpenAI, tables: Tables) -> None:
    await fill(tables, 1_000)
    before, _ = await stored(tables)

    assert await delete(api, CLEAR) == 204

    await assert_cleared(api, tables, before)
    assert (await answer(api, "new"))["turn"] == 1_001
    assert [message["content"] for message in fake.requests[-1].body["messages"][1:]] == ["new"]


async def test_a_thousand_turns_are_erased(api: httpx.AsyncClient, fake: AzureOpenAI, tables: Tables) -> None:
    await fill(tables, 1_000)

    assert await delete(api, ERASE) == 204

    await assert_erased(api, tables)
    await assert_begins_again(api, fake, tables)


async def test_a_thousand_turns_half_cleared_are_finished_by_the_next_look(
    api: httpx.AsyncClient, tables: Tables, storage: TcpProxy
) -> None:
    await fill(tables, 1_000)
    before, _ = await stored(tables)
    storage.on(BATCH, Close(), nth=6, times=None)
    await interrupted(api, CLEAR)
    _, turns = await stored(tables)
    assert sum(bool(turn.messages) for turn in turns) == 1_000 - 5 * 99

    storage.clear()

    await assert_cleared(api, tables, before)


async def test_a_thousand_turns_half_erased_are_finished_by_the_next_post(
    api: httpx.AsyncClient, fake: AzureOpenAI, tables: Tables, storage: TcpProxy
) -> None:
    await fill(tables, 1_000)
    storage.on(BATCH, Close(), nth=6, times=None)
    await interrupted(api, ERASE)
    assert len(await row_keys(tables)) == 1 + 1_000 - 5 * 99

    storage.clear()

    await assert_begins_again(api, fake, tables)


# Interrupted anywhere


INTERRUPTIONS: dict[str, tuple[Match, Action, int]] = {
    "at the first batch": (BATCH, Close(), 1),
    "at the last batch": (BATCH, Close(), 2),
    "behind the first batch": (BATCH, Close(after_answer=True), 1),
    "behind the last batch": (BATCH, Close(after_answer=True), 2),
    "while its rows are listed": (Match("GET", r"sessions\(\)"), Close(), 1),
    "before the mark is forgotten": (MARK, Close(), 1),
}


@pytest.mark.parametrize("point", INTERRUPTIONS)
async def test_a_clear_interrupted_anywhere_is_finished_by_the_next_post(
    api: httpx.AsyncClient, fake: AzureOpenAI, tables: Tables, storage: TcpProxy, point: str
) -> None:
    match, action, nth = INTERRUPTIONS[point]
    await fill(tables, 150)
    before, _ = await stored(tables)
    rule = storage.on(match, action, nth=nth, times=None)
    await interrupted(api, CLEAR)
    assert rule.hits
    storage.clear()

    told = await answer(api, "new")

    assert told["turn"] == 151
    assert [message["content"] for message in fake.requests[-1].body["messages"][1:]] == ["new"]
    head, turns = await stored(tables)
    assert not any(turn.messages for turn in turns[:-1])
    assert head.totals == before.totals.plus(summed([turns[-1].call])) == summed([turn.call for turn in turns])
    assert [turn["turn"] for turn in (await look(api, MESSAGES))["turns"]] == [151]


@pytest.mark.parametrize("point", INTERRUPTIONS)
async def test_an_erasure_interrupted_anywhere_is_finished_by_the_next_look(
    api: httpx.AsyncClient, fake: AzureOpenAI, tables: Tables, storage: TcpProxy, point: str
) -> None:
    match, action, nth = INTERRUPTIONS[point]
    await fill(tables, 150)
    rule = storage.on(match, action, nth=nth, times=None)
    await interrupted(api, ERASE)
    assert rule.hits
    storage.clear()

    assert (await api.get(SESSION)).status_code == 404
    assert await row_keys(tables) == []

    told = await answer(api, "new")
    assert [message["content"] for message in fake.requests[-1].body["messages"][1:]] == ["new"]
    assert told["turn"] == told["session"]["turns"] == 1
    assert (await look(api, SESSION))["turns"] == 1


@pytest.mark.parametrize("path", [CLEAR, ERASE], ids=["clear", "erase"])
async def test_another_process_finishes_what_was_left_when_storage_went_away(
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
async def test_a_removal_that_never_took_effect_changes_nothing(
    api: httpx.AsyncClient, tables: Tables, storage: TcpProxy, path: str
) -> None:
    await fill(tables, 3)
    before = await stored(tables)
    storage.on(HEAD, Close(), times=None)
    await interrupted(api, path)
    storage.clear()

    assert [turn["turn"] for turn in (await look(api, MESSAGES))["turns"]] == [3, 2, 1]
    assert await stored(tables) == before
    assert (await answer(api, "more"))["turn"] == 4


@pytest.mark.parametrize("path", [CLEAR, ERASE], ids=["clear", "erase"])
async def test_a_removal_whose_mark_was_not_acknowledged_goes_on(
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
async def test_a_removal_goes_on_whose_first_write_was_done_and_answered_with_an_error(
    api: httpx.AsyncClient, tables: Tables, storage: TcpProxy, path: str
) -> None:
    """The storage client tries it again, and meets its own row."""
    await fill(tables, 3)
    before, _ = await stored(tables)
    rule = storage.on(announcing("s"), Answer(500, after_answer=True))

    assert await delete(api, path) == 204

    assert (rule.hits, storage.count(announcing("s"))) == (1, 2)
    if path == CLEAR:
        await assert_cleared(api, tables, before)
    else:
        await assert_erased(api, tables)


# Several at once


async def test_an_erasure_asked_for_twice_at_once_is_done_once(api: httpx.AsyncClient, tables: Tables) -> None:
    await fill(tables, 150)

    told = await asyncio.gather(delete(api, ERASE), delete(api, ERASE), delete(api, CLEAR))

    assert 204 in told
    assert set(told) <= {204, 404}
    await assert_erased(api, tables)


async def test_a_clear_asked_for_twice_at_once_is_done_once(api: httpx.AsyncClient, tables: Tables) -> None:
    await fill(tables, 150)
    before, _ = await stored(tables)

    assert {*await asyncio.gather(delete(api, CLEAR), delete(api, CLEAR))} == {204}

    await assert_cleared(api, tables, before)


async def test_posts_that_meet_an_erasure_are_before_it_or_after_it(
    api: httpx.AsyncClient, fake: AzureOpenAI, tables: Tables
) -> None:
    for _ in range(4):
        await say(api)
        responses = await asyncio.gather(
            say(api, "one"), api.delete(ERASE), say(api, "two"), api.delete(CLEAR), say(api, "three")
        )
        assert {response.status_code for response in responses} <= {200, 204, 404, 409}

    await closed_ledger(tables)
    assert await delete(api, ERASE) in (204, 404)
    await assert_erased(api, tables)
    await assert_conserved(tables, fake, erased={"s"})
    await assert_begins_again(api, fake, tables)
