"""azd's hook after a deployment: it waits until the app answers, and says what is wrong if it does not."""

import os
import re
import subprocess
import threading
from collections.abc import Iterator
from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer
from pathlib import Path

import pytest

from local.places import ROOT
from tests.support.platform_runtime import PYTHON

HOOK = ROOT / "infra" / "hooks" / "postdeploy.sh"
AZ = """#!/bin/sh
[ "$*" = "functionapp log deployment show -g rg-test(2) -n func-test" ] && [ -n "${AZ_BUILD:-}" ] || exit 1
echo "$AZ_BUILD"
"""
BUILD = '[{{"message": "oryx build /tmp/zipdeploy/extracted --platform python --platform-version {} -p x"}}]'
CLIENT = "55555555-5555-5555-5555-555555555555"


class App(ThreadingHTTPServer):
    """Answers GET /api/health with the statuses one by one, and from then on with the last one."""

    def __init__(self) -> None:
        super().__init__(("127.0.0.1", 0), Health)
        self.statuses = [200]
        self.requests = 0

    @property
    def url(self) -> str:
        return f"http://127.0.0.1:{self.server_port}"


class Health(BaseHTTPRequestHandler):
    server: App

    def do_GET(self) -> None:
        assert self.path == "/api/health"
        self.server.requests += 1
        self.send_response(self.server.statuses.pop(0) if len(self.server.statuses) > 1 else self.server.statuses[0])
        self.send_header("Content-Length", "0")
        self.end_headers()

    def log_message(self, *_: object) -> None:
        pass


@pytest.fixture
def app() -> Iterator[App]:
    server = App()
    thread = threading.Thread(target=server.serve_forever, kwargs={"poll_interval": 0.01})
    thread.start()
    yield server
    server.shutdown()
    thread.join()
    server.server_close()


@pytest.mark.skipif(os.name == "nt", reason="the hooks are POSIX scripts")
class TestHook:
    @pytest.fixture
    def programs(self, tmp_path: Path) -> Path:
        """A folder for the PATH, with an `az`, and a `sleep` that does not."""
        for name, script in (("az", AZ), ("sleep", "#!/bin/sh\n")):
            (tmp_path / name).write_text(script)
            (tmp_path / name).chmod(0o755)
        return tmp_path

    def run(self, programs: Path, url: str, code: int = 0, **values: str) -> str:
        """What the hook prints. The name of an azd environment may contain parentheses, special to a shell."""
        environment = {
            "PATH": f"{programs}:{os.environ['PATH']}",
            "AZURE_FUNCTION_APP_URL": url,
            "AZURE_FUNCTION_APP_NAME": "func-test",
            "AZURE_RESOURCE_GROUP": "rg-test(2)",
            **values,
        }
        result = subprocess.run(["sh", str(HOOK)], env=environment, capture_output=True, text=True, check=False)
        assert (result.returncode, result.stderr) == (code, "")
        return result.stdout

    def test_url_and_example_request_are_printed_once_the_app_answers(self, programs: Path, app: App) -> None:
        app.statuses = [404, 503, 200]
        output = self.run(programs, app.url)
        assert app.requests == 3
        assert f"{app.url}/chat" in output
        assert "az functionapp keys list -g 'rg-test(2)' -n func-test --query functionKeys.default -o tsv" in output
        assert f'curl -sS {app.url}/api/chat -H "x-functions-key: $KEY"' in output
        assert "A 401, 403 or 503 in the first minutes" in output

    def test_request_with_a_token_is_printed_where_people_sign_in(self, programs: Path, app: App) -> None:
        output = self.run(programs, app.url, AUTH="entra", AUTH_CLIENT_ID=CLIENT)
        assert f"az account get-access-token --scope api://{CLIENT}/.default --query accessToken -o tsv" in output
        assert f'curl -sS {app.url}/api/chat -H "Authorization: Bearer $TOKEN"' in output
        assert "key" not in output

    @pytest.mark.parametrize("auth", ["", "entra"])
    def test_printed_commands_are_valid(self, programs: Path, app: App, auth: str) -> None:
        output = self.run(programs, app.url, AUTH=auth, AUTH_CLIENT_ID=CLIENT)
        commands = re.findall(r"^  (\S.*)$", output, re.MULTILINE)
        assert len(commands) == 2
        for command in commands:
            assert subprocess.run(["sh", "-n", "-c", command], check=False).returncode == 0, command

    def test_python_of_the_remote_build_is_named_if_it_is_another(self, programs: Path, app: App) -> None:
        app.statuses = [404]
        output = self.run(programs, app.url, code=1, AZ_BUILD=BUILD.format("3.11.8"))
        assert f"used Python 3.11.8 instead of {PYTHON}" in " ".join(output.split())
        assert "azure-dev#8538" in output
        assert "/chat" not in output
        assert app.requests == 31

    @pytest.mark.parametrize("build", ["", "[]", BUILD.format(PYTHON), BUILD.format(f"{PYTHON}.9")])
    def test_usual_causes_are_named_if_the_build_is_not_known_to_be_wrong(
        self, programs: Path, app: App, build: str
    ) -> None:
        app.statuses = [404]
        output = self.run(programs, app.url, code=1, AZ_BUILD=build)
        assert "The app has no functions" in output
        assert f"another Python than {PYTHON} (azure-dev#8538), or no SUMMARY_SCHEDULE" in output
        assert "az functionapp log deployment show -g 'rg-test(2)' -n func-test" in output

    @pytest.mark.parametrize("status", [401, 403, 500, 503])
    def test_other_answers_of_the_platform_mean_to_wait(self, programs: Path, app: App, status: int) -> None:
        app.statuses = [status]
        output = self.run(programs, app.url, code=1)
        assert f"The platform answers {status} for {app.url}/api/health." in output
        assert "wait some minutes, then run azd deploy" in " ".join(output.split())

    def test_unreachable_app_is_no_failure(self, programs: Path) -> None:
        """The machine may be behind a proxy."""
        output = self.run(programs, "http://127.0.0.1:9")
        assert "can't be reached from this machine" in output
        assert "http://127.0.0.1:9/chat" in output


def test_python_version_is_that_of_the_template() -> None:
    for suffix in ("sh", "ps1"):
        assert re.search(rf"python ?= ?'?{re.escape(PYTHON)}'? #", HOOK.with_suffix(f".{suffix}").read_text())


def test_both_shells_have_the_same_variables_and_messages() -> None:
    posix, windows = (HOOK.with_suffix(f".{suffix}").read_text() for suffix in ("sh", "ps1"))
    assert set(re.findall(r"\$\{?((?:AUTH|AZURE)\w*)", posix)) == set(re.findall(r"\$env:(\w+)", windows))
    message = r"(?m)^(?:The app |The platform |packages |minutes, |docs/|- |A 401|\$url/api/health can't).*$"
    assert re.findall(message, posix) == re.findall(message, windows)
    assert len(re.findall(message, posix)) == 11
