"""Random conversations, with everything that can go wrong upstream: the money adds up to the last digit."""

import re
import uuid
from asyncio import TaskGroup, sleep
from collections import deque
from collections.abc import AsyncIterator
from dataclasses import dataclass, field
from decimal import Decimal
from typing import Any

import httpx
import pytest
from azure.data.tables.aio import TableServiceClient
from hypothesis import HealthCheck, Phase, given, settings
from hypothesis import strategies as st

from local.azurite import connection_string
from shared import services as composition
from shared.domain.calls import State
from tests.conftest import Tables
from tests.support.azure_openai import AzureOpenAI, Fault, Reply, Request, Script
from tests.support.conservation import assert_conserved
from tests.support.talking import exact, look, until

TEXT = st.text(st.characters(exclude_categories=["Cs"]), min_size=1, max_size=60)
CALLS = st.lists(st.tuples(st.uuids().map(str), st.just("look"), st.just("{}")), min_size=1, max_size=2, unique=True)
REPLIES = st.builds(
    Reply,
    TEXT,
    tool_calls=st.just(()) | CALLS.map(tuple),
    refusal=st.none() | st.just("I will not."),
    reasoning_tokens=st.integers(0, 50),
    cache_write_tokens=st.none() | st.integers(0, 3),
    model=st.sampled_from([None, "gpt-5.4-mini", "who-knows-2026-01-01"]),
)
FAULTS = st.one_of(
    st.builds(Fault, st.just("status"), status=st.sampled_from([400, 401, 404, 408, 429, 500, 502, 503, 504])),
    st.builds(Fault, st.sampled_from(["content_filter", "context_length"])),
    st.builds(
        Fault,
        st.sampled_from(["reset", "close", "truncated", "no_usage", "malformed", "error_event", "completion_filter"]),
        after=st.none() | st.integers(0, 3),
        reply=REPLIES,
    ),
)
OPTIONS = st.fixed_dictionaries(
    {},
    optional={
        "max_tokens": st.integers(1, 100),
        "temperature": st.just(1),
        "logprobs": st.just(True),
        "response_format": st.just({"type": "json_object"}),
        "tools": st.just([{"type": "function", "function": {"name": "look", "parameters": {"type": "object"}}}]),
    },
)


@dataclass(frozen=True)
class Step:
    """One post, and what becomes of the calls that it takes: two at most."""

    text: str
    options: dict[str, Any]
    scripts: tuple[Script, ...]
    how: str


STEPS = st.builds(
    Step,
    text=TEXT,
    options=OPTIONS,
    scripts=st.tuples(st.one_of(REPLIES, FAULTS), st.one_of(REPLIES, FAULTS)),
    how=st.sampled_from(["json", "json", "stream", "stream", "hang up", "clear", "ignore calls"]),
)
CONVERSATIONS = st.lists(STEPS, min_size=1, max_size=3)


@dataclass
class House:
    """The app with tables of its own for each example, and a model that does what the script of each post says."""

    api: httpx.AsyncClient
    fake: AzureOpenAI
    service: TableServiceClient
    monkeypatch: pytest.MonkeyPatch
    plans: dict[str, deque[Script]] = field(default_factory=dict)

    async def move(self) -> Tables:
        await composition.close()
        await self.fake.until(lambda: self.fake.busy == 0)
        prefix = f"t{uuid.uuid4().hex[:20]}"
        self.monkeypatch.setenv("TABLE_PREFIX", prefix)
        self.plans.clear()
        self.fake.meter.clear()
        self.fake.responder = self.respond
        return Tables(*(self.service.get_table_client(f"{prefix}{name}") for name in ("sessions", "usage")))

    def respond(self, request: Request) -> Script:
        marks = [re.match(r"#(\S+) ", str(message.get("content"))) for message in request.body["messages"]]
        plan = self.plans[[mark[1] for mark in marks if mark][-1]]
        return plan.popleft() if plan else Reply("enough")

    async def at_rest(self, session: str) -> dict[str, Any]:
        """The session as it is shown once the turn of a caller that hung up is over."""

        async def idle() -> dict[str, Any] | None:
            shown = await look(self.api, f"/api/sessions/{session}")
            return None if shown["busy"] else shown

        return await until(idle)

    async def converse(self, session: str, steps: list[Step]) -> dict[str, Any]:
        pending: list[str] = []
        for number, step in enumerate(steps):
            mark = f"{session}:{number}"
            self.plans[mark] = deque(step.scripts)
            if step.how == "clear":
                pending = [] if await self.clear(session) else pending
            said: dict[str, Any] = {"message": f"#{mark} {step.text}"}
            if pending and step.how != "ignore calls":
                results = [{"tool_call_id": call, "content": f"#{mark} {step.text}"} for call in pending]
                said = {"tool_results": results}
            answer = await self.post(said | step.options | {"session_id": session}, step.how)
            if answer:
                pending = [call["id"] for call in answer["message"].get("tool_calls") or ()]
        return await self.at_rest(session)

    async def clear(self, session: str) -> bool:
        cleared = await self.api.delete(f"/api/sessions/{session}/messages")
        assert cleared.status_code in (204, 404, 409), cleared.text
        return cleared.status_code == 204

    async def post(self, body: dict[str, Any], how: str) -> dict[str, Any] | None:
        """The answer, None where there was none; waits for a turn that was hung up on to finish."""
        if how in ("stream", "hang up"):
            body = body | {"stream": True}
        while True:
            async with self.api.stream("POST", "/api/chat", json=body) as response:
                if response.status_code == 200 and how == "hang up":
                    await anext(response.aiter_bytes())
                    return None
                text = (await response.aread()).decode()
            if response.status_code != 409:
                break
            await sleep(0.01)
        if how == "stream" and response.status_code == 200:
            return done(text)
        answer: dict[str, Any] = exact(text)
        assert response.status_code != 500, text
        return answer if response.status_code == 200 else None


def done(events: str) -> dict[str, Any] | None:
    last = re.search(r"event: (done|error)\ndata: (.*)\n\n\Z", events)
    assert last, events
    assert "internal_error" not in last[2]
    return exact(last[2]) if last[1] == "done" else None


@pytest.fixture
async def house(
    api: httpx.AsyncClient, fake: AzureOpenAI, azurite_port: int, monkeypatch: pytest.MonkeyPatch
) -> AsyncIterator[House]:
    async with TableServiceClient.from_connection_string(connection_string(azurite_port)) as service:
        yield House(api, fake, service, monkeypatch)


@settings(
    max_examples=30,
    suppress_health_check=[HealthCheck.function_scoped_fixture, HealthCheck.too_slow],
    phases=[Phase.explicit, Phase.reuse, Phase.generate],  # to look for a smaller example would take an hour
)
@given(st.lists(CONVERSATIONS, min_size=5, max_size=5))
async def test_the_money_adds_up_whatever_is_said_and_whatever_goes_wrong(
    house: House, conversations: list[list[Step]]
) -> None:
    """200 conversations, five at a time."""
    tables = await house.move()
    async with TaskGroup() as group:  # where one ends badly the others end too, or they would bill the next example
        talks = [group.create_task(house.converse(f"s{n}", steps)) for n, steps in enumerate(conversations)]
    ends = [talk.result() for talk in talks]
    settled = [entry for entry in await assert_conserved(tables, house.fake) if entry.call.state is State.SETTLED]
    for shown in ends:
        costs = [entry.call.cost or Decimal(0) for entry in settled if entry.session_id == shown["session_id"]]
        assert Decimal(shown["cost_usd"]) == sum(costs)
    finished = {billed.call_id for billed in house.fake.meter if billed.outcome == "ok"}
    assert finished <= {entry.call.id for entry in settled}
