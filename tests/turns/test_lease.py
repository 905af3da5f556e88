"""The lease of a session: one turn at a time, renewal, and turns that lose their lease."""

import asyncio
from datetime import datetime, timedelta
from functools import partial

import httpx

from shared.domain.calls import State
from shared.turns.lease import LEASE, RENEWAL_S
from tests.conftest import Serve, Tables
from tests.support.azure_openai import AzureOpenAI
from tests.support.chat_client import (
    answer,
    closed_ledger,
    expire_lease,
    get_json,
    ledger,
    ok_json,
    send_message,
    stored,
    streaming,
    until,
)
from tests.support.clock import ManualClock
from tests.support.conservation import assert_conserved
from tests.support.proxy import Answer, Match, Stall, TcpProxy
from tests.support.rude_upstream import with_rude_fake_in_acceptance

pytestmark = with_rude_fake_in_acceptance


def is_session_busy(response: httpx.Response) -> bool:
    if response.status_code != 409:
        return False
    assert response.json()["error"]["code"] == "session_busy"
    assert 1 <= int(response.headers["retry-after"]) <= 30
    return True


# One turn at a time


async def test_concurrent_requests_run_in_order_or_return_409_session_busy(
    api: httpx.AsyncClient, fake: AzureOpenAI, tables: Tables
) -> None:
    responses = await asyncio.gather(*(send_message(api, f"message {number}") for number in range(50)))

    accepted = {number: ok_json(r) for number, r in enumerate(responses) if not is_session_busy(r)}
    in_order = sorted(accepted, key=lambda number: int(accepted[number]["turn"]))
    _, turns = await stored(tables)
    assert accepted
    assert [turn["turn"] for turn in (accepted[number] for number in in_order)] == list(range(1, len(accepted) + 1))
    assert [turn.messages[0]["content"] for turn in turns] == [f"message {number}" for number in in_order]
    assert [turn.messages[1]["content"] for turn in turns] == [f"echo: message {number}" for number in in_order]
    assert len(fake.meter) == len(accepted) == len(await closed_ledger(tables))
    last = [m["content"] for m in fake.requests[-1].body["messages"] if m["role"] == "user"]
    assert last == [f"message {number}" for number in in_order]
    assert accepted[in_order[-1]]["session"]["cost_usd"] == sum(turn["cost_usd"] for turn in accepted.values())
    await assert_conserved(tables, fake)


async def test_all_requests_return_409_while_a_turn_runs(
    api: httpx.AsyncClient, fake: AzureOpenAI, tables: Tables
) -> None:
    with fake.hold() as hold:
        first = asyncio.create_task(send_message(api, "first"))
        await hold.until_reached()
        others = await asyncio.gather(*(send_message(api, "other") for _ in range(49)))
        hold.release()

    assert all(is_session_busy(response) for response in others)
    assert ok_json(await first)["turn"] == 1
    assert len(fake.requests) == len(await closed_ledger(tables)) == 1
    await assert_conserved(tables, fake)


async def test_requests_retried_after_409_all_succeed(
    api: httpx.AsyncClient, fake: AzureOpenAI, tables: Tables
) -> None:
    async def retry_until_accepted(number: int) -> int:
        response = await send_message(api, f"message {number}")
        if not is_session_busy(response):
            return int(ok_json(response)["turn"])
        await asyncio.sleep(0.02)
        return await retry_until_accepted(number)

    assert sorted(await asyncio.gather(*map(retry_until_accepted, range(8)))) == [1, 2, 3, 4, 5, 6, 7, 8]
    await assert_conserved(tables, fake)


async def test_busy_session_shows_totals_without_the_running_turn(api: httpx.AsyncClient, fake: AzureOpenAI) -> None:
    before = await answer(api)
    with fake.hold() as hold:
        async with streaming(api, "more") as answering:
            await hold.until_reached()
            during = await get_json(api, "/api/sessions/s")
            hold.release()
            done = (await answering.rest())[-1].data

    assert (during["busy"], during["turns"]) == (True, 2)
    assert during["cost_usd"] == before["cost_usd"]
    after = await get_json(api, "/api/sessions/s")
    assert (after["busy"], after["cost_usd"]) == (False, done["session"]["cost_usd"])


async def test_running_turn_does_not_block_other_sessions(api: httpx.AsyncClient, fake: AzureOpenAI) -> None:
    with fake.hold() as hold:
        first = asyncio.create_task(send_message(api))
        await hold.until_reached()
        assert (await answer(api, session="other"))["turn"] == 1
        hold.release()
    ok_json(await first)


# The lease of a running turn


async def test_lease_is_renewed_while_the_model_answers(
    clock: ManualClock, api: httpx.AsyncClient, fake: AzureOpenAI, tables: Tables
) -> None:
    async def lease_end() -> datetime:
        head, _ = await stored(tables)
        assert head.lease is not None
        return head.lease.until

    with fake.hold() as hold:
        running = asyncio.create_task(send_message(api))
        await hold.until_reached()
        started = clock.now()
        while clock.now() < started + 3 * LEASE:
            before = await lease_end()
            await clock.until_sleep_started(RENEWAL_S)
            await clock.advance(RENEWAL_S)
            await clock.until_sleep_started(RENEWAL_S)  # the next sleep starts after the renewal
            assert await lease_end() >= before + timedelta(seconds=RENEWAL_S)
            assert timedelta(seconds=20) < await lease_end() - clock.now() <= LEASE
            assert is_session_busy(await send_message(api, "other"))
        hold.release()

    assert ok_json(await running)["turn"] == 1
    assert (await stored(tables))[0].lease is None
    assert len(fake.requests) == 1
    await assert_conserved(tables, fake)


async def test_lease_expires_without_renewal(
    clock: ManualClock, storage: TcpProxy, api: httpx.AsyncClient, fake: AzureOpenAI, tables: Tables
) -> None:
    """The app's clock decides."""
    storage.on(Match("PATCH", "sessions"), Answer(403), times=None)
    with fake.hold() as hold:
        stalled = asyncio.create_task(send_message(api, "stalled"))
        await hold.until_reached()
        await clock.advance(LEASE.total_seconds() - 5)
        assert is_session_busy(await send_message(api, "too early"))
        await clock.advance(5)

        assert (await answer(api, "next"))["session"]["unaccounted_calls"] == 1
        hold.release()

    assert ok_json(await stalled)["turn"] == 1
    await until(partial(all_settled, tables))
    await assert_conserved(tables, fake)


async def test_lease_renewal_and_settlement_do_not_conflict(
    clock: ManualClock, storage: TcpProxy, api: httpx.AsyncClient, fake: AzureOpenAI, tables: Tables
) -> None:
    """Renewal is due all the time."""
    fake.chunk_delay = 0.005
    renewing = asyncio.create_task(_keep_renewal_due(clock))
    try:
        assert [(await answer(api, "one two three four"))["turn"] for _ in range(5)] == [1, 2, 3, 4, 5]
    finally:
        renewing.cancel()
    assert storage.count(Match("PATCH", "sessions")) > 5
    await assert_conserved(tables, fake)


async def _keep_renewal_due(clock: ManualClock) -> None:
    while True:
        await clock.until_sleep_started(RENEWAL_S)
        await clock.advance(RENEWAL_S)


async def test_lost_lease_is_not_renewed(
    clock: ManualClock, storage: TcpProxy, api: httpx.AsyncClient, fake: AzureOpenAI, tables: Tables
) -> None:
    renewal = Match("PATCH", "sessions")
    with fake.hold() as hold:
        stalled = asyncio.create_task(send_message(api, "stalled"))
        await hold.until_reached()
        await expire_lease(tables)
        await answer(api, "next")
        assert storage.count(renewal) == 0
        for _ in range(10):
            await clock.advance(RENEWAL_S)
            for _ in range(5):
                await get_json(api, "/api/sessions/s")

        assert storage.count(renewal) == 1  # it detected the lost lease
        assert (await stored(tables))[0].lease is None
        assert not clock.has_sleep(RENEWAL_S)
        hold.release()
    assert ok_json(await stalled)["turn"] == 1
    await until(partial(all_settled, tables))
    await assert_conserved(tables, fake)


# The lease of a stalled turn


async def test_turn_with_expired_lease_is_unaccounted_until_it_settles(
    api: httpx.AsyncClient, fake: AzureOpenAI, tables: Tables
) -> None:
    before = await answer(api, "before")
    with fake.hold() as hold:
        stalled = asyncio.create_task(send_message(api, "stalled"))
        await hold.until_reached()
        await expire_lease(tables)

        following = await answer(api, "next")

        _, interrupted, _ = await ledger(tables)
        assert (interrupted.turn, interrupted.call.state, interrupted.call.reason) == (
            2,
            State.UNACCOUNTED,
            "interrupted",
        )
        assert (following["turn"], following["session"]["unaccounted_calls"]) == (3, 1)
        assert following["session"]["unaccounted_usd"] == interrupted.call.worst_case
        assert following["session"]["cost_usd"] == before["cost_usd"] + following["cost_usd"]
        assert sent(fake, 2) == ["before", "echo: before", "next"]
        hold.release()

    late = ok_json(await stalled)
    assert (late["turn"], late["message"]["content"]) == (2, "echo: stalled")
    assert late["session"]["unaccounted_calls"] == late["session"]["unaccounted_usd"] == 0
    assert late["session"]["cost_usd"] == before["cost_usd"] + late["cost_usd"] + following["cost_usd"]
    await answer(api, "last")
    assert sent(fake, 3) == ["before", "echo: before", "stalled", "echo: stalled", "next", "echo: next", "last"]
    await until(partial(all_settled, tables))
    await assert_conserved(tables, fake)


def sent(fake: AzureOpenAI, request: int) -> list[str]:
    """The messages that the model received, without the system prompt."""
    return [message["content"] for message in fake.requests[request].body["messages"][1:]]


async def all_settled(tables: Tables) -> bool | None:
    return {entry.call.state for entry in await ledger(tables)} == {State.SETTLED} or None


async def test_turn_with_lost_lease_settles_while_the_next_turn_runs(
    api: httpx.AsyncClient, fake: AzureOpenAI, tables: Tables
) -> None:
    with fake.hold() as first, fake.hold() as second:
        stalled = asyncio.create_task(send_message(api, "stalled"))
        await first.until_reached()
        await expire_lease(tables)
        following = asyncio.create_task(send_message(api, "next"))
        await second.until_reached()
        first.release()

        assert ok_json(await stalled)["session"]["unaccounted_calls"] == 0
        assert (await get_json(api, "/api/sessions/s"))["busy"]
        assert is_session_busy(await send_message(api, "other"))
        second.release()

    done = ok_json(await following)
    assert (done["turn"], done["session"]["unaccounted_calls"]) == (2, 0)
    await assert_conserved(tables, fake)


async def test_turn_with_lost_lease_stays_unaccounted_if_its_answer_breaks_off(
    api: httpx.AsyncClient, fake: AzureOpenAI, tables: Tables
) -> None:
    fake.fault("truncated", after=1)
    with fake.hold() as hold:
        stalled = asyncio.create_task(send_message(api, "stalled"))
        await hold.until_reached()
        await expire_lease(tables)
        assert (await answer(api, "next"))["session"]["unaccounted_calls"] == 1
        hold.release()

    assert (await stalled).status_code == 502
    assert (await get_json(api, "/api/sessions/s"))["unaccounted_calls"] == 1
    await assert_conserved(tables, fake)


async def test_turn_with_lost_lease_is_failed_not_unaccounted_after_429(
    serve: Serve, environ: dict[str, str], fake: AzureOpenAI, tables: Tables
) -> None:
    with TcpProxy(fake.port) as model:
        async with serve(environ | {"AZURE_OPENAI_ENDPOINT": model.endpoint}) as api:
            fake.fault(429)
            refusal = model.on(Match(), Stall(after_answer=True))
            stalled = asyncio.create_task(send_message(api, "stalled"))
            await refusal.until_reached()
            await expire_lease(tables)
            assert (await answer(api, "next"))["session"]["unaccounted_calls"] == 1
            refusal.release()

            assert (await stalled).status_code == 429
            session = await get_json(api, "/api/sessions/s")

    assert (session["unaccounted_calls"], session["unaccounted_usd"]) == (0, 0)

    async def first_call_has_failed() -> bool | None:
        return [entry.call.state for entry in await ledger(tables)] == [State.FAILED, State.SETTLED] or None

    await until(first_call_has_failed)
    await assert_conserved(tables, fake)


async def test_turn_with_lost_lease_spends_nothing_if_it_has_no_ledger_row(
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
        stalled = asyncio.create_task(send_message(api, "stalled"))
        await insert.until_reached()
        await expire_lease(tables)

        following = await answer(api, "next")

        _, fenced, _ = await ledger(tables)
        assert (fenced.turn, fenced.call.state) == (2, State.ABANDONED)
        assert (following["turn"], following["session"]["unaccounted_calls"]) == (3, 0)
        insert.release()
        failed = await stalled

    assert (failed.status_code, failed.json()["error"]["code"]) == (503, "storage_unavailable")
    assert len(fake.requests) == len(fake.meter) == 2
    await assert_conserved(tables, fake)


async def test_no_retry_after_the_lease_is_lost(api: httpx.AsyncClient, fake: AzureOpenAI, tables: Tables) -> None:
    fake.fault("stall")
    stalled = asyncio.create_task(send_message(api, "stalled"))
    await fake.until(lambda: fake.meter)
    await expire_lease(tables)
    assert (await answer(api, "next"))["session"]["unaccounted_calls"] == 1
    fake.stop()  # resets the stalled connection
    fake.start()

    assert (await stalled).status_code == 502
    assert len(fake.requests) == len(await closed_ledger(tables)) == 2
    await assert_conserved(tables, fake)


async def test_reading_a_session_with_an_expired_lease_recovers_nothing(
    api: httpx.AsyncClient, fake: AzureOpenAI, tables: Tables
) -> None:
    with fake.hold() as hold:
        stalled = asyncio.create_task(send_message(api))
        await hold.until_reached()
        await expire_lease(tables)
        session = await get_json(api, "/api/sessions/s")
        assert (session["busy"], session["unaccounted_calls"]) == (False, 0)
        assert [entry.call.state for entry in await ledger(tables)] == [State.OPEN]
        hold.release()
    ok_json(await stalled)
    await assert_conserved(tables, fake)
