"""What a call costs: usage and rates to exact USD, Decimal from end to end.

Prices come from the PRICES setting, by deployment and then by model, else from genai-prices' offline list prices
(provider azure: the global SKU). Where neither knows a model the cost is None, never zero.
"""

import re
from collections.abc import Iterator, Mapping
from datetime import datetime
from decimal import Decimal

from genai_prices.data_snapshot import get_snapshot
from genai_prices.types import TieredPrices

from shared.domain.calls import Rates, Usage
from shared.domain.clock import Clock

_VERSION = re.compile(r"-(\d{4}-\d{2}-\d{2}|\d{4})(-preview)?$")
_PER_MILLION = -6


def cost(usage: Usage, rates: Rates) -> Decimal:
    """USD for the tokens of one call. Cached and cache-write tokens are part of the prompt, each at its own rate;
    reasoning tokens are part of the completion."""
    plain = usage.prompt_tokens - usage.cached_tokens - usage.cache_write_tokens
    micro = (
        plain * rates.input
        + usage.cached_tokens * rates.cached_input
        + usage.cache_write_tokens * rates.cache_write
        + usage.completion_tokens * rates.output
    )
    return micro.scaleb(_PER_MILLION)


def worst_case(prompt_tokens: int, completion_tokens: int, rates: Rates) -> Decimal:
    """An upper bound of a call's cost in USD: the whole prompt at the highest input rate, the longest answer."""
    highest = max(rates.input, rates.cached_input, rates.cache_write)
    return (prompt_tokens * highest + completion_tokens * rates.output).scaleb(_PER_MILLION)


def saved(usage: Usage, rates: Rates) -> Decimal:
    """USD saved by cached tokens, compared with the input rate."""
    return (usage.cached_tokens * (rates.input - rates.cached_input)).scaleb(_PER_MILLION)


class Prices:
    """Rates by deployment and model. `configured`: the PRICES setting; `deployments`: deployment -> model[@version]."""

    def __init__(self, configured: Mapping[str, Rates], deployments: Mapping[str, str], clock: Clock) -> None:
        self._clock = clock
        self._configured = {_spelled(name): rates for name, rates in configured.items()}
        self._deployments = deployments

    def rates(self, deployment: str, model: str | None = None, *, prompt_tokens: int = 0) -> Rates | None:
        """The rates of a call, None where no price is known.

        `model` is the name in the service's answer: if it has a version, it alone decides, because Azure moves a
        deployment to another version by itself. Otherwise the deployment's configured model decides. `prompt_tokens`
        chooses the tier where a model's price depends on the prompt's length.
        """
        names = [_spelled(name) for name in self._names(deployment, model)]
        for name in (_spelled(deployment), *names, *(_VERSION.sub("", name) for name in names)):
            if name in self._configured:
                return self._configured[name]
        listed = (_listed(name, prompt_tokens, self._clock.now()) for name in names)
        return next(filter(None, listed), None)

    def _names(self, deployment: str, model: str | None) -> Iterator[str]:
        """Names of the model, the most specific first."""
        configured, _, version = self._deployments.get(deployment, "").partition("@")
        if model and _VERSION.search(model):
            yield model
        elif configured:
            if version:
                yield f"{configured}-{version}"
            yield configured
        else:
            yield model or deployment


def _spelled(name: str) -> str:
    """Azure's spelling of a model in OpenAI's, which lists and answers use too."""
    return name.replace("gpt-35-", "gpt-3.5-")


def _listed(name: str, prompt_tokens: int, now: datetime) -> Rates | None:
    try:
        _, model = get_snapshot().find_provider_model(name, None, "azure", None)
    except LookupError:
        return None
    prices = model.get_prices(now)
    plain, output = _tier(prices.input_mtok, prompt_tokens), _tier(prices.output_mtok, prompt_tokens)
    if plain is None or output is None:
        return None
    cached, written = _tier(prices.cache_read_mtok, prompt_tokens), _tier(prices.cache_write_mtok, prompt_tokens)
    return Rates(
        input=plain,
        cached_input=plain if cached is None else cached,
        cache_write=plain if written is None else written,
        output=output,
    )


def _tier(price: Decimal | TieredPrices | None, prompt_tokens: int) -> Decimal | None:
    """A prompt above a tier's start is charged at the tier's rate whole, as OpenAI does for long contexts."""
    if not isinstance(price, TieredPrices):
        return price
    passed = [tier.price for tier in price.tiers if prompt_tokens > tier.start]
    return passed[-1] if passed else price.base
