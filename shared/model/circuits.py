"""Which endpoints to try, and in what order: one that fails or asks for a pause is skipped for a cooldown.

Afterwards it is preferred again: a process keeps to one endpoint as long as it can, so that the service's prompt cache
keeps hitting.
"""

import logging
from collections.abc import Sequence
from dataclasses import dataclass
from operator import attrgetter

from shared.domain.clock import Clock
from shared.errors import RateLimited, UpstreamFailure, UpstreamUnavailable
from shared.model.endpoint import Endpoint
from shared.model.upstream_errors import DeploymentNotFound

log = logging.getLogger(__name__)

COOLDOWN_S = 30.0  # after a failure, where the endpoint names no pause
MAX_COOLDOWN_S = 600.0  # whatever pause it asks for
RETRY_PAUSE_S = 0.5  # before a turn's retry, where no circuit is closed and none asked for a pause
NOT_FOUND_S = 600.0  # until an endpoint is tried again for a deployment that it did not have
_PAUSED = "The model service asks for a pause. Send this again after Retry-After."


@dataclass(frozen=True, slots=True)
class _Cooldown:
    """`until`: monotonic. `requested`: how the endpoint fails until then, if it asked for the pause itself."""

    until: float
    requested: type[RateLimited | UpstreamUnavailable] | None = None


_NONE = _Cooldown(0)
_until = attrgetter("until")


class Circuits:
    """`endpoints`: in order of preference."""

    def __init__(self, endpoints: Sequence[Endpoint], clock: Clock) -> None:
        self._endpoints = endpoints
        self._clock = clock
        self._cooldowns: dict[tuple[Endpoint, str | None], _Cooldown] = {}  # of one deployment, or of all with None
        self._not_found: dict[tuple[Endpoint, str], float] = {}  # until when a deployment counts as missing

    def available(self, deployment: str) -> list[Endpoint]:
        """The endpoints to try one after the other: those without a cooldown in order of preference, then those whose
        cooldown they did not request. Where all requested a pause, the one whose pause ends first."""
        now = self._clock.monotonic()
        cooldowns = {end: self._cooldown(end, deployment) for end in self._having(deployment) or self._endpoints}
        ready = [end for end, each in cooldowns.items() if each.until <= now]
        skipped = [end for end, each in cooldowns.items() if each.until > now and not each.requested]
        return [*ready, *skipped] or [min(cooldowns, key=lambda end: cooldowns[end].until)]

    def paused(self, deployment: str) -> dict[Endpoint, UpstreamFailure]:
        """The endpoints that requested a pause which is not over yet, with the failure that they would give now."""
        cooldowns = {end: self._cooldown(end, deployment) for end in self._having(deployment)}
        now = self._clock.monotonic()
        return {
            end: each.requested(_PAUSED, maybe_billed=False, pause=each.until - now)
            for end, each in cooldowns.items()
            if each.requested and each.until > now
        }

    def pause(self, deployment: str) -> float:
        """Seconds to wait before a retry."""
        cooldown = self._cooldown(self.available(deployment)[0], deployment)
        seconds = max(0.0, cooldown.until - self._clock.monotonic())
        return seconds if cooldown.requested else min(seconds, RETRY_PAUSE_S)

    def failed(self, endpoint: Endpoint, deployment: str, failure: UpstreamFailure) -> None:
        """Open the circuit. A rate limit opens it for this deployment only, because each has a quota of its own:
        https://learn.microsoft.com/azure/ai-services/openai/how-to/quota."""
        now, limited = self._clock.monotonic(), isinstance(failure, RateLimited)
        key = endpoint, deployment if limited else None
        if isinstance(failure, DeploymentNotFound):
            log.warning("%s has no deployment %r", endpoint.name, deployment)
            self._not_found[endpoint, deployment] = now + NOT_FOUND_S
        elif failure.pause is None:  # it may have requested a longer one before
            cooldown = _Cooldown(now + COOLDOWN_S)
            self._cooldowns[key] = max(self._cooldowns.get(key, _NONE), cooldown, key=_until)
        else:
            requested = RateLimited if limited else UpstreamUnavailable
            self._cooldowns[key] = _Cooldown(now + min(failure.pause, MAX_COOLDOWN_S), requested)

    def _having(self, deployment: str) -> list[Endpoint]:
        now = self._clock.monotonic()
        return [end for end in self._endpoints if self._not_found.get((end, deployment), now) <= now]

    def _cooldown(self, endpoint: Endpoint, deployment: str) -> _Cooldown:
        return max((self._cooldowns.get((endpoint, name), _NONE) for name in (deployment, None)), key=_until)
