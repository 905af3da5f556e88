"""When the summary email is due: the platform's NCRONTAB schedules, seconds first, six fields, in UTC.

https://learn.microsoft.com/azure/azure-functions/functions-bindings-timer#ncrontab-expressions
"""

from datetime import datetime, timedelta

from shared.settings import SettingsError


def previous_firing(schedule: str, now: datetime) -> datetime:
    """The latest time at or before `now` that the schedule names. Raises SettingsError. Day of the month and day of the
    week must both match, as NCRONTAB has it; in cron either is enough."""
    from croniter import CroniterBadDateError, croniter  # type: ignore[import-untyped]  # only a timer needs it

    if len(schedule.split()) != 6 or not croniter.is_valid(schedule, second_at_beginning=True):
        raise SettingsError("SUMMARY_SCHEDULE", "is malformed: '0 0 6 * * *' is every day at 06:00 UTC.")
    just_after = now + timedelta(microseconds=1)
    times = croniter(schedule, just_after, ret_type=datetime, second_at_beginning=True, day_or=False)
    try:
        previous: datetime = times.get_prev()
    except CroniterBadDateError:  # such as 31 February
        raise SettingsError("SUMMARY_SCHEDULE", "names no time: '0 0 6 * * *' is every day at 06:00 UTC.") from None
    return previous
