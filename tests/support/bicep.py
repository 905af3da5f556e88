"""The Bicep compiler, spoken to over JSON-RPC, so that one process predicts many deployments in the time of one.

`bicep` is looked for on the PATH, then in ../shared/tools beside the checkout.
"""

import contextlib
import json
import os
import shutil
import subprocess
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import IO, Any

from local.places import ROOT

JSON = dict[str, Any]
MISSING = (
    "NO BICEP COMPILER, SO THE TEMPLATES WERE NOT CHECKED: az bicep install brings it, into ~/.azure/bin, to be put"
    " on the PATH"
)
SUBSCRIPTION = "22222222-2222-2222-2222-222222222222"
TENANT = "33333333-3333-3333-3333-333333333333"


def compiler() -> Path | None:
    beside = ROOT.parent / "shared" / "tools" / "bicep"
    found = shutil.which("bicep")
    return Path(found) if found else beside if os.access(beside, os.X_OK) else None


def bicep(*arguments: str) -> subprocess.CompletedProcess[str]:
    """The command line, from the root of the checkout."""
    found = compiler()
    assert found, MISSING
    return subprocess.run([str(found), *arguments], cwd=ROOT, capture_output=True, text=True, check=False, timeout=120)


class Refused(Exception):
    """The template refuses these parameters, as Azure would before it deploys anything."""


@dataclass(frozen=True)
class Deployment:
    """What a set of parameters would deploy. A value that only Azure knows stays an expression: `[reference(…)]`."""

    resources: Sequence[JSON]
    outputs: Mapping[str, Any]

    def of(self, type_: str) -> list[JSON]:
        return [resource for resource in self.resources if resource["type"] == type_]

    def one(self, type_: str) -> JSON:
        (resource,) = self.of(type_)
        return resource

    @property
    def settings(self) -> dict[str, str]:
        """The function app's."""
        properties: dict[str, str] = self.one("Microsoft.Web/sites/config")["properties"]
        return properties


class Compiler:
    def __init__(self, requests: IO[bytes], answers: IO[bytes]) -> None:
        self._requests, self._answers, self._asked = requests, answers, 0

    def predict(self, parameters: Path) -> Deployment:
        """Raises Refused."""
        scope = {"tenantId": TENANT, "subscriptionId": SUBSCRIPTION, "location": "swedencentral"}
        metadata = {**scope, "resourceGroup": None, "deploymentName": "test"}
        answer = self._ask("bicep/getSnapshot", path=str(parameters), metadata=metadata, externalInputs=None)
        if "error" in answer:
            raise Refused(answer["error"]["data"]["message"])
        found = json.loads(answer["result"]["snapshot"])
        assert not found["diagnostics"], found["diagnostics"]
        return Deployment(found["predictedResources"], found["outputs"])

    def _ask(self, method: str, **parameters: object) -> JSON:
        self._asked += 1
        request = {"jsonrpc": "2.0", "id": self._asked, "method": method, "params": [parameters]}
        body = json.dumps(request).encode()
        self._requests.write(b"Content-Length: %d\r\n\r\n%b" % (len(body), body))
        self._requests.flush()
        length = 0
        while header := self._answers.readline().strip():
            name, _, value = header.partition(b":")
            length = int(value) if name.lower() == b"content-length" else length
        assert length, "the compiler ended"
        answer: JSON = json.loads(self._answers.read(length))
        return answer


@contextlib.contextmanager
def running() -> Iterator[Compiler]:
    found = compiler()
    assert found, MISSING
    process = subprocess.Popen(
        [str(found), "jsonrpc", "--stdio"], stdin=subprocess.PIPE, stdout=subprocess.PIPE, stderr=subprocess.DEVNULL
    )
    assert process.stdin
    assert process.stdout
    try:
        with process.stdin, process.stdout:
            yield Compiler(process.stdin, process.stdout)
    finally:
        process.kill()
        process.wait()
