"""Errors inside an answer with status 200: some services begin or end a stream with an error object."""

import re
from collections.abc import Mapping
from typing import Any

from shared.model.wire_json import parsed

# Parts of an error's code or type -> the HTTP status that services send with it.
_STATUS_BY_WORD = {
    "rate_limit": 429,
    "insufficient_quota": 429,
    "content_filter": 400,
    "context_length": 400,
    "exceed_context": 400,
    "invalid_request": 400,
    "bad_request": 400,
    "badrequest": 400,
    "authentication": 401,
    "overloaded": 503,
    "unavailable": 503,
    "timeout": 504,
}


def error_in(chunk: Mapping[str, Any]) -> Mapping[str, Any] | None:
    """The error in an event or document: OpenAI's object, vLLM's (`object: error`), or plain text; else None."""
    error = chunk.get("error")
    if isinstance(error, dict) and error:
        return error
    if isinstance(error, str) and error:
        return {"message": error, **{name: chunk[name] for name in ("code", "type") if name in chunk}}
    return chunk if chunk.get("object") == "error" else None


def error_status(data: bytes) -> int | None:
    """The status of the error in an event; None if there is no error."""
    chunk = parsed(data)
    error = error_in(chunk) if isinstance(chunk, dict) else None
    return None if error is None else _status_of(error)


def _status_of(error: Mapping[str, Any]) -> int:
    """The status of an error object: a number in its fields, else the status by word, else 502."""
    words = [str(error.get(name)) for name in ("status", "code", "type")]
    for word in words:
        if re.fullmatch(r"[45][0-9][0-9]", word):
            return int(word)
    return next((status for name, status in _STATUS_BY_WORD.items() if name in " ".join(words).lower()), 502)
