"""Upgrade from 0.1.0: the current code reads, continues, recovers and adds up its tables.

`data/tables-0.1.0.json` holds every entity of the three tables as version 0.1.0 left them, crashes included, and the
expected results from the meter of the fake model service. The tests use HTTP or read raw entities, so that they do not
depend on the structure of the code.
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
from tests.support.chat_client import exact, until
from tests.support.clock import ManualClock

JSON = dict[str, Any]


async def run_timers(clock: ManualClock, now: datetime) -> None:
    """Set the clock and run both timers, in the app that uses this clock."""
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
LIVE = {name: session for name, session in SESSIONS.items() if not session["gone"]}
ERASED = SESSIONS.keys() - LIVE.keys()
HALF_DELETED = ("half-erased", "half-erased-long", "half-cleared")
MORNING = datetime.fromisoformat(EXPECTED["fired"])  # after the last day of the snapshot
WEDNESDAY, FRIDAY, SATURDAY = "2026-11-18", "2026-11-20", "2026-11-21"
CHAT, WIRE = "/api/chat", "/openai/v1/chat/completions"


class StoredTables:
    """The raw entities of the app's tables."""

    def __init__(self, service: TableServiceClient, prefix: str) -> None:
        self._service, self._prefix = service, prefix

    def load(self) -> None:
        """Create the tables and insert the snapshot's entities unchanged."""
        with ThreadPoolExecutor(4) as pool:
            for name, rows in TABLES.items():
                table = self._service.create_table(f"{self._prefix}{name}")
                partitions: dict[str, list[JSON]] = defaultdict(list)
                for row in rows:
                    partitions[row["PartitionKey"]].append({key: _value(value) for key, value in row.items()})
                for future in [pool.submit(_insert, table, entities) for entities in partitions.values()]:
                    future.result()

    def rows(self, name: str) -> list[JSON]:
        with self._service.get_table_client(f"{self._prefix}{name}") as table:
            return [dict(row) for row in table.list_entities()]


def _insert(table: TableClient, entities: list[JSON]) -> None:
    """Insert all entities of one partition."""
    if len(entities) == 1:  # a transaction takes three times as long
        table.create_entity(entities[0])
        return
    for batch in (entities[at : at + 100] for at in range(0, len(entities), 100)):
        table.submit_transaction([("create", entity) for entity in batch])


def _value(field: Any) -> Any:
    if isinstance(field, str):  # a key
        return field
    kind, value = field
    match kind:
        case "Int64" | "Int32" | "Double":
            number = float(value) if kind == "Double" else int(value)
            return EntityProperty(number, EdmType(f"Edm.{kind}"))
        case "DateTime":
            return datetime.fromisoformat(value)
        case "String" | "Boolean":
            return value
    raise ValueError(f"unknown EDM type in the snapshot: {kind}")


@pytest.fixture
def stored(azurite_port: int, prefix: str) -> Iterator[StoredTables]:
    with TableServiceClient.from_connection_string(connection_string(azurite_port)) as service:
        stored = StoredTables(service, prefix)
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
    clock: ManualClock, stored: StoredTables, serve: Serve, environ: dict[str, str], fake: AzureOpenAI
) -> AsyncIterator[httpx.AsyncClient]:
    """The app with the snapshot's tables, on the morning after the snapshot's last day."""
    assert stored
    clock.set(MORNING)
    fake.deployments = ABOUT["models"]
    async with serve(environ) as client:
        yield client


# Requests and expected results


def headers_of(caller: str | None, **more: str) -> dict[str, str]:
    """The given headers, with the caller's API key."""
    return {"api-key": str(ABOUT["keys"][caller]), **more} if caller else more


async def get_json(api: httpx.AsyncClient, path: str, caller: str | None = None) -> JSON:
    response = await api.get(path, headers=headers_of(caller))
    assert response.status_code == 200, response.text
    body: JSON = exact(response.text)
    return body


async def totals(api: httpx.AsyncClient, session: str) -> JSON:
    head = await get_json(api, f"/api/sessions/{session}", SESSIONS[session]["owner"])
    return {name: head[name] for name in EMPTY}


EMPTY: JSON = {
    "turns": 0,
    "total_tokens": 0,
    "cost_usd": Decimal(0),
    "unpriced_turns": 0,
    "unaccounted_calls": 0,
}


def expected_totals(expected: JSON, when: str) -> JSON:
    """`when`: "before" or "after" recovery. Recovery settles no call; it counts lost calls as unaccounted."""
    return {
        "turns": expected["turns"],
        "total_tokens": expected["total_tokens"],
        "cost_usd": Decimal(expected["cost"]),
        "unpriced_turns": expected["unpriced_turns"],
        "unaccounted_calls": expected[f"unaccounted_{when}"],
    }


async def history(api: httpx.AsyncClient, session: str, limit: int = 2) -> list[JSON]:
    """The session's whole history, read page by page, oldest turn first."""
    turns: list[JSON] = []
    before: int | None = None
    while True:
        page = f"?limit={limit}" + (f"&before={before}" if before else "")
        body = await get_json(api, f"/api/sessions/{session}/messages{page}", SESSIONS[session]["owner"])
        turns += body["turns"]
        before = body["next_before"]
        if before is None:
            return turns[::-1]


def abridged(value: Any) -> Any:
    """Replace each long text with its SHA-256, as in the snapshot's messages."""
    match value:
        case str() if len(value) > 400:
            return f"sha256:{hashlib.sha256(value.encode()).hexdigest()}"
        case dict():
            return {name: abridged(part) for name, part in value.items()}
        case list():
            return [abridged(part) for part in value]
    return value


def turn_fields(turns: Sequence[JSON], *, recovered: bool = False) -> list[JSON]:
    """Number, state and messages of turns of the API or of the snapshot. `recovered`: the state after recovery."""
    state_key = "state_after" if recovered else "state"
    return [
        {"turn": turn["turn"], "state": turn.get(state_key, turn["state"]), "messages": abridged(turn["messages"])}
        for turn in turns
    ]


async def send_message(api: httpx.AsyncClient, session: str, message: str) -> JSON:
    """Send a message and return the answer; fails unless it is a 200."""
    response = await api.post(
        CHAT, json={"session_id": session, "message": message}, headers=headers_of(SESSIONS[session]["owner"])
    )
    assert response.status_code == 200, response.text
    body: JSON = exact(response.text)
    return body


def cost_of(billed: Billed) -> Decimal | None:
    """The cost in USD by the snapshot's prices; None if the deployment has no price."""
    rates = {name: Decimal(amount) for name, amount in PRICES.get(billed.deployment, {}).items()}
    if not rates:
        return None
    plain = billed.prompt_tokens - billed.cached_tokens - billed.cache_write_tokens
    prompt = plain * rates["input"] + billed.cached_tokens * rates["cached_input"]
    cache_writes = billed.cache_write_tokens * rates.get("cache_write", rates["input"])
    return (prompt + cache_writes + billed.completion_tokens * rates["output"]) / 1_000_000


def total(amounts: Iterable[Decimal | None]) -> Decimal:
    return sum((amount for amount in amounts if amount is not None), Decimal(0))


def totals_plus(before: JSON, billed: Billed) -> JSON:
    """The totals after one more turn with this bill."""
    cost = cost_of(billed)
    return {
        "turns": before["turns"] + 1,
        "total_tokens": before["total_tokens"] + billed.prompt_tokens + billed.completion_tokens,
        "cost_usd": before["cost_usd"] + (cost or 0),
        "unpriced_turns": before["unpriced_turns"] + (cost is None),
        "unaccounted_calls": before["unaccounted_calls"],
    }


async def closed_ledger(stored: StoredTables) -> list[JSON]:
    """The ledger once no row is open: a turn is answered before its row is settled."""

    async def rows() -> list[JSON] | None:
        entries = await asyncio.to_thread(stored.rows, "usage")
        return None if any(row["state"] == "open" for row in entries) else entries

    return await until(rows, timeout=10)


async def figures(api: httpx.AsyncClient, day: str) -> JSON:
    """A day's figures under the snapshot's names."""
    usage = await get_json(api, f"/api/usage/daily/{day}", "usage")
    return {
        "cost": usage["cost_usd"],
        "total_tokens": usage["usage"]["total_tokens"],
        "turns": usage["turns"],
        "sessions": usage["sessions"],
        "calls": usage["calls"],
        "failed": usage["failed_calls"],
        "unaccounted": usage["unaccounted_calls"],
        "unaccounted_usd": usage["unaccounted_usd"],
        "unpriced": usage["unpriced_turns"],
        "final": usage["final"],
    }


def expected_figures(day: str, when: str) -> JSON:
    expected = DAYS[day][when]
    amounts = {name: Decimal(expected[name]) for name in ("cost", "unaccounted_usd")}
    return {name: amount for name, amount in expected.items() if name != "open"} | amounts | {"final": True}


# Reading sessions


async def test_upgraded_sessions_keep_their_totals_settings_and_owner(api: httpx.AsyncClient) -> None:
    actual = {session: await totals(api, session) for session in LIVE}
    heads = {
        session: await get_json(api, f"/api/sessions/{session}", expected["owner"])
        for session, expected in LIVE.items()
    }

    assert actual == {session: expected_totals(expected, "before") for session, expected in LIVE.items()}
    assert {session: (head["system"], head["deployment"], head["busy"]) for session, head in heads.items()} == {
        session: (expected["system"], expected["deployment"], False) for session, expected in LIVE.items()
    }
    owned = [f"/api/sessions/{session}" for session, expected in LIVE.items() if expected["owner"]]
    others = [await api.get(path, headers=headers_of(caller)) for path in owned for caller in (None, "key:bob")]
    assert [response.status_code for response in others] == [404] * 4


async def test_upgraded_sessions_have_their_whole_history_in_order(api: httpx.AsyncClient) -> None:
    turns = {session: turn_fields(await history(api, session)) for session in LIVE}

    assert turns == {session: turn_fields(expected["history"]) for session, expected in LIVE.items()}
    assert turns["half-cleared"] == []
    assert [turn["turn"] for turn in turns["cleared"]] == [4, 5]


# Continuing sessions


async def test_upgraded_sessions_continue_and_recover_crashed_turns(
    api: httpx.AsyncClient, fake: AzureOpenAI, stored: StoredTables
) -> None:
    """The next turn recovers crashed ones: a lost call is unaccounted; a call without a ledger row gets an abandoned
    one (the fence)."""
    fences = {(session, 2, "abandoned") for session in ("crashed-unwritten", "crashed-retry")}
    assert ledger_states(stored).isdisjoint(fences)
    for session, expected in LIVE.items():
        answer = await send_message(api, session, f"more in {session}")

        assert answer["turn"] == expected["turns"] + 1
        assert answer["message"]["content"] == f"echo: more in {session}"
        past = [message for turn in expected["history"] if turn["shown"] for message in turn["messages"]]
        assert abridged(fake.requests[-1].body["messages"]) == [
            {"role": "system", "content": expected["system"]},
            *past,
            {"role": "user", "content": f"more in {session}"},
        ]
        now = totals_plus(expected_totals(expected, "after"), fake.meter[-1])
        assert answer["session"] | now == answer["session"]
        assert await totals(api, session) == now
        *before, last = turn_fields(await history(api, session, limit=20))
        assert before == turn_fields(expected["history"], recovered=True)
        assert last["state"] == "settled"
    assert len(fake.meter) == len(LIVE)
    calls = {
        call["id"]: call["state"]
        for row in stored.rows("sessions")
        if row["RowKey"].startswith("turn-") and row["PartitionKey"] in LIVE
        for call in json.loads(row["calls"])
    }
    assert "open" not in calls.values()
    assert ledger_states(stored) >= fences


def ledger_states(stored: StoredTables) -> set[tuple[str, int, str]]:
    """Session, turn and state of each ledger row of a session that exists."""
    entries = [(row["RowKey"].split("~"), row["state"]) for row in stored.rows("usage")]
    return {(key[0], int(key[1]), state) for key, state in entries if key[0] in LIVE}


async def test_erased_session_starts_again_from_turn_1(api: httpx.AsyncClient, fake: AzureOpenAI) -> None:
    for session in sorted(ERASED):
        assert (await api.get(f"/api/sessions/{session}")).status_code == 404

        answer = await send_message(api, session, "new")

        assert answer["turn"] == 1
        assert [message["content"] for message in fake.requests[-1].body["messages"][1:]] == ["new"]
        assert await totals(api, session) == totals_plus(EMPTY, fake.meter[-1])


# Idempotency keys


async def repeat(api: httpx.AsyncClient, key: JSON, **changed: Any) -> httpx.Response:
    """Send the request of that idempotency key again."""
    path = WIRE if key["route"] == "openai" else CHAT
    headers = headers_of(key["caller"], **{"idempotency-key": key["key"]})
    if key["route"] == "openai":
        headers["x-session-id"] = key["session"]
    return await api.post(path, json=key["body"] | changed, headers=headers)


def idempotency_keys(*, answered: bool) -> list[JSON]:
    return [key for key in EXPECTED["keys"] if key["session"] not in ERASED and (key["answer"] is not None) == answered]


async def test_replay_of_an_answered_idempotency_key_returns_the_same_answer_unbilled(
    api: httpx.AsyncClient, fake: AzureOpenAI
) -> None:
    """Each key, answered or not, is also rejected with 422 for a different request."""
    for key in idempotency_keys(answered=True):
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
    assert len(idempotency_keys(answered=True)) == 4
    chat = [
        key for key in (*idempotency_keys(answered=True), *idempotency_keys(answered=False)) if key["route"] == "chat"
    ]
    assert {(await repeat(api, key, message="something else")).status_code for key in chat} == {422}
    assert fake.requests == []


async def test_retry_of_an_unanswered_idempotency_key_calls_the_model_once(
    api: httpx.AsyncClient, fake: AzureOpenAI
) -> None:
    """After a failed turn, a crash (in a named session or in a new one), or a crash that left only the pointer of a new
    session's key."""
    for bills, key in enumerate(idempotency_keys(answered=False), 1):
        turns = LIVE[key["session"]]["turns"] if key["session"] in LIVE else 0

        first, again = await repeat(api, key), await repeat(api, key)

        assert (first.status_code, first.headers.get("idempotent-replayed")) == (200, None), key
        answer = exact(first.text)
        assert (answer["session_id"], answer["turn"]) == (key["session"], turns + 1)
        assert (again.headers.get("idempotent-replayed"), again.text) == ("true", first.text)
        assert len(fake.meter) == bills
    assert len(idempotency_keys(answered=False)) == 4


# Deletions


async def test_maintenance_finishes_interrupted_deletions(
    clock: ManualClock, api: httpx.AsyncClient, stored: StoredTables
) -> None:
    marked = {row["session"] for row in stored.rows("sessions") if row["PartitionKey"] == "~erasing"}
    assert marked == {*HALF_DELETED, "stale-mark"}

    await run_timers(clock, MORNING)

    rows = stored.rows("sessions")
    assert [row for row in rows if row["PartitionKey"] == "~erasing"] == []
    assert ERASED.isdisjoint(row["PartitionKey"] for row in rows)
    turns = [row for row in rows if row["PartitionKey"] == "half-cleared" and row["RowKey"].startswith("turn-")]
    assert [row["messages"] for row in turns] == ["[]"] * 3
    assert await totals(api, "half-cleared") == expected_totals(SESSIONS["half-cleared"], "before")
    assert turn_fields(await history(api, "stale-mark")) == turn_fields(SESSIONS["stale-mark"]["history"])


async def test_read_finishes_interrupted_deletions(api: httpx.AsyncClient, stored: StoredTables) -> None:
    statuses = {session: (await api.get(f"/api/sessions/{session}")).status_code for session in HALF_DELETED}

    assert statuses == {session: 404 if session in ERASED else 200 for session in HALF_DELETED}
    rows = stored.rows("sessions")
    remaining = [row for row in rows if row["PartitionKey"] in HALF_DELETED]
    assert {row["PartitionKey"] for row in remaining} == {"half-cleared"}
    assert not any("removal" in row or row.get("messages", "[]") != "[]" for row in remaining)
    assert [row["session"] for row in rows if row["PartitionKey"] == "~erasing"] == ["stale-mark"]


async def test_erasing_upgraded_sessions_leaves_their_names_nowhere_and_changes_no_sum(
    clock: ManualClock, api: httpx.AsyncClient, stored: StoredTables
) -> None:
    """Also of sessions that crashed, that had a turn since, and that are among a stored day's costliest."""
    await send_message(api, "cleared", "more")
    await run_timers(clock, MORNING)
    before = await closed_ledger(stored)
    assert LIVE.keys() & {name for row in stored.rows("daily") for name in names_of_day(row)}
    days = {day: await figures(api, day) for day in DAYS}

    for session, expected in LIVE.items():
        response = await api.delete(f"/api/sessions/{session}", headers=headers_of(expected["owner"]))
        assert response.status_code == 204

    after = stored.rows("usage")
    assert LIVE.keys() & {row["RowKey"].split("~")[0] for row in before}
    assert LIVE.keys().isdisjoint(part for row in after for part in (*row["RowKey"].split("~"), row.get("session")))
    assert LIVE.keys().isdisjoint(row["PartitionKey"] for row in stored.rows("sessions"))
    assert LIVE.keys().isdisjoint(name for row in stored.rows("daily") for name in names_of_day(row))
    assert sorted(map(accounting_of, after)) == sorted(map(accounting_of, before))
    assert {day: await figures(api, day) for day in DAYS} == days


def names_of_day(row: JSON) -> list[str]:
    """The sessions in a stored day's figures."""
    return [name for name, *_ in json.loads(row["figures"])["costliest"]] if "figures" in row else []


def accounting_of(row: JSON) -> str:
    """A ledger row without the name of its session."""
    return str(sorted((name, str(value)) for name, value in row.items() if name not in ("RowKey", "reference")))


# Days


async def test_stored_days_are_unchanged_and_a_new_day_is_recovered_and_summed(api: httpx.AsyncClient) -> None:
    stored_days = sorted(EXPECTED["outcomes"].keys() & DAYS.keys())

    actual = {day: await figures(api, day) for day in stored_days}

    assert stored_days[-1] == FRIDAY
    assert actual == {day: expected_figures(day, "before") for day in stored_days}
    assert DAYS[SATURDAY]["before"]["open"] == 6
    assert await figures(api, SATURDAY) == expected_figures(SATURDAY, "after")


async def test_timers_update_every_day_and_session_to_its_actual_cost(
    clock: ManualClock, api: httpx.AsyncClient, stored: StoredTables, fake: AzureOpenAI
) -> None:
    """Sessions too: the timers alone account for each call that has a ledger row."""
    await run_timers(clock, MORNING)

    assert {day: await figures(api, day) for day in DAYS} == {day: expected_figures(day, "after") for day in DAYS}
    heads = {session: await totals(api, session) for session in LIVE}
    assert heads == {session: expected_totals(expected, "after") for session, expected in LIVE.items()}
    rows = stored.rows("usage")
    assert "open" not in {row["state"] for row in rows}
    for day in DAYS:
        settled = total(Decimal(row["cost"]) for row in rows if row["day"] == day and "cost" in row)
        assert settled == Decimal(DAYS[day]["after"]["cost"])
    span = await get_json(api, f"/api/usage/daily?from={min(DAYS)}&to={max(DAYS)}", "usage")
    assert span["cost_usd"] == total(Decimal(day["after"]["cost"]) for day in DAYS.values())
    assert fake.requests == []


def subjects(outbox: Path) -> list[str]:
    """The subjects of the emails in the outbox."""
    emails = [message_from_bytes(file.read_bytes(), policy=policy.SMTP) for file in outbox.glob("*.eml")]
    return [str(email["subject"]) for email in emails]


async def test_daily_timer_emails_missing_days_and_corrects_mailed_ones(
    clock: ManualClock, api: httpx.AsyncClient, stored: StoredTables, outbox: Path
) -> None:
    """Friday's claim has expired, Saturday is new, and the late settlement of a Wednesday call is reported once."""
    before = {f"{row['PartitionKey']}-{row['RowKey']}": row for row in stored.rows("daily")}
    assert {day: before[day].get("outcome") for day in EXPECTED["outcomes"]} == EXPECTED["outcomes"]
    change = Decimal(DAYS[WEDNESDAY]["after"]["cost"]) - Decimal(DAYS[WEDNESDAY]["before"]["cost"])
    assert change > 0

    await run_timers(clock, MORNING)
    await run_timers(clock, MORNING + timedelta(hours=1))

    after = {f"{row['PartitionKey']}-{row['RowKey']}": row for row in stored.rows("daily")}
    sent = dict.fromkeys((FRIDAY, SATURDAY), "sent")
    assert {day: after[day].get("outcome") for day in (*EXPECTED["outcomes"], SATURDAY)} == EXPECTED["outcomes"] | sent
    mailed = {day: Decimal(after[day]["told"]) for day in (WEDNESDAY, FRIDAY, SATURDAY)}
    assert mailed == {day: Decimal(DAYS[day]["after"]["cost"]) for day in mailed}
    assert sorted(day for day in DAYS for subject in subjects(outbox) if day in subject) == [FRIDAY, SATURDAY]
    constants = {key: row["value"] for key, row in after.items() if key.startswith("~fixed")}
    assert constants == {key: row["value"] for key, row in before.items() if key.startswith("~fixed")}
    saturday = await get_json(api, f"/api/usage/daily/{SATURDAY}", "usage")
    assert saturday["adjustments"] == [
        {"date": WEDNESDAY, "difference_usd": change, "cost_usd": Decimal(DAYS[WEDNESDAY]["after"]["cost"])}
    ]


# Totals


async def test_ledger_equals_sessions_plus_sessionless_calls(
    clock: ManualClock, api: httpx.AsyncClient, stored: StoredTables, fake: AzureOpenAI
) -> None:
    """Also after both timers, a new turn in each session, a replay of every key and a call without a session."""
    await run_timers(clock, MORNING)
    for session in SESSIONS:
        await send_message(api, session, "more")
    for key in (*idempotency_keys(answered=True), *idempotency_keys(answered=False)):
        assert (await repeat(api, key)).status_code == 200
    body = {"model": "chat", "messages": [{"role": "user", "content": "hi"}]}
    assert (await api.post(WIRE, json=body, headers=headers_of("key:alice"))).status_code == 200
    sessionless_bill = cost_of(fake.meter[-1])
    rows = await closed_ledger(stored)
    await run_timers(clock, MORNING + timedelta(hours=1))
    assert await asyncio.to_thread(stored.rows, "usage") == rows

    heads = [row for row in stored.rows("sessions") if row["RowKey"] == "head"]
    sessions = total(Decimal(head["cost"]) for head in heads)
    sessionless = Decimal(EXPECTED["sessionless"]["cost"]) + total([sessionless_bill])
    erased = total(Decimal(SESSIONS[session]["cost"]) for session in ERASED)
    ledger = total(Decimal(row["cost"]) for row in rows if row["state"] == "settled" and "cost" in row)
    assert ledger == sessions + sessionless + erased
    assert ledger == total(Decimal(day["after"]["cost"]) for day in DAYS.values()) + total(map(cost_of, fake.meter))
    unaccounted = sum(row["state"] == "unaccounted" for row in rows)
    assert (
        unaccounted
        == sum(_number(head["unaccounted_calls"]) for head in heads) + EXPECTED["sessionless"]["unaccounted_after"]
    )
    assert unaccounted == sum(day["after"]["unaccounted"] for day in DAYS.values())


def _number(value: Any) -> int:
    return int(value.value if isinstance(value, EntityProperty) else value)


def test_snapshot_figures_are_consistent() -> None:
    """The sum over sessions equals the sum over days."""
    by_session = total(Decimal(session["cost"]) for session in SESSIONS.values())
    by_day = total(Decimal(day["after"]["cost"]) for day in DAYS.values())
    assert by_session + Decimal(EXPECTED["sessionless"]["cost"]) == by_day
    assert all(date.fromisoformat(day) < MORNING.date() for day in DAYS)
