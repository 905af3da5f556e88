"""The log line of a call."""

from decimal import Decimal

import httpx
import pytest

from shared.services import services
from tests.support.azure_openai import AzureOpenAI
from tests.support.chat_client import call_log_lines, get_json, streaming


async def test_line_of_a_stopped_call_has_its_worst_case_and_no_cost(
    api: httpx.AsyncClient, fake: AzureOpenAI, caplog: pytest.LogCaptureFixture
) -> None:
    caplog.set_level("INFO", "shared.telemetry.call_log")
    fake.reply("one two three")
    with fake.hold(after=1):
        async with streaming(api) as answering:
            assert (await answering.next()).name == "start"
            assert (await answering.next()).name == "delta"
            await api.post("/api/sessions/s/stop")
    await services().turns.finish()

    [line] = call_log_lines(caplog)
    assert (line["outcome"], line["reason"], line["cost_usd"]) == ("stopped", "stopped", None)
    session = await get_json(api, "/api/sessions/s")
    assert Decimal(line["worst_case_usd"]) == Decimal(session["stopped_at_most_usd"])
    assert line["session"] == session["reference"][:12]
