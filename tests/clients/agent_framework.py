"""Microsoft's agent-framework. It continues by previous_response_id by itself.

Run by test_acceptance.py in an environment of its own, with the prompt that takes three steps of tools.
"""

import asyncio
import os
import sys

from agent_framework import Agent  # type: ignore[import-not-found]
from agent_framework.openai import OpenAIChatClient  # type: ignore[import-not-found]

SUMS = sys.argv[1]


def add(a: int, b: int) -> int:
    """Add two numbers."""
    return a + b


async def main() -> None:
    client = OpenAIChatClient(
        model="gpt-5.4-mini", base_url=os.environ["OPENAI_BASE_URL"], api_key=os.environ["OPENAI_API_KEY"]
    )
    agent = Agent(client=client, instructions="Be brief.", tools=[add])
    session = agent.create_session()
    first = await agent.run(SUMS, session=session)
    assert first.text == "results: 3, 7, 10", first.text
    assert session.service_session_id.startswith("resp_")
    more = await agent.run("More?", session=session)
    assert more.text == f"echo: {SUMS} | More?", more.text

    stream = agent.run(SUMS, stream=True)
    async for _ in stream:
        pass
    assert (await stream.get_final_response()).text == "results: 3, 7, 10"


asyncio.run(main())
