"""How mail leaves: every way of sending against a real server of its kind."""

import logging
import ssl
import subprocess
import sys
from collections.abc import AsyncIterator, Iterator
from contextlib import AbstractContextManager, contextmanager
from dataclasses import replace
from datetime import UTC, datetime, timedelta
from email import message_from_bytes
from email.message import EmailMessage
from email.policy import SMTP as POLICY
from pathlib import Path
from typing import Any, Protocol
from uuid import uuid4

import pytest
import trustme
from aiosmtpd.controller import Controller
from aiosmtpd.smtp import SMTP, AuthResult, Envelope, LoginPassword
from azure.core.credentials import AccessToken, AzureKeyCredential
from azure.core.credentials_async import AsyncTokenCredential

from local.parts import free_port
from shared import communication_services, mail
from shared.communication_services import CommunicationServices
from shared.mail import Mail, MailFailed, Outbox, Smtp, Transport, transport
from shared.settings import Settings, SettingsError
from tests.communication_services import TOKEN
from tests.communication_services import CommunicationServices as Fake

pytestmark = pytest.mark.filterwarnings("ignore:Requiring AUTH while not requiring TLS")

USER, PASSWORD = "robot@example.com", "p@ss:w/rd%21#"
LOGIN = "robot%40example.com:p%40ss%3Aw%2Frd%2521%23"
AZURE = {"AZURE_OPENAI_ENDPOINT": "https://a.openai.azure.com", "TABLES_ENDPOINT": "https://a.table.core.windows.net"}
SENDER = {"SUMMARY_SENDER": "chat@example.com"}
ACS = "endpoint=https://a.communication.azure.com/;accesskey=c2VjcmV0"


class Credential(AsyncTokenCredential):
    """The managed identity."""

    def __init__(self) -> None:
        self.scopes: list[str] = []

    async def get_token(self, *scopes: str, **_: Any) -> AccessToken:
        self.scopes += scopes
        return AccessToken(TOKEN, int((datetime.now(UTC) + timedelta(hours=1)).timestamp()))

    async def close(self) -> None:
        pass

    async def __aexit__(self, *_: object) -> None:
        pass


def by(**environ: str) -> Transport:
    """The way of sending that these settings choose."""
    return transport(Settings.from_env(AZURE | SENDER | environ), Credential())


@pytest.fixture
def letter() -> Mail:
    return Mail(
        sender="chat@example.com",
        recipients=("ann@example.com", "bob@example.org"),
        subject="Chat cost 2026-11-20: $12.34 (+8% on the day before)",
        text="It cost 12 €.\n.\nA line with a lone dot came before this.\n",
        html=f"<p>It cost 12 €.</p>{'<p>&lt;b&gt;</p>' * 300}",
        operation_id=str(uuid4()),
        date=datetime(2026, 11, 21, 6, 0, tzinfo=UTC),
    )


def check(received: bytes, sent: Mail) -> None:
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


# Settings


@pytest.mark.parametrize(
    ("environ", "named"),
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
def test_wrong_settings_are_named_and_secrets_are_not(environ: dict[str, str], named: list[str]) -> None:
    with pytest.raises(SettingsError) as caught:
        by(**environ)
    for name in named:
        assert name in str(caught.value)
    for secret in ("secr", "c2VjcmV0", "p%40ss", PASSWORD):
        assert secret not in str(caught.value)
    assert caught.value.__cause__ is None
    assert caught.value.__suppress_context__ or caught.value.__context__ is None


def test_an_outbox_needs_no_sender(tmp_path: Path) -> None:
    assert isinstance(by(OUTBOX_DIR=str(tmp_path), SUMMARY_SENDER=""), Outbox)


def test_smtp_outside_this_machine_is_always_encrypted() -> None:
    assert by(SMTP_URL="smtp://mail.example.com") == Smtp(host="mail.example.com", port=587, tls=False, starttls=True)
    assert by(SMTP_URL="smtps://mail.example.com") == Smtp(host="mail.example.com", port=465, tls=True, starttls=False)


def test_an_smtp_password_is_not_in_the_transports_text() -> None:
    assert PASSWORD not in repr(by(SMTP_URL=f"smtps://{LOGIN}@mail.example.com"))


def test_a_cold_start_does_not_pay_for_mail() -> None:
    code = "import sys, shared.mail, shared.letter; print(*sys.modules)"
    loaded = subprocess.run([sys.executable, "-c", code], check=True, capture_output=True, text=True).stdout.split()
    assert "shared.mail" in loaded
    assert not {"jinja2", "aiosmtplib", "azure.communication.email"} & set(loaded)


# SMTP


class Inbox:
    """What the SMTP server took, and how it was asked."""

    def __init__(self) -> None:
        self.taken: list[tuple[Envelope, bool]] = []
        self.logins: list[tuple[bytes, bytes]] = []
        self.refused: set[str] = set()

    async def handle_RCPT(self, _: object, __: object, envelope: Envelope, to: str, ___: object) -> str:  # noqa: N802
        if to in self.refused:
            return "550 no such mailbox"
        envelope.rcpt_tos.append(to)
        return "250 OK"

    async def handle_DATA(self, server: SMTP, _: object, envelope: Envelope) -> str:  # noqa: N802
        assert server.transport is not None
        self.taken.append((envelope, server.transport.get_extra_info("cipher") is not None))
        return "250 OK"

    def authenticate(self, _: object, __: object, ___: object, ____: object, data: LoginPassword) -> AuthResult:
        self.logins.append((data.login, data.password))
        return AuthResult(success=data == LoginPassword(USER.encode(), PASSWORD.encode()), handled=False)

    def received(self) -> tuple[bytes, bool]:
        """The one mail, and whether it came encrypted."""
        [(envelope, encrypted)] = self.taken
        assert isinstance(envelope.original_content, bytes)
        return envelope.original_content, encrypted


class ServeSmtp(Protocol):
    def __call__(self, **options: Any) -> AbstractContextManager[int]: ...


@pytest.fixture
def inbox() -> Inbox:
    return Inbox()


@pytest.fixture
def serve_smtp(inbox: Inbox) -> ServeSmtp:
    """A real SMTP server on a port of its own, that wants a login."""

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


@pytest.fixture(scope="module")
def authority() -> trustme.CA:
    return trustme.CA()


@pytest.fixture
def server_tls(authority: trustme.CA) -> ssl.SSLContext:
    context = ssl.create_default_context(ssl.Purpose.CLIENT_AUTH)
    authority.issue_cert("localhost", "127.0.0.1").configure_cert(context)
    return context


@pytest.fixture
def trusted(authority: trustme.CA, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    """This machine trusts the tests' authority."""
    file = tmp_path / "authority.pem"
    authority.cert_pem.write_to_path(str(file))
    monkeypatch.setenv("SSL_CERT_FILE", str(file))
    return file


async def test_smtp_on_this_machine_with_a_login(serve_smtp: ServeSmtp, inbox: Inbox, letter: Mail) -> None:
    with serve_smtp() as port:
        await by(SMTP_URL=f"smtp://{LOGIN}@127.0.0.1:{port}").send(letter)
    received, encrypted = inbox.received()
    assert not encrypted
    check(received, letter)
    assert inbox.taken[0][0].rcpt_tos == ["ann@example.com", "bob@example.org"]
    assert inbox.taken[0][0].mail_from == "chat@example.com"
    assert inbox.logins == [(USER.encode(), PASSWORD.encode())]


@pytest.mark.usefixtures("trusted")
async def test_smtp_with_starttls(
    serve_smtp: ServeSmtp, inbox: Inbox, letter: Mail, server_tls: ssl.SSLContext
) -> None:
    with serve_smtp(tls_context=server_tls, require_starttls=True) as port:
        await by(SMTP_URL=f"smtp://{LOGIN}@localhost:{port}").send(letter)
    received, encrypted = inbox.received()
    assert encrypted
    check(received, letter)


@pytest.mark.usefixtures("trusted")
async def test_smtp_with_tls(serve_smtp: ServeSmtp, inbox: Inbox, letter: Mail, server_tls: ssl.SSLContext) -> None:
    with serve_smtp(ssl_context=server_tls) as port:
        await by(SMTP_URL=f"smtps://{LOGIN}@localhost:{port}").send(letter)
    received, encrypted = inbox.received()
    assert encrypted
    check(received, letter)


async def test_smtp_refuses_a_server_it_can_not_trust(
    serve_smtp: ServeSmtp, inbox: Inbox, letter: Mail, server_tls: ssl.SSLContext
) -> None:
    with serve_smtp(ssl_context=server_tls) as port, pytest.raises(MailFailed, match="certificate"):
        await by(SMTP_URL=f"smtps://{LOGIN}@localhost:{port}").send(letter)
    assert not inbox.taken
    assert not inbox.logins


async def test_smtp_gives_no_password_away_where_starttls_is_missing(
    serve_smtp: ServeSmtp, inbox: Inbox, letter: Mail
) -> None:
    far_away = Smtp(host="127.0.0.1", port=0, tls=False, starttls=True, user=USER, password=PASSWORD)
    with serve_smtp() as port, pytest.raises(MailFailed, match="STARTTLS"):
        await replace(far_away, port=port).send(letter)
    assert not inbox.logins


async def test_smtp_failures_say_where_and_no_secret(serve_smtp: ServeSmtp, inbox: Inbox, letter: Mail) -> None:
    with serve_smtp() as port, pytest.raises(MailFailed) as wrong_login:
        await by(SMTP_URL=f"smtp://{USER.replace('@', '%40')}:not-the-password@127.0.0.1:{port}").send(letter)
    with pytest.raises(MailFailed) as nobody_there:
        await by(SMTP_URL=f"smtp://{LOGIN}@127.0.0.1:{port}").send(letter)
    for failure in (wrong_login, nobody_there):
        assert f"127.0.0.1:{port}" in str(failure.value)
        assert PASSWORD not in str(failure.value)
        assert "not-the-password" not in str(failure.value)
    assert not inbox.taken


async def test_smtp_one_refused_recipient_does_not_keep_the_mail_from_the_others(
    serve_smtp: ServeSmtp, inbox: Inbox, letter: Mail, caplog: pytest.LogCaptureFixture
) -> None:
    inbox.refused = {"bob@example.org"}
    with serve_smtp() as port, caplog.at_level(logging.ERROR, mail.__name__):
        to = await by(SMTP_URL=f"smtp://{LOGIN}@127.0.0.1:{port}").send(letter)
    assert inbox.taken[0][0].rcpt_tos == [*to] == ["ann@example.com"]
    assert "bob@example.org" in caplog.text


async def test_smtp_fails_where_every_recipient_is_refused(serve_smtp: ServeSmtp, inbox: Inbox, letter: Mail) -> None:
    inbox.refused = set(letter.recipients)
    with serve_smtp() as port, pytest.raises(MailFailed, match="no such mailbox"):
        await by(SMTP_URL=f"smtp://{LOGIN}@127.0.0.1:{port}").send(letter)


async def test_smtp_can_not_be_asked(letter: Mail) -> None:
    assert not await by(SMTP_URL="smtp://127.0.0.1").knows(letter.operation_id)


# Azure Communication Services


@pytest.fixture
def waits(monkeypatch: pytest.MonkeyPatch) -> None:
    """Only what the service asks for is waited for."""
    monkeypatch.setattr(communication_services, "WAITS", (0, 0, 0, 0))


@pytest.fixture
async def service(waits: None) -> AsyncIterator[Fake]:
    fake = Fake()
    async with fake.serving():
        yield fake


async def test_communication_services_by_connection_string(service: Fake, letter: Mail) -> None:
    await by(ACS_CONNECTION_STRING=service.connection_string).send(letter)
    assert service.sent == {
        letter.operation_id: {
            "senderAddress": letter.sender,
            "recipients": {"to": [{"address": "ann@example.com"}, {"address": "bob@example.org"}]},
            "content": {"subject": letter.subject, "plainText": letter.text, "html": letter.html},
            "userEngagementTrackingDisabled": True,
        }
    }
    assert [operation for operation, _ in service.questions] == [letter.operation_id]


async def test_communication_services_by_managed_identity(
    waits: None, authority: trustme.CA, trusted: Path, tmp_path: Path, letter: Mail
) -> None:
    fake, credential, certificate = Fake(), Credential(), tmp_path / "server.pem"
    authority.issue_cert("127.0.0.1").private_key_and_cert_chain_pem.write_to_path(str(certificate))
    async with fake.serving(certificate):
        identified = CommunicationServices(fake.endpoint, credential, connection_verify=str(trusted))
        await identified.send(letter)
        assert await identified.knows(letter.operation_id)
    assert list(fake.sent) == [letter.operation_id]
    assert set(credential.scopes) == {"https://communication.azure.com//.default"}  # as the SDK writes it


def test_an_endpoint_is_used_with_the_identity() -> None:
    assert isinstance(by(ACS_ENDPOINT="https://a.communication.azure.com/"), CommunicationServices)


async def test_communication_services_refuses_another_key(service: Fake, letter: Mail) -> None:
    other = CommunicationServices(service.endpoint, AzureKeyCredential("b3RoZXI="))
    with pytest.raises(MailFailed, match=r"401.*Denied by the resource provider") as caught:
        await other.send(letter)
    assert "b3RoZXI=" not in str(caught.value)
    assert not service.sent


@pytest.mark.parametrize(
    ("error", "said"),
    [("denied", "denied"), ({"code": 403}, "403"), (["denied"], "denied"), ({}, "no reason given")],
)
async def test_a_refusal_of_any_shape_is_a_failure_that_says_what_it_can(
    service: Fake, letter: Mail, error: object, said: str
) -> None:
    service.error = error
    service.refusals.append(403)
    with pytest.raises(MailFailed, match=rf"\(403\): .*{said}"):
        await by(ACS_CONNECTION_STRING=service.connection_string).send(letter)


async def test_communication_services_is_asked_before_a_second_send(service: Fake, letter: Mail) -> None:
    way = by(ACS_CONNECTION_STRING=service.connection_string)
    assert not await way.knows(letter.operation_id)
    await way.send(letter)
    assert await way.knows(letter.operation_id)
    service.outcomes.append("Running")
    assert await way.knows(letter.operation_id)
    service.outcomes.append("Failed")
    assert not await way.knows(letter.operation_id)
    service.outcomes.append(503)
    with pytest.raises(MailFailed, match="503"):
        await way.knows(letter.operation_id)
    service.outcomes.append("a page")
    with pytest.raises(MailFailed, match="200"):
        await way.knows(letter.operation_id)


async def test_a_mail_that_the_service_gives_up_has_failed(service: Fake, letter: Mail) -> None:
    service.outcomes.extend(["Running", "Failed"])
    with pytest.raises(MailFailed, match="EmailDropped: The sender's domain is not linked"):
        await by(ACS_CONNECTION_STRING=service.connection_string).send(letter)


async def test_an_accepted_mail_is_asked_about_four_times_at_most(service: Fake, letter: Mail) -> None:
    service.outcomes.extend(["Running", 404, 500, "garbled", "Failed"])
    await by(ACS_CONNECTION_STRING=service.connection_string).send(letter)
    assert len(service.questions) == 4
    assert len(service.attempts) == 1


async def test_a_question_waits_as_long_as_the_service_asks(service: Fake, letter: Mail) -> None:
    service.retry_after = 1
    await by(ACS_CONNECTION_STRING=service.connection_string).send(letter)
    [(_, asked)] = service.questions
    assert asked - service.attempts[0] >= 1


async def test_a_question_that_has_to_wait_too_long_is_not_asked(service: Fake, letter: Mail) -> None:
    service.retry_after = 61
    await by(ACS_CONNECTION_STRING=service.connection_string).send(letter)  # or this test would take a minute
    assert service.sent
    assert not service.questions


async def test_a_refused_send_is_tried_again_when_the_service_says(service: Fake, letter: Mail) -> None:
    service.refusals.append(429)
    service.retry_after = 1
    await by(ACS_CONNECTION_STRING=service.connection_string).send(letter)
    first, second = service.attempts
    assert second - first >= 1
    assert list(service.sent) == [letter.operation_id]


async def test_a_send_is_not_tried_again_for_ever(service: Fake, letter: Mail) -> None:
    service.refusals.extend([429] * 9)
    with pytest.raises(MailFailed, match="429"):
        await by(ACS_CONNECTION_STRING=service.connection_string).send(letter)
    assert len(service.attempts) == 3


async def test_an_hour_is_not_waited_for(service: Fake, letter: Mail) -> None:
    service.refusals.append(429)
    service.retry_after = 3600
    with pytest.raises(MailFailed, match="429"):
        await by(ACS_CONNECTION_STRING=service.connection_string).send(letter)
    assert len(service.attempts) == 1


@pytest.mark.parametrize("status", [500, 503, 504])
async def test_a_send_that_may_have_been_taken_is_not_repeated(service: Fake, letter: Mail, status: int) -> None:
    service.refusals.append(status)
    with pytest.raises(MailFailed, match=str(status)):
        await by(ACS_CONNECTION_STRING=service.connection_string).send(letter)
    assert len(service.attempts) == 1


async def test_communication_services_out_of_reach(letter: Mail) -> None:
    with pytest.raises(MailFailed, match="can't be reached"):
        await by(ACS_CONNECTION_STRING=f"endpoint=http://127.0.0.1:{free_port()};accesskey=c2VjcmV0").send(letter)


# The outbox


async def test_the_outbox_keeps_a_mail_that_opens(tmp_path: Path, letter: Mail) -> None:
    folder = tmp_path / "not" / "yet"
    way = by(OUTBOX_DIR=str(folder))
    assert not await way.knows(letter.operation_id)
    await way.send(letter)
    assert await way.knows(letter.operation_id)
    assert [file.name for file in folder.iterdir()] == [f"{letter.operation_id}.eml"]
    check((folder / f"{letter.operation_id}.eml").read_bytes(), letter)


async def test_a_folder_that_can_not_be_written_is_a_failure(tmp_path: Path, letter: Mail) -> None:
    (tmp_path / "file").touch()
    with pytest.raises(MailFailed, match="OUTBOX_DIR"):
        await by(OUTBOX_DIR=str(tmp_path / "file")).send(letter)
