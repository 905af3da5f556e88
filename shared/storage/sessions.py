"""The sessions table: conversations and their running totals. A session is one partition; each change to it is one
transaction that checks the head's ETag."""

from collections.abc import AsyncGenerator, AsyncIterator
from contextlib import aclosing, suppress
from dataclasses import dataclass, field, replace

from shared.domain.clock import Clock
from shared.domain.conversation import IdempotencyRecord, Session, Turn
from shared.domain.window import MAX_TURNS
from shared.errors import StorageUnavailable, VersionConflict
from shared.storage import row_size
from shared.storage import session_rows as rows
from shared.storage.entities import Row
from shared.storage.tables import Table, Write
from shared.turns.ports import MAX_PAST_TURNS

_PAGE = MAX_TURNS + 1  # the head and all turns of a window: one request in most cases


class Sessions:
    """Reads and writes whole conversations. Raises VersionConflict and StorageUnavailable."""

    def __init__(self, table: Table, clock: Clock) -> None:
        self._table = table
        self._clock = clock

    def check_size(self, session: Session, turn: Turn, answer_tokens: int, view: str | None = None) -> None:
        row_size.check_size(session, turn, answer_tokens, view, max_request_bytes=self._table.max_transaction_bytes)

    async def read(
        self, session_id: str, *, through: int | None = None, whole: bool = False
    ) -> tuple[Session | None, list[Turn]]:
        """The head and the latest turns up to the number `through`, newest first, with those that a branch continues:
        as many as a window can need, or MAX_PAST_TURNS (`whole`). They end early if a session that it continues is
        gone."""
        past = _Past(whole=whole)
        session = head = await self._read(past, session_id, through)
        while head and (parent := head.parent) and not past.enough and past.reaches(parent.turn + 1):
            through = min(parent.turn, through or parent.turn)
            head = await self._read(past, parent.session_id, through, branch=head)
        return session, past.turns

    async def _read(
        self, past: "_Past", session_id: str, through: int | None, *, branch: Session | None = None
    ) -> Session | None:
        """Add a session's own turns to `past`. Returns its head; None if it is gone, also for the `branch` that
        continues it."""
        head: Session | None = None
        stored = self._head_and_turns(session_id, through, page=MAX_PAST_TURNS if past.whole else _PAGE)
        async with aclosing(stored):
            async for row in stored:
                if row["RowKey"] == rows.HEAD:
                    head = rows.to_session(row)
                    erased = head.deletion or head.expired(self._clock.now())
                    if branch and (erased or not branch.continues(head)):
                        return None
                    past.session = past.session or head
                elif head is None:
                    return None  # rows that an unfinished erasure has not deleted yet
                else:
                    past.turns.append(rows.to_turn(row))
                if past.enough:
                    break
        return head

    async def head(self, session_id: str) -> Session | None:
        row = await self._table.get(session_id, rows.HEAD)
        return rows.to_session(row) if row else None

    async def turn(self, session_id: str, number: int) -> Turn | None:
        row = await self._table.get(session_id, rows.turn_key(number))
        return rows.to_turn(row) if row else None

    async def history(self, session_id: str, *, first: int, last: int, limit: int) -> list[Turn]:
        """At most `limit` of the session's own turns from the number `first` to `last`, newest first."""
        first = max(first, last - limit + 1)  # no number is missing
        return [rows.to_turn(row) async for row in self._turns(session_id, first, last)]

    async def view(self, session_id: str, number: int) -> str | None:
        """What the turn's response repeats of its request; None if there is none, or it was deleted."""
        row = await self._table.get(session_id, rows.view_key(number))
        return row["view"] if row else None

    async def branches(self, session_id: str) -> AsyncIterator[tuple[str, int]]:
        """The sessions that continue a turn of this one, by their ids, each with the number of that turn. Some may not
        exist (any more)."""
        span = {"session": session_id, "start": rows.BRANCH, "end": f"{rows.BRANCH}~"}
        condition = "PartitionKey eq @session and RowKey ge @start and RowKey lt @end"
        async for row in self._table.query(condition, span, select=["RowKey", "turn"]):
            yield row["RowKey"].removeprefix(rows.BRANCH), row["turn"]

    async def enter_branch(self, session: Session) -> bool:
        """Before a branch is stored: enter it into its parent's partition. False if the parent is gone. An erasure
        marks the head before it lists rows, so it deletes this row, or is noticed here."""
        if session.parent is None:
            return True
        parent, key = session.parent.session_id, rows.branch_key(session.id)
        try:
            await self._table.put({"PartitionKey": parent, "RowKey": key, "turn": session.parent.turn})
        except VersionConflict:
            pass  # it exists
        except StorageUnavailable:
            if await self._table.get(parent, key) is None:  # else only the response was lost
                raise
        head = await self.head(parent)
        erased = head is None or not session.continues(head) or (head.deletion and head.deletion.erase)
        if head and not erased and not head.expired(self._clock.now()):
            return True
        await self.leave_branch(session)
        return False

    async def leave_branch(self, session: Session) -> None:
        """Remove a branch that does not exist from its parent's partition."""
        if session.parent:
            with suppress(VersionConflict):  # it is gone
                await self._table.delete(session.parent.session_id, rows.branch_key(session.id), "*")

    async def idempotency_record(self, session_id: str, key: str) -> IdempotencyRecord | None:
        row = await self._table.get(session_id, rows.record_key(key))
        return rows.to_record(row) if row else None

    async def first_session(self, record: IdempotencyRecord, session_id: str) -> tuple[str, IdempotencyRecord]:
        """The session that the first request with this key started, and that request's record; the given ones if the
        key is new. The pointer is never overwritten, so that every retry gets the same session."""
        partition = rows.pointer_partition(record.key)
        while True:
            row: Row = {"PartitionKey": partition, "RowKey": rows.POINTER, "session": session_id}
            try:
                await self._table.put({**row, "request": record.request})
            except (VersionConflict, StorageUnavailable) as error:
                stored = await self._table.get(partition, rows.POINTER)  # ours, if only the response was lost
                if stored is None and isinstance(error, StorageUnavailable):
                    raise
            else:
                return session_id, record
            if stored:
                return stored["session"], replace(record, request=stored["request"])

    async def commit(
        self, session: Session, turn: Turn, record: IdempotencyRecord | None = None, view: str | None = None
    ) -> tuple[Session, Turn]:
        """Write all rows in one transaction: each replaces the version that was read, or is inserted. Returns head and
        turn as stored."""
        room = row_size.room_for_turn(session, view, self._table.max_transaction_bytes)
        session, turn = replace(session, updated=self._clock.now()), row_size.cut_to_fit(turn, room)
        writes = [
            Write("put", rows.from_session(session), session.etag),
            Write("put", rows.from_turn(session.id, turn), turn.etag),
        ]
        if record:
            writes.append(Write("put", rows.from_record(session.id, record), record.etag))
        if view is not None:
            key: Row = {"PartitionKey": session.id, "RowKey": rows.view_key(turn.number)}
            writes.append(Write("put", {**key, "view": view}))
        etags = await self._table.commit(writes)
        return replace(session, etag=etags[0]), replace(turn, etag=etags[1])

    async def write(self, session: Session, turn: Turn | None = None, *, delete_view: int | None = None) -> Session:
        """Write the head, with a turn, without the view of a turn, in one transaction. Returns the head as stored."""
        session = replace(session, updated=self._clock.now())
        writes = [Write("put", rows.from_session(session), session.etag)]
        if turn:
            writes.append(Write("put", rows.from_turn(session.id, turn), turn.etag))
        if delete_view is not None:
            key: Row = {"PartitionKey": session.id, "RowKey": rows.view_key(delete_view)}
            writes.append(Write("delete", key, "*"))
        return replace(session, etag=(await self._table.commit(writes))[0])

    async def renew(self, session: Session) -> Session:
        """Write only the lease columns of the head."""
        key: Row = {"PartitionKey": session.id, "RowKey": rows.HEAD}
        return replace(session, etag=await self._table.merge({**key, **rows.lease_columns(session)}, session.etag))

    async def update(self, session: Session) -> Session:
        """Write only the head's columns of its owner's list. It is no use of the session."""
        row: Row = {"PartitionKey": session.id, "RowKey": rows.HEAD, "owner": session.owner}
        return replace(session, etag=await self._table.merge({**row, **rows.listing_columns(session)}, session.etag))

    async def request_stop(self, session: Session) -> None:
        key: Row = {"PartitionKey": session.id, "RowKey": rows.HEAD}
        await self._table.merge({**key, "stop": session.turns}, session.etag)

    def _head_and_turns(self, session_id: str, through: int | None, *, page: int) -> AsyncGenerator[Row]:
        """The head's row sorts before those of the turns."""
        if not self._table.in_key_order:
            return self._head_then_turns(session_id, through, block=page - 1)
        span = {"session": session_id, "head": rows.HEAD, "end": "turn-~"}
        if through is None:
            return self._table.query("PartitionKey eq @session and RowKey ge @head and RowKey lt @end", span, page=page)
        span["start"] = rows.turn_key(through)
        condition = "PartitionKey eq @session and (RowKey eq @head or (RowKey ge @start and RowKey lt @end))"
        return self._table.query(condition, span, page=page)

    async def _head_then_turns(self, session_id: str, through: int | None, *, block: int) -> AsyncGenerator[Row]:
        """The same without a request for all turns of the session."""
        row = await self._table.get(session_id, rows.HEAD)
        if row is None:
            return
        yield row
        head = rows.to_session(row)
        first, last = head.parent.turn + 1 if head.parent else 1, min(head.turns, through or head.turns)
        while first <= last:
            async for row in self._turns(session_id, max(first, last - block + 1), last):
                yield row
            last -= block

    def _turns(self, session_id: str, first: int, last: int) -> AsyncGenerator[Row]:
        """The rows of the turns from the number `first` to `last`, newest first."""
        span = {"session": session_id, "start": rows.turn_key(last), "end": rows.turn_key(first)}
        condition = "PartitionKey eq @session and RowKey ge @start and RowKey le @end"
        return self._table.query(condition, span, page=last - first + 1)


@dataclass(slots=True)
class _Past:
    """What is read of a session's past: its head, and the turns, newest first, with those that a branch continues.
    `whole`: all are wanted, up to MAX_PAST_TURNS."""

    whole: bool
    session: Session | None = None
    turns: list[Turn] = field(default_factory=list)

    def reaches(self, number: int) -> bool:
        """True if no turn from this number on is missing."""
        return not self.turns or self.turns[-1].number <= number

    @property
    def enough(self) -> bool:
        """True if the window is full, its start is reached, or MAX_PAST_TURNS turns were read."""
        session, turns = self.session, self.turns
        if session is None or not turns:
            return session is not None and session.turns == 0
        window_start = 0 if self.whole else min(session.window_start, turns[0].window_start)  # of the turn to continue
        start = max(window_start, session.cleared_through + 1)
        full = not self.whole and len(turns) >= MAX_TURNS and sum(turn.replayable for turn in turns) >= MAX_TURNS
        return turns[-1].number <= start or len(turns) >= MAX_PAST_TURNS or full
