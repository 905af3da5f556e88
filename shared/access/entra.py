"""People's access tokens, issued by Microsoft Entra ID and checked by the app itself.

https://learn.microsoft.com/entra/identity-platform/access-tokens#validate-tokens
https://learn.microsoft.com/entra/identity-platform/claims-validation
"""

import asyncio
import logging
from collections.abc import Awaitable, Callable, Mapping
from typing import Any

import aiohttp
import jwt

from shared.domain.clock import Clock
from shared.domain.principal import Principal
from shared.errors import SignInUnavailable, Unauthorized
from shared.settings import PeopleSettings

log = logging.getLogger(__name__)

SCOPE = "access_as_user"  # of the API's registration: a signed-in person lets a client call the API
USER, ADMIN = "Chat.User", "Chat.Admin"  # app roles of the API's registration
MAX_TOKEN_BYTES = 16_384  # a token with 200 groups, which is Entra's limit, has about 8 KB
LEEWAY_S = 60  # between this clock and the issuer's
KEYS_AGE_S = 86_400.0  # after which the keys are read again; they are rotated after weeks
KEYS_INTERVAL_S = 60.0  # between two attempts to read them, whatever key ids tokens name
KEYS_TIMEOUT_S = 5.0
_ALGORITHM = (
    "RS256"  # the only one of Entra's: https://learn.microsoft.com/entra/identity-platform/signing-key-rollover
)

ReadKeys = Callable[[str], Awaitable[Mapping[str, Any]]]


async def read_keys(url: str) -> Mapping[str, Any]:
    """The JSON Web Key Set at this URL. Raises OSError, aiohttp.ClientError, TimeoutError or ValueError."""
    timeout = aiohttp.ClientTimeout(total=KEYS_TIMEOUT_S)
    async with (
        aiohttp.ClientSession(timeout=timeout, trust_env=True) as client,
        client.get(url, allow_redirects=False) as response,
    ):
        response.raise_for_status()
        keys = await response.json(content_type=None)
    if not isinstance(keys, dict):
        raise ValueError("not a key set")
    return keys


class Entra:
    """Checks access tokens for this app of one tenant."""

    def __init__(self, settings: PeopleSettings, clock: Clock, read: ReadKeys = read_keys) -> None:
        self._settings = settings
        self._keys = _Keys(settings.keys_url, clock, read)

    async def principal(self, token: str) -> Principal:
        """The person that the token is about. Raises Unauthorized, which says what is wrong with the token, and
        SignInUnavailable if the issuer's keys can't be read."""
        settings = self._settings
        key = await self._keys.key(self._key_id(token))
        if key is None:
            raise self._refused("is signed with a key that its issuer does not publish.")
        try:
            claims = jwt.decode(
                token,
                key,
                algorithms=[_ALGORITHM],
                audience=[settings.client_id, f"api://{settings.client_id}"],
                issuer=settings.issuer,
                leeway=LEEWAY_S,
                options={"require": ["exp", "iss", "aud", "tid", "oid"]},
            )
        except jwt.ExpiredSignatureError:
            raise self._refused("has expired. Sign in again.") from None
        except jwt.ImmatureSignatureError:
            raise self._refused("is not valid yet.") from None
        except jwt.InvalidAudienceError:
            raise self._refused(f"is for another API. Request the scope {settings.scope}.") from None
        except jwt.InvalidIssuerError:
            raise self._refused("was issued by another tenant or authority.") from None
        except jwt.MissingRequiredClaimError as error:
            raise self._refused(f"has no {error.claim}.") from None
        except jwt.InvalidTokenError:
            raise self._refused("has no valid signature.") from None
        return self._person(claims)

    def _person(self, claims: Mapping[str, Any]) -> Principal:
        tenant, person = claims["tid"], claims["oid"]
        if tenant != self._settings.tenant_id or not isinstance(person, str) or not person:
            raise self._refused("was issued by another tenant or authority.")
        scopes, roles = _words(claims.get("scp")), _listed(claims.get("roles"))
        if SCOPE not in scopes and not roles & {USER, ADMIN}:
            raise self._refused(
                f"has neither the scope {SCOPE} nor the role {USER}. An ID token is no access token: request the scope"
                f" {self._settings.scope}."
            )
        if self._settings.roles and not roles & self._settings.roles:
            raise self._refused(f"has none of the roles {', '.join(sorted(self._settings.roles))}.")
        return Principal.of_person(tenant, person, is_admin=ADMIN in roles)

    def _key_id(self, token: str) -> str:
        if len(token) > MAX_TOKEN_BYTES:
            raise self._refused(f"is longer than {MAX_TOKEN_BYTES} bytes.")
        try:
            header = jwt.get_unverified_header(token)
            claims = jwt.decode(token, options={"verify_signature": False})
        except jwt.InvalidTokenError:
            raise self._refused("is malformed.") from None
        if header.get("alg") != _ALGORITHM:
            raise self._refused(f"is not signed with {_ALGORITHM}.")
        if claims.get("ver") == "1.0":
            raise self._refused("has version 1. Set api.requestedAccessTokenVersion to 2 in the API's registration.")
        key_id = header.get("kid")
        if not isinstance(key_id, str):
            raise self._refused("names no key.")
        return key_id

    def _refused(self, why: str) -> Unauthorized:
        return Unauthorized(f"The access token {why}", challenge=self.challenge("invalid_token"))

    def challenge(self, error: str = "") -> str:
        """The value of WWW-Authenticate: https://www.rfc-editor.org/rfc/rfc6750#section-3"""
        settings = self._settings
        parts = {"authorization_uri": settings.authorize_url, "scope": settings.scope, "error": error}
        return "Bearer " + ", ".join(f'{name}="{value}"' for name, value in parts.items() if value)


class _Keys:
    """The issuer's public keys, by their ids. They are read again when they are old, or when a token names an unknown
    one; if that fails, those that were read go on."""

    def __init__(self, url: str, clock: Clock, read: ReadKeys) -> None:
        self._url = url
        self._clock = clock
        self._read = read
        self._keys: dict[str, jwt.PyJWK] = {}
        self._read_at = self._tried_at = -KEYS_AGE_S  # monotonic seconds
        self._reading = asyncio.Lock()

    async def key(self, key_id: str) -> jwt.PyJWK | None:
        """Raises SignInUnavailable if no keys could be read yet."""
        if key_id not in self._keys or self._clock.monotonic() - self._read_at >= KEYS_AGE_S:
            async with self._reading:  # one request, whoever waits
                await self._refresh(key_id)
        if not self._keys:
            raise SignInUnavailable
        return self._keys.get(key_id)

    async def _refresh(self, key_id: str) -> None:
        now = self._clock.monotonic()
        is_current = key_id in self._keys and now - self._read_at < KEYS_AGE_S
        if is_current or (self._keys and now - self._tried_at < KEYS_INTERVAL_S):
            return
        self._tried_at = now
        try:
            keys = jwt.PyJWKSet.from_dict(dict(await self._read(self._url)))
        except (OSError, aiohttp.ClientError, TimeoutError, ValueError, jwt.PyJWTError) as error:
            log.warning("the keys of people's tokens can't be read: %s", type(error).__name__)
            return
        self._keys = {key.key_id: key for key in keys.keys if key.key_id and key.key_type == "RSA"}
        self._read_at = now


def _words(value: object) -> set[str]:
    return set(value.split()) if isinstance(value, str) else set()


def _listed(value: object) -> set[str]:
    return {each for each in value if isinstance(each, str)} if isinstance(value, list) else set()
