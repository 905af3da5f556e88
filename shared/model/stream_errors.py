"""Errors inside an answer with status 200: some services begin or end a stream with an error object."""

import re
from collections.abc import Mapping
from typing import Any

from shared.model.error_body import read_error
from shared.model.wire_json import parsed

# Parts of an error's code or type, without "_" and "-" -> the HTTP status that services send with it.
_STATUS_BY_WORD = {
    "ratelimit": 429,
    "toomanyrequests": 429,
    "insufficientquota": 429,
    "throttl": 429,
    "budgetexceeded": 429,
    "contentfilter": 400,
    "contentpolicy": 400,
    "datainspection": 400,
    "responsibleai": 400,
    "moderation": 400,
    "contextlength": 400,
    "contextwindow": 400,
    "exceedcontext": 400,
    "invalidrequest": 400,
    "badrequest": 400,
    "unprocessable": 422,
    "authentication": 401,
    "permission": 403,
    "notfound": 404,
    "overloaded": 503,
    "unavailable": 503,
    "timeout": 504,
}


def is_error(chunk: Mapping[str, Any]) -> bool:
    """True if an event or document is an error: OpenAI's object, vLLM's (`object: error`), or plain text."""
    error = chunk.get("error")
    return bool(error and isinstance(error, dict | str)) or chunk.get("object") == "error"


def error_status(data: bytes) -> int | None:
    """The status of the error in an event: the one that it names, else by its code or type, else 502. None if there is
    no error."""
    chunk = parsed(data)
    if not isinstance(chunk, dict) or not is_error(chunk):
        return None
    error = read_error(data)
    kind = re.sub(r"[\W_]", "", error.kind)
    return error.status or next((status for word, status in _STATUS_BY_WORD.items() if word in kind), 502)
