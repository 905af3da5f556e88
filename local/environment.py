"""The settings that the app is started with: embedded defaults < local.settings.json < the process's environment.

The last two rank as `func start` ranks them. Knows nothing of what a setting means.
"""

import json
from collections.abc import Mapping
from pathlib import Path


class SettingsError(Exception):
    """A settings file that cannot be used; the message says where and what to do."""


def layered(*layers: Mapping[str, str]) -> dict[str, str]:
    """Later layers win. An empty value counts as absent, so it hides nothing below it."""
    merged: dict[str, str] = {}
    for layer in layers:
        merged.update({name: value for name, value in layer.items() if value})
    return merged


def settings_file(path: Path, *, optional: bool = True) -> dict[str, str]:
    """The `Values` of a local.settings.json; empty where there is none and it is optional. A name that begins with //
    is a comment."""
    if optional and not path.exists():
        return {}
    values = _document(path).get("Values", {})
    if not isinstance(values, dict):
        raise SettingsError(f'{path.name}: "Values" must be an object of strings')
    for name, value in values.items():
        if not isinstance(value, str):
            raise SettingsError(f'{path.name}: the value of "{name}" must be a string: put {value!r} into quotes')
    return {name: value for name, value in values.items() if not name.startswith("//")}


def _document(path: Path) -> dict[str, object]:
    try:
        document = json.loads(path.read_text(encoding="utf-8-sig"))
    except (OSError, UnicodeDecodeError) as error:
        raise SettingsError(f"{path.name} cannot be read: {error}") from error
    except json.JSONDecodeError as error:
        raise SettingsError(
            f"{path.name} is not JSON: {error.msg} (line {error.lineno}, column {error.colno})"
        ) from error
    if not isinstance(document, dict):
        raise SettingsError(f'{path.name} must be an object with "Values" in it')
    return document
