"""What becomes of a call whose process crashed, stalled or lost its storage: rule by rule as the protocol has it."""

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
from tests.support.clock import ManualClock
from tests.support.conservation import assert_conserved, everything
from tests.support.faults import FORGETTING, REFUSED, UNAVAILABLE, entering, kept, marking, raising, transaction
from tests.support.proxy import Action, Close, Match, Rule, Stall, TcpProxy
from tests.support.talking import (
    JSON,
    age_lease,
    answer,
    answered,
    closed_ledger,
    ledger,
    lines,
    look,
    row_keys,
    say,
    stored,
    until,
)

TURN_TIMEOUT = 220.0  # seconds, the default
Posted: TypeAlias = "asyncio.Task[httpx.Response]"


async def fire() -> None:
    """The maintenance timer, in the app that is being served."""
    await services().maintenance.run()


@contextmanager
def interrupted() -> Iterator[None]:
    """Maintenance may fail for storage that can't be reached, and for nothing else."""
    try:
        yield
    except ExceptionGroup as errors:
        _, rest = errors.split(StorageUnavailable)
        if rest:
            raise


async def past_their_deadline(tables: Tables) -> None:
    """Make the deadlines of open rows of the ledger ones that are over."""
    over = (datetime.now(UTC) - timedelta(seconds=1)).isoformat()
    async for row in everything(tables.usage):
        if row["state"] == "open":
            key = {name: row[name] for name in ("PartitionKey", "RowKey")}
            with suppress(VersionConflict):  # it is being settled
                await tables.usage.merge({**key, "deadline": over}, row["etag"])


async def versions(*tables: Table) -> list[tuple[str, str, str]]:
    """Of every row: what is not written again keeps its version."""
    found = [row for table in tables async for row in everything(table)]
    return [(row["PartitionKey"], row["RowKey"], row["etag"]) for row in found]


async def call_states(tables: Tables, session: str = "s") -> list[str]:
    """What the session says of its calls, and the ledger where that is another state (`-`: it has no row)."""
    written = {entry.call.id: entry.call.state.value for entry in await ledger(tables)}
    _, turns = await stored(tables, session)
    pairs = [(call.state.value, written.get(call.id, "-")) for turn in turns for call in turn.calls]
    return [said if said == row else f"{said}/{row}" for said, row in pairs]


async def becomes(tables: Tables, *states: str) -> None:
    """Wait for it: a turn's answer comes before its row is settled."""

    async def so() -> bool | None:
        return True if await call_states(tables) == [*states] else None

    with suppress(AssertionError):
        await until(so)
    assert await call_states(tables) == [*states]


class Interrupted:
    def __init__(self, answer: "asyncio.Task[JSON]", hold: Hold) -> None:
        self._answer, self._hold = answer, hold

    async def goes_on(self) -> JSON:
        self._hold.release()
        return await self._answer


@asynccontextmanager
async def in_the_model(api: httpx.AsyncClient, fake: AzureOpenAI, session: str = "s") -> AsyncIterator[Interrupted]:
    """A turn whose model is still at work, at whose end the turn is let go and must be answered."""
    with fake.hold() as hold:
        running = asyncio.create_task(answer(api, "slow", session))
        await hold.until_reached()
        yield Interrupted(running, hold)
    await running


def asked(request: Request) -> str:
    return str(request.body["messages"][-1]["content"])


async def stalling(api: httpx.AsyncClient, fake: AzureOpenAI, sessions: Sequence[str]) -> list[Posted]:
    """A turn in each session whose model has begun to speak and says no more."""
    plain = fake.responder
    fake.responder = lambda request: Fault("stall", after=1) if asked(request) == "stall" else plain(request)
    stalled = [asyncio.create_task(say(api, "stall", session)) for session in sessions]
    await fake.until(lambda: len(fake.meter) == len(sessions))
    return stalled


async def broken_off(fake: AzureOpenAI, stalled: Sequence[Posted]) -> None:
    """The connections of such turns are lost, so that they end too."""
    fake.stop()
    fake.start()
    assert await statuses_of(stalled) == {502}
    await services().turns.finish()


async def statuses_of(posts: Iterable[Awaitable[httpx.Response]]) -> set[int]:
    return {response.status_code for response in await asyncio.gather(*posts)}


async def insisting(api: httpx.AsyncClient, tables: Tables, session: str) -> JSON:
    """Post with one Idempotency-Key until it is answered; a lease that nobody holds any more is made to be over."""
    body = {"message": f"insisting {session}", "session_id": session}
    for _ in range(6):
        response = await api.post("/api/chat", json=body, headers={"idempotency-key": "k"})
        if response.status_code == 200:
            return answered(response)
        if response.status_code == 409:
            await age_lease(tables, session)
    raise AssertionError(response.text)


# A call without a row


async def test_a_call_without_a_row_is_fenced_off_and_its_stalled_process_spends_nothing(
    storage: TcpProxy,
    api: httpx.AsyncClient,
    fake: AzureOpenAI,
    tables: Tables,
    caplog: pytest.LogCaptureFixture,
) -> None:
    caplog.set_level("INFO", "shared.telemetry.call_log")
    with kept(storage, entering("s")) as insertion:
        stalled = asyncio.create_task(say(api, "stalled"))
        await insertion.until_reached()
        await age_lease(tables)

        next_turn = await answer(api, "next")

        await becomes(tables, "abandoned", "settled")
        insertion.release()
        refused = await stalled
    assert (refused.status_code, refused.json()["error"]["code"]) == (503, "storage_unavailable")
    assert [request.body["messages"][-1]["content"] for request in fake.requests] == ["next"]
    assert next_turn["turn"] == 2
    assert next_turn["session"]["unaccounted_calls"] == 0
    assert [(line["turn"], line["outcome"]) for line in lines(caplog)] == [(1, "abandoned"), (2, "settled")]
    await assert_conserved(tables, fake)


async def test_a_fence_comes_before_the_session_is_told(
    storage: TcpProxy, api: httpx.AsyncClient, fake: AzureOpenAI, tables: Tables
) -> None:
    with kept(storage, entering("s")) as insertion:
        stalled = asyncio.create_task(say(api, "stalled"))
        await insertion.until_reached()
        await age_lease(tables)
        with kept(
            storage,
            transaction("s"),
        ) as abandoning:
            recovering = asyncio.create_task(say(api, "next"))
            await abandoning.until_reached()
            assert await call_states(tables) == ["open/abandoned"]
            insertion.release()
            assert (await stalled).status_code == 503
            assert not fake.requests
        assert (await recovering).status_code == 200
    await assert_conserved(tables, fake)


async def test_a_process_that_is_quicker_than_the_fence_may_spend(
    storage: TcpProxy, api: httpx.AsyncClient, fake: AzureOpenAI, tables: Tables
) -> None:
    with kept(storage, entering("s")) as insertion, fake.hold() as hold:
        slow = asyncio.create_task(answer(api, "slow"))
        await insertion.until_reached()
        await age_lease(tables)
        with kept(storage, entering("s")) as fence:
            recovering = asyncio.create_task(answer(api, "next"))
            await fence.until_reached()
            insertion.release()
            await hold.until_reached()
        await recovering
        await becomes(tables, "unaccounted", "settled")
        hold.release()
        assert (await slow)["message"]["content"] == "echo: slow"
    await closed_ledger(tables)
    await assert_conserved(tables, fake)
    await becomes(tables, "settled", "settled")


async def test_the_timer_can_not_see_a_call_without_a_row(
    storage: TcpProxy, api: httpx.AsyncClient, fake: AzureOpenAI, tables: Tables
) -> None:
    with kept(storage, entering("s")) as insertion:
        slow = asyncio.create_task(answer(api))
        await insertion.until_reached()
        await age_lease(tables)

        await fire()

        assert await call_states(tables) == ["open/-"]
        await assert_conserved(tables, fake, freed=False)
    await slow
    await assert_conserved(tables, fake)


# A call with a row


async def test_the_next_turn_counts_an_interrupted_call_at_its_worst_case_until_it_is_settled(
    api: httpx.AsyncClient, fake: AzureOpenAI, tables: Tables
) -> None:
    before = await answer(api, "before")
    async with in_the_model(api, fake) as interrupted:
        await age_lease(tables)
        assert (await look(api, "/api/sessions/s"))["busy"] is False

        after = await answer(api, "after")

        worst = (await stored(tables))[1][1].call.worst_case
        await becomes(tables, "settled", "unaccounted", "settled")
        assert worst
        assert [entry.call.reason for entry in await ledger(tables)] == [None, "interrupted", None]
        shown = await look(api, "/api/sessions/s")
        assert (shown["unaccounted_calls"], shown["unaccounted_usd"]) == (1, worst)
        assert after["session"]["unaccounted_usd"] == worst
        assert shown["cost_usd"] == before["cost_usd"] + after["cost_usd"]
        assert "slow" not in str(fake.requests[-1].body["messages"])

        late = await interrupted.goes_on()

    await assert_conserved(tables, fake)
    shown = await look(api, "/api/sessions/s")
    assert late["turn"] == 2
    assert (shown["unaccounted_calls"], shown["unaccounted_usd"]) == (0, 0)
    assert shown["cost_usd"] == before["cost_usd"] + after["cost_usd"] + late["cost_usd"]
    assert late["session"]["cost_usd"] == shown["cost_usd"]
    assert [entry.call.reason for entry in await ledger(tables)] == [None] * 3


async def test_the_timer_counts_an_interrupted_call_at_its_worst_case_until_it_is_settled(
    api: httpx.AsyncClient, fake: AzureOpenAI, tables: Tables
) -> None:
    async with in_the_model(api, fake) as interrupted:
        await age_lease(tables)

        await fire()

        head, [turn] = await stored(tables)
        assert await call_states(tables) == ["unaccounted"]
        assert head.lease is None
        assert (head.totals.unaccounted_calls, head.totals.unaccounted) == (1, turn.call.worst_case)
        await interrupted.goes_on()
    await assert_conserved(tables, fake)
    await becomes(tables, "settled")


async def test_the_log_tells_once_of_a_call_whose_process_is_gone(
    api: httpx.AsyncClient, fake: AzureOpenAI, tables: Tables, caplog: pytest.LogCaptureFixture
) -> None:
    caplog.set_level("INFO", "shared.telemetry.call_log")
    async with in_the_model(api, fake) as interrupted:
        await age_lease(tables)
        for _ in range(2):
            await fire()

        [told] = lines(caplog)
        _, [turn] = await stored(tables)
        assert (told["turn"], told["outcome"], told["reason"]) == (1, "unaccounted", "interrupted")
        assert Decimal(told["worst_case_usd"]) == turn.call.worst_case
        await interrupted.goes_on()
    assert [line["outcome"] for line in lines(caplog)] == ["unaccounted", "settled"]


async def test_what_is_told_of_a_call_never_keeps_its_session_from_being_freed(
    storage: TcpProxy, api: httpx.AsyncClient, tables: Tables, monkeypatch: pytest.MonkeyPatch
) -> None:
    def broken(*_: object) -> None:
        raise ValueError("a log's")

    monkeypatch.setattr("shared.telemetry.call_log._write", broken)
    with kept(storage, entering("s")) as insertion:
        stalled = asyncio.create_task(say(api, "stalled"))
        await insertion.until_reached()
        await age_lease(tables)

        told = await say(api, "next")

        insertion.release()
        await stalled
    assert told.status_code == 200


async def test_the_timer_leaves_a_call_alone_whose_lease_runs(
    api: httpx.AsyncClient, fake: AzureOpenAI, tables: Tables
) -> None:
    async with in_the_model(api, fake):
        await past_their_deadline(tables)  # the lease counts, not the deadline
        before = await versions(tables.usage)
        await fire()
        assert await call_states(tables) == ["open"]
        assert await versions(tables.usage) == before
    await assert_conserved(tables, fake)


async def test_a_call_that_its_session_has_settled_is_settled_in_the_ledger_by_the_timer(
    storage: TcpProxy, api: httpx.AsyncClient, fake: AzureOpenAI, tables: Tables
) -> None:
    with kept(storage, raising("s")) as settlement:
        told = await answer(api)
        await settlement.until_reached()
        assert await call_states(tables) == ["settled/open"]

        await fire()

        [entry] = await ledger(tables)
        assert (entry.call.state, entry.call.cost) == ("settled", told["cost_usd"])
    await services().turns.finish()
    await assert_conserved(tables, fake)


async def test_what_could_not_be_settled_in_time_is_an_error_and_left_to_recovery(
    clock: ManualClock, storage: TcpProxy, api: httpx.AsyncClient, fake: AzureOpenAI, tables: Tables
) -> None:
    settling = storage.on(transaction("s"), REFUSED, nth=2, times=None)
    running = asyncio.create_task(say(api))
    await settling.until_reached()
    await clock.advance(call_lifetime(TURN_TIMEOUT).total_seconds())
    refused = await running
    assert (refused.status_code, refused.json()["error"]["code"]) == (503, "storage_unavailable")
    assert len(fake.meter) == 1
    assert await call_states(tables) == ["open"]
    storage.clear()
    await fire()
    assert await call_states(tables) == ["unaccounted"]
    await assert_conserved(tables, fake)


async def test_a_turn_whose_time_was_up_before_its_row_came_spends_nothing(
    clock: ManualClock, storage: TcpProxy, api: httpx.AsyncClient, fake: AzureOpenAI, tables: Tables
) -> None:
    with kept(storage, transaction("s"), after_answer=True) as reservation:
        running = asyncio.create_task(say(api))
        await reservation.until_reached()
        await clock.advance(call_lifetime(TURN_TIMEOUT).total_seconds())
    refused = await running
    assert (refused.status_code, refused.json()["error"]["code"]) == (503, "storage_unavailable")

    async def written() -> bool | None:  # the caller is told before that
        return await call_states(tables) == ["failed/-"] or None

    await until(written)
    assert not fake.requests
    head, _ = await stored(tables)
    assert head.lease is None


# Sessions that are not there any more


async def test_a_call_of_an_erased_session_is_unaccounted_only_past_its_deadline(
    api: httpx.AsyncClient, fake: AzureOpenAI, tables: Tables
) -> None:
    async with in_the_model(api, fake) as interrupted:
        assert (await api.delete("/api/sessions/s")).status_code == 204
        await fire()
        assert [entry.call.state for entry in await ledger(tables)] == ["open"]

        await past_their_deadline(tables)
        await fire()

        [entry] = await ledger(tables)
        assert (entry.call.state, entry.call.reason) == ("unaccounted", "interrupted")
        await interrupted.goes_on()
    await services().turns.finish()
    assert [entry.call.state for entry in await ledger(tables)] == ["settled"]
    assert await row_keys(tables) == []
    await assert_conserved(tables, fake, erased={"s"})


async def test_a_call_of_an_earlier_life_leaves_the_session_alone_that_was_begun_again(
    api: httpx.AsyncClient, fake: AzureOpenAI, tables: Tables
) -> None:
    async with in_the_model(api, fake) as interrupted:
        assert (await api.delete("/api/sessions/s")).status_code == 204
        begun = await answer(api, "begun again")
        assert begun["turn"] == 1
        await becomes(tables, "settled")
        await past_their_deadline(tables)
        await fire()
        await becomes(tables, "settled")
        assert sorted(entry.call.state for entry in await ledger(tables)) == ["settled", "unaccounted"]
        await interrupted.goes_on()
    await services().turns.finish()
    shown = await look(api, "/api/sessions/s")
    assert (shown["cost_usd"], shown["turns"], shown["busy"]) == (begun["cost_usd"], 1, False)
    assert len(await assert_conserved(tables, fake, erased={"s"})) == 2


async def test_a_late_settlement_of_a_cleared_turn_writes_its_money_and_nothing_that_was_said(
    api: httpx.AsyncClient, fake: AzureOpenAI, tables: Tables
) -> None:
    async with in_the_model(api, fake) as interrupted:
        assert (await api.delete("/api/sessions/s/messages")).status_code == 409
        await age_lease(tables)
        assert (await api.delete("/api/sessions/s/messages")).status_code == 204
        assert await call_states(tables) == ["unaccounted"]
        late = await interrupted.goes_on()
    await assert_conserved(tables, fake)
    shown = await look(api, "/api/sessions/s")
    assert (shown["cost_usd"], shown["unaccounted_calls"]) == (late["cost_usd"], 0)
    assert "slow" not in repr([row async for row in everything(tables.sessions)])
    assert (await look(api, "/api/sessions/s/messages"))["turns"] == []


# Recovering twice, at once, or with interruptions


async def test_recovering_again_changes_nothing(api: httpx.AsyncClient, fake: AzureOpenAI, tables: Tables) -> None:
    async with in_the_model(api, fake):
        await age_lease(tables)
        await fire()
        before = await versions(tables.sessions, tables.usage)
        await fire()
        await fire()
        assert await versions(tables.sessions, tables.usage) == before
    await assert_conserved(tables, fake)


async def test_the_timer_and_the_next_turn_recover_one_call_at_the_same_moment(
    storage: TcpProxy, api: httpx.AsyncClient, fake: AzureOpenAI, tables: Tables
) -> None:
    async with in_the_model(api, fake) as interrupted:
        await age_lease(tables)
        with kept(storage, transaction("s")) as timers, kept(storage, transaction("s"), nth=2) as turns:
            firing = asyncio.create_task(fire())
            await timers.until_reached()
            posting = asyncio.create_task(answer(api, "next"))
            await turns.until_reached()
            turns.release()
            told = await posting
            assert told["session"]["unaccounted_calls"] == 1
        await firing
        await becomes(tables, "unaccounted", "settled")
        head, _ = await stored(tables)
        assert head.totals.unaccounted_calls == 1
        await interrupted.goes_on()
    await assert_conserved(tables, fake)


async def test_timers_and_turns_may_recover_many_sessions_all_at_once(
    api: httpx.AsyncClient, fake: AzureOpenAI, tables: Tables
) -> None:
    sessions = [f"s{index}" for index in range(10)]
    stalled = await stalling(api, fake, sessions)
    await asyncio.gather(*(age_lease(tables, session) for session in sessions))

    posts = [say(api, "next", session) for session in sessions for _ in range(2)]
    statuses, *_ = await asyncio.gather(statuses_of(posts), fire(), fire())

    assert statuses <= {200, 409}
    for session in sessions:
        assert (await answer(api, "last", session))["session"]["unaccounted_calls"] == 1
    await broken_off(fake, stalled)
    await assert_conserved(tables, fake)


LOST: dict[str, Action] = {
    "reset": Close(),
    "closed": Close(reset=False),
    "acknowledgement reset": Close(after_answer=True),
    "acknowledgement closed": Close(after_answer=True, reset=False),
    "unavailable": UNAVAILABLE,
    "refused": REFUSED,
    "late": Stall(seconds=0.2),
    "acknowledged late": Stall(after_answer=True, seconds=0.2),
}
SESSIONS = dict(zip(LOST, "abcdefgh", strict=True))


@pytest.mark.parametrize("step", [entering, transaction], ids=["at the fence", "at the session"])
async def test_fencing_may_itself_be_interrupted(
    storage: TcpProxy, api: httpx.AsyncClient, fake: AzureOpenAI, tables: Tables, step: Callable[[str], Match]
) -> None:
    with ExitStack() as stack:
        insertions = [stack.enter_context(kept(storage, entering(session))) for session in SESSIONS.values()]
        stalled = [asyncio.create_task(say(api, "stalled", session)) for session in SESSIONS.values()]
        for insertion in insertions:  # one at a time: each wait takes a thread, of which there are few
            await insertion.until_reached()
        await asyncio.gather(*(age_lease(tables, session) for session in SESSIONS.values()))
        faults = [storage.on(step(SESSIONS[name]), action) for name, action in LOST.items()]

        await statuses_of([say(api, "interrupted", session) for session in SESSIONS.values()])
        for session in SESSIONS.values():
            await answer(api, "next", session)

        assert [fault.hits for fault in faults] == [1] * len(LOST)
    assert await statuses_of(stalled) == {503}
    assert not [request for request in fake.requests if asked(request) == "stalled"]
    await assert_conserved(tables, fake)


@pytest.mark.parametrize("step", [transaction, raising], ids=["at the session", "at the row"])
@pytest.mark.parametrize("timer", [False, True], ids=["by the next turn", "by the timer"])
async def test_counting_at_worst_may_itself_be_interrupted(
    storage: TcpProxy,
    api: httpx.AsyncClient,
    fake: AzureOpenAI,
    tables: Tables,
    step: Callable[[str], Match],
    timer: bool,
) -> None:
    stalled = await stalling(api, fake, list(SESSIONS.values()))
    await asyncio.gather(*(age_lease(tables, session) for session in SESSIONS.values()))
    faults = [storage.on(step(SESSIONS[name]), action) for name, action in LOST.items()]

    if timer:
        while not all(fault.hits for fault in faults):  # each firing may be interrupted by one of them
            with interrupted():
                await fire()
        for session in SESSIONS.values():
            assert await call_states(tables, session) == ["unaccounted"]
    else:
        await statuses_of([say(api, "interrupted", session) for session in SESSIONS.values()])
    assert [fault.hits for fault in faults] == [1] * len(LOST)
    for session in SESSIONS.values():
        assert (await answer(api, "next", session))["session"]["unaccounted_calls"] == 1
    await fire()  # a row that its own turn could not raise is the timer's
    await broken_off(fake, stalled)
    await assert_conserved(tables, fake)


# Storage that fails at one step of a turn


def reading(session: str) -> Match:
    return Match("GET", rf"sessions\(\).*PartitionKey%20eq%20'{session}'")


STEPS: dict[str, tuple[Callable[[str], Match], int]] = {
    "reading": (reading, 1),
    "reserving": (transaction, 1),
    "entering": (entering, 1),
    "settling": (transaction, 2),
    "raising": (raising, 1),
}


def everywhere(storage: TcpProxy, steps: dict[str, tuple[Callable[[str], Match], int]]) -> dict[str, Rule]:
    """Every way of failing at every step, each in a session of its own."""
    rules = {}
    for number, (match, nth) in enumerate(steps.values()):
        for letter, action in zip(SESSIONS.values(), LOST.values(), strict=True):
            session = f"{letter}{number}"
            rules[session] = storage.on(match(session), action, nth=nth)
    return rules


async def test_a_turn_whose_storage_fails_once_is_paid_once(
    storage: TcpProxy, api: httpx.AsyncClient, fake: AzureOpenAI, tables: Tables
) -> None:
    faults = everywhere(storage, STEPS)

    await asyncio.gather(*(insisting(api, tables, session) for session in faults))

    await services().turns.finish()
    assert {session: fault.hits for session, fault in faults.items()} == dict.fromkeys(faults, 1)
    await fire()
    await assert_conserved(tables, fake)
    assert len(fake.meter) == len(faults)


RETRY_STEPS: dict[str, tuple[Callable[[str], Match], int]] = {
    "opening another call": (transaction, 2),
    "raising the first row": (raising, 1),
    "entering the second": (entering, 2),
    "settling the second": (transaction, 3),
    "raising the second row": (raising, 2),
}


async def test_a_retried_call_whose_storage_fails_once_is_accounted_for(
    storage: TcpProxy, api: httpx.AsyncClient, fake: AzureOpenAI, tables: Tables
) -> None:
    faults = everywhere(storage, RETRY_STEPS)
    plain, met = fake.responder, set[str]()

    def lost_at_first(request: Request) -> Script:
        if asked(request) in met:
            return plain(request)
        met.add(asked(request))
        return Fault("reset")

    fake.responder = lost_at_first
    await asyncio.gather(*(insisting(api, tables, session) for session in faults))

    await services().turns.finish()
    assert {session: fault.hits for session, fault in faults.items()} == dict.fromkeys(faults, 1)
    await fire()
    entries = await assert_conserved(tables, fake)
    assert len(fake.meter) == 2 * len(faults)
    assert sum(entry.call.state == "settled" for entry in entries) == len(faults)


# Clears and erasures that were interrupted


ENDINGS = {"cleared": "/api/sessions/s/messages", "erased": "/api/sessions/s"}


@pytest.mark.parametrize("ending", ENDINGS)
async def test_the_timer_finishes_what_a_clear_or_an_erasure_left(
    storage: TcpProxy, api: httpx.AsyncClient, fake: AzureOpenAI, tables: Tables, ending: str
) -> None:
    before = await answer(api, "walrus")
    await answer(api, "walrus", "other")
    storage.on(transaction("s"), REFUSED)
    assert (await api.delete(ENDINGS[ending])).status_code == 503
    assert len(await row_keys(tables, "~erasing")) == 1
    assert "walrus" in repr([row async for row in everything(tables.sessions) if row["PartitionKey"] == "s"])

    await fire()

    assert await row_keys(tables, "~erasing") == []
    assert "walrus" not in repr([row async for row in everything(tables.sessions) if row["PartitionKey"] == "s"])
    if ending == "erased":
        assert await row_keys(tables) == []
    else:
        assert (await look(api, "/api/sessions/s"))["cost_usd"] == before["cost_usd"]
    assert (await look(api, "/api/sessions/other/messages"))["turns"][0]["messages"][0]["content"] == "walrus"
    await assert_conserved(tables, fake, erased={"s"} if ending == "erased" else ())


@pytest.mark.parametrize("ending", ENDINGS)
async def test_a_mark_that_never_reached_its_session_is_dropped_after_15_minutes(
    clock: ManualClock,
    storage: TcpProxy,
    api: httpx.AsyncClient,
    fake: AzureOpenAI,
    tables: Tables,
    ending: str,
) -> None:
    await answer(api)
    await closed_ledger(tables)
    storage.on(marking("s"), REFUSED)
    assert (await api.delete(ENDINGS[ending])).status_code == 503
    before = await versions(tables.sessions)

    await clock.advance(14 * 60)
    await fire()
    assert await versions(tables.sessions) == before

    await clock.advance(2 * 60)
    await fire()
    assert await versions(tables.sessions) == [row for row in before if row[0] != "~erasing"]
    assert (await answer(api))["turn"] == 2
    await assert_conserved(tables, fake)


async def test_a_session_that_was_begun_again_is_not_touched_by_what_its_erasure_left(
    clock: ManualClock, storage: TcpProxy, api: httpx.AsyncClient, fake: AzureOpenAI, tables: Tables
) -> None:
    await answer(api, "first life")
    storage.on(FORGETTING, REFUSED)
    await api.delete("/api/sessions/s")
    assert len(await row_keys(tables, "~erasing")) == 1
    begun = await answer(api, "second life")
    assert begun["turn"] == 1
    await closed_ledger(tables)
    before = [row for row in await versions(tables.sessions) if row[0] == "s"]

    await fire()
    await clock.advance(16 * 60)
    await fire()

    assert await versions(tables.sessions) == before
    assert (await look(api, "/api/sessions/s"))["cost_usd"] == begun["cost_usd"]
    await assert_conserved(tables, fake, erased={"s"})


async def test_a_post_finishes_an_erasure_before_it_begins_again(
    storage: TcpProxy, api: httpx.AsyncClient, fake: AzureOpenAI, tables: Tables
) -> None:
    await answer(api, "first life")
    await answer(api, "first life")
    storage.on(transaction("s"), REFUSED)
    await api.delete("/api/sessions/s")

    assert (await answer(api, "second life"))["turn"] == 1
    assert [request.body["messages"][1]["content"] for request in fake.requests[2:]] == ["second life"]
    assert await row_keys(tables, "~erasing") == []
    await assert_conserved(tables, fake, erased={"s"})


# All of it at once


def unlucky(storage: TcpProxy, chance: random.Random) -> list[Rule]:
    """Fifty faults, each at some write or read that is still to come."""
    matches = [transaction("s.."), entering("s.."), raising("s.."), Match("GET", "sessions"), Match("PUT|DELETE")]
    return [
        storage.on(chance.choice(matches), chance.choice(list(LOST.values())), nth=chance.randint(1, 60))
        for _ in range(50)
    ]


def moody(plain: Callable[[Request], Script], chance: random.Random) -> Callable[[Request], Script]:
    """A model that fails a third of its calls, in every way; what may be billed is."""
    faults = [
        *(Fault("status", status) for status in (429, 500, 503)),
        *(Fault("status", status, billed=True) for status in (408, 502, 504)),
        *(Fault(kind, after=after) for kind in LOST_BY_MODEL for after in (None, 0, 2)),
        *(Fault(kind) for kind in SPOILT_BY_MODEL),
    ]
    return lambda request: chance.choice(faults) if chance.random() < 1 / 3 else plain(request)


LOST_BY_MODEL: tuple[Kind, ...] = ("reset", "close")
SPOILT_BY_MODEL: tuple[Kind, ...] = ("truncated", "no_usage", "malformed", "error_event", "content_filter")


class Life:
    """What one caller does to a session: talks, hangs up, repeats itself, clears and erases."""

    def __init__(self, api: httpx.AsyncClient, session: str, chance: random.Random) -> None:
        self._api, self.session, self._chance = api, session, chance
        self.erased = False

    async def live(self) -> None:
        for number in range(5):
            await self._chance.choice([self._talk, self._talk, self._hang_up, self._repeat])(number)
            if self._chance.random() < 0.1:
                await self._api.delete(f"/api/sessions/{self.session}/messages")
            if self._chance.random() < 0.1:
                self.erased = True
                await self._api.delete(f"/api/sessions/{self.session}")

    async def _talk(self, number: int) -> None:
        await say(self._api, f"message {number}", self.session, stream=self._chance.random() < 0.5)

    async def _repeat(self, number: int) -> None:
        body, key = {"message": f"message {number}", "session_id": self.session}, {"idempotency-key": f"k{number}"}
        posts = [self._api.post("/api/chat", json=body, headers=key) for _ in range(3)]
        await asyncio.gather(*posts)

    async def _hang_up(self, number: int) -> None:
        body = {"message": f"message {number}", "session_id": self.session, "stream": True}
        with suppress(TimeoutError):
            async with (
                asyncio.timeout(self._chance.random() / 5),
                self._api.stream("POST", "/api/chat", json=body) as response,
            ):
                async for _ in response.aiter_bytes():
                    if self._chance.random() < 0.3:
                        return


RANDOM = [pytest.param(None, marks=pytest.mark.acceptance, id=f"random-{n}") for n in range(10)]


@pytest.mark.parametrize("seed", [1, 2, *RANDOM])
async def test_after_any_mix_of_misfortunes_the_money_adds_up(
    storage: TcpProxy, api: httpx.AsyncClient, fake: AzureOpenAI, tables: Tables, seed: int | None
) -> None:
    seed = random.SystemRandom().randrange(10**9) if seed is None else seed
    print("seed:", seed)  # pytest shows it where the test fails
    chance = random.Random(seed)
    faults = unlucky(storage, chance)
    kind, fake.responder = fake.responder, moody(fake.responder, chance)
    sessions = [f"s{index:02}" for index in range(12)]
    lives = [Life(api, session, random.Random(f"{seed} {session}")) for session in sessions]

    await asyncio.gather(*(life.live() for life in lives))

    storage.clear()
    fake.responder = kind
    await services().turns.finish()
    await fire()
    for life in lives:
        with suppress(AssertionError):  # there is none, or it is free
            await age_lease(tables, life.session)
        await answer(api, "at last", life.session)
    await past_their_deadline(tables)
    await fire()
    entries = await assert_conserved(tables, fake, erased={life.session for life in lives if life.erased})
    reached = {entry.call.state for entry in entries}
    assert {"settled", "unaccounted", "failed"} <= reached
    assert len(fake.meter) >= 40
    assert sum(fault.hits for fault in faults) >= 25
