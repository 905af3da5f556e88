"""Queries of OpenAI's lists of items and of stored responses, and pages of items: of a conversation, or of a response's
input. https://platform.openai.com/docs/api-reference/pagination"""

from collections.abc import Sequence
from typing import Any, TypedDict, get_args

from azurefunctions.extensions.http.fastapi import Request

from shared.errors import MAX_SHOWN
from shared.turns.conversations import Address, Page
from shared.web.contract.responses import MAX_PAGE_ITEMS, Include
from shared.web.responses.errors import Refused
from shared.web.responses.ids import parse_item_id
from shared.web.responses.object import placed_item

DEFAULT_PAGE_ITEMS = 20


class PageQuery(TypedDict):
    limit: int
    after: Address | None
    newest_first: bool


def page_query(request: Request) -> PageQuery:
    """What the request asks for: `limit`, `after` (the id of an item) and `order` (asc or desc). Raises Refused."""
    query = request.query_params
    limit, order, after = query.get("limit", str(DEFAULT_PAGE_ITEMS)), query.get("order", "desc"), query.get("after")
    if not (limit.isascii() and limit.isdecimal() and len(limit) < 4 and 1 <= int(limit) <= MAX_PAGE_ITEMS):
        raise Refused(f"Invalid 'limit': it must be a whole number from 1 to {MAX_PAGE_ITEMS}.", param="limit")
    if order not in ("asc", "desc"):
        raise Refused("Invalid 'order': it must be 'asc' or 'desc'.", param="order")
    address = None
    if after:
        address = parse_item_id(
            after, Refused(f"Invalid 'after': {after[:MAX_SHOWN]!r} is no id of an item.", param="after")
        )
    return {"limit": int(limit), "after": address, "newest_first": order == "desc"}


def included(request: Request) -> list[str]:
    """The values of `include`, which OpenAI's clients also write `include[]`. Raises Refused if one is not known."""
    values = [*request.query_params.getlist("include"), *request.query_params.getlist("include[]")]
    for value in values:
        if value not in get_args(Include):
            supported = ", ".join(map(repr, get_args(Include)))
            message = f"Invalid value for 'include': {value[:MAX_SHOWN]!r}. Supported values are: {supported}."
            raise Refused(message, param="include")
    return values


def page_answer(page: Page, include: Sequence[str] = ()) -> dict[str, Any]:
    data = [placed_item(each, include) for each in page.items]
    return {
        "object": "list",
        "data": data,
        "first_id": data[0]["id"] if data else None,
        "last_id": data[-1]["id"] if data else None,
        "has_more": page.more,
    }
