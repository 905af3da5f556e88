"""Rows as Table Storage takes them.

A row is a dict of plain values. Integers are stored as Int64 and Decimals as text. Long text is split into `name`,
`name_1`, … because a string property holds at most 32,768 UTF-16 units
(https://learn.microsoft.com/rest/api/storageservices/understanding-the-table-service-data-model#property-types).
"""

import re
from collections.abc import Iterator
from datetime import datetime
from decimal import Decimal
from typing import Any, TypeAlias

Row: TypeAlias = dict[str, Any]

MAX_PROPERTY_UNITS = 32_768  # UTF-16 units in one property
_ENTITY_TAG = re.compile(r'(W/)?"[^"]*"')  # https://www.rfc-editor.org/rfc/rfc9110#name-etag


def properties(row: Row) -> Iterator[tuple[str, str | bool | int | datetime]]:
    """The properties to store. Raises TypeError for a value of another type than rows have."""
    for name, value in row.items():
        match value:
            case None:
                pass
            case bool() | int() | datetime():
                yield name, value
            case Decimal():
                yield name, format(value, "f")
            case str() if len(value) * 2 <= MAX_PROPERTY_UNITS:
                yield name, value
            case str():
                for number, piece in enumerate(_pieces(value)):
                    yield f"{name}_{number}" if number else name, piece
            case _:
                raise TypeError(f"{name} can't be stored: it is a {type(value).__name__}")


def joined(row: Row) -> Row:
    """The row with the pieces of long text put together."""
    for name in [name for name in row if f"{name}_1" in row]:
        pieces = [row.pop(name)]
        while (piece := row.pop(f"{name}_{len(pieces)}", None)) is not None:
            pieces.append(piece)
        row[name] = "".join(pieces)
    return row


def checked_etag(etag: object) -> str:
    """Raises ValueError if it is not a whole etag: no later write could then name the row's version."""
    if not isinstance(etag, str) or not _ENTITY_TAG.fullmatch(etag):
        raise ValueError("no etag")
    return etag


def _pieces(text: str) -> list[str]:
    """Split the text, between characters, into pieces that fit in a property."""
    units, pieces, start = text.encode("utf-16-le"), [], 0
    while start < len(units):
        end = start + MAX_PROPERTY_UNITS * 2
        if end < len(units) and 0xD8 <= units[end - 1] <= 0xDB:
            end -= 2  # the first half of a surrogate pair: move it to the next piece
        pieces.append(units[start:end].decode("utf-16-le"))
        start = end
    return pieces
