"""openai/v1/responses: creating, continuing, reading and deleting responses."""

import asyncio
import time
from decimal import Decimal

import httpx
import pytest
from openai import AsyncAzureOpenAI, AsyncOpenAI, BadRequestError, NotFoundError
from pydantic import BaseModel

from shared.services import services
from shared.web.responses.errors import renamed
from tests.conftest import Tables
from tests.support.azure_openai import AzureOpenAI as Fake
from tests.support.chat_client import JSON, closed_ledger, expire_lease, ok_json, stored, until
from tests.support.conservation import assert_conserved
from tests.support.response_streams import checked
from tests.support.responses_api import ANN, BOB, ROUTE, TOOL, create, created_in, get, post, refused, stream

CALL: JSON = {"type": "function_call", "call_id": "call_1", "name": "look", "arguments": "{}"}
RESULT: JSON = {"type": "function_call_output", "call_id": "call_1", "output": "a cat"}


def texts(fake: Fake) -> list[tuple[str, object]]:
    """The messages of the latest request to the model."""
    return [(message["role"], message.get("content")) for message in fake.requests[-1].body["messages"]]


def output_text(response: JSON) -> str:
    return "".join(part["text"] for item in response["output"] for part in item.get("content", ()))


def session_of(response: JSON) -> str:
    return str(response["id"]).removeprefix("resp_")[:32]


class Answer(BaseModel):
    name: str
    count: int


# Create


async def test_a_response_has_the_answer_its_usage_and_its_cost(sdk: AsyncOpenAI, fake: Fake, tables: Tables) -> None:
    raw = await sdk.responses.with_raw_response.create(model="chat", input="hi", instructions="Be brief.")

    response = raw.parse()
    assert (response.status, response.output_text, response.instructions) == ("completed", "echo: hi", "Be brief.")
    assert texts(fake) == [("system", "Be brief."), ("user", "hi")]
    assert "max_completion_tokens" not in fake.requests[0].body
    [entry] = await assert_conserved(tables, fake)
    assert response.usage
    assert entry.call.usage
    assert response.usage.total_tokens == entry.call.usage.total_tokens
    assert Decimal(raw.headers["x-cost-usd"]) == entry.call.cost


@pytest.mark.parametrize("streamed", [False, True])
async def test_usage_has_the_cost_if_it_is_included(client: httpx.AsyncClient, tables: Tables, streamed: bool) -> None:
    body: JSON = {"include": ["usage.cost_usd"]}

    response = (await stream(client, **body))[-1]["response"] if streamed else await create(client, **body)

    [entry] = await closed_ledger(tables)
    assert Decimal(str(response["usage"]["cost_usd"])) == entry.call.cost
    assert "cost_usd" not in (await get(client, response))["usage"]
    included = await client.get(f"{ROUTE}/{response['id']}", params={"include": "usage.cost_usd"})
    assert Decimal(str(included.json()["usage"]["cost_usd"])) == entry.call.cost


async def test_structured_output(sdk: AsyncOpenAI) -> None:
    response = await sdk.responses.parse(model="chat", input="hi", text_format=Answer)

    assert response.output_parsed == Answer(name="echo: hi", count=7)


async def test_parallel_tool_calls_and_their_results(sdk: AsyncOpenAI, fake: Fake, tables: Tables) -> None:
    fake.reply(tool_calls=(("call_1", "look", '{"at":"one"}'), ("call_2", "look", '{"at":"two"}')))

    first = await sdk.responses.create(model="chat", input="hi", tools=[TOOL])  # type: ignore[list-item]
    results: JSON = {"type": "function_call_output", "output": "a cat"}
    second = await sdk.responses.create(
        model="chat",
        previous_response_id=first.id,
        input=[results | {"call_id": "call_2"}, results | {"call_id": "call_1"}],  # type: ignore[list-item]
    )

    assert [item.type for item in first.output] == ["function_call", "function_call"]
    assert second.output_text == "echo: hi"
    assert [role for role, _ in texts(fake)] == ["user", "assistant", "tool", "tool"]
    await assert_conserved(tables, fake)


async def test_one_response_is_stored_by_azure_clients_too(client: httpx.AsyncClient) -> None:
    async with AsyncAzureOpenAI(azure_endpoint=str(client.base_url), api_key=ANN, api_version="2025-04-01") as azure:
        response = await azure.responses.create(model="chat", input="hi")
        again = await azure.responses.retrieve(response.id)
        items = await azure.responses.input_items.list(response.id)
        await azure.responses.delete(response.id)

    assert again.output_text == "echo: hi"
    assert len(items.data) == 1


# Continue


async def test_a_response_continues_another_in_place(client: httpx.AsyncClient, fake: Fake) -> None:
    first = await create(client, instructions="Be brief.")
    second = await create(client, input="more", previous_response_id=first["id"])

    assert texts(fake) == [("user", "hi"), ("assistant", "echo: hi"), ("user", "more")]
    assert second["previous_response_id"] == first["id"]
    assert session_of(first) == session_of(second)


@pytest.mark.parametrize(("truncation", "sent"), [("auto", ["2", "3", "more"]), ("disabled", None)])
async def test_a_prompt_that_the_model_finds_too_long_is_shortened_only_with_truncation(
    client: httpx.AsyncClient, fake: Fake, truncation: str, sent: list[str] | None
) -> None:
    response = await create(client, input="0")
    for number in range(1, 4):
        response = await create(client, input=str(number), previous_response_id=response["id"])
    fake.fault("context_length")

    answer = await post(client, input="more", previous_response_id=response["id"], truncation=truncation)

    if sent is None:
        assert refused(answer)["code"] == "context_length_exceeded"
    else:
        ok_json(answer)
        assert [text for role, text in texts(fake) if role == "user"] == sent


async def test_an_older_response_is_continued_in_a_branch(
    client: httpx.AsyncClient, fake: Fake, tables: Tables
) -> None:
    first = await create(client)
    await create(client, input="one", previous_response_id=first["id"])

    other = await create(client, input="two", previous_response_id=first["id"])

    assert texts(fake) == [("user", "hi"), ("assistant", "echo: hi"), ("user", "two")]
    assert session_of(other) != session_of(first)
    third = await create(client, input="three", previous_response_id=other["id"])
    assert [text for _, text in texts(fake)][::2] == ["hi", "two", "three"]
    assert session_of(third) == session_of(other)
    await assert_conserved(tables, fake)


async def test_two_at_once_continue_the_same_response(client: httpx.AsyncClient, fake: Fake, tables: Tables) -> None:
    first = await create(client)

    both = await asyncio.gather(*(create(client, input=each, previous_response_id=first["id"]) for each in "ab"))

    assert len({session_of(each) for each in both}) == 2
    assert len({each["id"] for each in both}) == 2
    assert len(fake.meter) == 3
    await assert_conserved(tables, fake)


@pytest.mark.parametrize("between", ["never mind", [RESULT]], ids=["a message", "its results"])
async def test_results_of_a_call_that_is_over_are_refused(
    client: httpx.AsyncClient, fake: Fake, between: object
) -> None:
    fake.reply(tool_calls=(("call_1", "look", "{}"),))
    call = await create(client, tools=[TOOL])
    after = await create(client, input=between, previous_response_id=call["id"])

    error = refused(await post(client, input=[RESULT], previous_response_id=after["id"]))

    assert (error["param"], error["code"]) == ("input", None)
    assert "have results already, or a message followed without them" in error["message"]


async def test_a_response_that_is_not_stored_leaves_nothing(
    client: httpx.AsyncClient, fake: Fake, tables: Tables
) -> None:
    first = await create(client, store=False)
    streamed = (await stream(client, store=False))[-1]["response"]
    parent = await create(client)
    continued = await create(client, input="more", store=False, previous_response_id=parent["id"])

    assert [text for _, text in texts(fake)] == ["hi", "echo: hi", "more"]
    for response in (first, streamed, continued):
        assert output_text(response).startswith("echo: ")
        assert response["store"] is False
        refused(await client.get(f"{ROUTE}/{response['id']}"), 404)
        refused(await post(client, previous_response_id=response["id"]))
    assert [entry.session_id for entry in await closed_ledger(tables)].count(None) >= 3
    assert len(fake.meter) == 4
    session, turns = await stored(tables, session_of(parent))
    assert (session.turns, len(turns)) == (1, 1)


async def test_a_reference_stands_for_a_stored_item(client: httpx.AsyncClient, fake: Fake) -> None:
    first = await create(client)
    [item] = first["output"]
    [user] = ok_json(await client.get(f"{ROUTE}/{first['id']}/input_items"))["data"]

    references = [{"type": "item_reference", "id": user["id"]}, {"id": item["id"]}]
    await create(client, input=[*references, {"role": "user", "content": "more"}])

    assert texts(fake) == [("user", "hi"), ("assistant", "echo: hi"), ("user", "more")]
    missing = item["id"][:-1] + "9"
    other_type = item["id"].replace("msg_", "fc_")
    for unknown in (missing, other_type, "msg_1", "msg_" + "0" * 43):
        error = refused(await post(client, input=[{"type": "item_reference", "id": unknown}]), 404)
        assert error["message"] == f"Item with id '{unknown}' not found."
    other = await client.post(
        ROUTE,
        json={"model": "chat", "input": [{"type": "item_reference", "id": item["id"]}]},
        headers={"api-key": BOB},
    )
    assert "not found" in refused(other, 404)["message"]


async def test_results_find_their_calls_behind_a_repeated_message(client: httpx.AsyncClient, fake: Fake) -> None:
    """The Vercel AI SDK sends the message, and the results of all earlier steps, with each step of a conversation."""
    user = {"role": "user", "content": "hi"}
    fake.reply(tool_calls=(("call_1", "look", "{}"),))
    first = await create(client, tools=[TOOL])
    fake.reply(tool_calls=(("call_2", "look", "{}"),))
    second = await create(client, input=[user, RESULT], previous_response_id=first["id"], tools=[TOOL])

    await create(
        client, input=[user, RESULT, RESULT | {"call_id": "call_2"}], previous_response_id=second["id"], tools=[TOOL]
    )

    roles = [role for role, _ in texts(fake)]
    assert roles == ["user", "assistant", "tool", "user", "assistant", "tool", "user"]
    error = refused(await post(client, input=[RESULT], previous_response_id=second["id"]))
    assert error["param"] == "input"


# The same request twice


async def test_a_repeated_request_gets_the_stored_response(client: httpx.AsyncClient, fake: Fake) -> None:
    key = {"idempotency-key": "k"}
    first = await post(client, key)
    again = await post(client, key, client_metadata={"attempt": "2"})

    assert ok_json(again) == ok_json(first)
    assert again.headers["idempotent-replayed"] == "true"
    assert "x-cost-usd" in first.headers
    assert "x-cost-usd" not in again.headers
    assert len(fake.meter) == 1
    assert refused(await post(client, key, input="other"), 422)["code"] == "idempotency_mismatch"


async def test_a_repeated_request_branches_once(client: httpx.AsyncClient, fake: Fake, tables: Tables) -> None:
    first = await create(client)
    await create(client, previous_response_id=first["id"])
    body, key = {"previous_response_id": first["id"]}, {"idempotency-key": "k"}

    responses = [ok_json(await post(client, key, **body)) for _ in range(2)]

    assert responses[0] == responses[1]
    assert len(fake.meter) == 3
    await assert_conserved(tables, fake)


async def test_a_repeated_request_waits_for_the_first(client: httpx.AsyncClient, fake: Fake) -> None:
    key = {"idempotency-key": "k"}
    with fake.hold() as hold:
        first = asyncio.create_task(post(client, key))
        await hold.until_reached()
        again = await post(client, key)
        hold.release()
        answered = ok_json(await first)

    assert "still running" in refused(again, 409)["message"]
    assert int(again.headers["retry-after"]) > 0
    assert ok_json(await post(client, key)) == answered
    assert len(fake.meter) == 1


# Interrupted


async def test_a_response_whose_process_died_has_failed(client: httpx.AsyncClient, fake: Fake, tables: Tables) -> None:
    with fake.hold() as hold:
        async with client.stream("POST", ROUTE, json={"model": "chat", "input": "hi", "stream": True}) as response:
            created = await created_in(response)
            await hold.until_reached()
            assert (await get(client, created))["status"] == "in_progress"
            await expire_lease(tables, session_of(created))
            interrupted = await get(client, created)

    assert (interrupted["status"], interrupted["error"]["code"]) == ("failed", "server_error")


async def test_a_stopped_response_is_incomplete(client: httpx.AsyncClient, fake: Fake, tables: Tables) -> None:
    with fake.hold(after=1):
        async with client.stream("POST", ROUTE, json={"model": "chat", "input": "hi", "stream": True}) as response:
            parts = response.aiter_text()
            body = await anext(parts)
            while "text.delta" not in body:
                body += await anext(parts)
            session = body.partition("resp_")[2][:32]
            head, turns = await stored(tables, session)
            await services().turns.stop(head.id, turns[-1].number)
            body += "".join([part async for part in parts])

    response_events = checked(body)
    end = response_events[-1]["response"]
    assert (end["status"], end["incomplete_details"]) == ("incomplete", {"reason": "stopped"})
    assert await get(client, end) == end


@pytest.mark.parametrize(("action", "status"), [("finish", "completed"), ("stop", "incomplete")])
async def test_a_client_that_disconnects_says_what_happens(
    client: httpx.AsyncClient, fake: Fake, tables: Tables, action: str, status: str
) -> None:
    body = {"model": "chat", "input": "hi", "stream": True}
    with fake.hold(after=1) as hold:
        async with client.stream("POST", ROUTE, json=body, headers={"x-on-disconnect": action}) as response:
            created = await created_in(response)
            await hold.until_reached()
        if action == "finish":
            hold.release()

        async def ended() -> JSON | None:
            response = await get(client, created)
            return response if response["status"] != "in_progress" else None

        assert (await until(ended))["status"] == status


# Read and delete


async def test_a_stored_response_is_the_one_that_was_sent(client: httpx.AsyncClient) -> None:
    sent = await create(
        client,
        metadata={"a": "b"},
        tools=[TOOL],
        temperature=0.5,
        text={"verbosity": "low"},
        reasoning={"effort": "low"},
    )

    assert await get(client, sent) == sent
    assert (sent["metadata"], sent["temperature"], sent["text"]["verbosity"]) == ({"a": "b"}, 0.5, "low")
    assert sent["tools"] == [TOOL | {"description": None, "strict": None}]


async def test_a_deleted_response_is_gone(client: httpx.AsyncClient, sdk: AsyncOpenAI, tables: Tables) -> None:
    first = await create(client)
    second = await create(client, input="more", previous_response_id=first["id"])

    deleted = await client.delete(f"{ROUTE}/{first['id']}")

    assert ok_json(deleted) == {"id": first["id"], "object": "response", "deleted": True}
    for path in ("", "/input_items"):
        error = refused(await client.get(f"{ROUTE}/{first['id']}{path}"), 404)
        assert error["message"] == f"Response with id '{first['id']}' not found."
    assert refused(await post(client, previous_response_id=first["id"]))["code"] == "previous_response_not_found"
    with pytest.raises(NotFoundError):
        await sdk.responses.delete(first["id"])
    assert (await get(client, second))["output"] == second["output"]
    assert len(await closed_ledger(tables)) == 2


async def test_responses_of_another_owner_are_not_found(client: httpx.AsyncClient, fake: Fake) -> None:
    response = await create(client)
    bob = {"api-key": BOB}

    for method, path in [("GET", ""), ("DELETE", ""), ("GET", "/input_items"), ("POST", "/cancel")]:
        refused(await client.request(method, f"{ROUTE}/{response['id']}{path}", headers=bob), 404)
    chained = await post(client, bob, previous_response_id=response["id"])
    assert refused(chained)["code"] == "previous_response_not_found"
    assert (await get(client, response)) == response
    assert len(fake.requests) == 1


@pytest.mark.parametrize("unknown", ["resp_1", "x", "resp_" + "0" * 40, "conv_" + "0" * 32, "a%2Fb", "%00"])
async def test_an_unknown_response_is_named(client: httpx.AsyncClient, unknown: str) -> None:
    error = refused(await client.get(f"{ROUTE}/{unknown}"), 404)

    assert error["type"] == "invalid_request_error"
    assert error["message"].startswith("Response with id '")


async def test_a_session_of_the_chat_api_is_no_response(client: httpx.AsyncClient, fake: Fake) -> None:
    session = "0123456789abcdef" * 2
    headers = {"x-session-id": session}
    body = {"model": "chat", "messages": [{"role": "user", "content": "hi"}]}
    ok_json(await client.post("/openai/v1/chat/completions", json=body, headers=headers))

    response = f"resp_{session}00000001"
    refused(await client.get(f"{ROUTE}/{response}"), 404)
    assert refused(await post(client, previous_response_id=response))["code"] == "previous_response_not_found"


async def test_input_items_go_back_through_the_chain(client: httpx.AsyncClient, sdk: AsyncOpenAI) -> None:
    first = await create(client, input="one")
    await create(client, input="unrelated", previous_response_id=first["id"])
    second = await create(client, input=[{"role": "user", "content": each} for each in ("two", "three")],
                          previous_response_id=first["id"])  # fmt: skip

    newest = [item async for item in sdk.responses.input_items.list(second["id"], limit=1)]
    oldest = [item async for item in sdk.responses.input_items.list(second["id"], order="asc", limit=2)]

    shown = [item.content[0].text for item in newest]  # type: ignore[union-attr, index]
    assert shown == ["three", "two", "echo: one", "one"]
    assert oldest == newest[::-1]
    assert newest[2].id == first["output"][0]["id"]
    page = ok_json(await client.get(f"{ROUTE}/{second['id']}/input_items", params={"limit": 2}))
    assert (page["has_more"], page["first_id"], page["last_id"]) == (True, newest[0].id, newest[1].id)


@pytest.mark.parametrize(
    "query",
    [{"limit": "0"}, {"limit": "101"}, {"limit": "x"}, {"order": "up"}, {"after": "msg_1"}, {"include": "other"}],
    ids=str,
)
async def test_a_wrong_page_is_refused(client: httpx.AsyncClient, query: dict[str, str]) -> None:
    response = await create(client)

    error = refused(await client.get(f"{ROUTE}/{response['id']}/input_items", params=query))

    assert error["param"] == next(iter(query))


async def test_what_is_included_in_a_stored_response_is_known(client: httpx.AsyncClient) -> None:
    response = await create(client)
    path = f"{ROUTE}/{response['id']}"

    for name in ("include", "include[]"):
        included = ok_json(await client.get(path, params={name: ["usage.cost_usd", "reasoning.encrypted_content"]}))
        assert included["usage"]["cost_usd"] > 0
        error = refused(await client.get(path, params={name: ["usage.cost_usd", "other"]}))
        assert (error["param"], "'other'" in error["message"], "'usage.cost_usd'" in error["message"]) == (
            "include",
            True,
            True,
        )
    assert ok_json(await client.get(f"{path}/input_items", params={"include": "message.input_image.image_url"}))["data"]


async def test_log_probabilities_are_included_in_items(client: httpx.AsyncClient) -> None:
    logprobs = {"include": ["message.output_text.logprobs"]}
    conversation = ok_json(await client.post("/openai/v1/conversations", json={}))["id"]
    first = await create(client, **logprobs, conversation=conversation)
    second = await create(client, previous_response_id=first["id"])
    answer = first["output"][0]
    items = f"/openai/v1/conversations/{conversation}/items"

    listed = ok_json(await client.get(items, params=logprobs))["data"]
    single = ok_json(await client.get(f"{items}/{answer['id']}", params=logprobs))
    inherited = ok_json(await client.get(f"{ROUTE}/{second['id']}/input_items", params=logprobs))["data"]

    assert answer["content"][0]["logprobs"]
    assert listed[0] == single == inherited[1] == answer
    for path in (items, f"{ROUTE}/{second['id']}/input_items"):
        shown = {each["id"]: each for each in ok_json(await client.get(path))["data"]}[answer["id"]]
        assert shown["content"][0]["logprobs"] == []


async def test_neither_cancelled_nor_streamed_again(client: httpx.AsyncClient) -> None:
    response = await create(client)

    cancelled = refused(await client.post(f"{ROUTE}/{response['id']}/cancel"))
    streamed = refused(await client.get(f"{ROUTE}/{response['id']}", params={"stream": "true"}))

    assert cancelled["message"] == "Cannot cancel a synchronous response."
    assert (cancelled["code"], streamed["code"]) == ("unsupported_parameter", "unsupported_parameter")
    assert streamed["param"] == "stream"


# Errors of the model service


async def test_a_failure_that_may_have_been_billed_is_not_to_be_retried(client: httpx.AsyncClient, fake: Fake) -> None:
    fake.fault("reset", after=1)
    fake.fault("reset", after=1)

    response = await post(client)

    assert refused(response, 502)["type"] == "server_error"
    assert response.headers["x-should-retry"] == "false"
    fake.fault(503, retry_after=1)
    unbilled = await post(client)
    refused(unbilled, 503)
    assert "x-should-retry" not in unbilled.headers


async def test_a_filtered_prompt_is_no_answer(client: httpx.AsyncClient, fake: Fake) -> None:
    conversation, key = ok_json(await client.post("/openai/v1/conversations", json={})), {"idempotency-key": "k"}
    first = await create(client, conversation=conversation["id"])
    fake.fault("content_filter")

    assert refused(await post(client, key, conversation=conversation["id"]))["code"] == "content_filter"

    failed = await get(client, {"id": f"{first['id'][:-1]}2"})
    assert (failed["status"], failed["error"]["code"], failed["output"]) == ("failed", "invalid_prompt", [])
    items = ok_json(await client.get(f"/openai/v1/conversations/{conversation['id']}/items"))["data"]
    assert len(items) == 2
    answered = await post(client, key, conversation=conversation["id"])
    assert output_text(ok_json(answered)) == "echo: hi"
    assert "idempotent-replayed" not in answered.headers


async def test_a_filtered_prompt_and_a_long_one_are_the_callers_errors(sdk: AsyncOpenAI, fake: Fake) -> None:
    fake.fault("content_filter")
    with pytest.raises(BadRequestError) as filtered:
        await sdk.responses.create(model="chat", input="hi")
    fake.fault("context_length")
    with pytest.raises(BadRequestError) as long:
        await sdk.responses.create(model="chat", input="hi")

    assert filtered.value.code == "content_filter"
    assert (long.value.code, long.value.param) == ("context_length_exceeded", "input")


@pytest.mark.parametrize(
    ("sent", "param", "worded"),
    [
        ("max_completion_tokens", "max_output_tokens", "'max_output_tokens' is too large"),
        ("reasoning_effort", "reasoning.effort", "'reasoning.effort' is too large"),
        ("response_format", "text.format", "'text.format' is too large"),
        ("messages[1].content", "input", "'input' is too large"),
        ("verbosity", "text.verbosity", "'text.verbosity' is too large"),
        ("tools[0].function.name", "tools[0].name", "'tools[0].name' is too large"),
        ("temperature", "temperature", "'temperature' is too large"),
    ],
)
async def test_fields_of_chat_completions_have_their_names_here(
    client: httpx.AsyncClient, fake: Fake, sent: str, param: str, worded: str
) -> None:
    fake.fault(400, message=f"'{sent}' is too large", param=sent, code="invalid_value")

    error = refused(await post(client, temperature=1))

    assert (error["message"], error["param"]) == (worded, param)
    assert error["code"] == "invalid_value"


def test_a_long_word_takes_no_time() -> None:
    begun = time.monotonic()
    assert renamed("x" * 30_000) == "x" * 30_000
    assert time.monotonic() - begun < 1
