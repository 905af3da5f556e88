"""Converts ledger entries to and from plain rows of the usage table, which holds no content.

Stored names must not change: see session_rows.
"""

from datetime import UTC, date, datetime
from typing import Any

import orjson

from shared.domain.calls import Call, LedgerEntry
from shared.domain.hashing import sha256_hex
from shared.storage.call_columns import USAGE_COLUMNS, call_columns, json_text, to_call
from shared.storage.counter_rows import limits_partition

Row = dict[str, Any]

SHARDS = 16  # partitions per day
# The columns that a day's summary needs: a fifth less to parse than whole rows.
SUMMARY_COLUMNS = [
    *("RowKey", "id", "day", "deadline", "reference", "step", "state", "deployment", "caller", "worst_case"),
    *(*USAGE_COLUMNS, "cost", "at_least", "rates", "model"),
]


def ledger_partition(day: date, shard: int) -> str:
    return f"{day}-{shard:02}"


def ledger_keys(call: Call, session_id: str | None, turn: int) -> tuple[str, str]:
    """PartitionKey and RowKey of a call. They never change, whichever process writes the row."""
    session = call.reference or session_id
    shard = int(sha256_hex(session or call.id)[:2], 16) % SHARDS
    key = f"{session}~{turn:010}~{call.id}" if session else f"~{call.id}"
    if call.minute:
        return limits_partition(call.day), limited_prefix(call.day, shard) + key
    return ledger_partition(call.day, shard), key


def limited_prefix(day: date, shard: int) -> str:
    """The beginning of the RowKey of a day's limited calls, by shard: a day is read in as many ranges."""
    return f"{day:%d}~{shard:x}~"


def entry_keys(entry: LedgerEntry) -> tuple[str, str]:
    """PartitionKey and RowKey of an entry, also of one that was read under another form of the key."""
    return entry.keys or ledger_keys(entry.call, entry.session_id, entry.turn)


def with_reference(key: str, reference: str) -> str:
    """The RowKey of a call of a session, with the session's reference in place of its id."""
    *day_and_shard, _, number, call_id = key.split("~")
    return "~".join((*day_and_shard, reference, number, call_id))


def from_entry(entry: LedgerEntry) -> Row:
    partition, key = entry_keys(entry)
    row = {"PartitionKey": partition, "RowKey": key, "caller": entry.caller, **call_columns(entry.call)}
    if entry.call.reference and not entry.call.state.final:
        row["session"] = entry.session_id  # a chosen id may name a person: not kept longer than recovery needs it
    if entry.limits:
        row |= {"limits": json_text(entry.limits), "counted_in": entry.minute}
    return row


def to_entry(row: Row) -> LedgerEntry:
    parts = row["RowKey"].split("~")
    session, *rest = parts if len(parts) < 4 else parts[2:]  # a limited call's begins with day and shard
    counted_in: datetime | None = row.get("counted_in")
    return LedgerEntry(
        call=to_call(row),
        session_id=row.get("session") if "reference" in row else session or None,
        turn=int(rest[0]) if session else 0,
        caller=row.get("caller"),
        limits=tuple(orjson.loads(row.get("limits") or "[]")),
        minute=counted_in and counted_in.astimezone(UTC),
        keys=(row["PartitionKey"], row["RowKey"]) if "PartitionKey" in row else None,
        etag=row["etag"],
    )
