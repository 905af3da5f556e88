"""api/sessions: the caller's list, a session's totals and history; clear and erase."""

import re
from contextlib import suppress

from azurefunctions.extensions.http.fastapi import Request, Response

from shared.domain.listing import ARCHIVED, PLACE, clean
from shared.domain.principal import Principal
from shared.errors import ErasureNotFound, InvalidRequest, Unauthorized
from shared.services import Services
from shared.web.contract.fields import MAX_PAGE_SESSIONS, MAX_PAGE_TURNS, MAX_SEARCH_CHARS, MAX_TURN_NUMBER, SESSION_ID
from shared.web.contract.sessions import MAX_BRANCHES, SessionUpdate, StopAnswer
from shared.web.http import json_response, read_body, session_id, validated, whole_number
from shared.web.session_answers import (
    erasure_answer,
    history_answer,
    listed_session,
    session_answer,
    session_list_answer,
)

_MAX_UPDATE_BYTES = 65_536
_MAX_STOP_S = 5.0  # a turn that runs here has settled by then, unless storage is slow
_MAX_ERASING_S = 20.0  # clients and proxies give up on a silent request after 30 s and more


_AFTER = re.compile(rf"{PLACE}~{SESSION_ID[1:-1]}")


async def get_sessions(request: Request, app: Services, principal: Principal) -> Response:
    """The caller's own sessions."""
    owner, query = _owner(principal), request.query_params
    archived, search = query.get("archived", "false"), query.get("search", "")
    if archived not in ("true", "false"):
        raise InvalidRequest("archived must be true or false.", param="archived")
    if len(search) > MAX_SEARCH_CHARS:
        raise InvalidRequest(f"search must have at most {MAX_SEARCH_CHARS} characters.", param="search")
    after = query.get("after", "")
    if after and (not _AFTER.fullmatch(after) or after.startswith(ARCHIVED) is not (archived == "true")):
        raise InvalidRequest("after must be the next_after of a page of the same list.", param="after")
    limit = whole_number(request, "limit", default=20, maximum=MAX_PAGE_SESSIONS)
    page = await app.sessions.page(owner, after=after, limit=limit, archived=archived == "true", search=clean(search))
    return json_response(session_list_answer(page, app.clock.now()))


async def patch_session(request: Request, app: Services, principal: Principal) -> Response:
    change = validated(SessionUpdate, await read_body(request, _MAX_UPDATE_BYTES))
    session = await app.sessions.update(
        _session_id(request), principal, title=change.title, pinned=change.pinned, archived=change.archived
    )
    return json_response(listed_session(session, app.clock.now()))


async def post_claim(request: Request, app: Services, principal: Principal) -> Response:
    """Make the caller the owner of a session that has none."""
    _owner(principal)
    session = await app.sessions.claim(_session_id(request), principal)
    return json_response(listed_session(session, app.clock.now()))


async def get_session(request: Request, app: Services, principal: Principal) -> Response:
    session = await app.sessions.get(_session_id(request), principal)
    branches = await app.sessions.branches(session, MAX_BRANCHES)
    return json_response(session_answer(session, branches, app.clock.now()))


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


async def delete_own_sessions(request: Request, app: Services, principal: Principal) -> Response:
    """Erase all sessions of the caller. The answer does not wait for all of them; the maintenance timer goes on."""
    progress = await app.erasures.begin(_owner(principal))
    with suppress(TimeoutError):
        async with app.clock.timeout_at(app.clock.monotonic() + _MAX_ERASING_S):
            async for reached in app.erasures.carry_out(progress):
                progress = reached
    return json_response(erasure_answer(progress), 200 if progress.done else 202)


async def get_erasure(request: Request, app: Services, principal: Principal) -> Response:
    progress = await app.erasures.progress(_owner(principal))
    if progress is None:
        raise ErasureNotFound
    return json_response(erasure_answer(progress))


def _owner(principal: Principal) -> str:
    if principal.name is None:
        raise Unauthorized("Send a client key: sessions that were begun without one have no owner.")
    return principal.name


async def post_stop(request: Request, app: Services, principal: Principal) -> Response:
    """Stop the running turn: at once if it runs on this instance, else within 10 s."""
    session = await app.sessions.get(_session_id(request), principal)
    if session.lease:  # even one that is over, because storage could not be reached: the turn may go on here
        with suppress(TimeoutError):
            async with app.clock.timeout_at(app.clock.monotonic() + _MAX_STOP_S):
                if await app.turns.stop(session.id, session.turns):
                    return json_response(StopAnswer(session_id=session.id, turn=session.turns, state="stopped"))
    if not session.busy(app.clock.now()):
        return json_response(StopAnswer(session_id=session.id, turn=session.turns, state="idle"))
    if await app.sessions.request_stop(session):
        return json_response(StopAnswer(session_id=session.id, turn=session.turns, state="stopping"), 202)
    return json_response(StopAnswer(session_id=session.id, turn=session.turns, state="idle"))


def _session_id(request: Request) -> str:
    return session_id(request.path_params["session_id"])
