"""The Bicep compiler, and deployments that it predicts."""

import json
import os
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any, TypeAlias

import pytest

from local.places import ROOT
from tests.support import bicep
from tests.support.bicep import Compiler, Deployment

Predict: TypeAlias = Callable[..., Deployment]


@pytest.fixture(scope="module")
def compiler() -> Iterator[Compiler]:
    with bicep.running() as compiler:
        yield compiler


@pytest.fixture
def predict(compiler: Compiler, tmp_path: Path) -> Predict:
    """Predicts a deployment with these parameters."""

    def predicted(**parameters: Any) -> Deployment:
        parameters |= {"environmentName": "test", "location": "swedencentral"}
        quoted = {
            name: json.dumps(value).replace("\\", "\\\\").replace("'", "\\'") for name, value in parameters.items()
        }
        lines = [f"param {name} = json('{value}')" for name, value in quoted.items()]
        file = tmp_path / "test.bicepparam"
        file.write_text("\n".join([f"using '{os.path.relpath(ROOT / 'infra' / 'main.bicep', tmp_path)}'", *lines]))
        return compiler.predict(file)

    return predicted
