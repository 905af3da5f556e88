"""Timer triggers: fired on their schedule in UTC, or by hand, and never twice at once.

A schedule is the platform's NCRONTAB: seconds first, six fields. Knows nothing of what a function does.
"""

import asyncio
import logging
from collections.abc import AsyncIterator, Sequence
from contextlib import asynccontextmanager
from datetime import UTC, datetime

from azure.functions.timer import TimerRequest
from croniter import croniter  # type: ignore[import-untyped]

from local.triggers import DeclarationError, TimerTrigger, invoke

log = logging.getLogger("local.host")
LONGEST_NAP = 60  # seconds; a laptop that slept wakes to a clock that has moved


class Timer:
    def __init__(self, trigger: TimerTrigger) -> None:
        self._trigger = trigger
        self._running = asyncio.Lock()
        next_time(trigger.schedule, datetime.now(UTC), trigger.function)

    @property
    def function(self) -> str:
        return self._trigger.function

    async def fire(self, *, past_due: bool = False) -> None:
        """A failure is logged and the schedule goes on, as on the platform."""
        async with self._running:
            request = TimerRequest(past_due=past_due)
            try:
                await invoke(self._trigger, request)
                log.info("%s ran", self.function)
            except Exception:
                log.exception("%s failed", self.function)

    async def keep(self, stopping: asyncio.Event) -> None:
        """Until `stopping`; a firing that runs then is finished first."""
        while True:
            due = next_time(self._trigger.schedule, datetime.now(UTC), self.function)
            while (left := (due - datetime.now(UTC)).total_seconds()) > 0:
                try:
                    await asyncio.wait_for(stopping.wait(), min(left, LONGEST_NAP))
                except TimeoutError:
                    continue
                return
            await self.fire(past_due=left < -LONGEST_NAP)


class Timers:
    """All timers of an app, and the tasks of those that were fired by hand."""

    def __init__(self, triggers: Sequence[TimerTrigger]) -> None:
        self._timers = [Timer(trigger) for trigger in triggers]
        self._fired: set[asyncio.Task[None]] = set()

    def fire(self, function: str) -> bool:
        """By hand, without waiting for its end; False where there is no such timer. Names differ by more than case."""
        for timer in self._timers:
            if timer.function.lower() == function.lower():
                task = asyncio.create_task(timer.fire())
                self._fired.add(task)
                task.add_done_callback(self._fired.discard)
                return True
        return False

    @asynccontextmanager
    async def running(self) -> AsyncIterator[None]:
        stopping = asyncio.Event()
        kept = [asyncio.create_task(timer.keep(stopping)) for timer in self._timers]
        try:
            yield
        finally:
            stopping.set()
            await asyncio.gather(*kept, *self._fired)


def next_time(schedule: str, after: datetime, function: str) -> datetime:
    """Day of the month and day of the week must both agree (NCrontab's rule; cron's own is either)."""
    if len(schedule.split()) != 6 or not croniter.is_valid(schedule, second_at_beginning=True):
        example = "'0 0 6 * * *' is every day at 06:00 UTC"
        raise DeclarationError(f"{function}: the schedule {schedule!r} is not six NCRONTAB fields; {example}")
    times = croniter(schedule, after, ret_type=datetime, second_at_beginning=True, day_or=False)
    due: datetime = times.get_next()
    return due
