"""What is used of the limits of callers."""

from dataclasses import dataclass

from shared.domain.clock import Clock
from shared.domain.limits import ANONYMOUS, OTHERS, TOTAL, Budget, Counter, Limit, Limits, RateStatus, minute_of
from shared.domain.principal import Principal
from shared.storage.ledger import Ledger


@dataclass(frozen=True, slots=True)
class LimitUse:
    """A limit, and what is used of it now."""

    limit: Limit
    budgets: tuple[Budget, ...]
    rates: RateStatus | None


class LimitReports:
    def __init__(self, ledger: Ledger, limits: Limits, clock: Clock) -> None:
        self._ledger = ledger
        self._limits = limits
        self._clock = clock

    async def own(self, principal: Principal) -> list[LimitUse]:
        """The caller's own limit, if it has one. Raises StorageUnavailable."""
        own = self._limits.own(principal)
        if own is None:
            return []
        return [self._use(own, await self._ledger.counter(own.name, self._clock.now().date()))]

    async def all(self) -> list[LimitUse]:
        """Those that are set by name, and those of the other callers of this month: the total first."""
        counters = {counter.name: counter for counter in await self._ledger.counters(self._clock.now().date())}
        others = self._limits.by_name.get(OTHERS)
        callers = counters.keys() - {TOTAL, ANONYMOUS} if others else set()
        names = (self._limits.by_name.keys() | callers) - {OTHERS}
        limits = [self._limits.by_name.get(name) or self._limits.own(Principal(name)) for name in names]
        uses = [self._use(limit, counters.get(limit.name)) for limit in limits if limit]
        return sorted(uses, key=lambda use: (use.limit.name != TOTAL, use.limit.name))

    def _use(self, limit: Limit, counter: Counter | None) -> LimitUse:
        now = self._clock.now()
        counter = counter or Counter(name=limit.name, month=now.date().replace(day=1), since=now)
        counter = counter.at(minute_of(now))
        return LimitUse(limit, tuple(counter.budgets(limit)), counter.rates(limit, now))
