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
    session_id: str
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
    unpriced_turns: int


class AdjustmentAnswer(BaseModel):
    """An earlier day whose cost this day's email corrected."""

    date: date
    difference_usd: Decimal
    cost_usd: Decimal


class DailyAnswer(DayTotals):
    cost_per_turn_usd: Decimal
    cache_hit_rate: float
    cache_saved_usd: Decimal
    by_model: list[ModelCost]
    by_caller: list[CallerCost]
    costliest_sessions: list[CostliestSession]
    previous_day_usd: Decimal
    week_average_usd: Decimal
    month_to_date_usd: Decimal
    adjustments: list[AdjustmentAnswer]
    history: list[DayCostAnswer]


class DaysAnswer(BaseModel):
    days: list[DayTotals]
    cost_usd: Decimal


class EmailAnswer(BaseModel):
    date: date
    sent_to: list[str]
