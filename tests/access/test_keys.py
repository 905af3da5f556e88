"""Callers' keys: who is asking, and may they."""

import hmac

import pytest

from local.keys import line, new_key
from shared.access.keys import Keys, presented_keys
from shared.errors import Unauthorized
from shared.settings import Settings

ANN, BOB = new_key(), new_key()
HASHES = dict(line(name, key).split("=") for name, key in (("ann", ANN), ("bob", BOB)))


def refusal(keys: Keys, headers: dict[str, str]) -> str:
    with pytest.raises(Unauthorized) as refused:
        keys.name(headers)
    assert ANN not in refused.value.message
    return refused.value.message


@pytest.mark.parametrize(
    "headers",
    [
        {"api-key": BOB},
        {"authorization": f"Bearer {BOB}"},
        {"authorization": f"bearer   {BOB} "},
        {"authorization": "Basic dXNlcg==", "api-key": BOB},
        {"authorization": "Bearer", "api-key": BOB},
    ],
)
def test_a_key_is_known_by_its_name_in_either_header(headers: dict[str, str]) -> None:
    assert Keys("USAGE_KEYS", HASHES).name(headers) == "bob"


def test_where_both_headers_have_a_key_the_bearer_counts() -> None:
    assert Keys("USAGE_KEYS", HASHES).name({"authorization": f"Bearer {ANN}", "api-key": BOB}) == "ann"


@pytest.mark.parametrize(("bearer", "other"), [(ANN, "wrong"), ("wrong", ANN)], ids=["api-key", "Bearer"])
def test_a_wrong_key_beside_a_right_one_is_refused(bearer: str, other: str) -> None:
    assert "USAGE_KEYS" in refusal(Keys("USAGE_KEYS", HASHES), {"authorization": f"Bearer {bearer}", "api-key": other})


@pytest.mark.parametrize("headers", [{}, {"api-key": ""}, {"authorization": ANN}, {"x-functions-key": ANN}])
def test_a_request_without_a_key_is_told_how_to_send_one(headers: dict[str, str]) -> None:
    message = refusal(Keys("USAGE_KEYS", HASHES), headers)

    assert "Authorization: Bearer" in message
    assert "api-key" in message


@pytest.mark.parametrize(
    "key",
    [new_key(), ANN[:-1], f"{ANN}x", ANN.swapcase(), HASHES["ann"], "ann", "ä"],
    ids=["another", "shorter", "longer", "other case", "the hash", "the name", "not ASCII"],
)
def test_a_key_that_is_none_of_them_is_refused(key: str) -> None:
    assert "USAGE_KEYS" in refusal(Keys("USAGE_KEYS", HASHES), {"api-key": key})


def test_where_no_key_is_configured_the_refusal_names_the_setting() -> None:
    message = refusal(Keys("USAGE_KEYS", {}), {"api-key": ANN})

    assert "set USAGE_KEYS" in message
    assert "make key" in message


def test_every_hash_is_compared_whichever_fits(monkeypatch: pytest.MonkeyPatch) -> None:
    """How long it takes says nothing."""
    compared = []

    def comparing(one: str, other: str) -> bool:
        compared.append(other)
        return one == other

    monkeypatch.setattr(hmac, "compare_digest", comparing)
    for key in (ANN, BOB):
        Keys("USAGE_KEYS", HASHES).name({"api-key": key})

    assert compared == [*HASHES.values()] * 2


def test_what_make_key_prints_is_what_the_setting_takes(environ: dict[str, str]) -> None:
    listed = Settings.from_env(environ | {"USAGE_KEYS": f"{line('ann', ANN)}, {line('bob', BOB)}"})

    assert Keys("USAGE_KEYS", listed.keys.usage_keys).name({"api-key": BOB}) == "bob"


def test_a_key_stands_in_one_header_or_the_other() -> None:
    assert presented_keys({"authorization": "Bearer k"}) == presented_keys({"api-key": "k"}) == ["k"]
    assert presented_keys({"authorization": "Bearer   "}) == []
