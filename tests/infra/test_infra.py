"""The templates of infra/: they compile without a warning, and what they would deploy is keyless, closed and complete.

What is deployed is predicted by the Bicep compiler from the parameter files in tests/infra, without Azure.
"""

import json
import os
import re
import shutil
import subprocess
from collections.abc import Iterator, Mapping
from pathlib import Path
from typing import Any

import pytest

from local.environment import settings_file
from local.places import ROOT
from shared.settings import Settings
from tests.support import bicep, declared
from tests.support.bicep import SUBSCRIPTION, Compiler, Deployment, Refused
from tests.support.platform_runtime import PYTHON
from tests.support.setting_names import names_read

INFRA = ROOT / "infra"
PARAMETERS = ROOT / "tests" / "infra"
SWITCHES = tuple(sorted(path.stem for path in PARAMETERS.glob("*.bicepparam")))
GROUP = f"/subscriptions/{SUBSCRIPTION}/resourceGroups/rg-test"
DEVELOPER = "11111111-1111-1111-1111-111111111111"

needs_bicep = pytest.mark.skipif(bicep.compiler() is None, reason=bicep.MISSING)

ROLES = {
    "0a9a7e1f-b9d0-4cc4-a60d-0319b160aaa3": "Storage Table Data Contributor",
    "b7e6dc6d-f1e8-4753-8033-0f276bb0955b": "Storage Blob Data Owner",
    "5e0bd9bd-7b93-4f28-af87-19fc36ad61bd": "Cognitive Services OpenAI User",
    "3913510d-42f4-4e42-8a64-420c390055eb": "Monitoring Metrics Publisher",
    "09976791-48a7-449e-bb21-39d1a415f350": "Communication and Email Service Owner",
    "4633458b-17de-408a-874b-0445c86b69e6": "Key Vault Secrets User",
    "b86a8fe4-44ce-4948-aee5-eccb2c155cd7": "Key Vault Secrets Officer",
}
Grant = tuple[str, str, str]  # to whom, which role, on what type of resource
EVERYBODYS: set[Grant] = {
    ("app", "Storage Blob Data Owner", "Microsoft.Storage/storageAccounts"),
    ("app", "Storage Table Data Contributor", "Microsoft.Storage/storageAccounts"),
    ("app", "Cognitive Services OpenAI User", "Microsoft.CognitiveServices/accounts"),
    ("app", "Monitoring Metrics Publisher", "Microsoft.Insights/components"),
    ("developer", "Storage Table Data Contributor", "Microsoft.Storage/storageAccounts"),
    ("developer", "Cognitive Services OpenAI User", "Microsoft.CognitiveServices/accounts"),
    ("developer", "Key Vault Secrets Officer", "Microsoft.KeyVault/vaults"),
}
MAIL: set[Grant] = {
    ("app", "Communication and Email Service Owner", "Microsoft.Communication/communicationServices"),
    ("developer", "Communication and Email Service Owner", "Microsoft.Communication/communicationServices"),
}
READS_SECRETS: Grant = ("app", "Key Vault Secrets User", "Microsoft.KeyVault/vaults")

# Settings that a deployed app does not get, and why.
LOCAL = {
    "ACS_CONNECTION_STRING": "a key; ACS_ENDPOINT signs in by identity",
    "AZURE_OPENAI_SCOPE": "the default is right for Azure OpenAI in the public cloud; extraSettings sets another",
    "IDENTITY_ENDPOINT": "the platform sets it itself where an identity is assigned",
    "REGION_NAME": "the platform sets it itself",
    "OUTBOX_DIR": "a folder of a developer's machine",
    "TABLES_CONNECTION_STRING": "a key; TABLES_ENDPOINT signs in by identity",
}
# Settings that a deployed app gets only in the alternative that was chosen.
ALTERNATIVES = {"AZURE_OPENAI_API_KEY": "api-key", "ACS_ENDPOINT": "email", "SMTP_URL": "smtp"}
# What the platform reads, not the app.
PLATFORM = {
    "APPLICATIONINSIGHTS_AUTHENTICATION_STRING",
    "APPLICATIONINSIGHTS_CONNECTION_STRING",
    "AzureWebJobsStorage__blobServiceUri",
    "AzureWebJobsStorage__clientId",
    "AzureWebJobsStorage__credential",
}
# https://learn.microsoft.com/azure/azure-functions/functions-app-settings#flex-consumption-plan-deprecations
REFUSED_SETTINGS = re.compile(
    r"FUNCTIONS_(EXTENSION_VERSION|WORKER_\w+|MAX_HTTP_CONCURRENCY)|(SCM_DO_BUILD|ENABLE_ORYX)\w*|WEBSITE_\w+"
)
REFUSED_SITE_CONFIG = {
    "ftpsState",
    "linuxFxVersion",
    "use32BitWorkerProcess",
    "netFrameworkVersion",
    "preWarmedInstanceCount",
    "functionsRuntimeScaleMonitoringEnabled",
    "alwaysOn",
}


@pytest.fixture(scope="module")
def compiler() -> Iterator[Compiler]:
    with bicep.running() as compiler:
        yield compiler


@pytest.fixture(scope="module")
def predicted(compiler: Compiler) -> Mapping[str, Deployment]:
    return {name: compiler.predict(PARAMETERS / f"{name}.bicepparam") for name in SWITCHES}


def strings(value: Any) -> Iterator[str]:
    """Every string in it, however deep."""
    if isinstance(value, str):
        yield value
    elif isinstance(value, dict):
        for part in value.values():
            yield from strings(part)
    elif isinstance(value, list):
        for part in value:
            yield from strings(part)


def grants(deployment: Deployment) -> set[Grant]:
    found = set()
    for assignment in deployment.of("Microsoft.Authorization/roleAssignments"):
        properties = assignment["properties"]
        principal = properties["principalId"]
        kind = properties["principalType"]
        who = "developer" if (principal, kind) == (DEVELOPER, "User") else "somebody"
        if kind == "ServicePrincipal" and "userAssignedIdentities/id-" in principal:
            who = "app"
        scope = assignment["id"].removeprefix("[extensionResourceId('").split("'")[0]
        parts = scope.split("/providers/")[1].split("/")
        found.add((who, ROLES[properties["roleDefinitionId"].rsplit("/", 1)[1]], f"{parts[0]}/{parts[1]}"))
    return found


def resources_of(template: dict[str, Any]) -> list[dict[str, Any]]:
    """A list, or an object of them by symbolic name where the template needs one."""
    declared = template["resources"]
    return list(declared.values() if isinstance(declared, dict) else declared)


@pytest.fixture(scope="module")
def built() -> "subprocess.CompletedProcess[str]":
    return bicep.bicep("build", "infra/main.bicep", "--stdout")


@needs_bicep
class TestTemplates:
    def test_they_compile_without_a_warning(self, built: "subprocess.CompletedProcess[str]") -> None:
        assert (built.returncode, built.stderr) == (0, "")
        assert json.loads(built.stdout)["$schema"].endswith("subscriptionDeploymentTemplate.json#")

    def test_the_linter_finds_nothing(self) -> None:
        linted = bicep.bicep("lint", "infra/main.bicep")
        assert (linted.returncode, linted.stdout + linted.stderr) == (0, "")

    def test_they_are_laid_out_as_the_formatter_would(self, tmp_path: Path) -> None:
        shutil.copytree(INFRA, tmp_path / "infra")
        formatted = bicep.bicep("format", "--pattern", str(tmp_path / "infra" / "**" / "*.bicep"))
        assert formatted.returncode == 0, formatted.stderr
        for ours in INFRA.rglob("*.bicep"):
            assert ours.read_text() == (tmp_path / "infra" / ours.relative_to(INFRA)).read_text(), ours.name

    def test_nothing_is_fetched_from_a_registry(self) -> None:
        assert not [path for path in INFRA.rglob("*.bicep") if re.search(r"'(br|ts)[:/]", path.read_text())]

    def test_every_parameter_and_output_is_described(self, built: "subprocess.CompletedProcess[str]") -> None:
        pending = [json.loads(built.stdout)]
        while pending:
            part = pending.pop()
            for kind in ("parameters", "outputs"):
                for name, described in part.get(kind, {}).items():
                    assert described["metadata"]["description"], name
            pending += [
                resource["properties"]["template"]
                for resource in resources_of(part)
                if resource["type"] == "Microsoft.Resources/deployments"
            ]

    def test_an_empty_value_is_no_value_of_what_cannot_be_empty(
        self, built: "subprocess.CompletedProcess[str]"
    ) -> None:
        """azd hands on a variable that is set to nothing as such, and not the template's default."""
        parameters = json.loads(built.stdout)["parameters"]
        for name in ("environmentName", "summarySchedule", "emailDataLocation"):
            assert parameters[name].get("minLength") == 1, name


def test_every_parameter_can_be_set_in_azds_environment() -> None:
    declared = set(re.findall(r"^param (\w+)", (INFRA / "main.bicep").read_text(), re.MULTILINE))
    mapped = json.loads((INFRA / "main.parameters.json").read_text())["parameters"]
    assert mapped.keys() == declared - {"thisMonth"}  # the template's own
    names = [re.fullmatch(r"\$\{([A-Z_]+)\}", parameter["value"]) for parameter in mapped.values()]
    assert all(names)
    assert len({name[1] for name in names if name}) == len(mapped)


@needs_bicep
class TestRefusals:
    @pytest.mark.parametrize(
        ("file", "reason"),
        [
            ("two-keys", "openAiSecondaryLocation needs openAiAuth identity"),
            ("smtp-without-sender", "mailTransport smtp needs summarySender"),
            ("existing-account-nowhere", "existingOpenAiName needs existingOpenAiResourceGroup"),
        ],
    )
    def test_what_does_not_go_together_is_refused(self, compiler: Compiler, file: str, reason: str) -> None:
        with pytest.raises(Refused, match=reason):
            compiler.predict(PARAMETERS / "refused" / f"{file}.bicepparam")


@needs_bicep
@pytest.mark.parametrize("name", SWITCHES)
class TestEverywhere:
    """What holds whatever is switched on."""

    def test_storage_takes_no_keys_and_shows_nothing(self, predicted: Mapping[str, Deployment], name: str) -> None:
        properties = predicted[name].one("Microsoft.Storage/storageAccounts")["properties"]
        assert properties["allowSharedKeyAccess"] is False
        assert properties["allowBlobPublicAccess"] is False
        assert properties["supportsHttpsTrafficOnly"] is True
        assert properties["minimumTlsVersion"] == "TLS1_2"
        (container,) = predicted[name].of("Microsoft.Storage/storageAccounts/blobServices/containers")
        assert container["properties"]["publicAccess"] == "None"

    def test_no_service_takes_keys(self, predicted: Mapping[str, Deployment], name: str) -> None:
        keyed = name == "api-key"
        for account in predicted[name].of("Microsoft.CognitiveServices/accounts"):
            assert account["properties"]["disableLocalAuth"] is not keyed
            assert account["properties"]["customSubDomainName"] == account["name"]
        for communication in predicted[name].of("Microsoft.Communication/communicationServices"):
            assert communication["properties"]["disableLocalAuth"] is True
        assert predicted[name].one("Microsoft.Insights/components")["properties"]["DisableLocalAuth"] is True
        workspace = predicted[name].one("Microsoft.OperationalInsights/workspaces")
        assert workspace["properties"]["features"]["disableLocalAuth"] is True
        assert predicted[name].one("Microsoft.KeyVault/vaults")["properties"]["enableRbacAuthorization"] is True
        policies = predicted[name].of(PUBLISHING_PASSWORDS)
        assert [policy["properties"]["allow"] for policy in policies] == [False, False]

    def test_publishing_passwords_are_refused_in_a_region(self, predicted: Mapping[str, Deployment], name: str) -> None:
        """Without one Azure has refused them: "The parameter location has an invalid value"."""
        for policy in predicted[name].of(PUBLISHING_PASSWORDS):
            assert policy.get("location") == "swedencentral"

    def test_a_key_is_read_only_into_the_vault(self, predicted: Mapping[str, Deployment], name: str) -> None:
        readers = [r["name"] for r in predicted[name].resources if any("listKeys" in text for text in strings(r))]
        assert [reader.split("/")[1] for reader in readers] == (["openai-api-key"] if "api-key" in name else [])

    def test_no_output_and_no_setting_holds_a_secret(self, predicted: Mapping[str, Deployment], name: str) -> None:
        shown = [*strings(dict(predicted[name].outputs)), *predicted[name].settings.values()]
        assert not [text for text in shown if re.search(r"listKeys|not-a-password|AccountKey|/secrets/[^)]*\)\.", text)]
        assert not [output for output in predicted[name].outputs if re.search("KEY(?!_VAULT_NAME)|SECRET", output)]

    def test_the_outputs_are_what_azd_and_people_need(self, predicted: Mapping[str, Deployment], name: str) -> None:
        assert predicted[name].outputs.keys() == {
            "AZURE_BUDGET_START_DATE",
            "AZURE_FUNCTION_APP_NAME",
            "AZURE_FUNCTION_APP_URL",
            "AZURE_KEY_VAULT_NAME",
            "AZURE_LOCATION",
            "AZURE_OPENAI_DEPLOYMENTS",
            "AZURE_OPENAI_ENDPOINT",
            "AZURE_OPENAI_MODEL",
            "AZURE_OPENAI_NAME",
            "AZURE_OPENAI_RESOURCE_ID",
            "AZURE_RESOURCE_GROUP",
            "AZURE_TENANT_ID",
            "LOG_ANALYTICS_WORKSPACE_ID",
            "TABLES_ENDPOINT",
        }

    def test_the_app_is_what_flex_takes(self, predicted: Mapping[str, Deployment], name: str) -> None:
        plan = predicted[name].one("Microsoft.Web/serverfarms")
        assert (plan["sku"], plan["properties"]["reserved"]) == ({"name": "FC1", "tier": "FlexConsumption"}, True)
        app = predicted[name].one("Microsoft.Web/sites")
        identity = f"{GROUP}/providers/Microsoft.ManagedIdentity/userAssignedIdentities/id-"
        assert app["tags"]["azd-service-name"] == "api"
        assert next(iter(app["identity"]["userAssignedIdentities"])).startswith(identity)
        properties = app["properties"]
        assert properties["httpsOnly"] is True
        assert properties["siteConfig"]["minTlsVersion"] in ("1.2", "1.3")
        assert properties["siteConfig"]["scmMinTlsVersion"] in ("1.2", "1.3")
        assert not properties["siteConfig"].keys() & REFUSED_SITE_CONFIG
        assert properties["keyVaultReferenceIdentity"].startswith(identity)
        config = properties["functionAppConfig"]
        assert config["runtime"] == {"name": "python", "version": PYTHON}
        assert config["deployment"]["storage"]["authentication"]["type"] == "UserAssignedIdentity"
        scale = config["scaleAndConcurrency"]
        assert scale["instanceMemoryMB"] == 2048
        assert scale["maximumInstanceCount"] == (100 if name == "everything" else 40)
        assert scale["triggers"]["http"]["perInstanceConcurrency"] == (16 if name == "everything" else 32)
        assert scale["alwaysReady"] == ([{"name": "http", "instanceCount": 1}] if name == "everything" else [])
        assert ("siteUpdateStrategy" in config) is (name != "everything")

    def test_it_has_every_setting_and_none_that_nobody_reads(
        self, predicted: Mapping[str, Deployment], name: str
    ) -> None:
        given = predicted[name].settings
        assert not [setting for setting in given if REFUSED_SETTINGS.fullmatch(setting)]
        missing = (names_read() | PLATFORM) - given.keys() - LOCAL.keys() - ALTERNATIVES.keys()
        assert not missing
        known = names_read() | PLATFORM | settings_file(ROOT / "local.settings.sample.json").keys()
        assert not given.keys() - known
        assert not given.keys() & LOCAL.keys()
        assert all(isinstance(value, str) for value in given.values())

    def test_the_app_says_which_identity_it_is(self, predicted: Mapping[str, Deployment], name: str) -> None:
        given = predicted[name].settings
        client_id = r"\[reference\('\S+/userAssignedIdentities/id-\w+', '[\d-]+'\)\.clientId\]"
        assert re.fullmatch(client_id, given["AZURE_CLIENT_ID"])
        assert given["AzureWebJobsStorage__clientId"] == given["AZURE_CLIENT_ID"]
        assert given["AzureWebJobsStorage__credential"] == "managedidentity"
        assert "AzureWebJobsStorage" not in given
        assert "Authorization=AAD" in given["APPLICATIONINSIGHTS_AUTHENTICATION_STRING"]

    def test_nobody_has_a_role_that_is_not_listed(self, predicted: Mapping[str, Deployment], name: str) -> None:
        expected = set(EVERYBODYS)
        if name in ("email", "everything"):
            expected |= MAIL
        if "api-key" in name or name == "smtp":
            expected |= {READS_SECRETS}
        if "api-key" in name:
            expected -= {("app", "Cognitive Services OpenAI User", "Microsoft.CognitiveServices/accounts")}
        if name == "pipeline":
            expected = {grant for grant in expected if grant[0] != "developer"}
        assert grants(predicted[name]) == expected

    def test_a_role_is_named_after_what_it_grants(self, predicted: Mapping[str, Deployment], name: str) -> None:
        """So that a second provisioning finds it, and one with a new identity makes another."""
        names = [grant["name"] for grant in predicted[name].of("Microsoft.Authorization/roleAssignments")]
        assert len(names) == len(set(names))
        for given in names:
            assert re.fullmatch(r"[0-9a-f-]{36}", given) or re.fullmatch(
                r"\[guid\('/\S+', .*principalId, '\S+'\)\]", given
            )

    def test_the_model_service_and_storage_are_logged(self, predicted: Mapping[str, Deployment], name: str) -> None:
        settings = {
            d["id"].split("/providers/Microsoft.Insights/")[0]: d["properties"] for d in logged(predicted[name])
        }
        for account in predicted[name].of("Microsoft.CognitiveServices/accounts"):
            logs = {log["category"] for log in settings[account["id"]]["logs"]}
            assert logs == {"Audit", "RequestResponse", "AzureOpenAIRequestUsage"}
            assert settings[account["id"]]["metrics"] == [{"category": "AllMetrics", "enabled": True}]
        for part in ("blobServices", "tableServices"):
            (service,) = predicted[name].of(f"Microsoft.Storage/storageAccounts/{part}")
            assert {log["category"] for log in settings[service["id"]]["logs"]} == {"StorageWrite", "StorageDelete"}

    def test_everything_is_tagged_with_its_environment(self, predicted: Mapping[str, Deployment], name: str) -> None:
        for resource in predicted[name].resources:
            if "location" in resource and resource["type"] != PUBLISHING_PASSWORDS:  # which takes none
                assert resource["tags"]["azd-env-name"] == "test", resource["id"]

    def test_no_resource_is_deployed_twice(self, predicted: Mapping[str, Deployment], name: str) -> None:
        ids = [resource["id"] for resource in predicted[name].resources]
        assert len(ids) == len(set(ids))


def logged(deployment: Deployment) -> list[dict[str, Any]]:
    return deployment.of("Microsoft.Insights/diagnosticSettings")


@needs_bicep
class TestSwitches:
    def test_the_deployment_that_is_made_where_nothing_was_said(self, predicted: Mapping[str, Deployment]) -> None:
        (model,) = predicted["defaults"].of("Microsoft.CognitiveServices/accounts/deployments")
        assert model["sku"] == {"name": "GlobalStandard", "capacity": 20}
        assert model["properties"]["model"] == {"format": "OpenAI", "name": "gpt-5.4-mini", "version": "2026-03-17"}
        assert model["properties"]["raiPolicyName"] == "Microsoft.DefaultV2"
        given = predicted["defaults"].settings
        assert given["AZURE_OPENAI_DEPLOYMENTS"] == "gpt-5.4-mini=gpt-5.4-mini@2026-03-17"
        assert given["AZURE_OPENAI_MODEL"] == "gpt-5.4-mini"
        assert given["AZURE_OPENAI_REASONING_EFFORT"] == "none"
        assert given["SUMMARY_SCHEDULE"] == "0 0 6 * * *"
        assert re.fullmatch(
            r"\[reference\('\S+/accounts/oai-\w+', '[\d-]+'\)\.endpoint\]", given["AZURE_OPENAI_ENDPOINT"]
        )

    def test_the_settings_are_those_that_the_app_has_by_default(self, predicted: Mapping[str, Deployment]) -> None:
        """What the template spells out for the operator to turn is well-formed, and the code's own defaults."""
        required = {"AZURE_OPENAI_ENDPOINT": "https://x.openai.azure.com", "TABLES_ENDPOINT": "https://x.example"}
        required |= {name: predicted["defaults"].settings[name] for name in ("AZURE_OPENAI_DEPLOYMENTS",)}
        given = {name: value for name, value in predicted["defaults"].settings.items() if not value.startswith("[")}
        given.pop("SUMMARY_SCHEDULE")  # the Functions host requires it, so the app has no default
        given.pop("AZURE_OPENAI_REASONING_EFFORT")  # none, in a deployed app: reasoning could use up the whole answer
        assert Settings.from_env({**given, **required}) == Settings.from_env(required)

    def test_nothing_secret_is_kept_where_nothing_is_secret(self, predicted: Mapping[str, Deployment]) -> None:
        for name in set(SWITCHES) - {"api-key", "existing-account-api-key", "smtp"}:
            assert not predicted[name].of("Microsoft.KeyVault/vaults/secrets"), name
            assert not [value for value in predicted[name].settings.values() if "KeyVault" in value], name

    def test_a_second_region_comes_after_the_first(self, predicted: Mapping[str, Deployment]) -> None:
        first, second = predicted["second-region"].of("Microsoft.CognitiveServices/accounts")
        assert (first["location"], second["location"]) == ("swedencentral", "eastus2")
        endpoints = re.findall(r"accounts/([\w-]+)'", predicted["second-region"].settings["AZURE_OPENAI_ENDPOINT"])
        assert endpoints == [first["name"], second["name"]]
        assert len(predicted["second-region"].of("Microsoft.CognitiveServices/accounts/deployments")) == 2
        scopes = {alert["properties"]["scopes"][0] for alert in predicted["second-region"].of(METRIC_ALERTS)}
        assert scopes == {first["id"], second["id"]}
        grants = predicted["second-region"].of("Microsoft.Authorization/roleAssignments")
        assert len([grant for grant in grants if f"/{second['name']}" in grant["id"]]) == 2

    def test_another_second_region_is_another_account(self, predicted: Mapping[str, Deployment]) -> None:
        """Azure moves no account to another region, and points no private endpoint at another account."""
        for name, region in [("second-region", "eastus2"), ("everything", "germanywestcentral")]:
            first, second = predicted[name].of("Microsoft.CognitiveServices/accounts")
            assert second["name"] == f"{first['name']}-{region}"
            assert len(second["name"]) <= 64
            endpoints = predicted[name].of("Microsoft.Network/privateEndpoints")
            pointing = [endpoint["name"] for endpoint in endpoints if second["id"] in strings(endpoint)]
            assert len(pointing) == (1 if name == "everything" else 0)
            assert all(given.endswith(f"-openai-{region}") for given in pointing)

    @pytest.mark.parametrize("name", ["api-key", "existing-account-api-key"])
    def test_a_key_is_kept_in_the_vault_and_read_by_reference(
        self, predicted: Mapping[str, Deployment], name: str
    ) -> None:
        secrets = {s["name"].split("/")[1] for s in predicted[name].of("Microsoft.KeyVault/vaults/secrets")}
        assert secrets == {"openai-api-key", "openai-endpoint"}
        for setting, secret in [
            ("AZURE_OPENAI_API_KEY", "openai-api-key"),
            ("AZURE_OPENAI_ENDPOINT", "openai-endpoint"),
        ]:
            reference = predicted[name].settings[setting]
            assert "@Microsoft.KeyVault(SecretUri=" in reference
            assert secret in reference

    def test_a_secret_can_be_read_before_a_setting_refers_to_it(self) -> None:
        """The app's module takes the references from the vault's, which holds the role: Azure waits for all of it."""
        assert "...vault.outputs.references" in (INFRA / "main.bicep").read_text()
        assert "keyVaultSecretsUser" in (INFRA / "app" / "vault.bicep").read_text()

    def test_mail_by_smtp_needs_no_mail_service(self, predicted: Mapping[str, Deployment]) -> None:
        assert not predicted["smtp"].of("Microsoft.Communication/communicationServices")
        assert "smtp-url" in predicted["smtp"].settings["SMTP_URL"]
        assert predicted["smtp"].settings["SUMMARY_SENDER"] == "chat@example.com"
        assert "ACS_ENDPOINT" not in predicted["smtp"].settings

    def test_mail_by_communication_services(self, predicted: Mapping[str, Deployment]) -> None:
        given = predicted["email"].settings
        assert given["SUMMARY_RECIPIENTS"] == "ada@example.com,bob@example.com"
        assert re.search(r"DoNotReply@.*fromSenderDomain", given["SUMMARY_SENDER"])
        assert given["ACS_ENDPOINT"].startswith("[format('https://{0}', reference(")
        domain = predicted["email"].one("Microsoft.Communication/emailServices/domains")
        assert domain["properties"]["domainManagement"] == "AzureManaged"
        linked = predicted["email"].one("Microsoft.Communication/communicationServices")["properties"]["linkedDomains"]
        assert linked == [domain["id"]]

    def test_nobody_to_tell_means_no_mail_service(self, predicted: Mapping[str, Deployment]) -> None:
        assert not predicted["defaults"].of("Microsoft.Communication/emailServices")
        assert not predicted["defaults"].of("Microsoft.Insights/actionGroups")
        assert predicted["defaults"].settings["SUMMARY_RECIPIENTS"] == ""

    def test_the_recipients_hear_of_every_alert(self, predicted: Mapping[str, Deployment]) -> None:
        group = predicted["email"].one("Microsoft.Insights/actionGroups")
        addresses = [receiver["emailAddress"] for receiver in group["properties"]["emailReceivers"]]
        assert addresses == ["ada@example.com", "bob@example.com"]
        for alert in predicted["email"].of(METRIC_ALERTS):
            assert alert["properties"]["actions"] == [{"actionGroupId": group["id"]}]
        for alert in predicted["email"].of(LOG_ALERTS):
            assert alert["properties"]["actions"] == {"actionGroups": [group["id"]]}
        notified = predicted["email"].one("Microsoft.Consumption/budgets")["properties"]["notifications"].values()
        assert all(notification["contactEmails"] == addresses for notification in notified)

    def test_the_alerts(self, predicted: Mapping[str, Deployment]) -> None:
        assert [alert["name"] for alert in predicted["defaults"].of(LOG_ALERTS)] == [
            "server-errors",
            "summary-failed",
            "daily-cost",
        ]
        (model,) = predicted["defaults"].of(METRIC_ALERTS)
        (refused,) = model["properties"]["criteria"]["allOf"]
        assert refused["dimensions"] == [{"name": "StatusCode", "operator": "Include", "values": ["429"]}]

    def test_a_summary_that_did_not_come_is_no_better_for_silence(self, predicted: Mapping[str, Deployment]) -> None:
        """Without requests its query finds nothing after two days: only a person may close the alert."""
        rules = {alert["name"]: alert["properties"] for alert in predicted["defaults"].of(LOG_ALERTS)}
        assert [name for name, rule in rules.items() if not rule["autoMitigate"]] == ["summary-failed"]
        assert [name for name, rule in rules.items() if rule.get("muteActionsDuration")] == ["summary-failed"]

    def test_a_dear_day_is_told_although_the_one_before_was_dear_too(self, predicted: Mapping[str, Deployment]) -> None:
        """An alert that fired fires again only after two evaluations that found nothing, and a day's line comes daily:
        https://learn.microsoft.com/azure/azure-monitor/alerts/alerts-overview#stateful-alerts"""
        (rule,) = [a["properties"] for a in predicted["defaults"].of(LOG_ALERTS) if a["name"] == "daily-cost"]
        assert rule["evaluationFrequency"] == "PT1H"
        found_for = re.fullmatch(r"PT(\d+)H", rule["windowSize"])
        assert found_for
        assert int(found_for[1]) + 2 < 24

    def test_the_alerts_name_the_timer_as_the_app_does(self) -> None:
        assert declared.timers()["daily_cost_summary"] == "%SUMMARY_SCHEDULE%"
        assert 'Name == "daily_cost_summary"' in (INFRA / "queries" / "alert-summary.kql").read_text()
        assert '"the summary of %s could not be sent' in (ROOT / "shared" / "reports" / "delivery.py").read_text()

    def test_no_timer_counts_as_a_request_of_the_server_error_alert(self) -> None:
        (names,) = re.findall(r"where Name !in \((.*)\)", (INFRA / "queries" / "alert-server-errors.kql").read_text())
        assert set(json.loads(f"[{names}]")) == declared.timers().keys()

    def test_an_account_that_was_there_is_used_and_not_changed(self, predicted: Mapping[str, Deployment]) -> None:
        assert not predicted["existing-account"].of("Microsoft.CognitiveServices/accounts")
        assert not predicted["existing-account"].of("Microsoft.CognitiveServices/accounts/deployments")
        theirs = "/resourceGroups/rg-company-ai/providers/Microsoft.CognitiveServices/accounts/oai-company"
        assert theirs in predicted["existing-account"].settings["AZURE_OPENAI_ENDPOINT"]
        assert predicted["existing-account"].outputs["AZURE_OPENAI_NAME"] == "oai-company"
        granted = predicted["existing-account"].of("Microsoft.Authorization/roleAssignments")
        assert len([grant for grant in granted if theirs in grant["id"]]) == 2

    def test_the_budget(self, predicted: Mapping[str, Deployment]) -> None:
        budget = predicted["defaults"].one("Microsoft.Consumption/budgets")["properties"]
        assert budget["timePeriod"] == {"startDate": "2026-11-01"}
        thresholds = {(n["thresholdType"], n["threshold"]) for n in budget["notifications"].values()}
        assert thresholds == {("Actual", 50), ("Actual", 80), ("Actual", 100), ("Forecasted", 100)}
        assert all(n["contactRoles"] == ["Owner"] for n in budget["notifications"].values())

    def test_a_budget_keeps_its_first_month(self, predicted: Mapping[str, Deployment]) -> None:
        """Azure refuses another one for a budget that is there (or only switched off), and a past one for a new one."""
        kept = {name: predicted[name].outputs["AZURE_BUDGET_START_DATE"] for name in SWITCHES}
        assert (kept.pop("first-time"), kept.pop("never-a-budget")) == ("2026-12-01", "")
        assert set(kept.values()) == {"2026-11-01"}
        first = predicted["first-time"].one("Microsoft.Consumption/budgets")["properties"]
        assert first["timePeriod"] == {"startDate": "2026-12-01"}

    def test_no_budget_and_no_cost_alert(self, predicted: Mapping[str, Deployment]) -> None:
        assert not predicted["no-budget"].of("Microsoft.Consumption/budgets")
        assert "daily-cost" not in [alert["name"] for alert in predicted["no-budget"].of(LOG_ALERTS)]

    @pytest.mark.parametrize(("name", "endpoints"), [("network", 4), ("everything", 5)])
    def test_a_virtual_network_closes_all_other_ways(
        self, predicted: Mapping[str, Deployment], name: str, endpoints: int
    ) -> None:
        deployment = predicted[name]
        closed = (
            "Microsoft.Storage/storageAccounts",
            "Microsoft.CognitiveServices/accounts",
            "Microsoft.KeyVault/vaults",
        )
        for resource in (resource for type_ in closed for resource in deployment.of(type_)):
            assert resource["properties"]["publicNetworkAccess"] == "Disabled", resource["id"]
            assert resource["properties"]["networkAcls"]["defaultAction"] == "Deny", resource["id"]
        network = deployment.one("Microsoft.Network/virtualNetworks")
        subnets = {subnet["name"]: subnet["properties"] for subnet in network["properties"]["subnets"]}
        delegated = [delegation["properties"]["serviceName"] for delegation in subnets["app"]["delegations"]]
        assert delegated == ["Microsoft.App/environments"]
        app = deployment.one("Microsoft.Web/sites")["properties"]
        assert app["virtualNetworkSubnetId"] == f"{network['id']}/subnets/app"
        assert len(deployment.of("Microsoft.Network/privateEndpoints")) == endpoints
        assert len(deployment.of("Microsoft.Network/privateEndpoints/privateDnsZoneGroups")) == endpoints
        assert len(deployment.of("Microsoft.Network/privateDnsZones")) == 4
        assert len(deployment.of("Microsoft.Network/privateDnsZones/virtualNetworkLinks")) == 4

    def test_an_account_that_was_there_is_found_beside_a_second_one_in_the_network(
        self, predicted: Mapping[str, Deployment]
    ) -> None:
        """It has no endpoint here, but the zone that the second one needs answers for all accounts that have one."""
        links = predicted["existing-account-and-second"].of("Microsoft.Network/privateDnsZones/virtualNetworkLinks")
        (openai,) = [link for link in links if link["name"].startswith("privatelink.openai.azure.com/")]
        assert openai["properties"]["resolutionPolicy"] == "NxDomainRedirect"

    def test_without_one_there_is_none(self, predicted: Mapping[str, Deployment]) -> None:
        assert not [r for r in predicted["defaults"].resources if r["type"].startswith("Microsoft.Network/")]

    def test_everything_at_once(self, predicted: Mapping[str, Deployment]) -> None:
        deployment = predicted["everything"]
        policies = deployment.of("Microsoft.CognitiveServices/accounts/raiPolicies")
        assert len(policies) == 2
        for policy in policies:
            filters = policy["properties"]["contentFilters"]
            assert {f["severityThreshold"] for f in filters if "severityThreshold" in f} == {"Low"}
            assert len([f for f in filters if "severityThreshold" in f]) == 8
        models = deployment.of("Microsoft.CognitiveServices/accounts/deployments")
        assert len(models) == 4
        assert all(model["properties"]["raiPolicyName"] == "chat" for model in models)
        assert deployment.one("Microsoft.KeyVault/vaults")["properties"]["enablePurgeProtection"] is True
        assert deployment.settings["AZURE_OPENAI_MAX_TOKENS"] == "1600"
        assert deployment.settings["AZURE_OPENAI_MODEL"] == "chat"

    def test_accounts_and_vault_are_brought_back_each_by_itself(self, predicted: Mapping[str, Deployment]) -> None:
        """An account is gone after 48 hours or a purge, a vault with purge protection is there for 7 days."""
        for name, accounts, vault in [
            ("defaults", False, "default"),
            ("everything", True, "default"),
            ("restored-vault", False, "recover"),
        ]:
            found = predicted[name].of("Microsoft.CognitiveServices/accounts")
            assert all(account["properties"].get("restore", False) is accounts for account in found), name
            assert predicted[name].one("Microsoft.KeyVault/vaults")["properties"]["createMode"] == vault, name

    def test_purge_protection_is_never_said_to_be_off(self, predicted: Mapping[str, Deployment]) -> None:
        """Azure refuses `false`."""
        vault = predicted["defaults"].one("Microsoft.KeyVault/vaults")["properties"]
        assert vault.get("enablePurgeProtection") is None

    def test_each_alternative_is_set_where_it_is_chosen(self, predicted: Mapping[str, Deployment]) -> None:
        for setting, name in ALTERNATIVES.items():
            assert setting in predicted[name].settings
            assert setting not in predicted["defaults"].settings

    def test_every_setting_is_described_in_the_sample(self) -> None:
        described = settings_file(ROOT / "local.settings.sample.json").keys()
        assert not names_read() - described - {"IDENTITY_ENDPOINT", "REGION_NAME"}


PUBLISHING_PASSWORDS = "Microsoft.Web/sites/basicPublishingCredentialsPolicies"
METRIC_ALERTS = "Microsoft.Insights/metricAlerts"
LOG_ALERTS = "Microsoft.Insights/scheduledQueryRules"


@needs_bicep
class TestOrder:
    """What Azure waits for, which no prediction says: the template itself does."""

    def test_roles_and_addresses_come_before_the_settings(self, built: "subprocess.CompletedProcess[str]") -> None:
        """A module is done when its roles are; one that a switch leaves out is not waited for."""
        function = json.loads(built.stdout)["resources"]["function"]
        needed = {"monitoring", "storage", "openAiAccess", "secondaryAccess", "vault", "email", "network"}
        assert needed <= set(function["dependsOn"])

    def test_a_budget_is_made_when_all_else_is_there(self, built: "subprocess.CompletedProcess[str]") -> None:
        """A deployment that failed has no outputs: azd would not keep the date of a budget that is there by now."""
        declared = json.loads(built.stdout)["resources"]
        awaited: set[str] = set()
        pending = ["budget"]
        while pending:
            new = set(declared[pending.pop()].get("dependsOn", [])) - awaited
            awaited |= new
            pending += new
        assert awaited == declared.keys() - {"budget"}

    def test_the_vault_names_its_account_even_where_it_keeps_no_key(
        self, built: "subprocess.CompletedProcess[str]"
    ) -> None:
        vault = json.loads(built.stdout)["resources"]["vault"]["properties"]["parameters"]
        assert vault["openAiName"] == {"value": "[variables('openAiName')]"}
        assert vault["keepsKey"] == {"value": "[variables('usesKey')]"}


def test_one_deployment_after_the_other() -> None:
    """Azure refuses a second one of an account while one is under way."""
    text = (INFRA / "app" / "openai.bicep").read_text()
    assert re.search(r"@batchSize\(1\).*\nresource models 'Microsoft.CognitiveServices/accounts/deployments@", text)


def test_one_private_endpoint_after_the_other() -> None:
    """Storage refuses a second one (StorageAccountOperationInProgress) while another is being made."""
    text = (INFRA / "app" / "network.bicep").read_text()
    assert re.search(r"@batchSize\(1\).*\nresource privateEndpoints 'Microsoft.Network/privateEndpoints@", text)


def test_azd_asks_for_a_region_with_quota_for_the_default_model() -> None:
    text = (INFRA / "main.bicep").read_text()
    assert "usageName: ['OpenAI.GlobalStandard.gpt-5.4-mini, 20']" in text
    assert "model: 'gpt-5.4-mini', version: '2026-03-17', sku: 'GlobalStandard', capacity: 20" in text


OF_AZD = {
    "PATH": os.environ["PATH"],
    "AZURE_ENV_NAME": "test",
    "AZURE_RESOURCE_GROUP": "rg-test",
    "AZURE_FUNCTION_APP_NAME": "func-test",
    "AZURE_FUNCTION_APP_URL": "https://func-test.azurewebsites.net",
    "AZURE_OPENAI_ENDPOINT": "https://oai-test.openai.azure.com/,https://oai-test-2.openai.azure.com/",
    "AZURE_OPENAI_MODEL": "gpt-5.4-mini",
    "AZURE_OPENAI_DEPLOYMENTS": "gpt-5.4-mini=gpt-5.4-mini@2026-03-17",
    "TABLES_ENDPOINT": "https://sttest.table.core.windows.net",
}


@pytest.mark.skipif(os.name == "nt", reason="POSIX hooks, on Windows")
class TestHooks:
    def run(self, hook: str, folder: Path, **values: str) -> str:
        """As azd does: the environment's values are variables, and the project's folder is the current one."""
        done = subprocess.run(
            ["sh", str(INFRA / "hooks" / hook)],
            cwd=folder,
            env={**OF_AZD, **values},
            capture_output=True,
            text=True,
            check=True,
        )
        return done.stdout

    def test_after_provisioning_a_local_run_has_its_settings(self, tmp_path: Path) -> None:
        (tmp_path / "local.settings.json").write_text("mine")
        said = self.run("postprovision.sh", tmp_path)
        assert "python3 -m local run --settings '.azure/test/local.settings.json'" in said
        given = settings_file(tmp_path / ".azure" / "test" / "local.settings.json")
        assert given["AZURE_OPENAI_ENDPOINT"] == OF_AZD["AZURE_OPENAI_ENDPOINT"]
        assert given["TABLES_ENDPOINT"] == OF_AZD["TABLES_ENDPOINT"]
        assert given["TABLE_PREFIX"] == "local"
        assert not given.keys() - names_read()
        assert not [name for name in given if "KEY" in name]
        assert (tmp_path / "local.settings.json").read_text() == "mine"

    def test_after_deployment_a_person_can_ask_the_app(self, tmp_path: Path) -> None:
        said = self.run("postdeploy.sh", tmp_path)
        assert "https://func-test.azurewebsites.net/chat" in said
        assert "az functionapp keys list -g 'rg-test' -n func-test --query functionKeys.default -o tsv" in said
        assert 'curl -sS https://func-test.azurewebsites.net/api/chat -H "x-functions-key: $KEY"' in said

    @pytest.mark.parametrize("hook", ["postprovision", "postdeploy"])
    def test_what_it_says_to_type_can_be_typed_whatever_the_environment_is_called(
        self, hook: str, tmp_path: Path
    ) -> None:
        """azd's names may hold parentheses, which a shell takes for its own."""
        said = self.run(f"{hook}.sh", tmp_path, AZURE_ENV_NAME="test(2)", AZURE_RESOURCE_GROUP="rg-test(2)")
        commands = re.findall(r"^  (\S.*)$", said, re.MULTILINE)
        assert any("test(2)" in command for command in commands)
        for command in commands:
            assert subprocess.run(["sh", "-n", "-c", command], check=False).returncode == 0, command

    @pytest.mark.parametrize("hook", ["postprovision", "postdeploy"])
    def test_powershell_reads_and_writes_the_same(self, hook: str) -> None:
        posix = (INFRA / "hooks" / f"{hook}.sh").read_text()
        powershell = (INFRA / "hooks" / f"{hook}.ps1").read_text()
        assert set(re.findall(r"\$\{?(AZURE_\w+|TABLES_\w+)", posix)) == set(re.findall(r"\$env:(\w+)", powershell))
        named = set(re.findall(r'^\s+"([A-Z_]+)":', posix, re.MULTILINE))
        assert named == set(re.findall(r"^\s+([A-Z_]+) += ", powershell, re.MULTILINE))
