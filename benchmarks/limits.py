"""Opening and settling limited calls alone: `python -m benchmarks.limits [--processes 1 4 8] [--tasks 8] [--pause S]`.

Each process opens and settles calls through a ledger of its own as fast as it can, without sessions and without a
model: `--tasks` calls at once, 8 by default. With `--pause`, a call takes S seconds on average between its opening and
its settling, as a model does; without it, the figures show what one partition carries. All calls count against the
total and against one of four callers. The processes compete for the same rows of one Azurite, as instances of the app
do. The yardstick is the same without limits: the calls lie in 16 partitions and no row is shared.

Azurite and the processes share this machine's cores, so its CPU time is printed beside theirs. Transactions, conflicts
and reads are counted per call: they say what a limit costs where Azurite's speed says nothing about Azure's.
"""

import argparse
import asyncio
import random
import sys
import time
import uuid
from collections.abc import Sequence
from concurrent.futures import ProcessPoolExecutor
from dataclasses import dataclass, fields, replace
from datetime import UTC, datetime, timedelta
from decimal import Decimal
from multiprocessing import get_context
from statistics import quantiles

from azure.data.tables.aio import TableServiceClient

from benchmarks.machine import Usage, cpu_seconds, table_service
from local import azurite
from shared.access.identity import ServiceAccess
from shared.domain.calls import ZERO, Call, LedgerEntry, State
from shared.domain.clock import SystemClock
from shared.domain.limits import TOTAL, Limit, held_by, minute_of, spent_by
from shared.errors import StorageUnavailable
from shared.storage.entities import Row
from shared.storage.ledger import Ledger
from shared.storage.ledger_rows import to_entry
from shared.storage.sdk_tables import SdkTable
from shared.storage.tables import Write

CALLERS = ("ann", "ben", "cem", "dea")
PLENTY = Decimal(1_000_000)  # USD: no call is refused
WORST_CASE, COST = Decimal("0.0123456"), Decimal("0.0023451")
TABLE = "usage"


@dataclass
class Counts:
    """Of one process, or of all. `cpu`: seconds. `latencies`: seconds of each call's opening and settling together."""

    calls: int = 0
    requests: int = 0  # transactions and single writes
    conflicts: int = 0  # of these
    reads: int = 0
    gave_up: int = 0  # calls that were refused with 503
    cpu: float = 0.0
    latencies: tuple[float, ...] = ()

    def plus(self, other: "Counts") -> "Counts":
        return Counts(**{each.name: getattr(self, each.name) + getattr(other, each.name) for each in fields(self)})


@dataclass(frozen=True)
class Load:
    """`seconds`: how long calls are opened. `tasks`: calls at once in each process. `pause`: seconds on average between
    the opening and the settling of a call."""

    seconds: float
    tasks: int
    pause: float


class CountingTable(SdkTable):
    """Counts the requests of a process."""

    def __init__(self, service: TableServiceClient, counts: Counts) -> None:
        access = ServiceAccess.by_setting("Table storage", "TABLES_CONNECTION_STRING")
        super().__init__(service.get_table_client(TABLE), access)
        self._counts = counts

    async def get(self, partition: str, key: str) -> Row | None:
        self._counts.reads += 1
        return await super().get(partition, key)

    async def put(self, row: Row, etag: str = "") -> str:
        self._counts.requests += 1
        return await super().put(row, etag)

    async def commit(self, writes: Sequence[Write]) -> list[str]:
        self._counts.requests += 1
        try:
            return await super().commit(writes)
        except Exception:
            self._counts.conflicts += 1
            raise


def new_entry(caller: str, now: datetime, *, limited: bool) -> LedgerEntry:
    call = Call(
        id=uuid.uuid4().hex,
        day=now.date(),
        deadline=now + timedelta(minutes=5),
        deployment="chat",
        worst_case=WORST_CASE,
        max_tokens=2_000,
        minute=minute_of(now) if limited else None,
    )
    return LedgerEntry(call=call, session_id=f"s{uuid.uuid4().hex[:8]}", turn=1, caller=caller)


async def work(connection: str, start: float, load: Load, *, limited: bool) -> Counts:
    counts, latencies = Counts(), list[float]()
    async with TableServiceClient.from_connection_string(connection) as service:
        ledger = Ledger(CountingTable(service, counts), SystemClock())
        await ledger.counter(TOTAL, datetime.now(UTC).date())  # connects
        counts.reads = 0
        await asyncio.sleep(start - time.time())
        cpu = time.process_time()

        async def take_calls(caller: str) -> None:
            limits = [Limit(name=name, usd_per_day=PLENTY, usd_per_month=PLENTY) for name in (caller, TOTAL)]
            while time.time() < start + load.seconds:
                began = time.perf_counter()
                try:
                    entry = await ledger.open(
                        new_entry(caller, datetime.now(UTC), limited=limited), limits if limited else ()
                    )
                except StorageUnavailable:
                    counts.gave_up += 1
                    continue
                opened = time.perf_counter() - began
                await asyncio.sleep(random.uniform(0, 2 * load.pause))  # noqa: S311 - not a secret
                began = time.perf_counter()
                await settle(entry)
                counts.calls += 1
                latencies.append(opened + time.perf_counter() - began)

        async def settle(entry: LedgerEntry) -> None:
            settled = replace(entry.call, state=State.SETTLED, cost=COST)
            while True:
                try:
                    await ledger.raise_call(entry, settled)
                except StorageUnavailable:  # a turn repeats it until the call's deadline
                    counts.gave_up += 1
                else:
                    return

        await asyncio.gather(*(take_calls(CALLERS[task % len(CALLERS)]) for task in range(load.tasks)))
    counts.cpu, counts.latencies = time.process_time() - cpu, tuple(latencies)
    return counts


def run(connection: str, start: float, load: Load, limited: bool) -> Counts:
    return asyncio.run(work(connection, start, load, limited=limited))


async def check(connection: str) -> None:
    """Exit unless every counter is the sum over the rows."""
    async with TableServiceClient.from_connection_string(connection) as service:
        table = CountingTable(service, Counts())
        counters = await Ledger(table, SystemClock()).counters(datetime.now(UTC).date())
        rows = [row async for row in table.query("PartitionKey ge @first", {"first": ""})]
        entries = [to_entry(row) for row in rows if not row["RowKey"].startswith("!")]
        for counter in counters:
            calls = [entry.call for entry in entries if counter.name in entry.limits]
            if (counter.spent, counter.held) != (sum(map(spent_by, calls), ZERO), sum(map(held_by, calls), ZERO)):
                sys.exit(f"{counter.name} is not the sum over its calls")


def measure(processes: int, load: Load, *, limited: bool) -> float:
    """Print a line; return calls per second."""
    fresh = ProcessPoolExecutor(processes, get_context("spawn"), max_tasks_per_child=1)
    with table_service() as (port, pid), fresh as pool:
        connection, start = azurite.connection_string(port), time.time() + 3 + processes
        running = [pool.submit(run, connection, start, load, limited) for _ in range(processes)]
        time.sleep(max(0.0, start - time.time()))
        usage, azurite_cpu = Usage((pid,)), cpu_seconds(pid)
        counts = Counts()
        for result in running:
            counts = counts.plus(result.result())
        beside = usage.beside([counts.cpu])
        azurite_cpu = cpu_seconds(pid) - azurite_cpu
        asyncio.run(check(connection))
    rate, calls = counts.calls / load.seconds, max(1, counts.calls)
    median, *_, slow = quantiles(counts.latencies, n=20)[9:] if len(counts.latencies) > 1 else (0.0, 0.0)
    print(
        f"{processes} x {load.tasks} {'limited' if limited else 'without limits':14} {rate:6.1f} calls/s"
        f"  per call: {counts.requests / calls:.2f} writes, {counts.conflicts / calls:.2f} of them conflicts,"
        f" {counts.reads / calls:.2f} reads, CPU {1000 * counts.cpu / calls:.1f} ms + Azurite's"
        f" {1000 * azurite_cpu / calls:.1f} ms; median {median:.2f} s, 95 % below {slow:.2f} s;"
        f" {counts.gave_up} gave up; {beside}",
        flush=True,
    )
    return rate


def main() -> None:
    parser = argparse.ArgumentParser(prog="python -m benchmarks.limits", description=__doc__)
    parser.add_argument("--processes", type=int, nargs="+", default=[1, 4, 8])
    parser.add_argument("--tasks", type=int, default=8)
    parser.add_argument("--seconds", type=float, default=8)
    parser.add_argument("--pause", type=float, default=0.0)
    chosen = parser.parse_args()
    load = Load(chosen.seconds, chosen.tasks, chosen.pause)
    ratios = {}
    for processes in chosen.processes:
        limited, free = (measure(processes, load, limited=limited) for limited in (True, False))
        ratios[processes] = limited / free if free else 0
    text = ", ".join(f"{ratio:.2f} with {processes}" for processes, ratio in ratios.items())
    print(f"calls/s with limits over calls/s without: {text} processes")


if __name__ == "__main__":
    main()
