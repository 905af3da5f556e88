"""chat.py and the limits of callers: what is left of a budget, and refusals in words."""

from datetime import UTC, datetime

import pytest

import chat
from tests.conftest import Serve
from tests.support.azure_openai import AzureOpenAI
from tests.support.budgets import limited, reply_long, until_settled
from tests.support.clock import ManualClock
from tests.support.terminal import ENTER, open_terminal, run_piped

NOON = datetime(2026, 11, 28, 12, tzinfo=UTC)
KATHMANDU = "Asia/Kathmandu"  # 5:45 ahead of UTC
DAILY = {"anonymous": {"usd_per_day": 0.1}}
MONTHLY = {"anonymous": {"usd_per_month": 0.1}}


@pytest.fixture(autouse=True)
def noon(clock: ManualClock) -> None:
    clock.set(NOON)


async def test_terminal_shows_what_is_left_of_a_budget_and_why_it_refuses(
    serve: Serve, environ: dict[str, str], fake: AzureOpenAI
) -> None:
    reply_long(fake)
    async with serve(limited(environ, DAILY)) as api, open_terminal(api, TZ=KATHMANDU) as terminal:
        await terminal.enter("What is the capital of France?")
        await terminal.shows(
            "Paris.\n($0.0198 of your daily budget is left until Sun 29 Nov, 05:45.)\n[Tokens used: 1020"
        )
        await until_settled(api)
        await terminal.enter("And of Italy?")
        await terminal.shows(
            "Your budget per day has no room for this call until Sun 29 Nov, 05:45."
            " Of 0.1 USD, 0.08016 USD is spent and 0 USD held;"
        )
        await terminal.wait_for_prompt()
    assert len(fake.requests) == 1


async def test_piped_message_beyond_a_budget_is_sent_once_and_exits_1(
    serve: Serve, environ: dict[str, str], fake: AzureOpenAI
) -> None:
    reply_long(fake)
    async with serve(limited(environ, MONTHLY)) as api:
        answered = await run_piped(api, "hi", TZ="UTC")
        await until_settled(api)
        refused = await run_piped(api, "hi", TZ="UTC")

    assert (answered.code, answered.out) == (0, "Paris.\n")
    assert answered.err.startswith("($0.0198 of your monthly budget is left until Tue 1 Dec, 00:00.)\n")
    assert (refused.code, refused.out) == (1, "")
    assert refused.err.startswith("Your budget per month has no room for this call until Tue 1 Dec, 00:00. Of 0.1 USD")
    assert len(refused.err.splitlines()) == 1
    assert len(fake.requests) == 1


async def test_limit_per_minute_is_named_and_waited_for_only_as_long_as_wait_allows(
    serve: Serve, environ: dict[str, str], clock: ManualClock
) -> None:
    limits = {"anonymous": {"requests_per_minute": 1}}
    async with serve(limited(environ, limits)) as api:
        await run_piped(api)
        clock.set(NOON)
        refused = await run_piped(api, "hi", "--wait", "0")
        async with open_terminal(api) as terminal:
            await terminal.wait_for_prompt()
            clock.set(NOON)
            terminal.type("hi" + ENTER)
            await terminal.shows("Your limit of 1 request a minute is reached. Retrying in ")  # at most 60 s, as --wait

    assert refused.code == 1
    assert refused.err.startswith("Your limit of 1 request a minute is reached. Retry in the next minute. Retry-After ")
    assert "Gave up: --wait allows 0 s in total." in refused.err


@pytest.mark.parametrize("unreadable", ["soon", "", "2026-13-01T00:00:00Z", "0001-01-01T00:00:00Z\x1b[2J"])
def test_time_that_cannot_be_read_is_shown_as_it_is(unreadable: str) -> None:
    assert chat.local_time(unreadable) == unreadable
