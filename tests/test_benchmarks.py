"""Each benchmark runs to its end, in a small size. Its figures are not checked: they depend on the machine."""

import subprocess
import sys
from pathlib import Path

import pytest

from local.places import ROOT
from tests.support import platform_runtime

SMALL = {
    "cold_start": "--rounds 1",
    "embeddings": "--answers 3 --inputs 20",
    "fairness": "--seconds 3",
    "first_token": "--rounds 2 --turns 3",
    "limits": "--processes 1 --seconds 1",
    "retention": "--sessions 200 --expired 10",
    "scale": "--turns-per-second 10",
    "session_list": "--sessions 60 200 --rounds 1",
    "streaming": "3 8",
    "streams": "10 --pause 0.1",
    "summary": "500 1500",
    "versus": "--requests 16 --rounds 1",
    "window": "--turns 30",
    "worker": "--turns 20",
}
NOT_RUN = {"embedded_model", "upstream"}  # six minutes of a real model; the fake model service of the others
NEED_PYTHON_3_13 = ("cold_start", "worker")


def test_every_benchmark_is_run() -> None:
    programs = {path.stem for path in Path(ROOT, "benchmarks").glob("*.py") if '"__main__"' in path.read_text()}
    assert programs == SMALL.keys() | NOT_RUN


@pytest.mark.acceptance
@pytest.mark.parametrize("name", SMALL)
def test_runs_to_its_end(name: str) -> None:
    if name in NEED_PYTHON_3_13 and platform_runtime.python() is None:
        pytest.skip(platform_runtime.MISSING)
    command = [sys.executable, "-m", f"benchmarks.{name}", *SMALL[name].split()]
    result = subprocess.run(command, cwd=ROOT, capture_output=True, text=True, check=False, timeout=500)
    assert result.returncode == 0, result.stderr[-2000:]
    assert any(character.isdigit() for character in result.stdout.splitlines()[-1])
