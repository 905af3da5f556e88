"""The cost of a stopped answer is exact where the service reports its tokens in every chunk."""

from typing import Any

import httpx
import pytest

from shared.domain.calls import State
from shared.model.completion import Completion
from tests.conftest import Tables
from tests.support.chat_client import answer, closed_ledger, get_json, ok_json, streaming
from tests.support.conservation import assert_conserved
from tests.support.rude_upstream import RudeUpstream, chunk, end, frame, text

JSON = dict[str, Any]
LLAMA_CPP = [("server", "llama.cpp")]


def timings(prompt: int, cached: int, completion: int) -> JSON:
    """As llama.cpp sends them; more fields follow."""
    return {"timings": {"prompt_n": prompt, "cache_n": cached, "predicted_n": completion, "predicted_ms": 1.5}}


def usage(prompt: int, completion: int) -> JSON:
    total = prompt + completion
    return {"usage": {"prompt_tokens": prompt, "total_tokens": total, "completion_tokens": completion}}


def data(event: JSON) -> bytes:
    return frame(event).removeprefix(b"data: ").strip()


# As vLLM's first chunk.
VLLM_OPENING = text("", prompt_token_ids=None)


@pytest.mark.parametrize(
    ("chunks", "expected", "exact"),
    [
        ([text("a", **timings(5, 20, 1)), text("b", **timings(5, 20, 2))], (25, 20, 2), True),
        ([VLLM_OPENING, text("a", **usage(9, 1)), text("b", **usage(9, 2))], (9, 0, 2), True),
        ([VLLM_OPENING, text("a", **usage(9, 1)), text("b")], (9, 0, 1), False),
        ([text("a", **usage(9, 1)), text("b", **usage(9, 2))], (9, 0, 2), False),
        ([text("a", **timings(5, 20, 1)), text("b")], (25, 20, 1), False),
        ([text("a", timings={"prompt_n": "many"}), text("b", timings=[1])], None, False),
        ([text("a", timings={"prompt_n": -1, "predicted_n": 2})], None, False),
        ([text("a"), text("b")], None, False),
    ],
    ids=[
        "llama.cpp",
        "vLLM",
        "vLLM at times",
        "another",
        "llama.cpp at times",
        "odd",
        "negative",
        "no",
    ],
)
def test_running_usage_is_exact_if_the_last_chunk_has_it_of_a_service_that_counts_all(
    chunks: list[JSON], expected: tuple[int, int, int] | None, exact: bool
) -> None:
    completion = Completion(one_choice=True)
    for each in chunks:
        completion.add(data(each))
    running = completion.running_usage
    counts = running and (running.prompt_tokens, running.cached_tokens, running.completion_tokens)
    assert (counts, completion.running_usage_is_exact) == (expected, exact)
    assert completion.usage is None


def test_usage_of_one_of_several_choices_is_not_exact() -> None:
    completion = Completion()
    completion.add(data(text("a", **timings(5, 20, 1))))
    assert not completion.running_usage_is_exact


# Whole turns


async def stop_after(api: httpx.AsyncClient, shown: str) -> JSON:
    """Stop a streamed turn once this was shown. Returns its answer."""
    async with streaming(api) as answering:
        received = ""
        while received != shown:
            event = await answering.next()
            received += event.data.get("content", "") if event.name == "delta" else ""
        assert ok_json(await api.post("/api/sessions/s/stop"))["state"] == "stopped"
        [done] = await answering.rest()
    return dict(done.data)


@pytest.mark.parametrize("fake", [RudeUpstream], indirect=True)
async def test_llama_cpp_counts_on_request_and_its_stopped_answer_is_settled(
    api: httpx.AsyncClient, fake: RudeUpstream, tables: Tables
) -> None:
    fake.stream(text("Hi."), end(), chunk(**usage(9, 3)), headers=LLAMA_CPP)
    await answer(api)
    counted = [text("one", **timings(4, 6, 1)), text(" two", **timings(4, 6, 2))]
    fake.stream(
        *counted, done=False, ending="open", headers=LLAMA_CPP, prompt_tokens=10, cached_tokens=6, completion_tokens=2
    )

    stopped = await stop_after(api, "one two")

    assert "timings_per_token" not in fake.requests[0].body
    assert fake.requests[1].body["timings_per_token"] is True
    assert (stopped["finish_reason"], stopped["message"]["content"]) == ("stopped", "one two")
    usage_of = stopped["usage"]
    assert (usage_of["prompt_tokens"], usage_of["cached_tokens"], usage_of["completion_tokens"]) == (10, 6, 2)
    assert stopped["cost_usd"] > 0
    assert stopped["session"]["stopped_calls"] == 0
    assert {entry.call.state for entry in await closed_ledger(tables)} == {State.SETTLED}
    await assert_conserved(tables, fake)


@pytest.mark.parametrize("fake", [RudeUpstream], indirect=True)
async def test_vllm_counts_on_request_and_its_stopped_answer_is_settled(
    api: httpx.AsyncClient, fake: RudeUpstream, tables: Tables
) -> None:
    fake.stream(VLLM_OPENING, text("Hi."), end(), chunk(**usage(9, 3)))
    await answer(api)
    counted = [VLLM_OPENING, text("one", **usage(9, 1)), text(" two", **usage(9, 2))]
    fake.stream(*counted, done=False, ending="open", completion_tokens=2)

    stopped = await stop_after(api, "one two")

    assert fake.requests[0].body["stream_options"] == {"include_usage": True}
    assert fake.requests[1].body["stream_options"] == {"include_usage": True, "continuous_usage_stats": True}
    assert (stopped["usage"]["prompt_tokens"], stopped["usage"]["completion_tokens"]) == (9, 2)
    assert stopped["cost_usd"] > 0
    await closed_ledger(tables)
    await assert_conserved(tables, fake)


@pytest.mark.parametrize("fake", [RudeUpstream], indirect=True)
async def test_stopped_answer_of_a_service_that_counts_at_times_has_a_lower_bound(
    api: httpx.AsyncClient, fake: RudeUpstream, tables: Tables
) -> None:
    fake.stream(text("one", **usage(9, 1)), text(" two"), done=False, ending="open", completion_tokens=2)

    stopped = await stop_after(api, "one two")

    assert (stopped["cost_usd"], stopped["usage"]) == (None, None)
    session = await get_json(api, "/api/sessions/s")
    assert 0 < session["stopped_at_least_usd"] < session["stopped_at_most_usd"]
    [entry] = await closed_ledger(tables)
    assert (entry.call.state, entry.call.at_least) == (State.STOPPED, session["stopped_at_least_usd"])
    await assert_conserved(tables, fake)
