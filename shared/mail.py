"""The only room that knows how mail leaves: by Azure Communication Services, by SMTP, or into a folder.

What a way of sending needs is imported once it is chosen: only the timer sends, and every cold start would pay for it.
No message names a secret.
"""

import asyncio
import binascii
import logging
import os
from base64 import b64decode
from dataclasses import dataclass, field, replace
from ipaddress import ip_address
from pathlib import Path
from urllib.parse import SplitResult, unquote, urlsplit

from azure.core.credentials import AzureKeyCredential
from azure.core.credentials_async import AsyncTokenCredential

from shared.message import Mail, MailFailed, Transport, mime
from shared.settings import Settings, SettingsError

__all__ = ["Mail", "MailFailed", "Outbox", "Smtp", "Transport", "transport"]

log = logging.getLogger(__name__)

LOCAL_SENDER = "chat@localhost"  # of mails that go into a folder, where no sender is set
SMTP_TIMEOUT = 30  # seconds, for each of the server's answers
SMTP_URL = "smtps://user:password@host:465 (TLS) or smtp://user:password@host:587 (STARTTLS), percent-encoded"


def transport(settings: Settings, credential: AsyncTokenCredential) -> Transport:
    """The one way of sending that is set. Raises SettingsError."""
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
        return _smtp(settings.smtp_url)

    from shared.communication_services import CommunicationServices

    if settings.acs_endpoint:
        return CommunicationServices(_endpoint("ACS_ENDPOINT", settings.acs_endpoint), credential)
    return CommunicationServices(*_connection(settings.acs_connection_string or ""))


class Outbox:
    """A folder of .eml files, which any mail program opens."""

    def __init__(self, folder: Path) -> None:
        self._folder = folder

    async def send(self, mail: Mail) -> tuple[str, ...]:
        try:
            await asyncio.to_thread(self._write, replace(mail, sender=mail.sender or LOCAL_SENDER))
        except OSError as error:
            raise MailFailed(f"The mail can't be written to OUTBOX_DIR: {error}") from error
        return mail.recipients

    async def knows(self, operation_id: str) -> bool:
        return await asyncio.to_thread(self._file(operation_id).exists)

    def _write(self, mail: Mail) -> None:
        self._folder.mkdir(parents=True, exist_ok=True)
        file = self._file(mail.operation_id)
        unfinished = file.with_suffix(f".{os.getpid()}")
        unfinished.write_bytes(mime(mail).as_bytes())
        unfinished.replace(file)

    def _file(self, operation_id: str) -> Path:
        return self._folder / f"{operation_id}.eml"


@dataclass(frozen=True, slots=True, kw_only=True)
class Smtp:
    host: str
    port: int
    tls: bool  # from the first byte
    starttls: bool | None  # None: where the server offers it
    user: str | None = None
    password: str | None = field(default=None, repr=False)

    async def send(self, mail: Mail) -> tuple[str, ...]:
        import aiosmtplib

        try:
            refused, _ = await aiosmtplib.send(
                mime(mail),
                hostname=self.host,
                port=self.port,
                username=self.user,
                password=self.password,
                use_tls=self.tls,
                start_tls=self.starttls,
                timeout=SMTP_TIMEOUT,
            )
        except (aiosmtplib.SMTPException, OSError) as error:
            raise MailFailed(f"{self.host}:{self.port} did not take the mail: {error}") from error
        for recipient, answer in refused.items():  # the others have it
            log.error("%s does not take mail for %s: %s", self.host, recipient, answer)
        return tuple(recipient for recipient in mail.recipients if recipient not in refused)

    async def knows(self, operation_id: str) -> bool:
        """SMTP can't be asked. A second mail of the same id has the same Message-ID."""
        return False


def _smtp(url: str) -> Smtp:
    parts, port = _split("SMTP_URL", url, SMTP_URL)
    known = parts.scheme in ("smtp", "smtps") and bool(parts.username) == bool(parts.password)
    if not known or not parts.hostname or parts.path.strip("/") or parts.query or parts.fragment:
        raise SettingsError("SMTP_URL", f"is malformed: it should be {SMTP_URL}.")
    tls = parts.scheme == "smtps"
    return Smtp(
        host=parts.hostname,
        port=port or (465 if tls else 587),
        tls=tls,
        starttls=False if tls else None if _is_loopback(parts.hostname) else True,
        user=unquote(parts.username) if parts.username else None,
        password=unquote(parts.password) if parts.password else None,
    )


def _connection(value: str) -> tuple[str, AzureKeyCredential]:
    found = {name.strip().lower(): rest for name, _, rest in (part.partition("=") for part in value.split(";"))}
    try:
        key = found["accesskey"].strip()
        b64decode(key, validate=True)
        endpoint = found["endpoint"].strip()
    except (KeyError, binascii.Error):
        example = "endpoint=https://NAME.communication.azure.com/;accesskey=…"
        raise SettingsError("ACS_CONNECTION_STRING", f"is malformed: it should be {example}.") from None
    return _endpoint("ACS_CONNECTION_STRING", endpoint), AzureKeyCredential(key)


def _endpoint(name: str, url: str) -> str:
    example = "https://NAME.communication.azure.com"
    parts, _ = _split(name, url, example)
    safe = parts.scheme == "https" or (parts.scheme == "http" and _is_loopback(parts.hostname or ""))
    if not safe or not parts.hostname or parts.path.strip("/") or parts.query:
        raise SettingsError(name, f"is malformed: its endpoint should be {example}.")
    return f"{parts.scheme}://{parts.netloc}"


def _split(name: str, url: str, example: str) -> tuple[SplitResult, int | None]:
    try:
        parts = urlsplit(url)
        port = parts.port
        (parts.hostname or "").encode("idna")  # as whoever connects to it does, with an error that names no setting
    except ValueError:  # its message may hold the password
        raise SettingsError(name, f"is malformed: it should be {example}.") from None
    return parts, port


def _is_loopback(host: str) -> bool:
    try:
        return host == "localhost" or ip_address(host).is_loopback
    except ValueError:
        return False
