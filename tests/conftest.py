"""Fixtures that the tests run against: a real table service, a fake model service, and the app on the local host."""

import asyncio
import json
import os
import socket
import ssl
import subprocess
import time
import uuid
from collections.abc import AsyncIterator, Iterator
from contextlib import AbstractAsyncContextManager, asynccontextmanager
from functools import cache
from pathlib import Path
from typing import Any, Protocol

import httpx
import httpx2
import hypothesis
import pytest
import uvicorn
from azure.data.tables import TableServiceClient as TableService
from azure.data.tables.aio import TableClient, TableServiceClient
from starlette.applications import Starlette

import function_app
from local import azurite as azurite_server
from local.host import application
from local.parts import free_port
from shared import services as composition
from shared.access.identity import ServiceAccess
from shared.domain.clock import SystemClock
from shared.storage.cosmos_tables import CosmosTable
from shared.storage.sdk_tables import SdkTable
from shared.storage.tables import Table
from tests.support import cosmos
from tests.support.azure_openai import AzureOpenAI
from tests.support.clock import FEBRUARY_29, ManualClock
from tests.support.processes import Host, HostFactory, Start
from tests.support.proxy import TcpProxy

pytest.register_assert_rewrite(
    *(f"tests.support.{name}" for name in ("browser", "chat_client", "conservation", "response_chains"))
)  # so that their assertions show what differs

hypothesis.settings.register_profile(  # the machine may be busy
    "patient", deadline=None, suppress_health_check=[hypothesis.HealthCheck.too_slow]
)
hypothesis.settings.load_profile("patient")

FUNCTION_KEY = "a-function-key-of-the-tests"
PRICES = '{"chat": {"input": 0.75, "cached_input": 0.075, "cache_write": 0.9, "output": 4.5}}'
EMBEDDING = "text-embedding-3-small"  # a deployment, by a name that clients know
SETTINGS = json.loads((Path(__file__).parent.parent / "local.settings.sample.json").read_text())["Values"]


def pytest_addoption(parser: pytest.Parser) -> None:
    parser.addoption("--cosmos", action="store_true", help="let the app store in tests/support/cosmos.py")


def pytest_collection_modifyitems(config: pytest.Config, items: list[pytest.Item]) -> None:
    if config.getoption("cosmos"):
        for item in items:
            if item.get_closest_marker("table_storage"):
                item.add_marker(pytest.mark.skip("of the app's own client of Table Storage"))


@pytest.fixture(scope="session")
def on_cosmos(request: pytest.FixtureRequest) -> bool:
    return bool(request.config.getoption("cosmos"))


@pytest.fixture(scope="session")
def azurite_port(tmp_path_factory: pytest.TempPathFactory) -> Iterator[int]:
    """One Azurite for all tests; each test has its own tables."""
    port, log = free_port(), tmp_path_factory.mktemp("azurite") / "log"
    with log.open("wb") as output:
        server = subprocess.Popen(azurite_server.command(port), stdout=output, stderr=output)
    try:
        deadline = time.monotonic() + 60
        while not azurite_server.answers(port):
            assert server.poll() is None, log.read_text()
            assert time.monotonic() < deadline, "Azurite does not answer"
            time.sleep(0.05)
        yield port
    finally:
        server.terminate()
        server.wait()


@pytest.fixture(scope="session")
def cosmos_port(azurite_port: int) -> Iterator[int]:
    """Azure Cosmos DB for Table, as far as its differences are documented."""
    with cosmos.CosmosTables(azurite_port) as server:
        yield server.port


@pytest.fixture(scope="session", autouse=True)
def certificates_read_once() -> Iterator[None]:
    """Read the machine's certificates once: otherwise each client of the model reads them, which takes 50 ms."""

    @cache
    def read(file: str | None, **options: Any) -> ssl.SSLContext:
        return httpx2.create_ssl_context(**options)

    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(
            "httpx2._transports.default.create_ssl_context",
            lambda **options: read(os.environ.get("SSL_CERT_FILE"), **options),
        )
        yield


@pytest.fixture(autouse=True)
def clean_environment(monkeypatch: pytest.MonkeyPatch) -> None:
    """Hide the machine's own settings from the tests."""
    for name in (*SETTINGS, "REGION_NAME", *(name for name in os.environ if name.startswith(("AZURE_", "IDENTITY_")))):
        monkeypatch.delenv(name, raising=False)


@pytest.fixture
def fake(request: pytest.FixtureRequest) -> Iterator[AzureOpenAI]:
    """The model service; `with_both_fakes` (tests/support/rude_upstream.py) runs a test with the rude one too."""
    with getattr(request, "param", AzureOpenAI)() as server:
        yield server


@pytest.fixture
def prefix() -> str:
    """A table prefix that only this test uses."""
    return f"t{uuid.uuid4().hex[:20]}"


@pytest.fixture
def service_port(request: pytest.FixtureRequest, on_cosmos: bool, azurite_port: int) -> int:
    """Of the service that the app stores in."""
    return int(request.getfixturevalue("cosmos_port")) if on_cosmos else azurite_port


def storage_settings(port: int, on_cosmos: bool) -> dict[str, str]:
    if on_cosmos:
        return {"TABLES_CONNECTION_STRING": cosmos.connection_string(port), "TABLES_CLIENT": "sdk"}
    return {"TABLES_CONNECTION_STRING": azurite_server.connection_string(port)}


@pytest.fixture
def environ(service_port: int, on_cosmos: bool, fake: AzureOpenAI, prefix: str) -> dict[str, str]:
    """The app's settings; a test may change them before it starts the app."""
    return {
        "AZURE_OPENAI_ENDPOINT": fake.endpoint,
        "AZURE_OPENAI_API_KEY": "test-key",
        "AZURE_OPENAI_MODEL": "chat",
        "AZURE_OPENAI_MAX_RETRIES": "0",
        "PRICES": PRICES,
        **storage_settings(service_port, on_cosmos),
        "TABLE_PREFIX": prefix,
    }


def with_embeddings(environ: dict[str, str]) -> dict[str, str]:
    """The settings with a deployment for embeddings, at the input price of chat."""
    prices = json.loads(environ["PRICES"])
    prices[EMBEDDING] = {"input": prices["chat"]["input"]}
    return environ | {"AZURE_OPENAI_EMBEDDING_DEPLOYMENTS": EMBEDDING, "PRICES": json.dumps(prices)}


@pytest.fixture
def storage(
    azurite_port: int, service_port: int, on_cosmos: bool, environ: dict[str, str], prefix: str
) -> Iterator[TcpProxy]:
    """A proxy in front of Azurite that injects the faults a test asks for. Request it before `api`, so that the app
    connects through it.

    It creates the tables, so that a turn sends the same requests in each test.
    """
    with TableService.from_connection_string(azurite_server.connection_string(azurite_port)) as service:
        for name in ("sessions", "usage", "daily"):
            service.create_table(f"{prefix}{name}")
    with TcpProxy(service_port) as proxy:
        environ |= storage_settings(proxy.port, on_cosmos)
        yield proxy


@pytest.fixture(scope="session")
def host() -> Starlette:
    """The app on the local host. Built once per run, because a function app can be indexed only once."""
    return application(function_app.app, {"SUMMARY_SCHEDULE": FEBRUARY_29}, "", FUNCTION_KEY)


class _Server(uvicorn.Server):
    """Stops faster: uvicorn's own server polls every 0.1 s, twice on shutdown, which adds 0.2 s to each test."""

    async def main_loop(self) -> None:
        await self.on_tick(0)
        while not self.should_exit:  # noqa: ASYNC110 - it is a plain flag
            await asyncio.sleep(0.01)

    async def shutdown(self, sockets: list[socket.socket] | None = None) -> None:
        for server in self.servers:
            server.close()
        for listening in sockets or []:
            listening.close()
        for connection in list(self.server_state.connections):
            connection.shutdown()
        while self.server_state.connections or self.server_state.tasks:  # noqa: ASYNC110 - as above
            await asyncio.sleep(0.005)
        for server in self.servers:
            await server.wait_closed()
        await self.lifespan.shutdown()


class Serve(Protocol):
    def __call__(self, environ: dict[str, str]) -> AbstractAsyncContextManager[httpx.AsyncClient]: ...


@pytest.fixture
def clock(monkeypatch: pytest.MonkeyPatch) -> ManualClock:
    """The app's clock, which the test moves. Request it before `api`, so that the app uses it."""
    manual = ManualClock()
    monkeypatch.setattr(composition, "CLOCK", manual)
    return manual


@pytest.fixture
def serve(host: Starlette, monkeypatch: pytest.MonkeyPatch) -> Serve:
    """Serves the app with the given settings until the block ends; yields a client that sends the function key."""

    @asynccontextmanager
    async def serving(environ: dict[str, str]) -> AsyncIterator[httpx.AsyncClient]:
        for name, value in environ.items():
            monkeypatch.setenv(name, value)
        listening = socket.socket(socket.AF_INET, socket.SOCK_STREAM, socket.IPPROTO_TCP)
        listening.bind(("127.0.0.1", 0))
        options = uvicorn.Config(
            host,
            log_config=None,
            access_log=False,
            server_header=False,
            lifespan="on",
            timeout_keep_alive=120,  # long, so that it does not close a connection that a slow client is about to use
        )
        server = _Server(options)
        task = asyncio.create_task(server.serve([listening]))
        while not server.started:
            await asyncio.sleep(0.005)
            assert not task.done(), task
        base, headers = f"http://127.0.0.1:{listening.getsockname()[1]}", {"x-functions-key": FUNCTION_KEY}
        try:
            # No certificates: reading them takes 50 ms, and all traffic is plain HTTP on loopback.
            async with httpx.AsyncClient(
                base_url=base, headers=headers, verify=False, trust_env=False, timeout=60
            ) as client:
                yield client
        finally:
            server.should_exit = True
            await task
            await composition.close()

    return serving


@pytest.fixture
async def api(serve: Serve, environ: dict[str, str]) -> AsyncIterator[httpx.AsyncClient]:
    """The app with the settings of `environ`."""
    async with serve(environ) as client:
        yield client


@pytest.fixture(scope="module")
def host_factory() -> Iterator[HostFactory]:
    with HostFactory() as host_factory:
        yield host_factory


@pytest.fixture
def start(host_factory: HostFactory, storage: TcpProxy, environ: dict[str, str], tmp_path: Path) -> Iterator[Start]:
    """Starts a host that stores through `storage`. Hosts are stateless, so a new one is equivalent to a restarted
    one."""
    started: list[Host] = []

    def host() -> Host:
        started.append(host_factory.host(environ, tmp_path / f"host-{len(started)}.log"))
        return started[-1]

    yield host
    for running in started:
        running.kill()


def table_of(client: TableClient, on_cosmos: bool = False) -> Table:
    access = ServiceAccess.by_setting("Table storage", "TABLES_CONNECTION_STRING")
    return CosmosTable(client, access, SystemClock()) if on_cosmos else SdkTable(client, access)


class Tables:
    """Direct access to the stored rows, independent of the app."""

    def __init__(self, service: TableServiceClient, prefix: str, on_cosmos: bool = False) -> None:
        self.sessions, self.usage, self.daily = (
            table_of(service.get_table_client(prefix + name), on_cosmos) for name in ("sessions", "usage", "daily")
        )


@asynccontextmanager
async def opened(azurite_port: int, prefix: str, on_cosmos: bool = False) -> AsyncIterator[Tables]:
    connection = azurite_server.connection_string(azurite_port)
    async with TableServiceClient.from_connection_string(connection) as service:
        yield Tables(service, prefix, on_cosmos)


@pytest.fixture
async def tables(azurite_port: int, prefix: str, on_cosmos: bool) -> AsyncIterator[Tables]:
    async with opened(azurite_port, prefix, on_cosmos) as tables:
        yield tables
