"""API keys: named, and known by their SHA-256 only; a hash of 256 random bits is no secret."""

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
        """The name of the key in `Authorization: Bearer` or `api-key`; if both headers are sent, the former's. Raises
        Unauthorized where there is none, or one of them is invalid."""
        if not self._hashes:
            raise Unauthorized(f"No key is configured: set {self._setting}. 'make key NAME=…' makes one.")
        keys = presented_keys(headers)
        if not keys:
            raise Unauthorized("A key is needed: send it as Authorization: Bearer KEY, or as api-key: KEY.")
        first, *_ = [self._named(key) for key in keys]
        return first

    def _named(self, key: str) -> str:
        """Compares every hash, each in constant time, so that the time taken reveals nothing."""
        key_hash, name = sha256_hex(key), None
        for each, expected in self._hashes.items():
            if hmac.compare_digest(key_hash, expected):
                name = each
        if name is None:
            raise Unauthorized(f"This key is none of {self._setting}.")
        return name


def presented_keys(headers: Mapping[str, str]) -> list[str]:
    """The keys that a request carries in the headers that OpenAI's clients use."""
    scheme, _, token = headers.get("authorization", "").partition(" ")
    bearer = token.strip() if scheme.lower() == "bearer" else ""
    return [key for key in (bearer, headers.get("api-key")) if key]
