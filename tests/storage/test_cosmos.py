"""Azure Cosmos DB for Table: the documented differences, as tests/support/cosmos.py makes them. `--cosmos` runs other
tests against them, too."""

import asyncio
from collections.abc import AsyncIterator, Iterator
from contextlib import aclosing
from dataclasses import replace
from datetime import UTC, date, datetime

import pytest
from azure.data.tables.aio import TableServiceClient

from shared.access.identity import Identity, ServiceAccess
from shared.domain.clock import SystemClock
from shared.errors import StorageUnavailable, VersionConflict
from shared.settings import Settings, SettingsError
from shared.storage import connect, cosmos_tables
from shared.storage import session_rows as rows
from shared.storage.cosmos_tables import CosmosTable, CosmosTables
from shared.storage.entities import Row
from shared.storage.ledger_rows import ledger_keys
from shared.storage.tables import Table, Write
from tests.conftest import Serve
from tests.support import cosmos
from tests.support.chat_client import answer, get_json, send_message
from tests.support.ledger_rows import entry

IDENTITY = Identity(None, in_azure=True, clock=SystemClock())
ACCESS = ServiceAccess.by_setting("Table storage", "TABLES_CONNECTION_STRING")


@pytest.fixture
def service(azurite_port: int) -> Iterator[cosmos.CosmosTables]:
    with cosmos.CosmosTables(azurite_port, every=0) as service:
        yield service


@pytest.fixture
async def table(service: cosmos.CosmosTables, prefix: str) -> AsyncIterator[Table]:
    tables = CosmosTables(cosmos.connection_string(service.port), None, IDENTITY, ACCESS, SystemClock())
    yield tables.table(f"{prefix}rows")
    await tables.close()


def row(key: str, partition: str = "p", **properties: object) -> Row:
    return {"PartitionKey": partition, "RowKey": key, **properties}


async def filled(table: Table, partitions: list[str], count: int) -> list[tuple[str, str]]:
    for partition in partitions:
        writes = [Write("put", row(f"{number:03}", partition, text="x" * 50)) for number in range(count)]
        for start in range(0, count, 100):
            await table.commit(writes[start : start + 100])
    return [(partition, f"{number:03}") for partition in sorted(partitions) for number in range(count)]


class TestOrder:
    """The service returns rows in any order, on pages of any size, some of them empty."""

    @pytest.mark.parametrize(
        ("rows", "characters", "condition"),
        [
            (5_000, 4_000_000, "PartitionKey ge @first"),
            (7, 4_000_000, "PartitionKey eq @first or (PartitionKey eq @last and RowKey ge @key)"),
            (2, 4_000_000, "PartitionKey ge @first"),
            (5_000, 900, "PartitionKey ge @first"),
        ],
    )
    async def test_rows_come_in_key_order_in_ranges_of_any_size(
        self, table: Table, monkeypatch: pytest.MonkeyPatch, rows: int, characters: int, condition: str
    ) -> None:
        monkeypatch.setattr(cosmos_tables, "MAX_ROWS", rows)
        monkeypatch.setattr(cosmos_tables, "MAX_CHARACTERS", characters)
        keys = await filled(table, ["b", "a"], 12)
        query = table.query(condition, {"first": "a", "last": "b", "key": "000"}, select=["text", "RowKey"])
        stored = [each async for each in query]
        assert [each["RowKey"] for each in stored] == [key for _, key in keys]
        assert stored[0].keys() == {"RowKey", "text", "etag"}

    async def test_rows_are_read_about_three_times_at_most(
        self, service: cosmos.CosmosTables, table: Table, monkeypatch: pytest.MonkeyPatch
    ) -> None:
        monkeypatch.setattr(cosmos_tables, "MAX_ROWS", 20)
        await filled(table, ["p"], 200)
        read = 0
        rows = CosmosTable._rows

        async def counted(*arguments: object) -> tuple[list[Row], bool]:
            nonlocal read
            part = await rows(*arguments)  # type: ignore[arg-type]
            read += len(part[0])
            return part

        monkeypatch.setattr(CosmosTable, "_rows", counted)
        assert len([each async for each in table.query("PartitionKey eq @p", {"p": "p"})]) == 200
        assert read <= 3 * 200

    async def test_reader_that_stops_early_reads_only_the_first_range(
        self, service: cosmos.CosmosTables, table: Table, monkeypatch: pytest.MonkeyPatch
    ) -> None:
        monkeypatch.setattr(cosmos_tables, "MAX_ROWS", 10)
        await filled(table, ["p"], 30)
        before = service.pages
        async with aclosing(table.query("PartitionKey eq @p", {"p": "p"})) as rows:
            assert (await anext(rows))["RowKey"] == "000"
        first = service.pages - before
        assert len([each async for each in table.query("PartitionKey eq @p", {"p": "p"})]) == 30
        assert first < (service.pages - before - first) / 2


class TestReservedNames:
    @pytest.mark.parametrize("name", ["id", "ID", "rid", "ResourceId"])
    async def test_reserved_property_reads_back_as_written(self, table: Table, name: str) -> None:
        etag = await table.put(row("k", **{name: "1"}))
        await table.merge(row("k", **{name: "2"}), etag)
        assert (await table.get("p", "k") or {})[name] == "2"
        [stored] = [each async for each in table.query("PartitionKey eq @p", {"p": "p"}, select=[name])]
        assert stored[name] == "2"
        await table.commit([Write("put", row("k", **{name: "3"}), stored["etag"])])
        assert (await table.get("p", "k") or {})[name] == "3"


class TestRefusals:
    async def test_request_above_the_throughput_is_sent_again(self, azurite_port: int, prefix: str) -> None:
        with cosmos.CosmosTables(azurite_port, every=2) as busy:
            tables = CosmosTables(cosmos.connection_string(busy.port), None, IDENTITY, ACCESS, SystemClock())
            table = tables.table(f"{prefix}rows")
            etag = await table.put(row("a"))
            await table.commit([Write("put", row("a", value=1), etag), Write("put", row("b"))])
            await table.merge(row("b", value=2), "*")
            assert [each["value"] async for each in table.query("PartitionKey eq @p", {"p": "p"})] == [1, 2]
            await table.delete("p", "a", "*")
            await tables.close()
            assert busy.refused >= 4

    async def test_endless_refusal_is_storage_unavailable(
        self, azurite_port: int, prefix: str, monkeypatch: pytest.MonkeyPatch
    ) -> None:
        monkeypatch.setattr(cosmos_tables, "_PAUSES_S", (0.0, 0.0))
        with cosmos.CosmosTables(azurite_port, every=1) as busy:
            tables = CosmosTables(cosmos.connection_string(busy.port), None, IDENTITY, ACCESS, SystemClock())
            with pytest.raises(StorageUnavailable):
                await tables.table(f"{prefix}rows").commit([Write("put", row("a")), Write("put", row("b"))])
            await tables.close()

    @pytest.mark.parametrize("failing", [0, 1, 2])
    async def test_conflict_names_the_write_that_failed_although_the_answer_does_not(
        self, table: Table, failing: int
    ) -> None:
        stale = await table.put(row("stale"))
        await table.put(row("stale", value=1), stale)
        bad = [Write("put", row("stale")), Write("put", row("stale"), stale), Write("delete", row("gone"), "*")]
        for write in bad:
            writes = [Write("put", row("a")), Write("put", row("b"))]
            writes.insert(failing, write)
            with pytest.raises(VersionConflict) as conflict:
                await table.commit(writes)
            assert conflict.value.index == failing


class TestApp:
    """The app as its settings build it."""

    @pytest.fixture
    def environ(self, environ: dict[str, str], cosmos_port: int) -> dict[str, str]:
        return environ | {"TABLES_CONNECTION_STRING": cosmos.connection_string(cosmos_port), "TABLES_CLIENT": "sdk"}

    async def test_turns_are_stored_and_replayed_newest_first_past_the_window(
        self, serve: Serve, environ: dict[str, str]
    ) -> None:
        async with serve(environ) as api:
            for number in range(5):
                await answer(api, f"message {number}", "s")
            session = await get_json(api, "/api/sessions/s")
            history = await get_json(api, "/api/sessions/s/messages?limit=3")
        assert session["turns"] == 5
        assert [turn["turn"] for turn in history["turns"]] == [5, 4, 3]

    async def test_limited_calls_of_many_sessions_are_counted_exactly(
        self, serve: Serve, environ: dict[str, str]
    ) -> None:
        async with serve(environ | {"LIMITS": '{"total": {"requests_per_minute": 6}}'}) as api:
            responses = await asyncio.gather(*(send_message(api, "hello", f"s{number}") for number in range(9)))
        assert sorted(response.status_code for response in responses) == [200] * 6 + [429] * 3

    @pytest.mark.filterwarnings("ignore:Sending a large body:ResourceWarning")  # of aiohttp, above 1 MB
    async def test_message_that_exceeds_a_transaction_is_refused_before_the_model_is_called(
        self, serve: Serve, environ: dict[str, str]
    ) -> None:
        async with serve(environ | {"MAX_MESSAGE_BYTES": "500000"}) as api:
            body = {"session_id": "s", "system": "漢" * 80_000, "message": "漢" * 80_000}
            first = await api.post("/api/chat", json=body)
            second = await api.post("/api/chat", json={"session_id": "s", "message": "漢" * 160_000})
            third = await api.post("/api/chat", json={"session_id": "s", "message": "漢" * 240_000})
        assert (first.status_code, second.status_code, third.status_code) == (200, 200, 413)


class TestSettings:
    ADDRESSES = (
        {"TABLES_ENDPOINT": "https://x.table.cosmos.azure.com"},
        {
            "TABLES_CONNECTION_STRING": "AccountName=x;AccountKey=AAAA;TableEndpoint=https://x.table.cosmosdb.azure.com:443/"
        },
        {"TABLES_CONNECTION_STRING": "AccountName=x;AccountKey=AAAA;EndpointSuffix = cosmos.azure.com"},
    )

    @pytest.mark.parametrize("address", ADDRESSES)
    async def test_address_of_cosmos_selects_its_client(self, address: dict[str, str]) -> None:
        settings = Settings.from_env({"AZURE_OPENAI_ENDPOINT": "https://x.openai.azure.com", **address}).tables
        tables = connect.connect(settings, IDENTITY, SystemClock())
        assert isinstance(tables, CosmosTables)
        await tables.close()

    @pytest.mark.parametrize("address", ADDRESSES)
    def test_client_of_table_storage_is_refused_with_the_address_of_cosmos(self, address: dict[str, str]) -> None:
        environ = {"AZURE_OPENAI_ENDPOINT": "https://x.openai.azure.com", "TABLES_CLIENT": "http", **address}
        with pytest.raises(SettingsError, match="TABLES_CLIENT is 'http'"):
            Settings.from_env(environ)

    @pytest.mark.parametrize(
        ("endpoint", "client", "is_cosmos"),
        [
            ("http://localhost:8902", "sdk", True),
            ("http://LOCALHOST:8902", "sdk", True),
            ("http://localhost/x", "sdk", True),
            ("http://localhost.example:8902", "sdk", False),
            ("http://localhost:8902", "http", False),
            ("http://localhost:10002/devstoreaccount1", "sdk", False),
            ("http://127.0.0.1:10003/devstoreaccount1", "sdk", False),
        ],
    )
    def test_localhost_is_cosmos_where_azure_data_tables_takes_it_for_it(
        self, endpoint: str, client: str, is_cosmos: bool
    ) -> None:
        connection = f"AccountName=x;AccountKey=AAAA;TableEndpoint={endpoint}"
        environ = {"TABLES_CONNECTION_STRING": connection, "TABLES_CLIENT": client}
        settings = Settings.from_env({"AZURE_OPENAI_ENDPOINT": "https://x.openai.azure.com", **environ}).tables
        assert settings.cosmos == is_cosmos
        assert TableServiceClient.from_connection_string(connection)._cosmos_endpoint == (
            is_cosmos or (client == "http" and "localhost" in endpoint)
        )

    async def test_tokens_are_for_cosmos(self) -> None:
        scopes = list[tuple[str, ...]]()

        class Recorded(Identity):
            async def get_token(self, *requested: str, **options: object) -> object:  # type: ignore[override]
                scopes.append(requested)
                raise OSError

        settings = Settings.from_env(
            {
                "AZURE_OPENAI_ENDPOINT": "https://x.openai.azure.com",
                "TABLES_ENDPOINT": "https://x.table.cosmos.azure.com",
            }
        )
        tables = connect.connect(settings.tables, Recorded(None, in_azure=True, clock=SystemClock()), SystemClock())
        with pytest.raises(StorageUnavailable):
            await tables.table("rows").get("p", "k")
        await tables.close()
        assert set(scopes) == {("https://cosmos.azure.com/.default",)}


def test_longest_row_keys_fit() -> None:
    session, hashed = "s" * 64, "f" * 64
    limited = replace(entry(date(2026, 11, 29)).call, id="c" * 32, minute=datetime(2026, 11, 29, tzinfo=UTC))
    keys = [
        rows.branch_key(session),
        rows.record_key(hashed),
        rows.owner_key("!" + "9" * 20, session),
        ledger_keys(limited, session, 9_999_999_999)[1],
        f"!key:{'n' * 64}",
    ]
    assert max(len(key.encode()) for key in keys) <= cosmos.MAX_ROW_KEY_BYTES
