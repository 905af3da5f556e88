"""The triggers that function_app.py declares, as the azure-functions library indexes them."""

import json
import subprocess
import sys
from functools import cache
from typing import Any

from local.places import ROOT

# Runs in a separate process: an app can be indexed only once, and the local host already does so in the tests.
_INDEX = """
import json, function_app
functions = function_app.app.get_functions()
triggers = {function.get_function_name(): function.get_trigger().get_dict_repr() for function in functions}
print(json.dumps(triggers, default=str))
"""


@cache
def triggers() -> dict[str, dict[str, Any]]:
    """Function name -> its trigger binding."""
    process = subprocess.run(
        [sys.executable, "-W", "error", "-c", _INDEX], cwd=ROOT, check=True, capture_output=True, text=True
    )
    bindings: dict[str, dict[str, Any]] = json.loads(process.stdout)
    return bindings


def timers() -> dict[str, str]:
    """Function name -> schedule, for timer triggers."""
    return {name: binding["schedule"] for name, binding in triggers().items() if binding["type"] == "timerTrigger"}
