"""The stream of openai/v1/responses. Each one goes through a checker of order, ids and numbers, and most through the
accumulator of OpenAI's SDK."""

from collections.abc import Iterator
from typing import Any

import httpx
import openai
import pytest
from openai import AsyncOpenAI

from tests.conftest import Tables
from tests.support.azure_openai import AzureOpenAI as Fake
from tests.support.azure_openai import Kind
from tests.support.chat_client import JSON, ok_json, states
from tests.support.conservation import assert_conserved
from tests.support.response_streams import checked
from tests.support.responses_api import ROUTE, TOOL, create, created_in, get, post, refused, stream
from tests.support.rude_upstream import RudeUpstream, chunk, end, text, usage

CALLS = (("call_1", "look", '{"at": "one"}'), ("call_2", "look", '{"at": "two"}'))
TEXT = [
    "response.created",
    "response.in_progress",
    "response.output_item.added",
    "response.content_part.added",
    *["response.output_text.delta"] * 3,
    "response.output_text.done",
    "response.content_part.done",
    "response.output_item.done",
    "response.completed",
]


def types(events: list[JSON]) -> list[str]:
    return [event["type"] for event in events]


def deltas(events: list[JSON]) -> list[str]:
    return [event["delta"] for event in events if event["type"].endswith(".delta")]


async def accumulated(sdk: AsyncOpenAI, **body: Any) -> Any:
    """The final response as the SDK's accumulator makes it."""
    async with sdk.responses.stream(model="chat", input="hi", **body) as events:
        async for _ in events:
            pass
        return await events.get_final_response()


@pytest.fixture
def upstream(environ: dict[str, str]) -> Iterator[RudeUpstream]:
    """A service that sends the chunks of a test. Request it before `api`."""
    with RudeUpstream() as upstream:
        environ["AZURE_OPENAI_ENDPOINT"] = upstream.endpoint
        yield upstream


async def test_text(client: httpx.AsyncClient, sdk: AsyncOpenAI, fake: Fake, tables: Tables) -> None:
    events = await stream(client)

    assert types(events) == TEXT
    assert "".join(deltas(events)) == "echo: hi"
    stored = await get(client, events[-1]["response"])
    assert stored == events[-1]["response"]
    assert (await accumulated(sdk)).output_text == "echo: hi"
    await assert_conserved(tables, fake)


async def test_parallel_calls_come_one_after_the_other(client: httpx.AsyncClient, sdk: AsyncOpenAI, fake: Fake) -> None:
    fake.reply(tool_calls=CALLS)
    fake.reply(tool_calls=CALLS)

    events = await stream(client, tools=[TOOL])
    final = await accumulated(sdk, tools=[TOOL])

    assert [item["call_id"] for item in events[-1]["response"]["output"]] == ["call_1", "call_2"]
    assert [(item.name, item.arguments) for item in final.output] == [call[1:] for call in CALLS]
    assert len(deltas(events)) > 2  # the first call as it arrives


async def test_interleaved_calls_do_not_mix(upstream: RudeUpstream, client: httpx.AsyncClient) -> None:
    def piece(index: int, **inside: str) -> JSON:
        return {"index": index, "type": "function", "function": inside}

    upstream.stream(
        chunk({"tool_calls": [piece(0, name="look", arguments="") | {"id": "call_1"}]}),
        chunk({"tool_calls": [piece(1, name="look", arguments="") | {"id": "call_2"}]}),
        chunk({"tool_calls": [piece(0, arguments='{"at": ')]}),
        chunk({"tool_calls": [piece(1, arguments='{"at": ')]}),
        chunk({"tool_calls": [piece(0, arguments='"one"}')]}),
        chunk({"tool_calls": [piece(1, arguments='"two"}')]}),
        end("tool_calls"),
        usage(),
    )

    events = await stream(client, tools=[TOOL])

    assert [item["arguments"] for item in events[-1]["response"]["output"]] == [call[2] for call in CALLS]
    assert deltas(events) == ['{"at": ', '"one"}', '{"at": "two"}']


ONE_CALL = {"index": 0, "id": "call_1", "type": "function", "function": {"name": "look", "arguments": "{}"}}


@pytest.mark.parametrize("calls_first", [False, True])
async def test_text_and_calls_keep_their_order(
    upstream: RudeUpstream, client: httpx.AsyncClient, calls_first: bool
) -> None:
    parts = [text("Let me "), chunk({"tool_calls": [ONE_CALL]}), text("look.")]
    upstream.stream(*(parts[1:] if calls_first else parts), end("tool_calls"), usage())

    events = await stream(client, tools=[TOOL])

    kinds = [item["type"] for item in events[-1]["response"]["output"]]
    assert kinds == (["function_call", "message"] if calls_first else ["message", "function_call"])
    stored = await get(client, events[-1]["response"])
    assert stored["output"] == events[-1]["response"]["output"]


@pytest.mark.parametrize(
    "pieces",
    [
        [{"index": 3, "id": "call_1", "type": "function", "function": {"name": "look", "arguments": "{}"}}],
        [{"index": 0, "type": "function", "function": {"name": "look", "arguments": "{}"}}],
        [{"index": 0, "function": {"arguments": "{}"}}, {"index": 0, "function": {"name": "look"}}],
        [{"index": 0, "id": "call_1", "function": {"name": "look", "arguments": "{}"}},
         {"index": 0, "function": {"arguments": '{"at": 1}'}}],
    ],
    ids=["not the first index", "without id", "name last", "a placeholder"],
)  # fmt: skip
async def test_a_call_in_another_form_is_sent_whole(
    upstream: RudeUpstream, client: httpx.AsyncClient, pieces: list[JSON]
) -> None:
    upstream.stream(*(chunk({"tool_calls": [piece]}) for piece in pieces), end("tool_calls"), usage())

    events = await stream(client, tools=[TOOL])

    [item] = events[-1]["response"]["output"]
    assert item["name"] == "look"
    assert item["call_id"]
    assert len(deltas(events)) == 1


async def test_empty_arguments_in_two_pieces(upstream: RudeUpstream, client: httpx.AsyncClient) -> None:
    first = {"index": 0, "id": "call_1", "type": "function", "function": {"name": "look", "arguments": "{"}}
    rest = {"index": 0, "function": {"arguments": "}"}}
    upstream.stream(*(chunk({"tool_calls": [each]}) for each in (first, rest)), end("tool_calls"), usage())

    assert deltas(await stream(client, tools=[TOOL])) == ["{", "}"]


async def test_a_custom_tool_is_called_with_text(upstream: RudeUpstream, client: httpx.AsyncClient) -> None:
    call = {"index": 0, "id": "call_1", "type": "custom", "custom": {"name": "sql", "input": "select "}}
    more = {"index": 0, "custom": {"input": "1"}}
    upstream.stream(*(chunk({"tool_calls": [each]}) for each in (call, more)), end("tool_calls"), usage())
    tool = {"type": "custom", "name": "sql", "format": {"type": "grammar", "syntax": "lark", "definition": "start: x"}}

    events = await stream(client, tools=[tool])

    [item] = events[-1]["response"]["output"]
    assert item == {"id": item["id"], "type": "custom_tool_call", "call_id": "call_1", "name": "sql",
                    "input": "select 1", "status": "completed"}  # fmt: skip
    assert item["id"].startswith("ctc_")
    grammar = {"type": "grammar", "grammar": {"syntax": "lark", "definition": "start: x"}}
    assert upstream.requests[0].body["tools"] == [{"type": "custom", "custom": {"name": "sql", "format": grammar}}]


async def test_a_refusal(client: httpx.AsyncClient, sdk: AsyncOpenAI, fake: Fake) -> None:
    fake.reply(refusal="I can't do that.")
    fake.reply(refusal="I can't do that.")

    events = await stream(client)
    final = await accumulated(sdk)

    [item] = events[-1]["response"]["output"]
    assert item["content"] == [{"type": "refusal", "refusal": "I can't do that."}]
    assert final.output[0].content[0].refusal == "I can't do that."


async def test_a_refusal_comes_after_the_text(upstream: RudeUpstream, client: httpx.AsyncClient) -> None:
    upstream.stream(chunk({"refusal": "No."}), text("Well. "), chunk({"refusal": " Never."}), end(), usage())

    events = await stream(client)

    [item] = events[-1]["response"]["output"]
    assert [part["type"] for part in item["content"]] == ["output_text", "refusal"]
    assert item["content"][1]["refusal"] == "No. Never."


async def test_a_call_comes_after_a_refusal_that_began_before_it(
    upstream: RudeUpstream, client: httpx.AsyncClient
) -> None:
    upstream.stream(chunk({"refusal": "No."}), chunk({"tool_calls": [ONE_CALL]}), end("tool_calls"), usage())

    events = await stream(client, tools=[TOOL])

    assert [item["type"] for item in events[-1]["response"]["output"]] == ["message", "function_call"]


@pytest.mark.parametrize("streamed", [False, True])
@pytest.mark.parametrize("reason", ["max_output_tokens", "content_filter"])
async def test_an_answer_that_is_cut_off_is_incomplete(
    client: httpx.AsyncClient, fake: Fake, reason: str, streamed: bool
) -> None:
    body = {"max_output_tokens": 2} if reason == "max_output_tokens" else {}
    if not body:
        fake.fault("completion_filter")

    response = (await stream(client, **body))[-1]["response"] if streamed else await create(client, **body)

    assert (response["status"], response["incomplete_details"]) == ("incomplete", {"reason": reason})
    assert response["output"][0]["status"] == "incomplete"
    assert response["usage"]["output_tokens"] == 2


async def test_annotations_are_sent_before_the_text_is_done(upstream: RudeUpstream, client: httpx.AsyncClient) -> None:
    cited = {"type": "url_citation", "url_citation": {"url": "https://example.com", "title": "One"}}
    upstream.stream(text("one"), chunk({"annotations": [cited]}), end(), usage())

    events = await stream(client)

    flat = {"type": "url_citation", "url": "https://example.com", "title": "One"}
    [added] = [event for event in events if event["type"] == "response.output_text.annotation.added"]
    assert added["annotation"] == flat
    assert events[-1]["response"]["output"][0]["content"][0]["annotations"] == [flat]


async def test_log_probabilities_if_included(client: httpx.AsyncClient) -> None:
    body: JSON = {"include": ["message.output_text.logprobs"], "top_logprobs": 1}

    events = await stream(client, **body)
    response = await create(client, **body)

    [part] = response["output"][0]["content"]
    assert "".join(each["token"] for each in part["logprobs"]) == "echo: hi"
    assert part["logprobs"][0]["top_logprobs"]
    assert events[-1]["response"]["output"][0]["content"] == [part]
    of_deltas = [each for event in events if event["type"].endswith("text.delta") for each in event["logprobs"]]
    assert of_deltas == part["logprobs"]


async def test_an_error_before_the_first_event_has_its_status(client: httpx.AsyncClient, fake: Fake) -> None:
    fake.fault(429, retry_after=7)

    response = await post(client, stream=True)

    assert response.status_code == 429
    assert response.headers["retry-after"] == "7"
    assert response.headers["content-type"] == "application/json"
    assert response.json()["error"]["type"] == "rate_limit_error"


async def test_an_error_in_the_stream_ends_it_as_failed(
    client: httpx.AsyncClient, sdk: AsyncOpenAI, fake: Fake, tables: Tables
) -> None:
    fake.fault("reset", after=2)

    events = await stream(client)

    assert events[-1]["type"] == "response.failed"
    assert events[-1]["response"]["error"]["code"] == "server_error"
    assert events[-1]["response"]["error"]["message"]
    stored = await get(client, events[-1]["response"])
    assert (stored["status"], stored["error"]["code"], stored["output"]) == ("failed", "server_error", [])
    assert await states(tables) == ["unaccounted"]
    fake.fault("reset", after=2)
    with pytest.raises((openai.APIError, RuntimeError)):
        await accumulated(sdk)


async def test_created_comes_as_soon_as_the_service_answers(client: httpx.AsyncClient, fake: Fake) -> None:
    with fake.hold(after=0):
        async with client.stream("POST", ROUTE, json={"model": "chat", "input": "hi", "stream": True}) as response:
            created = await created_in(response)
            running = await get(client, created)
            chained = await post(client, previous_response_id=created["id"])
            undeleted = await client.delete(f"{ROUTE}/{created['id']}")

    assert (running["status"], running["output"]) == ("in_progress", [])
    error = refused(chained)
    assert (error["param"], error["message"]) == (
        "previous_response_id",
        f"Response with id '{created['id']}' is still in progress.",
    )
    assert "still in progress" in refused(undeleted)["message"]


async def test_a_stream_of_a_stored_answer_is_whole(
    upstream: RudeUpstream, client: httpx.AsyncClient, tables: Tables
) -> None:
    upstream.stream(chunk({"tool_calls": [ONE_CALL]}), text("look."), end("tool_calls"), usage())
    key = {"idempotency-key": "k" * 22}
    first = ok_json(await post(client, key, tools=[TOOL]))

    again = await post(client, key, tools=[TOOL], stream=True)

    assert again.headers["idempotent-replayed"] == "true"
    events = checked(again.text)
    assert events[-1]["response"] == first
    assert len(upstream.requests) == 1


@pytest.mark.parametrize("kind", ["error_event", "truncated", "no_usage"])
async def test_faults_of_the_service_end_the_stream(
    client: httpx.AsyncClient, fake: Fake, tables: Tables, kind: Kind
) -> None:
    fake.fault(kind)

    events = await stream(client)

    assert events[-1]["type"] == ("response.completed" if kind == "no_usage" else "response.failed")
    await assert_conserved(tables, fake)
