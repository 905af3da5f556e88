"""Who the app is: one Azure identity for every service that it calls, and what is said where one of them refuses it."""

import asyncio
import logging
import time
from collections.abc import Awaitable, Callable
from typing import Any

from azure.core.credentials import AccessToken
from azure.identity.aio import DefaultAzureCredential

log = logging.getLogger(__name__)

_REFRESH = 300.0  # seconds before a token's end
_RENEWAL = 60.0  # seconds between two renewals: what a fresh token does not mend, another one will not


class Identity:
    """A credential for every client of the app. Tokens are kept, and refreshed before they expire; who asks while one
    is on its way waits for that.

    `client_id`: of a user-assigned identity. `in_azure`: the platform's identity endpoint is there, so no developer's
    tools are looked for.
    """

    def __init__(self, client_id: str | None, *, in_azure: bool) -> None:
        self._client_id = client_id
        self._in_azure = in_azure
        self._credential = self._new()
        self._stale: DefaultAzureCredential | None = None  # requests that began before a renewal may still use it
        self._renewable = 0.0  # on the loop's clock
        self._asked: dict[tuple[object, ...], asyncio.Task[AccessToken]] = {}

    def __str__(self) -> str:
        return f"this app's identity (client id {self._client_id})" if self._client_id else "this app's identity"

    async def get_token(self, *scopes: str, **options: Any) -> AccessToken:
        """Raises azure.core.exceptions.ClientAuthenticationError."""
        key = (scopes, *options.items())
        asked = self._asked.get(key)
        if asked is None or _spent(asked):
            asked = self._asked[key] = asyncio.create_task(self._credential.get_token(*scopes, **options))
        return await asyncio.shield(asked)

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
            self._asked.clear()
            if stale:
                await stale.close()

    async def close(self) -> None:
        for asked in self._asked.values():
            asked.cancel()
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


def _spent(asked: asyncio.Task[AccessToken]) -> bool:
    """Whether a token must be asked for: the one at hand was not to be had, or expires soon."""
    if not asked.done():
        return False
    return asked.cancelled() or asked.exception() is not None or asked.result().expires_on - time.time() < _REFRESH
