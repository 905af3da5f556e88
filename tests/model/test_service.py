"""Several endpoints, several attempts: what a call survives, where it goes, and that it is paid for once."""

import asyncio
import os
import socket
import ssl
import uuid
from collections.abc import AsyncIterator, Iterator
from dataclasses import fields
from datetime import UTC, datetime, timedelta
from email.utils import format_datetime
from pathlib import Path
from typing import Any

import httpx
import pytest
import trustme

from shared.domain.calls import State
from shared.services import services
from tests.conftest import Serve, Tables
from tests.support.azure_openai import AzureOpenAI, Fault, Kind, Reply
from tests.support.chat_client import answer, call_log_lines, closed_ledger, events, get_json, send_message, stored
from tests.support.clock import ManualClock
from tests.support.conservation import assert_conserved

NOT_BILLED = [409, 429, 500, 503]
SOON = {"retry_after_ms": 10}


@pytest.fixture
def second() -> Iterator[AzureOpenAI]:
    with AzureOpenAI() as server:
        yield server


@pytest.fixture
def environ(environ: dict[str, str], clock: ManualClock) -> dict[str, str]:
    """The pauses before retries move the clock instead of waiting."""
    clock.skip_sleeps_up_to = 5
    return environ | {
        "AZURE_OPENAI_MAX_RETRIES": "2",
        "AZURE_OPENAI_TIMEOUT_SECONDS": "2",
        "AZURE_OPENAI_DEPLOYMENTS": "chat, another=gpt-5.4-mini",
    }


@pytest.fixture
async def two(
    serve: Serve, environ: dict[str, str], fake: AzureOpenAI, second: AzureOpenAI
) -> AsyncIterator[httpx.AsyncClient]:
    """The app with two endpoints; `fake` is preferred."""
    async with serve(environ | {"AZURE_OPENAI_ENDPOINT": f"{fake.endpoint}, {second.endpoint}"}) as client:
        yield client


def name(server: AzureOpenAI) -> str:
    return f"127.0.0.1:{server.port}"


# One endpoint, several attempts


@pytest.mark.parametrize("status", NOT_BILLED)
async def test_what_was_certainly_not_billed_is_tried_again_on_the_same_call(
    api: httpx.AsyncClient, fake: AzureOpenAI, tables: Tables, status: int, caplog: pytest.LogCaptureFixture
) -> None:
    caplog.set_level("INFO", "shared.telemetry.call_log")
    fake.fault(status, **SOON)
    fake.fault(status, **SOON)

    await answer(api)

    [entry] = await assert_conserved(tables, fake)
    assert [request.call_id for request in fake.requests] == [entry.call.id] * 3
    assert [(line["attempts"], line["outcome"]) for line in call_log_lines(caplog)] == [(3, "settled")]


async def test_a_refused_connection_is_tried_again(
    clock: ManualClock,
    api: httpx.AsyncClient,
    fake: AzureOpenAI,
    tables: Tables,
    caplog: pytest.LogCaptureFixture,
) -> None:
    clock.skip_sleeps_up_to = 0
    caplog.set_level("INFO", "shared.telemetry.call_log")
    fake.stop()
    asked = asyncio.create_task(answer(api))
    await fake.until(lambda: "ConnectError" in caplog.text)
    fake.start()

    assert (await asked)["turn"] == 1
    assert len(await assert_conserved(tables, fake)) == 1
    assert call_log_lines(caplog)[0]["attempts"] > 1


@pytest.mark.parametrize("status", [429, 504])
@pytest.mark.parametrize(("pause", "least"), [({"retry_after_ms": 1_700}, 1.7), ({"retry_after": 2}, 2)])
async def test_the_pause_that_the_service_asks_for_is_kept(
    api: httpx.AsyncClient, clock: ManualClock, fake: AzureOpenAI, status: int, pause: dict[str, Any], least: float
) -> None:
    """It is longer than any that the first retry would make by itself; on the same call, or on another."""
    fake.fault(status, **pause)
    began = clock.monotonic()

    await answer(api)

    assert clock.monotonic() - began >= least


async def test_of_two_pauses_the_finer_counts(api: httpx.AsyncClient, clock: ManualClock, fake: AzureOpenAI) -> None:
    fake.fault(429, retry_after=30, retry_after_ms=10)
    began = clock.monotonic()

    await answer(api)

    assert clock.monotonic() - began < 15


@pytest.mark.parametrize("fault", [503, 504, "reset", "truncated"])
async def test_without_a_pause_it_backs_off(
    api: httpx.AsyncClient, clock: ManualClock, fake: AzureOpenAI, fault: Kind | int
) -> None:
    fake.fault(fault)
    began = clock.monotonic()

    await answer(api)

    assert clock.monotonic() - began >= 0.5


async def test_what_remains_after_the_last_attempt_is_the_callers(
    api: httpx.AsyncClient, fake: AzureOpenAI, tables: Tables
) -> None:
    for _ in range(3):
        fake.fault(429, **SOON)

    refused = await send_message(api)

    assert (refused.status_code, refused.headers["retry-after"]) == (429, "1")
    assert len(fake.requests) == 3
    [entry] = await closed_ledger(tables)
    assert (entry.call.state, entry.call.endpoint) == (State.FAILED, name(fake))


@pytest.mark.parametrize("status", [429, 504])
async def test_a_pause_beyond_the_turns_time_is_the_callers_at_once(
    serve: Serve, environ: dict[str, str], clock: ManualClock, fake: AzureOpenAI, tables: Tables, status: int
) -> None:
    fake.fault(status, retry_after=30)
    async with serve(environ | {"TURN_TIMEOUT_SECONDS": "20"}) as api:
        began = clock.monotonic()

        refused = await send_message(api)

    assert (refused.status_code, refused.headers["retry-after"]) == (status, "30")
    assert clock.monotonic() - began < 15
    assert len(fake.requests) == len(await closed_ledger(tables)) == 1


@pytest.mark.parametrize("status", [429, 504])
async def test_a_pause_may_be_told_by_its_end(
    api: httpx.AsyncClient, clock: ManualClock, fake: AzureOpenAI, status: int
) -> None:
    fake.fault(status, retry_after=format_datetime(datetime.now(UTC) + timedelta(seconds=4), usegmt=True))
    began = clock.monotonic()

    await answer(api)

    assert clock.monotonic() - began >= 2.5  # it has no fractions, and the test's own way takes some


@pytest.mark.parametrize(
    "pause", ["-1", "nan", "Sun, 22 Nov 2026 22:00:00 GMT", "Fri, 31 Dec 9999 23:59:59 -2359", "soon", "99999999"]
)
async def test_a_pause_that_is_no_number_of_seconds_is_passed_over(
    api: httpx.AsyncClient, fake: AzureOpenAI, pause: str
) -> None:
    fake.fault(429, retry_after=pause)

    await answer(api)

    assert len(fake.requests) == 2


@pytest.mark.parametrize("status", [400, 401, 403, 404])
async def test_what_would_fail_again_is_not_tried_again(api: httpx.AsyncClient, fake: AzureOpenAI, status: int) -> None:
    fake.fault(status)

    await send_message(api)

    assert len(fake.requests) == 1


# Two endpoints


async def test_one_endpoint_answers_for_as_long_as_it_can(
    two: httpx.AsyncClient, fake: AzureOpenAI, second: AzureOpenAI
) -> None:
    for _ in range(3):
        await answer(two)

    assert (len(fake.requests), len(second.requests)) == (3, 0)


async def test_a_failing_endpoint_is_passed_over_until_it_has_cooled(
    clock: ManualClock, two: httpx.AsyncClient, fake: AzureOpenAI, second: AzureOpenAI, tables: Tables
) -> None:
    fake.fault(503, retry_after=4)

    await answer(two, "one")
    await answer(two, "two")
    await clock.advance(4)
    await answer(two, "three")

    assert [request.body["messages"][-1]["content"] for request in fake.requests] == ["one", "three"]
    assert [request.body["messages"][-1]["content"] for request in second.requests] == ["one", "two"]
    assert fake.requests[0].call_id == second.requests[0].call_id
    _, turns = await stored(tables)
    assert [turn.call.endpoint for turn in turns] == [name(second), name(second), name(fake)]
    await assert_conserved(tables, fake, second)


@pytest.mark.parametrize("status", NOT_BILLED)
async def test_it_is_passed_over_at_once(
    two: httpx.AsyncClient, fake: AzureOpenAI, second: AzureOpenAI, status: int
) -> None:
    fake.fault(status, retry_after=300)  # longer than a turn may take, so nobody has waited for it

    await answer(two)

    assert (len(fake.requests), len(second.requests)) == (1, 1)


async def test_an_endpoint_that_is_limited_for_one_deployment_is_not_passed_over_for_another(
    two: httpx.AsyncClient, fake: AzureOpenAI, second: AzureOpenAI
) -> None:
    """Each has a quota of its own."""
    fake.fault(429, retry_after=300)
    await answer(two)

    await answer(two, session="other", deployment="another")
    await answer(two)

    assert [request.body["model"] for request in fake.requests] == ["chat", "another"]
    assert [request.body["model"] for request in second.requests] == ["chat", "chat"]


async def test_an_endpoint_that_fails_for_one_deployment_is_passed_over_for_another(
    two: httpx.AsyncClient, fake: AzureOpenAI, second: AzureOpenAI
) -> None:
    fake.fault(503, retry_after=300)
    await answer(two)

    await answer(two, session="other", deployment="another")

    assert (len(fake.requests), len(second.requests)) == (1, 2)


async def test_an_endpoint_that_cant_be_reached_is_passed_over(
    two: httpx.AsyncClient,
    fake: AzureOpenAI,
    second: AzureOpenAI,
    tables: Tables,
    caplog: pytest.LogCaptureFixture,
) -> None:
    caplog.set_level("INFO", "shared.telemetry.call_log")
    fake.stop()

    for _ in range(2):
        await answer(two)

    assert [line["attempts"] for line in call_log_lines(caplog)] == [2, 1]
    await assert_conserved(tables, fake, second)


@pytest.mark.parametrize("fault", ["truncated", "malformed", 200])
async def test_an_endpoint_whose_answers_are_none_is_passed_over(
    two: httpx.AsyncClient, fake: AzureOpenAI, second: AzureOpenAI, tables: Tables, fault: Kind | int
) -> None:
    """A 200 too may be a gateway's page."""
    sick = Fault("status", fault) if isinstance(fault, int) else Fault(fault)
    fake.responder = lambda _: sick

    for turn in range(3):
        await send_message(two, session=f"s{turn}")

    assert (len(fake.requests), len(second.requests)) == (1, 3)
    await assert_conserved(tables, fake, second)


async def test_an_endpoint_that_does_not_take_the_connection_is_passed_over(
    serve: Serve, environ: dict[str, str], fake: AzureOpenAI, tables: Tables
) -> None:
    """Nobody accepts, and the queue of those who wait is full: nothing is answered at all."""
    with socket.socket() as busy, socket.socket() as waiting:
        busy.bind(("127.0.0.1", 0))
        busy.listen(0)
        waiting.connect(busy.getsockname())
        first = f"http://127.0.0.1:{busy.getsockname()[1]}"
        async with serve(environ | {"AZURE_OPENAI_ENDPOINT": f"{first},{fake.endpoint}"}) as api:
            for _ in range(2):
                await answer(api)

    assert [entry.call.state for entry in await assert_conserved(tables, fake)] == [State.SETTLED] * 2


@pytest.mark.parametrize("after", [None, 2])
@pytest.mark.parametrize("fault", [408, 502, 504, "stall", "reset", "close"])
async def test_what_may_have_been_billed_is_another_call_at_the_other_endpoint(
    two: httpx.AsyncClient,
    fake: AzureOpenAI,
    second: AzureOpenAI,
    tables: Tables,
    fault: Kind | int,
    after: int | None,
) -> None:
    """Before its first byte, and in mid-answer. Nobody waits for the one that failed."""
    fake.fault(fault, after=after, retry_after=300)

    told = await answer(two)

    first, other = await assert_conserved(tables, fake, second)
    assert {first.call.state, other.call.state} == {State.UNACCOUNTED, State.SETTLED}
    assert (len(fake.requests), len(second.requests)) == (1, 1)
    assert fake.requests[0].call_id != second.requests[0].call_id
    assert told["session"]["unaccounted_calls"] == 1


async def test_an_answer_that_breaks_off_does_not_shorten_the_pause_that_was_asked_for_meanwhile(
    two: httpx.AsyncClient, fake: AzureOpenAI, second: AzureOpenAI
) -> None:
    fake.fault("close", after=1)
    with fake.hold(after=1) as hold:
        begun = asyncio.create_task(send_message(two, session="begun-before"))
        await hold.until_reached()
        fake.fault(429, retry_after=300)
        await answer(two)
    await begun
    second.fault(503)

    await answer(two)

    assert (len(fake.requests), len(second.requests)) == (2, 4)


@pytest.mark.parametrize("sooner", ["first", "second"])
async def test_where_both_are_limited_the_one_that_is_free_first_is_waited_for(
    two: httpx.AsyncClient, fake: AzureOpenAI, second: AzureOpenAI, sooner: str
) -> None:
    soon, late = (fake, second) if sooner == "first" else (second, fake)
    soon.fault(429, retry_after_ms=300)
    late.fault(429, retry_after=30)

    await answer(two)

    assert (len(soon.requests), len(late.requests)) == (2, 1)


async def test_one_that_asked_for_no_pause_is_asked_again_before_one_that_did(
    two: httpx.AsyncClient, fake: AzureOpenAI, second: AzureOpenAI
) -> None:
    fake.fault(503)
    second.responder = lambda _: Fault("status", 429, retry_after=20)

    await answer(two)

    assert (len(fake.requests), len(second.requests)) == (2, 1)


async def test_where_none_asked_for_a_pause_both_are_asked_again(
    two: httpx.AsyncClient, fake: AzureOpenAI, second: AzureOpenAI
) -> None:
    fake.stop()
    second.fault(503)

    await answer(two)

    assert len(second.requests) == 2


async def test_while_both_have_asked_for_a_pause_another_turn_asks_the_sooner_one(
    two: httpx.AsyncClient, fake: AzureOpenAI, second: AzureOpenAI
) -> None:
    fake.responder = lambda _: Fault("status", 429, retry_after=300)
    second.responder = lambda _: Fault("status", 429, retry_after=250)

    for turn in (1, 2):
        limited = await send_message(two)
        assert (limited.status_code, limited.headers["retry-after"]) == (429, "250")
        assert (len(fake.requests), len(second.requests)) == (1, turn)


async def test_one_whose_pause_ends_sooner_is_waited_for_though_it_was_not_asked_this_time(
    two: httpx.AsyncClient, fake: AzureOpenAI, second: AzureOpenAI
) -> None:
    fake.fault(429, retry_after=4)
    await answer(two)
    second.fault(429, retry_after=300)  # longer than a turn may take

    await answer(two)

    assert (len(fake.requests), len(second.requests)) == (2, 2)


@pytest.mark.parametrize("status", [403, 404])
async def test_one_that_asked_for_a_pause_is_waited_for_where_the_other_can_never_answer(
    two: httpx.AsyncClient, fake: AzureOpenAI, second: AzureOpenAI, status: int
) -> None:
    fake.fault(503, retry_after=4)
    await answer(two)
    second.fault(status)

    await answer(two)

    assert (len(fake.requests), len(second.requests)) == (2, 2)


async def test_the_pause_that_is_told_is_that_of_the_one_which_is_free_first(
    serve: Serve, environ: dict[str, str], fake: AzureOpenAI, second: AzureOpenAI
) -> None:
    settings = {"AZURE_OPENAI_ENDPOINT": f"{fake.endpoint},{second.endpoint}", "AZURE_OPENAI_MAX_RETRIES": "0"}
    async with serve(environ | settings) as api:
        fake.fault(429, retry_after=100)
        await answer(api)
        second.fault(503, retry_after=300)

        limited = await send_message(api)

    assert (limited.status_code, limited.json()["error"]["code"]) == (429, "rate_limited")
    assert 1 < int(limited.headers["retry-after"]) <= 100


@pytest.mark.parametrize("status", [401, 404])
async def test_one_that_can_answer_later_is_waited_for_whatever_the_other_lacks(
    two: httpx.AsyncClient, fake: AzureOpenAI, second: AzureOpenAI, status: int
) -> None:
    fake.fault(status)
    second.fault(429, retry_after_ms=50)

    await answer(two)

    assert len(second.requests) == 2


@pytest.mark.parametrize("kind", ["closed", "stalled"])
@pytest.mark.parametrize("status", [429, 503])
async def test_an_error_whose_words_break_off_is_a_failure_like_others(
    serve: Serve, environ: dict[str, str], second: AzureOpenAI, tables: Tables, kind: str, status: int
) -> None:
    async def halting(reader: asyncio.StreamReader, writer: asyncio.StreamWriter) -> None:
        await reader.readuntil(b"\r\n\r\n")
        writer.write(b"HTTP/1.1 %d X\r\ncontent-length: 500\r\n\r\n{" % status)
        await writer.drain()
        if kind == "stalled":
            await reader.read()
        writer.close()

    server = await asyncio.start_server(halting, "127.0.0.1", 0)
    first = f"http://127.0.0.1:{server.sockets[0].getsockname()[1]}"
    async with server, serve(environ | {"AZURE_OPENAI_ENDPOINT": f"{first},{second.endpoint}"}) as api:
        told = await answer(api)

    assert told["session"]["unaccounted_calls"] == 1
    await assert_conserved(tables, second)


@pytest.mark.parametrize(
    "head",
    [
        pytest.param(b"", id="before any byte"),
        pytest.param(b"HTTP/1.1 200 X\r\ncontent-length: 500\r\n\r\ndata: {}\n\n", id="in mid-answer"),
        pytest.param(b"HTTP/1.1 429 X\r\ncontent-length: 500\r\n\r\n{", id="in an error's words"),
    ],
)
async def test_an_encrypted_connection_that_is_garbled_is_lost_like_others(
    serve: Serve,
    environ: dict[str, str],
    second: AzureOpenAI,
    tables: Tables,
    tmp_path: Path,
    monkeypatch: pytest.MonkeyPatch,
    head: bytes,
) -> None:
    async def garbling(reader: asyncio.StreamReader, writer: asyncio.StreamWriter) -> None:
        await reader.readuntil(b"\r\n\r\n")
        writer.write(head)
        await writer.drain()
        with socket.socket(fileno=os.dup(writer.get_extra_info("socket").fileno())) as below:
            below.sendall(b"\x17\x03\x03\x00\x20" + bytes(32))
        await reader.read()
        writer.close()

    server = await asyncio.start_server(garbling, "127.0.0.1", 0, ssl=trusted_here(tmp_path, monkeypatch))
    first = f"https://127.0.0.1:{server.sockets[0].getsockname()[1]}"
    async with server, serve(environ | {"AZURE_OPENAI_ENDPOINT": f"{first},{second.endpoint}"}) as api:
        told = await answer(api)

    assert told["session"]["unaccounted_calls"] == 1
    await assert_conserved(tables, second)


def trusted_here(folder: Path, monkeypatch: pytest.MonkeyPatch) -> ssl.SSLContext:
    """A server's certificate, of an authority that the app trusts meanwhile."""
    authority, context = trustme.CA(), ssl.SSLContext(ssl.PROTOCOL_TLS_SERVER)
    authority.issue_cert("127.0.0.1").configure_cert(context)
    authority.cert_pem.write_to_path(folder / "authority.pem")
    monkeypatch.setenv("SSL_CERT_FILE", str(folder / "authority.pem"))
    return context


async def test_a_deployment_that_one_region_lacks_is_asked_of_the_other(
    two: httpx.AsyncClient, fake: AzureOpenAI, second: AzureOpenAI, caplog: pytest.LogCaptureFixture
) -> None:
    fake.deployments = {"another": "gpt-5.4-mini-2026-03-17"}

    for _ in range(2):
        await answer(two)
    assert (len(fake.requests), len(second.requests)) == (1, 2)
    assert f"{name(fake)} has no deployment 'chat'" in caplog.messages

    await answer(two, session="other", deployment="another")  # which it has, and it is not failing
    assert (len(fake.requests), len(second.requests)) == (2, 2)


async def test_a_deployment_that_nobody_has_is_looked_for_each_time(
    two: httpx.AsyncClient, fake: AzureOpenAI, second: AzureOpenAI
) -> None:
    fake.deployments = second.deployments = {"another": "gpt-5.4-mini-2026-03-17"}
    refused = await send_message(two)
    second.deployments = {"chat": "gpt-5.4-mini-2026-03-17"}

    assert (refused.status_code, refused.json()["error"]["code"]) == (502, "upstream_error")
    assert "'chat'" in refused.json()["error"]["message"]
    await answer(two)


async def test_an_endpoint_that_refuses_the_app_does_not_keep_it_from_the_other(
    two: httpx.AsyncClient, fake: AzureOpenAI, second: AzureOpenAI
) -> None:
    fake.api_key = "another"

    for _ in range(2):
        await answer(two)

    assert (len(fake.requests), len(second.requests)) == (1, 2)


async def test_no_turn_is_lost_where_the_preferred_endpoint_dies_under_load(
    two: httpx.AsyncClient, fake: AzureOpenAI, second: AzureOpenAI, tables: Tables
) -> None:
    fake.chunk_delay = 0.02

    async def converse(session: str) -> list[int]:
        return [(await send_message(two, f"message {turn}", session)).status_code for turn in range(3)]

    talking = [asyncio.create_task(converse(f"s{number}")) for number in range(12)]
    await fake.until(lambda: len(fake.meter) > 8)
    fake.stop()
    statuses = await asyncio.gather(*talking)

    assert statuses == [[200] * 3] * 12
    entries = await assert_conserved(tables, fake, second)
    assert len(second.meter) > 8
    assert sum(entry.call.state is State.SETTLED for entry in entries) == 36


@pytest.mark.parametrize("status", [302, 307])
async def test_a_conversation_is_not_taken_to_where_a_redirect_points(
    api: httpx.AsyncClient, fake: AzureOpenAI, second: AzureOpenAI, tables: Tables, status: int
) -> None:
    second.authorize = lambda _: True
    fake.fault(status, location=f"{second.endpoint}/openai/v1/chat/completions")

    await answer(api)

    assert (len(fake.requests), len(second.requests)) == (2, 0)
    assert {entry.call.endpoint for entry in await closed_ledger(tables)} == {name(fake)}


# What a deployment does not take


async def test_temperature_is_left_out_where_the_deployment_refuses_it(
    api: httpx.AsyncClient, fake: AzureOpenAI, tables: Tables
) -> None:
    fake.rejected = {"chat": frozenset({"temperature"})}

    for _ in range(2):
        await answer(api, temperature=0.3, top_p=0.9)

    assert ["temperature" in request.body for request in fake.requests] == [True, False, False]
    assert all(request.body["top_p"] == 0.9 for request in fake.requests)
    assert len(await assert_conserved(tables, fake)) == 2


async def test_an_option_that_was_not_sent_can_t_be_left_out(api: httpx.AsyncClient, fake: AzureOpenAI) -> None:
    refusal = "Unrecognized request argument supplied: temperature"
    fake.responder = lambda _: Fault("status", 400, message=refusal)

    assert (await send_message(api)).status_code == 400
    assert len(fake.requests) == 1


async def test_ten_turns_at_once_learn_what_to_leave_out(api: httpx.AsyncClient, fake: AzureOpenAI) -> None:
    fake.rejected = {"chat": frozenset({"temperature"})}

    await asyncio.gather(*(answer(api, "hi", f"s{number}", temperature=0.3) for number in range(10)))


@pytest.fixture
def effort(environ: dict[str, str]) -> dict[str, str]:
    return environ | {"AZURE_OPENAI_REASONING_EFFORT": "none"}


async def test_the_reasoning_effort_is_the_settings_unless_a_turn_has_its_own(
    serve: Serve, effort: dict[str, str], fake: AzureOpenAI
) -> None:
    async with serve(effort) as api:
        await answer(api)
        await answer(api, reasoning_effort="high")

    assert [request.body["reasoning_effort"] for request in fake.requests] == ["none", "high"]


@pytest.mark.parametrize(
    "refusal",
    [
        {"message": "Unsupported parameter: …", "param": "reasoning_effort", "code": "unsupported_parameter"},
        {"message": "Unknown parameter: …", "param": "reasoning_effort", "code": "unknown_parameter"},
        {"message": "Invalid value: 'none'. …", "param": "reasoning_effort", "code": "invalid_value"},
        {"message": "Bad request.", "param": "reasoning_effort"},
        {"message": "Unrecognized request argument supplied: reasoning_effort"},
        {"message": "Unrecognized request arguments supplied: reasoning_effort, seed"},
    ],
    ids=lambda refusal: refusal.get("code") or refusal["message"].partition(":")[0],
)
async def test_a_settings_reasoning_effort_is_left_out_where_the_deployment_refuses_it(
    serve: Serve, effort: dict[str, str], fake: AzureOpenAI, refusal: dict[str, str]
) -> None:
    fake.fault(400, **refusal)
    async with serve(effort) as api:
        for _ in range(2):
            await answer(api)

    assert ["reasoning_effort" in request.body for request in fake.requests] == [True, False, False]


async def test_of_several_options_that_are_refused_together_each_is_left_out(
    serve: Serve, effort: dict[str, str], fake: AzureOpenAI
) -> None:
    fake.fault(400, message="Unrecognized request arguments supplied: reasoning_effort, temperature")
    fake.fault(400, message="Unrecognized request argument supplied: temperature")
    async with serve(effort) as api:
        await answer(api, temperature=0.3)

    options = [request.body.keys() & {"reasoning_effort", "temperature"} for request in fake.requests]
    assert options == [{"reasoning_effort", "temperature"}, {"temperature"}, set()]


async def test_a_refusal_of_temperature_without_a_code_is_known_by_its_words(
    api: httpx.AsyncClient, fake: AzureOpenAI
) -> None:
    fake.fault(
        400, message="Unsupported parameter: 'temperature' is not supported with this model.", param="temperature"
    )

    for _ in range(2):
        await answer(api, temperature=0.3)

    assert ["temperature" in request.body for request in fake.requests] == [True, False, False]


async def test_temperature_that_is_refused_to_who_lets_the_model_reason_is_not_left_out_for_others(
    serve: Serve, effort: dict[str, str], fake: AzureOpenAI
) -> None:
    refusal = Fault(
        "status", 400, message="Unsupported parameter: …", param="temperature", code="unsupported_parameter"
    )
    fake.responder = lambda request: (
        refusal if request.body["reasoning_effort"] == "high" and "temperature" in request.body else Reply("yes")
    )
    async with serve(effort) as api:
        await answer(api, temperature=0.3, reasoning_effort="high")
        await answer(api, temperature=0.3)
        await answer(api, temperature=0.3, reasoning_effort="high")

    sent = [(request.body["reasoning_effort"], "temperature" in request.body) for request in fake.requests]
    assert sent == [("high", True), ("high", False), ("none", True), ("high", False)]


async def test_a_settings_reasoning_effort_that_is_refused_with_tools_is_sent_without_them(
    serve: Serve, effort: dict[str, str], fake: AzureOpenAI
) -> None:
    refusal = Fault("status", 400, message="Function tools with … are not supported.", param="reasoning_effort")
    fake.responder = lambda request: refusal if {"tools", "reasoning_effort"} <= request.body.keys() else Reply("yes")
    tools = [{"type": "function", "function": {"name": "look", "parameters": {"type": "object", "properties": {}}}}]
    async with serve(effort) as api:
        await answer(api, tools=tools)
        await answer(api)
        await answer(api, tools=tools)

    sent = [("tools" in request.body, request.body.get("reasoning_effort")) for request in fake.requests]
    assert sent == [(True, "none"), (True, None), (False, "none"), (True, None)]


async def test_a_callers_temperature_that_is_too_high_is_the_callers_to_mend(
    api: httpx.AsyncClient, fake: AzureOpenAI
) -> None:
    """The next one's may be taken."""
    fake.fault(400, message="Expected a value <= 1.", param="temperature", code="decimal_above_max_value")

    refused = await send_message(api, temperature=1.5)
    await answer(api, temperature=0.5)

    assert (refused.status_code, refused.json()["error"]["param"]) == (400, "temperature")
    assert fake.requests[-1].body["temperature"] == 0.5


async def test_a_turns_own_reasoning_effort_is_not_left_out(
    serve: Serve, effort: dict[str, str], fake: AzureOpenAI
) -> None:
    fake.rejected = {"chat": frozenset({"reasoning_effort"})}
    async with serve(effort) as api:
        await answer(api)  # from here on the setting's is left out
        refused = await send_message(api, reasoning_effort="high")

    assert (refused.status_code, refused.json()["error"]["param"]) == (400, "reasoning_effort")


async def test_an_answer_that_reasoning_used_up_says_why_it_is_empty(api: httpx.AsyncClient, fake: AzureOpenAI) -> None:
    used_up = Reply("", finish_reason="length", reasoning_tokens=800)
    fake.responder = lambda _: used_up

    whole = await answer(api)
    streamed = events((await send_message(api, stream=True)).content)[-1].data

    for told in (whole, streamed):
        assert (told["finish_reason"], told["message"]["content"]) == ("length", "")
        assert "max_tokens" in told["notice"]
    for cut in (
        Reply("cut", finish_reason="length"),
        Reply("", finish_reason="length", tool_calls=(("call_1", "look", '{"a'),)),
        Reply("", finish_reason="length", refusal="I will n"),
    ):
        fake.reply(cut.text, **{f.name: getattr(cut, f.name) for f in fields(cut) if f.name != "text"})
        assert "notice" not in await answer(api, session=uuid.uuid4().hex)


# Who may not in


@pytest.mark.parametrize("status", [401, 403])
async def test_a_refused_key_is_named_by_its_setting_and_logged_once(
    api: httpx.AsyncClient, fake: AzureOpenAI, status: int, caplog: pytest.LogCaptureFixture
) -> None:
    fake.responder = lambda _: Fault("status", status)
    for _ in range(2):
        refused = await send_message(api)

        assert (refused.status_code, refused.headers["retry-after"]) == (503, "30")
        assert "AZURE_OPENAI_API_KEY" in refused.json()["error"]["message"]
        assert "'503: a key is refused' in docs/troubleshooting.md" in refused.json()["error"]["message"]

    errors = [record.message for record in caplog.records if record.levelname == "ERROR"]
    assert len(errors) == 1
    assert "test-key" not in caplog.text
    assert (await get_json(api, "/api/sessions/s"))["unaccounted_calls"] == 0


# What is written down of it


async def test_a_call_leaves_one_line_without_content(
    api: httpx.AsyncClient, fake: AzureOpenAI, caplog: pytest.LogCaptureFixture
) -> None:
    caplog.set_level("INFO")  # as the platform's worker has it, for every library
    fake.reply("marmalade")
    told = await answer(api, "xylophone", "a-session-of-mine")
    fake.fault("no_usage")
    await send_message(api, "xylophone", "a-session-of-mine")

    settled, doubtful = call_log_lines(caplog)
    assert settled["session"] == doubtful["session"]
    assert len(settled["session"]) == 12
    assert (settled["turn"], settled["outcome"], settled["finish_reason"]) == (1, "settled", "stop")
    assert (settled["deployment"], settled["endpoint"]) == ("chat", name(fake))
    assert settled["model"] == told["model"]
    assert settled["cost_usd"] == format(told["cost_usd"], "f")
    for kind in told["usage"].keys() - {"total_tokens"}:  # each has a price of its own
        assert settled[kind] == told["usage"][kind]
    assert 0 < settled["seconds_to_first_token"] <= settled["seconds"]
    assert (doubtful["outcome"], doubtful["reason"], doubtful["cost_usd"]) == ("unaccounted", "no_usage", None)
    assert doubtful["worst_case_usd"]
    for secret in ("xylophone", "marmalade", "a-session-of-mine"):
        assert secret not in caplog.text


async def test_what_is_told_of_a_call_never_keeps_it_from_being_settled(
    api: httpx.AsyncClient, fake: AzureOpenAI, tables: Tables, monkeypatch: pytest.MonkeyPatch
) -> None:
    def broken(_: object) -> None:
        raise ValueError("an exporter's")

    monkeypatch.setattr(services().turns._call_log, "_trace", broken)

    await answer(api)

    assert [entry.call.state for entry in await closed_ledger(tables)] == [State.SETTLED]
