"""The ledger: every call is written down before it is made, ends in one state, and holds nothing that was said."""

import asyncio
import hashlib
from datetime import UTC, datetime, timedelta
from decimal import Decimal

import httpx
import pytest

from shared.domain.calls import Call, LedgerEntry, State
from shared.domain.principal import ANONYMOUS
from shared.errors import VersionConflict
from shared.storage.ledger import Ledger
from tests.conftest import Serve, Tables
from tests.support.azure_openai import AzureOpenAI, Fault, Request, Script
from tests.support.conservation import assert_conserved, everything
from tests.support.faults import entering, kept
from tests.support.proxy import TcpProxy
from tests.support.talking import RATES, answer, closed_ledger, ledger, look, say, stored

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


async def test_a_call_is_written_down_before_it_is_made(
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
        worst = bytes_and_wrapping * max(RATES.input, RATES.cache_write) + 100 * RATES.output
        assert call.worst_case == worst / 1_000_000
    await running


async def test_nothing_is_spent_before_the_ledger_has_acknowledged(
    storage: TcpProxy, api: httpx.AsyncClient, fake: AzureOpenAI, tables: Tables
) -> None:
    with kept(storage, entering("s"), after_answer=True) as acknowledgement:
        running = asyncio.create_task(answer(api))
        await acknowledgement.until_reached()
        assert [entry.call.state for entry in await ledger(tables)] == ["open"]
        assert (await stored(tables))[1][0].call.state == "open"
        assert not fake.requests
    await running
    assert len(fake.requests) == 1


# What it says afterwards


async def test_a_settled_row_says_what_the_call_cost_and_at_which_rates(
    api: httpx.AsyncClient, fake: AzureOpenAI, tables: Tables
) -> None:
    told = await answer(api)

    [entry] = await closed_ledger(tables)
    call = entry.call
    assert (call.state, call.cost, call.rates) == ("settled", told["cost_usd"], RATES)
    assert (call.model, call.endpoint) == ("gpt-5.4-mini-2026-03-17", f"127.0.0.1:{fake.port}")
    assert call.usage
    assert call.usage.total_tokens == told["usage"]["total_tokens"]
    assert call == (await stored(tables))[1][0].call
    await assert_conserved(tables, fake)


FREE = {
    "400": (Fault("status", 400), 400, "invalid_request"),
    "401": (Fault("status", 401), 503, "upstream_unavailable"),
    "404": (Fault("status", 404), 502, "upstream_error"),
    "409": (Fault("status", 409), 503, "upstream_unavailable"),
    "429": (Fault("status", 429), 429, "rate_limited"),
    "500": (Fault("status", 500), 503, "upstream_unavailable"),
    "503": (Fault("status", 503), 503, "upstream_unavailable"),
}
DOUBTFUL = {  # and how many calls it takes: a second one where nothing of the first has reached the caller
    "the prompt is filtered": (Fault("content_filter"), 400, "content_filter", 1),
    "the prompt is too long": (Fault("context_length"), 400, "context_too_long", 2),
    "too long, and billed": (Fault("context_length", billed=True), 400, "context_too_long", 2),
    "408": (Fault("status", 408, billed=True), 504, "upstream_timeout", 2),
    "502": (Fault("status", 502, billed=True), 502, "upstream_error", 2),
    "504": (Fault("status", 504), 504, "upstream_timeout", 2),
    "reset": (Fault("reset"), 502, "upstream_error", 2),
    "closed": (Fault("close"), 502, "upstream_error", 2),
    "stalled": (Fault("stall"), 504, "upstream_timeout", 2),
    "closed in mid-answer": (Fault("close", after=2), 502, "upstream_error", 2),
    "stalled in mid-answer": (Fault("stall", after=2), 504, "upstream_timeout", 2),
    "truncated": (Fault("truncated"), 502, "upstream_error", 2),
    "without usage": (Fault("no_usage"), 502, "upstream_error", 1),
    "garbled": (Fault("malformed"), 502, "upstream_error", 2),
    "an error in mid-answer": (Fault("error_event"), 502, "upstream_error", 2),
}


class Unlucky:
    """A model that goes wrong whenever it is asked for a fault by name. Each fault has a session of its own."""

    def __init__(self, fake: AzureOpenAI, faults: dict[str, Fault]) -> None:
        self.sessions = {name: f"s{index}" for index, name in enumerate(faults)}
        self._faults, self._usual, self._fake = faults, fake.responder, fake
        fake.responder = self._respond

    def _respond(self, request: Request) -> Script:
        return self._faults.get(request.body["messages"][-1]["content"]) or self._usual(request)

    async def talk(self, api: httpx.AsyncClient) -> dict[str, tuple[int, str]]:
        """Before, during and after each fault; returns how each was answered."""
        return dict(await asyncio.gather(*(self._talk(api, *item) for item in self.sessions.items())))

    async def _talk(self, api: httpx.AsyncClient, name: str, session: str) -> tuple[str, tuple[int, str]]:
        await answer(api, f"before {name}", session)
        refused = await say(api, name, session)
        await answer(api, f"after {name}", session)
        [last] = [r for r in self._fake.requests if r.body["messages"][-1]["content"] == f"after {name}"]
        said = [message["content"] for message in last.body["messages"][1:]]
        assert said == [f"before {name}", f"echo: before {name}", f"after {name}"]
        return name, (refused.status_code, refused.json()["error"]["code"])


async def test_a_call_that_cost_nothing_is_failed_with_its_reason_and_forgotten_by_the_model(
    api: httpx.AsyncClient, fake: AzureOpenAI, tables: Tables
) -> None:
    unlucky = Unlucky(fake, {name: fault for name, (fault, *_) in FREE.items()})

    told = await unlucky.talk(api)

    assert told == {name: (status, code) for name, (_, status, code) in FREE.items()}
    entries = await assert_conserved(tables, fake)
    for name, session in unlucky.sessions.items():
        calls = [(entry.turn, entry.call.state, entry.call.reason) for entry in entries if entry.session_id == session]
        assert calls == [(1, "settled", None), (2, "failed", FREE[name][2]), (3, "settled", None)]


async def test_a_call_that_may_have_cost_something_is_unaccounted_with_its_reason_and_worst_case(
    serve: Serve, environ: dict[str, str], fake: AzureOpenAI, tables: Tables
) -> None:
    unlucky = Unlucky(fake, {name: fault for name, (fault, *_) in DOUBTFUL.items()})

    async with serve(environ | {"AZURE_OPENAI_TIMEOUT_SECONDS": "1.5"}) as api:
        told = await unlucky.talk(api)
        shown = {name: await look(api, f"/api/sessions/{session}") for name, session in unlucky.sessions.items()}

    assert told == {name: (status, code) for name, (_, status, code, _) in DOUBTFUL.items()}
    entries = await assert_conserved(tables, fake)
    for name, session in unlucky.sessions.items():
        _, _, code, calls = DOUBTFUL[name]
        doubtful = [entry.call for entry in entries if entry.session_id == session and entry.turn == 2]
        assert [(call.state, call.reason) for call in doubtful] == [("unaccounted", code)] * calls
        assert all(call.worst_case for call in doubtful)
        assert shown[name]["unaccounted_calls"] == calls
        assert shown[name]["unaccounted_usd"] == sum(call.worst_case or 0 for call in doubtful)


async def test_a_row_holds_nothing_that_was_said(api: httpx.AsyncClient, fake: AzureOpenAI, tables: Tables) -> None:
    secrets = ["xylophone", "marmalade", "quagmire", "zeppelin", "obelisk", "farthing", "gossamer", "walrus"]
    tool = {"type": "function", "function": {"name": secrets[3], "parameters": {"type": "object"}}}
    fake.reply(secrets[2])
    await answer(api, secrets[1], system=secrets[0], tools=[tool], stop=[secrets[6]])
    fake.reply(tool_calls=(("call_1", secrets[3], f'{{"a": "{secrets[4]}"}}'),))
    await answer(api, tools=[tool])
    await answer(api, None, tool_results=[{"tool_call_id": "call_1", "content": secrets[5]}])
    fake.fault(500, message=secrets[7])
    await say(api, secrets[1])
    fake.fault("content_filter")
    await say(api, secrets[1])
    fake.fault("close", after=1)
    fake.reply(secrets[2])
    await say(api, secrets[1])

    assert len(await assert_conserved(tables, fake)) == 7
    written = repr([row async for row in everything(tables.usage)])
    assert not [secret for secret in secrets if secret in written]


async def test_a_row_says_who_called_whatever_becomes_of_it(api: httpx.AsyncClient, tables: Tables) -> None:
    await answer(api)  # makes the tables
    ledger = Ledger(tables.usage)
    opened = await ledger.open(ANONYMOUS, LedgerEntry(call=call_of(), session_id="of-a-team", turn=1, caller="a team"))

    await ledger.raise_call(opened, call_of(state=State.UNACCOUNTED))
    await ledger.raise_call(opened, call_of(state=State.SETTLED))

    found = await ledger.find(call_of(), "of-a-team", 1)
    assert found
    assert (found.caller, found.call.state) == ("a team", "settled")


# Where its rows are


@pytest.mark.parametrize(("session", "shard"), [("s", "04"), ("trip", "04"), ("A.b_c-9", "03")])
async def test_a_sessions_rows_are_side_by_side_by_day_and_hash(
    api: httpx.AsyncClient, tables: Tables, session: str, shard: str
) -> None:
    for _ in range(3):
        await answer(api, session=session)
    entries = await closed_ledger(tables)

    keys = [(row["PartitionKey"], row["RowKey"]) async for row in everything(tables.usage)]
    assert shard == f"{hashlib.sha256(session.encode()).digest()[0] % 16:02}"
    assert keys == [(f"{e.call.day}-{shard}", f"{session}~{e.turn:010}~{e.call.id}") for e in entries]
    assert [entry.turn for entry in entries] == [1, 2, 3]


async def test_sessions_are_spread_over_all_shards(api: httpx.AsyncClient, tables: Tables) -> None:
    await asyncio.gather(*(answer(api, session=f"{index}") for index in range(32)))

    partitions = {row["PartitionKey"][-2:] async for row in everything(tables.usage)}
    assert len(partitions) >= 13
    assert partitions <= {f"{shard:02}" for shard in range(16)}


async def test_the_unfinished_rows_of_a_day_are_found_in_every_shard(api: httpx.AsyncClient, tables: Tables) -> None:
    await answer(api)
    ledger = Ledger(tables.usage)
    for index in range(48):
        state = State.OPEN if index % 3 else State.UNACCOUNTED
        await ledger.open(
            ANONYMOUS, LedgerEntry(call=call_of(f"o{index}", state), session_id=f"s{index}", turn=1, caller=None)
        )
    for index, state in enumerate((State.ABANDONED, State.SETTLED, State.FAILED) * 6):
        await ledger.open(
            ANONYMOUS, LedgerEntry(call=call_of(f"f{index}", state), session_id=f"s{index}", turn=2, caller=None)
        )
    for days in (-1, 1):
        other = TODAY + timedelta(days=days)
        await ledger.open(
            ANONYMOUS, LedgerEntry(call=call_of(f"d{days}", day=other), session_id="s1", turn=3, caller=None)
        )

    found = {entry.call.id async for entry in ledger.unfinished(TODAY.date())}

    assert found == {f"o{index}" for index in range(48)}


async def test_a_row_is_inserted_once_and_never_lowered(api: httpx.AsyncClient, tables: Tables) -> None:
    await answer(api)
    ledger = Ledger(tables.usage)
    opened = await ledger.open(ANONYMOUS, LedgerEntry(call=call_of(), session_id="t", turn=1, caller=None))

    with pytest.raises(VersionConflict):
        await ledger.open(ANONYMOUS, opened)
    for state in (State.UNACCOUNTED, State.SETTLED, State.ABANDONED, State.UNACCOUNTED, State.FAILED):
        await ledger.raise_call(opened, call_of(state=state))

    found = await ledger.find(call_of(), "t", 1)
    assert found
    assert found.call.state == "settled"


async def test_a_row_that_is_not_there_is_not_made_by_settling_it(api: httpx.AsyncClient, tables: Tables) -> None:
    await answer(api)
    ledger = Ledger(tables.usage)

    await ledger.raise_call(
        LedgerEntry(call=call_of(), session_id="t", turn=1, caller=None, etag='W/"x"'), call_of(state=State.SETTLED)
    )

    assert await ledger.find(call_of(), "t", 1) is None
