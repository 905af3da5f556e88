"""The daily table: a day reads back as written, and concurrent writers cannot overwrite each other."""

import asyncio
from collections.abc import AsyncIterator
from dataclasses import replace
from datetime import UTC, date, datetime, timedelta
from decimal import Decimal

import orjson
import pytest
from azure.data.tables.aio import TableServiceClient

from local.azurite import connection_string
from shared.domain.calls import Usage
from shared.domain.daily import Adjustment, Day, Figures, SessionCost, UsageBreakdown
from shared.errors import VersionConflict
from shared.storage.day_rows import from_day
from shared.storage.days import Days
from shared.storage.tables import Table
from tests.conftest import table_of

DAY = date(2024, 2, 29)
SENT = datetime(2024, 3, 1, 6, 0, 1, 234567, UTC)
TINY = Decimal("0.0000000000001")
FIGURES = Figures(
    usage=Usage(
        prompt_tokens=2**53 + 1, cached_tokens=2**40, cache_write_tokens=3, completion_tokens=5, reasoning_tokens=4
    ),
    cost=Decimal("123456789.000000000001"),
    saved=TINY,
    sessions=2,
    turns=3,
    calls=4,
    failed=1,
    unaccounted=1,
    unaccounted_cost=Decimal("0.10"),
    unpriced=2,
    unpriced_turns=1,
    models={("chat", "gpt"): UsageBreakdown(cost=TINY, calls=1), ("chat", ""): UsageBreakdown(prompt_tokens=2**40)},
    callers={"web": UsageBreakdown(cost=Decimal(7), calls=2, prompt_tokens=1, completion_tokens=3)},
    costliest=(
        SessionCost(cost=Decimal("2.5"), session="a.b-c_D", is_reference=False),
        SessionCost(cost=TINY, session="b"),
    ),
)


@pytest.fixture
async def table(azurite_port: int, prefix: str) -> AsyncIterator[Table]:
    async with TableServiceClient.from_connection_string(connection_string(azurite_port)) as service:
        yield table_of(service.get_table_client(f"{prefix}daily"))


@pytest.fixture
def days(table: Table) -> Days:
    return Days(table)


async def test_day_reads_back_as_written(days: Days) -> None:
    day = Day(
        day=DAY,
        figures=FIGURES,
        final=True,
        mailed_cost=Decimal("123456788.10"),
        outcome="sent",
        claim="a-firing",
        claimed_until=SENT + timedelta(minutes=15),
        adjustments=(Adjustment(day=date(2024, 2, 1), difference=-TINY, cost=Decimal("0.50")),),
        sent=SENT,
        sent_to=("ann@example.com", "bob@example.com"),
        sends=3,
    )

    await days.put(day)

    assert await days.get(DAY) == day


async def test_day_without_optional_fields_reads_back_as_written(days: Days) -> None:
    bare = Day(day=DAY, figures=Figures(), final=False)

    await days.put(bare)

    assert await days.get(DAY) == bare


async def test_day_larger_than_one_property_reads_back_whole(days: Days) -> None:
    callers = {f"Zoë-{n} 🙂": UsageBreakdown(cost=Decimal(n), calls=n) for n in range(1_000)}
    wide = Day(day=DAY, figures=replace(FIGURES, callers=callers), final=True)

    await days.put(wide)

    assert await days.get(DAY) == wide


async def test_missing_day_is_none(days: Days) -> None:
    assert await days.get(DAY) is None
    assert await days.between(DAY, DAY) == {}


async def test_between_includes_both_ends_and_nothing_else(days: Days) -> None:
    await days.constant("app", "an id")
    dates = [date(2024, 1, 31), date(2024, 2, 1), date(2024, 2, 29), date(2024, 3, 1), date(2024, 3, 2)]
    await asyncio.gather(*(days.put(Day(day=day, figures=Figures(), final=True)) for day in dates))

    assert sorted(await days.between(dates[1], dates[3])) == dates[1:4]
    assert sorted(await days.between(date(2023, 12, 31), date(2025, 1, 1))) == dates


async def test_inserting_a_day_twice_raises_version_conflict(days: Days) -> None:
    await days.put(Day(day=DAY, figures=Figures(), final=True))

    with pytest.raises(VersionConflict):
        await days.put(Day(day=DAY, figures=FIGURES, final=True))

    stored = await days.get(DAY)
    assert stored is not None
    assert stored.figures == Figures()


async def test_one_of_many_concurrent_updates_of_a_day_succeeds(days: Days) -> None:
    first = await days.put(Day(day=DAY, figures=Figures(), final=True))
    puts = (days.put(replace(first, sends=n)) for n in range(1, 9))

    outcomes = await asyncio.gather(*puts, return_exceptions=True)

    (winner,) = [outcome for outcome in outcomes if isinstance(outcome, Day)]
    assert [type(outcome) for outcome in outcomes].count(VersionConflict) == 7
    assert await days.get(DAY) == winner
    assert await days.put(replace(winner, sends=9))


async def test_first_value_of_a_constant_is_permanent(days: Days) -> None:
    values = [f"id-{n}" for n in range(8)]

    constants = await asyncio.gather(*(days.constant("app", value) for value in values))

    assert len(set(constants)) == 1
    assert constants[0] in values
    assert await days.constant("app", "later") == constants[0]
    assert await days.constant("first_day", "2024-03-11") == "2024-03-11"


async def test_older_row_without_unpriced_turns_reads_as_one_unpriced_call_per_turn(days: Days, table: Table) -> None:
    row = from_day(Day(day=DAY, figures=FIGURES, final=True))
    figures = orjson.loads(row["figures"])
    del figures["unpriced_turns"]
    await table.put({**row, "figures": orjson.dumps(figures).decode()})

    stored = await days.get(DAY)

    assert stored is not None
    assert stored.figures == replace(FIGURES, unpriced=2, unpriced_turns=2)
