"""Why a limit refuses a call, with which words and until when."""

from collections.abc import Mapping
from dataclasses import replace
from datetime import UTC, date, datetime, timedelta
from decimal import Decimal
from typing import Any

import pytest

from shared.domain.calls import Call, Totals
from shared.domain.limits import Counter, Limit, Limits
from shared.domain.refusals import check_possible, check_session, refusal
from shared.errors import BudgetExceeded, ChatError, InvalidRequest, LimitReached

NOW = datetime(2026, 11, 28, 12, 30, 15, tzinfo=UTC)
MINUTE = NOW.replace(second=0)
CALL = Call(
    id="c",
    day=NOW.date(),
    deadline=NOW + timedelta(minutes=5),
    deployment="chat",
    worst_case=Decimal("0.2"),
    max_tokens=1_000,
    minute=MINUTE,
)
DAY = Limit(name="key:ann", usd_per_day=Decimal(1))
UNPRICED = replace(CALL, worst_case=None)


def counter(
    name: str = "key:ann",
    *,
    spent: str = "0",
    held: str = "0",
    running: str = "0",
    month_only: str = "0",
    tokens: int = 0,
    requests: int = 0,
) -> Counter:
    """`month_only`: spent before today."""
    return Counter(
        name=name,
        month=date(2026, 11, 1),
        since=NOW,
        minute=MINUTE,
        spent=Decimal(spent) + Decimal(month_only),
        held=Decimal(held),
        running=Decimal(running),
        day_spent=Decimal(spent),
        day_held=Decimal(held),
        day_running=Decimal(running),
        minute_tokens=tokens,
        minute_requests=requests,
    )


def refused(limit: Limit, before: Counter, call: Call = CALL) -> ChatError:
    error = refusal([(limit, before)], call, NOW)
    assert error is not None
    return error


def amounts(limit: str, spent: str, held: str) -> Mapping[str, Any]:
    return {"limit_usd": Decimal(limit), "spent_usd": Decimal(spent), "held_usd": Decimal(held)}


class TestBudgets:
    @pytest.mark.parametrize(("spent", "held"), [("0", "0"), ("0.8", "0"), ("0", "0.8"), ("0.5", "0.3")])
    def test_call_is_admitted_up_to_the_last_digit(self, spent: str, held: str) -> None:
        assert refusal([(DAY, counter(spent=spent, held=held))], CALL, NOW) is None

    @pytest.mark.parametrize(("spent", "held"), [("0.800000000000000001", "0"), ("0.8", "0.000000000000000001")])
    def test_call_is_refused_from_the_last_digit_on(self, spent: str, held: str) -> None:
        refused(DAY, counter(spent=spent, held=held))

    def test_used_up_budget_says_what_is_spent_and_when_it_is_reset(self) -> None:
        error = refused(DAY, counter(spent="0.85", held="0.1"))
        assert isinstance(error, BudgetExceeded)
        assert error.message == (
            "Your budget per day has no room for this call until 2026-11-29T00:00:00Z. Of 1 USD, 0.85 USD is spent"
            " and 0.1 USD held; this call may cost up to 0.2 USD."
        )
        assert error.details == {
            "limit": "usd_per_day",
            **amounts("1", "0.85", "0.1"),
            "resets_at": "2026-11-29T00:00:00Z",
        }
        assert error.retry_after == 11 * 3600 + 29 * 60 + 45

    def test_month_is_reset_on_its_first(self) -> None:
        limit = Limit(name="anonymous", usd_per_month=Decimal(1))
        error = refused(limit, counter("anonymous", month_only="0.9"))
        assert error.message.startswith("Your budget per month has no room for this call until 2026-12-01T00:00:00Z.")
        assert error.retry_after == 2 * 86_400 + 11 * 3600 + 29 * 60 + 45

    def test_december_is_reset_in_the_next_year(self) -> None:
        december = replace(counter(spent="0.9"), month=date(2026, 12, 1))
        [budget] = december.budgets(Limit(usd_per_month=Decimal(1)))
        assert budget.resets_at == datetime(2027, 1, 1, tzinfo=UTC)

    def test_total_says_nothing_of_what_others_spent(self) -> None:
        error = refused(Limit(name="total", usd_per_day=Decimal(1)), counter("total", spent="0.85", held="0.1"))
        assert isinstance(error, BudgetExceeded)
        assert error.message == (
            "The budget per day of all callers together has no room for this call until 2026-11-29T00:00:00Z."
        )
        assert error.details == {"resets_at": "2026-11-29T00:00:00Z"}

    @pytest.mark.parametrize(("name", "whose"), [("key:ann", "Your budget"), ("total", "The budget")])
    def test_budget_held_by_running_calls_is_worth_a_retry_in_seconds(self, name: str, whose: str) -> None:
        error = refused(Limit(name=name, usd_per_day=Decimal(1)), counter(name, spent="0.7", held="0.2", running="0.1"))
        assert isinstance(error, LimitReached)
        assert 1 <= (error.retry_after or 0) <= 5
        assert error.message.startswith(whose)
        assert "held by running calls" in error.message
        assert error.details == {}

    def test_budget_held_by_calls_that_have_ended_is_used_up(self) -> None:
        before = counter(spent="0.7", held="0.2", running="0.05")
        assert isinstance(refused(Limit(name="key:ann", usd_per_day=Decimal(1)), before), BudgetExceeded)

    @pytest.mark.parametrize("name", ["key:ann", "total"])
    def test_call_above_the_whole_budget_is_refused_with_advice(self, name: str) -> None:
        error = refused(Limit(name=name, usd_per_day=Decimal("0.1")), counter(name))
        assert isinstance(error, BudgetExceeded)
        assert "never has room for this call. Shorten it or, for chat, set a smaller max_tokens." in error.message
        assert error.retry_after is None  # waiting does not help

    def test_budget_of_0_refuses_every_call_that_may_cost_anything(self) -> None:
        nothing = Limit(name="key:ann", usd_per_day=Decimal(0))
        assert isinstance(refused(nothing, counter()), BudgetExceeded)
        assert refusal([(nothing, counter())], replace(CALL, worst_case=Decimal(0)), NOW) is None


class TestRates:
    def test_last_request_of_a_minute_is_admitted(self) -> None:
        limit = Limit(name="key:ann", requests_per_minute=3)
        assert refusal([(limit, counter(requests=2))], CALL, NOW) is None
        error = refused(limit, counter(requests=3))
        assert isinstance(error, LimitReached)
        assert error.message == "Your limit of 3 requests a minute is reached. Retry in the next minute."
        assert error.retry_after == 45
        assert (error.rates.requests, error.rates.tokens, error.rates.resets_at) == (
            0,
            0,
            MINUTE + timedelta(minutes=1),
        )

    def test_last_tokens_of_a_minute_are_admitted(self) -> None:
        limit = Limit(name="key:ann", tokens_per_minute=3_000)
        assert refusal([(limit, counter(tokens=2_000))], CALL, NOW) is None
        error = refused(limit, counter(tokens=2_001))
        assert isinstance(error, LimitReached)
        assert (error.retry_after, error.rates.tokens) == (45, 999)

    def test_minute_ahead_of_the_clock_is_waited_for(self) -> None:
        """Another instance's clock is ahead."""
        later = replace(counter(requests=1), minute=MINUTE + timedelta(minutes=2))
        assert refused(Limit(name="key:ann", requests_per_minute=1), later).retry_after == 165

    def test_total_says_nothing_of_others_requests(self) -> None:
        error = refused(Limit(name="total", requests_per_minute=7), counter("total", requests=7))
        assert isinstance(error, LimitReached)
        assert error.message == "The limit per minute of all callers together is reached. Retry in the next minute."
        assert error.rates is None


class TestSeveralReasons:
    LIMIT = Limit(name="key:ann", usd_per_day=Decimal(1), usd_per_month=Decimal(2), requests_per_minute=1)
    TOTAL = Limit(name="total", usd_per_month=Decimal(2))

    def test_used_up_month_counts_before_a_day_that_is_only_held(self) -> None:
        error = refused(self.LIMIT, counter(held="0.9", month_only="1.9"))
        assert isinstance(error, BudgetExceeded)
        assert error.details["limit"] == "usd_per_month"

    def test_later_reset_counts_before_an_earlier_one(self) -> None:
        error = refused(self.LIMIT, counter(spent="0.9", month_only="1"))
        assert error.details["limit"] == "usd_per_month"

    def test_used_up_total_counts_before_own_rate(self) -> None:
        counters = [(self.LIMIT, counter(requests=1)), (self.TOTAL, counter("total", spent="2"))]
        error = refusal(counters, CALL, NOW)
        assert isinstance(error, BudgetExceeded)
        assert error.message.startswith("The budget per month")

    def test_own_limit_counts_before_the_total_if_both_end_together(self) -> None:
        own = replace(self.LIMIT, usd_per_day=None)
        counters = [(own, counter(spent="2")), (self.TOTAL, counter("total", spent="2"))]
        error = refusal(counters, CALL, NOW)
        assert error is not None
        assert error.message.startswith("Your budget per month")


class TestNeverAdmitted:
    def test_unknown_price_is_refused_where_a_budget_applies(self) -> None:
        with pytest.raises(InvalidRequest, match=r"'chat' is not known.*PRICES") as error:
            check_possible([DAY], UNPRICED)
        assert error.value.param == "deployment"
        check_possible([Limit(requests_per_minute=1)], UNPRICED)

    def test_request_above_a_minutes_tokens_is_refused(self) -> None:
        check_possible([Limit(tokens_per_minute=1_000)], CALL)
        with pytest.raises(InvalidRequest, match="may use 1000 tokens, more than the 999") as error:
            check_possible([Limit(tokens_per_minute=999)], CALL)
        assert error.value.param == "max_tokens"


class TestSessions:
    LIMITS = Limits(session_usd=Decimal(1))

    def test_budget_of_a_session_is_of_its_life(self) -> None:
        totals = Totals(cost=Decimal("0.5"), unaccounted_calls=1, unaccounted=Decimal("0.3"))
        check_session(self.LIMITS, totals, CALL)
        with pytest.raises(
            BudgetExceeded, match=r"This session's budget of 1 USD .* up to 0.2 USD.*new session"
        ) as error:
            check_session(self.LIMITS, replace(totals, cost=Decimal("0.500000000000000001")), CALL)
        assert error.value.details == amounts("1", "0.500000000000000001", "0.3")
        assert error.value.retry_after is None

    @pytest.mark.parametrize("totals", [Totals(unpriced_turns=1), Totals(unbounded_calls=1, unaccounted_calls=1)])
    def test_session_of_unknown_cost_is_refused(self, totals: Totals) -> None:
        with pytest.raises(InvalidRequest, match="new session"):
            check_session(self.LIMITS, totals, CALL)

    def test_unknown_price_is_refused(self) -> None:
        with pytest.raises(InvalidRequest, match="PRICES"):
            check_session(self.LIMITS, Totals(), UNPRICED)

    def test_session_without_a_budget_is_not_limited(self) -> None:
        check_session(Limits(), Totals(unpriced_turns=1, cost=Decimal(10**6)), UNPRICED)
