"""Test data for summaries: made-up ledger rows of any day, and quiet days, written in bulk."""

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
WORST_CASE = Decimal("0.0123456")
_MAX_WRITES = 100  # per transaction
_MAX_CONCURRENT = 8


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
    worst: Decimal | None = WORST_CASE,
) -> LedgerEntry:
    """One call at noon, with its deadline well before the end of the day. Without `rates` it is unpriced."""
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
    """The same entry with a deadline in the future."""
    return replace(one, call=replace(one.call, deadline=datetime(9999, 1, 1, tzinfo=UTC)))


def settled(unaccounted: LedgerEntry, prompt: int = 1000) -> Call:
    """The same call, settled after its answer arrived late."""
    late = entry(unaccounted.call.day, prompt=prompt).call
    return replace(late, id=unaccounted.call.id, deadline=unaccounted.call.deadline)


def rates_costing(amount: int | str) -> Rates:
    """Rates at which a call of 1,000 prompt tokens without other tokens costs `amount` USD."""
    each = Decimal(amount) * 1000
    return Rates(input=each, cached_input=each, cache_write=each, output=Decimal(0))


def entry_costing(day: date, amount: int | str, session: str = "s", turn: int = 1) -> LedgerEntry:
    """One settled call that cost `amount` USD."""
    return entry(day, session, turn, rates=rates_costing(amount))


async def write_quiet_days(days: Days, before: date) -> None:
    """Store the 32 days before `before` as final, without any calls."""
    quiet = (
        Day(day=before - timedelta(days=n), figures=Figures(), final=True, outcome="quiet") for n in range(32, 0, -1)
    )
    for _, month in groupby(quiet, key=lambda one: one.day.month):
        await days._table.commit([Write("put", to_row(one)) for one in month])


async def write(table: Table, entries: Iterable[LedgerEntry]) -> None:
    """Write in transactions of 100, a few partitions at a time."""
    rows = [ledger_rows.from_entry(entry) for entry in entries]
    rows.sort(key=lambda row: str(row["PartitionKey"]))
    gate = asyncio.Semaphore(_MAX_CONCURRENT)

    async def commit(writes: Sequence[Write]) -> None:
        async with gate:
            await table.commit(writes)

    async with asyncio.TaskGroup() as group:
        for _, partition in groupby(rows, key=lambda row: row["PartitionKey"]):
            writes = (Write("put", row) for row in partition)
            for batch in _batches(writes):
                group.create_task(commit(batch))


def _batches(writes: Iterator[Write]) -> Iterator[list[Write]]:
    while batch := list(islice(writes, _MAX_WRITES)):
        yield batch
