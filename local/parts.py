"""What has to run for these settings, and the environment that the app is then given.

Decides, and starts nothing. What the developer has set wins over an embedded part; that part is then not started.
"""

import json
import secrets
import socket
import sys
import urllib.error
import urllib.request
from collections.abc import Callable, Mapping
from dataclasses import dataclass, field
from pathlib import Path

from local import azurite, keys, model
from local.environment import layered

# A small model follows a short instruction best. The prices are those of a small paid model, so that a newcomer sees
# how cost accumulates; the embedded one costs nothing.
MODEL_SETTINGS = {
    "AZURE_OPENAI_MODEL": model.NAME,
    "AZURE_OPENAI_MAX_TOKENS": str(model.ANSWER_TOKENS),
    "AZURE_OPENAI_MAX_OUTPUT_TOKENS": str(model.SLOT_TOKENS),
    "CONTEXT_TOKENS": "3000",  # below model.SLOT_TOKENS, since what was not measured yet is estimated
    "SYSTEM_PROMPT": "You are a helpful assistant. Answer in one or two short sentences.",
    "PRICES": json.dumps({model.NAME: {"input": 0.15, "cached_input": 0.075, "output": 0.60}}),
}
WITHOUT_MODEL = (
    "There is no embedded model for this machine. Set AZURE_OPENAI_ENDPOINT and, unless you sign in with an identity,\n"
    "AZURE_OPENAI_API_KEY, in the environment or in local.settings.json; any OpenAI-compatible server will do."
)


@dataclass(frozen=True)
class Part:
    name: str
    command: list[str]
    answers: Callable[[], bool]
    environment: Mapping[str, str]
    saves: bool = False  # whether it holds things that it writes down when it is asked to end


@dataclass
class Plan:
    """The parts in the order of starting, the host last, and what the developer should be told."""

    parts: list[Part] = field(default_factory=list)
    notes: list[str] = field(default_factory=list)
    client_key: str | None = None  # this machine's own, where no others are set
    usage_key: str | None = None  # likewise


def plan(own: Mapping[str, str], process: Mapping[str, str], state: Path, port: int) -> Plan:
    """`own` are the settings file's values, `process` the process's environment."""
    result, settings = Plan(), layered(own, process)
    own_keys = keys.local_keys(state / "keys.json")
    result.client_key = None if settings.get("CLIENT_KEYS") else own_keys["CLIENT_KEYS"]
    result.usage_key = None if settings.get("USAGE_KEYS") else own_keys["USAGE_KEYS"]
    defaults, embedded = _unconditional(settings, state), dict[str, str]()
    if not (settings.get("TABLES_ENDPOINT") or settings.get("TABLES_CONNECTION_STRING")):
        embedded |= _azurite(result, process, state)
    if not settings.get("AZURE_OPENAI_ENDPOINT"):
        defaults |= MODEL_SETTINGS
        embedded |= _model(result, process)
    # Where a part is embedded its address and key go together: a key that was meant for another server is not sent.
    environment = layered(defaults, own, process, embedded)
    host = [sys.executable, "-m", "local.host", "--port", str(port)]
    result.parts.append(Part("host", host, lambda: healthy(f"http://127.0.0.1:{port}/api/health"), environment))
    return result


def _unconditional(settings: Mapping[str, str], state: Path) -> dict[str, str]:
    defaults = {"SUMMARY_SCHEDULE": "0 0 6 * * *", "REGION_NAME": "this machine"}
    if not any(settings.get(way) for way in ("ACS_ENDPOINT", "ACS_CONNECTION_STRING", "SMTP_URL")):
        defaults |= {"OUTBOX_DIR": str(state / "outbox"), "SUMMARY_RECIPIENTS": "you@localhost"}
    for setting, key in keys.local_keys(state / "keys.json").items():
        defaults[setting] = keys.line("local", key)
    return defaults


def _azurite(result: Plan, process: Mapping[str, str], state: Path) -> dict[str, str]:
    port = free_port()
    command = azurite.command(port, state / "azurite-data")
    result.parts.append(Part("Azurite", command, lambda: azurite.answers(port), process, saves=True))
    return {"TABLES_CONNECTION_STRING": azurite.connection_string(port)}


def _model(result: Plan, process: Mapping[str, str]) -> dict[str, str]:
    if not model.installed():
        result.notes.append(WITHOUT_MODEL)
        return {}
    port = free_port()
    command = [sys.executable, "-m", "local.model", "--port", str(port)]
    result.parts.append(Part("model", command, lambda: healthy(f"http://127.0.0.1:{port}/health"), process))
    return {"AZURE_OPENAI_ENDPOINT": f"http://127.0.0.1:{port}/v1", "AZURE_OPENAI_API_KEY": "local"}


def free_port() -> int:
    """A port that is free, below those that Linux, macOS and Windows give to outgoing connections, one of which could
    take it before a server does."""
    while taken(port := 20_000 + secrets.randbelow(12_000)):
        pass
    return port


def taken(port: int) -> bool:
    with socket.socket() as probe:
        if sys.platform != "win32":
            probe.setsockopt(socket.SOL_SOCKET, socket.SO_REUSEADDR, 1)  # what is closing is not taken
        try:
            probe.bind(("127.0.0.1", port))
        except OSError:
            return True
    return False


def healthy(url: str) -> bool:
    """Whether a GET is answered 200, without any proxy that the machine may have."""
    direct = urllib.request.build_opener(urllib.request.ProxyHandler({}))
    try:
        with direct.open(url, timeout=2) as response:
            return bool(response.status == 200)
    except (OSError, urllib.error.URLError):
        return False
