"""A virtual environment with the platform's Python, its worker library and the app's packages only.

It is created in .local/ and recreated when the lock file changes.
"""

import json
import os
import shutil
import subprocess
import sys
from collections.abc import Iterator
from pathlib import Path

from local.places import ROOT, STATE
from tests.support.environments import python_environment

PYTHON = "3.13"  # what infra/ deploys to
REQUIREMENTS = "tests/support/platform-requirements.txt"
MISSING = (
    f"NO PYTHON {PYTHON} FOUND, SO THE TESTS UNDER THE PLATFORM'S RUNTIME DID NOT RUN: install it with pyenv or as"
    f" python{PYTHON} on the PATH"
)


def python() -> Path | None:
    """An interpreter of that version. Each candidate is run, because a pyenv shim may be another version."""
    return next((path for path in _candidates() if _version(path) == PYTHON), None)


def environment(python: Path) -> Path:
    """The interpreter of the environment, which is created if needed."""
    return python_environment(STATE / "runtime", python, "--require-hashes", "-r", REQUIREMENTS)


def package(folder: Path) -> list[str]:
    """Copy the files that azd would deploy from this checkout to `folder`; returns their names."""
    names = listing(ROOT, folder.with_name(f"{folder.name}.git"))
    for name in names:
        (folder / name).parent.mkdir(parents=True, exist_ok=True)
        shutil.copy2(ROOT / name, folder / name)
    return names


def listing(tree: Path, repository: Path) -> list[str]:
    """The files that .funcignore (git's syntax) does not exclude. `repository`: path for an empty git repository."""
    subprocess.run(["git", "init", "--quiet", "--bare", str(repository)], check=True)
    git = ["git", f"--git-dir={repository}", f"--work-tree={tree}"]
    result = subprocess.run(
        [*git, "ls-files", "--others", "-z", "--exclude-from=.funcignore"],
        cwd=tree,
        check=True,
        capture_output=True,
        text=True,
    )
    return sorted(filter(None, result.stdout.split("\0")))


def _candidates() -> Iterator[Path]:
    yield Path(sys.executable)
    if on_path := shutil.which(f"python{PYTHON}"):
        yield Path(on_path)
    pyenv = Path(os.environ.get("PYENV_ROOT") or Path.home() / ".pyenv")
    yield from sorted(pyenv.glob(f"versions/{PYTHON}.*/bin/python{PYTHON}"), reverse=True)
    if launcher := shutil.which("py"):
        result = subprocess.run(
            [launcher, f"-{PYTHON}", "-c", "import sys; print(sys.executable)"],
            capture_output=True,
            text=True,
            check=False,
        )
        if result.returncode == 0:
            yield Path(result.stdout.strip())


def _version(path: Path) -> str | None:
    script = "import json, sys; print(json.dumps(sys.version_info[:2]))"
    result = subprocess.run([str(path), "-c", script], capture_output=True, text=True, check=False)
    return ".".join(map(str, json.loads(result.stdout))) if result.returncode == 0 else None
