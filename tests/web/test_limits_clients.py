"""OpenAI's Python SDK and LangChain against each refusal of a limit: how many requests they make before they give up or
get an answer."""

import asyncio
import json
from collections.abc import AsyncIterator, Callable, Coroutine
from datetime import UTC, datetime
from typing import Any

import httpx
import openai
import pytest
from langchain_openai import ChatOpenAI
from openai import AsyncOpenAI, DefaultAsyncHttpxClient

from local.keys import line
from tests.conftest import Tables
from tests.support.azure_openai import AzureOpenAI
from tests.support.chat_client import closed_ledger
from tests.support.clock import ManualClock
from tests.support.conservation import assert_conserved
from tests.support.proxy import Match, TcpProxy

ANN = "a-client-key-of-ann"
TOKENS = 800
ONE_CALL = {"usd_per_day": 0.006}  # one answer of so many tokens costs 0.0036 USD, a second does not fit
NOON = datetime(2026, 11, 28, 12, 0, 58, tzinfo=UTC)

Ask = Callable[..., Coroutine[Any, Any, Any]]


@pytest.fixture
def limits() -> dict[str, Any]:
    return {}


@pytest.fixture
def environ(environ: dict[str, str], limits: dict[str, Any], clock: ManualClock) -> dict[str, str]:
    clock.set(NOON)
    return environ | {
        "CLIENT_KEYS": line("ann", ANN),
        "LIMITS": json.dumps(limits),
        "AZURE_OPENAI_DEPLOYMENTS": "other",  # without a price
        "AZURE_OPENAI_MAX_OUTPUT_TOKENS": str(TOKENS),
    }


class Client:
    """A client of openai/*, and the requests that it made."""

    def __init__(self, ask: Ask, wire: TcpProxy) -> None:
        self.ask = ask
        self._wire = wire

    @property
    def requests(self) -> int:
        return self._wire.count(Match("POST"))


OTHERS = [pytest.param(name, marks=pytest.mark.acceptance) for name in ("openai streamed", "langchain")]


@pytest.fixture(params=["openai", *OTHERS])
async def client(request: pytest.FixtureRequest, api: httpx.AsyncClient) -> AsyncIterator[Client]:
    with TcpProxy(api.base_url.port or 0) as wire:
        base = f"{wire.endpoint}/openai/v1"
        async with DefaultAsyncHttpxClient() as http, AsyncOpenAI(base_url=base, api_key=ANN, http_client=http) as sdk:

            async def create(model: str = "chat", **options: Any) -> Any:
                messages: Any = [{"role": "user", "content": "hi"}]
                created: Any = sdk.chat.completions.create(model=model, messages=messages, **options)
                return await created

            async def stream(**options: Any) -> str:
                chunks = [chunk async for chunk in await create(stream=True, **options)]
                return "".join(chunk.choices[0].delta.content or "" for chunk in chunks if chunk.choices)

            async def invoke(model: str = "chat", **options: Any) -> Any:
                key: Any = ANN
                chat = ChatOpenAI(base_url=base, api_key=key, model=model, http_async_client=http, **options)
                return await chat.ainvoke("hi")

            asks: dict[str, Ask] = {"openai": create, "openai streamed": stream, "langchain": invoke}
            yield Client(asks[request.param], wire)


async def use_up(api: httpx.AsyncClient, fake: AzureOpenAI, tables: Tables, key: str) -> None:
    fake.reply("long", completion_tokens=TOKENS)
    headers = {"authorization": f"Bearer {key}"}
    assert (await api.post("/api/chat", json={"message": "hi"}, headers=headers)).status_code == 200
    await closed_ledger(tables)


@pytest.mark.parametrize("limits", [{"key:ann": ONE_CALL}, {"total": ONE_CALL}], ids=["own", "total"])
async def test_used_up_budget_is_requested_once(
    client: Client, api: httpx.AsyncClient, fake: AzureOpenAI, tables: Tables
) -> None:
    await use_up(api, fake, tables, ANN)

    with pytest.raises(openai.RateLimitError) as refused:
        await client.ask()

    assert (refused.value.code, refused.value.type) == ("insufficient_quota", "insufficient_quota")
    assert client.requests == 1


@pytest.mark.parametrize("limits", [{"session": {"usd": 0.006}}])
async def test_used_up_session_is_requested_once(
    client: Client, api: httpx.AsyncClient, fake: AzureOpenAI, tables: Tables
) -> None:
    session = {"x-session-id": "s"}
    fake.reply("long", completion_tokens=TOKENS)
    body = {"model": "chat", "messages": [{"role": "user", "content": "hi"}]}
    headers = session | {"authorization": f"Bearer {ANN}"}
    assert (await api.post("/openai/v1/chat/completions", json=body, headers=headers)).status_code == 200
    await closed_ledger(tables)

    option = "default_headers" if client.ask.__name__ == "invoke" else "extra_headers"
    with pytest.raises(openai.RateLimitError) as refused:
        await client.ask(**{option: session})

    assert (refused.value.code, client.requests) == ("insufficient_quota", 1)


@pytest.mark.parametrize(
    ("limits", "options", "message"),
    [
        ({"total": ONE_CALL}, {"model": "other"}, "PRICES"),
        ({"total": {"tokens_per_minute": 500}}, {}, "more than the 500 that a limit allows per minute"),
        ({"key:ann": {"max_tokens": 50}}, {"max_tokens": 51}, "max_tokens may be at most 50"),
    ],
    ids=["price unknown", "too many tokens", "maximum too large"],
)
async def test_request_that_is_never_admitted_is_sent_once(
    client: Client, options: dict[str, Any], message: str
) -> None:
    with pytest.raises(openai.BadRequestError, match=message):
        await client.ask(**options)

    assert client.requests == 1


@pytest.mark.parametrize("limits", [{"key:ann": {"requests_per_minute": 1}}, {"total": {"requests_per_minute": 1}}])
async def test_minute_is_waited_for(
    client: Client, clock: ManualClock, api: httpx.AsyncClient, fake: AzureOpenAI, tables: Tables
) -> None:
    await use_up(api, fake, tables, ANN)
    clock.set(NOON.replace(second=59))

    await client.ask()

    assert client.requests == 2
    await assert_conserved(tables, fake)


@pytest.mark.parametrize("limits", [{"key:ann": ONE_CALL}])
async def test_budget_held_by_a_running_call_is_waited_for(
    client: Client, api: httpx.AsyncClient, fake: AzureOpenAI, tables: Tables
) -> None:
    with fake.hold(after=0) as hold:
        headers = {"authorization": f"Bearer {ANN}"}
        running = asyncio.create_task(api.post("/api/chat", json={"message": "hi"}, headers=headers))
        await hold.until_reached()
        waiting = asyncio.create_task(client.ask())
        while client.requests == 0:  # noqa: ASYNC110 - the proxy runs in a thread
            await asyncio.sleep(0.01)
        await asyncio.sleep(0.3)  # for its answer
    await running
    await waiting

    assert client.requests == 2
    await assert_conserved(tables, fake)
