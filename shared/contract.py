"""The wire of api/*: what requests and answers look like. Validation and the published contract both come from here."""

from datetime import datetime
from decimal import Decimal
from hashlib import sha256
from typing import Annotated, Any, Literal

import orjson
from pydantic import BaseModel, ConfigDict, Field, StringConstraints, model_validator

SessionId = Annotated[str, StringConstraints(pattern=r"^[A-Za-z0-9][A-Za-z0-9._-]{0,63}\z")]
NonEmpty = Annotated[str, StringConstraints(min_length=1)]


class Wire(BaseModel):
    """Types are exact and unknown fields are refused: a misspelt option must not be ignored."""

    model_config = ConfigDict(extra="forbid", strict=True)


class TextPart(Wire):
    type: Literal["text"]
    text: NonEmpty


class ImageUrl(Wire):
    url: Annotated[str, StringConstraints(pattern=r"^(https?://|data:image/)")]
    detail: Literal["auto", "low", "high"] | None = None


class ImagePart(Wire):
    type: Literal["image_url"]
    image_url: ImageUrl


Part = Annotated[TextPart | ImagePart, Field(discriminator="type")]


class ToolResult(Wire):
    tool_call_id: NonEmpty
    content: str


class ChatRequest(Wire):
    """One turn: a message, or the results of the tools that the last answer called."""

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
    reasoning_effort: Literal["none", "minimal", "low", "medium", "high", "xhigh"] | None = None

    @model_validator(mode="after")
    def _one_of(self) -> "ChatRequest":
        if (self.message is None) == (self.tool_results is None):
            raise ValueError("give either message or tool_results")
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
    turns: int
    total_tokens: int
    cost_usd: Decimal
    unpriced_turns: int
    unaccounted_calls: int
    unaccounted_usd: Decimal


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
