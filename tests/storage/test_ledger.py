"""The ledger: each call has a row before it is made, its row ends in one state, and no row holds content."""

import asyncio
import hashlib
import re
from datetime import UTC, datetime, timedelta
from decimal import Decimal

import httpx
import pytest

from shared.domain.calls import Call, LedgerEntry, State
from shared.domain.clock import SystemClock
from shared.errors import VersionConflict
from shared.storage.ledger import Ledger
from tests.conftest import Serve, Tables
from tests.support.azure_openai import AzureOpenAI, Fault, Request, Script
from tests.support.chat_client import RATES, answer, closed_ledger, get_json, ledger, reference, send_message, stored
from tests.support.conservation import all_rows, assert_conserved
from tests.support.faults import ledger_insert, stall_request
from tests.support.proxy import TcpProxy

TODAY = datetime(2026, 11, 20, 12, tzinfo=UTC)


def call_of(call_id: str = "c1", state: State = State.OPEN, day: datetime = TODAY) -> Call:
    return Call(
        id=call_id,
        day=day.date(),
        deadline=day + timedelta(seconds=280),
        deployment="chat",
        worst_case=Decimal("0.01"),
        state=state,
    )


# Before the model is called


async def test_ledger_row_is_inserted_before_the_call_is_made(
    api: httpx.AsyncClient, fake: AzureOpenAI, tables: Tables
) -> None:
    before = datetime.now(UTC)
    with fake.hold(after=0) as hold:
        running = asyncio.create_task(answer(api, "twelve bytes", system="four", max_tokens=100))
        await hold.until_reached()

        [entry] = await ledger(tables)
        call = entry.call
        assert (entry.session_id, entry.turn, entry.caller) == ("s", 1, None)
        assert (call.state, call.deployment, call.id) == ("open", "chat", fake.requests[0].call_id)
        assert (call.usage, call.cost, call.reason) == (None, None, None)
        assert timedelta(seconds=280) <= call.deadline - before <= timedelta(seconds=300)
        assert call.day == (call.deadline - timedelta(seconds=280)).date()
        bytes_and_wrapping = len("four") + len("twelve bytes") + 2 * 16
        worst = bytes_and_wrapping * max(RATES.input, RATES.cache_write) + 100 * (RATES.output or 0)
        assert call.worst_case == worst / 1_000_000
    await running


async def test_no_model_call_before_the_ledger_insert_is_acknowledged(
    storage: TcpProxy, api: httpx.AsyncClient, fake: AzureOpenAI, tables: Tables
) -> None:
    with stall_request(storage, ledger_insert("s"), after_answer=True) as acknowledgement:
        running = asyncio.create_task(answer(api))
        await acknowledgement.until_reached()
        assert [entry.call.state for entry in await ledger(tables)] == ["open"]
        assert (await stored(tables))[1][0].call.state == "open"
        assert not fake.requests
    await running
    assert len(fake.requests) == 1


# After the call


async def test_settled_row_has_cost_and_rates_of_the_call(
    api: httpx.AsyncClient, fake: AzureOpenAI, tables: Tables
) -> None:
    response = await answer(api)

    [entry] = await closed_ledger(tables)
    call = entry.call
    assert (call.state, call.cost, call.rates) == ("settled", response["cost_usd"], RATES)
    assert (call.model, call.endpoint) == ("gpt-5.4-mini-2026-03-17", f"127.0.0.1:{fake.port}")
    assert call.usage
    assert call.usage.total_tokens == response["usage"]["total_tokens"]
    assert call == (await stored(tables))[1][0].call
    await assert_conserved(tables, fake)


NOT_BILLED = {
    "400": (Fault("status", 400), 400, "invalid_request"),
    "401": (Fault("status", 401), 503, "upstream_unavailable"),
    "404": (Fault("status", 404), 502, "upstream_error"),
    "409": (Fault("status", 409), 503, "upstream_unavailable"),
    "429": (Fault("status", 429), 429, "rate_limited"),
    "500": (Fault("status", 500), 503, "upstream_unavailable"),
    "503": (Fault("status", 503), 503, "upstream_unavailable"),
}
MAYBE_BILLED = {  # the last value is the number of calls: a failed one is retried if the caller has received nothing
    "the prompt is filtered": (Fault("content_filter"), 400, "content_filter", 1),
    "the prompt is too long": (Fault("context_length"), 400, "context_too_long", 2),
    "too long, and billed": (Fault("context_length", billed=True), 400, "context_too_long", 2),
    "408": (Fault("status", 408, billed=True), 504, "upstream_timeout", 2),
    "502": (Fault("status", 502, billed=True), 502, "upstream_error", 2),
    "504": (Fault("status", 504), 504, "upstream_timeout", 2),
    "reset": (Fault("reset"), 502, "upstream_error", 2),
    "closed": (Fault("close"), 502, "upstream_error", 2),
    "stalled": (Fault("stall"), 504, "upstream_timeout", 2),
    "closed while streaming": (Fault("close", after=2), 502, "upstream_error", 2),
    "stalled while streaming": (Fault("stall", after=2), 504, "upstream_timeout", 2),
    "truncated": (Fault("truncated"), 502, "upstream_error", 2),
    "garbled": (Fault("malformed"), 502, "upstream_error", 2),
    "an error while streaming": (Fault("error_event"), 502, "upstream_error", 2),
}


class FaultyModel:
    """Fails as the fault that the message names, and answers any other message. Each fault has its own session."""

    def __init__(self, fake: AzureOpenAI, faults: dict[str, Fault]) -> None:
        self.sessions = {name: f"s{index}" for index, name in enumerate(faults)}
        self._faults, self._default, self._fake = faults, fake.responder, fake
        fake.responder = self._respond

    def _respond(self, request: Request) -> Script:
        return self._faults.get(request.body["messages"][-1]["content"]) or self._default(request)

    async def talk(self, api: httpx.AsyncClient) -> dict[str, tuple[int, str]]:
        """Send a message before, during and after each fault. Returns each fault's status and error code."""
        return dict(await asyncio.gather(*(self._talk(api, *item) for item in self.sessions.items())))

    async def _talk(self, api: httpx.AsyncClient, name: str, session: str) -> tuple[str, tuple[int, str]]:
        await answer(api, f"before {name}", session)
        response = await send_message(api, name, session)
        await answer(api, f"after {name}", session)
        [last] = [r for r in self._fake.requests if r.body["messages"][-1]["content"] == f"after {name}"]
        contents = [message["content"] for message in last.body["messages"][1:]]
        assert contents == [f"before {name}", f"echo: before {name}", f"after {name}"]
        return name, (response.status_code, response.json()["error"]["code"])


async def test_unbilled_call_is_failed_with_reason_and_left_out_of_later_prompts(
    api: httpx.AsyncClient, fake: AzureOpenAI, tables: Tables
) -> None:
    model = FaultyModel(fake, {name: fault for name, (fault, *_) in NOT_BILLED.items()})

    results = await model.talk(api)

    assert results == {name: (status, code) for name, (_, status, code) in NOT_BILLED.items()}
    entries = await assert_conserved(tables, fake)
    for name, session in model.sessions.items():
        named = await reference(tables, session)
        calls = [(entry.turn, entry.call.state, entry.call.reason) for entry in entries if entry.session == named]
        assert calls == [(1, "settled", None), (2, "failed", NOT_BILLED[name][2]), (3, "settled", None)]


async def test_maybe_billed_call_is_unaccounted_with_reason_and_worst_case(
    serve: Serve, environ: dict[str, str], fake: AzureOpenAI, tables: Tables
) -> None:
    model = FaultyModel(fake, {name: fault for name, (fault, *_) in MAYBE_BILLED.items()})

    async with serve(environ | {"AZURE_OPENAI_TIMEOUT_SECONDS": "1.5"}) as api:
        results = await model.talk(api)
        sessions = {name: await get_json(api, f"/api/sessions/{session}") for name, session in model.sessions.items()}

    assert results == {name: (status, code) for name, (_, status, code, _) in MAYBE_BILLED.items()}
    entries = await assert_conserved(tables, fake)
    for name, session in model.sessions.items():
        _, _, code, calls = MAYBE_BILLED[name]
        named = await reference(tables, session)
        second_turn = [entry.call for entry in entries if entry.session == named and entry.turn == 2]
        assert [(call.state, call.reason) for call in second_turn] == [("unaccounted", code)] * calls
        assert all(call.worst_case for call in second_turn)
        assert sessions[name]["unaccounted_calls"] == calls
        assert sessions[name]["unaccounted_usd"] == sum(call.worst_case or 0 for call in second_turn)


async def test_ledger_rows_hold_no_content(api: httpx.AsyncClient, fake: AzureOpenAI, tables: Tables) -> None:
    secrets = ["xylophone", "marmalade", "quagmire", "zeppelin", "obelisk", "farthing", "gossamer", "walrus"]
    tool = {"type": "function", "function": {"name": secrets[3], "parameters": {"type": "object"}}}
    fake.reply(secrets[2])
    await answer(api, secrets[1], system=secrets[0], tools=[tool], stop=[secrets[6]])
    fake.reply(tool_calls=(("call_1", secrets[3], f'{{"a": "{secrets[4]}"}}'),))
    await answer(api, tools=[tool])
    await answer(api, None, tool_results=[{"tool_call_id": "call_1", "content": secrets[5]}])
    fake.fault(500, message=secrets[7])
    await send_message(api, secrets[1])
    fake.fault("content_filter")
    await send_message(api, secrets[1])
    fake.fault("close", after=1)
    fake.reply(secrets[2])
    await send_message(api, secrets[1])

    assert len(await assert_conserved(tables, fake)) == 7
    all_text = repr([row async for row in all_rows(tables.usage)])
    assert not [secret for secret in secrets if secret in all_text]


async def test_ledger_row_keeps_its_caller_when_its_state_is_raised(api: httpx.AsyncClient, tables: Tables) -> None:
    await answer(api)  # makes the tables
    ledger = Ledger(tables.usage, SystemClock())
    opened = await ledger.open(LedgerEntry(call=call_of(), session_id="of-a-team", turn=1, caller="a team"))

    await ledger.raise_call(opened, call_of(state=State.UNACCOUNTED))
    await ledger.raise_call(opened, call_of(state=State.SETTLED))

    stored_entry = await ledger.find(call_of(), "of-a-team", 1)
    assert stored_entry
    assert (stored_entry.caller, stored_entry.call.state) == ("a team", "settled")


# Partitions and row keys


async def test_ledger_rows_of_a_session_share_a_shard_of_the_day(api: httpx.AsyncClient, tables: Tables) -> None:
    for _ in range(3):
        await answer(api, session="ada.lovelace")
    session = await reference(tables, "ada.lovelace")
    entries = await closed_ledger(tables)

    keys = [(row["PartitionKey"], row["RowKey"]) async for row in all_rows(tables.usage)]
    shard = f"{hashlib.sha256(session.encode()).digest()[0] % 16:02}"
    assert re.fullmatch("[0-9a-f]{32}", session)
    assert keys == [(f"{e.call.day}-{shard}", f"{session}~{e.turn:010}~{e.call.id}") for e in entries]
    assert [entry.turn for entry in entries] == [1, 2, 3]


async def test_sessions_are_spread_over_all_shards_of_the_ledger(api: httpx.AsyncClient, tables: Tables) -> None:
    await asyncio.gather(*(answer(api, session=f"{index}") for index in range(32)))

    partitions = {row["PartitionKey"][-2:] async for row in all_rows(tables.usage)}
    assert len(partitions) >= 8  # fewer than once in a million runs: references are random
    assert partitions <= {f"{shard:02}" for shard in range(16)}


async def test_unfinished_returns_open_and_unaccounted_rows_of_every_shard(
    api: httpx.AsyncClient, tables: Tables
) -> None:
    await answer(api)
    ledger = Ledger(tables.usage, SystemClock())
    for index in range(48):
        state = State.OPEN if index % 3 else State.UNACCOUNTED
        await ledger.open(LedgerEntry(call=call_of(f"o{index}", state), session_id=f"s{index}", turn=1, caller=None))
    for index, state in enumerate((State.ABANDONED, State.SETTLED, State.FAILED) * 6):
        await ledger.open(LedgerEntry(call=call_of(f"f{index}", state), session_id=f"s{index}", turn=2, caller=None))
    for days in (-1, 1):
        other = TODAY + timedelta(days=days)
        await ledger.open(LedgerEntry(call=call_of(f"d{days}", day=other), session_id="s1", turn=3, caller=None))

    call_ids = {entry.call.id async for entry in ledger.unfinished(TODAY.date())}

    assert call_ids == {f"o{index}" for index in range(48)}


async def test_ledger_row_is_inserted_once_and_never_lowered(api: httpx.AsyncClient, tables: Tables) -> None:
    await answer(api)
    ledger = Ledger(tables.usage, SystemClock())
    opened = await ledger.open(LedgerEntry(call=call_of(), session_id="t", turn=1, caller=None))

    with pytest.raises(VersionConflict):
        await ledger.open(opened)
    for state in (State.UNACCOUNTED, State.SETTLED, State.ABANDONED, State.UNACCOUNTED, State.FAILED):
        await ledger.raise_call(opened, call_of(state=state))

    stored_entry = await ledger.find(call_of(), "t", 1)
    assert stored_entry
    assert stored_entry.call.state == "settled"


async def test_settling_a_missing_ledger_row_does_not_insert_it(api: httpx.AsyncClient, tables: Tables) -> None:
    await answer(api)
    ledger = Ledger(tables.usage, SystemClock())

    await ledger.raise_call(
        LedgerEntry(call=call_of(), session_id="t", turn=1, caller=None, etag='W/"x"'), call_of(state=State.SETTLED)
    )

    assert await ledger.find(call_of(), "t", 1) is None
