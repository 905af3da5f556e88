"""A turn finishes: whoever hangs up, and however the process ends."""

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
from tests.support.conservation import assert_conserved
from tests.support.talking import (
    age_lease,
    answer,
    answered,
    closed_ledger,
    look,
    say,
    stored,
    streaming,
    until,
)


async def settled(tables: Tables, turn: int = 1) -> None:
    """Until the turn is settled in its session."""

    async def done() -> bool | None:
        _, turns = await stored(tables)
        return turns[turn - 1].call.state is State.SETTLED or None

    await until(done)


# The caller hangs up


async def test_a_caller_that_hangs_up_in_mid_stream_loses_nothing(
    api: httpx.AsyncClient, fake: AzureOpenAI, tables: Tables
) -> None:
    fake.reply("one two three")
    with fake.hold(after=1) as hold:
        async with streaming(api, "count") as answering:
            assert (await answering.next()).name == "start"
            assert (await answering.next()).data == {"content": "one"}
        hold.release()
        await settled(tables)

    [turn] = (await look(api, "/api/sessions/s/messages"))["turns"]
    assert turn["messages"][1] == {"role": "assistant", "content": "one two three"}
    assert (turn["finish_reason"], turn["cost_usd"] > 0) == ("stop", True)
    assert fake.meter[0].outcome == "ok"
    await answer(api, "go on")
    assert [m["content"] for m in fake.requests[1].body["messages"][1:]] == ["count", "one two three", "go on"]
    await assert_conserved(tables, fake)


async def test_a_caller_that_hangs_up_before_its_json_loses_nothing(
    api: httpx.AsyncClient, fake: AzureOpenAI, tables: Tables
) -> None:
    with fake.hold() as hold:
        asking = asyncio.create_task(say(api, "hi"))
        await hold.until_reached()
        asking.cancel()
        await asyncio.gather(asking, return_exceptions=True)
        hold.release()
        await settled(tables)

    session = await look(api, "/api/sessions/s")
    assert (session["turns"], session["busy"], session["unaccounted_calls"]) == (1, False, 0)
    assert session["cost_usd"] > 0
    assert fake.meter[0].outcome == "ok"
    await assert_conserved(tables, fake)


async def test_a_caller_that_hangs_up_in_mid_request_is_no_incident(
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

    async def ended() -> bool | None:
        return "POST /api/chat 400" in caplog.text or None

    await until(ended)
    assert "incident" not in caplog.text
    assert len(fake.requests) == 1


async def test_a_turn_that_fails_behind_its_callers_back_is_accounted_for(
    api: httpx.AsyncClient, fake: AzureOpenAI, tables: Tables
) -> None:
    fake.fault("reset", after=2)
    with fake.hold(after=1) as hold:
        async with streaming(api) as answering:
            await answering.next()
        hold.release()

        async def known() -> bool | None:
            return (await stored(tables))[0].lease is None or None

        await until(known)

    assert [entry.call.state for entry in await closed_ledger(tables)] == [State.UNACCOUNTED]
    await assert_conserved(tables, fake)


# The process ends


class Host:
    """The app in a process of its own, as `python -m local.host` serves it."""

    def __init__(self, environ: dict[str, str], log: Path) -> None:
        self.port, self.log = free_port(), log
        kept = {name: os.environ[name] for name in ("PATH", "HOME") if name in os.environ}
        command = [sys.executable, "-m", "local.host", "--port", str(self.port), "--function-key", FUNCTION_KEY]
        with log.open("ab") as output:
            self.process = subprocess.Popen(
                command,
                cwd=ROOT,
                env={**kept, "SUMMARY_SCHEDULE": "0 0 0 29 2 *", **environ},
                stdout=output,
                stderr=output,
            )

    @asynccontextmanager
    async def client(self) -> AsyncIterator[httpx.AsyncClient]:
        base, headers = f"http://127.0.0.1:{self.port}", {"x-functions-key": FUNCTION_KEY}
        async with httpx.AsyncClient(
            base_url=base, headers=headers, verify=False, trust_env=False, timeout=60
        ) as client:

            async def answers() -> bool | None:
                assert self.process.poll() is None, self.log.read_text()
                try:
                    return (await client.get("/api/health")).status_code == 200 or None
                except httpx.ConnectError:
                    return None

            await until(answers)
            yield client

    async def says(self, words: str) -> None:
        async def said() -> bool | None:
            return words in self.log.read_text() or None

        await until(said)

    async def ended(self) -> int:
        return await asyncio.wait_for(asyncio.to_thread(self.process.wait), 20)

    def stop(self) -> None:
        if self.process.poll() is None:
            self.process.kill()
            self.process.wait()


class Hosts:
    """Starts hosts, one after the other, and ends what is left of them."""

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
async def test_sigterm_waits_for_a_turn_whose_caller_has_gone(
    hosts: Hosts, fake: AzureOpenAI, tables: Tables, streamed: bool
) -> None:
    host = hosts.start()
    with fake.hold() as hold:
        async with host.client() as api:
            asking = asyncio.create_task(say(api, "one two three", stream=streamed))
            await hold.until_reached()
            asking.cancel()
            await asyncio.gather(asking, return_exceptions=True)
        host.process.send_signal(signal.SIGTERM)
        await host.says("finishing the running turns")
        assert host.process.poll() is None
        hold.release()
        await host.ended()

    _, [turn] = await stored(tables)
    assert turn.messages[1]["content"] == "echo: one two three"
    assert fake.meter[0].outcome == "ok"
    await assert_conserved(tables, fake)  # and so it would not, had the ledger's row been left open


async def test_sigterm_lets_a_caller_read_to_the_end(hosts: Hosts, fake: AzureOpenAI, tables: Tables) -> None:
    host = hosts.start()
    with fake.hold() as hold:
        async with host.client() as api, streaming(api, "one two three") as answering:
            await answering.next()
            await hold.until_reached()
            host.process.send_signal(signal.SIGTERM)
            await host.says("finishing the running turns")
            hold.release()
            *_, last = await answering.rest()
            assert (last.name, last.data["message"]["content"]) == ("done", "echo: one two three")
        await host.ended()

    await assert_conserved(tables, fake)


async def test_sigterm_ends_a_process_that_has_nothing_to_do(hosts: Hosts, fake: AzureOpenAI) -> None:
    host = hosts.start()
    async with host.client() as api:
        answered(await say(api))
        host.process.send_signal(signal.SIGTERM)
    await host.ended()


async def test_history_and_totals_outlive_a_killed_process(hosts: Hosts, fake: AzureOpenAI, tables: Tables) -> None:
    host = hosts.start()
    async with host.client() as api:
        await answer(api, "My name is Ada.")
        before = await answer(api, "Remember it.")
        await closed_ledger(tables)
        host.process.kill()
    await host.ended()

    async with hosts.start().client() as api:
        session = await look(api, "/api/sessions/s")
        history = await look(api, "/api/sessions/s/messages")
        told = await answer(api, "What is my name?")

    assert {name: session[name] for name in before["session"]} == before["session"]
    assert [turn["messages"][0]["content"] for turn in history["turns"]] == ["Remember it.", "My name is Ada."]
    assert (told["turn"], len(fake.requests[2].body["messages"])) == (3, 6)
    await assert_conserved(tables, fake)


async def test_a_turn_that_died_with_its_process_is_unaccounted(
    hosts: Hosts, fake: AzureOpenAI, tables: Tables
) -> None:
    host = hosts.start()
    with fake.hold() as hold:
        async with host.client() as api:
            asking = asyncio.create_task(say(api, "lost words"))
            await hold.until_reached()
            host.process.kill()
            await asyncio.gather(asking, return_exceptions=True)
        await host.ended()

    async with hosts.start().client() as api:
        waiting = await say(api, "again")
        assert (waiting.status_code, "retry-after" in waiting.headers) == (409, True)
        await age_lease(tables)
        told = await answer(api, "again")

    assert (told["turn"], told["session"]["unaccounted_calls"]) == (2, 1)
    assert [m["content"] for m in fake.requests[-1].body["messages"][1:]] == ["again"]
    await assert_conserved(tables, fake)
