"""What becomes of a call whose process is gone: `recover()`, by the session's next turn or by the timer.

Rule by rule as the protocol's specification has it: without a ledger row the call is fenced off first, so that a
stalled process can't spend any more; with one it may have been billed, so it is unaccounted until somebody settles it.
"""

from dataclasses import replace
from datetime import UTC, datetime

from shared.conversation import Call, Entry, Session, State, Turn, raised
from shared.errors import Changed
from shared.ports import Journal, Ledger, Sessions

_INTERRUPTED = "interrupted"  # its process is gone, and told nobody


class Recovery:
    def __init__(self, sessions: Sessions, ledger: Ledger, journal: Journal) -> None:
        self._sessions = sessions
        self._ledger = ledger
        self._journal = journal

    async def free(self, session: Session) -> None:
        """Account for the call whose lease is over, which frees the session."""
        turn = await self._sessions.turn(session.id, session.turns)
        call = turn and session.lease and turn.find(session.lease.call)
        if call:
            await self.recover(session.id, session.turns, call)

    async def recover(self, session_id: str, number: int, call: Call) -> None:
        """Bring a call of a session to a state that accounts for it. Raises StorageUnavailable."""
        entry = await self._ledger.find(call, session_id, number)
        if entry is None:
            entry = await self._fence(session_id, number, call)
        if entry.call.state is State.ABANDONED:
            await self._raise(session_id, number, replace(call, state=State.ABANDONED))
        else:
            await self.reconcile(entry)

    async def reconcile(self, entry: Entry) -> None:
        """Raise what a ledger row and its session say of a call to the higher of the two."""
        now = datetime.now(UTC)
        doubtful = replace(entry.call, state=State.UNACCOUNTED, reason=entry.call.reason or _INTERRUPTED)
        session = await self._sessions.head(entry.session_id) if entry.session_id else None
        if session and session.busy(now) and session.holds(entry.call):
            return
        known = await self._raise(entry.session_id, entry.turn, doubtful) if entry.session_id else None
        if known is None:  # no session holds it: erased, or it never had one
            if now <= entry.call.deadline:
                return
            known = doubtful
        if await self._ledger.settle(entry, known) and known.reason == _INTERRUPTED:  # else its process has told of it
            self._journal.recovered(entry, known)

    async def _fence(self, session_id: str, number: int, call: Call) -> Entry:
        """Take the call's place in the ledger, unless its process was quicker."""
        fence = Entry(call=replace(call, state=State.ABANDONED), session_id=session_id, turn=number, caller=None)
        try:
            inserted = await self._ledger.insert(fence)
        except Changed:
            return await self._ledger.find(call, session_id, number) or fence
        self._journal.recovered(inserted, inserted.call)
        return inserted

    async def _raise(self, session_id: str, number: int, call: Call) -> Call | None:
        """Raise the call in its session; returns it as the session has it then, None where no session holds it."""
        while True:
            session, turn = await find(self._sessions, session_id, number)
            if session is None or turn is None or (known := turn.find(call.id)) is None:
                return None
            after = raised(session, turn, call)
            if after is None:
                return known
            try:
                await self._sessions.commit(*after)
            except Changed:
                continue
            return call


async def find(sessions: Sessions, session_id: str, number: int) -> tuple[Session | None, Turn | None]:
    """A session's head and one of its turns, as they stand. Their versions guard whoever writes them back."""
    return await sessions.head(session_id), await sessions.turn(session_id, number)
