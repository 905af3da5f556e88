"""The clock, injected wherever time is needed, so that tests can advance it instead of waiting.

Wall-clock times are UTC datetimes and are stored; durations and deadlines within one process are seconds on the event
loop's monotonic clock.
"""

import asyncio
from contextlib import AbstractAsyncContextManager
from datetime import UTC, datetime
from typing import Protocol


class Clock(Protocol):
    def now(self) -> datetime:
        """The wall-clock time in UTC."""

    def monotonic(self) -> float:
        """Seconds on a clock that never goes backwards."""

    async def sleep(self, seconds: float) -> None: ...

    def timeout_at(self, deadline: float) -> AbstractAsyncContextManager[object]:
        """Raises TimeoutError from the block when `monotonic()` reaches the deadline."""


class SystemClock:
    def now(self) -> datetime:
        return datetime.now(UTC)

    def monotonic(self) -> float:
        return asyncio.get_running_loop().time()

    async def sleep(self, seconds: float) -> None:
        await asyncio.sleep(seconds)

    def timeout_at(self, deadline: float) -> AbstractAsyncContextManager[object]:
        return asyncio.timeout_at(deadline)
