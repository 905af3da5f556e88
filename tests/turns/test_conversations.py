"""Conversations and stored responses: what is kept, listed and deleted."""

import asyncio
import uuid
from collections.abc import Awaitable, Callable, Sequence
from dataclasses import replace
from functools import partial

import httpx
import pytest

from shared.domain.conversation import ADDED, Kind, Parent, Session
from shared.domain.principal import ANONYMOUS, Principal
from shared.errors import (
    InvalidRequest,
    MessageTooLarge,
    ParentNotFound,
    SessionBusy,
    SessionNotFound,
    StillRunning,
    StorageUnavailable,
)
from shared.services import services
from shared.storage.session_rows import HEAD, from_session, view_key
from shared.turns.conversations import Address, ConversationAccess, PlacedItem
from shared.turns.ports import MAX_PAST_TURNS
from tests.conftest import Tables
from tests.support.azure_openai import AzureOpenAI, Request
from tests.support.chat_client import answer, closed_ledger, expire_lease, get_json, row_keys, stored
from tests.support.conservation import all_rows, assert_conserved
from tests.support.faults import session_transaction, stall_request
from tests.support.proxy import Close, Match, TcpProxy
from tests.support.stored_responses import OWNER, call, listed, output, respond, text_of, user

pytestmark = pytest.mark.usefixtures("storage", "api")  # in this order, so that the app uses the proxy
OTHER = Principal.of_key("eve")


def conversations() -> ConversationAccess:
    return services().conversations


async def begun(*texts: str) -> str:
    """A conversation with these messages of the user."""
    return (await conversations().create(OWNER, [item for text in texts for item in user(text)])).id


def prompt(request: Request) -> list[str]:
    """The messages that were sent to the model."""
    return [f"{message['role']}: {message.get('content')}" for message in request.body["messages"]]


# Conversations


async def test_empty_conversation_is_stored_with_its_metadata_and_takes_turns(
    fake: AzureOpenAI, tables: Tables
) -> None:
    created = await conversations().create(OWNER, metadata={"topic": "maps"})

    assert await conversations().get(created.id, OWNER) == created
    assert (created.kind, created.turns, created.metadata) == (Kind.CONVERSATION, 0, {"topic": "maps"})
    assert await listed(created.id) == []
    fake.reply("hello")
    answered = await respond("hi", conversation=created.id)
    assert (answered.session.id, answered.turn.number) == (created.id, 1)
    assert await listed(created.id) == ["hi", "hello"]
    await assert_conserved(tables, fake)


async def test_added_items_are_part_of_the_next_prompt(fake: AzureOpenAI, tables: Tables) -> None:
    conversation = await begun("one", "two")
    added = await conversations().add_items(conversation, OWNER, [*user("three"), call("c1"), output("c1")])

    assert [text_of(placed) for placed in added.items] == ["three", "function_call c1", "function_call_output c1"]
    turn = added.items[0].turn
    assert (turn.number, turn.finish_reason, turn.calls) == (2, ADDED, ())
    fake.reply("five")
    await respond("four", conversation=conversation)
    assert prompt(fake.requests[-1]) == [
        "user: one", "user: two", "user: three", "assistant: None", "tool: seen", "user: four",
    ]  # fmt: skip
    assert await listed(conversation) == [
        "one", "two", "three", "function_call c1", "function_call_output c1", "four", "five",
    ]  # fmt: skip
    await assert_conserved(tables, fake)


async def test_item_that_was_added_is_read_as_it_was_written(tables: Tables) -> None:
    conversation = await begun("one")
    items = [{"type": "reasoning", "summary": []}, *user("two"), call("c1")]
    written = (await conversations().add_items(conversation, OWNER, items)).items[0].turn

    _, turns = await stored(tables, conversation)
    assert replace(turns[1], etag="") == replace(written, etag="")
    assert not turns[1].answered
    assert turns[1].replayable


@pytest.mark.parametrize("newest_first", [False, True])
@pytest.mark.parametrize("limit", [1, 2, 3, 100])
async def test_items_are_listed_page_by_page(newest_first: bool, limit: int) -> None:
    conversation = await begun("1", "2")
    for number in range(3, 30):
        await conversations().add_items(conversation, OWNER, user(str(number)))

    texts = [str(number) for number in range(1, 30)]
    assert await listed(conversation, newest_first=newest_first, limit=limit) == texts[:: -1 if newest_first else 1]


@pytest.mark.parametrize("newest_first", [False, True])
async def test_page_costs_the_same_wherever_it_is(storage: TcpProxy, prefix: str, newest_first: bool) -> None:
    conversation = await begun("0")
    for number in range(1, 60):
        await conversations().add_items(conversation, OWNER, user(str(number)))
    session = await conversations().get(conversation, OWNER)
    reads, counts = Match("GET", rf"/{prefix}sessions\("), []
    for turn in (2, 30, 55):
        before = storage.count(reads)
        await conversations().items(session, after=Address(conversation, turn, 0), newest_first=newest_first, limit=2)
        counts.append(storage.count(reads) - before)
    assert set(counts) == {1}


async def test_running_and_failed_turns_show_no_items(fake: AzureOpenAI) -> None:
    conversation = await begun("one")
    with fake.hold() as hold:
        running = asyncio.create_task(respond("two", conversation=conversation))
        await hold.until_reached()
        assert await listed(conversation) == ["one"]
        hold.release()
        await running
    fake.fault(400)
    with pytest.raises(InvalidRequest):
        await respond("three", conversation=conversation)
    assert (await listed(conversation))[:2] == ["one", "two"]
    assert "three" not in await listed(conversation)


@pytest.mark.parametrize("after", [("0" * 32, 1, 0), (None, 99, 0), (None, 0, 0)])
@pytest.mark.parametrize("newest_first", [False, True])
async def test_cursor_that_is_not_in_the_list_is_an_error(
    after: tuple[str | None, int, int], newest_first: bool
) -> None:
    conversation = await begun("one")
    session = await conversations().get(conversation, OWNER)
    address = Address(after[0] or conversation, *after[1:])
    with pytest.raises(InvalidRequest, match="after"):
        await conversations().items(session, after=address, newest_first=newest_first, limit=1)


async def test_items_after_a_deleted_one_are_listed() -> None:
    conversation = await begun("one", "two", "three")
    session = await conversations().delete_item(conversation, 1, 1, OWNER)
    assert session

    page = await conversations().items(session, after=Address(conversation, 1, 1), newest_first=False, limit=9)
    assert [text_of(placed) for placed in page.items] == ["three"]
    assert page.items[0].address == Address(conversation, 1, 2)


async def test_deleted_item_is_never_shown_to_the_model_again(fake: AzureOpenAI, tables: Tables) -> None:
    conversation = await begun("one")
    fake.reply("secret", tool_calls=(("c1", "look", "{}"),))
    answered = await respond("two", conversation=conversation)
    places = {text_of(placed): placed.address for placed in (await page_of(conversation))}

    await conversations().delete_item(*places["secret"], OWNER)
    await respond([output("c1")], conversation=conversation)
    assert prompt(fake.requests[-1]) == ["user: one", "user: two", "assistant: None", "tool: seen"]

    await conversations().delete_item(*places["function_call c1"], OWNER)
    assert await conversations().item(*places["function_call c1"], OWNER) is None
    assert await conversations().delete_item(*places["function_call c1"], OWNER) is None
    assert (await listed(conversation))[:2] == ["one", "two"]
    await respond("three", conversation=conversation)
    assert "secret" not in str(fake.requests[-1].body)
    assert "c1" not in str(fake.requests[-1].body)
    assert (await stored(tables, conversation))[1][1].cost == answered.turn.cost
    await assert_conserved(tables, fake)


async def page_of(conversation: str) -> Sequence[PlacedItem]:
    session = await conversations().get(conversation, OWNER)
    return (await conversations().items(session, newest_first=False, limit=100)).items


async def test_turn_whose_items_are_all_deleted_is_left_out_of_the_prompt(fake: AzureOpenAI) -> None:
    conversation = await begun("one")
    await respond("two", conversation=conversation)
    for placed in (await page_of(conversation))[1:]:
        assert await conversations().delete_item(*placed.address, OWNER)

    await respond("three", conversation=conversation)
    assert prompt(fake.requests[-1]) == ["user: one", "user: three"]


async def test_metadata_is_replaced_while_a_turn_runs(fake: AzureOpenAI, tables: Tables) -> None:
    conversation = (await conversations().create(OWNER, metadata={"a": "1", "b": "2"})).id
    with fake.hold() as hold:
        running = asyncio.create_task(respond("one", conversation=conversation))
        await hold.until_reached()
        await conversations().update(conversation, OWNER, {"c": "3"})
        hold.release()
        await running

    assert (await conversations().get(conversation, OWNER)).metadata == {"c": "3"}
    assert (await listed(conversation))[0] == "one"
    await assert_conserved(tables, fake)


async def test_running_turn_locks_the_items_of_its_conversation(fake: AzureOpenAI, tables: Tables) -> None:
    conversation = await begun("one")
    with fake.hold() as hold:
        running = asyncio.create_task(respond("two", conversation=conversation))
        await hold.until_reached()
        with pytest.raises(SessionBusy):
            await conversations().add_items(conversation, OWNER, user("three"))
        with pytest.raises(SessionBusy):
            await conversations().delete_item(conversation, 1, 0, OWNER)
        hold.release()
        await running
    assert (await listed(conversation))[:2] == ["one", "two"]
    await assert_conserved(tables, fake)


async def test_turn_that_died_is_recovered_before_items_are_added(fake: AzureOpenAI, tables: Tables) -> None:
    conversation = await begun("one")
    with fake.hold() as hold:
        running = asyncio.create_task(respond("two", conversation=conversation))
        await hold.until_reached()
        await expire_lease(tables, conversation)
        added = await conversations().add_items(conversation, OWNER, user("three"))
        assert added.items[0].turn.number == 3
        hold.release()
        await running
    assert [text for text in await listed(conversation) if text in ("one", "two", "three")] == ["one", "two", "three"]
    await assert_conserved(tables, fake)


async def test_items_that_are_added_at_once_are_all_kept(tables: Tables) -> None:
    conversation = await begun()
    async with asyncio.TaskGroup() as group:
        for number in range(5):
            group.create_task(conversations().add_items(conversation, OWNER, user(str(number))))
    assert sorted(await listed(conversation)) == list("01234")
    assert (await stored(tables, conversation))[0].turns == 5


@pytest.mark.parametrize("nth", [1, 2])
async def test_write_whose_response_is_lost_is_done_once(storage: TcpProxy, prefix: str, nth: int) -> None:
    lost = Match("POST", r"/\$batch", f"{prefix}sessions")
    storage.on(lost, Close(after_answer=True), nth=nth, times=1)
    conversation = await begun("one")
    await conversations().add_items(conversation, OWNER, user("two"))
    await conversations().update(conversation, OWNER, {"a": "1"})
    await conversations().delete_item(conversation, 1, 0, OWNER)
    assert await listed(conversation) == ["two"]


async def test_what_is_deleted_twice_at_once_is_deleted(storage: TcpProxy) -> None:
    conversation, response = await begun("one", "two"), (await respond()).session.id
    deletions: list[tuple[str, Callable[[], Awaitable[object]]]] = [
        (conversation, partial(conversations().delete_item, conversation, 1, 0, OWNER)),
        (response, partial(conversations().delete_response, response, 1, OWNER)),
    ]
    for session, delete in deletions:
        with stall_request(storage, session_transaction(session)) as stalled:
            slower = asyncio.ensure_future(delete())
            await stalled.until_reached()
            await delete()
            stalled.release()
            result = await slower
        assert (result is not None) == (session == conversation)
    assert await listed(conversation) == ["two"]


@pytest.mark.parametrize("fault", [Close(after_answer=True), Close()], ids=["written", "not written"])
async def test_deletion_that_was_not_confirmed_is_read_again(storage: TcpProxy, fault: Close) -> None:
    conversation, response = await begun("one", "two"), (await respond()).session.id
    deletions: list[tuple[str, Callable[[], Awaitable[object]]]] = [
        (conversation, partial(conversations().delete_item, conversation, 1, 0, OWNER)),
        (response, partial(conversations().delete_response, response, 1, OWNER)),
    ]
    for session, delete in deletions:
        rule = storage.on(session_transaction(session), fault, times=None)
        if fault.after_answer:
            await delete()
        else:
            with pytest.raises(StorageUnavailable):
                await delete()
            storage.clear()
            await delete()
        assert rule.hits == (1 if fault.after_answer else 2)
        storage.clear()
    assert await listed(conversation) == ["two"]
    assert await conversations().view(response, 1) is None


async def test_items_that_do_not_fit_into_a_row_are_an_error_and_change_nothing() -> None:
    conversation = await begun("one")
    with pytest.raises(MessageTooLarge):
        await conversations().add_items(conversation, OWNER, user("x" * 600_000))
    assert await listed(conversation) == ["one"]


async def test_conversations_of_another_caller_and_other_sessions_are_not_found(api: httpx.AsyncClient) -> None:
    conversation, chat = await begun("one"), (await answer(api, session=None))["session_id"]
    response = (await respond()).session.id
    for session, principal in ((conversation, OTHER), (conversation, ANONYMOUS), (chat, OWNER), (response, OWNER)):
        with pytest.raises(SessionNotFound):
            await conversations().get(session, principal)
        with pytest.raises(SessionNotFound):
            await conversations().update(session, principal, {"a": "1"})
        with pytest.raises(SessionNotFound):
            await conversations().add_items(session, principal, user("two"))
        with pytest.raises(SessionNotFound):
            await conversations().delete_item(session, 1, 0, principal)
        with pytest.raises(SessionNotFound):
            await conversations().erase(session, principal)
    assert await conversations().item(conversation, 1, 0, OTHER) is None
    assert await conversations().item(chat, 1, 0, OWNER) is None
    assert await conversations().item(response, 1, 0, OWNER)
    assert await listed(conversation) == ["one"]


async def test_erased_conversation_leaves_only_the_ledger(fake: AzureOpenAI, tables: Tables) -> None:
    conversation = await begun("one")
    await respond("two", conversation=conversation)
    await closed_ledger(tables)
    await conversations().erase(conversation, OWNER)

    assert await row_keys(tables, conversation) == []
    with pytest.raises(SessionNotFound):
        await conversations().turn(conversation, 2, OWNER)
    assert len(await closed_ledger(tables)) == 1
    await assert_conserved(tables, fake, erased=[conversation])


async def test_cleared_conversation_has_no_items(api: httpx.AsyncClient, fake: AzureOpenAI, tables: Tables) -> None:
    conversation = (await conversations().create(ANONYMOUS, user("one"))).id
    assert (await api.delete(f"/api/sessions/{conversation}/messages")).status_code == 204

    await conversations().add_items(conversation, ANONYMOUS, user("two"))
    session = await conversations().get(conversation, ANONYMOUS)
    page = await conversations().items(session, newest_first=False, limit=9)
    assert [text_of(placed) for placed in page.items] == ["two"]
    assert await conversations().item(conversation, 1, 0, ANONYMOUS) is None
    await respond("three", conversation=conversation, principal=ANONYMOUS)
    assert prompt(fake.requests[-1]) == ["user: two", "user: three"]


async def test_chat_api_reads_a_conversation_with_added_items(api: httpx.AsyncClient, fake: AzureOpenAI) -> None:
    conversation = (await conversations().create(ANONYMOUS, [*user("one"), call("c1"), output("c1")])).id
    fake.reply("three")
    await respond("two", conversation=conversation, principal=ANONYMOUS)

    newest, added = (await get_json(api, f"/api/sessions/{conversation}/messages"))["turns"]
    assert (added["state"], added["deployment"], added["finish_reason"]) == ("added", "chat", "added")
    assert (added["model"], added["usage"], added["cost_usd"]) == (None, None, None)
    assert [message["role"] for message in added["messages"]] == ["user", "assistant", "tool"]
    assert [message["content"] for message in newest["messages"]] == ["two", "three"]
    exported = await get_json(api, f"/api/sessions/{conversation}/export")
    assert exported["conversation"] == [added, newest]
    text = (await api.get(f"/api/sessions/{conversation}/export?format=markdown")).text
    assert text.partition("UTC\n")[2] == EXPORTED


EXPORTED = """
## User

> one

## Assistant

> Calls `look`:
>
> ```json
> {}
> ```

## Tool result

> seen

## User

> two

## Assistant

> three
"""


# Responses


async def test_deleted_response_keeps_its_cost_and_loses_its_content(fake: AzureOpenAI, tables: Tables) -> None:
    fake.reply("secret")
    first = await respond("one")
    second = await respond("two", after=first)
    session = first.session.id
    assert second.session.id == session

    await conversations().delete_response(session, 1, OWNER)
    assert await conversations().view(session, 1) is None
    _, turns = await stored(tables, session)
    assert (turns[0].messages, turns[0].input, turns[0].output, turns[0].cost) == ((), (), (), first.turn.cost)
    assert view_key(1) not in await row_keys(tables, session)
    with pytest.raises(SessionNotFound):
        await conversations().delete_response(session, 1, OWNER)
    with pytest.raises(ParentNotFound):
        await respond("three", after=first)
    await respond("three", after=second)
    assert "secret" not in str(fake.requests[-1].body)
    assert "one" not in str(fake.requests[-1].body["messages"])
    await assert_conserved(tables, fake)


async def test_deleted_response_of_a_conversation_leaves_its_items(tables: Tables) -> None:
    conversation = await begun("one")
    answered = await respond("two", conversation=conversation)
    await conversations().delete_response(conversation, answered.turn.number, OWNER)

    assert await conversations().view(conversation, answered.turn.number) is None
    assert (await listed(conversation))[:2] == ["one", "two"]
    assert view_key(2) not in await row_keys(tables, conversation)


async def test_running_response_is_not_deleted(fake: AzureOpenAI, tables: Tables) -> None:
    with fake.hold() as hold:
        running = asyncio.create_task(respond("one"))
        await hold.until_reached()
        session = await only_session(tables)
        with pytest.raises(StillRunning):
            await conversations().delete_response(session, 1, OWNER)
        hold.release()
        await running
    assert await conversations().view(session, 1) == "{}"
    await assert_conserved(tables, fake)


async def test_answer_that_is_settled_after_its_deletion_is_not_stored(fake: AzureOpenAI, tables: Tables) -> None:
    with fake.hold() as hold:
        running = asyncio.create_task(respond("one"))
        await hold.until_reached()
        session = await only_session(tables)
        await expire_lease(tables, session)
        await conversations().delete_response(session, 1, OWNER)
        hold.release()
        assert (await running).turn.output
    _, turns = await stored(tables, session)
    assert (turns[0].messages, turns[0].input, turns[0].output) == ((), (), ())
    await assert_conserved(tables, fake)


@pytest.mark.acceptance
async def test_chain_that_is_too_long_to_be_read_is_an_error(tables: Tables) -> None:
    answer = await respond("1")
    root, writes, limit = answer.session, [], asyncio.Semaphore(32)

    async def put(session: Session) -> None:
        async with limit:
            await tables.sessions.put(from_session(session))

    session = root
    for _ in range(MAX_PAST_TURNS):
        parent = Parent(session_id=session.id, turn=session.turns)
        session = replace(session, id=uuid.uuid4().hex, parent=parent, parent_created=session.created, etag="")
        writes.append(put(session))
    await asyncio.gather(*writes)

    with pytest.raises(InvalidRequest, match="more than 512 sessions"):
        await conversations().items(session, newest_first=False, limit=1)
    next_one = await services().sessions.get(session.parent.session_id if session.parent else "", OWNER)
    assert (await conversations().items(next_one, newest_first=False, limit=1)).items


async def only_session(tables: Tables) -> str:
    heads = [row["PartitionKey"] async for row in all_rows(tables.sessions) if row["RowKey"] == HEAD]
    assert len(heads) == 1
    return str(heads[0])


async def test_items_of_a_response_are_those_of_its_chain(fake: AzureOpenAI) -> None:
    root = await respond("1")
    left = await respond("2", after=root)
    right = await respond("3", after=root)
    leaf = await respond("4", after=right)
    assert len({root.session.id, left.session.id}) == 1
    assert leaf.session.id == right.session.id != root.session.id

    for limit in (1, 3, 100):
        for newest_first in (False, True):
            texts = await listed(leaf.session.id, newest_first=newest_first, limit=limit)
            texts = [text for text in texts if len(text) == 1]
            assert texts == (["4", "3", "1"] if newest_first else ["1", "3", "4"])
    end = (leaf.turn.number, len(leaf.turn.input))
    page = await conversations().items(leaf.session, end=end, limit=1)
    assert [text_of(placed) for placed in page.items] == ["4"]
    with pytest.raises(InvalidRequest, match="after"):  # an item of the other branch
        await conversations().items(leaf.session, after=Address(left.session.id, 2, 0), limit=1)
