"""What all routes share: authentication, JSON, server-sent events, and errors as responses."""

import logging
import re
import uuid
from collections.abc import AsyncIterator, Awaitable, Callable, Mapping
from decimal import Decimal
from typing import Any, TypeVar

import orjson
from azurefunctions.extensions.http.fastapi import Request, Response, StreamingResponse
from pydantic import BaseModel, ValidationError
from starlette.requests import ClientDisconnect

from shared.access.authentication import Auth
from shared.domain.clock import Clock
from shared.domain.principal import Principal
from shared.errors import ChatError, InvalidRequest, MessageTooLarge, UnsupportedMediaType
from shared.services import Services, services
from shared.settings import SettingsError
from shared.turns.events import Event, TurnStream
from shared.web.contract.fields import IDEMPOTENCY_KEY, SESSION_ID, SESSION_ID_FORM
from shared.web.validation import first_problem

log = logging.getLogger(__name__)

M = TypeVar("M", bound=BaseModel)

KEEP_ALIVE_S = 15.0  # proxies close a stream without data, Azure's front end after 230 s
_KEEP_ALIVE = b": still working\n\n"

Handler = Callable[[Request, Services, Principal], Awaitable[Response]]
ErrorWriter = Callable[[Exception], Response]


async def respond(request: Request, auth: Auth, handler: Handler, write_error: ErrorWriter) -> Response:
    """The handler's response to an authenticated request, or the error's."""
    try:
        app = services()
        return await handler(request, app, app.authenticator.principal(auth, request.headers))
    except Exception as error:
        return write_error(error)


def error_response(error: Exception) -> Response:
    return json_error(*error_fields(error))


def json_error(fields: Mapping[str, Any], status: int, retry_after: int | None) -> Response:
    return json_response({"error": fields}, status, {} if retry_after is None else {"retry-after": str(retry_after)})


def error_fields(error: Exception) -> tuple[dict[str, Any], int, int | None]:
    """The error as its caller sees it, its status, and the seconds to wait."""
    if isinstance(error, ChatError):
        fields = {"code": error.code, "message": error.message, "param": error.param}
        return fields, error.status, error.retry_after
    incident = uuid.uuid4().hex
    if isinstance(error, SettingsError):
        log.error("incident %s: %s", incident, error)  # the message is complete
        message = f"This app is not set up: {error.name} is missing or malformed. The log has it as {incident}."
    else:
        log.error("incident %s", incident, exc_info=error)
        message = f"Something went wrong here. The log has it as {incident}."
    return {"code": ChatError.code, "message": message, "param": None}, ChatError.status, None


def event_stream(events: AsyncIterator[bytes], headers: Mapping[str, str]) -> StreamingResponse:
    unbuffered = {"cache-control": "no-store", "x-accel-buffering": "no"}
    return StreamingResponse(events, media_type="text/event-stream", headers={**unbuffered, **headers})


async def relay(
    first: Event,
    stream: TurnStream,
    clock: Clock,
    *,
    write: Callable[[Event], bytes],
    write_error: Callable[[Exception], bytes],
) -> AsyncIterator[bytes]:
    """A turn's events as they come, the `first` one read already; a comment where none comes for 15 s."""
    yield write(first)
    try:
        async for event in _with_pauses(stream, clock):
            if data := write(event) if event else _KEEP_ALIVE:
                yield data
    except Exception as error:
        yield write_error(error)


async def _with_pauses(stream: TurnStream, clock: Clock) -> AsyncIterator[Event | None]:
    """The events, and None after each 15 s without one."""
    while True:
        try:
            async with clock.timeout_at(clock.monotonic() + KEEP_ALIVE_S):
                event = await anext(stream)
        except StopAsyncIteration:
            return
        except TimeoutError:
            if stream.ended:
                raise
            yield None
        else:
            yield event


def json_response(body: Any, status: int = 200, headers: Mapping[str, str] | None = None) -> Response:
    return Response(json_bytes(body), status, headers, media_type="application/json")


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
    except ClientDisconnect:  # not an error of this app, so no incident
        raise InvalidRequest("The request broke off before its body was complete.") from None
    try:
        parsed = orjson.loads(body)
        orjson.dumps([[[[[[[[parsed]]]]]]]])  # nested too deeply, it could be read but not written again
    except (orjson.JSONDecodeError, orjson.JSONEncodeError) as error:
        raise InvalidRequest(f"The body is not valid JSON in UTF-8: {error}.") from error
    if not isinstance(parsed, dict):
        raise InvalidRequest("The body is not a JSON object.")
    return parsed


def validated(model: type[M], body: Mapping[str, Any]) -> M:
    try:
        return model.model_validate(body)
    except ValidationError as error:
        field, message = first_problem(error)
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


def whole_number(request: Request, name: str, *, default: int, maximum: int) -> int:
    given = request.query_params.get(name)
    if given is None:
        return default
    if not re.fullmatch(r"[0-9]{1,10}", given) or not 1 <= int(given) <= maximum:
        raise InvalidRequest(f"{name} is not a whole number from 1 to {maximum}.", param=name)
    return int(given)


def json_bytes(value: Any) -> bytes:
    """JSON with Decimals as numbers in plain digits (an amount never goes through a float), and of a model the fields
    that were set, null ones included."""
    return orjson.dumps(value, default=_plain)


def _plain(value: object) -> orjson.Fragment | dict[str, Any]:
    if isinstance(value, Decimal):
        return orjson.Fragment(format(value, "f"))
    if isinstance(value, BaseModel):
        return value.model_dump(exclude_unset=True)
    raise TypeError(f"{type(value).__name__} can't be written as JSON")
