"""azure.yaml and the workflows in .github. Both were validated against the public schemas (azd's azure.yaml.json,
GitHub's workflow schema); the tests here check their essentials."""

import json
import os
import re
import shutil
import subprocess
import tempfile
from collections.abc import Callable, Mapping

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

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


def test_azd_versions_that_offer_no_region_or_delete_an_existing_accounts_group_are_rejected() -> None:
    assert re.search(r'^requiredVersions:\n(?:  #.*\n)+  azd: ">= 1\.25\.6"$', AZURE_YAML, re.MULTILINE)
    assert "azd 1.25.6 or newer" in (ROOT / "docs" / "deploying.md").read_text()


def test_each_hook_has_a_script_for_each_shell() -> None:
    scripts = re.findall(r"run: (\S+)", AZURE_YAML)
    assert len(scripts) == 14
    for script in scripts:
        assert (ROOT / script).is_file()
        assert not script.endswith(".sh") or os.name == "nt" or os.access(ROOT / script, os.X_OK)
    hooks = re.findall(r"posix:\n +shell: sh\n +run: infra/hooks/([\w-]+)\.sh\n", AZURE_YAML)
    assert hooks == re.findall(r"windows:\n +shell: pwsh\n +run: infra/hooks/([\w-]+)\.ps1\n", AZURE_YAML)
    assert hooks == ["quota", "sign-in", "postprovision", "budget", "limits", "redirects", "postdeploy"]


def test_output_of_hooks_stays_on_the_terminal() -> None:
    """azd shows eight lines of another hook while it runs, and then removes them: cli/azd/pkg/ext/hooks_runner.go,
    configureExecContext, in Azure/azure-dev 1.24.1 and 1.31.2."""
    assert AZURE_YAML.count("interactive: true\n") == len(re.findall("run: ", AZURE_YAML))


def test_pipeline_copies_every_parameter_of_the_azd_environment() -> None:
    variables, _, secrets = AZURE_YAML.partition("  secrets:")
    parameters = json.loads((ROOT / "infra" / "main.parameters.json").read_text())["parameters"].values()
    names = {parameter["value"].strip("${}") for parameter in parameters}
    assert listed(secrets) == ["SMTP_URL"]
    assert {*listed(variables), *listed(secrets)} == names - SET_BY_AZD
    assert listed(variables) == sorted(listed(variables))


def test_every_switch_is_documented() -> None:
    text = (ROOT / "docs" / "deploying.md").read_text()
    assert not [name for name in [*listed(AZURE_YAML), "BUDGET_AMOUNT"] if name not in text]


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


def escaped_by_azd(value: str) -> str:
    """What `azd pipeline config` writes for a value: Go's json.Marshal without the quotes (Azure/azure-dev 1.31.2,
    cli/azd/pkg/pipeline/pipeline.go, escapeValuesForPipeline)."""
    inside = json.dumps(value, ensure_ascii=False)[1:-1]
    return re.sub("[<>&\u2028\u2029]", lambda special: f"\\u{ord(special[0]):04x}", inside)


def text_read_by_azd(value: str) -> str:
    """A text, number or boolean of main.parameters.json: azd puts the variable's value between the quotes of a JSON
    string (1.31.2, cli/azd/pkg/infra/provisioning/bicep/bicep_provider.go, loadParameters). An array or object is the
    value itself, as JSON."""
    return str(json.loads(f'{{"value": "{value}"}}')["value"])


def exported(variables: Mapping[str, str]) -> dict[str, str]:
    """The environment that the workflow's step makes of the repository's variables."""
    step = re.search(r"Export the variables that are set\n(?: +#.*\n)+ +run: \|\n((?: {10}.*\n)+)", DEPLOY)
    assert step
    with tempfile.NamedTemporaryFile("r") as file:
        subprocess.run(
            ["bash", "-e", "-c", step[1]],
            env={"PATH": os.environ["PATH"], "VARIABLES": json.dumps(variables), "GITHUB_ENV": file.name},
            check=True,
        )
        lines = file.read().split("\n")
    return dict(line.split("=", 1) for line in lines[:-1])


def texts(*, without: str) -> st.SearchStrategy[str]:
    """Texts that are no JSON array or object."""
    characters = st.characters(exclude_categories=["Cs"], exclude_characters=f"\0{without}")
    return st.text(characters, min_size=1).filter(lambda text: not text.strip().startswith(("{", "[")))


# One with a backslash and without quotation marks could be either form; it is taken for the escaped one.
RAW_TEXTS = texts(without="\\")
TEXTS = texts(without="")
DOCUMENTS = st.dictionaries(st.text(), TEXTS | st.integers() | st.lists(TEXTS))


@pytest.mark.skipif(
    not (shutil.which("jq") and shutil.which("bash")), reason="needs bash and jq, as on GitHub's runners"
)
class TestPipelineVariables:
    """A variable reaches azd as it was in azd's environment, whether `azd pipeline config` or a person has set it."""

    DEPLOYMENTS = '[{"name": "chat", "model": "gpt-5.4-mini", "capacity": 50}]'
    SETTINGS = '{"PRICES": "{\\"chat\\": {\\"input\\": 1.50}}", "SYSTEM_PROMPT": "Say \\u003cyes\\u003e & \\"no\\"."}'

    @pytest.mark.parametrize("written", [str, escaped_by_azd], ids=["raw", "escaped"])
    def test_arrays_and_objects_are_json(self, written: Callable[[str], str]) -> None:
        raw = {"MODEL_DEPLOYMENTS": self.DEPLOYMENTS, "EXTRA_SETTINGS": self.SETTINGS}
        environment = exported({name: written(value) for name, value in raw.items()})
        assert environment == raw

    @pytest.mark.parametrize("written", [str, escaped_by_azd], ids=["raw", "escaped"])
    def test_json_of_several_lines(self, written: Callable[[str], str]) -> None:
        document = json.dumps(json.loads(self.SETTINGS), indent=2).replace("\n", "\r\n")
        environment = exported({"EXTRA_SETTINGS": written(document)})
        assert json.loads(environment["EXTRA_SETTINGS"]) == json.loads(self.SETTINGS)

    @pytest.mark.parametrize("written", [str, escaped_by_azd], ids=["raw", "escaped"])
    @pytest.mark.parametrize(
        "value",
        [
            "0 0 6 * * *",
            "50",
            "true",
            "ada=0f3c, bob=11d7",
            "ada@example.com; bob@example.com",
            'Ada "the first" <ada@example.com>',
            "R&D-group",
            "Zürich 日本 😀",
            "two\nlines",
        ],
    )
    def test_text(self, value: str, written: Callable[[str], str]) -> None:
        assert text_read_by_azd(exported({"SWITCH": written(value)})["SWITCH"]) == value

    @given(raw=RAW_TEXTS, text=TEXTS, content=DOCUMENTS)
    @settings(max_examples=30, deadline=None)
    def test_any_value(self, raw: str, text: str, content: dict[str, object]) -> None:
        document = json.dumps(content, ensure_ascii=len(content) % 2 == 0, indent=len(content) % 3)
        environment = exported(
            {
                "RAW": raw,
                "ESCAPED": escaped_by_azd(text),
                "RAW_JSON": document,
                "ESCAPED_JSON": escaped_by_azd(document),
            }
        )
        assert text_read_by_azd(environment["RAW"]) == raw
        assert text_read_by_azd(environment["ESCAPED"]) == text
        assert json.loads(environment["RAW_JSON"]) == json.loads(environment["ESCAPED_JSON"]) == content

    def test_unset_variables_stay_unset(self) -> None:
        assert exported({"SWITCH": "", "OTHER": "1"}) == {"OTHER": "1"}


def test_pipeline_leaves_the_budget_as_it_is() -> None:
    assert "          BUDGET_AMOUNT: 0 #" in DEPLOY.partition("azd provision --no-prompt")[2]
    assert "BUDGET_AMOUNT" not in listed(AZURE_YAML)


def test_ci_runs_make_test_and_builds_the_templates() -> None:
    assert "make test" in CI
    assert "az bicep build --file infra/main.bicep" in CI


def test_deployment_waits_for_the_checks_of_the_same_commit() -> None:
    jobs = dict(re.findall(r"^  (\w+):\n((?:(?:    .*)?\n)+)", DEPLOY.partition("\njobs:\n")[2], re.MULTILINE))
    assert set(jobs) == {"checks", "deploy"}
    assert "    uses: ./.github/workflows/ci.yml\n" in jobs["checks"]
    assert re.search(r"^    needs: checks\b", jobs["deploy"], re.MULTILINE)
    assert re.findall(r"^    if: (.*)$", jobs["deploy"], re.MULTILINE) == ["vars.AZURE_CLIENT_ID != ''"]
    assert re.findall(r"\bif:|continue-on-error", CI) == []
    assert {"      - run: make test", "      - run: make coverage"} <= set(CI.splitlines())
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
