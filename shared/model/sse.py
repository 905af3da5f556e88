"""HTTP response bodies: server-sent events, or one JSON document, whatever the request's `stream` says.

https://html.spec.whatwg.org/multipage/server-sent-events.html#parsing-an-event-stream
"""

from collections.abc import AsyncIterator
from contextlib import suppress

import httpx2

from shared.domain.clock import Clock
from shared.model.wire_json import parsed
from shared.turns.ports import DONE, ServerEvent

CONNECTION_ERRORS = (httpx2.RequestError, OSError)  # a broken TLS record raises the socket's own error
DRAIN_TIMEOUT_S = 1.0  # to read the bytes after [DONE], so that the connection can be reused; the caller waits
_BOM = b"\xef\xbb\xbf"


async def events(response: httpx2.Response, clock: Clock) -> AsyncIterator[ServerEvent]:
    """The events of a response body up to and including `[DONE]`; for a JSON document, one event with the document.

    Raises CONNECTION_ERRORS. A stream without `[DONE]` counts as a lost connection, unless the transport marks the end
    of the body (with chunks or a length).
    """
    parts = response.aiter_bytes()
    start = b""
    async for part in parts:
        start += part
        if len(start) > len(_BOM) and start.removeprefix(_BOM).strip():
            break
    if start.removeprefix(_BOM).lstrip().startswith(b"{"):
        document = b"".join([start, *[part async for part in parts]]).removeprefix(_BOM)
        yield ServerEvent(document.rstrip().removesuffix(b"data: [DONE]"))  # decolua/9router#3492
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


async def _events(lines: AsyncIterator[bytes]) -> AsyncIterator[ServerEvent]:
    """The standard discards an event without a blank line at the end of the body. This one counts if it is whole,
    because it may contain the usage."""
    name, data = b"", list[bytes]()
    async for line in lines:
        field, _, value = line.partition(b":")
        value = value.removeprefix(b" ")
        if field == b"data":
            data.append(value)
        elif field == b"event":
            name = value
        elif not line:
            if any(data):
                yield _event(name, data)
            name, data = b"", []
    if any(data) and ((last := _event(name, data)).data == DONE or parsed(last.data) is not None):
        yield last


def _event(name: bytes, data: list[bytes]) -> ServerEvent:
    joined = b"\n".join(data)
    return ServerEvent(DONE if joined.strip() == DONE else joined, name)


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
