"""Responses and conversations without HTTP, through the running app's services."""

from collections.abc import Sequence

from shared.domain.conversation import Item, Kind, Parent
from shared.domain.items import items_of, messages_of
from shared.domain.principal import Principal
from shared.services import services
from shared.turns.conversations import Page, PlacedItem
from shared.turns.events import Answer
from shared.turns.requests import ResponseRequest

OWNER = Principal.of_key("ada")


def user(text: str) -> tuple[Item, ...]:
    return items_of({"role": "user", "content": text})


def call(call_id: str) -> Item:
    return {"type": "function_call", "call_id": call_id, "name": "look", "arguments": "{}"}


def output(call_id: str, text: str = "seen") -> Item:
    return {"type": "function_call_output", "call_id": call_id, "output": text}


async def respond(
    new: str | Sequence[Item] = "hi",
    *,
    after: Answer | Parent | None = None,
    conversation: str | None = None,
    principal: Principal = OWNER,
) -> Answer:
    """One response, to a user's message or to items. `after`: the response that it continues."""
    items = user(new) if isinstance(new, str) else tuple(new)
    parent = Parent(session_id=after.session.id, turn=after.turn.number) if isinstance(after, Answer) else after
    request = ResponseRequest(
        principal=principal,
        dialect=services().chat_completions,
        messages=messages_of(items),
        input=items,
        session_id=conversation,
        parent=parent,
        in_place=parent is not None,
        whole=True,
        view="{}",
        deployment="chat",
        max_tokens=100,
        requested_max_tokens=100,
    )
    return await services().turns.take_turn(request, deltas=False).answer()


async def listed(session_id: str, *, newest_first: bool = False, limit: int = 100) -> list[str]:
    """The texts of all items of a conversation or response, read page by page."""
    texts: list[str] = []
    access, page = services().conversations, Page((), more=True)
    session = await services().sessions.get(session_id, OWNER)
    while page.more:
        after = page.items[-1].address if page.items else None
        page = await access.items(session, after=after, newest_first=newest_first, limit=limit)
        assert len(page.items) == limit or not page.more
        texts += map(text_of, page.items)
    assert session.kind is not Kind.CHAT
    return texts


def text_of(placed: PlacedItem) -> str:
    item = placed.item
    return str(item["content"][0]["text"] if item["type"] == "message" else f"{item['type']} {item['call_id']}")
