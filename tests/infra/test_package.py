"""What is deployed: the app and nothing else, and it needs nothing but requirements.txt."""

import os
import shutil
import subprocess
from pathlib import Path

import pytest

from local.places import ROOT
from tests.support import platform_runtime

PYTHON = platform_runtime.python()


@pytest.fixture(scope="module")
def package(tmp_path_factory: pytest.TempPathFactory) -> Path:
    if shutil.which("git") is None:
        pytest.skip("NO GIT, SO WHAT .funcignore KEEPS OUT WAS NOT CHECKED")
    folder = tmp_path_factory.mktemp("package")
    platform_runtime.package(folder)
    return folder


def files(package: Path) -> set[str]:
    return {str(path.relative_to(package).as_posix()) for path in package.rglob("*") if path.is_file()}


def test_it_is_the_app_and_nothing_else(package: Path) -> None:
    assert {path.split("/")[0] for path in files(package)} == {
        "function_app.py",
        "host.json",
        "requirements.txt",
        "shared",
    }


def test_it_has_what_the_platform_reads(package: Path) -> None:
    assert {"function_app.py", "host.json", "requirements.txt", "shared/settings.py", "shared/web/http.py"} <= files(
        package
    )


def test_no_secret_cache_or_bytecode_comes_along(package: Path) -> None:
    kinds = {Path(path).suffix for path in files(package) if path.startswith("shared/")}
    assert kinds <= {".py", ".html", ".txt", ".css", ".js", ".svg", ".png", ".ico", ".md", ".json", ".webmanifest"}
    assert not [path for path in files(package) if "__pycache__" in path or "local.settings" in path]


def test_what_is_not_the_app_is_ignored_at_any_depth(tmp_path: Path) -> None:
    """Of the kind of file that a checkout may hold tomorrow."""
    shutil.copy(ROOT / ".funcignore", tmp_path)
    kept = ["function_app.py", "shared/web/http.py"]
    ignored = [
        *(".git/config", ".env", ".venv/lib/x.py", ".local/azurite/x", ".github/workflows/ci.yml", ".azure/dev/.env"),
        *("tests/test_x.py", "local/host.py", "benchmarks/x.py", "infra/main.bicep", "docs/x.md", "chat.py"),
        *("shared/web/__pycache__/http.cpython-313.pyc", "node_modules/x/y.js", "local.settings.json", ".coverage"),
        *("venv/lib/x.py", "env/lib/x.py", "main_env/lib/x.py", "htmlcov/index.html", "build/lib/x.py", "dist/x.whl"),
        *("local.settings.prod.json", "key.pem", "main.json", "shared.zip", "shared/web/http.pyc", "LICENSE"),
        *("tests/function_app.py", "local/shared/x.py", "infra/requirements.txt", "benchmarks/host.json"),
    ]
    for name in kept + ignored:
        (tmp_path / name).parent.mkdir(parents=True, exist_ok=True)
        (tmp_path / name).touch()
    assert platform_runtime.listing(tmp_path, tmp_path / ".repository") == kept


@pytest.mark.skipif(PYTHON is None, reason=platform_runtime.MISSING)
def test_it_is_imported_with_nothing_set_and_nothing_else_installed(package: Path) -> None:
    assert PYTHON
    interpreter = platform_runtime.environment(PYTHON)
    script = "import sys; sys.path.append('.'); import function_app; print(function_app.app is not None)"
    done = subprocess.run(
        [str(interpreter), "-I", "-W", "error", "-c", script],
        cwd=package,
        env={"PATH": os.environ["PATH"]},
        capture_output=True,
        text=True,
        check=False,
    )
    assert (done.stdout.strip(), done.stderr) == ("True", "")
