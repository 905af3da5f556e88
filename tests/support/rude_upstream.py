"""A rude model service: it sends the bytes that a test gives it, whatever they are, and meters what it bills for them.

Where no bytes are queued, it answers as the fake of azure_openai.py does, in a rude dialect.
"""

import asyncio
import json
import uuid
from collections import deque
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from datetime import UTC, datetime
from typing import Any, Literal

import h11
import pytest

from tests.support.azure_openai import AnyAnswer, AzureOpenAI, Billed, Request
from tests.support.loopback import MAX_WAIT_S, Wire
from tests.support.rude_dialect import Rude

JSON = dict[str, Any]
PROMPT_TOKENS, COMPLETION_TOKENS = 9, 3  # what each raw answer is billed, unless it says otherwise
USAGE: JSON = {"prompt_tokens": PROMPT_TOKENS, "completion_tokens": COMPLETION_TOKENS, "total_tokens": 12}
MODEL = "gpt-5.4-mini-2026-03-17"


@dataclass(frozen=True)
class Raw:
    """A response. `parts` are sent one after the other, each as a chunk of its own."""

    parts: Sequence[bytes]
    status: int = 200
    media_type: str = "text/event-stream"
    framing: Literal["chunked", "length", "close", "none"] = "chunked"  # none: `parts` are the response, also its head
    ending: Literal["clean", "reset", "open"] = "clean"  # open: until the client disconnects
    prompt_tokens: int = PROMPT_TOKENS
    cached_tokens: int = 0
    completion_tokens: int = COMPLETION_TOKENS
    billed: bool = True
    headers: Sequence[tuple[str, bytes | str]] = ()


class RudeUpstream(AzureOpenAI):
    def __init__(self) -> None:
        super().__init__()
        self._rude = Rude()
        self._raw: deque[Raw] = deque()
        self.raw_responder: Callable[[Request], Raw | None] = lambda request: None

    def raw(self, *parts: bytes, **details: Any) -> None:
        """Queue an answer; `details` are fields of Raw."""
        self.queue(Raw(parts, **details))

    def queue(self, raw: Raw) -> None:
        self._raw.append(raw)

    def stream(self, *events: JSON | bytes | str, done: bool = True, **details: Any) -> None:
        """Queue a stream: mappings are chunks, text is an event's data, bytes are sent as they are."""
        self.raw(*map(frame, events), *([b"data: [DONE]\n\n"] if done else []), **details)

    def _parts(
        self, request: Request, answer: AnyAnswer, *, usage: bool
    ) -> tuple[list[bytes], list[bytes], list[bytes]]:
        opening, content, closing = super()._parts(request, answer, usage=usage)
        if request.streamed:
            opening, content, closing = self._rude.stream(opening, content, closing)
            return opening, content, closing
        whole = self._rude.document(content[0] + closing[0])
        return [], [whole[: len(whole) // 2]], [whole[len(whole) // 2 :]]

    async def _complete(self, wire: Wire, request: Request) -> None:
        raw = self._raw.popleft() if self._raw else self.raw_responder(request)
        if raw is None:
            return await super()._complete(wire, request)
        if raw.billed:
            self.meter.append(_billed(request, raw))
        headers: list[tuple[str, Any]] = [("content-type", raw.media_type), *raw.headers]
        if raw.framing == "none":
            await wire.send_bytes(b"".join(raw.parts))
            return wire.reset() if raw.ending == "reset" else None
        if raw.framing == "close":
            return await _send_unframed(wire, raw)
        if raw.framing == "length":
            missing = 1 if raw.ending == "reset" else 0  # a whole body would count as a clean end
            headers.append(("content-length", str(sum(map(len, raw.parts)) + missing)))
        else:
            headers.append(("transfer-encoding", "chunked"))
        await wire.send(h11.Response(status_code=raw.status, headers=headers))
        for part in raw.parts:
            if part:
                await wire.send(h11.Data(part))
        if raw.ending == "reset":
            return wire.reset()
        if raw.ending == "open":
            await asyncio.sleep(MAX_WAIT_S)
        return await wire.send(h11.EndOfMessage())


def _fakes(*marks: pytest.MarkDecorator) -> pytest.MarkDecorator:
    fakes = [pytest.param(AzureOpenAI, id="polite"), pytest.param(RudeUpstream, id="rude", marks=marks)]
    return pytest.mark.parametrize("fake", fakes, indirect=True)


with_both_fakes = _fakes()
with_rude_fake_in_acceptance = _fakes(pytest.mark.acceptance)  # for tests that take long


async def _send_unframed(wire: Wire, raw: Raw) -> None:
    """The end of the connection is the end of the body; h11 would add chunks."""
    head = f"HTTP/1.1 {raw.status} OK\r\ncontent-type: {raw.media_type}\r\nconnection: close\r\n\r\n"
    await wire.send_bytes(head.encode() + b"".join(raw.parts))
    if raw.ending == "reset":
        wire.reset()


def frame(event: JSON | bytes | str) -> bytes:
    if isinstance(event, bytes):
        return event
    return f"data: {event if isinstance(event, str) else json.dumps(event)}\n\n".encode()


def chunk(delta: JSON | None = None, finish_reason: str | None = None, **fields: Any) -> JSON:
    """One chunk with one choice, or with none if there is no delta."""
    choices = [] if delta is None else [{"index": 0, "delta": delta, "finish_reason": finish_reason}]
    return {"id": "c", "object": "chat.completion.chunk", "created": 1, "model": MODEL, "choices": choices} | fields


def text(content: Any, **fields: Any) -> JSON:
    return chunk({"content": content}, **fields)


def end(finish_reason: str | None = "stop", **fields: Any) -> JSON:
    return chunk({}, finish_reason, **fields)


def usage(**counts: Any) -> JSON:
    return chunk(usage={**USAGE, **counts})


def whole(message: JSON, finish_reason: str | None = "stop", **fields: Any) -> bytes:
    """A completion that is not streamed."""
    choice = {"index": 0, "message": {"role": "assistant", **message}, "finish_reason": finish_reason}
    base = {"id": "c", "object": "chat.completion", "created": 1, "model": MODEL, "choices": [choice], "usage": USAGE}
    return json.dumps(base | fields).encode()


def _billed(request: Request, raw: Raw) -> Billed:
    return Billed(
        call_id=request.call_id or uuid.uuid4().hex,
        deployment=request.body["model"],
        model=MODEL,
        prompt_tokens=raw.prompt_tokens,
        cached_tokens=raw.cached_tokens,
        cache_write_tokens=0,
        completion_tokens=raw.completion_tokens,
        reasoning_tokens=0,
        streamed=request.streamed,
        outcome="ok",
        at=datetime.now(UTC),
    )
