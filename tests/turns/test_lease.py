"""Turns that meet in one session: one at a time, and what becomes of a turn whose process stalls or is gone."""

import asyncio
from datetime import datetime, timedelta
from functools import partial

import httpx

from shared.domain.calls import State
from shared.turns.lease import LEASE, RENEWAL_S
from tests.conftest import Serve, Tables
from tests.support.azure_openai import AzureOpenAI
from tests.support.clock import ManualClock
from tests.support.conservation import assert_conserved
from tests.support.proxy import Answer, Match, Stall, TcpProxy
from tests.support.talking import (
    age_lease,
    answer,
    answered,
    closed_ledger,
    ledger,
    look,
    say,
    stored,
    streaming,
    until,
)


def refused_as_busy(response: httpx.Response) -> bool:
    if response.status_code != 409:
        return False
    assert response.json()["error"]["code"] == "session_busy"
    assert 1 <= int(response.headers["retry-after"]) <= 30
    return True


# One conversation, one turn at a time


async def test_of_posts_that_meet_those_accepted_are_in_order_and_the_rest_are_told_to_wait(
    api: httpx.AsyncClient, fake: AzureOpenAI, tables: Tables
) -> None:
    responses = await asyncio.gather(*(say(api, f"post {number}") for number in range(50)))

    accepted = {number: answered(r) for number, r in enumerate(responses) if not refused_as_busy(r)}
    in_order = sorted(accepted, key=lambda number: int(accepted[number]["turn"]))
    _, turns = await stored(tables)
    assert accepted
    assert [turn["turn"] for turn in (accepted[number] for number in in_order)] == list(range(1, len(accepted) + 1))
    assert [turn.messages[0]["content"] for turn in turns] == [f"post {number}" for number in in_order]
    assert [turn.messages[1]["content"] for turn in turns] == [f"echo: post {number}" for number in in_order]
    assert len(fake.meter) == len(accepted) == len(await closed_ledger(tables))
    last = [m["content"] for m in fake.requests[-1].body["messages"] if m["role"] == "user"]
    assert last == [f"post {number}" for number in in_order]
    assert accepted[in_order[-1]]["session"]["cost_usd"] == sum(turn["cost_usd"] for turn in accepted.values())
    await assert_conserved(tables, fake)


async def test_while_one_turn_runs_all_others_are_told_to_wait(
    api: httpx.AsyncClient, fake: AzureOpenAI, tables: Tables
) -> None:
    with fake.hold() as hold:
        first = asyncio.create_task(say(api, "first"))
        await hold.until_reached()
        others = await asyncio.gather(*(say(api, "other") for _ in range(49)))
        hold.release()

    assert all(refused_as_busy(response) for response in others)
    assert answered(await first)["turn"] == 1
    assert len(fake.requests) == len(await closed_ledger(tables)) == 1
    await assert_conserved(tables, fake)


async def test_posts_that_wait_as_told_are_all_taken(api: httpx.AsyncClient, fake: AzureOpenAI, tables: Tables) -> None:
    async def persist(number: int) -> int:
        response = await say(api, f"post {number}")
        if not refused_as_busy(response):
            return int(answered(response)["turn"])
        await asyncio.sleep(0.02)
        return await persist(number)

    assert sorted(await asyncio.gather(*map(persist, range(8)))) == [1, 2, 3, 4, 5, 6, 7, 8]
    await assert_conserved(tables, fake)


async def test_a_busy_session_shows_its_totals_as_they_stand(api: httpx.AsyncClient, fake: AzureOpenAI) -> None:
    before = await answer(api)
    with fake.hold() as hold:
        async with streaming(api, "more") as answering:
            await hold.until_reached()
            during = await look(api, "/api/sessions/s")
            hold.release()
            done = (await answering.rest())[-1].data

    assert (during["busy"], during["turns"]) == (True, 2)
    assert during["cost_usd"] == before["cost_usd"]
    after = await look(api, "/api/sessions/s")
    assert (after["busy"], after["cost_usd"]) == (False, done["session"]["cost_usd"])


async def test_other_sessions_do_not_wait(api: httpx.AsyncClient, fake: AzureOpenAI) -> None:
    with fake.hold() as hold:
        first = asyncio.create_task(say(api))
        await hold.until_reached()
        assert (await answer(api, session="other"))["turn"] == 1
        hold.release()
    answered(await first)


# The lease of a turn that runs


async def test_a_lease_is_renewed_for_as_long_as_the_model_speaks(
    clock: ManualClock, api: httpx.AsyncClient, fake: AzureOpenAI, tables: Tables
) -> None:
    async def ends() -> datetime:
        head, _ = await stored(tables)
        assert head.lease is not None
        return head.lease.until

    with fake.hold() as hold:
        running = asyncio.create_task(say(api))
        await hold.until_reached()
        began = clock.now()
        while clock.now() < began + 3 * LEASE:
            before = await ends()
            await clock.until_sleeping(RENEWAL_S)
            await clock.advance(RENEWAL_S)
            await clock.until_sleeping(RENEWAL_S)  # again: the lease is renewed
            assert await ends() >= before + timedelta(seconds=RENEWAL_S)
            assert timedelta(seconds=20) < await ends() - clock.now() <= LEASE
            assert refused_as_busy(await say(api, "other"))
        hold.release()

    assert answered(await running)["turn"] == 1
    assert (await stored(tables))[0].lease is None
    assert len(fake.requests) == 1
    await assert_conserved(tables, fake)


async def test_a_lease_that_is_not_renewed_ends(
    clock: ManualClock, storage: TcpProxy, api: httpx.AsyncClient, fake: AzureOpenAI, tables: Tables
) -> None:
    """By the app's clock, and not before."""
    storage.on(Match("PATCH", "sessions"), Answer(403), times=None)
    with fake.hold() as hold:
        stalled = asyncio.create_task(say(api, "stalled"))
        await hold.until_reached()
        await clock.advance(LEASE.total_seconds() - 5)
        assert refused_as_busy(await say(api, "too early"))
        await clock.advance(5)

        assert (await answer(api, "next"))["session"]["unaccounted_calls"] == 1
        hold.release()

    assert answered(await stalled)["turn"] == 1
    await until(partial(all_settled, tables))
    await assert_conserved(tables, fake)


async def test_renewing_and_settling_do_not_meet(
    clock: ManualClock, storage: TcpProxy, api: httpx.AsyncClient, fake: AzureOpenAI, tables: Tables
) -> None:
    """However often the lease is renewed."""
    fake.chunk_delay = 0.005
    renewing = asyncio.create_task(_always_due(clock))
    try:
        assert [(await answer(api, "one two three four"))["turn"] for _ in range(5)] == [1, 2, 3, 4, 5]
    finally:
        renewing.cancel()
    assert storage.count(Match("PATCH", "sessions")) > 5
    await assert_conserved(tables, fake)


async def _always_due(clock: ManualClock) -> None:
    while True:
        await clock.until_sleeping(RENEWAL_S)
        await clock.advance(RENEWAL_S)


async def test_whoever_lost_the_lease_renews_it_no_more(
    clock: ManualClock, storage: TcpProxy, api: httpx.AsyncClient, fake: AzureOpenAI, tables: Tables
) -> None:
    renewal = Match("PATCH", "sessions")
    with fake.hold() as hold:
        stalled = asyncio.create_task(say(api, "stalled"))
        await hold.until_reached()
        await age_lease(tables)
        await answer(api, "next")
        assert storage.count(renewal) == 0
        for _ in range(10):
            await clock.advance(RENEWAL_S)
            for _ in range(5):
                await look(api, "/api/sessions/s")

        assert storage.count(renewal) == 1  # which found that the lease is lost
        assert (await stored(tables))[0].lease is None
        assert not clock.sleeping(RENEWAL_S)
        hold.release()
    assert answered(await stalled)["turn"] == 1
    await until(partial(all_settled, tables))
    await assert_conserved(tables, fake)


# The lease of a turn that stalls


async def test_a_stalled_turn_is_unaccounted_until_it_settles_after_all(
    api: httpx.AsyncClient, fake: AzureOpenAI, tables: Tables
) -> None:
    before = await answer(api, "before")
    with fake.hold() as hold:
        stalled = asyncio.create_task(say(api, "stalled"))
        await hold.until_reached()
        await age_lease(tables)

        told = await answer(api, "next")

        _, mark, _ = await ledger(tables)
        assert (mark.turn, mark.call.state, mark.call.reason) == (2, State.UNACCOUNTED, "interrupted")
        assert (told["turn"], told["session"]["unaccounted_calls"]) == (3, 1)
        assert told["session"]["unaccounted_usd"] == mark.call.worst_case
        assert told["session"]["cost_usd"] == before["cost_usd"] + told["cost_usd"]
        assert said(fake, 2) == ["before", "echo: before", "next"]
        hold.release()

    late = answered(await stalled)
    assert (late["turn"], late["message"]["content"]) == (2, "echo: stalled")
    assert late["session"]["unaccounted_calls"] == late["session"]["unaccounted_usd"] == 0
    assert late["session"]["cost_usd"] == before["cost_usd"] + late["cost_usd"] + told["cost_usd"]
    await answer(api, "last")
    assert said(fake, 3) == ["before", "echo: before", "stalled", "echo: stalled", "next", "echo: next", "last"]
    await until(partial(all_settled, tables))
    await assert_conserved(tables, fake)


def said(fake: AzureOpenAI, request: int) -> list[str]:
    """What the model was sent, but for the system prompt."""
    return [message["content"] for message in fake.requests[request].body["messages"][1:]]


async def all_settled(tables: Tables) -> bool | None:
    return {entry.call.state for entry in await ledger(tables)} == {State.SETTLED} or None


async def test_a_stalled_turn_settles_beside_the_one_that_took_its_place(
    api: httpx.AsyncClient, fake: AzureOpenAI, tables: Tables
) -> None:
    with fake.hold() as first, fake.hold() as second:
        stalled = asyncio.create_task(say(api, "stalled"))
        await first.until_reached()
        await age_lease(tables)
        following = asyncio.create_task(say(api, "next"))
        await second.until_reached()
        first.release()

        assert answered(await stalled)["session"]["unaccounted_calls"] == 0
        assert (await look(api, "/api/sessions/s"))["busy"]
        assert refused_as_busy(await say(api, "other"))
        second.release()

    done = answered(await following)
    assert (done["turn"], done["session"]["unaccounted_calls"]) == (2, 0)
    await assert_conserved(tables, fake)


async def test_a_stalled_turn_that_breaks_off_stays_unaccounted(
    api: httpx.AsyncClient, fake: AzureOpenAI, tables: Tables
) -> None:
    fake.fault("truncated", after=1)
    with fake.hold() as hold:
        stalled = asyncio.create_task(say(api, "stalled"))
        await hold.until_reached()
        await age_lease(tables)
        assert (await answer(api, "next"))["session"]["unaccounted_calls"] == 1
        hold.release()

    assert (await stalled).status_code == 502
    assert (await look(api, "/api/sessions/s"))["unaccounted_calls"] == 1
    await assert_conserved(tables, fake)


async def test_a_stalled_turn_that_was_refused_unbilled_takes_its_mark_back(
    serve: Serve, environ: dict[str, str], fake: AzureOpenAI, tables: Tables
) -> None:
    with TcpProxy(fake.port) as model:
        async with serve(environ | {"AZURE_OPENAI_ENDPOINT": model.endpoint}) as api:
            fake.fault(429)
            refusal = model.on(Match(), Stall(after_answer=True))
            stalled = asyncio.create_task(say(api, "stalled"))
            await refusal.until_reached()
            await age_lease(tables)
            assert (await answer(api, "next"))["session"]["unaccounted_calls"] == 1
            refusal.release()

            assert (await stalled).status_code == 429
            session = await look(api, "/api/sessions/s")

    assert (session["unaccounted_calls"], session["unaccounted_usd"]) == (0, 0)

    async def failed() -> bool | None:
        return [entry.call.state for entry in await ledger(tables)] == [State.FAILED, State.SETTLED] or None

    await until(failed)
    await assert_conserved(tables, fake)


async def test_a_turn_that_stalled_before_it_was_in_the_ledger_can_spend_nothing(
    serve: Serve,
    environ: dict[str, str],
    prefix: str,
    storage: TcpProxy,
    fake: AzureOpenAI,
    tables: Tables,
) -> None:
    async with serve(environ) as api:
        await answer(api, "before")
        insert = storage.on(Match("POST", f"{prefix}usage$"), Stall())
        stalled = asyncio.create_task(say(api, "stalled"))
        await insert.until_reached()
        await age_lease(tables)

        told = await answer(api, "next")

        _, fenced, _ = await ledger(tables)
        assert (fenced.turn, fenced.call.state) == (2, State.ABANDONED)
        assert (told["turn"], told["session"]["unaccounted_calls"]) == (3, 0)
        insert.release()
        failed = await stalled

    assert (failed.status_code, failed.json()["error"]["code"]) == (503, "storage_unavailable")
    assert len(fake.requests) == len(fake.meter) == 2
    await assert_conserved(tables, fake)


async def test_a_retry_after_the_lease_was_lost_is_not_made(
    api: httpx.AsyncClient, fake: AzureOpenAI, tables: Tables
) -> None:
    fake.fault("stall")
    stalled = asyncio.create_task(say(api, "stalled"))
    await fake.until(lambda: fake.meter)
    await age_lease(tables)
    assert (await answer(api, "next"))["session"]["unaccounted_calls"] == 1
    fake.stop()  # resets the stalled connection
    fake.start()

    assert (await stalled).status_code == 502
    assert len(fake.requests) == len(await closed_ledger(tables)) == 2
    await assert_conserved(tables, fake)


async def test_a_look_at_a_session_recovers_nothing(api: httpx.AsyncClient, fake: AzureOpenAI, tables: Tables) -> None:
    with fake.hold() as hold:
        stalled = asyncio.create_task(say(api))
        await hold.until_reached()
        await age_lease(tables)
        shown = await look(api, "/api/sessions/s")
        assert (shown["busy"], shown["unaccounted_calls"]) == (False, 0)
        assert [entry.call.state for entry in await ledger(tables)] == [State.OPEN]
        hold.release()
    answered(await stalled)
    await assert_conserved(tables, fake)
