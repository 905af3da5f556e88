"""How ledger entries are stored: nothing is lost, and every process writes a call to the same row."""

from dataclasses import replace
from datetime import UTC, date, datetime
from decimal import Decimal

from hypothesis import given
from hypothesis import strategies as st

from shared.domain.calls import Call, LedgerEntry, State, Usage
from shared.domain.hashing import sha256_hex
from shared.storage import ledger_rows as rows
from tests.conftest import Tables
from tests.storage.strategies import CALLS, SESSION_IDS, SOME, USAGES, stored

NOW = datetime(2026, 3, 1, 12, 30, 0, 123456, tzinfo=UTC)


class TestRoundTrips:
    @given(CALLS, SESSION_IDS, st.integers(1, 9_999_999_999), SOME)
    def test_a_ledger_entry_comes_back_as_it_was(self, call: Call, session: str, turn: int, caller: str | None) -> None:
        entry = LedgerEntry(call=call, session_id=session, turn=turn, caller=caller)
        assert rows.to_entry(stored(rows.from_entry(entry))) == entry

    @given(CALLS)
    def test_so_does_one_of_a_call_without_a_session(self, call: Call) -> None:
        entry = LedgerEntry(call=call, session_id=None, turn=0, caller="ada")
        assert rows.to_entry(stored(rows.from_entry(entry))) == entry


class TestKeys:
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
        assert partition == f"{call.day}-{int(sha256_hex(session or call.id)[:2], 16) % 16:02}"
        assert key.startswith(f"{session or ''}~")

    def test_the_shards_are_used_evenly(self) -> None:
        call = Call(id="c", day=date(2026, 3, 1), deadline=NOW, deployment="chat", worst_case=None)
        used = [rows.ledger_keys(call, f"session-{number}", 1)[0] for number in range(1_600)]
        assert len(set(used)) == 16
        assert max(used.count(partition) for partition in set(used)) < 160


class TestSteps:
    CALL = Call(id="c", day=date(2026, 2, 28), deadline=NOW, deployment="chat", worst_case=Decimal("0.01"))
    COLUMNS = frozenset({"PartitionKey", "RowKey", "id", "day", "deadline", "state", "deployment", "worst_case"})

    async def test_the_row_of_step_0_has_no_step(self, tables: Tables) -> None:
        entry = LedgerEntry(call=self.CALL, session_id="s", turn=1, caller=None)
        await tables.usage.put(rows.from_entry(entry))

        row = await tables.usage.get(*rows.ledger_keys(self.CALL, "s", 1))

        assert row is not None
        assert row.keys() - {"etag"} == self.COLUMNS
        assert rows.to_entry(row) == entry

    async def test_the_row_of_a_later_step_keeps_it(self, tables: Tables) -> None:
        entry = LedgerEntry(call=replace(self.CALL, step=3), session_id="s", turn=1, caller=None)
        await tables.usage.put(rows.from_entry(entry))

        row = await tables.usage.get(*rows.ledger_keys(entry.call, "s", 1))

        assert row is not None
        assert row["step"] == 3
        assert row.keys() - {"etag", "step"} == self.COLUMNS
        assert rows.to_entry(row) == entry
