"""The templates in infra/: they compile without warnings; predicted deployments are keyless, closed and complete.

The Bicep compiler predicts the deployments from the parameter files in tests/infra, without Azure.
"""

import json
import os
import re
import shutil
import subprocess
from collections.abc import Iterator, Mapping
from datetime import UTC, datetime
from pathlib import Path
from typing import Any

import pytest

from local.environment import settings_file
from local.places import ROOT
from shared.settings import ModelSettings, Settings
from tests.infra.conftest import Predict
from tests.support import bicep, declared
from tests.support.bicep import SUBSCRIPTION, Compiler, Deployment, Refused
from tests.support.platform_runtime import PYTHON
from tests.support.setting_names import MINIMAL, names_read

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
Grant = tuple[str, str, str]  # grantee, role, type of the resource
DEFAULT_GRANTS: set[Grant] = {
    ("app", "Storage Blob Data Owner", "Microsoft.Storage/storageAccounts"),
    ("app", "Storage Table Data Contributor", "Microsoft.Storage/storageAccounts"),
    ("app", "Cognitive Services OpenAI User", "Microsoft.CognitiveServices/accounts"),
    ("app", "Monitoring Metrics Publisher", "Microsoft.Insights/components"),
    ("developer", "Storage Table Data Contributor", "Microsoft.Storage/storageAccounts"),
    ("developer", "Cognitive Services OpenAI User", "Microsoft.CognitiveServices/accounts"),
    ("developer", "Key Vault Secrets Officer", "Microsoft.KeyVault/vaults"),
}
EMAIL_GRANTS: set[Grant] = {
    ("app", "Communication and Email Service Owner", "Microsoft.Communication/communicationServices"),
    ("developer", "Communication and Email Service Owner", "Microsoft.Communication/communicationServices"),
}
SECRETS_GRANT: Grant = ("app", "Key Vault Secrets User", "Microsoft.KeyVault/vaults")

# Settings that a deployed app does not get, with the reason.
LOCAL = {
    "ACS_CONNECTION_STRING": "a key; ACS_ENDPOINT signs in by identity",
    "AZURE_OPENAI_EMBEDDING_API_KEY": "a key; the app signs in to the account as for chat",
    "AZURE_OPENAI_EMBEDDING_ENDPOINT": "the account has the embedding model too; extraSettings sets another service",
    "AZURE_OPENAI_SCOPE": "the default is right for Azure OpenAI in the public cloud; extraSettings sets another",
    "IDENTITY_ENDPOINT": "set by the platform if an identity is assigned",
    "REGION_NAME": "set by the platform",
    "OUTBOX_DIR": "a folder of a developer's machine",
    "TABLES_CONNECTION_STRING": "a key; TABLES_ENDPOINT signs in by identity",
    "TABLES_CLIENT": "the default is right for Table Storage; extraSettings sets the other",
}
# Settings that a deployed app gets only with the given parameter file.
ALTERNATIVES = {"AZURE_OPENAI_API_KEY": "api-key", "ACS_ENDPOINT": "email", "SMTP_URL": "smtp"}
# Settings read by the platform, not by the app.
PLATFORM = {
    "APPLICATIONINSIGHTS_AUTHENTICATION_STRING",
    "APPLICATIONINSIGHTS_CONNECTION_STRING",
    "AzureWebJobsDisableHomepage",
    "AzureWebJobsStorage__accountName",
    "AzureWebJobsStorage__blobServiceUri",
    "AzureWebJobsStorage__clientId",
    "AzureWebJobsStorage__credential",
}
# https://learn.microsoft.com/azure/azure-functions/functions-app-settings#flex-consumption-plan-deprecations
REJECTED_SETTINGS = re.compile(
    r"FUNCTIONS_(EXTENSION_VERSION|WORKER_\w+|MAX_HTTP_CONCURRENCY)|(SCM_DO_BUILD|ENABLE_ORYX)\w*|WEBSITE_\w+"
)
REJECTED_SITE_CONFIG = {
    "ftpsState",
    "linuxFxVersion",
    "use32BitWorkerProcess",
    "netFrameworkVersion",
    "preWarmedInstanceCount",
    "functionsRuntimeScaleMonitoringEnabled",
    "alwaysOn",
}


@pytest.fixture(scope="module")
def predicted(compiler: Compiler) -> Mapping[str, Deployment]:
    return {name: compiler.predict(PARAMETERS / f"{name}.bicepparam") for name in SWITCHES}


def strings(value: Any) -> Iterator[str]:
    """Every string in the value, at any depth."""
    if isinstance(value, str):
        yield value
    elif isinstance(value, dict):
        for part in value.values():
            yield from strings(part)
    elif isinstance(value, list):
        for part in value:
            yield from strings(part)


def grants(deployment: Deployment) -> set[Grant]:
    granted = set()
    for assignment in deployment.of("Microsoft.Authorization/roleAssignments"):
        properties = assignment["properties"]
        principal = properties["principalId"]
        kind = properties["principalType"]
        grantee = "developer" if (principal, kind) == (DEVELOPER, "User") else "unknown"
        if kind == "ServicePrincipal" and "userAssignedIdentities/id-" in principal:
            grantee = "app"
        scope = assignment["id"].removeprefix("[extensionResourceId('").split("'")[0]
        parts = scope.split("/providers/")[1].split("/")
        granted.add((grantee, ROLES[properties["roleDefinitionId"].rsplit("/", 1)[1]], f"{parts[0]}/{parts[1]}"))
    return granted


def resources_of(template: dict[str, Any]) -> list[dict[str, Any]]:
    """The template's resources, which are a list or, with symbolic names, an object."""
    declared = template["resources"]
    return list(declared.values() if isinstance(declared, dict) else declared)


@pytest.fixture(scope="module")
def built() -> "subprocess.CompletedProcess[str]":
    return bicep.bicep("build", "infra/main.bicep", "--stdout")


@needs_bicep
class TestTemplates:
    def test_templates_compile_without_warnings(self, built: "subprocess.CompletedProcess[str]") -> None:
        assert (built.returncode, built.stderr) == (0, "")
        assert json.loads(built.stdout)["$schema"].endswith("subscriptionDeploymentTemplate.json#")

    def test_templates_pass_the_linter(self) -> None:
        linted = bicep.bicep("lint", "infra/main.bicep")
        assert (linted.returncode, linted.stdout + linted.stderr) == (0, "")

    def test_templates_are_formatted(self, tmp_path: Path) -> None:
        shutil.copytree(INFRA, tmp_path / "infra")
        formatted = bicep.bicep("format", "--pattern", str(tmp_path / "infra" / "**" / "*.bicep"))
        assert formatted.returncode == 0, formatted.stderr
        for path in INFRA.rglob("*.bicep"):
            assert path.read_text() == (tmp_path / "infra" / path.relative_to(INFRA)).read_text(), path.name

    def test_templates_use_no_registry_modules(self) -> None:
        assert not [path for path in INFRA.rglob("*.bicep") if re.search(r"'(br|ts)[:/]", path.read_text())]

    def test_every_parameter_and_output_has_a_description(self, built: "subprocess.CompletedProcess[str]") -> None:
        pending = [json.loads(built.stdout)]
        while pending:
            part = pending.pop()
            for kind in ("parameters", "outputs"):
                for name, definition in part.get(kind, {}).items():
                    assert definition["metadata"]["description"], name
            pending += [
                resource["properties"]["template"]
                for resource in resources_of(part)
                if resource["type"] == "Microsoft.Resources/deployments"
            ]

    def test_required_parameters_reject_an_empty_value(self, built: "subprocess.CompletedProcess[str]") -> None:
        """azd passes a variable that is set to an empty value on, instead of using the template's default."""
        parameters = json.loads(built.stdout)["parameters"]
        for name in ("environmentName", "summarySchedule", "emailDataLocation"):
            assert parameters[name].get("minLength") == 1, name


def test_every_parameter_can_be_set_in_the_azd_environment() -> None:
    declared = set(re.findall(r"^param (\w+)", (INFRA / "main.bicep").read_text(), re.MULTILINE))
    mapped = json.loads((INFRA / "main.parameters.json").read_text())["parameters"]
    assert mapped.keys() == declared - {"thisMonth"}  # not set from azd's environment
    names = [re.fullmatch(r"\$\{([A-Z_]+)\}", parameter["value"]) for parameter in mapped.values()]
    assert all(names)
    assert len({name[1] for name in names if name}) == len(mapped)


@needs_bicep
class TestInvalidCombinations:
    @pytest.mark.parametrize(
        ("file", "reason"),
        [
            ("two-keys", "openAiSecondaryLocation needs openAiAuth identity"),
            ("smtp-without-sender", "mailTransport smtp needs summarySender"),
            ("existing-account-nowhere", "existingOpenAiName needs existingOpenAiResourceGroup"),
            ("embedding-without-sku", r"'embeddingDeployment' parameter [\s\S]*'sku' must be provided"),
            ("embedding-named-as-another", 'embeddingDeployment both name a deployment "gpt-5.4-mini", with different'),
        ],
    )
    def test_invalid_combination_of_parameters_is_rejected(self, compiler: Compiler, file: str, reason: str) -> None:
        with pytest.raises(Refused, match=reason):
            compiler.predict(PARAMETERS / "refused" / f"{file}.bicepparam")


@needs_bicep
@pytest.mark.parametrize("name", SWITCHES)
class TestAllSwitches:
    """Rules for every parameter file."""

    def test_storage_accepts_no_keys_and_has_no_public_data(
        self, predicted: Mapping[str, Deployment], name: str
    ) -> None:
        properties = predicted[name].one("Microsoft.Storage/storageAccounts")["properties"]
        assert properties["allowSharedKeyAccess"] is False
        assert properties["allowBlobPublicAccess"] is False
        assert properties["supportsHttpsTrafficOnly"] is True
        assert properties["minimumTlsVersion"] == "TLS1_2"
        (container,) = predicted[name].of("Microsoft.Storage/storageAccounts/blobServices/containers")
        assert container["properties"]["publicAccess"] == "None"

    def test_services_accept_no_keys(self, predicted: Mapping[str, Deployment], name: str) -> None:
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

    def test_policies_against_publishing_passwords_have_a_location(
        self, predicted: Mapping[str, Deployment], name: str
    ) -> None:
        """Without a location Azure has rejected them: "The parameter location has an invalid value"."""
        for policy in predicted[name].of(PUBLISHING_PASSWORDS):
            assert policy.get("location") == "swedencentral"

    def test_key_is_read_only_to_store_it_in_the_vault(self, predicted: Mapping[str, Deployment], name: str) -> None:
        readers = [r["name"] for r in predicted[name].resources if any("listKeys" in text for text in strings(r))]
        assert [reader.split("/")[1] for reader in readers] == (["openai-api-key"] if "api-key" in name else [])

    def test_outputs_and_settings_hold_no_secret(self, predicted: Mapping[str, Deployment], name: str) -> None:
        visible = [*strings(dict(predicted[name].outputs)), *predicted[name].settings.values()]
        assert not [
            text for text in visible if re.search(r"listKeys|not-a-password|AccountKey|/secrets/[^)]*\)\.", text)
        ]
        assert not [output for output in predicted[name].outputs if re.search("KEY(?!_VAULT_NAME)|SECRET", output)]

    def test_outputs(self, predicted: Mapping[str, Deployment], name: str) -> None:
        assert predicted[name].outputs.keys() == {
            "APP_LIMITS",
            "AZURE_BUDGET_NAME",
            "AZURE_FUNCTION_APP_NAME",
            "AZURE_FUNCTION_APP_URL",
            "AZURE_KEY_VAULT_NAME",
            "AZURE_LOCATION",
            "AZURE_OPENAI_DEPLOYMENTS",
            "AZURE_OPENAI_EMBEDDING_DEPLOYMENTS",
            "AZURE_OPENAI_ENDPOINT",
            "AZURE_OPENAI_MODEL",
            "AZURE_OPENAI_NAME",
            "AZURE_OPENAI_RESOURCE_ID",
            "AZURE_RESOURCE_GROUP",
            "AZURE_TENANT_ID",
            "LOG_ANALYTICS_WORKSPACE_ID",
            "TABLES_ENDPOINT",
            "UNPRICED_DEPLOYMENTS",
        }

    def test_function_app_fits_flex_consumption(self, predicted: Mapping[str, Deployment], name: str) -> None:
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
        assert not properties["siteConfig"].keys() & REJECTED_SITE_CONFIG
        assert properties["keyVaultReferenceIdentity"].startswith(identity)
        config = properties["functionAppConfig"]
        assert config["runtime"] == {"name": "python", "version": PYTHON}
        assert config["deployment"]["storage"]["authentication"]["type"] == "UserAssignedIdentity"
        scale = config["scaleAndConcurrency"]
        assert scale["instanceMemoryMB"] == 2048
        assert scale["maximumInstanceCount"] == (100 if name == "everything" else 40)
        assert scale["triggers"]["http"]["perInstanceConcurrency"] == (16 if name == "everything" else 32)
        assert scale["alwaysReady"] == ([{"name": "http", "instanceCount": 1}] if name == "everything" else [])
        strategy = "Recreate" if name == "everything" else "RollingUpdate"
        assert config["siteUpdateStrategy"] == {"type": strategy}

    def test_app_has_every_setting_and_no_unused_one(self, predicted: Mapping[str, Deployment], name: str) -> None:
        settings = predicted[name].settings
        assert not [setting for setting in settings if REJECTED_SETTINGS.fullmatch(setting)]
        missing = (names_read() | PLATFORM) - settings.keys() - LOCAL.keys() - ALTERNATIVES.keys()
        assert not missing
        allowed = names_read() | PLATFORM | settings_file(ROOT / "local.settings.sample.json").keys()
        assert not settings.keys() - allowed
        assert not settings.keys() & LOCAL.keys()
        assert all(isinstance(value, str) for value in settings.values())

    def test_platforms_own_page_is_off(self, predicted: Mapping[str, Deployment], name: str) -> None:
        """Compared with `true` in any case: Azure/azure-functions-host, HomepageMiddleware.cs."""
        assert predicted[name].settings["AzureWebJobsDisableHomepage"] == "true"

    def test_app_settings_name_the_identity(self, predicted: Mapping[str, Deployment], name: str) -> None:
        settings = predicted[name].settings
        client_id = r"\[reference\('\S+/userAssignedIdentities/id-\w+', '[\d-]+'\)\.clientId\]"
        assert re.fullmatch(client_id, settings["AZURE_CLIENT_ID"])
        assert settings["AzureWebJobsStorage__clientId"] == settings["AZURE_CLIENT_ID"]
        assert settings["AzureWebJobsStorage__credential"] == "managedidentity"
        assert "AzureWebJobsStorage" not in settings
        account = predicted[name].one("Microsoft.Storage/storageAccounts")["name"]
        assert settings["AzureWebJobsStorage__accountName"] == account
        assert f"'https://{{0}}.blob.{{1}}', '{account}'," in settings["AzureWebJobsStorage__blobServiceUri"]
        assert "Authorization=AAD" in settings["APPLICATIONINSIGHTS_AUTHENTICATION_STRING"]

    def test_role_assignments_are_those_listed(self, predicted: Mapping[str, Deployment], name: str) -> None:
        expected = set(DEFAULT_GRANTS)
        if name in ("email", "everything"):
            expected |= EMAIL_GRANTS
        if "api-key" in name or name == "smtp":
            expected |= {SECRETS_GRANT}
        if "api-key" in name:
            expected -= {("app", "Cognitive Services OpenAI User", "Microsoft.CognitiveServices/accounts")}
        if name == "pipeline":
            expected = {grant for grant in expected if grant[0] != "developer"}
        assert grants(predicted[name]) == expected

    def test_role_assignment_name_derives_from_resource_principal_and_role(
        self, predicted: Mapping[str, Deployment], name: str
    ) -> None:
        """So that a second provisioning finds the assignment, and a new identity gets a new one."""
        names = [grant["name"] for grant in predicted[name].of("Microsoft.Authorization/roleAssignments")]
        assert len(names) == len(set(names))
        for assignment in names:
            assert re.fullmatch(r"[0-9a-f-]{36}", assignment) or re.fullmatch(
                r"\[guid\('/\S+', .*principalId, '\S+'\)\]", assignment
            )

    def test_model_service_and_storage_are_logged(self, predicted: Mapping[str, Deployment], name: str) -> None:
        settings = {
            d["id"].split("/providers/Microsoft.Insights/")[0]: d["properties"]
            for d in diagnostic_settings(predicted[name])
        }
        for account in predicted[name].of("Microsoft.CognitiveServices/accounts"):
            logs = {log["category"] for log in settings[account["id"]]["logs"]}
            assert logs == {"Audit", "RequestResponse", "AzureOpenAIRequestUsage"}
            assert settings[account["id"]]["metrics"] == [{"category": "AllMetrics", "enabled": True}]
        for part in ("blobServices", "tableServices"):
            (service,) = predicted[name].of(f"Microsoft.Storage/storageAccounts/{part}")
            assert {log["category"] for log in settings[service["id"]]["logs"]} == {"StorageWrite", "StorageDelete"}

    def test_resources_are_tagged_with_their_environment(self, predicted: Mapping[str, Deployment], name: str) -> None:
        for resource in predicted[name].resources:
            if "location" in resource and resource["type"] != PUBLISHING_PASSWORDS:  # which takes no tags
                assert resource["tags"]["azd-env-name"] == "test", resource["id"]

    def test_no_resource_is_deployed_twice(self, predicted: Mapping[str, Deployment], name: str) -> None:
        ids = [resource["id"] for resource in predicted[name].resources]
        assert len(ids) == len(set(ids))


def model_settings(deployment: Deployment) -> ModelSettings:
    """As the app reads them; the endpoints are known only after a deployment."""
    values = {name: value for name, value in deployment.settings.items() if value[:1] != "["}
    return Settings.from_env({**MINIMAL, **values}).model


def diagnostic_settings(deployment: Deployment) -> list[dict[str, Any]]:
    return deployment.of("Microsoft.Insights/diagnosticSettings")


@needs_bicep
class TestSwitches:
    def test_default_model_deployment_and_settings(self, predicted: Mapping[str, Deployment]) -> None:
        model = predicted["defaults"].of(MODELS)[0]
        assert model["sku"] == {"name": "GlobalStandard", "capacity": 20}
        assert model["properties"]["model"] == {"format": "OpenAI", "name": "gpt-5.4-mini", "version": "2026-03-17"}
        assert model["properties"]["raiPolicyName"] == "Microsoft.DefaultV2"
        settings = predicted["defaults"].settings
        assert settings["AZURE_OPENAI_DEPLOYMENTS"] == "gpt-5.4-mini=gpt-5.4-mini@2026-03-17"
        assert settings["AZURE_OPENAI_MODEL"] == "gpt-5.4-mini"
        assert settings["AZURE_OPENAI_REASONING_EFFORT"] == "none"
        assert settings["SUMMARY_SCHEDULE"] == "0 0 6 * * *"
        assert re.fullmatch(
            r"\[reference\('\S+/accounts/oai-\w+', '[\d-]+'\)\.endpoint\]", settings["AZURE_OPENAI_ENDPOINT"]
        )

    def test_capacity_of_the_default_models(self, predict: Predict) -> None:
        models = predict(modelCapacity=5, embeddingCapacity=1).of(MODELS)
        assert [model["sku"]["capacity"] for model in models] == [5, 1]

    @pytest.mark.parametrize("count", [1, 1000])
    def test_number_of_instances_is_that_of_the_platform(self, predict: Predict, count: int) -> None:
        app = predict(maximumInstances=count).one("Microsoft.Web/sites")["properties"]
        assert app["functionAppConfig"]["scaleAndConcurrency"]["maximumInstanceCount"] == count

    def test_no_instance_is_refused(self, predict: Predict) -> None:
        with pytest.raises(Refused):
            predict(maximumInstances=0)

    @pytest.mark.parametrize(
        ("name", "deployment", "model", "sku"),
        [
            ("defaults", "text-embedding-3-small", "text-embedding-3-small", ("GlobalStandard", 50)),
            ("another-embedding-model", "search", "text-embedding-3-large", ("Standard", 120)),
        ],
    )
    def test_embedding_model_is_deployed_beside_the_others_and_read_by_the_app(
        self, predicted: Mapping[str, Deployment], name: str, deployment: str, model: str, sku: tuple[str, int]
    ) -> None:
        _, embedding = predicted[name].of(MODELS)
        assert embedding["name"].endswith(f"/{deployment}")
        assert (embedding["sku"]["name"], embedding["sku"]["capacity"]) == sku
        assert embedding["properties"]["model"] == {"format": "OpenAI", "name": model, "version": "1"}
        settings = model_settings(predicted[name])
        assert settings.embedding_deployments == {deployment: f"{model}@1"}
        assert settings.deployments == {"gpt-5.4-mini": "gpt-5.4-mini@2026-03-17"}
        assert settings.embedding_endpoints == settings.endpoints
        assert predicted[name].outputs["AZURE_OPENAI_EMBEDDING_DEPLOYMENTS"] == f"{deployment}={model}@1"

    def test_no_embedding_model(self, predicted: Mapping[str, Deployment]) -> None:
        assert len(predicted["no-embeddings"].of(MODELS)) == 1
        assert model_settings(predicted["no-embeddings"]).embedding_deployments == {}
        assert predicted["no-embeddings"].outputs["AZURE_OPENAI_EMBEDDING_DEPLOYMENTS"] == ""

    def test_embedding_model_among_the_model_deployments_is_deployed_once(self, predict: Predict) -> None:
        """As users may have it from before there was a default one. Names of deployments have no case in Azure."""
        mini = {"name": "chat", "model": "gpt-5.4-mini", "version": "2026-03-17", "sku": "Standard", "capacity": 20}
        small = {**mini, "name": "Text-Embedding-3-small", "model": "text-embedding-3-small", "version": "1"}
        deployment = predict(modelDeployments=[mini, small])
        assert [model["name"].split("/")[1] for model in deployment.of(MODELS)] == ["chat", "Text-Embedding-3-small"]
        settings = model_settings(deployment)
        assert settings.embedding_deployments == {"Text-Embedding-3-small": "text-embedding-3-small@1"}
        assert settings.deployments == {"chat": "gpt-5.4-mini@2026-03-17"}

    def test_embedding_model_elsewhere(self, predict: Predict) -> None:
        elsewhere = {
            "AZURE_OPENAI_EMBEDDING_DEPLOYMENTS": "search=e5",
            "AZURE_OPENAI_EMBEDDING_ENDPOINT": "https://embeddings.example/v1",
        }
        settings = model_settings(predict(embeddingDeployment={}, extraSettings=elsewhere))
        assert settings.embedding_deployments == {"search": "e5"}
        assert settings.embedding_endpoints == ("https://embeddings.example/v1/",)

    def test_template_settings_equal_the_defaults_of_the_app(self, predicted: Mapping[str, Deployment]) -> None:
        """The settings that the template spells out are valid and equal the code's defaults."""
        required = {"AZURE_OPENAI_ENDPOINT": "https://x.openai.azure.com", "TABLES_ENDPOINT": "https://x.example"}
        deployments = ("AZURE_OPENAI_DEPLOYMENTS", "AZURE_OPENAI_EMBEDDING_DEPLOYMENTS")
        required |= {name: predicted["defaults"].settings[name] for name in deployments}
        settings = {name: value for name, value in predicted["defaults"].settings.items() if value[:1] != "["}
        settings.pop("SUMMARY_SCHEDULE")  # the Functions host requires it, so the app has no default
        settings.pop("LIMITS")  # on for a deployed app; see test_limits
        settings.pop("AZURE_OPENAI_REASONING_EFFORT")  # none in a deployed app: reasoning could use up max_tokens
        assert Settings.from_env({**settings, **required}) == Settings.from_env(required)

    def test_no_secret_is_stored_without_api_key_or_smtp(self, predicted: Mapping[str, Deployment]) -> None:
        for name in set(SWITCHES) - {"api-key", "existing-account-api-key", "smtp"}:
            assert not predicted[name].of("Microsoft.KeyVault/vaults/secrets"), name
            assert not [value for value in predicted[name].settings.values() if "KeyVault" in value], name

    def test_second_region_is_the_failover_endpoint(self, predicted: Mapping[str, Deployment]) -> None:
        first, second = predicted["second-region"].of("Microsoft.CognitiveServices/accounts")
        assert (first["location"], second["location"]) == ("swedencentral", "eastus2")
        endpoints = re.findall(r"accounts/([\w-]+)'", predicted["second-region"].settings["AZURE_OPENAI_ENDPOINT"])
        assert endpoints == [first["name"], second["name"]]
        models = [model["name"].split("/") for model in predicted["second-region"].of(MODELS)]
        names = ("gpt-5.4-mini", "text-embedding-3-small")
        assert models == [[account["name"], name] for account in (first, second) for name in names]
        scopes = {alert["properties"]["scopes"][0] for alert in predicted["second-region"].of(METRIC_ALERTS)}
        assert scopes == {first["id"], second["id"]}
        grants = predicted["second-region"].of("Microsoft.Authorization/roleAssignments")
        assert len([grant for grant in grants if f"/{second['name']}" in grant["id"]]) == 2

    def test_name_of_second_account_contains_its_region(self, predicted: Mapping[str, Deployment]) -> None:
        """Azure cannot move an account to another region, or a private endpoint to another account."""
        for name, region in [("second-region", "eastus2"), ("everything", "germanywestcentral")]:
            first, second = predicted[name].of("Microsoft.CognitiveServices/accounts")
            assert second["name"] == f"{first['name']}-{region}"
            assert len(second["name"]) <= 64
            endpoints = predicted[name].of("Microsoft.Network/privateEndpoints")
            pointing = [endpoint["name"] for endpoint in endpoints if second["id"] in strings(endpoint)]
            assert len(pointing) == (1 if name == "everything" else 0)
            assert all(endpoint.endswith(f"-openai-{region}") for endpoint in pointing)

    @pytest.mark.parametrize("name", ["api-key", "existing-account-api-key"])
    def test_api_key_is_stored_in_the_vault_and_read_by_reference(
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

    def test_vault_role_is_assigned_before_a_setting_refers_to_a_secret(self) -> None:
        """The app's module uses an output of the vault's module, which assigns the role, so the vault comes first."""
        assert "...vault.outputs.references" in (INFRA / "main.bicep").read_text()
        assert "keyVaultSecretsUser" in (INFRA / "app" / "vault.bicep").read_text()

    def test_email_by_smtp_deploys_no_email_service(self, predicted: Mapping[str, Deployment]) -> None:
        assert not predicted["smtp"].of("Microsoft.Communication/communicationServices")
        assert "smtp-url" in predicted["smtp"].settings["SMTP_URL"]
        assert predicted["smtp"].settings["SUMMARY_SENDER"] == "chat@example.com"
        assert "ACS_ENDPOINT" not in predicted["smtp"].settings

    def test_email_by_communication_services(self, predicted: Mapping[str, Deployment]) -> None:
        settings = predicted["email"].settings
        assert settings["SUMMARY_RECIPIENTS"] == "ada@example.com,bob@example.com"
        assert re.search(r"DoNotReply@.*fromSenderDomain", settings["SUMMARY_SENDER"])
        assert settings["ACS_ENDPOINT"].startswith("[format('https://{0}', reference(")
        domain = predicted["email"].one("Microsoft.Communication/emailServices/domains")
        assert domain["properties"]["domainManagement"] == "AzureManaged"
        linked = predicted["email"].one("Microsoft.Communication/communicationServices")["properties"]["linkedDomains"]
        assert linked == [domain["id"]]

    def test_no_recipients_deploys_no_email_service(self, predicted: Mapping[str, Deployment]) -> None:
        assert not predicted["defaults"].of("Microsoft.Communication/emailServices")
        assert not predicted["defaults"].of("Microsoft.Insights/actionGroups")
        assert predicted["defaults"].settings["SUMMARY_RECIPIENTS"] == ""

    def test_recipients_get_every_alert(self, predicted: Mapping[str, Deployment]) -> None:
        group = predicted["email"].one("Microsoft.Insights/actionGroups")
        addresses = [receiver["emailAddress"] for receiver in group["properties"]["emailReceivers"]]
        assert addresses == ["ada@example.com", "bob@example.com"]
        for alert in predicted["email"].of(METRIC_ALERTS):
            assert alert["properties"]["actions"] == [{"actionGroupId": group["id"]}]
        for alert in predicted["email"].of(LOG_ALERTS):
            assert alert["properties"]["actions"] == {"actionGroups": [group["id"]]}

    def test_alert_rules(self, predicted: Mapping[str, Deployment]) -> None:
        assert [alert["name"] for alert in predicted["defaults"].of(LOG_ALERTS)] == [
            "server-errors",
            "summary-failed",
            "daily-cost",
        ]
        (model,) = predicted["defaults"].of(METRIC_ALERTS)
        (criterion,) = model["properties"]["criteria"]["allOf"]
        assert criterion["dimensions"] == [{"name": "StatusCode", "operator": "Include", "values": ["429"]}]

    def test_summary_failed_alert_does_not_resolve_itself(self, predicted: Mapping[str, Deployment]) -> None:
        """Without requests its query returns nothing after two days, so only a person may close the alert."""
        rules = {alert["name"]: alert["properties"] for alert in predicted["defaults"].of(LOG_ALERTS)}
        assert [name for name, rule in rules.items() if not rule["autoMitigate"]] == ["summary-failed"]
        assert [name for name, rule in rules.items() if rule.get("muteActionsDuration")] == ["summary-failed"]

    def test_daily_cost_alert_fires_on_consecutive_days(self, predicted: Mapping[str, Deployment]) -> None:
        """An alert fires again only after two evaluations without a result, and the cost is logged once a day:
        https://learn.microsoft.com/azure/azure-monitor/alerts/alerts-overview#stateful-alerts"""
        (rule,) = [a["properties"] for a in predicted["defaults"].of(LOG_ALERTS) if a["name"] == "daily-cost"]
        assert rule["evaluationFrequency"] == "PT1H"
        window = re.fullmatch(r"PT(\d+)H", rule["windowSize"])
        assert window
        assert int(window[1]) + 2 < 24

    def test_alert_queries_use_the_timer_name_of_the_app(self) -> None:
        assert declared.timers()["daily_cost_summary"] == "%SUMMARY_SCHEDULE%"
        assert 'Name == "daily_cost_summary"' in (INFRA / "queries" / "alert-summary.kql").read_text()
        assert '"the summary of %s could not be sent' in (ROOT / "shared" / "reports" / "delivery.py").read_text()

    def test_server_error_alert_ignores_all_timers(self) -> None:
        (names,) = re.findall(r"where Name !in \((.*)\)", (INFRA / "queries" / "alert-server-errors.kql").read_text())
        assert set(json.loads(f"[{names}]")) == declared.timers().keys()

    def test_existing_account_is_used_and_not_changed(self, predicted: Mapping[str, Deployment]) -> None:
        assert not predicted["existing-account"].of("Microsoft.CognitiveServices/accounts")
        assert not predicted["existing-account"].of(MODELS)
        described = model_settings(predicted["existing-account"])
        assert [*described.deployments, *described.embedding_deployments] == ["gpt-5.4-mini", "text-embedding-3-small"]
        account = "/resourceGroups/rg-company-ai/providers/Microsoft.CognitiveServices/accounts/oai-company"
        assert account in predicted["existing-account"].settings["AZURE_OPENAI_ENDPOINT"]
        assert predicted["existing-account"].outputs["AZURE_OPENAI_NAME"] == "oai-company"
        granted = predicted["existing-account"].of("Microsoft.Authorization/roleAssignments")
        assert len([grant for grant in granted if account in grant["id"]]) == 2

    def test_no_cost_alert(self, predicted: Mapping[str, Deployment]) -> None:
        assert "daily-cost" not in [alert["name"] for alert in predicted["no-cost-alert"].of(LOG_ALERTS)]

    def test_budget_is_not_provisioned_with_the_app(self, predicted: Mapping[str, Deployment]) -> None:
        """Not every offer has budgets (azure-docs#60672, azure-cli#9867), and a rejected one would end `azd up` before
        the code is deployed."""
        assert not [name for name in SWITCHES if predicted[name].of("Microsoft.Consumption/budgets")]

    @pytest.mark.parametrize(("name", "endpoints"), [("network", 4), ("everything", 5)])
    def test_virtual_network_disables_public_access(
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

    def test_existing_account_resolves_publicly_beside_a_private_second_one(
        self, predicted: Mapping[str, Deployment]
    ) -> None:
        """It has no private endpoint here, but the second account's DNS zone covers all accounts that have one."""
        links = predicted["existing-account-and-second"].of("Microsoft.Network/privateDnsZones/virtualNetworkLinks")
        (openai,) = [link for link in links if link["name"].startswith("privatelink.openai.azure.com/")]
        assert openai["properties"]["resolutionPolicy"] == "NxDomainRedirect"

    def test_no_network_resources_without_virtual_network(self, predicted: Mapping[str, Deployment]) -> None:
        assert not [r for r in predicted["defaults"].resources if r["type"].startswith("Microsoft.Network/")]

    def test_all_switches_together(self, predicted: Mapping[str, Deployment]) -> None:
        deployment = predicted["everything"]
        policies = deployment.of("Microsoft.CognitiveServices/accounts/raiPolicies")
        assert len(policies) == 2
        for policy in policies:
            filters = policy["properties"]["contentFilters"]
            assert {f["severityThreshold"] for f in filters if "severityThreshold" in f} == {"Low"}
            assert len([f for f in filters if "severityThreshold" in f]) == 8
        models = deployment.of(MODELS)
        assert len(models) == 6
        assert all(model["properties"]["raiPolicyName"] == "chat" for model in models)
        assert deployment.one("Microsoft.KeyVault/vaults")["properties"]["enablePurgeProtection"] is True
        assert deployment.settings["AZURE_OPENAI_MAX_TOKENS"] == "1600"
        assert deployment.settings["AZURE_OPENAI_MODEL"] == "chat"

    def test_accounts_and_vault_are_restored_independently(self, predicted: Mapping[str, Deployment]) -> None:
        """An account can be restored for 48 hours unless purged; a vault with purge protection, for 7 days."""
        for name, accounts, vault in [
            ("defaults", False, "default"),
            ("everything", True, "default"),
            ("restored-vault", False, "recover"),
        ]:
            deployed = predicted[name].of("Microsoft.CognitiveServices/accounts")
            assert all(account["properties"].get("restore", False) is accounts for account in deployed), name
            assert predicted[name].one("Microsoft.KeyVault/vaults")["properties"]["createMode"] == vault, name

    def test_purge_protection_is_never_set_to_false(self, predicted: Mapping[str, Deployment]) -> None:
        """Azure rejects `false`."""
        vault = predicted["defaults"].one("Microsoft.KeyVault/vaults")["properties"]
        assert vault.get("enablePurgeProtection") is None

    def test_alternative_settings_are_set_only_where_chosen(self, predicted: Mapping[str, Deployment]) -> None:
        for setting, name in ALTERNATIVES.items():
            assert setting in predicted[name].settings
            assert setting not in predicted["defaults"].settings

    def test_every_setting_is_described_in_the_sample(self) -> None:
        described = settings_file(ROOT / "local.settings.sample.json").keys()
        assert not names_read() - described - {"IDENTITY_ENDPOINT", "REGION_NAME"}


MODELS = "Microsoft.CognitiveServices/accounts/deployments"
PUBLISHING_PASSWORDS = "Microsoft.Web/sites/basicPublishingCredentialsPolicies"
METRIC_ALERTS = "Microsoft.Insights/metricAlerts"
LOG_ALERTS = "Microsoft.Insights/scheduledQueryRules"


@needs_bicep
class TestBudget:
    def test_it_notifies_owners_and_recipients(self, compiler: Compiler) -> None:
        deployment = compiler.predict(PARAMETERS / "budget" / "budget.bicepparam", resource_group="rg-test")
        (resource,) = deployment.resources
        budget = resource["properties"]
        assert (resource["type"], resource["name"]) == ("Microsoft.Consumption/budgets", "budget-test")
        assert (budget["amount"], budget["timePeriod"]) == (50, {"startDate": "2026-11-01"})
        notifications = budget["notifications"].values()
        thresholds = {(notification["thresholdType"], notification["threshold"]) for notification in notifications}
        assert thresholds == {("Actual", 50), ("Actual", 80), ("Actual", 100), ("Forecasted", 100)}
        assert all(notification["contactRoles"] == ["Owner"] for notification in notifications)
        recipients = ["ada@example.com", "bob@example.com"]
        assert all(notification["contactEmails"] == recipients for notification in notifications)

    def test_it_compiles_without_warnings(self) -> None:
        for command in (["build", "infra/app/budget.bicep", "--stdout"], ["lint", "infra/app/budget.bicep"]):
            result = bicep.bicep(*command)
            assert (result.returncode, result.stderr) == (0, "")

    def test_name_of_an_earlier_version_is_kept(self, predicted: Mapping[str, Deployment]) -> None:
        """0.2.0 named it so; another name would be a second budget."""
        name = predicted["defaults"].outputs["AZURE_BUDGET_NAME"]
        assert re.fullmatch("budget-[a-z0-9]{13}", name)
        assert name.removeprefix("budget-") == predicted["defaults"].outputs["AZURE_OPENAI_NAME"].removeprefix("oai-")


@needs_bicep
class TestOrder:
    """The order of deployment. Predictions do not show it, so the template is read."""

    def test_app_is_deployed_after_roles_and_endpoints(self, built: "subprocess.CompletedProcess[str]") -> None:
        """A module is complete once its role assignments are; Azure does not wait for a module that is switched off."""
        function = json.loads(built.stdout)["resources"]["function"]
        needed = {"monitoring", "storage", "openAiAccess", "secondaryAccess", "vault", "email", "network"}
        assert needed <= set(function["dependsOn"])

    def test_vault_module_gets_the_account_name_without_api_key_too(
        self, built: "subprocess.CompletedProcess[str]"
    ) -> None:
        vault = json.loads(built.stdout)["resources"]["vault"]["properties"]["parameters"]
        assert vault["openAiName"] == {"value": "[variables('openAiName')]"}
        assert vault["keepsKey"] == {"value": "[variables('usesKey')]"}


def test_model_deployments_are_created_one_at_a_time() -> None:
    """Azure rejects a second deployment in an account while one is running."""
    text = (INFRA / "app" / "openai.bicep").read_text()
    assert re.search(r"@batchSize\(1\).*\nresource models 'Microsoft.CognitiveServices/accounts/deployments@", text)


def test_private_endpoints_are_created_one_at_a_time() -> None:
    """Storage rejects a second one (StorageAccountOperationInProgress) while another is being created."""
    text = (INFRA / "app" / "network.bicep").read_text()
    assert re.search(r"@batchSize\(1\).*\nresource privateEndpoints 'Microsoft.Network/privateEndpoints@", text)


def test_azd_offers_regions_with_some_quota_for_the_default_models() -> None:
    text = (INFRA / "main.bicep").read_text()
    assert (
        "usageName: ['OpenAI.GlobalStandard.gpt-5.4-mini, 5', 'OpenAI.GlobalStandard.text-embedding-3-small, 1']"
        in text
    )
    assert "model: 'gpt-5.4-mini', version: '2026-03-17', sku: 'GlobalStandard', capacity: modelCapacity" in text
    assert re.search(
        r"model: 'text-embedding-3-small'\n.*\n  sku: 'GlobalStandard'\n  capacity: embeddingCapacity\n", text
    )


AZD_VALUES = {
    "PATH": os.environ["PATH"],
    "AZURE_SUBSCRIPTION_ID": SUBSCRIPTION,
    "AZURE_BUDGET_NAME": "budget-test",
    "AZURE_ENV_NAME": "test",
    "AZURE_RESOURCE_GROUP": "rg-test",
    "AZURE_OPENAI_ENDPOINT": "https://oai-test.openai.azure.com/,https://oai-test-2.openai.azure.com/",
    "AZURE_OPENAI_MODEL": "gpt-5.4-mini",
    "AZURE_OPENAI_DEPLOYMENTS": "gpt-5.4-mini=gpt-5.4-mini@2026-03-17",
    "AZURE_OPENAI_EMBEDDING_DEPLOYMENTS": "text-embedding-3-small=text-embedding-3-small@1",
    "TABLES_ENDPOINT": "https://sttest.table.core.windows.net",
}


@pytest.mark.skipif(os.name == "nt", reason="the hooks are POSIX scripts")
class TestHooks:
    def run(self, hook: str, folder: Path, **values: str) -> str:
        """Run a hook as azd does: with the environment's values as variables, in the project's folder."""
        result = subprocess.run(
            ["sh", str(INFRA / "hooks" / hook)],
            cwd=folder,
            env={**AZD_VALUES, **values},
            capture_output=True,
            text=True,
            check=True,
        )
        return result.stdout

    def test_postprovision_writes_settings_for_a_local_run(self, tmp_path: Path) -> None:
        (tmp_path / "local.settings.json").write_text("mine")
        output = self.run("postprovision.sh", tmp_path)
        assert "python3 -m local run --settings '.azure/test/local.settings.json'" in output
        settings = settings_file(tmp_path / ".azure" / "test" / "local.settings.json")
        assert settings["AZURE_OPENAI_ENDPOINT"] == AZD_VALUES["AZURE_OPENAI_ENDPOINT"]
        assert settings["AZURE_OPENAI_EMBEDDING_DEPLOYMENTS"] == AZD_VALUES["AZURE_OPENAI_EMBEDDING_DEPLOYMENTS"]
        assert settings["TABLES_ENDPOINT"] == AZD_VALUES["TABLES_ENDPOINT"]
        assert settings["TABLE_PREFIX"] == "local"
        assert not settings.keys() - names_read()
        assert not [name for name in settings if "KEY" in name]
        assert (tmp_path / "local.settings.json").read_text() == "mine"

    def test_printed_command_is_valid_for_any_environment_name(self, tmp_path: Path) -> None:
        """Names of azd environments may contain parentheses, which are special to a shell."""
        output = self.run("postprovision.sh", tmp_path, AZURE_ENV_NAME="test(2)")
        (command,) = re.findall(r"^  (\S.*)$", output, re.MULTILINE)
        assert "test(2)" in command
        assert subprocess.run(["sh", "-n", "-c", command], check=False).returncode == 0

    def test_powershell_hook_matches_the_posix_hook(self) -> None:
        posix, powershell = ((INFRA / "hooks" / f"postprovision.{suffix}").read_text() for suffix in ("sh", "ps1"))
        assert set(re.findall(r"\$\{?((?:AZURE|TABLES)_\w+)", posix)) == set(re.findall(r"\$env:(\w+)", powershell))
        setting_names = set(re.findall(r'^\s+"([A-Z_]+)":', posix, re.MULTILINE))
        assert setting_names == set(re.findall(r"^\s+([A-Z_]+) += ", powershell, re.MULTILINE))


AZ = """#!/bin/sh
for argument; do printf '%s\\n' "$argument"; done >>"$AZ_LOG"
case $1 in
  rest) [ -n "${AZ_START:-}" ] || { echo "ERROR: Not Found" >&2; exit 3; }; echo "$AZ_START" ;;
  *) [ -z "${AZ_ERROR:-}" ] || { echo "ERROR: $AZ_ERROR" >&2; exit 1; } ;;
esac
"""
# azure-docs#60672, azure-cost-cli#24
WRONG_OFFER = (
    "(400) Cost Management supports only Enterprise Agreement, Web direct and Microsoft Customer Agreement offer types."
    f" Subscription {SUBSCRIPTION} is not associated with a valid offer type."
)


@pytest.mark.skipif(os.name == "nt", reason="the hooks are POSIX scripts")
class TestBudgetHook:
    """It never fails, because azd stops where a hook fails, before the code is deployed."""

    @pytest.fixture
    def az(self, tmp_path: Path) -> Path:
        """A folder for the PATH, with an `az` that logs its arguments."""
        (tmp_path / "bin").mkdir()
        (tmp_path / "bin" / "az").write_text(AZ)
        (tmp_path / "bin" / "az").chmod(0o755)
        return tmp_path / "bin"

    def run(self, az: Path, **values: str) -> tuple[str, dict[str, str]]:
        """What the hook prints, and the parameters of the deployment."""
        log = az / "log"
        log.write_text("")
        result = subprocess.run(
            ["sh", str(INFRA / "hooks" / "budget.sh")],
            cwd=ROOT,
            env={**AZD_VALUES, "PATH": f"{az}:{os.environ['PATH']}", "AZ_LOG": str(log), **values},
            capture_output=True,
            text=True,
            check=False,
        )
        assert result.returncode == 0, result.stderr
        _, _, deployment = log.read_text().partition("\ndeployment\n")
        return result.stdout + result.stderr, dict(
            argument.split("=", 1) for argument in deployment.partition("\n--parameters\n")[2].splitlines()
        )

    def test_new_budget_begins_this_month(self, az: Path) -> None:
        output, parameters = self.run(az)
        assert "The monthly budget of rg-test is 50." in output
        today = datetime.now(UTC)
        assert parameters == {
            "name": "budget-test",
            "amount": "50",
            "startDate": f"{today:%Y-%m}-01",
            "recipients": "",
        }

    def test_existing_budget_keeps_its_first_month(self, az: Path) -> None:
        """Azure rejects another one."""
        _, parameters = self.run(
            az,
            AZ_START="2026-02-01T00:00:00Z",
            BUDGET_AMOUNT="200",
            SUMMARY_RECIPIENTS="ada@example.com, bob@example.com",
        )
        assert (parameters["startDate"], parameters["amount"]) == ("2026-02-01T00:00:00Z", "200")
        assert parameters["recipients"] == "ada@example.com, bob@example.com"

    def test_parameters_are_those_of_the_template(self, az: Path) -> None:
        declared = re.findall(r"^param (\w+)", (INFRA / "app" / "budget.bicep").read_text(), re.MULTILINE)
        assert [*self.run(az)[1]] == declared

    def test_no_budget(self, az: Path) -> None:
        assert self.run(az, BUDGET_AMOUNT="0") == ("", {})
        assert (az / "log").read_text() == ""

    @pytest.mark.parametrize(
        "error",
        [WRONG_OFFER, "Please run 'az login' to setup account.", "(AuthorizationFailed)", "Connection aborted."],
    )
    def test_rejected_budget_stops_nothing_and_the_message_names_the_way_out(self, az: Path, error: str) -> None:
        output, _ = self.run(az, AZ_ERROR=error)
        assert output.startswith(f"ERROR: {error}\n")
        assert "azd env set BUDGET_AMOUNT 0" in output
        assert '"not associated with a valid offer type"' in output
        assert "The monthly budget of" not in output

    def test_machine_without_az(self, az: Path) -> None:
        (az / "az").unlink()
        for program in ("sh", "date", "cat"):
            (az / program).symlink_to(str(shutil.which(program)))
        output, _ = self.run(az, PATH=str(az))
        assert "azd env set BUDGET_AMOUNT 0" in output

    def test_both_shells_have_the_same_request_and_message(self) -> None:
        posix, windows = ((INFRA / "hooks" / f"budget.{suffix}").read_text() for suffix in ("sh", "ps1"))
        for pattern in (r"(?m)^(?:The budget was not set|- ).*$", r"api-version=\S{10}", r"az rest .*url", r"\b50\b"):
            assert re.findall(pattern, posix) == re.findall(pattern, windows) != []
        version = re.search(r"Microsoft.Consumption/budgets@(\S+)'", (INFRA / "app" / "budget.bicep").read_text())
        assert version
        assert f"api-version={version[1]}" in posix
