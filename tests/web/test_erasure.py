"""An erased session leaves its name nowhere; DELETE api/me/sessions erases all sessions of a caller."""

import asyncio
import json
import logging
from dataclasses import replace
from datetime import UTC, datetime, timedelta
from decimal import Decimal

import httpx
import pytest

from local.keys import line
from shared.domain.calls import LedgerEntry, State
from shared.domain.daily import Day, Figures, SessionCost
from shared.domain.hashing import sha256_hex
from shared.domain.principal import Principal
from shared.services import services
from shared.storage import session_rows as rows
from shared.storage.days import Days
from shared.storage.entities import Row
from shared.storage.tables import Table
from tests.conftest import Tables
from tests.support.azure_openai import AzureOpenAI
from tests.support.chat_client import fill, ledger, ok_json, stored
from tests.support.clock import ManualClock
from tests.support.conservation import all_rows, assert_conserved, is_counter
from tests.support.faults import deletion_mark, stall_request
from tests.support.ledger_rows import entry, write
from tests.support.proxy import Answer, Match, Stall, TcpProxy

NAME = "ada.lovelace-oncology"
TRACES = (NAME, sha256_hex(NAME), sha256_hex(NAME)[:12])
KEYS = {"ann": "a-client-key-of-ann", "ben": "a-client-key-of-ben"}
NOON = datetime(2026, 3, 2, 12, tzinfo=UTC)
REFUSED = Answer(403)
WIRE = "/openai/v1/chat/completions"
LIMITS = json.dumps({"total": {"usd_per_month": 100}, "key:ann": {"usd_per_day": 10}})


@pytest.fixture
def limits() -> str:
    return ""


@pytest.fixture
def environ(environ: dict[str, str], clock: ManualClock, limits: str) -> dict[str, str]:
    clock.set(NOON)
    keys = ",".join(line(name, key) for name, key in KEYS.items())
    return environ | {"CLIENT_KEYS": keys, "RETENTION_DAYS": "30", "LIMITS": limits}


async def assert_nameless(tables: Tables) -> None:
    """No key and no property of any row of any table holds the name or its hash."""
    for table in (tables.sessions, tables.usage, tables.daily):
        async for row in all_rows(table):
            text = repr(row)
            assert not [trace for trace in TRACES if trace in text], text


def assert_not_logged(caplog: pytest.LogCaptureFixture) -> None:
    """The app logs no trace of the name. The test's HTTP client and its local host log the URLs of requests."""
    records = [each for each in caplog.records if not each.name.startswith(("http", "uvicorn", "local.host"))]
    lines = [caplog.handler.format(record) for record in records]
    assert [text for text in lines if any(trace in text for trace in TRACES)] == []
    assert lines


def key(caller: str | None, **more: str) -> dict[str, str]:
    return ({"api-key": KEYS[caller]} if caller else {}) | more


async def chat(
    api: httpx.AsyncClient, caller: str | None, message: str = "hi", session: str = NAME, **headers: str
) -> httpx.Response:
    body = {"message": message, "session_id": session}
    return await api.post("/api/chat", json=body, headers=key(caller, **headers))


async def complete(api: httpx.AsyncClient) -> httpx.Response:
    body = {"model": "chat", "messages": [{"role": "user", "content": "hi"}]}
    return await api.post(WIRE, json=body, headers=key("ann", **{"x-session-id": NAME}))


async def stop_a_turn(api: httpx.AsyncClient, fake: AzureOpenAI, caller: str | None) -> None:
    fake.reply("one two three")
    body = {"message": "count", "session_id": NAME, "stream": True}
    with fake.hold(after=1):
        async with api.stream("POST", "/api/chat", json=body, headers=key(caller)) as response:
            assert b"start" in await anext(response.aiter_bytes())
            await api.post(f"/api/sessions/{NAME}/stop", headers=key(caller))


async def use(api: httpx.AsyncClient, fake: AzureOpenAI, tables: Tables, caller: str | None) -> None:
    """Turns of each kind: answered, with an Idempotency-Key, forwarded, failed, retried, unaccounted and stopped."""
    assert (await chat(api, caller)).status_code == 200
    assert (await chat(api, caller, "again", **{"idempotency-key": "once"})).status_code == 200
    assert (await complete(api)).status_code == 200
    fake.fault(409)
    assert (await chat(api, caller)).status_code >= 500
    fake.fault("reset")
    assert (await chat(api, caller)).status_code == 200
    fake.fault("content_filter")
    assert (await chat(api, caller)).status_code == 400
    await stop_a_turn(api, fake, caller)
    await services().turns.finish()
    states = {entry.call.state for entry in await ledger(tables)}
    assert states >= {State.SETTLED, State.FAILED, State.UNACCOUNTED, State.STOPPED}


async def fill_as_before(tables: Tables, owner: str | None) -> None:
    """A session that 0.2.0 wrote: its id is in the keys of its ledger rows and in the stored figures of a day."""
    await fill(tables, 3, NAME)
    head, turns = await stored(tables, NAME)
    await tables.sessions.put(rows.from_session(replace(head, owner=owner)), head.etag)
    for turn, minute in zip(turns, (None, None, turns[2].started), strict=True):
        states = {1: State.SETTLED, 2: State.OPEN, 3: State.SETTLED}
        call = replace(turn.call, minute=minute, state=states[turn.number], deadline=NOON - timedelta(days=1))
        await tables.sessions.put(rows.from_turn(NAME, replace(turn, calls=(call,))), turn.etag)
        await write(tables.usage, [LedgerEntry(call=call, session_id=NAME, turn=turn.number, caller=owner)])
    costs = (SessionCost(session=NAME, cost=Decimal(1), is_reference=False), SessionCost(session="x", cost=Decimal(2)))
    await Days(tables.daily).put(Day(day=turns[0].call.day, figures=Figures(costliest=costs), final=True))


async def amounts(tables: Tables) -> list[str]:
    """Every ledger row without the name of its session, and every counter."""
    texts = []
    async for row in all_rows(tables.usage):
        names = {"etag", "reference", "session", *([] if is_counter(row) else ["RowKey"])}
        texts.append(repr(sorted((name, value) for name, value in row.items() if name not in names)))
    return sorted(texts)


async def erase(api: httpx.AsyncClient, caller: str | None) -> int:
    return (await api.delete(f"/api/sessions/{NAME}", headers=key(caller))).status_code


# The name


@pytest.mark.parametrize("limits", ["", LIMITS], ids=["unlimited", "limited"])
@pytest.mark.parametrize("caller", [None, "ann"])
async def test_erased_session_leaves_its_name_in_no_table_and_no_log(
    api: httpx.AsyncClient, fake: AzureOpenAI, tables: Tables, caplog: pytest.LogCaptureFixture, caller: str | None
) -> None:
    caplog.set_level(logging.DEBUG)
    await fill_as_before(tables, Principal.of_key(caller).name if caller else None)
    await use(api, fake, tables, caller)
    before = await amounts(tables)
    with pytest.raises(AssertionError):
        await assert_nameless(tables)

    assert await erase(api, caller) == 204

    await assert_nameless(tables)
    assert_not_logged(caplog)
    assert not [trace for trace in TRACES if trace in repr(fake.requests)]
    assert await amounts(tables) == before
    await services().maintenance.run()
    await assert_nameless(tables)
    assert_not_logged(caplog)


@pytest.mark.parametrize(
    "limits", [pytest.param("", marks=pytest.mark.acceptance), LIMITS], ids=["unlimited", "limited"]
)
async def test_timer_finishes_an_erasure_that_died_at_any_request(
    storage: TcpProxy,
    clock: ManualClock,
    api: httpx.AsyncClient,
    fake: AzureOpenAI,
    tables: Tables,
    caplog: pytest.LogCaptureFixture,
) -> None:
    await fill_as_before(tables, None)
    await use(api, fake, tables, None)
    everything = [row async for row in all_rows(tables.sessions)]
    entries = [row async for row in all_rows(tables.usage)]
    [day] = [row async for row in all_rows(tables.daily) if not row["PartitionKey"].startswith("~")]
    before = await amounts(tables)
    caplog.clear()
    caplog.set_level(logging.DEBUG)
    for nth in range(1, 200):
        rule = storage.on(Match(), REFUSED, nth=nth, times=None)
        status = await erase(api, None)
        storage.clear()
        assert status == (503 if rule.hits else 204)
        async for _ in services().maintenance._jobs["deletions"](""):
            pass
        if (await api.get(f"/api/sessions/{NAME}")).status_code == 404:
            await assert_nameless_but_for_marks(tables)
            assert await amounts(tables) == before
        if not rule.hits:
            break
        await restore(tables.sessions, everything)
        await restore(tables.usage, entries)
        await restore(tables.daily, [day])
    assert nth > 20
    assert_not_logged(caplog)


async def assert_nameless_but_for_marks(tables: Tables) -> None:
    """Without the marks of erasures that never reached the session, which the timer deletes after 15 minutes."""
    async for row in all_rows(tables.sessions):
        if row["PartitionKey"] == "~erasing":
            await tables.sessions.delete("~erasing", row["RowKey"], row["etag"])
    await assert_nameless(tables)


async def restore(table: Table, before: list[Row]) -> None:
    """Make the table hold these rows and no others."""
    wanted = {(row["PartitionKey"], row["RowKey"]): row for row in before}
    async for row in all_rows(table):
        stored_before = wanted.pop((row["PartitionKey"], row["RowKey"]), None)
        if stored_before is None and not row["PartitionKey"].startswith("~c"):
            await table.delete(row["PartitionKey"], row["RowKey"], row["etag"])
        elif stored_before and {**stored_before, "etag": ""} != {**row, "etag": ""}:
            await table.put({name: value for name, value in stored_before.items() if name != "etag"}, row["etag"])
    for row in wanted.values():
        await table.put({name: value for name, value in row.items() if name != "etag"})


async def test_session_whose_turn_died_at_any_request_is_erased_without_a_name_left(
    storage: TcpProxy, clock: ManualClock, api: httpx.AsyncClient, tables: Tables
) -> None:
    """On the session's first turn of a day, which also moves its row in the retention's index."""
    clock.skip_sleeps_up_to = 8  # the turn gives up at once, and does not renew its lease
    for nth in range(1, 20):
        clock.set(NOON + timedelta(days=10 * nth))
        assert (await chat(api, None)).status_code == 200
        await services().turns.finish()
        clock.set(NOON + timedelta(days=10 * nth + 1))
        rule = storage.on(Match(), REFUSED, nth=nth, times=None)
        await chat(api, None)
        await services().turns.finish()
        storage.clear()

        assert await erase(api, None) == 204

        await assert_nameless(tables)
        if not rule.hits:
            break
    assert nth == 8


# While a turn runs


@pytest.mark.parametrize("limits", ["", LIMITS], ids=["unlimited", "limited"])
@pytest.mark.parametrize("ending", ["settled", "unaccounted", "stopped"])
async def test_late_settlement_of_an_erased_session_writes_no_name(
    api: httpx.AsyncClient, fake: AzureOpenAI, tables: Tables, caplog: pytest.LogCaptureFixture, ending: str
) -> None:
    caplog.set_level(logging.DEBUG)
    if ending == "unaccounted":
        fake.fault("truncated", after=2)
    else:
        fake.reply("one two three")
    with fake.hold(after=1) as hold:
        body = {"message": "count", "session_id": NAME, "stream": True}
        async with api.stream("POST", "/api/chat", json=body) as response:
            parts = response.aiter_bytes()
            assert b"start" in await anext(parts)
            await hold.until_reached()

            assert await erase(api, None) == 204

            await assert_nameless(tables)
            if ending == "stopped":
                assert await services().turns.stop(NAME, 1)
            hold.release()
            async for _ in parts:
                pass
    await services().turns.finish()
    await assert_nameless(tables)
    assert_not_logged(caplog)
    [one] = await assert_conserved(tables, fake, erased={NAME})
    assert one.call.state == ending


@pytest.mark.parametrize("limits", ["", LIMITS], ids=["unlimited", "limited"])
@pytest.mark.parametrize("ending", ["settled", "unaccounted", "stopped"])
async def test_row_inserted_after_the_erasure_loses_the_name_with_its_settlement(
    storage: TcpProxy, api: httpx.AsyncClient, fake: AzureOpenAI, tables: Tables, ending: str
) -> None:
    if ending == "unaccounted":
        fake.fault("truncated", after=2)
    with fake.hold(after=1) as hold:
        opening = Match("POST", r"usage$|\$batch", body=rf'"session": "{NAME}"')
        with stall_request(storage, opening) as insertion:
            turn = asyncio.create_task(chat(api, None))
            await insertion.until_reached()
            assert await erase(api, None) == 204
        await hold.until_reached()
        if ending == "stopped":
            assert await services().turns.stop(NAME, 1)
        hold.release()
        await turn
    await services().turns.finish()
    [one] = await assert_conserved(tables, fake, erased={NAME})
    assert one.call.state == ending
    await assert_nameless(tables)


async def test_timer_removes_the_name_from_a_row_that_its_process_inserted_after_the_erasure(
    clock: ManualClock, api: httpx.AsyncClient, tables: Tables
) -> None:
    """The process died before it settled the row, or settled it as unaccounted and died."""
    for state in (State.OPEN, State.UNACCOUNTED):
        call = replace(entry(NOON.date(), NAME, state=state).call, reference="0123456789abcdef")
        await write(tables.usage, [LedgerEntry(call=call, session_id=NAME, turn=1, caller=None)])

    clock.set(NOON + timedelta(minutes=6))
    await services().maintenance.run()

    await assert_nameless(tables)
    assert [one.call.state for one in await ledger(tables)] == [State.UNACCOUNTED] * 2


async def test_erasure_raises_a_row_that_its_process_left_open(
    storage: TcpProxy, clock: ManualClock, api: httpx.AsyncClient, fake: AzureOpenAI, tables: Tables
) -> None:
    clock.skip_sleeps_up_to = 8
    rule = storage.on(Match("PUT", "usage"), REFUSED, times=None)
    assert (await chat(api, None)).status_code == 200
    await services().turns.finish()
    assert rule.hits
    storage.clear()
    assert [one.call.state for one in await ledger(tables)] == [State.OPEN]

    assert await erase(api, None) == 204

    await assert_nameless(tables)
    [one] = await assert_conserved(tables, fake, erased={NAME})
    assert one.call.state is State.SETTLED


# All sessions of a caller


ALL = "/api/me/sessions"


async def heads(tables: Tables) -> set[str]:
    return {row["PartitionKey"] async for row in all_rows(tables.sessions) if row["RowKey"] == "head"}


async def begin_sessions(api: httpx.AsyncClient, caller: str | None, *names: str) -> None:
    for name in names:
        assert (await chat(api, caller, session=name)).status_code == 200


async def test_all_sessions_of_the_caller_are_erased_and_no_others(api: httpx.AsyncClient, tables: Tables) -> None:
    await begin_sessions(api, "ann", "a1", NAME, "a3")
    await begin_sessions(api, "ben", "b1")
    await begin_sessions(api, None, "n1")
    unknown = await api.get(f"{ALL}/erasure", headers=key("ann"))
    assert (unknown.status_code, unknown.json()["error"]["code"]) == (404, "erasure_not_found")

    erased = ok_json(await api.delete(ALL, headers=key("ann")))

    assert (erased["erased_sessions"], erased["done"]) == (3, True)
    assert await heads(tables) == {"b1", "n1"}
    assert ok_json(await api.get(f"{ALL}/erasure", headers=key("ann"))) == erased
    assert (await api.get(f"{ALL}/erasure", headers=key("ben"))).status_code == 404
    await services().turns.finish()
    await assert_nameless(tables)
    await begin_sessions(api, "ann", "a4")
    assert ok_json(await api.delete(ALL, headers=key("ann")))["erased_sessions"] == 1


@pytest.mark.parametrize("method", ["DELETE", "GET"])
async def test_caller_without_a_name_has_no_sessions_to_erase(
    api: httpx.AsyncClient, tables: Tables, method: str
) -> None:
    await begin_sessions(api, None, "n1")
    path = ALL if method == "DELETE" else f"{ALL}/erasure"

    anonymous, unknown = [await api.request(method, path, headers=h) for h in ({}, {"api-key": "no-such-key" * 4})]

    assert (anonymous.status_code, unknown.status_code) == (401, 401)
    assert "client key" in anonymous.json()["error"]["message"]
    assert await heads(tables) == {"n1"}


async def test_session_that_is_in_use_is_erased_too(api: httpx.AsyncClient, fake: AzureOpenAI, tables: Tables) -> None:
    await begin_sessions(api, "ann", "a1")
    with fake.hold() as hold:
        turn = asyncio.create_task(chat(api, "ann", session="a1"))
        await hold.until_reached()

        assert ok_json(await api.delete(ALL, headers=key("ann")))["done"]

        assert await heads(tables) == set()
        hold.release()
        assert (await turn).status_code == 200
    assert await heads(tables) == set()


async def test_session_whose_head_changes_meanwhile_is_erased_too(
    storage: TcpProxy, api: httpx.AsyncClient, tables: Tables
) -> None:
    await begin_sessions(api, "ann", "a1")
    with stall_request(storage, deletion_mark("a1")) as marking:
        erasing = asyncio.create_task(api.delete(ALL, headers=key("ann")))
        await marking.until_reached()
        assert (await chat(api, "ann", session="a1")).status_code == 200
    assert ok_json(await erasing)["erased_sessions"] == 1
    assert await heads(tables) == set()


async def test_session_that_is_being_cleared_is_erased_too(
    storage: TcpProxy, api: httpx.AsyncClient, tables: Tables
) -> None:
    await begin_sessions(api, "ann", "a1")
    storage.on(Match("POST", r"\$batch"), REFUSED, times=None)
    assert (await api.delete("/api/sessions/a1/messages", headers=key("ann"))).status_code == 503
    storage.clear()

    assert ok_json(await api.delete(ALL, headers=key("ann")))["erased_sessions"] == 1
    assert await heads(tables) == set()


async def test_sessions_begun_after_the_erasure_are_kept(
    storage: TcpProxy, clock: ManualClock, api: httpx.AsyncClient, tables: Tables
) -> None:
    await begin_sessions(api, "ann", "a1", "a2")
    storage.on(deletion_mark("a1"), REFUSED)
    assert (await api.delete(ALL, headers=key("ann"))).status_code == 503
    assert (await api.delete("/api/sessions/a2", headers=key("ann"))).status_code == 204
    await clock.advance(1)
    await begin_sessions(api, "ann", "a2", "a3")

    assert ok_json(await api.delete(ALL, headers=key("ann")))["erased_sessions"] == 1

    assert await heads(tables) == {"a2", "a3"}


async def test_two_erasures_at_once_erase_each_session_once(api: httpx.AsyncClient, tables: Tables) -> None:
    await begin_sessions(api, "ann", *(f"a{n}" for n in range(6)))

    answers = await asyncio.gather(*(api.delete(ALL, headers=key("ann")) for _ in range(2)))

    assert {response.status_code for response in answers} <= {200, 202}
    await services().maintenance.run()
    progress = ok_json(await api.get(f"{ALL}/erasure", headers=key("ann")))
    assert progress["done"]
    assert progress["erased_sessions"] <= 6
    assert await heads(tables) == set()


async def test_erasure_that_takes_long_is_answered_202_and_finished_by_the_timer(
    storage: TcpProxy, clock: ManualClock, api: httpx.AsyncClient, tables: Tables
) -> None:
    await begin_sessions(api, "ann", "a1", "a2", "a3")
    await begin_sessions(api, "ben", "b1")
    stalled = storage.on(deletion_mark("a2"), Stall())
    erasing = asyncio.create_task(api.delete(ALL, headers=key("ann")))
    await stalled.until_reached()
    await clock.until_timeout_started(20)
    await clock.advance(20)
    response = await erasing
    assert (response.status_code, response.json()["erased_sessions"], response.json()["done"]) == (202, 1, False)
    assert ok_json(await api.get(f"{ALL}/erasure", headers=key("ann"))) == response.json()
    storage.clear()

    await services().maintenance.run()

    progress = ok_json(await api.get(f"{ALL}/erasure", headers=key("ann")))
    assert progress["done"]
    assert progress["erased_sessions"] in (2, 3)  # without the one in progress, if the job of deletions finished it
    assert await heads(tables) == {"b1"}


async def test_erasure_of_all_sessions_that_died_at_any_request_is_resumed(
    storage: TcpProxy, api: httpx.AsyncClient, tables: Tables
) -> None:
    for nth in range(1, 100):
        await begin_sessions(api, "ann", NAME, "a2")
        await services().turns.finish()
        rule = storage.on(Match(), REFUSED, nth=nth, times=None)
        response = await api.delete(ALL, headers=key("ann"))
        storage.clear()
        assert response.status_code == (503 if rule.hits else 200)
        for job in ("deletions", "erasures"):
            async for _ in services().maintenance._jobs[job](""):
                pass
        if nth > 2:  # it was begun
            assert await heads(tables) == set()
            await assert_nameless_but_for_marks(tables)
        if not rule.hits:
            break
    assert 15 < nth < 40


async def test_unreadable_session_does_not_keep_another_callers_erasure(
    storage: TcpProxy, api: httpx.AsyncClient, tables: Tables, caplog: pytest.LogCaptureFixture
) -> None:
    for caller in KEYS:
        await begin_sessions(api, caller, f"{caller}-1", f"{caller}-2")
        storage.on(deletion_mark(f"{caller}-1"), REFUSED)
        assert (await api.delete(ALL, headers=key(caller))).status_code == 503
    head = await tables.sessions.get("ann-1", "head")
    assert head
    await tables.sessions.merge({"PartitionKey": "ann-1", "RowKey": "head", "cost": "x"}, head["etag"])

    async for _ in services().maintenance._jobs["erasures"](""):
        pass

    assert await heads(tables) == {"ann-1", "ann-2"}
    assert "a session could not be read or erased" in caplog.text
