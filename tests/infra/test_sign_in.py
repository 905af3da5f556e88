"""How people sign in to a deployed app: the app settings that the template makes, and azd's hooks that register the app
in Microsoft Entra ID and add its pages' addresses."""

import json
import os
import re
import subprocess
import sys
from collections.abc import Mapping
from pathlib import Path
from typing import Any

import pytest

from local.places import ROOT
from shared.access.entra import ADMIN, SCOPE, USER
from shared.settings import PeopleSettings, Settings
from tests.infra.conftest import Predict
from tests.support import bicep
from tests.support.az import NOT_SIGNED_IN, new_state
from tests.support.bicep import SUBSCRIPTION, TENANT, Deployment, Refused
from tests.support.setting_names import MINIMAL

HOOKS = ROOT / "infra" / "hooks"
CLIENT = "55555555-5555-5555-5555-555555555555"
OTHER_TENANT = "44444444-4444-4444-4444-444444444444"
AZURE_CLI = "04b07795-8ddb-461a-bbee-02f9e1bf7b46"
APP = "https://func-test.azurewebsites.net"


def people(deployment: Deployment) -> PeopleSettings | None:
    """As the app reads them."""
    values = {name: value for name, value in deployment.settings.items() if name.startswith("AUTH_")}
    assert len(values) == 5
    return Settings.from_env({**MINIMAL, **values}).people


@pytest.mark.skipif(bicep.compiler() is None, reason=bicep.MISSING)
class TestTemplate:
    def test_people_do_not_sign_in_by_default(self, predict: Predict) -> None:
        assert people(predict()) is None

    def test_values_that_were_left_are_not_set_where_people_do_not_sign_in(self, predict: Predict) -> None:
        """azd's environment keeps the registration that a hook made."""
        assert people(predict(authClientId=CLIENT, authTenantId=TENANT, authRoles="Chat.User")) is None

    def test_registration_of_the_subscriptions_tenant_is_enough(self, predict: Predict) -> None:
        settings = people(predict(auth="entra", authClientId=CLIENT))
        assert settings == PeopleSettings(
            tenant_id=TENANT,
            client_id=CLIENT,
            authority="https://login.microsoftonline.com",
            roles=frozenset(),
            accepted=frozenset({"people", "keys"}),
        )

    def test_everything_can_be_set(self, predict: Predict) -> None:
        values = {"authTenantId": OTHER_TENANT, "authAuthority": "https://login.microsoftonline.us"}
        values |= {"authRoles": "Chat.User,Chat.Admin", "authAccept": "people"}
        settings = people(predict(auth="entra", authClientId=CLIENT, **values))
        assert settings == PeopleSettings(
            tenant_id=OTHER_TENANT,
            client_id=CLIENT,
            authority="https://login.microsoftonline.us",
            roles=frozenset({"Chat.User", "Chat.Admin"}),
            accepted=frozenset({"people"}),
        )

    @pytest.mark.parametrize(
        ("parameters", "reason"),
        [
            ({"auth": "entra"}, "auth entra needs authClientId"),
            ({"auth": "entra", "authTenantId": TENANT}, "auth entra needs authClientId"),
            ({"extraSettings": {"AUTH_TENANT_ID": TENANT}}, "extraSettings can't set AUTH_ settings"),
            ({"auth": "entra", "authClientId": CLIENT, "extraSettings": {"AUTH_ROLES": "a"}}, "extraSettings can't"),
        ],
    )
    def test_half_a_configuration_is_rejected(
        self, predict: Predict, parameters: Mapping[str, Any], reason: str
    ) -> None:
        with pytest.raises(Refused, match=reason):
            predict(**parameters)


class Azure:
    """The az, azd and sleep on a folder's PATH, and their state."""

    def __init__(self, folder: Path, **state: Any) -> None:
        self.folder = folder
        self._state = folder / "state.json"
        self._state.write_text(json.dumps(new_state(tenant=TENANT, tenants={SUBSCRIPTION: TENANT}, **state)))
        for name in ("az", "azd"):
            self._program(name, f'exec "{sys.executable}" -m tests.support.az {name} "$@"')
        self._program("sleep", 'echo "$1" >>"$AZ_STATE.waits"')

    def _program(self, name: str, line: str) -> None:
        (self.folder / name).write_text(f"#!/bin/sh\n{line}\n")
        (self.folder / name).chmod(0o755)

    @property
    def state(self) -> dict[str, Any]:
        state: dict[str, Any] = json.loads(self._state.read_text())
        return state

    def change(self, **values: Any) -> None:
        self._state.write_text(json.dumps(self.state | values))

    @property
    def waits(self) -> list[str]:
        waits = self.folder / "state.json.waits"
        return waits.read_text().split() if waits.exists() else []

    @property
    def application(self) -> dict[str, Any]:
        (application,) = self.state["applications"]
        assert isinstance(application, dict)
        return application

    def run(self, hook: str = "sign-in", **values: str) -> tuple[int, str]:
        """The status and the output of a hook, which azd runs with its environment's values as variables."""
        environment = {"AZURE_ENV_NAME": "test", "AZURE_SUBSCRIPTION_ID": SUBSCRIPTION, "AUTH": "entra"}
        result = subprocess.run(
            ["sh", str(HOOKS / f"{hook}.sh")],
            cwd=ROOT,
            env={
                "PATH": f"{self.folder}:{os.environ['PATH']}",
                "AZ_STATE": str(self._state),
                "AZURE_FUNCTION_APP_URL": APP if hook == "redirects" else "",
                **environment,
                **self.state["env"],
                **values,
            },
            capture_output=True,
            text=True,
            check=False,
        )
        return result.returncode, result.stdout + result.stderr


@pytest.mark.skipif(os.name == "nt", reason="the hooks are POSIX scripts")
class TestSignInHook:
    @pytest.fixture
    def azure(self, tmp_path: Path) -> Azure:
        return Azure(tmp_path)

    def test_registration_is_what_the_app_and_its_clients_use(self, azure: Azure) -> None:
        status, output = azure.run()
        assert status == 0
        made = azure.application
        assert azure.state["env"] == {
            "AUTH_REGISTRATION": made["tags"][0],
            "AUTH_TENANT_ID": TENANT,
            "AUTH_CLIENT_ID": made["appId"],
        }
        assert made["appId"] in output
        assert "WARNING" not in output
        assert (made["displayName"], made["signInAudience"]) == ("serverless-chat-api (test)", "AzureADMyOrg")
        (scope,) = made["api"]["oauth2PermissionScopes"]
        settings = people_settings(azure)
        assert f"{made['identifierUris'][0]}/{scope['value']}" == settings.scope
        assert (scope["value"], scope["isEnabled"], scope["type"]) == (SCOPE, True, "User")
        assert made["api"]["requestedAccessTokenVersion"] == 2
        assert made["api"]["preAuthorizedApplications"] == [
            {"appId": AZURE_CLI, "delegatedPermissionIds": [scope["id"]]}
        ]
        assert [role["value"] for role in made["appRoles"]] == [USER, ADMIN]
        assert all(role["allowedMemberTypes"] == ["User", "Application"] for role in made["appRoles"])
        assert made["isFallbackPublicClient"] is True
        assert [each["appId"] for each in azure.state["servicePrincipals"]] == [made["appId"]]

    def test_second_run_requests_nothing(self, azure: Azure) -> None:
        azure.run()
        before = azure.state
        assert azure.run() == (0, "")
        assert azure.state == before

    @pytest.mark.parametrize(
        "fault", ["POST applications", "PATCH applications", "GET servicePrincipals", "POST servicePrincipals"]
    )
    def test_interrupted_run_is_finished_by_the_next(self, azure: Azure, fault: str) -> None:
        azure.change(fails=[fault])
        status, output = azure.run()
        assert status == 1
        assert "ERROR: Service Unavailable(" in output
        assert "The next azd provision goes on from here." in output
        assert "AUTH_CLIENT_ID" not in azure.state["env"]
        azure.change(fails=[])
        assert azure.run()[0] == 0
        assert azure.state["env"]["AUTH_CLIENT_ID"] == azure.application["appId"]
        assert len(azure.state["servicePrincipals"]) == 1

    def test_run_that_stored_nothing_of_what_it_made_is_finished_by_the_next(self, azure: Azure) -> None:
        azure.run()
        made = azure.state
        azure.change(env={"AUTH_REGISTRATION": made["env"]["AUTH_REGISTRATION"]})
        assert azure.run()[0] == 0
        for name in ("env", "applications", "servicePrincipals"):
            assert azure.state[name] == made[name]

    @pytest.mark.parametrize("late", ["PATCH applications", "POST servicePrincipals"])
    def test_request_is_repeated_while_the_registration_is_not_known_yet(self, azure: Azure, late: str) -> None:
        azure.change(lag={late: 3})
        assert azure.run()[0] == 0
        assert azure.waits == ["1", "2", "4"]
        assert azure.application["identifierUris"]
        assert len(azure.state["servicePrincipals"]) == 1

    def test_throttled_requests_are_repeated_half_a_minute(self, azure: Azure) -> None:
        azure.change(throttled=5)
        assert azure.run()[0] == 0
        assert azure.waits == ["1", "2", "4", "8", "16"]
        azure.change(throttled=99, env={})
        status, output = azure.run()
        assert (status, "ERROR: Too Many Requests(" in output) == (1, True)

    def test_person_who_may_not_register_gets_what_an_administrator_needs(self, azure: Azure) -> None:
        azure.change(denied=True)
        status, output = azure.run()
        assert status == 1
        assert azure.waits == []
        assert "Insufficient privileges to complete the operation." in output
        for name in (
            "api://CLIENT_ID",
            "access_as_user",
            AZURE_CLI,
            "api.requestedAccessTokenVersion is 2",
            "Chat.User and Chat.Admin",
            "https://APP/chat and https://APP/usage",
            "isFallbackPublicClient",
            f"azd env set AUTH_TENANT_ID {TENANT}",
            "azd env set AUTH_CLIENT_ID CLIENT_ID",
        ):
            assert name in output, name

    def test_registrations_of_the_same_name_are_left_alone(self, azure: Azure) -> None:
        """Names are not unique: another person's environment may be named alike."""
        azure.run()
        others = azure.state["applications"]
        azure.change(env={})
        assert azure.run()[0] == 0
        assert azure.state["applications"][:1] == others
        assert len(azure.state["applications"]) == 2

    def test_two_registrations_with_the_tag_are_refused(self, azure: Azure) -> None:
        azure.run()
        tag = azure.state["env"]["AUTH_REGISTRATION"]
        azure.change(applications=azure.state["applications"] * 2, env={"AUTH_REGISTRATION": tag})
        status, output = azure.run()
        assert (status, f"More than one registration has the tag {tag}." in output) == (1, True)

    def test_what_others_changed_stays(self, azure: Azure) -> None:
        azure.run()
        mine = azure.application | {"displayName": "Chat", "isFallbackPublicClient": False}
        mine["api"]["preAuthorizedApplications"] = []
        azure.change(applications=[mine])
        azure.run()
        azure.run("redirects")
        assert azure.application == mine | {"spa": azure.application["spa"]}

    @pytest.mark.parametrize("hook", ["sign-in", "redirects"])
    def test_nothing_is_requested_where_people_do_not_sign_in(self, azure: Azure, hook: str) -> None:
        assert azure.run(hook, AUTH="") == (0, "")
        assert azure.run(hook, AUTH="", AUTH_CLIENT_ID=CLIENT, AUTH_REGISTRATION="serverless-chat-api-1") == (0, "")
        assert azure.state["requests"] == []

    def test_registration_that_is_brought_is_not_requested(self, azure: Azure) -> None:
        azure.change(tenant="")
        assert azure.run(AUTH_CLIENT_ID=CLIENT.upper()) == (0, "")
        assert azure.run(AUTH_CLIENT_ID=CLIENT, AUTH_TENANT_ID=TENANT, CI="true") == (0, "")

    @pytest.mark.parametrize(
        ("values", "reason"),
        [
            ({"AUTH": "", "AUTH_CLIENT_ID": CLIENT, "AUTH_ROLES": "a b"}, "AUTH_CLIENT_ID AUTH_ROLES needs AUTH too"),
            ({"AUTH": "", "AUTH_TENANT_ID": TENANT}, "AUTH_TENANT_ID needs AUTH too. Run azd env set AUTH entra"),
            ({"AUTH": "", "AUTH_ACCEPT": "people"}, "AUTH_ACCEPT needs AUTH too"),
            ({"AUTH": "", "AUTH_AUTHORITY": "https://x.example"}, "AUTH_AUTHORITY needs AUTH too"),
            ({"AUTH": "true"}, "AUTH is 'true'. Set entra"),
            ({"AUTH_CLIENT_ID": "my-app"}, "AUTH_CLIENT_ID is 'my-app'. Set the application (client) ID"),
            ({"AUTH_TENANT_ID": "contoso.com"}, "AUTH_TENANT_ID is 'contoso.com'. Set the directory (tenant) ID"),
            ({"AUTH_TENANT_ID": "contoso.com", "AUTH_CLIENT_ID": CLIENT}, "AUTH_TENANT_ID is 'contoso.com'"),
            ({"AUTH_TENANT_ID": OTHER_TENANT}, f"Run az login --tenant {OTHER_TENANT}"),
            ({"AZURE_SUBSCRIPTION_ID": CLIENT}, f"not to the subscription {CLIENT}. Run az login"),
            ({"CI": "true"}, "A pipeline doesn't register the app."),
            ({"TF_BUILD": "True"}, "A pipeline doesn't register the app."),
        ],
    )
    def test_half_a_configuration_is_refused_before_any_request(
        self, azure: Azure, values: Mapping[str, str], reason: str
    ) -> None:
        status, output = azure.run(**values)
        assert (status, azure.state["requests"], azure.state["env"]) == (1, [], {})
        assert reason in output

    def test_subscription_of_another_tenant_is_refused(self, azure: Azure) -> None:
        azure.change(tenants={SUBSCRIPTION: OTHER_TENANT})
        assert f"the app belongs to {OTHER_TENANT}" in azure.run()[1]

    def test_first_run_has_no_subscription_and_takes_the_tenant_of_az(self, azure: Azure) -> None:
        assert azure.run(AZURE_SUBSCRIPTION_ID="")[0] == 0
        assert azure.state["env"]["AUTH_TENANT_ID"] == TENANT

    def test_az_that_is_not_signed_in_or_missing_is_named(self, azure: Azure) -> None:
        azure.change(tenant="")
        assert azure.run() == (1, "\naz is missing or not signed in. Run az login, then this again.\n")
        (azure.folder / "az").write_text("#!/bin/sh\nexit 127\n")
        assert azure.run() == (1, "\naz is missing or not signed in. Run az login, then this again.\n")

    def test_no_temporary_file_is_left(self, azure: Azure) -> None:
        (azure.folder / "tmp").mkdir()
        azure.run(TMPDIR=str(azure.folder / "tmp"))
        azure.run("redirects", TMPDIR=str(azure.folder / "tmp"))
        azure.change(denied=True, env={})
        azure.run(TMPDIR=str(azure.folder / "tmp"))
        assert [*(azure.folder / "tmp").iterdir()] == []


def people_settings(azure: Azure) -> PeopleSettings:
    values = {name: value for name, value in azure.state["env"].items() if name != "AUTH_REGISTRATION"}
    settings = Settings.from_env({**MINIMAL, **values}).people
    assert settings
    return settings


@pytest.mark.skipif(os.name == "nt", reason="the hooks are POSIX scripts")
class TestRedirectsHook:
    @pytest.fixture
    def azure(self, tmp_path: Path) -> Azure:
        azure = Azure(tmp_path)
        assert azure.run()[0] == 0
        return azure

    def addresses(self, azure: Azure) -> list[str]:
        addresses: list[str] = azure.application["spa"]["redirectUris"]
        return addresses

    def test_pages_that_sign_in_are_added_once(self, azure: Azure) -> None:
        assert azure.run("redirects") == (0, f"People can sign in at {APP}/chat and {APP}/usage.\n")
        assert self.addresses(azure) == [f"{APP}/{page}" for page in signing_in()]
        before = azure.state["requests"]
        assert azure.run("redirects") == (0, "")
        assert azure.state["requests"] == [*before, "GET applications"]

    def test_addresses_of_others_stay(self, azure: Azure) -> None:
        mine = ["http://localhost:7071/chat", f"{APP}/usage", "https://chat.example.com/chat"]
        azure.change(applications=[azure.application | {"spa": {"redirectUris": mine}}])
        assert azure.run("redirects")[0] == 0
        assert self.addresses(azure) == [*mine, f"{APP}/chat"]

    def test_registration_that_was_brought_is_not_changed(self, azure: Azure) -> None:
        for values in ({"AUTH_REGISTRATION": ""}, {"AUTH_CLIENT_ID": CLIENT}):
            status, output = azure.run("redirects", **values)
            assert status == 0
            assert f"  {APP}/chat\n  {APP}/usage\n" in output
        assert self.addresses(azure) == []

    @pytest.mark.parametrize(
        "fault", [{"denied": True}, {"tenant": ""}, {"throttled": 9}, {"fails": ["PATCH applications"]}]
    )
    def test_failure_stops_nothing_and_names_the_addresses(self, azure: Azure, fault: Mapping[str, Any]) -> None:
        azure.change(**fault)
        status, output = azure.run("redirects")
        assert status == 0
        assert "ERROR: " in output
        assert (NOT_SIGNED_IN in output) is ("tenant" in fault)
        assert "could not be changed; the error is above. Run azd provision again, or ask an owner." in output
        assert f"  {APP}/chat\n  {APP}/usage\n" in output


def signing_in() -> list[str]:
    """The pages that use sign_in.js."""
    pages = ROOT / "shared" / "web" / "pages"
    return [
        page.stem for page in sorted(pages.glob("*.html")) if "access.js" in (pages / f"{page.stem}.js").read_text()
    ]


class TestPowerShell:
    """Not run: there is no PowerShell here."""

    def scripts(self, hook: str) -> tuple[str, str]:
        posix, windows = ((HOOKS / f"{hook}.{suffix}").read_text() for suffix in ("sh", "ps1"))
        return posix, windows

    @pytest.mark.parametrize("hook", ["sign-in", "redirects"])
    def test_both_shells_have_the_same_requests_and_messages(self, hook: str) -> None:
        posix, windows = (without_syntax(script) for script in self.scripts(hook))
        patterns = [
            r"(?m)^(?:- |[A-Z][a-z]|  \$).*$",  # messages of several lines
            r"(?m)^  azd env set \w+ [$\w]+$",
            r"(?:People |AUTH(?:_\w+)? is '|A pipeline|az is (?:missing or|signed)|More than|The app was)[^\".:;\n]*",
            r"(?:Run|Set|Delete) (?:a|the a|the d)[^\".\n]*",
            r"\b(?:is not changed|was not made|could not be)[^\"\n]*",
            r"(?<![\w/])az (?:account|cloud|ad|rest) \w*",
            r'--(?:query|url|method) (?:"[^"]*"|[\w.]+)',
            r"(?<!-)[0-9a-f]{8}(?:-[0-9a-f]{4}){3}-[0-9a-f]{12}",
            r"(?:Not Found|Bad Request|Too Many Requests|Authorization_RequestDenied)",
            r"\b1\W+2\W+4\W+8\W+16\W+0\b",
            r"\b(?:AUTH\w*|registration)\b",
        ]
        for pattern in patterns:
            assert set(re.findall(pattern, posix)) == set(re.findall(pattern, windows)), pattern

    def test_both_shells_register_the_same(self) -> None:
        posix, windows = (without_syntax(script) for script in self.scripts("sign-in"))
        bodies = re.findall(r"(?ms)^\{\n.*?^\}\n", posix)
        assert len(bodies) == 2
        assert bodies == re.findall(r"(?ms)^\{\n.*?^\}\n", windows)
        for body in bodies:
            json.loads(body)


def without_syntax(script: str) -> str:
    """What the two shells write differently, made alike."""
    script = re.sub(r"\$\(\$env:(\w+)\)|\$env:(\w+)", r"$\1\2", script)
    for one, other in (
        ("AUTH_REGISTRATION", "registration"),
        ("$what", "$1"),
        ("$names", "$*"),
        ("1, 2, 4, 8, 16, 0", "1 2 4 8 16 0"),
        ("`$", "$"),
        ("\\$", "$"),
        ("'\"", '"'),
    ):
        script = script.replace(one, other)
    return script
