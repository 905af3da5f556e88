"""What a response of the model service that is no answer means for the caller, for failover and for billing.

Imported for the first such response: compiling what it looks for takes a hundredth of a second.
"""

import re
from collections.abc import Mapping
from contextlib import suppress
from datetime import datetime
from email.utils import parsedate_to_datetime

from shared.access.identity import ServiceAccess
from shared.errors import (
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
from shared.model.upstream_errors import DeploymentNotFound, NoAnswer, NotAuthorized, OptionRejected, ToolsRejected

_MAX_PAUSE_S = 10_000_000  # a longer pause is treated as a mistake and ignored
# Statuses of a server or gateway that did not begin to process the request (RFC 9110, 15; RFC 6585; nginx's own).
_NOT_PROCESSED = {405, 406, 407, 411, 412, 414, 415, 417, 421, 426, 428, 431, 451, 494, 495, 496, 497, 501, 505, 511}
# Busy, and nothing generated: Too Early (RFC 8470), Groq's flex tier, Anthropic, and Cloudflare where it has no
# connection to the service (not 520, 522 and 524: there the request may have arrived).
_UNAVAILABLE = {409, 425, 498, 500, 503, 521, 523, 525, 526, 529, 530}


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
