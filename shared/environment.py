"""Environment variables, read one at a time. The environment is passed in as a mapping; nothing here reads
`os.environ`."""

from collections.abc import Callable, Mapping
from functools import partial
from typing import TypeVar

from shared.setting_values import SettingsError, UnresolvedReference, parse_seconds, parse_whole_number

T = TypeVar("T")


class Environment:
    """Reads one variable at a time. Each error is a SettingsError that names the variable."""

    def __init__(self, environ: Mapping[str, str]) -> None:
        self._environ = environ

    def text(self, name: str) -> str | None:
        """The stripped value; None if it is absent or blank. Raises UnresolvedReference."""
        value = self._environ.get(name, "").strip()
        if value.startswith("@Microsoft.KeyVault("):
            raise UnresolvedReference(
                name,
                "is a Key Vault reference that the platform could not resolve. Check that the app's identity may read"
                " the vault's secrets, and that keyVaultReferenceIdentity names this identity.",
            )
        return value or None

    def optional(self, name: str, parse: Callable[[str], T]) -> T | None:
        value = self.text(name)
        if value is None:
            return None
        try:
            return parse(value)
        except ValueError as error:
            raise SettingsError(name, f"is malformed: {error}") from error

    def required(self, name: str, parse: Callable[[str], T]) -> T:
        value = self.optional(name, parse)
        if value is None:
            raise SettingsError(name, "is not set. docs/settings.md describes it.")
        return value

    def parsed(self, name: str, parse: Callable[[str], T], default: T) -> T:
        value = self.optional(name, parse)
        return default if value is None else value

    def whole_number(self, name: str, default: int, *, minimum: int, maximum: int = 999_999_999) -> int:
        return self.parsed(name, partial(parse_whole_number, minimum=minimum, maximum=maximum), default)

    def seconds(self, name: str, default: float) -> float:
        return self.parsed(name, parse_seconds, default)
