"""Limits a turn to the size of one row, and cuts an answer that does not fit.

An entity may have 1 MiB, at two bytes per UTF-16 unit
(https://learn.microsoft.com/rest/api/storageservices/understanding-the-table-service-data-model#property-types).
"""

from collections.abc import Iterator
from dataclasses import replace

from shared.domain.conversation import Session, Turn
from shared.errors import MessageTooLarge
from shared.storage.call_columns import json_text

MAX_TEXT_BYTES = 1_000_000  # leaves the rest of the 1 MiB for names, keys and calls
BYTES_PER_ANSWER_TOKEN = 8  # four characters of two bytes


def check_size(session: Session, turn: Turn, answer_tokens: int) -> None:
    """Raises MessageTooLarge if the session, or the turn with an answer of that many tokens, does not fit in a row."""
    if len(session.system.encode("utf-16-le")) > MAX_TEXT_BYTES:
        raise MessageTooLarge("The system prompt is too large to store.")
    if text_bytes(turn) + answer_tokens * BYTES_PER_ANSWER_TOKEN > MAX_TEXT_BYTES:
        raise MessageTooLarge("The message, with room for its answer, is too large to store.")


def cut_to_fit(turn: Turn) -> Turn:
    """The turn, cut to fit in a row: first without its log probabilities, then with its answer's text halved."""
    if text_bytes(turn) <= MAX_TEXT_BYTES:
        return turn
    extras = {name: value for name, value in turn.extras.items() if name != "logprobs"}
    turn = replace(turn, extras=extras, truncated=True)
    *sent, answer = turn.messages
    for text in _halves(answer.get("content") or answer.get("refusal") or ""):
        if text_bytes(turn) <= MAX_TEXT_BYTES:
            break
        turn = replace(turn, messages=(*sent, {"role": "assistant", "content": text}))
    return turn


def text_bytes(turn: Turn) -> int:
    return len((json_text(turn.messages) + json_text(turn.extras)).encode("utf-16-le"))


def _halves(text: str) -> Iterator[str]:
    """The text, its first half, the half of that, and so on."""
    yield text
    while text:
        text = text[: len(text) // 2]
        yield text
