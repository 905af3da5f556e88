"""The embeddings of the Azure OpenAI fake, called by the real SDK."""

from collections.abc import AsyncIterator, Iterator
from typing import Any

import openai
import pytest
from openai import AsyncOpenAI

from tests.support.azure_openai import AzureOpenAI
from tests.support.azure_openai_embeddings import INVALID_INPUT, vector


@pytest.fixture
def fake() -> Iterator[AzureOpenAI]:
    with AzureOpenAI() as fake:
        yield fake


@pytest.fixture
async def client(fake: AzureOpenAI) -> AsyncIterator[AsyncOpenAI]:
    async with AsyncOpenAI(base_url=f"{fake.endpoint}/openai/v1/", api_key=fake.api_key, max_retries=0) as client:
        yield client


async def test_vector_is_the_same_in_each_format_and_depends_on_its_input_only(
    fake: AzureOpenAI, client: AsyncOpenAI
) -> None:
    inputs: list[list[str] | list[list[int]]] = [["one", "two"], [[1, 2], [3]]]
    for value in inputs:
        whole = await client.embeddings.create(model="vectors", input=value, encoding_format="float")
        decoded = await client.embeddings.create(model="vectors", input=value, dimensions=8)  # base64
        single = await client.embeddings.create(model="vectors", input=value[1], dimensions=3)
        assert whole.data == decoded.data
        assert [each.embedding for each in whole.data] == [vector(each, 8).tolist() for each in value]
        assert single.data[0].embedding == vector(value[1], 3).tolist()

    assert [billed.prompt_tokens for billed in fake.meter] == [2, 2, 1, 3, 3, 1]
    assert whole.usage.to_dict() == {"prompt_tokens": 3, "total_tokens": 3}
    fake.only_floats = True
    raw = await client.embeddings.with_raw_response.create(model="vectors", input="one", encoding_format="base64")
    assert raw.http_response.json()["data"][0]["embedding"] == vector("one", 8).tolist()


NO_INPUTS: list[Any] = [[], "", ["a", ""], ["a"] * 2_049, ["a", [1]], [[]], None, 5]


@pytest.mark.parametrize(
    ("options", "message"),
    [
        *(({"input": value}, INVALID_INPUT) for value in NO_INPUTS),
        ({"input": "aaaa" * 8_193}, "maximum context length is 8192 tokens, however you requested 8193 tokens"),
        ({"input": [[7] * 8_192] * 37}, "Requested 303104 tokens, max 300000 tokens per request"),
        ({"input": "a", "dimensions": 1_537}, "'dimensions' = 1537. Must be less than or equal to 1536."),
        ({"input": "a", "dimensions": 0}, "Invalid type for 'dimensions'"),
        ({"input": "a", "encoding_format": "int8"}, "Supported values are: 'float' and 'base64'."),
        ({"input": "a", "extra_body": {"input_type": "query"}}, "Unrecognized request argument supplied: input_type"),
    ],
)
async def test_request_is_refused_in_the_services_words(
    fake: AzureOpenAI, client: AsyncOpenAI, options: dict[str, Any], message: str
) -> None:
    with pytest.raises(openai.BadRequestError) as caught:
        await client.embeddings.create(model="vectors", **options)
    assert message in caught.value.message
    assert not fake.meter
