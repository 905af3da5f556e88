"""What the app adds before the first token: `python -m benchmarks.first_token [--rounds 100] [--turns 1000]`.

One connection calls a fake model service directly, and through the app: the first and the second streamed turn of a
session, a turn of a session with 1,000 turns, and streamed calls of openai/*. They alternate, LIMITS are set, and
Azurite runs on the same cores. The model sends its first token at once and waits 20 ms before the rest, so that only
the first token is timed.

It also prints the requests to storage of a turn, counted by a proxy in front of Azurite, and where the time goes: first
turns in this process, without HTTP, with the time of each request to storage.
"""

import argparse
import asyncio
import re
import time
from collections import Counter
from collections.abc import Callable
from contextlib import ExitStack
from dataclasses import dataclass, replace
from statistics import median
from typing import ClassVar
from unittest.mock import patch

import aiohttp

from benchmarks.machine import Usage, cpu_seconds, table_service
from benchmarks.upstream import started
from benchmarks.versus import KEY, System, app, completion, environ
from shared.domain.clock import SystemClock
from shared.domain.principal import Principal
from shared.services import Services
from shared.settings import Settings
from shared.storage import connect
from shared.storage.table_service import Request, Response, TableService
from shared.turns.events import Delta, Opened
from shared.turns.requests import ComposedRequest
from tests.support.proxy import TcpProxy

MODEL = ("model", "0.02", "1")
MESSAGE = "Count to a hundred."
WARM_UP = 5  # rounds that do not count
QUIET_S = 0.03  # after an answer, in which the ledger is settled; ten times that where requests are counted
_TABLE = re.compile(rb"/bhttp(sessions|usage|daily)\b")


@dataclass(frozen=True)
class Sample:
    """Milliseconds up to the first token. `called`: until the model was called. `cpu`: of the process, then of its
    storage."""

    called: float
    token: float
    cpu: tuple[float, ...]


def turn_of(system: System, session: str, name: str) -> System:
    """Streamed turns of one session."""
    return replace(system, name=name, body=lambda: {"message": MESSAGE, "session_id": session})


async def sample(client: aiohttp.ClientSession, system: System, upstream: int) -> Sample:
    before, sent = [cpu_seconds(pid) for pid in system.pids], time.monotonic()
    body, headers = system.body() | {"stream": True}, {"authorization": f"Bearer {KEY}"}
    received, first, cpu = b"", 0.0, tuple[float, ...]()
    async with client.post(system.url, json=body, headers=headers) as response:
        async for chunk in response.content.iter_any():
            received += chunk
            if not first and b"word0" in received:
                first = time.monotonic()
                cpu = tuple((cpu_seconds(pid) - start) * 1e3 for pid, start in zip(system.pids, before, strict=True))
    if response.status != 200 or b"word63" not in received:
        raise RuntimeError(f"{system.name}: {response.status} {received[:300]!r}")
    async with client.get(f"http://127.0.0.1:{upstream}/") as response:
        called = float(await response.text())
    await asyncio.sleep(QUIET_S)
    return Sample((called - sent) * 1e3, (first - sent) * 1e3, cpu)


async def alternate(systems: Callable[[int], list[System]], upstream: int, rounds: int) -> dict[str, list[Sample]]:
    """Samples by the system's name, in the order of the rounds. `systems`: those of a round."""
    samples: dict[str, list[Sample]] = {}
    async with aiohttp.ClientSession(connector=aiohttp.TCPConnector(limit=1)) as client:
        for number in range(rounds + WARM_UP):
            for system in systems(number):
                one = await sample(client, system, upstream)
                if number >= WARM_UP:
                    samples.setdefault(system.name, []).append(one)
    return samples


async def count_requests(system: System, proxy: TcpProxy, turns: int) -> None:
    """Take that many turns of a session, and print the requests of the second and of the last."""
    async with aiohttp.ClientSession() as client:
        for number in range(1, turns + 1):
            watched = number in (2, turns)
            if watched:
                await asyncio.sleep(10 * QUIET_S)
            before = len(proxy.seen)
            async with client.post(system.url, json=system.body() | {"stream": True}) as response:
                if b"event: done" not in await response.read():
                    raise RuntimeError("the turn has no answer")
            if watched:
                await asyncio.sleep(10 * QUIET_S)
                kinds = [kind(each.method, each.path, each.body) for each in proxy.seen[before:]]
                print(f"storage requests of turn {number:,}: {len(kinds)} ({', '.join(kinds)})", flush=True)
    sums = Counter(kind(each.method, each.path, each.body) for each in proxy.seen)
    each_kind = ", ".join(f"{name} {number / turns:.3f}" for name, number in sums.most_common())
    print(f"storage requests of all {turns:,} turns: {len(proxy.seen) / turns:.3f} a turn ({each_kind})")


def kind(method: str, path: str, body: bytes | None) -> str:
    table = _TABLE.search(path.encode() + b"\n" + (body or b""))
    name = "transaction" if "$batch" in path else {"GET": "read", "POST": "insert", "PUT": "update"}.get(method, method)
    return f"{name} of {table[1].decode() if table else path}"


class TimedService(TableService):
    """Notes when each request began and ended, in monotonic seconds."""

    spans: ClassVar[list[tuple[str, float, float]]] = []

    async def send(self, request: Request) -> Response:
        began = time.monotonic()
        try:
            return await super().send(request)
        finally:
            name = kind(request.method, f"/{request.resource}", request.body)
            self.spans.append((name, began, time.monotonic()))


async def break_down(upstream: int, tables: int, rounds: int) -> None:
    """Print where the time of a session's first turn goes, up to its first token."""
    steps: dict[str, list[float]] = {}
    with patch.object(connect, "TableService", TimedService):
        services = Services(Settings.from_env(environ(upstream, tables)), SystemClock())
    usage = Usage()
    for number in range(rounds + WARM_UP):
        TimedService.spans = []
        request = ComposedRequest(
            principal=Principal("bench"),
            dialect=services.chat_completions,
            messages=({"role": "user", "content": MESSAGE},),
            session_id=f"here-{number}",
        )
        began, cpu, opened, token = time.monotonic(), time.process_time(), 0.0, 0.0
        async for event in services.turns.take_turn(request, deltas=True):
            if isinstance(event, Opened):
                opened, spans = time.monotonic(), list(TimedService.spans)
            if isinstance(event, Delta) and not token:
                token, cpu = time.monotonic(), time.process_time() - cpu
        stored = max(end for _, _, end in spans)
        waited = sum(end - start for _, start, end in spans)
        rest = {
            "planning between them": stored - began - waited,
            "the model, up to its headers": opened - stored,
            "from there to the first token": token - opened,
            "in all": token - began,
            "of this, CPU time": cpu,
        }
        for name, seconds in [(name, end - start) for name, start, end in spans] + list(rest.items()):
            if number >= WARM_UP:
                steps.setdefault(name, []).append(seconds * 1e3)
        await asyncio.sleep(QUIET_S)
    await services.close()
    print(f"a first turn in this process, without HTTP, up to its first token (CPU {usage.report()}, with Azurite's):")
    for name, values in steps.items():
        print(f"  {name:32} {median(values):5.1f} ms")


def report(samples: dict[str, list[Sample]], direct: str) -> None:
    print("| | first token, ms | model called after, ms | CPU ms of the process | of Azurite |\n|---|--:|--:|--:|--:|")
    for name, each in samples.items():
        cpu = [f"{median(values):.1f}" for values in zip(*(one.cpu for one in each), strict=True)]
        figures = [f"{median(one.token for one in each):.1f}", f"{median(one.called for one in each):.1f}"]
        print(f"| {name} | {' | '.join([*figures, *cpu, *[''] * (2 - len(cpu))])} |")
    added = {
        name: median(one.token - base.token for one, base in zip(each, samples[direct], strict=True))
        for name, each in samples.items()
        if name != direct
    }
    print(f"added before the first token: {', '.join(f'{name} {ms:.1f} ms' for name, ms in added.items())}")


def measure(arguments: argparse.Namespace) -> None:
    with ExitStack() as stack:
        upstream, upstream_pid = stack.enter_context(started(*MODEL))
        tables = stack.enter_context(table_service())
        direct = System(
            "the model itself", f"http://127.0.0.1:{upstream}/v1/chat/completions", (upstream_pid,), completion
        )
        with TcpProxy(tables[0]) as proxy, app(upstream, (proxy.port, tables[1])) as (chat, _):
            asyncio.run(count_requests(turn_of(chat, "long", ""), proxy, arguments.turns))
        chat, openai = stack.enter_context(app(upstream, tables))

        def systems(number: int) -> list[System]:
            first, second = (turn_of(chat, f"new-{number}", f"api/chat, turn {turn}") for turn in (1, 2))
            return [direct, first, second, turn_of(chat, "long", f"api/chat after {arguments.turns:,} turns"), openai]

        usage = Usage((upstream_pid, *chat.pids))
        samples = asyncio.run(alternate(systems, upstream, arguments.rounds))
        beside = usage.report()
        asyncio.run(break_down(upstream, tables[0], arguments.rounds))
        print(f"one connection, medians of {arguments.rounds} rounds; {beside}")
        report(samples, direct.name)


if __name__ == "__main__":
    parser = argparse.ArgumentParser(
        prog="python -m benchmarks.first_token",
        description=__doc__,
        formatter_class=argparse.RawDescriptionHelpFormatter,
    )
    parser.add_argument("--rounds", type=int, default=100)
    parser.add_argument("--turns", type=int, default=1_000, help="of the long session")
    measure(parser.parse_args())
