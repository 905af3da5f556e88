"""The triggers that function_app.py declares, as the platform's library indexes them."""

import json
import subprocess
import sys
from functools import cache
from typing import Any

from local.places import ROOT

# In a process of its own, because an app can be indexed once, and the local host of the tests does that.
_INDEX = """
import json, function_app
functions = function_app.app.get_functions()
print(json.dumps({each.get_function_name(): each.get_trigger().get_dict_repr() for each in functions}, default=str))
"""


@cache
def triggers() -> dict[str, dict[str, Any]]:
    """The trigger's binding of each function, by the function's name."""
    indexed = subprocess.run(
        [sys.executable, "-W", "error", "-c", _INDEX], cwd=ROOT, check=True, capture_output=True, text=True
    )
    found: dict[str, dict[str, Any]] = json.loads(indexed.stdout)
    return found


def timers() -> dict[str, str]:
    """The schedule of each timer, by its function's name."""
    return {name: each["schedule"] for name, each in triggers().items() if each["type"] == "timerTrigger"}
