"""A fake of Azure Communication Services' email: it checks each request's signature and content
(https://learn.microsoft.com/rest/api/communication/email), then answers as scripted.

Its answers follow those of the real service (floci-io/floci-az#148): the caller's operation ID is reused, the 202 has a
`Retry-After`, and `error` is null if there is none.
"""

import asyncio
import base64
import hashlib
import hmac
import socket
import time
import uuid
from collections import deque
from collections.abc import AsyncIterator
from contextlib import asynccontextmanager
from pathlib import Path
from typing import Any
from urllib.parse import unquote

import uvicorn
from starlette.applications import Starlette
from starlette.requests import Request
from starlette.responses import JSONResponse, Response
from starlette.routing import Route

ACCESS_KEY = base64.b64encode(b"a key of the tests").decode()
TOKEN = "a-token-of-the-tests"
API_VERSION = "2025-09-01"


class CommunicationServices:
    """`send_errors` are the HTTP statuses of the next sends. `outcomes` are the results of the next status requests:
    an operation status, an HTTP error status, "garbled" or "a page". After those, everything succeeds. `error` is the
    body's error object for an HTTP error status."""

    def __init__(self) -> None:
        self.endpoint = ""
        self.send_errors: deque[int] = deque()
        self.outcomes: deque[str | int] = deque()
        self.error: Any = {"code": "TooBusy", "message": "Not now."}
        self.retry_after = 0
        self.sent: dict[str, Any] = {}  # operation ID -> email
        self.attempts: list[float] = []  # monotonic time of each send
        self.status_requests: list[tuple[str, float]] = []  # operation ID and monotonic time of each
        self._app = Starlette(
            routes=[
                Route("/emails:send", self._send, methods=["POST"]),
                Route("/emails/operations/{id}", self._status, methods=["GET"]),
            ]
        )

    @property
    def connection_string(self) -> str:
        return f"endpoint={self.endpoint}/;accesskey={ACCESS_KEY}"

    @asynccontextmanager
    async def serving(self, key_and_certificate: Path | None = None) -> AsyncIterator[None]:
        listening = socket.socket(socket.AF_INET, socket.SOCK_STREAM, socket.IPPROTO_TCP)
        listening.bind(("127.0.0.1", 0))
        self.endpoint = f"{'https' if key_and_certificate else 'http'}://127.0.0.1:{listening.getsockname()[1]}"
        options = uvicorn.Config(
            self._app, log_config=None, access_log=False, lifespan="off", ssl_certfile=key_and_certificate
        )
        server = uvicorn.Server(options)
        task = asyncio.create_task(server.serve([listening]))
        while not server.started:
            await asyncio.sleep(0.005)
            assert not task.done(), task
        try:
            yield
        finally:
            server.should_exit = True
            await task

    async def _send(self, request: Request) -> Response:
        self.attempts.append(time.monotonic())
        body = await request.body()
        if not _is_signed(request, body):
            return _error(401, "Denied", "Denied by the resource provider.")
        if self.send_errors:
            return self._error_response(self.send_errors.popleft())
        operation = request.headers["Operation-Id"]
        if request.query_params["api-version"] != API_VERSION or str(uuid.UUID(operation)) != operation:
            return _error(400, "BadRequest", "Wrong API version, or the operation ID is not a UUID.")
        self.sent[operation] = await request.json()
        headers = {
            "Operation-Location": f"{self.endpoint}/emails/operations/{operation}?api-version={API_VERSION}",
            "Retry-After": str(self.retry_after),
        }
        return JSONResponse({"id": operation, "status": "Running", "error": None}, 202, headers)

    async def _status(self, request: Request) -> Response:
        operation = request.path_params["id"]
        self.status_requests.append((operation, time.monotonic()))
        if not _is_signed(request, b"") or request.query_params["api-version"] != API_VERSION:
            return _error(401, "Denied", "Denied by the resource provider.")
        outcome = self.outcomes.popleft() if self.outcomes else "Succeeded"
        if isinstance(outcome, int):
            return self._error_response(outcome)
        if outcome == "garbled":
            return Response("{", media_type="application/json")
        if outcome == "a page":
            return Response("<h1>Welcome</h1>", media_type="text/html")
        if operation not in self.sent:
            return _error(404, "NotFound", "Unknown operation.")
        error = (
            {"code": "EmailDropped", "message": "The sender's domain is not linked."} if outcome == "Failed" else None
        )
        return JSONResponse({"id": operation, "status": outcome, "error": error})

    def _error_response(self, status: int) -> Response:
        return JSONResponse({"error": self.error}, status, {"Retry-After": str(self.retry_after)})


def _is_signed(request: Request, body: bytes) -> bool:
    """https://learn.microsoft.com/azure/communication-services/concepts/authentication"""
    authorization = request.headers["Authorization"]
    if authorization.startswith("Bearer "):
        return authorization == f"Bearer {TOKEN}"
    digest = base64.b64encode(hashlib.sha256(body).digest()).decode()
    target = unquote(f"{request.url.path}?{request.url.query}")
    signed = f"{request.method}\n{target}\n{request.headers['x-ms-date']};{request.headers['host']};{digest}"
    signature = base64.b64encode(hmac.digest(base64.b64decode(ACCESS_KEY), signed.encode(), "sha256")).decode()
    return authorization == f"HMAC-SHA256 SignedHeaders=x-ms-date;host;x-ms-content-sha256&Signature={signature}"


def _error(status: int, code: str, message: str) -> Response:
    return JSONResponse({"error": {"code": code, "message": message}}, status)
