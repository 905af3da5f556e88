"""Limits of callers: calls beyond them are refused, however many run at once."""

import asyncio
import json
from decimal import Decimal
from typing import Any

import httpx
import pytest

from local.keys import line
from tests.conftest import Tables
from tests.support.azure_openai import AzureOpenAI
from tests.support.conservation import assert_conserved, assert_counted

ANN, BEN = "a-client-key-of-ann", "a-client-key-of-ben"
JSON = dict[str, Any]


@pytest.fixture
def limits() -> JSON:
    return {}


@pytest.fixture
def environ(environ: dict[str, str], limits: JSON) -> dict[str, str]:
    keys = ",".join((line("ann", ANN), line("ben", BEN)))
    return environ | {"CLIENT_KEYS": keys, "LIMITS": json.dumps(limits)}


async def ask(api: httpx.AsyncClient, key: str | None = None, **fields: Any) -> httpx.Response:
    headers = {"authorization": f"Bearer {key}"} if key else {}
    return await api.post("/api/chat", json={"message": "hi", **fields}, headers=headers)


@pytest.mark.parametrize("limits", [{"total": {"usd_per_day": 0.02}}])
async def test_concurrent_turns_never_exceed_a_budget(
    api: httpx.AsyncClient, tables: Tables, fake: AzureOpenAI
) -> None:
    responses = await asyncio.gather(*(ask(api) for _ in range(24)))

    assert {response.status_code for response in responses} == {200, 429}
    counter = (await assert_counted(tables, await assert_conserved(tables, fake)))["total"]
    assert 0 < counter.spent <= Decimal("0.02")
    assert counter.held == 0
