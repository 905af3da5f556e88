"""JSON as model services really write it, and text that arrives in pieces.

Besides JSON proper this reads NaN and Infinity (as null: llama.cpp and vLLM write them into log probabilities), lone
halves of a surrogate pair (an emoji cut between two chunks), and broken UTF-8 (U+FFFD).
"""

import json
from typing import Any

import orjson


def parsed(data: bytes) -> Any:
    """The value, or None if the data is no JSON. Strings may hold lone surrogates."""
    try:
        return orjson.loads(data)
    except orjson.JSONDecodeError:
        pass
    try:
        return json.loads(data.decode("utf-8-sig", "replace"), parse_constant=lambda _: None)
    except (ValueError, RecursionError):
        return None


def storable(value: Any) -> Any:
    """The value as it can be written again, lone surrogates as U+FFFD; None if it nests too deeply."""
    try:
        orjson.dumps([[[[[[[[value]]]]]]]])  # rows and answers wrap it
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
    """Text from what should be text: a string as it is, nothing for null, all else as JSON."""
    if isinstance(value, str):
        return value
    return "" if value is None else orjson.dumps(storable(value)).decode()


class Text:
    """Text that grows by pieces; a pair of surrogates may be cut between two."""

    def __init__(self) -> None:
        self._pieces: list[str] = []
        self._half = ""  # the first half of a pair whose second has not come

    def add(self, piece: str) -> str:
        """Returns what is complete with this piece."""
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
    """Halves of a pair joined, and those that are alone replaced by U+FFFD."""
    try:
        text.encode()
    except UnicodeEncodeError:
        return text.encode("utf-16-le", "surrogatepass").decode("utf-16-le", "replace")
    return text
