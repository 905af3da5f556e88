"""The property that everything else serves: the model service's meter, the ledger, the turns and the heads agree."""

import asyncio
import time
from collections import defaultdict
from collections.abc import AsyncIterator, Collection
from dataclasses import dataclass, field
from decimal import Decimal
from functools import partial

from shared.domain.calls import Call, LedgerEntry, State, Totals, Usage
from shared.domain.conversation import Session, Turn
from shared.domain.pricing import cost
from shared.storage import ledger_rows
from shared.storage import session_rows as rows
from shared.storage.tables import Row, Table
from tests.conftest import Tables
from tests.support.azure_openai import AzureOpenAI, Billed
from tests.support.loopback import PATIENCE
from tests.support.talking import RATES, metered


@dataclass
class Life:
    """A session as it is stored."""

    head: Session | None = None
    turns: list[Turn] = field(default_factory=list)

    @property
    def calls(self) -> dict[str, Call]:
        return {call.id: call for turn in self.turns for call in turn.calls}


async def assert_conserved(
    tables: Tables, *fakes: AzureOpenAI, erased: Collection[str] = (), freed: bool = True
) -> list[LedgerEntry]:
    """Nothing that was billed is lost, doubled or understated; returns the ledger.

    Holds for every session at once, after recovery. `erased`: sessions that were erased, whose earlier calls the ledger
    alone remembers. `freed=False`: only the timer has recovered, which never sees a call that has no row, nor frees its
    session.
    """
    for fake in fakes:  # a call whose caller has gone is billed once that is noticed
        await fake.until(partial(_idle, fake))
    entries, lives = await _at_rest(tables)
    meter = [entry for fake in fakes for entry in tuple(fake.meter)]
    billed = {entry.call_id or "": entry for entry in meter}
    written = {entry.call.id: entry.call for entry in entries}
    assert len(billed) == len(meter), "a call was billed twice"
    assert len(written) == len(entries), "a call has two rows"
    assert billed.keys() <= written.keys(), "a billed call has no row"
    for call in written.values():
        _assert_accounted(call, billed.get(call.id))
    remembered: dict[str, dict[str, Call]] = defaultdict(dict)
    for entry in entries:
        if entry.session_id:
            remembered[entry.session_id][entry.call.id] = entry.call
    assert remembered.keys() - lives.keys() <= set(erased), "a session is gone"
    for session_id, life in lives.items():
        _assert_agree(life, remembered[session_id], erased=session_id in erased, freed=freed)
    return entries


def _idle(fake: AzureOpenAI) -> bool:
    return fake.busy == 0


async def _at_rest(tables: Tables) -> tuple[list[LedgerEntry], dict[str, "Life"]]:
    """What is stored once no row waits for its settlement: a turn's answer comes before that. Else as it stays."""
    deadline = time.monotonic() + PATIENCE
    while True:
        entries = [ledger_rows.to_entry(row) async for row in everything(tables.usage)]
        lives = await _lives(tables)
        said = {call.id: call.state for life in lives.values() for call in life.calls.values()}
        waiting = [entry for entry in entries if said.get(entry.call.id, entry.call.state).rank > entry.call.state.rank]
        if not (waiting or any(entry.call.state is State.OPEN for entry in entries)) or time.monotonic() > deadline:
            return entries, lives
        await asyncio.sleep(0.02)


async def _lives(tables: Tables) -> dict[str, Life]:
    lives: dict[str, Life] = defaultdict(Life)
    async for row in everything(tables.sessions):
        life, key = row["PartitionKey"], row["RowKey"]
        if life.startswith("~"):
            continue
        if key == rows.HEAD:
            lives[life].head = rows.to_session(row)
        elif key.startswith("turn-"):
            lives[life].turns.append(rows.to_turn(row))
    return lives


def everything(table: Table) -> AsyncIterator[Row]:
    return table.query("PartitionKey ge @first", {"first": ""})


def _assert_accounted(call: Call, billed: Billed | None) -> None:
    """Settled is what the meter says to the last digit, unaccounted at least that; all else was not billed."""
    if call.state is State.SETTLED:
        assert billed is not None, "settled and never billed"
        assert (call.usage, call.cost) == (metered(billed), cost(metered(billed), RATES))
    else:
        assert call.state is not State.OPEN
    if billed is not None and call.state is not State.SETTLED:
        assert call.state is State.UNACCOUNTED, f"billed and {call.state}"
        assert call.worst_case is not None
        assert call.worst_case >= cost(metered(billed), RATES)


def _assert_agree(life: Life, remembered: dict[str, Call], *, erased: bool, freed: bool) -> None:
    """Settled rows = head totals = sum of the turns' calls, call by call and exactly."""
    assert life.head, "turns without a head"
    said = life.calls
    here = {call_id: call for call_id, call in remembered.items() if call_id in said or not erased}
    assert {call_id: call for call_id, call in said.items() if call_id in here} == here
    for call_id in said.keys() - here.keys():  # never written down, so never made
        held = life.head.lease is not None and life.head.lease.call == call_id and not freed
        assert said[call_id].state is State.FAILED or (said[call_id].state is State.OPEN and held), said[call_id]
    assert life.head.totals == _total(said.values())
    assert life.head.totals == _total(here.values())
    assert life.head.turns == max(turn.number for turn in life.turns) == len(life.turns)
    assert life.head.lease is None or not freed, "the session is still held"
    assert life.head.deletion is None


def _total(calls: Collection[Call]) -> Totals:
    """Added up without the code that keeps the totals."""
    settled = [call for call in calls if call.state is State.SETTLED]
    doubtful = [call.worst_case for call in calls if call.state is State.UNACCOUNTED]
    used = [call.usage for call in settled if call.usage]
    return Totals(
        usage=Usage(
            prompt_tokens=sum(usage.prompt_tokens for usage in used),
            cached_tokens=sum(usage.cached_tokens for usage in used),
            cache_write_tokens=sum(usage.cache_write_tokens for usage in used),
            completion_tokens=sum(usage.completion_tokens for usage in used),
            reasoning_tokens=sum(usage.reasoning_tokens for usage in used),
        ),
        cost=sum((call.cost for call in settled if call.cost), Decimal(0)),
        unaccounted_calls=len(doubtful),
        unaccounted=sum((worst_case for worst_case in doubtful if worst_case), Decimal(0)),
        unbounded_calls=doubtful.count(None),
    )
