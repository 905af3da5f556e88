"""People's access tokens, issued by Microsoft Entra ID and checked by the app itself.

https://learn.microsoft.com/entra/identity-platform/access-tokens#validate-tokens
https://learn.microsoft.com/entra/identity-platform/claims-validation
"""

import asyncio
import logging
import re
from collections.abc import Mapping
from typing import Any

import aiohttp
import jwt
import orjson

from shared.domain.clock import Clock
from shared.domain.principal import Principal
from shared.errors import SignInUnavailable, Unauthorized
from shared.setting_values import GUID
from shared.settings import PeopleSettings

log = logging.getLogger(__name__)

SCOPE = "access_as_user"  # of the API's registration: a signed-in person lets a client call the API
USER, ADMIN = "Chat.User", "Chat.Admin"  # app roles of the API's registration
MAX_TOKEN_BYTES = 16_384  # a token with 200 groups, which is Entra's limit, has about 8 KB
LEEWAY_S = 60  # between this clock and the issuer's
KEYS_AGE_S = 86_400.0  # after which the keys are read again; they are rotated after weeks
KEYS_INTERVAL_S = 60.0  # between two attempts to read them again, whatever key ids tokens name
KEYS_RETRY_S = 5.0  # between two attempts while none could be read
KEYS_TIMEOUT_S = 5.0
MAX_KEYS_BYTES = 262_144  # Entra's have about 20 KB
MIN_KEY_BITS = 2_048  # https://www.rfc-editor.org/rfc/rfc7518#section-3.3
_ALGORITHM = (
    "RS256"  # the only one of Entra's: https://learn.microsoft.com/entra/identity-platform/signing-key-rollover
)
_TYPES: Mapping[str, type | tuple[type, ...]] = {  # of claims; PyJWT also takes the text "1" for a time
    "exp": (int, float),
    "nbf": (int, float),
    "tid": str,
    "oid": str,
    "scp": str,
    "roles": list,
}


async def read_keys(url: str) -> object:
    """The JSON at this URL. Raises aiohttp.ClientError or ValueError."""
    async with (
        aiohttp.ClientSession(trust_env=True, auto_decompress=False) as client,
        client.get(url, allow_redirects=False, headers={"accept-encoding": "identity"}) as response,
    ):
        if response.status != 200:
            raise ValueError(f"status {response.status}")
        body = bytearray()
        async for chunk in response.content.iter_any():
            body += chunk
            if len(body) > MAX_KEYS_BYTES:
                raise ValueError(f"more than {MAX_KEYS_BYTES} bytes")
    return orjson.loads(body)


class Entra:
    """Checks access tokens for this app of one tenant."""

    def __init__(self, settings: PeopleSettings, clock: Clock) -> None:
        self._settings = settings
        self._keys = _Keys(settings.keys_url, clock)

    async def principal(self, token: str) -> Principal:
        """The person that the token is about. Raises Unauthorized, which says what is wrong with the token, and
        SignInUnavailable if the issuer's keys can't be read."""
        key = await self._keys.key(_key_id(token))
        if key is None:
            raise _refused("is signed with a key that its issuer does not publish.")
        return self._person(self._claims(token, key))

    def _claims(self, token: str, key: jwt.PyJWK) -> Mapping[str, Any]:
        settings = self._settings
        try:
            return jwt.decode(
                token,
                key,
                algorithms=[_ALGORITHM],
                audience=[settings.client_id, f"api://{settings.client_id}"],
                issuer=settings.issuer,
                leeway=LEEWAY_S,
                options={"require": ["exp", "iss", "aud", "tid", "oid"]},
            )
        except jwt.InvalidSignatureError:
            raise _refused("has no valid signature.") from None
        except jwt.ExpiredSignatureError:
            raise _refused("has expired. Sign in again.") from None
        except jwt.ImmatureSignatureError:
            raise _refused("is not valid yet.") from None
        except jwt.InvalidAudienceError:
            raise _refused(f"is for another API. Request the scope {settings.scope}.") from None
        except jwt.InvalidIssuerError:
            raise _refused("was issued by another tenant or authority.") from None
        except jwt.MissingRequiredClaimError as error:
            raise _refused(f"has no {error.claim}.") from None
        except jwt.InvalidTokenError:
            raise _refused("is malformed.") from None

    def _person(self, claims: Mapping[str, Any]) -> Principal:
        tenant, person = claims["tid"], claims["oid"]
        if tenant != self._settings.tenant_id:
            raise _refused("was issued by another tenant or authority.")
        if not re.fullmatch(GUID, person):
            raise _refused("has a malformed oid.")
        roles = {role for role in claims.get("roles") or () if isinstance(role, str)}
        if SCOPE not in (claims.get("scp") or "").split() and not _is_of_app(claims, roles):
            raise _refused(
                f"has neither the scope {SCOPE} nor, as an application's own, the role {USER}. An ID token is no access"
                f" token: request the scope {self._settings.scope}."
            )
        if self._settings.roles and not roles & self._settings.roles:
            raise _refused(f"has none of the roles {', '.join(sorted(self._settings.roles))}.")
        return Principal.of_person(tenant, person, is_admin=ADMIN in roles)

    def challenge(self, error: str = "") -> str:
        """The value of WWW-Authenticate: https://www.rfc-editor.org/rfc/rfc6750#section-3"""
        settings = self._settings
        parts = {"authorization_uri": settings.authorize_url, "scope": settings.scope, "error": error}
        return "Bearer " + ", ".join(f'{name}="{value}"' for name, value in parts.items() if value)


def _key_id(token: str) -> str:
    """The key that the token names, before anything in it is proved. Raises Unauthorized if no key can prove it."""
    if len(token) > MAX_TOKEN_BYTES:
        raise _refused(f"is longer than {MAX_TOKEN_BYTES} bytes.")
    try:
        header = jwt.get_unverified_header(token)
        claims = jwt.decode(token, options={"verify_signature": False})
    except jwt.InvalidTokenError:
        raise _refused("is malformed.") from None
    if header.get("alg") != _ALGORITHM:
        raise _refused(f"is not signed with {_ALGORITHM}.")
    if claims.get("ver") == "1.0":
        raise _refused("has version 1. Set api.requestedAccessTokenVersion to 2 in the API's registration.")
    for name, kind in _TYPES.items():
        if claims.get(name) is not None and not isinstance(claims[name], kind):
            raise _refused(f"has a malformed {name}.")
    key_id = header.get("kid")
    if not isinstance(key_id, str):
        raise _refused("names no key.")
    return key_id


def _is_of_app(claims: Mapping[str, Any], roles: set[str]) -> bool:
    """True for the access token that an application requested for itself: it has roles instead of a scope. So may a
    person's ID token, which has no `azp`: https://learn.microsoft.com/entra/identity-platform/id-token-claims-reference
    """
    return bool(claims.get("azp") and roles & {USER, ADMIN})


def _refused(why: str) -> Unauthorized:
    return Unauthorized(f"The access token {why}")


class _Keys:
    """The issuer's public keys, by their ids. They are read again when they are old, or when a token names an unknown
    one; if that fails, those that were read go on."""

    def __init__(self, url: str, clock: Clock) -> None:
        self._url = url
        self._clock = clock
        self._keys: dict[str, jwt.PyJWK] = {}
        self._read_at = self._tried_at = -KEYS_AGE_S  # monotonic seconds
        self._failed = False  # at the latest attempt
        self._reading = asyncio.Lock()

    async def key(self, key_id: str) -> jwt.PyJWK | None:
        """None if the issuer publishes no such key. Raises SignInUnavailable if that is not known, because the latest
        attempt to read the keys has failed."""
        if self._may_read(key_id):
            async with self._reading:
                if self._may_read(key_id):  # no other request has read them meanwhile
                    await self._read()
        key = self._keys.get(key_id)
        if key is None and self._failed:
            raise SignInUnavailable
        return key

    def _may_read(self, key_id: str) -> bool:
        now = self._clock.monotonic()
        is_current = key_id in self._keys and now - self._read_at < KEYS_AGE_S
        return not is_current and now - self._tried_at >= (KEYS_INTERVAL_S if self._keys else KEYS_RETRY_S)

    async def _read(self) -> None:
        """A request that is cancelled meanwhile changes nothing: the next one reads."""
        try:
            async with self._clock.timeout_at(self._clock.monotonic() + KEYS_TIMEOUT_S):
                self._keys = _usable(await read_keys(self._url))
            self._read_at, self._failed = self._clock.monotonic(), False
        except (OSError, aiohttp.ClientError, ValueError) as error:  # a timeout is an OSError
            log.warning("the keys of people's tokens can't be read: %s", type(error).__name__)
            self._failed = True
        self._tried_at = self._clock.monotonic()


def _usable(document: object) -> dict[str, jwt.PyJWK]:
    """Those keys of a JSON Web Key Set that tokens may be signed with: https://www.rfc-editor.org/rfc/rfc7517#section-4.
    Raises ValueError if there is none."""
    listed = document.get("keys") if isinstance(document, dict) else None
    keys = {}
    for each in listed if isinstance(listed, list) else ():
        if isinstance(each, dict) and isinstance(each.get("kid"), str) and (key := _rsa_key(each)):
            keys[each["kid"]] = key
    if not keys:
        raise ValueError("no key for signatures")
    return keys


def _rsa_key(entry: Mapping[str, Any]) -> jwt.PyJWK | None:
    """From its numbers alone: a certificate (x5c) in it proves nothing more."""
    if entry.get("kty") != "RSA" or entry.get("use", "sig") != "sig" or entry.get("alg", _ALGORITHM) != _ALGORITHM:
        return None
    try:
        key = jwt.PyJWK({name: entry.get(name) for name in ("kty", "n", "e")}, _ALGORITHM)
    except (jwt.PyJWTError, ValueError, TypeError, AttributeError):
        return None
    return key if key.key.key_size >= MIN_KEY_BITS else None
