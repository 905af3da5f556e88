"""The sessions table: conversations and their running totals. A session is one partition; each change to it is one
transaction that checks the head's ETag."""

from collections.abc import AsyncIterator
from dataclasses import replace

from shared.domain.clock import Clock
from shared.domain.conversation import IdempotencyRecord, Session, Turn
from shared.domain.window import MAX_TURNS
from shared.errors import StorageUnavailable, VersionConflict
from shared.storage import row_size
from shared.storage import session_rows as rows
from shared.storage.entities import Row
from shared.storage.tables import Table, Write

MAX_ROWS = 512  # rows read for one turn at most; failed turns count, though they are not replayed
_PAGE = MAX_TURNS + 1  # the head and all turns of a window: one request in most cases


class Sessions:
    """Reads and writes whole conversations. Raises VersionConflict and StorageUnavailable."""

    def __init__(self, table: Table, clock: Clock) -> None:
        self._table = table
        self._clock = clock

    def check_size(self, session: Session, turn: Turn, answer_tokens: int) -> None:
        row_size.check_size(session, turn, answer_tokens)

    async def read(self, session_id: str) -> tuple[Session | None, list[Turn]]:
        """The head and the latest turns, newest first, as many as a window can need. The head's row sorts before those
        of the turns."""
        session: Session | None = None
        turns: list[Turn] = []
        async for row in self._rows(session_id, rows.HEAD):
            if row["RowKey"] == rows.HEAD:
                session = rows.to_session(row)
            elif session is None:
                break  # rows that an unfinished erasure has not deleted yet
            else:
                turns.append(rows.to_turn(row))
            if session is None or _enough(session, turns):
                break
        return session, turns

    async def head(self, session_id: str) -> Session | None:
        row = await self._table.get(session_id, rows.HEAD)
        return rows.to_session(row) if row else None

    async def turn(self, session_id: str, number: int) -> Turn | None:
        row = await self._table.get(session_id, rows.turn_key(number))
        return rows.to_turn(row) if row else None

    async def history(self, session: Session, *, before: int, limit: int) -> list[Turn]:
        """At most `limit` turns with numbers below `before`, newest first, without cleared turns."""
        turns: list[Turn] = []
        async for row in self._rows(session.id, rows.turn_key(before - 1), page=limit):
            turn = rows.to_turn(row)
            if turn.number <= session.cleared_through:
                break
            turns.append(turn)
            if len(turns) == limit:
                break
        return turns

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
        self, session: Session, turn: Turn, record: IdempotencyRecord | None = None
    ) -> tuple[Session, Turn]:
        """Write all rows in one transaction: each replaces the version that was read, or is inserted. Returns head and
        turn as stored."""
        session, turn = replace(session, updated=self._clock.now()), row_size.cut_to_fit(turn)
        writes = [
            Write("put", rows.from_session(session), session.etag),
            Write("put", rows.from_turn(session.id, turn), turn.etag),
        ]
        if record:
            writes.append(Write("put", rows.from_record(session.id, record), record.etag))
        etags = await self._table.commit(writes)
        return replace(session, etag=etags[0]), replace(turn, etag=etags[1])

    async def renew(self, session: Session) -> Session:
        """Write only the lease columns of the head."""
        key: Row = {"PartitionKey": session.id, "RowKey": rows.HEAD}
        return replace(session, etag=await self._table.merge({**key, **rows.lease_columns(session)}, session.etag))

    async def request_stop(self, session: Session) -> None:
        key: Row = {"PartitionKey": session.id, "RowKey": rows.HEAD}
        await self._table.merge({**key, "stop": session.turns}, session.etag)

    def _rows(self, session_id: str, start: str, *, page: int = _PAGE) -> AsyncIterator[Row]:
        return self._table.query(
            "PartitionKey eq @session and RowKey ge @start and RowKey lt @end",
            {"session": session_id, "start": start, "end": "turn-~"},
            page=page,
        )


def _enough(session: Session, turns: list[Turn]) -> bool:
    """True if the window is full, its start is reached, or MAX_ROWS turns were read."""
    if not turns:
        return session.turns == 0
    return (
        turns[-1].number <= max(session.window_start, session.cleared_through + 1)
        or len(turns) >= MAX_ROWS
        or (len(turns) >= MAX_TURNS and sum(turn.replayable for turn in turns) >= MAX_TURNS)
    )
