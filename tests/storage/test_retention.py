"""Sessions that were not used for RETENTION_DAYS, temporary sessions and old ledger rows are deleted by the timer."""

import asyncio
from collections.abc import AsyncIterator
from contextlib import asynccontextmanager, suppress
from datetime import UTC, date, datetime, timedelta
from decimal import Decimal

import httpx
import pytest

from shared.domain.calls import State
from shared.domain.daily import Day, Figures
from shared.errors import StorageUnavailable
from shared.maintenance import JOB_TIME_LIMIT_S
from shared.services import services
from shared.storage.days import Days
from tests.conftest import Serve, Tables
from tests.support.azure_openai import AzureOpenAI
from tests.support.chat_client import answer, closed_ledger, fill, get_json, send_message, stored, streaming
from tests.support.clock import ManualClock
from tests.support.conservation import all_rows
from tests.support.faults import stall_request
from tests.support.ledger_rows import entry, write
from tests.support.proxy import Answer, Close, Match, Stall, TcpProxy
from tests.support.stored_responses import respond

DAYS = 30
NOON = datetime(2026, 3, 2, 12, tzinfo=UTC)
DAY = timedelta(days=1)
REFUSED = Answer(403)  # an error that the storage client does not retry


@pytest.fixture
def environ(environ: dict[str, str], clock: ManualClock) -> dict[str, str]:
    clock.set(NOON)
    return environ | {"RETENTION_DAYS": str(DAYS)}


def without_retention(environ: dict[str, str]) -> dict[str, str]:
    return environ | {"RETENTION_DAYS": ""}


async def run_timer(clock: ManualClock, now: datetime) -> None:
    clock.set(now)
    await services().maintenance.run()


async def sessions(tables: Tables) -> set[str]:
    return {row["PartitionKey"] async for row in all_rows(tables.sessions) if row["RowKey"] == "head"}


async def index(tables: Tables) -> dict[str, set[str]]:
    """The days under which the index has each session."""
    days: dict[str, set[str]] = {}
    async for row in all_rows(tables.sessions):
        if row["PartitionKey"].startswith(("~seen-", "~expires-")):
            days.setdefault(row["RowKey"], set()).add(row["PartitionKey"])
    return days


async def status(api: httpx.AsyncClient, session: str = "s") -> int:
    return (await api.get(f"/api/sessions/{session}")).status_code


# Sessions that are not used


async def test_session_that_was_not_used_is_erased_and_one_that_was_used_is_kept(
    clock: ManualClock, api: httpx.AsyncClient, tables: Tables
) -> None:
    for session in ("unused", "used"):
        await answer(api, session=session)
    clock.set(NOON + DAY)
    await answer(api, session="used")

    await run_timer(clock, NOON + DAYS * DAY)
    assert await sessions(tables) == {"unused", "used"}

    await run_timer(clock, NOON + (DAYS + 1) * DAY)
    assert await sessions(tables) == {"used"}
    assert await index(tables) == {"used": {"~seen-2026-03-03"}}
    assert await status(api, "unused") == 404

    await run_timer(clock, NOON + (DAYS + 2) * DAY)
    assert await sessions(tables) == set()
    assert await index(tables) == {}


async def test_nothing_is_erased_without_retention_days(
    clock: ManualClock, serve: Serve, environ: dict[str, str], tables: Tables
) -> None:
    async with serve(without_retention(environ)) as api:
        await answer(api)
        await run_timer(clock, NOON + 1000 * DAY)

        assert await status(api) == 200
    assert await index(tables) == {}


async def test_busy_session_is_left_and_erased_later(
    clock: ManualClock, api: httpx.AsyncClient, fake: AzureOpenAI, tables: Tables
) -> None:
    await answer(api)
    with fake.hold() as hold:
        async with streaming(api) as stream:
            await stream.next()
            head = await tables.sessions.get("s", "head")
            assert head
            over = {"updated": NOON - 99 * DAY, "lease_until": NOON + 90 * DAY}
            await tables.sessions.merge({"PartitionKey": "s", "RowKey": "head", **over}, head["etag"])

            await run_timer(clock, NOON + 60 * DAY)

            assert await sessions(tables) == {"s"}
            assert list(await index(tables)) == ["s"]
            hold.release()
            assert [event.name for event in await stream.rest()][-1] == "done"
    await closed_ledger(tables)
    await run_timer(clock, NOON + 100 * DAY)
    assert await sessions(tables) == set()


async def test_unreadable_session_does_not_keep_the_others(
    clock: ManualClock, api: httpx.AsyncClient, tables: Tables, caplog: pytest.LogCaptureFixture
) -> None:
    for session in ("broken", "whole"):
        await answer(api, session=session)
    head = await tables.sessions.get("broken", "head")
    assert head
    await tables.sessions.merge({"PartitionKey": "broken", "RowKey": "head", "cost": "x"}, head["etag"])

    await run_timer(clock, NOON + (DAYS + 1) * DAY)

    assert await sessions(tables) == {"broken"}
    assert "retention: a session could not be read or erased" in caplog.text


async def test_interrupted_clear_does_not_keep_a_session_for_ever(
    storage: TcpProxy, clock: ManualClock, api: httpx.AsyncClient, tables: Tables
) -> None:
    await answer(api)
    storage.on(Match("POST", r"/\$batch"), Close(), times=None)
    assert (await api.delete("/api/sessions/s/messages")).status_code == 503
    storage.clear()
    mark = next(row for row in [row async for row in all_rows(tables.sessions)] if row["PartitionKey"] == "~erasing")
    await tables.sessions.delete("~erasing", mark["RowKey"], mark["etag"])  # so that only the retention finishes it

    await run_timer(clock, NOON + (DAYS + 1) * DAY)

    assert await sessions(tables) == set()


# Storage requests


@pytest.mark.parametrize("days", [DAYS, None])
@pytest.mark.table_storage
async def test_index_costs_two_requests_on_the_first_turn_of_a_day(
    storage: TcpProxy, clock: ManualClock, serve: Serve, environ: dict[str, str], tables: Tables, days: int | None
) -> None:
    async with serve(environ | {"RETENTION_DAYS": str(days or "")}) as api:

        async def requests() -> int:
            before = len(storage.seen)
            await answer(api)
            await closed_ledger(tables)
            return len(storage.seen) - before

        costs = []
        for day in range(3):
            clock.set(NOON + day * DAY)
            costs += [await requests(), await requests()]

    assert costs == ([6, 5, 7, 5, 7, 5] if days else [5] * 6)


async def test_session_that_is_erased_while_the_index_moves_it_is_not_left_there(
    storage: TcpProxy, clock: ManualClock, api: httpx.AsyncClient, tables: Tables
) -> None:
    await answer(api)
    await services().turns.finish()
    clock.set(NOON + DAY)
    with stall_request(storage, Match("POST", r"sessions$", body="~seen-")) as insertion:
        turn = asyncio.create_task(send_message(api))
        await insertion.until_reached()
        assert (await api.delete("/api/sessions/s")).status_code == 204
    await turn
    await services().turns.finish()
    assert await index(tables) == {}


async def test_turn_is_answered_if_the_index_fails_and_the_next_turn_mends_it(
    storage: TcpProxy, clock: ManualClock, api: httpx.AsyncClient, tables: Tables
) -> None:
    await answer(api)
    clock.set(NOON + DAY)
    rule = storage.on(Match("POST", "sessions$", body="~seen-"), REFUSED)

    await answer(api)
    assert rule.hits == 1
    assert await index(tables) == {"s": {"~seen-2026-03-02"}}

    await answer(api)
    assert await index(tables) == {"s": {"~seen-2026-03-03"}}


# Sessions of before RETENTION_DAYS was set


async def test_older_sessions_are_entered_and_erased(
    clock: ManualClock, serve: Serve, environ: dict[str, str], tables: Tables
) -> None:
    async with serve(without_retention(environ)) as api:
        await answer(api, session="old")
        clock.set(NOON + 5 * DAY)
        await answer(api, session="older-but-used")
    async with serve(environ):
        await run_timer(clock, NOON + 6 * DAY)
        assert await index(tables) == {"old": {"~seen-2026-03-02"}, "older-but-used": {"~seen-2026-03-07"}}

        await run_timer(clock, NOON + (DAYS + 1) * DAY)
        assert await sessions(tables) == {"older-but-used"}


async def test_retention_can_be_switched_off_and_on_again(
    clock: ManualClock, serve: Serve, environ: dict[str, str], tables: Tables
) -> None:
    async with serve(environ) as api:
        await answer(api, session="before")
        await answer(api, session="used-while-off")
        await run_timer(clock, NOON)
    async with serve(without_retention(environ)) as api:
        clock.set(NOON + 5 * DAY)
        await answer(api, session="used-while-off")
        await answer(api, session="begun-while-off")
        await run_timer(clock, NOON + 100 * DAY)
        assert len(await sessions(tables)) == 3
        clock.set(NOON + 5 * DAY)
    async with serve(environ):
        await run_timer(clock, NOON + (DAYS + 1) * DAY)
        assert await sessions(tables) == {"used-while-off", "begun-while-off"}

        await run_timer(clock, NOON + (DAYS + 6) * DAY)
        assert await sessions(tables) == set()
        assert await index(tables) == {}


async def test_scan_of_older_sessions_resumes_where_its_time_ended(
    storage: TcpProxy, clock: ManualClock, api: httpx.AsyncClient, tables: Tables, caplog: pytest.LogCaptureFixture
) -> None:
    names = [f"old-{n}" for n in range(4)]
    for name in names:
        await fill(tables, 1, name)
    stalled = storage.on(Match("GET", r"'old-2'"), Stall())
    running = asyncio.create_task(services().maintenance.run())
    await stalled.until_reached()
    await clock.advance(JOB_TIME_LIMIT_S)
    await running
    assert list(await index(tables)) == names[:2]
    assert "retention_index ran out of time" in caplog.text
    assert "old-" not in caplog.text
    storage.clear()
    storage.seen.clear()

    await services().maintenance.run()
    assert list(await index(tables)) == names
    assert storage.count(Match("PATCH", "old-[01]")) == 0

    storage.seen.clear()
    await services().maintenance.run()
    assert storage.count(Match(None, "old-")) == 0


# Interruptions


async def test_run_that_is_cut_short_is_resumed(
    storage: TcpProxy, clock: ManualClock, api: httpx.AsyncClient, tables: Tables
) -> None:
    for n in range(3):
        await answer(api, session=f"s{n}")
    await run_timer(clock, NOON)
    clock.set(NOON + (DAYS + 1) * DAY)
    stalled = storage.on(Match("DELETE", "~seen-.*s1"), Stall())
    running = asyncio.create_task(services().maintenance.run())
    await stalled.until_reached()
    await clock.advance(JOB_TIME_LIMIT_S)
    await running
    assert await sessions(tables) == {"s1", "s2"}
    storage.clear()

    await services().maintenance.run()

    assert await sessions(tables) == set()
    assert await index(tables) == {}


@asynccontextmanager
async def failing_from(storage: TcpProxy, nth: int) -> AsyncIterator[list[int]]:
    """Refuse each request to storage from the nth on, as if the process had died. Yields a list that then holds the
    number of refused requests."""
    refused: list[int] = []
    rule = storage.on(Match(), REFUSED, nth=nth, times=None)
    yield refused
    storage.clear()
    refused.append(rule.hits)


@pytest.mark.table_storage
async def test_turn_that_dies_between_any_two_writes_leaves_a_session_that_is_erased_in_time(
    storage: TcpProxy, clock: ManualClock, api: httpx.AsyncClient, tables: Tables
) -> None:
    """On a session's first turn ever, and on its first turn of another day."""
    clock.skip_sleeps_up_to = 8  # the turn gives up at once, and does not renew its lease
    died: list[str] = []
    for kind, day in (("new", 1), ("old", 0)):
        for nth in range(1, 20):
            session = f"{kind}-{nth}"
            clock.set(NOON + day * DAY)
            if kind == "old":
                await answer(api, session=session)
                await services().turns.finish()
            clock.set(NOON + DAY)
            async with failing_from(storage, nth) as refused:
                await send_message(api, session=session)
                await services().turns.finish()
            if refused == [0]:
                break
            died.append(session)
    assert len(died) == 6 + 7
    await run_timer(clock, NOON + DAY + timedelta(hours=1))
    begun = await sessions(tables)
    in_use = {session for session in begun if (await stored(tables, session))[0].updated.date() > NOON.date()}
    assert {session for session in begun if session.startswith("old")} >= {f"old-{n}" for n in range(1, 8)}

    await run_timer(clock, NOON + (DAYS + 1) * DAY)
    assert await sessions(tables) == in_use

    await run_timer(clock, NOON + (DAYS + 3) * DAY)
    assert await sessions(tables) == set()
    assert await index(tables) == {}


async def run_job(name: str) -> None:
    async for _ in services().maintenance._jobs[name](""):
        pass


@pytest.mark.table_storage
async def test_erasure_that_dies_at_any_request_is_finished_by_the_next_run(
    storage: TcpProxy, clock: ManualClock, api: httpx.AsyncClient, tables: Tables
) -> None:
    for nth in range(1, 100):
        begun = NOON + 100 * nth * DAY
        clock.set(begun)
        await answer(api)
        clock.set(begun + DAY)
        await answer(api, session="kept")
        clock.set(begun + (DAYS + 1) * DAY)
        async with failing_from(storage, nth) as refused:
            with suppress(StorageUnavailable):
                await run_job("retention")
        assert "kept" in await sessions(tables)

        await run_job("deletions")
        await run_job("retention")

        assert await sessions(tables) == {"kept"}
        assert await index(tables) == {"kept": {f"~seen-{(begun + DAY).date()}"}}
        if refused == [0]:
            break
    assert 9 < nth < 15


# Temporary sessions


async def test_temporary_session_is_gone_when_it_expires_even_before_the_timer(
    clock: ManualClock, api: httpx.AsyncClient, fake: AzureOpenAI, tables: Tables
) -> None:
    await answer(api, "first", expires_in_seconds=600)
    clock.set(NOON + timedelta(seconds=590))
    assert await status(api) == 200

    clock.set(NOON + timedelta(seconds=605))

    for method, path in (("GET", ""), ("GET", "/messages"), ("GET", "/export"), ("POST", "/stop"), ("DELETE", "")):
        assert (await api.request(method, f"/api/sessions/s{path}")).status_code == 404
    assert await sessions(tables) == set()
    assert await index(tables) == {}


async def test_message_to_an_expired_session_starts_a_new_one(
    clock: ManualClock, api: httpx.AsyncClient, fake: AzureOpenAI, tables: Tables
) -> None:
    await answer(api, "first", expires_in_seconds=600)
    clock.set(NOON + timedelta(seconds=605))

    again = await answer(api, "second")

    assert (again["turn"], again["session"]["turns"]) == (1, 1)
    assert [message["content"] for message in fake.requests[-1].body["messages"][1:]] == ["second"]
    assert (await stored(tables))[0].expires is None


async def test_timer_erases_expired_sessions_without_retention_days(
    clock: ManualClock, serve: Serve, environ: dict[str, str], tables: Tables
) -> None:
    async with serve(without_retention(environ)) as api:
        await answer(api, session="short", expires_in_seconds=600)
        await answer(api, session="longer", expires_in_seconds=7200)
        await answer(api, session="tomorrow", expires_in_seconds=86_400)
        await answer(api, session="kept")

        await run_timer(clock, NOON + timedelta(hours=1))
        assert await sessions(tables) == {"longer", "tomorrow", "kept"}

        await run_timer(clock, NOON + timedelta(hours=3))
        assert await sessions(tables) == {"tomorrow", "kept"}

        await run_timer(clock, NOON + timedelta(days=3))
        assert await sessions(tables) == {"kept"}
        assert await index(tables) == {}


async def test_temporary_session_that_is_not_used_is_erased_before_it_expires(
    clock: ManualClock, api: httpx.AsyncClient, tables: Tables
) -> None:
    await answer(api, expires_in_seconds=366 * 86_400)

    await run_timer(clock, NOON + (DAYS + 1) * DAY)

    assert await sessions(tables) == set()
    assert await index(tables) == {}


async def test_expiry_is_set_by_the_first_turn_alone(
    clock: ManualClock, api: httpx.AsyncClient, fake: AzureOpenAI
) -> None:
    await answer(api, session="plain")
    await answer(api, session="temporary", expires_in_seconds=600)
    clock.set(NOON + timedelta(seconds=30))

    await answer(api, session="temporary", expires_in_seconds=600)
    await answer(api, session="temporary")
    for session, seconds in (("plain", 600), ("temporary", 601)):
        refused = await send_message(api, session=session, expires_in_seconds=seconds)
        assert (refused.status_code, refused.json()["error"]["param"]) == (400, "expires_in_seconds")
    assert len(fake.requests) == 4


@pytest.mark.parametrize("seconds", [59, 366 * 86_400 + 1, -1, "600", 60.5])
async def test_expiry_outside_its_range_is_refused(api: httpx.AsyncClient, seconds: object) -> None:
    refused = await send_message(api, expires_in_seconds=seconds)
    assert (refused.status_code, refused.json()["error"]["param"]) == (400, "expires_in_seconds")


# The ledger


async def test_ledger_rows_older_than_the_complete_months_are_deleted(
    clock: ManualClock, serve: Serve, environ: dict[str, str], tables: Tables, fake: AzureOpenAI
) -> None:
    """Of both kinds of partitions, with the counters; the daily table keeps its figures."""
    environ = environ | {"LIMITS": '{"total": {"usd_per_month": 100}}', "LEDGER_RETENTION_MONTHS": "2"}
    months = [date(2025, 10, 31), date(2025, 12, 31), date(2026, 1, 1), date(2026, 2, 28), date(2026, 3, 1)]
    async with serve(without_retention(environ)) as api:
        for day in months:
            clock.set(datetime(day.year, day.month, day.day, 12, tzinfo=UTC))
            await answer(api, session=f"s-{day}")
            await closed_ledger(tables)
        await write(tables.usage, [entry(day, f"u-{day}-{n}") for day in months for n in range(3)])
        await write(tables.usage, [entry(months[0], "late", state=State.UNACCOUNTED)])
        days = Days(tables.daily)
        old = await days.put(Day(day=months[0], figures=Figures(cost=Decimal(5)), final=True))

        await run_timer(clock, NOON)

        rows = [row async for row in all_rows(tables.usage)]
        months_left = {str(day)[:7] for day in months[2:]}
        assert {row["PartitionKey"][:7] for row in rows} == months_left
        assert {row["PartitionKey"] for row in rows if row["RowKey"].startswith("!")} == {
            f"{month}!limits" for month in months_left
        }
        assert len(rows) == 3 * (3 + 1 + 1)
        assert await days.get(months[0]) == old
        assert len(await sessions(tables)) == len(months)
        assert (await get_json(api, f"/api/sessions/s-{months[0]}"))["cost_usd"] > 0


async def test_ledger_is_kept_without_the_setting(clock: ManualClock, api: httpx.AsyncClient, tables: Tables) -> None:
    await write(tables.usage, [entry(date(2020, 1, 1))])

    await run_timer(clock, NOON)

    assert len([row async for row in all_rows(tables.usage)]) == 1


# Branches


async def test_response_is_kept_while_a_branch_needs_it(
    clock: ManualClock, api: httpx.AsyncClient, tables: Tables
) -> None:
    root = await respond("root")
    await respond("in place", after=root)
    branch = await respond("branch", after=root)
    await respond("in place", after=branch)
    clock.set(NOON + DAY)
    leaf = await respond("leaf", after=branch)
    chain = {each.session.id for each in (root, branch, leaf)}
    assert len(chain) == 3

    await run_timer(clock, NOON + (DAYS + 1) * DAY)
    assert await sessions(tables) == chain
    assert [*(await index(tables)).values()] == 3 * [{"~seen-2026-03-03"}]
    assert (await respond("next", after=leaf)).session.id == leaf.session.id  # on the day that its own time would end

    await run_timer(clock, NOON + (DAYS + 2) * DAY)
    assert await sessions(tables) == chain
    await run_timer(clock, NOON + (DAYS + DAYS + 2) * DAY)
    assert await sessions(tables) == set()
    assert await index(tables) == {}
    assert [row async for row in all_rows(tables.sessions) if row["RowKey"].startswith("branch-")] == []


async def test_session_of_many_branches_is_kept_with_few_requests(
    clock: ManualClock, storage: TcpProxy, api: httpx.AsyncClient, tables: Tables, prefix: str
) -> None:
    root = await respond("root")
    await respond("in place", after=root)
    clock.set(NOON + DAY)
    answers = await asyncio.gather(*(respond(str(number), after=root) for number in range(30)))
    branches = {each.session.id for each in answers}
    await run_timer(clock, NOON + DAY)  # it enters older sessions once
    before = storage.count(Match("GET", f"{prefix}sessions"))

    await run_timer(clock, NOON + (DAYS + 1) * DAY)
    assert await sessions(tables) == {root.session.id, *branches}
    assert storage.count(Match("GET", f"{prefix}sessions")) - before < 20
