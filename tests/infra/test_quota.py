"""azd's hook that warns, before anything is provisioned, of a region without quota for the default embedding model."""

import os
import re
import subprocess
from pathlib import Path

import pytest

from local.places import ROOT
from tests.support.bicep import SUBSCRIPTION

HOOK = ROOT / "infra" / "hooks" / "quota.sh"
# Answers for each region: NAME=limit used, or no answer at all.
AZ = """#!/bin/sh
printf '%s\\n' "$*" >>"$AZ_LOG"
region=$(echo "$*" | sed 's/.*--location \\([a-z0-9]*\\).*/\\1/')
quota=$(eval echo "\\"\\${AZ_$region-none}\\"")
[ "$quota" != none ] || { echo "ERROR: Please run 'az login' to setup account." >&2; exit 1; }
printf '%s\\n' "$quota" | tr ' ' '\\t'
"""


@pytest.mark.skipif(os.name == "nt", reason="the hooks are POSIX scripts")
class TestHook:
    @pytest.fixture
    def az(self, tmp_path: Path) -> Path:
        """A folder for the PATH, with an `az` that logs its arguments."""
        (tmp_path / "az").write_text(AZ)
        (tmp_path / "az").chmod(0o755)
        return tmp_path

    def run(self, az: Path, **values: str) -> str:
        environment = {"AZURE_SUBSCRIPTION_ID": SUBSCRIPTION, "AZURE_LOCATION": "swedencentral", **values}
        result = subprocess.run(
            ["sh", str(HOOK)],
            env={"PATH": f"{az}:{os.environ['PATH']}", "AZ_LOG": str(az / "log"), **environment},
            capture_output=True,
            text=True,
            check=True,
        )
        assert result.stderr == ""
        return result.stdout

    @pytest.mark.parametrize("quota", ["350.0 0.0", "350 300", "50.0 0.0"])
    def test_nothing_is_printed_where_the_quota_suffices(self, az: Path, quota: str) -> None:
        assert self.run(az, AZ_swedencentral=quota) == ""
        (request,) = (az / "log").read_text().splitlines()
        assert f"usage list --subscription {SUBSCRIPTION} --location swedencentral" in request
        assert "'OpenAI.GlobalStandard.text-embedding-3-small'" in request

    @pytest.mark.parametrize(("quota", "left"), [("350.0 301.0", "49"), ("0.0 0.0", "0"), ("", "0")])
    def test_missing_quota_is_named_with_the_switch(self, az: Path, quota: str, left: str) -> None:
        output = self.run(az, AZ_swedencentral=quota)
        assert f"text-embedding-3-small needs a quota of 50 in swedencentral; {left} is left" in output
        assert "azd env set EMBEDDING_DEPLOYMENT '{}'" in output

    def test_second_region_is_checked_too(self, az: Path) -> None:
        regions = {"OPENAI_SECONDARY_LOCATION": "southeastasia", "AZ_swedencentral": "350 0", "AZ_southeastasia": ""}
        output = self.run(az, **regions)
        assert "in southeastasia; 0 is left" in output
        assert "swedencentral" not in output

    def test_nothing_is_printed_where_az_does_not_answer(self, az: Path) -> None:
        assert self.run(az) == ""

    @pytest.mark.parametrize(
        ("name", "value"),
        [
            ("EMBEDDING_DEPLOYMENT", "{}"),
            ("AZURE_OPENAI_EMBEDDING_DEPLOYMENTS", "text-embedding-3-small=text-embedding-3-small@1"),
            ("EXISTING_OPENAI_NAME", "oai-company"),
            ("AZURE_LOCATION", ""),
            ("AZURE_SUBSCRIPTION_ID", ""),
        ],
    )
    def test_no_request_is_sent_where_nothing_new_is_deployed_or_no_region_is_chosen(
        self, az: Path, name: str, value: str
    ) -> None:
        assert self.run(az, AZ_swedencentral="0 0", **{name: value}) == ""
        assert not (az / "log").exists()


def test_hook_checks_the_default_of_the_template() -> None:
    template = (ROOT / "infra" / "main.bicep").read_text()
    for suffix in ("sh", "ps1"):
        script = HOOK.with_suffix(f".{suffix}").read_text()
        model = re.search(r"model ?= ?'?([\w.-]+)", script)
        capacity = re.search(r"capacity ?= ?(\d+)", script)
        assert model
        assert capacity
        assert f"'OpenAI.GlobalStandard.{model[1]}, {capacity[1]}'" in template


def test_both_shells_have_the_same_request_and_message() -> None:
    posix, windows = (HOOK.with_suffix(f".{suffix}").read_text() for suffix in ("sh", "ps1"))
    for pattern in (r"(?m)^(?:The embedding model|- ).*$", r"az cognitiveservices usage list", r'--query "[^"]*"'):
        assert re.findall(pattern, posix) == re.findall(pattern, windows) != []
    assert set(re.findall(r"\$\{?((?:AZURE|EMBEDDING|EXISTING|OPENAI)_\w+)", posix)) == set(
        re.findall(r"\$env:(\w+)", windows)
    )
