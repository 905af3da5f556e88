"""Responses that continue another one, many at once: each is paid for once, and sees its own past."""

import asyncio
import itertools
from collections.abc import Sequence
from dataclasses import dataclass
from datetime import UTC, datetime, timedelta

import httpx
import pytest
from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st

from shared.domain.calls import State
from shared.domain.principal import ANONYMOUS
from shared.errors import ChatError, ParentNotFound, SessionBusy
from shared.services import services
from shared.storage.session_rows import BRANCH, HEAD, branch_key
from shared.turns.events import Answer
from tests.conftest import Tables
from tests.support.azure_openai import AzureOpenAI
from tests.support.chat_client import closed_ledger, get_json, row_keys, stored
from tests.support.conservation import assert_conserved
from tests.support.stored_responses import OWNER, respond

pytestmark = pytest.mark.usefixtures("api")


def prompt_of(fake: AzureOpenAI, text: str) -> list[str]:
    """The user's messages of the request whose last one is `text`."""
    prompts = [[each["content"] for each in sent.body["messages"] if each["role"] == "user"] for sent in fake.requests]
    return next(prompt for prompt in prompts if prompt[-1] == text)


async def branches(tables: Tables, session: str) -> list[str]:
    return [key.removeprefix(BRANCH) for key in await row_keys(tables, session) if key.startswith(BRANCH)]


async def test_50_requests_that_continue_one_response_get_50_answers_each_billed_once(
    fake: AzureOpenAI, tables: Tables
) -> None:
    root = await respond("root")
    answers = await asyncio.gather(*(respond(f"leaf {number}", after=root) for number in range(50)))

    in_place = [each for each in answers if each.session.id == root.session.id]
    branched = {each.session.id for each in answers} - {root.session.id}
    assert (len(in_place), len(branched)) == (1, 49)
    assert set(await branches(tables, root.session.id)) == branched
    assert {each.turn.number for each in answers} == {2}
    for number, each in enumerate(answers):
        assert each.turn.messages[-1]["content"] == f"echo: leaf {number}"
        assert prompt_of(fake, f"leaf {number}") == ["root", f"leaf {number}"]
    entries = await assert_conserved(tables, fake)
    assert [entry.call.state for entry in entries] == [State.SETTLED] * 51
    assert len(fake.meter) == 51


async def test_response_is_not_continued_in_place_over_a_lease(fake: AzureOpenAI, tables: Tables) -> None:
    root = await respond("root")
    await closed_ledger(tables)
    head = await tables.sessions.get(root.session.id, HEAD)
    assert head
    lease = {"lease_call": root.turn.call.id, "lease_until": datetime.now(UTC) + timedelta(seconds=30)}
    key = {name: head[name] for name in ("PartitionKey", "RowKey")}
    await tables.sessions.merge(key | lease, head["etag"])

    with pytest.raises(SessionBusy):
        await respond("next", after=root)
    assert len(fake.requests) == 1


# Random trees


@dataclass(frozen=True)
class Round:
    """Requests that are sent at once, each to continue a response: the number of one that exists, or of a deleted one.
    Then one of them is deleted."""

    parents: Sequence[int]
    deleted: int | None


ROUNDS = st.builds(
    Round,
    parents=st.lists(st.integers(0, 30), min_size=1, max_size=3),
    deleted=st.none() | st.integers(0, 30),
)


@dataclass
class Node:
    """A response as it should be. `past`: the nodes that it continues, oldest first."""

    text: str
    answer: Answer
    past: tuple["Node", ...]
    deleted: bool = False


@settings(suppress_health_check=[HealthCheck.function_scoped_fixture], max_examples=12)
@given(rounds=st.lists(ROUNDS, min_size=2, max_size=5))
async def test_every_response_of_a_random_tree_sees_its_own_past(
    fake: AzureOpenAI, tables: Tables, rounds: list[Round]
) -> None:
    fake.requests.clear()
    nodes, numbers = [Node("0", await respond("0"), ())], itertools.count(1)
    for planned in rounds:
        parents = [nodes[number % len(nodes)] for number in planned.parents]
        names = [str(next(numbers)) for _ in parents]
        sent = [respond(name, after=parent.answer) for name, parent in zip(names, parents, strict=True)]
        results = await asyncio.gather(*sent, return_exceptions=True)
        for name, parent, result in zip(names, parents, results, strict=True):
            if parent.deleted:
                assert isinstance(result, ParentNotFound)
                continue
            assert isinstance(result, Answer), result
            node = Node(name, result, (*parent.past, parent))
            assert prompt_of(fake, name) == [*(each.text for each in node.past if not each.deleted), name]
            nodes.append(node)
        if planned.deleted is not None:
            target = nodes[planned.deleted % len(nodes)]
            if not target.deleted:
                session, number = target.answer.session.id, target.answer.turn.number
                await services().conversations.delete_response(session, number, OWNER)
                target.deleted = True
    addresses = {(node.answer.session.id, node.answer.turn.number) for node in nodes}
    assert len(addresses) == len(nodes)
    await assert_conserved(tables, fake)


# Erasures


async def test_branch_of_an_erased_response_is_not_continued_and_keeps_its_own_turns(
    fake: AzureOpenAI, tables: Tables
) -> None:
    root = await respond("root")
    await respond("in place", after=root)
    branch = await respond("branch", after=root)
    await closed_ledger(tables)
    await services().sessions.erase(root.session.id, OWNER)

    with pytest.raises(ParentNotFound):
        await respond("next", after=branch)
    with pytest.raises(ParentNotFound):
        await respond("next", after=root)
    _, turns = await stored(tables, branch.session.id)
    assert [turn.messages[0]["content"] for turn in turns] == ["branch"]
    assert len(fake.meter) == 3
    await assert_conserved(tables, fake, erased=[root.session.id])


async def test_erased_branch_leaves_no_row_with_its_parent(fake: AzureOpenAI, tables: Tables) -> None:
    root = await respond("root")
    await respond("in place", after=root)
    left, right = await respond("left", after=root), await respond("right", after=root)
    await closed_ledger(tables)
    await services().sessions.erase(left.session.id, OWNER)

    assert await branches(tables, root.session.id) == [right.session.id]
    assert await row_keys(tables, left.session.id) == []
    await respond("next", after=right)
    assert prompt_of(fake, "next") == ["root", "right", "next"]
    await assert_conserved(tables, fake, erased=[left.session.id])


async def test_branch_of_a_cleared_session_goes_on_without_the_cleared_turns(
    api: httpx.AsyncClient, fake: AzureOpenAI, tables: Tables
) -> None:
    root = await respond("root", principal=ANONYMOUS)
    await respond("in place", after=root, principal=ANONYMOUS)
    branch = await respond("branch", after=root, principal=ANONYMOUS)
    await closed_ledger(tables)
    await services().sessions.clear(root.session.id, ANONYMOUS)

    assert branch_key(branch.session.id) in await row_keys(tables, root.session.id)
    await respond("next", after=branch, principal=ANONYMOUS)
    assert prompt_of(fake, "next") == ["branch", "next"]
    history = await get_json(api, f"/api/sessions/{branch.session.id}/messages")
    assert [turn["messages"][0]["content"] for turn in history["turns"]] == ["next", "branch"]
    with pytest.raises(ParentNotFound):
        await respond("next", after=root, principal=ANONYMOUS)
    await assert_conserved(tables, fake)


async def test_requests_at_once_with_the_erasure_of_their_parent_leave_no_trace_of_it(
    fake: AzureOpenAI, tables: Tables
) -> None:
    root = await respond("root")
    await closed_ledger(tables)

    async def erase() -> None:
        await asyncio.sleep(0.02)
        await services().sessions.erase(root.session.id, OWNER)

    *results, _ = await asyncio.gather(
        *(respond(f"leaf {number}", after=root) for number in range(10)), erase(), return_exceptions=True
    )
    assert all(isinstance(result, Answer | ChatError) for result in results), results
    answered = [result for result in results if isinstance(result, Answer)]
    entries = await assert_conserved(tables, fake, erased=[root.session.id])
    assert len(fake.meter) == len(entries) == len(answered) + 1
    assert await row_keys(tables, root.session.id) == []
    for result in answered:
        with pytest.raises(ParentNotFound):
            await respond("next", after=result)
