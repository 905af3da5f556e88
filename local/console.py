"""One line for each thing that takes time: what it is, and how long it took. Knows nothing of the things."""

import sys
import threading
import time
from collections.abc import Iterator
from contextlib import contextmanager


def say(text: str = "") -> None:
    print(text, flush=True)


def complain(text: str) -> None:
    print(text, file=sys.stderr, flush=True)


@contextmanager
def step(what: str) -> Iterator[None]:
    """On a terminal the seconds are counted while it lasts, so that nobody wonders whether it hangs."""
    began, over = time.monotonic(), threading.Event()

    def elapsed(end: str) -> None:
        print(f"\r{what} … {time.monotonic() - began:.0f} s{end}", end="", flush=True)

    def count() -> None:
        while not over.wait(1):
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
        over.set()
        counter.join()
        elapsed("\n")
