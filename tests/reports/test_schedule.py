"""The latest scheduled time of the summary email, by NCRONTAB schedule."""

from datetime import UTC, datetime, timedelta

import pytest

from shared.reports.schedule import previous_firing
from shared.settings import SettingsError

DAILY = "0 0 6 * * *"
FRIDAY_NOON = datetime(2026, 11, 27, 12, tzinfo=UTC)


@pytest.mark.parametrize(
    ("schedule", "expected"),
    [
        (DAILY, "2026-11-27 06:00:00"),
        ("30 15 18 * * *", "2026-11-26 18:15:30"),
        ("0 */30 * * * *", "2026-11-27 12:00:00"),
        ("0 0 6 * * 1", "2026-11-23 06:00:00"),
        ("0 0 6 * * Mon-Thu", "2026-11-26 06:00:00"),
        ("0 0 6 * * 0", "2026-11-22 06:00:00"),  # 0 is Sunday
        ("0 0 6 1 * *", "2026-11-01 06:00:00"),
        ("0 0 6 1 Jan *", "2026-01-01 06:00:00"),
        ("0 0 0 29 2 *", "2024-02-29 00:00:00"),
    ],
)
def test_previous_firing_is_the_latest_scheduled_time(schedule: str, expected: str) -> None:
    assert previous_firing(schedule, FRIDAY_NOON) == datetime.fromisoformat(f"{expected}+00:00")


def test_previous_firing_at_a_scheduled_time_is_that_time() -> None:
    firing = datetime(2026, 11, 27, 6, tzinfo=UTC)

    assert previous_firing(DAILY, firing) == firing
    assert previous_firing(DAILY, firing + timedelta(microseconds=1)) == firing
    assert previous_firing(DAILY, firing + timedelta(days=1, microseconds=-1)) == firing
    assert previous_firing(DAILY, firing - timedelta(microseconds=1)) == firing - timedelta(days=1)


def test_schedule_requires_both_day_of_month_and_day_of_week() -> None:
    """In cron, either is enough: there the results would be 20 November, a Friday, and 13 October, a Tuesday."""
    friday_the_13th = "0 0 6 13 * 5"

    assert previous_firing(friday_the_13th, datetime(2026, 11, 26, tzinfo=UTC)) == datetime(2026, 11, 13, 6, tzinfo=UTC)
    assert previous_firing(friday_the_13th, datetime(2026, 11, 12, tzinfo=UTC)) == datetime(2026, 3, 13, 6, tzinfo=UTC)


@pytest.mark.parametrize(
    "schedule",
    [
        "",
        "x",
        "0 6 * * *",
        "0 0 6 * * * *",
        "@daily",
        "61 0 6 * * *",
        "0 0 24 * * *",
        "0 0 6 * * Someday",
        "0 0 6 31 2 *",
    ],
)
def test_malformed_schedule_raises_settings_error_that_names_the_setting(schedule: str) -> None:
    with pytest.raises(SettingsError, match=r"SUMMARY_SCHEDULE.*'0 0 6 \* \* \*' is every day"):
        previous_firing(schedule, FRIDAY_NOON)
