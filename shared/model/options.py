"""Options that a deployment rejects: detected from its errors, and dropped from later requests if possible.

What a deployment rejects depends on reasoning_effort and tools: some models accept temperature only without reasoning
(vercel/ai#10932), or reasoning_effort only without tools (itzcrazykns/vane#1173).
"""

import logging
from collections.abc import Mapping
from typing import Any, TypeAlias

from shared.model.upstream_errors import OptionRejected
from shared.turns.ports import Plan

log = logging.getLogger(__name__)

_Combination: TypeAlias = tuple[str, str | None, bool]  # deployment, reasoning_effort, with tools


class Options:
    """`defaults`: options from the settings, sent unless the request sets them."""

    def __init__(self, defaults: Mapping[str, Any]) -> None:
        self._defaults = defaults
        self._rejected: dict[_Combination, set[str]] = {}  # until the process restarts

    def body(self, plan: Plan) -> dict[str, Any]:
        """The request body. A forwarded request is unchanged; others get the default options and lose rejected options
        that can be dropped."""
        if plan.forwarded:
            return dict(plan.body)
        rejected = self._rejected.get(self._combination(plan), set())
        defaults = {name: value for name, value in self._defaults.items() if name not in rejected}
        own = {name: value for name, value in plan.body.items() if name != "temperature" or name not in rejected}
        return defaults | own

    def drop(self, rejection: OptionRejected, plan: Plan) -> bool:
        """True if the rejected option can be dropped: it came from settings, or it is `temperature` and the model
        rejects the parameter itself. Later requests of the same combination then omit it."""
        name = rejection.param
        droppable = name not in plan.body or (name == "temperature" and rejection.unsupported)
        if name is None or plan.forwarded or not droppable:
            return False
        rejected = self._rejected.setdefault(self._combination(plan), set())
        if name not in rejected:
            rejected.add(name)
            log.warning("deployment %r rejects option %s: omitted until the process restarts", plan.deployment, name)
        return True

    def _combination(self, plan: Plan) -> _Combination:
        effort = plan.body.get("reasoning_effort", self._defaults.get("reasoning_effort"))
        return plan.deployment, effort, "tools" in plan.body
