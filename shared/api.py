"""The chat and session routes: a turn as JSON or as server-sent events, sessions, and what the app tells of itself."""

from datetime import UTC, datetime

from azurefunctions.extensions.http.fastapi import Request, Response

from shared import answers
from shared.contract import (
    LONGEST_PAGE,
    MOST_BEFORE,
    AboutAnswer,
    ChatRequest,
    ErrorEvent,
    HealthAnswer,
    StartEvent,
)
from shared.openapi import document
from shared.reservation import Post
from shared.services import Services
from shared.turns import Answer, Delta, Event, Started
from shared.web import (
    answering,
    error_fields,
    event_stream,
    idempotency_key,
    json_response,
    read_body,
    relay,
    session_id,
    validated,
    whole,
)


@answering
async def post_chat(request: Request, services: Services) -> Response:
    caller = services.client_keys.caller_if_named(request.headers)
    body = await read_body(request, services.settings.max_message_bytes)
    asked = validated(ChatRequest, body)
    streamed = asked.stream or "text/event-stream" in request.headers.get("accept", "")
    running = services.turns.take_turn(
        Post(
            messages=asked.messages(),
            session_id=asked.session_id,
            system=asked.system,
            deployment=asked.deployment,
            max_tokens=asked.max_tokens,
            options=asked.options(),
            caller=caller,
            key=idempotency_key(request),
            fingerprint=asked.fingerprint(),
        ),
        deltas=streamed,
    )
    first = await running.next()
    headers = {"idempotent-replayed": "true"} if isinstance(first, Started) and first.replayed else {}
    if streamed:
        return event_stream(relay(first, running, _event, _error_event), headers)
    event = first
    while not isinstance(event, Answer):
        event = await running.next()
    return json_response(answers.chat_answer(event.session, event.turn), headers=headers)


@answering
async def get_session(request: Request, services: Services) -> Response:
    session = await services.removals.visible(*_asked(request, services))
    return json_response(answers.session_answer(session, datetime.now(UTC)))


@answering
async def get_messages(request: Request, services: Services) -> Response:
    asked = _asked(request, services)
    limit = whole(request, "limit", default=20, most=LONGEST_PAGE)
    session = await services.removals.visible(*asked)
    before = whole(request, "before", default=session.turns + 1, most=MOST_BEFORE)
    turns = await services.sessions.history(session, before=before, limit=limit)
    return json_response(answers.history_answer(session, turns))


@answering
async def delete_messages(request: Request, services: Services) -> Response:
    await services.removals.clear(*_asked(request, services))
    return Response(status_code=204)


@answering
async def delete_session(request: Request, services: Services) -> Response:
    await services.removals.erase(*_asked(request, services))
    return Response(status_code=204)


def _asked(request: Request, services: Services) -> tuple[str, str | None]:
    """Which session, and who asks for it: a key that is wrong is told before all else."""
    caller = services.client_keys.caller_if_named(request.headers)
    return session_id(request.path_params["session_id"]), caller


@answering
async def get_about(request: Request, services: Services) -> Response:
    settings = services.settings
    about = AboutAnswer(
        deployment=settings.deployment, deployments=sorted(settings.deployments), region=settings.region
    )
    return json_response(about)


async def get_health(request: Request) -> Response:
    """Alive; it asks nothing of anybody, so that a probe costs nothing."""
    return json_response(HealthAnswer(status="ok"))


async def get_openapi(request: Request) -> Response:
    """The contract; like health, it needs no setting."""
    return json_response(document())


def _event(event: Event) -> bytes:
    match event:
        case Started():
            start = StartEvent(session_id=event.session_id, turn=event.turn, deployment=event.deployment)
            return _frame("start", start)
        case Delta(pieces):
            return _frame("delta", pieces)
        case Answer(session, turn):
            return _frame("done", answers.chat_answer(session, turn))
        case _:
            return b""


def _error_event(error: Exception) -> bytes:
    fields, status, retry_after = error_fields(error)
    return _frame("error", ErrorEvent(**fields, status=status, retry_after=retry_after))


def _frame(name: str, data: object) -> bytes:
    return b"event: %s\ndata: %s\n\n" % (name.encode(), answers.json_bytes(data))
