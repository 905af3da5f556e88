"""Shared by all routes: authentication, JSON, server-sent events, error responses."""

import logging
import re
import uuid
from collections.abc import AsyncIterator, Awaitable, Callable, Mapping
from decimal import Decimal
from typing import Any, TypeVar
from urllib.parse import unquote

import orjson
from azurefunctions.extensions.http.fastapi import Request, Response, StreamingResponse
from pydantic import BaseModel, ValidationError
from starlette.requests import ClientDisconnect

from shared.access.authentication import Auth
from shared.domain.clock import Clock
from shared.domain.principal import Principal
from shared.errors import ChatError, InvalidRequest, MessageTooLarge, Unauthorized, UnsupportedMediaType
from shared.services import Services, services
from shared.settings import SettingsError
from shared.turns.events import Event, TurnStream
from shared.web.contract.fields import IDEMPOTENCY_KEY, SESSION_ID, SESSION_ID_FORM, check_session_id
from shared.web.validation import first_problem

log = logging.getLogger(__name__)

M = TypeVar("M", bound=BaseModel)

KEEP_ALIVE_S = 15.0  # proxies close a silent stream; Azure's front end does so after 230 s
_PART_BYTES = 65_536
_KEEP_ALIVE = b": still working\n\n"

Handler = Callable[[Request, Services, Principal], Awaitable[Response]]
ErrorWriter = Callable[[Exception], Response]


async def respond(request: Request, auth: Auth, handler: Handler, write_error: ErrorWriter) -> Response:
    """The handler's response to an authenticated request, or an error response."""
    try:
        app = services()
        return await handler(request, app, await app.authenticator.principal(auth, request.headers))
    except Exception as error:
        response = write_error(error)
        if isinstance(error, ChatError) and error.final:
            response.headers["x-should-retry"] = "false"  # OpenAI's clients otherwise go by the status
        if isinstance(error, Unauthorized) and error.challenge:
            response.headers["www-authenticate"] = error.challenge
        return response


def error_response(error: Exception) -> Response:
    return json_error(*error_fields(error))


def json_error(fields: Mapping[str, Any], status: int, retry_after: int | None) -> Response:
    return json_response({"error": fields}, status, {} if retry_after is None else {"retry-after": str(retry_after)})


def error_fields(error: Exception) -> tuple[dict[str, Any], int, int | None]:
    """The error as the caller sees it, its status, and the seconds to wait before a retry."""
    if isinstance(error, ChatError):
        fields = {"code": error.code, "message": error.message, "param": error.param, **error.details}
        return fields, error.status, error.retry_after
    incident = uuid.uuid4().hex
    if isinstance(error, SettingsError):
        log.error("incident %s: %s", incident, error)  # the message is complete
        message = f"The server is misconfigured: {error.name} is missing or invalid (incident {incident})."
    else:
        log.error("incident %s", incident, exc_info=error)
        message = f"Internal server error (incident {incident}). Quote this ID when reporting it."
    return {"code": ChatError.code, "message": message, "param": None}, ChatError.status, None


def event_stream(events: AsyncIterator[bytes], headers: Mapping[str, str]) -> StreamingResponse:
    unbuffered = {"cache-control": "no-store", "x-accel-buffering": "no"}
    return StreamingResponse(events, media_type="text/event-stream", headers={**unbuffered, **headers})


def sse_frame(data: bytes, name: bytes = b"") -> bytes:
    """One event. https://html.spec.whatwg.org/multipage/server-sent-events.html"""
    head = b"event: %s\n" % name if name else b""
    return head + b"".join(b"data: %s\n" % line for line in data.split(b"\n")) + b"\n"


async def relay(
    first: Event,
    stream: TurnStream,
    clock: Clock,
    *,
    write: Callable[[Event], bytes],
    write_error: Callable[[Exception], bytes],
) -> AsyncIterator[bytes]:
    """The events of a turn as they arrive, beginning with `first`, and a comment after each 15 s without an event."""
    yield write(first)
    try:
        async for event in _events_or_silence(stream, clock):
            if data := write(event) if event else _KEEP_ALIVE:
                yield data
    except Exception as error:
        yield write_error(error)


def check_disconnect(action: str, *, streamed: bool, param: str) -> bool:
    """True if the turn is to be stopped when its client disconnects, False if it is to finish. `param`: the field or
    header with the action."""
    if action == "stop" and not streamed:  # the platform does not report it
        message = "Only a streamed request can be stopped when its client disconnects. Set stream to true."
        raise InvalidRequest(message, param=param)
    return action == "stop"


async def disconnected(request: Request) -> None:
    """Wait until the client of a request, whose body has been read, disconnects."""
    while (await request.receive())["type"] != "http.disconnect":
        pass


async def _events_or_silence(stream: TurnStream, clock: Clock) -> AsyncIterator[Event | None]:
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


def document_response(document: bytes, headers: Mapping[str, str]) -> Response:
    """A JSON document. A large one is sent in parts, because the server would copy what the client has not read yet of
    one that it got at once."""
    if len(document) <= _PART_BYTES:
        return Response(document, 200, headers, media_type="application/json")
    length = {"content-length": str(len(document))}
    return StreamingResponse(_parts(document), 200, {**headers, **length}, media_type="application/json")


async def _parts(document: bytes) -> AsyncIterator[bytes]:
    for start in range(0, len(document), _PART_BYTES):
        yield document[start : start + _PART_BYTES]


async def read_body(request: Request, limit: int) -> dict[str, Any]:
    """The JSON object of the request. Checks its size while reading, before parsing."""
    _check_media_type(request)
    body = bytearray()
    try:
        async for chunk in request.stream():
            body += chunk
            if len(body) > limit:
                raise MessageTooLarge(f"The request body is larger than {limit} bytes.")
    except ClientDisconnect:  # not an error of this app, so no incident
        raise InvalidRequest("The request ended before its body was complete.") from None
    try:
        parsed = orjson.loads(body)
        orjson.dumps([[[[[[[[parsed]]]]]]]])  # rejects bodies that are nested too deeply to be written as JSON later
    except (orjson.JSONDecodeError, orjson.JSONEncodeError) as error:
        raise InvalidRequest(f"The request body is not valid JSON in UTF-8: {error}.") from error
    if not isinstance(parsed, dict):
        raise InvalidRequest("The request body must be a JSON object.")
    return parsed


def _check_media_type(request: Request) -> None:
    """https://www.rfc-editor.org/rfc/rfc9110#field.content-encoding: 415 for a coding that is not accepted."""
    codings = ",".join(request.headers.getlist("content-encoding")).lower().split(",")
    if any(coding.strip() not in ("", "identity") for coding in codings):
        message = "Send the body uncompressed, without the header Content-Encoding."
        raise UnsupportedMediaType(message, param="Content-Encoding")
    media_type = request.headers.get("content-type", "").partition(";")[0].strip().lower()
    if media_type != "application/json":
        raise UnsupportedMediaType("Send the body as JSON with the header Content-Type: application/json.")


def validated(model: type[M], body: Mapping[str, Any]) -> M:
    try:
        return model.model_validate(body)
    except ValidationError as error:
        field, message = first_problem(error)
        raise InvalidRequest(message, param=field) from error


def path_text(request: Request, name: str) -> str:
    """A parameter of the path, decoded: the platform leaves it percent-encoded."""
    return unquote(str(request.path_params[name]))


def session_id(text: str, param: str = "session_id") -> str:
    if not re.fullmatch(SESSION_ID, text):
        raise InvalidRequest(f"{param} must be {SESSION_ID_FORM}.", param=param)
    try:
        return check_session_id(text)
    except ValueError as error:
        raise InvalidRequest(f"{param} {error}.", param=param) from None


def idempotency_key(request: Request) -> str | None:
    """https://datatracker.ietf.org/doc/draft-ietf-httpapi-idempotency-key-header/"""
    key = request.headers.get("idempotency-key")
    if key is not None and not re.fullmatch(IDEMPOTENCY_KEY, key):
        raise InvalidRequest("Idempotency-Key must be 1 to 255 visible ASCII characters.", param="Idempotency-Key")
    return key


def whole_number(request: Request, name: str, *, default: int, maximum: int) -> int:
    text = request.query_params.get(name)
    if text is None:
        return default
    if not re.fullmatch(r"[0-9]{1,10}", text) or not 1 <= int(text) <= maximum:
        raise InvalidRequest(f"{name} must be a whole number from 1 to {maximum}.", param=name)
    return int(text)


def json_bytes(value: Any) -> bytes:
    """JSON. A Decimal becomes a number in plain digits, never a float; a model becomes the fields that were set, also
    if null."""
    return orjson.dumps(value, default=_plain)


def _plain(value: object) -> orjson.Fragment | dict[str, Any]:
    if isinstance(value, Decimal):
        return orjson.Fragment(format(value, "f"))
    if isinstance(value, BaseModel):
        return value.model_dump(exclude_unset=True)
    raise TypeError(f"{type(value).__name__} cannot be written as JSON")
