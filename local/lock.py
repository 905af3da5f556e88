"""One holder at a time of a file, across processes; the system lets go when the holder dies, however it dies.

What the holder writes into the file tells others who it is. Knows nothing of what is being guarded.
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

    def _claim(file: IO[str]) -> None:
        file.seek(1 << 30)  # beyond the text, because a locked range cannot be read there
        msvcrt.locking(file.fileno(), msvcrt.LK_NBLCK, 1)
else:
    import fcntl

    def _claim(file: IO[str]) -> None:
        fcntl.flock(file.fileno(), fcntl.LOCK_EX | fcntl.LOCK_NB)


class Taken(Exception):
    """Another process holds it; `holder` is what that process wrote."""

    def __init__(self, holder: dict[str, Any]) -> None:
        super().__init__(holder)
        self.holder = holder


class Held:
    def __init__(self, file: IO[str]) -> None:
        self._file = file

    def write(self, **facts: Any) -> None:
        self._file.seek(0)
        self._file.truncate()
        json.dump({"pid": os.getpid(), **facts}, self._file)
        self._file.flush()


def _read(path: Path) -> dict[str, Any]:
    try:
        return dict(json.loads(path.read_text()))
    except (OSError, ValueError):
        return {}


@contextmanager
def hold(path: Path, patience: float = 0) -> Iterator[Held]:
    """Raises `Taken` where another process still holds it after `patience` seconds."""
    path.parent.mkdir(parents=True, exist_ok=True)
    until = time.monotonic() + patience
    with path.open("a+") as file:
        while True:
            try:
                _claim(file)
                break
            except OSError:
                if time.monotonic() >= until:
                    raise Taken(_read(path)) from None
                time.sleep(0.1)
        held = Held(file)
        held.write()
        yield held
