"""Stands in for msal-extensions where a test machine has no keystore: a folder on PYTHONPATH of chat.py."""

from pathlib import Path


class Persistence:
    """https://github.com/AzureAD/microsoft-authentication-extensions-for-python: `location` is a file that a save
    touches; the content is in the keystore. A file named `locked` keeps it from being read."""

    def __init__(self, location: str) -> None:
        self._location = Path(location)
        self._keystore = self._location.with_name("keystore")

    def save(self, content: str) -> None:
        self._keystore.write_text(content)
        self._location.touch()

    def load(self) -> str:
        if self._location.with_name("locked").exists():
            raise OSError("the keystore is locked")
        return self._keystore.read_text()


def build_encrypted_persistence(location: str) -> Persistence:
    return Persistence(location)
