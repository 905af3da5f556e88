"""Hashes of ids and keys, for places where the originals must not be readable."""

import hashlib

_LABEL_LENGTH = 12


def sha256_hex(text: str) -> str:
    """SHA-256 of the text's UTF-8 bytes, in hex."""
    return hashlib.sha256(text.encode()).hexdigest()


def session_label(session: str, *, is_reference: bool) -> str:
    """The short name of a session in logs, traces and emails: the beginning of its reference. A session of 0.2.0 and
    earlier may have only its id, which would give access to the conversation."""
    return (session if is_reference else sha256_hex(session))[:_LABEL_LENGTH]
