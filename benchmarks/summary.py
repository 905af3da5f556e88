"""Speed and memory of adding up a day: `python -m benchmarks.summary [100000 300000]`.

Writes made-up ledger rows of one day into an Azurite of its own, then adds them up with the app's modules, each time in
a new process. CPU time is that of this process only: in Azure the table service runs elsewhere, and CPU time is what
limits an instance. It ends with an error unless the calls and their cost are what was written.
"""

import argparse
import asyncio
import resource
import sys
import time
from collections.abc import Callable, Coroutine
from concurrent.futures import ProcessPoolExecutor
from dataclasses import dataclass
from datetime import date
from decimal import Decimal
from multiprocessing import get_context
from typing import TypeVar

from benchmarks.machine import Usage, cpu_seconds, table_service
from local import azurite
from shared.domain.calls import LedgerEntry, State
from shared.domain.clock import SystemClock
from shared.services import Services
from shared.settings import Settings
from tests.support import ledger_rows

DAY = date(2026, 11, 20)
TURNS = 20  # per session
STATES = (*[State.SETTLED] * 97, State.FAILED, State.UNACCOUNTED, State.ABANDONED)
BATCH = 20_000  # rows generated at a time
T = TypeVar("T")


@dataclass(frozen=True)
class Result:
    """`wall`, `cpu`: seconds. `resident`: MB at the peak; `grown`: of these while the day was added up."""

    calls: int
    cost: Decimal
    wall: float
    cpu: float
    resident: float
    grown: float


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


async def measure(port: int, rows: int) -> Result:
    """Add up the day."""
    app = services(port)
    before, wall, cpu = _resident(), time.perf_counter(), time.process_time()
    figures = await app.reports.figures(DAY)
    wall, cpu = time.perf_counter() - wall, time.process_time() - cpu
    await app.close()
    return Result(figures.calls, figures.cost, wall, cpu, _resident(), _resident() - before)


def _resident() -> float:
    """Peak resident memory so far, in MB."""
    return resource.getrusage(resource.RUSAGE_SELF).ru_maxrss / (2**20 if sys.platform == "darwin" else 2**10)


def _run(step: Callable[[int, int], Coroutine[None, None, T]], port: int, rows: int) -> T:
    return asyncio.run(step(port, rows))


def added_up(rows: int) -> Result:
    """Write and add up that many rows, and print a line."""
    fresh = ProcessPoolExecutor(1, get_context("spawn"), max_tasks_per_child=1)  # so that memory is that of one step
    with table_service() as (port, pid), fresh as processes:
        written = processes.submit(_run, fill, port, rows).result()
        usage, azurite_cpu = Usage((pid,)), cpu_seconds(pid)
        result = processes.submit(_run, measure, port, rows).result()
        beside, azurite_cpu = usage.beside([result.cpu]), cpu_seconds(pid) - azurite_cpu
    if written != (result.calls, result.cost):
        sys.exit(f"wrote {written}, but counted {result.calls, result.cost} (calls, cost)")
    print(
        f"{rows:,} rows: {rows / result.wall:,.0f} rows/s ({result.wall:.1f} s),"
        f" {rows / result.cpu:,.0f} rows per second of CPU time ({result.cpu:.1f} s, Azurite's {azurite_cpu:.1f} s);"
        f" peak {result.resident:.0f} MB, {result.grown:.0f} of them while adding up; {beside}",
        flush=True,
    )
    return result


def main() -> None:
    parser = argparse.ArgumentParser(
        prog="python -m benchmarks.summary", description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter
    )
    parser.add_argument("rows", type=int, nargs="*", default=[100_000, 300_000])
    sizes = parser.parse_args().rows
    results = [added_up(rows) for rows in sizes]
    (first, few), (last, many) = (sizes[0], results[0]), (sizes[-1], results[-1])
    print(
        f"a row of {last:,} over one of {first:,}: CPU time {many.cpu / last / (few.cpu / first):.2f},"
        f" wall time {many.wall / last / (few.wall / first):.2f}; peak memory {many.resident / few.resident:.2f}"
    )


if __name__ == "__main__":
    main()
