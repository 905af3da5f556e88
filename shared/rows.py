"""How a conversation's values are written down: sessions, turns, calls and ledger entries as plain rows. No I/O.

Contracts: keys and names here are stored for good; change them only together with what is stored.
"""

from collections.abc import Iterator, Mapping
from dataclasses import replace
from datetime import UTC, date, datetime
from decimal import Decimal
from typing import Any

import orjson

from shared.conversation import Call, Entry, Lease, Rates, Removal, Session, State, Totals, Turn, Usage, Used, digest

Row = dict[str, Any]

HEAD = "head"
POINTER = "first"  # in a partition of its own: which session a first post's Idempotency-Key made
_NEWEST_FIRST = 9_999_999_999
SHARDS = 16  # of a day in the ledger
_USAGE = ("prompt_tokens", "cached_tokens", "cache_write_tokens", "completion_tokens", "reasoning_tokens")
_ROW_LIMIT = 1_000_000  # bytes: an entity may have 1 MiB, some of which its names, keys and calls take
_BYTES_PER_TOKEN = 8  # of an answer: four characters, two bytes each
_RATES = ("input", "cached_input", "cache_write", "output")
# What a day's summary reads of a ledger row: a fifth less to parse.
_ALWAYS = ("RowKey", "id", "day", "deadline", "state", "deployment")
COUNTED = [*_ALWAYS, "caller", "worst_case", *_USAGE, "cost", "rates", "model"]


def turn_key(number: int) -> str:
    """RowKey of a turn: the newest sorts first, right behind the head."""
    return f"turn-{_NEWEST_FIRST - number:010}"


def used_key(key_hash: str) -> str:
    """RowKey of a used Idempotency-Key: sorts behind the turns."""
    return f"used-{key_hash}"


def pointer_partition(key_hash: str) -> str:
    """Partitions that begin with ~ are the app's own: no session id does."""
    return f"~key-{key_hash}"


def ledger_partition(day: date, shard: int) -> str:
    return f"{day}-{shard:02}"


def ledger_keys(call: Call, session_id: str | None, turn: int) -> tuple[str, str]:
    """PartitionKey and RowKey of a call in the ledger. The same for whoever writes it, whenever."""
    shard = int(digest(session_id or call.id)[:2], 16) % SHARDS
    return ledger_partition(call.day, shard), f"{session_id}~{turn:010}~{call.id}" if session_id else f"~{call.id}"


def from_session(session: Session) -> Row:
    totals = session.totals
    return {
        "PartitionKey": session.id,
        "RowKey": HEAD,
        "created": session.created,
        "updated": session.updated,
        "owner": session.owner,
        "system": session.system,
        "deployment": session.deployment,
        "turns": session.turns,
        **_usage_fields(totals.usage),
        "cost": totals.cost,
        "unpriced_turns": totals.unpriced_turns,
        "unaccounted_calls": totals.unaccounted_calls,
        "unaccounted": totals.unaccounted,
        "unbounded_calls": totals.unbounded_calls,
        "window_start": session.window_start,
        "cleared_through": session.cleared_through,
        "removal": session.removal and session.removal.id,
        "removal_erases": session.removal and session.removal.erase,
        "first_key": session.first_key,
        **lease_fields(session),
    }


def lease_fields(session: Session) -> Row:
    """The part of a head that a lease's renewal writes."""
    lease = session.lease
    return {"lease_call": lease and lease.call, "lease_until": lease and lease.until}


def to_session(row: Row) -> Session:
    return Session(
        id=row["PartitionKey"],
        created=row["created"],
        updated=row["updated"],
        owner=row.get("owner"),
        system=row["system"],
        deployment=row["deployment"],
        turns=row["turns"],
        totals=Totals(
            usage=_usage(row),
            cost=Decimal(row["cost"]),
            unpriced_turns=row["unpriced_turns"],
            unaccounted_calls=row["unaccounted_calls"],
            unaccounted=Decimal(row["unaccounted"]),
            unbounded_calls=row.get("unbounded_calls", 0),
        ),
        window_start=row["window_start"],
        cleared_through=row["cleared_through"],
        lease=Lease(call=row["lease_call"], until=row["lease_until"]) if "lease_call" in row else None,
        removal=Removal(id=row["removal"], erase=row["removal_erases"]) if "removal" in row else None,
        first_key=row.get("first_key"),
        etag=row["etag"],
    )


def from_turn(session_id: str, turn: Turn) -> Row:
    return {
        "PartitionKey": session_id,
        "RowKey": turn_key(turn.number),
        "started": turn.started,
        "finished": turn.finished,
        "finish_reason": turn.finish_reason,
        "messages": _json(turn.messages),
        "calls": _json([_call_fields(call) for call in turn.calls]),
        "extras": _json(turn.extras) if turn.extras else None,
        "window_start": turn.window_start,
        "past_tokens": turn.past_tokens,
        "truncated": turn.truncated or None,
    }


def to_turn(row: Row) -> Turn:
    return Turn(
        number=_NEWEST_FIRST - int(row["RowKey"].removeprefix("turn-")),
        started=row["started"],
        finished=row.get("finished"),
        finish_reason=row.get("finish_reason"),
        messages=tuple(orjson.loads(row["messages"])),
        calls=tuple(_call(fields) for fields in orjson.loads(row["calls"])),
        extras=orjson.loads(row.get("extras", "{}")),
        window_start=row["window_start"],
        past_tokens=row.get("past_tokens"),
        truncated=row.get("truncated", False),
        etag=row["etag"],
    )


def from_used(session_id: str, used: Used) -> Row:
    return {
        "PartitionKey": session_id,
        "RowKey": used_key(used.key),
        "turn": used.turn,
        "request": used.request,
    }


def to_used(row: Row) -> Used:
    key = row["RowKey"].removeprefix("used-")
    return Used(key=key, request=row["request"], turn=row["turn"], etag=row["etag"])


def fits(turn: Turn, answer_tokens: int) -> bool:
    """Whether the turn can be stored with an answer of that many tokens."""
    return _size(turn) + answer_tokens * _BYTES_PER_TOKEN <= _ROW_LIMIT


def fits_head(system: str) -> bool:
    """Whether a session can hold this system prompt."""
    return len(system.encode("utf-16-le")) <= _ROW_LIMIT


def fitted(turn: Turn) -> Turn:
    """The turn as large as a row can be: without logprobs, then with its answer's text cut, where it is too large."""
    if _size(turn) <= _ROW_LIMIT:
        return turn
    turn = replace(turn, extras={k: v for k, v in turn.extras.items() if k != "logprobs"}, truncated=True)
    *sent, answer = turn.messages
    for text in _cuts(answer.get("content") or answer.get("refusal") or ""):
        if _size(turn) <= _ROW_LIMIT:
            break
        turn = replace(turn, messages=(*sent, {"role": "assistant", "content": text}))
    return turn


def _cuts(text: str) -> Iterator[str]:
    """The text, its first half, the half of that, and so on."""
    yield text
    while text:
        text = text[: len(text) // 2]
        yield text


def _size(turn: Turn) -> int:
    """Bytes of a turn's text in a row: two for each UTF-16 unit."""
    return len((_json(turn.messages) + _json(turn.extras)).encode("utf-16-le"))


def from_entry(entry: Entry) -> Row:
    partition, key = ledger_keys(entry.call, entry.session_id, entry.turn)
    return {"PartitionKey": partition, "RowKey": key, "caller": entry.caller, **_call_fields(entry.call)}


def to_entry(row: Row) -> Entry:
    session_id, *rest = row["RowKey"].split("~")
    return Entry(
        call=_call(row),
        session_id=session_id or None,
        turn=int(rest[0]) if session_id else 0,
        caller=row.get("caller"),
        etag=row["etag"],
    )


def _json(value: Any) -> str:
    return orjson.dumps(value).decode()


def _usage_fields(usage: Usage | None) -> Row:
    return {name: getattr(usage, name) for name in _USAGE} if usage else {}


def _usage(fields: Mapping[str, Any]) -> Usage:
    return Usage(**{name: fields[name] for name in _USAGE})


def _call_fields(call: Call) -> Row:
    return {
        "id": call.id,
        "day": call.day.isoformat(),
        "deadline": call.deadline.isoformat(),
        "state": call.state.value,
        "deployment": call.deployment,
        "worst_case": _amount(call.worst_case),
        **_usage_fields(call.usage),
        "cost": _amount(call.cost),
        "rates": _json({name: _amount(getattr(call.rates, name)) for name in _RATES}) if call.rates else None,
        "model": call.model,
        "endpoint": call.endpoint,
        "reason": call.reason,
    }


def _call(fields: Mapping[str, Any]) -> Call:
    rates = orjson.loads(fields.get("rates") or "null")
    return Call(
        id=fields["id"],
        day=date.fromisoformat(fields["day"]),
        deadline=datetime.fromisoformat(fields["deadline"]).astimezone(UTC),
        state=State(fields["state"]),
        deployment=fields["deployment"],
        worst_case=_decimal(fields.get("worst_case")),
        usage=_usage(fields) if "prompt_tokens" in fields else None,
        cost=_decimal(fields.get("cost")),
        rates=Rates(**{name: Decimal(amount) for name, amount in rates.items()}) if rates else None,
        model=fields.get("model"),
        endpoint=fields.get("endpoint"),
        reason=fields.get("reason"),
    )


def _amount(value: Decimal | None) -> str | None:
    return None if value is None else format(value, "f")


def _decimal(value: str | None) -> Decimal | None:
    return None if value is None else Decimal(value)
