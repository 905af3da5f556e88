"""What benchmarks share: an Azurite of their own, CPU time of other processes, and what ran beside the benchmark."""

import os
import socket
import subprocess
import time
from collections.abc import Iterable, Iterator
from contextlib import contextmanager
from dataclasses import dataclass, field
from pathlib import Path

from local import azurite
from local.parts import free_port
from local.places import ROOT

_TICKS = os.sysconf("SC_CLK_TCK")  # per second


@contextmanager
def server(command: list[str], port: int) -> Iterator[int]:
    """A process that listens on the port, until the block ends; yields its process ID."""
    process = subprocess.Popen(command, cwd=ROOT, stdout=subprocess.DEVNULL, stderr=subprocess.DEVNULL)  # noqa: S603
    try:
        while not listening(port):
            if process.poll() is not None:
                raise RuntimeError(f"{command} ended")
            time.sleep(0.05)
        yield process.pid
    finally:
        process.terminate()
        process.wait()


@contextmanager
def table_service() -> Iterator[tuple[int, int]]:
    """An Azurite in memory; yields its port and its process ID."""
    port = free_port()
    with server(azurite.command(port), port) as pid:
        yield port, pid


def listening(port: int) -> bool:
    with socket.socket() as probe:
        return probe.connect_ex(("127.0.0.1", port)) == 0


def cpu_seconds(pid: int) -> float:
    """CPU seconds of a process so far, to the microsecond, in Linux."""
    return time.clock_gettime(~pid << 3 | 2)  # clock_getcpuclockid(3)


def memory(pid: int) -> tuple[float, float]:
    """MB of a process in memory: now, and at its peak. In Linux."""
    status = dict(line.split(":", 1) for line in Path(f"/proc/{pid}/status").read_text().splitlines())
    now, peak = (int(status[name].split()[0]) / 1024 for name in ("VmRSS", "VmHWM"))
    return now, peak


@dataclass
class Usage:
    """Seconds since it was made. `pids`: processes of the benchmark, beside this one, that run all the time."""

    pids: tuple[int, ...] = ()
    wall: float = field(default_factory=time.monotonic)
    own: float = 0.0
    machine: float = 0.0

    def __post_init__(self) -> None:
        self.own, self.machine = self._own(), _busy_seconds()

    def beside(self, own: Iterable[float] = ()) -> str:
        """What other processes used. `own`: CPU seconds of the benchmark's processes that are not in `pids`."""
        seconds = time.monotonic() - self.wall
        others = _busy_seconds() - self.machine - (self._own() - self.own) - sum(own)
        return f"{max(0.0, others) / seconds:.1f} of {os.cpu_count()} cores were used by other processes"

    def report(self) -> str:
        """CPU seconds beside wall seconds, and what other processes used."""
        own = self._own() - self.own
        return f"{own:.1f} s in {time.monotonic() - self.wall:.1f} s; {self.beside()}"

    def _own(self) -> float:
        return time.process_time() + sum(map(cpu_seconds, self.pids))


def _busy_seconds() -> float:
    """CPU seconds of all processes since the machine's start, in Linux."""
    user, nice, system, _, _, interrupt, soft, *_ = Path("/proc/stat").read_text().split("\n", 1)[0].split()[1:]
    return sum(map(int, (user, nice, system, interrupt, soft))) / _TICKS
