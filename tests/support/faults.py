"""The storage request of each step of a turn or a deletion, so that a test can break it through the proxy."""

import re
from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from dataclasses import dataclass

from tests.support.proxy import Answer, Match, RecordedRequest, Rule, Stall, TcpProxy

UNAVAILABLE = Answer(503)
REFUSED = Answer(403)  # which the SDK does not retry


def session_transaction(session: str) -> Match:
    """A transaction on a session. A turn's first is the reservation, its last the settlement; retries between."""
    return Match("POST", r"/\$batch$", body=rf"""PartitionKey(=|": )['"]{session}['"]""")


@dataclass(frozen=True)
class LedgerWrite(Match):
    """A write of the ledger row of a session's call. Its key has the session's reference, which the proxy has forwarded
    with the reservation."""

    session: str = ""

    def matches(self, request: RecordedRequest, earlier: Sequence[RecordedRequest] = ()) -> bool:
        return super().matches(request, earlier) and bool(re.fullmatch(self.session, _session_of(request, earlier)))


def ledger_insert(session: str) -> Match:
    """Inserts a ledger row."""
    return LedgerWrite("POST", r"usage$", session=session)


def ledger_update(session: str) -> Match:
    """Raises the state of a ledger row."""
    return LedgerWrite("PUT", r"usage\(", session=session)


_sessions: dict[bytes, str] = {}  # by reference


def _session_of(request: RecordedRequest, earlier: Sequence[RecordedRequest]) -> str:
    key = re.search(rb"RowKey(?:='|\": \")(\w{32})~", request.path.encode() + request.body)
    reference = key.group(1) if key else b""
    if reference not in _sessions:
        reservation = next(
            (each.body for each in tuple(earlier) if reference in each.body and "$batch" in each.path), b""
        )
        partition = re.search(rb'"PartitionKey": "([^"]*)"', reservation)
        _sessions[reference] = partition.group(1).decode() if partition else ""
    return _sessions[reference]


def deletion_insert(session: str) -> Match:
    """Inserts the row of a deletion into `~erasing`."""
    return Match("POST", r"sessions$", body=rf'~erasing.*"session": "{session}"')


def deletion_mark(session: str) -> Match:
    """Writes the deletion's ID to the session's head."""
    return Match("PUT", rf"sessions\(PartitionKey='{session}',RowKey='head'\)")


DELETION_END = Match("DELETE", r"sessions\(PartitionKey='~erasing'")


@contextmanager
def stall_request(storage: TcpProxy, match: Match, *, nth: int = 1, after_answer: bool = False) -> Iterator[Rule]:
    """Hold the request (or its answer, once it is committed) until released, at the latest until the block ends."""
    rule = storage.on(match, Stall(after_answer=after_answer), nth=nth)
    with rule.gate:
        yield rule
