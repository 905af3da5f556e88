"""Runs every check, even if one fails, and prints a last line with the results."""

import os
import subprocess
import sys
from collections.abc import Mapping, Sequence

from local.console import say
from local.places import ROOT, venv_python

# One worker more than there are cores, because tests often wait. The tests of a file share its fixtures. Files run in
# name order, because in xdist's own order the longest tests would run alone at the end.
PARALLEL = ("-n", str((os.cpu_count() or 1) + 1), "--dist", "loadfile", "--no-loadscope-reorder")

_ON_COSMOS = (  # run against Azure Cosmos DB's differences too
    *(f"tests/storage/test_{name}.py" for name in ("competing", "deletion", "ledger", "limits")),
    *(f"tests/storage/test_{name}.py" for name in ("owner_index", "retention")),
    *(f"tests/turns/test_{name}.py" for name in ("chaos", "crash", "fallback", "late_settlement")),
    *(f"tests/web/test_{name}.py" for name in ("branches", "limits", "session_list", "sessions", "usage")),
)
_PYTHON = [sys.executable, "-m"]
_IMPORT_LINTER = "from importlinter.cli import lint_imports_command as lint; lint()"


def run(pytest_arguments: Sequence[str]) -> int:
    """Returns 0 if all passed, else 1."""
    return _run(
        {
            "ruff check": [*_PYTHON, "ruff", "check"],
            "ruff format": [*_PYTHON, "ruff", "format", "--check"],
            "codespell": [*_PYTHON, "codespell_lib"],
            "zizmor": [
                str(venv_python().with_name("zizmor")),
                "--offline",
                "--min-severity=medium",
                "--quiet",
                ".github",
            ],
            "imports": [sys.executable, "-c", _IMPORT_LINTER],
            "mypy": [*_PYTHON, "mypy"],
            "pytest": [*_PYTHON, "pytest", *PARALLEL, *pytest_arguments],
        }
    )


def accept(pytest_arguments: Sequence[str]) -> int:
    """The long tests, which `run` omits. Returns 0 if all passed, else 1."""
    acceptance = [*_PYTHON, "pytest", *PARALLEL, "-m", "acceptance", *pytest_arguments]
    if pytest_arguments:
        return _run({"acceptance": acceptance})
    return _run({"acceptance": acceptance, "cosmos": [*_PYTHON, "pytest", *PARALLEL, "--cosmos", *_ON_COSMOS]})


def cover(pytest_arguments: Sequence[str]) -> int:
    """The tests with branch coverage. Returns 0 if all passed and the minimum in pyproject.toml is reached, else 1."""
    return _run({"coverage": [*_PYTHON, "pytest", *PARALLEL, "--cov", "--cov-report=term", *pytest_arguments]})


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
