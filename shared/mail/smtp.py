"""Email over SMTP."""

import logging
from dataclasses import dataclass, field
from urllib.parse import unquote

from shared.mail.email import Email, MailFailed, mime
from shared.mail.urls import is_loopback, split_url
from shared.settings import SettingsError

log = logging.getLogger(__name__)

TIMEOUT_S = 30  # for each response of the server
URL_FORM = "smtps://user:password@host:465 (TLS) or smtp://user:password@host:587 (STARTTLS), percent-encoded"


@dataclass(frozen=True, slots=True, kw_only=True)
class Smtp:
    host: str
    port: int
    tls: bool  # from the first byte (smtps)
    starttls: bool | None  # None: if the server offers it
    user: str | None = None
    password: str | None = field(default=None, repr=False)

    async def send(self, email: Email) -> tuple[str, ...]:
        import aiosmtplib

        try:
            rejected, _ = await aiosmtplib.send(
                mime(email),
                hostname=self.host,
                port=self.port,
                username=self.user,
                password=self.password,
                use_tls=self.tls,
                start_tls=self.starttls,
                timeout=TIMEOUT_S,
            )
        except (aiosmtplib.SMTPException, OSError) as error:
            raise MailFailed(f"{self.host}:{self.port} did not accept the email: {error}") from error
        for recipient, response in rejected.items():  # the server accepted the others
            log.error("%s rejected the recipient %s: %s", self.host, recipient, response)
        return tuple(recipient for recipient in email.recipients if recipient not in rejected)

    async def was_sent(self, operation_id: str) -> bool:
        """Always False: SMTP has no status to query. A second email with the same ID has the same Message-ID."""
        return False


def smtp(url: str) -> Smtp:
    """The transport for the SMTP_URL setting. Raises SettingsError if the URL is malformed."""
    parts, port = split_url("SMTP_URL", url, URL_FORM)
    valid = parts.scheme in ("smtp", "smtps") and bool(parts.username) == bool(parts.password)
    if not valid or not parts.hostname or parts.path.strip("/") or parts.query or parts.fragment:
        raise SettingsError("SMTP_URL", f"is malformed. Expected: {URL_FORM}.")
    tls = parts.scheme == "smtps"
    return Smtp(
        host=parts.hostname,
        port=port or (465 if tls else 587),
        tls=tls,
        starttls=False if tls else None if is_loopback(parts.hostname) else True,
        user=unquote(parts.username) if parts.username else None,
        password=unquote(parts.password) if parts.password else None,
    )
