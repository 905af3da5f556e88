"""What the model service's errors mean for the caller, for failover and for billing."""

from collections.abc import Sequence
from http.client import responses

import aiohttp
import httpx2

from shared.errors import (
    RATE_LIMIT,
    UPSTREAM_HEADERS,
    ChatError,
    InvalidRequest,
    UpstreamError,
    UpstreamTimeout,
    UpstreamUnavailable,
)

_NOT_CONNECTED = (aiohttp.ClientConnectorError, aiohttp.ConnectionTimeoutError)  # nothing was sent


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
            f"The model service does not answer this request ({reason}). Retrying does not help. The operator must"
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


def visible_headers(headers: httpx2.Headers) -> dict[str, str]:
    """Those that callers may see. Values outside printable ASCII are left out: they can't be sent on unchanged, or not
    at all (RFC 9110, 5.5)."""
    return {
        name: text
        for name, text in headers.items()
        if (name in UPSTREAM_HEADERS or name.startswith(RATE_LIMIT)) and text.isascii() and text.isprintable()
    }
