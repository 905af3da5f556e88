"""One log line for each call, and a trace if tracing is set up. Neither contains content or session ids."""

import logging
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from typing import Any

import orjson

from shared.domain.calls import Call, LedgerEntry, State
from shared.turns.ports import CallRecord

log = logging.getLogger(__name__)

_BOUNDED = (State.UNACCOUNTED, State.STOPPED)  # their cost is not known; their worst case bounds it


class CallLog:
    def __init__(self, trace: Callable[[CallRecord], None] | None) -> None:
        self._trace = trace

    def record(self, record: CallRecord) -> None:
        with _logging_failures(record.call):
            _write(record.call, _accounting_fields(record.entry, record.call) | _timing_fields(record))
            if self._trace:
                self._trace(record)

    def recovered(self, entry: LedgerEntry, call: Call) -> None:
        with _logging_failures(call):
            _write(call, _accounting_fields(entry, call))


@contextmanager
def _logging_failures(call: Call) -> Iterator[None]:
    """Telemetry failures must not affect settlement or recovery."""
    try:
        yield
    except Exception:
        log.exception("call %s: could not write telemetry", call.id)


def _write(call: Call, fields: dict[str, Any]) -> None:
    log.info("call %s: %s", call.id, orjson.dumps(fields).decode())


def _timing_fields(record: CallRecord) -> dict[str, Any]:
    first = record.seconds_to_first_token
    return {
        "finish_reason": record.finish_reason,
        "attempts": record.attempts,
        "seconds": round(record.seconds, 3),
        "seconds_to_first_token": None if first is None else round(first, 3),
    }


def _accounting_fields(entry: LedgerEntry, call: Call) -> dict[str, Any]:
    """Amounts in USD are strings, so that no reader parses them as floats."""
    usage = call.usage
    return {
        "session": entry.session_label,
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
        "worst_case_usd": f"{call.worst_case:f}" if call.state in _BOUNDED and call.worst_case else None,
    }
