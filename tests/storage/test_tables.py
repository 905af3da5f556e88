"""Reading and writing plain rows in a real table service, and the errors that failures raise."""

import asyncio
import re
import time
import uuid
from collections.abc import AsyncIterator, Awaitable, Callable, Iterator
from contextlib import asynccontextmanager, nullcontext, suppress
from dataclasses import dataclass
from datetime import UTC, datetime, timedelta, timezone
from decimal import Decimal
from typing import Any

import pytest
from azure.data.tables.aio import TableClient, TableServiceClient
from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st

from local.azurite import connection_string
from local.parts import free_port
from shared.access.identity import Identity, ServiceAccess
from shared.domain.clock import SystemClock
from shared.domain.conversation import Session
from shared.domain.principal import ANONYMOUS
from shared.errors import StorageUnavailable, VersionConflict
from shared.services import Services
from shared.settings import Settings
from shared.storage import cosmos_tables, sdk_tables, table_service
from shared.storage.cosmos_tables import CosmosTables
from shared.storage.entities import Row
from shared.storage.http_tables import HttpTables
from shared.storage.sdk_tables import SdkTables
from shared.storage.table_service import TableService
from shared.storage.tables import Table, Tables, Write
from tests.support import cosmos
from tests.support.proxy import Action, Answer, Cut, Match, TcpProxy

# The HTTP client warns when it sends more than 1 MiB at once; a character can take 12 bytes in the SDK's JSON.
LARGE = pytest.mark.filterwarnings("ignore:Sending a large body:ResourceWarning")
ONE_TABLE = settings(max_examples=25, suppress_health_check=[HealthCheck.function_scoped_fixture])
MAX_PROPERTY_UNITS = 32_768  # the service's limit, in UTF-16 units
CHARACTERS = st.characters(exclude_categories=["Cs"])
NOW = datetime(2026, 3, 1, 12, 30, 15, 123456, tzinfo=UTC)
SESSION = Session(id="s", created=NOW, updated=NOW, system="", deployment="chat", turns=1)


@pytest.fixture
async def service(azurite_port: int) -> AsyncIterator[TableServiceClient]:
    async with TableServiceClient.from_connection_string(connection_string(azurite_port)) as client:
        yield client


@pytest.fixture
def client(service: TableServiceClient, prefix: str) -> TableClient:
    """A table that does not exist yet."""
    return service.get_table_client(f"{prefix}rows")


def connected(kind: str, port: int) -> Tables:
    """The tables of the Azurite (or of the proxy in front of it) at this port, by the client of this kind."""
    access = ServiceAccess.by_setting("Table storage", "TABLES_CONNECTION_STRING")
    if kind == "cosmos":
        identity = Identity(None, in_azure=True, clock=SystemClock())
        return CosmosTables(cosmos.connection_string(port), None, identity, access, SystemClock())
    if kind == "sdk":
        return SdkTables(connection_string(port), None, Identity(None, in_azure=True, clock=SystemClock()), access)
    return HttpTables(TableService.from_connection_string(connection_string(port), SystemClock()), access)


@asynccontextmanager
async def opened(kind: str, port: int, name: str) -> AsyncIterator[Table]:
    tables = connected(kind, port)
    try:
        yield tables.table(name)
    finally:
        await tables.close()


@pytest.fixture
def without_repeats(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(table_service, "_MAX_REPEATS", 0)
    monkeypatch.setitem(sdk_tables._OPTIONS, "retry_total", 0)
    monkeypatch.setattr(cosmos_tables, "_PAUSES_S", ())


@pytest.fixture(params=["http", "sdk", "cosmos"])
def kind(request: pytest.FixtureRequest) -> str:
    return str(request.param)


@pytest.fixture
def service_port(kind: str, azurite_port: int, cosmos_port: int) -> int:
    """Of the service that the client of this kind is for."""
    return cosmos_port if kind == "cosmos" else azurite_port


@pytest.fixture
async def table(kind: str, service_port: int, client: TableClient) -> AsyncIterator[Table]:
    async with opened(kind, service_port, client.table_name) as table:
        yield table


def row(key: str = "k", partition: str = "p", **properties: Any) -> Row:
    return {"PartitionKey": partition, "RowKey": key, **properties}


async def put_and_get(table: Table, **properties: Any) -> Row:
    key = uuid.uuid4().hex
    etag = await table.put(row(key, **properties))
    stored = await table.get("p", key)
    assert stored is not None
    assert stored.pop("etag") == etag
    assert (stored.pop("PartitionKey"), stored.pop("RowKey")) == ("p", key)
    return stored


def same(one: str, other: str) -> bool:
    """Keeps pytest from computing a diff, which takes minutes for texts of this size."""
    return one == other


async def all_of(rows: AsyncIterator[Row]) -> list[Row]:
    return [row async for row in rows]


@dataclass(frozen=True)
class Long:
    """Up to 300,000 characters, with wide and narrow ones around each position where a piece may end."""

    shift: str
    pattern: str
    length: int

    @property
    def text(self) -> str:
        return (self.shift + self.pattern * (self.length // len(self.pattern) + 1))[: self.length]


LONG = st.builds(
    Long,
    st.sampled_from(["", "a", "\N{GRINNING FACE}"]),
    st.text(CHARACTERS, min_size=1, max_size=7) | st.just("\N{GRINNING FACE}"),
    st.integers(0, 300_000) | st.integers(16_380, 16_390) | st.integers(32_760, 32_776),
)


class TestValues:
    @pytest.mark.parametrize(
        "value",
        ["", "text", "null", "2026-03-01T00:00:00Z", "\x00\x1f", True, False, 0, -1, 2**31, 2**63 - 1, -(2**63)],
    )
    async def test_value_reads_back_as_written(self, table: Table, value: object) -> None:
        stored = (await put_and_get(table, value=value))["value"]
        assert (stored, type(stored)) == (value, type(value))

    @LARGE
    @ONE_TABLE
    @given(LONG)
    async def test_text_of_any_length_reads_back_as_written(self, table: Table, long: Long) -> None:
        stored = await put_and_get(table, value=long.text, other="x")
        assert stored.keys() == {"value", "other"}
        assert same(stored["value"], long.text)

    @LARGE
    @ONE_TABLE
    @given(LONG)
    async def test_long_text_is_split_between_characters_into_pieces_that_fit(
        self, table: Table, client: TableClient, long: Long
    ) -> None:
        await table.put(row(key := uuid.uuid4().hex, value=long.text))
        entity = await client.get_entity("p", key)
        pieces = [entity[f"value_{at}" if at else "value"] for at in range(len(entity) - 2)]
        assert same("".join(pieces), long.text)
        assert all(len(piece.encode("utf-16-le")) <= MAX_PROPERTY_UNITS * 2 for piece in pieces)
        assert len(pieces) <= max(1, -(-len(long.text.encode("utf-16-le")) // (MAX_PROPERTY_UNITS * 2 - 2)))

    @ONE_TABLE
    @given(st.decimals(-(10**12), 10**12, places=18))
    async def test_amount_reads_back_with_its_exact_digits(self, table: Table, amount: Decimal) -> None:
        stored = (await put_and_get(table, value=amount))["value"]
        assert Decimal(stored) == amount
        assert re.fullmatch(r"-?[0-9]+\.[0-9]{18}", stored)

    async def test_none_is_not_stored(self, table: Table) -> None:
        assert await put_and_get(table, value=None, other=1) == {"other": 1}

    @ONE_TABLE
    @given(
        st.datetimes(datetime(1700, 1, 1), datetime(9000, 1, 1)),  # noqa: DTZ001 - the time zone is drawn separately
        st.integers(-12 * 60, 14 * 60),
    )
    async def test_time_reads_back_as_a_plain_datetime_in_utc(
        self, table: Table, local: datetime, minutes: int
    ) -> None:
        value = local.replace(tzinfo=timezone(timedelta(minutes=minutes)))
        stored = (await put_and_get(table, value=value))["value"]
        assert stored == value
        assert type(stored) is datetime
        assert stored.tzinfo is UTC

    @pytest.mark.parametrize("value", [1.5, b"bytes", [1], {"a": 1}])
    async def test_value_of_unsupported_type_raises_type_error_naming_it(self, table: Table, value: object) -> None:
        with pytest.raises(TypeError, match="value can't be stored"):
            await table.put(row(value=value))

    async def test_shorter_text_replaces_all_pieces_of_a_longer_one(self, table: Table) -> None:
        etag = await table.put(row(value="x" * 100_000))
        await table.put(row(value="y"), etag)
        assert await table.get("p", "k") == row(value="y", etag=(await table.get("p", "k") or {})["etag"])


class TestWrites:
    async def test_put_replaces_the_version_that_was_read(self, table: Table) -> None:
        first = await table.put(row(value=1, dropped=True))
        second = await table.put(row(value=2), first)
        assert await table.get("p", "k") == row(value=2, etag=second)
        assert first != second

    async def test_merge_changes_only_the_given_properties(self, table: Table) -> None:
        first = await table.put(row(value=1, other="x"))
        second = await table.merge(row(value=2), first)
        assert await table.get("p", "k") == row(value=2, other="x", etag=second)

    async def test_deleted_row_is_none(self, table: Table) -> None:
        await table.delete("p", "k", await table.put(row()))
        assert await table.get("p", "k") is None

    async def test_deleting_a_deleted_row_is_no_error(self, table: Table) -> None:
        etag = await table.put(row())
        await table.delete("p", "k", etag)
        await table.delete("p", "k", etag)

    async def test_transaction_writes_everything_and_returns_new_etags(self, table: Table) -> None:
        old = await table.put(row("old", value=1, dropped=True))
        deleted = await table.put(row("deleted"))
        etags = await table.commit(
            [
                Write("put", row("old", value=2), old),
                Write("delete", row("deleted"), deleted),
                Write("put", row("new", value="x" * 100_000)),
            ]
        )
        stored = await all_of(table.query("PartitionKey eq @p", {"p": "p"}))
        assert stored == [row("new", value="x" * 100_000, etag=etags[2]), row("old", value=2, etag=etags[0])]
        assert etags[1] == ""

    @pytest.mark.parametrize("failing_write", ["inserted twice", "stale put", "missing row", "stale delete"])
    async def test_transaction_with_one_failed_condition_writes_nothing(self, table: Table, failing_write: str) -> None:
        etag = await table.put(row("existing", value=1))
        stale = await table.put(row("stale", value=1))
        await table.put(row("stale", value=2), stale)
        failing = {
            "inserted twice": Write("put", row("existing")),
            "stale put": Write("put", row("stale"), stale),
            "missing row": Write("put", row("never"), stale),
            "stale delete": Write("delete", row("stale"), stale),
        }
        with pytest.raises(VersionConflict):
            await table.commit([Write("put", row("new")), failing[failing_write]])
        assert await table.get("p", "new") is None
        assert await table.get("p", "existing") == row("existing", value=1, etag=etag)


class TestVersionConflicts:
    async def test_inserting_an_existing_row_raises_version_conflict(self, table: Table) -> None:
        await table.put(row(value=1))
        with pytest.raises(VersionConflict):
            await table.put(row(value=2))
        assert (await table.get("p", "k") or {})["value"] == 1

    @pytest.mark.parametrize("operation", ["put", "merge", "delete"])
    async def test_writing_a_stale_version_raises_version_conflict(self, table: Table, operation: str) -> None:
        stale = await table.put(row(value=1))
        await table.put(row(value=2), stale)
        with pytest.raises(VersionConflict):
            await writing(table, stale)[operation]()
        assert (await table.get("p", "k") or {})["value"] == 2

    @pytest.mark.parametrize("operation", ["put", "merge"])
    async def test_writing_a_deleted_row_raises_version_conflict(self, table: Table, operation: str) -> None:
        etag = await table.put(row())
        await table.delete("p", "k", etag)
        with pytest.raises(VersionConflict):
            await writing(table, etag)[operation]()
        assert await table.get("p", "k") is None


def writing(table: Table, etag: str) -> dict[str, Callable[[], Awaitable[object]]]:
    return {
        "put": lambda: table.put(row(value=3), etag),
        "merge": lambda: table.merge(row(value=3), etag),
        "delete": lambda: table.delete("p", "k", etag),
    }


ETAG = "W/\"datetime'2026-03-01T00%3A00%3A00.0000000Z'\""


async def _raises_conflict(request: Awaitable[object]) -> None:
    with pytest.raises(VersionConflict):
        await request


async def _returns(request: Awaitable[object], expected: object) -> None:
    assert await request == expected


USES: dict[str, Callable[[Table], Awaitable[object]]] = {
    "get": lambda table: _returns(table.get("p", "k"), None),
    "insert": lambda table: table.put(row()),
    "replace": lambda table: _raises_conflict(table.put(row(), ETAG)),
    "merge": lambda table: _raises_conflict(table.merge(row(), ETAG)),
    "delete": lambda table: table.delete("p", "k", ETAG),
    "commit": lambda table: table.commit([Write("put", row()), Write("put", row("l"))]),
    "query": lambda table: _returns(all_of(table.query("PartitionKey eq @p", {"p": "p"})), []),
}


class TestMissingTables:
    @pytest.mark.parametrize("use", USES.values(), ids=USES)
    async def test_missing_table_is_created_on_first_use(
        self, table: Table, use: Callable[[Table], Awaitable[object]]
    ) -> None:
        await use(table)
        await table.put(row("after"))
        assert await table.get("p", "after") is not None

    async def test_missing_table_is_created_by_concurrent_first_writes(self, table: Table) -> None:
        await asyncio.gather(*(table.put(row(str(number))) for number in range(8)))
        assert len(await all_of(table.query("PartitionKey eq @p", {"p": "p"}))) == 8


class TestQueries:
    @pytest.mark.parametrize(
        "value",
        [
            "x' or PartitionKey ne 'x",
            "' or '1' eq '1",
            "x') or (PartitionKey gt '",
            "''",
            "@p",
            "%27 or 1 eq 1",
        ],
    )
    async def test_query_parameter_cannot_inject_a_condition(self, table: Table, value: str) -> None:
        await table.put(row(partition="secret"))
        assert await all_of(table.query("PartitionKey eq @p", {"p": value})) == []
        etag = await table.put(row(partition=value))
        assert await all_of(table.query("PartitionKey eq @p", {"p": value})) == [row(partition=value, etag=etag)]

    async def test_query_returns_rows_in_key_order(self, table: Table) -> None:
        for key in ("b", "B", "a", "10", "9", "~"):
            await table.put(row(key))
        stored = await all_of(table.query("PartitionKey eq @p", {"p": "p"}))
        assert [each["RowKey"] for each in stored] == ["10", "9", "B", "a", "b", "~"]

    async def test_query_returns_rows_of_all_pages_and_fetches_only_pages_that_are_read(
        self, kind: str, azurite_port: int, table: Table, client: TableClient
    ) -> None:
        keys = [f"{number:04}" for number in range(1_100)]
        for start in range(0, 1_100, 100):
            await table.commit([Write("put", row(key)) for key in keys[start : start + 100]])
        stored = await all_of(table.query("PartitionKey eq @p", {"p": "p"}))
        assert [each["RowKey"] for each in stored] == keys
        if kind == "cosmos":
            return
        with TcpProxy(azurite_port) as proxy:
            async with opened(kind, proxy.port, client.table_name) as paged:
                read = []
                async for each in paged.query("PartitionKey eq @p", {"p": "p"}, page=10):
                    read.append(each["RowKey"])
                    if len(read) == 25:
                        break
            assert read == keys[:25]
            assert proxy.count(Match("GET")) == 3


def services(port: int, prefix: str) -> Services:
    """The services as the app builds them, including retries."""
    environ = {
        "AZURE_OPENAI_ENDPOINT": "http://127.0.0.1:9",
        "AZURE_OPENAI_API_KEY": "x",
        "TABLES_CONNECTION_STRING": connection_string(port),
        "TABLE_PREFIX": prefix,
    }
    return Services(Settings.from_env(environ), SystemClock())


JSON = ("Content-Type", "application/json")
CUTS = [Cut(fraction, framing) for fraction in (0, 0.5, 0.99) for framing in ("length", "chunked")]


class TestUnavailable:
    @pytest.fixture
    def service_port(self, kind: str, azurite_port: int) -> Iterator[int]:
        """Without any other failures."""
        with cosmos.CosmosTables(azurite_port, every=0) as service:
            yield service.port if kind == "cosmos" else azurite_port

    async def test_unreachable_service_raises_storage_unavailable_within_seconds(self, prefix: str) -> None:
        app, began = services(free_port(), prefix), time.monotonic()
        try:
            for request in (
                app.sessions.get("s", ANONYMOUS),
                app.sessions.history(SESSION, before=2, limit=1),
                app.reports.figures(NOW.date()),
            ):
                with pytest.raises(StorageUnavailable) as error:
                    await request
                assert error.value.retry_after == 5
        finally:
            await app.close()
        assert time.monotonic() - began < 3 * 5

    @pytest.mark.parametrize("use", USES.values(), ids=USES)
    @pytest.mark.parametrize("status", [400, 403, 500])
    @pytest.mark.usefixtures("without_repeats")
    async def test_error_response_raises_storage_unavailable_without_its_text(
        self, kind: str, service_port: int, prefix: str, use: Callable[[Table], Awaitable[object]], status: int
    ) -> None:
        refusal = Answer(status, b'{"odata.error": {"code": "Secret", "message": {"value": "hunter2"}}}')
        with TcpProxy(service_port) as proxy:
            proxy.on(Match(), refusal, times=None)
            async with opened(kind, proxy.port, f"{prefix}rows") as through:
                with pytest.raises(StorageUnavailable) as error:
                    await use(through)
        assert "hunter2" not in error.value.message

    @pytest.mark.parametrize("use", ["get", "insert", "commit", "query"])  # the others are answered without a body
    @pytest.mark.parametrize("cut", CUTS, ids=repr)
    @pytest.mark.usefixtures("without_repeats")
    async def test_cut_answer_raises_storage_unavailable_after_the_write(
        self,
        kind: str,
        service_port: int,
        table: Table,
        client: TableClient,
        caplog: pytest.LogCaptureFixture,
        use: str,
        cut: Action,
    ) -> None:
        """azure-data-tables 12.7.0 raises an AttributeError for a 201 with fewer bytes than announced."""
        await table.put(row("there"))
        with TcpProxy(service_port) as proxy:
            rule = proxy.on(Match(), cut)
            async with opened(kind, proxy.port, client.table_name) as through:
                # The app's own client gets no body for an insert, so nothing is cut.
                with nullcontext() if (kind, use) == ("http", "insert") else pytest.raises(StorageUnavailable):
                    await USES[use](through)
        assert rule.hits == 1
        assert "storage" in caplog.text or (kind, use) == ("http", "insert")
        keys = {"insert": ["k"], "commit": ["k", "l"]}.get(use, [])
        assert [each["RowKey"] async for each in table.query("PartitionKey eq @p", {"p": "p"})] == [*keys, "there"]

    @pytest.mark.usefixtures("without_repeats")
    async def test_cut_that_can_not_be_noticed_gives_the_right_answer_or_storage_unavailable(
        self, kind: str, service_port: int, table: Table, client: TableClient
    ) -> None:
        """Some proxies send bodies that only the end of the connection ends."""
        await table.put(row("there", partition="q"))
        with TcpProxy(service_port) as proxy:
            async with opened(kind, proxy.port, client.table_name) as through:
                for percent in range(0, 101, 5):
                    keys = [f"{percent}-{each}" for each in "abc"]
                    proxy.on(Match(), Cut(percent / 100, "close"), times=3)
                    with suppress(StorageUnavailable):
                        etag = await through.put(row(keys[0]))
                        assert etag == (await table.get("p", keys[0]) or {})["etag"]
                    with suppress(StorageUnavailable):
                        etags = await through.commit([Write("put", row(key)) for key in keys[1:]])
                        assert etags == [(await table.get("p", key) or {})["etag"] for key in keys[1:]]
                    with suppress(StorageUnavailable):
                        assert len(await all_of(through.query("PartitionKey eq @p", {"p": "q"}))) == 1
                    assert all([await table.get("p", key) for key in keys])

    @pytest.mark.parametrize("cut", CUTS, ids=repr)
    async def test_cut_answer_to_a_read_is_read_again(
        self, azurite_port: int, prefix: str, table: Table, client: TableClient, cut: Action
    ) -> None:
        etag = await table.put(row(value=1))
        with TcpProxy(azurite_port) as proxy:
            proxy.on(Match(), cut)
            app = services(proxy.port, prefix)
            again = app._table("rows")
            assert await again.get("p", "k") == row(value=1, etag=etag)
            proxy.on(Match(), cut)
            assert await all_of(again.query("PartitionKey eq @p", {"p": "p"})) == [row(value=1, etag=etag)]
            await app.close()

    @pytest.mark.parametrize("cut", CUTS, ids=repr)
    async def test_cut_answer_to_the_creation_of_a_table_leaves_a_table(
        self, kind: str, service_port: int, prefix: str, cut: Action
    ) -> None:
        with TcpProxy(service_port) as proxy:
            proxy.on(Match("POST", "/Tables"), cut)
            async with opened(kind, proxy.port, f"{prefix}rows") as table:
                with suppress(StorageUnavailable):  # the app's own client gets no body, so nothing is cut
                    await table.put(row())
                await table.put(row("l"))

    @pytest.mark.parametrize("use", USES.values(), ids=USES)
    @pytest.mark.usefixtures("without_repeats")
    async def test_garbled_answer_raises_storage_unavailable(
        self, kind: str, service_port: int, prefix: str, use: Callable[[Table], Awaitable[object]]
    ) -> None:
        bodies = (b"", b"<html>", b"null", b"[]", b"{}", b'{"value": null}', b'{"odata.error": 1}')
        answers = [Answer(status, body, (JSON,)) for status in (200, 201, 202, 400, 500) for body in bodies]
        with TcpProxy(service_port) as proxy:
            async with opened(kind, proxy.port, f"{prefix}rows") as through:
                for garbled in answers:
                    proxy.on(Match(), garbled)
                    with pytest.raises(StorageUnavailable):
                        await use(through)

    async def test_query_of_a_404_service_raises_storage_unavailable(self, azurite_port: int, prefix: str) -> None:
        with TcpProxy(azurite_port) as proxy:
            proxy.on(Match(), Answer(404), times=None)
            app = services(proxy.port, prefix)
            with pytest.raises(StorageUnavailable):
                await app.sessions.history(SESSION, before=2, limit=1)
            with pytest.raises(StorageUnavailable):
                await app.reports.figures(datetime.now(UTC).date())
            await app.close()

    @pytest.mark.usefixtures("without_repeats")
    async def test_table_works_again_after_an_outage(self, kind: str, service_port: int, prefix: str) -> None:
        with TcpProxy(service_port) as proxy:
            async with opened(kind, proxy.port, f"{prefix}rows") as table:
                await table.put(row())
                proxy.down()
                with pytest.raises(StorageUnavailable):
                    await table.get("p", "k")
                proxy.up()
                assert await table.get("p", "k") is not None
