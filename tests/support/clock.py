"""A clock that tests move: sleeps and time-outs that end before the new time end at once."""

import asyncio
import math
import time
from collections.abc import AsyncIterator, Callable
from contextlib import asynccontextmanager, suppress
from datetime import UTC, datetime, timedelta

from tests.support.loopback import PATIENCE


class ManualClock:
    """Runs with the machine's clock, ahead of it by what the test has moved it.

    Moving it is safe from the app's own event loop alone. `skips`: sleeps of at most so many seconds move the clock
    instead of waiting. `slept`: the seconds of every sleep.
    """

    def __init__(self) -> None:
        self.skips = 0.0
        self.slept: list[float] = []
        self._ahead = 0.0  # seconds, of durations
        self._wall_ahead = timedelta()
        self._sleeps: dict[asyncio.Timeout, float] = {}  # those under way, with their seconds
        self._timeouts: dict[asyncio.Timeout, float] = {}

    def now(self) -> datetime:
        return datetime.now(UTC) + self._wall_ahead

    def monotonic(self) -> float:
        return asyncio.get_running_loop().time() + self._ahead

    async def sleep(self, seconds: float) -> None:
        self.slept.append(seconds)
        if seconds <= self.skips:
            await self.advance(seconds)
            return
        with suppress(TimeoutError):
            async with self._ending(self.monotonic() + seconds, self._sleeps, seconds):
                await asyncio.Event().wait()

    @asynccontextmanager
    async def timeout_at(self, deadline: float) -> AsyncIterator[None]:
        async with self._ending(deadline, self._timeouts, deadline - self.monotonic()):
            yield

    async def advance(self, seconds: float) -> None:
        """Let so much time pass at once. Returns when every sleep that is over has ended."""
        self._ahead += seconds
        self._wall_ahead += timedelta(seconds=seconds)
        for timeout in (*self._sleeps, *self._timeouts):
            if not timeout.expired():
                timeout.reschedule(_when(timeout) - seconds)
        while any(map(_over, self._sleeps)):  # noqa: ASYNC110 - each ends in the loop's next rounds
            await asyncio.sleep(0)

    def set(self, now: datetime) -> None:
        """Make this the wall-clock time; durations are not affected."""
        self._wall_ahead = now - datetime.now(UTC)

    def sleeping(self, seconds: float) -> bool:
        """Whether something sleeps for exactly so long."""
        return any(each == seconds for timeout, each in self._sleeps.items() if not _over(timeout))

    def limiting(self, seconds: float) -> bool:
        """Whether a time-out of so many seconds is under way, give or take a second."""
        each = self._timeouts.items()
        return any(math.isclose(one, seconds, abs_tol=1) for timeout, one in each if not _over(timeout))

    async def until_sleeping(self, seconds: float) -> None:
        await _until(lambda: self.sleeping(seconds), f"nothing sleeps for {seconds} s")

    async def until_limiting(self, seconds: float) -> None:
        await _until(lambda: self.limiting(seconds), f"nothing has a time-out of {seconds} s")

    @asynccontextmanager
    async def _ending(
        self, deadline: float, under_way: dict[asyncio.Timeout, float], seconds: float
    ) -> AsyncIterator[None]:
        async with asyncio.timeout_at(deadline - self._ahead) as timeout:
            under_way[timeout] = seconds
            try:
                yield
            finally:
                del under_way[timeout]


def _when(timeout: asyncio.Timeout) -> float:
    when = timeout.when()
    assert when is not None
    return when


def _over(timeout: asyncio.Timeout) -> bool:
    return _when(timeout) <= asyncio.get_running_loop().time()


async def _until(condition: Callable[[], bool], failure: str) -> None:
    deadline = time.monotonic() + PATIENCE
    while not condition():
        assert time.monotonic() < deadline, failure
        await asyncio.sleep(0.002)
