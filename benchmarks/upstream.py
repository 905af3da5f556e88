"""What benchmarks of HTTP run beside the app: a fast model service, and a bare pass-through.

`python -m benchmarks.upstream model PORT [PAUSE [PAUSES]]` answers every completion with 64 chunks, or with a whole
document. It waits PAUSE seconds after each chunk, or after each of the first PAUSES. GET answers when the latest
completion arrived, in monotonic seconds of this machine. Embeddings get as many vectors as the request has inputs, each
of 1,536 numbers, whatever format is requested. `python -m benchmarks.upstream proxy PORT UPSTREAM_PORT`
forwards requests to it as Starlette and httpx do.
"""

import asyncio
import json
import sys
import time
from collections.abc import AsyncIterator, Iterator
from contextlib import contextmanager
from functools import cache

import httpx
import uvicorn
from starlette.applications import Starlette
from starlette.requests import Request
from starlette.responses import Response, StreamingResponse
from starlette.routing import Route

from benchmarks.machine import server
from local.parts import free_port

CHUNKS = 64
USAGE = {"prompt_tokens": 20, "completion_tokens": CHUNKS, "total_tokens": 20 + CHUNKS}
_COMMON = {"id": "chatcmpl-1", "created": 1, "model": "gpt-5.4-mini-2026-03-17"}


def _frame(choices: list[object], **fields: object) -> bytes:
    chunk = {**_COMMON, "object": "chat.completion.chunk", "choices": choices, **fields}
    return b"data: " + json.dumps(chunk, separators=(",", ":")).encode() + b"\n\n"


def _choice(delta: dict[str, str], finish_reason: str | None = None) -> list[object]:
    return [{"index": 0, "delta": delta, "finish_reason": finish_reason}]


PIECES = [_frame(_choice({"content": f"word{n} "})) for n in range(CHUNKS)]
STREAM = [
    _frame(_choice({"role": "assistant", "content": ""})),
    *PIECES,
    _frame(_choice({}, "stop")),
    _frame([], usage=USAGE),
    b"data: [DONE]\n\n",
]
_MESSAGE = {"role": "assistant", "content": "".join(f"word{n} " for n in range(CHUNKS))}
DOCUMENT = json.dumps(
    {
        **_COMMON,
        "object": "chat.completion",
        "choices": [{"index": 0, "message": _MESSAGE, "finish_reason": "stop"}],
        "usage": USAGE,
    }
).encode()


_VECTOR = b"[" + b",".join(b"%.8f" % (0.1 + number / 10_000) for number in range(1_536)) + b"]"


@cache
def vectors(count: int) -> bytes:
    """An answer to a request for embeddings: 2,048 vectors have 34 MB."""
    items = b",".join(b'{"object":"embedding","index":%d,"embedding":%b}' % (at, _VECTOR) for at in range(count))
    usage = b'{"prompt_tokens":%d,"total_tokens":%d}' % (count, count)
    return b'{"object":"list","data":[%b],"model":"text-embedding-3-small","usage":%b}' % (items, usage)


def model(pause: float = 0.0, pauses: int = CHUNKS) -> Starlette:
    """`pause`: seconds after each of the first `pauses` chunks."""
    arrived = 0.0

    async def complete(request: Request) -> Response:
        nonlocal arrived
        body, arrived = json.loads(await request.body()), time.monotonic()
        if request.url.path.endswith("/embeddings"):
            return Response(vectors(len(body["input"])), media_type="application/json")
        if not body.get("stream"):
            return Response(DOCUMENT, media_type="application/json")

        async def chunks() -> AsyncIterator[bytes]:
            for number, chunk in enumerate(STREAM):  # from 0, which has no text
                yield chunk
                if pause and 0 < number <= pauses:
                    await asyncio.sleep(pause)

        return StreamingResponse(chunks(), media_type="text/event-stream")

    async def latest(_: Request) -> Response:
        return Response(str(arrived))

    return Starlette(routes=[Route("/{path:path}", complete, methods=["POST"]), Route("/", latest)])


def _proxy(upstream: int) -> Starlette:
    client = httpx.AsyncClient(base_url=f"http://127.0.0.1:{upstream}", trust_env=False, timeout=60)

    async def forward(request: Request) -> Response:
        headers = {"content-type": "application/json"}
        sent = client.build_request("POST", request.url.path, content=await request.body(), headers=headers)
        received = await client.send(sent, stream=True)
        return StreamingResponse(
            received.aiter_raw(), received.status_code, {"content-type": received.headers["content-type"]}
        )

    return Starlette(routes=[Route("/{path:path}", forward, methods=["POST"])])


@contextmanager
def started(kind: str, *arguments: str) -> Iterator[tuple[int, int]]:
    """The model service or the pass-through; yields its port and its process ID."""
    port = free_port()
    with server([sys.executable, "-m", "benchmarks.upstream", kind, str(port), *arguments], port) as pid:
        yield port, pid


if __name__ == "__main__":
    kind, port, *rest = sys.argv[1:]
    if kind == "model":
        app = model(float(rest[0]) if rest else 0.0, int(rest[1]) if len(rest) > 1 else CHUNKS)
    else:
        app = _proxy(int(rest[0]))
    uvicorn.run(app, host="127.0.0.1", port=int(port), log_level="warning", access_log=False, lifespan="off")
