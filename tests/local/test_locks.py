"""The locked requirements: complete, with hashes, and consistent with their .in files."""

import json
import re
from collections.abc import Iterator
from pathlib import Path

import pytest
from packaging.requirements import Requirement
from packaging.utils import canonicalize_name

from local.locks import LOCKS
from local.packages import AZURITE, NODE_CLIENTS, NodePackages
from local.places import ROOT

# The embedded model and Node have environments and versions of their own.
OF_THE_APP = [name for name in LOCKS if "model" not in name and "azurite" not in name]


def direct(path: Path) -> Iterator[Requirement]:
    """The requirements of an .in file and of those that it includes."""
    for line in path.read_text().splitlines():
        if line.startswith("-r "):
            yield from direct(path.parent / line.removeprefix("-r "))
        elif line and not line.startswith("#"):
            yield Requirement(line)


def locked(name: str) -> list[tuple[Requirement, int]]:
    """The requirements of a lock, with the number of their hashes."""
    text = re.sub(r"^#.*\n", "", (ROOT / f"{name}.txt").read_text(), flags=re.MULTILINE)
    entries = re.split(r"\n(?=[A-Za-z])", text)
    return [(Requirement(entry.split("\\")[0]), entry.count("--hash=sha256:")) for entry in entries]


@pytest.mark.parametrize("name", LOCKS)
def test_every_locked_release_is_exact_and_has_hashes(name: str) -> None:
    for requirement, hashes in locked(name):
        assert [clause.operator for clause in requirement.specifier] == ["=="], requirement
        assert hashes > 0, requirement


@pytest.mark.parametrize("name", LOCKS)
def test_lock_satisfies_its_in_file(name: str) -> None:
    """Run `make lock` after a change of an .in file."""
    versions: dict[str, list[str]] = {}
    for requirement, _ in locked(name):
        versions.setdefault(canonicalize_name(requirement.name), []).append(
            str(requirement.specifier).removeprefix("==")
        )
    for requirement in direct(ROOT / f"{name}.in"):
        fitting = [
            version
            for version in versions.get(canonicalize_name(requirement.name), [])
            if version in requirement.specifier
        ]
        assert fitting or (requirement.marker and not requirement.marker.evaluate({"python_version": "3.13"})), (
            requirement
        )


@pytest.mark.parametrize("name", OF_THE_APP)
def test_all_locks_hold_the_same_release_of_a_package(name: str) -> None:
    everything = {str(requirement.name) + str(requirement.specifier) for requirement, _ in locked("requirements-dev")}
    other = [str(requirement.name) + str(requirement.specifier) for requirement, _ in locked(name)]
    assert [
        release for release in other if release not in everything and "azure-functions-runtime" not in release
    ] == []


def test_linters_are_pinned_exactly() -> None:
    """So that an update of the lock does not bring new lint rules."""
    pins = {requirement.name: str(requirement.specifier) for requirement in direct(ROOT / "requirements-dev.in")}
    assert pins["ruff"].startswith("==")
    assert pins["mypy"].startswith("==")


@pytest.mark.parametrize("packages", [AZURITE, NODE_CLIENTS], ids=lambda packages: packages.source)
def test_locked_node_packages_have_hashes_and_name_no_registry(packages: NodePackages) -> None:
    lock = json.loads((ROOT / packages.source / "package-lock.json").read_text())
    assert lock["packages"].pop("")["dependencies"]
    for entry in lock["packages"].values():
        assert entry["integrity"].startswith("sha512-")
        assert "resolved" not in entry
