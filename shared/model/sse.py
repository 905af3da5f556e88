"""HTTP response bodies: server-sent events, or JSON (one document, or one chunk after the other), whatever the
request's `stream` says.

https://html.spec.whatwg.org/multipage/server-sent-events.html#parsing-an-event-stream
"""

import re
from collections.abc import AsyncIterator, Iterator
from contextlib import suppress

import httpx2

from shared.domain.clock import Clock
from shared.model.wire_json import objects, parsed
from shared.turns.ports import DONE, ServerEvent

CONNECTION_ERRORS = (httpx2.RequestError, OSError)  # a broken TLS record raises the socket's own error
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
    lines = _lines(start, parts)
    async for event in _events(lines):
        yield event
        if event.data == DONE:
            break
    else:
        if not _framed(response):
            raise ConnectionError("the stream ended without [DONE]")
    with suppress(*CONNECTION_ERRORS):  # a TimeoutError is an OSError
        async with clock.timeout_at(clock.monotonic() + DRAIN_TIMEOUT_S):
            async for _ in lines:
                pass


def _documents(body: bytes) -> list[bytes]:
    """The JSON objects of a body: one as it is, else each (also those in a list) without what stands behind, such as
    `data: [DONE]` (decolua/9router#3492)."""
    return [body] if isinstance(parsed(body), dict) else objects(_PREAMBLE.sub(b"", body, count=1)) or [body]


async def _events(lines: AsyncIterator[bytes]) -> AsyncIterator[ServerEvent]:
    """The standard discards an event without a blank line at the end of the body. This one counts if it is whole,
    because it may contain the usage."""
    name, data, raw = b"", list[bytes](), list[bytes]()
    async for line in lines:
        field, _, value = line.partition(b":")
        value = value.removeprefix(b" ")
        if field == b"data":
            data.append(value)
            raw.append(value)
        elif field == b"event":
            name = value
        elif field not in (b"", b"id", b"retry") and data:
            raw.append(line)
        elif not line:
            for event in _dispatched(name, data, raw):
                yield event
            name, data, raw = b"", [], []
    for last in _dispatched(name, data, raw):
        if last.data == DONE or parsed(last.data) is not None:
            yield last


def _dispatched(name: bytes, data: list[bytes], raw: list[bytes]) -> Iterator[ServerEvent]:
    """The event with this data. Where that is no JSON, two errors of services are mended: a raw line feed inside a
    string (`raw`: the lines with those that are no field), and chunks without blank lines between them."""
    if not any(data):
        return
    lines = [b"\n".join(data)]
    if len(raw) > 1 and parsed(lines[0]) is None:
        if parsed(b"\n".join(raw)) is not None:
            lines = [b"\n".join(raw)]
        elif all(line.strip() == DONE or isinstance(parsed(line), dict) for line in data):
            lines = data
    for line in lines:
        yield ServerEvent(DONE if line.strip() == DONE else line, name)


async def _lines(start: bytes, parts: AsyncIterator[bytes]) -> AsyncIterator[bytes]:
    """Lines end with CR LF, LF, CR or the body. httpx's line iterator also splits at U+2028 and U+0085, which JSON may
    contain unescaped."""
    line: list[bytes] = []  # in parts: joining on each arrival would copy a long line each time
    after_cr, bom = False, _BOM

    async def all_parts() -> AsyncIterator[bytes]:
        yield start
        async for part in parts:
            yield part

    async for part in all_parts():
        rest = part[1:] if after_cr and part.startswith(b"\n") else part
        after_cr = part.endswith(b"\r") if part else after_cr
        piece, *others = rest.replace(b"\r\n", b"\n").replace(b"\r", b"\n").split(b"\n")
        line.append(piece)
        for other in others:
            yield b"".join(line).removeprefix(bom)
            line, bom = [other], b""
    if rest := b"".join(line).removeprefix(bom):
        yield rest


def _framed(response: httpx2.Response) -> bool:
    """True if the transport marks the end of the body."""
    headers = response.headers
    chunked = "chunked" in headers.get("transfer-encoding", "").lower()
    return chunked or "content-length" in headers or response.http_version == "HTTP/2"
