"""Test helpers that call the app over HTTP and read what it stored."""

import asyncio
import json
import time
import uuid
from collections.abc import AsyncIterator, Awaitable, Callable, Sequence
from contextlib import asynccontextmanager
from dataclasses import dataclass
from datetime import UTC, datetime, timedelta
from decimal import Decimal
from typing import Any, TypeVar

import httpx
import pytest

from shared.domain.calls import Call, LedgerEntry, Rates, State, Totals, Usage
from shared.domain.conversation import Session, Turn
from shared.domain.pricing import cost
from shared.storage import ledger_rows
from shared.storage import session_rows as rows
from shared.storage.tables import Write
from tests.conftest import Tables
from tests.support.azure_openai import Billed
from tests.support.loopback import MAX_WAIT_S

JSON = dict[str, Any]
T = TypeVar("T")
RATES = Rates(input=Decimal("0.75"), cached_input=Decimal("0.075"), cache_write=Decimal("0.9"), output=Decimal("4.5"))
SMALL = Decimal("0.05")
RATES_OF = {"small": Rates(input=SMALL, cached_input=SMALL, cache_write=SMALL, output=Decimal("0.4"))}


def exact(text: str) -> Any:
    """Parse JSON exactly: decimal fractions become Decimal, not float."""
    return json.loads(text, parse_float=Decimal)


async def send_message(
    api: httpx.AsyncClient, message: object = "hi", session: str | None = "s", **fields: object
) -> httpx.Response:
    """Send a message, or a request without one (`message=None`, `tool_results=…`)."""
    base = {"message": message, "session_id": session}
    body = {name: value for name, value in base.items() if value is not None} | fields
    return await api.post("/api/chat", json=body)


async def answer(api: httpx.AsyncClient, message: object = "hi", session: str | None = "s", **fields: object) -> JSON:
    """Send a message and return the answer; fails unless it is a 200."""
    return ok_json(await send_message(api, message, session, **fields))


def ok_json(response: httpx.Response) -> JSON:
    assert response.status_code == 200, response.text
    body: JSON = exact(response.text)
    return body


async def get_json(api: httpx.AsyncClient, path: str) -> JSON:
    return ok_json(await api.get(path))


@dataclass(frozen=True)
class Event:
    name: str  # empty for a comment
    data: Any


def events(body: bytes) -> list[Event]:
    """Parse a complete stream of server-sent events. Only CR and LF end a line, unlike in str.splitlines."""
    *blocks, rest = body.decode().split("\n\n")
    assert not rest
    return [_event(block) for block in blocks]


def _event(block: str) -> Event:
    if block.startswith(":"):
        return Event("", block.removeprefix(":").strip())
    name, data = block.split("\n")
    return Event(name.removeprefix("event: "), exact(data.removeprefix("data: ")))


class Stream:
    """A streamed answer that is still arriving."""

    def __init__(self, response: httpx.Response) -> None:
        self._parts = response.aiter_bytes()
        self._pending = b""

    async def next(self) -> Event:
        while b"\n\n" not in self._pending:
            self._pending += await anext(self._parts)
        block, _, self._pending = self._pending.partition(b"\n\n")
        return _event(block.decode())

    async def rest(self) -> list[Event]:
        return events(self._pending + b"".join([part async for part in self._parts]))


@asynccontextmanager
async def streaming(api: httpx.AsyncClient, message: object = "hi", session: str = "s") -> AsyncIterator[Stream]:
    """Start a streamed turn; leaving the block disconnects."""
    body = {"message": message, "session_id": session, "stream": True}
    async with api.stream("POST", "/api/chat", json=body) as response:
        assert response.status_code == 200, await response.aread()
        yield Stream(response)


async def until(condition: Callable[[], Awaitable[T | None]], timeout: float = MAX_WAIT_S) -> T:  # noqa: ASYNC109 - polls
    """Poll until the condition returns something other than None, and return that."""
    deadline = time.monotonic() + timeout
    while (result := await condition()) is None:
        assert time.monotonic() < deadline, f"condition not met after {timeout} s"
        await asyncio.sleep(0.01)
    return result


async def stored(tables: Tables, session: str = "s") -> tuple[Session, list[Turn]]:
    """The stored session and all of its turns, oldest first."""
    stored_rows = [row async for row in tables.sessions.query("PartitionKey eq @session", {"session": session})]
    turns = [rows.to_turn(row) for row in stored_rows if row["RowKey"].startswith("turn-")]
    return next(rows.to_session(row) for row in stored_rows if row["RowKey"] == rows.HEAD), turns[::-1]


async def reference(tables: Tables, session: str = "s") -> str:
    """The session's name in the ledger."""
    stored_reference = (await stored(tables, session))[0].reference
    assert stored_reference
    return stored_reference


async def row_keys(tables: Tables, partition: str = "s") -> list[str]:
    partition_rows = tables.sessions.query("PartitionKey eq @partition", {"partition": partition})
    return [row["RowKey"] async for row in partition_rows]


async def ledger(tables: Tables) -> list[LedgerEntry]:
    """All ledger rows, sorted by session, turn and deadline."""
    stored_rows = [row async for row in tables.usage.query("PartitionKey ge @first", {"first": ""})]
    entries = [ledger_rows.to_entry(row) for row in stored_rows if not row["RowKey"].startswith("!")]  # of limits
    return sorted(entries, key=lambda entry: (entry.session or "", entry.turn, entry.call.deadline))


async def closed_ledger(tables: Tables) -> list[LedgerEntry]:
    """The ledger once no row is open: a turn is answered before its row is settled."""

    async def closed() -> list[LedgerEntry] | None:
        entries = await ledger(tables)
        return None if any(entry.call.state is State.OPEN for entry in entries) else entries

    return await until(closed)


async def states(tables: Tables) -> list[State]:
    return [entry.call.state for entry in await closed_ledger(tables)]


def call_log_lines(caplog: pytest.LogCaptureFixture) -> list[JSON]:
    """The fields of each line of the call log."""
    messages = [record.message for record in caplog.records if record.name == "shared.telemetry.call_log"]
    return [json.loads(line.partition(": ")[2]) for line in messages]


async def expire_lease(tables: Tables, session: str = "s") -> None:
    """Move the end of the session's lease an hour into the past."""
    past = datetime.now(UTC) - timedelta(hours=1)
    head = await tables.sessions.get(session, rows.HEAD)
    assert head is not None
    assert "lease_until" in head
    key = {"PartitionKey": session, "RowKey": rows.HEAD}
    await tables.sessions.merge({**key, "lease_until": past}, head["etag"])


async def fill(tables: Tables, count: int, session: str = "s", **answer_fields: Any) -> None:
    """Write a session of `count` settled turns directly into the table; the app would need minutes for a thousand.
    `answer_fields` are added to each assistant message or replace its content."""
    past = [_past_turn(number, answer_fields) for number in range(1, count + 1)]
    for first in range(0, count, 100):
        await tables.sessions.commit(
            [Write("put", rows.from_turn(session, turn)) for turn in past[first : first + 100]]
        )
    now, totals = datetime.now(UTC), total_of([turn.call for turn in past])
    head = Session(
        id=session, created=now, updated=now, system="Be brief.", deployment="chat", turns=count, totals=totals
    )
    await tables.sessions.put(rows.from_session(head))


def _past_turn(number: int, answer_fields: JSON) -> Turn:
    now, usage = datetime.now(UTC), Usage(prompt_tokens=50 + number % 7, completion_tokens=5)
    call = Call(
        id=uuid.uuid4().hex,
        day=now.date(),
        deadline=now,
        deployment="chat",
        worst_case=Decimal("0.01"),
        state=State.SETTLED,
        usage=usage,
        cost=cost(usage, RATES),
        rates=RATES,
    )
    messages = (
        {"role": "user", "content": f"message {number}"},
        {"role": "assistant", "content": f"answer {number}", **answer_fields},
    )
    return Turn(number=number, started=now, finished=now, calls=(call,), messages=messages, finish_reason="stop")


def total_of(calls: Sequence[Call]) -> Totals:
    total = Totals()
    for call in calls:
        total = total.plus(Totals.of_turn([call]))
    return total


def bill_of(billed: Billed) -> Decimal:
    """USD that the model service charges."""
    bill = cost(billed_usage(billed), RATES_OF.get(billed.deployment, RATES))
    assert bill is not None
    return bill


def billed_usage(billed: Billed) -> Usage:
    return Usage(
        prompt_tokens=billed.prompt_tokens,
        cached_tokens=billed.cached_tokens,
        cache_write_tokens=billed.cache_write_tokens,
        completion_tokens=billed.completion_tokens,
        reasoning_tokens=billed.reasoning_tokens,
    )
