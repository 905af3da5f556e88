"""The maximum size of a turn, and how an answer that does not fit in a row is cut."""

import json
from dataclasses import replace
from datetime import UTC, date, datetime
from decimal import Decimal
from typing import Any

import pytest
from hypothesis import given
from hypothesis import strategies as st

from shared.domain.calls import Call, Rates, State, Usage
from shared.domain.conversation import Lease, Message, Session, Turn
from shared.domain.items import items_of
from shared.errors import MessageTooLarge
from shared.storage import session_rows as rows
from shared.storage.row_size import BYTES_PER_ANSWER_TOKEN, MAX_TEXT_BYTES, check_size, cut_to_fit, text_bytes

NOW = datetime(2026, 3, 1, 12, 30, 0, 123456, tzinfo=UTC)
MEBIBYTE = 1_048_576  # maximum of an entity: https://learn.microsoft.com/azure/storage/tables/scalability-targets
SESSION = Session(id="s" * 64, created=NOW, updated=NOW, system="", deployment="chat")


def turn_of(*messages: Message, **extras: Any) -> Turn:
    calls = tuple(
        Call(
            id=str(number) * 32,
            day=date(2026, 3, 1),
            deadline=NOW,
            deployment="d" * 64,
            worst_case=Decimal("0.123456789012345678"),
            state=State.SETTLED,
            usage=Usage(prompt_tokens=10**9, completion_tokens=10**6),
            cost=Decimal("123456.123456789012345678"),
            rates=Rates(input=Decimal(1), cached_input=Decimal(1), cache_write=Decimal(1), output=Decimal(1)),
            model="m" * 100,
            endpoint="e" * 250,
            reason="r" * 50,
        )
        for number in (1, 2)
    )
    return Turn(
        number=1, started=NOW, finished=NOW, calls=calls, messages=messages, extras=extras, finish_reason="tool_calls"
    )


def entity_bytes(row: dict[str, Any]) -> int:
    """As the service counts: two bytes per character of names and text, plus overhead per entity and property."""
    sizes = {bool: 1, int: 8, datetime: 8}
    total = 4 + 2 * (len(row["PartitionKey"]) + len(row["RowKey"]))
    for name, value in row.items():
        if value is None or name in ("PartitionKey", "RowKey"):
            continue
        text = str(value).encode("utf-16-le")
        pieces = -(-len(text) // 65_534) or 1
        total += pieces * (8 + 2 * (len(name) + 3))
        total += sizes.get(type(value), 0) or len(text) + 4 * pieces
    return total


def utf16_units(text: str) -> int:
    return len(text.encode("utf-16-le")) // 2


def with_text(turn: Turn, text: str) -> Turn:
    return replace(turn, messages=(turn.messages[0], {"role": "assistant", "content": text}))


def fits(turn: Turn, answer_tokens: int) -> bool:
    try:
        check_size(SESSION, turn, answer_tokens)
    except MessageTooLarge:
        return False
    return True


USER: Message = {"role": "user", "content": "hi"}


class TestCutToFit:
    @given(
        st.sampled_from(["a", "é", "\N{GRINNING FACE}", '"', "\x00", "\n"]),
        st.integers(0, 1_200_000),
        st.sampled_from(["content", "refusal", "tool_calls", "audio", "reasoning_content", "x" * 70_000]),
        st.integers(0, 400_000),
        st.integers(0, 3_000),
    )
    def test_cut_turn_fits_in_a_row_and_keeps_its_calls(
        self, character: str, count: int, field: str, extra_size: int, fields: int
    ) -> None:
        text = character * count
        answer: dict[str, Any] = {"role": "assistant", "content": None} | {f"field {n}": n for n in range(fields)}
        answer[field] = [{"id": "a", "function": {"arguments": text}}] if field == "tool_calls" else text
        extras = {"logprobs": {"content": ["x" * extra_size]}, "content_filter": {"prompt": ["y" * extra_size]}}
        turn = cut_to_fit(turn_of(USER, answer, **extras))
        assert entity_bytes(rows.from_turn("s" * 64, turn)) < MEBIBYTE
        assert turn.calls == turn_of().calls
        assert turn.messages[0] == USER
        assert turn.messages[1]["role"] == "assistant"
        assert bool(turn.truncated) == ((turn.messages[1], turn.extras) != (answer, extras))

    def test_turn_that_fits_is_unchanged(self) -> None:
        turn = turn_of(USER, {"role": "assistant", "content": "x" * 400_000}, logprobs={"content": ["x"] * 1_000})
        assert cut_to_fit(turn) is turn

    def test_logprobs_are_dropped_before_any_text_is_cut(self) -> None:
        answer: Message = {"role": "assistant", "content": "x" * 400_000}
        turn = cut_to_fit(turn_of(USER, answer, logprobs={"content": ["x" * 200_000]}, content_filter={"a": 1}))
        assert turn.extras == {"content_filter": {"a": 1}}
        assert turn.messages == (USER, answer)
        assert turn.truncated == ("logprobs",)

    def test_fields_of_an_answer_are_dropped_in_order_until_it_fits(self) -> None:
        answer: dict[str, Any] = {"role": "assistant", "content": "x" * 150_000, "annotations": [], "reasoning": "y"}
        answer |= {"tool_calls": [{"id": "a", "function": {"arguments": "{}"}}], "audio": {"data": "z"}}
        order = ["logprobs", "audio", "annotations", "reasoning", "tool_calls", "content"]
        for field, expected in {"audio": 2, "reasoning": 4, "tool_calls": 5, "content": 6}.items():
            large: dict[str, Any] = answer | {field: "x" * 500_000}
            turn = cut_to_fit(turn_of(USER, large, logprobs={"content": ["x"]}))
            assert turn.truncated == tuple(order[:expected]), field
            uncut = {name: value for name, value in large.items() if name not in turn.truncated}
            assert {name: turn.messages[1][name] for name in uncut} == uncut

    def test_request_without_an_answer_is_not_cut(self) -> None:
        turn = cut_to_fit(turn_of({"role": "user", "content": "x" * 400_000}, logprobs={"content": ["x" * 200_000]}))
        assert turn.messages == ({"role": "user", "content": "x" * 400_000},)
        assert turn.truncated == ("logprobs",)

    @pytest.mark.parametrize("kind", ["content", "refusal"])
    def test_cut_text_keeps_its_beginning(self, kind: str) -> None:
        text = "".join(map(str, range(150_000)))
        turn = cut_to_fit(turn_of(USER, {"role": "assistant", "content": None, kind: text}))
        remaining = turn.messages[1]["content"]
        assert text.startswith(remaining)
        assert len(remaining) > 100_000
        assert turn.truncated == ("content",)

    def test_tool_calls_that_do_not_fit_are_dropped_but_their_text_is_kept(self) -> None:
        calls = [{"id": "a", "function": {"arguments": "x" * 600_000}}]
        turn = cut_to_fit(turn_of(USER, {"role": "assistant", "content": "I look.", "tool_calls": calls}))
        assert turn.messages[1] == {"role": "assistant", "content": "I look."}

    @pytest.mark.parametrize("calls_first", [False, True])
    def test_items_of_a_cut_answer_keep_their_order(self, calls_first: bool) -> None:
        calls = [{"id": "a", "function": {"name": "look", "arguments": "{}"}}]
        answer: Message = {"role": "assistant", "content": "I look.", "tool_calls": calls}
        cited: Message = {**answer, "annotations": [{"type": "cited", "cited": {"text": "x" * 600_000}}]}
        turn = replace(
            turn_of(USER, cited), input=items_of(USER), output=items_of(cited, calls_first=calls_first), extras={}
        )
        assert cut_to_fit(turn).output == items_of(answer, calls_first=calls_first)


class TestCheckSize:
    @given(st.integers(0, 600_000), st.integers(1, 130_000))
    def test_turn_that_passes_the_check_has_room_for_its_answer(self, count: int, tokens: int) -> None:
        message: Message = {"role": "user", "content": "x" * count}
        if fits(turn_of(message), tokens):
            answer: Message = {"role": "assistant", "content": "four" * tokens}
            assert not cut_to_fit(turn_of(message, answer)).truncated

    def test_largest_answer_that_fits_passes_and_one_more_token_is_rejected(self) -> None:
        turn = turn_of(USER)
        tokens = (MAX_TEXT_BYTES - text_bytes(turn)) // BYTES_PER_ANSWER_TOKEN
        check_size(SESSION, turn, tokens)
        with pytest.raises(MessageTooLarge, match="room for its answer"):
            check_size(SESSION, turn, tokens + 1)

    def test_head_with_the_largest_system_prompt_fits_in_a_row(self) -> None:
        head = replace(SESSION, system="x" * 500_000, deployment="d" * 64, owner="o" * 64)
        check_size(head, turn_of(USER), 1)
        assert entity_bytes(rows.from_session(replace(head, lease=Lease(call="c" * 32, until=NOW)))) < MEBIBYTE

    @pytest.mark.parametrize(("character", "count"), [("x", 500_001), ("中", 166_667), ("\N{GRINNING FACE}", 83_334)])
    def test_larger_system_prompt_or_view_is_rejected(self, character: str, count: int) -> None:
        with pytest.raises(MessageTooLarge, match="system prompt"):
            check_size(replace(SESSION, system=character * count), turn_of(USER), 1)
        with pytest.raises(MessageTooLarge, match="instructions"):
            check_size(SESSION, turn_of(USER), 1, view=character * count)

    @pytest.mark.parametrize("character", ["x", "é", "中", "\N{GRINNING FACE}", '"', "\\", "\x00", "\n"])
    def test_largest_turn_beside_the_largest_other_text_fits_in_a_transaction(self, character: str) -> None:
        """A transaction has the system prompt or the view beside the turn; the turn's text grows up to the limit."""
        other = character * ((MAX_TEXT_BYTES - 2) // max(2 * utf16_units(character), len(json.dumps(character)) - 2))
        session = replace(SESSION, system=other)
        check_size(session, turn_of(USER), 1)
        check_size(SESSION, turn_of(USER), 1, view=other)
        turn = cut_to_fit(turn_of(USER, {"role": "assistant", "content": character * MAX_TEXT_BYTES}))
        while text_bytes(longer := with_text(turn, turn.messages[-1]["content"] + character * 1_000)) <= MAX_TEXT_BYTES:
            turn = longer
        sent = len(
            json.dumps(rows.from_session(session), default=str)
            + json.dumps(rows.from_turn("s" * 64, turn), default=str)
        )
        assert sent < 4 * MEBIBYTE
