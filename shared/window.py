"""Which past turns go to the model, and how large the prompt can be. Pure.

Sizes come from the usage that the service itself reported, so no tokenizer is shipped; what it has not measured yet is
estimated. The window's start moves rarely and in big steps, so that the prompt's prefix stays byte-identical and the
service's prompt cache keeps hitting.
"""

from collections.abc import Sequence
from dataclasses import dataclass
from typing import Any

import orjson

from shared.conversation import Message, Session, Turn
from shared.errors import ContextTooLong, InvalidRequest

MOST_TURNS = 64  # with the new one; a page of storage holds them and the session's head
BYTES_PER_TOKEN = 3  # an estimate, for what the service has not measured
IMAGE_TOKENS = 1_500  # an estimate
IMAGE_BOUND = 16_384  # more than any current model charges for one image
MESSAGE_BOUND = 16  # tokens that a message costs beside its text: role, separators, tool-call wrapping


@dataclass(frozen=True, slots=True)
class Window:
    """The prompt of a turn: its messages, the number of the first turn in it, and the most tokens it can come to."""

    messages: tuple[Message, ...]
    first: int
    bound: int


@dataclass(frozen=True, slots=True)
class Past:
    """What a new turn is built on: the session, its replayable turns (oldest first), the new messages, and the other
    parts of the request that the service counts as prompt (tools, schemas)."""

    session: Session
    turns: tuple[Turn, ...]
    new: tuple[Message, ...]
    attached: Any = None

    @classmethod
    def of(cls, session: Session, turns: Sequence[Turn], new: Sequence[Message], attached: Any = None) -> "Past":
        """From the turns as storage lists them, newest first. Raises InvalidRequest where tool results do not answer
        the pending tool calls, ContextTooLong where the exchange that they belong to is too long to be sent whole."""
        kept = tuple(t for t in reversed(turns) if t.replayable and t.number > session.cleared_through)
        past = cls(session, kept, tuple(new), attached)
        past._check_tool_results()
        return past

    def window(self, budget: int) -> Window:
        """The window for a prompt of at most `budget` tokens. The new messages are sent whatever their size."""
        exchange = self._exchange()
        kept = [t for t in self.turns if t.number >= self.session.window_start or t in exchange]
        if len(kept) >= MOST_TURNS or self._size(kept) > budget:
            kept = self._shortened(kept, exchange, budget)
        return self._window(kept)

    def halved(self, window: Window) -> Window | None:
        """The same with half of its turns, for a service that says that the context is too long. None where nothing is
        left to drop."""
        exchange = self._exchange()
        kept = [t for t in self.turns if t.number >= window.first]
        droppable = len(kept) - len(exchange)
        if droppable == 0:
            return None
        return self._window(_from_user(kept[(droppable + 1) // 2 :], exchange))

    def _exchange(self) -> tuple[Turn, ...]:
        """The turns that new tool results belong to, back to their user's message; none for a plain message."""
        if self.new[0]["role"] != "tool":
            return ()
        starts = [i for i, turn in enumerate(self.turns) if turn.messages[0]["role"] == "user"]
        return self.turns[starts[-1] :]

    def _check_tool_results(self) -> None:
        if self.new[0]["role"] != "tool":
            return
        pending = _calls(self.turns[-1].messages[-1]) if self.turns else []
        given = [message["tool_call_id"] for message in self.new]
        if not pending:
            raise InvalidRequest("No tool call is waiting for an answer. Send a message instead.", param="tool_results")
        if sorted(given) != sorted(pending):
            raise InvalidRequest(
                f"tool_results must answer each pending tool call once: {', '.join(pending)}.", param="tool_results"
            )
        users = [turn for turn in self.turns[-MOST_TURNS:] if turn.messages[0]["role"] == "user"]
        if not users:
            raise ContextTooLong(
                f"This exchange of tool calls is longer than {MOST_TURNS} turns. Send a message instead.",
                param="tool_results",
            )

    def _shortened(self, kept: list[Turn], exchange: Sequence[Turn], budget: int) -> list[Turn]:
        fixed = estimate([_system(self.session), *self.new], self.attached)
        room = min(budget // 2, budget - fixed)
        sizes = {turn.number: self._turn_size(turn) for turn in kept}
        while len(kept) > MOST_TURNS // 2 or sum(sizes[t.number] for t in kept) > room:
            if len(kept) == len(exchange):
                break
            kept = kept[1:]
        return _from_user(kept, exchange)

    def _window(self, kept: Sequence[Turn]) -> Window:
        first = kept[0].number if kept else self.session.turns + 1
        said = [message for turn in kept for message in turn.messages]
        messages = (_system(self.session), *_answered([*said, *self.new]))
        return Window(messages, first, self._bound(kept, messages))

    def _measured(self, kept: Sequence[Turn]) -> int | None:
        """Tokens through the last kept turn, where the service has measured just this prefix."""
        if not kept or kept[-1] is not self.turns[-1] or kept[-1].window_start != kept[0].number:
            return None
        return _through(kept[-1])

    def _size(self, kept: Sequence[Turn]) -> int:
        """The prompt in tokens: measured as far as the service has, the rest estimated."""
        measured = self._measured(kept)
        if measured is not None:
            return measured + estimate(self.new, self.attached)
        fixed = estimate([_system(self.session), *self.new], self.attached)
        return fixed + sum(self._turn_size(turn) for turn in kept)

    def _bound(self, kept: Sequence[Turn], messages: Sequence[Message]) -> int:
        """The most tokens that the prompt can come to: a bound, not an estimate."""
        measured = self._measured(kept)
        if measured is not None:
            return measured + MESSAGE_BOUND + bound(self.new, self.attached)
        return bound(messages, self.attached)

    def _turn_size(self, turn: Turn) -> int:
        """What a turn adds to the prompt, in tokens: the difference of two measurements where the one before it was
        taken with the same window, kept within what is possible (tools of one turn may lie in the difference)."""
        at = self.turns.index(turn)
        before = self.turns[at - 1] if at else None
        if before is None or before.window_start != turn.window_start:
            return estimate(turn.messages)
        difference = _through(turn) - _through(before)
        return min(max(difference, 1), bound(turn.messages))


def estimate(messages: Sequence[Message], attached: Any = None) -> int:
    """Tokens that messages (and tools, schemas) probably come to."""
    text, images = _measure(messages, attached)
    return -(-text // BYTES_PER_TOKEN) + images * IMAGE_TOKENS


def bound(messages: Sequence[Message], attached: Any = None) -> int:
    """Tokens that they can't exceed: no tokenizer makes more than one token of a UTF-8 byte."""
    text, images = _measure(messages, attached)
    return text + MESSAGE_BOUND * len(messages) + images * IMAGE_BOUND


def _measure(messages: Sequence[Message], attached: Any) -> tuple[int, int]:
    """UTF-8 bytes of everything but images, and the number of images."""
    text, images = (len(orjson.dumps(attached)) if attached else 0), 0
    for message in messages:
        content = message.get("content") or ""
        for part in [{"text": content}] if isinstance(content, str) else content:
            images += part.get("type") == "image_url"
            text += len(part.get("text", "").encode())
        rest = {key: value for key, value in message.items() if key not in ("role", "content")}
        text += len(orjson.dumps(rest)) if rest else 0
    return text, images


def _system(session: Session) -> Message:
    return {"role": "system", "content": session.system}


def _through(turn: Turn) -> int:
    return turn.call.usage.through if turn.call.usage else 0


def _calls(message: Message) -> list[str]:
    return [call["id"] for call in message.get("tool_calls") or ()]


def _from_user(kept: Sequence[Turn], exchange: Sequence[Turn]) -> list[Turn]:
    """The turns from the first one that begins with a user's message, so that no tool result stands alone."""
    starts = (i for i, turn in enumerate(kept) if turn.messages[0]["role"] == "user" or turn in exchange)
    return list(kept[next(starts, len(kept)) :])


def _answered(messages: Sequence[Message]) -> list[Message]:
    """The messages without tool calls that were never answered, which the service would refuse."""
    kept: list[Message] = []
    for at, message in enumerate(messages):
        answers = {m.get("tool_call_id") for m in messages[at + 1 :] if m["role"] == "tool"}
        if answers.issuperset(_calls(message)):
            kept.append(message)
        elif message.get("content"):
            kept.append({key: value for key, value in message.items() if key != "tool_calls"})
    return kept
