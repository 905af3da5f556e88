"""Requests that match no route: a 404, or a 405 for a wrong method, that names the routes there are.

Most come from OpenAI clients with a wrong base URL. The platform's own response is an empty 404, for which they have no
message. Each prefix has a function in function_app.py; a single one for all paths would also match the platform's
`admin/warmup` (Azure/azure-functions-host, WebScriptHostHttpRoutesManager.cs).
"""

import re
from functools import cache

from azurefunctions.extensions.http.fastapi import Request, Response

from shared.errors import ChatError, MethodNotAllowed, RouteNotFound
from shared.web import http, openai

PREFIXES = (
    *("api", "openai", "v1", "chat", "completions", "deployments", "embeddings", "models", "responses"),
    *("engines", "inference", "v1beta"),  # Azure OpenAI's before 2023, GitHub Models', Gemini's
)
METHODS = ("DELETE", "GET", "HEAD", "PATCH", "POST", "PUT")  # not OPTIONS: preflights have functions of their own
MAX_SHOWN_PATH = 200  # characters
_PAGES = [("/chat", "GET")]  # below PREFIXES; pages are not in the OpenAPI document


def answer(request: Request) -> Response:
    """The error in the format of the API that the path belongs to. It needs no settings."""
    path = request.scope["raw_path"].decode("latin-1")  # in `request.url` an encoded slash is decoded
    is_api = path.lower().startswith("/api")
    allowed = _allowed(path)
    write = http.error_response if is_api else openai.error_response
    response = write(_error(request.method, path, allowed, is_api))
    if allowed:
        response.headers["allow"] = ", ".join(allowed)
    return response


def _error(method: str, path: str, allowed: list[str], is_api: bool) -> ChatError:
    shown = path[:MAX_SHOWN_PATH]
    if allowed:
        return MethodNotAllowed(f"{shown} does not accept {method}. Send {' or '.join(allowed)}.")
    listed = ", ".join(f"{method} {route}" for route, method in _routes() if route.startswith("/api/") is is_api)
    return RouteNotFound(
        f"There is no route {method} {shown}. The base URL of an OpenAI client ends in /openai/v1; the endpoint of an"
        f" Azure OpenAI client has no path. The routes are: {listed}."
    )


def _allowed(path: str) -> list[str]:
    """The methods of this path, compared as the platform compares."""
    return [method for route, method in (*_routes(), *_PAGES) if _pattern(route).fullmatch(path)]


@cache
def _routes() -> list[tuple[str, str]]:
    """Path and method of the documented routes, and of the document itself."""
    from shared.web.openapi import document

    paths = document()["paths"] | {"/api/openapi.json": ["get"]}
    return [(path, method.upper()) for path, methods in paths.items() for method in methods]


@cache
def _pattern(route: str) -> re.Pattern[str]:
    """`responses/compact`, which OpenAI has and this app lacks, is no response's id."""
    ids = re.escape(route).replace(r"\{response_id\}", "resp_[^/]+")
    return re.compile(re.sub(r"\\{\w+\\}", "[^/]+", ids) + "/?", re.IGNORECASE)
