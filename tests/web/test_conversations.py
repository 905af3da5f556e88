"""openai/v1/conversations, with OpenAI's client and without."""

import asyncio
from typing import Any, Literal

import httpx
import openai
import pytest
from openai import AsyncAzureOpenAI, AsyncOpenAI
from openai.types.conversations import ConversationItem
from openai.types.responses import EasyInputMessageParam

from shared.domain.conversation import Kind
from tests.conftest import FUNCTION_KEY, Tables
from tests.support.azure_openai import AzureOpenAI
from tests.support.chat_client import JSON, closed_ledger, ok_json, stored
from tests.support.conservation import assert_conserved
from tests.support.responses_api import ANN, BOB, TOOL, create, post, refused

ROUTE = "/openai/v1/conversations"
UNKNOWN = "conv_" + "0" * 32


def message(text: str, role: str = "user") -> JSON:
    return {"role": role, "content": text}


def of_user(text: str) -> EasyInputMessageParam:
    return {"type": "message", "role": "user", "content": text}


def texts(items: list[ConversationItem]) -> list[str]:
    return [item.content[0].text for item in items if item.type == "message"]  # type: ignore[union-attr]


async def begin(client: httpx.AsyncClient, *items: JSON, **fields: Any) -> str:
    """The id of a new conversation."""
    return str(ok_json(await client.post(ROUTE, json={"items": items, **fields}))["id"])


async def items_of(client: httpx.AsyncClient, conversation: str, **query: Any) -> list[JSON]:
    page = ok_json(await client.get(f"{ROUTE}/{conversation}/items", params={"order": "asc", "limit": 100, **query}))
    data: list[JSON] = page["data"]
    return data


# With OpenAI's client


async def test_openai_client_creates_reads_updates_and_deletes_a_conversation(sdk: AsyncOpenAI) -> None:
    created = await sdk.conversations.create(metadata={"topic": "maps"}, items=[of_user("one")])
    assert created.id.startswith("conv_")
    assert (created.object, created.metadata) == ("conversation", {"topic": "maps"})
    assert await sdk.conversations.retrieve(created.id) == created

    updated = await sdk.conversations.update(created.id, metadata={"a": "b"})
    assert updated == created.model_copy(update={"metadata": {"a": "b"}})
    assert (await sdk.conversations.update(created.id, metadata=None)).metadata == {}

    deleted = await sdk.conversations.delete(created.id)
    assert (deleted.id, deleted.object, deleted.deleted) == (created.id, "conversation.deleted", True)
    with pytest.raises(openai.NotFoundError, match=f"Conversation with id '{created.id}' not found"):
        await sdk.conversations.retrieve(created.id)


async def test_openai_client_pages_through_items_of_turns_and_added_ones(
    sdk: AsyncOpenAI, fake: AzureOpenAI, tables: Tables
) -> None:
    conversation = (await sdk.conversations.create()).id
    assert (await sdk.conversations.items.list(conversation)).data == []
    added = await sdk.conversations.items.create(conversation, items=[of_user(str(number)) for number in range(20)])
    assert texts(added.data) == [str(number) for number in range(20)]
    fake.reply("pong")
    response = await sdk.responses.create(model="chat", input="ping", conversation=conversation)
    assert response.conversation
    assert response.conversation.id == conversation

    expected = [*map(str, range(20)), "ping", "pong"]
    pages: list[tuple[Literal["asc", "desc"], int]] = [("asc", 7), ("desc", 1), ("asc", 100)]
    for order, limit in pages:
        page = sdk.conversations.items.list(conversation, order=order, limit=limit)
        assert texts([item async for item in page]) == expected[:: 1 if order == "asc" else -1]
    newest = (await sdk.conversations.items.list(conversation, limit=1)).data[0]
    assert newest.id == response.output[0].id
    assert await sdk.conversations.items.retrieve(str(newest.id), conversation_id=conversation) == newest
    await assert_conserved(tables, fake)


async def test_deleting_an_item_returns_the_conversation_and_hides_it_from_the_model(
    sdk: AsyncOpenAI, fake: AzureOpenAI
) -> None:
    conversation = await sdk.conversations.create(items=[of_user("secret")], metadata={"a": "b"})
    await sdk.conversations.items.create(conversation.id, items=[of_user("rest")])
    item = (await sdk.conversations.items.list(conversation.id, order="asc")).data[0]

    assert await sdk.conversations.items.delete(str(item.id), conversation_id=conversation.id) == conversation
    with pytest.raises(openai.NotFoundError, match=f"Item with id '{item.id}' not found"):
        await sdk.conversations.items.retrieve(str(item.id), conversation_id=conversation.id)
    with pytest.raises(openai.NotFoundError):
        await sdk.conversations.items.delete(str(item.id), conversation_id=conversation.id)
    await sdk.responses.create(model="chat", input="hi", conversation=conversation.id)
    assert [sent["content"] for sent in fake.requests[-1].body["messages"]] == ["rest", "hi"]


async def test_azure_client_finds_conversations_at_its_paths(client: httpx.AsyncClient) -> None:
    async with AsyncAzureOpenAI(azure_endpoint=str(client.base_url), api_key=ANN, api_version="2025-04-01") as azure:
        conversation = (await azure.conversations.create(items=[of_user("one")])).id
        assert texts([item async for item in azure.conversations.items.list(conversation)]) == ["one"]
        await azure.conversations.update(conversation, metadata={"a": "b"})
        assert (await azure.conversations.retrieve(conversation)).metadata == {"a": "b"}
        await azure.conversations.delete(conversation)


async def test_openai_client_waits_for_a_locked_conversation(
    sdk: AsyncOpenAI, fake: AzureOpenAI, tables: Tables
) -> None:
    conversation = (await sdk.conversations.create()).id
    with fake.hold() as hold:
        running = asyncio.create_task(sdk.responses.create(model="chat", input="one", conversation=conversation))
        await hold.until_reached()
        with pytest.raises(openai.BadRequestError) as raised:
            await sdk.conversations.items.create(conversation, items=[of_user("two")])
        waiting = asyncio.create_task(
            sdk.with_options(max_retries=2).conversations.items.create(conversation, items=[of_user("two")])
        )
        hold.release()
        await running
    assert raised.value.code == "conversation_locked"
    assert raised.value.param == "conversation"
    assert raised.value.response.headers["x-should-retry"] == "true"
    assert int(raised.value.response.headers["retry-after"]) >= 1
    assert texts((await waiting).data) == ["two"]
    await assert_conserved(tables, fake)


# Items


ALL_ITEMS: list[JSON] = [
    {"role": "system", "content": "Be brief."},
    {"type": "message", "role": "user", "content": [{"type": "input_text", "text": "look"}]},
    {"type": "reasoning", "summary": []},
    {"type": "function_call", "call_id": "c1", "name": "look", "arguments": "{}"},
    {"type": "function_call_output", "call_id": "c1", "output": "seen"},
    {"type": "custom_tool_call", "call_id": "c2", "name": "write", "input": "x"},
    {"type": "custom_tool_call_output", "call_id": "c2", "output": "written"},
    {"type": "message", "role": "assistant", "content": [{"type": "output_text", "text": "Done.", "annotations": []}]},
]


async def test_every_kind_of_item_is_kept_with_an_id_of_its_kind(client: httpx.AsyncClient, fake: AzureOpenAI) -> None:
    conversation = await begin(client, *ALL_ITEMS)

    items = await items_of(client, conversation)
    prefixes = ["msg", "msg", "rs", "fc", "fco", "ctc", "ctco", "msg"]
    assert [item["id"].partition("_")[0] for item in items] == prefixes
    assert items[1] == {
        "id": items[1]["id"],
        "type": "message",
        "role": "user",
        "status": "completed",
        "content": [{"type": "input_text", "text": "look"}],
    }
    assert items[3] | {"id": ""} == {**ALL_ITEMS[3], "id": "", "status": "completed"}
    await create(client, conversation=conversation, input="go on")
    roles = [sent["role"] for sent in fake.requests[-1].body["messages"]]
    assert roles == ["system", "user", "assistant", "tool", "assistant", "tool", "assistant", "user"]


async def test_items_that_are_sent_with_ids_are_content_and_get_new_ids(client: httpx.AsyncClient) -> None:
    first, second = await begin(client, message("one")), await begin(client)
    items = await items_of(client, first)

    for conversation in (first, second):
        ok_json(await client.post(f"{ROUTE}/{conversation}/items", json={"items": items}))
    copied = await items_of(client, second)
    assert [item["content"] for item in copied] == [item["content"] for item in items]
    assert copied[0]["id"] != items[0]["id"]
    assert len({item["id"] for item in await items_of(client, first)}) == 2


async def test_reference_to_an_item_adds_its_content(client: httpx.AsyncClient) -> None:
    item = (await items_of(client, await begin(client, message("one"))))[0]
    conversation = await begin(client, {"type": "item_reference", "id": item["id"]})
    assert [each["content"] for each in await items_of(client, conversation)] == [item["content"]]

    unknown = {"type": "item_reference", "id": item["id"][:-1] + "1"}
    response = await client.post(f"{ROUTE}/{conversation}/items", json={"items": [unknown]})
    assert "not found" in refused(response, 404)["message"]


async def test_tool_call_is_answered_across_responses_of_a_conversation(
    client: httpx.AsyncClient, fake: AzureOpenAI
) -> None:
    conversation = await begin(client)
    fake.reply("", tool_calls=(("c1", "look", "{}"),))
    await create(client, conversation=conversation, tools=[TOOL])
    output = {"type": "function_call_output", "call_id": "c1", "output": "seen"}
    await create(client, conversation=conversation, input=[output], tools=[TOOL])
    assert [sent["role"] for sent in fake.requests[-1].body["messages"]] == ["user", "assistant", "tool"]


async def test_two_conversations_and_responses_keep_apart(
    client: httpx.AsyncClient, fake: AzureOpenAI, tables: Tables
) -> None:
    one, two = await begin(client, message("one")), await begin(client, message("two"))
    response = await create(client, conversation=one, input="three")
    chained = await create(client, previous_response_id=response["id"], input="four")

    assert chained["conversation"] is None
    assert [item["content"][0]["text"] for item in await items_of(client, one)][::2] == ["one", "echo: three"]
    assert len(await items_of(client, two)) == 1
    assert [sent["content"] for sent in fake.requests[-1].body["messages"]] == ["one", "three", "echo: three", "four"]
    session, _ = await stored(tables, one.removeprefix("conv_"))
    assert (session.kind, session.turns) == (Kind.CONVERSATION, 2)
    await assert_conserved(tables, fake)


# What is refused


BIG = {"m" * 65: ""}
REFUSED: list[tuple[str, str, Any, str | None]] = [
    ("POST", "", {"items": [message(str(number)) for number in range(21)]}, "items"),
    ("POST", "", {"items": "one"}, "items"),
    ("POST", "", {"items": [{"type": "web_search_call", "id": "x"}]}, "items[0].type"),
    ("POST", "", {"items": [message("x", "robot")]}, "items[0].role"),
    ("POST", "", {"metadata": {"a": 1}}, "metadata.a"),
    ("POST", "", {"metadata": {str(number): "" for number in range(17)}}, "metadata"),
    ("POST", "", {"metadata": BIG}, None),
    ("POST", "", {"topic": "maps"}, "topic"),
    ("POST", "", [], None),
    ("POST", "/{id}", {}, "metadata"),
    ("POST", "/{id}", {"metadata": {}, "items": []}, "items"),
    ("POST", "/{id}/items", {}, "items"),
    ("POST", "/{id}/items", {"items": []}, "items"),
    ("GET", "/{id}/items?limit=0", None, "limit"),
    ("GET", "/{id}/items?limit=101", None, "limit"),
    ("GET", "/{id}/items?order=up", None, "order"),
    ("GET", "/{id}/items?include=logprobs", None, "include"),
    ("GET", "/{id}/items?include[]=usage.cost_usd&include[]=other", None, "include"),
    ("GET", "/{id}/items/msg_1?include=logprobs", None, "include"),
    ("POST", "/{id}/items?include=logprobs", {"items": [message("two")]}, "include"),
    ("GET", "/{id}/items?after=x", None, "after"),
    ("GET", "/{id}/items?after=msg_" + "0" * 43, None, "after"),
    ("GET", "/x", None, "conversation_id"),
    ("DELETE", "/resp_" + "0" * 32, None, "conversation_id"),
]


@pytest.mark.parametrize(("method", "path", "body", "param"), REFUSED)
async def test_invalid_request_names_its_field_and_changes_nothing(
    client: httpx.AsyncClient, tables: Tables, method: str, path: str, body: Any, param: str | None
) -> None:
    conversation = await begin(client, message("one"), metadata={"a": "b"})
    before = await stored(tables, conversation.removeprefix("conv_"))

    response = await client.request(method, ROUTE + path.replace("{id}", conversation), json=body)
    error = refused(response)
    assert error["type"] == "invalid_request_error"
    if param:
        assert error["param"] == param
    assert await stored(tables, conversation.removeprefix("conv_")) == before


async def paths(client: httpx.AsyncClient, conversation: str, item: str) -> list[tuple[str, str, Any]]:
    one = f"{ROUTE}/{conversation}"
    return [
        ("GET", one, None),
        ("POST", one, {"metadata": {}}),
        ("DELETE", one, None),
        ("GET", f"{one}/items", None),
        ("POST", f"{one}/items", {"items": [message("two")]}),
        ("GET", f"{one}/items/{item}", None),
        ("DELETE", f"{one}/items/{item}", None),
    ]


async def test_conversation_of_another_key_is_not_found(client: httpx.AsyncClient, tables: Tables) -> None:
    conversation = await begin(client, message("one"))
    item = (await items_of(client, conversation))[0]["id"]
    before = await stored(tables, conversation.removeprefix("conv_"))
    for method, path, body in await paths(client, conversation, item):
        response = await client.request(method, path, json=body, headers={"api-key": BOB})
        assert refused(response, 404)["message"] == f"Conversation with id '{conversation}' not found."
        assert (await client.request(method, path, json=body, headers={"api-key": "x"})).status_code == 401
    assert await stored(tables, conversation.removeprefix("conv_")) == before


async def test_unknown_conversation_and_one_that_is_a_response_are_not_found(client: httpx.AsyncClient) -> None:
    response = await create(client)
    session = response["id"][len("resp_") :][:32]
    item = response["output"][0]["id"]
    for conversation in (UNKNOWN, f"conv_{session}", "conv_", "conv_%2e%2e", "conv_" + "A" * 32):
        for method, path, body in await paths(client, conversation, item):
            assert refused(await client.request(method, path, json=body), 404)
        answered = await post(client, conversation=httpx.URL(f"http://x/{conversation}").path[1:])
        assert refused(answered, 404)


async def test_item_of_another_conversation_is_not_found(client: httpx.AsyncClient) -> None:
    one, two = await begin(client, message("one")), await begin(client, message("two"))
    item = (await items_of(client, two))[0]["id"]
    for text in (item, item.replace("msg_", "fc_"), item[:-1] + "1", "x", "msg_", item + "0"):
        for method in ("GET", "DELETE"):
            response = await client.request(method, f"{ROUTE}/{one}/items/{text}")
            assert refused(response, 404)["message"] == f"Item with id '{text}' not found."
    wrong_kind = await client.delete(f"{ROUTE}/{two}/items/{item.replace('msg_', 'fc_')}")
    assert refused(wrong_kind, 404)
    assert len(await items_of(client, two)) == 1


async def test_items_that_are_too_large_are_refused(client: httpx.AsyncClient) -> None:
    conversation = await begin(client)
    body = {"items": [message("x" * 600_000)]}
    assert refused(await client.post(f"{ROUTE}/{conversation}/items", json=body), 413)
    assert refused(await client.post(ROUTE, json=body), 413)
    assert await items_of(client, conversation) == []


# Beside the other routes


async def test_same_key_reads_and_exports_it_as_a_session(client: httpx.AsyncClient, fake: AzureOpenAI) -> None:
    conversation = await begin(client, message("one"))
    fake.reply("three")
    await create(client, conversation=conversation, input="two")
    session = f"/api/sessions/{conversation.removeprefix('conv_')}"
    headers = {"x-functions-key": FUNCTION_KEY}

    turns = ok_json(await client.get(f"{session}/messages", headers=headers))["turns"]
    assert [turn["state"] for turn in turns] == ["settled", "added"]
    exported = ok_json(await client.get(f"{session}/export", headers=headers))
    assert exported["conversation"] == turns[::-1]
    assert exported["session"]["cost_usd"] == turns[0]["cost_usd"] > 0
    other = await client.get(f"{session}/messages", headers={**headers, "api-key": BOB})
    assert other.status_code == 404


async def test_erased_conversation_ends_its_responses_and_keeps_its_cost(
    client: httpx.AsyncClient, fake: AzureOpenAI, tables: Tables
) -> None:
    conversation = await begin(client, message("one"))
    response = await create(client, conversation=conversation)
    branch = await create(client, previous_response_id=response["id"])
    await closed_ledger(tables)
    ok_json(await client.delete(f"{ROUTE}/{conversation}"))

    assert refused(await client.get(f"/openai/v1/responses/{response['id']}"), 404)
    for previous in (response, branch):
        error = refused(await post(client, previous_response_id=previous["id"]))
        assert error["code"] == "previous_response_not_found"
    assert refused(await post(client, conversation=conversation), 404)
    await assert_conserved(tables, fake, erased=[conversation.removeprefix("conv_")])
