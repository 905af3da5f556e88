"""The list of an owner's sessions: `python -m benchmarks.session_list [--sessions 100 10000] [--rounds 30]`.

Writes one owner's sessions for each count, with their rows in the owner's list, into an Azurite of its own. Then it
reads the first page and one from the middle, 50 sessions each, and searches the titles for one session and for none, in
turn for each count. It prints requests to storage, the median time and this process's CPU time, and the ratio to the
first count. It ends with an error if a page does not have the sessions that it should have.
"""

import argparse
import asyncio
import sys
import time
import uuid
from datetime import UTC, datetime, timedelta
from statistics import median

from azure.data.tables.aio import TableServiceClient

from benchmarks.machine import table_service
from benchmarks.retention import BATCH, CONCURRENT, CountingTable, batches
from local import azurite
from shared.domain.clock import SystemClock
from shared.domain.conversation import Session
from shared.domain.listing import placed
from shared.storage import session_rows as rows
from shared.storage.owner_index import OwnerIndex
from shared.storage.sessions import Sessions
from shared.storage.tables import Write

NOW = datetime.now(UTC)
PAGE = 50


def session(owner: str, number: int) -> Session:
    """The higher the number, the longer ago it was used: about 30 a day."""
    last_use = NOW - timedelta(minutes=48 * number)
    title = f"What is the capital of country number {number}?"
    one = Session(
        id=uuid.uuid4().hex, created=last_use, updated=last_use, system="", deployment="chat", owner=owner, title=title
    )
    return placed(one, last_use)


async def write(table: CountingTable, owner: str, count: int) -> list[str]:
    """Returns the ids, newest use first."""
    sessions = [session(owner, number) for number in range(count)]
    index = [
        {
            "PartitionKey": rows.owner_partition(owner),
            "RowKey": rows.owner_key(one.places[-1], one.id),
            "title": one.title,
        }
        for one in sessions
    ]
    for batch in batches(index, BATCH):
        await table.commit([Write("put", row) for row in batch])

    async def store(some: list[Session]) -> None:
        for one in some:
            await table.put(rows.from_session(one))

    await asyncio.gather(*(store(sessions[first::CONCURRENT]) for first in range(CONCURRENT)))
    return [one.id for one in sessions]


async def measure(connection: str, counts: list[int], rounds: int) -> None:
    async with TableServiceClient.from_connection_string(connection) as service:
        table, clock = CountingTable(service, "sessions"), SystemClock()
        index = OwnerIndex(table, Sessions(table, clock), clock)
        ids = {count: await write(table, f"key:{count}", count) for count in counts}
        middle = {}
        for count in counts:
            head = await Sessions(table, clock).head(ids[count][count // 2 - 1])
            if head is None:
                sys.exit("a session is missing")
            middle[count] = rows.owner_key(head.places[-1], head.id)
        figures_of: dict[tuple[str, int], list[tuple[int, float, float]]] = {}
        for _ in range(rounds):
            for count in counts:
                reads = {
                    "first page": ("", "", ids[count][:PAGE]),
                    "page in the middle": (middle[count], "", ids[count][count // 2 :][:PAGE]),
                    "search for one": ("", f"number {count - 1}?", ids[count][-1:]),
                    "search for none": ("", "no such title", []),
                }
                for name, (after, search, expected) in reads.items():
                    requests, began, cpu = table.requests, time.perf_counter(), time.process_time()
                    page = await index.page(f"key:{count}", after=after, limit=PAGE, archived=False, search=search)
                    seconds, cpu = time.perf_counter() - began, time.process_time() - cpu
                    if [each.id for each in page.sessions] != expected:
                        sys.exit(f"{name} of {count} sessions: wrong sessions")
                    figures_of.setdefault((name, count), []).append((table.requests - requests, seconds, cpu))
        for (name, count), figures in figures_of.items():
            requests, seconds, cpu = (median(column) for column in zip(*figures, strict=True))
            ratio = seconds / median(each[1] for each in figures_of[name, counts[0]])
            print(
                f"{name} of {count} sessions: {requests:.0f} requests, {1_000 * seconds:.1f} ms,"
                f" CPU {1_000 * cpu:.1f} ms; {ratio:.2f} times the time for {counts[0]}"
            )


def main() -> None:
    parser = argparse.ArgumentParser(prog="python -m benchmarks.session_list", description=__doc__)
    parser.add_argument("--sessions", type=int, nargs="+", default=[100, 10_000])
    parser.add_argument("--rounds", type=int, default=30)
    chosen = parser.parse_args()
    with table_service() as (port, _):
        asyncio.run(measure(azurite.connection_string(port), chosen.sessions, chosen.rounds))


if __name__ == "__main__":
    main()
