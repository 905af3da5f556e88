"""Limited calls: their ledger rows, and the counters of the limits that they count against.

The limited calls of a month lie in one partition with the counters, so that a call's row and all its counters change in
one transaction, guarded by the versions that were read. docs/limits_protocol.py specifies this. One transaction of a
partition runs at a time; changes that wait meanwhile go into the next one together.
"""

import asyncio
import random
from collections import deque
from collections.abc import Awaitable, Callable, Iterable, Mapping, Sequence
from contextlib import suppress
from dataclasses import dataclass, field, replace
from datetime import date, datetime

from shared.domain.calls import Call, LedgerEntry
from shared.domain.clock import Clock
from shared.domain.limits import Counter, Limit, value_of
from shared.domain.refusals import refusal
from shared.errors import ChatError, StorageUnavailable, VersionConflict
from shared.storage.counter_rows import COUNTERS, counter_keys, from_counter, limits_partition, to_counter
from shared.storage.ledger_rows import from_entry, ledger_keys, to_entry
from shared.storage.tables import Table, Write
from shared.turns.ports import LaterDay

MAX_WRITES = 100  # https://learn.microsoft.com/rest/api/storageservices/performing-entity-group-transactions
MAX_ATTEMPTS = 20  # of a change, where other instances change the same counters
MIN_PAUSE_S, MAX_PAUSE_S = 0.02, 0.3  # the longest pause before a transaction, where instances compete
FRESH_S = 1.0  # for so long a counter that was read refuses calls without being read again
_MONTHS = 2  # kept in memory

Counters = Mapping[str, Counter]


@dataclass(eq=False)
class _Change:
    """Entries to write, and the counters with them. `plan` raises the refusal of a call. `names`: of the counters."""

    plan: Callable[[Counters], tuple[Sequence[LedgerEntry], dict[str, Counter]]]
    names: tuple[str, ...]
    calls: frozenset[str]  # their ids
    done: asyncio.Future[list[LedgerEntry]]
    stored: Callable[[], Awaitable[list[LedgerEntry]]] | None = None  # reads the row of a new call: [] if there is none
    attempts: int = 0  # that may be committed: the SDK sends a transaction again whose answer is lost

    def succeed(self, entries: list[LedgerEntry]) -> None:
        if not self.done.done():  # the turn may be cancelled
            self.done.set_result(entries)

    def fail(self, error: Exception) -> None:
        if not self.done.done():
            self.done.set_exception(error)


@dataclass
class _Group:
    """Changes for one transaction."""

    changes: list[tuple[_Change, Sequence[LedgerEntry]]] = field(default_factory=list)
    counters: dict[str, Counter] = field(default_factory=dict)  # those that change

    def has_room(self, change: _Change) -> bool:
        """False if the transaction would be too large, or have a row twice, which storage refuses."""
        if any(other.calls & change.calls for other, _ in self.changes):
            return False
        entries = sum(len(entries) for _, entries in self.changes)
        return entries + 2 + len(self.counters.keys() | set(change.names)) <= MAX_WRITES  # 2: a retry's

    def owner(self, index: int) -> _Change | None:
        """The change of the entry with this index; None if there is none."""
        owners = [change for change, entries in self.changes for _ in entries]
        return owners[index] if 0 <= index < len(owners) else None

    @property
    def entries(self) -> list[LedgerEntry]:
        return [entry for _, entries in self.changes for entry in entries]


class LimitedCalls:
    """Raises VersionConflict if a call's row is not the version that was read, and StorageUnavailable."""

    def __init__(self, table: Table, clock: Clock) -> None:
        self._table = table
        self._clock = clock
        self._months: dict[date, _Month] = {}

    async def open(
        self, entry: LedgerEntry, limits: Sequence[Limit], replaces: tuple[LedgerEntry, Call] | None
    ) -> LedgerEntry:
        """Insert the row of a new call if every limit has room, and raise the row that it replaces, if there is one.
        Raises the limit's refusal, or LaterDay."""
        call = entry.call

        def plan(counters: Counters) -> tuple[Sequence[LedgerEntry], dict[str, Counter]]:
            changed: dict[str, Counter] = {}
            entries = []
            if replaces:
                raised, changed = _raised(*replaces, counters)
                entries.append(raised)
            before = {limit.name: changed.get(limit.name) or counters[limit.name] for limit in limits}
            minute = _minute(call, before.values())
            if minute.date() > call.day:
                raise LaterDay(minute)
            checked = [(limit, before[limit.name].at(minute)) for limit in limits]
            if error := refusal(checked, call, self._clock.now()):
                raise error
            changed |= {limit.name: counter.opened(call, minute) for limit, counter in checked}
            entries.append(replace(entry, limits=tuple(before), minute=minute))
            return entries, changed

        names = {limit.name for limit in limits} | set(replaces[0].limits if replaces else ())

        async def stored() -> list[LedgerEntry]:
            row = await self._table.get(*ledger_keys(call, entry.session_id, entry.turn))
            return [to_entry(row)] if row else []

        calls = frozenset((call.id, *((replaces[1].id,) if replaces else ())))
        return (await self._month(call.day).change(plan, tuple(names), calls, stored))[-1]

    async def raise_row(self, entry: LedgerEntry, call: Call) -> None:
        """Raise a row that was read to the call's state, and its counters by the difference."""

        def plan(counters: Counters) -> tuple[Sequence[LedgerEntry], dict[str, Counter]]:
            raised, changed = _raised(entry, call, counters)
            return [raised], changed

        await self._month(entry.call.day).change(plan, entry.limits, frozenset((call.id,)))

    def known_refusal(self, limits: Sequence[Limit], call: Call) -> ChatError | None:
        """Why the call would be refused, as far as this process knows from counters that are fresh."""
        month = self._months.get(call.day.replace(day=1))
        return month.known_refusal(limits, call) if month and call.minute else None

    async def counters(self, day: date) -> list[Counter]:
        """All counters of the day's month, as stored."""
        rows = self._table.query(COUNTERS, {"month": limits_partition(day)})
        return [to_counter(row) async for row in rows]

    async def counter(self, name: str, day: date) -> Counter:
        """The limit's counter of the day's month, as stored."""
        return await self._month(day).read(name)

    async def recent_counter(self, name: str, day: date) -> Counter:
        """The counter as this process read or wrote it within FRESH_S, else as stored."""
        return self._month(day).fresh(name) or await self.counter(name, day)

    def known_counter(self, name: str, day: date) -> Counter | None:
        """The counter as last read or written by this process."""
        month = self._months.get(day.replace(day=1))
        return month.counters.get(name) if month else None

    def _month(self, day: date) -> "_Month":
        first = day.replace(day=1)
        month = self._months.setdefault(first, _Month(self._table, self._clock, first))
        for old in sorted(self._months.keys() - {first})[: 1 - _MONTHS]:
            if not self._months[old].busy:
                del self._months[old]
        return month


def _minute(call: Call, counters: Iterable[Counter]) -> datetime:
    """In which a limited call counts, in all its limits alike: its own, or the latest of their counters."""
    return max(filter(None, (call.minute, *(counter.minute for counter in counters))))


def _raised(entry: LedgerEntry, call: Call, counters: Counters) -> tuple[LedgerEntry, dict[str, Counter]]:
    changed = {}
    if entry.minute and value_of(entry.call) != value_of(call):
        changed = {name: counters[name].raised(entry.call, call, entry.minute) for name in entry.limits}
    return replace(entry, call=call), changed


class _Month:
    """The limited calls of one month. `counters`: as last read or written."""

    def __init__(self, table: Table, clock: Clock, first: date) -> None:
        self._table = table
        self._clock = clock
        self._first = first
        self._waiting: deque[_Change] = deque()
        self._worker: asyncio.Task[None] | None = None
        self._read_at: dict[str, float] = {}  # monotonic seconds
        self._pause_s = 0.0  # at most, before each transaction; 0 while no other instance changes the same counters
        self.counters: dict[str, Counter] = {}

    @property
    def busy(self) -> bool:
        return self._worker is not None

    async def change(
        self,
        plan: Callable[[Counters], tuple[Sequence[LedgerEntry], dict[str, Counter]]],
        names: tuple[str, ...],
        calls: frozenset[str],
        stored: Callable[[], Awaitable[list[LedgerEntry]]] | None = None,
    ) -> list[LedgerEntry]:
        """Write what is planned; returns the entries as stored. A new call that is refused at a later attempt may be
        refused because of what it holds itself: then it is open."""
        change = _Change(plan, names, calls, asyncio.get_running_loop().create_future(), stored)
        self._waiting.append(change)
        if self._worker is None:
            self._worker = asyncio.create_task(self._work())
        try:
            return await change.done
        except (ChatError, LaterDay):
            if change.stored and change.attempts and (entries := await change.stored()):
                return entries
            raise

    def known_refusal(self, limits: Sequence[Limit], call: Call) -> ChatError | None:
        counters = {limit: self.counters[limit.name] for limit in limits if limit.name in self.counters}
        minute = _minute(call, counters.values())
        if minute.date() > call.day:
            return None
        fresh = [(limit, each.at(minute)) for limit, each in counters.items() if self._is_fresh(each.name)]
        return refusal(fresh, call, self._clock.now())

    def fresh(self, name: str) -> Counter | None:
        """The counter, if it was read or written within FRESH_S."""
        return self.counters.get(name) if self._is_fresh(name) else None

    async def read(self, name: str) -> Counter:
        """The counter as stored."""
        row = await self._table.get(*counter_keys(name, self._first))
        return to_counter(row) if row else Counter(name=name, month=self._first, since=self._clock.now())

    async def _work(self) -> None:
        try:
            while self._waiting:
                await self._let_others_write()
                group = _Group()
                while self._waiting and group.has_room(self._waiting[0]):
                    if not await self._plan(self._waiting[0], group):
                        break
                    self._waiting.popleft()
                await self._write(group)
        finally:
            self._worker = None

    async def _plan(self, change: _Change, group: _Group) -> bool:
        """Add the change to the group. A counter that is not fresh is read again before it refuses a call. False if the
        group must be written first, because it changes that counter."""
        try:
            await self._read(name for name in change.names if name not in self.counters)
            try:
                entries, counters = change.plan(self.counters | group.counters)
            except (ChatError, LaterDay):
                stale = [name for name in change.names if not self._is_fresh(name)]
                if not stale:
                    raise
                if group.counters.keys() & stale:
                    return False
                await self._read(stale)
                entries, counters = change.plan(self.counters | group.counters)
        except Exception as error:
            change.fail(error)
        else:
            group.changes.append((change, entries))
            group.counters |= counters
        return True

    async def _write(self, group: _Group) -> None:
        try:
            if group.changes:
                await self._commit(group)
        except Exception as error:
            for change, _ in group.changes:
                change.fail(error)

    async def _commit(self, group: _Group) -> None:
        counters = list(group.counters.values())
        writes = [Write("put", from_counter(counter), counter.etag) for counter in counters]
        writes += [Write("put", from_entry(entry), entry.etag) for entry in group.entries]
        try:
            etags = await self._table.commit(writes)
        except VersionConflict as conflict:
            self._resolve(conflict, group)
            return
        except StorageUnavailable:  # it may be committed
            self._forget(group.counters)
            raise
        self._pause_s *= 0.9
        for counter, etag in zip(counters, etags, strict=False):
            self._keep(replace(counter, etag=etag))
        stored = iter(etags[len(counters) :])
        for change, entries in group.changes:
            change.succeed([replace(entry, etag=next(stored)) for entry in entries])

    def _resolve(self, conflict: VersionConflict, group: _Group) -> None:
        """If a call's row has changed, fail its change. Otherwise a counter has, so others compete for it. Write the
        remaining changes again, before those that wait."""
        changes = [change for change, _ in group.changes]
        if stale := group.owner(conflict.index - len(group.counters)):
            stale.fail(conflict)
            changes.remove(stale)
        else:
            self._pause_s = min(MAX_PAUSE_S, max(MIN_PAUSE_S, 2 * self._pause_s))
            self._forget(group.counters)
            for change in changes:
                change.attempts += 1
        stored = {change for change, entries in group.changes if any(entry.etag for entry in entries)}
        for change in reversed(changes):
            if change.attempts < MAX_ATTEMPTS:
                self._waiting.appendleft(change)
            elif change in stored:  # its row may be the one that has changed: the caller reads it again
                change.fail(conflict)
            else:
                change.fail(StorageUnavailable("Too many calls change the same limits. Retry.", retry_after=1))

    async def _let_others_write(self) -> None:
        """While others compete for the counters: pause, so that more changes go into each transaction, then read the
        counters, which have changed meanwhile."""
        if self._pause_s >= MIN_PAUSE_S:
            await self._clock.sleep(random.uniform(0, self._pause_s))  # noqa: S311 - not a secret
            with suppress(Exception):  # planning a change reads what is missing, and fails with the same error
                await self._read({name for change in self._waiting for name in change.names})

    async def _read(self, names: Iterable[str]) -> None:
        for counter in await asyncio.gather(*map(self.read, names)):
            self._keep(counter)

    def _keep(self, counter: Counter) -> None:
        self.counters[counter.name] = counter
        self._read_at[counter.name] = self._clock.monotonic()

    def _forget(self, names: Iterable[str]) -> None:
        for name in names:
            self.counters.pop(name, None)

    def _is_fresh(self, name: str) -> bool:
        return self._clock.monotonic() - self._read_at.get(name, -FRESH_S) < FRESH_S
