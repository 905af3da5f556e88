"""The settings of the app: embedded defaults < local.settings.json < environment variables.

The last two have the same order as in `func start`.
"""

import json
from collections.abc import Mapping
from pathlib import Path


class SettingsError(Exception):
    """An invalid settings file or a missing setting; the message names the place and the remedy."""


def layered(*layers: Mapping[str, str]) -> dict[str, str]:
    """Merge the layers; later ones win. An empty value counts as absent and overrides nothing."""
    merged: dict[str, str] = {}
    for layer in layers:
        merged.update({name: value for name, value in layer.items() if value})
    return merged


def settings_file(path: Path, *, optional: bool = True) -> dict[str, str]:
    """The `Values` of a local.settings.json. A missing file is empty if it is optional. Names that begin with // are
    comments."""
    if optional and not path.exists():
        return {}
    values = _document(path).get("Values", {})
    if not isinstance(values, dict):
        raise SettingsError(f'{path.name}: "Values" must be an object of strings')
    for name, value in values.items():
        if not isinstance(value, str):
            raise SettingsError(f'{path.name}: the value of "{name}" must be a string: put {value!r} in quotes')
    return {name: value for name, value in values.items() if not name.startswith("//")}


def _document(path: Path) -> dict[str, object]:
    try:
        document = json.loads(path.read_text(encoding="utf-8-sig"))
    except (OSError, UnicodeDecodeError) as error:
        raise SettingsError(f"cannot read {path.name}: {error}") from error
    except json.JSONDecodeError as error:
        raise SettingsError(
            f"{path.name} is not valid JSON: {error.msg} (line {error.lineno}, column {error.colno})"
        ) from error
    if not isinstance(document, dict):
        raise SettingsError(f'{path.name} must be a JSON object that contains "Values"')
    return document
