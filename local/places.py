"""Paths in a checkout."""

import os
import sys
from pathlib import Path

ROOT = Path(__file__).resolve().parent.parent
HERE = ROOT / "local"
VENV = ROOT / ".venv"
STATE = ROOT / ".local"
AZURITE = STATE / "azurite"
SETTINGS = ROOT / "local.settings.json"


def venv_python() -> Path:
    return VENV / ("Scripts/python.exe" if os.name == "nt" else "bin/python")


def inside_venv() -> bool:
    return Path(sys.prefix).resolve() == VENV.resolve()


def shown(path: Path) -> str:
    """Relative to the checkout where possible."""
    return str(path.relative_to(ROOT)) if path.is_relative_to(ROOT) else str(path)
