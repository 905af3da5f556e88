"""Delivery of the summary email: every final day is sent once, whichever timer runs, however often, despite crashes.

The days are in the past, so that a test can choose the time of each timer run. The tables are real.
"""

import asyncio
import re
from collections.abc import AsyncIterator, Callable, Iterator
from contextlib import suppress
from dataclasses import replace
from datetime import UTC, date, datetime, time, timedelta
from decimal import Decimal
from email import message_from_bytes
from pathlib import Path

import pytest
from aiosmtpd.controller import Controller
from aiosmtpd.smtp import Envelope

from local.azurite import connection_string
from local.parts import free_port
from local.places import ROOT
from shared.domain.calls import LedgerEntry, State
from shared.domain.daily import Day, Figures
from shared.errors import StorageUnavailable
from shared.mail.email import Email, MailFailed
from shared.reports.delivery import CLAIM_DURATION, Delivery, MailConfig
from shared.services import Services
from shared.settings import Settings, SettingsError
from shared.storage.days import Days
from shared.storage.ledger import Ledger
from tests.support.clock import ManualClock
from tests.support.communication_services import CommunicationServices
from tests.support.ledger_rows import entry, entry_costing, settled, still_running, write, write_quiet_days
from tests.support.loopback import MAX_WAIT_S, Gate
from tests.support.processes import HostFactory
from tests.support.proxy import Answer, Close, Match, TcpProxy
from tests.support.still_clock import StillClock

MONDAY = date(2024, 3, 11)
DAY = timedelta(days=1)
TUESDAY, WEDNESDAY, THURSDAY, FRIDAY = (MONDAY + DAY * n for n in range(1, 5))
RECIPIENTS = ("ann@example.com", "bob@example.com")
MAIL = {"SUMMARY_RECIPIENTS": ",".join(RECIPIENTS), "SUMMARY_SENDER": "chat@example.com"}
LATE_COST = Decimal("0.0012")  # added by a late settlement
WRITING = Match(body=".")
CLAIMING = Match("PUT", "daily", '"claimed_until"')
RECORDING = Match("PUT", "daily", '"outcome": ?"sent"')
REFUSED = Answer(403)  # an error that the storage client does not retry
LOST = Close(after_answer=True)


class ProcessKilled(BaseException):
    """Simulates that the process is killed at this point."""


class MailService:
    """A fake transport. Like Communication Services it knows which emails were sent; with `has_status=False` it does
    not, like SMTP."""

    def __init__(self, *, has_status: bool = True) -> None:
        self.emails: list[Email] = []
        self.status_queries: list[str] = []
        self.down = False
        self.accepts_without_answer = False
        self.kill_after: int | None = None  # kill the sender after this many emails
        self.gate: Gate | None = None
        self.rejected = ""  # the recipient without a mailbox
        self._has_status = has_status

    async def send(self, email: Email) -> tuple[str, ...]:
        if self.gate:
            await self.gate.enter()
        if self.down:
            raise MailFailed("the mail service is down")
        self.emails.append(email)
        if self.accepts_without_answer:
            raise MailFailed("no answer within 30 s")
        if self.kill_after == len(self.emails):
            raise ProcessKilled
        return tuple(recipient for recipient in email.recipients if recipient != self.rejected)

    async def was_sent(self, operation_id: str) -> bool:
        if self.down:
            raise MailFailed("the mail service is down")
        self.status_queries.append(operation_id)
        return self._has_status and any(email.operation_id == operation_id for email in self.emails)

    @property
    def days(self) -> list[str]:
        """The days that the emails are about, in order of arrival."""
        return [email.subject.split()[2].rstrip(":") for email in self.emails]

    @property
    def adjustments(self) -> list[list[str]]:
        return [re.findall(r"\s\+(\d+\.\d+)$", email.text, re.MULTILINE) for email in self.emails]


class App:
    """One instance of the app. Instances share only the tables."""

    def __init__(
        self, settings: Settings, mail: MailService, recipients: tuple[str, ...], clock: ManualClock | None = None
    ) -> None:
        self.clock = clock or ManualClock()
        self.services = Services(settings, self.clock)
        self.days = Days(self.services._table("daily"))
        self.ledger = Ledger(self.services._table("usage"), self.clock)
        config = MailConfig(
            schedule=None,
            sender=lambda: "chat@example.com",
            recipients=lambda: recipients,
            transport=lambda: mail,
        )
        self.delivery = Delivery(self.days, self.services.reports, config, self.clock)

    async def write_history(self) -> None:
        """Two months of summaries of days without calls."""
        await self.days.constant("first_day", str(MONDAY - 60 * DAY))
        await write_quiet_days(self.days, MONDAY)

    async def write_calls(self, *entries: LedgerEntry) -> None:
        await write(self.ledger._table, entries)

    async def run_timers(self, day: date, hour: int = 6, minute: int = 0) -> None:
        """Run the recovery of the maintenance timer, then the daily timer."""
        self.clock.set(datetime.combine(day, time(hour, minute), UTC))
        async for _ in self.services.reports.recover():
            pass
        await self.delivery.send_due()

    async def send_again(self, day: date, at: datetime) -> tuple[str, ...]:
        self.clock.set(at)
        return await self.delivery.send_again(day)

    async def outcomes(self, first: date = MONDAY, last: date = FRIDAY) -> list[str | None]:
        """The outcomes of the stored days, in order."""
        stored = await self.days.between(first, last)
        return [stored[day].outcome for day in sorted(stored)]

    async def stored(self, day: date) -> Day:
        stored = await self.days.get(day)
        assert stored is not None
        return stored


Start = Callable[..., App]


@pytest.fixture
async def start(environ: dict[str, str]) -> AsyncIterator[Start]:
    """Starts instances on this test's tables. `port`: of a proxy to the table service."""
    started: list[App] = []

    def start_app(
        mail: MailService,
        *,
        recipients: tuple[str, ...] = RECIPIENTS,
        port: int | None = None,
        clock: ManualClock | None = None,
    ) -> App:
        tables = {"TABLES_CONNECTION_STRING": connection_string(port)} if port else {}
        started.append(App(Settings.from_env(environ | tables), mail, recipients, clock))
        return started[-1]

    yield start_app
    for app in started:
        await app.services.close()


@pytest.fixture
def mail() -> MailService:
    return MailService()


@pytest.fixture
def app(start: Start, mail: MailService) -> App:
    return start(mail)


@pytest.fixture
async def running_app(app: App) -> App:
    """An instance with two months of history."""
    await app.write_history()
    return app


# Which days are sent


async def test_first_run_sends_yesterday_and_no_earlier_day(app: App, mail: MailService) -> None:
    await app.write_calls(entry_costing(MONDAY, 1), entry_costing(TUESDAY, 2), entry_costing(WEDNESDAY, 4))

    await app.run_timers(WEDNESDAY)
    await app.run_timers(THURSDAY)

    assert mail.days == ["2024-03-12", "2024-03-13"]
    assert "$2.00" in mail.emails[0].subject


async def test_email_goes_to_all_recipients_and_is_recorded_with_its_time(running_app: App, mail: MailService) -> None:
    await running_app.write_calls(entry_costing(MONDAY, "12.34"))

    await running_app.run_timers(TUESDAY)

    (email,) = mail.emails
    assert (email.sender, email.recipients) == ("chat@example.com", RECIPIENTS)
    stored = await running_app.stored(MONDAY)
    assert (stored.outcome, stored.sent_to, stored.mailed_cost) == ("sent", RECIPIENTS, Decimal("12.34"))
    assert stored.sent is not None
    assert timedelta() <= stored.sent - datetime(2024, 3, 12, 6, tzinfo=UTC) < timedelta(seconds=MAX_WAIT_S)


async def test_rejected_recipient_is_not_recorded_in_sent_to(running_app: App, mail: MailService) -> None:
    ann, mail.rejected = RECIPIENTS
    await running_app.write_calls(entry_costing(MONDAY, 1))

    await running_app.run_timers(TUESDAY)
    by_hand = await running_app.send_again(MONDAY, datetime(2024, 3, 12, 8, tzinfo=UTC))

    assert (await running_app.stored(MONDAY)).sent_to == by_hand == (ann,)


async def test_cost_of_a_final_day_is_logged_in_the_format_of_the_alert_query(
    running_app: App, caplog: pytest.LogCaptureFixture
) -> None:
    await running_app.write_calls(
        entry_costing(MONDAY, "12.34"),
        entry(MONDAY, turn=2, state=State.UNACCOUNTED),
        entry(MONDAY, turn=3, state=State.STOPPED),
    )

    with caplog.at_level("INFO", "shared.reports.delivery"):
        await running_app.run_timers(TUESDAY)
        await running_app.run_timers(TUESDAY)

    logged = [message for message in caplog.messages if message.startswith("daily cost: ")]
    amounts = "cost_usd=12.34000000 unaccounted_usd=0.0123456 calls=3 stopped_at_most_usd=0.0123456"
    assert logged == [f"daily cost: day=2024-03-11 {amounts}"]
    alert = (ROOT / "infra/queries/alert-daily-cost.kql").read_text()
    names = re.findall(r"(\w+)=", logged[0])
    assert re.findall(r'[" ](\w+)="', alert) == names


async def test_cost_of_each_day_is_logged_while_the_mail_service_is_down(
    running_app: App, mail: MailService, caplog: pytest.LogCaptureFixture
) -> None:
    await running_app.write_calls(entry_costing(MONDAY, 1), entry_costing(TUESDAY, 500))
    mail.down = True

    with caplog.at_level("INFO", "shared.reports.delivery"):
        await running_app.run_timers(WEDNESDAY)

    assert [message.split()[2:4] for message in caplog.messages if message.startswith("daily cost: ")] == [
        ["day=2024-03-11", "cost_usd=1.000000"],
        ["day=2024-03-12", "cost_usd=500.000000"],
    ]


async def test_missed_days_are_sent_in_order_and_quiet_days_only_recorded(running_app: App, mail: MailService) -> None:
    await running_app.write_calls(entry_costing(MONDAY, 1), entry_costing(WEDNESDAY, 3), entry_costing(THURSDAY, 4))

    await running_app.run_timers(FRIDAY)

    assert mail.days == ["2024-03-11", "2024-03-13", "2024-03-14"]
    assert await running_app.outcomes() == ["sent", "quiet", "sent", "sent"]


async def test_yesterday_without_turns_gets_an_email(running_app: App, mail: MailService) -> None:
    await running_app.run_timers(TUESDAY)

    (email,) = mail.emails
    assert email.subject == "Chat cost 2024-03-11: no turns"
    assert await running_app.outcomes() == ["sent"]


async def test_day_with_only_an_abandoned_call_is_quiet(running_app: App, mail: MailService) -> None:
    await running_app.write_calls(entry(MONDAY, state=State.ABANDONED))

    await running_app.run_timers(WEDNESDAY)

    assert mail.days == ["2024-03-12"]
    assert await running_app.outcomes() == ["quiet", "sent"]


async def test_missed_days_are_sent_for_at_most_31_days(running_app: App, mail: MailService) -> None:
    back = MONDAY + 40 * DAY
    await running_app.write_calls(entry_costing(back - 32 * DAY, 1), entry_costing(back - 31 * DAY, 2))

    await running_app.run_timers(back)

    assert mail.days == [str(back - 31 * DAY), str(back - DAY)]
    stored = await running_app.days.between(back - 31 * DAY, back)
    assert [stored[day].outcome for day in sorted(stored)] == ["sent", *["quiet"] * 29, "sent"]
    older = await running_app.days.between(back - 40 * DAY, back - 32 * DAY)
    assert {day.outcome for day in older.values()} <= {None}


async def test_day_without_recipients_is_not_wanted_and_not_sent_later(start: Start, mail: MailService) -> None:
    without_recipients = start(mail, recipients=())
    await without_recipients.write_calls(entry_costing(MONDAY, 1))
    await without_recipients.run_timers(TUESDAY)

    assert await without_recipients.outcomes() == ["not_wanted"]
    with_recipients = start(mail)
    await with_recipients.run_timers(WEDNESDAY)
    assert mail.days == ["2024-03-12"]


async def test_day_is_not_sent_within_the_grace_period_after_midnight(start: Start, mail: MailService) -> None:
    final_from = datetime(2024, 3, 12, 0, 4, 40, tzinfo=UTC)  # TURN_TIMEOUT_SECONDS plus 60 s
    clock = StillClock(final_from - timedelta(seconds=1))
    app = start(mail, clock=clock)
    await app.write_history()
    await app.write_calls(entry_costing(MONDAY, 1))

    await app.delivery.send_due()
    assert mail.emails == []
    assert await app.days.get(MONDAY) is None

    await clock.advance(1)
    await app.delivery.send_due()
    assert mail.days == ["2024-03-11"]


async def test_day_with_a_running_call_is_sent_after_the_call_has_settled(running_app: App, mail: MailService) -> None:
    open_call = still_running(entry(MONDAY, "slow", state=State.OPEN))
    await running_app.write_calls(entry_costing(MONDAY, 1, "s"), open_call, entry_costing(TUESDAY, 2))

    await running_app.run_timers(WEDNESDAY)
    assert mail.days == ["2024-03-12"]
    assert await running_app.outcomes() == ["sent"]

    await settle(running_app, open_call)
    await running_app.run_timers(THURSDAY)
    assert mail.days == ["2024-03-12", "2024-03-11", "2024-03-13"]
    assert (await running_app.stored(MONDAY)).figures.cost == 1 + LATE_COST


async def test_daily_timer_recovers_calls_of_crashed_processes_before_it_sends_the_day(
    running_app: App, mail: MailService
) -> None:
    await running_app.write_calls(entry(MONDAY, state=State.OPEN))

    running_app.clock.set(datetime(2024, 3, 12, 6, tzinfo=UTC))
    await running_app.delivery.send_due()

    assert mail.days == ["2024-03-11"]
    stored = await running_app.stored(MONDAY)
    assert (stored.figures.open, stored.figures.unaccounted) == (0, 1)


# Each day is sent once


async def test_running_the_timer_again_sends_nothing(running_app: App, mail: MailService) -> None:
    await running_app.write_calls(entry_costing(MONDAY, 1))

    await running_app.run_timers(TUESDAY)
    await running_app.run_timers(TUESDAY)
    await running_app.run_timers(TUESDAY, hour=23)

    assert mail.days == ["2024-03-11"]
    assert mail.status_queries == []


async def test_five_concurrent_runs_on_two_instances_send_each_day_once(
    start: Start, running_app: App, mail: MailService
) -> None:
    unaccounted = entry(MONDAY, state=State.UNACCOUNTED)
    await running_app.write_calls(
        unaccounted, entry_costing(TUESDAY, 2), entry_costing(WEDNESDAY, 3), entry_costing(THURSDAY, 4)
    )
    await running_app.run_timers(TUESDAY)
    await settle(running_app, unaccounted)
    instances = [running_app, start(mail)]

    await asyncio.gather(*(instances[n % 2].run_timers(FRIDAY) for n in range(5)))

    assert mail.days == ["2024-03-11", "2024-03-12", "2024-03-13", "2024-03-14"]
    assert mail.adjustments == [[], [f"{LATE_COST}"], [], []]
    assert await running_app.outcomes() == ["sent"] * 4
    assert len({email.operation_id for email in mail.emails}) == 4


async def test_claimed_day_is_not_sent_by_another_instance(start: Start, running_app: App, mail: MailService) -> None:
    await running_app.write_calls(entry_costing(MONDAY, 1))
    with Gate() as mail.gate:
        sending = asyncio.create_task(running_app.run_timers(TUESDAY))
        await mail.gate.until_reached()

        await start(MailService()).run_timers(TUESDAY)
        assert (await running_app.stored(MONDAY)).outcome is None

        mail.gate.release()
        await sending
    assert mail.days == ["2024-03-11"]


async def test_later_days_wait_for_a_claimed_day(start: Start, running_app: App, mail: MailService) -> None:
    """An email reports only those adjustments that the email before it has not reported."""
    unaccounted = entry(MONDAY, state=State.UNACCOUNTED)
    await running_app.write_calls(unaccounted, entry_costing(TUESDAY, 2), entry_costing(WEDNESDAY, 3))
    await running_app.run_timers(TUESDAY)
    await settle(running_app, unaccounted)
    mail.kill_after = 2
    with suppress(ProcessKilled):
        await running_app.run_timers(THURSDAY)
    assert mail.adjustments == [[], [f"{LATE_COST}"]]

    await start(mail).run_timers(THURSDAY, minute=5)
    assert mail.days == ["2024-03-11", "2024-03-12"]

    await start(mail).run_timers(THURSDAY, minute=16)
    assert mail.days == ["2024-03-11", "2024-03-12", "2024-03-13"]
    assert mail.adjustments == [[], [f"{LATE_COST}"], []]


# Interrupted at any point


async def test_claim_expires_after_15_minutes_and_the_email_status_is_checked(
    start: Start, running_app: App, mail: MailService
) -> None:
    await running_app.write_calls(entry_costing(MONDAY, 1))
    mail.kill_after = 1
    with pytest.raises(ProcessKilled):
        await running_app.run_timers(TUESDAY)

    await start(mail).run_timers(TUESDAY, minute=14)
    assert mail.status_queries == []

    await start(mail).run_timers(TUESDAY, minute=16)
    assert mail.status_queries == [mail.emails[0].operation_id]
    assert mail.days == ["2024-03-11"]
    stored = await running_app.stored(MONDAY)
    assert (stored.outcome, stored.sent_to) == ("sent", RECIPIENTS)


async def test_claim_duration_starts_when_the_claim_is_made_not_when_the_run_starts(
    running_app: App, mail: MailService
) -> None:
    """Otherwise the claims on the last days of a long run have already expired, and another run sends them too."""
    await running_app.write_calls(entry_costing(MONDAY, 1), entry_costing(TUESDAY, 2))
    mail.kill_after = 2
    with pytest.raises(ProcessKilled):
        await running_app.run_timers(WEDNESDAY)

    sent, claimed_until = (await running_app.stored(MONDAY)).sent, (await running_app.stored(TUESDAY)).claimed_until
    assert sent is not None
    assert claimed_until is not None
    assert datetime(2024, 3, 13, 6, tzinfo=UTC) < sent < claimed_until - CLAIM_DURATION


async def test_expired_claim_without_a_sent_email_is_sent_by_the_next_run(
    start: Start, running_app: App, mail: MailService
) -> None:
    await running_app.write_calls(entry_costing(MONDAY, 1))
    with Gate() as mail.gate:
        interrupted = asyncio.create_task(running_app.run_timers(TUESDAY))
        await mail.gate.until_reached()
        interrupted.cancel()
        await asyncio.gather(interrupted, return_exceptions=True)
    mail.gate = None

    await start(mail).run_timers(WEDNESDAY)

    assert mail.days == ["2024-03-11", "2024-03-12"]
    assert mail.status_queries == [mail.emails[0].operation_id]


async def test_transport_without_a_status_sends_the_email_again_with_the_same_id(
    start: Start, azurite_port: int
) -> None:
    mail = MailService(has_status=False)
    with TcpProxy(azurite_port) as proxy:
        app = start(mail, port=proxy.port)
        await app.write_history()
        await app.write_calls(entry_costing(MONDAY, 1))
        proxy.on(RECORDING, REFUSED, times=None)
        with pytest.raises(StorageUnavailable):
            await app.run_timers(TUESDAY)
        proxy.clear()

        await app.run_timers(TUESDAY, hour=7)
        assert await app.outcomes() == ["sent"]

    assert mail.days == ["2024-03-11", "2024-03-11"]
    assert mail.emails[0].operation_id == mail.emails[1].operation_id


async def test_email_sent_but_not_recorded_is_not_sent_again(
    start: Start, mail: MailService, azurite_port: int
) -> None:
    with TcpProxy(azurite_port) as proxy:
        app = start(mail, port=proxy.port)
        await app.write_history()
        await app.write_calls(entry_costing(MONDAY, 1))
        proxy.on(RECORDING, REFUSED, times=None)
        with pytest.raises(StorageUnavailable):
            await app.run_timers(TUESDAY)
        proxy.clear()

        await app.run_timers(WEDNESDAY)
        assert await app.outcomes() == ["sent", "sent"]

    assert mail.days == ["2024-03-11", "2024-03-12"]
    assert mail.status_queries == [mail.emails[0].operation_id]


async def test_claim_with_a_lost_storage_response_is_kept(start: Start, mail: MailService, azurite_port: int) -> None:
    with TcpProxy(azurite_port) as proxy:
        app = start(mail, port=proxy.port)
        await app.write_history()
        await app.write_calls(entry_costing(MONDAY, 1))
        lost = proxy.on(CLAIMING, LOST)

        await app.run_timers(TUESDAY)
        assert await app.outcomes() == ["sent"]

    assert lost.hits == 1
    assert mail.days == ["2024-03-11"]


async def test_sent_record_with_a_lost_storage_response_is_stored(
    start: Start, mail: MailService, azurite_port: int
) -> None:
    with TcpProxy(azurite_port) as proxy:
        app = start(mail, port=proxy.port)
        await app.write_history()
        await app.write_calls(entry_costing(MONDAY, 1))
        lost = proxy.on(RECORDING, LOST)

        await app.run_timers(TUESDAY)
        await app.run_timers(WEDNESDAY)

    assert lost.hits == 1
    assert mail.days == ["2024-03-11", "2024-03-12"]


@pytest.mark.parametrize("nth", range(1, 10))
async def test_run_interrupted_by_storage_failure_at_any_write_is_completed_by_the_next_run(
    start: Start, mail: MailService, azurite_port: int, nth: int
) -> None:
    with TcpProxy(azurite_port) as proxy:
        app = start(mail, port=proxy.port)
        await app.write_history()
        unaccounted = entry(MONDAY, state=State.UNACCOUNTED)
        await app.write_calls(unaccounted, entry_costing(MONDAY, 1))
        await app.run_timers(TUESDAY)
        await settle(app, unaccounted)
        await app.write_calls(
            entry_costing(TUESDAY, 2), entry(WEDNESDAY, state=State.OPEN), entry_costing(WEDNESDAY, 4)
        )
        proxy.on(WRITING, REFUSED, nth=nth, times=None)
        with pytest.raises(StorageUnavailable):
            await app.run_timers(THURSDAY)
        proxy.clear()

        await app.run_timers(THURSDAY, minute=20)
        assert await app.outcomes() == ["sent", "sent", "sent"]
        assert (await app.stored(MONDAY)).mailed_cost == 1 + LATE_COST

    assert mail.days == ["2024-03-11", "2024-03-12", "2024-03-13"]
    assert mail.adjustments == [[], [f"{LATE_COST}"], []]


async def test_run_interrupted_by_storage_failure_at_a_read_is_completed_by_the_next_run(
    start: Start, mail: MailService, azurite_port: int
) -> None:
    with TcpProxy(azurite_port) as proxy:
        app = start(mail, port=proxy.port)
        await app.write_history()
        await app.write_calls(entry_costing(MONDAY, 1))
        for nth in (1, 2, 3, 4, 5, 15, 22):
            proxy.on(Match("GET"), REFUSED, nth=nth, times=None)
            with pytest.raises(StorageUnavailable):
                await app.run_timers(TUESDAY)
            proxy.clear()

        await app.run_timers(TUESDAY, minute=20)

    assert mail.days == ["2024-03-11"]


async def run_twice_without_recording(environ: dict[str, str], azurite_port: int) -> str:
    """Run the daily timer with the given mail settings, fail to record the email as sent, and run it again. Returns the
    operation ID of the email."""
    with TcpProxy(azurite_port) as proxy:
        tables = {"TABLES_CONNECTION_STRING": connection_string(proxy.port)}
        app = App(Settings.from_env(environ | MAIL | tables), MailService(), ())
        try:
            await app.write_history()
            app.clock.set(datetime(2024, 3, 12, 6, tzinfo=UTC))
            proxy.on(RECORDING, REFUSED, times=None)
            with pytest.raises(StorageUnavailable):
                await app.services.delivery.send_due()
            proxy.clear()
            await app.clock.advance(20 * 60)
            await app.services.delivery.send_due()
            assert await app.outcomes() == ["sent"]
            return await app.delivery._operation_id(MONDAY, 0)
        finally:
            await app.services.close()


async def test_communication_services_sends_one_email_after_a_lost_record(
    environ: dict[str, str], azurite_port: int
) -> None:
    service = CommunicationServices()
    async with service.serving():
        environ["ACS_CONNECTION_STRING"] = service.connection_string
        operation_id = await run_twice_without_recording(environ, azurite_port)

    assert list(service.sent) == [operation_id]
    assert len(service.attempts) == 1


class Inbox:
    """The handler of an SMTP server. It stores an email, waits until the gate is open, then acknowledges it."""

    def __init__(self) -> None:
        self.message_ids: list[str] = []
        self.gate: Gate | None = None

    async def handle_DATA(self, _: object, __: object, envelope: Envelope) -> str:  # noqa: N802
        assert isinstance(envelope.content, bytes)
        self.message_ids.append(message_from_bytes(envelope.content)["Message-ID"])
        if self.gate:
            await self.gate.enter()
        return "250 OK"


@pytest.fixture
def inbox(environ: dict[str, str]) -> Iterator[Inbox]:
    """The inbox of the SMTP server that the app sends to."""
    inbox = Inbox()
    server = Controller(inbox, hostname="127.0.0.1", port=free_port())
    server.start()
    environ["SMTP_URL"] = f"smtp://127.0.0.1:{server.port}"
    yield inbox
    server.stop()


async def test_smtp_sends_a_second_email_with_the_same_message_id_after_a_lost_record(
    environ: dict[str, str], azurite_port: int, inbox: Inbox
) -> None:
    operation_id = await run_twice_without_recording(environ, azurite_port)

    assert inbox.message_ids == [f"<{operation_id}@example.com>"] * 2


async def test_email_of_a_killed_process_is_sent_once_more_with_the_same_id_after_its_claim(
    app: App, environ: dict[str, str], inbox: Inbox, tmp_path: Path
) -> None:
    yesterday = datetime.now(UTC).date() - DAY
    await app.days.constant("first_day", str(yesterday))
    await app.days.put(Day(day=yesterday, figures=Figures(calls=1), final=True))
    environ |= MAIL
    with HostFactory() as host_factory:
        killed_host = host_factory.host(environ, tmp_path / "killed_host.log")
        with Gate() as inbox.gate:
            async with killed_host.client() as client:
                await client.post("/admin/functions/daily_cost_summary", json={"input": ""})
            await inbox.gate.until_reached()
            killed_host.kill()

        next_host = host_factory.host(environ, tmp_path / "next_host.log")
        next_host.fire("daily_cost_summary")
        assert len(inbox.message_ids) == 1
        await app.days.put(replace(await app.stored(yesterday), claimed_until=datetime.now(UTC)))
        next_host.fire("daily_cost_summary")
        next_host.fire("daily_cost_summary")

    assert inbox.message_ids == [f"<{await app.delivery._operation_id(yesterday, 0)}@example.com>"] * 2
    assert (await app.stored(yesterday)).outcome == "sent"


# The mail service is down


async def test_email_that_fails_is_logged_and_retried_by_the_next_run(
    running_app: App, mail: MailService, caplog: pytest.LogCaptureFixture
) -> None:
    await running_app.write_calls(entry_costing(MONDAY, 1))
    mail.down = True

    await running_app.run_timers(TUESDAY)

    (record,) = [record for record in caplog.records if record.levelname == "ERROR"]
    assert "2024-03-11" in record.message
    assert (await running_app.stored(MONDAY)).outcome is None
    mail.down = False
    await running_app.run_timers(TUESDAY, minute=1)
    assert mail.days == ["2024-03-11"]
    assert await running_app.outcomes() == ["sent"]


async def test_email_accepted_without_a_response_is_not_sent_twice(running_app: App, mail: MailService) -> None:
    await running_app.write_calls(entry_costing(MONDAY, 1))
    mail.accepts_without_answer = True
    await running_app.run_timers(TUESDAY)
    mail.accepts_without_answer = False

    await running_app.run_timers(WEDNESDAY)

    assert mail.days == ["2024-03-11", "2024-03-12"]
    assert await running_app.outcomes() == ["sent", "sent"]


async def test_after_a_mail_outage_every_day_is_sent_and_an_adjustment_reported_once(
    running_app: App, mail: MailService
) -> None:
    unaccounted = entry(MONDAY, state=State.UNACCOUNTED)
    await running_app.write_calls(
        unaccounted, entry_costing(TUESDAY, 2), entry_costing(WEDNESDAY, 3), entry_costing(THURSDAY, 4)
    )
    await running_app.run_timers(TUESDAY)
    await settle(running_app, unaccounted)
    mail.down = True
    await running_app.run_timers(WEDNESDAY)
    await running_app.run_timers(THURSDAY)
    mail.down = False

    await running_app.run_timers(FRIDAY)

    assert mail.days == ["2024-03-11", "2024-03-12", "2024-03-13", "2024-03-14"]
    assert mail.adjustments == [[], [f"{LATE_COST}"], [], []]


async def test_unconfigured_transport_raises_settings_error_without_claiming_a_day(
    running_app: App, mail: MailService
) -> None:
    def unset() -> MailService:
        raise SettingsError("ACS_ENDPOINT", "is not set")

    config = MailConfig(schedule=None, sender=str, recipients=lambda: RECIPIENTS, transport=unset)
    running_app.clock.set(datetime(2024, 3, 12, 6, tzinfo=UTC))
    with pytest.raises(SettingsError):
        await Delivery(running_app.days, running_app.services.reports, config, running_app.clock).send_due()

    await running_app.run_timers(TUESDAY, minute=1)
    assert mail.days == ["2024-03-11"]
    assert mail.status_queries == []


# Costs that change after the email was sent


async def settle(app: App, unaccounted: LedgerEntry) -> None:
    """The usage of an unaccounted call arrives late."""
    stored = await app.ledger.find(unaccounted.call, unaccounted.session_id, unaccounted.turn)
    assert stored is not None
    assert await app.ledger.raise_call(stored, settled(unaccounted))


async def test_late_settlement_is_reported_once_in_the_next_email(running_app: App, mail: MailService) -> None:
    unaccounted = entry(MONDAY, state=State.UNACCOUNTED)
    await running_app.write_calls(unaccounted, entry_costing(MONDAY, 1))
    await running_app.run_timers(TUESDAY)
    assert (await running_app.stored(MONDAY)).figures.unaccounted == 1

    await settle(running_app, unaccounted)
    for day in (WEDNESDAY, THURSDAY):
        await running_app.run_timers(day)

    assert mail.adjustments == [[], [f"{LATE_COST}"], []]
    stored = await running_app.stored(MONDAY)
    assert (stored.figures.cost, stored.mailed_cost, stored.figures.unaccounted) == (1 + LATE_COST, 1 + LATE_COST, 0)


async def test_calls_settled_on_different_days_are_reported_separately(running_app: App, mail: MailService) -> None:
    one, other = (entry(MONDAY, session, state=State.UNACCOUNTED) for session in ("one", "other"))
    await running_app.write_calls(one, other)
    await running_app.run_timers(TUESDAY)

    for day, unaccounted in ((WEDNESDAY, one), (THURSDAY, other)):
        await settle(running_app, unaccounted)
        await running_app.run_timers(day)

    assert mail.adjustments == [[], [f"{LATE_COST}"], [f"{LATE_COST}"]]


async def test_adjustment_in_an_interrupted_email_is_reported_once(
    start: Start, running_app: App, mail: MailService
) -> None:
    unaccounted = entry(MONDAY, state=State.UNACCOUNTED)
    await running_app.write_calls(unaccounted)
    await running_app.run_timers(TUESDAY)
    await settle(running_app, unaccounted)
    mail.kill_after = 2
    with pytest.raises(ProcessKilled):
        await running_app.run_timers(WEDNESDAY)

    await start(mail).run_timers(THURSDAY)

    assert mail.days == ["2024-03-11", "2024-03-12", "2024-03-13"]
    assert mail.adjustments == [[], [f"{LATE_COST}"], []]


async def test_cost_change_after_an_interrupted_email_is_reported_in_the_next(
    start: Start, running_app: App, mail: MailService
) -> None:
    """The interrupted email was sent with the old figures, so a later change is not in it."""
    unaccounted = entry(MONDAY, state=State.UNACCOUNTED)
    await running_app.write_calls(unaccounted, entry_costing(MONDAY, 1))
    mail.kill_after = 1
    with pytest.raises(ProcessKilled):
        await running_app.run_timers(TUESDAY)
    await settle(running_app, unaccounted)

    await start(mail).run_timers(WEDNESDAY)

    assert mail.days == ["2024-03-11", "2024-03-12"]
    assert mail.adjustments == [[], [f"{LATE_COST}"]]


async def test_cost_change_before_an_email_is_sent_is_included_in_it(running_app: App, mail: MailService) -> None:
    unaccounted = entry(MONDAY, state=State.UNACCOUNTED)
    await running_app.write_calls(unaccounted, entry_costing(MONDAY, 1))
    mail.down = True
    await running_app.run_timers(TUESDAY)
    await settle(running_app, unaccounted)
    mail.down = False

    await running_app.run_timers(WEDNESDAY)

    assert "$1.0012" in mail.emails[0].text
    assert mail.adjustments == [[], []]


async def test_quiet_day_has_no_adjustment(running_app: App, mail: MailService) -> None:
    await running_app.write_calls(entry_costing(WEDNESDAY, 1))

    await running_app.run_timers(THURSDAY)
    await running_app.run_timers(FRIDAY)

    assert mail.adjustments == [[], []]


async def test_late_settlement_is_recovered_for_31_days(running_app: App, mail: MailService) -> None:
    unaccounted = entry(MONDAY, state=State.UNACCOUNTED)
    await running_app.write_calls(unaccounted, entry(TUESDAY, "other", state=State.UNACCOUNTED))
    await running_app.run_timers(WEDNESDAY)
    mail.emails.clear()
    for day in (MONDAY, TUESDAY):
        (unaccounted,) = [stored async for stored in running_app.ledger.unfinished(day)]
        await settle(running_app, unaccounted)

    await running_app.run_timers(TUESDAY + 31 * DAY)

    assert (await running_app.stored(MONDAY)).figures.unaccounted == 1
    assert (await running_app.stored(TUESDAY)).figures.unaccounted == 0
    assert [adjustments for adjustments in mail.adjustments if adjustments] == [[f"{LATE_COST}"]]


async def test_averages_and_month_to_date_use_the_current_figures(running_app: App, mail: MailService) -> None:
    unaccounted = entry(MONDAY, state=State.UNACCOUNTED)
    await running_app.write_calls(unaccounted, entry_costing(MONDAY, 7), entry_costing(TUESDAY, 7))
    await running_app.run_timers(TUESDAY)
    await settle(running_app, unaccounted)

    await running_app.run_timers(WEDNESDAY)

    summary = await running_app.services.reports.summary(TUESDAY)
    assert summary.month_to_date == 14 + LATE_COST
    assert summary.week_average == (7 + LATE_COST) / 7
    assert summary.day_before == 7 + LATE_COST
    assert "14.0012" in mail.emails[1].text


# Emails sent by hand


async def test_email_sent_by_hand_has_its_own_id_and_is_ignored_by_the_timer(
    running_app: App, mail: MailService
) -> None:
    await running_app.write_calls(entry_costing(MONDAY, 1))
    by_hand = datetime(2024, 3, 12, 5, tzinfo=UTC)

    await running_app.send_again(MONDAY, by_hand)
    await running_app.send_again(MONDAY, by_hand)
    assert (await running_app.stored(MONDAY)).outcome is None
    await running_app.run_timers(TUESDAY)
    sent = (await running_app.stored(MONDAY)).sent
    await running_app.send_again(MONDAY, by_hand)

    assert mail.days == ["2024-03-11"] * 4
    assert len({email.operation_id for email in mail.emails}) == 4
    stored = await running_app.stored(MONDAY)
    assert (stored.outcome, stored.sends, stored.sent) == ("sent", 3, sent)


async def test_email_sent_by_hand_during_a_timer_run_does_not_block_any_day(
    start: Start, running_app: App, mail: MailService
) -> None:
    await running_app.write_calls(entry_costing(MONDAY, 1), entry_costing(TUESDAY, 2))
    with Gate() as mail.gate:
        sending = asyncio.create_task(running_app.run_timers(WEDNESDAY))
        await mail.gate.until_reached()
        await start(MailService()).send_again(TUESDAY, datetime(2024, 3, 13, 6, tzinfo=UTC))
        mail.gate.release()
        await sending

    assert mail.days == ["2024-03-11", "2024-03-12"]
    stored = await running_app.stored(TUESDAY)
    assert (stored.outcome, stored.sends) == ("sent", 1)


async def test_email_sent_by_hand_before_the_first_run_does_not_move_the_first_day(app: App, mail: MailService) -> None:
    await app.send_again(MONDAY, datetime(2024, 3, 12, 8, tzinfo=UTC))

    await app.run_timers(WEDNESDAY)

    assert mail.days == ["2024-03-11", "2024-03-12"]
    assert await app.outcomes() == [None, "sent"]


async def test_email_sent_by_hand_reports_no_adjustment(running_app: App, mail: MailService) -> None:
    unaccounted = entry(MONDAY, state=State.UNACCOUNTED)
    await running_app.write_calls(unaccounted)
    await running_app.run_timers(TUESDAY)
    await settle(running_app, unaccounted)

    await running_app.send_again(MONDAY, datetime(2024, 3, 12, 8, tzinfo=UTC))
    await running_app.run_timers(WEDNESDAY)

    assert mail.adjustments == [[], [], [f"{LATE_COST}"]]


async def test_emails_of_two_apps_have_different_ids(start: Start, mail: MailService, environ: dict[str, str]) -> None:
    for name in (environ["TABLE_PREFIX"], environ["TABLE_PREFIX"] + "x"):
        environ["TABLE_PREFIX"] = name
        app = start(mail)
        await app.write_history()
        await app.run_timers(TUESDAY)

    assert mail.days == ["2024-03-11", "2024-03-11"]
    assert len({email.operation_id for email in mail.emails}) == 2
