"""Usage from a service's `usage` object."""

import logging
import re
from collections.abc import Iterator, Mapping
from dataclasses import replace
from functools import lru_cache
from typing import Any

from shared.domain.calls import Usage

log = logging.getLogger(__name__)

_MAX_TOKENS = 10**8  # a larger number is not a token count

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
# The objects with details, and the names that OpenAI's Responses API has for them.
_DETAILS = {"prompt_tokens_details": "input_tokens_details", "completion_tokens_details": "output_tokens_details"}

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
# What is billed beside tokens: OpenRouter's, Anthropic's, xAI's and Perplexity's counts of searches.
_SEARCHES = re.compile(r"search|sources_used|tool_requests")


def usage_of(reported: Any) -> Usage | None:
    """The call's tokens; None if the prompt or completion count is missing or invalid, because that does not mean zero.
    Missing details count as zero. Counts that contradict each other, that can't be read, or that no rate covers are
    `unpriced_kinds`."""
    if not isinstance(reported, dict):
        return None
    counts, unpriced = _counts(reported)
    if "prompt_tokens" not in counts or "completion_tokens" not in counts:
        return None
    prompt, completion, total = (counts.get(f"{kind}_tokens", 0) for kind in ("prompt", "completion", "total"))
    if not prompt and not completion:
        return None
    uncounted = total - prompt - completion
    cached, cache_write, reasoning = (_agreed(counts, names, unpriced) for names in (_CACHED, _CACHE_WRITE, _REASONING))
    whole_completion = _including(reasoning, completion, uncounted)
    uncounted -= whole_completion - completion  # otherwise the same tokens could be added to the prompt too
    whole_prompt = _including(cached + cache_write, prompt, uncounted)
    uncounted -= whole_prompt - prompt
    if uncounted > 0 and not any(name in counts for name in _REASONING):  # as Gemini's compatible API, which has none
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
    if total and uncounted:
        unpriced.add("total_tokens")
    if not prompt:  # Ollama counts no cached prompt
        unpriced.add("prompt_tokens")
    unpriced |= {name for name, count in counts.items() if count and name not in _KNOWN} | _unpriced_audio(
        usage, counts
    )
    if unpriced:
        _warn(", ".join(sorted(unpriced))[:300])
    return replace(usage, unpriced_kinds=len(unpriced))


def _unpriced_audio(usage: Usage, counts: Mapping[str, int]) -> set[str]:
    """The counts of audio whose rate is not known: how many cached tokens are audio, or more audio than there is."""
    unpriced = set()
    if usage.audio_prompt_tokens and usage.cached_tokens and _CACHED_AUDIO not in counts:
        unpriced.add(_AUDIO_PROMPT)
    if usage.audio_prompt_tokens + usage.cached_tokens + usage.cache_write_tokens > usage.prompt_tokens:
        unpriced.add(_AUDIO_PROMPT)
    if usage.audio_completion_tokens > usage.completion_tokens:
        unpriced.add(_AUDIO_COMPLETION)
    return unpriced


@lru_cache(maxsize=100)
def _warn(names: str) -> None:
    """Log these kinds once: a service may report them in every chunk."""
    log.warning("no rate covers tokens of these kinds, so the cost of calls with them is unknown: %s", names)


def _counts(reported: Mapping[str, Any]) -> tuple[dict[str, int], set[str]]:
    """Each valid count, by its path; and the paths of those that can't be read, or are of searches. Details under the
    names of another API are read only if OpenAI's are missing, because they repeat their counts."""
    counts: dict[str, int] = {}
    unreadable: set[str] = set()
    for path, fields in _objects(reported):
        if not isinstance(fields, Mapping):
            unreadable.add(path)
            continue
        for name, value in fields.items():
            if _SEARCHES.search(name) and value:
                unreadable.add(f"{path}{name}")
            elif name.endswith("_tokens") and value is not None:
                if (count := _count(value)) is not None:
                    counts[f"{path}{name}"] = count
                elif name != "total_tokens":  # a sum, which may be missing: nothing is billed by it
                    unreadable.add(f"{path}{name}")
    return counts, unreadable


def _objects(reported: Mapping[str, Any]) -> Iterator[tuple[str, Any]]:
    """The objects that hold counts, each with its path: the usage itself, its details, and the objects in those."""
    yield "", reported
    for name, other in _DETAILS.items():
        if details := reported.get(name) or reported.get(other):
            yield f"{name}.", details
            for inner, fields in details.items() if isinstance(details, Mapping) else ():
                if isinstance(fields, Mapping):
                    yield f"{name}.{inner}.", fields
    if tools := reported.get("server_tool_use"):
        yield "server_tool_use.", tools


def _agreed(counts: Mapping[str, int], names: tuple[str, ...], unpriced: set[str]) -> int:
    """The count under any of its names; 0 if there is none. If they differ, the largest, and the first is unpriced."""
    values = {counts[name] for name in names if name in counts}
    if len(values) > 1:
        unpriced.add(names[0])
    return max(values, default=0)


def _count(value: Any) -> int | None:
    """A token count, also if written as a float such as 5.0 or as text; None if the value is not one."""
    if isinstance(value, str) and re.fullmatch("[0-9]{1,9}", value):
        value = int(value)
    if isinstance(value, float) and value.is_integer():
        value = int(value)
    return value if isinstance(value, int) and not isinstance(value, bool) and 0 <= value < _MAX_TOKENS else None


def _including(part: int, count: int, uncounted: int) -> int:
    """The count including its part. Some services report the part separately, for example Grok its reasoning tokens
    (BerriAI/litellm#39426). This is the case if the part is larger than the count, or if it equals `uncounted`: the
    tokens by which the reported total exceeds prompt plus completion."""
    return count + part if part > count or part == uncounted else count
