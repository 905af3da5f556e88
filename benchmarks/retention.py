"""One run of the retention's job: `python -m benchmarks.retention [--sessions 100000] [--expired 1000]`.

Writes sessions, with their rows in the retention's index, into an Azurite of its own. Those whose time is over have two
turns each. Then it runs the job twice: once while they are over, and once when none is. It prints the requests to
storage and the time of each run, and ends with an error unless exactly those sessions are gone.

Azurite and this process share the machine's cores, and Azurite slows down as its tables grow. The requests are the
figure that holds elsewhere: the job sends one after the other.
"""

import argparse
import asyncio
import sys
import time
import uuid
from collections.abc import Awaitable, Callable, Iterable, Iterator
from datetime import UTC, datetime, timedelta
from decimal import Decimal
from itertools import islice
from typing import TypeVar

from azure.data.tables.aio import TableServiceClient

from benchmarks.machine import Usage, table_service
from local import azurite
from shared.access.identity import ServiceAccess
from shared.domain.calls import Call, State
from shared.domain.clock import SystemClock
from shared.domain.conversation import Session, Turn
from shared.storage import session_rows as rows
from shared.storage.days import Days
from shared.storage.deletion import Deletions
from shared.storage.ledger import Ledger
from shared.storage.owner_index import OwnerIndex
from shared.storage.retention import Retention
from shared.storage.sdk_tables import SdkTable
from shared.storage.sessions import Sessions
from shared.storage.tables import Table, Write

T = TypeVar("T")

DAYS, TURNS = 30, 2
NOW = datetime.now(UTC)
OVER = NOW - timedelta(days=DAYS + 5)
CONCURRENT, BATCH = 16, 100


class CountingTable(SdkTable):
    """Counts the requests: a query is one for each page."""

    def __init__(self, service: TableServiceClient, name: str) -> None:
        access = ServiceAccess.by_setting("Table storage", "TABLES_CONNECTION_STRING")
        super().__init__(service.get_table_client(name), access)
        self.requests = 0

    async def _attempt(self, request: Callable[[], Awaitable[T]]) -> T:
        result = await super()._attempt(request)  # raises StopAsyncIteration, without a request, at a query's end
        self.requests += 1
        return result


def session(number: int, expired: int) -> Session:
    """The first `expired` ones are over; the others were last used on one of the last 30 days."""
    last_use = OVER if number < expired else NOW - timedelta(days=number % DAYS)
    return Session(
        id=f"{number:032x}",
        created=last_use,
        updated=last_use,
        system="Be brief.",
        deployment="chat",
        reference=uuid.uuid4().hex,
        seen=(last_use.date(),),
        turns=TURNS,
    )


def turn(one: Session, number: int) -> Turn:
    call = Call(
        id=uuid.uuid4().hex,
        day=one.updated.date(),
        deadline=one.updated,
        deployment="chat",
        worst_case=Decimal("0.01"),
        reference=one.reference,
        state=State.SETTLED,
    )
    messages = ({"role": "user", "content": "question " * 20}, {"role": "assistant", "content": "answer " * 100})
    return Turn(number=number, started=one.updated, calls=(call,), messages=messages, finish_reason="stop")


def batches(items: Iterable[T], size: int) -> Iterator[list[T]]:
    iterator = iter(items)
    while batch := list(islice(iterator, size)):
        yield batch


async def write(table: Table, count: int, expired: int) -> None:
    """Each session in a transaction of its own, the index in transactions of 100."""
    sessions = [session(number, expired) for number in range(count)]
    index: dict[str, list[Write]] = {}
    for one in sessions:
        [partition] = rows.index_partitions(one)
        index.setdefault(partition, []).append(Write("put", {"PartitionKey": partition, "RowKey": one.id}))
    for writes in index.values():
        for batch in batches(writes, BATCH):
            await table.commit(batch)

    async def store(some: list[Session]) -> None:
        for one in some:
            await table.put(rows.from_session(one))
            if one.updated == OVER:  # no other session's turns are read
                turns = [turn(one, number) for number in range(1, TURNS + 1)]
                await table.commit([Write("put", rows.from_turn(one.id, past)) for past in turns])

    await asyncio.gather(*(store(sessions[first::CONCURRENT]) for first in range(CONCURRENT)))


async def heads(table: Table) -> int:
    stored = table.query("RowKey eq @head", {"head": rows.HEAD}, select=["PartitionKey"])
    return sum([1 async for _ in stored])


async def measure(connection: str, pid: int, count: int, expired: int) -> None:
    clock = SystemClock()
    async with TableServiceClient.from_connection_string(connection) as service:
        tables = [CountingTable(service, name) for name in ("sessions", "usage", "daily")]
        table, usage_table, daily = tables
        began = time.monotonic()
        await write(table, count, expired)
        print(f"{count} sessions written in {time.monotonic() - began:.0f} s", flush=True)
        sessions = Sessions(table, clock)
        deletions = Deletions(
            table, sessions, OwnerIndex(table, sessions, clock), Ledger(usage_table, clock), Days(daily), clock
        )
        retention = Retention(table, sessions, deletions, clock, days=DAYS)
        for over in (expired, 0):
            before, usage, began = sum(each.requests for each in tables), Usage((pid,)), time.monotonic()
            async for _ in retention.erase_expired(""):
                pass
            requests = sum(each.requests for each in tables) - before
            seconds, each_one = time.monotonic() - began, f", {requests / over:.1f} a session" if over else ""
            print(f"{over} of {count} over: {requests} requests{each_one}, {seconds:.2f} s; CPU {usage.report()}")
        left = await heads(table)
        if left != count - expired:
            sys.exit(f"{left} sessions are left, not {count - expired}")


def main() -> None:
    parser = argparse.ArgumentParser(prog="python -m benchmarks.retention", description=__doc__)
    parser.add_argument("--sessions", type=int, default=100_000)
    parser.add_argument("--expired", type=int, default=1_000)
    chosen = parser.parse_args()
    with table_service() as (port, pid):
        asyncio.run(measure(azurite.connection_string(port), pid, chosen.sessions, chosen.expired))


if __name__ == "__main__":
    main()
