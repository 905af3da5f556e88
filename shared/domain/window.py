"""Which past turns are sent to the model, and how large the prompt can be.

Sizes come from the usage that the service reported, so no tokenizer is needed. What it has not reported yet is
estimated. The window's start moves rarely and in big steps, so that the prompt's prefix stays byte-identical and the
service's prompt cache keeps hitting.
"""

from collections.abc import Callable, Iterator, Sequence
from dataclasses import dataclass
from typing import Any, TypeAlias

import orjson

from shared.domain.conversation import STOPPED, Message, Session, Turn
from shared.errors import ContextTooLong, InvalidRequest

MAX_TURNS = 64  # including the new one
BYTES_PER_TOKEN = 3  # an estimate, used if the service has not reported a count
IMAGE_TOKENS = 1_500  # an estimate
MESSAGE_TOKENS = 4  # an estimate: role and separators
IMAGE_BOUND = 16_384  # more than any current model charges for one image
MESSAGE_BOUND = 16  # tokens of a message besides its text: role, separators, tool-call syntax


@dataclass(frozen=True, slots=True)
class Window:
    """The prompt of a turn: its messages, the number of its first turn, and an upper bound on its tokens.

    `past_tokens`: the estimated tokens before the new messages; a turn's size is its reported prompt minus these, plus
    its answer.
    """

    messages: tuple[Message, ...]
    first: int
    bound: int
    past_tokens: int


Check: TypeAlias = Callable[[Sequence[Turn], Sequence[Message]], None]


@dataclass(frozen=True, slots=True)
class ReplayedTurn:
    """A past turn as it is sent to the model, and the tokens that it adds to a prompt.

    `alone`: its token count when it is the first turn in the window; it then also absorbs the estimation error of the
    turns dropped before it.
    """

    turn: Turn
    messages: tuple[Message, ...]
    tokens: int
    alone: int

    @property
    def begins(self) -> bool:
        """True if a window may begin with it: it does not begin with the results of an earlier turn's tool calls."""
        return not any(each[0]["role"] == "tool" for each in (self.messages, self.turn.messages))


@dataclass(frozen=True, slots=True)
class History:
    """The input of a new turn's prompt: the session, its replayed turns (oldest first), the new messages, and the
    deployment. `attached`: other parts of the request that the service counts as prompt (tools, schemas).
    `instructions`: this call's own system prompt, in place of the session's."""

    session: Session
    turns: tuple[ReplayedTurn, ...]
    new: tuple[Message, ...]
    attached: Any
    deployment: str
    instructions: str | None = None

    @classmethod
    def of(
        cls,
        session: Session,
        turns: Sequence[Turn],
        new: Sequence[Message],
        attached: Any,
        deployment: str,
        instructions: str | None = None,
        check: "Check | None" = None,
    ) -> "History":
        """`turns`: newest first. `check`: of new tool results against the replayable turns, oldest first. Raises
        InvalidRequest if tool results do not answer the pending tool calls, and ContextTooLong if their exchange is too
        long to be sent complete."""
        replayable = [turn for turn in reversed(turns) if turn.replayable and turn.number > session.cleared_through]
        if check or new[0]["role"] == "tool":
            (check or _check_tool_results)(replayable, new)
        new = _results_first(_expected(new, pending := {*pending_calls(replayable)}), pending)
        return cls(session, tuple(_replayed(replayable, new)), tuple(new), attached, deployment, instructions)

    def window(self, budget: int) -> Window:
        """The window for a prompt of at most `budget` tokens. The new messages are always sent, even if too long."""
        exchange = self._exchange()
        shown = [turn for turn in self.turns if turn.turn.number >= self.session.window_start or turn in exchange]
        if len(shown) >= MAX_TURNS or self._past_tokens(shown) + estimate(self.new) > budget:
            shown = self._shortened(shown, budget)
        return self._window(_from_start(shown))

    def whole(self) -> Window:
        """The window with every turn."""
        return self._window(_from_start(self.turns))

    def halved(self, window: Window) -> Window | None:
        """The window without the older half of its droppable turns, for a retry after the service rejected it as too
        long. None if no turn can be dropped."""
        shown = [turn for turn in self.turns if turn.turn.number >= window.first]
        droppable = len(shown) - len(self._exchange())
        if droppable == 0:
            return None
        return self._window(_from_start(shown[(droppable + 1) // 2 :]))

    def _exchange(self) -> Sequence[ReplayedTurn]:
        """The turns that new tool results belong to, from the user message on; none if there are no results."""
        return self._latest() if self.new[0]["role"] == "tool" else ()

    def _latest(self) -> Sequence[ReplayedTurn]:
        """The turns from the last user message on."""
        begins = [at for at, turn in enumerate(self.turns) if turn.begins]
        return self.turns[begins[-1] :] if begins else ()

    def _shortened(self, shown: list[ReplayedTurn], budget: int) -> list[ReplayedTurn]:
        """Drop the oldest turns until the rest needs at most half of the budget for past turns, so that the window's
        start moves rarely. The latest exchange is dropped only if it does not fit."""
        for_turns = budget - self._past_tokens(())
        available, latest = for_turns - estimate(self.new), len(self._latest())
        while len(shown) > latest and (len(shown) > MAX_TURNS // 2 or _tokens(shown) > min(for_turns // 2, available)):
            shown = shown[1:]
        fits = len(shown) < MAX_TURNS and _tokens(shown) <= available
        return shown if fits or self._exchange() else []

    def _window(self, shown: Sequence[ReplayedTurn]) -> Window:
        first = shown[0].turn.number if shown else self.session.turns + 1
        past = [message for turn in shown for message in turn.messages]
        messages = (*self._system(), *past, *self.new)
        return Window(messages, first, self._bound(shown, messages), self._past_tokens(shown))

    def _past_tokens(self, shown: Sequence[ReplayedTurn]) -> int:
        """The tokens before the new messages. If the last turn was sent with the same window, this equals the service's
        count, because each turn's size absorbs the estimation error before it."""
        return estimate(self._system(), self.attached) + _tokens(shown)

    def _bound(self, shown: Sequence[ReplayedTurn], messages: Sequence[Message]) -> int:
        """An upper bound on the prompt's tokens: the reported count for the part that was sent before, if it is valid
        here, and one token per byte for the rest."""
        last = shown[-1].turn if shown else None
        usage = last.call.usage if last and last.calls else None
        same = last and usage and last.call.deployment == self.deployment
        if last and usage and same and last.past_tokens == self._past_tokens(shown[:-1]):
            new = self.new if self.instructions is None else (*self._system(), *self.new)
            return usage.conversation_tokens + MESSAGE_BOUND + bound(new, self.attached)
        return bound(messages, self.attached)

    def _system(self) -> tuple[Message, ...]:
        system = self.session.system if self.instructions is None else self.instructions
        return ({"role": "system", "content": system},) if system else ()


def estimate(messages: Sequence[Message], attached: Any = None) -> int:
    """The estimated number of tokens in messages (and tools, schemas)."""
    text, images = _measure(messages, attached)
    return -(-text // BYTES_PER_TOKEN) + MESSAGE_TOKENS * len(messages) + images * IMAGE_TOKENS


def bound(messages: Sequence[Message], attached: Any = None) -> int:
    """An upper bound on the tokens in messages (and tools, schemas): no tokenizer makes more than one token per byte of
    UTF-8."""
    text, images = _measure(messages, attached)
    return text + MESSAGE_BOUND * len(messages) + images * IMAGE_BOUND


def _measure(messages: Sequence[Message], attached: Any) -> tuple[int, int]:
    """UTF-8 bytes of everything but images, and the number of images. A part of another type counts as both."""
    text, images = (len(orjson.dumps(attached)) if attached else 0), 0
    for message in messages:
        content = message.get("content") or ""
        for part in [{"type": "text", "text": content}] if isinstance(content, str) else content:
            match part:
                case {"type": "text", "text": str(part_text)}:
                    text += len(part_text.encode())
                case {"type": "image_url"}:
                    images += 1
                case _:
                    text += len(orjson.dumps(part))
                    images += 1
        rest = {key: value for key, value in message.items() if key not in ("role", "content")}
        text += len(orjson.dumps(rest)) if rest else 0
    return text, images


def _tokens(turns: Sequence[ReplayedTurn]) -> int:
    return turns[0].alone + sum(turn.tokens for turn in turns[1:]) if turns else 0


def _calls(message: Message) -> list[str]:
    return [call["id"] for call in message.get("tool_calls") or ()]


def _from_start(turns: Sequence[ReplayedTurn]) -> Sequence[ReplayedTurn]:
    """The turns from the first that a window may begin with, so that no tool result is sent without its call."""
    begins = (at for at, turn in enumerate(turns) if turn.begins)
    return turns[next(begins, len(turns)) :]


def pending_calls(turns: Sequence[Turn]) -> list[str]:
    """The ids of the tool calls that wait for results. `turns`: replayable ones, oldest first."""
    return _calls(turns[-1].messages[-1]) if turns and turns[-1].finish_reason != STOPPED else []


def _check_tool_results(turns: Sequence[Turn], new: Sequence[Message]) -> None:
    pending = pending_calls(turns)
    if not pending:
        raise InvalidRequest("No tool call is waiting for results. Send a message instead.", param="tool_results")
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
    """The turns without messages that the service would reject: tool calls that are not answered, and results of such
    calls (a turn that settled late can come between call and result)."""
    pending: set[str] = set()
    for turn, following in zip(turns, [*(turn.messages for turn in turns[1:]), new], strict=False):
        messages, last_calls = list[Message](), set(_calls(turn.messages[-1]))
        for at, message in enumerate(received := _results_first(turn.messages, pending), start=1):
            if message["role"] == "tool":
                messages += [message] if message.get("tool_call_id") in pending else []
                continue
            is_last, calls = at == len(received), set(_calls(message))
            results = {result.get("tool_call_id") for result in (following if is_last else received[at:])}
            cut_off = is_last and turn.finish_reason == STOPPED
            pending = calls if calls <= results and not cut_off else set()
            if message["role"] == "assistant" and not pending:
                message = _without_calls(message)
            messages += [message] if pending or not calls or message["content"] else []
        if messages:
            yield _measured(turn, tuple(messages), unanswered=bool(last_calls) and not pending)


def _expected(new: Sequence[Message], pending: set[str]) -> Sequence[Message]:
    """The new messages without results that are not wanted: of calls that were answered before, or left out. Raises
    InvalidRequest if nothing is left."""
    calls = {call for message in new for call in _calls(message)} | pending
    expected = [message for message in new if message["role"] != "tool" or message["tool_call_id"] in calls]
    if not expected:
        text = "These tool calls have results already, or a message followed without them. Send a message instead."
        raise InvalidRequest(text, param="input")
    return expected


def _results_first(messages: Sequence[Message], pending: set[str]) -> Sequence[Message]:
    """The messages of a turn with the results of the calls before it in front: a service requires them directly behind
    their calls, but the AI SDK sends the user's message again before them."""
    results = [message for message in messages if message.get("tool_call_id") in pending]
    return (*results, *(message for message in messages if message not in results)) if results else messages


def _measured(turn: Turn, messages: tuple[Message, ...], *, unanswered: bool) -> ReplayedTurn:
    """`unanswered`: the answer is sent without its tool calls, if it is sent."""
    usage = turn.call.usage if turn.calls else None
    has_answer = messages[-1]["role"] == "assistant"
    sent, received = (messages[:-1], messages[-1:]) if has_answer else (messages, ())
    reported = usage.conversation_tokens - usage.prompt_tokens + MESSAGE_TOKENS if usage else None
    answer_tokens = estimate(received) if unanswered or reported is None else reported
    past, alone = turn.past_tokens, estimate(sent) + answer_tokens
    tokens = alone if past is None or usage is None else usage.prompt_tokens - past + answer_tokens
    limit = bound(messages)
    return ReplayedTurn(turn, messages, min(max(tokens, 1), limit), min(max(tokens, alone), limit))


def _without_calls(answer: Message) -> Message:
    rest = {name: value for name, value in answer.items() if name != "tool_calls"}
    return {**rest, "content": answer.get("content") or ""}
