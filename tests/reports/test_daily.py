"""A day's figures: added up from the ledger, and stored once the day is final."""

import asyncio
import gc
from collections.abc import AsyncIterator
from dataclasses import replace
from datetime import UTC, date, datetime, time, timedelta
from decimal import Decimal

import pytest

from local.azurite import connection_string
from shared.domain.calls import LedgerEntry, State
from shared.domain.clock import SystemClock
from shared.domain.daily import Figures
from shared.domain.limits import Limits
from shared.errors import StorageUnavailable
from shared.reports.daily import Reports
from shared.services import Services
from shared.settings import Settings
from shared.storage.days import Days
from shared.storage.ledger import Ledger
from shared.storage.sessions import Sessions
from shared.telemetry.call_log import CallLog
from shared.turns.recovery import Recovery
from tests.conftest import Tables
from tests.domain.test_tally import naive
from tests.support.ledger_rows import entry, entry_costing, settled, still_running, write
from tests.support.proxy import Answer, Match, TcpProxy
from tests.support.still_clock import StillClock

MONDAY = date(2024, 3, 11)
DAY = timedelta(days=1)
GRACE = timedelta(seconds=280)  # TURN_TIMEOUT_SECONDS plus 60 s
MIDNIGHT = datetime.combine(MONDAY + DAY, time(), UTC)


@pytest.fixture
def clock() -> StillClock:
    return StillClock(MIDNIGHT + DAY)


@pytest.fixture
async def services(environ: dict[str, str], clock: StillClock) -> AsyncIterator[Services]:
    services = Services(Settings.from_env(environ), clock)
    yield services
    await services.close()


@pytest.fixture
def reports(services: Services) -> Reports:
    return services.reports


@pytest.fixture
def days(services: Services) -> Days:
    return Days(services._table("daily"))


@pytest.fixture
def ledger(tables: Tables) -> Ledger:
    return Ledger(tables.usage, SystemClock())


async def recover(reports: Reports, after: str = "") -> list[str]:
    """Run the maintenance job. Returns the days that it completed."""
    return [day async for day in reports.recover(after)]


async def settle(ledger: Ledger, unaccounted: LedgerEntry) -> None:
    """The usage of an unaccounted call arrives late."""
    stored = await ledger.find(unaccounted.call, unaccounted.session_id, unaccounted.turn)
    assert stored is not None
    assert await ledger.raise_call(stored, settled(unaccounted))


def mixed(day: date) -> list[LedgerEntry]:
    """300 calls in every state: of 60 sessions, and some without a session."""
    states = (*[State.SETTLED] * 6, State.FAILED, State.UNACCOUNTED, State.ABANDONED)
    return [
        entry(
            day,
            f"session.{n // 5}" if n % 11 else None,
            n % 3 + 1,
            state=states[n % len(states)],
            prompt=1000 + n,
            cached=n,
            caller=(None, "web", "batch")[n % 3],
            deployment=("chat", "large")[n % 2],
        )
        for n in range(300)
    ]


async def test_figures_include_only_rows_of_the_day(reports: Reports, tables: Tables) -> None:
    entries = mixed(MONDAY)
    await write(tables.usage, [*entries, *mixed(MONDAY - DAY)[:50], *mixed(MONDAY + DAY)[:50]])

    assert await reports.figures(MONDAY) == naive(entries)


async def test_day_without_rows_has_zero_figures(reports: Reports) -> None:
    assert await reports.figures(MONDAY) == Figures()


async def test_ledger_rows_are_not_kept_in_memory_while_they_are_counted(
    tables: Tables, days: Days, clock: StillClock
) -> None:
    class CountingLedger(Ledger):
        max_entries = 0  # in memory at once

        async def _part(self, day: date, shard: int) -> AsyncIterator[LedgerEntry]:
            n = 0
            async for row in super()._part(day, shard):
                yield row
                n += 1
                if n == 25:
                    entries = sum(type(item) is LedgerEntry for item in gc.get_objects())
                    self.max_entries = max(self.max_entries, entries)

    await write(tables.usage, (entry_costing(MONDAY, 1, f"s{n // 10}", n) for n in range(1_200)))
    gc.collect()
    ledger = CountingLedger(tables.usage, SystemClock())
    recovery = Recovery(Sessions(tables.sessions, clock), ledger, CallLog(None), clock)
    reports = Reports(ledger, days, recovery, clock, limits=Limits(), grace=GRACE)

    assert (await reports.figures(MONDAY)).cost == 1_200
    assert 0 < ledger.max_entries < 100


async def test_storage_failure_while_reading_raises_storage_unavailable(
    environ: dict[str, str], azurite_port: int, tables: Tables, clock: StillClock
) -> None:
    await write(tables.usage, [entry_costing(MONDAY, 1)])
    with TcpProxy(azurite_port) as proxy:
        through_proxy = environ | {"TABLES_CONNECTION_STRING": connection_string(proxy.port)}
        services = Services(Settings.from_env(through_proxy), clock)
        proxy.on(Match("GET", "usage"), Answer(403), nth=9)

        with pytest.raises(StorageUnavailable):
            await services.reports.figures(MONDAY)
        await services.close()


# When a day is final


async def test_day_is_final_and_stored_after_the_grace_period(
    reports: Reports, tables: Tables, days: Days, clock: StillClock
) -> None:
    await write(tables.usage, [entry_costing(MONDAY, 1)])

    clock.set(MIDNIGHT + GRACE - timedelta(seconds=1))
    before = await reports.day(MONDAY)
    assert (before.final, before.figures.cost) == (False, Decimal(1))
    assert await days.get(MONDAY) is None

    clock.set(MIDNIGHT + GRACE)
    after = await reports.day(MONDAY)
    assert after.final
    assert await days.get(MONDAY) == after


async def test_day_with_a_running_call_is_never_final(reports: Reports, tables: Tables, clock: StillClock) -> None:
    await write(tables.usage, [still_running(entry(MONDAY, state=State.OPEN))])

    clock.set(MIDNIGHT + 30 * DAY)
    await recover(reports)
    assert not (await reports.day(MONDAY)).final


@pytest.mark.parametrize("session", ["s", None])
async def test_reading_a_day_too_old_for_maintenance_recovers_its_calls(
    reports: Reports, tables: Tables, clock: StillClock, session: str | None
) -> None:
    await write(tables.usage, [entry(MONDAY, session, state=State.OPEN), entry_costing(MONDAY, 1)])

    clock.set(MIDNIGHT + 40 * DAY)
    await recover(reports)
    day = await reports.day(MONDAY)

    assert (day.final, day.figures.cost, day.figures.open, day.figures.unaccounted) == (True, Decimal(1), 0, 1)


async def test_final_day_is_not_added_up_again(reports: Reports, tables: Tables) -> None:
    await write(tables.usage, [entry_costing(MONDAY, 1)])
    first = await reports.day(MONDAY)
    await write(tables.usage, [entry_costing(MONDAY, 2, "never")])

    await recover(reports)

    assert await reports.day(MONDAY) == first


async def test_recovery_adds_up_a_final_day_with_unaccounted_calls_again(
    reports: Reports, tables: Tables, ledger: Ledger, days: Days
) -> None:
    unaccounted = entry(MONDAY, state=State.UNACCOUNTED)
    await write(tables.usage, [unaccounted])
    await reports.day(MONDAY)
    await settle(ledger, unaccounted)

    await recover(reports)

    stored = await days.get(MONDAY)
    assert stored is not None
    assert (stored.final, stored.figures.unaccounted, stored.figures.cost) == (True, 0, Decimal("0.0012"))


async def test_recovery_includes_calls_of_today(reports: Reports, tables: Tables, clock: StillClock) -> None:
    await write(tables.usage, [entry(MONDAY, state=State.OPEN)])

    clock.set(MIDNIGHT - timedelta(hours=6))
    await recover(reports)

    figures = await reports.figures(MONDAY)
    assert (figures.open, figures.unaccounted) == (0, 1)


async def test_concurrent_reads_of_a_day_return_the_same_result(reports: Reports, tables: Tables) -> None:
    await write(tables.usage, [entry_costing(MONDAY, 1)])

    results = await asyncio.gather(*(reports.day(MONDAY) for _ in range(5)))

    assert all(day == results[0] and day.etag == results[0].etag for day in results)


# A day compared with the days before it


async def test_summary_includes_the_days_before(reports: Reports, tables: Tables, clock: StillClock) -> None:
    clock.set(datetime(2024, 3, 6, 6, tzinfo=UTC))
    first = date(2024, 2, 20)
    await write(tables.usage, (entry_costing(first + n * DAY, 2**n, f"s{n}") for n in range(16)))
    day = date(2024, 3, 5)

    summary = await reports.summary(day)

    assert [shown.day for shown in summary.history] == [day - n * DAY for n in range(13, -1, -1)]
    assert [int(shown.cost) for shown in summary.history] == [2**n for n in range(1, 15)]
    assert summary.figures.cost == 2**14
    assert summary.day_before == 2**13
    assert summary.week_average == Decimal(sum(2**n for n in range(7, 14))) / 7
    assert summary.month_to_date == sum(2**n for n in range(10, 15))


async def test_month_to_date_includes_days_before_the_history(
    reports: Reports, tables: Tables, clock: StillClock
) -> None:
    clock.set(datetime(2024, 4, 1, 6, tzinfo=UTC))
    await write(
        tables.usage,
        [entry_costing(date(2024, 3, 1), 1), entry_costing(date(2024, 2, 29), 50), entry_costing(date(2024, 3, 31), 4)],
    )

    summary = await reports.summary(date(2024, 3, 31))

    assert summary.month_to_date == 5
    assert len(summary.history) == 14


async def test_final_days_of_a_span_are_returned_in_order_and_stored(
    reports: Reports, tables: Tables, days: Days, clock: StillClock
) -> None:
    await write(tables.usage, [entry_costing(MONDAY, 1), entry_costing(MONDAY + 2 * DAY, 3)])
    last = MONDAY + 3 * DAY

    clock.set(datetime.combine(last, time(12), UTC))
    result = await reports.days(MONDAY, last)

    assert [(day.day, int(day.figures.cost), day.final) for day in result] == [
        (MONDAY, 1, True),
        (MONDAY + DAY, 0, True),
        (MONDAY + 2 * DAY, 3, True),
        (last, 0, False),
    ]
    assert sorted(await days.between(MONDAY, last)) == [MONDAY, MONDAY + DAY, MONDAY + 2 * DAY]


async def test_storing_a_day_does_not_overwrite_a_concurrent_change(
    reports: Reports, tables: Tables, days: Days
) -> None:
    await write(tables.usage, [entry(MONDAY, state=State.UNACCOUNTED)])
    outdated = await reports.day(MONDAY)
    sent = await days.put(replace(outdated, outcome="sent"))

    assert await reports._store(replace(outdated, figures=Figures())) == sent
