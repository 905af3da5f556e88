"""Reads an answer in the chat completions format, whole or from its chunks.

Invalid data never raises. Usage, model and finish reason are read first and independently, so that invalid content
cannot hide them; invalid content is converted to text or dropped. Chunks stay plain mappings: typed parsing of every
chunk costs several times more CPU time.
https://platform.openai.com/docs/api-reference/chat
"""

import logging
from collections.abc import Mapping
from typing import Any

import orjson

from shared.domain.calls import Usage
from shared.domain.conversation import Message
from shared.errors import UpstreamError, UpstreamResponse
from shared.model.choice import MAX_NAME, Choice, delta_of, listed, name_of
from shared.model.error_body import read_error
from shared.model.running_usage import RunningUsage
from shared.model.stream_errors import is_error, unwrapped
from shared.model.tool_calls import index_of, listed_calls
from shared.model.usage import usage_of
from shared.model.wire_json import as_text, parsed, storable
from shared.turns.ports import DONE, Piece

log = logging.getLogger(__name__)

_MAX_CHOICES = 128  # the largest `n`
_OF_CHUNKS = ("choices", "usage", "object", "obfuscation", "error")  # fields that an assembled document does not repeat


class Completion:
    """An answer as far as it has been received. The first choice is the answer; the others are only passed on.
    Implements AnswerReader.

    `one_choice`: the request asks for one choice. It is then read whatever its index, because some services count the
    chunks there (microsoft/foundry-local#263) or begin at 1 (spring-projects/spring-ai#6221).
    """

    def __init__(self, *, one_choice: bool = False) -> None:
        self._one_choice = one_choice
        self._first = Choice()
        self._choices = {0: self._first}
        self.extras = self._first.extras
        self.model: str | None = None
        self.service_tier: str | None = None
        self.error: UpstreamError | None = None
        self._running_usage = RunningUsage()
        self._usage: Usage | None = None
        self._reported: Any = None
        self._usage_is_last = False
        self._ended = self._done = False
        self._has_data = False  # any choice or usage
        self._begun = False  # any part of the answer itself
        self._count = 0  # chunks, or the document
        self._document = b""
        self._fields: dict[str, Any] = {}  # of the chunks themselves: id, created, system_fingerprint

    @property
    def usage(self) -> Usage | None:
        """None until it is final: reported in an error or a chunk without choices, or followed by a clean end."""
        return self._usage if self._ended or self._usage_is_last else None

    @property
    def calls_first(self) -> bool:
        return self._first.calls_first

    @property
    def running_usage(self) -> Usage | None:
        return self._running_usage.value

    @property
    def running_usage_is_exact(self) -> bool:
        return self._one_choice and self._running_usage.is_exact

    @property
    def finish_reason(self) -> str | None:
        if self._first.finish_reason is None and self._has_data and (self._done or (self._ended and self._usage)):
            return self._first.default_finish_reason
        return self._first.finish_reason

    @property
    def complete(self) -> bool:
        """An answer whose end is not clean is complete only if its finish_reason came, and its usage last."""
        return self.error is None and self.finish_reason is not None and (self._ended or self._usage_is_last)

    def add(self, data: bytes, name: bytes = b"") -> Piece | None:
        if data == DONE:
            self._done = True
            return None
        value = parsed(data)
        chunk, failed = unwrapped(value), is_error(value, name)
        answered = failed and self.complete
        choices = self._add_metadata(chunk, failed=failed) if chunk is not None else []
        if failed and answered:
            log.warning("the model service sent an error after its complete answer: %s", read_error(data).message[:300])
        elif failed:
            self._fail(data, chunk)
        elif chunk is not None:
            return self._add(chunk, choices, data if chunk is value else orjson.dumps(storable(chunk)))
        return Piece({})

    def end(self) -> None:
        self._ended = True

    def stop(self) -> bytes:
        choices = []
        for index, choice in sorted(self._choices.items()):
            choice.finish_reason = choice.finish_reason or "stop"
            choices.append({"index": index, "delta": {}, "finish_reason": choice.finish_reason})
        fields = {name: storable(each) for name, each in self._fields.items()}
        chunk = {"id": "", **fields, "object": "chat.completion.chunk", "model": self.model, "choices": choices}
        return orjson.dumps(chunk)

    def message(self, *, empty_fields: bool = False) -> Message:
        return self._first.message(empty_fields=empty_fields)

    def document(self) -> bytes:
        """The document that was received, or one assembled from the chunks of a stream."""
        assembled = {
            "id": "",
            **{name: storable(each) for name, each in self._fields.items()},
            "object": "chat.completion",
            "model": self.model,
            "choices": [choice.document(index) for index, choice in sorted(self._choices.items())],
            "usage": storable(self._reported),
        }
        return self._document or orjson.dumps(assembled)

    def _add_metadata(self, chunk: Mapping[str, Any], *, failed: bool) -> list[tuple[Choice, dict[str, Any]]]:
        """Read what counts for billing and for the end. Returns the choices to read."""
        choices = _objects(chunk)
        numbered = [(choice, each) for each in choices if (choice := self._choice(each))]
        read = numbered[:1] if self._one_choice else numbered
        reported = chunk.get("usage")
        tier = chunk.get("service_tier") or (reported.get("service_tier") if isinstance(reported, dict) else None)
        self.model = name_of(chunk.get("model")) or self.model
        self.service_tier = as_text(storable(tier))[:MAX_NAME] if tier else self.service_tier
        for choice, each in read:
            choice.finish_reason = name_of(each.get("finish_reason")) or choice.finish_reason
        generated = any(value for each in choices for name, value in delta_of(each).items() if name != "role")
        self._has_data = self._has_data or bool(choices) or bool(reported)
        self._begun = self._begun or generated or any(choice.finish_reason for choice, _ in numbered)
        self._add_usage(reported, choices, generated=generated, failed=failed)
        self._running_usage.add(chunk)
        return read

    def _add_usage(self, reported: Any, choices: list[dict[str, Any]], *, generated: bool, failed: bool) -> None:
        """A service may report some usage before the answer begins (vllm-project/semantic-router#2215) and with each
        chunk, perhaps of that chunk's choice alone: with several choices it counts where no choice is left out."""
        of_choices = [each["usage"] for each in choices if usage_of(each.get("usage"))]  # Moonshot reports it there
        if of_choices and not usage_of(reported):
            reported = of_choices[0]
        left_out = not self._one_choice and bool(choices) and len(choices) < len(self._choices)
        if usage := usage_of(reported):
            self._usage, self._reported = usage, reported
            self._usage_is_last = failed or (self._begun and not choices)
            if left_out or (reported in of_choices and len(self._choices) > 1):
                self._usage, self._usage_is_last = None, False
        elif generated:
            self._usage, self._usage_is_last = None, False  # usage reported before this chunk is incomplete

    def _add(self, chunk: Mapping[str, Any], choices: list[tuple[Choice, dict[str, Any]]], data: bytes) -> Piece | None:
        self._count += 1
        self._fields |= {name: each for name, each in chunk.items() if each is not None and name not in _OF_CHUNKS}
        if filtered := storable(chunk.get("prompt_filter_results")):
            self.extras.setdefault("content_filter", {})["prompt"] = filtered
        first = next((each for choice, each in choices if choice is self._first), {})
        whole = "message" in first and not isinstance(first.get("delta"), dict)
        if whole and self._first.repeated_by(first):
            return None if self._document else Piece({})
        self._document = data if whole or (self._count == 1 and "delta" not in first) else b""
        shown: dict[str, Any] = {}
        for choice, each in choices:
            pieces = choice.add(each, whole=whole)
            if each is first:
                shown = pieces
        if not whole:
            return Piece(shown, only_usage=not chunk.get("choices") and usage_of(chunk.get("usage")) is not None)
        self._done = True
        return Piece(shown, chunk=orjson.dumps(_as_chunk(chunk)))

    def _choice(self, choice: Mapping[str, Any]) -> Choice | None:
        index = 0 if self._one_choice or choice.get("index") is None else index_of(choice["index"], _MAX_CHOICES)
        if index is not None and index not in self._choices:
            self._choices[index] = Choice()
        return None if index is None else self._choices[index]

    def _fail(self, data: bytes, chunk: Mapping[str, Any] | None) -> None:
        """Record an error that ends the answer. Endpoint handles an error in the first event. Clients recognise only an
        object with the field `error`, so that others do not go on."""
        log.warning("the model service ended its answer with an error")
        reason = read_error(data).message[:300] or "it gave no reason."
        self.error = UpstreamError(f"The model's answer ended with an error: {reason}", maybe_billed=True)
        if chunk and chunk.get("error"):
            self.error.upstream = UpstreamResponse(502, {}, data)


def _objects(chunk: Mapping[str, Any]) -> list[dict[str, Any]]:
    """The choices that are objects."""
    return [each for each in listed(chunk.get("choices")) if isinstance(each, dict)]


def _as_chunk(document: Mapping[str, Any]) -> Any:
    """A whole completion as the single chunk of a stream."""
    deltas = []
    for choice in _objects(document):
        delta = dict(delta_of(choice))
        if calls := listed_calls(delta.get("tool_calls")):
            delta["tool_calls"] = [{"index": at, **call} for at, call in enumerate(calls)]
        deltas.append({**{name: each for name, each in choice.items() if name != "message"}, "delta": delta})
    return storable({**document, "object": "chat.completion.chunk", "choices": deltas})
