"""A day's figures: added up from the ledger, final once nothing in them can be open, and stored from then on."""

import asyncio
import gc
from collections.abc import AsyncIterator
from dataclasses import replace
from datetime import UTC, date, datetime, time, timedelta
from decimal import Decimal

import pytest

from local.azurite import connection_string
from shared.domain.calls import LedgerEntry, State
from shared.domain.daily import Figures
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
from tests.support.ledger_rows import entry, settled, spent, still_running, write
from tests.support.proxy import Answer, Match, TcpProxy
from tests.support.still_clock import StillClock

MONDAY = date(2024, 3, 11)
DAY = timedelta(days=1)
GRACE = timedelta(seconds=280)  # TURN_TIMEOUT_SECONDS and 60 s
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
    return Ledger(tables.usage)


async def recover(reports: Reports, after: str = "") -> list[str]:
    """The maintenance job. Returns the days that it reported as done."""
    return [day async for day in reports.recover(after)]


async def settle(ledger: Ledger, doubtful: LedgerEntry) -> None:
    """The answer of a call that was given up arrives after all."""
    stored = await ledger.find(doubtful.call, doubtful.session_id, doubtful.turn)
    assert stored is not None
    assert await ledger.raise_call(stored, settled(doubtful))


def mixed(day: date) -> list[LedgerEntry]:
    """300 calls of 60 sessions in every state, and some that belong to none."""
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


async def test_a_days_figures_are_those_of_its_rows_and_no_others(reports: Reports, tables: Tables) -> None:
    found = mixed(MONDAY)
    await write(tables.usage, [*found, *mixed(MONDAY - DAY)[:50], *mixed(MONDAY + DAY)[:50]])

    assert await reports.figures(MONDAY) == naive(found)


async def test_a_day_without_rows_has_no_figures(reports: Reports) -> None:
    assert await reports.figures(MONDAY) == Figures()


async def test_rows_are_let_go_as_they_are_counted(tables: Tables, days: Days, clock: StillClock) -> None:
    class Watched(Ledger):
        most = 0

        async def _part(self, partition: str) -> AsyncIterator[LedgerEntry]:
            n = 0
            async for row in super()._part(partition):
                yield row
                n += 1
                if n == 25:
                    self.most = max(self.most, sum(type(one) is LedgerEntry for one in gc.get_objects()))

    await write(tables.usage, (spent(MONDAY, 1, f"s{n // 10}", n) for n in range(1_200)))
    gc.collect()
    ledger = Watched(tables.usage)
    recovery = Recovery(Sessions(tables.sessions, clock), ledger, CallLog(None), clock)
    reports = Reports(ledger, days, recovery, clock, grace=GRACE)

    assert (await reports.figures(MONDAY)).cost == 1_200
    assert 0 < ledger.most < 100


async def test_storage_that_fails_half_way_is_no_figure(
    environ: dict[str, str], azurite_port: int, tables: Tables, clock: StillClock
) -> None:
    await write(tables.usage, [spent(MONDAY, 1)])
    with TcpProxy(azurite_port) as proxy:
        through_proxy = environ | {"TABLES_CONNECTION_STRING": connection_string(proxy.port)}
        services = Services(Settings.from_env(through_proxy), clock)
        proxy.on(Match("GET", "usage"), Answer(403), nth=9)

        with pytest.raises(StorageUnavailable):
            await services.reports.figures(MONDAY)
        await services.close()


# When a day is final


async def test_a_day_is_final_once_its_last_turns_time_is_up(
    reports: Reports, tables: Tables, days: Days, clock: StillClock
) -> None:
    await write(tables.usage, [spent(MONDAY, 1)])

    clock.set(MIDNIGHT + GRACE - timedelta(seconds=1))
    running = await reports.day(MONDAY)
    assert (running.final, running.figures.cost) == (False, Decimal(1))
    assert await days.get(MONDAY) is None

    clock.set(MIDNIGHT + GRACE)
    over = await reports.day(MONDAY)
    assert over.final
    assert await days.get(MONDAY) == over


async def test_a_day_with_a_call_that_still_runs_is_not_final_however_old(
    reports: Reports, tables: Tables, clock: StillClock
) -> None:
    await write(tables.usage, [still_running(entry(MONDAY, state=State.OPEN))])

    clock.set(MIDNIGHT + 30 * DAY)
    await recover(reports)
    assert not (await reports.day(MONDAY)).final


@pytest.mark.parametrize("session", ["s", None])
async def test_a_day_that_no_timer_saw_is_recovered_by_who_reads_it(
    reports: Reports, tables: Tables, clock: StillClock, session: str | None
) -> None:
    await write(tables.usage, [entry(MONDAY, session, state=State.OPEN), spent(MONDAY, 1)])

    clock.set(MIDNIGHT + 40 * DAY)
    await recover(reports)
    found = await reports.day(MONDAY)

    assert (found.final, found.figures.cost, found.figures.open, found.figures.unaccounted) == (True, Decimal(1), 0, 1)


async def test_a_final_day_is_added_up_once(reports: Reports, tables: Tables) -> None:
    await write(tables.usage, [spent(MONDAY, 1)])
    first = await reports.day(MONDAY)
    await write(tables.usage, [spent(MONDAY, 2, "never")])

    await recover(reports)

    assert await reports.day(MONDAY) == first


async def test_a_final_day_with_unaccounted_calls_is_added_up_anew_by_each_recovery(
    reports: Reports, tables: Tables, ledger: Ledger, days: Days
) -> None:
    doubtful = entry(MONDAY, state=State.UNACCOUNTED)
    await write(tables.usage, [doubtful])
    await reports.day(MONDAY)
    await settle(ledger, doubtful)

    await recover(reports)

    kept = await days.get(MONDAY)
    assert kept is not None
    assert (kept.final, kept.figures.unaccounted, kept.figures.cost) == (True, 0, Decimal("0.0012"))


async def test_todays_calls_are_recovered_too(reports: Reports, tables: Tables, clock: StillClock) -> None:
    await write(tables.usage, [entry(MONDAY, state=State.OPEN)])

    clock.set(MIDNIGHT - timedelta(hours=6))
    await recover(reports)

    figures = await reports.figures(MONDAY)
    assert (figures.open, figures.unaccounted) == (0, 1)


async def test_many_who_ask_for_a_day_at_once_are_told_the_same(reports: Reports, tables: Tables) -> None:
    await write(tables.usage, [spent(MONDAY, 1)])

    told = await asyncio.gather(*(reports.day(MONDAY) for _ in range(5)))

    assert all(day == told[0] and day.etag == told[0].etag for day in told)


# A day beside those before it


async def test_a_summary_has_the_days_before_it(reports: Reports, tables: Tables, clock: StillClock) -> None:
    clock.set(datetime(2024, 3, 6, 6, tzinfo=UTC))
    first = date(2024, 2, 20)
    await write(tables.usage, (spent(first + n * DAY, 2**n, f"s{n}") for n in range(16)))
    day = date(2024, 3, 5)

    summary = await reports.summary(day)

    assert [one.day for one in summary.history] == [day - n * DAY for n in range(13, -1, -1)]
    assert [int(one.cost) for one in summary.history] == [2**n for n in range(1, 15)]
    assert summary.figures.cost == 2**14
    assert summary.day_before == 2**13
    assert summary.week_average == Decimal(sum(2**n for n in range(7, 14))) / 7
    assert summary.month_to_date == sum(2**n for n in range(10, 15))


async def test_month_to_date_reaches_back_further_than_the_history(
    reports: Reports, tables: Tables, clock: StillClock
) -> None:
    clock.set(datetime(2024, 4, 1, 6, tzinfo=UTC))
    await write(tables.usage, [spent(date(2024, 3, 1), 1), spent(date(2024, 2, 29), 50), spent(date(2024, 3, 31), 4)])

    summary = await reports.summary(date(2024, 3, 31))

    assert summary.month_to_date == 5
    assert len(summary.history) == 14


async def test_a_span_of_days_is_stored_in_order_and_read_from_there(
    reports: Reports, tables: Tables, days: Days, clock: StillClock
) -> None:
    await write(tables.usage, [spent(MONDAY, 1), spent(MONDAY + 2 * DAY, 3)])
    last = MONDAY + 3 * DAY

    clock.set(datetime.combine(last, time(12), UTC))
    found = await reports.days(MONDAY, last)

    assert [(day.day, int(day.figures.cost), day.final) for day in found] == [
        (MONDAY, 1, True),
        (MONDAY + DAY, 0, True),
        (MONDAY + 2 * DAY, 3, True),
        (last, 0, False),
    ]
    assert sorted(await days.between(MONDAY, last)) == [MONDAY, MONDAY + DAY, MONDAY + 2 * DAY]


async def test_what_changed_since_a_day_was_read_is_not_overwritten(
    reports: Reports, tables: Tables, days: Days
) -> None:
    await write(tables.usage, [entry(MONDAY, state=State.UNACCOUNTED)])
    kept = await reports.day(MONDAY)
    sent = await days.put(replace(kept, outcome="sent"))

    assert await reports._store(replace(kept, figures=Figures())) == sent
