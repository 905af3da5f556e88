"""Idempotency-Key: a repeated request with the same key gets the stored answer.

Several turns may have used a key: the earlier ones were interrupted, and the process of each may still settle it, for
example if it could not reach storage for longer than its lease. docs/protocol.py shows what breaks without them.

https://datatracker.ietf.org/doc/draft-ietf-httpapi-idempotency-key-header/
"""

from dataclasses import replace

from shared.domain.conversation import IdempotencyRecord, Session, Turn
from shared.domain.hashing import sha256_hex
from shared.errors import IdempotencyMismatch, InvalidRequest
from shared.turns.ports import Sessions
from shared.turns.requests import Request

MIN_FIRST_KEY_LENGTH = 22  # characters: 128 random bits in base64


def new_record(request: Request) -> IdempotencyRecord | None:
    """A new record for the request's key, not stored yet; None if there is no key. Keys are scoped to the caller.
    Neither part contains a line break, so different pairs have different hashes."""
    if request.idempotency_key is None:
        return None
    key = sha256_hex(f"{request.principal.name or ''}\n{request.idempotency_key}")
    return IdempotencyRecord(key=key, request=request.fingerprint)


def check_first_key(request: Request) -> None:
    """Raises InvalidRequest if the key would be the only secret that protects the session, and is guessable."""
    key = request.idempotency_key
    if key is not None and request.principal.name is None and len(key) < MIN_FIRST_KEY_LENGTH:
        raise InvalidRequest(
            "Without a session_id, the Idempotency-Key is the only secret that protects the session. Use at least"
            f" {MIN_FIRST_KEY_LENGTH} random characters, such as a UUID.",
            param="Idempotency-Key",
        )


def check_same_request(new: IdempotencyRecord, stored: IdempotencyRecord) -> None:
    if new.request != stored.request:
        raise IdempotencyMismatch(
            "This Idempotency-Key was used with another request. Use a new key for a new request.",
            param="Idempotency-Key",
        )


async def answered_turn(
    sessions: Sessions, session: Session, record: IdempotencyRecord
) -> tuple[Turn | None, IdempotencyRecord]:
    """The newest turn that answered this key. None if there is none: the request may then be retried, with the returned
    record of the turns that may still be answered. Read the session before: its version guards the reservation against
    a turn that is answered after this."""
    unfinished: list[int] = []
    for number in reversed(record.turns):
        turn = await sessions.turn(session.id, number)
        if turn and turn.answered:
            return turn, record
        if turn and turn.finished is None:
            unfinished.insert(0, number)
    return None, replace(record, turns=tuple(unfinished))
