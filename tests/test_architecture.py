"""Imports run one way. The map in shared/__init__.py says which; this reads the imports and holds it."""

import ast
import re
from collections.abc import Iterator
from functools import cache
from graphlib import TopologicalSorter
from pathlib import Path

import pytest

import shared

ROOT = Path(__file__).resolve().parent.parent
LOCAL = sorted(ROOT.glob("local/*.py"))
KNOWN_BY = {  # what only some rooms may know
    "azure.communication": {"communication_services"},
    "azure.core": {"tables", "mail", "communication_services", "identity"},
    "azure.data": {"tables", "services"},
    "azure.functions": set[str](),
    "azure.monitor": {"tracing"},
    "azure.identity": {"identity"},
    "azurefunctions": {"web", "api", "usage", "compatible", "static"},
    "fastapi": set[str](),
    "genai_prices": {"pricing"},
    "httpx": set[str](),
    "httpx2": {"endpoint"},
    "jinja2": {"letter"},
    "opentelemetry": {"tracing"},
    "openai": {"endpoint"},
    "pydantic": {"contract", "problems", "answers", "openapi", "web"},
    "starlette": {"web"},
    "tenacity": {"lease", "model"},
}
OUTSIDE = ("azure", "azurefunctions", "fastapi", "httpx", "httpx2", "openai", "starlette", "aiohttp", "aiosmtplib")


def the_map() -> dict[str, list[str]]:
    """The groups of rooms, in order, by the first word of their headings."""
    groups: dict[str, list[str]] = {}
    for block in (shared.__doc__ or "").split("\n\n")[1:]:
        heading, *lines = block.splitlines()
        rooms = [re.fullmatch(r" {4}(\w+) +\S.*", line) for line in lines if line]
        assert all(rooms), block
        groups[heading.partition(":")[0]] = [room[1] for room in rooms if room]
    return groups


GROUPS = the_map()
ROOMS = [room for rooms in GROUPS.values() for room in rooms]


@cache
def imports(path: Path) -> frozenset[str]:
    """Every module that the file names, wherever in it: `from a import b` gives a and a.b."""
    return frozenset(_imports(path))


def _imports(path: Path) -> Iterator[str]:
    for node in ast.walk(ast.parse(path.read_text())):
        if isinstance(node, ast.Import):
            yield from (alias.name for alias in node.names)
        elif isinstance(node, ast.ImportFrom):
            assert node.level == 0, f"{path}: a relative import"
            module = node.module or ""
            yield module
            yield from (f"{module}.{alias.name}" for alias in node.names)


def room_path(room: str) -> Path:
    return ROOT / "shared" / f"{room}.py"


def rooms_known_to(path: Path) -> set[str]:
    return {name.split(".")[1] for name in imports(path) if name.startswith("shared.")} & set(ROOMS)


def knows(path: Path, package: str) -> bool:
    return any(name == package or name.startswith(f"{package}.") for name in imports(path))


def test_the_map_names_every_room_once_and_no_other() -> None:
    assert sorted(ROOMS) == sorted(path.stem for path in ROOT.glob("shared/*.py") if path.stem != "__init__")


@pytest.mark.parametrize("room", ROOMS)
def test_a_room_imports_only_rooms_of_its_own_group_and_of_those_above(room: str) -> None:
    group = next(name for name, rooms in GROUPS.items() if room in rooms)
    names = list(GROUPS)
    allowed = {other for name in names[: names.index(group) + 1] for other in GROUPS[name]}
    assert rooms_known_to(room_path(room)) <= allowed


def test_no_rooms_import_each_other_in_a_circle() -> None:
    TopologicalSorter({room: rooms_known_to(room_path(room)) for room in ROOMS}).prepare()


def test_adapters_know_of_the_heart_its_protocols_alone() -> None:
    for room in GROUPS["Adapters"]:
        assert rooms_known_to(room_path(room)) & set(GROUPS["The heart"]) <= {"ports"}, room


@pytest.mark.parametrize("room", [*GROUPS["Values"], *GROUPS["Pure rooms"], *GROUPS["The heart"]])
def test_values_pure_rooms_and_the_heart_know_no_service_and_no_http(room: str) -> None:
    assert [package for package in OUTSIDE if knows(room_path(room), package)] == []


@pytest.mark.parametrize("package", KNOWN_BY)
def test_a_package_is_known_only_to_the_rooms_that_are_there_for_it(package: str) -> None:
    assert {room for room in ROOMS if knows(room_path(room), package)} <= KNOWN_BY[package]


def test_only_the_composition_root_reads_the_environment() -> None:
    def reads(path: Path) -> bool:
        words = {node.attr for node in ast.walk(ast.parse(path.read_text())) if isinstance(node, ast.Attribute)}
        return bool(words & {"environ", "environb", "getenv"}) or any(
            name.startswith("os.environ") for name in imports(path)
        )

    assert {room for room in ROOMS if reads(room_path(room))} == {"services"}
    assert not reads(ROOT / "function_app.py")


def test_the_triggers_know_only_the_edge() -> None:
    path = ROOT / "function_app.py"
    assert rooms_known_to(path) <= set(GROUPS["The edge"]) - {"services"}
    assert {name.split(".")[0] for name in imports(path)} <= {"azure", "azurefunctions", "shared"}


@pytest.mark.parametrize("path", LOCAL, ids=lambda path: path.stem)
def test_what_runs_on_a_developers_machine_knows_nothing_of_the_app(path: Path) -> None:
    assert not any(knows(path, package) for package in ("shared", "tests", "function_app"))


def test_the_terminal_client_speaks_http_alone() -> None:
    assert not any(knows(ROOT / "chat.py", package) for package in ("shared", "local", "tests", "function_app"))


@pytest.mark.parametrize("room", ROOMS)
def test_the_app_knows_nothing_of_the_developers_machine_or_the_tests(room: str) -> None:
    assert not any(knows(room_path(room), package) for package in ("local", "tests", "function_app", "benchmarks"))


def test_no_room_looks_whether_it_is_under_test() -> None:
    for room in ROOMS:
        assert not re.search(r"pytest|unittest|sys\.modules", room_path(room).read_text()), room


@pytest.mark.parametrize("room", ROOMS)
def test_every_room_says_what_it_is_for(room: str) -> None:
    assert ast.get_docstring(ast.parse(room_path(room).read_text()))
