"""Branches of api/chat: a session whose past ends at a turn of another one."""

import asyncio
import itertools
import uuid
from collections.abc import AsyncIterator, Sequence
from dataclasses import dataclass
from decimal import Decimal
from typing import Any

import httpx
import pytest
from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st

from shared.storage import session_rows as rows
from shared.storage.entities import Row
from shared.web.contract.sessions import MAX_BRANCHES
from tests.conftest import Serve, Tables
from tests.support.azure_openai import AzureOpenAI
from tests.support.chat_client import JSON, answer, closed_ledger, events, get_json, row_keys, send_message
from tests.support.clock import ManualClock
from tests.support.conservation import assert_conserved
from tests.support.proxy import Match, Stall, TcpProxy
from tests.support.responses_api import ANN, BOB, KEYS, create

AS_ANN, AS_BOB = {"api-key": ANN}, {"api-key": BOB}


@pytest.fixture
async def api(serve: Serve, environ: dict[str, str]) -> AsyncIterator[httpx.AsyncClient]:
    """The app with the client keys of Ann and Bob, and a second deployment."""
    async with serve(environ | KEYS | {"AZURE_OPENAI_DEPLOYMENTS": "large=gpt-5.4"}) as client:
        yield client


def after(session: object, turn: object) -> JSON:
    return {"session_id": session, "turn": turn}


async def branch(api: httpx.AsyncClient, text: str, session: str, turn: int, **fields: Any) -> JSON:
    """The answer of a branch that begins after a turn."""
    return await answer(api, text, None, branch_from=after(session, turn), **fields)


def sent(fake: AzureOpenAI) -> list[str]:
    """The user's messages of the last request."""
    return [each["content"] for each in fake.requests[-1].body["messages"] if each["role"] == "user"]


async def history(api: httpx.AsyncClient, session: str, *, limit: int = 100) -> list[tuple[str, int, str]]:
    """Session, number and message of each turn, oldest first, read page by page."""
    turns, before = list[JSON](), ""
    while True:
        page = await get_json(api, f"/api/sessions/{session}/messages?limit={limit}{before}")
        turns += page["turns"]
        if page["next_before"] is None:
            break
        before = f"&before={page['next_before']}"
    return [(turn["session_id"], turn["turn"], turn["messages"][0]["content"]) for turn in reversed(turns)]


async def begin(api: httpx.AsyncClient, session: str = "s", turns: int = 3, **fields: Any) -> None:
    for number in range(1, turns + 1):
        await answer(api, f"{session}{number}", session, **(fields if number == 1 else {}))


# Beginning one


async def test_branch_continues_the_past_up_to_its_turn(
    api: httpx.AsyncClient, fake: AzureOpenAI, tables: Tables
) -> None:
    await begin(api, system="Be brief.", deployment="large")
    new = await branch(api, "b3", "s", 2)
    assert sent(fake) == ["s1", "s2", "b3"]
    await answer(api, "b4", new["session_id"])

    assert sent(fake) == ["s1", "s2", "b3", "b4"]
    assert fake.requests[-1].body["messages"][0] == {"role": "system", "content": "Be brief."}
    assert (new["turn"], new["deployment"]) == (3, "large")
    assert new["session"]["cost_usd"] == new["cost_usd"]
    assert await get_json(api, "/api/sessions/s") | {"branches": [after(new["session_id"], 2)], "parent": None} == (
        await get_json(api, "/api/sessions/s")
    )
    shown = await get_json(api, f"/api/sessions/{new['session_id']}")
    assert (shown["parent"], shown["branches"], shown["turns"]) == (after("s", 2), [], 4)
    await answer(api, "s4", "s")
    assert sent(fake) == ["s1", "s2", "s3", "s4"]
    await assert_conserved(tables, fake)


async def test_streamed_branch_names_its_session_first(api: httpx.AsyncClient, fake: AzureOpenAI) -> None:
    await begin(api, turns=1)
    response = await send_message(api, "b2", None, branch_from=after("s", 1), stream=True, deployment="large")

    first, *_, last = events(response.content)
    assert first.data == {"session_id": last.data["session_id"], "turn": 2, "deployment": "large"}
    assert last.name == "done"
    assert sent(fake) == ["s1", "b2"]


async def test_tool_results_can_begin_a_branch(api: httpx.AsyncClient, fake: AzureOpenAI) -> None:
    tools = [{"type": "function", "function": {"name": "look", "parameters": {"type": "object"}}}]
    fake.reply(tool_calls=(("c1", "look", "{}"),))
    [call] = (await answer(api, "s1", tools=tools))["message"]["tool_calls"]
    for result in ("red", "blue"):
        results = [{"tool_call_id": call["id"], "content": result}]
        await answer(api, None, None, tool_results=results, tools=tools, branch_from=after("s", 1))
        assert fake.requests[-1].body["messages"][-1] == {"role": "tool", **results[0]}


async def test_same_idempotency_key_begins_one_branch(
    api: httpx.AsyncClient, fake: AzureOpenAI, tables: Tables
) -> None:
    await begin(api, turns=2)
    headers = {"Idempotency-Key": uuid.uuid4().hex}
    body = {"message": "b2", "branch_from": after("s", 1)}

    async def send(**fields: object) -> httpx.Response:
        return await api.post("/api/chat", json=body | fields, headers=headers)

    responses = await asyncio.gather(*(send() for _ in range(5)))
    assert {response.status_code for response in responses} <= {200, 409}
    [first, second] = [await send(), await send(stream=True)]
    assert first.headers["idempotent-replayed"] == second.headers["idempotent-replayed"] == "true"
    other = await send(branch_from=after("s", 2))
    assert (other.status_code, other.json()["error"]["code"]) == (422, "idempotency_mismatch")
    [shown] = (await get_json(api, "/api/sessions/s"))["branches"]
    assert shown == after(first.json()["session_id"], 1)
    assert len(fake.meter) == 3
    await assert_conserved(tables, fake)


async def test_branches_of_one_turn_that_are_begun_at_once_do_not_wait(
    api: httpx.AsyncClient, fake: AzureOpenAI, tables: Tables
) -> None:
    await begin(api, turns=1)
    answers = await asyncio.gather(*(branch(api, f"b{number}", "s", 1) for number in range(20)))

    shown = await get_json(api, "/api/sessions/s")
    assert shown["branches"] == [after(session, 1) for session in sorted(each["session_id"] for each in answers)]
    assert len(shown["branches"]) == 20
    await assert_conserved(tables, fake)


# Refusals


async def all_rows(tables: Tables) -> list[Row]:
    return [row async for row in tables.sessions.query("PartitionKey ge @first", {"first": ""})]


@pytest.mark.parametrize(
    ("fields", "param"),
    [
        ({"branch_from": after("s", 1), "session_id": "s"}, None),
        ({"branch_from": after("s", 1), "deployment": "other"}, "deployment"),
        ({"branch_from": after("s", 1), "expires_in_seconds": 1}, "expires_in_seconds"),
        ({"branch_from": after("s", 0)}, "branch_from.turn"),
        ({"branch_from": after("s", 10**9 + 1)}, "branch_from.turn"),
        ({"branch_from": after("s", "1")}, "branch_from.turn"),
        ({"branch_from": after("~key-1", 1)}, "branch_from.session_id"),
        ({"branch_from": after("s", 1) | {"id": 1}}, "branch_from.id"),
        ({"branch_from": {"session_id": "s"}}, "branch_from.turn"),
        ({"branch_from": "s"}, "branch_from"),
    ],
)
async def test_invalid_request_for_a_branch_names_the_field(
    api: httpx.AsyncClient, fake: AzureOpenAI, tables: Tables, fields: JSON, param: str | None
) -> None:
    refused = await send_message(api, "b", None, **fields)
    error = refused.json()["error"]
    assert (refused.status_code, error["code"], error["param"]) == (400, "invalid_request", param)
    assert param or "either session_id or branch_from" in error["message"]
    assert fake.requests == []
    assert await all_rows(tables) == []


async def test_branch_of_a_turn_that_the_caller_does_not_have_changes_nothing(
    api: httpx.AsyncClient, fake: AzureOpenAI, tables: Tables
) -> None:
    await begin(api, turns=2, system="Be brief.")
    fake.fault(503)
    assert (await send_message(api, "s3")).status_code == 503
    for session in ("cleared", "erased"):
        await begin(api, session, turns=1)
    await api.post("/api/chat", json={"message": "hi", "session_id": "of-ann"}, headers=AS_ANN)
    await api.delete("/api/sessions/cleared/messages")
    await api.delete("/api/sessions/erased")
    await closed_ledger(tables)
    before, calls = await all_rows(tables), len(fake.requests)

    for session, turn in (("unknown", 1), ("s", 4), ("s", 3), ("cleared", 1), ("erased", 1), ("of-ann", 1)):
        refused = await send_message(api, "b", None, branch_from=after(session, turn))
        error = refused.json()["error"]
        assert (refused.status_code, error["code"], error["param"]) == (404, "parent_not_found", "branch_from"), session
    refused = await send_message(api, "b", None, branch_from=after("s", 1), system="Be long.")
    assert (refused.status_code, refused.json()["error"]["param"]) == (400, "system")
    assert len(fake.requests) == calls
    assert await all_rows(tables) == before


async def test_running_turn_is_not_branched_from_but_those_before_it_are(
    api: httpx.AsyncClient, fake: AzureOpenAI
) -> None:
    await begin(api, turns=1)
    with fake.hold() as hold:
        running = asyncio.create_task(answer(api, "s2"))
        await hold.until_reached()
        refused = await send_message(api, "b3", None, branch_from=after("s", 2))
        assert (refused.status_code, refused.json()["error"]["code"]) == (409, "still_running")
        assert refused.json()["error"]["param"] == "branch_from"
        assert int(refused.headers["retry-after"]) > 0
        assert (await branch(api, "b2", "s", 1))["turn"] == 2
        hold.release()
    assert (await running)["turn"] == 2


# Owners


async def test_branch_belongs_to_the_caller_who_begins_it(api: httpx.AsyncClient) -> None:
    await begin(api, turns=1)
    body = {"message": "b2", "branch_from": after("s", 1)}
    session = (await api.post("/api/chat", json=body, headers=AS_ANN)).json()["session_id"]

    for headers, status in ((AS_ANN, 200), (AS_BOB, 404), ({}, 404)):
        assert (await api.get(f"/api/sessions/{session}/messages", headers=headers)).status_code == status
        further = body | {"branch_from": after(session, 2)}
        assert (await api.post("/api/chat", json=further, headers=headers)).status_code == status


# Reading


async def test_history_of_a_branch_has_the_turns_before_it_with_their_sessions(api: httpx.AsyncClient) -> None:
    await begin(api, turns=4)
    first = (await branch(api, "b4", "s", 3))["session_id"]
    await answer(api, "b5", first)
    second = (await branch(api, "c5", first, 4))["session_id"]

    whole = [*(("s", number, f"s{number}") for number in (1, 2, 3)), (first, 4, "b4"), (second, 5, "c5")]
    for limit in (1, 2, 3, 100):
        assert await history(api, second, limit=limit) == whole
    page = await get_json(api, f"/api/sessions/{second}/messages?before=3")
    assert [(turn["session_id"], turn["turn"]) for turn in page["turns"]] == [("s", 2), ("s", 1)]


async def test_export_of_a_branch_is_the_whole_conversation(api: httpx.AsyncClient) -> None:
    await begin(api, turns=23)
    session = (await branch(api, "b22", "s", 21))["session_id"]

    exported = await get_json(api, f"/api/sessions/{session}/export")
    assert [turn["messages"][0]["content"] for turn in exported["conversation"]] == [
        *(f"s{number}" for number in range(1, 22)),
        "b22",
    ]
    assert exported["session"] == await get_json(api, f"/api/sessions/{session}")
    assert {turn["session_id"] for turn in exported["conversation"]} == {"s", session}
    markdown = (await api.get(f"/api/sessions/{session}/export?format=markdown")).text
    assert "> s21\n" in markdown
    assert markdown.endswith("> echo: b22\n")
    assert "> s22\n" not in markdown


async def test_turn_before_a_branch_can_be_named_with_the_branch(
    api: httpx.AsyncClient, fake: AzureOpenAI, tables: Tables
) -> None:
    await begin(api, turns=4)
    first = (await branch(api, "b4", "s", 3))["session_id"]
    second = (await branch(api, "c5", first, 4))["session_id"]

    for turn, parent in ((1, "s"), (3, "s"), (4, first), (5, second)):
        new = await branch(api, "new", second, turn)
        assert len(sent(fake)) == turn + 1
        assert (await get_json(api, f"/api/sessions/{new['session_id']}"))["parent"] == after(parent, turn)
    await api.delete(f"/api/sessions/{second}/messages")
    refused = await send_message(api, "new", None, branch_from=after(second, 1))
    assert refused.json()["error"]["code"] == "parent_not_found"


async def test_at_most_100_branches_are_shown(api: httpx.AsyncClient, tables: Tables) -> None:
    await begin(api, turns=1)
    for number in range(MAX_BRANCHES + 1):
        await tables.sessions.put({"PartitionKey": "s", "RowKey": rows.branch_key(f"b{number:03}"), "turn": 1})
    shown = (await get_json(api, "/api/sessions/s"))["branches"]
    assert shown == [after(f"b{number:03}", 1) for number in range(MAX_BRANCHES)]


# Clears, erasures, ends


@pytest.mark.parametrize("path", ["/api/sessions/s", "/api/sessions/s/messages"], ids=["erased", "cleared"])
async def test_branch_goes_on_without_turns_that_are_deleted(
    api: httpx.AsyncClient, fake: AzureOpenAI, tables: Tables, path: str
) -> None:
    await begin(api)
    session = (await branch(api, "b3", "s", 2))["session_id"]
    await closed_ledger(tables)
    await api.delete(path)

    assert await history(api, session, limit=1) == [(session, 3, "b3")]
    exported = await get_json(api, f"/api/sessions/{session}/export")
    assert [turn["turn"] for turn in exported["conversation"]] == [3]
    await answer(api, "b4", session)
    assert sent(fake) == ["b3", "b4"]
    further = await branch(api, "c4", session, 3)
    assert sent(fake) == ["b3", "c4"]
    assert (await get_json(api, f"/api/sessions/{further['session_id']}"))["parent"] == after(session, 3)
    refused = await send_message(api, "c2", None, branch_from=after(session, 1))
    assert refused.json()["error"]["code"] == "parent_not_found"
    await assert_conserved(tables, fake, erased=["s"])


async def test_branch_never_shows_a_later_session_with_the_id_of_its_parent(
    api: httpx.AsyncClient, fake: AzureOpenAI
) -> None:
    await begin(api)
    session = (await branch(api, "b3", "s", 2))["session_id"]
    await api.delete("/api/sessions/s")
    for number in (1, 2, 3):
        body = {"message": f"secret {number}", "session_id": "s"}
        await api.post("/api/chat", json=body, headers=AS_ANN)

    assert await history(api, session) == [(session, 3, "b3")]
    exported = await get_json(api, f"/api/sessions/{session}/export")
    assert [turn["turn"] for turn in exported["conversation"]] == [3]
    await answer(api, "b4", session)
    assert sent(fake) == ["b3", "b4"]
    assert (await send_message(api, "c2", None, branch_from=after(session, 2))).status_code == 404
    shown = (await api.get("/api/sessions/s", headers=AS_ANN)).json()
    assert shown["branches"] == []


async def test_branch_is_refused_if_its_parent_is_erased_and_begun_again_meanwhile(
    storage: TcpProxy, api: httpx.AsyncClient, fake: AzureOpenAI, tables: Tables
) -> None:
    await begin(api, turns=1)
    entering = storage.on(Match("POST", "sessions", "branch-"), Stall())
    begun = asyncio.create_task(send_message(api, "b2", None, branch_from=after("s", 1)))
    await entering.until_reached()
    await api.delete("/api/sessions/s")
    await begin(api, turns=1)
    entering.release()

    refused = await begun
    assert (refused.status_code, refused.json()["error"]["code"]) == (404, "parent_not_found")
    assert [key for key in await row_keys(tables) if key.startswith(rows.BRANCH)] == []
    assert len(fake.meter) == 2
    await assert_conserved(tables, fake, erased=["s"])


async def test_branch_of_a_temporary_session_ends_with_it_unless_it_has_a_time_of_its_own(
    clock: ManualClock, api: httpx.AsyncClient, fake: AzureOpenAI
) -> None:
    await begin(api, turns=1, expires_in_seconds=3600)
    await clock.advance(1800)
    same = (await branch(api, "b2", "s", 1))["session_id"]
    longer = (await branch(api, "c2", "s", 1, expires_in_seconds=3600))["session_id"]
    shorter = (await branch(api, "d2", "s", 1, expires_in_seconds=60))["session_id"]
    await answer(api, "b3", same)

    statuses = []
    for seconds in (61, 1800, 1800):
        await clock.advance(seconds)
        paths = (f"/api/sessions/{session}" for session in (shorter, same, longer))
        statuses.append([(await api.get(path)).status_code for path in paths])
    assert statuses == [[404, 200, 200], [404, 404, 200], [404, 404, 404]]


# What openai/v1 began


async def test_response_and_conversation_can_be_branched_from(
    api: httpx.AsyncClient, fake: AzureOpenAI, tables: Tables
) -> None:
    api.headers["api-key"] = ANN
    conversation = (await api.post("/openai/v1/conversations", json={})).json()["id"]
    first = await create(api, input="one", conversation=conversation)
    await create(api, input="two", conversation=conversation)
    session = conversation.removeprefix("conv_")
    new = (await branch(api, "other", session, 1))["session_id"]

    assert sent(fake) == ["one", "other"]
    assert await history(api, new) == [(session, 1, "one"), (new, 2, "other")]
    items = (await api.get(f"/openai/v1/conversations/{conversation}/items?order=asc")).json()["data"]
    assert [item["content"][0]["text"] for item in items] == ["one", "echo: one", "two", "echo: two"]
    assert (await api.get(f"/openai/v1/conversations/conv_{new}")).status_code == 404
    chained = await create(api, input="three", previous_response_id=first["id"])
    assert sent(fake) == ["one", "three"]
    assert (await branch(api, "four", chained["id"][5:37], 2))["session_id"] != chained["id"][5:37]
    assert sent(fake) == ["one", "three", "four"]
    await assert_conserved(tables, fake)


# Random trees


@dataclass
class Node:
    """A turn as it should be. `path`: the messages up to its own."""

    session: str
    turn: int
    path: tuple[str, ...]
    latest: bool = True


STEPS = st.lists(st.tuples(st.integers(0, 30), st.booleans()), min_size=1, max_size=3)


@settings(suppress_health_check=[HealthCheck.function_scoped_fixture], max_examples=12)
@given(rounds=st.lists(STEPS, min_size=2, max_size=5))
async def test_model_gets_the_path_to_each_turn_of_a_random_tree(
    api: httpx.AsyncClient, fake: AzureOpenAI, tables: Tables, rounds: Sequence[Sequence[tuple[int, bool]]]
) -> None:
    """Each round sends messages at once: to continue a session, or to branch from any turn."""
    fake.requests.clear()
    root, numbers = f"r{uuid.uuid4().hex}", itertools.count(1)
    await answer(api, "0", root)
    nodes = [Node(root, 1, ("0",))]
    for planned in rounds:
        steps = {nodes[number % len(nodes)].session + str(branched): number for number, branched in planned}
        parents = [nodes[number % len(nodes)] for number in steps.values()]
        branched = [key.endswith("True") or not node.latest for key, node in zip(steps, parents, strict=True)]
        texts = [str(next(numbers)) for _ in parents]
        answers = await asyncio.gather(
            *(
                branch(api, text, node.session, node.turn) if branches else answer(api, text, node.session)
                for text, node, branches in zip(texts, parents, branched, strict=True)
            )
        )
        for text, node, branches, got in zip(texts, parents, branched, answers, strict=True):
            path = (*node.path, text)
            [prompt] = [
                messages
                for each in fake.requests
                if (messages := [sent["content"] for sent in each.body["messages"] if sent["role"] == "user"])[-1]
                == text
            ]
            assert tuple(prompt) == path
            assert got["turn"] == len(path)
            node.latest = node.latest and branches
            nodes.append(Node(got["session_id"], got["turn"], path))
    for node in nodes:
        if node.latest:
            assert tuple(text for _, _, text in await history(api, node.session, limit=2)) == node.path
    for session in {node.session for node in nodes}:
        shown = await get_json(api, f"/api/sessions/{session}")
        own = {node.turn for node in nodes if node.session == session}
        page = await get_json(api, f"/api/sessions/{session}/messages")
        costs = {turn["turn"]: turn["cost_usd"] for turn in page["turns"] if turn["session_id"] == session}
        assert costs.keys() == own
        assert sum(costs.values(), Decimal(0)) == shown["cost_usd"]
    await assert_conserved(tables, fake)
