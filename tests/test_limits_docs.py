"""docs/limits.md and the other documents: each LIMITS that they show is a valid setting."""

import json
import re
from decimal import Decimal

import pytest

from local.environment import settings_file
from local.places import ROOT
from shared.domain.clock import SystemClock
from shared.domain.pricing import Prices, worst_case
from shared.setting_values import parse_limits

LIMITS = (ROOT / "docs" / "limits.md").read_text()
DOCUMENTS = [ROOT / "README.md", *sorted((ROOT / "docs").glob("*.md"))]
EXAMPLES = [
    *re.findall(r"```json\n(.*?)```", LIMITS, re.DOTALL),
    *(example for path in DOCUMENTS for example in re.findall(r"\bLIMITS[= ]'(\{.*?\})'", path.read_text())),
]


@pytest.mark.parametrize("example", EXAMPLES)
def test_example_is_a_valid_setting(example: str) -> None:
    limits = parse_limits(example)
    assert limits.by_name or limits.session_usd


def test_there_are_examples() -> None:
    assert len(EXAMPLES) >= 6


def test_example_of_the_sample_is_a_valid_setting() -> None:
    comment = json.loads((ROOT / "local.settings.sample.json").read_text())["Values"]["//LIMITS"]
    example = re.search(r"such as (\{.*\}\}):", comment)
    assert example
    assert parse_limits(example[1]).by_name.keys() == {"total", "*"}
    assert settings_file(ROOT / "local.settings.sample.json", optional=False)["LIMITS"] == ""


def test_worst_cases_of_an_answer_are_those_of_the_list_price() -> None:
    rates = Prices({}, {}, SystemClock()).rates("gpt-5.4-mini")
    assert rates
    assert f"gpt-5.4-mini's list price of {rates.output:.2f} USD" in LIMITS.replace("\n", " ")
    without, limited = worst_case(0, 128_000, rates), worst_case(0, 1_000, rates)
    assert without is not None
    assert f"128,000 tokens long: {round(without, 2)} USD" in LIMITS
    assert limited == Decimal("0.0045")
    assert "makes it 0.0045 USD" in LIMITS
