"""Limited calls and their counters under storage faults, across days and instances, and after crashes: each counter is
the sum over the calls, and no model is called without a row."""

import asyncio
import json
from dataclasses import replace
from datetime import UTC, datetime, timedelta
from decimal import Decimal
from typing import Any

import httpx
import pytest

from shared.domain.calls import Call, LedgerEntry, State
from shared.domain.clock import SystemClock
from shared.domain.limits import Counter, Limit
from shared.services import services
from shared.storage import table_service
from shared.storage.counter_rows import counter_keys
from shared.storage.ledger import Ledger
from shared.storage.limits import MAX_ATTEMPTS
from tests.conftest import Tables
from tests.support.azure_openai import AzureOpenAI
from tests.support.chat_client import answer, closed_ledger, expire_lease, ledger, send_message, stored, until
from tests.support.clock import ManualClock
from tests.support.conservation import assert_conserved, assert_counted
from tests.support.proxy import Action, Answer, Close, Cut, Match, Stall, TcpProxy

LATE = datetime(2026, 11, 27, 23, 59, 30, tzinfo=UTC)
MIDNIGHT = datetime(2026, 11, 28, tzinfo=UTC)
LIMITS: dict[str, Any] = {
    "total": {"usd_per_day": 1, "usd_per_month": 1},
    "anonymous": {"usd_per_day": 1, "requests_per_minute": 100, "tokens_per_minute": 100_000},
}
ANONYMOUS = Limit(name="anonymous", usd_per_day=Decimal(1))
OPEN, RAISED = '"state": "open"', '"state": "(settled|unaccounted|failed)"'
LOST: dict[str, Action] = {
    "lost": Close(after_answer=True),
    "cut": Cut(),
    "cut chunk": Cut(framing="chunked"),
    "503, retried by the SDK": Answer(503, after_answer=True),
}


@pytest.fixture
def environ(environ: dict[str, str]) -> dict[str, str]:
    return environ | {"LIMITS": json.dumps(LIMITS)}


@pytest.fixture
def impatient(monkeypatch: pytest.MonkeyPatch) -> None:
    """The app gives up on a storage request after 0.3 s. Request it before `api`."""
    monkeypatch.setattr(table_service, "_READ_S", 0.3)
    monkeypatch.setattr(table_service, "_MAX_REPEATS", 0)


@pytest.fixture
def other(tables: Tables) -> Ledger:
    """The ledger of another instance."""
    return Ledger(tables.usage, SystemClock())


def transaction(state: str) -> Match:
    """A transaction of limited calls that writes a row in this state."""
    return Match("POST", r"/\$batch$", rf"!limits.*{state}")


def other_call(at: datetime, *, state: State = State.OPEN, worst_case: str = "0.01") -> LedgerEntry:
    """A call without a session."""
    minute = at.replace(second=0, microsecond=0)
    call = Call(
        id=f"other-{at.timestamp()}",
        day=at.date(),
        deadline=at + timedelta(minutes=5),
        deployment="chat",
        worst_case=Decimal(worst_case),
        max_tokens=100,
        minute=minute,
        state=state,
    )
    return LedgerEntry(call=call, session_id=None, turn=0, caller=None)


async def until_waiting(storage: TcpProxy, turns: int) -> None:
    """Wait until so many turns beside the first are reserved, and wait for the transaction that is held."""
    reservation = Match("POST", r"/\$batch$", "sessions.*turn-")

    async def reserved() -> bool | None:
        return True if storage.count(reservation) >= 2 + turns else None

    await until(reserved)
    await asyncio.sleep(0.05)  # for their answers


async def counters_of(tables: Tables) -> dict[str, Counter]:
    return await assert_counted(tables, await closed_ledger(tables))


# Requests


@pytest.mark.parametrize("count", [1, 3])
async def test_turn_takes_five_storage_requests_under_limits(
    storage: TcpProxy, api: httpx.AsyncClient, tables: Tables, count: int
) -> None:
    await answer(api, "before")
    await closed_ledger(tables)
    seen = len(storage.seen)

    for _ in range(count):
        await answer(api)
        await closed_ledger(tables)

    requests = storage.seen[seen:]
    assert len(requests) == 5 * count
    session = Match("POST", r"/\$batch$", "sessions")
    order = [Match("GET"), session, transaction(OPEN), session, transaction(RAISED)]
    assert all(match.matches(request) for match, request in zip(order * count, requests, strict=True))


async def test_retry_raises_the_old_row_and_opens_the_new_one_in_one_transaction(
    storage: TcpProxy, api: httpx.AsyncClient, fake: AzureOpenAI, tables: Tables
) -> None:
    await answer(api, "before")
    await closed_ledger(tables)
    seen = len(storage.seen)
    fake.fault("reset")

    await answer(api)

    entries = await assert_conserved(tables, fake)
    [_, opened, retried, settled] = [r for r in storage.seen[seen - 1 :] if transaction(".").matches(r)]
    assert [transaction(OPEN).matches(request) for request in (opened, retried, settled)] == [True, True, False]
    assert transaction(RAISED).matches(retried)
    assert sorted(entry.call.state for entry in entries) == ["settled", "settled", "unaccounted"]
    counters = await counters_of(tables)
    assert {counter.minute_requests for counter in counters.values()} <= {1, 2, 3}
    assert len({counter.held for counter in counters.values()}) == 1


async def test_waiting_turns_of_an_instance_share_a_transaction(
    storage: TcpProxy, api: httpx.AsyncClient, fake: AzureOpenAI, tables: Tables
) -> None:
    await answer(api, session="first")
    await closed_ledger(tables)
    stall = storage.on(transaction(OPEN), Stall())
    turns = [asyncio.create_task(answer(api, session=f"s{number}")) for number in range(8)]
    await stall.until_reached()
    await until_waiting(storage, len(turns))
    seen = len(storage.seen)
    stall.release()
    await asyncio.gather(*turns)

    opening = [request for request in storage.seen[seen:] if transaction(OPEN).matches(request)]
    assert [request.body.count(b'"state": "open"') for request in opening] in ([1, 7], [2, 6], [3, 5])
    await assert_conserved(tables, fake)


# Answers are lost


@pytest.mark.parametrize("lost", LOST.values(), ids=LOST)
@pytest.mark.parametrize("write", [OPEN, RAISED], ids=["open", "settle"])
@pytest.mark.parametrize("first", [True, False], ids=["first of the month", "later"])
async def test_transaction_with_a_lost_answer_counts_once(
    storage: TcpProxy,
    api: httpx.AsyncClient,
    fake: AzureOpenAI,
    tables: Tables,
    write: str,
    lost: Action,
    first: bool,
) -> None:
    if not first:
        await answer(api, "before")
        await closed_ledger(tables)
    rule = storage.on(transaction(write), lost)

    await answer(api)

    await assert_conserved(tables, fake)
    assert rule.hits == 1
    await answer(api, "after")
    entries = await assert_conserved(tables, fake)
    assert {entry.call.state for entry in entries} == {State.SETTLED}


@pytest.mark.parametrize("lost", LOST.values(), ids=LOST)
async def test_retry_with_a_lost_answer_counts_once(
    storage: TcpProxy, api: httpx.AsyncClient, fake: AzureOpenAI, tables: Tables, lost: Action
) -> None:
    fake.fault("reset")
    rule = storage.on(transaction(f"(unaccounted.*{OPEN})"), lost)

    await answer(api)

    assert rule.hits == 1
    entries = await assert_conserved(tables, fake)
    assert sorted(entry.call.state for entry in entries) == ["settled", "unaccounted"]


@pytest.mark.parametrize("write", [OPEN, RAISED], ids=["open", "settle"])
async def test_lost_answers_of_a_shared_transaction_count_once(
    storage: TcpProxy, api: httpx.AsyncClient, fake: AzureOpenAI, tables: Tables, write: str
) -> None:
    await answer(api, session="first")
    await closed_ledger(tables)
    rule = storage.on(transaction(write), Close(after_answer=True), times=3)

    await asyncio.gather(*(answer(api, session=f"s{number}") for number in range(12)))

    assert rule.hits > 0
    entries = await assert_conserved(tables, fake)
    assert [entry.call.state for entry in entries] == [State.SETTLED] * 13


# Writes land late, or never


@pytest.mark.usefixtures("impatient")
async def test_opening_that_lands_after_it_was_given_up_on_is_fenced(
    storage: TcpProxy, api: httpx.AsyncClient, fake: AzureOpenAI, tables: Tables
) -> None:
    await answer(api, "before")
    await closed_ledger(tables)
    stall = storage.on(transaction(OPEN), Stall())

    refused = await send_message(api)

    assert (refused.status_code, len(fake.requests)) == (503, 1)

    async def fenced() -> bool | None:  # the caller is answered before
        return True if len(await ledger(tables)) == 2 else None

    await until(fenced)
    stall.release()
    await answer(api, "after")
    entries = await assert_conserved(tables, fake)
    assert sorted(entry.call.state for entry in entries) == ["failed", "settled", "settled"]
    assert {counter.held for counter in (await counters_of(tables)).values()} == {Decimal(0)}


@pytest.mark.usefixtures("impatient")
async def test_settlement_that_lands_late_counts_once(
    storage: TcpProxy, api: httpx.AsyncClient, fake: AzureOpenAI, tables: Tables
) -> None:
    stall = storage.on(transaction(RAISED), Stall())

    await answer(api)

    await closed_ledger(tables)  # settled by another attempt
    stall.release()
    await answer(api, "after")
    await assert_conserved(tables, fake)


@pytest.mark.parametrize("action", [Close(), Answer(403)], ids=["lost", "refused"])
async def test_opening_that_never_lands_holds_nothing(
    storage: TcpProxy, api: httpx.AsyncClient, fake: AzureOpenAI, tables: Tables, action: Action
) -> None:
    await answer(api, "before")
    await closed_ledger(tables)
    storage.on(transaction(OPEN), action)

    assert (await send_message(api)).status_code == 503
    await services().turns.finish()  # the error is sent before the session is free

    await answer(api, "after")
    await assert_conserved(tables, fake)
    assert {counter.held for counter in (await counters_of(tables)).values()} == {Decimal(0)}


# Several instances


async def test_change_by_another_instance_meanwhile_is_read_and_the_call_is_opened(
    storage: TcpProxy, api: httpx.AsyncClient, other: Ledger, fake: AzureOpenAI, tables: Tables
) -> None:
    await answer(api, "before")
    await closed_ledger(tables)
    stall = storage.on(transaction(OPEN), Stall())
    turn = asyncio.create_task(answer(api))
    await stall.until_reached()
    opened = await other.open(other_call(datetime.now(UTC)), [ANONYMOUS])
    stall.release()
    await turn

    await other.raise_call(opened, replace(opened.call, state=State.FAILED))
    await answer(api, "after")
    await assert_conserved(tables, fake)


async def test_budget_that_another_instance_holds_meanwhile_refuses(
    storage: TcpProxy, api: httpx.AsyncClient, other: Ledger, fake: AzureOpenAI, tables: Tables
) -> None:
    await answer(api, "before")
    await closed_ledger(tables)
    stall = storage.on(transaction(OPEN), Stall())
    turn = asyncio.create_task(send_message(api))
    await stall.until_reached()
    opened = await other.open(other_call(datetime.now(UTC), worst_case="0.9999"), [ANONYMOUS])
    stall.release()

    assert (await turn).json()["error"]["code"] == "rate_limited"

    await other.raise_call(opened, replace(opened.call, state=State.FAILED))
    await asyncio.sleep(1.1)  # what was read refuses for 1 s
    await answer(api, "after")
    await assert_conserved(tables, fake)


async def test_counter_read_by_a_report_meanwhile_does_not_hide_its_conflict(
    storage: TcpProxy, api: httpx.AsyncClient, other: Ledger, fake: AzureOpenAI, tables: Tables
) -> None:
    await answer(api, "before")
    await closed_ledger(tables)
    stall = storage.on(transaction(OPEN), Stall())
    turn = asyncio.create_task(answer(api))
    await stall.until_reached()
    opened = await other.open(other_call(datetime.now(UTC)), [ANONYMOUS])
    assert (await api.get("/api/limits")).status_code == 200
    stall.release()
    await turn

    await other.raise_call(opened, replace(opened.call, state=State.FAILED))
    await assert_conserved(tables, fake)


async def test_counters_that_change_all_the_time_end_in_503_and_free_the_session(
    storage: TcpProxy, clock: ManualClock, api: httpx.AsyncClient, fake: AzureOpenAI, tables: Tables
) -> None:
    clock.skip_sleeps_up_to = 1
    await answer(api, "before")
    await closed_ledger(tables)
    rule = storage.on(transaction(OPEN), Stall(seconds=0.15), times=None)

    async def keep_changing() -> None:
        while True:
            row = await tables.usage.get(*counter_keys("anonymous", datetime.now(UTC).date()))
            assert row
            await tables.usage.put(row, row.pop("etag"))
            await asyncio.sleep(0.005)

    changing = asyncio.create_task(keep_changing())
    refused = await send_message(api)
    changing.cancel()

    assert (refused.status_code, refused.headers["retry-after"], rule.hits) == (503, "1", MAX_ATTEMPTS)
    assert len(fake.requests) == 1
    storage.clear()

    async def is_free() -> bool | None:
        return (await stored(tables))[0].lease is None or None

    await until(is_free)  # the answer does not wait for it
    await answer(api, "after")
    await assert_conserved(tables, fake)


async def test_fenced_call_does_not_stop_those_that_share_its_transaction(
    storage: TcpProxy, api: httpx.AsyncClient, other: Ledger, fake: AzureOpenAI, tables: Tables
) -> None:
    await answer(api, session="first")
    await closed_ledger(tables)
    stall = storage.on(transaction(OPEN), Stall())
    turns = [asyncio.create_task(send_message(api, session=f"s{number}")) for number in range(5)]
    await stall.until_reached()
    await until_waiting(storage, len(turns))
    _, [turn] = await stored(tables, "s4")
    fence = LedgerEntry(call=replace(turn.call, state=State.ABANDONED), session_id="s4", turn=1, caller=None)
    await other.fence(fence)
    stall.release()

    statuses = [response.status_code for response in await asyncio.gather(*turns)]

    assert statuses == [200, 200, 200, 200, 503]
    await assert_conserved(tables, fake)


# Days and months


@pytest.fixture
def late(clock: ManualClock) -> ManualClock:
    """Half a minute before midnight. Request it before `api`."""
    clock.set(LATE)
    return clock


async def open_and_fail(other: Ledger, at: datetime) -> None:
    opened = await other.open(other_call(at), [ANONYMOUS])
    await other.raise_call(opened, replace(opened.call, state=State.FAILED))


@pytest.mark.parametrize("lost", [None, Close(after_answer=True), Close()], ids=["stored", "lost answer", "lost"])
async def test_turn_is_given_a_call_of_the_later_day_that_another_clock_has_reached(
    storage: TcpProxy,
    late: ManualClock,
    api: httpx.AsyncClient,
    other: Ledger,
    fake: AzureOpenAI,
    tables: Tables,
    lost: Action | None,
) -> None:
    await open_and_fail(other, MIDNIGHT)
    rule = storage.on(Match("POST", r"/\$batch$", "later_day"), lost) if lost else None

    response = await send_message(api)

    _, [turn] = await stored(tables)
    assert not rule or rule.hits == 1
    if lost == Close():  # not stored: the turn ends, and its session is free
        assert (response.status_code, turn.call.state, fake.requests) == (503, State.FAILED, [])
    else:
        assert response.status_code == 200
        assert [(call.state, call.reason, call.day) for call in turn.calls] == [
            (State.FAILED, "later_day", LATE.date()),
            (State.SETTLED, None, MIDNIGHT.date()),
        ]
    await answer(api, "after")
    entries = await assert_conserved(tables, fake)
    assert {entry.call.day for entry in entries} == {MIDNIGHT.date()}
    assert (await counters_of(tables))["anonymous"].minute == MIDNIGHT


async def test_settlement_after_midnight_counts_in_the_month_alone(
    late: ManualClock, api: httpx.AsyncClient, fake: AzureOpenAI, tables: Tables
) -> None:
    with fake.hold(after=0) as hold:
        running = asyncio.create_task(answer(api))
        await hold.until_reached()
        late.set(MIDNIGHT)
        await answer(api, session="next-day")
    await running

    entries = await assert_conserved(tables, fake)
    counter = (await counters_of(tables))["total"]
    costs = {entry.call.day: entry.call.cost for entry in entries}
    assert (counter.day_spent, counter.spent) == (costs[MIDNIGHT.date()], sum(filter(None, costs.values())))


async def test_retry_after_midnight_and_after_the_months_end_counts_in_both(
    clock: ManualClock, api: httpx.AsyncClient, fake: AzureOpenAI, tables: Tables
) -> None:
    for number, midnight in enumerate((MIDNIGHT, datetime(2026, 12, 1, tzinfo=UTC))):
        clock.set(midnight - timedelta(seconds=30))
        with fake.hold(after=0) as hold:
            fake.fault("reset", after=0)
            running = asyncio.create_task(answer(api, session=f"s{number}"))
            await hold.until_reached()
            clock.set(midnight)
        await running
    entries = await assert_conserved(tables, fake)
    assert sorted((str(entry.call.day)[5:], entry.call.state.value) for entry in entries) == [
        ("11-27", "unaccounted"),
        ("11-28", "settled"),
        ("11-30", "unaccounted"),
        ("12-01", "settled"),
    ]


# Recovery


async def expire_deadlines(tables: Tables) -> None:
    """Move the deadlines of all open rows into the past."""
    past = (datetime.now(UTC) - timedelta(seconds=1)).isoformat()
    async for row in tables.usage.query("state eq 'open'", {}):
        key = {"PartitionKey": row["PartitionKey"], "RowKey": row["RowKey"]}
        await tables.usage.merge({**key, "deadline": past}, row["etag"])


async def test_maintenance_recovers_open_limited_calls(api: httpx.AsyncClient, other: Ledger, tables: Tables) -> None:
    opened = await other.open(other_call(datetime.now(UTC)), [ANONYMOUS])
    await services().maintenance.run()
    assert [entry.call.state for entry in await ledger(tables)] == [State.OPEN]
    await expire_deadlines(tables)

    for _ in range(2):
        await services().maintenance.run()

    [entry] = await closed_ledger(tables)
    assert (entry.call.state, entry.limits) == (State.UNACCOUNTED, ("anonymous",))
    counter = (await counters_of(tables))["anonymous"]
    assert (counter.held, counter.spent) == (opened.call.worst_case, Decimal(0))


async def test_next_turn_recovers_an_interrupted_limited_call_which_settles_after_all(
    api: httpx.AsyncClient, fake: AzureOpenAI, tables: Tables
) -> None:
    with fake.hold(after=0) as hold:
        interrupted = asyncio.create_task(answer(api, "interrupted"))
        await hold.until_reached()
        await expire_lease(tables)
        await answer(api, "next")
        entries = await closed_ledger(tables)
        assert [entry.call.state for entry in entries] == [State.UNACCOUNTED, State.SETTLED]
        counter = (await assert_counted(tables, entries))["total"]
        assert counter.held == entries[0].call.worst_case
    await interrupted

    entries = await assert_conserved(tables, fake)
    assert [entry.call.state for entry in entries] == [State.SETTLED] * 2


async def test_timer_raises_an_open_row_whose_session_has_failed(
    api: httpx.AsyncClient, other: Ledger, fake: AzureOpenAI, tables: Tables
) -> None:
    """The write of the row was given up on, and landed late."""
    holding = await other.open(other_call(datetime.now(UTC), worst_case="0.9999"), [ANONYMOUS])
    assert (await send_message(api)).status_code == 429
    await other.raise_call(holding, replace(holding.call, state=State.FAILED))
    _, [turn] = await stored(tables)
    late = LedgerEntry(call=replace(turn.call, state=State.OPEN, reason=None), session_id="s", turn=1, caller=None)
    await other.open(late, [ANONYMOUS])

    await services().maintenance.run()

    entries = await assert_conserved(tables, fake)
    assert [entry.call.state for entry in entries] == [State.FAILED] * 2
    assert (await counters_of(tables))["anonymous"].held == 0


class TestRoomForOneCall:
    """A call that is written twice is not refused because of what it holds itself."""

    @pytest.fixture(params=[{"usd_per_day": 0.006}, {"requests_per_minute": 1}], ids=str)
    def environ(self, environ: dict[str, str], request: pytest.FixtureRequest) -> dict[str, str]:
        return environ | {"LIMITS": json.dumps({"anonymous": request.param})}

    @pytest.mark.parametrize("fault", LOST)
    async def test_lost_answer_to_its_transaction(
        self, storage: TcpProxy, api: httpx.AsyncClient, fake: AzureOpenAI, tables: Tables, fault: str
    ) -> None:
        storage.on(transaction(OPEN), LOST[fault])
        assert (await send_message(api, max_tokens=50)).status_code == 200
        [entry] = await assert_conserved(tables, fake)
        assert entry.call.state is State.SETTLED
