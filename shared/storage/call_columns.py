"""Converts calls to and from columns of a ledger row; a turn's row holds the same fields as JSON.

Stored names must not change: see session_rows.
"""

from collections.abc import Mapping
from datetime import UTC, date, datetime
from decimal import Decimal
from typing import Any

import orjson

from shared.domain.calls import Call, Rates, State, Usage

_USAGE = ("prompt_tokens", "cached_tokens", "cache_write_tokens", "completion_tokens", "reasoning_tokens")
_RARE_USAGE = ("audio_prompt_tokens", "audio_completion_tokens", "unpriced_kinds")  # absent if zero
USAGE_COLUMNS = (*_USAGE, *_RARE_USAGE)
_RATES = ("input", "cached_input", "cache_write", "output", "audio_input", "audio_output")  # absent if unknown


def json_text(value: Any) -> str:
    return orjson.dumps(value).decode()


def usage_columns(usage: Usage | None) -> dict[str, Any]:
    if usage is None:
        return {}
    rare = {name: count for name in _RARE_USAGE if (count := getattr(usage, name))}
    return {name: getattr(usage, name) for name in _USAGE} | rare


def to_usage(columns: Mapping[str, Any]) -> Usage:
    return Usage(**{name: columns[name] for name in USAGE_COLUMNS if name in columns})


def call_columns(call: Call) -> dict[str, Any]:
    return {
        "id": call.id,
        "day": call.day.isoformat(),
        "deadline": call.deadline.isoformat(),
        **({"reference": call.reference} if call.reference else {}),
        **({"step": call.step} if call.step else {}),  # calls stored before steps existed lack it
        "state": call.state.value,
        "deployment": call.deployment,
        "worst_case": _amount(call.worst_case),
        **({"minute": call.minute.isoformat(), "max_tokens": call.max_tokens} if call.minute else {}),
        **usage_columns(call.usage),
        "cost": _amount(call.cost),
        **({"at_least": _amount(call.at_least)} if call.at_least is not None else {}),
        "rates": _rates_text(call.rates) if call.rates else None,
        "model": call.model,
        "endpoint": call.endpoint,
        "reason": call.reason,
    }


def to_call(columns: Mapping[str, Any]) -> Call:
    rates = orjson.loads(columns.get("rates") or "null")
    return Call(
        id=columns["id"],
        day=date.fromisoformat(columns["day"]),
        deadline=datetime.fromisoformat(columns["deadline"]).astimezone(UTC),
        reference=columns.get("reference"),
        step=columns.get("step") or 0,
        state=State(columns["state"]),
        deployment=columns["deployment"],
        worst_case=_decimal(columns.get("worst_case")),
        minute=_time(columns.get("minute")),
        max_tokens=columns.get("max_tokens") or 0,
        usage=to_usage(columns) if "prompt_tokens" in columns else None,
        cost=_decimal(columns.get("cost")),
        at_least=_decimal(columns.get("at_least")),
        rates=Rates(**{name: Decimal(amount) for name, amount in rates.items()}) if rates else None,
        model=columns.get("model"),
        endpoint=columns.get("endpoint"),
        reason=columns.get("reason"),
    )


def _time(value: str | None) -> datetime | None:
    return datetime.fromisoformat(value).astimezone(UTC) if value else None


def _rates_text(rates: Rates) -> str:
    amounts = {name: _amount(getattr(rates, name)) for name in _RATES}
    return json_text({name: amount for name, amount in amounts.items() if amount is not None})


def _amount(value: Decimal | None) -> str | None:
    return None if value is None else format(value, "f")


def _decimal(value: str | None) -> Decimal | None:
    return None if value is None else Decimal(value)
