"""An email, as a value and in the form that SMTP and mail programs use."""

from dataclasses import dataclass
from datetime import datetime
from email.message import EmailMessage
from email.policy import SMTP
from typing import Protocol

ASCII = SMTP.clone(cte_type="7bit")  # for every server, and every mail program


class MailFailed(Exception):
    """The email was not confirmed as sent, but may have been: check `was_sent` before sending with this id again."""


@dataclass(frozen=True, slots=True, kw_only=True)
class Email:
    """`operation_id` is a UUID, the same for each attempt to send one email. `date` in UTC."""

    sender: str
    recipients: tuple[str, ...]
    subject: str
    text: str
    html: str
    operation_id: str
    date: datetime


class Transport(Protocol):
    """A way of sending email."""

    async def send(self, email: Email) -> tuple[str, ...]:
        """The recipients that it was accepted for. Raises MailFailed where there is none."""

    async def was_sent(self, operation_id: str) -> bool:
        """Whether an email with this id was accepted and has not failed since. Raises MailFailed where that can't be
        found out."""


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
