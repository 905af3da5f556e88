"""One choice of an answer, whole or assembled from its deltas. Invalid content is converted to text or dropped."""

from collections.abc import Iterator, Mapping
from typing import Any

from shared.domain.conversation import Message
from shared.model.tool_calls import ToolCalls
from shared.model.wire_json import Text, as_text, storable

MAX_NAME = 256  # characters of a model, a service tier or a finish_reason: they must fit into every row
_SEVERITIES = {"low": 1, "medium": 2, "high": 3}  # of content filter results
_READ = ("role", "content", "refusal", "tool_calls", "function_call")  # message fields with their own handling
_ONCE = ("id", "type", "index", "format", "expires_at")  # text fields that are replaced, not appended to
_PART_TEXT = ("text", "content", "value")  # names of a part's text
_MAX_DEPTH = 8  # of parts in parts


class Choice:
    """`calls_first`: a tool call began before the text. `extras`: log probabilities and content filter results, as
    turns store them."""

    def __init__(self) -> None:
        self.finish_reason: str | None = None
        self.extras: dict[str, Any] = {}
        self.calls_first = self._has_text = False
        self._text = {"content": Text(), "refusal": Text()}
        self.tool_calls = ToolCalls()
        self._function_call = {"name": Text(), "arguments": Text()}  # the predecessor of tool calls
        self._empty: dict[str, Any] = {}  # fields of a document's message that are null or empty
        self._others: dict[str, Any] = {}  # stored unread: reasoning_content, annotations, audio

    def add(self, choice: Mapping[str, Any], *, whole: bool) -> dict[str, Any]:
        """Add a chunk's choice, or a document's (`whole`). Returns the deltas of content, refusal and calls."""
        if isinstance(filtered := storable(choice.get("content_filter_results")), dict):
            self._add_filtered(filtered)
        if isinstance(logprobs := storable(choice.get("logprobs")), dict):
            self._add_logprobs(logprobs)
        delta, shown = delta_of(choice), dict[str, Any]()
        for kind, value in _texts(delta):
            if kind not in self._text:
                _merge(self._others, {kind: value})
            elif piece := self._text[kind].add(value):
                self.calls_first = self.calls_first or (bool(self.tool_calls) and not self._has_text)
                self._has_text = True
                shown[kind] = shown.get(kind, "") + piece
        if (pieces := delta.get("tool_calls")) and (calls := self.tool_calls.add(pieces, whole=whole)):
            shown["tool_calls"] = calls
        if isinstance(call := delta.get("function_call"), dict) and (added := self._add_function_call(call)):
            shown["function_call"] = added
        if others := {name: storable(each) for name, each in delta.items() if each and name not in _READ}:
            _merge(self._others, others)
        if whole:
            self._empty = {name: value for name, value in delta.items() if not value and name != "role"}
        return shown

    def repeated_by(self, document: Mapping[str, Any]) -> bool:
        """True if a document only says what was read before, as some services do at the end of a stream."""
        other = Choice()
        other.add(document, whole=True)
        return self.message() == other.message() != Choice().message()

    @property
    def default_finish_reason(self) -> str:
        """For a choice that is complete and has none."""
        return "tool_calls" if self.tool_calls else "stop"

    def message(self, *, empty_fields: bool = False) -> Message:
        message: dict[str, Any] = {"role": "assistant", "content": str(self._text["content"]) or None, **self._others}
        if self._text["refusal"]:
            message["refusal"] = str(self._text["refusal"])
        if self.tool_calls:
            message["tool_calls"] = self.tool_calls.messages()
        elif any(self._function_call.values()):
            message["function_call"] = {name: str(text) for name, text in self._function_call.items()}
        elif message["content"] is None and "refusal" not in message:
            message["content"] = ""
        return {**message, **self._empty} if empty_fields else message

    def document(self, index: int) -> dict[str, Any]:
        """As a completion that was not streamed has it."""
        extras = {"logprobs": self.extras.get("logprobs")}
        if filtered := self.extras.get("content_filter", {}).get("completion"):
            extras["content_filter_results"] = filtered
        ending = self.finish_reason or self.default_finish_reason
        return {"index": index, "message": self.message(), "finish_reason": ending, **extras}

    def _add_function_call(self, call: Mapping[str, Any]) -> dict[str, str]:
        shown = {}
        for name, text in self._function_call.items():
            if (piece := as_text(call.get(name))) and not (name == "name" and text):
                shown[name] = text.add(piece)
        return shown

    def _add_filtered(self, results: Mapping[str, Any]) -> None:
        """Each chunk of a stream has its own results; the most severe one applies to the answer."""
        worst = self.extras.setdefault("content_filter", {}).setdefault("completion", {})
        for kind, result in results.items():
            if kind not in worst or _severity(result) > _severity(worst[kind]):
                worst[kind] = result

    def _add_logprobs(self, logprobs: Mapping[str, Any]) -> None:
        gathered = self.extras.setdefault("logprobs", {})
        for kind, tokens in logprobs.items():
            if isinstance(tokens, list) and tokens:
                gathered.setdefault(kind, []).extend(tokens)


def delta_of(choice: Mapping[str, Any]) -> Mapping[str, Any]:
    """What the choice adds. Foundry Local repeats each delta as a message (microsoft/foundry-local#263); completions of
    the legacy format have a text."""
    for name in ("delta", "message"):
        if isinstance(added := choice.get(name), dict):
            return added
    return {"content": choice.get("text")}


def name_of(value: Any) -> str | None:
    """A name, cut to MAX_NAME; None if the value is no text."""
    return as_text(storable(value))[:MAX_NAME] if isinstance(value, str) else None


def listed(value: Any) -> list[Any]:
    if isinstance(value, list):
        return value
    return [] if value is None else [value]


def _texts(delta: Mapping[str, Any]) -> Iterator[tuple[str, str]]:
    """The texts of content, refusal and reasoning, each with its field name. Some services (Mistral, gateways to
    Anthropic) send content as a list of parts; parts of type `thinking` are not content."""
    for kind in ("content", "refusal"):
        for part in listed(delta.get(kind)):
            if isinstance(part, str):
                yield kind, part
            elif not isinstance(part, dict):
                yield kind, as_text(part)
            elif part.get("type") in ("thinking", "reasoning"):
                yield "reasoning_content", _part_text(part.get("thinking") or part.get("reasoning") or part)
            elif isinstance(part.get("refusal"), str):
                yield "refusal", part["refusal"]
            else:
                yield kind, _part_text(part)


def _part_text(part: Any, depth: int = 0) -> str:
    if depth < _MAX_DEPTH and isinstance(part, list):
        return "".join(_part_text(each, depth + 1) for each in part)
    if depth < _MAX_DEPTH and isinstance(part, dict):
        return next((_part_text(part[name], depth + 1) for name in _PART_TEXT if part.get(name)), "")
    return as_text(part)


def _merge(whole: dict[str, Any], piece: Mapping[str, Any]) -> None:
    """Add a piece of an object: append to texts and lists, replace other values."""
    for name, value in piece.items():
        before = whole.get(name)
        if value is None:
            continue
        if isinstance(before, str) and isinstance(value, str) and name not in _ONCE:
            whole[name] = before + value
        elif isinstance(before, list) and isinstance(value, list):
            before.extend(value)
        elif isinstance(before, dict) and isinstance(value, dict):
            _merge(before, value)
        else:
            whole[name] = value


def _severity(result: Any) -> tuple[bool, int]:
    if not isinstance(result, dict):
        return False, 0
    return bool(result.get("filtered") or result.get("detected")), _SEVERITIES.get(str(result.get("severity")), 0)
