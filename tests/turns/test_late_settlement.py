"""A turn that is settled after its session has moved on: one host can't reach storage for longer than its lease, and
another one answers the client's retry. Two hosts, one storage; docs/protocol.py explores the same cases."""

import asyncio
from collections.abc import AsyncIterator, Iterator
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import httpx
import pytest

from local.keys import line, new_key
from shared.domain.calls import State
from shared.storage import session_rows as rows
from tests.conftest import Tables, storage_settings
from tests.support.azure_openai import AzureOpenAI, Hold
from tests.support.chat_client import JSON, expire_lease, ok_json, stored
from tests.support.conservation import all_rows, assert_conserved
from tests.support.faults import session_transaction, stall_request
from tests.support.processes import Host, HostFactory
from tests.support.proxy import TcpProxy
from tests.support.rude_upstream import with_rude_fake_in_acceptance

pytestmark = with_rude_fake_in_acceptance

KEY = "5f0c6f0e-4d0b-4c58-8f0a-1d2b3c4d5e6f"
CLIENT_KEY = new_key()


@pytest.fixture(scope="module")
def host_factory() -> Iterator[HostFactory]:
    with HostFactory() as host_factory:
        yield host_factory


@dataclass(frozen=True)
class Site:
    """A host and the storage proxy between it and the tables."""

    client: httpx.AsyncClient
    storage: TcpProxy


@pytest.fixture
async def first(site: "list[Site]") -> Site:
    return site[0]


@pytest.fixture
async def second(site: "list[Site]") -> Site:
    return site[1]


@pytest.fixture
async def site(
    host_factory: HostFactory,
    storage: TcpProxy,
    service_port: int,
    on_cosmos: bool,
    environ: dict[str, str],
    tmp_path: Path,
) -> AsyncIterator[list[Site]]:
    environ["CLIENT_KEYS"] = line("ann", CLIENT_KEY)
    with TcpProxy(service_port) as other:
        hosts: list[Host] = []
        clients: list[httpx.AsyncClient] = []
        for proxy in (storage, other):
            environ |= storage_settings(proxy.port, on_cosmos)
            hosts.append(host_factory.host(environ, tmp_path / f"host-{len(hosts)}.log"))
            clients.append(hosts[-1].client())
        yield [Site(client, proxy) for client, proxy in zip(clients, (storage, other), strict=True)]
        for client, host in zip(clients, hosts, strict=True):
            await client.aclose()
            host.kill()


@dataclass(frozen=True)
class Sent:
    """One request, sent again and again under one Idempotency-Key."""

    path: str
    body: JSON
    headers: dict[str, str]

    async def to(self, site: Site) -> httpx.Response:
        headers = {"idempotency-key": KEY, **self.headers}
        return await site.client.post(self.path, json=self.body, headers=headers)


CHAT = Sent("/api/chat", {"message": "hi", "session_id": "s"}, {})
NEW_SESSION = Sent("/api/chat", {"message": "hi"}, {})
OPENAI = Sent(
    "/openai/v1/chat/completions",
    {"model": "chat", "messages": [{"role": "user", "content": "hi"}]},
    {"x-session-id": "s", "authorization": f"Bearer {CLIENT_KEY}"},
)
REQUESTS = {"api/chat": CHAT, "api/chat, new session": NEW_SESSION, "openai/*": OPENAI}
ALL = pytest.mark.parametrize("sent", REQUESTS.values(), ids=REQUESTS)


async def started(sent: Sent, site: Site, hold: Hold) -> "asyncio.Task[httpx.Response]":
    """Send the request, and return once the model has it."""
    request = asyncio.create_task(sent.to(site))
    await hold.until_reached()
    return request


async def sessions(tables: Tables) -> list[str]:
    return [row["PartitionKey"] async for row in all_rows(tables.sessions) if row["RowKey"] == rows.HEAD]


def message_of(response: httpx.Response) -> Any:
    body = ok_json(response)
    return body["message"] if "message" in body else body["choices"][0]["message"]


@ALL
async def test_late_answer_is_replayed_after_a_failed_turn_used_its_key(
    first: Site, second: Site, fake: AzureOpenAI, tables: Tables, sent: Sent
) -> None:
    with fake.hold() as hold:
        late = await started(sent, first, hold)
        [session] = await sessions(tables)
        first.storage.down()
        await expire_lease(tables, session)
        fake.fault(429)
        assert (await sent.to(second)).status_code == 429
    first.storage.up()
    answer = await late

    again = [await sent.to(site) for site in (second, first)]

    assert [response.headers["idempotent-replayed"] for response in again] == ["true"] * 2
    assert [message_of(response) for response in again] == [message_of(answer)] * 2
    assert len(fake.requests) == 2
    assert len(fake.meter) == 1
    await assert_conserved(tables, fake)


async def test_reservation_that_overlooked_a_late_answer_fails_and_the_answer_is_replayed(
    first: Site, second: Site, fake: AzureOpenAI, tables: Tables
) -> None:
    with fake.hold() as hold:
        late = await started(CHAT, first, hold)
        await expire_lease(tables)
        with stall_request(second.storage, session_transaction("s"), nth=2) as reservation:  # the first one recovers
            retry = asyncio.create_task(CHAT.to(second))
            await reservation.until_reached()
            hold.release()
            answer = await late
    refused = await retry
    assert (refused.status_code, refused.json()["error"]["code"]) == (409, "session_busy")

    assert ok_json(await CHAT.to(second)) == ok_json(answer)
    assert len(fake.requests) == 1
    await assert_conserved(tables, fake)


async def test_late_answer_without_usage_is_stored_and_replayed_though_recovery_raised_its_call_as_high(
    first: Site, second: Site, fake: AzureOpenAI, tables: Tables
) -> None:
    fake.fault("no_usage")
    with fake.hold() as hold:
        late = await started(CHAT, first, hold)
        await expire_lease(tables)
        fake.fault(429)
        assert (await CHAT.to(second)).status_code == 429
    answer = ok_json(await late)
    assert (answer["message"]["content"], answer["cost_usd"]) == ("echo: hi", None)

    assert ok_json(await CHAT.to(second)) == answer
    _, [turn, _] = await stored(tables)
    assert (turn.call.state, turn.call.reason) == (State.UNACCOUNTED, "interrupted")
    assert len(fake.requests) == 2
    await assert_conserved(tables, fake)


async def test_newest_of_several_late_answers_is_replayed(
    first: Site, second: Site, fake: AzureOpenAI, tables: Tables
) -> None:
    with fake.hold() as hold, fake.hold() as next_hold:
        late = await started(CHAT, first, hold)
        await expire_lease(tables)
        later = await started(CHAT, second, next_hold)
        await expire_lease(tables)
        fake.fault(429)
        assert (await CHAT.to(first)).status_code == 429
        hold.release()
        assert ok_json(await late)["turn"] == 1
        assert ok_json(await CHAT.to(second))["turn"] == 1
    assert ok_json(await later)["turn"] == 2

    again = ok_json(await CHAT.to(first))

    assert again["turn"] == 2
    assert again["session"] == ok_json(await later)["session"]
    assert len(fake.requests) == 3
    await assert_conserved(tables, fake)


async def test_record_of_a_key_keeps_only_turns_that_may_still_be_answered(
    first: Site, second: Site, fake: AzureOpenAI, tables: Tables
) -> None:
    async def record() -> tuple[int, ...]:
        [row] = [row async for row in all_rows(tables.sessions) if row["RowKey"].startswith("used-")]
        return rows.to_record(row).turns

    for _ in range(2):  # they failed, which can't change any more
        fake.fault(500)
        assert (await CHAT.to(first)).status_code == 503
    assert await record() == (2,)

    with fake.hold() as hold:
        late = await started(CHAT, first, hold)
        await expire_lease(tables)
        for latest in (4, 5):
            fake.fault(500)
            assert (await CHAT.to(second)).status_code == 503
            assert await record() == (3, latest)
    assert ok_json(await late)["turn"] == 3

    _, turns = await stored(tables)
    assert [turn.call.state for turn in turns] == [State.FAILED] * 2 + [State.SETTLED] + [State.FAILED] * 2
    assert ok_json(await CHAT.to(second))["turn"] == 3
    await assert_conserved(tables, fake)
