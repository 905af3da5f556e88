"""Sessions over HTTP: what one shows, how its history is paged, and how it is forgotten or erased."""

import asyncio
from typing import Any

import httpx
import pytest

from shared.domain.calls import State
from tests.conftest import Tables
from tests.support.azure_openai import AzureOpenAI
from tests.support.conservation import assert_conserved
from tests.support.talking import (
    age_lease,
    answer,
    answered,
    closed_ledger,
    events,
    fill,
    ledger,
    look,
    row_keys,
    say,
    stored,
    streaming,
)

SESSION, MESSAGES = "/api/sessions/s", "/api/sessions/s/messages"


async def numbers(api: httpx.AsyncClient, query: str = "") -> tuple[list[int], int | None]:
    """Which turns a page of history holds, and where the next begins."""
    page = await look(api, f"{MESSAGES}{query}")
    return [turn["turn"] for turn in page["turns"]], page["next_before"]


async def deleted(api: httpx.AsyncClient, path: str) -> None:
    response = await api.delete(path)
    assert (response.status_code, response.content) == (204, b"")


def said(fake: AzureOpenAI) -> list[str]:
    """What the model was sent last, but for the system prompt."""
    return [message["content"] for message in fake.requests[-1].body["messages"][1:]]


# What a session shows


async def test_a_session_shows_its_settings_and_totals(api: httpx.AsyncClient, fake: AzureOpenAI) -> None:
    fake.reply("x", prompt_tokens=1_000, cached_tokens=500, completion_tokens=10, reasoning_tokens=3)
    told = await answer(api, system="Be brief.")

    shown = await look(api, SESSION)

    assert shown.pop("created") <= shown.pop("updated")
    assert shown == told["session"] | {
        "session_id": "s",
        "system": "Be brief.",
        "deployment": "chat",
        "busy": False,
        "usage": told["usage"],
    }


@pytest.mark.parametrize("method", ["GET", "DELETE"])
@pytest.mark.parametrize("path", [SESSION, MESSAGES])
async def test_an_unknown_session_is_not_found(api: httpx.AsyncClient, method: str, path: str) -> None:
    await answer(api, session="other")

    refused = await api.request(method, path)

    assert (refused.status_code, refused.json()["error"]["code"]) == (404, "session_not_found")


@pytest.mark.parametrize("name", ["x'%20or%20PartitionKey%20ne%20'x", "-", "a" * 65, "%00", "~erasing", "a%2Fb"])
@pytest.mark.parametrize("path", ["", "/messages"])
async def test_what_can_be_no_session_id_finds_none(api: httpx.AsyncClient, name: str, path: str) -> None:
    await answer(api)

    refused = await api.get(f"/api/sessions/{name}{path}")

    assert refused.status_code in (400, 404)
    assert "hi" not in refused.text


# History


async def test_history_shows_each_turn_as_it_went(api: httpx.AsyncClient, fake: AzureOpenAI, tables: Tables) -> None:
    told = await answer(api, "Guten Tag 🙂")
    fake.fault(503)
    await say(api, "lost words")

    failed, first = (await look(api, MESSAGES))["turns"]

    assert first.pop("started") <= first.pop("finished")
    assert first == {
        "turn": 1,
        "state": "settled",
        "messages": [{"role": "user", "content": "Guten Tag 🙂"}, told["message"]],
        "finish_reason": "stop",
        "deployment": "chat",
        "model": told["model"],
        "usage": told["usage"],
        "cost_usd": told["cost_usd"],
    }
    assert (failed["turn"], failed["state"], failed["finish_reason"]) == (2, "failed", "error")
    assert (failed["usage"], failed["cost_usd"]) == (None, None)
    assert failed["messages"] == [{"role": "user", "content": "lost words"}]


async def test_history_comes_newest_first_in_pages(api: httpx.AsyncClient, tables: Tables) -> None:
    await answer(api, session="other")  # makes the tables
    await fill(tables, 7)

    assert await numbers(api) == ([7, 6, 5, 4, 3, 2, 1], None)
    assert await numbers(api, "?limit=3") == ([7, 6, 5], 5)
    assert await numbers(api, "?limit=3&before=5") == ([4, 3, 2], 2)
    assert await numbers(api, "?limit=3&before=2") == ([1], None)
    assert await numbers(api, "?limit=7") == ([7, 6, 5, 4, 3, 2, 1], None)
    assert await numbers(api, "?before=1") == ([], None)
    assert await numbers(api, "?before=500") == ([7, 6, 5, 4, 3, 2, 1], None)


async def test_a_thousand_turns_are_paged_without_loss(api: httpx.AsyncClient, tables: Tables) -> None:
    await answer(api, session="other")
    await fill(tables, 1_000)

    read, before = await numbers(api, "?limit=100")
    assert (await numbers(api))[0] == read[:20]
    while before:
        page, before = await numbers(api, f"?limit=100&before={before}")
        read += page

    assert read == list(range(1_000, 0, -1))


@pytest.mark.parametrize("query", ["limit=0", "limit=101", "limit=x", "limit=", "limit=-1", "limit=1.5", "before=0"])
async def test_a_page_that_cannot_be_is_refused(api: httpx.AsyncClient, query: str) -> None:
    await answer(api)

    refused = await api.get(f"{MESSAGES}?{query}")

    assert (refused.status_code, refused.json()["error"]["param"]) == (400, query.partition("=")[0])


# Clear


async def test_clearing_forgets_what_was_said_and_keeps_the_totals(
    api: httpx.AsyncClient, fake: AzureOpenAI, tables: Tables
) -> None:
    await answer(api, "a secret")
    fake.fault("reset", after=2)
    await say(api, "another")
    before = await look(api, SESSION)

    await deleted(api, MESSAGES)

    assert await numbers(api) == ([], None)
    after = await look(api, SESSION)
    assert {**after, "updated": None} == {**before, "updated": None}
    found = [row async for row in tables.sessions.query("PartitionKey eq @s", {"s": "s"})]
    assert "secret" not in str(found)
    assert "another" not in str(found)
    assert "content_filter" not in str(found)
    assert await row_keys(tables, "~erasing") == []
    await assert_conserved(tables, fake)


async def test_a_cleared_session_goes_on_without_its_past(
    api: httpx.AsyncClient, fake: AzureOpenAI, tables: Tables
) -> None:
    first = await answer(api, "a secret", system="Be brief.")
    await deleted(api, MESSAGES)

    told = await answer(api, "Who am I?")

    assert said(fake) == ["Who am I?"]
    assert fake.requests[-1].body["messages"][0]["content"] == "Be brief."
    assert (told["turn"], told["session"]["turns"]) == (2, 2)
    assert told["session"]["cost_usd"] == first["cost_usd"] + told["cost_usd"]
    await answer(api, "And now?")
    assert said(fake) == ["Who am I?", "echo: Who am I?", "And now?"]
    assert await numbers(api, "?limit=1") == ([3], 3)
    assert await numbers(api, "?before=3") == ([2], None)
    await assert_conserved(tables, fake)


async def test_clearing_again_changes_nothing(api: httpx.AsyncClient, tables: Tables) -> None:
    await answer(api)
    await deleted(api, MESSAGES)
    before = await stored(tables)

    await deleted(api, MESSAGES)

    assert await stored(tables) == before


async def test_a_busy_session_is_not_cleared(api: httpx.AsyncClient, fake: AzureOpenAI, tables: Tables) -> None:
    await answer(api, "before")
    with fake.hold() as hold:
        running = asyncio.create_task(say(api))
        await hold.until_reached()

        refused = await api.delete(MESSAGES)

        assert (refused.status_code, refused.json()["error"]["code"]) == (409, "session_busy")
        assert int(refused.headers["retry-after"]) >= 1
        hold.release()
    answered(await running)
    assert (await numbers(api))[0] == [2, 1]


async def test_a_turn_whose_lease_is_over_is_recovered_before_its_session_is_cleared(
    api: httpx.AsyncClient, fake: AzureOpenAI, tables: Tables
) -> None:
    with fake.hold() as hold:
        stalled = asyncio.create_task(say(api, "a secret"))
        await hold.until_reached()
        await age_lease(tables)

        await deleted(api, MESSAGES)

        assert (await look(api, SESSION))["unaccounted_calls"] == 1
        hold.release()
        late = answered(await stalled)

    assert late["message"]["content"] == "echo: a secret"
    assert late["cost_usd"] == late["session"]["cost_usd"] > 0
    assert late["session"]["unaccounted_calls"] == 0
    assert await numbers(api) == ([], None)
    found = [row async for row in tables.sessions.query("PartitionKey eq @s", {"s": "s"})]
    assert "secret" not in str(found)
    await assert_conserved(tables, fake)


# Erase


async def test_an_erased_session_is_gone_but_for_its_money(
    api: httpx.AsyncClient, fake: AzureOpenAI, tables: Tables
) -> None:
    told = await answer(api, "a secret")
    await closed_ledger(tables)

    await deleted(api, SESSION)

    assert {(await api.request(m, p)).status_code for m in ("GET", "DELETE") for p in (SESSION, MESSAGES)} == {404}
    assert await row_keys(tables) == await row_keys(tables, "~erasing") == []
    [entry] = await ledger(tables)
    assert (entry.session_id, entry.call.state, entry.call.cost) == ("s", State.SETTLED, told["cost_usd"])
    await assert_conserved(tables, fake, erased={"s"})


async def test_a_session_begun_again_never_meets_the_old_one(
    api: httpx.AsyncClient, fake: AzureOpenAI, tables: Tables
) -> None:
    await answer(api, "a secret", system="Be brief.")
    await answer(api, "more")
    await deleted(api, SESSION)

    told = await answer(api, "Who am I?", system="Be long.")

    assert said(fake) == ["Who am I?"]
    assert fake.requests[-1].body["messages"][0]["content"] == "Be long."
    assert told["turn"] == told["session"]["turns"] == 1
    assert told["session"]["cost_usd"] == told["cost_usd"]
    assert await numbers(api) == ([1], None)
    assert len(await closed_ledger(tables)) == 3


@pytest.mark.parametrize("streamed", [True, False])
async def test_erasing_takes_effect_while_a_turn_runs_and_nothing_comes_back(
    api: httpx.AsyncClient, fake: AzureOpenAI, tables: Tables, streamed: bool
) -> None:
    await answer(api, "before")
    with fake.hold() as hold:
        running = asyncio.create_task(say(api, "running", stream=streamed))
        await hold.until_reached()

        await deleted(api, SESSION)

        assert (await api.get(SESSION)).status_code == 404
        assert await row_keys(tables) == []
        hold.release()
        response = await running

    told = done(response) if streamed else answered(response)
    assert told["message"] == {"role": "assistant", "content": "echo: running"}
    assert told["finish_reason"] == "stop"
    assert told["cost_usd"] > 0
    entries = await closed_ledger(tables)
    assert [entry.call.state for entry in entries] == [State.SETTLED] * 2
    assert (await api.get(SESSION)).status_code == 404
    assert await row_keys(tables) == await row_keys(tables, "~erasing") == []
    await assert_conserved(tables, fake, erased={"s"})


def done(response: httpx.Response) -> dict[str, Any]:
    last = events(response.content)[-1]
    assert last.name == "done", last
    told: dict[str, Any] = last.data
    return told


async def test_a_running_turn_does_not_meet_the_session_that_was_begun_after_it(
    api: httpx.AsyncClient, fake: AzureOpenAI, tables: Tables
) -> None:
    with fake.hold() as first, fake.hold() as second:
        running = asyncio.create_task(say(api, "old"))
        await first.until_reached()
        await deleted(api, SESSION)
        begun = asyncio.create_task(say(api, "new"))
        await second.until_reached()

        first.release()
        old = answered(await running)

        assert old["message"]["content"] == "echo: old"
        assert old["session"]["cost_usd"] == old["cost_usd"] > 0
        assert (await look(api, SESSION))["busy"]
        second.release()

    new = answered(await begun)
    assert (new["turn"], new["message"]["content"]) == (1, "echo: new")
    assert new["session"]["cost_usd"] == new["cost_usd"]
    head, [turn] = await stored(tables)
    assert turn.messages[0]["content"] == "new"
    assert head.totals.cost == turn.call.cost
    await assert_conserved(tables, fake, erased={"s"})


async def test_a_turn_that_fails_after_its_session_was_erased_leaves_its_ledger_row(
    api: httpx.AsyncClient, fake: AzureOpenAI, tables: Tables
) -> None:
    fake.fault("truncated", after=1)
    with fake.hold() as hold:
        async with streaming(api) as answering:
            await hold.until_reached()
            await deleted(api, SESSION)
            hold.release()
            assert (await answering.rest())[-1].data["code"] == "upstream_error"

    assert [entry.call.state for entry in await closed_ledger(tables)] == [State.UNACCOUNTED]
    assert await row_keys(tables) == []
