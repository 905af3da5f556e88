"""Converts ledger entries to and from plain rows of the usage table, which holds no content.

Stored names must not change: see session_rows.
"""

from datetime import date
from typing import Any

from shared.domain.calls import Call, LedgerEntry
from shared.domain.hashing import sha256_hex
from shared.storage.call_columns import USAGE_COLUMNS, call_columns, to_call

Row = dict[str, Any]

SHARDS = 16  # partitions per day
# The columns that a day's summary needs: a fifth less to parse than whole rows.
SUMMARY_COLUMNS = [
    *("RowKey", "id", "day", "deadline", "step", "state", "deployment", "caller", "worst_case"),
    *(*USAGE_COLUMNS, "cost", "rates", "model"),
]


def ledger_partition(day: date, shard: int) -> str:
    return f"{day}-{shard:02}"


def ledger_keys(call: Call, session_id: str | None, turn: int) -> tuple[str, str]:
    """PartitionKey and RowKey of a call. They never change, whichever process writes the row."""
    shard = int(sha256_hex(session_id or call.id)[:2], 16) % SHARDS
    return ledger_partition(call.day, shard), f"{session_id}~{turn:010}~{call.id}" if session_id else f"~{call.id}"


def from_entry(entry: LedgerEntry) -> Row:
    partition, key = ledger_keys(entry.call, entry.session_id, entry.turn)
    return {"PartitionKey": partition, "RowKey": key, "caller": entry.caller, **call_columns(entry.call)}


def to_entry(row: Row) -> LedgerEntry:
    session_id, *rest = row["RowKey"].split("~")
    return LedgerEntry(
        call=to_call(row),
        session_id=session_id or None,
        turn=int(rest[0]) if session_id else 0,
        caller=row.get("caller"),
        etag=row["etag"],
    )
