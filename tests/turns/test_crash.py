"""SIGKILL at every step of a turn, a retry and a deletion: all costs add up after recovery.

The storage proxy or the fake model stalls a request (or its response), which stops a host at an exact step; then the
host is killed. The stalled request is lost or, as in a slow network, arrives after the crash.
"""

import asyncio
import re
import time
from collections.abc import Awaitable, Callable, Iterable, Sequence
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
from tests.support.chat_client import answer, expire_lease, row_keys, stored
from tests.support.conservation import all_rows, assert_conserved
from tests.support.faults import (
    DELETION_END,
    deletion_insert,
    deletion_mark,
    ledger_insert,
    ledger_update,
    session_transaction,
)
from tests.support.loopback import MAX_WAIT_S
from tests.support.processes import Azurite, Host, Start
from tests.support.proxy import Match, Rule, Stall, TcpProxy
from tests.support.responses_api import KEYS, client_of_ann
from tests.support.rude_upstream import with_rude_fake_in_acceptance

pytestmark = with_rude_fake_in_acceptance
Step: TypeAlias = Callable[[str], Match]


@pytest.fixture
def environ(environ: dict[str, str]) -> dict[str, str]:
    return environ | KEYS


@dataclass(frozen=True)
class CrashPoint:
    """Where a host is killed: before this request reaches storage, or after storage has committed it (`done`)."""

    step: Step | None = None  # None: while the model handles the message
    nth: int = 1
    done: bool = False
    message: str = "plain"

    @property
    def before_commit(self) -> bool:
        return self.step is not None and not self.done


POINTS = {
    "before the reservation": CrashPoint(session_transaction),
    "after the reservation": CrashPoint(session_transaction, done=True),
    "before the ledger insert": CrashPoint(ledger_insert),
    "after the ledger insert": CrashPoint(ledger_insert, done=True),
    "before the first chunk": CrashPoint(message="silent"),
    "during the answer": CrashPoint(message="halting"),
    "before the session is settled": CrashPoint(session_transaction, nth=2),
    "after the session is settled": CrashPoint(session_transaction, nth=2, done=True),
    "before the ledger is settled": CrashPoint(ledger_update),
    "after the ledger is settled": CrashPoint(ledger_update, done=True),
    "before the retry transaction": CrashPoint(session_transaction, nth=2, message="lost once"),
    "after the retry transaction": CrashPoint(session_transaction, nth=2, done=True, message="lost once"),
    "before the first row is raised": CrashPoint(ledger_update, message="lost once"),
    "after the first row is raised": CrashPoint(ledger_update, done=True, message="lost once"),
    "before the second ledger insert": CrashPoint(ledger_insert, nth=2, message="lost once"),
    "after the second ledger insert": CrashPoint(ledger_insert, nth=2, done=True, message="lost once"),
    "during the answer of the second call": CrashPoint(message="lost once, then halting"),
    "before the second call is settled in the session": CrashPoint(session_transaction, nth=3, message="lost once"),
    "after the second call is settled in the session": CrashPoint(
        session_transaction, nth=3, done=True, message="lost once"
    ),
}


def fail_as_the_message_says(fake: AzureOpenAI) -> None:
    """Make the model fail in the way that the message names."""
    responder, seen = fake.responder, set[str]()

    def respond(request: Request) -> Script:
        message = request.body["messages"][-1]["content"]
        kind, first = message.partition(" in ")[0], message not in seen
        seen.add(message)
        if kind.startswith("lost once") and first:
            return Fault("reset")
        if kind == "silent":
            return Fault("stall")
        return Fault("stall", after=2) if kind.endswith("halting") else responder(request)

    fake.responder = respond


@dataclass
class StalledRequests:
    """Requests to a host, and the proxy rules that stall them."""

    requests: "list[asyncio.Task[httpx.Response]]" = field(default_factory=list)
    rules: list[Rule] = field(default_factory=list)

    def add(self, request: Awaitable[httpx.Response]) -> None:
        self.requests.append(asyncio.ensure_future(request))


async def stall_at(
    point: CrashPoint, client: httpx.AsyncClient, storage: TcpProxy, fake: AzureOpenAI, sessions: Sequence[str]
) -> StalledRequests:
    """Start a turn in each session and stall all of them at the point."""
    stalled = StalledRequests()
    if point.step:
        stall = Stall(after_answer=point.done)
        stalled.rules = [storage.on(point.step(session), stall, nth=point.nth) for session in sessions]
    for session in sessions:
        stalled.add(chat(client, session, f"{point.message} in {session}"))
    for rule in stalled.rules:
        await rule.until_reached()
    billed = len(sessions) * (2 if point.message.startswith("lost once") else 1)
    if not point.step:
        await fake.until(lambda: len(fake.meter) == billed)
    return stalled


async def chat(client: httpx.AsyncClient, session: str, message: str) -> httpx.Response:
    path, body = "/api/chat", {"session_id": session, "message": message}
    if re.fullmatch("[0-9a-f]{32}", session):
        path, body = "/openai/v1/responses", {"model": "chat", "input": message, "conversation": f"conv_{session}"}
    return await client.post(path, json=body, headers={"idempotency-key": session})


async def new_conversation(client: httpx.AsyncClient) -> str:
    """The session of a new conversation of openai/v1."""
    created = await client.post("/openai/v1/conversations", json={})
    return str(created.json()["id"]).removeprefix("conv_")


async def kill(host: Host, storage: TcpProxy, stalled: StalledRequests, *, late: int = 0) -> None:
    """Kill the host. The first `late` stalled requests arrive after that; the others are lost."""
    await asyncio.to_thread(host.kill)
    for rule in stalled.rules[:late]:
        rule.release()
    await storage.until(lambda: storage.busy == len(stalled.rules[late:]))
    storage.down()
    storage.clear()
    storage.up()
    await asyncio.gather(*stalled.requests, return_exceptions=True)


async def expire(tables: Tables, sessions: Iterable[str]) -> None:
    """Make the leases of the sessions and the deadlines of all open rows expire."""
    for session in sessions:
        with suppress(AssertionError):  # it has no lease
            await expire_lease(tables, session)
    past = (datetime.now(UTC) - timedelta(seconds=1)).isoformat()
    async for row in all_rows(tables.usage):
        if row.get("state") == "open":  # else it may be a counter
            key = {name: row[name] for name in ("PartitionKey", "RowKey")}
            with suppress(VersionConflict):  # it was written concurrently
                await tables.usage.merge({**key, "deadline": past}, row["etag"])


async def retry_chat(client: httpx.AsyncClient, tables: Tables, fake: AzureOpenAI, session: str, message: str) -> None:
    """Retry with the same Idempotency-Key: a stored answer is replayed without a model call."""
    turns = (await stored(tables, session))[1] if await row_keys(tables, session) else []
    answered = bool(turns) and turns[-1].call.state == "settled"
    calls = len(fake.requests)
    response = await chat(client, session, message)
    assert response.status_code == 200
    assert ("idempotent-replayed" in response.headers, len(fake.requests) - calls) == (answered, not answered)


@pytest.mark.parametrize("name", POINTS)
async def test_recovery_after_a_crash_at_any_step_of_a_turn(
    start: Start, storage: TcpProxy, fake: AzureOpenAI, tables: Tables, name: str
) -> None:
    point, victim, responder = POINTS[name], start(), fake.responder
    fail_as_the_message_says(fake)
    fates = ["late", "lost"] if point.before_commit else ["lost"]
    roles = ("retried", "recovered", "cleared", "erased")
    async with client_of_ann(victim) as client:
        conversations = [await new_conversation(client) for _ in fates]
        sessions = [
            session
            for fate, conversation in zip(fates, conversations, strict=True)
            for session in (*(f"{role}-{fate}" for role in roles), conversation)
        ]
        erased = {session for session in sessions if session.startswith("erased-")}
        stalled = await stall_at(point, client, storage, fake, sessions)
        await kill(victim, storage, stalled, late=len(sessions) // 2 if point.before_commit else 0)

    host, fake.responder = start(), responder
    async with client_of_ann(host) as client:
        for session in erased:
            assert (await client.delete(f"/api/sessions/{session}")).status_code in (204, 404)
        await expire(tables, sessions)
        for session in sessions:
            if session.startswith("retried-") or session in conversations:
                await retry_chat(client, tables, fake, session, f"{point.message} in {session}")
            elif session.startswith("cleared"):
                assert (await client.delete(f"/api/sessions/{session}/messages")).status_code in (204, 404)
        await asyncio.to_thread(host.fire)
        await assert_conserved(tables, fake, erased=erased, released=False)
        await asyncio.gather(*(answer(client, "at last", session) for session in sessions))
        await assert_conserved(tables, fake, erased=erased)


def deletion_end(_: str) -> Match:
    return DELETION_END


DELETION_STEPS: dict[str, tuple[Step, bool]] = {
    "before the deletion is inserted": (deletion_insert, False),
    "after the deletion is inserted": (deletion_insert, True),
    "before the head is marked": (deletion_mark, False),
    "after the head is marked": (deletion_mark, True),
    "before the rows are deleted": (session_transaction, False),
    "after the rows are deleted": (session_transaction, True),
    "before the deletion ends": (deletion_end, False),
}


@pytest.mark.parametrize("name", DELETION_STEPS)
async def test_recovery_after_a_crash_at_any_step_of_a_deletion(
    start: Start, storage: TcpProxy, fake: AzureOpenAI, tables: Tables, name: str
) -> None:
    victim, (step, done), stalled = start(), DELETION_STEPS[name], StalledRequests()
    paths = {"cleared": "/messages", "cleared-then-used": "/messages", "erased": "", "erased-then-used": ""}
    async with client_of_ann(victim) as client:
        for session in paths:
            await answer(client, "walrus", session)
        await assert_conserved(tables, fake)
        for session, path in paths.items():
            stalled.rules.append(storage.on(step(session), Stall(after_answer=done)))
            stalled.add(client.delete(f"/api/sessions/{session}{path}"))
            await stalled.rules[-1].until_reached()
        await kill(victim, storage, stalled)
    announced = {row["session"] async for row in all_rows(tables.sessions) if row["PartitionKey"] == "~erasing"}
    marked = {row["PartitionKey"] async for row in all_rows(tables.sessions) if "removal" in row}

    host = start()
    async with client_of_ann(host) as client:
        for session in paths:
            if session.endswith("used"):
                await answer(client, "at last", session)
        await asyncio.to_thread(host.fire)
        remaining = {row["session"] async for row in all_rows(tables.sessions) if row["PartitionKey"] == "~erasing"}
        with_content = [row async for row in all_rows(tables.sessions) if "walrus" in str(row)]
        listed = {row["RowKey"].split("~")[-1] for row in with_content if row["PartitionKey"].startswith("~owner-")}
        undeleted = {row["PartitionKey"] for row in with_content if not row["PartitionKey"].startswith("~owner-")}
        assert listed == undeleted
        assert undeleted == (set(paths) if step is deletion_insert or (step is deletion_mark and not done) else set())
        assert remaining <= announced - marked
        erased = {session for session in paths if session.startswith("erased")}
        await assert_conserved(tables, fake, erased=erased)
        statuses = {session: (await client.get(f"/api/sessions/{session}")).status_code for session in paths}
        assert statuses == {session: 404 if session == "erased" and not undeleted else 200 for session in paths}


async def test_costs_add_up_after_storage_crashes_under_load(
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
            load = [asyncio.create_task(retry_until_answered(api, f"s{index}")) for index in range(12)]
            for billed in (8, 16, 24):
                while len(fake.meter) < billed:  # noqa: ASYNC110 - the fake's thread sets no asyncio.Event
                    await asyncio.sleep(0.005)
                storage.kill()
                await asyncio.to_thread(storage.start)
            await asyncio.gather(*load)

            await services().turns.finish()
            tables = Tables(service, prefix)
            await expire(tables, [f"s{index}" for index in range(12)])
            await services().maintenance.run()
            await asyncio.gather(*(answer(api, "at last", f"s{index}") for index in range(12)))
            await assert_conserved(tables, fake)
    finally:
        storage.kill()


async def retry_until_answered(api: httpx.AsyncClient, session: str) -> None:
    """Three turns, each retried with its Idempotency-Key until it is answered."""
    deadline = time.monotonic() + 2 * MAX_WAIT_S
    for number in range(3):
        body, key = {"session_id": session, "message": f"{number}"}, {"idempotency-key": f"{number}"}
        while (response := await api.post("/api/chat", json=body, headers=key)).status_code != 200:
            assert response.status_code in (409, 503)
            assert time.monotonic() < deadline
            await asyncio.sleep(0.05)
