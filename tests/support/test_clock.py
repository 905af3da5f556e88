"""A clock that does not move what waits for it makes a test hang, or prove nothing."""

import asyncio
import time
from datetime import UTC, datetime, timedelta

import pytest

from tests.support.clock import ManualClock


async def test_a_sleep_ends_once_the_clock_is_past_it() -> None:
    clock, began = ManualClock(), time.monotonic()
    sleeping = asyncio.create_task(clock.sleep(60))
    await clock.until_sleeping(60)
    await clock.advance(59)
    assert clock.sleeping(60)
    assert not sleeping.done()
    await clock.advance(1)
    assert not clock.sleeping(60)
    await sleeping
    assert time.monotonic() - began < 30
    assert clock.slept == [60]


async def test_a_time_out_ends_once_the_clock_is_past_it() -> None:
    async def limited() -> None:
        async with clock.timeout_at(clock.monotonic() + 60):
            await asyncio.Event().wait()

    clock = ManualClock()
    waiting = asyncio.create_task(limited())
    await clock.until_limiting(60)
    await clock.advance(59)
    assert clock.limiting(60)
    await clock.advance(1)
    assert not clock.limiting(60)
    with pytest.raises(TimeoutError):
        await waiting
    await clock.advance(60)  # after its end


async def test_both_clocks_move_together_and_the_wall_clock_can_be_set() -> None:
    clock = ManualClock()
    wall, monotonic = clock.now(), clock.monotonic()
    await clock.advance(3600)
    assert timedelta(hours=1) <= clock.now() - wall < timedelta(hours=1, seconds=30)
    assert 3600 <= clock.monotonic() - monotonic < 3630
    clock.set(datetime(2024, 3, 11, tzinfo=UTC))
    assert clock.now().date().isoformat() == "2024-03-11"
    assert clock.monotonic() - monotonic < 3630


async def test_short_sleeps_can_be_skipped() -> None:
    clock = ManualClock()
    clock.skips = 5
    monotonic = clock.monotonic()
    await clock.sleep(5)
    assert clock.monotonic() - monotonic >= 5
    longer = asyncio.create_task(clock.sleep(5.1))
    await clock.until_sleeping(5.1)
    longer.cancel()
    with pytest.raises(asyncio.CancelledError):
        await longer
    assert not clock.sleeping(5.1)
