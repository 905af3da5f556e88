"""The kinds of request: this app composes the prompt (api/chat, openai/v1/responses), or it forwards the caller's body
(openai/v1/chat/completions).

Each plans its model call: the body, an upper bound on its tokens, and what it adds to the session.
"""

from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field, replace
from datetime import UTC, datetime, timedelta
from typing import Any, Protocol

from shared.domain.conversation import Item, Kind, Message, Parent, Session, Turn
from shared.domain.limits import Limits
from shared.domain.principal import Principal
from shared.domain.window import MAX_TURNS, History, Window, pending_calls
from shared.errors import MAX_SHOWN, ContextTooLong, InvalidRequest, ParentNotFound, SessionNotFound
from shared.turns.ports import MAX_PAST_TURNS, Dialect, Plan

_PROMPT_OPTIONS = ("tools", "tool_choice", "response_format")  # the service counts these as part of the prompt


@dataclass(frozen=True, slots=True, kw_only=True)
class TurnLimits:
    """Limits and defaults of every turn, in tokens and seconds."""

    deployment: str  # the default one
    deployments: frozenset[str]
    system_prompt: str
    context_tokens: int
    max_tokens: int  # of an answer, if the request sets no maximum
    max_answer_tokens: int  # the largest maximum that a request may set
    turn_timeout: float
    callers: Limits = field(default_factory=Limits)

    def maximum_for(self, principal: Principal) -> int:
        """The largest maximum that this caller may set."""
        return min(self.max_answer_tokens, self.callers.max_tokens(principal, session=True) or self.max_answer_tokens)


class AnyRequest(Protocol):
    """A validated request, with or without a session. `messages`: the new messages, a user's message or tool results.
    `input`: their items, if the turn keeps items. `parent`: the turn to continue. `whole`: no past turn may be left
    out."""

    @property
    def principal(self) -> Principal: ...
    @property
    def messages(self) -> tuple[Message, ...]: ...
    @property
    def input(self) -> tuple[Item, ...]: ...
    @property
    def parent(self) -> Parent | None: ...
    @property
    def whole(self) -> bool: ...

    def admits(self, session: Session) -> bool:
        """True if the request may be a turn of this session, or continue one."""


class Request(AnyRequest, Protocol):
    """A request for a turn of a session. `in_place`: continue the parent in its own session, if it is the latest turn
    there. `fallback`: the request for the deployment that answers while the caller's budget is nearly used. `view`:
    what the response repeats of the request. `fingerprint`: SHA-256 of its content, compared when the Idempotency-Key
    is used again."""

    @property
    def fallback(self) -> "Request | None": ...
    @property
    def session_id(self) -> str | None: ...
    @property
    def in_place(self) -> bool: ...
    @property
    def view(self) -> str | None: ...
    @property
    def idempotency_key(self) -> str | None: ...
    @property
    def fingerprint(self) -> str: ...

    def check(self, limits: TurnLimits) -> None:
        """Raises InvalidRequest for errors that do not depend on the session."""

    def new_session(self, session_id: str, now: datetime, limits: TurnLimits, parent: Session | None) -> Session:
        """The session that the request begins, before its first turn. Raises SessionNotFound if it begins none."""

    def plan(self, session: Session, turns: Sequence[Turn], limits: TurnLimits) -> Plan:
        """Plan the call for this request; `turns` are the session's latest ones, newest first. Raises InvalidRequest or
        ContextTooLong."""


class UnstoredRequest(AnyRequest, Protocol):
    """A request whose call is only in the ledger. `fallback`: as in Request."""

    @property
    def fallback(self) -> "UnstoredRequest | None": ...

    def plan_without_session(self, session: Session | None, turns: Sequence[Turn], limits: TurnLimits) -> Plan:
        """Plan the call. `session`, `turns`: of the parent, if there is one."""


@dataclass(frozen=True, slots=True, kw_only=True)
class _TurnRequest:
    """What requests of every kind have: see AnyRequest and Request. `expires_in`: of a session that it begins."""

    principal: Principal
    dialect: Dialect
    messages: tuple[Message, ...] = ()
    input: tuple[Item, ...] = ()
    session_id: str | None = None
    parent: Parent | None = None
    in_place: bool = False
    whole: bool = False
    view: str | None = None
    expires_in: timedelta | None = None
    idempotency_key: str | None = None
    fingerprint: str = ""
    fallback: Any = None  # of its own type

    def check(self, limits: TurnLimits) -> None:
        """Check nothing: the web layer or the model service does it, in the words of their API."""

    def admits(self, session: Session) -> bool:
        return True

    def _session(self, session_id: str, now: datetime, *, system: str, deployment: str) -> Session:
        expires = now + self.expires_in if self.expires_in else None
        owner = self.principal.name
        return Session(
            id=session_id, created=now, updated=now, owner=owner, system=system, deployment=deployment, expires=expires
        )


@dataclass(frozen=True, slots=True, kw_only=True)
class _PromptRequest(_TurnRequest):
    """A request whose prompt this app composes. `options` come from the caller and apply only to this turn."""

    options: Mapping[str, Any] = field(default_factory=dict)

    def _attached(self) -> Mapping[str, Any]:
        return {name: self.options[name] for name in _PROMPT_OPTIONS if name in self.options}

    def _plan(self, history: History, limits: TurnLimits, max_tokens: int, requested_max_tokens: int | None) -> Plan:
        """`max_tokens`: the most that the answer can have; `requested_max_tokens`: what the service is sent, if
        anything."""
        answer_tokens = min(max_tokens, limits.context_tokens // 2)

        def plan(window: Window) -> Plan:
            def shortened(limit: int | None) -> Plan | None:
                shorter = None if self.whole else history.halved(window)
                if shorter and limit and limit > answer_tokens:
                    shorter = max(shorter, history.window(limit - answer_tokens), key=lambda each: each.first)
                return plan(shorter) if shorter else None

            body = self.dialect.compose(window.messages, max_tokens=requested_max_tokens, options=self.options)
            return Plan(
                deployment=history.deployment,
                dialect=self.dialect,
                body=body,
                forwarded=False,
                added=frozenset(body) - frozenset(self.options),
                prompt_bound=window.bound,
                max_tokens=max_tokens,
                requested_max_tokens=requested_max_tokens,
                stored_answer_tokens=max_tokens,
                window_start=window.first,
                past_tokens=window.past_tokens,
                shortened=shortened,
            )

        return plan(history.whole() if self.whole else history.window(limits.context_tokens - answer_tokens))


@dataclass(frozen=True, slots=True, kw_only=True)
class ComposedRequest(_PromptRequest):
    """A request of api/chat. Its prompt: the system prompt, as much of the session's history as fits, and the new
    messages."""

    system: str | None = None
    deployment: str | None = None
    max_tokens: int | None = None

    def check(self, limits: TurnLimits) -> None:
        if self.deployment is not None and self.deployment not in limits.deployments:
            raise InvalidRequest(
                f"There is no deployment {self.deployment!r} for chat. Choose one of:"
                f" {', '.join(sorted(limits.deployments))}.",
                param="deployment",
            )
        longest = limits.maximum_for(self.principal)
        if self.max_tokens is not None and self.max_tokens > longest:
            raise InvalidRequest(f"max_tokens may be at most {longest}.", param="max_tokens")

    def new_session(self, session_id: str, now: datetime, limits: TurnLimits, parent: Session | None) -> Session:
        if parent:
            branch = self._session(
                session_id, now, system=parent.system, deployment=self.deployment or parent.deployment
            )
            return replace(branch, expires=branch.expires or parent.expires)
        system = limits.system_prompt if self.system is None else self.system
        return self._session(session_id, now, system=system, deployment=self.deployment or limits.deployment)

    def plan(self, session: Session, turns: Sequence[Turn], limits: TurnLimits) -> Plan:
        if self.expires_in and session.expires != session.created + self.expires_in:
            message = "expires_in_seconds is set by a session's first turn and can't be changed later."
            raise InvalidRequest(message, param="expires_in_seconds")
        if self.system not in (None, session.system):
            message = "system is set by a session's first turn, for its branches too, and can't be changed later."
            raise InvalidRequest(message, param="system")
        deployment = self.deployment or session.deployment
        history = History.of(session, turns, self.messages, self._attached(), deployment)
        max_tokens = self.max_tokens or min(limits.max_tokens, limits.maximum_for(self.principal))
        return self._plan(history, limits, max_tokens, max_tokens)


@dataclass(frozen=True, slots=True, kw_only=True)
class ForwardedRequest(_TurnRequest):
    """A request with the caller's own body; model/options.py lists what may change in it. `max_tokens`: the total of
    all choices, or the largest possible total; `requested_max_tokens`: the maximum in the body, if there is one;
    `added`: the fields of the body that this app added. A session stores only what the request adds to it."""

    body: Mapping[str, Any]
    deployment: str
    max_tokens: int
    requested_max_tokens: int | None = None
    added: frozenset[str] = frozenset()
    system: str | None = None

    def new_session(self, session_id: str, now: datetime, limits: TurnLimits, parent: Session | None) -> Session:
        system = limits.system_prompt if self.system is None else self.system
        return self._session(session_id, now, system=system, deployment=self.deployment)

    def plan(self, session: Session, turns: Sequence[Turn], limits: TurnLimits) -> Plan:
        # An answer above the default maximum may not fit into the turn's row; it is then truncated.
        return self._plan(stored_answer_tokens=limits.max_tokens, window_start=session.window_start)

    def plan_without_session(self, session: Session | None, turns: Sequence[Turn], limits: TurnLimits) -> Plan:
        return self._plan(stored_answer_tokens=0, window_start=0)

    def _plan(self, *, stored_answer_tokens: int, window_start: int) -> Plan:
        return Plan(
            deployment=self.deployment,
            dialect=self.dialect,
            body=self.body,
            forwarded=True,
            added=self.added,
            prompt_bound=self.dialect.prompt_bound(self.body),
            max_tokens=self.max_tokens,
            requested_max_tokens=self.requested_max_tokens,
            stored_answer_tokens=stored_answer_tokens,
            window_start=window_start,
        )


@dataclass(frozen=True, slots=True, kw_only=True)
class ResponseRequest(_PromptRequest):
    """A request of the Responses API, with a prompt made of items: `instructions`, which hold for this call alone, the
    turns that it continues, and the new input. `session_id`: of the conversation that it is a turn of."""

    deployment: str
    max_tokens: int
    requested_max_tokens: int | None = None
    instructions: str = ""

    def admits(self, session: Session) -> bool:
        return session.kind is not Kind.CHAT if self.parent else session.kind is Kind.CONVERSATION

    def new_session(self, session_id: str, now: datetime, limits: TurnLimits, parent: Session | None) -> Session:
        if session_id == self.session_id:
            raise SessionNotFound  # POST openai/v1/conversations begins conversations
        return replace(self._session(session_id, now, system="", deployment=self.deployment), kind=Kind.RESPONSES)

    def plan(self, session: Session, turns: Sequence[Turn], limits: TurnLimits) -> Plan:
        _check_past(session, turns, whole=self.whole)
        history = History.of(
            session, turns, self.messages, self._attached(), self.deployment, self.instructions, check=_check_outputs
        )
        plan = self._plan(history, limits, self.max_tokens, self.requested_max_tokens)
        return replace(plan, stored_answer_tokens=limits.max_tokens)  # a longer answer that does not fit is truncated

    def plan_without_session(self, session: Session | None, turns: Sequence[Turn], limits: TurnLimits) -> Plan:
        if session is None:
            session = self.new_session("", datetime.min.replace(tzinfo=UTC), limits, None)
        return replace(self.plan(session, turns, limits), stored_answer_tokens=0)


def _check_past(session: Session, turns: Sequence[Turn], *, whole: bool) -> None:
    """Raises ParentNotFound if a session that this one continues is gone, and ContextTooLong if `whole` and there are
    more than MAX_PAST_TURNS turns."""
    start = session.cleared_through + 1 if whole else max(session.window_start, session.cleared_through + 1)
    missing = bool(turns) and turns[-1].number > start
    if whole and missing and len(turns) >= MAX_PAST_TURNS:
        raise ContextTooLong(f"The conversation has more than {MAX_PAST_TURNS} turns. Set truncation to auto.")
    if missing and (whole or sum(turn.replayable for turn in turns) < MAX_TURNS):
        raise ParentNotFound


def _check_outputs(turns: Sequence[Turn], new: Sequence[Message]) -> None:
    """Raises InvalidRequest if there is a result without a call, or only some of the pending calls have one. `turns`:
    replayable ones, oldest first. Calls without any results are left out of the prompt, as are repeated results: the AI
    SDK sends those of earlier turns again."""
    messages = [*(message for turn in turns for message in turn.messages), *new]
    calls = {call["id"] for message in messages for call in message.get("tool_calls") or ()}
    pending, results = pending_calls(turns), [message["tool_call_id"] for message in new if message["role"] == "tool"]
    for result in results:
        if result not in calls:
            text = f"No tool call found for function call output with call_id {result[:MAX_SHOWN]}."
            raise InvalidRequest(text, param="input")
    for call in pending:
        if call not in results and set(pending) & set(results):
            raise InvalidRequest(f"No tool output found for function call {call[:MAX_SHOWN]}.", param="input")
