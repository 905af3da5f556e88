"""Tables that version 0.1.0 has written are read, continued, recovered and summed by the present code.

`data/tables-0.1.0.json` holds every entity of the three tables as that version left them, crashes included, and the
truth about them from the meter of the model service's fake. What is checked goes over HTTP or reads raw entities, so
that it does not depend on how the code is arranged.
"""

import asyncio
import hashlib
import json
from collections import defaultdict
from collections.abc import AsyncIterator, Iterable, Iterator, Sequence
from concurrent.futures import ThreadPoolExecutor
from datetime import date, datetime, timedelta
from decimal import Decimal
from email import message_from_bytes, policy
from pathlib import Path
from typing import Any

import httpx
import pytest
from azure.data.tables import EdmType, EntityProperty, TableClient, TableServiceClient

from local.azurite import connection_string
from shared.services import services
from tests.conftest import Serve
from tests.support.azure_openai import AzureOpenAI, Billed
from tests.support.clock import ManualClock
from tests.support.talking import exact, until

JSON = dict[str, Any]


async def fire(clock: ManualClock, now: datetime) -> None:
    """The work of both timers as of `now`, in the app that is being served by this clock."""
    clock.set(now)
    await services().maintenance.run()
    await services().delivery.send_due()


SNAPSHOT: JSON = json.loads((Path(__file__).parent / "data" / "tables-0.1.0.json").read_text("utf-8"))
ABOUT: JSON = SNAPSHOT["about"]
TABLES: dict[str, list[JSON]] = SNAPSHOT["tables"]
EXPECTED: JSON = ABOUT["expected"]
SESSIONS: dict[str, JSON] = EXPECTED["sessions"]
DAYS: dict[str, JSON] = EXPECTED["days"]
PRICES: dict[str, dict[str, str]] = json.loads(ABOUT["settings"]["PRICES"])
KEPT = {name: told for name, told in SESSIONS.items() if not told["gone"]}
GONE = SESSIONS.keys() - KEPT.keys()
HALF_REMOVED = ("half-erased", "half-erased-long", "half-cleared")
MORNING = datetime.fromisoformat(EXPECTED["fired"])  # after the last day of the snapshot
WEDNESDAY, FRIDAY, SATURDAY = "2026-11-18", "2026-11-20", "2026-11-21"
CHAT, WIRE = "/api/chat", "/openai/v1/chat/completions"


class Stored:
    """The raw entities of the app's tables."""

    def __init__(self, service: TableServiceClient, prefix: str) -> None:
        self._service, self._prefix = service, prefix

    def load(self) -> None:
        """Insert the snapshot's entities as they were."""
        with ThreadPoolExecutor(4) as pool:
            for name, rows in TABLES.items():
                table = self._service.create_table(f"{self._prefix}{name}")
                partitions: dict[str, list[JSON]] = defaultdict(list)
                for row in rows:
                    partitions[row["PartitionKey"]].append({key: _value(given) for key, given in row.items()})
                for done in [pool.submit(_insert, table, entities) for entities in partitions.values()]:
                    done.result()

    def rows(self, name: str) -> list[JSON]:
        with self._service.get_table_client(f"{self._prefix}{name}") as table:
            return [dict(row) for row in table.list_entities()]


def _insert(table: TableClient, entities: list[JSON]) -> None:
    """All of one partition."""
    if len(entities) == 1:  # a transaction costs three times as much
        table.create_entity(entities[0])
        return
    for batch in (entities[at : at + 100] for at in range(0, len(entities), 100)):
        table.submit_transaction([("create", entity) for entity in batch])


def _value(given: Any) -> Any:
    if isinstance(given, str):  # a key
        return given
    kind, value = given
    match kind:
        case "Int64" | "Int32" | "Double":
            number = float(value) if kind == "Double" else int(value)
            return EntityProperty(number, EdmType(f"Edm.{kind}"))
        case "DateTime":
            return datetime.fromisoformat(value)
        case "String" | "Boolean":
            return value
    raise ValueError(f"no EDM type of the snapshot: {kind}")


@pytest.fixture
def stored(azurite_port: int, prefix: str) -> Iterator[Stored]:
    with TableServiceClient.from_connection_string(connection_string(azurite_port)) as service:
        stored = Stored(service, prefix)
        stored.load()
        yield stored


@pytest.fixture
def outbox(tmp_path: Path) -> Path:
    return tmp_path / "outbox"


@pytest.fixture
def environ(environ: dict[str, str], outbox: Path) -> dict[str, str]:
    return {**environ, **ABOUT["settings"], "OUTBOX_DIR": str(outbox)}


@pytest.fixture
async def api(
    clock: ManualClock, stored: Stored, serve: Serve, environ: dict[str, str], fake: AzureOpenAI
) -> AsyncIterator[httpx.AsyncClient]:
    """The app, over the snapshot's tables, on the morning after its last day."""
    assert stored
    clock.set(MORNING)
    fake.deployments = ABOUT["models"]
    async with serve(environ) as client:
        yield client


# What is asked, and what must come


def shown(caller: str | None, **more: str) -> dict[str, str]:
    """Headers with the caller's key."""
    return {"api-key": str(ABOUT["keys"][caller]), **more} if caller else more


async def look(api: httpx.AsyncClient, path: str, caller: str | None = None) -> JSON:
    response = await api.get(path, headers=shown(caller))
    assert response.status_code == 200, response.text
    found: JSON = exact(response.text)
    return found


async def totals(api: httpx.AsyncClient, session: str) -> JSON:
    found = await look(api, f"/api/sessions/{session}", SESSIONS[session]["owner"])
    return {name: found[name] for name in EMPTY}


EMPTY: JSON = {
    "turns": 0,
    "total_tokens": 0,
    "cost_usd": Decimal(0),
    "unpriced_turns": 0,
    "unaccounted_calls": 0,
}


def expected_totals(told: JSON, when: str) -> JSON:
    """`when`: before or after recovery, which settles no call and counts the lost ones."""
    return {
        "turns": told["turns"],
        "total_tokens": told["total_tokens"],
        "cost_usd": Decimal(told["cost"]),
        "unpriced_turns": told["unpriced_turns"],
        "unaccounted_calls": told[f"unaccounted_{when}"],
    }


async def history(api: httpx.AsyncClient, session: str, limit: int = 2) -> list[JSON]:
    """All of it, page by page, oldest first."""
    turns: list[JSON] = []
    before: int | None = None
    while True:
        page = f"?limit={limit}" + (f"&before={before}" if before else "")
        found = await look(api, f"/api/sessions/{session}/messages{page}", SESSIONS[session]["owner"])
        turns += found["turns"]
        before = found["next_before"]
        if before is None:
            return turns[::-1]


def abridged(value: Any) -> Any:
    """As the snapshot has messages: a long text by its SHA-256."""
    match value:
        case str() if len(value) > 400:
            return f"sha256:{hashlib.sha256(value.encode()).hexdigest()}"
        case dict():
            return {name: abridged(part) for name, part in value.items()}
        case list():
            return [abridged(part) for part in value]
    return value


def said(turns: Sequence[JSON], *, recovered: bool = False) -> list[JSON]:
    """Number, state and messages of turns, as the API or as the snapshot has them."""
    later = "state_after" if recovered else "state"
    return [
        {"turn": turn["turn"], "state": turn.get(later, turn["state"]), "messages": abridged(turn["messages"])}
        for turn in turns
    ]


async def go_on(api: httpx.AsyncClient, session: str, message: str) -> JSON:
    """A new turn, which must be answered."""
    response = await api.post(
        CHAT, json={"session_id": session, "message": message}, headers=shown(SESSIONS[session]["owner"])
    )
    assert response.status_code == 200, response.text
    found: JSON = exact(response.text)
    return found


def cost_of(billed: Billed) -> Decimal | None:
    """By the prices, None where there is none."""
    rates = {name: Decimal(amount) for name, amount in PRICES.get(billed.deployment, {}).items()}
    if not rates:
        return None
    plain = billed.prompt_tokens - billed.cached_tokens - billed.cache_write_tokens
    prompt = plain * rates["input"] + billed.cached_tokens * rates["cached_input"]
    written = billed.cache_write_tokens * rates.get("cache_write", rates["input"])
    return (prompt + written + billed.completion_tokens * rates["output"]) / 1_000_000


def total(amounts: Iterable[Decimal | None]) -> Decimal:
    return sum((amount for amount in amounts if amount is not None), Decimal(0))


def plus(before: JSON, billed: Billed) -> JSON:
    """Totals with one more turn, of this bill."""
    cost = cost_of(billed)
    return {
        "turns": before["turns"] + 1,
        "total_tokens": before["total_tokens"] + billed.prompt_tokens + billed.completion_tokens,
        "cost_usd": before["cost_usd"] + (cost or 0),
        "unpriced_turns": before["unpriced_turns"] + (cost is None),
        "unaccounted_calls": before["unaccounted_calls"],
    }


async def closed(stored: Stored) -> list[JSON]:
    """The ledger once no row is open: a turn is answered before its row is settled."""

    async def rows() -> list[JSON] | None:
        found = await asyncio.to_thread(stored.rows, "usage")
        return None if any(row["state"] == "open" for row in found) else found

    return await until(rows, patience=10)


async def figures(api: httpx.AsyncClient, day: str) -> JSON:
    """A day as the snapshot tells it."""
    found = await look(api, f"/api/usage/daily/{day}", "usage")
    return {
        "cost": found["cost_usd"],
        "total_tokens": found["usage"]["total_tokens"],
        "turns": found["turns"],
        "sessions": found["sessions"],
        "calls": found["calls"],
        "failed": found["failed_calls"],
        "unaccounted": found["unaccounted_calls"],
        "unaccounted_usd": found["unaccounted_usd"],
        "unpriced": found["unpriced_turns"],
        "final": found["final"],
    }


def expected_figures(day: str, when: str) -> JSON:
    told = DAYS[day][when]
    amounts = {name: Decimal(told[name]) for name in ("cost", "unaccounted_usd")}
    return {name: amount for name, amount in told.items() if name != "open"} | amounts | {"final": True}


# Sessions are read


async def test_every_session_has_the_totals_the_settings_and_the_owner_that_it_had(api: httpx.AsyncClient) -> None:
    found = {session: await totals(api, session) for session in KEPT}
    heads = {session: await look(api, f"/api/sessions/{session}", told["owner"]) for session, told in KEPT.items()}

    assert found == {session: expected_totals(told, "before") for session, told in KEPT.items()}
    assert {session: (head["system"], head["deployment"], head["busy"]) for session, head in heads.items()} == {
        session: (told["system"], told["deployment"], False) for session, told in KEPT.items()
    }
    owned = [f"/api/sessions/{session}" for session, told in KEPT.items() if told["owner"]]
    others = [await api.get(path, headers=shown(caller)) for path in owned for caller in (None, "key:bob")]
    assert [response.status_code for response in others] == [404] * 4


async def test_every_history_is_whole_and_in_order(api: httpx.AsyncClient) -> None:
    found = {session: said(await history(api, session)) for session in KEPT}

    assert found == {session: said(told["history"]) for session, told in KEPT.items()}
    assert found["half-cleared"] == []
    assert [turn["turn"] for turn in found["cleared"]] == [4, 5]


# Sessions go on


async def test_every_session_goes_on_where_it_was(api: httpx.AsyncClient, fake: AzureOpenAI, stored: Stored) -> None:
    """Crashed turns are recovered by the next one: lost calls are unaccounted; those without a ledger row get one that
    is abandoned."""
    fences = {(session, 2, "abandoned") for session in ("crashed-unwritten", "crashed-retry")}
    assert written(stored).isdisjoint(fences)
    for session, told in KEPT.items():
        answer = await go_on(api, session, f"more in {session}")

        assert answer["turn"] == told["turns"] + 1
        assert answer["message"]["content"] == f"echo: more in {session}"
        past = [message for turn in told["history"] if turn["shown"] for message in turn["messages"]]
        assert abridged(fake.requests[-1].body["messages"]) == [
            {"role": "system", "content": told["system"]},
            *past,
            {"role": "user", "content": f"more in {session}"},
        ]
        now = plus(expected_totals(told, "after"), fake.meter[-1])
        assert answer["session"] | now == answer["session"]
        assert await totals(api, session) == now
        *before, last = said(await history(api, session, limit=20))
        assert before == said(told["history"], recovered=True)
        assert last["state"] == "settled"
    assert len(fake.meter) == len(KEPT)
    calls = {
        call["id"]: call["state"]
        for row in stored.rows("sessions")
        if row["RowKey"].startswith("turn-") and row["PartitionKey"] in KEPT
        for call in json.loads(row["calls"])
    }
    assert "open" not in calls.values()
    assert written(stored) >= fences


def written(stored: Stored) -> set[tuple[str, int, str]]:
    """Session, turn and state of the ledger rows of kept sessions."""
    found = [(row["RowKey"].split("~"), row["state"]) for row in stored.rows("usage")]
    return {(key[0], int(key[1]), state) for key, state in found if key[0] in KEPT}


async def test_an_erased_session_begins_again(api: httpx.AsyncClient, fake: AzureOpenAI) -> None:
    for session in sorted(GONE):
        assert (await api.get(f"/api/sessions/{session}")).status_code == 404

        answer = await go_on(api, session, "new")

        assert answer["turn"] == 1
        assert [message["content"] for message in fake.requests[-1].body["messages"][1:]] == ["new"]
        assert await totals(api, session) == plus(EMPTY, fake.meter[-1])


# Idempotency keys


async def repeat(api: httpx.AsyncClient, key: JSON, **changed: Any) -> httpx.Response:
    """The request of that key once more."""
    path = WIRE if key["route"] == "openai" else CHAT
    headers = shown(key["caller"], **{"idempotency-key": key["key"]})
    if key["route"] == "openai":
        headers["x-session-id"] = key["session"]
    return await api.post(path, json=key["body"] | changed, headers=headers)


def keys(*, answered: bool) -> list[JSON]:
    return [key for key in EXPECTED["keys"] if key["session"] not in GONE and (key["answer"] is not None) == answered]


async def test_an_answered_key_gives_the_same_answer_and_no_bill(api: httpx.AsyncClient, fake: AzureOpenAI) -> None:
    """And, answered or not, it is refused for another request."""
    for key in keys(answered=True):
        first, response = exact(key["answer"]), await repeat(api, key)

        assert (response.status_code, response.headers.get("idempotent-replayed")) == (200, "true"), key
        again = exact(response.text)
        if key["route"] == "openai":
            message = {name: first["choices"][0]["message"][name] for name in ("role", "content")}
            assert again["choices"][0]["message"] == message
            assert again["usage"]["total_tokens"] == first["usage"]["total_tokens"]
            continue
        assert {**again, "session": None} == {**first, "session": None}
        now = expected_totals(SESSIONS[key["session"]], "after")
        assert again["session"] | now == again["session"]
    assert len(keys(answered=True)) == 4
    chat = [key for key in (*keys(answered=True), *keys(answered=False)) if key["route"] == "chat"]
    assert {(await repeat(api, key, message="something else")).status_code for key in chat} == {422}
    assert fake.requests == []


async def test_a_key_that_was_not_answered_is_tried_again_once(api: httpx.AsyncClient, fake: AzureOpenAI) -> None:
    """After a failed turn, after a crash (in a named session and in a first post's), and where a crash left nothing but
    the pointer of a first post's key."""
    for bills, key in enumerate(keys(answered=False), 1):
        turns = KEPT[key["session"]]["turns"] if key["session"] in KEPT else 0

        first, again = await repeat(api, key), await repeat(api, key)

        assert (first.status_code, first.headers.get("idempotent-replayed")) == (200, None), key
        answer = exact(first.text)
        assert (answer["session_id"], answer["turn"]) == (key["session"], turns + 1)
        assert (again.headers.get("idempotent-replayed"), again.text) == ("true", first.text)
        assert len(fake.meter) == bills
    assert len(keys(answered=False)) == 4


# Removals


async def test_the_timer_finishes_what_was_half_removed(
    clock: ManualClock, api: httpx.AsyncClient, stored: Stored
) -> None:
    marked = {row["session"] for row in stored.rows("sessions") if row["PartitionKey"] == "~erasing"}
    assert marked == {*HALF_REMOVED, "stale-mark"}

    await fire(clock, MORNING)

    found = stored.rows("sessions")
    assert [row for row in found if row["PartitionKey"] == "~erasing"] == []
    assert GONE.isdisjoint(row["PartitionKey"] for row in found)
    turns = [row for row in found if row["PartitionKey"] == "half-cleared" and row["RowKey"].startswith("turn-")]
    assert [row["messages"] for row in turns] == ["[]"] * 3
    assert await totals(api, "half-cleared") == expected_totals(SESSIONS["half-cleared"], "before")
    assert said(await history(api, "stale-mark")) == said(SESSIONS["stale-mark"]["history"])


async def test_a_look_finishes_what_was_half_removed(api: httpx.AsyncClient, stored: Stored) -> None:
    found = {session: (await api.get(f"/api/sessions/{session}")).status_code for session in HALF_REMOVED}

    assert found == {session: 404 if session in GONE else 200 for session in HALF_REMOVED}
    rows = stored.rows("sessions")
    left = [row for row in rows if row["PartitionKey"] in HALF_REMOVED]
    assert {row["PartitionKey"] for row in left} == {"half-cleared"}
    assert not any("removal" in row or row.get("messages", "[]") != "[]" for row in left)
    assert [row["session"] for row in rows if row["PartitionKey"] == "~erasing"] == ["stale-mark"]


# Days


async def test_kept_days_are_told_as_they_were_and_another_is_recovered_and_added_up(api: httpx.AsyncClient) -> None:
    kept = sorted(EXPECTED["outcomes"].keys() & DAYS.keys())

    found = {day: await figures(api, day) for day in kept}

    assert kept[-1] == FRIDAY
    assert found == {day: expected_figures(day, "before") for day in kept}
    assert DAYS[SATURDAY]["before"]["open"] == 6
    assert await figures(api, SATURDAY) == expected_figures(SATURDAY, "after")


async def test_the_timer_brings_every_day_to_what_it_cost(
    clock: ManualClock, api: httpx.AsyncClient, stored: Stored, fake: AzureOpenAI
) -> None:
    """And every session: the timer alone accounts for each call that has a ledger row."""
    await fire(clock, MORNING)

    assert {day: await figures(api, day) for day in DAYS} == {day: expected_figures(day, "after") for day in DAYS}
    heads = {session: await totals(api, session) for session in KEPT}
    assert heads == {session: expected_totals(told, "after") for session, told in KEPT.items()}
    rows = stored.rows("usage")
    assert "open" not in {row["state"] for row in rows}
    for when in DAYS:
        settled = total(Decimal(row["cost"]) for row in rows if row["day"] == when and "cost" in row)
        assert settled == Decimal(DAYS[when]["after"]["cost"])
    span = await look(api, f"/api/usage/daily?from={min(DAYS)}&to={max(DAYS)}", "usage")
    assert span["cost_usd"] == total(Decimal(told["after"]["cost"]) for told in DAYS.values())
    assert fake.requests == []


def subjects(outbox: Path) -> list[str]:
    """Of the mails that were sent."""
    mails = [message_from_bytes(file.read_bytes(), policy=policy.SMTP) for file in outbox.glob("*.eml")]
    return [str(mail["subject"]) for mail in mails]


async def test_the_timer_mails_what_was_not_mailed_and_corrects_what_was(
    clock: ManualClock, api: httpx.AsyncClient, stored: Stored, outbox: Path
) -> None:
    """Friday's claim is over, Saturday is new, and the call of Wednesday that was settled late is told once."""
    before = {f"{row['PartitionKey']}-{row['RowKey']}": row for row in stored.rows("daily")}
    assert {day: before[day].get("outcome") for day in EXPECTED["outcomes"]} == EXPECTED["outcomes"]
    change = Decimal(DAYS[WEDNESDAY]["after"]["cost"]) - Decimal(DAYS[WEDNESDAY]["before"]["cost"])
    assert change > 0

    await fire(clock, MORNING)
    await fire(clock, MORNING + timedelta(hours=1))

    after = {f"{row['PartitionKey']}-{row['RowKey']}": row for row in stored.rows("daily")}
    sent = dict.fromkeys((FRIDAY, SATURDAY), "sent")
    assert {day: after[day].get("outcome") for day in (*EXPECTED["outcomes"], SATURDAY)} == EXPECTED["outcomes"] | sent
    told = {day: Decimal(after[day]["told"]) for day in (WEDNESDAY, FRIDAY, SATURDAY)}
    assert told == {day: Decimal(DAYS[day]["after"]["cost"]) for day in told}
    assert sorted(day for day in DAYS for subject in subjects(outbox) if day in subject) == [FRIDAY, SATURDAY]
    fixed = {key: row["value"] for key, row in after.items() if key.startswith("~fixed")}
    assert fixed == {key: row["value"] for key, row in before.items() if key.startswith("~fixed")}
    saturday = await look(api, f"/api/usage/daily/{SATURDAY}", "usage")
    assert saturday["adjustments"] == [
        {"date": WEDNESDAY, "difference_usd": change, "cost_usd": Decimal(DAYS[WEDNESDAY]["after"]["cost"])}
    ]


# No cent is lost


async def test_the_ledger_comes_to_what_sessions_and_calls_without_one_come_to(
    clock: ManualClock, api: httpx.AsyncClient, stored: Stored, fake: AzureOpenAI
) -> None:
    """After the timer, a new turn in each session, every key once more and a call without a session."""
    await fire(clock, MORNING)
    for session in SESSIONS:
        await go_on(api, session, "more")
    for key in (*keys(answered=True), *keys(answered=False)):
        assert (await repeat(api, key)).status_code == 200
    body = {"model": "chat", "messages": [{"role": "user", "content": "hi"}]}
    assert (await api.post(WIRE, json=body, headers=shown("key:alice"))).status_code == 200
    sessionless_bill = cost_of(fake.meter[-1])
    rows = await closed(stored)
    await fire(clock, MORNING + timedelta(hours=1))
    assert await asyncio.to_thread(stored.rows, "usage") == rows

    heads = [row for row in stored.rows("sessions") if row["RowKey"] == "head"]
    of_sessions = total(Decimal(head["cost"]) for head in heads)
    without = Decimal(EXPECTED["sessionless"]["cost"]) + total([sessionless_bill])
    of_erased = total(Decimal(SESSIONS[session]["cost"]) for session in GONE)
    ledger = total(Decimal(row["cost"]) for row in rows if row["state"] == "settled" and "cost" in row)
    assert ledger == of_sessions + without + of_erased
    assert ledger == total(Decimal(day["after"]["cost"]) for day in DAYS.values()) + total(map(cost_of, fake.meter))
    doubtful = sum(row["state"] == "unaccounted" for row in rows)
    assert (
        doubtful
        == sum(_number(head["unaccounted_calls"]) for head in heads) + EXPECTED["sessionless"]["unaccounted_after"]
    )
    assert doubtful == sum(day["after"]["unaccounted"] for day in DAYS.values())


def _number(value: Any) -> int:
    return int(value.value if isinstance(value, EntityProperty) else value)


def test_the_snapshots_own_figures_agree() -> None:
    """By session and by day the calls come to the same."""
    by_session = total(Decimal(told["cost"]) for told in SESSIONS.values())
    by_day = total(Decimal(told["after"]["cost"]) for told in DAYS.values())
    assert by_session + Decimal(EXPECTED["sessionless"]["cost"]) == by_day
    assert all(date.fromisoformat(day) < MORNING.date() for day in DAYS)
