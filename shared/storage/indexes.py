"""The indexes of sessions, as one: by the day of the last use, for retention, and the list of each owner."""

from shared.domain.conversation import Session
from shared.storage.owner_index import OwnerIndex
from shared.storage.retention import Retention


class Indexes:
    """Raises StorageUnavailable."""

    def __init__(self, retention: Retention, owners: OwnerIndex) -> None:
        self._retention = retention
        self._owners = owners

    async def prepare(self, session: Session) -> Session:
        return await self._owners.prepare(await self._retention.prepare(session))

    async def enter(self, session: Session) -> Session:
        return await self._owners.enter(await self._retention.enter(session))

    async def remove(self, session: Session) -> None:
        await self._retention.remove(session)
        await self._owners.remove(session)
