"""azure.yaml and the workflows in .github. Both were validated against the public schemas (azd's azure.yaml.json,
GitHub's workflow schema); the tests here check their essentials."""

import json
import os
import re
import shutil
import subprocess

import pytest

from local.places import ROOT

AZURE_YAML = (ROOT / "azure.yaml").read_text()
WORKFLOWS = {path.name: path.read_text() for path in sorted((ROOT / ".github" / "workflows").glob("*.yml"))}
CI = WORKFLOWS["ci.yml"]
DEPLOY = WORKFLOWS["azure-dev.yml"]
SET_BY_AZD = {"AZURE_ENV_NAME", "AZURE_LOCATION", "AZURE_PRINCIPAL_ID", "AZURE_PRINCIPAL_TYPE"}  # set by azd itself


def listed(text: str) -> list[str]:
    return re.findall(r"^    - (\w+)$", text, re.MULTILINE)


def test_azd_deploys_this_folder_as_a_python_function_app() -> None:
    service = re.search(r"^services:\n  api:\n((?:    .*\n)+)", AZURE_YAML, re.MULTILINE)
    assert service
    assert service[1].splitlines() == ["    project: .", "    language: python", "    host: function"]
    assert "param serviceName" in (ROOT / "infra" / "app" / "function.bicep").read_text()
    assert "serviceName: 'api'" in (ROOT / "infra" / "main.bicep").read_text()


def test_azd_versions_that_delete_an_existing_accounts_group_are_rejected() -> None:
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


def test_pipeline_copies_every_parameter_of_the_azd_environment() -> None:
    """The budget's start date matters most: with another one, provisioning in a later month would fail."""
    variables, _, secrets = AZURE_YAML.partition("  secrets:")
    parameters = json.loads((ROOT / "infra" / "main.parameters.json").read_text())["parameters"].values()
    names = {parameter["value"].strip("${}") for parameter in parameters}
    assert listed(secrets) == ["SMTP_URL"]
    assert {*listed(variables), *listed(secrets)} == names - SET_BY_AZD
    assert listed(variables) == sorted(listed(variables))


def test_every_switch_is_documented() -> None:
    text = (ROOT / "docs" / "deploying.md").read_text()
    set_by_azd = {"AZURE_BUDGET_START_DATE"}
    assert not [name for name in listed(AZURE_YAML) if name not in text and name not in set_by_azd]


def test_pipeline_signs_in_without_a_password() -> None:
    assert "id-token: write" in DEPLOY
    assert "--federated-credential-provider github" in DEPLOY
    assert set(re.findall(r"secrets\.(\w+)", DEPLOY)) == {"SMTP_URL"}
    assert not re.findall(r"secrets\.", CI)
    assert "azd provision --no-prompt" in DEPLOY
    assert "azd deploy --no-prompt" in DEPLOY


def test_pipeline_passes_no_empty_variable_to_azd() -> None:
    """azd treats an empty variable as a value, and GitHub passes an empty one for each that is not set."""
    assert not re.search(r"\$\{\{ vars\.\w+ \}\}", DEPLOY)
    assert 'select(.value != ""' in DEPLOY


@pytest.mark.skipif(shutil.which("sh") is None, reason="no POSIX shell")
@pytest.mark.parametrize(
    ("variables", "rejected"),
    [
        ({}, True),
        ({"BUDGET_AMOUNT": "200"}, True),
        ({"BUDGET_AMOUNT": "0"}, False),
        ({"AZURE_BUDGET_START_DATE": "2026-11-01"}, False),
    ],
)
def test_pipeline_does_not_change_the_start_date_of_the_budget(variables: dict[str, str], rejected: bool) -> None:
    """In a later month its start date would differ, which Azure rejects."""
    step = re.search(r"start date of the budget\n.*\n +run: \|\n((?: {10}.*\n)+)", DEPLOY)
    assert step
    result = subprocess.run(["sh", "-c", step[1]], env=variables, capture_output=True, text=True, check=False)
    assert (result.returncode, "run azd up on your machine" in result.stderr) == (int(rejected), rejected)
    assert DEPLOY.index(step[1]) < DEPLOY.index("azd provision")


def test_ci_runs_make_test_and_builds_the_templates() -> None:
    assert "make test" in CI
    assert "az bicep build --file infra/main.bicep" in CI


def test_deployment_waits_for_the_checks_of_the_same_commit() -> None:
    jobs = dict(re.findall(r"^  (\w+):\n((?:(?:    .*)?\n)+)", DEPLOY.partition("\njobs:\n")[2], re.MULTILINE))
    assert set(jobs) == {"checks", "deploy"}
    assert "    uses: ./.github/workflows/ci.yml\n" in jobs["checks"]
    assert re.search(r"^    needs: checks\b", jobs["deploy"], re.MULTILINE)
    assert "always()" not in jobs["deploy"]
    assert "continue-on-error" not in CI
    assert "  workflow_call:\n" in CI


@pytest.mark.parametrize("name", WORKFLOWS)
def test_actions_are_pinned_by_commit_and_persist_no_credentials(name: str) -> None:
    uses = re.findall(r"uses: (.*)", WORKFLOWS[name])
    pinned = [use for use in uses if re.fullmatch(r"[\w/-]+@[0-9a-f]{40} # v\d+\.\d+\.\d+", use)]
    assert [use for use in uses if use not in pinned] == (
        ["./.github/workflows/ci.yml"] if name == "azure-dev.yml" else []
    )
    checkouts = [use for use in uses if use.startswith("actions/checkout@")]
    assert WORKFLOWS[name].count("persist-credentials: false") == len(checkouts) > 0


@pytest.mark.parametrize("name", WORKFLOWS)
def test_workflow_has_no_permissions_but_those_of_its_jobs(name: str) -> None:
    assert re.search(r"^permissions: \{\}$", WORKFLOWS[name], re.MULTILINE)
    granted = set(re.findall(r"^      ([\w-]+: \w+)(?: #.*)?$", WORKFLOWS[name].replace("steps:", ""), re.MULTILINE))
    allowed = {"contents: read"} | ({"id-token: write"} if name == "azure-dev.yml" else set())
    assert {grant for grant in granted if grant.endswith((": read", ": write"))} == allowed


def test_pre_commit_runs_the_locked_versions() -> None:
    hooks = re.findall(r"additional_dependencies: \[(\S+)\]", (ROOT / ".pre-commit-config.yaml").read_text())
    lock = (ROOT / "requirements-dev.txt").read_text()
    assert [hook for hook in hooks if "pre-commit-hooks" not in hook and f"\n{hook} " not in lock] == []


def test_workflow_scripts_contain_no_github_expressions() -> None:
    scripts = re.findall(r"run: (.*(?:\n {10,}.*)*)", "".join(WORKFLOWS.values()))
    assert scripts
    assert not [script for script in scripts if "${{" in script]
