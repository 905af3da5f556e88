"""Clients that only `make acceptance` runs, each in an environment of its own below .local/clients/, made at first use:
their releases of OpenAI's SDK and pydantic need not fit ours, and Codex is large."""

import json
import os
import re
import subprocess
import sys
from pathlib import Path

import pytest
from openai import OpenAI

from local import azurite, model, packages
from local.places import ROOT, STATE
from tests.clients.answers import READ, SUMS
from tests.clients.conftest import HERE, KEY, App
from tests.support import environments

pytestmark = pytest.mark.acceptance

# What pip or npm installs. Only the clients themselves are pinned.
PYTHON = {
    "agent_framework": ("agent-framework-core==1.23.0", "agent-framework-openai==1.17.0"),
    "litellm": ("litellm==1.108.7",),
    "llm": ("llm==0.36",),
    "pydantic_ai": ("pydantic-ai-slim[openai]==2.68.0",),
}
CODEX = "@openai/codex@0.171.0"


@pytest.fixture
def environ(environ: dict[str, str]) -> dict[str, str]:
    return environ | {"AZURE_OPENAI_DEPLOYMENTS": "gpt-5.4-mini, gpt-5.6=gpt-5.4-mini"}


def python(client: str) -> Path:
    return environments.python_environment(STATE / "clients" / client, Path(sys.executable), *PYTHON[client])


def codex() -> Path:
    home, npm = STATE / "clients" / "codex", azurite.npm()
    assert npm
    command = [*npm, "install", "--prefix", str(home), "--ignore-scripts", "--no-audit", "--no-fund", CODEX]
    environments.once(home, CODEX, lambda: environments.run(*command))
    return home / "node_modules/@openai/codex/bin/codex.js"


def snippet(heading: str, language: str, root: str) -> str:
    """The first block of that language under a heading of docs/clients.md, with the address of the app."""
    text = (ROOT / "docs/clients.md").read_text()
    block = re.search(rf"^## {heading}\n.*?^```{language}\n(.*?)^```", text, re.MULTILINE | re.DOTALL)
    assert block
    return block[1].replace("http://127.0.0.1:7071", root)


@pytest.mark.parametrize("client", ["agent_framework", "litellm", "pydantic_ai"])
async def test_client_takes_three_steps_of_tools(app: App, client: str) -> None:
    azure = {"AZURE_API_BASE": app.root, "AZURE_API_KEY": KEY, "AZURE_API_VERSION": "2025-04-01-preview"}
    offline = {"LITELLM_LOCAL_MODEL_COST_MAP": "True"}
    await app.run(python(client), "-P", HERE / f"{client}.py", SUMS, **azure, **offline)
    await app.assert_billed(streams=2)


async def test_llm_answers_calls_tools_and_continues(app: App) -> None:
    folder = app.home / "llm"
    folder.mkdir()
    (folder / "extra-openai-models.yaml").write_text(snippet("llm", "yaml", app.root))
    (folder / "add.py").write_text('def add(a: int, b: int) -> int:\n    "Add two numbers."\n    return a + b\n')

    async def llm(*arguments: str) -> str:
        return await app.run(python("llm"), "-m", "llm", *arguments, LLM_USER_PATH=str(folder))

    await llm("keys", "set", "chat-api", "--value", KEY)
    assert await llm("-m", "chat-api", "one") == "echo: one\n"
    assert await llm("-c", "two") == "echo: one | two\n"
    assert await llm("-m", "chat-api", "--no-stream", "three") == "echo: three\n"
    assert (await llm("-m", "chat-api", "--functions", str(folder / "add.py"), SUMS)).strip() == "results: 3, 7, 10"
    assert json.loads(await llm("-m", "chat-api", "--schema", "name, age int", "Who?")) == {
        "name": "echo: Who?",
        "age": 7,
    }
    await app.assert_billed(streams=6)


async def test_codex_reads_a_file_and_resumes(app: App) -> None:
    program = azurite.node()
    assert program
    (app.home / ".codex").mkdir()
    (app.home / ".codex" / "config.toml").write_text(snippet("Codex", "toml", app.root))
    (app.home / "note.txt").write_text("secret word: zebra")
    quiet = ["-c", "check_for_update_on_startup=false", "-c", "analytics.enabled=false"]
    options = ["--json", "--skip-git-repo-check", "--dangerously-bypass-approvals-and-sandbox", *quiet]

    async def answer(*arguments: str) -> str:
        lines = (await app.run(program, codex(), "exec", *options, *arguments)).splitlines()
        items = [event["item"] for event in map(json.loads, lines) if event["type"] == "item.completed"]
        return str([item["text"] for item in items if item["type"] == "agent_message"][-1])

    read = await answer(READ)
    assert read.startswith("results: ")
    assert "zebra" in read
    resumed = await answer("resume", "--last", "More?")
    assert resumed.endswith(f"{READ} | More?")
    await app.assert_billed(streams=3)


def test_openai_sdk_on_the_embedded_model(embedded: str) -> None:
    with OpenAI(base_url=f"{embedded}/openai/v1", api_key=KEY) as client:
        whole = client.responses.create(model=model.NAME, input="Say hello.", max_output_tokens=16)
        assert whole.output_text
        with client.responses.stream(
            model=model.NAME, input="Again.", previous_response_id=whole.id, max_output_tokens=16
        ) as stream:
            text = "".join(event.delta for event in stream if event.type == "response.output_text.delta")
        assert text
        last = client.responses.create(model=model.NAME, input="And again.", previous_response_id=whole.id)
        assert last.usage
        assert last.usage.input_tokens > whole.usage.input_tokens  # type: ignore[union-attr]
        assert client.responses.retrieve(last.id).output == last.output


def run_documented(heading: str, language: str, root: str, *command: str) -> str:
    """Run the lines of docs/clients.md; returns what they print."""
    environ = os.environ | {"OPENAI_BASE_URL": f"{root}/openai/v1", "OPENAI_API_KEY": KEY}
    code, folder = snippet(heading, language, root), packages.NODE_CLIENTS.target
    result = subprocess.run([*command, code], cwd=folder, env=environ, capture_output=True, text=True, check=False)
    assert (result.returncode, result.stderr) == (0, "")
    return result.stdout


def test_documented_lines_for_openais_sdk(embedded: str) -> None:
    assert len(run_documented("OpenAI's SDK", "python", embedded, sys.executable, "-c").splitlines()) >= 3


def test_documented_lines_for_the_vercel_ai_sdk(embedded: str) -> None:
    node = azurite.node()
    assert node
    assert run_documented("Vercel AI SDK", "js", embedded, node, "--input-type=module", "-e").strip()
