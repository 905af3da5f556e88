"""How each call went, for those who run the app: one line of the log a call. No content, no session's id."""

import logging
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from typing import Any

import orjson

from shared.conversation import Call, Entry, State, hashed
from shared.ports import Happened

log = logging.getLogger(__name__)


class Journal:
    """The log, and `trace` where tracing is set up."""

    def __init__(self, trace: Callable[[Happened], None] | None) -> None:
        self._trace = trace

    def record(self, happened: Happened) -> None:
        with _harmlessly(happened.call):
            _tell(happened.call, _counted(happened.entry, happened.call) | _seen(happened))
            if self._trace:
                self._trace(happened)

    def recovered(self, entry: Entry, call: Call) -> None:
        with _harmlessly(call):
            _tell(call, _counted(entry, call))


@contextmanager
def _harmlessly(call: Call) -> Iterator[None]:
    """What is only told must not keep a call from being settled, nor its session from being freed."""
    try:
        yield
    except Exception:
        log.exception("call %s could not be told of", call.id)


def _tell(call: Call, fields: dict[str, Any]) -> None:
    log.info("call %s: %s", call.id, orjson.dumps(fields).decode())


def _seen(happened: Happened) -> dict[str, Any]:
    first = happened.seconds_to_first_token
    return {
        "finish_reason": happened.finish_reason,
        "attempts": happened.attempts,
        "seconds": round(happened.seconds, 3),
        "seconds_to_first_token": None if first is None else round(first, 3),
    }


def _counted(entry: Entry, call: Call) -> dict[str, Any]:
    """Amounts in USD are text, so that no reader makes a float of them."""
    usage = call.usage
    return {
        "session": hashed(entry.session_id) if entry.session_id else None,
        "turn": entry.turn,
        "outcome": call.state.value,
        "reason": call.reason,
        "deployment": call.deployment,
        "model": call.model,
        "endpoint": call.endpoint,
        "prompt_tokens": usage and usage.prompt_tokens,
        "cached_tokens": usage and usage.cached_tokens,
        "cache_write_tokens": usage and usage.cache_write_tokens,
        "completion_tokens": usage and usage.completion_tokens,
        "reasoning_tokens": usage and usage.reasoning_tokens,
        "cost_usd": None if call.cost is None else f"{call.cost:f}",
        "worst_case_usd": f"{call.worst_case:f}" if call.state is State.UNACCOUNTED and call.worst_case else None,
    }
