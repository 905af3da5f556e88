"""What an error body says, in every form that services send."""

import json
from collections.abc import Callable
from typing import Any

import pytest
from hypothesis import given
from hypothesis import strategies as st

from shared.model.error_body import MAX_MESSAGE, ErrorBody, read_error

EXTRA = {"type": "extra_forbidden", "loc": ["body", "max_completion_tokens"], "msg": "Extra inputs are not permitted"}
EXTRA_SHOWN = "max_completion_tokens: Extra inputs are not permitted"
UNSUPPORTED = (
    "Unsupported parameter: 'max_tokens' is not supported with this model. Use 'max_completion_tokens' instead."
)
OPENAI = {"message": UNSUPPORTED, "type": "invalid_request_error", "param": "max_tokens", "code": "unsupported"}
PYTHON_LOC = {**EXTRA, "loc": ("body", "max_completion_tokens"), "input": {"role": "it's"}}

BODIES: dict[str, tuple[Any, str, str | None]] = {
    "OpenAI": ({"error": OPENAI}, UNSUPPORTED, "max_tokens"),
    "vLLM": ({"object": "error", "message": "wrong", "type": "BadRequestError", "code": 400}, "wrong", None),
    "FastAPI, text": ({"detail": "wrong"}, "wrong", None),
    "FastAPI, list": ({"detail": [EXTRA]}, EXTRA_SHOWN, "max_completion_tokens"),
    "editor-code-assistant/eca#231": (
        {"object": "error", "message": {"detail": [EXTRA]}, "type": "invalid_request_error", "param": None},
        EXTRA_SHOWN,
        "max_completion_tokens",
    ),
    "mistralai/platform-docs-public#7": (
        {"object": "error", "message": json.dumps({"detail": [EXTRA]}), "code": "1000"},
        EXTRA_SHOWN,
        "max_completion_tokens",
    ),
    "BerriAI/litellm#11696": (
        '{"error":{"code":"Invalid input","message":"{"detail":[{"type":"extra_forbidden","loc":["body",'
        '"stream_options","include_usage"],"msg":"Extra inputs are not permitted","input":true}]}","status":422}}',
        "include_usage: Extra inputs are not permitted",
        "include_usage",
    ),
    "two documents (BerriAI/litellm#26322)": (
        json.dumps({"detail": [EXTRA]}) + "\n" + json.dumps({"statusCode": 422}),
        EXTRA_SHOWN,
        "max_completion_tokens",
    ),
    "Python's repr": ({"object": "error", "message": repr([PYTHON_LOC])}, EXTRA_SHOWN, "max_completion_tokens"),
    "repr in words": ({"error": {"message": f"Error code: 400 - { ({'error': OPENAI})!r}"}}, UNSUPPORTED, "max_tokens"),
    "JSON in words": (
        {"error": {"message": f"litellm.BadRequestError: x - {json.dumps({'error': OPENAI})}. Model Group=m"}},
        UNSUPPORTED,
        "max_tokens",
    ),
    "escapes of JSON in words": (
        {"error": {"message": 'Error code: 400 - {"error": {"message": "zu gro\\u00df:\\n\\"9\\"", "code": 400}}'}},
        'zu groß:\n"9"',
        None,
    ),
    "OpenRouter's metadata": (
        {"error": {"message": "Provider returned error", "metadata": {"raw": json.dumps({"error": OPENAI})}}},
        UNSUPPORTED,
        "max_tokens",
    ),
    "openai/openai-python#2296": (
        {"error": {"code": 400, "message": "Validation error at #/stream_options: Extra inputs are not permitted"}},
        "Validation error at #/stream_options: Extra inputs are not permitted",
        "stream_options",
    ),
    "words in param (AQBot-Desktop/AQBot#93)": (
        {"error": {"message": "Param Incorrect", "param": "max_tokens is too large: 9."}},
        "Param Incorrect: max_tokens is too large: 9.",
        None,
    ),
    "pydantic's input": (
        {
            "error": {
                "message": "max_tokens\n  Input should be less [type=less_than, input_value={'a': 1}, input_type=x]"
            }
        },
        "max_tokens\n  Input should be less",
        None,
    ),
    "Gemini's list": ([{"error": {"code": 400, "message": "wrong"}}], "wrong", None),
    "two problems": (
        {"detail": [EXTRA, {"loc": ["body", "n"], "msg": "must be 1"}]},
        f"{EXTRA_SHOWN}; n: must be 1",
        "max_completion_tokens",
    ),
    "the caller's own schema": (
        {"error": {"message": "Invalid schema for function 'f': {'type': 'objec'} is wrong."}},
        "Invalid schema for function 'f': {'type': 'objec'} is wrong.",
        None,
    ),
    "LiteLLM's missing param": (
        {"error": {"message": "wrong", "type": "None", "param": "None", "code": "400"}},
        "wrong",
        None,
    ),
    "repr with a missing param": (
        {"error": {"message": "Error code: 400 - {'error': {'message': 'wrong', 'param': 'None', 'code': None}}"}},
        "wrong",
        None,
    ),
    "message": ({"message": "wrong", "statusCode": 400}, "wrong", None),
    "error as text": ({"error": "wrong"}, "wrong", None),
    "plain text": ("upstream connect error", "upstream connect error", None),
    "HTML": ("<!DOCTYPE html><html><body>502</body></html>", "", None),
    "nothing": ("", "", None),
    "null": ("null", "", None),
    "no words": ({"error": {"message": {"a": 1}, "code": None}}, "", None),
    "cut JSON": ('{"error": {"code": 1, ', "", None),
}


@pytest.mark.parametrize("name", BODIES)
def test_words_and_field_are_read_from_every_form(name: str) -> None:
    body, message, param = BODIES[name]
    read = read_error((body if isinstance(body, str) else json.dumps(body)).encode())
    assert (read.message, read.param) == (message, param)


def test_every_field_that_is_at_fault_is_named() -> None:
    body = {"detail": [{"loc": ["body", "stream_options", "include_usage"], "msg": "no"}, EXTRA]}
    assert read_error(json.dumps(body).encode()).fields == ("stream_options", "max_completion_tokens")


@pytest.mark.parametrize("absent", [None, "None", "null", ""])
def test_missing_values_are_absent_however_they_are_written(absent: str | None) -> None:
    error = {"message": "wrong", "type": absent, "param": absent, "code": absent}
    for body in ({"error": error}, {"error": {"message": f"Error code: 400 - { ({'error': error})!r}"}}):
        read = read_error(json.dumps(body).encode())
        assert (read.kind, read.param, read.fields) == ("", None, ())


NAMES_400: list[Any] = [
    {"error": {"message": "no", "code": 400}},
    {"error": {"message": "no", "code": "400"}},
    {"error": {"message": "no", "code": "bad", "status": 400}},
    {"error": "no", "code": 400},
    {"object": "error", "message": "no", "code": 400},
    {"error": {"message": json.dumps({"error": {"message": "no", "code": 400}})}},
    {"error": {"message": f"litellm.BadRequestError: {json.dumps({'error': {'message': 'no', 'code': 400}})}"}},
    {"error": {"message": str({"error": {"message": "no", "code": 400}})}},
    {"error": {"message": "Error code: 400 - {'error': {'message': 'no', 'type': 'x'}}"}},
    {"error": {"message": "no", "code": 502, "metadata": {"raw": '{"error": {"message": "no", "code": 400}}'}}},
    {"error": {"message": "no", "code": 400, "metadata": {"raw": '{"error": {"message": "no", "code": "bad"}}'}}},
]


@pytest.mark.parametrize("body", NAMES_400, ids=json.dumps)
def test_status_that_a_body_names_is_read(body: Any) -> None:
    assert read_error(json.dumps(body).encode()).status == 400


WRAPPERS: list[Callable[[Any], Any]] = [
    lambda inner: {"error": inner},
    lambda inner: {"detail": inner},
    lambda inner: {"object": "error", "message": inner, "type": "x", "param": None, "code": None},
    lambda inner: [inner],
    lambda inner: {"error": {"message": json.dumps(inner), "code": "400"}},
    lambda inner: {"error": {"message": f"Error code: 400 - {inner!r}"}},
    lambda inner: {"message": f"Provider failed: {json.dumps(inner)}. Retry."},
]


@given(st.lists(st.sampled_from(WRAPPERS), max_size=2))
def test_problem_is_found_in_any_wrapping(wrappers: list[Callable[[Any], Any]]) -> None:
    body: Any = {"detail": [EXTRA]}
    for wrap in wrappers:
        body = wrap(body)
    read = read_error(json.dumps(body).encode())
    assert (read.message, read.param, read.fields) == (EXTRA_SHOWN, "max_completion_tokens", ("max_completion_tokens",))


json_values = st.recursive(
    st.none() | st.booleans() | st.integers() | st.floats() | st.text(),
    lambda inner: (
        st.lists(inner)
        | st.dictionaries(st.sampled_from(["error", "message", "detail", "loc", "param", "code", "innererror"]), inner)
    ),
)


@given(st.binary() | json_values.map(lambda value: json.dumps(value).encode()))
def test_any_body_is_read(body: bytes) -> None:
    read = read_error(body)
    assert isinstance(read, ErrorBody)
    assert len(read.message) <= MAX_MESSAGE
    assert not read.message.startswith('{"')


@pytest.mark.parametrize("opening", ["[", '{"error":', "{'error': ", '"\\"', "[{'loc': (", "{'msg': '\\"])
def test_deep_and_unclosed_bodies_are_read_in_time(opening: str) -> None:
    assert len(read_error((opening * 20_000).encode()).message) <= MAX_MESSAGE
