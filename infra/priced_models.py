"""Writes infra/priced-models.json: the models whose price the app knows, because a template can't look it up.

`python -m infra.priced_models` writes the file; tests/infra/test_limits.py fails while it differs from the prices of
the installed genai-prices. An entry is a model with its version, as Azure OpenAI's answers name it, or with `-*`: all
versions. Answers of embedding models name no version, so the price of these is the model's.
"""

import json
import re
from collections.abc import Iterator
from pathlib import Path
from typing import Any

from genai_prices.data_snapshot import get_snapshot

from shared.domain.clock import SystemClock
from shared.domain.pricing import Prices

FILE = Path(__file__).with_name("priced-models.json")
_NAME = re.compile(r"[a-z][\w.-]*\w")
_VERSIONED = re.compile(r"(.+)-(\d{4}-\d{2}-\d{2}|\d{4})(-preview)?")
_ANY_VERSION = "2099-12-31"
_EMBEDDING = "text-embedding-"


def priced_models() -> list[str]:
    """Names in OpenAI's spelling, sorted."""
    prices = Prices({}, {}, SystemClock())
    names = {name for name in _names() if _NAME.fullmatch(name) and prices.rates(name)}
    models = {name: match[1] for name in names if (match := _VERSIONED.fullmatch(name))}  # by name with version
    every = {name for name in {*names, *models.values()} if prices.rates(_answered(name))}
    return sorted({*(f"{model}-*" for model in every), *(name for name, model in models.items() if model not in every)})


def _answered(model: str) -> str:
    """The model's name in an answer, of a version that no price list has."""
    return model if model.startswith(_EMBEDDING) else f"{model}-{_ANY_VERSION}"


def _names() -> Iterator[str]:
    """The IDs of Azure's and OpenAI's models, and the other names that the price list has for them."""
    for provider in get_snapshot().providers:
        if provider.id in ("azure", "openai"):
            for model in provider.models:
                yield model.id
                yield from _equal_to(model.match)


def _equal_to(clause: Any) -> Iterator[str]:
    if isinstance(equal := getattr(clause, "equals", None), str):
        yield equal
    for part in getattr(clause, "or_", ()):
        yield from _equal_to(part)


if __name__ == "__main__":
    FILE.write_text(json.dumps(priced_models(), indent=2) + "\n")
