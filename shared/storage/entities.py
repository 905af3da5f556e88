"""Converts plain rows to and from the SDK's entities.

A row is a dict of plain values. Integers are stored as Int64 and Decimals as text. Long text is split into `name`,
`name_1`, … because a string property holds at most 32,768 UTF-16 units
(https://learn.microsoft.com/rest/api/storageservices/understanding-the-table-service-data-model#property-types).
"""

import re
from collections.abc import Mapping
from datetime import datetime
from decimal import Decimal
from typing import Any, TypeAlias

from azure.data.tables import EdmType, EntityProperty, TableEntity

Row: TypeAlias = dict[str, Any]

MAX_PROPERTY_UNITS = 32_768  # UTF-16 units in one property
_ENTITY_TAG = re.compile(r'(W/)?"[^"]*"')  # https://www.rfc-editor.org/rfc/rfc9110#name-etag


def to_entity(row: Row) -> dict[str, Any]:
    entity: dict[str, Any] = {}
    for name, value in row.items():
        match value:
            case None:
                pass
            case bool() | datetime():
                entity[name] = value
            case int():
                entity[name] = EntityProperty(value, EdmType.INT64)
            case Decimal():
                entity[name] = format(value, "f")
            case str():
                entity |= {f"{name}_{i}" if i else name: piece for i, piece in enumerate(_pieces(value))}
            case _:
                raise TypeError(f"{name} can't be stored: it is a {type(value).__name__}")
    return entity


def _pieces(text: str) -> list[str]:
    """Split the text, between characters, into pieces that fit in a property."""
    if len(text) * 2 <= MAX_PROPERTY_UNITS:
        return [text]
    units, pieces, start = text.encode("utf-16-le"), [], 0
    while start < len(units):
        end = start + MAX_PROPERTY_UNITS * 2
        if end < len(units) and 0xD8 <= units[end - 1] <= 0xDB:
            end -= 2  # the first half of a surrogate pair: move it to the next piece
        pieces.append(units[start:end].decode("utf-16-le"))
        start = end
    return pieces


def from_entity(entity: TableEntity) -> Row:
    row: Row = {"etag": etag_of(entity.metadata)}
    for name, value in entity.items():
        if value is not None:  # a selected property that the row lacks may be null
            row[name] = _plain(value)
    for name in [name for name in row if f"{name}_1" in row]:
        pieces = [row.pop(name)]
        while (piece := row.pop(f"{name}_{len(pieces)}", None)) is not None:
            pieces.append(piece)
        row[name] = "".join(pieces)
    return row


def _plain(value: Any) -> Any:
    match value:
        case EntityProperty():
            return value.value
        case datetime():  # the SDK's subclass also carries the service's text
            return datetime.combine(value.date(), value.timetz())
        case _:
            return value


def etag_of(metadata: Mapping[str, Any]) -> str:
    """Raises ValueError if the answer has no whole one: no later write could then name the row's version."""
    etag = metadata.get("etag")
    if not isinstance(etag, str) or not _ENTITY_TAG.fullmatch(etag):
        raise ValueError("no etag")
    return etag
