"""API keys: the caller's name, or Unauthorized."""

import hmac

import pytest

from local.keys import line, new_key
from shared.access.keys import Keys, presented_keys
from shared.errors import Unauthorized
from shared.settings import Settings

ANN, BOB = new_key(), new_key()
HASHES = dict(line(name, key).split("=") for name, key in (("ann", ANN), ("bob", BOB)))


def unauthorized_message(keys: Keys, headers: dict[str, str]) -> str:
    with pytest.raises(Unauthorized) as error:
        keys.name(headers)
    assert ANN not in error.value.message
    return error.value.message


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
def test_key_in_either_header_returns_its_name(headers: dict[str, str]) -> None:
    assert Keys("USAGE_KEYS", HASHES).name(headers) == "bob"


def test_bearer_key_wins_if_both_headers_are_sent() -> None:
    assert Keys("USAGE_KEYS", HASHES).name({"authorization": f"Bearer {ANN}", "api-key": BOB}) == "ann"


@pytest.mark.parametrize(("bearer", "api_key"), [(ANN, "wrong"), ("wrong", ANN)], ids=["api-key", "Bearer"])
def test_invalid_key_in_either_header_is_rejected_even_if_the_other_is_valid(bearer: str, api_key: str) -> None:
    assert "USAGE_KEYS" in unauthorized_message(
        Keys("USAGE_KEYS", HASHES), {"authorization": f"Bearer {bearer}", "api-key": api_key}
    )


@pytest.mark.parametrize("headers", [{}, {"api-key": ""}, {"authorization": ANN}, {"x-functions-key": ANN}])
def test_error_without_a_key_explains_how_to_send_one(headers: dict[str, str]) -> None:
    message = unauthorized_message(Keys("USAGE_KEYS", HASHES), headers)

    assert "Authorization: Bearer" in message
    assert "api-key" in message


@pytest.mark.parametrize(
    "key",
    [new_key(), ANN[:-1], f"{ANN}x", ANN.swapcase(), HASHES["ann"], "ann", "ä"],
    ids=["unlisted", "shorter", "longer", "different case", "the hash", "the name", "not ASCII"],
)
def test_unlisted_key_is_rejected(key: str) -> None:
    assert "USAGE_KEYS" in unauthorized_message(Keys("USAGE_KEYS", HASHES), {"api-key": key})


def test_error_names_the_setting_if_no_keys_are_configured() -> None:
    message = unauthorized_message(Keys("USAGE_KEYS", {}), {"api-key": ANN})

    assert "set USAGE_KEYS" in message
    assert "make key" in message


def test_key_is_compared_with_every_hash(monkeypatch: pytest.MonkeyPatch) -> None:
    """The response time must not reveal which hash matches."""
    compared = []

    def compare(digest: str, expected: str) -> bool:
        compared.append(expected)
        return digest == expected

    monkeypatch.setattr(hmac, "compare_digest", compare)
    for key in (ANN, BOB):
        Keys("USAGE_KEYS", HASHES).name({"api-key": key})

    assert compared == [*HASHES.values()] * 2


def test_setting_accepts_the_output_of_make_key(environ: dict[str, str]) -> None:
    settings = Settings.from_env(environ | {"USAGE_KEYS": f"{line('ann', ANN)}, {line('bob', BOB)}"})

    assert Keys("USAGE_KEYS", settings.keys.usage_keys).name({"api-key": BOB}) == "bob"


def test_presented_keys_reads_both_headers() -> None:
    assert presented_keys({"authorization": "Bearer k"}) == presented_keys({"api-key": "k"}) == ["k"]
    assert presented_keys({"authorization": "Bearer   "}) == []
