"""The wire: what requests and answers look like, of api/* whole and of openai/* as far as this app reads it. Validation
and the published contract both come from here.
"""

from datetime import date, datetime
from decimal import Decimal
from hashlib import sha256
from typing import Annotated, Any, Literal

import orjson
from pydantic import BaseModel, ConfigDict, Field, StringConstraints, model_validator

SESSION_ID = r"^[A-Za-z0-9][A-Za-z0-9._-]{0,63}$"  # pydantic's `$` is the very end, as ECMA-262's is
SESSION_ID_FORM = "1 to 64 letters, digits, dots, underscores or hyphens, and begin with a letter or digit"
IDEMPOTENCY_KEY = r"^[!-~]{1,255}$"
LONGEST_PAGE = 100  # turns of history
MOST_BEFORE = 10**9
IMAGE_URL = r"^(https?://|data:image/)"
SessionId = Annotated[str, StringConstraints(pattern=SESSION_ID)]
NonEmpty = Annotated[str, StringConstraints(min_length=1)]
INSTRUCTIONS = ("system", "developer")  # the roles of what is said about the conversation, not in it
ReasoningEffort = Literal["none", "minimal", "low", "medium", "high", "xhigh"]


class Wire(BaseModel):
    """Types are exact and unknown fields are refused: a misspelt option must not be ignored."""

    model_config = ConfigDict(extra="forbid", strict=True)


class TextPart(Wire):
    type: Literal["text"]
    text: NonEmpty


class ImageUrl(Wire):
    url: Annotated[str, StringConstraints(pattern=IMAGE_URL)]
    detail: Literal["auto", "low", "high"] | None = None


class ImagePart(Wire):
    type: Literal["image_url"]
    image_url: ImageUrl


Part = Annotated[TextPart | ImagePart, Field(discriminator="type")]


class ToolResult(Wire):
    tool_call_id: NonEmpty
    content: str


class ChatMessage(BaseModel):
    """A message of OpenAI's format, as far as this app reads it."""

    model_config = ConfigDict(extra="allow", strict=True)

    role: NonEmpty
    content: str | list[dict[str, Any]] | None = None
    tool_call_id: str | None = None


class StreamOptions(BaseModel):
    model_config = ConfigDict(extra="allow", strict=True)

    include_usage: bool | None = None


def _only(name: str) -> dict[str, Any]:
    return {"required": [name], "properties": {name: {"not": {"type": "null"}}}}


class ChatRequest(Wire):
    """One turn: a message, or the results of the tools that the last answer called."""

    model_config = ConfigDict(json_schema_extra={"oneOf": [_only("message"), _only("tool_results")]})

    message: NonEmpty | Annotated[list[Part], Field(min_length=1)] | None = None
    tool_results: Annotated[list[ToolResult], Field(min_length=1)] | None = None
    session_id: SessionId | None = None
    system: str | None = None
    deployment: str | None = None
    stream: bool = False
    max_tokens: Annotated[int, Field(ge=1)] | None = None
    temperature: Annotated[float, Field(ge=0, le=2)] | None = None
    top_p: Annotated[float, Field(ge=0, le=1)] | None = None
    stop: NonEmpty | Annotated[list[NonEmpty], Field(min_length=1, max_length=4)] | None = None
    seed: Annotated[int, Field(ge=-(2**63), lt=2**63)] | None = None
    response_format: dict[str, Any] | None = None
    tools: Annotated[list[dict[str, Any]], Field(min_length=1)] | None = None
    tool_choice: str | dict[str, Any] | None = None
    logprobs: bool | None = None
    top_logprobs: Annotated[int, Field(ge=0, le=20)] | None = None
    reasoning_effort: ReasoningEffort | None = None

    @model_validator(mode="after")
    def _one_of(self) -> "ChatRequest":
        if (self.message is None) == (self.tool_results is None):
            raise ValueError("Give either message or tool_results")
        return self

    def messages(self) -> tuple[dict[str, Any], ...]:
        """The request's part of the conversation, as chat messages."""
        if self.tool_results is not None:
            return tuple({"role": "tool", **result.model_dump()} for result in self.tool_results)
        if isinstance(self.message, str):
            return ({"role": "user", "content": self.message},)
        return ({"role": "user", "content": [part.model_dump(exclude_none=True) for part in self.message or ()]},)

    def fingerprint(self) -> str:
        """SHA-256 of what is asked: a retry may differ in where it goes (a session id it has learned) and in how it
        wants the answer sent."""
        asked = self.model_dump(exclude={"session_id", "stream"}, exclude_none=True)
        return sha256(orjson.dumps(asked, option=orjson.OPT_SORT_KEYS)).hexdigest()

    def options(self) -> dict[str, Any]:
        """What goes to the model as it is, for this turn alone."""
        return self.model_dump(include=set(OPTIONS), exclude_none=True)


class CompletionRequest(BaseModel):
    """A request of OpenAI's chat completions format, as far as this app reads it; all else is the model service's."""

    model_config = ConfigDict(extra="allow", strict=True)

    model: str | None = None
    messages: Annotated[list[ChatMessage], Field(min_length=1, max_length=2_048)]  # as many as OpenAI takes
    stream: bool | None = None
    stream_options: StreamOptions | None = None
    n: Annotated[int, Field(ge=1, le=128)] | None = None
    max_tokens: Annotated[int, Field(ge=1)] | None = None
    max_completion_tokens: Annotated[int, Field(ge=1)] | None = None

    def adds(self) -> tuple[dict[str, Any], ...]:
        """The messages after the last one of the assistant's, which is what a session has not heard yet."""
        said = [message.model_dump(exclude_unset=True) for message in self.messages]
        last = max((at for at, message in enumerate(said) if message["role"] == "assistant"), default=-1)
        return tuple(message for message in said[last + 1 :] if message["role"] not in INSTRUCTIONS)

    def system(self) -> str:
        """The first instructions, as text."""
        for message in self.messages:
            if message.role in INSTRUCTIONS:
                content = message.content or ""
                parts = content if isinstance(content, list) else [{"text": content}]
                return "\n".join(str(part.get("text") or "") for part in parts)
        return ""


OPTIONS = (
    "temperature",
    "top_p",
    "stop",
    "seed",
    "response_format",
    "tools",
    "tool_choice",
    "logprobs",
    "top_logprobs",
    "reasoning_effort",
)


class TokenUsage(BaseModel):
    prompt_tokens: int
    cached_tokens: int
    cache_write_tokens: int
    completion_tokens: int
    reasoning_tokens: int
    total_tokens: int


class SessionTotals(BaseModel):
    """`unaccounted_usd`: at most; null where that is not known, for want of a price."""

    turns: int
    total_tokens: int
    cost_usd: Decimal
    unpriced_turns: int
    unaccounted_calls: int
    unaccounted_usd: Decimal | None


class ModelCost(BaseModel):
    deployment: str
    model: str
    calls: int
    unpriced_turns: int
    prompt_tokens: int
    completion_tokens: int
    cost_usd: Decimal


class CallerCost(BaseModel):
    caller: str
    calls: int
    unpriced_turns: int
    prompt_tokens: int
    completion_tokens: int
    cost_usd: Decimal


class CostliestSession(BaseModel):
    session_id: str
    cost_usd: Decimal


class DayCostAnswer(BaseModel):
    date: date
    cost_usd: Decimal


class DayTotals(BaseModel):
    """One UTC day. Not final: its turns may still be running. A final day may have unaccounted calls."""

    date: date
    final: bool
    cost_usd: Decimal
    usage: TokenUsage
    turns: int
    calls: int
    sessions: int
    failed_calls: int
    unaccounted_calls: int
    unaccounted_usd: Decimal | None
    unpriced_turns: int


class AdjustmentAnswer(BaseModel):
    """An earlier day whose cost this day's mail corrected."""

    date: date
    difference_usd: Decimal
    cost_usd: Decimal


class DailyAnswer(DayTotals):
    cost_per_turn_usd: Decimal
    cache_hit_rate: float
    cache_saved_usd: Decimal
    by_model: list[ModelCost]
    by_caller: list[CallerCost]
    costliest_sessions: list[CostliestSession]
    previous_day_usd: Decimal
    week_average_usd: Decimal
    month_to_date_usd: Decimal
    adjustments: list[AdjustmentAnswer]
    history: list[DayCostAnswer]


class DaysAnswer(BaseModel):
    days: list[DayTotals]
    cost_usd: Decimal


class EmailAnswer(BaseModel):
    date: date
    sent_to: list[str]


class ChatAnswer(BaseModel):
    """A turn's answer. `cost_usd` is null where the model's price is not known."""

    session_id: str
    turn: int
    message: dict[str, Any]
    finish_reason: str | None
    deployment: str
    model: str | None
    usage: TokenUsage | None
    cost_usd: Decimal | None
    session: SessionTotals
    content_filter: dict[str, Any] | None = None
    logprobs: dict[str, Any] | None = None
    truncated: bool | None = None
    notice: str | None = None  # what a reader of the answer should know of it


class StartEvent(BaseModel):
    """The turn is reserved: errors from here on come as an event."""

    session_id: str
    turn: int
    deployment: str


class DeltaEvent(BaseModel):
    """A piece of the answer, in OpenAI's shape."""

    content: str | None = None
    refusal: str | None = None
    tool_calls: list[dict[str, Any]] | None = None


class ErrorEvent(BaseModel):
    """The turn failed. `status`: what it would have been before the stream began; `retry_after`: seconds."""

    code: str
    message: str
    param: str | None
    status: int
    retry_after: int | None


class AboutAnswer(BaseModel):
    """What the service tells of itself: the default deployment, all that may be chosen, and where it runs."""

    deployment: str
    deployments: list[str]
    region: str | None


class ErrorFields(BaseModel):
    """`type` is there on openai/* alone; there an error of the model service comes as it sent it."""

    model_config = ConfigDict(extra="allow")

    code: str | None
    message: str
    param: str | None = None
    type: str | None = None


class ErrorAnswer(BaseModel):
    error: ErrorFields


class HealthAnswer(BaseModel):
    status: Literal["ok"]


class ModelAnswer(BaseModel):
    id: str
    object: Literal["model"]
    created: int
    owned_by: str


class ModelsAnswer(BaseModel):
    object: Literal["list"]
    data: list[ModelAnswer]


class SessionAnswer(SessionTotals):
    session_id: str
    created: datetime
    updated: datetime
    system: str
    deployment: str
    busy: bool
    usage: TokenUsage


class TurnAnswer(BaseModel):
    turn: int
    state: str
    messages: list[dict[str, Any]]
    finish_reason: str | None
    started: datetime
    finished: datetime | None
    deployment: str
    model: str | None
    usage: TokenUsage | None
    cost_usd: Decimal | None


class HistoryAnswer(BaseModel):
    """Turns, newest first. `next_before` asks for the next page; null on the last one."""

    session_id: str
    turns: list[TurnAnswer]
    next_before: int | None
