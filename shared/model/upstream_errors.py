"""What the model service's errors mean for the caller, for failover and for billing."""

import re
from collections.abc import Mapping, Sequence
from contextlib import suppress
from datetime import datetime
from email.utils import parsedate_to_datetime
from http.client import responses

import aiohttp
import httpx2

from shared.access.identity import ServiceAccess
from shared.errors import (
    RATE_LIMIT,
    UPSTREAM_HEADERS,
    ChatError,
    ContentFiltered,
    ContextTooLong,
    InvalidRequest,
    QuotaExhausted,
    RateLimited,
    UpstreamError,
    UpstreamResponse,
    UpstreamTimeout,
    UpstreamUnavailable,
)
from shared.model.error_body import ErrorBody, read_error
from shared.model.misleading_statuses import (
    content_filtered,
    deployment_missing,
    names_missing_model,
    rate_limited,
    rate_limited_in_words,
)
from shared.model.refusal_words import (
    context_limit,
    context_too_long,
    malformed_request,
    max_output,
    no_credit,
    tools_need_no_reasoning,
    unknown_fields,
)

_NOT_CONNECTED = (aiohttp.ClientConnectorError, aiohttp.ConnectionTimeoutError)  # nothing was sent
_MAX_PAUSE_S = 10_000_000  # a longer pause is treated as a mistake and ignored
# Statuses of a server or gateway that did not begin to process the request (RFC 9110, 15; RFC 6585; nginx's own).
_NOT_PROCESSED = {405, 406, 407, 411, 412, 414, 415, 417, 421, 426, 428, 431, 451, 494, 495, 496, 497, 501, 505, 511}
# Busy, and nothing generated: Too Early (RFC 8470), Groq's flex tier, Anthropic, and Cloudflare where it has no
# connection to the service (not 520, 522 and 524: there the request may have arrived).
_UNAVAILABLE = {409, 425, 498, 500, 503, 521, 523, 525, 526, 529, 530}


class NotAuthorized(UpstreamUnavailable):
    """The service refused the app's credentials. `reason`: for the log, without the token. `stale`: a fresh token
    may help."""

    default_pause = 30

    def __init__(self, message: str, reason: str, *, stale: bool) -> None:
        super().__init__(message, maybe_billed=False)
        self.reason = reason
        self.stale = stale


class DeploymentNotFound(UpstreamError):
    """This endpoint does not have the deployment. `retired`: it had it."""

    def __init__(self, deployment: str, *, retired: bool = False) -> None:
        message = f"The model service has no deployment {deployment!r}."
        if retired:
            message = f"The model of deployment {deployment!r} is retired. The operator must deploy another one."
        super().__init__(message, maybe_billed=False)


class NoAnswer(UpstreamError):
    """A status that a retry does not change: the URL, or a gateway, is not what the app needs."""

    final = True

    def __init__(self, status: int, words: str, *, maybe_billed: bool) -> None:
        reason = f"{status} {words or responses.get(status, '')}".rstrip(" .")
        super().__init__(
            f"The model service does not answer chat completions ({reason}). Retrying does not help. The operator must"
            " check the service's URL, and the gateway if there is one.",
            maybe_billed=maybe_billed,
        )


class OptionRejected(InvalidRequest):
    """The deployment rejects options of the request. `fields`: their names. `unsupported`: those that it does not take
    at all, whatever their value. `max_output`: the largest maximum of output tokens, if that is what it names."""

    def __init__(
        self,
        message: str,
        *,
        param: str,
        fields: Sequence[str],
        unsupported: Sequence[str] = (),
        max_output: int | None = None,
    ) -> None:
        super().__init__(message, param=param)
        self.fields = fields
        self.unsupported = unsupported
        self.max_output = max_output


class ToolsRejected(OptionRejected):
    """The deployment accepts function tools only without reasoning. The service's own message is not for callers: it
    names a route that this app does not have."""

    def __init__(self, deployment: str) -> None:
        message = (
            f"Deployment {deployment!r} accepts function tools only without reasoning. Set reasoning_effort to 'none',"
            " leave it out, or send no tools."
        )
        super().__init__(message, param="reasoning_effort", fields=("reasoning_effort",))


def from_response(response: UpstreamResponse, deployment: str, access: ServiceAccess, now: datetime) -> ChatError:
    """The error that the response means, and whether the attempt may have been billed. Azure documents 401 and 429 as
    free. 403, 404, 410, _NOT_PROCESSED and _UNAVAILABLE without any answer also count as free, because nothing was
    generated. A gateway's 408, 502 or 504, and a 204 or 424, do not show whether the model ran."""
    pause, error, status = _pause(response.headers, now), read_error(response.body), response.status
    if misread := _despite_status(status, error, deployment, pause):
        return misread
    match status:
        case 400 | 413 | 422:
            return _bad_request(error, deployment)
        case 401 | 403:
            return NotAuthorized(access.message, f"{status} {error.code}", stale=status == 401)
        case 404 | 410:
            return DeploymentNotFound(deployment, retired=status == 410)
        case 408 | 504 | 522 | 524:
            message = "The model did not answer in time. Retry the request."
            return UpstreamTimeout(message, maybe_billed=True, pause=pause)
        case 429:
            return _rate_limit(pause)
        case _ if status in _UNAVAILABLE:
            message = "The model service is unavailable. Retry the request in a few seconds."
            return UpstreamUnavailable(message, maybe_billed=False, pause=pause)
        case _ if status < 400 or status in _NOT_PROCESSED:
            return NoAnswer(status, error.message, maybe_billed=status < 300)
        case _:
            return UpstreamError(
                f"The model service failed ({status}). Retry the request.", maybe_billed=True, pause=pause
            )


def _despite_status(status: int, error: ErrorBody, deployment: str, pause: float | None) -> ChatError | None:
    """The error that the body means, where its status means another one or none."""
    match status:
        case 402:
            return QuotaExhausted()
        case 404:
            return None if deployment_missing(error) else _bad_request(error, deployment)
        case 401:
            return None
        case _ if no_credit(error):
            return QuotaExhausted()
        case 403 if names_missing_model(error):
            return DeploymentNotFound(deployment)
        case _ if status not in (413, 429) and rate_limited(error):
            return _rate_limit(pause)
        case 403 if rate_limited_in_words(error):
            return _rate_limit(pause)
        case _ if 400 <= status < 500 and status != 429 and content_filtered(error):
            return _bad_request(error, deployment)
        case _ if (status == 424 or status >= 500) and context_too_long(error):
            return _bad_request(error, deployment)
        case 500 if malformed_request(error):
            return _bad_request(error, deployment)
    return None


def _rate_limit(pause: float | None) -> RateLimited:
    message = "The model service's rate limit is exceeded. Retry the request after Retry-After."
    return RateLimited(message, maybe_billed=False, pause=pause)


def is_lost(cause: BaseException | None) -> bool:
    """True if an open connection was lost. The openai SDK's aiohttp transport raises ConnectTimeout for that too."""
    beneath = cause.__cause__ if isinstance(cause, httpx2.ConnectTimeout) else None
    return isinstance(beneath, aiohttp.ClientConnectionError) and not isinstance(beneath, _NOT_CONNECTED)


def from_connection_error(cause: BaseException | None) -> ChatError:
    """The error for a lost connection. A request that was not sent is not billed; one that was sent may be."""
    if is_lost(cause):
        return UpstreamError("The connection to the model was lost. Retry the request.", maybe_billed=True)
    if isinstance(cause, httpx2.ConnectError | httpx2.ConnectTimeout | httpx2.PoolTimeout):
        message = "The model service can't be reached. Retry the request in a few seconds."
        return UpstreamUnavailable(message, maybe_billed=False)
    if isinstance(cause, httpx2.TimeoutException):
        return UpstreamTimeout("The model did not answer in time. Retry the request.", maybe_billed=True)
    return UpstreamError("The connection to the model was lost. Retry the request.", maybe_billed=True)


def _bad_request(error: ErrorBody, deployment: str) -> ChatError:
    message = error.message or "The model service rejected the request."
    maximum, unsupported = max_output(error), unknown_fields(error)
    match error:
        case _ if content_filtered(error):
            return ContentFiltered(
                f"The content filter stopped this prompt{_why(error)}. Rephrase it.", param="message"
            )
        case _ if context_too_long(error):
            shorter = "Send a shorter message, or lower max_tokens."
            message = f"This conversation is too long for the model. {shorter}"
            return ContextTooLong(message, param="message", limit=context_limit(error))
        case _ if tools_need_no_reasoning(error):
            return ToolsRejected(deployment)
        case _ if maximum:
            fields = error.fields or ("max_tokens",)
            return OptionRejected(message, param=error.param or fields[0], fields=fields, max_output=maximum)
        case _ if fields := tuple(dict.fromkeys((*error.fields, *unsupported))):
            return OptionRejected(message, param=error.param or fields[0], fields=fields, unsupported=unsupported)
        case _:
            return InvalidRequest(message)


def _why(filtered: ErrorBody) -> str:
    """The content filter categories that stopped a prompt, in parentheses; empty if the service names none.
    https://learn.microsoft.com/azure/ai-services/openai/concepts/content-filter"""
    results = filtered.inner.get("content_filter_result")
    items = results.items() if isinstance(results, dict) else ()
    names = [name for name, result in items if isinstance(result, dict) and result.get("filtered") is True]
    return f" ({', '.join(names)})" if names else ""


def _pause(headers: Mapping[str, str], now: datetime) -> float | None:
    """Seconds to wait according to Retry-After. A gateway may send a date instead.
    https://learn.microsoft.com/azure/ai-services/openai/how-to/quota#rate-limiting, RFC 9110, 10.2.3"""
    for name, unit in (("retry-after-ms", 0.001), ("retry-after", 1)):
        value = headers.get(name, "")
        if re.fullmatch(r"[0-9]{1,7}(\.[0-9]+)?", value):
            return float(value) * unit
    with suppress(ValueError, OverflowError):  # not a date
        seconds = parsedate_to_datetime(value).timestamp() - now.timestamp()
        return seconds if 0 < seconds < _MAX_PAUSE_S else None
    return None


def visible_headers(headers: httpx2.Headers) -> dict[str, str]:
    """Those that callers may see. Values outside printable ASCII are left out: they can't be sent on unchanged, or not
    at all (RFC 9110, 5.5)."""
    return {
        name: text
        for name, text in headers.items()
        if (name in UPSTREAM_HEADERS or name.startswith(RATE_LIMIT)) and text.isascii() and text.isprintable()
    }
