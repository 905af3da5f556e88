"""What the real exporter sends to Application Insights for a call. Tracing is off without a connection string."""

import gzip
import json
import os
import signal
import subprocess
import sys
import time
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import h11
import httpx
import pytest

from local.keys import line, new_key
from local.parts import free_port
from local.places import ROOT
from shared.telemetry.tracing import tracing
from tests.conftest import EMBEDDING, Tables, with_embeddings
from tests.support.azure_openai import AzureOpenAI
from tests.support.chat_client import answer, closed_ledger, ok_json, send_message
from tests.support.clock import FEBRUARY_29
from tests.support.loopback import MAX_WAIT_S, Loopback, Wire

KEY = "00000000-1111-2222-3333-444444444444"
CLIENT_KEY = new_key()
METRICS = {
    "gen_ai.client.token.usage",
    "gen_ai.client.operation.duration",
    "gen_ai.client.operation.time_to_first_chunk",
}
JSON = dict[str, Any]


class Ingestion(Loopback):
    """A fake of Application Insights' ingestion endpoint that stores the telemetry it receives."""

    def __init__(self) -> None:
        super().__init__()
        self.items: list[JSON] = []

    @property
    def connection_string(self) -> str:
        here = f"http://127.0.0.1:{self.port}"
        return f"InstrumentationKey={KEY};IngestionEndpoint={here}/;LiveEndpoint={here}/"

    async def converse(self, wire: Wire) -> None:
        while message := await wire.message():
            body = bytes(message.body)
            if (b"content-encoding", b"gzip") in message.head.headers:
                body = gzip.decompress(body)
            items = json.loads(body)
            self.items += items
            body = json.dumps({"itemsReceived": len(items), "itemsAccepted": len(items), "errors": []}).encode()
            head = [("content-type", "application/json"), ("content-length", str(len(body)))]
            await wire.send(h11.Response(status_code=200, headers=head), h11.Data(body), h11.EndOfMessage())
            wire.http.start_next_cycle()

    @property
    def metric_names(self) -> set[str]:
        return {metric["name"] for item in self.of("MetricData") for metric in item["metrics"]}

    def of(self, kind: str) -> list[JSON]:
        return [item["data"]["baseData"] for item in self.items if item["data"]["baseType"] == kind]


@pytest.fixture
def ingestion() -> Iterator[Ingestion]:
    with Ingestion() as server:
        yield server


@pytest.fixture
def host(environ: dict[str, str], ingestion: Ingestion, tmp_path: Path) -> Iterator[str]:
    """The URL of a host in its own process, because tracing is set up once per process."""
    port = free_port()
    settings = with_embeddings(environ) | {
        "CLIENT_KEYS": line("ann", CLIENT_KEY),
        "APPLICATIONINSIGHTS_CONNECTION_STRING": ingestion.connection_string,
        "APPLICATIONINSIGHTS_STATSBEAT_DISABLED_ALL": "true",  # the exporter's own telemetry, which goes to Microsoft
        "APPLICATIONINSIGHTS_CONTROLPLANE_DISABLED": "true",
        "OTEL_BSP_SCHEDULE_DELAY": "100",
        "OTEL_METRIC_EXPORT_INTERVAL": "300",
        "SUMMARY_SCHEDULE": FEBRUARY_29,
        "PATH": os.environ["PATH"],
        "HOME": str(tmp_path),
    }
    command = [sys.executable, "-m", "local.host", "--port", str(port)]
    with (tmp_path / "log").open("wb") as log:
        process = subprocess.Popen(command, cwd=ROOT, env=settings, stdout=log, stderr=log)
    base = f"http://127.0.0.1:{port}"
    try:
        deadline = time.monotonic() + MAX_WAIT_S
        while not _healthy(base):
            assert process.poll() is None, (tmp_path / "log").read_text()
            assert time.monotonic() < deadline
            time.sleep(0.05)
        yield base
    finally:
        process.send_signal(signal.SIGTERM)
        process.wait()


def _healthy(base: str) -> bool:
    try:
        return httpx.get(f"{base}/api/health", trust_env=False).status_code == 200
    except httpx.TransportError:
        return False


async def test_call_is_traced_as_span_and_metrics_without_content(
    host: str, fake: AzureOpenAI, ingestion: Ingestion, tables: Tables
) -> None:
    fake.reply("marmalade", reasoning_tokens=7)
    async with httpx.AsyncClient(base_url=host, trust_env=False, timeout=MAX_WAIT_S) as api:
        response = await answer(api, "xylophone", "a-session-of-mine", max_tokens=50)
        fake.fault("no_usage")
        await send_message(api, "xylophone", "a-session-of-mine")
        body = {"model": EMBEDDING, "input": ["xylophone"]}
        ok_json(await api.post("/openai/v1/embeddings", json=body, headers={"api-key": CLIENT_KEY}))
    await ingestion.until(lambda: len(ingestion.of("RemoteDependencyData")) == 3 and ingestion.metric_names >= METRICS)

    settled, unaccounted, embedding = ingestion.of("RemoteDependencyData")
    assert (embedding["name"], embedding["success"]) == (f"embeddings {EMBEDDING}", True)
    assert embedding["properties"]["gen_ai.operation.name"] == "embeddings"
    assert embedding["properties"]["gen_ai.usage.input_tokens"] == "3"
    span, usage = settled["properties"], response["usage"]
    assert settled["name"] == "chat chat"
    assert (settled["success"], unaccounted["success"]) == (True, False)
    expected = {
        "gen_ai.operation.name": "chat",
        "gen_ai.provider.name": "azure.ai.openai",
        "gen_ai.request.model": "chat",
        "gen_ai.response.model": response["model"],
        "gen_ai.request.max_tokens": "50",
        "gen_ai.usage.input_tokens": str(usage["prompt_tokens"]),
        "gen_ai.usage.output_tokens": str(usage["completion_tokens"]),
        "gen_ai.usage.reasoning.output_tokens": "7",
        "chat.cost_usd": format(response["cost_usd"], "f"),
        "chat.attempts": "1",
    }
    assert {name: str(span.get(name)) for name in expected} == expected
    assert float(span["gen_ai.response.time_to_first_chunk"]) > 0
    calls = {entry.call.id for entry in await closed_ledger(tables)}
    assert {each["properties"]["chat.call"] for each in (settled, unaccounted, embedding)} == calls

    sent = json.dumps(ingestion.items)
    assert not [secret for secret in ("xylophone", "marmalade", "a-session-of-mine") if secret in sent]


def test_tracing_is_not_imported_without_a_connection_string() -> None:
    """The import would slow every cold start."""
    program = (
        "import sys, shared.services; print([m for m in sys.modules if 'opentelemetry.sdk' in m or 'monitor' in m])"
    )
    process = subprocess.run([sys.executable, "-c", program], cwd=ROOT, capture_output=True, text=True, check=True)

    assert process.stdout.strip() == "[]"
    assert tracing(None) is None


def test_tracing_is_off_without_the_optional_dependency(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setitem(sys.modules, "azure.monitor.opentelemetry", None)

    assert tracing(f"InstrumentationKey={KEY}") is None


# Of the package's look-up of a virtual machine's metadata, where that answers with an error; on Python 3.14.
@pytest.mark.filterwarnings("ignore:Implicitly cleaning up <HTTPError:ResourceWarning")
@pytest.mark.parametrize("value", ["x", "InstrumentationKey=x", "InstrumentationKey="])
def test_malformed_connection_string_is_logged_and_stops_only_tracing(
    value: str, caplog: pytest.LogCaptureFixture
) -> None:
    assert tracing(value) is None
    assert "APPLICATIONINSIGHTS_CONNECTION_STRING is malformed" in caplog.text
