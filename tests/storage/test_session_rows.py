"""Sessions, turns and idempotency records as rows: they read back as written, and sort in the order of reading."""

from dataclasses import replace
from datetime import UTC, date, datetime
from decimal import Decimal

import orjson
import pytest
from hypothesis import given
from hypothesis import strategies as st

from shared.domain.calls import Call, State, Totals, Usage
from shared.domain.clock import SystemClock
from shared.domain.conversation import STOPPED, Deletion, IdempotencyRecord, Lease, Session, Turn
from shared.domain.items import items_of, messages_of
from shared.storage import session_rows as rows
from shared.storage.sessions import Sessions
from tests.conftest import Tables
from tests.storage.strategies import SESSION_IDS, SESSIONS, TURNS, stored

NOW = datetime(2026, 3, 1, 12, 30, 0, 123456, tzinfo=UTC)
HASHES = st.text("0123456789abcdef", min_size=64, max_size=64)


class TestRoundTrips:
    @given(SESSIONS)
    def test_session_reads_back_as_written(self, session: Session) -> None:
        assert rows.to_session(stored(rows.from_session(session))) == session

    @given(SESSION_IDS, TURNS)
    def test_turn_reads_back_as_written(self, session_id: str, turn: Turn) -> None:
        assert rows.to_turn(stored(rows.from_turn(session_id, turn))) == turn

    @given(SESSION_IDS, HASHES, st.lists(st.integers(1, 10**9), min_size=1, max_size=3).map(tuple))
    def test_idempotency_record_reads_back_as_written(
        self, session_id: str, hashed: str, turns: tuple[int, ...]
    ) -> None:
        record = IdempotencyRecord(key=hashed, request=hashed, turns=turns)
        assert rows.to_record(stored(rows.from_record(session_id, record))) == record

    async def test_head_and_turn_read_back_from_the_table_service_as_written(self, tables: Tables) -> None:
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
        content = "\N{GRINNING FACE}" * 30_000
        turn = Turn(
            number=3, started=NOW, calls=(call,), messages=({"role": "user", "content": content},), finished=NOW
        )
        session = Session(
            id="s",
            created=NOW,
            updated=NOW,
            system="é" * 40_000,
            deployment="chat",
            turns=3,
            totals=Totals(usage=usage, cost=call.cost or Decimal(0), unaccounted=Decimal("1E-18")),
            lease=Lease(call="c", until=NOW),
            deletion=Deletion(id="r", erase=False),
        )
        sessions = Sessions(tables.sessions, SystemClock())
        written = await sessions.commit(session, turn)
        head, stored_turn = await sessions.head("s"), await sessions.turn("s", 3)
        assert head is not None
        assert stored_turn is not None
        assert replace(head, updated=NOW) == session
        assert stored_turn == turn
        assert (head.etag, stored_turn.etag) == (written[0].etag, written[1].etag)


class TestKeys:
    @given(st.integers(1, 9_999_999_998), st.integers(1, 9_999_999_998), st.text("0123456789abcdef", min_size=1))
    def test_rows_sort_head_first_then_newest_turns_then_idempotency_records(
        self, one: int, other: int, hashed: str
    ) -> None:
        older, newer = sorted((one, other))
        assert rows.HEAD < rows.turn_key(newer) <= rows.turn_key(older) < "turn-~" < rows.record_key(hashed)
        assert (newer == older) == (rows.turn_key(newer) == rows.turn_key(older))

    def test_partition_of_an_idempotency_key_is_not_a_valid_session_id(self) -> None:
        assert rows.pointer_partition("0").startswith("~")


class TestStoredNames:
    """Existing rows have these names and formats."""

    SESSION = Session(id="s", created=NOW, updated=NOW, system="", deployment="chat")
    CALL = Call(id="c", day=date(2026, 2, 28), deadline=NOW, deployment="chat", worst_case=Decimal("0.01"))
    FIELDS = (
        '{"id":"c","day":"2026-02-28","deadline":"2026-03-01T12:30:00.123456+00:00","state":"open","deployment":"chat",'
        '"worst_case":"0.01","cost":null,"rates":null,"model":null,"endpoint":null,"reason":null}'
    )

    def test_first_key_column_is_the_partition_of_the_idempotency_key(self) -> None:
        row = rows.from_session(replace(self.SESSION, first_key="0a1b"))
        assert row["first_key"] == rows.pointer_partition("0a1b") == "~key-0a1b"
        assert rows.to_session(stored(row)).first_key == "0a1b"

    @pytest.mark.parametrize(
        ("column", "truncated"),
        [(None, ()), (False, ()), (True, ("answer",)), ('["logprobs","audio"]', ("logprobs", "audio"))],
    )
    def test_truncated_column_is_a_list_and_was_a_boolean(self, column: object, truncated: tuple[str, ...]) -> None:
        turn = Turn(number=1, started=NOW, calls=(self.CALL,), truncated=truncated)
        assert rows.to_turn(stored({**rows.from_turn("s", turn), "truncated": column})) == turn

    def test_idempotency_record_of_one_turn_has_the_columns_of_0_1_0(self) -> None:
        record = IdempotencyRecord(key="0a1b", request="r", turns=(3,))
        row = stored(rows.from_record("s", record))
        assert row == {"PartitionKey": "s", "RowKey": "used-0a1b", "turn": 3, "request": "r", "etag": "e"}
        assert rows.to_record(row) == record

    def test_idempotency_record_of_several_turns_names_the_latest_where_0_1_0_reads_it(self) -> None:
        row = rows.from_record("s", IdempotencyRecord(key="0a1b", request="r", turns=(1, 2, 7)))
        assert (row["turn"], row["earlier_turns"]) == (7, "[1,2]")

    def test_deletion_columns_keep_their_stored_names(self) -> None:
        row = stored(rows.from_session(replace(self.SESSION, deletion=Deletion(id="r", erase=True))))
        assert (row["removal"], row["removal_erases"]) == ("r", True)

    def test_call_of_step_0_has_no_step_field(self) -> None:
        turn = Turn(number=1, started=NOW, calls=(self.CALL,))
        assert rows.from_turn("s", turn)["calls"] == f"[{self.FIELDS}]"
        assert rows.to_turn(stored(rows.from_turn("s", turn))) == turn

    def test_call_of_a_later_step_has_a_step_field(self) -> None:
        turn = Turn(number=1, started=NOW, calls=(self.CALL, replace(self.CALL, id="d", step=1)))
        row = rows.from_turn("s", turn)
        assert [call.get("step") for call in orjson.loads(row["calls"])] == [None, 1]
        assert rows.to_turn(stored(row)) == turn


@pytest.mark.parametrize("text", ["", "Hello"])
def test_stopped_turn_whose_input_ends_with_an_answer_has_only_its_own(text: str) -> None:
    sent = (*items_of({"role": "user", "content": "Hi"}), *items_of({"role": "assistant", "content": "Once"}))
    output = items_of({"role": "assistant", "content": text})
    turn = Turn(
        number=1,
        started=datetime(2026, 3, 1, tzinfo=UTC),
        calls=(),
        messages=(*messages_of(sent), *messages_of(output)),
        input=sent,
        output=output,
        finish_reason=STOPPED,
    )
    restored = rows.to_turn(stored(rows.from_turn("s", turn)))
    assert (restored.messages, restored.answered) == (turn.messages, bool(text))
