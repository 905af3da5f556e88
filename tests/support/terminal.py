"""chat.py as a process with pipes, or in a pseudo-terminal where the test types and reads the screen."""

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
from tests.support.chat_client import until
from tests.support.loopback import MAX_WAIT_S

CHAT = (sys.executable, str(ROOT / "chat.py"))
# The child first makes the pseudo-terminal its controlling terminal, so that Ctrl-C sends it a signal.
TAKE_TERMINAL = "import os, sys; os.login_tty(0); os.execv(sys.argv[1], sys.argv[1:])"
PROMPT = b"\x1b[?2004h"  # enables bracketed paste, which only a prompt does
ENTER, ALT_ENTER, UP, CTRL_C, CTRL_D = "\r", "\x1b\r", "\x1b[A", "\x03", "\x04"


def environ(url: str, **others: str) -> dict[str, str]:
    inherited = {name: os.environ[name] for name in ("PATH", "HOME") if name in os.environ}
    return {**inherited, "CHAT_URL": url, "CHAT_KEY": FUNCTION_KEY, "TERM": "xterm-256color", **others}


@dataclass(frozen=True)
class Result:
    code: int
    out: str
    err: str


async def start_chat(url: str | httpx.AsyncClient, *arguments: str, **others: str) -> Process:
    base = url if isinstance(url, str) else str(url.base_url)
    return await asyncio.create_subprocess_exec(
        *CHAT, *arguments, env=environ(base, **others), stdin=PIPE, stdout=PIPE, stderr=PIPE
    )


async def wait_for_result(process: Process, message: str | bytes = b"") -> Result:
    text = message.encode() if isinstance(message, str) else message
    async with asyncio.timeout(MAX_WAIT_S):
        out, err = await process.communicate(text)
    assert process.returncode is not None
    assert b"Traceback" not in err, err.decode()
    return Result(process.returncode, out.decode(), err.decode())


async def run_piped(
    url: str | httpx.AsyncClient, message: str | bytes = "hi\n", *arguments: str, **others: str
) -> Result:
    """`echo hi | python chat.py`"""
    return await wait_for_result(await start_chat(url, *arguments, **others), message)


class Screen(pyte.HistoryScreen):
    """Answers cursor position queries of the program as keyboard input, like a real terminal."""

    def __init__(self, columns: int, rows: int, write_input: Callable[[str], None]) -> None:
        super().__init__(columns, rows, history=5000, ratio=1)
        self._write_input = write_input

    def write_process_input(self, data: str) -> None:
        self._write_input(data)


class ChatTerminal:
    """chat.py in a terminal of the given size: types keys and reads the screen, including what has scrolled away."""

    def __init__(self, process: Process, terminal: int, columns: int, rows: int) -> None:
        self.process, self.raw = process, b""
        self._terminal = terminal
        self._screen = Screen(columns, rows, self._write)
        self._prompts = 0  # already answered
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
    def lines(self) -> list[str]:
        above = ["".join(line[x].data for x in range(self._screen.columns)) for line in self._screen.history.top]
        return [line.rstrip() for line in [*above, *self._screen.display]]

    @property
    def text(self) -> str:
        return "\n".join(self.lines).rstrip("\n")

    def style_of(self, word: str) -> Any:
        """The first character of the word on the screen, with its colours and attributes."""
        row = next(row for row, line in enumerate(self._screen.display) if word in line)
        return self._screen.buffer[row][self._screen.display[row].index(word)]

    def type(self, keys: str) -> None:
        if keys.endswith((ENTER, CTRL_C, CTRL_D)):
            self._prompts = self.raw.count(PROMPT)
        self._write(keys)

    def _write(self, data: str) -> None:
        os.write(self._terminal, data.encode())

    async def shows(self, *texts: str) -> None:
        """Wait until all texts are on the screen."""

        async def shown() -> bool | None:
            assert b"Traceback" not in self.raw, self.text
            return all(text in self.text for text in texts) or None

        try:
            await until(shown)
        except AssertionError:
            raise AssertionError(f"not on the screen: {texts}\n{self.text}") from None

    async def wait_for_prompt(self) -> None:
        """Wait for a new prompt."""

        async def prompted() -> bool | None:
            line = self._screen.display[self._screen.cursor.y].rstrip()
            return (self.raw.count(PROMPT) > self._prompts and line.startswith(">")) or None

        try:
            await until(prompted)
        except AssertionError:
            raise AssertionError(f"no prompt on the screen\n{self.text}") from None

    async def enter(self, line: str) -> None:
        """Wait for a prompt, then type the line and Enter."""
        await self.wait_for_prompt()
        self.type(line + ENTER)

    async def wait_for_exit(self) -> int:
        async with asyncio.timeout(MAX_WAIT_S):
            code = await self.process.wait()
        await asyncio.sleep(0)  # lets the loop read the last output
        return code


@asynccontextmanager
async def open_terminal(
    url: str | httpx.AsyncClient, *arguments: str, columns: int = 160, rows: int = 60, **others: str
) -> AsyncIterator[ChatTerminal]:
    """Start chat.py in a pseudo-terminal; leaving the block kills it if it still runs."""
    base = url if isinstance(url, str) else str(url.base_url)
    ours, theirs = os.openpty()
    termios.tcsetwinsize(theirs, (rows, columns))
    try:
        process = await asyncio.create_subprocess_exec(
            *(sys.executable, "-ISc", TAKE_TERMINAL, *CHAT, *arguments),
            env=environ(base, **others),
            stdin=theirs,
            stdout=theirs,
            stderr=theirs,
        )
        os.close(theirs)
        terminal = ChatTerminal(process, ours, columns, rows)
        try:
            yield terminal
        finally:
            asyncio.get_running_loop().remove_reader(ours)
            with suppress(ProcessLookupError):
                process.kill()
            await process.wait()
    finally:
        os.close(ours)
