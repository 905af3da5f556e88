"""Limited calls and the counters of limits, as rows and in transactions."""

from datetime import UTC, date, datetime, timedelta
from decimal import Decimal

from hypothesis import given
from hypothesis import strategies as st

from shared.domain.calls import Call, LedgerEntry, State
from shared.domain.limits import Counter
from shared.storage import counter_rows, ledger_rows
from shared.storage.tables import Write
from tests.conftest import Tables
from tests.storage.strategies import COUNTERS, LIMITED_CALLS, LIMITED_ENTRIES, SESSION_IDS, stored
from tests.support.conservation import all_rows

NOW = datetime(2026, 3, 1, 12, 30, tzinfo=UTC)
MINUTE = timedelta(minutes=1)


class TestRows:
    @given(COUNTERS)
    def test_counter_reads_back_as_written(self, counter: Counter) -> None:
        assert counter_rows.to_counter(stored(counter_rows.from_counter(counter))) == counter

    @given(LIMITED_ENTRIES)
    def test_limited_entry_reads_back_as_written(self, entry: LedgerEntry) -> None:
        assert ledger_rows.to_entry(stored(ledger_rows.from_entry(entry))) == entry

    @given(LIMITED_CALLS, st.none() | SESSION_IDS, st.sampled_from(State))
    def test_row_of_a_fence_is_the_row_of_the_call(self, call: Call, session: str | None, state: State) -> None:
        turn = 1 if session else 0
        fence = ledger_rows.from_entry(LedgerEntry(call=call, session_id=session, turn=turn, caller=None))
        assert (fence["PartitionKey"], fence["RowKey"]) == ledger_rows.ledger_keys(call, session, turn)
        assert ledger_rows.to_entry(stored(fence)).limits == ()

    @given(COUNTERS, LIMITED_ENTRIES)
    def test_counters_lie_before_the_calls_of_their_month(self, counter: Counter, entry: LedgerEntry) -> None:
        row = ledger_rows.from_entry(entry)
        partition, key = counter_rows.counter_keys(counter.name, entry.call.day.replace(day=1))
        assert partition == row["PartitionKey"]
        assert key < row["RowKey"]
        assert key < '"' < row["RowKey"]

    async def test_storage_returns_the_rows_of_a_transaction_as_written(self, tables: Tables) -> None:
        call = Call(
            id="c",
            day=NOW.date(),
            deadline=NOW,
            deployment="chat",
            worst_case=Decimal("0.000000000000000001"),
            max_tokens=2**40,
            minute=NOW,
        )
        entry = LedgerEntry(
            call=call, session_id="s", turn=1, caller="key:ann", limits=("key:ann", "total"), minute=NOW + MINUTE
        )
        counter = Counter(
            name="key:ann", month=date(2026, 3, 1), since=NOW, minute=NOW, held=Decimal("1e-18"), minute_tokens=2**40
        )
        rows = counter_rows.from_counter(counter), ledger_rows.from_entry(entry)

        await tables.usage.commit([Write("put", row) for row in rows])

        first, second = [row async for row in all_rows(tables.usage)]
        assert counter_rows.to_counter(first) == counter
        assert ledger_rows.to_entry(second) == entry
