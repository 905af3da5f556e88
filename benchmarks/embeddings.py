"""Large answers of embeddings at once: `python -m benchmarks.embeddings [--answers 20] [--inputs 2048]`.

Requests so many answers of 2,048 vectors of 1,536 numbers (34 MB) at once, as numbers and as base64, from the app and
from a bare pass-through. The model service ignores the format and always sends numbers, so the app passes the first on
as they are and converts the others. No answer is read before each has begun, so that all are held at once. Each server
is a new process for each kind; memory is the most that it had in RAM.
"""

import argparse
import asyncio
import json
import tempfile
import time
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path

import aiohttp

from benchmarks.machine import Usage, cpu_seconds, memory, table_service
from benchmarks.upstream import started, vectors
from benchmarks.versus import KEY, System, environ
from tests.support.processes import HostFactory

DEPLOYMENT = "vectors"
NO_TIMEOUT = aiohttp.ClientTimeout(total=None)


@contextmanager
def app(upstream: int, tables: int) -> Iterator[System]:
    prices = {"PRICES": json.dumps({"chat": {"input": 1, "output": 2}, DEPLOYMENT: {"input": 1}})}
    settings = environ(upstream, tables) | prices | {"AZURE_OPENAI_EMBEDDING_DEPLOYMENTS": DEPLOYMENT}
    with HostFactory() as factory, tempfile.TemporaryDirectory() as folder:
        host = factory.host(settings, Path(folder) / "log")
        yield System("the app", f"{host.base}/openai/v1/embeddings", (host.pid,), dict)


@contextmanager
def pass_through(upstream: int) -> Iterator[System]:
    with started("proxy", str(upstream)) as (port, pid):
        yield System("pass-through", f"http://127.0.0.1:{port}/v1/embeddings", (pid,), dict)


async def embed(system: System, answers: int, inputs: int, form: str) -> tuple[int, bytes]:
    """The bytes of an answer, and the beginning of one. Raises RuntimeError unless each is whole."""
    waiting = asyncio.Barrier(answers)
    body = {"model": DEPLOYMENT, "input": ["word"] * inputs, "encoding_format": form}
    headers = {"authorization": f"Bearer {KEY}"}

    async def read(client: aiohttp.ClientSession) -> tuple[int, bytes]:
        async with client.post(system.url, json=body, headers=headers) as response:
            await waiting.wait()
            start, size, end = await response.content.readexactly(200), 200, b""
            async for part in response.content.iter_any():
                size, end = size + len(part), (end + part)[-200:]
        if response.status != 200 or not end.endswith(b"}}"):
            raise RuntimeError(f"{system.name}: {response.status} {start!r} … {end!r}")
        return size, start

    connector = aiohttp.TCPConnector(limit=0)
    async with aiohttp.ClientSession(connector=connector, timeout=NO_TIMEOUT) as client, asyncio.TaskGroup() as group:
        tasks = [group.create_task(read(client)) for _ in range(answers)]
    [answer] = {task.result() for task in tasks}
    return answer


def measure(system: System, answers: int, inputs: int, form: str) -> float:
    """Print a line; return MB above those before, for each answer."""
    [pid] = system.pids
    asyncio.run(embed(system, 1, 1, form))
    (before, _), cpu, began = memory(pid), cpu_seconds(pid), time.monotonic()
    size, start = asyncio.run(embed(system, answers, inputs, form))
    (_, peak), cpu, seconds = memory(pid), cpu_seconds(pid) - cpu, time.monotonic() - began
    held, sent = (peak - before) / answers, len(vectors(inputs)) / 2**20
    converted = " (converted)" if b'"embedding":"' in start else ""
    print(
        f"{system.name}, {form}: {answers} answers of {size / 2**20:.1f} MB{converted}:"
        f" peak {peak:.0f} MB, {before:.0f} before, {held:.1f} MB an answer,"
        f" {held / sent:.2f} of what the service sent;"
        f" CPU {cpu / answers:.2f} s an answer; {seconds:.1f} s in all",
        flush=True,
    )
    return held


def main() -> None:
    parser = argparse.ArgumentParser(
        prog="python -m benchmarks.embeddings",
        description=__doc__,
        formatter_class=argparse.RawDescriptionHelpFormatter,
    )
    parser.add_argument("--answers", type=int, default=20)
    parser.add_argument("--inputs", type=int, default=2_048)
    chosen = parser.parse_args()
    held: dict[str, float] = {}
    with started("model") as (upstream, upstream_pid), table_service() as (tables, storage):
        usage = Usage((upstream_pid, storage))
        for form in ("float", "base64"):
            for server in (app(upstream, tables), pass_through(upstream)):
                with server as system:
                    held[f"{system.name} {form}"] = measure(system, chosen.answers, chosen.inputs, form)
        print(usage.beside())
    whole = len(vectors(chosen.inputs)) / 2**20
    print(
        f"memory of an answer over the {whole:.1f} MB that the service sent:"
        f" as it is {held['the app float'] / whole:.2f}, converted {held['the app base64'] / whole:.2f}"
    )


if __name__ == "__main__":
    main()
