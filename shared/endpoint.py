"""The only room that knows openai: one endpoint of the model service, its answers as chunks, and what its errors mean.

Always streaming, so that time-outs are for the next byte and not for a whole long answer. Chunks are read raw, because
typed parsing of each costs several times the CPU time.
"""

import logging
import re
from collections.abc import AsyncIterator, Awaitable, Callable, Mapping
from contextlib import AsyncExitStack
from typing import Any
from urllib.parse import urlsplit

import httpx2
import orjson
from azure.core.exceptions import AzureError
from openai import APIConnectionError, APIStatusError, AsyncOpenAI, Timeout

from shared.completion import Chunk
from shared.errors import (
    ChatError,
    ContentFiltered,
    ContextTooLong,
    InvalidRequest,
    RateLimited,
    UpstreamError,
    UpstreamTimeout,
    UpstreamUnavailable,
)
from shared.identity import Access
from shared.ports import Prompt

log = logging.getLogger(__name__)

_CONNECT_SECONDS = 10.0
_UNKNOWN_ARGUMENT = re.compile(r"Unrecognized request argument supplied: (\w+)")  # older models name it so alone


class NotAuthorized(UpstreamUnavailable):
    """The service does not let the app in. `stale`: a fresh token may mend it."""

    usual_pause = 30

    def __init__(self, message: str, *, stale: bool) -> None:
        super().__init__(message, maybe_billed=False)
        self.stale = stale


class NoDeployment(UpstreamError):
    """This endpoint does not have the deployment."""

    def __init__(self, deployment: str) -> None:
        super().__init__(f"The model service has no deployment {deployment!r}.", maybe_billed=False)


class OptionRefused(InvalidRequest):
    """The deployment does not take the option `param`."""


class Endpoint:
    """`url`: ends in /v1/. `api_key`: a key, or a provider of tokens. `timeout`: seconds to the first byte and between
    chunks."""

    def __init__(
        self, url: str, api_key: str | Callable[[], Awaitable[str]], *, access: Access, timeout: float
    ) -> None:
        # Its own retries would multiply ours, and make calls that the ledger never heard of.
        self._client = AsyncOpenAI(
            base_url=url,
            api_key=api_key,
            max_retries=0,
            timeout=Timeout(timeout, connect=min(timeout, _CONNECT_SECONDS)),
        )
        self._access = access
        self.name = urlsplit(url).netloc

    async def ask(self, prompt: Prompt, options: Mapping[str, Any], stack: AsyncExitStack) -> AsyncIterator[Chunk]:
        """The answer, chunk by chunk, until the stack is closed. Raises InvalidRequest where the service refuses the
        prompt, else UpstreamFailure; so does reading on."""
        create: Any = self._client.chat.completions.with_streaming_response.create
        asking = create(
            model=prompt.deployment,
            messages=[],  # they go as they are: it would walk through them by their types, 22 ms of CPU for 126 of them
            stream=True,
            stream_options={"include_usage": True},
            extra_body={"messages": prompt.messages, "max_completion_tokens": prompt.max_tokens, **options},
            extra_headers={"x-ms-client-request-id": prompt.call_id},
        )
        try:
            response = await stack.enter_async_context(asking)
        except APIStatusError as error:
            log.warning("call %s: %s answered %s %s", prompt.call_id, self.name, error.status_code, error.code)
            raise self._refusal(error, prompt.deployment) from error
        except AzureError as error:
            log.warning("call %s: no token for the model service: %s", prompt.call_id, type(error).__name__)
            raise NotAuthorized(self._access.refused(type(error).__name__), stale=False) from error
        except APIConnectionError as error:
            log.warning("call %s: %s: %s", prompt.call_id, self.name, type(error.__cause__ or error).__name__)
            raise _unreached(error) from error
        return _chunks(response.iter_bytes())

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
                message = self._access.refused(f"{self.name} answered {error.status_code} {error.code}")
                return NotAuthorized(message, stale=error.status_code == 401)
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


async def _chunks(parts: AsyncIterator[bytes]) -> AsyncIterator[Chunk]:
    done = False
    try:
        async for line in _lines(parts):
            if not line.startswith(b"data:"):
                continue
            if (data := line[5:].strip()) == b"[DONE]":
                done = True  # and read to the very end, or the connection could not be used again
            elif not done:
                yield _chunk(data)
    except httpx2.TimeoutException as error:
        if not done:
            raise UpstreamTimeout("The model stopped in mid-answer. Send this again.", maybe_billed=True) from error
    except httpx2.TransportError as error:
        if not done:
            raise UpstreamError("The model's answer broke off. Send this again.", maybe_billed=True) from error


async def _lines(parts: AsyncIterator[bytes]) -> AsyncIterator[bytes]:
    """The lines of server-sent events. httpx's own would end one at U+2028 or U+0085 too, which JSON may hold as they
    are."""
    rest = b""
    async for part in parts:
        *lines, rest = (rest + part).split(b"\n")
        for line in lines:
            yield line
    yield rest


def _chunk(data: bytes) -> Chunk:
    try:
        chunk = orjson.loads(data)
    except orjson.JSONDecodeError as error:
        raise UpstreamError("The model's answer was garbled. Send this again.", maybe_billed=True) from error
    if not isinstance(chunk, dict) or "error" in chunk:
        log.warning("the model service broke its answer off with an error")
        raise UpstreamError("The model's answer broke off with an error. Send this again.", maybe_billed=True)
    return chunk


def _unreached(error: APIConnectionError) -> ChatError:
    """Before the request went out nothing can have been billed; afterwards nobody knows."""
    cause = error.__cause__
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
    match error.code:
        case "content_filter":
            return ContentFiltered("The content filter stopped this prompt. Rephrase it.", param="message")
        case "context_length_exceeded":
            shorter = "This conversation is too long for the model. Send a shorter message."
            return ContextTooLong(shorter, param="message")
        case "unsupported_parameter" | "unsupported_value":
            return OptionRefused(message, param=param)
        case _ if unknown:
            return OptionRefused(message, param=unknown[1])
        case _:
            return InvalidRequest(message, param=param)


def _pause(error: APIStatusError) -> float | None:
    """Seconds that the service asks to wait; a date, which is no more exact than our own back-off, is passed over.
    https://learn.microsoft.com/azure/ai-services/openai/how-to/quota#rate-limiting"""
    for name, unit in (("retry-after-ms", 0.001), ("retry-after", 1)):
        value = error.response.headers.get(name, "")
        if re.fullmatch(r"[0-9]{1,7}(\.[0-9]+)?", value):
            return float(value) * unit
    return None
