"""Clients that others wrote, against the running app. A proxy in front of it checks each stream that they receive."""

import asyncio
import os
import subprocess
import sys
import uuid
from collections.abc import AsyncIterator, Collection, Iterator
from contextlib import contextmanager
from pathlib import Path

import pytest
import tiktoken

from local import azurite, model
from local.keys import line, new_key
from local.parts import free_port
from tests.clients import answers
from tests.conftest import Serve, Tables, with_embeddings
from tests.support.azure_openai import AzureOpenAI
from tests.support.conservation import assert_conserved
from tests.support.loopback import MAX_WAIT_S
from tests.support.processes import HostFactory
from tests.support.stream_checker import StreamChecker

HERE = Path(__file__).parent
KEY = new_key()


class App:
    """The running app, as a client sees it: `root` for AzureOpenAI's clients, `base` for OpenAI's."""

    def __init__(self, checker: StreamChecker, fake: AzureOpenAI, tables: Tables, home: Path) -> None:
        self.checker, self.root, self.base = checker, checker.endpoint, f"{checker.endpoint}/openai/v1"
        self.home = home
        self._fake, self._tables = fake, tables

    async def run(self, *command: str | Path, **environ: str) -> str:
        """Run a client in an empty home; returns what it prints. Fails unless its exit status is 0."""
        inherited = {name: os.environ[name] for name in ("PATH", "SYSTEMROOT") if name in os.environ}
        ours = {"HOME": str(self.home), "OPENAI_BASE_URL": self.base, "OPENAI_API_KEY": KEY}
        process = await asyncio.create_subprocess_exec(
            *map(str, command),
            cwd=self.home,
            env=inherited | ours | environ,
            stdin=asyncio.subprocess.DEVNULL,
            stdout=asyncio.subprocess.PIPE,
            stderr=asyncio.subprocess.PIPE,
        )
        try:
            output, errors = await asyncio.wait_for(process.communicate(), 2 * MAX_WAIT_S)
        finally:
            if process.returncode is None:
                process.kill()
        assert process.returncode == 0, f"{output.decode()}\n{errors.decode()}"
        return output.decode()

    async def assert_billed(self, *, streams: int, erased: Collection[str] = ()) -> None:
        """Assert that the ledger has each call of the model with the cost that the service billed, and that at least so
        many streams were checked. `erased`: conversations that the client has deleted."""
        entries = await assert_conserved(self._tables, self._fake, erased=erased)
        assert len(entries) == len(self._fake.meter) == len(self._fake.requests) > 0
        assert all(entry.call.cost for entry in entries)
        assert self.checker.streams >= streams


@pytest.fixture
async def app(
    serve: Serve, environ: dict[str, str], fake: AzureOpenAI, tables: Tables, tmp_path: Path
) -> AsyncIterator[App]:
    fake.responder = answers.answer
    async with serve(with_embeddings(environ) | {"CLIENT_KEYS": line("ann", KEY)}) as client:
        assert client.base_url.port
        with StreamChecker(client.base_url.port) as checker:
            yield App(checker, fake, tables, tmp_path)


@contextmanager
def separate_app(environ: dict[str, str], azurite_port: int, folder: Path) -> Iterator[str]:
    """The app in a separate process, for clients that block; yields its root."""
    ours = {
        "TABLES_CONNECTION_STRING": azurite.connection_string(azurite_port),
        "TABLE_PREFIX": f"t{uuid.uuid4().hex[:20]}",
        "CLIENT_KEYS": line("ann", KEY),
    }
    with HostFactory() as host_factory:
        host = host_factory.host(ours | environ, folder / "log")
        with StreamChecker(host.port) as checker:
            yield checker.endpoint


@pytest.fixture(scope="module")
def embedded(azurite_port: int, tmp_path_factory: pytest.TempPathFactory) -> Iterator[str]:
    """The root of an app on the embedded model."""
    if not model.installed():
        pytest.skip("THE EMBEDDED MODEL IS NOT INSTALLED, SO ITS TESTS WITH OPENAI'S SDK AND LANGCHAIN DID NOT RUN")
    port = free_port()
    server = subprocess.Popen([sys.executable, "-m", "local.model", "--port", str(port)], stdout=subprocess.DEVNULL)
    environ = {
        "AZURE_OPENAI_ENDPOINT": f"http://127.0.0.1:{port}/v1",
        "AZURE_OPENAI_API_KEY": "local",
        "AZURE_OPENAI_MODEL": model.NAME,
        "AZURE_OPENAI_MAX_RETRIES": "6",  # the model may still be starting
    }
    try:
        with separate_app(environ, azurite_port, tmp_path_factory.mktemp("embedded")) as root:
            yield root
    finally:
        server.terminate()
        server.wait()


@pytest.fixture
def byte_tokenizer(monkeypatch: pytest.MonkeyPatch) -> None:
    """One token per byte, in place of the vocabulary that tiktoken would download."""
    ranks = {bytes([byte]): byte for byte in range(256)}
    encoding = tiktoken.Encoding("cl100k_base", pat_str=r"[\s\S]", mergeable_ranks=ranks, special_tokens={})
    monkeypatch.setitem(tiktoken.registry.ENCODINGS, "cl100k_base", encoding)
