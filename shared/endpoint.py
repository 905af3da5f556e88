"""The only room that knows openai: one endpoint of the model service, its answers as they come, what its errors mean.

Answers are read raw, because typed parsing of each chunk costs several times the CPU time. In a stream time-outs are
for the next byte; what is not streamed comes when it is finished, so only the caller's deadline ends it.
"""

import asyncio
import logging
import re
import time
from collections.abc import AsyncIterator, Awaitable, Callable, Mapping
from contextlib import AsyncExitStack, suppress
from email.utils import parsedate_to_datetime
from typing import Any
from urllib.parse import urlsplit

import httpx2
from openai import NOT_GIVEN, APIConnectionError, APIStatusError, AsyncOpenAI, DefaultAsyncHttpxClient, Timeout

from shared.errors import (
    ChatError,
    ContentFiltered,
    ContextTooLong,
    InvalidRequest,
    RateLimited,
    Said,
    UpstreamError,
    UpstreamTimeout,
    UpstreamUnavailable,
)
from shared.identity import Access
from shared.ports import Prompt

log = logging.getLogger(__name__)

_CONNECT_SECONDS = 10.0
_END_SECONDS = 1.0  # behind [DONE]: read to its very end a connection can be used again, but the caller waits meanwhile
_MOST_SECONDS = 10_000_000  # of a pause: more is a mistake
_SHOWN = re.compile(r"retry-after(-ms)?|x-request-id|apim-request-id|x-ratelimit-.*")  # headers that callers may see
# Older models name it so alone. Where they name several, the next attempt finds the next.
_UNKNOWN_ARGUMENT = re.compile(r"Unrecognized request arguments? supplied: (\w+)")
# The codes of an option as such; some come without one, and their words tell (OpenHands/software-agent-sdk#1837).
_NOT_TAKEN = ("unsupported_parameter", "unsupported_value", "unknown_parameter")
_BROKEN = (httpx2.RequestError, OSError)  # a broken TLS record's error comes from the socket as it is


class NotAuthorized(UpstreamUnavailable):
    """The service does not let the app in. `reason`: for the log, and holds no token. `stale`: a fresh token may mend
    it."""

    usual_pause = 30

    def __init__(self, message: str, reason: str, *, stale: bool) -> None:
        super().__init__(message, maybe_billed=False)
        self.reason = reason
        self.stale = stale


class NoDeployment(UpstreamError):
    """This endpoint does not have the deployment."""

    def __init__(self, deployment: str) -> None:
        super().__init__(f"The model service has no deployment {deployment!r}.", maybe_billed=False)


class OptionRefused(InvalidRequest):
    """The deployment does not take the option `param`: `as_such`, or the value that it has."""

    def __init__(self, message: str, *, param: str, as_such: bool) -> None:
        super().__init__(message, param=param)
        self.as_such = as_such


class Endpoint:
    """`url`: ends in /v1/. `api_key`: a key, or a provider of tokens. `timeout`: seconds to the first byte and between
    chunks."""

    def __init__(
        self, url: str, api_key: str | Callable[[], Awaitable[str]], *, access: Access, timeout: float
    ) -> None:
        connect = min(timeout, _CONNECT_SECONDS)
        self._whole = Timeout(None, connect=connect)  # for what is not streamed
        # Its own retries would multiply ours; they, and redirects, would make calls that the ledger never heard of.
        self._client = AsyncOpenAI(
            base_url=url,
            api_key=api_key,
            max_retries=0,
            timeout=Timeout(timeout, connect=connect),
            http_client=DefaultAsyncHttpxClient(follow_redirects=False),
        )
        self._access = access
        self._token = api_key if callable(api_key) else None
        self.name = urlsplit(url).netloc

    async def ask(
        self, prompt: Prompt, body: Mapping[str, Any], stack: AsyncExitStack
    ) -> tuple[Mapping[str, str], AsyncIterator[bytes]]:
        """The answer's headers and, until the stack is closed, its JSON: each event's of a stream, else the one
        document. Raises InvalidRequest where the service refuses the prompt, else UpstreamFailure; so does reading."""
        streamed = bool(body.get("stream"))
        create: Any = self._client.chat.completions.with_streaming_response.create
        asking = create(
            model=prompt.deployment,
            messages=[],  # they go as they are: it would walk through them by their types, 22 ms of CPU for 126 of them
            stream=True if streamed else NOT_GIVEN,
            extra_body=body,
            extra_headers={"x-ms-client-request-id": prompt.call_id},
            timeout=NOT_GIVEN if streamed else self._whole,
        )
        try:
            response = await stack.enter_async_context(asking)
        except APIStatusError as error:
            log.warning("call %s: %s answered %s %s", prompt.call_id, self.name, error.status_code, error.code)
            refusal = self._refusal(error, prompt.deployment)
            if not isinstance(refusal, NotAuthorized):  # which is between this app and the service
                refusal.said = Said(error.status_code, _shown(error.response.headers), error.response.content)
            raise refusal from error
        except (APIConnectionError, *_BROKEN) as error:  # the latter as they are while an error's body is read
            cause = error.__cause__ if isinstance(error, APIConnectionError) else error
            log.warning("call %s: %s: %s", prompt.call_id, self.name, type(cause or error).__name__)
            raise _unreached(cause) from error
        parts = response.iter_bytes()
        return _shown(response.headers), _reading(_events(parts) if streamed else _document(parts))

    async def sign_in(self) -> str | None:
        """Have a token, so that asking is all that is left to do; None where a key is shown. Raises NotAuthorized where
        there is none."""
        if self._token:
            try:
                return await self._token()
            except Exception as error:  # whatever an identity's endpoint may answer: nothing was sent to the model
                raise NotAuthorized(self._access.message, f"no token: {type(error).__name__}", stale=False) from error
        return None

    async def renew(self, refused: str | None) -> bool:
        """Whether the next attempt has another token than the one that was refused."""
        try:
            return await self._access.renew() and await self.sign_in() != refused
        except NotAuthorized:
            return False

    def complain(self, refusal: NotAuthorized) -> None:
        self._access.complain(f"{self.name}: {refusal.reason}")

    async def close(self) -> None:
        await self._client.close()

    def _refusal(self, error: APIStatusError, deployment: str) -> ChatError:
        """What a status of the service means to the caller, and whether it may have cost money: Azure documents only
        401 and 429 as free, and a gateway's 408, 502 or 504 says nothing of what became of the call."""
        pause = _pause(error)
        match error.status_code:
            case 400 | 413 | 422:
                return _bad_request(error)
            case 401 | 403:
                reason = f"{error.status_code} {error.code}"
                return NotAuthorized(self._access.message, reason, stale=error.status_code == 401)
            case 404:
                return NoDeployment(deployment)
            case 408 | 504:
                message = "The model did not answer in time. Send this again."
                return UpstreamTimeout(message, maybe_billed=True, pause=pause)
            case 429:
                message = "The model service is over its rate limit. Send this again after Retry-After."
                return RateLimited(message, maybe_billed=False, pause=pause)
            case 409 | 500 | 503:
                message = "The model service is unavailable just now. Send this again in a few seconds."
                return UpstreamUnavailable(message, maybe_billed=False, pause=pause)
            case _:
                return UpstreamError("The model service failed. Send this again.", maybe_billed=True, pause=pause)


async def _reading(answer: AsyncIterator[bytes]) -> AsyncIterator[bytes]:
    try:
        async for data in answer:
            yield data
    except httpx2.TimeoutException as error:
        raise UpstreamTimeout("The model stopped in mid-answer. Send this again.", maybe_billed=True) from error
    except _BROKEN as error:
        raise UpstreamError("The model's answer broke off. Send this again.", maybe_billed=True) from error


async def _document(parts: AsyncIterator[bytes]) -> AsyncIterator[bytes]:
    yield b"".join([part async for part in parts])


async def _events(parts: AsyncIterator[bytes]) -> AsyncIterator[bytes]:
    """The data of server-sent events, up to the end that the service announces."""
    lines = _lines(parts)
    async for line in lines:
        if line.startswith(b"data:"):
            if (data := line[5:].strip()) == b"[DONE]":
                break
            yield data
    with suppress(*_BROKEN):  # a TimeoutError is an OSError
        async with asyncio.timeout(_END_SECONDS):
            async for _ in lines:
                pass


async def _lines(parts: AsyncIterator[bytes]) -> AsyncIterator[bytes]:
    """The lines of server-sent events. httpx's own would end one at U+2028 or U+0085 too, which JSON may hold as they
    are."""
    line: list[bytes] = []  # in pieces: a long one would be copied with each that comes
    async for part in parts:
        piece, *others = part.split(b"\n")
        line.append(piece)
        for other in others:
            yield b"".join(line)
            line = [other]
    yield b"".join(line)


def _unreached(cause: BaseException | None) -> ChatError:
    """Before the request went out nothing can have been billed; afterwards nobody knows."""
    if isinstance(cause, httpx2.ConnectError | httpx2.ConnectTimeout | httpx2.PoolTimeout):
        message = "The model service can't be reached. Send this again in a few seconds."
        return UpstreamUnavailable(message, maybe_billed=False)
    if isinstance(cause, httpx2.TimeoutException):
        return UpstreamTimeout("The model did not answer in time. Send this again.", maybe_billed=True)
    return UpstreamError("The connection to the model was lost. Send this again.", maybe_billed=True)


def _bad_request(error: APIStatusError) -> ChatError:
    body = error.body if isinstance(error.body, dict) else {}
    message = str(body.get("message") or "The model service refused the request.")
    param = body["param"] if isinstance(body.get("param"), str) else None
    unknown = _UNKNOWN_ARGUMENT.match(message)
    too_long = error.code == "context_length_exceeded" or error.type == "exceed_context_size_error"  # llama.cpp's
    match error.code:
        case "content_filter":
            return ContentFiltered(f"The content filter stopped this prompt{_why(body)}. Rephrase it.", param="message")
        case _ if too_long:
            shorter = "This conversation is too long for the model. Send a shorter message."
            return ContextTooLong(shorter, param="message")
        case _ if unknown:
            return OptionRefused(message, param=unknown[1], as_such=True)
        case code if param:
            as_such = code in _NOT_TAKEN or message.startswith(("Unsupported ", "Unknown parameter"))
            return OptionRefused(message, param=param, as_such=as_such)
        case _:
            return InvalidRequest(message)


def _why(filtered: Mapping[str, Any]) -> str:
    """The categories that stopped a prompt, in brackets; empty where the service does not name them.
    https://learn.microsoft.com/azure/ai-services/openai/concepts/content-filter"""
    inner = filtered.get("innererror")
    results = inner.get("content_filter_result") if isinstance(inner, dict) else None
    found = results.items() if isinstance(results, dict) else ()
    names = [name for name, result in found if isinstance(result, dict) and result.get("filtered") is True]
    return f" ({', '.join(names)})" if names else ""


def _pause(error: APIStatusError) -> float | None:
    """Seconds that the service asks to wait; or, as a gateway before it may, until a date that is still to come.
    https://learn.microsoft.com/azure/ai-services/openai/how-to/quota#rate-limiting, RFC 9110, 10.2.3"""
    for name, unit in (("retry-after-ms", 0.001), ("retry-after", 1)):
        value = error.response.headers.get(name, "")
        if re.fullmatch(r"[0-9]{1,7}(\.[0-9]+)?", value):
            return float(value) * unit
    with suppress(ValueError, OverflowError):  # no date
        seconds = parsedate_to_datetime(value).timestamp() - time.time()
        return seconds if 0 < seconds < _MOST_SECONDS else None
    return None


def _shown(headers: httpx2.Headers) -> dict[str, str]:
    return {name: value for name, value in headers.items() if _SHOWN.fullmatch(name)}
