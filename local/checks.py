"""Every check, all of them run even where one fails, and one last line with their results."""

import os
import subprocess
import sys
from collections.abc import Mapping, Sequence

from local.console import say
from local.places import ROOT

# One more than there are cores, since tests wait as much as they work. A file's tests share its set-up; files
# run in the order of their names, because in xdist's own order the longest tests would run alone at the end.
PARALLEL = ("-n", str((os.cpu_count() or 1) + 1), "--dist", "loadfile", "--no-loadscope-reorder")


_PYTHON = [sys.executable, "-m"]
_IMPORT_LINTER = "from importlinter.cli import lint_imports_command as lint; lint()"


def run(pytest_arguments: Sequence[str]) -> int:
    """Returns 0 where all passed, else 1."""
    return _run(
        {
            "ruff check": [*_PYTHON, "ruff", "check"],
            "ruff format": [*_PYTHON, "ruff", "format", "--check"],
            "imports": [sys.executable, "-c", _IMPORT_LINTER],
            "mypy": [*_PYTHON, "mypy"],
            "pytest": [*_PYTHON, "pytest", *PARALLEL, *pytest_arguments],
        }
    )


def accept(pytest_arguments: Sequence[str]) -> int:
    """The long and rare tests, which `run` leaves out. Returns 0 where all passed, else 1."""
    return _run({"acceptance": [*_PYTHON, "pytest", *PARALLEL, "-m", "acceptance", *pytest_arguments]})


def _run(commands: Mapping[str, Sequence[str]]) -> int:
    failed = [name for name, command in commands.items() if not _passes(name, command)]
    passed = [name for name in commands if name not in failed]
    say()
    if failed:
        say(f"FAILED: {', '.join(failed)}. Passed: {', '.join(passed) or 'none'}.")
        return 1
    say(f"All checks passed: {', '.join(passed)}.")
    return 0


def _passes(name: str, command: Sequence[str]) -> bool:
    say(f"\n== {name}")
    return subprocess.call(command, cwd=ROOT) == 0  # noqa: S603
