"""ManualClock must end sleeps and timeouts when advanced; otherwise tests hang or prove nothing."""

import asyncio
import time
from datetime import UTC, datetime, timedelta

import pytest

from tests.support.clock import ManualClock


async def test_sleep_ends_when_clock_passes_its_end() -> None:
    clock, began = ManualClock(), time.monotonic()
    sleeping = asyncio.create_task(clock.sleep(60))
    await clock.until_sleep_started(60)
    await clock.advance(59)
    assert clock.has_sleep(60)
    assert not sleeping.done()
    await clock.advance(1)
    assert not clock.has_sleep(60)
    await sleeping
    assert time.monotonic() - began < 30
    assert clock.slept == [60]


async def test_timeout_ends_when_clock_passes_its_end() -> None:
    async def wait_with_timeout() -> None:
        async with clock.timeout_at(clock.monotonic() + 60):
            await asyncio.Event().wait()

    clock = ManualClock()
    waiting = asyncio.create_task(wait_with_timeout())
    await clock.until_timeout_started(60)
    await clock.advance(59)
    assert clock.has_timeout(60)
    await clock.advance(1)
    assert not clock.has_timeout(60)
    with pytest.raises(TimeoutError):
        await waiting
    await clock.advance(60)  # advancing after the timeout has ended


async def test_advance_moves_both_clocks_and_set_only_wall_clock() -> None:
    clock = ManualClock()
    wall, monotonic = clock.now(), clock.monotonic()
    await clock.advance(3600)
    assert timedelta(hours=1) <= clock.now() - wall < timedelta(hours=1, seconds=30)
    assert 3600 <= clock.monotonic() - monotonic < 3630
    clock.set(datetime(2024, 3, 11, tzinfo=UTC))
    assert clock.now().date().isoformat() == "2024-03-11"
    assert clock.monotonic() - monotonic < 3630


async def test_short_sleeps_are_skipped() -> None:
    clock = ManualClock()
    clock.skip_sleeps_up_to = 5
    monotonic = clock.monotonic()
    await clock.sleep(5)
    assert clock.monotonic() - monotonic >= 5
    longer = asyncio.create_task(clock.sleep(5.1))
    await clock.until_sleep_started(5.1)
    longer.cancel()
    with pytest.raises(asyncio.CancelledError):
        await longer
    assert not clock.has_sleep(5.1)
