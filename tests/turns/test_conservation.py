"""Random conversations with random upstream faults, on all stateful routes: all costs add up exactly."""

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
from tests.conftest import EMBEDDING, Tables, with_embeddings
from tests.support.azure_openai import AzureOpenAI, Fault, Reply, Request, Script
from tests.support.chat_client import exact, get_json, ok_json, reference, until
from tests.support.conservation import assert_conserved
from tests.support.response_chains import CONVERSATIONS as CONVERSATIONS_ROUTE
from tests.support.response_chains import ResponseChain
from tests.support.responses_api import ANN, KEYS
from tests.support.rude_upstream import with_both_fakes

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
    """One request and the scripts of its model calls, at most two."""

    text: str
    options: dict[str, Any]
    scripts: tuple[Script, ...]
    mode: str


MODES = ["json", "json", "stream", "stream", "stop", "disconnect", "stop on disconnect", "clear", "ignore calls"]
MODES += ["fork", "unstored", "repeat", "at once", "delete meanwhile"]  # which on api/chat are as json
ROUTES = ["chat", "chain", "conversation", "embeddings"]
STEPS = st.builds(
    Step,
    text=TEXT,
    options=OPTIONS,
    scripts=st.tuples(st.one_of(REPLIES, FAULTS), st.one_of(REPLIES, FAULTS)),
    mode=st.sampled_from(MODES),
)
CONVERSATIONS = st.lists(STEPS, min_size=1, max_size=4)


@dataclass
class ScriptedApp:
    """The app with new tables for each example, and a model that follows the scripts of each request."""

    api: httpx.AsyncClient
    fake: AzureOpenAI
    service: TableServiceClient
    monkeypatch: pytest.MonkeyPatch
    scripts: dict[str, deque[Script]] = field(default_factory=dict)

    async def use_new_tables(self) -> Tables:
        await composition.close()
        await self.fake.until(lambda: self.fake.busy == 0)
        prefix = f"t{uuid.uuid4().hex[:20]}"
        self.monkeypatch.setenv("TABLE_PREFIX", prefix)
        self.scripts.clear()
        self.fake.meter.clear()
        self.fake.responder, self.fake.embedding_responder = self.respond, self.embed
        return Tables(self.service, prefix)

    def respond(self, request: Request) -> Script:
        marks = [re.match(r"#(\S+) ", str(message.get("content"))) for message in request.body["messages"]]
        return self.next_script([mark[1] for mark in marks if mark][-1])

    def embed(self, request: Request) -> Script:
        mark = re.match(r"#(\S+) ", request.body["input"][0])
        assert mark
        return self.next_script(mark[1])

    def next_script(self, mark: str) -> Script:
        scripts = self.scripts[mark]
        return scripts.popleft() if scripts else Reply("enough")

    async def idle_session(self, session: str) -> dict[str, Any]:
        """The session once the turn of a disconnected client has ended."""

        async def idle() -> dict[str, Any] | None:
            body = await get_json(self.api, f"/api/sessions/{session}")
            return None if body["busy"] else body

        return await until(idle)

    async def converse(self, session: str, route: str, steps: list[Step]) -> list[dict[str, Any]]:
        """The sessions that it made, once they are idle."""
        if route == "embeddings":
            return await self.embeddings(session, steps)
        if route != "chat":
            return await self.chain(session, route, steps)
        pending: list[str] = []
        for number, step in enumerate(steps):
            mark = self.script(session, number, step)
            if step.mode == "clear":
                pending = [] if await self.clear(session) else pending
            body: dict[str, Any] = {"message": f"#{mark} {step.text}"}
            if pending and step.mode != "ignore calls":
                results = [{"tool_call_id": call, "content": f"#{mark} {step.text}"} for call in pending]
                body = {"tool_results": results}
            answer = await self.send(body | step.options | {"session_id": session}, step.mode)
            if answer:
                pending = [call["id"] for call in answer["message"].get("tool_calls") or ()]
        return [await self.idle_session(session)]

    def script(self, session: str, number: int, step: Step) -> str:
        """The mark of a step's messages, by which the model finds its scripts."""
        mark = f"{session}:{number}"
        self.scripts[mark] = deque(step.scripts)
        return mark

    async def chain(self, name: str, route: str, steps: list[Step]) -> list[dict[str, Any]]:
        conversation = None
        if route == "conversation":
            conversation = ok_json(await self.api.post(CONVERSATIONS_ROUTE, json={}))["id"]
        chain = ResponseChain(self.api, conversation)
        for number, step in enumerate(steps):
            await chain.take(f"#{self.script(name, number, step)} {step.text}", step.options, step.mode)
        await chain.finish()
        await chain.check()
        return [await self.idle_session(session) for session in chain.sessions]

    async def embeddings(self, name: str, steps: list[Step]) -> list[dict[str, Any]]:
        """Requests for embeddings, which make no sessions."""
        for number, step in enumerate(steps):
            texts = [f"#{self.script(name, number, step)} {step.text}", *step.options, step.mode]
            body = {"model": EMBEDDING, "input": texts, "encoding_format": "base64" if number % 2 else "float"}
            response = await self.api.post("/openai/v1/embeddings", json=body)
            assert "internal_error" not in response.text, response.text
            assert response.status_code != 200 or len(response.json()["data"]) == len(texts)
        return []

    async def converse_and_check(self, conversations: list[tuple[str, list[Step]]]) -> None:
        """Five conversations at a time, each of a route."""
        tables = await self.use_new_tables()
        async with TaskGroup() as group:  # one failure cancels the others, which would otherwise bill the next example
            tasks = [group.create_task(self.converse(f"s{n}", *each)) for n, each in enumerate(conversations)]
        sessions = [session for task in tasks for session in task.result()]
        entries = await assert_conserved(tables, self.fake)
        settled = [entry for entry in entries if entry.call.state is State.SETTLED]
        for session in sessions:
            named = await reference(tables, session["session_id"])
            costs = [entry.call.cost or Decimal(0) for entry in settled if entry.session == named]
            assert Decimal(session["cost_usd"]) == sum(costs)
        finished = {billed.call_id for billed in self.fake.meter if billed.outcome == "ok"}
        assert finished <= {entry.call.id for entry in entries if entry.call.state in (State.SETTLED, State.STOPPED)}

    async def clear(self, session: str) -> bool:
        response = await self.api.delete(f"/api/sessions/{session}/messages")
        assert response.status_code in (204, 404, 409), response.text
        return response.status_code == 204

    async def send(self, body: dict[str, Any], mode: str) -> dict[str, Any] | None:
        """The answer, or None if there is none. Retries while the turn of a disconnected client still runs."""
        if mode in ("stream", "stop", "disconnect", "stop on disconnect"):
            body = body | {"stream": True}
        if mode == "stop on disconnect":
            body = body | {"on_disconnect": "stop"}
        while True:
            async with self.api.stream("POST", "/api/chat", json=body) as response:
                if response.status_code == 200 and mode.endswith("disconnect"):
                    await anext(response.aiter_bytes())
                    return None
                if response.status_code == 200 and mode == "stop":
                    assert (await self.api.post(f"/api/sessions/{body['session_id']}/stop")).is_success
                text = (await response.aread()).decode()
            if response.status_code != 409:
                break
            await sleep(0.01)
        if mode in ("stream", "stop") and response.status_code == 200:
            return done_data(text)
        answer: dict[str, Any] = exact(text)
        assert response.status_code != 500, text
        return answer if response.status_code == 200 else None


def done_data(events: str) -> dict[str, Any] | None:
    last = re.search(r"event: (done|error)\ndata: (.*)\n\n\Z", events)
    assert last, events
    assert "internal_error" not in last[2]
    return exact(last[2]) if last[1] == "done" else None


@pytest.fixture
def environ(environ: dict[str, str]) -> dict[str, str]:
    return with_embeddings(environ) | KEYS


@pytest.fixture
async def app(
    api: httpx.AsyncClient, fake: AzureOpenAI, azurite_port: int, monkeypatch: pytest.MonkeyPatch
) -> AsyncIterator[ScriptedApp]:
    api.headers["authorization"] = f"Bearer {ANN}"
    async with TableServiceClient.from_connection_string(connection_string(azurite_port)) as service:
        yield ScriptedApp(api, fake, service, monkeypatch)


ROUTED = st.lists(st.tuples(st.sampled_from(ROUTES), CONVERSATIONS), min_size=5, max_size=5)
EXAMPLES = settings(
    max_examples=5,
    suppress_health_check=[HealthCheck.function_scoped_fixture, HealthCheck.too_slow],
    phases=[Phase.explicit, Phase.reuse, Phase.generate],  # shrinking would take an hour
)


@with_both_fakes
@EXAMPLES
@given(ROUTED)
async def test_costs_add_up_after_random_conversations_with_upstream_faults(
    app: ScriptedApp, conversations: list[tuple[str, list[Step]]]
) -> None:
    await app.converse_and_check(conversations)


@pytest.mark.acceptance
@with_both_fakes
@settings(EXAMPLES, max_examples=80)
@given(ROUTED)
async def test_costs_add_up_after_many_conversations(
    app: ScriptedApp, conversations: list[tuple[str, list[Step]]]
) -> None:
    await app.converse_and_check(conversations)
