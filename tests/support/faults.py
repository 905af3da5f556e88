"""Which request to storage is which step of a turn, so that a test can break it from outside."""

from collections.abc import Iterator
from contextlib import contextmanager

from tests.support.proxy import Answer, Match, Rule, Stall, TcpProxy

UNAVAILABLE = Answer(503)
REFUSED = Answer(403)  # which the SDK does not try again


def transaction(session: str) -> Match:
    """A turn's first is its reservation, its last its settlement; between them a retry's."""
    return Match("POST", r"/\$batch$", body=rf"""PartitionKey(=|": )['"]{session}['"]""")


def entering(session: str) -> Match:
    """A row of the ledger is inserted."""
    return Match("POST", r"usage$", body=rf'"RowKey": "{session}~')


def raising(session: str) -> Match:
    """A row of the ledger is raised."""
    return Match("PUT", rf"usage\(.*RowKey='{session}~")


def announcing(session: str) -> Match:
    """A removal's row is put into `~erasing`."""
    return Match("POST", r"sessions$", body=rf'~erasing.*"session": "{session}"')


def marking(session: str) -> Match:
    """A removal's id is put on the head."""
    return Match("PUT", rf"sessions\(PartitionKey='{session}',RowKey='head'\)")


FORGETTING = Match("DELETE", r"sessions\(PartitionKey='~erasing'")


@contextmanager
def kept(storage: TcpProxy, match: Match, *, nth: int = 1, after_answer: bool = False) -> Iterator[Rule]:
    """Keeps the request (or its answer, once it is done) until released, or else until the block ends."""
    rule = storage.on(match, Stall(after_answer=after_answer), nth=nth)
    with rule.gate:
        yield rule
