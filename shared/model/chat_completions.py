"""The chat completions format: requests, and answers whole or gathered from their chunks.

Chunks are plain mappings, as read from the wire: typed parsing of every chunk costs several times more CPU time.
https://platform.openai.com/docs/api-reference/chat
"""

import logging
from collections.abc import Mapping, Sequence
from typing import Any

import orjson

from shared.domain.calls import Usage
from shared.domain.conversation import Message
from shared.domain.window import bound
from shared.errors import UpstreamError
from shared.turns.ports import AnswerReader, Piece

log = logging.getLogger(__name__)

Chunk = Mapping[str, Any]

_SEVERITIES = {"low": 1, "medium": 2, "high": 3}  # of a content filter's result


class ChatCompletions:
    """The dialect. Usage is always requested of a stream."""

    path = "/chat/completions"

    def compose(self, messages: Sequence[Message], *, max_tokens: int, options: Mapping[str, Any]) -> Mapping[str, Any]:
        return {
            "messages": messages,
            "max_completion_tokens": max_tokens,
            "stream": True,
            "stream_options": {"include_usage": True},
            **options,
        }

    def prompt_bound(self, body: Mapping[str, Any]) -> int:
        return bound(body["messages"], {name: value for name, value in body.items() if name != "messages"})

    def reader(self) -> AnswerReader:
        return Completion()


class Completion:
    """What has come of an answer so far; of several choices, the first."""

    def __init__(self) -> None:
        self.model: str | None = None
        self.finish_reason: str | None = None
        self.usage: Usage | None = None
        self.extras: dict[str, Any] = {}
        self._text: dict[str, list[str]] = {"content": [], "refusal": []}
        self._tool_calls: dict[int, dict[str, Any]] = {}
        self._function_call: dict[str, str] = {}  # the form before tools, which the service still takes

    def add(self, data: bytes) -> Piece:
        """Read one chunk, or a whole answer that was not streamed. Raises UpstreamError where it is neither."""
        try:
            return self._add(_parsed(data))
        except (TypeError, ValueError, LookupError, AttributeError) as error:
            raise UpstreamError("The model's answer was garbled. Send this again.", maybe_billed=True) from error

    def _add(self, chunk: Chunk) -> Piece:
        self.model = _text(chunk.get("model") or self.model)
        if filtered := chunk.get("prompt_filter_results"):
            self.extras.setdefault("content_filter", {})["prompt"] = filtered
        choices = chunk.get("choices") or ()
        shown = next((self._add_choice(choice) for choice in choices if choice.get("index", 0) == 0), {})
        if usage := chunk.get("usage"):
            self.usage = usage_of(usage)
        elif shown:
            self.usage = None  # what was counted before this piece is not the whole
        return Piece(shown, bool(usage) and not choices)

    def message(self) -> Message:
        """The assistant's message as far as it has come."""
        message: dict[str, Any] = {"role": "assistant", "content": "".join(self._text["content"]) or None}
        if self._text["refusal"]:
            message["refusal"] = "".join(self._text["refusal"])
        if self._tool_calls:
            message["tool_calls"] = [call for _, call in sorted(self._tool_calls.items())]
        elif self._function_call:
            message["function_call"] = self._function_call
        elif message["content"] is None and "refusal" not in message:
            message["content"] = ""
        return message

    def _add_choice(self, choice: Mapping[str, Any]) -> dict[str, Any]:
        self.finish_reason = _text(choice.get("finish_reason") or self.finish_reason)
        if filtered := choice.get("content_filter_results"):
            self._add_filtered(filtered)
        if logprobs := choice.get("logprobs"):
            self._add_logprobs(logprobs)
        return self._add_delta(choice.get("delta") or choice.get("message") or {})

    def _add_delta(self, delta: Mapping[str, Any]) -> dict[str, Any]:
        shown: dict[str, Any] = {}
        for kind, pieces in self._text.items():
            if piece := _text(delta.get(kind)):
                pieces.append(piece)
                shown[kind] = piece
        if calls := delta.get("tool_calls"):
            for number, call in enumerate(calls):
                self._add_tool_call(call.get("index", number), call)
            shown["tool_calls"] = calls
        if call := delta.get("function_call"):
            _grow(self._function_call, call)
            shown["function_call"] = call
        return shown

    def _add_tool_call(self, index: int, piece: Mapping[str, Any]) -> None:
        call = self._tool_calls.setdefault(_whole(index), {"id": "", "type": "function"})
        call["id"] = _text(piece.get("id")) or call["id"]
        for kind in ("function", "custom"):
            if said := piece.get(kind):
                call["type"] = kind
                _grow(call.setdefault(kind, {}), said)

    def _add_filtered(self, results: Mapping[str, Any]) -> None:
        """Each chunk of a stream has results of its own: the most severe is the answer's."""
        worst = self.extras.setdefault("content_filter", {}).setdefault("completion", {})
        for kind, found in results.items():
            if kind not in worst or _severity(found) > _severity(worst[kind]):
                worst[kind] = found

    def _add_logprobs(self, logprobs: Mapping[str, Any]) -> None:
        gathered = self.extras.setdefault("logprobs", {})
        for kind, tokens in logprobs.items():
            if tokens:
                gathered.setdefault(kind, []).extend(tokens)


def _grow(held: dict[str, str], piece: Mapping[str, Any]) -> None:
    for name, text in piece.items():
        held[name] = held.get(name, "") + (_text(text) or "")


def _text(value: Any) -> str | None:
    if value is not None and not isinstance(value, str):
        raise TypeError("no text")
    return value


def _whole(value: Any) -> int:
    if not isinstance(value, int) or isinstance(value, bool) or not 0 <= value < 2**53:
        raise TypeError("no number of tokens")
    return value


def _severity(found: Any) -> tuple[bool, int]:
    if not isinstance(found, dict):
        return False, 0
    return bool(found.get("filtered") or found.get("detected")), _SEVERITIES.get(str(found.get("severity")), 0)


def _parsed(data: bytes) -> Chunk:
    chunk = orjson.loads(data)
    orjson.dumps([[chunk]])  # what nests too deeply could be read here and not written down
    if not isinstance(chunk, dict) or chunk.get("error"):
        log.warning("the model service broke its answer off with an error")
        raise UpstreamError("The model's answer broke off with an error. Send this again.", maybe_billed=True)
    return chunk


def usage_of(reported: Mapping[str, Any]) -> Usage:
    """Usage from a service's `usage` object; details that it does not send count as none. Raises KeyError, TypeError or
    AttributeError where it does not say what was used: that is no zero."""
    prompt, completion = _whole(reported["prompt_tokens"]), _whole(reported["completion_tokens"])
    beside = _whole(reported.get("total_tokens") or 0) - prompt - completion
    sent, said = reported.get("prompt_tokens_details") or {}, reported.get("completion_tokens_details") or {}
    cached, written = _whole(sent.get("cached_tokens") or 0), _whole(sent.get("cache_write_tokens") or 0)
    reasoning = _whole(said.get("reasoning_tokens") or 0)
    answer = _with(reasoning, completion, beside)
    beside -= answer - completion  # or the same tokens could be counted into the prompt too
    return Usage(
        prompt_tokens=_with(cached + written, prompt, beside),
        cached_tokens=cached,
        cache_write_tokens=written,
        completion_tokens=answer,
        reasoning_tokens=reasoning,
    )


def _with(part: int, count: int, beside: int) -> int:
    """A count with its part in it. Some services report that beside the count, as Grok its reasoning
    (BerriAI/litellm#39426): the total, which has `beside` tokens more than prompt and completion, says so, or else that
    the part is larger than the count."""
    return count + part if part > count or part == beside else count
