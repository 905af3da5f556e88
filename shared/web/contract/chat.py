"""api/chat and api/sessions."""

from datetime import datetime
from decimal import Decimal
from hashlib import sha256
from typing import Annotated, Any, Literal

import orjson
from pydantic import AfterValidator, BaseModel, ConfigDict, Field, StringConstraints, field_validator, model_validator

from shared.domain.calls import ReasoningEffort
from shared.domain.conversation import Kind, Parent
from shared.domain.listing import clean
from shared.web.contract.fields import MAX_TITLE_CHARS, MAX_TURN_NUMBER, NonEmpty, SessionId, TokenUsage, UtcTime, Wire
from shared.web.contract.limits import RemainingAnswer

IMAGE_URL = r"^(https?://|data:image/)"
MAX_BRANCHES = 100  # in a session's answer
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


class TurnAddress(BaseModel):
    session_id: str
    turn: int


def _one_line(title: str) -> str:
    if not (title := clean(title)):
        raise ValueError("should have a visible character")
    return title


class SessionUpdate(Wire):
    """What is given is changed."""

    title: Annotated[str, StringConstraints(max_length=MAX_TITLE_CHARS), AfterValidator(_one_line)] | None = None
    pinned: bool | None = None
    archived: bool | None = None

    @field_validator("title", "pinned", "archived", mode="before")
    @classmethod
    def _is_given(cls, value: object) -> object:
        if value is None:
            raise ValueError("should not be null")
        return value

    @model_validator(mode="after")
    def _changes_something(self) -> "SessionUpdate":
        if not self.model_fields_set:
            raise ValueError("Send title, pinned or archived")
        return self


class ListedSession(SessionTotals):
    """A session in its owner's list. `kind`: the API that began it. `title`: of the first message, until it is changed;
    null if that had no text, or was deleted. `updated`: the last use."""

    session_id: str
    kind: Kind
    title: str | None
    pinned: bool
    archived: bool
    created: datetime
    updated: datetime
    deployment: str
    busy: bool


class SessionListAnswer(BaseModel):
    """The caller's sessions: pinned ones first, then by the day of their last use, newest first. `next_after`: the
    value of `after` for the next page; null on the last one."""

    sessions: list[ListedSession]
    next_after: str | None


class SessionAnswer(ListedSession):
    """`reference`: the session's name in reports, emails and logs; null until the next turn of an old session.
    `parent`: the turn that a branch continues; null if the session is no branch. `branches`: the sessions that continue
    a turn of this one, and the number of that turn; at most 100, in the order of their IDs."""

    reference: str | None
    system: str
    usage: TokenUsage
    parent: TurnAddress | None
    branches: Annotated[list[TurnAddress], Field(max_length=MAX_BRANCHES)]


class StopAnswer(BaseModel):
    """`state`: `stopped`, `stopping` (another instance runs the turn, and stops it within 10 s) or `idle` (no turn was
    running)."""

    session_id: str
    turn: int
    state: Literal["stopped", "stopping", "idle"]


class ErasureAnswer(BaseModel):
    """An erasure of all sessions of the caller that existed when it was begun."""

    begun: datetime
    erased_sessions: int
    done: bool


class TurnAnswer(BaseModel):
    """A stored turn. `session_id`: the session that it is a turn of: a branch shows those that it continues too.
    `state`: `added` if it only adds items to a conversation, without a call; then `deployment` is the session's.
    `stopped_at_least_usd` and `stopped_at_most_usd`: as in ChatAnswer."""

    session_id: str
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
    stopped_at_least_usd: Decimal | None = None
    stopped_at_most_usd: Decimal | None = None


class ExportAnswer(BaseModel):
    """A whole conversation. `conversation`: its turns from the first on, without those that were cleared; of a branch
    with those that it continues."""

    session: SessionAnswer
    conversation: list[TurnAnswer]


class HistoryAnswer(BaseModel):
    """Turns, newest first; of a branch with those that it continues. `next_before`: the value of `before` for the next
    page; null on the last one."""

    session_id: str
    turns: list[TurnAnswer]
    next_before: int | None
