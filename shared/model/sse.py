"""HTTP response bodies: the data of server-sent events, or one document."""

from collections.abc import AsyncIterator
from contextlib import suppress

import httpx2

from shared.domain.clock import Clock

CONNECTION_ERRORS = (httpx2.RequestError, OSError)  # a broken TLS record raises the socket's own error
DRAIN_TIMEOUT_S = 1.0  # to read the bytes after [DONE], so that the connection can be reused; the caller waits


async def document(parts: AsyncIterator[bytes]) -> AsyncIterator[bytes]:
    yield b"".join([part async for part in parts])


async def events(parts: AsyncIterator[bytes], clock: Clock) -> AsyncIterator[bytes]:
    """The data of server-sent events, up to `[DONE]`."""
    lines = _lines(parts)
    async for line in lines:
        if line.startswith(b"data:"):
            if (data := line[5:].strip()) == b"[DONE]":
                break
            yield data
    with suppress(*CONNECTION_ERRORS):  # a TimeoutError is an OSError
        async with clock.timeout_at(clock.monotonic() + DRAIN_TIMEOUT_S):
            async for _ in lines:
                pass


async def _lines(parts: AsyncIterator[bytes]) -> AsyncIterator[bytes]:
    """The lines of server-sent events. httpx's line iterator also splits at U+2028 and U+0085, which JSON may contain
    unescaped."""
    line: list[bytes] = []  # parts of one line: joining on each arrival would copy a long line each time
    async for part in parts:
        piece, *others = part.split(b"\n")
        line.append(piece)
        for other in others:
            yield b"".join(line)
            line = [other]
    yield b"".join(line)
