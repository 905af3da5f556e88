"""Raising calls: each call is counted once, whatever process raises it, in any order and any number of times."""

from dataclasses import replace
from datetime import UTC, date, datetime
from decimal import Decimal

import pytest
from hypothesis import given
from hypothesis import strategies as st

from shared.domain.calls import Call, State, Totals, Usage
from shared.domain.conversation import Lease, Session, Turn, raise_call

NOW = datetime(2026, 3, 1, tzinfo=UTC)
MONEY = st.none() | st.decimals(0, 1_000, places=9)
TOKENS = st.integers(0, 10**12)
USAGES = st.builds(
    Usage,
    prompt_tokens=TOKENS,
    cached_tokens=TOKENS,
    cache_write_tokens=TOKENS,
    completion_tokens=TOKENS,
    reasoning_tokens=TOKENS,
)
CALLS = 4  # in two turns


def opened(number: int, worst_case: Decimal | None = Decimal(1)) -> Call:
    return Call(id=f"c{number}", day=date(2026, 3, 1), deadline=NOW, deployment="chat", worst_case=worst_case)


def turned(number: int, *calls: Call) -> Turn:
    return Turn(number=number, started=NOW, calls=calls)


def session(**fields: object) -> Session:
    head = Session(id="s", created=NOW, updated=NOW, system="", deployment="chat")
    return replace(head, **fields)  # type: ignore[arg-type]


@st.composite
def raises(draw: st.DrawFn) -> list[Call]:
    """Calls in the states that several processes may write: any state, in any order, also repeatedly."""
    worst = [draw(MONEY) for _ in range(CALLS)]
    states = draw(st.lists(st.tuples(st.integers(0, CALLS - 1), st.sampled_from(State)), max_size=20))
    settled = st.builds(lambda usage, cost: {"usage": usage, "cost": cost}, USAGES, MONEY)
    return [
        replace(opened(at, worst[at]), state=state, **(draw(settled) if state is State.SETTLED else {}))
        for at, state in states
    ]


@given(raises(), st.integers(1, 3))
def test_session_totals_equal_the_sum_of_the_calls(attempts: list[Call], times: int) -> None:
    worst = {call.id: call.worst_case for call in attempts}
    calls = [opened(at, worst.get(f"c{at}")) for at in range(CALLS)]
    head, turns = session(), [turned(1, *calls[:1]), turned(2, *calls[1:])]
    for call in attempts:
        for _ in range(times):
            at = 0 if call.id == "c0" else 1
            if after := raise_call(head, turns[at], call):
                head, turns[at] = after
    assert head.totals == Totals.of_turn(turns[0].calls).plus(Totals.of_turn(turns[1].calls))
    stored = [call for turn in turns for call in turn.calls]
    settled = [call for call in stored if call.state is State.SETTLED]
    unaccounted = [call.worst_case for call in stored if call.state is State.UNACCOUNTED]
    assert head.totals.cost == sum(call.cost or 0 for call in settled)
    assert head.totals.usage.total_tokens == sum(call.usage.total_tokens for call in settled if call.usage)
    assert head.totals.unaccounted_calls == len(unaccounted)
    assert head.totals.unaccounted == sum(amount or 0 for amount in unaccounted)
    assert head.totals.unbounded_calls == unaccounted.count(None)
    assert head.totals.unpriced_turns == sum(
        any(call.state is State.SETTLED and call.cost is None for call in turn.calls) for turn in turns
    )


@given(raises())
def test_call_states_only_rise(attempts: list[Call]) -> None:
    head, turn = session(), turned(1, *(opened(at) for at in range(CALLS)))
    for call in attempts:
        before = turn.find(call.id)
        after = raise_call(head, turn, call)
        assert before is not None
        assert (after is None) == (call.state.rank <= before.state.rank)
        if after:
            head, turn = after
            assert turn.find(call.id) == call


@given(raises())
def test_raising_a_call_twice_changes_nothing(attempts: list[Call]) -> None:
    head, turn = session(), turned(1, *(opened(at) for at in range(CALLS)))
    for call in attempts:
        if after := raise_call(head, turn, call):
            head, turn = after
            assert raise_call(head, turn, call) is None


def test_call_states_rise_from_open_over_abandoned_and_unaccounted_to_final() -> None:
    order = [State.OPEN, State.ABANDONED, State.UNACCOUNTED, State.SETTLED]
    assert sorted(order, key=lambda state: state.rank) == order
    assert len({state.rank for state in order}) == 4
    assert State.FAILED.rank == State.SETTLED.rank


def test_final_call_state_does_not_change() -> None:
    for final in (State.SETTLED, State.FAILED):
        for later in State:
            call = replace(opened(0), state=final)
            assert raise_call(session(), turned(1, call), replace(call, state=later)) is None


def test_late_settlement_replaces_unaccounted_set_by_recovery() -> None:
    call = opened(0, Decimal(9))
    marked = raise_call(session(), turned(1, call), replace(call, state=State.UNACCOUNTED))
    assert marked is not None
    assert marked[0].totals == Totals(unaccounted_calls=1, unaccounted=Decimal(9))
    usage = Usage(prompt_tokens=3, completion_tokens=1)
    settled = raise_call(*marked, replace(call, state=State.SETTLED, usage=usage, cost=Decimal(2)))
    assert settled is not None
    assert settled[0].totals == Totals(usage=usage, cost=Decimal(2))


def test_settled_call_without_a_price_counts_as_unpriced_with_its_tokens() -> None:
    call, usage = opened(0, None), Usage(prompt_tokens=3)
    after = raise_call(session(), turned(1, call), replace(call, state=State.SETTLED, usage=usage))
    assert after is not None
    assert after[0].totals == Totals(usage=usage, unpriced_turns=1)


def test_turn_of_several_unpriced_calls_is_one_unpriced_turn() -> None:
    calls = [replace(opened(step, None), step=step) for step in range(3)]
    head, turn = session(), turned(1, *calls)
    for call in calls:
        raised = raise_call(head, turn, replace(call, state=State.SETTLED, usage=Usage(prompt_tokens=3)))
        assert raised is not None
        head, turn = raised
    assert head.totals == turn.totals == Totals(usage=Usage(prompt_tokens=9), unpriced_turns=1)


def test_raising_a_call_of_another_turn_changes_nothing() -> None:
    assert raise_call(session(), turned(1, opened(0)), replace(opened(1), state=State.SETTLED)) is None


@pytest.mark.parametrize(("holder", "still_leased"), [("c0", False), ("c1", True)])
def test_only_the_call_that_holds_the_lease_ends_it(holder: str, still_leased: bool) -> None:
    head = session(lease=Lease(call=holder, until=NOW))
    after = raise_call(head, turned(1, opened(0), opened(1)), replace(opened(0), state=State.FAILED))
    assert after is not None
    assert (after[0].lease is not None) == still_leased


@pytest.mark.parametrize(
    ("state", "start"), [(State.SETTLED, 7), (State.FAILED, 3), (State.UNACCOUNTED, 3), (State.ABANDONED, 3)]
)
def test_only_an_answered_turn_moves_the_window_start(state: State, start: int) -> None:
    turn = replace(turned(9, opened(0)), window_start=7)
    after = raise_call(session(window_start=3), turn, replace(opened(0), state=state, usage=Usage()))
    assert after is not None
    assert after[0].window_start == start


def test_late_settlement_does_not_move_the_window_start_back() -> None:
    turn = replace(turned(2, opened(0)), window_start=1)
    after = raise_call(session(window_start=5), turn, replace(opened(0), state=State.SETTLED, usage=Usage()))
    assert after is not None
    assert after[0].window_start == 5


def test_conversation_tokens_exclude_reasoning() -> None:
    assert Usage(prompt_tokens=10, completion_tokens=7, reasoning_tokens=5).conversation_tokens == 12


@pytest.mark.parametrize(
    ("owner", "caller", "visible"),
    [(None, None, True), (None, "ada", True), ("ada", "ada", True), ("ada", "bob", False), ("ada", None, False)],
)
def test_session_with_an_owner_is_visible_only_to_that_owner(
    owner: str | None, caller: str | None, visible: bool
) -> None:
    assert session(owner=owner).visible_to(caller) is visible
