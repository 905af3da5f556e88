"""api/sessions."""

from datetime import datetime
from decimal import Decimal
from typing import Annotated, Any, Literal

from pydantic import AfterValidator, BaseModel, Field, StringConstraints, field_validator, model_validator

from shared.domain.conversation import Kind
from shared.domain.listing import clean
from shared.web.contract.chat import SessionTotals
from shared.web.contract.fields import MAX_TITLE_CHARS, TokenUsage, Wire

MAX_BRANCHES = 100  # in a session's answer


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
