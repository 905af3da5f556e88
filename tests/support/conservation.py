"""Conservation of costs: the model service's meter, the ledger, the turns and the session heads agree."""

import asyncio
import time
from collections import defaultdict
from collections.abc import AsyncIterator, Collection
from dataclasses import dataclass, field
from decimal import Decimal
from functools import partial

from shared.domain.calls import Call, LedgerEntry, State, Totals, Usage
from shared.domain.conversation import Session, Turn
from shared.domain.limits import Counter, held_by, running_by, spent_by, tokens_of
from shared.storage import ledger_rows, session_rows
from shared.storage.counter_rows import to_counter
from shared.storage.entities import Row
from shared.storage.tables import Table
from tests.conftest import Tables
from tests.support.azure_openai import AzureOpenAI, Billed
from tests.support.chat_client import bill_of, billed_usage
from tests.support.loopback import MAX_WAIT_S


@dataclass
class StoredSession:
    """A session's head and turns as stored."""

    head: Session | None = None
    turns: list[Turn] = field(default_factory=list)

    @property
    def calls(self) -> dict[str, Call]:
        return {call.id: call for turn in self.turns for call in turn.calls}


async def assert_conserved(
    tables: Tables, *fakes: AzureOpenAI, erased: Collection[str] = (), released: bool = True
) -> list[LedgerEntry]:
    """Assert that no billed call is lost, counted twice or understated, in any session; returns the ledger.

    Call it after recovery. `erased`: sessions whose earlier calls are in the ledger only. `released=False`: only the
    maintenance timer has run recovery; it does not see a call without a ledger row and does not release its lease.
    """
    for fake in fakes:  # a call whose client disconnected is billed when the fake notices
        await fake.until(partial(_idle, fake))
    entries, sessions = await _after_settlement(tables)
    meter = [entry for fake in fakes for entry in tuple(fake.meter)]
    billed = {entry.call_id or "": entry for entry in meter}
    calls_by_id = {entry.call.id: entry.call for entry in entries}
    assert len(billed) == len(meter), "a call was billed twice"
    assert len(calls_by_id) == len(entries), "a call has two ledger rows"
    assert billed.keys() <= calls_by_id.keys(), "a billed call has no ledger row"
    for call in calls_by_id.values():
        _assert_accounted(call, billed.get(call.id))
    await assert_counted(tables, entries)
    ids = {session.head.reference: session_id for session_id, session in sessions.items() if session.head}
    calls_by_session: dict[str, dict[str, Call]] = defaultdict(dict)
    for entry in entries:
        if entry.session:
            calls_by_session[ids.get(entry.call.reference) or entry.session][entry.call.id] = entry.call
    assert erased or calls_by_session.keys() <= sessions.keys(), "a session is missing"
    for session_id, session in sessions.items():
        _assert_agree(session, calls_by_session[session_id], erased=session_id in erased, released=released)
    return entries


def is_counter(row: Row) -> bool:
    return str(row["RowKey"]).startswith("!")


async def assert_counted(tables: Tables, entries: list[LedgerEntry]) -> dict[str, Counter]:
    """Assert that each limit's counter is the sum over the rows of the calls that name it; returns the counters."""
    counters = [to_counter(row) async for row in all_rows(tables.usage) if is_counter(row)]
    for counter in counters:
        calls = [e.call for e in entries if counter.name in e.limits and e.call.day.replace(day=1) == counter.month]
        today = [call for call in calls if counter.minute and call.day == counter.minute.date()]
        assert (counter.spent, counter.held) == (sum(map(spent_by, calls)), sum(map(held_by, calls)))
        assert (counter.running, counter.day_running) == (sum(map(running_by, calls)), sum(map(running_by, today)))
        assert (counter.day_spent, counter.day_held) == (sum(map(spent_by, today)), sum(map(held_by, today)))
        minute = [e.call for e in entries if counter.name in e.limits and e.minute == counter.minute]
        assert counter.minute_tokens == sum(map(tokens_of, minute))
        assert counter.minute_requests == len(minute)
    return {counter.name: counter for counter in counters}


def _idle(fake: AzureOpenAI) -> bool:
    return fake.busy == 0


async def _after_settlement(tables: Tables) -> tuple[list[LedgerEntry], dict[str, "StoredSession"]]:
    """Ledger and sessions once every row is settled, which follows the answer; after MAX_WAIT_S as they are then."""
    deadline = time.monotonic() + MAX_WAIT_S
    while True:
        rows = [row async for row in all_rows(tables.usage)]
        entries = [ledger_rows.to_entry(row) for row in rows if not is_counter(row)]
        sessions = await _sessions(tables)
        states = {call.id: call.state for session in sessions.values() for call in session.calls.values()}
        unsettled = [
            entry for entry in entries if states.get(entry.call.id, entry.call.state).rank > entry.call.state.rank
        ]
        if not (unsettled or any(entry.call.state is State.OPEN for entry in entries)) or time.monotonic() > deadline:
            return entries, sessions
        await asyncio.sleep(0.02)


async def _sessions(tables: Tables) -> dict[str, StoredSession]:
    sessions: dict[str, StoredSession] = defaultdict(StoredSession)
    async for row in all_rows(tables.sessions):
        session, key = row["PartitionKey"], row["RowKey"]
        if session.startswith("~"):
            continue
        if key == session_rows.HEAD:
            sessions[session].head = session_rows.to_session(row)
        elif key.startswith("turn-"):
            sessions[session].turns.append(session_rows.to_turn(row))
    return sessions


def all_rows(table: Table) -> AsyncIterator[Row]:
    return table.query("PartitionKey ge @first", {"first": ""})


def _assert_accounted(call: Call, billed: Billed | None) -> None:
    """Settled: exactly the metered cost. Unaccounted: an upper bound of it. Other states: not billed."""
    if call.state is State.SETTLED:
        assert billed is not None, "settled but not billed"
        assert (call.usage, call.cost) == (billed_usage(billed), bill_of(billed))
    else:
        assert call.state is not State.OPEN
    if billed is not None and call.state is not State.SETTLED:
        assert call.state in (State.UNACCOUNTED, State.STOPPED), f"billed but {call.state}"
        assert call.worst_case is not None
        assert call.worst_case >= bill_of(billed)


def _assert_agree(session: StoredSession, ledger_calls: dict[str, Call], *, erased: bool, released: bool) -> None:
    """The turns' calls equal the ledger rows one by one, and the head's totals equal the sums of both."""
    assert session.head, "turns without a head"
    stored = session.calls
    ledgered = {call_id: call for call_id, call in ledger_calls.items() if call_id in stored or not erased}
    assert {call_id: call for call_id, call in stored.items() if call_id in ledgered} == ledgered
    for call_id in stored.keys() - ledgered.keys():  # without a ledger row, so the model was never called
        held = session.head.lease is not None and session.head.lease.call == call_id and not released
        call = stored[call_id]
        assert call.state is State.FAILED or (call.state is State.OPEN and held), call
    assert session.head.totals == _total(stored.values())
    assert session.head.totals == _total(ledgered.values())
    before = session.head.parent.turn if session.head.parent else 0  # a branch's turns are numbered on
    assert session.head.turns == max((turn.number for turn in session.turns), default=before)
    assert session.head.turns == before + len(session.turns)
    assert session.head.lease is None or not released, "the session's lease was not released"
    assert session.head.deletion is None


def _total(calls: Collection[Call]) -> Totals:
    """The sum of the calls, computed independently of the app's code."""
    settled = [call for call in calls if call.state is State.SETTLED]
    worst_cases = [call.worst_case for call in calls if call.state is State.UNACCOUNTED]
    stopped = [call for call in calls if call.state is State.STOPPED]
    usages = [call.usage for call in settled if call.usage]
    return Totals(
        usage=Usage(
            prompt_tokens=sum(usage.prompt_tokens for usage in usages),
            cached_tokens=sum(usage.cached_tokens for usage in usages),
            cache_write_tokens=sum(usage.cache_write_tokens for usage in usages),
            completion_tokens=sum(usage.completion_tokens for usage in usages),
            reasoning_tokens=sum(usage.reasoning_tokens for usage in usages),
        ),
        cost=sum((call.cost for call in settled if call.cost), Decimal(0)),
        stopped_calls=len(stopped),
        stopped_at_least=sum((call.at_least for call in stopped if call.at_least), Decimal(0)),
        stopped_at_most=sum((call.worst_case for call in stopped if call.worst_case), Decimal(0)),
        stopped_unbounded=sum(call.worst_case is None for call in stopped),
        unaccounted_calls=len(worst_cases),
        unaccounted=sum((worst_case for worst_case in worst_cases if worst_case), Decimal(0)),
        unbounded_calls=worst_cases.count(None),
    )
