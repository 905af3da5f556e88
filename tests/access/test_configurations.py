"""Every combination of the AUTH_ settings, called without credentials: none opens the app by mistake."""

import itertools
from collections.abc import AsyncIterator
from contextlib import asynccontextmanager

import httpx
import pytest
from starlette.applications import Starlette

from shared import services as composition
from tests.conftest import FUNCTION_KEY
from tests.support.entra import CLIENT, TENANT
from tests.support.indexed import indexed

VALUES: dict[str, tuple[str | None, ...]] = {  # absent, empty, malformed, right
    "AUTH_TENANT_ID": (None, "", "contoso.onmicrosoft.com", TENANT),
    "AUTH_CLIENT_ID": (None, " ", f"api://{CLIENT}", CLIENT),
    "AUTH_AUTHORITY": (None, "", "http://login.example.com", "https://login.microsoftonline.us/"),
    "AUTH_ROLES": (None, "", "Chat User", "Chat.User"),
    "AUTH_ACCEPT": (None, "", "everyone", "people", "keys", "keys, people"),
}
MALFORMED = {name: values[2] for name, values in VALUES.items()}
ROUTES = ("/api/about", "/api/limits", "/openai/v1/models", "/api/usage/limits")  # of each Auth
FUNCTION = {"x-functions-key": FUNCTION_KEY}


def combinations() -> list[dict[str, str]]:
    return [
        {name: value for name, value in zip(VALUES, values, strict=True) if value is not None}
        for values in itertools.product(*VALUES.values())
    ]


def wrong_setting(auth: dict[str, str]) -> str | None:
    """The first that is missing or malformed; None if people sign in, or if no setting is set."""
    is_set = {name for name, value in auth.items() if value.strip()}
    for name in VALUES if is_set else ():
        required = name in ("AUTH_TENANT_ID", "AUTH_CLIENT_ID")
        if (required and name not in is_set) or auth.get(name) == MALFORMED[name]:
            return name
    return None


@pytest.fixture
def hosts(environ: dict[str, str], monkeypatch: pytest.MonkeyPatch) -> dict[bool, Starlette]:
    """The app as it is indexed where people do not sign in, and where they do: nothing else of the settings matters."""
    for name, value in environ.items():
        monkeypatch.setenv(name, value)
    closed = indexed()
    monkeypatch.setenv("AUTH_TENANT_ID", TENANT)
    monkeypatch.setenv("AUTH_CLIENT_ID", CLIENT)
    signed_in = indexed()
    for name in VALUES:
        monkeypatch.delenv(name, raising=False)
    return {False: closed, True: signed_in}


@asynccontextmanager
async def app_with(
    hosts: dict[bool, Starlette], auth: dict[str, str], monkeypatch: pytest.MonkeyPatch
) -> AsyncIterator[httpx.AsyncClient]:
    for name in VALUES:
        monkeypatch.setenv(name, auth[name]) if name in auth else monkeypatch.delenv(name, raising=False)
    transport = httpx.ASGITransport(hosts[composition.people_sign_in()])
    async with httpx.AsyncClient(transport=transport, base_url="http://app") as client:
        yield client
    await composition.close()


async def test_no_combination_of_settings_opens_a_route(
    hosts: dict[bool, Starlette], monkeypatch: pytest.MonkeyPatch
) -> None:
    assert len(combinations()) == 1_536
    for auth in combinations():
        wrong, is_set = wrong_setting(auth), any(map(str.strip, auth.values()))
        async with app_with(hosts, auth, monkeypatch) as client:
            for path in ROUTES[:3] if wrong else ROUTES:
                response = await client.get(path)
                by_platform = path in ROUTES[:2] and (wrong or not is_set)
                assert response.status_code == (500 if wrong and not by_platform else 401), (auth, path)
                assert bool(response.content) is not by_platform, (auth, path)
            about = await client.get("/api/about", headers=FUNCTION)
        if not is_set:
            assert about.status_code == 200, auth
        elif wrong:
            assert (about.status_code, f": {wrong} is missing or invalid" in about.text) == (500, True), (auth, wrong)
        else:
            assert (about.status_code, "Function keys are not taken" in about.text) == (401, True), auth
            is_challenge = about.headers.get("www-authenticate", "").startswith('Bearer authorization_uri="https://')
            assert is_challenge == (auth.get("AUTH_ACCEPT") != "keys"), auth
