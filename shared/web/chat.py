"""api/chat: one turn, answered as JSON or as server-sent events."""

from dataclasses import replace
from datetime import timedelta

from azurefunctions.extensions.http.fastapi import Request, Response

from shared.domain.principal import Principal
from shared.services import Services
from shared.turns.events import Answer, Delta, Event, Started
from shared.turns.requests import ComposedRequest
from shared.web.answers import chat_answer
from shared.web.contract.chat import ChatRequest, ErrorEvent, StartEvent
from shared.web.http import (
    check_disconnect,
    disconnected,
    error_fields,
    event_stream,
    idempotency_key,
    json_bytes,
    json_response,
    read_body,
    relay,
    sse_frame,
    validated,
)


async def post_chat(request: Request, app: Services, principal: Principal) -> Response:
    chat = validated(ChatRequest, await read_body(request, app.settings.turns.max_message_bytes))
    streamed = chat.stream or "text/event-stream" in request.headers.get("accept", "")
    stops = check_disconnect(chat.on_disconnect, streamed=streamed, param="on_disconnect")
    turn = ComposedRequest(
        principal=principal,
        dialect=app.chat_completions,
        messages=chat.messages(),
        session_id=chat.session_id,
        parent=chat.parent(),
        system=chat.system,
        deployment=chat.deployment,
        max_tokens=chat.max_tokens,
        options=chat.options(),
        expires_in=None if chat.expires_in_seconds is None else timedelta(seconds=chat.expires_in_seconds),
        idempotency_key=idempotency_key(request),
        fingerprint=chat.fingerprint(),
    )
    if fallback := app.settings.limits.fallback(principal):
        turn = replace(turn, fallback=replace(turn, deployment=fallback))
    stream = app.turns.take_turn(turn, deltas=streamed)
    if stops:
        stream.stop.request_after(disconnected(request))
    first = await anext(stream)  # errors until here have a status; a later error of a stream is its last event
    headers = {"idempotent-replayed": "true"} if isinstance(first, Started) and first.replayed else {}
    if streamed:
        return event_stream(relay(first, stream, app.clock, write=_write, write_error=_write_error), headers)
    answer = await stream.answer()
    return json_response(chat_answer(answer), headers=headers)


def _write(event: Event) -> bytes:
    match event:
        case Started():
            start = StartEvent(session_id=event.session_id, turn=event.turn, deployment=event.deployment)
            return _frame("start", start)
        case Delta(pieces):
            return _frame("delta", pieces)
        case Answer():
            return _frame("done", chat_answer(event))
        case _:
            return b""


def _write_error(error: Exception) -> bytes:
    fields, status, retry_after = error_fields(error)
    return _frame("error", ErrorEvent(**fields, status=status, retry_after=retry_after))


def _frame(name: str, data: object) -> bytes:
    return sse_frame(json_bytes(data), name.encode())
