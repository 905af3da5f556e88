"""Adds up a day's ledger rows as they are read.

The rows of a session arrive together, ordered by turn. So constant memory is enough to count sessions and turns and to
find the costliest sessions.
"""

import heapq
from collections import Counter

from shared.domain.calls import NO_USAGE, ZERO, Call, LedgerEntry, State, Usage
from shared.domain.daily import ANONYMOUS_CALLER, MAX_COSTLIEST, Figures, SessionCost, UsageBreakdown
from shared.domain.pricing import saved


class Tally:
    """The sums of one part of a day, whose rows are added in key order."""

    def __init__(self) -> None:
        self._usage = NO_USAGE
        self._models: dict[tuple[str, str], UsageBreakdown] = {}
        self._callers: dict[str, UsageBreakdown] = {}
        self._costliest: list[SessionCost] = []
        self._session: str | None = None
        self._is_reference = False
        self._session_cost = ZERO
        self._turn: tuple[str, int] | None = None
        self._settled_steps = Counter[int]()  # settled calls by step, of the current turn number
        self._turns_of_number = 0  # turns with the current turn number
        self._unpriced_groups = set[object]()  # groups that already count the current turn as unpriced
        self._count = dict.fromkeys(("sessions", "turns", "unpriced_turns", "calls", *State), 0)
        self._unpriced = self._unbounded = self._stopped_unbounded = 0
        self._cost = self._saved = self._unaccounted_cost = self._stopped_at_least = self._stopped_at_most = ZERO

    def add(self, entry: LedgerEntry) -> None:
        """Add the next row. Abandoned calls are ignored: they were fenced before any spending."""
        call = entry.call
        if call.state is State.ABANDONED:
            return
        self._count_turn(entry)
        self._count["calls"] += 1
        self._count[call.state] += 1
        if call.state is State.SETTLED and call.usage is not None:
            self._add_settled(entry, call, call.usage)
        elif call.state is State.STOPPED:
            self._stopped_at_least += call.at_least or ZERO
            self._stopped_at_most += call.worst_case or ZERO
            self._stopped_unbounded += call.worst_case is None
        elif call.state is State.UNACCOUNTED:
            self._unaccounted_cost += call.worst_case or ZERO
            self._unbounded += call.worst_case is None

    def figures(self) -> Figures:
        self._end_session()
        return Figures(
            usage=self._usage,
            cost=self._cost,
            saved=self._saved,
            sessions=self._count["sessions"],
            turns=self._count["turns"],
            calls=self._count["calls"],
            open=self._count[State.OPEN],
            failed=self._count[State.FAILED],
            unaccounted=self._count[State.UNACCOUNTED],
            unaccounted_cost=self._unaccounted_cost,
            unbounded=self._unbounded,
            stopped=self._count[State.STOPPED],
            stopped_at_least=self._stopped_at_least,
            stopped_at_most=self._stopped_at_most,
            stopped_unbounded=self._stopped_unbounded,
            unpriced=self._unpriced,
            unpriced_turns=self._count["unpriced_turns"],
            models=self._models,
            callers=self._callers,
            costliest=tuple(sorted(self._costliest, reverse=True)),
        )

    def _count_turn(self, entry: LedgerEntry) -> None:
        """Count a session or a turn when a new one begins. A call without a session counts as one turn. Each step of a
        turn settles at most one call. A second one belongs to another turn with the same number, because the session
        was erased and created again."""
        if entry.session is None:
            self._begin_turn()
            return
        if entry.session != self._session:
            self._end_session()
            self._session, self._is_reference = entry.session, entry.call.reference is not None
            self._count["sessions"] += 1
        if (entry.session, entry.turn) != self._turn:
            self._turn, self._turns_of_number = (entry.session, entry.turn), 1
            self._settled_steps.clear()
            self._begin_turn()
        if entry.call.state is State.SETTLED:
            self._settled_steps[entry.call.step] += 1
            if self._settled_steps[entry.call.step] > self._turns_of_number:
                self._turns_of_number += 1
                self._begin_turn()

    def _begin_turn(self) -> None:
        self._count["turns"] += 1
        self._unpriced_groups.clear()

    def _add_settled(self, entry: LedgerEntry, call: Call, usage: Usage) -> None:
        cost = call.cost or ZERO
        self._cost += cost
        self._session_cost += cost if entry.session else ZERO
        self._unpriced += call.cost is None
        self._usage = self._usage.plus(usage)
        if call.rates:
            self._saved += saved(usage, call.rates)
        self._count["unpriced_turns"] += self._counts_as_unpriced_turn(call, "day")
        model, caller = (call.deployment, call.model or ""), entry.caller or ANONYMOUS_CALLER
        self._models[model] = self._models.get(model, UsageBreakdown()).plus(self._one(call, usage, model))
        self._callers[caller] = self._callers.get(caller, UsageBreakdown()).plus(self._one(call, usage, caller))

    def _one(self, call: Call, usage: Usage, group: object) -> UsageBreakdown:
        return UsageBreakdown(
            cost=call.cost or ZERO,
            calls=1,
            unpriced_turns=self._counts_as_unpriced_turn(call, group),
            prompt_tokens=usage.prompt_tokens,
            completion_tokens=usage.completion_tokens,
        )

    def _counts_as_unpriced_turn(self, call: Call, group: object) -> int:
        """1 for the first unpriced call of the current turn in the group, else 0."""
        if call.cost is not None or group in self._unpriced_groups:
            return 0
        self._unpriced_groups.add(group)
        return 1

    def _cost_of(self, session: str) -> SessionCost:
        return SessionCost(cost=self._session_cost, session=session, is_reference=self._is_reference)

    def _end_session(self) -> None:
        if self._session is not None and self._session_cost:
            heapq.heappush(self._costliest, self._cost_of(self._session))
            if len(self._costliest) > MAX_COSTLIEST:
                heapq.heappop(self._costliest)
        self._session, self._session_cost = None, ZERO
