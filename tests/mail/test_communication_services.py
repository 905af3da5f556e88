"""Email through Azure Communication Services, against a fake of its REST API."""

from collections.abc import AsyncIterator
from pathlib import Path

import pytest
import trustme
from azure.core.credentials import AzureKeyCredential

from local.parts import free_port
from shared.mail.communication_services import CommunicationServices
from shared.mail.email import Email, MailFailed, Transport
from tests.mail.conftest import Credential, SkippingClock, transport_for
from tests.support.communication_services import CommunicationServices as Fake


@pytest.fixture
async def service() -> AsyncIterator[Fake]:
    fake = Fake()
    async with fake.serving():
        yield fake


@pytest.fixture
def transport(service: Fake, clock: SkippingClock) -> Transport:
    return transport_for(clock, ACS_CONNECTION_STRING=service.connection_string)


async def test_email_is_submitted_once_and_its_status_polled(service: Fake, transport: Transport, email: Email) -> None:
    await transport.send(email)
    assert service.sent == {
        email.operation_id: {
            "senderAddress": email.sender,
            "recipients": {"to": [{"address": "ann@example.com"}, {"address": "bob@example.org"}]},
            "content": {"subject": email.subject, "plainText": email.text, "html": email.html},
            "userEngagementTrackingDisabled": True,
        }
    }
    assert [operation for operation, _ in service.status_requests] == [email.operation_id]


async def test_managed_identity_authenticates(
    clock: SkippingClock, authority: trustme.CA, trusted: Path, tmp_path: Path, email: Email
) -> None:
    fake, credential, certificate = Fake(), Credential(), tmp_path / "server.pem"
    authority.issue_cert("127.0.0.1").private_key_and_cert_chain_pem.write_to_path(str(certificate))
    async with fake.serving(certificate):
        transport = CommunicationServices(fake.endpoint, credential, clock, connection_verify=str(trusted))
        await transport.send(email)
        assert await transport.was_sent(email.operation_id)
    assert list(fake.sent) == [email.operation_id]
    assert set(credential.scopes) == {"https://communication.azure.com//.default"}  # as the SDK writes it


async def test_wrong_access_key_fails_with_401(service: Fake, clock: SkippingClock, email: Email) -> None:
    other = CommunicationServices(service.endpoint, AzureKeyCredential("b3RoZXI="), clock)
    with pytest.raises(MailFailed, match=r"401.*Denied by the resource provider") as caught:
        await other.send(email)
    assert "b3RoZXI=" not in str(caught.value)
    assert not service.sent


@pytest.mark.parametrize(
    ("error", "reason"),
    [("denied", "denied"), ({"code": 403}, "403"), (["denied"], "denied"), ({}, "no reason given")],
)
async def test_error_response_of_any_shape_raises_mail_failed_with_its_reason(
    service: Fake, transport: Transport, email: Email, error: object, reason: str
) -> None:
    service.error = error
    service.send_errors.append(403)
    with pytest.raises(MailFailed, match=rf"\(403\): .*{reason}"):
        await transport.send(email)


async def test_was_sent_follows_the_operation_status(service: Fake, transport: Transport, email: Email) -> None:
    assert not await transport.was_sent(email.operation_id)
    await transport.send(email)
    assert await transport.was_sent(email.operation_id)
    service.outcomes.append("Running")
    assert await transport.was_sent(email.operation_id)
    service.outcomes.append("Failed")
    assert not await transport.was_sent(email.operation_id)
    service.outcomes.append(503)
    with pytest.raises(MailFailed, match="503"):
        await transport.was_sent(email.operation_id)
    service.outcomes.append("a page")
    with pytest.raises(MailFailed, match="200"):
        await transport.was_sent(email.operation_id)


async def test_failed_operation_status_raises_mail_failed(service: Fake, transport: Transport, email: Email) -> None:
    service.outcomes.extend(["Running", "Failed"])
    with pytest.raises(MailFailed, match="EmailDropped: The sender's domain is not linked"):
        await transport.send(email)


async def test_status_is_polled_at_most_four_times(
    service: Fake, clock: SkippingClock, transport: Transport, email: Email
) -> None:
    service.outcomes.extend(["Running", 404, 500, "garbled", "Failed"])
    await transport.send(email)
    assert len(service.status_requests) == 4
    assert len(service.attempts) == 1
    assert clock.slept == [3, 6, 12, 24]


async def test_status_poll_waits_for_retry_after(
    service: Fake, clock: SkippingClock, transport: Transport, email: Email
) -> None:
    service.retry_after = 60
    await transport.send(email)
    assert len(service.status_requests) == 1
    assert clock.slept == [60]


async def test_status_is_not_polled_if_retry_after_is_too_long(
    service: Fake, clock: SkippingClock, transport: Transport, email: Email
) -> None:
    service.retry_after = 61
    await transport.send(email)
    assert service.sent
    assert not service.status_requests
    assert clock.slept == []


async def test_send_is_retried_after_429_and_retry_after(
    service: Fake, clock: SkippingClock, transport: Transport, email: Email
) -> None:
    service.send_errors.append(429)
    service.retry_after = 50
    await transport.send(email)
    assert len(service.attempts) == 2
    assert clock.slept == [50, 50]  # before the second attempt, and before the status is polled
    assert list(service.sent) == [email.operation_id]


async def test_send_retries_are_limited(
    service: Fake, clock: SkippingClock, transport: Transport, email: Email
) -> None:
    service.send_errors.extend([429] * 9)
    with pytest.raises(MailFailed, match="429"):
        await transport.send(email)
    assert len(service.attempts) == 3
    assert len(clock.slept) == 2


async def test_send_is_not_retried_if_retry_after_is_an_hour(
    service: Fake, clock: SkippingClock, transport: Transport, email: Email
) -> None:
    service.send_errors.append(429)
    service.retry_after = 3600
    with pytest.raises(MailFailed, match="429"):
        await transport.send(email)
    assert len(service.attempts) == 1
    assert clock.slept == []


@pytest.mark.parametrize("status", [500, 503, 504])
async def test_send_is_not_retried_if_it_may_have_been_accepted(
    service: Fake, transport: Transport, email: Email, status: int
) -> None:
    service.send_errors.append(status)
    with pytest.raises(MailFailed, match=str(status)):
        await transport.send(email)
    assert len(service.attempts) == 1


async def test_unreachable_service_raises_mail_failed(clock: SkippingClock, email: Email) -> None:
    with pytest.raises(MailFailed, match="Cannot reach"):
        await transport_for(
            clock, ACS_CONNECTION_STRING=f"endpoint=http://127.0.0.1:{free_port()};accesskey=c2VjcmV0"
        ).send(email)
