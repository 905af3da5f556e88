"""Callers' keys: who is asking, and may they. Keys are known by their SHA-256 alone; a hash of 256 random bits is no
secret."""

import hmac
from collections.abc import Mapping

from shared.conversation import digest
from shared.errors import Unauthorized


class Keys:
    """Named keys of one setting. `hashes`: name -> SHA-256 of the key, in hex."""

    def __init__(self, setting: str, hashes: Mapping[str, str]) -> None:
        self._setting = setting
        self._hashes = hashes

    def name(self, headers: Mapping[str, str]) -> str:
        """The name of the key that a request carries, as `Authorization: Bearer` or `api-key`; of two, the former's.
        Raises Unauthorized, also where one of two is none of these."""
        if not self._hashes:
            raise Unauthorized(f"No key is configured: set {self._setting}. 'make key NAME=…' makes one.")
        shown = presented(headers)
        if not shown:
            raise Unauthorized("A key is needed: send it as Authorization: Bearer KEY, or as api-key: KEY.")
        first, *_ = [self._named(key) for key in shown]
        return first

    def caller(self, headers: Mapping[str, str]) -> str:
        """Whose request it is, as sessions and ledger name him. Raises Unauthorized."""
        return f"key:{self.name(headers)}"

    def caller_if_named(self, headers: Mapping[str, str]) -> str | None:
        """The same where no key is asked for; None without one. Raises Unauthorized where it is none of these."""
        return self.caller(headers) if presented(headers) else None

    def _named(self, key: str) -> str:
        """Every hash is compared, in constant time, so that how long it takes says nothing."""
        hashed, found = digest(key), None
        for name, known in self._hashes.items():
            if hmac.compare_digest(hashed, known):
                found = name
        if found is None:
            raise Unauthorized(f"This key is none of {self._setting}.")
        return found


def presented(headers: Mapping[str, str]) -> list[str]:
    """The keys that a request carries in the headers that OpenAI's clients use."""
    scheme, _, token = headers.get("authorization", "").partition(" ")
    bearer = token.strip() if scheme.lower() == "bearer" else ""
    return [key for key in (bearer, headers.get("api-key")) if key]
