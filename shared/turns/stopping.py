"""Stopping a running turn."""

import asyncio
from collections.abc import AsyncIterator, Coroutine
from contextlib import asynccontextmanager
from typing import Any


class Stop:
    """A request to stop one turn."""

    def __init__(self) -> None:
        self.requested = False
        self._scope: asyncio.Timeout | None = None
        self._watcher: asyncio.Task[None] | None = None

    def request(self) -> None:
        self.requested = True
        if self._scope and not self._scope.expired():
            self._scope.reschedule(asyncio.get_running_loop().time())

    def request_after(self, event: Coroutine[Any, Any, object]) -> None:
        """Request the stop once the coroutine returns."""

        async def watch() -> None:
            await event
            self.request()

        self._watcher = asyncio.create_task(watch())

    @asynccontextmanager
    async def scope(self) -> AsyncIterator[None]:
        """Raises TimeoutError from the block once the stop is requested, or at once if it is already."""
        if self.requested:
            raise TimeoutError
        try:
            async with asyncio.timeout(None) as self._scope:
                yield
        finally:
            self._scope = None
