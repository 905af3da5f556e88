"""A whole conversation as JSON or Markdown."""

import re
from collections.abc import AsyncIterator, Mapping
from typing import Any
from urllib.parse import quote

from azurefunctions.extensions.http.fastapi import Request, Response, StreamingResponse

from shared.domain.conversation import ADDED, Session, Turn
from shared.domain.principal import Principal
from shared.errors import InvalidRequest, SessionNotFound
from shared.services import Services
from shared.turns.sessions import BLOCK_TURNS
from shared.web.contract.sessions import MAX_BRANCHES
from shared.web.http import json_bytes, session_id
from shared.web.session_answers import session_answer, turn_answer

_USUAL = ("stop", "tool_calls", "function_call", ADDED)  # endings that need no mark
_LINE_END = re.compile(r"\r\n|\r|\n")  # as CommonMark defines it
_BACKTICKS = re.compile("`+")
_URL = "%/:?#[]@!$&'*+,;=~"  # without brackets, which would end the image
_TITLES = {"system": "System", "user": "User", "assistant": "Assistant", "tool": "Tool result"}


async def get_export(request: Request, app: Services, principal: Principal) -> Response:
    """The conversation from its first turn on, without turns that were cleared."""
    session = await app.sessions.get(session_id(request.path_params["session_id"]), principal)
    kind = request.query_params.get("format", "json")
    if kind not in ("json", "markdown"):
        raise InvalidRequest("format must be json or markdown.", param="format")
    ending, media_type = ("json", "application/json") if kind == "json" else ("md", "text/markdown; charset=utf-8")
    turns = _turns(app, session, principal)
    content = _json(session, app, turns) if kind == "json" else _markdown(session, turns)
    name = session.reference or "conversation"  # the id may be a secret, and file names are seen by others
    headers = {"content-disposition": f'attachment; filename="{name}.{ending}"', "cache-control": "no-store"}
    return StreamingResponse(content, media_type=media_type, headers=headers)


async def _turns(app: Services, session: Session, principal: Principal) -> AsyncIterator[tuple[Session, Turn]]:
    """Oldest first, with their sessions. Raises SessionNotFound if one is erased meanwhile: another caller may have
    begun one with the same ID."""
    async for part in app.sessions.parts(session, last=session.turns, newest_first=False):
        for first in range(part.first, part.last + 1, BLOCK_TURNS):
            last = min(part.last, first + BLOCK_TURNS - 1)
            block = [turn async for turn in app.sessions.turns(part.session, first, last, newest_first=False)]
            if (await app.sessions.get(part.session.id, principal)).created != part.session.created:
                raise SessionNotFound
            for turn in block:
                yield part.session, turn


async def _json(session: Session, app: Services, turns: AsyncIterator[tuple[Session, Turn]]) -> AsyncIterator[bytes]:
    branches = await app.sessions.branches(session, MAX_BRANCHES)
    yield b'{"session":' + json_bytes(session_answer(session, branches, app.clock.now())) + b',"conversation":['
    separator = b"\n"
    async for part, turn in turns:
        yield separator + json_bytes(turn_answer(part, turn))
        separator = b",\n"
    yield b"\n]}\n"


async def _markdown(session: Session, turns: AsyncIterator[tuple[Session, Turn]]) -> AsyncIterator[bytes]:
    yield f"# Conversation of {session.created:%Y-%m-%d %H:%M} UTC\n".encode()
    if session.system:
        yield _section("System", session.system)
    async for _, turn in turns:
        for message in turn.messages:
            yield _section(_TITLES.get(message["role"] or "", "Message"), _text(message))
        if turn.messages and turn.finish_reason not in _USUAL:
            yield f"\n*({turn.finish_reason or turn.call.state.value})*\n".encode()


def _section(title: str, text: str) -> bytes:
    """A heading and a quotation: nothing that a message leaves open, such as a code block, goes on after it."""
    quoted = "\n".join(f"> {line}".rstrip() for line in _LINE_END.split(text))
    return f"\n## {title}\n\n{quoted}\n".encode("utf-8", "replace")


def _text(message: Mapping[str, Any]) -> str:
    """Callers of openai/* choose all fields of a message but the role and the content, so any value can be there."""
    content, calls = message.get("content") or "", message.get("tool_calls")
    pieces = [content] if isinstance(content, str) else [_part(part) for part in content]
    pieces.append(str(message.get("refusal") or ""))
    pieces += [_call(call) for call in calls] if isinstance(calls, list) else []
    if function := message.get("function_call"):  # the predecessor of tool calls
        pieces.append(_call({"function": function}))
    return "\n\n".join(piece for piece in pieces if piece)


def _call(call: Any) -> str:
    function, custom = (_object(_object(call).get(kind)) for kind in ("function", "custom"))
    if custom:
        return f"Calls `{custom.get('name')}`:\n\n{_code(str(custom.get('input') or ''))}"
    return f"Calls `{function.get('name')}`:\n\n{_code(str(function.get('arguments') or '{}'), 'json')}"


def _code(text: str, language: str = "") -> str:
    """A code block whose fence is longer than any in the text."""
    fence = "`" * max(3, 1 + max(map(len, _BACKTICKS.findall(text)), default=0))
    return f"{fence}{language}\n{text}\n{fence}"


def _part(part: Mapping[str, Any]) -> str:
    if part.get("type") == "text":
        return str(part.get("text") or "")
    image = part.get("image_url")
    url = str(_object(image).get("url") or image)
    if url.startswith(("http://", "https://")):
        return f"![image]({quote(url, safe=_URL)})"
    return f"(A part of type {part.get('type')} is left out.)"


def _object(value: Any) -> Mapping[str, Any]:
    return value if isinstance(value, dict) else {}
