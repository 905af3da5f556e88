"""What the platform's Python worker adds to a durable turn: `python -m benchmarks.worker [--turns 200]`.

The deployed package runs twice under Python 3.13, with the same services over TLS (see cold_start): in the platform's
own worker library (tests/support/runtime_host.py, whose imitation of the host's proxy is part of the figures), and in
local.host. Each takes the same unstreamed turns of new sessions one after another, in turn; CPU time is that of the
process. The last line is their ratio.
"""

import argparse
import asyncio
import json
import subprocess
import sys
import tempfile
from collections.abc import AsyncIterator, Awaitable, Callable, Mapping
from contextlib import AsyncExitStack, asynccontextmanager
from itertools import count
from pathlib import Path
from statistics import median

import aiohttp

from benchmarks.cold_start import services
from benchmarks.machine import Usage, cpu_seconds, listening
from local.parts import free_port
from local.places import ROOT
from tests.support import platform_runtime

WORKER, LOCAL = "the platform's worker", "local.host"
WARM_UP = 30  # turns that do not count
BATCH = 20  # turns between readings of the clock
_sessions = count()

Turn = Callable[[dict[str, object]], Awaitable[None]]


@asynccontextmanager
async def worker(interpreter: Path, package: Path, environ: Mapping[str, str]) -> AsyncIterator[tuple[int, Turn]]:
    process = await asyncio.create_subprocess_exec(
        interpreter,
        ROOT / "tests/support/runtime_host.py",
        cwd=package,
        env=environ,
        stdin=subprocess.PIPE,
        stdout=subprocess.PIPE,
        stderr=subprocess.DEVNULL,
        limit=2**20,
    )
    commands, answers = process.stdin, process.stdout
    assert commands  # noqa: S101 - for mypy
    assert answers  # noqa: S101
    if "functions" not in json.loads(await answers.readline()):
        raise RuntimeError("the worker has no functions")

    async def take(body: dict[str, object]) -> None:
        command = {"function": "chat", "method": "POST", "path": "/api/chat", "body": body}
        commands.write(json.dumps(command).encode() + b"\n")
        answer: dict[str, object] = {}
        while "end" not in answer:
            answer = json.loads(await answers.readline())
            if "failed" in answer or answer.get("status", 200) != 200:
                raise RuntimeError(answer)

    try:
        yield process.pid, take
    finally:
        process.kill()
        await process.wait()


@asynccontextmanager
async def local(interpreter: Path, package: Path, environ: Mapping[str, str]) -> AsyncIterator[tuple[int, Turn]]:
    port = free_port()
    process = await asyncio.create_subprocess_exec(
        interpreter,
        "-m",
        "local.host",
        "--port",
        str(port),
        cwd=package,
        env={**environ, "PYTHONPATH": f"{package}:{ROOT}"},
        stdout=subprocess.DEVNULL,
        stderr=subprocess.DEVNULL,
    )
    try:
        while not listening(port):  # noqa: ASYNC110 - there is no event to wait for
            await asyncio.sleep(0.05)
        async with aiohttp.ClientSession() as client:

            async def take(body: dict[str, object]) -> None:
                async with client.post(f"http://127.0.0.1:{port}/api/chat", json=body) as response:
                    if response.status != 200:
                        raise RuntimeError(await response.text())

            yield process.pid, take
    finally:
        process.terminate()
        await process.wait()


async def measure(turns: int, interpreter: Path) -> None:
    figures: dict[str, list[float]] = {WORKER: [], LOCAL: []}
    with tempfile.TemporaryDirectory() as folder, services(Path(folder)) as (environ, pids):
        package = Path(folder) / "app" / "package"
        platform_runtime.package(package)
        async with AsyncExitStack() as stack:
            hosts = {
                WORKER: await stack.enter_async_context(worker(interpreter, package, environ)),
                LOCAL: await stack.enter_async_context(local(interpreter, package, environ)),
            }
            for _, take in hosts.values():
                await _take(take, WARM_UP)
            usage = Usage((*pids, *(pid for pid, _ in hosts.values())))
            for _ in range(max(turns // BATCH, 1)):
                for name, (pid, take) in hosts.items():
                    before = cpu_seconds(pid)
                    await _take(take, BATCH)
                    figures[name].append((cpu_seconds(pid) - before) / BATCH * 1e3)
            beside = usage.report()
    print(f"CPU time of the process a turn, medians of {len(figures[WORKER])} times {BATCH} turns; {beside}:")
    for name, each in figures.items():
        print(f"  {name:24} {median(each):.2f} ms")
    print(f"the platform's worker over local.host: {median(figures[WORKER]) / median(figures[LOCAL]):.2f}")


async def _take(take: Turn, turns: int) -> None:
    for _ in range(turns):
        await take({"message": "Count to ten.", "session_id": f"worker-{next(_sessions)}", "stream": False})


if __name__ == "__main__":
    parser = argparse.ArgumentParser(prog="python -m benchmarks.worker", description=__doc__)
    parser.add_argument("--turns", type=int, default=200)
    arguments = parser.parse_args()
    python = platform_runtime.python()
    if python is None:
        sys.exit(platform_runtime.MISSING)
    asyncio.run(measure(arguments.turns, platform_runtime.environment(python)))
