"""Errors inside an answer with status 200: some services begin or end a stream with an error object."""

import re
from typing import Any

from shared.model.error_body import read_error
from shared.model.usage import usage_of
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
_SUCCESS = (0, 200, "0", "200", "success", "ok")  # codes of an error object that every answer of some gateways has
_STATUS = re.compile("[45][0-9]{2}")


def unwrapped(value: Any) -> dict[str, Any] | None:
    """The chunk, document or error of an event: a JSON object, the only one of a list (Gemini's errors), or one inside
    an envelope of a gateway, such as {"code": 0, "data": {"choices": …}}. None if there is none."""
    if isinstance(value, list) and len(value) == 1:
        value = value[0]
    if not isinstance(value, dict):
        return None
    if "choices" in value or "error" in value:
        return value
    return next((each for each in value.values() if isinstance(each, dict) and "choices" in each), value)


def is_error(value: Any, name: bytes = b"") -> bool:
    """True if an event or document is an error: OpenAI's object, vLLM's (`object: error`), plain text, a bare object
    with a status as its code, or whatever an event with the name `error` has. An error object without words and a
    code beside choices is none, nor is one whose code is a success."""
    if isinstance(value, dict) and "choices" in value and "error" not in value:  # most events
        return False
    chunk = unwrapped(value)
    if chunk is None:
        return name == b"error" and bool(value or value is None)
    error, beside_choices = chunk.get("error"), "choices" in chunk
    if error and isinstance(error, str | list):
        return not (beside_choices and error in _SUCCESS)
    if error and isinstance(error, dict):
        named = [each for field, each in error.items() if each and not (beside_choices and field in ("type", "param"))]
        return bool(named) and not (beside_choices and error.get("code") in _SUCCESS)
    if beside_choices:
        return False
    has_status = bool(_STATUS.fullmatch(str(chunk.get("code")))) and isinstance(chunk.get("message"), str)
    return chunk.get("object") == "error" or has_status or (name == b"error" and bool(chunk))


def error_status(data: bytes, name: bytes = b"") -> int | None:
    """The status of the error in an event: the one that it names, else by its code or type, else 502. None if there is
    no error."""
    if not is_error(parsed(data), name):
        return None
    error = read_error(data)
    if not error.status and not error.message:  # an error of nothing but a code
        chunk = unwrapped(parsed(data)) or {}
        inner = chunk["error"] if isinstance(chunk.get("error"), dict) else {}
        if _STATUS.fullmatch(code := str(inner.get("code"))):
            return int(code)
    kind = re.sub(r"[\W_]", "", error.kind)
    return error.status or next((status for word, status in _STATUS_BY_WORD.items() if word in kind), 502)


def has_usage(data: bytes) -> bool:
    """True if an event reports usage, itself or in a choice."""
    chunk = unwrapped(parsed(data)) or {}
    choices = chunk.get("choices")
    reports = [chunk, *(choices if isinstance(choices, list) else [])]
    return any(usage_of(each.get("usage")) for each in reports if isinstance(each, dict))
