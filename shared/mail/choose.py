"""Which way email is sent: the one that is configured.

A way's SDK is imported once it is chosen, because only the timers send and every cold start would pay for it. No
message names a secret.
"""

import binascii
from base64 import b64decode
from pathlib import Path

from azure.core.credentials import AzureKeyCredential
from azure.core.credentials_async import AsyncTokenCredential

from shared.domain.clock import Clock
from shared.mail.email import Transport
from shared.mail.outbox import Outbox
from shared.mail.smtp import smtp
from shared.mail.urls import is_loopback, split_url
from shared.settings import MailSettings, SettingsError


def transport(settings: MailSettings, credential: AsyncTokenCredential, clock: Clock) -> Transport:
    """The one way of sending that is configured. Raises SettingsError."""
    ways = {
        "ACS_ENDPOINT": settings.acs_endpoint,
        "ACS_CONNECTION_STRING": settings.acs_connection_string,
        "SMTP_URL": settings.smtp_url,
        "OUTBOX_DIR": settings.outbox,
    }
    chosen = [name for name, value in ways.items() if value]
    if not chosen:
        raise SettingsError("ACS_ENDPOINT", f"(or {', '.join(list(ways)[1:])}) is not set: how the summary is sent.")
    if len(chosen) > 1:
        raise SettingsError(chosen[0], f"is set, and so is {' and '.join(chosen[1:])}. Keep the one that is to send.")
    if settings.outbox:
        return Outbox(Path(settings.outbox))
    if not settings.sender:
        raise SettingsError("SUMMARY_SENDER", "is not set: the address that the summary is sent from.")
    if settings.smtp_url:
        return smtp(settings.smtp_url)

    from shared.mail.communication_services import CommunicationServices

    if settings.acs_endpoint:
        return CommunicationServices(_endpoint("ACS_ENDPOINT", settings.acs_endpoint), credential, clock)
    return CommunicationServices(*_connection(settings.acs_connection_string or ""), clock)


def _connection(value: str) -> tuple[str, AzureKeyCredential]:
    parts = {name.strip().lower(): rest for name, _, rest in (part.partition("=") for part in value.split(";"))}
    try:
        key = parts["accesskey"].strip()
        b64decode(key, validate=True)
        endpoint = parts["endpoint"].strip()
    except (KeyError, binascii.Error):
        example = "endpoint=https://NAME.communication.azure.com/;accesskey=…"
        raise SettingsError("ACS_CONNECTION_STRING", f"is malformed: it should be {example}.") from None
    return _endpoint("ACS_CONNECTION_STRING", endpoint), AzureKeyCredential(key)


def _endpoint(name: str, url: str) -> str:
    example = "https://NAME.communication.azure.com"
    parts, _ = split_url(name, url, example)
    safe = parts.scheme == "https" or (parts.scheme == "http" and is_loopback(parts.hostname or ""))
    if not safe or not parts.hostname or parts.path.strip("/") or parts.query:
        raise SettingsError(name, f"is malformed: its endpoint should be {example}.")
    return f"{parts.scheme}://{parts.netloc}"
