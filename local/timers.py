"""Timer triggers: fired on their schedule in UTC or by an admin request. Runs of one timer never overlap.

A schedule is in the platform's NCRONTAB format: six fields, seconds first.
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
MAX_SLEEP_S = 60  # the clock jumps when a laptop wakes from sleep


class Timer:
    def __init__(self, trigger: TimerTrigger) -> None:
        self._trigger = trigger
        self._running = asyncio.Lock()
        next_time(trigger.schedule, datetime.now(UTC), trigger.function)

    @property
    def function(self) -> str:
        return self._trigger.function

    async def fire(self, *, past_due: bool = False) -> None:
        """A failure is logged and the schedule continues, as on the platform."""
        async with self._running:
            request = TimerRequest(past_due=past_due)
            try:
                await invoke(self._trigger, request)
                log.info("%s ran", self.function)
            except Exception:
                log.exception("%s failed", self.function)

    async def run_on_schedule(self, stopping: asyncio.Event) -> None:
        """Runs until `stopping` is set; a run in progress is finished first."""
        while True:
            due = next_time(self._trigger.schedule, datetime.now(UTC), self.function)
            while (remaining_s := (due - datetime.now(UTC)).total_seconds()) > 0:
                try:
                    await asyncio.wait_for(stopping.wait(), min(remaining_s, MAX_SLEEP_S))
                except TimeoutError:
                    continue
                return
            await self.fire(past_due=remaining_s < -MAX_SLEEP_S)


class Timers:
    """All timers of an app, and the tasks of admin requests."""

    def __init__(self, triggers: Sequence[TimerTrigger]) -> None:
        self._timers = [Timer(trigger) for trigger in triggers]
        self._admin_runs: set[asyncio.Task[None]] = set()

    def fire(self, function: str) -> bool:
        """Start a run without waiting for its end; False if there is no such timer. Names are case-insensitive."""
        for timer in self._timers:
            if timer.function.lower() == function.lower():
                task = asyncio.create_task(timer.fire())
                self._admin_runs.add(task)
                task.add_done_callback(self._admin_runs.discard)
                return True
        return False

    @asynccontextmanager
    async def running(self) -> AsyncIterator[None]:
        stopping = asyncio.Event()
        schedules = [asyncio.create_task(timer.run_on_schedule(stopping)) for timer in self._timers]
        try:
            yield
        finally:
            stopping.set()
            await asyncio.gather(*schedules, *self._admin_runs)


def next_time(schedule: str, after: datetime, function: str) -> datetime:
    """Day of month and day of week must both match (NCrontab's rule; in cron either one suffices)."""
    if len(schedule.split()) != 6 or not croniter.is_valid(schedule, second_at_beginning=True):
        example = "'0 0 6 * * *' is every day at 06:00 UTC"
        raise DeclarationError(f"{function}: the schedule {schedule!r} is not six NCRONTAB fields; {example}")
    times = croniter(schedule, after, ret_type=datetime, second_at_beginning=True, day_or=False)
    due: datetime = times.get_next()
    return due
