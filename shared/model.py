"""The model service as a turn sees it: several endpoints in order of preference, and what was certainly not billed
tried again, on the same call. What may have been billed is the turn's business.

An endpoint that is rate limited or failing is passed over while it cools, and then preferred again: a process keeps to
one endpoint for as long as it can, so that the service's prompt cache keeps hitting.
"""

import asyncio
import logging
from collections.abc import AsyncIterator, Mapping, Sequence
from contextlib import AsyncExitStack
from dataclasses import dataclass
from operator import attrgetter
from typing import Any, TypeAlias

from tenacity import AsyncRetrying, RetryCallState, retry_if_exception, wait_exponential_jitter

from shared.endpoint import Endpoint, NoDeployment, NotAuthorized, OptionRefused
from shared.errors import RateLimited, UpstreamFailure, UpstreamUnavailable
from shared.ports import Prompt

log = logging.getLogger(__name__)

COOLING = 30.0  # seconds that a failing endpoint is passed over, where it names none itself
LONGEST = 600.0  # seconds: the most, whatever it asks for
AGAIN = 0.5  # seconds until a turn asks it once more, where nothing else is cool and it names none itself
ABSENT = 600.0  # seconds until an endpoint is asked again for a deployment that it did not have
_PAUSED = "The model service asks for a pause. Send this again after Retry-After."
_back_off = wait_exponential_jitter(multiplier=0.5, max=20)


@dataclass(frozen=True, slots=True)
class _Cooling:
    """Until when an endpoint is passed over, on the loop's clock, and what is said of it where it asked for that."""

    until: float
    asked: type[RateLimited | UpstreamUnavailable] | None = None


_COOL = _Cooling(0)
_until = attrgetter("until")

# What an option is refused with: deployment, reasoning_effort, whether there are tools. Some models take temperature
# where they do not reason (vercel/ai#10932), or a reasoning_effort without tools (itzcrazykns/vane#1173).
_Company: TypeAlias = tuple[str, str | None, bool]


class Model:
    """`endpoints`: in order of preference. `defaults`: options that settings give, sent unless a turn names its own.
    `retries`: waits for another attempt once every endpoint has failed."""

    def __init__(self, endpoints: Sequence[Endpoint], *, defaults: Mapping[str, Any], retries: int) -> None:
        self._endpoints = endpoints
        self._defaults = defaults
        self.retries = retries
        self._cooling: dict[tuple[Endpoint, str | None], _Cooling] = {}  # of one deployment, or with None of all
        self._absent: dict[tuple[Endpoint, str], float] = {}  # until when it is not asked for a deployment
        self._refused: dict[_Company, set[str]] = {}  # options that are not taken

    def ask(self, prompt: Prompt) -> "Asking":
        return Asking(self, prompt)

    async def close(self) -> None:
        for endpoint in self._endpoints:
            await endpoint.close()

    def available(self, deployment: str) -> list[Endpoint]:
        """The endpoints to ask, one after the other: those that have cooled, in order of preference, then those that
        were passed over without having asked for it. Where all have asked for a pause, the one whose pause ends
        first."""
        now = _now()
        cooling = {end: self._cool(end, deployment) for end in self._having(deployment) or self._endpoints}
        cool = [end for end, each in cooling.items() if each.until <= now]
        passed_over = [end for end, each in cooling.items() if each.until > now and not each.asked]
        return [*cool, *passed_over] or [min(cooling, key=lambda end: cooling[end].until)]

    def paused(self, deployment: str) -> dict[Endpoint, UpstreamFailure]:
        """The endpoints that asked for a pause which is not over yet, as they would fail now."""
        cooling, now = {end: self._cool(end, deployment) for end in self._having(deployment)}, _now()
        return {
            end: each.asked(_PAUSED, maybe_billed=False, pause=each.until - now)
            for end, each in cooling.items()
            if each.asked and each.until > now
        }

    def pause(self, deployment: str) -> float:
        cooling = self._cool(self.available(deployment)[0], deployment)
        seconds = max(0.0, cooling.until - _now())
        return seconds if cooling.asked else min(seconds, AGAIN)

    def failed(self, endpoint: Endpoint, deployment: str, failure: UpstreamFailure) -> None:
        """Pass this endpoint over for a while; one that is rate limited for this deployment alone, which has a quota of
        its own: https://learn.microsoft.com/azure/ai-services/openai/how-to/quota."""
        limited = isinstance(failure, RateLimited)
        key = endpoint, deployment if limited else None
        if isinstance(failure, NoDeployment):
            log.warning("%s has no deployment %r", endpoint.name, deployment)
            self._absent[endpoint, deployment] = _now() + ABSENT
        elif failure.pause is None:  # it may have asked for longer before
            passed_over = _Cooling(_now() + COOLING)
            self._cooling[key] = max(self._cooling.get(key, _COOL), passed_over, key=_until)
        else:
            asked = RateLimited if limited else UpstreamUnavailable
            self._cooling[key] = _Cooling(_now() + min(failure.pause, LONGEST), asked)

    def _having(self, deployment: str) -> list[Endpoint]:
        now = _now()
        return [end for end in self._endpoints if self._absent.get((end, deployment), now) <= now]

    def _cool(self, endpoint: Endpoint, deployment: str) -> _Cooling:
        return max((self._cooling.get((endpoint, name), _COOL) for name in (deployment, None)), key=_until)

    def body(self, prompt: Prompt) -> dict[str, Any]:
        """The request. Unless it goes as its caller sent it, with the settings' options, and without those that the
        deployment is known to refuse of such a prompt and the turn can do without."""
        if prompt.as_sent:
            return dict(prompt.body)
        refused = self._refused.get(self._company(prompt), set())
        kept = {name: value for name, value in self._defaults.items() if name not in refused}
        own = {name: value for name, value in prompt.body.items() if name != "temperature" or name not in refused}
        return kept | own

    def leave_out(self, refusal: OptionRefused, prompt: Prompt) -> bool:
        """Whether the prompt may go without an option of its that was refused: one that no caller asked for, or
        temperature, if it is not its caller's value alone. From then on it is left out of prompts like this one."""
        name = refusal.param
        dispensable = name not in prompt.body or (name == "temperature" and refusal.as_such)
        if name is None or prompt.as_sent or not dispensable:
            return False
        known = self._refused.setdefault(self._company(prompt), set())
        if name not in known:
            known.add(name)
            log.warning("deployment %r does not take %s: left out of the like from now on", prompt.deployment, name)
        return True

    def _company(self, prompt: Prompt) -> _Company:
        effort = prompt.body.get("reasoning_effort", self._defaults.get("reasoning_effort"))
        return prompt.deployment, effort, "tools" in prompt.body


class Asking:
    """One call of the model: as many attempts as it takes until one answers, or may have been billed."""

    def __init__(self, model: Model, prompt: Prompt) -> None:
        self._model = model
        self._prompt = prompt
        self._stack = AsyncExitStack()
        self._asked: Endpoint | None = None
        self.attempts = 0
        self.headers: Mapping[str, str] = {}

    @property
    def endpoint(self) -> str | None:
        return self._asked.name if self._asked else None

    async def __aenter__(self) -> AsyncIterator[bytes]:
        retrying = AsyncRetrying(retry=retry_if_exception(_passing), wait=_wait, stop=self._over, reraise=True)
        return await retrying(self._somewhere)

    async def __aexit__(self, kind: object, raised: object, trace: object) -> None:
        if isinstance(raised, UpstreamFailure) and self._asked:  # in mid-answer
            self._model.failed(self._asked, self._prompt.deployment, raised)
        await self._stack.aclose()

    def _over(self, state: RetryCallState) -> bool:
        return state.attempt_number > self._model.retries or _now() + state.upcoming_sleep > self._prompt.deadline

    async def _somewhere(self) -> AsyncIterator[bytes]:
        """The answer of the first endpoint that gives one. Raises the failure that will pass soonest; one that is not
        asked because of its pause counts among them."""
        failures: dict[Endpoint, UpstreamFailure] = {}
        for endpoint in self._model.available(self._prompt.deployment):
            try:
                return await self._at(endpoint)
            except UpstreamFailure as failure:
                self._model.failed(endpoint, self._prompt.deployment, failure)
                if failure.maybe_billed:
                    raise
                failures[endpoint] = failure
        failures = self._model.paused(self._prompt.deployment) | failures
        raise min(failures.values(), key=lambda failure: (not _passing(failure), failure.pause or 0))

    async def _at(self, endpoint: Endpoint) -> AsyncIterator[bytes]:
        """One endpoint: again without an option that it refused, and once with a fresh token."""
        self._asked, renewed, token = endpoint, False, None
        while True:
            body = self._model.body(self._prompt)
            try:
                token = await endpoint.sign_in()
                self.attempts += 1
                self.headers, answer = await endpoint.ask(self._prompt, body, self._stack)
            except OptionRefused as refusal:
                if refusal.param not in body or not self._model.leave_out(refusal, self._prompt):
                    raise
            except NotAuthorized as failure:
                if renewed or not failure.stale or not await endpoint.renew(token):
                    endpoint.complain(failure)
                    raise
                renewed = True
            else:
                return answer


def _passing(error: BaseException) -> bool:
    """Whether the same call may be made again: it was certainly not billed, and may go through later."""
    return isinstance(error, RateLimited | UpstreamUnavailable) and not isinstance(error, NotAuthorized)


def _wait(state: RetryCallState) -> float:
    """Seconds: what the service asks for, else exponential back-off with jitter."""
    error = state.outcome.exception() if state.outcome else None
    pause = error.pause if isinstance(error, UpstreamFailure) else None
    return pause or _back_off(state)


def _now() -> float:
    return asyncio.get_running_loop().time()
