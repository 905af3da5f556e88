"""Limits of callers: calls beyond them are refused, however many run at once."""

import asyncio
import json
from collections.abc import Mapping
from dataclasses import dataclass, field
from datetime import UTC, datetime
from decimal import Decimal
from typing import Any

import httpx
import pytest

from local.keys import line
from shared.domain.calls import LedgerEntry, State
from tests.conftest import Serve, Tables
from tests.support.azure_openai import AzureOpenAI
from tests.support.chat_client import closed_ledger, events, exact, ok_json, stored
from tests.support.clock import ManualClock
from tests.support.conservation import assert_conserved, assert_counted
from tests.support.proxy import Match, TcpProxy

ANN, BEN = "a-client-key-of-ann", "a-client-key-of-ben"
JSON = dict[str, Any]
NOON = datetime(2026, 11, 28, 12, 0, 30, tzinfo=UTC)
TO_MIDNIGHT_S = 12 * 3600 - 30
COMPLETIONS = "/openai/v1/chat/completions"
TOKENS = 800  # of the longest answer
ONE_CALL = {"usd_per_day": 0.006}  # one such answer costs 0.0036 USD, a second does not fit


@pytest.fixture
def limits() -> JSON:
    return {}


@pytest.fixture
def environ(environ: dict[str, str], limits: JSON) -> dict[str, str]:
    keys = ",".join((line("ann", ANN), line("ben", BEN)))
    return environ | {
        "CLIENT_KEYS": keys,
        "LIMITS": json.dumps(limits),
        "AZURE_OPENAI_DEPLOYMENTS": "other",  # without a price
        "AZURE_OPENAI_MAX_OUTPUT_TOKENS": str(TOKENS),
    }


@pytest.fixture
def noon(clock: ManualClock) -> ManualClock:
    """Request it before `api`."""
    clock.set(NOON)
    return clock


async def ask(
    api: httpx.AsyncClient, key: str | None = None, headers: Mapping[str, str] | None = None, **fields: Any
) -> httpx.Response:
    sent = dict(headers or {}) | ({"authorization": f"Bearer {key}"} if key else {})
    return await api.post("/api/chat", json={"message": "hi", **fields}, headers=sent)


@dataclass(frozen=True)
class Route:
    """One way to call the model."""

    name: str
    path: str = COMPLETIONS
    fields: Mapping[str, Any] = field(default_factory=dict)
    session: bool = False

    async def ask(self, api: httpx.AsyncClient, key: str | None = ANN, **fields: Any) -> httpx.Response:
        if self.path != COMPLETIONS:
            session = {"session_id": "s"} if self.session else {}
            return await ask(api, key, **{**self.fields, **fields, **session})
        headers = {"x-session-id": "s"} if self.session else {}
        headers |= {"authorization": f"Bearer {key}"} if key else {}
        body = {"model": fields.pop("deployment", "chat"), "messages": [{"role": "user", "content": "hi"}]}
        return await api.post(self.path, json={**body, **self.fields, **fields}, headers=headers)


STREAM = {"stream": True}
ROUTES = [
    Route("chat", "/api/chat", session=True),
    Route("chat streamed", "/api/chat", STREAM, session=True),
    Route("new chat", "/api/chat"),
    Route("openai"),
    Route("openai streamed", fields=STREAM),
    Route("openai session", session=True),
    Route("openai session streamed", fields=STREAM, session=True),
]
on_every_route = pytest.mark.parametrize("route", ROUTES, ids=lambda route: route.name)
fresh_or_not = pytest.mark.parametrize("fresh", [True, False], ids=["fresh", "read again"])


async def use_up(api: httpx.AsyncClient, fake: AzureOpenAI, tables: Tables, key: str | None = ANN) -> None:
    """Make a call that costs as much as most of ONE_CALL, in a session of its own."""
    fake.reply("long", completion_tokens=TOKENS)
    ok_json(await ask(api, key))
    await closed_ledger(tables)


def refused(response: httpx.Response, status: int, code: str) -> JSON:
    assert response.status_code == status, response.text
    error: JSON = exact(response.text)["error"]
    expected = code
    if response.request.url.path == COMPLETIONS:
        expected = {"budget_exceeded": "insufficient_quota"}.get(code, code)
        types = {"insufficient_quota": "insufficient_quota", "rate_limited": "rate_limit_error"}
        assert error.pop("type") == types.get(expected, "invalid_request_error")
    assert error.pop("code") == expected
    return error


async def entries_of(tables: Tables) -> list[LedgerEntry]:
    return await closed_ledger(tables)


# Budgets


@on_every_route
@fresh_or_not
@pytest.mark.parametrize("limits", [{"key:ann": ONE_CALL}])
async def test_used_up_budget_is_refused_with_its_amounts(
    noon: ManualClock, api: httpx.AsyncClient, fake: AzureOpenAI, tables: Tables, route: Route, fresh: bool
) -> None:
    await use_up(api, fake, tables)
    await noon.advance(0 if fresh else 2)

    response = await route.ask(api)

    [entry] = await closed_ledger(tables)
    error = refused(response, 429, "budget_exceeded")
    assert error.pop("message").startswith(
        "Your budget per day has no room for this call until 2026-11-29T00:00:00Z. Of 0.006 USD,"
    )
    assert error == {
        "param": None,
        "limit": "usd_per_day",
        "limit_usd": Decimal("0.006"),
        "spent_usd": entry.call.cost,
        "held_usd": 0,
        "resets_at": "2026-11-29T00:00:00Z",
    }
    assert within(response.headers["retry-after"], TO_MIDNIGHT_S)
    assert response.headers["x-should-retry"] == "false"
    assert "x-ratelimit-limit-requests" not in response.headers
    await assert_conserved(tables, fake)


@on_every_route
@pytest.mark.parametrize("limits", [{"total": ONE_CALL}])
async def test_used_up_total_is_refused_without_what_others_spent(
    noon: ManualClock, api: httpx.AsyncClient, fake: AzureOpenAI, tables: Tables, route: Route
) -> None:
    await use_up(api, fake, tables, BEN)
    await noon.advance(2)

    response = await route.ask(api)

    error = refused(response, 429, "budget_exceeded")
    assert error == {
        "message": "The budget per day of all callers together has no room for this call until 2026-11-29T00:00:00Z.",
        "param": None,
        "resets_at": "2026-11-29T00:00:00Z",
    }
    assert within(response.headers["retry-after"], TO_MIDNIGHT_S)
    assert response.headers["x-should-retry"] == "false"
    await assert_conserved(tables, fake)


@on_every_route
@fresh_or_not
@pytest.mark.parametrize("limits", [{"key:ann": ONE_CALL}])
async def test_budget_held_by_a_running_call_is_refused_for_seconds(
    noon: ManualClock, api: httpx.AsyncClient, fake: AzureOpenAI, tables: Tables, route: Route, fresh: bool
) -> None:
    with fake.hold(after=0) as hold:
        running = asyncio.create_task(ask(api, ANN))
        await hold.until_reached()
        await noon.advance(0 if fresh else 2)

        response = await route.ask(api)

    error = refused(response, 429, "rate_limited")
    assert "is held by running calls" in error["message"]
    assert response.headers["retry-after"] == "2"
    assert "x-should-retry" not in response.headers
    await running
    await closed_ledger(tables)
    assert (await route.ask(api)).status_code == 200  # at once, also in the session of the refused turn
    await assert_conserved(tables, fake)


@pytest.mark.parametrize("limits", [{"key:ann": ONE_CALL}])
async def test_refused_turn_frees_its_session_and_writes_no_ledger_row(
    noon: ManualClock, api: httpx.AsyncClient, fake: AzureOpenAI, tables: Tables
) -> None:
    await use_up(api, fake, tables)
    await noon.advance(2)

    refused(await ask(api, ANN, session_id="s"), 429, "budget_exceeded")
    next_turn = ok_json(await ask(api, ANN, session_id="s", max_tokens=10))

    assert next_turn["turn"] == 2
    _, [first, _] = await stored(tables)
    assert (first.call.state, first.call.reason, first.finish_reason) == (State.FAILED, "budget_exceeded", "error")
    assert len(await closed_ledger(tables)) == 2
    await assert_conserved(tables, fake)


@pytest.mark.parametrize("limits", [{"key:ann": ONE_CALL, "total": {"usd_per_day": 1}}])
async def test_known_refusal_reserves_nothing(
    storage: TcpProxy, noon: ManualClock, api: httpx.AsyncClient, fake: AzureOpenAI, tables: Tables
) -> None:
    await use_up(api, fake, tables)
    seen = len(storage.seen)

    refused(await ask(api, ANN), 429, "budget_exceeded")
    refused(await ROUTES[3].ask(api), 429, "budget_exceeded")
    assert len(storage.seen) == seen

    refused(await ask(api, ANN, session_id="s"), 429, "budget_exceeded")
    assert [request.method for request in storage.seen[seen:]] == ["GET"]


@pytest.mark.parametrize("limits", [{"total": {"usd_per_day": 0.02}}])
async def test_concurrent_turns_never_exceed_a_budget(
    api: httpx.AsyncClient, tables: Tables, fake: AzureOpenAI
) -> None:
    responses = await asyncio.gather(*(ask(api) for _ in range(24)))

    assert {response.status_code for response in responses} == {200, 429}
    counter = (await assert_counted(tables, await assert_conserved(tables, fake)))["total"]
    assert 0 < counter.spent <= Decimal("0.02")
    assert counter.held == 0


@pytest.mark.parametrize("limits", [{"*": ONE_CALL, "anonymous": ONE_CALL}])
async def test_every_other_caller_has_a_budget_of_its_own(
    noon: ManualClock, api: httpx.AsyncClient, fake: AzureOpenAI, tables: Tables
) -> None:
    for key in (ANN, BEN, None):
        await use_up(api, fake, tables, key)
        refused(await ask(api, key), 429, "budget_exceeded")

    refused(await ask(api), 429, "budget_exceeded")  # all anonymous callers share one
    counters = await assert_counted(tables, await assert_conserved(tables, fake))
    assert counters.keys() == {"key:ann", "key:ben", "anonymous"}


@pytest.mark.parametrize("limits", [{"key:ann": ONE_CALL}])
async def test_callers_without_a_limit_are_not_limited(
    noon: ManualClock, api: httpx.AsyncClient, fake: AzureOpenAI, tables: Tables
) -> None:
    await use_up(api, fake, tables)
    for key in (BEN, BEN, None, None):
        await use_up(api, fake, tables, key)

    entries = await assert_conserved(tables, fake)
    assert sorted(entry.limits for entry in entries) == [(), (), (), (), ("key:ann",)]


@pytest.mark.parametrize("limits", [{"key:ann": {"usd_per_day": 0.02}}])
async def test_changed_limit_applies_at_once(
    noon: ManualClock, serve: Serve, environ: dict[str, str], fake: AzureOpenAI, tables: Tables
) -> None:
    async with serve(environ) as api:
        await use_up(api, fake, tables)
        await use_up(api, fake, tables)
    async with serve(environ | {"LIMITS": json.dumps({"key:ann": ONE_CALL})}) as api:
        error = refused(await ask(api, ANN), 429, "budget_exceeded")
        assert error["spent_usd"] > error["limit_usd"]
    async with serve(environ | {"LIMITS": json.dumps({"key:ann": {"usd_per_day": 0.02}})}) as api:
        ok_json(await ask(api, ANN))
    await assert_conserved(tables, fake)


@pytest.mark.parametrize("limits", [{"key:ann": {"usd_per_day": 0.02}}])
async def test_two_instances_with_different_limits_keep_the_higher_one(
    noon: ManualClock, serve: Serve, environ: dict[str, str], fake: AzureOpenAI, tables: Tables
) -> None:
    lower = environ | {"LIMITS": json.dumps({"key:ann": ONE_CALL})}
    for settings in (lower, environ, lower, environ, environ):
        async with serve(settings) as api:
            fake.reply("long", completion_tokens=TOKENS)
            await asyncio.gather(*(ask(api, ANN) for _ in range(3)))
            await closed_ledger(tables)

    counter = (await assert_counted(tables, await assert_conserved(tables, fake)))["key:ann"]
    assert counter.spent + counter.held <= Decimal("0.02")


@pytest.mark.parametrize("limits", [{"key:ann": {"usd_per_day": 0.001}}])
@on_every_route
async def test_call_above_the_whole_budget_is_refused_with_advice(
    api: httpx.AsyncClient, fake: AzureOpenAI, tables: Tables, route: Route
) -> None:
    error = refused(await route.ask(api), 429, "budget_exceeded")

    assert error["message"].startswith(
        "Your budget per day never has room for this call. Shorten it or, for chat, set a smaller"
    )
    ok_json(await ask(api, ANN, max_tokens=20))
    await assert_conserved(tables, fake)


@pytest.mark.parametrize("limits", [{"total": {"usd_per_month": 1}}, {"key:ann": {"usd_per_day": 1}}])
@on_every_route
async def test_unknown_price_is_refused_where_a_budget_applies(
    storage: TcpProxy, api: httpx.AsyncClient, fake: AzureOpenAI, tables: Tables, route: Route
) -> None:
    error = refused(await route.ask(api, deployment="other"), 400, "invalid_request")

    assert "'other' is not known" in error["message"]
    assert "PRICES" in error["message"]
    assert (error["param"], fake.requests) == ("deployment", [])
    assert not storage.count(Match("POST"))


@pytest.mark.parametrize("limits", [{"total": {"requests_per_minute": 9, "tokens_per_minute": 9_000}}])
async def test_unknown_price_is_no_reason_where_no_budget_applies(
    api: httpx.AsyncClient, fake: AzureOpenAI, tables: Tables
) -> None:
    ok_json(await ask(api, deployment="other"))

    [entry] = await closed_ledger(tables)
    counter = (await assert_counted(tables, [entry]))["total"]
    assert entry.call.worst_case is None
    assert counter.spent == entry.call.cost  # the answer names its model
    assert counter.held == 0


@pytest.mark.parametrize("limits", [{"key:ann": ONE_CALL | {"usd_per_month": 0.0075}}])
async def test_budget_is_new_on_the_next_day_and_the_next_month(
    noon: ManualClock, api: httpx.AsyncClient, fake: AzureOpenAI, tables: Tables
) -> None:
    await use_up(api, fake, tables)
    refused(await ask(api, ANN), 429, "budget_exceeded")
    noon.set(datetime(2026, 11, 29, tzinfo=UTC))
    await use_up(api, fake, tables)
    noon.set(datetime(2026, 11, 30, tzinfo=UTC))
    assert refused(await ask(api, ANN), 429, "budget_exceeded")["limit"] == "usd_per_month"
    noon.set(datetime(2026, 12, 1, tzinfo=UTC))
    await use_up(api, fake, tables)

    await assert_conserved(tables, fake)


# What is left of a budget


@pytest.mark.parametrize("limits", [{"key:ann": {"usd_per_day": 0.0085}, "total": {"usd_per_day": 0.0085}}])
@pytest.mark.parametrize("streamed", [False, True])
async def test_answer_says_what_is_left_from_80_percent_on(
    noon: ManualClock, api: httpx.AsyncClient, fake: AzureOpenAI, tables: Tables, streamed: bool
) -> None:
    fake.reply("long", completion_tokens=TOKENS)
    assert "limits" not in ok_json(await ask(api, ANN))
    fake.reply("long", completion_tokens=TOKENS)

    response = await ask(api, ANN, stream=streamed)

    body = events(response.content)[-1].data if streamed else ok_json(response)
    spent = sum((entry.call.cost or Decimal(0) for entry in await closed_ledger(tables)), Decimal(0))
    assert body["limits"] == [
        {"name": "usd_per_day", "remaining_usd": Decimal("0.0085") - spent, "resets_at": "2026-11-29T00:00:00+00:00"}
    ]


# Rates


@pytest.mark.parametrize("route", [each for each in ROUTES if each.path == COMPLETIONS], ids=lambda route: route.name)
@pytest.mark.parametrize("limits", [{"key:ann": {"requests_per_minute": 2, "tokens_per_minute": 5_000}}])
async def test_openai_routes_say_what_is_left_of_a_minute(
    noon: ManualClock, api: httpx.AsyncClient, fake: AzureOpenAI, tables: Tables, route: Route
) -> None:
    answered = await route.ask(api)
    [entry] = await closed_ledger(tables)
    headers = rate_headers(answered)
    resets = [headers.pop(f"reset-{kind}") for kind in ("requests", "tokens")]
    assert all(within(text.removesuffix("s"), 30) and text.endswith("s") for text in resets)
    assert headers == {
        "limit-requests": "2",
        "remaining-requests": "1",
        "limit-tokens": "5000",
        "remaining-tokens": str(5_000 - entry.call.max_tokens),
    }
    await route.ask(api)
    await closed_ledger(tables)

    response = await route.ask(api)

    error = refused(response, 429, "rate_limited")
    assert error["message"] == "Your limit of 2 requests a minute is reached. Retry in the next minute."
    assert within(response.headers["retry-after"], 30)
    assert "x-should-retry" not in response.headers
    headers = rate_headers(response)
    assert (headers["remaining-requests"], headers["reset-requests"]) == ("0", f"{response.headers['retry-after']}s")
    assert int(headers["remaining-tokens"]) > 5_000 - 2 * 50  # counted as used, once the calls are settled
    await noon.advance(30)
    assert rate_headers(await route.ask(api))["remaining-requests"] == "1"
    await assert_conserved(tables, fake)


def within(seconds: str, most: int) -> bool:
    """True for so many seconds at most, less what the test took."""
    return most - 20 < int(seconds) <= most


def rate_headers(response: httpx.Response) -> dict[str, str]:
    prefix = "x-ratelimit-"
    return {name.removeprefix(prefix): text for name, text in response.headers.items() if name.startswith(prefix)}


@on_every_route
@pytest.mark.parametrize("limits", [{"total": {"requests_per_minute": 1}, "key:ann": {"requests_per_minute": 5}}])
async def test_requests_of_all_callers_in_a_minute_are_limited(
    noon: ManualClock, api: httpx.AsyncClient, fake: AzureOpenAI, tables: Tables, route: Route
) -> None:
    ok_json(await ask(api, BEN))
    await closed_ledger(tables)
    await noon.advance(2)

    response = await route.ask(api)

    error = refused(response, 429, "rate_limited")
    assert error["message"] == "The limit per minute of all callers together is reached. Retry in the next minute."
    assert within(response.headers["retry-after"], 28)
    assert rate_headers(response) == {}
    await noon.advance(30)
    assert (await route.ask(api)).status_code == 200
    await assert_conserved(tables, fake)


@on_every_route
@pytest.mark.parametrize("limits", [{"key:ann": {"tokens_per_minute": 1_500}}])
async def test_tokens_of_a_running_call_count_as_its_worst_case(
    noon: ManualClock, api: httpx.AsyncClient, fake: AzureOpenAI, tables: Tables, route: Route
) -> None:
    with fake.hold(after=0) as hold:
        running = asyncio.create_task(ask(api, ANN))
        await hold.until_reached()
        response = await route.ask(api)

    error = refused(response, 429, "rate_limited")
    assert error["message"].startswith("Your limit of 1500 tokens a minute is reached.")
    await running
    await closed_ledger(tables)
    assert (await route.ask(api)).status_code == 200  # the first call used a few
    await assert_conserved(tables, fake)


@on_every_route
@pytest.mark.parametrize("limits", [{"total": {"tokens_per_minute": 500}}])
async def test_request_above_the_tokens_of_a_minute_is_refused(
    storage: TcpProxy, api: httpx.AsyncClient, fake: AzureOpenAI, tables: Tables, route: Route
) -> None:
    error = refused(await route.ask(api), 400, "invalid_request")

    assert "more than the 500 that a limit allows per minute. Shorten it" in error["message"]
    assert (error["param"], fake.requests) == ("max_tokens", [])
    assert not storage.count(Match("POST"))
    assert (await route.ask(api, max_tokens=20)).status_code == 200


# Sessions


@pytest.mark.parametrize("route", [each for each in ROUTES if each.session], ids=lambda route: route.name)
@pytest.mark.parametrize("limits", [{"session": {"usd": 0.006}}])
async def test_budget_of_a_session_is_of_its_life(
    storage: TcpProxy,
    noon: ManualClock,
    api: httpx.AsyncClient,
    fake: AzureOpenAI,
    tables: Tables,
    route: Route,
) -> None:
    fake.reply("long", completion_tokens=TOKENS)
    assert (await route.ask(api)).status_code == 200
    await closed_ledger(tables)
    noon.set(datetime(2027, 1, 1, tzinfo=UTC))
    seen = len(storage.seen)

    response = await route.ask(api)

    error = refused(response, 429, "budget_exceeded")
    session, _ = await stored(tables)
    assert error["message"].startswith("This session's budget of 0.006 USD does not allow this call, which may cost")
    assert (error["limit_usd"], error["spent_usd"]) == (Decimal("0.006"), session.totals.cost)
    assert response.headers["x-should-retry"] == "false"
    assert "retry-after" not in response.headers
    assert [request.method for request in storage.seen[seen:]] == ["GET"]
    assert (await route.ask(api, max_tokens=20)).status_code == 200
    ok_json(await ask(api, ANN))  # a new session
    assert {entry.limits for entry in await assert_conserved(tables, fake)} == {()}


@pytest.mark.parametrize("limits", [{"session": {"usd": 0.006}}])
async def test_worst_case_of_an_unaccounted_call_counts_in_its_session(
    api: httpx.AsyncClient, fake: AzureOpenAI, tables: Tables
) -> None:
    fake.fault("reset", after=1)
    assert (await ask(api, session_id="s")).status_code == 502

    error = refused(await ask(api, session_id="s"), 429, "budget_exceeded")

    assert (error["spent_usd"], error["held_usd"] > Decimal("0.0036")) == (0, True)
    assert len(fake.requests) == 1  # the failed call was not retried either
    await assert_conserved(tables, fake)


# The maximum of an answer


@on_every_route
@pytest.mark.parametrize("limits", [{"key:ann": {"max_tokens": 50}}, {"total": {"max_tokens": 50}}])
async def test_answers_of_a_caller_have_a_maximum(
    api: httpx.AsyncClient, fake: AzureOpenAI, tables: Tables, route: Route
) -> None:
    assert (await route.ask(api)).status_code == 200
    assert maximum(fake) == 50
    assert (await route.ask(api, max_tokens=40)).status_code == 200
    assert maximum(fake) == 40

    error = refused(await route.ask(api, max_tokens=51), 400, "invalid_request")

    assert error == {"message": "max_tokens may be at most 50.", "param": "max_tokens"}
    assert len(fake.requests) == 2
    await assert_conserved(tables, fake)


@on_every_route
@pytest.mark.parametrize("limits", [{"session": {"max_tokens": 50}}])
async def test_answers_in_a_session_have_a_maximum(
    api: httpx.AsyncClient, fake: AzureOpenAI, tables: Tables, route: Route
) -> None:
    limited = route.session or route.path != COMPLETIONS
    assert (await route.ask(api)).status_code == 200
    assert maximum(fake) == (50 if limited else None)
    assert (await route.ask(api, max_tokens=51)).status_code == (400 if limited else 200)


@pytest.mark.parametrize("limits", [{"total": {"max_tokens": 5_000}}])
async def test_maximum_above_that_of_the_deployment_is_not_sent(
    api: httpx.AsyncClient, fake: AzureOpenAI, tables: Tables
) -> None:
    """The service refuses a maximum above its own."""
    for route in ROUTES:
        assert (await route.ask(api)).status_code == 200
        assert maximum(fake) == TOKENS


def maximum(fake: AzureOpenAI) -> int | None:
    body = fake.requests[-1].body
    return body.get("max_completion_tokens", body.get("max_tokens"))


# Idempotency-Key


@pytest.mark.parametrize("fields", [{}, {"session_id": "s"}], ids=["new session", "session"])
@fresh_or_not
@pytest.mark.parametrize("limits", [{"key:ann": ONE_CALL}])
async def test_stored_answer_is_given_although_the_budget_is_used_up(
    noon: ManualClock, api: httpx.AsyncClient, fake: AzureOpenAI, tables: Tables, fields: JSON, fresh: bool
) -> None:
    fake.reply("long", completion_tokens=TOKENS)
    key = {"idempotency-key": "k" * 22}
    first = ok_json(await ask(api, ANN, key, **fields))
    await closed_ledger(tables)
    await noon.advance(0 if fresh else 2)
    refused(await ask(api, ANN), 429, "budget_exceeded")

    replay = await ask(api, ANN, key, **fields)

    assert replay.headers["idempotent-replayed"] == "true"
    assert ok_json(replay)["message"] == first["message"]
    assert len(await assert_conserved(tables, fake)) == 1


@pytest.mark.parametrize("fields", [{}, {"session_id": "s"}], ids=["new session", "session"])
@fresh_or_not
@pytest.mark.parametrize("limits", [{"key:ann": ONE_CALL}])
async def test_refused_request_is_answered_later_under_the_same_key(
    noon: ManualClock, api: httpx.AsyncClient, fake: AzureOpenAI, tables: Tables, fields: JSON, fresh: bool
) -> None:
    await use_up(api, fake, tables)
    await noon.advance(0 if fresh else 2)
    key = {"idempotency-key": "k" * 22}
    for _ in range(2):
        refused(await ask(api, ANN, key, **fields), 429, "budget_exceeded")
    await noon.advance(86_400)

    answered = await ask(api, ANN, key, **fields)
    assert ok_json(answered)["message"]["content"] == "echo: hi"
    assert "idempotent-replayed" not in answered.headers
    assert (await ask(api, ANN, key, **fields)).headers["idempotent-replayed"] == "true"
    assert len(await assert_conserved(tables, fake)) == 2


# Retries


@pytest.mark.parametrize("streamed", [False, True])
@pytest.mark.parametrize("limits", [{"anonymous": ONE_CALL}])
async def test_retry_needs_room_beside_the_call_that_it_replaces(
    api: httpx.AsyncClient, fake: AzureOpenAI, tables: Tables, streamed: bool
) -> None:
    """The failed call holds its worst case, and a second one does not fit."""
    fake.fault("reset")

    response = await ask(api, session_id="s", stream=streamed)

    if streamed:
        [start, error] = events(response.content)
        assert start.name == "start"
        assert (error.data["code"], error.data["status"]) == ("budget_exceeded", 429)
    else:
        refused(response, 429, "budget_exceeded")
    [entry] = await assert_conserved(tables, fake)
    assert (entry.call.state, len(fake.requests)) == (State.UNACCOUNTED, 1)
    assert ok_json(await ask(api, session_id="s", max_tokens=20))["turn"] == 2


@pytest.mark.parametrize("limits", [{"anonymous": {"usd_per_day": 0.009}, "total": {"requests_per_minute": 2}}])
async def test_retry_counts_beside_the_call_that_it_replaces(
    api: httpx.AsyncClient, fake: AzureOpenAI, tables: Tables
) -> None:
    fake.fault("reset")

    ok_json(await ask(api, session_id="s"))

    entries = await assert_conserved(tables, fake)
    assert [entry.call.state for entry in entries] == [State.UNACCOUNTED, State.SETTLED] or len(entries) == 2
    counter = (await assert_counted(tables, entries))["anonymous"]
    assert counter.held == next(e.call.worst_case for e in entries if e.call.state is State.UNACCOUNTED)


# A call whose cost is not known, or above its worst case


@pytest.mark.parametrize("limits", [{"anonymous": ONE_CALL}])
async def test_settled_call_of_unknown_cost_holds_its_worst_case(
    serve: Serve, environ: dict[str, str], fake: AzureOpenAI, tables: Tables
) -> None:
    fake.reply("hi", model="a-model-without-a-price-2026-01-01")
    async with serve(environ | {"PRICES": "", "AZURE_OPENAI_DEPLOYMENTS": "chat=gpt-5.4-mini"}) as api:
        assert ok_json(await ask(api))["cost_usd"] is None
        entries = await closed_ledger(tables)

        error = refused(await ask(api), 429, "budget_exceeded")

    counter = (await assert_counted(tables, entries))["anonymous"]
    assert [entry.call.state for entry in entries] == [State.SETTLED]
    assert (error["spent_usd"], error["held_usd"], counter.held) == (0, counter.held, entries[0].call.worst_case)


@pytest.mark.parametrize("limits", [{"total": {"usd_per_day": 1}}])
async def test_cost_above_the_worst_case_is_settled_and_logged_as_an_error(
    api: httpx.AsyncClient, fake: AzureOpenAI, tables: Tables, caplog: pytest.LogCaptureFixture
) -> None:
    fake.reply("long", completion_tokens=2 * TOKENS)

    ok_json(await ask(api))

    [entry] = await assert_conserved(tables, fake)
    assert entry.call.worst_case is not None
    assert entry.call.cost is not None
    assert entry.call.cost > entry.call.worst_case
    [error] = [record for record in caplog.records if record.levelname == "ERROR"]
    assert entry.call.id in error.message
    assert "above its worst case" in error.message
