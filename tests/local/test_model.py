"""The embedded model: what README.md shows is what comes, each time; and the one line that replaces the model."""

import json
import re
import subprocess
import sys
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import httpx
import pytest

from local import model
from local.parts import OTHER_MODEL, TOY_MODEL, WITHOUT_MODEL, free_port, plan
from local.places import ROOT
from shared.settings import Settings
from tests.support.loopback import MAX_WAIT_S

README = (ROOT / "README.md").read_text()
URLS = {
    "Ollama": "http://127.0.0.1:11434/v1",
    "llama.cpp": "http://127.0.0.1:8080/v1",
    "Azure OpenAI": "https://RESOURCE.openai.azure.com",
    "OpenAI": "https://api.openai.com/v1",
}


@pytest.fixture(scope="module")
def server() -> Iterator[str]:
    if not model.installed():
        pytest.skip("THE EMBEDDED MODEL IS NOT INSTALLED, SO ITS ANSWERS WERE NOT CHECKED")
    port = free_port()
    command = [sys.executable, "-m", "local.model", "--port", str(port)]
    process = subprocess.Popen(command, cwd=ROOT, stdout=subprocess.PIPE, stderr=subprocess.DEVNULL, text=True)
    assert process.stdout
    try:
        next(line for line in process.stdout if line.startswith(f"{model.NAME} listens on"))
        yield f"http://127.0.0.1:{port}/v1/chat/completions"
    finally:
        process.terminate()
        process.wait()
        process.stdout.close()


def reply(server: str, *messages: dict[str, str], **options: object) -> dict[str, Any]:
    """An answer of at most 40 tokens."""
    body = {"messages": messages, "max_tokens": 40, **options}
    return dict(httpx.post(server, json=body, timeout=MAX_WAIT_S, trust_env=False).raise_for_status().json())


def answer(server: str, *messages: dict[str, str], **options: object) -> str:
    return str(reply(server, *messages, **options)["choices"][0]["message"]["content"])


def user(text: str) -> dict[str, str]:
    return {"role": "user", "content": text}


def transcript() -> list[tuple[str, str]]:
    """README.md's messages, and the answers that it shows."""
    messages = re.findall(r'"session_id": "a1", "message": "([^"]*)"', README)
    answers = re.findall(r'"message":\{"role":"assistant","content":"([^"]*)"', README)
    return list(zip(messages, answers, strict=True))


class TestAnswers:
    def test_readme_shows_what_comes(self, server: str) -> None:
        conversation = [{"role": "system", "content": model.SYSTEM_PROMPT}]
        for message, shown in transcript():
            conversation.append(user(message))
            assert answer(server, *conversation) == shown
            conversation.append({"role": "assistant", "content": shown})
        assert len(conversation) == 7

    def test_answers_shown_elsewhere_are_right_without_a_system_prompt_too(self, server: str) -> None:
        for country, capital in [("France", "Paris"), ("Italy", "Rome"), ("Spain", "Madrid")]:
            question = user(f"What is the capital of {country}?")
            assert answer(server, question) == f"The capital of {country} is {capital}."

    def test_tokens_so_far_come_with_each_chunk_on_request(self, server: str) -> None:
        """The app then knows the cost of a stopped answer: shared/model/running_usage.py."""
        options = {
            "stream": True,
            "timings_per_token": True,
            "stream_options": {"include_usage": True},
            "max_tokens": 5,
        }
        body = {"messages": [user("Count to ten.")], **options}
        response = httpx.post(server, json=body, timeout=MAX_WAIT_S, trust_env=False)
        assert response.headers["server"] == "llama.cpp"
        chunks = [json.loads(line[6:]) for line in response.text.splitlines() if line.startswith("data: {")]
        shown = [chunk for chunk in chunks if chunk["choices"] and chunk["choices"][0]["delta"].get("content")]
        assert [chunk["timings"]["predicted_n"] for chunk in shown] == [*range(1, len(shown) + 1)]
        counted = shown[-1]["timings"]
        usage = next(chunk["usage"] for chunk in chunks if chunk.get("usage"))
        assert counted["prompt_n"] + counted["cache_n"] == usage["prompt_tokens"]

    def test_request_without_sampling_gets_the_same_answer_each_time(self, server: str) -> None:
        question = user("Tell me a story about a cat.")
        assert len({answer(server, question, seed=seed) for seed in range(4)}) == 1

    def test_temperature_of_the_request_is_used(self, server: str) -> None:
        question = user("Tell me a story about a cat.")
        assert len({answer(server, question, seed=seed, temperature=1.0) for seed in range(4)}) > 1

    def test_system_message_of_the_request_is_used(self, server: str) -> None:
        question, shorter = user("What is your name?"), {"role": "system", "content": "Hi."}
        tokens = [reply(server, *messages)["usage"]["prompt_tokens"] for messages in ([question], [shorter, question])]
        assert tokens[1] < tokens[0]


class TestToy:
    def test_run_says_that_the_model_is_a_toy_and_how_to_use_another(self, tmp_path: Path) -> None:
        (note,) = plan({}, {}, tmp_path, 7071).notes
        assert "a toy of 135 million parameters" in note
        assert OTHER_MODEL in note
        assert OTHER_MODEL in WITHOUT_MODEL

    def test_chat_page_and_terminal_say_so_beside_the_deployment(self, tmp_path: Path) -> None:
        """Both show api/about's region there."""
        region = plan({}, {}, tmp_path, 7071).parts[-1].environment["REGION_NAME"]
        assert "a 135M toy" in region

    def test_another_model_is_not_called_a_toy(self, tmp_path: Path) -> None:
        other = plan({"AZURE_OPENAI_ENDPOINT": URLS["Ollama"]}, {}, tmp_path, 7071)
        assert TOY_MODEL not in other.notes
        assert other.parts[-1].environment["REGION_NAME"] == "this machine"

    @pytest.mark.parametrize("name", URLS)
    def test_line_for_another_model_is_one_that_the_app_accepts(self, tmp_path: Path, name: str) -> None:
        assert f"{URLS[name]} ({name})" in OTHER_MODEL.replace("\n  ", " ")
        assert f"| {name} | `{URLS[name]}` |" in README
        variables = re.findall(r"(AZURE_OPENAI_\w+)=(\w+)", OTHER_MODEL)
        assert variables == [
            ("AZURE_OPENAI_ENDPOINT", "URL"),
            ("AZURE_OPENAI_API_KEY", "KEY"),
            ("AZURE_OPENAI_MODEL", "NAME"),
        ]
        values = {"URL": URLS[name], "KEY": "key", "NAME": "llama3.2"}
        environ = {variable: values[placeholder] for variable, placeholder in variables}
        todo = plan({}, environ, tmp_path, 7071)
        assert "model" not in [part.name for part in todo.parts]
        settings = Settings.from_env(todo.parts[-1].environment).model
        path = "/openai/v1/" if name == "Azure OpenAI" else "/"
        assert settings.endpoints == (URLS[name] + path,)
        assert (settings.api_key, settings.deployment) == ("key", "llama3.2")

    def test_readmes_line_is_that_line(self) -> None:
        (line,) = re.findall(r"^AZURE_OPENAI_ENDPOINT=.*$", README, re.MULTILINE)
        placeholders = line.replace(URLS["Ollama"], "URL").replace("=none", "=KEY").replace("llama3.2", "NAME")
        assert placeholders in OTHER_MODEL
