"""Environments of their own for what does not fit into .venv. Each is made in .local/ at its first use."""

import hashlib
import os
import subprocess
from collections.abc import Callable
from pathlib import Path

from local.lock import hold
from local.places import ROOT


def once(home: Path, request: str, install: Callable[[], None]) -> None:
    """Call `install` unless `home` has what is requested. Processes wait for each other."""
    stamp, digest = home / "installed", hashlib.sha256(request.encode()).hexdigest()
    with hold(home.with_name(f"{home.name}.lock"), timeout=600):
        if not stamp.exists() or stamp.read_text() != digest:
            stamp.unlink(missing_ok=True)
            install()
            stamp.write_text(digest)


def python_environment(home: Path, python: Path, *packages: str) -> Path:
    """The interpreter of a virtual environment in `home`. `packages`: arguments of `pip install`; files in the checkout
    are read for changes."""
    inside = home / ("Scripts/python.exe" if os.name == "nt" else "bin/python")
    pip = ["-m", "pip", "install", "--quiet", "--disable-pip-version-check", "--no-input"]

    def install() -> None:
        run(python, "-m", "venv", "--clear", str(home))
        run(inside, *pip, *packages)

    locks = [(ROOT / package).read_text() for package in packages if package.endswith(".txt")]
    once(home, "\n".join([str(python), *packages, *locks]), install)
    return inside


def run(*command: str | Path) -> None:
    """Raises RuntimeError with the end of the output if the command fails."""
    environ = {name: value for name, value in os.environ.items() if name not in ("PYTHONPATH", "PYTHONHOME")}
    result = subprocess.run(list(map(str, command)), cwd=ROOT, capture_output=True, text=True, check=False, env=environ)
    if result.returncode:
        raise RuntimeError(f"{result.stdout}\n{result.stderr}"[-4000:])
