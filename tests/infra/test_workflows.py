"""azure.yaml and the workflows of .github: what azd and GitHub are told. Both were checked against the public schemas
(azd's azure.yaml.json, GitHub's workflow schema); here their essentials are held."""

import json
import os
import re
import shutil
import subprocess

import pytest

from local.places import ROOT

AZURE_YAML = (ROOT / "azure.yaml").read_text()
CI = (ROOT / ".github" / "workflows" / "ci.yml").read_text()
DEPLOY = (ROOT / ".github" / "workflows" / "azure-dev.yml").read_text()
OF_AZD = {"AZURE_ENV_NAME", "AZURE_LOCATION", "AZURE_PRINCIPAL_ID", "AZURE_PRINCIPAL_TYPE"}  # azd knows these by itself


def listed(text: str) -> list[str]:
    return re.findall(r"^    - (\w+)$", text, re.MULTILINE)


def test_azd_deploys_this_folder_as_a_python_function_app() -> None:
    service = re.search(r"^services:\n  api:\n((?:    .*\n)+)", AZURE_YAML, re.MULTILINE)
    assert service
    assert service[1].splitlines() == ["    project: .", "    language: python", "    host: function"]
    assert "param serviceName" in (ROOT / "infra" / "app" / "function.bicep").read_text()
    assert "serviceName: 'api'" in (ROOT / "infra" / "main.bicep").read_text()


def test_an_azd_that_would_delete_the_group_of_somebodys_account_is_refused() -> None:
    assert re.search(r'^requiredVersions:\n(?:  #.*\n)+  azd: ">= 1\.24\.1"$', AZURE_YAML, re.MULTILINE)
    assert "azd 1.24.1 or newer" in (ROOT / "docs" / "deploying.md").read_text()


def test_each_hook_has_a_script_for_each_shell() -> None:
    scripts = re.findall(r"run: (\S+)", AZURE_YAML)
    assert len(scripts) == 4
    for script in scripts:
        assert (ROOT / script).is_file()
        assert not script.endswith(".sh") or os.name == "nt" or os.access(ROOT / script, os.X_OK)
    for hook in ("postprovision", "postdeploy"):
        assert f"posix:\n      shell: sh\n      run: infra/hooks/{hook}.sh" in AZURE_YAML
        assert f"windows:\n      shell: pwsh\n      run: infra/hooks/{hook}.ps1" in AZURE_YAML


def test_a_pipeline_provisions_with_the_same_parameters_as_its_maker() -> None:
    """A budget's start date, above all: with another one the provisioning of a later month would fail."""
    variables, _, secrets = AZURE_YAML.partition("  secrets:")
    parameters = json.loads((ROOT / "infra" / "main.parameters.json").read_text())["parameters"].values()
    names = {parameter["value"].strip("${}") for parameter in parameters}
    assert listed(secrets) == ["SMTP_URL"]
    assert {*listed(variables), *listed(secrets)} == names - OF_AZD
    assert listed(variables) == sorted(listed(variables))


def test_every_switch_is_described() -> None:
    described = (ROOT / "docs" / "deploying.md").read_text()
    kept_by_azd = {"AZURE_BUDGET_START_DATE"}
    assert not [name for name in listed(AZURE_YAML) if name not in described and name not in kept_by_azd]


def test_the_pipeline_signs_in_without_a_password() -> None:
    assert "id-token: write" in DEPLOY
    assert "--federated-credential-provider github" in DEPLOY
    assert set(re.findall(r"secrets\.(\w+)", DEPLOY)) == {"SMTP_URL"}
    assert not re.findall(r"secrets\.", CI)
    assert "azd provision --no-prompt" in DEPLOY
    assert "azd deploy --no-prompt" in DEPLOY


def test_the_pipeline_hands_azd_no_empty_variable() -> None:
    """azd takes an empty one for a value, and GitHub gives an empty one for each that is not set."""
    assert not re.search(r"\$\{\{ vars\.\w+ \}\}", DEPLOY)
    assert 'select(.value != ""' in DEPLOY


@pytest.mark.skipif(shutil.which("sh") is None, reason="no POSIX shell")
@pytest.mark.parametrize(
    ("variables", "refused"),
    [
        ({}, True),
        ({"BUDGET_AMOUNT": "200"}, True),
        ({"BUDGET_AMOUNT": "0"}, False),
        ({"AZURE_BUDGET_START_DATE": "2026-11-01"}, False),
    ],
)
def test_the_pipeline_does_not_date_a_budget_anew(variables: dict[str, str], refused: bool) -> None:
    """A month later it would say another date, which Azure refuses."""
    step = re.search(r"budget anew\n.*\n +run: \|\n((?: {10}.*\n)+)", DEPLOY)
    assert step
    done = subprocess.run(["sh", "-c", step[1]], env=variables, capture_output=True, text=True, check=False)
    assert (done.returncode, "run azd up on your machine" in done.stderr) == (int(refused), refused)
    assert DEPLOY.index(step[1]) < DEPLOY.index("azd provision")


def test_the_checks_are_those_that_people_run() -> None:
    assert "make test" in CI
    assert "az bicep build --file infra/main.bicep" in CI
    assert "permissions:\n  contents: read" in CI


def test_no_workflow_pastes_what_others_wrote_into_a_script() -> None:
    scripts = re.findall(r"run: (.*(?:\n {10,}.*)*)", CI + DEPLOY)
    assert scripts
    assert not [script for script in scripts if "${{" in script]
