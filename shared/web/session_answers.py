"""Sessions and their turns as response models of the contract."""

from collections.abc import Sequence
from datetime import datetime
from typing import Any

from shared.domain.conversation import ADDED, OwnerErasure, Session, Turn
from shared.domain.listing import SessionPage
from shared.web.answers import session_totals, stopped_bounds, token_usage
from shared.web.contract.sessions import (
    ErasureAnswer,
    HistoryAnswer,
    ListedSession,
    SessionAnswer,
    SessionListAnswer,
    TurnAddress,
    TurnAnswer,
)


def session_answer(session: Session, branches: Sequence[tuple[str, int]], now: datetime) -> SessionAnswer:
    """`branches`: the sessions that continue it, each with the number of the turn."""
    parent = session.parent
    return SessionAnswer(
        **_listed(session, now),
        reference=session.reference,
        system=session.system,
        usage=token_usage(session.totals.usage),
        parent=TurnAddress(session_id=parent.session_id, turn=parent.turn) if parent else None,
        branches=[TurnAddress(session_id=branch, turn=turn) for branch, turn in branches],
    )


def listed_session(session: Session, now: datetime) -> ListedSession:
    return ListedSession(**_listed(session, now))


def session_list_answer(page: SessionPage, now: datetime) -> SessionListAnswer:
    sessions = [listed_session(session, now) for session in page.sessions]
    return SessionListAnswer(sessions=sessions, next_after=page.next)


def erasure_answer(progress: OwnerErasure) -> ErasureAnswer:
    return ErasureAnswer(begun=progress.begun, erased_sessions=progress.erased, done=progress.done)


def history_answer(session: Session, turns: Sequence[tuple[Session, Turn]]) -> HistoryAnswer:
    """A page of history, of turns with their sessions. It is the last one if it contains the oldest turn that has not
    been cleared."""
    oldest = turns[-1][1].number if turns else 0
    return HistoryAnswer(
        session_id=session.id,
        turns=[turn_answer(each, turn) for each, turn in turns],
        next_before=oldest if oldest > session.cleared_through + 1 else None,
    )


def turn_answer(session: Session, turn: Turn) -> TurnAnswer:
    call = turn.call if turn.calls else None
    return TurnAnswer(
        session_id=session.id,
        turn=turn.number,
        state=call.state.value if call else ADDED,
        messages=[dict(message) for message in turn.messages],
        finish_reason=turn.finish_reason,
        started=turn.started,
        finished=turn.finished,
        deployment=call.deployment if call else session.deployment,
        model=call.model if call else None,
        usage=token_usage(turn.usage) if turn.usage else None,
        cost_usd=turn.cost,
        **stopped_bounds(turn),
    )


def _listed(session: Session, now: datetime) -> dict[str, Any]:
    return {
        "session_id": session.id,
        "kind": session.kind,
        "title": session.title,
        "pinned": session.pinned,
        "archived": session.archived,
        "created": session.created,
        "updated": session.updated,
        "deployment": session.deployment,
        "busy": session.busy(now),
        **session_totals(session),
    }
