"""Every error that a caller may see has a code and a status of its own, which the published contract lists."""

import importlib
import pkgutil

import pytest

import shared
from shared.errors import ChatError
from shared.web.openapi import document


def subclasses(parent: type[ChatError]) -> set[type[ChatError]]:
    children = set(parent.__subclasses__())
    return children.union(*map(subclasses, children))


def all_errors() -> list[type[ChatError]]:
    for module in pkgutil.walk_packages(shared.__path__, "shared."):
        importlib.import_module(module.name)
    return sorted(subclasses(ChatError), key=lambda error: error.__name__)


ERRORS = all_errors()
BY_NAME = pytest.mark.parametrize("error", ERRORS, ids=[error.__name__ for error in ERRORS])


def published() -> set[int]:
    """Every status that some operation of the contract lists."""
    operations = [operation for path in document()["paths"].values() for operation in path.values()]
    return {int(status) for operation in operations for status in operation["responses"] if status.isdecimal()}


def test_errors_of_every_layer_are_found() -> None:
    modules = {error.__module__ for error in ERRORS}
    assert {"shared.errors", "shared.model.upstream_errors"} <= modules
    assert len(ERRORS) > 15


@BY_NAME
def test_an_error_names_its_status_and_code(error: type[ChatError]) -> None:
    """Itself, or by the error that it is a kind of: what ChatError has is for bugs."""
    declared = [parent for parent in error.__mro__ if issubclass(parent, ChatError) and parent is not ChatError]
    assert any("status" in vars(parent) for parent in declared)
    assert any("code" in vars(parent) for parent in declared)
    assert 400 <= error.status <= 599
    assert error.code != ChatError.code == "internal_error"


@BY_NAME
def test_an_errors_status_is_published(error: type[ChatError]) -> None:
    assert error.status in published()


def test_a_bug_is_published_too() -> None:
    assert ChatError.status == 500
    assert 500 in published()
