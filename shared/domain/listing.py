"""A session in the list of its owner: its title and its place.

A list is read in the order of places: pinned sessions first, then by the day of the last use, newest first, and apart
from them archived ones. A place names the first use of that day, because only the first turn of a day moves a session.
"""

from collections.abc import Sequence
from dataclasses import dataclass, replace
from datetime import UTC, date, datetime

from shared.domain.conversation import Message, Session

PINNED, ARCHIVED = "!", "~"  # the first character of a place: before and after the digits of the others
PLACE = r"[!~]?[0-9]{10}"
MAX_MADE_TITLE_CHARS = 60  # of a title that is made from a message
_NEWEST_FIRST = 9_999_999_999


@dataclass(frozen=True, slots=True)
class SessionPage:
    """A part of a list. `next`: the row that the next part comes after; None: this is the last one."""

    sessions: tuple[Session, ...]
    next: str | None


def title_of(messages: Sequence[Message]) -> str | None:
    """The beginning of the first text that a user sent; None if there is none."""
    texts = (_text(message) for message in messages if message.get("role") == "user")
    text = next(filter(None, texts), None)
    if text is None or len(text) <= MAX_MADE_TITLE_CHARS:
        return text
    cut = text[: MAX_MADE_TITLE_CHARS - 1]
    words = cut.rpartition(" ")[0]
    return f"{words if len(words) > MAX_MADE_TITLE_CHARS / 2 else cut}…"


def titled(session: Session, messages: Sequence[Message]) -> Session:
    """The session, with a title from its latest turn's messages if it has none and these begin it."""
    if session.title is None and (begins(session) or not session.etag):
        return replace(session, title=title_of(messages))
    return session


def untitled(session: Session, number: int) -> Session:
    """The session without its title if that is of the turn with this number, whose content is deleted."""
    first = max(session.cleared_through, session.parent.turn if session.parent else 0) + 1
    return without_title(session) if number == first else session


def without_title(session: Session) -> Session:
    """The session without its title, and with its row in the list to be written again."""
    return rewritten(replace(session, title=None)) if session.title is not None else session


def listed(session: Session) -> bool:
    """True if its owner's list has it. A temporary session is in no list."""
    return session.owner is not None and session.expires is None


def begins(session: Session) -> bool:
    """True if its latest turn is the first one with content: the first of all, or after a clear."""
    return session.turns == session.cleared_through + 1


def placed(session: Session, moment: datetime | None = None) -> Session:
    """The session with the place that it is to have, behind those that it may still have. `moment`: its first use on
    a later day than that of its place; None keeps the day."""
    moment = moment or first_use(session.places[-1])
    kind = ARCHIVED if session.archived else PINNED if session.pinned else ""
    place = f"{kind}{_NEWEST_FIRST - int(moment.timestamp()):010}"
    before = tuple(each for each in session.places if each != place) or session.places[-1:]
    return replace(session, places=(*before, place))


def rewritten(session: Session) -> Session:
    """The session with its row to be written again where it is: the head names that place twice."""
    return placed(session) if session.places else session


def first_use(place: str) -> datetime:
    return datetime.fromtimestamp(_NEWEST_FIRST - int(place[-10:]), UTC)


def newest_first(sessions: Sequence[Session]) -> tuple[Session, ...]:
    """In the order of a list, with those of one day by their last use. A write that is no use leaves the day."""

    def day(session: Session) -> date:
        return (first_use(session.places[-1]) if session.places else session.updated).date()

    latest = sorted(sessions, key=lambda session: (day(session), session.updated), reverse=True)
    return tuple(sorted(latest, key=lambda session: not session.pinned or session.archived))


def _text(message: Message) -> str:
    content = message.get("content")
    parts = content if isinstance(content, list) else [{"text": content}]
    texts = (part["text"] for part in parts if isinstance(part, dict) and isinstance(part.get("text"), str))
    return clean(next(filter(clean, texts), "")[: 20 * MAX_MADE_TITLE_CHARS])


def clean(title: str) -> str:
    """The title as one line, with single spaces and without control characters."""
    return " ".join("".join(c if c.isprintable() else " " for c in title).split())
