"""Random keys, and their hashes, which is all that the app is ever given. Stores only the keys of this machine."""

import hashlib
import json
import os
import secrets
from pathlib import Path


def new_key() -> str:
    """256 random bits, so its bare SHA-256 can be published: there is nothing to guess."""
    return secrets.token_urlsafe(32)


def line(name: str, key: str) -> str:
    return f"{name}={hashlib.sha256(key.encode()).hexdigest()}"


def local_keys(path: Path) -> dict[str, str]:
    """This machine's own key for each setting that lists keys, made on the first call."""
    try:
        kept = json.loads(path.read_text())
    except (OSError, ValueError):
        kept = {}
    names = ("CLIENT_KEYS", "USAGE_KEYS")
    if set(kept) != set(names):
        kept = {name: new_key() for name in names}
        _write_privately(path, json.dumps(kept, indent=2))
    return {name: str(key) for name, key in kept.items()}


def _write_privately(path: Path, text: str) -> None:
    path.parent.mkdir(parents=True, exist_ok=True)
    path.unlink(missing_ok=True)
    with os.fdopen(os.open(path, os.O_WRONLY | os.O_CREAT | os.O_EXCL, 0o600), "w") as file:
        file.write(text)
