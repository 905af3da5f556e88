"""Ledger entries as rows: they read back as written, and every process writes a call to the same row."""

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
    def test_ledger_entry_reads_back_as_written(self, call: Call, session: str, turn: int, caller: str | None) -> None:
        entry = LedgerEntry(call=call, session_id=session, turn=turn, caller=caller)
        assert rows.to_entry(stored(rows.from_entry(entry))) == entry

    @given(CALLS)
    def test_sessionless_ledger_entry_reads_back_as_written(self, call: Call) -> None:
        entry = LedgerEntry(call=call, session_id=None, turn=0, caller="ada")
        assert rows.to_entry(stored(rows.from_entry(entry))) == entry


class TestKeys:
    @given(CALLS, SESSION_IDS, st.integers(1, 10**9), st.integers(1, 10**9))
    def test_ledger_rows_of_a_session_are_adjacent_in_turn_order(
        self, call: Call, session: str, one: int, other: int
    ) -> None:
        first, second = rows.ledger_keys(call, session, one), rows.ledger_keys(call, session, other)
        assert first[0] == second[0]
        assert (first[1] < second[1]) == (one < other)

    @given(CALLS, SESSION_IDS, st.sampled_from(State), USAGES)
    def test_ledger_keys_do_not_depend_on_the_state_of_the_call(
        self, call: Call, session: str, state: State, usage: Usage
    ) -> None:
        later = replace(call, state=state, usage=usage, cost=Decimal(1), model="m", deadline=NOW)
        assert rows.ledger_keys(later, session, 7) == rows.ledger_keys(call, session, 7)

    @given(CALLS, st.none() | SESSION_IDS)
    def test_ledger_row_is_in_one_of_16_shards_of_its_day(self, call: Call, session: str | None) -> None:
        partition, key = rows.ledger_keys(call, session, 1)
        assert partition in {f"{call.day.isoformat()}-{shard:02}" for shard in range(16)}
        assert partition == f"{call.day}-{int(sha256_hex(session or call.id)[:2], 16) % 16:02}"
        assert key.startswith(f"{session or ''}~")

    def test_sessions_are_spread_evenly_over_the_shards(self) -> None:
        call = Call(id="c", day=date(2026, 3, 1), deadline=NOW, deployment="chat", worst_case=None)
        partitions = [rows.ledger_keys(call, f"session-{number}", 1)[0] for number in range(1_600)]
        assert len(set(partitions)) == 16
        assert max(partitions.count(partition) for partition in set(partitions)) < 160


class TestSteps:
    CALL = Call(id="c", day=date(2026, 2, 28), deadline=NOW, deployment="chat", worst_case=Decimal("0.01"))
    COLUMNS = frozenset({"PartitionKey", "RowKey", "id", "day", "deadline", "state", "deployment", "worst_case"})

    async def test_row_of_step_0_has_no_step_column(self, tables: Tables) -> None:
        entry = LedgerEntry(call=self.CALL, session_id="s", turn=1, caller=None)
        await tables.usage.put(rows.from_entry(entry))

        row = await tables.usage.get(*rows.ledger_keys(self.CALL, "s", 1))

        assert row is not None
        assert row.keys() - {"etag"} == self.COLUMNS
        assert rows.to_entry(row) == entry

    async def test_row_of_a_later_step_has_a_step_column(self, tables: Tables) -> None:
        entry = LedgerEntry(call=replace(self.CALL, step=3), session_id="s", turn=1, caller=None)
        await tables.usage.put(rows.from_entry(entry))

        row = await tables.usage.get(*rows.ledger_keys(entry.call, "s", 1))

        assert row is not None
        assert row["step"] == 3
        assert row.keys() - {"etag", "step"} == self.COLUMNS
        assert rows.to_entry(row) == entry
