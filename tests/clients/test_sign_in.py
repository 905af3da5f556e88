"""OpenAI's SDK with a person's access token as its key."""

from collections.abc import Iterator
from pathlib import Path

import openai
import pytest
from openai import OpenAI

from local.people import Person
from tests.support.issuer import ADA, BOB, LocalIssuer
from tests.support.processes import Host, HostFactory


@pytest.fixture
def issuer() -> Iterator[LocalIssuer]:
    with LocalIssuer() as started:
        yield started


@pytest.fixture
def host(issuer: LocalIssuer, environ: dict[str, str], tmp_path: Path) -> Iterator[Host]:
    with HostFactory() as factory:
        yield factory.host(environ | issuer.environ, tmp_path / "log")


def test_token_is_a_key_and_its_responses_belong_to_the_person(host: Host, issuer: LocalIssuer) -> None:
    def client(person: Person) -> OpenAI:
        return OpenAI(base_url=f"{host.base}/openai/v1", api_key=lambda: issuer.access_token(person), max_retries=0)

    with client(ADA) as ada, client(BOB) as bob:
        answer = ada.chat.completions.create(model="chat", messages=[{"role": "user", "content": "hi"}])
        assert answer.choices[0].message.content == "echo: hi"
        response = ada.responses.create(model="chat", input="My name is Ada.")
        assert ada.responses.retrieve(response.id).output_text == response.output_text
        with pytest.raises(openai.NotFoundError):
            bob.responses.retrieve(response.id)
    with (
        OpenAI(base_url=f"{host.base}/openai/v1", api_key="x", max_retries=0) as stranger,
        pytest.raises(openai.AuthenticationError),
    ):
        stranger.models.list()
