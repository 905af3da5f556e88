"""How values are written down: nothing is lost on the way, rows sort as they are read, none is too large."""

from dataclasses import replace
from datetime import UTC, date, datetime
from decimal import Decimal
from typing import Any

import pytest
from hypothesis import given
from hypothesis import strategies as st

from shared import rows
from shared.conversation import (
    Call,
    Entry,
    Lease,
    Message,
    Rates,
    Removal,
    Session,
    State,
    Totals,
    Turn,
    Usage,
    Used,
    digest,
)
from shared.sessions import Sessions
from tests.conftest import Tables

NOW = datetime(2026, 3, 1, 12, 30, 0, 123456, tzinfo=UTC)
MEBIBYTE = 1_048_576  # of an entity: https://learn.microsoft.com/azure/storage/tables/scalability-targets

TIMES = st.datetimes(datetime(2020, 1, 1), datetime(2100, 1, 1), timezones=st.just(UTC))  # noqa: DTZ001
TEXT = st.text(st.characters(exclude_categories=["Cs"]), max_size=20)
SOME = st.none() | TEXT.filter(bool)
MONEY = st.decimals(0, 10**9, places=18)
TOKENS = st.integers(0, 2**62)
USAGES = st.builds(
    Usage,
    prompt_tokens=TOKENS,
    cached_tokens=TOKENS,
    cache_write_tokens=TOKENS,
    completion_tokens=TOKENS,
    reasoning_tokens=TOKENS,
)
RATES = st.builds(Rates, input=MONEY, cached_input=MONEY, cache_write=MONEY, output=MONEY)
SESSION_IDS = st.from_regex(r"\A[A-Za-z0-9][A-Za-z0-9._-]{0,63}\Z")
CALL_IDS = st.uuids().map(lambda uuid: uuid.hex)
CALLS = st.builds(
    Call,
    id=CALL_IDS,
    day=st.dates(date(2020, 1, 1), date(2100, 1, 1)),
    deadline=TIMES,
    deployment=TEXT.filter(bool),
    worst_case=st.none() | MONEY,
    state=st.sampled_from(State),
    usage=st.none() | USAGES,
    cost=st.none() | MONEY,
    rates=st.none() | RATES,
    model=SOME,
    endpoint=SOME,
    reason=SOME,
)
MESSAGES: st.SearchStrategy[Message] = st.fixed_dictionaries(
    {"role": st.sampled_from(["user", "assistant", "tool"]), "content": st.none() | TEXT},
    optional={"tool_call_id": TEXT, "tool_calls": st.lists(st.dictionaries(TEXT, TEXT, max_size=2), max_size=2)},
)
TURNS = st.builds(
    Turn,
    number=st.integers(1, 9_999_999_998),
    started=TIMES,
    calls=st.lists(CALLS, min_size=1, max_size=2).map(tuple),
    messages=st.lists(MESSAGES, max_size=3).map(tuple),
    window_start=st.integers(1, 10**9),
    past_tokens=st.integers(0, 10**7),
    finished=st.none() | TIMES,
    finish_reason=SOME,
    truncated=st.booleans(),
    extras=st.dictionaries(TEXT, st.lists(TEXT, max_size=2), max_size=2),
    etag=st.just("e"),
)
TOTALS = st.builds(
    Totals,
    usage=USAGES,
    cost=MONEY,
    unpriced_turns=TOKENS,
    unaccounted_calls=TOKENS,
    unaccounted=MONEY,
    unbounded_calls=TOKENS,
)
SESSIONS = st.builds(
    Session,
    id=SESSION_IDS,
    created=TIMES,
    updated=TIMES,
    system=TEXT,
    deployment=TEXT.filter(bool),
    owner=SOME,
    turns=st.integers(0, 9_999_999_998),
    totals=TOTALS,
    window_start=st.integers(1, 10**9),
    cleared_through=st.integers(0, 10**9),
    lease=st.none() | st.builds(Lease, call=CALL_IDS, until=TIMES),
    removal=st.none() | st.builds(Removal, id=CALL_IDS, erase=st.booleans()),
    first_key=SOME,
    etag=st.just("e"),
)


def stored(row: dict[str, Any]) -> dict[str, Any]:
    """As storage gives it back: no properties without a value, money as text."""
    plain = {name: format(value, "f") if isinstance(value, Decimal) else value for name, value in row.items()}
    return {name: value for name, value in plain.items() if value is not None} | {"etag": "e"}


class TestRoundTrips:
    @given(SESSIONS)
    def test_a_session_comes_back_as_it_was(self, session: Session) -> None:
        assert rows.to_session(stored(rows.from_session(session))) == session

    @given(SESSION_IDS, TURNS)
    def test_a_turn_comes_back_as_it_was(self, session_id: str, turn: Turn) -> None:
        assert rows.to_turn(stored(rows.from_turn(session_id, turn))) == turn

    @given(CALLS, SESSION_IDS, st.integers(1, 9_999_999_999), SOME)
    def test_a_ledger_entry_comes_back_as_it_was(self, call: Call, session: str, turn: int, caller: str | None) -> None:
        entry = Entry(call=call, session_id=session, turn=turn, caller=caller)
        assert rows.to_entry(stored(rows.from_entry(entry))) == entry

    @given(CALLS)
    def test_so_does_one_of_a_call_without_a_session(self, call: Call) -> None:
        entry = Entry(call=call, session_id=None, turn=0, caller="ada")
        assert rows.to_entry(stored(rows.from_entry(entry))) == entry

    @given(SESSION_IDS, st.text("0123456789abcdef", min_size=64, max_size=64), st.integers(0, 10**9))
    def test_a_used_key_comes_back_as_it_was(self, session_id: str, hashed: str, turn: int) -> None:
        used = Used(key=hashed, request=hashed, turn=turn)
        assert rows.to_used(stored(rows.from_used(session_id, used))) == used

    async def test_head_and_turn_come_back_through_the_table_service(self, tables: Tables) -> None:
        usage = Usage(prompt_tokens=2**40, cached_tokens=2**33, completion_tokens=7, reasoning_tokens=3)
        call = Call(
            id="c",
            day=date(2026, 2, 28),
            deadline=NOW,
            deployment="chat",
            worst_case=Decimal("0.000000000000000001"),
            state=State.SETTLED,
            usage=usage,
            cost=Decimal("12345678901.000000000000000009"),
        )
        said = "\N{GRINNING FACE}" * 30_000
        turn = Turn(number=3, started=NOW, calls=(call,), messages=({"role": "user", "content": said},), finished=NOW)
        session = Session(
            id="s",
            created=NOW,
            updated=NOW,
            system="é" * 40_000,
            deployment="chat",
            turns=3,
            totals=Totals(usage=usage, cost=call.cost or Decimal(0), unaccounted=Decimal("1E-18")),
            lease=Lease(call="c", until=NOW),
            removal=Removal(id="r", erase=False),
        )
        sessions = Sessions(tables.sessions)
        written = await sessions.commit(session, turn)
        head, found = await sessions.head("s"), await sessions.turn("s", 3)
        assert head is not None
        assert found is not None
        assert replace(head, updated=NOW) == session
        assert found == turn
        assert (head.etag, found.etag) == (written[0].etag, written[1].etag)


class TestKeys:
    @given(st.integers(1, 9_999_999_998), st.integers(1, 9_999_999_998), st.text("0123456789abcdef", min_size=1))
    def test_the_head_comes_first_then_the_turns_newest_first_then_the_used_keys(
        self, one: int, other: int, hashed: str
    ) -> None:
        older, newer = sorted((one, other))
        assert rows.HEAD < rows.turn_key(newer) <= rows.turn_key(older) < "turn-~" < rows.used_key(hashed)
        assert (newer == older) == (rows.turn_key(newer) == rows.turn_key(older))

    @given(CALLS, SESSION_IDS, st.integers(1, 10**9), st.integers(1, 10**9))
    def test_in_the_ledger_a_sessions_rows_lie_together_in_the_order_of_its_turns(
        self, call: Call, session: str, one: int, other: int
    ) -> None:
        first, second = rows.ledger_keys(call, session, one), rows.ledger_keys(call, session, other)
        assert first[0] == second[0]
        assert (first[1] < second[1]) == (one < other)

    @given(CALLS, SESSION_IDS, st.sampled_from(State), USAGES)
    def test_a_calls_row_is_the_same_for_whoever_writes_it_and_whenever(
        self, call: Call, session: str, state: State, usage: Usage
    ) -> None:
        later = replace(call, state=state, usage=usage, cost=Decimal(1), model="m", deadline=NOW)
        assert rows.ledger_keys(later, session, 7) == rows.ledger_keys(call, session, 7)

    @given(CALLS, st.none() | SESSION_IDS)
    def test_a_ledger_row_lies_in_one_of_its_days_sixteen_shards(self, call: Call, session: str | None) -> None:
        partition, key = rows.ledger_keys(call, session, 1)
        assert partition in {f"{call.day.isoformat()}-{shard:02}" for shard in range(16)}
        assert partition == f"{call.day}-{int(digest(session or call.id)[:2], 16) % 16:02}"
        assert key.startswith(f"{session or ''}~")

    def test_the_shards_are_used_evenly(self) -> None:
        call = Call(id="c", day=date(2026, 3, 1), deadline=NOW, deployment="chat", worst_case=None)
        used = [rows.ledger_keys(call, f"session-{number}", 1)[0] for number in range(1_600)]
        assert len(set(used)) == 16
        assert max(used.count(partition) for partition in set(used)) < 160

    def test_no_session_can_be_mistaken_for_the_apps_own_partitions(self) -> None:
        assert rows.pointer_partition("0").startswith("~")


def turned(*messages: Message, **extras: Any) -> Turn:
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
    """As the service counts: names and text at two bytes a character, and a few for each entity, property and text."""
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


USER: Message = {"role": "user", "content": "hi"}


class TestSizes:
    @given(
        st.sampled_from(["a", "é", "\N{GRINNING FACE}", '"', "\x00", "\n"]),
        st.integers(0, 1_200_000),
        st.sampled_from(["content", "refusal", "tool_calls"]),
        st.integers(0, 400_000),
    )
    def test_whatever_the_answer_the_turn_fits_a_row_and_keeps_its_calls(
        self, letter: str, letters: int, where: str, logged: int
    ) -> None:
        text = letter * letters
        answer: dict[str, Any] = {"role": "assistant", "content": None}
        answer[where] = [{"id": "a", "function": {"arguments": text}}] if where == "tool_calls" else text
        turn = rows.fitted(turned(USER, answer, logprobs={"content": ["x" * logged]}))
        assert entity_bytes(rows.from_turn("s" * 64, turn)) < MEBIBYTE
        assert turn.calls == turned().calls
        assert turn.messages[0] == USER

    def test_a_turn_that_fits_stays_as_it_is(self) -> None:
        turn = turned(USER, {"role": "assistant", "content": "x" * 400_000}, logprobs={"content": ["x"] * 1_000})
        assert rows.fitted(turn) is turn

    def test_logprobs_go_before_any_text_does(self) -> None:
        said = {"role": "assistant", "content": "x" * 400_000}
        turn = rows.fitted(turned(USER, said, logprobs={"content": ["x" * 200_000]}, content_filter={"a": 1}))
        assert turn.extras == {"content_filter": {"a": 1}}
        assert turn.messages == (USER, said)
        assert turn.truncated

    @pytest.mark.parametrize("kind", ["content", "refusal"])
    def test_what_is_left_of_a_text_is_its_beginning(self, kind: str) -> None:
        text = "".join(map(str, range(150_000)))
        turn = rows.fitted(turned(USER, {"role": "assistant", "content": None, kind: text}))
        left = turn.messages[1]["content"]
        assert text.startswith(left)
        assert len(left) > 100_000
        assert turn.truncated

    def test_tool_calls_that_do_not_fit_go_and_the_words_beside_them_stay(self) -> None:
        calls = [{"id": "a", "function": {"arguments": "x" * 600_000}}]
        turn = rows.fitted(turned(USER, {"role": "assistant", "content": "I look.", "tool_calls": calls}))
        assert turn.messages[1] == {"role": "assistant", "content": "I look."}

    @given(st.integers(0, 600_000), st.integers(1, 130_000))
    def test_what_is_taken_has_room_for_its_answer(self, letters: int, tokens: int) -> None:
        message: Message = {"role": "user", "content": "x" * letters}
        if rows.fits(turned(message), tokens):
            answer: Message = {"role": "assistant", "content": "four" * tokens}
            assert not rows.fitted(turned(message, answer)).truncated

    def test_a_head_with_the_largest_system_prompt_fits_a_row(self) -> None:
        head = Session(id="s" * 64, created=NOW, updated=NOW, system="x" * 500_000, deployment="d" * 64, owner="o" * 64)
        assert entity_bytes(rows.from_session(replace(head, lease=Lease(call="c" * 32, until=NOW)))) < MEBIBYTE
