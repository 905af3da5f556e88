"""Mail by Azure Communication Services. https://learn.microsoft.com/rest/api/communication/email

The SDK's poller asks for the outcome every few seconds for as long as it takes, and its retries have sent mails twice
(Azure/azure-sdk-for-net#50889), so only its client is used, which knows the two ways of signing in.
"""

import asyncio
from typing import Any

from azure.communication.email.aio import EmailClient
from azure.core.credentials import AzureKeyCredential
from azure.core.credentials_async import AsyncTokenCredential
from azure.core.exceptions import AzureError
from azure.core.rest import AsyncHttpResponse, HttpRequest

from shared.message import Mail, MailFailed

VERSION = {"api-version": "2025-09-01"}
TRIES = 3  # at a mail that is refused with 429
LONGEST_WAIT = 60  # seconds: the service may ask for an hour
BACK_OFF = 5  # seconds, where the service does not say
WAITS = (3, 6, 12, 24)  # seconds before each question for the outcome: an Azure-managed domain answers 20 an hour


class CommunicationServices:
    """`options` are those of the SDK's client."""

    def __init__(self, endpoint: str, credential: AsyncTokenCredential | AzureKeyCredential, **options: Any) -> None:
        self._endpoint = endpoint
        self._credential = credential
        self._options = {"retry_total": 0, "connection_timeout": 10, "read_timeout": 30, **options}

    async def send(self, mail: Mail) -> tuple[str, ...]:
        async with self._client() as client:
            retry_after = await _order(client, mail)
            await _follow(client, mail.operation_id, retry_after)
        return mail.recipients

    async def knows(self, operation_id: str) -> bool:
        async with self._client() as client:
            answer = await _ask(client, _question(operation_id))
        if answer.status_code == 404:
            return False
        if answer.status_code != 200 or "status" not in _body(answer):  # a gateway's page says nothing of the mail
            raise MailFailed(_reason(answer))
        return not _has_failed(answer)

    def _client(self) -> EmailClient:
        return EmailClient(self._endpoint, self._credential, **self._options)


async def _order(client: EmailClient, mail: Mail) -> int:
    """Have the mail accepted. After how many seconds its outcome may be asked for."""
    for left in reversed(range(TRIES)):
        answer = await _ask(client, _request(mail))
        if answer.status_code == 202:
            return _retry_after(answer)
        wait = _retry_after(answer, BACK_OFF)
        if answer.status_code != 429 or wait > LONGEST_WAIT or not left:
            break
        await asyncio.sleep(wait)
    raise MailFailed(_reason(answer))


async def _follow(client: EmailClient, operation_id: str, retry_after: int) -> None:
    """Wait for the outcome, within reason: an accepted mail has left unless the service says otherwise. It may deny
    knowing one that it has just accepted (Azure/azure-sdk-for-python#35849)."""
    for least in WAITS:
        if retry_after > LONGEST_WAIT:
            return
        await asyncio.sleep(max(least, retry_after))
        try:
            answer = await _ask(client, _question(operation_id))
        except MailFailed:
            continue
        if _has_failed(answer):
            raise MailFailed(_reason(answer))
        if _body(answer).get("status") == "Succeeded":
            return
        retry_after = _retry_after(answer)


async def _ask(client: EmailClient, request: HttpRequest) -> AsyncHttpResponse:
    try:
        return await client.send_request(request)
    except AzureError as error:
        raise MailFailed(f"Communication Services can't be reached: {error.message.splitlines()[0]}") from error


def _request(mail: Mail) -> HttpRequest:
    body = {
        "senderAddress": mail.sender,
        "recipients": {"to": [{"address": recipient} for recipient in mail.recipients]},
        "content": {"subject": mail.subject, "plainText": mail.text, "html": mail.html},
        "userEngagementTrackingDisabled": True,
    }
    headers = {"Operation-Id": mail.operation_id}
    return HttpRequest("POST", "{endpoint}/emails:send", params=VERSION, headers=headers, json=body)


def _question(operation_id: str) -> HttpRequest:
    return HttpRequest("GET", f"{{endpoint}}/emails/operations/{operation_id}", params=VERSION)


def _has_failed(answer: AsyncHttpResponse) -> bool:
    return _body(answer).get("status") in ("Failed", "Canceled")


def _reason(answer: AsyncHttpResponse) -> str:
    error = _body(answer).get("error")
    said = (error.get("code"), error.get("message")) if isinstance(error, dict) else (error,)  # a gateway's own words
    words = ": ".join(str(word) for word in said if word)
    return f"Communication Services did not send the mail ({answer.status_code}): {words or 'no reason given'}"


def _body(answer: AsyncHttpResponse) -> dict[str, Any]:
    try:
        body = answer.json()
    except ValueError:  # a gateway's page
        return {}
    return body if isinstance(body, dict) else {}


def _retry_after(answer: AsyncHttpResponse, unsaid: int = 0) -> int:
    """Seconds."""
    value = answer.headers.get("Retry-After", "")
    return int(value) if value.isdecimal() else unsaid
