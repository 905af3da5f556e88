"""A mail, as a value and in the form that SMTP and mail programs know."""

from dataclasses import dataclass, field
from datetime import UTC, datetime
from email.message import EmailMessage
from email.policy import SMTP
from typing import Protocol

ASCII = SMTP.clone(cte_type="7bit")  # for every server, and every mail program


class MailFailed(Exception):
    """The mail is not known to have left. It may have: ask `knows` before sending under the same id again."""


@dataclass(frozen=True, slots=True, kw_only=True)
class Mail:
    """`operation_id` is a UUID, the same for each attempt at one mail."""

    sender: str
    recipients: tuple[str, ...]
    subject: str
    text: str
    html: str
    operation_id: str
    date: datetime = field(default_factory=lambda: datetime.now(UTC))


class Transport(Protocol):
    """A way of sending mail."""

    async def send(self, mail: Mail) -> tuple[str, ...]:
        """The recipients that it was taken for. Raises MailFailed where there is none."""

    async def knows(self, operation_id: str) -> bool:
        """Whether a mail of this id was accepted and has not failed since. Raises MailFailed where nobody answers."""


def mime(mail: Mail) -> EmailMessage:
    message = EmailMessage(policy=ASCII)
    message["From"] = mail.sender
    message["To"] = ", ".join(mail.recipients)
    message["Subject"] = mail.subject
    message["Date"] = mail.date
    message["Message-ID"] = f"<{mail.operation_id}@{mail.sender.rpartition('@')[2]}>"
    message["Auto-Submitted"] = "auto-generated"  # RFC 3834: no out-of-office answers
    message.set_content(mail.text)
    message.add_alternative(mail.html, subtype="html")
    return message
