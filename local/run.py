"""The supervisor: starts every part, waits until all are up, and stops them all when one exits or on a stop signal.

The host is stopped first and may take as long as a turn, so that running turns are finished and stored while the tables
and the model are still up. A second Ctrl-C kills everything immediately.
"""

import asyncio
import json
import os
import signal
import sys
import time
from datetime import UTC, datetime
from pathlib import Path

from local import places
from local.child import Child
from local.claim import CannotStart, claim
from local.console import say, say_error
from local.e5 import NAME
from local.environment import SettingsError
from local.lock import Lock
from local.parts import Plan, configured, healthy, plan

DRAIN_SECONDS = 230  # the platform closes a request after this time, so no turn takes longer
STOP_SECONDS = 10
START_SECONDS = 120
PAGES = ("chat", "usage", "docs")
EXPLAIN_STOP_AFTER_S = 1.0


class PartExited(Exception):
    def __init__(self, child: Child) -> None:
        super().__init__(_exit_message(child, "everything is stopped."))


class NotReady(Exception):
    """A running part does not respond, or responds with errors; the message names it."""


def main(state: str | None = None, settings: str | None = None) -> int:
    """Returns the exit code: 0 after a stop signal, 1 after an error."""
    try:
        with claim(state, settings) as claimed:
            todo = plan(claimed.settings, os.environ, claimed.state, claimed.port)
            return asyncio.run(Supervisor(todo, claimed.state, claimed.port, claimed.lock).run())
    except (CannotStart, SettingsError) as reason:
        say_error(str(reason))
        return 1


def _exit_message(child: Child, consequence: str) -> str:
    return f"The {child.part.name} exited unexpectedly ({child.exit_reason}); {consequence}\n{_log_tail(child)}"


def _log_tail(child: Child) -> str:
    return f"The last lines of {places.shown(child.log)}:\n{child.last_lines()}"


class Supervisor:
    def __init__(self, todo: Plan, state: Path, port: int, lock: Lock) -> None:
        self._plan, self._port, self._lock = todo, port, lock
        logs = state / "logs"
        logs.mkdir(parents=True, exist_ok=True)
        self._children = [Child(part, logs / f"{part.name.lower().replace(' ', '-')}.log") for part in todo.parts]
        self._stop_requested = asyncio.Event()
        self._kill_requested = asyncio.Event()
        self._follower: asyncio.Task[None] | None = None

    async def run(self) -> int:
        self._handle_signals()
        try:
            self._start()
            await self._supervise()
        except (PartExited, NotReady) as error:
            say_error(str(error))
            return 1
        finally:
            await self._stop()
        return 0

    async def _supervise(self) -> None:
        """Returns on a stop signal; raises if a part exits or does not come up."""
        stop_signal = asyncio.create_task(self._stop_requested.wait())
        exited = asyncio.create_task(self._first_exit())
        ready = asyncio.create_task(self._ready(time.monotonic()))
        try:
            await asyncio.wait({stop_signal, exited, ready}, return_when=asyncio.FIRST_COMPLETED)
            if ready.done():
                await ready
                self._follower = asyncio.create_task(_follow(self._children[-1].log))
            await asyncio.wait({stop_signal, exited}, return_when=asyncio.FIRST_COMPLETED)
            if exited.done():
                await exited
        finally:
            for task in (stop_signal, exited, ready):
                task.cancel()

    async def _first_exit(self) -> None:
        """Raises PartExited as soon as a part has exited that the others need; reports the others."""
        running = list(self._children)
        while True:
            for child in [child for child in running if not child.alive]:
                if not child.part.without_it:
                    raise PartExited(child)
                say_error(_exit_message(child, child.part.without_it))
                running.remove(child)
            await asyncio.sleep(0.1)

    def _start(self) -> None:
        for child in self._children:
            child.start()
        self._lock.write(port=self._port, parts={child.part.name: child.pid for child in self._children})

    async def _ready(self, began: float) -> None:
        """Wait for all parts at once: ports are chosen in advance, so no part needs another one to start first."""
        waits = {asyncio.create_task(child.wait_until_up()): child for child in self._children}
        _, late = await asyncio.wait(waits, timeout=START_SECONDS)
        if late:
            names = ", ".join(waits[task].part.name for task in late)
            raise NotReady(f"No response after {START_SECONDS} s: {names}. See {places.shown(self._logs)}.")
        address = f"http://127.0.0.1:{self._port}"
        if not await asyncio.to_thread(configured, f"{address}/api/about"):  # fails if settings are invalid
            host = self._children[-1]
            raise NotReady(f"The app is misconfigured; everything is stopped.\n{_log_tail(host)}")
        await self._print_ready(address, time.monotonic() - began)

    @property
    def _logs(self) -> Path:
        return self._children[-1].log.parent

    async def _print_ready(self, address: str, seconds: float) -> None:
        logs = places.shown(self._logs)
        say(f"\nReady on {address} after {seconds:.1f} s. Logs: {logs}. Ctrl-C stops everything.\n")
        for note in self._plan.notes:
            say(note + "\n")
        for line in example_commands(address, self._plan):
            say(f"  {line}\n")
        for page in PAGES:
            if await asyncio.to_thread(healthy, f"{address}/{page}"):
                say(f"  {address}/{page}")

    def _handle_signals(self) -> None:
        """Uses the signal module, because loop.add_signal_handler does not exist on Windows."""
        loop = asyncio.get_running_loop()
        for name in ("SIGINT", "SIGTERM", "SIGHUP", "SIGBREAK"):
            if number := getattr(signal, name, None):
                signal.signal(number, lambda *_: loop.call_soon_threadsafe(self._on_signal))

    def _on_signal(self) -> None:
        (self._kill_requested if self._stop_requested.is_set() else self._stop_requested).set()

    async def _stop(self) -> None:
        self._stop_requested.set()  # the next signal kills
        kill_signal = asyncio.create_task(self._kill_requested.wait())
        stopping = asyncio.create_task(self._stop_in_order())
        explain = asyncio.get_running_loop().call_later(
            EXPLAIN_STOP_AFTER_S, say, "Finishing running turns. Press Ctrl-C again to stop immediately."
        )
        await asyncio.wait({kill_signal, stopping}, return_when=asyncio.FIRST_COMPLETED)
        explain.cancel()
        for task in (kill_signal, stopping):
            task.cancel()
        for child in self._children:
            child.kill()

    async def _stop_in_order(self) -> None:
        *others, host = self._children
        await host.stop(DRAIN_SECONDS)
        await asyncio.gather(*(child.stop(STOP_SECONDS) for child in others))


def example_commands(address: str, plan: Plan) -> list[str]:
    """Commands to paste into this system's shell: send a message, show today's costs and what is left of the limits,
    send the summary email, embed a text, start the terminal client, configure OpenAI's clients."""
    quote, escaped = ('"', '\\"') if os.name == "nt" else ("'", '"')
    json_type = f"-H {quote}Content-Type: application/json{quote}"
    message = f"{quote}{{{escaped}message{escaped}: {escaped}Hello!{escaped}}}{quote}"
    key = f" -H {quote}api-key: {plan.client_key or 'KEY'}{quote}" if plan.people_sign_in else ""
    lines = [f"curl {address}/api/chat{key} {json_type} -d {message}"]
    if plan.usage_key:
        bearer = f"-H {quote}Authorization: Bearer {plan.usage_key}{quote}"
        lines.append(f"curl {address}/api/usage/daily/{datetime.now(UTC):%Y-%m-%d} {bearer}")
        if plan.limited:
            lines.append(f"curl {address}/api/limits {bearer}")
    lines.append(f"curl {address}/admin/functions/daily_cost_summary {json_type} -d {{}}")
    if plan.client_key and plan.embeds:
        bearer = f"-H {quote}Authorization: Bearer {plan.client_key}{quote}"
        body = json.dumps({"model": NAME, "input": "Hello!"}).replace('"', escaped)
        lines.append(f"curl {address}/openai/v1/embeddings {bearer} {json_type} -d {quote}{body}{quote}")
    lines.append("py -m local chat" if os.name == "nt" else "make chat")
    if plan.client_key:
        variables = {"OPENAI_BASE_URL": f"{address}/openai/v1", "OPENAI_API_KEY": plan.client_key}
        pairs = [f"{name}={value}" for name, value in variables.items()]
        windows = " & ".join(f'set "{pair}"' for pair in pairs)  # without the quotes, a value would end in a space
        lines.append(windows if os.name == "nt" else f"export {' '.join(pairs)}")
    return lines


async def _follow(log: Path) -> None:
    """Copy what the host logs from now on to the terminal. Reading the file, not a pipe, keeps the host from blocking.

    Earlier lines are only the supervisor's health checks.
    """
    with log.open("rb") as file:
        file.seek(0, os.SEEK_END)
        while True:
            if text := file.read():
                sys.stdout.buffer.write(text)
                sys.stdout.flush()
            await asyncio.sleep(0.1)
