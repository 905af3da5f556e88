"""The sessions table: conversations and their running totals. One partition a session; every change of it is one
transaction guarded by the head's ETag."""

from collections.abc import AsyncIterator
from contextlib import suppress
from dataclasses import replace
from datetime import UTC, datetime

from shared import rows
from shared.conversation import Session, Turn, Used
from shared.errors import Changed
from shared.tables import Row, Table, Write
from shared.window import MOST_TURNS

MOST_ROWS = 512  # read for one turn, however many of them failed and are not shown to the model


class Sessions:
    """Reads and writes whole conversations. Raises Changed and StorageUnavailable."""

    def __init__(self, table: Table) -> None:
        self._table = table

    async def read(self, session_id: str) -> tuple[Session | None, list[Turn]]:
        """The head and the latest turns, newest first: as many as a turn's window can need. One request in most cases,
        because the head sorts before the turns and a page holds both."""
        session: Session | None = None
        turns: list[Turn] = []
        async for row in self._rows(session_id, rows.HEAD):
            if row["RowKey"] == rows.HEAD:
                session = rows.to_session(row)
            elif session is None:
                break  # rows that an erasure has yet to remove
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
        """At most `limit` turns, newest first, with numbers below `before`; none that was cleared."""
        turns: list[Turn] = []
        async for row in self._rows(session.id, rows.turn_key(before - 1), page=limit):
            turn = rows.to_turn(row)
            if turn.number <= session.cleared_through:
                break
            turns.append(turn)
            if len(turns) == limit:
                break
        return turns

    async def used(self, session_id: str, key: str) -> Used | None:
        row = await self._table.get(session_id, rows.used_key(key))
        return rows.to_used(row) if row else None

    async def first(self, used: Used, session_id: str) -> tuple[str, Used]:
        """The session that a first post's key leads to, and what it was used for: `session_id` and `used` where the
        key is new. Never overwritten, so that every retry finds the same session."""
        partition = rows.pointer_partition(used.key)
        while True:
            row: Row = {"PartitionKey": partition, "RowKey": rows.POINTER, "session": session_id}
            with suppress(Changed):
                await self._table.put({**row, "request": used.request})
                return session_id, used
            if stored := await self._table.get(partition, rows.POINTER):
                return stored["session"], replace(used, request=stored["request"])

    async def commit(self, session: Session, turn: Turn, used: Used | None = None) -> tuple[Session, Turn]:
        """Write head, turn and used key in one transaction, each over the version that was read (or as new); returns
        head and turn as stored."""
        session = replace(session, updated=datetime.now(UTC))
        writes = [
            Write("put", rows.from_session(session), session.etag),
            Write("put", rows.from_turn(session.id, turn), turn.etag),
        ]
        if used:
            writes.append(Write("put", rows.from_used(session.id, used), used.etag))
        etags = await self._table.commit(writes)
        return replace(session, etag=etags[0]), replace(turn, etag=etags[1])

    async def renew(self, session: Session) -> Session:
        """Write the head's lease, nothing else of it."""
        key: Row = {"PartitionKey": session.id, "RowKey": rows.HEAD}
        return replace(session, etag=await self._table.merge({**key, **rows.lease_fields(session)}, session.etag))

    def _rows(self, session_id: str, start: str, *, page: int = MOST_TURNS + 1) -> AsyncIterator[Row]:
        return self._table.query(
            "PartitionKey eq @session and RowKey ge @start and RowKey lt @end",
            {"session": session_id, "start": start, "end": "turn-~"},
            page=page,
        )


def _enough(session: Session, turns: list[Turn]) -> bool:
    """Whether the window is full, its start is reached, or too many rows were seen."""
    if not turns:
        return session.turns == 0
    return (
        turns[-1].number <= max(session.window_start, session.cleared_through + 1)
        or len(turns) >= MOST_ROWS
        or sum(turn.replayable for turn in turns) >= MOST_TURNS
    )
