"""Which endpoints to try, and in what order: one that fails or requests a pause is skipped for a cooldown.

After the cooldown it gets its preference back: a process uses the same endpoint as long as possible, so that the
service's prompt cache keeps hitting.
"""

import logging
from collections.abc import Sequence
from dataclasses import dataclass
from operator import attrgetter

from shared.domain.clock import Clock
from shared.errors import QuotaExhausted, RateLimited, UpstreamFailure, UpstreamUnavailable
from shared.model.endpoint import Endpoint
from shared.model.upstream_errors import DeploymentNotFound

log = logging.getLogger(__name__)

COOLDOWN_S = 30.0  # after a failure without Retry-After
MAX_COOLDOWN_S = 600.0  # even if Retry-After is longer
RETRY_PAUSE_S = 0.5  # before a turn's retry if all circuits are open and the next endpoint requested no pause
NOT_FOUND_S = 600.0  # before an endpoint is tried again for a deployment that it does not have
_PAUSED = "The model service requested a pause. Retry the request after Retry-After."


@dataclass(frozen=True, slots=True)
class _Cooldown:
    """`until`: monotonic seconds. `requested`: the error to raise until then, if the endpoint requested the pause."""

    until: float
    requested: type[RateLimited | UpstreamUnavailable] | None = None


_NONE = _Cooldown(0)
_until = attrgetter("until")


class Circuits:
    """`endpoints`: in order of preference."""

    def __init__(self, endpoints: Sequence[Endpoint], clock: Clock) -> None:
        self._endpoints = endpoints
        self._clock = clock
        self._cooldowns: dict[tuple[Endpoint, str | None], _Cooldown] = {}  # None: all deployments
        self._not_found: dict[tuple[Endpoint, str], float] = {}  # monotonic seconds until which it counts as missing

    def available(self, deployment: str) -> list[Endpoint]:
        """The endpoints to try, in order: those without a cooldown, by preference, then those with a cooldown that they
        did not request. If all requested a pause: the one endpoint with the earliest end of its pause."""
        now = self._clock.monotonic()
        cooldowns = {
            end: self._cooldown(end, deployment) for end in self._with_deployment(deployment) or self._endpoints
        }
        ready = [end for end, each in cooldowns.items() if each.until <= now]
        skipped = [end for end, each in cooldowns.items() if each.until > now and not each.requested]
        return [*ready, *skipped] or [min(cooldowns, key=lambda end: cooldowns[end].until)]

    def paused(self, deployment: str) -> dict[Endpoint, UpstreamFailure]:
        """The endpoints in a pause that they requested, each with the failure that a request to it would now cause."""
        cooldowns = {end: self._cooldown(end, deployment) for end in self._with_deployment(deployment)}
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
        """Open the circuit. A rate limit opens it for this deployment only, because each deployment has its own quota:
        https://learn.microsoft.com/azure/ai-services/openai/how-to/quota. An account without credit opens none: it
        works again as soon as its bill is paid."""
        if isinstance(failure, QuotaExhausted):
            return
        now, limited = self._clock.monotonic(), isinstance(failure, RateLimited)
        key = endpoint, deployment if limited else None
        if isinstance(failure, DeploymentNotFound):
            log.warning("%s has no deployment %r", endpoint.name, deployment)
            self._not_found[endpoint, deployment] = now + NOT_FOUND_S
        elif failure.pause is None:  # keep a longer pause that was requested before
            cooldown = _Cooldown(now + COOLDOWN_S)
            self._cooldowns[key] = max(self._cooldowns.get(key, _NONE), cooldown, key=_until)
        else:
            requested = RateLimited if limited else UpstreamUnavailable
            self._cooldowns[key] = _Cooldown(now + min(failure.pause, MAX_COOLDOWN_S), requested)

    def _with_deployment(self, deployment: str) -> list[Endpoint]:
        now = self._clock.monotonic()
        return [end for end in self._endpoints if self._not_found.get((end, deployment), now) <= now]

    def _cooldown(self, endpoint: Endpoint, deployment: str) -> _Cooldown:
        return max((self._cooldowns.get((endpoint, name), _NONE) for name in (deployment, None)), key=_until)
