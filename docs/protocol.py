#!/usr/bin/env python3
"""The money protocol as an executable specification: explores every interleaving and checks what must never break.

    python3 docs/protocol.py            explore the protocol; prints the states seen, exits 0 if every invariant holds
    python3 docs/protocol.py --break X  the same with one rule removed (see BREAKS); exits 1 with the shortest trace

Two places hold money and cannot commit together: the session's partition (S: head and turn rows, one transaction,
guarded by the head's ETag) and the ledger (L: one row per model call). The model may bill (M) at any moment of a call.
A process may crash, or stall past its lease, at any step; an acknowledgement may be lost; a session may be erased and
begun again.

A turn:      read S -> reserve in S (ETag) -> insert L row 'open' -> call the model -> settle S -> answer -> settle L
A retry of a call that may have been billed:
             one transaction on S (this call 'unaccounted', a new call 'open', the lease kept)
             -> raise the old L row -> insert the new one -> call the model again
A call's state only ever rises:   open < abandoned < unaccounted < settled, failed   (rank 0 < 1 < 2 < 3)
Recovery of a call whose lease is over (by the session's next turn, or by the timer for L rows open or unaccounted):
  no L row   insert it as 'abandoned' if still absent: from then on the stalled process cannot insert its own, and so
             cannot spend; then raise S to 'abandoned'
  L row      raise S to 'unaccounted' if it is still open, then raise L to what S says; where no session holds the call
             (erased, or it never had one) L alone becomes 'unaccounted'
The head's totals change in the same transaction that raises a call, so each is counted once however often it is tried.
A turn whose row was not inserted, or too late by its own clock, spends nothing: it is 'failed' in S, then in L, where
it makes the row that is missing unless its time is up.
The lease only keeps turns apart: here it may run out while its holder lives, and be renewed late, and the money still
adds up. No clock is trusted with it. Erasing takes S away and leaves L. Clearing strips content and changes no state,
so it is not modelled.
"""

import argparse
import sys
from collections import deque
from collections.abc import Iterator
from functools import cache
from typing import Any, NamedTuple, TypeAlias

RANK = {"open": 0, "abandoned": 1, "unaccounted": 2, "settled": 3, "failed": 3}
BREAKS = {
    "fence": "recovery abandons a call without first inserting its ledger row",
    "order": "the ledger is settled before the session",
    "rise": "settling adds to the totals without looking at the call's state",
    "write-first": "the model is called before the ledger row is inserted",
    "retry": "a retry takes over the turn without settling the first call in the session",
    "orphan": "recovery leaves a ledger row alone when no session holds its call",
}


class Session(NamedTuple):
    etag: int = 0
    holder: int | None = None  # the call that holds the lease
    expired: bool = False
    calls: tuple[tuple[int, str], ...] = ()  # (call, state), in order
    settled: int = 0  # head totals: settled calls (stands for tokens and cost) and unaccounted calls
    unaccounted: int = 0
    erased: bool = False


class Process(NamedTuple):
    at: str
    call: int = -1  # the call that it makes
    etag: int = 0
    victim: int = -1  # the call that it recovers
    saw: str = ""


Rows: TypeAlias = tuple[str | None, ...]  # the ledger, by call; None: no row


class State(NamedTuple):
    session: Session
    ledger: Rows
    billed: frozenset[int]
    gone: frozenset[int]  # calls of a session that was erased
    processes: tuple[Process, ...]  # posts, then the timer
    budget: int  # lost acknowledgements, failed writes, retries, late renewals and erasures still allowed


def state_of(session: Session, call: int) -> str | None:
    return dict(session.calls).get(call)


def raise_call(session: Session, call: int, to: str, broken: str = "") -> Session:
    """One transaction: the call's state and the head's totals together, only ever upwards."""
    now = state_of(session, call)
    if now is None or (RANK[to] <= RANK[now] and broken != "rise"):
        return session
    return session._replace(
        etag=session.etag + 1,
        calls=tuple((c, to if c == call else s) for c, s in session.calls),
        holder=None if session.holder == call else session.holder,
        settled=session.settled + (to == "settled"),
        unaccounted=session.unaccounted + (to == "unaccounted") - (now == "unaccounted" and to != "unaccounted"),
    )


def raise_row(ledger: Rows, call: int, to: str) -> Rows:
    now = ledger[call]
    if now is not None and RANK[to] <= RANK[now]:
        return ledger
    return (*ledger[:call], to, *ledger[call + 1 :])


def steps(state: State, me: int, broken: str) -> Iterator[tuple[str, State]]:
    """Every next state that process `me` can bring about, with what it did."""
    session, ledger, process = state.session, state.ledger, state.processes[me]
    mine, victim = process.call, process.victim
    posts = len(state.processes) - 1
    resume = "idle" if me == posts else "read"  # where recovery returns to

    def go(
        at: str,
        *,
        session: Session = session,
        ledger: Rows = ledger,
        billed: frozenset[int] = state.billed,
        spend: int = 0,
        **fields: Any,
    ) -> State:
        processes = (*state.processes[:me], process._replace(at=at, **fields), *state.processes[me + 1 :])
        return State(session, ledger, billed, state.gone, processes, state.budget - spend)

    def settle(outcome: str) -> str:
        return f"{outcome}-L" if broken == "order" else f"{outcome}-S"

    if process.at not in ("end", "dead", "idle"):
        yield "crash", go("dead")
    if state.budget and session.holder == mine and session.expired and process.at in ("insert", "call", "billed"):
        yield "renews its lease late", go(process.at, session=session._replace(expired=False), spend=1)
    match process.at:
        case "read":
            if session.erased:
                yield "begins again under the erased id", go("read", session=Session(etag=session.etag + 1))
            elif session.holder is None:
                yield "read", go("reserve", etag=session.etag)
            elif session.expired:
                yield "finds a lease that is over", go("look", victim=session.holder)
            else:
                yield "busy: 409", go("end")
        case "reserve":
            if session.erased or session.etag != process.etag:
                yield "lost the race: 409", go("end")
            else:
                after = session._replace(
                    etag=session.etag + 1, holder=mine, expired=False, calls=(*session.calls, (mine, "open"))
                )
                yield "reserve", go("call" if broken == "write-first" else "insert", session=after)
                if state.budget:
                    yield "reserve, answer lost", go("reserved?", session=after, spend=1)
        case "reserved?":
            yield "reads back", go("insert" if session.holder == mine else "end")
        case "insert":
            if ledger[mine] is not None:
                yield "row is there already", go("inserted?")
            else:
                opened = raise_row(ledger, mine, "open")
                yield "insert ledger row", go("call", ledger=opened)
                yield "insert ledger row, too late", go("failed-S", ledger=opened)
                yield "too late to insert a row", go("failed-S")
                if state.budget:
                    yield "insert, answer lost", go("inserted?", ledger=opened, spend=1)
                    yield "insert failed", go("inserted?", spend=1)
        case "inserted?":
            yield "reads back", go("call" if ledger[mine] == "open" else "failed-S")
            yield "reads back, too late", go("failed-S")
        case "call":
            yield "model bills", go("billed", billed=state.billed | {mine})
            yield "model refuses, unbilled", go(settle("failed"))
            yield "model refuses, perhaps billed", go(settle("unaccounted"))
        case "billed":
            yield "usage arrives", go(settle("settled"))
            yield "usage never arrives", go(settle("unaccounted"))
            if mine < posts and state.budget and session.holder == mine and state_of(session, mine) == "open":
                again = mine + posts
                if broken == "retry":
                    after = session._replace(
                        holder=again, calls=tuple((again if c == mine else c, s) for c, s in session.calls)
                    )
                else:
                    after = raise_call(session, mine, "unaccounted")
                    after = after._replace(holder=again, calls=(*after.calls, (again, "open")))
                yield "retries: old call unaccounted, new call open", go("retry-L", session=after, spend=1)
        case "retry-L":
            yield "old row unaccounted", go("insert", call=mine + posts, ledger=raise_row(ledger, mine, "unaccounted"))
        case "settled-S" | "failed-S" | "unaccounted-S":
            outcome = process.at[:-2]
            after = raise_call(session, mine, outcome, broken)
            yield process.at, go("end" if broken == "order" else f"{outcome}-L", session=after)
            if state.budget:
                yield f"{process.at}, answer lost", go(process.at, session=after, spend=1)
        case "settled-L" | "failed-L" | "unaccounted-L":
            outcome = process.at[:-2]
            then = f"{outcome}-S" if broken == "order" else "end"
            if ledger[mine] is None:
                yield f"{process.at}, too late to make a row", go(then)
            yield process.at, go(then, ledger=raise_row(ledger, mine, outcome))
        case "idle":  # the timer picks any row that is not final
            for call, row in enumerate(ledger):
                if row in ("open", "unaccounted"):
                    yield f"looks at call {call}", go("look", victim=call)
        case "look":
            row = ledger[victim]
            if row is None and broken != "fence":
                yield "no row", go("fence")
            elif row is None or row == "abandoned":
                yield "abandoned", go("abandon")
            else:
                yield f"row is {row}", go("raise-S")
        case "fence":
            if ledger[victim] is None:
                yield "fence", go("abandon", ledger=raise_row(ledger, victim, "abandoned"))
            else:
                yield "row has come", go("look")
        case "abandon":
            yield "abandon", go(resume, session=raise_call(session, victim, "abandoned"), victim=-1)
        case "raise-S":
            now = state_of(session, victim)
            if (session.holder == victim and not session.expired) or (now is None and broken == "orphan"):
                yield "leave it", go(resume, victim=-1)
            elif now == "open":
                yield (
                    "raise session",
                    go("raise-L", session=raise_call(session, victim, "unaccounted"), saw="unaccounted"),
                )
            else:
                yield "session says " + str(now), go("raise-L", saw=now or "unaccounted")
        case "raise-L":
            yield "raise ledger", go(resume, ledger=raise_row(ledger, victim, process.saw), victim=-1, saw="")


def world(state: State) -> Iterator[tuple[str, State]]:
    """What happens without any process: a lease runs out, a user erases the session."""
    session = state.session
    if session.holder is not None and not session.expired:
        yield "lease runs out", state._replace(session=session._replace(expired=True))
    if state.budget and not session.erased:
        gone = state.gone | {call for call, _ in session.calls}
        after = Session(session.etag + 1, erased=True)
        yield "session erased", state._replace(session=after, gone=gone, budget=state.budget - 1)


def recovered(session: Session, ledger: Rows, broken: str) -> State:
    """Everybody is gone and leases run out; the next turn and the timer recover what is left."""
    state = State(session._replace(expired=True), ledger, frozenset(), frozenset(), (Process("idle"),), 0)
    victims = [session.holder] if session.holder is not None else []
    victims += [c for c, row in enumerate(ledger) if row in ("open", "unaccounted")]
    for victim in victims:
        state = state._replace(processes=(Process("look", victim=victim),))
        while state.processes[0].at != "idle":
            state = next(s for label, s in steps(state, 0, broken) if label != "crash")
    return state


@cache
def wrong(session: Session, ledger: Rows, billed: frozenset[int], gone: frozenset[int], broken: str) -> str | None:
    """What is wrong in this state, or None."""
    for call in billed:
        if ledger[call] in (None, "abandoned"):
            return f"call {call} was billed and the ledger says {ledger[call]}"
    session, ledger = recovered(session, ledger, broken)[:2]
    for call, row in enumerate(ledger):
        if call in billed and row not in ("settled", "unaccounted"):
            return f"after recovery call {call} was billed and the ledger says {row}"
        if call not in billed and row == "settled":
            return f"call {call} is settled and was never billed"
        if row == "open":
            return f"after recovery the ledger still says open for call {call}"
    if session.holder is not None:
        return "after recovery the session is still locked"
    for kind, total in (("settled", session.settled), ("unaccounted", session.unaccounted)):
        calls = sum(s == kind for _, s in session.calls)
        rows = sum(row == kind and call not in gone for call, row in enumerate(ledger))
        if not total == calls == rows:
            return f"{kind}: head says {total}, turns {calls}, ledger {rows}"
    return None


def explore(posts: int, budget: int, broken: str) -> tuple[int, str | None, list[str]]:
    processes = (*(Process("read", call=i) for i in range(posts)), Process("idle"))
    start = State(Session(), (None,) * posts * 2, frozenset(), frozenset(), processes, budget)
    came_from: dict[State, tuple[State, str] | None] = {start: None}
    queue = deque([start])
    while queue:
        state = queue.popleft()
        if problem := wrong(state.session, state.ledger, state.billed, state.gone, broken):
            trace: list[str] = []
            while step := came_from[state]:
                state, label = step
                trace.append(label)
            return len(came_from), problem, trace[::-1]
        moves = [("world", label, after) for label, after in world(state)]
        for me in range(posts + 1):
            name = "timer" if me == posts else f"post {me}"
            moves += [(name, label, after) for label, after in steps(state, me, broken)]
        for name, label, after in moves:
            if after not in came_from:
                came_from[after] = (state, f"{name}: {label}")
                queue.append(after)
    return len(came_from), None, []


def main() -> int:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--posts", type=int, default=2, help="posts racing on one session (default 2)")
    parser.add_argument(
        "--budget", type=int, default=1, help="misfortunes beside crashes and stalls (default 1; 2 takes minutes)"
    )
    parser.add_argument(
        "--break", dest="broken", choices=BREAKS, default="", help="remove one rule and see what breaks"
    )
    options = parser.parse_args()
    seen, problem, trace = explore(options.posts, options.budget, options.broken)
    for line in trace:
        print("  " + line)
    print(f"{seen} states: {problem or 'every invariant holds'}")
    return 1 if problem else 0


if __name__ == "__main__":
    sys.exit(main())
