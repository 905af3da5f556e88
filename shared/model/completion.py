"""Reads an answer in the chat completions format, whole or from its chunks.

Invalid data never raises. Usage, model and finish reason are read first and independently, so that invalid content
cannot hide them; invalid content is converted to text or dropped. Chunks stay plain mappings: typed parsing of every
chunk costs several times more CPU time.
https://platform.openai.com/docs/api-reference/chat
"""

import logging
from collections.abc import Iterator, Mapping
from typing import Any

import orjson

from shared.domain.calls import Usage
from shared.domain.conversation import Message
from shared.errors import UpstreamError, UpstreamResponse
from shared.model.error_body import read_error
from shared.model.stream_errors import is_error
from shared.model.tool_calls import ToolCalls
from shared.model.usage import usage_of
from shared.model.wire_json import Text, as_text, parsed, storable
from shared.turns.ports import DONE, Piece

log = logging.getLogger(__name__)

MAX_NAME = 256  # characters of a model, a service tier or a finish_reason: they must fit into every row
_SEVERITIES = {"low": 1, "medium": 2, "high": 3}  # of content filter results
_READ = ("role", "content", "refusal", "tool_calls", "function_call")  # message fields with their own handling
_ONCE = ("id", "type", "index", "format", "expires_at")  # text fields that are replaced, not appended to


class Completion:
    """An answer as far as it has been received. Only the first choice is read. Implements AnswerReader.

    `one_choice`: the request asks for one choice. It is then read whatever its index, because some services count the
    chunks there (microsoft/foundry-local#263) or begin at 1 (spring-projects/spring-ai#6221).
    """

    def __init__(self, *, one_choice: bool = False) -> None:
        self._one_choice = one_choice
        self.model: str | None = None
        self.service_tier: str | None = None
        self.extras: dict[str, Any] = {}
        self.error: UpstreamError | None = None
        self._finish_reason: str | None = None
        self._usage: Usage | None = None
        self._reported: Any = None
        self._usage_is_last = False
        self._ended = self._done = False
        self._has_data = False  # any choice or usage
        self._begun = False  # any part of the answer itself
        self._objects = 0  # chunks, or the document
        self._document = b""
        self._id: str | None = None
        self._text = {"content": Text(), "refusal": Text()}
        self._tool_calls = ToolCalls()
        self._function_call: dict[str, Text] = {}  # the predecessor of tool calls; services still accept it
        self._empty: dict[str, Any] = {}  # fields of a document's message that are null or empty
        self._others: dict[str, Any] = {}  # stored unread: reasoning_content, annotations, audio

    @property
    def usage(self) -> Usage | None:
        """None until it is final: reported in a chunk without choices, or followed by a clean end."""
        return self._usage if self._ended or self._usage_is_last else None

    @property
    def finish_reason(self) -> str | None:
        if self._finish_reason is None and self._has_data and (self._done or self.usage):
            return "tool_calls" if self._tool_calls else "stop"
        return self._finish_reason

    @property
    def complete(self) -> bool:
        return self.error is None and self.finish_reason is not None and (self._ended or self._usage_is_last)

    def add(self, data: bytes) -> Piece | None:
        if data == DONE:
            self._done = True
            return None
        chunk = parsed(data)
        if not isinstance(chunk, dict):
            return Piece({})
        if is_error(chunk):
            self._fail(data)
            return Piece({})
        return self._add(chunk, data)

    def end(self) -> None:
        self._ended = True

    def message(self, *, empty_fields: bool = False) -> Message:
        message: dict[str, Any] = {"role": "assistant", "content": str(self._text["content"]) or None, **self._others}
        if self._text["refusal"]:
            message["refusal"] = str(self._text["refusal"])
        if self._tool_calls:
            message["tool_calls"] = self._tool_calls.messages()
        elif self._function_call:
            message["function_call"] = {name: str(text) for name, text in self._function_call.items()}
        elif message["content"] is None and "refusal" not in message:
            message["content"] = ""
        return {**message, **self._empty} if empty_fields else message

    def document(self) -> bytes:
        """The document that was received, or one assembled from the chunks of a stream."""
        return self._document or orjson.dumps(
            {
                "id": self._id or "",
                "object": "chat.completion",
                "model": self.model,
                "choices": [{"index": 0, "message": self.message(), "finish_reason": self.finish_reason}],
                "usage": self._reported,
            }
        )

    def _add(self, chunk: Mapping[str, Any], data: bytes) -> Piece:
        self._objects += 1
        choices = [each for each in _listed(chunk.get("choices")) if isinstance(each, dict)]
        first = next((each for each in choices if self._one_choice or each.get("index") in (0, None)), {})
        delta, whole = _delta(first), "message" in first and not isinstance(first.get("delta"), dict)
        self.model = _name(chunk.get("model")) or self.model
        self.service_tier = _name(chunk.get("service_tier")) or self.service_tier
        self._finish_reason = _name(first.get("finish_reason")) or self._finish_reason
        self._has_data = self._has_data or bool(choices) or bool(chunk.get("usage"))
        reported = chunk.get("usage") or first.get("usage")  # Moonshot reports it in the choice
        usage = usage_of(reported)
        generated = any(value for name, value in delta.items() if name != "role")
        self._begun = self._begun or generated or self._finish_reason is not None
        if usage:  # a gateway may report some before the answer begins: vllm-project/semantic-router#2215
            self._usage, self._reported, self._usage_is_last = usage, reported, self._begun and not choices
        elif generated:
            self._usage, self._usage_is_last = None, False  # usage reported before this chunk is incomplete
        self._add_details(chunk, first)
        self._document = data if whole or (self._objects == 1 and "delta" not in first) else b""
        shown = self._add_delta(delta, whole=whole)
        if not whole:
            return Piece(shown, only_usage=usage is not None and not choices)
        self._done = True
        self._empty = {name: value for name, value in delta.items() if not value and name != "role"}
        return Piece(shown, chunk=orjson.dumps(_as_chunk(chunk, choices)))

    def _add_details(self, chunk: Mapping[str, Any], choice: Mapping[str, Any]) -> None:
        if filtered := storable(chunk.get("prompt_filter_results")):
            self.extras.setdefault("content_filter", {})["prompt"] = filtered
        if isinstance(filtered := storable(choice.get("content_filter_results")), dict):
            self._add_filtered(filtered)
        if isinstance(logprobs := storable(choice.get("logprobs")), dict):
            self._add_logprobs(logprobs)

    def _add_delta(self, delta: Mapping[str, Any], *, whole: bool) -> dict[str, Any]:
        shown: dict[str, Any] = {}
        for kind, value in _texts(delta):
            if kind not in self._text:
                _merge(self._others, {kind: value})
            elif piece := self._text[kind].add(value):
                shown[kind] = shown.get(kind, "") + piece
        if calls := self._tool_calls.add(delta.get("tool_calls") or [], whole=whole):
            shown["tool_calls"] = calls
        if isinstance(call := delta.get("function_call"), dict):
            shown["function_call"] = self._add_function_call(call)
        _merge(self._others, {name: storable(each) for name, each in delta.items() if each and name not in _READ})
        return shown

    def _add_function_call(self, call: Mapping[str, Any]) -> dict[str, str]:
        shown = {}
        for name in ("name", "arguments"):
            text = self._function_call.setdefault(name, Text())
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

    def _fail(self, data: bytes) -> None:
        """Record an error that ends the answer. Endpoint handles an error in the first event."""
        log.warning("the model service ended its answer with an error")
        reason = read_error(data).message[:300] or "it gave no reason."
        self.error = UpstreamError(f"The model's answer ended with an error: {reason}", maybe_billed=True)
        self.error.upstream = UpstreamResponse(502, {}, data)


def _texts(delta: Mapping[str, Any]) -> Iterator[tuple[str, str]]:
    """The texts of content, refusal and reasoning, each with its field name. Some services (Mistral, gateways to
    Anthropic) send content as a list of parts; parts of type `thinking` are not content."""
    for kind in ("content", "refusal"):
        for part in _listed(delta.get(kind)):
            if not isinstance(part, dict):
                yield kind, as_text(part)
            elif part.get("type") in ("thinking", "reasoning"):
                reasoning = part.get("thinking") or part.get("text") or part.get("reasoning")
                for each in _listed(reasoning):
                    yield "reasoning_content", as_text(each.get("text") if isinstance(each, dict) else each)
            elif isinstance(part.get("refusal"), str):
                yield "refusal", part["refusal"]
            elif "text" in part:
                yield kind, as_text(part["text"])


def _delta(choice: Mapping[str, Any]) -> Mapping[str, Any]:
    """What the choice adds. Foundry Local repeats each delta as a message (microsoft/foundry-local#263)."""
    return next((each for each in map(choice.get, ("delta", "message")) if isinstance(each, dict)), {})


def _as_chunk(document: Mapping[str, Any], choices: list[dict[str, Any]]) -> Any:
    """A whole completion as the single chunk of a stream."""
    deltas = []
    for choice in choices:
        delta = dict(_delta(choice))
        if calls := delta.get("tool_calls"):
            delta["tool_calls"] = [{"index": at, **call} for at, call in enumerate(calls) if isinstance(call, dict)]
        deltas.append({**{name: each for name, each in choice.items() if name != "message"}, "delta": delta})
    return storable({**document, "object": "chat.completion.chunk", "choices": deltas})


def _listed(value: Any) -> list[Any]:
    if isinstance(value, list):
        return value
    return [] if value is None else [value]


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


def _name(value: Any) -> str | None:
    return as_text(storable(value))[:MAX_NAME] if isinstance(value, str) else None


def _severity(result: Any) -> tuple[bool, int]:
    if not isinstance(result, dict):
        return False, 0
    return bool(result.get("filtered") or result.get("detected")), _SEVERITIES.get(str(result.get("severity")), 0)
