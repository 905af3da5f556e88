"""Tool calls over HTTP: calls and results are replayed together; unanswered calls are left out of the prompt."""

from typing import Any

import httpx
import pytest

from tests.conftest import Tables
from tests.support.azure_openai import AzureOpenAI
from tests.support.chat_client import answer, closed_ledger, events, get_json, send_message
from tests.support.conservation import assert_conserved

JSON = dict[str, Any]
WEATHER: JSON = {
    "type": "function",
    "function": {"name": "weather", "parameters": {"type": "object", "properties": {"city": {"type": "string"}}}},
}
OSLO = ("call_oslo", "weather", '{"city":"Oslo"}')
ROME = ("call_rome", "weather", '{"city":"Rom \\u2744 🙂"}')


def tool_call(call: tuple[str, str, str]) -> JSON:
    return {"id": call[0], "type": "function", "function": {"name": call[1], "arguments": call[2]}}


def calling(*calls: tuple[str, str, str], content: str | None = None) -> JSON:
    return {"role": "assistant", "content": content, "tool_calls": [tool_call(call) for call in calls]}


def tool(call: tuple[str, str, str], content: str) -> JSON:
    return {"role": "tool", "tool_call_id": call[0], "content": content}


def user(content: str) -> JSON:
    return {"role": "user", "content": content}


def assistant(content: str) -> JSON:
    return {"role": "assistant", "content": content}


def sent(fake: AzureOpenAI, request: int = -1) -> list[JSON]:
    """The messages sent to the model, without the system prompt."""
    messages: list[JSON] = fake.requests[request].body["messages"]
    return messages[1:]


async def call_tools(
    api: httpx.AsyncClient, fake: AzureOpenAI, *calls: tuple[str, str, str], text: str = "", session: str = "s"
) -> JSON:
    """Run a turn that the model answers with tool calls."""
    fake.reply(text, tool_calls=calls)
    return await answer(api, "What is the weather?", session, tools=[WEATHER])


async def send_results(
    api: httpx.AsyncClient, *results: tuple[str, str], session: str = "s", **fields: Any
) -> httpx.Response:
    tool_results = [{"tool_call_id": call_id, "content": content} for call_id, content in results]
    return await send_message(api, None, session, tool_results=tool_results, **fields)


async def answer_calls(api: httpx.AsyncClient, *results: tuple[str, str], **fields: Any) -> JSON:
    response = await send_results(api, *results, **fields)
    assert response.status_code == 200, response.text
    turn: JSON = response.json()
    return turn


async def test_answer_can_be_tool_calls(api: httpx.AsyncClient, fake: AzureOpenAI) -> None:
    turn = await call_tools(api, fake, OSLO, ROME)

    assert turn["message"] == calling(OSLO, ROME)
    assert turn["finish_reason"] == "tool_calls"
    assert turn["cost_usd"] > 0
    assert fake.requests[0].body["tools"] == [WEATHER]


async def test_stream_delivers_tool_calls_in_deltas(api: httpx.AsyncClient, fake: AzureOpenAI) -> None:
    fake.reply(tool_calls=(OSLO, ROME))

    received = events((await send_message(api, "hi", tools=[WEATHER], stream=True)).content)

    pieces = [call for event in received if event.name == "delta" for call in event.data["tool_calls"]]
    arguments = {0: "", 1: ""}
    for piece in pieces:
        arguments[piece["index"]] += piece["function"]["arguments"]
    assert arguments == {0: OSLO[2], 1: ROME[2]}
    assert [piece["id"] for piece in pieces if "id" in piece] == ["call_oslo", "call_rome"]
    assert received[-1].data["message"] == calling(OSLO, ROME)


async def test_tool_results_are_sent_to_the_model_after_their_calls(api: httpx.AsyncClient, fake: AzureOpenAI) -> None:
    await call_tools(api, fake, OSLO)
    fake.reply("It rains.")

    turn = await answer_calls(api, ("call_oslo", "rain 🌧"))

    assert (turn["turn"], turn["message"]) == (2, assistant("It rains."))
    assert sent(fake) == [user("What is the weather?"), calling(OSLO), tool(OSLO, "rain 🌧")]


async def test_tool_calls_and_results_are_replayed_unchanged(api: httpx.AsyncClient, fake: AzureOpenAI) -> None:
    await call_tools(api, fake, OSLO, ROME, text="Let me look.")
    fake.reply("Rain and sun.")
    await answer_calls(api, ("call_oslo", "rain"), ("call_rome", "sun"))
    await answer(api, "Thanks")

    assert sent(fake) == [
        user("What is the weather?"),
        calling(OSLO, ROME, content="Let me look."),
        tool(OSLO, "rain"),
        tool(ROME, "sun"),
        assistant("Rain and sun."),
        user("Thanks"),
    ]
    history = await get_json(api, "/api/sessions/s/messages")
    assert history["turns"][1]["messages"] == [tool(OSLO, "rain"), tool(ROME, "sun"), assistant("Rain and sun.")]


async def test_parallel_tool_results_may_come_in_any_order(api: httpx.AsyncClient, fake: AzureOpenAI) -> None:
    await call_tools(api, fake, OSLO, ROME)

    await answer_calls(api, ("call_rome", "sun"), ("call_oslo", "rain"))

    assert sent(fake)[2:] == [tool(ROME, "sun"), tool(OSLO, "rain")]


async def test_tool_results_can_be_followed_by_more_tool_calls(
    api: httpx.AsyncClient, fake: AzureOpenAI, tables: Tables
) -> None:
    await call_tools(api, fake, OSLO)
    fake.reply(tool_calls=(ROME,))
    await answer_calls(api, ("call_oslo", "rain"), tools=[WEATHER])
    fake.reply("Done.")
    await answer_calls(api, ("call_rome", "sun"), tools=[WEATHER])

    assert sent(fake) == [
        user("What is the weather?"),
        calling(OSLO),
        tool(OSLO, "rain"),
        calling(ROME),
        tool(ROME, "sun"),
    ]
    await assert_conserved(tables, fake)


async def test_empty_tool_result_is_valid(api: httpx.AsyncClient, fake: AzureOpenAI) -> None:
    await call_tools(api, fake, OSLO)
    await answer_calls(api, ("call_oslo", ""))
    await answer(api, "Thanks")

    assert sent(fake)[1:3] == [calling(OSLO), tool(OSLO, "")]


async def test_tools_apply_to_one_turn_only(api: httpx.AsyncClient, fake: AzureOpenAI) -> None:
    await call_tools(api, fake, OSLO)
    await answer_calls(api, ("call_oslo", "rain"))

    assert "tools" not in fake.requests[1].body


async def test_unanswered_tool_calls_are_left_out_of_the_prompt_after_a_message(
    api: httpx.AsyncClient, fake: AzureOpenAI
) -> None:
    await call_tools(api, fake, OSLO, ROME)

    await answer(api, "Never mind.")
    assert sent(fake) == [user("What is the weather?"), user("Never mind.")]
    await answer(api, "Hello?")
    assert sent(fake)[:2] == [user("What is the weather?"), user("Never mind.")]
    refused = await send_results(api, ("call_oslo", "rain"), ("call_rome", "sun"))
    assert (refused.status_code, refused.json()["error"]["param"]) == (400, "tool_results")


async def test_text_beside_unanswered_tool_calls_stays_in_the_prompt(api: httpx.AsyncClient, fake: AzureOpenAI) -> None:
    await call_tools(api, fake, OSLO, text="Let me look.")

    await answer(api, "Never mind.")

    assert sent(fake) == [user("What is the weather?"), assistant("Let me look."), user("Never mind.")]


@pytest.mark.parametrize(
    "results",
    [
        [("call_oslo", "rain")],
        [("call_oslo", "rain"), ("call_rome", "sun"), ("call_bonn", "fog")],
        [("call_oslo", "rain"), ("call_bonn", "fog")],
        [("call_oslo", "rain"), ("call_oslo", "rain"), ("call_rome", "sun")],
    ],
    ids=["missing", "extra", "wrong", "twice"],
)
async def test_tool_results_must_match_the_pending_calls_exactly(
    api: httpx.AsyncClient, fake: AzureOpenAI, tables: Tables, results: list[tuple[str, str]]
) -> None:
    await call_tools(api, fake, OSLO, ROME)

    refused = await send_results(api, *results)

    error = refused.json()["error"]
    assert (refused.status_code, error["code"], error["param"]) == (400, "invalid_request", "tool_results")
    assert "call_oslo, call_rome" in error["message"]
    assert len(fake.requests) == len(await closed_ledger(tables)) == 1
    assert (await answer_calls(api, ("call_oslo", "rain"), ("call_rome", "sun")))["turn"] == 2


async def test_tool_results_without_pending_calls_return_400(
    api: httpx.AsyncClient, fake: AzureOpenAI, tables: Tables
) -> None:
    await answer(api)

    refused = await send_results(api, ("call_oslo", "rain"))

    assert (refused.status_code, refused.json()["error"]["param"]) == (400, "tool_results")
    assert (await get_json(api, "/api/sessions/s"))["turns"] == len(await closed_ledger(tables)) == 1


async def test_tool_results_cannot_start_a_session(api: httpx.AsyncClient, fake: AzureOpenAI) -> None:
    refused = await send_results(api, ("call_oslo", "rain"))

    assert (refused.status_code, refused.json()["error"]["param"]) == (400, "tool_results")
    assert (await api.get("/api/sessions/s")).status_code == 404
    assert not fake.requests


async def test_tool_results_can_be_sent_again_after_a_failed_turn(
    api: httpx.AsyncClient, fake: AzureOpenAI, tables: Tables
) -> None:
    await call_tools(api, fake, OSLO)
    fake.fault(503)
    assert (await send_results(api, ("call_oslo", "rain"))).status_code == 503
    for _ in range(2):
        fake.fault("reset", after=1)
    assert (await send_results(api, ("call_oslo", "rain"))).status_code == 502

    turn = await answer_calls(api, ("call_oslo", "sun after all"))

    assert turn["turn"] == 4
    assert sent(fake) == [user("What is the weather?"), calling(OSLO), tool(OSLO, "sun after all")]
    await assert_conserved(tables, fake)


async def test_message_after_failed_tool_results_leaves_the_calls_out(
    api: httpx.AsyncClient, fake: AzureOpenAI
) -> None:
    await call_tools(api, fake, OSLO)
    fake.fault(503)
    await send_results(api, ("call_oslo", "rain"))

    await answer(api, "Never mind.")

    assert sent(fake) == [user("What is the weather?"), user("Never mind.")]


async def test_tool_calls_stay_pending_after_a_failed_message(api: httpx.AsyncClient, fake: AzureOpenAI) -> None:
    await call_tools(api, fake, OSLO)
    fake.fault(503)
    assert (await send_message(api, "Never mind.")).status_code == 503

    assert (await answer_calls(api, ("call_oslo", "rain")))["turn"] == 3
    assert sent(fake) == [user("What is the weather?"), calling(OSLO), tool(OSLO, "rain")]


async def test_tool_choice_required_forces_a_tool_call(api: httpx.AsyncClient, fake: AzureOpenAI) -> None:
    turn = await answer(api, "Oslo", tools=[WEATHER], tool_choice="required")

    [call] = turn["message"]["tool_calls"]
    assert call["function"] == {"name": "weather", "arguments": '{"city":"echo: Oslo"}'}
    await answer_calls(api, (call["id"], "rain"))


async def test_structured_answer_is_returned_as_text(api: httpx.AsyncClient, fake: AzureOpenAI) -> None:
    schema = {"type": "object", "properties": {"city": {"type": "string"}, "found": {"type": "boolean"}}}
    shape = {"type": "json_schema", "json_schema": {"name": "n", "schema": schema}}

    turn = await answer(api, "Oslo", response_format=shape)

    assert turn["message"]["content"] == '{"city":"echo: Oslo","found":true}'
