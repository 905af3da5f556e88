"""Scan of the predicted deployments with Checkov's rules for Azure. Fix a finding, or give a reason next to the
resource in infra/app: `// checkov:skip=ID: reason`.

The predictions are scanned because Checkov reads neither modules nor symbolic names. Checkov needs 290 MB of packages,
so the scan runs only if it is installed; with SECURITY_SCAN set, the test installs it into .local/.
"""

import json
import os
import re
import shutil
import subprocess
import sys
from collections.abc import Mapping
from pathlib import Path

import pytest

from local.lock import hold
from local.places import ROOT, STATE
from tests.support import bicep

CHECKOV = "checkov==3.3.30"
HOME = STATE / "checkov"
MISSING = (
    "CHECKOV IS NOT INSTALLED, SO THE TEMPLATES WERE NOT SCANNED: SECURITY_SCAN=1 make test installs it, or"
    f" python3 -m venv .local/checkov && .local/checkov/bin/pip install {CHECKOV}"
)
Finding = tuple[str, str]  # type of the resource, rule
RESOURCE = re.compile(r"((?:^//.*\n)+)resource \w+ '([\w./]+)@", re.MULTILINE)
SKIP = re.compile(r"// checkov:skip=(CKV2?_AZURE_\d+): (\S.*)")


@pytest.fixture(scope="module")
def checkov() -> Path:
    inside = HOME / ("Scripts" if os.name == "nt" else "bin")
    if os.environ.get("SECURITY_SCAN") and not shutil.which("checkov", path=inside) and not shutil.which("checkov"):
        with hold(STATE / "checkov.lock", timeout=900):
            subprocess.run([sys.executable, "-m", "venv", "--clear", str(HOME)], check=True)
            pip = [str(inside / "python"), "-m", "pip", "install", "--quiet", "--disable-pip-version-check"]
            if subprocess.run([*pip, CHECKOV], check=False).returncode:
                shutil.rmtree(HOME)
    executable = shutil.which("checkov", path=inside) or shutil.which("checkov")
    if not executable:
        pytest.skip(MISSING)
    return Path(executable)


def findings(checkov: Path, folder: Path) -> set[Finding]:
    environ = {name: value for name, value in os.environ.items() if not name.startswith(("BC_", "CKV_", "PYTHON"))}
    result = subprocess.run(
        [str(checkov), "-d", str(folder), "--framework", "arm", "--output", "json", "--skip-download", "--soft-fail"],
        capture_output=True,
        text=True,
        check=True,
        cwd=folder,
        env=environ,
    )
    report = json.loads(result.stdout)
    assert report["summary"]["parsing_errors"] == 0
    assert report["summary"]["passed"] > 50, "Checkov scanned nothing"
    return {(failed["resource"].rsplit(".", 1)[0], failed["check_id"]) for failed in report["results"]["failed_checks"]}


def reasons() -> Mapping[Finding, str]:
    """The accepted findings with their reasons, from the comments above the resources."""
    accepted: dict[Finding, str] = {}
    for file in (ROOT / "infra" / "app").glob("*.bicep"):
        for comments, type_ in RESOURCE.findall(file.read_text()):
            accepted |= {(type_, rule): reason for rule, reason in SKIP.findall(comments)}
    return accepted


@pytest.mark.skipif(bicep.compiler() is None, reason=bicep.MISSING)
def test_every_finding_has_a_reason_and_every_reason_a_finding(checkov: Path, tmp_path: Path) -> None:
    with bicep.running() as compiler:
        deployments = [compiler.predict(file) for file in (ROOT / "tests" / "infra").glob("*.bicepparam")]
    different = {json.dumps(resource): resource for deployment in deployments for resource in deployment.resources}
    template = {
        "$schema": "https://schema.management.azure.com/schemas/2019-04-01/deploymentTemplate.json#",
        "contentVersion": "1.0.0.0",
        # Left out: Checkov mistakes app settings for the configuration of a site, which has the same type.
        "resources": [r for r in different.values() if r["type"] != "Microsoft.Web/sites/config"],
    }
    (tmp_path / "predicted.json").write_text(json.dumps(template))
    assert findings(checkov, tmp_path) == reasons().keys()
