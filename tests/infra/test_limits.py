"""Limits of a deployed app: the app setting LIMITS that the template makes, and what azd's hook prints about it."""

import json
import os
import re
import subprocess
from collections.abc import Mapping
from decimal import Decimal
from typing import Any

import pytest

from infra import priced_models
from local.places import ROOT
from shared.domain.clock import SystemClock
from shared.domain.limits import Limit, Limits
from shared.domain.pricing import Prices
from shared.setting_values import parse_limits, parse_prices
from tests.infra.conftest import Predict
from tests.support import bicep
from tests.support.bicep import Deployment, Refused

DEFAULT = Limit(name="total", usd_per_day=Decimal(20), usd_per_month=Decimal(100))


def model(name: str, version: str, deployment: str = "chat") -> dict[str, Any]:
    return {"name": deployment, "model": name, "version": version, "sku": "GlobalStandard", "capacity": 20}


def limits(deployment: Deployment) -> Limits:
    """As the app reads them."""
    setting = deployment.settings["LIMITS"]
    assert deployment.outputs["APP_LIMITS"] == setting
    return parse_limits(setting) if setting else Limits()


@pytest.mark.skipif(bicep.compiler() is None, reason=bicep.MISSING)
class TestTemplate:
    def test_default_limits_the_total(self, predict: Predict) -> None:
        deployment = predict()
        assert limits(deployment) == Limits(by_name={"total": DEFAULT})
        assert deployment.outputs["UNPRICED_DEPLOYMENTS"] == ""

    @pytest.mark.parametrize(
        ("day", "month", "expected"),
        [
            ("12.50", "123456.000000000001", ("12.50", "123456.000000000001")),  # more digits than a float has
            ("0", "0.00", (None, None)),
            ("0.5", "", ("0.5", "100")),
        ],
    )
    def test_amounts_are_exact_and_0_is_off(
        self, predict: Predict, day: str, month: str, expected: tuple[str | None, str | None]
    ) -> None:
        deployment = predict(limitUsdPerDay=day, limitUsdPerMonth=month)
        total = limits(deployment).by_name.get("total", Limit())
        assert (total.usd_per_day, total.usd_per_month) == tuple(amount and Decimal(amount) for amount in expected)
        assert deployment.settings["LIMITS"] != "{}"

    def test_limits_are_added_and_win_over_the_defaults(self, predict: Predict) -> None:
        configured = {
            "total": {"usd_per_month": 250.1, "requests_per_minute": 60},
            "key:ada": {"usd_per_day": "123456.000000000001", "usd_per_month": 0.0000001},
            "session": {"usd": 0.3, "max_tokens": 400},
        }
        total = Limit(name="total", usd_per_day=Decimal(20), usd_per_month=Decimal("250.1"), requests_per_minute=60)
        ada = Limit(name="key:ada", usd_per_day=Decimal("123456.000000000001"), usd_per_month=Decimal("0.0000001"))
        assert limits(predict(limits=configured)) == Limits(
            by_name={"total": total, "key:ada": ada}, session_usd=Decimal("0.3"), session_max_tokens=400
        )

    def test_default_is_off_where_a_price_is_not_known(self, predict: Predict) -> None:
        deployment = predict(modelDeployments=[model("gpt-5.4-mini", "2026-03-17"), model("grok-4", "1", "other")])
        assert limits(deployment) == Limits()
        assert deployment.outputs["UNPRICED_DEPLOYMENTS"] == "other=grok-4@1"

    def test_limit_that_was_set_is_on_all_the_same(self, predict: Predict) -> None:
        deployment = predict(modelDeployments=[model("grok-4", "1")], limitUsdPerDay="5")
        assert limits(deployment) == Limits(by_name={"total": Limit(name="total", usd_per_day=Decimal(5))})

    @pytest.mark.parametrize(
        ("parameter", "name"), [("prices", "chat"), ("prices", "grok-4"), ("extraSettings", "grok-4-1")]
    )
    def test_price_that_was_set_is_known(self, predict: Predict, parameter: str, name: str) -> None:
        prices = {name: {"input": 0.075, "output": "4.50"}}
        value = prices if parameter == "prices" else {"PRICES": json.dumps(prices)}
        deployment = predict(**{parameter: value}, modelDeployments=[model("grok-4", "1")])
        assert deployment.outputs["UNPRICED_DEPLOYMENTS"] == ""
        assert limits(deployment) == Limits(by_name={"total": DEFAULT})
        assert parse_prices(deployment.settings["PRICES"]) == parse_prices(json.dumps(prices))

    def test_it_knows_the_prices_that_the_app_knows(self, predict: Predict) -> None:
        """Of the versions that were deployed; Azure's answers name the version."""
        models = [
            ("gpt-35-turbo", "0125"),
            ("gpt-4", "turbo-2024-04-09"),
            ("gpt-4", "0613"),
            ("gpt-4o", "2024-05-13"),
            ("gpt-4o", "2099-12-31"),
            ("gpt-5.4-mini", "2026-03-17"),
            ("gpt-5.4-mini", "2099-12-31"),
            ("gpt-5.6-luna", "2099-12-31"),
            ("o4-mini", "2025-04-16"),
            ("text-embedding-3-small", "1"),
            ("text-embedding-3-large", "2"),
            ("gpt-oss-120b", "1"),
            ("DeepSeek-V3.1", "1"),
        ]
        deployments = [model(name, version, f"d{number}") for number, (name, version) in enumerate(models)]
        listed = predict(modelDeployments=deployments).outputs["UNPRICED_DEPLOYMENTS"]
        prices = Prices({}, {each["name"]: f"{each['model']}@{each['version']}" for each in deployments}, SystemClock())
        expected = [
            f"{each['name']}={each['model']}@{each['version']}"
            for each in deployments
            if not prices.rates(each["name"], f"{each['model']}-{each['version']}")
        ]
        assert listed.split(", ") == expected
        assert 0 < len(expected) < len(models)

    @pytest.mark.parametrize(
        ("parameters", "reason"),
        [
            ({"limitUsdPerDay": "10 USD"}, '"10 USD" is not an amount in USD'),
            ({"limitUsdPerMonth": "1,000"}, '"1,000" is not an amount in USD'),
            ({"limitUsdPerMonth": "1.000.000"}, '"1.000.000" is not an amount in USD'),
            ({"limitUsdPerDay": "."}, r'"\." is not an amount in USD'),
            ({"limitUsdPerMonth": "1000000"}, '"1000000" is not an amount in USD'),
            ({"limitUsdPerDay": "0.0000000000001"}, '"0.0000000000001" is not an amount in USD'),
            ({"extraSettings": {"LIMITS": "{}"}}, "extraSettings can't set LIMITS"),
            ({"prices": {"a": {}}, "extraSettings": {"PRICES": "{}"}}, "PRICES is set twice"),
        ],
    )
    def test_invalid_parameters_are_rejected(
        self, predict: Predict, parameters: Mapping[str, Any], reason: str
    ) -> None:
        with pytest.raises(Refused, match=reason):
            predict(**parameters)


class TestPricedModels:
    def test_file_is_that_of_the_installed_package(self) -> None:
        """Run `python -m infra.priced_models` to update it, after a newer release of genai-prices."""
        assert json.loads(priced_models.FILE.read_text()) == priced_models.priced_models()

    def test_app_knows_the_price_of_each(self) -> None:
        prices = Prices({}, {}, SystemClock())
        models = [name.removesuffix("-*") for name in json.loads(priced_models.FILE.read_text())]
        names = [name if "embedding" in name else name.replace("*", "2098-01-02") for name in models]
        assert [name for name in names if not prices.rates("chat", name)] == []
        assert len(names) > 50


@pytest.mark.skipif(os.name == "nt", reason="the hooks are POSIX scripts")
class TestHook:
    def run(self, **values: str) -> str:
        result = subprocess.run(
            ["sh", str(ROOT / "infra" / "hooks" / "limits.sh")],
            env={"PATH": os.environ["PATH"], **values},
            capture_output=True,
            text=True,
            check=True,
        )
        assert result.stderr == ""
        return result.stdout

    def test_limits_are_printed(self) -> None:
        setting = '{"total":{"usd_per_day":"20"}}'
        assert self.run(APP_LIMITS=setting, UNPRICED_DEPLOYMENTS="") == f"The app's limits: {setting}\n"

    def test_deployments_without_a_price_are_named_with_what_to_do(self) -> None:
        output = self.run(APP_LIMITS="", UNPRICED_DEPLOYMENTS="chat=grok-4@1, other=gpt-5.4-mini@2099-12-31")
        assert output.startswith("The app has no limits.\n")
        assert "\nNo price is known for chat=grok-4@1, other=gpt-5.4-mini@2099-12-31\n" in output
        assert "The default limits in USD are off" in output
        assert """azd env set PRICES '{"chat": {"input": INPUT, "output": OUTPUT}}'""" in output

    def test_both_shells_print_the_same(self) -> None:
        posix, windows = ((ROOT / "infra" / "hooks" / f"limits.{suffix}").read_text() for suffix in ("sh", "ps1"))
        for pattern in (r"(?m)^- .*$", r"The app[^\"$]*", r"No price is known for ", r"{\"input.*}}'"):
            assert re.findall(pattern, posix) == re.findall(pattern, windows) != []
