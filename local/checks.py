"""Every check, all of them run even where one fails, and one last line that says how each went."""

import os
import subprocess
import sys
from collections.abc import Sequence

from local.console import say
from local.places import ROOT

# One more than there are cores, since tests wait as much as they work. Files share what their set-up costs, and come by
# name: in xdist's order, those of most tests first, the longest ones would run alone at the end.
PARALLEL = ("-n", str((os.cpu_count() or 1) + 1), "--dist", "loadfile", "--no-loadscope-reorder")


def run(pytest_arguments: Sequence[str]) -> int:
    """Returns 0 where all passed, else 1."""
    python = [sys.executable, "-m"]
    commands = {
        "ruff check": [*python, "ruff", "check"],
        "ruff format": [*python, "ruff", "format", "--check"],
        "mypy": [*python, "mypy"],
        "pytest": [*python, "pytest", *PARALLEL, *pytest_arguments],
    }
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
