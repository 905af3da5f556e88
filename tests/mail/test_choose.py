"""The transport that the settings configure, and the errors for wrong settings."""

from pathlib import Path

import pytest

from shared.mail.communication_services import CommunicationServices
from shared.mail.outbox import Outbox
from shared.settings import SettingsError
from tests.mail.conftest import LOGIN, PASSWORD, transport_for

ACS = "endpoint=https://a.communication.azure.com/;accesskey=c2VjcmV0"


@pytest.mark.parametrize(
    ("environ", "expected_names"),
    [
        ({}, ["ACS_ENDPOINT", "ACS_CONNECTION_STRING", "SMTP_URL", "OUTBOX_DIR"]),
        ({"SMTP_URL": f"smtps://{LOGIN}@mail.example.com", "OUTBOX_DIR": "out"}, ["SMTP_URL", "OUTBOX_DIR"]),
        (
            {"ACS_ENDPOINT": "https://a.communication.azure.com", "ACS_CONNECTION_STRING": ACS},
            ["ACS_CONNECTION_STRING"],
        ),
        ({"SMTP_URL": f"smtps://{LOGIN}@mail.example.com", "SUMMARY_SENDER": ""}, ["SUMMARY_SENDER"]),
        ({"SMTP_URL": "smtps://user:secret@"}, ["SMTP_URL", "smtps://user:password@host:465"]),
        ({"SMTP_URL": "smtp://user:secret@mail.example.com:port"}, ["SMTP_URL"]),
        ({"SMTP_URL": "smtp://user:secr[et@mail.example.com"}, ["SMTP_URL"]),
        ({"SMTP_URL": "smtp://user:secret#1@mail.example.com"}, ["SMTP_URL", "percent-encoded"]),
        ({"SMTP_URL": "smtp://user:secret@mail.example.com?starttls=never"}, ["SMTP_URL"]),
        ({"SMTP_URL": "smtp://user@mail.example.com"}, ["SMTP_URL"]),
        ({"SMTP_URL": "https://user:secret@mail.example.com"}, ["SMTP_URL"]),
        ({"SMTP_URL": "smtps://user:secret@mail..example.com"}, ["SMTP_URL"]),
        ({"ACS_ENDPOINT": "https://.communication.azure.com"}, ["ACS_ENDPOINT"]),
        ({"ACS_ENDPOINT": "a.communication.azure.com"}, ["ACS_ENDPOINT", "https://"]),
        ({"ACS_ENDPOINT": "http://a.communication.azure.com"}, ["ACS_ENDPOINT"]),
        ({"ACS_CONNECTION_STRING": "accesskey=c2VjcmV0"}, ["ACS_CONNECTION_STRING"]),
        ({"ACS_CONNECTION_STRING": "endpoint=https://a.example;accesskey=secret!"}, ["ACS_CONNECTION_STRING"]),
    ],
)
def test_error_for_wrong_settings_names_them_without_secrets(
    environ: dict[str, str], expected_names: list[str]
) -> None:
    with pytest.raises(SettingsError) as caught:
        transport_for(**environ)
    for name in expected_names:
        assert name in str(caught.value)
    for secret in ("secr", "c2VjcmV0", "p%40ss", PASSWORD):
        assert secret not in str(caught.value)
    assert caught.value.__cause__ is None
    assert caught.value.__suppress_context__ or caught.value.__context__ is None


def test_outbox_needs_no_sender(tmp_path: Path) -> None:
    assert isinstance(transport_for(OUTBOX_DIR=str(tmp_path), SUMMARY_SENDER=""), Outbox)


def test_acs_endpoint_uses_communication_services_with_managed_identity() -> None:
    assert isinstance(transport_for(ACS_ENDPOINT="https://a.communication.azure.com/"), CommunicationServices)
