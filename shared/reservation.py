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
from shared.conversation import Call, Message, Session, State, Turn, Used, digest
from shared.errors import (
    Changed,
    IdempotencyMismatch,
    InvalidRequest,
    MessageTooLarge,
    SessionBusy,
    SessionNotFound,
    StorageUnavailable,
)
from shared.lease import Held, Unheld, lease_for
from shared.ports import Removals, Sessions
from shared.pricing import Prices, worst_case
from shared.recovery import Recovery, find
from shared.window import Past, Window, bound

GRACE = timedelta(seconds=60)  # after a turn's time is up, for settling it
_PROMPT_OPTIONS = ("tools", "tool_choice", "response_format")  # what the service counts as part of the prompt
_SHORTEST_KEY = 22  # characters: 128 random bits in base64
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
    """One request for a turn, its form already checked. `messages`: what it adds to the conversation, a user's message
    or tool results. `body`: a request that goes as it is, but for its model; then that is all the model is told."""

    messages: tuple[Message, ...]
    body: Mapping[str, Any] | None = None
    session_id: str | None = None
    system: str | None = None
    deployment: str | None = None
    max_tokens: int | None = None  # of the answer; where there is a body, of all its choices together
    options: Mapping[str, Any] = field(default_factory=dict)
    caller: str | None = None
    key: str | None = None  # the Idempotency-Key
    fingerprint: str = ""  # SHA-256 of what is asked, by which a key's second use is compared


@dataclass(frozen=True, slots=True)
class Replay:
    """The post's Idempotency-Key was answered before, by this turn."""

    session: Session
    turn: Turn


@dataclass(slots=True)
class Reserved:
    """A session that is held for one turn, and what that turn will send."""

    post: Post
    held: Held | Unheld
    past: Past | None  # None where the post brings its own prompt
    window: Window
    max_tokens: int

    @property
    def body(self) -> Mapping[str, Any]:
        """What the model is asked, but for the model's name."""
        if self.post.body is not None:
            return self.post.body
        return {
            "messages": self.window.messages,
            "max_completion_tokens": self.max_tokens,
            "stream": True,
            "stream_options": {"include_usage": True},
            **self.post.options,
        }


class Reservations:
    def __init__(
        self, rules: Rules, *, sessions: Sessions, prices: Prices, recovery: Recovery, removals: Removals
    ) -> None:
        self._rules = rules
        self._sessions = sessions
        self._prices = prices
        self._recovery = recovery
        self._removals = removals

    async def reserve(self, post: Post) -> Reserved | Replay:
        """Raises InvalidRequest, MessageTooLarge, SessionNotFound, SessionBusy, IdempotencyMismatch or
        StorageUnavailable."""
        self._check(post)
        if post.session_id is None:  # what is refused must not use up the key that leads to its session
            self._planned(post, self._new_session("", None, post), [])
        session_id, first_key = await self._session_id(post)
        for _ in range(_ATTEMPTS):
            used = await self._used(session_id, post)
            session, turns = await self._sessions.read(session_id)
            if session is None:
                return await self._take(post, self._new_session(session_id, first_key, post), [], used)
            if not session.open_to(post.caller):
                raise SessionNotFound
            if session.removal:
                await self._removals.finish(session)
                continue
            if used and (answered := await self._answered(session, used)):
                if not answered.messages or (session.lease and answered.find(session.lease.call)):
                    continue  # it was cleared, or settled, after the head was read: the next one knows
                return Replay(session, answered)
            if session.lease is None:
                return await self._take(post, self._known(session, post), turns, used)
            if session.busy(now := datetime.now(UTC)):
                raise SessionBusy(math.ceil((session.lease.until - now).total_seconds()))
            await self._recovery.free(session)
        raise SessionBusy

    async def without_session(self, post: Post) -> Reserved:
        """A call that belongs to no session. The post has a body, a deployment and a maximum."""
        body, deployment, max_tokens = post.body or {}, post.deployment or "", post.max_tokens or 0
        window = _own_window(body, 0)
        return Reserved(post, Unheld(self.new_call(deployment, window, max_tokens)), None, window, max_tokens)

    async def _take(self, post: Post, session: Session, turns: list[Turn], used: Used | None) -> Reserved:
        reserved, held = self._planned(post, session, turns)
        held.session, held.turn = await self._commit(held.session, held.turn, used)
        return reserved

    def _planned(self, post: Post, session: Session, turns: list[Turn]) -> tuple[Reserved, Held]:
        """The session as it is once it is reserved, and what its turn will send. Raises InvalidRequest and
        MessageTooLarge."""
        deployment = post.deployment or session.deployment
        max_tokens = post.max_tokens or self._rules.max_tokens
        past, room = None, self._rules.max_tokens  # a body's answer may be larger than a row: it is cut when it is kept
        if post.body is None:
            attached = {name: post.options[name] for name in _PROMPT_OPTIONS if name in post.options}
            past, room = Past.of(session, turns, post.messages, attached, deployment), max_tokens
            window = past.window(self._rules.context_tokens - max_tokens)
        else:
            window = _own_window(post.body, session.window_start)
        call = self.new_call(deployment, window, max_tokens)
        turn = Turn(
            number=session.turns + 1,
            started=datetime.now(UTC),
            calls=(call,),
            messages=post.messages,
            window_start=window.first,
            past_tokens=window.past_tokens,
        )
        if not rows.fits(turn, room):
            raise MessageTooLarge("The message, with room for its answer, is more than one turn can hold.")
        held = Held(self._sessions, replace(session, turns=turn.number, lease=lease_for(call)), turn)
        return Reserved(post, held, past, window, max_tokens), held

    def new_call(self, deployment: str, window: Window, max_tokens: int) -> Call:
        """A fresh call, open, with the worst that it can cost."""
        now = datetime.now(UTC)
        rates = self._prices.rates(deployment, prompt_tokens=window.bound)
        return Call(
            id=uuid.uuid4().hex,
            day=now.date(),
            deadline=now + lifetime(self._rules.turn_timeout),
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
        if post.body is None and post.max_tokens is not None and post.max_tokens > rules.largest_answer:
            raise InvalidRequest(f"max_tokens may be at most {rules.largest_answer}.", param="max_tokens")

    async def _session_id(self, post: Post) -> tuple[str, str | None]:
        """The session's id, and where the pointer to it is kept if a first post's key made it."""
        if post.session_id:
            return post.session_id, None
        session_id = secrets.token_hex(16)
        if post.key is None:
            return session_id, None
        if post.caller is None and len(post.key) < _SHORTEST_KEY:
            raise InvalidRequest(
                f"Without a session_id the Idempotency-Key is the only secret that leads to the session: use at least"
                f" {_SHORTEST_KEY} random characters, such as a UUID.",
                param="Idempotency-Key",
            )
        asked = _used_by(post, post.key)
        session_id, stored = await self._sessions.first(asked, session_id)
        _check_same(asked, stored)
        return session_id, rows.pointer_partition(asked.key)

    async def _used(self, session_id: str, post: Post) -> Used | None:
        """The post's Idempotency-Key as the session knows it; None where there is no key."""
        if post.key is None:
            return None
        asked = _used_by(post, post.key)
        stored = await self._sessions.used(session_id, asked.key) or asked
        _check_same(asked, stored)
        return stored

    async def _answered(self, session: Session, used: Used) -> Turn | None:
        """The turn that answered this key; one that failed or can't be accounted for may be tried again."""
        turn = await self._sessions.turn(session.id, used.turn) if used.turn else None
        return turn if turn and turn.call.state is State.SETTLED else None

    def _new_session(self, session_id: str, first_key: str | None, post: Post) -> Session:
        now, system = datetime.now(UTC), self._rules.system_prompt if post.system is None else post.system
        if not rows.fits_head(system):
            raise MessageTooLarge("The system prompt is more than a session can hold.")
        return Session(
            id=session_id,
            created=now,
            updated=now,
            owner=post.caller,
            system=system,
            deployment=post.deployment or self._rules.deployment,
            first_key=first_key,
        )

    def _known(self, session: Session, post: Post) -> Session:
        if post.body is None and post.system not in (None, session.system):
            raise InvalidRequest("system is set by a session's first turn and stays as it is.", param="system")
        if session.deployment not in self._rules.deployments:
            return replace(session, deployment=self._rules.deployment)
        return session

    async def _commit(self, session: Session, turn: Turn, used: Used | None) -> tuple[Session, Turn]:
        if used:
            used = replace(used, turn=turn.number)
        try:
            return await self._sessions.commit(session, turn, used)
        except (Changed, StorageUnavailable) as error:
            # Somebody was quicker, or it is committed and only the answer was lost: whose call holds it?
            stored, reserved = await find(self._sessions, session.id, turn.number)
            if stored and reserved and stored.holds(turn.call):
                return stored, reserved
            if isinstance(error, Changed):
                raise SessionBusy from None
            raise


def _own_window(body: Mapping[str, Any], first: int) -> Window:
    """The prompt that a post brings itself."""
    rest = {name: value for name, value in body.items() if name != "messages"}
    messages = tuple(body["messages"])
    return Window(messages, first, bound(messages, rest), None)


def lifetime(turn_timeout: float) -> timedelta:
    """How long after its reservation a call may still write."""
    return timedelta(seconds=turn_timeout) + GRACE


def _used_by(post: Post, key: str) -> Used:
    """Keys are per caller. A line break can't be in either, so no two pairs meet in one hash."""
    return Used(key=digest(f"{post.caller or ''}\n{key}"), request=post.fingerprint)


def _check_same(asked: Used, stored: Used) -> None:
    if asked.request != stored.request:
        raise IdempotencyMismatch(
            "This Idempotency-Key was used with another request. Use a new key for a new request.",
            param="Idempotency-Key",
        )
