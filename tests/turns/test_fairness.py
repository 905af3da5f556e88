"""A caller at full tilt, limited per minute, does not make the turns of another caller fail."""

import asyncio
import json
from collections import Counter
from datetime import UTC, datetime

import httpx
import pytest

from local.keys import line
from tests.conftest import Tables
from tests.support.azure_openai import AzureOpenAI, Fault, Request, Script
from tests.support.clock import ManualClock
from tests.support.conservation import assert_conserved, assert_counted

ANN, BEN = "a-client-key-of-ann", "a-client-key-of-ben"
ANNS, BENS = 5, 10  # requests per minute of ann, and the turns of ben
LIMITS = {"key:ann": {"requests_per_minute": ANNS}, "total": {"requests_per_minute": ANNS + BENS}}


@pytest.fixture
def environ(environ: dict[str, str]) -> dict[str, str]:
    keys = ",".join((line("ann", ANN), line("ben", BEN)))
    return environ | {"CLIENT_KEYS": keys, "LIMITS": json.dumps(LIMITS)}


def limit_quota(fake: AzureOpenAI, requests: int) -> None:
    """The deployment answers this many requests, as many as the total allows; then its quota is used up."""
    answer, answered = fake.responder, 0

    def respond(request: Request) -> Script:
        nonlocal answered
        answered += 1
        return Fault("status", 429, retry_after=60) if answered > requests else answer(request)

    fake.responder = respond


async def send(api: httpx.AsyncClient, key: str, session: str) -> int:
    headers = {"authorization": f"Bearer {key}"}
    response = await api.post("/api/chat", json={"message": "hi", "session_id": session}, headers=headers)
    return response.status_code


async def test_caller_at_full_tilt_fails_no_turn_of_another(
    clock: ManualClock, api: httpx.AsyncClient, fake: AzureOpenAI, tables: Tables
) -> None:
    clock.set(datetime.now(UTC).replace(second=1))  # the test ends within the minute
    limit_quota(fake, ANNS + BENS)
    anns, bens = Counter[int](), Counter[int]()

    async def at_full_tilt(session: str) -> None:
        while True:
            anns[await send(api, ANN, session)] += 1

    greedy = [asyncio.create_task(at_full_tilt(f"ann-{number}")) for number in range(6)]
    for _ in range(BENS):
        bens[await send(api, BEN, "ben")] += 1
        await asyncio.sleep(0.05)
    for task in greedy:
        task.cancel()
    await asyncio.gather(*greedy, return_exceptions=True)

    assert bens == {200: BENS}
    assert anns[200] == ANNS
    assert anns.keys() == {200, 429}
    assert anns[429] > BENS
    counters = await assert_counted(tables, await assert_conserved(tables, fake))
    assert {name: counter.minute_requests for name, counter in counters.items()} == {
        "key:ann": ANNS,
        "total": ANNS + BENS,
    }
