"""Speed and memory of adding up a day: `python -m benchmarks.summary [rows]`, 100,000 rows by default.

Writes made-up ledger rows of one day into a separate Azurite, then adds them up with the app's modules. CPU time is
that of this process only: in Azure the table service runs elsewhere, and CPU time is what limits an instance.
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
TURNS = 20  # per session
STATES = (*[State.SETTLED] * 97, State.FAILED, State.UNACCOUNTED, State.ABANDONED)
Step: TypeAlias = Callable[[int, int], Coroutine[None, None, tuple[int, Decimal]]]
BATCH = 20_000  # rows generated at a time


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


def expected(written: list[LedgerEntry]) -> tuple[int, Decimal]:
    """The number of calls that count, and their cost."""
    calls = [entry.call for entry in written if entry.call.state is not State.ABANDONED]
    return len(calls), sum((call.cost or Decimal(0) for call in calls), Decimal(0))


def services(port: int) -> Services:
    environ = {
        "AZURE_OPENAI_ENDPOINT": "http://127.0.0.1:9",
        "AZURE_OPENAI_API_KEY": "unused",
        "TABLES_CONNECTION_STRING": azurite.connection_string(port),
    }
    return Services(Settings.from_env(environ), SystemClock())


async def fill(port: int, rows: int) -> tuple[int, Decimal]:
    """Write the rows. Returns the expected number of calls and their cost."""
    app = services(port)
    start, calls, cost = time.perf_counter(), 0, Decimal(0)
    for first in range(0, rows, BATCH):
        batch = entries(first, min(first + BATCH, rows))
        await ledger_rows.write(app._table("usage"), batch)
        batch_calls, batch_cost = expected(batch)
        calls, cost = calls + batch_calls, cost + batch_cost
    await app.close()
    print(f"wrote {rows:,} rows in {time.perf_counter() - start:.0f} s", flush=True)
    return calls, cost


async def measure(port: int, rows: int) -> tuple[int, Decimal]:
    """Add up the day. Returns the number of calls and their cost."""
    app = services(port)
    before = _resident()
    wall_start, cpu_start = time.perf_counter(), time.process_time()
    figures = await app.reports.figures(DAY)
    wall, cpu = time.perf_counter() - wall_start, time.process_time() - cpu_start
    print(f"{rows / wall:,.0f} rows/s ({wall:.1f} s); {rows / cpu:,.0f} rows per second of CPU time ({cpu:.1f} s)")
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
    fresh = ProcessPoolExecutor(
        1, get_context("spawn"), max_tasks_per_child=1
    )  # so that each step's memory is measured separately
    with table_service() as port, fresh as processes:
        written, counted = (processes.submit(_run, step, port, rows).result() for step in (fill, measure))
    if written != counted:
        sys.exit(f"wrote {written}, but counted {counted} (calls, cost)")


if __name__ == "__main__":
    main()
