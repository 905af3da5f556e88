#!/usr/bin/env python3
"""Executable specification of the limits: explores every interleaving and checks that no limit is ever exceeded.

    python3 docs/limits_protocol.py              explore the worlds; exit 0 if all invariants hold
    python3 docs/limits_protocol.py --break X    the same without rule X (see BREAKS); exit 1, print the shortest trace
    python3 docs/limits_protocol.py --break all  each rule in turn; exit 0 if every rule is needed
    python3 docs/limits_protocol.py --world W    only this world (names: --help)
    python3 docs/limits_protocol.py --big        larger bounds as well (6 minutes on one core, 0.5 GB)

docs/protocol.py specifies how a session (S) and the ledger (L) agree on what a call cost. This file adds the limits.
A process may crash or stall at any step; the response to a write may be lost; a write that timed out may land later.
Clocks differ between instances and are not trusted.

The ledger row is the hold. The limited calls of a month lie in one partition of the ledger, together with a row for
each limit, its counter. A transaction writes ledger rows and the counters of their limits, guarded by the ETag of each
row that it writes; it is one step here, because a 412 only means to read again. Two equations always hold for a limit:
    spent + held = the sum over its ledger rows of the cost (settled), or the worst case (may still have a cost)
    a call is admitted if and only if spent + held + its worst case <= limit

A turn:    reserve in S -> open [row 'open', held + worst] -> call the model -> settle S -> answer
           -> settle L [row 'settled', held - worst, spent + cost]
Refused:   the call becomes 'failed' in S, which frees the session; there is no ledger row.
Recovery:  as in protocol.py. Its fence is the row alone, because an abandoned call holds nothing. It also looks at open
           rows whose session says failed: their insert landed after the turn had given up.
Rising:    a row's state only rises, and the counters change by the difference between the old and the new state, in the
           same transaction. So the hold is given back once, by any process and however often it tries.
           Open, unaccounted and stopped calls hold their worst case; abandoned and failed calls hold nothing.
           The counters that change are those of the limits that the row names, not those configured where it is raised.
Retry:     the new call is admitted like any other. Within a month its row is inserted in the transaction that raises
           the old row; in a later month, or if the new call is refused, the old row is raised first.
Costs:     a settlement is never refused. Above the worst case the true cost counts: spent + held exceeds the limit by
           what such calls cost above their worst cases, by nothing else, and the next call is refused until it fits.
           A settled call whose cost is unknown keeps holding its worst case.
           A call whose price is unknown has no worst case in USD. Where a limit in USD applies, it is refused before
           the session is reserved; elsewhere only its tokens and requests count.
Group:     calls that wait in a process are opened and settled in one transaction, each checked against what those
           before it leave. If its response is lost, each row is read and raised alone. It may still land late: then
           all of it, or nothing if one of its rows or counters was written in between.

A counter covers a month, one day and one minute. `at` is the latest minute in which a call was admitted, and only
rises; the day is that minute's.
  - A call's minute is read once, when the session is reserved, and determines its day and month. The call counts, in
    all its limits alike, in the latest of its own minute and theirs.
  - If that is in a later day, S is first given a new call of that day in place of the old one, because a row must be
    where its session looks for it. If S no longer holds the old call, the turn ends.
  - A later minute starts without tokens and requests, a later day without amounts. Raising a row always changes the
    month, and the day and the minute only if the counter is still at those of the call.
  - A counter has what is used, never what is left: instances may be configured differently, and each admits by its own
    configuration. Tokens count as the worst case until the call is settled, then as used.

World `hold` has one limit and models leases and recovery step by step. World `one` has several limits in one partition,
days, months and minutes; there recovery takes any of its steps at any moment. `stopped` comes with stopping an answer.
Beyond the rate of one partition, the proven way is shards that draw allowances from a limit; it is not built, and
docs/scale.md says when it is needed.

Not modelled:
  - `running` and `day_running` of a counter: the part of what is held that is of open calls. It only chooses which of
    two refusals a call gets (`rate_limited` if it fits once they are settled, else `budget_exceeded`), not whether.
  - Refusal from a counter that was read up to 1 s ago, without a transaction. It may refuse a call that fits by now; it
    admits none, so it can't exceed a limit.
"""

import argparse
import sys
import time
from collections import deque
from collections.abc import Callable, Iterator
from concurrent.futures import ProcessPoolExecutor
from functools import cache
from typing import Any, NamedTuple, Protocol, TypeAlias

WORST, COST, ABOVE = 2, 1, 3  # USD, or tokens: a call's worst case, its usual cost, a cost above the worst case
RANK = {"open": 0, "abandoned": 1, "unaccounted": 2, "stopped": 3, "settled": 4, "failed": 4}
HOLDS = ("open", "unaccounted", "stopped")
OVER = ("end", "dead")
BREAKS = {  # rule: (the world that shows it, what happens without it)
    "together": ("hold", "a row is raised in one transaction and its counter changed in the next"),
    "guard": ("hold", "the counter is written without the ETag that was read"),
    "rise": ("hold", "settling gives the hold back without checking the row's state"),
    "keep": ("hold", "an unaccounted call holds nothing"),
    "again": ("hold", "a retry's new call is not checked against the limit"),
    "free": ("hold", "a refused turn leaves its session to the lease"),
    "fence": ("hold", "recovery abandons a call without first inserting its row"),
    "failed-row": ("hold", "recovery ignores an open row whose session says failed"),
    "true-cost": ("hold, costs", "a cost above the worst case is settled as the worst case"),
    "settles": ("hold, costs", "a settlement for which the limit has no room is refused"),
    "unknown-cost": ("hold, costs", "a settled call whose cost is unknown holds nothing"),
    "all-limits": ("one", "a row is in one transaction with one of its limits, and the other limit in the next"),
    "row-guard": ("one, groups", "rows are written without the ETags that were read"),
    "limit-guard": ("one, groups", "counters are written without the ETags that were read when a call is opened"),
    "raise-guard": ("one, groups", "counters are written without the ETags that were read when a row is raised"),
    "row-names": ("one, limits differ", "raising changes the limits configured there, not those that the row names"),
    "at-rises": ("one, retries", "a clock that is behind sets a counter back to its own day"),
    "month-alone": ("one", "a call whose clock is behind counts in the month alone"),
    "new-day": ("one, limits differ", "a later day starts with the amounts of the day before"),
    "own-day": ("one, retries", "raising the row of an earlier day's call changes the limit's present day"),
    "own-call": ("one, retries", "a call counts in a later day without a new call in its session"),
    "lost-session": ("one", "the new call of a later day is added to a session that recovery has freed"),
    "group-day": ("one, groups", "a call goes in one transaction with a call that starts a later day"),
    "group-check": ("one, groups", "a group's calls are checked against what was read, not what those before leave"),
    "group-each": ("one, groups", "after a lost response a process reads its own row only, and raises the group again"),
    "one-free": ("one", "a refused turn leaves its session to the lease"),
    "minute-rises": ("one, minutes", "a clock that is behind sets a counter back to its own minute"),
    "own-minute": ("one, minutes", "raising the row of an earlier minute's call changes the limit's present minute"),
    "one-minute": ("one, limits differ", "each limit counts a call in its own minute, not in the latest of them all"),
    "one-reading": ("one, retries", "the minute is read again when a call is opened, after its day and month"),
    "new-month": ("one, months", "a retry's new row stays in the month of the old row, to be in its transaction"),
    "stopped-rank": ("one, stops", "stopped has the rank of unaccounted"),
    "stopped-look": ("one, stops", "recovery ignores stopped rows"),
    "stopped-holds": ("one, stops", "a stopped call holds nothing"),
    "price": ("one, prices", "a call whose price is unknown is opened under a limit in USD, and holds nothing"),
    "price-first": ("one, prices", "a call whose price is unknown is refused after its session is reserved"),
}
Steps: TypeAlias = Iterator[tuple[str, Any]]  # label and next state


class Status(NamedTuple):
    """What a session or a ledger row says about a call."""

    state: str
    cost: int | None = 0  # of a settled call; None: unknown

    def __str__(self) -> str:
        cost = "unknown" if self.cost is None else self.cost
        return f"settled ({cost})" if self.state == "settled" else self.state

    @property
    def rank(self) -> int:
        return RANK[self.state]


OPEN, ABANDONED, UNACCOUNTED, FAILED, STOPPED = map(Status, ("open", "abandoned", "unaccounted", "failed", "stopped"))


def replaced(values: tuple[Any, ...], index: int, value: Any) -> tuple[Any, ...]:
    return (*values[:index], value, *values[index + 1 :])


def excess(status: Status | None) -> int:
    """The part of a settled cost that is above the worst case."""
    return max(0, (status.cost or 0) - WORST) if status else 0


def covered(status: Status | None, bill: int) -> int:
    """The part of a bill that spent + held must cover: all of it once the cost is settled, at most the worst case
    before that, or if the cost stays unknown."""
    return bill if status and status.cost else min(bill, WORST)


# ---- hold: one limit, leases and recovery ----------------------------------------------------------------------------


class Session(NamedTuple):
    calls: tuple[tuple[int, Status], ...] = ()
    holder: int | None = None  # the call that holds the lease
    expired: bool = False
    erased: bool = False

    def status(self, call: int) -> Status | None:
        return dict(self.calls).get(call)

    def raised(self, call: int, to: Status) -> "Session":
        now = self.status(call)
        if now is None or to.rank <= now.rank:
            return self
        calls = tuple((c, to if c == call else status) for c, status in self.calls)
        return self._replace(calls=calls, holder=None if self.holder == call else self.holder)


class Process(NamedTuple):
    at: str
    call: int = -1  # that it opens or recovers
    outcome: Status = OPEN  # that it settles
    read: tuple[int, int] = (0, 0)  # spent and held, with a rule broken


class HoldState(NamedTuple):
    sessions: tuple[Session, ...]  # one for each turn
    rows: tuple[Status | None, ...]  # the ledger, by call: the first of each turn, then their retries
    spent: int
    held: int
    late: frozenset[int]  # calls whose insert timed out and may still land
    billed: frozenset[tuple[int, int]]  # call, amount
    refused: frozenset[int]
    processes: tuple[Process, ...]  # turns, then the timer
    faults: int  # lost responses, retries and erasures still allowed

    def moved(self, me: int, at: str, session: Session | None = None, faults: int = 0, **fields: Any) -> "HoldState":
        """Process `me` has taken a step; `session`: as it is now for the call of the process."""
        process = self.processes[me]
        moved = Process(at) if at in OVER else process._replace(at=at, **fields)
        turn = process.call % len(self.sessions)
        sessions = self.sessions if session is None else replaced(self.sessions, turn, session)
        processes = replaced(self.processes, me, moved)
        return self._replace(processes=processes, sessions=sessions, faults=self.faults - faults)


class Hold:
    def __init__(
        self,
        broken: str = "",
        limits: tuple[int, ...] = (3, 3),  # by turn: as configured where it runs
        faults: int = 1,
        bills: tuple[int, ...] = (COST,),
        unknown: bool = False,  # a settled call's cost may be unknown
    ) -> None:
        self.broken, self.limits, self.faults, self.bills, self.unknown = broken, limits, faults, bills, unknown
        self.turns = len(limits)
        self.violated = cache(self._violated)

    def start(self) -> HoldState:
        processes = (*(Process("reserve", call=i) for i in range(self.turns)), Process("idle"))
        rows = (None,) * self.turns * 2
        return HoldState(
            (Session(),) * self.turns, rows, 0, 0, frozenset(), frozenset(), frozenset(), processes, self.faults
        )

    def held(self, status: Status | None) -> int:
        if status is None or (status == UNACCOUNTED and self.broken == "keep"):
            return 0
        return WORST if status.state in HOLDS or (status.cost is None and self.broken != "unknown-cost") else 0

    def raise_row(self, state: HoldState, call: int, to: Status) -> HoldState:
        """The transaction of row and limit. A late insert fails if its row is there or the limit was written."""
        now = before = state.rows[call]
        if now is not None and to.rank <= now.rank:
            if self.broken != "rise":
                return state
            before = OPEN
        if self.broken == "true-cost" and to.cost:
            to = to._replace(cost=min(to.cost, WORST))
        held = state.held + self.held(to) - self.held(before)
        spent = state.spent + (to.cost or 0) - (before.cost or 0 if before else 0)
        if self.broken == "settles" and to.cost and spent + held > max(self.limits):
            return state
        late = state.late - {call} if (spent, held) == (state.spent, state.held) else frozenset()
        return state._replace(rows=replaced(state.rows, call, to), spent=spent, held=held, late=late)

    def steps(self, state: HoldState) -> Steps:
        for i, session in enumerate(state.sessions):
            if session.holder is not None and not session.expired:
                expired = session._replace(expired=True)
                yield f"lease {i} expires", state._replace(sessions=replaced(state.sessions, i, expired))
            if state.faults and session.calls and not session.erased:
                erased = replaced(state.sessions, i, Session(erased=True))
                yield f"session {i} erased", state._replace(sessions=erased, faults=state.faults - 1)
        for call in state.late:
            yield f"the insert of call {call} lands late", self.raise_row(state, call, OPEN)
        for me in range(self.turns + 1):
            name = "timer" if me == self.turns else f"turn {me}"
            for label, after in self.process_steps(state, me):
                yield f"{name}: {label}", after

    def process_steps(self, state: HoldState, me: int) -> Steps:
        process, broken = state.processes[me], self.broken
        call, outcome = process.call, process.outcome
        session, row = state.sessions[call % self.turns], state.rows[call]

        if process.at not in (*OVER, "idle"):
            yield "crash", state.moved(me, "dead")
        match process.at:
            case "reserve":
                yield "reserve", state.moved(me, "open", session=Session(((call, OPEN),), holder=call))
            case "open":
                yield "too late to open", state.moved(me, "settle-S", outcome=FAILED)
                admitted = state.spent + state.held + WORST <= self.limits[me]
                if row is not None:
                    yield "row already exists", state.moved(me, "opened?")
                elif broken == "guard":
                    yield "read the limit", state.moved(me, "open unguarded", read=(state.spent, state.held))
                elif admitted or (broken == "again" and call >= self.turns):
                    opened = self.raise_row(state, call, OPEN)
                    yield "open", opened.moved(me, "call")
                    if state.faults:
                        yield "open, response lost", opened.moved(me, "opened?", faults=1)
                        yield "open, timed out", state._replace(late=state.late | {call}).moved(me, "opened?", faults=1)
                else:
                    refused = state._replace(refused=state.refused | {call})
                    yield "refused", refused.moved(me, "end" if broken == "free" else "settle-S", outcome=FAILED)
            case "open unguarded":
                spent, held = process.read
                if row is None and spent + held + WORST <= self.limits[me]:
                    rows = replaced(state.rows, call, OPEN)
                    yield "open", state._replace(rows=rows, spent=spent, held=held + WORST).moved(me, "call")
                else:
                    yield "refused", state.moved(me, "settle-S", outcome=FAILED)
            case "opened?":
                at = "call" if row == OPEN else "open" if row is None else "settle-S"
                yield "read back", state.moved(me, at, outcome=FAILED if at == "settle-S" else OPEN)
                yield "read back, too late", state.moved(me, "settle-S", outcome=FAILED)
            case "call":
                for bill in self.bills:
                    yield (
                        f"model bills {bill}",
                        state._replace(billed=state.billed | {(call, bill)}).moved(me, "billed"),
                    )
                yield "model rejects the call, not billed", state.moved(me, "settle-S", outcome=FAILED)
                yield "model call fails, possibly billed", state.moved(me, "settle-S", outcome=UNACCOUNTED)
            case "billed":
                cost = dict(state.billed)[call]
                yield "usage arrives", state.moved(me, "settle-S", outcome=Status("settled", cost))
                if self.unknown:
                    yield "usage arrives, without a rate", state.moved(me, "settle-S", outcome=Status("settled", None))
                yield "usage never arrives", state.moved(me, "settle-S", outcome=UNACCOUNTED)
                if call < self.turns and state.faults and session.holder == call and session.status(call) == OPEN:
                    new = call + self.turns
                    both = session.raised(call, UNACCOUNTED)
                    both = both._replace(holder=new, calls=(*both.calls, (new, OPEN)))
                    yield (
                        "retry: old call unaccounted, new call open",
                        state.moved(me, "retry-L", session=both, faults=1),
                    )
            case "retry-L":
                raised = self.raise_row(state, call, UNACCOUNTED)
                yield "raise the old row to unaccounted", raised.moved(me, "open", call=call + self.turns)
            case "settle-S":
                over = row is None and call in state.refused
                after = session.raised(call, outcome)
                yield f"settle session as {outcome}", state.moved(me, "end" if over else "settle-L", session=after)
            case "settle-L":
                label = f"settle ledger as {outcome}"
                if row is None:
                    yield f"{label}, too late to insert a row", state.moved(me, "end")
                raised = self.raise_row(state, call, outcome)
                if broken == "together" and raised != state:
                    read = (raised.spent, raised.held)
                    yield f"{label}, the row", state._replace(rows=raised.rows).moved(me, "limit", read=read)
                else:
                    yield label, raised.moved(me, "end")
                    if state.faults:
                        yield f"{label}, response lost", raised.moved(me, "settle-L", faults=1)
            case "limit":
                yield "the limit", state._replace(spent=process.read[0], held=process.read[1]).moved(me, "end")
            case "idle":  # the timer picks any row that is not final, or a session's next turn recovers its call
                for victim, status in enumerate(state.rows):
                    behind = state.sessions[victim % self.turns]
                    if status in (OPEN, UNACCOUNTED) or (behind.holder == victim and behind.expired):
                        yield f"check call {victim}", state.moved(me, "look", call=victim)
            case "look":
                if row is None and broken != "fence":
                    fenced = state._replace(rows=replaced(state.rows, call, ABANDONED))
                    yield "fence: insert an abandoned row", fenced.moved(me, "abandon")
                elif row in (None, ABANDONED):
                    yield "call is abandoned", state.moved(me, "abandon")
                else:
                    yield f"row is {row}", state.moved(me, "raise-S")
            case "abandon":
                yield (
                    "raise session to abandoned",
                    state.moved(me, "idle", session=session.raised(call, ABANDONED), call=-1),
                )
            case "raise-S":
                now = session.status(call)
                if (session.holder == call and not session.expired) or (now == FAILED and broken == "failed-row"):
                    yield "change nothing", state.moved(me, "idle", call=-1)
                elif now == OPEN:
                    raised_session = session.raised(call, UNACCOUNTED)
                    yield "raise session", state.moved(me, "raise-L", session=raised_session, outcome=UNACCOUNTED)
                else:
                    yield f"session says {now}", state.moved(me, "raise-L", outcome=now or UNACCOUNTED)
            case "raise-L":
                raised = self.raise_row(state, call, outcome)
                yield f"raise row to {outcome}", raised.moved(me, "idle", call=-1, outcome=OPEN)

    def violation(self, state: HoldState) -> str | None:
        for call in state.refused:
            ended = state.processes[call % self.turns].at == "end"
            if ended and state.sessions[call % self.turns].holder == call:
                return f"call {call} was refused, its turn has ended, and its session is locked"
        return self.violated(state._replace(processes=(), faults=0))

    def _violated(self, state: HoldState) -> str | None:
        spent = sum(row.cost or 0 for row in state.rows if row)
        held = sum(map(self.held, state.rows))
        if (state.spent, state.held) != (spent, held):
            return f"the limit says spent {state.spent}, held {state.held}; its rows say {spent}, {held}"
        if spent + held > max(self.limits) + sum(map(excess, state.rows)):
            return f"spent {spent} + held {held} exceeds the limit by more than costs exceed their worst cases"
        bill = sum(covered(state.rows[call], amount) for call, amount in state.billed)
        if bill > spent + held:
            return f"{bill} was billed, but spent + held is {spent + held}"
        for call, _ in state.billed:
            if (row := state.rows[call]) is None or row.state not in ("open", "unaccounted", "settled"):
                return f"call {call} was billed, but its row is {row or 'missing'}"
        return self.violated_after_recovery(self.recovered(state), dict(state.billed))

    def recovered(self, state: HoldState) -> HoldState:
        """All processes have ended, leases have expired, a late insert has landed; recovery has looked at each call."""
        state = state._replace(sessions=tuple(session._replace(expired=True) for session in state.sessions))
        if state.late:
            state = self.raise_row(state, min(state.late), OPEN)
        for call in range(self.turns * 2):
            if state.rows[call] in (OPEN, UNACCOUNTED) or state.sessions[call % self.turns].holder == call:
                state = state._replace(processes=(Process("end"),) * self.turns + (Process("look", call=call),))
                while state.processes[self.turns].at != "idle":
                    state = next(s for label, s in self.process_steps(state, self.turns) if label != "crash")
        return state

    def violated_after_recovery(self, state: HoldState, billed: dict[int, int]) -> str | None:
        for call, row in enumerate(state.rows):
            status = state.sessions[call % self.turns].status(call)
            if row == OPEN:
                return f"after recovery: {WORST} is still held for call {call}, which is over"
            if row == UNACCOUNTED and status not in (UNACCOUNTED, None):
                return f"after recovery: the row of call {call} is unaccounted, its session says {status}"
            if status == UNACCOUNTED and (row is None or row.state not in ("unaccounted", "settled")):
                return f"after recovery: the session says unaccounted of call {call}, its row is {row}"
            if row and row.state == "settled" and (call not in billed or row.cost not in (billed[call], None)):
                return f"call {call} is {row}, but its bill is {billed.get(call)}"
            if call in state.refused and status not in (FAILED, ABANDONED, None):
                return f"call {call} was refused, its session says {status}"
            if call in billed and (row is None or row.state not in ("unaccounted", "settled")):
                return f"after recovery: call {call} was billed, but its row is {row or 'missing'}"
        if any(session.holder is not None for session in state.sessions):
            return "after recovery: a session is still locked"
        return None


# ---- one: every limited call of a month in one partition, with all its limits ----------------------------------------


class Setting(NamedTuple):
    """A limit as an instance is configured. None: unlimited."""

    limit: int
    minute: int | None  # tokens
    day: int | None  # USD
    month: int | None  # USD

    def __str__(self) -> str:
        return f"limit {self.limit} ({self.minute} a minute, {self.day} a day, {self.month} a month)"


class LimitRow(NamedTuple):
    spent: int = 0
    held: int = 0
    at: int = -1  # the latest minute in which a call was admitted, and so the row's day; only rises
    day_spent: int = 0
    day_held: int = 0
    minute_tokens: int = 0
    minute_requests: int = 0

    def __str__(self) -> str:
        minute = f"minute {self.at}: {self.minute_tokens} tokens, {self.minute_requests} requests"
        return f"month {self.spent} + {self.held}, day {self.day_spent} + {self.day_held}, {minute}"

    def within(self, setting: Setting) -> bool:
        amounts = self.minute_tokens, self.day_spent + self.day_held, self.spent + self.held
        return all(limit is None or amount <= limit for amount, limit in zip(amounts, setting[1:], strict=True))


class LedgerRow(NamedTuple):
    status: Status
    month: int = -1
    at: int = -1  # the minute, and so the day, in which it counts
    limits: tuple[int, ...] = ()  # in which it counts
    worst: int = WORST  # USD; 0 if the price is unknown

    def __str__(self) -> str:
        return f"{self.status} (month {self.month}, minute {self.at})"


class Call(NamedTuple):
    """As in its session."""

    minute: int  # read once, at its reservation; determines day and month
    status: Status = OPEN


class Turn(NamedTuple):
    at: str
    call: int = 0  # which of its session's
    minute: int = -1  # the call's
    old: int = -1  # the call that it retries, until that one's row is raised
    outcome: Status = OPEN
    group: tuple[Any, ...] = ()  # with a rule broken: what else was in its transaction


class Transaction(NamedTuple):
    rows: tuple[tuple[tuple[int, int], LedgerRow], ...]  # by turn and call
    limits: tuple[tuple[tuple[int, int], LimitRow], ...]  # by month and limit

    def __str__(self) -> str:
        return ", ".join(f"row of turn {turn}, call {call}: {row}" for (turn, call), row in self.rows)


class OneState(NamedTuple):
    sessions: tuple[tuple[Call, ...] | None, ...]  # one for each turn; None: erased
    rows: tuple[tuple[LedgerRow | None, ...], ...]  # the ledger, by turn and call
    limits: tuple[tuple[LimitRow, ...], ...]  # by month and limit
    late: tuple[Transaction, ...]  # timed out, and may still land
    billed: frozenset[tuple[int, int, int]]  # turn, call, amount
    turns: tuple[Turn, ...]
    configured: tuple[int, ...]  # which of its configurations the instance of each turn has by now
    problem: str  # what a step did that it must not
    faults: int  # lost responses and erasures still allowed

    def moved(self, me: int, at: str, **fields: Any) -> "OneState":
        turn = Turn(at) if at in OVER else self.turns[me]._replace(at=at, **fields)
        return self._replace(turns=replaced(self.turns, me, turn))

    def status(self, turn: int, call: int) -> Status | None:
        calls = self.sessions[turn]
        return calls[call].status if calls and call < len(calls) else None


class One:
    """Turn i runs on instance i. Any instance may have any clock, and recovery may take any step at any moment."""

    def __init__(
        self,
        broken: str,
        settings: tuple[tuple[tuple[Setting, ...], ...], ...],  # by turn: the configurations of its instance, in order
        minutes: tuple[tuple[int, int], ...] = ((0, 0), (0, 0), (1, 0)),  # day and month of each
        faults: int = 0,
        retries: bool = False,
        stops: bool = False,
        groups: bool = False,
        bills: tuple[int, ...] = (COST,),
        unknown: bool = False,  # a settled call's cost may be unknown
        unpriced: tuple[int, ...] = (),  # turns whose price is unknown
    ) -> None:
        self.broken, self.settings, self.minutes, self.faults = broken, settings, minutes, faults
        self.retries, self.stops, self.groups = retries, stops, groups
        self.bills, self.unknown, self.unpriced = bills, unknown, unpriced
        self.calls = 1 + max(day for day, _ in minutes) + retries  # of a turn: one more for each later day
        every = [setting for configurations in settings for each in configurations for setting in each]
        self.limits = 1 + max(setting.limit for setting in every)
        self.highest = [self.highest_of([s for s in every if s.limit == limit]) for limit in range(self.limits)]
        self.violated = cache(self._violated)

    @staticmethod
    def highest_of(settings: list[Setting]) -> Setting:
        parts = [[s[part] for s in settings] for part in (1, 2, 3)]
        return Setting(settings[0].limit, *(None if None in part else max(p or 0 for p in part) for part in parts))

    def start(self) -> OneState:
        n, months = len(self.settings), 1 + max(month for _, month in self.minutes)
        rows, limits = ((None,) * self.calls,) * n, ((LimitRow(),) * self.limits,) * months
        turns = (Turn("reserve"),) * n
        return OneState(((),) * n, rows, limits, (), frozenset(), turns, (0,) * n, "", self.faults)

    def day(self, minute: int) -> int:
        return self.minutes[minute][0] if minute >= 0 else -1

    def rank(self, status: Status) -> int:
        return RANK["unaccounted"] if status == STOPPED and self.broken == "stopped-rank" else status.rank

    def setting(self, state: OneState, turn: int) -> tuple[Setting, ...]:
        return self.settings[turn][state.configured[turn]]

    def amounts(self, row: LedgerRow | None) -> tuple[int, int, int]:
        """What a row counts in its limits: USD spent, USD held, tokens."""
        if row is None:
            return 0, 0, 0
        status = row.status
        if status.state in HOLDS and not (status == STOPPED and self.broken == "stopped-holds"):
            return 0, row.worst, WORST
        if status.cost is None:
            return 0, row.worst, COST
        return status.cost, 0, status.cost

    # -- transactions

    def raise_session(self, state: OneState, turn: int, call: int, to: Status, new: Call | None = None) -> OneState:
        """The session's transaction: a call is raised; another may take its place and keep the lease."""
        calls = state.sessions[turn]
        if calls is None:
            return state
        if self.rank(to) > self.rank(calls[call].status):
            calls = replaced(calls, call, calls[call]._replace(status=to))
        return state._replace(sessions=replaced(state.sessions, turn, (*calls, new) if new else calls))

    def counted(self, limit: LimitRow, row: LedgerRow, change: tuple[int, ...], opens: bool) -> LimitRow:
        """The counter after a change of the ledger row."""
        broken, at = self.broken, row.at
        if broken == "one-minute" and opens and self.day(at) == self.day(limit.at):
            at = max(at, limit.at)
        falls = limit.at > at and broken in ("at-rises", "minute-rises")
        if opens and (at > limit.at or falls):
            if self.day(at) != self.day(limit.at) and broken != "new-day":
                limit = limit._replace(day_spent=0, day_held=0)
            limit = limit._replace(at=at, minute_tokens=0, minute_requests=0)
        same_day = self.day(limit.at) == self.day(at) or broken == "own-day"
        same_minute = limit.at == at or broken == "own-minute"
        spent, held, tokens = change
        return LimitRow(
            limit.spent + spent,
            limit.held + held,
            limit.at,
            limit.day_spent + (spent if same_day else 0),
            limit.day_held + (held if same_day else 0),
            limit.minute_tokens + (tokens if same_minute else 0),
            limit.minute_requests + opens,
        )

    def write(
        self, state: OneState, turn: int, call: int, to: Status, new: LedgerRow | None = None, by: int = -1
    ) -> OneState:
        """Inserts or raises a ledger row and changes all its limits. A row that stays as it is is not written."""
        row = state.rows[turn][call]
        if row is not None and self.rank(to) <= self.rank(row.status):
            return state
        return self.changed(state, turn, call, row, (row or new or LedgerRow(to))._replace(status=to), by)

    def changed(
        self, state: OneState, turn: int, call: int, before: LedgerRow | None, row: LedgerRow, by: int = -1
    ) -> OneState:
        change = tuple(new - old for new, old in zip(self.amounts(row), self.amounts(before), strict=True))
        names = row.limits[:1] if self.broken == "all-limits" else row.limits
        if self.broken == "row-names" and before and by >= 0:
            names = tuple(setting.limit for setting in self.setting(state, by))
        limits = state.limits
        if any(change):
            of_month = limits[row.month]
            for name in names:
                of_month = replaced(of_month, name, self.counted(of_month[name], row, change, before is None))
            limits = replaced(limits, row.month, of_month)
        rows = replaced(state.rows, turn, replaced(state.rows[turn], call, row))
        return self.guarded(state, state._replace(rows=rows, limits=limits))

    def guarded(self, before: OneState, after: OneState) -> OneState:
        """ETags: a late transaction fails once one of the rows that it writes, of calls or limits, is written."""
        if not before.late:
            return after
        written = difference(before, after)
        return after._replace(late=tuple(late for late in before.late if not self.fails(late, written)))

    def fails(self, late: Transaction, written: Transaction) -> bool:
        rule = "limit-guard" if any(row.status == OPEN for _, row in late.rows) else "raise-guard"
        rows = self.broken != "row-guard" and overlap(late.rows, written.rows)
        limits = self.broken != rule and overlap(late.limits, written.limits)
        return rows or limits

    def lands(self, state: OneState, late: Transaction) -> OneState:
        after = state._replace(late=tuple(other for other in state.late if other != late))
        for (turn, call), row in late.rows:
            after = after._replace(rows=replaced(after.rows, turn, replaced(after.rows[turn], call, row)))
        for (month, name), limit in late.limits:
            after = after._replace(limits=replaced(after.limits, month, replaced(after.limits[month], name, limit)))
        return self.guarded(state._replace(late=after.late), after)

    # -- steps

    def steps(self, state: OneState) -> Steps:
        for late in state.late:
            yield f"what timed out lands ({late})", self.lands(state, late)
        for me in range(len(self.settings)):
            for label, after in self.turn_steps(state, me):
                yield f"turn {me}: {label}", after
            for call in range(self.calls):
                for by in range(len(self.settings)) if self.broken == "row-names" else (me,):
                    for label, after in self.recovery(state, me, call, by):
                        yield f"recovery: {label} (turn {me}, call {call})", after
            if (newer := state.configured[me] + 1) < len(self.settings[me]):
                configured = replaced(state.configured, me, newer)
                yield f"instance {me} gets new settings", state._replace(configured=configured)
            if state.faults and state.sessions[me]:
                erased = replaced(state.sessions, me, None)
                yield f"session {me} erased", state._replace(sessions=erased, faults=state.faults - 1)

    def recovery(self, state: OneState, turn: int, call: int, by: int = -1) -> Steps:
        """Any of its steps, at any moment: a lease may expire while its holder is alive."""
        status, row = state.status(turn, call), state.rows[turn][call]
        looks = ("open", "unaccounted") if self.broken == "stopped-look" else HOLDS
        if status == OPEN and row is None:
            yield "fence: insert an abandoned row", self.write(state, turn, call, ABANDONED)
        elif status == OPEN and row is not None:
            to = ABANDONED if row.status == ABANDONED else UNACCOUNTED
            yield f"raise session to {to}", self.raise_session(state, turn, call, to)
        elif row is not None and row.status.state in looks:
            to = status or UNACCOUNTED
            if (after := self.write(state, turn, call, to, by=by)) != state:
                yield f"raise row to {to}", after

    def turn_steps(self, state: OneState, me: int) -> Steps:
        turn, broken = state.turns[me], self.broken
        row, status = state.rows[me][turn.call], state.status(me, turn.call)

        if turn.at not in ("reserve", *OVER):
            yield "crash", state.moved(me, "dead")
        match turn.at:
            case "reserve":
                if in_vain := self.needs_price(state, me):
                    yield "refused: the price is unknown", state.moved(me, "end")
                if not in_vain or broken == "price-first":
                    problem = f"session {me} is reserved for a call that is refused in any case" if in_vain else ""
                    for minute, (day, month) in enumerate(self.minutes):
                        label = f"reserve by a clock at minute {minute} (day {day}, month {month})"
                        sessions = replaced(state.sessions, me, (Call(minute),))
                        yield label, state._replace(sessions=sessions, problem=problem).moved(me, "open", minute=minute)
            case "open":
                yield "too late to open", state.moved(me, "settle-S", outcome=FAILED)
                yield from self.open_steps(state, me)
            case "opened?":
                if row and row.status == OPEN:
                    yield "read back", state.moved(me, "call", old=-1)
                elif row:
                    yield "read back", state.moved(me, "settle-S", outcome=FAILED)
                else:
                    yield "read back", state.moved(me, "open")
                yield "read back, too late", state.moved(me, "settle-S", outcome=FAILED)
            case "call":
                for bill in self.bills:
                    billed = state.billed | {(me, turn.call, bill)}
                    yield f"model bills {bill}", state._replace(billed=billed).moved(me, "billed")
                yield "model rejects the call, not billed", state.moved(me, "settle-S", outcome=FAILED)
            case "billed":
                cost = self.bill(state, me)
                if me not in self.unpriced:
                    yield "usage arrives", state.moved(me, "settle-S", outcome=Status("settled", cost))
                if self.unknown or me in self.unpriced:
                    yield "usage arrives, without a rate", state.moved(me, "settle-S", outcome=Status("settled", None))
                yield "usage never arrives", state.moved(me, "settle-S", outcome=UNACCOUNTED)
                if self.stops:
                    yield "stopped", state.moved(me, "settle-S", outcome=STOPPED)
                calls = state.sessions[me] or ()
                first = all(earlier.status == FAILED for earlier in calls[: turn.call])
                if self.retries and status == OPEN and first:
                    for minute in range(turn.minute, len(self.minutes)):
                        both = self.raise_session(state, me, turn.call, UNACCOUNTED, Call(minute))
                        same = self.minutes[minute][1] == self.minutes[turn.minute][1] or broken == "new-month"
                        label = f"retry: old call unaccounted, new call of minute {minute}"
                        fields = {"call": len(calls), "minute": minute, "old": turn.call}
                        yield label, both.moved(me, "open" if same else "old-L", **fields)
            case "old-L":
                raised = self.write(state, me, turn.old, UNACCOUNTED)
                yield "raise the old row to unaccounted", raised.moved(me, "open", old=-1)
            case "refused-S":
                yield "settle session as failed", self.raise_session(state, me, turn.call, FAILED).moved(me, "end")
            case "settle-S":
                settled = self.raise_session(state, me, turn.call, turn.outcome)
                yield f"settle session as {turn.outcome}", settled.moved(me, "settle-L")
            case "settle-L":
                if row is None:
                    yield "too late to insert a row", state.moved(me, "end")
                elif self.rank(row.status) >= self.rank(turn.outcome):
                    yield f"the row is {row.status} already", state.moved(me, self.settled_at(turn))
                else:
                    yield from self.write_steps(state, me)
            case "stopped":
                yield (
                    "usage arrives after all",
                    state.moved(me, "settle-S", outcome=Status("settled", self.bill(state, me))),
                )

    def bill(self, state: OneState, me: int) -> int:
        return next(bill for turn, call, bill in state.billed if (turn, call) == (me, state.turns[me].call))

    def needs_price(self, state: OneState, me: int) -> bool:
        in_usd = any((setting.day, setting.month) != (None, None) for setting in self.setting(state, me))
        return me in self.unpriced and in_usd and self.broken != "price"

    @staticmethod
    def settled_at(turn: Turn) -> str:
        return "stopped" if turn.outcome == STOPPED else "end"

    def open_steps(self, state: OneState, me: int) -> Steps:
        turn, status, broken = state.turns[me], state.status(me, state.turns[me].call), self.broken
        month = self.minutes[turn.minute][1]
        if self.day_is_over(state, me, month) and broken not in ("own-call", "at-rises", "month-alone"):
            latest = self.latest(state, me, month)
            label = f"a limit is at a later day: new call of minute {latest}"
            if status == OPEN:
                calls = state.sessions[me] or ()
                moved = self.raise_session(state, me, turn.call, FAILED, Call(latest))
                yield label, moved.moved(me, "open", call=len(calls), minute=latest)
            elif status and broken == "lost-session":
                yield label, state._replace(problem=f"session {me} gets a call without a reservation").moved(me, "open")
            else:
                yield "a limit is at a later day, and the session does not hold the call: end", state.moved(me, "end")
        elif state.rows[me][turn.call] is not None:
            yield "row already exists", state.moved(me, "opened?")
        else:
            for row, opened in self.openings(state, me):
                if self.admits(opened, row, me):
                    continue
                if turn.old >= 0:
                    yield "refused, but the old row must be raised", state.moved(me, "old-L")
                else:
                    yield "refused", state.moved(me, "end" if broken == "one-free" else "refused-S")
            yield from self.write_steps(state, me)

    def latest(self, state: OneState, me: int, month: int) -> int:
        return max(state.limits[month][setting.limit].at for setting in self.setting(state, me))

    def openings(self, state: OneState, me: int) -> Iterator[tuple[LedgerRow, OneState]]:
        """The row of a call that is opened, and what opening it comes to, admitted or not."""
        turn, broken = state.turns[me], self.broken
        names = tuple(setting.limit for setting in self.setting(state, me))
        month = self.minutes[turn.minute][1]
        if turn.old >= 0:
            if broken == "new-month" and (old := state.rows[me][turn.old]):
                month = old.month
            state = self.write(state, me, turn.old, UNACCOUNTED)  # in the same transaction
        for clock in range(turn.minute, len(self.minutes)) if broken == "one-reading" else (turn.minute,):
            at = max(clock, self.latest(state, me, month))
            later_day = self.day(at) > self.day(turn.minute)
            if broken in ("minute-rises", "one-minute") or (later_day and broken in ("at-rises", "month-alone")):
                at = turn.minute
            row = LedgerRow(OPEN, month, at, names, 0 if me in self.unpriced else WORST)
            yield row, self.write(state, me, turn.call, OPEN, row)

    def admits(self, opened: OneState, row: LedgerRow, me: int) -> bool:
        limits = opened.limits[row.month]
        fits = all(limits[setting.limit].within(setting) for setting in self.setting(opened, me))
        return fits and not self.needs_price(opened, me)

    def writes(
        self, state: OneState, me: int, read: OneState | None = None
    ) -> Iterator[tuple[str, OneState, str, str, int]]:
        """What turn `me` writes in the ledger next: label, state, next step with and without a response, month."""
        turn, row = state.turns[me], state.rows[me][state.turns[me].call]
        if turn.at == "open" and row is None:
            for new, opened in self.openings(state, me):
                if self.admits(opened if read is None else next(self.openings(read, me))[1], new, me):
                    opened = opened._replace(problem=opened.problem or self.overrun(opened, new, me))
                    yield f"open in minute {new.at}", opened, "call", "opened?", new.month
        if turn.at == "settle-L" and row is not None and self.rank(turn.outcome) > self.rank(row.status):
            raised = self.write(state, me, turn.call, turn.outcome, by=me)
            for other in turn.group:
                raised = self.changed(raised, *other)
            yield f"settle ledger as {turn.outcome}", raised, self.settled_at(turn), "settle-L", row.month

    def write_steps(self, state: OneState, me: int) -> Steps:
        """Alone, or in one transaction with another turn that waits in the same process."""
        for label, after, at, unsure, month in self.writes(state, me):
            yield label, after.moved(me, at, old=-1)
            if state.faults:
                yield from self.unanswered(label, state, after, {me: unsure})
                for other in range(len(state.turns)) if self.groups else ():
                    if other != me and (self.broken == "group-day" or not self.day_is_over(after, other, month)):
                        read = state if self.broken == "group-check" else None
                        for its_label, both, _, its_unsure, its_month in self.writes(after, other, read):
                            if its_month == month:
                                group = f"{label}, with turn {other}: {its_label}"
                                yield from self.unanswered(group, state, both, {me: unsure, other: its_unsure})

    def day_is_over(self, state: OneState, me: int, month: int) -> bool:
        """A call can't be opened in its own day, because a limit is at a later one."""
        turn = state.turns[me]
        return turn.at == "open" and self.day(self.latest(state, me, month)) > self.day(turn.minute)

    def unanswered(self, label: str, before: OneState, after: OneState, places: dict[int, str]) -> Steps:
        """The transaction is applied and its response is lost, or it may still land. Each turn then reads its row."""
        late = before._replace(late=(*before.late, difference(before, after)))
        for what, state in (("response lost", after), ("timed out", late)):
            for me, at in places.items():
                others = [other for other in places if other != me and self.broken == "group-each"]
                group = tuple(self.raising(before, other) for other in others if places[other] == "settle-L")
                state = state.moved(me, at, group=group)
            yield f"{label}, {what}", state._replace(faults=state.faults - 1)

    def raising(self, state: OneState, me: int) -> tuple[int, int, LedgerRow | None, LedgerRow | None]:
        turn = state.turns[me]
        row = state.rows[me][turn.call]
        return me, turn.call, row, row and row._replace(status=turn.outcome)

    # -- invariants

    def overrun(self, state: OneState, row: LedgerRow, me: int) -> str:
        """A limit that the call just admitted exceeds."""
        for setting in self.setting(state, me):
            for part, rows in self.parts(state.rows, setting.limit, row).items():
                amount, limit = self.total(part, rows), getattr(setting, part)
                if limit is not None and amount > limit:
                    return f"{amount} is admitted in the {part} by an instance with {setting}"
        return ""

    def parts(self, rows: Any, limit: int, row: LedgerRow) -> dict[str, list[LedgerRow]]:
        """The rows that count where this one counts."""
        same = [r for calls in rows for r in calls if r and limit in r.limits]
        return {
            "month": [r for r in same if r.month == row.month],
            "day": [r for r in same if self.day(r.at) == self.day(row.at)],
            "minute": [r for r in same if r.at == row.at],
        }

    def total(self, part: str, rows: list[LedgerRow]) -> int:
        amounts = [self.amounts(row) for row in rows]
        return sum(tokens if part == "minute" else spent + held for spent, held, tokens in amounts)

    def violation(self, state: OneState) -> str | None:
        for i, turn in enumerate(state.turns):
            if turn.at == "end" and any(call.status == OPEN for call in state.sessions[i] or ()):
                return f"turn {i} has ended, and its session is locked"
        return state.problem or self.violated(state._replace(turns=(), configured=(0,) * len(self.settings), faults=0))

    def _violated(self, state: OneState) -> str | None:
        return self.wrong_sums(state) or self.wrong_rows(state) or self.wrong_after_recovery(state)

    def wrong_sums(self, state: OneState) -> str | None:
        """Each counter is the sum of its ledger rows."""
        rows = [row for calls in state.rows for row in calls if row]
        for month, of_month in enumerate(state.limits):
            for name, limit in enumerate(of_month):
                its = [row for row in rows if row.month == month and name in row.limits]
                day = [row for row in its if self.day(row.at) == self.day(limit.at)]
                minute = [row for row in its if row.at == limit.at]
                (spent, held, _), (day_spent, day_held, _), (_, _, tokens) = map(self.sum, (its, day, minute))
                right = LimitRow(spent, held, limit.at, day_spent, day_held, tokens, len(minute))
                if limit != right:
                    return f"the row of limit {name} says {limit}; its ledger rows say {right}"
        return None

    def sum(self, rows: list[LedgerRow]) -> tuple[int, ...]:
        return tuple(map(sum, zip((0, 0, 0), *map(self.amounts, rows), strict=True)))

    def wrong_rows(self, state: OneState) -> str | None:
        """No limit is exceeded, except by costs above their worst cases; every bill is in its row and its limits."""
        every = [(i, c, row) for i, calls in enumerate(state.rows) for c, row in enumerate(calls) if row and row.limits]
        for i, call, row in every:
            for setting in self.highest:
                for part, rows in self.parts(state.rows, setting.limit, row).items():
                    limit, above = getattr(setting, part), sum(excess(r.status) for r in rows)
                    if limit is not None and (amount := self.total(part, rows)) > limit + above:
                        return f"{amount} ({above} above worst cases) in the {part} of minute {row.at} under {setting}"
            calls = state.sessions[i]
            if calls and (place := self.minutes[calls[call].minute]) != (self.day(row.at), row.month):
                return f"turn {i}, call {call}: its session looks for it in day and month {place}, its row is {row}"
        for i, call, bill in state.billed:
            billed = state.rows[i][call]
            if billed is None or billed.status.state not in (*HOLDS, "settled"):
                return f"turn {i}, call {call} was billed, but its row is {billed or 'missing'}"
            if billed.status.state == "settled" and billed.status.cost not in (bill, None):
                return f"turn {i}, call {call} was billed {bill}, but its row is {billed.status}"
        for setting in self.highest:
            if setting.month is not None:
                bills = [(state.rows[i][call], bill) for i, call, bill in state.billed]
                bill = sum(covered(row.status, bill) for row, bill in bills if row and setting.limit in row.limits)
                counts = sum(m[setting.limit].spent + m[setting.limit].held for m in state.limits)
                if bill > counts:
                    return f"{bill} was billed under limit {setting.limit}, whose spent + held is {counts}"
        return None

    def wrong_after_recovery(self, state: OneState) -> str | None:
        """All processes have ended, a late transaction has landed; the next turns and the timer recover."""
        while state.late:
            state = self.lands(state, state.late[0])
        every = [(i, call) for i in range(len(self.settings)) for call in range(self.calls)]
        while after := next((a for i, call in every for _, a in self.recovery(state, i, call, 0)), None):
            state = after
        billed = {(i, call) for i, call, _ in state.billed}
        for i, call in every:
            status, row = state.status(i, call), state.rows[i][call]
            where, costs = f"turn {i}, call {call}", ("unaccounted", "stopped", "settled")
            if status == OPEN or (row and row.status == OPEN):
                return f"after recovery: {where} is open: its row is {row}, its session says {status}"
            if status and status.state in costs and (row is None or row.status != status):
                return f"after recovery: {where}: its session says {status}, its row is {row}"
            if status and row and row.status.state in costs and row.status != status:
                return f"after recovery: {where}: its row is {row}, its session says {status}"
            if row and row.status.state == "settled" and (i, call) not in billed:
                return f"{where} is settled, but was never billed"
        return None


def overlap(some: tuple[tuple[Any, Any], ...], others: tuple[tuple[Any, Any], ...]) -> bool:
    return bool(dict(some).keys() & dict(others).keys())


def difference(before: OneState, after: OneState) -> Transaction:
    """The rows that a transaction writes."""
    rows = tuple(
        ((i, call), row)
        for i, calls in enumerate(after.rows)
        for call, row in enumerate(calls)
        if row is not None and row != before.rows[i][call]
    )
    limits = tuple(
        ((month, name), limit)
        for month, of_month in enumerate(after.limits)
        for name, limit in enumerate(of_month)
        if limit != before.limits[month][name]
    )
    return Transaction(rows, limits)


# ---- exploring -------------------------------------------------------------------------------------------------------


class World(Protocol):
    def start(self) -> Any: ...
    def steps(self, state: Any) -> Steps: ...
    def violation(self, state: Any) -> str | None: ...


def explore(world: World) -> tuple[int, str | None, list[str]]:
    """Breadth first. Returns the number of states, the violated invariant and the shortest trace to it."""
    predecessors: dict[Any, tuple[Any, str] | None] = {world.start(): None}
    queue = deque(predecessors)
    while queue:
        state = queue.popleft()
        if problem := world.violation(state):
            trace: list[str] = []
            while step := predecessors[state]:
                state, label = step
                trace.append(label)
            return len(predecessors), problem, trace[::-1]
        for label, after in world.steps(state):
            if after not in predecessors:
                predecessors[after] = (state, label)
                queue.append(after)
    return len(predecessors), None, []


TOTAL = (Setting(0, 3, 3, 4),)  # a limit over all callers: tokens a minute, USD a day, USD a month
BOTH = (Setting(0, 3, 3, 4), Setting(1, 2, 2, 3))  # and the caller's own
LOW, HIGH = (Setting(0, 2, 2, 2),), (Setting(0, 4, 4, 4),)
DIFFER = ((BOTH, TOTAL), (LOW, HIGH))  # removed and raised, one instance before the other
MINUTE = (Setting(0, 2, 4, 4),)
TOKENS = (Setting(1, 3, None, None),)
PRICES = ((TOKENS, TOTAL + TOKENS), (TOTAL + TOKENS,))  # a limit in USD is added
SAME, DAYS, MONTHS = ((0, 0), (0, 0)), ((0, 0), (1, 0)), ((0, 0), (1, 1))  # day and month of each minute
WORLDS: dict[str, Callable[[str], World]] = {
    "hold": Hold,
    "hold, limits differ": lambda broken: Hold(broken, (2, 4), faults=0),
    "hold, costs": lambda broken: Hold(broken, (4, 4), faults=0, bills=(COST, ABOVE), unknown=True),
    "one": lambda broken: One(broken, ((TOTAL,), (BOTH,)), faults=1),
    "one, retries": lambda broken: One(broken, ((TOTAL,), (BOTH,)), DAYS, retries=True),
    "one, months": lambda broken: One(broken, ((TOTAL,), (TOTAL,)), MONTHS, retries=True),
    "one, stops": lambda broken: One(broken, ((TOTAL,), (TOTAL,)), stops=True),
    "one, limits differ": lambda broken: One(broken, DIFFER),
    "one, groups": lambda broken: One(broken, ((HIGH,), (TOTAL,)), DAYS, faults=1, groups=True),
    "one, minutes": lambda broken: One(broken, ((MINUTE,), (MINUTE,)), SAME, retries=True),
    "one, costs": lambda broken: One(broken, ((TOTAL,), (BOTH,)), DAYS, bills=(COST, ABOVE), unknown=True),
    "one, prices": lambda broken: One(broken, PRICES, DAYS, unpriced=(0,)),
}
BIG: dict[str, Callable[[str], World]] = {
    "hold, two faults": lambda broken: Hold(broken, faults=2),
    "hold, limits differ, a fault": lambda broken: Hold(broken, (2, 4)),
    "hold, costs, a fault": lambda broken: Hold(broken, (4, 4), bills=(COST, ABOVE), unknown=True),
    "one, two faults": lambda broken: One(broken, ((TOTAL,), (BOTH,)), faults=2),
    "one, retries, a fault": lambda broken: One(broken, ((TOTAL,), (BOTH,)), retries=True, faults=1),
    "one, stops, a fault": lambda broken: One(broken, ((TOTAL,), (BOTH,)), stops=True, faults=1),
    "one, limits differ, a fault": lambda broken: One(broken, DIFFER, faults=1),
    "one, three turns": lambda broken: One(broken, ((BOTH,), (TOTAL, LOW), (TOTAL,)), ((0, 0),)),
    "one, three turns, a fault": lambda broken: One(broken, ((BOTH,), (TOTAL,), (TOTAL,)), ((0, 0),), faults=1),
    "one, groups, retries": lambda broken: One(broken, ((HIGH,), (TOTAL,)), DAYS, faults=1, groups=True, retries=True),
    "one, groups, costs": lambda broken: One(
        broken, ((HIGH,), (BOTH,)), DAYS, faults=1, groups=True, bills=(COST, ABOVE), unknown=True
    ),
    "one, groups, two faults": lambda broken: One(broken, ((HIGH,), (TOTAL,)), DAYS, faults=2, groups=True),
    "one, groups, three turns": lambda broken: One(
        broken, ((HIGH,), (TOTAL,), (TOTAL,)), ((0, 0),), faults=1, groups=True
    ),
    "one, costs, retries": lambda broken: One(
        broken, ((TOTAL,), (BOTH,)), DAYS, retries=True, stops=True, bills=(COST, ABOVE), unknown=True
    ),
    "one, prices, retries": lambda broken: One(broken, PRICES, DAYS, retries=True, unpriced=(0,), faults=1),
}


class Result(NamedTuple):
    world: str
    broken: str
    states: int
    problem: str | None
    trace: list[str]
    seconds: float

    def __str__(self) -> str:
        without = f"without '{self.broken}', {len(self.trace)} steps: " if self.broken else ""
        outcome = self.problem or "every invariant holds"
        return f"{self.world}: {without}{self.states} states, {self.seconds:.1f} s: {outcome}"


def run(name: str, broken: str = "") -> Result:
    start = time.process_time()
    states, problem, trace = explore({**WORLDS, **BIG}[name](broken))
    return Result(name, broken, states, problem, trace, time.process_time() - start)


def main() -> int:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    worlds = {**WORLDS, **BIG}
    parser.add_argument("--world", choices=worlds, metavar="W", help="; ".join(worlds))
    parser.add_argument("--big", action="store_true", help="explore larger bounds as well")
    parser.add_argument(
        "--break", dest="broken", choices=[*BREAKS, "all"], metavar="X", help="; ".join([*BREAKS, "all"])
    )
    options = parser.parse_args()
    if options.broken:
        rules = BREAKS if options.broken == "all" else [options.broken]
        runs = [(options.world or BREAKS[rule][0], rule) for rule in rules]
    else:
        runs = [(name, "") for name in ([options.world] if options.world else [*WORLDS, *(BIG if options.big else [])])]
    violated = []
    with ProcessPoolExecutor(2) as pool:
        for result in pool.map(run, *zip(*runs, strict=True)):
            for line in result.trace if options.broken != "all" else []:
                print("  " + line)
            print(result, flush=True)
            violated.append(bool(result.problem))
    return int(not all(violated)) if options.broken == "all" else int(any(violated))


if __name__ == "__main__":
    sys.exit(main())
