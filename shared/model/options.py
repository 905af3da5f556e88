"""Options that a deployment rejects: learned from its errors, and left out of or renamed in later requests.

What is learned holds for the deployment until the process restarts. The body of a forwarded request is the caller's,
with these exceptions:

- `model` is the deployment's name.
- A stream requests its usage (web/openai.py), unless the deployment refuses `stream_options` and the caller sent none.
- The answer's maximum has the name that the deployment takes.
- With tools, `reasoning_effort` is `none`, or is left out if null, where the deployment requires that and the caller
  names no effort.
"""

import logging
from collections.abc import Mapping
from typing import Any, TypeAlias

from shared.model.upstream_errors import OptionRejected, ToolsRejected
from shared.turns.ports import Plan

log = logging.getLogger(__name__)

# Models that reason refuse the older name of the answer's maximum, others the newer one (pydantic/pydantic-ai#6593).
_OTHER_LIMIT_FIELD = {"max_completion_tokens": "max_tokens", "max_tokens": "max_completion_tokens"}

_Combination: TypeAlias = tuple[str, str | None, bool]  # deployment, reasoning_effort, with tools
_UsageKey: TypeAlias = tuple[str, bool]  # deployment, with data sources


class Options:
    """`defaults`: options from the settings, sent unless the request sets them."""

    def __init__(self, defaults: Mapping[str, Any]) -> None:
        self._defaults = defaults
        # Some models accept temperature only without reasoning (vercel/ai#10932).
        self._rejected: dict[_Combination, set[str]] = {}
        self._limit_field: dict[str, str] = {}  # the name that the deployment takes
        self._effort_with_tools: dict[str, str | None] = {}  # unless the caller names one; None: not sent
        self._max_output_tokens: dict[str, int] = {}
        self._without_usage: set[_UsageKey] = (
            set()
        )  # stream_options is refused, as by On Your Data (openai-python#2296)

    def body(self, plan: Plan) -> dict[str, Any]:
        """The request body, with the default options and without what the deployment is known to reject."""
        body = dict(plan.body)
        if not plan.forwarded:
            rejected = self._rejected.get(self._combination(plan), set())
            body = {name: value for name, value in self._defaults.items() if name not in rejected} | body
            if "temperature" in rejected:
                body.pop("temperature", None)
        if "stream_options" in plan.added and _usage_key(plan) in self._without_usage:
            body.pop("stream_options", None)
        if _chooses_effort(plan) and plan.deployment in self._effort_with_tools:
            effort = self._effort_with_tools[plan.deployment]
            body = {name: value for name, value in body.items() if name != "reasoning_effort"}
            body |= {"reasoning_effort": effort} if effort else {}
        if not plan.forwarded and (maximum := self._max_output_tokens.get(plan.deployment)):
            body |= {name: min(body[name], maximum) for name in _OTHER_LIMIT_FIELD if body.get(name)}
        return _renamed(body, self._limit_field.get(plan.deployment))

    def max_output(self, deployment: str) -> int | None:
        """The most output tokens of the deployment's model, if a refusal has named it."""
        return self._max_output_tokens.get(deployment)

    def learn(self, rejection: OptionRejected, plan: Plan, body: Mapping[str, Any]) -> None:
        """Learn from the rejection of this body. The next one differs if the request can do without the option. Nothing
        is learned from embeddings: these are options of chat."""
        if not plan.max_tokens:
            return
        names = [name for name in rejection.fields if name in body or isinstance(rejection, ToolsRejected)]
        learned = [
            self._learn_max_output(rejection, plan, body),
            *(self._learn_field(name, rejection, plan, body) for name in names),
        ]
        for each in filter(None, learned):
            log.warning("deployment %r, until the process restarts: %s", plan.deployment, each)

    # These return what to log, or None if nothing is learned.

    def _learn_max_output(self, rejection: OptionRejected, plan: Plan, body: Mapping[str, Any]) -> str | None:
        sent = max((body[name] for name in _OTHER_LIMIT_FIELD if body.get(name)), default=0)
        tokens = rejection.max_output
        if not tokens or tokens >= sent or tokens == self.max_output(plan.deployment):
            return None
        self._max_output_tokens[plan.deployment] = tokens
        return f"an answer has at most {tokens} tokens"

    def _learn_field(self, name: str, rejection: OptionRejected, plan: Plan, body: Mapping[str, Any]) -> str | None:
        unsupported = name in rejection.unsupported
        if name == "reasoning_effort" and _chooses_effort(plan):
            return self._learn_effort(rejection, plan, body)
        if name in _OTHER_LIMIT_FIELD and unsupported:
            self._limit_field[plan.deployment] = _OTHER_LIMIT_FIELD[name]
            return f"{_OTHER_LIMIT_FIELD[name]} is sent instead of {name}"
        if name == "stream_options" and name in plan.added:
            self._without_usage.add(_usage_key(plan))
            return f"{name} is not sent {'with' if plan.body.get('data_sources') else 'without'} data_sources"
        if not plan.forwarded and (name not in plan.body or (name == "temperature" and unsupported)):
            combination = self._combination(plan)
            self._rejected.setdefault(combination, set()).add(name)
            _, effort, tools = combination
            return f"{name} is not sent with reasoning_effort {effort or 'unset'} {'and' if tools else 'without'} tools"
        return None

    def _learn_effort(self, rejection: OptionRejected, plan: Plan, body: Mapping[str, Any]) -> str:
        needs_none = isinstance(rejection, ToolsRejected) and body.get("reasoning_effort") != "none"
        self._effort_with_tools[plan.deployment] = "none" if needs_none else None
        return "reasoning_effort is 'none' with tools" if needs_none else "reasoning_effort is not sent with tools"

    def _combination(self, plan: Plan) -> _Combination:
        effort = plan.body.get("reasoning_effort", self._defaults.get("reasoning_effort"))
        return plan.deployment, effort, "tools" in plan.body


def _chooses_effort(plan: Plan) -> bool:
    """True if the request has tools and its caller leaves the reasoning effort to the app."""
    with_tools = plan.body.get("tools") or plan.body.get("functions")
    return bool(with_tools) and plan.body.get("reasoning_effort") is None


def _usage_key(plan: Plan) -> _UsageKey:
    return plan.deployment, bool(plan.body.get("data_sources"))


def _renamed(body: dict[str, Any], field: str | None) -> dict[str, Any]:
    """The body with the answer's maximum in the field that the deployment takes. If the caller sent both fields, the
    value of that one counts."""
    if field is None or _OTHER_LIMIT_FIELD[field] not in body:
        return body
    value = body.pop(_OTHER_LIMIT_FIELD[field])
    if body.get(field) is None:
        body[field] = value
    return body if body[field] is not None else {name: each for name, each in body.items() if name != field}
