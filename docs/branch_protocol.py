#!/usr/bin/env python3
"""Executable specification of branches: explores every interleaving of requests that continue the same turn.

    python3 docs/branch_protocol.py            explore the protocol; exit 0 if all invariants hold
    python3 docs/branch_protocol.py --break X  the same without rule X (see BREAKS); exit 1, print the shortest trace

docs/protocol.py specifies a session and its money; a branch is a session like any other, so nothing of that changes.
This file adds which session a turn goes to that continues turn n of session P (`previous_response_id`):
  - in P, if n is P's latest turn and no lease runs; the reservation is guarded by the ETag of P's head;
  - in a branch otherwise: a new session that names (P, n). So two requests never wait for each other.
Once n is not the latest turn, it never is again.

Requests with the same Idempotency-Key are one request. Its record is written with the reservation, in P or in the
branch. A request reads P's head, then P's record. If it has to branch, it first agrees on the branch with all other
requests that have this key: by a pointer that is inserted and never replaced. The branch's own record then decides.
A turn whose lease is over is taken for dead, and its request may be made again, as in protocol.py.

A branch is entered in P's partition, so that P shows its branches, and retention keeps P while one is in use:
  insert the row -> read P's head again (gone: delete the row, refuse) -> store the branch
An erasure marks P's head, then lists and deletes P's rows, then deletes the head. So no row that names a branch is
left; at most, after a crash at that moment, one with the branch's id, which says nothing: the server makes it.

"P's head" is that of the session that was read first. In api/chat callers choose ids, so after an erasure there can be
another session with P's id. A branch stores when P was begun, and a head that was begun at another time is not P's.
"""

import argparse
import sys
from collections import deque
from collections.abc import Iterator
from typing import Any, NamedTuple

BREAKS = {
    "latest": "a turn goes on in place although another one is the latest by now",
    "record": "a reservation in place does not store the record of its key",
    "order": "the record in P is read before P's head",
    "pointer": "requests with one key do not agree on their branch",
    "branch-record": "a request does not look for its key in the branch",
    "enter-late": "a branch is stored before it is entered in P's partition",
    "look-again": "P's head is not read again after a branch was entered",
    "mark": "an erasure lists P's rows before it marks the head",
}
LEAVING = ("look again", "leave")  # a request that is here deletes its row from a parent that is gone


class Session(NamedTuple):
    etag: int = 0
    holder: int | None = None  # the request whose turn holds the lease
    later: int = 0  # turns after n; in a branch: turns
    record: tuple[int, ...] = ()  # requests whose turns used the key


class Process(NamedTuple):
    at: str = "head"
    etag: int = -1
    latest: bool = False  # n was the latest turn of P
    seen: tuple[int, ...] = ()  # P's record, as it was read
    branch: int = -1


class State(NamedTuple):
    parent: Session
    branches: tuple[Session | None, ...]
    pointer: int | None
    turns: tuple[str, ...]  # by request: "", open, expired, answered, late (answered after its lease was over), failed
    rows: frozenset[int]  # branches entered in P's partition
    erasure: str  # "", marked, listed, gone
    listed: frozenset[int]  # rows that the erasure is to delete
    processes: tuple[Process, ...]
    keyed: frozenset[int]  # requests with the one Idempotency-Key
    problem: str = ""


def put(values: tuple[Any, ...], at: int, value: Any) -> tuple[Any, ...]:
    return (*values[:at], value, *values[at + 1 :])


def answered(state: State, requests: tuple[int, ...]) -> bool:
    return any(state.turns[each] in ("answered", "late") for each in requests)


def reserve(state: State, pid: int, session: Session, *, record: bool) -> tuple[Session, State]:
    """The session with the request's turn. Two turns of one key are a fault, unless the other was taken for dead."""
    same = [turn for at, turn in enumerate(state.turns) if {at, pid} <= state.keyed and at != pid]
    problem = "one request is paid for twice" if {"open", "answered"} & set(same) else state.problem
    record_turns = (*session.record, pid) if pid in state.keyed and record else session.record
    session = session._replace(etag=session.etag + 1, holder=pid, later=session.later + 1, record=record_turns)
    return session, state._replace(turns=put(state.turns, pid, "open"), problem=problem)


def steps(state: State, pid: int, broken: str) -> Iterator[tuple[str, State]]:
    process, parent, is_erased, keyed = state.processes[pid], state.parent, state.erasure != "", pid in state.keyed

    def move(at: str, after: State = state, **fields: Any) -> State:
        return after._replace(processes=put(after.processes, pid, process._replace(at=at, **fields)))

    if process.at not in ("end", "dead"):
        yield "crash", move("dead" if process.at in LEAVING else "end")
    match process.at:
        case "head" if broken == "order" and not process.seen and process.etag < 0:
            yield "read the record in P", move("head", seen=parent.record, etag=0)
        case "head":
            latest = parent.later == 0
            if is_erased:
                yield "P is gone: 400", move("end")
            else:
                at = "seen" if broken == "order" else "record"
                yield "read P's head", move(at, etag=parent.etag, latest=latest)
        case "record":
            yield "read the record in P", move("seen", seen=parent.record)
        case "seen":
            if keyed and answered(state, process.seen):
                yield "replay", move("end")
            elif keyed and any(state.turns[each] == "open" for each in process.seen):
                yield "its own turn is running: 409", move("end")
            elif process.latest or broken == "latest":
                yield "n is the latest turn", move("in place")
            else:
                yield "n is not the latest turn", move("point")
        case "in place":
            if is_erased:
                yield "P is gone: 400", move("end")
            elif parent.etag != process.etag and broken != "latest":
                yield "lose the race", move("head", etag=-1, seen=())
            else:
                problem = "a turn went on in place after another one" if parent.later else ""
                after, reserved = reserve(state, pid, parent, record=broken != "record")
                reserved = reserved._replace(parent=after, problem=problem or reserved.problem)
                yield "reserve in P", move("run", reserved, branch=-1)
        case "point":
            if not keyed or broken == "pointer":
                yield "make up a branch", move("find", branch=pid)
            elif state.pointer is None:
                yield "point to a branch", move("find", state._replace(pointer=pid), branch=pid)
            else:
                yield "follow the pointer", move("find", branch=state.pointer)
        case "find":
            branch = state.branches[process.branch]
            if branch is None or broken == "branch-record":
                yield "there is no branch yet", move("store" if broken == "enter-late" else "enter", etag=-1)
            elif answered(state, branch.record):
                yield "replay", move("end")
            elif any(state.turns[each] == "open" for each in branch.record):
                yield "its own turn is running: 409", move("end")
            else:
                yield "its turn was taken for dead", move("again", etag=branch.etag)
        case "enter":
            entered = state._replace(rows=state.rows | {process.branch})
            then = "end" if broken == "enter-late" else "store" if broken == "look-again" else "look again"
            yield "enter the branch in P's partition", move(then, entered)
        case "look again":
            yield ("P is gone", move("leave")) if is_erased else ("P is there", move("store"))
        case "leave":
            yield "delete the row", move("end", state._replace(rows=state.rows - {process.branch}))
        case "store" | "again":
            branch = state.branches[process.branch]
            if branch is not None and broken != "branch-record" and branch.etag != process.etag:
                yield "lose the race", move("find")
            else:
                after, reserved = reserve(state, pid, branch or Session(), record=True)
                reserved = reserved._replace(branches=put(state.branches, process.branch, after))
                yield "reserve in the branch", move("run", reserved)
        case "run":
            in_branch = process.branch >= 0
            session = (state.branches[process.branch] if in_branch else parent) or Session()
            ended = session._replace(etag=session.etag + 1, holder=None if session.holder == pid else session.holder)
            settled = (
                state._replace(branches=put(state.branches, process.branch, ended))
                if in_branch
                else state._replace(parent=ended)
            )
            then = "enter" if in_branch and broken == "enter-late" else "end"
            outcome = "late" if state.turns[pid] == "expired" else "answered"
            yield "answer", move(then, settled._replace(turns=put(state.turns, pid, outcome)))
            yield "fail", move(then, settled._replace(turns=put(state.turns, pid, "failed")))


def environment(state: State, broken: str) -> Iterator[tuple[str, State]]:
    """Leases that expire, and an erasure of P."""
    for pid, turn in enumerate(state.turns):
        if turn == "open":
            expired = state._replace(turns=put(state.turns, pid, "expired"))
            yield f"the lease of request {pid} expires", expired
    match state.erasure:
        case "" if broken == "mark" and not state.listed:
            yield "erasure: list P's rows", state._replace(listed=state.rows | {-1})
        case "":
            yield "erasure: mark P's head", state._replace(erasure="marked" if broken != "mark" else "listed")
        case "marked":
            yield "erasure: list P's rows", state._replace(erasure="listed", listed=state.rows)
        case "listed":
            yield "erasure: delete rows and head", state._replace(erasure="gone", rows=state.rows - state.listed)


def violation(state: State) -> str:
    if state.problem:
        return state.problem
    leaving = {process.branch for process in state.processes if process.at in (*LEAVING, "dead")}
    if state.erasure == "gone" and any(state.branches[branch] for branch in state.rows - leaving):
        return "P is erased, but a row of its partition names a branch"
    for branch, session in enumerate(state.branches):
        storing = any(process.at == "enter" and process.branch == branch for process in state.processes)
        if session and state.erasure == "" and branch not in state.rows and not storing:
            return "a branch is not entered with its parent"
    return ""


def explore(requests: int, broken: str) -> tuple[int, str, list[str]]:
    predecessors: dict[State, tuple[State, str] | None] = {}
    for keyed in (frozenset[int](), frozenset(range(requests - 1)), frozenset(range(requests))):
        processes = (Process(),) * requests
        none = (None,) * requests
        start = State(Session(), none, None, ("",) * requests, frozenset(), "", frozenset(), processes, keyed)
        predecessors[start] = None
    queue = deque(predecessors)
    while queue:
        state = queue.popleft()
        if problem := violation(state):
            trace: list[str] = []
            while step := predecessors[state]:
                state, label = step
                trace.append(label)
            return len(predecessors), problem, trace[::-1]
        moves = [("environment", label, after) for label, after in environment(state, broken)]
        for pid in range(requests):
            moves += [(f"request {pid}", label, after) for label, after in steps(state, pid, broken)]
        for name, label, after in moves:
            if after not in predecessors:
                predecessors[after] = (state, f"{name}: {label}")
                queue.append(after)
    return len(predecessors), "", []


def main() -> int:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--requests", type=int, default=3, help="requests that continue the turn (default 3)")
    parser.add_argument("--break", dest="broken", choices=BREAKS, default="", help="remove one rule")
    options = parser.parse_args()
    seen, problem, trace = explore(options.requests, options.broken)
    for line in trace:
        print("  " + line)
    print(f"{seen} states: {problem or 'every invariant holds'}")
    return 1 if problem else 0


if __name__ == "__main__":
    sys.exit(main())
