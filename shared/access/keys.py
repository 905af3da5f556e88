"""API keys, each with a name. Only their SHA-256 is configured; the hash of 256 random bits is not secret."""

import hmac
from collections.abc import Mapping

from shared.domain.hashing import sha256_hex
from shared.errors import Unauthorized


class Keys:
    """The keys of one setting. `hashes`: name -> SHA-256 of the key, in hex."""

    def __init__(self, setting: str, hashes: Mapping[str, str]) -> None:
        self._setting = setting
        self._hashes = hashes

    def name(self, headers: Mapping[str, str]) -> str:
        """The name of the key in `Authorization: Bearer` or `api-key`; if both are sent, `Authorization` wins
        and both must be valid. Raises Unauthorized if there is no key or an invalid one."""
        if not self._hashes:
            raise Unauthorized(f"No API key is configured: set {self._setting}. 'make key NAME=…' generates one.")
        keys = presented_keys(headers)
        if not keys:
            raise Unauthorized("Missing API key: send Authorization: Bearer KEY, or api-key: KEY.")
        first, *_ = [self._named(key) for key in keys]
        return first

    def _named(self, key: str) -> str:
        """Compares with every hash in constant time, so that the time taken reveals nothing."""
        key_hash, name = sha256_hex(key), None
        for candidate, expected in self._hashes.items():
            if hmac.compare_digest(key_hash, expected):
                name = candidate
        if name is None:
            raise Unauthorized(f"Invalid API key: not listed in {self._setting}.")
        return name


def presented_keys(headers: Mapping[str, str]) -> list[str]:
    """The keys in the headers that OpenAI's and Azure OpenAI's clients send. A header that is sent twice counts
    twice: a gateway in front may have checked the other one."""
    bearers = [_bearer(value) for name, value in headers.items() if name == "authorization"]
    return [key for key in (*bearers, *(value for name, value in headers.items() if name == "api-key")) if key]


def _bearer(authorization: str) -> str:
    scheme, _, token = authorization.partition(" ")
    return token.strip() if scheme.lower() == "bearer" else ""
