"""Tallies of a day's ledger rows, compared with a naive sum of the same rows."""

from collections import Counter, defaultdict
from collections.abc import Iterable
from dataclasses import replace
from datetime import date
from decimal import Decimal
from functools import reduce

from hypothesis import given, settings
from hypothesis import strategies as st

from shared.domain.calls import LedgerEntry, Rates, State, Usage
from shared.domain.daily import (
    ANONYMOUS_CALLER,
    MAX_COSTLIEST,
    DailySummary,
    DayCost,
    Figures,
    SessionCost,
    UsageBreakdown,
)
from shared.domain.hashing import sha256_hex
from shared.domain.tally import Tally
from shared.storage.ledger_rows import ledger_keys
from tests.support.ledger_rows import WORST_CASE, entry, entry_costing, settled

DAY = date(2024, 3, 11)
PREFIXES = ("a", "a-b", "a.b", "a_b", "ab", "A", "a0", "a.b-c", "a-", "a.")
SESSIONS = (*PREFIXES, *(f"s{n}" for n in range(6)))

amounts = st.decimals(0, 100, places=6)
FIRST_STEP = st.just(0)
rates = st.builds(Rates, input=amounts, cached_input=amounts, cache_write=amounts, output=amounts)


@st.composite
def entries(draw: st.DrawFn, steps: st.SearchStrategy[int] = FIRST_STEP) -> LedgerEntry:
    prompt = draw(st.integers(0, 10**7))
    drawn = entry(
        DAY,
        draw(st.sampled_from((*SESSIONS, None))),
        draw(st.integers(1, 3)),
        state=draw(st.sampled_from((*State, State.SETTLED, State.SETTLED))),
        prompt=prompt,
        cached=draw(st.integers(0, prompt)),
        completion=draw(st.integers(0, 10**6)),
        rates=draw(st.none() | rates),
        caller=draw(st.sampled_from((None, "web", "batch"))),
        deployment=draw(st.sampled_from(("chat", "large"))),
        model=draw(st.sampled_from(("gpt-5.4-mini-2026-03-17", "gpt-5.4", None))),
        worst=draw(st.none() | amounts),
    )
    return replace(drawn, call=replace(drawn.call, step=draw(steps)))


def tallied(rows: Iterable[LedgerEntry], *, one_shard: bool = False) -> Figures:
    """The figures as a day is read: each shard in key order."""
    shards = defaultdict(list)
    for one in rows:
        partition, key = ledger_keys(one.call, one.session_id, one.turn)
        shards["all" if one_shard else partition].append((key, one))
    return reduce(Figures.plus, (tally(one for _, one in sorted(shard)) for shard in shards.values()), Figures())


def tally(rows: Iterable[LedgerEntry]) -> Figures:
    tally_of_rows = Tally()
    for one in rows:
        tally_of_rows.add(one)
    return tally_of_rows.figures()


def naive(rows: list[LedgerEntry]) -> Figures:
    """The same figures, each computed from all rows."""
    counted = [one for one in rows if one.call.state is not State.ABANDONED]
    settled_rows = [one for one in counted if one.call.state is State.SETTLED]
    sessions = {one.session_id for one in counted if one.session_id}
    without_session = sum(one.session_id is None for one in counted)
    turns = {(one.session_id, one.turn) for one in counted if one.session_id}
    settled_turns = max_by_step(settled_rows)
    costs = {session: total(one for one in settled_rows if one.session_id == session) for session in sessions}
    ranked = sorted(((cost, session) for session, cost in costs.items() if cost), reverse=True)
    models = {(one.call.deployment, one.call.model or "") for one in settled_rows}
    callers = {one.caller or ANONYMOUS_CALLER for one in settled_rows}
    worst_cases = [one.call.worst_case for one in counted if one.call.state is State.UNACCOUNTED]
    stopped = [one.call for one in counted if one.call.state is State.STOPPED]
    return Figures(
        usage=reduce(Usage.plus, (one.call.usage or Usage() for one in settled_rows), Usage()),
        cost=total(settled_rows),
        saved=sum((saved(one) for one in settled_rows), Decimal(0)),
        sessions=len(sessions),
        turns=sum(max(1, settled_turns[turn]) for turn in turns) + without_session,
        calls=len(counted),
        open=sum(one.call.state is State.OPEN for one in counted),
        failed=sum(one.call.state is State.FAILED for one in counted),
        unaccounted=len(worst_cases),
        unaccounted_cost=sum((worst or Decimal(0) for worst in worst_cases), Decimal(0)),
        unbounded=worst_cases.count(None),
        stopped=len(stopped),
        stopped_at_least=sum((call.at_least or Decimal(0) for call in stopped), Decimal(0)),
        stopped_at_most=sum((call.worst_case or Decimal(0) for call in stopped), Decimal(0)),
        stopped_unbounded=sum(call.worst_case is None for call in stopped),
        unpriced=sum(one.call.cost is None for one in settled_rows),
        unpriced_turns=unpriced_turns(settled_rows),
        models={
            name: breakdown(one for one in settled_rows if (one.call.deployment, one.call.model or "") == name)
            for name in models
        },
        callers={
            name: breakdown(one for one in settled_rows if (one.caller or ANONYMOUS_CALLER) == name) for name in callers
        },
        costliest=tuple(
            SessionCost(cost=cost, session=session, is_reference=False) for cost, session in ranked[:MAX_COSTLIEST]
        ),
    )


def total(rows: Iterable[LedgerEntry]) -> Decimal:
    return sum((one.call.cost or Decimal(0) for one in rows), Decimal(0))


def saved(one: LedgerEntry) -> Decimal:
    call = one.call
    if call.usage is None or call.rates is None:
        return Decimal(0)
    return call.usage.cached_tokens * (call.rates.input - call.rates.cached_input) / 1_000_000


def max_by_step(rows: Iterable[LedgerEntry]) -> Counter[tuple[str, int]]:
    """For each turn number of a session: the maximum number of calls at the same step. It exceeds one if the session
    was erased and created again, because then several turns have the same number."""
    steps = Counter((one.session_id, one.turn, one.call.step) for one in rows if one.session_id)
    highest = Counter[tuple[str, int]]()
    for (session, turn, _), count in steps.items():
        highest[session, turn] = max(highest[session, turn], count)
    return highest


def unpriced_turns(rows: Iterable[LedgerEntry]) -> int:
    """A call without a session counts as its own turn."""
    unpriced = [one for one in rows if one.call.cost is None]
    return max_by_step(unpriced).total() + sum(one.session_id is None for one in unpriced)


def breakdown(rows: Iterable[LedgerEntry]) -> UsageBreakdown:
    rows = list(rows)
    calls = [one.call for one in rows]
    return UsageBreakdown(
        cost=sum((call.cost or Decimal(0) for call in calls), Decimal(0)),
        calls=len(calls),
        unpriced_turns=unpriced_turns(rows),
        prompt_tokens=sum(call.usage.prompt_tokens for call in calls if call.usage),
        completion_tokens=sum(call.usage.completion_tokens for call in calls if call.usage),
    )


@settings(deadline=None, max_examples=60)
@given(st.lists(entries(), max_size=40))
def test_sum_of_the_shard_tallies_equals_the_naive_sum_of_all_rows(rows: list[LedgerEntry]) -> None:
    assert tallied(rows) == naive(rows)


@settings(deadline=None, max_examples=40)
@given(st.lists(entries(), max_size=25))
def test_sessions_in_one_shard_are_counted_separately(rows: list[LedgerEntry]) -> None:
    assert tallied(rows, one_shard=True) == naive(rows)


def step_of(one: LedgerEntry) -> object:
    """Unique within a day: each step of a turn settles at most one call, and a call has one row."""
    call = one.call
    return (one.session_id, one.turn, call.step) if one.session_id and call.state is State.SETTLED else call.id


@settings(deadline=None, max_examples=60)
@given(st.lists(entries(steps=st.integers(0, 3)), max_size=40, unique_by=step_of))
def test_steps_of_a_turn_count_as_one_turn(rows: list[LedgerEntry]) -> None:
    assert tallied(rows) == tallied(rows, one_shard=True) == naive(rows)


def test_sessions_with_a_common_id_prefix_are_counted_separately() -> None:
    rows = [entry_costing(DAY, n + 1, session, turn) for n, session in enumerate(PREFIXES) for turn in (1, 2)]

    figures = tallied(rows, one_shard=True)

    assert (figures.sessions, figures.turns, figures.calls) == (len(PREFIXES), 2 * len(PREFIXES), 2 * len(PREFIXES))
    assert {one.session: one.cost for one in figures.costliest} == {
        session: 2 * (n + 1) for n, session in enumerate(PREFIXES)
    }


def test_retry_of_a_turn_counts_as_one_turn() -> None:
    figures = tallied([entry(DAY, turn=1, state=State.UNACCOUNTED), entry(DAY, turn=1), entry(DAY, turn=2)])

    assert (figures.turns, figures.calls, figures.sessions) == (2, 3, 1)


def test_call_without_a_session_counts_as_a_turn_of_no_session() -> None:
    figures = tallied([entry(DAY, None), entry(DAY, None), entry(DAY, "s")])

    assert (figures.turns, figures.sessions) == (3, 1)
    assert [one.session for one in figures.costliest] == ["s"]


def test_ten_costliest_sessions_are_listed_across_shards() -> None:
    rows = [entry_costing(DAY, n + 1, f"s{n}") for n in range(25)]

    assert [int(one.cost) for one in tallied(rows).costliest] == list(range(25, 15, -1))
    assert [int(one.cost) for one in tallied(rows, one_shard=True).costliest] == list(range(25, 15, -1))


def test_abandoned_call_counts_as_nothing() -> None:
    assert tallied([entry(DAY, state=State.ABANDONED)]) == Figures()


def test_unaccounted_call_counts_with_its_worst_case_outside_the_cost() -> None:
    figures = tallied([entry(DAY, state=State.UNACCOUNTED)])

    assert (figures.unaccounted, figures.unaccounted_cost) == (1, WORST_CASE)
    assert figures.cost == 0


def test_unaccounted_call_without_a_price_counts_as_unbounded() -> None:
    figures = tallied([entry(DAY, state=State.UNACCOUNTED), entry(DAY, turn=2, state=State.UNACCOUNTED, worst=None)])

    assert (figures.unaccounted, figures.unaccounted_cost, figures.unbounded) == (2, WORST_CASE, 1)


def test_turns_of_an_erased_and_restarted_session_are_counted_separately() -> None:
    sessions = [[entry(DAY, turn=1, state=State.UNACCOUNTED), entry(DAY, turn=1), entry(DAY, turn=2)] for _ in range(3)]

    figures = tallied([call for session in sessions for call in session])

    assert (figures.turns, figures.sessions, figures.calls) == (6, 1, 9)


def test_settlement_replaces_unaccounted_in_the_tally() -> None:
    unaccounted = entry(DAY, state=State.UNACCOUNTED)

    figures = tallied([replace(unaccounted, call=settled(unaccounted))])

    assert (figures.unaccounted, figures.unaccounted_cost) == (0, Decimal(0))
    assert figures.cost == Decimal("0.0012")


def test_call_without_a_known_price_counts_as_unpriced() -> None:
    figures = tallied([entry(DAY, rates=None)])

    assert (figures.calls, figures.unpriced, figures.unpriced_turns, figures.usage.prompt_tokens) == (1, 1, 1, 1000)
    breakdowns = (*figures.models.values(), *figures.callers.values())
    assert [breakdown.unpriced_turns for breakdown in breakdowns] == [1, 1]
    assert figures.cost == 0


def test_costs_are_summed_exactly_beyond_float_precision() -> None:
    figures = tallied([entry_costing(DAY, "0.1", f"s{n}") for n in range(3)] + [entry_costing(DAY, "0.000000000001")])

    assert figures.cost == Decimal("0.300000000001")


def test_cache_savings_are_the_cost_difference_of_cached_tokens() -> None:
    figures = tallied([entry(DAY, prompt=1000, cached=640)])

    assert figures.saved == 640 * (Decimal("0.75") - Decimal("0.075")) / 1_000_000
    assert figures.cache_hit_rate == 0.64


def test_day_without_turns_has_averages_of_zero() -> None:
    assert Figures().cost_per_turn == 0
    assert Figures().cache_hit_rate == 0


def test_session_is_labelled_by_its_reference_or_by_the_hash_of_its_id() -> None:
    assert SessionCost(cost=Decimal(1), session="0123456789abcdef").label == "0123456789ab"
    assert SessionCost(cost=Decimal(1), session="secret", is_reference=False).label == sha256_hex("secret")[:12]


def test_week_average_covers_the_seven_days_before() -> None:
    history = tuple(DayCost(day=date(2024, 3, 1 + n), cost=Decimal(10**n)) for n in range(14))
    summary = DailySummary(
        day=date(2024, 3, 14), final=True, figures=Figures(), history=history, month_to_date=Decimal(0)
    )

    assert summary.day_before == 10**12
    assert summary.week_average == Decimal(sum(10**n for n in range(6, 13))) / 7
