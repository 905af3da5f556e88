"""Sessions over HTTP: details, paged history, clearing and erasing."""

import asyncio
from typing import Any

import httpx
import pytest

from shared.domain.calls import State
from tests.conftest import Tables
from tests.support.azure_openai import AzureOpenAI
from tests.support.chat_client import (
    answer,
    closed_ledger,
    events,
    expire_lease,
    fill,
    get_json,
    ledger,
    ok_json,
    reference,
    row_keys,
    send_message,
    stored,
    streaming,
)
from tests.support.conservation import assert_conserved

SESSION, MESSAGES = "/api/sessions/s", "/api/sessions/s/messages"


async def numbers(api: httpx.AsyncClient, query: str = "") -> tuple[list[int], int | None]:
    """The turn numbers on a page of history, and `next_before`."""
    page = await get_json(api, f"{MESSAGES}{query}")
    return [turn["turn"] for turn in page["turns"]], page["next_before"]


async def deleted(api: httpx.AsyncClient, path: str) -> None:
    response = await api.delete(path)
    assert (response.status_code, response.content) == (204, b"")


def last_prompt(fake: AzureOpenAI) -> list[str]:
    """The contents sent to the model in the last request, without the system prompt."""
    return [message["content"] for message in fake.requests[-1].body["messages"][1:]]


# Details


async def test_session_shows_its_settings_and_totals(api: httpx.AsyncClient, fake: AzureOpenAI, tables: Tables) -> None:
    fake.reply("x", prompt_tokens=1_000, cached_tokens=500, completion_tokens=10, reasoning_tokens=3)
    turn = await answer(api, system="Be brief.")

    details = await get_json(api, SESSION)

    assert details.pop("created") <= details.pop("updated")
    assert details == turn["session"] | {
        "session_id": "s",
        "kind": "chat",
        "title": "hi",
        "pinned": False,
        "archived": False,
        "reference": await reference(tables),
        "system": "Be brief.",
        "deployment": "chat",
        "busy": False,
        "usage": turn["usage"],
        "parent": None,
        "branches": [],
    }


@pytest.mark.parametrize("method", ["GET", "DELETE"])
@pytest.mark.parametrize("path", [SESSION, MESSAGES])
async def test_unknown_session_returns_404(api: httpx.AsyncClient, method: str, path: str) -> None:
    await answer(api, session="other")

    refused = await api.request(method, path)

    assert (refused.status_code, refused.json()["error"]["code"]) == (404, "session_not_found")


@pytest.mark.parametrize("name", ["x'%20or%20PartitionKey%20ne%20'x", "-", "a" * 65, "%00", "~erasing", "a%2Fb"])
@pytest.mark.parametrize("path", ["", "/messages"])
async def test_invalid_session_id_never_matches_a_session(api: httpx.AsyncClient, name: str, path: str) -> None:
    await answer(api)

    refused = await api.get(f"/api/sessions/{name}{path}")

    assert refused.status_code in (400, 404)
    assert "hi" not in refused.text


# History


async def test_history_shows_settled_and_failed_turns(
    api: httpx.AsyncClient, fake: AzureOpenAI, tables: Tables
) -> None:
    turn = await answer(api, "Guten Tag 🙂")
    fake.fault(503)
    await send_message(api, "lost words")

    failed, first = (await get_json(api, MESSAGES))["turns"]

    assert first.pop("started") <= first.pop("finished")
    assert first == {
        "session_id": "s",
        "turn": 1,
        "state": "settled",
        "messages": [{"role": "user", "content": "Guten Tag 🙂"}, turn["message"]],
        "finish_reason": "stop",
        "deployment": "chat",
        "model": turn["model"],
        "usage": turn["usage"],
        "cost_usd": turn["cost_usd"],
    }
    assert (failed["turn"], failed["state"], failed["finish_reason"]) == (2, "failed", "error")
    assert (failed["usage"], failed["cost_usd"]) == (None, None)
    assert failed["messages"] == [{"role": "user", "content": "lost words"}]


async def test_history_is_paged_newest_first(api: httpx.AsyncClient, tables: Tables) -> None:
    await answer(api, session="other")  # creates the tables
    await fill(tables, 7)

    assert await numbers(api) == ([7, 6, 5, 4, 3, 2, 1], None)
    assert await numbers(api, "?limit=3") == ([7, 6, 5], 5)
    assert await numbers(api, "?limit=3&before=5") == ([4, 3, 2], 2)
    assert await numbers(api, "?limit=3&before=2") == ([1], None)
    assert await numbers(api, "?limit=7") == ([7, 6, 5, 4, 3, 2, 1], None)
    assert await numbers(api, "?before=1") == ([], None)
    assert await numbers(api, "?before=500") == ([7, 6, 5, 4, 3, 2, 1], None)


async def test_history_of_a_thousand_turns_is_paged_without_gaps(api: httpx.AsyncClient, tables: Tables) -> None:
    await answer(api, session="other")
    await fill(tables, 1_000)

    read, before = await numbers(api, "?limit=100")
    assert (await numbers(api))[0] == read[:20]
    while before:
        page, before = await numbers(api, f"?limit=100&before={before}")
        read += page

    assert read == list(range(1_000, 0, -1))


@pytest.mark.parametrize("query", ["limit=0", "limit=101", "limit=x", "limit=", "limit=-1", "limit=1.5", "before=0"])
async def test_invalid_paging_parameter_returns_400(api: httpx.AsyncClient, query: str) -> None:
    await answer(api)

    refused = await api.get(f"{MESSAGES}?{query}")

    assert (refused.status_code, refused.json()["error"]["param"]) == (400, query.partition("=")[0])


# Clearing


async def test_clear_deletes_all_content_and_keeps_the_totals(
    api: httpx.AsyncClient, fake: AzureOpenAI, tables: Tables
) -> None:
    await answer(api, "a secret")
    fake.fault("reset", after=2)
    await send_message(api, "another")
    before = await get_json(api, SESSION)

    await deleted(api, MESSAGES)

    assert await numbers(api) == ([], None)
    after = await get_json(api, SESSION)
    assert {**after, "updated": None} == {**before, "updated": None, "title": None}
    stored_rows = [row async for row in tables.sessions.query("PartitionKey eq @s", {"s": "s"})]
    assert "secret" not in str(stored_rows)
    assert "another" not in str(stored_rows)
    assert "content_filter" not in str(stored_rows)
    assert await row_keys(tables, "~erasing") == []
    await assert_conserved(tables, fake)


async def test_cleared_session_continues_without_its_history(
    api: httpx.AsyncClient, fake: AzureOpenAI, tables: Tables
) -> None:
    first = await answer(api, "a secret", system="Be brief.")
    await deleted(api, MESSAGES)

    turn = await answer(api, "Who am I?")

    assert last_prompt(fake) == ["Who am I?"]
    assert fake.requests[-1].body["messages"][0]["content"] == "Be brief."
    assert (turn["turn"], turn["session"]["turns"]) == (2, 2)
    assert turn["session"]["cost_usd"] == first["cost_usd"] + turn["cost_usd"]
    await answer(api, "And now?")
    assert last_prompt(fake) == ["Who am I?", "echo: Who am I?", "And now?"]
    assert await numbers(api, "?limit=1") == ([3], 3)
    assert await numbers(api, "?before=3") == ([2], None)
    await assert_conserved(tables, fake)


async def test_clear_is_idempotent(api: httpx.AsyncClient, tables: Tables) -> None:
    await answer(api)
    await deleted(api, MESSAGES)
    before = await stored(tables)

    await deleted(api, MESSAGES)

    assert await stored(tables) == before


async def test_clear_of_a_busy_session_returns_409(api: httpx.AsyncClient, fake: AzureOpenAI, tables: Tables) -> None:
    await answer(api, "before")
    with fake.hold() as hold:
        running = asyncio.create_task(send_message(api))
        await hold.until_reached()

        refused = await api.delete(MESSAGES)

        assert (refused.status_code, refused.json()["error"]["code"]) == (409, "session_busy")
        assert int(refused.headers["retry-after"]) >= 1
        hold.release()
    ok_json(await running)
    assert (await numbers(api))[0] == [2, 1]


async def test_clear_recovers_a_turn_with_expired_lease_first(
    api: httpx.AsyncClient, fake: AzureOpenAI, tables: Tables
) -> None:
    with fake.hold() as hold:
        stalled = asyncio.create_task(send_message(api, "a secret"))
        await hold.until_reached()
        await expire_lease(tables)

        await deleted(api, MESSAGES)

        assert (await get_json(api, SESSION))["unaccounted_calls"] == 1
        hold.release()
        late = ok_json(await stalled)

    assert late["message"]["content"] == "echo: a secret"
    assert late["cost_usd"] == late["session"]["cost_usd"] > 0
    assert late["session"]["unaccounted_calls"] == 0
    assert await numbers(api) == ([], None)
    stored_rows = [row async for row in tables.sessions.query("PartitionKey eq @s", {"s": "s"})]
    assert "secret" not in str(stored_rows)
    await assert_conserved(tables, fake)


# Erasing


async def test_erase_deletes_the_session_and_keeps_its_ledger_rows(
    api: httpx.AsyncClient, fake: AzureOpenAI, tables: Tables
) -> None:
    turn = await answer(api, "a secret")
    await closed_ledger(tables)
    named = await reference(tables)

    await deleted(api, SESSION)

    assert {(await api.request(m, p)).status_code for m in ("GET", "DELETE") for p in (SESSION, MESSAGES)} == {404}
    assert await row_keys(tables) == await row_keys(tables, "~erasing") == []
    [entry] = await ledger(tables)
    assert (entry.session_id, entry.session, entry.call.state) == (None, named, State.SETTLED)
    assert entry.call.cost == turn["cost_usd"]
    await assert_conserved(tables, fake, erased={"s"})


async def test_session_recreated_after_erase_starts_empty(
    api: httpx.AsyncClient, fake: AzureOpenAI, tables: Tables
) -> None:
    await answer(api, "a secret", system="Be brief.")
    await answer(api, "more")
    await deleted(api, SESSION)

    turn = await answer(api, "Who am I?", system="Be long.")

    assert last_prompt(fake) == ["Who am I?"]
    assert fake.requests[-1].body["messages"][0]["content"] == "Be long."
    assert turn["turn"] == turn["session"]["turns"] == 1
    assert turn["session"]["cost_usd"] == turn["cost_usd"]
    assert await numbers(api) == ([1], None)
    assert len(await closed_ledger(tables)) == 3


@pytest.mark.parametrize("streamed", [True, False])
async def test_erase_during_a_turn_takes_effect_and_the_turn_restores_nothing(
    api: httpx.AsyncClient, fake: AzureOpenAI, tables: Tables, streamed: bool
) -> None:
    await answer(api, "before")
    with fake.hold() as hold:
        running = asyncio.create_task(send_message(api, "running", stream=streamed))
        await hold.until_reached()

        await deleted(api, SESSION)

        assert (await api.get(SESSION)).status_code == 404
        assert await row_keys(tables) == []
        hold.release()
        response = await running

    turn = done(response) if streamed else ok_json(response)
    assert turn["message"] == {"role": "assistant", "content": "echo: running"}
    assert turn["finish_reason"] == "stop"
    assert turn["cost_usd"] > 0
    entries = await closed_ledger(tables)
    assert [entry.call.state for entry in entries] == [State.SETTLED] * 2
    assert (await api.get(SESSION)).status_code == 404
    assert await row_keys(tables) == await row_keys(tables, "~erasing") == []
    await assert_conserved(tables, fake, erased={"s"})


def done(response: httpx.Response) -> dict[str, Any]:
    last = events(response.content)[-1]
    assert last.name == "done", last
    data: dict[str, Any] = last.data
    return data


async def test_running_turn_does_not_touch_a_session_recreated_after_erase(
    api: httpx.AsyncClient, fake: AzureOpenAI, tables: Tables
) -> None:
    with fake.hold() as first, fake.hold() as second:
        running = asyncio.create_task(send_message(api, "old"))
        await first.until_reached()
        await deleted(api, SESSION)
        second_turn = asyncio.create_task(send_message(api, "new"))
        await second.until_reached()

        first.release()
        old = ok_json(await running)

        assert old["message"]["content"] == "echo: old"
        assert old["session"]["cost_usd"] == old["cost_usd"] > 0
        assert (await get_json(api, SESSION))["busy"]
        second.release()

    new = ok_json(await second_turn)
    assert (new["turn"], new["message"]["content"]) == (1, "echo: new")
    assert new["session"]["cost_usd"] == new["cost_usd"]
    head, [turn] = await stored(tables)
    assert turn.messages[0]["content"] == "new"
    assert head.totals.cost == turn.call.cost
    await assert_conserved(tables, fake, erased={"s"})


async def test_turn_that_fails_after_erase_leaves_its_ledger_row(
    api: httpx.AsyncClient, fake: AzureOpenAI, tables: Tables
) -> None:
    fake.fault("truncated", after=1)
    with fake.hold() as hold:
        async with streaming(api) as response:
            await hold.until_reached()
            await deleted(api, SESSION)
            hold.release()
            assert (await response.rest())[-1].data["code"] == "upstream_error"

    assert [entry.call.state for entry in await closed_ledger(tables)] == [State.UNACCOUNTED]
    assert await row_keys(tables) == []
