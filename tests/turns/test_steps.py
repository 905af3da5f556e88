"""A turn with several steps, each with its own call, counts as one turn in the session, the history and the day.

The app does not make such turns yet, so the tests write the rows that such a turn would leave.
"""

from collections.abc import AsyncIterator, Sequence
from dataclasses import replace
from datetime import UTC, date, datetime
from decimal import Decimal

import httpx
import pytest

from local.keys import line, new_key
from shared.domain.calls import Call, LedgerEntry, State, Usage
from shared.domain.conversation import Session, Turn, raise_call
from shared.services import services
from shared.storage import session_rows
from shared.storage.days import Days
from shared.storage.tables import Write
from tests.conftest import Serve, Tables
from tests.support import ledger_rows
from tests.support.azure_openai import AzureOpenAI
from tests.support.chat_client import JSON, answer, closed_ledger, get_json
from tests.support.clock import ManualClock
from tests.support.conservation import assert_conserved

KEY = new_key()
MONDAY = date(2024, 3, 11)
NOON = datetime(2024, 3, 11, 12, tzinfo=UTC)
MESSAGES = ({"role": "user", "content": "How far is it?"}, {"role": "assistant", "content": "12 km."})


@pytest.fixture
async def api(
    clock: ManualClock, serve: Serve, environ: dict[str, str], tables: Tables
) -> AsyncIterator[httpx.AsyncClient]:
    """The app on a Monday at noon, after a month without calls."""
    clock.set(NOON)
    async with serve(environ | {"USAGE_KEYS": line("ann", KEY)}) as client:
        await client.get("/api/sessions/none")  # this creates the tables
        await ledger_rows.write_quiet_days(Days(services()._table("daily")), MONDAY)
        yield client


def call(step: int, *, prompt: int = 1000, priced: bool = True, state: State = State.SETTLED) -> Call:
    rates = ledger_rows.RATES if priced else None
    entry = ledger_rows.entry(MONDAY, prompt=prompt, rates=rates, state=state)
    return replace(entry.call, step=step, deadline=NOON)


async def write_turn(tables: Tables, calls: Sequence[Call], session_id: str = "s") -> None:
    """Write a session with one turn, in which these calls were opened and then raised one after the other."""
    opened = tuple(replace(each, state=State.OPEN, usage=None, cost=None, rates=None, model=None) for each in calls)
    session = Session(id=session_id, created=NOON, updated=NOON, system="Be brief.", deployment="chat", turns=1)
    turn = Turn(number=1, started=NOON, finished=NOON, finish_reason="stop", calls=opened, messages=MESSAGES)
    for each in calls:
        raised = raise_call(session, turn, each)
        assert raised
        session, turn = raised
    writes = [Write("put", session_rows.from_session(session)), Write("put", session_rows.from_turn(session_id, turn))]
    await tables.sessions.commit(writes)
    await ledger_rows.write(
        tables.usage, [LedgerEntry(call=each, session_id=session_id, turn=1, caller="ann") for each in calls]
    )


async def daily_usage(api: httpx.AsyncClient) -> JSON:
    api.headers["authorization"] = f"Bearer {KEY}"
    try:
        return await get_json(api, f"/api/usage/daily/{MONDAY}")
    finally:
        del api.headers["authorization"]


def cost_of(calls: Sequence[Call]) -> Decimal:
    return sum((each.cost or Decimal(0) for each in calls), Decimal(0))


async def test_calls_of_several_steps_are_one_turn_of_the_session(
    api: httpx.AsyncClient, fake: AzureOpenAI, tables: Tables
) -> None:
    calls = [call(0, prompt=1000), call(1, prompt=2000), call(2, prompt=3000)]
    await write_turn(tables, calls)

    session = await get_json(api, "/api/sessions/s")
    assert (session["turns"], session["unpriced_turns"], session["unaccounted_calls"]) == (1, 0, 0)
    assert (session["usage"]["prompt_tokens"], session["total_tokens"]) == (6000, 6300)
    assert session["cost_usd"] == cost_of(calls) > 0

    following = await answer(api, "And back?")
    assert (following["turn"], following["session"]["turns"]) == (2, 2)
    assert following["session"]["cost_usd"] == cost_of(calls) + following["cost_usd"]
    assert [m["content"] for m in fake.requests[-1].body["messages"]][1:] == ["How far is it?", "12 km.", "And back?"]


async def test_history_shows_the_sum_of_all_calls_of_a_turn(api: httpx.AsyncClient, tables: Tables) -> None:
    calls = [call(0, prompt=1000), call(1, prompt=2000), call(2, prompt=3000)]
    await write_turn(tables, calls)

    [turn] = (await get_json(api, "/api/sessions/s/messages"))["turns"]

    assert (turn["turn"], turn["state"]) == (1, "settled")
    assert (turn["usage"]["prompt_tokens"], turn["usage"]["completion_tokens"]) == (6000, 300)
    assert turn["cost_usd"] == cost_of(calls)


async def test_calls_of_several_steps_are_one_turn_of_the_day(api: httpx.AsyncClient, tables: Tables) -> None:
    calls = [call(0, prompt=1000), call(1, prompt=2000), call(2, prompt=3000)]
    await write_turn(tables, calls)

    day = await daily_usage(api)

    assert (day["turns"], day["calls"], day["sessions"], day["unpriced_turns"]) == (1, 3, 1, 0)
    assert (day["usage"]["prompt_tokens"], day["cost_usd"]) == (6000, cost_of(calls))
    assert day["cost_per_turn_usd"] == cost_of(calls).quantize(Decimal("1e-10"))
    [caller] = day["by_caller"]
    assert (caller["caller"], caller["calls"], caller["cost_usd"]) == ("ann", 3, cost_of(calls))


@pytest.mark.parametrize("unpriced", [{0}, {1}, {2}, {0, 2}, {0, 1, 2}], ids=str)
async def test_turn_with_unpriced_calls_is_one_unpriced_turn(
    api: httpx.AsyncClient, tables: Tables, unpriced: set[int]
) -> None:
    calls = [call(step, priced=step not in unpriced) for step in range(3)]
    await write_turn(tables, calls)

    session = await get_json(api, "/api/sessions/s")
    [turn] = (await get_json(api, "/api/sessions/s/messages"))["turns"]
    day = await daily_usage(api)

    assert (session["unpriced_turns"], session["cost_usd"]) == (1, cost_of(calls))
    assert turn["cost_usd"] is None
    assert turn["usage"]["prompt_tokens"] == 3000
    assert (day["turns"], day["unpriced_turns"], day["cost_usd"]) == (1, 1, cost_of(calls))
    assert [group["unpriced_turns"] for group in (*day["by_model"], *day["by_caller"])] == [1, 1]


async def test_retried_step_adds_no_turn(api: httpx.AsyncClient, tables: Tables) -> None:
    retried = call(1, state=State.UNACCOUNTED)
    calls = [call(0), retried, call(1), call(2)]
    await write_turn(tables, calls)

    session = await get_json(api, "/api/sessions/s")
    [turn] = (await get_json(api, "/api/sessions/s/messages"))["turns"]
    day = await daily_usage(api)

    for totals in (session, day):
        assert (totals["turns"], totals["unaccounted_calls"]) == (1, 1)
        assert totals["unaccounted_usd"] == retried.worst_case
        assert totals["cost_usd"] == cost_of(calls)
    assert day["calls"] == 4
    assert turn["cost_usd"] == cost_of(calls)


@pytest.mark.parametrize("steps", [1, 3])
async def test_day_counts_turns_with_equal_numbers_before_and_after_an_erasure(
    api: httpx.AsyncClient, fake: AzureOpenAI, tables: Tables, steps: int
) -> None:
    calls = [call(step) for step in range(steps)]
    await write_turn(tables, calls)
    assert (await api.delete("/api/sessions/s")).status_code == 204

    recreated = await answer(api, "Hello again.")
    assert (recreated["turn"], recreated["session"]["turns"]) == (1, 1)
    assert recreated["session"]["cost_usd"] == recreated["cost_usd"]
    assert {entry.call.day for entry in await closed_ledger(tables)} == {MONDAY}

    day = await daily_usage(api)
    assert (day["turns"], day["calls"], day["sessions"]) == (2, steps + 1, 2)  # an erased session leaves no name
    assert day["cost_usd"] == cost_of(calls) + recreated["cost_usd"]


async def test_day_distinguishes_turns_of_erased_and_recreated_sessions(api: httpx.AsyncClient, tables: Tables) -> None:
    """The turn of the recreated session has several steps too."""
    for calls in ([call(0), call(1), call(2)], [call(0, priced=False), call(1, priced=False)]):
        assert (await api.delete("/api/sessions/s")).status_code in (204, 404)
        await write_turn(tables, calls)
    await write_turn(tables, [call(0), call(1)], session_id="other")

    day = await daily_usage(api)

    assert (day["turns"], day["calls"], day["sessions"]) == (3, 7, 3)
    assert (await get_json(api, "/api/sessions/s"))["unpriced_turns"] == 1


async def test_all_calls_of_the_app_have_step_0(api: httpx.AsyncClient, fake: AzureOpenAI, tables: Tables) -> None:
    fake.fault("reset")

    await answer(api)

    entries = await closed_ledger(tables)
    assert [(entry.call.state, entry.call.step) for entry in entries] == [(State.UNACCOUNTED, 0), (State.SETTLED, 0)]
    assert (await daily_usage(api))["turns"] == 1
    await assert_conserved(tables, fake)


def test_turn_usage_is_the_sum_of_its_calls() -> None:
    """The history adds up every kind of token."""
    usage = Usage(prompt_tokens=5, cached_tokens=4, cache_write_tokens=3, completion_tokens=2, reasoning_tokens=1)
    calls = [replace(call(step), usage=usage) for step in range(3)]
    turn = Turn(number=1, started=NOON, calls=tuple(calls))
    assert turn.usage == Usage(
        prompt_tokens=15, cached_tokens=12, cache_write_tokens=9, completion_tokens=6, reasoning_tokens=3
    )
