"""Fields and models that several routes share."""

import re
from decimal import Decimal
from typing import Annotated

from pydantic import AfterValidator, BaseModel, ConfigDict, Field, StringConstraints

SESSION_ID = r"^[A-Za-z0-9][A-Za-z0-9._-]{0,63}$"  # pydantic's `$` matches only the end of the text, as in ECMA-262
SESSION_ID_FORM = "1 to 64 letters, digits, dots, underscores or hyphens, and begin with a letter or digit"
IDEMPOTENCY_KEY = r"^[!-~]{1,255}$"
MAX_PAGE_TURNS = 100  # of history
MAX_PAGE_SESSIONS = 50  # of the caller's list: each is one request to storage
MAX_TITLE_CHARS = MAX_SEARCH_CHARS = 200
MAX_TURN_NUMBER = 10**9
_OPENAI_ID = re.compile("(conv_|resp_)([0-9a-f]{32})([0-9a-f]{8})?")


def check_session_id(text: str) -> str:
    """Raises ValueError for the ID of a conversation or a response, with which a new session would begin."""
    if match := _OPENAI_ID.fullmatch(text):
        raise ValueError(f"should be the ID of a session, which is {match[2]} for {text}")
    return text


SessionId = Annotated[str, StringConstraints(pattern=SESSION_ID), AfterValidator(check_session_id)]
NonEmpty = Annotated[str, StringConstraints(min_length=1)]
UtcTime = Annotated[str, Field(json_schema_extra={"format": "date-time"})]  # as it was written


class Wire(BaseModel):
    """Types are exact, and unknown fields are rejected: a misspelt option must not be ignored."""

    model_config = ConfigDict(extra="forbid", strict=True)


class TokenUsage(BaseModel):
    prompt_tokens: int
    cached_tokens: int
    cache_write_tokens: int
    completion_tokens: int
    reasoning_tokens: int
    total_tokens: int


class ErrorFields(BaseModel):
    """`type` exists only on openai/*. There, errors of the model service are returned unchanged. The other fields exist
    only if a budget refuses the call: `limit` (usd_per_day or usd_per_month) and amounts of the caller's own budget,
    `resets_at` of any. A session's budget has neither `limit` nor `resets_at`."""

    model_config = ConfigDict(extra="allow")

    code: str | None
    message: str
    param: str | None = None
    type: str | None = None
    limit: str | None = None
    limit_usd: Decimal | None = None
    spent_usd: Decimal | None = None
    held_usd: Decimal | None = None
    resets_at: UtcTime | None = None


class ErrorAnswer(BaseModel):
    error: ErrorFields
