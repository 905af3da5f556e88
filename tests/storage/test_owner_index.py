"""The list of an owner's sessions: its order, titles and pages, through faults of storage, crashes and erasures."""

import asyncio
import random
import re
from collections.abc import AsyncIterator
from datetime import UTC, datetime, timedelta

import httpx
import pytest

from local.keys import line
from shared.domain.hashing import sha256_hex
from shared.services import services
from tests.conftest import Serve, Tables
from tests.support.azure_openai import AzureOpenAI
from tests.support.chat_client import JSON, answer, get_json, ok_json, send_message, streaming
from tests.support.clock import ManualClock
from tests.support.conservation import all_rows, assert_conserved
from tests.support.faults import session_transaction
from tests.support.proxy import Action, Answer, Close, Match, Stall, TcpProxy

KEYS = {"ann": "a-client-key-of-ann", "ben": "a-client-key-of-ben"}
NOON = datetime(2026, 3, 2, 12, tzinfo=UTC)
DAY, MINUTE = timedelta(days=1), timedelta(minutes=1)
ANN, BEN = (f"~owner-{sha256_hex(f'key:{name}')}" for name in KEYS)
LIST = Match(body="~owner-")


@pytest.fixture
def environ(environ: dict[str, str], clock: ManualClock) -> dict[str, str]:
    clock.set(NOON)
    return environ | {"CLIENT_KEYS": ",".join(line(*key) for key in KEYS.items())}


@pytest.fixture
async def ann(serve: Serve, environ: dict[str, str]) -> AsyncIterator[httpx.AsyncClient]:
    async with serve(environ) as api:
        api.headers["authorization"] = f"Bearer {KEYS['ann']}"
        yield api


def as_ben() -> dict[str, str]:
    return {"authorization": f"Bearer {KEYS['ben']}"}


async def listed(api: httpx.AsyncClient, limit: int = 50, **query: str) -> list[JSON]:
    """All sessions of the list, page by page."""
    sessions: list[JSON] = []
    after: str | None = ""
    while after is not None:
        page = ok_json(
            await api.get("/api/sessions", params={"limit": limit, **query, **({"after": after} if after else {})})
        )
        assert len(page["sessions"]) <= limit
        sessions += page["sessions"]
        after = page["next_after"]
    return sessions


async def ids(api: httpx.AsyncClient, limit: int = 50, **query: str) -> list[str]:
    return [session["session_id"] for session in await listed(api, limit, **query)]


async def change(api: httpx.AsyncClient, session: str, **fields: object) -> JSON:
    return ok_json(await api.patch(f"/api/sessions/{session}", json=fields))


async def rows(tables: Tables, partition: str = ANN) -> dict[str, str | None]:
    """Session -> title, of the rows of a list; a session with several rows fails."""
    stored = [row async for row in tables.sessions.query("PartitionKey eq @owner", {"owner": partition})]
    titles = {row["RowKey"].split("~")[-1]: row.get("title") for row in stored}
    assert len(titles) == len(stored)
    return titles


async def texts(tables: Tables) -> str:
    return str([row async for row in all_rows(tables.sessions)])


# The list


async def test_list_has_the_callers_sessions_with_their_totals(ann: httpx.AsyncClient) -> None:
    first = await answer(ann, "  Why is\nthe sky blue? ", session="a")
    await answer(ann, "no", session="a")
    ok_json(await ann.post("/api/chat", json={"message": "hi", "session_id": "b"}, headers=as_ben()))

    (session,) = await listed(ann)

    detail = await get_json(ann, "/api/sessions/a")
    assert session == {name: detail[name] for name in session}
    assert (session["title"], session["turns"], session["kind"]) == ("Why is the sky blue?", 2, "chat")
    assert session["cost_usd"] > first["cost_usd"]


async def test_newest_use_comes_first_and_pinned_sessions_before_all(
    ann: httpx.AsyncClient, clock: ManualClock
) -> None:
    for at, session in enumerate("abcde"):
        clock.set(NOON + at * DAY)
        await answer(ann, session=session)
    clock.set(NOON + 5 * DAY)
    await answer(ann, session="b")
    clock.set(NOON + 5 * DAY + MINUTE)
    await answer(ann, session="d")
    assert await ids(ann) == ["d", "b", "e", "c", "a"]
    assert await ids(ann, limit=1) == ["d", "b", "e", "c", "a"]

    clock.set(NOON + 5 * DAY + 2 * MINUTE)
    await answer(ann, session="b")
    assert (await ids(ann))[0] == "b", "the order within a day is that of the last use"
    await change(ann, "a", pinned=True)
    await change(ann, "e", archived=True)
    assert await ids(ann) == ["a", "b", "d", "c"]
    assert await ids(ann, archived="true") == ["e"]
    await change(ann, "a", pinned=False)
    await change(ann, "e", archived=False)
    assert await ids(ann, limit=2) == ["b", "d", "e", "c", "a"]


async def test_title_can_be_changed_and_searched(ann: httpx.AsyncClient) -> None:
    await answer(ann, "Über Äpfel", session="a")
    await answer(ann, "Pears", session="b")
    renamed = await change(ann, "b", title=" Straße  nach\u202eRom ")
    assert renamed["title"] == "Straße nach Rom"
    for text, sessions in {"ÄPFEL": ["a"], "STRASSE": ["b"], "pears": [], "r": ["b", "a"], "x' or 'a": []}.items():
        assert sorted(await ids(ann, search=text)) == sorted(sessions), text
    await answer(ann, "more", session="b")
    assert (await get_json(ann, "/api/sessions/b"))["title"] == "Straße nach Rom"


@pytest.mark.parametrize(
    ("message", "title"),
    [
        ("x" * 70, "x" * 59 + "…"),
        ("some words " * 10, "some words some words some words some words some words…"),
        ([{"type": "text", "text": " "}, {"type": "text", "text": "What is this?"}], "What is this?"),
        ([{"type": "image_url", "image_url": {"url": "https://a/b.png"}}], None),
        ("\x00\u200b", None),
        ("👩‍👩‍👧 family", "👩 👩 👧 family"),
    ],
)
async def test_title_is_made_from_the_first_message(ann: httpx.AsyncClient, message: object, title: str | None) -> None:
    await answer(ann, message)
    await answer(ann, "something else")

    (session,) = await listed(ann)

    assert session["title"] == title


async def test_temporary_sessions_and_those_without_an_owner_are_in_no_list(
    ann: httpx.AsyncClient, tables: Tables
) -> None:
    await answer(ann, session="temporary", expires_in_seconds=600)
    del ann.headers["authorization"]
    await answer(ann, session="anonymous")
    refused = await ann.get("/api/sessions")

    assert (refused.status_code, refused.json()["error"]["code"]) == (401, "unauthorized")
    assert "~owner-" not in await texts(tables)


@pytest.mark.parametrize(
    ("query", "param"),
    [
        *(({"limit": value}, "limit") for value in ("0", "51", "-1", "x", "")),
        *(({"archived": value}, "archived") for value in ("yes", "", "True")),
        *(
            ({"after": value}, "after")
            for value in ("x", "0123456789", "~0123456789~a", "0123456789~a' or 'b", "a" * 999)
        ),
        ({"after": "0123456789~a", "archived": "true"}, "after"),
        ({"search": "x" * 201}, "search"),
    ],
)
async def test_bad_query_is_named(ann: httpx.AsyncClient, query: dict[str, str], param: str) -> None:
    refused = await ann.get("/api/sessions", params=query)
    assert (refused.status_code, refused.json()["error"]["param"]) == (400, param)


@pytest.mark.parametrize(
    ("fields", "param"),
    [
        ({}, None),
        ({"title": ""}, "title"),
        ({"title": " \u200b"}, "title"),
        ({"title": "x" * 201}, "title"),
        ({"title": 1}, "title"),
        ({"title": None}, "title"),
        ({"archived": None}, "archived"),
        ({"pinned": "true"}, "pinned"),
        ({"pinned": 1}, "pinned"),
        ({"archived": "no"}, "archived"),
        ({"title": "a", "colour": "red"}, "colour"),
    ],
)
async def test_bad_change_is_named_and_changes_nothing(ann: httpx.AsyncClient, fields: JSON, param: str | None) -> None:
    await answer(ann)
    before = await get_json(ann, "/api/sessions/s")
    refused = await ann.patch("/api/sessions/s", json=fields)
    assert (refused.status_code, refused.json()["error"]["param"]) == (400, param)
    assert re.search(r"[^.]\.$", refused.json()["error"]["message"])
    assert await get_json(ann, "/api/sessions/s") == before


async def test_another_caller_changes_and_lists_none_of_them(ann: httpx.AsyncClient) -> None:
    await answer(ann, "a secret")
    for refused in (
        await ann.patch("/api/sessions/s", json={"title": "mine"}, headers=as_ben()),
        await ann.post("/api/sessions/s/claim", headers=as_ben()),
    ):
        assert (refused.status_code, refused.json()["error"]["code"]) == (404, "session_not_found")
    for query in ({}, {"search": "secret"}, {"archived": "true"}):
        page = ok_json(await ann.get("/api/sessions", params=query, headers=as_ben()))
        assert page == {"sessions": [], "next_after": None}


async def test_change_during_a_turn_is_not_lost(ann: httpx.AsyncClient, fake: AzureOpenAI, tables: Tables) -> None:
    await answer(ann)
    with fake.hold() as hold:
        async with streaming(ann) as stream:
            await stream.next()
            await change(ann, "s", title="Renamed", pinned=True)
            hold.release()
            assert [event.name for event in await stream.rest()][-1] == "done"
    (session,) = await listed(ann)
    assert (session["title"], session["pinned"], session["turns"]) == ("Renamed", True, 2)
    assert await rows(tables) == {"s": "Renamed"}


# What it costs


@pytest.mark.table_storage
async def test_only_the_first_turn_of_a_day_costs_a_request(
    storage: TcpProxy, ann: httpx.AsyncClient, clock: ManualClock
) -> None:
    requests = []
    for now in (NOON, NOON + MINUTE, NOON + 2 * MINUTE, NOON + DAY, NOON + DAY + MINUTE):
        clock.set(now)
        before = storage.count(LIST) + storage.count(Match(path="~owner-"))
        await answer(ann)
        requests.append(storage.count(LIST) + storage.count(Match(path="~owner-")) - before)
    assert requests == [1, 0, 0, 1, 0]


async def test_change_costs_one_request_to_the_list(storage: TcpProxy, ann: httpx.AsyncClient) -> None:
    await answer(ann)
    for fields in ({"title": "Renamed"}, {"pinned": True}, {"archived": True}):
        before = storage.count(LIST) + storage.count(Match(path="~owner-"))
        await change(ann, "s", **fields)
        assert storage.count(LIST) + storage.count(Match(path="~owner-")) - before == 1


# Content that is deleted


@pytest.mark.parametrize("path", ["/messages", ""])
async def test_deleted_content_leaves_no_title(ann: httpx.AsyncClient, tables: Tables, path: str) -> None:
    await answer(ann, "a secret")
    ok = await ann.delete(f"/api/sessions/s{path}")
    assert ok.status_code == 204
    assert "secret" not in await texts(tables)
    assert await rows(tables) == ({"s": None} if path else {})

    await answer(ann, "a new beginning")

    assert await rows(tables) == {"s": "a new beginning"}


async def test_deleted_response_or_item_leaves_no_title(ann: httpx.AsyncClient, tables: Tables) -> None:
    body = {"model": "chat", "input": "a secret"}
    response = ok_json(await ann.post("/openai/v1/responses", json=body))
    conversation = ok_json(await ann.post("/openai/v1/conversations", json={}))
    item = {"type": "message", "role": "user", "content": "a secret"}
    items = f"/openai/v1/conversations/{conversation['id']}/items"
    (added,) = ok_json(await ann.post(items, json={"items": [item]}))["data"]
    assert [session["title"] for session in await listed(ann)] == ["a secret"] * 2

    assert (await ann.delete(f"/openai/v1/responses/{response['id']}")).status_code == 200
    assert (await ann.delete(f"{items}/{added['id']}")).status_code == 200

    assert "secret" not in await texts(tables)
    assert [session["title"] for session in await listed(ann)] == [None] * 2


async def test_erasing_all_sessions_empties_the_list(ann: httpx.AsyncClient, tables: Tables) -> None:
    for session in "abc":
        await answer(ann, "a secret", session=session)
    assert ok_json(await ann.delete("/api/me/sessions"))["done"]
    assert await ids(ann) == []
    assert await rows(tables) == {}


# Taking over


async def test_session_without_owner_is_taken_over_once(
    ann: httpx.AsyncClient, fake: AzureOpenAI, tables: Tables
) -> None:
    anonymous = {"authorization": ""}
    begun = await ann.post("/api/chat", json={"message": "before"}, headers=anonymous)
    session = ok_json(begun)["session_id"]

    claimed = [await ann.post(f"/api/sessions/{session}/claim") for _ in range(2)]

    assert [ok_json(each)["title"] for each in claimed] == ["before"] * 2
    for headers in (as_ben(), anonymous):
        refused = await ann.post("/api/chat", json={"message": "x", "session_id": session}, headers=headers)
        assert refused.status_code == 404
        assert (await ann.post(f"/api/sessions/{session}/claim", headers=headers)).status_code in (401, 404)
    assert (await answer(ann, "after", session=session))["turn"] == 2
    assert await ids(ann) == [session]
    await assert_conserved(tables, fake)


async def test_of_two_callers_at_once_one_takes_a_session_over(ann: httpx.AsyncClient, tables: Tables) -> None:
    for _ in range(5):
        begun = await ann.post("/api/chat", json={"message": "before"}, headers={"authorization": ""})
        path = f"/api/sessions/{ok_json(begun)['session_id']}/claim"
        answers = await asyncio.gather(ann.post(path), ann.post(path, headers=as_ben()))
        assert sorted(each.status_code for each in answers) == [200, 404]
    assert len(await rows(tables)) + len(await rows(tables, BEN)) == 5


async def test_chosen_ids_and_running_turns_are_not_taken_over(ann: httpx.AsyncClient, fake: AzureOpenAI) -> None:
    anonymous = {"authorization": ""}
    await ann.post("/api/chat", json={"message": "hi", "session_id": "chosen"}, headers=anonymous)
    refused = await ann.post("/api/sessions/chosen/claim")
    assert (refused.status_code, refused.json()["error"]["param"]) == (400, "session_id")
    session = ok_json(await ann.post("/api/chat", json={"message": "hi"}, headers=anonymous))["session_id"]
    owner, ann.headers["authorization"] = ann.headers["authorization"], ""
    with fake.hold():
        async with streaming(ann, session=session) as stream:
            await stream.next()
            refused = await ann.post(f"/api/sessions/{session}/claim", headers={"authorization": owner})
    assert (refused.status_code, refused.json()["error"]["code"]) == (409, "session_busy")


# Sessions of before


async def test_older_sessions_are_entered_by_the_timer(
    ann: httpx.AsyncClient, clock: ManualClock, tables: Tables
) -> None:
    for at, session in enumerate("abc"):
        clock.set(NOON + at * DAY)
        await answer(ann, f"message of {session}", session=session)
    await ann.delete("/api/sessions/b/messages")
    await answer(ann, session="temporary", expires_in_seconds=9_999)
    async for row in all_rows(tables.sessions):  # as an earlier version stored them
        if row["PartitionKey"].startswith("~owner"):
            await tables.sessions.delete(row["PartitionKey"], row["RowKey"], "*")
        elif row["RowKey"] == "head":
            columns = {name: row[name] for name in row.keys() - {"etag", "places", "title", "pinned", "archived"}}
            await tables.sessions.put(columns, row["etag"])
    assert await ids(ann) == []

    clock.set(NOON + 9 * DAY)
    for _ in range(2):
        await services().maintenance.run()

    assert [(each["session_id"], each["title"]) for each in await listed(ann)] == [
        ("b", None),
        ("c", "message of c"),
        ("a", "message of a"),
    ]
    assert len(await rows(tables)) == 3


# Rows that are out of date


async def test_row_of_a_session_that_was_never_stored_is_deleted_after_an_hour(
    storage: TcpProxy, ann: httpx.AsyncClient, clock: ManualClock, tables: Tables
) -> None:
    storage.on(Match("POST", r"\$batch$"), Answer(403))
    assert (await send_message(ann, "a secret")).status_code == 503
    assert await ids(ann) == []
    assert await rows(tables) == {"s": "a secret"}, "its turn may still be reserved by a request that is on its way"

    clock.set(NOON + timedelta(hours=2))
    assert await ids(ann) == []
    assert await rows(tables) == {}


async def test_move_that_failed_is_made_good_when_the_list_is_read(
    storage: TcpProxy, ann: httpx.AsyncClient, clock: ManualClock, tables: Tables
) -> None:
    for session in "abc":
        await answer(ann, session=session)
    clock.set(NOON + DAY)
    storage.on(Match("POST", body="~owner-"), Answer(403))
    await answer(ann, session="b")
    assert sorted(await ids(ann, limit=1)) == ["a", "b", "c"]
    assert (await ids(ann))[0] == "b"
    assert len(await rows(tables)) == 3


FAULTS: list[Action] = [
    *(Answer(403), Answer(503, after_answer=True), Close(), Close(after_answer=True)),
]


@pytest.mark.parametrize("seed", [1, 2, *[pytest.param(None, marks=pytest.mark.acceptance) for _ in range(20)]])
async def test_random_use_with_faults_of_storage(
    seed: int | None, storage: TcpProxy, ann: httpx.AsyncClient, clock: ManualClock, tables: Tables, fake: AzureOpenAI
) -> None:
    """Whatever fails, every session is in the list once, with its title, and at its day."""
    seed = random.randrange(2**32) if seed is None else seed
    print(f"seed {seed}")
    rng, erased = random.Random(seed), set[str]()
    for step in range(60):
        clock.set(NOON + step * timedelta(hours=5))
        session = rng.choice("abcdefgh")
        if rng.random() < 0.4:
            match = rng.choice([Match(body="~owner-"), Match("POST", r"\$batch$"), Match("PATCH"), Match("DELETE")])
            storage.on(match, rng.choice(FAULTS), nth=rng.choice((1, 1, 2)))
        match rng.choice(("turn", "turn", "turn", "title", "pin", "archive", "clear", "erase", "list")):
            case "turn":
                await send_message(ann, f"step {step}", session=session)
            case "title":
                await ann.patch(f"/api/sessions/{session}", json={"title": f"title {step}"})
            case "pin":
                await ann.patch(f"/api/sessions/{session}", json={"pinned": rng.random() < 0.5})
            case "archive":
                await ann.patch(f"/api/sessions/{session}", json={"archived": rng.random() < 0.5})
            case "clear":
                await ann.delete(f"/api/sessions/{session}/messages")
            case "erase":
                erased.add(session)
                await ann.delete(f"/api/sessions/{session}")
            case _:
                await ann.get("/api/sessions", params={"limit": 2})
        storage.clear()
    for at in range(4):  # leases and deletions that were interrupted end
        clock.set(NOON + timedelta(days=20 + at))
        await services().maintenance.run()
    for archived in ("false", "true"):  # corrects what is out of date
        await listed(ann, 3, archived=archived)

    heads = {row["PartitionKey"]: row async for row in all_rows(tables.sessions) if row["RowKey"] == "head"}
    shown = {archived: await listed(ann, 3, archived=archived) for archived in ("false", "true")}
    assert sorted(each["session_id"] for part in shown.values() for each in part) == sorted(heads)
    assert await rows(tables) == {session: head.get("title") for session, head in heads.items()}
    assert all(each["archived"] is (archived == "true") for archived, part in shown.items() for each in part)
    first = [each["session_id"] for each in shown["false"] if each["pinned"]]
    assert [each["session_id"] for each in shown["false"]][: len(first)] == first
    await assert_conserved(tables, fake, erased=erased)


# Two processes at once. Each interleaving is forced by holding one request to storage.


@pytest.mark.table_storage
async def test_session_that_is_read_while_it_is_taken_over_stays_in_the_list(
    storage: TcpProxy, ann: httpx.AsyncClient, clock: ManualClock, tables: Tables
) -> None:
    for at, match in enumerate((Match("PATCH", body='"owner"'), Match(body="~owner-"))):
        clock.set(NOON + 7 * at * DAY)
        begun = await ann.post("/api/chat", json={"message": "before"}, headers={"authorization": ""})
        session = ok_json(begun)["session_id"]
        clock.set(NOON + (7 * at + 3) * DAY)
        rule = storage.on(match, Stall())
        claiming = asyncio.create_task(ann.post(f"/api/sessions/{session}/claim"))
        await rule.until_reached()
        await listed(ann)
        rule.release()
        ok_json(await claiming)
        assert (await ids(ann))[0] == session
        assert len(await rows(tables)) == at + 1


async def test_interrupted_claim_is_completed_by_the_next(
    storage: TcpProxy, ann: httpx.AsyncClient, tables: Tables
) -> None:
    begun = await ann.post("/api/chat", json={"message": "before"}, headers={"authorization": ""})
    session = ok_json(begun)["session_id"]
    storage.on(Match(body="~owner-"), Answer(403))
    assert (await ann.post(f"/api/sessions/{session}/claim")).status_code == 503
    ok_json(await ann.post(f"/api/sessions/{session}/claim"))
    assert await rows(tables) == {session: "before"}


async def test_reading_the_list_brings_no_title_back_after_an_erasure(
    storage: TcpProxy, ann: httpx.AsyncClient, tables: Tables, clock: ManualClock
) -> None:
    """The list is corrected with a head that was read before the erasure."""
    await answer(ann, "a secret")
    for correct in (False, True):
        head = await tables.sessions.get("s", "head")
        assert head
        if correct:  # the row is at another place than the head says
            await tables.sessions.merge({"PartitionKey": "s", "RowKey": "head", "places": "8000000000"}, head["etag"])
        else:
            await tables.sessions.merge({"PartitionKey": "s", "RowKey": "head", "title": "secret title"}, head["etag"])
        rule = storage.on(Match(body="secret"), Stall())
        reading = asyncio.create_task(listed(ann))
        await rule.until_reached()
        assert (await ann.delete("/api/sessions/s")).status_code == 204
        rule.release()
        await reading
        assert "secret" not in await texts(tables)
        await answer(ann, "a secret")


async def test_row_of_the_loser_of_two_first_turns_is_removed(
    storage: TcpProxy, ann: httpx.AsyncClient, clock: ManualClock, tables: Tables
) -> None:
    rule = storage.on(Match("POST", r"\$batch$", body="head"), Stall())
    losing = asyncio.create_task(send_message(ann, "a secret"))
    await rule.until_reached()
    clock.set(NOON + MINUTE)
    await answer(ann, "another")
    rule.release()
    await losing
    await ann.delete("/api/sessions/s")
    assert "secret" not in await texts(tables)
    assert await rows(tables) == {}


async def test_change_between_a_turns_reservation_and_its_move_leaves_one_row(
    storage: TcpProxy, ann: httpx.AsyncClient, clock: ManualClock, tables: Tables
) -> None:
    await answer(ann)
    clock.set(NOON + DAY)
    rule = storage.on(Match("POST", r"\$batch$", body="~owner-"), Stall())
    turn = asyncio.create_task(send_message(ann))
    await rule.until_reached()
    await change(ann, "s", pinned=True)
    rule.release()
    await turn
    assert await rows(tables) == {"s": "hi"}
    await ann.delete("/api/sessions/s")
    assert await rows(tables) == {}


async def test_move_that_meets_a_change_and_an_erasure_brings_no_title_back(
    storage: TcpProxy, ann: httpx.AsyncClient, clock: ManualClock, tables: Tables
) -> None:
    await answer(ann, "a secret")
    clock.set(NOON + DAY)
    moving = storage.on(Match("POST", r"\$batch$", body="~owner-"), Stall())
    turn = asyncio.create_task(send_message(ann))
    await moving.until_reached()
    await change(ann, "s", pinned=True)
    putting = storage.on(Match("POST", r"sessions\b(?!.*batch)", body="~owner-.*secret|secret.*~owner-"), Stall())
    moving.release()
    await putting.until_reached()
    assert (await ann.delete("/api/sessions/s")).status_code == 204
    putting.release()
    await turn
    assert "secret" not in await texts(tables)
    assert await rows(tables) == {}


async def test_reading_the_list_keeps_a_title_that_is_newer(
    storage: TcpProxy, ann: httpx.AsyncClient, tables: Tables
) -> None:
    await answer(ann)
    head = await tables.sessions.get("s", "head")
    assert head
    await tables.sessions.merge({"PartitionKey": "s", "RowKey": "head", "title": "older"}, head["etag"])
    rule = storage.on(Match(body="older"), Stall())
    reading = asyncio.create_task(listed(ann))
    await rule.until_reached()
    await change(ann, "s", title="newer")
    rule.release()
    await reading
    assert await rows(tables) == {"s": "newer"}


@pytest.mark.parametrize("place", ["8000000000", "9000000000"])
async def test_session_whose_row_is_elsewhere_is_never_listed_twice(
    ann: httpx.AsyncClient, tables: Tables, place: str
) -> None:
    for session in "abc":
        await answer(ann, session=session)
    head = await tables.sessions.get("b", "head")
    assert head
    await tables.sessions.merge({"PartitionKey": "b", "RowKey": "head", "places": place}, head["etag"])
    pages = await ids(ann, limit=1)
    assert len(pages) == len(set(pages))
    assert (await ids(ann, limit=1)).index("b") == (0 if place < "82" else 2)
    assert len(await rows(tables)) == 3


async def test_session_that_is_being_erased_is_not_listed(storage: TcpProxy, ann: httpx.AsyncClient) -> None:
    await answer(ann)
    rule = storage.on(session_transaction("s"), Stall())
    erasing = asyncio.create_task(ann.delete("/api/sessions/s"))
    await rule.until_reached()
    assert await ids(ann) == []
    rule.release()
    assert (await erasing).status_code == 204


async def test_session_that_begins_while_all_are_erased_is_listed(
    storage: TcpProxy, ann: httpx.AsyncClient, clock: ManualClock
) -> None:
    sweep = storage.on(Match("GET", r"(~|%7E)owner-"), Stall())
    erasing = asyncio.create_task(ann.delete("/api/me/sessions"))
    await sweep.until_reached()
    clock.set(NOON + MINUTE)
    reservation = storage.on(Match("POST", r"\$batch$", body="head"), Stall())
    turn = asyncio.create_task(send_message(ann))
    await reservation.until_reached()
    sweep.release()
    ok_json(await erasing)
    reservation.release()
    ok_json(await turn)
    assert await ids(ann) == ["s"]


async def test_erasing_all_sessions_deletes_rows_without_a_session_too(
    storage: TcpProxy, ann: httpx.AsyncClient, clock: ManualClock, tables: Tables
) -> None:
    storage.on(Match("POST", r"\$batch$"), Answer(403))
    assert (await send_message(ann, "a secret")).status_code == 503
    clock.set(NOON + MINUTE)
    ok_json(await ann.delete("/api/me/sessions"))
    assert "secret" not in await texts(tables)


async def test_session_that_an_earlier_version_stored_is_entered_by_a_change(
    ann: httpx.AsyncClient, tables: Tables
) -> None:
    await answer(ann, "hello")
    head = await tables.sessions.get("s", "head")
    assert head
    columns = {name: head[name] for name in head.keys() - {"etag", "places", "title", "pinned", "archived"}}
    await tables.sessions.put(columns, head["etag"])
    await change(ann, "s", pinned=True)
    assert [(each["title"], each["pinned"]) for each in await listed(ann)] == [("hello", True)]
    assert await rows(tables) == {"s": "hello"}


async def test_order_is_the_same_on_pages_of_any_size(ann: httpx.AsyncClient, clock: ManualClock) -> None:
    for at, session in enumerate("abc"):
        clock.set(NOON + at * DAY)
        await answer(ann, session=session)
    clock.set(NOON + 9 * DAY)
    await ann.delete("/api/sessions/a/messages")
    assert await ids(ann, limit=1) == await ids(ann, limit=3) == ["c", "b", "a"]
