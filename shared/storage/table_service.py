"""Requests to Table Storage: signed, sent, repeated, and their answers.

https://learn.microsoft.com/rest/api/storageservices/table-service-rest-api
"""

import base64
import binascii
import hashlib
import hmac
import time
from collections.abc import Awaitable, Callable, Mapping
from dataclasses import dataclass, field
from email.utils import formatdate
from urllib.request import getproxies, proxy_bypass

import aiohttp
from yarl import URL

from shared.domain.clock import Clock

SCOPE = "https://storage.azure.com/.default"
_VERSION = "2019-02-02"  # of the protocol, as azure-data-tables 12.7 sends it
_CONNECT_S, _READ_S = 5.0, 15.0
_MAX_REPEATS = 3
_BACKOFF_S = 0.2  # before the second repeat; it doubles
_MAX_RETRY_AFTER_S = 5.0
_REPEATED = (408, 429, 500, 502, 503, 504)
_REPEATED_ALWAYS = (500, 503, 504)  # of any method: as azure-core's RetryPolicy
_REPEATED_LATER = (413, 429, 503)  # with Retry-After
# https://learn.microsoft.com/azure/storage/common/storage-use-azurite#well-known-storage-account-and-key
_EMULATOR = (
    "AccountName=devstoreaccount1;"
    "AccountKey=Eby8vdM02xNOcqFlqUwJPLlmEtlCDXJ1OUzFT50uSRZ6IFsuFq2UVErCz4I6tq/K1SZFPTOtr/KBHBeksoGMGw==;"
    "TableEndpoint=http://127.0.0.1:10002/devstoreaccount1"
)


@dataclass(frozen=True, slots=True)
class Request:
    """`resource`: the path below the account. `query` is encoded."""

    method: str
    resource: str
    query: str = ""
    body: bytes | None = None
    headers: Mapping[str, str] = field(default_factory=dict)


@dataclass(frozen=True, slots=True)
class Response:
    status: int
    headers: Mapping[str, str]
    body: bytes


class Unreachable(Exception):
    """No whole answer. `sent`: the request may have arrived."""

    def __init__(self, cause: BaseException, *, sent: bool) -> None:
        super().__init__(type(cause).__name__)
        self.sent = sent


class NotSignedIn(Exception):
    """The identity has given no token; nothing was sent."""


class SharedKey:
    """An account key, in the light form of the scheme, which the table service accepts.
    https://learn.microsoft.com/rest/api/storageservices/authorize-with-shared-key"""

    query = ""

    def __init__(self, account: str, key: str) -> None:
        self._account = account
        self._hmac = hmac.new(base64.b64decode(key), digestmod=hashlib.sha256)

    async def header(self, path: str, date: str) -> str:
        signed = self._hmac.copy()
        signed.update(f"{date}\n/{self._account}{path}".encode())
        signature = binascii.b2a_base64(signed.digest(), newline=False).decode()
        return f"SharedKeyLite {self._account}:{signature}"


class SharedAccessSignature:
    def __init__(self, query: str) -> None:
        self.query = query.removeprefix("?")

    async def header(self, path: str, date: str) -> str:
        return ""


class BearerToken:
    """Tokens of the app's identity. `token` may raise any exception."""

    query = ""

    def __init__(self, token: Callable[[], Awaitable[str]]) -> None:
        self._token = token

    async def header(self, path: str, date: str) -> str:
        try:
            return f"Bearer {await self._token()}"
        except Exception as error:
            raise NotSignedIn(type(error).__name__) from error


class TableService:
    """`endpoint`: the account's URL, with a path in the case of an emulator."""

    def __init__(self, endpoint: str, auth: SharedKey | SharedAccessSignature | BearerToken, clock: Clock) -> None:
        self.endpoint = endpoint.rstrip("/")
        self._path = URL(self.endpoint).raw_path.rstrip("/")
        self._origin = self.endpoint.removesuffix(self._path)
        self._auth = auth
        self._clock = clock
        self._session: aiohttp.ClientSession | None = None
        self._date = (0, "")

    @classmethod
    def from_connection_string(cls, text: str, clock: Clock) -> "TableService":
        """`text`: as settings accept it. https://learn.microsoft.com/azure/storage/common/storage-configure-connection-string"""
        if text.strip().rstrip(";").lower() == "usedevelopmentstorage=true":
            text = _EMULATOR
        parts = (part.partition("=") for part in text.split(";") if part.strip())
        values = {name.strip().lower(): value.strip() for name, _, value in parts}
        scheme, suffix = (
            values.get("defaultendpointsprotocol", "https"),
            values.get("endpointsuffix", "core.windows.net"),
        )
        endpoint = values.get("tableendpoint") or f"{scheme}://{values['accountname']}.table.{suffix}"
        if key := values.get("accountkey"):
            return cls(endpoint, SharedKey(values["accountname"], key), clock)
        return cls(endpoint, SharedAccessSignature(values["sharedaccesssignature"]), clock)

    async def send(self, request: Request) -> Response:
        """The answer, whatever its status. What can have been carried out already is repeated only if it may be carried
        out twice. Raises Unreachable and NotSignedIn."""
        repeats = 0
        while True:
            try:
                response = await self._send(request)
            except Unreachable as error:
                if repeats == _MAX_REPEATS or (error.sent and request.method == "POST"):
                    raise
                pause = 0.0
            else:
                if repeats == _MAX_REPEATS or not _is_repeated(request, response):
                    return response
                pause = _retry_after(response)
            await self._clock.sleep(pause or (_BACKOFF_S * 2**repeats if repeats else 0.0))
            repeats += 1

    async def close(self) -> None:
        if self._session:
            await self._session.close()

    async def _send(self, request: Request) -> Response:
        path, date = f"{self._path}/{request.resource}", self._http_date()
        headers = {
            "x-ms-date": date,
            "x-ms-version": _VERSION,
            "DataServiceVersion": "3.0",
            "Accept": "application/json;odata=minimalmetadata",
            "Content-Type": "application/json",
            **request.headers,
        }
        if authorization := await self._auth.header(path, date):
            headers["Authorization"] = authorization
        query = "&".join(part for part in (request.query, self._auth.query) if part)
        url = URL(f"{self._origin}{path}?{query}" if query else f"{self._origin}{path}", encoded=True)
        try:
            async with self._open_session().request(
                request.method, url, data=request.body, headers=headers, allow_redirects=False
            ) as response:
                return Response(response.status, response.headers, await response.read())
        except (aiohttp.ClientConnectorError, aiohttp.ConnectionTimeoutError) as error:
            raise Unreachable(error, sent=False) from error
        except (aiohttp.ClientError, OSError) as error:
            raise Unreachable(error, sent=True) from error

    def _http_date(self) -> str:
        now = int(time.time())
        if self._date[0] != now:
            self._date = now, formatdate(now, usegmt=True)
        return self._date[1]

    def _open_session(self) -> aiohttp.ClientSession:
        if self._session is None:
            origin = URL(self._origin)
            proxy = None if proxy_bypass(origin.host or "") else getproxies().get(origin.scheme)
            self._session = aiohttp.ClientSession(
                timeout=aiohttp.ClientTimeout(total=None, sock_connect=_CONNECT_S, sock_read=_READ_S),
                cookie_jar=aiohttp.DummyCookieJar(),
                skip_auto_headers=("User-Agent", "Accept-Encoding"),
                proxy=proxy,
            )
        return self._session


def _is_repeated(request: Request, response: Response) -> bool:
    if response.status in _REPEATED_LATER and "Retry-After" in response.headers:
        return True
    return response.status in (_REPEATED_ALWAYS if request.method in ("POST", "PATCH") else _REPEATED)


def _retry_after(response: Response) -> float:
    seconds = response.headers.get("Retry-After", "")
    return min(float(seconds), _MAX_RETRY_AFTER_S) if seconds.isdecimal() else 0.0
