"""The cost of a call: exact, at the right rates, and never above its worst case."""

from collections.abc import Mapping
from dataclasses import replace
from decimal import Decimal
from fractions import Fraction

import pytest
from hypothesis import given
from hypothesis import strategies as st

from shared.domain.calls import Rates, Usage
from shared.domain.clock import SystemClock
from shared.domain.pricing import DEFAULT_TIER, Prices, cost, worst_case

AMOUNTS = st.decimals(0, 999_999, places=12)
RATES = st.builds(
    Rates,
    input=AMOUNTS,
    cached_input=AMOUNTS,
    cache_write=AMOUNTS,
    output=AMOUNTS,
    audio_input=AMOUNTS,
    audio_output=AMOUNTS,
)


def prices_of(configured: Mapping[str, Rates], deployments: Mapping[str, str]) -> Prices:
    return Prices({name: {DEFAULT_TIER: each} for name, each in configured.items()}, deployments, SystemClock())


def rates(amount: int | str, output: int | str = 0) -> Rates:
    price = Decimal(amount)
    return Rates(input=price, cached_input=price, cache_write=price, output=Decimal(output))


@st.composite
def usages(draw: st.DrawFn) -> Usage:
    """Usage as a service reports it: cached, cache-write and audio prompt tokens are part of the prompt, reasoning and
    audio completion tokens of the completion."""
    prompt, completion = draw(st.integers(0, 2_000_000)), draw(st.integers(0, 200_000))
    cached = draw(st.integers(0, prompt))
    cache_write = draw(st.integers(0, prompt - cached))
    return Usage(
        prompt_tokens=prompt,
        cached_tokens=cached,
        cache_write_tokens=cache_write,
        completion_tokens=completion,
        reasoning_tokens=draw(st.integers(0, completion)),
        audio_prompt_tokens=draw(st.integers(0, prompt - cached - cache_write)),
        audio_completion_tokens=draw(st.integers(0, completion)),
    )


def exact(usage: Usage, each: Rates) -> Decimal:
    amount = cost(usage, each)
    assert amount is not None
    return amount


def bound(prompt: int, completion: int, each: Rates, *, audio: bool = False) -> Decimal:
    amount = worst_case(prompt, completion, each, audio=audio)
    assert amount is not None
    return amount


class TestCost:
    def test_cost_uses_one_rate_per_kind_of_token(self) -> None:
        usage = Usage(
            prompt_tokens=1_000, cached_tokens=600, cache_write_tokens=100, completion_tokens=50, reasoning_tokens=40
        )
        each = Rates(input=Decimal(1), cached_input=Decimal("0.1"), cache_write=Decimal("1.25"), output=Decimal("4.5"))
        assert cost(usage, each) == Decimal("0.00071")  # (300 + 60 + 125 + 225) / 1,000,000

    def test_reasoning_tokens_are_charged_as_completion_once(self) -> None:
        usage = Usage(completion_tokens=10, reasoning_tokens=9)
        assert cost(usage, rates(1, 4)) == cost(Usage(completion_tokens=10), rates(1, 4))

    @given(usages(), RATES)
    def test_cost_is_exact(self, usage: Usage, each: Rates) -> None:
        audio_rates = Fraction(each.audio_input or 0), Fraction(each.audio_output or 0)
        plain = usage.prompt_tokens - usage.cached_tokens - usage.cache_write_tokens - usage.audio_prompt_tokens
        micro = (
            plain * Fraction(each.input)
            + usage.cached_tokens * Fraction(each.cached_input)
            + usage.cache_write_tokens * Fraction(each.cache_write)
            + usage.audio_prompt_tokens * audio_rates[0]
            + (usage.completion_tokens - usage.audio_completion_tokens) * Fraction(each.output or 0)
            + usage.audio_completion_tokens * audio_rates[1]
        )
        assert Fraction(exact(usage, each)) == micro / 1_000_000

    @pytest.mark.parametrize("kind", ["audio_prompt_tokens", "audio_completion_tokens", "unpriced_kinds"])
    def test_cost_is_unknown_if_a_kind_of_token_has_no_rate(self, kind: str) -> None:
        usage = Usage(prompt_tokens=100, completion_tokens=100)
        assert cost(usage, rates(1, 4)) is not None
        assert cost(usage.plus(Usage(**{kind: 1})), rates(1, 4)) is None

    @given(usages(), RATES, st.integers(0, 10_000), st.integers(0, 10_000))
    def test_cost_never_exceeds_the_worst_case(
        self, usage: Usage, each: Rates, prompt_slack: int, answer_slack: int
    ) -> None:
        prompt, completion = usage.prompt_tokens + prompt_slack, usage.completion_tokens + answer_slack
        assert exact(usage, each) <= bound(prompt, completion, each, audio=True)
        text = replace(usage, audio_prompt_tokens=0, audio_completion_tokens=0)
        assert exact(text, each) <= bound(prompt, completion, each)

    def test_worst_case_of_audio_is_unknown_without_its_rates(self) -> None:
        assert worst_case(1, 1, rates(1, 4), audio=True) is None

    def test_worst_case_uses_the_highest_prompt_rate(self) -> None:
        each = Rates(input=Decimal(1), cached_input=Decimal(0), cache_write=Decimal("1.25"), output=Decimal(4))
        assert worst_case(1_000_000, 1_000_000, each) == Decimal("5.25")


class TestConfiguredPrices:
    def test_price_by_deployment_wins_over_price_by_model(self) -> None:
        prices = prices_of({"chat": rates(1), "gpt-4.1": rates(2)}, {"chat": "gpt-4.1"})
        assert prices.rates("chat", "gpt-4.1-2025-04-14") == rates(1)

    @pytest.mark.parametrize("model", ["my-model", "my-model-2026-03-17", "my-model-0613"])
    def test_price_by_model_applies_to_its_versions(self, model: str) -> None:
        assert prices_of({"my-model": rates(2)}, {"chat": ""}).rates("chat", model) == rates(2)

    def test_price_of_a_version_wins_over_price_of_the_model(self) -> None:
        prices = prices_of({"my-model": rates(2), "my-model-2026-03-17": rates(3)}, {})
        assert prices.rates("chat", "my-model-2026-03-17") == rates(3)
        assert prices.rates("chat", "my-model-2026-09-01") == rates(2)

    def test_price_of_a_version_does_not_apply_to_another_version(self) -> None:
        assert prices_of({"my-model-2026-03-17": rates(3)}, {}).rates("chat", "my-model-2026-09-01") is None

    def test_version_in_the_answer_wins_over_the_configured_version(self) -> None:
        prices = prices_of({"gpt-35-turbo-0301": rates(9)}, {"chat": "gpt-35-turbo@0301"})
        assert (
            prices.rates("chat", "gpt-35-turbo-0125") == prices_of({}, {}).rates("x", "gpt-35-turbo-0125") is not None
        )
        other = prices_of({"gpt-4.1": rates(2), "gpt-5": rates(1)}, {"chat": "gpt-4.1"})
        assert other.rates("chat", "gpt-5-2025-08-07") == rates(1)
        assert prices_of({}, {"chat": "gpt-4.1"}).rates("chat", "gpt-4.1-2099-01-01") is None

    @pytest.mark.parametrize("answered", ["gpt-35-turbo-0125", "gpt-3.5-turbo-0125", "gpt-35-turbo"])
    def test_both_spellings_of_gpt_35_have_the_configured_price(self, answered: str) -> None:
        assert prices_of({"gpt-35-turbo": rates(2)}, {}).rates("chat", answered) == rates(2)

    def test_price_of_the_configured_model_applies_before_the_answer(self) -> None:
        assert prices_of({"my-model": rates(2)}, {"chat": "my-model@2026-03-17"}).rates("chat") == rates(2)

    def test_price_of_a_model_does_not_apply_to_a_longer_name(self) -> None:
        prices = prices_of({"gpt-4": rates(30)}, {})
        assert prices.rates("chat", "gpt-4.1") != rates(30)
        assert prices.rates("chat", "gpt-4-turbo-2024-04-09") != rates(30)

    def test_configured_price_wins_over_the_list_price(self) -> None:
        assert prices_of({"gpt-4.1": rates(9)}, {}).rates("chat", "gpt-4.1-2025-04-14") == rates(9)


class TestServiceTiers:
    PRICES = Prices({"chat": {DEFAULT_TIER: rates(1, 9), "priority": rates(2, 8)}}, {}, SystemClock())

    @pytest.mark.parametrize("tier", [None, "", "default", "auto", "standard", "on_demand", "Default"])
    def test_default_tier_has_the_default_price(self, tier: str | None) -> None:
        assert self.PRICES.rates("chat", tier=tier) == rates(1, 9)
        assert prices_of({}, {}).rates("gpt-4.1", tier=tier) == prices_of({}, {}).rates("gpt-4.1") is not None

    def test_other_tier_has_only_its_configured_price(self) -> None:
        assert self.PRICES.rates("chat", tier="priority") == self.PRICES.rates("chat", tier="Priority") == rates(2, 8)
        assert self.PRICES.rates("chat", tier="flex") is None
        assert prices_of({}, {}).rates("gpt-4.1", tier="priority") is None

    def test_worst_case_takes_the_highest_rate_of_each_kind_over_all_tiers(self) -> None:
        assert self.PRICES.highest_rates("chat", prompt_tokens=1) == rates(2, 9)


class TestListPrices:
    def test_audio_has_its_own_price(self) -> None:
        priced = prices_of({}, {"chat": "gpt-audio"}).rates("chat", "gpt-audio-2025-08-28")
        assert priced is not None
        usage = Usage(prompt_tokens=17, completion_tokens=592, audio_completion_tokens=482)
        assert cost(usage, priced) == Decimal("0.0319905")  # (17 * 2.5 + 110 * 10 + 482 * 64) / 1,000,000

    @pytest.mark.parametrize(
        "model",
        [
            *("DeepSeek-R1", "deepseek-chat", "grok-4", "grok-3-mini", "kimi-k2", "Kimi-K2-Thinking"),
            *("claude-sonnet-4-5", "claude-opus-4-1-20250805", "Mistral-Large-2411", "Llama-3.3-70B-Instruct"),
            *("gpt-oss-120b", "mai-ds-r1", "gpt-4.1-mini-2025-04-14.ft-0123abc", "ft:gpt-4o-mini-2024-07-18:acme"),
        ],
    )
    def test_other_makers_models_have_no_list_price(self, model: str) -> None:
        assert prices_of({}, {"chat": model}).rates("chat", model) is None
        assert prices_of({model: rates(1)}, {"chat": model}).rates("chat", model) == rates(1)

    def test_router_has_no_list_price_although_it_names_the_model_that_answered(self) -> None:
        assert prices_of({}, {"chat": "model-router"}).rates("chat", "gpt-5-nano-2025-08-07") is None
        assert prices_of({}, {"chat": "model-router@2025-11-18"}).rates("chat", "gpt-5-nano-2025-08-07") is None
        assert prices_of({"chat": rates(1)}, {"chat": "model-router"}).rates("chat", "gpt-5-nano") == rates(1)

    @pytest.mark.parametrize("model", ["gpt-5-search-api", "gpt-4o-search-preview", "o3-deep-research"])
    def test_models_that_bill_by_the_search_have_no_list_price(self, model: str) -> None:
        assert prices_of({}, {"chat": model}).rates("chat", model) is None

    @pytest.mark.parametrize("model", ["phi-4", "o3-mini", "gpt-4o", "gpt-5.4-mini-2026-03-17", "codex-mini"])
    def test_azures_and_openais_models_have_a_list_price(self, model: str) -> None:
        assert prices_of({}, {"chat": model}).rates("chat", model) is not None

    def test_answers_model_decides_the_price_if_it_has_a_version(self) -> None:
        priced = prices_of({}, {"chat": "gpt-4"}).rates("chat", "gpt-4.1-2025-04-14")
        assert priced == prices_of({}, {"other": "gpt-4.1"}).rates("other")

    def test_configured_model_decides_the_price_if_the_answers_has_no_version(self) -> None:
        priced = prices_of({}, {"chat": "gpt-4.1-mini@2025-04-14"}).rates("chat", "gpt-4")
        assert priced == prices_of({}, {}).rates("x", "gpt-4.1-mini-2025-04-14")

    def test_configured_version_decides_the_price(self) -> None:
        old = prices_of({}, {"chat": "gpt-4o@2024-05-13"}).rates("chat")
        new = prices_of({}, {"chat": "gpt-4o@2024-08-06"}).rates("chat")
        assert old is not None
        assert new is not None
        assert old.input > new.input

    def test_gpt_35_turbo_0301_is_not_priced_as_0125(self) -> None:
        prices = prices_of({}, {"old": "gpt-35-turbo@0301", "new": "gpt-35-turbo@0125"})
        old, new = prices.rates("old", "gpt-35-turbo"), prices.rates("new", "gpt-35-turbo")
        assert old is not None
        assert new is not None
        assert (old.input, old.output) == (Decimal("1.5"), Decimal(2))
        assert (new.input, new.output) == (Decimal("0.5"), Decimal("1.5"))

    def test_preview_version_has_its_own_price(self) -> None:
        preview = prices_of({}, {"chat": "gpt-4"}).rates("chat", "gpt-4-1106-preview")
        assert preview == prices_of({}, {}).rates("gpt-4-1106-preview") != prices_of({}, {}).rates("gpt-4")

    def test_answers_model_without_version_decides_if_none_is_configured(self) -> None:
        assert prices_of({}, {"chat": ""}).rates("chat", "gpt-4.1") == prices_of({}, {}).rates("gpt-4.1")

    def test_deployment_named_like_a_model_has_the_models_price(self) -> None:
        priced = prices_of({}, {"gpt-5.4-mini": ""}).rates("gpt-5.4-mini")
        assert priced is not None
        assert (priced.input, priced.output) == (Decimal("0.75"), Decimal("4.5"))

    def test_azures_spelling_of_gpt_35_has_a_list_price(self) -> None:
        prices = prices_of({}, {})
        assert prices.rates("x", "gpt-35-turbo-0125") == prices.rates("x", "gpt-3.5-turbo-0125") is not None

    def test_gpt_4_1_is_not_priced_as_gpt_4(self) -> None:
        prices = prices_of({}, {})
        expensive, cheap = prices.rates("x", "gpt-4"), prices.rates("x", "gpt-4.1")
        assert expensive is not None
        assert cheap is not None
        assert expensive.input == 15 * cheap.input

    def test_long_prompt_is_charged_at_the_rate_of_its_tier(self) -> None:
        prices = prices_of({}, {})
        short, long = prices.rates("x", "gpt-5.4"), prices.rates("x", "gpt-5.4", prompt_tokens=1_000_000)
        assert short is not None
        assert long is not None
        assert long.input > short.input
        assert (long.output or 0) > (short.output or 0)

    @given(st.integers(0, 2_000_000), st.integers(0, 2_000_000))
    def test_rate_never_falls_with_a_longer_prompt(self, one: int, other: int) -> None:
        less, more = sorted((one, other))
        cheap = prices_of({}, {}).rates("x", "gpt-5.4", prompt_tokens=less)
        expensive = prices_of({}, {}).rates("x", "gpt-5.4", prompt_tokens=more)
        assert cheap is not None
        assert expensive is not None
        assert bound(more, 1, expensive) >= bound(less, 1, cheap)

    def test_cached_and_cache_write_tokens_without_a_price_cost_the_input_rate(self) -> None:
        priced = prices_of({}, {}).rates("x", "gpt-4")
        assert priced is not None
        assert priced.cached_input == priced.cache_write == priced.input


@pytest.mark.parametrize(
    "model",
    ["my-gpt-4-deployment", "prod-gpt-4o", "gpt-99", "gpt-4.1-2099-01-01", "llama", "default", "GPT", "-2024-05-13"],
)
def test_unknown_model_has_no_price(model: str) -> None:
    assert prices_of({}, {"chat": ""}).rates("chat", model) is None


def test_unknown_deployment_has_no_price_before_the_answer() -> None:
    assert prices_of({}, {"chat": ""}).rates("chat") is None


@given(st.text(max_size=40))
def test_random_model_names_never_raise(name: str) -> None:
    prices_of({}, {name: name}).rates(name, name)
