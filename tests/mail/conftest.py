"""Fixtures for the tests of every transport: the managed identity, a clock and one email."""

from datetime import UTC, datetime, timedelta
from email import message_from_bytes
from email.message import EmailMessage
from email.policy import SMTP as POLICY
from pathlib import Path
from typing import Any
from uuid import uuid4

import pytest
import trustme
from azure.core.credentials import AccessToken
from azure.core.credentials_async import AsyncTokenCredential

from shared.domain.clock import Clock, SystemClock
from shared.mail.choose import transport
from shared.mail.email import Email, Transport
from shared.settings import Settings
from tests.support.clock import ManualClock
from tests.support.communication_services import TOKEN

USER, PASSWORD = "robot@example.com", "p@ss:w/rd%21#"
LOGIN = "robot%40example.com:p%40ss%3Aw%2Frd%2521%23"  # percent-encoded
AZURE = {"AZURE_OPENAI_ENDPOINT": "https://a.openai.azure.com", "TABLES_ENDPOINT": "https://a.table.core.windows.net"}
SENDER = {"SUMMARY_SENDER": "chat@example.com"}


class Credential(AsyncTokenCredential):
    """A fake of the managed identity."""

    def __init__(self) -> None:
        self.scopes: list[str] = []

    async def get_token(self, *scopes: str, **_: Any) -> AccessToken:
        self.scopes += scopes
        return AccessToken(TOKEN, int((datetime.now(UTC) + timedelta(hours=1)).timestamp()))

    async def close(self) -> None:
        pass

    async def __aexit__(self, *_: object) -> None:
        pass


class SkippingClock(ManualClock):
    """A sleep advances it immediately. `slept`: the seconds of each sleep."""

    def __init__(self) -> None:
        super().__init__()
        self.slept: list[float] = []

    async def sleep(self, seconds: float) -> None:
        self.slept.append(seconds)
        await self.advance(seconds)


def transport_for(clock: Clock | None = None, /, **environ: str) -> Transport:
    """The transport that these settings configure."""
    return transport(Settings.from_env(AZURE | SENDER | environ).mail, Credential(), clock or SystemClock())


@pytest.fixture
def clock() -> SkippingClock:
    return SkippingClock()


@pytest.fixture
def email() -> Email:
    return Email(
        sender="chat@example.com",
        recipients=("ann@example.com", "bob@example.org"),
        subject="Chat cost 2026-11-20: $12.34 (+8% from the day before)",
        text="It cost 12 €.\n.\nThe line before this one is a single dot.\n",
        html=f"<p>It cost 12 €.</p>{'<p>&lt;b&gt;</p>' * 300}",
        operation_id=str(uuid4()),
        date=datetime(2026, 11, 21, 6, 0, tzinfo=UTC),
    )


@pytest.fixture(scope="package")
def authority() -> trustme.CA:
    return trustme.CA()


@pytest.fixture
def trusted(authority: trustme.CA, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    """Makes this process trust certificates of the tests' authority."""
    file = tmp_path / "authority.pem"
    authority.cert_pem.write_to_path(str(file))
    monkeypatch.setenv("SSL_CERT_FILE", str(file))
    return file


def assert_mime_equals(received: bytes, sent: Email) -> None:
    """Compare the sent email with what a mail client reads from the received bytes."""
    message = message_from_bytes(received, EmailMessage, policy=POLICY)
    assert message["From"] == sent.sender
    assert message["To"] == "ann@example.com, bob@example.org"
    assert message["Subject"] == sent.subject
    assert message["Date"] == "Sat, 21 Nov 2026 06:00:00 +0000"
    assert message["Message-ID"] == f"<{sent.operation_id}@example.com>"
    assert message["Auto-Submitted"] == "auto-generated"
    assert message.get_content_type() == "multipart/alternative"
    text, html = message.iter_parts()
    assert text.get_content_type() == "text/plain"
    assert text.get_content().replace("\r\n", "\n") == sent.text
    assert html.get_content_type() == "text/html"
    assert html.get_content().strip() == sent.html
    assert max(map(len, received.splitlines())) <= 998  # RFC 5322
    assert received.isascii()
