"""The model service as turns use it: failover between endpoints, and retries within a call.

Only attempts that were certainly not billed are retried here. A turn itself retries a call that may have been billed,
as a new call.
"""

from collections.abc import AsyncIterator, Mapping, Sequence
from contextlib import AsyncExitStack
from typing import Any

from tenacity import AsyncRetrying, RetryCallState, retry_if_exception, wait_exponential_jitter

from shared.domain.clock import Clock
from shared.errors import QuotaExhausted, RateLimited, UpstreamFailure, UpstreamUnavailable
from shared.model.circuits import Circuits
from shared.model.endpoint import Endpoint
from shared.model.options import Options
from shared.model.upstream_errors import NotAuthorized, OptionRejected
from shared.turns.ports import Plan, ServerEvent

_backoff = wait_exponential_jitter(multiplier=0.5, max=20)


class ModelService:
    """`endpoints`: in order of preference. `defaults`: options from the settings. `retries`: how many more times a
    call tries the endpoints after all of them have failed."""

    def __init__(
        self, endpoints: Sequence[Endpoint], *, defaults: Mapping[str, Any], retries: int, clock: Clock
    ) -> None:
        self._endpoints = endpoints
        self._retries = retries
        self._clock = clock
        self._circuits = Circuits(endpoints, clock)
        self._options = Options(defaults)

    def call(self, plan: Plan, *, call_id: str, deadline: float) -> "ModelCall":
        return ModelCall(
            plan,
            call_id,
            deadline,
            circuits=self._circuits,
            options=self._options,
            retries=self._retries,
            clock=self._clock,
        )

    def pause(self, deployment: str) -> float:
        return self._circuits.pause(deployment)

    def max_output(self, deployment: str) -> int | None:
        """The most output tokens of the deployment's model, if the service has named it in a refusal."""
        return self._options.max_output(deployment)

    async def close(self) -> None:
        for endpoint in self._endpoints:
            await endpoint.close()


class ModelServices:
    """Implements Model: calls of some deployments go to a service of their own. `others`: by deployment."""

    def __init__(self, default: ModelService, others: Mapping[str, ModelService]) -> None:
        self._default = default
        self._others = others

    def call(self, plan: Plan, *, call_id: str, deadline: float) -> "ModelCall":
        return self._of(plan.deployment).call(plan, call_id=call_id, deadline=deadline)

    def pause(self, deployment: str) -> float:
        return self._of(deployment).pause(deployment)

    def max_output(self, deployment: str) -> int | None:
        return self._of(deployment).max_output(deployment)

    async def close(self) -> None:
        for service in {self._default, *self._others.values()}:
            await service.close()

    def _of(self, deployment: str) -> ModelService:
        return self._others.get(deployment, self._default)


class ModelCall:
    """One model call: attempts until one is answered, one may have been billed, or no retry is left."""

    def __init__(
        self,
        plan: Plan,
        call_id: str,
        deadline: float,
        *,
        circuits: Circuits,
        options: Options,
        retries: int,
        clock: Clock,
    ) -> None:
        self._plan = plan
        self._call_id = call_id
        self._deadline = deadline
        self._circuits = circuits
        self._options = options
        self._retries = retries
        self._clock = clock
        self._stack = AsyncExitStack()
        self._endpoint: Endpoint | None = None
        self._exhausted: dict[Endpoint, UpstreamFailure] = {}  # not tried again by this call
        self.attempts = 0
        self.maybe_billed = False
        self.headers: Mapping[str, str] = {}

    @property
    def endpoint(self) -> str | None:
        return self._endpoint.name if self._endpoint else None

    async def __aenter__(self) -> AsyncIterator[ServerEvent]:
        retrying = AsyncRetrying(
            retry=retry_if_exception(_is_transient),
            wait=_wait,
            stop=self._is_over,
            sleep=self._clock.sleep,
            reraise=True,
        )
        return await retrying(self._try_endpoints)

    async def __aexit__(self, kind: object, error: object, trace: object) -> None:
        if isinstance(error, UpstreamFailure) and self._endpoint:  # the answer broke off
            self._circuits.failed(self._endpoint, self._plan.deployment, error)
        await self._stack.aclose()

    def _is_over(self, state: RetryCallState) -> bool:
        return state.attempt_number > self._retries or self._clock.monotonic() + state.upcoming_sleep > self._deadline

    async def _try_endpoints(self) -> AsyncIterator[ServerEvent]:
        """The answer of the first endpoint that returns one. Otherwise raises the failure with the shortest wait; this
        includes the failures of paused endpoints, which are not tried."""
        failures = dict(self._exhausted)
        for endpoint in self._circuits.available(self._plan.deployment):
            if endpoint in self._exhausted:
                continue
            try:
                return await self._try(endpoint)
            except UpstreamFailure as failure:
                self.maybe_billed = failure.maybe_billed
                self._circuits.failed(endpoint, self._plan.deployment, failure)
                if failure.maybe_billed:
                    raise
                failures[endpoint] = failure
                if isinstance(failure, QuotaExhausted):
                    self._exhausted[endpoint] = failure
        failures = self._circuits.paused(self._plan.deployment) | failures
        raise min(failures.values(), key=lambda failure: (not _is_transient(failure), failure.pause or 0))

    async def _try(self, endpoint: Endpoint) -> AsyncIterator[ServerEvent]:
        """Try one endpoint. Retry without options that it rejects, as long as the body is a new one, and once with a
        fresh token."""
        self._endpoint, renewed, token = endpoint, False, None
        rejected: list[dict[str, Any]] = []
        while True:
            body = self._options.body(self._plan)
            try:
                token = await endpoint.sign_in()
                self.attempts += 1
                self.maybe_billed = True
                self.headers, answer = await endpoint.send(self._plan, body, self._call_id, self._stack)
            except OptionRejected as rejection:
                self.maybe_billed = False
                rejected.append(body)
                self._options.learn(rejection, self._plan, body)
                if self._options.body(self._plan) in rejected:
                    raise
            except NotAuthorized as refusal:
                self.maybe_billed = False
                if renewed or not refusal.stale or not await endpoint.renew(token):
                    endpoint.log_refusal(refusal)
                    raise
                renewed = True
            else:
                return answer


def _is_transient(error: BaseException) -> bool:
    """True if the attempt can be retried within its call: it was certainly not billed and may succeed later."""
    return isinstance(error, RateLimited | UpstreamUnavailable) and not isinstance(error, NotAuthorized)


def _wait(state: RetryCallState) -> float:
    """Seconds until the next attempt: the pause that the service requests, or exponential backoff with jitter."""
    error = state.outcome.exception() if state.outcome else None
    pause = error.pause if isinstance(error, UpstreamFailure) else None
    return pause or _backoff(state)
