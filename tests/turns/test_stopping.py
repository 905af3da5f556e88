"""A turn that is stopped ends at once, keeps its partial answer, and its call is accounted for."""

import httpx

from shared.domain.calls import State
from tests.conftest import Tables
from tests.support.azure_openai import AzureOpenAI
from tests.support.chat_client import answer, closed_ledger, get_json, ok_json, streaming, until
from tests.support.conservation import assert_conserved


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
