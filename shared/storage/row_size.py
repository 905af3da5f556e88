"""How large a turn may be: what fits one row, and what is cut where an answer does not.

An entity may have 1 MiB, at two bytes a UTF-16 unit
(https://learn.microsoft.com/rest/api/storageservices/understanding-the-table-service-data-model#property-types).
"""

from collections.abc import Iterator
from dataclasses import replace

from shared.domain.conversation import Session, Turn
from shared.errors import MessageTooLarge
from shared.storage.call_columns import json_text

MAX_TEXT_BYTES = 1_000_000  # the rest of the 1 MiB is for names, keys and calls
BYTES_PER_ANSWER_TOKEN = 8  # four characters of two bytes


def check_size(session: Session, turn: Turn, answer_tokens: int) -> None:
    """Raises MessageTooLarge where the session or the turn, with an answer of that many tokens, would not fit."""
    if len(session.system.encode("utf-16-le")) > MAX_TEXT_BYTES:
        raise MessageTooLarge("The system prompt is larger than a session can hold.")
    if text_bytes(turn) + answer_tokens * BYTES_PER_ANSWER_TOKEN > MAX_TEXT_BYTES:
        raise MessageTooLarge("The message, with room for its answer, is larger than one turn can hold.")


def cut_to_fit(turn: Turn) -> Turn:
    """The turn without its log probabilities, then with its answer's text cut, as far as that is needed to fit."""
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
