"""azd's hook that lowers the capacity of the default models, before provisioning, to the quota that is left."""

import os
import re
import subprocess
from pathlib import Path

import pytest

from local.places import ROOT
from tests.support.bicep import SUBSCRIPTION

HOOK = ROOT / "infra" / "hooks" / "quota.sh"
CHAT, EMBEDDING = "gpt-5.4-mini", "text-embedding-3-small"
# Quotas are in variables named by region and model (its initial): NAME=limit used. Without one az does not answer.
AZ = """#!/bin/sh
printf '%s\\n' "$*" >>"$AZ_LOG"
if [ "$1" = resource ]; then echo "${AZ_ACCOUNTS:-}"; exit; fi
name=$(echo "$*" | sed 's/.*--location \\([a-z0-9]*\\).*GlobalStandard\\.\\(.\\).*/AZ_\\1_\\2/')
quota=$(eval echo "\\"\\${$name-none}\\"")
[ "$quota" != none ] || { echo "ERROR: Please run 'az login' to setup account." >&2; exit 1; }
printf '%s\\n' "$quota" | tr ' ' '\\t'
"""
AZD = """#!/bin/sh
printf 'azd %s\\n' "$*" >>"$AZ_LOG"
"""
ENOUGH = {"AZ_swedencentral_g": "350.0 0.0", "AZ_swedencentral_t": "350.0 300.0"}


@pytest.mark.skipif(os.name == "nt", reason="the hooks are POSIX scripts")
class TestHook:
    @pytest.fixture
    def az(self, tmp_path: Path) -> Path:
        """A folder for the PATH, with an `az` and an `azd` that log their arguments."""
        for name, script in (("az", AZ), ("azd", AZD)):
            (tmp_path / name).write_text(script)
            (tmp_path / name).chmod(0o755)
        return tmp_path

    def run(self, az: Path, shell: str = "sh", /, **values: str) -> str:
        environment = {
            "AZURE_SUBSCRIPTION_ID": SUBSCRIPTION,
            "AZURE_LOCATION": "swedencentral",
            "AZURE_ENV_NAME": "test (2)",
            **values,
        }
        result = subprocess.run(
            [shell, str(HOOK)],
            env={"PATH": f"{az}:{os.environ['PATH']}", "AZ_LOG": str(az / "log"), **environment},
            capture_output=True,
            text=True,
            check=True,
        )
        assert result.stderr == ""
        return result.stdout

    def log(self, az: Path, program: str = "") -> list[str]:
        lines = (az / "log").read_text().splitlines() if (az / "log").exists() else []
        return [line for line in lines if line.startswith(program)]

    @pytest.mark.parametrize("quota", ["350.0 0.0", "350 300", "50.0 0.0"])
    def test_nothing_changes_where_the_quota_suffices(self, az: Path, quota: str) -> None:
        assert self.run(az, AZ_swedencentral_g=quota, AZ_swedencentral_t=quota) == ""
        chat, embedding = self.log(az)
        assert f"usage list --subscription {SUBSCRIPTION} --location swedencentral" in chat
        assert f"'OpenAI.GlobalStandard.{CHAT}'" in chat
        assert f"'OpenAI.GlobalStandard.{EMBEDDING}'" in embedding

    @pytest.mark.parametrize(
        ("quota", "variable", "model", "left"),
        [
            ({"AZ_swedencentral_g": "20.0 10.0"}, "MODEL_CAPACITY", CHAT, 10),
            ({"AZ_swedencentral_g": "5 0"}, "MODEL_CAPACITY", CHAT, 5),
            ({"AZ_swedencentral_t": "350.0 301.0"}, "EMBEDDING_CAPACITY", EMBEDDING, 49),
            ({"AZ_swedencentral_t": "1 0"}, "EMBEDDING_CAPACITY", EMBEDDING, 1),
        ],
    )
    def test_capacity_is_lowered_to_the_quota_that_is_left(
        self, az: Path, quota: dict[str, str], variable: str, model: str, left: int
    ) -> None:
        output = self.run(az, **(ENOUGH | quota))
        assert self.log(az, "azd") == [f"azd env set {variable} {left} --environment test (2)"]
        assert f"The quota left for {model} in swedencentral is {left}:" in output
        assert f"azd env set {variable} NUMBER, then azd provision" in output

    def test_chosen_capacity_is_compared_with_the_quota(self, az: Path) -> None:
        few = {"AZ_swedencentral_g": "10 0", "AZ_swedencentral_t": "10 0"}
        assert self.run(az, **few, MODEL_CAPACITY="10", EMBEDDING_CAPACITY="5") == ""
        self.run(az, **few, MODEL_CAPACITY="11", EMBEDDING_CAPACITY="5")
        assert self.log(az, "azd") == ["azd env set MODEL_CAPACITY 10 --environment test (2)"]

    @pytest.mark.parametrize(
        ("quota", "message"),
        [
            ({"AZ_swedencentral_g": "4 0"}, f"{CHAT} needs a quota of at least 5 in swedencentral; 4 is left"),
            ({"AZ_swedencentral_g": ""}, f"{CHAT} needs a quota of at least 5 in swedencentral; 0 is left"),
            ({"AZ_swedencentral_t": "0 0"}, f"{EMBEDDING} needs a quota of at least 1 in swedencentral; 0 is left"),
        ],
    )
    def test_missing_quota_is_named_with_what_to_do(self, az: Path, quota: dict[str, str], message: str) -> None:
        output = self.run(az, **(ENOUGH | quota))
        assert message in output
        assert 'docs/deploying.md, "Quota"' in output
        assert ("azd env set EMBEDDING_DEPLOYMENT '{}'" in output) is (EMBEDDING in message)
        assert self.log(az, "azd") == []

    @pytest.mark.parametrize("shell", ["sh", "bash"])
    @pytest.mark.parametrize(
        "values",
        [
            {"AZ_swedencentral_g": "None None"},
            {"AZ_swedencentral_g": "350.0 None"},
            {"AZ_swedencentral_g": "1e+06 0.0"},
            {"AZ_swedencentral_g": "10 0", "MODEL_CAPACITY": "many"},
        ],
    )
    def test_what_is_no_number_changes_nothing(self, az: Path, shell: str, values: dict[str, str]) -> None:
        assert self.run(az, shell, **(ENOUGH | values)) == ""
        assert self.log(az, "azd") == []

    def test_capacity_follows_the_region_with_less_quota(self, az: Path) -> None:
        second = {"OPENAI_SECONDARY_LOCATION": "eastus2", "AZ_eastus2_g": "8 0", "AZ_eastus2_t": "350 0"}
        output = self.run(az, **ENOUGH, **second)
        assert f"The quota left for {CHAT} in eastus2 is 8:" in output
        assert self.log(az, "azd") == ["azd env set MODEL_CAPACITY 8 --environment test (2)"]

    def test_nothing_is_printed_where_az_does_not_answer(self, az: Path) -> None:
        assert self.run(az) == ""

    def test_run_after_a_failed_one_lowers_nothing(self, az: Path) -> None:
        """The account that the failed one has left may hold the quota itself."""
        values = {"AZ_swedencentral_g": "20 12", "AZ_swedencentral_t": "50 50", "AZ_ACCOUNTS": "oai-abc"}
        assert self.run(az, **values) == ""
        assert self.log(az, "azd") == []
        assert "--tag azd-env-name=test (2)" in self.log(az, "resource list")[0]

    def test_embedding_model_of_an_existing_deployment_gets_what_is_left(self, az: Path) -> None:
        values = {"AZ_swedencentral_t": "50 20", "AZ_ACCOUNTS": "oai-abc", "AZURE_OPENAI_DEPLOYMENTS": "chat=x@1"}
        self.run(az, **values)
        assert self.log(az, "azd") == ["azd env set EMBEDDING_CAPACITY 30 --environment test (2)"]

    @pytest.mark.parametrize(
        ("name", "value", "checked"),
        [
            ("MODEL_DEPLOYMENTS", "[]", EMBEDDING),
            ("AZURE_OPENAI_DEPLOYMENTS", "gpt-5.4-mini=gpt-5.4-mini@2026-03-17", EMBEDDING),
            ("EMBEDDING_DEPLOYMENT", "{}", CHAT),
            ("AZURE_OPENAI_EMBEDDING_DEPLOYMENTS", "text-embedding-3-small=text-embedding-3-small@1", CHAT),
            ("EXISTING_OPENAI_NAME", "oai-company", None),
            ("AZURE_LOCATION", "", None),
            ("AZURE_SUBSCRIPTION_ID", "", None),
        ],
    )
    def test_model_that_was_chosen_or_exists_is_not_checked(
        self, az: Path, name: str, value: str, checked: str | None
    ) -> None:
        self.run(az, AZ_swedencentral_g="0 0", AZ_swedencentral_t="0 0", **{name: value})
        requested = {re.findall(r"GlobalStandard\.([\w.-]+)", line)[0] for line in self.log(az, "cognitiveservices")}
        assert requested == ({checked} if checked else set())


def test_hook_checks_the_defaults_of_the_template() -> None:
    template = (ROOT / "infra" / "main.bicep").read_text()
    calls = {
        "sh": r"check (\S+) \"\$\{\w+:-(\d+)\}\" (\d+) (\w+)",
        "ps1": r"Set-Capacity (\S+) \(.* : (\d+)\) (\d+) (\w+)",
    }
    for suffix, pattern in calls.items():
        defaults = re.findall(pattern, HOOK.with_suffix(f".{suffix}").read_text())
        assert [model for model, *_ in defaults] == [CHAT, EMBEDDING]
        for model, capacity, least, variable in defaults:
            assert f"'OpenAI.GlobalStandard.{model}, {least}'" in template
            parameter = {"MODEL_CAPACITY": "modelCapacity", "EMBEDDING_CAPACITY": "embeddingCapacity"}[variable]
            assert f"param {parameter} int = {capacity}\n" in template


def test_both_shells_have_the_same_requests_and_messages() -> None:
    posix, windows = (HOOK.with_suffix(f".{suffix}").read_text() for suffix in ("sh", "ps1"))
    for pattern in (r"(?m)^(?:The |- ).*$", r"- Or leave .*(?=\")", r"az \w+ (?:usage )?list", r'--query "[^"]*"'):
        assert re.findall(pattern, posix) == re.findall(pattern, windows) != []
    names = r"((?:AZURE|EMBEDDING|EXISTING|MODEL|OPENAI)_\w+)"
    assert set(re.findall(rf"\$\{{?{names}", posix)) == set(re.findall(rf"\$env:{names}", windows))
