"""Embeddings of the Azure OpenAI fake: vectors, usage and errors in the service's wire format. No I/O.

The errors' words are those that users report, such as in embeddings-benchmark/mteb#1200, sbintuitions/JMTEB#15 and
OpenDataBox/CrackSQL#27.
"""

import base64
import math
import random
from array import array
from typing import Any

from tests.support.azure_openai_answers import JSON, Reply, Tokens, compact, invalid, pieces

MAX_INPUTS, MAX_INPUT_TOKENS, MAX_REQUEST_TOKENS = 2_048, 8_192, 300_000
MAX_DIMENSIONS = 1_536
INVALID_INPUT = "'$.input' is invalid. Please check the API reference: https://platform.openai.com/docs/api-reference."


def inputs(body: JSON) -> list[str | list[int]] | None:
    """The texts and token arrays of a request; None if its input is neither."""
    value = body.get("input")
    if isinstance(value, str) or _is_tokens(value):
        return [value] if value else None
    if not isinstance(value, list) or not 0 < len(value) <= MAX_INPUTS:
        return None
    return value if all(isinstance(each, str) and each for each in value) or all(map(_is_tokens, value)) else None


def check(body: JSON) -> JSON | None:
    """The error body if the service rejects the request, else None."""
    value = inputs(body)
    if "input" not in body:
        return invalid("Missing required parameter: 'input'.", "input", "missing_required_parameter")
    if value is None:
        return invalid(INVALID_INPUT)
    if (form := body.get("encoding_format", "float")) not in ("float", "base64"):
        message = f"Invalid value: '{form}'. Supported values are: 'float' and 'base64'."
        return invalid(message, "encoding_format", "invalid_value")
    dimensions = body.get("dimensions", 1)
    if type(dimensions) is not int or dimensions < 1:
        return invalid(f"Invalid type for 'dimensions': expected an integer above 0, got {dimensions!r}.", "dimensions")
    if dimensions > MAX_DIMENSIONS:
        message = f"Invalid value for 'dimensions' = {dimensions}. Must be less than or equal to {MAX_DIMENSIONS}."
        return invalid(message, "dimensions")
    for name in sorted(body.keys() - {"model", "input", "encoding_format", "dimensions", "user", "stream"}):
        return invalid(f"Unrecognized request argument supplied: {name}")
    counts = [_tokens(each) for each in value]
    if (longest := max(counts)) > MAX_INPUT_TOKENS:
        requested = f"you requested {longest} tokens ({longest} in your prompt; 0 for the completion)"
        limit = f"This model's maximum context length is {MAX_INPUT_TOKENS} tokens"
        return invalid(f"{limit}, however {requested}. Please reduce your prompt; or completion length.")
    if sum(counts) > MAX_REQUEST_TOKENS:
        code = "max_tokens_per_request"
        body = invalid(f"Requested {sum(counts)} tokens, max {MAX_REQUEST_TOKENS} tokens per request", code=code)
        return {"error": body["error"] | {"type": code}}
    return None


class EmbeddingAnswer:
    """The answer to one request. `dimensions`: of vectors whose request names none. `only_floats`: the requested format
    is ignored, as Ollama and llama.cpp do."""

    def __init__(self, body: JSON, reply: Reply, *, model: str, dimensions: int, only_floats: bool) -> None:
        self._inputs = inputs(body) or []
        self._dimensions = body.get("dimensions") or dimensions
        self._base64 = body.get("encoding_format") == "base64" and not only_floats
        self.model = reply.model or model
        prompt = sum(map(_tokens, self._inputs)) if reply.prompt_tokens is None else reply.prompt_tokens
        self.tokens = Tokens(prompt=prompt, cached=0, cache_write=0, completion=0, reasoning=0)

    def whole(self, usage: bool = True) -> JSON:
        counts = {"prompt_tokens": self.tokens.prompt, "total_tokens": self.tokens.prompt}
        return {
            "object": "list",
            "data": [
                {"object": "embedding", "index": index, "embedding": self._written(vector(each, self._dimensions))}
                for index, each in enumerate(self._inputs)
            ],
            "model": self.model,
            **({"usage": counts} if usage else {}),
        }

    def content(self) -> list[JSON]:
        """An embedding is not streamed."""
        return []

    def _written(self, numbers: "array[float]") -> object:
        return base64.b64encode(numbers.tobytes()).decode() if self._base64 else numbers.tolist()


def vector(value: str | list[int], dimensions: int) -> "array[float]":
    """The input's vector, of length 1: always the same, as 32-bit numbers."""
    chance = random.Random(compact(value))
    numbers = [chance.gauss() for _ in range(dimensions)]
    length = math.hypot(*numbers)
    return array("f", [number / length for number in numbers])


def _tokens(value: str | list[int]) -> int:
    return len(pieces(value) if isinstance(value, str) else value)


def _is_tokens(value: Any) -> bool:
    return isinstance(value, list) and bool(value) and all(type(each) is int and 0 <= each < 2**31 for each in value)
