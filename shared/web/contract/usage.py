"""api/usage."""

from datetime import date
from decimal import Decimal

from pydantic import BaseModel

from shared.web.contract.fields import TokenUsage


class ModelCost(BaseModel):
    deployment: str
    model: str
    calls: int
    unpriced_turns: int
    prompt_tokens: int
    completion_tokens: int
    cost_usd: Decimal


class CallerCost(BaseModel):
    caller: str
    calls: int
    unpriced_turns: int
    prompt_tokens: int
    completion_tokens: int
    cost_usd: Decimal


class CostliestSession(BaseModel):
    """`session_id` only for days before 0.3.0; later ones have the session's `reference`."""

    session_id: str | None
    reference: str | None
    cost_usd: Decimal


class DayCostAnswer(BaseModel):
    date: date
    cost_usd: Decimal


class DayTotals(BaseModel):
    """One UTC day. `final`: all its calls are closed and none can still be written; some may be unaccounted."""

    date: date
    final: bool
    cost_usd: Decimal
    usage: TokenUsage
    turns: int
    calls: int
    sessions: int
    failed_calls: int
    unaccounted_calls: int
    unaccounted_usd: Decimal | None
    stopped_calls: int
    stopped_at_least_usd: Decimal
    stopped_at_most_usd: Decimal | None
    unpriced_turns: int


class AdjustmentAnswer(BaseModel):
    """An earlier day whose cost this day's email corrected."""

    date: date
    difference_usd: Decimal
    cost_usd: Decimal


class BudgetCostAnswer(BaseModel):
    """A budget of LIMITS, as it is set now, and the cost of the settled calls of its day, or of its month up to and
    including the day. `caller`: total, anonymous or a caller's name; `name`: usd_per_day or usd_per_month;
    `reached_percent`: 80 or 100 if the cost reached it on this day."""

    caller: str
    name: str
    limit_usd: Decimal
    cost_usd: Decimal
    reached_percent: int | None


class DailyAnswer(DayTotals):
    """`month_forecast_usd`: the month's cost if the rest of it is like the days so far; null while it costs nothing.
    `budgets`: the total's, and those of the day's callers of which 80 % or more is spent; absent without LIMITS."""

    cost_per_turn_usd: Decimal
    cache_hit_rate: float
    cache_saved_usd: Decimal
    by_model: list[ModelCost]
    by_caller: list[CallerCost]
    costliest_sessions: list[CostliestSession]
    previous_day_usd: Decimal
    week_average_usd: Decimal
    month_to_date_usd: Decimal
    month_forecast_usd: Decimal | None
    budgets: list[BudgetCostAnswer] | None = None
    adjustments: list[AdjustmentAnswer]
    history: list[DayCostAnswer]


class DaysAnswer(BaseModel):
    days: list[DayTotals]
    cost_usd: Decimal


class EmailAnswer(BaseModel):
    date: date
    sent_to: list[str]
