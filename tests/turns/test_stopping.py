"""A turn that is stopped ends at once, keeps its partial answer, and its call is accounted for."""

import asyncio
from collections.abc import AsyncIterator, Callable

import httpx
import pytest

from local.keys import line
from shared.domain.calls import State
from shared.domain.principal import Principal
from shared.services import Services, services
from shared.settings import Settings
from tests.conftest import Serve, Tables
from tests.support.azure_openai import AzureOpenAI
from tests.support.chat_client import (
    answer,
    closed_ledger,
    exact,
    expire_lease,
    get_json,
    ok_json,
    send_message,
    stored,
    streaming,
    until,
)
from tests.support.clock import ManualClock
from tests.support.conservation import assert_conserved
from tests.support.faults import ledger_insert, ledger_update, session_transaction, stall_request
from tests.support.proxy import Match, TcpProxy


async def stop(api: httpx.AsyncClient, session: str = "s") -> dict[str, object]:
    return ok_json(await api.post(f"/api/sessions/{session}/stop"))


async def test_stop_ends_the_stream_and_frees_the_session(
    api: httpx.AsyncClient, fake: AzureOpenAI, tables: Tables
) -> None:
    fake.reply("one two three")
    with fake.hold(after=1):
        async with streaming(api, "count") as answering:
            assert (await answering.next()).name == "start"
            assert (await answering.next()).data == {"content": "one"}

            assert (await stop(api))["state"] == "stopped"

            [done] = await answering.rest()
    assert (done.name, done.data["finish_reason"]) == ("done", "stopped")
    assert (done.data["message"]["content"], done.data["cost_usd"]) == ("one", None)
    await answer(api, "go on")
    assert [m["content"] for m in fake.requests[1].body["messages"][1:]] == ["count", "one", "go on"]
    first, second = sorted(await closed_ledger(tables), key=lambda entry: entry.turn)
    assert (first.call.state, second.call.state) == (State.STOPPED, State.SETTLED)
    session = await get_json(api, "/api/sessions/s")
    assert session["stopped_calls"] == 1
    assert session["stopped_at_least_usd"] == 0
    assert session["stopped_at_most_usd"] > session["cost_usd"] > 0
    await assert_conserved(tables, fake)


async def test_stop_of_an_idle_session_changes_nothing(api: httpx.AsyncClient) -> None:
    await answer(api)
    before = await get_json(api, "/api/sessions/s")
    assert (await stop(api))["state"] == "idle"
    assert await get_json(api, "/api/sessions/s") == before


async def test_turn_is_stopped_when_its_client_goes_away_if_it_says_so(
    api: httpx.AsyncClient, fake: AzureOpenAI, tables: Tables
) -> None:
    fake.reply("one two three")
    body = {"message": "count", "session_id": "s", "stream": True, "on_disconnect": "stop"}
    with fake.hold(after=1):
        async with api.stream("POST", "/api/chat", json=body) as response:
            await anext(response.aiter_bytes())

        async def is_free() -> bool | None:
            return None if (await get_json(api, "/api/sessions/s"))["busy"] else True

        await until(is_free)
    [entry] = await closed_ledger(tables)
    assert entry.call.state is State.STOPPED
    await assert_conserved(tables, fake)


async def test_json_request_cannot_notice_a_disconnect(api: httpx.AsyncClient) -> None:
    response = await api.post("/api/chat", json={"message": "hi", "on_disconnect": "stop"})
    assert (response.status_code, response.json()["error"]["param"]) == (400, "on_disconnect")


STEPS: dict[str, tuple[Callable[[str], Match], int, bool]] = {
    "before the reservation": (session_transaction, 1, False),
    "after the reservation": (session_transaction, 1, True),
    "before the ledger insert": (ledger_insert, 1, False),
    "after the ledger insert": (ledger_insert, 1, True),
    "before the session is settled": (session_transaction, 2, False),
    "after the session is settled": (session_transaction, 2, True),
    "before the ledger is settled": (ledger_update, 1, False),
    "after the ledger is settled": (ledger_update, 1, True),
}


@pytest.mark.parametrize("name", STEPS)
async def test_stop_at_any_step_of_a_turn(
    storage: TcpProxy, api: httpx.AsyncClient, fake: AzureOpenAI, tables: Tables, name: str
) -> None:
    step, nth, done = STEPS[name]
    await answer(api, "before")
    await closed_ledger(tables)
    with stall_request(storage, step("s"), after_answer=done, nth=nth) as stalled:
        turn = asyncio.create_task(send_message(api, "stopped"))
        await stalled.until_reached()
        stopping = asyncio.create_task(api.post("/api/sessions/s/stop"))
        await asyncio.sleep(0.05)  # it waits for the turn, or finds none
    response, message = await stopping, ok_json(await turn)
    assert response.json()["state"] in ("stopped", "stopping", "idle")
    assert message["finish_reason"] in ("stop", "stopped")
    await services().turns.finish()

    assert (await answer(api, "after"))["turn"] == 3
    await closed_ledger(tables)
    await assert_conserved(tables, fake)


async def test_stop_before_the_request_is_sent_costs_nothing(
    storage: TcpProxy, api: httpx.AsyncClient, fake: AzureOpenAI, tables: Tables
) -> None:
    with stall_request(storage, ledger_insert("s")) as insertion:
        turn = asyncio.create_task(answer(api))
        await insertion.until_reached()
        stopping = asyncio.create_task(stop(api))
        await until(is_requested)
    assert (await stopping)["state"] == "stopped"
    stopped = await turn
    assert (stopped["finish_reason"], stopped["message"]["content"], stopped["usage"]) == ("stopped", "", None)
    assert not fake.requests
    [entry] = await closed_ledger(tables)
    assert (entry.call.state, entry.call.reason) == (State.FAILED, "stopped")
    session = await get_json(api, "/api/sessions/s")
    assert (session["stopped_calls"], session["unaccounted_calls"], session["cost_usd"]) == (0, 0, 0)


async def is_requested() -> bool | None:
    return any(run.stream.stop.requested for run in services().turns._running.values()) or None


async def test_stop_while_waiting_for_the_first_token_bounds_the_cost(
    api: httpx.AsyncClient, fake: AzureOpenAI, tables: Tables
) -> None:
    with fake.hold(after=0) as hold:
        turn = asyncio.create_task(answer(api))
        await hold.until_reached()
        assert (await stop(api))["state"] == "stopped"
        stopped = await turn
        await fake.until(lambda: [each.outcome for each in fake.meter] == ["hang_up"])
    assert (stopped["finish_reason"], stopped["message"]["content"], stopped["cost_usd"]) == ("stopped", "", None)
    assert stopped["session"]["stopped_at_most_usd"] > 0
    assert (await answer(api, "next"))["message"]["content"] == "echo: next"
    await closed_ledger(tables)
    await assert_conserved(tables, fake)


async def test_turn_that_runs_without_its_lease_is_stopped(
    api: httpx.AsyncClient, fake: AzureOpenAI, tables: Tables
) -> None:
    with fake.hold(after=0) as hold:
        turn = asyncio.create_task(answer(api))
        await hold.until_reached()
        await expire_lease(tables)
        assert (await stop(api))["state"] == "stopped"
        assert (await turn)["finish_reason"] == "stopped"
    assert (await stop(api))["state"] == "idle"
    await closed_ledger(tables)
    await assert_conserved(tables, fake)


async def test_tool_calls_of_a_stopped_turn_wait_for_no_results(
    api: httpx.AsyncClient, fake: AzureOpenAI, tables: Tables
) -> None:
    """Their arguments may be cut off: neither the caller's tools nor the model can read them."""
    fake.reply(tool_calls=(("a", "look", '{"city": "Oslo"}'),))
    with fake.hold(after=2):
        async with streaming(api) as answering:
            await answering.next()
            await answering.next()
            await stop(api)
            [*_, done] = await answering.rest()
    [call] = done.data["message"]["tool_calls"]
    assert call["function"]["arguments"] != '{"city": "Oslo"}'

    response = await send_message(api, None, tool_results=[{"tool_call_id": "a", "content": "rain"}])

    assert (response.status_code, response.json()["error"]["param"]) == (400, "tool_results")
    assert "No tool call is waiting" in response.json()["error"]["message"]
    await answer(api, "next")
    assert [message["role"] for message in fake.requests[-1].body["messages"]] == ["system", "user", "user"]
    await closed_ledger(tables)
    await assert_conserved(tables, fake)


async def test_stop_on_another_instance_is_noticed_when_the_lease_is_renewed(
    clock: ManualClock, environ: dict[str, str], api: httpx.AsyncClient, fake: AzureOpenAI, tables: Tables
) -> None:
    fake.reply("one two three")
    other = Services(Settings.from_env(environ), clock)
    with fake.hold(after=1):
        async with streaming(api) as answering:
            await answering.next()
            assert (await answering.next()).data == {"content": "one"}
            session = await other.sessions.get("s", Principal(None))
            assert not await other.turns.stop("s", session.turns)
            await other.sessions.request_stop(session)

            await clock.advance(11)

            [done] = await answering.rest()
        await other.close()
    assert (done.name, done.data["finish_reason"], done.data["message"]["content"]) == ("done", "stopped", "one")
    assert (await answer(api, "next"))["turn"] == 2
    await closed_ledger(tables)
    await assert_conserved(tables, fake)


async def test_stop_that_reaches_the_head_after_the_turn_has_ended_is_idle(
    clock: ManualClock, environ: dict[str, str], api: httpx.AsyncClient, fake: AzureOpenAI
) -> None:
    """The turn ran on another instance, and ended between the two requests to storage."""
    other = Services(Settings.from_env(environ), clock)
    with fake.hold(after=1):
        async with streaming(api) as answering:
            await answering.next()
            running = await other.sessions.get("s", Principal(None))
    await services().turns.finish()
    assert await other.sessions.request_stop(running) is False
    await other.close()


async def test_stop_during_the_pause_before_another_attempt_costs_nothing(
    clock: ManualClock, serve: Serve, environ: dict[str, str], fake: AzureOpenAI, tables: Tables
) -> None:
    fake.fault("status", status=503, retry_after=20)

    async def pauses() -> bool | None:
        return 20 in clock.slept or None

    async with serve(environ | {"AZURE_OPENAI_MAX_RETRIES": "2"}) as api:
        turn = asyncio.create_task(answer(api))
        await until(pauses)
        assert (await stop(api))["state"] == "stopped"
        assert (await turn)["finish_reason"] == "stopped"
    assert len(fake.requests) == 1
    [entry] = await closed_ledger(tables)
    assert (entry.call.state, entry.call.reason) == (State.FAILED, "stopped")
    await assert_conserved(tables, fake)


# OpenAI's format


BODY = {"model": "chat", "messages": [{"role": "user", "content": "count"}]}
KEY = {"authorization": f"Bearer {'k' * 43}"}


@pytest.fixture
async def openai_api(serve: Serve, environ: dict[str, str]) -> AsyncIterator[httpx.AsyncClient]:
    async with serve(environ | {"CLIENT_KEYS": line("ann", "k" * 43)}) as api:
        yield api


@pytest.mark.parametrize("streamed", [True, False], ids=["streamed", "whole"])
async def test_completion_of_a_session_that_is_stopped_ends_with_stop(
    openai_api: httpx.AsyncClient, fake: AzureOpenAI, tables: Tables, streamed: bool
) -> None:
    fake.reply("one two three")
    with fake.hold(after=1 if streamed else 0) as hold:
        headers = KEY | {"x-session-id": "s", "idempotency-key": "k"}
        body = BODY | {"stream": streamed}
        turn = asyncio.create_task(openai_api.post("/openai/v1/chat/completions", json=body, headers=headers))
        await hold.until_reached()
        await asyncio.sleep(0.05)  # for the first chunk to arrive
        assert ok_json(await openai_api.post("/api/sessions/s/stop", headers=KEY))["state"] == "stopped"
    response = await turn
    if streamed:
        *_, last, done = [line for line in response.text.splitlines() if line]
        chunk = exact(last.removeprefix("data: "))
        assert (chunk["choices"][0]["finish_reason"], done) == ("stop", "data: [DONE]")
        assert chunk["id"].startswith("chatcmpl-")
        assert chunk["model"]
    else:
        assert response.json()["choices"][0]["finish_reason"] == "stop"
    assert (await stored(tables))[1][0].finish_reason == "stopped"
    replayed = await openai_api.post("/openai/v1/chat/completions", json=BODY, headers=headers)
    assert replayed.json()["choices"][0]["finish_reason"] == "stop"
    await closed_ledger(tables)
    await assert_conserved(tables, fake)


async def test_completion_is_stopped_when_its_client_disconnects_if_a_header_says_so(
    openai_api: httpx.AsyncClient, fake: AzureOpenAI, tables: Tables
) -> None:
    fake.reply("one two three")
    with fake.hold(after=1):
        headers = KEY | {"x-on-disconnect": "stop"}
        body = BODY | {"stream": True}
        async with openai_api.stream("POST", "/openai/v1/chat/completions", json=body, headers=headers) as response:
            await anext(response.aiter_bytes())
        [entry] = await closed_ledger(tables)
        assert entry.call.state is State.STOPPED
    await assert_conserved(tables, fake)


async def test_disconnect_before_the_first_token_stops_a_completion_too(
    openai_api: httpx.AsyncClient, fake: AzureOpenAI, tables: Tables
) -> None:
    with fake.hold(after=0) as hold:
        headers = KEY | {"x-on-disconnect": "stop"}
        body = BODY | {"stream": True}
        turn = asyncio.create_task(openai_api.post("/openai/v1/chat/completions", json=body, headers=headers))
        await hold.until_reached()
        turn.cancel()
        [entry] = await closed_ledger(tables)
        assert entry.call.state is State.STOPPED
    await assert_conserved(tables, fake)


@pytest.mark.parametrize(("value", "streamed"), [("stop", False), ("later", True), ("", True)])
async def test_header_that_cannot_be_followed_is_refused(
    openai_api: httpx.AsyncClient, fake: AzureOpenAI, value: str, streamed: bool
) -> None:
    headers, body = KEY | {"x-on-disconnect": value}, BODY | {"stream": streamed}
    response = await openai_api.post("/openai/v1/chat/completions", json=body, headers=headers)
    assert (response.status_code, response.json()["error"]["param"]) == (400, "X-On-Disconnect")
    assert not fake.requests


async def test_session_of_another_caller_cannot_be_stopped(openai_api: httpx.AsyncClient, fake: AzureOpenAI) -> None:
    await openai_api.post("/openai/v1/chat/completions", json=BODY, headers=KEY | {"x-session-id": "ann"})
    for session in ("ann", "unknown"):
        response = await openai_api.post(f"/api/sessions/{session}/stop")
        assert (response.status_code, response.json()["error"]["code"]) == (404, "session_not_found")
