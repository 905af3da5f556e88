"""This app beside a bare pass-through and, where it is installed, the LiteLLM proxy without a database.

`python -m benchmarks.versus [--litellm /path/to/litellm]`. All forward to one fake model service on this machine, in
turn, in each round; medians over the rounds. A durable turn goes through api/chat with a session of its own, and the
app's Azurite runs on the same cores. LiteLLM: `pip install 'litellm[proxy]'` in an environment of its own.
"""

import argparse
import asyncio
import json
import os
import tempfile
import time
from collections.abc import Callable, Iterator
from contextlib import ExitStack, contextmanager
from dataclasses import dataclass
from itertools import count
from pathlib import Path
from statistics import median
from typing import Any

import aiohttp

from benchmarks.machine import Usage, cpu_seconds, server, table_service
from benchmarks.upstream import started
from local import azurite
from local.keys import line
from local.parts import free_port
from tests.support.processes import HostFactory

KEY = "a-client-key-of-the-benchmark"
LIMITS = {"total": {"usd_per_day": 1000, "usd_per_month": 10000}}
_sessions = count()


@dataclass(frozen=True)
class System:
    """A server under load. `pids`: its process, then those of its storage."""

    name: str
    url: str
    pids: tuple[int, ...]
    body: Callable[[], dict[str, Any]]


@dataclass(frozen=True)
class Result:
    per_second: float
    p50: float  # ms
    cpu: float  # ms of the server's process, per request
    storage_cpu: float  # ms, per request


def completion() -> dict[str, Any]:
    return {"model": "chat", "messages": [{"role": "user", "content": "Count to a hundred."}]}


def turn() -> dict[str, Any]:
    return {"message": "Count to a hundred.", "session_id": f"s{os.getpid()}-{next(_sessions)}"}


def environ(upstream: int, tables: int, client: str = "http") -> dict[str, str]:
    """The app's settings. `upstream`, `tables`: ports of the model service and of Azurite."""
    return {
        "AZURE_OPENAI_ENDPOINT": f"http://127.0.0.1:{upstream}/v1",
        "AZURE_OPENAI_API_KEY": "key",
        "AZURE_OPENAI_MODEL": "chat",
        "PRICES": json.dumps({"chat": {"input": 1, "cached_input": 0.1, "cache_write": 1, "output": 2}}),
        "TABLES_CONNECTION_STRING": azurite.connection_string(tables),
        "TABLES_CLIENT": client,
        "TABLE_PREFIX": f"b{client}",
        "CLIENT_KEYS": line("bench", KEY),
        "LIMITS": json.dumps(LIMITS),
    }


@contextmanager
def app(upstream: int, tables: tuple[int, int], *, client: str = "http") -> Iterator[list[System]]:
    port, storage = tables
    suffix = "" if client == "http" else f" ({client})"
    with HostFactory() as factory, tempfile.TemporaryDirectory() as folder:
        host = factory.host(environ(upstream, port, client), Path(folder) / "log")
        yield [
            System(f"api/chat, durable{suffix}", f"{host.base}/api/chat", (host.pid, storage), turn),
            System(f"openai/*{suffix}", f"{host.base}/openai/v1/chat/completions", (host.pid, storage), completion),
        ]


@contextmanager
def litellm(program: str, upstream: int) -> Iterator[System]:
    model = {
        "model_name": "chat",
        "litellm_params": {"model": "openai/chat", "api_base": f"http://127.0.0.1:{upstream}/v1", "api_key": "key"},
    }
    with tempfile.TemporaryDirectory() as folder:
        config, port = Path(folder) / "config.yaml", free_port()
        general = {"dangerously_permit_weak_or_unset_master_key": True}  # without a database and keys
        config.write_text(json.dumps({"model_list": [model], "general_settings": general}))
        command = [program, "--config", str(config), "--port", str(port), "--host", "127.0.0.1"]
        with server(command, port) as pid:
            yield System("LiteLLM", f"http://127.0.0.1:{port}/v1/chat/completions", (pid,), completion)


async def load(system: System, *, streamed: bool, connections: int, requests: int) -> Result:
    numbers, times = iter(range(requests)), list[float]()
    headers = {"authorization": f"Bearer {KEY}"}
    before, began = [cpu_seconds(pid) for pid in system.pids], time.perf_counter()

    async def connection(client: aiohttp.ClientSession) -> None:
        for _ in numbers:
            body, sent = system.body() | ({"stream": True} if streamed else {}), time.perf_counter()
            async with client.post(system.url, json=body, headers=headers) as response:
                content = await response.read()
            times.append(time.perf_counter() - sent)
            if response.status != 200 or b"word63" not in content:
                raise RuntimeError(f"{system.name}: {response.status} {content[:300]!r}")

    async with aiohttp.ClientSession(connector=aiohttp.TCPConnector(limit=0)) as client, asyncio.TaskGroup() as group:
        for _ in range(connections):
            group.create_task(connection(client))
    seconds = time.perf_counter() - began
    cpu, *storage = (cpu_seconds(pid) - start for pid, start in zip(system.pids, before, strict=True))
    return Result(requests / seconds, median(times) * 1e3, cpu / requests * 1e3, sum(storage) / requests * 1e3)


def measure(arguments: argparse.Namespace) -> None:
    with ExitStack() as stack:
        upstream, upstream_pid = stack.enter_context(started("model"))
        proxy, proxy_pid = stack.enter_context(started("proxy", str(upstream)))
        tables = stack.enter_context(table_service())
        systems = stack.enter_context(app(upstream, tables))
        if arguments.sdk:
            systems += stack.enter_context(app(upstream, tables, client="sdk"))
        systems.append(
            System("pass-through", f"http://127.0.0.1:{proxy}/v1/chat/completions", (proxy_pid,), completion)
        )
        if arguments.litellm:
            systems.append(stack.enter_context(litellm(arguments.litellm, upstream)))
        usage = Usage((upstream_pid, *{pid for system in systems for pid in system.pids}))
        results: dict[tuple[str, bool], list[Result]] = {}
        for number in range(arguments.rounds + 1):  # the first warms up
            for system in systems:
                for streamed in (False, True):
                    requests = arguments.requests if number else 2 * arguments.connections
                    options: dict[str, Any] = {"connections": arguments.connections, "requests": requests}
                    result = asyncio.run(load(system, streamed=streamed, **options))
                    if number:
                        results.setdefault((system.name, streamed), []).append(result)
        medians = {key: _median(each) for key, each in results.items()}
        report(medians, arguments)
        print(f"{usage.report()}")


def _median(results: list[Result]) -> Result:
    fields = ("per_second", "p50", "cpu", "storage_cpu")
    return Result(*(median(getattr(result, name) for result in results) for name in fields))


def report(medians: dict[tuple[str, bool], Result], arguments: argparse.Namespace) -> None:
    print(f"{arguments.connections} connections, {arguments.requests} requests, medians of {arguments.rounds} rounds:")
    print("| | turns/s | p50 ms | CPU ms of the server | of Azurite |\n|---|--:|--:|--:|--:|")
    for (name, streamed), result in medians.items():
        kind = "streamed" if streamed else "plain"
        figures = f"{result.per_second:.1f} | {result.p50:.0f} | {result.cpu:.1f} | {result.storage_cpu:.1f}"
        print(f"| {name}, {kind} | {figures} |")
    durable, forwarded, bare = (("api/chat, durable"), "openai/*", "pass-through")
    print(f"openai/* streamed CPU over pass-through: {medians[forwarded, True].cpu / medians[bare, True].cpu:.2f}")
    if ("LiteLLM", False) in medians:
        other = medians["LiteLLM", False], medians["LiteLLM", True]
        print(f"durable plain CPU over LiteLLM's: {medians[durable, False].cpu / other[0].cpu:.2f}")
        for streamed in (False, True):
            ratio = medians[durable, streamed].per_second / other[streamed].per_second
            print(f"durable {'streamed' if streamed else 'plain'} turns/s over LiteLLM's: {ratio:.2f}")


if __name__ == "__main__":
    parser = argparse.ArgumentParser(prog="python -m benchmarks.versus", description=__doc__)
    parser.add_argument("--litellm", help="path of the litellm program, in an environment of its own")
    parser.add_argument("--sdk", action="store_true", help="also this app with TABLES_CLIENT=sdk")
    parser.add_argument("--connections", type=int, default=16)
    parser.add_argument("--requests", type=int, default=400)
    parser.add_argument("--rounds", type=int, default=3)
    measure(parser.parse_args())
