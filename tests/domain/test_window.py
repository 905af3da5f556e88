"""The window: past turns fit the budget, the prompt's prefix stays stable, and tool exchanges stay complete.

The property tests use a simulated service. It gives every message a size that the window cannot predict, and reports
usage like the real service.
"""

from dataclasses import dataclass, field, replace
from datetime import UTC, date, datetime
from decimal import Decimal
from itertools import pairwise
from typing import Any

import httpx
import orjson
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from shared.domain.calls import Call, State, Usage
from shared.domain.conversation import Message, Session, Turn, raise_call
from shared.domain.window import IMAGE_BOUND, MAX_TURNS, MESSAGE_BOUND, MESSAGE_TOKENS, History, Window, bound, estimate
from shared.errors import ContextTooLong, InvalidRequest
from tests.conftest import Serve
from tests.support.azure_openai import AzureOpenAI
from tests.support.azure_openai_answers import prefixes
from tests.support.chat_client import answer, send_message

NOW = datetime(2026, 3, 1, tzinfo=UTC)
SYSTEM = "Be brief."


def user(text: str) -> Message:
    return {"role": "user", "content": text}


def result(call_id: str, text: str = "42") -> Message:
    return {"role": "tool", "tool_call_id": call_id, "content": text}


def calling(*ids: str, content: str | None = None) -> Message:
    calls = [{"id": i, "type": "function", "function": {"name": "look", "arguments": "{}"}} for i in ids]
    return {"role": "assistant", "content": content, "tool_calls": calls}


@dataclass
class Chat:
    """A conversation built like turns and storage build it, but in memory. Prompts come from History and Window."""

    budget: int = 1_000
    system: str = SYSTEM
    sizes: dict[bytes, int] = field(default_factory=dict)  # message or tools -> tokens; estimated if missing
    session: Session = field(init=False)
    turns: list[Turn] = field(default_factory=list)  # oldest first
    windows: list[Window] = field(default_factory=list)

    def __post_init__(self) -> None:
        self.session = Session(id="s", created=NOW, updated=NOW, system=self.system, deployment="chat")

    def past(self, *new: Message, attached: Any = None, deployment: str = "chat") -> History:
        return History.of(self.session, self.turns[::-1], new, attached, deployment)

    def window(self, *new: Message, attached: Any = None, budget: int | None = None) -> Window:
        return self.past(*new, attached=attached).window(budget or self.budget)

    def begin(
        self, *new: Message, attached: Any = None, budget: int | None = None, deployment: str = "chat"
    ) -> tuple[Turn, Window]:
        window = self.past(*new, attached=attached, deployment=deployment).window(budget or self.budget)
        self.windows.append(window)
        number = self.session.turns + 1
        call = Call(id=f"c{number}", day=date(2026, 3, 1), deadline=NOW, deployment=deployment, worst_case=Decimal(1))
        turn = Turn(
            number=number,
            started=NOW,
            calls=(call,),
            messages=new,
            window_start=window.first,
            past_tokens=window.past_tokens,
        )
        self.session = replace(self.session, turns=number)
        self.turns.append(turn)
        return turn, window

    def end(
        self,
        turn: Turn,
        window: Window,
        reply: Message,
        *,
        attached: Any = None,
        state: State = State.SETTLED,
        filtered: bool = False,
        reasoning: int = 0,
    ) -> None:
        prompt = self.prompt(window, attached)
        content = self.tokens_of(reply) - MESSAGE_TOKENS  # usage does not count the answer's role and separators
        usage = Usage(prompt_tokens=prompt, completion_tokens=content + reasoning, reasoning_tokens=reasoning)
        call = replace(turn.call, state=state, usage=usage if state is State.SETTLED else None)
        after = raise_call(self.session, self.turns[turn.number - 1], call)
        assert after is not None
        self.session, turn = after
        reason = "content_filter" if filtered else "stop"
        messages = (*turn.messages, reply) if state is State.SETTLED else turn.messages
        self.turns[turn.number - 1] = replace(turn, messages=messages, finish_reason=reason)

    def say(self, text: str, reply: Message | str = "ok", **how: Any) -> Window:
        return self.send(user(text), reply=reply, **how)

    def send(self, *new: Message, reply: Message | str = "ok", state: State = State.SETTLED, **how: Any) -> Window:
        turn, window = self.begin(*new, **how)
        message = reply if isinstance(reply, dict) else {"role": "assistant", "content": reply}
        self.end(turn, window, message, attached=how.get("attached"), state=state)
        return window

    def prompt(self, window: Window, attached: Any = None) -> int:
        """The prompt tokens that the service reports."""
        return self.fixed(attached) + sum(self.tokens_of(message) for message in window.messages[1:])

    def fixed(self, attached: Any = None) -> int:
        system = {"role": "system", "content": self.system}
        tools = self.sizes.get(orjson.dumps(attached))
        return estimate([system], attached) if tools is None else self.tokens_of(system) + tools

    def tokens_of(self, message: Message) -> int:
        return self.sizes.get(orjson.dumps(message), estimate([message]))


def texts(window: Window) -> list[Any]:
    return [message["content"] for message in window.messages[1:]]


def numbers(chat: Chat, window: Window) -> list[int]:
    """The numbers of the past turns in a window, matched by content."""
    shown = {orjson.dumps(message) for message in window.messages}
    return [turn.number for turn in chat.turns if orjson.dumps(turn.messages[0]) in shown]


def filled(turns: int, length: int = 60, **how: Any) -> Chat:
    chat = Chat(**how)
    for number in range(1, turns + 1):
        chat.say(f"{number}:".ljust(length, "x"), reply=f"answer {number}")
    return chat


class TestTurnsInThePrompt:
    def test_first_prompt_is_the_system_prompt_and_the_message(self) -> None:
        window = Chat().window(user("hello"))
        assert window.messages == ({"role": "system", "content": SYSTEM}, user("hello"))
        assert window.first == 1

    def test_prompt_contains_earlier_turns_in_order(self) -> None:
        chat = Chat()
        chat.say("one", reply="1")
        chat.say("two", reply="2")
        assert texts(chat.window(user("three"))) == ["one", "1", "two", "2", "three"]

    @pytest.mark.parametrize("state", [State.OPEN, State.ABANDONED, State.UNACCOUNTED, State.FAILED])
    def test_prompt_omits_turn_without_an_answer(self, state: State) -> None:
        chat = Chat()
        chat.say("one", reply="1")
        if state is State.OPEN:
            chat.begin(user("lost"))
        else:
            chat.say("lost", state=state)
        assert texts(chat.window(user("two"))) == ["one", "1", "two"]

    def test_prompt_omits_turn_stopped_by_the_content_filter(self) -> None:
        chat = Chat()
        turn, window = chat.begin(user("bad"))
        chat.end(turn, window, {"role": "assistant", "content": "ba"}, filtered=True)
        assert texts(chat.window(user("good"))) == ["good"]

    def test_prompt_omits_cleared_turn_whose_content_is_still_stored(self) -> None:
        chat = Chat()
        chat.say("secret")
        chat.session = replace(chat.session, cleared_through=1, window_start=2)
        window = chat.window(user("new"))
        assert texts(window) == ["new"]
        assert window.first == 2

    def test_tool_call_of_a_cleared_turn_is_not_pending(self) -> None:
        chat = Chat()
        chat.say("weather?", reply=calling("a"))
        chat.session = replace(chat.session, cleared_through=1, window_start=2)
        with pytest.raises(InvalidRequest, match="No tool call is waiting"):
            chat.past(result("a"))

    def test_turn_settled_late_is_in_the_prompt_in_turn_order(self) -> None:
        chat = Chat()
        chat.say("one", reply="1")
        late = chat.begin(user("two"))
        chat.say("three", reply="3")
        chat.end(*late, {"role": "assistant", "content": "2"})
        assert texts(chat.window(user("four"))) == ["one", "1", "two", "2", "three", "3", "four"]

    def test_refusal_is_replayed_with_valid_content(self) -> None:
        chat = Chat()
        chat.say("one", reply={"role": "assistant", "content": None, "refusal": "No."})
        shown = chat.window(user("two")).messages[2]
        assert shown == {"role": "assistant", "content": "", "refusal": "No."}


class TestBudget:
    def test_window_drops_the_oldest_turns_first(self) -> None:
        chat = filled(20, budget=300)
        window = chat.window(user("next"))
        shown = numbers(chat, window)
        assert shown == list(range(window.first, 21))
        assert 1 < window.first < 20

    def test_message_larger_than_the_budget_is_sent_alone(self) -> None:
        chat = filled(3)
        large = user("x" * 3 * 1_001)
        window = chat.window(large)
        assert window.messages[1:] == (large,)
        assert window.first == 4

    def test_window_keeps_the_latest_exchange_if_it_fits(self) -> None:
        chat = filled(15)
        document = "x" * 3 * 700  # more than half of the budget
        chat.say(document)
        assert texts(chat.window(user("what does it say?"))) == [document, "ok", "what does it say?"]

    def test_window_drops_the_latest_exchange_if_it_does_not_fit(self) -> None:
        chat = filled(5)
        chat.say("x" * 3 * 700)
        question = "y" * 3 * 400
        assert texts(chat.window(user(question))) == [question]

    def test_rejected_message_does_not_move_the_window(self) -> None:
        chat = filled(3)
        chat.say("x" * 3 * 1_001, state=State.UNACCOUNTED)
        assert numbers(chat, chat.window(user("next"))) == [1, 2, 3]

    def test_window_start_never_moves_back(self) -> None:
        chat = filled(20, budget=300)
        first = chat.window(user("next")).first
        assert chat.window(user("next"), budget=100_000).first == first

    def test_large_tools_of_one_turn_do_not_distort_the_next_turns_size(self) -> None:
        chat = Chat()
        tools = {"tools": ["t" * 3 * 600]}
        chat.say("one", attached=tools)
        large = "x" * 3 * 600
        chat.say(large)
        new = user("y" * 3 * 500)
        assert texts(chat.window(new)) == [new["content"]]

    def test_omitted_tool_calls_do_not_distort_the_next_turns_size(self) -> None:
        chat = Chat(budget=2_000)
        chat.say("w" * 3 * 300, reply=calling("c" * 3 * 500))
        chat.say("x" * 3 * 450)
        new = user("y" * 3 * 1_600)
        assert texts(chat.window(new)) == [new["content"]]

    @pytest.mark.parametrize("past_tokens", [-10_000, 10_000])
    def test_turn_size_is_between_one_token_and_its_bound(self, past_tokens: int) -> None:
        """The difference of two reported counts can have any value if another deployment has another tokenizer."""
        chat = filled(1)
        chat.turns[0] = replace(chat.turns[0], past_tokens=past_tokens)
        estimated = (chat.window(user("next")).past_tokens or 0) - estimate([{"role": "system", "content": SYSTEM}])
        assert 1 <= estimated <= bound(chat.turns[0].messages)

    def test_reasoning_tokens_are_not_part_of_a_replayed_turn(self) -> None:
        chat = Chat()
        turn, window = chat.begin(user("one"))
        chat.end(turn, window, {"role": "assistant", "content": "1"}, reasoning=900)
        assert texts(chat.window(user("two"))) == ["one", "1", "two"]

    def test_image_is_estimated_at_1500_tokens_whatever_its_bytes(self) -> None:
        url = {"type": "image_url", "image_url": {"url": "data:image/png;base64," + "A" * 100_000}}
        assert estimate([{"role": "user", "content": [{"type": "text", "text": "abc"}, url]}]) == 1_501 + MESSAGE_TOKENS

    def test_text_is_estimated_at_one_token_per_three_utf8_bytes(self) -> None:
        assert estimate([user("ab"), user("🙂"), user("é")]) == -(-(2 + 4 + 2) // 3) + 3 * MESSAGE_TOKENS


class TestMoves:
    @pytest.mark.parametrize("system_tokens", [0, 400, 800])
    def test_window_move_frees_half_of_the_budget_for_past_turns(self, system_tokens: int) -> None:
        chat = Chat(budget=1_000, system="s" * 3 * system_tokens)
        starts = [chat.say(f"{number}".ljust(24), reply="ok").first for number in range(100)]
        moves = [after - before for before, after in pairwise(starts) if after != before]
        assert moves
        turn = 8 + 1 + 2 * MESSAGE_TOKENS
        assert min(moves) * turn > (1_000 - system_tokens) / 2 - 2 * turn

    def test_tools_in_every_turn_do_not_move_the_window_every_turn(self) -> None:
        chat = Chat(budget=1_000)
        tools = {"tools": ["t" * 3 * 700]}
        starts = [chat.say(f"{number}".ljust(24), attached=tools).first for number in range(50)]
        assert len(set(starts)) <= 1 + 50 * 17 // 130

    def test_window_holds_at_most_64_turns(self) -> None:
        chat = filled(0, budget=10**6)
        for number in range(1, 200):
            window = chat.say(f"{number}", reply="ok")
            assert len(numbers(chat, window)) <= MAX_TURNS
        assert max(len(numbers(chat, window)) for window in chat.windows[:64]) == MAX_TURNS

    def test_full_window_drops_half_of_its_turns(self) -> None:
        chat = filled(63, budget=10**6)
        assert chat.window(user("64")).first == 1
        chat.say("64")
        assert chat.window(user("65")).first == 33

    def test_halved_window_keeps_the_newer_turns(self) -> None:
        chat = filled(10)
        past = chat.past(user("next"))
        halved = past.halved(past.window(1_000))
        assert halved is not None
        assert numbers(chat, halved) == [6, 7, 8, 9, 10]
        assert halved.first == 6

    def test_window_of_one_turn_is_halved_once(self) -> None:
        chat = filled(1)
        past = chat.past(user("next"))
        alone = past.halved(past.window(1_000))
        assert alone is not None
        assert texts(alone) == ["next"]
        assert past.halved(alone) is None


class TestTools:
    def test_tool_calls_and_results_are_replayed_in_order(self) -> None:
        chat = Chat()
        chat.say("weather?", reply=calling("a", "b"))
        chat.send(result("b"), result("a"), reply="sunny")
        window = chat.window(user("thanks"))
        assert window.messages[1:] == (
            user("weather?"),
            calling("a", "b"),
            result("b"),
            result("a"),
            {"role": "assistant", "content": "sunny"},
            user("thanks"),
        )

    def test_unanswered_tool_calls_are_omitted_after_a_plain_message(self) -> None:
        chat = Chat()
        chat.say("weather?", reply=calling("a"))
        assert chat.window(user("never mind")).messages[1:] == (user("weather?"), user("never mind"))

    def test_content_beside_unanswered_tool_calls_is_replayed(self) -> None:
        chat = Chat()
        chat.say("weather?", reply=calling("a", content="I look."))
        window = chat.window(user("never mind"))
        assert window.messages[2] == {"role": "assistant", "content": "I look."}

    @pytest.mark.parametrize("answered", [(), ("a",), ("a", "b", "b"), ("a", "c"), ("a", "b", "c")])
    def test_tool_results_must_answer_each_pending_call_once(self, answered: tuple[str, ...]) -> None:
        chat = Chat()
        chat.say("weather?", reply=calling("a", "b"))
        with pytest.raises(InvalidRequest, match=r"a, b") as error:
            chat.past(*(result(call) for call in answered or ("x",)))
        assert error.value.param == "tool_results"

    def test_tool_results_without_a_pending_call_are_rejected(self) -> None:
        chat = filled(2)
        with pytest.raises(InvalidRequest, match="No tool call is waiting"):
            chat.past(result("a"))

    def test_tool_results_of_a_failed_turn_may_be_sent_again(self) -> None:
        chat = Chat()
        chat.say("weather?", reply=calling("a"))
        chat.send(result("a"), state=State.FAILED)
        assert chat.window(result("a")).messages[1:] == (user("weather?"), calling("a"), result("a"))

    def test_tool_calls_are_not_pending_after_an_answered_plain_message(self) -> None:
        chat = Chat()
        chat.say("weather?", reply=calling("a"))
        chat.say("never mind")
        with pytest.raises(InvalidRequest, match="No tool call is waiting"):
            chat.past(result("a"))

    def test_tool_calls_of_a_stopped_turn_are_sent_with_no_results(self) -> None:
        """A caller of openai/*, who makes the prompt, may have sent results all the same."""
        chat = Chat()
        chat.say("weather?", reply=calling("a", content="I look."))
        chat.send(result("a"))
        chat.turns[0] = replace(chat.turns[0], finish_reason="stopped")
        sent = chat.window(user("next")).messages[1:]
        assert [message["role"] for message in sent] == ["user", "assistant", "assistant", "user"]
        assert not any("tool_calls" in message for message in sent)

    def test_exchange_of_new_tool_results_is_sent_whatever_its_size(self) -> None:
        chat = filled(3)
        chat.say("x" * 3 * 900, reply=calling("a"))
        chat.send(result("a", "y" * 3 * 900), reply=calling("b"))
        window = chat.window(result("b"))
        roles = [message["role"] for message in window.messages]
        assert roles == ["system", "user", "assistant", "tool", "assistant", "tool"]
        assert window.first == 4

    def test_halved_window_keeps_the_exchange_of_new_tool_results(self) -> None:
        chat = filled(3)
        chat.say("weather?", reply=calling("a"))
        chat.send(result("a"), reply=calling("b"))
        past = chat.past(result("b"))
        window: Window | None = past.window(1_000)
        for _ in range(3):
            assert window is not None
            assert [message for message in window.messages if message["role"] != "system"][-5:] == [
                user("weather?"),
                calling("a"),
                result("a"),
                calling("b"),
                result("b"),
            ]
            window = past.halved(window)
        assert window is None

    def test_window_start_within_an_exchange_moves_to_the_next_user_message(self) -> None:
        chat = Chat(budget=10**6)
        chat.say("plain")
        for number in range(31):
            chat.say(f"{number}", reply=calling(f"a{number}"))
            chat.send(result(f"a{number}"), reply="ok")
        chat.say("plain again")
        moved = chat.window(user("next"))
        assert chat.turns[33 - 1].messages[0]["role"] == "tool"  # 32 turns after the window start
        assert moved.first == 34

    def test_tool_exchange_of_64_turns_is_sent_and_a_longer_one_rejected(self) -> None:
        chat = Chat(budget=100)
        chat.say("0", reply=calling("a0"))
        for number in range(MAX_TURNS - 1):
            window = chat.send(result(f"a{number}"), reply=calling(f"a{number + 1}"))
            assert window.messages[1] == user("0")
        with pytest.raises(ContextTooLong, match="longer than 64 turns"):
            chat.past(result(f"a{MAX_TURNS - 1}"))
        assert texts(chat.window(user("stop"))) == ["stop"]

    def test_late_turn_between_tool_call_and_result_omits_both(self) -> None:
        chat = Chat()
        chat.say("weather?", reply=calling("a"))
        late = chat.begin(user("never mind"))
        chat.send(result("a"), reply="sunny")
        chat.end(*late, {"role": "assistant", "content": "fine"})
        assert texts(chat.window(user("next"))) == ["weather?", "never mind", "fine", "sunny", "next"]
        assert_accepted(chat.window(user("next")))

    def test_tool_results_stored_twice_are_replayed_once(self) -> None:
        chat = Chat()
        chat.say("weather?", reply=calling("a"))
        late = chat.begin(result("a"))
        chat.send(result("a"), reply="sunny")
        chat.end(*late, {"role": "assistant", "content": "warm"})
        assert texts(chat.window(user("next"))) == ["weather?", None, "42", "warm", "sunny", "next"]
        assert_accepted(chat.window(user("next")))


class TestBound:
    def test_bound_uses_the_reported_tokens(self) -> None:
        chat = filled(3)
        window = chat.window(user("next"))
        measured = chat.turns[-1].call.usage
        assert measured is not None
        assert window.bound == measured.conversation_tokens + MESSAGE_BOUND + bound([user("next")])

    def test_bound_of_another_deployment_counts_bytes(self) -> None:
        """Another deployment may have another tokenizer."""
        chat = filled(3)
        window = chat.past(user("next"), deployment="other").window(1_000)
        assert window.bound == bound(window.messages)

    def test_bound_counts_bytes_after_a_turn_settled_late(self) -> None:
        chat = filled(1)
        late = chat.begin(user("x" * 900))
        chat.say("three")
        chat.end(*late, {"role": "assistant", "content": "ok"})
        window = chat.window(user("four"))
        assert numbers(chat, window) == [1, 2, 3]
        assert window.bound == bound(window.messages)

    def test_bound_is_one_token_per_byte_and_16_per_message(self) -> None:
        assert bound([user("abc"), user("é")]) == 3 + 2 + 2 * MESSAGE_BOUND

    def test_bound_of_an_image(self) -> None:
        part = {"type": "image_url", "image_url": {"url": "https://example.com/" + "x" * 99}}
        assert bound([{"role": "user", "content": [part]}]) == IMAGE_BOUND + MESSAGE_BOUND

    def test_bound_of_tools_and_tool_calls_counts_bytes(self) -> None:
        call = calling("a")
        assert bound([call]) == len(orjson.dumps({"tool_calls": call["tool_calls"]})) + MESSAGE_BOUND
        assert bound([], {"tools": []}) == len(b'{"tools":[]}')


def assert_accepted(window: Window) -> None:
    """The service's rules: tool results directly after their calls, and a result for every call."""
    awaited: set[str] = set()
    for message in window.messages:
        if message["role"] == "tool":
            assert message["tool_call_id"] in awaited, window.messages
            awaited.remove(message["tool_call_id"])
        else:
            assert not awaited, window.messages
            awaited = {call["id"] for call in message.get("tool_calls") or ()}
            assert message["content"] is not None or awaited
    assert not awaited


@dataclass(frozen=True)
class Step:
    """One turn of a random conversation. Sizes in characters; `density`: tokens per character."""

    length: int
    density: float
    answer: int
    outcome: str
    tools: int
    budget: int
    deployment: str
    calls: bool
    settled_after: int  # a late turn is settled this many turns later


OUTCOMES = ["settled"] * 12 + ["failed", "unaccounted", "filtered", "late", "cleared"]
STEPS = st.builds(
    Step,
    length=st.one_of(st.integers(1, 300), st.integers(1, 3_000)),
    density=st.sampled_from([0.1, 0.25, 1 / 3, 0.6, 1.0]),
    answer=st.integers(0, 600),
    outcome=st.sampled_from(OUTCOMES),
    tools=st.sampled_from([0, 0, 0, 90, 1_500]),
    budget=st.sampled_from([600, 1_000, 1_000, 1_000]),
    deployment=st.sampled_from(["chat", "chat", "chat", "other"]),
    calls=st.booleans(),
    settled_after=st.integers(1, 3),
)
SCRIPTS = st.one_of(
    st.lists(STEPS, min_size=2, max_size=30),
    st.lists(st.builds(replace, STEPS, length=st.integers(1, 30), answer=st.just(3)), min_size=1, max_size=8).map(
        lambda steps: steps * (80 // len(steps))
    ),
)


class Play:
    """Runs a script. `sized`: tools and system prompt have unpredictable sizes, too."""

    def __init__(self, *, sized: bool, system: int = 30) -> None:
        self.chat = Chat(system="s" * system)
        self.sized = sized
        self.pending: list[str] = []
        self.late: list[tuple[int, Turn, Window, Message, Any]] = []

    def step(self, number: int, step: Step) -> tuple[History, Window, Any, int]:
        attached = {"tools": ["td"[step.density == 1] * step.tools]} if step.tools else {}
        new = self.new(number, step)
        for message in new:
            self.size(message, step.density)
        if self.sized:
            self.size({"role": "system", "content": self.chat.system}, step.density)
            self.chat.sizes.setdefault(orjson.dumps(attached), int(bound([], attached) * step.density))
        past = self.chat.past(*new, attached=attached, deployment=step.deployment)
        turn, window = self.chat.begin(*new, attached=attached, budget=step.budget, deployment=step.deployment)
        assert window == past.window(step.budget)
        return past, window, attached, turn.number

    def new(self, number: int, step: Step) -> tuple[Message, ...]:
        text = f"{number}:".ljust(step.length, "x")
        if self.pending:
            return tuple(result(call, f"{text}{call}") for call in self.pending)
        return (user(text),)

    def size(self, message: Message, density: float) -> None:
        tokens = MESSAGE_TOKENS + int((bound([message]) - MESSAGE_BOUND) * density)
        self.chat.sizes.setdefault(orjson.dumps(message), tokens)

    def answer(self, number: int, step: Step, window: Window, attached: Any) -> None:
        turn = self.chat.turns[number - 1]
        reply = self.reply_of(number, step)
        match step.outcome:
            case "settled" | "filtered":
                filtered = step.outcome == "filtered"
                self.chat.end(turn, window, reply, attached=attached, filtered=filtered)
                if not filtered:
                    self.pending = [call["id"] for call in reply.get("tool_calls") or ()]
            case "late":
                self.late.append((number + step.settled_after, turn, window, reply, attached))
            case "cleared":
                self.chat.end(turn, window, reply, attached=attached)
                session = self.chat.session
                self.chat.session = replace(session, cleared_through=session.turns, window_start=session.turns + 1)
                self.pending = []
            case _:
                self.chat.end(turn, window, reply, attached=attached, state=State(step.outcome))
        for late in [late for late in self.late if late[0] <= number]:
            _, late_turn, late_window, late_reply, late_attached = late
            self.chat.end(late_turn, late_window, late_reply, attached=late_attached)
            self.late.remove(late)
        self.check_pending()

    def check_pending(self) -> None:
        """Tool calls are pending only if the latest replayed answer has some."""
        replayed = [t for t in self.chat.turns if t.replayable and t.number > self.chat.session.cleared_through]
        last = replayed[-1].messages[-1] if replayed else {}
        pending = [call["id"] for call in last.get("tool_calls") or ()]
        self.pending = pending if self.pending else []

    def reply_of(self, number: int, step: Step) -> Message:
        if step.calls and number % 3 == 0:
            reply = calling(f"{number}a", f"{number}b")
        else:
            reply = {"role": "assistant", "content": f"{number}!".ljust(step.answer, "y")}
        self.size(reply, step.density)
        return reply

    def exchange(self, past: History) -> int:
        """Tokens of the exchange that new tool results belong to."""
        if past.new[0]["role"] != "tool":
            return 0
        users = [at for at, shown in enumerate(past.turns) if shown.messages[0]["role"] == "user"]
        return sum(self.chat.tokens_of(message) for shown in past.turns[users[-1] :] for message in shown.messages)


class TestRandomConversations:
    @settings(max_examples=30)
    @given(SCRIPTS)
    def test_history_never_exceeds_the_prompt_budget(self, script: list[Step]) -> None:
        play = Play(sized=False)
        for at, step in enumerate(script, 1):
            try:
                past, window, attached, number = play.step(at, step)
            except ContextTooLong:
                play.pending = []
                continue
            history = sum(play.chat.tokens_of(message) for message in window.messages[1 : -len(past.new)])
            if history > play.exchange(past):
                fixed = play.chat.fixed(attached) + estimate(past.new)
                # A late answer changes which messages are replayed around it, so the sizes of those turns are inexact.
                late = any(each.outcome == "late" for each in script[:at])
                assert history + fixed <= step.budget * (1.25 if late else 1)
            play.answer(number, step, window, attached)

    @settings(max_examples=30)
    @given(SCRIPTS, st.integers(0, 600))
    def test_prompt_is_never_larger_than_its_bound(self, script: list[Step], system: int) -> None:
        play = Play(sized=True, system=system)
        for at, step in enumerate(script, 1):
            try:
                past, window, attached, number = play.step(at, step)
            except ContextTooLong:
                play.pending = []
                continue
            assert play.chat.prompt(window, attached) <= window.bound
            if halved := past.halved(window):
                assert play.chat.prompt(halved, attached) <= halved.bound
            play.answer(number, step, window, attached)

    @settings(max_examples=25)
    @given(SCRIPTS)
    def test_prompt_messages_are_always_valid_for_the_service(self, script: list[Step]) -> None:
        play = Play(sized=True)
        for at, step in enumerate(script, 1):
            try:
                past, window, attached, number = play.step(at, step)
            except ContextTooLong:
                play.pending = []
                continue
            for shown in filter(None, (window, past.halved(window))):
                assert_accepted(shown)
                assert shown.messages[1]["role"] == "user"
                assert shown.messages[-len(past.new) :] == past.new
                assert len({turn.turn.number for turn in past.turns if turn.turn.number >= shown.first}) < MAX_TURNS
            play.answer(number, step, window, attached)

    @settings(max_examples=60)
    @given(st.lists(st.builds(replace, STEPS, outcome=st.sampled_from(["settled", "failed"])), min_size=2, max_size=40))
    def test_prompt_prefix_is_stable_between_window_moves(self, script: list[Step]) -> None:
        play = Play(sized=True)
        answered: Window | None = None
        for at, step in enumerate(script, 1):
            _, window, attached, number = play.step(at, step)
            if answered and answered.first == window.first:
                assert window.messages[: len(answered.messages)] == answered.messages
            play.answer(number, step, window, attached)
            answered = window if step.outcome == "settled" else answered


class TestThroughTheApp:
    @pytest.mark.acceptance
    async def test_conversation_of_300_turns_stays_within_the_budget(
        self, serve: Serve, environ: dict[str, str], fake: AzureOpenAI
    ) -> None:
        context_tokens, max_tokens = 4_000, 40
        limits = {"CONTEXT_TOKENS": str(context_tokens), "AZURE_OPENAI_MAX_TOKENS": str(max_tokens)}
        fake.context_tokens, fake.chunk_tokens = context_tokens, 50
        async with serve(environ | limits) as api:
            for number in range(1, 301):
                if number % 50 == 0:
                    fake.fault(429, retry_after=0)
                    response = await send_message(api, f"{number}: this one fails")
                    assert response.status_code == 429
                else:
                    await answer(api, f"{number}: " + "the quick brown fox jumps over the lazy dog " * 2)
        assert_cache_friendly(fake)

    async def test_message_rejected_as_too_long_does_not_move_the_window(
        self, api: httpx.AsyncClient, fake: AzureOpenAI
    ) -> None:
        fake.context_tokens = 16_000
        await answer(api, "My name is Ada.")
        response = await send_message(api, "word " * 16_000)
        assert response.json()["error"]["code"] == "context_too_long"
        await answer(api, "What is my name?")
        shown = [message["content"] for message in fake.requests[-1].body["messages"]]
        assert shown[1:] == ["My name is Ada.", "echo: My name is Ada.", "What is my name?"]


def assert_cache_friendly(fake: AzureOpenAI) -> None:
    """Prompts stay within the limit, window moves are rare and large, and the prefix is byte-identical between them."""
    sent = [request.body["messages"] for request in fake.requests]
    sizes = [prefixes(request.body)[-1][1] for request in fake.requests]
    assert max(sizes) <= 4_000 - 40
    moves = [at for at in range(1, len(sent)) if sent[at][1] != sent[at - 1][1]]
    assert len(moves) <= 300 / 20
    assert all(sizes[at] <= 4_000 * 0.6 for at in moves)
    answered = 0
    for at in range(1, len(sent)):
        if at not in moves:
            assert sent[at][: len(sent[answered])] == sent[answered]
        failed = "this one fails" in sent[at][-1]["content"]
        answered = answered if failed else at
    prompt, cached = sum(b.prompt_tokens for b in fake.meter), sum(b.cached_tokens for b in fake.meter)
    assert cached > prompt * 0.7
