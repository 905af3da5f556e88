"""The daily table: a day's figures, whether they are final, whether they were mailed. One row a UTC day."""

from collections.abc import Mapping
from dataclasses import dataclass, field, replace
from datetime import date, datetime
from decimal import Decimal
from typing import Any

import orjson

from shared.conversation import Usage
from shared.errors import Changed
from shared.summary import Adjustment, Figures, SessionCost, Share
from shared.tables import Row, Table

_FIXED = "~fixed"  # a partition of the app's own: no month is called so
_COUNTS = ("sessions", "turns", "calls", "open", "failed", "unaccounted", "unbounded", "unpriced")
_AMOUNTS = ("cost", "saved", "unaccounted_cost")


@dataclass(frozen=True, slots=True, kw_only=True)
class Day:
    """A day as stored. `told` is its cost as the last mail had it; `adjustments` go with the mail that is claimed."""

    day: date
    figures: Figures
    final: bool
    told: Decimal | None = None
    outcome: str | None = None  # sent, quiet (no turns, not mailed) or not_wanted (no recipients)
    claim: str | None = None  # whose it is, or was
    claimed_until: datetime | None = None
    adjustments: tuple[Adjustment, ...] = ()
    sent: datetime | None = None
    sent_to: tuple[str, ...] = ()
    sends: int = 0  # by hand
    etag: str = field(default="", compare=False)


class Days:
    """Raises Changed where a row is not the version that was read, and StorageUnavailable."""

    def __init__(self, table: Table) -> None:
        self._table = table

    async def fixed(self, name: str, value: str) -> str:
        """What was fixed for good under this name: `value`, where nobody was before."""
        while True:
            if row := await self._table.get(_FIXED, name):
                return str(row["value"])
            try:
                await self._table.put({"PartitionKey": _FIXED, "RowKey": name, "value": value})
            except Changed:
                continue
            return value

    async def get(self, day: date) -> Day | None:
        row = await self._table.get(f"{day:%Y-%m}", f"{day:%d}")
        return _day(row) if row else None

    async def between(self, first: date, last: date) -> dict[date, Day]:
        """The stored days of the span, both ends included."""
        months = {"first": f"{first:%Y-%m}", "last": f"{last:%Y-%m}"}
        found = self._table.query("PartitionKey ge @first and PartitionKey le @last", months)
        days = [_day(row) async for row in found]
        return {day.day: day for day in days if first <= day.day <= last}

    async def put(self, day: Day) -> Day:
        """Write the day over the version that was read, or as new."""
        return replace(day, etag=await self._table.put(_row(day), day.etag))


def _row(day: Day) -> Row:
    return {
        "PartitionKey": f"{day.day:%Y-%m}",
        "RowKey": f"{day.day:%d}",
        "figures": orjson.dumps(_fields(day.figures)).decode(),
        "final": day.final,
        "told": day.told,
        "outcome": day.outcome,
        "claim": day.claim,
        "claimed_until": day.claimed_until,
        "adjustments": orjson.dumps([_adjustment_fields(a) for a in day.adjustments]).decode(),
        "sent": day.sent,
        "sent_to": ",".join(day.sent_to),
        "sends": day.sends,
    }


def _day(row: Row) -> Day:
    return Day(
        day=date.fromisoformat(f"{row['PartitionKey']}-{row['RowKey']}"),
        figures=_figures(orjson.loads(row["figures"])),
        final=row["final"],
        told=Decimal(row["told"]) if "told" in row else None,
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


def _fields(figures: Figures) -> dict[str, Any]:
    return {
        **{name: getattr(figures, name) for name in _COUNTS},
        **{name: format(getattr(figures, name), "f") for name in _AMOUNTS},
        "usage": {name: getattr(figures.usage, name) for name in Usage.__dataclass_fields__},
        "models": [[*names, _share_fields(share)] for names, share in figures.models.items()],
        "callers": [[name, _share_fields(share)] for name, share in figures.callers.items()],
        "costliest": [[session.session_id, format(session.cost, "f")] for session in figures.costliest],
    }


def _figures(fields: Mapping[str, Any]) -> Figures:
    return Figures(
        **{name: fields.get(name, 0) for name in _COUNTS} | {name: Decimal(fields[name]) for name in _AMOUNTS},
        usage=Usage(**fields["usage"]),
        models={(deployment, model): _share(share) for deployment, model, share in fields["models"]},
        callers={name: _share(share) for name, share in fields["callers"]},
        costliest=tuple(SessionCost(session_id=name, cost=Decimal(cost)) for name, cost in fields["costliest"]),
    )


def _share_fields(share: Share) -> dict[str, Any]:
    return {
        "cost": format(share.cost, "f"),
        "calls": share.calls,
        "unpriced": share.unpriced,
        "prompt_tokens": share.prompt_tokens,
        "completion_tokens": share.completion_tokens,
    }


def _share(fields: Mapping[str, Any]) -> Share:
    return Share(**{**fields, "cost": Decimal(fields["cost"])})
