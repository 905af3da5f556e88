"""A file lock across processes. The operating system releases it when the holder dies, for whatever reason.

The holder writes its process ID, and optionally more, into the file.
"""

import json
import os
import sys
import time
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import IO, Any

if sys.platform == "win32":
    import msvcrt

    def _lock(file: IO[str]) -> None:
        file.seek(1 << 30)  # beyond the text: Windows does not allow reading a locked range
        msvcrt.locking(file.fileno(), msvcrt.LK_NBLCK, 1)
else:
    import fcntl

    def _lock(file: IO[str]) -> None:
        fcntl.flock(file.fileno(), fcntl.LOCK_EX | fcntl.LOCK_NB)


class Locked(Exception):
    """Another process holds the lock; `holder` is what it wrote into the file."""

    def __init__(self, holder: dict[str, Any]) -> None:
        super().__init__(holder)
        self.holder = holder


class Lock:
    def __init__(self, file: IO[str]) -> None:
        self._file = file

    def write(self, **fields: Any) -> None:
        self._file.seek(0)
        self._file.truncate()
        json.dump({"pid": os.getpid(), **fields}, self._file)
        self._file.flush()


def _read(path: Path) -> dict[str, Any]:
    try:
        return dict(json.loads(path.read_text()))
    except (OSError, ValueError):
        return {}


@contextmanager
def hold(path: Path, timeout: float = 0) -> Iterator[Lock]:
    """Hold the lock in the block. Raises `Locked` if another process still holds it after `timeout` seconds."""
    path.parent.mkdir(parents=True, exist_ok=True)
    deadline = time.monotonic() + timeout
    with path.open("a+") as file:
        while True:
            try:
                _lock(file)
                break
            except OSError:
                if time.monotonic() >= deadline:
                    raise Locked(_read(path)) from None
                time.sleep(0.1)
        lock = Lock(file)
        lock.write()
        yield lock
