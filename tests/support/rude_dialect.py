"""Rewrites valid chunks into what other services and gateways send for the same answer, and the noise between them.

tests/turns/test_rude_upstream.py has the reports of each form.
"""

import json
from collections.abc import Sequence
from itertools import cycle
from typing import Any

JSON = dict[str, Any]
BOM = b"\xef\xbb\xbf"
LINE_ENDS = (b"\n", b"\r\n", b"\r")
# What a reader skips: comments, pings, fields without meaning, data that is empty or no chunk.
NOISE = [
    b": ping\n\n",
    b"\n\n",
    b"data:\n\n",
    b"data: \n\n",
    b"data\n\n",
    b"event: ping\ndata: ping\n\n",
    b"event: ping\ndata: {}\n\n",
    b"event: ping\n\n",
    b"id: 7\nretry: 10\nfoo: bar\nfoo\n\n",
    b"data: {\n\n",
    b"data: \xff\xfe\n\n",
    b"data: null\n\n",
    b"data: 5\n\n",
    b'data: "text"\n\n',
    b"data: [1, null]\n\n",
    b'data: {"choices": []}\n\n',
    b'data: {"type": "ping",\ndata: "cost": "0"}\n\n',
    b"data: " + b"[" * 2_000 + b"]" * 2_000 + b"\n\n",
    b"data: <html></html>\n\n",
]


class Rude:
    """Rewrites one answer after the other, each time with the next noise and line end."""

    def __init__(self) -> None:
        self._noise, self._line_ends = cycle(NOISE), cycle(LINE_ENDS)

    def stream(self, *parts: Sequence[bytes]) -> tuple[list[bytes], ...]:
        """The frames of each part of a stream, with noise before each and a byte order mark before all."""
        bom = iter([BOM])
        return tuple([next(bom, b"") + next(self._noise) + self._frame(frame) for frame in part] for part in parts)

    def document(self, body: bytes) -> bytes:
        document = json.loads(body)
        if "choices" not in document:
            return BOM + json.dumps(_with_float_counts(document)).encode()
        for choice in document["choices"]:
            for call in choice["message"].get("tool_calls") or ():
                call["function"]["arguments"] = _decoded(call["function"]["arguments"])
        return BOM + json.dumps(_with_float_counts(document)).encode() + b"\ndata: [DONE]\n\n"

    def _frame(self, frame: bytes) -> bytes:
        if frame.startswith(b"data: {"):
            chunk = json.loads(frame.removeprefix(b"data: "))
            frame = b"data:" + json.dumps(_chunk(chunk)).encode() + b"\n\n"
        return frame.replace(b"\n", next(self._line_ends))


def _chunk(chunk: JSON) -> JSON:
    """Content as parts, tool calls without index, no usual finish_reason, null choices beside usage."""
    for choice in chunk["choices"]:
        delta = choice["delta"]
        if "content" in delta:
            delta["content"] = _parts(delta["content"])
        for call in delta.get("tool_calls") or ():
            del call["index"]
        if choice["finish_reason"] in ("stop", "tool_calls"):
            del choice["finish_reason"]
    return _with_float_counts(chunk | {"choices": chunk["choices"] or None})


def _parts(content: str | None) -> list[JSON] | None:
    return content and [{"type": "text", "text": content}]  # type: ignore[return-value]


def _decoded(arguments: str) -> Any:
    try:
        return json.loads(arguments)
    except ValueError:
        return arguments


def _with_float_counts(answer: JSON) -> JSON:
    usage = answer.get("usage") or {}
    counts = {name: float(count) for name, count in usage.items() if isinstance(count, int)}
    return answer | ({"usage": usage | counts} if usage else {})
