"""The names of the environment variables that the settings read."""

from typing import Any

from shared.settings import Settings

MINIMAL = {"AZURE_OPENAI_ENDPOINT": "https://name.openai.azure.com", "TABLES_ENDPOINT": "https://name.table.example"}
"""The required variables."""


class RecordingEnvironment(dict[str, str]):
    """Records the name of each variable that is read."""

    def __init__(self, environ: dict[str, str]) -> None:
        super().__init__(environ)
        self.names: set[str] = set()

    def get(self, name: str, default: Any = None) -> Any:
        self.names.add(name)
        return super().get(name, default)


def names_read() -> set[str]:
    environ = RecordingEnvironment(MINIMAL)
    Settings.from_env(environ)
    return environ.names
