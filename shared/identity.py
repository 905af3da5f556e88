"""Who the app is: one Azure identity for every service that it calls, and what is said where one of them refuses it."""

import asyncio
import logging
import time
from collections.abc import Awaitable, Callable
from functools import partial
from typing import Any

from azure.core.credentials import AccessToken
from azure.core.exceptions import ClientAuthenticationError
from azure.identity.aio import DefaultAzureCredential

log = logging.getLogger(__name__)

_REFRESH = 300.0  # seconds before a token's end: another is asked for
_PATIENCE = 20.0  # seconds for a token: the SDK waits 300 for an answer, and every turn would wait for one that is lost
_LAST = 30.0  # seconds before a token's end: another is waited for. Longer than that takes, so nobody's fails unseen
_RENEWAL = 60.0  # seconds between two renewals: what a fresh token does not mend, another one will not


class IdentityTimeout(ClientAuthenticationError):
    """The identity's endpoint did not answer in time."""


class Identity:
    """A credential for every client of the app. Tokens are kept, and refreshed before they expire.

    `client_id`: of a user-assigned identity. `in_azure`: the platform's identity endpoint is there, so no developer's
    tools are looked for.
    """

    def __init__(self, client_id: str | None, *, in_azure: bool) -> None:
        self._client_id = client_id
        self._in_azure = in_azure
        self._credential = self._new()
        self._stale: DefaultAzureCredential | None = None  # requests that began before a renewal may still use it
        self._renewable = 0.0  # on the loop's clock
        self._kept: dict[tuple[object, ...], _Kept] = {}

    def __str__(self) -> str:
        return f"this app's identity (client id {self._client_id})" if self._client_id else "this app's identity"

    async def get_token(self, *scopes: str, **options: Any) -> AccessToken:
        """Raises azure.core.exceptions.ClientAuthenticationError."""
        key = (scopes, *options.items())
        if key not in self._kept:
            self._kept[key] = _Kept(partial(self._credential.get_token, *scopes, **options))
        return await self._kept[key].token()

    def tokens(self, scope: str) -> Callable[[], Awaitable[str]]:
        """A provider of tokens for one scope."""

        async def token() -> str:
            found = (await self.get_token(scope)).token
            if not found or not found.isascii() or not found.isprintable():  # it goes into a header; said without it
                raise ValueError("the identity's endpoint gave no proper token")
            return found

        return token

    async def renew(self) -> None:
        """Forget the tokens that were kept: a service has refused one that should still be good."""
        now = asyncio.get_running_loop().time()
        if now >= self._renewable:
            self._renewable = now + _RENEWAL
            stale, self._stale, self._credential = self._stale, self._credential, self._new()
            self._kept.clear()
            if stale:
                await stale.close()

    async def close(self) -> None:
        for kept in self._kept.values():
            kept.close()
        if self._stale:
            await self._stale.close()
        await self._credential.close()

    async def __aenter__(self) -> "Identity":
        return self

    async def __aexit__(self, *_: object) -> None:
        await self.close()

    def _new(self) -> DefaultAzureCredential:
        return DefaultAzureCredential(
            managed_identity_client_id=self._client_id,
            exclude_cli_credential=self._in_azure,
            exclude_developer_cli_credential=self._in_azure,
            exclude_powershell_credential=self._in_azure,
            exclude_visual_studio_code_credential=True,
            exclude_shared_token_cache_credential=True,
        )


class _Kept:
    """One token, and the request for the next: who asks while there is none waits for that."""

    def __init__(self, ask: Callable[[], Awaitable[AccessToken]]) -> None:
        self._ask = ask
        self._token: AccessToken | None = None
        self._asked: asyncio.Task[AccessToken] | None = None

    async def token(self) -> AccessToken:
        if self._token and _left(self._token) > _REFRESH:
            return self._token
        if self._asked is None or self._asked.done():
            self._asked = asyncio.create_task(self._refresh())
        if self._token and _left(self._token) > _LAST:
            return self._token
        return await asyncio.shield(self._asked)

    def close(self) -> None:
        if self._asked:
            self._asked.cancel()

    async def _refresh(self) -> AccessToken:
        try:
            self._token = await self._next()
        except Exception as error:
            if self._token is None or _left(self._token) <= 0:
                raise
            log.warning("the token at hand is used on, another was not to be had: %s", type(error).__name__)
        return self._token

    async def _next(self) -> AccessToken:
        try:
            async with asyncio.timeout(_PATIENCE):
                return await self._ask()
        except TimeoutError as error:
            raise IdentityTimeout from error


class Access:
    """What this app shows a service, and in `message` what is to be done where that does not do."""

    def __init__(self, message: str, identity: Identity | None = None) -> None:
        self.message = message
        self._identity = identity
        self._logged = False

    @classmethod
    def of_identity(cls, service: str, identity: Identity, role: str) -> "Access":
        return cls(
            f"{service} does not let {identity} in. It must be assigned to the app (on a laptop: az login) and have the"
            f" role {role}, which takes some minutes to apply after a deployment. Send this again then;"
            " if it stays so, see Troubleshooting in the README.",
            identity,
        )

    @classmethod
    def of_setting(cls, service: str, name: str) -> "Access":
        return cls(f"{service} refused what {name} holds: it is wrong or revoked. See Troubleshooting in the README.")

    def complain(self, reason: str) -> None:
        """Once in the log. `reason` holds no token."""
        if not self._logged:
            self._logged = True
            log.error("%s (%s)", self.message, reason)

    async def renew(self) -> bool:
        """Whether what is shown next may be fresh; a setting never is."""
        if self._identity:
            await self._identity.renew()
        return self._identity is not None


def _left(token: AccessToken) -> float:
    return token.expires_on - time.time()
