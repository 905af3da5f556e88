"""The deployment package under the platform's worker library and Python version: its functions are indexed, and HTTP,
streaming and both timers work."""

import base64
import json
import os
import queue
import subprocess
import threading
import time
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
from tests.support.loopback import MAX_WAIT_S

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


class Response:
    """A response while it arrives: first its status and headers, then its parts."""

    def __init__(self, events: "queue.Queue[JSON]") -> None:
        self._events = events
        self.invoked: bool | None = None
        self.exception: str | None = None
        head = self._next()
        assert head is not None, self.exception
        self.status: int = head["status"]
        self.headers = {name.lower(): value for name, value in head["headers"].items()}
        self.body = b""

    def read_until(self, expected: bytes) -> None:
        while expected not in self.body:
            event = self._next()
            assert event is not None, f"the response ended without {expected!r}: {self.body!r}"
            self.body += base64.b64decode(event["part"])

    def rest(self) -> bytes:
        while event := self._next():
            self.body += base64.b64decode(event["part"])
        return self.body

    def json(self) -> JSON:
        body: JSON = json.loads(self.rest())
        return body

    def _next(self) -> JSON | None:
        """The next event of the response, or None at its end. Stores the result of the invocation on the way."""
        while True:
            event = self._events.get(timeout=MAX_WAIT_S)
            assert "failed" not in event, event["failed"]
            if "invoked" in event:
                self.invoked, self.exception = event["invoked"], event["exception"]
                continue
            return None if event.get("end") else event


class Platform:
    """The host process with the worker in it."""

    def __init__(self, commands: IO[str], answers: IO[str]) -> None:
        self._commands = commands
        self._events: dict[str, queue.Queue[JSON]] = {}
        first = json.loads(answers.readline())
        assert "failed" not in first, first["failed"]
        self.functions: dict[str, list[JSON]] = first["functions"]
        self._listener = threading.Thread(target=self._listen, args=(answers,), daemon=True)
        self._listener.start()

    def call(
        self, function: str, method: str, path: str, body: object = None, *, disconnect: bool = False, **params: str
    ) -> Response:
        """`disconnect`: after the first part of the response."""
        command = {"function": function, "method": method, "path": path, "params": params, "disconnect": disconnect}
        return Response(self._send({**command, "body": body} if body is not None else command))

    def run_timer(self, function: str) -> tuple[bool, str | None]:
        result = self._send({"function": function, "timer": True}).get(timeout=MAX_WAIT_S)
        assert "failed" not in result, result["failed"]
        return result["invoked"], result["exception"]

    def join(self) -> None:
        """Wait until all output of the process is read."""
        self._listener.join()

    def _send(self, command: JSON) -> "queue.Queue[JSON]":
        command_id = str(uuid.uuid4())
        events = self._events[command_id] = queue.Queue()
        self._commands.write(json.dumps({"id": command_id, **command}) + "\n")
        self._commands.flush()
        return events

    def _listen(self, answers: IO[str]) -> None:
        for line in answers:
            event = json.loads(line)
            self._events[event["id"]].put(event)


@pytest.fixture(scope="module")
def model() -> Iterator[AzureOpenAI]:
    with AzureOpenAI() as server:
        yield server


@pytest.fixture(scope="module")
def outbox(tmp_path_factory: pytest.TempPathFactory) -> Path:
    return tmp_path_factory.mktemp("mail")


@pytest.fixture(scope="module")
def platform(
    interpreter: Path,
    package: Path,
    azurite_port: int,
    model: AzureOpenAI,
    outbox: Path,
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
        "OUTBOX_DIR": str(outbox),
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
        platform.join()
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


def test_turn_returns_json_and_is_stored(platform: Platform, model: AzureOpenAI) -> None:
    model.reply("Hello from the platform.")
    answer = platform.call("chat", "POST", "/api/chat", {"message": "hi", "session_id": "json"})
    body = answer.json()
    assert (answer.status, body["message"]["content"]) == (200, "Hello from the platform.")
    assert body["cost_usd"] > 0
    session = platform.call("session", "GET", "/api/sessions/json", session_id="json")
    assert session.json()["turns"] == 1
    assert (answer.invoked, session.invoked) == (True, True)


def test_stream_sends_deltas_before_the_model_has_finished(platform: Platform, model: AzureOpenAI) -> None:
    model.reply("One two three four.")
    with model.hold(after=1) as hold:
        body = {"message": "hi", "session_id": "stream", "stream": True}
        answer = platform.call("chat", "POST", "/api/chat", body)
        assert answer.headers["content-type"].startswith("text/event-stream")
        answer.read_until(b"event: delta")
        assert not hold.open
        assert b"event: done" not in answer.body
        hold.release()
    assert b"event: done" in answer.rest()


@pytest.mark.parametrize(("on_disconnect", "outcome"), [("stop", "hang_up"), ("finish", "ok")])
def test_turn_stops_or_finishes_when_its_client_disconnects(
    platform: Platform, model: AzureOpenAI, on_disconnect: str, outcome: str
) -> None:
    model.meter.clear()
    body = {
        "message": "hi",
        "session_id": f"disconnect-{on_disconnect}",
        "stream": True,
        "on_disconnect": on_disconnect,
    }
    with model.hold(after=0) as hold:
        platform.call("chat", "POST", "/api/chat", body, disconnect=True).rest()
        if on_disconnect == "finish":
            hold.release()
        deadline = time.monotonic() + MAX_WAIT_S
        while not model.meter:
            assert time.monotonic() < deadline
            time.sleep(0.01)
    assert [billed.outcome for billed in model.meter] == [outcome]


def test_errors_are_json_responses(platform: Platform) -> None:
    answer = platform.call("chat", "POST", "/api/chat", {"massage": "hi"})
    assert (answer.status, answer.json()["error"]["code"]) == (400, "invalid_request")
    unknown = platform.call("session", "GET", "/api/sessions/unknown", session_id="unknown")
    assert (unknown.status, unknown.json()["error"]["code"]) == (404, "session_not_found")


def test_unknown_path_lists_the_routes(platform: Platform) -> None:
    answer = platform.call("zz_v1", "POST", "/v1/chat/completions", {"messages": []})
    message = answer.json()["error"]["message"]
    assert answer.status == 404
    assert message.startswith("There is no route POST /v1/chat/completions. The base URL of an OpenAI client ends in")
    assert " The routes are: POST /openai/v1/chat" in message


def test_root_leads_to_the_chat_page(platform: Platform) -> None:
    answer = platform.call("home", "GET", "/")
    assert (answer.status, answer.headers["location"], answer.rest()) == (302, "/chat", b"")


def test_health_returns_ok(platform: Platform) -> None:
    assert platform.call("health", "GET", "/api/health").json() == {"status": "ok"}


def test_maintenance_timer_runs(platform: Platform) -> None:
    assert platform.run_timer("maintenance") == (True, None)


def test_daily_timer_emails_the_summary_of_yesterday(platform: Platform, outbox: Path) -> None:
    assert platform.run_timer("daily_cost_summary") == (True, None)
    assert len(list(outbox.glob("*.eml"))) == 1
