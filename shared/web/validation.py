"""Pydantic's validation errors as messages for callers."""

from collections.abc import Sequence
from typing import Any

from pydantic import ValidationError

from shared.web.contract.chat import IMAGE_URL
from shared.web.contract.fields import SESSION_ID, SESSION_ID_FORM

MESSAGES = {  # by pydantic's error type
    "string_type": "should be a string",
    "list_type": "should be a list",
    "dict_type": "should be an object",
    "model_type": "should be an object",
    "model_attributes_type": "should be an object",
    "bool_type": "should be true or false",
    "int_type": "should be a whole number",
    "float_type": "should be a number",
    "string_too_short": "should not be empty",
    "string_too_long": "should have at most {max_length} characters",
    "too_short": "should not be empty",
    "too_long": "should have at most {max_length} items",
    "greater_than_equal": "should be at least {ge}",
    "less_than": "should be less than {lt}",
    "less_than_equal": "should be at most {le}",
    "literal_error": "should be {expected}",
    "missing": "is missing",
    "value_error": "{error}",
    "union_tag_not_found": "should have the type 'text' or 'image_url'",
    "union_tag_invalid": "should have the type 'text' or 'image_url'",
    SESSION_ID: f"should be {SESSION_ID_FORM}",
    IMAGE_URL: "should begin with https://, http:// or data:image/",
}
_UNIONS = {  # fields with two possible types
    "message": "should be a string or a list of content parts",
    "stop": "should be a string or a list of strings",
    "tool_choice": "should be a string or an object",
}
_TYPE_ERRORS = frozenset({"string_type", "list_type", "dict_type"})
_MAX_PATH_LENGTH = 100


def first_problem(error: ValidationError) -> tuple[str | None, str]:
    """The invalid field, such as `message[0].text`, and a message that states the problem."""
    errors = error.errors(include_url=False)
    field = str(errors[0]["loc"][0]) if errors[0]["loc"] else None
    if field in _UNIONS:
        nested = [problem for problem in errors if problem["loc"][0] == field and not _is_other_type(problem)]
        if not nested:
            return field, f"{field} {_UNIONS[field]}."
        errors = nested
    location = errors[0]["loc"]
    if field == "messages" and location[2:3] == ("content",):
        path = _path(location[:3])
        return path, f"{path} should be a string or a list of content parts."
    kind, context = errors[0]["type"], errors[0].get("ctx", {})
    if field is None:
        return None, f"{context['error']}."
    path = _path(errors[0]["loc"])
    if kind == "extra_forbidden":
        return path, f"There is no field {path!r}."
    return path, f"{path} {MESSAGES.get(context.get('pattern', kind), 'is not valid').format_map(context)}."


def _is_other_type(error: Any) -> bool:
    return len(error["loc"]) == 2 and error["type"] in _TYPE_ERRORS


def _path(location: Sequence[str | int]) -> str:
    """The field in JSON path notation. Omits the type names that pydantic adds for unions and content parts."""
    field, *rest = location
    if field in _UNIONS:
        rest = rest[1:2] + (rest[3:] if field == "message" else rest[2:])
    names = (f"[{step}]" if isinstance(step, int) else f".{step}" for step in rest)
    return f"{field}{''.join(names)}"[:_MAX_PATH_LENGTH]
