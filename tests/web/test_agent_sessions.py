"""What an agent began with openai/v1, continued with api/chat under the same client key."""

from decimal import Decimal

import httpx
import pytest
from openai import AsyncOpenAI

from tests.conftest import FUNCTION_KEY, Tables
from tests.support.agent import QUESTION, use_two_tools
from tests.support.azure_openai import AzureOpenAI
from tests.support.chat_client import JSON, answer, get_json, send_message
from tests.support.conservation import assert_conserved
from tests.support.responses_api import BOB, create


@pytest.fixture
def environ(environ: dict[str, str]) -> dict[str, str]:
    return environ | {"AZURE_OPENAI_DEPLOYMENTS": "large=gpt-5.4"}


@pytest.fixture(autouse=True)
def function_key(client: httpx.AsyncClient) -> None:
    client.headers["x-functions-key"] = FUNCTION_KEY


async def contents(sdk: AsyncOpenAI, conversation: str) -> list[str]:
    """The text of each item, or its type; oldest first."""
    items = sdk.conversations.items.list(conversation, order="asc")
    return [item.content[0].text if item.type == "message" else item.type async for item in items]  # type: ignore[union-attr]


async def test_conversation_of_an_agent_is_read_and_continued_with_its_client_key(
    client: httpx.AsyncClient, sdk: AsyncOpenAI, fake: AzureOpenAI, tables: Tables
) -> None:
    conversation = await use_two_tools(sdk, fake)
    session = conversation.removeprefix("conv_")
    continued = await answer(client, "And Rome?", session)

    assert continued["turn"] == 3
    assert [sent["role"] for sent in fake.requests[-1].body["messages"]] == [
        *("user", "assistant", "tool", "tool", "assistant"),
        "user",
    ]
    turns: list[JSON] = (await get_json(client, f"/api/sessions/{session}/messages"))["turns"]
    total = (await get_json(client, f"/api/sessions/{session}"))["cost_usd"]
    assert sum((turn["cost_usd"] for turn in turns), Decimal(0)) == total
    export = (await client.get(f"/api/sessions/{session}/export?format=markdown")).text
    assert "Calls `get_weather`" in export
    assert "## Tool result\n\n> 7 °C, rain" in export
    assert await contents(sdk, conversation) == [
        *(QUESTION, "function_call", "function_call", "function_call_output", "function_call_output"),
        *("Yes: **18 °C** in Paris, 7 °C in Oslo.", "And Rome?", "echo: And Rome?"),
    ]
    await assert_conserved(tables, fake)


@pytest.mark.parametrize("headers", [{}, {"api-key": BOB}], ids=["no client key", "another's"])
async def test_session_of_an_agent_is_not_found_without_its_client_key(
    client: httpx.AsyncClient, fake: AzureOpenAI, headers: dict[str, str]
) -> None:
    session = (await create(client))["id"][5:37]
    del client.headers["api-key"]
    client.headers.update(headers)
    for path in ("", "/messages", "/export"):
        assert (await client.get(f"/api/sessions/{session}{path}")).status_code == 404
    assert (await client.post(f"/api/sessions/{session}/stop")).status_code == 404
    assert (await client.delete(f"/api/sessions/{session}")).status_code == 404
    assert (await send_message(client, "hi", session)).status_code == 404
    assert len(fake.requests) == 1


async def test_item_of_a_turn_of_api_chat_can_be_deleted_and_chained_behind(
    client: httpx.AsyncClient, sdk: AsyncOpenAI, fake: AzureOpenAI
) -> None:
    conversation = (await sdk.conversations.create()).id
    await answer(client, "secret", conversation.removeprefix("conv_"))
    items = (await sdk.conversations.items.list(conversation, order="asc")).data
    assert await sdk.conversations.items.retrieve(str(items[1].id), conversation_id=conversation) == items[1]
    await sdk.conversations.items.delete(str(items[0].id), conversation_id=conversation)

    assert (await sdk.conversations.items.list(conversation)).data == items[1:]
    await sdk.responses.create(model="chat", input="hi", conversation=conversation)
    assert [sent["content"] for sent in fake.requests[-1].body["messages"]] == ["echo: secret", "hi"]


async def test_conversation_continues_with_the_deployment_that_its_latest_response_named(
    client: httpx.AsyncClient, sdk: AsyncOpenAI
) -> None:
    conversation = (await sdk.conversations.create()).id
    await sdk.responses.create(model="large", input="hi", conversation=conversation)
    assert (await answer(client, "more", conversation.removeprefix("conv_")))["deployment"] == "large"
