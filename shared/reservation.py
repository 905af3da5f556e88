"""Taking a session for one turn: read its past, recover what a dead process left, check the post against both, reserve.

Whatever is refused is refused here, before anything is spent.
"""

import math
import secrets
import uuid
from collections.abc import Mapping
from dataclasses import dataclass, field, replace
from datetime import UTC, datetime, timedelta
from typing import Any

from shared import rows
from shared.conversation import Call, Message, Session, Turn
from shared.errors import Changed, InvalidRequest, MessageTooLarge, SessionBusy, SessionNotFound
from shared.lease import Held, lease_for
from shared.ports import Removals, Sessions
from shared.pricing import Prices, worst_case
from shared.recovery import Recovery, find
from shared.window import Past, Window

GRACE = timedelta(seconds=60)  # after a turn's time is up, for settling it
_PROMPT_OPTIONS = ("tools", "tool_choice", "response_format")  # what the service counts as part of the prompt
_ATTEMPTS = 3  # at finding a session free, where a recovery or removal had to be finished first


@dataclass(frozen=True, slots=True, kw_only=True)
class Rules:
    """What holds for every turn. Tokens and seconds."""

    deployment: str
    deployments: frozenset[str]
    system_prompt: str
    context_tokens: int
    max_tokens: int
    largest_answer: int
    turn_timeout: float


@dataclass(frozen=True, slots=True, kw_only=True)
class Post:
    """One request for a turn, its form already checked. `messages`: one user's message, or tool results."""

    messages: tuple[Message, ...]
    session_id: str | None = None
    system: str | None = None
    deployment: str | None = None
    max_tokens: int | None = None
    options: Mapping[str, Any] = field(default_factory=dict)
    caller: str | None = None


@dataclass(slots=True)
class Reserved:
    """A session that is held for one turn, and what that turn will send."""

    post: Post
    held: Held
    past: Past
    window: Window
    max_tokens: int


class Reservations:
    def __init__(
        self, rules: Rules, *, sessions: Sessions, prices: Prices, recovery: Recovery, removals: Removals
    ) -> None:
        self._rules = rules
        self._sessions = sessions
        self._prices = prices
        self._recovery = recovery
        self._removals = removals

    async def reserve(self, post: Post) -> Reserved:
        """Raises InvalidRequest, MessageTooLarge, SessionNotFound, SessionBusy or StorageUnavailable."""
        self._check(post)
        session, turns = await self._free_session(post)
        attached = {name: post.options[name] for name in _PROMPT_OPTIONS if name in post.options}
        past = Past.of(session, turns, post.messages, attached)
        max_tokens = post.max_tokens or self._rules.max_tokens
        window = past.window(self._rules.context_tokens - max_tokens)
        call = self.new_call(post.deployment or session.deployment, window, max_tokens)
        turn = Turn(
            number=session.turns + 1,
            started=datetime.now(UTC),
            calls=(call,),
            messages=post.messages,
            window_start=window.first,
        )
        if not rows.fits(turn, max_tokens):
            raise MessageTooLarge("The message, with room for its answer, is more than one turn can hold.")
        session = replace(session, turns=turn.number, window_start=window.first, lease=lease_for(call))
        held = Held(self._sessions, *await self._commit(session, turn))
        return Reserved(post, held, past, window, max_tokens)

    def new_call(self, deployment: str, window: Window, max_tokens: int) -> Call:
        """A fresh call, open, with the worst that it can cost."""
        now = datetime.now(UTC)
        rates = self._prices.rates(deployment, prompt_tokens=window.bound)
        return Call(
            id=uuid.uuid4().hex,
            day=now.date(),
            deadline=now + timedelta(seconds=self._rules.turn_timeout) + GRACE,
            deployment=deployment,
            worst_case=worst_case(window.bound, max_tokens, rates) if rates else None,
        )

    def _check(self, post: Post) -> None:
        rules = self._rules
        if post.deployment is not None and post.deployment not in rules.deployments:
            raise InvalidRequest(
                f"There is no deployment {post.deployment!r}. Choose one of: {', '.join(sorted(rules.deployments))}.",
                param="deployment",
            )
        if post.max_tokens is not None and post.max_tokens > rules.largest_answer:
            raise InvalidRequest(f"max_tokens may be at most {rules.largest_answer}.", param="max_tokens")

    async def _free_session(self, post: Post) -> tuple[Session, list[Turn]]:
        """The session, free to be taken, and its latest turns; a new one where there is none."""
        session_id = post.session_id or secrets.token_hex(16)
        for _ in range(_ATTEMPTS):
            session, turns = await self._sessions.read(session_id)
            if session is None:
                return self._new_session(session_id, post), []
            if not session.open_to(post.caller):
                raise SessionNotFound
            if session.removal:
                await self._removals.finish(session)
            elif session.lease is None:
                return self._known(session, post), turns
            elif session.busy(now := datetime.now(UTC)):
                raise SessionBusy(math.ceil((session.lease.until - now).total_seconds()))
            else:
                await self._recovery.free(session)
        raise SessionBusy

    def _new_session(self, session_id: str, post: Post) -> Session:
        now = datetime.now(UTC)
        return Session(
            id=session_id,
            created=now,
            updated=now,
            owner=post.caller,
            system=self._rules.system_prompt if post.system is None else post.system,
            deployment=post.deployment or self._rules.deployment,
        )

    def _known(self, session: Session, post: Post) -> Session:
        if post.system not in (None, session.system):
            raise InvalidRequest("system is set by a session's first turn and stays as it is.", param="system")
        if session.deployment not in self._rules.deployments:
            return replace(session, deployment=self._rules.deployment)
        return session

    async def _commit(self, session: Session, turn: Turn) -> tuple[Session, Turn]:
        try:
            return await self._sessions.commit(session, turn)
        except Changed:  # somebody was quicker, or it is committed and only the answer was lost: whose call holds it?
            stored, reserved = await find(self._sessions, session.id, turn.number)
            if stored and reserved and stored.lease and stored.lease.call == turn.call.id:
                return stored, reserved
            raise SessionBusy from None
