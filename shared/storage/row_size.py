"""Limits a turn to the size of one row, and cuts an answer that does not fit.

An entity may have 1 MiB, at two bytes per UTF-16 unit, and a transaction 4 MiB as it is sent: in JSON in ASCII, where a
unit takes up to six bytes. A turn is stored together with its session's head, or with its view.
https://learn.microsoft.com/rest/api/storageservices/understanding-the-table-service-data-model#property-types
https://learn.microsoft.com/rest/api/storageservices/performing-entity-group-transactions
"""

import json
from collections.abc import Iterator, Set
from dataclasses import replace

from shared.domain.conversation import Message, Session, Turn
from shared.domain.items import CALLS, items_of
from shared.errors import MessageTooLarge
from shared.storage.call_columns import json_text

MAX_TEXT_BYTES = 1_000_000  # leaves the rest of the 1 MiB for names, keys and calls
BYTES_PER_ANSWER_TOKEN = 8  # four characters of two bytes
MAX_NAMES, MAX_NAME = 20, 64  # of what was cut; characters
_TEXT = {"content", "refusal"}  # fields of a message
_TOOL_CALLS = {"tool_calls", "function_call"}


def check_size(session: Session, turn: Turn, answer_tokens: int, view: str | None = None) -> None:
    """Raises MessageTooLarge if the session, the turn's view, or the turn with an answer of that many tokens, does not
    fit in a row."""
    if _bytes(session.system) > MAX_TEXT_BYTES:
        raise MessageTooLarge("The system prompt is too large to store.")
    if view is not None and _bytes(view) > MAX_TEXT_BYTES:
        raise MessageTooLarge("The instructions and tools are too large to store.")
    if text_bytes(turn) + answer_tokens * BYTES_PER_ANSWER_TOKEN > MAX_TEXT_BYTES:
        raise MessageTooLarge("The message, with room for its answer, is too large to store.")


def cut_to_fit(turn: Turn) -> Turn:
    """The turn, cut to fit in a row; `truncated` names what was cut. In this order: log probabilities, other fields of
    the answer's message, its tool calls, the end of its text."""
    if text_bytes(turn) <= MAX_TEXT_BYTES:
        return turn
    for cut in _cuts(turn):
        turn = cut
        if text_bytes(turn) <= MAX_TEXT_BYTES:
            break
    return turn


def text_bytes(turn: Turn) -> int:
    content = (turn.input, turn.output) if turn.input else turn.messages
    return len((json_text(content) + json_text(turn.extras)).encode("utf-16-le"))


def _bytes(text: str) -> int:
    """Those that are stored or those that are sent, whichever are more: beside them the largest turn fits in the
    transaction, which takes up to three times its size."""
    return max(len(text.encode("utf-16-le")), len(json.dumps(text)))


def _cuts(turn: Turn) -> Iterator[Turn]:
    """The turn with less and less of its answer."""
    if "logprobs" in turn.extras:
        yield (turn := _without_extras(turn, {"logprobs"}))
    answer = turn.messages[-1]
    if answer["role"] == "assistant":
        for names in ({"audio"}, answer.keys() - {"role"} - _TEXT - _TOOL_CALLS, _TOOL_CALLS):
            if dropped := answer.keys() & names:
                answer = {name: value for name, value in answer.items() if name not in dropped}
                yield (turn := _with_answer(turn, answer, dropped))
        text = answer.get("content") or answer.get("refusal") or ""
        while text:
            text = text[: len(text) // 2]
            yield (turn := _with_answer(turn, {"role": "assistant", "content": text}, {"content"}))
    yield _without_extras(turn, set(turn.extras))


def _with_answer(turn: Turn, answer: Message, cut: Set[str]) -> Turn:
    if not any(answer.get(name) for name in _TEXT | _TOOL_CALLS):
        answer = {**answer, "content": ""}  # the service rejects a message without any of them
    calls_first = any(item["type"] in CALLS for item in turn.output[:1] if item)
    output = items_of(answer, calls_first=calls_first) if turn.input else ()
    return replace(turn, messages=(*turn.messages[:-1], answer), output=output, truncated=_names(turn, cut))


def _without_extras(turn: Turn, cut: Set[str]) -> Turn:
    extras = {name: value for name, value in turn.extras.items() if name not in cut}
    return replace(turn, extras=extras, truncated=_names(turn, cut))


def _names(turn: Turn, cut: Set[str]) -> tuple[str, ...]:
    """The names of all that was cut. The service chose them, so their number and length are limited too."""
    names = dict.fromkeys((*turn.truncated, *(name[:MAX_NAME] for name in sorted(cut))))
    return tuple(names)[:MAX_NAMES]
