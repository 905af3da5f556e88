"""A call is opened in the ledger before anything is spent for it, and in no other way than all calls are."""

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
from tests.support.clock import ManualClock
from tests.support.conservation import assert_conserved
from tests.support.faults import REFUSED, UNAVAILABLE, entering, kept, raising
from tests.support.proxy import Match, TcpProxy
from tests.support.talking import JSON, age_lease, answer, answered, closed_ledger, ledger, say, until

KEY = new_key()
INSERTION = Match("POST", "usage$")
RAISE = Match("PUT", r"usage\(")


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
    """The pause before a retry moves the clock."""
    clock.skips = 1
    return clock


def inserted(storage: TcpProxy) -> list[JSON]:
    """The rows that were inserted into the ledger, in order."""
    return [orjson.loads(seen.body) for seen in list(storage.seen) if INSERTION.fits(seen)]


def ledger_writes(storage: TcpProxy) -> list[tuple[str, str]]:
    """The writes to the ledger in order: which, and the state that the row then has."""
    kinds = {"POST": "insert", "PUT": "raise"}
    writes = [seen for seen in list(storage.seen) if INSERTION.fits(seen) or RAISE.fits(seen)]
    return [(kinds[seen.method], orjson.loads(seen.body)["state"]) for seen in writes]


class Watch:
    """Records for each request to the model whether its call was inserted as an open row by then."""

    def __init__(self, storage: TcpProxy, fake: AzureOpenAI) -> None:
        self._storage, self._plain = storage, fake.responder
        self.opened: dict[str | None, bool] = {}
        self.faults: list[Fault] = []
        fake.responder = self._respond

    def _respond(self, request: Request) -> Script:
        rows = [row for row in inserted(self._storage) if row["id"] == request.call_id]
        self.opened[request.call_id] = [row["state"] for row in rows] == ["open"]
        return self.faults.pop(0) if self.faults else self._plain(request)


@pytest.mark.usefixtures("clock")
async def test_every_call_that_reaches_the_model_was_opened_before(
    storage: TcpProxy, api: httpx.AsyncClient, fake: AzureOpenAI, tables: Tables
) -> None:
    """Of turns, of retries, of calls without a session."""
    watch = Watch(storage, fake)
    await answer(api, session="plain")
    for fault in (Fault("reset"), Fault("status", 504, billed=True), Fault("truncated"), Fault("context_length")):
        watch.faults = [fault]
        await say(api, session="retried")
    watch.faults = [Fault("status", 429), Fault("reset"), Fault("reset")]
    await say(api, session="limited")
    await say(api, session="lost-twice")
    body = {"model": "chat", "messages": [{"role": "user", "content": "hi"}]}
    for headers in ({}, {"x-session-id": "forwarded"}):
        answered(await api.post("/openai/v1/chat/completions", json=body, headers=headers))

    entries = await closed_ledger(tables)
    assert len(watch.opened) == len(fake.requests) == 14
    assert all(watch.opened.values())
    assert {row["id"] for row in inserted(storage)} == {entry.call.id for entry in entries} == set(watch.opened)
    assert {row["state"] for row in inserted(storage)} == {"open"}
    await assert_conserved(tables, fake)


@pytest.mark.usefixtures("clock")
async def test_a_retry_raises_the_row_that_it_replaces_as_its_own_is_opened(
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
    first, second = inserted(storage)
    assert [request.call_id for request in fake.requests] == [first["id"], second["id"]]
    await assert_conserved(tables, fake)


@pytest.mark.usefixtures("clock")
async def test_nothing_is_opened_or_spent_before_the_replaced_row_is_raised(
    storage: TcpProxy, api: httpx.AsyncClient, fake: AzureOpenAI, tables: Tables
) -> None:
    fake.fault("reset")
    with kept(storage, raising("s")) as replacing:
        running = asyncio.create_task(answer(api))
        await replacing.until_reached()
        assert (len(inserted(storage)), len(fake.requests)) == (1, 1)
    with kept(storage, entering("s"), after_answer=True) as opening:
        await opening.until_reached()
        assert [entry.call.state for entry in await ledger(tables)] == [State.UNACCOUNTED, State.OPEN]
        assert len(fake.requests) == 1
    assert (await running)["session"]["unaccounted_calls"] == 1
    assert len(fake.requests) == 2
    await assert_conserved(tables, fake)


@pytest.mark.usefixtures("clock")
@pytest.mark.parametrize("step", [raising, entering], ids=["raising the replaced row", "inserting the new one"])
async def test_where_either_write_fails_the_retry_is_not_made(
    storage: TcpProxy, api: httpx.AsyncClient, fake: AzureOpenAI, tables: Tables, step: Callable[[str], Match]
) -> None:
    fake.fault("reset")
    storage.on(step("s"), REFUSED, nth=1 if step is raising else 2)

    refused = await say(api)

    assert (refused.status_code, refused.json()["error"]["code"]) == (503, "storage_unavailable")
    assert len(fake.requests) == 1
    await services().turns.finish()
    await services().maintenance.run()
    assert sorted(entry.call.state for entry in await ledger(tables)) == [State.FAILED, State.UNACCOUNTED]
    assert (await answer(api))["turn"] == 2
    await assert_conserved(tables, fake)


async def test_the_other_rows_that_are_inserted_are_never_open(
    storage: TcpProxy, api: httpx.AsyncClient, fake: AzureOpenAI, tables: Tables
) -> None:
    """A fence, and the row of a call that was refused before it was opened."""
    storage.on(entering("refused"), UNAVAILABLE, times=4)  # the SDK's attempts
    assert (await say(api, session="refused")).status_code == 503
    with kept(storage, entering("fenced")) as insertion:
        stalled = asyncio.create_task(say(api, session="fenced"))
        await insertion.until_reached()
        await age_lease(tables, "fenced")
        await answer(api, "next", session="fenced")
    assert (await stalled).status_code == 503

    async def written() -> bool | None:
        states = sorted(entry.call.state.value for entry in await ledger(tables))
        return states == ["abandoned", "failed", "settled"] or None

    await until(written)
    assert len(fake.requests) == 1
    await assert_conserved(tables, fake)
