"""The clients of embeddings on the embedded embedding model: what the ledger has equals what the model reported."""

import json
import subprocess
import sys
from collections.abc import AsyncIterator, Iterator
from decimal import Decimal
from pathlib import Path
from typing import Any

import pytest
from langchain_openai import OpenAIEmbeddings
from openai import AsyncOpenAI, DefaultAsyncHttpxClient

from local import azurite, e5, packages
from local.keys import line
from local.parts import free_port
from shared.domain.calls import State
from tests.clients.conftest import HERE, KEY, App
from tests.clients.test_acceptance import python
from tests.conftest import EMBEDDING, Serve, Tables, with_embeddings
from tests.support.azure_openai import AzureOpenAI
from tests.support.chat_client import closed_ledger
from tests.support.stream_checker import StreamChecker

pytestmark = pytest.mark.acceptance
TEXTS = ["one", "two"]
RATE = Decimal("0.02")  # USD per 1,000,000 tokens, as make run sets it


@pytest.fixture(scope="module")
def model_port() -> Iterator[int]:
    if not e5.installed():
        pytest.skip("THE EMBEDDING MODEL IS NOT INSTALLED, SO ITS TESTS WITH CLIENTS DID NOT RUN")
    port = free_port()
    server = subprocess.Popen([sys.executable, "-m", "local.embedding_model", "--port", str(port)])
    yield port
    server.terminate()
    server.wait()


@pytest.fixture
async def app(
    serve: Serve, environ: dict[str, str], fake: AzureOpenAI, tables: Tables, tmp_path: Path, model_port: int
) -> AsyncIterator[App]:
    settings = with_embeddings(environ) | {
        "CLIENT_KEYS": line("ann", KEY),
        "AZURE_OPENAI_EMBEDDING_ENDPOINT": f"http://127.0.0.1:{model_port}/v1",
        "AZURE_OPENAI_MAX_RETRIES": "6",  # the model may still be starting
        "PRICES": json.dumps({EMBEDDING: {"input": float(RATE)}}),
    }
    async with serve(settings) as client:
        assert client.base_url.port
        with StreamChecker(client.base_url.port) as checker:
            yield App(checker, fake, tables, tmp_path)


@pytest.fixture
async def expected(app: App, tables: Tables) -> list[list[float]]:
    """The vectors of TEXTS, by OpenAI's SDK for Python, which is the first client: base64 and numbers are equal."""
    async with AsyncOpenAI(base_url=app.base, api_key=KEY) as sdk:
        decoded = await sdk.embeddings.create(model=EMBEDDING, input=TEXTS)
        numbers = await sdk.embeddings.create(model=EMBEDDING, input=TEXTS, encoding_format="float")
    assert len(decoded.data[0].embedding) == e5.DIMENSIONS
    vectors = [each.embedding for each in numbers.data]
    assert_vectors([[each.embedding for each in decoded.data]], vectors, count=1)
    assert await billed(tables, calls=2) == decoded.usage.prompt_tokens + numbers.usage.prompt_tokens
    return vectors


async def test_openai_sdk_for_node_and_vercel_ai_sdk(app: App, tables: Tables, expected: list[list[float]]) -> None:
    program = azurite.node()
    assert program
    modules = str(packages.NODE_CLIENTS.target / "node_modules")
    printed = await app.run(program, HERE / "embeddings.cjs", EMBEDDING, app.root, NODE_PATH=modules)
    assert_vectors(json.loads(printed), expected, count=6)
    await billed(tables, calls=2 + 4 + 1 + 2)


async def test_langchain_sends_text(app: App, tables: Tables, expected: list[list[float]]) -> None:
    async with DefaultAsyncHttpxClient() as http:
        client: dict[str, Any] = {"base_url": app.base, "api_key": KEY, "model": EMBEDDING, "http_async_client": http}
        embeddings = OpenAIEmbeddings(**client, check_embedding_ctx_length=False)
        assert_vectors([await embeddings.aembed_documents(TEXTS)], expected, count=1)
    await billed(tables, calls=3)


async def test_litellm(app: App, tables: Tables, expected: list[list[float]]) -> None:
    azure = {"AZURE_API_BASE": app.root, "AZURE_API_KEY": KEY, "AZURE_API_VERSION": "2024-10-21"}
    offline = {"LITELLM_LOCAL_MODEL_COST_MAP": "True"}
    program = HERE / "litellm_embeddings.py"
    printed = await app.run(python("litellm"), "-P", program, EMBEDDING, *TEXTS, **azure, **offline)
    assert_vectors(json.loads(printed.splitlines()[-1]), expected, count=4)
    await billed(tables, calls=2 + 4)


async def test_llm(app: App, tables: Tables, expected: list[list[float]]) -> None:
    command = (python("llm"), "-m", "llm", "embed", "-m", "3-small", "-c")
    vectors = [json.loads(await app.run(*command, text, LLM_USER_PATH=str(app.home / "llm"))) for text in TEXTS]
    assert_vectors([vectors], expected, count=1)
    await billed(tables, calls=2 + 2)


def assert_vectors(answers: list[list[list[float]]], expected: list[list[float]], *, count: int) -> None:
    assert len(answers) == count
    for answer in answers:
        assert answer == [pytest.approx(each, abs=1e-6) for each in expected]


async def billed(tables: Tables, *, calls: int) -> int:
    """The prompt tokens of all calls in the ledger, which are so many, each settled at the price."""
    entries = await closed_ledger(tables)
    assert [entry.call.state for entry in entries] == [State.SETTLED] * calls
    tokens = 0
    for entry in entries:
        assert entry.call.usage
        tokens += entry.call.usage.prompt_tokens
        assert entry.call.cost == entry.call.usage.prompt_tokens * RATE / 1_000_000
    return tokens
