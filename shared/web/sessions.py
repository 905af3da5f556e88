"""api/sessions: a session's totals and history; clear and erase."""

from azurefunctions.extensions.http.fastapi import Request, Response

from shared.domain.principal import Principal
from shared.services import Services
from shared.web.answers import history_answer, session_answer
from shared.web.contract.fields import MAX_PAGE_TURNS, MAX_TURN_NUMBER
from shared.web.http import json_response, session_id, whole_number


async def get_session(request: Request, app: Services, principal: Principal) -> Response:
    session = await app.sessions.get(_session_id(request), principal)
    return json_response(session_answer(session, app.clock.now()))


async def get_messages(request: Request, app: Services, principal: Principal) -> Response:
    session_id, limit = _session_id(request), whole_number(request, "limit", default=20, maximum=MAX_PAGE_TURNS)
    session = await app.sessions.get(session_id, principal)
    before = whole_number(request, "before", default=session.turns + 1, maximum=MAX_TURN_NUMBER)
    turns = await app.sessions.history(session, before=before, limit=limit)
    return json_response(history_answer(session, turns))


async def delete_messages(request: Request, app: Services, principal: Principal) -> Response:
    await app.sessions.clear(_session_id(request), principal)
    return Response(status_code=204)


async def delete_session(request: Request, app: Services, principal: Principal) -> Response:
    await app.sessions.erase(_session_id(request), principal)
    return Response(status_code=204)


def _session_id(request: Request) -> str:
    return session_id(request.path_params["session_id"])
