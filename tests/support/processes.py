"""Processes for crash tests: hosts that can be killed, and an Azurite that keeps acknowledged writes when killed.

Hosts are forked from a process that has already imported the app, because the import takes more CPU time than a test.
"""

import importlib
import json
import os
import signal
import socket
import subprocess
import sys
import time
from collections.abc import Callable, Mapping
from contextlib import suppress
from pathlib import Path
from types import TracebackType
from typing import Self, TypeAlias

import httpx

from local import azurite
from local.parts import free_port
from local.places import ROOT
from tests.support.clock import FEBRUARY_29
from tests.support.loopback import MAX_WAIT_S

Start: TypeAlias = Callable[[], "Host"]


class HostFactory:
    """`with HostFactory() as host_factory:` starts hosts quickly and ends them all when the block ends."""

    def __enter__(self) -> Self:
        inherited = {name: value for name, value in os.environ.items() if name in ("PATH", "HOME")}
        command = [sys.executable, "-m", "tests.support.processes"]
        environ = inherited | {"SUMMARY_SCHEDULE": FEBRUARY_29}
        self._process = subprocess.Popen(
            command, cwd=ROOT, env=environ, stdin=subprocess.PIPE, stdout=subprocess.PIPE, text=True
        )
        return self

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None:
        assert self._process.stdin
        assert self._process.stdout
        self._process.stdin.close()
        self._process.wait()
        self._process.stdout.close()

    def host(self, environ: Mapping[str, str], log: Path) -> "Host":
        assert self._process.stdin
        assert self._process.stdout
        port = free_port()
        self._process.stdin.write(json.dumps({"port": port, "log": str(log), "environ": dict(environ)}) + "\n")
        self._process.stdin.flush()
        return Host(int(self._process.stdout.readline()), port, log)


class Host:
    """A running `python -m local.host`."""

    def __init__(self, pid: int, port: int, log: Path) -> None:
        self.port, self.pid, self._log = port, pid, log
        self.base = f"http://127.0.0.1:{port}"
        _wait(lambda: _is_listening(port), log)

    def client(self) -> httpx.AsyncClient:
        return httpx.AsyncClient(base_url=self.base, trust_env=False, timeout=MAX_WAIT_S)

    def kill(self) -> None:
        """Send SIGKILL; does nothing if the process has already ended."""
        if _is_running(self.pid):
            os.kill(self.pid, signal.SIGKILL)
        _wait(lambda: not _is_running(self.pid), self._log)

    def fire(self, function: str = "maintenance") -> None:
        """Run a timer function now and wait until it has finished."""
        before = self._log.read_text().count(f"{function} ran\n")
        with httpx.Client(base_url=self.base, trust_env=False, timeout=MAX_WAIT_S) as client:
            assert client.post(f"/admin/functions/{function}", json={"input": ""}).status_code == 202
        _wait(lambda: self._log.read_text().count(f"{function} ran\n") > before, self._log)


class Azurite:
    """A separate Azurite whose data survive a kill."""

    def __init__(self, folder: Path) -> None:
        self.port, self._folder, self._log = free_port(), folder, folder / "log"
        self._process: subprocess.Popen[bytes] | None = None

    def start(self) -> None:
        program, *arguments = azurite.command(self.port, self._folder)
        command = [program, "--require", str(ROOT / "tests/support/durable.cjs"), *arguments]
        with self._log.open("ab") as log:
            self._process = subprocess.Popen(command, stdout=log, stderr=log)
        _wait(lambda: azurite.answers(self.port), self._log)

    def kill(self) -> None:
        if self._process:
            self._process.kill()
            self._process.wait()


def _wait(condition: Callable[[], bool], log: Path) -> None:
    deadline = time.monotonic() + MAX_WAIT_S
    while not condition():
        assert time.monotonic() < deadline, log.read_text()
        time.sleep(0.005)


def _is_listening(port: int) -> bool:
    with socket.socket() as probe:
        return probe.connect_ex(("127.0.0.1", port)) == 0


def _is_running(pid: int) -> bool:
    try:
        os.kill(pid, 0)
    except ProcessLookupError:
        return False
    return True


def _fork_hosts() -> None:
    """Main loop of the factory's process: forks a host per input line and kills them all at end of input."""
    for name in ("function_app", "local.host", "aiohttp", "openai.resources.chat.completions"):
        importlib.import_module(name)
    signal.signal(signal.SIGCHLD, signal.SIG_IGN)  # ended children are reaped automatically
    pids = []
    for line in sys.stdin:
        options = json.loads(line)
        if (pid := os.fork()) == 0:
            _become_host(**options)
            return
        pids.append(pid)
        print(pid, flush=True)
    for pid in pids:
        with suppress(ProcessLookupError):
            os.kill(pid, signal.SIGKILL)


def _become_host(port: int, log: str, environ: dict[str, str]) -> None:
    signal.signal(signal.SIGCHLD, signal.SIG_DFL)
    os.environ.update(environ)
    with Path(log).open("ab") as output:
        os.dup2(output.fileno(), 1)
        os.dup2(output.fileno(), 2)
    os.close(0)
    sys.argv = ["local.host", "--port", str(port)]
    importlib.import_module("local.host").main()


if __name__ == "__main__":
    _fork_hosts()
