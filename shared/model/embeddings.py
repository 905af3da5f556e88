"""The embeddings format. https://platform.openai.com/docs/api-reference/embeddings

An answer may have 34 MB (2,048 vectors of 1,536 numbers). It is held once, and parsed without its vectors, except where
the service ignores the requested format: then they are converted one by one.
"""

import binascii
import re
from array import array
from collections.abc import Callable, Mapping, Sequence
from sys import byteorder
from typing import Any

import orjson

from shared.domain.calls import Usage
from shared.domain.conversation import Message
from shared.errors import UpstreamError
from shared.model.choice import name_of
from shared.model.usage import usage_of
from shared.model.wire_json import parsed
from shared.turns.ports import AnswerReader, Piece

# OpenAI's limit of the tokens in all inputs of a request together.
MAX_PROMPT_TOKENS = 300_000
_SPECIAL_TOKENS = 16  # of an input at most: its begin and end, and a prefix such as E5's "query: "
# A tokenizer that normalizes text (NFKC), such as that of multilingual-e5-small, reads this character of three bytes as
# 18, and counts 4 tokens (measured). No other character had more tokens than bytes.
_LONG_LIGATURE, _ITS_OTHER_TOKENS = "\ufdfa", 15
# A vector, as numbers or as base64; neither contains a bracket or quotation mark.
_VECTOR = re.compile(rb'"embedding"\s*:\s*(\[[^\[\]{}"]*\]|"[^"]*")')


class Embeddings:
    """The embeddings dialect."""

    path = "/embeddings"
    operation = "embeddings"
    may_stream = False

    def compose(
        self, messages: Sequence[Message], *, max_tokens: int | None, options: Mapping[str, Any]
    ) -> Mapping[str, Any]:
        raise NotImplementedError  # no turn of a session is an embedding

    def prompt_bound(self, body: Mapping[str, Any]) -> int:
        return min(_bound(body.get("input")), MAX_PROMPT_TOKENS)

    def has_audio(self, body: Mapping[str, Any]) -> bool:
        return False

    def reader(self, body: Mapping[str, Any]) -> AnswerReader:
        return EmbeddingAnswer(as_base64=body.get("encoding_format") == "base64")


class EmbeddingAnswer:
    """Reads an answer, which is one document. Implements AnswerReader. `as_base64`: the
    requested format of the vectors; they are numbers otherwise."""

    calls_first = False
    running_usage = None
    running_usage_is_exact = False

    def __init__(self, *, as_base64: bool) -> None:
        self._as_base64 = as_base64
        self._document = b""
        self.extras: dict[str, Any] = {}
        self.model: str | None = None
        self.service_tier: str | None = None
        self.error: UpstreamError | None = None
        self.usage: Usage | None = None

    @property
    def finish_reason(self) -> str | None:
        return "stop" if self._document else None

    @property
    def complete(self) -> bool:
        return bool(self._document)

    def add(self, data: bytes, name: bytes = b"") -> Piece | None:
        answer = parsed(_VECTOR.sub(b'"embedding":null', data))
        if not isinstance(answer, dict):
            self.error = UpstreamError("The model's answer is no JSON object. Retry the request.", maybe_billed=True)
            return Piece({})
        self.model = name_of(answer.get("model"))
        self.usage = _usage(answer.get("usage"))
        if not isinstance(answer.get("data"), list):
            self.error = UpstreamError("The model's answer has no embeddings. Retry the request.", maybe_billed=True)
            return Piece({})
        self._document = self._in_format(data)
        return Piece({})

    def end(self) -> None:
        """Nothing to do: the document is whole."""

    def stop(self) -> bytes:
        return b""

    def message(self, *, empty_fields: bool = False) -> Message:
        return {}

    def document(self) -> bytes:
        return self._document

    def _in_format(self, data: bytes) -> bytes:
        """The document with its vectors in the requested format. Some services answer in numbers always
        (Ollama, llama.cpp, Text Embeddings Inference), which OpenAI's SDK for Node would decode as base64."""
        first = _VECTOR.search(data)
        if first is None or first[1].startswith(b'"') == self._as_base64:
            return data
        return _VECTOR.sub(_converted(_base64 if self._as_base64 else _numbers), data)


def _converted(convert: Callable[[bytes], bytes]) -> Callable[[re.Match[bytes]], bytes]:
    def replacement(vector: re.Match[bytes]) -> bytes:
        try:
            return b'"embedding":' + convert(vector[1])
        except (ValueError, TypeError, OverflowError):  # not a vector of numbers
            return vector[0]

    return replacement


def _base64(numbers: bytes) -> bytes:
    """JSON numbers as base64 of 32-bit floats, little endian, as OpenAI sends them."""
    vector = array("f", orjson.loads(numbers))
    if byteorder == "big":
        vector.byteswap()
    return b'"' + binascii.b2a_base64(vector.tobytes(), newline=False) + b'"'


def _numbers(base64: bytes) -> bytes:
    vector = array("f", binascii.a2b_base64(orjson.loads(base64), strict_mode=True))  # JSON may escape a slash
    if byteorder == "big":
        vector.byteswap()
    return orjson.dumps(vector.tolist())


def _usage(reported: Any) -> Usage | None:
    """The call's tokens. Some services report the total alone (Voyage); there is no completion."""
    if not isinstance(reported, dict):
        return None
    prompt, completion = reported.get("prompt_tokens"), reported.get("completion_tokens") or 0
    counted = reported.get("total_tokens") if prompt is None else prompt
    return usage_of({**reported, "prompt_tokens": counted, "completion_tokens": completion})


def _bound(value: Any) -> int:
    """An upper bound on the tokens in `input`: one per byte of UTF-8, except for one character. The largest possible
    for what is neither text nor tokens, which the service may accept or refuse."""
    if isinstance(value, str):
        return len(value.encode()) + _ITS_OTHER_TOKENS * value.count(_LONG_LIGATURE) + _SPECIAL_TOKENS
    if not isinstance(value, list):
        return MAX_PROMPT_TOKENS
    if all(type(each) is int for each in value):
        return len(value) + _SPECIAL_TOKENS
    return sum(map(_bound, value))
