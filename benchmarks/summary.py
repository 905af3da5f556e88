"""How fast a day is added up, and in how much memory: `python -m benchmarks.summary [rows]`, 100,000 by default.

Writes one day's made-up ledger rows into an Azurite of its own, then adds them up through the same modules as the app
does. CPU time is this process's alone: against Azure the service is elsewhere, and CPU is what limits an instance.
"""

import argparse
import asyncio
import resource
import subprocess
import sys
import time
import tracemalloc
from collections.abc import Callable, Coroutine, Iterator
from concurrent.futures import ProcessPoolExecutor
from contextlib import contextmanager
from datetime import date
from decimal import Decimal
from multiprocessing import get_context
from typing import TypeAlias

from local import azurite
from local.parts import free_port
from shared.domain.calls import LedgerEntry, State
from shared.domain.clock import SystemClock
from shared.services import Services
from shared.settings import Settings
from tests.support import ledger_rows

DAY = date(2026, 11, 20)
TURNS = 20  # of a session
STATES = (*[State.SETTLED] * 97, State.FAILED, State.UNACCOUNTED, State.ABANDONED)
Step: TypeAlias = Callable[[int, int], Coroutine[None, None, tuple[int, Decimal]]]
BATCH = 20_000  # rows made up at a time


@contextmanager
def table_service() -> Iterator[int]:
    port = free_port()
    server = subprocess.Popen(azurite.command(port), stdout=subprocess.DEVNULL)  # noqa: S603
    try:
        while not azurite.answers(port):
            time.sleep(0.05)
        yield port
    finally:
        server.terminate()
        server.wait()


def entries(first: int, last: int) -> list[LedgerEntry]:
    return [
        ledger_rows.entry(
            DAY,
            f"session-{n // TURNS:06}",
            n % TURNS + 1,
            state=STATES[n * 7 % len(STATES)],
            prompt=1000 + n % 977,
            cached=n % 640,
            completion=50 + n % 311,
            caller=f"team-{n // TURNS % 7}",
        )
        for n in range(first, last)
    ]


def expected(made: list[LedgerEntry]) -> tuple[int, Decimal]:
    """How many calls count, and what they cost."""
    calls = [entry.call for entry in made if entry.call.state is not State.ABANDONED]
    return len(calls), sum((call.cost or Decimal(0) for call in calls), Decimal(0))


def services(port: int) -> Services:
    environ = {
        "AZURE_OPENAI_ENDPOINT": "http://127.0.0.1:9",
        "AZURE_OPENAI_API_KEY": "unused",
        "TABLES_CONNECTION_STRING": azurite.connection_string(port),
    }
    return Services(Settings.from_env(environ), SystemClock())


async def fill(port: int, rows: int) -> tuple[int, Decimal]:
    """Write the rows. Returns what they are expected to come to."""
    app = services(port)
    began, calls, cost = time.perf_counter(), 0, Decimal(0)
    for first in range(0, rows, BATCH):
        made = entries(first, min(first + BATCH, rows))
        await ledger_rows.write(app._table("usage"), made)
        made_calls, made_cost = expected(made)
        calls, cost = calls + made_calls, cost + made_cost
    await app.close()
    print(f"wrote {rows:,} rows in {time.perf_counter() - began:.0f} s", flush=True)
    return calls, cost


async def measure(port: int, rows: int) -> tuple[int, Decimal]:
    """What was added up."""
    app = services(port)
    before = _resident()
    began, spent = time.perf_counter(), time.process_time()
    figures = await app.reports.figures(DAY)
    wall, cpu = time.perf_counter() - began, time.process_time() - spent
    print(f"{rows / wall:,.0f} rows/s ({wall:.1f} s); {rows / cpu:,.0f} rows per second of CPU ({cpu:.1f} s)")
    print(f"peak resident memory grew by {_resident() - before:.0f} MB")
    tracemalloc.start()
    await app.reports.figures(DAY)
    print(f"peak of Python's own memory: {tracemalloc.get_traced_memory()[1] / 2**20:.0f} MB", flush=True)
    await app.close()
    return figures.calls, figures.cost


def _resident() -> float:
    """Peak resident memory so far, in MB."""
    return resource.getrusage(resource.RUSAGE_SELF).ru_maxrss / (2**20 if sys.platform == "darwin" else 2**10)


def _run(step: Step, port: int, rows: int) -> tuple[int, Decimal]:
    return asyncio.run(step(port, rows))


def main() -> None:
    parser = argparse.ArgumentParser(prog="python -m benchmarks.summary", description=__doc__)
    parser.add_argument("rows", type=int, nargs="?", default=100_000)
    rows = parser.parse_args().rows
    fresh = ProcessPoolExecutor(1, get_context("spawn"), max_tasks_per_child=1)  # so that each step's memory is its own
    with table_service() as port, fresh as processes:
        written, counted = (processes.submit(_run, step, port, rows).result() for step in (fill, measure))
    if written != counted:
        sys.exit(f"{written} were written and {counted} counted")


if __name__ == "__main__":
    main()
