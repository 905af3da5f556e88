"""The HTTP and timer triggers that a function app declares, read from its bindings.

The app is the only route table: no route is named here.
"""

import asyncio
import inspect
import re
from collections.abc import Callable, Mapping
from dataclasses import dataclass
from typing import Any

import azure.functions as func


class DeclarationError(Exception):
    """A declaration that the local host does not support; the message names the function."""


@dataclass(frozen=True)
class HttpTrigger:
    function: str
    handler: Callable[..., Any]
    parameter: str
    route: str
    methods: frozenset[str]  # empty: all
    auth_level: str  # anonymous, function or admin


@dataclass(frozen=True)
class TimerTrigger:
    function: str
    handler: Callable[..., Any]
    parameter: str
    schedule: str


async def invoke(trigger: HttpTrigger | TimerTrigger, argument: Any) -> Any:
    """Call the function as the worker does: a synchronous one runs in a thread."""
    arguments = {trigger.parameter: argument}
    if inspect.iscoroutinefunction(trigger.handler):
        return await trigger.handler(**arguments)
    return await asyncio.to_thread(trigger.handler, **arguments)


def declared(app: func.FunctionApp, environ: Mapping[str, str]) -> list[HttpTrigger | TimerTrigger]:
    """In declaration order. Call it once per app: a second call of the library's `get_functions` fails."""
    return [_trigger(function, environ) for function in app.get_functions()]


def _trigger(function: Any, environ: Mapping[str, str]) -> HttpTrigger | TimerTrigger:
    name, binding = function.get_function_name(), function.get_trigger().get_dict_repr()
    handler, parameter = function.get_user_function(), binding["name"]
    if binding["type"] == "httpTrigger":
        methods = frozenset(_text(method).upper() for method in binding.get("methods") or ())
        level = _text(binding.get("authLevel") or "function").lower()
        return HttpTrigger(name, handler, parameter, binding.get("route") or name, methods, level)
    if binding["type"] == "timerTrigger":
        return TimerTrigger(name, handler, parameter, _resolved(name, binding["schedule"], environ))
    raise DeclarationError(f"{name}: the local host serves HTTP and timer triggers, not {binding['type']}")


def _text(value: Any) -> str:
    return str(getattr(value, "value", value))


def _resolved(function: str, schedule: str, environ: Mapping[str, str]) -> str:
    """Replaces `%NAME%` by the setting, as the platform does before it starts Python."""

    def setting(match: re.Match[str]) -> str:
        value = environ.get(match[1])
        if not value:
            raise DeclarationError(
                f"{function}: its schedule {schedule} needs the setting {match[1]}, which is not set"
            )
        return value

    return re.sub(r"%([^%]+)%", setting, schedule)
