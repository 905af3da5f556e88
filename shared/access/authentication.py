"""Identifies the caller: from a route's declared authentication to the principal of a request."""

from collections.abc import Mapping
from contextlib import suppress
from enum import Enum
from typing import TYPE_CHECKING

from shared.access.keys import Keys, presented_keys
from shared.domain.principal import ANONYMOUS, Principal
from shared.errors import Forbidden, Unauthorized
from shared.settings import PeopleSettings

if TYPE_CHECKING:
    from shared.access.entra import Entra


class Auth(Enum):
    """What a route requires. Where people sign in, their access token does everywhere, except for a usage key: that
    needs an administrator's."""

    FUNCTION_KEY = "function key"  # the platform checks it before the app runs; the request may also carry a client key
    CLIENT_KEY = "client key"
    USAGE_KEY = "usage key"
    FUNCTION_KEY_OR_USAGE_KEY = "function key, and a client key or a usage key"


class Authenticator:
    """`entra`, `people`: where people sign in. Then no route takes a function key, because one that is anonymous to the
    platform can't check it: a route for function keys requires a token or a client key."""

    def __init__(
        self, client_keys: Keys, usage_keys: Keys, people: PeopleSettings | None = None, entra: "Entra | None" = None
    ) -> None:
        self._client_keys = client_keys
        self._usage_keys = usage_keys
        self._accepted = people.accepted if people else frozenset({"keys"})
        self._entra = entra

    async def principal(self, auth: Auth, headers: Mapping[str, str]) -> Principal:
        """Raises Unauthorized if a key or token is missing or invalid, Forbidden if it does not suffice, and
        SignInUnavailable."""
        try:
            return await self._identified(auth, headers)
        except Unauthorized as error:
            if self._entra and "people" in self._accepted:
                error.challenge = self._entra.challenge("invalid_token" if presented_keys(headers) else "")
            raise

    async def _identified(self, auth: Auth, headers: Mapping[str, str]) -> Principal:
        if self._entra and (token := _token(headers)):
            return await self._of_person(self._entra, auth, token)
        match auth:
            case Auth.FUNCTION_KEY:
                return self._of_client_key(headers) if self._entra or presented_keys(headers) else ANONYMOUS
            case Auth.CLIENT_KEY:
                return self._of_client_key(headers)
            case Auth.USAGE_KEY:
                return self._of_usage_key(headers)
            case Auth.FUNCTION_KEY_OR_USAGE_KEY:
                with suppress(Unauthorized):
                    return self._of_usage_key(headers)
                return await self._identified(Auth.FUNCTION_KEY, headers)

    async def _of_person(self, entra: "Entra", auth: Auth, token: str) -> Principal:
        if "people" not in self._accepted:
            raise Unauthorized("This app takes client keys only, no access tokens (AUTH_ACCEPT).")
        person = await entra.principal(token)
        if auth is Auth.USAGE_KEY and not person.is_admin:
            raise Forbidden("Usage is for administrators. Your account needs the app role Chat.Admin.")
        return person

    def _of_usage_key(self, headers: Mapping[str, str]) -> Principal:
        return Principal.of_usage_key(self._usage_keys.name(headers))

    def _of_client_key(self, headers: Mapping[str, str]) -> Principal:
        if self._entra and not ("keys" in self._accepted and presented_keys(headers)):
            raise Unauthorized(f"{_HOW_TO_SIGN_IN[self._accepted]} Function keys are not taken.")
        return Principal.of_key(self._client_keys.name(headers))


_HOW_TO_SIGN_IN = {
    frozenset({"people"}): "Sign in: send an access token as Authorization: Bearer TOKEN. Client keys are not taken.",
    frozenset({"keys"}): "Missing API key: send Authorization: Bearer KEY, or api-key: KEY.",
    frozenset({"people", "keys"}): "Sign in: send an access token as Authorization: Bearer TOKEN, or a client key.",
}


def _token(headers: Mapping[str, str]) -> str | None:
    """The access token, if a key of the request looks like one: a JSON Web Token's header begins with {". Raises
    Unauthorized if the request names another caller too."""
    keys = set(presented_keys(headers))
    token = next((key for key in keys if key.startswith("eyJ") and key.count(".") == 2), None)
    if token and len(keys) > 1:
        raise Unauthorized("The request has several access tokens or keys. Send one.")
    return token
