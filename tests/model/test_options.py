"""What is learned from refusals never leads to a loop, and changes nothing but the options that are refused."""

from typing import Any

import pytest
from hypothesis import given
from hypothesis import strategies as st

from shared.model.chat_completions import ChatCompletions
from shared.model.options import Options
from shared.model.upstream_errors import OptionRejected, ToolsRejected
from shared.turns.ports import Plan

FIELDS = (
    "max_tokens",
    "max_completion_tokens",
    "stream_options",
    "temperature",
    "reasoning_effort",
    "messages",
    "tools",
)
MAX_ATTEMPTS = 12

rejections = st.just(ToolsRejected("chat")) | st.builds(
    lambda fields, unsupported, maximum: OptionRejected(
        "no", param=fields[0], fields=fields, unsupported=fields if unsupported else (), max_output=maximum
    ),
    st.lists(st.sampled_from(FIELDS), min_size=1, max_size=3, unique=True),
    st.booleans(),
    st.none() | st.integers(1, 200),
)
bodies: st.SearchStrategy[dict[str, Any]] = st.fixed_dictionaries(
    {"messages": st.just([{"role": "user", "content": "hi"}])},
    optional={
        "max_tokens": st.integers(1, 100) | st.none(),
        "max_completion_tokens": st.integers(1, 100) | st.none(),
        "stream_options": st.just({"include_usage": True}),
        "temperature": st.just(0.3),
        "reasoning_effort": st.sampled_from(["none", "high", None]),
        "tools": st.just([{"type": "function"}]),
        "data_sources": st.just([{}]),
    },
)


def plan(body: dict[str, Any], *, forwarded: bool, added: bool) -> Plan:
    return Plan(
        deployment="chat",
        dialect=ChatCompletions(),
        body=body,
        forwarded=forwarded,
        added=frozenset({"stream_options"} if added else ()),
        prompt_bound=1,
        max_tokens=1,
        requested_max_tokens=1,
        stored_answer_tokens=1,
    )


@given(bodies, st.booleans(), st.booleans(), st.lists(rejections, min_size=MAX_ATTEMPTS, max_size=MAX_ATTEMPTS))
def test_call_ends_after_a_few_bodies_whatever_is_refused(
    body: dict[str, Any], forwarded: bool, added: bool, refusals: list[OptionRejected]
) -> None:
    options, one, sent = Options({"reasoning_effort": "low"}), plan(body, forwarded=forwarded, added=added), list[Any]()
    for refusal in refusals:
        if options.body(one) in sent:
            break
        sent.append(options.body(one))
        options.learn(refusal, one, sent[-1])
    assert len(sent) < MAX_ATTEMPTS

    own = {"messages", "tools", "data_sources"} | (set() if added else {"stream_options"})
    largest = max([value for name in ("max_tokens", "max_completion_tokens") if (value := body.get(name))], default=0)
    for each in sent:
        assert {name: each.get(name) for name in own} == {name: body.get(name) for name in own}
        maxima = [value for name in ("max_tokens", "max_completion_tokens") if (value := each.get(name))]
        assert bool(maxima) == bool(largest)  # an answer without a maximum could cost more than its worst case
        assert max(maxima, default=0) <= largest
        if body.get("reasoning_effort"):
            assert each["reasoning_effort"] == body["reasoning_effort"]
        if forwarded:
            assert each.get("temperature") == body.get("temperature")


def refused(name: str, *, unsupported: bool = True, maximum: int | None = None) -> OptionRejected:
    return OptionRejected(
        "no", param=name, fields=[name], unsupported=[name] if unsupported else (), max_output=maximum
    )


TOOLS = {"tools": [{"type": "function"}]}
LOGGED: list[tuple[dict[str, Any], OptionRejected, str]] = [
    ({"max_tokens": 9_000}, refused("max_tokens", maximum=4_096, unsupported=False), "at most 4096 tokens"),
    ({"max_tokens": 9}, refused("max_tokens"), "max_completion_tokens is sent instead of max_tokens"),
    ({"stream_options": {}}, refused("stream_options"), "stream_options is not sent without data_sources"),
    ({"temperature": 0.3}, refused("temperature"), "temperature is not sent with reasoning_effort low without tools"),
    (TOOLS, ToolsRejected("chat"), "reasoning_effort is 'none' with tools"),
    (TOOLS, refused("reasoning_effort"), "reasoning_effort is not sent with tools"),
]


@pytest.mark.parametrize(("body", "rejection", "words"), LOGGED, ids=[words for *_, words in LOGGED])
def test_what_is_learned_is_logged_once(
    caplog: pytest.LogCaptureFixture, body: dict[str, Any], rejection: OptionRejected, words: str
) -> None:
    options, one = Options({"reasoning_effort": "low"}), plan(body, forwarded=False, added=True)
    options.learn(rejection, one, options.body(one))
    [line] = caplog.messages
    assert line.startswith("deployment 'chat', until the process restarts: ")
    assert line.endswith(words)


def test_maximum_of_a_forwarded_request_is_logged_once(caplog: pytest.LogCaptureFixture) -> None:
    options, one = Options({}), plan({"max_tokens": 9_000}, forwarded=True, added=False)
    for _ in range(2):
        options.learn(refused("max_tokens", maximum=4_096, unsupported=False), one, options.body(one))
    assert len(caplog.messages) == 1


def test_option_that_cannot_be_left_out_is_not_logged(caplog: pytest.LogCaptureFixture) -> None:
    options, one = Options({}), plan({"temperature": 0.3}, forwarded=True, added=False)
    options.learn(refused("temperature"), one, options.body(one))
    assert not caplog.messages
