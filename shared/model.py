"""The model service as a turn sees it: several endpoints in order of preference, and what was certainly not billed
tried again, on the same call. What may have been billed is the turn's business.

An endpoint that is rate limited or failing is passed over while it cools, and then preferred again: a process keeps to
one endpoint for as long as it can, so that the service's prompt cache keeps hitting.
"""

import asyncio
import logging
from collections.abc import AsyncIterator, Mapping, Sequence
from contextlib import AsyncExitStack
from typing import Any

from tenacity import AsyncRetrying, RetryCallState, retry_if_exception, wait_exponential_jitter

from shared.completion import Chunk
from shared.endpoint import Endpoint, NoDeployment, NotAuthorized, OptionRefused
from shared.errors import RateLimited, UpstreamFailure, UpstreamUnavailable
from shared.identity import Identity
from shared.ports import Prompt

log = logging.getLogger(__name__)

COOLING = 30.0  # seconds that a failing endpoint is passed over, where it names none itself
ABSENT = 600.0  # seconds until an endpoint is asked again for a deployment that it did not have
_back_off = wait_exponential_jitter(multiplier=0.5, max=20)


class Model:
    """`endpoints`: in order of preference. `identity`: None where a key is used. `defaults`: options that settings
    give, sent unless a turn names its own. `retries`: rounds through the endpoints beyond the first."""

    def __init__(
        self, endpoints: Sequence[Endpoint], *, identity: Identity | None, defaults: Mapping[str, Any], retries: int
    ) -> None:
        self._endpoints = endpoints
        self._identity = identity
        self._defaults = defaults
        self.retries = retries
        self._cool: dict[Endpoint, float] = {}  # from when on it may be preferred again, on the loop's clock
        self._absent: dict[tuple[Endpoint, str], float] = {}  # until when it is not asked for a deployment
        self._refused: dict[str, set[str]] = {}  # deployment -> options that it does not take

    def ask(self, prompt: Prompt) -> "Asking":
        return Asking(self, prompt)

    async def close(self) -> None:
        for endpoint in self._endpoints:
            await endpoint.close()

    def available(self, deployment: str) -> list[Endpoint]:
        """The endpoints to try, in order of preference; where all are cooling, the one that will have cooled first."""
        now = _now()
        having = [end for end in self._endpoints if self._absent.get((end, deployment), now) <= now]
        cool = {end: self._cool.get(end, now) for end in having or self._endpoints}
        return [end for end, since in cool.items() if since <= now] or [min(cool, key=cool.__getitem__)]

    def failed(self, endpoint: Endpoint, deployment: str, failure: UpstreamFailure) -> None:
        """Pass this endpoint over for a while."""
        if isinstance(failure, NoDeployment):
            log.warning("%s has no deployment %r", endpoint.name, deployment)
            self._absent[endpoint, deployment] = _now() + ABSENT
        else:
            self._cool[endpoint] = _now() + (COOLING if failure.pause is None else failure.pause)

    def options(self, prompt: Prompt) -> dict[str, Any]:
        """The options that are sent: the settings' and the turn's, without what the deployment is known to refuse."""
        refused = self._refused.get(prompt.deployment, set())
        return {name: value for name, value in {**self._defaults, **prompt.options}.items() if name not in refused}

    def leave_out(self, name: str | None, prompt: Prompt) -> bool:
        """Whether the prompt may go without the option that was refused: temperature, or one that no caller asked for.
        From then on it is left out for this deployment."""
        if name is None or (name != "temperature" and (name in prompt.options or name not in self._defaults)):
            return False
        log.warning("deployment %r does not take %s: left out from now on", prompt.deployment, name)
        self._refused.setdefault(prompt.deployment, set()).add(name)
        return True

    async def renewed(self, failure: NotAuthorized) -> bool:
        """Whether a fresh token may help; the next attempt then has one."""
        if self._identity is None or not failure.stale:
            return False
        await self._identity.renew()
        return True


class Asking:
    """One call of the model: as many attempts as it takes until one answers, or may have been billed."""

    def __init__(self, model: Model, prompt: Prompt) -> None:
        self._model = model
        self._prompt = prompt
        self._stack = AsyncExitStack()
        self.endpoint: str | None = None
        self.attempts = 0

    async def __aenter__(self) -> AsyncIterator[Chunk]:
        retrying = AsyncRetrying(retry=retry_if_exception(_passing), wait=_wait, stop=self._over, reraise=True)
        return await retrying(self._somewhere)

    async def __aexit__(self, *raised: object) -> None:
        await self._stack.aclose()

    def _over(self, state: RetryCallState) -> bool:
        return state.attempt_number > self._model.retries or _now() + state.upcoming_sleep > self._prompt.deadline

    async def _somewhere(self) -> AsyncIterator[Chunk]:
        """The answer of the first endpoint that gives one. Raises the failure that will pass soonest."""
        failures: list[UpstreamFailure] = []
        for endpoint in self._model.available(self._prompt.deployment):
            try:
                return await self._at(endpoint)
            except UpstreamFailure as failure:
                self._model.failed(endpoint, self._prompt.deployment, failure)
                if failure.maybe_billed:
                    raise
                failures.append(failure)
        raise min(failures, key=lambda failure: (not _passing(failure), failure.pause or 0))

    async def _at(self, endpoint: Endpoint) -> AsyncIterator[Chunk]:
        """One endpoint: again without an option that it refused, and once with a fresh token."""
        renewed = False
        while True:
            self.endpoint = endpoint.name
            self.attempts += 1
            options = self._model.options(self._prompt)
            try:
                return await endpoint.ask(self._prompt, options, self._stack)
            except OptionRefused as refusal:
                if refusal.param not in options or not self._model.leave_out(refusal.param, self._prompt):
                    raise
            except NotAuthorized as failure:
                if renewed or not await self._model.renewed(failure):
                    raise
                renewed = True


def _passing(error: BaseException) -> bool:
    """Whether the same call may be made again: it was certainly not billed, and may go through later."""
    passing = isinstance(error, RateLimited | UpstreamUnavailable) and not error.maybe_billed
    return passing and not isinstance(error, NotAuthorized)


def _wait(state: RetryCallState) -> float:
    """Seconds: what the service asks for, else exponential back-off with jitter."""
    error = state.outcome.exception() if state.outcome else None
    pause = error.pause if isinstance(error, UpstreamFailure) else None
    return _back_off(state) if pause is None else pause


def _now() -> float:
    return asyncio.get_running_loop().time()
