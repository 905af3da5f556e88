"""Email by Azure Communication Services. https://learn.microsoft.com/rest/api/communication/email

The SDK's poller polls every few seconds for as long as it takes, and its retries have sent emails twice
(Azure/azure-sdk-for-net#50889), so only the SDK's client is used, for its two ways of signing in.
"""

from typing import Any

from azure.communication.email.aio import EmailClient
from azure.core.credentials import AzureKeyCredential
from azure.core.credentials_async import AsyncTokenCredential
from azure.core.exceptions import AzureError
from azure.core.rest import AsyncHttpResponse, HttpRequest

from shared.domain.clock import Clock
from shared.mail.email import Email, MailFailed

VERSION = {"api-version": "2025-09-01"}
MAX_ATTEMPTS = 3  # at an email that is refused with 429
MAX_WAIT_S = 60  # the service may ask for an hour
BACK_OFF_S = 5  # where the service names no wait
POLL_WAITS_S = (3, 6, 12, 24)  # before each poll of the status: an Azure-managed domain answers 20 an hour


class CommunicationServices:
    """`options` are those of the SDK's client."""

    def __init__(
        self, endpoint: str, credential: AsyncTokenCredential | AzureKeyCredential, clock: Clock, **options: Any
    ) -> None:
        self._endpoint = endpoint
        self._credential = credential
        self._clock = clock
        self._options = {"retry_total": 0, "connection_timeout": 10, "read_timeout": 30, **options}

    async def send(self, email: Email) -> tuple[str, ...]:
        async with self._client() as client:
            retry_after = await self._submit(client, email)
            await self._await_status(client, email.operation_id, retry_after)
        return email.recipients

    async def was_sent(self, operation_id: str) -> bool:
        async with self._client() as client:
            answer = await _send(client, _status_request(operation_id))
        if answer.status_code == 404:
            return False
        if answer.status_code != 200 or "status" not in _body(answer):  # a gateway's page tells nothing about the email
            raise MailFailed(_reason(answer))
        return not _has_failed(answer)

    def _client(self) -> EmailClient:
        return EmailClient(self._endpoint, self._credential, **self._options)

    async def _submit(self, client: EmailClient, email: Email) -> int:
        """Submit the email. Returns the seconds to wait before polling its status."""
        for attempts_left in reversed(range(MAX_ATTEMPTS)):
            answer = await _send(client, _submission(email))
            if answer.status_code == 202:
                return _retry_after(answer)
            wait = _retry_after(answer, BACK_OFF_S)
            if answer.status_code != 429 or wait > MAX_WAIT_S or not attempts_left:
                break
            await self._clock.sleep(wait)
        raise MailFailed(_reason(answer))

    async def _await_status(self, client: EmailClient, operation_id: str, retry_after: int) -> None:
        """Poll a few times: a submitted email counts as sent unless the service says otherwise. It may answer 404 for
        one that it has just accepted (Azure/azure-sdk-for-python#35849)."""
        for minimum in POLL_WAITS_S:
            if retry_after > MAX_WAIT_S:
                return
            await self._clock.sleep(max(minimum, retry_after))
            try:
                answer = await _send(client, _status_request(operation_id))
            except MailFailed:
                continue
            if _has_failed(answer):
                raise MailFailed(_reason(answer))
            if _body(answer).get("status") == "Succeeded":
                return
            retry_after = _retry_after(answer)


async def _send(client: EmailClient, request: HttpRequest) -> AsyncHttpResponse:
    try:
        return await client.send_request(request)
    except AzureError as error:
        raise MailFailed(f"Communication Services can't be reached: {error.message.splitlines()[0]}") from error


def _submission(email: Email) -> HttpRequest:
    body = {
        "senderAddress": email.sender,
        "recipients": {"to": [{"address": recipient} for recipient in email.recipients]},
        "content": {"subject": email.subject, "plainText": email.text, "html": email.html},
        "userEngagementTrackingDisabled": True,
    }
    headers = {"Operation-Id": email.operation_id}
    return HttpRequest("POST", "{endpoint}/emails:send", params=VERSION, headers=headers, json=body)


def _status_request(operation_id: str) -> HttpRequest:
    return HttpRequest("GET", f"{{endpoint}}/emails/operations/{operation_id}", params=VERSION)


def _has_failed(answer: AsyncHttpResponse) -> bool:
    return _body(answer).get("status") in ("Failed", "Canceled")


def _reason(answer: AsyncHttpResponse) -> str:
    error = _body(answer).get("error")
    parts = (error.get("code"), error.get("message")) if isinstance(error, dict) else (error,)  # a gateway's own words
    words = ": ".join(str(word) for word in parts if word)
    return f"Communication Services did not send the mail ({answer.status_code}): {words or 'no reason given'}"


def _body(answer: AsyncHttpResponse) -> dict[str, Any]:
    try:
        body = answer.json()
    except ValueError:  # a gateway's page
        return {}
    return body if isinstance(body, dict) else {}


def _retry_after(answer: AsyncHttpResponse, default: int = 0) -> int:
    """Seconds."""
    value = answer.headers.get("Retry-After", "")
    return int(value) if value.isdecimal() else default
