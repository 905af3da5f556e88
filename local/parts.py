"""Decides which processes the settings require, and with which environment. Starts nothing.

A service that the developer has configured replaces the embedded one, which is then not started.
"""

import json
import os
import secrets
import socket
import sys
import urllib.error
import urllib.request
from collections.abc import Callable, Mapping
from dataclasses import dataclass, field
from functools import partial
from pathlib import Path

from local import azurite, e5, keys, model, people
from local.environment import SettingsError, layered

# The embedded models are free; their prices are those of small paid models, to show how costs add up.
PRICES = {model.NAME: {"input": 0.15, "cached_input": 0.075, "output": 0.60}, e5.NAME: {"input": 0.02}}
MODEL_SETTINGS = {
    "AZURE_OPENAI_MODEL": model.NAME,
    "AZURE_OPENAI_MAX_TOKENS": str(model.ANSWER_TOKENS),
    "AZURE_OPENAI_MAX_OUTPUT_TOKENS": str(model.SLOT_TOKENS),
    "CONTEXT_TOKENS": "3000",  # below model.SLOT_TOKENS, because token counts of new messages are estimates
    "SYSTEM_PROMPT": model.SYSTEM_PROMPT,
    "PRICES": json.dumps(PRICES),
    # The chat page and the terminal client show this beside the deployment's name.
    "REGION_NAME": "this machine, a 135M toy for trying the app out; make run prints how to use another model",
}
_WINDOWS = (
    'set "AZURE_OPENAI_ENDPOINT=URL" & set "AZURE_OPENAI_API_KEY=KEY" & set "AZURE_OPENAI_MODEL=NAME" & py -m local run'
)
_POSIX = "AZURE_OPENAI_ENDPOINT=URL AZURE_OPENAI_API_KEY=KEY AZURE_OPENAI_MODEL=NAME make run"
OTHER_MODEL = f"""\
  {_WINDOWS if os.name == "nt" else _POSIX}

  URL: http://127.0.0.1:11434/v1 (Ollama), http://127.0.0.1:8080/v1 (llama.cpp), https://RESOURCE.openai.azure.com
  (Azure OpenAI) or https://api.openai.com/v1 (OpenAI). KEY: a local server takes any; leave it empty for Azure OpenAI
  after az login. NAME: the model's or deployment's."""
TOY_MODEL = f"""\
The model is a toy of 135 million parameters for trying the app out: its answers are often wrong. To use another:

{OTHER_MODEL}"""
WITHOUT_MODEL = f"The embedded model is not available for this machine. Use another:\n\n{OTHER_MODEL}"

EMBEDDING_SETTINGS = {"AZURE_OPENAI_EMBEDDING_DEPLOYMENTS": e5.NAME}
OTHER_EMBEDDING_MODEL = """\
To use another, set AZURE_OPENAI_EMBEDDING_ENDPOINT to its URL, AZURE_OPENAI_EMBEDDING_API_KEY to its key and
AZURE_OPENAI_EMBEDDING_DEPLOYMENTS to its name."""
WITHOUT_EMBEDDING_MODEL = f"The embedding model is not available for this machine.\n{OTHER_EMBEDDING_MODEL}"
EMBEDDING_MODEL_EXITED = f"""\
requests for embeddings fail until make run is started again, everything else works.
After an illegal instruction: the model requires a processor with AVX2 and FMA.
{OTHER_EMBEDDING_MODEL}"""
NO_EMBEDDINGS = """\
The app serves no embeddings, because AZURE_OPENAI_ENDPOINT names another server. If that has an embedding model, set
AZURE_OPENAI_EMBEDDING_DEPLOYMENTS to its name."""

AUTH = ("AUTH_TENANT_ID", "AUTH_CLIENT_ID")
TO_SIGN_IN = f"""\
People sign in, without a password, as {", ".join(person.name for person in people.PEOPLE)} (administrator): on
the pages below, or at a terminal with {"py -m local chat -- login" if os.name == "nt" else "make chat ARGS=login"}."""
ISSUER_EXITED = "signing in fails, everything else works until the tokens expire."


@dataclass(frozen=True)
class Part:
    name: str
    command: list[str]
    is_up: Callable[[], bool]
    environment: Mapping[str, str]
    saves_on_stop: bool = False  # loses data if it is killed
    without_it: str | None = None  # what to say if it exits and the others go on; None: they are stopped


@dataclass
class Plan:
    """The parts in start order, the host last, and notes for the developer."""

    parts: list[Part] = field(default_factory=list)
    notes: list[str] = field(default_factory=list)
    client_key: str | None = None  # this machine's key, unless CLIENT_KEYS is set
    usage_key: str | None = None  # this machine's key, unless USAGE_KEYS is set
    limited: bool = False  # True if LIMITS is set
    people_sign_in: bool = False  # so that every request needs a person's token or a client key
    embeds: bool = False  # True if the embedded embedding model is served


def plan(file_settings: Mapping[str, str], environ: Mapping[str, str], state: Path, port: int) -> Plan:
    """Raises SettingsError if a model is neither configured nor installed, or if AUTH is neither 1 nor empty."""
    result, settings = Plan(), layered(file_settings, environ)
    local_keys = keys.local_keys(state / "keys.json")
    result.client_key = None if settings.get("CLIENT_KEYS") else local_keys["CLIENT_KEYS"]
    result.usage_key = None if settings.get("USAGE_KEYS") else local_keys["USAGE_KEYS"]
    result.limited = bool(settings.get("LIMITS"))
    defaults, embedded = _defaults(settings, state), dict[str, str]()
    result.people_sign_in = any(map(settings.get, AUTH))
    if environ.get("AUTH") and not result.people_sign_in:
        embedded |= _issuer(result, environ)
    if not (settings.get("TABLES_ENDPOINT") or settings.get("TABLES_CONNECTION_STRING")):
        embedded |= _azurite(result, environ, state)
    if not settings.get("AZURE_OPENAI_ENDPOINT"):
        defaults |= MODEL_SETTINGS
        embedded |= _model(result, environ)
        if not settings.get("AZURE_OPENAI_EMBEDDING_ENDPOINT"):
            embedded |= _embedding_model(result, environ, defaults)
    elif not settings.get("AZURE_OPENAI_EMBEDDING_DEPLOYMENTS") and not settings.get("AZURE_OPENAI_DEPLOYMENTS"):
        result.notes.append(NO_EMBEDDINGS)
    # An embedded part sets its URL and key together, so that a key for another server is never sent to it.
    environment = layered(defaults, file_settings, environ, embedded)
    host = [sys.executable, "-m", "local.host", "--port", str(port)]
    result.parts.append(Part("host", host, lambda: healthy(f"http://127.0.0.1:{port}/api/health"), environment))
    return result


def _defaults(settings: Mapping[str, str], state: Path) -> dict[str, str]:
    defaults = {"SUMMARY_SCHEDULE": "0 0 6 * * *", "REGION_NAME": "this machine"}
    if not any(settings.get(name) for name in ("ACS_ENDPOINT", "ACS_CONNECTION_STRING", "SMTP_URL")):
        defaults |= {"OUTBOX_DIR": str(state / "outbox"), "SUMMARY_RECIPIENTS": "you@localhost"}
    for setting, key in keys.local_keys(state / "keys.json").items():
        defaults[setting] = keys.line("local", key)
    return defaults


def _issuer(result: Plan, environ: Mapping[str, str]) -> dict[str, str]:
    if environ["AUTH"] != "1":
        raise SettingsError(
            f"AUTH must be 1 here, or not set: people then sign in at a local issuer, not {environ['AUTH']!r}"
        )
    result.people_sign_in = True
    result.notes.append(TO_SIGN_IN)
    port = free_port()
    command = [sys.executable, "-m", "local.issuer", "--port", str(port)]
    is_up = partial(healthy, f"http://127.0.0.1:{port}/health")
    result.parts.append(Part("issuer", command, is_up, environ, without_it=ISSUER_EXITED))
    return {
        "AUTH_TENANT_ID": people.TENANT_ID,
        "AUTH_CLIENT_ID": people.CLIENT_ID,
        "AUTH_AUTHORITY": f"http://127.0.0.1:{port}",
    }


def _azurite(result: Plan, environ: Mapping[str, str], state: Path) -> dict[str, str]:
    port = free_port()
    command = azurite.command(port, state / "azurite-data")
    result.parts.append(Part("Azurite", command, lambda: azurite.answers(port), environ, saves_on_stop=True))
    return {"TABLES_CONNECTION_STRING": azurite.connection_string(port)}


def _model(result: Plan, environ: Mapping[str, str]) -> dict[str, str]:
    if not model.installed():
        raise SettingsError(WITHOUT_MODEL)
    result.notes.append(TOY_MODEL)
    port = free_port()
    command = [sys.executable, "-m", "local.model", "--port", str(port)]
    result.parts.append(Part("model", command, lambda: healthy(f"http://127.0.0.1:{port}/health"), environ))
    return {"AZURE_OPENAI_ENDPOINT": f"http://127.0.0.1:{port}/v1", "AZURE_OPENAI_API_KEY": "local"}


def _embedding_model(result: Plan, environ: Mapping[str, str], defaults: dict[str, str]) -> dict[str, str]:
    if not e5.installed():
        result.notes.append(WITHOUT_EMBEDDING_MODEL)
        return {}
    defaults |= EMBEDDING_SETTINGS
    result.embeds = True
    port = free_port()
    command = [sys.executable, "-m", "local.embedding_model", "--port", str(port)]
    is_up = partial(healthy, f"http://127.0.0.1:{port}/health")
    result.parts.append(Part("embedding model", command, is_up, environ, without_it=EMBEDDING_MODEL_EXITED))
    url = f"http://127.0.0.1:{port}/v1"
    return {"AZURE_OPENAI_EMBEDDING_ENDPOINT": url, "AZURE_OPENAI_EMBEDDING_API_KEY": "local"}


def free_port() -> int:
    """A free port below the ephemeral ports of Linux, macOS and Windows, so that no outgoing connection takes it before
    the server does."""
    while port_error(port := 20_000 + secrets.randbelow(12_000)):
        pass
    return port


def port_error(port: int) -> OSError | None:
    """Why no server can listen on this port of 127.0.0.1, or None."""
    with socket.socket() as probe:
        if sys.platform != "win32":
            probe.setsockopt(socket.SOL_SOCKET, socket.SO_REUSEADDR, 1)  # a closing connection does not count
        try:
            probe.bind(("127.0.0.1", port))
        except OSError as error:
            return error
    return None


def healthy(url: str) -> bool:
    """Whether a GET returns 200; bypasses proxies."""
    return _status(url) == 200


def configured(url: str) -> bool:
    """Whether a GET of a route for callers with a key shows that the settings are valid: callers are refused after
    the settings are read."""
    return _status(url) in (200, 401)


def _status(url: str) -> int | None:
    """None without a response."""
    direct = urllib.request.build_opener(urllib.request.ProxyHandler({}))
    try:
        with direct.open(url, timeout=2) as response:
            return int(response.status)
    except urllib.error.HTTPError as error:
        return error.code
    except OSError:
        return None
