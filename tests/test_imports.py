"""What the import contracts in pyproject.toml can't say: parts of the azure packages, top-level modules, the
environment."""

import ast
import re
import runpy
from functools import cache
from pathlib import Path

import pytest

ROOT = Path(__file__).resolve().parent.parent
APP = sorted(ROOT.glob("shared/**/*.py"))
AZURE = {  # part of the SDK -> the modules that may know it
    "azure.communication": {"mail/communication_services"},
    "azure.core": {"access/identity", "mail/choose", "mail/communication_services", "storage/tables"},
    "azure.data": {"services", "storage/tables"},
    "azure.functions": set[str](),
    "azure.identity": {"access/identity"},
    "azure.monitor": {"telemetry/tracing"},
}


def name(path: Path) -> str:
    return path.relative_to(ROOT / "shared").with_suffix("").as_posix()


@cache
def imports(path: Path) -> frozenset[str]:
    """Every module that the file names, wherever in it: `from a import b` gives a and a.b."""
    found = set[str]()
    for node in ast.walk(ast.parse(path.read_text())):
        if isinstance(node, ast.Import):
            found |= {alias.name for alias in node.names}
        elif isinstance(node, ast.ImportFrom):
            assert node.level == 0, f"{path}: a relative import"
            found |= {node.module or "", *(f"{node.module}.{alias.name}" for alias in node.names)}
    return frozenset(found)


def uses(path: Path, package: str) -> bool:
    return any(each == package or each.startswith(f"{package}.") for each in imports(path))


@pytest.mark.parametrize("package", AZURE)
def test_each_azure_sdk_is_used_by_its_adapter_only(package: str) -> None:
    assert {name(path) for path in APP if uses(path, package)} <= AZURE[package]


def test_only_the_composition_root_reads_the_environment() -> None:
    def reads(path: Path) -> bool:
        attributes = {node.attr for node in ast.walk(ast.parse(path.read_text())) if isinstance(node, ast.Attribute)}
        return bool(attributes & {"environ", "environb", "getenv"}) or uses(path, "os.environ")

    assert {name(path) for path in APP if reads(path)} == {"services"}
    assert not reads(ROOT / "function_app.py")


def test_the_triggers_use_routes_services_and_the_declared_authentication_only() -> None:
    used = {each for each in imports(ROOT / "function_app.py") if each.startswith("shared.")}
    assert all(re.match(r"shared\.(web|services|access\.authentication)\b", each) for each in used)


def test_the_terminal_client_uses_nothing_of_the_app() -> None:
    assert not any(uses(ROOT / "chat.py", package) for package in ("shared", "local", "tests", "function_app"))


def test_the_app_never_asks_whether_it_is_under_test() -> None:
    for path in APP:
        assert not re.search(r"pytest|unittest|sys\.modules", path.read_text()), path


@pytest.mark.parametrize("path", APP, ids=name)
def test_every_module_has_a_docstring(path: Path) -> None:
    assert ast.get_docstring(ast.parse(path.read_text()))


def test_picture_of_the_layers_matches_the_code() -> None:
    """`python docs/layers.py` draws it again."""
    assert (ROOT / "docs/layers.svg").read_text() == runpy.run_path(str(ROOT / "docs/layers.py"))["draw"]()
