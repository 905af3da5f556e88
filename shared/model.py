"""The only room that knows openai: one call of the model service, as a stream of chunks, and what its errors mean.

Always streaming, so that time-outs are for the next byte and not for a whole long answer. Chunks are read raw, because
typed parsing of each costs several times the CPU time.
"""

import contextlib
import logging
from collections.abc import AsyncIterator, Awaitable, Callable
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
from shared.ports import Prompt

log = logging.getLogger(__name__)

_CONNECT_SECONDS = 10.0


class Answering:
    """An answer on its way, chunk by chunk."""

    def __init__(self, parts: AsyncIterator[bytes], endpoint: str) -> None:
        self._parts = parts
        self.endpoint = endpoint

    async def __aiter__(self) -> AsyncIterator[Chunk]:
        done = False
        try:
            async for line in _lines(self._parts):
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


class Model:
    """`api_key`: a key, or a provider of tokens. `timeout`: seconds to the first byte and between chunks."""

    def __init__(self, endpoint: str, api_key: str | Callable[[], Awaitable[str]], *, timeout: float) -> None:
        # Its own retries would multiply ours, and make calls that the ledger never heard of.
        self._client = AsyncOpenAI(
            base_url=endpoint,
            api_key=api_key,
            max_retries=0,
            timeout=Timeout(timeout, connect=min(timeout, _CONNECT_SECONDS)),
        )
        self._endpoint = urlsplit(endpoint).hostname or endpoint

    @contextlib.asynccontextmanager
    async def stream(self, prompt: Prompt) -> AsyncIterator[Answering]:
        """Ask the model. Raises InvalidRequest where the service refuses the prompt, else UpstreamFailure."""
        create: Any = self._client.chat.completions.with_streaming_response.create
        asking = create(
            model=prompt.deployment,
            messages=[],  # they go as they are: it would walk through them by their types, 22 ms of CPU for 126 of them
            stream=True,
            stream_options={"include_usage": True},
            extra_body={
                "messages": prompt.messages,
                "max_completion_tokens": prompt.max_tokens,
                **prompt.options,
            },
            extra_headers={"x-ms-client-request-id": prompt.call_id},
        )
        async with contextlib.AsyncExitStack() as stack:
            try:
                response = await stack.enter_async_context(asking)
            except APIStatusError as error:
                log.warning("call %s: the model service answered %s %s", prompt.call_id, error.status_code, error.code)
                raise _refusal(error, prompt.deployment) from error
            except AzureError as error:
                log.warning("call %s: no token for the model service: %s", prompt.call_id, type(error).__name__)
                message = "This app can't sign in to the model service just now. Send this again in a while."
                raise UpstreamUnavailable(message, maybe_billed=False, retry_after=30) from error
            except APIConnectionError as error:
                log.warning("call %s: %s", prompt.call_id, type(error.__cause__ or error).__name__)
                raise _unreached(error) from error
            yield Answering(response.iter_bytes(), self._endpoint)

    async def close(self) -> None:
        await self._client.close()


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
        return UpstreamUnavailable(
            "The model service can't be reached. Send this again in a few seconds.", maybe_billed=False, retry_after=5
        )
    if isinstance(cause, httpx2.TimeoutException):
        return UpstreamTimeout("The model did not answer in time. Send this again.", maybe_billed=True)
    return UpstreamError("The connection to the model was lost. Send this again.", maybe_billed=True)


def _refusal(error: APIStatusError, deployment: str) -> ChatError:
    """What a status of the service means to the caller, and whether it may have cost money: Azure documents only 401
    and 429 as free, and a gateway's 408, 502 or 504 says nothing of what became of the call."""
    retry_after = _retry_after(error)
    match error.status_code:
        case 400 | 413 | 422:
            return _bad_request(error)
        case 401 | 403:
            message = "The model service refused this app's credentials: check its key or its role."
            return UpstreamUnavailable(message, maybe_billed=False, retry_after=30)
        case 404:
            return UpstreamError(f"The model service has no deployment {deployment!r}.", maybe_billed=False)
        case 408 | 504:
            return UpstreamTimeout("The model did not answer in time. Send this again.", maybe_billed=True)
        case 429:
            message = "The model service is over its rate limit. Send this again after Retry-After."
            return RateLimited(message, maybe_billed=False, retry_after=retry_after or 1)
        case 409 | 500 | 503:
            message = "The model service is unavailable just now. Send this again in a few seconds."
            return UpstreamUnavailable(message, maybe_billed=False, retry_after=retry_after or 5)
        case _:
            return UpstreamError("The model service failed. Send this again.", maybe_billed=True)


def _bad_request(error: APIStatusError) -> ChatError:
    body = error.body if isinstance(error.body, dict) else {}
    message, param = str(body.get("message") or "The model service refused the request."), body.get("param")
    if error.code == "content_filter":
        return ContentFiltered("The content filter stopped this prompt. Rephrase it.", param="message")
    if error.code == "context_length_exceeded":
        return ContextTooLong("This conversation is too long for the model. Send a shorter message.", param="message")
    return InvalidRequest(message, param=param if isinstance(param, str) else None)


def _retry_after(error: APIStatusError) -> int | None:
    """Seconds to wait, rounded up. https://learn.microsoft.com/azure/ai-services/openai/how-to/quota#rate-limiting"""
    headers = error.response.headers
    try:
        if "retry-after-ms" in headers:
            return -(-int(headers["retry-after-ms"]) // 1000)
        return int(headers["retry-after"]) if "retry-after" in headers else None
    except ValueError:
        return None
