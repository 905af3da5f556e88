"""Chooses the email transport from the settings.

The SDK of a transport is imported only when that transport is chosen: only the timers send email, and the import would
slow down every cold start. Error messages never contain a secret.
"""

from base64 import b64decode
from pathlib import Path

from azure.core.credentials import AzureKeyCredential
from azure.core.credentials_async import AsyncTokenCredential

from shared.domain.clock import Clock
from shared.mail.addresses import sender
from shared.mail.email import Transport
from shared.mail.outbox import Outbox
from shared.mail.smtp import smtp
from shared.mail.urls import is_loopback, split_url
from shared.settings import MailSettings, SettingsError


def transport(settings: MailSettings, credential: AsyncTokenCredential, clock: Clock) -> Transport:
    """The configured transport. Raises SettingsError unless exactly one is configured."""
    transports = {
        "ACS_ENDPOINT": settings.acs_endpoint,
        "ACS_CONNECTION_STRING": settings.acs_connection_string,
        "SMTP_URL": settings.smtp_url,
        "OUTBOX_DIR": settings.outbox,
    }
    configured = [name for name, value in transports.items() if value]
    if not configured:
        alternatives = ", ".join(list(transports)[1:])
        raise SettingsError(
            "ACS_ENDPOINT", f"(or {alternatives}) is not set. Set one of them to send the summary email."
        )
    if len(configured) > 1:
        raise SettingsError(
            configured[0], f"is set together with {' and '.join(configured[1:])}. Keep only one of them."
        )
    if settings.outbox:
        return Outbox(Path(settings.outbox))
    if not sender(settings):
        raise SettingsError("SUMMARY_SENDER", "is not set. Set it to the sender address of the summary email.")
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
    except (KeyError, ValueError):
        example = "endpoint=https://NAME.communication.azure.com/;accesskey=…"
        raise SettingsError("ACS_CONNECTION_STRING", f"is malformed. Expected: {example}.") from None
    return _endpoint("ACS_CONNECTION_STRING", endpoint), AzureKeyCredential(key)


def _endpoint(name: str, url: str) -> str:
    example = "https://NAME.communication.azure.com"
    parts, _ = split_url(name, url, example)
    safe = parts.scheme == "https" or (parts.scheme == "http" and is_loopback(parts.hostname or ""))
    if not safe or not parts.hostname or parts.path.strip("/") or parts.query:
        raise SettingsError(name, f"is malformed. Expected an endpoint like {example}.")
    return f"{parts.scheme}://{parts.netloc}"
