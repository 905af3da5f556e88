"""The maintenance timer: its jobs are independent of each other, bounded in time, and go on where they stopped.

An email that failed at the daily firing is sent by the next run.
"""

import asyncio
from collections.abc import AsyncIterator, Callable, Iterator
from datetime import UTC, date, datetime, time, timedelta
from email import message_from_bytes
from pathlib import Path

import httpx
import pytest
from aiosmtpd.controller import Controller
from aiosmtpd.smtp import Envelope

from local.parts import free_port
from shared.domain.calls import LedgerEntry, State
from shared.domain.clock import Clock
from shared.errors import StorageUnavailable
from shared.maintenance import JOB_TIME_LIMIT_S, Job, Maintenance
from shared.services import Services, services
from shared.settings import Settings, SettingsError
from shared.storage.cursors import Cursors
from shared.storage.days import Days
from shared.storage.deletion import ERASING, Deletions
from shared.storage.ledger import Ledger
from shared.storage.sessions import Sessions
from tests.conftest import Tables
from tests.support.clock import ManualClock
from tests.support.ledger_rows import entry, keep_quiet, spent, write
from tests.support.proxy import Answer, Match, Rule, Stall, TcpProxy
from tests.support.talking import fill, row_keys, until

MONDAY = date(2024, 3, 11)
DAY = timedelta(days=1)
TUESDAY, WEDNESDAY, THURSDAY = (MONDAY + DAY * n for n in range(1, 4))
UNFINISHED = Match("GET", r"usage.*unaccounted")  # the ledger's unfinished calls of a day
REFUSED = Answer(403)  # an error that the storage client does not retry


@pytest.fixture
def outbox(tmp_path: Path) -> Path:
    return tmp_path / "outbox"


@pytest.fixture
def environ(environ: dict[str, str], outbox: Path) -> dict[str, str]:
    """The summary is due every day at 06:00."""
    mail = {"SUMMARY_SCHEDULE": "0 0 6 * * *", "SUMMARY_RECIPIENTS": "ann@example.com", "OUTBOX_DIR": str(outbox)}
    return environ | mail | {"SUMMARY_SENDER": "chat@example.com"}


Start = Callable[[], Services]


@pytest.fixture
async def start(storage: TcpProxy, environ: dict[str, str], clock: ManualClock) -> AsyncIterator[Start]:
    """Starts the app with the settings as the test has changed them; it reaches its tables through `storage`."""
    started: list[Services] = []

    def begin() -> Services:
        started.append(Services(Settings.from_env(environ), clock))
        return started[-1]

    yield begin
    for app in started:
        await app.close()


At = Callable[[date, str], None]


@pytest.fixture
def at(clock: ManualClock) -> At:
    """Sets the wall-clock time."""
    return lambda day, hour: clock.set(datetime.combine(day, time.fromisoformat(hour), UTC))


def days(app: Services) -> Days:
    return Days(app._table("daily"))


def cursors(app: Services) -> Cursors:
    return Cursors(app._table("daily"))


async def first_day(app: Services, day: date) -> None:
    """As if the app had been deployed on that day; the days before it had no calls."""
    await days(app).constant("first_day", str(day))
    await keep_quiet(days(app), day)


async def crash_a_call(tables: Tables, day: date) -> LedgerEntry:
    """A call of noon whose process died. On a day that no email is about yet: only the recovery job looks there."""
    crashed = entry(day, "crashed", state=State.OPEN)
    await write(tables.usage, [crashed])
    return crashed


async def state_of(tables: Tables, entry: LedgerEntry) -> State:
    stored = await Ledger(tables.usage).find(entry.call, entry.session_id, entry.turn)
    assert stored is not None
    return stored.call.state


async def interrupt_a_deletion(tables: Tables, clock: Clock, session: str = "doomed") -> str:
    """An erasure that was begun by a process that died. Returns its id."""
    await fill(tables, 3, session)
    sessions = Sessions(tables.sessions, clock)
    head = await sessions.head(session)
    assert head is not None
    marked = await Deletions(tables.sessions, sessions, clock).begin(head, erase=True)
    assert marked is not None
    assert marked.deletion is not None
    return marked.deletion.id


async def is_erased(tables: Tables, session: str = "doomed") -> bool:
    return await row_keys(tables, session) == await row_keys(tables, ERASING) == []


def emails(outbox: Path) -> list[str]:
    """The days that emails are about."""
    return sorted(_day(file.read_bytes()) for file in outbox.glob("*.eml"))


def _day(content: bytes) -> str:
    return message_from_bytes(content)["Subject"].split()[2].rstrip(":")


class SmtpServer:
    """On a port of its own, down until it is started."""

    def __init__(self) -> None:
        self.port = free_port()
        self.days: list[str] = []
        self._controller: Controller | None = None

    async def handle_DATA(self, _: object, __: object, envelope: Envelope) -> str:  # noqa: N802
        assert isinstance(envelope.content, bytes)
        self.days.append(_day(envelope.content))
        return "250 OK"

    def start(self) -> None:
        self._controller = Controller(self, hostname="127.0.0.1", port=self.port)
        self._controller.start()

    def stop(self) -> None:
        if self._controller:
            self._controller.stop()


@pytest.fixture
def smtp(environ: dict[str, str]) -> Iterator[SmtpServer]:
    """Where the app's email goes."""
    del environ["OUTBOX_DIR"]
    server = SmtpServer()
    environ["SMTP_URL"] = f"smtp://127.0.0.1:{server.port}"
    yield server
    server.stop()


# The jobs are wired


async def test_a_run_recovers_a_call_finishes_a_deletion_and_sends_a_due_email(
    clock: ManualClock, api: httpx.AsyncClient, tables: Tables, outbox: Path, at: At
) -> None:
    at(TUESDAY, "13:05")
    await first_day(services(), MONDAY)
    await write(tables.usage, [spent(MONDAY, 1)])
    crashed = await crash_a_call(tables, TUESDAY)
    await interrupt_a_deletion(tables, clock)

    await services().maintenance.run()

    assert await state_of(tables, crashed) is State.UNACCOUNTED
    assert await is_erased(tables)
    assert emails(outbox) == ["2024-03-11"]


async def test_the_maintenance_function_does_so(
    clock: ManualClock, api: httpx.AsyncClient, tables: Tables, at: At
) -> None:
    at(TUESDAY, "13:05")
    await first_day(services(), TUESDAY)
    await interrupt_a_deletion(tables, clock)

    assert (await api.post("/admin/functions/maintenance", json={"input": ""})).status_code == 202

    async def erased() -> bool | None:
        return await is_erased(tables) or None

    assert await until(erased)


async def test_a_call_whose_session_is_unreadable_does_not_keep_others_from_being_recovered(
    start: Start, tables: Tables, at: At, caplog: pytest.LogCaptureFixture
) -> None:
    at(TUESDAY, "13:05")
    app = start()
    await first_day(app, TUESDAY)
    unreadable = entry(TUESDAY, "broken", state=State.OPEN)
    crashed = await crash_a_call(tables, TUESDAY)
    await write(tables.usage, [unreadable])
    await tables.sessions.put({"PartitionKey": "broken", "RowKey": "head", "created": "not a date"})

    await app.maintenance.run()

    assert await state_of(tables, unreadable) is State.OPEN
    assert await state_of(tables, crashed) is State.UNACCOUNTED
    assert f"call {unreadable.call.id}: recovery failed" in caplog.text


# One job that fails does not stop the others


@pytest.mark.parametrize("failing", ["first", "second", "third"])
async def test_whichever_job_fails_the_others_run_and_the_error_is_raised_at_the_end(
    start: Start, clock: ManualClock, failing: str
) -> None:
    ran: list[str] = []

    def job(name: str) -> Job:
        async def run(after: str) -> AsyncIterator[str]:
            if name == failing:
                raise SettingsError("ACS_ENDPOINT", "is not set")
            ran.append(name)
            yield ""

        return run

    names = ("first", "second", "third")
    with pytest.raises(ExceptionGroup) as raised:
        await Maintenance({name: job(name) for name in names}, cursors(start()), clock).run()

    assert ran == [name for name in names if name != failing]
    assert [str(error) for error in raised.value.exceptions] == ["ACS_ENDPOINT is not set"]


async def test_while_the_mail_service_is_down_calls_are_recovered_and_deletions_finished(
    smtp: SmtpServer, start: Start, clock: ManualClock, tables: Tables, at: At, caplog: pytest.LogCaptureFixture
) -> None:
    app = start()
    at(TUESDAY, "13:05")
    await first_day(app, MONDAY)
    crashed = await crash_a_call(tables, TUESDAY)
    await interrupt_a_deletion(tables, clock)

    await app.maintenance.run()

    assert "the summary of 2024-03-11 could not be sent" in caplog.text
    assert await state_of(tables, crashed) is State.UNACCOUNTED
    assert await is_erased(tables)


@pytest.mark.parametrize(
    ("change", "named"),
    [
        ({"OUTBOX_DIR": ""}, "ACS_ENDPOINT"),
        ({"SMTP_URL": "smtp://127.0.0.1"}, "SMTP_URL"),
        ({"SUMMARY_SCHEDULE": "0 6 * * *"}, "SUMMARY_SCHEDULE"),
    ],
)
async def test_while_mail_is_misconfigured_calls_are_recovered_and_deletions_finished(
    start: Start,
    environ: dict[str, str],
    clock: ManualClock,
    tables: Tables,
    at: At,
    change: dict[str, str],
    named: str,
) -> None:
    environ |= change
    app = start()
    at(TUESDAY, "13:05")
    await first_day(app, MONDAY)
    crashed = await crash_a_call(tables, TUESDAY)
    await interrupt_a_deletion(tables, clock)

    with pytest.raises(ExceptionGroup) as raised:
        await app.maintenance.run()

    (error,) = raised.value.exceptions
    assert isinstance(error, SettingsError)
    assert named in str(error)
    assert await state_of(tables, crashed) is State.UNACCOUNTED
    assert await is_erased(tables)


async def test_while_recovery_fails_deletions_are_finished_and_the_email_is_sent(
    storage: TcpProxy, start: Start, clock: ManualClock, tables: Tables, outbox: Path, at: At
) -> None:
    app = start()
    at(TUESDAY, "13:05")
    await first_day(app, MONDAY)
    await interrupt_a_deletion(tables, clock)
    failing = storage.on(UNFINISHED, REFUSED, times=None)

    with pytest.raises(ExceptionGroup) as raised:
        await app.maintenance.run()

    assert failing.hits
    assert [type(error) for error in raised.value.exceptions] == [StorageUnavailable]
    assert await is_erased(tables)
    assert emails(outbox) == ["2024-03-11"]


# An email that failed at the daily firing


async def test_an_email_that_failed_because_the_mail_server_was_down_is_sent_by_the_next_maintenance_once(
    smtp: SmtpServer, start: Start, tables: Tables, at: At
) -> None:
    app = start()
    await first_day(app, MONDAY)
    await write(tables.usage, [spent(MONDAY, 1)])
    at(TUESDAY, "06:00")
    await app.delivery.send_due()
    at(TUESDAY, "06:05")
    await app.maintenance.run()
    assert smtp.days == []
    smtp.start()

    for hour in ("06:20", "06:35", "23:50"):
        at(TUESDAY, hour)
        await app.maintenance.run()
        assert smtp.days == ["2024-03-11"], hour


async def test_an_email_that_failed_because_its_folder_could_not_be_written_is_sent_by_the_next_maintenance_once(
    start: Start, outbox: Path, at: At
) -> None:
    app = start()
    await first_day(app, MONDAY)
    block(outbox)
    at(TUESDAY, "06:00")
    await app.delivery.send_due()
    unblock(outbox)

    at(TUESDAY, "06:05")
    await app.maintenance.run()
    written = times_written(outbox)
    at(TUESDAY, "06:20")
    await app.maintenance.run()

    assert emails(outbox) == ["2024-03-11"]
    assert times_written(outbox) == written


def block(folder: Path) -> None:
    """Put a file in the way of the folder."""
    folder.write_text("")


def unblock(folder: Path) -> None:
    folder.unlink()


def times_written(folder: Path) -> list[int]:
    return [file.stat().st_mtime_ns for file in folder.iterdir()]


async def test_an_email_that_failed_because_storage_was_down_is_sent_by_the_next_maintenance_once(
    storage: TcpProxy, smtp: SmtpServer, start: Start, tables: Tables, at: At
) -> None:
    app = start()
    await first_day(app, MONDAY)
    await write(tables.usage, [spent(MONDAY, 1)])
    smtp.start()
    storage.down()
    at(TUESDAY, "06:00")
    with pytest.raises(StorageUnavailable):
        await app.delivery.send_due()
    storage.up()

    for hour in ("06:05", "06:20"):
        at(TUESDAY, hour)
        await app.maintenance.run()
        assert smtp.days == ["2024-03-11"], hour


async def test_no_day_is_mailed_before_the_schedule_says_so(
    smtp: SmtpServer, start: Start, tables: Tables, at: At
) -> None:
    """Monday's email failed all of Tuesday; on Wednesday night only that one is late."""
    app = start()
    await first_day(app, MONDAY)
    await write(tables.usage, [spent(MONDAY, 1), spent(TUESDAY, 2)])
    at(TUESDAY, "05:50")
    await app.maintenance.run()
    at(TUESDAY, "06:00")
    await app.delivery.send_due()
    smtp.start()

    for hour in ("00:05", "05:50"):
        at(WEDNESDAY, hour)
        await app.maintenance.run()
        assert smtp.days == ["2024-03-11"], hour
    at(WEDNESDAY, "06:05")
    await app.maintenance.run()
    assert smtp.days == ["2024-03-11", "2024-03-12"]


@pytest.mark.parametrize("hour", ["00:05", "05:50", "06:05", "23:50"])
async def test_on_schedule_maintenance_sends_nothing(
    smtp: SmtpServer, start: Start, tables: Tables, at: At, hour: str
) -> None:
    app = start()
    smtp.start()
    await first_day(app, MONDAY)
    await write(tables.usage, [spent(MONDAY, 1), spent(TUESDAY, 2)])
    at(TUESDAY, "06:00")
    await app.delivery.send_due()
    if hour > "06:00":
        at(WEDNESDAY, "06:00")
        await app.delivery.send_due()
    sent = list(smtp.days)
    assert sent

    at(WEDNESDAY, hour)
    await app.maintenance.run()

    assert smtp.days == sent


@pytest.mark.parametrize("hour", ["00:20", "05:50", "06:05", "23:50"])
async def test_a_fresh_deployment_sends_nothing_for_the_day_before_it(
    smtp: SmtpServer, start: Start, tables: Tables, at: At, hour: str
) -> None:
    app = start()
    smtp.start()
    await write(tables.usage, [spent(MONDAY, 1), spent(TUESDAY, 2)])
    at(TUESDAY, hour)

    await app.maintenance.run()
    await app.maintenance.run()
    assert smtp.days == []

    at(WEDNESDAY, "06:00")
    await app.delivery.send_due()
    assert smtp.days == ["2024-03-12"]


async def test_the_first_email_of_a_fresh_deployment_is_sent_by_maintenance_where_its_daily_firing_failed(
    smtp: SmtpServer, start: Start, tables: Tables, at: At
) -> None:
    app = start()
    await write(tables.usage, [spent(MONDAY, 1), spent(TUESDAY, 2)])
    at(TUESDAY, "13:05")
    await app.maintenance.run()
    at(WEDNESDAY, "06:00")
    await app.delivery.send_due()
    smtp.start()

    at(WEDNESDAY, "06:05")
    await app.maintenance.run()

    assert smtp.days == ["2024-03-12"]


async def test_without_a_schedule_maintenance_sends_nothing(
    smtp: SmtpServer, start: Start, environ: dict[str, str], at: At
) -> None:
    environ["SUMMARY_SCHEDULE"] = ""
    app = start()
    smtp.start()
    await first_day(app, MONDAY)
    at(WEDNESDAY, "06:05")

    await app.maintenance.run()

    assert smtp.days == []


async def test_both_timers_at_once_send_one_email(
    smtp: SmtpServer, start: Start, environ: dict[str, str], at: At
) -> None:
    environ["SUMMARY_SCHEDULE"] = "0 5 6 * * *"
    instances = [start(), start()]
    smtp.start()
    await first_day(instances[0], MONDAY)
    at(TUESDAY, "06:05")

    await asyncio.gather(instances[0].delivery.send_due(), *(app.maintenance.run() for app in instances))

    assert smtp.days == ["2024-03-11"]


# A job that runs out of its time


async def test_a_job_is_stopped_at_its_time_limit_and_goes_on_after_the_position_that_it_reached(
    start: Start, clock: ManualClock
) -> None:
    began_after: list[str] = []
    others = 0

    async def slow(after: str) -> AsyncIterator[str]:
        began_after.append(after)
        for position in ("a", "b", "c"):
            if position > after:
                if position == "c" and len(began_after) == 1:
                    await clock.sleep(JOB_TIME_LIMIT_S + 1)
                yield position

    async def other(_: str) -> AsyncIterator[str]:
        nonlocal others
        others += 1
        yield ""

    stored = cursors(start())
    maintenance = Maintenance({"slow": slow, "other": other}, stored, clock)
    running = asyncio.create_task(maintenance.run())
    await clock.until_sleeping(JOB_TIME_LIMIT_S + 1)
    await clock.advance(JOB_TIME_LIMIT_S - 30)
    assert not running.done()
    await clock.advance(30)
    await running
    assert (await stored.get("slow"))[0] == "b"
    assert others == 1

    await maintenance.run()
    assert (await stored.get("slow"))[0] == ""
    await maintenance.run()
    assert began_after == ["", "b", ""]


async def run_out_of_time(app: Services, clock: ManualClock, stalled: Rule) -> None:
    running = asyncio.create_task(app.maintenance.run())
    await stalled.until_reached()
    await clock.advance(JOB_TIME_LIMIT_S)
    await running


async def test_recovery_goes_on_after_the_day_that_it_reached(
    storage: TcpProxy, start: Start, clock: ManualClock, tables: Tables, at: At
) -> None:
    app = start()
    at(THURSDAY, "13:05")
    crashed = [await crash_a_call(tables, day) for day in (MONDAY, WEDNESDAY)]
    stalled = storage.on(Match("GET", rf"{TUESDAY}-00.*unaccounted"), Stall())
    await run_out_of_time(app, clock, stalled)
    assert (await cursors(app).get("recovery"))[0] == "2024-03-11"
    assert [await state_of(tables, each) for each in crashed] == [State.UNACCOUNTED, State.OPEN]
    storage.clear()
    storage.seen.clear()

    await app.maintenance.run()
    read = {day for day in days_of(MONDAY) if storage.count(Match("GET", rf"{day}-00.*unaccounted"))}
    assert read == {TUESDAY, WEDNESDAY, THURSDAY}
    assert [await state_of(tables, each) for each in crashed] == [State.UNACCOUNTED] * 2
    assert (await cursors(app).get("recovery"))[0] == ""

    storage.seen.clear()
    await app.maintenance.run()
    assert storage.count(Match("GET", rf"{MONDAY}-00.*unaccounted")) == 1


def days_of(first: date) -> list[date]:
    """The days that recovery looks at, from a week before the first one to Thursday."""
    return [first - 7 * DAY + n * DAY for n in range(11)]


async def test_deletions_go_on_after_the_one_that_was_reached(
    storage: TcpProxy, start: Start, clock: ManualClock, tables: Tables, at: At
) -> None:
    app = start()
    at(TUESDAY, "13:05")
    await first_day(app, TUESDAY)
    sessions = {await interrupt_a_deletion(tables, clock, f"doomed-{n}"): f"doomed-{n}" for n in range(3)}
    ids = sorted(sessions)
    names = [sessions[id_] for id_ in ids]
    stalled = storage.on(Match("GET", rf"sessions.*'{names[1]}'"), Stall())
    await run_out_of_time(app, clock, stalled)
    assert (await cursors(app).get("deletions"))[0] == ids[0]
    assert [await row_keys(tables, name) == [] for name in names] == [True, False, False]
    storage.clear()
    # A row from before the position, which would be dropped if the run began anew.
    await tables.sessions.put(
        {"PartitionKey": ERASING, "RowKey": ids[0], "session": names[0], "begun": clock.now() - DAY}
    )

    await app.maintenance.run()
    assert [await row_keys(tables, name) == [] for name in names] == [True, True, True]
    assert await row_keys(tables, ERASING) == [ids[0]]
    assert (await cursors(app).get("deletions"))[0] == ""

    await app.maintenance.run()
    assert await row_keys(tables, ERASING) == []
