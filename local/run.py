"""The supervisor: starts every part, waits until all answer, and stops them all when one ends or it is asked to.

The host goes first and gets as long as a turn may take, so that running turns are finished and stored while the tables
and the model are still there. A second Ctrl-C does not wait.
"""

import asyncio
import os
import signal
import sys
import time
from datetime import UTC, datetime
from pathlib import Path

from local import places
from local.child import Child
from local.console import complain, say
from local.environment import SettingsError, settings_file
from local.lock import Held, Taken, hold
from local.parts import Plan, healthy, plan, taken

DRAIN_SECONDS = 230  # the platform closes a request after this long, so no turn takes longer
STOP_SECONDS = 10
START_SECONDS = 120
PAGES = ("chat", "usage", "docs")
PATIENCE = 1.0  # seconds of stopping that need no explanation


class PartEnded(Exception):
    def __init__(self, child: Child) -> None:
        stopped = f"The {child.part.name} stopped by itself (exit code {child.exit_code}), so everything is stopped."
        super().__init__(f"{stopped}\n{_end(child)}")


class NotAnswering(Exception):
    """A part that lives and says nothing, or nothing but errors; the message names it."""


def main(state: str | None = None, settings: str | None = None) -> int:
    """Returns the exit code: 0 when it was asked to stop, 1 when something went wrong."""
    where = Path(state).resolve() if state else places.STATE
    port = _port()
    try:
        own = settings_file(Path(settings or places.SETTINGS), optional=settings is None)
        with hold(where / "run.lock") as held:
            if taken(port):
                complain(f"Port {port} is taken. Stop what uses it, or choose another: PORT={port + 1} make run")
                return 1
            return asyncio.run(Supervisor(plan(own, os.environ, where, port), where, port, held).run())
    except SettingsError as error:
        complain(str(error))
    except Taken as other:
        complain(
            f"The chat API is already running here, on port {other.holder.get('port', '?')} "
            f"(process {other.holder.get('pid', '?')}). Stop that one first."
        )
    return 1


def _end(child: Child) -> str:
    return f"The end of {places.shown(child.log)}:\n{child.last_lines()}"


def _port() -> int:
    text = os.environ.get("PORT") or "7071"
    if not text.isdecimal() or not 0 < int(text) < 65536:
        sys.exit(f"PORT must be a number from 1 to 65535, not {text!r}")
    return int(text)


class Supervisor:
    def __init__(self, todo: Plan, state: Path, port: int, held: Held) -> None:
        self._plan, self._port, self._held = todo, port, held
        logs = state / "logs"
        logs.mkdir(parents=True, exist_ok=True)
        self._children = [Child(part, logs / f"{part.name.lower()}.log") for part in todo.parts]
        self._asked = asyncio.Event()
        self._hurried = asyncio.Event()
        self._follower: asyncio.Task[None] | None = None

    async def run(self) -> int:
        self._listen()
        try:
            self._start()
            await self._supervise()
        except (PartEnded, NotAnswering) as error:
            complain(str(error))
            return 1
        finally:
            await self._stop()
        return 0

    async def _supervise(self) -> None:
        """Returns when it is asked to stop; raises when a part ends or never answers."""
        asked = asyncio.create_task(self._asked.wait())
        ended = asyncio.create_task(self._first_end())
        ready = asyncio.create_task(self._ready(time.monotonic()))
        try:
            await asyncio.wait({asked, ended, ready}, return_when=asyncio.FIRST_COMPLETED)
            if ready.done():
                await ready
                self._follower = asyncio.create_task(_follow(self._children[-1].log))
            await asyncio.wait({asked, ended}, return_when=asyncio.FIRST_COMPLETED)
            if ended.done():
                await ended
        finally:
            for task in (asked, ended, ready):
                task.cancel()

    async def _first_end(self) -> None:
        while all(child.alive for child in self._children):  # noqa: ASYNC110 - no event tells us
            await asyncio.sleep(0.1)
        raise PartEnded(next(child for child in self._children if not child.alive))

    def _start(self) -> None:
        for child in self._children:
            child.start()
        self._held.write(port=self._port, parts={child.part.name: child.pid for child in self._children})

    async def _ready(self, began: float) -> None:
        """All at once: the ports are known before anything runs, so no part waits for another's start."""
        waits = {asyncio.create_task(child.answering()): child for child in self._children}
        _, late = await asyncio.wait(waits, timeout=START_SECONDS)
        if late:
            names = ", ".join(waits[task].part.name for task in late)
            raise NotAnswering(f"Not answering after {START_SECONDS} s: {names}. See {places.shown(self._logs)}.")
        address = f"http://127.0.0.1:{self._port}"
        if not await asyncio.to_thread(healthy, f"{address}/api/about"):  # which takes proper settings
            host = self._children[-1]
            raise NotAnswering(f"The app cannot work as it is set up, so everything is stopped.\n{_end(host)}")
        await self._welcome(address, time.monotonic() - began)

    @property
    def _logs(self) -> Path:
        return self._children[-1].log.parent

    async def _welcome(self, address: str, seconds: float) -> None:
        say(f"\nReady on {address} after {seconds:.1f} s. Logs are in {places.shown(self._logs)}. Ctrl-C stops all.\n")
        for note in self._plan.notes:
            say(note + "\n")
        for line in _lines(address, self._plan):
            say(f"  {line}\n")
        for page in PAGES:
            if await asyncio.to_thread(healthy, f"{address}/{page}"):
                say(f"  {address}/{page}")

    def _listen(self) -> None:
        """Through the signal module, which Windows has too; the loop is woken to look."""
        loop = asyncio.get_running_loop()
        for name in ("SIGINT", "SIGTERM", "SIGHUP", "SIGBREAK"):
            if number := getattr(signal, name, None):
                signal.signal(number, lambda *_: loop.call_soon_threadsafe(self._ask))

    def _ask(self) -> None:
        (self._hurried if self._asked.is_set() else self._asked).set()

    async def _stop(self) -> None:
        self._asked.set()  # from here on one more signal means hurry
        hurried = asyncio.create_task(self._hurried.wait())
        stopping = asyncio.create_task(self._stop_in_order())
        explain = asyncio.get_running_loop().call_later(
            PATIENCE, say, "Finishing running turns; Ctrl-C again: at once."
        )
        await asyncio.wait({hurried, stopping}, return_when=asyncio.FIRST_COMPLETED)
        explain.cancel()
        for task in (hurried, stopping):
            task.cancel()
        for child in self._children:
            child.kill()

    async def _stop_in_order(self) -> None:
        *others, host = self._children
        await host.stop(DRAIN_SECONDS)
        await asyncio.gather(*(child.stop(STOP_SECONDS) for child in others))


def _lines(address: str, plan: Plan) -> list[str]:
    """A chat, what today cost, the morning's mail now, a chat at the terminal, and where OpenAI's clients are to ask:
    each works as pasted, in this system's shell."""
    quote, escaped = ('"', '\\"') if os.name == "nt" else ("'", '"')
    json_type = f"-H {quote}Content-Type: application/json{quote}"
    message = f"{quote}{{{escaped}message{escaped}: {escaped}Hello!{escaped}}}{quote}"
    lines = [f"curl {address}/api/chat {json_type} -d {message}"]
    if plan.usage_key:
        bearer = f"-H {quote}Authorization: Bearer {plan.usage_key}{quote}"
        lines.append(f"curl {address}/api/usage/daily/{datetime.now(UTC):%Y-%m-%d} {bearer}")
    lines.append(f"curl {address}/admin/functions/daily_cost_summary {json_type} -d {{}}")
    lines.append("py -m local chat" if os.name == "nt" else "make chat")
    if plan.client_key:
        given = {"OPENAI_BASE_URL": f"{address}/openai/v1", "OPENAI_API_KEY": plan.client_key}
        pairs = [f"{name}={value}" for name, value in given.items()]
        lines.append(" & ".join(f"set {pair}" for pair in pairs) if os.name == "nt" else f"export {' '.join(pairs)}")
    return lines


async def _follow(log: Path) -> None:
    """What the host writes from now on also goes to the terminal; through its file, so that the host waits for nobody.

    What it wrote before is the supervisor's own asking whether it is there.
    """
    with log.open("rb") as file:
        file.seek(0, os.SEEK_END)
        while True:
            if text := file.read():
                sys.stdout.buffer.write(text)
                sys.stdout.flush()
            await asyncio.sleep(0.1)
