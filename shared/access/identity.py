"""The app's Azure identity, used for every service that it calls, and the error if a service rejects it."""

import asyncio
import logging
from collections.abc import Awaitable, Callable
from functools import partial
from typing import Any

from azure.core.credentials import AccessToken
from azure.core.exceptions import ClientAuthenticationError
from azure.identity.aio import DefaultAzureCredential

from shared.domain.clock import Clock

log = logging.getLogger(__name__)

REFRESH_BEFORE_S = 300.0  # before a token's expiry: request the next one in the background
WAIT_BEFORE_S = 30.0  # before a token's expiry: callers wait for the next one; more than TIMEOUT_S
RETRY_AFTER_S = 10.0  # after a failed token request; meanwhile callers get the current token if it is still valid
TIMEOUT_S = 20.0  # of a token request: the SDK's own timeout of 300 s is longer than a turn
MIN_RENEWAL_INTERVAL_S = 60.0  # if a service rejects a new token, it will reject the next one too


class IdentityTimeout(ClientAuthenticationError):
    """The identity endpoint did not answer in time."""


class Identity:
    """The credential of all clients of the app. Caches tokens and refreshes them before they expire.

    `client_id`: of a user-assigned identity. `in_azure`: True if the platform provides an identity endpoint; developer
    tools (az, azd, PowerShell) are then not tried.
    """

    def __init__(self, client_id: str | None, *, in_azure: bool, clock: Clock) -> None:
        self._clock = clock
        self._client_id = client_id
        self._in_azure = in_azure
        self._credential = self._new()
        self._stale: DefaultAzureCredential | None = None  # token requests that began before a renewal may still use it
        self._renewable = 0.0  # monotonic
        self._tokens: dict[tuple[object, ...], _CachedToken] = {}

    def __str__(self) -> str:
        return f"this app's identity (client id {self._client_id})" if self._client_id else "this app's identity"

    async def get_token(self, *scopes: str, **options: Any) -> AccessToken:
        """Raises azure.core.exceptions.ClientAuthenticationError."""
        key = (scopes, *options.items())
        if key not in self._tokens:
            request = partial(self._credential.get_token, *scopes, **options)
            self._tokens[key] = _CachedToken(request, self._clock)
        return await self._tokens[key].get()

    def token_provider(self, scope: str) -> Callable[[], Awaitable[str]]:
        """Returns a function that returns a valid token for this scope."""

        async def token() -> str:
            value = (await self.get_token(scope)).token
            if not value or not value.isascii() or not value.isprintable():  # it must fit into a header
                raise ValueError("the identity endpoint returned an invalid token")
            return value

        return token

    async def renew(self) -> None:
        """Drop the cached tokens, because a service has rejected one that should still be valid."""
        now = self._clock.monotonic()
        if now >= self._renewable:
            self._renewable = now + MIN_RENEWAL_INTERVAL_S
            stale, self._stale, self._credential = self._stale, self._credential, self._new()
            self._tokens.clear()
            if stale:
                await stale.close()

    async def close(self) -> None:
        for token in self._tokens.values():
            token.close()
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


class _CachedToken:
    """A token and the request for the next one. Callers wait for that request only if no token is valid."""

    def __init__(self, request: Callable[[], Awaitable[AccessToken]], clock: Clock) -> None:
        self._request = request
        self._clock = clock
        self._token: AccessToken | None = None
        self._refreshing: asyncio.Task[AccessToken] | None = None
        self._retry_at = 0.0  # monotonic

    async def get(self) -> AccessToken:
        refresh_before = 0 if self._clock.monotonic() < self._retry_at else REFRESH_BEFORE_S
        if self._token and self._seconds_left(self._token) > refresh_before:
            return self._token
        if self._refreshing is None or self._refreshing.done():
            self._refreshing = asyncio.create_task(self._refresh())
        if self._token and self._seconds_left(self._token) > WAIT_BEFORE_S:
            return self._token
        return await asyncio.shield(self._refreshing)

    def close(self) -> None:
        if self._refreshing:
            self._refreshing.cancel()

    async def _refresh(self) -> AccessToken:
        try:
            self._token = await self._next()
        except Exception as error:
            if self._token is None or self._seconds_left(self._token) <= 0:
                raise
            self._retry_at = self._clock.monotonic() + RETRY_AFTER_S
            log.warning("token refresh failed; reusing the current token: %s", type(error).__name__)
        return self._token

    async def _next(self) -> AccessToken:
        try:
            async with self._clock.timeout_at(self._clock.monotonic() + TIMEOUT_S):
                return await self._request()
        except TimeoutError as error:
            raise IdentityTimeout from error

    def _seconds_left(self, token: AccessToken) -> float:
        return token.expires_on - self._clock.now().timestamp()


class ServiceAccess:
    """The credentials for one service. `message`: what to do if it rejects them."""

    def __init__(self, message: str, identity: Identity | None = None) -> None:
        self.message = message
        self._identity = identity
        self._logged = False

    @classmethod
    def by_identity(cls, service: str, identity: Identity, role: str) -> "ServiceAccess":
        return cls(
            f"{service} rejects {identity}. It must be assigned to the app (on a laptop: az login) and have the role"
            f" {role}. A new role takes some minutes to apply: retry then. If the error persists, see '503: the"
            " identity is refused' in docs/troubleshooting.md.",
            identity,
        )

    @classmethod
    def by_setting(cls, service: str, name: str) -> "ServiceAccess":
        return cls(
            f"{service} rejects the value of {name}: it is wrong or revoked. See '503: a key is refused' in"
            " docs/troubleshooting.md."
        )

    def log_refusal(self, reason: str) -> None:
        """Logs the first refusal only. `reason` must not contain a token."""
        if not self._logged:
            self._logged = True
            log.error("%s (%s)", self.message, reason)

    async def renew(self) -> bool:
        """True if the next request may use a fresh token. A setting is never renewed."""
        if self._identity:
            await self._identity.renew()
        return self._identity is not None
