"""JSON as model services send it, including common errors, and text that arrives in pieces.

Besides valid JSON this module reads NaN and Infinity (as null: llama.cpp and vLLM write them in log probabilities),
lone surrogates (an emoji cut between two chunks), invalid UTF-8 (as U+FFFD), raw control characters in strings, numbers
of any length, and what is nested too deeply (as null).
"""

import json
import re
from typing import Any

import orjson

_MAX_DEPTH = 200  # of what is kept of a value that is nested too deeply; the libraries' own limits are higher
_MAX_DIGITS = 300  # Python refuses to convert more than 4,300
_TOKEN = re.compile(r'"(?:[^"\\]|\\.)*"|[\[\]{}]', re.DOTALL)
_GAP = re.compile(r"[\s\x00,]*")  # between two values


def parsed(data: bytes) -> Any:
    """The value, or None if the data is not JSON. Strings may contain lone surrogates."""
    try:
        return orjson.loads(data)
    except orjson.JSONDecodeError:
        pass
    text = _decoded(data)
    try:
        return _DECODER.decode(text)
    except ValueError:
        return None
    except RecursionError:
        pass
    try:
        return _DECODER.decode(_shallow(text))
    except (ValueError, RecursionError):
        return None


def objects(data: bytes) -> list[bytes]:
    """The JSON objects that the data begins with, one after the other or in a list. What follows them is ignored."""
    text, at, values = _decoded(data), 0, list[bytes]()
    while (gap := _GAP.match(text, at)) and (start := gap.end()) < len(text):
        try:
            value, at = _DECODER.raw_decode(text, start)
        except (ValueError, RecursionError):
            break
        if isinstance(value, dict):
            values.append(text[start:at].encode("utf-8", "replace"))
        elif isinstance(value, list):
            values += [orjson.dumps(storable(each)) for each in value if isinstance(each, dict)]
    return values


def storable(value: Any) -> Any:
    """The value in a form that can be serialized, with lone surrogates as U+FFFD; None if it is nested too deeply."""
    if value is None or (type(value) is str and value.isascii()):
        return value
    try:
        orjson.dumps([[[[[[[[value]]]]]]]])  # as deep as rows and responses nest it
    except orjson.JSONEncodeError:
        pass
    else:
        return value
    try:
        plain = orjson.loads(_whole_text(json.dumps(value, ensure_ascii=False)))
        orjson.dumps([[[[[[[[plain]]]]]]]])
    except (ValueError, TypeError, RecursionError):
        return None
    return plain


def as_text(value: Any) -> str:
    """Text from a value that should be a string: null becomes the empty string, other values become JSON."""
    if isinstance(value, str):
        return value
    return "" if value is None else orjson.dumps(storable(value)).decode()


class Text:
    """Text assembled from pieces. A surrogate pair may be split between two pieces."""

    def __init__(self) -> None:
        self._pieces: list[str] = []
        self._half = ""  # a high surrogate that waits for the next piece

    def add(self, piece: str) -> str:
        """Returns the text that this piece completes, without a high surrogate at its end."""
        if piece.isascii() and not self._half:
            self._pieces.append(piece)
            return piece
        text, self._half = self._half + piece, ""
        if text and "\ud800" <= text[-1] <= "\udbff":
            text, self._half = text[:-1], text[-1]
        text = _whole_text(text)
        self._pieces.append(text)
        return text

    def __str__(self) -> str:
        return "".join(self._pieces) + ("\ufffd" if self._half else "")

    def __bool__(self) -> bool:
        return any(self._pieces) or bool(self._half)


def _decoded(data: bytes) -> str:
    return data.decode("utf-8-sig", "replace")


def _integer(digits: str) -> int | None:
    return int(digits) if len(digits) <= _MAX_DIGITS else None


_DECODER = json.JSONDecoder(strict=False, parse_constant=lambda _: None, parse_int=_integer)


def _shallow(text: str) -> str:
    """The JSON with null for what is nested more deeply than _MAX_DEPTH."""
    pieces, depth, start = list[str](), 0, 0
    for token in _TOKEN.finditer(text):
        if token[0] in ("[", "{"):
            depth += 1
            if depth == _MAX_DEPTH + 1:
                pieces += [text[start : token.start()], "null"]
        elif token[0] in ("]", "}"):
            depth -= 1
            if depth == _MAX_DEPTH:
                start = token.end()
    return "".join([*pieces, text[start:]])


def _whole_text(text: str) -> str:
    """The text with surrogate pairs joined and lone surrogates replaced by U+FFFD."""
    try:
        text.encode()
    except UnicodeEncodeError:
        return text.encode("utf-16-le", "surrogatepass").decode("utf-16-le", "replace")
    return text
