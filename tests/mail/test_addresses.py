"""The addresses of the summary email, as the settings name them."""

import pytest

from shared.mail.addresses import recipients, sender
from shared.settings import Settings, SettingsError
from tests.mail.conftest import AZURE, transport_for


def addresses(name: str, value: str) -> tuple[str, ...]:
    """What the setting `name` with this value means."""
    mail = Settings.from_env(AZURE | {name: value}).mail
    return recipients(mail) if name == "SUMMARY_RECIPIENTS" else (sender(mail),)


def error_of(name: str, value: str) -> str:
    with pytest.raises(SettingsError) as caught:
        addresses(name, value)
    assert caught.value.name == name
    return str(caught.value)


def test_recipients_are_separated_by_commas_or_semicolons() -> None:
    assert addresses("SUMMARY_RECIPIENTS", "ann@a, bob@b;cy@c,;") == ("ann@a", "bob@b", "cy@c")
    assert addresses("SUMMARY_RECIPIENTS", " , ") == ()


def test_one_malformed_recipient_of_several_is_named() -> None:
    assert "'bob' is not an email address" in error_of("SUMMARY_RECIPIENTS", "ada@example.com, bob")


def test_sender_is_a_single_address() -> None:
    assert "is not an email address" in error_of("SUMMARY_SENDER", "ada@example.com, bob@example.com")


def test_transport_is_not_chosen_with_a_malformed_sender() -> None:
    with pytest.raises(SettingsError, match="SUMMARY_SENDER"):
        transport_for(SMTP_URL="smtp://localhost", SUMMARY_SENDER="ada")


@pytest.mark.parametrize("name", ["SUMMARY_RECIPIENTS", "SUMMARY_SENDER"])
class TestEmailAddresses:
    @pytest.mark.parametrize(
        "address",
        [
            "ada@example.com.",
            "ada@example..com",
            "ada@.example.com",
            ".ada@example.com",
            "ada..b@example.com",
            "@example.com",
            "ada@",
            "ada@b@example.com",
            "a(b@example.com",
            "a:b@example.com",
            'a"b@example.com',
            '"a b"@example.com',
            "[x]@example.com",
            "ada@[127.0.0.1]",
            "a\x00b@example.com",
            "\u200bada@example.com",
            "jürgen@example.com",
            "=?utf-8?q?ada?=@example.com",
            "Ada <ada@example.com>",
        ],
    )
    def test_address_that_is_invalid_in_an_email_header_is_rejected(self, name: str, address: str) -> None:
        assert f"{address!r} is not an email address: " in error_of(name, address)

    @pytest.mark.parametrize(
        ("address", "character"),
        [("jürgen@example.com", "ü"), ("ada@bücher.example", "ü"), ("\u200bada@example.com", "\u200b"), ("王@a", "王")],
    )
    def test_character_outside_ascii_is_named(self, name: str, address: str, character: str) -> None:
        assert f"it contains {character!r}. Use ASCII" in error_of(name, address)

    @pytest.mark.parametrize(
        "address", ["chat@localhost", "o'hara+cost@mail.example.com", "a-b_c@xn--bcher-kva.example"]
    )
    def test_valid_email_address_is_accepted(self, name: str, address: str) -> None:
        assert addresses(name, address) == (address,)
