"""People, their sign-ins and the tokens for them: what the local issuer (issuer.py) knows, without HTTP.

Tokens are shaped like those of Microsoft Entra ID, version 2, and its rules for clients hold:
https://learn.microsoft.com/entra/identity-platform/access-token-claims-reference
https://learn.microsoft.com/entra/identity-platform/refresh-tokens
"""

import base64
import hashlib
import secrets
import time
from collections.abc import Mapping
from dataclasses import dataclass, field
from typing import Any

import jwt
from cryptography.hazmat.primitives.asymmetric.rsa import generate_private_key

from local.people import CLIENT_ID, TENANT_ID, Person

SCOPE = "access_as_user"
TOKEN_S = 3_600
SPA_REFRESH_S = 86_400  # from the sign-in on, however often it is used: learn.microsoft.com/entra/…/refresh-tokens
REFRESH_S = 90 * 86_400


class Refused(Exception):
    """An error of the token endpoint: https://www.rfc-editor.org/rfc/rfc6749#section-5.2"""

    def __init__(self, error: str, description: str) -> None:
        super().__init__(description)
        self.error, self.description = error, description


@dataclass(frozen=True)
class Grant:
    """What a code or refresh token stands for. `until`: seconds since 1970."""

    person: Person
    scope: str
    until: float
    is_spa: bool  # a page's: its tokens are issued to requests with an Origin only
    challenge: str = ""
    redirect_uri: str = ""
    nonce: str = ""


@dataclass
class Device:
    """A device code; `person` is absent until one has signed in for it."""

    user_code: str
    scope: str
    until: float
    person: Person | None = None
    is_declined: bool = False


@dataclass
class Issuer:
    authority: str
    token_s: int = TOKEN_S
    key: Any = field(default_factory=lambda: generate_private_key(public_exponent=65537, key_size=2048))
    key_id: str = field(default_factory=lambda: secrets.token_urlsafe(20))
    codes: dict[str, Grant] = field(default_factory=dict)
    refresh_tokens: dict[str, Grant] = field(default_factory=dict)
    devices: dict[str, Device] = field(default_factory=dict)

    @property
    def base(self) -> str:
        return f"{self.authority}/{TENANT_ID}"

    def discovery(self) -> dict[str, Any]:
        return {
            "issuer": f"{self.base}/v2.0",
            "authorization_endpoint": f"{self.base}/oauth2/v2.0/authorize",
            "token_endpoint": f"{self.base}/oauth2/v2.0/token",
            "device_authorization_endpoint": f"{self.base}/oauth2/v2.0/devicecode",
            "end_session_endpoint": f"{self.base}/oauth2/v2.0/logout",
            "jwks_uri": f"{self.base}/discovery/v2.0/keys",
            "response_types_supported": ["code"],
            "code_challenge_methods_supported": ["S256"],
            "subject_types_supported": ["pairwise"],
            "id_token_signing_alg_values_supported": ["RS256"],
        }

    def keys(self) -> dict[str, Any]:
        public = jwt.algorithms.RSAAlgorithm.to_jwk(self.key.public_key(), as_dict=True)
        return {"keys": [public | {"kid": self.key_id, "use": "sig"}]}

    def tokens(self, grant: Grant) -> dict[str, Any]:
        now = int(time.time())
        person, scopes = grant.person, grant.scope.split()
        common = {
            "aud": CLIENT_ID,
            "iss": f"{self.base}/v2.0",
            "iat": now,
            "nbf": now,
            "exp": now + self.token_s,
            "tid": TENANT_ID,
            "oid": person.object_id,
            "sub": hashlib.sha256(f"{CLIENT_ID}{person.object_id}".encode()).hexdigest()[:43],
            "name": person.name,
            "preferred_username": person.user,
            "roles": list(person.roles),
            "uti": secrets.token_urlsafe(16),
            "ver": "2.0",
        }
        answer = {
            "token_type": "Bearer",
            "scope": f"api://{CLIENT_ID}/{SCOPE}",
            "expires_in": self.token_s,
            "access_token": self._signed(common | {"azp": CLIENT_ID, "azpacr": "0", "scp": SCOPE}),
        }
        if "offline_access" in scopes:
            token = secrets.token_urlsafe(40)
            until = grant.until if grant.is_spa else now + REFRESH_S
            self.refresh_tokens[token] = Grant(person, grant.scope, until, grant.is_spa)
            answer["refresh_token"] = token
        if "openid" in scopes:
            answer["id_token"] = self._signed(common | ({"nonce": grant.nonce} if grant.nonce else {}))
        return answer

    def _signed(self, claims: Mapping[str, Any]) -> str:
        return jwt.encode(dict(claims), self.key, algorithm="RS256", headers={"kid": self.key_id})

    def redeemed(self, form: Mapping[str, str], *, has_origin: bool) -> Grant:
        """The grant behind the token endpoint's form. Raises Refused."""
        if form.get("client_id") != CLIENT_ID:
            raise Refused("unauthorized_client", f"There is no client {form.get('client_id', '')!r} here.")
        match form.get("grant_type"):
            case "authorization_code":
                grant = self._of_code(form)
            case "refresh_token":
                grant = self._of_refresh_token(form)
            case "urn:ietf:params:oauth:grant-type:device_code":
                grant = self._of_device_code(form)
            case other:
                raise Refused("unsupported_grant_type", f"The grant type {other!r} is not supported.")
        if grant.is_spa and not has_origin:
            raise Refused(
                "invalid_request",
                "AADSTS9002327: Tokens issued for the 'Single-Page Application' client-type may only be redeemed via"
                " cross-origin requests.",
            )
        return grant

    def _of_code(self, form: Mapping[str, str]) -> Grant:
        grant = self.codes.pop(form.get("code", ""), None)
        if grant is None or time.time() > grant.until:
            raise Refused("invalid_grant", "The code is unknown, used or expired.")
        if form.get("redirect_uri") != grant.redirect_uri:
            raise Refused("invalid_grant", "The redirect address is not the one that the code was sent to.")
        digest = hashlib.sha256(form.get("code_verifier", "").encode()).digest()
        if not secrets.compare_digest(_base64url(digest), grant.challenge):
            raise Refused("invalid_grant", "The code verifier does not match the code challenge.")
        return Grant(grant.person, grant.scope, time.time() + SPA_REFRESH_S, is_spa=True, nonce=grant.nonce)

    def _of_refresh_token(self, form: Mapping[str, str]) -> Grant:
        grant = self.refresh_tokens.get(form.get("refresh_token", ""))
        if grant is None or time.time() > grant.until:
            raise Refused("invalid_grant", "The refresh token is unknown or expired. Sign in again.")
        if _own_scope(form) not in form.get("scope", grant.scope).split():
            raise Refused(
                "invalid_resource",
                f"AADSTS90009: Application '{CLIENT_ID}' is requesting a token for itself. This scenario is supported"
                " only if resource is specified using the GUID based App Identifier.",
            )
        return grant

    def _of_device_code(self, form: Mapping[str, str]) -> Grant:
        device = self.devices.get(form.get("device_code", ""))
        if device is None or time.time() > device.until:
            raise Refused("expired_token", "The device code is unknown or expired.")
        if device.is_declined:
            raise Refused("authorization_declined", "The sign-in was declined.")
        if device.person is None:
            raise Refused("authorization_pending", "The sign-in is not finished yet.")
        del self.devices[form["device_code"]]
        return Grant(device.person, device.scope, time.time() + REFRESH_S, is_spa=False)


def _own_scope(form: Mapping[str, str]) -> str:
    return f"{form['client_id']}/{SCOPE}"


def _base64url(data: bytes) -> str:
    return base64.urlsafe_b64encode(data).rstrip(b"=").decode()
