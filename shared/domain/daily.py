"""The figures of a UTC day, alone and with the days before it."""

import heapq
from dataclasses import dataclass, field
from datetime import date, datetime
from decimal import Decimal
from typing import TypeVar

from shared.domain.budget_costs import BudgetCost
from shared.domain.calls import NO_USAGE, ZERO, Usage
from shared.domain.hashing import session_label

MAX_COSTLIEST = 10  # sessions listed for a day
ANONYMOUS_CALLER = "(no key)"  # how calls without a client key are listed
T = TypeVar("T")


@dataclass(frozen=True, slots=True, kw_only=True)
class UsageBreakdown:
    """The settled calls of one deployment and model, or of one caller. USD and tokens."""

    cost: Decimal = ZERO
    calls: int = 0
    unpriced_turns: int = 0
    prompt_tokens: int = 0
    completion_tokens: int = 0

    def plus(self, other: "UsageBreakdown") -> "UsageBreakdown":
        return UsageBreakdown(
            cost=self.cost + other.cost,
            calls=self.calls + other.calls,
            unpriced_turns=self.unpriced_turns + other.unpriced_turns,
            prompt_tokens=self.prompt_tokens + other.prompt_tokens,
            completion_tokens=self.completion_tokens + other.completion_tokens,
        )


@dataclass(frozen=True, slots=True, kw_only=True, order=True)
class SessionCost:
    """`session`: its reference, or its id in rows of 0.2.0 and earlier."""

    cost: Decimal
    session: str
    is_reference: bool = True

    @property
    def label(self) -> str:
        return session_label(self.session, is_reference=self.is_reference)


@dataclass(frozen=True, slots=True, kw_only=True)
class Figures:
    """A day's tokens, counts, and exact USD."""

    usage: Usage = NO_USAGE
    cost: Decimal = ZERO  # of settled calls
    saved: Decimal = ZERO  # by cached tokens, compared with the input rate
    sessions: int = 0
    turns: int = 0
    calls: int = 0
    open: int = 0
    failed: int = 0
    unaccounted: int = 0
    unaccounted_cost: Decimal = ZERO  # worst case of the unaccounted calls that have one
    unbounded: int = 0  # the other unaccounted calls
    stopped: int = 0
    stopped_at_least: Decimal = ZERO  # what the services had reported of the stopped calls
    stopped_at_most: Decimal = ZERO  # worst case of the stopped calls that have one
    stopped_unbounded: int = 0  # the other stopped calls
    unpriced: int = 0  # settled calls whose model's price is unknown
    unpriced_turns: int = 0
    models: dict[tuple[str, str], UsageBreakdown] = field(default_factory=dict)  # by (deployment, model)
    callers: dict[str, UsageBreakdown] = field(default_factory=dict)
    costliest: tuple[SessionCost, ...] = ()  # sessions, highest cost first

    @property
    def cost_per_turn(self) -> Decimal:
        return self.cost / self.turns if self.turns else ZERO

    @property
    def cache_hit_rate(self) -> float:
        """The fraction of prompt tokens that the service read from its cache, 0 to 1."""
        return self.usage.cached_tokens / self.usage.prompt_tokens if self.usage.prompt_tokens else 0.0

    def plus(self, other: "Figures") -> "Figures":
        """The sum of two parts of a day. No session may be in both."""
        return Figures(
            usage=self.usage.plus(other.usage),
            cost=self.cost + other.cost,
            saved=self.saved + other.saved,
            sessions=self.sessions + other.sessions,
            turns=self.turns + other.turns,
            calls=self.calls + other.calls,
            open=self.open + other.open,
            failed=self.failed + other.failed,
            unaccounted=self.unaccounted + other.unaccounted,
            unaccounted_cost=self.unaccounted_cost + other.unaccounted_cost,
            unbounded=self.unbounded + other.unbounded,
            stopped=self.stopped + other.stopped,
            stopped_at_least=self.stopped_at_least + other.stopped_at_least,
            stopped_at_most=self.stopped_at_most + other.stopped_at_most,
            stopped_unbounded=self.stopped_unbounded + other.stopped_unbounded,
            unpriced=self.unpriced + other.unpriced,
            unpriced_turns=self.unpriced_turns + other.unpriced_turns,
            models=_merged(self.models, other.models),
            callers=_merged(self.callers, other.callers),
            costliest=tuple(heapq.nlargest(MAX_COSTLIEST, (*self.costliest, *other.costliest))),
        )


def _merged(one: dict[T, UsageBreakdown], other: dict[T, UsageBreakdown]) -> dict[T, UsageBreakdown]:
    return {key: one.get(key, UsageBreakdown()).plus(other.get(key, UsageBreakdown())) for key in one | other}


@dataclass(frozen=True, slots=True, kw_only=True)
class Adjustment:
    """A change in an earlier day's cost after its summary email was sent."""

    day: date
    difference: Decimal
    cost: Decimal  # the day's cost now


@dataclass(frozen=True, slots=True, kw_only=True)
class Day:
    """A stored day. `mailed_cost`: its cost in the latest summary email. `adjustments`: those of the claimed email."""

    day: date
    figures: Figures
    final: bool
    mailed_cost: Decimal | None = None
    outcome: str | None = None  # sent, quiet (no calls, so no email) or not_wanted (no recipients)
    claim: str | None = None  # id of the claim under which a process sends, or sent, the email
    claimed_until: datetime | None = None
    adjustments: tuple[Adjustment, ...] = ()
    sent: datetime | None = None
    sent_to: tuple[str, ...] = ()
    sends: int = 0  # manual ones
    etag: str = field(default="", compare=False)


@dataclass(frozen=True, slots=True, kw_only=True)
class DayCost:
    day: date
    cost: Decimal


@dataclass(frozen=True, slots=True, kw_only=True)
class DailySummary:
    """A day's figures with the costs of the days before it. `month_forecast`: USD, None while the month costs nothing.
    `budgets`: costs beside budgets; None if there are none."""

    day: date
    final: bool
    figures: Figures
    history: tuple[DayCost, ...]  # 14 days, this day last
    month_to_date: Decimal
    month_forecast: Decimal | None = None
    budgets: tuple[BudgetCost, ...] | None = None
    adjustments: tuple[Adjustment, ...] = ()

    @property
    def day_before(self) -> Decimal:
        return self.history[-2].cost

    @property
    def week_average(self) -> Decimal:
        """USD per day over the seven days before this one."""
        before = self.history[-8:-1]
        return sum((day.cost for day in before), ZERO) / len(before)
