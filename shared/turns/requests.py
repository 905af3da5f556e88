"""The two kinds of request: this app composes the prompt, or it forwards the caller's body.

Each plans its model call: the body, an upper bound on its tokens, and what it adds to the session.
"""

from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field
from datetime import timedelta
from typing import Any, Protocol

from shared.domain.conversation import Message, Session, Turn
from shared.domain.limits import Limits
from shared.domain.principal import Principal
from shared.domain.window import History, Window
from shared.errors import InvalidRequest
from shared.turns.ports import Dialect, Plan

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


class Request(Protocol):
    """A validated request for a turn. `messages`: the new messages, a user's message or tool results. `fingerprint`:
    SHA-256 of its content, compared when the Idempotency-Key is used again."""

    @property
    def principal(self) -> Principal: ...
    @property
    def messages(self) -> tuple[Message, ...]: ...
    @property
    def session_id(self) -> str | None: ...
    @property
    def system(self) -> str | None: ...
    @property
    def deployment(self) -> str | None: ...
    @property
    def expires_in(self) -> timedelta | None: ...
    @property
    def idempotency_key(self) -> str | None: ...
    @property
    def fingerprint(self) -> str: ...

    def check(self, limits: TurnLimits) -> None:
        """Raises InvalidRequest for errors that do not depend on the session."""

    def plan(self, session: Session, turns: Sequence[Turn], limits: TurnLimits) -> Plan:
        """Plan the call for this request; `turns` are the session's latest ones, newest first. Raises InvalidRequest or
        ContextTooLong."""


@dataclass(frozen=True, slots=True, kw_only=True)
class ComposedRequest:
    """A request with a composed prompt: the system prompt, as much of the session's history as fits, and the new
    messages. `options` come from the caller and apply only to this turn."""

    principal: Principal
    dialect: Dialect
    messages: tuple[Message, ...]
    session_id: str | None = None
    system: str | None = None
    deployment: str | None = None
    max_tokens: int | None = None
    options: Mapping[str, Any] = field(default_factory=dict)
    expires_in: timedelta | None = None  # of a session that it starts
    idempotency_key: str | None = None
    fingerprint: str = ""

    def check(self, limits: TurnLimits) -> None:
        if self.deployment is not None and self.deployment not in limits.deployments:
            raise InvalidRequest(
                f"There is no deployment {self.deployment!r}. Choose one of: {', '.join(sorted(limits.deployments))}.",
                param="deployment",
            )
        longest = limits.maximum_for(self.principal)
        if self.max_tokens is not None and self.max_tokens > longest:
            raise InvalidRequest(f"max_tokens may be at most {longest}.", param="max_tokens")

    def plan(self, session: Session, turns: Sequence[Turn], limits: TurnLimits) -> Plan:
        if self.expires_in and session.expires != session.created + self.expires_in:
            message = "expires_in_seconds is set by a session's first turn and can't be changed later."
            raise InvalidRequest(message, param="expires_in_seconds")
        if self.system not in (None, session.system):
            raise InvalidRequest("system is set by a session's first turn and can't be changed later.", param="system")
        attached = {name: self.options[name] for name in _PROMPT_OPTIONS if name in self.options}
        history = History.of(session, turns, self.messages, attached, self.deployment or session.deployment)
        max_tokens = self.max_tokens or min(limits.max_tokens, limits.maximum_for(self.principal))
        return self._plan(history, history.window(limits.context_tokens - max_tokens), max_tokens)

    def _plan(self, history: History, window: Window, max_tokens: int) -> Plan:
        def shortened(limit: int | None) -> Plan | None:
            shorter = history.halved(window)
            if shorter and limit and limit > max_tokens:
                shorter = max(shorter, history.window(limit - max_tokens), key=lambda each: each.first)
            return self._plan(history, shorter, max_tokens) if shorter else None

        body = self.dialect.compose(window.messages, max_tokens=max_tokens, options=self.options)
        return Plan(
            deployment=history.deployment,
            dialect=self.dialect,
            body=body,
            forwarded=False,
            added=frozenset(body) - frozenset(self.options),
            prompt_bound=window.bound,
            max_tokens=max_tokens,
            requested_max_tokens=max_tokens,
            stored_answer_tokens=max_tokens,
            window_start=window.first,
            past_tokens=window.past_tokens,
            shortened=shortened,
        )


@dataclass(frozen=True, slots=True, kw_only=True)
class ForwardedRequest:
    """A request with the caller's own body; model/options.py lists what may change in it. `max_tokens`: the total of
    all choices, or the largest possible total; `requested_max_tokens`: the maximum in the body, if there is one;
    `added`: the fields of the body that this app added. A session stores only what the request adds to it."""

    principal: Principal
    dialect: Dialect
    body: Mapping[str, Any]
    deployment: str
    max_tokens: int
    requested_max_tokens: int | None = None
    added: frozenset[str] = frozenset()
    messages: tuple[Message, ...] = ()
    session_id: str | None = None
    system: str | None = None
    expires_in: timedelta | None = None
    idempotency_key: str | None = None
    fingerprint: str = ""

    def check(self, limits: TurnLimits) -> None:
        """Check nothing: the model service validates the body."""

    def plan(self, session: Session, turns: Sequence[Turn], limits: TurnLimits) -> Plan:
        # An answer above the default maximum may not fit into the turn's row; it is then truncated.
        return self._plan(stored_answer_tokens=limits.max_tokens, window_start=session.window_start)

    def plan_without_session(self) -> Plan:
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
