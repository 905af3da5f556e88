"""The tokens of an answer so far, from services that report them in every chunk: the cost of a stopped answer is then
known. llama.cpp and vLLM do so on request, and are recognised by their first answer.
https://github.com/ggml-org/llama.cpp/tree/master/tools/server (timings_per_token)
https://docs.vllm.ai/en/latest/serving/openai_compatible_server/ (continuous_usage_stats)
"""

from collections.abc import Mapping
from typing import Any

from shared.domain.calls import Usage
from shared.model.usage import usage_of

_VLLM_FIELD = "prompt_token_ids"  # in the first chunk of each answer of vLLM's, null unless requested


class RunningUsageOption:
    """Requests running usage from one endpoint."""

    def __init__(self) -> None:
        self._is_llama_cpp = self._is_vllm = False

    def added_to(self, body: Mapping[str, Any], *, forwarded: bool) -> Mapping[str, Any]:
        """The request of a stream with the option that the endpoint takes. A forwarded request does not ask vLLM: its
        caller may add up the usage of all chunks, as LangChain does."""
        if self._is_llama_cpp:
            return {"timings_per_token": True, **body}
        if self._is_vllm and not forwarded and (options := body.get("stream_options")):
            return {**body, "stream_options": {"continuous_usage_stats": True, **options}}
        return body

    def recognise(self, headers: Mapping[str, str], first_event: bytes) -> None:
        """Recognise the service by a stream's headers and first event."""
        self._is_llama_cpp = headers.get("server") == "llama.cpp"
        self._is_vllm = f'"{_VLLM_FIELD}"'.encode() in first_event


class RunningUsage:
    """The tokens of an answer so far. `value`: as last reported; `is_exact`: it covers all that was received."""

    def __init__(self) -> None:
        self.value: Usage | None = None
        self.is_exact = False
        self._is_vllm = False

    def add(self, chunk: Mapping[str, Any]) -> None:
        timed = _usage_of_timings(chunk["timings"]) if "timings" in chunk else None
        usage = timed or (usage_of(chunk["usage"]) if chunk.get("usage") else None)
        self._is_vllm = self._is_vllm or _VLLM_FIELD in chunk
        self.value = usage or self.value
        if chunk.get("choices"):
            self.is_exact = bool(timed or (usage and self._is_vllm))


def _usage_of_timings(timings: Any) -> Usage | None:
    """`prompt_n`: prompt tokens that were not cached."""
    fields = timings if isinstance(timings, Mapping) else {}
    prompt, cached = fields.get("prompt_n"), fields.get("cache_n", 0)
    if not isinstance(prompt, int) or not isinstance(cached, int):
        return None
    completion = fields.get("predicted_n")
    return usage_of({"prompt_tokens": prompt + cached, "cached_tokens": cached, "completion_tokens": completion})
