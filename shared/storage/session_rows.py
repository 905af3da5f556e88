"""Converts sessions, turns and idempotency records to and from plain rows of the sessions table.

Stored names: existing tables hold these keys and columns, so a change needs a migration.
"""

from collections.abc import Sequence
from datetime import date
from decimal import Decimal
from typing import Any

import orjson

from shared.domain.calls import Totals
from shared.domain.conversation import (
    Deletion,
    IdempotencyRecord,
    Kind,
    Lease,
    Parent,
    Session,
    Turn,
)
from shared.domain.hashing import sha256_hex
from shared.domain.items import answer_of, messages_of
from shared.storage.call_columns import call_columns, json_text, to_call, to_usage, usage_columns

Row = dict[str, Any]

HEAD = "head"
POINTER = "first"  # in a partition per Idempotency-Key: the session that the first request with this key started
BRANCH = "branch-"
SEEN, EXPIRES = "~seen-", "~expires-"  # partitions of the retention's index, by day
_STOPPED = ("stopped_calls", "stopped_at_least", "stopped_at_most", "stopped_unbounded")  # absent if there are none
_NEWEST_FIRST = 9_999_999_999
_POINTER_PREFIX, _OWNER_PREFIX = "~key-", "~owner-"  # reserved: no session id begins with ~


def turn_key(number: int) -> str:
    """RowKey of a turn. Newer turns sort first, directly after the head."""
    return f"turn-{_NEWEST_FIRST - number:010}"


def is_turn(row: Row) -> bool:
    return str(row["RowKey"]).startswith("turn-")


def view_key(number: int) -> str:
    """RowKey of the view of a turn: its request, as a response repeats it. It sorts after the turns."""
    return f"view-{_NEWEST_FIRST - number:010}"


def branch_key(session_id: str) -> str:
    """RowKey, in the parent's partition, of a branch. It sorts before the head, so that no turn reads it."""
    return f"{BRANCH}{session_id}"


def record_key(key_hash: str) -> str:
    """RowKey of an idempotency record. It sorts after the turns."""
    return f"used-{key_hash}"


def index_partition(kind: str, day: date) -> str:
    """The partition of the retention's index for a day. `kind`: SEEN or EXPIRES."""
    return f"{kind}{day.isoformat()}"


def index_partitions(session: Session) -> list[str]:
    """The partitions of the retention's index that may have a row of the session."""
    expires = [index_partition(EXPIRES, session.expires.date())] if session.expires else []
    return [index_partition(SEEN, day) for day in session.seen] + expires


def seen_text(days: Sequence[date]) -> str | None:
    return ",".join(day.isoformat() for day in days) or None


def owner_partition(owner: str) -> str:
    """The partition of the list of an owner's sessions."""
    return f"{_OWNER_PREFIX}{sha256_hex(owner)}"


def owner_key(place: str, session_id: str) -> str:
    """RowKey of a session in its owner's list."""
    return f"{place}~{session_id}"


def pointer_partition(key_hash: str) -> str:
    return f"{_POINTER_PREFIX}{key_hash}"


def from_session(session: Session) -> Row:
    totals = session.totals
    return {
        "PartitionKey": session.id,
        "RowKey": HEAD,
        "created": session.created,
        "updated": session.updated,
        "owner": session.owner,
        "kind": None if session.kind is Kind.CHAT else session.kind.value,
        "metadata": json_text(session.metadata) if session.metadata else None,
        "parent_session": session.parent and session.parent.session_id,
        "parent_turn": session.parent and session.parent.turn,
        "parent_created": session.parent_created,
        "reference": session.reference,
        "seen": seen_text(session.seen),
        "expires": session.expires,
        **listing_columns(session),
        "system": session.system,
        "deployment": session.deployment,
        "turns": session.turns,
        **usage_columns(totals.usage),
        "cost": totals.cost,
        "unpriced_turns": totals.unpriced_turns,
        "unaccounted_calls": totals.unaccounted_calls,
        "unaccounted": totals.unaccounted,
        "unbounded_calls": totals.unbounded_calls,
        **({name: getattr(totals, name) for name in _STOPPED} if totals.stopped_calls else {}),
        "stop": session.stop,
        "window_start": session.window_start,
        "cleared_through": session.cleared_through,
        "removal": session.deletion and session.deletion.id,
        "removal_erases": session.deletion and session.deletion.erase,
        "first_key": session.first_key and pointer_partition(session.first_key),
        **lease_columns(session),
    }


def listing_columns(session: Session) -> Row:
    """The columns of the head that its owner's list needs."""
    return {
        "title": session.title,
        "pinned": session.pinned,
        "archived": session.archived,
        "places": ",".join(session.places) or None,
    }


def lease_columns(session: Session) -> Row:
    """The columns of the head that renewing the lease writes."""
    lease = session.lease
    return {"lease_call": lease and lease.call, "lease_until": lease and lease.until}


def to_session(row: Row) -> Session:
    return Session(
        id=row["PartitionKey"],
        created=row["created"],
        updated=row["updated"],
        owner=row.get("owner"),
        kind=Kind(row.get("kind", Kind.CHAT)),
        metadata=orjson.loads(row.get("metadata", "{}")),
        parent=Parent(session_id=row["parent_session"], turn=row["parent_turn"]) if "parent_session" in row else None,
        parent_created=row.get("parent_created"),
        reference=row.get("reference"),
        seen=tuple(map(date.fromisoformat, row["seen"].split(","))) if "seen" in row else (),
        expires=row.get("expires"),
        title=row.get("title"),
        pinned=row.get("pinned", False),
        archived=row.get("archived", False),
        places=tuple(row["places"].split(",")) if "places" in row else (),
        system=row["system"],
        deployment=row["deployment"],
        turns=row["turns"],
        totals=Totals(
            usage=to_usage(row),
            cost=Decimal(row["cost"]),
            unpriced_turns=row["unpriced_turns"],
            unaccounted_calls=row["unaccounted_calls"],
            unaccounted=Decimal(row["unaccounted"]),
            unbounded_calls=row.get("unbounded_calls", 0),
            stopped_calls=row.get("stopped_calls", 0),
            stopped_at_least=Decimal(row.get("stopped_at_least", "0")),
            stopped_at_most=Decimal(row.get("stopped_at_most", "0")),
            stopped_unbounded=row.get("stopped_unbounded", 0),
        ),
        stop=row.get("stop"),
        window_start=row["window_start"],
        cleared_through=row["cleared_through"],
        lease=Lease(call=row["lease_call"], until=row["lease_until"]) if "lease_call" in row else None,
        deletion=Deletion(id=row["removal"], erase=row["removal_erases"]) if "removal" in row else None,
        first_key=row["first_key"].removeprefix(_POINTER_PREFIX) if "first_key" in row else None,
        etag=row["etag"],
    )


def from_turn(session_id: str, turn: Turn) -> Row:
    return {
        "PartitionKey": session_id,
        "RowKey": turn_key(turn.number),
        "started": turn.started,
        "finished": turn.finished,
        "finish_reason": turn.finish_reason,
        "messages": json_text(() if turn.input else turn.messages),
        "input": json_text(turn.input) if turn.input else None,
        "output": json_text(turn.output) if turn.output or (turn.input and turn.answered) else None,
        "calls": json_text([call_columns(call) for call in turn.calls]),
        "extras": json_text(turn.extras) if turn.extras else None,
        "window_start": turn.window_start,
        "past_tokens": turn.past_tokens,
        "truncated": json_text(turn.truncated) if turn.truncated else None,
    }


def to_turn(row: Row) -> Turn:
    messages = tuple(orjson.loads(row["messages"]))
    items, output = (tuple(orjson.loads(row.get(name, "[]"))) for name in ("input", "output"))
    if items:
        messages = (*messages_of(items), *((answer_of(output),) if "output" in row else ()))  # an answer may be empty
    return Turn(
        number=_NEWEST_FIRST - int(row["RowKey"].removeprefix("turn-")),
        started=row["started"],
        finished=row.get("finished"),
        finish_reason=row.get("finish_reason"),
        messages=messages,
        input=items,
        output=output,
        calls=tuple(to_call(fields) for fields in orjson.loads(row["calls"])),
        extras=orjson.loads(row.get("extras", "{}")),
        window_start=row["window_start"],
        past_tokens=row.get("past_tokens"),
        truncated=_truncated(row.get("truncated")),
        etag=row["etag"],
    )


def _truncated(column: str | bool | None) -> tuple[str, ...]:
    """Rows of 0.2.0 and earlier have True: something was cut, but it was not recorded what."""
    if isinstance(column, str):
        return tuple(orjson.loads(column))
    return ("answer",) if column else ()


def from_record(session_id: str, record: IdempotencyRecord) -> Row:
    return {
        "PartitionKey": session_id,
        "RowKey": record_key(record.key),
        "turn": record.turns[-1],
        "earlier_turns": json_text(record.turns[:-1]) if record.turns[1:] else None,
        "request": record.request,
    }


def to_record(row: Row) -> IdempotencyRecord:
    key = row["RowKey"].removeprefix("used-")
    turns = (*orjson.loads(row.get("earlier_turns", "[]")), row["turn"])
    return IdempotencyRecord(key=key, request=row["request"], turns=turns, etag=row["etag"])
