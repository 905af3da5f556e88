"""Which past turns go to the model, and how large the prompt can be. Pure.

Sizes come from the usage that the service itself reported, so no tokenizer is shipped; what it has not measured yet is
estimated. The window's start moves rarely and in big steps, so that the prompt's prefix stays byte-identical and the
service's prompt cache keeps hitting.
"""

from collections.abc import Iterator, Sequence, Set
from dataclasses import dataclass
from typing import Any

import orjson

from shared.conversation import Message, Session, Turn, Usage
from shared.errors import ContextTooLong, InvalidRequest

MOST_TURNS = 64  # with the new one; a page of storage holds them and the session's head
BYTES_PER_TOKEN = 3  # an estimate, for what the service has not measured
IMAGE_TOKENS = 1_500  # an estimate
MESSAGE_TOKENS = 4  # an estimate: role and separators
IMAGE_BOUND = 16_384  # more than any current model charges for one image
MESSAGE_BOUND = 16  # tokens that a message costs beside its text: role, separators, tool-call wrapping


@dataclass(frozen=True, slots=True)
class Window:
    """The prompt of a turn: its messages, the number of the first turn in it, and the most tokens it can come to.

    `past_tokens`: what is believed to come before the new messages; what a turn adds is measured against it. None
    where the caller made the prompt.
    """

    messages: tuple[Message, ...]
    first: int
    bound: int
    past_tokens: int | None


@dataclass(frozen=True, slots=True)
class Shown:
    """A past turn as the model is shown it, and the tokens that it adds to a prompt. `alone`: those that it has where
    no turn is shown before it: its own size took up what was estimated wrongly of those."""

    turn: Turn
    messages: tuple[Message, ...]
    tokens: int
    alone: int

    @property
    def begins(self) -> bool:
        """Whether it begins with a user's message, as a window does."""
        return bool(self.messages[0]["role"] == "user")


@dataclass(frozen=True, slots=True)
class Past:
    """What a new turn is built on: the session, its turns as the model is shown them (oldest first), the new messages,
    the other parts of the request that the service counts as prompt (tools, schemas), and who is asked."""

    session: Session
    turns: tuple[Shown, ...]
    new: tuple[Message, ...]
    attached: Any
    deployment: str

    @classmethod
    def of(
        cls,
        session: Session,
        turns: Sequence[Turn],
        new: Sequence[Message],
        attached: Any,
        deployment: str | None,
    ) -> "Past":
        """From the turns as storage lists them, newest first. Raises InvalidRequest where tool results do not answer
        the pending tool calls, ContextTooLong where the exchange that they belong to is too long to be sent whole."""
        kept = [turn for turn in reversed(turns) if turn.replayable and turn.number > session.cleared_through]
        if new[0]["role"] == "tool":
            _check_tool_results(kept, new)
        return cls(session, tuple(_shown(kept, new)), tuple(new), attached, deployment or session.deployment)

    def window(self, budget: int) -> Window:
        """The window for a prompt of at most `budget` tokens. The new messages are sent whatever their size."""
        exchange = self._exchange()
        kept = [turn for turn in self.turns if turn.turn.number >= self.session.window_start or turn in exchange]
        if len(kept) >= MOST_TURNS or self._past_tokens(kept) + estimate(self.new) > budget:
            kept = self._shortened(kept, budget)
        return self._window(_from_user(kept))

    def halved(self, window: Window) -> Window | None:
        """The same with half of its turns, for a service that says that the context is too long. None where nothing is
        left to drop."""
        kept = [turn for turn in self.turns if turn.turn.number >= window.first]
        droppable = len(kept) - len(self._exchange())
        if droppable == 0:
            return None
        return self._window(_from_user(kept[(droppable + 1) // 2 :]))

    def _exchange(self) -> Sequence[Shown]:
        """The turns that new tool results belong to, back to their user's message; none for a plain message."""
        return self._latest() if self.new[0]["role"] == "tool" else ()

    def _latest(self) -> Sequence[Shown]:
        """The turns since the last user's message."""
        begins = [at for at, turn in enumerate(self.turns) if turn.begins]
        return self.turns[begins[-1] :] if begins else ()

    def _shortened(self, kept: list[Shown], budget: int) -> list[Shown]:
        """Down to half of what the budget leaves for the past, so that the next move is far off; but what was said
        last stays as long as it fits at all."""
        room = budget - self._past_tokens(())
        left, least = room - estimate(self.new), len(self._latest())
        while len(kept) > least and (len(kept) > MOST_TURNS // 2 or _tokens(kept) > min(room // 2, left)):
            kept = kept[1:]
        fits = len(kept) < MOST_TURNS and _tokens(kept) <= left
        return kept if fits or self._exchange() else []

    def _window(self, kept: Sequence[Shown]) -> Window:
        first = kept[0].turn.number if kept else self.session.turns + 1
        said = [message for turn in kept for message in turn.messages]
        messages = (_system(self.session), *said, *self.new)
        return Window(messages, first, self._bound(kept, messages), self._past_tokens(kept))

    def _past_tokens(self, kept: Sequence[Shown]) -> int:
        """What comes before the new messages, in tokens. Where the last kept turn was sent with the same, this is what
        the service measured, because each turn's size takes up what was estimated wrongly before it."""
        return estimate([_system(self.session)], self.attached) + _tokens(kept)

    def _bound(self, kept: Sequence[Shown], messages: Sequence[Message]) -> int:
        """The most tokens that the prompt can come to: a bound, not an estimate."""
        last = kept[-1].turn if kept else None
        if last and last.call.deployment == self.deployment and last.past_tokens == self._past_tokens(kept[:-1]):
            return _usage(last).through + MESSAGE_BOUND + bound(self.new, self.attached)
        return bound(messages, self.attached)


def estimate(messages: Sequence[Message], attached: Any = None) -> int:
    """Tokens that messages (and tools, schemas) probably come to."""
    text, images = _measure(messages, attached)
    return -(-text // BYTES_PER_TOKEN) + MESSAGE_TOKENS * len(messages) + images * IMAGE_TOKENS


def bound(messages: Sequence[Message], attached: Any = None) -> int:
    """Tokens that they can't exceed: no tokenizer makes more than one token of a UTF-8 byte."""
    text, images = _measure(messages, attached)
    return text + MESSAGE_BOUND * len(messages) + images * IMAGE_BOUND


def _measure(messages: Sequence[Message], attached: Any) -> tuple[int, int]:
    """UTF-8 bytes of everything but images, and the number of images. What is neither text nor image counts as both."""
    text, images = (len(orjson.dumps(attached)) if attached else 0), 0
    for message in messages:
        content = message.get("content") or ""
        for part in [{"type": "text", "text": content}] if isinstance(content, str) else content:
            match part:
                case {"type": "text", "text": str(words)}:
                    text += len(words.encode())
                case {"type": "image_url"}:
                    images += 1
                case _:
                    text += len(orjson.dumps(part))
                    images += 1
        rest = {key: value for key, value in message.items() if key not in ("role", "content")}
        text += len(orjson.dumps(rest)) if rest else 0
    return text, images


def _system(session: Session) -> Message:
    return {"role": "system", "content": session.system}


def _usage(turn: Turn) -> Usage:
    return turn.call.usage or Usage()


def _tokens(kept: Sequence[Shown]) -> int:
    return kept[0].alone + sum(turn.tokens for turn in kept[1:]) if kept else 0


def _calls(message: Message) -> list[str]:
    return [call["id"] for call in message.get("tool_calls") or ()]


def _from_user(kept: Sequence[Shown]) -> Sequence[Shown]:
    """The turns from the first one that begins with a user's message, so that no tool result stands alone."""
    begins = (at for at, turn in enumerate(kept) if turn.begins)
    return kept[next(begins, len(kept)) :]


def _check_tool_results(turns: Sequence[Turn], new: Sequence[Message]) -> None:
    pending = _calls(turns[-1].messages[-1]) if turns else []
    if not pending:
        raise InvalidRequest("No tool call is waiting for an answer. Send a message instead.", param="tool_results")
    if sorted(message["tool_call_id"] for message in new) != sorted(pending):
        raise InvalidRequest(
            f"tool_results must answer each pending tool call once: {', '.join(pending)}.", param="tool_results"
        )
    if not any(turn.messages[0]["role"] == "user" for turn in turns[1 - MOST_TURNS :]):
        raise ContextTooLong(
            f"This exchange of tool calls is longer than {MOST_TURNS} turns. Send a message instead.",
            param="tool_results",
        )


def _shown(turns: Sequence[Turn], new: Sequence[Message]) -> Iterator[Shown]:
    """The turns without what the service would refuse: tool calls that were not answered right after, and results of
    such calls (a turn that was settled late can come to lie between)."""
    awaited: set[str] = set()
    for turn, following in zip(turns, [*(turn.messages for turn in turns[1:]), new], strict=False):
        *sent, said = turn.messages
        sent = [message for message in sent if message["role"] != "tool" or message.get("tool_call_id") in awaited]
        calls, answers = set(_calls(said)), {message.get("tool_call_id") for message in following}
        awaited = calls if calls <= answers else set()
        past, left = turn.past_tokens, [_said(said, awaited)]
        unanswered = bool(calls) and not awaited
        if unanswered:
            left = [message for message in left if message["content"]]
        if messages := (*sent, *left):
            usage = _usage(turn)
            answer = estimate(left) if unanswered else usage.through - usage.prompt_tokens + MESSAGE_TOKENS
            alone = estimate(sent) + answer
            tokens = alone if past is None else usage.prompt_tokens - past + answer
            most = bound(messages)
            yield Shown(turn, messages, min(max(tokens, 1), most), min(max(tokens, alone), most))


def _said(said: Message, awaited: Set[str]) -> Message:
    """An answer as it is shown again: with its tool calls where they were answered, else with some content."""
    if awaited:
        return said
    return {**{key: value for key, value in said.items() if key != "tool_calls"}, "content": said.get("content") or ""}
