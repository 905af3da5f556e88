"""Validates bodies of openai/v1/responses and conversations. Problems are in OpenAI's words, with the field in
its notation: `input[1].content[0].type`."""

from collections.abc import Mapping, Sequence
from typing import Any, TypeVar

from pydantic import BaseModel, ValidationError

from shared.web.responses.errors import Refused, unsupported
from shared.web.validation import MESSAGES

M = TypeVar("M", bound=BaseModel)

_MAX_PATH_LENGTH = 100  # characters
_TYPES = ("string_type", "list_type", "dict_type", "model_type", "model_attributes_type", "bool_type", "int_type")
_CODES = {
    "missing": "missing_required_parameter",
    "extra_forbidden": "unknown_parameter",
    **dict.fromkeys((*_TYPES, "float_type"), "invalid_type"),
}
_FILES = ("file_id", "file_url")  # of a part, in place of its content


def validated(model: type[M], body: Mapping[str, Any]) -> M:
    """The body as the model has it. A field that is null counts as absent. Raises Refused."""
    present = {name: value for name, value in body.items() if value is not None}
    try:
        return model.model_validate(present)
    except ValidationError as error:
        raise _problem(error, present) from error


def _problem(error: ValidationError, body: Mapping[str, Any]) -> Refused:
    first = error.errors(include_url=False)[0]
    kind, context = first["type"], first.get("ctx", {})
    path, parent, value = _located(first["loc"], body, missing=kind == "missing")
    code = _CODES.get(kind, "invalid_value")
    match kind:
        case "missing":
            if name := next((name for name in _FILES if parent.get(name)), None):
                field = f"{path.rpartition('.')[0]}.{name}"
                return unsupported(
                    field, f"'{field}' is not supported: there are no stored files. Send the data itself."
                )
            nested = " A tool's fields are not nested here: 'function' is invalid." if "function" in parent else ""
            return Refused(f"Missing required parameter: '{path}'.{nested}", param=path, code=code)
        case "extra_forbidden":
            return Refused(f"Unknown parameter: '{path}'.", param=path, code=code)
        case "union_tag_invalid" | "union_tag_not_found" | "literal_error":
            field = path if kind == "literal_error" or not isinstance(value, Mapping) else f"{path}.type"
            sent = value if kind == "literal_error" or not isinstance(value, Mapping) else value.get("type")
            expected = str(context.get("expected") or context.get("expected_tags") or "another type")
            message = f"Invalid value for '{field}': {_short(sent)}. Supported values are: {expected}."
            return Refused(message, param=field, code=code)
        case _:
            problem = MESSAGES.get(kind, "is not valid").format_map(context)
            what = "Invalid type for" if code == "invalid_type" else "Invalid"
            return Refused(f"{what} '{path}': it {problem}.", param=path, code=code)


def _located(location: Sequence[str | int], body: Any, *, missing: bool) -> tuple[str, Mapping[str, Any], Any]:
    """The field in OpenAI's notation, the object that has it, and its value. The location also names the members of
    unions, which are no fields: those are left out. `missing`: the last field is not there."""
    path, parent, value = "", body, body
    for at, step in enumerate(location):
        if isinstance(step, int) and isinstance(value, list):
            path, parent, value = f"{path}[{step}]", {}, value[step]
        elif isinstance(value, Mapping) and (step in value or (missing and at == len(location) - 1)):
            path, parent, value = f"{path}.{step}" if path else str(step), value, value.get(step)
    return path[:_MAX_PATH_LENGTH], parent if isinstance(parent, Mapping) else {}, value


def _short(value: Any) -> str:
    return repr(value)[:_MAX_PATH_LENGTH]
