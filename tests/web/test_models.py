"""The deployments as models, listed and retrieved with OpenAI's SDK at OpenAI's and at Azure OpenAI's paths."""

from collections.abc import AsyncIterator

import httpx
import openai
import pytest
from openai import AsyncAzureOpenAI, AsyncOpenAI

from local.keys import line, new_key
from tests.conftest import Serve

KEY = new_key()
LISTS = ["/openai/v1/models", "/openai/models?api-version=2024-10-21", "/openai/models"]
OF_CHAT = {"id": "chat", "object": "model", "created": 0, "owned_by": "azure-openai", "kind": "chat"}


@pytest.fixture
async def api(serve: Serve, environ: dict[str, str]) -> AsyncIterator[httpx.AsyncClient]:
    deployments = {"CLIENT_KEYS": line("ann", KEY), "AZURE_OPENAI_DEPLOYMENTS": "chat=gpt-5.4-mini, another=gpt-5.4"}
    async with serve(environ | deployments) as client:
        del client.headers["x-functions-key"]
        client.headers["api-key"] = KEY
        yield client


@pytest.fixture(params=["OpenAI", "AzureOpenAI", "AzureOpenAI with a deployment", "AzureOpenAI with /openai/v1"])
async def sdk(request: pytest.FixtureRequest, api: httpx.AsyncClient) -> AsyncIterator[AsyncOpenAI]:
    root = str(api.base_url).rstrip("/")
    clients: dict[str, AsyncOpenAI] = {
        "OpenAI": AsyncOpenAI(base_url=f"{root}/openai/v1", api_key=KEY),
        "AzureOpenAI": AsyncAzureOpenAI(azure_endpoint=root, api_key=KEY, api_version="2024-10-21"),
        "AzureOpenAI with a deployment": AsyncAzureOpenAI(
            azure_endpoint=root, azure_deployment="chat", api_key=KEY, api_version="2024-10-21"
        ),
        "AzureOpenAI with /openai/v1": AsyncAzureOpenAI(
            base_url=f"{root}/openai/v1", api_key=KEY, api_version="preview"
        ),
    }
    async with clients[request.param] as client:
        yield client


async def test_sdk_lists_the_deployments(sdk: AsyncOpenAI) -> None:
    assert [model.id async for model in sdk.models.list()] == ["another", "chat"]


async def test_sdk_retrieves_a_deployment(sdk: AsyncOpenAI) -> None:
    assert (await sdk.models.retrieve("chat")).to_dict() == OF_CHAT


@pytest.mark.parametrize("name", ["gpt-9", "Chat", "org/model", "ü", "a b", "100%"])
async def test_unknown_model_is_not_found_and_the_deployments_are_named(sdk: AsyncOpenAI, name: str) -> None:
    with pytest.raises(openai.NotFoundError) as caught:
        await sdk.models.retrieve(name)
    assert (caught.value.code, caught.value.param) == ("model_not_found", "model")
    assert caught.value.type == "invalid_request_error"
    assert f"{name!r} does not exist. Choose one of: another, chat." in caught.value.message


async def test_model_of_the_list_is_the_retrieved_one(api: httpx.AsyncClient) -> None:
    for path in LISTS:
        listed = (await api.get(path)).json()
        assert (listed["object"], OF_CHAT in listed["data"]) == ("list", True)
        assert (await api.get(path.replace("models", "models/chat"))).json() == OF_CHAT


async def test_models_need_a_client_key(api: httpx.AsyncClient) -> None:
    del api.headers["api-key"]
    for path in [*LISTS, "/openai/v1/models/chat", "/openai/models/chat", "/openai/models/gpt-9"]:
        response = await api.get(path)
        assert (response.status_code, response.json()["error"]["type"]) == (401, "authentication_error")
