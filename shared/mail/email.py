"""An email as a value and as a MIME message, and the transports' interface."""

from dataclasses import dataclass
from datetime import datetime
from email.message import EmailMessage
from email.policy import SMTP
from typing import Protocol

ASCII = SMTP.clone(cte_type="7bit")  # so that every mail server and client can read it


class MailFailed(Exception):
    """The email was not confirmed as sent, but may have been. Check `was_sent` before a retry with the same ID."""


@dataclass(frozen=True, slots=True, kw_only=True)
class Email:
    """`operation_id` is a UUID; every attempt to send this email uses the same one. `date` is in UTC."""

    sender: str
    recipients: tuple[str, ...]
    subject: str
    text: str
    html: str
    operation_id: str
    date: datetime


class Transport(Protocol):
    """Sends email."""

    async def send(self, email: Email) -> tuple[str, ...]:
        """Send the email. Returns the recipients that were accepted. Raises MailFailed if there is none."""

    async def was_sent(self, operation_id: str) -> bool:
        """True if an email with this ID was accepted and has not failed since. Raises MailFailed if the status is not
        available."""


def mime(email: Email) -> EmailMessage:
    message = EmailMessage(policy=ASCII)
    message["From"] = email.sender
    message["To"] = ", ".join(email.recipients)
    message["Subject"] = email.subject
    message["Date"] = email.date
    message["Message-ID"] = f"<{email.operation_id}@{email.sender.rpartition('@')[2]}>"
    message["Auto-Submitted"] = "auto-generated"  # RFC 3834: no out-of-office answers
    message.set_content(email.text)
    message.add_alternative(email.html, subtype="html")
    return message
