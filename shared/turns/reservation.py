"""Reserves a session for one turn: reads its history, recovers an interrupted call, checks the request, reserves.

Invalid requests and busy sessions are refused here, before anything is spent.
"""

import math
import secrets
import uuid
from collections.abc import Sequence
from contextlib import suppress
from dataclasses import dataclass, replace
from datetime import timedelta

from shared.domain.calls import Call
from shared.domain.clock import Clock
from shared.domain.conversation import IdempotencyRecord, Session, Turn
from shared.domain.limits import minute_of
from shared.domain.pricing import Prices, worst_case
from shared.domain.principal import Principal
from shared.errors import SessionBusy, SessionNotFound, StorageUnavailable, VersionConflict
from shared.turns.admission import Admission
from shared.turns.idempotency import answered_turn, check_first_key, check_same_request, new_record
from shared.turns.lease import LeasedTurn, ReservedTurn, SessionlessTurn, lease_for
from shared.turns.ports import Deletions, Plan, Retention, Sessions
from shared.turns.recovery import Recovery, read_turn
from shared.turns.requests import ForwardedRequest, Request, TurnLimits

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
        retention: Retention,
        recovery: Recovery,
        prices: Prices,
        admission: Admission,
        clock: Clock,
    ) -> None:
        self._limits = limits
        self._sessions = sessions
        self._deletions = deletions
        self._retention = retention
        self._recovery = recovery
        self._prices = prices
        self._admission = admission
        self._clock = clock

    async def reserve(self, request: Request) -> LeasedTurn | Replay:
        """Raises InvalidRequest, MessageTooLarge, SessionNotFound, SessionBusy, IdempotencyMismatch or
        StorageUnavailable."""
        request.check(self._limits)
        if request.session_id is None:
            session_id, planned_new = await self._begin_session(request)
        else:
            session_id, planned_new = request.session_id, None
        for _ in range(MAX_ATTEMPTS):
            record = await self._idempotency_record(request, session_id)
            session, turns = await self._sessions.read(session_id)
            if session is None:
                planned_new = planned_new or self._planned(request, self._new_session(request, session_id), [])
                return await self._commit(request, planned_new, record)
            if not session.visible_to(request.principal.name):
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
                planned = self._planned(request, self._with_deployment(session), turns)
                return await self._commit(request, planned, record)
            if session.busy(now := self._clock.now()):
                raise SessionBusy(math.ceil((session.lease.until - now).total_seconds()))
            await self._recovery.free(session)
        raise SessionBusy

    async def leave(self, turn: ReservedTurn) -> None:
        """Undo what a turn has written outside its session, which was erased while it began."""
        if isinstance(turn, LeasedTurn):
            with suppress(StorageUnavailable):
                await self._retention.remove(turn.session)

    async def without_session(self, request: ForwardedRequest) -> SessionlessTurn:
        plan = request.plan_without_session()
        call = self.new_call(request.principal, plan)
        self._admission.check(request.principal, call)
        self._admission.check_room(request.principal, call)
        return SessionlessTurn(call, plan)

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

    async def _begin_session(self, request: Request) -> tuple[str, _Planned]:
        """The ID of the session that the request starts, or started earlier with the same Idempotency-Key, and the
        planned first turn. Planning comes before storing the key: a refused request must not use up its key."""
        session_id = secrets.token_hex(16)
        planned = self._planned(request, self._new_session(request, session_id), [])
        record = new_record(request)
        if record is None:
            self._admission.check_room(request.principal, planned.turn.call)
            return session_id, planned
        check_first_key(request)
        session_id, stored = await self._sessions.first_session(record, session_id)
        check_same_request(record, stored)
        session = replace(planned.session, id=session_id, first_key=record.key)
        return session_id, replace(planned, session=session)

    def _planned(self, request: Request, session: Session, turns: Sequence[Turn]) -> _Planned:
        plan = request.plan(session, turns, self._limits)
        session = replace(session, reference=session.reference or secrets.token_hex(16))
        call, now = self.new_call(request.principal, plan, reference=session.reference), self._clock.now()
        self._admission.check(request.principal, call, session)
        turn = Turn(
            number=session.turns + 1,
            started=now,
            calls=(call,),
            messages=request.messages,
            window_start=plan.window_start,
            past_tokens=plan.past_tokens,
        )
        self._sessions.check_size(session, turn, plan.stored_answer_tokens)
        return _Planned(replace(session, turns=turn.number, lease=lease_for(call, now)), turn, plan)

    async def _idempotency_record(self, request: Request, session_id: str) -> IdempotencyRecord | None:
        """The record of the request's key in this session, stored or new; None if it has no key."""
        record = new_record(request)
        if record is None:
            return None
        stored = await self._sessions.idempotency_record(session_id, record.key) or record
        check_same_request(record, stored)
        return stored

    def _new_session(self, request: Request, session_id: str) -> Session:
        now = self._clock.now()
        return Session(
            id=session_id,
            created=now,
            updated=now,
            owner=request.principal.name,
            system=self._limits.system_prompt if request.system is None else request.system,
            deployment=request.deployment or self._limits.deployment,
            expires=now + request.expires_in if request.expires_in else None,
        )

    def _with_deployment(self, session: Session) -> Session:
        """The session, with the default deployment if its own is no longer configured."""
        if session.deployment not in self._limits.deployments:
            return replace(session, deployment=self._limits.deployment)
        return session

    async def _commit(self, request: Request, planned: _Planned, record: IdempotencyRecord | None) -> LeasedTurn:
        turn = planned.turn
        self._admission.check_room(request.principal, turn.call)  # not before: a stored answer is given without room
        session = await self._retention.prepare(planned.session)
        if record:
            record = replace(record, turns=(*record.turns, turn.number))
        try:
            session, turn = await self._sessions.commit(session, turn, record)
        except (VersionConflict, StorageUnavailable) as error:
            # Either another turn was faster, or this one was committed and the response lost: the lease decides.
            stored, stored_turn = await read_turn(self._sessions, session.id, turn.number)
            if stored is None or stored_turn is None or not stored.leased_to(turn.call):
                if isinstance(error, VersionConflict):
                    raise SessionBusy from None
                raise
            session, turn = stored, stored_turn
        session = await self._retention.enter(session)
        return LeasedTurn(self._sessions, self._clock, self._admission.limits, session, turn, planned.plan)


def call_lifetime(turn_timeout: float) -> timedelta:
    """How long a call may still write after its reservation. `turn_timeout`: seconds."""
    return timedelta(seconds=turn_timeout) + SETTLE_GRACE
