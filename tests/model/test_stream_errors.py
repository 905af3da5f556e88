"""The status of an error that comes inside an answer with status 200."""

import json
from typing import Any

import pytest

from shared.model.stream_errors import error_status

INNER = {"error": {"message": "no", "type": "BadRequestError", "code": 400}}
STATUSES: dict[str, tuple[dict[str, Any], int]] = {
    "a number": ({"message": "no", "code": 429}, 429),
    "numeric text": ({"message": "no", "code": "404"}, 404),
    "OpenAI's words": ({"message": "no", "type": "invalid_request_error", "code": "rate_limit_exceeded"}, 429),
    "LiteLLM's class": ({"message": "no", "type": "RateLimitError", "param": "None", "code": None}, 429),
    "vLLM's class": ({"message": "no", "type": "BadRequestError"}, 400),
    "a class": ({"message": "no", "type": "UnprocessableEntityError"}, 422),
    "hyphens": ({"message": "no", "code": "context-length-exceeded"}, 400),
    "capitals": ({"message": "no", "code": "CONTENT_FILTER"}, 400),
    "Anthropic's": ({"message": "no", "type": "overloaded_error"}, 503),
    "JSON in the message": ({"message": f"Error code: 400 - {json.dumps(INNER)}"}, 400),
    "a repr in the message": ({"message": f"litellm.BadRequestError: {INNER}"}, 400),
    "unknown words": ({"message": "no", "type": "server_error"}, 502),
    "no words": ({"message": "no"}, 502),
}


@pytest.mark.parametrize("report", STATUSES)
def test_error_has_the_status_that_it_names_or_means(report: str) -> None:
    error, status = STATUSES[report]
    assert error_status(json.dumps({"error": error}).encode()) == status
    assert error_status(json.dumps({"object": "error", **error}).encode()) == status


@pytest.mark.parametrize(
    "event",
    [
        b'{"choices": []}',
        b'{"error": null}',
        b'{"error": {}}',
        b'[{"error": 1}]',
        b"ping",
        b'{"error": {"message": "", "type": "", "param": "", "code": null}}',
        b'{"choices": [], "error": {"message": "", "type": "none", "param": "", "code": null}}',
        b'{"choices": [], "error": {"message": "success", "code": 0}}',
        b'{"choices": [], "error": "success"}',
        b'{"code": 0, "message": "success", "data": {"choices": []}}',
        b'{"code": 200, "message": "alive"}',
    ],
)
def test_other_events_have_none(event: bytes) -> None:
    assert error_status(event) is None


@pytest.mark.parametrize(
    ("event", "name", "status"),
    [
        (b'[{"error": {"code": 429, "message": "no", "status": "RESOURCE_EXHAUSTED"}}]', b"", 429),  # Gemini's form
        (b'{"code": 429, "message": "no"}', b"error", 429),
        (b'{"code": 429, "message": "no"}', b"", 429),
        (b'{"message": "no"}', b"error", 502),
        (b"no", b"error", 502),
        (b'{"choices": [], "error": {"code": 500}}', b"", 500),
        (b'{"choices": [], "error": {"message": "no"}}', b"", 502),
        (b'{"error": {"message": "no", "code": 0}}', b"", 502),
    ],
)
def test_error_in_other_envelopes_is_one(event: bytes, name: bytes, status: int) -> None:
    assert error_status(event, name) == status


def test_error_that_is_plain_text_has_the_code_beside_it() -> None:
    assert error_status(b'{"error": "no", "code": 429}') == 429
    assert error_status(b'{"error": "no"}') == 502
