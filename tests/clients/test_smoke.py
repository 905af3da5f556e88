"""A smoke test of each client that uses openai/v1/responses and conversations. The Node clients are scripts here."""

from collections.abc import AsyncIterator
from typing import Any

import agents
import pytest
from agents import Agent, OpenAIConversationsSession, OpenAIResponsesModel, Runner, function_tool
from openai import AsyncOpenAI, BadRequestError, NotFoundError
from pydantic import BaseModel

from local import azurite, packages
from tests.clients.answers import FILTER, REFUSE, SUMS
from tests.clients.conftest import HERE, KEY, App


class Person(BaseModel):
    name: str
    age: int


@pytest.fixture
async def sdk(app: App) -> AsyncIterator[AsyncOpenAI]:
    async with AsyncOpenAI(base_url=app.base, api_key=KEY, max_retries=0) as sdk:
        yield sdk


async def test_openai_sdk(app: App, sdk: AsyncOpenAI) -> None:
    created = await sdk.responses.create(model="chat", input="one")
    assert created.output_text == "echo: one"
    async with sdk.responses.stream(model="chat", input="two", previous_response_id=created.id) as stream:
        text = "".join([event.delta async for event in stream if event.type == "response.output_text.delta"])
        assert (await stream.get_final_response()).output_text == text == "echo: one | two"
    parsed = await sdk.responses.parse(model="chat", input="Who?", text_format=Person)
    assert parsed.output_parsed == Person(name="echo: Who?", age=7)

    conversation = await sdk.conversations.create(items=[{"role": "user", "content": "My name is Ada."}])
    answer = await sdk.responses.create(model="chat", input="Who am I?", conversation=conversation.id)
    assert answer.output_text == "echo: My name is Ada. | Who am I?"
    items = [item async for item in sdk.conversations.items.list(conversation.id, order="asc", limit=2)]
    assert [item.type for item in items] == ["message"] * 3
    await sdk.conversations.items.delete(str(items[0].id), conversation_id=conversation.id)
    updated = await sdk.conversations.update(conversation.id, metadata={"a": "2"})
    assert updated.metadata == {"a": "2"}
    assert (await sdk.conversations.delete(conversation.id)).deleted
    with pytest.raises(NotFoundError):
        await sdk.conversations.retrieve(conversation.id)
    await app.assert_billed(streams=1, erased=[conversation.id])


async def test_openai_sdk_gets_incomplete_and_refused_answers(app: App, sdk: AsyncOpenAI) -> None:
    for prompt, end, reason in (
        (REFUSE, "response.completed", None),
        (FILTER, "response.incomplete", "content_filter"),
        ("long " * 20, "response.incomplete", "max_output_tokens"),
    ):
        whole = await sdk.responses.create(model="chat", input=prompt, max_output_tokens=16)
        async with sdk.responses.stream(model="chat", input=prompt, max_output_tokens=16) as stream:
            events: list[Any] = [event async for event in stream]
        assert events[-1].type == end
        assert (whole.incomplete_details and whole.incomplete_details.reason) == reason
        assert [item.to_dict() | {"id": ""} for item in events[-1].response.output] == [
            item.to_dict() | {"id": ""} for item in whole.output
        ]
    with pytest.raises(BadRequestError, match="image_generation"):
        await sdk.responses.create(model="chat", input="x", tools=[{"type": "image_generation"}])
    await app.assert_billed(streams=3)


async def test_openai_sdk_for_node(app: App) -> None:
    erased = await node(app, "openai_sdk.cjs")
    await app.assert_billed(streams=1, erased=erased.split())


async def test_vercel_ai_sdk_takes_three_steps_of_tools(app: App) -> None:
    await node(app, "ai_sdk.cjs")
    await app.assert_billed(streams=4)


async def node(app: App, script: str) -> str:
    program = azurite.node()
    assert program
    return await app.run(program, HERE / script, SUMS, NODE_PATH=str(packages.NODE_CLIENTS.target / "node_modules"))


def add(a: int, b: int) -> int:
    """Add two numbers."""
    return a + b


@pytest.fixture
def agent(sdk: AsyncOpenAI) -> Agent[Any]:
    agents.set_tracing_disabled(True)  # it would send traces to OpenAI
    model = OpenAIResponsesModel(model="chat", openai_client=sdk)
    return Agent(name="Adder", instructions="Be brief.", model=model, tools=[function_tool(add)])


async def test_openai_agents_continues_a_response(app: App, agent: Agent[Any]) -> None:
    first = await Runner.run(agent, SUMS)
    assert first.final_output == "results: 3, 7, 10"
    more = await Runner.run(agent, "More?", previous_response_id=first.last_response_id)
    assert more.final_output == f"echo: {SUMS} | More?"
    chained = Runner.run_streamed(agent, SUMS, auto_previous_response_id=True)
    async for _ in chained.stream_events():
        pass
    assert chained.final_output == "results: 3, 7, 10"
    await app.assert_billed(streams=3)


async def test_openai_agents_continues_a_conversation(app: App, sdk: AsyncOpenAI, agent: Agent[Any]) -> None:
    conversation = (await sdk.conversations.create()).id
    for prompt in ("My name is Ada.", SUMS):
        await Runner.run(agent, prompt, conversation_id=conversation)
    session = OpenAIConversationsSession(conversation_id=conversation, openai_client=sdk)
    streamed = Runner.run_streamed(agent, "Who am I?", session=session)
    async for _ in streamed.stream_events():
        pass
    assert streamed.final_output == f"echo: My name is Ada. | {SUMS} | Who am I?"
    await session.pop_item()
    await session.clear_session()
    await app.assert_billed(streams=1, erased=[conversation])
