"""Cross-origin requests from web pages, for the origins of CORS_ORIGINS. https://fetch.spec.whatwg.org/#http-cors-protocol

Without credentials: a caller proves itself by a key that its page sends, never by a cookie.
"""

import re

from azurefunctions.extensions.http.fastapi import Request, Response

from shared.errors import RATE_LIMIT, UPSTREAM_HEADERS
from shared.services import cors_origins

PREFIXES = ("api", "openai")
_PATHS = tuple(f"/{prefix}/" for prefix in PREFIXES)
MAX_AGE_S = 7_200  # Chromium's maximum: until then the browser sends no other preflight for this URL
_METHODS = "DELETE, GET, PATCH, POST"
_REQUEST_HEADERS = (
    "content-type",
    "authorization",
    "api-key",
    "x-functions-key",
    "idempotency-key",
    "x-session-id",
    "x-on-disconnect",
    "user-agent",  # openai-node sets it; Chromium drops it, Firefox sends it
)
# The headers by which openai-node identifies itself; their number grows (openai-node, src/internal/detect-platform.ts).
_STAINLESS = re.compile(r"x-stainless-[a-z0-9-]{1,50}")
_EXPOSED = (
    *UPSTREAM_HEADERS,
    *("x-should-retry", "x-cost-usd", "idempotent-replayed", "x-truncated", "x-requested-deployment"),
    "www-authenticate",
)


def preflight(request: Request) -> Response:
    """The answer to OPTIONS. For other origins it permits nothing, so that their browser refuses the request."""
    if _allowed_origin(request) is None:
        return Response(status_code=204)
    requested = request.headers.get("access-control-request-headers", "").lower().split(",")
    stainless = sorted({name.strip() for name in requested if _STAINLESS.fullmatch(name.strip())})
    headers = {
        "access-control-allow-methods": _METHODS,
        "access-control-allow-headers": ", ".join((*_REQUEST_HEADERS, *stainless)),
        "access-control-max-age": str(MAX_AGE_S),
    }
    return Response(status_code=204, headers=headers)


def with_cors(request: Request, response: Response) -> Response:
    """The response, readable by the page that sent the request if its origin is allowed."""
    if not f"{request.url.path}/".lower().startswith(_PATHS) or not cors_origins():
        return response
    response.headers.add_vary_header("Origin")
    if origin := _allowed_origin(request):
        exposed = (*_EXPOSED, *(name for name in response.headers if name.startswith(RATE_LIMIT)))
        response.headers["access-control-allow-origin"] = origin
        response.headers["access-control-expose-headers"] = ", ".join(exposed)
    return response


def _allowed_origin(request: Request) -> str | None:
    """The value of Access-Control-Allow-Origin; None without an Origin or for one that is not allowed."""
    origin, origins = request.headers.get("origin"), cors_origins()
    if origin is None:
        return None
    return "*" if "*" in origins else origin if origin in origins else None
