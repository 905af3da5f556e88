"""SIGKILL at every request to storage of whatever changes an owner's list: afterwards it is exact."""

import asyncio
from collections.abc import Awaitable, Callable
from contextlib import suppress

import httpx
import pytest

from shared.domain.hashing import sha256_hex
from tests.conftest import Tables
from tests.support.chat_client import JSON, answer, expire_lease, ok_json
from tests.support.conservation import all_rows
from tests.support.processes import Host, Start
from tests.support.proxy import Match, Stall, TcpProxy
from tests.support.responses_api import KEYS, client_of_ann

OWNER = f"~owner-{sha256_hex('key:ann')}"
ANONYMOUS = {"authorization": ""}
SECRET = "walrus"
DAY_S = 86_400
MAX_REQUESTS = 40  # of one change


async def nothing(api: httpx.AsyncClient, tables: Tables, session: str) -> None:
    """The session does not exist."""


async def begun(api: httpx.AsyncClient, tables: Tables, session: str) -> None:
    await answer(api, f"{SECRET} of {session}", session)


async def begun_yesterday(api: httpx.AsyncClient, tables: Tables, session: str) -> None:
    await begun(api, tables, session)
    head = await tables.sessions.get(session, "head")
    assert head
    place = f"{int(head['places']) + DAY_S:010}"
    row = await tables.sessions.get(OWNER, f"{head['places']}~{session}")
    assert row
    await tables.sessions.delete(OWNER, row["RowKey"], "*")
    await tables.sessions.put({"PartitionKey": OWNER, "RowKey": f"{place}~{session}", "title": row["title"]})
    await tables.sessions.merge({"PartitionKey": session, "RowKey": "head", "places": place}, head["etag"])


async def begun_without_owner(api: httpx.AsyncClient, tables: Tables, session: str) -> None:
    body = {"message": f"{SECRET} of {session}", "session_id": session}
    ok_json(await api.post("/api/chat", json=body, headers=ANONYMOUS))


def turn(api: httpx.AsyncClient, session: str) -> Awaitable[httpx.Response]:
    return api.post("/api/chat", json={"message": f"{SECRET} of {session}", "session_id": session})


def change(**fields: object) -> "Request":
    return lambda api, session: api.patch(f"/api/sessions/{session}", json=fields)


def claim(api: httpx.AsyncClient, session: str) -> Awaitable[httpx.Response]:
    return api.post(f"/api/sessions/{session}/claim")


def clear(api: httpx.AsyncClient, session: str) -> Awaitable[httpx.Response]:
    return api.delete(f"/api/sessions/{session}/messages")


def erase(api: httpx.AsyncClient, session: str) -> Awaitable[httpx.Response]:
    return api.delete(f"/api/sessions/{session}")


def erase_all(api: httpx.AsyncClient, session: str) -> Awaitable[httpx.Response]:
    return api.delete("/api/me/sessions")


Request = Callable[[httpx.AsyncClient, str], Awaitable[httpx.Response]]
Preparation = Callable[[httpx.AsyncClient, Tables, str], Awaitable[None]]
CHANGES: dict[str, tuple[Preparation, Request]] = {
    "first turn": (nothing, turn),
    "first turn of a day": (begun_yesterday, turn),
    "title": (begun, change(title=f"{SECRET} renamed")),
    "pin": (begun, change(pinned=True)),
    "archive": (begun_yesterday, change(archived=True)),
    "claim": (begun_without_owner, claim),
    "clear": (begun, clear),
    "erase": (begun, erase),
    "erase all": (begun, erase_all),
}


@pytest.fixture
def environ(environ: dict[str, str]) -> dict[str, str]:
    return environ | KEYS


async def titles(api: httpx.AsyncClient) -> dict[str, str | None]:
    """Of the sessions in both lists; a session that is listed twice fails."""
    sessions: list[JSON] = []
    for archived in ("false", "true"):
        sessions += ok_json(await api.get("/api/sessions", params={"archived": archived, "limit": 50}))["sessions"]
    answered = {session["session_id"]: session["title"] for session in sessions}
    assert len(answered) == len(sessions)
    return answered


async def crashed_at(host: Host, storage: TcpProxy, change: Awaitable[httpx.Response], nth: int, fate: str) -> bool:
    """Kill the host at the change's nth request to storage. False if the change has fewer."""
    rule = storage.on(Match(), Stall(after_answer=fate == "done"), nth=nth)
    running = asyncio.ensure_future(change)
    reached = asyncio.ensure_future(rule.until_reached())
    await asyncio.wait([running, reached], return_when=asyncio.FIRST_COMPLETED)
    if not rule.gate.reached:
        rule.gate.arrive()
        await reached
        storage.clear()
        return False
    await asyncio.to_thread(host.kill)
    if fate == "late":
        rule.release()
    await storage.until(lambda: storage.busy == (fate != "late"))
    storage.down()
    storage.clear()
    storage.up()
    await asyncio.gather(running, return_exceptions=True)
    return True


async def assert_exact(api: httpx.AsyncClient, tables: Tables) -> dict[str, str | None]:
    """The list is that of the stored sessions, each with one row, where its head says. Returns their titles."""
    await titles(api)  # corrects what is out of date
    shown = await titles(api)
    stored = [row async for row in all_rows(tables.sessions)]
    heads = {row["PartitionKey"]: row for row in stored if row["RowKey"] == "head" and row.get("owner")}
    rows = [row for row in stored if row["PartitionKey"] == OWNER and row["RowKey"].split("~")[-1] in heads]
    assert sorted((row["RowKey"], row.get("title")) for row in rows) == sorted(
        (f"{head['places'].split(',')[-1]}~{session}", head.get("title")) for session, head in heads.items()
    )
    assert shown == {session: head.get("title") for session, head in heads.items()}
    return shown


# "late": the request arrives after the crash. "done": storage had handled it.
@pytest.mark.parametrize("fate", ["lost", "late", "done"])
@pytest.mark.parametrize(
    "name", [name if name == "claim" else pytest.param(name, marks=pytest.mark.acceptance) for name in CHANGES]
)
async def test_list_is_exact_after_a_crash_at_any_request(
    start: Start, storage: TcpProxy, tables: Tables, name: str, fate: str
) -> None:
    (prepare, request), host = CHANGES[name], start()
    for nth in range(1, MAX_REQUESTS):
        session = f"{nth:032x}"
        print(f"request {nth}")
        async with client_of_ann(host) as api:
            await prepare(api, tables, session)
            if not await crashed_at(host, storage, request(api, session), nth, fate):
                break
        host = start()
        async with client_of_ann(host) as api:
            with suppress(AssertionError):  # it has no lease
                await expire_lease(tables, session)
            if request is not turn or nth % 2:
                assert (await request(api, session)).status_code in (200, 204, 404)
            await asyncio.to_thread(host.fire)
            listed = await assert_exact(api, tables)
        if request in (clear, erase, erase_all):
            assert listed.get(session) is None
            assert (session in listed) is (request is clear)
            assert SECRET not in str([row async for row in all_rows(tables.sessions)])
        else:
            assert session in listed or (request is turn and not nth % 2)
    assert 1 < nth < MAX_REQUESTS - 1
