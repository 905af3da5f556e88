"""One endpoint of the model service: the openai SDK's client sends the requests, and this module reads the raw answers.

Typed parsing of each chunk would cost several times the CPU time. For a stream, the timeout applies to the next byte.
An answer that is not streamed arrives only when it is complete, so only the turn's deadline limits it.
"""

import logging
from collections.abc import AsyncIterator, Awaitable, Callable, Iterator, Mapping
from contextlib import AsyncExitStack, contextmanager, suppress
from typing import Any
from urllib.parse import urlsplit

import httpx2
from openai import APIConnectionError, APIStatusError, AsyncOpenAI, DefaultAioHttpClient, Timeout

from shared.access.identity import ServiceAccess
from shared.domain.clock import Clock
from shared.errors import (
    ChatError,
    QuotaExhausted,
    RateLimited,
    UpstreamError,
    UpstreamResponse,
    UpstreamTimeout,
)
from shared.model.error_body import read_error
from shared.model.running_usage import RunningUsageOption
from shared.model.sse import CONNECTION_ERRORS, DRAIN_TIMEOUT_S, document, events
from shared.model.stream_errors import error_status, has_usage, unwrapped
from shared.model.upstream_errors import (
    NotAuthorized,
    ToolsRejected,
    from_connection_error,
    is_lost,
    visible_headers,
)
from shared.model.wire_json import parsed
from shared.turns.ports import Plan, ServerEvent

log = logging.getLogger(__name__)

CONNECT_TIMEOUT_S = 10.0
_LIMITS = httpx2.Limits(max_connections=10_000, max_keepalive_connections=10_000, keepalive_expiry=30)
_NO_CONTENT = (204, 205)
_MAX_ERROR_BYTES = 65_536  # a longer event is no error
_UNREAD = {"X-Stainless-Raw-Response": "stream"}  # makes the SDK return the response with its body unread


class Endpoint:
    """`url`: ends in /v1/. `api_key`: a key, or a function that returns a token. `timeout`: seconds to the first byte
    and between chunks."""

    def __init__(
        self,
        url: str,
        api_key: str | Callable[[], Awaitable[str]],
        *,
        access: ServiceAccess,
        timeout: float,
        clock: Clock,
    ) -> None:
        connect = min(timeout, CONNECT_TIMEOUT_S)
        self._unstreamed_timeout = Timeout(None, connect=connect)
        # The SDK's retries would multiply with those of ModelService. Retries and redirects also bypass the ledger.
        self._client = AsyncOpenAI(
            base_url=url,
            api_key=api_key,
            max_retries=0,
            timeout=Timeout(timeout, connect=connect),
            http_client=DefaultAioHttpClient(follow_redirects=False, limits=_LIMITS),
        )
        self._access = access
        self._token_provider = api_key if callable(api_key) else None
        self._clock = clock
        self._running_usage = RunningUsageOption()
        self.name = urlsplit(url).netloc

    async def send(
        self, plan: Plan, body: Mapping[str, Any], call_id: str, stack: AsyncExitStack
    ) -> tuple[Mapping[str, str], AsyncIterator[ServerEvent]]:
        """The response headers, and the answer's events, readable until `stack` is closed. Raises InvalidRequest if
        the service rejects the prompt, else UpstreamFailure, also while reading."""
        streamed = bool(body.get("stream"))
        if streamed:
            body = self._running_usage.added_to(body, forwarded=plan.forwarded)
        headers = {**_UNREAD, "x-ms-client-request-id": call_id}
        try:
            response = await self._client.post(
                plan.dialect.path,
                cast_to=httpx2.Response,
                body={**body, "model": plan.deployment},
                options={"headers": headers} if streamed else {"headers": headers, "timeout": self._unstreamed_timeout},
            )
        except APIStatusError as error:
            raise self._failure(plan, call_id, error.response, error.status_code, error.response.content) from error
        except (APIConnectionError, *CONNECTION_ERRORS) as error:  # CONNECTION_ERRORS while an error's body is read
            cause = error.__cause__ if isinstance(error, APIConnectionError) else error
            beneath = (cause or error).__cause__ or cause or error  # of aiohttp: httpx2's name is not exact
            log.warning("call %s: %s: %s", call_id, self.name, type(beneath).__name__)
            raise from_connection_error(cause) from error
        stack.push_async_callback(response.aclose)
        if response.status_code in _NO_CONTENT:
            raise self._failure(plan, call_id, response, response.status_code, b"")
        answer = events(response, self._clock) if plan.dialect.may_stream else document(response)
        first = await _first(answer)
        opening = first[-1] if first else ServerEvent()
        if streamed:
            self._running_usage.recognise(response.headers, opening.data)
        status = error_status(opening.data, opening.name) if len(opening.data) <= _MAX_ERROR_BYTES else None
        if status and not await self._reports_usage(first, answer):
            raise self._failure(plan, call_id, response, status, opening.data)
        return visible_headers(response.headers), _chained(first, answer)

    def _failure(self, plan: Plan, call_id: str, response: httpx2.Response, status: int, body: bytes) -> ChatError:
        """`status`, `body`: those of the error, which may be an event of a response with status 200."""
        from shared.model.refusals import from_response  # of no use to a turn that succeeds

        upstream = UpstreamResponse(status, visible_headers(response.headers), body)
        failure = from_response(upstream, plan.deployment, self._access, self._clock.now())
        log.warning("call %s: %s answered %s %s", call_id, self.name, status, read_error(body).kind)
        if _is_for_callers(failure, status):
            failure.upstream = upstream
        return failure

    async def _reports_usage(self, first: list[ServerEvent], answer: AsyncIterator[ServerEvent]) -> bool:
        """True if an answer that begins with an error reports usage, now or in what follows, which is added to `first`.
        Such an error is left to the reader, so that the call is settled."""
        if has_usage(first[-1].data):
            return True
        with suppress(*CONNECTION_ERRORS):  # a TimeoutError is an OSError
            async with self._clock.timeout_at(self._clock.monotonic() + DRAIN_TIMEOUT_S):
                async for event in answer:
                    first.append(event)  # noqa: PERF401  # kept if reading fails
        return any(has_usage(event.data) for event in first)

    async def sign_in(self) -> str | None:
        """Get a token before the request, so that a failed sign-in is known not to be billed. None if the endpoint uses
        an API key. Raises NotAuthorized."""
        if self._token_provider is None:
            return None
        try:
            return await self._token_provider()
        except Exception as error:  # of any type: nothing was sent to the model yet
            raise NotAuthorized(self._access.message, f"no token: {type(error).__name__}", stale=False) from error

    async def renew(self, refused: str | None) -> bool:
        """Renew the credentials. True if the next attempt has a different token than the refused one."""
        try:
            return await self._access.renew() and await self.sign_in() != refused
        except NotAuthorized:
            return False

    def log_refusal(self, refusal: NotAuthorized) -> None:
        self._access.log_refusal(f"{self.name}: {refusal.reason}")

    async def close(self) -> None:
        await self._client.close()


def _is_for_callers(failure: ChatError, status: int) -> bool:
    """False if the service's own response is about the app's credentials or account, or names a route that this app
    does not have. Clients know the 429 of a rate limit, or of an account without credit; another status of these would
    look like an error of theirs."""
    if isinstance(failure, QuotaExhausted | RateLimited):
        return status == failure.status
    return not isinstance(failure, NotAuthorized | ToolsRejected)


async def _first(answer: AsyncIterator[ServerEvent]) -> list[ServerEvent]:
    """The events up to the first that is a JSON object or an error. The error is handled like an HTTP error status."""
    first = []
    with _reading():
        async for event in answer:
            first.append(event)
            if len(event.data) > _MAX_ERROR_BYTES:
                break
            if unwrapped(parsed(event.data)) is not None or event.name == b"error":
                break
    return first


async def _chained(first: list[ServerEvent], answer: AsyncIterator[ServerEvent]) -> AsyncIterator[ServerEvent]:
    for event in first:
        yield event
    with _reading():
        async for event in answer:
            yield event


@contextmanager
def _reading() -> Iterator[None]:
    """Raises UpstreamFailure if the connection is lost while an answer is read."""
    try:
        yield
    except CONNECTION_ERRORS as error:
        if isinstance(error, httpx2.TimeoutException) and not is_lost(error):
            raise UpstreamTimeout("The model's answer timed out. Retry the request.", maybe_billed=True) from error
        raise UpstreamError("The model's answer broke off. Retry the request.", maybe_billed=True) from error
