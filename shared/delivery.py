"""The morning's mail: every final day is sent once, whoever fires, however often, and whatever dies half-way.

A day is claimed by ETag before it is sent; a claim that lapsed is asked about first, under the id that the day's mail
has for good. What a mail says of earlier days is kept with the claim, so that it is told once; for that the mails leave
one after the other, in the order of their days.
"""

import logging
import uuid
from collections.abc import Callable
from contextlib import suppress
from dataclasses import dataclass, replace
from datetime import UTC, date, datetime, timedelta
from functools import partial
from typing import TypeAlias

from shared.days import Day, Days
from shared.errors import Changed, InvalidRequest, UpstreamError
from shared.letter import letter
from shared.message import Mail, MailFailed, Transport
from shared.reports import DAY, LOOK_BACK, Reports
from shared.settings import SettingsError
from shared.summary import ZERO, Adjustment

log = logging.getLogger(__name__)

Clock: TypeAlias = Callable[[], datetime]
CLAIM = timedelta(minutes=15)


@dataclass(frozen=True, slots=True, kw_only=True)
class Addressed:
    """From whom, to whom, and how. `transport` is made at its first use, and raises SettingsError."""

    sender: str
    recipients: tuple[str, ...]
    transport: Callable[[], Transport]


class Delivery:
    def __init__(self, days: Days, reports: Reports, addressed: Addressed) -> None:
        self._days = days
        self._reports = reports
        self._to = addressed

    async def fire(self, now: datetime) -> None:
        """Recover, then send what is final and was not sent: at most 31 days back, and nothing from before the day that
        was over when this first ran."""
        clock, yesterday = _running_from(now), now.date() - DAY
        first_ever = date.fromisoformat(await self._days.fixed("first_day", yesterday.isoformat()))
        await self._reports.recover(now)
        first = max(first_ever, now.date() - LOOK_BACK)
        days = await self._reports.days(first, yesterday, now)
        due = [day for day in days if day.final and day.outcome is None]
        for day in due:  # first, since the mail may be down
            _log_cost(day)
        for day in due:
            if not await self._deliver(day, clock, latest=day.day == yesterday):
                return

    async def send_again(self, day: date, now: datetime) -> tuple[str, ...]:
        """Send a final day once more, by hand; the timer takes no notice. To whom it went. Raises InvalidRequest where
        the day is not final, UpstreamError where it can't be sent."""
        if not (await self._reports.day(day, now)).final:
            raise InvalidRequest(f"{day} is not final yet, so it can't be mailed.", param="date")
        if not self._to.recipients:
            raise SettingsError("SUMMARY_RECIPIENTS", "is not set: whom the summary is sent to.")
        transport = self._to.transport()
        counted = await self._update(day, lambda known: replace(known, sends=known.sends + 1))
        try:
            return await transport.send(await self._mail(day, await self._operation_id(day, counted.sends), (), now))
        except MailFailed as error:
            raise UpstreamError(f"The mail could not be sent: {error}", maybe_billed=False) from error

    async def _deliver(self, day: Day, clock: Clock, *, latest: bool) -> bool:
        """Whether the day is done with; if not, later days wait."""
        if day.claimed_until and clock() < day.claimed_until:
            return False
        if not self._to.recipients:
            await self._update(day.day, partial(replace, outcome="not_wanted"))
        elif not day.figures.calls and not latest and not day.claimed_until:
            await self._update(day.day, partial(replace, outcome="quiet", told=ZERO))
        else:
            return await self._send(day, await self._operation_id(day.day, 0), clock)
        return True

    async def _send(self, day: Day, operation_id: str, clock: Clock) -> bool:
        """Claim the day, mail it and record that; False where another instance was quicker or the mail is down.

        The mail is written before the claim, whose ETag then proves that the day is still as the mail has it.
        """
        transport = self._to.transport()
        lapsed = day.claimed_until is not None
        claimed: Day | None = None
        try:
            known = lapsed and await transport.knows(operation_id)
            adjustments = day.adjustments if lapsed else await self._adjustments(day.day)
            mail = await self._mail(day.day, operation_id, adjustments, clock())
            told = day.told if known else day.figures.cost
            claimed = await self._claim(day, partial(replace, adjustments=adjustments, told=told), clock)
            if claimed is None:
                return False
            to = mail.recipients if known else await transport.send(mail)
        except MailFailed:
            log.exception("the summary of %s could not be sent; the next firing tries again", day.day)
            if claimed:
                await self._update(day.day, partial(_released, claimed.claim, clock()))
            return False
        await self._record_sent(claimed, to, clock())
        log.info("the summary of %s was sent to %d", day.day, len(to))
        return True

    async def _claim(self, day: Day, change: Callable[[Day], Day], clock: Clock) -> Day | None:
        """The day as claimed; None where another instance was quicker. Mails by hand meanwhile change nothing."""
        claim = uuid.uuid4().hex
        known: Day | None = day
        while known and replace(known, sends=day.sends) == day:
            with suppress(Changed):
                return await self._days.put(replace(change(known), claim=claim, claimed_until=clock() + CLAIM))
            known = await self._days.get(day.day)
        return known if known and known.claim == claim else None  # its own, where just the answer was lost

    async def _mail(self, day: date, operation_id: str, adjustments: tuple[Adjustment, ...], now: datetime) -> Mail:
        said = letter(await self._reports.summary(day, now, adjustments))
        return Mail(
            sender=self._to.sender,
            recipients=self._to.recipients,
            subject=said.subject,
            text=said.text,
            html=said.html,
            operation_id=operation_id,
        )

    async def _record_sent(self, claimed: Day, to: tuple[str, ...], now: datetime) -> None:
        """What was told of earlier days first: if this is interrupted, the lapsed claim leads here again."""
        for adjustment in claimed.adjustments:
            await self._update(adjustment.day, partial(replace, told=adjustment.cost))
        await self._update(claimed.day, partial(replace, outcome="sent", sent=now, sent_to=to))

    async def _adjustments(self, day: date) -> tuple[Adjustment, ...]:
        """Earlier days whose cost is not what the last mail said of it."""
        earlier = await self._days.between(day - LOOK_BACK, day - DAY)
        return tuple(
            Adjustment(day=d.day, difference=d.figures.cost - d.told, cost=d.figures.cost)
            for d in sorted(earlier.values(), key=lambda d: d.day)
            if d.outcome in ("sent", "quiet") and d.told is not None and d.told != d.figures.cost
        )

    async def _operation_id(self, day: date, send: int) -> str:
        """The same for the same send of a day, and no other app's."""
        app = await self._days.fixed("app", str(uuid.uuid4()))
        return str(uuid.uuid5(uuid.UUID(app), f"{day}/{send}"))

    async def _update(self, day: date, change: Callable[[Day], Day]) -> Day:
        """Change a kept day, over whatever another instance has made of it meanwhile."""
        while True:
            known = await self._days.get(day)
            if known is None:
                raise LookupError(f"{day} is not kept")
            with suppress(Changed):
                return await self._days.put(change(known))


def _running_from(now: datetime) -> Clock:
    """The machine's clock, set to `now`: what a firing claims last, it claims for no shorter time than the first."""
    ahead = datetime.now(UTC) - now
    return lambda: datetime.now(UTC) - ahead


def _log_cost(day: Day) -> None:
    """infra/queries/alert-daily-cost.kql parses this line."""
    figures = day.figures
    log.info(
        "daily cost: day=%s cost_usd=%s unaccounted_usd=%s calls=%d",
        day.day,
        f"{figures.cost:f}",
        f"{figures.unaccounted_cost:f}",
        figures.calls,
    )


def _released(claim: str | None, now: datetime, known: Day) -> Day:
    """The day with its claim over, unless it is somebody else's by now."""
    return replace(known, claimed_until=now) if known.claim == claim else known
