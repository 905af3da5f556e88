"""Which past turns go to the model, and how large the prompt can be.

Sizes come from the usage that the service itself reported, so no tokenizer is shipped; what it has not reported yet is
estimated. The window's start moves rarely and in big steps, so that the prompt's prefix stays byte-identical and the
service's prompt cache keeps hitting.
"""

from collections.abc import Iterator, Sequence, Set
from dataclasses import dataclass
from typing import Any

import orjson

from shared.domain.calls import NO_USAGE, Usage
from shared.domain.conversation import Message, Session, Turn
from shared.errors import ContextTooLong, InvalidRequest

MAX_TURNS = 64  # with the new one
BYTES_PER_TOKEN = 3  # an estimate, where the service has not reported a count
IMAGE_TOKENS = 1_500  # an estimate
MESSAGE_TOKENS = 4  # an estimate: role and separators
IMAGE_BOUND = 16_384  # more than any current model charges for one image
MESSAGE_BOUND = 16  # tokens that a message costs beside its text: role, separators, tool-call wrapping


@dataclass(frozen=True, slots=True)
class Window:
    """The prompt of a turn: its messages, the number of the first turn in it, and an upper bound of its tokens.

    `past_tokens`: the estimated tokens before the new messages, which a turn's own size is measured against.
    """

    messages: tuple[Message, ...]
    first: int
    bound: int
    past_tokens: int


@dataclass(frozen=True, slots=True)
class ReplayedTurn:
    """A past turn as the model is shown it, and the tokens that it adds to a prompt.

    `alone`: its token count when it is the first turn in the window; it then also absorbs the estimation error of the
    turns before it, which are not in the prompt any more.
    """

    turn: Turn
    messages: tuple[Message, ...]
    tokens: int
    alone: int

    @property
    def begins(self) -> bool:
        """Whether it begins with a user's message, as a window must."""
        return bool(self.messages[0]["role"] == "user")


@dataclass(frozen=True, slots=True)
class History:
    """What a new turn is built on: the session, its replayed turns (oldest first), the new messages, the other parts of
    the request that the service counts as prompt (tools, schemas), and the deployment."""

    session: Session
    turns: tuple[ReplayedTurn, ...]
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
        deployment: str,
    ) -> "History":
        """`turns`: newest first. Raises InvalidRequest where tool results do not answer the pending tool calls, and
        ContextTooLong where the exchange that they belong to is too long to be sent whole."""
        kept = [turn for turn in reversed(turns) if turn.replayable and turn.number > session.cleared_through]
        if new[0]["role"] == "tool":
            _check_tool_results(kept, new)
        return cls(session, tuple(_replayed(kept, new)), tuple(new), attached, deployment)

    def window(self, budget: int) -> Window:
        """The window for a prompt of at most `budget` tokens. The new messages are always sent, whatever their size."""
        exchange = self._exchange()
        kept = [turn for turn in self.turns if turn.turn.number >= self.session.window_start or turn in exchange]
        if len(kept) >= MAX_TURNS or self._past_tokens(kept) + estimate(self.new) > budget:
            kept = self._shortened(kept, budget)
        return self._window(_from_user(kept))

    def halved(self, window: Window) -> Window | None:
        """The same window with half of its turns, after the service rejected it as too long. None where nothing is left
        to drop."""
        kept = [turn for turn in self.turns if turn.turn.number >= window.first]
        droppable = len(kept) - len(self._exchange())
        if droppable == 0:
            return None
        return self._window(_from_user(kept[(droppable + 1) // 2 :]))

    def _exchange(self) -> Sequence[ReplayedTurn]:
        """The turns that new tool results belong to, back to their user's message; none for a user's message."""
        return self._latest() if self.new[0]["role"] == "tool" else ()

    def _latest(self) -> Sequence[ReplayedTurn]:
        """The turns since the last user's message."""
        begins = [at for at, turn in enumerate(self.turns) if turn.begins]
        return self.turns[begins[-1] :] if begins else ()

    def _shortened(self, kept: list[ReplayedTurn], budget: int) -> list[ReplayedTurn]:
        """Down to half of what the budget leaves for past turns, so that the next move is far off. The latest exchange
        stays as long as it fits at all."""
        for_turns = budget - self._past_tokens(())
        left, latest = for_turns - estimate(self.new), len(self._latest())
        while len(kept) > latest and (len(kept) > MAX_TURNS // 2 or _tokens(kept) > min(for_turns // 2, left)):
            kept = kept[1:]
        fits = len(kept) < MAX_TURNS and _tokens(kept) <= left
        return kept if fits or self._exchange() else []

    def _window(self, kept: Sequence[ReplayedTurn]) -> Window:
        first = kept[0].turn.number if kept else self.session.turns + 1
        past = [message for turn in kept for message in turn.messages]
        messages = (_system(self.session), *past, *self.new)
        return Window(messages, first, self._bound(kept, messages), self._past_tokens(kept))

    def _past_tokens(self, kept: Sequence[ReplayedTurn]) -> int:
        """The tokens before the new messages. If the last kept turn was sent with the same window, this is the count of
        the service, because each turn's size absorbs the estimation error before it."""
        return estimate([_system(self.session)], self.attached) + _tokens(kept)

    def _bound(self, kept: Sequence[ReplayedTurn], messages: Sequence[Message]) -> int:
        """An upper bound of the prompt's tokens: the reported count as far as there is one, else one token per byte."""
        last = kept[-1].turn if kept else None
        if last and last.call.deployment == self.deployment and last.past_tokens == self._past_tokens(kept[:-1]):
            return _usage(last).conversation_tokens + MESSAGE_BOUND + bound(self.new, self.attached)
        return bound(messages, self.attached)


def estimate(messages: Sequence[Message], attached: Any = None) -> int:
    """The probable number of tokens in messages (and tools, schemas)."""
    text, images = _measure(messages, attached)
    return -(-text // BYTES_PER_TOKEN) + MESSAGE_TOKENS * len(messages) + images * IMAGE_TOKENS


def bound(messages: Sequence[Message], attached: Any = None) -> int:
    """An upper bound of their tokens: no tokenizer makes more than one token of a UTF-8 byte."""
    text, images = _measure(messages, attached)
    return text + MESSAGE_BOUND * len(messages) + images * IMAGE_BOUND


def _measure(messages: Sequence[Message], attached: Any) -> tuple[int, int]:
    """UTF-8 bytes of everything but images, and the number of images. A part that is neither counts as both."""
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
    return turn.call.usage or NO_USAGE


def _tokens(kept: Sequence[ReplayedTurn]) -> int:
    return kept[0].alone + sum(turn.tokens for turn in kept[1:]) if kept else 0


def _calls(message: Message) -> list[str]:
    return [call["id"] for call in message.get("tool_calls") or ()]


def _from_user(kept: Sequence[ReplayedTurn]) -> Sequence[ReplayedTurn]:
    """The turns from the first one that begins with a user's message, so that no tool result lacks its call."""
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
    if not any(turn.messages[0]["role"] == "user" for turn in turns[1 - MAX_TURNS :]):
        raise ContextTooLong(
            f"This exchange of tool calls is longer than {MAX_TURNS} turns. Send a message instead.",
            param="tool_results",
        )


def _replayed(turns: Sequence[Turn], new: Sequence[Message]) -> Iterator[ReplayedTurn]:
    """The turns without what the service would reject: tool calls that the next turn does not answer, and results of
    such calls (a turn that was settled late can lie between the two)."""
    pending: set[str] = set()
    for turn, following in zip(turns, [*(turn.messages for turn in turns[1:]), new], strict=False):
        *sent, answer = turn.messages
        sent = [message for message in sent if message["role"] != "tool" or message.get("tool_call_id") in pending]
        calls, results = set(_calls(answer)), {message.get("tool_call_id") for message in following}
        pending = calls if calls <= results else set()
        past, left = turn.past_tokens, [_replayed_answer(answer, pending)]
        unanswered = bool(calls) and not pending
        if unanswered:
            left = [message for message in left if message["content"]]
        if messages := (*sent, *left):
            usage = _usage(turn)
            reported = usage.conversation_tokens - usage.prompt_tokens + MESSAGE_TOKENS
            answer_tokens = estimate(left) if unanswered else reported
            alone = estimate(sent) + answer_tokens
            tokens = alone if past is None else usage.prompt_tokens - past + answer_tokens
            limit = bound(messages)
            yield ReplayedTurn(turn, messages, min(max(tokens, 1), limit), min(max(tokens, alone), limit))


def _replayed_answer(answer: Message, pending: Set[str]) -> Message:
    """An answer as later prompts hold it: with its tool calls where they were answered, else with content alone."""
    if pending:
        return answer
    rest = {name: value for name, value in answer.items() if name != "tool_calls"}
    return {**rest, "content": answer.get("content") or ""}
