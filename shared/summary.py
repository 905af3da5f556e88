"""A day's ledger rows, tallied, and what is said of them. Pure.

Rows of one session lie together in a shard, in the order of their turns, so that sessions and turns are counted and
the costliest found without holding more than one of each: a day is summarised in constant memory.
"""

import heapq
from dataclasses import dataclass, field
from datetime import date
from decimal import Decimal
from typing import TypeVar

from shared.conversation import Call, Entry, State, Usage, hashed
from shared.pricing import saved

COSTLIEST = 10
NOBODY = "(no key)"  # calls whose caller showed no client key
ZERO = Decimal(0)
NO_USAGE = Usage()
T = TypeVar("T")


@dataclass(frozen=True, slots=True, kw_only=True)
class Share:
    """What one deployment and model, or one caller, came to. USD and tokens."""

    cost: Decimal = ZERO
    calls: int = 0
    unpriced: int = 0  # of the calls
    prompt_tokens: int = 0
    completion_tokens: int = 0

    def plus(self, other: "Share") -> "Share":
        return Share(
            cost=self.cost + other.cost,
            calls=self.calls + other.calls,
            unpriced=self.unpriced + other.unpriced,
            prompt_tokens=self.prompt_tokens + other.prompt_tokens,
            completion_tokens=self.completion_tokens + other.completion_tokens,
        )


@dataclass(frozen=True, slots=True, kw_only=True, order=True)
class SessionCost:
    cost: Decimal
    session_id: str

    @property
    def label(self) -> str:
        """How a session is named where its id, which opens it, must not stand."""
        return hashed(self.session_id)


@dataclass(frozen=True, slots=True, kw_only=True)
class Figures:
    """A UTC day in numbers: tokens, counts, and exact USD."""

    usage: Usage = NO_USAGE
    cost: Decimal = ZERO  # of settled calls
    saved: Decimal = ZERO  # by cached tokens, against the input rate
    sessions: int = 0
    turns: int = 0
    calls: int = 0
    open: int = 0
    failed: int = 0
    unaccounted: int = 0
    unaccounted_cost: Decimal = ZERO  # at worst, of those whose worst case is known
    unbounded: int = 0  # the others
    unpriced: int = 0  # settled calls whose model's price is not known
    models: dict[tuple[str, str], Share] = field(default_factory=dict)  # (deployment, model) ->
    callers: dict[str, Share] = field(default_factory=dict)
    costliest: tuple[SessionCost, ...] = ()  # the costliest first

    @property
    def cost_per_turn(self) -> Decimal:
        return self.cost / self.turns if self.turns else ZERO

    @property
    def cache_hit_rate(self) -> float:
        """The part of the prompt's tokens that came from the service's cache, 0 to 1."""
        return self.usage.cached_tokens / self.usage.prompt_tokens if self.usage.prompt_tokens else 0.0

    def plus(self, other: "Figures") -> "Figures":
        """Two shards together. No session is in both."""
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
            unpriced=self.unpriced + other.unpriced,
            models=_together(self.models, other.models),
            callers=_together(self.callers, other.callers),
            costliest=tuple(heapq.nlargest(COSTLIEST, (*self.costliest, *other.costliest))),
        )


@dataclass(frozen=True, slots=True, kw_only=True)
class Adjustment:
    """An earlier day's cost that has changed since it was mailed."""

    day: date
    difference: Decimal
    cost: Decimal  # what it comes to now


@dataclass(frozen=True, slots=True, kw_only=True)
class DayCost:
    day: date
    cost: Decimal


@dataclass(frozen=True, slots=True, kw_only=True)
class DailySummary:
    """A day's figures beside those of the days before it."""

    day: date
    final: bool
    figures: Figures
    history: tuple[DayCost, ...]  # the last 14 days, this one last
    month_to_date: Decimal
    adjustments: tuple[Adjustment, ...] = ()

    @property
    def day_before(self) -> Decimal:
        return self.history[-2].cost

    @property
    def week_average(self) -> Decimal:
        """USD a day over the seven days before."""
        before = self.history[-8:-1]
        return sum((day.cost for day in before), ZERO) / len(before)


class Tally:
    """One shard's rows, counted as they come, in key order."""

    def __init__(self) -> None:
        self._tokens = NO_USAGE
        self._models: dict[tuple[str, str], Share] = {}
        self._callers: dict[str, Share] = {}
        self._costliest: list[SessionCost] = []
        self._session: str | None = None
        self._session_cost = ZERO
        self._turn: tuple[str, int] | None = None
        self._turn_is_settled = False
        self._count = dict.fromkeys(("sessions", "turns", "calls", *State), 0)
        self._unpriced = self._unbounded = 0
        self._cost = self._saved = self._worst = ZERO

    def add(self, entry: Entry) -> None:
        """Take in the next row. Abandoned calls count as nothing: they were fenced off before they could spend."""
        call = entry.call
        if call.state is State.ABANDONED:
            return
        self._place(entry)
        self._count["calls"] += 1
        self._count[call.state] += 1
        if call.state is State.SETTLED and call.usage is not None:
            self._add_settled(entry, call, call.usage)
        elif call.state is State.UNACCOUNTED:
            self._worst += call.worst_case or ZERO
            self._unbounded += call.worst_case is None

    def figures(self) -> Figures:
        self._end_session()
        return Figures(
            usage=self._tokens,
            cost=self._cost,
            saved=self._saved,
            sessions=self._count["sessions"],
            turns=self._count["turns"],
            calls=self._count["calls"],
            open=self._count[State.OPEN],
            failed=self._count[State.FAILED],
            unaccounted=self._count[State.UNACCOUNTED],
            unaccounted_cost=self._worst,
            unbounded=self._unbounded,
            unpriced=self._unpriced,
            models=self._models,
            callers=self._callers,
            costliest=tuple(sorted(self._costliest, reverse=True)),
        )

    def _place(self, entry: Entry) -> None:
        """Notice where a session and a turn begin. A call without a session is a turn of its own. A turn settles one
        call at most: another is of a turn of the same number, in a session that was erased and begun again."""
        if entry.session_id is None:
            self._count["turns"] += 1
            return
        if entry.session_id != self._session:
            self._end_session()
            self._session = entry.session_id
            self._count["sessions"] += 1
        turn, is_settled = (entry.session_id, entry.turn), entry.call.state is State.SETTLED
        if turn != self._turn or (is_settled and self._turn_is_settled):
            self._turn, self._turn_is_settled = turn, False
            self._count["turns"] += 1
        self._turn_is_settled |= is_settled

    def _add_settled(self, entry: Entry, call: Call, usage: Usage) -> None:
        cost = call.cost or ZERO
        self._cost += cost
        self._session_cost += cost if entry.session_id else ZERO
        self._unpriced += call.cost is None
        self._tokens = self._tokens.plus(usage)
        if call.rates:
            self._saved += saved(usage, call.rates)
        share = Share(
            cost=cost,
            calls=1,
            unpriced=int(call.cost is None),
            prompt_tokens=usage.prompt_tokens,
            completion_tokens=usage.completion_tokens,
        )
        model, caller = (call.deployment, call.model or ""), entry.caller or NOBODY
        self._models[model] = self._models.get(model, Share()).plus(share)
        self._callers[caller] = self._callers.get(caller, Share()).plus(share)

    def _end_session(self) -> None:
        if self._session is not None and self._session_cost:
            heapq.heappush(self._costliest, SessionCost(cost=self._session_cost, session_id=self._session))
            if len(self._costliest) > COSTLIEST:
                heapq.heappop(self._costliest)
        self._session, self._session_cost = None, ZERO


def _together(one: dict[T, Share], other: dict[T, Share]) -> dict[T, Share]:
    return {key: one.get(key, Share()).plus(other.get(key, Share())) for key in one | other}
