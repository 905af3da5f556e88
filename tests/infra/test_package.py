"""The deployment package: it holds only the app, which needs only requirements.txt."""

import os
import shutil
import subprocess
import sys
import tomllib
from pathlib import Path

import pytest

from local.places import ROOT
from tests.support import platform_runtime

PYTHON = platform_runtime.python()


@pytest.fixture(scope="module")
def package(tmp_path_factory: pytest.TempPathFactory) -> Path:
    if shutil.which("git") is None:
        pytest.skip("GIT IS NOT INSTALLED, SO .funcignore WAS NOT CHECKED")
    folder = tmp_path_factory.mktemp("package")
    platform_runtime.package(folder)
    return folder


def files(package: Path) -> set[str]:
    return {str(path.relative_to(package).as_posix()) for path in package.rglob("*") if path.is_file()}


def test_package_holds_only_the_app(package: Path) -> None:
    assert {path.split("/")[0] for path in files(package)} == {
        "function_app.py",
        "host.json",
        "requirements.txt",
        "shared",
    }


def test_package_has_the_files_that_the_platform_reads(package: Path) -> None:
    assert {"function_app.py", "host.json", "requirements.txt", "shared/settings.py", "shared/web/http.py"} <= files(
        package
    )


def test_package_has_no_secrets_caches_or_bytecode(package: Path) -> None:
    kinds = {Path(path).suffix for path in files(package) if path.startswith("shared/")}
    assert kinds <= {".py", ".html", ".txt", ".css", ".js", ".svg", ".png", ".ico", ".md", ".json", ".webmanifest"}
    assert not [path for path in files(package) if "__pycache__" in path or "local.settings" in path]


def test_funcignore_excludes_other_files_at_any_depth(tmp_path: Path) -> None:
    """Covers files that a checkout may contain in the future."""
    shutil.copy(ROOT / ".funcignore", tmp_path)
    included = ["function_app.py", "shared/web/http.py"]
    ignored = [
        *(".git/config", ".env", ".venv/lib/x.py", ".local/azurite/x", ".github/workflows/ci.yml", ".azure/dev/.env"),
        *("tests/test_x.py", "local/host.py", "benchmarks/x.py", "infra/main.bicep", "docs/x.md", "chat.py"),
        *("shared/web/__pycache__/http.cpython-313.pyc", "node_modules/x/y.js", "local.settings.json", ".coverage"),
        *("venv/lib/x.py", "env/lib/x.py", "main_env/lib/x.py", "htmlcov/index.html", "build/lib/x.py", "dist/x.whl"),
        *("local.settings.prod.json", "key.pem", "main.json", "shared.zip", "shared/web/http.pyc", "LICENSE"),
        *("tests/function_app.py", "local/shared/x.py", "infra/requirements.txt", "benchmarks/host.json"),
    ]
    for name in included + ignored:
        (tmp_path / name).parent.mkdir(parents=True, exist_ok=True)
        (tmp_path / name).touch()
    assert platform_runtime.listing(tmp_path, tmp_path / ".repository") == included


@pytest.mark.skipif(PYTHON is None, reason=platform_runtime.MISSING)
def test_package_imports_without_settings_and_other_packages(package: Path) -> None:
    assert PYTHON
    interpreter = platform_runtime.environment(PYTHON)
    script = "import sys; sys.path.append('.'); import function_app; print(function_app.app is not None)"
    result = subprocess.run(
        [str(interpreter), "-I", "-W", "error", "-c", script],
        cwd=package,
        env={"PATH": os.environ["PATH"]},
        capture_output=True,
        text=True,
        check=False,
    )
    assert (result.stdout.strip(), result.stderr) == ("True", "")


def test_azd_restore_installs_the_requirements_and_no_package_of_this_folder() -> None:
    """`azd restore` runs `pip install .` where there is a pyproject.toml: framework_service_python.go in azure-dev."""
    project = tomllib.loads((ROOT / "pyproject.toml").read_text())
    assert project["build-system"]["build-backend"] == "setuptools.build_meta"
    assert project["tool"]["setuptools"]["packages"] == []
    assert project["tool"]["setuptools"]["dynamic"] == {"dependencies": {"file": ["requirements.in"]}}


@pytest.mark.acceptance
def test_app_can_be_imported_after_azd_restore(tmp_path: Path) -> None:
    tree = tmp_path / "clone"
    for name in platform_runtime.package(tree):
        assert (tree / name).is_file()
    for name in ("pyproject.toml", "requirements.in"):
        shutil.copy2(ROOT / name, tree / name)
    for folder in ("local", "infra", "tests"):  # packages that setuptools would find by itself
        (tree / folder).mkdir()
        (tree / folder / "__init__.py").touch()
    subprocess.run([sys.executable, "-m", "venv", "clone_env"], cwd=tree, check=True)
    python = tree / "clone_env" / ("Scripts/python.exe" if os.name == "nt" else "bin/python")
    subprocess.run([str(python), "-m", "pip", "install", "."], cwd=tree, check=True, capture_output=True)
    subprocess.run([str(python), "-c", "import function_app"], cwd=tree, check=True)
