"""The morning's mail: every final day is sent once, whoever fires, however often, and whatever dies half-way.

The days are long past ones, so that when each firing begins is chosen; the tables are real.
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
from shared.conversation import Entry, State
from shared.days import Day, Days
from shared.delivery import CLAIM, Addressed, Delivery
from shared.errors import StorageUnavailable
from shared.message import Mail, MailFailed
from shared.services import Services
from shared.settings import Settings, SettingsError
from shared.summary import Figures
from tests.communication_services import CommunicationServices
from tests.killing import Nursery
from tests.ledger_rows import entry, keep_quiet, settled, spent, still_running, write
from tests.loopback import PATIENCE, Gate
from tests.proxy import Answer, Close, Match, TcpProxy

ROOT = Path(__file__).resolve().parent.parent
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


class PostOffice:
    """Takes mail as Communication Services does: it can be asked what it took. SMTP's can't (`remembers=False`)."""

    def __init__(self, *, remembers: bool = True) -> None:
        self.mails: list[Mail] = []
        self.asked: list[str] = []
        self.down = False
        self.takes_and_fails = False
        self.kills: int | None = None  # the sender, once so many mails were taken
        self.doors: Gate | None = None
        self.refused = ""  # the one recipient that it has no mailbox for
        self._remembers = remembers

    async def send(self, mail: Mail) -> tuple[str, ...]:
        if self.doors:
            await self.doors.enter()
        if self.down:
            raise MailFailed("the post office is closed")
        self.mails.append(mail)
        if self.takes_and_fails:
            raise MailFailed("no answer within 30 s")
        if self.kills == len(self.mails):
            raise Killed
        return tuple(recipient for recipient in mail.recipients if recipient != self.refused)

    async def knows(self, operation_id: str) -> bool:
        if self.down:
            raise MailFailed("the post office is closed")
        self.asked.append(operation_id)
        return self._remembers and any(mail.operation_id == operation_id for mail in self.mails)

    @property
    def days(self) -> list[str]:
        """Which days the mails are of, in the order of their arrival."""
        return [mail.subject.split()[2].rstrip(":") for mail in self.mails]

    @property
    def adjustments(self) -> list[list[str]]:
        return [re.findall(r"\s\+(\d+\.\d+)$", mail.text, re.MULTILINE) for mail in self.mails]


class App:
    """One instance of the app: the tables are shared, all else is its own."""

    def __init__(self, settings: Settings, post: PostOffice, recipients: tuple[str, ...]) -> None:
        self.services = Services(settings)
        self.days = Days(self.services._table("daily"))
        addressed = Addressed(sender="chat@example.com", recipients=recipients, transport=lambda: post)
        self.delivery = Delivery(self.days, self.services.reports, addressed)

    async def begin(self) -> None:
        """As if it had been mailing for two months in which nobody chatted."""
        await self.days.fixed("first_day", str(MONDAY - 60 * DAY))
        await keep_quiet(self.days, MONDAY)

    async def spend(self, *entries: Entry) -> None:
        await write(self.services.ledger._table, entries)

    async def fire(self, day: date, hour: int = 6, minute: int = 0) -> None:
        await self.delivery.fire(datetime.combine(day, time(hour, minute), UTC))

    async def outcomes(self, first: date = MONDAY, last: date = FRIDAY) -> list[str | None]:
        """Of the days that are kept."""
        kept = await self.days.between(first, last)
        return [kept[day].outcome for day in sorted(kept)]

    async def kept(self, day: date) -> Day:
        found = await self.days.get(day)
        assert found is not None
        return found


Start = Callable[..., App]


@pytest.fixture
async def start(environ: dict[str, str]) -> AsyncIterator[Start]:
    """Starts instances over this test's tables; `port` is a way to them."""
    started: list[App] = []

    def begin(post: PostOffice, *, recipients: tuple[str, ...] = RECIPIENTS, port: int | None = None) -> App:
        tables = {"TABLES_CONNECTION_STRING": connection_string(port)} if port else {}
        started.append(App(Settings.from_env(environ | tables), post, recipients))
        return started[-1]

    yield begin
    for app in started:
        await app.services.close()


@pytest.fixture
def post() -> PostOffice:
    return PostOffice()


@pytest.fixture
def app(start: Start, post: PostOffice) -> App:
    return start(post)


@pytest.fixture
async def running(app: App) -> App:
    await app.begin()
    return app


# Which days are mailed


async def test_the_first_firing_ever_mails_yesterday_and_nothing_before(app: App, post: PostOffice) -> None:
    await app.spend(spent(MONDAY, 1), spent(TUESDAY, 2), spent(WEDNESDAY, 4))

    await app.fire(WEDNESDAY)
    await app.fire(THURSDAY)

    assert post.days == ["2024-03-12", "2024-03-13"]
    assert "$2.00" in post.mails[0].subject


async def test_a_mail_goes_to_all_recipients_and_is_recorded_with_its_time(running: App, post: PostOffice) -> None:
    await running.spend(spent(MONDAY, "12.34"))

    await running.fire(TUESDAY)

    (mail,) = post.mails
    assert (mail.sender, mail.recipients) == ("chat@example.com", RECIPIENTS)
    kept = await running.kept(MONDAY)
    assert (kept.outcome, kept.sent_to, kept.told) == ("sent", RECIPIENTS, Decimal("12.34"))
    assert kept.sent is not None
    assert timedelta() <= kept.sent - datetime(2024, 3, 12, 6, tzinfo=UTC) < timedelta(seconds=PATIENCE)


async def test_who_was_refused_is_not_recorded_as_sent_to(running: App, post: PostOffice) -> None:
    ann, post.refused = RECIPIENTS
    await running.spend(spent(MONDAY, 1))

    await running.fire(TUESDAY)
    by_hand = await running.delivery.send_again(MONDAY, datetime(2024, 3, 12, 8, tzinfo=UTC))

    assert (await running.kept(MONDAY)).sent_to == by_hand == (ann,)


async def test_a_final_days_cost_is_logged_as_the_alert_reads_it(
    running: App, caplog: pytest.LogCaptureFixture
) -> None:
    await running.spend(spent(MONDAY, "12.34"), entry(MONDAY, turn=2, state=State.UNACCOUNTED))

    with caplog.at_level("INFO", "shared.delivery"):
        await running.fire(TUESDAY)
        await running.fire(TUESDAY)

    told = [message for message in caplog.messages if message.startswith("daily cost: ")]
    assert told == ["daily cost: day=2024-03-11 cost_usd=12.34000000 unaccounted_usd=0.0123456 calls=2"]
    alert = (ROOT / "infra/queries/alert-daily-cost.kql").read_text()
    names = re.findall(r"(\w+)=", told[0])
    assert re.findall(r'[" ](\w+)="', alert) == names


async def test_while_the_mail_is_down_each_days_cost_is_logged_all_the_same(
    running: App, post: PostOffice, caplog: pytest.LogCaptureFixture
) -> None:
    await running.spend(spent(MONDAY, 1), spent(TUESDAY, 500))
    post.down = True

    with caplog.at_level("INFO", "shared.delivery"):
        await running.fire(WEDNESDAY)

    assert [message.split()[2:4] for message in caplog.messages if message.startswith("daily cost: ")] == [
        ["day=2024-03-11", "cost_usd=1.000000"],
        ["day=2024-03-12", "cost_usd=500.000000"],
    ]


async def test_missed_nights_are_caught_up_in_order_and_quiet_ones_are_only_recorded(
    running: App, post: PostOffice
) -> None:
    await running.spend(spent(MONDAY, 1), spent(WEDNESDAY, 3), spent(THURSDAY, 4))

    await running.fire(FRIDAY)

    assert post.days == ["2024-03-11", "2024-03-13", "2024-03-14"]
    assert await running.outcomes() == ["sent", "quiet", "sent", "sent"]


async def test_a_yesterday_without_turns_gets_a_mail_that_says_so(running: App, post: PostOffice) -> None:
    await running.fire(TUESDAY)

    (mail,) = post.mails
    assert mail.subject == "Chat cost 2024-03-11: no turns"
    assert await running.outcomes() == ["sent"]


async def test_a_day_whose_only_call_was_fenced_off_is_quiet(running: App, post: PostOffice) -> None:
    await running.spend(entry(MONDAY, state=State.ABANDONED))

    await running.fire(WEDNESDAY)

    assert post.days == ["2024-03-12"]
    assert await running.outcomes() == ["quiet", "sent"]


async def test_no_more_than_31_days_are_caught_up(running: App, post: PostOffice) -> None:
    back = MONDAY + 40 * DAY
    await running.spend(spent(back - 32 * DAY, 1), spent(back - 31 * DAY, 2))

    await running.fire(back)

    assert post.days == [str(back - 31 * DAY), str(back - DAY)]
    kept = await running.days.between(back - 31 * DAY, back)
    assert [kept[day].outcome for day in sorted(kept)] == ["sent", *["quiet"] * 29, "sent"]
    older = await running.days.between(back - 40 * DAY, back - 32 * DAY)
    assert {day.outcome for day in older.values()} <= {None}


async def test_without_recipients_a_day_is_not_wanted_and_stays_so(start: Start, post: PostOffice) -> None:
    nobody = start(post, recipients=())
    await nobody.spend(spent(MONDAY, 1))
    await nobody.fire(TUESDAY)

    assert await nobody.outcomes() == ["not_wanted"]
    somebody = start(post)
    await somebody.fire(WEDNESDAY)
    assert post.days == ["2024-03-12"]


async def test_a_day_is_not_final_within_the_grace_after_midnight(running: App, post: PostOffice) -> None:
    await running.spend(spent(MONDAY, 1))
    over = datetime(2024, 3, 12, 0, 4, 40, tzinfo=UTC)  # TURN_TIMEOUT_SECONDS and 60 s

    await running.delivery.fire(over - timedelta(seconds=1))
    assert post.mails == []
    assert await running.days.get(MONDAY) is None

    await running.delivery.fire(over)
    assert post.days == ["2024-03-11"]


async def test_a_day_with_a_call_that_still_runs_is_kept_back_until_that_has_ended(
    running: App, post: PostOffice
) -> None:
    still = still_running(entry(MONDAY, "slow", state=State.OPEN))
    await running.spend(spent(MONDAY, 1, "s"), still, spent(TUESDAY, 2))

    await running.fire(WEDNESDAY)
    assert post.days == ["2024-03-12"]
    assert await running.outcomes() == ["sent"]

    found = await running.services.ledger.find(still.call, "slow", 1)
    assert found is not None
    await running.services.ledger.settle(found, settled(still))
    await running.fire(THURSDAY)
    assert post.days == ["2024-03-12", "2024-03-11", "2024-03-13"]
    assert (await running.kept(MONDAY)).figures.cost == 1 + LATE


async def test_a_call_that_nobody_will_finish_is_recovered_and_its_day_mailed_at_once(
    running: App, post: PostOffice
) -> None:
    await running.spend(entry(MONDAY, state=State.OPEN))

    await running.fire(TUESDAY)

    assert post.days == ["2024-03-11"]
    kept = await running.kept(MONDAY)
    assert (kept.figures.open, kept.figures.unaccounted) == (0, 1)


# Once


async def test_firing_again_sends_nothing(running: App, post: PostOffice) -> None:
    await running.spend(spent(MONDAY, 1))

    await running.fire(TUESDAY)
    await running.fire(TUESDAY)
    await running.fire(TUESDAY, hour=23)

    assert post.days == ["2024-03-11"]
    assert post.asked == []


async def test_of_five_firings_on_two_instances_one_mails(start: Start, running: App, post: PostOffice) -> None:
    doubtful = entry(MONDAY, state=State.UNACCOUNTED)
    await running.spend(doubtful, spent(TUESDAY, 2), spent(WEDNESDAY, 3), spent(THURSDAY, 4))
    await running.fire(TUESDAY)
    await settle(running, doubtful)
    instances = [running, start(post)]

    await asyncio.gather(*(instances[n % 2].fire(FRIDAY) for n in range(5)))

    assert post.days == ["2024-03-11", "2024-03-12", "2024-03-13", "2024-03-14"]
    assert post.adjustments == [[], [f"{LATE}"], [], []]
    assert await running.outcomes() == ["sent"] * 4
    assert len({mail.operation_id for mail in post.mails}) == 4


async def test_while_one_instance_sends_another_leaves_the_day_alone(
    start: Start, running: App, post: PostOffice
) -> None:
    await running.spend(spent(MONDAY, 1))
    with Gate() as doors:
        post.doors = doors
        sending = asyncio.create_task(running.fire(TUESDAY))
        await doors.until_reached()

        await start(PostOffice()).fire(TUESDAY)
        assert (await running.kept(MONDAY)).outcome is None

        doors.release()
        await sending
    assert post.days == ["2024-03-11"]


async def test_later_days_wait_for_the_one_that_is_being_sent(start: Start, running: App, post: PostOffice) -> None:
    """What a mail says of earlier days is what the one before it has left to say."""
    doubtful = entry(MONDAY, state=State.UNACCOUNTED)
    await running.spend(doubtful, spent(TUESDAY, 2), spent(WEDNESDAY, 3))
    await running.fire(TUESDAY)
    await settle(running, doubtful)
    post.kills = 2
    with suppress(Killed):
        await running.fire(THURSDAY)
    assert post.adjustments == [[], [f"{LATE}"]]

    await start(post).fire(THURSDAY, minute=5)
    assert post.days == ["2024-03-11", "2024-03-12"]

    await start(post).fire(THURSDAY, minute=16)
    assert post.days == ["2024-03-11", "2024-03-12", "2024-03-13"]
    assert post.adjustments == [[], [f"{LATE}"], []]


# Whatever dies half-way


async def test_a_claim_holds_for_15_minutes_and_then_the_post_office_is_asked(
    start: Start, running: App, post: PostOffice
) -> None:
    await running.spend(spent(MONDAY, 1))
    post.kills = 1
    with pytest.raises(Killed):
        await running.fire(TUESDAY)

    await start(post).fire(TUESDAY, minute=14)
    assert post.asked == []

    await start(post).fire(TUESDAY, minute=16)
    assert post.asked == [post.mails[0].operation_id]
    assert post.days == ["2024-03-11"]
    kept = await running.kept(MONDAY)
    assert (kept.outcome, kept.sent_to) == ("sent", RECIPIENTS)


async def test_a_claim_counts_from_when_it_is_made_and_not_from_when_its_firing_began(
    running: App, post: PostOffice
) -> None:
    """Else the last days of a firing that takes long are claimed for no time at all, and another one mails them too."""
    await running.spend(spent(MONDAY, 1), spent(TUESDAY, 2))
    post.kills = 2
    with pytest.raises(Killed):
        await running.fire(WEDNESDAY)

    sent, claimed_until = (await running.kept(MONDAY)).sent, (await running.kept(TUESDAY)).claimed_until
    assert sent is not None
    assert claimed_until is not None
    assert datetime(2024, 3, 13, 6, tzinfo=UTC) < sent < claimed_until - CLAIM


async def test_a_claim_that_lapsed_unsent_leads_to_the_mail(start: Start, running: App, post: PostOffice) -> None:
    await running.spend(spent(MONDAY, 1))
    with Gate() as doors:
        post.doors = doors
        dying = asyncio.create_task(running.fire(TUESDAY))
        await doors.until_reached()
        dying.cancel()
        await asyncio.gather(dying, return_exceptions=True)
    post.doors = None

    await start(post).fire(WEDNESDAY)

    assert post.days == ["2024-03-11", "2024-03-12"]
    assert post.asked == [post.mails[0].operation_id]


async def test_where_the_post_office_cant_be_asked_the_mail_goes_again_under_its_id(
    start: Start, azurite_port: int
) -> None:
    post = PostOffice(remembers=False)
    with TcpProxy(azurite_port) as proxy:
        app = start(post, port=proxy.port)
        await app.begin()
        await app.spend(spent(MONDAY, 1))
        proxy.on(RECORDING, REFUSED, times=None)
        with pytest.raises(StorageUnavailable):
            await app.fire(TUESDAY)
        proxy.clear()

        await app.fire(TUESDAY, hour=7)
        assert await app.outcomes() == ["sent"]

    assert post.days == ["2024-03-11", "2024-03-11"]
    assert post.mails[0].operation_id == post.mails[1].operation_id


async def test_a_mail_whose_record_was_never_written_is_not_sent_again(
    start: Start, post: PostOffice, azurite_port: int
) -> None:
    with TcpProxy(azurite_port) as proxy:
        app = start(post, port=proxy.port)
        await app.begin()
        await app.spend(spent(MONDAY, 1))
        proxy.on(RECORDING, REFUSED, times=None)
        with pytest.raises(StorageUnavailable):
            await app.fire(TUESDAY)
        proxy.clear()

        await app.fire(WEDNESDAY)
        assert await app.outcomes() == ["sent", "sent"]

    assert post.days == ["2024-03-11", "2024-03-12"]
    assert post.asked == [post.mails[0].operation_id]


async def test_a_claim_whose_acknowledgement_was_lost_is_still_ones_own(
    start: Start, post: PostOffice, azurite_port: int
) -> None:
    with TcpProxy(azurite_port) as proxy:
        app = start(post, port=proxy.port)
        await app.begin()
        await app.spend(spent(MONDAY, 1))
        lost = proxy.on(CLAIMING, LOST)

        await app.fire(TUESDAY)
        assert await app.outcomes() == ["sent"]

    assert lost.hits == 1
    assert post.days == ["2024-03-11"]


async def test_a_record_whose_acknowledgement_was_lost_is_kept_all_the_same(
    start: Start, post: PostOffice, azurite_port: int
) -> None:
    with TcpProxy(azurite_port) as proxy:
        app = start(post, port=proxy.port)
        await app.begin()
        await app.spend(spent(MONDAY, 1))
        lost = proxy.on(RECORDING, LOST)

        await app.fire(TUESDAY)
        await app.fire(WEDNESDAY)

    assert lost.hits == 1
    assert post.days == ["2024-03-11", "2024-03-12"]


@pytest.mark.parametrize("nth", range(1, 10))
async def test_storage_that_fails_at_any_write_of_a_firing_leaves_it_to_the_next(
    start: Start, post: PostOffice, azurite_port: int, nth: int
) -> None:
    with TcpProxy(azurite_port) as proxy:
        app = start(post, port=proxy.port)
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
        assert (await app.kept(MONDAY)).told == 1 + LATE

    assert post.days == ["2024-03-11", "2024-03-12", "2024-03-13"]
    assert post.adjustments == [[], [f"{LATE}"], []]


async def test_storage_that_fails_at_a_read_leaves_the_firing_to_the_next(
    start: Start, post: PostOffice, azurite_port: int
) -> None:
    with TcpProxy(azurite_port) as proxy:
        app = start(post, port=proxy.port)
        await app.begin()
        await app.spend(spent(MONDAY, 1))
        for nth in (1, 2, 3, 4, 5, 15, 22):
            proxy.on(Match("GET"), REFUSED, nth=nth, times=None)
            with pytest.raises(StorageUnavailable):
                await app.fire(TUESDAY)
            proxy.clear()

        await app.fire(TUESDAY, minute=20)

    assert post.days == ["2024-03-11"]


async def twice_with_its_record_lost(environ: dict[str, str], azurite_port: int) -> str:
    """The app as it is deployed fires, loses the record of its mail, and fires again; returns the mail's id."""
    with TcpProxy(azurite_port) as proxy:
        tables = {"TABLES_CONNECTION_STRING": connection_string(proxy.port)}
        app = App(Settings.from_env(environ | MAIL | tables), PostOffice(), ())
        try:
            await app.begin()
            proxy.on(RECORDING, REFUSED, times=None)
            with pytest.raises(StorageUnavailable):
                await app.services.delivery.fire(datetime(2024, 3, 12, 6, tzinfo=UTC))
            proxy.clear()
            await app.services.delivery.fire(datetime(2024, 3, 12, 6, 20, tzinfo=UTC))
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
    """An SMTP server's: it has a mail before it says so, which it does once the doors are open."""

    def __init__(self) -> None:
        self.taken: list[str] = []
        self.doors: Gate | None = None

    async def handle_DATA(self, _: object, __: object, envelope: Envelope) -> str:  # noqa: N802
        assert isinstance(envelope.content, bytes)
        self.taken.append(message_from_bytes(envelope.content)["Message-ID"])
        if self.doors:
            await self.doors.enter()
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

    assert inbox.taken == [f"<{operation}@example.com>"] * 2


async def test_a_process_that_is_killed_as_it_mails_is_followed_by_one_mail_of_the_same_id_once_its_claim_is_over(
    app: App, environ: dict[str, str], inbox: Inbox, tmp_path: Path
) -> None:
    yesterday = datetime.now(UTC).date() - DAY
    await app.days.fixed("first_day", str(yesterday))
    await app.days.put(Day(day=yesterday, figures=Figures(calls=1), final=True))
    environ |= MAIL
    with Nursery() as nursery:
        victim = nursery.host(environ, tmp_path / "victim.log")
        with Gate() as inbox.doors:
            async with victim.client() as client:
                await client.post("/admin/functions/daily_cost_summary", json={"input": ""})
            await inbox.doors.until_reached()
            victim.kill()

        heir = nursery.host(environ, tmp_path / "heir.log")
        heir.fire()
        assert len(inbox.taken) == 1
        await app.days.put(replace(await app.kept(yesterday), claimed_until=datetime.now(UTC)))
        heir.fire()
        heir.fire()

    assert inbox.taken == [f"<{await app.delivery._operation_id(yesterday, 0)}@example.com>"] * 2
    assert (await app.kept(yesterday)).outcome == "sent"


# The mail being down


async def test_a_mail_that_cant_leave_is_logged_and_leaves_with_the_next_firing(
    running: App, post: PostOffice, caplog: pytest.LogCaptureFixture
) -> None:
    await running.spend(spent(MONDAY, 1))
    post.down = True

    await running.fire(TUESDAY)

    (record,) = [record for record in caplog.records if record.levelname == "ERROR"]
    assert "2024-03-11" in record.message
    assert (await running.kept(MONDAY)).outcome is None
    post.down = False
    await running.fire(TUESDAY, minute=1)
    assert post.days == ["2024-03-11"]
    assert await running.outcomes() == ["sent"]


async def test_a_mail_that_was_taken_without_an_answer_is_not_sent_twice(running: App, post: PostOffice) -> None:
    await running.spend(spent(MONDAY, 1))
    post.takes_and_fails = True
    await running.fire(TUESDAY)
    post.takes_and_fails = False

    await running.fire(WEDNESDAY)

    assert post.days == ["2024-03-11", "2024-03-12"]
    assert await running.outcomes() == ["sent", "sent"]


async def test_after_days_without_mail_all_of_it_leaves_and_an_adjustment_is_told_once(
    running: App, post: PostOffice
) -> None:
    doubtful = entry(MONDAY, state=State.UNACCOUNTED)
    await running.spend(doubtful, spent(TUESDAY, 2), spent(WEDNESDAY, 3), spent(THURSDAY, 4))
    await running.fire(TUESDAY)
    await settle(running, doubtful)
    post.down = True
    await running.fire(WEDNESDAY)
    await running.fire(THURSDAY)
    post.down = False

    await running.fire(FRIDAY)

    assert post.days == ["2024-03-11", "2024-03-12", "2024-03-13", "2024-03-14"]
    assert post.adjustments == [[], [f"{LATE}"], [], []]


async def test_a_transport_that_is_not_set_up_is_an_error_and_nothing_is_claimed(
    running: App, post: PostOffice
) -> None:
    def unset() -> PostOffice:
        raise SettingsError("ACS_ENDPOINT", "is not set")

    addressed = Addressed(sender="", recipients=RECIPIENTS, transport=unset)
    with pytest.raises(SettingsError):
        await Delivery(running.days, running.services.reports, addressed).fire(datetime(2024, 3, 12, 6, tzinfo=UTC))

    await running.fire(TUESDAY, minute=1)
    assert post.days == ["2024-03-11"]
    assert post.asked == []


# What was not known when a day was mailed


async def settle(app: App, doubtful: Entry) -> None:
    """The answer of a call that was given up arrives after all."""
    found = await app.services.ledger.find(doubtful.call, doubtful.session_id, doubtful.turn)
    assert found is not None
    await app.services.ledger.settle(found, settled(doubtful))


async def test_a_late_settlement_is_told_once_in_the_next_mail(running: App, post: PostOffice) -> None:
    doubtful = entry(MONDAY, state=State.UNACCOUNTED)
    await running.spend(doubtful, spent(MONDAY, 1))
    await running.fire(TUESDAY)
    assert (await running.kept(MONDAY)).figures.unaccounted == 1

    await settle(running, doubtful)
    for day in (WEDNESDAY, THURSDAY):
        await running.fire(day)

    assert post.adjustments == [[], [f"{LATE}"], []]
    kept = await running.kept(MONDAY)
    assert (kept.figures.cost, kept.told, kept.figures.unaccounted) == (1 + LATE, 1 + LATE, 0)


async def test_what_is_settled_bit_by_bit_is_told_bit_by_bit(running: App, post: PostOffice) -> None:
    one, other = (entry(MONDAY, session, state=State.UNACCOUNTED) for session in ("one", "other"))
    await running.spend(one, other)
    await running.fire(TUESDAY)

    for day, doubtful in ((WEDNESDAY, one), (THURSDAY, other)):
        await settle(running, doubtful)
        await running.fire(day)

    assert post.adjustments == [[], [f"{LATE}"], [f"{LATE}"]]


async def test_an_adjustment_whose_mail_was_interrupted_is_told_once(
    start: Start, running: App, post: PostOffice
) -> None:
    doubtful = entry(MONDAY, state=State.UNACCOUNTED)
    await running.spend(doubtful)
    await running.fire(TUESDAY)
    await settle(running, doubtful)
    post.kills = 2
    with pytest.raises(Killed):
        await running.fire(WEDNESDAY)

    await start(post).fire(THURSDAY)

    assert post.days == ["2024-03-11", "2024-03-12", "2024-03-13"]
    assert post.adjustments == [[], [f"{LATE}"], []]


async def test_what_changed_while_a_mail_was_in_doubt_is_told_by_the_next(
    start: Start, running: App, post: PostOffice
) -> None:
    """The mail that was interrupted left with the old figures: what came since is not what it said."""
    doubtful = entry(MONDAY, state=State.UNACCOUNTED)
    await running.spend(doubtful, spent(MONDAY, 1))
    post.kills = 1
    with pytest.raises(Killed):
        await running.fire(TUESDAY)
    await settle(running, doubtful)

    await start(post).fire(WEDNESDAY)

    assert post.days == ["2024-03-11", "2024-03-12"]
    assert post.adjustments == [[], [f"{LATE}"]]


async def test_what_changed_before_a_mail_could_leave_is_in_that_mail(running: App, post: PostOffice) -> None:
    doubtful = entry(MONDAY, state=State.UNACCOUNTED)
    await running.spend(doubtful, spent(MONDAY, 1))
    post.down = True
    await running.fire(TUESDAY)
    await settle(running, doubtful)
    post.down = False

    await running.fire(WEDNESDAY)

    assert "$1.0012" in post.mails[0].text
    assert post.adjustments == [[], []]


async def test_a_day_that_was_mailed_as_quiet_has_nothing_to_adjust(running: App, post: PostOffice) -> None:
    await running.spend(spent(WEDNESDAY, 1))

    await running.fire(THURSDAY)
    await running.fire(FRIDAY)

    assert post.adjustments == [[], []]


async def test_a_settlement_is_waited_for_for_31_days(running: App, post: PostOffice) -> None:
    doubtful = entry(MONDAY, state=State.UNACCOUNTED)
    await running.spend(doubtful, entry(TUESDAY, "other", state=State.UNACCOUNTED))
    await running.fire(WEDNESDAY)
    post.mails.clear()
    for one in (MONDAY, TUESDAY):
        (other,) = [found async for found in running.services.ledger.unfinished(one)]
        await settle(running, other)

    await running.fire(TUESDAY + 31 * DAY)

    assert (await running.kept(MONDAY)).figures.unaccounted == 1
    assert (await running.kept(TUESDAY)).figures.unaccounted == 0
    assert [told for told in post.adjustments if told] == [[f"{LATE}"]]


async def test_averages_and_month_to_date_are_those_of_the_current_figures(running: App, post: PostOffice) -> None:
    doubtful = entry(MONDAY, state=State.UNACCOUNTED)
    await running.spend(doubtful, spent(MONDAY, 7), spent(TUESDAY, 7))
    await running.fire(TUESDAY)
    await settle(running, doubtful)

    await running.fire(WEDNESDAY)

    summary = await running.services.reports.summary(TUESDAY, datetime(2024, 3, 13, 6, tzinfo=UTC))
    assert summary.month_to_date == 14 + LATE
    assert summary.week_average == (7 + LATE) / 7
    assert summary.day_before == 7 + LATE
    assert "14.0012" in post.mails[1].text


# By hand


async def test_a_mail_by_hand_is_another_one_and_the_timer_takes_no_notice(running: App, post: PostOffice) -> None:
    await running.spend(spent(MONDAY, 1))
    by_hand = datetime(2024, 3, 12, 5, tzinfo=UTC)

    await running.delivery.send_again(MONDAY, by_hand)
    await running.delivery.send_again(MONDAY, by_hand)
    assert (await running.kept(MONDAY)).outcome is None
    await running.fire(TUESDAY)
    sent = (await running.kept(MONDAY)).sent
    await running.delivery.send_again(MONDAY, by_hand)

    assert post.days == ["2024-03-11"] * 4
    assert len({mail.operation_id for mail in post.mails}) == 4
    kept = await running.kept(MONDAY)
    assert (kept.outcome, kept.sends, kept.sent) == ("sent", 3, sent)


async def test_a_mail_by_hand_while_the_timer_mails_holds_up_no_day(
    start: Start, running: App, post: PostOffice
) -> None:
    await running.spend(spent(MONDAY, 1), spent(TUESDAY, 2))
    with Gate() as doors:
        post.doors = doors
        sending = asyncio.create_task(running.fire(WEDNESDAY))
        await doors.until_reached()
        await start(PostOffice()).delivery.send_again(TUESDAY, datetime(2024, 3, 13, 6, tzinfo=UTC))
        doors.release()
        await sending

    assert post.days == ["2024-03-11", "2024-03-12"]
    kept = await running.kept(TUESDAY)
    assert (kept.outcome, kept.sends) == ("sent", 1)


async def test_a_mail_by_hand_before_the_first_firing_does_not_make_it_reach_further_back(
    app: App, post: PostOffice
) -> None:
    await app.delivery.send_again(MONDAY, datetime(2024, 3, 12, 8, tzinfo=UTC))

    await app.fire(WEDNESDAY)

    assert post.days == ["2024-03-11", "2024-03-12"]
    assert await app.outcomes() == [None, "sent"]


async def test_a_mail_by_hand_takes_no_adjustment_from_the_timers(running: App, post: PostOffice) -> None:
    doubtful = entry(MONDAY, state=State.UNACCOUNTED)
    await running.spend(doubtful)
    await running.fire(TUESDAY)
    await settle(running, doubtful)

    await running.delivery.send_again(MONDAY, datetime(2024, 3, 12, 8, tzinfo=UTC))
    await running.fire(WEDNESDAY)

    assert post.adjustments == [[], [], [f"{LATE}"]]


async def test_the_ids_of_two_apps_mails_are_never_the_same(
    start: Start, post: PostOffice, environ: dict[str, str]
) -> None:
    for name in (environ["TABLE_PREFIX"], environ["TABLE_PREFIX"] + "x"):
        environ["TABLE_PREFIX"] = name
        app = start(post)
        await app.begin()
        await app.fire(TUESDAY)

    assert post.days == ["2024-03-11", "2024-03-11"]
    assert len({mail.operation_id for mail in post.mails}) == 2
