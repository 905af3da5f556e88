"""A fake of Azure OpenAI: a server on loopback with the v1 wire format of chat completions and embeddings, scripted
failures and a meter of billed calls.

It replaces only the service, so it never imports the code under test.
"""

import asyncio
import dataclasses
import json
import re
import uuid
from collections import deque
from collections.abc import Callable, Mapping
from dataclasses import dataclass
from datetime import UTC, datetime
from typing import Any, Literal
from urllib.parse import parse_qs, urlsplit

import h11

from tests.support import azure_openai_answers as answers
from tests.support import azure_openai_embeddings as embeddings
from tests.support.azure_openai_answers import JSON, Answer, Reply
from tests.support.azure_openai_embeddings import EmbeddingAnswer
from tests.support.loopback import Gate, Loopback, Message, Wire

__all__ = ["AzureOpenAI", "Billed", "Fault", "Hold", "Kind", "Reply", "Request", "Script"]

Kind = Literal[
    "none",
    "status",  # an error status, before the model processes the prompt
    "slow",  # the first byte is delayed by `seconds`
    "stall",  # nothing more is ever sent; the connection stays open
    "reset",  # the connection is lost: TCP RST
    "close",  # the connection is closed cleanly in the middle of the response
    "truncated",  # the response ends cleanly, without finish_reason, usage or [DONE]
    "no_usage",  # a complete response without usage
    "unended",  # a complete response with usage; the connection is lost before [DONE]
    "endless",  # a complete response with [DONE], then comments without end
    "malformed",  # an event that is not JSON, then a clean end
    "error_event",  # an event with an error object, then a clean end; not streamed: an error with status 200
    "content_filter",  # 400: the filter blocked the prompt
    "completion_filter",  # the filter cut off the answer: finish_reason content_filter
    "context_length",  # 400: the prompt is too long
]
REJECTED_BY_REASONING = frozenset({"max_tokens", "temperature", "top_p", "presence_penalty", "frequency_penalty"})
REJECTED_BY_REASONING |= frozenset({"logprobs", "top_logprobs", "logit_bias"})
UNBILLED: frozenset[Kind] = frozenset({"status", "context_length"})
PROMPT_ONLY: frozenset[Kind] = frozenset({"content_filter", "context_length"})
LOST: frozenset[Kind] = frozenset({"stall", "reset", "close"})
FINISHED: frozenset[Kind] = frozenset({"none", "slow", "no_usage", "unended", "endless", "completion_filter"})
MODEL = re.compile(r"/openai/(?:v1|deployments/(?P<deployment>[^/]+))/(?:chat/completions|(?P<embeds>embeddings))")


@dataclass(frozen=True)
class Fault:
    """One scripted failure. `after` counts content chunks (or halves of a JSON response). If it is None, a stall, reset
    or close comes before the first byte, and any other failure after two chunks."""

    kind: Kind
    status: int = 0
    after: int | None = None
    seconds: float = 0
    retry_after: float | str | None = None
    retry_after_ms: int | None = None
    location: str | None = None
    message: str | None = None
    param: str | None = None
    code: str | None = None
    billed: bool | None = None
    reply: Reply | None = None

    @property
    def outcome(self) -> str:
        if self.kind in ("none", "slow"):
            return "ok"
        return str(self.status) if self.kind == "status" else self.kind

    @property
    def chunks(self) -> int:
        return 2 if self.after is None else self.after

    @property
    def bills(self) -> bool:
        return self.kind not in UNBILLED if self.billed is None else self.billed


Script = Reply | Fault
AnyAnswer = Answer | EmbeddingAnswer


@dataclass(frozen=True)
class Request:
    method: str
    path: str
    headers: Mapping[str, str]
    body: JSON

    @property
    def call_id(self) -> str | None:
        return self.headers.get("x-ms-client-request-id")

    @property
    def streamed(self) -> bool:
        return bool(self.body.get("stream")) and not self.embeds

    @property
    def embeds(self) -> bool:
        """True for embeddings, False for chat."""
        route = MODEL.fullmatch(urlsplit(self.path).path)
        return bool(route and route["embeds"])


@dataclass(frozen=True)
class Billed:
    """A billed call, whether or not its response arrived."""

    call_id: str | None
    deployment: str
    model: str
    prompt_tokens: int
    cached_tokens: int
    cache_write_tokens: int
    completion_tokens: int
    reasoning_tokens: int
    streamed: bool
    outcome: str  # "ok", a fault's kind or status, "hang_up" (by the client), "stopped" (by the fake)
    at: datetime


class Hold(Gate):
    """Pauses the next response after `after` content chunks until it is released."""

    def __init__(self, after: int) -> None:
        super().__init__()
        self.after = after


class _Bill:
    """Adds a call to the meter: once, however the call ends, or never if it is free."""

    def __init__(self, meter: list[Billed], entry: Billed, *, due: bool) -> None:
        self._meter, self._entry, self._due = meter, entry, due

    def charge(self, outcome: str) -> None:
        if self._due:
            self._meter.append(dataclasses.replace(self._entry, outcome=outcome, at=datetime.now(UTC)))
        self._due = False


class AzureOpenAI(Loopback):
    """`with AzureOpenAI() as fake:` listens on `fake.endpoint`. Attributes can be changed while it runs."""

    def __init__(
        self,
        *,
        port: int = 0,
        api_key: str = "test-key",
        authorize: Callable[[Mapping[str, str]], bool] | None = None,
        deployments: Mapping[str, str] | None = None,
        reasoning: frozenset[str] = frozenset(),
    ) -> None:
        """`deployments`: deployment name to model name; None accepts any. `reasoning`: the reasoning deployments."""
        super().__init__(port)
        self.api_key, self.authorize, self.deployments = api_key, authorize or self._has_key, deployments
        self.rejected = dict.fromkeys(reasoning, REJECTED_BY_REASONING)  # rejected parameters by deployment
        self.model_name = "gpt-5.4-mini-2026-03-17"
        self.context_tokens: int | None = None
        self.chunk_tokens = 1
        self.chunk_delay = 0.0
        self.dimensions = 8  # of embeddings whose request names none
        self.only_floats = False  # answer embeddings in numbers, whatever format is requested
        self.responder: Callable[[Request], Script] = lambda request: answers.default_reply(request.body)
        self.embedding_responder: Callable[[Request], Script] = lambda request: Reply()
        self.requests: list[Request] = []
        self.meter: list[Billed] = []
        self.busy = 0
        self._script: deque[Script] = deque()
        self._holds: deque[Hold] = deque()
        self._cache: set[str] = set()

    @property
    def endpoint(self) -> str:
        return f"http://127.0.0.1:{self.port}"

    def reply(self, text: str = "", **details: Any) -> None:
        """Queue an answer for the next request of the model; `details` are fields of Reply."""
        self._script.append(Reply(text, **details))

    def fault(self, kind: Kind | int, **details: Any) -> None:
        """Queue a failure (a status or a kind) for the next request of the model; `details` are fields of Fault."""
        self._script.append(Fault("status", kind, **details) if isinstance(kind, int) else Fault(kind, **details))

    def hold(self, after: int = 1) -> Hold:
        """Pause the next response of the model after `after` chunks; without streaming, before the first byte."""
        self._holds.append(hold := Hold(after))
        return hold

    def _has_key(self, headers: Mapping[str, str]) -> bool:
        return self.api_key in (headers.get("api-key"), headers.get("authorization", "").removeprefix("Bearer "))

    async def converse(self, wire: Wire) -> None:
        while message := await wire.message():
            self.busy += 1
            try:
                await wire.until_gone(self._answer(wire, message))
            finally:
                self.busy -= 1
            if wire.http.our_state is not h11.DONE or wire.http.their_state is not h11.DONE:
                return
            wire.http.start_next_cycle()

    async def _answer(self, wire: Wire, message: Message) -> None:
        request = _request(message)
        self.requests.append(request)
        if refusal := self._refusal(request):
            return await _send(wire, request, *refusal)
        if not MODEL.fullmatch(urlsplit(request.path).path):
            names = self.deployments or {"gpt-5.4-mini": ""}
            models = [{"id": name, "object": "model", "created": 0, "owned_by": "system"} for name in names]
            return await _send(wire, request, 200, {"object": "list", "data": models})
        return await self._complete(wire, request)

    def _refusal(self, request: Request) -> tuple[int, JSON | str] | None:
        url = urlsplit(request.path)
        model = MODEL.fullmatch(url.path)
        known_path = model is not None or url.path == "/openai/v1/models"
        if (
            not known_path
            or request.method != ("POST" if model else "GET")
            or ("/deployments/" in url.path and "api-version" not in parse_qs(url.query))
        ):
            return 404, {"error": {"code": "404", "message": "Resource not found"}}
        if not self.authorize(request.headers):
            return 401, answers.error(401, answers.BAD_TOKEN if "authorization" in request.headers else None)
        if model is None:
            return None
        name = request.body.get("model")
        if not isinstance(name, str):
            return 400, answers.invalid("Missing required parameter: 'model'.", "model")
        if self.deployments is not None and name not in self.deployments:
            return 404, answers.error(404)
        if request.embeds:
            problem = embeddings.check(request.body)
            return (400, problem) if problem else None
        problem = answers.check(request.body, self.rejected.get(name, frozenset()))
        problem = problem or answers.check_length(request.body, self.context_tokens)
        return (400, problem) if problem else None

    async def _complete(self, wire: Wire, request: Request) -> None:
        responder = self.embedding_responder if request.embeds else self.responder
        script = self._script.popleft() if self._script else responder(request)
        fault = script if isinstance(script, Fault) else Fault("none", reply=script)
        answer = self._compose_answer(request, fault)
        bill = _Bill(self.meter, _entry(request, answer, fault), due=fault.bills)
        try:
            await self._send_answer(wire, request, fault, answer, bill)
        finally:
            bill.charge("stopped" if self.stopping else "hang_up")

    def _compose_answer(self, request: Request, fault: Fault) -> AnyAnswer:
        model = (self.deployments or {}).get(request.body["model"], self.model_name)
        if request.embeds:
            return EmbeddingAnswer(
                request.body,
                fault.reply or Reply(),
                model=model,
                dimensions=self.dimensions,
                only_floats=self.only_floats,
            )
        reply = fault.reply or answers.default_reply(request.body)
        if fault.kind == "completion_filter":
            partial = answers.pieces(reply.text)[: fault.chunks * self.chunk_tokens]
            reply = dataclasses.replace(reply, text="".join(partial), finish_reason="content_filter")
        prefixes = answers.prefixes(request.body)
        return Answer(
            request.body,
            reply,
            model=model,
            prompt_tokens=prefixes[-1][1],
            cached_tokens=self._cached(prefixes) if fault.bills else 0,
            chunk_tokens=self.chunk_tokens,
        )

    def _cached(self, prefixes: list[tuple[str, int]]) -> int:
        longest = max((tokens for digest, tokens in prefixes if digest in self._cache), default=0)
        self._cache.update(digest for digest, _ in prefixes)
        if longest < answers.MIN_CACHED_TOKENS:
            return 0
        return longest // answers.CACHE_STEP_TOKENS * answers.CACHE_STEP_TOKENS

    async def _send_answer(self, wire: Wire, request: Request, fault: Fault, answer: AnyAnswer, bill: _Bill) -> None:
        await asyncio.sleep(fault.seconds)
        if fault.kind in ("status", "content_filter", "context_length"):
            bill.charge(fault.outcome)
            return await _send(wire, *_error(request, fault, answer), headers=_hint_headers(fault))
        if fault.kind in LOST and fault.after is None:
            bill.charge(fault.outcome)
            return await _break_connection(wire, fault)
        hold = self._holds.popleft() if self._holds else None
        opening, content, closing = self._parts(request, answer, usage=fault.kind != "no_usage")
        content, closing = _sent(fault, content, closing, streamed=request.streamed)
        if not request.streamed:  # the first byte is sent when the whole answer is ready
            await asyncio.sleep(self.chunk_delay * len(answer.content()))
            await _wait_at(hold)
        await wire.send(_head(request), *map(_data, opening))
        await self._send_content(wire, content, hold)
        bill.charge(fault.outcome)
        if fault.kind in LOST:
            return await _break_connection(wire, fault)
        if fault.kind == "unended":
            await wire.send(*map(_data, closing[:-1]))
            return await _break_connection(wire, fault)
        if fault.kind == "endless":
            await wire.send(*map(_data, closing))
            while True:
                await asyncio.sleep(0.1)
                await wire.send(_data(b": ping\n\n"))
        return await wire.send(*map(_data, closing), h11.EndOfMessage())

    def _parts(
        self, request: Request, answer: AnyAnswer, *, usage: bool
    ) -> tuple[list[bytes], list[bytes], list[bytes]]:
        """Opening, content and closing chunks; the two halves of a JSON answer are its content and closing."""
        if request.streamed and isinstance(answer, Answer):
            opening, content, closing = answer.opening(), answer.content(), answer.closing(usage)
            return [*map(_event, opening)], [*map(_event, content)], [*map(_event, closing), b"data: [DONE]\n\n"]
        whole = answers.compact(answer.whole(usage)).encode("utf-8", "replace")
        return [], [whole[: len(whole) // 2]], [whole[len(whole) // 2 :]]

    async def _send_content(self, wire: Wire, content: list[bytes], hold: Hold | None) -> None:
        for number, part in enumerate(content):
            if hold and number == hold.after:
                await _wait_at(hold)
            await wire.send(_data(part))
            if self.chunk_delay:
                await asyncio.sleep(self.chunk_delay)
        await _wait_at(hold)  # for an answer shorter than `after`; a no-op once released


def _request(message: Message) -> Request:
    assert isinstance(message.head, h11.Request)
    path = message.head.target.decode()
    try:
        body = json.loads(message.body or b"{}")
    except ValueError:
        body = {}  # answered with 400 because it names no model
    body = body if isinstance(body, dict) else {}
    route = MODEL.fullmatch(urlsplit(path).path)
    if route and route["deployment"]:
        body = body | {"model": route["deployment"]}
    headers = {name.decode(): value.decode() for name, value in message.head.headers}
    return Request(message.head.method.decode(), path, headers, body)


def _entry(request: Request, answer: AnyAnswer, fault: Fault) -> Billed:
    prompt_only = fault.kind in PROMPT_ONLY
    return Billed(
        call_id=request.call_id,
        deployment=request.body["model"],
        model=answer.model,
        prompt_tokens=answer.tokens.prompt,
        cached_tokens=answer.tokens.cached,
        cache_write_tokens=answer.tokens.cache_write,
        completion_tokens=0 if prompt_only else answer.tokens.completion,
        reasoning_tokens=0 if prompt_only else answer.tokens.reasoning,
        streamed=request.streamed,
        outcome="ok",
        at=datetime.now(UTC),
    )


def _sent(
    fault: Fault, content: list[bytes], closing: list[bytes], *, streamed: bool
) -> tuple[list[bytes], list[bytes]]:
    """Content and closing as far as they are sent."""
    if fault.kind == "error_event" and not streamed:
        return [], [answers.compact(answers.STREAM_ERROR).encode()]
    return content if fault.kind in FINISHED else content[: fault.chunks], _ending(fault, closing)


def _ending(fault: Fault, closing: list[bytes]) -> list[bytes]:
    match fault.kind:
        case "malformed":
            return [b'data: {"choices": [{"delta": {"content": "tor\n\n']
        case "error_event":
            return [_event(answers.STREAM_ERROR)]
        case "truncated":
            return []
    return closing


async def _wait_at(hold: Hold | None) -> None:
    if hold:
        await hold.enter()


async def _break_connection(wire: Wire, fault: Fault) -> None:
    if fault.kind == "stall":
        await asyncio.Event().wait()
    wire.reset() if fault.kind == "reset" else wire.close()
    raise ConnectionAbortedError("connection lost by a scripted fault")


def _error(request: Request, fault: Fault, answer: AnyAnswer) -> tuple[Request, int, JSON | str]:
    if fault.kind == "content_filter":
        return request, 400, answers.PROMPT_FILTERED
    if fault.kind == "context_length":
        return request, 400, answers.too_long(answer.tokens.prompt - 1, answer.tokens.prompt, 0)
    return request, fault.status, answers.error(fault.status, fault.message, fault.param, fault.code)


def _hint_headers(fault: Fault) -> list[tuple[str, str]]:
    hints = {"retry-after": fault.retry_after, "retry-after-ms": fault.retry_after_ms, "location": fault.location}
    return [(name, str(value)) for name, value in hints.items() if value is not None]


async def _send(
    wire: Wire, request: Request, status: int, body: JSON | str, headers: list[tuple[str, str]] | None = None
) -> None:
    kind = "text/html" if isinstance(body, str) else "application/json"
    content = (body if isinstance(body, str) else answers.compact(body)).encode()
    head = [("content-type", kind), ("content-length", str(len(content))), *(headers or ()), *_identity(request)]
    await wire.send(h11.Response(status_code=status, headers=head), _data(content), h11.EndOfMessage())


def _head(request: Request) -> h11.Response:
    kind = "text/event-stream; charset=utf-8" if request.streamed else "application/json"
    left = [("x-ratelimit-remaining-requests", "99"), ("x-ratelimit-remaining-tokens", "98000")]
    return h11.Response(status_code=200, headers=[("content-type", kind), *left, *_identity(request)])


def _identity(request: Request) -> list[tuple[str, str]]:
    ids = [(name, str(uuid.uuid4())) for name in ("x-request-id", "apim-request-id")]
    echoed = [("x-ms-client-request-id", request.call_id)] if request.call_id else []
    return [*ids, *echoed, ("x-ms-region", "East US")]


def _data(content: bytes) -> h11.Data:
    return h11.Data(data=content)


def _event(chunk: JSON) -> bytes:
    return b"data: " + answers.compact(chunk).encode("utf-8", "replace") + b"\n\n"
