"""The embedding model: its answers, its usage, its errors in OpenAI's format; and what `make run` does without it."""

import base64
import json
import struct
import subprocess
import sys
import threading
import time
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import Any

import httpx
import pytest

from local import e5
from local.e5 import DIMENSIONS, NAME
from local.embedding_model import MAX_INPUT_TOKENS, MAX_INPUTS, MAX_REQUEST_TOKENS
from local.parts import Plan, free_port, healthy, plan
from local.places import ROOT
from shared.model.embeddings import Embeddings
from shared.settings import Settings
from tests.support.loopback import MAX_WAIT_S

LIGATURE = "\ufdfa"  # 18 characters after normalization


def serve(port: int) -> subprocess.Popen[str]:
    command = [sys.executable, "-m", "local.embedding_model", "--port", str(port)]
    return subprocess.Popen(command, cwd=ROOT, stdout=subprocess.DEVNULL, stderr=subprocess.PIPE, text=True)


def wait_until_healthy(process: subprocess.Popen[str], url: str) -> None:
    while not healthy(f"{url}/health"):
        assert process.poll() is None
        time.sleep(0.05)


@pytest.fixture(scope="module")
def server() -> Iterator[str]:
    if not e5.installed():
        pytest.skip("THE EMBEDDING MODEL IS NOT INSTALLED, SO ITS ANSWERS WERE NOT CHECKED")
    url = f"http://127.0.0.1:{(port := free_port())}"
    with serve(port) as process:
        wait_until_healthy(process, url)
        yield f"{url}/v1"
        process.terminate()


def post(server: str, **body: object) -> httpx.Response:
    content = json.dumps({"model": NAME, **body})
    return httpx.post(f"{server}/embeddings", content=content, timeout=MAX_WAIT_S, trust_env=False)


def answer(server: str, *texts: str, **options: object) -> dict[str, Any]:
    return dict(post(server, input=texts, **options).raise_for_status().json())


def vectors(server: str, *texts: str) -> list[list[float]]:
    return [item["embedding"] for item in answer(server, *texts)["data"]]


def cosine(one: list[float], other: list[float]) -> float:
    return sum(x * y for x, y in zip(one, other, strict=True))  # both have length 1


class TestAnswers:
    @pytest.mark.parametrize(
        ("text", "paraphrase", "unrelated"),
        [
            ("How do I reset my password?", "I forgot my login secret.", "The cat sleeps on the sofa."),
            ("The meeting was moved to Friday.", "La réunion a été reportée à vendredi.", "Les bananes sont jaunes."),
            ("protein per day for women", "How many grams should a woman eat?", "Mount Everest is in the Himalayas."),
        ],
    )
    def test_paraphrases_are_closer_than_unrelated_sentences(
        self, server: str, text: str, paraphrase: str, unrelated: str
    ) -> None:
        first, second, third = vectors(server, text, paraphrase, unrelated)
        assert cosine(first, second) > cosine(first, third)

    def test_vectors_have_length_1_and_come_in_the_order_of_the_inputs(self, server: str) -> None:
        body = answer(server, "one", "two", "one")
        assert [item["index"] for item in body["data"]] == [0, 1, 2]
        first, second, third = (item["embedding"] for item in body["data"])
        assert first == third != second
        assert len(first) == DIMENSIONS
        assert cosine(first, first) == pytest.approx(1, abs=1e-5)
        assert (body["object"], body["model"]) == ("list", NAME)

    def test_base64_is_the_same_vector_as_float32(self, server: str) -> None:
        (plain,) = vectors(server, "Hello world")
        (item,) = answer(server, "Hello world", encoding_format="base64")["data"]
        assert struct.unpack(f"<{DIMENSIONS}f", base64.b64decode(item["embedding"])) == tuple(plain)

    def test_string_is_answered_as_a_list_of_one(self, server: str) -> None:
        assert post(server, input="Hello world").json() == answer(server, "Hello world")

    @pytest.mark.parametrize(
        ("texts", "tokens"),
        [
            (["Hello"], 1),  # of the vocabulary of XLM-RoBERTa, which has whole words
            (["Hello world"], 2),
            (["Hello world", "Hello"], 3),
            ([" ".join(["a"] * 600)], 600),  # beyond the 512 tokens of one window
            ([LIGATURE], 4),
        ],
    )
    def test_usage_counts_the_tokens_of_the_inputs(self, server: str, texts: list[str], tokens: int) -> None:
        assert answer(server, *texts)["usage"] == {"prompt_tokens": tokens, "total_tokens": tokens}

    def test_text_that_grows_by_normalization_is_embedded(self, server: str) -> None:
        """The engine itself writes beyond its memory, and ends the process."""
        assert len(vectors(server, LIGATURE * 60)[0]) == DIMENSIONS

    @pytest.mark.parametrize("text", [LIGATURE, "\ufdfb", "\u3316", "\u00bd", "\u2a74", "\u2057 "])
    def test_usage_is_within_the_bound_also_of_text_that_grows(self, server: str, text: str) -> None:
        counted = answer(server, text * 60)["usage"]["prompt_tokens"]
        assert counted <= Embeddings().prompt_bound({"input": text * 60})

    def test_text_after_a_null_character_counts(self, server: str) -> None:
        short, long, spaced = vectors(server, "red", "red\0wine", "red wine")
        assert short != long == spaced

    def test_every_dimension_and_null_options_are_accepted(self, server: str) -> None:
        assert answer(server, "a", dimensions=DIMENSIONS, user="ada") == answer(server, "a", encoding_format=None)

    def test_model_is_listed(self, server: str) -> None:
        listed = httpx.get(f"{server}/models", trust_env=False).json()
        assert [model["id"] for model in listed["data"]] == [NAME]


class TestErrors:
    @pytest.mark.parametrize(
        ("body", "param", "message"),
        [
            ({}, "input", "'input' must be a string or a non-empty array of strings."),
            ({"input": []}, "input", "'input' must be a string or a non-empty array of strings."),
            ({"input": 3}, "input", "'input' must be a string or a non-empty array of strings."),
            ({"input": ""}, "input", "'input' is an empty string."),
            ({"input": ["a", ""]}, "input", "'input[1]' is an empty string."),
            ({"input": ["a", None]}, "input", "'input[1]' must be a string."),
            ({"input": [1, 2]}, "input", f"'input[0]' is a token or an array of tokens: {NAME} takes text only."),
            ({"input": [[1, 2]]}, "input", f"'input[0]' is a token or an array of tokens: {NAME} takes text only."),
            ({"input": "a\ud800"}, "input", "'input' has a lone surrogate at character 1."),
            ({"input": ["a"] * (MAX_INPUTS + 1)}, "input", "'input' has 2049 elements; the maximum is 2048."),
            ({"input": "a", "model": 1}, "model", "'model' must be a string."),
            ({"input": "a", "dimensions": 256}, "dimensions", f"'dimensions' must be 384: {NAME} has no other number."),
            (
                {"input": "a", "dimensions": "384"},
                "dimensions",
                f"'dimensions' must be 384: {NAME} has no other number.",
            ),
            (
                {"input": "a", "encoding_format": "int8"},
                "encoding_format",
                "'encoding_format' must be 'float' or 'base64'.",
            ),
        ],
    )
    def test_invalid_field_is_named(self, server: str, body: dict[str, object], param: str, message: str) -> None:
        response = post(server, **body)
        expected = {"message": message, "type": "invalid_request_error", "param": param, "code": None}
        assert (response.status_code, response.json()) == (400, {"error": expected})

    @pytest.mark.parametrize("content", [b"", b"{", b"[]", b"\xff", b"[" * 100_000])
    def test_body_that_is_no_json_object(self, server: str, content: bytes) -> None:
        response = httpx.post(f"{server}/embeddings", content=content, trust_env=False)
        assert (response.status_code, response.json()["error"]["message"]) == (400, "The body must be a JSON object.")

    @pytest.mark.parametrize("text", ["a " * (MAX_INPUT_TOKENS + 1), "a" * 1_000_000])
    def test_text_above_the_maximum(self, server: str, text: str) -> None:
        response = post(server, input=["a", text])
        assert response.status_code == 400
        assert response.json()["error"]["message"] == "'input[1]' has more than 8192 tokens, the maximum of one input."

    def test_request_above_the_maximum(self, server: str) -> None:
        response = post(server, input=["a " * 8000] * (MAX_REQUEST_TOKENS // 8000 + 1))
        assert response.status_code == 400
        assert "more than 32768 tokens, the maximum of one request" in response.json()["error"]["message"]

    def test_unknown_path(self, server: str) -> None:
        response = httpx.get(f"{server}/nothing", trust_env=False)
        assert (response.status_code, response.json()["error"]["message"]) == (404, "Not Found")

    def test_busy_port(self, server: str) -> None:
        port = int(server.split(":")[2].removesuffix("/v1"))
        with serve(port) as process:
            assert process.stderr
            assert "address already in use" in process.stderr.read()
        assert process.returncode != 0


class TestConcurrency:
    @contextmanager
    def during(self, server: str, *texts: str) -> Iterator[threading.Thread]:
        thread = threading.Thread(target=answer, args=(server, *texts))
        thread.start()
        yield thread
        thread.join()

    def test_health_is_answered_during_a_long_text(self, server: str) -> None:
        began, longest = time.monotonic(), 0.0
        with self.during(server, "a few words " * 100) as long:
            while long.is_alive():
                sent = time.monotonic()
                assert healthy(f"{server.removesuffix('/v1')}/health")
                longest = max(longest, time.monotonic() - sent)
        assert longest < (time.monotonic() - began) / 2

    def test_short_requests_take_turns_with_the_texts_of_a_long_one(self, server: str) -> None:
        answers = 0
        with self.during(server, *["a few words " * 20] * 20) as long:
            while long.is_alive():
                answer(server, "a")
                answers += 1
        assert answers > 5

    def test_request_of_a_closed_connection_is_abandoned_and_the_server_stops(self) -> None:
        """The texts take a minute of one core, and the server cancels what runs for five more seconds at the stop."""
        if not e5.installed():
            pytest.skip("the embedding model is not installed")
        with serve(port := free_port()) as process:
            url = f"http://127.0.0.1:{port}"
            wait_until_healthy(process, url)
            body = {"model": NAME, "input": ["a few words " * 30] * 300}
            with pytest.raises(httpx.ReadTimeout):
                httpx.post(f"{url}/v1/embeddings", json=body, timeout=0.5, trust_env=False)
            process.terminate()
            assert process.stderr
            log = process.stderr.read()
        assert "Finished server process" in log
        assert "Cancel" not in log


class TestPlan:
    def plan(self, tmp_path: Path, **environ: str) -> tuple[Plan, Settings]:
        result = plan({}, environ, tmp_path, 7071)
        return result, Settings.from_env(result.parts[-1].environment)

    def names(self, planned: Plan) -> list[str]:
        return [part.name for part in planned.parts]

    def test_app_is_given_the_models_url_name_and_price(self, tmp_path: Path) -> None:
        if not e5.installed():
            pytest.skip("the embedding model is not installed")
        planned, settings = self.plan(tmp_path)
        part = next(part for part in planned.parts if part.name == "embedding model")
        assert settings.model.embedding_endpoints == (f"http://127.0.0.1:{part.command[-1]}/v1/",)
        assert settings.model.embedding_deployments.keys() == {NAME}
        assert json.loads(planned.parts[-1].environment["PRICES"])[NAME] == {"input": 0.02}

    @pytest.mark.parametrize("name", ["AZURE_OPENAI_ENDPOINT", "AZURE_OPENAI_EMBEDDING_ENDPOINT"])
    def test_another_service_replaces_it(self, tmp_path: Path, name: str) -> None:
        key = name.replace("ENDPOINT", "API_KEY")
        planned, settings = self.plan(tmp_path, **{name: "http://127.0.0.1:1/v1", key: "key"})
        assert "embedding model" not in self.names(planned)
        assert settings.model.embedding_endpoints == ("http://127.0.0.1:1/v1/",)
        assert settings.model.embedding_api_key == "key"

    def test_machine_without_a_wheel_gets_the_settings_that_name_another(
        self, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
    ) -> None:
        monkeypatch.setattr(e5, "installed", lambda: False)
        planned, settings = self.plan(tmp_path)
        assert self.names(planned) == ["Azurite", "model", "host"]
        assert "The embedding model is not available for this machine" in planned.notes[-1]
        assert "AZURE_OPENAI_EMBEDDING_ENDPOINT" in planned.notes[-1]
        assert settings.model.embedding_deployments == {}
