"""Refusals whose HTTP status misleads: recognised by their code, type or words."""

import re

from shared.model.error_body import ErrorBody


def _any_of(*patterns: str) -> re.Pattern[str]:
    return re.compile("|".join(patterns), re.IGNORECASE)


# OpenAI's code, LiteLLM's, DashScope's, Azure's (`innererror`), OpenRouter's, Volcengine's, Gemini's, StepFun's.
_FILTER_KINDS = _any_of(
    "content_?(filter|policy)",
    "data_?inspection",
    "responsible_?ai",
    "moderation",
    "sensitive_?content",
    "prohibited_?content",
    "censorship",
)
_FILTER_WORDS = _any_of(
    r"\b(input|prompt|request|content|message|text)s?\b[^.]{0,60}\bflagged\b|flagged[ _](for|input)",  # OpenRouter
    "(content|usage) (management )?(policy|policies|guidelines)|requires moderation",  # Azure, OpenAI, xAI
    "content exists risk|inappropriate content|considered high risk|safety system",  # DeepSeek, DashScope, Kimi, OpenAI
    "敏感内容",  # Zhipu
)


def content_filtered(error: ErrorBody) -> bool:
    """True if the service or a gateway stopped the prompt because of its content."""
    kinds = f"{error.kind} {error.inner.get('code')}"
    return bool(_FILTER_KINDS.search(kinds) or _FILTER_WORDS.search(error.message))


_RATE_KINDS = _any_of("rate_?limit", "too_?many_?requests", "throttl")
# API Management's quota policy sends 403: https://learn.microsoft.com/azure/api-management/quota-policy
_RATE_WORDS = _any_of(r"\bquota\b", "rate.?limit", "too many requests")


def rate_limited(error: ErrorBody) -> bool:
    """True if the code or type is that of a rate limit."""
    return error.status == 429 or bool(_RATE_KINDS.search(error.kind))


def rate_limited_in_words(error: ErrorBody) -> bool:
    """True if a refusal of access is about a limit or quota that is renewed."""
    return bool(_RATE_WORDS.search(error.message))


_MISSING_KINDS = _any_of("(model|deployment|engine)_?not_?(found|exist)")
_MISSING_WORDS = _any_of(
    r"\b(model|deployment|engine)\b.{0,80}(not (found|exist|available)|doesn.t exist|no longer)",
    r"(no such|unknown|not found the|no endpoints found for) \S",
)
_CAPABILITY = _any_of(  # JohnnyZ93/oai-compatible-copilot#229, HKUDS/DeepTutor#1348, openrouter.ai
    r"support|\b(image|audio|video|file|document|attachment|tool|param|input|provider|modalit|prompt)"
    r"|data policy|privacy|guardrail|not a chat model"
)
_PLACE = _any_of(
    r"\b(deployment|model|engine|function|resource|route|path|page|ur[li]|operation|endpoint)", "cannot post"
)
_NOTHING_ELSE = _any_of(r"[\W\d]*((error|http|status|code)[\W\d]*)*(not[ _]found)?[\W\d]*")


def deployment_missing(error: ErrorBody) -> bool:
    """True unless a 404 is about something else than the deployment or the URL, such as a capability."""
    if _MISSING_KINDS.search(error.kind) or _MISSING_WORDS.search(error.message):
        return True
    if _CAPABILITY.search(error.message):
        return False
    return bool(_PLACE.search(error.message) or _NOTHING_ELSE.fullmatch(error.message))


def names_missing_model(error: ErrorBody) -> bool:
    """True if the code says so, whatever the status: OpenAI answers 403 for a model that a project may not use."""
    return bool(_MISSING_KINDS.search(error.kind))
