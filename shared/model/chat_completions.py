"""The chat completions format: requests, and answers read whole or assembled from chunks.

Chunks stay plain mappings: typed parsing of every chunk costs several times more CPU time.
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

_SEVERITIES = {"low": 1, "medium": 2, "high": 3}  # of content filter results


class ChatCompletions:
    """The chat completions dialect. A streamed request always requests usage."""

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
    """An answer as far as it has been received. Only the first choice is read."""

    def __init__(self) -> None:
        self.model: str | None = None
        self.finish_reason: str | None = None
        self.usage: Usage | None = None
        self.extras: dict[str, Any] = {}
        self._text: dict[str, list[str]] = {"content": [], "refusal": []}
        self._tool_calls: dict[int, dict[str, Any]] = {}
        self._function_call: dict[str, str] = {}  # the predecessor of tool calls; the service still accepts it

    def add(self, data: bytes) -> Piece:
        """Read one chunk, or a whole answer that was not streamed. Raises UpstreamError if the data is neither."""
        try:
            return self._add(_parsed(data))
        except (TypeError, ValueError, LookupError, AttributeError) as error:
            raise UpstreamError("The model's answer was garbled. Retry the request.", maybe_billed=True) from error

    def _add(self, chunk: Chunk) -> Piece:
        self.model = _text(chunk.get("model") or self.model)
        if filtered := chunk.get("prompt_filter_results"):
            self.extras.setdefault("content_filter", {})["prompt"] = filtered
        choices = chunk.get("choices") or ()
        shown = next((self._add_choice(choice) for choice in choices if choice.get("index", 0) == 0), {})
        if usage := chunk.get("usage"):
            self.usage = usage_of(usage)
        elif shown:
            self.usage = None  # usage reported before this chunk does not cover the whole answer
        return Piece(shown, bool(usage) and not choices)

    def message(self) -> Message:
        """The assistant's message so far."""
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
            _append_texts(self._function_call, call)
            shown["function_call"] = call
        return shown

    def _add_tool_call(self, index: int, piece: Mapping[str, Any]) -> None:
        call = self._tool_calls.setdefault(_whole(index), {"id": "", "type": "function"})
        call["id"] = _text(piece.get("id")) or call["id"]
        for kind in ("function", "custom"):
            if part := piece.get(kind):
                call["type"] = kind
                _append_texts(call.setdefault(kind, {}), part)

    def _add_filtered(self, results: Mapping[str, Any]) -> None:
        """Each chunk of a stream has its own results; the most severe one applies to the answer."""
        worst = self.extras.setdefault("content_filter", {}).setdefault("completion", {})
        for kind, result in results.items():
            if kind not in worst or _severity(result) > _severity(worst[kind]):
                worst[kind] = result

    def _add_logprobs(self, logprobs: Mapping[str, Any]) -> None:
        gathered = self.extras.setdefault("logprobs", {})
        for kind, tokens in logprobs.items():
            if tokens:
                gathered.setdefault(kind, []).extend(tokens)


def _append_texts(texts: dict[str, str], piece: Mapping[str, Any]) -> None:
    for name, text in piece.items():
        texts[name] = texts.get(name, "") + (_text(text) or "")


def _text(value: Any) -> str | None:
    if value is not None and not isinstance(value, str):
        raise TypeError("not a string")
    return value


def _whole(value: Any) -> int:
    if not isinstance(value, int) or isinstance(value, bool) or not 0 <= value < 2**53:
        raise TypeError("not a token count")
    return value


def _severity(result: Any) -> tuple[bool, int]:
    if not isinstance(result, dict):
        return False, 0
    return bool(result.get("filtered") or result.get("detected")), _SEVERITIES.get(str(result.get("severity")), 0)


def _parsed(data: bytes) -> Chunk:
    chunk = orjson.loads(data)
    orjson.dumps([[chunk]])  # raises for nesting that orjson can read but could not serialize later
    if not isinstance(chunk, dict) or chunk.get("error"):
        log.warning("the model service ended its answer with an error")
        raise UpstreamError("The model's answer ended with an error. Retry the request.", maybe_billed=True)
    return chunk


def usage_of(reported: Mapping[str, Any]) -> Usage:
    """Usage from a service's `usage` object; missing details count as 0. Raises KeyError, TypeError or AttributeError
    if a token count is missing or invalid, because a missing count is not zero."""
    prompt, completion = _whole(reported["prompt_tokens"]), _whole(reported["completion_tokens"])
    uncounted = _whole(reported.get("total_tokens") or 0) - prompt - completion
    prompt_details = reported.get("prompt_tokens_details") or {}
    completion_details = reported.get("completion_tokens_details") or {}
    cached = _whole(prompt_details.get("cached_tokens") or 0)
    cache_write = _whole(prompt_details.get("cache_write_tokens") or 0)
    reasoning = _whole(completion_details.get("reasoning_tokens") or 0)
    answer = _including(reasoning, completion, uncounted)
    uncounted -= answer - completion  # otherwise the same tokens could be added to the prompt too
    return Usage(
        prompt_tokens=_including(cached + cache_write, prompt, uncounted),
        cached_tokens=cached,
        cache_write_tokens=cache_write,
        completion_tokens=answer,
        reasoning_tokens=reasoning,
    )


def _including(part: int, count: int, uncounted: int) -> int:
    """The count including its part. Some services report the part separately, for example Grok its reasoning tokens
    (BerriAI/litellm#39426). This is the case if the part is larger than the count, or if it equals `uncounted`: the
    tokens by which the reported total exceeds prompt plus completion."""
    return count + part if part > count or part == uncounted else count
