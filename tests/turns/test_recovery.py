"""Recovery of calls after their process crashed, stalled or lost its storage, by the rules of docs/protocol.py."""

import asyncio
import random
from collections.abc import AsyncIterator, Awaitable, Callable, Iterable, Iterator, Sequence
from contextlib import ExitStack, asynccontextmanager, contextmanager, suppress
from datetime import UTC, datetime, timedelta
from decimal import Decimal
from typing import TypeAlias

import httpx
import pytest

from shared.errors import StorageUnavailable, VersionConflict
from shared.services import services
from shared.storage.tables import Table
from shared.turns.reservation import call_lifetime
from tests.conftest import Tables
from tests.support.azure_openai import AzureOpenAI, Fault, Hold, Kind, Request, Script
from tests.support.chat_client import (
    JSON,
    answer,
    call_log_lines,
    closed_ledger,
    expire_lease,
    get_json,
    ledger,
    ok_json,
    row_keys,
    send_message,
    stored,
    until,
)
from tests.support.clock import ManualClock
from tests.support.conservation import all_rows, assert_conserved
from tests.support.faults import (
    DELETION_END,
    REFUSED,
    UNAVAILABLE,
    deletion_mark,
    ledger_insert,
    ledger_update,
    session_transaction,
    stall_request,
)
from tests.support.proxy import Action, Close, Match, Rule, Stall, TcpProxy
from tests.support.rude_upstream import with_rude_fake_in_acceptance

TURN_TIMEOUT = 220.0  # seconds, the default
PendingResponse: TypeAlias = "asyncio.Task[httpx.Response]"


async def run_maintenance() -> None:
    """Run the maintenance timer in the served app."""
    await services().maintenance.run()


@contextmanager
def allow_storage_failures() -> Iterator[None]:
    """Maintenance may fail because storage can't be reached, and for no other reason."""
    try:
        yield
    except ExceptionGroup as errors:
        _, rest = errors.split(StorageUnavailable)
        if rest:
            raise


async def expire_deadlines(tables: Tables) -> None:
    """Move the deadlines of all open ledger rows into the past."""
    past = (datetime.now(UTC) - timedelta(seconds=1)).isoformat()
    async for row in all_rows(tables.usage):
        if row["state"] == "open":
            key = {name: row[name] for name in ("PartitionKey", "RowKey")}
            with suppress(VersionConflict):  # it was settled concurrently
                await tables.usage.merge({**key, "deadline": past}, row["etag"])


async def versions(*tables: Table) -> list[tuple[str, str, str]]:
    """The keys and ETags of all rows: an ETag changes with every write. Without what the first run of a job writes."""
    rows = [row for table in tables async for row in all_rows(table) if row["RowKey"] != "scanned"]
    return [(row["PartitionKey"], row["RowKey"], row["etag"]) for row in rows]


async def call_states(tables: Tables, session: str = "s") -> list[str]:
    """The states of the calls in the session, and after a slash in the ledger if they differ (`-`: no row)."""
    row_states = {entry.call.id: entry.call.state.value for entry in await ledger(tables)}
    _, turns = await stored(tables, session)
    pairs = [(call.state.value, row_states.get(call.id, "-")) for turn in turns for call in turn.calls]
    return [state if state == row else f"{state}/{row}" for state, row in pairs]


async def until_call_states(tables: Tables, *states: str) -> None:
    """Wait for these states: a turn is answered before its row is settled."""

    async def reached() -> bool | None:
        return True if await call_states(tables) == [*states] else None

    with suppress(AssertionError):
        await until(reached)
    assert await call_states(tables) == [*states]


class SlowTurn:
    def __init__(self, answer: "asyncio.Task[JSON]", hold: Hold) -> None:
        self._answer, self._hold = answer, hold

    async def complete(self) -> JSON:
        self._hold.release()
        return await self._answer


@asynccontextmanager
async def slow_turn(api: httpx.AsyncClient, fake: AzureOpenAI, session: str = "s") -> AsyncIterator[SlowTurn]:
    """A turn that waits for the model. At the end of the block the model answers, and the turn must succeed."""
    with fake.hold() as hold:
        running = asyncio.create_task(answer(api, "slow", session))
        await hold.until_reached()
        yield SlowTurn(running, hold)
    await running


def last_message(request: Request) -> str:
    return str(request.body["messages"][-1]["content"])


async def stall_turns(api: httpx.AsyncClient, fake: AzureOpenAI, sessions: Sequence[str]) -> list[PendingResponse]:
    """Start a turn in each session; the model stalls after the first chunk of its answer."""
    responder = fake.responder
    fake.responder = lambda request: Fault("stall", after=1) if last_message(request) == "stall" else responder(request)
    stalled = [asyncio.create_task(send_message(api, "stall", session)) for session in sessions]
    await fake.until(lambda: len(fake.meter) == len(sessions))
    return stalled


async def reset_connections(fake: AzureOpenAI, stalled: Sequence[PendingResponse]) -> None:
    """Reset the model connections of stalled turns, which ends them."""
    fake.stop()
    fake.start()
    assert await statuses_of(stalled) == {502}
    await services().turns.finish()


async def statuses_of(responses: Iterable[Awaitable[httpx.Response]]) -> set[int]:
    return {response.status_code for response in await asyncio.gather(*responses)}


async def retry_until_answered(api: httpx.AsyncClient, tables: Tables, session: str) -> JSON:
    """Retry with one Idempotency-Key until the request is answered; expire the lease after a 409."""
    body = {"message": f"message in {session}", "session_id": session}
    for _ in range(6):
        response = await api.post("/api/chat", json=body, headers={"idempotency-key": "k"})
        if response.status_code == 200:
            return ok_json(response)
        if response.status_code == 409:
            await expire_lease(tables, session)
    raise AssertionError(response.text)


# A call without a ledger row


async def test_recovery_fences_a_call_without_a_row_so_its_process_spends_nothing(
    storage: TcpProxy,
    api: httpx.AsyncClient,
    fake: AzureOpenAI,
    tables: Tables,
    caplog: pytest.LogCaptureFixture,
) -> None:
    caplog.set_level("INFO", "shared.telemetry.call_log")
    with stall_request(storage, ledger_insert("s")) as insertion:
        stalled = asyncio.create_task(send_message(api, "stalled"))
        await insertion.until_reached()
        await expire_lease(tables)

        next_turn = await answer(api, "next")

        await until_call_states(tables, "abandoned", "settled")
        insertion.release()
        refused = await stalled
    assert (refused.status_code, refused.json()["error"]["code"]) == (503, "storage_unavailable")
    assert [request.body["messages"][-1]["content"] for request in fake.requests] == ["next"]
    assert next_turn["turn"] == 2
    assert next_turn["session"]["unaccounted_calls"] == 0
    assert [(line["turn"], line["outcome"]) for line in call_log_lines(caplog)] == [(1, "abandoned"), (2, "settled")]
    await assert_conserved(tables, fake)


async def test_recovery_inserts_the_fence_before_it_changes_the_session(
    storage: TcpProxy, api: httpx.AsyncClient, fake: AzureOpenAI, tables: Tables
) -> None:
    with stall_request(storage, ledger_insert("s")) as insertion:
        stalled = asyncio.create_task(send_message(api, "stalled"))
        await insertion.until_reached()
        await expire_lease(tables)
        with stall_request(
            storage,
            session_transaction("s"),
        ) as abandoning:
            recovering = asyncio.create_task(send_message(api, "next"))
            await abandoning.until_reached()
            assert await call_states(tables) == ["open/abandoned"]
            insertion.release()
            assert (await stalled).status_code == 503
            assert not fake.requests
        assert (await recovering).status_code == 200
    await assert_conserved(tables, fake)


async def test_process_that_inserts_its_row_before_the_fence_may_spend(
    storage: TcpProxy, api: httpx.AsyncClient, fake: AzureOpenAI, tables: Tables
) -> None:
    with stall_request(storage, ledger_insert("s")) as insertion, fake.hold() as hold:
        slow = asyncio.create_task(answer(api, "slow"))
        await insertion.until_reached()
        await expire_lease(tables)
        with stall_request(storage, ledger_insert("s")) as fence:
            recovering = asyncio.create_task(answer(api, "next"))
            await fence.until_reached()
            insertion.release()
            await hold.until_reached()
        await recovering
        await until_call_states(tables, "unaccounted", "settled")
        hold.release()
        assert (await slow)["message"]["content"] == "echo: slow"
    await closed_ledger(tables)
    await assert_conserved(tables, fake)
    await until_call_states(tables, "settled", "settled")


async def test_timer_does_not_recover_a_call_without_a_row(
    storage: TcpProxy, api: httpx.AsyncClient, fake: AzureOpenAI, tables: Tables
) -> None:
    with stall_request(storage, ledger_insert("s")) as insertion:
        slow = asyncio.create_task(answer(api))
        await insertion.until_reached()
        await expire_lease(tables)

        await run_maintenance()

        assert await call_states(tables) == ["open/-"]
        await assert_conserved(tables, fake, released=False)
    await slow
    await assert_conserved(tables, fake)


# A call with a ledger row


async def test_next_turn_marks_interrupted_call_unaccounted_until_it_settles(
    api: httpx.AsyncClient, fake: AzureOpenAI, tables: Tables
) -> None:
    before = await answer(api, "before")
    async with slow_turn(api, fake) as slow:
        await expire_lease(tables)
        assert (await get_json(api, "/api/sessions/s"))["busy"] is False

        after = await answer(api, "after")

        worst = (await stored(tables))[1][1].call.worst_case
        await until_call_states(tables, "settled", "unaccounted", "settled")
        assert worst
        assert [entry.call.reason for entry in await ledger(tables)] == [None, "interrupted", None]
        session = await get_json(api, "/api/sessions/s")
        assert (session["unaccounted_calls"], session["unaccounted_usd"]) == (1, worst)
        assert after["session"]["unaccounted_usd"] == worst
        assert session["cost_usd"] == before["cost_usd"] + after["cost_usd"]
        assert "slow" not in str(fake.requests[-1].body["messages"])

        late = await slow.complete()

    await assert_conserved(tables, fake)
    session = await get_json(api, "/api/sessions/s")
    assert late["turn"] == 2
    assert (session["unaccounted_calls"], session["unaccounted_usd"]) == (0, 0)
    assert session["cost_usd"] == before["cost_usd"] + after["cost_usd"] + late["cost_usd"]
    assert late["session"]["cost_usd"] == session["cost_usd"]
    assert [entry.call.reason for entry in await ledger(tables)] == [None] * 3


async def test_next_turn_recovers_a_call_whose_row_an_older_app_has_recovered(
    api: httpx.AsyncClient, fake: AzureOpenAI, tables: Tables
) -> None:
    """0.2.0 takes the reference in the row's key for the id of an erased session. Both may run during an update."""
    async with slow_turn(api, fake):
        await expire_lease(tables)
        [row] = [row async for row in all_rows(tables.usage)]
        columns = {name: each for name, each in row.items() if name not in ("reference", "session", "etag")}
        await tables.usage.put({**columns, "state": "unaccounted", "reason": "interrupted"}, row["etag"])

        assert (await answer(api, "after"))["session"]["unaccounted_calls"] == 1

        assert [turn.call.reference for turn in (await stored(tables))[1]].count(None) == 0
    await assert_conserved(tables, fake)


async def test_timer_marks_interrupted_call_unaccounted_until_it_settles(
    api: httpx.AsyncClient, fake: AzureOpenAI, tables: Tables
) -> None:
    async with slow_turn(api, fake) as slow:
        await expire_lease(tables)

        await run_maintenance()

        head, [turn] = await stored(tables)
        assert await call_states(tables) == ["unaccounted"]
        assert head.lease is None
        assert (head.totals.unaccounted_calls, head.totals.unaccounted) == (1, turn.call.worst_case)
        await slow.complete()
    await assert_conserved(tables, fake)
    await until_call_states(tables, "settled")


async def test_recovery_of_a_call_is_logged_once(
    api: httpx.AsyncClient, fake: AzureOpenAI, tables: Tables, caplog: pytest.LogCaptureFixture
) -> None:
    caplog.set_level("INFO", "shared.telemetry.call_log")
    async with slow_turn(api, fake) as slow:
        await expire_lease(tables)
        for _ in range(2):
            await run_maintenance()

        [line] = call_log_lines(caplog)
        _, [turn] = await stored(tables)
        assert (line["turn"], line["outcome"], line["reason"]) == (1, "unaccounted", "interrupted")
        assert Decimal(line["worst_case_usd"]) == turn.call.worst_case
        await slow.complete()
    assert [line["outcome"] for line in call_log_lines(caplog)] == ["unaccounted", "settled"]


async def test_recovery_frees_the_session_if_the_call_log_fails(
    storage: TcpProxy, api: httpx.AsyncClient, tables: Tables, monkeypatch: pytest.MonkeyPatch
) -> None:
    def broken(*_: object) -> None:
        raise ValueError("the call log is broken")

    monkeypatch.setattr("shared.telemetry.call_log._write", broken)
    with stall_request(storage, ledger_insert("s")) as insertion:
        stalled = asyncio.create_task(send_message(api, "stalled"))
        await insertion.until_reached()
        await expire_lease(tables)

        response = await send_message(api, "next")

        insertion.release()
        await stalled
    assert response.status_code == 200


async def test_timer_does_not_recover_a_call_with_a_valid_lease(
    api: httpx.AsyncClient, fake: AzureOpenAI, tables: Tables
) -> None:
    async with slow_turn(api, fake):
        await expire_deadlines(tables)  # irrelevant while the lease is valid
        before = await versions(tables.usage)
        await run_maintenance()
        assert await call_states(tables) == ["open"]
        assert await versions(tables.usage) == before
    await assert_conserved(tables, fake)


async def test_timer_settles_the_ledger_row_of_a_call_settled_in_the_session(
    storage: TcpProxy, api: httpx.AsyncClient, fake: AzureOpenAI, tables: Tables
) -> None:
    with stall_request(storage, ledger_update("s")) as settlement:
        answered = await answer(api)
        await settlement.until_reached()
        assert await call_states(tables) == ["settled/open"]

        await run_maintenance()

        [entry] = await ledger(tables)
        assert (entry.call.state, entry.call.cost) == ("settled", answered["cost_usd"])
    await services().turns.finish()
    await assert_conserved(tables, fake)


async def test_recovery_of_a_call_that_could_not_settle_before_its_deadline(
    clock: ManualClock, storage: TcpProxy, api: httpx.AsyncClient, fake: AzureOpenAI, tables: Tables
) -> None:
    settling = storage.on(session_transaction("s"), REFUSED, nth=2, times=None)
    running = asyncio.create_task(send_message(api))
    await settling.until_reached()
    await clock.advance(call_lifetime(TURN_TIMEOUT).total_seconds())
    refused = await running
    assert (refused.status_code, refused.json()["error"]["code"]) == (503, "storage_unavailable")
    assert len(fake.meter) == 1
    assert await call_states(tables) == ["open"]
    storage.clear()
    await run_maintenance()
    assert await call_states(tables) == ["unaccounted"]
    await assert_conserved(tables, fake)


async def test_turn_past_its_deadline_inserts_no_row_and_spends_nothing(
    clock: ManualClock, storage: TcpProxy, api: httpx.AsyncClient, fake: AzureOpenAI, tables: Tables
) -> None:
    with stall_request(storage, session_transaction("s"), after_answer=True) as reservation:
        running = asyncio.create_task(send_message(api))
        await reservation.until_reached()
        await clock.advance(call_lifetime(TURN_TIMEOUT).total_seconds())
    refused = await running
    assert (refused.status_code, refused.json()["error"]["code"]) == (503, "storage_unavailable")

    async def is_stored() -> bool | None:  # the caller is answered before
        return await call_states(tables) == ["failed/-"] or None

    await until(is_stored)
    assert not fake.requests
    head, _ = await stored(tables)
    assert head.lease is None


# Erased and cleared sessions


async def test_call_of_an_erased_session_is_unaccounted_only_after_its_deadline(
    api: httpx.AsyncClient, fake: AzureOpenAI, tables: Tables
) -> None:
    async with slow_turn(api, fake) as slow:
        assert (await api.delete("/api/sessions/s")).status_code == 204
        await run_maintenance()
        assert [entry.call.state for entry in await ledger(tables)] == ["open"]

        await expire_deadlines(tables)
        await run_maintenance()

        [entry] = await ledger(tables)
        assert (entry.call.state, entry.call.reason) == ("unaccounted", "interrupted")
        await slow.complete()
    await services().turns.finish()
    assert [entry.call.state for entry in await ledger(tables)] == ["settled"]
    assert await row_keys(tables) == []
    await assert_conserved(tables, fake, erased={"s"})


async def test_recovery_of_a_call_before_an_erasure_does_not_change_the_new_session(
    api: httpx.AsyncClient, fake: AzureOpenAI, tables: Tables
) -> None:
    async with slow_turn(api, fake) as slow:
        assert (await api.delete("/api/sessions/s")).status_code == 204
        recreated = await answer(api, "new session")
        assert recreated["turn"] == 1
        await until_call_states(tables, "settled")
        await expire_deadlines(tables)
        await run_maintenance()
        await until_call_states(tables, "settled")
        assert sorted(entry.call.state for entry in await ledger(tables)) == ["settled", "unaccounted"]
        await slow.complete()
    await services().turns.finish()
    session = await get_json(api, "/api/sessions/s")
    assert (session["cost_usd"], session["turns"], session["busy"]) == (recreated["cost_usd"], 1, False)
    assert len(await assert_conserved(tables, fake, erased={"s"})) == 2


async def test_late_settlement_of_a_cleared_turn_stores_its_cost_without_content(
    api: httpx.AsyncClient, fake: AzureOpenAI, tables: Tables
) -> None:
    async with slow_turn(api, fake) as slow:
        assert (await api.delete("/api/sessions/s/messages")).status_code == 409
        await expire_lease(tables)
        assert (await api.delete("/api/sessions/s/messages")).status_code == 204
        assert await call_states(tables) == ["unaccounted"]
        late = await slow.complete()
    await assert_conserved(tables, fake)
    session = await get_json(api, "/api/sessions/s")
    assert (session["cost_usd"], session["unaccounted_calls"]) == (late["cost_usd"], 0)
    assert "slow" not in repr([row async for row in all_rows(tables.sessions)])
    assert (await get_json(api, "/api/sessions/s/messages"))["turns"] == []


# Repeated, concurrent and interrupted recovery


async def test_repeated_recovery_changes_nothing(api: httpx.AsyncClient, fake: AzureOpenAI, tables: Tables) -> None:
    async with slow_turn(api, fake):
        await expire_lease(tables)
        await run_maintenance()
        before = await versions(tables.sessions, tables.usage)
        await run_maintenance()
        await run_maintenance()
        assert await versions(tables.sessions, tables.usage) == before
    await assert_conserved(tables, fake)


async def test_concurrent_recovery_by_timer_and_next_turn_counts_once(
    storage: TcpProxy, api: httpx.AsyncClient, fake: AzureOpenAI, tables: Tables
) -> None:
    async with slow_turn(api, fake) as slow:
        await expire_lease(tables)
        with (
            stall_request(storage, session_transaction("s")) as timers,
            stall_request(storage, session_transaction("s"), nth=2) as turns,
        ):
            maintaining = asyncio.create_task(run_maintenance())
            await timers.until_reached()
            following = asyncio.create_task(answer(api, "next"))
            await turns.until_reached()
            turns.release()
            answered = await following
            assert answered["session"]["unaccounted_calls"] == 1
        await maintaining
        await until_call_states(tables, "unaccounted", "settled")
        head, _ = await stored(tables)
        assert head.totals.unaccounted_calls == 1
        await slow.complete()
    await assert_conserved(tables, fake)


async def test_concurrent_recovery_of_many_sessions_by_timers_and_turns(
    api: httpx.AsyncClient, fake: AzureOpenAI, tables: Tables
) -> None:
    sessions = [f"s{index}" for index in range(10)]
    stalled = await stall_turns(api, fake, sessions)
    await asyncio.gather(*(expire_lease(tables, session) for session in sessions))

    requests = [send_message(api, "next", session) for session in sessions for _ in range(2)]
    statuses, *_ = await asyncio.gather(statuses_of(requests), run_maintenance(), run_maintenance())

    assert statuses <= {200, 409}
    for session in sessions:
        assert (await answer(api, "last", session))["session"]["unaccounted_calls"] == 1
    await reset_connections(fake, stalled)
    await assert_conserved(tables, fake)


STORAGE_FAULTS: dict[str, Action] = {
    "reset": Close(),
    "closed": Close(reset=False),
    "response lost by a reset": Close(after_answer=True),
    "response lost by a close": Close(after_answer=True, reset=False),
    "unavailable": UNAVAILABLE,
    "refused": REFUSED,
    "late": Stall(seconds=0.2),
    "late response": Stall(after_answer=True, seconds=0.2),
}
SESSIONS = dict(zip(STORAGE_FAULTS, "abcdefgh", strict=True))


@pytest.mark.parametrize("step", [ledger_insert, session_transaction], ids=["at the fence", "at the session"])
async def test_recovery_survives_storage_faults_while_fencing(
    storage: TcpProxy, api: httpx.AsyncClient, fake: AzureOpenAI, tables: Tables, step: Callable[[str], Match]
) -> None:
    with ExitStack() as stack:
        insertions = [
            stack.enter_context(stall_request(storage, ledger_insert(session))) for session in SESSIONS.values()
        ]
        stalled = [asyncio.create_task(send_message(api, "stalled", session)) for session in SESSIONS.values()]
        for insertion in insertions:  # one at a time: each wait uses one of few threads
            await insertion.until_reached()
        await asyncio.gather(*(expire_lease(tables, session) for session in SESSIONS.values()))
        faults = [storage.on(step(SESSIONS[name]), action) for name, action in STORAGE_FAULTS.items()]

        await statuses_of([send_message(api, "interrupted", session) for session in SESSIONS.values()])
        for session in SESSIONS.values():
            await answer(api, "next", session)

        assert [fault.hits for fault in faults] == [1] * len(STORAGE_FAULTS)
    assert await statuses_of(stalled) == {503}
    assert not [request for request in fake.requests if last_message(request) == "stalled"]
    await assert_conserved(tables, fake)


@pytest.mark.parametrize("step", [session_transaction, ledger_update], ids=["at the session", "at the row"])
@pytest.mark.parametrize("timer", [False, True], ids=["by the next turn", "by the timer"])
async def test_recovery_survives_storage_faults_while_marking_calls_unaccounted(
    storage: TcpProxy,
    api: httpx.AsyncClient,
    fake: AzureOpenAI,
    tables: Tables,
    step: Callable[[str], Match],
    timer: bool,
) -> None:
    stalled = await stall_turns(api, fake, list(SESSIONS.values()))
    await asyncio.gather(*(expire_lease(tables, session) for session in SESSIONS.values()))
    faults = [storage.on(step(SESSIONS[name]), action) for name, action in STORAGE_FAULTS.items()]

    if timer:
        while not all(fault.hits for fault in faults):  # each run may be interrupted by one fault
            with allow_storage_failures():
                await run_maintenance()
        await run_maintenance()  # the last fault may have interrupted the run
        for session in SESSIONS.values():
            assert await call_states(tables, session) == ["unaccounted"]
    else:
        await statuses_of([send_message(api, "interrupted", session) for session in SESSIONS.values()])
    assert [fault.hits for fault in faults] == [1] * len(STORAGE_FAULTS)
    for session in SESSIONS.values():
        assert (await answer(api, "next", session))["session"]["unaccounted_calls"] == 1
    await run_maintenance()  # the timer raises rows that the turn could not raise
    await reset_connections(fake, stalled)
    await assert_conserved(tables, fake)


# Storage that fails at one step of a turn


def reading(session: str) -> Match:
    return Match("GET", rf"sessions\(\).*PartitionKey%20eq%20'{session}'")


STEPS: dict[str, tuple[Callable[[str], Match], int]] = {
    "reading": (reading, 1),
    "reserving": (session_transaction, 1),
    "inserting the row": (ledger_insert, 1),
    "settling": (session_transaction, 2),
    "raising the row": (ledger_update, 1),
}


def fault_at_every_step(storage: TcpProxy, steps: dict[str, tuple[Callable[[str], Match], int]]) -> dict[str, Rule]:
    """Every fault at every step, each in its own session."""
    rules = {}
    for number, (match, nth) in enumerate(steps.values()):
        for base, action in zip(SESSIONS.values(), STORAGE_FAULTS.values(), strict=True):
            session = f"{base}{number}"
            rules[session] = storage.on(match(session), action, nth=nth)
    return rules


async def test_turn_is_billed_once_after_one_storage_fault_at_any_step(
    storage: TcpProxy, api: httpx.AsyncClient, fake: AzureOpenAI, tables: Tables
) -> None:
    faults = fault_at_every_step(storage, STEPS)

    await asyncio.gather(*(retry_until_answered(api, tables, session) for session in faults))

    await services().turns.finish()
    assert {session: fault.hits for session, fault in faults.items()} == dict.fromkeys(faults, 1)
    await run_maintenance()
    await assert_conserved(tables, fake)
    assert len(fake.meter) == len(faults)


RETRY_STEPS: dict[str, tuple[Callable[[str], Match], int]] = {
    "replacing the call": (session_transaction, 2),
    "raising the first row": (ledger_update, 1),
    "inserting the second row": (ledger_insert, 2),
    "settling the second call": (session_transaction, 3),
    "raising the second row": (ledger_update, 2),
}


async def test_retry_is_accounted_for_after_one_storage_fault_at_any_step(
    storage: TcpProxy, api: httpx.AsyncClient, fake: AzureOpenAI, tables: Tables
) -> None:
    faults = fault_at_every_step(storage, RETRY_STEPS)
    responder, seen = fake.responder, set[str]()

    def lose_first_call(request: Request) -> Script:
        if last_message(request) in seen:
            return responder(request)
        seen.add(last_message(request))
        return Fault("reset")

    fake.responder = lose_first_call
    await asyncio.gather(*(retry_until_answered(api, tables, session) for session in faults))

    await services().turns.finish()
    assert {session: fault.hits for session, fault in faults.items()} == dict.fromkeys(faults, 1)
    await run_maintenance()
    entries = await assert_conserved(tables, fake)
    assert len(fake.meter) == 2 * len(faults)
    assert sum(entry.call.state == "settled" for entry in entries) == len(faults)


# Interrupted clears and erasures


ENDINGS = {"cleared": "/api/sessions/s/messages", "erased": "/api/sessions/s"}


@pytest.mark.parametrize("ending", ENDINGS)
async def test_timer_finishes_an_interrupted_deletion(
    storage: TcpProxy, api: httpx.AsyncClient, fake: AzureOpenAI, tables: Tables, ending: str
) -> None:
    before = await answer(api, "walrus")
    await answer(api, "walrus", "other")
    storage.on(session_transaction("s"), REFUSED)
    assert (await api.delete(ENDINGS[ending])).status_code == 503
    assert len(await row_keys(tables, "~erasing")) == 1
    assert "walrus" in repr([row async for row in all_rows(tables.sessions) if row["PartitionKey"] == "s"])

    await run_maintenance()

    assert await row_keys(tables, "~erasing") == []
    assert "walrus" not in repr([row async for row in all_rows(tables.sessions) if row["PartitionKey"] == "s"])
    if ending == "erased":
        assert await row_keys(tables) == []
    else:
        assert (await get_json(api, "/api/sessions/s"))["cost_usd"] == before["cost_usd"]
    assert (await get_json(api, "/api/sessions/other/messages"))["turns"][0]["messages"][0]["content"] == "walrus"
    await assert_conserved(tables, fake, erased={"s"} if ending == "erased" else ())


@pytest.mark.parametrize("ending", ENDINGS)
async def test_deletion_that_never_marked_its_session_is_dropped_after_15_minutes(
    clock: ManualClock,
    storage: TcpProxy,
    api: httpx.AsyncClient,
    fake: AzureOpenAI,
    tables: Tables,
    ending: str,
) -> None:
    await answer(api)
    await closed_ledger(tables)
    storage.on(deletion_mark("s"), REFUSED)
    assert (await api.delete(ENDINGS[ending])).status_code == 503
    before = await versions(tables.sessions)

    await clock.advance(14 * 60)
    await run_maintenance()
    assert await versions(tables.sessions) == before

    await clock.advance(2 * 60)
    await run_maintenance()
    assert await versions(tables.sessions) == [row for row in before if row[0] != "~erasing"]
    assert (await answer(api))["turn"] == 2
    await assert_conserved(tables, fake)


async def test_recreated_session_is_not_changed_by_the_rest_of_its_erasure(
    clock: ManualClock, storage: TcpProxy, api: httpx.AsyncClient, fake: AzureOpenAI, tables: Tables
) -> None:
    await answer(api, "before the erasure")
    storage.on(DELETION_END, REFUSED)
    await api.delete("/api/sessions/s")
    assert len(await row_keys(tables, "~erasing")) == 1
    recreated = await answer(api, "after the erasure")
    assert recreated["turn"] == 1
    await closed_ledger(tables)
    before = [row for row in await versions(tables.sessions) if row[0] == "s"]

    await run_maintenance()
    await clock.advance(16 * 60)
    await run_maintenance()

    assert await versions(tables.sessions) == before
    assert (await get_json(api, "/api/sessions/s"))["cost_usd"] == recreated["cost_usd"]
    await assert_conserved(tables, fake, erased={"s"})


async def test_request_finishes_an_interrupted_erasure_before_it_recreates_the_session(
    storage: TcpProxy, api: httpx.AsyncClient, fake: AzureOpenAI, tables: Tables
) -> None:
    await answer(api, "before the erasure")
    await answer(api, "before the erasure")
    storage.on(session_transaction("s"), REFUSED)
    await api.delete("/api/sessions/s")

    assert (await answer(api, "after the erasure"))["turn"] == 1
    assert [request.body["messages"][1]["content"] for request in fake.requests[2:]] == ["after the erasure"]
    assert await row_keys(tables, "~erasing") == []
    await assert_conserved(tables, fake, erased={"s"})


# Random faults


def add_random_faults(storage: TcpProxy, chance: random.Random) -> list[Rule]:
    """Add fifty faults, each at a random later write or read."""
    matches = [
        session_transaction("s.."),
        ledger_insert("s.."),
        ledger_update("s.."),
        Match("GET", "sessions"),
        Match("PUT|DELETE"),
    ]
    return [
        storage.on(chance.choice(matches), chance.choice(list(STORAGE_FAULTS.values())), nth=chance.randint(1, 60))
        for _ in range(50)
    ]


def failing_model(responder: Callable[[Request], Script], chance: random.Random) -> Callable[[Request], Script]:
    """A responder that fails a third of the calls, with every fault; it bills each call that may be billed."""
    faults = [
        *(Fault("status", status) for status in (429, 500, 503)),
        *(Fault("status", status, billed=True) for status in (408, 502, 504)),
        *(Fault(kind, after=after) for kind in CONNECTION_FAULTS for after in (None, 0, 2)),
        *(Fault(kind) for kind in ANSWER_FAULTS),
    ]
    return lambda request: chance.choice(faults) if chance.random() < 1 / 3 else responder(request)


CONNECTION_FAULTS: tuple[Kind, ...] = ("reset", "close")
ANSWER_FAULTS: tuple[Kind, ...] = ("truncated", "no_usage", "malformed", "error_event", "content_filter")


class RandomClient:
    """A client with one session: sends messages, disconnects, repeats requests, clears and erases."""

    def __init__(self, api: httpx.AsyncClient, session: str, chance: random.Random) -> None:
        self._api, self.session, self._chance = api, session, chance
        self.erased = False

    async def run(self) -> None:
        for number in range(5):
            await self._chance.choice([self._send, self._send, self._disconnect, self._repeat])(number)
            if self._chance.random() < 0.1:
                await self._api.delete(f"/api/sessions/{self.session}/messages")
            if self._chance.random() < 0.1:
                self.erased = True
                await self._api.delete(f"/api/sessions/{self.session}")

    async def _send(self, number: int) -> None:
        await send_message(self._api, f"message {number}", self.session, stream=self._chance.random() < 0.5)

    async def _repeat(self, number: int) -> None:
        body, key = {"message": f"message {number}", "session_id": self.session}, {"idempotency-key": f"k{number}"}
        requests = [self._api.post("/api/chat", json=body, headers=key) for _ in range(3)]
        await asyncio.gather(*requests)

    async def _disconnect(self, number: int) -> None:
        body = {"message": f"message {number}", "session_id": self.session, "stream": True}
        with suppress(TimeoutError):
            async with (
                asyncio.timeout(self._chance.random() / 5),
                self._api.stream("POST", "/api/chat", json=body) as response,
            ):
                async for _ in response.aiter_bytes():
                    if self._chance.random() < 0.3:
                        return


RANDOM = [pytest.param(None, marks=pytest.mark.acceptance, id=f"random-{n}") for n in range(5)]


@with_rude_fake_in_acceptance
@pytest.mark.parametrize("seed", [1, *RANDOM])
async def test_costs_add_up_after_random_faults_and_recovery(
    storage: TcpProxy, api: httpx.AsyncClient, fake: AzureOpenAI, tables: Tables, seed: int | None
) -> None:
    seed = random.SystemRandom().randrange(10**9) if seed is None else seed
    print("seed:", seed)  # pytest shows it if the test fails
    chance = random.Random(seed)
    faults = add_random_faults(storage, chance)
    responder, fake.responder = fake.responder, failing_model(fake.responder, chance)
    sessions = [f"s{index:02}" for index in range(12)]
    clients = [RandomClient(api, session, random.Random(f"{seed} {session}")) for session in sessions]

    await asyncio.gather(*(client.run() for client in clients))

    storage.clear()
    fake.responder = responder
    await services().turns.finish()
    await run_maintenance()
    for client in clients:
        with suppress(AssertionError):  # there is no session or no lease
            await expire_lease(tables, client.session)
        await answer(api, "at last", client.session)
    await expire_deadlines(tables)
    await run_maintenance()
    entries = await assert_conserved(tables, fake, erased={client.session for client in clients if client.erased})
    states = {entry.call.state for entry in entries}
    assert {"settled", "unaccounted", "failed"} <= states
    assert len(fake.meter) >= 40
    assert sum(fault.hits for fault in faults) >= 25
