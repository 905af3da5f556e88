"""Runs the jobs of the maintenance timer. Each has a time limit; a job that reaches it resumes there in the next run.

A job that fails does not keep the others from running.
"""

import logging
from collections.abc import AsyncIterator, Callable, Mapping
from contextlib import suppress
from typing import TypeAlias

from shared.domain.clock import Clock
from shared.errors import VersionConflict
from shared.storage.cursors import Cursors

log = logging.getLogger(__name__)

JOB_TIME_LIMIT_S = 180.0  # per job, so that all jobs end before the timer fires again

Job: TypeAlias = Callable[[str], AsyncIterator[str]]
"""Takes the position that the last run reached ("" for the beginning); yields each position that it reaches."""


class Maintenance:
    def __init__(self, jobs: Mapping[str, Job], cursors: Cursors, clock: Clock) -> None:
        self._jobs = jobs
        self._cursors = cursors
        self._clock = clock

    async def run(self) -> None:
        """Run every job. Raises an ExceptionGroup of their errors, so that the platform shows the run as failed."""
        errors: list[Exception] = []
        for name, job in self._jobs.items():
            try:
                await self._run(name, job)
            except Exception as error:
                log.exception("maintenance: %s failed", name)
                errors.append(error)
        if errors:
            raise ExceptionGroup("maintenance", errors)

    async def _run(self, name: str, job: Job) -> None:
        start, etag = await self._cursors.get(name)
        position = start
        try:
            async with self._clock.timeout_at(self._clock.monotonic() + JOB_TIME_LIMIT_S):
                async for reached in job(start):
                    position = reached
                position = ""
        except TimeoutError:
            log.warning("maintenance: %s ran out of time; the next run resumes it", name)  # a position may be an id
        if position != start:
            with suppress(VersionConflict):  # another instance runs the same job
                await self._cursors.put(name, position, etag)
