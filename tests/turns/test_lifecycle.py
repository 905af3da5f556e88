"""A turn completes after the client disconnects and after SIGTERM; a killed process loses no stored data."""

import asyncio
import os
import signal
import subprocess
import sys
from collections.abc import AsyncIterator, Iterator
from contextlib import asynccontextmanager
from pathlib import Path

import httpx
import pytest

from local.parts import free_port
from local.places import ROOT
from shared.domain.calls import State
from tests.conftest import FUNCTION_KEY, Tables
from tests.support.azure_openai import AzureOpenAI
from tests.support.chat_client import (
    answer,
    closed_ledger,
    expire_lease,
    get_json,
    ok_json,
    send_message,
    stored,
    streaming,
    until,
)
from tests.support.conservation import assert_conserved


async def settled(tables: Tables, turn: int = 1) -> None:
    """Wait until the turn is settled in its session."""

    async def is_settled() -> bool | None:
        _, turns = await stored(tables)
        return turns[turn - 1].call.state is State.SETTLED or None

    await until(is_settled)


# The client disconnects


async def test_turn_completes_after_a_disconnect_during_the_stream(
    api: httpx.AsyncClient, fake: AzureOpenAI, tables: Tables
) -> None:
    fake.reply("one two three")
    with fake.hold(after=1) as hold:
        async with streaming(api, "count") as answering:
            assert (await answering.next()).name == "start"
            assert (await answering.next()).data == {"content": "one"}
        hold.release()
        await settled(tables)

    [turn] = (await get_json(api, "/api/sessions/s/messages"))["turns"]
    assert turn["messages"][1] == {"role": "assistant", "content": "one two three"}
    assert (turn["finish_reason"], turn["cost_usd"] > 0) == ("stop", True)
    assert fake.meter[0].outcome == "ok"
    await answer(api, "go on")
    assert [m["content"] for m in fake.requests[1].body["messages"][1:]] == ["count", "one two three", "go on"]
    await assert_conserved(tables, fake)


async def test_turn_completes_after_a_disconnect_before_the_json_response(
    api: httpx.AsyncClient, fake: AzureOpenAI, tables: Tables
) -> None:
    with fake.hold() as hold:
        running = asyncio.create_task(send_message(api, "hi"))
        await hold.until_reached()
        running.cancel()
        await asyncio.gather(running, return_exceptions=True)
        hold.release()
        await settled(tables)

    session = await get_json(api, "/api/sessions/s")
    assert (session["turns"], session["busy"], session["unaccounted_calls"]) == (1, False, 0)
    assert session["cost_usd"] > 0
    assert fake.meter[0].outcome == "ok"
    await assert_conserved(tables, fake)


async def test_disconnect_during_the_request_body_is_not_logged_as_an_incident(
    api: httpx.AsyncClient, fake: AzureOpenAI, caplog: pytest.LogCaptureFixture
) -> None:
    await answer(api)
    caplog.set_level("INFO")
    _, writer = await asyncio.open_connection(api.base_url.host, api.base_url.port)
    head = f"POST /api/chat HTTP/1.1\r\nHost: localhost\r\nx-functions-key: {FUNCTION_KEY}\r\n"
    writer.write(head.encode() + b'Content-Type: application/json\r\nContent-Length: 99\r\n\r\n{"message"')
    await writer.drain()
    writer.close()
    await writer.wait_closed()

    async def is_logged() -> bool | None:
        return "POST /api/chat 400" in caplog.text or None

    await until(is_logged)
    assert "incident" not in caplog.text
    assert len(fake.requests) == 1


async def test_call_that_fails_after_a_disconnect_is_unaccounted(
    api: httpx.AsyncClient, fake: AzureOpenAI, tables: Tables
) -> None:
    fake.fault("reset", after=2)
    with fake.hold(after=1) as hold:
        async with streaming(api) as answering:
            await answering.next()
        hold.release()

        async def lease_is_released() -> bool | None:
            return (await stored(tables))[0].lease is None or None

        await until(lease_is_released)

    assert [entry.call.state for entry in await closed_ledger(tables)] == [State.UNACCOUNTED]
    await assert_conserved(tables, fake)


# The process ends


class Host:
    """The app in a separate process, served by `python -m local.host`."""

    def __init__(self, environ: dict[str, str], log: Path) -> None:
        self.port, self.log = free_port(), log
        inherited = {name: os.environ[name] for name in ("PATH", "HOME") if name in os.environ}
        command = [sys.executable, "-m", "local.host", "--port", str(self.port), "--function-key", FUNCTION_KEY]
        with log.open("ab") as output:
            self.process = subprocess.Popen(
                command,
                cwd=ROOT,
                env={**inherited, "SUMMARY_SCHEDULE": "0 0 0 29 2 *", **environ},
                stdout=output,
                stderr=output,
            )

    @asynccontextmanager
    async def client(self) -> AsyncIterator[httpx.AsyncClient]:
        base, headers = f"http://127.0.0.1:{self.port}", {"x-functions-key": FUNCTION_KEY}
        async with httpx.AsyncClient(
            base_url=base, headers=headers, verify=False, trust_env=False, timeout=60
        ) as client:

            async def is_healthy() -> bool | None:
                assert self.process.poll() is None, self.log.read_text()
                try:
                    return (await client.get("/api/health")).status_code == 200 or None
                except httpx.ConnectError:
                    return None

            await until(is_healthy)
            yield client

    async def until_logged(self, text: str) -> None:
        async def is_logged() -> bool | None:
            return text in self.log.read_text() or None

        await until(is_logged)

    async def ended(self) -> int:
        return await asyncio.wait_for(asyncio.to_thread(self.process.wait), 20)

    def stop(self) -> None:
        if self.process.poll() is None:
            self.process.kill()
            self.process.wait()


class Hosts:
    """Starts hosts, and stops those that still run at the end."""

    def __init__(self, environ: dict[str, str], folder: Path) -> None:
        self._environ, self._folder = environ, folder
        self._started: list[Host] = []

    def start(self) -> Host:
        self._started.append(Host(self._environ, self._folder / f"host-{len(self._started)}.log"))
        return self._started[-1]

    def stop(self) -> None:
        for host in self._started:
            host.stop()


@pytest.fixture
def hosts(environ: dict[str, str], tmp_path: Path) -> Iterator[Hosts]:
    hosts = Hosts(environ, tmp_path)
    yield hosts
    hosts.stop()


@pytest.mark.parametrize("streamed", [True, False])
async def test_sigterm_waits_for_a_running_turn_after_a_disconnect(
    hosts: Hosts, fake: AzureOpenAI, tables: Tables, streamed: bool
) -> None:
    host = hosts.start()
    with fake.hold() as hold:
        async with host.client() as api:
            running = asyncio.create_task(send_message(api, "one two three", stream=streamed))
            await hold.until_reached()
            running.cancel()
            await asyncio.gather(running, return_exceptions=True)
        host.process.send_signal(signal.SIGTERM)
        await host.until_logged("finishing the running turns")
        assert host.process.poll() is None
        hold.release()
        await host.ended()

    _, [turn] = await stored(tables)
    assert turn.messages[1]["content"] == "echo: one two three"
    assert fake.meter[0].outcome == "ok"
    await assert_conserved(tables, fake)  # this fails if the ledger row is still open


async def test_sigterm_lets_the_client_read_the_stream_to_its_end(
    hosts: Hosts, fake: AzureOpenAI, tables: Tables
) -> None:
    host = hosts.start()
    with fake.hold() as hold:
        async with host.client() as api, streaming(api, "one two three") as answering:
            await answering.next()
            await hold.until_reached()
            host.process.send_signal(signal.SIGTERM)
            await host.until_logged("finishing the running turns")
            hold.release()
            *_, last = await answering.rest()
            assert (last.name, last.data["message"]["content"]) == ("done", "echo: one two three")
        await host.ended()

    await assert_conserved(tables, fake)


async def test_sigterm_stops_an_idle_process(hosts: Hosts, fake: AzureOpenAI) -> None:
    host = hosts.start()
    async with host.client() as api:
        ok_json(await send_message(api))
        host.process.send_signal(signal.SIGTERM)
    await host.ended()


async def test_history_and_totals_survive_sigkill(hosts: Hosts, fake: AzureOpenAI, tables: Tables) -> None:
    host = hosts.start()
    async with host.client() as api:
        await answer(api, "My name is Ada.")
        before = await answer(api, "Remember it.")
        await closed_ledger(tables)
        host.process.kill()
    await host.ended()

    async with hosts.start().client() as api:
        session = await get_json(api, "/api/sessions/s")
        history = await get_json(api, "/api/sessions/s/messages")
        third = await answer(api, "What is my name?")

    assert {name: session[name] for name in before["session"]} == before["session"]
    assert [turn["messages"][0]["content"] for turn in history["turns"]] == ["Remember it.", "My name is Ada."]
    assert (third["turn"], len(fake.requests[2].body["messages"])) == (3, 6)
    await assert_conserved(tables, fake)


async def test_turn_is_unaccounted_after_sigkill(hosts: Hosts, fake: AzureOpenAI, tables: Tables) -> None:
    host = hosts.start()
    with fake.hold() as hold:
        async with host.client() as api:
            running = asyncio.create_task(send_message(api, "lost words"))
            await hold.until_reached()
            host.process.kill()
            await asyncio.gather(running, return_exceptions=True)
        await host.ended()

    async with hosts.start().client() as api:
        waiting = await send_message(api, "again")
        assert (waiting.status_code, "retry-after" in waiting.headers) == (409, True)
        await expire_lease(tables)
        following = await answer(api, "again")

    assert (following["turn"], following["session"]["unaccounted_calls"]) == (2, 1)
    assert [m["content"] for m in fake.requests[-1].body["messages"][1:]] == ["again"]
    await assert_conserved(tables, fake)
