"""Clients of openai/v1/responses and conversations: the key of Ann is theirs."""

from collections.abc import AsyncIterator

import httpx
import pytest
from openai import AsyncOpenAI

from tests.conftest import Serve
from tests.support.responses_api import ANN, KEYS


@pytest.fixture
async def client(serve: Serve, environ: dict[str, str]) -> AsyncIterator[httpx.AsyncClient]:
    async with serve(environ | KEYS) as client:
        del client.headers["x-functions-key"]
        client.headers["api-key"] = ANN
        yield client


@pytest.fixture
async def sdk(client: httpx.AsyncClient) -> AsyncIterator[AsyncOpenAI]:
    async with AsyncOpenAI(base_url=f"{client.base_url}/openai/v1", api_key=ANN, max_retries=0) as sdk:
        yield sdk
