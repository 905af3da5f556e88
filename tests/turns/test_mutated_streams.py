"""Mutated answers of the model service, on both routes: no billed answer is lost, no usable one is paid for twice.

Each example is one request to the app. https://html.spec.whatwg.org/multipage/server-sent-events.html
"""

import asyncio
import uuid
from collections.abc import AsyncIterator, Iterator
from dataclasses import dataclass
from typing import Any

import httpx
import pytest
from azure.data.tables.aio import TableServiceClient
from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st

from local.azurite import connection_string
from local.keys import line
from shared import services as composition
from shared.domain.calls import Call, State
from tests.conftest import Tables
from tests.support.chat_client import events, exact, get_json, send_message
from tests.support.clock import ManualClock
from tests.support.conservation import assert_conserved
from tests.support.loopback import MAX_WAIT_S
from tests.support.mutated_streams import (
    Mutated,
    documents,
    events_of,
    mutated,
    objects_of,
    parsed,
    reframed,
    with_running_usage,
)
from tests.support.rude_dialect import BOM
from tests.support.rude_upstream import RudeUpstream

JSON = dict[str, Any]
KEY = "a-client-key-of-the-tests"
EXAMPLES_PER_TABLES = 25
KINDS = ("prompt", "completion")
PER_EXAMPLE = [HealthCheck.function_scoped_fixture, HealthCheck.too_slow]
FEW = settings(max_examples=20, derandomize=True, suppress_health_check=PER_EXAMPLE)
MANY = settings(max_examples=2_000, suppress_health_check=PER_EXAMPLE)


@pytest.fixture
def fake() -> Iterator[RudeUpstream]:
    with RudeUpstream() as server:
        yield server


@pytest.fixture
def environ(environ: dict[str, str]) -> dict[str, str]:
    return environ | {"CLIENT_KEYS": line("app", KEY)}


@dataclass
class App:
    """The app with a new session for each example, and at times new tables: checking them takes longer and longer."""

    api: httpx.AsyncClient
    fake: RudeUpstream
    service: TableServiceClient
    monkeypatch: pytest.MonkeyPatch
    tables: Tables | None = None
    examples: int = 0

    @property
    def session(self) -> str:
        return f"s{self.examples}"

    async def begin(self, answer: Mutated) -> Tables:
        self.examples += 1
        tables = self.tables if self.examples % EXAMPLES_PER_TABLES else None
        self.tables = None  # after a failure, the next example gets new ones
        tables = tables or await self._new_tables()
        self.fake.requests.clear()
        self.fake.queue(answer.raw)
        return tables

    def end(self, tables: Tables) -> None:
        self.tables = tables

    async def _new_tables(self) -> Tables:
        await composition.close()
        await self.fake.until(lambda: self.fake.busy == 0)
        self.fake.meter.clear()
        prefix = f"t{uuid.uuid4().hex[:20]}"
        self.monkeypatch.setenv("TABLE_PREFIX", prefix)
        return Tables(self.service, prefix)


@pytest.fixture
async def app(
    clock: ManualClock,
    api: httpx.AsyncClient,
    fake: RudeUpstream,
    azurite_port: int,
    monkeypatch: pytest.MonkeyPatch,
) -> AsyncIterator[App]:
    clock.skip_sleeps_up_to = 1  # before a second call
    async with TableServiceClient.from_connection_string(connection_string(azurite_port)) as service:
        yield App(api, fake, service, monkeypatch)


@dataclass(frozen=True)
class Sent:
    """A request to the app. `usage`, `session`: of openai/* alone."""

    openai: bool
    streamed: bool
    usage: bool
    session: bool

    async def to(self, api: httpx.AsyncClient, session: str) -> httpx.Response:
        if not self.openai:
            return await send_message(api, session=session, stream=self.streamed)
        body: JSON = {"model": "chat", "messages": [{"role": "user", "content": "hi"}], "stream": self.streamed}
        if self.streamed:
            body |= {"stream_options": {"include_usage": self.usage}}
        headers = {"authorization": f"Bearer {KEY}"} | ({"x-session-id": session} if self.session else {})
        return await api.post("/openai/v1/chat/completions", json=body, headers=headers)


ANSWERS = {
    "reframed": reframed(),
    "mutated": mutated(),
    "running usage": with_running_usage(),
    "documents": documents(),
}
SENT = st.builds(Sent, openai=st.booleans(), streamed=st.booleans(), usage=st.booleans(), session=st.booleans())


@pytest.mark.parametrize("kind", ANSWERS)
@FEW
@given(data=st.data(), sent=SENT)
async def test_mutated_answer_is_accounted_and_passed_on(app: App, kind: str, data: st.DataObject, sent: Sent) -> None:
    await check(app, data.draw(ANSWERS[kind]), sent)


@pytest.mark.acceptance
@pytest.mark.parametrize("kind", ANSWERS)
@MANY
@given(data=st.data(), sent=SENT)
async def test_many_mutated_answers_are_accounted_and_passed_on(
    app: App, kind: str, data: st.DataObject, sent: Sent
) -> None:
    await check(app, data.draw(ANSWERS[kind]), sent)


async def check(app: App, answer: Mutated, sent: Sent) -> None:
    tables = await app.begin(answer)
    async with asyncio.timeout(MAX_WAIT_S):
        response = await sent.to(app.api, app.session)
    calls = await check_costs(app, tables, answer, response)
    if response.status_code != 200:
        assert not is_usable(answer)
    elif not sent.openai:
        await check_turn(app, answer, calls, done_of(response, streamed=sent.streamed))
    elif len(calls) == 1 and answer.is_document:
        assert sent.streamed or response.content == answer.body.removeprefix(BOM)
    elif len(calls) == 1 and sent.streamed:
        check_events(answer, response.content, usage=sent.usage)
    app.end(tables)


async def check_costs(app: App, tables: Tables, answer: Mutated, response: httpx.Response) -> list[Call]:
    """Returns the calls, oldest first."""
    assert response.status_code in (200, 502, 503), response.text
    assert "internal_error" not in response.text
    ids = [request.call_id for request in app.fake.requests]
    by_id = {entry.call.id: entry.call for entry in await assert_conserved(tables, app.fake)}
    calls = [by_id[call_id or ""] for call_id in ids]
    assert len(calls) <= 2
    if len(calls) == 2:
        assert calls[0].state is State.UNACCOUNTED
        assert not is_usable(answer)
    if answer.content is not None:
        assert [call.state for call in calls] == [State.SETTLED]
    return calls


async def check_turn(app: App, answer: Mutated, calls: list[Call], done: JSON | None) -> None:
    """The answer of api/chat, its history, and the turn after it."""
    history = await get_json(app.api, f"/api/sessions/{app.session}/messages")
    if done is None:
        assert not is_usable(answer)
        return
    assert done["finish_reason"]
    assert (done["usage"] is None) == (done["cost_usd"] is None) == (calls[-1].state is State.UNACCOUNTED)
    assert history["turns"][0]["messages"][-1] == done["message"]
    if answer.content is not None:
        assert (done["message"]["content"] or "") == answer.content
    after = await send_message(app.api, "after", app.session)  # the fake refuses a history that is not valid
    assert after.status_code == 200, after.text


def check_events(answer: Mutated, stream: bytes, *, usage: bool) -> None:
    """Every event went on with its name and data unchanged, up to an error, unless that follows a complete answer."""
    *received, (_, last) = events_of(stream)
    sent = [event for event in events_of(answer.body) if event[1] != b"[DONE]"]
    errors = [at for at, (_, data) in enumerate(sent) if is_error(parsed(data)) and last != b"[DONE]"]
    sent = [event for event in sent[: errors[0] if errors else None] if usage or not is_only_usage(event[1])]
    assert last == b"[DONE]" or (is_error(parsed(last)) and not is_usable(answer))
    assert received == (sent if answer.lossless else sent[: len(received)])


def done_of(response: httpx.Response, *, streamed: bool) -> JSON | None:
    """The answer; None if there is none."""
    if response.status_code != 200:
        return None
    if not streamed:
        return exact(response.text)  # type: ignore[no-any-return]
    *before, last = [event for event in events(response.content) if event.name]
    assert last.name in ("done", "error")
    if last.name == "error":
        return None
    shown = "".join(event.data.get("content", "") for event in before)
    assert (last.data["message"]["content"] or "") in (shown, shown + "\ufffd")  # half an emoji at the end
    return last.data  # type: ignore[no-any-return]


def is_usable(answer: Mutated) -> bool:
    """Whether there is an answer, and it has an end."""
    objects = objects_of(answer.body)
    if not answer.lossless or any(map(is_error, objects)):
        return False
    choices = [choice for each in objects for choice in choices_of(each)]
    if answer.is_document:
        return any("message" in choice for choice in choices)
    return bool(choices) and (b"", b"[DONE]") in events_of(answer.body)


def is_error(value: Any) -> bool:
    return isinstance(value, dict) and bool(value.get("error"))


def is_only_usage(data: bytes) -> bool:
    """A chunk with token counts and nothing else."""
    value = parsed(data)
    usage = value.get("usage") if isinstance(value, dict) else None
    if not isinstance(usage, dict) or value.get("choices"):
        return False
    return all(isinstance(usage.get(f"{kind}_tokens"), int) and usage[f"{kind}_tokens"] > 0 for kind in KINDS)


def choices_of(value: JSON) -> list[JSON]:
    choices = value.get("choices")
    return [each for each in choices if isinstance(each, dict)] if isinstance(choices, list) else []
