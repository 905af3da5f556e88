"""Assembles tool calls from their deltas. Services identify a call by index, by id only, or not at all."""

from collections.abc import Mapping
from typing import Any
from uuid import uuid4

from shared.model.wire_json import Text, as_text, parsed, storable

_KINDS = {"function": "arguments", "custom": "input"}  # kind of tool -> the field that is sent in pieces


_FLAT = ("name", "arguments")  # of a call without the object around them
_MAX_INDEX = 1_000


class _Call:
    """`own_id`: the service's; `id`: the same unless another call has it."""

    def __init__(self, index: int) -> None:
        self.index = index
        self.own_id = self.id = ""
        self.kind = ""
        self.name = ""
        self._text = Text()  # arguments of a function, input of a custom tool
        self._extra: dict[str, Any] = {}
        self._extra_inside: dict[str, Any] = {}

    def __bool__(self) -> bool:
        """False if nothing is called."""
        return bool(self.name or self._text)

    def add(
        self, piece: Mapping[str, Any], kind: str, inside: Mapping[str, Any], other_ids: set[str]
    ) -> dict[str, Any]:
        """Returns the delta of this piece in OpenAI's format. Id and name are set once; only the text grows.
        `other_ids`: of the other calls."""
        shown: dict[str, Any] = {"index": self.index}
        if not self.id and (call_id := _name(piece.get("id"))):
            self.own_id = call_id
            self.id = shown["id"] = _made_id() if call_id in other_ids else call_id
        if inside:
            self.kind = shown["type"] = self.kind or kind
        kind, detail = self.kind or kind, dict[str, str]()
        if not self.name and (name := _name(inside.get("name"))):
            self.name = detail["name"] = name
        if _KINDS[kind] in inside:
            detail[_KINDS[kind]] = self._add_text(as_text(inside[_KINDS[kind]]))
        if detail:
            shown[kind] = detail
        self._extra |= _others(piece, {"index", "id", "type", *_KINDS, *_FLAT})
        self._extra_inside |= _others(inside, {"name", _KINDS[kind]})
        return shown

    def message(self) -> dict[str, Any]:
        self.id = self.id or _made_id()  # a tool result needs an id to refer to
        kind = self.kind or "function"
        inside = {"name": self.name, _KINDS[kind]: str(self._text), **self._extra_inside}
        return {"id": self.id, "type": kind, kind: inside, **self._extra}

    def ends_before(self, name: str, text: str) -> bool:
        """True if a piece with this name and text, but without an id of its own, begins a new call after this one."""
        if not name or not self.name:
            return False
        return name != self.name or bool(text and isinstance(parsed(str(self._text).encode()), dict))

    def _add_text(self, text: str) -> str:
        if str(self._text) == "{}" and text.lstrip().startswith("{"):  # a placeholder: BerriAI/litellm#4537
            self._text = Text()
        return self._text.add(text)


class ToolCalls:
    """The calls of an answer, in the order of their indexes."""

    def __init__(self) -> None:
        self._calls: list[_Call] = []
        self._by_index: dict[int, _Call] = {}

    def __bool__(self) -> bool:
        return any(self._calls)

    def add(self, pieces: Any, *, whole: bool) -> list[dict[str, Any]]:
        """Add the `tool_calls` of a delta, or of a message (`whole`: each piece is a call). Returns the deltas."""
        shown = [self._add(piece, whole=whole) for piece in listed_calls(pieces)]
        return [delta for delta in shown if delta]

    def messages(self) -> list[dict[str, Any]]:
        return [call.message() for call in sorted(filter(None, self._calls), key=lambda call: call.index)]

    def _add(self, piece: Mapping[str, Any], *, whole: bool) -> dict[str, Any]:
        kind, inside = _inside(piece)
        name, text = _name(inside.get("name")), as_text(inside.get(_KINDS[kind]))
        extra = _others(piece, {"index", "id", "type", *_KINDS, *_FLAT}) or _others(inside, {"name", _KINDS[kind]})
        if not (name or text or extra or _name(piece.get("id"))):
            return {}
        call = self._begin(None) if whole else self._call(piece, name, text)
        return call.add(piece, kind, inside, {each.id for each in self._calls if each is not call})

    def _call(self, piece: Mapping[str, Any], name: str, text: str) -> _Call:
        """The call that a piece belongs to. A new id begins a call, as does a new name where no new id is; a piece
        without index and id usually continues the latest call."""
        index, call_id = index_of(piece.get("index"), _MAX_INDEX), _name(piece.get("id"))
        if index is not None:
            call = self._by_index.get(index)
            renamed = call is not None and call_id in ("", call.own_id) and call.ends_before(name, text)
            other_id = call is not None and bool(call_id and call.own_id) and call_id != call.own_id
            return self._begin(index) if call is None or renamed or other_id else call
        latest = next((call for call in reversed(self._calls) if not call_id or call.own_id == call_id), None)
        return self._begin(None) if latest is None or latest.ends_before(name, text) else latest

    def _begin(self, index: int | None) -> _Call:
        indexes = {call.index for call in self._calls}
        call = _Call(max(indexes, default=-1) + 1 if index is None or index in indexes else index)
        self._calls.append(call)
        if index is not None:
            self._by_index[index] = call
        return call


def listed_calls(value: Any) -> list[dict[str, Any]]:
    """The `tool_calls` of a delta or message: a list, one call, or an object of calls."""
    if isinstance(value, dict) and not value.keys() & {"id", "index", "type", *_KINDS, *_FLAT}:
        value = list(value.values())
    return [each for each in (value if isinstance(value, list) else [value]) if isinstance(each, dict)]


def sendable(call: Mapping[str, Any]) -> dict[str, Any]:
    """A stored call as services accept it: missing arguments become an empty object."""
    inside = call.get("function")
    if not isinstance(inside, dict) or inside.get("arguments"):
        return dict(call)
    return {**call, "function": {**inside, "arguments": "{}"}}


def index_of(value: Any, limit: int) -> int | None:
    """The index, also if written as text or as a float; None if it is no whole number from 0 to below `limit`."""
    if isinstance(value, str) and value.isdecimal() and len(value) <= len(str(limit)):
        value = int(value)
    if isinstance(value, float) and value.is_integer():
        value = int(value)
    return value if isinstance(value, int) and not isinstance(value, bool) and 0 <= value < limit else None


def _inside(piece: Mapping[str, Any]) -> tuple[str, Mapping[str, Any]]:
    """The kind of a call, and what is called: an object, or fields of the call itself beside the name as text."""
    kind = next((kind for kind in _KINDS if piece.get(kind) and isinstance(piece[kind], dict)), None)
    if kind:
        return kind, piece[kind]
    flat = {name: piece[name] for name in _FLAT if piece.get(name) is not None}
    if isinstance(name := piece.get("function"), str):
        flat.setdefault("name", name)
    return "function", flat


def _made_id() -> str:
    return f"call_{uuid4().hex}"


def _name(value: Any) -> str:
    """A name or id as text. Some services send a number."""
    return as_text(storable(value)) if isinstance(value, str | int) and not isinstance(value, bool) else ""


def _others(mapping: Mapping[str, Any], read: set[str]) -> dict[str, Any]:
    return {name: storable(value) for name, value in mapping.items() if name not in read and value is not None}
