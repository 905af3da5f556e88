"""Options that a deployment rejects: learned from its errors, and left out of or renamed in later requests.

What is learned holds for the deployment until the process restarts. The body of a forwarded request changes only where
the deployment takes the same option under another name, and by what this app alone added to it.
"""

import logging
from collections.abc import Mapping
from typing import Any, TypeAlias

from shared.model.upstream_errors import OptionRejected, ToolsRejected
from shared.turns.ports import Plan

log = logging.getLogger(__name__)

# Models that reason refuse the older name of the answer's maximum, others the newer one (pydantic/pydantic-ai#6593).
_OTHER_MAXIMUM = {"max_completion_tokens": "max_tokens", "max_tokens": "max_completion_tokens"}

_Combination: TypeAlias = tuple[str, str | None, bool]  # deployment, reasoning_effort, with tools
_Kind: TypeAlias = tuple[str, bool]  # deployment, with data sources


class Options:
    """`defaults`: options from the settings, sent unless the request sets them."""

    def __init__(self, defaults: Mapping[str, Any]) -> None:
        self._defaults = defaults
        # Some models accept temperature only without reasoning (vercel/ai#10932).
        self._rejected: dict[_Combination, set[str]] = {}
        self._maximum: dict[str, str] = {}  # the name that the deployment takes
        self._effort_with_tools: dict[str, str | None] = {}  # unless the caller names one; None: not sent
        self._max_output: dict[str, int] = {}  # tokens
        self._without_usage: set[_Kind] = set()  # stream_options is refused, as by On Your Data (openai-python#2296)

    def body(self, plan: Plan) -> dict[str, Any]:
        """The request body, with the default options and without what the deployment is known to reject."""
        body = dict(plan.body)
        if not plan.forwarded:
            rejected = self._rejected.get(self._combination(plan), set())
            body = {name: value for name, value in self._defaults.items() if name not in rejected} | body
            if "temperature" in rejected:
                body.pop("temperature", None)
        if "stream_options" in plan.added and self._kind(plan) in self._without_usage:
            body.pop("stream_options", None)
        if _chooses_effort(plan) and plan.deployment in self._effort_with_tools:
            effort = self._effort_with_tools[plan.deployment]
            body = {name: value for name, value in body.items() if name != "reasoning_effort"}
            body |= {"reasoning_effort": effort} if effort else {}
        if not plan.forwarded and (maximum := self._max_output.get(plan.deployment)):
            body |= {name: min(body[name], maximum) for name in _OTHER_MAXIMUM if body.get(name)}
        return _renamed(body, self._maximum.get(plan.deployment))

    def max_output(self, deployment: str) -> int | None:
        """The most output tokens of the deployment's model, if a refusal has named it."""
        return self._max_output.get(deployment)

    def learn(self, rejection: OptionRejected, plan: Plan, body: Mapping[str, Any]) -> None:
        """Learn from the rejection of this body. The next one differs if the request can do without the option."""
        sent = [body[name] for name in _OTHER_MAXIMUM if body.get(name)]
        if rejection.max_output and sent and rejection.max_output < max(sent):
            self._max_output[plan.deployment] = rejection.max_output
        for name in rejection.fields:
            unsupported, tools_rejected = name in rejection.unsupported, isinstance(rejection, ToolsRejected)
            if name not in body and not tools_rejected:
                continue
            if name == "reasoning_effort" and _chooses_effort(plan):
                needs_none = tools_rejected and body.get(name) != "none"
                self._effort_with_tools[plan.deployment] = "none" if needs_none else None
            elif name in _OTHER_MAXIMUM and unsupported:
                self._maximum[plan.deployment] = _OTHER_MAXIMUM[name]
            elif name == "stream_options" and name in plan.added:
                self._without_usage.add(self._kind(plan))
            elif not plan.forwarded and (name not in plan.body or (name == "temperature" and unsupported)):
                self._rejected.setdefault(self._combination(plan), set()).add(name)
            else:
                continue
            log.warning("deployment %r rejects %s: avoided until the process restarts", plan.deployment, name)

    def _kind(self, plan: Plan) -> _Kind:
        return plan.deployment, bool(plan.body.get("data_sources"))

    def _combination(self, plan: Plan) -> _Combination:
        effort = plan.body.get("reasoning_effort", self._defaults.get("reasoning_effort"))
        return plan.deployment, effort, "tools" in plan.body


def _chooses_effort(plan: Plan) -> bool:
    """True if the request has tools and its caller leaves the reasoning effort to the app."""
    with_tools = plan.body.get("tools") or plan.body.get("functions")
    return bool(with_tools) and plan.body.get("reasoning_effort") is None


def _renamed(body: dict[str, Any], maximum: str | None) -> dict[str, Any]:
    """The body with the answer's maximum under the name that the deployment takes. If the caller sent both, the
    value under that name counts."""
    if maximum is None or _OTHER_MAXIMUM[maximum] not in body:
        return body
    value = body.pop(_OTHER_MAXIMUM[maximum])
    if body.get(maximum) is None:
        body[maximum] = value
    return body if body[maximum] is not None else {name: each for name, each in body.items() if name != maximum}
