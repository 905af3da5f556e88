"""A span and metrics for each call, following the conventions for generative AI
(https://github.com/open-telemetry/semantic-conventions-genai). They never contain content.

Only this module uses OpenTelemetry. It imports it only if tracing is set up, because the import slows every cold start.
"""

import logging
from collections.abc import Callable
from datetime import datetime
from typing import Any
from urllib.parse import urlsplit

from shared.domain.calls import State
from shared.turns.ports import CallRecord

log = logging.getLogger(__name__)

_QUIET = (
    "azure_sdk",
    "django",
    "fastapi",
    "flask",
    "httpx",
    "httpx2",
    "psycopg2",
    "requests",
    "urllib",
    "urllib3",
)
_TOKENS = [4**power for power in range(14)]  # bucket bounds that the conventions recommend
_SECONDS = [0.01 * 2**power for power in range(14)]


def tracing(connection_string: str | None) -> Callable[[CallRecord], None] | None:
    """A function that records a call in Application Insights. None without a connection string, if it is malformed, or
    if the optional dependency in requirements-tracing.txt is not installed. A provider that the platform has set up is
    reused."""
    if not connection_string:
        return None
    try:
        from azure.monitor.opentelemetry import configure_azure_monitor
        from opentelemetry import metrics, trace
        from opentelemetry.sdk.trace import TracerProvider
    except ImportError:
        return None
    if not isinstance(trace.get_tracer_provider(), TracerProvider):
        try:
            configure_azure_monitor(
                connection_string=connection_string,
                logger_name="chat.telemetry",  # a logger without records: the platform already exports log lines
                sampling_ratio=1.0,  # every call: a call costs far more than its span
                enable_live_metrics=False,
                enable_performance_counters=False,
                instrumentation_options={name: {"enabled": False} for name in _QUIET},
            )
        except ValueError:  # chat goes on without
            log.error("APPLICATIONINSIGHTS_CONNECTION_STRING is malformed; calls are not traced. Copy it again.")  # noqa: TRY400
            return None
    return _Recorder(trace.get_tracer("chat"), metrics.get_meter("chat"))


class _Recorder:
    def __init__(self, tracer: Any, meter: Any) -> None:
        self._tracer = tracer
        self._tokens = meter.create_histogram(
            "gen_ai.client.token.usage", "{token}", explicit_bucket_boundaries_advisory=_TOKENS
        )
        self._seconds = meter.create_histogram(
            "gen_ai.client.operation.duration", "s", explicit_bucket_boundaries_advisory=_SECONDS
        )
        self._first = meter.create_histogram(
            "gen_ai.client.operation.time_to_first_chunk", "s", explicit_bucket_boundaries_advisory=_SECONDS
        )

    def __call__(self, record: CallRecord) -> None:
        from opentelemetry.trace import SpanKind, Status, StatusCode

        common = _common(record)
        span = self._tracer.start_span(
            f"{record.operation} {record.call.deployment}",
            kind=SpanKind.CLIENT,
            attributes=_present(common | _own(record)),
            start_time=_nanoseconds(record.started),
        )
        if record.call.state is not State.SETTLED:
            span.set_status(Status(StatusCode.ERROR, record.call.reason))
        span.end(_nanoseconds(record.finished))
        self._measure(record, _present(common))

    def _measure(self, record: CallRecord, attributes: dict[str, Any]) -> None:
        self._seconds.record(record.seconds, attributes)
        if record.seconds_to_first_token is not None:
            self._first.record(record.seconds_to_first_token, attributes)
        if usage := record.call.usage:
            self._tokens.record(usage.prompt_tokens, attributes | {"gen_ai.token.type": "input"})
            self._tokens.record(usage.completion_tokens, attributes | {"gen_ai.token.type": "output"})


def _common(record: CallRecord) -> dict[str, Any]:
    """Attributes of both spans and metrics."""
    call = record.call
    url = urlsplit(f"//{call.endpoint or ''}")
    return {
        "gen_ai.operation.name": record.operation,
        "gen_ai.provider.name": "azure.ai.openai",
        "gen_ai.request.model": call.deployment,
        "gen_ai.response.model": call.model,
        "server.address": url.hostname,
        "server.port": (url.port or 443) if url.hostname else None,
        "error.type": None if call.state is State.SETTLED else call.reason,
    }


def _own(record: CallRecord) -> dict[str, Any]:
    """Attributes of spans only."""
    entry, usage = record.entry, record.call.usage
    return {
        "chat.call": record.call.id,  # as in the ledger
        "chat.turn": entry.turn,
        "chat.attempts": record.attempts,
        "chat.cost_usd": None if record.call.cost is None else f"{record.call.cost:f}",
        "gen_ai.conversation.id": entry.session_label,
        "gen_ai.request.max_tokens": record.max_tokens,
        "gen_ai.request.stream": record.streamed,
        "gen_ai.response.finish_reasons": [record.finish_reason] if record.finish_reason else None,
        "gen_ai.response.time_to_first_chunk": record.seconds_to_first_token,
        "gen_ai.usage.input_tokens": usage and usage.prompt_tokens,
        "gen_ai.usage.cache_read.input_tokens": usage and usage.cached_tokens,
        "gen_ai.usage.cache_creation.input_tokens": usage and usage.cache_write_tokens,
        "gen_ai.usage.output_tokens": usage and usage.completion_tokens,
        "gen_ai.usage.reasoning.output_tokens": usage and usage.reasoning_tokens,
    }


def _present(attributes: dict[str, Any]) -> dict[str, Any]:
    return {name: value for name, value in attributes.items() if value is not None}


def _nanoseconds(at: datetime) -> int:
    return int(at.timestamp() * 1_000_000) * 1_000
