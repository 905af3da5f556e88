"""Budgets hold while processes are killed, answers of storage are lost, and requests stall and arrive late.

Several hosts share the budgets of four callers and their total. A sample is taken again and again: what the model
service has billed is at most what is spent and held, which is at most the limit. After recovery the counters are
exactly what the ledger rows say, and these what was billed.
"""

import asyncio
import gc
import json
import random
import re
from collections import Counter
from collections.abc import Callable
from contextlib import suppress
from dataclasses import dataclass, field
from decimal import Decimal
from pathlib import Path
from typing import Any

import httpx
import pytest

from local.keys import line
from shared.domain.calls import LedgerEntry, State
from shared.domain.limits import TOTAL
from shared.domain.limits import Counter as LimitCounter
from shared.storage.counter_rows import to_counter
from shared.storage.session_rows import HEAD
from tests.conftest import EMBEDDING, Tables, with_embeddings
from tests.support.azure_openai import AzureOpenAI, Fault, Reply, Request, Script
from tests.support.chat_client import bill_of, until
from tests.support.conservation import assert_conserved, assert_counted
from tests.support.processes import Host, HostFactory
from tests.support.proxy import Action, Answer, Close, Match, Stall, TcpProxy
from tests.turns.test_crash import expire

KEYS = {name: f"a-client-key-of-{name}" for name in ("ann", "ben", "cem", "dea")}
FALLBACK = "small"  # its price is in chat_client
MAX_TOKENS = 60
USED_UP, BUSY = 429, 409
STOPPED, STOPPING, GONE = 200, 202, 404
ROUTES = ("completions", "responses", "chat", "chat")
# 502: the model service failed. 503: storage failed, or the model service did not start an answer.
EXPECTED = {200, BUSY, USED_UP, 502, 503}


@dataclass(frozen=True)
class Size:
    """`turns`: at once at each host. `kill_every`: seconds between two kills. `outages`: of storage, of 2 s each."""

    hosts: int
    turns: int
    seconds: float
    kill_every: float
    usd: Decimal  # of a caller, per day
    outages: int = 0


def limits(usd: Decimal) -> str:
    """Budgets of each caller, with a fallback, and a total below the callers' together."""
    own = {"usd_per_day": str(usd), "usd_per_month": str(2 * usd), "fallback_deployment": FALLBACK}
    total = {"usd_per_day": str(3 * usd), "usd_per_month": str(6 * usd), "max_tokens": MAX_TOKENS}
    return json.dumps({"*": own, TOTAL: total})


def billed(fake: AzureOpenAI) -> Decimal:
    return sum((bill_of(entry) for entry in tuple(fake.meter)), Decimal(0))


@dataclass
class Chaos:
    """Hosts under load, and what disturbs them."""

    size: Size
    rng: random.Random
    start: Callable[[], Host]
    storage: TcpProxy
    fake: AzureOpenAI
    tables: Tables
    hosts: list[Host] = field(default_factory=list)
    sessions: dict[str, str] = field(default_factory=dict)  # the caller of each
    responses: dict[str, list[str]] = field(default_factory=dict)  # of each caller: ids that were answered
    conversations: dict[str, str] = field(default_factory=dict)  # of each caller, one
    outcomes: Counter[object] = field(default_factory=Counter)
    kills: int = 0
    stops: int = 0
    embeddings: int = 0
    samples: int = 0
    least_left: Decimal = Decimal(1)  # USD of the total's budget per day, in any sample

    async def run(self) -> None:
        self.hosts = [await asyncio.to_thread(self.start) for _ in range(self.size.hosts)]
        disturbing = [self._kill_hosts, self._disturb_storage, self._stop_storage, self._stop_turns, self._sample]
        async with asyncio.TaskGroup() as group, client() as http:
            turns = [self._take_turns(http, index) for index in range(self.size.hosts * self.size.turns)]
            turns += [self._embed(http, caller) for caller in KEYS]
            tasks = [group.create_task(each) for each in (*turns, *(each() for each in disturbing))]
            await asyncio.sleep(self.size.seconds)
            await until(self._has_seen_enough)
            for task in tasks:
                task.cancel()
        for host in self.hosts:
            await asyncio.to_thread(host.kill)
        self.storage.clear()
        await self.storage.until(lambda: self.storage.busy == 0)  # what is late has arrived

    async def _has_seen_enough(self) -> bool | None:
        """However slow the machine is."""
        has_fallen_back = any(request.body["model"] == FALLBACK for request in tuple(self.fake.requests))
        seen = (self.outcomes[200], self.outcomes[USED_UP], self.embeddings, has_fallen_back, self.samples > 10)
        return all(seen) or None

    async def _take_turns(self, http: httpx.AsyncClient, index: int) -> None:
        turn = 0
        while True:
            session, caller = f"s{index}-{turn}", list(KEYS)[index // 4 % len(KEYS)]
            route = ROUTES[index % len(ROUTES)]
            if route == "chat":
                self.sessions[session] = caller
            status: object = 200
            while status in (200, USED_UP):
                turn += 1
                host = self.hosts[index % len(self.hosts)]
                try:
                    async with asyncio.timeout(self.rng.choice((0.3, 20, 20, 20))):  # some callers hang up
                        status = await self._send(http, host, caller, route, session, turn)
                except (httpx.TransportError, TimeoutError) as error:
                    status = type(error).__name__
                self.outcomes[status] += 1
                await asyncio.sleep(0.02 if status == 200 else self.rng.uniform(0.05, 0.3))

    async def _send(self, http: httpx.AsyncClient, host: Host, caller: str, route: str, session: str, turn: int) -> int:
        headers, text = {"authorization": f"Bearer {KEYS[caller]}"}, f"message {turn} of {session}"
        body: dict[str, Any]
        if route == "responses":
            return await self._respond(http, host, caller, text)
        if route == "completions":
            path, body = (
                "openai/v1/chat/completions",
                {"model": "chat", "messages": [{"role": "user", "content": text}]},
            )
        else:
            path, body = "api/chat", {"message": text, "session_id": session}
        body |= {"stream": self.rng.random() < 0.5}
        response = await http.post(f"{host.base}/{path}", json=body, headers=headers)
        assert response.status_code in EXPECTED, response.text
        return response.status_code

    async def _respond(self, http: httpx.AsyncClient, host: Host, caller: str, text: str) -> int:
        """A response of any kind: that begins, continues an older one, is of the caller's conversation, or not stored.
        Sometimes another one is deleted meanwhile."""
        headers, answered = {"authorization": f"Bearer {KEYS[caller]}"}, self.responses.setdefault(caller, [])
        body: dict[str, Any] = {"model": "chat", "input": text, "stream": self.rng.random() < 0.5}
        match self.rng.choice(("begin", "continue", "continue", "conversation", "unstored")):
            case "continue" if answered:
                body["previous_response_id"] = self.rng.choice(answered[-4:])
            case "conversation":
                await self._begin_conversation(http, host, caller)
                if caller in self.conversations:
                    body["conversation"] = self.conversations[caller]
            case "unstored":
                body["store"] = False
        if self.rng.random() < 0.2:
            headers["idempotency-key"] = f"{text}{'k' * 22}"
        sent = [http.post(f"{host.base}/openai/v1/responses", json=body, headers=headers)]
        if answered and self.rng.random() < 0.1:
            sent.append(http.delete(f"{host.base}/openai/v1/responses/{self.rng.choice(answered)}", headers=headers))
        response, *deleted = await asyncio.gather(*sent)
        assert {each.status_code for each in deleted} <= {200, 400, 404, 503}
        if response.status_code == 400:
            assert response.json()["error"]["code"] in ("conversation_locked", "previous_response_not_found", None)
            return BUSY
        if response.status_code == 200 and body.get("store", True):
            answered += re.findall(r"resp_[0-9a-f]{40}", response.text)[:1]
        assert response.status_code in EXPECTED, response.text
        return response.status_code

    async def _begin_conversation(self, http: httpx.AsyncClient, host: Host, caller: str) -> None:
        if caller not in self.conversations:
            headers = {"authorization": f"Bearer {KEYS[caller]}"}
            created = await http.post(f"{host.base}/openai/v1/conversations", json={}, headers=headers)
            if created.status_code == 200:
                self.conversations.setdefault(caller, created.json()["id"])

    async def _embed(self, http: httpx.AsyncClient, caller: str) -> None:
        headers = {"authorization": f"Bearer {KEYS[caller]}"}
        while True:
            host, text = self.rng.choice(self.hosts), f"text {self.rng.random()}"
            body = {"model": EMBEDDING, "input": self.rng.choice((text, [text, "more"], [[1, 2, 3]]))}
            try:
                async with asyncio.timeout(self.rng.choice((0.1, 20, 20, 20))):  # some callers hang up
                    response = await http.post(f"{host.base}/openai/v1/embeddings", json=body, headers=headers)
                    assert response.status_code in EXPECTED, response.text
                    self.embeddings += response.status_code == 200
            except (httpx.TransportError, TimeoutError):
                pass
            await asyncio.sleep(self.rng.uniform(0.02, 0.2))

    async def _kill_hosts(self) -> None:
        while True:
            await asyncio.sleep(self.size.kill_every * self.rng.uniform(0.5, 1.5))
            index = self.rng.randrange(len(self.hosts))
            await asyncio.to_thread(self.hosts[index].kill)
            self.kills += 1
            self.hosts[index] = await asyncio.to_thread(self.start)

    async def _disturb_storage(self) -> None:
        """Requests and answers are lost, stall or are refused; a stalled request arrives even if its host is killed."""
        transaction = Match("POST", r"\$batch$", body="usage")
        matches = [transaction, transaction, Match("POST", r"\$batch$"), Match(path="usage")]
        lost_answer = Close(after_answer=True)
        while True:
            await asyncio.sleep(self.rng.uniform(0.02, 0.12))
            seconds = self.rng.uniform(0.1, 2)
            actions: list[Action] = [
                *(lost_answer, lost_answer, lost_answer, Close(), Answer(503), Answer(503, after_answer=True)),
                *(Stall(seconds=seconds), Stall(seconds=seconds, after_answer=True)),
            ]
            self.storage.on(self.rng.choice(matches), self.rng.choice(actions))

    async def _stop_storage(self) -> None:
        """Longer than requests are repeated."""
        for _ in range(self.size.outages):
            await asyncio.sleep(self.size.seconds / (self.size.outages + 1) - 2)
            await asyncio.to_thread(self.storage.down)
            await asyncio.sleep(2)
            self.storage.up()

    async def _stop_turns(self) -> None:
        """Most of them run on another host."""
        async with client() as http:
            while True:
                await asyncio.sleep(self.rng.uniform(0.05, 0.2))
                for session, caller in self.rng.sample([*self.sessions.items()], min(2, len(self.sessions))):
                    base, headers = self.rng.choice(self.hosts).base, {"authorization": f"Bearer {KEYS[caller]}"}
                    with suppress(httpx.TransportError):
                        response = await http.post(f"{base}/api/sessions/{session}/stop", headers=headers)
                        assert response.status_code in (STOPPED, STOPPING, GONE, BUSY, 503), response.text
                        self.stops += response.status_code in (STOPPED, STOPPING)

    async def _sample(self) -> None:
        while True:
            before = billed(self.fake)
            totals = [counter for counter in await self._counters() if counter.name == TOTAL]
            assert before <= sum(counter.spent + counter.held for counter in totals)
            self.samples += 1
            await asyncio.sleep(0.01)

    async def _counters(self) -> list[LimitCounter]:
        """Each within its limits."""
        rows = self.tables.usage.query("RowKey ge '!' and RowKey lt '\"'", {})
        counters = [to_counter(row) async for row in rows]
        for counter in counters:
            budget = self.size.usd * (3 if counter.name == TOTAL else 1)
            assert counter.day_spent + counter.day_held <= budget, counter
            assert counter.spent + counter.held <= 2 * budget, counter
            if counter.name == TOTAL:
                self.least_left = min(self.least_left, budget - counter.day_spent - counter.day_held)
        return counters


def client() -> httpx.AsyncClient:
    unlimited = httpx.Limits(max_connections=None, max_keepalive_connections=None)
    return httpx.AsyncClient(verify=False, trust_env=False, timeout=60, limits=unlimited)


def make_unreliable(fake: AzureOpenAI, rng: random.Random) -> None:
    """Make the model service fail now and then, billed and not."""
    answer = fake.responder
    faults = [Fault("reset"), Fault("reset", after=2), Fault("no_usage"), Fault("status", 503)]

    def respond(request: Request) -> Script:
        return rng.choice(faults) if rng.random() < 0.1 else answer(request)

    def embed(request: Request) -> Script:
        return rng.choice(faults) if rng.random() < 0.1 else Reply()

    fake.responder, fake.embedding_responder, fake.chunk_delay = respond, embed, 0.01


async def recover(chaos: Chaos, host: Host) -> None:
    heads = chaos.tables.sessions.query("RowKey eq @head", {"head": HEAD})
    chaos.sessions |= {
        row["PartitionKey"]: row["owner"].removeprefix("key:") async for row in heads
    }  # with those of responses
    await expire(chaos.tables, chaos.sessions)
    for _ in range(5):
        await asyncio.to_thread(host.fire)
        if not [row async for row in chaos.tables.usage.query("state eq 'open'", {})]:
            return


async def continue_sessions(chaos: Chaos, host: Host) -> None:
    """One more turn in each session, which frees it. The budgets are higher now."""
    one_of_a_few = asyncio.Semaphore(8)

    async def take_turn(http: httpx.AsyncClient, session: str, caller: str) -> None:
        headers = {"authorization": f"Bearer {KEYS[caller]}"}
        async with one_of_a_few:
            body = {"message": "at last", "session_id": session}
            response = await http.post(f"{host.base}/api/chat", json=body, headers=headers)
            assert response.status_code == 200, response.text

    async with client() as http, asyncio.TaskGroup() as group:
        for session, caller in chaos.sessions.items():
            group.create_task(take_turn(http, session, caller))


def assert_exact(counters: dict[str, LimitCounter], entries: list[LedgerEntry], fake: AzureOpenAI) -> None:
    """Held is the worst case of the unaccounted and stopped calls; spent are the bills of the settled ones."""
    bills = {entry.call_id: bill_of(entry) for entry in fake.meter}
    for name, counter in counters.items():
        calls = [entry.call for entry in entries if name in entry.limits]
        held = [call for call in calls if call.state in (State.UNACCOUNTED, State.STOPPED)]
        assert counter.held == sum(call.worst_case or 0 for call in held)
        assert counter.spent == sum(bills[call.id] for call in calls if call.state is State.SETTLED)
    assert billed(fake) <= counters[TOTAL].spent + counters[TOTAL].held


SIZES = [
    pytest.param(Size(hosts=3, turns=5, seconds=4, kill_every=1, usd=Decimal("0.002")), id="short"),
    pytest.param(
        Size(hosts=8, turns=16, seconds=40, kill_every=2, usd=Decimal("0.04"), outages=2),
        id="long",
        marks=pytest.mark.acceptance,
    ),
]


@pytest.mark.filterwarnings("ignore:unclosed :ResourceWarning")  # of connections cut while they were made
@pytest.mark.parametrize("size", SIZES)
async def test_budgets_hold_through_kills_and_faults(
    host_factory: HostFactory,
    storage: TcpProxy,
    environ: dict[str, str],
    fake: AzureOpenAI,
    tables: Tables,
    size: Size,
    tmp_path: Path,
    request: pytest.FixtureRequest,
) -> None:
    seed = random.randrange(2**32) if request.node.get_closest_marker("acceptance") else 14
    print(f"seed {seed}")  # shown if the test fails
    rng, started = random.Random(seed), list[Host]()
    environ |= {"CLIENT_KEYS": ",".join(line(*item) for item in KEYS.items()), "LIMITS": limits(size.usd)}
    prices = json.loads(environ["PRICES"]) | {FALLBACK: {"input": 0.05, "output": 0.4}}
    environ |= {"AZURE_OPENAI_DEPLOYMENTS": f"chat, {FALLBACK}", "PRICES": json.dumps(prices)}
    environ = with_embeddings(environ)

    def start() -> Host:
        started.append(host_factory.host(environ, tmp_path / f"host-{len(started)}.log"))
        return started[-1]

    responder = fake.responder
    make_unreliable(fake, rng)
    chaos = Chaos(size, rng, start, storage, fake, tables)
    try:
        await chaos.run()
        print(f"{chaos.outcomes}, {chaos.kills} kills, {chaos.stops} stops, {chaos.samples} samples")
        print(f"{chaos.embeddings} embeddings")
        print(f"{chaos.least_left} USD left at least")
        environ["LIMITS"], fake.responder = limits(100 * size.usd), responder
        host = await asyncio.to_thread(start)
        for after in (recover, continue_sessions):
            await after(chaos, host)
            entries = await assert_conserved(tables, fake, released=after is continue_sessions)
            assert_exact(await assert_counted(tables, entries), entries, fake)
    finally:
        for host in started:
            host.kill()
        gc.collect()  # such connections, while the filter applies
