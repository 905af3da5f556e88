"""Sends the summary email of every final day once, whichever timer runs, however often, and wherever a run crashes.

A day is claimed by ETag before its email is sent. If an earlier claim has expired, the transport first checks whether
that email was sent; the operation ID of a day's email never changes. The adjustments of earlier days are stored with
the claim, so that each is reported once; this requires that emails are sent one after the other, in day order.
"""

import logging
import uuid
from collections.abc import AsyncIterator, Callable
from contextlib import suppress
from dataclasses import dataclass, replace
from datetime import date, datetime, timedelta
from functools import partial

from shared.domain.calls import ZERO
from shared.domain.clock import Clock
from shared.domain.daily import Adjustment, Day
from shared.errors import InvalidRequest, UpstreamError, VersionConflict
from shared.mail.email import Email, MailFailed, Transport
from shared.reports.daily import DAY, LOOK_BACK, Reports
from shared.reports.schedule import previous_firing
from shared.reports.summary_email import summary_email
from shared.settings import SettingsError
from shared.storage.days import Days

log = logging.getLogger(__name__)

CLAIM_DURATION = timedelta(minutes=15)


@dataclass(frozen=True, slots=True, kw_only=True)
class MailConfig:
    """Schedule, addresses and transport of the summary email. The functions are called when an email is sent; they may
    raise SettingsError."""

    schedule: str | None
    sender: Callable[[], str]
    recipients: Callable[[], tuple[str, ...]]
    transport: Callable[[], Transport]


class Delivery:
    def __init__(self, days: Days, reports: Reports, config: MailConfig, clock: Clock) -> None:
        self._days = days
        self._reports = reports
        self._config = config
        self._clock = clock

    async def send_due(self) -> None:
        """The daily timer: send every final day that was not sent yet, at most 31 days back. The first run ever starts
        with the day before it."""
        await self._send_until(self._clock.now(), first_day=self._clock.now().date() - DAY)

    async def send_missed(self, _: str = "") -> AsyncIterator[str]:
        """Maintenance: send what the daily timer should have sent in its latest run, if that failed. There is no cursor
        to resume from, because the row of each day stores whether it was sent."""
        if self._config.schedule:
            now = self._clock.now()
            await self._send_until(previous_firing(self._config.schedule, now), first_day=now.date())
        yield ""

    async def _send_until(self, due: datetime, *, first_day: date) -> None:
        """Send the days that had ended at `due`. `first_day`: the day of the first email, if this is the first run. The
        first run of the daily timer sends its `first_day` even if maintenance ran before."""
        latest = due.date() - DAY
        first_ever = date.fromisoformat(await self._days.constant("first_day", first_day.isoformat()))
        first = max(min(first_ever, first_day), due.date() - LOOK_BACK)
        days = await self._reports.days(first, latest) if first <= latest else []
        unsent = [day for day in days if day.final and day.outcome is None]
        for day in unsent:  # before sending, because sending may fail
            if day.claimed_until is None:  # else an earlier attempt logged it
                _log_cost(day)
        for day in unsent:
            if not await self._deliver(day, is_latest=day.day == latest):
                return

    async def send_again(self, day: date) -> tuple[str, ...]:
        """Send the email of a final day by hand; the timers ignore it. Returns the recipients. Raises InvalidRequest
        if the day is not final, SettingsError if a setting is missing, UpstreamError if sending fails."""
        if not (await self._reports.day(day)).final:
            raise InvalidRequest(f"{day} is not final yet. Send its email once it is.", param="date")
        if not self._config.recipients():
            raise SettingsError(
                "SUMMARY_RECIPIENTS", "is not set. Set it to the addresses that receive the summary email."
            )
        transport = self._config.transport()
        updated = await self._update(day, lambda stored: replace(stored, sends=stored.sends + 1))
        try:
            return await transport.send(await self._email(day, await self._operation_id(day, updated.sends), ()))
        except MailFailed as error:
            raise UpstreamError(f"The summary email could not be sent: {error}", maybe_billed=False) from error

    async def _deliver(self, day: Day, *, is_latest: bool) -> bool:
        """True if the day is done. If not, later days wait."""
        if day.claimed_until and self._clock.now() < day.claimed_until:
            return False
        if not self._config.recipients():
            await self._update(day.day, partial(replace, outcome="not_wanted"))
        elif not day.figures.calls and not is_latest and not day.claimed_until:
            await self._update(day.day, partial(replace, outcome="quiet", mailed_cost=ZERO))
        else:
            return await self._send(day, await self._operation_id(day.day, 0))
        return True

    async def _send(self, day: Day, operation_id: str) -> bool:
        """Claim the day, send its email and record it. False if another instance claimed it first or sending failed.

        The email is composed before the claim: the claim's ETag then proves that the day has not changed since.
        """
        transport = self._config.transport()
        claim_expired = day.claimed_until is not None
        claimed: Day | None = None
        try:
            was_sent = claim_expired and await transport.was_sent(operation_id)
            adjustments = day.adjustments if claim_expired else await self._adjustments(day.day)
            email = await self._email(day.day, operation_id, adjustments)
            mailed_cost = day.mailed_cost if was_sent else day.figures.cost
            claimed = await self._claim(day, partial(replace, adjustments=adjustments, mailed_cost=mailed_cost))
            if claimed is None:
                return False
            recipients = email.recipients if was_sent else await transport.send(email)
        except MailFailed:
            log.exception("the summary of %s could not be sent; the maintenance timer retries", day.day)
            if claimed:
                await self._update(day.day, partial(_released, claimed.claim, self._clock.now()))
            return False
        await self._record_sent(claimed, recipients)
        log.info("the summary of %s was sent to %d recipients", day.day, len(recipients))
        return True

    async def _claim(self, day: Day, change: Callable[[Day], Day]) -> Day | None:
        """The claimed day; None if another instance claimed it first. Emails sent by hand do not interfere."""
        claim = uuid.uuid4().hex
        stored: Day | None = day
        while stored and replace(stored, sends=day.sends) == day:
            with suppress(VersionConflict):
                until = self._clock.now() + CLAIM_DURATION
                return await self._days.put(replace(change(stored), claim=claim, claimed_until=until))
            stored = await self._days.get(day.day)
        return stored if stored and stored.claim == claim else None  # its own claim, if only the response was lost

    async def _email(self, day: date, operation_id: str, adjustments: tuple[Adjustment, ...]) -> Email:
        content = summary_email(await self._reports.summary(day, adjustments))
        return Email(
            sender=self._config.sender(),
            recipients=self._config.recipients(),
            subject=content.subject,
            text=content.text,
            html=content.html,
            operation_id=operation_id,
            date=self._clock.now(),
        )

    async def _record_sent(self, claimed: Day, recipients: tuple[str, ...]) -> None:
        """Record the adjustments first: if this is interrupted, the next run repeats it once the claim has expired."""
        for adjustment in claimed.adjustments:
            await self._update(adjustment.day, partial(replace, mailed_cost=adjustment.cost))
        now = self._clock.now()
        await self._update(claimed.day, partial(replace, outcome="sent", sent=now, sent_to=recipients))

    async def _adjustments(self, day: date) -> tuple[Adjustment, ...]:
        """Earlier days whose cost has changed since their latest email."""
        earlier = await self._days.between(day - LOOK_BACK, day - DAY)
        return tuple(
            Adjustment(day=d.day, difference=d.figures.cost - d.mailed_cost, cost=d.figures.cost)
            for d in sorted(earlier.values(), key=lambda d: d.day)
            if d.outcome in ("sent", "quiet") and d.mailed_cost is not None and d.mailed_cost != d.figures.cost
        )

    async def _operation_id(self, day: date, send: int) -> str:
        """The same for every attempt at the same send of a day, and unique across apps."""
        app = await self._days.constant("app", str(uuid.uuid4()))
        return str(uuid.uuid5(uuid.UUID(app), f"{day}/{send}"))

    async def _update(self, day: date, change: Callable[[Day], Day]) -> Day:
        """Change a stored day. Repeats the change if another instance changed the day in the meantime."""
        while True:
            stored = await self._days.get(day)
            if stored is None:
                raise LookupError(f"{day} is not stored")
            with suppress(VersionConflict):
                return await self._days.put(change(stored))


def _log_cost(day: Day) -> None:
    """infra/queries/alert-daily-cost.kql parses this line."""
    figures = day.figures
    log.info(
        "daily cost: day=%s cost_usd=%s unaccounted_usd=%s calls=%d stopped_at_most_usd=%s",
        day.day,
        f"{figures.cost:f}",
        f"{figures.unaccounted_cost:f}",
        figures.calls,
        f"{figures.stopped_at_most:f}",
    )


def _released(claim: str | None, now: datetime, stored: Day) -> Day:
    """The day without its claim, unless another process has claimed it in the meantime."""
    return replace(stored, claimed_until=now) if stored.claim == claim else stored
