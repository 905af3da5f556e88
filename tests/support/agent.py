"""An agent: OpenAI's SDK with a conversation or previous_response_id, as its users run it."""

from typing import Any

import httpx
from openai import AsyncOpenAI

from tests.support.azure_openai import AzureOpenAI
from tests.support.responses_api import ANN

WEATHER: Any = {
    "type": "function",
    "name": "get_weather",
    "parameters": {"type": "object", "properties": {"city": {"type": "string"}, "days": {"type": "integer"}}},
}
QUESTION = "Is Paris warmer than Oslo?"


def connected(api: httpx.AsyncClient, key: str = ANN) -> AsyncOpenAI:
    return AsyncOpenAI(base_url=f"{api.base_url}/openai/v1", api_key=key, max_retries=0)


async def use_two_tools(sdk: AsyncOpenAI, fake: AzureOpenAI) -> str:
    """A conversation with a question, two calls of a tool, their results and the answer. Returns its id."""
    conversation = (await sdk.conversations.create()).id
    calls = (("call_1", "get_weather", '{"city":"Paris","days":3}'), ("call_2", "get_weather", '{"city":"Oslo"}'))
    fake.reply(tool_calls=calls)
    await sdk.responses.create(model="chat", input=QUESTION, tools=[WEATHER], conversation=conversation)
    fake.reply("Yes: **18 °C** in Paris, 7 °C in Oslo.")
    results: Any = [
        {"type": "function_call_output", "call_id": "call_1", "output": '{"celsius": 18, "sky": "clear"}'},
        {"type": "function_call_output", "call_id": "call_2", "output": "7 °C, rain"},
    ]
    await sdk.responses.create(model="chat", input=results, tools=[WEATHER], conversation=conversation)
    return conversation
