"""Converts days to and from plain rows of the daily table.

Stored names must not change: see session_rows.
"""

from collections.abc import Mapping
from datetime import date
from decimal import Decimal
from typing import Any

import orjson

from shared.domain.daily import Adjustment, Day, Figures, SessionCost, UsageBreakdown
from shared.storage.call_columns import json_text, to_usage, usage_columns

Row = dict[str, Any]

_COUNTS = (
    *("sessions", "turns", "calls", "open", "failed"),
    *("unaccounted", "unbounded", "stopped", "stopped_unbounded", "unpriced", "unpriced_turns"),
)
_AMOUNTS = ("cost", "saved", "unaccounted_cost", "stopped_at_least", "stopped_at_most")


def from_day(day: Day) -> Row:
    return {
        "PartitionKey": f"{day.day:%Y-%m}",
        "RowKey": f"{day.day:%d}",
        "figures": json_text(_figures_fields(day.figures)),
        "final": day.final,
        "told": day.mailed_cost,
        "outcome": day.outcome,
        "claim": day.claim,
        "claimed_until": day.claimed_until,
        "adjustments": json_text([_adjustment_fields(adjustment) for adjustment in day.adjustments]),
        "sent": day.sent,
        "sent_to": ",".join(day.sent_to),
        "sends": day.sends,
    }


def to_day(row: Row) -> Day:
    return Day(
        day=date.fromisoformat(f"{row['PartitionKey']}-{row['RowKey']}"),
        figures=_figures(orjson.loads(row["figures"])),
        final=row["final"],
        mailed_cost=Decimal(row["told"]) if "told" in row else None,
        outcome=row.get("outcome"),
        claim=row.get("claim"),
        claimed_until=row.get("claimed_until"),
        adjustments=tuple(_adjustment(fields) for fields in orjson.loads(row["adjustments"])),
        sent=row.get("sent"),
        sent_to=tuple(filter(None, row["sent_to"].split(","))),
        sends=row["sends"],
        etag=row["etag"],
    )


def _adjustment_fields(adjustment: Adjustment) -> list[str]:
    return [adjustment.day.isoformat(), format(adjustment.difference, "f"), format(adjustment.cost, "f")]


def _adjustment(fields: list[str]) -> Adjustment:
    day, difference, cost = fields
    return Adjustment(day=date.fromisoformat(day), difference=Decimal(difference), cost=Decimal(cost))


def _figures_fields(figures: Figures) -> dict[str, Any]:
    return {
        **{name: getattr(figures, name) for name in _COUNTS},
        **{name: format(getattr(figures, name), "f") for name in _AMOUNTS},
        "usage": usage_columns(figures.usage),
        "models": [[*names, _breakdown_fields(breakdown)] for names, breakdown in figures.models.items()],
        "callers": [[name, _breakdown_fields(breakdown)] for name, breakdown in figures.callers.items()],
        "costliest": [
            [each.session, format(each.cost, "f"), *([True] if each.is_reference else [])] for each in figures.costliest
        ],
    }


def _figures(fields: Mapping[str, Any]) -> Figures:
    counts: dict[str, Any] = {name: fields.get(name, 0) for name in _COUNTS}
    counts["unpriced_turns"] = fields.get("unpriced_turns", counts["unpriced"])  # older rows: each turn had one call
    amounts: dict[str, Any] = {name: Decimal(fields.get(name, "0")) for name in _AMOUNTS}
    return Figures(
        **counts,
        **amounts,
        usage=to_usage(fields["usage"]),
        models={(deployment, model): _breakdown(totals) for deployment, model, totals in fields["models"]},
        callers={name: _breakdown(totals) for name, totals in fields["callers"]},
        costliest=tuple(
            SessionCost(session=name, cost=Decimal(cost), is_reference=bool(reference))
            for name, cost, *reference in fields["costliest"]
        ),
    )


def _breakdown_fields(breakdown: UsageBreakdown) -> dict[str, Any]:
    return {
        "cost": format(breakdown.cost, "f"),
        "calls": breakdown.calls,
        "unpriced": breakdown.unpriced_turns,
        "prompt_tokens": breakdown.prompt_tokens,
        "completion_tokens": breakdown.completion_tokens,
    }


def _breakdown(fields: Mapping[str, Any]) -> UsageBreakdown:
    return UsageBreakdown(
        cost=Decimal(fields["cost"]),
        calls=fields["calls"],
        unpriced_turns=fields["unpriced"],
        prompt_tokens=fields["prompt_tokens"],
        completion_tokens=fields["completion_tokens"],
    )
