"""Usage from a service's `usage` object."""

from collections.abc import Mapping
from typing import Any

from shared.domain.calls import Usage

_MAX_TOKENS = 2**53  # more is no count


def usage_of(reported: Any) -> Usage | None:
    """The call's tokens; None if the object has no counts, which is not zero. Missing details count as zero."""
    if not isinstance(reported, Mapping):
        return None
    prompt, completion = _count(reported.get("prompt_tokens")), _count(reported.get("completion_tokens"))
    if prompt is None or completion is None:
        return None
    beside = (_count(reported.get("total_tokens")) or 0) - prompt - completion
    cached, written = _detail(reported, "prompt", "cached_tokens"), _detail(reported, "prompt", "cache_write_tokens")
    reasoning = _detail(reported, "completion", "reasoning_tokens")
    answer = _with(reasoning, completion, beside)
    beside -= answer - completion  # or the same tokens could be counted into the prompt too
    return Usage(
        prompt_tokens=_with(cached + written, prompt, beside),
        cached_tokens=cached,
        cache_write_tokens=written,
        completion_tokens=answer,
        reasoning_tokens=reasoning,
    )


def _detail(reported: Mapping[str, Any], kind: str, name: str) -> int:
    details = reported.get(f"{kind}_tokens_details")
    return (_count(details.get(name)) or 0) if isinstance(details, Mapping) else 0


def _count(value: Any) -> int | None:
    """A number of tokens, also one that is written as a float; None for anything else."""
    if isinstance(value, float) and value.is_integer():
        value = int(value)
    return value if isinstance(value, int) and not isinstance(value, bool) and 0 <= value < _MAX_TOKENS else None


def _with(part: int, count: int, beside: int) -> int:
    """A count with its part in it. Some services report that beside the count, as Grok its reasoning
    (BerriAI/litellm#39426): the total, which has `beside` tokens more than prompt and completion, says so, or else that
    the part is larger than the count."""
    return count + part if part > count or part == beside else count
