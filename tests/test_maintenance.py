"""The maintenance timer: its jobs are independent of each other, have a time limit, and resume where they stopped.

An email that the daily timer could not send is sent by the next maintenance run.
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
from shared.domain.clock import Clock, SystemClock
from shared.errors import StorageUnavailable
from shared.maintenance import JOB_TIME_LIMIT_S, Job, Maintenance
from shared.services import Services, services
from shared.settings import Settings, SettingsError
from shared.storage.cursors import Cursors
from shared.storage.days import Days
from shared.storage.deletion import ERASING, Deletions
from shared.storage.ledger import Ledger
from shared.storage.owner_index import OwnerIndex
from shared.storage.sessions import Sessions
from tests.conftest import Tables
from tests.support.chat_client import fill, row_keys, until
from tests.support.clock import ManualClock
from tests.support.ledger_rows import entry, entry_costing, write, write_quiet_days
from tests.support.proxy import Answer, Match, Rule, Stall, TcpProxy

MONDAY = date(2024, 3, 11)
DAY = timedelta(days=1)
TUESDAY, WEDNESDAY, THURSDAY = (MONDAY + DAY * n for n in range(1, 4))
UNFINISHED = Match("GET", r"usage.*unaccounted")  # the query for a day's unfinished calls in the ledger
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
    """Starts the app with the current settings of `environ`; it connects to its tables through `storage`."""
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


async def deploy_on(app: Services, day: date) -> None:
    """Prepare the tables as if the app had been deployed on that day, with no calls before it."""
    await days(app).constant("first_day", str(day))
    await write_quiet_days(days(app), day)


async def write_crashed_call(tables: Tables, day: date) -> LedgerEntry:
    """Write an open call at noon whose process died. Choose a day without an email: only recovery reads it."""
    crashed = entry(day, "crashed", state=State.OPEN)
    await write(tables.usage, [crashed])
    return crashed


async def state_of(tables: Tables, entry: LedgerEntry) -> State:
    stored = await Ledger(tables.usage, SystemClock()).find(entry.call, entry.session_id, entry.turn)
    assert stored is not None
    return stored.call.state


async def interrupt_deletion(tables: Tables, clock: Clock, session: str = "doomed") -> str:
    """Begin an erasure and leave it unfinished, as a process that died would. Returns its id."""
    await fill(tables, 3, session)
    sessions = Sessions(tables.sessions, clock)
    head = await sessions.head(session)
    assert head is not None
    owners = OwnerIndex(tables.sessions, sessions, clock)
    ledger, days = Ledger(tables.usage, clock), Days(tables.daily)
    marked = await Deletions(tables.sessions, sessions, owners, ledger, days, clock).begin(head, erase=True)
    assert marked is not None
    assert marked.deletion is not None
    return marked.deletion.id


async def is_erased(tables: Tables, session: str = "doomed") -> bool:
    return await row_keys(tables, session) == await row_keys(tables, ERASING) == []


def emails(outbox: Path) -> list[str]:
    """The days of the emails in the outbox."""
    return sorted(_day(file.read_bytes()) for file in outbox.glob("*.eml"))


def _day(content: bytes) -> str:
    return message_from_bytes(content)["Subject"].split()[2].rstrip(":")


class SmtpServer:
    """An SMTP server on its own port; it does not run until `start`."""

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
    """The SMTP server that the app sends email to."""
    del environ["OUTBOX_DIR"]
    server = SmtpServer()
    environ["SMTP_URL"] = f"smtp://127.0.0.1:{server.port}"
    yield server
    server.stop()


# All jobs


async def test_maintenance_runs_recovery_deletions_and_overdue_email(
    clock: ManualClock, api: httpx.AsyncClient, tables: Tables, outbox: Path, at: At
) -> None:
    at(TUESDAY, "13:05")
    await deploy_on(services(), MONDAY)
    await write(tables.usage, [entry_costing(MONDAY, 1)])
    crashed = await write_crashed_call(tables, TUESDAY)
    await interrupt_deletion(tables, clock)

    await services().maintenance.run()

    assert await state_of(tables, crashed) is State.UNACCOUNTED
    assert await is_erased(tables)
    assert emails(outbox) == ["2024-03-11"]


async def test_maintenance_function_runs_the_jobs(
    clock: ManualClock, api: httpx.AsyncClient, tables: Tables, at: At
) -> None:
    at(TUESDAY, "13:05")
    await deploy_on(services(), TUESDAY)
    await interrupt_deletion(tables, clock)

    assert (await api.post("/admin/functions/maintenance", json={"input": ""})).status_code == 202

    async def erased() -> bool | None:
        return await is_erased(tables) or None

    assert await until(erased)


async def test_recovery_continues_after_a_call_with_an_unreadable_session(
    start: Start, tables: Tables, at: At, caplog: pytest.LogCaptureFixture
) -> None:
    at(TUESDAY, "13:05")
    app = start()
    await deploy_on(app, TUESDAY)
    unreadable = entry(TUESDAY, "broken", state=State.OPEN)
    crashed = await write_crashed_call(tables, TUESDAY)
    await write(tables.usage, [unreadable])
    await tables.sessions.put({"PartitionKey": "broken", "RowKey": "head", "created": "not a date"})

    await app.maintenance.run()

    assert await state_of(tables, unreadable) is State.OPEN
    assert await state_of(tables, crashed) is State.UNACCOUNTED
    assert f"call {unreadable.call.id}: recovery failed" in caplog.text


# A job that fails does not stop the others


@pytest.mark.parametrize("failing", ["first", "second", "third"])
async def test_failing_job_does_not_stop_the_others_and_its_error_is_raised(
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


async def test_recovery_and_deletions_run_while_the_mail_server_is_down(
    smtp: SmtpServer, start: Start, clock: ManualClock, tables: Tables, at: At, caplog: pytest.LogCaptureFixture
) -> None:
    app = start()
    at(TUESDAY, "13:05")
    await deploy_on(app, MONDAY)
    crashed = await write_crashed_call(tables, TUESDAY)
    await interrupt_deletion(tables, clock)

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
        ({"SUMMARY_RECIPIENTS": "jürgen@example.com"}, "SUMMARY_RECIPIENTS"),
    ],
)
async def test_recovery_and_deletions_run_while_mail_is_misconfigured(
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
    await deploy_on(app, MONDAY)
    crashed = await write_crashed_call(tables, TUESDAY)
    await interrupt_deletion(tables, clock)

    with pytest.raises(ExceptionGroup) as raised:
        await app.maintenance.run()

    (error,) = raised.value.exceptions
    assert isinstance(error, SettingsError)
    assert named in str(error)
    assert await state_of(tables, crashed) is State.UNACCOUNTED
    assert await is_erased(tables)


async def test_deletions_and_email_run_while_recovery_fails(
    storage: TcpProxy, start: Start, clock: ManualClock, tables: Tables, outbox: Path, at: At
) -> None:
    app = start()
    at(TUESDAY, "13:05")
    await deploy_on(app, MONDAY)
    await interrupt_deletion(tables, clock)
    failing = storage.on(UNFINISHED, REFUSED, times=None)

    with pytest.raises(ExceptionGroup) as raised:
        await app.maintenance.run()

    assert failing.hits
    assert [type(error) for error in raised.value.exceptions] == [StorageUnavailable]
    assert await is_erased(tables)
    assert emails(outbox) == ["2024-03-11"]


# An email that the daily timer could not send


async def test_email_failed_by_mail_server_outage_is_sent_once_by_next_maintenance(
    smtp: SmtpServer, start: Start, tables: Tables, at: At
) -> None:
    app = start()
    await deploy_on(app, MONDAY)
    await write(tables.usage, [entry_costing(MONDAY, 1)])
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


async def test_email_failed_by_unwritable_outbox_is_sent_once_by_next_maintenance(
    start: Start, outbox: Path, at: At
) -> None:
    app = start()
    await deploy_on(app, MONDAY)
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
    """Put a file at the folder's path, so that it cannot be created."""
    folder.write_text("")


def unblock(folder: Path) -> None:
    folder.unlink()


def times_written(folder: Path) -> list[int]:
    return [file.stat().st_mtime_ns for file in folder.iterdir()]


async def test_email_failed_by_storage_outage_is_sent_once_by_next_maintenance(
    storage: TcpProxy, smtp: SmtpServer, start: Start, tables: Tables, at: At
) -> None:
    app = start()
    await deploy_on(app, MONDAY)
    await write(tables.usage, [entry_costing(MONDAY, 1)])
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


async def test_maintenance_sends_no_email_before_its_scheduled_time(
    smtp: SmtpServer, start: Start, tables: Tables, at: At
) -> None:
    """Monday's email failed all of Tuesday. Early on Wednesday only Monday's email is overdue."""
    app = start()
    await deploy_on(app, MONDAY)
    await write(tables.usage, [entry_costing(MONDAY, 1), entry_costing(TUESDAY, 2)])
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
async def test_maintenance_sends_nothing_if_the_daily_timer_has_sent_the_email(
    smtp: SmtpServer, start: Start, tables: Tables, at: At, hour: str
) -> None:
    app = start()
    smtp.start()
    await deploy_on(app, MONDAY)
    await write(tables.usage, [entry_costing(MONDAY, 1), entry_costing(TUESDAY, 2)])
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
async def test_new_deployment_sends_no_email_for_the_day_before_it(
    smtp: SmtpServer, start: Start, tables: Tables, at: At, hour: str
) -> None:
    app = start()
    smtp.start()
    await write(tables.usage, [entry_costing(MONDAY, 1), entry_costing(TUESDAY, 2)])
    at(TUESDAY, hour)

    await app.maintenance.run()
    await app.maintenance.run()
    assert smtp.days == []

    at(WEDNESDAY, "06:00")
    await app.delivery.send_due()
    assert smtp.days == ["2024-03-12"]


async def test_failed_first_email_of_a_new_deployment_is_sent_by_maintenance(
    smtp: SmtpServer, start: Start, tables: Tables, at: At
) -> None:
    app = start()
    await write(tables.usage, [entry_costing(MONDAY, 1), entry_costing(TUESDAY, 2)])
    at(TUESDAY, "13:05")
    await app.maintenance.run()
    at(WEDNESDAY, "06:00")
    await app.delivery.send_due()
    smtp.start()

    at(WEDNESDAY, "06:05")
    await app.maintenance.run()

    assert smtp.days == ["2024-03-12"]


async def test_maintenance_sends_nothing_without_a_schedule(
    smtp: SmtpServer, start: Start, environ: dict[str, str], at: At
) -> None:
    environ["SUMMARY_SCHEDULE"] = ""
    app = start()
    smtp.start()
    await deploy_on(app, MONDAY)
    at(WEDNESDAY, "06:05")

    await app.maintenance.run()

    assert smtp.days == []


async def test_concurrent_timers_send_one_email(
    smtp: SmtpServer, start: Start, environ: dict[str, str], at: At
) -> None:
    environ["SUMMARY_SCHEDULE"] = "0 5 6 * * *"
    instances = [start(), start()]
    smtp.start()
    await deploy_on(instances[0], MONDAY)
    at(TUESDAY, "06:05")

    await asyncio.gather(instances[0].delivery.send_due(), *(app.maintenance.run() for app in instances))

    assert smtp.days == ["2024-03-11"]


# A job that reaches its time limit


async def test_job_stops_at_its_time_limit_and_resumes_after_its_position(start: Start, clock: ManualClock) -> None:
    started_after: list[str] = []
    others = 0

    async def slow(after: str) -> AsyncIterator[str]:
        started_after.append(after)
        for position in ("a", "b", "c"):
            if position > after:
                if position == "c" and len(started_after) == 1:
                    await clock.sleep(JOB_TIME_LIMIT_S + 1)
                yield position

    async def other(_: str) -> AsyncIterator[str]:
        nonlocal others
        others += 1
        yield ""

    stored = cursors(start())
    maintenance = Maintenance({"slow": slow, "other": other}, stored, clock)
    running = asyncio.create_task(maintenance.run())
    await clock.until_sleep_started(JOB_TIME_LIMIT_S + 1)
    await clock.advance(JOB_TIME_LIMIT_S - 30)
    assert not running.done()
    await clock.advance(30)
    await running
    assert (await stored.get("slow"))[0] == "b"
    assert others == 1

    await maintenance.run()
    assert (await stored.get("slow"))[0] == ""
    await maintenance.run()
    assert started_after == ["", "b", ""]


async def run_out_of_time(app: Services, clock: ManualClock, stalled: Rule) -> None:
    running = asyncio.create_task(app.maintenance.run())
    await stalled.until_reached()
    await clock.advance(JOB_TIME_LIMIT_S)
    await running


async def test_recovery_resumes_after_the_day_it_reached(
    storage: TcpProxy, start: Start, clock: ManualClock, tables: Tables, at: At
) -> None:
    app = start()
    at(THURSDAY, "13:05")
    crashed = [await write_crashed_call(tables, day) for day in (MONDAY, WEDNESDAY)]
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
    """The days that recovery reads: from a week before the first day to Thursday."""
    return [first - 7 * DAY + n * DAY for n in range(11)]


async def test_deletions_resume_after_the_last_one_handled(
    storage: TcpProxy, start: Start, clock: ManualClock, tables: Tables, at: At
) -> None:
    app = start()
    at(TUESDAY, "13:05")
    await deploy_on(app, TUESDAY)
    sessions = {await interrupt_deletion(tables, clock, f"doomed-{n}"): f"doomed-{n}" for n in range(3)}
    ids = sorted(sessions)
    names = [sessions[id_] for id_ in ids]
    stalled = storage.on(Match("GET", rf"sessions.*'{names[1]}'"), Stall())
    await run_out_of_time(app, clock, stalled)
    assert (await cursors(app).get("deletions"))[0] == ids[0]
    assert [await row_keys(tables, name) == [] for name in names] == [True, False, False]
    storage.clear()
    # A row before the position, which would be deleted if the run started from the beginning.
    await tables.sessions.put(
        {"PartitionKey": ERASING, "RowKey": ids[0], "session": names[0], "begun": clock.now() - DAY}
    )

    await app.maintenance.run()
    assert [await row_keys(tables, name) == [] for name in names] == [True, True, True]
    assert await row_keys(tables, ERASING) == [ids[0]]
    assert (await cursors(app).get("deletions"))[0] == ""

    await app.maintenance.run()
    assert await row_keys(tables, ERASING) == []


async def test_log_does_not_have_the_position_which_may_be_the_id_of_a_session(
    start: Start, clock: ManualClock, caplog: pytest.LogCaptureFixture
) -> None:
    async def slow(after: str) -> AsyncIterator[str]:
        yield "ada.lovelace-oncology"
        await clock.sleep(JOB_TIME_LIMIT_S + 1)

    running = asyncio.create_task(Maintenance({"slow": slow}, cursors(start()), clock).run())
    await clock.until_sleep_started(JOB_TIME_LIMIT_S + 1)
    await clock.advance(JOB_TIME_LIMIT_S)
    await running

    assert "maintenance: slow ran out of time" in caplog.text
    assert "ada" not in caplog.text


async def test_maintenance_runs_retention_and_erasures(
    start: Start, environ: dict[str, str], clock: ManualClock, tables: Tables, at: At
) -> None:
    environ |= {"RETENTION_DAYS": "1", "LEDGER_RETENTION_MONTHS": "2"}
    at(TUESDAY, "13:05")
    app = start()
    await deploy_on(app, TUESDAY)
    await fill(tables, 2, "unused")  # on the machine's own day, which is later
    await write(tables.usage, [entry_costing(MONDAY - 100 * DAY, 1)])
    await app.maintenance.run()
    assert await row_keys(tables, "unused")

    clock.set(datetime.now(UTC) + 3 * DAY)
    await app.maintenance.run()

    assert await row_keys(tables, "unused") == []
    assert [row async for row in tables.usage.query("PartitionKey lt @month", {"month": "2024-01"})] == []
