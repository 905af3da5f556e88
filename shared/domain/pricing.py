"""The cost of a call in exact USD from usage and rates. All amounts are Decimal.

Prices come from the PRICES setting, by deployment and then by model, else from genai-prices' offline list prices
(provider azure: the global SKU). If neither has a price for a model, the cost is None, never zero.
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
    """An upper bound on a call's cost in USD: all prompt tokens at the highest input rate, and the maximum
    answer. Both counts are upper bounds."""
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
        """The rates of a call; None if no price is known.

        `model` is the name in the service's answer. If it includes a version, it determines the price, because Azure
        upgrades deployments to newer versions. Otherwise the deployment's configured model does. `prompt_tokens`
        selects the tier if the model's price depends on the prompt's length.
        """
        names = [_spelled(name) for name in self._names(deployment, model)]
        for name in (_spelled(deployment), *names, *(_VERSION.sub("", name) for name in names)):
            if name in self._configured:
                return self._configured[name]
        listed = (_listed(name, prompt_tokens, self._clock.now()) for name in names)
        return next(filter(None, listed), None)

    def _names(self, deployment: str, model: str | None) -> Iterator[str]:
        """Possible names of the model, most specific first."""
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
    """The model's name in OpenAI's spelling, which price lists and answers also use, instead of Azure's."""
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
    cached, cache_write = _tier(prices.cache_read_mtok, prompt_tokens), _tier(prices.cache_write_mtok, prompt_tokens)
    return Rates(
        input=plain,
        cached_input=plain if cached is None else cached,
        cache_write=plain if cache_write is None else cache_write,
        output=output,
    )


def _tier(price: Decimal | TieredPrices | None, prompt_tokens: int) -> Decimal | None:
    """The price for a prompt of this length. The highest tier reached applies to all tokens, as in OpenAI's prices
    for long contexts."""
    if not isinstance(price, TieredPrices):
        return price
    reached = [tier.price for tier in price.tiers if prompt_tokens > tier.start]
    return reached[-1] if reached else price.base
