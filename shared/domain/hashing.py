"""Hashes of ids and keys, for places where the originals must not be readable."""

import hashlib

_LABEL_LENGTH = 12


def sha256_hex(text: str) -> str:
    """SHA-256 of the text's UTF-8 bytes, in hex."""
    return hashlib.sha256(text.encode()).hexdigest()


def session_label(session_id: str) -> str:
    """The name of a session in logs, traces and emails. Its id would give access to the conversation."""
    return sha256_hex(session_id)[:_LABEL_LENGTH]
