"""SIGKILL at every step boundary of a turn, a retry and a removal: after recovery the money adds up, every time.

Storage or the model keeps a request (or its answer), which holds a host at one exact point; then it is killed. What was
kept is lost with it or, as a slow network would have it, arrives after its death.
"""

import asyncio
import time
from collections.abc import Awaitable, Callable, Iterable, Iterator, Sequence
from contextlib import suppress
from dataclasses import dataclass, field
from datetime import UTC, datetime, timedelta
from pathlib import Path
from typing import TypeAlias

import httpx
import pytest
from azure.data.tables.aio import TableServiceClient

from local import azurite as azurite_server
from shared.errors import VersionConflict
from shared.services import services
from tests.conftest import Serve, Tables
from tests.support.azure_openai import AzureOpenAI, Fault, Request, Script
from tests.support.conservation import assert_conserved, everything
from tests.support.faults import FORGETTING, announcing, entering, marking, raising, transaction
from tests.support.killing import Azurite, Host, Nursery
from tests.support.loopback import PATIENCE
from tests.support.proxy import Match, Rule, Stall, TcpProxy
from tests.support.talking import age_lease, answer, row_keys, stored

Start: TypeAlias = Callable[[], Host]
Step: TypeAlias = Callable[[str], Match]


@pytest.fixture(scope="module")
def nursery() -> Iterator[Nursery]:
    with Nursery() as nursery:
        yield nursery


@pytest.fixture
def start(nursery: Nursery, storage: TcpProxy, environ: dict[str, str], tmp_path: Path) -> Iterator[Start]:
    """Starts a host. Any is as good as the same one started again: it keeps nothing."""
    started: list[Host] = []

    def host() -> Host:
        started.append(nursery.host(environ, tmp_path / f"host-{len(started)}.log"))
        return started[-1]

    yield host
    for host_left in started:
        host_left.kill()


@dataclass(frozen=True)
class Point:
    """Where a host is killed: with this request on its way to storage, or done there and not acknowledged."""

    step: Step | None = None  # none: where the message stops the model
    nth: int = 1
    done: bool = False
    message: str = "plain"

    @property
    def on_its_way(self) -> bool:
        return self.step is not None and not self.done


POINTS = {
    "before it is reserved": Point(transaction),
    "reserved": Point(transaction, done=True),
    "before it is in the ledger": Point(entering),
    "in the ledger": Point(entering, done=True),
    "before the first byte": Point(message="silent"),
    "in mid-answer": Point(message="halting"),
    "before the session is settled": Point(transaction, nth=2),
    "the session settled": Point(transaction, nth=2, done=True),
    "before the ledger is settled": Point(raising),
    "the ledger settled": Point(raising, done=True),
    "before another call is opened": Point(transaction, nth=2, message="lost once"),
    "another call opened": Point(transaction, nth=2, done=True, message="lost once"),
    "before the first row is raised": Point(raising, message="lost once"),
    "the first row raised": Point(raising, done=True, message="lost once"),
    "before the second call is in the ledger": Point(entering, nth=2, message="lost once"),
    "the second call in the ledger": Point(entering, nth=2, done=True, message="lost once"),
    "in mid-answer of the second call": Point(message="lost once, then halting"),
    "before the second call is settled": Point(transaction, nth=3, message="lost once"),
    "the second call settled in the session": Point(transaction, nth=3, done=True, message="lost once"),
}


def obedient(fake: AzureOpenAI) -> None:
    """The model goes wrong as the message says."""
    plain, met = fake.responder, set[str]()

    def respond(request: Request) -> Script:
        message = request.body["messages"][-1]["content"]
        kind, first = message.partition(" in ")[0], message not in met
        met.add(message)
        if kind.startswith("lost once") and first:
            return Fault("reset")
        if kind == "silent":
            return Fault("stall")
        return Fault("stall", after=2) if kind.endswith("halting") else plain(request)

    fake.responder = respond


@dataclass
class Held:
    """Requests to a host, and what holds them in it."""

    requests: "list[asyncio.Task[httpx.Response]]" = field(default_factory=list)
    rules: list[Rule] = field(default_factory=list)

    def add(self, request: Awaitable[httpx.Response]) -> None:
        self.requests.append(asyncio.ensure_future(request))


async def bring_to(
    point: Point, client: httpx.AsyncClient, storage: TcpProxy, fake: AzureOpenAI, sessions: Sequence[str]
) -> Held:
    """A turn in each session, held at the point."""
    held = Held()
    if point.step:
        stall = Stall(after_answer=point.done)
        held.rules = [storage.on(point.step(session), stall, nth=point.nth) for session in sessions]
    for session in sessions:
        held.add(post(client, session, f"{point.message} in {session}"))
    for rule in held.rules:
        await rule.until_reached()
    billed = len(sessions) * (2 if point.message.startswith("lost once") else 1)
    if not point.step:
        await fake.until(lambda: len(fake.meter) == billed)
    return held


async def post(client: httpx.AsyncClient, session: str, message: str) -> httpx.Response:
    body = {"session_id": session, "message": message}
    return await client.post("/api/chat", json=body, headers={"idempotency-key": session})


async def kill(host: Host, storage: TcpProxy, held: Held, *, late: int = 0) -> None:
    """What is kept of the first `late` requests arrives after the host's death, the rest never."""
    await asyncio.to_thread(host.kill)
    for rule in held.rules[:late]:
        rule.release()
    await storage.until(lambda: storage.busy == len(held.rules[late:]))
    storage.down()
    storage.clear()
    storage.up()
    await asyncio.gather(*held.requests, return_exceptions=True)


async def age(tables: Tables, sessions: Iterable[str]) -> None:
    """Let time pass: leases are over, and so are the deadlines of open rows."""
    for session in sessions:
        with suppress(AssertionError):  # there is none
            await age_lease(tables, session)
    over = (datetime.now(UTC) - timedelta(seconds=1)).isoformat()
    async for row in everything(tables.usage):
        if row["state"] == "open":
            key = {name: row[name] for name in ("PartitionKey", "RowKey")}
            with suppress(VersionConflict):  # it has just been written
                await tables.usage.merge({**key, "deadline": over}, row["etag"])


async def try_again(client: httpx.AsyncClient, tables: Tables, fake: AzureOpenAI, session: str, message: str) -> None:
    """With the same key: an answer that was stored is given again, and nothing else is paid for."""
    known = await row_keys(tables, session)
    answered = bool(known) and (await stored(tables, session))[1][-1].call.state == "settled"
    asked = len(fake.requests)
    response = await post(client, session, message)
    assert response.status_code == 200
    assert ("idempotent-replayed" in response.headers, len(fake.requests) - asked) == (answered, not answered)


@pytest.mark.parametrize("name", POINTS)
async def test_a_turn_may_die_anywhere(
    start: Start, storage: TcpProxy, fake: AzureOpenAI, tables: Tables, name: str
) -> None:
    point, victim, plain = POINTS[name], start(), fake.responder
    obedient(fake)
    fates = ["late", "lost"] if point.on_its_way else ["lost"]
    sessions = [f"{role}-{fate}" for fate in fates for role in ("retried", "swept", "cleared", "erased")]
    erased = {session for session in sessions if session.startswith("erased")}
    async with victim.client() as client:
        held = await bring_to(point, client, storage, fake, sessions)
        await kill(victim, storage, held, late=len(sessions) // 2 if point.on_its_way else 0)

    host, fake.responder = start(), plain
    async with host.client() as client:
        for session in erased:
            assert (await client.delete(f"/api/sessions/{session}")).status_code in (204, 404)
        await age(tables, sessions)
        for session in sessions:
            if session.startswith("retried"):
                await try_again(client, tables, fake, session, f"{point.message} in {session}")
            elif session.startswith("cleared"):
                assert (await client.delete(f"/api/sessions/{session}/messages")).status_code in (204, 404)
        await asyncio.to_thread(host.fire)
        await assert_conserved(tables, fake, erased=erased, freed=False)
        await asyncio.gather(*(answer(client, "at last", session) for session in sessions))
        await assert_conserved(tables, fake, erased=erased)


def forgetting(_: str) -> Match:
    return FORGETTING


REMOVALS: dict[str, tuple[Step, bool]] = {
    "before it is announced": (announcing, False),
    "announced": (announcing, True),
    "before its head is marked": (marking, False),
    "its head marked": (marking, True),
    "before its rows are gone": (transaction, False),
    "its rows gone": (transaction, True),
    "before it is forgotten": (forgetting, False),
}


@pytest.mark.parametrize("name", REMOVALS)
async def test_a_clear_or_an_erasure_may_die_anywhere(
    start: Start, storage: TcpProxy, fake: AzureOpenAI, tables: Tables, name: str
) -> None:
    victim, (step, done), held = start(), REMOVALS[name], Held()
    paths = {"cleared": "/messages", "cleared-then-used": "/messages", "erased": "", "erased-then-used": ""}
    async with victim.client() as client:
        for session in paths:
            await answer(client, "walrus", session)
        await assert_conserved(tables, fake)
        for session, path in paths.items():
            held.rules.append(storage.on(step(session), Stall(after_answer=done)))
            held.add(client.delete(f"/api/sessions/{session}{path}"))
            await held.rules[-1].until_reached()
        await kill(victim, storage, held)
    begun = {row["session"] async for row in everything(tables.sessions) if row["PartitionKey"] == "~erasing"}
    marked = {row["PartitionKey"] async for row in everything(tables.sessions) if "removal" in row}

    host = start()
    async with host.client() as client:
        for session in paths:
            if session.endswith("used"):
                await answer(client, "at last", session)
        await asyncio.to_thread(host.fire)
        left = {row["session"] async for row in everything(tables.sessions) if row["PartitionKey"] == "~erasing"}
        kept = {row["PartitionKey"] async for row in everything(tables.sessions) if "walrus" in str(row)}
        assert kept == (set(paths) if step is announcing or (step is marking and not done) else set())
        assert left <= begun - marked
        erased = {session for session in paths if session.startswith("erased")}
        await assert_conserved(tables, fake, erased=erased)
        statuses = {session: (await client.get(f"/api/sessions/{session}")).status_code for session in paths}
        assert statuses == {session: 404 if session == "erased" and not kept else 200 for session in paths}


async def test_storage_may_die_under_load(
    serve: Serve, environ: dict[str, str], prefix: str, fake: AzureOpenAI, tmp_path: Path
) -> None:
    storage, fake.chunk_delay = Azurite(tmp_path), 0.002
    storage.start()
    connection = azurite_server.connection_string(storage.port)
    try:
        async with (
            serve(environ | {"TABLES_CONNECTION_STRING": connection}) as api,
            TableServiceClient.from_connection_string(connection) as service,
        ):
            load = [asyncio.create_task(insisting(api, f"s{index}")) for index in range(12)]
            for billed in (8, 16, 24):
                while len(fake.meter) < billed:  # noqa: ASYNC110 - the fake's thread has no event of ours
                    await asyncio.sleep(0.005)
                storage.kill()
                await asyncio.to_thread(storage.start)
            await asyncio.gather(*load)

            await services().turns.finish()
            tables = Tables(service.get_table_client(f"{prefix}sessions"), service.get_table_client(f"{prefix}usage"))
            await age(tables, [f"s{index}" for index in range(12)])
            await services().maintenance.run()
            await asyncio.gather(*(answer(api, "at last", f"s{index}") for index in range(12)))
            await assert_conserved(tables, fake)
    finally:
        storage.kill()


async def insisting(api: httpx.AsyncClient, session: str) -> None:
    """Three turns, each posted with its key until it is answered."""
    deadline = time.monotonic() + 2 * PATIENCE
    for number in range(3):
        body, key = {"session_id": session, "message": f"{number}"}, {"idempotency-key": f"{number}"}
        while (response := await api.post("/api/chat", json=body, headers=key)).status_code != 200:
            assert response.status_code in (409, 503)
            assert time.monotonic() < deadline
            await asyncio.sleep(0.05)
