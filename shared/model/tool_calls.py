"""Assembles tool calls from their deltas. Services identify a call by index, by id only, or not at all."""

from collections.abc import Mapping
from typing import Any
from uuid import uuid4

from shared.model.wire_json import Text, as_text, parsed, storable

_KINDS = {"function": "arguments", "custom": "input"}  # kind of tool -> the field that is sent in pieces


class _Call:
    def __init__(self, index: int) -> None:
        self.index = index
        self.id = ""
        self.kind = "function"
        self.name = ""
        self.text = Text()  # arguments of a function, input of a custom tool
        self._extra: dict[str, Any] = {}
        self._extra_inside: dict[str, Any] = {}

    def add(self, piece: Mapping[str, Any], kind: str, inside: Mapping[str, Any]) -> dict[str, Any]:
        """Returns the delta of this piece in OpenAI's format. Id and name are set once; only the text grows."""
        shown: dict[str, Any] = {"index": self.index}
        if not self.id and (call_id := _name(piece.get("id"))):
            self.id = shown["id"] = call_id
        if inside:
            self.kind = shown["type"] = kind
        detail: dict[str, str] = {}
        if not self.name and (name := _name(inside.get("name"))):
            self.name = detail["name"] = name
        if _KINDS[kind] in inside:
            detail[_KINDS[kind]] = self.text.add(as_text(inside[_KINDS[kind]]))
        if detail:
            shown[kind] = detail
        self._extra |= _others(piece, {"index", "id", "type", *_KINDS})
        self._extra_inside |= _others(inside, {"name", _KINDS[kind]})
        return shown

    def message(self) -> dict[str, Any]:
        self.id = self.id or f"call_{uuid4().hex}"  # a tool result needs an id to refer to
        inside = {"name": self.name, _KINDS[self.kind]: str(self.text), **self._extra_inside}
        return {"id": self.id, "type": self.kind, self.kind: inside, **self._extra}

    def ends_before(self, name: str) -> bool:
        """True if a piece with this name, but without index and id, begins a new call after this one."""
        return bool(name and self.name) and (name != self.name or isinstance(parsed(str(self.text).encode()), dict))


class ToolCalls:
    """The calls of an answer, in the order of their indexes."""

    def __init__(self) -> None:
        self._calls: list[_Call] = []
        self._by_index: dict[int, _Call] = {}

    def __bool__(self) -> bool:
        return bool(self._calls)

    def add(self, pieces: Any, *, whole: bool) -> list[dict[str, Any]]:
        """Add the `tool_calls` of a delta, or of a message (`whole`: each piece is a call). Returns the deltas."""
        listed = pieces if isinstance(pieces, list) else [pieces]
        return [self._add(piece, whole=whole) for piece in listed if isinstance(piece, dict)]

    def messages(self) -> list[dict[str, Any]]:
        return [call.message() for call in sorted(self._calls, key=lambda call: call.index)]

    def _add(self, piece: Mapping[str, Any], *, whole: bool) -> dict[str, Any]:
        kind = next((kind for kind in _KINDS if isinstance(piece.get(kind), dict)), "function")
        inside: dict[str, Any] = piece[kind] if isinstance(piece.get(kind), dict) else {}
        call = self._begin(None) if whole else self._call(piece, _name(inside.get("name")))
        return call.add(piece, kind, inside)

    def _call(self, piece: Mapping[str, Any], name: str) -> _Call:
        """The call that a piece belongs to. A new id begins a call; a piece without index and id usually continues the
        latest call."""
        index, call_id = _index(piece.get("index")), _name(piece.get("id"))
        if index is not None:
            call = self._by_index.get(index)
            return self._begin(index) if call is None or (call_id and call.id and call_id != call.id) else call
        if call_id:
            same = [call for call in self._calls if call.id == call_id]
            return same[0] if same else self._begin(None)
        latest = self._calls[-1] if self._calls else None
        return self._begin(None) if latest is None or latest.ends_before(name) else latest

    def _begin(self, index: int | None) -> _Call:
        indexes = {call.index for call in self._calls}
        call = _Call(max(indexes, default=-1) + 1 if index is None or index in indexes else index)
        self._calls.append(call)
        if index is not None:
            self._by_index[index] = call
        return call


def sendable(call: Mapping[str, Any]) -> dict[str, Any]:
    """A stored call as services accept it: missing arguments become an empty object."""
    inside = call.get("function")
    if not isinstance(inside, dict) or inside.get("arguments"):
        return dict(call)
    return {**call, "function": {**inside, "arguments": "{}"}}


def _index(value: Any) -> int | None:
    if isinstance(value, str) and value.isdecimal():
        return int(value)
    if isinstance(value, float) and value.is_integer():
        return int(value)
    return value if isinstance(value, int) and not isinstance(value, bool) else None


def _name(value: Any) -> str:
    """A name or id as text. Some services send a number."""
    return as_text(storable(value)) if isinstance(value, str | int) and not isinstance(value, bool) else ""


def _others(mapping: Mapping[str, Any], read: set[str]) -> dict[str, Any]:
    return {name: storable(value) for name, value in mapping.items() if name not in read and value is not None}
