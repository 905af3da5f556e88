"""Error bodies of model services, in whatever form: what each says, in plain words.

OpenAI's `{"error": {message, type, param, code}}`, vLLM's `{"object": "error", message, …}`, FastAPI's `{"detail": …}`
(text, or a list of `{loc, msg, type}`), Mistral's and Foundry's mixtures of both (editor-code-assistant/eca#231,
BerriAI/litellm#11696: JSON inside a string, sometimes with its quotation marks unescaped), `{"message": …}`,
`{"error": "text"}`, a Python repr of any of these (vLLM, LiteLLM), HTML, plain text, nothing.
"""

import re
from collections.abc import Iterator, Mapping, Sequence
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
_CODE = re.compile(r"\\?['\"](?P<name>code|type|param)\\?['\"]\s*:\s*\\?['\"](?P<value>[\w -]+)\\?['\"]")


@dataclass(frozen=True, slots=True)
class ErrorBody:
    """`message`: plain words, or empty. `code`, `type`: as text, or empty. `param`: the field of the request that is at
    fault; `fields`: the top-level names of all such fields. `inner`: Azure's `innererror`."""

    message: str = ""
    code: str = ""
    type: str = ""
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
    read = _read(text if value is None else value, 0)
    return replace(read, message=read.message[:MAX_MESSAGE])


def _read(value: Any, depth: int) -> ErrorBody:
    if depth < _MAX_DEPTH:
        match value:
            case str():
                return _from_text(value, depth)
            case dict():
                return _from_object(value, depth)
            case list():
                return _joined([_read(item, depth + 1) for item in value[:3]])
    return ErrorBody()


def _from_object(value: Mapping[str, Any], depth: int) -> ErrorBody:
    """The innermost words, code and type count: the outer ones are a gateway's."""
    readings = [_read(value[name], depth + 1) for name in _WORDS if value.get(name)]
    read = next((each for each in readings if each.message or each.fields), ErrorBody())
    path = _names(value.get("loc"))
    param, message = value.get("param"), read.message
    if isinstance(param, str) and not _NAME.fullmatch(param):  # AQBot-Desktop/AQBot#93: the words are in it
        param, message = None, f"{message}: {param}".strip(": ")
    param = param if isinstance(param, str) else None
    if path and message:
        message = _named(path, message)
    inner = value.get("innererror")
    return ErrorBody(
        message=message,
        code=read.code or _text(value.get("code")),
        type=read.type or _text(value.get("type")),
        param=read.param or param or (path[-1] if path else None),
        fields=read.fields or path[:1] or _top_level(param),
        inner=read.inner or (inner if isinstance(inner, dict) else {}),
    )


def _from_text(text: str, depth: int) -> ErrorBody:
    text = text.strip()[:_MAX_TEXT]
    if _HTML.match(text):
        return ErrorBody()
    if (structure := _embedded(text)) is not None:
        read = _read(structure, depth + 1)
    else:
        read = _salvaged(text, depth) if _STRUCTURE.search(text) else ErrorBody()
    if read.message or read.fields:
        return read
    pointer = _POINTER.search(text)
    path = tuple(name for name in pointer[1].split("/") if not name.isdigit()) if pointer else ()
    message = "" if text.startswith(("{", "[{", "[(")) else _PYDANTIC_INPUT.sub("", text)
    return ErrorBody(message=message, param=path[-1] if path else None, fields=path[:1])


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


def _salvaged(text: str, depth: int) -> ErrorBody:
    words = list(_WORDS_IN_STRUCTURE.finditer(text))
    plain = [each for each in words if each["name"] == "msg"] or words
    readings = [_read(re.sub(r"\\(['\"\\])", r"\1", each["single"] or each["double"]), depth + 1) for each in plain[:3]]
    paths = [_names(re.findall(r"\w+", each)) for each in _LOC.findall(text)]
    codes = {each["name"]: each["value"] for each in _CODE.finditer(text)}
    items = [
        replace(read, message=_named(path, read.message), fields=read.fields or path[:1])
        for read, path in zip(readings, paths or [()] * len(readings), strict=False)
    ]
    read = _joined(items)
    param = read.param or (paths[0][-1] if paths and paths[0] else codes.get("param"))
    return replace(
        read,
        code=read.code or codes.get("code", ""),
        type=read.type or codes.get("type", ""),
        param=param,
        fields=read.fields or _top_level(param),
    )


def _joined(items: Sequence[ErrorBody]) -> ErrorBody:
    if not items:
        return ErrorBody()
    message = "; ".join(dict.fromkeys(item.message for item in items if item.message))
    fields = tuple(dict.fromkeys(name for item in items for name in item.fields))
    return replace(items[0], message=message, fields=fields)


def _names(loc: Any) -> tuple[str, ...]:
    """The names in a pydantic location, without `body` and list indices."""
    parts: Iterator[Any] = iter(loc if isinstance(loc, list) else (loc,))
    return tuple(part for part in parts if isinstance(part, str) and part != "body" and not part.isdigit())


def _named(path: tuple[str, ...], message: str) -> str:
    return message if not path or path[-1] in message else f"{path[-1]}: {message}"


def _top_level(param: str | None) -> tuple[str, ...]:
    return (re.split(r"[.\[]", param)[0],) if param else ()


def _text(value: Any) -> str:
    return str(value) if isinstance(value, str | int | float) and not isinstance(value, bool) else ""
