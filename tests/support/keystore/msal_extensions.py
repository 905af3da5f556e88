"""Stands in for msal-extensions where a test machine has no keystore: a folder on PYTHONPATH of chat.py."""

from pathlib import Path


class Persistence:
    """https://github.com/AzureAD/microsoft-authentication-extensions-for-python: `location` is a file that a save
    touches; the content is in the keystore."""

    def __init__(self, location: str) -> None:
        self._location = Path(location)
        self._keystore = self._location.with_name("keystore")

    def save(self, content: str) -> None:
        self._keystore.write_text(content)
        self._location.touch()

    def load(self) -> str:
        return self._keystore.read_text()


def build_encrypted_persistence(location: str) -> Persistence:
    return Persistence(location)
