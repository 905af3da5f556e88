"""chat.py, the terminal client, against the app itself: at a terminal, at a pipe, and where the network fails."""

import asyncio
import io
import os
import re
import signal
import subprocess
import sys
import time
from collections.abc import Iterable, Iterator
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
from tests.conftest import FUNCTION_KEY, Serve, Tables
from tests.support.azure_openai import AzureOpenAI
from tests.support.azure_openai_answers import pieces
from tests.support.conservation import assert_conserved
from tests.support.loopback import PATIENCE
from tests.support.proxy import Action, Answer, Close, Match, TcpProxy
from tests.support.talking import JSON, answer, exact, fill, look, streaming, until
from tests.support.terminal import ALT_ENTER, CTRL_C, CTRL_D, ENTER, UP, ended, piped, somebody, started

POST = Match("POST", "/api/chat")
DEAR = '{"chat": {"input": 8, "output": 80}}'
TRICKS = "\x1b]0;title\x07\x1b[31mred\x1b[0m\x9b2J\x08\x7f \x1b]52;c;Y2xpcA==\x1b\\ &#x202e;turned \u202eback\r\nend"


@pytest.fixture
def network(api: httpx.AsyncClient) -> Iterator[TcpProxy]:
    """What stands between the client and the app."""
    with TcpProxy(urlsplit(str(api.base_url)).port or 0) as proxy:
        yield proxy


async def turns(api: httpx.AsyncClient, session: str = "s") -> list[JSON]:
    """Oldest first."""
    return [*reversed((await look(api, f"/api/sessions/{session}/messages"))["turns"])]


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
def test_an_amount_has_two_significant_digits_at_least(amount: Decimal | int | None, shown: str) -> None:
    assert chat.usd(amount) == shown


TOTALS = {"cost_usd": Decimal("0.002"), "unpriced_turns": 0, "unaccounted_calls": 0, "unaccounted_usd": 0}


@pytest.mark.parametrize(
    ("totals", "shown"),
    [
        ({}, "$0.0020"),
        ({"cost_usd": 0}, "$0.00"),
        ({"busy": True}, "$0.0020 | a turn is still running"),
        ({"unpriced_turns": 1}, "$0.0020 | 1 turn at a price that is not known"),
        ({"cost_usd": 0, "unpriced_turns": 2}, "unknown | 2 turns at a price that is not known"),
        (
            {"unaccounted_calls": 2, "unaccounted_usd": Decimal("0.01")},
            "$0.0020 | 2 calls unaccounted for, at most $0.0100",
        ),
        ({"unaccounted_calls": 1}, "$0.0020 | 1 call unaccounted for, at a price that is not known"),
    ],
)
def test_what_is_not_in_the_cost_is_told_apart(totals: dict[str, Any], shown: str) -> None:
    assert chat.cost_line(TOTALS | totals) == shown


# Server-sent events


@pytest.mark.parametrize("end", ["\n", "\r\n", "\r"])
def test_events_are_the_same_wherever_the_stream_is_cut(end: str) -> None:
    delta = ': hello\n\nevent: delta\ndata: {"content":"a\u2028é\x85🙂"}\n\n'
    text = delta + 'event: done\ndata: {"cost_usd":\ndata:0.10}\n\n: x\n'
    stream = text.replace("\n", end).encode()
    told = [("delta", {"content": "a\u2028é\x85🙂"}), ("done", {"cost_usd": Decimal("0.10")})]
    for cut in range(len(stream) + 1):
        assert [event[:2] for event in chat.events([stream[:cut], stream[cut:]])] == told, cut
    assert [event[:2] for event in chat.events(stream[i : i + 1] for i in range(len(stream)))] == told


# Drawing


class Paper(io.StringIO):
    """A terminal that takes so many seconds for a drawing, and the clock which shows that."""

    def __init__(self, seconds: float) -> None:
        super().__init__()
        self.seconds, self.now, self.drawn = seconds, 0.0, 0

    def flush(self) -> None:
        self.now += self.seconds
        self.drawn += 1

    def monotonic(self) -> float:
        self.now += 0.01
        return self.now


def growing(paper: Paper, monkeypatch: pytest.MonkeyPatch) -> chat.Growing:
    monkeypatch.setattr(chat, "time", paper)
    return chat.Growing(Console(file=paper, force_terminal=True, color_system=None, width=100, height=24))


def drawn(paper: Paper, monkeypatch: pytest.MonkeyPatch, pieces_of: Iterable[str]) -> str:
    """What is on the screen at the end."""
    view = growing(paper, monkeypatch)
    for piece in pieces_of:
        view.hear(piece)
    view.end()
    screen = pyte.Screen(100, 100)
    pyte.Stream(screen).feed(paper.getvalue().replace("\n", "\r\n"))
    return "\n".join(line.rstrip() for line in screen.display).rstrip()


def test_a_long_block_that_is_slow_to_draw_is_not_drawn_for_every_piece(monkeypatch: pytest.MonkeyPatch) -> None:
    numbers = [f"{number:03}" for number in range(800)]
    fence = ["```\n", *(number + ("\n" if int(number) % 20 == 19 else " ") for number in numbers)]
    paper = Paper(seconds=1.0)

    screen = drawn(paper, monkeypatch, fence)

    assert paper.drawn < len(fence) / 10
    assert re.findall(r"\d{3}", screen) == numbers


def test_a_pause_hides_no_word_however_slow_the_drawing_was(monkeypatch: pytest.MonkeyPatch) -> None:
    paper = Paper(seconds=0.1)

    def pausing() -> Iterator[chat.Event]:
        for piece in ("one", " two", " six"):
            yield chat.Event("delta", {"content": piece})
            deadline = time.monotonic() + PATIENCE
            while piece not in paper.getvalue():
                assert time.monotonic() < deadline, f"not drawn: {piece}"
                time.sleep(0.01)

    view = growing(paper, monkeypatch)
    for event in chat.ahead(pausing(), view):
        view.hear(event.data["content"])
    view.end()


def test_an_answer_looks_the_same_in_whatever_pieces_it_came(monkeypatch: pytest.MonkeyPatch) -> None:
    answer = "one\n\n```\nx = 1\n```\ntwo\n\n| a |\n|---|\n| c |\n\n- three\n\n1. four"
    looks = {drawn(Paper(0), monkeypatch, way) for way in (answer, [answer], [answer[:30], answer[30:]])}
    assert len(looks) == 1


def test_an_image_is_shown_where_it_stands_and_where_it_leads(monkeypatch: pytest.MonkeyPatch) -> None:
    shown = drawn(Paper(0), monkeypatch, ["see [a](https://b.example/) and ![a cat](https://c.example/cat.png)."])
    assert shown == "see a (https://b.example/) and a cat (https://c.example/cat.png)."


# A message from a pipe


async def test_a_message_from_a_pipe_is_answered_in_plain_text(api: httpx.AsyncClient, fake: AzureOpenAI) -> None:
    fake.reply("**Bold**, `code`\n\n- a 🙂 \u2028")

    done = await piped(api, "\ufefftwo\nlines 🙂\n\n")

    assert (done.code, done.out, done.err) == (0, "**Bold**, `code`\n\n- a 🙂 \u2028\n", "")
    assert fake.requests[0].body["messages"][-1]["content"] == "two\nlines 🙂"


async def test_what_is_asked_for_reaches_the_model_and_its_cost_is_told(
    serve: Serve, environ: dict[str, str], fake: AzureOpenAI
) -> None:
    fake.model_name = "a-model-that-has-no-price"
    fake.reply("a b c", prompt_tokens=100, completion_tokens=45)
    wanted = ("--system", "Be kind.", "--max-tokens", "3", "--session", "mine", "--show-tokens", "--no-stream")
    async with serve(environ | {"PRICES": DEAR, "AZURE_OPENAI_DEPLOYMENTS": "chat, other"}) as api:
        done = await piped(api, "hi", *wanted, AZURE_OPENAI_MODEL="other")

        assert (await look(api, "/api/sessions/mine"))["system"] == "Be kind."
    assert (done.code, done.out) == (0, "a b c\n")
    assert done.err.splitlines()[-1] == "[Tokens used: 145 | Estimated cost: unknown]"
    assert (fake.requests[0].body["model"], fake.requests[0].body["max_completion_tokens"]) == ("other", 3)


@pytest.mark.parametrize("how", ["--stream", "--no-stream"])
async def test_json_is_the_services_answer_in_one_line(api: httpx.AsyncClient, fake: AzureOpenAI, how: str) -> None:
    fake.reply("a\u2028b\x85c\x9b31m\x7f\nd\u202e", prompt_tokens=1, completion_tokens=1)

    done = await piped(api, "hi", "--json", "--session", "s", how)

    assert (done.code, done.err, len(done.out.splitlines())) == (0, "", 1)
    assert not set(done.out) & set("\x7f\x85\x9b\u2028\u202e")
    told = exact(done.out)
    assert told["message"]["content"] == "a\u2028b\x85c\x9b31m\x7f\nd\u202e"
    assert '"cost_usd":0.000005250,' in done.out
    assert told["session"] == {name: (await look(api, "/api/sessions/s"))[name] for name in told["session"]}


@pytest.mark.parametrize(
    ("message", "arguments", "code", "said"),
    [
        (b" \n", (), 1, "There is no message"),
        (b"caf\xe9", (), 1, "not UTF-8 text (byte 3)"),
        (b"x" * 300_000, (), 1, "larger than 262144 bytes"),
        (b"hi", ("--deployment", "none"), 1, "There is no deployment 'none'. Choose one of: chat."),
        (b"hi", ("--session", "a/b"), 1, "session_id should be 1 to 64 letters"),
        (b"hi", ("--key", "wrong"), 1, "does not take this key (401): the right one is --key or CHAT_KEY"),
        (b"hi", ("--key", ""), 1, "wants a key (401)"),
        (b"hi", ("--key", "schlüssel"), 2, "should be visible ASCII"),
        (b"hi", ("--url", "localhost:7071"), 2, "should be like https://"),
        (b"hi", ("--url", "http://a..b"), 2, "should be like https://"),
        (b"hi", ("--system", os.fsdecode(b"caf\xe9")), 2, "should be UTF-8 text"),
        (b"hi", ("--session", os.fsdecode(b"caf\xe9")), 2, "should be UTF-8 text"),
        (b"hi", ("--wait", "nan"), 2, "should be a number of seconds"),
        (b"hi", ("--max-tokens", "0"), 2, "should be a whole number above 0"),
    ],
    ids=lambda value: str(value)[:30],
)
async def test_what_cannot_be_answered_fails_and_says_why(
    api: httpx.AsyncClient, fake: AzureOpenAI, message: bytes, arguments: tuple[str, ...], code: int, said: str
) -> None:
    done = await piped(api, message, *arguments)

    assert (done.code, done.out) == (code, "")
    assert said in " ".join(done.err.split())
    assert fake.requests == []


async def test_a_session_that_is_somebody_elses_is_told(serve: Serve, environ: dict[str, str]) -> None:
    said = "Session s is somebody else's, or is being erased. Choose another with --session."
    async with serve(environ | {"CLIENT_KEYS": line("ann", "k" * 32)}) as api:
        begun = await api.post("/api/chat", json={"message": "hi", "session_id": "s"}, headers={"api-key": "k" * 32})
        assert begun.status_code == 200

        done = await piped(api, "hi", "--session", "s")
        async with somebody(api, "--session", "s") as person:
            await person.says("hi")
            await person.sees_now(said)

    assert (done.code, done.out, " ".join(done.err.split())) == (1, "", said)


async def test_an_answer_that_breaks_off_fails_after_what_came(api: httpx.AsyncClient, fake: AzureOpenAI) -> None:
    fake.fault("error_event")

    done = await piped(api, "tell me more")

    assert (done.code, done.out) == (1, "echo:\n")
    assert "broke off" in done.err


@pytest.mark.parametrize(
    ("closed", "code", "said"), [("<&-", 1, "There is no message on standard input"), (">&-", 0, ""), ("2>&-", 0, "")]
)
async def test_what_it_was_started_without_is_as_if_it_led_nowhere(
    api: httpx.AsyncClient, fake: AzureOpenAI, closed: str, code: int, said: str
) -> None:
    process = await asyncio.create_subprocess_exec(
        *("/bin/sh", "-c", f'exec "$@" {closed}', "sh", sys.executable, str(ROOT / "chat.py"), "--show-tokens"),
        *("--url", str(api.base_url), "--key", FUNCTION_KEY),
        stdin=subprocess.PIPE,
        stdout=subprocess.PIPE,
        stderr=subprocess.PIPE,
    )
    done = await ended(process, "hi")

    assert (done.code, done.out) == (code, "echo: hi\n" if closed == "2>&-" else "")
    assert said in done.err


@pytest.mark.skipif(not Path("/dev/full").exists(), reason="a disk that is always full is Linux's")
async def test_a_full_disk_is_told_in_a_line(api: httpx.AsyncClient, fake: AzureOpenAI) -> None:
    with Path("/dev/full").open("wb") as full:  # noqa: ASYNC230 - it is no disk
        process = await asyncio.create_subprocess_exec(
            *(sys.executable, "chat.py", "--url", str(api.base_url), "--key", FUNCTION_KEY),
            cwd=ROOT,
            stdin=subprocess.PIPE,
            stdout=full,
            stderr=subprocess.PIPE,
        )
        _, said = await process.communicate(b"hi")
    assert (process.returncode, said.decode()) == (1, "The answer can't be written: No space left on device.\n")


async def test_a_reader_who_has_enough_ends_it_quietly(api: httpx.AsyncClient, fake: AzureOpenAI) -> None:
    process = await started(api, "--session", "s")
    with fake.hold(after=1) as hold:
        assert process.stdin and process.stdout  # noqa: PT018
        process.stdin.write(b"hi")
        process.stdin.close()
        await hold.until_reached()
        process.stdout._transport.close()  # type: ignore[attr-defined]
    done = await ended(process)

    assert (done.code, done.err) == (1, "")
    assert len(fake.meter) == 1


async def test_ctrl_c_at_a_pipe_ends_it_and_not_the_turn(
    api: httpx.AsyncClient, fake: AzureOpenAI, tables: Tables
) -> None:
    process = await started(api, "--session", "s")
    assert process.stdin and process.stdout  # noqa: PT018
    with fake.hold(after=1) as hold:
        process.stdin.write(b"hi")
        process.stdin.write_eof()
        await hold.until_reached()
        assert await process.stdout.read(4) == b"echo"
        process.send_signal(signal.SIGINT)
        done = await ended(process)

    assert (done.code, done.out) == (130, "\n")
    assert "Stopped. Its turn goes on" in done.err, done.err
    await assert_conserved(tables, fake)
    assert (await turns(api))[0]["messages"][-1]["content"] == "echo: hi"


def test_without_its_packages_it_says_how_to_run_it() -> None:
    done = subprocess.run([sys.executable, "-S", ROOT / "chat.py"], capture_output=True, text=True)

    assert (done.returncode, done.stdout) == (1, "")
    assert done.stderr.splitlines() == [
        "chat.py needs the package httpx: run it as `make chat` or `.venv/bin/python chat.py`."
    ]


# A terminal


async def test_a_conversation_at_a_terminal(serve: Serve, environ: dict[str, str], fake: AzureOpenAI) -> None:
    fake.reply("Hello.", prompt_tokens=100, completion_tokens=45)
    fake.reply("Bye.", prompt_tokens=7, completion_tokens=4, cached_tokens=2)
    async with (
        serve(environ | {"PRICES": DEAR, "REGION_NAME": "eastus"}) as api,
        somebody(api, "--session", "mine") as person,
    ):
        await person.says("hi")
        await person.sees_now("Connected to: chat (eastus)", "Hello.\n[Tokens used: 145 | Estimated cost: $0.0044]")
        await person.says("thanks")
        await person.is_asked()
        for command, seen in {
            "tokens": "156 tokens | 107 sent, 2 of them cached | 49 answered, 0 of them reasoning",
            "/cost": "$0.004776",
            "History": "> hi\nHello.\n> thanks\nBye.",
            "help": "Alt-Enter",
            "/shut": "There is no command /shut",
        }.items():
            await person.says(command)
            await person.sees_now(seen)
        await person.is_asked()
        person.type(CTRL_D)

        assert await person.ends() == 0
        await person.sees_now("Total session: 156 tokens | $0.0048\nTo go on with it: --session mine")
        assert person.sees[0] == "Connected to: chat (eastus)"
    assert len(fake.requests) == 2


async def test_a_session_is_resumed_and_cleared(api: httpx.AsyncClient, fake: AzureOpenAI) -> None:
    await answer(api, "I am Ada.", "mine")
    async with somebody(api, "--session", "mine", "--no-show-tokens") as person:
        await person.sees_now("Session mine, with chat: 1 turn, ")
        await person.says("Who am I?")
        await person.sees_now("echo: Who am I?")
        assert [message["content"] for message in fake.requests[-1].body["messages"]][1:3] == [
            "I am Ada.",
            "echo: I am Ada.",
        ]
        await person.says("clear")
        await person.sees_now("Cleared")
        await person.says("And now?")
        await person.sees_now("echo: And now?")
        assert len(fake.requests[-1].body["messages"]) == 2
        await person.says("/exit")

        assert await person.ends() == 0
        await person.sees_now("Total session: ")
    assert "Tokens used" not in person.text
    assert (await look(api, "/api/sessions/mine"))["turns"] == 3


async def test_calls_of_tools_of_every_kind_are_in_the_history(api: httpx.AsyncClient, tables: Tables) -> None:
    await answer(api, "hi", "other")  # makes the tables
    custom = {"id": "c1", "type": "custom", "custom": {"name": "code", "input": "print(1)"}}
    usual = {"id": "c2", "type": "function", "function": {"name": "look", "arguments": "{}"}}
    older = {"name": "ask", "arguments": "[]"}  # which never comes beside tools
    await fill(tables, 1, content=None, tool_calls=[custom, usual], function_call=older)
    async with somebody(api, "--session", "s") as person:
        await person.says("history")
        await person.sees_now("[calls code]\n[calls look]\n[calls ask]")


async def test_before_a_word_was_said_there_is_nothing_to_tell(api: httpx.AsyncClient, fake: AzureOpenAI) -> None:
    async with somebody(api, "--session", "new") as person:
        for command in ("cost", "clear", "quit"):
            await person.says(command)

        assert await person.ends() == 0
    assert person.text.count("Nothing has been said: 0 tokens | $0.00") == 4
    assert fake.requests == []


async def test_words_appear_as_they_come_and_what_is_typed_meanwhile_waits(
    api: httpx.AsyncClient, fake: AzureOpenAI
) -> None:
    fake.reply("one two six ten")
    async with somebody(api) as person:
        with fake.hold(after=2) as hold:
            await person.says("count")
            await hold.until_reached()
            await person.sees_now("> count\none two")
            person.type("typed ahead")
            await asyncio.sleep(0.3)  # a terminal echoes at once
            assert "six" not in person.text
            assert "typed" not in person.text
        await person.sees_now("one two six ten\n[Tokens used: ", "> typed ahead")


async def test_markdown_is_rendered(api: httpx.AsyncClient, fake: AzureOpenAI) -> None:
    fake.reply(
        "A **strong** and <b>literal</b> [link](http://evil.example)\nnew line\n\n- one\n- two\n\n"
        "```python\nx = 1\n```\n\n| a | b |\n|---|---|\n| c | d |\n"
    )
    async with somebody(api) as person:
        await person.says("show")
        await person.sees_now("[Tokens used")

        shown = person.text.partition("> show\n")[2].partition("\n[Tokens")[0].split("\n")
        assert [line.strip() for line in shown if line and "─" not in line and "━" not in line] == [
            "A strong and <b>literal</b> link (http://evil.example)",
            "new line",
            "• one",
            "• two",
            "x = 1",
            "a  b",
            "c  d",
        ]
        assert person.styled("strong").bold
        assert not person.styled("and").bold


async def test_an_answer_longer_than_the_screen_is_there_once_from_top_to_bottom(
    api: httpx.AsyncClient, fake: AzureOpenAI
) -> None:
    said = [f"line {number}\n" for number in range(30)] + [f"- item {number}" for number in range(30)]
    fake.reply("\n".join(said))
    numbers = [*map(str, range(30))]
    async with somebody(api, rows=12) as person:
        with fake.hold(after=len(pieces("\n".join(said[:50])))) as hold:
            await person.says("show")
            await hold.until_reached()
            await person.sees_now("item 19")
            assert [line.split()[1] for line in person.sees if line.startswith("line")] == numbers
        await person.sees_now("[Tokens used")

    shown = [line.split()[-2:] for line in person.sees if "item" in line or "line" in line]
    assert shown == [*([kind, number] for kind in ("line", "item") for number in numbers)]


async def test_ctrl_c_stops_the_answer_and_neither_the_program_nor_the_turn(
    api: httpx.AsyncClient, fake: AzureOpenAI, tables: Tables
) -> None:
    fake.reply("one two six ten")
    async with somebody(api, "--session", "s") as person:
        with fake.hold(after=2) as hold:
            await person.says("count")
            await hold.until_reached()
            await person.sees_now("one two")
            person.type(CTRL_C)
            await person.sees_now("one two\nStopped. Its turn goes on at the service and is counted")
            await person.is_asked()
            assert fake.meter == []

        async def settled() -> bool | None:
            return (await turns(api))[0]["state"] == "settled" or None

        await until(settled)
        await person.says("history")
        await person.sees_now("> count\none two six ten")
        await person.is_asked()
        person.type(CTRL_C + CTRL_D)

        assert await person.ends() == 0
        used = (await look(api, "/api/sessions/s"))["total_tokens"]
        await person.sees_now("Ctrl-D ends.", f"Total session: {used} tokens | $")
    assert len(fake.meter) == 1
    await assert_conserved(tables, fake)


async def test_a_message_may_have_several_lines_and_is_brought_back(api: httpx.AsyncClient, fake: AzureOpenAI) -> None:
    async with somebody(api) as person:
        await person.says(f"one{ALT_ENTER}two")
        await person.sees_now("echo: one\ntwo\n[Tokens")
        await person.says("\x1b[200~three\n\n  four\x1b[201~")
        await person.says(f"{UP}!")
        await person.is_asked()

    said = [request.body["messages"][-1]["content"] for request in fake.requests]
    assert said == ["one\ntwo", "three\n\n  four", "three\n\n  four!"]


async def test_no_answer_obeys_the_model_instead_of_the_user(api: httpx.AsyncClient, fake: AzureOpenAI) -> None:
    fake.reply(TRICKS)
    fake.reply(TRICKS)
    fake.chunk_tokens = 100

    done = await piped(api, "show", "--session", "s")
    async with somebody(api, "--session", "s") as person:
        await person.says("show")
        await person.sees_now("Tokens used")
        await person.says("history")
        await person.is_asked()
        await person.says("quit")
        await person.ends()

    assert done.out == "red  &#x202e;turned back\nend\n"
    assert person.text.count("red  turned back\nend") == 3
    for trick in ("\x1b]", "\x9b", "\x1b[2J", "\x08\x7f", "\u202e"):
        assert trick.encode() not in person.raw, trick


async def test_a_terminal_that_can_do_nothing_gets_plain_words(api: httpx.AsyncClient, fake: AzureOpenAI) -> None:
    fake.reply("**a**")
    async with somebody(api, TERM="dumb") as person:
        person.type(f"hi{ENTER}")
        await person.sees_now("Tokens used")
    assert "**a**\n[Tokens" in person.text


# What fails, and is tried again


async def test_where_nothing_listens_it_says_how_to_start_it() -> None:
    url = f"http://127.0.0.1:{free_port()}"
    said = f"Nothing answers at {url} ([Errno 111] Connection refused). Start the service with `make run`, or say where"
    assert (await piped(url)).err.startswith(said)
    async with somebody(url) as person:
        assert await person.ends() == 1
        await person.sees_now("Start the service with `make run`")


@pytest.mark.parametrize(
    ("url", "others", "said"),
    [
        ("http://a.invalid", {"ALL_PROXY": "socks5://127.0.0.1:1080"}, "Using SOCKS proxy"),
        ("http://a.invalid", {"ALL_PROXY": "socks://127.0.0.1:1080/"}, "Unknown scheme for proxy"),
        ("https://a.invalid", {"SSL_CERT_FILE": "/not/there"}, "No such file or directory"),
    ],
)
async def test_what_the_environment_asks_and_cannot_be_had_is_told(url: str, others: dict[str, str], said: str) -> None:
    done = await piped(url, "hi", **others)

    assert (done.code, done.out) == (1, "")
    assert done.err.startswith("The environment names a proxy or certificates that can't be used: ")
    assert said in done.err


async def test_a_wrong_key_ends_it_at_once(api: httpx.AsyncClient) -> None:
    async with somebody(api, CHAT_KEY="wrong") as person:
        assert await person.ends() == 1
        await person.sees_now("does not take this key (401)")


@pytest.mark.parametrize(
    ("reply", "said"),
    [
        (Answer(200, b"<html>"), "not the chat API"),
        (Answer(404, b"<html>"), "does not answer as the chat API does (HTTP 404). Look at --url"),
        (Answer(301, b"", (("location", "https://there"),)), "points to https://there"),
    ],
)
async def test_what_is_no_chat_service_is_told(network: TcpProxy, reply: Answer, said: str) -> None:
    network.on(POST, reply)

    done = await piped(network.endpoint)

    assert (done.code, done.out) == (1, "")
    assert said in done.err


async def test_an_answer_that_was_lost_on_its_way_is_had_again_and_paid_once(
    api: httpx.AsyncClient, fake: AzureOpenAI, network: TcpProxy, tables: Tables
) -> None:
    failures: list[Action] = [Close(), Close(after_answer=True), Answer(502, b"<html>bad gateway")]
    for nth, failure in enumerate(failures, start=1):
        network.on(POST, failure, nth=nth)

    done = await piped(network.endpoint, "hi", "--session", "s", "--no-stream")

    assert (done.code, done.out) == (0, "echo: hi\n")
    assert done.err.splitlines() == [
        "The connection was lost. Sending the message again, as the same request: it is paid once. Ctrl-C gives up."
    ]
    assert network.count(POST) == 2
    assert len(fake.meter) == len(await turns(api)) == 1
    await assert_conserved(tables, fake)


async def test_an_answer_that_broke_off_goes_on_where_it_stopped(
    api: httpx.AsyncClient, fake: AzureOpenAI, network: TcpProxy, tables: Tables
) -> None:
    fake.reply("one two six ten")
    async with somebody(network.endpoint, "--session", "s") as person:
        with fake.hold(after=2) as hold:
            await person.says("count")
            await hold.until_reached()
            await person.sees_now("one two")
            network.down()
            network.up()
            await person.sees_now("The connection was lost.", "Another turn of this session is still running.")
        await person.sees_now("one two six ten\n[Tokens used")

    assert person.text.count("one two") == 1
    assert len(fake.meter) == len(await turns(api)) == 1
    await assert_conserved(tables, fake)


async def test_a_service_that_is_gone_is_told_and_the_message_sent_later_is_paid_once(
    api: httpx.AsyncClient, fake: AzureOpenAI, network: TcpProxy, tables: Tables
) -> None:
    async with somebody(network.endpoint, "--session", "s", "--wait", "0.3") as person:
        with fake.hold(after=1) as hold:
            await person.says("hi")
            await hold.until_reached()
            network.down()
            await person.sees_now("Nothing answers at", "The message may have been answered and counted all the same")
        network.up()

        async def settled() -> bool | None:
            return (await turns(api))[0]["state"] == "settled" or None

        await until(settled)
        await person.is_asked()
        person.type(UP + ENTER)
        await person.sees_now("echo: hi\n[Tokens used")

    assert len(fake.meter) == len(await turns(api)) == 1
    await assert_conserved(tables, fake)


async def test_where_the_total_cannot_be_had_the_session_is_named_all_the_same(network: TcpProxy) -> None:
    async with somebody(network.endpoint, "--session", "s") as person:
        await person.is_asked()
        network.down()
        await person.says("quit")

        assert await person.ends() == 0
        await person.sees_now("Nothing answers at", "To go on with it: --session s")


async def test_a_busy_session_is_waited_for(api: httpx.AsyncClient, fake: AzureOpenAI) -> None:
    with fake.hold(after=1) as hold:
        async with streaming(api, "long", "s") as stream:
            await hold.until_reached()
            impatient = await piped(api, "hi", "--session", "s", "--wait", "0")
            patient = await started(api, "--session", "s")
            assert patient.stdin and patient.stderr  # noqa: PT018
            patient.stdin.write(b"hi")
            patient.stdin.write_eof()
            said = await patient.stderr.readline()
            hold.release()
            await stream.rest()
    done = await ended(patient)

    assert (impatient.code, impatient.out) == (1, "")
    assert impatient.err.startswith("Another turn of this session is running. Wait for it to finish")
    assert said.startswith(b"Another turn of this session is still running. Waiting for its end.")
    assert (done.code, done.out, done.err) == (0, "echo: hi\n", "")
    assert [turn["state"] for turn in await turns(api)] == ["settled", "settled"]


async def test_a_rate_limit_is_waited_for_as_long_as_it_asks(api: httpx.AsyncClient, fake: AzureOpenAI) -> None:
    fake.fault(429, retry_after=1)

    done = await piped(api)

    assert (done.code, done.out) == (0, "echo: hi\n")
    assert done.err.splitlines() == [
        "The service is over its rate limit. Sending the message again in 1 s. Ctrl-C gives up."
    ]
    assert len(fake.meter) == 1


async def test_a_platform_that_has_too_much_to_do_is_waited_for_too(
    api: httpx.AsyncClient, fake: AzureOpenAI, network: TcpProxy
) -> None:
    network.on(POST, Answer(429, b"", (("retry-after", "1"),)))
    done = await piped(network.endpoint)
    assert (done.code, done.out) == (0, "echo: hi\n")
    assert "over its rate limit. Sending the message again in 1 s" in done.err

    network.on(POST, Answer(429, b""))
    done = await piped(network.endpoint, "hi", "--wait", "0")
    assert (done.code, done.out) == (1, "")
    assert done.err.startswith(f"{network.endpoint} has too much to do (429).")


async def test_a_rate_limit_that_asks_for_too_long_is_told(api: httpx.AsyncClient, fake: AzureOpenAI) -> None:
    fake.fault(429, retry_after=3600)

    done = await piped(api)

    assert (done.code, done.out) == (1, "")
    assert done.err.endswith("It asks for 3600 s more. Gave up: --wait allows 60 s in all.\n")
    assert "may have been answered" not in done.err


async def test_ctrl_c_while_nothing_was_taken_says_that_it_costs_nothing(
    api: httpx.AsyncClient, fake: AzureOpenAI
) -> None:
    fake.fault(429, retry_after=30)
    async with somebody(api) as person:
        await person.says("hi")
        await person.sees_now("Sending the message again in 30 s")
        person.type(CTRL_C)
        await person.sees_now("it costs nothing")
        await person.is_asked()


async def test_what_cannot_be_accounted_for_is_in_the_total(
    serve: Serve, environ: dict[str, str], fake: AzureOpenAI
) -> None:
    fake.fault("error_event")
    async with serve(environ) as api, somebody(api) as person:
        await person.says("hi")
        await person.sees_now("broke off")
        await person.says("quit")
        await person.ends()
        await person.sees_now("Total session: 0 tokens | $0.00 | 1 call unaccounted for, at most $0.00")
