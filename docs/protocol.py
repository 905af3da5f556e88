#!/usr/bin/env python3
"""Executable specification of the accounting protocol: explores every interleaving and checks its invariants.

    python3 docs/protocol.py            explore the protocol; print the number of states, exit 0 if all invariants hold
    python3 docs/protocol.py --break X  the same without rule X (see BREAKS); exit 1 and print the shortest trace

Costs are stored in two places that cannot commit together: the session's partition (S: head and turn rows, one
transaction, guarded by the head's ETag) and the ledger (L: one row per model call). The model may bill (M) at any
moment of a call. At any step a process may crash or stall beyond its lease, and the response to a write may be lost. A
session may be erased and created again.

A turn:      read S -> reserve in S (ETag) -> insert L row 'open' -> call the model -> settle S -> answer -> settle L
A retry of a call that may have been billed:
             one transaction on S (this call 'unaccounted', a new call 'open', same lease)
             -> raise the old L row -> insert the new one -> call the model again
The state of a call can only rise:   open < abandoned < unaccounted < stopped < settled, failed   (rank 0 to 4)
A turn that is stopped ends its call as 'stopped': billed, but the amount is not known unless its usage arrives later.
Recovery of a call with an expired lease (by the session's next turn, or by the timer for L rows that are open,
unaccounted or stopped):
  no L row   insert it as 'abandoned' if it is still absent: the stalled process can then no longer insert its own row,
             and therefore cannot spend; then raise S to 'abandoned'
  L row      raise S to 'unaccounted' if it is still open, then raise L to the state in S; if no session contains the
             call (erased, or a call without a session), raise only L to 'unaccounted'
The transaction that raises a call also changes the head's totals, so repeated attempts count each call once.
A turn spends nothing if its row is not inserted, or is inserted too late by its own clock. The call is then 'failed' in
S and afterwards in L, where the missing row is inserted unless the deadline has passed.
Requests with the same Idempotency-Key are one request. A record in S holds the turns that used the key; a reservation
adds its own in the same transaction and keeps the earlier ones, because a process that was taken for dead may still
settle its turn. A request looks these turns up after reading the head whose ETag guards its reservation, and replays
the newest that is answered: so a settlement is either seen, or has changed the head and the reservation fails.
The lease only prevents concurrent turns. In this model it may expire while its holder is alive, and may be renewed
late, and the totals are still correct: the accounting does not depend on clocks. Erasing deletes S and keeps L.
Clearing deletes content and changes no state, so it is not modelled.
limits_protocol.py adds the limits: there a ledger row also holds the worst case of its call.
"""

import argparse
import sys
from collections import deque
from collections.abc import Iterator
from functools import cache
from typing import Any, NamedTuple, TypeAlias

RANK = {"open": 0, "abandoned": 1, "unaccounted": 2, "stopped": 3, "settled": 4, "failed": 4}
UNFINISHED = ("open", "unaccounted", "stopped")  # rows that the timer checks
BREAKS = {
    "fence": "recovery abandons a call without first inserting its ledger row",
    "order": "the ledger is settled before the session",
    "rise": "settling adds to the totals without checking the call's state",
    "write-first": "the model is called before the ledger row is inserted",
    "retry": "a retry takes over the turn without settling the first call in the session",
    "orphan": "recovery ignores a ledger row if no session contains its call",
    "stopped-rank": "a stopped call ranks with an unaccounted one",
    "key": "the record of an Idempotency-Key keeps only the latest turn that used it",
    "key-order": "the turns that used an Idempotency-Key are looked up before the head is read",
}


class Session(NamedTuple):
    etag: int = 0
    holder: int | None = None  # the call that holds the lease
    expired: bool = False
    calls: tuple[tuple[int, str], ...] = ()  # (call, state), in order
    settled: int = 0  # head totals: settled calls (represents tokens and cost), unaccounted and stopped calls
    unaccounted: int = 0
    stopped: int = 0
    erased: bool = False
    key: tuple[int, ...] = ()  # the key's record: requests whose turns used it


class Process(NamedTuple):
    at: str
    call: int = -1  # the call that it opens
    etag: int = 0
    victim: int = -1  # the call that it recovers
    seen_state: str = ""  # state of that call in S


Rows: TypeAlias = tuple[str | None, ...]  # the ledger, by call; None: no row


class State(NamedTuple):
    session: Session
    ledger: Rows
    billed: frozenset[int]
    erased_calls: frozenset[int]  # calls of a session that was erased
    processes: tuple[Process, ...]  # requests, then the timer
    budget: int  # lost responses, failed writes, retries, late renewals and erasures still allowed
    keyed: bool  # all requests have the same Idempotency-Key
    overlooked: bool = False  # a turn was reserved although one with its key was answered


def state_of(session: Session, call: int) -> str | None:
    return dict(session.calls).get(call)


def answered(session: Session, requests: int) -> frozenset[int]:
    """The requests whose turns are answered."""
    return frozenset(call % requests for call, state in session.calls if state == "settled")


def rank(state: str, broken: str) -> int:
    return RANK["unaccounted" if state == "stopped" and broken == "stopped-rank" else state]


def raise_call(session: Session, call: int, to: str, broken: str) -> Session:
    """One transaction: raise the call's state and change the head's totals. Never lowers a state."""
    now = state_of(session, call)
    if now is None or (rank(to, broken) <= rank(now, broken) and broken != "rise"):
        return session
    return session._replace(
        etag=session.etag + 1,
        calls=tuple((c, to if c == call else s) for c, s in session.calls),
        holder=None if session.holder == call else session.holder,
        settled=session.settled + (to == "settled"),
        unaccounted=session.unaccounted + (to == "unaccounted") - (now == "unaccounted" and to != "unaccounted"),
        stopped=session.stopped + (to == "stopped") - (now == "stopped" and to != "stopped"),
    )


def raise_row(ledger: Rows, call: int, to: str, broken: str) -> Rows:
    now = ledger[call]
    if now is not None and rank(to, broken) <= rank(now, broken):
        return ledger
    return (*ledger[:call], to, *ledger[call + 1 :])


def steps(state: State, pid: int, broken: str) -> Iterator[tuple[str, State]]:
    """Every next state that process `pid` can reach, with the label of its step."""
    session, ledger, process = state.session, state.ledger, state.processes[pid]
    own_call, victim = process.call, process.victim
    requests = len(state.processes) - 1
    read = "lookup" if state.keyed and broken == "key-order" else "read"
    resume = "idle" if pid == requests else read  # where recovery returns to

    def move(
        at: str,
        *,
        session: Session = session,
        ledger: Rows = ledger,
        billed: frozenset[int] = state.billed,
        spend: int = 0,
        overlooked: bool = state.overlooked,
        **fields: Any,
    ) -> State:
        processes = (*state.processes[:pid], process._replace(at=at, **fields), *state.processes[pid + 1 :])
        return state._replace(
            session=session,
            ledger=ledger,
            billed=billed,
            processes=processes,
            budget=state.budget - spend,
            overlooked=overlooked,
        )

    def settle(outcome: str) -> str:
        return f"{outcome}-L" if broken == "order" else f"{outcome}-S"

    if process.at not in ("end", "dead", "idle"):
        yield "crash", move("dead")
    if state.budget and session.holder == own_call and session.expired and process.at in ("insert", "call", "billed"):
        yield "renew the lease late", move(process.at, session=session._replace(expired=False), spend=1)
    match process.at:
        case "read":
            if session.erased:
                yield "create a new session under the erased ID", move("read", session=Session(etag=session.etag + 1))
            elif session.holder is None:
                yield "read", move("lookup" if state.keyed and broken != "key-order" else "reserve", etag=session.etag)
            elif session.expired:
                yield "find an expired lease", move("look", victim=session.holder)
            else:
                yield "session busy: 409", move("end")
        case "lookup":
            if answered(session, requests).intersection(session.key):
                yield "replay the stored answer", move("end")
            else:
                yield "find no stored answer", move("read" if broken == "key-order" else "reserve")
        case "reserve":
            if session.erased or session.etag != process.etag:
                yield "lose the race: 409", move("end")
            else:
                after = session._replace(
                    etag=session.etag + 1, holder=own_call, expired=False, calls=(*session.calls, (own_call, "open"))
                )
                overlooked = state.overlooked
                if state.keyed:
                    after = after._replace(key=(own_call,) if broken == "key" else (*session.key, own_call))
                    overlooked = bool(answered(session, requests))
                reserved = "call" if broken == "write-first" else "insert"
                yield "reserve", move(reserved, session=after, overlooked=overlooked)
                if state.budget:
                    yield "reserve, response lost", move("reserved?", session=after, overlooked=overlooked, spend=1)
        case "reserved?":
            yield "read back", move("insert" if session.holder == own_call else "end")
        case "insert":
            if ledger[own_call] is not None:
                yield "row already exists", move("inserted?")
            else:
                opened = raise_row(ledger, own_call, "open", broken)
                yield "insert ledger row", move("call", ledger=opened)
                yield "insert ledger row, too late", move("failed-S", ledger=opened)
                yield "too late to insert a row", move("failed-S")
                if state.budget:
                    yield "insert ledger row, response lost", move("inserted?", ledger=opened, spend=1)
                    yield "insert ledger row, request fails", move("inserted?", spend=1)
        case "inserted?":
            yield "read back", move("call" if ledger[own_call] == "open" else "failed-S")
            yield "read back, too late", move("failed-S")
        case "call":
            yield "model bills", move("billed", billed=state.billed | {own_call})
            yield "model rejects the call, not billed", move(settle("failed"))
            yield "model call fails, possibly billed", move(settle("unaccounted"))
        case "billed":
            yield "usage arrives", move(settle("settled"))
            yield "usage never arrives", move(settle("unaccounted"))
            yield "the turn is stopped", move(settle("stopped"))
            if (
                own_call < requests
                and state.budget
                and session.holder == own_call
                and state_of(session, own_call) == "open"
            ):
                retry_call = own_call + requests
                if broken == "retry":
                    after = session._replace(
                        holder=retry_call,
                        calls=tuple((retry_call if c == own_call else c, s) for c, s in session.calls),
                    )
                else:
                    after = raise_call(session, own_call, "unaccounted", broken)
                    after = after._replace(holder=retry_call, calls=(*after.calls, (retry_call, "open")))
                yield "retry: old call unaccounted, new call open", move("retry-L", session=after, spend=1)
        case "retry-L":
            yield (
                "raise the old row to unaccounted",
                move("insert", call=own_call + requests, ledger=raise_row(ledger, own_call, "unaccounted", broken)),
            )
        case "settled-S" | "failed-S" | "unaccounted-S" | "stopped-S":
            outcome = process.at[:-2]
            label = f"settle session as {outcome}"
            after = raise_call(session, own_call, outcome, broken)
            yield label, move("end" if broken == "order" else f"{outcome}-L", session=after)
            if state.budget:
                yield f"{label}, response lost", move(process.at, session=after, spend=1)
        case "settled-L" | "failed-L" | "unaccounted-L" | "stopped-L":
            outcome = process.at[:-2]
            then = f"{outcome}-S" if broken == "order" else "stopped" if outcome == "stopped" else "end"
            label = f"settle ledger as {outcome}"
            if ledger[own_call] is None:
                yield f"{label}, too late to insert a row", move(then)
            yield label, move(then, ledger=raise_row(ledger, own_call, outcome, broken))
        case "stopped":
            yield "no usage arrives", move("end")
            yield "usage arrives after all", move("settled-S")
        case "idle":  # the timer picks any row that is not final
            for call, row in enumerate(ledger):
                if row in UNFINISHED:
                    yield f"check call {call}", move("look", victim=call)
        case "look":
            row = ledger[victim]
            if row is None and broken != "fence":
                yield "find no ledger row", move("fence")
            elif row is None or row == "abandoned":
                yield "call is abandoned", move("abandon")
            else:
                yield f"find a row that is {row}", move("raise-S")
        case "fence":
            if ledger[victim] is None:
                yield (
                    "fence: insert an abandoned row",
                    move("abandon", ledger=raise_row(ledger, victim, "abandoned", broken)),
                )
            else:
                yield "the row has been inserted meanwhile", move("look")
        case "abandon":
            yield (
                "raise session to abandoned",
                move(resume, session=raise_call(session, victim, "abandoned", broken), victim=-1),
            )
        case "raise-S":
            now = state_of(session, victim)
            if (session.holder == victim and not session.expired) or (now is None and broken == "orphan"):
                yield "change nothing", move(resume, victim=-1)
            elif now == "open":
                yield (
                    "raise session to unaccounted",
                    move(
                        "raise-L", session=raise_call(session, victim, "unaccounted", broken), seen_state="unaccounted"
                    ),
                )
            else:
                yield f"session state is {now}", move("raise-L", seen_state=now or "unaccounted")
        case "raise-L":
            yield (
                f"raise ledger row to {process.seen_state}",
                move(resume, ledger=raise_row(ledger, victim, process.seen_state, broken), victim=-1, seen_state=""),
            )


def environment_steps(state: State) -> Iterator[tuple[str, State]]:
    """Steps outside any process: a lease expires, a user erases the session."""
    session = state.session
    if session.holder is not None and not session.expired:
        yield "lease expires", state._replace(session=session._replace(expired=True))
    if state.budget and not session.erased:
        erased_calls = state.erased_calls | {call for call, _ in session.calls}
        after = Session(session.etag + 1, erased=True)
        yield "session erased", state._replace(session=after, erased_calls=erased_calls, budget=state.budget - 1)


def recovered(session: Session, ledger: Rows, broken: str) -> State:
    """All processes have ended and the lease has expired: the next turn and the timer recover the remaining calls."""
    state = State(session._replace(expired=True), ledger, frozenset(), frozenset(), (Process("idle"),), 0, keyed=False)
    victims = [session.holder] if session.holder is not None else []
    victims += [c for c, row in enumerate(ledger) if row in UNFINISHED]
    for victim in victims:
        state = state._replace(processes=(Process("look", victim=victim),))
        while state.processes[0].at != "idle":
            state = next(s for label, s in steps(state, 0, broken) if label != "crash")
    return state


@cache
def violation(
    session: Session, ledger: Rows, billed: frozenset[int], erased_calls: frozenset[int], keyed: bool, broken: str
) -> str | None:
    """The invariant that this state violates, or None."""
    if keyed and (lost := answered(session, len(ledger) // 2).difference(session.key)):
        return f"request {min(lost)} is answered, but the record of its key has lost its turn: it is paid for again"
    for call in billed:
        if ledger[call] in (None, "abandoned"):
            return f"call {call} was billed, but its ledger row is {ledger[call] or 'missing'}"
    session, ledger = recovered(session, ledger, broken)[:2]
    for call, row in enumerate(ledger):
        if call in billed and row not in ("settled", "unaccounted", "stopped"):
            return f"after recovery: call {call} was billed, but its ledger row is {row or 'missing'}"
        if call not in billed and row == "settled":
            return f"call {call} is settled, but was never billed"
        if row == "open":
            return f"after recovery: the ledger row of call {call} is still open"
    if session.holder is not None:
        return "after recovery: the session is still locked"
    totals = {"settled": session.settled, "unaccounted": session.unaccounted, "stopped": session.stopped}
    for kind, total in totals.items():
        calls = sum(s == kind for _, s in session.calls)
        rows = sum(row == kind and call not in erased_calls for call, row in enumerate(ledger))
        if not total == calls == rows:
            return f"{kind} calls differ: {total} in the head, {calls} in the turns, {rows} in the ledger"
    return None


def explore(requests: int, budget: int, broken: str) -> tuple[int, str | None, list[str]]:
    predecessors: dict[State, tuple[State, str] | None] = {}
    for keyed in (False, True):
        first = "lookup" if keyed and broken == "key-order" else "read"
        processes = (*(Process(first, call=i) for i in range(requests)), Process("idle"))
        start = State(Session(), (None,) * requests * 2, frozenset(), frozenset(), processes, budget, keyed)
        predecessors[start] = None
    queue = deque(predecessors)
    while queue:
        state = queue.popleft()
        problem = violation(state.session, state.ledger, state.billed, state.erased_calls, state.keyed, broken)
        if state.overlooked:
            problem = "a request is paid for again although a turn with its key was answered"
        if problem:
            trace: list[str] = []
            while step := predecessors[state]:
                state, label = step
                trace.append(label)
            return len(predecessors), problem, trace[::-1]
        moves = [("environment", label, after) for label, after in environment_steps(state)]
        for pid in range(requests + 1):
            name = "timer" if pid == requests else f"request {pid}"
            moves += [(name, label, after) for label, after in steps(state, pid, broken)]
        for name, label, after in moves:
            if after not in predecessors:
                predecessors[after] = (state, f"{name}: {label}")
                queue.append(after)
    return len(predecessors), None, []


def main() -> int:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--requests", type=int, default=2, help="concurrent requests in one session (default 2)")
    parser.add_argument(
        "--budget", type=int, default=1, help="faults in addition to crashes and stalls (default 1; 2 takes minutes)"
    )
    parser.add_argument(
        "--break",
        dest="broken",
        choices=BREAKS,
        default="",
        help="remove one rule; the exploration then finds a violation",
    )
    options = parser.parse_args()
    seen, problem, trace = explore(options.requests, options.budget, options.broken)
    for line in trace:
        print("  " + line)
    print(f"{seen} states: {problem or 'every invariant holds'}")
    return 1 if problem else 0


if __name__ == "__main__":
    sys.exit(main())
