"""Import rules that the contracts in pyproject.toml cannot express: parts of the azure packages, top-level modules and
access to the environment."""

import ast
import re
import runpy
import subprocess
import sys
from functools import cache
from importlib import import_module
from pathlib import Path

import pytest

ROOT = Path(__file__).resolve().parent.parent
APP = sorted(ROOT.glob("shared/**/*.py"))
AZURE = {  # part of the SDK -> the modules that may import it
    "azure.communication": {"mail/communication_services"},
    "azure.core": {
        *("access/identity", "mail/choose", "mail/communication_services"),
        *("storage/cosmos_tables", "storage/sdk_tables"),
    },
    "azure.data": {"storage/cosmos_tables", "storage/sdk_tables"},
    "azure.functions": set[str](),
    "azure.identity": {"access/identity"},
    "azure.monitor": {"telemetry/tracing"},
}
# What no chat turn needs, with what it imports: a cold start would pay for it.
NOT_AT_START = {
    "aiosmtplib",
    "azure.communication",
    "azure.data.tables",
    "azure.monitor",
    "croniter",
    "jinja2",
    "opentelemetry.sdk",  # fastapi imports opentelemetry's API itself
    "shared.mail.choose",
    "shared.mail.email",
    "shared.maintenance",
    "shared.model.embeddings",
    "shared.model.refusals",
    "shared.reports.daily",
    "shared.reports.delivery",
    "shared.reports.summary_email",
    "shared.turns.conversations",
    "shared.web.contract.responses",
    "shared.web.contract.sessions",
    "shared.web.contract.usage",
    "shared.web.responses.conversations",
    "shared.web.openapi",
    "shared.web.responses.responses",
    "smtplib",
}
# What the first turn needs: importing it later would only make that turn slower.
AT_START = {"aiohttp", "genai_prices", "openai", "shared.storage.http_tables", "shared.turns.engine"}


def module_name(path: Path) -> str:
    return path.relative_to(ROOT / "shared").with_suffix("").as_posix()


@cache
def imports(path: Path) -> frozenset[str]:
    """All modules that the file imports, also inside functions. `from a import b` yields `a` and `a.b`."""
    modules = set[str]()
    for node in ast.walk(ast.parse(path.read_text())):
        if isinstance(node, ast.Import):
            modules |= {alias.name for alias in node.names}
        elif isinstance(node, ast.ImportFrom):
            assert node.level == 0, f"{path}: a relative import"
            modules |= {node.module or "", *(f"{node.module}.{alias.name}" for alias in node.names)}
    return frozenset(modules)


def imports_package(path: Path, package: str) -> bool:
    return any(module == package or module.startswith(f"{package}.") for module in imports(path))


@pytest.mark.parametrize("package", AZURE)
def test_azure_sdk_is_imported_only_by_its_adapters(package: str) -> None:
    assert {module_name(path) for path in APP if imports_package(path, package)} <= AZURE[package]


def test_only_the_composition_root_reads_the_environment() -> None:
    def reads(path: Path) -> bool:
        attributes = {node.attr for node in ast.walk(ast.parse(path.read_text())) if isinstance(node, ast.Attribute)}
        return bool(attributes & {"environ", "environb", "getenv"}) or imports_package(path, "os.environ")

    assert {module_name(path) for path in APP if reads(path)} == {"services"}
    assert not reads(ROOT / "function_app.py")


def test_function_app_imports_only_web_services_and_authentication() -> None:
    modules = {module for module in imports(ROOT / "function_app.py") if module.startswith("shared.")}
    assert all(re.match(r"shared\.(web|services|access\.authentication)\b", module) for module in modules)


def test_function_app_imports_what_the_first_turn_needs_and_no_more() -> None:
    code = "import sys, gc, function_app; print(gc.isenabled(), *sys.modules)"
    enabled, *loaded = subprocess.check_output([sys.executable, "-c", code], cwd=ROOT, text=True).split()
    assert not NOT_AT_START & set(loaded)
    assert set(loaded) >= AT_START
    assert enabled == "True"


def test_handlers_that_are_imported_later_exist() -> None:
    source = (ROOT / "function_app.py").read_text()
    modules = dict(re.findall(r'^(\w+) = Lazily\("([\w.]+)"\)', source, re.MULTILINE))
    assert modules
    for name, module in modules.items():
        handlers = re.findall(rf"\b{name}\.(\w+)\)", source)
        assert handlers
        assert all(callable(getattr(import_module(module), handler)) for handler in handlers)


def test_terminal_client_imports_nothing_from_the_app() -> None:
    assert not any(
        imports_package(ROOT / "chat.py", package) for package in ("shared", "local", "tests", "function_app")
    )


def test_app_code_does_not_detect_tests() -> None:
    for path in APP:
        assert not re.search(r"pytest|unittest|sys\.modules", path.read_text()), path


@pytest.mark.parametrize("path", APP, ids=module_name)
def test_every_module_has_a_docstring(path: Path) -> None:
    assert ast.get_docstring(ast.parse(path.read_text()))


def test_layer_diagram_matches_the_code() -> None:
    """Run `python docs/layers.py` to update the picture."""
    assert (ROOT / "docs/layers.svg").read_text() == runpy.run_path(str(ROOT / "docs/layers.py"))["draw"]()
