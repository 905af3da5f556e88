"""Opens a call in the ledger. Nothing may be spent before its row is acknowledged."""

from collections.abc import Callable
from contextlib import suppress
from dataclasses import replace

from shared.domain.calls import Call, LedgerEntry, State
from shared.domain.clock import Clock
from shared.domain.conversation import TurnResult
from shared.errors import ChatError, StorageUnavailable, VersionConflict
from shared.turns.lease import ReservedTurn, persist
from shared.turns.ports import Ledger
from shared.turns.requests import Request


class Admission:
    def __init__(self, ledger: Ledger, clock: Clock) -> None:
        self._ledger = ledger
        self._clock = clock

    async def open(
        self,
        request: Request,
        turn: ReservedTurn,
        *,
        replaces: tuple[LedgerEntry, Call] | None = None,
        on_refusal: Callable[[ChatError], None],
    ) -> LedgerEntry:
        """Open the turn's call. On refusal, call `on_refusal` first: nothing was spent, so the caller need not wait.
        Then mark the call as failed in the session and the ledger, and raise the error."""
        call = turn.call
        new = LedgerEntry(call=call, session_id=turn.session_id, turn=turn.number, caller=request.principal.name)
        row: LedgerEntry | None = None
        with suppress(VersionConflict, StorageUnavailable):
            if self._clock.now() < call.deadline:
                row = await self._ledger.open(request.principal, new, replaces=replaces)
        if row is None:
            with suppress(StorageUnavailable):  # the row may exist: ours after a lost response, or a fence
                row = await self._ledger.find(call, turn.session_id, turn.number)
        if row and row.call.state is State.OPEN and self._clock.now() < call.deadline:
            return row
        error = StorageUnavailable()
        on_refusal(error)
        failed = replace(call, state=State.FAILED, reason=error.code)
        finished = self._clock.now()
        await turn.settle(failed, TurnResult(messages=request.messages, finish_reason="error", finished=finished))
        if row or self._clock.now() < call.deadline:  # no row is inserted after the deadline
            await persist(failed, lambda: self._ledger.raise_call(row or new, failed), self._clock)
        raise error
