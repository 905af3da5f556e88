"""Failover, retries, circuits and rejected options of the model service, through the whole app."""

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
    """Sleeps before retries advance the clock instead of waiting."""
    clock.skip_sleeps_up_to = 5
    return environ | {
        "AZURE_OPENAI_MAX_RETRIES": "2",
        "AZURE_OPENAI_TIMEOUT_SECONDS": "2",
        "AZURE_OPENAI_DEPLOYMENTS": "chat, another=gpt-5.4-mini",
    }


@pytest.fixture
async def two_endpoints(
    serve: Serve, environ: dict[str, str], fake: AzureOpenAI, second: AzureOpenAI
) -> AsyncIterator[httpx.AsyncClient]:
    """The app with two endpoints; `fake` is preferred."""
    async with serve(environ | {"AZURE_OPENAI_ENDPOINT": f"{fake.endpoint}, {second.endpoint}"}) as client:
        yield client


def name(server: AzureOpenAI) -> str:
    return f"127.0.0.1:{server.port}"


# One endpoint, several attempts


@pytest.mark.parametrize("status", NOT_BILLED)
async def test_unbilled_failure_is_retried_on_the_same_call(
    api: httpx.AsyncClient, fake: AzureOpenAI, tables: Tables, status: int, caplog: pytest.LogCaptureFixture
) -> None:
    caplog.set_level("INFO", "shared.telemetry.call_log")
    fake.fault(status, **SOON)
    fake.fault(status, **SOON)

    await answer(api)

    [entry] = await assert_conserved(tables, fake)
    assert [request.call_id for request in fake.requests] == [entry.call.id] * 3
    assert [(line["attempts"], line["outcome"]) for line in call_log_lines(caplog)] == [(3, "settled")]


async def test_refused_connection_is_retried(
    clock: ManualClock,
    api: httpx.AsyncClient,
    fake: AzureOpenAI,
    tables: Tables,
    caplog: pytest.LogCaptureFixture,
) -> None:
    clock.skip_sleeps_up_to = 0
    caplog.set_level("INFO", "shared.telemetry.call_log")
    fake.stop()
    turn = asyncio.create_task(answer(api))
    await fake.until(lambda: "ClientConnectorError" in caplog.text)
    fake.start()

    assert (await turn)["turn"] == 1
    assert len(await assert_conserved(tables, fake)) == 1
    assert call_log_lines(caplog)[0]["attempts"] > 1


@pytest.mark.parametrize("status", [429, 504])
@pytest.mark.parametrize(("pause", "min_seconds"), [({"retry_after_ms": 1_700}, 1.7), ({"retry_after": 2}, 2)])
async def test_retry_waits_for_retry_after(
    api: httpx.AsyncClient,
    clock: ManualClock,
    fake: AzureOpenAI,
    status: int,
    pause: dict[str, Any],
    min_seconds: float,
) -> None:
    """Each Retry-After is longer than the first backoff. A 429 is retried within the call, a 504 as a new call."""
    fake.fault(status, **pause)
    start = clock.monotonic()

    await answer(api)

    assert clock.monotonic() - start >= min_seconds


async def test_retry_after_ms_wins_over_retry_after(
    api: httpx.AsyncClient, clock: ManualClock, fake: AzureOpenAI
) -> None:
    fake.fault(429, retry_after=30, retry_after_ms=10)
    start = clock.monotonic()

    await answer(api)

    assert clock.monotonic() - start < 15


@pytest.mark.parametrize("fault", [503, 504, "reset", "truncated"])
async def test_retry_without_retry_after_backs_off(
    api: httpx.AsyncClient, clock: ManualClock, fake: AzureOpenAI, fault: Kind | int
) -> None:
    fake.fault(fault)
    start = clock.monotonic()

    await answer(api)

    assert clock.monotonic() - start >= 0.5


async def test_error_of_the_last_retry_is_returned(api: httpx.AsyncClient, fake: AzureOpenAI, tables: Tables) -> None:
    for _ in range(3):
        fake.fault(429, **SOON)

    response = await send_message(api)

    assert (response.status_code, response.headers["retry-after"]) == (429, "1")
    assert len(fake.requests) == 3
    [entry] = await closed_ledger(tables)
    assert (entry.call.state, entry.call.endpoint) == (State.FAILED, name(fake))


@pytest.mark.parametrize("status", [429, 504])
async def test_retry_after_beyond_the_turn_timeout_is_returned_at_once(
    serve: Serve, environ: dict[str, str], clock: ManualClock, fake: AzureOpenAI, tables: Tables, status: int
) -> None:
    fake.fault(status, retry_after=30)
    async with serve(environ | {"TURN_TIMEOUT_SECONDS": "20"}) as api:
        start = clock.monotonic()

        response = await send_message(api)

    assert (response.status_code, response.headers["retry-after"]) == (status, "30")
    assert clock.monotonic() - start < 15
    assert len(fake.requests) == len(await closed_ledger(tables)) == 1


@pytest.mark.parametrize("status", [429, 504])
async def test_retry_after_may_be_a_date(
    api: httpx.AsyncClient, clock: ManualClock, fake: AzureOpenAI, status: int
) -> None:
    fake.fault(status, retry_after=format_datetime(datetime.now(UTC) + timedelta(seconds=4), usegmt=True))
    start = clock.monotonic()

    await answer(api)

    assert clock.monotonic() - start >= 2.5  # an HTTP date has whole seconds, and the test itself takes time


@pytest.mark.parametrize(
    "pause", ["-1", "nan", "Sun, 22 Nov 2026 22:00:00 GMT", "Fri, 31 Dec 9999 23:59:59 -2359", "soon", "99999999"]
)
async def test_invalid_retry_after_is_ignored(api: httpx.AsyncClient, fake: AzureOpenAI, pause: str) -> None:
    fake.fault(429, retry_after=pause)

    await answer(api)

    assert len(fake.requests) == 2


@pytest.mark.parametrize("status", [400, 401, 403, 404])
async def test_permanent_failure_is_not_retried(api: httpx.AsyncClient, fake: AzureOpenAI, status: int) -> None:
    fake.fault(status)

    await send_message(api)

    assert len(fake.requests) == 1


# Two endpoints


async def test_preferred_endpoint_is_used_while_it_works(
    two_endpoints: httpx.AsyncClient, fake: AzureOpenAI, second: AzureOpenAI
) -> None:
    for _ in range(3):
        await answer(two_endpoints)

    assert (len(fake.requests), len(second.requests)) == (3, 0)


async def test_circuit_of_a_failing_endpoint_is_open_during_the_cooldown(
    clock: ManualClock, two_endpoints: httpx.AsyncClient, fake: AzureOpenAI, second: AzureOpenAI, tables: Tables
) -> None:
    fake.fault(503, retry_after=4)

    await answer(two_endpoints, "one")
    await answer(two_endpoints, "two")
    await clock.advance(4)
    await answer(two_endpoints, "three")

    assert [request.body["messages"][-1]["content"] for request in fake.requests] == ["one", "three"]
    assert [request.body["messages"][-1]["content"] for request in second.requests] == ["one", "two"]
    assert fake.requests[0].call_id == second.requests[0].call_id
    _, turns = await stored(tables)
    assert [turn.call.endpoint for turn in turns] == [name(second), name(second), name(fake)]
    await assert_conserved(tables, fake, second)


@pytest.mark.parametrize("status", NOT_BILLED)
async def test_failover_does_not_wait_for_retry_after(
    two_endpoints: httpx.AsyncClient, fake: AzureOpenAI, second: AzureOpenAI, status: int
) -> None:
    fake.fault(status, retry_after=300)  # longer than the turn timeout: a retry that waits for it fails

    await answer(two_endpoints)

    assert (len(fake.requests), len(second.requests)) == (1, 1)


async def test_429_opens_the_circuit_for_one_deployment_only(
    two_endpoints: httpx.AsyncClient, fake: AzureOpenAI, second: AzureOpenAI
) -> None:
    """Each deployment has its own quota."""
    fake.fault(429, retry_after=300)
    await answer(two_endpoints)

    await answer(two_endpoints, session="other", deployment="another")
    await answer(two_endpoints)

    assert [request.body["model"] for request in fake.requests] == ["chat", "another"]
    assert [request.body["model"] for request in second.requests] == ["chat", "chat"]


async def test_503_opens_the_circuit_for_all_deployments(
    two_endpoints: httpx.AsyncClient, fake: AzureOpenAI, second: AzureOpenAI
) -> None:
    fake.fault(503, retry_after=300)
    await answer(two_endpoints)

    await answer(two_endpoints, session="other", deployment="another")

    assert (len(fake.requests), len(second.requests)) == (1, 2)


async def test_failover_from_an_unreachable_endpoint(
    two_endpoints: httpx.AsyncClient,
    fake: AzureOpenAI,
    second: AzureOpenAI,
    tables: Tables,
    caplog: pytest.LogCaptureFixture,
) -> None:
    caplog.set_level("INFO", "shared.telemetry.call_log")
    fake.stop()

    for _ in range(2):
        await answer(two_endpoints)

    assert [line["attempts"] for line in call_log_lines(caplog)] == [2, 1]
    await assert_conserved(tables, fake, second)


@pytest.mark.parametrize("fault", ["truncated", "malformed", 200])
async def test_circuit_opens_for_an_endpoint_without_usable_answers(
    two_endpoints: httpx.AsyncClient, fake: AzureOpenAI, second: AzureOpenAI, tables: Tables, fault: Kind | int
) -> None:
    """200: a page of a gateway instead of an answer."""
    garbled = Fault("status", fault) if isinstance(fault, int) else Fault(fault)
    fake.responder = lambda _: garbled

    for turn in range(3):
        await send_message(two_endpoints, session=f"s{turn}")

    assert (len(fake.requests), len(second.requests)) == (1, 3)
    await assert_conserved(tables, fake, second)


async def test_failover_after_a_connect_timeout(
    serve: Serve, environ: dict[str, str], fake: AzureOpenAI, tables: Tables
) -> None:
    """The socket accepts no connection and its backlog is full, so nothing replies to the connection attempt."""
    with socket.socket() as listening, socket.socket() as waiting:
        listening.bind(("127.0.0.1", 0))
        listening.listen(0)
        waiting.connect(listening.getsockname())
        first = f"http://127.0.0.1:{listening.getsockname()[1]}"
        async with serve(environ | {"AZURE_OPENAI_ENDPOINT": f"{first},{fake.endpoint}"}) as api:
            for _ in range(2):
                await answer(api)

    assert [entry.call.state for entry in await assert_conserved(tables, fake)] == [State.SETTLED] * 2


@pytest.mark.parametrize("after", [None, 2])
@pytest.mark.parametrize("fault", [408, 502, 504, "stall", "reset", "close"])
async def test_retry_after_a_possibly_billed_failure_is_a_new_call_at_the_other_endpoint(
    two_endpoints: httpx.AsyncClient,
    fake: AzureOpenAI,
    second: AzureOpenAI,
    tables: Tables,
    fault: Kind | int,
    after: int | None,
) -> None:
    """`after`: chunks before the failure; None is before the first byte. The retry does not wait for Retry-After."""
    fake.fault(fault, after=after, retry_after=300)

    response = await answer(two_endpoints)

    first, other = await assert_conserved(tables, fake, second)
    assert {first.call.state, other.call.state} == {State.UNACCOUNTED, State.SETTLED}
    assert (len(fake.requests), len(second.requests)) == (1, 1)
    assert fake.requests[0].call_id != second.requests[0].call_id
    assert response["session"]["unaccounted_calls"] == 1


async def test_broken_answer_does_not_shorten_a_later_retry_after(
    two_endpoints: httpx.AsyncClient, fake: AzureOpenAI, second: AzureOpenAI
) -> None:
    fake.fault("close", after=1)
    with fake.hold(after=1) as hold:
        earlier = asyncio.create_task(send_message(two_endpoints, session="earlier"))
        await hold.until_reached()
        fake.fault(429, retry_after=300)
        await answer(two_endpoints)
    await earlier
    second.fault(503)

    await answer(two_endpoints)

    assert (len(fake.requests), len(second.requests)) == (2, 4)


@pytest.mark.parametrize("shorter", ["first", "second"])
async def test_retry_waits_for_the_endpoint_with_the_shorter_retry_after(
    two_endpoints: httpx.AsyncClient, fake: AzureOpenAI, second: AzureOpenAI, shorter: str
) -> None:
    short, long = (fake, second) if shorter == "first" else (second, fake)
    short.fault(429, retry_after_ms=300)
    long.fault(429, retry_after=30)

    await answer(two_endpoints)

    assert (len(short.requests), len(long.requests)) == (2, 1)


async def test_endpoint_without_retry_after_is_retried_before_one_with_it(
    two_endpoints: httpx.AsyncClient, fake: AzureOpenAI, second: AzureOpenAI
) -> None:
    fake.fault(503)
    second.responder = lambda _: Fault("status", 429, retry_after=20)

    await answer(two_endpoints)

    assert (len(fake.requests), len(second.requests)) == (2, 1)


async def test_both_endpoints_are_retried_without_retry_after(
    two_endpoints: httpx.AsyncClient, fake: AzureOpenAI, second: AzureOpenAI
) -> None:
    fake.stop()
    second.fault(503)

    await answer(two_endpoints)

    assert len(second.requests) == 2


async def test_next_turn_calls_only_the_endpoint_with_the_shorter_retry_after(
    two_endpoints: httpx.AsyncClient, fake: AzureOpenAI, second: AzureOpenAI
) -> None:
    fake.responder = lambda _: Fault("status", 429, retry_after=300)
    second.responder = lambda _: Fault("status", 429, retry_after=250)

    for turn in (1, 2):
        response = await send_message(two_endpoints)
        assert (response.status_code, response.headers["retry-after"]) == (429, "250")
        assert (len(fake.requests), len(second.requests)) == (1, turn)


async def test_retry_waits_for_the_shortest_retry_after_of_all_endpoints(
    two_endpoints: httpx.AsyncClient, fake: AzureOpenAI, second: AzureOpenAI
) -> None:
    fake.fault(429, retry_after=4)
    await answer(two_endpoints)
    second.fault(429, retry_after=300)  # longer than the turn timeout

    await answer(two_endpoints)

    assert (len(fake.requests), len(second.requests)) == (2, 2)


@pytest.mark.parametrize("status", [403, 404])
async def test_retry_waits_for_retry_after_if_the_other_endpoint_cannot_answer(
    two_endpoints: httpx.AsyncClient, fake: AzureOpenAI, second: AzureOpenAI, status: int
) -> None:
    fake.fault(503, retry_after=4)
    await answer(two_endpoints)
    second.fault(status)

    await answer(two_endpoints)

    assert (len(fake.requests), len(second.requests)) == (2, 2)


async def test_returned_retry_after_is_the_shortest_of_all_endpoints(
    serve: Serve, environ: dict[str, str], fake: AzureOpenAI, second: AzureOpenAI
) -> None:
    settings = {"AZURE_OPENAI_ENDPOINT": f"{fake.endpoint},{second.endpoint}", "AZURE_OPENAI_MAX_RETRIES": "0"}
    async with serve(environ | settings) as api:
        fake.fault(429, retry_after=100)
        await answer(api)
        second.fault(503, retry_after=300)

        response = await send_message(api)

    assert (response.status_code, response.json()["error"]["code"]) == (429, "rate_limited")
    assert 1 < int(response.headers["retry-after"]) <= 100


@pytest.mark.parametrize("status", [401, 404])
async def test_retry_waits_for_a_429_endpoint_if_the_other_one_fails_permanently(
    two_endpoints: httpx.AsyncClient, fake: AzureOpenAI, second: AzureOpenAI, status: int
) -> None:
    fake.fault(status)
    second.fault(429, retry_after_ms=50)

    await answer(two_endpoints)

    assert len(second.requests) == 2


@pytest.mark.parametrize("kind", ["closed", "stalled"])
@pytest.mark.parametrize("status", [429, 503])
async def test_failover_after_a_truncated_error_body_leaves_the_call_unaccounted(
    serve: Serve, environ: dict[str, str], second: AzureOpenAI, tables: Tables, kind: str, status: int
) -> None:
    async def send_half_an_error(reader: asyncio.StreamReader, writer: asyncio.StreamWriter) -> None:
        await reader.readuntil(b"\r\n\r\n")
        writer.write(b"HTTP/1.1 %d X\r\ncontent-length: 500\r\n\r\n{" % status)
        await writer.drain()
        if kind == "stalled":
            await reader.read()
        writer.close()

    server = await asyncio.start_server(send_half_an_error, "127.0.0.1", 0)
    first = f"http://127.0.0.1:{server.sockets[0].getsockname()[1]}"
    async with server, serve(environ | {"AZURE_OPENAI_ENDPOINT": f"{first},{second.endpoint}"}) as api:
        response = await answer(api)

    assert response["session"]["unaccounted_calls"] == 1
    await assert_conserved(tables, second)


@pytest.mark.parametrize(
    "head",
    [
        pytest.param(b"", id="before the first byte"),
        pytest.param(b"HTTP/1.1 200 X\r\ncontent-length: 500\r\n\r\ndata: {}\n\n", id="during the answer"),
        pytest.param(b"HTTP/1.1 429 X\r\ncontent-length: 500\r\n\r\n{", id="in an error's body"),
    ],
)
async def test_failover_after_a_broken_tls_connection_leaves_the_call_unaccounted(
    serve: Serve,
    environ: dict[str, str],
    second: AzureOpenAI,
    tables: Tables,
    tmp_path: Path,
    monkeypatch: pytest.MonkeyPatch,
    head: bytes,
) -> None:
    async def send_garbled_record(reader: asyncio.StreamReader, writer: asyncio.StreamWriter) -> None:
        await reader.readuntil(b"\r\n\r\n")
        writer.write(head)
        await writer.drain()
        with socket.socket(fileno=os.dup(writer.get_extra_info("socket").fileno())) as raw:
            raw.sendall(b"\x17\x03\x03\x00\x20" + bytes(32))
        await reader.read()
        writer.close()

    server = await asyncio.start_server(
        send_garbled_record, "127.0.0.1", 0, ssl=trusted_tls_context(tmp_path, monkeypatch)
    )
    first = f"https://127.0.0.1:{server.sockets[0].getsockname()[1]}"
    async with server, serve(environ | {"AZURE_OPENAI_ENDPOINT": f"{first},{second.endpoint}"}) as api:
        response = await answer(api)

    assert response["session"]["unaccounted_calls"] == 1
    await assert_conserved(tables, second)


def trusted_tls_context(folder: Path, monkeypatch: pytest.MonkeyPatch) -> ssl.SSLContext:
    """TLS for a loopback server, with a certificate authority that the app trusts during the test."""
    authority, context = trustme.CA(), ssl.SSLContext(ssl.PROTOCOL_TLS_SERVER)
    authority.issue_cert("127.0.0.1").configure_cert(context)
    authority.cert_pem.write_to_path(folder / "authority.pem")
    monkeypatch.setenv("SSL_CERT_FILE", str(folder / "authority.pem"))
    return context


async def test_failover_for_a_deployment_missing_in_one_region(
    two_endpoints: httpx.AsyncClient, fake: AzureOpenAI, second: AzureOpenAI, caplog: pytest.LogCaptureFixture
) -> None:
    fake.deployments = {"another": "gpt-5.4-mini-2026-03-17"}

    for _ in range(2):
        await answer(two_endpoints)
    assert (len(fake.requests), len(second.requests)) == (1, 2)
    assert f"{name(fake)} has no deployment 'chat'" in caplog.messages

    await answer(two_endpoints, session="other", deployment="another")  # the 404 opens no circuit
    assert (len(fake.requests), len(second.requests)) == (2, 2)


async def test_deployment_missing_everywhere_is_tried_each_time(
    two_endpoints: httpx.AsyncClient, fake: AzureOpenAI, second: AzureOpenAI
) -> None:
    fake.deployments = second.deployments = {"another": "gpt-5.4-mini-2026-03-17"}
    response = await send_message(two_endpoints)
    second.deployments = {"chat": "gpt-5.4-mini-2026-03-17"}

    assert (response.status_code, response.json()["error"]["code"]) == (502, "upstream_error")
    assert "'chat'" in response.json()["error"]["message"]
    await answer(two_endpoints)


async def test_failover_from_an_endpoint_that_rejects_the_app(
    two_endpoints: httpx.AsyncClient, fake: AzureOpenAI, second: AzureOpenAI
) -> None:
    fake.api_key = "another"

    for _ in range(2):
        await answer(two_endpoints)

    assert (len(fake.requests), len(second.requests)) == (1, 2)


async def test_failover_under_load_loses_no_turn(
    two_endpoints: httpx.AsyncClient, fake: AzureOpenAI, second: AzureOpenAI, tables: Tables
) -> None:
    fake.chunk_delay = 0.02

    async def converse(session: str) -> list[int]:
        return [(await send_message(two_endpoints, f"message {turn}", session)).status_code for turn in range(3)]

    conversations = [asyncio.create_task(converse(f"s{number}")) for number in range(12)]
    await fake.until(lambda: len(fake.meter) > 8)
    fake.stop()
    statuses = await asyncio.gather(*conversations)

    assert statuses == [[200] * 3] * 12
    entries = await assert_conserved(tables, fake, second)
    assert len(second.meter) > 8
    assert sum(entry.call.state is State.SETTLED for entry in entries) == 36


@pytest.mark.parametrize("status", [302, 307])
async def test_redirect_is_not_followed(
    api: httpx.AsyncClient, fake: AzureOpenAI, second: AzureOpenAI, tables: Tables, status: int
) -> None:
    second.authorize = lambda _: True
    fake.fault(status, location=f"{second.endpoint}/openai/v1/chat/completions")

    response = await send_message(api)

    assert (response.status_code, response.headers["x-should-retry"]) == (502, "false")
    assert (len(fake.requests), len(second.requests)) == (1, 0)
    assert [(entry.call.endpoint, entry.call.state) for entry in await closed_ledger(tables)] == [
        (name(fake), State.FAILED)
    ]


# Options that a deployment rejects


async def test_rejected_temperature_is_omitted(api: httpx.AsyncClient, fake: AzureOpenAI, tables: Tables) -> None:
    fake.rejected = {"chat": frozenset({"temperature"})}

    for _ in range(2):
        await answer(api, temperature=0.3, top_p=0.9)

    assert ["temperature" in request.body for request in fake.requests] == [True, False, False]
    assert all(request.body["top_p"] == 0.9 for request in fake.requests)
    assert len(await assert_conserved(tables, fake)) == 2


async def test_rejection_of_an_option_that_was_not_sent_is_returned(api: httpx.AsyncClient, fake: AzureOpenAI) -> None:
    message = "Unrecognized request argument supplied: temperature"
    fake.responder = lambda _: Fault("status", 400, message=message)

    assert (await send_message(api)).status_code == 400
    assert len(fake.requests) == 1


async def test_rejected_option_is_omitted_by_ten_concurrent_turns(api: httpx.AsyncClient, fake: AzureOpenAI) -> None:
    fake.rejected = {"chat": frozenset({"temperature"})}

    await asyncio.gather(*(answer(api, "hi", f"s{number}", temperature=0.3) for number in range(10)))


@pytest.fixture
def effort(environ: dict[str, str]) -> dict[str, str]:
    return environ | {"AZURE_OPENAI_REASONING_EFFORT": "none"}


async def test_reasoning_effort_comes_from_the_settings_unless_the_turn_sets_it(
    serve: Serve, effort: dict[str, str], fake: AzureOpenAI
) -> None:
    async with serve(effort) as api:
        await answer(api)
        await answer(api, reasoning_effort="high")

    assert [request.body["reasoning_effort"] for request in fake.requests] == ["none", "high"]


@pytest.mark.parametrize(
    "rejection",
    [
        {"message": "Unsupported parameter: …", "param": "reasoning_effort", "code": "unsupported_parameter"},
        {"message": "Unknown parameter: …", "param": "reasoning_effort", "code": "unknown_parameter"},
        {"message": "Invalid value: 'none'. …", "param": "reasoning_effort", "code": "invalid_value"},
        {"message": "Bad request.", "param": "reasoning_effort"},
        {"message": "Unrecognized request argument supplied: reasoning_effort"},
        {"message": "Unrecognized request arguments supplied: reasoning_effort, seed"},
    ],
    ids=lambda rejection: rejection.get("code") or rejection["message"].partition(":")[0],
)
async def test_rejected_reasoning_effort_of_the_settings_is_omitted(
    serve: Serve, effort: dict[str, str], fake: AzureOpenAI, rejection: dict[str, str]
) -> None:
    fake.fault(400, **rejection)
    async with serve(effort) as api:
        for _ in range(2):
            await answer(api)

    assert ["reasoning_effort" in request.body for request in fake.requests] == [True, False, False]


async def test_several_rejected_options_are_all_omitted(
    serve: Serve, effort: dict[str, str], fake: AzureOpenAI
) -> None:
    fake.fault(400, message="Unrecognized request arguments supplied: reasoning_effort, temperature")
    async with serve(effort) as api:
        await answer(api, temperature=0.3)

    options = [request.body.keys() & {"reasoning_effort", "temperature"} for request in fake.requests]
    assert options == [{"reasoning_effort", "temperature"}, set()]


async def test_rejected_temperature_is_recognised_by_the_message(api: httpx.AsyncClient, fake: AzureOpenAI) -> None:
    fake.fault(
        400, message="Unsupported parameter: 'temperature' is not supported with this model.", param="temperature"
    )

    for _ in range(2):
        await answer(api, temperature=0.3)

    assert ["temperature" in request.body for request in fake.requests] == [True, False, False]


async def test_temperature_rejected_with_reasoning_is_still_sent_without_it(
    serve: Serve, effort: dict[str, str], fake: AzureOpenAI
) -> None:
    rejection = Fault(
        "status", 400, message="Unsupported parameter: …", param="temperature", code="unsupported_parameter"
    )
    fake.responder = lambda request: (
        rejection if request.body["reasoning_effort"] == "high" and "temperature" in request.body else Reply("yes")
    )
    async with serve(effort) as api:
        await answer(api, temperature=0.3, reasoning_effort="high")
        await answer(api, temperature=0.3)
        await answer(api, temperature=0.3, reasoning_effort="high")

    sent = [(request.body["reasoning_effort"], "temperature" in request.body) for request in fake.requests]
    assert sent == [("high", True), ("high", False), ("none", True), ("high", False)]


async def test_reasoning_effort_rejected_with_tools_is_still_sent_without_them(
    serve: Serve, effort: dict[str, str], fake: AzureOpenAI
) -> None:
    rejection = Fault("status", 400, message="Function tools with … are not supported.", param="reasoning_effort")
    fake.responder = lambda request: rejection if {"tools", "reasoning_effort"} <= request.body.keys() else Reply("yes")
    tools = [{"type": "function", "function": {"name": "look", "parameters": {"type": "object", "properties": {}}}}]
    async with serve(effort) as api:
        await answer(api, tools=tools)
        await answer(api)
        await answer(api, tools=tools)

    sent = [("tools" in request.body, request.body.get("reasoning_effort")) for request in fake.requests]
    assert sent == [(True, "none"), (True, None), (False, "none"), (True, None)]


async def test_temperature_that_is_too_high_is_returned_as_400(api: httpx.AsyncClient, fake: AzureOpenAI) -> None:
    fake.fault(400, message="Expected a value <= 1.", param="temperature", code="decimal_above_max_value")

    response = await send_message(api, temperature=1.5)
    await answer(api, temperature=0.5)

    assert (response.status_code, response.json()["error"]["param"]) == (400, "temperature")
    assert fake.requests[-1].body["temperature"] == 0.5


async def test_rejected_reasoning_effort_of_the_turn_is_returned_as_400(
    serve: Serve, effort: dict[str, str], fake: AzureOpenAI
) -> None:
    fake.rejected = {"chat": frozenset({"reasoning_effort"})}
    async with serve(effort) as api:
        await answer(api)  # from here on the value from the settings is omitted
        response = await send_message(api, reasoning_effort="high")

    assert (response.status_code, response.json()["error"]["param"]) == (400, "reasoning_effort")


async def test_empty_answer_after_reasoning_has_a_notice_about_max_tokens(
    api: httpx.AsyncClient, fake: AzureOpenAI
) -> None:
    only_reasoning = Reply("", finish_reason="length", reasoning_tokens=800)
    fake.responder = lambda _: only_reasoning

    whole = await answer(api)
    streamed = events((await send_message(api, stream=True)).content)[-1].data

    for response in (whole, streamed):
        assert (response["finish_reason"], response["message"]["content"]) == ("length", "")
        assert "max_tokens" in response["notice"]
    for cut in (
        Reply("cut", finish_reason="length"),
        Reply("", finish_reason="length", tool_calls=(("call_1", "look", '{"a'),)),
        Reply("", finish_reason="length", refusal="I will n"),
    ):
        fake.reply(cut.text, **{f.name: getattr(cut, f.name) for f in fields(cut) if f.name != "text"})
        assert "notice" not in await answer(api, session=uuid.uuid4().hex)


# Rejected credentials


@pytest.mark.parametrize("status", [401, 403])
async def test_rejected_key_names_its_setting_and_is_logged_once(
    api: httpx.AsyncClient, fake: AzureOpenAI, status: int, caplog: pytest.LogCaptureFixture
) -> None:
    fake.responder = lambda _: Fault("status", status)
    for _ in range(2):
        response = await send_message(api)

        assert (response.status_code, response.headers["retry-after"]) == (503, "30")
        assert "AZURE_OPENAI_API_KEY" in response.json()["error"]["message"]
        assert "'503: a key is refused' in docs/troubleshooting.md" in response.json()["error"]["message"]

    errors = [record.message for record in caplog.records if record.levelname == "ERROR"]
    assert len(errors) == 1
    assert "test-key" not in caplog.text
    assert (await get_json(api, "/api/sessions/s"))["unaccounted_calls"] == 0


# The call log


async def test_call_log_has_one_line_per_call_without_content(
    api: httpx.AsyncClient, fake: AzureOpenAI, caplog: pytest.LogCaptureFixture
) -> None:
    caplog.set_level("INFO")  # for all libraries, as the Azure Functions worker does
    fake.reply("marmalade")
    response = await answer(api, "xylophone", "a-session-of-mine")
    fake.fault("no_usage")
    await send_message(api, "xylophone", "a-session-of-mine")

    settled, unaccounted = call_log_lines(caplog)
    assert settled["session"] == unaccounted["session"]
    assert len(settled["session"]) == 12
    assert (settled["turn"], settled["outcome"], settled["finish_reason"]) == (1, "settled", "stop")
    assert (settled["deployment"], settled["endpoint"]) == ("chat", name(fake))
    assert settled["model"] == response["model"]
    assert settled["cost_usd"] == format(response["cost_usd"], "f")
    for kind in response["usage"].keys() - {"total_tokens"}:  # each kind has its own price
        assert settled[kind] == response["usage"][kind]
    assert 0 < settled["seconds_to_first_token"] <= settled["seconds"]
    assert (unaccounted["outcome"], unaccounted["reason"], unaccounted["cost_usd"]) == ("unaccounted", "no_usage", None)
    assert unaccounted["worst_case_usd"]
    for secret in ("xylophone", "marmalade", "a-session-of-mine"):
        assert secret not in caplog.text


async def test_telemetry_failure_does_not_affect_settlement(
    api: httpx.AsyncClient, fake: AzureOpenAI, tables: Tables, monkeypatch: pytest.MonkeyPatch
) -> None:
    def failing_trace(_: object) -> None:
        raise ValueError("exporter failed")

    monkeypatch.setattr(services().turns._call_log, "_trace", failing_trace)

    await answer(api)

    assert [entry.call.state for entry in await closed_ledger(tables)] == [State.SETTLED]
