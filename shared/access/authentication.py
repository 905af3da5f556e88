"""Identifies the caller: from a route's declared authentication to the principal of a request."""

from collections.abc import Mapping
from contextlib import suppress
from enum import Enum

from shared.access.keys import Keys, presented_keys
from shared.domain.principal import ANONYMOUS, Principal
from shared.errors import Unauthorized


class Auth(Enum):
    """The key that a route requires."""

    FUNCTION_KEY = "function key"  # the platform checks it before the app runs; the request may also carry a client key
    CLIENT_KEY = "client key"
    USAGE_KEY = "usage key"
    FUNCTION_KEY_OR_USAGE_KEY = "function key, and a client key or a usage key"


class Authenticator:
    def __init__(self, client_keys: Keys, usage_keys: Keys) -> None:
        self._client_keys = client_keys
        self._usage_keys = usage_keys

    def principal(self, auth: Auth, headers: Mapping[str, str]) -> Principal:
        """Raises Unauthorized if a key is missing or invalid."""
        match auth:
            case Auth.FUNCTION_KEY:
                return self._of_client_key(headers) if presented_keys(headers) else ANONYMOUS
            case Auth.CLIENT_KEY:
                return self._of_client_key(headers)
            case Auth.USAGE_KEY:
                return self._of_usage_key(headers)
            case Auth.FUNCTION_KEY_OR_USAGE_KEY:
                with suppress(Unauthorized):
                    return self._of_usage_key(headers)
                return self.principal(Auth.FUNCTION_KEY, headers)

    def _of_usage_key(self, headers: Mapping[str, str]) -> Principal:
        return Principal.of_usage_key(self._usage_keys.name(headers))

    def _of_client_key(self, headers: Mapping[str, str]) -> Principal:
        return Principal.of_key(self._client_keys.name(headers))
