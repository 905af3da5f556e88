"""The summary email: every final day is sent once, whichever timer runs, however often, and wherever it dies.

The days are in the past, so that the test chooses when each firing begins; the tables are real.
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
from shared.reports.delivery import CLAIM, Delivery, MailConfig
from shared.services import Services
from shared.settings import Settings, SettingsError
from shared.storage.days import Days
from shared.storage.ledger import Ledger
from tests.support.clock import ManualClock
from tests.support.communication_services import CommunicationServices
from tests.support.killing import Nursery
from tests.support.ledger_rows import entry, keep_quiet, settled, spent, still_running, write
from tests.support.loopback import PATIENCE, Gate
from tests.support.proxy import Answer, Close, Match, TcpProxy
from tests.support.still_clock import StillClock

MONDAY = date(2024, 3, 11)
DAY = timedelta(days=1)
TUESDAY, WEDNESDAY, THURSDAY, FRIDAY = (MONDAY + DAY * n for n in range(1, 5))
RECIPIENTS = ("ann@example.com", "bob@example.com")
MAIL = {"SUMMARY_RECIPIENTS": ",".join(RECIPIENTS), "SUMMARY_SENDER": "chat@example.com"}
LATE = Decimal("0.0012")  # what a late settlement adds
WRITING = Match(body=".")
CLAIMING = Match("PUT", "daily", '"claimed_until"')
RECORDING = Match("PUT", "daily", '"outcome": ?"sent"')
REFUSED = Answer(403)  # an error that the storage client does not try again
LOST = Close(after_answer=True)


class Killed(BaseException):
    """The process ends here."""


class MailService:
    """Accepts email as Communication Services does, which knows what was sent; SMTP does not (`remembers=False`)."""

    def __init__(self, *, remembers: bool = True) -> None:
        self.emails: list[Email] = []
        self.asked: list[str] = []
        self.down = False
        self.accepts_without_answer = False
        self.kills: int | None = None  # the sender, once so many emails were accepted
        self.gate: Gate | None = None
        self.refused = ""  # the one recipient that it has no mailbox for
        self._remembers = remembers

    async def send(self, email: Email) -> tuple[str, ...]:
        if self.gate:
            await self.gate.enter()
        if self.down:
            raise MailFailed("the mail service is down")
        self.emails.append(email)
        if self.accepts_without_answer:
            raise MailFailed("no answer within 30 s")
        if self.kills == len(self.emails):
            raise Killed
        return tuple(recipient for recipient in email.recipients if recipient != self.refused)

    async def was_sent(self, operation_id: str) -> bool:
        if self.down:
            raise MailFailed("the mail service is down")
        self.asked.append(operation_id)
        return self._remembers and any(email.operation_id == operation_id for email in self.emails)

    @property
    def days(self) -> list[str]:
        """The days that the emails are about, in the order of their arrival."""
        return [email.subject.split()[2].rstrip(":") for email in self.emails]

    @property
    def adjustments(self) -> list[list[str]]:
        return [re.findall(r"\s\+(\d+\.\d+)$", email.text, re.MULTILINE) for email in self.emails]


class App:
    """One instance of the app: the tables are shared, all else is its own."""

    def __init__(
        self, settings: Settings, mail: MailService, recipients: tuple[str, ...], clock: ManualClock | None = None
    ) -> None:
        self.clock = clock or ManualClock()
        self.services = Services(settings, self.clock)
        self.days = Days(self.services._table("daily"))
        self.ledger = Ledger(self.services._table("usage"))
        config = MailConfig(schedule=None, sender="chat@example.com", recipients=recipients, transport=lambda: mail)
        self.delivery = Delivery(self.days, self.services.reports, config, self.clock)

    async def begin(self) -> None:
        """As if it had been mailing for two months in which nobody chatted."""
        await self.days.constant("first_day", str(MONDAY - 60 * DAY))
        await keep_quiet(self.days, MONDAY)

    async def spend(self, *entries: LedgerEntry) -> None:
        await write(self.ledger._table, entries)

    async def fire(self, day: date, hour: int = 6, minute: int = 0) -> None:
        """The recovery of the maintenance timer, then the daily timer."""
        self.clock.set(datetime.combine(day, time(hour, minute), UTC))
        async for _ in self.services.reports.recover():
            pass
        await self.delivery.send_due()

    async def send_again(self, day: date, at: datetime) -> tuple[str, ...]:
        self.clock.set(at)
        return await self.delivery.send_again(day)

    async def outcomes(self, first: date = MONDAY, last: date = FRIDAY) -> list[str | None]:
        """Of the days that are stored."""
        stored = await self.days.between(first, last)
        return [stored[day].outcome for day in sorted(stored)]

    async def stored(self, day: date) -> Day:
        stored = await self.days.get(day)
        assert stored is not None
        return stored


Start = Callable[..., App]


@pytest.fixture
async def start(environ: dict[str, str]) -> AsyncIterator[Start]:
    """Starts instances over this test's tables, which they reach through `port` where one is given."""
    started: list[App] = []

    def begin(
        mail: MailService,
        *,
        recipients: tuple[str, ...] = RECIPIENTS,
        port: int | None = None,
        clock: ManualClock | None = None,
    ) -> App:
        tables = {"TABLES_CONNECTION_STRING": connection_string(port)} if port else {}
        started.append(App(Settings.from_env(environ | tables), mail, recipients, clock))
        return started[-1]

    yield begin
    for app in started:
        await app.services.close()


@pytest.fixture
def mail() -> MailService:
    return MailService()


@pytest.fixture
def app(start: Start, mail: MailService) -> App:
    return start(mail)


@pytest.fixture
async def running(app: App) -> App:
    await app.begin()
    return app


# Which days are mailed


async def test_the_first_firing_ever_mails_yesterday_and_nothing_before(app: App, mail: MailService) -> None:
    await app.spend(spent(MONDAY, 1), spent(TUESDAY, 2), spent(WEDNESDAY, 4))

    await app.fire(WEDNESDAY)
    await app.fire(THURSDAY)

    assert mail.days == ["2024-03-12", "2024-03-13"]
    assert "$2.00" in mail.emails[0].subject


async def test_a_mail_goes_to_all_recipients_and_is_recorded_with_its_time(running: App, mail: MailService) -> None:
    await running.spend(spent(MONDAY, "12.34"))

    await running.fire(TUESDAY)

    (email,) = mail.emails
    assert (email.sender, email.recipients) == ("chat@example.com", RECIPIENTS)
    stored = await running.stored(MONDAY)
    assert (stored.outcome, stored.sent_to, stored.mailed_cost) == ("sent", RECIPIENTS, Decimal("12.34"))
    assert stored.sent is not None
    assert timedelta() <= stored.sent - datetime(2024, 3, 12, 6, tzinfo=UTC) < timedelta(seconds=PATIENCE)


async def test_a_refused_recipient_is_not_recorded_as_sent_to(running: App, mail: MailService) -> None:
    ann, mail.refused = RECIPIENTS
    await running.spend(spent(MONDAY, 1))

    await running.fire(TUESDAY)
    by_hand = await running.send_again(MONDAY, datetime(2024, 3, 12, 8, tzinfo=UTC))

    assert (await running.stored(MONDAY)).sent_to == by_hand == (ann,)


async def test_a_final_days_cost_is_logged_as_the_alert_reads_it(
    running: App, caplog: pytest.LogCaptureFixture
) -> None:
    await running.spend(spent(MONDAY, "12.34"), entry(MONDAY, turn=2, state=State.UNACCOUNTED))

    with caplog.at_level("INFO", "shared.reports.delivery"):
        await running.fire(TUESDAY)
        await running.fire(TUESDAY)

    logged = [message for message in caplog.messages if message.startswith("daily cost: ")]
    assert logged == ["daily cost: day=2024-03-11 cost_usd=12.34000000 unaccounted_usd=0.0123456 calls=2"]
    alert = (ROOT / "infra/queries/alert-daily-cost.kql").read_text()
    names = re.findall(r"(\w+)=", logged[0])
    assert re.findall(r'[" ](\w+)="', alert) == names


async def test_while_the_mail_service_is_down_each_days_cost_is_logged_all_the_same(
    running: App, mail: MailService, caplog: pytest.LogCaptureFixture
) -> None:
    await running.spend(spent(MONDAY, 1), spent(TUESDAY, 500))
    mail.down = True

    with caplog.at_level("INFO", "shared.reports.delivery"):
        await running.fire(WEDNESDAY)

    assert [message.split()[2:4] for message in caplog.messages if message.startswith("daily cost: ")] == [
        ["day=2024-03-11", "cost_usd=1.000000"],
        ["day=2024-03-12", "cost_usd=500.000000"],
    ]


async def test_missed_days_are_caught_up_in_order_and_quiet_ones_are_only_recorded(
    running: App, mail: MailService
) -> None:
    await running.spend(spent(MONDAY, 1), spent(WEDNESDAY, 3), spent(THURSDAY, 4))

    await running.fire(FRIDAY)

    assert mail.days == ["2024-03-11", "2024-03-13", "2024-03-14"]
    assert await running.outcomes() == ["sent", "quiet", "sent", "sent"]


async def test_a_yesterday_without_turns_gets_a_mail_that_says_so(running: App, mail: MailService) -> None:
    await running.fire(TUESDAY)

    (email,) = mail.emails
    assert email.subject == "Chat cost 2024-03-11: no turns"
    assert await running.outcomes() == ["sent"]


async def test_a_day_whose_only_call_was_fenced_off_is_quiet(running: App, mail: MailService) -> None:
    await running.spend(entry(MONDAY, state=State.ABANDONED))

    await running.fire(WEDNESDAY)

    assert mail.days == ["2024-03-12"]
    assert await running.outcomes() == ["quiet", "sent"]


async def test_no_more_than_31_days_are_caught_up(running: App, mail: MailService) -> None:
    back = MONDAY + 40 * DAY
    await running.spend(spent(back - 32 * DAY, 1), spent(back - 31 * DAY, 2))

    await running.fire(back)

    assert mail.days == [str(back - 31 * DAY), str(back - DAY)]
    stored = await running.days.between(back - 31 * DAY, back)
    assert [stored[day].outcome for day in sorted(stored)] == ["sent", *["quiet"] * 29, "sent"]
    older = await running.days.between(back - 40 * DAY, back - 32 * DAY)
    assert {day.outcome for day in older.values()} <= {None}


async def test_without_recipients_a_day_is_not_wanted_and_stays_so(start: Start, mail: MailService) -> None:
    nobody = start(mail, recipients=())
    await nobody.spend(spent(MONDAY, 1))
    await nobody.fire(TUESDAY)

    assert await nobody.outcomes() == ["not_wanted"]
    somebody = start(mail)
    await somebody.fire(WEDNESDAY)
    assert mail.days == ["2024-03-12"]


async def test_a_day_is_not_final_within_the_grace_after_midnight(start: Start, mail: MailService) -> None:
    over = datetime(2024, 3, 12, 0, 4, 40, tzinfo=UTC)  # TURN_TIMEOUT_SECONDS and 60 s
    clock = StillClock(over - timedelta(seconds=1))
    app = start(mail, clock=clock)
    await app.begin()
    await app.spend(spent(MONDAY, 1))

    await app.delivery.send_due()
    assert mail.emails == []
    assert await app.days.get(MONDAY) is None

    await clock.advance(1)
    await app.delivery.send_due()
    assert mail.days == ["2024-03-11"]


async def test_a_day_with_a_call_that_still_runs_waits_until_that_has_ended(running: App, mail: MailService) -> None:
    still = still_running(entry(MONDAY, "slow", state=State.OPEN))
    await running.spend(spent(MONDAY, 1, "s"), still, spent(TUESDAY, 2))

    await running.fire(WEDNESDAY)
    assert mail.days == ["2024-03-12"]
    assert await running.outcomes() == ["sent"]

    await settle(running, still)
    await running.fire(THURSDAY)
    assert mail.days == ["2024-03-12", "2024-03-11", "2024-03-13"]
    assert (await running.stored(MONDAY)).figures.cost == 1 + LATE


async def test_the_daily_timer_recovers_the_calls_of_crashed_processes_in_the_days_that_it_mails(
    running: App, mail: MailService
) -> None:
    await running.spend(entry(MONDAY, state=State.OPEN))

    running.clock.set(datetime(2024, 3, 12, 6, tzinfo=UTC))
    await running.delivery.send_due()

    assert mail.days == ["2024-03-11"]
    stored = await running.stored(MONDAY)
    assert (stored.figures.open, stored.figures.unaccounted) == (0, 1)


# Once


async def test_firing_again_sends_nothing(running: App, mail: MailService) -> None:
    await running.spend(spent(MONDAY, 1))

    await running.fire(TUESDAY)
    await running.fire(TUESDAY)
    await running.fire(TUESDAY, hour=23)

    assert mail.days == ["2024-03-11"]
    assert mail.asked == []


async def test_of_five_firings_on_two_instances_one_mails(start: Start, running: App, mail: MailService) -> None:
    doubtful = entry(MONDAY, state=State.UNACCOUNTED)
    await running.spend(doubtful, spent(TUESDAY, 2), spent(WEDNESDAY, 3), spent(THURSDAY, 4))
    await running.fire(TUESDAY)
    await settle(running, doubtful)
    instances = [running, start(mail)]

    await asyncio.gather(*(instances[n % 2].fire(FRIDAY) for n in range(5)))

    assert mail.days == ["2024-03-11", "2024-03-12", "2024-03-13", "2024-03-14"]
    assert mail.adjustments == [[], [f"{LATE}"], [], []]
    assert await running.outcomes() == ["sent"] * 4
    assert len({email.operation_id for email in mail.emails}) == 4


async def test_while_one_instance_sends_another_leaves_the_day_alone(
    start: Start, running: App, mail: MailService
) -> None:
    await running.spend(spent(MONDAY, 1))
    with Gate() as mail.gate:
        sending = asyncio.create_task(running.fire(TUESDAY))
        await mail.gate.until_reached()

        await start(MailService()).fire(TUESDAY)
        assert (await running.stored(MONDAY)).outcome is None

        mail.gate.release()
        await sending
    assert mail.days == ["2024-03-11"]


async def test_later_days_wait_for_the_one_that_is_being_sent(start: Start, running: App, mail: MailService) -> None:
    """What a mail says of earlier days is what the one before it has left to say."""
    doubtful = entry(MONDAY, state=State.UNACCOUNTED)
    await running.spend(doubtful, spent(TUESDAY, 2), spent(WEDNESDAY, 3))
    await running.fire(TUESDAY)
    await settle(running, doubtful)
    mail.kills = 2
    with suppress(Killed):
        await running.fire(THURSDAY)
    assert mail.adjustments == [[], [f"{LATE}"]]

    await start(mail).fire(THURSDAY, minute=5)
    assert mail.days == ["2024-03-11", "2024-03-12"]

    await start(mail).fire(THURSDAY, minute=16)
    assert mail.days == ["2024-03-11", "2024-03-12", "2024-03-13"]
    assert mail.adjustments == [[], [f"{LATE}"], []]


# Interrupted at any point


async def test_a_claim_holds_for_15_minutes_and_then_the_mail_service_is_asked(
    start: Start, running: App, mail: MailService
) -> None:
    await running.spend(spent(MONDAY, 1))
    mail.kills = 1
    with pytest.raises(Killed):
        await running.fire(TUESDAY)

    await start(mail).fire(TUESDAY, minute=14)
    assert mail.asked == []

    await start(mail).fire(TUESDAY, minute=16)
    assert mail.asked == [mail.emails[0].operation_id]
    assert mail.days == ["2024-03-11"]
    stored = await running.stored(MONDAY)
    assert (stored.outcome, stored.sent_to) == ("sent", RECIPIENTS)


async def test_a_claim_counts_from_when_it_is_made_and_not_from_when_its_firing_began(
    running: App, mail: MailService
) -> None:
    """Otherwise the last days of a long firing are claimed for no time at all, and another firing mails them too."""
    await running.spend(spent(MONDAY, 1), spent(TUESDAY, 2))
    mail.kills = 2
    with pytest.raises(Killed):
        await running.fire(WEDNESDAY)

    sent, claimed_until = (await running.stored(MONDAY)).sent, (await running.stored(TUESDAY)).claimed_until
    assert sent is not None
    assert claimed_until is not None
    assert datetime(2024, 3, 13, 6, tzinfo=UTC) < sent < claimed_until - CLAIM


async def test_a_claim_that_lapsed_unsent_leads_to_the_mail(start: Start, running: App, mail: MailService) -> None:
    await running.spend(spent(MONDAY, 1))
    with Gate() as mail.gate:
        dying = asyncio.create_task(running.fire(TUESDAY))
        await mail.gate.until_reached()
        dying.cancel()
        await asyncio.gather(dying, return_exceptions=True)
    mail.gate = None

    await start(mail).fire(WEDNESDAY)

    assert mail.days == ["2024-03-11", "2024-03-12"]
    assert mail.asked == [mail.emails[0].operation_id]


async def test_where_the_mail_service_cant_be_asked_the_email_is_sent_again_under_its_id(
    start: Start, azurite_port: int
) -> None:
    mail = MailService(remembers=False)
    with TcpProxy(azurite_port) as proxy:
        app = start(mail, port=proxy.port)
        await app.begin()
        await app.spend(spent(MONDAY, 1))
        proxy.on(RECORDING, REFUSED, times=None)
        with pytest.raises(StorageUnavailable):
            await app.fire(TUESDAY)
        proxy.clear()

        await app.fire(TUESDAY, hour=7)
        assert await app.outcomes() == ["sent"]

    assert mail.days == ["2024-03-11", "2024-03-11"]
    assert mail.emails[0].operation_id == mail.emails[1].operation_id


async def test_a_mail_whose_record_was_never_written_is_not_sent_again(
    start: Start, mail: MailService, azurite_port: int
) -> None:
    with TcpProxy(azurite_port) as proxy:
        app = start(mail, port=proxy.port)
        await app.begin()
        await app.spend(spent(MONDAY, 1))
        proxy.on(RECORDING, REFUSED, times=None)
        with pytest.raises(StorageUnavailable):
            await app.fire(TUESDAY)
        proxy.clear()

        await app.fire(WEDNESDAY)
        assert await app.outcomes() == ["sent", "sent"]

    assert mail.days == ["2024-03-11", "2024-03-12"]
    assert mail.asked == [mail.emails[0].operation_id]


async def test_a_claim_whose_acknowledgement_was_lost_is_still_ones_own(
    start: Start, mail: MailService, azurite_port: int
) -> None:
    with TcpProxy(azurite_port) as proxy:
        app = start(mail, port=proxy.port)
        await app.begin()
        await app.spend(spent(MONDAY, 1))
        lost = proxy.on(CLAIMING, LOST)

        await app.fire(TUESDAY)
        assert await app.outcomes() == ["sent"]

    assert lost.hits == 1
    assert mail.days == ["2024-03-11"]


async def test_a_record_whose_acknowledgement_was_lost_is_stored_all_the_same(
    start: Start, mail: MailService, azurite_port: int
) -> None:
    with TcpProxy(azurite_port) as proxy:
        app = start(mail, port=proxy.port)
        await app.begin()
        await app.spend(spent(MONDAY, 1))
        lost = proxy.on(RECORDING, LOST)

        await app.fire(TUESDAY)
        await app.fire(WEDNESDAY)

    assert lost.hits == 1
    assert mail.days == ["2024-03-11", "2024-03-12"]


@pytest.mark.parametrize("nth", range(1, 10))
async def test_storage_that_fails_at_any_write_of_a_firing_leaves_it_to_the_next(
    start: Start, mail: MailService, azurite_port: int, nth: int
) -> None:
    with TcpProxy(azurite_port) as proxy:
        app = start(mail, port=proxy.port)
        await app.begin()
        doubtful = entry(MONDAY, state=State.UNACCOUNTED)
        await app.spend(doubtful, spent(MONDAY, 1))
        await app.fire(TUESDAY)
        await settle(app, doubtful)
        await app.spend(spent(TUESDAY, 2), entry(WEDNESDAY, state=State.OPEN), spent(WEDNESDAY, 4))
        proxy.on(WRITING, REFUSED, nth=nth, times=None)
        with pytest.raises(StorageUnavailable):
            await app.fire(THURSDAY)
        proxy.clear()

        await app.fire(THURSDAY, minute=20)
        assert await app.outcomes() == ["sent", "sent", "sent"]
        assert (await app.stored(MONDAY)).mailed_cost == 1 + LATE

    assert mail.days == ["2024-03-11", "2024-03-12", "2024-03-13"]
    assert mail.adjustments == [[], [f"{LATE}"], []]


async def test_storage_that_fails_at_a_read_leaves_the_firing_to_the_next(
    start: Start, mail: MailService, azurite_port: int
) -> None:
    with TcpProxy(azurite_port) as proxy:
        app = start(mail, port=proxy.port)
        await app.begin()
        await app.spend(spent(MONDAY, 1))
        for nth in (1, 2, 3, 4, 5, 15, 22):
            proxy.on(Match("GET"), REFUSED, nth=nth, times=None)
            with pytest.raises(StorageUnavailable):
                await app.fire(TUESDAY)
            proxy.clear()

        await app.fire(TUESDAY, minute=20)

    assert mail.days == ["2024-03-11"]


async def twice_with_its_record_lost(environ: dict[str, str], azurite_port: int) -> str:
    """The daily timer of the app with its own mail settings runs, can't record the email, and runs again; returns the
    email's id."""
    with TcpProxy(azurite_port) as proxy:
        tables = {"TABLES_CONNECTION_STRING": connection_string(proxy.port)}
        app = App(Settings.from_env(environ | MAIL | tables), MailService(), ())
        try:
            await app.begin()
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


async def test_communication_services_are_asked_and_send_one_mail(environ: dict[str, str], azurite_port: int) -> None:
    service = CommunicationServices()
    async with service.serving():
        environ["ACS_CONNECTION_STRING"] = service.connection_string
        operation = await twice_with_its_record_lost(environ, azurite_port)

    assert list(service.sent) == [operation]
    assert len(service.attempts) == 1


class Inbox:
    """An SMTP server's. It has an email before it acknowledges it, which it does once the gate is open."""

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
    """Where the app's mail goes."""
    inbox = Inbox()
    server = Controller(inbox, hostname="127.0.0.1", port=free_port())
    server.start()
    environ["SMTP_URL"] = f"smtp://127.0.0.1:{server.port}"
    yield inbox
    server.stop()


async def test_smtp_cant_be_asked_and_a_second_mail_has_the_firsts_message_id(
    environ: dict[str, str], azurite_port: int, inbox: Inbox
) -> None:
    operation = await twice_with_its_record_lost(environ, azurite_port)

    assert inbox.message_ids == [f"<{operation}@example.com>"] * 2


async def test_a_process_that_is_killed_as_it_mails_is_followed_by_one_mail_of_the_same_id_once_its_claim_is_over(
    app: App, environ: dict[str, str], inbox: Inbox, tmp_path: Path
) -> None:
    yesterday = datetime.now(UTC).date() - DAY
    await app.days.constant("first_day", str(yesterday))
    await app.days.put(Day(day=yesterday, figures=Figures(calls=1), final=True))
    environ |= MAIL
    with Nursery() as nursery:
        victim = nursery.host(environ, tmp_path / "victim.log")
        with Gate() as inbox.gate:
            async with victim.client() as client:
                await client.post("/admin/functions/daily_cost_summary", json={"input": ""})
            await inbox.gate.until_reached()
            victim.kill()

        heir = nursery.host(environ, tmp_path / "heir.log")
        heir.fire("daily_cost_summary")
        assert len(inbox.message_ids) == 1
        await app.days.put(replace(await app.stored(yesterday), claimed_until=datetime.now(UTC)))
        heir.fire("daily_cost_summary")
        heir.fire("daily_cost_summary")

    assert inbox.message_ids == [f"<{await app.delivery._operation_id(yesterday, 0)}@example.com>"] * 2
    assert (await app.stored(yesterday)).outcome == "sent"


# The mail service is down


async def test_an_email_that_cant_be_sent_is_logged_and_sent_by_the_next_firing(
    running: App, mail: MailService, caplog: pytest.LogCaptureFixture
) -> None:
    await running.spend(spent(MONDAY, 1))
    mail.down = True

    await running.fire(TUESDAY)

    (record,) = [record for record in caplog.records if record.levelname == "ERROR"]
    assert "2024-03-11" in record.message
    assert (await running.stored(MONDAY)).outcome is None
    mail.down = False
    await running.fire(TUESDAY, minute=1)
    assert mail.days == ["2024-03-11"]
    assert await running.outcomes() == ["sent"]


async def test_an_email_that_was_accepted_without_an_answer_is_not_sent_twice(running: App, mail: MailService) -> None:
    await running.spend(spent(MONDAY, 1))
    mail.accepts_without_answer = True
    await running.fire(TUESDAY)
    mail.accepts_without_answer = False

    await running.fire(WEDNESDAY)

    assert mail.days == ["2024-03-11", "2024-03-12"]
    assert await running.outcomes() == ["sent", "sent"]


async def test_after_days_without_mail_every_email_is_sent_and_an_adjustment_is_reported_once(
    running: App, mail: MailService
) -> None:
    doubtful = entry(MONDAY, state=State.UNACCOUNTED)
    await running.spend(doubtful, spent(TUESDAY, 2), spent(WEDNESDAY, 3), spent(THURSDAY, 4))
    await running.fire(TUESDAY)
    await settle(running, doubtful)
    mail.down = True
    await running.fire(WEDNESDAY)
    await running.fire(THURSDAY)
    mail.down = False

    await running.fire(FRIDAY)

    assert mail.days == ["2024-03-11", "2024-03-12", "2024-03-13", "2024-03-14"]
    assert mail.adjustments == [[], [f"{LATE}"], [], []]


async def test_a_transport_that_is_not_set_up_is_an_error_and_nothing_is_claimed(
    running: App, mail: MailService
) -> None:
    def unset() -> MailService:
        raise SettingsError("ACS_ENDPOINT", "is not set")

    config = MailConfig(schedule=None, sender="", recipients=RECIPIENTS, transport=unset)
    running.clock.set(datetime(2024, 3, 12, 6, tzinfo=UTC))
    with pytest.raises(SettingsError):
        await Delivery(running.days, running.services.reports, config, running.clock).send_due()

    await running.fire(TUESDAY, minute=1)
    assert mail.days == ["2024-03-11"]
    assert mail.asked == []


# Costs that were not known when a day was mailed


async def settle(app: App, doubtful: LedgerEntry) -> None:
    """The answer of a call arrives after all."""
    stored = await app.ledger.find(doubtful.call, doubtful.session_id, doubtful.turn)
    assert stored is not None
    assert await app.ledger.raise_call(stored, settled(doubtful))


async def test_a_late_settlement_is_reported_once_in_the_next_email(running: App, mail: MailService) -> None:
    doubtful = entry(MONDAY, state=State.UNACCOUNTED)
    await running.spend(doubtful, spent(MONDAY, 1))
    await running.fire(TUESDAY)
    assert (await running.stored(MONDAY)).figures.unaccounted == 1

    await settle(running, doubtful)
    for day in (WEDNESDAY, THURSDAY):
        await running.fire(day)

    assert mail.adjustments == [[], [f"{LATE}"], []]
    stored = await running.stored(MONDAY)
    assert (stored.figures.cost, stored.mailed_cost, stored.figures.unaccounted) == (1 + LATE, 1 + LATE, 0)


async def test_calls_that_are_settled_one_by_one_are_reported_one_by_one(running: App, mail: MailService) -> None:
    one, other = (entry(MONDAY, session, state=State.UNACCOUNTED) for session in ("one", "other"))
    await running.spend(one, other)
    await running.fire(TUESDAY)

    for day, doubtful in ((WEDNESDAY, one), (THURSDAY, other)):
        await settle(running, doubtful)
        await running.fire(day)

    assert mail.adjustments == [[], [f"{LATE}"], [f"{LATE}"]]


async def test_an_adjustment_whose_email_was_interrupted_is_reported_once(
    start: Start, running: App, mail: MailService
) -> None:
    doubtful = entry(MONDAY, state=State.UNACCOUNTED)
    await running.spend(doubtful)
    await running.fire(TUESDAY)
    await settle(running, doubtful)
    mail.kills = 2
    with pytest.raises(Killed):
        await running.fire(WEDNESDAY)

    await start(mail).fire(THURSDAY)

    assert mail.days == ["2024-03-11", "2024-03-12", "2024-03-13"]
    assert mail.adjustments == [[], [f"{LATE}"], []]


async def test_what_changed_while_an_email_was_in_doubt_is_reported_by_the_next(
    start: Start, running: App, mail: MailService
) -> None:
    """The mail that was interrupted left with the old figures: what came since is not what it said."""
    doubtful = entry(MONDAY, state=State.UNACCOUNTED)
    await running.spend(doubtful, spent(MONDAY, 1))
    mail.kills = 1
    with pytest.raises(Killed):
        await running.fire(TUESDAY)
    await settle(running, doubtful)

    await start(mail).fire(WEDNESDAY)

    assert mail.days == ["2024-03-11", "2024-03-12"]
    assert mail.adjustments == [[], [f"{LATE}"]]


async def test_what_changed_before_an_email_could_be_sent_is_in_that_email(running: App, mail: MailService) -> None:
    doubtful = entry(MONDAY, state=State.UNACCOUNTED)
    await running.spend(doubtful, spent(MONDAY, 1))
    mail.down = True
    await running.fire(TUESDAY)
    await settle(running, doubtful)
    mail.down = False

    await running.fire(WEDNESDAY)

    assert "$1.0012" in mail.emails[0].text
    assert mail.adjustments == [[], []]


async def test_a_day_that_was_mailed_as_quiet_has_nothing_to_adjust(running: App, mail: MailService) -> None:
    await running.spend(spent(WEDNESDAY, 1))

    await running.fire(THURSDAY)
    await running.fire(FRIDAY)

    assert mail.adjustments == [[], []]


async def test_a_settlement_is_waited_for_for_31_days(running: App, mail: MailService) -> None:
    doubtful = entry(MONDAY, state=State.UNACCOUNTED)
    await running.spend(doubtful, entry(TUESDAY, "other", state=State.UNACCOUNTED))
    await running.fire(WEDNESDAY)
    mail.emails.clear()
    for one in (MONDAY, TUESDAY):
        (other,) = [stored async for stored in running.ledger.unfinished(one)]
        await settle(running, other)

    await running.fire(TUESDAY + 31 * DAY)

    assert (await running.stored(MONDAY)).figures.unaccounted == 1
    assert (await running.stored(TUESDAY)).figures.unaccounted == 0
    assert [adjustments for adjustments in mail.adjustments if adjustments] == [[f"{LATE}"]]


async def test_averages_and_month_to_date_are_those_of_the_current_figures(running: App, mail: MailService) -> None:
    doubtful = entry(MONDAY, state=State.UNACCOUNTED)
    await running.spend(doubtful, spent(MONDAY, 7), spent(TUESDAY, 7))
    await running.fire(TUESDAY)
    await settle(running, doubtful)

    await running.fire(WEDNESDAY)

    summary = await running.services.reports.summary(TUESDAY)
    assert summary.month_to_date == 14 + LATE
    assert summary.week_average == (7 + LATE) / 7
    assert summary.day_before == 7 + LATE
    assert "14.0012" in mail.emails[1].text


# By hand


async def test_an_email_by_hand_is_another_one_and_the_timer_ignores_it(running: App, mail: MailService) -> None:
    await running.spend(spent(MONDAY, 1))
    by_hand = datetime(2024, 3, 12, 5, tzinfo=UTC)

    await running.send_again(MONDAY, by_hand)
    await running.send_again(MONDAY, by_hand)
    assert (await running.stored(MONDAY)).outcome is None
    await running.fire(TUESDAY)
    sent = (await running.stored(MONDAY)).sent
    await running.send_again(MONDAY, by_hand)

    assert mail.days == ["2024-03-11"] * 4
    assert len({email.operation_id for email in mail.emails}) == 4
    stored = await running.stored(MONDAY)
    assert (stored.outcome, stored.sends, stored.sent) == ("sent", 3, sent)


async def test_a_mail_by_hand_while_the_timer_mails_holds_up_no_day(
    start: Start, running: App, mail: MailService
) -> None:
    await running.spend(spent(MONDAY, 1), spent(TUESDAY, 2))
    with Gate() as mail.gate:
        sending = asyncio.create_task(running.fire(WEDNESDAY))
        await mail.gate.until_reached()
        await start(MailService()).send_again(TUESDAY, datetime(2024, 3, 13, 6, tzinfo=UTC))
        mail.gate.release()
        await sending

    assert mail.days == ["2024-03-11", "2024-03-12"]
    stored = await running.stored(TUESDAY)
    assert (stored.outcome, stored.sends) == ("sent", 1)


async def test_a_mail_by_hand_before_the_first_firing_does_not_make_it_reach_further_back(
    app: App, mail: MailService
) -> None:
    await app.send_again(MONDAY, datetime(2024, 3, 12, 8, tzinfo=UTC))

    await app.fire(WEDNESDAY)

    assert mail.days == ["2024-03-11", "2024-03-12"]
    assert await app.outcomes() == [None, "sent"]


async def test_a_mail_by_hand_takes_no_adjustment_from_the_timers(running: App, mail: MailService) -> None:
    doubtful = entry(MONDAY, state=State.UNACCOUNTED)
    await running.spend(doubtful)
    await running.fire(TUESDAY)
    await settle(running, doubtful)

    await running.send_again(MONDAY, datetime(2024, 3, 12, 8, tzinfo=UTC))
    await running.fire(WEDNESDAY)

    assert mail.adjustments == [[], [], [f"{LATE}"]]


async def test_the_ids_of_two_apps_mails_are_never_the_same(
    start: Start, mail: MailService, environ: dict[str, str]
) -> None:
    for name in (environ["TABLE_PREFIX"], environ["TABLE_PREFIX"] + "x"):
        environ["TABLE_PREFIX"] = name
        app = start(mail)
        await app.begin()
        await app.fire(TUESDAY)

    assert mail.days == ["2024-03-11", "2024-03-11"]
    assert len({email.operation_id for email in mail.emails}) == 2
