"""A fake of Microsoft Entra ID as the app sees it: a JSON Web Key Set per tenant, and access tokens, good and bad
(https://learn.microsoft.com/entra/identity-platform/access-token-claims-reference). For clients, which sign in, there
is the local issuer: tests/support/issuer.py.
"""

import base64
import hashlib
import hmac
import json
import secrets
import time
from collections.abc import Iterator, Mapping
from contextlib import contextmanager
from dataclasses import dataclass, field
from functools import cache
from typing import Any

import h11
from cryptography.hazmat.primitives import hashes, serialization
from cryptography.hazmat.primitives.asymmetric import padding, rsa

from tests.support.loopback import Gate, Loopback, Wire

JSON = dict[str, Any]
TENANT = "11111111-0000-4000-8000-000000000000"
CLIENT = "22222222-0000-4000-8000-000000000000"  # of the API's registration
SCOPE = f"api://{CLIENT}/access_as_user"
HOUR_S = 3_600


@dataclass(frozen=True)
class Person:
    object_id: str
    display_name: str
    roles: tuple[str, ...] = ()

    @property
    def name(self) -> str:
        """As sessions, the ledger and LIMITS name the person."""
        return f"user:{TENANT}:{self.object_id}"


ADA = Person("aaaaaaaa-0000-4000-8000-000000000000", "Ada Lovelace")
BOB = Person("bbbbbbbb-0000-4000-8000-000000000000", "Bob Kahn", ("Chat.User",))
CAROL = Person("cccccccc-0000-4000-8000-000000000000", "Carol Shaw", ("Chat.Admin",))


@cache
def private_key(number: int, bits: int = 2_048) -> rsa.RSAPrivateKey:
    """Made once per process, because each takes a tenth of a second."""
    return rsa.generate_private_key(65_537, bits)


@dataclass(frozen=True)
class SigningKey:
    private: rsa.RSAPrivateKey
    key_id: str = field(default_factory=lambda: secrets.token_urlsafe(20))

    def sign(self, data: bytes) -> bytes:
        return self.private.sign(data, padding.PKCS1v15(), hashes.SHA256())

    def sign_as_secret(self, data: bytes) -> bytes:
        """With HMAC, by the public key: what an attacker can do."""
        pem = serialization.PublicFormat.SubjectPublicKeyInfo
        public = self.private.public_key().public_bytes(serialization.Encoding.PEM, pem)
        return hmac.digest(public, data, hashlib.sha256)

    def published(self, **fields: Any) -> JSON:
        """As the key set holds it."""
        public = self.private.public_key().public_numbers()
        certificate = base64.b64encode(b"a certificate").decode()
        entry = {"kty": "RSA", "use": "sig", "kid": self.key_id, "x5t": self.key_id, "x5c": [certificate]}
        return entry | {"n": _number(public.n), "e": _number(public.e)} | fields


class EntraIssuer(Loopback):
    """`with EntraIssuer() as issuer:` an app with `issuer.environ` accepts `issuer.token(ADA)`.

    `answer`: the status, headers and body instead of the key set. `reads`: how often it was requested.
    """

    def __init__(self) -> None:
        super().__init__()
        self.key = SigningKey(private_key(1))
        self.published = [self.key.published()]
        self.answer: tuple[int, Mapping[str, str], bytes] | None = None
        self.reads = 0
        self._held: Gate | None = None

    @property
    def authority(self) -> str:
        return f"http://127.0.0.1:{self.port}"

    @property
    def environ(self) -> dict[str, str]:
        return {"AUTH_TENANT_ID": TENANT, "AUTH_CLIENT_ID": CLIENT, "AUTH_AUTHORITY": self.authority}

    def rotate(self) -> None:
        """Sign with a new key, which alone is published."""
        self.key = SigningKey(private_key(2))
        self.published = [self.key.published()]

    @contextmanager
    def hold(self) -> Iterator[Gate]:
        """Answer no request until the gate is released."""
        with Gate() as self._held:
            yield self._held
        self._held = None

    def claims(self, person: Person, **changes: Any) -> JSON:
        """Of an access token. A claim changed to None is left out."""
        now = int(time.time())
        claims = {
            "aud": CLIENT,
            "iss": f"{self.authority}/{TENANT}/v2.0",
            "iat": now,
            "nbf": now,
            "exp": now + HOUR_S,
            "azp": CLIENT,
            "name": person.display_name,
            "preferred_username": f"{person.display_name.split()[0].lower()}@example.com",
            "oid": person.object_id,
            "roles": list(person.roles) or None,
            "scp": "access_as_user",
            "sub": hashlib.sha256(person.object_id.encode()).hexdigest(),
            "tid": TENANT,
            "ver": "2.0",
        }
        return {name: value for name, value in (claims | changes).items() if value is not None}

    def token(self, person: Person = ADA, key: SigningKey | None = None, **changes: Any) -> str:
        """A token whose claims have these changes."""
        return jwt({}, self.claims(person, **changes), key or self.key)

    def bearer(self, person: Person) -> dict[str, str]:
        return {"authorization": f"Bearer {self.token(person)}"}

    async def converse(self, wire: Wire) -> None:
        while message := await wire.message():
            assert isinstance(message.head, h11.Request)
            self.reads += 1
            if self._held:
                await self._held.enter()
            status, headers, body = self.answer or self._keys(message.head.target.decode())
            head = [*headers.items(), ("content-length", str(len(body)))]
            await wire.send(h11.Response(status_code=status, headers=head), h11.Data(body), h11.EndOfMessage())
            wire.http.start_next_cycle()

    def _keys(self, target: str) -> tuple[int, Mapping[str, str], bytes]:
        is_known = target == f"/{TENANT}/discovery/v2.0/keys"
        return (200 if is_known else 404), {}, json.dumps({"keys": self.published} if is_known else {}).encode()


def jwt(header: JSON | bytes, claims: JSON | bytes, key: SigningKey) -> str:
    """A JSON Web Token. `header` changes the usual one (None: leave out) or, as bytes, replaces it."""
    if not isinstance(header, bytes):
        usual = {"typ": "JWT", "alg": "RS256", "kid": key.key_id}
        header = json.dumps({name: value for name, value in (usual | header).items() if value is not None}).encode()
    payload = claims if isinstance(claims, bytes) else json.dumps(claims).encode()
    signed = f"{base64url(header)}.{base64url(payload)}"
    signature = key.sign_as_secret(signed.encode()) if b'"HS256"' in header else key.sign(signed.encode())
    return f"{signed}.{base64url(signature)}"


def base64url(data: bytes) -> str:
    return base64.urlsafe_b64encode(data).rstrip(b"=").decode()


def _number(value: int) -> str:
    return base64url(value.to_bytes((value.bit_length() + 7) // 8))
