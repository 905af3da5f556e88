"""Admits calls: checks the caller's limits, and opens calls in the ledger. Nothing may be spent before a call's row is
acknowledged."""

import uuid
from collections.abc import Callable
from contextlib import suppress
from dataclasses import replace
from typing import NoReturn

from shared.domain.calls import ZERO, Call, LedgerEntry, State
from shared.domain.clock import Clock
from shared.domain.conversation import Session, TurnResult
from shared.domain.limits import Budget, Counter, Limit, Limits, RateStatus
from shared.domain.principal import Principal
from shared.domain.refusals import check_possible, check_session
from shared.errors import ChatError, SessionBusy, StorageUnavailable, VersionConflict
from shared.turns.lease import ReservedTurn, persist
from shared.turns.ports import LaterDay, Ledger
from shared.turns.requests import AnyRequest

_LATER_DAY = "later_day"  # reason of a call that is replaced by one of a later day


class Admission:
    def __init__(self, ledger: Ledger, limits: Limits, clock: Clock) -> None:
        self._ledger = ledger
        self.limits = limits
        self._clock = clock

    def limits_of(self, principal: Principal) -> tuple[Limit, ...]:
        """The limits that the caller's calls count against."""
        return self.limits.counted(principal)

    def check(self, principal: Principal, call: Call, session: Session | None = None) -> None:
        """Raises the refusal of a call that the limits never admit, or the session's budget."""
        check_possible(self.limits.counted(principal), call)
        if session:
            check_session(self.limits, session.totals, call)

    async def prefers_fallback(self, principal: Principal, call: Call) -> bool:
        """True while a budget of the caller's own is nearly used, or has no room for the call. Goes by a recent
        counter: by an old one, `open` would refuse the chosen deployment until the budget's reset, although the
        fallback has room. Raises StorageUnavailable."""
        own = self.limits.own(principal)
        if own is None or call.minute is None:
            return False
        counter = await self._ledger.recent_counter(own.name, call.day)
        budgets = counter.at(call.minute).budgets(own)
        return any(budget.nearly_used or not budget.has_room(call.worst_case or ZERO) for budget in budgets)

    def check_room(self, principal: Principal, call: Call) -> None:
        """Raises the refusal of a call that can't be opened now, as far as it is known before anything is written."""
        if error := self._ledger.known_refusal(self.limits.counted(principal), call):
            raise error

    async def open(
        self,
        request: AnyRequest,
        turn: ReservedTurn,
        *,
        replaces: tuple[LedgerEntry, Call] | None = None,
        on_failure: Callable[[ChatError], None],
    ) -> LedgerEntry:
        """Open the turn's call, or mark it as failed in the session, and in the ledger if storage failed, and raise the
        error. If storage failed, call `on_failure` first: nothing was spent, so the caller need not wait."""
        limits, row, failure = self.limits.counted(request.principal), None, StorageUnavailable()
        while True:
            new = LedgerEntry(
                call=turn.call, session_id=turn.session_id, turn=turn.number, caller=request.principal.name
            )
            try:
                if self._clock.now() < turn.call.deadline:
                    row = await self._ledger.open(new, limits, replaces=replaces)
            except LaterDay as later:
                replaces = None  # raised already
                if error := await self._move(turn, later):
                    await self._refuse(request, turn, error)
                continue
            except VersionConflict:
                pass
            except StorageUnavailable as error:
                failure = error
            except ChatError as refusal:
                await self._refuse(request, turn, refusal)
            break
        if row is None:
            with suppress(StorageUnavailable):  # the row may exist: ours after a lost response, or a fence
                row = await self._ledger.find(turn.call, turn.session_id, turn.number)
        if row and row.call.state is State.OPEN and self._clock.now() < turn.call.deadline:
            return row
        on_failure(failure)
        failed = await self._fail(request, turn, failure)
        if row or self._clock.now() < failed.deadline:  # no row is inserted after the deadline
            await persist(failed, lambda: self._ledger.raise_call(row or new, failed), self._clock)
        raise failure

    def budgets(self, principal: Principal, entry: LedgerEntry, call: Call) -> tuple[Budget, ...]:
        """The caller's own budgets of which most is used, with the entry's call in its new state."""
        own, counter = self.limits.own(principal), self._own_counter(principal, entry)
        if own is None or counter is None or entry.minute is None:
            return ()
        budgets = counter.raised(entry.call, call, entry.minute).budgets(own)
        return tuple(budget for budget in budgets if budget.nearly_used)

    def rates(self, principal: Principal, entry: LedgerEntry) -> RateStatus | None:
        """What is left of the caller's own limits per minute; None if there are none."""
        own, counter = self.limits.own(principal), self._own_counter(principal, entry)
        return counter.rates(own, self._clock.now()) if own and counter else None

    def _own_counter(self, principal: Principal, entry: LedgerEntry) -> Counter | None:
        own = self.limits.own(principal)
        counted = own is not None and own.name in entry.limits
        return self._ledger.known_counter(own.name, entry.call.day) if own and counted else None

    async def _move(self, turn: ReservedTurn, later: LaterDay) -> ChatError | None:
        """Replace the turn's call by one of the later day, because a row lies where its session looks for it. Returns
        why this is not possible: the turn has lost its session, or storage can't be reached."""
        call, minute = turn.call, later.minute
        moved = replace(call, id=uuid.uuid4().hex, day=minute.date(), minute=minute)
        try:
            replaced = await turn.replace_call(replace(call, state=State.FAILED, reason=_LATER_DAY), moved)
        except StorageUnavailable as error:
            return error
        return None if replaced else SessionBusy()

    async def _refuse(self, request: AnyRequest, turn: ReservedTurn, error: ChatError) -> NoReturn:
        """Fail the call, which has no row: this frees its session. Then raise the error."""
        await self._fail(request, turn, error)
        raise error

    async def _fail(self, request: AnyRequest, turn: ReservedTurn, error: ChatError) -> Call:
        failed, finished = replace(turn.call, state=State.FAILED, reason=error.code), self._clock.now()
        await turn.settle(failed, TurnResult(messages=request.messages, finish_reason="error", finished=finished))
        return failed
