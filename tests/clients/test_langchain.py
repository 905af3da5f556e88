"""LangChain's clients: its standard suite on the embedded model and the fake model service, and other features."""

import asyncio
from collections.abc import AsyncIterator, Iterator
from decimal import Decimal
from typing import Any, ClassVar

import httpx
import pytest
import pytest_asyncio
from langchain_community.callbacks import get_openai_callback
from langchain_core.embeddings import Embeddings
from langchain_core.language_models import BaseChatModel
from langchain_core.messages import AIMessage, HumanMessage, ToolMessage
from langchain_core.output_parsers import StrOutputParser
from langchain_core.prompts import ChatPromptTemplate
from langchain_core.tools import tool
from langchain_openai import AzureChatOpenAI, AzureOpenAIEmbeddings, ChatOpenAI, OpenAIEmbeddings
from langchain_tests.integration_tests import ChatModelIntegrationTests, EmbeddingsIntegrationTests
from openai import DefaultAsyncHttpxClient, DefaultHttpxClient
from pydantic import BaseModel, SecretStr

from local import model
from local.keys import line
from tests.clients import answers
from tests.clients.conftest import KEY, separate_app
from tests.conftest import EMBEDDING, Serve, Tables
from tests.support.azure_openai import AzureOpenAI, Reply, Request
from tests.support.azure_openai_answers import default_reply
from tests.support.chat_client import closed_ledger
from tests.support.conservation import assert_conserved
from tests.support.loopback import MAX_WAIT_S

API_VERSION = "2025-04-01-preview"

# The standard suite


@pytest.fixture(scope="module")
def scripted(azurite_port: int, tmp_path_factory: pytest.TempPathFactory) -> Iterator[str]:
    """The root of an app on a fake model service that answers what the suite's prompts ask for."""

    def answer(request: Request) -> Reply:
        body = request.body
        if (body.get("response_format") or {}).get("type") == "json_object":
            return Reply('{"setup": "Why?", "punchline": "So."}')
        if not body.get("tools") or body["messages"][-1]["role"] == "tool":
            return answers.answer(request)
        named = body["tool_choice"] if isinstance(body.get("tool_choice"), dict) else "required"
        [(call_id, name, arguments)] = default_reply(body | {"tool_choice": named}).tool_calls
        return Reply(tool_calls=((call_id, name, '{"input":3}' if name == "magic_function" else arguments),))

    with AzureOpenAI() as fake:
        fake.responder = answer
        environ = {"AZURE_OPENAI_ENDPOINT": fake.endpoint, "AZURE_OPENAI_API_KEY": fake.api_key}
        environ |= {"AZURE_OPENAI_MODEL": "chat", "AZURE_OPENAI_EMBEDDING_DEPLOYMENTS": EMBEDDING}
        with separate_app(environ, azurite_port, tmp_path_factory.mktemp("scripted")) as root:
            yield root


@pytest_asyncio.fixture(scope="class", loop_scope="class")
async def served(request: pytest.FixtureRequest) -> AsyncIterator[None]:
    """Clients that are closed here; LangChain leaves its own to the garbage collector, which warns in a later test."""
    with DefaultHttpxClient() as request.cls.http:
        async with DefaultAsyncHttpxClient() as request.cls.http_async:
            request.cls.root = request.getfixturevalue(request.cls.service)
            yield


class _Standard(ChatModelIntegrationTests):
    """Declares the limits of the embedded model: no tools, no images, and no structured output (135 million
    parameters)."""

    service = "embedded"
    root = ""
    http: DefaultHttpxClient
    http_async: DefaultAsyncHttpxClient

    @property
    def has_tool_calling(self) -> bool:
        return False

    @property
    def has_structured_output(self) -> bool:
        return False

    @property
    def supports_model_override(self) -> bool:
        return False

    @property
    def enable_vcr_tests(self) -> bool:
        return False


@pytest.mark.parametrize(
    ("options", "tokens"),
    [({"max_tokens": 30}, 30), pytest.param({}, model.ANSWER_TOKENS, marks=pytest.mark.acceptance)],
)
def test_embedded_model_limits_answers_with_and_without_max_tokens(
    embedded: str, options: dict[str, int], tokens: int
) -> None:
    body = {"model": model.NAME, "messages": [{"role": "user", "content": "Count."}], "ignore_eos": True, **options}
    answer = httpx.post(
        f"{embedded}/openai/v1/chat/completions",
        json=body,
        headers={"Authorization": f"Bearer {KEY}"},
        timeout=MAX_WAIT_S,
        trust_env=False,
    ).json()

    assert (answer["usage"]["completion_tokens"], answer["choices"][0]["finish_reason"]) == (tokens, "length")


def test_prompt_too_long_for_the_embedded_model_returns_context_too_long(embedded: str) -> None:
    long = {"message": "word " * (model.SLOT_TOKENS + 1_000)}
    answer = httpx.post(f"{embedded}/api/chat", json=long, timeout=MAX_WAIT_S, trust_env=False)

    assert (answer.status_code, answer.json()["error"]["code"]) == (400, "context_too_long")


@pytest.mark.acceptance
@pytest.mark.usefixtures("served")
@pytest.mark.asyncio(loop_scope="class")
class TestChatOpenAI(_Standard):
    @property
    def chat_model_class(self) -> type[BaseChatModel]:
        return ChatOpenAI

    @property
    def chat_model_params(self) -> dict[str, Any]:
        return {
            "base_url": f"{self.root}/openai/v1",
            "api_key": KEY,
            "model": model.NAME,
            "http_client": self.http,
            "http_async_client": self.http_async,
            "max_tokens": 20,
            "stream_usage": True,
        }


@pytest.mark.acceptance
@pytest.mark.usefixtures("served")
@pytest.mark.asyncio(loop_scope="class")
class TestAzureChatOpenAI(_Standard):
    @property
    def chat_model_class(self) -> type[BaseChatModel]:
        return AzureChatOpenAI

    @property
    def chat_model_params(self) -> dict[str, Any]:
        return {
            "azure_endpoint": self.root,
            "api_key": KEY,
            "api_version": API_VERSION,
            "azure_deployment": model.NAME,
            "http_client": self.http,
            "http_async_client": self.http_async,
            "max_tokens": 20,
            "stream_usage": True,
        }


@pytest.mark.acceptance
class TestResponses(TestChatOpenAI):
    @property
    def chat_model_params(self) -> dict[str, Any]:
        return super().chat_model_params | {"use_responses_api": True}


@pytest.mark.acceptance
@pytest.mark.filterwarnings("ignore:Received a Pydantic BaseModel V1 schema")
class TestResponsesWithTools(TestResponses):
    """On the fake model service, which calls tools and accepts pictures."""

    service = "scripted"
    options: ClassVar[dict[str, Any]] = {}

    @property
    def chat_model_params(self) -> dict[str, Any]:
        return super().chat_model_params | {"model": "chat", "max_tokens": None} | self.options

    @property
    def has_tool_calling(self) -> bool:
        return True

    @property
    def has_structured_output(self) -> bool:
        return True

    @property
    def supports_json_mode(self) -> bool:
        return True


@pytest.mark.acceptance
class TestResponsesWithPreviousResponse(TestResponsesWithTools):
    options: ClassVar[dict[str, Any]] = {"use_previous_response_id": True}


@pytest.mark.acceptance
class TestResponsesStreamed(TestResponsesWithTools):
    options: ClassVar[dict[str, Any]] = {"streaming": True, "output_version": "v1"}


# Features that need a larger model, on the fake


@pytest.fixture
def environ(environ: dict[str, str]) -> dict[str, str]:
    deployments = "chat=gpt-5.4-mini, old=gpt-35-turbo@0125"
    return environ | {"CLIENT_KEYS": line("ann", KEY), "AZURE_OPENAI_DEPLOYMENTS": deployments}


@pytest.fixture
async def base(serve: Serve, environ: dict[str, str]) -> AsyncIterator[str]:
    async with serve(environ) as client:
        yield str(client.base_url).rstrip("/")


@pytest.fixture
async def http() -> AsyncIterator[DefaultAsyncHttpxClient]:
    """LangChain caches its own client per process, but each test has its own event loop."""
    async with DefaultAsyncHttpxClient() as client:
        yield client


@pytest.fixture(params=["ChatOpenAI", "AzureChatOpenAI"])
def chat(request: pytest.FixtureRequest, base: str, http: DefaultAsyncHttpxClient) -> BaseChatModel:
    options: dict[str, Any] = {"api_key": KEY, "http_async_client": http}
    if request.param == "ChatOpenAI":
        return ChatOpenAI(base_url=f"{base}/openai/v1", model="chat", stream_usage=True, **options)
    options |= {"api_version": API_VERSION, "azure_deployment": "chat"}
    return AzureChatOpenAI(azure_endpoint=base, stream_usage=True, **options)


class Person(BaseModel):
    name: str
    age: int


@tool
def add(a: int, b: int) -> int:
    """Add two numbers."""
    return a + b


async def test_chain_can_invoke_stream_and_batch(chat: BaseChatModel, fake: AzureOpenAI, tables: Tables) -> None:
    chain = ChatPromptTemplate.from_messages([("system", "Be brief."), ("user", "{text}")]) | chat | StrOutputParser()

    assert await chain.ainvoke({"text": "one"}) == "echo: one"
    assert "".join([piece async for piece in chain.astream({"text": "two"})]) == "echo: two"
    assert sorted(await chain.abatch([{"text": "3"}, {"text": "4"}])) == ["echo: 3", "echo: 4"]
    assert len(await assert_conserved(tables, fake)) == 4


async def test_tool_calls_and_results(chat: BaseChatModel, fake: AzureOpenAI) -> None:
    fake.reply(tool_calls=(("call_1", "add", '{"a": 1, "b": 2}'), ("call_2", "add", '{"a": 3, "b": 4}')))
    bound = chat.bind_tools([add])
    question = HumanMessage("Add 1 and 2, and 3 and 4.")

    called = await bound.ainvoke([question])

    assert isinstance(called, AIMessage)
    assert [call["args"] for call in called.tool_calls] == [{"a": 1, "b": 2}, {"a": 3, "b": 4}]
    results = [ToolMessage(str(add.invoke(call["args"])), tool_call_id=call["id"]) for call in called.tool_calls]
    fake.reply("3 and 7")
    assert (await bound.ainvoke([question, called, *results])).content == "3 and 7"
    roles = [message["role"] for message in fake.requests[-1].body["messages"]]
    assert roles == ["user", "assistant", "tool", "tool"]


@pytest.mark.parametrize("method", ["json_schema", "json_mode", "function_calling"])
async def test_structured_output_is_parsed(chat: BaseChatModel, fake: AzureOpenAI, method: str) -> None:
    person = '{"name": "Ada", "age": 36}'
    fake.responder = lambda _: (
        Reply(tool_calls=(("call_1", "Person", person),)) if method == "function_calling" else Reply(person)
    )
    assert await chat.with_structured_output(Person, method=method).ainvoke("Who? As JSON.") == Person(
        name="Ada", age=36
    )
    sent = fake.requests[-1].body
    kinds = {"json_mode": "json_object", "json_schema": "json_schema", "function_calling": None}
    assert sent.get("response_format", {}).get("type") == kinds[method]


async def test_images_and_logprobs(chat: BaseChatModel, fake: AzureOpenAI) -> None:
    pixel = "data:image/gif;base64,R0lGODlhAQABAAAAACH5BAEKAAEALAAAAAABAAEAAAICTAEAOw=="
    message = HumanMessage([{"type": "text", "text": "What?"}, {"type": "image_url", "image_url": {"url": pixel}}])

    answer = await chat.bind(logprobs=True, top_logprobs=2).ainvoke([message])

    assert fake.requests[-1].body["messages"][0]["content"][1]["image_url"]["url"] == pixel
    assert answer.response_metadata["logprobs"]["content"]


async def test_usage_is_reported_with_and_without_streaming(
    chat: BaseChatModel, fake: AzureOpenAI, tables: Tables
) -> None:
    whole: Any = await chat.ainvoke("hi")
    gathered: Any = None
    async for piece in chat.astream("hi"):
        gathered = piece if gathered is None else gathered + piece

    totals = [message.usage_metadata["total_tokens"] for message in (whole, gathered)]
    entries = await assert_conserved(tables, fake)
    assert sorted(totals) == sorted(entry.call.usage.total_tokens for entry in entries if entry.call.usage)


async def test_cost_of_langchains_callback_equals_the_ledger(
    base: str, http: DefaultAsyncHttpxClient, fake: AzureOpenAI, tables: Tables
) -> None:
    """The answer's model name has no version: LangChain gets it from `model_version`, the app from its settings."""
    fake.model_name = "gpt-35-turbo"
    chat = AzureChatOpenAI(
        azure_endpoint=base,
        api_key=SecretStr(KEY),
        api_version=API_VERSION,
        azure_deployment="old",
        model_version="0125",
        http_async_client=http,
    )
    with get_openai_callback() as callback:
        for text in ("one", "two and more"):
            await chat.ainvoke(text)

    entries = await closed_ledger(tables)
    cost = sum((entry.call.cost or Decimal(0) for entry in entries), Decimal(0))
    assert cost > 0
    assert Decimal(str(callback.total_cost)).quantize(Decimal("1e-9")) == cost.quantize(Decimal("1e-9"))
    assert callback.successful_requests == len(entries) == 2


async def test_curl_gets_an_answer(base: str) -> None:
    body = '{"model": "chat", "messages": [{"role": "user", "content": "hi"}]}'
    command = ["curl", "-sS", f"{base}/openai/v1/chat/completions", "-H", f"Authorization: Bearer {KEY}"]
    command += ["-H", "Content-Type: application/json", "-d", body]
    output = await _run(command)

    assert "echo: hi" in output


async def _run(command: list[str]) -> str:
    process = await asyncio.create_subprocess_exec(*command, stdout=asyncio.subprocess.PIPE)
    output, _ = await process.communicate()
    assert process.returncode == 0
    return output.decode()


# Embeddings


@pytest.mark.usefixtures("byte_tokenizer", "served")
@pytest.mark.asyncio(loop_scope="class")
class TestEmbeddings(EmbeddingsIntegrationTests):
    """Sends arrays of tokens."""

    service = "scripted"
    root = ""
    http: DefaultHttpxClient
    http_async: DefaultAsyncHttpxClient

    @property
    def embeddings_class(self) -> type[Embeddings]:
        return OpenAIEmbeddings

    @property
    def embedding_model_params(self) -> dict[str, Any]:
        return {
            "base_url": f"{self.root}/openai/v1",
            "api_key": KEY,
            "model": EMBEDDING,
            "http_client": self.http,
            "http_async_client": self.http_async,
        }


class TestEmbeddingsOfText(TestEmbeddings):
    @property
    def embedding_model_params(self) -> dict[str, Any]:
        return super().embedding_model_params | {"check_embedding_ctx_length": False}


class TestAzureEmbeddings(TestEmbeddings):
    @property
    def embeddings_class(self) -> type[Embeddings]:
        return AzureOpenAIEmbeddings

    @property
    def embedding_model_params(self) -> dict[str, Any]:
        azure = {"azure_endpoint": self.root, "api_version": API_VERSION}
        return {name: value for name, value in super().embedding_model_params.items() if name != "base_url"} | azure
