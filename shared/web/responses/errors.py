"""Errors of openai/v1/responses and conversations, as OpenAI words them: its codes, its notation of fields.

The model service speaks chat completions. Where its errors name a field of those, the caller gets the name of the field
of the Responses API that it came from.
"""

import re
from collections.abc import Mapping
from typing import Any

import orjson
from azurefunctions.extensions.http.fastapi import Response

from shared.errors import (
    MAX_SHOWN,
    ChatError,
    ContextTooLong,
    InvalidRequest,
    ItemNotFound,
    LimitReached,
    UpstreamFailure,
)
from shared.web.http import json_error
from shared.web.openai import openai_error, rate_headers


def _word(pattern: str) -> str:
    """Only as a whole: not within a name or a path."""
    return rf"(?<![\w/]){pattern}(?![\w/])"


# Fields of chat completions as patterns, each with the field of the Responses API that becomes it.
_FIELDS = (
    (r"(?<!\w)(\w+\.)?max_(completion_)?tokens", "max_output_tokens"),  # (?<!\w): a long word is not tried again
    (_word("reasoning_effort"), "reasoning.effort"),
    (_word(r"response_format(\.json_schema)?"), "text.format"),
    (_word(r"messages(?=[.\[])(\.?\[\d+\])?(\.\w+|\[\d+\])*"), "input"),
    (r"(?<=')messages(?=')", "input"),
    (r"(?<!\.)verbosity", "text.verbosity"),
    (r"(tools\[\d+\])\.(?:function|custom)\.", r"\1."),
)
_CODES = {  # of this app, each with OpenAI's
    InvalidRequest.code: None,
    ItemNotFound.code: None,
    ContextTooLong.code: "context_length_exceeded",
    "response_not_found": None,
    "conversation_not_found": None,
}


class Refused(InvalidRequest):
    """The request is invalid, in OpenAI's words. `code`: one of OpenAI's; empty if it has none for this."""

    def __init__(
        self, message: str, *, param: str | None = None, code: str = "invalid_value", retry_after: int | None = None
    ) -> None:
        super().__init__(message, param=param, retry_after=retry_after)
        self.code = code


class ResponseNotFound(ChatError):
    code = "response_not_found"
    status = 404

    def __init__(self, response: str) -> None:
        super().__init__(f"Response with id '{response[:MAX_SHOWN]}' not found.")


class ConversationNotFound(ChatError):
    code = "conversation_not_found"
    status = 404

    def __init__(self, conversation: str) -> None:
        super().__init__(f"Conversation with id '{conversation[:MAX_SHOWN]}' not found.")


class ConversationLocked(Refused):
    """OpenAI's clients retry because the response says so; by its status they would not."""

    def __init__(self, retry_after: int | None) -> None:
        message = "Another process is currently operating on this conversation. Please retry in a few seconds."
        super().__init__(message, param="conversation", code="conversation_locked", retry_after=retry_after or 1)


def unsupported(param: str, message: str, code: str = "unsupported_parameter") -> Refused:
    """`code`: unsupported_parameter, or unsupported_value where other values of the field are supported."""
    return Refused(message, param=param, code=code)


def error_response(error: Exception) -> Response:
    """The error, with the model service's headers about waiting. After a call that may have been billed,
    x-should-retry is false: a repeated request without an Idempotency-Key would be paid twice."""
    response = json_error(*response_error(error))
    if isinstance(error, ChatError) and error.upstream:
        response.headers.update(error.upstream.headers)
    if isinstance(error, LimitReached) and error.rates:
        response.headers.update(rate_headers(error.rates, error.retry_after or 0))
    if isinstance(error, ConversationLocked):
        response.headers["x-should-retry"] = "true"
    if maybe_billed(error):
        response.headers["x-should-retry"] = "false"
    return response


def maybe_billed(error: Exception) -> bool:
    return error.maybe_billed if isinstance(error, UpstreamFailure) else not isinstance(error, ChatError)


def response_error(error: Exception) -> tuple[dict[str, Any], int, int | None]:
    """The error's fields, its status, and the seconds to wait."""
    fields, status, retry_after = openai_error(error)
    code = _CODES.get(fields["code"], fields["code"]) or None
    if isinstance(error, InvalidRequest) and error.upstream and not code:
        code = _upstream_code(error.upstream.body)
    if isinstance(error, ContextTooLong):
        fields["param"] = "input"
    if isinstance(error, ChatError) and not isinstance(error, Refused):
        fields["message"] = renamed(fields["message"])
        fields["param"] = renamed(fields["param"]) if fields["param"] else None
    return fields | {"code": code}, status, retry_after


def renamed(text: str) -> str:
    """Text of the model service with the fields' names in the Responses API."""
    for field, name in _FIELDS:
        text = re.sub(field, name, text)
    return text


def _upstream_code(body: bytes) -> str | None:
    try:
        parsed = orjson.loads(body)
    except orjson.JSONDecodeError:
        return None
    error = parsed.get("error") if isinstance(parsed, Mapping) else None
    code = error.get("code") if isinstance(error, Mapping) else None
    return code if isinstance(code, str) and not code.isdecimal() else None
