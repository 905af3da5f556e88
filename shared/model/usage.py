"""Usage from a service's `usage` object."""

import logging
from collections.abc import Iterator, Mapping
from dataclasses import replace
from functools import lru_cache
from typing import Any

from shared.domain.calls import Usage

log = logging.getLogger(__name__)

_MAX_TOKENS = 2**53  # a larger number is not a token count

# The spellings of a count, as paths in the usage object: OpenAI's, then DeepSeek's, Moonshot's and LiteLLM's.
_CACHED = ("prompt_tokens_details.cached_tokens", "prompt_cache_hit_tokens", "cached_tokens", "cache_read_input_tokens")
_CACHE_WRITE = (
    "prompt_tokens_details.cache_write_tokens",
    "prompt_tokens_details.cache_creation_tokens",
    "cache_creation_input_tokens",
)
_REASONING = ("completion_tokens_details.reasoning_tokens", "reasoning_tokens")
_AUDIO_PROMPT = "prompt_tokens_details.audio_tokens"
_AUDIO_COMPLETION = "completion_tokens_details.audio_tokens"
_CACHED_AUDIO = "prompt_tokens_details.cached_tokens_details.audio_tokens"

_DETAILS = ("prompt_tokens_details", "completion_tokens_details")
_NESTED = tuple(f"{name}." for name in _DETAILS)

# Counts that are charged as those above, or that repeat one of them.
_KNOWN = {
    *_CACHED,
    *_CACHE_WRITE,
    *_REASONING,
    _AUDIO_PROMPT,
    _AUDIO_COMPLETION,
    "prompt_tokens",
    "completion_tokens",
    "total_tokens",
    "input_tokens",
    "output_tokens",
    "prompt_cache_miss_tokens",
    "prompt_tokens_details.text_tokens",
    "prompt_tokens_details.cache_creation_token_details.ephemeral_5m_input_tokens",  # LiteLLM's name of a cache write
    "prompt_tokens_details.cached_tokens_details.text_tokens",
    "completion_tokens_details.text_tokens",
    "completion_tokens_details.accepted_prediction_tokens",
    "completion_tokens_details.rejected_prediction_tokens",
}


def usage_of(reported: Any) -> Usage | None:
    """The call's tokens; None if the prompt or completion count is missing or invalid, because that does not mean zero.
    Missing details count as zero."""
    if not isinstance(reported, Mapping):
        return None
    counts = dict(_counts(reported))
    if "prompt_tokens" not in counts or "completion_tokens" not in counts:
        return None
    prompt, completion = counts["prompt_tokens"], counts["completion_tokens"]
    uncounted = counts.get("total_tokens", 0) - prompt - completion
    cached, cache_write, reasoning = (_first(counts, names) or 0 for names in (_CACHED, _CACHE_WRITE, _REASONING))
    whole_completion = _including(reasoning, completion, uncounted)
    uncounted -= whole_completion - completion  # otherwise the same tokens could be added to the prompt too
    whole_prompt = _including(cached + cache_write, prompt, uncounted)
    uncounted -= whole_prompt - prompt
    if uncounted > 0 and _first(counts, _REASONING) is None:  # Gemini's compatible API reports no reasoning tokens
        whole_completion, uncounted = whole_completion + uncounted, 0
    usage = Usage(
        prompt_tokens=whole_prompt,
        cached_tokens=cached,
        cache_write_tokens=cache_write,
        completion_tokens=whole_completion,
        reasoning_tokens=reasoning,
        audio_prompt_tokens=counts.get(_AUDIO_PROMPT, 0),
        audio_completion_tokens=counts.get(_AUDIO_COMPLETION, 0),
    )
    unpriced = _unpriced(usage, counts, uncounted)
    if unpriced:
        _warn(", ".join(sorted(unpriced))[:300])
    return replace(usage, unpriced_tokens=min(sum(unpriced.values()), usage.total_tokens))


def _unpriced(usage: Usage, counts: Mapping[str, int], uncounted: int) -> dict[str, int]:
    """Tokens that no rate covers, by the name of their count."""
    unpriced = {name: count for name, count in counts.items() if count and name not in _KNOWN}
    if uncounted > 0:
        unpriced["total_tokens"] = uncounted
    audio_prompt, cached = usage.audio_prompt_tokens, usage.cached_tokens + usage.cache_write_tokens
    if audio_prompt and usage.cached_tokens and _CACHED_AUDIO not in counts:  # how many cached tokens are audio?
        unpriced[_AUDIO_PROMPT] = audio_prompt
    if audio_prompt + cached > usage.prompt_tokens:
        unpriced[_AUDIO_PROMPT] = audio_prompt
    if usage.audio_completion_tokens > usage.completion_tokens:
        unpriced[_AUDIO_COMPLETION] = usage.audio_completion_tokens
    return unpriced


@lru_cache(maxsize=100)
def _warn(names: str) -> None:
    """Log these kinds once: a service may report them in every chunk."""
    log.warning("no rate covers tokens of these kinds, so the cost of calls with them is unknown: %s", names)


def _counts(reported: Mapping[str, Any], path: str = "") -> Iterator[tuple[str, int]]:
    """Each valid count of the object and of its details, with its path. Other objects in it are not read: they repeat
    counts under the names of another API."""
    for name, value in reported.items():
        if isinstance(value, Mapping) and (path in _NESTED if path else name in _DETAILS):
            yield from _counts(value, f"{path}{name}.")
        elif name.endswith("_tokens") and (count := _count(value)) is not None:
            yield f"{path}{name}", count


def _first(counts: Mapping[str, int], names: tuple[str, ...]) -> int | None:
    return next((counts[name] for name in names if name in counts), None)


def _count(value: Any) -> int | None:
    """A token count, also if written as a float such as 5.0; None if the value is not one."""
    if isinstance(value, float) and value.is_integer():
        value = int(value)
    return value if isinstance(value, int) and not isinstance(value, bool) and 0 <= value < _MAX_TOKENS else None


def _including(part: int, count: int, uncounted: int) -> int:
    """The count including its part. Some services report the part separately, for example Grok its reasoning tokens
    (BerriAI/litellm#39426). This is the case if the part is larger than the count, or if it equals `uncounted`: the
    tokens by which the reported total exceeds prompt plus completion."""
    return count + part if part > count or part == uncounted else count
