"""What the app makes of a model service's refusals, in the words of each service.

Each scenario is a report from public trackers, with its source beside it.
"""

import json
from collections.abc import Callable, Iterator
from typing import Any

import httpx
import pytest

from local.keys import line
from tests.conftest import Tables
from tests.support.azure_openai import Request
from tests.support.chat_client import send_message
from tests.support.conservation import assert_conserved
from tests.support.rude_upstream import Raw, RudeUpstream

JSON = dict[str, Any]
KEY = "a-client-key-of-the-tests"


@pytest.fixture
def fake() -> Iterator[RudeUpstream]:
    with RudeUpstream() as server:
        yield server


@pytest.fixture
def environ(environ: dict[str, str]) -> dict[str, str]:
    return environ | {"CLIENT_KEYS": line("app", KEY), "AZURE_OPENAI_DEPLOYMENTS": "chat, another"}


def refusal(status: int, body: Any) -> Raw:
    content = body if isinstance(body, str) else json.dumps(body)
    return Raw([content.encode()], status=status, media_type="application/json", billed=False)


def refuse(fake: RudeUpstream, status: int, body: Any, when: Callable[[Request], bool] = lambda _: True) -> None:
    """Every request for which `when` holds is refused."""
    fake.raw_responder = lambda request: refusal(status, body) if when(request) else None


async def openai_post(api: httpx.AsyncClient, **fields: Any) -> httpx.Response:
    body = {"model": "chat", "messages": [{"role": "user", "content": "hi"}], **fields}
    return await api.post("/openai/v1/chat/completions", json=body, headers={"authorization": f"Bearer {KEY}"})


def openai_error(message: str, param: str | None = None, code: Any = None, kind: str = "invalid_request_error") -> JSON:
    return {"error": {"message": message, "type": kind, "param": param, "code": code}}


EXTRA = {"type": "extra_forbidden", "loc": ["body", "frequency_penalty"], "msg": "Extra inputs are not permitted"}
SHAPES: dict[str, Any] = {
    "FastAPI": {"detail": [EXTRA]},
    "editor-code-assistant/eca#231": {"object": "error", "message": {"detail": [EXTRA]}, "param": None},
    "vLLM": {"object": "error", "message": repr([EXTRA | {"loc": ("body", "frequency_penalty")}]), "code": 400},
}


class TestWords:
    @pytest.mark.parametrize("shape", SHAPES)
    @pytest.mark.parametrize("status", [400, 422])
    async def test_refusal_is_told_in_plain_words_with_its_field(
        self, api: httpx.AsyncClient, fake: RudeUpstream, tables: Tables, shape: str, status: int
    ) -> None:
        refuse(fake, status, SHAPES[shape])
        response = await send_message(api)
        expected = "frequency_penalty: Extra inputs are not permitted"
        error = response.json()["error"]
        assert (response.status_code, error["code"]) == (400, "invalid_request")
        assert (error["message"], error["param"]) == (expected, "frequency_penalty")
        openai = await openai_post(api)
        assert (openai.status_code, openai.json()["error"]["message"]) == (status, expected)
        await assert_conserved(tables, fake)
        assert len(fake.requests) == 2

    @pytest.mark.parametrize("body", ["", "<html><body>400</body></html>", '{"error": {"message": {"a": 1}}}', "null"])
    async def test_refusal_without_words_gets_ours(self, api: httpx.AsyncClient, fake: RudeUpstream, body: str) -> None:
        refuse(fake, 400, body)
        assert (await send_message(api)).json()["error"]["message"] == "The model service rejected the request."

    async def test_error_in_mid_stream_is_told_in_plain_words(self, api: httpx.AsyncClient, fake: RudeUpstream) -> None:
        fake.stream(
            {"choices": [{"index": 0, "delta": {"content": "hel"}}]},
            {"error": {"message": repr({"detail": [{"msg": "the engine died"}]})}},
        )
        response = await send_message(api, stream=True)
        assert "error: the engine died" in response.text
