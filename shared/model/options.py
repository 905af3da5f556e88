"""Options that a deployment rejects: learned from its errors, and left out from then on where the turn can do without.

What a deployment rejects depends on reasoning_effort and tools: some models accept temperature while they do not reason
(vercel/ai#10932), or a reasoning_effort without tools (itzcrazykns/vane#1173).
"""

import logging
from collections.abc import Mapping
from typing import Any, TypeAlias

from shared.model.upstream_errors import OptionRejected
from shared.turns.ports import Plan

log = logging.getLogger(__name__)

_Combination: TypeAlias = tuple[str, str | None, bool]  # deployment, reasoning_effort, whether there are tools


class Options:
    """`defaults`: options from the settings, sent unless a turn names its own."""

    def __init__(self, defaults: Mapping[str, Any]) -> None:
        self._defaults = defaults
        self._rejected: dict[_Combination, set[str]] = {}  # until the process restarts

    def body(self, plan: Plan) -> dict[str, Any]:
        """The request: as it is if it is forwarded, else with the default options and without the rejected ones that
        can be dropped."""
        if plan.forwarded:
            return dict(plan.body)
        rejected = self._rejected.get(self._combination(plan), set())
        defaults = {name: value for name, value in self._defaults.items() if name not in rejected}
        own = {name: value for name, value in plan.body.items() if name != "temperature" or name not in rejected}
        return defaults | own

    def drop(self, rejection: OptionRejected, plan: Plan) -> bool:
        """True if the rejected option can be dropped: it came from settings, or it is `temperature` and the model
        rejects the parameter itself. It is then left out of requests like this one."""
        name = rejection.param
        droppable = name not in plan.body or (name == "temperature" and rejection.unsupported)
        if name is None or plan.forwarded or not droppable:
            return False
        rejected = self._rejected.setdefault(self._combination(plan), set())
        if name not in rejected:
            rejected.add(name)
            log.warning("deployment %r rejects %s: left out from now on", plan.deployment, name)
        return True

    def _combination(self, plan: Plan) -> _Combination:
        effort = plan.body.get("reasoning_effort", self._defaults.get("reasoning_effort"))
        return plan.deployment, effort, "tools" in plan.body
