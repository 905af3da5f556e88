"""The local Functions host: serves the triggers that `function_app.app` declares, and the platform's admin route that
fires a timer.

It uses Starlette and uvicorn, as the platform's Python worker does internally, so handlers run as in Azure. There is no
request size limit, no 230 s gateway timeout, and no function key unless one is passed.
"""

import argparse
import importlib
import json
import logging
import os
import re
import sys
import time
from collections.abc import AsyncIterator, Mapping
from contextlib import asynccontextmanager
from pathlib import Path
from urllib.parse import quote

import azure.functions as func
import uvicorn
from starlette.applications import Starlette
from starlette.exceptions import HTTPException
from starlette.middleware import Middleware
from starlette.requests import Request
from starlette.responses import Response
from starlette.routing import BaseRoute, Route
from starlette.types import ASGIApp, Message, Receive, Scope, Send

from local.routing import FunctionRoute, in_order
from local.timers import Timers
from local.triggers import DeclarationError, HttpTrigger, TimerTrigger, declared

log = logging.getLogger("local.host")
LOOPBACK = re.compile(r"(127\.0\.0\.1|localhost|\[::1\])(:\d+)?", re.IGNORECASE)


def application(
    function_app: func.FunctionApp, environ: Mapping[str, str], route_prefix: str, function_key: str | None = None
) -> Starlette:
    """The host as an ASGI app. `function_app.get_functions` must not have been called. Raises DeclarationError."""
    triggers = declared(function_app, environ)
    timers = Timers([trigger for trigger in triggers if isinstance(trigger, TimerTrigger)])
    http_triggers = in_order(trigger for trigger in triggers if isinstance(trigger, HttpTrigger))
    routes: list[BaseRoute] = [FunctionRoute(trigger, route_prefix, function_key) for trigger in http_triggers]

    @asynccontextmanager
    async def lifespan(_: Starlette) -> AsyncIterator[None]:
        async with timers.running():
            yield

    app = Starlette(
        routes=[_admin(timers), *routes],
        middleware=[Middleware(RequestLog)],
        exception_handlers={HTTPException: _without_body},
        lifespan=lifespan,
    )
    app.router.redirect_slashes = False  # the platform's router accepts both forms
    return app


async def _without_body(_: Request, error: Exception) -> Response:
    return Response(status_code=error.status_code if isinstance(error, HTTPException) else 500)


def _admin(timers: Timers) -> Route:
    """Like FunctionsController.cs in Azure/azure-functions-host: takes JSON and returns 202 immediately. Azure requires
    the master key; here the Host header and the content type are checked, so that no web page in the developer's
    browser can send the request."""

    async def fire(request: Request) -> Response:
        if not LOOPBACK.fullmatch(request.headers.get("host", "")):
            return Response(status_code=403)
        if request.headers.get("content-type", "").partition(";")[0].strip().lower() != "application/json":
            return Response("set the header Content-Type: application/json\n", status_code=415)
        try:
            body = json.loads(await request.body())
        except ValueError:
            body = None
        if not isinstance(body, dict):
            return Response('the body must be a JSON object, such as {"input": ""}\n', status_code=400)
        return Response(status_code=202 if timers.fire(request.path_params["name"]) else 404)

    return Route("/admin/functions/{name}", fire, methods=["POST"])


class RequestLog:
    """Logs one line per request, without the query, which may contain a key, and with the names of path parameters, of
    which one may be a session's ID."""

    def __init__(self, app: ASGIApp) -> None:
        self._app = app

    async def __call__(self, scope: Scope, receive: Receive, send: Send) -> None:
        if scope["type"] != "http":
            await self._app(scope, receive, send)
            return
        began, status = time.monotonic(), 500

        async def send_and_note_status(message: Message) -> None:
            nonlocal status
            status = message.get("status", status)
            await send(message)

        try:
            await self._app(scope, receive, send_and_note_status)
        finally:
            log.info("%s %s %d %.0f ms", scope["method"], _route(scope), status, (time.monotonic() - began) * 1000)


def _route(scope: Scope) -> str:
    """The path, percent-encoded and so without line breaks, with the names of its parameters in place of the values."""
    path: str = scope["raw_path"].decode("ascii", "replace")
    for name, value in scope.get("path_params", {}).items():
        before, separator, after = f"{path}/".rpartition(f"/{quote(value)}/")
        path = f"{before}/{{{name}}}/{after}".rstrip("/") if separator else path
    return path


def route_prefix(host_json: Path) -> str:
    """Read from host.json; the platform's default is `api`."""
    document = json.loads(host_json.read_text())
    return str(document.get("extensions", {}).get("http", {}).get("routePrefix", "api")).strip("/")


def serve(app: ASGIApp, port: int) -> None:
    """Serve until SIGTERM or SIGINT; uvicorn then refuses new requests and finishes running ones."""
    options = uvicorn.Config(
        app, host="127.0.0.1", port=port, log_config=None, access_log=False, server_header=False, lifespan="on"
    )
    uvicorn.Server(options).run()


def main() -> None:
    parser = argparse.ArgumentParser(prog="python -m local.host", description="Serves function_app.py on 127.0.0.1.")
    parser.add_argument("--port", type=int, required=True)
    parser.add_argument("--function-key", metavar="KEY", help="require this key on routes with auth level `function`")
    arguments = parser.parse_args()
    logging.basicConfig(level=logging.INFO, format="%(asctime)s %(levelname)s %(name)s: %(message)s")
    logging.getLogger("uvicorn").setLevel(logging.WARNING)
    functions = importlib.import_module("function_app").app
    try:
        app = application(functions, os.environ, route_prefix(Path("host.json")), arguments.function_key)
    except DeclarationError as error:
        sys.exit(str(error))
    serve(app, arguments.port)


if __name__ == "__main__":
    main()
