"""Every call is opened in the ledger before anything is spent, and in the same way."""

import asyncio
from collections.abc import AsyncIterator, Callable

import httpx
import orjson
import pytest

from local.keys import line, new_key
from shared.domain.calls import State
from shared.services import services
from tests.conftest import Serve, Tables
from tests.support.azure_openai import AzureOpenAI, Fault, Request, Script
from tests.support.chat_client import JSON, answer, closed_ledger, expire_lease, ledger, ok_json, send_message, until
from tests.support.clock import ManualClock
from tests.support.conservation import assert_conserved
from tests.support.faults import REFUSED, UNAVAILABLE, ledger_insert, ledger_update, stall_request
from tests.support.proxy import Match, TcpProxy

KEY = new_key()
LEDGER_INSERT = Match("POST", "usage$")
LEDGER_UPDATE = Match("PUT", r"usage\(")


@pytest.fixture
def environ(environ: dict[str, str]) -> dict[str, str]:
    return environ | {"CLIENT_KEYS": line("ann", KEY)}


@pytest.fixture
async def api(serve: Serve, environ: dict[str, str]) -> AsyncIterator[httpx.AsyncClient]:
    async with serve(environ) as client:
        client.headers["api-key"] = KEY
        yield client


@pytest.fixture
def clock(clock: ManualClock) -> ManualClock:
    """A clock that skips the pause before a retry."""
    clock.skip_sleeps_up_to = 1
    return clock


def inserted_rows(storage: TcpProxy) -> list[JSON]:
    """The inserted ledger rows, in order."""
    return [orjson.loads(seen.body) for seen in list(storage.seen) if LEDGER_INSERT.matches(seen)]


def ledger_writes(storage: TcpProxy) -> list[tuple[str, str]]:
    """The ledger writes in order: the kind of write and the state that it stores."""
    kinds = {"POST": "insert", "PUT": "raise"}
    writes = [seen for seen in list(storage.seen) if LEDGER_INSERT.matches(seen) or LEDGER_UPDATE.matches(seen)]
    return [(kinds[seen.method], orjson.loads(seen.body)["state"]) for seen in writes]


class ModelSpy:
    """Records for each request to the model whether an open row for its call had been inserted before."""

    def __init__(self, storage: TcpProxy, fake: AzureOpenAI) -> None:
        self._storage, self._plain = storage, fake.responder
        self.opened: dict[str | None, bool] = {}
        self.faults: list[Fault] = []
        fake.responder = self._respond

    def _respond(self, request: Request) -> Script:
        rows = [row for row in inserted_rows(self._storage) if row["id"] == request.call_id]
        self.opened[request.call_id] = [row["state"] for row in rows] == ["open"]
        return self.faults.pop(0) if self.faults else self._plain(request)


@pytest.mark.usefixtures("clock")
async def test_every_model_call_has_an_open_ledger_row_first(
    storage: TcpProxy, api: httpx.AsyncClient, fake: AzureOpenAI, tables: Tables
) -> None:
    """Turns, retries and calls without a session."""
    spy = ModelSpy(storage, fake)
    await answer(api, session="plain")
    for fault in (Fault("reset"), Fault("status", 504, billed=True), Fault("truncated"), Fault("context_length")):
        spy.faults = [fault]
        await send_message(api, session="retried")
    spy.faults = [Fault("status", 429), Fault("reset"), Fault("reset")]
    await send_message(api, session="limited")
    await send_message(api, session="lost-twice")
    body = {"model": "chat", "messages": [{"role": "user", "content": "hi"}]}
    for headers in ({}, {"x-session-id": "forwarded"}):
        ok_json(await api.post("/openai/v1/chat/completions", json=body, headers=headers))

    entries = await closed_ledger(tables)
    assert len(spy.opened) == len(fake.requests) == 14
    assert all(spy.opened.values())
    assert {row["id"] for row in inserted_rows(storage)} == {entry.call.id for entry in entries} == set(spy.opened)
    assert {row["state"] for row in inserted_rows(storage)} == {"open"}
    await assert_conserved(tables, fake)


@pytest.mark.usefixtures("clock")
async def test_retry_raises_the_replaced_ledger_row_then_inserts_its_own(
    storage: TcpProxy, api: httpx.AsyncClient, fake: AzureOpenAI, tables: Tables
) -> None:
    fake.fault("reset")

    await answer(api)

    await closed_ledger(tables)
    assert ledger_writes(storage) == [
        ("insert", "open"),
        ("raise", "unaccounted"),
        ("insert", "open"),
        ("raise", "settled"),
    ]
    first, second = inserted_rows(storage)
    assert [request.call_id for request in fake.requests] == [first["id"], second["id"]]
    await assert_conserved(tables, fake)


@pytest.mark.usefixtures("clock")
async def test_retry_spends_nothing_before_the_replaced_row_is_raised(
    storage: TcpProxy, api: httpx.AsyncClient, fake: AzureOpenAI, tables: Tables
) -> None:
    fake.fault("reset")
    with stall_request(storage, ledger_update("s")) as replacing:
        running = asyncio.create_task(answer(api))
        await replacing.until_reached()
        assert (len(inserted_rows(storage)), len(fake.requests)) == (1, 1)
    with stall_request(storage, ledger_insert("s"), after_answer=True) as opening:
        await opening.until_reached()
        assert [entry.call.state for entry in await ledger(tables)] == [State.UNACCOUNTED, State.OPEN]
        assert len(fake.requests) == 1
    assert (await running)["session"]["unaccounted_calls"] == 1
    assert len(fake.requests) == 2
    await assert_conserved(tables, fake)


@pytest.mark.usefixtures("clock")
@pytest.mark.parametrize(
    "step", [ledger_update, ledger_insert], ids=["raising the replaced row", "inserting the new row"]
)
async def test_retry_is_not_sent_if_a_ledger_write_fails(
    storage: TcpProxy, api: httpx.AsyncClient, fake: AzureOpenAI, tables: Tables, step: Callable[[str], Match]
) -> None:
    fake.fault("reset")
    storage.on(step("s"), REFUSED, nth=1 if step is ledger_update else 2)

    refused = await send_message(api)

    assert (refused.status_code, refused.json()["error"]["code"]) == (503, "storage_unavailable")
    assert len(fake.requests) == 1
    await services().turns.finish()
    await services().maintenance.run()
    assert sorted(entry.call.state for entry in await ledger(tables)) == [State.FAILED, State.UNACCOUNTED]
    assert (await answer(api))["turn"] == 2
    await assert_conserved(tables, fake)


async def test_fence_and_failed_call_never_insert_an_open_row(
    storage: TcpProxy, api: httpx.AsyncClient, fake: AzureOpenAI, tables: Tables
) -> None:
    """A fence, and the row of a call that could not be opened."""
    storage.on(ledger_insert("refused"), UNAVAILABLE, times=4)  # the SDK's attempts
    assert (await send_message(api, session="refused")).status_code == 503
    with stall_request(storage, ledger_insert("fenced")) as insertion:
        stalled = asyncio.create_task(send_message(api, session="fenced"))
        await insertion.until_reached()
        await expire_lease(tables, "fenced")
        await answer(api, "next", session="fenced")
    assert (await stalled).status_code == 503

    async def rows_are_written() -> bool | None:
        states = sorted(entry.call.state.value for entry in await ledger(tables))
        return states == ["abandoned", "failed", "settled"] or None

    await until(rows_are_written)
    assert len(fake.requests) == 1
    await assert_conserved(tables, fake)
