"""One child process: started in its own session, watched, stopped. Its output goes to its log.

It has its own session because Ctrl-C in a terminal signals every process of the foreground group, and the supervisor
must stop the parts in order.
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
        if self.log.exists():  # may explain a crash
            self.log.replace(self.log.with_suffix(".previous.log"))
        with self.log.open("wb") as log:
            self._process = subprocess.Popen(  # noqa: S603 - our own commands
                self.part.command,
                cwd=ROOT,
                env=_unbuffered(self.part.environment),
                stdin=subprocess.DEVNULL,
                stdout=log,
                stderr=subprocess.STDOUT,
                **_isolation(self.part),
            )

    @property
    def exit_code(self) -> int | None:
        return None if self._process is None else self._process.poll()

    @property
    def exit_reason(self) -> str:
        """Such as "exit code 1", or "exit code -4: Illegal instruction" after a signal."""
        code = self.exit_code or 0
        return f"exit code {code}" + (f": {signal.strsignal(-code)}" if code < 0 else "")

    @property
    def alive(self) -> bool:
        return self._process is not None and self._process.poll() is None

    async def wait_until_up(self) -> None:
        """Wait until it responds. If it exits before that, returns only if the others go on without it."""
        while not await asyncio.to_thread(self.part.is_up):
            if self.part.without_it and not self.alive:
                return
            await asyncio.sleep(0.05)

    async def wait_until_exit(self) -> None:
        while self.alive:  # noqa: ASYNC110
            await asyncio.sleep(0.1)

    async def stop(self, grace_s: float) -> None:
        """Send the stop signal, wait up to `grace_s` seconds, then kill."""
        if self.alive and self._process is not None:
            self._process.send_signal(STOP)
            try:
                await asyncio.wait_for(self.wait_until_exit(), grace_s)
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

    def _isolation(_: Part) -> dict[str, Any]:
        return {"creationflags": subprocess.CREATE_NEW_PROCESS_GROUP}

else:
    STOP = signal.SIGTERM

    def _isolation(part: Part) -> dict[str, Any]:
        return {"start_new_session": True, "preexec_fn": partial(_die_with_supervisor, part.saves_on_stop)}


_libc = ctypes.CDLL(None) if sys.platform == "linux" else None


def _die_with_supervisor(saves_on_stop: bool) -> None:
    """On Linux the kernel sends this signal when the supervisor dies, even by kill -9. The setting survives exec.

    Turns are not finished, because the tables and the model end as well; the app recovers as after a crash.
    """
    if _libc is not None:
        _libc.prctl(PR_SET_PDEATHSIG, signal.SIGTERM if saves_on_stop else signal.SIGKILL)
