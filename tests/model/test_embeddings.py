"""Reading answers in the embeddings format: any document, vectors in both formats, and the bound on a request."""

import base64
import json
from array import array
from typing import Any

import orjson
import pytest
from hypothesis import given
from hypothesis import strategies as st

from shared.model import embeddings
from shared.model.embeddings import MAX_PROMPT_TOKENS, EmbeddingAnswer, Embeddings
from tests.support.azure_openai_answers import Reply, pieces
from tests.support.azure_openai_embeddings import EmbeddingAnswer as Answer

NUMBERS = st.lists(st.floats(width=32, allow_nan=False, allow_infinity=False), max_size=20)
VECTORS = st.lists(NUMBERS, max_size=5)
JSON_VALUES = st.recursive(
    st.none() | st.booleans() | st.integers() | st.floats() | st.text(max_size=9),
    lambda inner: (
        st.lists(inner, max_size=4)
        | st.dictionaries(st.sampled_from(["data", "embedding", "usage", "model", "error"]) | st.text(), inner)
    ),
    max_leaves=20,
)
TEXTS = st.text(st.characters(exclude_categories=["Cs"]), max_size=40)
TOKENS = st.lists(st.integers(0, 100_000), max_size=9)


def read(document: bytes, *, as_base64: bool = False) -> EmbeddingAnswer:
    answer = EmbeddingAnswer(as_base64=as_base64)
    answer.add(document)
    answer.end()
    return answer


def document(vectors: list[Any], **fields: Any) -> bytes:
    data = [{"object": "embedding", "index": index, "embedding": each} for index, each in enumerate(vectors)]
    usage = {"prompt_tokens": 3, "total_tokens": 3}
    return json.dumps({"object": "list", "data": data, "model": "m-1", "usage": usage, **fields}).encode()


def as_base64(numbers: list[float]) -> str:
    return base64.b64encode(array("f", numbers).tobytes()).decode()


def vectors(answer: EmbeddingAnswer) -> list[Any]:
    return [each["embedding"] for each in orjson.loads(answer.document())["data"]]


@given(VECTORS)
def test_answer_in_the_requested_format_is_passed_on_byte_for_byte(numbers: list[list[float]]) -> None:
    for sent, encoded in ((document(numbers), False), (document(list(map(as_base64, numbers))), True)):
        answer = read(sent, as_base64=encoded)
        assert answer.complete
        assert answer.document() == sent
        assert answer.usage
        assert (answer.model, answer.usage.prompt_tokens, answer.usage.completion_tokens) == ("m-1", 3, 0)


@given(VECTORS)
def test_vectors_are_converted_where_the_service_ignores_the_format(numbers: list[list[float]]) -> None:
    encoded = list(map(as_base64, numbers))
    assert vectors(read(document(numbers), as_base64=True)) == encoded
    assert vectors(read(document(encoded))) == numbers


def test_escaped_base64_is_converted() -> None:
    encoded = as_base64([0.75] * 3)
    assert "/" in encoded
    assert vectors(read(document([encoded]).replace(b"/", rb"\/"))) == [[0.75] * 3]


def test_only_vectors_are_converted() -> None:
    text = '"embedding": [1, 2]'
    sent = document([[1.0]], note=text, model=text)
    converted = orjson.loads(read(sent, as_base64=True).document())
    assert (converted["note"], converted["model"]) == (text, text)
    assert converted["data"][0]["embedding"] == as_base64([1.0])


@pytest.mark.parametrize("odd", [[None], ["a"], [[1.0], [2.0]], {"float": [1.0]}, "A", "AAAA", None, [1e300], True])
@pytest.mark.parametrize("wants_base64", [True, False])
def test_what_is_no_vector_of_numbers_stays_as_it_is(odd: Any, wants_base64: bool) -> None:
    first = [1.0] if wants_base64 else as_base64([1.0])
    first, second = vectors(read(document([first, odd]), as_base64=wants_base64))
    assert first == (as_base64([1.0]) if wants_base64 else [1.0])
    assert second == odd or (wants_base64 and odd == [1e300])  # an infinite number of 32 bits


@given(st.binary(max_size=60) | JSON_VALUES.map(lambda value: json.dumps(value).encode()), st.booleans())
def test_any_document_is_read_without_an_exception(data: bytes, as_base64: bool) -> None:
    answer = read(data, as_base64=as_base64)
    assert answer.complete == (answer.error is None)
    assert answer.document() == b"" or isinstance(orjson.loads(answer.document())["data"], list)


@given(VECTORS.filter(bool), st.data())
def test_document_that_breaks_off_is_an_error(numbers: list[list[float]], data: st.DataObject) -> None:
    sent = document(numbers)
    answer = read(sent[: data.draw(st.integers(0, len(sent) - 1))], as_base64=data.draw(st.booleans()))
    assert answer.error
    assert not answer.complete
    assert answer.usage is None


@pytest.mark.parametrize(
    ("reported", "tokens"),
    [
        ({"prompt_tokens": 3, "total_tokens": 3}, 3),
        ({"prompt_tokens": 3, "completion_tokens": 0, "total_tokens": 3}, 3),
        ({"prompt_tokens": 3, "completion_tokens": None, "total_tokens": 3}, 3),
        ({"prompt_tokens": 3.0, "total_tokens": 3.0}, 3),
        ({"prompt_tokens": 3, "total_tokens": 3, "prompt_tokens_details": None}, 3),
        ({"total_tokens": 3}, 3),  # Voyage
        ({"prompt_tokens": None, "total_tokens": 3}, 3),
        ({"input_tokens": 3, "total_tokens": 3}, 3),
        ({"prompt_tokens": 0, "total_tokens": 0}, None),
        ({}, None),
        (None, None),
        ([3], None),
        ({"prompt_tokens": -3}, None),
    ],
)
def test_usage_is_the_prompts(reported: Any, tokens: int | None) -> None:
    usage = read(document([[1.0]], usage=reported)).usage
    assert (usage and usage.total_tokens) == tokens
    assert not usage or not usage.unpriced_kinds


def test_vectors_are_not_parsed(monkeypatch: pytest.MonkeyPatch) -> None:
    parsed: list[int] = []

    def recorded(data: bytes) -> Any:
        parsed.append(len(data))
        return orjson.loads(data)

    monkeypatch.setattr(embeddings, "parsed", recorded)
    body = {"input": ["word"] * 100}
    sent = json.dumps(Answer(body, Reply(), model="m", dimensions=1_536, only_floats=False).whole()).encode()
    assert read(sent).document() is sent
    assert sum(parsed) < len(sent) / 100


class TestPromptBound:
    @given(st.one_of(TEXTS, TOKENS, st.lists(TEXTS), st.lists(TOKENS)))
    def test_it_is_at_least_what_the_service_counts(self, value: Any) -> None:
        inputs = value if isinstance(value, list) and value and isinstance(value[0], str | list) else [value]
        counted = sum(len(pieces(each) if isinstance(each, str) else each) for each in inputs)
        assert counted <= Embeddings().prompt_bound({"input": value}) <= MAX_PROMPT_TOKENS

    @pytest.mark.parametrize(
        ("value", "bound"),
        [
            ("hällo", 6 + 16),
            ("a\ufdfa\ufdfa", 1 + 2 * 18 + 16),
            (["a", "bc"], 1 + 2 + 2 * 16),
            ([5, 6, 7], 3 + 16),
            ([[5, 6, 7], [8]], 4 + 2 * 16),
            ("a" * 400_000, MAX_PROMPT_TOKENS),
            (["a" * 1_000] * 2_048, MAX_PROMPT_TOKENS),
            ([[1] * 8_192] * 2_048, MAX_PROMPT_TOKENS),
            (None, MAX_PROMPT_TOKENS),
            ({"text": "a"}, MAX_PROMPT_TOKENS),
            ([5, 6.5], MAX_PROMPT_TOKENS),
            ([True], MAX_PROMPT_TOKENS),
        ],
    )
    def test_text_counts_its_bytes_and_tokens_count_themselves(self, value: Any, bound: int) -> None:
        assert Embeddings().prompt_bound({"input": value}) == bound
