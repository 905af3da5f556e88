"""One running part: started in a session of its own, watched, stopped. Its output goes to its log.

In a session of its own, because Ctrl-C in a terminal reaches every process of the foreground group, and it is the
supervisor's business to stop the parts in their order.
"""

import asyncio
import ctypes
import signal
import subprocess
import sys
from collections.abc import Mapping
from functools import partial
from pathlib import Path
from typing import Any

from local.parts import Part
from local.places import ROOT

LAST_LINES = 20
PR_SET_PDEATHSIG = 1


class Child:
    def __init__(self, part: Part, log: Path) -> None:
        self.part, self.log = part, log
        self._process: subprocess.Popen[bytes] | None = None

    @property
    def pid(self) -> int:
        assert self._process is not None  # noqa: S101 - start() comes first
        return self._process.pid

    def start(self) -> None:
        if self.log.exists():  # what a crash left is still wanted
            self.log.replace(self.log.with_suffix(".previous.log"))
        with self.log.open("wb") as log:
            self._process = subprocess.Popen(  # noqa: S603 - our own commands
                self.part.command,
                cwd=ROOT,
                env=_unbuffered(self.part.environment),
                stdin=subprocess.DEVNULL,
                stdout=log,
                stderr=subprocess.STDOUT,
                **_apart(self.part),
            )

    @property
    def exit_code(self) -> int | None:
        return None if self._process is None else self._process.poll()

    @property
    def alive(self) -> bool:
        return self._process is not None and self._process.poll() is None

    async def answering(self) -> None:
        """Returns once it answers. Whether it still lives is for `ended` to say."""
        while not await asyncio.to_thread(self.part.answers):  # noqa: ASYNC110 - nothing signals it to us
            await asyncio.sleep(0.05)

    async def ended(self) -> None:
        while self.alive:  # noqa: ASYNC110
            await asyncio.sleep(0.1)

    async def stop(self, patience: float) -> None:
        """Asks, waits up to `patience` seconds, then kills."""
        if self.alive and self._process is not None:
            self._process.send_signal(STOP)
            try:
                await asyncio.wait_for(self.ended(), patience)
            except TimeoutError:
                self.kill()

    def kill(self) -> None:
        if self._process is not None and self.alive:
            self._process.kill()
            self._process.wait()

    def last_lines(self) -> str:
        lines = self.log.read_text(errors="replace").splitlines()[-LAST_LINES:]
        return "\n".join(f"  {line}" for line in lines)


def _unbuffered(environment: Mapping[str, str]) -> dict[str, str]:
    return {**environment, "PYTHONUNBUFFERED": "1"}


if sys.platform == "win32":
    STOP = signal.CTRL_BREAK_EVENT

    def _apart(_: Part) -> dict[str, Any]:
        return {"creationflags": subprocess.CREATE_NEW_PROCESS_GROUP}

else:
    STOP = signal.SIGTERM

    def _apart(part: Part) -> dict[str, Any]:
        return {"start_new_session": True, "preexec_fn": partial(_die_with_the_supervisor, part.saves)}


_libc = ctypes.CDLL(None) if sys.platform == "linux" else None


def _die_with_the_supervisor(saves: bool) -> None:
    """On Linux the kernel sends it once the supervisor is gone, be it by kill -9. It survives exec, so Node gets it.

    No time to finish turns: the tables and the model are gone as soon, and the app recovers from a crash.
    """
    if _libc is not None:
        _libc.prctl(PR_SET_PDEATHSIG, signal.SIGTERM if saves else signal.SIGKILL)
