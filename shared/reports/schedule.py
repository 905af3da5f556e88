"""When the summary email is due, by NCRONTAB schedule: six fields, seconds first, in UTC.

https://learn.microsoft.com/azure/azure-functions/functions-bindings-timer#ncrontab-expressions
"""

from datetime import datetime, timedelta

from shared.settings import SettingsError


def previous_firing(schedule: str, now: datetime) -> datetime:
    """The latest scheduled time at or before `now`. Raises SettingsError if the schedule is malformed.

    Day of the month and day of the week must both match, as in NCRONTAB; in cron, either is enough."""
    from croniter import CroniterBadDateError, croniter  # type: ignore[import-untyped]  # only a timer needs it

    if len(schedule.split()) != 6 or not croniter.is_valid(schedule, second_at_beginning=True):
        raise SettingsError("SUMMARY_SCHEDULE", "is malformed. Example: '0 0 6 * * *' is every day at 06:00 UTC.")
    just_after = now + timedelta(microseconds=1)
    times = croniter(schedule, just_after, ret_type=datetime, second_at_beginning=True, day_or=False)
    try:
        previous: datetime = times.get_prev()
    except CroniterBadDateError:  # such as 31 February
        raise SettingsError(
            "SUMMARY_SCHEDULE", "never runs. Example: '0 0 6 * * *' is every day at 06:00 UTC."
        ) from None
    return previous
