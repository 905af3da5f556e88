"""What services mean by their refusals, where status and code do not say it: recognised by their words."""

import re

from shared.model.error_body import ErrorBody


def _any_of(*patterns: str) -> re.Pattern[str]:
    return re.compile("|".join(patterns), re.IGNORECASE)


# OpenAI's, one-api's, Kimi's and DashScope's codes and types.
_NO_CREDIT_KINDS = _any_of(
    r"insufficient_?(\w+_)?(quota|balance|credits?|funds)", "exceeded_current_quota", r"billing_\w+", "arrearage"
)
# langchain-ai/langchainjs#1929, chatanywhere/GPT_API_free#229; DeepSeek's (continuedev/continue#9942), Anthropic's,
# OpenRouter's and xAI's words.
_NO_CREDIT_WORDS = _any_of(
    "exceeded your current quota",
    "insufficient (balance|credits?|funds|quota)",
    "credit balance is too low",
    r"(no|out of|requires? more|used all available) credits",
    "billing hard limit",
    "check your billing details",
)
_PASSES = _any_of(  # Gemini says "exceeded your current quota" of its rate limits too
    r"(retry|try again) (in|after)", r"per[ _](second|min|hour|day)", "rate.limit", r"\b[RT]PM\b"
)


def no_credit(error: ErrorBody) -> bool:
    """True if the account has no credit or budget left, which no waiting mends."""
    if _NO_CREDIT_KINDS.search(error.kind):
        return True
    return bool(_NO_CREDIT_WORDS.search(error.message)) and not _PASSES.search(error.message)
