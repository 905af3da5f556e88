"""openai/v1/responses: OpenAI's Responses API. A response is a turn; its id is the turn's address.

https://platform.openai.com/docs/api-reference/responses
"""

import secrets
from collections.abc import Iterator
from contextlib import contextmanager

import orjson
from azurefunctions.extensions.http.fastapi import Request, Response

from shared.domain.conversation import Session, Turn
from shared.domain.principal import Principal
from shared.errors import ParentNotFound, SessionBusy, SessionNotFound, StillRunning
from shared.services import Services
from shared.turns.events import Answer, Metered, Opened, Started
from shared.web.http import disconnected, event_stream, json_response, path_text, relay
from shared.web.openai import cost_header, opened_headers, stops_on_disconnect
from shared.web.responses.errors import (
    ConversationLocked,
    ConversationNotFound,
    Refused,
    ResponseNotFound,
    unsupported,
)
from shared.web.responses.events import ResponseEvents
from shared.web.responses.ids import parse_response_id
from shared.web.responses.item_lists import included, page_answer, page_query
from shared.web.responses.object import response_object
from shared.web.responses.request import ParsedRequest, parse_request, previous_not_found


async def post_response(request: Request, app: Services, principal: Principal) -> Response:
    parsed = await parse_request(request, app, principal)
    stops = stops_on_disconnect(request, streamed=parsed.streamed)
    start = app.turns.take_turn if parsed.stored else app.turns.call
    stream, headers = start(parsed.turn, deltas=parsed.streamed), dict[str, str]()
    writer = ResponseEvents(parsed, secrets.token_hex(16), app.clock.now())
    if stops:
        stream.stop.request_after(disconnected(request))
    with _openai_errors(parsed):
        # Up to the answer, or of a stream until the service answers: errors until then have a status. A stored answer
        # is sent as a whole.
        async for event in stream:
            match event:
                case Started():
                    writer.write(event)
                    headers |= {"idempotent-replayed": "true"} if event.replayed else {}
                case Opened():
                    headers |= opened_headers(event, app)
                    if parsed.streamed:
                        break
    if parsed.streamed:
        events = relay(event, stream, app.clock, write=writer.write, write_error=writer.write_error)
        return event_stream(events, headers)
    if not isinstance(event, Answer | Metered):
        raise TypeError(event)
    response = response_object(parsed.echo, writer.session_id, writer.turn_of(event), parsed.include)
    if "idempotent-replayed" not in headers:  # a replay costs nothing
        headers |= cost_header(event.turn.cost)
    return json_response(response, headers=headers)


async def get_response(request: Request, app: Services, principal: Principal) -> Response:
    if request.query_params.get("stream", "false").lower() != "false":
        raise unsupported("stream", "A stored response can't be streamed. Leave 'stream' out.")
    include = included(request)
    session, turn = await _stored(request, app, principal)
    view = await app.conversations.view(session.id, turn.number)
    if view is None:
        raise ResponseNotFound(_response_id(request))
    running = session.busy(app.clock.now()) and session.turns == turn.number
    return json_response(response_object(orjson.loads(view), session.id, turn, include, running=running))


async def delete_response(request: Request, app: Services, principal: Principal) -> Response:
    text = _response_id(request)
    try:
        await app.conversations.delete_response(*parse_response_id(text, ResponseNotFound(text)), principal)
    except SessionNotFound:
        raise ResponseNotFound(text) from None
    except StillRunning as error:
        raise _still_running(text, "response_id", error) from None
    return json_response({"id": text, "object": "response", "deleted": True})


async def post_cancel(request: Request, app: Services, principal: Principal) -> Response:
    """Only responses that are generated in the background can be cancelled, and there are none."""
    await _stored(request, app, principal)
    raise unsupported("background", "Cannot cancel a synchronous response.")


async def get_input_items(request: Request, app: Services, principal: Principal) -> Response:
    """The response's own input first, then the items of the turns that it continues, back to the first."""
    page, include = page_query(request), included(request)
    session, turn = await _stored(request, app, principal)
    if await app.conversations.view(session.id, turn.number) is None:
        raise ResponseNotFound(_response_id(request))
    end = (turn.number, len(turn.input))
    items = await app.conversations.items(session, end=end, **page)
    return json_response(page_answer(items, include))


async def _stored(request: Request, app: Services, principal: Principal) -> tuple[Session, Turn]:
    text = _response_id(request)
    try:
        return await app.conversations.turn(*parse_response_id(text, ResponseNotFound(text)), principal)
    except SessionNotFound:
        raise ResponseNotFound(text) from None


def _response_id(request: Request) -> str:
    return path_text(request, "response_id")


@contextmanager
def _openai_errors(parsed: ParsedRequest) -> Iterator[None]:
    """Replace the turn's errors by OpenAI's, which name the ids that the caller sent."""
    previous, conversation = parsed.previous_response_id or "", parsed.conversation or ""
    try:
        yield
    except ParentNotFound:
        raise previous_not_found(previous) from None
    except StillRunning as error:
        raise _still_running(previous, "previous_response_id", error) from None
    except SessionNotFound:
        raise ConversationNotFound(conversation) from None
    except SessionBusy as error:
        if conversation:
            raise ConversationLocked(error.retry_after) from None
        error.message, error.param = "An earlier one of these requests is still running. Wait, then retry.", None
        raise


def _still_running(response: str, param: str, error: StillRunning) -> Refused:
    message = f"Response with id '{response}' is still in progress."
    return Refused(message, param=param, code="", retry_after=error.retry_after)
