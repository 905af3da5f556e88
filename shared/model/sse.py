"""HTTP response bodies: server-sent events, or JSON (one document, or one chunk after the other), whatever the
request's `stream` says.

https://html.spec.whatwg.org/multipage/server-sent-events.html#parsing-an-event-stream
"""

import re
from collections.abc import AsyncIterator
from contextlib import suppress
from io import BytesIO

import aiohttp
import httpx2

from shared.domain.clock import Clock
from shared.model.wire_json import objects, parsed
from shared.turns.ports import DONE, ServerEvent

# A broken TLS record raises the socket's own error, a response that is no HTTP aiohttp's ClientResponseError.
CONNECTION_ERRORS = (httpx2.RequestError, aiohttp.ClientError, OSError)
DRAIN_TIMEOUT_S = 1.0  # to read the bytes after [DONE], so that the connection can be reused; the caller waits
_BOM = b"\xef\xbb\xbf"
_PREAMBLE = re.compile(rb"(?:\xef\xbb\xbf)?(?:\s+|:[^\r\n]*[\r\n])*")  # a mark, blank lines and comments


async def events(response: httpx2.Response, clock: Clock) -> AsyncIterator[ServerEvent]:
    """The events of a response body up to and including `[DONE]`; for a body of JSON, one event with each object.

    Raises CONNECTION_ERRORS. A stream without `[DONE]` counts as a lost connection, unless the transport marks the end
    of the body (with chunks or a length).
    """
    parts = response.aiter_bytes()
    start = rest = b""
    async for part in parts:
        start += part
        rest = _PREAMBLE.sub(b"", start, count=1)
        if len(start) > len(_BOM) and rest and not rest.startswith(b":"):
            break
    if rest.startswith((b"{", b"[")):
        documents = _documents(b"".join([start, *[part async for part in parts]]).removeprefix(_BOM))
        for document in documents:
            yield ServerEvent(document)
        if len(set(documents)) > 1 and not _framed(response):
            raise ConnectionError("the chunks ended without a mark")
        return
    stream, received = EventStream(), start or None
    while received is not None:
        for event in stream.feed(received):
            yield event
            if event.data == DONE:
                await _drain(parts, clock)
                return
        received = await anext(parts, None)
    last = stream.end()
    for event in last:
        yield event
    if not (last and last[-1].data == DONE) and not _framed(response):
        raise ConnectionError("the stream ended without [DONE]")


async def document(response: httpx2.Response) -> AsyncIterator[ServerEvent]:
    """The body as one event, neither parsed nor held twice. Raises CONNECTION_ERRORS."""
    body = BytesIO()
    async for part in response.aiter_bytes():
        body.write(part)
    yield ServerEvent(body.getvalue())


def _documents(body: bytes) -> list[bytes]:
    """The JSON objects of a body: one as it is, else each (also those in a list) without what stands behind, such as
    `data: [DONE]` (decolua/9router#3492)."""
    return [body] if isinstance(parsed(body), dict) else objects(_PREAMBLE.sub(b"", body, count=1)) or [body]


async def _drain(parts: AsyncIterator[bytes], clock: Clock) -> None:
    with suppress(*CONNECTION_ERRORS):  # a TimeoutError is an OSError
        async with clock.timeout_at(clock.monotonic() + DRAIN_TIMEOUT_S):
            async for _ in parts:
                pass


class EventStream:
    """Reads the events of a stream as its parts arrive.

    Lines end with CR LF, LF, CR or the body. httpx's line iterator also splits at U+2028 and U+0085, which JSON may
    contain unescaped.
    """

    def __init__(self) -> None:
        self._line: list[bytes] = []  # in parts: joining on each arrival would copy a long line each time
        self._after_cr, self._bom = False, _BOM
        self._begin_event()

    def feed(self, part: bytes) -> list[ServerEvent]:
        """The events that this part completes."""
        rest = part[1:] if self._after_cr and part.startswith(b"\n") else part
        self._after_cr = part.endswith(b"\r") if part else self._after_cr
        piece, *others = rest.replace(b"\r\n", b"\n").replace(b"\r", b"\n").split(b"\n")
        self._line.append(piece)
        events: list[ServerEvent] = []
        for other in others:
            events += self._read(b"".join(self._line).removeprefix(self._bom))
            self._line, self._bom = [other], b""
        return events

    def end(self) -> list[ServerEvent]:
        """The standard discards an event without a blank line at the end of the body. This one counts if it is whole,
        because it may contain the usage."""
        last = b"".join(self._line).removeprefix(self._bom)
        events = self._read(last) if last else []
        return events + [
            each
            for each in _dispatched(self._name, self._data, self._raw)
            if each.data == DONE or parsed(each.data) is not None
        ]

    def _read(self, line: bytes) -> list[ServerEvent]:
        field, _, value = line.partition(b":")
        value = value.removeprefix(b" ")
        if field == b"data":
            self._data.append(value)
            self._raw.append(value)
        elif field == b"event":
            self._name = value
        elif field not in (b"", b"id", b"retry") and self._data:
            self._raw.append(line)
        elif not line:
            events = _dispatched(self._name, self._data, self._raw)
            self._begin_event()
            return events
        return []

    def _begin_event(self) -> None:
        self._name = b""
        self._data: list[bytes] = []
        self._raw: list[bytes] = []  # the data with the lines that are no field


def _dispatched(name: bytes, data: list[bytes], raw: list[bytes]) -> list[ServerEvent]:
    """The event with this data. Where that is no JSON, two errors of services are mended: a raw line feed inside a
    string (`raw`: the lines with those that are no field), and chunks without blank lines between them."""
    if not any(data):
        return []
    lines = [b"\n".join(data)]
    if len(raw) > 1 and parsed(lines[0]) is None:
        if parsed(b"\n".join(raw)) is not None:
            lines = [b"\n".join(raw)]
        elif all(line.strip() == DONE or isinstance(parsed(line), dict) for line in data):
            lines = data
    return [ServerEvent(DONE if line.strip() == DONE else line, name) for line in lines]


def _framed(response: httpx2.Response) -> bool:
    """True if the transport marks the end of the body."""
    headers = response.headers
    chunked = "chunked" in headers.get("transfer-encoding", "").lower()
    return chunked or "content-length" in headers or response.http_version == "HTTP/2"
