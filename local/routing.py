"""HTTP triggers, routed as the platform does it.

Sources: Azure/azure-webjobs-sdk-extensions, WebJobsRouteBuilder.cs (the first route that matches wins), and
Azure/azure-functions-host, FunctionMetadataManager.cs (functions are sorted by name; see azure-functions-host#9876),
WebScriptHostHttpRoutesManager.cs (a trigger's methods are a constraint of its route, so a wrong method is a 404, not a
405; see azure-functions-host#10098 and #11625) and FunctionInvocationMiddleware.cs (a wrong key is a 401 before the
function runs). None of these responses has a body.
"""

import hmac
import logging
import re
from collections.abc import Iterable
from urllib.parse import unquote

from fastapi import Request
from starlette.responses import Response
from starlette.routing import BaseRoute, Match
from starlette.types import Receive, Scope, Send

from local.triggers import DeclarationError, HttpTrigger, invoke

log = logging.getLogger("local.host")


def in_order(triggers: Iterable[HttpTrigger]) -> list[HttpTrigger]:
    """In the order in which the platform tries them: by name, compared like .NET's StringComparer.OrdinalIgnoreCase."""
    return sorted(triggers, key=lambda trigger: trigger.function.upper())


class FunctionRoute(BaseRoute):
    def __init__(self, trigger: HttpTrigger, prefix: str, function_key: str | None) -> None:
        self._trigger, self._key = trigger, function_key
        self._pattern = pattern(f"{prefix}/{trigger.route}" if prefix else trigger.route, trigger.function)

    def matches(self, scope: Scope) -> tuple[Match, Scope]:
        if scope["type"] != "http" or (self._trigger.methods and scope["method"] not in self._trigger.methods):
            return Match.NONE, {}
        match = self._pattern.fullmatch(decoded(scope["raw_path"]))
        if match is None:
            return Match.NONE, {}
        return Match.FULL, {"path_params": {name: text for name, text in match.groupdict().items() if text is not None}}

    async def handle(self, scope: Scope, receive: Receive, send: Send) -> None:
        request = Request(scope, receive)
        response = await self._answer(request) if self._may_call(request) else Response(status_code=401)
        await response(scope, receive, send)

    def _may_call(self, request: Request) -> bool:
        if self._key is None or self._trigger.auth_level == "anonymous":
            return True
        if self._trigger.auth_level != "function":
            return False  # level admin requires the host's master key, which does not exist here
        key = request.headers.get("x-functions-key", request.query_params.get("code", ""))
        return hmac.compare_digest(key.encode(), self._key.encode())

    async def _answer(self, request: Request) -> Response:
        function = self._trigger.function
        try:
            response = await invoke(self._trigger, request)
        except Exception:
            log.exception("%s failed", function)
            return Response(status_code=500)
        if isinstance(response, Response):
            return response
        log.error("%s returned %r, which is not a response", function, type(response))
        return Response(status_code=500)


def decoded(raw_path: bytes) -> str:
    """Decoded as by Kestrel: `%2F` stays encoded, so that it does not act as a separator."""
    return re.sub(r"(%2[Ff])|((?:%[0-9A-Fa-f]{2})+?(?=%2[Ff]|[^%]|$))", _unquoted, raw_path.decode("latin-1"))


def _unquoted(match: re.Match[str]) -> str:
    return match[1] or unquote(match[2])


def pattern(template: str, function: str) -> re.Pattern[str]:
    """ASP.NET route templates: {name}, and at the end {name?} or {*rest}. Case and a trailing slash are ignored."""
    segments = "".join(_segment(segment, function) for segment in template.strip("/").split("/"))
    return re.compile(segments + "/?", re.IGNORECASE | re.DOTALL)


def _segment(segment: str, function: str) -> str:
    if rest := re.fullmatch(r"\{\*{1,2}(\w+)\}", segment):
        return f"(?:/(?P<{rest[1]}>.*))?"
    if optional := re.fullmatch(r"\{(\w+)\?\}", segment):
        return f"(?:/(?P<{optional[1]}>[^/]+))?"
    parts = re.split(r"\{(\w+)\}", segment)
    if any("{" in part or "}" in part for part in parts[::2]):
        raise DeclarationError(f"{function}: the local host does not support the route parameter in {segment!r}")
    names = (f"(?P<{part}>[^/]+)" if i % 2 else re.escape(part) for i, part in enumerate(parts))
    return "/" + "".join(names)
