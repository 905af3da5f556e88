"""Conversations and stored responses, on behalf of callers: openai/v1/conversations and openai/v1/responses.

A conversation is a session, a response one of its turns or of a session of its own. Sessions of api/chat are not found.
"""

import secrets
from collections.abc import AsyncIterator, Mapping, Sequence
from contextlib import suppress
from dataclasses import dataclass, replace
from itertools import chain
from typing import NamedTuple, TypeAlias

from shared.domain.clock import Clock
from shared.domain.conversation import ADDED, Item, Kind, Message, Session, Turn
from shared.domain.items import items_of, messages_of
from shared.domain.listing import titled, untitled
from shared.domain.principal import Principal
from shared.errors import (
    InvalidRequest,
    SessionBusy,
    SessionNotFound,
    StillRunning,
    StorageUnavailable,
    VersionConflict,
)
from shared.turns.ports import Indexes, Sessions
from shared.turns.recovery import Recovery, read_turn
from shared.turns.sessions import MAX_ATTEMPTS, Part, SessionAccess

Place: TypeAlias = tuple[int, int]
"""Number of a turn, and index in its input followed by its output, from 0."""
_Items: TypeAlias = tuple[Item | None, ...]


class Address(NamedTuple):
    """Where an item is: its session, the number of its turn, and its index `at` in the turn's input followed by its
    output, from 0."""

    session_id: str
    turn: int
    at: int

    @property
    def place(self) -> Place:
        return self.turn, self.at


@dataclass(frozen=True, slots=True)
class PlacedItem:
    """An item, and where it is: see Address."""

    session_id: str
    turn: Turn
    at: int
    item: Item

    @property
    def address(self) -> Address:
        return Address(self.session_id, self.turn.number, self.at)


@dataclass(frozen=True, slots=True)
class Page:
    """A part of a list of items. `more`: there are others behind it."""

    items: tuple[PlacedItem, ...]
    more: bool


class ConversationAccess:
    """`deployment`: that a new conversation has, until a turn names one. All methods raise StorageUnavailable, and
    SessionNotFound if the caller has no such conversation or response."""

    def __init__(
        self,
        sessions: Sessions,
        access: SessionAccess,
        *,
        indexes: Indexes,
        recovery: Recovery,
        clock: Clock,
        deployment: str,
    ) -> None:
        self._sessions = sessions
        self._access = access
        self._indexes = indexes
        self._recovery = recovery
        self._clock = clock
        self._deployment = deployment

    async def create(
        self, principal: Principal, items: Sequence[Item] = (), metadata: Mapping[str, str] | None = None
    ) -> Session:
        """Begin a conversation, with items or empty. Raises MessageTooLarge."""
        now = self._clock.now()
        session = Session(
            id=secrets.token_hex(16),
            created=now,
            updated=now,
            system="",
            deployment=self._deployment,
            owner=principal.name,
            kind=Kind.CONVERSATION,
            metadata=metadata or {},
            reference=secrets.token_hex(16),
        )
        turn = self._added(session, items) if items else None
        session = titled(replace(session, turns=1), turn.messages) if turn else session
        session = await self._indexes.prepare(session)
        try:
            return await self._sessions.write(session, turn)
        except (VersionConflict, StorageUnavailable):
            if stored := await self._sessions.head(session.id):
                return stored  # only the response was lost
            raise

    async def get(self, session_id: str, principal: Principal) -> Session:
        return await self._get(session_id, principal, Kind.CONVERSATION)

    async def update(self, session_id: str, principal: Principal, metadata: Mapping[str, str]) -> Session:
        """Replace the metadata, also while a turn runs."""
        for _ in range(MAX_ATTEMPTS):
            session = await self.get(session_id, principal)
            with suppress(VersionConflict):
                return await self._sessions.write(replace(session, metadata=metadata))
        raise SessionBusy

    async def erase(self, session_id: str, principal: Principal) -> None:
        """Delete the conversation with its responses. The ledger keeps their calls."""
        await self.get(session_id, principal)
        await self._access.erase(session_id, principal)

    async def add_items(self, session_id: str, principal: Principal, items: Sequence[Item]) -> Page:
        """Append items, as a turn without a call. Returns them. Raises SessionBusy while a turn runs, and
        MessageTooLarge."""
        for _ in range(MAX_ATTEMPTS):
            session = await self._idle(session_id, principal)
            turn = self._added(session, items)
            session = await self._indexes.prepare(titled(replace(session, turns=turn.number), turn.messages))
            try:
                session = await self._sessions.write(session, turn)
            except (VersionConflict, StorageUnavailable) as error:
                stored, written = await read_turn(self._sessions, session.id, turn.number)
                if stored and written and (written.started, written.input) == (turn.started, turn.input):
                    return _added_page(stored, turn)  # only the response was lost
                if isinstance(error, StorageUnavailable):
                    raise
                await self._indexes.remove(session)
            else:
                await self._indexes.enter(session)
                return _added_page(session, turn)
        raise SessionBusy

    async def delete_item(self, session_id: str, number: int, at: int, principal: Principal) -> Session | None:
        """Delete an item; the others keep their places. Returns the conversation, or None if it has no such item.
        Raises SessionBusy while a turn runs."""
        for attempt in range(MAX_ATTEMPTS):
            session = await self._idle(session_id, principal)
            turn = await self._sessions.turn(session_id, number)
            if turn is None or at not in dict(_items(turn)):
                return session if attempt else None  # of an attempt whose response was lost
            try:
                session = await self._sessions.write(untitled(session, number), _without(turn, at))
            except VersionConflict:
                continue
            except StorageUnavailable:
                if attempt:
                    raise  # else it is read again: it may have been written
            else:
                return await self._indexes.enter(session)
        raise SessionBusy

    async def turn(self, session_id: str, number: int, principal: Principal) -> tuple[Session, Turn]:
        """The turn of a response, and its session."""
        session = await self._get(session_id, principal, Kind.RESPONSES, Kind.CONVERSATION)
        turn = await self._sessions.turn(session_id, number)
        if turn is None:
            raise SessionNotFound
        return session, turn

    async def view(self, session_id: str, number: int) -> str | None:
        """What the turn's response repeats of its request; None if the response was deleted, or never stored."""
        return await self._sessions.view(session_id, number)

    async def delete_response(self, session_id: str, number: int, principal: Principal) -> None:
        """Delete a response: its view, and its content, unless a conversation keeps that. Its calls stay. Raises
        StillRunning while its turn runs."""
        for attempt in range(MAX_ATTEMPTS):
            session, turn = await self.turn(session_id, number, principal)
            if await self.view(session_id, number) is None:
                if attempt:
                    return  # deleted by an attempt whose response was lost
                raise SessionNotFound
            if session.lease and turn.finished is None and session.turns == number:
                if session.busy(self._clock.now()):
                    raise StillRunning
                await self._recovery.free(session)
                continue
            stripped = None if session.kind is Kind.CONVERSATION else self._stripped(turn)
            try:
                session = untitled(session, number) if stripped else session
                session = await self._sessions.write(session, stripped, delete_view=number)
            except VersionConflict:
                continue
            except StorageUnavailable:
                if attempt:
                    raise  # else it is read again: it may have been written
            else:
                await self._indexes.enter(session)
                return
        raise SessionBusy

    async def item(self, session_id: str, number: int, at: int, principal: Principal) -> PlacedItem | None:
        """The item at this place of a conversation or response; None if there is none (any more)."""
        with suppress(SessionNotFound):
            session, turn = await self.turn(session_id, number, principal)
            if item := dict(_items(turn)).get(at):
                return PlacedItem(session.id, turn, at, item)
        return None

    async def items(
        self,
        session: Session,
        *,
        end: Place | None = None,
        after: Address | None = None,
        newest_first: bool = True,
        limit: int,
    ) -> Page:
        """At most `limit` items of a session, with those of the sessions that it continues. `end`: the place behind the
        newest item; None: all. `after`: the item that precedes the page; it may be deleted. Raises InvalidRequest if it
        is not in the list. A page costs the same wherever it is."""
        begin, end = (0, 0), end or (session.turns + 1, 0)
        parts = self._access.parts(session, last=end[0], newest_first=newest_first)
        if after:
            begin, end = (begin, min(end, after.place)) if newest_first else ((after.turn, after.at + 1), end)
            parts = _from(parts, after)
        page: list[PlacedItem] = []
        async for part in parts:
            first, last = max(part.first, begin[0]), min(part.last, end[0])
            async for turn in self._access.turns(part.session, first, last, newest_first=newest_first, block=limit + 2):
                for placed in _placed(part.session, turn, begin, end, newest_first=newest_first):
                    if len(page) == limit:
                        return Page(tuple(page), more=True)
                    page.append(placed)
        return Page(tuple(page), more=False)

    async def _get(self, session_id: str, principal: Principal, *kinds: Kind) -> Session:
        session = await self._access.get(session_id, principal)
        if session.kind not in kinds:
            raise SessionNotFound
        return session

    async def _idle(self, session_id: str, principal: Principal) -> Session:
        """The conversation without a lease. Raises SessionBusy while a turn runs."""
        for _ in range(MAX_ATTEMPTS):
            session = await self.get(session_id, principal)
            if session.busy(self._clock.now()):
                break
            if session.lease is None:
                return session
            await self._recovery.free(session)
        raise SessionBusy

    def _added(self, session: Session, items: Sequence[Item]) -> Turn:
        now = self._clock.now()
        turn = Turn(
            number=session.turns + 1,
            started=now,
            finished=now,
            finish_reason=ADDED,
            calls=(),
            messages=messages_of(items),
            input=tuple(items),
            window_start=session.window_start,
        )
        self._sessions.check_size(session, turn, 0)
        return turn

    def _stripped(self, turn: Turn) -> Turn:
        """The turn without its content. It is finished, so that a process that settles it late stores no answer."""
        return replace(turn.without_content(), finished=turn.finished or self._clock.now())


async def _from(parts: AsyncIterator[Part], after: Address) -> AsyncIterator[Part]:
    """The parts from the one with this item on. Raises InvalidRequest if none has it."""
    begun = False
    async for part in parts:
        begun = begun or (part.session.id == after.session_id and part.first <= after.turn <= part.last)
        if begun:
            yield part
    if not begun:
        raise InvalidRequest("after must be the id of an item of this list.", param="after")


def _placed(session: Session, turn: Turn, begin: Place, end: Place, *, newest_first: bool) -> Sequence[PlacedItem]:
    """The turn's items from the place `begin` to before `end`."""
    items = [PlacedItem(session.id, turn, at, item) for at, item in _items(turn) if begin <= (turn.number, at) < end]
    return items[::-1] if newest_first else items


def _added_page(session: Session, turn: Turn) -> Page:
    end = (turn.number + 1, 0)
    return Page(tuple(_placed(session, turn, (turn.number, 0), end, newest_first=False)), more=False)


def _items(turn: Turn) -> list[tuple[int, Item]]:
    """The turn's items with their indexes. A turn that runs or has failed shows none."""
    shown = turn.answered or turn.finish_reason == ADDED
    return [(at, item) for at, item in enumerate(chain(*_kept(turn))) if item and shown]


def _kept(turn: Turn) -> tuple[_Items, _Items]:
    """The items of the turn's input and output. A turn of api/chat keeps messages: then those of its messages."""
    if turn.input or not turn.answered:
        return turn.input, turn.output
    return _items_of(turn.messages[:-1]), _items_of(turn.messages[-1:])


def _items_of(messages: Sequence[Message]) -> _Items:
    return tuple(chain.from_iterable(map(items_of, messages)))


def _without(turn: Turn, deleted: int) -> Turn:
    """The turn without an item. If it is the last one, nothing is left to keep the places of."""
    sent, received = _kept(turn)
    items = tuple(None if at == deleted else item for at, item in enumerate((*sent, *received)))
    if not any(items):
        return turn.without_content()
    return replace(turn, input=items[: len(sent)], output=items[len(sent) :])
