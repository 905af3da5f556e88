"""Error bodies of model services, in whatever form: what each says, in plain words.

OpenAI's `{"error": {message, type, param, code}}`, vLLM's `{"object": "error", message, …}`, FastAPI's `{"detail": …}`
(text, or a list of `{loc, msg, type}`), Mistral's and Foundry's mixtures of both (editor-code-assistant/eca#231,
BerriAI/litellm#11696: JSON inside a string, sometimes with its quotation marks unescaped), `{"message": …}`,
`{"error": "text"}`, a Python repr of any of these (vLLM, LiteLLM), HTML, plain text, nothing.
"""

import re
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field, replace
from json import JSONDecodeError, JSONDecoder
from typing import Any

from shared.model.wire_json import parsed, storable

MAX_MESSAGE = 1_000  # characters
_MAX_DEPTH = 16
_MAX_TEXT = 20_000  # characters of a text that are searched
# Fields that hold words, or an object with them; `metadata.raw` is what OpenRouter got from the model's own service.
_WORDS = ("error", "metadata", "raw", "message", "msg", "detail", "details", "errors")
_NAME = re.compile(r"[\w.\[\]-]+")
_HTML = re.compile(r"\s*<(!doctype|html|head|body|\?xml)", re.IGNORECASE)
_POINTER = re.compile(
    r"#/([\w/]+): "
)  # Azure's: "Validation error at #/stream_options: Extra inputs are not permitted"
_PYDANTIC_INPUT = re.compile(r"\s*\[type=\w+, input_value=.*", re.DOTALL)
# An object in text that is no valid JSON: a Python repr, or JSON with unescaped quotation marks.
_STRUCTURE = re.compile(r"[\[{(]\s*[\[{(]?\s*\\?['\"](error|object|message|msg|detail|type|loc|code)\\?['\"]\s*:")
_WORDS_IN_STRUCTURE = re.compile(
    r"\\?['\"](?P<name>msg|message|detail|error)\\?['\"]\s*:\s*"
    r"(?:\\?'(?P<single>(?:[^'\\]|\\.)+)'|\\?\"(?P<double>(?:[^\"\\]|\\[^\"])+)\\?\")"
)
_LOC = re.compile(r"\\?['\"]loc\\?['\"]\s*:\s*[\[(]([^\])]*)[\])]")
_CODE = re.compile(r"\\?['\"](?P<name>code|type|param|status)\\?['\"]\s*:\s*(\\?['\"])?(?P<value>[\w-]([\w -]*[\w-])?)")
_STATUS = re.compile(r"[45][0-9]{2}")
_STATUS_IN_WORDS = re.compile(r"\b(?:error|status) code:? ([45][0-9]{2})\b", re.IGNORECASE)  # the OpenAI SDK's words
_ABSENT = ("none", "null")  # LiteLLM writes a missing param as "None"


@dataclass(frozen=True, slots=True)
class ErrorBody:
    """`message`: plain words, or empty. `code`, `type`: as text, or empty. `status`: the HTTP status it names, or 0.
    `param`: the field of the request that is at fault; `fields`: the top-level names of all such fields. `inner`:
    Azure's `innererror`."""

    message: str = ""
    code: str = ""
    type: str = ""
    status: int = 0
    param: str | None = None
    fields: tuple[str, ...] = ()
    inner: Mapping[str, Any] = field(default_factory=dict)

    @property
    def kind(self) -> str:
        """Code and type, in lower case."""
        return f"{self.code} {self.type}".strip().lower()


def read_error(content: bytes) -> ErrorBody:
    """Never raises. Text in `message` is at most MAX_MESSAGE characters long."""
    value = storable(parsed(content))
    text = "" if content.strip() == b"null" else content.decode("utf-8", "replace")
    error = _error_in(text if value is None else value, 0)
    return replace(error, message=error.message[:MAX_MESSAGE])


def _error_in(value: Any, depth: int) -> ErrorBody:
    if depth < _MAX_DEPTH:
        match value:
            case str():
                return _from_text(value, depth)
            case dict():
                return _from_object(value, depth)
            case list():
                return _joined([_error_in(item, depth + 1) for item in value[:3]])
    return ErrorBody()


def _from_object(value: Mapping[str, Any], depth: int) -> ErrorBody:
    """The innermost words, code and type count: the outer ones are a gateway's."""
    nested_errors = [_error_in(value[name], depth + 1) for name in _WORDS if value.get(name)]
    nested = next((each for each in nested_errors if each.message or each.fields), ErrorBody())
    path = _names(value.get("loc"))
    code, param, message = _text(value.get("code")), _text(value.get("param")) or None, nested.message
    if param and not _NAME.fullmatch(param):  # AQBot-Desktop/AQBot#93: the words are in it
        param, message = None, f"{message}: {param}".strip(": ")
    if path and message:
        message = _named(path, message)
    inner = value.get("innererror")
    return ErrorBody(
        message=message,
        code=nested.code or code,
        type=nested.type or _text(value.get("type")),
        status=nested.status or _status(value.get("status"), code),
        param=nested.param or param or (path[-1] if path else None),
        fields=nested.fields or path[:1] or _top_level(param),
        inner=nested.inner or (inner if isinstance(inner, dict) else {}),
    )


def _from_text(text: str, depth: int) -> ErrorBody:
    text = text.strip()[:_MAX_TEXT]
    if _HTML.match(text):
        return ErrorBody()
    status = _status(*_STATUS_IN_WORDS.findall(text))
    if (structure := _embedded(text)) is not None:
        error = _error_in(structure, depth + 1)
    else:
        error = _from_invalid_json(text, depth) if _STRUCTURE.search(text) else ErrorBody()
    if error.message or error.fields:
        return replace(error, status=error.status or status)
    pointer = _POINTER.search(text)
    path = tuple(name for name in pointer[1].split("/") if not name.isdigit()) if pointer else ()
    message = "" if text.startswith(("{", "[{", "[(")) else _PYDANTIC_INPUT.sub("", text)
    return ErrorBody(message=message, status=status, param=path[-1] if path else None, fields=path[:1])


def _embedded(text: str) -> Any:
    """The JSON error that a text is or contains, such as "Error code: 400 - {…}"; None if there is none."""
    start = re.search(r"[\[{]", text)
    if start is None:
        return None
    try:
        value, _ = JSONDecoder(strict=False).raw_decode(text, start.start())
    except (JSONDecodeError, RecursionError):
        return None
    shown = value[0] if isinstance(value, list) and value else value
    is_error = isinstance(shown, dict) and (not start.start() or shown.keys() & {"error", "detail", "msg", "code"})
    return value if is_error else None


def _from_invalid_json(text: str, depth: int) -> ErrorBody:
    words = list(_WORDS_IN_STRUCTURE.finditer(text))
    messages = [re.sub(r"\\(['\"\\])", r"\1", each["single"] or each["double"]) for each in _innermost(words)[:3]]
    paths = [_names(re.findall(r"\w+", each)) for each in _LOC.findall(text)]
    codes = {each["name"]: value for each in _CODE.finditer(text) if (value := _text(each["value"]))}
    nested_errors = [_error_in(each, depth + 1) for each in messages]
    error = _joined(
        [
            replace(each, message=_named(path, each.message), fields=each.fields or path[:1])
            for each, path in zip(nested_errors, paths or [()] * len(nested_errors), strict=False)
        ]
    )
    param = error.param or (paths[0][-1] if paths and paths[0] else codes.get("param"))
    return replace(
        error,
        code=error.code or codes.get("code", ""),
        type=error.type or codes.get("type", ""),
        status=error.status or _status(codes.get("status"), codes.get("code")),
        param=param,
        fields=error.fields or _top_level(param),
    )


def _innermost(words: list[re.Match[str]]) -> list[re.Match[str]]:
    return [each for each in words if each["name"] == "msg"] or words


def _joined(items: Sequence[ErrorBody]) -> ErrorBody:
    if not items:
        return ErrorBody()
    message = "; ".join(dict.fromkeys(item.message for item in items if item.message))
    fields = tuple(dict.fromkeys(name for item in items for name in item.fields))
    return replace(items[0], message=message, fields=fields)


def _names(loc: Any) -> tuple[str, ...]:
    """The names in a pydantic location, without `body` and list indices."""
    parts = loc if isinstance(loc, list) else [loc]
    return tuple(part for part in parts if isinstance(part, str) and part != "body" and not part.isdigit())


def _named(path: tuple[str, ...], message: str) -> str:
    return message if not path or path[-1] in message else f"{path[-1]}: {message}"


def _top_level(param: str | None) -> tuple[str, ...]:
    return (re.split(r"[.\[]", param)[0],) if param else ()


def _text(value: Any) -> str:
    text = str(value) if isinstance(value, str | int | float) and not isinstance(value, bool) else ""
    return "" if text.lower() in _ABSENT else text


def _status(*values: Any) -> int:
    """The first HTTP status of an error among the values, or 0."""
    return next((int(str(each)) for each in values if _STATUS.fullmatch(str(each))), 0)
