"""The platform's own Python and worker library, in an environment of their own with only requirements.txt beside them.

Made once and kept in .local/; made anew when requirements.txt changes.
"""

import hashlib
import json
import os
import shutil
import subprocess
import sys
from collections.abc import Iterator
from pathlib import Path

from local.lock import hold
from local.places import ROOT, STATE

PYTHON = "3.13"  # what infra/ deploys to
RUNTIME = "azure-functions-runtime>=1.3,<2"
MISSING = (
    f"NO PYTHON {PYTHON} FOUND, SO NOTHING WAS TRIED UNDER THE PLATFORM'S OWN RUNTIME: install it, by pyenv or as"
    f" python{PYTHON} on the PATH"
)


def python() -> Path | None:
    """An interpreter of that version, which a pyenv shim on the PATH may only pretend to be."""
    return next((path for path in _candidates() if _version(path) == PYTHON), None)


def environment(python: Path) -> Path:
    """The environment's interpreter."""
    home = STATE / "runtime"
    stamp = home / "installed"
    inside = home / ("Scripts/python.exe" if os.name == "nt" else "bin/python")
    digest = hashlib.sha256(f"{python}\n{RUNTIME}\n{(ROOT / 'requirements.txt').read_text()}".encode()).hexdigest()
    with hold(STATE / "runtime.lock", patience=600):
        if not stamp.exists() or stamp.read_text() != digest:
            stamp.unlink(missing_ok=True)
            _run(python, "-m", "venv", "--clear", str(home))
            pip = ["-m", "pip", "install", "--quiet", "--disable-pip-version-check", "--no-input"]
            _run(inside, *pip, "-r", str(ROOT / "requirements.txt"), RUNTIME)
            stamp.write_text(digest)
    return inside


def package(folder: Path) -> list[str]:
    """What azd would deploy of this checkout, copied into `folder`; gives the names."""
    names = listing(ROOT, folder.with_name(f"{folder.name}.git"))
    for name in names:
        (folder / name).parent.mkdir(parents=True, exist_ok=True)
        shutil.copy2(ROOT / name, folder / name)
    return names


def listing(tree: Path, repository: Path) -> list[str]:
    """What .funcignore, whose rules are git's, does not name. `repository`: a folder for an empty one."""
    subprocess.run(["git", "init", "--quiet", "--bare", str(repository)], check=True)
    git = ["git", f"--git-dir={repository}", f"--work-tree={tree}"]
    found = subprocess.run(
        [*git, "ls-files", "--others", "-z", "--exclude-from=.funcignore"],
        cwd=tree,
        check=True,
        capture_output=True,
        text=True,
    )
    return sorted(filter(None, found.stdout.split("\0")))


def _candidates() -> Iterator[Path]:
    yield Path(sys.executable)
    if found := shutil.which(f"python{PYTHON}"):
        yield Path(found)
    pyenv = Path(os.environ.get("PYENV_ROOT") or Path.home() / ".pyenv")
    yield from sorted(pyenv.glob(f"versions/{PYTHON}.*/bin/python{PYTHON}"), reverse=True)
    if launcher := shutil.which("py"):
        told = subprocess.run(
            [launcher, f"-{PYTHON}", "-c", "import sys; print(sys.executable)"],
            capture_output=True,
            text=True,
            check=False,
        )
        if told.returncode == 0:
            yield Path(told.stdout.strip())


def _version(path: Path) -> str | None:
    question = "import json, sys; print(json.dumps(sys.version_info[:2]))"
    told = subprocess.run([str(path), "-c", question], capture_output=True, text=True, check=False)
    return ".".join(map(str, json.loads(told.stdout))) if told.returncode == 0 else None


def _run(*command: str | Path) -> None:
    environ = {name: value for name, value in os.environ.items() if name not in ("PYTHONPATH", "PYTHONHOME")}
    done = subprocess.run([str(part) for part in command], capture_output=True, text=True, check=False, env=environ)
    if done.returncode:
        raise RuntimeError(f"{done.stdout}\n{done.stderr}"[-4000:])
