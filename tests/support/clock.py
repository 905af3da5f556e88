"""A clock that tests advance: sleeps and timeouts that end before the new time end immediately."""

import asyncio
import math
import time
from collections.abc import AsyncIterator, Callable
from contextlib import asynccontextmanager, suppress
from datetime import UTC, datetime, timedelta

from tests.support.loopback import MAX_WAIT_S

FEBRUARY_29 = "0 0 0 29 2 *"  # a timer's schedule that no test meets


class ManualClock:
    """Runs with the machine's clock, ahead of it by the total that the test has advanced it.

    Only advance it from the app's own event loop. `skip_sleeps_up_to`: sleeps of at most this many seconds advance the
    clock instead of waiting. `slept`: the seconds of every sleep.
    """

    def __init__(self) -> None:
        self.skip_sleeps_up_to = 0.0
        self.slept: list[float] = []
        self._monotonic_ahead = 0.0  # seconds
        self._wall_ahead = timedelta()
        self._sleeps: dict[asyncio.Timeout, float] = {}  # those running, with their seconds
        self._timeouts: dict[asyncio.Timeout, float] = {}

    def now(self) -> datetime:
        return datetime.now(UTC) + self._wall_ahead

    def monotonic(self) -> float:
        return asyncio.get_running_loop().time() + self._monotonic_ahead

    async def sleep(self, seconds: float) -> None:
        self.slept.append(seconds)
        if seconds <= self.skip_sleeps_up_to:
            await self.advance(seconds)
            return
        with suppress(TimeoutError):
            async with self._registered_timeout(self.monotonic() + seconds, self._sleeps, seconds):
                await asyncio.Event().wait()

    @asynccontextmanager
    async def timeout_at(self, deadline: float) -> AsyncIterator[None]:
        async with self._registered_timeout(deadline, self._timeouts, deadline - self.monotonic()):
            yield

    async def advance(self, seconds: float) -> None:
        """Move both clocks forward. Returns when every sleep that is over has ended."""
        self._monotonic_ahead += seconds
        self._wall_ahead += timedelta(seconds=seconds)
        for timeout in (*self._sleeps, *self._timeouts):
            if not timeout.expired():
                timeout.reschedule(_end(timeout) - seconds)
        while any(map(_over, self._sleeps)):  # noqa: ASYNC110 - each ends within a few iterations of the loop
            await asyncio.sleep(0)

    def set(self, now: datetime) -> None:
        """Set the wall-clock time; the monotonic time is unchanged."""
        self._wall_ahead = now - datetime.now(UTC)

    def has_sleep(self, seconds: float) -> bool:
        """Whether a sleep of exactly this duration is running."""
        return any(duration == seconds for timeout, duration in self._sleeps.items() if not _over(timeout))

    def has_timeout(self, seconds: float) -> bool:
        """Whether a timeout of this duration, within one second, is running."""
        running = [duration for timeout, duration in self._timeouts.items() if not _over(timeout)]
        return any(math.isclose(duration, seconds, abs_tol=1) for duration in running)

    async def until_sleep_started(self, seconds: float) -> None:
        await _wait_until(lambda: self.has_sleep(seconds), f"no sleep of {seconds} s is running")

    async def until_timeout_started(self, seconds: float) -> None:
        await _wait_until(lambda: self.has_timeout(seconds), f"no timeout of {seconds} s is running")

    @asynccontextmanager
    async def _registered_timeout(
        self, deadline: float, running: dict[asyncio.Timeout, float], seconds: float
    ) -> AsyncIterator[None]:
        async with asyncio.timeout_at(deadline - self._monotonic_ahead) as timeout:
            running[timeout] = seconds
            try:
                yield
            finally:
                del running[timeout]


def _end(timeout: asyncio.Timeout) -> float:
    end = timeout.when()
    assert end is not None
    return end


def _over(timeout: asyncio.Timeout) -> bool:
    return _end(timeout) <= asyncio.get_running_loop().time()


async def _wait_until(condition: Callable[[], bool], failure: str) -> None:
    deadline = time.monotonic() + MAX_WAIT_S
    while not condition():
        assert time.monotonic() < deadline, failure
        await asyncio.sleep(0.002)
