"""openai/v1/conversations: OpenAI's Conversations API. A conversation is a session; its responses are turns of it.

https://platform.openai.com/docs/api-reference/conversations
"""

from collections.abc import Iterator
from contextlib import contextmanager

from azurefunctions.extensions.http.fastapi import Request, Response

from shared.domain.conversation import Session
from shared.domain.principal import Principal
from shared.errors import MAX_SHOWN, ItemNotFound, SessionBusy, SessionNotFound
from shared.services import Services
from shared.turns.conversations import PlacedItem
from shared.web.contract.conversations import (
    ConversationAnswer,
    ConversationUpdate,
    DeletedConversation,
    NewConversation,
    NewItems,
)
from shared.web.http import json_response, path_text, read_body
from shared.web.responses.errors import ConversationLocked, ConversationNotFound, Refused
from shared.web.responses.ids import conversation_id, parse_conversation_id
from shared.web.responses.item_lists import included, page_answer, page_query
from shared.web.responses.object import placed_item
from shared.web.responses.request import new_items, stored_item
from shared.web.responses.validation import validated


async def post_conversation(request: Request, app: Services, principal: Principal) -> Response:
    body = validated(NewConversation, await read_body(request, app.settings.turns.max_request_bytes))
    items = await new_items(app, principal, body.items)
    return _conversation(await app.conversations.create(principal, items, body.metadata))


async def get_conversation(request: Request, app: Services, principal: Principal) -> Response:
    with _named(request) as session_id:
        return _conversation(await app.conversations.get(session_id, principal))


async def post_update(request: Request, app: Services, principal: Principal) -> Response:
    sent = await read_body(request, app.settings.turns.max_request_bytes)
    if "metadata" in sent and sent["metadata"] is None:
        sent = {**sent, "metadata": {}}
    metadata = validated(ConversationUpdate, sent).metadata
    with _named(request) as session_id:
        return _conversation(await app.conversations.update(session_id, principal, metadata))


async def delete_conversation(request: Request, app: Services, principal: Principal) -> Response:
    """Erase it, with its items and responses. Only the ledger keeps its calls."""
    with _named(request) as session_id:
        await app.conversations.erase(session_id, principal)
    deleted = DeletedConversation(id=conversation_id(session_id), object="conversation.deleted", deleted=True)
    return json_response(deleted)


async def post_items(request: Request, app: Services, principal: Principal) -> Response:
    included(request)
    body = validated(NewItems, await read_body(request, app.settings.turns.max_request_bytes))
    items = await new_items(app, principal, body.items)
    with _named(request) as session_id:
        return json_response(page_answer(await app.conversations.add_items(session_id, principal, items)))


async def get_items(request: Request, app: Services, principal: Principal) -> Response:
    page, include = page_query(request), included(request)
    with _named(request) as session_id:
        session = await app.conversations.get(session_id, principal)
    return json_response(page_answer(await app.conversations.items(session, **page), include))


async def get_item(request: Request, app: Services, principal: Principal) -> Response:
    include = included(request)
    with _named(request) as session_id:
        await app.conversations.get(session_id, principal)
    return json_response(placed_item(await _item(request, app, principal, session_id), include))


async def delete_item(request: Request, app: Services, principal: Principal) -> Response:
    """Delete an item, so that the model is not shown it again. The others keep their ids."""
    with _named(request) as session_id:
        await app.conversations.get(session_id, principal)
        placed = await _item(request, app, principal, session_id)
        session = await app.conversations.delete_item(*placed.address, principal)
    if session is None:
        raise ItemNotFound(path_text(request, "item_id"))
    return _conversation(session)


async def _item(request: Request, app: Services, principal: Principal, session_id: str) -> PlacedItem:
    """The item that the path names. Raises ItemNotFound, also if it is not in this conversation."""
    text = path_text(request, "item_id")
    placed = await stored_item(app, principal, text)
    if placed.session_id != session_id:
        raise ItemNotFound(text)
    return placed


@contextmanager
def _named(request: Request) -> Iterator[str]:
    """The session of the conversation that the path names. Errors within name the conversation."""
    text = path_text(request, "conversation_id")
    if not text.startswith("conv_"):
        message = f"Invalid 'conversation_id': {text[:MAX_SHOWN]!r}. Expected an ID that begins with 'conv_'."
        raise Refused(message, param="conversation_id")
    try:
        yield parse_conversation_id(text, ConversationNotFound(text))
    except SessionNotFound:
        raise ConversationNotFound(text) from None
    except SessionBusy as error:
        raise ConversationLocked(error.retry_after) from None


def _conversation(session: Session) -> Response:
    answer = ConversationAnswer(
        id=conversation_id(session.id),
        object="conversation",
        created_at=int(session.created.timestamp()),
        metadata=dict(session.metadata),
    )
    return json_response(answer)
