"""The local Functions host: serves exactly the triggers that `function_app.app` declares, and has no route of its own
but the platform's admin one, by which a timer is fired by hand.

It is the same Starlette and uvicorn that the platform's Python worker uses inside, so handlers meet what they meet in
Azure. What differs: no request size limit, no 230 s front end, and no function key unless one is given.
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

import azure.functions as func
import uvicorn
from starlette.applications import Starlette
from starlette.exceptions import HTTPException
from starlette.middleware import Middleware
from starlette.requests import Request
from starlette.responses import Response
from starlette.routing import BaseRoute, Route
from starlette.types import ASGIApp, Message, Receive, Scope, Send

from local.routing import FunctionRoute
from local.timers import Timers
from local.triggers import DeclarationError, HttpTrigger, TimerTrigger, declared

log = logging.getLogger("local.host")
LOOPBACK = re.compile(r"(127\.0\.0\.1|localhost|\[::1\])(:\d+)?", re.IGNORECASE)


def application(
    function_app: func.FunctionApp, environ: Mapping[str, str], route_prefix: str, function_key: str | None = None
) -> Starlette:
    """The whole host for an app whose `get_functions` was not called before. Raises DeclarationError."""
    triggers = declared(function_app, environ)
    timers = Timers([trigger for trigger in triggers if isinstance(trigger, TimerTrigger)])
    https = [trigger for trigger in triggers if isinstance(trigger, HttpTrigger)]
    routes: list[BaseRoute] = [FunctionRoute(trigger, route_prefix, function_key) for trigger in https]

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
    app.router.redirect_slashes = False  # the platform's router takes either spelling
    return app


async def _without_body(_: Request, error: Exception) -> Response:
    return Response(status_code=error.status_code if isinstance(error, HTTPException) else 500)


def _admin(timers: Timers) -> Route:
    """As FunctionsController.cs in Azure/azure-functions-host: JSON in, 202 at once. There the master key guards it;
    here the Host header and the content type do, so that no page in the developer's browser can send it."""

    async def fire(request: Request) -> Response:
        if not LOOPBACK.fullmatch(request.headers.get("host", "")):
            return Response(status_code=403)
        if request.headers.get("content-type", "").partition(";")[0].strip().lower() != "application/json":
            return Response("add the header Content-Type: application/json\n", status_code=415)
        try:
            body = json.loads(await request.body())
        except ValueError:
            body = None
        if not isinstance(body, dict):
            return Response('the body must be a JSON object, such as {"input": ""}\n', status_code=400)
        return Response(status_code=202 if timers.fire(request.path_params["name"]) else 404)

    return Route("/admin/functions/{name}", fire, methods=["POST"])


class RequestLog:
    """One line for each request; without the query, which may hold a key."""

    def __init__(self, app: ASGIApp) -> None:
        self._app = app

    async def __call__(self, scope: Scope, receive: Receive, send: Send) -> None:
        if scope["type"] != "http":
            await self._app(scope, receive, send)
            return
        began, status = time.monotonic(), 500

        async def watched(message: Message) -> None:
            nonlocal status
            status = message.get("status", status)
            await send(message)

        try:
            await self._app(scope, receive, watched)
        finally:
            path = scope["raw_path"].decode("ascii", "replace")  # still percent-encoded: no line break gets through
            log.info("%s %s %d %.0f ms", scope["method"], path, status, (time.monotonic() - began) * 1000)


def route_prefix(host_json: Path) -> str:
    """`api` is the platform's default."""
    document = json.loads(host_json.read_text())
    return str(document.get("extensions", {}).get("http", {}).get("routePrefix", "api")).strip("/")


def serve(app: ASGIApp, port: int) -> None:
    """Until SIGTERM or SIGINT, on which uvicorn refuses new requests and finishes running ones."""
    options = uvicorn.Config(
        app, host="127.0.0.1", port=port, log_config=None, access_log=False, server_header=False, lifespan="on"
    )
    uvicorn.Server(options).run()


def main() -> None:
    parser = argparse.ArgumentParser(prog="python -m local.host", description="Serves function_app.py on 127.0.0.1.")
    parser.add_argument("--port", type=int, required=True)
    parser.add_argument("--function-key", metavar="KEY", help="ask callers for it where the app says so")
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
