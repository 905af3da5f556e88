"""The storage request of each step of a turn or a deletion, so that a test can break it through the proxy."""

from collections.abc import Iterator
from contextlib import contextmanager

from tests.support.proxy import Answer, Match, Rule, Stall, TcpProxy

UNAVAILABLE = Answer(503)
REFUSED = Answer(403)  # which the SDK does not retry


def session_transaction(session: str) -> Match:
    """A transaction on a session. A turn's first is the reservation, its last the settlement; retries between."""
    return Match("POST", r"/\$batch$", body=rf"""PartitionKey(=|": )['"]{session}['"]""")


def ledger_insert(session: str) -> Match:
    """Inserts a ledger row."""
    return Match("POST", r"usage$", body=rf'"RowKey": "{session}~')


def ledger_update(session: str) -> Match:
    """Raises the state of a ledger row."""
    return Match("PUT", rf"usage\(.*RowKey='{session}~")


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
