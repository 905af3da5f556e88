"""Requests for responses: what the model gets of them, and which are refused, with the field in OpenAI's notation."""

import asyncio
from typing import Any

import httpx
import pytest
from openai import AsyncOpenAI

from tests.conftest import Serve, Tables
from tests.support.azure_openai import AzureOpenAI as Fake
from tests.support.budgets import limited
from tests.support.chat_client import JSON, ledger, ok_json
from tests.support.loopback import MAX_WAIT_S
from tests.support.responses_api import ANN, KEYS, ROUTE, TOOL, create, get, post, refused

MISSING, UNKNOWN, BOTH = "missing_required_parameter", "unknown_parameter", "mutually_exclusive_parameters"
TYPE, INVALID = "invalid_type", "invalid_value"
UNSUPPORTED, UNSUPPORTED_VALUE = "unsupported_parameter", "unsupported_value"
PICTURE = "data:image/png;base64,iVBORw0KGgo="
FILE = "data:application/pdf;base64,JVBERi0="
CALL: JSON = {"type": "function_call", "call_id": "call_1", "name": "look", "arguments": "{}"}
RESULT: JSON = {"type": "function_call_output", "call_id": "call_1", "output": "a cat"}
CHAT_CALL: JSON = {"id": "call_1", "type": "function", "function": {"name": "look", "arguments": "{}"}}
SCHEMA: JSON = {"type": "object", "properties": {"answer": {"type": "string"}}}
WEB_SEARCH: JSON = {"type": "web_search", "external_web_access": False}
NAMESPACE: JSON = {"type": "namespace", "name": "mcp", "description": "", "tools": []}


def message(role: str, *content: JSON) -> JSON:
    return {"role": role, "content": list(content)}


def text(kind: str = "input_text") -> JSON:
    return {"type": kind, "text": "hi"}


# Translation


@pytest.mark.parametrize(
    ("items", "messages"),
    [
        ([{"role": "user", "content": "hi"}], [{"role": "user", "content": "hi"}]),
        ([{"type": None, **message("developer", text())}, message("user", text())],
         [{"role": "system", "content": "hi"}, {"role": "user", "content": "hi"}]),
        ([message("user", text(), {"type": "input_image", "image_url": PICTURE, "file_id": None, "detail": None})],
         [{"role": "user", "content": [{"type": "text", "text": "hi"},
                                       {"type": "image_url", "image_url": {"url": PICTURE, "detail": "auto"}}]}]),
        ([message("user", text(), {"type": "input_file", "file_data": FILE, "filename": "a.pdf"})],
         [{"role": "user", "content": [{"type": "text", "text": "hi"},
                                       {"type": "file", "file": {"file_data": FILE, "filename": "a.pdf"}}]}]),
        ([message("user", text()), message("assistant", text("output_text")), message("user", text())],
         [{"role": role, "content": "hi"} for role in ("user", "assistant", "user")]),
        ([message("user", text()), CALL, RESULT],
         [{"role": "user", "content": "hi"}, {"role": "assistant", "content": None, "tool_calls": [CHAT_CALL]},
          {"role": "tool", "tool_call_id": "call_1", "content": "a cat"}]),
        ([message("user", text()), CALL, message("assistant", text("output_text")), RESULT],
         [{"role": "user", "content": "hi"}, {"role": "assistant", "content": "hi", "tool_calls": [CHAT_CALL]},
          {"role": "tool", "tool_call_id": "call_1", "content": "a cat"}]),
        ([CALL, message("user", text()), RESULT | {"output": [text(), text()]}],
         [{"role": "assistant", "content": None, "tool_calls": [CHAT_CALL]},
          {"role": "tool", "tool_call_id": "call_1", "content": "hi\nhi"},
          {"role": "user", "content": "hi"}]),
        ([CALL, RESULT | {"output": [{"type": "input_image", "image_url": PICTURE}]}, message("user", text())],
         [{"role": "assistant", "content": None, "tool_calls": [CHAT_CALL]},
          {"role": "tool", "tool_call_id": "call_1", "content": "The result follows."},
          {"role": "user", "content": [{"type": "image_url", "image_url": {"url": PICTURE, "detail": "auto"}}]},
          {"role": "user", "content": "hi"}]),
        ([CALL, RESULT | {"output": [text(), {"type": "input_file", "file_data": FILE}]}],
         [{"role": "assistant", "content": None, "tool_calls": [CHAT_CALL]},
          {"role": "tool", "tool_call_id": "call_1", "content": "hi"},
          {"role": "user", "content": [{"type": "file", "file": {"file_data": FILE}}]}]),
        ([message("user", text()), {"type": "reasoning", "id": "rs_1", "summary": [], "encrypted_content": "x"},
          CALL | {"id": "fc_1", "status": "completed"}, RESULT | {"id": None, "status": None}],
         [{"role": "user", "content": "hi"}, {"role": "assistant", "content": None, "tool_calls": [CHAT_CALL]},
          {"role": "tool", "tool_call_id": "call_1", "content": "a cat"}]),
    ],
    ids=["easy", "developer", "image", "file", "answer", "call", "text after a call", "result apart", "picture",
         "file of a result",
         "replayed"],
)  # fmt: skip
async def test_items_become_messages(
    client: httpx.AsyncClient, fake: Fake, items: list[JSON], messages: list[JSON]
) -> None:
    first = await create(client, input=items)
    await create(client, input="more", previous_response_id=first["id"])

    assert fake.requests[0].body["messages"] == messages
    assert fake.requests[1].body["messages"][: len(messages)] == messages


@pytest.mark.parametrize(
    ("body", "options"),
    [
        ({"temperature": 0, "top_p": 1, "user": "u"}, {"temperature": 0, "top_p": 1, "user": "u"}),
        ({"max_output_tokens": 50}, {"max_completion_tokens": 50}),
        ({"reasoning": {"effort": "low", "summary": "auto"}}, {"reasoning_effort": "low"}),
        ({"text": {"format": {"type": "text"}, "verbosity": "low"}}, {"verbosity": "low"}),
        ({"text": {"format": {"type": "json_object"}}}, {"response_format": {"type": "json_object"}}),
        ({"text": {"format": {"type": "json_schema", "name": "a", "schema": SCHEMA, "strict": True}}},
         {"response_format": {"type": "json_schema", "json_schema": {"name": "a", "schema": SCHEMA, "strict": True}}}),
        ({"tools": [TOOL], "tool_choice": "required", "parallel_tool_calls": False},
         {"tools": [{"type": "function", "function": {"name": "look", "parameters": TOOL["parameters"]}}],
          "tool_choice": "required", "parallel_tool_calls": False}),
        ({"tools": [TOOL | {"strict": True, "defer_loading": False}],
          "tool_choice": {"type": "function", "name": "look"}},
         {"tools": [{"type": "function",
                     "function": {"name": "look", "parameters": TOOL["parameters"], "strict": True}}],
          "tool_choice": {"type": "function", "function": {"name": "look"}}}),
        ({"include": ["message.output_text.logprobs"]}, {"logprobs": True, "top_logprobs": 0}),
        ({"tool_choice": "auto", "parallel_tool_calls": True}, {}),
        ({"metadata": {"a": "b"}, "stream_options": {"include_obfuscation": False}, "store": None,
          "include": ["reasoning.encrypted_content", "message.input_image.image_url"], "max_tool_calls": 2,
          "service_tier": "auto", "client_metadata": {"x": "y"}, "background": False, "prompt": None}, {}),
    ],
    ids=lambda value: "-".join(value) if isinstance(value, dict) else None,
)  # fmt: skip
async def test_options_become_those_of_chat_completions(
    client: httpx.AsyncClient, fake: Fake, body: JSON, options: JSON
) -> None:
    await create(client, **body)

    sent = dict(fake.requests[0].body)
    for name in ("model", "messages", "stream", "stream_options"):
        del sent[name]
    assert sent == options


async def test_allowed_tools_are_named_as_in_chat_completions(client: httpx.AsyncClient, fake: Fake) -> None:
    fake.reply("hi")
    choice = {"type": "allowed_tools", "mode": "auto", "tools": [{"type": "function", "name": "look"}]}

    response = await create(client, tools=[TOOL], tool_choice=choice)

    named = {"type": "function", "function": {"name": "look"}}
    assert fake.requests[0].body["tool_choice"] == {
        "type": "allowed_tools",
        "allowed_tools": {"mode": "auto", "tools": [named]},
    }
    assert response["tool_choice"] == choice


async def test_instructions_hold_for_one_call(client: httpx.AsyncClient, fake: Fake) -> None:
    first = await create(client, instructions="Be brief.")
    second = await create(client, previous_response_id=first["id"])

    assert [each["role"] for each in fake.requests[1].body["messages"]] == ["user", "assistant", "user"]
    assert (first["instructions"], second["instructions"]) == ("Be brief.", None)


async def test_tools_that_codex_always_sends_are_left_out_with_a_notice(client: httpx.AsyncClient, fake: Fake) -> None:
    tools = [WEB_SEARCH, TOOL, NAMESPACE]

    response = await create(client, tools=tools, tool_choice="auto")
    alone = await create(client, tools=[WEB_SEARCH], tool_choice="auto", parallel_tool_calls=True)

    [notice] = response["warnings"]
    assert "namespace, web_search" in notice
    assert [tool["type"] for tool in response["tools"]] == ["function"]
    assert len(fake.requests[0].body["tools"]) == 1
    assert fake.requests[1].body.keys() == {"model", "messages", "stream", "stream_options"}
    assert alone["warnings"]
    assert (await get(client, response)) == response
    assert "warnings" not in await create(client)


# Refusals


@pytest.mark.parametrize(
    ("body", "param", "code"),
    [
        ({"input": ""}, "input", None),
        ({"input": []}, "input", None),
        ({"input": None}, "input", MISSING),
        ({"input": 5}, "input", TYPE),
        ({"model": None}, "model", MISSING),
        ({"model": 5}, "model", TYPE),
        ({"input": ["hi"]}, "input[0]", TYPE),
        ({"input": [{"role": "user", "content": "hi"}, {"role": "user"}]}, "input[1].content", MISSING),
        ({"input": [{"role": "tool", "content": "hi"}]}, "input[0].role", INVALID),
        ({"input": [{"type": "computer_call"}]}, "input[0].type", INVALID),
        ({"input": [message("user", {"type": "input_audio"})]}, "input[0].content[0].type", INVALID),
        ({"input": [message("user", {"text": "hi"})]}, "input[0].content[0].type", INVALID),
        ({"input": [message("user", {"type": "input_image", "file_id": "f"})]},
         "input[0].content[0].file_id", UNSUPPORTED),
        ({"input": [message("user", {"type": "input_file", "file_url": "u"})]},
         "input[0].content[0].file_url", UNSUPPORTED),
        ({"input": [CALL]}, "input", None),
        ({"input": [RESULT]}, "input", None),
        ({"input": [{"type": "reasoning", "summary": []}]}, "input", None),
        ({"input": [{"role": "user", "content": "hi"}] * 2_049}, "input", INVALID),
        ({"previous_response_id": "x"}, "previous_response_id", INVALID),
        ({"previous_response_id": "resp_x"}, "previous_response_id", "previous_response_not_found"),
        ({"previous_response_id": "resp_" + "0" * 40}, "previous_response_id", "previous_response_not_found"),
        ({"conversation": "x"}, "conversation", INVALID),
        ({"conversation": {"ID": "x"}}, "conversation.id", MISSING),
        ({"conversation": "conv_x", "previous_response_id": "resp_x"}, "previous_response_id", BOTH),
        ({"conversation": "conv_x", "store": False}, "store", UNSUPPORTED_VALUE),
        ({"tools": [{"type": "code_interpreter", "container": "x"}]}, "tools[0].type", UNSUPPORTED_VALUE),
        ({"tools": [TOOL, {"type": "mcp"}]}, "tools[1].type", UNSUPPORTED_VALUE),
        ({"tools": [TOOL | {"name": None}]}, "tools[0].name", TYPE),
        ({"tools": [TOOL | {"defer_loading": True}]}, "tools[0].defer_loading", UNSUPPORTED),
        ({"tools": [{"type": "function", "function": {"name": "look"}}]}, "tools[0].name", MISSING),
        ({"tools": {}}, "tools", TYPE),
        ({"tool_choice": "look"}, "tool_choice", INVALID),
        ({"tool_choice": {"type": "file_search"}}, "tool_choice.type", UNSUPPORTED_VALUE),
        ({"tools": [WEB_SEARCH], "tool_choice": {"type": "web_search"}}, "tool_choice.type", UNSUPPORTED_VALUE),
        ({"tools": [WEB_SEARCH], "tool_choice": "required"}, "tool_choice", UNSUPPORTED_VALUE),
        ({"tool_choice": {"type": "allowed_tools", "mode": "auto", "tools": [{"type": "mcp"}]}},
         "tool_choice.tools[0].type", UNSUPPORTED_VALUE),
        ({"background": True}, "background", UNSUPPORTED),
        ({"prompt": {"id": "p"}}, "prompt", UNSUPPORTED),
        ({"seed": 1}, "seed", UNKNOWN),
        ({"messages": []}, "messages", UNKNOWN),
        ({"text": {"form": 1}}, "text.form", UNKNOWN),
        ({"text": {"format": {"type": "json_schema", "name": "a"}}}, "text.format.schema", MISSING),
        ({"text": {"format": {"type": "xml"}}}, "text.format.type", INVALID),
        ({"reasoning": {"mode": "pro"}}, "reasoning.mode", INVALID),
        ({"include": ["file_search_call.results"]}, "include[0]", INVALID),
        ({"temperature": 3}, "temperature", INVALID),
        ({"temperature": "1"}, "temperature", TYPE),
        ({"max_output_tokens": 0}, "max_output_tokens", INVALID),
        ({"top_logprobs": 21}, "top_logprobs", INVALID),
        ({"service_tier": "flex"}, "service_tier", INVALID),
        ({"truncation": "middle"}, "truncation", INVALID),
        ({"metadata": {"a": 1}}, "metadata.a", TYPE),
        ({"metadata": {str(each): "" for each in range(17)}}, "metadata", INVALID),
        ({"metadata": {"a" * 65: ""}}, None, INVALID),
        ({"stream": "yes"}, "stream", TYPE),
        ({"store": "no"}, "store", TYPE),
    ],
    ids=str,
)  # fmt: skip
async def test_a_wrong_request_is_refused_and_changes_nothing(
    client: httpx.AsyncClient, fake: Fake, tables: Tables, body: JSON, param: str | None, code: str | None
) -> None:
    error = refused(await post(client, **body))

    assert (error["type"], error["code"]) == ("invalid_request_error", code)
    assert param is None or error["param"] == param
    assert error["message"]
    assert fake.requests == []
    assert await ledger(tables) == []


async def test_what_is_refused_is_named(client: httpx.AsyncClient) -> None:
    long = refused(await post(client, metadata={"a": "x" * 513}))
    assert long["message"] == "Invalid 'metadata.a': it should have at most 512 characters."
    messages = [
        refused(await post(client, **body))["message"]
        for body in (
            {"seed": 1},
            {"tools": [{"type": "code_interpreter"}]},
            {"input": [{"role": "user"}]},
            {"conversation": "c"},
            {"input": [{"type": "computer_call"}]},
            {"temperature": 3},
        )
    ]

    assert messages == [
        "Unknown parameter: 'seed'.",
        "Hosted tools are not supported: 'code_interpreter'. Supported values of a tool's type are: 'function' and"
        " 'custom'.",
        "Missing required parameter: 'input[0].content'.",
        "Invalid 'conversation': 'c'. Expected an ID that begins with 'conv_'.",
        "Invalid value for 'input[0].type': 'computer_call'. Supported values are: 'message', 'function_call',"
        " 'function_call_output', 'custom_tool_call', 'custom_tool_call_output', 'reasoning', 'item_reference'.",
        "Invalid 'temperature': it should be at most 2.0.",
    ]


LONG = "max_" + "x" * 300_000


@pytest.mark.parametrize(
    ("body", "status"),
    [
        ({"model": LONG}, 404),
        ({"conversation": f"conv_{LONG}"}, 404),
        ({"previous_response_id": f"resp_{LONG}"}, 400),
        ({"input": [{"type": "item_reference", "id": LONG}]}, 404),
        ({"input": [RESULT | {"call_id": LONG}]}, 400),
        ({"input": [CALL | {"call_id": LONG}]}, 400),
        ({"input": [{"type": LONG}]}, 400),
        ({"tools": [{"type": LONG}]}, 400),
        ({"include": [LONG]}, 400),
        ({LONG: 1}, 400),
    ],
    ids=lambda value: str(value)[:30],
)
async def test_what_is_long_and_wrong_is_refused_at_once_and_shortened(
    client: httpx.AsyncClient, body: JSON, status: int
) -> None:
    async with asyncio.timeout(10):
        error = refused(await post(client, **body), status)

    assert len(error["message"]) < 500


async def test_an_unknown_model_and_conversation_are_not_found(client: httpx.AsyncClient) -> None:
    assert refused(await post(client, model="x"), 404)["code"] == "model_not_found"
    conversation = "conv_" + "0" * 32
    error = refused(await post(client, conversation={"id": conversation}), 404)
    assert error["message"] == f"Conversation with id '{conversation}' not found."


@pytest.mark.parametrize("body", [b"", b"{", b"[]", b'"hi"', b"null", b'{"model": "chat", "input": "\xff"}'])
async def test_a_body_that_is_no_object_is_refused(client: httpx.AsyncClient, body: bytes) -> None:
    response = await client.post(ROUTE, content=body, headers={"content-type": "application/json"})

    assert refused(response)["type"] == "invalid_request_error"


async def test_a_key_is_required(client: httpx.AsyncClient) -> None:
    for method, path in (("POST", ROUTE), ("GET", f"{ROUTE}/resp_1"), ("DELETE", f"{ROUTE}/resp_1")):
        response = await client.request(method, path, headers={"api-key": "wrong"})
        assert refused(response, 401)["code"] == "unauthorized"


async def test_limits_apply(serve: Serve, environ: dict[str, str], fake: Fake) -> None:
    limits = {"key:ann": {"max_tokens": 20, "requests_per_minute": 2}}
    async with serve(limited(environ | KEYS, limits)) as client:
        client.headers["api-key"] = ANN
        long = refused(await post(client, max_output_tokens=21))
        answered = await post(client)
        await post(client)
        refusal = await post(client, stream=True)

    assert (long["message"], long["param"]) == ("max_output_tokens may be at most 20.", "max_output_tokens")
    assert ok_json(answered)["max_output_tokens"] is None
    assert fake.requests[0].body["max_completion_tokens"] == 20
    assert answered.headers["x-ratelimit-remaining-requests"] == "1"
    assert refused(refusal, 429)["type"] == "rate_limit_error"
    assert refusal.headers["x-ratelimit-remaining-requests"] == "0"


async def test_a_dump_of_an_answer_is_accepted_as_input(sdk: AsyncOpenAI, fake: Fake) -> None:
    fake.reply("Let me look.", tool_calls=(("call_1", "look", "{}"),))
    tools: Any = [TOOL]
    first = await sdk.responses.create(model="chat", input="hi", tools=tools, store=False)
    history: Any = [{"role": "user", "content": "hi"}, *(item.model_dump() for item in first.output), RESULT]

    await sdk.responses.create(model="chat", input=history, tools=tools, store=False)

    assert [each["role"] for each in fake.requests[1].body["messages"]] == ["user", "assistant", "tool"]


async def test_long_instructions_are_stored_and_too_long_ones_refused(
    client: httpx.AsyncClient, fake: Fake, tables: Tables
) -> None:
    response = await create(client, instructions="Be brief. " * 20_000)

    assert await get(client, response) == response
    assert refused(await post(client, instructions="x" * 600_000), 413)["code"] == "message_too_large"
    assert len(fake.requests) == 1
    unstored = await create(client, instructions="x" * 600_000, store=False)
    assert unstored["status"] == "completed"


@pytest.mark.filterwarnings("ignore:Sending a large body:ResourceWarning")  # of aiohttp, above 1 MiB
async def test_a_long_input_in_chinese_is_answered_and_stored(client: httpx.AsyncClient) -> None:
    response = await asyncio.wait_for(create(client, input="中" * 200_000, max_output_tokens=16), MAX_WAIT_S)

    assert await get(client, response) == response
