"""From the start of a new process to the first byte of its first chat turn: this app over the SDKs alone.

`python -m benchmarks.cold_start [--rounds 9]`. It compares two packages of an app on Azure Functions: the files that
azd deploys, with the template's settings (list prices, a limit), and bare_app.py, a chat as a tutorial writes it, which
imports openai, azure-identity, azure-data-tables, azure.functions and the fastapi extension at its top. Its route
queries the session's messages, writes the new one, and streams the model's answer on. Each process is Python 3.13 with
the platform's own worker library, which imports the package, indexes its functions and hands one request to it
(tests/support/runtime_host.py).

Both sign in with a fake managed identity, as on App Service, and reach Azurite, which checks the token, and a fake
model service over TLS. Their tables exist. Their bytecode is compiled, except of the app in the row "source only": a
platform that mounts the package read-only can't store it. The packages take turns in each round; medians over the
rounds. CPU time is that of the new process.
"""

import argparse
import json
import os
import resource
import shutil
import subprocess
import sys
import tempfile
import time
from collections.abc import Iterator, Mapping
from contextlib import ExitStack, contextmanager
from dataclasses import dataclass
from itertools import count
from pathlib import Path
from statistics import median

import certifi
import trustme
from azure.data.tables import TableServiceClient

from benchmarks.machine import Usage, cpu_seconds, server
from local import azurite
from local.parts import free_port
from local.places import ROOT
from tests.support import platform_runtime
from tests.support.app_service import AppService

LIMITS = {"total": {"usd_per_day": 1000}}
APP, BARE, SOURCE_ONLY = "this app", "the SDKs alone", "this app, source only"
_sessions = count()


@dataclass(frozen=True)
class Start:
    """Seconds since the process was started, and the process's CPU seconds: until its functions are indexed, and until
    the first byte."""

    indexed: float
    indexed_cpu: float
    first_byte: float
    first_byte_cpu: float


@contextmanager
def services(folder: Path) -> Iterator[tuple[dict[str, str], tuple[int, ...]]]:
    """Storage, model and identity; yields the app's settings and the process IDs of storage and model."""
    authority = trustme.CA()
    issued = authority.issue_cert("127.0.0.1")
    certificate, key, trusted = (folder / name for name in ("certificate.pem", "key.pem", "trusted.pem"))
    issued.cert_chain_pems[0].write_to_path(certificate)
    issued.private_key_pem.write_to_path(key)
    trusted.write_bytes(Path(certifi.where()).read_bytes() + authority.cert_pem.bytes())  # as long as a usual one
    storage, model = free_port(), free_port()
    tables = [*azurite.command(storage), "--cert", str(certificate), "--key", str(key), "--oauth", "basic"]
    served = ["uvicorn", "--factory", "benchmarks.upstream:model", "--port", str(model)]
    completions = [sys.executable, "-m", *served, "--ssl-certfile", str(certificate), "--ssl-keyfile", str(key)]
    with (
        AppService() as identity,
        server(tables, storage) as tables_pid,
        server(completions, model) as model_pid,
    ):
        connection = azurite.connection_string(storage).replace("http", "https")
        with TableServiceClient.from_connection_string(connection, connection_verify=str(trusted)) as client:
            client.create_table("messages")
        settings = {
            **identity.environ,
            "PATH": os.environ["PATH"],
            "AZURE_CLIENT_ID": "11111111-2222-3333-4444-555555555555",
            "SSL_CERT_FILE": str(trusted),
            "AZURE_OPENAI_ENDPOINT": f"https://127.0.0.1:{model}/openai/v1/",
            "AZURE_OPENAI_MODEL": "gpt-5.4-mini",
            "LIMITS": json.dumps(LIMITS),
            "TABLES_ENDPOINT": f"https://127.0.0.1:{storage}/{azurite.ACCOUNT}",
            "SUMMARY_SCHEDULE": "0 0 6 * * *",
        }
        yield settings, (tables_pid, model_pid)


def start(interpreter: Path, package: Path, environ: Mapping[str, str]) -> Start:
    """Starts a process, sends one turn to it and ends it."""
    host, log = [interpreter, ROOT / "tests/support/runtime_host.py"], package.with_name("log")
    began = time.perf_counter()
    with (
        log.open("w") as errors,
        subprocess.Popen(  # noqa: S603
            host, cwd=package, env=environ, stdin=subprocess.PIPE, stdout=subprocess.PIPE, stderr=errors
        ) as process,
        ExitStack() as stack,
    ):
        stack.callback(process.kill)
        assert process.stdin  # noqa: S101 - for mypy
        assert process.stdout  # noqa: S101
        turn = {"message": "Count to ten.", "session_id": f"s{os.getpid()}-{next(_sessions)}", "stream": True}
        command = {"id": "turn", "function": "chat", "method": "POST", "path": "/api/chat", "body": turn}
        process.stdin.write(json.dumps(command).encode() + b"\n")
        process.stdin.flush()
        times: dict[str, tuple[float, float]] = {}
        answer: dict[str, object] = {}
        while "end" not in answer:
            answer = json.loads(process.stdout.readline() or b'{"failed": "no answer"}')
            if "failed" in answer or answer.get("status", 200) != 200:
                raise RuntimeError(f"{answer}\n{log.read_text()}")
            for name in answer.keys() & {"functions", "part"}:
                times.setdefault(name, (time.perf_counter() - began, cpu_seconds(process.pid)))
    return Start(*times["functions"], *times["part"])


def packages(folder: Path) -> dict[str, Path]:
    paths = {name: folder / str(number) / "package" for number, name in enumerate((BARE, APP, SOURCE_ONLY))}
    paths[BARE].mkdir(parents=True)
    shutil.copy(Path(__file__).with_name("bare_app.py"), paths[BARE] / "function_app.py")
    shutil.copy(ROOT / "host.json", paths[BARE])
    for name in (APP, SOURCE_ONLY):
        platform_runtime.package(paths[name])
    return paths


def measure(rounds: int, python: Path) -> None:
    interpreter = platform_runtime.environment(python)
    starts: dict[str, list[Start]] = {}
    with tempfile.TemporaryDirectory() as folder, services(Path(folder)) as (environ, pids):
        paths, usage, before = packages(Path(folder)), Usage(pids), _children_cpu()
        for number in range(rounds + 1):  # the first compiles the source and creates the tables
            for name, package in paths.items():
                uncompiled = {"PYTHONDONTWRITEBYTECODE": "1"} if name == SOURCE_ONLY else {}
                result = start(interpreter, package, environ | uncompiled)
                if number:
                    starts.setdefault(name, []).append(result)
        beside = usage.beside([_children_cpu() - before])
    report({name: _median(each) for name, each in starts.items()}, rounds, beside)


def report(medians: Mapping[str, Start], rounds: int, beside: str) -> None:
    print(f"seconds from a process's start (CPU seconds), medians of {rounds} rounds; {beside}:")
    print("| | functions indexed | first byte of the first turn |\n|---|--:|--:|")
    for name, each in medians.items():
        indexed = f"{each.indexed:.2f} ({each.indexed_cpu:.2f})"
        print(f"| {name} | {indexed} | {each.first_byte:.2f} ({each.first_byte_cpu:.2f}) |")
    app, bare = medians[APP], medians[BARE]
    print(f"first byte, CPU time of this app over the SDKs alone: {app.first_byte_cpu / bare.first_byte_cpu:.2f}")
    print(f"first byte, this app over the SDKs alone: {app.first_byte / bare.first_byte:.2f}")


def _median(starts: list[Start]) -> Start:
    fields = ("indexed", "indexed_cpu", "first_byte", "first_byte_cpu")
    return Start(*(median(getattr(start, name) for start in starts) for name in fields))


def _children_cpu() -> float:
    """CPU seconds of the processes that this one has started and that have ended."""
    children = resource.getrusage(resource.RUSAGE_CHILDREN)
    return children.ru_utime + children.ru_stime


if __name__ == "__main__":
    parser = argparse.ArgumentParser(prog="python -m benchmarks.cold_start", description=__doc__)
    parser.add_argument("--rounds", type=int, default=9)
    arguments = parser.parse_args()
    interpreter = platform_runtime.python()
    if interpreter is None:
        sys.exit(platform_runtime.MISSING)
    measure(arguments.rounds, interpreter)
