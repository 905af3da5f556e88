"""Converts the counters of limits to and from plain rows of the usage table.

They lie in the partition of the month's limited calls, so that calls and counters change in one transaction. Stored
names must not change: see session_rows.
"""

from datetime import UTC, date, datetime
from decimal import Decimal
from typing import Any

from shared.domain.limits import Counter

Row = dict[str, Any]

_PREFIX = "!"  # sorts before the keys of calls
_AMOUNTS = ("spent", "held", "running", "day_spent", "day_held", "day_running")
_COUNTS = ("minute_tokens", "minute_requests")


def limits_partition(day: date) -> str:
    """The partition of the limited calls of a day's month, and of their limits."""
    return f"{day:%Y-%m}!limits"


def counter_keys(name: str, month: date) -> tuple[str, str]:
    return limits_partition(month), _PREFIX + name


def from_counter(counter: Counter) -> Row:
    partition, key = counter_keys(counter.name, counter.month)
    return {
        "PartitionKey": partition,
        "RowKey": key,
        "since": counter.since,
        "minute": counter.minute,
        **{name: getattr(counter, name) for name in (*_AMOUNTS, *_COUNTS)},
    }


def to_counter(row: Row) -> Counter:
    minute: datetime | None = row.get("minute")
    return Counter(
        name=row["RowKey"].removeprefix(_PREFIX),
        month=date.fromisoformat(f"{row['PartitionKey'][:7]}-01"),
        since=row["since"],
        minute=minute and minute.astimezone(UTC),
        spent=Decimal(row["spent"]),
        held=Decimal(row["held"]),
        day_spent=Decimal(row["day_spent"]),
        day_held=Decimal(row["day_held"]),
        running=Decimal(row["running"]),
        day_running=Decimal(row["day_running"]),
        minute_tokens=row["minute_tokens"],
        minute_requests=row["minute_requests"],
        etag=row["etag"],
    )


COUNTERS = f"PartitionKey eq @month and RowKey ge '{_PREFIX}' and RowKey lt '\"'"  # `"` follows `!`
