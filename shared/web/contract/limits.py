"""api/limits, and what is left of a caller's budgets."""

from datetime import datetime
from decimal import Decimal

from pydantic import BaseModel


class RemainingAnswer(BaseModel):
    """What is left of a budget. `name`: usd_per_day or usd_per_month."""

    name: str
    remaining_usd: Decimal
    resets_at: datetime


class BudgetAnswer(RemainingAnswer):
    """A budget in USD. `held_usd`: the worst case of the calls whose cost is not known yet."""

    limit_usd: Decimal
    spent_usd: Decimal
    held_usd: Decimal


class RateAnswer(BaseModel):
    """A limit per minute. `name`: requests_per_minute or tokens_per_minute."""

    name: str
    limit: int
    remaining: int
    resets_at: datetime


class CallerLimits(BaseModel):
    """The limits of one caller, of all anonymous callers together (`anonymous`) or of all callers (`total`).
    `max_tokens`: the maximum of an answer; null if it is not limited. `fallback_deployment`: of chat while a budget is
    nearly used, if there is one."""

    caller: str
    budgets: list[BudgetAnswer]
    rates: list[RateAnswer]
    max_tokens: int | None
    fallback_deployment: str | None = None


class LimitsAnswer(BaseModel):
    """The caller's own limits. With a usage key: all limits that are set by name, and those of the other callers that
    made calls this month."""

    limits: list[CallerLimits]
