"""Erases all sessions of an owner. A row per owner holds the progress, so an interrupted erasure is resumed."""

import logging
from collections.abc import AsyncIterator
from dataclasses import replace

from shared.domain.clock import Clock
from shared.domain.conversation import OwnerErasure
from shared.domain.hashing import sha256_hex
from shared.errors import StorageUnavailable, VersionConflict
from shared.storage import session_rows as rows
from shared.storage.deletion import Deletions
from shared.storage.entities import Row
from shared.storage.owner_index import OwnerIndex
from shared.storage.sessions import Sessions
from shared.storage.tables import Table

log = logging.getLogger(__name__)

_PARTITION = "~erasing-owner"


class OwnerErasures:
    """Raises StorageUnavailable."""

    def __init__(
        self, table: Table, sessions: Sessions, deletions: Deletions, owners: OwnerIndex, clock: Clock
    ) -> None:
        self._table = table
        self._sessions = sessions
        self._deletions = deletions
        self._owners = owners
        self._clock = clock

    async def progress(self, owner: str) -> OwnerErasure | None:
        row = await self._table.get(_PARTITION, sha256_hex(owner))
        return _to_erasure(row) if row else None

    async def begin(self, owner: str) -> OwnerErasure:
        """Begin an erasure, or return the one that is not done."""
        while True:
            stored = await self.progress(owner)
            if stored and not stored.done:
                return stored
            try:
                return await self._save(
                    OwnerErasure(owner=owner, begun=self._clock.now(), etag=stored.etag if stored else "")
                )
            except VersionConflict:  # another request has begun one
                continue

    async def carry_out(self, progress: OwnerErasure) -> AsyncIterator[OwnerErasure]:
        """Erase the sessions; yields the progress after each of them. Ends early if another process does the same."""
        condition = "RowKey eq @head and owner eq @owner and PartitionKey gt @after"
        parameters = {"head": rows.HEAD, "owner": progress.owner, "after": progress.position}
        try:
            async for row in self._table.query(condition, parameters, select=["PartitionKey"]):
                erased = await self._erase(row["PartitionKey"], progress)
                position = row["PartitionKey"]
                progress = await self._save(replace(progress, position=position, erased=progress.erased + erased))
                yield progress
            await self._owners.sweep(progress.owner, progress.begun)
            yield await self._save(replace(progress, position="", done=True))
        except VersionConflict:
            return

    async def resume(self, after: str) -> AsyncIterator[str]:
        """Carry out what is not done; yields after each session."""
        async for row in self._table.query("PartitionKey eq @erasures", {"erasures": _PARTITION}):
            if row["done"]:
                continue
            try:
                async for _ in self.carry_out(_to_erasure(row)):
                    yield ""
            except StorageUnavailable:
                raise
            except Exception:  # one unreadable session must not keep the other owners'
                log.exception("erasure of an owner's sessions: a session could not be read or erased")

    async def _erase(self, session_id: str, progress: OwnerErasure) -> bool:
        """Returns False if there is no such session of the owner that was begun before the erasure."""
        while session := await self._sessions.head(session_id):
            if session.owner != progress.owner or session.created > progress.begun:
                return False
            begun = session if session.deletion else await self._deletions.begin(session, erase=True)
            if begun and begun.deletion:  # else a turn has begun or ended
                await self._deletions.finish(begun)
                if begun.deletion.erase:
                    return True
        return False

    async def _save(self, progress: OwnerErasure) -> OwnerErasure:
        row = {
            "PartitionKey": _PARTITION,
            "RowKey": sha256_hex(progress.owner),
            "owner": progress.owner,
            "begun": progress.begun,
            "erased": progress.erased,
            "position": progress.position,
            "done": progress.done,
        }
        return replace(progress, etag=await self._table.put(row, progress.etag))


def _to_erasure(row: Row) -> OwnerErasure:
    return OwnerErasure(
        owner=row["owner"],
        begun=row["begun"],
        erased=row["erased"],
        position=row["position"],
        done=row["done"],
        etag=row["etag"],
    )
