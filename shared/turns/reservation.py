"""Reserves a session for one turn: reads its history, recovers an interrupted call, checks the request, reserves.

Invalid requests and busy sessions are refused here, before anything is spent.
"""

import math
import secrets
import uuid
from collections.abc import Sequence
from contextlib import suppress
from dataclasses import dataclass, replace
from datetime import datetime, timedelta

from shared.domain.calls import Call
from shared.domain.clock import Clock
from shared.domain.conversation import ADDED, IdempotencyRecord, Kind, Parent, Session, Turn
from shared.domain.limits import minute_of
from shared.domain.listing import titled
from shared.domain.pricing import Prices, worst_case
from shared.domain.principal import Principal
from shared.errors import (
    ParentNotFound,
    SessionBusy,
    SessionNotFound,
    StillRunning,
    StorageUnavailable,
    VersionConflict,
)
from shared.turns.admission import Admission
from shared.turns.idempotency import answered_turn, check_first_key, check_same_request, new_record
from shared.turns.lease import LeasedTurn, ReservedTurn, SessionlessTurn, lease_for
from shared.turns.ports import MAX_PAST_TURNS, Deletions, Indexes, Plan, Sessions
from shared.turns.recovery import Recovery, read_turn
from shared.turns.requests import AnyRequest, Request, TurnLimits, UnstoredRequest

SETTLE_GRACE = timedelta(seconds=60)  # after a turn's timeout, for settling it
MAX_ATTEMPTS = 3  # to find the session free; each may first finish a recovery or a deletion


@dataclass(frozen=True, slots=True)
class Replay:
    """The turn that already answered the request's Idempotency-Key."""

    session: Session
    turn: Turn


@dataclass(frozen=True, slots=True)
class _Planned:
    """The session as reserved, its new turn, and the call to make."""

    session: Session
    turn: Turn
    plan: Plan


class Reservations:
    def __init__(
        self,
        limits: TurnLimits,
        *,
        sessions: Sessions,
        deletions: Deletions,
        indexes: Indexes,
        recovery: Recovery,
        prices: Prices,
        admission: Admission,
        clock: Clock,
    ) -> None:
        self._limits = limits
        self._sessions = sessions
        self._deletions = deletions
        self._indexes = indexes
        self._recovery = recovery
        self._prices = prices
        self._admission = admission
        self._clock = clock

    async def reserve(self, request: Request) -> LeasedTurn | Replay:
        """Raises InvalidRequest, MessageTooLarge, SessionNotFound, ParentNotFound, SessionBusy, StillRunning,
        IdempotencyMismatch or StorageUnavailable."""
        request.check(self._limits)
        if request.parent:
            return await self._continue(request, request.parent)
        if request.session_id is not None:
            return await self._reserve(request, request.session_id)
        session_id = secrets.token_hex(16)
        planned = await self._planned(request, self._new_session(request, session_id), [])
        return await self._reserve_new(request, session_id, planned)

    async def _continue(self, request: Request, parent: Parent) -> LeasedTurn | Replay:
        """Continue a turn: in its own session if it is the latest turn there and the request is `in_place`, else in a
        branch. docs/branch_protocol.py specifies this: once a turn is not the latest, it never is again, so requests
        with the same Idempotency-Key agree on the session."""
        for _ in range(MAX_ATTEMPTS):
            session, turns = await self._read_parent(request, parent, inherited=not request.in_place)
            record = await self._idempotency_record(request, session.id) if request.in_place else None
            if record:  # read after the head: a turn that made another one the latest has stored its record with it
                answered, record = await answered_turn(self._sessions, session, record)
                if answered and (current := await self._sessions.head(session.id)):
                    return Replay(current, answered)
                if record.turns and session.busy(now := self._clock.now()) and session.turns in record.turns:
                    raise SessionBusy(_seconds(session, now))
            is_latest = session.turns == parent.turn and session.kind is Kind.RESPONSES
            if not request.in_place or not is_latest:
                break
            if session.lease is None:  # else the head was read before the end of the turn, whose row has an answer
                planned = await self._planned(request, self._with_deployment(session), turns)
                with suppress(SessionBusy):  # another request was faster
                    return await self._commit(request, planned, record)
        else:
            raise SessionBusy
        return await self._reserve_branch(request, session, turns)

    async def _reserve_branch(self, request: Request, parent: Session, turns: list[Turn]) -> LeasedTurn | Replay:
        """`turns`: those that the branch continues, newest first."""
        session_id, number = secrets.token_hex(16), turns[0].number
        branch = replace(
            self._new_session(request, session_id, parent),
            parent=Parent(session_id=parent.id, turn=number),
            parent_created=parent.created,
            turns=number,
            window_start=min(parent.window_start, turns[0].window_start),
            cleared_through=min(parent.cleared_through, number),
        )
        return await self._reserve_new(request, session_id, await self._planned(request, branch, turns))

    async def _reserve_new(self, request: Request, session_id: str, planned: _Planned) -> LeasedTurn | Replay:
        """Reserve the session that the request begins, or began earlier with the same Idempotency-Key. The key is
        stored only now that the request is planned: a refused request must not use it up."""
        record = new_record(request)
        if record is None:
            self._admission.check_room(request.principal, planned.turn.call)
            return await self._reserve(request, session_id, planned)
        check_first_key(request)
        session_id, stored = await self._sessions.first_session(record, session_id)
        check_same_request(record, stored)
        session = replace(planned.session, id=session_id, first_key=record.key)
        return await self._reserve(request, session_id, replace(planned, session=session))

    async def _reserve(
        self, request: Request, session_id: str, planned_new: _Planned | None = None
    ) -> LeasedTurn | Replay:
        """Reserve a session. `planned_new`: its first turn, if it is to begin with it."""
        for _ in range(MAX_ATTEMPTS):
            record = await self._idempotency_record(request, session_id)
            session, turns = await self._sessions.read(session_id, whole=request.whole)
            if session is None:
                planned_new = planned_new or await self._planned(request, self._new_session(request, session_id), [])
                return await self._commit(request, planned_new, record)
            if not session.visible_to(request.principal.name) or not (planned_new or request.admits(session)):
                raise SessionNotFound
            if session.expired(self._clock.now()) and not session.deletion:
                await self._deletions.begin(session, erase=True)
                continue
            if session.deletion:
                await self._deletions.finish(session)
                continue
            if record:
                answered, record = await answered_turn(self._sessions, session, record)
                if answered and (current := await self._sessions.head(session_id)):
                    return Replay(current, answered)
            if session.lease is None:
                planned = await self._planned(request, self._with_deployment(session), turns)
                return await self._commit(request, planned, record)
            if session.busy(now := self._clock.now()):
                raise SessionBusy(_seconds(session, now))
            await self._recovery.free(session)
        raise SessionBusy

    async def _read_parent(
        self, request: AnyRequest, parent: Parent, *, inherited: bool = False
    ) -> tuple[Session, list[Turn]]:
        """The session with the turn to continue, and its turns up to that one, newest first. `inherited`: the named
        session may be a branch, and the turn one from before the branch. Raises ParentNotFound or StillRunning."""
        session, turns = await self._sessions.read(parent.session_id, through=parent.turn, whole=request.whole)
        if session is None or session.deletion or session.expired(self._clock.now()):
            raise ParentNotFound
        if not session.visible_to(request.principal.name) or not request.admits(session):
            raise ParentNotFound
        first_own = session.parent.turn + 1 if session.parent else 1
        if inherited and parent.turn < first_own:
            return await self._read_parent(request, await self._origin(session, parent.turn))
        if not turns or turns[0].number != parent.turn or parent.turn < first_own:
            raise ParentNotFound
        if turns[0].finished is None and session.busy(now := self._clock.now()) and session.turns == parent.turn:
            raise StillRunning(_seconds(session, now))
        if not turns[0].messages or not (turns[0].answered or turns[0].finish_reason == ADDED):
            raise ParentNotFound
        return session, turns

    async def _origin(self, session: Session, number: int) -> Parent:
        """Where the turn with this number is: in the session, or in one of those that it continues. Raises
        ParentNotFound."""
        for _ in range(MAX_PAST_TURNS):
            if number <= session.cleared_through:
                break
            if session.parent is None or number > session.parent.turn:
                return Parent(session_id=session.id, turn=number)
            ancestor = await self._sessions.head(session.parent.session_id)
            if ancestor is None or not session.continues(ancestor):
                break
            session = ancestor
        raise ParentNotFound

    async def leave(self, turn: ReservedTurn) -> None:
        """Undo what a turn has written outside its session, which was erased while it began."""
        if isinstance(turn, LeasedTurn):
            await self._remove(turn.session)
            with suppress(StorageUnavailable):
                await self._sessions.leave_branch(turn.session)

    async def _remove(self, session: Session) -> None:
        with suppress(StorageUnavailable):
            await self._indexes.remove(session)

    async def without_session(self, request: UnstoredRequest) -> SessionlessTurn:
        """Raises ParentNotFound, InvalidRequest and the refusals of limits."""
        session, turns = await self._read_parent(request, request.parent) if request.parent else (None, [])
        plan = request.plan_without_session(session, turns, self._limits)
        call = self.new_call(request.principal, plan)
        if request.fallback and await self._admission.prefers_fallback(request.principal, call):
            plan = request.fallback.plan_without_session(session, turns, self._limits).fallback_for(plan)
            call = self.new_call(request.principal, plan)
        self._admission.check(request.principal, call)
        self._admission.check_room(request.principal, call)
        started = self._clock.now()
        turn = Turn(number=0, started=started, calls=(call,), messages=request.messages, input=request.input)
        return SessionlessTurn(turn, plan)

    def new_call(self, principal: Principal, plan: Plan, *, reference: str | None = None, step: int = 0) -> Call:
        """An open call for the plan, with its worst case in USD and tokens. The time is read once: a limited call's
        day, month and minute go together."""
        now = self._clock.now()
        rates = self._prices.highest_rates(plan.deployment, prompt_tokens=plan.prompt_bound)
        audio = plan.dialect.has_audio(plan.body)
        return Call(
            id=uuid.uuid4().hex,
            day=now.date(),
            deadline=now + call_lifetime(self._limits.turn_timeout),
            deployment=plan.deployment,
            worst_case=worst_case(plan.prompt_bound, plan.max_tokens, rates, audio=audio) if rates else None,
            max_tokens=plan.prompt_bound + plan.max_tokens,
            minute=minute_of(now) if self._admission.limits_of(principal) else None,
            reference=reference,
            step=step,
        )

    async def _planned(self, request: Request, session: Session, turns: Sequence[Turn]) -> _Planned:
        plan = request.plan(session, turns, self._limits)
        session = replace(session, reference=session.reference or secrets.token_hex(16))
        if session.kind is not Kind.CHAT:  # each of its requests names a model: others continue with the latest
            session = replace(session, deployment=plan.deployment)
        call, now = self.new_call(request.principal, plan, reference=session.reference), self._clock.now()
        if request.fallback and await self._admission.prefers_fallback(request.principal, call):
            plan = request.fallback.plan(session, turns, self._limits).fallback_for(plan)
            call = self.new_call(request.principal, plan, reference=session.reference)
        self._admission.check(request.principal, call, session)
        turn = Turn(
            number=session.turns + 1,
            started=now,
            calls=(call,),
            messages=request.messages,
            input=request.input,
            window_start=plan.window_start,
            past_tokens=plan.past_tokens,
        )
        self._sessions.check_size(session, turn, plan.stored_answer_tokens, request.view)
        session = replace(session, turns=turn.number, lease=lease_for(call, now))
        return _Planned(titled(session, turn.messages), turn, plan)

    async def _idempotency_record(self, request: Request, session_id: str) -> IdempotencyRecord | None:
        """The record of the request's key in this session, stored or new; None if it has no key."""
        record = new_record(request)
        if record is None:
            return None
        stored = await self._sessions.idempotency_record(session_id, record.key) or record
        check_same_request(record, stored)
        return stored

    def _new_session(self, request: Request, session_id: str, parent: Session | None = None) -> Session:
        return request.new_session(session_id, self._clock.now(), self._limits, parent)

    def _with_deployment(self, session: Session) -> Session:
        """The session, with the default deployment if its own is no longer configured."""
        if session.deployment not in self._limits.deployments:
            return replace(session, deployment=self._limits.deployment)
        return session

    async def _commit(self, request: Request, planned: _Planned, record: IdempotencyRecord | None) -> LeasedTurn:
        turn = planned.turn
        self._admission.check_room(request.principal, turn.call)  # not before: a stored answer is given without room
        session = await self._indexes.prepare(planned.session)
        if not session.etag and not await self._sessions.enter_branch(session):
            await self._remove(session)
            raise ParentNotFound
        if record:
            record = replace(record, turns=(*record.turns, turn.number))
        try:
            session, turn = await self._sessions.commit(session, turn, record, request.view)
        except (VersionConflict, StorageUnavailable) as error:
            # Either another turn was faster, or this one was committed and the response lost: the lease decides.
            stored, stored_turn = await read_turn(self._sessions, session.id, turn.number)
            if stored is None or stored_turn is None or not stored.leased_to(turn.call):
                if isinstance(error, VersionConflict):
                    if not planned.session.places:  # it was entered for this turn
                        await self._remove(session)
                    raise SessionBusy from None
                raise
            session, turn = stored, stored_turn
        session = await self._indexes.enter(session)
        return LeasedTurn(self._sessions, self._clock, self._admission.limits, session, turn, planned.plan)


def _seconds(session: Session, now: datetime) -> int:
    """Until the session's lease ends."""
    return math.ceil((session.lease.until - now).total_seconds()) if session.lease else 1


def call_lifetime(turn_timeout: float) -> timedelta:
    """How long a call may still write after its reservation. `turn_timeout`: seconds."""
    return timedelta(seconds=turn_timeout) + SETTLE_GRACE
