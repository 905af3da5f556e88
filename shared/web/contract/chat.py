"""api/chat."""

from decimal import Decimal
from hashlib import sha256
from typing import Annotated, Any, Literal

import orjson
from pydantic import BaseModel, ConfigDict, Field, StringConstraints, model_validator

from shared.domain.calls import ReasoningEffort
from shared.domain.conversation import Parent
from shared.web.contract.fields import MAX_TURN_NUMBER, NonEmpty, SessionId, TokenUsage, UtcTime, Wire
from shared.web.contract.limits import RemainingAnswer

IMAGE_URL = r"^(https?://|data:image/)"
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


class BranchFrom(Wire):
    session_id: SessionId
    turn: Annotated[int, Field(ge=1, le=MAX_TURN_NUMBER)]


def _only(*names: str) -> dict[str, Any]:
    return {"required": [*names], "properties": {name: {"not": {"type": "null"}} for name in names}}


class ChatRequest(Wire):
    """One turn: a message, or the results of the tool calls in the last answer. `on_disconnect`: whether a streamed
    turn finishes or stops if its client disconnects. `branch_from`: begin a session, a branch, that continues a turn of
    another one. `expires_in_seconds`, on a session's first turn: a temporary session, which is erased after that
    time."""

    model_config = ConfigDict(
        json_schema_extra={
            "oneOf": [_only("message"), _only("tool_results")],
            "not": _only("session_id", "branch_from"),
        }
    )

    message: NonEmpty | Annotated[list[Part], Field(min_length=1)] | None = None
    tool_results: Annotated[list[ToolResult], Field(min_length=1)] | None = None
    session_id: SessionId | None = None
    branch_from: BranchFrom | None = None
    system: str | None = None
    deployment: str | None = None
    on_disconnect: Literal["finish", "stop"] = "finish"
    expires_in_seconds: Annotated[int, Field(ge=60, le=366 * 86_400)] | None = None
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
        if self.session_id is not None and self.branch_from is not None:
            raise ValueError("Give either session_id or branch_from: the server makes the ID of a branch")
        return self

    def messages(self) -> tuple[dict[str, Any], ...]:
        """The new messages of the conversation."""
        if self.tool_results is not None:
            return tuple({"role": "tool", **result.model_dump()} for result in self.tool_results)
        if isinstance(self.message, str):
            return ({"role": "user", "content": self.message},)
        return ({"role": "user", "content": [part.model_dump(exclude_none=True) for part in self.message or ()]},)

    def parent(self) -> Parent | None:
        """The turn that the request's session begins after."""
        branch = self.branch_from
        return Parent(session_id=branch.session_id, turn=branch.turn) if branch else None

    def fingerprint(self) -> str:
        """SHA-256 of the request without session_id and stream, which a retry may change."""
        compared = self.model_dump(exclude={"session_id", "stream", "on_disconnect"}, exclude_none=True)
        return sha256(orjson.dumps(compared, option=orjson.OPT_SORT_KEYS)).hexdigest()

    def options(self) -> dict[str, Any]:
        """Options that are passed to the model unchanged, for this turn only."""
        return self.model_dump(include=set(OPTIONS), exclude_none=True)


class SessionTotals(BaseModel):
    """`unaccounted_usd`: an upper bound; null if a price is not known. `stopped_at_least_usd` and
    `stopped_at_most_usd`: the bounds of what the stopped calls cost, apart from `cost_usd`; the upper one is null if a
    price is not known."""

    turns: int
    total_tokens: int
    cost_usd: Decimal
    unpriced_turns: int
    unaccounted_calls: int
    unaccounted_usd: Decimal | None
    stopped_calls: int
    stopped_at_least_usd: Decimal
    stopped_at_most_usd: Decimal | None


class ChatAnswer(BaseModel):
    """A turn's answer. `cost_usd` is null if the model's price is not known, or the turn was stopped and its usage is
    not known: then it has the bounds `stopped_at_least_usd` and `stopped_at_most_usd`. `finish_reason` is `stopped` if
    the turn was stopped. `truncated`: what is missing in the stored turn, which was too large: `logprobs` or fields of
    the message; `answer` if it was not recorded (0.2.0 and earlier)."""

    session_id: str
    turn: int
    message: dict[str, Any]
    finish_reason: str | None
    deployment: str
    model: str | None
    usage: TokenUsage | None
    cost_usd: Decimal | None
    stopped_at_least_usd: Decimal | None = None
    stopped_at_most_usd: Decimal | None = None  # null if the price is not known
    session: SessionTotals
    content_filter: dict[str, Any] | None = None
    logprobs: dict[str, Any] | None = None
    truncated: list[str] | None = None
    notice: str | None = None  # for people: why the answer is empty, or of another deployment
    requested_deployment: str | None = None  # if the caller's fallback_deployment has answered in its place
    limits: list[RemainingAnswer] | None = None  # the caller's budgets of which 80 % or more is used


class StartEvent(BaseModel):
    """The session is reserved for this turn. Later errors are sent as an event."""

    session_id: str
    turn: int
    deployment: str


class DeltaEvent(BaseModel):
    """A delta of the answer, in OpenAI's format."""

    content: str | None = None
    refusal: str | None = None
    tool_calls: list[dict[str, Any]] | None = None


class ErrorEvent(BaseModel):
    """The turn failed. `status`: the HTTP status of the same error without streaming; `retry_after`: seconds. A
    `budget_exceeded` has the fields of the budget too, as in ErrorFields."""

    model_config = ConfigDict(extra="allow")

    code: str
    message: str
    param: str | None
    status: int
    retry_after: int | None
    limit: str | None = None
    limit_usd: Decimal | None = None
    spent_usd: Decimal | None = None
    held_usd: Decimal | None = None
    resets_at: UtcTime | None = None
