"""Tool calls over HTTP: called, answered, replayed together, and left out together where nobody answered."""

from typing import Any

import httpx
import pytest

from tests.conftest import Tables
from tests.support.azure_openai import AzureOpenAI
from tests.support.conservation import assert_conserved
from tests.support.talking import answer, closed_ledger, events, look, say

JSON = dict[str, Any]
WEATHER: JSON = {
    "type": "function",
    "function": {"name": "weather", "parameters": {"type": "object", "properties": {"city": {"type": "string"}}}},
}
OSLO = ("call_oslo", "weather", '{"city":"Oslo"}')
ROME = ("call_rome", "weather", '{"city":"Rom \\u2744 🙂"}')


def wire(call: tuple[str, str, str]) -> JSON:
    return {"id": call[0], "type": "function", "function": {"name": call[1], "arguments": call[2]}}


def calling(*calls: tuple[str, str, str], content: str | None = None) -> JSON:
    return {"role": "assistant", "content": content, "tool_calls": [wire(call) for call in calls]}


def tool(call: tuple[str, str, str], content: str) -> JSON:
    return {"role": "tool", "tool_call_id": call[0], "content": content}


def user(content: str) -> JSON:
    return {"role": "user", "content": content}


def assistant(content: str) -> JSON:
    return {"role": "assistant", "content": content}


def sent(fake: AzureOpenAI, request: int = -1) -> list[JSON]:
    """What the model was sent, but for the system prompt."""
    messages: list[JSON] = fake.requests[request].body["messages"]
    return messages[1:]


async def call_tools(
    api: httpx.AsyncClient, fake: AzureOpenAI, *calls: tuple[str, str, str], text: str = "", session: str = "s"
) -> JSON:
    """A turn that the model answers with tool calls."""
    fake.reply(text, tool_calls=calls)
    return await answer(api, "What is the weather?", session, tools=[WEATHER])


async def post_results(
    api: httpx.AsyncClient, *results: tuple[str, str], session: str = "s", **fields: Any
) -> httpx.Response:
    given = [{"tool_call_id": call_id, "content": content} for call_id, content in results]
    return await say(api, None, session, tool_results=given, **fields)


async def give_results(api: httpx.AsyncClient, *results: tuple[str, str], **fields: Any) -> JSON:
    response = await post_results(api, *results, **fields)
    assert response.status_code == 200, response.text
    told: JSON = response.json()
    return told


async def test_an_answer_may_be_tool_calls(api: httpx.AsyncClient, fake: AzureOpenAI) -> None:
    told = await call_tools(api, fake, OSLO, ROME)

    assert told["message"] == calling(OSLO, ROME)
    assert told["finish_reason"] == "tool_calls"
    assert told["cost_usd"] > 0
    assert fake.requests[0].body["tools"] == [WEATHER]


async def test_a_stream_brings_tool_calls_in_pieces(api: httpx.AsyncClient, fake: AzureOpenAI) -> None:
    fake.reply(tool_calls=(OSLO, ROME))

    spoken = events((await say(api, "hi", tools=[WEATHER], stream=True)).content)

    pieces = [call for event in spoken if event.name == "delta" for call in event.data["tool_calls"]]
    arguments = {0: "", 1: ""}
    for piece in pieces:
        arguments[piece["index"]] += piece["function"]["arguments"]
    assert arguments == {0: OSLO[2], 1: ROME[2]}
    assert [piece["id"] for piece in pieces if "id" in piece] == ["call_oslo", "call_rome"]
    assert spoken[-1].data["message"] == calling(OSLO, ROME)


async def test_results_go_to_the_model_behind_their_calls(api: httpx.AsyncClient, fake: AzureOpenAI) -> None:
    await call_tools(api, fake, OSLO)
    fake.reply("It rains.")

    told = await give_results(api, ("call_oslo", "rain 🌧"))

    assert (told["turn"], told["message"]) == (2, assistant("It rains."))
    assert sent(fake) == [user("What is the weather?"), calling(OSLO), tool(OSLO, "rain 🌧")]


async def test_calls_and_results_are_replayed_as_they_were(api: httpx.AsyncClient, fake: AzureOpenAI) -> None:
    await call_tools(api, fake, OSLO, ROME, text="Let me look.")
    fake.reply("Rain and sun.")
    await give_results(api, ("call_oslo", "rain"), ("call_rome", "sun"))
    await answer(api, "Thanks")

    assert sent(fake) == [
        user("What is the weather?"),
        calling(OSLO, ROME, content="Let me look."),
        tool(OSLO, "rain"),
        tool(ROME, "sun"),
        assistant("Rain and sun."),
        user("Thanks"),
    ]
    history = await look(api, "/api/sessions/s/messages")
    assert history["turns"][1]["messages"] == [tool(OSLO, "rain"), tool(ROME, "sun"), assistant("Rain and sun.")]


async def test_parallel_calls_may_be_answered_in_any_order(api: httpx.AsyncClient, fake: AzureOpenAI) -> None:
    await call_tools(api, fake, OSLO, ROME)

    await give_results(api, ("call_rome", "sun"), ("call_oslo", "rain"))

    assert sent(fake)[2:] == [tool(ROME, "sun"), tool(OSLO, "rain")]


async def test_tools_may_be_called_again_and_again(api: httpx.AsyncClient, fake: AzureOpenAI, tables: Tables) -> None:
    await call_tools(api, fake, OSLO)
    fake.reply(tool_calls=(ROME,))
    await give_results(api, ("call_oslo", "rain"), tools=[WEATHER])
    fake.reply("Done.")
    await give_results(api, ("call_rome", "sun"), tools=[WEATHER])

    assert sent(fake) == [
        user("What is the weather?"),
        calling(OSLO),
        tool(OSLO, "rain"),
        calling(ROME),
        tool(ROME, "sun"),
    ]
    await assert_conserved(tables, fake)


async def test_an_empty_result_is_a_result(api: httpx.AsyncClient, fake: AzureOpenAI) -> None:
    await call_tools(api, fake, OSLO)
    await give_results(api, ("call_oslo", ""))
    await answer(api, "Thanks")

    assert sent(fake)[1:3] == [calling(OSLO), tool(OSLO, "")]


async def test_tools_hold_for_one_turn(api: httpx.AsyncClient, fake: AzureOpenAI) -> None:
    await call_tools(api, fake, OSLO)
    await give_results(api, ("call_oslo", "rain"))

    assert "tools" not in fake.requests[1].body


async def test_calls_that_a_plain_message_passes_over_are_left_out(api: httpx.AsyncClient, fake: AzureOpenAI) -> None:
    await call_tools(api, fake, OSLO, ROME)

    await answer(api, "Never mind.")
    assert sent(fake) == [user("What is the weather?"), user("Never mind.")]
    await answer(api, "Hello?")
    assert sent(fake)[:2] == [user("What is the weather?"), user("Never mind.")]
    refused = await post_results(api, ("call_oslo", "rain"), ("call_rome", "sun"))
    assert (refused.status_code, refused.json()["error"]["param"]) == (400, "tool_results")


async def test_what_was_said_beside_calls_that_nobody_answered_stays(api: httpx.AsyncClient, fake: AzureOpenAI) -> None:
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
async def test_results_must_answer_exactly_the_pending_calls(
    api: httpx.AsyncClient, fake: AzureOpenAI, tables: Tables, results: list[tuple[str, str]]
) -> None:
    await call_tools(api, fake, OSLO, ROME)

    refused = await post_results(api, *results)

    error = refused.json()["error"]
    assert (refused.status_code, error["code"], error["param"]) == (400, "invalid_request", "tool_results")
    assert "call_oslo, call_rome" in error["message"]
    assert len(fake.requests) == len(await closed_ledger(tables)) == 1
    assert (await give_results(api, ("call_oslo", "rain"), ("call_rome", "sun")))["turn"] == 2


async def test_results_that_nobody_asked_for_are_refused(
    api: httpx.AsyncClient, fake: AzureOpenAI, tables: Tables
) -> None:
    await answer(api)

    refused = await post_results(api, ("call_oslo", "rain"))

    assert (refused.status_code, refused.json()["error"]["param"]) == (400, "tool_results")
    assert (await look(api, "/api/sessions/s"))["turns"] == len(await closed_ledger(tables)) == 1


async def test_results_begin_no_session(api: httpx.AsyncClient, fake: AzureOpenAI) -> None:
    refused = await post_results(api, ("call_oslo", "rain"))

    assert (refused.status_code, refused.json()["error"]["param"]) == (400, "tool_results")
    assert (await api.get("/api/sessions/s")).status_code == 404
    assert not fake.requests


async def test_results_may_be_posted_again_after_a_failure(
    api: httpx.AsyncClient, fake: AzureOpenAI, tables: Tables
) -> None:
    await call_tools(api, fake, OSLO)
    fake.fault(503)
    assert (await post_results(api, ("call_oslo", "rain"))).status_code == 503
    for _ in range(2):
        fake.fault("reset", after=1)
    assert (await post_results(api, ("call_oslo", "rain"))).status_code == 502

    told = await give_results(api, ("call_oslo", "sun after all"))

    assert told["turn"] == 4
    assert sent(fake) == [user("What is the weather?"), calling(OSLO), tool(OSLO, "sun after all")]
    await assert_conserved(tables, fake)


async def test_a_plain_message_after_failed_results_leaves_the_calls_out(
    api: httpx.AsyncClient, fake: AzureOpenAI
) -> None:
    await call_tools(api, fake, OSLO)
    fake.fault(503)
    await post_results(api, ("call_oslo", "rain"))

    await answer(api, "Never mind.")

    assert sent(fake) == [user("What is the weather?"), user("Never mind.")]


async def test_pending_calls_outlive_a_failed_plain_message(api: httpx.AsyncClient, fake: AzureOpenAI) -> None:
    await call_tools(api, fake, OSLO)
    fake.fault(503)
    assert (await say(api, "Never mind.")).status_code == 503

    assert (await give_results(api, ("call_oslo", "rain")))["turn"] == 3
    assert sent(fake) == [user("What is the weather?"), calling(OSLO), tool(OSLO, "rain")]


async def test_a_tool_that_must_be_called_is(api: httpx.AsyncClient, fake: AzureOpenAI) -> None:
    told = await answer(api, "Oslo", tools=[WEATHER], tool_choice="required")

    [call] = told["message"]["tool_calls"]
    assert call["function"] == {"name": "weather", "arguments": '{"city":"echo: Oslo"}'}
    await give_results(api, (call["id"], "rain"))


async def test_an_answer_in_a_schema_is_its_text(api: httpx.AsyncClient, fake: AzureOpenAI) -> None:
    schema = {"type": "object", "properties": {"city": {"type": "string"}, "found": {"type": "boolean"}}}
    shape = {"type": "json_schema", "json_schema": {"name": "n", "schema": schema}}

    told = await answer(api, "Oslo", response_format=shape)

    assert told["message"]["content"] == '{"city":"echo: Oslo","found":true}'
