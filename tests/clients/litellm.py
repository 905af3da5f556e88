"""LiteLLM's azure/ models: with tools it sends those from GPT-5.6 on to the Responses API by itself.

Run by test_acceptance.py in an environment of its own, with the prompt that takes three steps of tools. Reads
AZURE_API_BASE, AZURE_API_KEY and AZURE_API_VERSION, as LiteLLM does.
"""

import json
import sys
from typing import Any

import litellm  # type: ignore[import-not-found]

SUMS = sys.argv[1]
NUMBERS = {"type": "object", "properties": {"a": {"type": "integer"}, "b": {"type": "integer"}}, "required": ["a", "b"]}
ADD = {"type": "function", "function": {"name": "add", "description": "Add two numbers.", "parameters": NUMBERS}}


def complete(model: str, messages: list[Any], *, stream: bool) -> Any:
    answer = litellm.completion(model=model, messages=messages, tools=[ADD], stream=stream, num_retries=0)
    return (litellm.stream_chunk_builder(list(answer)) if stream else answer).choices[0].message


def result(call: Any) -> dict[str, str]:
    arguments = json.loads(call.function.arguments)
    return {"role": "tool", "tool_call_id": call.id, "content": str(arguments["a"] + arguments["b"])}


for model in ("azure/gpt-5.6", "azure/responses/gpt-5.4-mini"):
    for stream in (False, True):
        messages: list[Any] = [{"role": "user", "content": SUMS}]
        while (message := complete(model, messages, stream=stream)).tool_calls:
            messages += [message, *map(result, message.tool_calls)]
        assert message.content == "results: 3, 7, 10", (model, stream, message)
