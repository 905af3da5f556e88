"""pydantic-ai, where `openai:NAME` is the Responses API.

Run by test_acceptance.py in an environment of its own, with the prompt that takes three steps of tools. Reads
OPENAI_BASE_URL and OPENAI_API_KEY, as pydantic-ai does.
"""

import asyncio
import sys

from pydantic import BaseModel
from pydantic_ai import Agent, NativeOutput  # type: ignore[import-not-found]
from pydantic_ai.models.openai import OpenAIResponsesModelSettings  # type: ignore[import-not-found]

MODEL, SUMS = "openai:gpt-5.4-mini", sys.argv[1]


class Person(BaseModel):
    name: str
    age: int


def add(a: int, b: int) -> int:
    """Add two numbers."""
    return a + b


async def main() -> None:
    for settings in ({}, {"openai_previous_response_id": "auto"}):
        agent = Agent(MODEL, tools=[add], model_settings=OpenAIResponsesModelSettings(**settings))
        first = await agent.run(SUMS)
        assert first.output == "results: 3, 7, 10", first.output
        async with agent.run_stream("More?", message_history=first.all_messages()) as more:
            assert await more.get_output() == f"echo: {SUMS} | More?"
    parsed = await Agent(MODEL, output_type=NativeOutput(Person)).run("Who?")
    assert parsed.output == Person(name="echo: Who?", age=7), parsed.output


asyncio.run(main())
