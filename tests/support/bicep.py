"""Runs the Bicep compiler: its command line, and its JSON-RPC server, which predicts deployments.

One server process predicts many deployments, because starting it takes most of the time. The executable is `bicep` on
the PATH, or in ../shared/tools beside the checkout.
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
MISSING = "NO BICEP COMPILER, SO THE TEMPLATES WERE NOT CHECKED: run az bicep install and add ~/.azure/bin to the PATH"
SUBSCRIPTION = "22222222-2222-2222-2222-222222222222"
TENANT = "33333333-3333-3333-3333-333333333333"


def compiler() -> Path | None:
    beside = ROOT.parent / "shared" / "tools" / "bicep"
    if on_path := shutil.which("bicep"):
        return Path(on_path)
    return beside if os.access(beside, os.X_OK) else None


def bicep(*arguments: str) -> subprocess.CompletedProcess[str]:
    """Runs the command line in the root of the checkout."""
    executable = compiler()
    assert executable, MISSING
    return subprocess.run(
        [str(executable), *arguments], cwd=ROOT, capture_output=True, text=True, check=False, timeout=120
    )


class Refused(Exception):
    """The template rejects these parameters, as Azure would before it deploys anything."""


@dataclass(frozen=True)
class Deployment:
    """The predicted resources and outputs of one set of parameters. Values that exist only after a deployment remain
    expressions, such as `[reference(…)]`."""

    resources: Sequence[JSON]
    outputs: Mapping[str, Any]

    def of(self, type_: str) -> list[JSON]:
        return [resource for resource in self.resources if resource["type"] == type_]

    def one(self, type_: str) -> JSON:
        (resource,) = self.of(type_)
        return resource

    @property
    def settings(self) -> dict[str, str]:
        """The app settings of the function app."""
        properties: dict[str, str] = self.one("Microsoft.Web/sites/config")["properties"]
        return properties


class Compiler:
    def __init__(self, requests: IO[bytes], responses: IO[bytes]) -> None:
        self._requests, self._responses, self._last_id = requests, responses, 0

    def predict(self, parameters: Path, resource_group: str | None = None) -> Deployment:
        """Of a template for the subscription, or for the resource group. Raises Refused."""
        scope = {"tenantId": TENANT, "subscriptionId": SUBSCRIPTION, "location": "swedencentral"}
        metadata = {**scope, "resourceGroup": resource_group, "deploymentName": "test"}
        response = self._call("bicep/getSnapshot", path=str(parameters), metadata=metadata, externalInputs=None)
        if "error" in response:
            raise Refused(response["error"]["data"]["message"])
        snapshot = json.loads(response["result"]["snapshot"])
        assert not snapshot["diagnostics"], snapshot["diagnostics"]
        return Deployment(snapshot["predictedResources"], snapshot["outputs"])

    def _call(self, method: str, **parameters: object) -> JSON:
        self._last_id += 1
        request = {"jsonrpc": "2.0", "id": self._last_id, "method": method, "params": [parameters]}
        body = json.dumps(request).encode()
        self._requests.write(b"Content-Length: %d\r\n\r\n%b" % (len(body), body))
        self._requests.flush()
        length = 0
        while header := self._responses.readline().strip():
            name, _, value = header.partition(b":")
            length = int(value) if name.lower() == b"content-length" else length
        assert length, "the compiler exited"
        response: JSON = json.loads(self._responses.read(length))
        return response


@contextlib.contextmanager
def running() -> Iterator[Compiler]:
    executable = compiler()
    assert executable, MISSING
    process = subprocess.Popen(
        [str(executable), "jsonrpc", "--stdio"],
        stdin=subprocess.PIPE,
        stdout=subprocess.PIPE,
        stderr=subprocess.DEVNULL,
    )
    assert process.stdin
    assert process.stdout
    try:
        with process.stdin, process.stdout:
            yield Compiler(process.stdin, process.stdout)
    finally:
        process.kill()
        process.wait()
