"""A fake of App Service's identity endpoint, which issues the tokens of a managed identity
(https://learn.microsoft.com/azure/app-service/overview-managed-identity#rest-endpoint-reference), and the check of such
a token.

The tokens are JWTs that Azurite accepts. They are payload, so that the fake model service can reject forged ones.
"""

import asyncio
import base64
import hashlib
import hmac
import json
import secrets
import time
from collections.abc import Mapping
from dataclasses import dataclass
from typing import Any
from urllib.parse import parse_qs, urlsplit

import h11

from tests.support.loopback import Loopback, Wire

ISSUER = "https://sts.windows.net/00000000-0000-0000-0000-000000000000/"
HOUR = 3_600.0  # default lifetime of a token in seconds


@dataclass(frozen=True)
class IssuedToken:
    """An issued token. `audience` is the requested one."""

    audience: str
    client_id: str | None
    token: str


class AppService(Loopback):
    """`with AppService() as platform:` an app with `platform.environ` uses this identity endpoint."""

    def __init__(self) -> None:
        super().__init__()
        self.lifetime = HOUR
        self.audiences: dict[str, str] = {}  # requested audience -> audience in the token
        self.failing = False
        self.silent = False  # while True, requests are never answered
        self.issued: list[IssuedToken] = []
        self.revoked: set[str] = set()
        self._secret = secrets.token_hex(16)

    @property
    def environ(self) -> dict[str, str]:
        return {"IDENTITY_ENDPOINT": f"http://127.0.0.1:{self.port}/msi/token", "IDENTITY_HEADER": self._secret}

    def tokens(self, audience: str) -> list[str]:
        return [issued.token for issued in self.issued if issued.audience == audience]

    def revoke(self) -> None:
        """Make all tokens issued so far invalid."""
        self.revoked |= {issued.token for issued in self.issued}

    def accepts(self, headers: Mapping[str, str], audience: str) -> bool:
        """True if the request's bearer token is valid for this audience: issued here, not revoked and not expired."""
        token = headers.get("authorization", "").removeprefix("Bearer ")
        payload, _, signature = token.rpartition(".")
        if token in self.revoked or not hmac.compare_digest(signature, self._signature(payload)):
            return False
        claims = json.loads(base64.urlsafe_b64decode(payload.split(".")[1] + "=="))
        return bool(claims["aud"] == audience and time.time() < claims["exp"])

    async def converse(self, wire: Wire) -> None:
        while message := await wire.message():
            assert isinstance(message.head, h11.Request)
            if self.silent:
                await asyncio.Event().wait()
            headers = {name.decode(): value.decode() for name, value in message.head.headers}
            status, body = self._answer(message.head.target.decode(), headers)
            content = json.dumps(body).encode()
            head = [("content-type", "application/json"), ("content-length", str(len(content)))]
            await wire.send(h11.Response(status_code=status, headers=head), h11.Data(content), h11.EndOfMessage())
            wire.http.start_next_cycle()

    def _answer(self, target: str, headers: Mapping[str, str]) -> tuple[int, dict[str, Any]]:
        url = urlsplit(target)
        query = {name: values[0] for name, values in parse_qs(url.query).items()}
        if url.path != "/msi/token" or query.get("api-version") != "2019-08-01" or "resource" not in query:
            return 400, {"statusCode": 400, "message": "Unsupported request."}
        if not hmac.compare_digest(headers.get("x-identity-header", ""), self._secret):
            return 403, {"statusCode": 403, "message": "Invalid X-IDENTITY-HEADER."}
        if self.failing:
            return 400, {"statusCode": 400, "message": "No managed identity is assigned."}
        audience, expires = query["resource"], int(time.time() + self.lifetime)
        token = self._token(self.audiences.get(audience, audience), expires)
        self.issued.append(IssuedToken(audience, query.get("client_id"), token))
        return 200, {
            "access_token": token,
            "expires_on": str(expires),
            "resource": audience,
            "token_type": "Bearer",
            "client_id": query.get("client_id"),
        }

    def _token(self, audience: str, expires: int) -> str:
        now = int(time.time()) - 1
        claims = {"aud": audience, "iss": ISSUER, "iat": now, "nbf": now, "exp": expires, "jti": secrets.token_hex(8)}
        payload = f"{_part({'alg': 'HS256', 'typ': 'JWT'})}.{_part(claims)}"
        return f"{payload}.{self._signature(payload)}"

    def _signature(self, payload: str) -> str:
        digest = hmac.digest(self._secret.encode(), payload.encode(), hashlib.sha256)
        return base64.urlsafe_b64encode(digest).rstrip(b"=").decode()


def _part(value: Mapping[str, Any]) -> str:
    return base64.urlsafe_b64encode(json.dumps(value).encode()).rstrip(b"=").decode()
