#!/usr/bin/env python3
"""The terminal client: `python chat.py`. It uses only the HTTP API and is a single file that can be copied anywhere.

Responses are not trusted: no control character reaches the terminal. Amounts are exact Decimals.
The syntax is limited to Python 3.9, so that an older Python can still print the message about missing packages.
"""

from __future__ import annotations

import argparse
import base64
import errno
import json
import logging
import os
import re
import secrets
import sys
import time
import uuid
from collections.abc import Callable, Generator, Iterable, Iterator, Mapping
from contextlib import contextmanager, suppress
from datetime import datetime
from decimal import ROUND_HALF_UP, Decimal
from pathlib import Path
from queue import Empty, SimpleQueue
from threading import Event as Signal
from threading import Lock, Thread
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
LOOPBACK = ("127.0.0.1", "localhost", "::1")
UNREACHABLE, LOST, BUSY, LIMITED = "unreachable", "lost", "session_busy", "rate_limited"
UNKNOWN = "session_not_found"
SESSION_ID = re.compile(r"[A-Za-z0-9][A-Za-z0-9._-]{0,63}")
OPENAI_ID = re.compile(r"(?:conv_([0-9a-f]{32})|resp_([0-9a-f]{32})[0-9a-f]{8})")  # of openai/v1: each has a session's
CUT_OPENAI_ID = re.compile(r"(?:conv|resp)_[0-9a-f]{8,}")
MAX_RETRY_DELAY_S = 5.0  # a longer Retry-After wins
HISTORY_TURNS = LISTED_SESSIONS = 20
MAX_TOOL_LINE = 200  # characters of a tool call or result in the history
PARTS = {"file": "[file]", "input_audio": "[audio]"}  # any other without text is an image
HELP = """\
quit, exit   end the program, like Ctrl-D
clear        clear the messages; the totals are kept
tokens       tokens of this session
cost         exact cost of this session
history      the last turns
sessions     your sessions, newest first; /sessions TEXT searches their titles
/open N      continue the session with this number in the list
help         this text; each command also works with a slash: /help

Enter sends. Alt-Enter (or Esc, Enter) starts a new line; pasted text may have
several lines. The arrow keys recall earlier messages. Ctrl-C stops an answer
and its turn: only what was generated until then is billed. A second Ctrl-C
meanwhile ends the program."""
RETRY_NOTICES = {
    LOST: "The connection was lost. Retrying as the same request, so it is not billed twice.",
    UNREACHABLE: "The server does not respond. Retrying.",
    BUSY: "Another turn of this session is still running. Waiting until it ends.",
    LIMITED: "{reason} Retrying in {delay:g} s.",
}
NO_LIST = (
    "Only your own sessions are listed: those of an account (`chat.py login`, --token) or of a client key"
    " (--client-key). This terminal sends neither, so its sessions have no owner."
)
NOT_ACCEPTED = "Stopped. The server had not accepted the message: it costs nothing."
BUDGETS = {"usd_per_day": "daily budget", "usd_per_month": "monthly budget"}


STOP_GRACE_S = 1.0  # a request that has not begun a turn by then may be one that does not report it (--no-stream)
STOP_POLL_S = 0.25
MAX_STOP_S = 15.0  # a turn on another instance stops within 10 s
STATE_NOTES = {
    "added": "(Added by a program, without an answer; no cost.)",
    "open": "(Still running, or interrupted.)",
    "failed": "(Failed; no cost.)",
    "abandoned": "(Abandoned before the model was called; no cost.)",
    "unaccounted": "(Interrupted; it may have been billed.)",
}


def turn_note(turn: JSON) -> str | None:
    """Why a stored turn has no complete answer or no cost; None if it has both."""
    state, reason = turn["state"], turn["finish_reason"]
    if reason == "stopped":
        return f"({stopped_note(turn)})"
    if state == "settled" and reason == "error":
        return "(Broke off; its cost is counted.)"
    if state != "unaccounted" or reason in (None, "error"):
        return STATE_NOTES.get(state)
    if turn["messages"] and turn["messages"][-1]["role"] == "assistant":
        return "(Its usage was not reported; it may have been billed.)"
    return "(Stopped by the content filter; it may have been billed.)"


def stopped_note(turn: JSON) -> str:
    """What a stopped turn cost."""
    if (at_least := turn.get("stopped_at_least_usd")) is not None:
        limits = bounds(at_least, turn["stopped_at_most_usd"])
        return f"Stopped. It costs {limits}, which is counted apart from the session's cost."
    if not turn["usage"]:
        return "Stopped before the model was called; no cost."
    tokens = pluralize(turn["usage"]["total_tokens"], "token")
    return f"Stopped. Cost: {usd(turn['cost_usd'])} for {tokens}."


class Leave(Exception):
    """Ctrl-C was pressed again while an answer was being stopped."""


class Failure(Exception):
    """An error message for the user. `code` is the server's error code, or UNREACHABLE or LOST."""

    def __init__(self, message: str, code: str = "", retry_after: float | None = None) -> None:
        super().__init__(message)
        self.code, self.retry_after = code, retry_after

    @classmethod
    def reported(cls, error: JSON, retry_after: float | None) -> Failure:
        """An error of the server, with the time of a budget's reset in this machine's time zone."""
        message, resets_at = str(error["message"]), str(error.get("resets_at") or "")
        return cls(
            message.replace(resets_at, local_time(resets_at)) if resets_at else message, error["code"], retry_after
        )

    @property
    def reason(self) -> str:
        """The first sentence of the message; the others say what to do."""
        return str(self).partition(". ")[0].rstrip(".") + "."


class Event(NamedTuple):
    name: str
    data: JSON
    text: str = ""  # the data as received


# Output

PARSER = MarkdownIt("commonmark", {"html": False}).enable(["table", "strikethrough"])  # HTML tags are shown as text
CONTROL = re.compile(
    r"(?:\x1b\[|\x9b)[0-?]*[ -/]*[@-~]"  # complete sequences: colours and the cursor,
    r"|(?:\x1b[]PX^_]|[\x90\x98\x9d-\x9f])[^\x07\x1b\x9c]*(?:\x07|\x1b\\|\x9c)"  # titles, links, the clipboard;
    r"|[\x00-\x08\x0b-\x1f\x7f-\x9f\u202a-\u202e\u2066-\u2069]"  # any other control character
)


def clean(text: object) -> str:
    """Remove terminal control sequences and characters that change the text direction."""
    return CONTROL.sub("", str(text))


def json_line(raw: str) -> str:
    """The same JSON as one line that is safe on a terminal: control characters and line separators are escaped."""
    return re.sub(r"[\x7f-\x9f\u2028-\u202e\u2066-\u2069]", lambda match: f"\\u{ord(match[0]):04x}", raw.strip())


def usd(amount: Decimal | int | None) -> str:
    """At least four decimals and two significant digits, so that a small cost is never shown as zero."""
    if amount is None:
        return "unknown"
    if not amount:
        return "$0.00"
    amount = Decimal(amount)
    places = max(4, 1 - amount.adjusted())
    return f"${amount.quantize(Decimal(1).scaleb(-places), ROUND_HALF_UP):f}"


def local_time(utc: str) -> str:
    """In this machine's time zone: Sun 29 Nov, 01:00. Unchanged if it can't be read."""
    try:
        local = datetime.fromisoformat(utc.replace("Z", "+00:00")).astimezone()
    except (ValueError, OverflowError):
        return utc
    return f"{local:%a} {local.day} {local:%b}, {local:%H:%M}"


def local_day(utc: str) -> str:
    """In this machine's time zone: 2026-11-29. The first ten characters if it can't be read."""
    try:
        return f"{datetime.fromisoformat(utc.replace('Z', '+00:00')).astimezone():%Y-%m-%d}"
    except (ValueError, OverflowError):
        return utc[:10]


def pluralize(number: int, noun: str) -> str:
    return f"{number} {noun}" if number == 1 else f"{number} {noun}s"


def bounds(at_least: Decimal | int, at_most: Decimal | int | None, format_usd: Callable[[Any], str] = usd) -> str:
    """`at_most`: None if the price is not known."""
    if at_most is None:
        return f"at least {format_usd(at_least)}"
    return f"between {format_usd(at_least)} and {format_usd(at_most)}"


def cost_line(totals: Mapping[str, Any], format_usd: Callable[[Any], str] = usd) -> str:
    """The cost, followed by what it does not include."""
    unpriced, unaccounted, upper_bound = (
        totals[name] for name in ("unpriced_turns", "unaccounted_calls", "unaccounted_usd")
    )
    parts = ["unknown" if unpriced and not totals["cost_usd"] else format_usd(totals["cost_usd"])]
    if unpriced:
        parts.append(f"{pluralize(unpriced, 'turn')} of unknown price")
    if unaccounted:
        limit = f"at most {format_usd(upper_bound)}" if upper_bound else "price not known"
        parts.append(f"{pluralize(unaccounted, 'call')} unaccounted, {limit}")
    if stopped := totals.get("stopped_calls"):  # absent in servers up to 0.2.0
        limits = bounds(totals["stopped_at_least_usd"], totals["stopped_at_most_usd"], format_usd)
        parts.append(f"{pluralize(stopped, 'call')} stopped, {limits}")
    if totals.get("busy"):
        parts.append("a turn is still running")
    return " | ".join(parts)


def message_text(message: JSON) -> str:
    """The text of a message, and a line for each tool call."""
    return "\n".join(filter(None, [content_text(message), *call_lines(message)]))


def content_text(message: JSON) -> str:
    """The text of a message, with a placeholder for each image and file."""
    content = message.get("content") or message.get("refusal") or ""
    if isinstance(content, list):
        content = "\n".join(part.get("text", PARTS.get(str(part.get("type")), "[image]")) for part in content)
    return str(content)


def tool_calls(message: JSON) -> Iterator[tuple[str | None, JSON]]:
    """The id of each tool call, and its function or custom tool."""
    for call in message.get("tool_calls") or ():
        yield call.get("id"), call.get("function") or call["custom"]
    if message.get("function_call"):  # deprecated form of tool calls
        yield None, message["function_call"]


def call_lines(message: JSON) -> list[str]:
    return [
        tool_line(f"calls {tool['name']}", str(tool.get("arguments") or tool.get("input") or ""))
        for _, tool in tool_calls(message)
    ]


def tool_line(title: str, text: str) -> str:
    """A tool's arguments or its result on one line. A JSON object is shown as its fields."""
    with suppress(ValueError, RecursionError):
        if isinstance(fields := json.loads(text), dict):
            values = (
                value if isinstance(value, str) else json.dumps(value, ensure_ascii=False) for value in fields.values()
            )
            text = ", ".join(map("{}: {}".format, fields, values))
    line = " ".join(text.split())
    line = line if len(line) <= MAX_TOOL_LINE else f"{line[: MAX_TOOL_LINE - 1]}…"
    return f"[{title}: {line}]" if line else f"[{title}]"


# Signing in, where people do: https://learn.microsoft.com/entra/identity-platform/v2-oauth2-device-code

SIGN_INS = Path("~/.chat-api-sign-ins")
NO_KEYSTORE = (
    "The sign-in can't be stored: that takes `pip install msal-extensions`, and on Linux an unlocked keyring and "
    "PyGObject."
)
LOG_IN = "Sign in with `chat.py login`"
# Role assignments take minutes to apply: docs/troubleshooting.md, "401, 403 or 503 after a deployment".
JUST_DEPLOYED = "If the app was just deployed: wait some minutes, then run `azd deploy`."
DEVICE_GRANT = "urn:ietf:params:oauth:grant-type:device_code"
RENEW_S = 300  # before a token expires
SIGN_IN_ERRORS = {
    "authorization_declined": "The sign-in was declined.",
    "access_denied": "The sign-in was declined.",
    "expired_token": "The code has expired: sign in again.",
    "code_expired": "The code has expired: sign in again.",
}


class SignIn(httpx.Auth):
    """Sends a person's access token with every request, and renews it. `account`: authority, tenant_id, client_id and
    scope as the server names them, and name, token, expires (seconds since 1970) and refresh_token."""

    def __init__(self, account: JSON, save: Callable[[JSON], object] = lambda _: None) -> None:
        self.account, self._save, self._lock = account, save, Lock()

    @property
    def name(self) -> str:
        return clean(self.account["name"])

    def auth_flow(self, request: httpx.Request) -> Generator[httpx.Request, httpx.Response, None]:
        with self._lock:
            if time.time() > self.account["expires"] - RENEW_S:
                self._renew()
            request.headers["Authorization"] = f"Bearer {self.account['token']}"
        yield request

    def _renew(self) -> None:
        form = {"grant_type": "refresh_token", "refresh_token": self.account["refresh_token"]}
        try:
            status, answer = request_tokens(self.account, "token", form)
        except Failure:
            if time.time() < self.account["expires"]:
                return
            raise
        if status != 200:
            raise Failure(f"Your sign-in has expired. {LOG_IN}.", "unauthorized")
        self.account.update(account_tokens(answer))
        self._save(self.account)


def request_tokens(people: JSON, endpoint: str, form: Mapping[str, str]) -> tuple[int, JSON]:
    """The status and the answer of an endpoint of the authority. Raises Failure."""
    url = f"{people['authority']}/{people['tenant_id']}/oauth2/v2.0/{endpoint}"
    scope = f"openid profile offline_access {people['scope']}"
    try:
        with http_client(url) as http:
            response = http.post(url, data={"client_id": people["client_id"], "scope": scope, **form})
    except httpx.HTTPError as error:
        problem = f"Cannot connect to the sign-in service, {people['authority']} ({error or type(error).__name__})."
        raise Failure(problem, UNREACHABLE) from error
    with suppress(ValueError):
        answer = response.json()
        if isinstance(answer, dict) and response.status_code in (200, 400, 401):
            return response.status_code, answer
    raise Failure(f"The sign-in service, {people['authority']}, returned HTTP {response.status_code}.", UNREACHABLE)


def account_tokens(answer: JSON) -> JSON:
    return {
        "token": answer["access_token"],
        "expires": time.time() + answer["expires_in"],
        "refresh_token": answer.get("refresh_token"),
    }


def signed_in(people: JSON, show: Callable[[str], None]) -> JSON:
    """Sign in by a code that is entered in a browser, on any device. Returns the account. Raises Failure."""
    status, device = request_tokens(people, "devicecode", {})
    if status != 200:
        raise sign_in_failure(device)
    show(f"To sign in, open {device['verification_uri']} and enter the code {device['user_code']}")
    interval = device.get("interval", 5)
    while True:
        time.sleep(interval)
        status, answer = request_tokens(
            people, "token", {"grant_type": DEVICE_GRANT, "device_code": device["device_code"]}
        )
        if status == 200:
            return {**people, "name": account_name(answer.get("id_token", "")), **account_tokens(answer)}
        if answer.get("error") == "slow_down":
            interval += 5
        elif answer.get("error") != "authorization_pending":
            raise sign_in_failure(answer)


def sign_in_failure(answer: JSON) -> Failure:
    """Entra's descriptions end in IDs for its support."""
    description = str(answer.get("error_description") or answer.get("error")).partition("Trace ID:")[0].strip()
    return Failure(SIGN_IN_ERRORS.get(str(answer.get("error"))) or f"Signing in failed: {description}", "unauthorized")


def account_name(id_token: str) -> str:
    """Only shown, so the signature does not matter."""
    with suppress(ValueError, LookupError):
        part = id_token.split(".")[1]
        return str(json.loads(base64.urlsafe_b64decode(part + "=" * (-len(part) % 4)))["name"])
    return "you"


class SignIns:
    """The accounts by server URL, in the operating system's keystore: Keychain, DPAPI or libsecret, by the library that
    azure-identity's persistent cache uses too. Unavailable without that library or without a keystore."""

    def __init__(self) -> None:
        self._store: Any = None
        with suppress(Exception):  # of the library, of PyGObject and of the keystore
            logging.getLogger("msal_extensions").setLevel(logging.CRITICAL + 1)
            from msal_extensions import build_encrypted_persistence  # type: ignore[import-untyped]

            self._store = build_encrypted_persistence(str(SIGN_INS.expanduser()))

    @staticmethod
    def exist() -> bool:
        """Whether any may be stored. The library takes a moment to import; it leaves a file there."""
        with suppress(RuntimeError):  # there is no home directory
            return SIGN_INS.expanduser().exists()
        return False

    @property
    def available(self) -> bool:
        return self._store is not None

    def of(self, url: str) -> SignIn | None:
        account = (self._accounts() or {}).get(url)
        return SignIn(account, lambda changed: self.save(url, changed)) if account else None

    def save(self, url: str, account: JSON | None) -> bool:
        """None deletes it. False if the keystore refuses."""
        stored = self._accounts()
        if stored is None:
            return False
        accounts = {**stored, url: account}
        with suppress(Exception):
            self._store.save(json.dumps({url: account for url, account in accounts.items() if account}))
            return True
        return False

    def _accounts(self) -> dict[str, JSON] | None:
        """None if the keystore can't be read, such as a locked one: a save would drop what it stores."""
        try:
            stored = self._store.load()
        except Exception as error:  # of the library, of PyGObject and of the keystore
            return {} if getattr(error, "errno", None) == errno.ENOENT else None  # nothing is stored yet
        with suppress(ValueError):
            if isinstance(accounts := json.loads(stored), dict):
                return accounts
        return {}


def log_in(arguments: argparse.Namespace, show: Callable[[str], None], *, interactive: bool) -> SignIn | None:
    """Returns the sign-in if it could not be stored. Raises Failure."""
    accepted, sign_ins = ChatApi(arguments.url).get("/api/sign-in"), SignIns()
    if not sign_ins.available and not interactive:
        raise Failure(f"{NO_KEYSTORE} Set CHAT_TOKEN instead.")
    try:
        account = signed_in(people_of(arguments.url, accepted), show)
    except (LookupError, TypeError, ValueError, AttributeError):
        raise Failure("The answer of the sign-in service can't be read.") from None
    show(f"Signed in to {arguments.url} as {account['name']}.")
    if sign_ins.save(arguments.url, account):
        return None
    if not interactive:
        raise Failure(f"{NO_KEYSTORE} Set CHAT_TOKEN instead.")
    show(f"{NO_KEYSTORE} You are signed in until you quit.")
    return SignIn(account)


def people_of(url: str, accepted: JSON) -> JSON:
    """How people sign in at the server. Raises Failure."""
    people = accepted["people"]
    if not people:
        keys = "--key" if accepted["function_keys"] else "--client-key"
        raise Failure(f"People do not sign in at {url}; it takes keys: {keys}.")
    authority = urlsplit(people["authority"])
    if authority.scheme != "https" and authority.hostname not in LOOPBACK:
        raise Failure(f"The sign-in service that {url} names is not safe: {people['authority']} has no TLS.")
    return dict(people)


# The HTTP API


def http_client(url: str, **options: Any) -> httpx.Client:
    """Raises Failure."""
    try:
        return httpx.Client(
            timeout=httpx.Timeout(10, read=240),  # the platform closes a request after 230 s of silence
            verify=url.startswith("https:"),  # loading certificates takes 50 ms; redirects are not followed
            trust_env=urlsplit(url).hostname not in LOOPBACK,  # no proxy on loopback
            **options,
        )
    except (ImportError, OSError, ValueError, httpx.InvalidURL) as error:
        raise Failure(f"Invalid proxy or certificate setting in the environment: {error}") from error


class ChatApi:
    """The routes of api/*. Every method raises Failure. `key`, `client_key`: the function key and the client key;
    `token`: a person's access token, or `sign_in`, which renews it."""

    def __init__(
        self,
        url: str,
        key: str | None = None,
        client_key: str | None = None,
        token: str | None = None,
        sign_in: SignIn | None = None,
    ) -> None:
        self.url, self._has_key, self._has_client_key, self._has_token = url, bool(key), bool(client_key), bool(token)
        self.by_person = bool(token or sign_in)
        self.owns_sessions = self.by_person or bool(client_key)
        bearer = f"Bearer {token}" if token else None
        keys = {"x-functions-key": key, "api-key": client_key, "Authorization": bearer}
        self._http = http_client(
            url, base_url=url, headers={name: value for name, value in keys.items() if value}, auth=sign_in
        )

    def get(self, path: str) -> JSON:
        return json_object(self.request("GET", path))

    def post(self, path: str) -> JSON:
        return json_object(self.request("POST", path))

    def request(self, method: str, path: str) -> str:
        with self._connection():
            response = self._http.request(method, path)
            if not response.is_success:
                raise self._failure(response)
            return response.text

    def send_turn(self, body: JSON, idempotency_key: str) -> Iterator[Event]:
        """Make one attempt at a turn. An answer that is not streamed becomes a single `done` event."""
        with (
            self._connection(),
            self._http.stream("POST", "/api/chat", json=body, headers={"Idempotency-Key": idempotency_key}) as response,
        ):
            if not response.is_success:
                response.read()
                raise self._failure(response)
            if not response.headers.get("content-type", "").startswith("text/event-stream"):
                response.read()
                yield Event("done", json_object(response.text), response.text)
                return
            for event in events(response.iter_bytes()):
                if event.name == "error":
                    raise Failure.reported(event.data, event.data["retry_after"])
                yield event

    @contextmanager
    def _connection(self) -> Iterator[None]:
        try:
            yield
        except (httpx.ConnectError, httpx.ConnectTimeout) as error:
            raise Failure(
                f"Cannot connect to {self.url} ({error}). Start the server with `make run`, or set its URL with"
                " --url or CHAT_URL.",
                UNREACHABLE,
            ) from error
        except httpx.HTTPError as error:
            raise Failure(f"The connection to {self.url} was lost ({error or type(error).__name__}).", LOST) from error

    def _failure(self, response: httpx.Response) -> Failure:
        status = response.status_code
        if status == 401 and (self._has_token or "authorization_uri" in response.headers.get("www-authenticate", "")):
            return self._sign_in_failure(response)
        if status == 401 and response.content:  # the platform's answer, about a function key, has no body
            remedy = "Set it with --client-key or CHAT_CLIENT_KEY; CLIENT_KEYS lists the valid ones"
            wrong, missing = f"Invalid client key for {self.url}", f"{self.url} requires a client key"
            return Failure(f"{wrong if self._has_client_key else missing} (401). {remedy}.", "unauthorized")
        if status == 401:
            problem = f"Invalid function key for {self.url}" if self._has_key else f"{self.url} requires a function key"
            remedy = "Set it with --key or CHAT_KEY; `az functionapp keys list -g GROUP -n APP` shows it"
            return Failure(f"{problem} (401). {remedy}. {JUST_DEPLOYED}", "unauthorized")
        try:
            failure = Failure.reported(response.json()["error"], _retry_after(response))
        except (ValueError, LookupError, TypeError, AttributeError):
            if status in (502, 503, 504):
                return Failure(f"The gateway in front of {self.url} returned {status}. {JUST_DEPLOYED}", LOST)
            if status == 403:
                return Failure(
                    f"The platform or a gateway in front of {self.url} refused (403). {JUST_DEPLOYED}", "forbidden"
                )
            if status == 429:  # sent by the platform, without a body
                return Failure(f"{self.url} is overloaded (429).", LIMITED, _retry_after(response))
            target = f" and redirects to {response.headers['location']}" if response.is_redirect else ""
            return self._wrong_url(f" (HTTP {status}){target}")
        if failure.code == "route_not_found":
            return self._wrong_url(f" (no route {response.request.url.path})")
        return failure

    def _sign_in_failure(self, response: httpx.Response) -> Failure:
        reason = "A function key is not enough." if self._has_key else ""
        if self._has_token or "invalid_token" in response.headers.get("www-authenticate", ""):
            try:
                reason = str(response.json()["error"]["message"])
            except (ValueError, LookupError, TypeError):
                reason = "The token is not accepted."
        remedy = f"{LOG_IN}, or set {'another ' if self._has_token else ''}CHAT_TOKEN."
        return Failure(
            " ".join(filter(None, [f"{self.url} requires a sign-in (401).", reason, remedy])), "unauthorized"
        )

    def _wrong_url(self, reason: str) -> Failure:
        return Failure(f"The server at {self.url} is not the chat API{reason}; check --url.")


def _retry_after(response: httpx.Response) -> float | None:
    """In seconds."""
    value = response.headers.get("retry-after", "")
    return float(value) if value.isdecimal() else None


def json_object(text: str) -> JSON:
    """Parse a response; decimal fractions become Decimal."""
    with suppress(ValueError):
        value = json.loads(text, parse_float=Decimal)
        if isinstance(value, dict):
            return value
    raise Failure("The server is not the chat API; check --url.")


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
                yield Event(name, json_object(text), text)
            name, data = "", []


def lines(parts: Iterable[bytes]) -> Iterator[str]:
    """Split at LF, CR and CRLF only: JSON may contain the other characters at which str.splitlines splits."""
    pending = b""
    for part in parts:
        *whole, pending = re.split(rb"\r\n|\n|\r(?!\Z)", pending + part)  # a trailing CR may be half of a CRLF
        yield from (line.decode("utf-8", "replace") for line in whole)


# A turn


class View:
    """Shows an answer; this base class discards it. A retry receives the answer from its start again: if the text
    matches what is already shown, only the rest is written."""

    def __init__(self) -> None:
        self._received = self._shown = ""

    def write(self, text: str) -> None: ...

    def idle(self) -> None:
        """Called when no event has arrived for a moment."""

    def close(self) -> None: ...

    def restart(self) -> None:
        """Called before a retry."""
        self._received = ""

    def add(self, text: str) -> None:
        self._received += text
        if not self._shown.startswith(self._received):
            continues = self._received.startswith(self._shown)
            new = self._received[len(self._shown) :] if continues else f"\n\n{self._received}"
            self._shown = self._received  # before writing, which Ctrl-C may interrupt
            self.write(new)

    def add_message(self, message: JSON) -> None:
        """Add a complete message, unless its text has been streamed."""
        if not self._received:
            self.add(message_text(message))


class PlainView(View):
    def write(self, text: str) -> None:
        print(clean(text), end="", flush=True)

    def close(self) -> None:
        if self._shown and not self._shown.endswith("\n"):
            print(flush=True)


class RenderedMarkdown:
    """Markdown as lines: all of them, or the last `height`."""

    def __init__(self, text: str, height: int = 0) -> None:
        self._markdown = Markdown("", hyperlinks=False, code_theme="ansi_dark")  # prints the target of each link
        self._markdown.parsed = PARSER.parse(clean(text))
        for token in self._markdown.parsed:
            if token.children:
                token.children = [replacement for child in token.children for replacement in printable(child)]
        self._height = height

    def __rich_console__(self, console: Console, options: ConsoleOptions) -> RenderResult:
        rows = [trimmed(line) for line in console.render_lines(self._markdown, options, pad=False)]
        nonblank = [number for number, row in enumerate(rows) if row]
        for row in rows[nonblank[0] : nonblank[-1] + 1][-self._height :] if nonblank else ():
            yield from row
            yield Segment.line()


def printable(token: Token) -> list[Token]:
    """Keep line breaks, and turn an image into a link, which prints its target."""
    if token.type == "softbreak":
        token.type = "hardbreak"
    if token.type != "image":
        return [token]
    link = Token("link_open", "a", 1, attrs={"href": token.attrs["src"]})
    return [link, Token("text", "", 0, content=token.content or "image"), Token("link_close", "a", -1)]


def trimmed(line: list[Segment]) -> list[Segment]:
    """Remove trailing blanks, which would be copied along, and control characters made by Markdown entities."""
    segments = [Segment(clean(segment.text), segment.style) for segment in line]
    while segments and not segments[-1].text.strip():
        segments.pop()
    return [*segments[:-1], Segment(segments[-1].text.rstrip(), segments[-1].style)] if segments else []


class MarkdownView(View):
    """Streams Markdown to a terminal: prints each finished block once and redraws the last one as it grows."""

    def __init__(self, console: Console) -> None:
        super().__init__()
        self._console, self._tail, self._printed_blocks = console, "", 0
        self._next_draw, self._drawn = 0.0, True
        # Only this thread draws: rich's refresh thread would sometimes erase a line too many or too few.
        self._live = Live(Text("…"), console=console, auto_refresh=False, transient=True)
        self._live.start(refresh=True)

    def write(self, text: str) -> None:
        self._tail += text
        self._drawn = False
        self.idle()

    def idle(self) -> None:
        """Redraw, for at most a fifth of the time: a long block is slow to draw and changes with every delta."""
        began = time.monotonic()
        if not self._drawn and began >= self._next_draw:
            self._draw()
            ended = time.monotonic()
            self._next_draw, self._drawn = ended + 4 * (ended - began), True

    def close(self) -> None:
        self._live.stop()
        self._print_finished()
        self._print(self._tail)

    def _draw(self) -> None:
        self._print_finished()
        last_block = RenderedMarkdown(self._tail, max(3, self._console.height - 2))
        self._live.update(self._spaced(last_block), refresh=True)

    def _print_finished(self) -> None:
        """Print the blocks one by one: rich spaces several in one print differently, and their number varies."""
        rows, printed = self._tail.split("\n"), 0
        starts = [token.map[0] for token in PARSER.parse(self._tail) if token.level == 0 and token.map]
        for start in starts[1:]:
            self._print("\n".join(rows[printed:start]))
            printed = start
        self._tail = "\n".join(rows[printed:])

    def _print(self, text: str) -> None:
        if text.strip():
            self._console.print(self._spaced(RenderedMarkdown(text)), end="")
            self._printed_blocks += 1

    def _spaced(self, block: RenderedMarkdown) -> Group:
        return Group("", block) if self._printed_blocks else Group(block)


def read_in_thread(events: Iterator[Event], view: View) -> Iterator[Event]:
    """The same events, read by another thread, so that this thread can call `view.idle` between them."""
    queue: SimpleQueue[Event | Exception | None] = SimpleQueue()

    def read() -> None:
        try:
            for event in events:
                queue.put(event)
            queue.put(None)
        except Exception as error:
            queue.put(error)

    Thread(target=read, daemon=True).start()  # a daemon: after Ctrl-C the rest is not needed
    while True:
        try:
            event = queue.get(timeout=0.05)  # on Windows Ctrl-C is not noticed during a wait
        except Empty:
            view.idle()
            continue
        if event is None:
            return
        if isinstance(event, Exception):
            raise event
        yield event


class Attempt:
    """One request for a turn, as the thread that reads its events sees it. `turns`: gets the turn's number."""

    def __init__(self, events: Iterator[Event], turns: list[int]) -> None:
        self._events, self._turns = events, turns
        self._known, self._ended = Signal(), Signal()

    def __iter__(self) -> Iterator[Event]:
        try:
            for event in self._events:
                if event.name in ("start", "done"):
                    self._turns.append(event.data["turn"])
                    self._known.set()
                yield event
        finally:
            self._ended.set()
            self._known.set()

    @property
    def running(self) -> bool:
        return not self._ended.is_set()

    def wait(self, seconds: float) -> None:
        """Wait until it is known whether the turn has begun."""
        self._known.wait(seconds)


class Conversation:
    """One session: sends its messages, with retries, and stops them."""

    def __init__(self, api: ChatApi, arguments: argparse.Namespace, notify: Callable[[str], None]) -> None:
        self._api, self._notify, self._max_wait_s = api, notify, float(arguments.wait)
        self._named = arguments.session  # as the user named it
        self.id: str = session_of(self._named) if self._named else secrets.token_hex(16)
        options = {name: getattr(arguments, name) for name in ("system", "deployment", "max_tokens", "stream")}
        self._fields = {name: value for name, value in options.items() if value is not None} | {"session_id": self.id}
        self._unanswered: dict[str, str] = {}  # the last failed message -> its Idempotency-Key
        self._may_be_running = False  # a turn for the current message
        self._lost = False  # the connection of an earlier attempt, whose turn may be running
        self._current: Attempt | None = None  # the latest one for the current message
        self._turns: list[int] = []  # that the current message has begun

    @property
    def path(self) -> str:
        return f"/api/sessions/{quote(self.id, safe='')}"

    @property
    def must_exist(self) -> bool:
        """True if it was named by an id of openai/v1: only the server makes those."""
        return bool(self._named) and self.id != self._named

    def read(self) -> JSON:
        """Its settings and totals."""
        try:
            return self._api.get(self.path)
        except Failure as failure:
            if failure.code != UNKNOWN or not self.must_exist:
                raise
            unavailable = f"{self._named} does not exist, or belongs to another"
            if self._api.by_person:
                raise Failure(f"{unavailable} account or client key.") from None
            raise Failure(f"{unavailable} client key. Set the key with --client-key or CHAT_CLIENT_KEY.") from None

    def send(self, message: str, view: View) -> Event:
        """Return the `done` event. Sending a failed message again is the same request, so it is not billed twice.
        Ctrl-C stops the turn, says what it cost, and raises KeyboardInterrupt; or Leave if it is pressed again."""
        key = self._unanswered.get(message) or str(uuid.uuid4())
        self._unanswered = {message: key}
        try:
            try:
                answer = self._send_with_retries({**self._fields, "message": message}, key, view)
            finally:
                view.close()
        except KeyboardInterrupt:
            self._unanswered = {}
            self._stop_or_leave()
            raise
        self._unanswered = {}
        return answer

    def _send_with_retries(self, body: JSON, idempotency_key: str, view: View) -> Event:
        """Retry after a lost connection, while the session is busy and when rate limited, until `--wait` seconds after
        the first such failure."""
        deadline, backoff, notified, lost = 0.0, 0.25, "", False
        self._lost, self._current, self._turns = False, None, []
        while True:
            try:
                self._may_be_running = True
                return self._attempt(body, idempotency_key, view)
            except Failure as failure:
                if failure.code == UNKNOWN:  # a message to a session that does not exist would start it
                    unavailable = f"Session {self.id} is owned by another caller or is being deleted."
                    remedy = "Set its client key with --client-key, or choose another with --session."
                    remedy = "Choose another with --session." if self._api.by_person else remedy
                    raise Failure(f"{unavailable} {remedy}") from None
                if failure.code not in (LOST, BUSY, LIMITED) and not (failure.code == UNREACHABLE and lost):
                    raise
                self._may_be_running = self._lost = lost = lost or failure.code == LOST
                now = time.monotonic()
                deadline = deadline or now + self._max_wait_s
                delay = failure.retry_after or 1.0 if failure.code == LIMITED else backoff
                if now + delay > deadline:
                    raise self._gave_up(failure) from failure
                if failure.code != notified:
                    notified = failure.code
                    self._notify(
                        f"{RETRY_NOTICES[notified].format(reason=failure.reason, delay=delay)} Ctrl-C cancels."
                    )
            time.sleep(delay)
            backoff = min(2 * backoff, MAX_RETRY_DELAY_S)
            view.restart()

    def _attempt(self, body: JSON, idempotency_key: str, view: View) -> Event:
        self._current = Attempt(self._api.send_turn(body, idempotency_key), self._turns)
        for event in read_in_thread(iter(self._current), view):
            if event.name == "delta":
                view.add(event.data.get("content") or event.data.get("refusal") or "")
            elif event.name == "done":
                view.add_message(event.data["message"])
                return event
        raise Failure("The connection was lost during the answer.", LOST)

    def _stop_or_leave(self) -> None:
        try:
            self._notify(self._stop() if self._is_accepted() else NOT_ACCEPTED)
        except Failure as failure:
            self._notify(f"The answer could not be stopped: the server completes and counts it. {failure}")
        except KeyboardInterrupt:
            self._notify("Left before the answer was stopped.")
            raise Leave from None

    def _is_accepted(self) -> bool:
        """True if the current message may have begun a turn. The session's running turn may be another's."""
        if not self._may_be_running or self._current is None:
            return False
        self._current.wait(STOP_GRACE_S)
        return bool(self._lost or self._turns or self._current.running)

    def _stop(self) -> str:
        """Stop the current turn. Returns what it cost."""
        deadline = time.monotonic() + MAX_STOP_S
        reached = self._request_stop()
        while reached["state"] == "idle" and self._is_beginning() and time.monotonic() < deadline:
            time.sleep(STOP_POLL_S)
            reached = self._request_stop()
        if reached["state"] == "stopping":
            self._notify("Another instance of the server runs the turn: it stops within 10 s. Ctrl-C leaves.")
            while self._api.get(self.path)["busy"] and time.monotonic() < deadline:
                time.sleep(STOP_POLL_S)
        number = self._turns[-1] if self._turns else reached["turn"]
        if not self._turns and reached["state"] == "idle":
            return "Stopped. The message may not have been accepted; `history` shows it."
        [turn] = self._api.get(f"{self.path}/messages?limit=1&before={number + 1}")["turns"]
        if turn["finish_reason"] == "stopped":
            return stopped_note(turn)
        if turn["state"] == "open":
            return "The turn is not stopped yet; `history` shows it."
        return f"The answer was complete before the stop. Cost: {usd(turn['cost_usd'])}; `history` shows it."

    def _request_stop(self) -> JSON:
        try:
            return self._api.post(f"{self.path}/stop")
        except Failure as failure:
            if failure.code != UNKNOWN:
                raise
            return {"state": "idle", "turn": 0}  # its first turn has not begun

    def _is_beginning(self) -> bool:
        """True if a request is running whose turn has not begun, as far as is known."""
        return self._current is not None and self._current.running and not self._turns

    def _gave_up(self, failure: Failure) -> Failure:
        limited = failure.code == LIMITED and failure.retry_after
        retry_after = f" Retry-After is {failure.retry_after:g} s." if limited else ""
        message = f"{failure}{retry_after} Gave up: --wait allows {self._max_wait_s:g} s in total."
        if self._may_be_running:
            message += f" The message may still have been answered and counted; see session {self.id}."
        return Failure(message, failure.code)


def is_empty(message: JSON) -> bool:
    """True if the answer is empty; the server's notice then says why."""
    return not any(message.get(kind) for kind in ("content", "refusal", "tool_calls"))


def answer_notes(answer: JSON, show_tokens: bool) -> Iterator[str]:
    """The lines to show below an answer."""
    if answer.get("notice"):
        yield f"({answer['notice']})"
    if answer["finish_reason"] == "length" and not is_empty(answer["message"]):
        yield "(Cut off at the token limit; --max-tokens raises it.)"
    if answer["finish_reason"] == "stopped":  # by another client
        yield f"({stopped_note(answer)})"
    if answer["finish_reason"] == "content_filter":
        yield "(Cut off by the content filter.)"
    if truncated := answer.get("truncated"):
        begun = truncated is True or "content" in truncated  # True: servers up to 0.2.0
        part = "has only its beginning" if begun else f"lacks its {', '.join(truncated)}"
        yield f"(Too long to be stored; the history {part}.)"
    for budget in answer.get("limits") or ():
        left = usd(budget["remaining_usd"]) if budget["remaining_usd"] else "Nothing"
        name = BUDGETS.get(budget["name"], "budget")
        yield f"({left} of your {name} is left until {local_time(budget['resets_at'])}.)"
    if show_tokens:
        tokens = answer["usage"]["total_tokens"] if answer["usage"] else "unknown"
        yield f"[Tokens used: {tokens} | Estimated cost: {usd(answer['cost_usd'])}]"


# Piped and interactive use


def answer_stdin(arguments: argparse.Namespace) -> None:
    """Send one message from standard input. The answer goes to standard output, everything else to standard error."""

    def notify(text: str) -> None:
        print(clean(text), file=sys.stderr, flush=True)

    conversation = Conversation(connection(arguments), arguments, notify)
    message = read_stdin()
    if conversation.must_exist:
        conversation.read()
    answer = conversation.send(message, View() if arguments.json else view_for(Console()))
    if arguments.json:
        print(json_line(answer.text), flush=True)
    else:
        for note in answer_notes(answer.data, arguments.show_tokens):
            notify(note)


def connection(arguments: argparse.Namespace, sign_in: SignIn | None = None) -> ChatApi:
    """Without `sign_in`, a token or a client key: by a stored sign-in, if there is one."""
    if not (sign_in or arguments.token or arguments.client_key) and SignIns.exist():
        sign_in = SignIns().of(arguments.url)
    return ChatApi(arguments.url, arguments.key, arguments.client_key, arguments.token, sign_in)


def read_stdin() -> str:
    if sys.stdin.isatty():
        print("Type a message, then press Ctrl-D on an empty line to send it.", file=sys.stderr)
    try:
        message = sys.stdin.buffer.read().decode("utf-8-sig").rstrip("\r\n")
    except UnicodeDecodeError as error:
        raise Failure(
            f"The message is not UTF-8 text (byte {error.start}); convert it, for example with iconv."
        ) from None
    if not message.strip():
        raise Failure("No message on standard input. Example: echo hi | python chat.py")
    return message


def view_for(console: Console) -> View:
    return MarkdownView(console) if console.is_terminal and not console.is_dumb_terminal else PlainView()


class Terminal:
    """An interactive conversation."""

    def __init__(self, arguments: argparse.Namespace, sign_in: SignIn | None = None) -> None:
        self._arguments, self._console = arguments, Console(highlight=False)
        self._api = connection(arguments, sign_in)
        self._conversation = Conversation(self._api, arguments, self._note)
        self._listed: list[str] = []  # the ids of the sessions that were listed last
        commands = (self.clear, self.tokens, self.cost, self.history, self.sessions, self.help)
        self._commands: dict[str, Callable[[], None]] = {command.__name__: command for command in commands}
        self._slash_commands: dict[str, Callable[[str], None]] = {
            "/sessions": self.sessions,
            "/open": self.open,
        }  # with a text behind them

    @property
    def _session(self) -> str:
        return self._conversation.path

    def run(self) -> None:
        self._connect()
        prompt = PromptSession[str](
            multiline=True,
            key_bindings=key_bindings(),
            prompt_continuation=lambda _, __, wrapped: "  " if wrapped else "… ",
        )
        while True:
            try:
                line = prompt.prompt("> ").encode("utf-8", "replace").decode().rstrip()
            except KeyboardInterrupt:
                self._note("Press Ctrl-D to quit.")
                continue
            except EOFError:
                break
            if line.strip().lower().removeprefix("/") in ("quit", "exit"):
                break
            try:
                with self._failures(), suppress(KeyboardInterrupt):
                    self._run_line(line)
            except Leave:
                self._note_session()
                raise
        with self._failures():
            totals = self._api.get(self._session)
            self._note(f"Total session: {totals['total_tokens']} tokens | {cost_line(totals)}", "bold")
        self._note_session()

    def _note_session(self) -> None:
        self._note(f"Continue it with: --session {self._conversation.id}")

    @contextmanager
    def _failures(self) -> Iterator[None]:
        try:
            yield
        except Failure as failure:
            if failure.code == UNKNOWN:
                self._note("No messages yet: 0 tokens | $0.00")
            else:
                self._note(str(failure), "red")

    def _connect(self) -> None:
        about, chosen = self._api.get("/api/about"), self._arguments.deployment
        if "deployment" not in about:
            raise Failure(f"The server at {self._api.url} is not the chat API; check --url.")
        if chosen and chosen not in about["deployments"]:
            available = ", ".join(about["deployments"])
            raise Failure(f"There is no deployment {chosen!r}. Choose one with --deployment: {available}.")
        self._note(f"Connected to: {chosen or about['deployment']} ({about['region'] or self._api.url})", "bold")
        if self._arguments.session:
            with self._failures():
                self._note_totals()
        self._note("Ctrl-C stops an answer, Ctrl-D quits; `help` lists the commands.")

    def _note_totals(self) -> None:
        session = self._conversation.read()
        turns = pluralize(session["turns"], "turn")
        if parent := session.get("parent"):  # the totals are those of the branch's own turns
            turns += f", {session['turns'] - parent['turn']} since the branch"
        so_far = f"{turns}, {session['total_tokens']} tokens | {cost_line(session)}"
        deployment = self._arguments.deployment or session["deployment"]
        self._note(f"Session {self._conversation.id}, with {deployment}: {so_far}")

    def _run_line(self, line: str) -> None:
        word, (first, _, rest) = line.strip().lower(), line.strip().partition(" ")
        if slash_command := self._slash_commands.get(first.lower()):
            slash_command(rest.strip())
        elif command := self._commands.get(word.removeprefix("/")):
            command()
        elif re.fullmatch(r"/[a-z]+", word):
            self._note(f"Unknown command {word}; `help` lists the commands.", "red")
        elif word:
            with echo_off():
                answer = self._conversation.send(line, view_for(self._console))
            for note in answer_notes(answer.data, self._arguments.show_tokens):
                self._note(note)
            self._console.print()

    def clear(self) -> None:
        self._api.request("DELETE", f"{self._session}/messages")
        self._note("Cleared. The model no longer sees the earlier messages; the totals are kept.")

    def tokens(self) -> None:
        totals = self._api.get(self._session)
        usage = totals["usage"]
        prompts = f"{usage['prompt_tokens']} in prompts, {usage['cached_tokens']} of them cached"
        answers = f"{usage['completion_tokens']} in answers, {usage['reasoning_tokens']} of them reasoning"
        self._note(f"{totals['total_tokens']} tokens | {prompts} | {answers}")

    def cost(self) -> None:
        self._note(cost_line(self._api.get(self._session), lambda amount: f"${Decimal(amount):f}"))

    def history(self) -> None:
        page = self._api.get(f"{self._session}/messages?limit={HISTORY_TURNS}")
        if page["next_before"]:
            self._note(f"The last {HISTORY_TURNS} turns:")
        turns = page["turns"][::-1]
        calls = [call for turn in turns for message in turn["messages"] for call in tool_calls(message)]
        names = {call_id: tool["name"] for call_id, tool in calls}
        for turn in turns:
            for message in turn["messages"]:
                self._show(message, names)
            if note := turn_note(turn):
                self._note(note)

    def _show(self, message: JSON, names: Mapping[str | None, str]) -> None:
        """A message of the history. `names`: of the tools, by the ids of their calls."""
        role, text = message["role"], content_text(message)
        if role == "user":
            self._note(f"> {text}", "bold")
        elif role == "assistant":
            self._console.print(RenderedMarkdown(text), end="")
            for line in call_lines(message):
                self._note(line)
        elif role == "system":
            self._note(f"[system] {text}")
        else:
            name = message.get("name") or names.get(message.get("tool_call_id")) or "a tool"
            self._note(tool_line(f"result of {name}", text))

    def sessions(self, text: str = "") -> None:
        """List the caller's own sessions; with a text those whose titles contain it."""
        if not self._api.owns_sessions:
            return self._note(NO_LIST)
        query, page = f"/api/sessions?limit={LISTED_SESSIONS}&search={quote(text, safe='')}", JSON()
        while not page or (page["next_after"] and not page["sessions"]):  # a page may be empty although there are more
            page = self._api.get(f"{query}&after={quote(page['next_after'], safe='')}" if page else query)
        self._listed = [session["session_id"] for session in page["sessions"]]
        for number, session in enumerate(page["sessions"], 1):
            title = f"{session['title'] or '(no title)'}{' (pinned)' if session['pinned'] else ''}"
            parts = title, pluralize(session["turns"], "turn"), cost_line(session)
            self._note(f"{number:>2}  {local_day(session['updated'])}  {' | '.join(parts)}")
        if not self._listed:
            return self._note(f"No session has {text!r} in its title." if text else "You have no sessions yet.")
        older = " There are more: /sessions TEXT searches their titles." if page["next_after"] else ""
        return self._note(f"/open NUMBER continues one of them.{older}")

    def open(self, number: str) -> None:
        """Continue a session of the last list."""
        if not self._listed:
            return self._note("`sessions` lists your sessions with their numbers.")
        if not re.fullmatch("[0-9]{1,3}", number) or not 1 <= int(number) <= len(self._listed):
            return self._note(f"Choose a number from 1 to {len(self._listed)}: /open 1", "red")
        chosen = {"session": self._listed[int(number) - 1], "system": None}  # a session keeps its own prompt
        arguments = argparse.Namespace(**{**vars(self._arguments), **chosen})
        before, self._conversation = self._conversation, Conversation(self._api, arguments, self._note)
        try:
            self._note_totals()
        except Failure as failure:
            self._conversation = before
            if failure.code != UNKNOWN:
                raise
            raise Failure("This session has been deleted; the current one goes on.") from None
        return self._note("`history` shows its last turns.")

    def help(self) -> None:
        self._note(HELP)

    def _note(self, text: str, style: str = "dim") -> None:
        self._console.print(clean(text), style=style, markup=False, emoji=False)


def key_bindings() -> KeyBindings:
    """Enter sends; Alt-Enter, which terminals send as Escape and Enter, starts a new line."""
    bindings = KeyBindings()
    bindings.add("enter")(lambda event: event.current_buffer.validate_and_handle())
    bindings.add("escape", "enter")(lambda event: event.current_buffer.insert_text("\n"))
    return bindings


@contextmanager
def echo_off() -> Iterator[None]:
    """Without echo, keys typed during an answer do not appear in it; the next prompt shows them."""
    if not termios:
        yield
        return
    before = termios.tcgetattr(sys.stdin)
    termios.tcsetattr(sys.stdin, termios.TCSADRAIN, [*before[:3], before[3] & ~termios.ECHO, *before[4:]])
    try:
        yield
    finally:
        termios.tcsetattr(sys.stdin, termios.TCSADRAIN, before)


# The command line


def url_argument(text: str) -> str:
    url = text.strip().rstrip("/").removesuffix("/api/chat")
    try:
        valid = re.fullmatch(r"https?://[^/?#\s]+[^?#\s]*", url) and httpx.URL(url).host
        httpx.URL(url).raw_host.decode().encode("idna")  # as the DNS lookup does
    except (ValueError, httpx.InvalidURL):
        valid = None
    if not valid:
        raise argparse.ArgumentTypeError(f"must be a URL such as https://NAME.azurewebsites.net, not {text!r}")
    return url


def utf8_argument(text: str) -> str:
    try:
        text.encode()
    except UnicodeEncodeError:
        raise argparse.ArgumentTypeError("must be UTF-8 text") from None
    return text


def session_argument(text: str) -> str:
    """An id that `session_of` takes. One of openai/v1 that is cut would be that of a new session."""
    utf8_argument(text)
    if OPENAI_ID.fullmatch(text):
        return text
    if CUT_OPENAI_ID.fullmatch(text):
        raise argparse.ArgumentTypeError(f"{text!r} is incomplete: conv_ has 32 hex digits behind it, resp_ 40")
    if not SESSION_ID.fullmatch(text):
        form = "1 to 64 letters, digits, '.', '_' or '-', the first one a letter or digit; or conv_… or resp_…"
        raise argparse.ArgumentTypeError(f"must be the ID of a session ({form}), not {text!r}")
    return text


def session_of(text: str) -> str:
    """The id of the session that an id names: its own, or that of a conversation or response of openai/v1."""
    match = OPENAI_ID.fullmatch(text)
    return match[1] or match[2] if match else text


def key_argument(text: str) -> str:
    if not re.fullmatch(r"[\x21-\x7e]*", text.strip()):
        raise argparse.ArgumentTypeError("must be visible ASCII characters")  # without the value, which is a secret
    return text.strip()


def seconds_argument(text: str) -> float:
    if not re.fullmatch(r"\d{1,6}(\.\d+)?", text):
        raise argparse.ArgumentTypeError(f"must be a number of seconds, not {text!r}")
    return float(text)


def positive_argument(text: str) -> int:
    if not re.fullmatch(r"[1-9]\d{0,8}", text):
        raise argparse.ArgumentTypeError(f"must be a whole number above 0, not {text!r}")
    return int(text)


def parser() -> argparse.ArgumentParser:
    top = argparse.ArgumentParser(
        prog="chat.py",
        description="Chat at a terminal, or send one message from standard input: echo hi | python chat.py. "
        "The answer is plain text unless it goes to a terminal.",
        epilog="Exit codes: 0 answered, 1 failed (the reason is on standard error), 2 invalid arguments, 130 Ctrl-C.",
    )
    env, on_off = os.environ.get, argparse.BooleanOptionalAction
    url, terminal = env("CHAT_URL") or "http://127.0.0.1:7071", sys.stdout.isatty()
    add = top.add_argument
    command = "sign in with your account, or sign out, where people sign in"
    add("command", nargs="?", choices=("login", "logout"), help=command)
    add("--url", type=url_argument, default=url, help="the server's URL, or CHAT_URL (default: %(default)s)")
    key = "the function key; CHAT_KEY keeps it out of process lists"
    add("--key", type=key_argument, default=env("CHAT_KEY"), help=key)
    client_key = "a client key, for its own sessions; CHAT_CLIENT_KEY keeps it out of process lists"
    add("--client-key", type=key_argument, metavar="KEY", default=env("CHAT_CLIENT_KEY"), help=client_key)
    session = "the session to continue or to start; or conv_… or resp_…: what a program began with a client key"
    access = "a person's access token; CHAT_TOKEN keeps it out of process lists"
    add("--token", type=key_argument, default=env("CHAT_TOKEN"), help=access)
    add("--session", type=session_argument, metavar="ID", help=session)
    model = env("AZURE_OPENAI_MODEL") or None
    deployment = "the model's deployment, or AZURE_OPENAI_MODEL"
    add("--deployment", type=utf8_argument, metavar="NAME", default=model, help=deployment)
    add("--system", type=utf8_argument, metavar="TEXT", help="the system prompt of a new session")
    add("--max-tokens", type=positive_argument, metavar="N", help="the maximum length of an answer in tokens")
    add("--stream", default=True, help="show the answer while it is generated (default)", action=on_off)
    show = "show the tokens and cost of each answer (default on a terminal)"
    add("--show-tokens", default=terminal, help=show, action=on_off)
    add("--json", action="store_true", help="send one message and print the server's answer as one line of JSON")
    wait = "seconds to keep retrying after a lost connection, a busy session or a rate limit (default: %(default)s)"
    add("--wait", type=seconds_argument, default=60, metavar="SECONDS", help=wait)
    return top


def open_missing_streams() -> None:
    """If a standard stream is closed at the start, Python sets it to None and print(file=None) uses another one."""
    for name, mode in (("stdin", "r"), ("stdout", "w"), ("stderr", "w")):
        if getattr(sys, name) is None:
            setattr(sys, name, open(os.devnull, mode))  # noqa: PTH123, SIM115 - open until the process ends


def run(arguments: argparse.Namespace, *, interactive: bool) -> None:
    def show(text: str) -> None:
        print(clean(text), file=sys.stderr, flush=True)

    sign_in = None
    if arguments.command == "logout":
        if SignIns().available and not SignIns().save(arguments.url, None):
            raise Failure(
                "The sign-in can't be deleted: the keystore is locked or refuses. Unlock it, then repeat this."
            )
        return show(f"Signed out of {arguments.url}.")
    if arguments.command == "login":
        sign_in = log_in(arguments, show, interactive=interactive)
        if not sign_in:
            return None
    return Terminal(arguments, sign_in).run() if interactive else answer_stdin(arguments)


def main() -> int:
    open_missing_streams()
    arguments = parser().parse_args()
    sys.stdout.reconfigure(errors="replace")  # type: ignore[union-attr]
    interactive = sys.stdin.isatty() and sys.stdout.isatty() and not arguments.json
    try:
        run(arguments, interactive=interactive)
    except Failure as failure:
        print(clean(failure), file=sys.stderr)
        return 1
    except (KeyboardInterrupt, Leave):
        return 130
    except BrokenPipeError:  # the reader of the output has closed it
        os.dup2(os.open(os.devnull, os.O_WRONLY), sys.stdout.fileno())
        return 1
    except OSError as error:  # such as a full disk
        os.dup2(os.open(os.devnull, os.O_WRONLY), sys.stdout.fileno())
        print(f"Cannot write the answer: {error.strerror}.", file=sys.stderr)
        return 1
    return 0


if __name__ == "__main__":
    sys.exit(main())
