"""Ledger rows of any day, and days without any, made up and written quickly: what a summary is checked against."""

import asyncio
import uuid
from collections.abc import Iterable, Iterator, Sequence
from dataclasses import replace
from datetime import UTC, date, datetime, time, timedelta
from decimal import Decimal
from itertools import groupby, islice

from shared.domain.calls import Call, LedgerEntry, Rates, State, Usage
from shared.domain.daily import Day, Figures
from shared.domain.pricing import cost
from shared.storage import ledger_rows
from shared.storage.day_rows import from_day as to_row
from shared.storage.days import Days
from shared.storage.tables import Table, Write

RATES = Rates(input=Decimal("0.75"), cached_input=Decimal("0.075"), cache_write=Decimal("0.9"), output=Decimal("4.5"))
WORST = Decimal("0.0123456")
_MOST_WRITES = 100  # of one transaction
_AT_ONCE = 8


def entry(
    day: date,
    session: str | None = "s",
    turn: int = 1,
    *,
    state: State = State.SETTLED,
    prompt: int = 1000,
    cached: int = 0,
    completion: int = 100,
    reasoning: int = 0,
    rates: Rates | None = RATES,
    caller: str | None = None,
    deployment: str = "chat",
    model: str | None = "gpt-5.4-mini-2026-03-17",
    worst: Decimal | None = WORST,
) -> LedgerEntry:
    """One call of noon, its deadline long over before the day is. Without `rates` its price is not known."""
    call = Call(
        id=uuid.uuid4().hex,
        day=day,
        deadline=datetime.combine(day, time(12, 5), UTC),
        deployment=deployment,
        worst_case=worst,
        state=state,
    )
    if state is State.SETTLED:
        usage = Usage(
            prompt_tokens=prompt, cached_tokens=cached, completion_tokens=completion, reasoning_tokens=reasoning
        )
        call = replace(call, usage=usage, rates=rates, cost=cost(usage, rates) if rates else None, model=model)
    return LedgerEntry(call=call, session_id=session, turn=turn if session else 0, caller=caller)


def still_running(one: LedgerEntry) -> LedgerEntry:
    """The same, its time not over yet."""
    return replace(one, call=replace(one.call, deadline=datetime(9999, 1, 1, tzinfo=UTC)))


def settled(doubtful: LedgerEntry, prompt: int = 1000) -> Call:
    """The same call, once its answer has come after all."""
    late = entry(doubtful.call.day, prompt=prompt).call
    return replace(late, id=doubtful.call.id, deadline=doubtful.call.deadline)


def money(amount: int | str) -> Rates:
    """Rates at which a call of 1,000 prompt tokens and no other costs that many USD."""
    each = Decimal(amount) * 1000
    return Rates(input=each, cached_input=each, cache_write=each, output=Decimal(0))


def spent(day: date, amount: int | str, session: str = "s", turn: int = 1) -> LedgerEntry:
    """One call that cost that many USD."""
    return entry(day, session, turn, rates=money(amount))


async def keep_quiet(days: Days, before: date) -> None:
    """As if the 32 days before that one were over, and nobody had chatted."""
    quiet = (
        Day(day=before - timedelta(days=n), figures=Figures(), final=True, outcome="quiet") for n in range(32, 0, -1)
    )
    for _, month in groupby(quiet, key=lambda one: one.day.month):
        await days._table.commit([Write("put", to_row(one)) for one in month])


async def write(table: Table, entries: Iterable[LedgerEntry]) -> None:
    """In transactions of 100, a few partitions at a time."""
    found = [ledger_rows.from_entry(entry) for entry in entries]
    found.sort(key=lambda row: str(row["PartitionKey"]))
    gate = asyncio.Semaphore(_AT_ONCE)

    async def commit(writes: Sequence[Write]) -> None:
        async with gate:
            await table.commit(writes)

    async with asyncio.TaskGroup() as group:
        for _, partition in groupby(found, key=lambda row: row["PartitionKey"]):
            writes = (Write("put", row) for row in partition)
            for batch in _batches(writes):
                group.create_task(commit(batch))


def _batches(writes: Iterator[Write]) -> Iterator[list[Write]]:
    while batch := list(islice(writes, _MOST_WRITES)):
        yield batch
