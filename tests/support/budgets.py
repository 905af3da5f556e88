"""Limits for the tests of what people see of them."""

import json
from typing import Any

import httpx

from tests.support.azure_openai import AzureOpenAI
from tests.support.chat_client import get_json, until

PRICES = '{"chat": {"input": 8, "output": 80}}'
LONG = {"prompt_tokens": 20, "completion_tokens": 1000}  # tokens of an answer that costs 0.08016 USD


def limited(environ: dict[str, str], limits: dict[str, Any], max_tokens: int = 1000) -> dict[str, str]:
    """Settings with these limits, and prices at which few tokens use them up."""
    return environ | {"PRICES": PRICES, "LIMITS": json.dumps(limits), "AZURE_OPENAI_MAX_TOKENS": str(max_tokens)}


def reply_long(fake: AzureOpenAI, text: str = "Paris.") -> None:
    """Answer with LONG tokens."""
    fake.reply(text, **LONG)


async def until_settled(api: httpx.AsyncClient) -> None:
    """Wait until no call of the client holds its worst case: an answer is sent before its call is settled."""

    async def settled() -> bool | None:
        limits = (await get_json(api, "/api/limits"))["limits"]
        return all(not budget["held_usd"] for limit in limits for budget in limit["budgets"]) or None

    await until(settled)
