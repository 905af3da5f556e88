"""The package that is deployed, under the platform's own worker library and its Python: function_app.py indexes, and
answers JSON, a stream and both timers."""

import base64
import json
import os
import queue
import subprocess
import threading
import uuid
from collections.abc import Iterator
from pathlib import Path
from typing import IO, Any

import pytest

from local import azurite as azurite_server
from local.places import ROOT
from tests.conftest import PRICES
from tests.support import declared, platform_runtime
from tests.support.azure_openai import AzureOpenAI
from tests.support.loopback import PATIENCE

PYTHON = platform_runtime.python()
pytestmark = pytest.mark.skipif(PYTHON is None, reason=platform_runtime.MISSING)

JSON = dict[str, Any]


@pytest.fixture(scope="module")
def interpreter() -> Path:
    assert PYTHON
    return platform_runtime.environment(PYTHON)


@pytest.fixture(scope="module")
def package(tmp_path_factory: pytest.TempPathFactory) -> Path:
    folder = tmp_path_factory.mktemp("package")
    platform_runtime.package(folder)
    return folder


class Answer:
    """An answer as it comes: its status, then its parts."""

    def __init__(self, said: "queue.Queue[JSON]") -> None:
        self._said = said
        self.invoked: bool | None = None
        self.exception: str | None = None
        head = self._next()
        assert head is not None, self.exception
        self.status: int = head["status"]
        self.headers = {name.lower(): value for name, value in head["headers"].items()}
        self.body = b""

    def read_until(self, wanted: bytes) -> None:
        while wanted not in self.body:
            said = self._next()
            assert said is not None, f"it ended without {wanted!r}: {self.body!r}"
            self.body += base64.b64decode(said["part"])

    def rest(self) -> bytes:
        while said := self._next():
            self.body += base64.b64decode(said["part"])
        return self.body

    def json(self) -> JSON:
        body: JSON = json.loads(self.rest())
        return body

    def _next(self) -> JSON | None:
        """What was said next of the answer itself; None at its end."""
        while True:
            said = self._said.get(timeout=PATIENCE)
            assert "failed" not in said, said["failed"]
            if "invoked" in said:
                self.invoked, self.exception = said["invoked"], said["exception"]
                continue
            return None if said.get("end") else said


class Platform:
    """The host process, and the worker inside it."""

    def __init__(self, orders: IO[str], said: IO[str]) -> None:
        self._orders = orders
        self._heard: dict[str, queue.Queue[JSON]] = {}
        first = json.loads(said.readline())
        assert "failed" not in first, first["failed"]
        self.functions: dict[str, list[JSON]] = first["functions"]
        self._listener = threading.Thread(target=self._listen, args=(said,), daemon=True)
        self._listener.start()

    def ask(self, function: str, method: str, path: str, body: object = None, **params: str) -> Answer:
        order = {"function": function, "method": method, "path": path, "params": params}
        return Answer(self._order({**order, "body": body} if body is not None else order))

    def fire(self, function: str) -> tuple[bool, str | None]:
        said = self._order({"function": function, "timer": True}).get(timeout=PATIENCE)
        assert "failed" not in said, said["failed"]
        return said["invoked"], said["exception"]

    def ended(self) -> None:
        """Wait for what it last said."""
        self._listener.join()

    def _order(self, order: JSON) -> "queue.Queue[JSON]":
        number = str(uuid.uuid4())
        heard = self._heard[number] = queue.Queue()
        self._orders.write(json.dumps({"id": number, **order}) + "\n")
        self._orders.flush()
        return heard

    def _listen(self, said: IO[str]) -> None:
        for line in said:
            heard = json.loads(line)
            self._heard[heard["id"]].put(heard)


@pytest.fixture(scope="module")
def model() -> Iterator[AzureOpenAI]:
    with AzureOpenAI() as server:
        yield server


@pytest.fixture(scope="module")
def mailbox(tmp_path_factory: pytest.TempPathFactory) -> Path:
    return tmp_path_factory.mktemp("mail")


@pytest.fixture(scope="module")
def platform(
    interpreter: Path,
    package: Path,
    azurite_port: int,
    model: AzureOpenAI,
    mailbox: Path,
    tmp_path_factory: pytest.TempPathFactory,
) -> Iterator[Platform]:
    environ = {
        "PATH": os.environ["PATH"],
        "AZURE_OPENAI_ENDPOINT": model.endpoint,
        "AZURE_OPENAI_API_KEY": "test-key",
        "AZURE_OPENAI_MODEL": "chat",
        "PRICES": PRICES,
        "TABLES_CONNECTION_STRING": azurite_server.connection_string(azurite_port),
        "TABLE_PREFIX": f"t{uuid.uuid4().hex[:20]}",
        "SUMMARY_RECIPIENTS": "ada@example.com",
        "SUMMARY_SCHEDULE": "0 0 6 * * *",
        "OUTBOX_DIR": str(mailbox),
    }
    log = tmp_path_factory.mktemp("platform") / "log"
    with log.open("w") as errors:
        process = subprocess.Popen(
            [str(interpreter), str(ROOT / "tests" / "support" / "runtime_host.py")],
            cwd=package,
            env=environ,
            stdin=subprocess.PIPE,
            stdout=subprocess.PIPE,
            stderr=errors,
            text=True,
        )
    assert process.stdin
    assert process.stdout
    try:
        platform = Platform(process.stdin, process.stdout)
        yield platform
        process.kill()
        platform.ended()
    finally:
        process.kill()
        process.wait()
        process.stdin.close()
        process.stdout.close()


def trigger_of(bindings: list[JSON]) -> JSON:
    (trigger,) = (binding for binding in bindings if binding["type"].endswith("Trigger"))
    return {name: trigger[name] for name in ("type", "route", "methods", "authLevel", "schedule") if name in trigger}


def test_every_function_is_indexed(platform: Platform) -> None:
    indexed = {name: trigger_of(bindings) for name, bindings in platform.functions.items()}
    assert indexed == {name: trigger_of([trigger]) for name, trigger in declared.triggers().items()}
    assert indexed["daily_cost_summary"] == {"type": "timerTrigger", "schedule": "%SUMMARY_SCHEDULE%"}
    assert indexed["maintenance"] == {"type": "timerTrigger", "schedule": "0 5/15 * * * *"}
    http = {"type": "httpTrigger", "route": "api/chat", "methods": ["POST"], "authLevel": "FUNCTION"}
    assert indexed["chat"] == http


def test_a_turn_is_answered_as_json_and_remembered(platform: Platform, model: AzureOpenAI) -> None:
    model.reply("Hello from the platform.")
    answer = platform.ask("chat", "POST", "/api/chat", {"message": "hi", "session_id": "json"})
    body = answer.json()
    assert (answer.status, body["message"]["content"]) == (200, "Hello from the platform.")
    assert body["cost_usd"] > 0
    session = platform.ask("session", "GET", "/api/sessions/json", session_id="json")
    assert session.json()["turns"] == 1
    assert (answer.invoked, session.invoked) == (True, True)


def test_a_stream_is_on_its_way_while_the_model_still_speaks(platform: Platform, model: AzureOpenAI) -> None:
    model.reply("One two three four.")
    with model.hold(after=1) as hold:
        asked = {"message": "hi", "session_id": "stream", "stream": True}
        answer = platform.ask("chat", "POST", "/api/chat", asked)
        assert answer.headers["content-type"].startswith("text/event-stream")
        answer.read_until(b"event: delta")
        assert not hold.open
        assert b"event: done" not in answer.body
        hold.release()
    assert b"event: done" in answer.rest()


def test_an_error_is_an_answer(platform: Platform) -> None:
    answer = platform.ask("chat", "POST", "/api/chat", {"massage": "hi"})
    assert (answer.status, answer.json()["error"]["code"]) == (400, "invalid_request")
    unknown = platform.ask("session", "GET", "/api/sessions/nobody", session_id="nobody")
    assert (unknown.status, unknown.json()["error"]["code"]) == (404, "session_not_found")


def test_nothing_is_asked_of_a_probe(platform: Platform) -> None:
    assert platform.ask("health", "GET", "/api/health").json() == {"status": "ok"}


def test_maintenance_runs(platform: Platform) -> None:
    assert platform.fire("maintenance") == (True, None)


def test_the_timer_mails_yesterday(platform: Platform, mailbox: Path) -> None:
    assert platform.fire("daily_cost_summary") == (True, None)
    assert len(list(mailbox.glob("*.eml"))) == 1
