"""GET api/limits: the caller's own limits; all with a usage key."""

import asyncio
import json
from datetime import UTC, datetime
from decimal import Decimal
from typing import Any

import httpx
import pytest

from local.keys import line
from tests.conftest import FUNCTION_KEY, Serve, Tables
from tests.support.azure_openai import AzureOpenAI
from tests.support.chat_client import closed_ledger, exact, get_json, ok_json
from tests.support.clock import ManualClock
from tests.support.proxy import Match, TcpProxy

ANN, BEN, READER = "a-client-key-of-ann", "a-client-key-of-ben", "a-usage-key-of-the-reader"
NOON = datetime(2026, 11, 28, 12, 0, 30, tzinfo=UTC)
MIDNIGHT, FIRST, MINUTE = "2026-11-29T00:00:00+00:00", "2026-12-01T00:00:00+00:00", "2026-11-28T12:01:00+00:00"
LIMITS: dict[str, Any] = {
    "total": {"usd_per_month": 9},
    "key:ann": {"usd_per_day": 1, "usd_per_month": 5, "requests_per_minute": 3, "tokens_per_minute": 9_000},
    "*": {"usd_per_day": 2, "max_tokens": 500},
    "anonymous": {"max_tokens": 50},
}


@pytest.fixture
def environ(environ: dict[str, str], clock: ManualClock) -> dict[str, str]:
    clock.set(NOON)
    keys = {"CLIENT_KEYS": f"{line('ann', ANN)},{line('ben', BEN)}", "USAGE_KEYS": line("reader", READER)}
    return environ | keys | {"LIMITS": json.dumps(LIMITS)}


async def limits_of(api: httpx.AsyncClient, key: str | None = None, path: str = "/api/limits") -> list[dict[str, Any]]:
    response = await api.get(path, headers={"authorization": f"Bearer {key}"} if key else {})
    limits: list[dict[str, Any]] = ok_json(response)["limits"]
    return limits


async def ask(api: httpx.AsyncClient, key: str | None = None) -> dict[str, Any]:
    headers = {"authorization": f"Bearer {key}"} if key else {}
    answer: dict[str, Any] = ok_json(await api.post("/api/chat", json={"message": "hi"}, headers=headers))
    return answer


def budget(name: str, limit: int, resets_at: str, spent: Decimal, held: Decimal = Decimal(0)) -> dict[str, Any]:
    return {
        "name": name,
        "limit_usd": limit,
        "spent_usd": spent,
        "held_usd": held,
        "remaining_usd": limit - spent - held,
        "resets_at": resets_at,
    }


async def test_caller_reads_its_own_limits(api: httpx.AsyncClient, tables: Tables, clock: ManualClock) -> None:
    cost = (await ask(api, ANN))["cost_usd"]
    await ask(api, BEN)
    tokens = sum(entry.call.usage.total_tokens for entry in await closed_ledger(tables) if entry.call.usage) // 2

    [own] = await limits_of(api, ANN)

    assert own == {
        "caller": "key:ann",
        "budgets": [budget("usd_per_day", 1, MIDNIGHT, cost), budget("usd_per_month", 5, FIRST, cost)],
        "rates": [
            {"name": "requests_per_minute", "limit": 3, "remaining": 2, "resets_at": MINUTE},
            {"name": "tokens_per_minute", "limit": 9_000, "remaining": 9_000 - tokens, "resets_at": MINUTE},
        ],
        "max_tokens": None,
    }
    await clock.advance(86_400)
    [own] = await limits_of(api, ANN)
    assert [each["spent_usd"] for each in own["budgets"]] == [0, cost]
    assert [each["remaining"] for each in own["rates"]] == [3, 9_000]


async def test_running_call_is_held(api: httpx.AsyncClient, fake: AzureOpenAI, tables: Tables) -> None:
    with fake.hold(after=0) as hold:
        running = asyncio.create_task(ask(api, ANN))
        await hold.until_reached()
        [row] = [row async for row in tables.usage.query("state eq 'open'", {})]

        [own] = await limits_of(api, ANN)

        assert own["budgets"][0] == budget("usd_per_day", 1, MIDNIGHT, Decimal(0), Decimal(row["worst_case"]))
    await running


async def test_anonymous_callers_read_the_limit_that_they_share(api: httpx.AsyncClient) -> None:
    assert await limits_of(api) == [{"caller": "anonymous", "budgets": [], "rates": [], "max_tokens": 50}]


async def test_caller_that_has_not_called_yet_reads_the_limit_of_every_other_caller(api: httpx.AsyncClient) -> None:
    assert await limits_of(api, BEN) == [
        {
            "caller": "key:ben",
            "budgets": [budget("usd_per_day", 2, MIDNIGHT, Decimal(0))],
            "rates": [],
            "max_tokens": 500,
        }
    ]


@pytest.mark.parametrize("path", ["/api/limits", "/api/usage/limits"])
async def test_usage_key_reads_all_limits_the_total_first(api: httpx.AsyncClient, tables: Tables, path: str) -> None:
    cost = (await ask(api, BEN))["cost_usd"]
    await closed_ledger(tables)

    limits = await limits_of(api, READER, path)

    assert [limit["caller"] for limit in limits] == ["total", "anonymous", "key:ann", "key:ben"]
    assert limits[0]["budgets"] == [budget("usd_per_month", 9, FIRST, cost)]
    assert limits[3]["budgets"] == [budget("usd_per_day", 2, MIDNIGHT, cost)]


async def test_limits_need_a_function_key_and_those_of_all_a_usage_key(api: httpx.AsyncClient) -> None:
    for path, key, status in (
        ("/api/limits", "wrong", 401),
        ("/api/usage/limits", ANN, 401),
        ("/api/usage/limits", None, 401),
    ):
        response = await api.get(path, headers={"authorization": f"Bearer {key}"} if key else {})
        assert (response.status_code, exact(response.text)["error"]["code"]) == (status, "unauthorized"), path
    without = await api.get("/api/limits", headers={"x-functions-key": "", "authorization": f"Bearer {READER}"})
    assert without.status_code == 401
    assert api.headers["x-functions-key"] == FUNCTION_KEY


@pytest.mark.table_storage
async def test_reading_limits_takes_one_storage_request(
    storage: TcpProxy, serve: Serve, environ: dict[str, str]
) -> None:
    async with serve(environ) as api:
        for key, path in ((ANN, "/api/limits"), (READER, "/api/usage/limits")):
            seen = len(storage.seen)
            await limits_of(api, key, path)
            assert [request.method for request in storage.seen[seen:]] == ["GET"]
        storage.down()
        assert (await api.get("/api/limits", headers={"authorization": f"Bearer {ANN}"})).status_code == 503
        storage.up()


async def test_without_limits_there_is_nothing_to_read(
    storage: TcpProxy, serve: Serve, environ: dict[str, str]
) -> None:
    async with serve(environ | {"LIMITS": ""}) as api:
        assert await get_json(api, "/api/limits") == {"limits": []}
        assert await limits_of(api, READER) == []
    assert storage.count(Match("POST")) == 0
