"""A cost is exact, or it is null: the answer's service tier and kinds of token decide its price."""

from collections.abc import Iterator
from decimal import Decimal
from typing import Any

import httpx
import pytest

from tests.conftest import Tables
from tests.support.chat_client import answer, closed_ledger, get_json
from tests.support.rude_upstream import RudeUpstream, end, text, usage

PRICES = '{"chat": {"input": 0.75, "output": 4.5, "audio_output": 64, "priority": {"input": 1.5, "output": 9}}}'


@pytest.fixture
def fake() -> Iterator[RudeUpstream]:
    with RudeUpstream() as server:
        yield server


@pytest.fixture
def environ(environ: dict[str, str]) -> dict[str, str]:
    return environ | {"PRICES": PRICES}


@pytest.mark.parametrize(
    ("fields", "counts", "cost"),
    [
        ({}, {}, "0.00002025"),  # 9 * 0.75 + 3 * 4.5
        ({"service_tier": "default"}, {}, "0.00002025"),
        ({"service_tier": "priority"}, {}, "0.0000405"),
        ({"service_tier": "flex"}, {}, None),
        ({}, {"completion_tokens_details": {"audio_tokens": 2}}, "0.00013925"),  # 9 * 0.75 + 1 * 4.5 + 2 * 64
        ({}, {"prompt_tokens_details": {"audio_tokens": 2}}, None),
        ({"service_tier": "priority"}, {"completion_tokens_details": {"audio_tokens": 2}}, None),
        ({}, {"prompt_tokens_details": {"video_tokens": 2}}, None),
        ({}, {"completion_tokens": 0, "total_tokens": 9}, None),  # although there is text
        ({}, {"total_tokens": 14}, "0.00002925"),  # 9 * 0.75 + 5 * 4.5
        ({}, {"total_tokens": 14, "completion_tokens_details": {"reasoning_tokens": 1}}, None),
    ],
)
async def test_cost_is_exact_or_null(
    api: httpx.AsyncClient,
    fake: RudeUpstream,
    tables: Tables,
    fields: dict[str, Any],
    counts: dict[str, Any],
    cost: str | None,
) -> None:
    fake.stream(text("hello", **fields), end(**fields), usage(**counts) | fields)

    reply = await answer(api)

    expected = Decimal(cost) if cost else None
    [entry] = await closed_ledger(tables)
    assert (entry.call.state, entry.call.cost) == ("settled", expected)
    assert reply["cost_usd"] == (None if expected is None else pytest.approx(expected))
    session = await get_json(api, "/api/sessions/s")
    assert session["unpriced_turns"] == (expected is None)
