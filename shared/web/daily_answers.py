"""A day's figures to response models of the contract. Imported for the first request of api/usage."""

from collections.abc import Mapping, Sequence
from datetime import date
from decimal import Decimal
from typing import Any, TypeVar

from shared.domain.daily import DailySummary, Day, Figures, UsageBreakdown
from shared.web.answers import token_usage
from shared.web.contract.usage import (
    AdjustmentAnswer,
    BudgetCostAnswer,
    CallerCost,
    CostliestSession,
    DailyAnswer,
    DayCostAnswer,
    DaysAnswer,
    DayTotals,
    ModelCost,
)

T = TypeVar("T")


def days_answer(days: Sequence[Day]) -> DaysAnswer:
    totals = [DayTotals(**_day(day.day, day.figures, day.final)) for day in days]
    return DaysAnswer(days=totals, cost_usd=sum((day.cost_usd for day in totals), Decimal(0)))


def daily_answer(summary: DailySummary) -> DailyAnswer:
    figures, optional = summary.figures, dict[str, Any]()
    if summary.budgets is not None:
        optional["budgets"] = [
            BudgetCostAnswer(
                caller=each.caller,
                name=each.name,
                limit_usd=each.limit,
                cost_usd=each.cost,
                reached_percent=each.reached,
            )
            for each in summary.budgets
        ]
    return DailyAnswer(
        **_day(summary.day, figures, summary.final),
        cost_per_turn_usd=_rounded(figures.cost_per_turn),
        cache_hit_rate=round(figures.cache_hit_rate, 4),
        cache_saved_usd=figures.saved,
        by_model=[
            ModelCost(deployment=deployment, model=model, **_breakdown(breakdown))
            for (deployment, model), breakdown in _costliest_first(figures.models)
        ],
        by_caller=[
            CallerCost(caller=name, **_breakdown(breakdown)) for name, breakdown in _costliest_first(figures.callers)
        ],
        costliest_sessions=[
            CostliestSession(
                session_id=None if each.is_reference else each.session,
                reference=each.session if each.is_reference else None,
                cost_usd=each.cost,
            )
            for each in figures.costliest
        ],
        previous_day_usd=summary.day_before,
        week_average_usd=_rounded(summary.week_average),
        month_to_date_usd=summary.month_to_date,
        month_forecast_usd=None if summary.month_forecast is None else _rounded(summary.month_forecast),
        adjustments=[
            AdjustmentAnswer(date=adjustment.day, difference_usd=adjustment.difference, cost_usd=adjustment.cost)
            for adjustment in summary.adjustments
        ],
        history=[DayCostAnswer(date=day.day, cost_usd=day.cost) for day in summary.history],
        **optional,
    )


def _day(day: date, figures: Figures, final: bool) -> dict[str, Any]:
    return {
        "date": day,
        "final": final,
        "cost_usd": figures.cost,
        "usage": token_usage(figures.usage),
        "turns": figures.turns,
        "calls": figures.calls,
        "sessions": figures.sessions,
        "failed_calls": figures.failed,
        "unaccounted_calls": figures.unaccounted,
        "unaccounted_usd": None if figures.unbounded else figures.unaccounted_cost,
        "stopped_calls": figures.stopped,
        "stopped_at_least_usd": figures.stopped_at_least,
        "stopped_at_most_usd": None if figures.stopped_unbounded else figures.stopped_at_most,
        "unpriced_turns": figures.unpriced_turns,
    }


def _breakdown(breakdown: UsageBreakdown) -> dict[str, Any]:
    return {
        "calls": breakdown.calls,
        "unpriced_turns": breakdown.unpriced_turns,
        "prompt_tokens": breakdown.prompt_tokens,
        "completion_tokens": breakdown.completion_tokens,
        "cost_usd": breakdown.cost,
    }


def _costliest_first(breakdowns: Mapping[T, UsageBreakdown]) -> list[tuple[T, UsageBreakdown]]:
    return sorted(breakdowns.items(), key=lambda item: item[1].cost, reverse=True)


def _rounded(average: Decimal) -> Decimal:
    """Ten decimals, because an average may have infinitely many digits."""
    return average.quantize(Decimal("1e-10"))
