"""Usage from a service's `usage` object."""

from collections.abc import Mapping
from typing import Any

from shared.domain.calls import Usage

_MAX_TOKENS = 2**53  # a larger number is not a token count


def usage_of(reported: Any) -> Usage | None:
    """The call's tokens; None if the prompt or completion count is missing or invalid, because that does not mean zero.
    Missing details count as zero."""
    if not isinstance(reported, Mapping):
        return None
    prompt, completion = _count(reported.get("prompt_tokens")), _count(reported.get("completion_tokens"))
    if prompt is None or completion is None:
        return None
    uncounted = (_count(reported.get("total_tokens")) or 0) - prompt - completion
    cached = _detail(reported, "prompt", "cached_tokens")
    cache_write = _detail(reported, "prompt", "cache_write_tokens")
    reasoning = _detail(reported, "completion", "reasoning_tokens")
    answer = _including(reasoning, completion, uncounted)
    uncounted -= answer - completion  # otherwise the same tokens could be added to the prompt too
    return Usage(
        prompt_tokens=_including(cached + cache_write, prompt, uncounted),
        cached_tokens=cached,
        cache_write_tokens=cache_write,
        completion_tokens=answer,
        reasoning_tokens=reasoning,
    )


def _detail(reported: Mapping[str, Any], kind: str, name: str) -> int:
    details = reported.get(f"{kind}_tokens_details")
    return (_count(details.get(name)) or 0) if isinstance(details, Mapping) else 0


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
