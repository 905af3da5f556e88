"""chat.py as its users have it: a process at a pipe, or at a pseudo-terminal with somebody who reads and types."""

import asyncio
import os
import sys
import termios
from asyncio.subprocess import PIPE, Process
from collections.abc import AsyncIterator, Callable
from contextlib import asynccontextmanager, suppress
from dataclasses import dataclass
from typing import Any

import httpx
import pyte

from local.places import ROOT
from tests.conftest import FUNCTION_KEY
from tests.support.loopback import PATIENCE
from tests.support.talking import until

CHAT = (sys.executable, str(ROOT / "chat.py"))
# A child's first act: the terminal becomes its own, so that Ctrl-C reaches it as it does everywhere.
LOG_IN = "import os, sys; os.login_tty(0); os.execv(sys.argv[1], sys.argv[1:])"
PROMPT = b"\x1b[?2004h"  # from here on a paste is told from typing, as only a prompt wants it
ENTER, ALT_ENTER, UP, CTRL_C, CTRL_D = "\r", "\x1b\r", "\x1b[A", "\x03", "\x04"


def environ(url: str, **others: str) -> dict[str, str]:
    kept = {name: os.environ[name] for name in ("PATH", "HOME") if name in os.environ}
    return {**kept, "CHAT_URL": url, "CHAT_KEY": FUNCTION_KEY, "TERM": "xterm-256color", **others}


@dataclass(frozen=True)
class Done:
    code: int
    out: str
    err: str


async def started(url: str | httpx.AsyncClient, *arguments: str, **others: str) -> Process:
    base = url if isinstance(url, str) else str(url.base_url)
    return await asyncio.create_subprocess_exec(
        *CHAT, *arguments, env=environ(base, **others), stdin=PIPE, stdout=PIPE, stderr=PIPE
    )


async def ended(process: Process, message: str | bytes = b"") -> Done:
    text = message.encode() if isinstance(message, str) else message
    async with asyncio.timeout(PATIENCE):
        out, err = await process.communicate(text)
    assert process.returncode is not None
    assert b"Traceback" not in err, err.decode()
    return Done(process.returncode, out.decode(), err.decode())


async def piped(url: str | httpx.AsyncClient, message: str | bytes = "hi\n", *arguments: str, **others: str) -> Done:
    """`echo hi | python chat.py`"""
    return await ended(await started(url, *arguments, **others), message)


class Screen(pyte.HistoryScreen):
    """Programs ask a terminal where its cursor is, and it answers as if somebody had typed that."""

    def __init__(self, columns: int, rows: int, typed: Callable[[str], None]) -> None:
        super().__init__(columns, rows, history=5000, ratio=1)
        self._typed = typed

    def write_process_input(self, data: str) -> None:
        self._typed(data)


class Somebody:
    """At a terminal: types, and sees what a terminal of that size shows, and above it what has scrolled away."""

    def __init__(self, process: Process, terminal: int, columns: int, rows: int) -> None:
        self.process, self.raw = process, b""
        self._terminal = terminal
        self._screen = Screen(columns, rows, self._write)
        self._prompts = 0  # that were answered
        self._stream = pyte.ByteStream(self._screen)
        asyncio.get_running_loop().add_reader(terminal, self._read)

    def _read(self) -> None:
        try:
            data = os.read(self._terminal, 65536)
        except OSError:  # the other side is closed
            data = b""
        if not data:
            asyncio.get_running_loop().remove_reader(self._terminal)
        self.raw += data
        self._stream.feed(data)

    @property
    def sees(self) -> list[str]:
        above = ["".join(line[x].data for x in range(self._screen.columns)) for line in self._screen.history.top]
        return [line.rstrip() for line in [*above, *self._screen.display]]

    @property
    def text(self) -> str:
        return "\n".join(self.sees).rstrip("\n")

    def styled(self, word: str) -> Any:
        """The first character of the word, as it stands on the screen with its colours."""
        row = next(row for row, line in enumerate(self._screen.display) if word in line)
        return self._screen.buffer[row][self._screen.display[row].index(word)]

    def type(self, keys: str) -> None:
        if keys.endswith((ENTER, CTRL_C, CTRL_D)):
            self._prompts = self.raw.count(PROMPT)
        self._write(keys)

    def _write(self, data: str) -> None:
        os.write(self._terminal, data.encode())

    async def sees_now(self, *texts: str) -> None:
        async def seen() -> bool | None:
            assert b"Traceback" not in self.raw, self.text
            return all(text in self.text for text in texts) or None

        try:
            await until(seen)
        except AssertionError:
            raise AssertionError(f"not seen: {texts}\n{self.text}") from None

    async def is_asked(self) -> None:
        """Until a new prompt waits for a line."""

        async def prompted() -> bool | None:
            line = self._screen.display[self._screen.cursor.y].rstrip()
            return (self.raw.count(PROMPT) > self._prompts and line.startswith(">")) or None

        try:
            await until(prompted)
        except AssertionError:
            raise AssertionError(f"there is no prompt\n{self.text}") from None

    async def says(self, line: str) -> None:
        await self.is_asked()
        self.type(line + ENTER)

    async def ends(self) -> int:
        async with asyncio.timeout(PATIENCE):
            code = await self.process.wait()
        await asyncio.sleep(0)  # what it wrote last
        return code


@asynccontextmanager
async def somebody(
    url: str | httpx.AsyncClient, *arguments: str, columns: int = 160, rows: int = 60, **others: str
) -> AsyncIterator[Somebody]:
    """Leaving the block ends what is left of it."""
    base = url if isinstance(url, str) else str(url.base_url)
    ours, theirs = os.openpty()
    termios.tcsetwinsize(theirs, (rows, columns))
    try:
        process = await asyncio.create_subprocess_exec(
            *(sys.executable, "-ISc", LOG_IN, *CHAT, *arguments),
            env=environ(base, **others),
            stdin=theirs,
            stdout=theirs,
            stderr=theirs,
        )
        os.close(theirs)
        person = Somebody(process, ours, columns, rows)
        try:
            yield person
        finally:
            asyncio.get_running_loop().remove_reader(ours)
            with suppress(ProcessLookupError):
                process.kill()
            await process.wait()
    finally:
        os.close(ours)
