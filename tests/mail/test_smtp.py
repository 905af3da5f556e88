"""Email over SMTP, to a real server."""

import logging
import ssl
from collections.abc import Iterator
from contextlib import AbstractContextManager, contextmanager
from dataclasses import replace
from typing import Any, Protocol

import pytest
import trustme
from aiosmtpd.controller import Controller
from aiosmtpd.smtp import SMTP, AuthResult, Envelope, LoginPassword

from local.parts import free_port
from shared.mail.email import Email, MailFailed
from shared.mail.smtp import Smtp
from tests.mail.conftest import LOGIN, PASSWORD, USER, assert_mime_equals, transport_for

pytestmark = pytest.mark.filterwarnings("ignore:Requiring AUTH while not requiring TLS")


def test_smtp_to_another_machine_is_always_encrypted() -> None:
    assert transport_for(SMTP_URL="smtp://mail.example.com") == Smtp(
        host="mail.example.com", port=587, tls=False, starttls=True
    )
    assert transport_for(SMTP_URL="smtps://mail.example.com") == Smtp(
        host="mail.example.com", port=465, tls=True, starttls=False
    )


def test_smtp_repr_does_not_contain_the_password() -> None:
    assert PASSWORD not in repr(transport_for(SMTP_URL=f"smtps://{LOGIN}@mail.example.com"))


class Inbox:
    """The emails that the SMTP server accepted, and the logins that it received."""

    def __init__(self) -> None:
        self.accepted: list[tuple[Envelope, bool]] = []
        self.logins: list[tuple[bytes, bytes]] = []
        self.rejected: set[str] = set()

    async def handle_RCPT(self, _: object, __: object, envelope: Envelope, to: str, ___: object) -> str:  # noqa: N802
        if to in self.rejected:
            return "550 no such mailbox"
        envelope.rcpt_tos.append(to)
        return "250 OK"

    async def handle_DATA(self, server: SMTP, _: object, envelope: Envelope) -> str:  # noqa: N802
        assert server.transport is not None
        self.accepted.append((envelope, server.transport.get_extra_info("cipher") is not None))
        return "250 OK"

    def authenticate(self, _: object, __: object, ___: object, ____: object, data: LoginPassword) -> AuthResult:
        self.logins.append((data.login, data.password))
        return AuthResult(success=data == LoginPassword(USER.encode(), PASSWORD.encode()), handled=False)

    def received(self) -> tuple[bytes, bool]:
        """The only email, and whether the connection was encrypted."""
        [(envelope, encrypted)] = self.accepted
        assert isinstance(envelope.original_content, bytes)
        return envelope.original_content, encrypted


class ServeSmtp(Protocol):
    def __call__(self, **options: Any) -> AbstractContextManager[int]: ...


@pytest.fixture
def inbox() -> Inbox:
    return Inbox()


@pytest.fixture
def serve_smtp(inbox: Inbox) -> ServeSmtp:
    """A real SMTP server on a free port; it requires a login."""

    @contextmanager
    def serving(**options: Any) -> Iterator[int]:
        login: dict[str, Any] = {"authenticator": inbox.authenticate, "auth_required": True, "auth_require_tls": False}
        controller = Controller(inbox, hostname="127.0.0.1", port=free_port(), **login, **options)
        controller.start()
        try:
            yield controller.port
        finally:
            controller.stop()

    return serving


@pytest.fixture
def server_tls(authority: trustme.CA) -> ssl.SSLContext:
    context = ssl.create_default_context(ssl.Purpose.CLIENT_AUTH)
    authority.issue_cert("localhost", "127.0.0.1").configure_cert(context)
    return context


async def test_smtp_to_loopback_logs_in_without_encryption(serve_smtp: ServeSmtp, inbox: Inbox, email: Email) -> None:
    with serve_smtp() as port:
        await transport_for(SMTP_URL=f"smtp://{LOGIN}@127.0.0.1:{port}").send(email)
    received, encrypted = inbox.received()
    assert not encrypted
    assert_mime_equals(received, email)
    assert inbox.accepted[0][0].rcpt_tos == ["ann@example.com", "bob@example.org"]
    assert inbox.accepted[0][0].mail_from == "chat@example.com"
    assert inbox.logins == [(USER.encode(), PASSWORD.encode())]


@pytest.mark.usefixtures("trusted")
async def test_smtp_with_starttls(
    serve_smtp: ServeSmtp, inbox: Inbox, email: Email, server_tls: ssl.SSLContext
) -> None:
    with serve_smtp(tls_context=server_tls, require_starttls=True) as port:
        await transport_for(SMTP_URL=f"smtp://{LOGIN}@localhost:{port}").send(email)
    received, encrypted = inbox.received()
    assert encrypted
    assert_mime_equals(received, email)


@pytest.mark.usefixtures("trusted")
async def test_smtp_with_tls(serve_smtp: ServeSmtp, inbox: Inbox, email: Email, server_tls: ssl.SSLContext) -> None:
    with serve_smtp(ssl_context=server_tls) as port:
        await transport_for(SMTP_URL=f"smtps://{LOGIN}@localhost:{port}").send(email)
    received, encrypted = inbox.received()
    assert encrypted
    assert_mime_equals(received, email)


async def test_smtp_rejects_an_untrusted_certificate(
    serve_smtp: ServeSmtp, inbox: Inbox, email: Email, server_tls: ssl.SSLContext
) -> None:
    with serve_smtp(ssl_context=server_tls) as port, pytest.raises(MailFailed, match="certificate"):
        await transport_for(SMTP_URL=f"smtps://{LOGIN}@localhost:{port}").send(email)
    assert not inbox.accepted
    assert not inbox.logins


async def test_smtp_sends_no_password_if_starttls_is_missing(serve_smtp: ServeSmtp, inbox: Inbox, email: Email) -> None:
    remote = Smtp(host="127.0.0.1", port=0, tls=False, starttls=True, user=USER, password=PASSWORD)
    with serve_smtp() as port, pytest.raises(MailFailed, match="STARTTLS"):
        await replace(remote, port=port).send(email)
    assert not inbox.logins


async def test_smtp_errors_name_the_server_and_contain_no_secret(
    serve_smtp: ServeSmtp, inbox: Inbox, email: Email
) -> None:
    with serve_smtp() as port, pytest.raises(MailFailed) as wrong_login:
        await transport_for(SMTP_URL=f"smtp://{USER.replace('@', '%40')}:not-the-password@127.0.0.1:{port}").send(email)
    with pytest.raises(MailFailed) as connection_refused:
        await transport_for(SMTP_URL=f"smtp://{LOGIN}@127.0.0.1:{port}").send(email)
    for failure in (wrong_login, connection_refused):
        assert f"127.0.0.1:{port}" in str(failure.value)
        assert PASSWORD not in str(failure.value)
        assert "not-the-password" not in str(failure.value)
    assert not inbox.accepted


async def test_smtp_rejected_recipient_does_not_stop_delivery_to_the_others(
    serve_smtp: ServeSmtp, inbox: Inbox, email: Email, caplog: pytest.LogCaptureFixture
) -> None:
    inbox.rejected = {"bob@example.org"}
    with serve_smtp() as port, caplog.at_level(logging.ERROR, "shared.mail.smtp"):
        accepted = await transport_for(SMTP_URL=f"smtp://{LOGIN}@127.0.0.1:{port}").send(email)
    assert inbox.accepted[0][0].rcpt_tos == [*accepted] == ["ann@example.com"]
    assert "bob@example.org" in caplog.text


async def test_smtp_raises_mail_failed_if_every_recipient_is_rejected(
    serve_smtp: ServeSmtp, inbox: Inbox, email: Email
) -> None:
    inbox.rejected = set(email.recipients)
    with serve_smtp() as port, pytest.raises(MailFailed, match="no such mailbox"):
        await transport_for(SMTP_URL=f"smtp://{LOGIN}@127.0.0.1:{port}").send(email)


async def test_smtp_was_sent_is_always_false(email: Email) -> None:
    assert not await transport_for(SMTP_URL="smtp://127.0.0.1").was_sent(email.operation_id)
