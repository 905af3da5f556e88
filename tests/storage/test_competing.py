"""Several instances change the counters of the same limits: all calls are opened and settled, and each is counted."""

import asyncio
import uuid
from dataclasses import replace
from datetime import UTC, datetime, timedelta
from decimal import Decimal

import pytest

from shared.domain.calls import ZERO, Call, LedgerEntry, State
from shared.domain.clock import SystemClock
from shared.domain.limits import TOTAL, Limit, minute_of
from shared.errors import VersionConflict
from shared.storage.ledger import Ledger
from shared.storage.ledger_rows import ledger_keys, to_entry
from shared.storage.limits import LimitedCalls
from tests.conftest import Tables
from tests.support.clock import ManualClock
from tests.support.conservation import all_rows, assert_counted, is_counter

LIMITS = [Limit(name=name, usd_per_day=Decimal(100), requests_per_minute=1_000) for name in ("key:ann", TOTAL)]
COST = Decimal("0.001")


def new_entry() -> LedgerEntry:
    now = datetime.now(UTC)
    call = Call(
        id=uuid.uuid4().hex,
        day=now.date(),
        deadline=now + timedelta(minutes=5),
        deployment="chat",
        worst_case=Decimal("0.01"),
        max_tokens=100,
        minute=minute_of(now),
    )
    return LedgerEntry(call=call, session_id="s", turn=1, caller="key:ann")


def settled(entry: LedgerEntry) -> Call:
    return replace(entry.call, state=State.SETTLED, cost=COST)


async def entries(tables: Tables) -> list[LedgerEntry]:
    return [to_entry(row) async for row in all_rows(tables.usage) if not is_counter(row)]


async def test_no_call_gives_up_while_instances_compete(tables: Tables) -> None:
    ledgers = [Ledger(tables.usage, SystemClock()) for _ in range(6)]

    async def take_calls(ledger: Ledger) -> None:
        for _ in range(3):
            entry = await ledger.open(new_entry(), LIMITS)
            assert await ledger.raise_call(entry, settled(entry))

    await asyncio.gather(*(take_calls(ledger) for ledger in ledgers for _ in range(4)))

    counters = await assert_counted(tables, await entries(tables))
    assert {(counter.spent, counter.held) for counter in counters.values()} == {(6 * 4 * 3 * COST, ZERO)}


async def test_changed_row_fails_its_change_alone(tables: Tables) -> None:
    calls = LimitedCalls(tables.usage, SystemClock())
    first, second, third = [await calls.open(new_entry(), LIMITS, None) for _ in range(3)]
    partition, key = ledger_keys(second.call, second.session_id, second.turn)
    await tables.usage.merge({"PartitionKey": partition, "RowKey": key, "reason": "changed"}, second.etag)

    results = await asyncio.gather(
        *(calls.raise_row(entry, settled(entry)) for entry in (first, second, third)), return_exceptions=True
    )

    assert [type(result) for result in results] == [type(None), VersionConflict, type(None)]
    states = {entry.call.id: entry.call.state for entry in await entries(tables)}
    assert [states[entry.call.id] for entry in (first, second, third)] == ["settled", "open", "settled"]
    await assert_counted(tables, await entries(tables))


async def test_lost_race_for_a_row_is_a_conflict(tables: Tables) -> None:
    calls = LimitedCalls(tables.usage, SystemClock())
    entry = await calls.open(new_entry(), LIMITS, None)
    with pytest.raises(VersionConflict):
        await LimitedCalls(tables.usage, SystemClock()).open(replace(entry, etag=""), LIMITS, None)


async def test_two_states_of_a_call_at_once_are_written_one_after_the_other(tables: Tables) -> None:
    ledger = Ledger(tables.usage, SystemClock())
    entry = await ledger.open(new_entry(), LIMITS)
    unaccounted = replace(entry.call, state=State.UNACCOUNTED)

    results = await asyncio.gather(
        ledger.raise_call(entry, unaccounted),
        ledger.raise_call(entry, settled(entry)),
        ledger.raise_call(entry, settled(entry)),
        ledger.open(new_entry(), LIMITS),
    )

    assert isinstance(results[-1], LedgerEntry)
    counters = await assert_counted(tables, await entries(tables))
    assert {counter.spent for counter in counters.values()} == {COST}


async def test_counter_of_long_ago_is_read_again_before_it_refuses_a_call_of_a_group(tables: Tables) -> None:
    limit = Limit(name=TOTAL, usd_per_day=Decimal("0.1"))
    clock = ManualClock()
    ours, others = Ledger(tables.usage, clock), Ledger(tables.usage, SystemClock())
    big = new_entry()
    big = await ours.open(replace(big, call=replace(big.call, worst_case=Decimal("0.08"))), [limit])
    stored = await others.find(big.call, big.session_id, big.turn)
    assert stored
    assert await others.raise_call(stored, settled(stored))
    await clock.advance(10)

    opened = await asyncio.gather(*(ours.open(new_entry(), [limit]) for _ in range(4)))

    assert len(opened) == 4
    await assert_counted(tables, await entries(tables))


async def test_known_refusal_takes_the_latest_minute_of_all_limits(tables: Tables) -> None:
    own, total = Limit(name="key:ann", requests_per_minute=1), Limit(name=TOTAL, requests_per_minute=9)
    limited = LimitedCalls(tables.usage, SystemClock())
    await limited.open(new_entry(), [own, total], None)
    assert limited.known_refusal([own, total], new_entry().call)

    later = new_entry()
    minute = minute_of(datetime.now(UTC)) + timedelta(minutes=1)
    if minute.date() == later.call.day:
        await limited.open(replace(later, call=replace(later.call, minute=minute)), [total], None)
        assert limited.known_refusal([own, total], new_entry().call) is None
