"""Ids of responses, conversations and items: the address of what they name."""

import re

import pytest
from hypothesis import given
from hypothesis import strategies as st

from shared.errors import ItemNotFound
from shared.web.responses.ids import (
    PREFIXES,
    conversation_id,
    item_id,
    parse_conversation_id,
    parse_item_id,
    parse_response_id,
    response_id,
)

SESSIONS = st.integers(0, 2**128 - 1).map("{:032x}".format)
TURNS = st.integers(1, 10**9)
NO_ITEM = ItemNotFound("x")


@given(SESSIONS, TURNS, st.integers(0, 2**20 - 1), st.sampled_from(sorted(PREFIXES)))
def test_an_id_is_read_as_it_was_made(session: str, turn: int, index: int, kind: str) -> None:
    assert parse_conversation_id(conversation_id(session), NO_ITEM) == session
    assert parse_response_id(response_id(session, turn), NO_ITEM) == (session, turn)
    assert parse_item_id(item_id(session, turn, index, {"type": kind}), NO_ITEM) == (session, turn, index)


S = "0123456789abcdef" * 2


AT = f"{S}00000001000"
NO_ITEMS = ["", "msg_", f"msg_{S}", f"msg_{AT[:-3]}", f"msg_{AT[:-1]}", f"msg_{AT.upper()}", f"xy_{AT}", f"conv_{AT}"]


@pytest.mark.parametrize("text", [*NO_ITEMS, f"msg_{AT}\n", f" msg_{AT}", f"msg_{AT[:-1]}g", "msg_" + "٣" * 43])
def test_what_is_no_id_of_an_item_is_the_callers_error(text: str) -> None:
    with pytest.raises(ItemNotFound, match=re.escape("'x'")):
        parse_item_id(text, NO_ITEM)


@pytest.mark.parametrize(
    "text", ["", "resp_", f"resp_{S}", f"conv_{S}00000001", f"resp_{S}000000001", f"conv_{S}\n", S]
)
def test_what_is_no_id_of_a_response_or_conversation_is_the_callers_error(text: str) -> None:
    with pytest.raises(ItemNotFound):
        parse_response_id(text, NO_ITEM)
    with pytest.raises(ItemNotFound):
        parse_conversation_id(text, NO_ITEM)
