"""Clients of embeddings that others wrote, with a model service that answers in the requested format or in numbers."""

import json
from collections.abc import AsyncIterator
from typing import Any

import pytest
from langchain_openai import OpenAIEmbeddings
from openai import AsyncOpenAI, DefaultAsyncHttpxClient

from local import azurite, packages
from tests.clients.conftest import HERE, KEY, App
from tests.clients.test_acceptance import python
from tests.conftest import EMBEDDING
from tests.support.azure_openai import AzureOpenAI
from tests.support.azure_openai_embeddings import vector

TEXTS = ["one", "two"]
VECTORS = [vector(text, 8).tolist() for text in TEXTS]


@pytest.fixture(params=[False, True], ids=["any format", "only floats"], autouse=True)
def only_floats(request: pytest.FixtureRequest, fake: AzureOpenAI) -> None:
    fake.only_floats = request.param


@pytest.fixture
async def sdk(app: App) -> AsyncIterator[AsyncOpenAI]:
    async with AsyncOpenAI(base_url=app.base, api_key=KEY, max_retries=0) as sdk:
        yield sdk


async def test_openai_sdk(app: App, sdk: AsyncOpenAI) -> None:
    texts = await sdk.embeddings.create(model=EMBEDDING, input=TEXTS)  # it requests base64 and decodes it
    assert [each.embedding for each in texts.data] == VECTORS
    tokens = await sdk.embeddings.create(model=EMBEDDING, input=[[1, 2], [3]], dimensions=3, encoding_format="float")
    assert [each.embedding for each in tokens.data] == [vector(each, 3).tolist() for each in ([1, 2], [3])]
    await app.assert_billed(streams=0)


async def test_openai_sdk_for_node_and_vercel_ai_sdk(app: App) -> None:
    program = azurite.node()
    assert program
    modules = str(packages.NODE_CLIENTS.target / "node_modules")
    printed = await app.run(program, HERE / "embeddings.cjs", EMBEDDING, app.root, NODE_PATH=modules)
    assert_vectors(json.loads(printed), count=6)
    await app.assert_billed(streams=0)


async def test_langchain_sends_tokens_or_text(app: App, fake: AzureOpenAI, byte_tokenizer: None) -> None:
    async with DefaultAsyncHttpxClient() as http:
        client: dict[str, Any] = {"base_url": app.base, "api_key": KEY, "model": EMBEDDING, "http_async_client": http}
        for checks_length in (True, False):
            embeddings = OpenAIEmbeddings(**client, check_embedding_ctx_length=checks_length)
            await embeddings.aembed_documents(TEXTS)
    assert [request.body["input"] for request in fake.requests] == [[[*text.encode()] for text in TEXTS], TEXTS]
    await app.assert_billed(streams=0)


@pytest.mark.acceptance
async def test_litellm(app: App) -> None:
    azure = {"AZURE_API_BASE": app.root, "AZURE_API_KEY": KEY, "AZURE_API_VERSION": "2024-10-21"}
    offline = {"LITELLM_LOCAL_MODEL_COST_MAP": "True"}
    program = HERE / "litellm_embeddings.py"
    printed = await app.run(python("litellm"), "-P", program, EMBEDDING, *TEXTS, **azure, **offline)
    assert_vectors(json.loads(printed.splitlines()[-1]), count=4)
    await app.assert_billed(streams=0)


@pytest.mark.acceptance
async def test_llm(app: App) -> None:
    async def llm(*arguments: str) -> str:
        return await app.run(python("llm"), "-m", "llm", *arguments, LLM_USER_PATH=str(app.home / "llm"))

    single = [json.loads(await llm("embed", "-m", "3-small", "-c", text)) for text in TEXTS]
    assert_vectors([single], count=1)
    (app.home / "texts.csv").write_text("id,text\n1,one\n2,two\n")
    await llm("embed-multi", "texts", "texts.csv", "-m", "3-small", "--store", "-d", "texts.db")
    nearest = json.loads((await llm("similar", "texts", "-d", "texts.db", "-c", "two", "-n", "1")).splitlines()[0])
    assert (nearest["id"], nearest["content"]) == ("2", "two")
    await app.assert_billed(streams=0)


def assert_vectors(answers: list[Any], *, count: int) -> None:
    """Each answer has the vectors of TEXTS; a client may have read them as numbers of 64 bits."""
    assert len(answers) == count
    for answer in answers:
        assert answer == [pytest.approx(each, abs=1e-6) for each in VECTORS]
