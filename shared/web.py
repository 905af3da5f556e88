"""From requests to values and back: JSON, server-sent events, and the one table from errors to statuses."""

import asyncio
import functools
import logging
import re
import uuid
from collections.abc import AsyncIterator, Awaitable, Callable, Mapping
from typing import Any, TypeVar

import orjson
from azurefunctions.extensions.http.fastapi import Request, Response, StreamingResponse
from pydantic import BaseModel, ValidationError
from starlette.requests import ClientDisconnect

from shared import answers, errors
from shared.contract import IDEMPOTENCY_KEY, SESSION_ID, SESSION_ID_FORM
from shared.errors import ChatError, InvalidRequest, MessageTooLarge, UnsupportedMediaType
from shared.problems import problem
from shared.services import Services, services
from shared.settings import SettingsError
from shared.turns import Answer, Event, Metered, Running

log = logging.getLogger(__name__)

M = TypeVar("M", bound=BaseModel)

KEEP_ALIVE = 15.0  # seconds: proxies close a stream that says nothing, Azure's front end after 230 s

STATUS: Mapping[type[ChatError], int] = {
    errors.InvalidRequest: 400,
    errors.Unauthorized: 401,
    errors.ModelNotFound: 404,
    errors.SessionNotFound: 404,
    errors.SessionBusy: 409,
    errors.MessageTooLarge: 413,
    errors.UnsupportedMediaType: 415,
    errors.IdempotencyMismatch: 422,
    errors.RateLimited: 429,
    errors.UpstreamError: 502,
    errors.StorageUnavailable: 503,
    errors.UpstreamUnavailable: 503,
    errors.UpstreamTimeout: 504,
}

Handler = Callable[[Request], Awaitable[Response]]


def refusal(fields: Mapping[str, Any], status: int, retry_after: int | None) -> Response:
    return json_response({"error": fields}, status, {} if retry_after is None else {"retry-after": str(retry_after)})


def _refused(error: Exception) -> Response:
    return refusal(*error_fields(error))


def answering(
    handler: Callable[[Request, Services], Awaitable[Response]], refused: Callable[[Exception], Response] = _refused
) -> Handler:
    """A handler whose errors are answers, by default JSON with a code and the status that belongs to it."""

    @functools.wraps(handler)
    async def answer(request: Request) -> Response:
        try:
            return await handler(request, services())
        except Exception as error:
            return refused(error)

    return answer


def error_fields(error: Exception) -> tuple[dict[str, Any], int, int | None]:
    """The error as its caller is told it, its status, and the seconds to wait."""
    if isinstance(error, ChatError):
        status = next(code for kind, code in STATUS.items() if isinstance(error, kind))
        return {"code": error.code, "message": error.message, "param": error.param}, status, error.retry_after
    incident = uuid.uuid4().hex
    if isinstance(error, SettingsError):
        log.error("incident %s: %s", incident, error)  # which says it all
        message = f"This app is not set up: {error.name} is missing or malformed. The log has it as {incident}."
    else:
        log.error("incident %s", incident, exc_info=error)
        message = f"Something went wrong here. The log has it as {incident}."
    return {"code": ChatError.code, "message": message, "param": None}, 500, None


def event_stream(events: AsyncIterator[bytes], headers: Mapping[str, str]) -> StreamingResponse:
    unbuffered = {"cache-control": "no-store", "x-accel-buffering": "no"}
    return StreamingResponse(events, media_type="text/event-stream", headers={**unbuffered, **headers})


async def relay(
    first: Event, running: Running, written: Callable[[Event], bytes], broken: Callable[[Exception], bytes]
) -> AsyncIterator[bytes]:
    """A turn's events as they come, and a comment where nothing has come for a while."""
    event = first
    yield written(event)
    while not isinstance(event, Answer | Metered):
        try:
            async with asyncio.timeout(KEEP_ALIVE):
                event = await running.next()
        except TimeoutError:
            yield b": still working\n\n"
        except Exception as error:
            yield broken(error)
            return
        else:
            if data := written(event):
                yield data


def json_response(body: Any, status: int = 200, headers: Mapping[str, str] | None = None) -> Response:
    return Response(answers.json_bytes(body), status, headers, media_type="application/json")


async def read_body(request: Request, limit: int) -> dict[str, Any]:
    """The request's JSON object. Its size is counted before it is parsed."""
    media_type = request.headers.get("content-type", "").partition(";")[0].strip().lower()
    if media_type != "application/json":
        raise UnsupportedMediaType("Send the body as JSON, with the header Content-Type: application/json.")
    body = bytearray()
    try:
        async for chunk in request.stream():
            body += chunk
            if len(body) > limit:
                raise MessageTooLarge(f"The request's body is larger than {limit} bytes.")
    except ClientDisconnect:  # no bug of ours, so no incident
        raise InvalidRequest("The request broke off before its body was complete.") from None
    try:
        parsed = orjson.loads(body)
        orjson.dumps([[[[[[[[parsed]]]]]]]])  # what nests too deeply could be read here and not written in an answer
    except (orjson.JSONDecodeError, orjson.JSONEncodeError) as error:
        raise InvalidRequest(f"The body is not valid JSON in UTF-8: {error}.") from error
    if not isinstance(parsed, dict):
        raise InvalidRequest("The body is not a JSON object.")
    return parsed


def validated(model: type[M], body: Mapping[str, Any]) -> M:
    try:
        return model.model_validate(body)
    except ValidationError as error:
        field, message = problem(error)
        raise InvalidRequest(message, param=field) from error


def session_id(given: str, param: str = "session_id") -> str:
    if not re.fullmatch(SESSION_ID, given):
        raise InvalidRequest(f"{param} should be {SESSION_ID_FORM}.", param=param)
    return given


def idempotency_key(request: Request) -> str | None:
    """https://datatracker.ietf.org/doc/draft-ietf-httpapi-idempotency-key-header/"""
    key = request.headers.get("idempotency-key")
    if key is not None and not re.fullmatch(IDEMPOTENCY_KEY, key):
        raise InvalidRequest("Idempotency-Key is not 1 to 255 visible ASCII characters.", param="Idempotency-Key")
    return key


def whole(request: Request, name: str, *, default: int, most: int) -> int:
    given = request.query_params.get(name)
    if given is None:
        return default
    if not re.fullmatch(r"[0-9]{1,10}", given) or not 1 <= int(given) <= most:
        raise InvalidRequest(f"{name} is not a whole number from 1 to {most}.", param=name)
    return int(given)
