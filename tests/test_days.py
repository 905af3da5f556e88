"""The daily table: what is put is what is read, whoever else writes."""

import asyncio
from collections.abc import AsyncIterator
from dataclasses import replace
from datetime import UTC, date, datetime, timedelta
from decimal import Decimal

import pytest
from azure.data.tables.aio import TableServiceClient

from local.azurite import connection_string
from shared.conversation import Usage
from shared.days import Day, Days
from shared.errors import Changed
from shared.summary import Adjustment, Figures, SessionCost, Share
from shared.tables import Table
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
    unpriced=1,
    models={("chat", "gpt"): Share(cost=TINY, calls=1), ("chat", ""): Share(prompt_tokens=2**40)},
    callers={"web": Share(cost=Decimal(7), calls=2, prompt_tokens=1, completion_tokens=3)},
    costliest=(SessionCost(cost=Decimal("2.5"), session_id="a.b-c_D"), SessionCost(cost=TINY, session_id="b")),
)


@pytest.fixture
async def table(azurite_port: int, prefix: str) -> AsyncIterator[Table]:
    async with TableServiceClient.from_connection_string(connection_string(azurite_port)) as service:
        yield table_of(service.get_table_client(f"{prefix}daily"))


@pytest.fixture
def days(table: Table) -> Days:
    return Days(table)


async def test_a_day_reads_as_it_was_put(days: Days) -> None:
    whole = Day(
        day=DAY,
        figures=FIGURES,
        final=True,
        told=Decimal("123456788.10"),
        outcome="sent",
        claim="a-firing",
        claimed_until=SENT + timedelta(minutes=15),
        adjustments=(Adjustment(day=date(2024, 2, 1), difference=-TINY, cost=Decimal("0.50")),),
        sent=SENT,
        sent_to=("ann@example.com", "bob@example.com"),
        sends=3,
    )

    await days.put(whole)

    assert await days.get(DAY) == whole


async def test_a_day_of_which_nothing_is_known_reads_as_it_was_put(days: Days) -> None:
    bare = Day(day=DAY, figures=Figures(), final=False)

    await days.put(bare)

    assert await days.get(DAY) == bare


async def test_a_day_with_more_names_than_a_property_holds_is_whole(days: Days) -> None:
    callers = {f"Zoë-{n} 🙂": Share(cost=Decimal(n), calls=n) for n in range(1_000)}
    wide = Day(day=DAY, figures=replace(FIGURES, callers=callers), final=True)

    await days.put(wide)

    assert await days.get(DAY) == wide


async def test_a_day_that_was_never_put_is_none(days: Days) -> None:
    assert await days.get(DAY) is None
    assert await days.between(DAY, DAY) == {}


async def test_a_span_has_both_its_ends_and_nothing_else(days: Days) -> None:
    await days.fixed("app", "an id")
    dates = [date(2024, 1, 31), date(2024, 2, 1), date(2024, 2, 29), date(2024, 3, 1), date(2024, 3, 2)]
    await asyncio.gather(*(days.put(Day(day=day, figures=Figures(), final=True)) for day in dates))

    assert sorted(await days.between(dates[1], dates[3])) == dates[1:4]
    assert sorted(await days.between(date(2023, 12, 31), date(2025, 1, 1))) == dates


async def test_a_day_is_new_once(days: Days) -> None:
    await days.put(Day(day=DAY, figures=Figures(), final=True))

    with pytest.raises(Changed):
        await days.put(Day(day=DAY, figures=FIGURES, final=True))

    found = await days.get(DAY)
    assert found is not None
    assert found.figures == Figures()


async def test_of_many_who_put_a_version_anew_one_does(days: Days) -> None:
    first = await days.put(Day(day=DAY, figures=Figures(), final=True))
    puts = (days.put(replace(first, sends=n)) for n in range(1, 9))

    outcomes = await asyncio.gather(*puts, return_exceptions=True)

    (winner,) = [one for one in outcomes if isinstance(one, Day)]
    assert [type(one) for one in outcomes].count(Changed) == 7
    assert await days.get(DAY) == winner
    assert await days.put(replace(winner, sends=9))


async def test_what_is_fixed_is_fixed_by_the_first_for_good(days: Days) -> None:
    wanted = [f"id-{n}" for n in range(8)]

    fixed = await asyncio.gather(*(days.fixed("app", value) for value in wanted))

    assert len(set(fixed)) == 1
    assert fixed[0] in wanted
    assert await days.fixed("app", "later") == fixed[0]
    assert await days.fixed("first_day", "2024-03-11") == "2024-03-11"
