"""A clock whose wall-clock time changes only when a test changes it, for boundaries exact to the second."""

from datetime import datetime, timedelta

from tests.support.clock import ManualClock


class StillClock(ManualClock):
    """The monotonic time still runs with the machine's clock."""

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
