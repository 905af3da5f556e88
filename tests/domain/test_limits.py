"""Limits of callers, and counters of what is used of them."""

from collections.abc import Iterable
from dataclasses import replace
from datetime import UTC, date, datetime, timedelta
from decimal import Decimal

import pytest
from hypothesis import given
from hypothesis import strategies as st

from shared.domain.calls import Call, State, Usage
from shared.domain.limits import Counter, Limit, Limits, held_by, spent_by, tokens_of
from shared.domain.principal import ANONYMOUS, Principal

ANN, BEN, READER = Principal.of_key("ann"), Principal.of_key("ben"), Principal.of_usage_key("reader")
MONTH = date(2026, 11, 1)
NOON = datetime(2026, 11, 28, 12, tzinfo=UTC)
CENTS = st.integers(0, 1_000).map(lambda cents: Decimal(cents) / 100)
STATES = st.sampled_from([State.UNACCOUNTED, State.SETTLED, State.FAILED])


class TestLimitsOfACaller:
    LIMITS = Limits(
        by_name={
            "total": Limit(name="total", usd_per_day=Decimal(9), max_tokens=700),
            "anonymous": Limit(name="anonymous", requests_per_minute=1),
            "key:ann": Limit(name="key:ann", max_tokens=500),
            "*": Limit(name="*", usd_per_day=Decimal(2), max_tokens=900),
        },
        session_max_tokens=600,
    )

    @pytest.mark.parametrize(
        ("principal", "names"),
        [(ANN, ["total"]), (BEN, ["key:ben", "total"]), (ANONYMOUS, ["anonymous", "total"])],
    )
    def test_calls_count_against_the_own_limit_and_the_total(self, principal: Principal, names: list[str]) -> None:
        assert [limit.name for limit in self.LIMITS.counted(principal)] == names

    @pytest.mark.parametrize(
        ("principal", "session", "maximum"),
        [(ANN, True, 500), (ANN, False, 500), (BEN, True, 600), (BEN, False, 700), (ANONYMOUS, False, 700)],
    )
    def test_smallest_maximum_of_an_answer_applies(self, principal: Principal, session: bool, maximum: int) -> None:
        assert self.LIMITS.max_tokens(principal, session=session) == maximum

    def test_caller_without_limits_is_not_limited(self) -> None:
        limits = Limits(by_name={"key:ann": Limit(name="key:ann", usd_per_day=Decimal(1))})
        assert (limits.counted(BEN), limits.own(BEN), limits.max_tokens(BEN, session=True)) == ((), None, None)
        assert limits.counted(ANONYMOUS) == ()

    def test_empty_limit_exempts_a_caller_from_that_of_all_others(self) -> None:
        limits = Limits(by_name={"*": Limit(name="*", usd_per_day=Decimal(1)), "key:ann": Limit(name="key:ann")})
        assert limits.counted(ANN) == ()
        assert [limit.name for limit in limits.counted(BEN)] == ["key:ben"]


class TestCounters:
    @given(st.lists(st.tuples(CENTS, CENTS, STATES, st.integers(0, 3 * 1440), st.booleans()), min_size=1, max_size=8))
    def test_counter_is_the_sum_of_its_calls_at_any_time(
        self, drawn: list[tuple[Decimal, Decimal, State, int, bool]]
    ) -> None:
        """Calls are opened in the order of their minutes, and raised late: some after the next, some at the end."""
        counter, rows, waiting = Counter(name="total", month=MONTH, since=NOON), list[tuple[Call, datetime]](), []
        for number, (worst, cost, state, after, late) in enumerate(sorted(drawn, key=lambda each: each[3])):
            minute = NOON - timedelta(days=5) + timedelta(minutes=after)
            opened = call(str(number), minute, worst)
            counter = counter.opened(opened, minute)
            rows.append((opened, minute))
            ended = raised(opened, state, cost)
            waiting.append((opened, ended, minute))
            for change in () if late else [waiting.pop()]:
                counter, rows = counter.raised(*change), replaced(rows, change[1])
            assert_sum(counter, rows)
        for change in waiting:
            counter, rows = counter.raised(*change), replaced(rows, change[1])
        assert_sum(counter, rows)

    def test_earlier_minute_changes_nothing(self) -> None:
        counter = Counter(name="total", month=MONTH, since=NOON, minute=NOON, minute_requests=3, day_spent=Decimal(1))
        assert counter.at(NOON - timedelta(days=1)) is counter
        assert counter.at(NOON) is counter

    def test_later_day_begins_with_nothing_used(self) -> None:
        before = Counter(
            name="total",
            month=MONTH,
            since=NOON,
            minute=NOON,
            spent=Decimal(3),
            held=Decimal(2),
            day_spent=Decimal(1),
            day_held=Decimal(2),
            minute_tokens=5,
            minute_requests=6,
        )
        later = before.at(NOON + timedelta(days=1))
        assert not any((later.day_spent, later.day_held, later.minute_tokens, later.minute_requests))
        assert (later.spent, later.held) == (Decimal(3), Decimal(2))
        assert before.at(NOON + timedelta(minutes=1)) == replace(
            before, minute=NOON + timedelta(minutes=1), minute_tokens=0, minute_requests=0
        )


class TestValues:
    def test_settled_call_of_unknown_cost_holds_its_worst_case(self) -> None:
        settled = replace(call("c", NOON, Decimal(2)), state=State.SETTLED, usage=Usage(prompt_tokens=7))
        assert (held_by(settled), spent_by(settled), tokens_of(settled)) == (Decimal(2), Decimal(0), 7)

    @pytest.mark.parametrize("state", [State.FAILED, State.ABANDONED])
    def test_call_that_was_never_billed_counts_for_nothing(self, state: State) -> None:
        free = replace(call("c", NOON, Decimal(2)), state=state)
        assert not any((held_by(free), spent_by(free), tokens_of(free)))

    def test_cost_above_the_worst_case_is_spent_whole(self) -> None:
        opened = call("c", NOON, Decimal(2))
        settled = replace(opened, state=State.SETTLED, cost=Decimal(5), usage=Usage(prompt_tokens=7))
        counter = Counter(name="total", month=MONTH, since=NOON).opened(opened, NOON).raised(opened, settled, NOON)
        assert (counter.spent, counter.held, counter.day_spent) == (Decimal(5), Decimal(0), Decimal(5))


def call(call_id: str, minute: datetime, worst_case: Decimal) -> Call:
    return Call(
        id=call_id,
        day=minute.date(),
        deadline=minute,
        deployment="chat",
        worst_case=worst_case,
        max_tokens=100,
        minute=minute,
    )


def raised(opened: Call, state: State, cost: Decimal) -> Call:
    if state is not State.SETTLED:
        return replace(opened, state=state)
    return replace(opened, state=state, cost=cost, usage=Usage(prompt_tokens=10))


def replaced(rows: Iterable[tuple[Call, datetime]], after: Call) -> list[tuple[Call, datetime]]:
    return [(after if row.id == after.id else row, minute) for row, minute in rows]


def assert_sum(counter: Counter, rows: list[tuple[Call, datetime]]) -> None:
    assert counter.minute
    today = [row for row, minute in rows if minute.date() == counter.minute.date()]
    minute = [row for row, minute in rows if minute == counter.minute]
    every = [row for row, _ in rows]
    assert (counter.spent, counter.held) == (sum(map(spent_by, every)), sum(map(held_by, every)))
    assert (counter.day_spent, counter.day_held) == (sum(map(spent_by, today)), sum(map(held_by, today)))
    assert (counter.minute_tokens, counter.minute_requests) == (sum(map(tokens_of, minute)), len(minute))
