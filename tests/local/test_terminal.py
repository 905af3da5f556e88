"""chat.py, the terminal client, against the real app: in a terminal, with pipes, and over a failing network."""

import asyncio
import io
import os
import re
import signal
import subprocess
import sys
import time
from collections.abc import Iterable, Iterator
from datetime import datetime
from decimal import Decimal
from pathlib import Path
from typing import Any
from urllib.parse import urlsplit

import httpx
import pyte
import pytest
from rich.console import Console

import chat
from local.keys import line
from local.parts import free_port
from local.places import ROOT
from shared.domain.calls import State
from tests.conftest import FUNCTION_KEY, Serve, Tables
from tests.support.agent import QUESTION, connected, use_two_tools
from tests.support.azure_openai import AzureOpenAI
from tests.support.azure_openai_answers import pieces
from tests.support.chat_client import JSON, answer, closed_ledger, exact, fill, get_json, streaming, until
from tests.support.conservation import assert_conserved
from tests.support.loopback import MAX_WAIT_S
from tests.support.proxy import Action, Answer, Close, Match, Stall, TcpProxy
from tests.support.responses_api import ANN, KEYS
from tests.support.terminal import (
    ALT_ENTER,
    CTRL_C,
    CTRL_D,
    ENTER,
    UP,
    open_terminal,
    run_piped,
    start_chat,
    wait_for_result,
)

POST = Match("POST", "/api/chat")
STOPPED = re.compile(
    r"Stopped\. It costs between \$0\.00 and \$0\.\d+, which is counted apart from the session's cost\.\n"
)
HIGH_PRICES = '{"chat": {"input": 8, "output": 80}}'
CONTROL_SEQUENCES = (
    "\x1b]0;title\x07\x1b[31mred\x1b[0m\x9b2J\x08\x7f \x1b]52;c;Y2xpcA==\x1b\\ &#x202e;turned \u202eback\r\nend"
)


@pytest.fixture
def network(api: httpx.AsyncClient) -> Iterator[TcpProxy]:
    """A proxy between the client and the app."""
    with TcpProxy(urlsplit(str(api.base_url)).port or 0) as proxy:
        yield proxy


async def turns(api: httpx.AsyncClient, session: str = "s") -> list[JSON]:
    """Oldest first."""
    return [*reversed((await get_json(api, f"/api/sessions/{session}/messages"))["turns"])]


# Amounts


@pytest.mark.parametrize(
    ("amount", "shown"),
    [
        (Decimal("0.0044"), "$0.0044"),
        (Decimal("0.00466"), "$0.0047"),
        (Decimal("0.000011250"), "$0.000011"),
        (Decimal("0.00000004"), "$0.000000040"),
        (Decimal("0.00995"), "$0.0100"),
        (Decimal("1.5"), "$1.5000"),
        (Decimal("1234.56789"), "$1234.5679"),
        (2, "$2.0000"),
        (Decimal("0E-9"), "$0.00"),
        (0, "$0.00"),
        (None, "unknown"),
    ],
)
def test_amount_has_at_least_two_significant_digits(amount: Decimal | int | None, shown: str) -> None:
    assert chat.usd(amount) == shown


TOTALS = {"cost_usd": Decimal("0.002"), "unpriced_turns": 0, "unaccounted_calls": 0, "unaccounted_usd": 0}


@pytest.mark.parametrize(
    ("totals", "shown"),
    [
        ({}, "$0.0020"),
        ({"cost_usd": 0}, "$0.00"),
        ({"busy": True}, "$0.0020 | a turn is still running"),
        ({"unpriced_turns": 1}, "$0.0020 | 1 turn of unknown price"),
        ({"cost_usd": 0, "unpriced_turns": 2}, "unknown | 2 turns of unknown price"),
        (
            {"unaccounted_calls": 2, "unaccounted_usd": Decimal("0.01")},
            "$0.0020 | 2 calls unaccounted, at most $0.0100",
        ),
        ({"unaccounted_calls": 1}, "$0.0020 | 1 call unaccounted, price not known"),
        (
            {"stopped_calls": 2, "stopped_at_least_usd": Decimal("0.001"), "stopped_at_most_usd": Decimal("0.03")},
            "$0.0020 | 2 calls stopped, between $0.0010 and $0.0300",
        ),
        (
            {"stopped_calls": 1, "stopped_at_least_usd": 0, "stopped_at_most_usd": None},
            "$0.0020 | 1 call stopped, at least $0.00",
        ),
    ],
)
def test_unpriced_unaccounted_and_stopped_calls_are_shown_beside_the_cost(totals: dict[str, Any], shown: str) -> None:
    assert chat.cost_line(TOTALS | totals) == shown


@pytest.mark.parametrize(
    ("turn", "shown"),
    [
        ({"usage": {"total_tokens": 40}, "cost_usd": Decimal("0.01")}, "Stopped. Cost: $0.0100 for 40 tokens."),
        ({"usage": {"total_tokens": 1}, "cost_usd": None}, "Stopped. Cost: unknown for 1 token."),
        ({"usage": None, "cost_usd": None}, "Stopped before the model was called; no cost."),
        (
            {"stopped_at_least_usd": Decimal("0.001"), "stopped_at_most_usd": Decimal("0.02")},
            "Stopped. It costs between $0.0010 and $0.0200, which is counted apart from the session's cost.",
        ),
    ],
)
def test_cost_of_a_stopped_turn_is_exact_or_within_bounds(turn: dict[str, Any], shown: str) -> None:
    assert chat.stopped_note(turn) == shown


# Server-sent events


@pytest.mark.parametrize("end", ["\n", "\r\n", "\r"])
def test_sse_events_parse_the_same_for_any_chunking_of_the_stream(end: str) -> None:
    delta = ': hello\n\nevent: delta\ndata: {"content":"a\u2028é\x85🙂"}\n\n'
    text = delta + 'event: done\ndata: {"cost_usd":\ndata:0.10}\n\n: x\n'
    stream = text.replace("\n", end).encode()
    expected = [("delta", {"content": "a\u2028é\x85🙂"}), ("done", {"cost_usd": Decimal("0.10")})]
    for cut in range(len(stream) + 1):
        assert [event[:2] for event in chat.events([stream[:cut], stream[cut:]])] == expected, cut
    assert [event[:2] for event in chat.events(stream[i : i + 1] for i in range(len(stream)))] == expected


# Markdown


class SlowTerminal(io.StringIO):
    """A terminal that needs `seconds` to draw, and a fake clock that includes them."""

    def __init__(self, seconds: float) -> None:
        super().__init__()
        self.seconds, self.now, self.draws = seconds, 0.0, 0

    def flush(self) -> None:
        self.now += self.seconds
        self.draws += 1

    def monotonic(self) -> float:
        self.now += 0.01
        return self.now


def markdown_view(terminal: SlowTerminal, monkeypatch: pytest.MonkeyPatch) -> chat.MarkdownView:
    monkeypatch.setattr(chat, "time", terminal)
    return chat.MarkdownView(Console(file=terminal, force_terminal=True, color_system=None, width=100, height=24))


def final_screen(terminal: SlowTerminal, monkeypatch: pytest.MonkeyPatch, deltas: Iterable[str]) -> str:
    view = markdown_view(terminal, monkeypatch)
    for delta in deltas:
        view.add(delta)
    view.close()
    screen = pyte.Screen(100, 100)
    pyte.Stream(screen).feed(terminal.getvalue().replace("\n", "\r\n"))
    return "\n".join(line.rstrip() for line in screen.display).rstrip()


def test_slow_markdown_block_is_not_redrawn_for_every_delta(monkeypatch: pytest.MonkeyPatch) -> None:
    numbers = [f"{number:03}" for number in range(800)]
    fence = ["```\n", *(number + ("\n" if int(number) % 20 == 19 else " ") for number in numbers)]
    terminal = SlowTerminal(seconds=1.0)

    screen = final_screen(terminal, monkeypatch, fence)

    assert terminal.draws < len(fence) / 10
    assert re.findall(r"\d{3}", screen) == numbers


def test_pending_text_is_drawn_while_the_stream_pauses(monkeypatch: pytest.MonkeyPatch) -> None:
    terminal = SlowTerminal(seconds=0.1)

    def events_with_pauses() -> Iterator[chat.Event]:
        for delta in ("one", " two", " six"):
            yield chat.Event("delta", {"content": delta})
            deadline = time.monotonic() + MAX_WAIT_S
            while delta not in terminal.getvalue():
                assert time.monotonic() < deadline, f"not drawn: {delta}"
                time.sleep(0.01)

    view = markdown_view(terminal, monkeypatch)
    for event in chat.read_in_thread(events_with_pauses(), view):
        view.add(event.data["content"])
    view.close()


def test_streamed_markdown_looks_the_same_for_any_split_into_deltas(monkeypatch: pytest.MonkeyPatch) -> None:
    answer = "one\n\n```\nx = 1\n```\ntwo\n\n| a |\n|---|\n| c |\n\n- three\n\n1. four"
    screens = {
        final_screen(SlowTerminal(0), monkeypatch, deltas) for deltas in (answer, [answer], [answer[:30], answer[30:]])
    }
    assert len(screens) == 1


def test_markdown_link_and_image_show_their_urls_inline(monkeypatch: pytest.MonkeyPatch) -> None:
    shown = final_screen(
        SlowTerminal(0), monkeypatch, ["see [a](https://b.example/) and ![a cat](https://c.example/cat.png)."]
    )
    assert shown == "see a (https://b.example/) and a cat (https://c.example/cat.png)."


# Piped messages


async def test_piped_message_returns_answer_as_plain_text(api: httpx.AsyncClient, fake: AzureOpenAI) -> None:
    fake.reply("**Bold**, `code`\n\n- a 🙂 \u2028")

    done = await run_piped(api, "\ufefftwo\nlines 🙂\n\n")

    assert (done.code, done.out, done.err) == (0, "**Bold**, `code`\n\n- a 🙂 \u2028\n", "")
    assert fake.requests[0].body["messages"][-1]["content"] == "two\nlines 🙂"


async def test_options_reach_the_model_and_show_tokens_prints_unknown_cost(
    serve: Serve, environ: dict[str, str], fake: AzureOpenAI
) -> None:
    fake.model_name = "a-model-that-has-no-price"
    fake.reply("a b c", prompt_tokens=100, completion_tokens=45)
    options = ("--system", "Be kind.", "--max-tokens", "3", "--session", "mine", "--show-tokens", "--no-stream")
    async with serve(environ | {"PRICES": HIGH_PRICES, "AZURE_OPENAI_DEPLOYMENTS": "chat, other"}) as api:
        done = await run_piped(api, "hi", *options, AZURE_OPENAI_MODEL="other")

        assert (await get_json(api, "/api/sessions/mine"))["system"] == "Be kind."
    assert (done.code, done.out) == (0, "a b c\n")
    assert done.err.splitlines()[-1] == "[Tokens used: 145 | Estimated cost: unknown]"
    assert (fake.requests[0].body["model"], fake.requests[0].body["max_completion_tokens"]) == ("other", 3)


@pytest.mark.parametrize("how", ["--stream", "--no-stream"])
async def test_json_option_prints_the_response_body_as_one_line(
    api: httpx.AsyncClient, fake: AzureOpenAI, how: str
) -> None:
    fake.reply("a\u2028b\x85c\x9b31m\x7f\nd\u202e", prompt_tokens=1, completion_tokens=1)

    done = await run_piped(api, "hi", "--json", "--session", "s", how)

    assert (done.code, done.err, len(done.out.splitlines())) == (0, "", 1)
    assert not set(done.out) & set("\x7f\x85\x9b\u2028\u202e")
    body = exact(done.out)
    assert body["message"]["content"] == "a\u2028b\x85c\x9b31m\x7f\nd\u202e"
    assert '"cost_usd":0.000005250,' in done.out
    assert body["session"] == {name: (await get_json(api, "/api/sessions/s"))[name] for name in body["session"]}


@pytest.mark.parametrize(
    ("message", "arguments", "code", "error"),
    [
        (b" \n", (), 1, "No message on standard input"),
        (b"caf\xe9", (), 1, "not UTF-8 text (byte 3)"),
        (b"x" * 300_000, (), 1, "larger than 262144 bytes"),
        (b"hi", ("--deployment", "none"), 1, "There is no deployment 'none' for chat. Choose one of: chat."),
        (b"hi", ("--session", "a/b"), 2, "must be the ID of a session (1 to 64 letters, digits"),
        (b"hi", ("--session", "resp_" + "0" * 39), 2, "is incomplete: conv_ has 32 hex digits behind it, resp_ 40"),
        (b"hi", ("--session", "conv_" + "0" * 32), 1, " does not exist, or belongs to another client key. Set the key"),
        (b"hi", ("--client-key", "wrong"), 1, "Invalid client key for http://127"),
        (b"hi", ("--key", "wrong"), 1, " (401). Set it with --key or CHAT_KEY"),
        (b"hi", ("--key", "wrong"), 1, "If the app was just deployed: wait some minutes, then run `azd deploy`."),
        (b"hi", ("--key", ""), 1, "requires a function key (401)"),
        (b"hi", ("--key", "schlüssel"), 2, "must be visible ASCII"),
        (b"hi", ("--url", "localhost:7071"), 2, "must be a URL such as https://"),
        (b"hi", ("--url", "http://a..b"), 2, "must be a URL such as https://"),
        (b"hi", ("--system", os.fsdecode(b"caf\xe9")), 2, "must be UTF-8 text"),
        (b"hi", ("--session", os.fsdecode(b"caf\xe9")), 2, "must be UTF-8 text"),
        (b"hi", ("--wait", "nan"), 2, "must be a number of seconds"),
        (b"hi", ("--max-tokens", "0"), 2, "must be a whole number above 0"),
    ],
    ids=lambda value: str(value)[:30],
)
async def test_invalid_message_or_option_exits_with_an_error_message(
    api: httpx.AsyncClient, fake: AzureOpenAI, message: bytes, arguments: tuple[str, ...], code: int, error: str
) -> None:
    done = await run_piped(api, message, *arguments)

    assert (done.code, done.out) == (code, "")
    assert error in " ".join(done.err.split())
    assert fake.requests == []


async def test_session_of_another_caller_prints_an_error(serve: Serve, environ: dict[str, str]) -> None:
    error = (
        "Session s is owned by another caller or is being deleted."
        " Set its client key with --client-key, or choose another with --session."
    )
    async with serve(environ | {"CLIENT_KEYS": line("ann", "k" * 32)}) as api:
        response = await api.post("/api/chat", json={"message": "hi", "session_id": "s"}, headers={"api-key": "k" * 32})
        assert response.status_code == 200

        done = await run_piped(api, "hi", "--session", "s")
        async with open_terminal(api, "--session", "s") as terminal:
            await terminal.enter("hi")
            await terminal.shows(error)

    assert (done.code, done.out, " ".join(done.err.split())) == (1, "", error)


async def test_stream_that_breaks_off_prints_the_partial_answer_and_exits_1(
    api: httpx.AsyncClient, fake: AzureOpenAI
) -> None:
    fake.fault("error_event")

    done = await run_piped(api, "give me more")

    assert (done.code, done.out) == (1, "echo:\n")
    assert "ended with an error" in done.err


@pytest.mark.parametrize(
    ("closed", "code", "error"), [("<&-", 1, "No message on standard input"), (">&-", 0, ""), ("2>&-", 0, "")]
)
async def test_closed_standard_streams_are_treated_as_dev_null(
    api: httpx.AsyncClient, fake: AzureOpenAI, closed: str, code: int, error: str
) -> None:
    process = await asyncio.create_subprocess_exec(
        *("/bin/sh", "-c", f'exec "$@" {closed}', "sh", sys.executable, str(ROOT / "chat.py"), "--show-tokens"),
        *("--url", str(api.base_url), "--key", FUNCTION_KEY),
        stdin=subprocess.PIPE,
        stdout=subprocess.PIPE,
        stderr=subprocess.PIPE,
    )
    done = await wait_for_result(process, "hi")

    assert (done.code, done.out) == (code, "echo: hi\n" if closed == "2>&-" else "")
    assert error in done.err


@pytest.mark.skipif(not Path("/dev/full").exists(), reason="/dev/full exists only on Linux")
async def test_full_disk_prints_a_one_line_error(api: httpx.AsyncClient, fake: AzureOpenAI) -> None:
    with Path("/dev/full").open("wb") as full:  # noqa: ASYNC230 - does not block
        process = await asyncio.create_subprocess_exec(
            *(sys.executable, "chat.py", "--url", str(api.base_url), "--key", FUNCTION_KEY),
            cwd=ROOT,
            stdin=subprocess.PIPE,
            stdout=full,
            stderr=subprocess.PIPE,
        )
        _, error = await process.communicate(b"hi")
    assert (process.returncode, error.decode()) == (1, "Cannot write the answer: No space left on device.\n")


async def test_closed_output_pipe_exits_1_without_an_error_message(api: httpx.AsyncClient, fake: AzureOpenAI) -> None:
    process = await start_chat(api, "--session", "s")
    with fake.hold(after=1) as hold:
        assert process.stdin and process.stdout  # noqa: PT018
        process.stdin.write(b"hi")
        process.stdin.close()
        await hold.until_reached()
        process.stdout._transport.close()  # type: ignore[attr-defined]
    done = await wait_for_result(process)

    assert (done.code, done.err) == (1, "")
    assert len(fake.meter) == 1


@pytest.mark.parametrize("streamed", [True, False])
async def test_ctrl_c_exits_130_when_piped_and_stops_the_turn(
    api: httpx.AsyncClient, fake: AzureOpenAI, tables: Tables, *, streamed: bool
) -> None:
    process = await start_chat(api, "--session", "s", "--stream" if streamed else "--no-stream")
    assert process.stdin and process.stdout  # noqa: PT018
    with fake.hold(after=1) as hold:
        process.stdin.write(b"hi")
        process.stdin.write_eof()
        await hold.until_reached()
        if streamed:
            assert await process.stdout.read(4) == b"echo"
        process.send_signal(signal.SIGINT)
        done = await wait_for_result(process)
        assert [call.outcome for call in fake.meter] == ["hang_up"]

    assert (done.code, done.out) == (130, "\n" if streamed else "")
    assert STOPPED.fullmatch(done.err), done.err
    assert [entry.call.state for entry in await closed_ledger(tables)] == [State.STOPPED]
    await assert_conserved(tables, fake)


def test_missing_packages_print_how_to_run_it() -> None:
    done = subprocess.run([sys.executable, "-S", ROOT / "chat.py"], capture_output=True, text=True)

    assert (done.returncode, done.stdout) == (1, "")
    assert done.stderr.splitlines() == [
        "chat.py needs the package httpx: run it as `make chat` or `.venv/bin/python chat.py`."
    ]


# A terminal


async def test_conversation_and_commands_in_a_terminal(
    serve: Serve, environ: dict[str, str], fake: AzureOpenAI
) -> None:
    fake.reply("Hello.", prompt_tokens=100, completion_tokens=45)
    fake.reply("Bye.", prompt_tokens=7, completion_tokens=4, cached_tokens=2)
    async with (
        serve(environ | {"PRICES": HIGH_PRICES, "REGION_NAME": "eastus"}) as api,
        open_terminal(api, "--session", "mine") as terminal,
    ):
        await terminal.enter("hi")
        await terminal.shows("Connected to: chat (eastus)", "Hello.\n[Tokens used: 145 | Estimated cost: $0.0044]")
        await terminal.enter("thanks")
        await terminal.wait_for_prompt()
        for command, output in {
            "tokens": "156 tokens | 107 in prompts, 2 of them cached | 49 in answers, 0 of them reasoning",
            "/cost": "$0.004776",
            "History": "> hi\nHello.\n> thanks\nBye.",
            "help": "Alt-Enter",
            "/shut": "Unknown command /shut",
        }.items():
            await terminal.enter(command)
            await terminal.shows(output)
        await terminal.wait_for_prompt()
        terminal.type(CTRL_D)

        assert await terminal.wait_for_exit() == 0
        await terminal.shows("Total session: 156 tokens | $0.0048\nContinue it with: --session mine")
        assert terminal.lines[0] == "Connected to: chat (eastus)"
    assert len(fake.requests) == 2


async def test_session_option_resumes_and_clear_command_clears_it(api: httpx.AsyncClient, fake: AzureOpenAI) -> None:
    await answer(api, "I am Ada.", "mine")
    async with open_terminal(api, "--session", "mine", "--no-show-tokens") as terminal:
        await terminal.shows("Session mine, with chat: 1 turn, ")
        await terminal.enter("Who am I?")
        await terminal.shows("echo: Who am I?")
        assert [message["content"] for message in fake.requests[-1].body["messages"]][1:3] == [
            "I am Ada.",
            "echo: I am Ada.",
        ]
        await terminal.enter("clear")
        await terminal.shows("Cleared")
        await terminal.enter("And now?")
        await terminal.shows("echo: And now?")
        assert len(fake.requests[-1].body["messages"]) == 2
        await terminal.enter("/exit")

        assert await terminal.wait_for_exit() == 0
        await terminal.shows("Total session: ")
    assert "Tokens used" not in terminal.text
    assert (await get_json(api, "/api/sessions/mine"))["turns"] == 3


@pytest.mark.parametrize(
    ("state", "finish_reason", "answered", "note"),
    [
        ("settled", "stop", True, None),
        ("settled", "error", True, "Broke off"),
        ("unaccounted", None, False, "Interrupted"),
        ("unaccounted", "error", True, "Interrupted"),
        ("unaccounted", "content_filter", False, "Stopped by the content filter"),
        ("unaccounted", "stop", True, "usage was not reported"),
        ("failed", "error", False, "no cost"),
        ("open", None, False, "Still running"),
    ],
)
def test_history_says_why_a_turn_has_no_answer_or_no_cost(
    state: str, finish_reason: str | None, answered: bool, note: str | None
) -> None:
    messages = [{"role": "user", "content": "hi"}, {"role": "assistant", "content": "well"}][: 1 + answered]
    shown = chat.turn_note({"state": state, "finish_reason": finish_reason, "messages": messages})
    assert shown == note if note is None else note in str(shown)


async def test_history_shows_tool_calls_of_every_kind(api: httpx.AsyncClient, tables: Tables) -> None:
    await answer(api, "hi", "other")  # creates the tables
    custom = {"id": "c1", "type": "custom", "custom": {"name": "code", "input": "print(1)"}}
    usual = {"id": "c2", "type": "function", "function": {"name": "look", "arguments": "{}"}}
    older = {"name": "ask", "arguments": "[]"}  # the deprecated form; models never send both
    await fill(tables, 1, content=None, tool_calls=[custom, usual], function_call=older)
    async with open_terminal(api, "--session", "s") as terminal:
        await terminal.enter("history")
        await terminal.shows("[calls code: print(1)]\n[calls look]\n[calls ask: []]")


async def test_session_of_an_agent_is_continued_with_its_client_key(
    serve: Serve, environ: dict[str, str], fake: AzureOpenAI, tables: Tables
) -> None:
    async with serve(environ | KEYS) as api, connected(api) as sdk:
        conversation = await use_two_tools(sdk, fake)
        await sdk.conversations.items.create(
            conversation, items=[{"type": "message", "role": "user", "content": "Celsius, please."}]
        )
        async with open_terminal(api, "--session", conversation, CHAT_CLIENT_KEY=ANN) as terminal:
            await terminal.enter("history")
            await terminal.shows(
                f"> {QUESTION}\n[calls get_weather: city: Paris, days: 3]\n[calls get_weather: city: Oslo]\n"
                "[result of get_weather: celsius: 18, sky: clear]\n[result of get_weather: 7 °C, rain]\n"
                "Yes: 18 °C in Paris, 7 °C in Oslo.\n"
                "> Celsius, please.\n(Added by a program, without an answer; no cost.)"
            )
            await terminal.enter("And Rome?")
            await terminal.shows("echo: And Rome?")
            await terminal.enter("cost")
            session = conversation.removeprefix("conv_")
            shown = await api.get(f"/api/sessions/{session}", headers={"api-key": ANN})
            await terminal.shows(f"${exact(shown.text)['cost_usd']:f}")
            await terminal.enter("quit")
            await terminal.shows(f"Continue it with: --session {session}")
        assert [sent["role"] for sent in fake.requests[-1].body["messages"][-3:]] == ["assistant", "user", "user"]

        response = await sdk.responses.create(model="chat", input="Ping.")
        done = await run_piped(api, "Again.", "--session", response.id, "--client-key", ANN)
        assert (done.code, done.out) == (0, "echo: Again.\n")
        assert len(fake.requests[-1].body["messages"]) == 3
        branch = await sdk.responses.create(model="chat", input="Other.", previous_response_id=response.id)
        async with open_terminal(api, "--session", branch.id, "--client-key", ANN) as terminal:
            await terminal.shows("with chat: 2 turns, 1 since the branch, ")
        refused = await run_piped(api, "Again.", "--session", response.id)
        assert (refused.code, refused.out) == (1, "")
        assert f"{response.id} does not exist, or belongs to another client key." in refused.err
        await assert_conserved(tables, fake)


async def test_own_sessions_are_listed_searched_and_opened_by_number(
    serve: Serve, environ: dict[str, str], fake: AzureOpenAI
) -> None:
    async with serve(environ | KEYS) as api:
        key = {"api-key": ANN}
        for message in ("apples", "pears"):
            assert (await api.post("/api/chat", json={"message": message}, headers=key)).status_code == 200
        assert (await api.post("/api/chat", json={"message": "without owner"})).status_code == 200
        async with open_terminal(api, "--system", "Be brief.", CHAT_CLIENT_KEY=ANN) as terminal:
            await terminal.enter("/open 1")
            await terminal.shows("`sessions` lists your sessions with their numbers.")
            await terminal.enter("sessions")
            day = re.escape(f"{datetime.now().astimezone():%Y-%m-%d}")
            await terminal.shows("/open NUMBER continues one of them.")
            assert re.search(rf" 1  {day}  pears \| 1 turn \| \$0\.0\d+\n 2  {day}  apples \| 1 turn \|", terminal.text)
            assert "without owner" not in terminal.text
            await terminal.enter("/open 3")
            await terminal.shows("Choose a number from 1 to 2: /open 1")
            listed = (await api.get("/api/sessions", headers=key)).json()["sessions"]
            await api.delete(f"/api/sessions/{listed[0]['session_id']}", headers=key)
            await terminal.enter("/open 1")
            await terminal.shows("This session has been deleted; the current one goes on.")
            await terminal.enter("/Sessions PLE")
            await terminal.shows(f" 1  {datetime.now().astimezone():%Y-%m-%d}  apples")
            await terminal.enter("/open 1")
            await terminal.shows(", with chat: 1 turn, ", "`history` shows its last turns.")
            await terminal.enter("more")
            await terminal.shows("echo: more")
            await terminal.enter("/sessions nowhere")
            await terminal.shows("No session has 'nowhere' in its title.")
        assert [m["content"] for m in fake.requests[-1].body["messages"][1:]] == ["apples", "echo: apples", "more"]
        async with open_terminal(api) as terminal:
            await terminal.enter("/sessions")
            await terminal.shows("Only your own sessions are listed", "have no owner.")
        assert len(fake.requests) == 4


async def test_commands_in_a_new_session_report_no_messages(api: httpx.AsyncClient, fake: AzureOpenAI) -> None:
    async with open_terminal(api, "--session", "new") as terminal:
        for command in ("cost", "clear", "quit"):
            await terminal.enter(command)

        assert await terminal.wait_for_exit() == 0
    assert terminal.text.count("No messages yet: 0 tokens | $0.00") == 4
    assert fake.requests == []


async def test_deltas_appear_while_streaming_and_typed_keys_wait_for_the_prompt(
    api: httpx.AsyncClient, fake: AzureOpenAI
) -> None:
    fake.reply("one two six ten")
    async with open_terminal(api) as terminal:
        with fake.hold(after=2) as hold:
            await terminal.enter("count")
            await hold.until_reached()
            await terminal.shows("> count\none two")
            terminal.type("typed ahead")
            await asyncio.sleep(0.3)  # an echo would appear immediately
            assert "six" not in terminal.text
            assert "typed" not in terminal.text
        await terminal.shows("one two six ten\n[Tokens used: ", "> typed ahead")


async def test_markdown_is_rendered_in_a_terminal(api: httpx.AsyncClient, fake: AzureOpenAI) -> None:
    fake.reply(
        "A **strong** and <b>literal</b> [link](http://evil.example)\nnew line\n\n- one\n- two\n\n"
        "```python\nx = 1\n```\n\n| a | b |\n|---|---|\n| c | d |\n"
    )
    async with open_terminal(api) as terminal:
        await terminal.enter("show")
        await terminal.shows("[Tokens used")

        shown = terminal.text.partition("> show\n")[2].partition("\n[Tokens")[0].split("\n")
        assert [line.strip() for line in shown if line and "─" not in line and "━" not in line] == [
            "A strong and <b>literal</b> link (http://evil.example)",
            "new line",
            "• one",
            "• two",
            "x = 1",
            "a  b",
            "c  d",
        ]
        assert terminal.style_of("strong").bold
        assert not terminal.style_of("and").bold


async def test_streamed_answer_longer_than_the_screen_appears_exactly_once(
    api: httpx.AsyncClient, fake: AzureOpenAI
) -> None:
    blocks = [f"line {number}\n" for number in range(30)] + [f"- item {number}" for number in range(30)]
    fake.reply("\n".join(blocks))
    numbers = [*map(str, range(30))]
    async with open_terminal(api, rows=12) as terminal:
        with fake.hold(after=len(pieces("\n".join(blocks[:50])))) as hold:
            await terminal.enter("show")
            await hold.until_reached()
            await terminal.shows("item 19")
            assert [line.split()[1] for line in terminal.lines if line.startswith("line")] == numbers
        await terminal.shows("[Tokens used")

    shown = [line.split()[-2:] for line in terminal.lines if "item" in line or "line" in line]
    assert shown == [*([kind, number] for kind in ("line", "item") for number in numbers)]


async def test_ctrl_c_stops_the_answer_and_its_turn_but_not_the_program(
    api: httpx.AsyncClient, fake: AzureOpenAI, tables: Tables
) -> None:
    fake.reply("one two six ten")
    async with open_terminal(api, "--session", "s") as terminal:
        with fake.hold(after=2) as hold:
            await terminal.enter("count")
            await hold.until_reached()
            await terminal.shows("one two")
            terminal.type(CTRL_C)
            await terminal.shows("one two\nStopped. It costs between $0.00 and $0.00")
            await terminal.wait_for_prompt()
            assert [call.outcome for call in fake.meter] == ["hang_up"]

        await terminal.enter("more")
        await terminal.shows("echo: more\n[Tokens used")
        await terminal.enter("history")
        await terminal.shows("> count\none two\n(Stopped. It costs between")
        await terminal.wait_for_prompt()
        terminal.type(CTRL_C + CTRL_D)

        assert await terminal.wait_for_exit() == 0
        tokens = (await get_json(api, "/api/sessions/s"))["total_tokens"]
        await terminal.shows("Press Ctrl-D to quit.", f"Total session: {tokens} tokens | $")
        await terminal.shows(" | 1 call stopped, between $0.00 and $0.00")
    assert [m["content"] for m in fake.requests[1].body["messages"][1:]] == ["count", "one two", "more"]
    await assert_conserved(tables, fake)


async def test_second_ctrl_c_ends_the_program_while_the_answer_is_being_stopped(
    api: httpx.AsyncClient, fake: AzureOpenAI, network: TcpProxy
) -> None:
    stop = network.on(Match("POST", "/stop$"), Stall())
    async with open_terminal(network.endpoint, "--session", "s") as terminal:
        with fake.hold(after=1) as hold:
            await terminal.enter("count")
            await hold.until_reached()
            await terminal.shows("echo")
            terminal.type(CTRL_C)
            await stop.gate.until_reached()
            terminal.type(CTRL_C)

            assert await terminal.wait_for_exit() == 130
        await terminal.shows("Left before the answer was stopped.\nContinue it with: --session s")


async def test_ctrl_c_waits_for_a_turn_that_another_instance_stops(
    api: httpx.AsyncClient, fake: AzureOpenAI, network: TcpProxy
) -> None:
    network.on(Match("POST", "/stop$"), Answer(202, b'{"session_id": "s", "turn": 1, "state": "stopping"}'))
    async with open_terminal(network.endpoint, "--session", "s") as terminal:
        with fake.hold(after=1) as hold:
            await terminal.enter("count")
            await hold.until_reached()
            await terminal.shows("echo")
            terminal.type(CTRL_C)
            await terminal.shows("Another instance of the server runs the turn: it stops within 10 s. Ctrl-C leaves.")
            await api.post("/api/sessions/s/stop")
            await terminal.shows("Stopped. It costs between")
            await terminal.wait_for_prompt()


async def test_ctrl_c_does_not_stop_the_turn_that_a_message_waits_for(
    api: httpx.AsyncClient, fake: AzureOpenAI
) -> None:
    async with open_terminal(api, "--session", "s") as terminal:
        await terminal.wait_for_prompt()
        with fake.hold(after=1) as hold:
            async with streaming(api, "long", "s") as stream:
                await hold.until_reached()
                terminal.type(f"hi{ENTER}")
                await terminal.shows("Another turn of this session is still running.")
                terminal.type(CTRL_C)
                await terminal.shows("Stopped. The server had not accepted the message: it costs nothing.")
                hold.release()
                assert (await stream.rest())[-1].data["finish_reason"] == "stop"


async def test_ctrl_c_reports_a_stop_that_fails(api: httpx.AsyncClient, fake: AzureOpenAI, network: TcpProxy) -> None:
    network.on(Match("POST", "/stop$"), Answer(502, b"<html>"))
    async with open_terminal(network.endpoint, "--session", "s") as terminal:
        with fake.hold(after=1) as hold:
            await terminal.enter("count")
            await hold.until_reached()
            await terminal.shows("echo")
            terminal.type(CTRL_C)
            await terminal.shows("The answer could not be stopped: the server completes and counts it. The gateway")
            await terminal.wait_for_prompt()


async def test_multiline_input_and_message_recall_with_arrow_up(api: httpx.AsyncClient, fake: AzureOpenAI) -> None:
    async with open_terminal(api) as terminal:
        await terminal.enter(f"one{ALT_ENTER}two")
        await terminal.shows("echo: one\ntwo\n[Tokens")
        await terminal.enter("\x1b[200~three\n\n  four\x1b[201~")
        await terminal.enter(f"{UP}!")
        await terminal.wait_for_prompt()

    messages = [request.body["messages"][-1]["content"] for request in fake.requests]
    assert messages == ["one\ntwo", "three\n\n  four", "three\n\n  four!"]


async def test_terminal_control_sequences_in_an_answer_are_removed(api: httpx.AsyncClient, fake: AzureOpenAI) -> None:
    fake.reply(CONTROL_SEQUENCES)
    fake.reply(CONTROL_SEQUENCES)
    fake.chunk_tokens = 100

    done = await run_piped(api, "show", "--session", "s")
    async with open_terminal(api, "--session", "s") as terminal:
        await terminal.enter("show")
        await terminal.shows("Tokens used")
        await terminal.enter("history")
        await terminal.wait_for_prompt()
        await terminal.enter("quit")
        await terminal.wait_for_exit()

    assert done.out == "red  &#x202e;turned back\nend\n"
    assert terminal.text.count("red  turned back\nend") == 3
    for sequence in ("\x1b]", "\x9b", "\x1b[2J", "\x08\x7f", "\u202e"):
        assert sequence.encode() not in terminal.raw, sequence


async def test_dumb_terminal_gets_plain_text(api: httpx.AsyncClient, fake: AzureOpenAI) -> None:
    fake.reply("**a**")
    async with open_terminal(api, TERM="dumb") as terminal:
        terminal.type(f"hi{ENTER}")
        await terminal.shows("Tokens used")
    assert "**a**\n[Tokens" in terminal.text


# Failures and retries


async def test_connection_refused_prints_how_to_start_the_server() -> None:
    url = f"http://127.0.0.1:{free_port()}"
    error = (
        f"Cannot connect to {url} ([Errno 111] Connection refused). Start the server with `make run`, or set its URL"
    )
    assert (await run_piped(url)).err.startswith(error)
    async with open_terminal(url) as terminal:
        assert await terminal.wait_for_exit() == 1
        await terminal.shows("Start the server with `make run`")


@pytest.mark.parametrize(
    ("url", "variables", "error"),
    [
        ("http://a.invalid", {"ALL_PROXY": "socks5://127.0.0.1:1080"}, "Using SOCKS proxy"),
        ("http://a.invalid", {"ALL_PROXY": "socks://127.0.0.1:1080/"}, "Unknown scheme for proxy"),
        ("https://a.invalid", {"SSL_CERT_FILE": "/not/there"}, "No such file or directory"),
    ],
)
async def test_invalid_proxy_or_certificate_variable_prints_an_error(
    url: str, variables: dict[str, str], error: str
) -> None:
    done = await run_piped(url, "hi", **variables)

    assert (done.code, done.out) == (1, "")
    assert done.err.startswith("Invalid proxy or certificate setting in the environment: ")
    assert error in done.err


async def test_invalid_function_key_exits_1_before_the_prompt(api: httpx.AsyncClient) -> None:
    async with open_terminal(api, CHAT_KEY="wrong") as terminal:
        assert await terminal.wait_for_exit() == 1
        await terminal.shows("Invalid function key", "(401)")


@pytest.mark.parametrize(
    ("reply", "error"),
    [
        (Answer(200, b"<html>"), "not the chat API"),
        (Answer(404, b"<html>"), "is not the chat API (HTTP 404); check --url"),
        (Answer(301, b"", (("location", "https://there"),)), "redirects to https://there"),
    ],
)
async def test_server_that_is_not_the_chat_api_prints_an_error(network: TcpProxy, reply: Answer, error: str) -> None:
    network.on(POST, reply)

    done = await run_piped(network.endpoint)

    assert (done.code, done.out) == (1, "")
    assert error in done.err


@pytest.mark.parametrize("path", ["/chat", "/openai/v1", "/api"])
async def test_url_with_a_path_is_reported(network: TcpProxy, path: str) -> None:
    done = await run_piped(f"{network.endpoint}{path}")

    assert (done.code, done.out) == (1, "")
    assert f"The server at {network.endpoint}{path} is not the chat API (no route {path}/api/" in done.err
    assert "; check --url." in done.err


async def test_lost_connection_is_retried_with_the_same_idempotency_key_and_billed_once(
    api: httpx.AsyncClient, fake: AzureOpenAI, network: TcpProxy, tables: Tables
) -> None:
    failures: list[Action] = [Close(), Close(after_answer=True), Answer(502, b"<html>bad gateway")]
    for nth, failure in enumerate(failures, start=1):
        network.on(POST, failure, nth=nth)

    done = await run_piped(network.endpoint, "hi", "--session", "s", "--no-stream")

    assert (done.code, done.out) == (0, "echo: hi\n")
    assert done.err.splitlines() == [
        "The connection was lost. Retrying as the same request, so it is not billed twice. Ctrl-C cancels."
    ]
    assert network.count(POST) == 2
    assert len(fake.meter) == len(await turns(api)) == 1
    await assert_conserved(tables, fake)


async def test_lost_stream_is_retried_and_continues_the_shown_answer(
    api: httpx.AsyncClient, fake: AzureOpenAI, network: TcpProxy, tables: Tables
) -> None:
    fake.reply("one two six ten")
    async with open_terminal(network.endpoint, "--session", "s") as terminal:
        with fake.hold(after=2) as hold:
            await terminal.enter("count")
            await hold.until_reached()
            await terminal.shows("one two")
            network.down()
            network.up()
            await terminal.shows("The connection was lost.", "Another turn of this session is still running.")
        await terminal.shows("one two six ten\n[Tokens used")

    assert terminal.text.count("one two") == 1
    assert len(fake.meter) == len(await turns(api)) == 1
    await assert_conserved(tables, fake)


async def test_resent_message_after_server_outage_replays_the_stored_answer(
    api: httpx.AsyncClient, fake: AzureOpenAI, network: TcpProxy, tables: Tables
) -> None:
    async with open_terminal(network.endpoint, "--session", "s", "--wait", "0.3") as terminal:
        with fake.hold(after=1) as hold:
            await terminal.enter("hi")
            await hold.until_reached()
            network.down()
            await terminal.shows("Cannot connect to", "The message may still have been answered and counted")
        network.up()

        async def settled() -> bool | None:
            return (await turns(api))[0]["state"] == "settled" or None

        await until(settled)
        await terminal.wait_for_prompt()
        terminal.type(UP + ENTER)
        await terminal.shows("echo: hi\n[Tokens used")

    assert len(fake.meter) == len(await turns(api)) == 1
    await assert_conserved(tables, fake)


async def test_session_id_is_printed_on_exit_even_if_totals_are_unavailable(network: TcpProxy) -> None:
    async with open_terminal(network.endpoint, "--session", "s") as terminal:
        await terminal.wait_for_prompt()
        network.down()
        await terminal.enter("quit")

        assert await terminal.wait_for_exit() == 0
        await terminal.shows("Cannot connect to", "Continue it with: --session s")


async def test_busy_session_is_retried_until_the_other_turn_ends(api: httpx.AsyncClient, fake: AzureOpenAI) -> None:
    with fake.hold(after=1) as hold:
        async with streaming(api, "long", "s") as stream:
            await hold.until_reached()
            without_wait = await run_piped(api, "hi", "--session", "s", "--wait", "0")
            waiting = await start_chat(api, "--session", "s")
            assert waiting.stdin and waiting.stderr  # noqa: PT018
            waiting.stdin.write(b"hi")
            waiting.stdin.write_eof()
            notice = await waiting.stderr.readline()
            hold.release()
            await stream.rest()
    done = await wait_for_result(waiting)

    assert (without_wait.code, without_wait.out) == (1, "")
    assert without_wait.err.startswith("Another turn of this session is running. Wait for it to finish")
    assert notice.startswith(b"Another turn of this session is still running. Waiting until it ends.")
    assert (done.code, done.out, done.err) == (0, "echo: hi\n", "")
    assert [turn["state"] for turn in await turns(api)] == ["settled", "settled"]


async def test_429_is_retried_after_retry_after_seconds(api: httpx.AsyncClient, fake: AzureOpenAI) -> None:
    fake.fault(429, retry_after=1)

    done = await run_piped(api)

    assert (done.code, done.out) == (0, "echo: hi\n")
    assert done.err.splitlines() == ["The model service's rate limit is exceeded. Retrying in 1 s. Ctrl-C cancels."]
    assert len(fake.meter) == 1


@pytest.mark.parametrize("body", [b"", b"<html>Web App - Unavailable</html>"])
@pytest.mark.parametrize(
    ("status", "problem"),
    [
        (403, "The platform or a gateway in front of {url} refused (403)."),
        (503, "The gateway in front of {url} returned 503."),
    ],
)
async def test_answer_of_the_platform_after_a_deployment_says_to_wait(
    network: TcpProxy, status: int, problem: str, body: bytes
) -> None:
    network.on(POST, Answer(status, body))
    done = await run_piped(network.endpoint, "hi", "--wait", "0")
    wait = "If the app was just deployed: wait some minutes, then run `azd deploy`."
    assert (done.code, done.out) == (1, "")
    assert done.err.startswith(f"{problem.format(url=network.endpoint)} {wait}")


async def test_429_of_the_platform_without_a_body_is_retried(
    api: httpx.AsyncClient, fake: AzureOpenAI, network: TcpProxy
) -> None:
    network.on(POST, Answer(429, b"", (("retry-after", "1"),)))
    done = await run_piped(network.endpoint)
    assert (done.code, done.out) == (0, "echo: hi\n")
    assert f"{network.endpoint} is overloaded (429). Retrying in 1 s." in done.err

    network.on(POST, Answer(429, b""))
    done = await run_piped(network.endpoint, "hi", "--wait", "0")
    assert (done.code, done.out) == (1, "")
    assert done.err.startswith(f"{network.endpoint} is overloaded (429).")


async def test_retry_after_longer_than_wait_gives_up_immediately(api: httpx.AsyncClient, fake: AzureOpenAI) -> None:
    fake.fault(429, retry_after=3600)

    done = await run_piped(api)

    assert (done.code, done.out) == (1, "")
    assert done.err.endswith("Retry-After is 3600 s. Gave up: --wait allows 60 s in total.\n")
    assert "may still have been answered" not in done.err


async def test_ctrl_c_during_rate_limit_wait_reports_that_it_costs_nothing(
    api: httpx.AsyncClient, fake: AzureOpenAI
) -> None:
    fake.fault(429, retry_after=30)
    async with open_terminal(api) as terminal:
        await terminal.enter("hi")
        await terminal.shows("The model service's rate limit is exceeded. Retrying in 30 s")
        terminal.type(CTRL_C)
        await terminal.shows("it costs nothing")
        await terminal.wait_for_prompt()


async def test_unaccounted_call_appears_in_the_session_total(
    serve: Serve, environ: dict[str, str], fake: AzureOpenAI
) -> None:
    fake.fault("error_event")
    async with serve(environ) as api, open_terminal(api) as terminal:
        await terminal.enter("hi")
        await terminal.shows("ended with an error")
        await terminal.enter("quit")
        await terminal.wait_for_exit()
        await terminal.shows("Total session: 0 tokens | $0.00 | 1 call unaccounted, at most $0.00")
