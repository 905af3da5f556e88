"""Random keys and their hashes; the app receives only the hashes. Only the keys of this machine are stored."""

import hashlib
import json
import os
import secrets
from pathlib import Path


def new_key() -> str:
    """256 random bits, so that an unsalted SHA-256 of it cannot be reversed by guessing."""
    return secrets.token_urlsafe(32)


def line(name: str, key: str) -> str:
    return f"{name}={hashlib.sha256(key.encode()).hexdigest()}"


def local_keys(path: Path) -> dict[str, str]:
    """This machine's key for each setting that lists keys, generated on the first call."""
    try:
        stored = json.loads(path.read_text())
    except (OSError, ValueError):
        stored = {}
    names = ("CLIENT_KEYS", "USAGE_KEYS")
    if set(stored) != set(names):
        stored = {name: new_key() for name in names}
        _write_privately(path, json.dumps(stored, indent=2))
    return {name: str(key) for name, key in stored.items()}


def _write_privately(path: Path, text: str) -> None:
    path.parent.mkdir(parents=True, exist_ok=True)
    path.unlink(missing_ok=True)
    with os.fdopen(os.open(path, os.O_WRONLY | os.O_CREAT | os.O_EXCL, 0o600), "w") as file:
        file.write(text)
