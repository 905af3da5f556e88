"""Limits for the tests of what people see of them."""

import json
from typing import Any

from tests.support.azure_openai import AzureOpenAI

PRICES = '{"chat": {"input": 8, "output": 80}}'
LONG = {"prompt_tokens": 20, "completion_tokens": 1000}  # tokens of an answer that costs 0.08016 USD


def limited(environ: dict[str, str], limits: dict[str, Any], max_tokens: int = 1000) -> dict[str, str]:
    """Settings with these limits, and prices at which few tokens use them up."""
    return environ | {"PRICES": PRICES, "LIMITS": json.dumps(limits), "AZURE_OPENAI_MAX_TOKENS": str(max_tokens)}


def reply_long(fake: AzureOpenAI, text: str = "Paris.") -> None:
    """Answer with LONG tokens."""
    fake.reply(text, **LONG)
