#!/usr/bin/env python3
"""The terminal client: `python chat.py`. It speaks HTTP with the service, and knows nothing else of it: one file, which
can be copied to wherever it is wanted.

What comes from there is not trusted: amounts stay exact Decimals, and no control character reaches the terminal.
No syntax newer than Python 3.9's, so that an old Python gets to the sentence about the packages.
"""

from __future__ import annotations

import argparse
import json
import os
import re
import secrets
import sys
import time
import uuid
from collections.abc import Callable, Iterable, Iterator, Mapping
from contextlib import contextmanager, suppress
from decimal import ROUND_HALF_UP, Decimal
from queue import Empty, SimpleQueue
from threading import Thread
from typing import Any, NamedTuple
from urllib.parse import quote, urlsplit

try:
    import httpx
    from markdown_it import MarkdownIt
    from markdown_it.token import Token
    from prompt_toolkit import PromptSession
    from prompt_toolkit.key_binding import KeyBindings
    from rich.console import Console, ConsoleOptions, Group, RenderResult
    from rich.live import Live
    from rich.markdown import Markdown
    from rich.segment import Segment
    from rich.text import Text
except ImportError as missing:
    sys.exit(f"chat.py needs the package {missing.name}: run it as `make chat` or `.venv/bin/python chat.py`.")
try:
    import termios
except ImportError:  # Windows
    termios = None  # type: ignore[assignment]

JSON = dict[str, Any]
UNREACHABLE, LOST, BUSY, LIMITED = "unreachable", "lost", "session_busy", "rate_limited"
UNKNOWN = "session_not_found"
LONGEST_PAUSE = 5.0  # seconds between two attempts, unless the service asks for more
HISTORY = 20  # turns
HELP = """\
quit, exit   end, as Ctrl-D does
clear        forget what was said; the totals stay
tokens       what the session used
cost         what the session cost, to the last digit
history      the last turns
help         this; each also with a slash: /help

Enter sends. Alt-Enter (or Esc, Enter) begins a new line, and what you paste may
have several. The arrow keys bring back what you typed. Ctrl-C stops an answer;
its turn goes on at the service and is counted."""
AGAIN = {  # why a message is sent again
    LOST: "The connection was lost. Sending the message again, as the same request: it is paid once.",
    UNREACHABLE: "The service does not answer now. Trying again.",
    BUSY: "Another turn of this session is still running. Waiting for its end.",
    LIMITED: "The service is over its rate limit. Sending the message again in {delay:g} s.",
}


STATES = {  # of a turn that was not answered as it should
    "open": "(Still running, or interrupted.)",
    "failed": "(Failed; it cost nothing.)",
    "abandoned": "(Abandoned before the model was asked; it cost nothing.)",
    "unaccounted": "(Interrupted; it may have been billed.)",
}


class Failure(Exception):
    """What went wrong and what to do, in a sentence or two. `code` is the service's, or UNREACHABLE or LOST."""

    def __init__(self, message: str, code: str = "", retry_after: float | None = None) -> None:
        super().__init__(message)
        self.code, self.retry_after = code, retry_after


class Event(NamedTuple):
    name: str
    data: JSON
    text: str = ""  # the data as it came


# What is shown

PARSER = MarkdownIt("commonmark", {"html": False}).enable(["table", "strikethrough"])  # tags are shown, not lost
CONTROL = re.compile(
    r"(?:\x1b\[|\x9b)[0-?]*[ -/]*[@-~]"  # whole sequences: colours and the cursor,
    r"|(?:\x1b[]PX^_]|[\x90\x98\x9d-\x9f])[^\x07\x1b\x9c]*(?:\x07|\x1b\\|\x9c)"  # titles, links, the clipboard;
    r"|[\x00-\x08\x0b-\x1f\x7f-\x9f\u202a-\u202e\u2066-\u2069]"  # and every single one that is left
)


def clean(text: object) -> str:
    """Without what a terminal would obey, or what would turn the text's direction."""
    return CONTROL.sub("", str(text))


def one_line(raw: str) -> str:
    """The same JSON, safe on a terminal and one line to every reader: some characters are written as escapes."""
    return re.sub(r"[\x7f-\x9f\u2028-\u202e\u2066-\u2069]", lambda found: f"\\u{ord(found[0]):04x}", raw.strip())


def usd(amount: Decimal | int | None) -> str:
    """Four decimals, or as many as two significant digits need: what was not free is never shown as nothing."""
    if amount is None:
        return "unknown"
    if not amount:
        return "$0.00"
    amount = Decimal(amount)
    places = max(4, 1 - amount.adjusted())
    return f"${amount.quantize(Decimal(1).scaleb(-places), ROUND_HALF_UP):f}"


def counted(number: int, noun: str) -> str:
    return f"{number} {noun}" if number == 1 else f"{number} {noun}s"


def cost_line(totals: Mapping[str, Any], shown: Callable[[Any], str] = usd) -> str:
    """The known cost, and apart from it what is not in it."""
    unpriced, lost, most = totals["unpriced_turns"], totals["unaccounted_calls"], totals["unaccounted_usd"]
    parts = ["unknown" if unpriced and not totals["cost_usd"] else shown(totals["cost_usd"])]
    if unpriced:
        parts.append(f"{counted(unpriced, 'turn')} at a price that is not known")
    if lost:
        worth = f"at most {shown(most)}" if most else "at a price that is not known"
        parts.append(f"{counted(lost, 'call')} unaccounted for, {worth}")
    if totals.get("busy"):
        parts.append("a turn is still running")
    return " | ".join(parts)


def said(message: JSON) -> str:
    """A message's text, whatever it is made of."""
    content = message.get("content") or message.get("refusal") or ""
    if isinstance(content, list):
        content = "\n".join(part.get("text", "[image]") for part in content)
    called = [call.get("function") or call["custom"] for call in message.get("tool_calls") or ()]
    called += [message["function_call"]] if message.get("function_call") else []  # the form before tools
    calls = [f"[calls {tool['name']}]" for tool in called]
    return "\n".join([content, *calls] if content else calls)


# The service


class Service:
    """The routes of api/*. Every method raises Failure."""

    def __init__(self, url: str, key: str | None) -> None:
        self.url, self._has_key = url, bool(key)
        try:
            self._http = httpx.Client(
                base_url=url,
                headers={"x-functions-key": key} if key else {},
                timeout=httpx.Timeout(10, read=240),  # the platform ends what is silent for longer
                verify=url.startswith("https:"),  # reading the certificates takes 50 ms, and redirects are not followed
                trust_env=urlsplit(url).hostname not in ("127.0.0.1", "localhost", "::1"),  # no proxy to itself
            )
        except (ImportError, OSError, ValueError, httpx.InvalidURL) as error:
            named = "The environment names a proxy or certificates that can't be used"
            raise Failure(f"{named}: {error}") from error

    def get(self, path: str) -> JSON:
        return exact(self.call("GET", path))

    def call(self, method: str, path: str) -> str:
        with self._connection():
            response = self._http.request(method, path)
            if not response.is_success:
                raise self._refusal(response)
            return response.text

    def post(self, body: JSON, key: str) -> Iterator[Event]:
        """One attempt at a turn."""
        with (
            self._connection(),
            self._http.stream("POST", "/api/chat", json=body, headers={"Idempotency-Key": key}) as response,
        ):
            if not response.is_success:
                response.read()
                raise self._refusal(response)
            if not response.headers.get("content-type", "").startswith("text/event-stream"):
                response.read()
                yield Event("done", exact(response.text), response.text)
                return
            for event in events(response.iter_bytes()):
                if event.name == "error":
                    raise Failure(event.data["message"], event.data["code"], event.data["retry_after"])
                yield event

    @contextmanager
    def _connection(self) -> Iterator[None]:
        try:
            yield
        except (httpx.ConnectError, httpx.ConnectTimeout) as error:
            raise Failure(
                f"Nothing answers at {self.url} ({error}). Start the service with `make run`, or say where it is with"
                " --url or CHAT_URL.",
                UNREACHABLE,
            ) from error
        except httpx.HTTPError as error:
            raise Failure(f"The connection to {self.url} was lost ({error or type(error).__name__}).", LOST) from error

    def _refusal(self, response: httpx.Response) -> Failure:
        status = response.status_code
        if status == 401:
            wants = "does not take this key" if self._has_key else "wants a key"
            how = "the right one is --key or CHAT_KEY (az functionapp keys list -g GROUP -n APP shows it)"
            return Failure(f"{self.url} {wants} (401): {how}.", "unauthorized")
        try:
            error = response.json()["error"]
            code, message = error["code"], error["message"]
        except (ValueError, LookupError, TypeError):
            if status in (502, 503, 504):
                return Failure(f"What stands before {self.url} answered {status}.", LOST)
            if status == 429:  # the platform's own, which has no body
                return Failure(f"{self.url} has too much to do (429).", LIMITED, _seconds(response))
            where = f" It points to {response.headers['location']}." if response.is_redirect else ""
            return Failure(f"{self.url} does not answer as the chat API does (HTTP {status}).{where} Look at --url.")
        return Failure(message, code, _seconds(response))


def _seconds(response: httpx.Response) -> float | None:
    """That the service asks to wait."""
    asked = response.headers.get("retry-after", "")
    return float(asked) if asked.isdecimal() else None


def exact(text: str) -> JSON:
    with suppress(ValueError):
        value = json.loads(text, parse_float=Decimal)
        if isinstance(value, dict):
            return value
    raise Failure("What answers there is not the chat API. Look at --url.")


def events(parts: Iterable[bytes]) -> Iterator[Event]:
    """Server-sent events: https://html.spec.whatwg.org/multipage/server-sent-events.html#parsing-an-event-stream"""
    name, data = "", list[str]()
    for line in lines(parts):
        field, _, value = line.partition(":")
        value = value.removeprefix(" ")
        if field == "event":
            name = value
        elif field == "data":
            data.append(value)
        elif not line:
            if data:
                text = "\n".join(data)
                yield Event(name, exact(text), text)
            name, data = "", []


def lines(parts: Iterable[bytes]) -> Iterator[str]:
    """Only LF, CR and both of them end a line; what str.splitlines also takes for an end may stand in JSON."""
    pending = b""
    for part in parts:
        *whole, pending = re.split(rb"\r\n|\n|\r(?!\Z)", pending + part)  # a last CR may be half of both
        yield from (line.decode("utf-8", "replace") for line in whole)


# A turn


class View:
    """Where an answer goes, here to nowhere. After an attempt that broke off the next says all again: it is shown from
    where the first one stopped, if it is the same."""

    def __init__(self) -> None:
        self._said = self._shown = ""

    def put(self, text: str) -> None: ...

    def pause(self) -> None:
        """Nothing has come for a moment."""

    def end(self) -> None: ...

    def again(self) -> None:
        self._said = ""

    def hear(self, text: str) -> None:
        self._said += text
        if not self._shown.startswith(self._said):
            same = self._said.startswith(self._shown)
            more = self._said[len(self._shown) :] if same else f"\n\n{self._said}"
            self._shown = self._said  # first, since Ctrl-C may come in the midst of it
            self.put(more)

    def hear_whole(self, message: JSON) -> None:
        if not self._said:
            self.hear(said(message))


class Plain(View):
    def put(self, text: str) -> None:
        print(clean(text), end="", flush=True)

    def end(self) -> None:
        if self._shown and not self._shown.endswith("\n"):
            print(flush=True)


class Rendered:
    """Markdown as lines. `height`: only the last ones."""

    def __init__(self, text: str, height: int = 0) -> None:
        self._markdown = Markdown("", hyperlinks=False, code_theme="ansi_dark")  # a link shows where it leads
        self._markdown.parsed = PARSER.parse(clean(text))
        for token in self._markdown.parsed:
            if token.children:
                token.children = [shown for child in token.children for shown in plain(child)]
        self._height = height

    def __rich_console__(self, console: Console, options: ConsoleOptions) -> RenderResult:
        found = [stripped(line) for line in console.render_lines(self._markdown, options, pad=False)]
        full = [number for number, line in enumerate(found) if line]
        for line in found[full[0] : full[-1] + 1][-self._height :] if full else ():
            yield from line
            yield Segment.line()


def plain(token: Token) -> list[Token]:
    """A line stays a line, and an image is a link, which shows where it leads."""
    if token.type == "softbreak":
        token.type = "hardbreak"
    if token.type != "image":
        return [token]
    link = Token("link_open", "a", 1, attrs={"href": token.attrs["src"]})
    return [link, Token("text", "", 0, content=token.content or "image"), Token("link_close", "a", -1)]


def stripped(line: list[Segment]) -> list[Segment]:
    """Without the blanks that fill it, which would be copied along; and clean, since Markdown can name characters."""
    kept = [Segment(clean(segment.text), segment.style) for segment in line]
    while kept and not kept[-1].text.strip():
        kept.pop()
    return [*kept[:-1], Segment(kept[-1].text.rstrip(), kept[-1].style)] if kept else []


class Growing(View):
    """Markdown on a terminal: finished blocks are printed for good, the last one is drawn again as it grows."""

    def __init__(self, console: Console) -> None:
        super().__init__()
        self._console, self._tail, self._blocks = console, "", 0
        self._due, self._drawn = 0.0, True
        # Drawn by this thread alone: rich's own, drawing meanwhile, erases a line too many or too few.
        self._live = Live(Text("…"), console=console, auto_refresh=False, transient=True)
        self._live.start(refresh=True)

    def put(self, text: str) -> None:
        self._tail += text
        self._drawn = False
        self.pause()

    def pause(self) -> None:
        """A long block takes long to draw, and again at every word: a fifth of the time may go into that."""
        began = time.monotonic()
        if not self._drawn and began >= self._due:
            self._draw()
            ended = time.monotonic()
            self._due, self._drawn = ended + 4 * (ended - began), True

    def end(self) -> None:
        self._live.stop()
        self._print_finished()
        self._print(self._tail)

    def _draw(self) -> None:
        self._print_finished()
        growing = Rendered(self._tail, max(3, self._console.height - 2))
        self._live.update(self._spaced(growing), refresh=True)

    def _print_finished(self) -> None:
        """One by one: in one print rich spaces blocks otherwise, and how many have come is chance."""
        rows, printed = self._tail.split("\n"), 0
        begins = [token.map[0] for token in PARSER.parse(self._tail) if token.level == 0 and token.map]
        for begin in begins[1:]:
            self._print("\n".join(rows[printed:begin]))
            printed = begin
        self._tail = "\n".join(rows[printed:])

    def _print(self, text: str) -> None:
        if text.strip():
            self._console.print(self._spaced(Rendered(text)), end="")
            self._blocks += 1

    def _spaced(self, block: Rendered) -> Group:
        return Group("", block) if self._blocks else Group(block)


def ahead(events: Iterator[Event], view: View) -> Iterator[Event]:
    """The same events, read by another thread, so that this one can draw in a pause what it has put off."""
    come: SimpleQueue[Event | Exception | None] = SimpleQueue()

    def read() -> None:
        try:
            for event in events:
                come.put(event)
            come.put(None)
        except Exception as error:
            come.put(error)

    Thread(target=read, daemon=True).start()  # after Ctrl-C nobody waits for the rest
    while True:
        try:
            event = come.get(timeout=0.05)  # Windows hears no Ctrl-C while it waits
        except Empty:
            view.pause()
            continue
        if event is None:
            return
        if isinstance(event, Exception):
            raise event
        yield event


class Conversation:
    """One session, as its caller sees it."""

    def __init__(self, service: Service, arguments: argparse.Namespace, tell: Callable[[str], None]) -> None:
        self._service, self._tell, self._wait = service, tell, float(arguments.wait)
        self.id: str = arguments.session or secrets.token_hex(16)
        asked = {name: getattr(arguments, name) for name in ("system", "deployment", "max_tokens", "stream")}
        self._fields = {name: value for name, value in asked.items() if value is not None} | {"session_id": self.id}
        self._unanswered: dict[str, str] = {}  # a message that failed, and its Idempotency-Key
        self._taken = False  # whether a turn may be running for the message

    def say(self, message: str, view: View) -> Event:
        """The answer. The same message after a failure is the same request, so that it is not paid twice."""
        key = self._unanswered.get(message) or str(uuid.uuid4())
        self._unanswered = {message: key}
        try:
            try:
                answer = self._answer({**self._fields, "message": message}, key, view)
            finally:
                view.end()
        except KeyboardInterrupt:
            goes_on = "Stopped. Its turn goes on at the service and is counted; `history` shows the answer."
            self._tell(goes_on if self._taken else "Stopped. The service had not taken the message: it costs nothing.")
            self._unanswered = {}
            raise
        self._unanswered = {}
        return answer

    def _answer(self, body: JSON, key: str, view: View) -> Event:
        """Sends it again, under the same key, when the connection is lost, another turn holds the session, or the
        service asks for a pause; for `--wait` seconds from the first such failure."""
        deadline, pause, told, lost = 0.0, 0.25, "", False
        while True:
            try:
                self._taken = True
                return self._attempt(body, key, view)
            except Failure as failure:
                if failure.code == UNKNOWN:  # to a message, which would begin a new session
                    taken = f"Session {self.id} is somebody else's, or is being erased. Choose another with --session."
                    raise Failure(taken) from None
                if failure.code not in (LOST, BUSY, LIMITED) and not (failure.code == UNREACHABLE and lost):
                    raise
                self._taken = lost = lost or failure.code == LOST
                deadline = deadline or time.monotonic() + self._wait
                delay = failure.retry_after or 1.0 if failure.code == LIMITED else pause
                if time.monotonic() + delay > deadline:
                    raise self._given_up(failure, delay) from failure
                if failure.code != told:
                    told = failure.code
                    self._tell(f"{AGAIN[told].format(delay=delay)} Ctrl-C gives up.")
            time.sleep(delay)
            pause = min(2 * pause, LONGEST_PAUSE)
            view.again()

    def _attempt(self, body: JSON, key: str, view: View) -> Event:
        for event in ahead(self._service.post(body, key), view):
            if event.name == "delta":
                view.hear(event.data.get("content") or event.data.get("refusal") or "")
            elif event.name == "done":
                view.hear_whole(event.data["message"])
                return event
        raise Failure("The connection was lost in mid-answer.", LOST)

    def _given_up(self, failure: Failure, delay: float) -> Failure:
        asked = f" It asks for {delay:g} s more." if failure.code == LIMITED and failure.retry_after else ""
        what = f"{failure}{asked} Gave up: --wait allows {self._wait:g} s in all."
        if self._taken:
            what += f" The message may have been answered and counted all the same: see session {self.id}."
        return Failure(what, failure.code)


def remarks(answer: JSON, show_tokens: bool) -> Iterator[str]:
    """What a reader should know of the answer."""
    if answer.get("notice"):
        yield f"({answer['notice']})"
    elif answer["finish_reason"] == "length":
        yield "(Cut off at the maximum of tokens; --max-tokens raises it.)"
    if answer["finish_reason"] == "content_filter":
        yield "(Cut off by the service's content filter.)"
    if answer.get("truncated"):
        yield "(Too long for the service to keep: the rest of it is lost.)"
    if show_tokens:
        used = answer["usage"]["total_tokens"] if answer["usage"] else "unknown"
        yield f"[Tokens used: {used} | Estimated cost: {usd(answer['cost_usd'])}]"


# The two ways to use it


def once(arguments: argparse.Namespace) -> None:
    """One message from standard input, its answer on standard output, all else on standard error."""

    def tell(text: str) -> None:
        print(clean(text), file=sys.stderr, flush=True)

    conversation = Conversation(Service(arguments.url, arguments.key), arguments, tell)
    answer = conversation.say(from_stdin(), View() if arguments.json else view_on(Console()))
    if arguments.json:
        print(one_line(answer.text), flush=True)
    else:
        for line in remarks(answer.data, arguments.show_tokens):
            tell(line)


def from_stdin() -> str:
    if sys.stdin.isatty():
        print("Type a message; Ctrl-D on a line of its own sends it.", file=sys.stderr)
    try:
        message = sys.stdin.buffer.read().decode("utf-8-sig").rstrip("\r\n")
    except UnicodeDecodeError as error:
        raise Failure(f"The message is not UTF-8 text (byte {error.start}): convert it first, as with iconv.") from None
    if not message.strip():
        raise Failure("There is no message on standard input. Give one: echo hi | python chat.py")
    return message


def view_on(console: Console) -> View:
    return Growing(console) if console.is_terminal and not console.is_dumb_terminal else Plain()


class Terminal:
    """A conversation with somebody at a terminal."""

    def __init__(self, arguments: argparse.Namespace) -> None:
        self._arguments, self._console = arguments, Console(highlight=False)
        self._service = Service(arguments.url, arguments.key)
        self._conversation = Conversation(self._service, arguments, self._note)
        self._session = f"/api/sessions/{quote(self._conversation.id, safe='')}"
        commands = (self.clear, self.tokens, self.cost, self.history, self.help)
        self._commands = {command.__name__: command for command in commands}

    def run(self) -> None:
        self._connect()
        prompt = PromptSession[str](
            multiline=True, key_bindings=keys(), prompt_continuation=lambda _, __, wrapped: "  " if wrapped else "… "
        )
        while True:
            try:
                line = prompt.prompt("> ").encode("utf-8", "replace").decode().rstrip()
            except KeyboardInterrupt:
                self._note("Ctrl-D ends.")
                continue
            except EOFError:
                break
            if line.strip().lower().removeprefix("/") in ("quit", "exit"):
                break
            with self._failures(), suppress(KeyboardInterrupt):
                self._obey(line)
        with self._failures():
            totals = self._service.get(self._session)
            self._note(f"Total session: {totals['total_tokens']} tokens | {cost_line(totals)}", "bold")
        self._note(f"To go on with it: --session {self._conversation.id}")

    @contextmanager
    def _failures(self) -> Iterator[None]:
        try:
            yield
        except Failure as failure:
            if failure.code == UNKNOWN:
                self._note("Nothing has been said: 0 tokens | $0.00")
            else:
                self._note(str(failure), "red")

    def _connect(self) -> None:
        about, chosen = self._service.get("/api/about"), self._arguments.deployment
        if "deployment" not in about:
            raise Failure(f"{self._service.url} is not the chat API. Look at --url.")
        if chosen and chosen not in about["deployments"]:
            known = ", ".join(about["deployments"])
            raise Failure(f"There is no deployment {chosen!r}. Choose one with --deployment: {known}.")
        self._note(f"Connected to: {chosen or about['deployment']} ({about['region'] or self._service.url})", "bold")
        if self._arguments.session:
            with self._failures():
                session = self._service.get(self._session)
                so_far = f"{counted(session['turns'], 'turn')}, {session['total_tokens']} tokens | {cost_line(session)}"
                self._note(f"Session {self._conversation.id}, with {chosen or session['deployment']}: {so_far}")
        self._note("Ctrl-C stops an answer, Ctrl-D ends; `help` tells more.")

    def _obey(self, line: str) -> None:
        word = line.strip().lower()
        if command := self._commands.get(word.removeprefix("/")):
            command()
        elif re.fullmatch(r"/[a-z]+", word):
            self._note(f"There is no command {word}; `help` lists them.", "red")
        elif word:
            with unechoed():
                answer = self._conversation.say(line, view_on(self._console))
            for remark in remarks(answer.data, self._arguments.show_tokens):
                self._note(remark)
            self._console.print()

    def clear(self) -> None:
        self._service.call("DELETE", f"{self._session}/messages")
        self._note("Cleared: the model knows nothing of what was said. The totals stay.")

    def tokens(self) -> None:
        totals = self._service.get(self._session)
        usage = totals["usage"]
        self._note(
            f"{totals['total_tokens']} tokens | {usage['prompt_tokens']} sent, {usage['cached_tokens']} of them cached"
            f" | {usage['completion_tokens']} answered, {usage['reasoning_tokens']} of them reasoning"
        )

    def cost(self) -> None:
        self._note(cost_line(self._service.get(self._session), lambda amount: f"${Decimal(amount):f}"))

    def history(self) -> None:
        page = self._service.get(f"{self._session}/messages?limit={HISTORY}")
        if page["next_before"]:
            self._note(f"The last {HISTORY} turns:")
        for turn in reversed(page["turns"]):
            for message in turn["messages"]:
                if message["role"] == "user":
                    self._note(f"> {said(message)}", "bold")
                else:
                    self._console.print(Rendered(said(message)), end="")
            if turn["state"] in STATES:
                self._note(STATES[turn["state"]])

    def help(self) -> None:
        self._note(HELP)

    def _note(self, text: str, style: str = "dim") -> None:
        self._console.print(clean(text), style=style, markup=False, emoji=False)


def keys() -> KeyBindings:
    """Enter sends; Alt-Enter, which terminals send as Escape and Enter, begins a line."""
    bindings = KeyBindings()
    bindings.add("enter")(lambda event: event.current_buffer.validate_and_handle())
    bindings.add("escape", "enter")(lambda event: event.current_buffer.insert_text("\n"))
    return bindings


@contextmanager
def unechoed() -> Iterator[None]:
    """What is typed while an answer comes would be drawn into it; so it waits for the prompt, unseen."""
    if not termios:
        yield
        return
    before = termios.tcgetattr(sys.stdin)
    termios.tcsetattr(sys.stdin, termios.TCSADRAIN, [*before[:3], before[3] & ~termios.ECHO, *before[4:]])
    try:
        yield
    finally:
        termios.tcsetattr(sys.stdin, termios.TCSADRAIN, before)


# The command


def an_address(text: str) -> str:
    address = text.strip().rstrip("/").removesuffix("/api/chat")
    try:
        proper = re.fullmatch(r"https?://[^/?#\s]+[^?#\s]*", address) and httpx.URL(address).host
        httpx.URL(address).raw_host.decode().encode("idna")  # as looking it up will
    except (ValueError, httpx.InvalidURL):
        proper = None
    if not proper:
        raise argparse.ArgumentTypeError(f"should be like https://NAME.azurewebsites.net, not {text!r}")
    return address


def utf_8(text: str) -> str:
    try:
        text.encode()
    except UnicodeEncodeError:
        raise argparse.ArgumentTypeError("should be UTF-8 text") from None
    return text


def a_key(text: str) -> str:
    if not re.fullmatch(r"[\x21-\x7e]*", text.strip()):
        raise argparse.ArgumentTypeError("should be visible ASCII characters")  # its own have no place on a screen
    return text.strip()


def seconds(text: str) -> float:
    if not re.fullmatch(r"\d{1,6}(\.\d+)?", text):
        raise argparse.ArgumentTypeError(f"should be a number of seconds, not {text!r}")
    return float(text)


def positive(text: str) -> int:
    if not re.fullmatch(r"[1-9]\d{0,8}", text):
        raise argparse.ArgumentTypeError(f"should be a whole number above 0, not {text!r}")
    return int(text)


def parser() -> argparse.ArgumentParser:
    top = argparse.ArgumentParser(
        prog="chat.py",
        description="Chat with the service. A message on standard input is answered, as plain text unless on a terminal"
        ": echo hi | python chat.py",
        epilog="Exit code: 0 answered, 1 failed (standard error says why), 2 wrong arguments, 130 Ctrl-C.",
    )
    env, either = os.environ.get, argparse.BooleanOptionalAction
    url, terminal = env("CHAT_URL") or "http://127.0.0.1:7071", sys.stdout.isatty()
    add = top.add_argument
    add("--url", type=an_address, default=url, help="where it is, or CHAT_URL (%(default)s)")
    add("--key", type=a_key, default=env("CHAT_KEY"), help="the function key; better in CHAT_KEY, which is in no list")
    add("--session", type=utf_8, metavar="ID", help="the session to go on with, or to begin")
    model = env("AZURE_OPENAI_MODEL") or None
    add("--deployment", type=utf_8, metavar="NAME", default=model, help="or AZURE_OPENAI_MODEL")
    add("--system", type=utf_8, metavar="TEXT", help="the system prompt of a new session")
    add("--max-tokens", type=positive, metavar="N", help="the answer's maximum")
    add("--stream", default=True, help="words as they come (the default)", action=either)
    add("--show-tokens", default=terminal, help="tokens and cost of each answer (default on a terminal)", action=either)
    add("--json", action="store_true", help="one message; the service's answer as JSON, in one line")
    wait = "how long to put up with a lost connection, busy session or rate limit (%(default)s)"
    add("--wait", type=seconds, default=60, metavar="SECONDS", help=wait)
    return top


def open_what_is_closed() -> None:
    """Where it was started without one of the three streams Python has None, for which print takes another."""
    for name, mode in (("stdin", "r"), ("stdout", "w"), ("stderr", "w")):
        if getattr(sys, name) is None:
            setattr(sys, name, open(os.devnull, mode))  # noqa: PTH123, SIM115 - for as long as it runs


def main() -> int:
    open_what_is_closed()
    arguments = parser().parse_args()
    sys.stdout.reconfigure(errors="replace")  # type: ignore[union-attr]
    chatting = sys.stdin.isatty() and sys.stdout.isatty() and not arguments.json
    try:
        Terminal(arguments).run() if chatting else once(arguments)
    except Failure as failure:
        print(clean(failure), file=sys.stderr)
        return 1
    except KeyboardInterrupt:
        return 130
    except BrokenPipeError:  # whoever read the answer has enough of it
        os.dup2(os.open(os.devnull, os.O_WRONLY), sys.stdout.fileno())
        return 1
    except OSError as error:  # a full disk, mostly
        os.dup2(os.open(os.devnull, os.O_WRONLY), sys.stdout.fileno())
        print(f"The answer can't be written: {error.strerror}.", file=sys.stderr)
        return 1
    return 0


if __name__ == "__main__":
    sys.exit(main())
