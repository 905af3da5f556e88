"""Reading answers in the chat completions format: whole, in chunks of any size, and with invalid data."""

from itertools import pairwise
from typing import Any

import orjson
import pytest
from hypothesis import given
from hypothesis import strategies as st

from shared.domain.calls import Usage
from shared.model.completion import Completion
from shared.model.usage import _warn, usage_of
from shared.turns.ports import Piece
from shared.web.completion_replay import openai_usage
from tests.support.azure_openai_answers import Answer, Reply

CALL = ("call_1", "look", '{"city": "Zürich"}')
REPLIES = st.builds(
    Reply,
    st.text(max_size=80),
    tool_calls=st.lists(
        st.tuples(st.text(min_size=1, max_size=9), st.text(min_size=1, max_size=9), st.text(max_size=40)),
        max_size=3,
        unique_by=lambda call: call[0],
    ).map(tuple),
    refusal=st.none() | st.text(min_size=1, max_size=20),
    reasoning_tokens=st.integers(0, 9),
)


def chunks(reply: Reply, size: int = 1, **body: Any) -> list[dict[str, Any]]:
    """The chunks that the service sends, each with `size` tokens."""
    request = {"stream_options": {"include_usage": True}, **body}
    answer = Answer(request, reply, model="m-2026-01-01", prompt_tokens=9, cached_tokens=4, chunk_tokens=size)
    return [*answer.opening(), *answer.content(), *answer.closing()]


def completion_of(parts: list[dict[str, Any]]) -> Completion:
    completion = Completion()
    for part in parts:
        completion.add(orjson.dumps(part))
    completion.end()
    return completion


def added(completion: Completion, part: dict[str, Any]) -> Piece:
    piece = completion.add(orjson.dumps(part))
    assert piece is not None
    return piece


def shown(completion: Completion, part: dict[str, Any]) -> dict[str, Any]:
    return dict(added(completion, part).shown)


def read_usage(reported: dict[str, Any]) -> Usage:
    usage = usage_of(reported)
    assert usage
    return usage


def piece(**delta: Any) -> dict[str, Any]:
    return {"choices": [{"index": 0, "delta": delta}]}


@given(REPLIES, st.integers(1, 50))
def test_stream_in_chunks_of_any_size_gives_the_whole_message(reply: Reply, size: int) -> None:
    request: dict[str, Any] = {}
    whole = Answer(request, reply, model="m", prompt_tokens=9, cached_tokens=4, chunk_tokens=1).whole()
    message = whole["choices"][0]["message"]
    expected = {name: value for name, value in message.items() if name not in ("annotations",) and value is not None}
    if message["content"] is None:
        expected["content"] = None
    assert completion_of(chunks(reply, size)).message() == expected


@given(REPLIES, st.integers(1, 50))
def test_deltas_add_up_to_the_message(reply: Reply, size: int) -> None:
    completion, read = Completion(), Completion()
    for chunk in chunks(reply, size):
        if pieces := shown(completion, chunk):
            shown(read, piece(**pieces))
    assert read.message() == completion.message()


@given(st.text(min_size=1), st.lists(st.integers(0, 200)))
def test_content_split_between_any_characters_is_joined(text: str, cuts: list[int]) -> None:
    edges = sorted({0, len(text), *(cut % (len(text) + 1) for cut in cuts)})
    parts = [piece(content=text[start:end]) for start, end in pairwise(edges)]
    assert completion_of(parts).message()["content"] == text


class TestMessage:
    def test_empty_answer_has_empty_content(self) -> None:
        assert completion_of(chunks(Reply(""))).message() == {"role": "assistant", "content": ""}

    def test_refusal_is_not_content(self) -> None:
        message = completion_of(chunks(Reply(refusal="I will not."))).message()
        assert message == {"role": "assistant", "content": None, "refusal": "I will not."}

    def test_tool_calls_are_joined_by_index(self) -> None:
        other = ("call_2", "add", "[1, 2]")
        assert completion_of(chunks(Reply(tool_calls=(CALL, other)))).message()["tool_calls"] == [
            {"id": "call_1", "type": "function", "function": {"name": "look", "arguments": '{"city": "Zürich"}'}},
            {"id": "call_2", "type": "function", "function": {"name": "add", "arguments": "[1, 2]"}},
        ]

    def test_interleaved_tool_call_deltas_are_joined(self) -> None:
        def call(index: int, arguments: str, **rest: Any) -> dict[str, Any]:
            return {"index": index, "function": {"arguments": arguments, **rest.pop("function", {})}, **rest}

        parts = [
            piece(tool_calls=[call(1, "", id="b", function={"name": "two"}), call(0, "", id="a")]),
            piece(tool_calls=[call(0, "{", function={"name": "one"})]),
            piece(tool_calls=[call(1, "[")]),
            piece(tool_calls=[call(0, "}"), call(1, "]")]),
        ]
        assert completion_of(parts).message()["tool_calls"] == [
            {"id": "a", "type": "function", "function": {"name": "one", "arguments": "{}"}},
            {"id": "b", "type": "function", "function": {"name": "two", "arguments": "[]"}},
        ]

    def test_gap_in_the_indexes_adds_no_tool_call(self) -> None:
        late = {"index": 7, "id": "c", "function": {"name": "look", "arguments": "{}"}}
        assert completion_of([piece(tool_calls=[late])]).message()["tool_calls"] == [
            {"id": "c", "type": "function", "function": {"name": "look", "arguments": "{}"}}
        ]

    def test_content_beside_tool_calls_is_kept(self) -> None:
        message = completion_of(chunks(Reply("Let me look.", tool_calls=(CALL,)))).message()
        assert message["content"] == "Let me look."
        assert len(message["tool_calls"]) == 1

    def test_partial_message_of_a_broken_stream_is_available(self) -> None:
        completion = completion_of(chunks(Reply("one two three"))[:4])
        assert completion.message()["content"] == "one two"
        assert completion.finish_reason is None
        assert completion.usage is None


class TestMetadata:
    def test_finish_reason_and_model_survive_later_chunks_without_them(self) -> None:
        completion = completion_of([*chunks(Reply("hi", finish_reason="length")), piece()])
        assert completion.finish_reason == "length"
        assert completion.model == "m-2026-01-01"

    def test_usage_is_read_from_the_last_chunk(self) -> None:
        completion = completion_of(chunks(Reply("hi", reasoning_tokens=5, cache_write_tokens=3)))
        assert completion.usage == Usage(
            prompt_tokens=9, cached_tokens=4, cache_write_tokens=3, completion_tokens=6, reasoning_tokens=5
        )

    @pytest.mark.parametrize("details", [{}, {"prompt_tokens_details": None, "completion_tokens_details": None}])
    def test_missing_usage_details_count_as_zero(self, details: dict[str, None]) -> None:
        reported = {"prompt_tokens": 3, "completion_tokens": 2, **details}
        assert read_usage(reported) == Usage(prompt_tokens=3, completion_tokens=2)

    @pytest.mark.parametrize(
        ("reported", "prompt", "completion"),
        [
            ({"prompt_tokens": 10, "completion_tokens": 300, "total_tokens": 510}, 10, 500),
            ({"prompt_tokens": 10, "completion_tokens": 5}, 10, 205),
            ({"prompt_tokens": 10, "completion_tokens": 300, "total_tokens": 310}, 10, 300),
            ({"prompt_tokens": 1_000, "completion_tokens": 300, "total_tokens": 1_300}, 1_000, 300),
        ],
    )
    def test_reasoning_tokens_reported_beside_the_completion_are_added(
        self, reported: dict[str, Any], prompt: int, completion: int
    ) -> None:
        usage = read_usage({**reported, "completion_tokens_details": {"reasoning_tokens": 200}})
        assert (usage.prompt_tokens, usage.completion_tokens, usage.reasoning_tokens) == (prompt, completion, 200)

    def test_cached_tokens_reported_beside_the_prompt_are_added(self) -> None:
        details = {"cached_tokens": 1_000, "cache_write_tokens": 50}
        usage = read_usage({"prompt_tokens": 10, "completion_tokens": 1, "prompt_tokens_details": details})
        assert (usage.prompt_tokens, usage.cached_tokens, usage.cache_write_tokens) == (1_060, 1_000, 50)

    def test_tokens_reported_beside_the_counts_are_added_once(self) -> None:
        reported = {
            "prompt_tokens": 500,
            "completion_tokens": 20,
            "total_tokens": 648,
            "prompt_tokens_details": {"cached_tokens": 128},
            "completion_tokens_details": {"reasoning_tokens": 128},
        }
        usage = read_usage(reported)
        assert (usage.prompt_tokens, usage.completion_tokens, usage.total_tokens) == (500, 148, 648)

    @pytest.mark.parametrize(
        ("details", "total", "completion", "unpriced"),
        [
            (None, 120, 20, 0),  # reasoning tokens are not reported: charged as completion
            ({"audio_tokens": 0}, 120, 20, 0),
            ({"reasoning_tokens": 0}, 120, 10, 1),
            ({"reasoning_tokens": 4}, 120, 10, 1),
            ({"reasoning_tokens": 20}, 110, 30, 1),  # more than the completion, and the total leaves no room for it
            ({"reasoning_tokens": 10}, 120, 20, 0),  # reported beside the completion
            (None, 110, 10, 0),
            (None, 90, 10, 1),  # less than its parts
        ],
    )
    def test_total_above_its_parts_is_completion_only_where_reasoning_is_not_reported(
        self, details: dict[str, int] | None, total: int, completion: int, unpriced: int
    ) -> None:
        usage = read_usage(
            {
                "prompt_tokens": 100,
                "completion_tokens": 10,
                "total_tokens": total,
                "completion_tokens_details": details,
            }
        )
        assert (usage.prompt_tokens, usage.completion_tokens, usage.unpriced_kinds) == (100, completion, unpriced)

    @pytest.mark.parametrize(
        "reported",
        [
            {"prompt_cache_hit_tokens": 60, "prompt_cache_miss_tokens": 40},  # DeepSeek
            {"cached_tokens": 60},  # Moonshot
            {"cache_read_input_tokens": 60, "prompt_tokens_details": {"cached_tokens": 60}},  # LiteLLM
            {"input_tokens": 100, "output_tokens": 10, "input_tokens_details": {"cached_tokens": 60}},
            {
                "prompt_tokens_details": {"cached_tokens": 60},
                "input_tokens_details": {"cached_tokens": 60, "x_tokens": 1},
            },
            {"prompt_tokens_details": {"cached_tokens": "60"}},
        ],
    )
    def test_each_spelling_of_cached_tokens_is_read(self, reported: dict[str, Any]) -> None:
        usage = read_usage({"prompt_tokens": 100, "completion_tokens": 10, **reported})
        assert (usage.cached_tokens, usage.unpriced_kinds) == (60, 0)

    def test_audio_tokens_are_read(self) -> None:
        usage = read_usage(
            {
                "prompt_tokens": 100,
                "completion_tokens": 592,
                "prompt_tokens_details": {"audio_tokens": 40, "text_tokens": 60, "image_tokens": 0, "cached_tokens": 0},
                "completion_tokens_details": {"audio_tokens": 482, "text_tokens": 110, "reasoning_tokens": 0},
            }
        )
        assert (usage.audio_prompt_tokens, usage.audio_completion_tokens, usage.unpriced_kinds) == (40, 482, 0)

    @pytest.mark.parametrize(
        "details",
        [
            {"prompt_tokens_details": {"image_tokens": 7}},
            {"completion_tokens_details": {"image_tokens": 7}},
            {"prompt_tokens_details": {"video_tokens": 7.0}},
            {"prompt_tokens_details": {"cache_creation_token_details": {"ephemeral_1h_input_tokens": 7}}},
            {"tool_use_prompt_tokens": 7},
            {"prompt_tokens_details": {"audio_tokens": 7, "cached_tokens": 50}},  # which ones are cached?
            {
                "prompt_tokens_details": {
                    "audio_tokens": 7,
                    "cached_tokens": 50,
                    "cached_tokens_details": {"audio_tokens": 7},
                }
            },
            {"completion_tokens_details": {"audio_tokens": 700}},  # more than there are
            {"completion_tokens_details": {"audio_tokens": -2}},
            {"completion_tokens_details": {"audio_tokens": "many"}},
            {"completion_tokens_details": [2]},
            {"prompt_tokens_details": {"cached_tokens": 0}, "prompt_cache_hit_tokens": 5},
            {"num_search_queries": 3},
            {"server_tool_use": {"web_search_requests": 2}},
            {"num_sources_used": 5},
            {"prompt_tokens": 0},
        ],
    )
    def test_tokens_of_an_unknown_kind_make_the_cost_unknown(
        self, details: dict[str, Any], caplog: pytest.LogCaptureFixture
    ) -> None:
        _warn.cache_clear()
        for _ in range(3):
            assert read_usage({"prompt_tokens": 100, "completion_tokens": 10, **details}).unpriced_kinds > 0
        assert caplog.text.count("no rate covers tokens of these kinds") == 1

    @pytest.mark.parametrize("total", ["text", -1, 12.5, [], {}, True, 10**9])
    def test_unreadable_total_counts_as_absent(self, total: Any) -> None:
        usage = read_usage({"prompt_tokens": 100, "completion_tokens": 10, "total_tokens": total})
        assert usage == Usage(prompt_tokens=100, completion_tokens=10)

    @pytest.mark.parametrize("count", [0, 10**8, 2**53 - 1, -1, True, "many", [9]])
    def test_counts_that_no_call_can_have_are_none(self, count: object) -> None:
        completion = 0 if count == 0 else 5
        assert usage_of({"prompt_tokens": count, "completion_tokens": completion}) is None

    def test_deeply_nested_usage_is_read(self) -> None:
        nested: dict[str, Any] = {}
        for _ in range(100_000):
            nested = {"prompt_tokens_details": nested}
        assert read_usage({"prompt_tokens": 1, "completion_tokens": 1, **nested}) == Usage(
            prompt_tokens=1, completion_tokens=1
        )

    def test_running_usage_is_not_the_usage_of_the_answer(self) -> None:
        counted = {
            "choices": [{"index": 0, "delta": {"content": "a"}}],
            "usage": {"prompt_tokens": 9, "completion_tokens": 1},
        }
        assert completion_of([counted]).usage == Usage(prompt_tokens=9, completion_tokens=1)
        assert completion_of([counted, piece(content="b")]).usage is None

    def test_most_severe_content_filter_result_is_kept(self) -> None:
        def rated(severity: str) -> dict[str, Any]:
            return {
                "choices": [{"index": 0, "content_filter_results": {"hate": {"filtered": False, "severity": severity}}}]
            }

        results = completion_of([rated("safe"), rated("medium"), rated("low")]).extras["content_filter"]["completion"]
        assert results == {"hate": {"filtered": False, "severity": "medium"}}

    def test_content_filter_results_are_returned(self) -> None:
        completion = completion_of(chunks(Reply("hi", finish_reason="content_filter")))
        results = completion.extras["content_filter"]
        assert results["prompt"][0]["content_filter_results"]["jailbreak"] == {"filtered": False, "detected": False}
        assert results["completion"]["violence"] == {"filtered": True, "severity": "high"}

    def test_logprobs_are_joined_in_order(self) -> None:
        completion = completion_of(chunks(Reply("one two three"), logprobs=True))
        assert [token["token"] for token in completion.extras["logprobs"]["content"]] == ["one", " two", " thre", "e"]

    def test_answer_without_extras_has_none(self) -> None:
        assert completion_of([piece(content="hi")]).extras == {}

    def test_chunk_without_content_has_no_delta(self) -> None:
        completion = Completion()
        assert shown(completion, {"choices": []}) == {}
        assert shown(completion, {"choices": [{"index": 0, "delta": {"role": "assistant", "content": ""}}]}) == {}
        assert shown(completion, {"choices": [{"index": 0, "finish_reason": "stop"}]}) == {}


@given(REPLIES)
def test_whole_answer_reads_like_the_streamed_one(reply: Reply) -> None:
    request: dict[str, Any] = {"stream_options": {"include_usage": True}}
    whole = Answer(request, reply, model="m-2026-01-01", prompt_tokens=9, cached_tokens=4, chunk_tokens=1).whole()
    completion, streamed = completion_of([whole]), completion_of(chunks(reply))
    assert completion.message() == streamed.message()
    assert (completion.finish_reason, completion.usage, completion.model) == (
        streamed.finish_reason,
        streamed.usage,
        streamed.model,
    )


def test_first_of_several_choices_is_the_answer() -> None:
    choices = [{"index": at, "delta": {"content": f"{at}"}, "finish_reason": "stop"} for at in (1, 0, 2)]
    assert completion_of([{"choices": [choice]} for choice in choices]).message()["content"] == "0"
    assert completion_of([{"choices": choices}]).message()["content"] == "0"


class TestChoices:
    """An answer with n = 2."""

    def test_document_is_assembled_from_all_choices(self) -> None:
        def part(index: int, content: str, finish_reason: str | None = None) -> dict[str, Any]:
            logprobs = {"content": [{"token": content, "logprob": -1.0}], "refusal": None}
            choice = {"index": index, "delta": {"content": content}, "logprobs": logprobs}
            fields = {"id": "c", "created": 5, "system_fingerprint": "f", "service_tier": "priority"}
            return {**fields, "choices": [{**choice, "finish_reason": finish_reason}], "obfuscation": "x"}

        parts = [part(1, "b"), part(0, "a"), part(1, "B", "length"), part(0, "A", "stop")]
        completion = completion_of([*parts, {"choices": [], "usage": {"prompt_tokens": 9, "completion_tokens": 4}}])
        document = orjson.loads(completion.document())
        choices = document.pop("choices")
        assert [each["index"] for each in choices] == [0, 1]
        assert [each["message"]["content"] for each in choices] == ["aA", "bB"]
        assert [each["finish_reason"] for each in choices] == ["stop", "length"]
        assert [token["token"] for token in choices[1]["logprobs"]["content"]] == ["b", "B"]
        assert document == {
            "id": "c",
            "object": "chat.completion",
            "created": 5,
            "model": None,
            "system_fingerprint": "f",
            "service_tier": "priority",
            "usage": {"prompt_tokens": 9, "completion_tokens": 4},
        }

    @pytest.mark.parametrize("inside", [False, True])
    def test_usage_of_each_choice_alone_is_not_that_of_the_answer(self, inside: bool) -> None:
        parts: list[dict[str, Any]] = [
            {"choices": [{"index": at, "delta": {"content": "x"}, "finish_reason": "stop"}]} for at in (0, 1)
        ]
        for part in parts:
            (part["choices"][0] if inside else part)["usage"] = {"prompt_tokens": 9, "completion_tokens": 3}
        assert completion_of(parts).usage is None
        total = {"choices": [], "usage": {"prompt_tokens": 9, "completion_tokens": 6}}
        assert completion_of([*parts, total]).usage == Usage(prompt_tokens=9, completion_tokens=6)

    def test_text_of_another_choice_makes_running_usage_incomplete(self) -> None:
        counted = {"prompt_tokens": 9, "completion_tokens": 1}
        first = {"choices": [{"index": 0, "delta": {"content": "a"}, "finish_reason": "stop"}], "usage": counted}
        assert completion_of([first, {"choices": [{"index": 1, "delta": {"content": "b"}}]}]).usage is None

    def test_usage_of_a_chunk_with_all_choices_counts(self) -> None:
        choices = [{"index": at, "delta": {"content": "x"}, "finish_reason": "stop"} for at in (0, 1)]
        counted = {"prompt_tokens": 9, "completion_tokens": 6}
        assert completion_of([{"choices": choices, "usage": counted}]).usage == Usage(**counted)


@pytest.mark.parametrize(
    ("fields", "tier"),
    [
        ({"service_tier": "priority"}, "priority"),
        ({"service_tier": ["priority"]}, '["priority"]'),
        ({"usage": {"service_tier": "priority"}}, "priority"),
        ({"service_tier": 5}, "5"),
        ({"service_tier": None}, None),
        ({"service_tier": "", "usage": None}, None),
    ],
)
def test_service_tier_of_any_type_is_read(fields: dict[str, Any], tier: str | None) -> None:
    assert completion_of([{**piece(content="x"), **fields}]).service_tier == tier


def test_usage_only_chunk_is_recognised() -> None:
    completion = Completion()
    *others, last = chunks(Reply("one two"))
    assert not any(added(completion, chunk).only_usage for chunk in others)
    assert added(completion, last).only_usage


@pytest.mark.parametrize(
    "data",
    [
        b"",
        b"{",
        b"[]",
        b"\xff",
        b'{"error": {"message": "no"}}',
        b'{"model": {"a": 1}}',
        b'{"choices": "abc"}',
        b'{"choices": [null]}',
        b'{"choices": [{"delta": "x"}]}',
        b'{"choices": [{"delta": {"content": 5}}]}',
        b'{"choices": [{"delta": {"tool_calls": [{"function": {"name": 5}}]}}]}',
        b'{"choices": [{"finish_reason": 5}]}',
        b'{"usage": [1]}',
        b'{"usage": {"prompt_tokens": "x"}}',
        b'{"usage": {"prompt_tokens": 5.5}}',
        b'{"usage": {"prompt_tokens": -5}}',
        b'{"usage": {"prompt_tokens": 1, "completion_tokens": 100000000000000000000}}',
        b'{"usage": {"prompt_tokens": true, "completion_tokens": 1}}',
        b'{"usage": {"prompt_tokens": null, "completion_tokens": null}}',
        b'{"usage": {"prompt_tokens": 5}}',
        b'{"usage": {"total_tokens": 12}}',
        b'{"usage": {"input_tokens": 5, "output_tokens": 7}}',
        b'{"choices": [{"delta": {"tool_calls": [{"index": -1}]}}]}',
        b'{"choices": [{"delta": {"tool_calls": [{"index": "0"}]}}]}',
        b'{"choices": [{"delta": {"tool_calls": [{"index": 1e300, "id": "a"}, {"index": %s}]}}]}' % (b"9" * 25),
        b'{"choices": [{"index": %s, "delta": {"tool_calls": [{"id": %s}]}}]}' % (b"9" * 5_000, b"9" * 400),
        b'{"choices": [{"delta": {"content": 1e999, "x": %s}}], "created": 1e999}' % (b"9" * 400),
        b'{"choices": [{"delta": {"content": %s}}]}' % (b"[" * 5_000 + b"]" * 5_000),
        b'{"choices": [{"delta": {"tool_calls": %s}}]}' % (b'{"0":' * 500 + b"{}" + b"}" * 500),
        b'{"choices": [{"content_filter_results": [[1, 2]]}]}',
        b'{"prompt_filter_results": ' + b"[" * 300 + b"]" * 300 + b"}",
    ],
)
def test_invalid_data_never_raises_and_is_not_read_as_usage(data: bytes) -> None:
    completion = Completion()
    completion.add(data)
    completion.end()
    assert completion.usage is None
    assert orjson.dumps([completion.message(), completion.extras, completion.document().decode()])


@pytest.mark.parametrize(
    "junk", [b"9" * 5_000, b"1e999", b"[" * 100_000 + b"]" * 100_000, b'{"a":' * 100_000 + b"{}" + b"}" * 100_000]
)
def test_usage_is_read_beside_numbers_and_nesting_of_any_size(junk: bytes) -> None:
    completion = Completion()
    choices = b'[{"delta": {"content": "hello", "x": %s, "tool_calls": [{"index": %s}]}}]' % (junk, junk)
    completion.add(b'{"choices": %s, "x": %s, "usage": {"prompt_tokens": 9, "completion_tokens": 3}}' % (choices, junk))
    completion.end()
    assert completion.message()["content"] == "hello"
    assert completion.usage == Usage(prompt_tokens=9, completion_tokens=3)
    assert orjson.loads(completion.document())


@pytest.mark.parametrize("index", ["9" * 25, "9" * 5_000, 1e300, -1, True, [], "\u00b2"])
def test_index_that_is_no_sane_number_counts_as_missing(index: Any) -> None:
    calls = [{"index": index, "id": each, "function": {"name": "look", "arguments": "{}"}} for each in "ab"]
    made = completion_of([piece(tool_calls=[call]) for call in calls]).message()["tool_calls"]
    assert [call["id"] for call in made] == ["a", "b"]


def test_custom_call_beside_an_empty_function_keeps_its_name() -> None:
    parts = [{"id": "c1", "type": "custom", "custom": {"name": "code", "input": "1"}, "function": {}}]
    for whole in ({"message": {"tool_calls": parts}}, {"delta": {"tool_calls": parts}}):
        assert completion_of([{"choices": [whole]}]).message()["tool_calls"] == [
            {"id": "c1", "type": "custom", "custom": {"name": "code", "input": "1"}}
        ]


def test_custom_tool_call_is_kept() -> None:
    first = {"index": 0, "id": "c1", "type": "custom", "custom": {"name": "code", "input": "print"}}
    completion = completion_of(
        [piece(tool_calls=[first]), piece(tool_calls=[{"index": 0, "custom": {"input": "(1)"}}])]
    )
    assert completion.message()["tool_calls"] == [
        {"id": "c1", "type": "custom", "custom": {"name": "code", "input": "print(1)"}}
    ]


def test_legacy_function_call_is_kept() -> None:
    """The predecessor of tool calls, which the service still accepts."""
    calls = [{"name": "look", "arguments": ""}, {"arguments": '{"a":'}, {"arguments": "1}"}]
    completion = completion_of([piece(content=None, function_call=call) for call in calls])
    assert completion.message() == {
        "role": "assistant",
        "content": None,
        "function_call": {"name": "look", "arguments": '{"a":1}'},
    }


@given(st.integers(1, 10**7), st.integers(0, 10**7), st.integers(0, 99), st.integers(0, 99), st.integers(0, 99))
def test_usage_round_trips(prompt: int, completion: int, cached: int, cache_write: int, reasoning: int) -> None:
    usage = Usage(
        prompt_tokens=prompt + cached + cache_write,
        cached_tokens=cached,
        cache_write_tokens=cache_write,
        completion_tokens=completion + reasoning,
        reasoning_tokens=reasoning,
    )
    assert read_usage(openai_usage(usage)) == usage
