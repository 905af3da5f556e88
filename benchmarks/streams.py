"""Many slow streams at once: `python -m benchmarks.streams [500 1000 2000] [--pause 1]`.

Starts that many turns of api/chat, each streamed, in a session of its own, with LIMITS, against a model service that
sends a chunk every second, 64 in all. The host is a new process each time; memory is the most that it had in RAM, which
includes what it shares with the process that it was forked from. Azurite, the model and the client run on the same
cores.

It ends with an error unless all streams were open at once, each brought its whole answer, and the money adds up: each
turn's cost, that of the stored sessions, and what the limit on all callers counts.
"""

import argparse
import asyncio
import json
import resource
import sys
import time
from contextlib import ExitStack
from dataclasses import dataclass, field
from datetime import UTC, datetime
from decimal import Decimal
from statistics import median
from typing import Any

import aiohttp

from benchmarks.machine import Usage, cpu_seconds, memory, table_service
from benchmarks.upstream import CHUNKS, USAGE, started
from benchmarks.versus import KEY, System, app, turn
from local import azurite
from shared.access.identity import ServiceAccess
from shared.domain.clock import SystemClock
from shared.domain.limits import TOTAL
from shared.storage import session_rows as rows
from shared.storage.http_tables import HttpTables
from shared.storage.ledger import Ledger
from shared.storage.table_service import TableService

MAX_MB = 512
WHOLE = "".join(f"word{n} " for n in range(CHUNKS))
COST = (Decimal(USAGE["prompt_tokens"]) + 2 * USAGE["completion_tokens"]).scaleb(-6)  # USD: by the prices of `versus`


@dataclass
class Streams:
    """`open`: now between their first token and their end. `peak`: the most of these. `firsts`: seconds to the first
    token. `cut`: why, of each that has not brought its whole answer at its cost."""

    open: int = 0
    peak: int = 0
    firsts: list[float] = field(default_factory=list)
    cut: list[str] = field(default_factory=list)

    async def read(self, client: aiohttp.ClientSession, system: System) -> None:
        sent, received, first = time.monotonic(), b"", 0.0
        body, headers = turn() | {"stream": True}, {"authorization": f"Bearer {KEY}"}
        try:
            async with client.post(system.url, json=body, headers=headers) as response:
                async for chunk in response.content.iter_any():
                    received += chunk
                    if not first and b"word0" in received:
                        first = time.monotonic() - sent
                        self.firsts.append(first)
                        self.open += 1
                        self.peak = max(self.peak, self.open)
        except (aiohttp.ClientError, OSError) as error:
            self.cut.append(repr(error))
        else:
            if (answer := _answer(received)) != (WHOLE, COST):
                self.cut.append(f"{response.status} {answer} {received[-300:]!r}")
        finally:
            self.open -= bool(first)


def _answer(received: bytes) -> tuple[str, Any]:
    """The text of a stream's deltas, and the cost that its last event names."""
    text, cost = "", None
    for event in received.split(b"\n\n"):
        name, _, data = event.partition(b"\ndata: ")
        if name == b"event: delta":
            text += json.loads(data).get("content", "")
        if name == b"event: done":
            cost = json.loads(data, parse_float=Decimal)["cost_usd"]
    return text, cost


async def stored(tables: int) -> tuple[Decimal, Decimal]:
    """USD of all sessions, and what the limit on all callers counts. `tables`: Azurite's port."""
    clock = SystemClock()
    service = TableService.from_connection_string(azurite.connection_string(tables), clock)
    both = HttpTables(service, ServiceAccess.by_setting("Table storage", "TABLES_CONNECTION_STRING"))
    heads = both.table("bhttpsessions").query("RowKey eq @head", {"head": rows.HEAD})
    sessions = sum([rows.to_session(row).totals.cost async for row in heads], Decimal(0))
    ledger, day = Ledger(both.table("bhttpusage"), clock), datetime.now(UTC).date()
    while (counter := await ledger.counter(TOTAL, day)).running:  # noqa: ASYNC110 - a turn settles there after its answer
        await asyncio.sleep(0.1)
    await both.close()
    return sessions, counter.spent


async def connected(system: System) -> None:
    """Until the app has read its settings and connected to storage."""
    async with aiohttp.ClientSession() as client, client.get(system.url.replace("chat", "sessions/none")) as response:
        if response.status != 404:
            raise RuntimeError(f"{response.status} {await response.text()}")


async def hold(system: System, count: int) -> Streams:
    streams, no_timeout = Streams(), aiohttp.ClientTimeout(total=None)
    connector = aiohttp.TCPConnector(limit=0)
    async with aiohttp.ClientSession(connector=connector, timeout=no_timeout) as client, asyncio.TaskGroup() as group:
        for _ in range(count):
            group.create_task(streams.read(client, system))
    return streams


def measure(count: int, pause: float) -> float:
    """Print a line; return MB at the peak."""
    with ExitStack() as stack:
        upstream, upstream_pid = stack.enter_context(started("model", str(pause)))
        tables, storage = stack.enter_context(table_service())
        system = stack.enter_context(app(upstream, (tables, storage)))[0]
        pid = system.pids[0]
        asyncio.run(connected(system))
        usage, (before, _), cpu, began = (
            Usage((upstream_pid, pid, storage)),
            memory(pid),
            cpu_seconds(pid),
            time.monotonic(),
        )
        streams = asyncio.run(hold(system, count))
        (_, peak), cpu, seconds = memory(pid), cpu_seconds(pid) - cpu, time.monotonic() - began
        sums = asyncio.run(stored(tables))
        beside = usage.beside()
    print(
        f"{count:,} streams: {streams.peak:,} at once, {len(streams.cut)} cut; peak {peak:.0f} MB,"
        f" {before:.0f} before, {(peak - before) / count * 1024:.0f} KB a stream; first token after"
        f" {median(streams.firsts):.1f} s, at most {max(streams.firsts):.1f} s;"
        f" CPU {cpu / count * 1e3:.1f} ms a stream; {seconds:.0f} s in all; {beside}",
        flush=True,
    )
    if streams.cut:
        sys.exit(f"cut: {streams.cut[0]}")
    if streams.peak < count:
        sys.exit(f"only {streams.peak} streams were open at once: set a longer --pause")
    if sums != (count * COST,) * 2:
        sys.exit(f"{count} turns cost {count * COST} USD; the sessions sum to {sums[0]}, the limit to {sums[1]}")
    return peak


def main() -> None:
    parser = argparse.ArgumentParser(
        prog="python -m benchmarks.streams", description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter
    )
    parser.add_argument("streams", type=int, nargs="*", default=[500, 1_000, 2_000])
    parser.add_argument("--pause", type=float, default=1.0, help="seconds between the model's chunks")
    chosen = parser.parse_args()
    _, most = resource.getrlimit(resource.RLIMIT_NOFILE)
    resource.setrlimit(resource.RLIMIT_NOFILE, (most, most))  # the servers inherit it: two files a stream in the app
    peaks = [measure(count, chosen.pause) for count in chosen.streams]
    print(f"{chosen.streams[-1]:,} streams in {peaks[-1]:.0f} MB: {peaks[-1] / MAX_MB:.2f} of {MAX_MB} MB, none cut")


if __name__ == "__main__":
    main()
