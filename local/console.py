"""Output of the commands, and a line for each slow step with the time it took."""

import sys
import threading
import time
from collections.abc import Iterator
from contextlib import contextmanager


def say(text: str = "") -> None:
    print(text, flush=True)


def say_error(text: str) -> None:
    print(text, file=sys.stderr, flush=True)


@contextmanager
def step(what: str) -> Iterator[None]:
    """Print `what`; on a terminal also count the seconds, to show progress."""
    began, finished = time.monotonic(), threading.Event()

    def elapsed(end: str) -> None:
        print(f"\r{what} … {time.monotonic() - began:.0f} s{end}", end="", flush=True)

    def count() -> None:
        while not finished.wait(1):
            elapsed("")

    if not sys.stdout.isatty():
        print(f"{what} …", flush=True)
        yield
        return
    print(f"{what} …", end="", flush=True)
    counter = threading.Thread(target=count, daemon=True)
    counter.start()
    try:
        yield
    finally:
        finished.set()
        counter.join()
        elapsed("\n")
