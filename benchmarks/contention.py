"""Simulates instances that compete for the counters of one partition: the app's own ledger, in simulated time.

`shared.storage.ledger` runs as it is, on an event loop whose clock jumps to the next event instead of waiting, and on
a table in memory that compares ETags. Only the durations are modelled: of a request in the app, on its way, and in the
table service, which serves one request of a partition at a time.
"""

import asyncio
import random
import selectors
from collections.abc import AsyncIterator, Sequence
from contextlib import asynccontextmanager
from dataclasses import dataclass, fields, replace
from datetime import UTC, datetime, timedelta
from statistics import mean, quantiles
from typing import cast

from benchmarks.limits import CALLERS, COST, PLENTY, Counts, new_entry
from shared.domain.calls import State
from shared.domain.clock import SystemClock
from shared.domain.limits import TOTAL, Limit
from shared.errors import StorageUnavailable, VersionConflict
from shared.storage.entities import Row
from shared.storage.ledger import Ledger
from shared.storage.tables import Table, Write

NOON = datetime(2026, 11, 28, 12, tzinfo=UTC)  # the simulation begins


@dataclass(frozen=True)
class Durations:
    """Seconds, on average. `way`: there and back. In the table service `read`, `write` and `entity`: of a read, of a
    transaction and of each entity in it. In the app `app_request` and `app_entity`. `cores`: shared by both."""

    way: float
    read: float
    write: float
    entity: float
    app_request: float
    app_entity: float
    cores: int


@dataclass(frozen=True)
class Traffic:
    """`seconds`: how long calls are opened. `pause`: seconds on average between the opening and the settling of a call.
    `tasks`: calls at once in each instance, one after another; or `rate`: calls per second that arrive in all."""

    instances: int
    seconds: float
    pause: float
    tasks: int = 0
    rate: float = 0.0


@dataclass(frozen=True)
class Result:
    """Of one run. `median`, `slow`: seconds of opening and settling a call, and what 95 % of the calls stay below."""

    rate: float
    writes: float
    conflicts: float
    reads: float
    median: float
    slow: float
    gave_up: float  # per call


class _Jump(selectors.DefaultSelector):
    """Advances the time instead of waiting for it."""

    now = 0.0

    def select(self, timeout: float | None = None) -> list[tuple[selectors.SelectorKey, int]]:
        if timeout is None:
            raise RuntimeError("nothing will ever happen")
        self.now += timeout
        return super().select(0)


class _Loop(asyncio.SelectorEventLoop):
    def __init__(self) -> None:
        self._jump = _Jump()
        super().__init__(self._jump)

    def time(self) -> float:
        return self._jump.now


class _Clock(SystemClock):
    def now(self) -> datetime:
        return NOON + timedelta(seconds=self.monotonic())


class _Partition:
    def __init__(self, durations: Durations) -> None:
        self.durations = durations
        self.cores = asyncio.Semaphore(durations.cores)
        self.busy = asyncio.Lock()
        self.rows: dict[str, Row] = {}
        self.versions = 0


class _Connection:
    """One instance's requests to the partition. Has what limited calls use of a Table."""

    def __init__(self, partition: _Partition, counts: Counts) -> None:
        self._partition, self._counts = partition, counts
        self._process = asyncio.Lock()

    async def get(self, _: str, key: str) -> Row | None:
        durations = self._partition.durations
        self._counts.reads += 1
        async with self._request(durations.app_request, durations.read):
            return self._partition.rows.get(key)

    async def commit(self, writes: Sequence[Write]) -> list[str]:
        durations = self._partition.durations
        self._counts.requests += 1
        app = durations.app_request + durations.app_entity * len(writes)
        async with self._request(app, durations.write + durations.entity * len(writes)):
            return self._write(writes)

    def _write(self, writes: Sequence[Write]) -> list[str]:
        rows = self._partition.rows
        for index, write in enumerate(writes):
            if rows.get(write.row["RowKey"], {"etag": ""})["etag"] != write.etag:
                self._counts.conflicts += 1
                raise VersionConflict(index=index)
        etags = []
        for write in writes:
            self._partition.versions += 1
            etags.append(str(self._partition.versions))
            rows[write.row["RowKey"]] = {**write.row, "etag": etags[-1]}
        return etags

    @asynccontextmanager
    async def _request(self, app: float, service: float) -> AsyncIterator[None]:
        async with self._process, self._partition.cores:
            await _take(app)
        await _take(self._partition.durations.way / 2)
        try:
            async with self._partition.busy, self._partition.cores:
                await _take(service)
                yield
        finally:
            await _take(self._partition.durations.way / 2)


async def _take(average: float) -> None:
    if average:
        await asyncio.sleep(random.gammavariate(2, average / 2))


async def _run(traffic: Traffic, durations: Durations) -> Result:
    partition, clock, counts, loop = _Partition(durations), _Clock(), Counts(), asyncio.get_running_loop()
    latencies: list[float] = []

    async def take_call(ledger: Ledger, caller: str) -> None:
        limits = [Limit(name=name, usd_per_day=PLENTY, usd_per_month=PLENTY) for name in (caller, TOTAL)]
        began = loop.time()
        try:
            entry = await ledger.open(new_entry(caller, clock.now(), limited=True), limits)
        except StorageUnavailable:
            counts.gave_up += 1
            return
        opened = loop.time() - began
        await asyncio.sleep(random.uniform(0, 2 * traffic.pause))  # noqa: S311 - not a secret
        began, settled = loop.time(), replace(entry.call, state=State.SETTLED, cost=COST)
        while True:
            try:
                await ledger.raise_call(entry, settled)
            except StorageUnavailable:  # a turn repeats it until the call's deadline
                counts.gave_up += 1
            else:
                break
        counts.calls += 1
        latencies.append(opened + loop.time() - began)

    async def repeat(ledger: Ledger, caller: str) -> None:
        while loop.time() < traffic.seconds:
            await take_call(ledger, caller)

    async def arrive(ledger: Ledger) -> None:
        async with asyncio.TaskGroup() as calls:
            while loop.time() < traffic.seconds:
                await asyncio.sleep(random.expovariate(traffic.rate / traffic.instances))
                calls.create_task(take_call(ledger, random.choice(CALLERS)))  # noqa: S311 - not a secret

    async with asyncio.TaskGroup() as instances:
        for _ in range(traffic.instances):
            ledger = Ledger(cast("Table", _Connection(partition, counts)), clock)
            for task in range(traffic.tasks):
                instances.create_task(repeat(ledger, CALLERS[task % len(CALLERS)]))
            if traffic.rate:
                instances.create_task(arrive(ledger))
    calls, cuts = max(1, counts.calls), quantiles(latencies, n=20)
    return Result(
        rate=counts.calls / traffic.seconds,
        writes=counts.requests / calls,
        conflicts=counts.conflicts / calls,
        reads=counts.reads / calls,
        median=cuts[9],
        slow=cuts[18],
        gave_up=counts.gave_up / calls,
    )


def simulate(traffic: Traffic, durations: Durations, runs: int = 3) -> Result:
    """The mean of the runs. A thousand calls take about a second. Figures differ a little from one process to another,
    because the ledger reads counters in the order of a set."""
    results = []
    for seed in range(runs):
        random.seed(seed)
        with asyncio.Runner(loop_factory=_Loop) as runner:
            results.append(runner.run(_run(traffic, durations)))
    return Result(**{each.name: mean(getattr(result, each.name) for result in results) for each in fields(Result)})
