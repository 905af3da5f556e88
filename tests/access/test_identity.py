"""Managed identity, without any key, for the model service and for the tables, as on App Service."""

import asyncio
import os
import signal
import ssl
import subprocess
import sys
import time
from collections.abc import AsyncIterator, Iterator
from pathlib import Path

import httpx
import pytest
import trustme

from local import azurite
from local.parts import free_port
from local.places import ROOT
from shared.access.identity import REFRESH_BEFORE_S, RETRY_AFTER_S, TIMEOUT_S, WAIT_BEFORE_S
from shared.domain.calls import State
from tests.conftest import Serve, Tables
from tests.support.app_service import HOUR, AppService
from tests.support.azure_openai import AzureOpenAI
from tests.support.chat_client import answer, closed_ledger, ok_json, send_message, until
from tests.support.clock import FEBRUARY_29, ManualClock
from tests.support.conservation import assert_conserved
from tests.support.loopback import MAX_WAIT_S

MODEL = "https://cognitiveservices.azure.com"
STORAGE = "https://storage.azure.com"
CLIENT_ID = "11111111-2222-3333-4444-555555555555"


@pytest.fixture
def platform() -> Iterator[AppService]:
    with AppService() as server:
        yield server


@pytest.fixture
def fake(fake: AzureOpenAI, platform: AppService) -> AzureOpenAI:
    fake.authorize = lambda headers: platform.accepts(headers, MODEL)
    return fake


@pytest.fixture
def environ(environ: dict[str, str], platform: AppService) -> dict[str, str]:
    """As the template sets it, except for the tables, which use a connection string."""
    del environ["AZURE_OPENAI_API_KEY"]
    return environ | platform.environ | {"AZURE_CLIENT_ID": CLIENT_ID}


def assert_access_error(response: httpx.Response, code: str, role: str) -> None:
    """The error names the identity, the role that it needs and the document that explains it."""
    error = response.json()["error"]
    assert (response.status_code, error["code"], response.headers["retry-after"]) == (503, code, "30")
    for text in (CLIENT_ID, role, "'503: the identity is refused' in docs/troubleshooting.md"):
        assert text in error["message"]


# Model service


async def test_token_is_requested_once_and_reused_for_every_call(
    api: httpx.AsyncClient, fake: AzureOpenAI, platform: AppService, tables: Tables
) -> None:
    for _ in range(3):
        await answer(api)

    assert [(issued.audience, issued.client_id) for issued in platform.issued] == [(MODEL, CLIENT_ID)]
    assert [request.headers["authorization"] for request in fake.requests] == [f"Bearer {platform.issued[0].token}"] * 3
    assert all("api-key" not in request.headers for request in fake.requests)
    await assert_conserved(tables, fake)


async def test_expired_token_is_refreshed_before_the_next_call(
    api: httpx.AsyncClient, fake: AzureOpenAI, platform: AppService
) -> None:
    platform.lifetime = 4
    await answer(api)
    platform.lifetime = HOUR
    await asyncio.sleep(4.1)

    assert (await answer(api))["turn"] == 2

    assert len(platform.issued) == len(fake.requests) == 2


async def test_rejected_token_is_renewed_and_the_same_call_is_retried_once(
    api: httpx.AsyncClient, fake: AzureOpenAI, platform: AppService, tables: Tables
) -> None:
    await answer(api)
    platform.revoke()

    await answer(api)

    assert len(platform.issued) == 2
    entries = await assert_conserved(tables, fake)
    assert len(entries) == 2
    first, *second = [request.call_id for request in fake.requests]
    assert len(second) == 2  # rejected, then repeated with a new token
    assert len({first, *second}) == 2


async def test_concurrent_calls_renew_a_rejected_token_once(api: httpx.AsyncClient, platform: AppService) -> None:
    await answer(api)
    platform.revoke()

    await asyncio.gather(*(answer(api, "hi", f"s{number}") for number in range(10)))

    assert len(platform.issued) == 2


@pytest.fixture
def no_sdk_retry_delay(monkeypatch: pytest.MonkeyPatch) -> None:
    """The SDK retries requests to the identity endpoint without a delay."""
    monkeypatch.setattr("azure.identity._internal.utils.DEFAULT_TOKEN_REFRESH_RETRY_DELAY", 0)


@pytest.mark.usefixtures("no_sdk_retry_delay")
async def test_token_request_timeout_returns_503_and_the_next_turn_retries(
    clock: ManualClock, api: httpx.AsyncClient, platform: AppService
) -> None:
    platform.silent = True
    waiting = asyncio.create_task(send_message(api))
    await clock.until_timeout_started(TIMEOUT_S)
    await clock.advance(TIMEOUT_S)
    assert_access_error(await waiting, "upstream_unavailable", "Cognitive Services OpenAI User")
    platform.silent = False

    await answer(api)


@pytest.mark.usefixtures("no_sdk_retry_delay")
@pytest.mark.parametrize("lifetime", [REFRESH_BEFORE_S - 100, WAIT_BEFORE_S - 2])
async def test_current_token_is_used_until_expiry_if_refresh_fails(
    clock: ManualClock,
    api: httpx.AsyncClient,
    platform: AppService,
    lifetime: float,
    caplog: pytest.LogCaptureFixture,
) -> None:
    platform.lifetime = lifetime
    await answer(api)
    issued_before = len(platform.issued)
    platform.silent = True

    answering = asyncio.create_task(answer(api))
    await clock.until_timeout_started(TIMEOUT_S)
    await clock.advance(TIMEOUT_S)
    await answering  # with the current token, once the token request has timed out

    async def refresh_failed() -> bool | None:
        return "token refresh failed" in caplog.text or None

    await until(refresh_failed)
    assert len(platform.issued) == issued_before
    platform.silent = False
    await clock.advance(RETRY_AFTER_S)

    async def token_replaced() -> bool | None:
        await answer(api)
        return len(platform.issued) > issued_before or None

    await until(token_replaced)


@pytest.mark.usefixtures("no_sdk_retry_delay")
async def test_valid_token_is_used_without_waiting_for_its_refresh(
    clock: ManualClock, api: httpx.AsyncClient, platform: AppService
) -> None:
    platform.lifetime = REFRESH_BEFORE_S - 100
    await answer(api)
    platform.silent = True

    await answer(api)

    assert clock.has_timeout(TIMEOUT_S)  # the next token is still being requested


async def test_wrong_token_audience_returns_503_and_is_logged_once(
    serve: Serve,
    environ: dict[str, str],
    fake: AzureOpenAI,
    platform: AppService,
    tables: Tables,
    caplog: pytest.LogCaptureFixture,
) -> None:
    async with serve(environ | {"AZURE_OPENAI_SCOPE": "https://wrong.example/.default"}) as api:
        for _ in range(3):
            assert_access_error(await send_message(api), "upstream_unavailable", "Cognitive Services OpenAI User")

    assert [entry.call.state for entry in await closed_ledger(tables)] == [State.FAILED] * 3
    assert [record.name for record in caplog.records if record.levelname == "ERROR"] == ["shared.access.identity"]
    assert not any(issued.token in caplog.text for issued in platform.issued)
    assert len(platform.issued) == 2  # no third token is requested within a minute
    assert len(fake.requests) == 4  # a rejected token is not sent a second time


async def test_missing_role_returns_503_until_the_role_applies(api: httpx.AsyncClient, fake: AzureOpenAI) -> None:
    fake.fault(403)
    assert_access_error(await send_message(api), "upstream_unavailable", "Cognitive Services OpenAI User")

    await answer(api)


async def test_developer_tools_are_not_run_in_azure_if_the_identity_fails(
    serve: Serve,
    environ: dict[str, str],
    fake: AzureOpenAI,
    platform: AppService,
    tmp_path: Path,
) -> None:
    calls = tmp_path / "calls"
    for tool in ("az", "azd", "pwsh"):
        (tmp_path / tool).write_text(f"#!/bin/sh\necho {tool} >> {calls}\n")
        (tmp_path / tool).chmod(0o755)
    platform.failing = True
    async with serve(environ | {"PATH": f"{tmp_path}:{os.environ['PATH']}"}) as api:
        assert_access_error(await send_message(api), "upstream_unavailable", "Cognitive Services OpenAI User")
        platform.failing = False
        await answer(api)

    assert not calls.exists()
    assert len(fake.requests) == 1


# Model service and tables, over HTTPS


@pytest.fixture
def certificate(tmp_path: Path) -> tuple[list[str], Path]:
    """Azurite's arguments, and the certificate of the authority that the app must trust."""
    authority = trustme.CA()
    issued = authority.issue_cert("127.0.0.1")
    files = [tmp_path / name for name in ("certificate.pem", "key.pem", "authority.pem")]
    issued.cert_chain_pems[0].write_to_path(files[0])
    issued.private_key_pem.write_to_path(files[1])
    authority.cert_pem.write_to_path(files[2])
    return ["--cert", str(files[0]), "--key", str(files[1]), "--oauth", "basic"], files[2]


@pytest.fixture
def servers(environ: dict[str, str], certificate: tuple[list[str], Path], tmp_path: Path) -> Iterator[tuple[str, str]]:
    """Starts the host in a separate process, without keys, and an Azurite that requires tokens. Returns both URLs."""
    arguments, authority = certificate
    storage, port = free_port(), free_port()
    del environ["TABLES_CONNECTION_STRING"]
    settings = environ | {
        "TABLES_ENDPOINT": f"https://127.0.0.1:{storage}/{azurite.ACCOUNT}",
        "SSL_CERT_FILE": str(authority),
        "SUMMARY_SCHEDULE": FEBRUARY_29,
        "PATH": os.environ["PATH"],
        "HOME": str(tmp_path),
    }
    host = [sys.executable, "-m", "local.host", "--port", str(port)]
    with (tmp_path / "log").open("wb") as log:
        processes = [
            subprocess.Popen([*azurite.command(storage), *arguments], stdout=log, stderr=log),
            subprocess.Popen(host, cwd=ROOT, env=settings, stdout=log, stderr=log),
        ]
    try:
        yield f"http://127.0.0.1:{port}", f"https://127.0.0.1:{storage}"
    finally:
        for process in reversed(processes):
            process.send_signal(signal.SIGTERM)
            process.wait()


@pytest.fixture
async def keyless(servers: tuple[str, str], certificate: tuple[list[str], Path]) -> AsyncIterator[httpx.AsyncClient]:
    host, storage = servers
    async with httpx.AsyncClient(base_url=host, trust_env=False, timeout=MAX_WAIT_S) as client:
        await _wait_for_servers(client, storage, certificate[1])
        yield client


async def _wait_for_servers(client: httpx.AsyncClient, storage: str, authority: Path) -> None:
    deadline = time.monotonic() + MAX_WAIT_S
    tls = ssl.create_default_context(cafile=str(authority))
    async with httpx.AsyncClient(verify=tls, trust_env=False, timeout=MAX_WAIT_S) as storage_client:
        while True:
            try:
                await storage_client.get(storage)
                assert (await client.get("/api/health")).status_code == 200
            except httpx.TransportError:
                assert time.monotonic() < deadline
                await asyncio.sleep(0.05)
            else:
                return


async def test_conversation_uses_only_managed_identity(
    keyless: httpx.AsyncClient, environ: dict[str, str], fake: AzureOpenAI, platform: AppService
) -> None:
    assert not [name for name in environ if "KEY" in name or "CONNECTION_STRING" in name]
    platform.lifetime = 4
    first = await answer(keyless, "hello")
    platform.lifetime = HOUR
    await asyncio.sleep(4.1)
    second = await answer(keyless, "again")

    assert (first["turn"], second["turn"]) == (1, 2)
    assert second["session"]["cost_usd"] == first["cost_usd"] + second["cost_usd"]
    assert ok_json(await keyless.get("/api/sessions/s"))["turns"] == 2
    assert len(platform.tokens(MODEL)) == 2
    assert len(platform.tokens(STORAGE)) >= 2
    assert {issued.client_id for issued in platform.issued} == {CLIENT_ID}


async def test_identity_rejected_by_tables_returns_503_until_access_is_granted(
    keyless: httpx.AsyncClient, fake: AzureOpenAI, platform: AppService, tmp_path: Path
) -> None:
    platform.audiences, platform.lifetime = {STORAGE: "https://wrong.example"}, 1
    for _ in range(2):
        assert_access_error(await send_message(keyless), "storage_unavailable", "Storage Table Data Contributor")
    platform.audiences, platform.lifetime = {}, HOUR
    await asyncio.sleep(1.1)

    await answer(keyless)

    assert len(fake.requests) == 1
    log = (tmp_path / "log").read_text()
    assert log.count("Storage Table Data Contributor") == 1
    assert not any(issued.token in log for issued in platform.issued)


def test_fake_model_service_rejects_invalid_tokens(platform: AppService) -> None:
    """Without this check the other tests of this file could pass with any token."""
    platform._answer(f"/msi/token?api-version=2019-08-01&resource={MODEL}", {"x-identity-header": platform._secret})
    (token,) = platform.tokens(MODEL)

    assert platform.accepts({"authorization": f"Bearer {token}"}, MODEL)
    assert not platform.accepts({"authorization": f"Bearer {token}"}, STORAGE)
    assert not platform.accepts({"authorization": f"Bearer {token[:-2]}"}, MODEL)
    assert not platform.accepts({}, MODEL)
    platform.revoke()
    assert not platform.accepts({"authorization": f"Bearer {token}"}, MODEL)
