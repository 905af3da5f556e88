"""What a run has for itself: the state directory, whose lock it holds, and a free port.

Only the standard library, because this is also checked before anything is installed.
"""

import os
import sys
from collections.abc import Iterator, Mapping
from contextlib import ExitStack, contextmanager
from dataclasses import dataclass
from pathlib import Path

from local import places
from local.environment import SettingsError, settings_file
from local.lock import Lock, Locked, hold
from local.parts import free_port, port_error


class CannotStart(Exception):
    """A reason that is known before anything is installed or started; the message says what to do."""


@dataclass(frozen=True)
class Claim:
    state: Path
    port: int
    settings: Mapping[str, str]  # of the settings file
    lock: Lock


def check(state: str | None, settings: str | None) -> None:
    """Exit with a message if a run could not start: before the setup, which takes minutes."""
    try:
        with claim(state, settings):
            pass
    except CannotStart as reason:
        sys.exit(str(reason))


@contextmanager
def claim(state: str | None, settings: str | None) -> Iterator[Claim]:
    """The arguments are those of the command line. Raises CannotStart."""
    directory, port = Path(state).resolve() if state else places.STATE, _port()
    with _locked(directory) as lock:
        _require_free(port)
        try:
            values = settings_file(Path(settings or places.SETTINGS), optional=settings is None)
        except SettingsError as error:
            raise CannotStart(str(error)) from None
        yield Claim(directory, port, values, lock)


@contextmanager
def _locked(directory: Path) -> Iterator[Lock]:
    with ExitStack() as stack:
        try:
            lock = stack.enter_context(hold(directory / "run.lock"))
        except Locked as locked:
            raise CannotStart(
                f"The chat API is already running here, on port {locked.holder.get('port', '?')} "
                f"(process {locked.holder.get('pid', '?')}). Stop it first."
            ) from None
        yield lock


def _require_free(port: int) -> None:
    error = port_error(port)
    if error is None:
        return
    above = (candidate for candidate in range(port + 1, 65536) if port_error(candidate) is None)
    other = f"PORT={next(above, free_port())} make run"
    if isinstance(error, PermissionError):
        raise CannotStart(f"Port {port} may not be used here ({error.strerror}). Choose another: {other}")
    raise CannotStart(f"Port {port} is in use. Free it, or choose another: {other}")


def _port() -> int:
    text = os.environ.get("PORT") or "7071"
    if not text.isdecimal() or not 0 < int(text) < 65536:
        raise CannotStart(f"PORT must be a number from 1 to 65535, not {text!r}")
    return int(text)
