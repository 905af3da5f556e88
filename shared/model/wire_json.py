"""JSON as model services send it, including common errors, and text that arrives in pieces.

Besides valid JSON this module reads NaN and Infinity (as null: llama.cpp and vLLM write them in log probabilities),
lone surrogates (an emoji cut between two chunks), and invalid UTF-8 (as U+FFFD).
"""

import json
from typing import Any

import orjson


def parsed(data: bytes) -> Any:
    """The value, or None if the data is not JSON. Strings may contain lone surrogates."""
    try:
        return orjson.loads(data)
    except orjson.JSONDecodeError:
        pass
    try:
        return json.loads(data.decode("utf-8-sig", "replace"), parse_constant=lambda _: None)
    except (ValueError, RecursionError):
        return None


def storable(value: Any) -> Any:
    """The value in a form that can be serialized, with lone surrogates as U+FFFD; None if it is nested too deeply."""
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


def _whole_text(text: str) -> str:
    """The text with surrogate pairs joined and lone surrogates replaced by U+FFFD."""
    try:
        text.encode()
    except UnicodeEncodeError:
        return text.encode("utf-16-le", "surrogatepass").decode("utf-16-le", "replace")
    return text
