"""Prints the table of monthly costs in docs/deploying.md: list prices at three levels of use.

`.venv/bin/python docs/monthly_cost.py`. Model prices come from genai-prices; the prices of the platform are below.
"""

from dataclasses import dataclass
from decimal import Decimal

from genai_prices import Usage, calc_price

MODELS = ("gpt-5.4-mini", "gpt-5.4-nano")
DAYS = 30

# Assumptions: a typical turn in the middle of a conversation.
PROMPT, CACHED, COMPLETION = 1_500, 900, 250  # tokens
SECONDS, GB = Decimal(3), Decimal(2)  # upper bound: the instance serves no other turn in that time
STORAGE_REQUESTS, STORED_KB, LOGGED_KB = 8, 6, 12  # five requests of the turn; three to read it or renew its lease

# USD. Flex Consumption, on demand, East US, as published in May 2025; the others from memory of Azure's price pages.
GB_SECOND, FREE_GB_SECONDS = Decimal("0.000026"), 100_000
MILLION_CALLS, FREE_CALLS = Decimal("0.40"), 250_000
TEN_THOUSAND_REQUESTS, STORED_GB = Decimal("0.00036"), Decimal("0.045")
LOGGED_GB, FREE_LOGGED_GB = Decimal("2.76"), 5
ALERTS = 3 * Decimal("0.50") + Decimal("0.10")


@dataclass(frozen=True)
class Level:
    name: str
    turns_a_day: int

    @property
    def turns(self) -> int:
        return self.turns_a_day * DAYS


LEVELS = (Level("a person", 50), Level("a team", 1_000), Level("a product", 20_000))


def model(name: str, turns: int) -> Decimal:
    usage = Usage(input_tokens=PROMPT, cache_read_tokens=CACHED, output_tokens=COMPLETION)
    return calc_price(usage, name, provider_id="azure").total_price * turns


def functions(turns: int) -> Decimal:
    gb_seconds = max(turns * SECONDS * GB - FREE_GB_SECONDS, Decimal(0))
    calls = max(turns - FREE_CALLS, 0)
    return gb_seconds * GB_SECOND + Decimal(calls) / 1_000_000 * MILLION_CALLS


def storage(turns: int) -> Decimal:
    requests = Decimal(turns * STORAGE_REQUESTS) / 10_000 * TEN_THOUSAND_REQUESTS
    return requests + Decimal(turns * STORED_KB) / 1_000_000 * STORED_GB


def logs(turns: int) -> Decimal:
    return max(Decimal(turns * LOGGED_KB) / 1_000_000 - FREE_LOGGED_GB, Decimal(0)) * LOGGED_GB


def table() -> str:
    rows = {f"model, {name}": [model(name, level.turns) for level in LEVELS] for name in MODELS}
    platform = {
        "Functions (Flex Consumption, 2 GB)": [functions(level.turns) for level in LEVELS],
        "Table Storage": [storage(level.turns) for level in LEVELS],
        "logs": [logs(level.turns) for level in LEVELS],
        "alert rules": [ALERTS for _ in LEVELS],
    }
    rows |= platform
    for name in MODELS:
        parts = [rows[f"model, {name}"], *platform.values()]
        rows[f"**together, with {name}**"] = [sum(column, Decimal(0)) for column in zip(*parts, strict=True)]
    headers = [f"{level.name}: {level.turns_a_day:,} turns a day" for level in LEVELS]
    lines = [f"| USD a month | {' | '.join(headers)} |", "|---|" + "--:|" * len(LEVELS)]
    lines += [f"| {name} | {' | '.join(f'{amount:,.2f}' for amount in row)} |" for name, row in rows.items()]
    return "\n".join(lines)


if __name__ == "__main__":
    print(table())
