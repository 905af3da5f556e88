"""A clock for boundaries that are exact to the second."""

from datetime import datetime, timedelta

from tests.support.clock import ManualClock


class StillClock(ManualClock):
    """Its wall-clock time stands still until the test moves it."""

    def __init__(self, now: datetime) -> None:
        super().__init__()
        self._now = now

    def now(self) -> datetime:
        return self._now

    async def advance(self, seconds: float) -> None:
        self._now += timedelta(seconds=seconds)
        await super().advance(seconds)

    def set(self, now: datetime) -> None:
        self._now = now
