"""Email through Azure Communication Services. https://learn.microsoft.com/rest/api/communication/email

Only the SDK's client is used, for its two authentication methods (key and managed identity). The SDK's poller polls
every few seconds without a limit, and its retries have sent emails twice (Azure/azure-sdk-for-net#50889).
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
MAX_ATTEMPTS = 3  # to submit an email, if the service answers 429
MAX_WAIT_S = 60  # Retry-After can be an hour
BACKOFF_S = 5  # after a 429 without Retry-After
POLL_WAITS_S = (3, 6, 12, 24)  # before each status poll; an Azure-managed domain allows 20 polls an hour


class CommunicationServices:
    """`options` are passed to the SDK's client."""

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
            response = await _send(client, _status_request(operation_id))
        if response.status_code == 404:
            return False
        # The page of a gateway says nothing about the email.
        if response.status_code != 200 or "status" not in _body(response):
            raise MailFailed(_reason(response))
        return not _has_failed(response)

    def _client(self) -> EmailClient:
        return EmailClient(self._endpoint, self._credential, **self._options)

    async def _submit(self, client: EmailClient, email: Email) -> int:
        """Submit the email. Returns the seconds to wait before polling its status."""
        for attempts_left in reversed(range(MAX_ATTEMPTS)):
            response = await _send(client, _submission(email))
            if response.status_code == 202:
                return _retry_after(response)
            wait = _retry_after(response, BACKOFF_S)
            if response.status_code != 429 or wait > MAX_WAIT_S or not attempts_left:
                break
            await self._clock.sleep(wait)
        raise MailFailed(_reason(response))

    async def _await_status(self, client: EmailClient, operation_id: str, retry_after: int) -> None:
        """Poll a few times. A submitted email counts as sent unless the service reports that it failed. The service may
        answer 404 for an email that it has just accepted (Azure/azure-sdk-for-python#35849)."""
        for minimum in POLL_WAITS_S:
            if retry_after > MAX_WAIT_S:
                return
            await self._clock.sleep(max(minimum, retry_after))
            try:
                response = await _send(client, _status_request(operation_id))
            except MailFailed:
                continue
            if _has_failed(response):
                raise MailFailed(_reason(response))
            if _body(response).get("status") == "Succeeded":
                return
            retry_after = _retry_after(response)


async def _send(client: EmailClient, request: HttpRequest) -> AsyncHttpResponse:
    try:
        return await client.send_request(request)
    except AzureError as error:
        raise MailFailed(f"Cannot reach Communication Services: {error.message.splitlines()[0]}") from error


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


def _has_failed(response: AsyncHttpResponse) -> bool:
    return _body(response).get("status") in ("Failed", "Canceled")


def _reason(response: AsyncHttpResponse) -> str:
    error = _body(response).get("error")
    parts = (error.get("code"), error.get("message")) if isinstance(error, dict) else (error,)  # from a gateway
    reason = ": ".join(str(part) for part in parts if part)
    return f"Communication Services did not send the email ({response.status_code}): {reason or 'no reason given'}"


def _body(response: AsyncHttpResponse) -> dict[str, Any]:
    try:
        body = response.json()
    except ValueError:  # an HTML page of a gateway
        return {}
    return body if isinstance(body, dict) else {}


def _retry_after(response: AsyncHttpResponse, default: int = 0) -> int:
    """The Retry-After header in seconds."""
    value = response.headers.get("Retry-After", "")
    return int(value) if value.isdecimal() else default
