"""Every ChatError declares a code and a status, and the OpenAPI document lists that status."""

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


def published_statuses() -> set[int]:
    """The statuses that the OpenAPI document lists for any operation."""
    operations = [operation for path in document()["paths"].values() for operation in path.values()]
    return {int(status) for operation in operations for status in operation["responses"] if status.isdecimal()}


def test_errors_of_every_layer_are_collected() -> None:
    modules = {error.__module__ for error in ERRORS}
    assert {"shared.errors", "shared.model.upstream_errors"} <= modules
    assert len(ERRORS) > 15


@BY_NAME
def test_error_declares_status_and_code(error: type[ChatError]) -> None:
    """In its own class or a base class other than ChatError, because the defaults of ChatError mean a bug."""
    declared = [parent for parent in error.__mro__ if issubclass(parent, ChatError) and parent is not ChatError]
    assert any("status" in vars(parent) for parent in declared)
    assert any("code" in vars(parent) for parent in declared)
    assert 400 <= error.status <= 599
    assert error.code != ChatError.code == "internal_error"


@BY_NAME
def test_error_status_is_in_the_openapi_document(error: type[ChatError]) -> None:
    """Except 405: it answers requests that are no operation."""
    assert error.status in published_statuses() | {405}


def test_internal_error_500_is_in_the_openapi_document() -> None:
    assert ChatError.status == 500
    assert 500 in published_statuses()
