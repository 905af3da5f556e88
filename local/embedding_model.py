"""The embedding model behind a server that speaks OpenAI's wire format (`POST /v1/embeddings`), on 127.0.0.1 only.

A small model for trying the plumbing: its embeddings have 384 dimensions, and its usage is exact. It embeds one text at
a time, and concurrent requests take turns. `model` may be any name, as for the embedded chat model, so that a
deployment may have any name.
"""

import argparse
import asyncio
import base64
import json
from collections.abc import Callable, Sequence
from concurrent.futures import ThreadPoolExecutor
from dataclasses import dataclass
from typing import Any, TypeVar

import uvicorn
from starlette.applications import Starlette
from starlette.exceptions import HTTPException
from starlette.requests import Request
from starlette.responses import JSONResponse, Response
from starlette.routing import Route

from local.e5 import DIMENSIONS, MAX_PIECE_CHARACTERS, NAME, Engine, encoded

# Those of OpenAI's embedding models: https://platform.openai.com/docs/api-reference/embeddings/create
MAX_INPUTS = 2048
MAX_INPUT_TOKENS = 8192
# A tenth of theirs: 50 s of one core (measured), and two at once must be answered within a turn's 220 s.
MAX_REQUEST_TOKENS = 32_768
CLIENT_CLOSED_REQUEST = 499
STOP_SECONDS = 5

T = TypeVar("T")


class InvalidRequest(Exception):
    """A 400: what is wrong, and the field."""

    def __init__(self, message: str, param: str | None) -> None:
        super().__init__(message)
        self.message, self.param = message, param


@dataclass(frozen=True)
class Wanted:
    texts: list[bytes]
    base64: bool


def parsed(body: bytes) -> Wanted:
    """Raises InvalidRequest."""
    try:
        request = json.loads(body)
    except (ValueError, RecursionError):
        request = None
    if not isinstance(request, dict):
        raise InvalidRequest("The body must be a JSON object.", None)
    if not isinstance(request.get("model"), str):
        raise InvalidRequest("'model' must be a string.", "model")
    encoding, dimensions = request.get("encoding_format"), request.get("dimensions")
    if encoding not in (None, "float", "base64"):
        raise InvalidRequest("'encoding_format' must be 'float' or 'base64'.", "encoding_format")
    if dimensions is not None and (type(dimensions) is not int or dimensions != DIMENSIONS):
        raise InvalidRequest(f"'dimensions' must be {DIMENSIONS}: {NAME} has no other number.", "dimensions")
    return Wanted(_texts(request.get("input")), encoding == "base64")


def _texts(value: Any) -> list[bytes]:
    if isinstance(value, str):
        return [_text(value, "input")]
    if not isinstance(value, list) or not value:
        raise InvalidRequest("'input' must be a string or a non-empty array of strings.", "input")
    if len(value) > MAX_INPUTS:
        raise InvalidRequest(f"'input' has {len(value)} elements; the maximum is {MAX_INPUTS}.", "input")
    return [_text(item, f"input[{number}]") for number, item in enumerate(value)]


def _text(value: Any, name: str) -> bytes:
    if isinstance(value, (int, list)) and not isinstance(value, bool):
        raise InvalidRequest(f"'{name}' is a token or an array of tokens: {NAME} takes text only.", "input")
    if not isinstance(value, str):
        raise InvalidRequest(f"'{name}' must be a string.", "input")
    if not value:
        raise InvalidRequest(f"'{name}' is an empty string.", "input")
    if len(value) > MAX_INPUT_TOKENS * MAX_PIECE_CHARACTERS:
        raise _too_long(name)
    try:
        return encoded(value)
    except UnicodeEncodeError as error:
        raise InvalidRequest(f"'{name}' has a lone surrogate at character {error.start}.", "input") from error


def _too_long(name: str) -> InvalidRequest:
    return InvalidRequest(f"'{name}' has more than {MAX_INPUT_TOKENS} tokens, the maximum of one input.", "input")


def total_tokens(engine: Engine, texts: Sequence[bytes]) -> int:
    """The number of tokens of all texts. Raises InvalidRequest if it, or that of one text, is above the maximum."""
    total = 0
    for number, text in enumerate(texts):
        tokens = engine.tokens(text)
        if tokens > MAX_INPUT_TOKENS:
            raise _too_long("input" if len(texts) == 1 else f"input[{number}]")
        total += tokens
        if total > MAX_REQUEST_TOKENS:
            raise InvalidRequest(
                f"'input' has more than {MAX_REQUEST_TOKENS} tokens, the maximum of one request: send fewer inputs.",
                "input",
            )
    return total


def application(engine: Engine) -> Starlette:
    worker = ThreadPoolExecutor(1)

    async def in_thread(function: Callable[..., T], *arguments: Any) -> T:
        """The event loop answers other requests meanwhile, such as health checks."""
        return await asyncio.get_running_loop().run_in_executor(worker, function, *arguments)

    async def embeddings(request: Request) -> Response:
        wanted = parsed(await request.body())
        tokens = await in_thread(total_tokens, engine, wanted.texts)
        data = []
        for index, text in enumerate(wanted.texts):
            if await request.is_disconnected():
                return Response(status_code=CLIENT_CLOSED_REQUEST)
            vector = await in_thread(engine.embed, text)
            shown = base64.b64encode(vector).decode() if wanted.base64 else memoryview(vector).cast("f").tolist()
            data.append({"object": "embedding", "index": index, "embedding": shown})
        usage = {"prompt_tokens": tokens, "total_tokens": tokens}
        return JSONResponse({"object": "list", "data": data, "model": NAME, "usage": usage})

    async def models(_: Request) -> Response:
        model = {"id": NAME, "object": "model", "created": 0, "owned_by": "intfloat"}
        return JSONResponse({"object": "list", "data": [model]})

    async def health(_: Request) -> Response:
        return JSONResponse({"status": "ok"})

    return Starlette(
        routes=[
            Route("/v1/embeddings", embeddings, methods=["POST"]),
            Route("/v1/models", models),
            Route("/health", health),
        ],
        exception_handlers={InvalidRequest: _bad_request, HTTPException: _http_error},
    )


async def _bad_request(_: Request, error: Exception) -> Response:
    assert isinstance(error, InvalidRequest)  # noqa: S101 - registered for it
    return _error(400, error.message, error.param)


async def _http_error(_: Request, error: Exception) -> Response:
    assert isinstance(error, HTTPException)  # noqa: S101 - registered for it
    return _error(error.status_code, error.detail, None)


def _error(status: int, message: str, param: str | None) -> Response:
    error = {"message": message, "type": "invalid_request_error", "param": param, "code": None}
    return JSONResponse({"error": error}, status_code=status)


def main() -> None:
    parser = argparse.ArgumentParser(prog="python -m local.embedding_model", description="Serves the embedding model.")
    parser.add_argument("--port", type=int, required=True)
    arguments = parser.parse_args()
    engine = Engine()
    engine.embed(b"ready")  # a processor that cannot run the model ends the process here, before it listens
    app = application(engine)
    uvicorn.run(
        app,
        host="127.0.0.1",
        port=arguments.port,
        lifespan="off",
        timeout_graceful_shutdown=STOP_SECONDS,
    )


if __name__ == "__main__":
    main()
