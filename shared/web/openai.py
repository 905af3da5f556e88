"""The OpenAI-compatible routes: OpenAI's and Azure OpenAI's wire format in and out, metered.

A request is forwarded as it was sent, with the exceptions in model/options.py; the answer is returned as the service
sent it. Without X-Session-Id the call is only in the ledger; with it the call is a turn of that session.
"""

import functools
import math
from collections.abc import Mapping
from dataclasses import replace
from decimal import Decimal
from hashlib import sha256
from typing import Any

import orjson
from azurefunctions.extensions.http.fastapi import Request, Response

from shared.domain.limits import RateStatus
from shared.domain.principal import Principal
from shared.errors import RATE_LIMIT, BudgetExceeded, ChatError, InvalidRequest, LimitReached, QuotaExhausted
from shared.services import Services
from shared.turns.events import Answer, Delta, Event, Metered, Opened, Started
from shared.turns.requests import ForwardedRequest
from shared.web.completion_replay import DONE, replay
from shared.web.contract.completions import CompletionRequest
from shared.web.http import (
    check_disconnect,
    disconnected,
    document_response,
    error_fields,
    event_stream,
    idempotency_key,
    json_bytes,
    json_error,
    read_body,
    relay,
    session_id,
    sse_frame,
    validated,
)
from shared.web.models import chat_deployment

DISCONNECT_HEADER = "x-on-disconnect"  # what happens to a turn whose client goes away
SESSION_HEADER = "x-session-id"
INSTEAD_OF_HEADER = "x-requested-deployment"  # the one that was chosen, if the caller's fallback responds
# OpenAI's, xAI's, OpenRouter's and Qwen's web search: each search has its own price, and usage does not count searches.
_BILLED_PER_USE = ("web_search_options", "search_parameters", "plugins", "enable_search")
_ERROR_TYPES = {401: "authentication_error", 429: "rate_limit_error"}  # for people; SDKs go by the status


def error_response(error: Exception) -> Response:
    """The model service's own error response; if it has none in OpenAI's format, this app's error with the service's
    status and headers."""
    upstream = error.upstream if isinstance(error, ChatError) else None
    if upstream is None or upstream.status < 400:  # a redirect would bypass this app
        response = json_error(*openai_error(error))
        if isinstance(error, LimitReached) and error.rates:
            response.headers.update(rate_headers(error.rates, error.retry_after or 0))
        return response
    if _is_openai_error(upstream.body):
        return Response(upstream.body, upstream.status, upstream.headers, media_type="application/json")
    response = json_error(*openai_error(error, upstream.status))
    response.headers.update(upstream.headers)
    return response


async def post_completion(request: Request, app: Services, principal: Principal) -> Response:
    body = await read_body(request, app.settings.turns.max_request_bytes)
    completion = validated(CompletionRequest, body)
    streamed = bool(completion.stream)
    stops = stops_on_disconnect(request, streamed=streamed)
    deployment = chat_deployment(named_model(request, completion.model), app)
    check_price(body)
    to_deployment = functools.partial(_forwarded, request, app, principal, completion, body)
    forwarded = to_deployment(deployment)
    if fallback := app.settings.limits.fallback(principal):
        forwarded = replace(forwarded, fallback=to_deployment(fallback))
    run = app.turns.take_turn if forwarded.session_id else app.turns.call
    stream, headers, replayed = run(forwarded, deltas=streamed), dict[str, str](), False
    if stops:
        stream.stop.request_after(disconnected(request))
    async for event in stream:  # up to the answer, or to the first delta of a stream; errors until then have a status
        match event:
            case Started():
                replayed = event.replayed
            case Opened():
                headers |= opened_headers(event, app)
            case Delta() if streamed and not replayed:
                break
    wants_usage = bool(completion.stream_options and completion.stream_options.include_usage)
    if replayed and isinstance(event, Answer):
        return replay(event.turn, streamed=streamed, usage=wants_usage)
    if streamed:
        write = functools.partial(_write, usage=wants_usage)
        return event_stream(relay(event, stream, app.clock, write=write, write_error=_write_error), headers)
    return answer(event, headers)


def opened_headers(opened: Opened, app: Services) -> dict[str, str]:
    """The model service's headers that callers may see; without its rate limits, which are those of all callers, if the
    caller has limits of its own."""
    headers = dict(opened.headers) | ({INSTEAD_OF_HEADER: opened.instead_of} if opened.instead_of else {})
    if opened.rates is None:
        return headers
    headers = {name: each for name, each in headers.items() if not name.startswith(RATE_LIMIT)}
    return headers | rate_headers(opened.rates, (opened.rates.resets_at - app.clock.now()).total_seconds())


def _forwarded(
    request: Request,
    app: Services,
    principal: Principal,
    completion: CompletionRequest,
    body: Mapping[str, Any],
    deployment: str,
) -> ForwardedRequest:
    session, added = request.headers.get(SESSION_HEADER), set[str]()
    requested = max(completion.max_tokens or 0, completion.max_completion_tokens or 0) or None
    maximum = app.max_output(deployment)
    forwarded_body = {name: value for name, value in body.items() if name != "model"}
    allowed = app.settings.limits.max_tokens(principal, session=session is not None)
    if allowed and requested and requested > allowed:
        raise InvalidRequest(f"max_tokens may be at most {allowed}.", param="max_tokens")
    if allowed and not requested:
        forwarded_body["max_completion_tokens"] = requested = min(allowed, maximum)
        added.add("max_completion_tokens")
    if completion.stream:  # usage is requested; its chunk is forwarded only if the caller requested it
        forwarded_body["stream_options"] = {**(body.get("stream_options") or {}), "include_usage": True}
        added |= set() if completion.stream_options else {"stream_options"}
    forwarded = ForwardedRequest(
        principal=principal,
        dialect=app.chat_completions,
        body=forwarded_body,
        deployment=deployment,
        max_tokens=min(requested or maximum, maximum) * (completion.n or 1),
        requested_max_tokens=requested,
        added=frozenset(added),
    )
    if session is None:
        return forwarded
    if (completion.n or 1) > 1:
        raise InvalidRequest("A turn of a session has one answer. Leave out n, or X-Session-Id.", param="n")
    compared = {name: each for name, each in body.items() if name not in ("stream", "stream_options")}
    fingerprint = orjson.dumps({**compared, "model": deployment}, option=orjson.OPT_SORT_KEYS)
    return replace(
        forwarded,
        messages=completion.new_messages(),
        session_id=session_id(session, "X-Session-Id"),
        system=completion.system(),
        idempotency_key=idempotency_key(request),
        fingerprint=sha256(fingerprint).hexdigest(),
    )


def stops_on_disconnect(request: Request, *, streamed: bool) -> bool:
    """True if the call is to be stopped when the client goes away."""
    value = request.headers.get(DISCONNECT_HEADER, "finish")
    if value not in ("finish", "stop"):
        raise InvalidRequest("X-On-Disconnect must be finish or stop.", param="X-On-Disconnect")
    return check_disconnect(value, streamed=streamed, param="X-On-Disconnect")


def check_price(body: Mapping[str, Any]) -> None:
    """Raises InvalidRequest for options whose price is not known before the call, or that are not billed by token."""
    if body.get("service_tier") not in (None, "auto", "default"):
        message = "Only the default service tier has known prices. Leave service_tier out."
        raise InvalidRequest(message, param="service_tier")
    for name in _BILLED_PER_USE:
        if body.get(name) not in (None, False, []):  # {} turns the search on, with its defaults
            message = f"{name} is billed per use, which this app can't account for. Leave it out."
            raise InvalidRequest(message, param=name)
    tools = body.get("tools")
    for index, tool in enumerate(tools if isinstance(tools, list) else ()):
        if isinstance(tool, dict) and tool.get("type", "function") not in ("function", "custom"):
            message = "Only function and custom tools are accepted: others are billed per use."
            raise InvalidRequest(message, param=f"tools[{index}].type")


def named_model(request: Request, model: str | None) -> str:
    """The deployment in the path, as Azure OpenAI's clients send it, or `model` of the body."""
    deployment: str | None = request.path_params.get("deployment") or model
    if not deployment:
        raise InvalidRequest("Name a model. GET openai/v1/models lists them.", param="model")
    return deployment


def rate_headers(rates: RateStatus, seconds: float) -> dict[str, str]:
    """What is left of the caller's limits per minute, as OpenAI writes it. `seconds`: until the minute ends.
    https://platform.openai.com/docs/guides/rate-limits#rate-limits-in-headers"""
    headers, per_minute = {}, rates.limit
    for kind, limit, remaining in (
        ("requests", per_minute.requests_per_minute, rates.requests),
        ("tokens", per_minute.tokens_per_minute, rates.tokens),
    ):
        if limit is not None:
            headers[f"x-ratelimit-limit-{kind}"] = str(limit)
            headers[f"x-ratelimit-remaining-{kind}"] = str(remaining)
            headers[f"x-ratelimit-reset-{kind}"] = f"{max(0, math.ceil(seconds))}s"
    return headers


def _is_openai_error(body: bytes) -> bool:
    """True if it has OpenAI's format. A gateway's own errors are often a page or other JSON."""
    return isinstance((_json_object(body) or {}).get("error"), dict)


def _json_object(body: bytes) -> dict[str, Any] | None:
    try:
        parsed = orjson.loads(body)
    except orjson.JSONDecodeError:
        return None
    return parsed if isinstance(parsed, dict) else None


def answer(event: Event, headers: Mapping[str, str]) -> Response:
    """A whole answer, with its cost in a header."""
    if not isinstance(event, Answer | Metered):
        raise TypeError(event)
    return document_response(event.data, {**headers, **cost_header(event.turn.call.cost)})


def cost_header(cost: Decimal | None) -> dict[str, str]:
    """The header with a cost in USD; none if it is not known."""
    return {} if cost is None else {"x-cost-usd": format(cost, "f")}


def _write(event: Event, *, usage: bool) -> bytes:
    match event:
        case Delta(_, sent, only_usage) if usage or not only_usage:
            return sse_frame(sent.data, sent.name)
        case Answer() | Metered():
            return DONE
        case _:
            return b""


def _write_error(error: Exception) -> bytes:
    """The service's own error if its stream broke off with one, else ours."""
    upstream = error.upstream if isinstance(error, ChatError) else None
    if upstream and _json_object(upstream.body):
        return sse_frame(upstream.body)
    return sse_frame(json_bytes({"error": openai_error(error)[0]}))


def openai_error(error: Exception, upstream_status: int | None = None) -> tuple[dict[str, Any], int, int | None]:
    """The error in OpenAI's format, its status (`upstream_status` if there is one), and the seconds to wait."""
    fields, status, retry_after = error_fields(error)
    status = upstream_status or status
    kind = _ERROR_TYPES.get(status, "invalid_request_error" if status < 500 else "server_error")
    if isinstance(error, QuotaExhausted | BudgetExceeded):
        kind = fields["code"] = QuotaExhausted.code
    return {**fields, "type": kind}, status, retry_after
