"""The stream of a response: a turn's events as OpenAI's server-sent events.

The item that begins first is sent as it arrives. All others wait until the answer is settled, and are then sent whole:
chat completions may interleave tool calls, which clients of the Responses API can't take apart (LangChain). A refusal
waits too: it comes after the text of its message, wherever it began.
https://platform.openai.com/docs/api-reference/responses-streaming
"""

from collections.abc import Iterator, Mapping
from contextlib import suppress
from dataclasses import replace
from datetime import datetime
from typing import Any, TypeAlias

import orjson

from shared.domain.conversation import Item, Turn
from shared.domain.items import CALLS
from shared.turns.events import Answer, Delta, Event, Metered, Opened, Started
from shared.web.contract.responses import LOGPROBS
from shared.web.http import json_bytes, sse_frame
from shared.web.responses.errors import response_error
from shared.web.responses.object import begun, failed, item_object, response_object, token_logprobs
from shared.web.responses.request import ParsedRequest

JSON: TypeAlias = dict[str, Any]
_DELTAS = {"function_call": "response.function_call_arguments", "custom_tool_call": "response.custom_tool_call_input"}
_PLACEHOLDER = "{}"  # some services send it before the arguments (BerriAI/litellm#4537)


class ResponseEvents:
    """Writes one stream. `session_id`: of a response that is not stored; `now`: when it was begun."""

    def __init__(self, parsed: ParsedRequest, session_id: str, now: datetime) -> None:
        self._parsed = parsed
        self._inputs = len(parsed.turn.input)
        self.session_id, self._number = session_id, 1
        self._created = now
        self._deployment = parsed.turn.deployment  # the one that answers
        self._sequence = 0
        self._response: JSON = {}
        self._first: JSON | None = None  # the item that is sent as it arrives, as it began
        self._waits = False  # what began first can't be sent as it arrives
        self._text: str | None = None  # of it, as far as it was sent; None: its text has not begun
        self._held = ""  # arguments that may be a placeholder

    def turn_of(self, event: Answer | Metered) -> Turn:
        """The turn, with the number that the response's id has. Without a session a turn has none."""
        return replace(event.turn, number=self._number)

    def write(self, event: Event) -> bytes:
        """The bytes for an event of the turn."""
        return b"".join(self._frames(event))

    def write_error(self, error: Exception) -> bytes:
        """The end of a stream whose turn failed."""
        return self._frame("response.failed", response=failed(self._response, response_error(error)[0]))

    def _frames(self, event: Event) -> Iterator[bytes]:
        if isinstance(event, Started):
            self.session_id, self._number, self._created = event.session_id, event.turn, event.started
            self._deployment = event.deployment
            return
        if isinstance(event, Opened):
            self._deployment = event.deployment
        if not self._response:
            created = int(self._created.timestamp())
            echo = {**self._parsed.echo, "model": self._deployment}
            self._response = begun(echo, self.session_id, self._number, created)
            yield self._frame("response.created", response=self._response)
            yield self._frame("response.in_progress", response=self._response)
        if isinstance(event, Delta):
            yield from self._delta(event.pieces, self._logprobs(event))
        elif isinstance(event, Answer | Metered):
            yield from self._end(event)

    def _delta(self, pieces: Mapping[str, Any], logprobs: list[JSON]) -> Iterator[bytes]:
        if pieces.get("content") or pieces.get("refusal"):
            if self._first is None and not self._waits:
                yield self._begin({"type": "message", "role": "assistant", "content": []})
            if self._first and self._first["type"] == "message" and pieces.get("content"):
                yield from self._add_text(pieces["content"], logprobs)
        for call in pieces.get("tool_calls") or ():
            yield from self._add_call(call)

    def _add_text(self, text: str, logprobs: list[JSON]) -> Iterator[bytes]:
        if self._text is None:
            self._text = ""
            yield self._part("added", 0, 0, _empty({"type": "output_text"}))
        self._text += text
        yield self._frame(
            "response.output_text.delta", **self._place(0), content_index=0, delta=text, logprobs=logprobs
        )

    def _logprobs(self, delta: Delta) -> list[JSON]:
        """Those of the delta's tokens, if they are included."""
        if LOGPROBS not in self._parsed.include:
            return []
        with suppress(ValueError, TypeError, LookupError, AttributeError):  # the service sent another form
            return token_logprobs(orjson.loads(delta.event.data)["choices"][0]["logprobs"])
        return []

    def _add_call(self, call: Mapping[str, Any]) -> Iterator[bytes]:
        kind = "custom_tool_call" if call.get("type") == "custom" else "function_call"
        inside = call.get("custom") or call.get("function") or {}
        if self._first is None and not self._waits:
            self._waits = bool(call["index"]) or not call.get("id") or not inside.get("name")
            if not self._waits:
                self._text = ""
                yield self._begin({"type": kind, "call_id": call["id"], "name": inside["name"], CALLS[kind]: ""})
        if self._first and self._first["type"] in CALLS and call["index"] == 0:
            yield from self._add_arguments(self._first["type"], inside.get(CALLS[self._first["type"]]) or "")

    def _add_arguments(self, kind: str, text: str) -> Iterator[bytes]:
        """A placeholder is held back until the text after it shows whether it was one."""
        if text == _PLACEHOLDER and not self._text and not self._held:
            self._held = text
        elif text:
            text = text if text.lstrip().startswith("{") else self._held + text
            self._held, self._text = "", (self._text or "") + text
            yield self._frame(f"{_DELTAS[kind]}.delta", **self._place(0), delta=text)

    def _begin(self, item: Item) -> bytes:
        self._first = item_object(self.session_id, self._number, self._inputs, item, "in_progress")
        return self._frame("response.output_item.added", output_index=0, item=self._first)

    def _end(self, event: Answer | Metered) -> Iterator[bytes]:
        turn = replace(self.turn_of(event), started=self._created)
        response = response_object(self._parsed.echo, self.session_id, turn, self._parsed.include)
        for at, item in enumerate(response["output"]):
            is_first = at == 0 and self._first is not None and self._first["type"] == item["type"]
            if not is_first:
                self._text = None
                empty: JSON = {"content": []} if item["type"] == "message" else {CALLS[item["type"]]: ""}
                yield self._frame(
                    "response.output_item.added", output_index=at, item=item | {"status": "in_progress"} | empty
                )
            yield from self._rest_of_message(at, item) if item["type"] == "message" else self._rest_of_call(at, item)
            yield self._frame("response.output_item.done", output_index=at, item=item)
        yield self._frame(f"response.{response['status']}", response=response)

    def _rest_of_message(self, at: int, item: JSON) -> Iterator[bytes]:
        for index, part in enumerate(item["content"]):
            kind = part["type"]
            name = "text" if kind == "output_text" else "refusal"
            place = {"item_id": item["id"], "output_index": at, "content_index": index}
            extra = {"logprobs": part["logprobs"]} if name == "text" else {}
            sent, self._text = self._text, None
            if sent is None:
                yield self._part("added", at, index, _empty(part), item["id"])
            if rest := _rest(part[name], sent or ""):
                of_rest = {"logprobs": [] if sent else part["logprobs"]} if extra else {}
                yield self._frame(f"response.{kind}.delta", **place, delta=rest, **of_rest)
            for number, annotation in enumerate(part.get("annotations", ())):
                yield self._frame(
                    "response.output_text.annotation.added", **place, annotation_index=number, annotation=annotation
                )
            yield self._frame(f"response.{kind}.done", **place, **{name: part[name]}, **extra)
            yield self._part("done", at, index, part, item["id"])

    def _rest_of_call(self, at: int, item: JSON) -> Iterator[bytes]:
        field, event = CALLS[item["type"]], _DELTAS[item["type"]]
        place = {"item_id": item["id"], "output_index": at}
        if rest := _rest(item[field], self._text or ""):
            yield self._frame(f"{event}.delta", **place, delta=rest)
        name = {"name": item["name"]} if item["type"] == "function_call" else {}
        yield self._frame(f"{event}.done", **place, **{field: item[field]}, **name)

    def _place(self, at: int) -> JSON:
        return {"item_id": self._first["id"] if self._first else "", "output_index": at}

    def _part(self, change: str, at: int, index: int, part: JSON, item_id: str = "") -> bytes:
        place = self._place(at) | ({"item_id": item_id} if item_id else {})
        return self._frame(f"response.content_part.{change}", **place, content_index=index, part=part)

    def _frame(self, kind: str, **fields: Any) -> bytes:
        data = {"type": kind, "sequence_number": self._sequence, **fields}
        self._sequence += 1
        return sse_frame(json_bytes(data), kind.encode())


def _empty(part: Mapping[str, Any]) -> JSON:
    if part["type"] == "refusal":
        return {"type": "refusal", "refusal": ""}
    return {"type": "output_text", "text": "", "annotations": [], "logprobs": []}


def _rest(text: str, sent: str) -> str:
    """What is left to send of a text."""
    return text.removeprefix(sent) if text.startswith(sent) else ""
