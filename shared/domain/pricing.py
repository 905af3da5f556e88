"""The cost of a call in exact USD from usage and rates. All amounts are Decimal.

Prices come from the PRICES setting, by deployment and then by model, else from genai-prices' offline list prices: those
of Azure, and OpenAI's for OpenAI's models (the global SKU has the same). If a price is not known, the cost is None,
never zero and never an estimate.
"""

import re
from collections.abc import Iterator, Mapping
from dataclasses import fields
from datetime import datetime
from decimal import Decimal
from typing import Any

from genai_prices.data_snapshot import get_snapshot
from genai_prices.types import ModelInfo, TieredPrices

from shared.domain.calls import Rates, Usage
from shared.domain.clock import Clock

DEFAULT_TIER = "default"
# Names of the tier without a surcharge or discount: OpenAI's, Anthropic's and Groq's.
DEFAULT_TIERS = (DEFAULT_TIER, "auto", "standard", "standard_only", "on_demand")
_VERSION = re.compile(r"-(\d{4}-\d{2}-\d{2}|\d{4})(-preview)?$")
# OpenAI sells no calls of its open models; its list leaves out searches; fine-tuned models and the router, which
# answers by the name of the model that it chose, cost more than that model (BerriAI/litellm#22957).
_NOT_LISTED = re.compile(r"gpt-oss|-search-|deep-research|^ft:|\.ft-")
_ROUTER = "model-router"
_PER_MILLION = -6

Tariff = Mapping[str, Rates]  # service tier -> its rates


def cost(usage: Usage, rates: Rates) -> Decimal | None:
    """USD for the tokens of one call. Cached, cache-write and audio tokens are part of the prompt or completion, each
    at its own rate; reasoning tokens cost what the completion costs. None if a kind of token has no known rate."""
    parts = (
        (usage.prompt_tokens - usage.cached_tokens - usage.cache_write_tokens - usage.audio_prompt_tokens, rates.input),
        (usage.cached_tokens, rates.cached_input),
        (usage.cache_write_tokens, rates.cache_write),
        (usage.audio_prompt_tokens, rates.audio_input),
        (usage.completion_tokens - usage.audio_completion_tokens, rates.output),
        (usage.audio_completion_tokens, rates.audio_output),
        (usage.unpriced_kinds, None),
    )
    micro = Decimal(0)
    for tokens, rate in parts:
        if tokens and rate is None:
            return None
        micro += tokens * (rate or 0)
    return micro.scaleb(_PER_MILLION)


def worst_case(prompt_tokens: int, completion_tokens: int, rates: Rates, *, audio: bool = False) -> Decimal | None:
    """An upper bound on a call's cost in USD: all prompt tokens at the highest input rate, and the maximum answer at
    the highest output rate. Both counts are upper bounds. None if a rate is not known that may apply."""
    prompt: list[Decimal | None] = [rates.input, rates.cached_input, rates.cache_write]
    completion: list[Decimal | None] = [rates.output] if completion_tokens else [Decimal(0)]
    if audio:
        prompt.append(rates.audio_input)
        completion.append(rates.audio_output)
    highest_input, highest_output = _highest(prompt), _highest(completion)
    if highest_input is None or highest_output is None:
        return None
    return (prompt_tokens * highest_input + completion_tokens * highest_output).scaleb(_PER_MILLION)


def _highest(rates: list[Decimal | None]) -> Decimal | None:
    """None if one of them is not known."""
    return None if None in rates else max(rate for rate in rates if rate is not None)


def saved(usage: Usage, rates: Rates) -> Decimal:
    """USD saved by cached tokens, compared with the input rate."""
    return (usage.cached_tokens * (rates.input - rates.cached_input)).scaleb(_PER_MILLION)


class Prices:
    """Rates by deployment and model. `configured`: the PRICES setting; `deployments`: deployment -> model[@version]."""

    def __init__(self, configured: Mapping[str, Tariff], deployments: Mapping[str, str], clock: Clock) -> None:
        self._clock = clock
        self._configured = {_spelled(name): tariff for name, tariff in configured.items()}
        self._deployments = deployments

    def rates(
        self, deployment: str, model: str | None = None, *, tier: str | None = None, prompt_tokens: int = 0
    ) -> Rates | None:
        """The rates of a call; None if no price is known.

        `model` is the name in the service's answer. If it includes a version, it determines the price, because Azure
        upgrades deployments to newer versions. Otherwise the deployment's configured model does. `tier` is the answer's
        service_tier. `prompt_tokens` selects the rates if the model's price depends on the prompt's length.
        """
        tier = (tier or DEFAULT_TIER).lower()
        return self._tariff(deployment, model, prompt_tokens).get(DEFAULT_TIER if tier in DEFAULT_TIERS else tier)

    def highest_rates(self, deployment: str, *, prompt_tokens: int) -> Rates | None:
        """The highest known rate of each kind, over the service tiers that a deployment may answer in."""
        tariff = self._tariff(deployment, None, prompt_tokens).values()
        if not tariff:
            return None
        highest: dict[str, Any] = {
            kind.name: max((rate for rates in tariff if (rate := getattr(rates, kind.name)) is not None), default=None)
            for kind in fields(Rates)
        }
        return Rates(**highest)

    def _tariff(self, deployment: str, model: str | None, prompt_tokens: int) -> Tariff:
        names = [_spelled(name) for name in self._names(deployment, model)]
        for name in (_spelled(deployment), *names, *(_VERSION.sub("", name) for name in names)):
            if name in self._configured:
                return self._configured[name]
        if self._deployments.get(deployment, deployment).partition("@")[0] == _ROUTER:
            return {}
        listed = (_listed(name, prompt_tokens, self._clock.now()) for name in names)
        return next(({DEFAULT_TIER: rates} for rates in listed if rates), {})

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
    model = _find(name)
    if model is None:
        return None
    prices = model.get_prices(now)
    plain, output = _by_length(prices.input_mtok, prompt_tokens), _by_length(prices.output_mtok, prompt_tokens)
    if plain is None:
        return None
    cached = _by_length(prices.cache_read_mtok, prompt_tokens)
    cache_write = _by_length(prices.cache_write_mtok, prompt_tokens)
    return Rates(
        input=plain,
        cached_input=plain if cached is None else cached,
        cache_write=plain if cache_write is None else cache_write,
        output=output,
        audio_input=_by_length(prices.input_audio_mtok, prompt_tokens),
        audio_output=_by_length(prices.output_audio_mtok, prompt_tokens),
    )


def _find(name: str) -> ModelInfo | None:
    """The model in Azure's or OpenAI's list. The other makers' lists hold their own prices, not those on Azure."""
    if _NOT_LISTED.search(name):
        return None
    lists = {provider.id: provider for provider in get_snapshot().providers}
    return lists["azure"].find_model(name) or lists["openai"].find_model(name)


def _by_length(price: Decimal | TieredPrices | None, prompt_tokens: int) -> Decimal | None:
    """The price for a prompt of this length. The highest price reached applies to all tokens, as in OpenAI's prices
    for long contexts."""
    if not isinstance(price, TieredPrices):
        return price
    reached = [tier.price for tier in price.tiers if prompt_tokens > tier.start]
    return reached[-1] if reached else price.base
