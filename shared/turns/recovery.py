"""Recovery of calls after their process died, by the session's next turn or by the maintenance timer.

Implements the recovery rules of docs/protocol.py. A call without a ledger row is fenced first: recovery inserts the row
as abandoned, so a stalled process can no longer spend. A call with a row may have been billed, so it becomes
unaccounted, unless its process settles it after all.
"""

from dataclasses import replace

from shared.domain.calls import Call, LedgerEntry, State
from shared.domain.clock import Clock
from shared.domain.conversation import Session, Turn, raise_call
from shared.errors import VersionConflict
from shared.turns.ports import CallLog, Ledger, Sessions

_INTERRUPTED = "interrupted"  # its process died


class Recovery:
    def __init__(self, sessions: Sessions, ledger: Ledger, call_log: CallLog, clock: Clock) -> None:
        self._sessions = sessions
        self._ledger = ledger
        self._call_log = call_log
        self._clock = clock

    async def free(self, session: Session) -> None:
        """Recover the call that holds the expired lease; this frees the session."""
        turn = await self._sessions.turn(session.id, session.turns)
        call = turn and session.lease and turn.find(session.lease.call)
        if call:
            await self.recover(session.id, session.turns, call)

    async def recover(self, session_id: str, number: int, call: Call) -> None:
        """Raise a call of a session to abandoned, or reconcile it. Raises StorageUnavailable."""
        entry = await self._ledger.find(call, session_id, number)
        if entry is None:
            entry = await self._fence(session_id, number, call)
        if entry.call.state is State.ABANDONED:
            await self._raise(session_id, number, replace(call, state=State.ABANDONED))
        else:
            # During an update, 0.2.0 may have taken the reference in the key for the id, and dropped both columns.
            entry = replace(entry, session_id=session_id, call=replace(entry.call, reference=call.reference))
            await self.reconcile(entry)

    async def reconcile(self, entry: LedgerEntry) -> None:
        """Raise a call in its ledger row and its session to the higher of the two states."""
        now = self._clock.now()
        unaccounted = replace(entry.call, state=State.UNACCOUNTED, reason=entry.call.reason or _INTERRUPTED)
        session = await self._sessions.head(entry.session_id) if entry.session_id else None
        if session and session.busy(now) and session.leased_to(entry.call):
            return
        call = await self._raise(entry.session_id, entry.turn, unaccounted) if entry.session_id else None
        if call is None:  # no session contains it: erased, or a call without a session
            if now <= entry.call.deadline:
                return
            call = unaccounted
            if entry.session_id and entry.call.reference:
                await self._ledger.forget_session(entry.call, entry.session_id, entry.turn, entry.call.reference)
                entry = replace(entry, session_id=None)
        if await self._ledger.raise_call(entry, call) and call.reason == _INTERRUPTED:  # else its process logged it
            self._call_log.recovered(entry, call)

    async def _fence(self, session_id: str, number: int, call: Call) -> LedgerEntry:
        """Insert the call's row as abandoned, unless its process was faster."""
        abandoned = replace(call, state=State.ABANDONED)
        fence = LedgerEntry(call=abandoned, session_id=session_id, turn=number, caller=None)
        try:
            fence = await self._ledger.fence(fence)
        except VersionConflict:
            return await self._ledger.find(call, session_id, number) or fence
        self._call_log.recovered(fence, fence.call)
        return fence

    async def _raise(self, session_id: str, number: int, call: Call) -> Call | None:
        """Raise the call in its session. Returns the stored call, or None if no session contains it."""
        while True:
            session, turn = await read_turn(self._sessions, session_id, number)
            if session is None or turn is None or (stored := turn.find(call.id)) is None:
                return None
            raised = raise_call(session, turn, call)
            if raised is None:
                return stored
            try:
                await self._sessions.commit(*raised)
            except VersionConflict:
                continue
            return call


async def read_turn(sessions: Sessions, session_id: str, number: int) -> tuple[Session | None, Turn | None]:
    """A session's head and one of its turns, with the versions that guard a later write."""
    return await sessions.head(session_id), await sessions.turn(session_id, number)
