"""The ids of openai/v1/responses and openai/v1/conversations. Each contains the place of what it names: the session,
the turn, the index in the turn. So they are not stored, and what they name is read without an index.

A session's id here is 128 random bits in hex, so an id can't be guessed.
"""

import re

from shared.domain.conversation import Item
from shared.errors import ChatError
from shared.turns.conversations import Address

PREFIXES = {  # of items, by type
    "message": "msg",
    "function_call": "fc",
    "custom_tool_call": "ctc",
    "function_call_output": "fco",
    "custom_tool_call_output": "ctco",
    "reasoning": "rs",
}
CONVERSATION_ID = r"^conv_[0-9a-f]{32}$"
RESPONSE_ID = r"^resp_[0-9a-f]{40}$"
ITEM_ID = rf"^({'|'.join(PREFIXES.values())})_[0-9a-f]{{43,45}}$"


def conversation_id(session_id: str) -> str:
    return f"conv_{session_id}"


def response_id(session_id: str, turn: int) -> str:
    return f"resp_{session_id}{turn:08x}"


def item_id(session_id: str, turn: int, index: int, item: Item) -> str:
    return f"{PREFIXES[item['type']]}_{session_id}{turn:08x}{index:03x}"


def parse_conversation_id(text: str, error: ChatError) -> str:
    """The session of a conversation. Raises `error` if the text is no such id."""
    return _parsed(CONVERSATION_ID, text, error)


def parse_response_id(text: str, error: ChatError) -> tuple[str, int]:
    """The session and turn of a response. Raises `error` if the text is no such id."""
    address = _parsed(RESPONSE_ID, text, error)
    return address[:32], int(address[32:], 16)


def parse_item_id(text: str, error: ChatError) -> Address:
    """Where an item is. Raises `error` if the text is no such id."""
    address = _parsed(ITEM_ID, text, error)
    return Address(address[:32], int(address[32:40], 16), int(address[40:], 16))


def _parsed(form: str, text: str, error: ChatError) -> str:
    """The part of the id behind its prefix."""
    if not re.fullmatch(form, text):
        raise error
    return text.partition("_")[2]
