"""A TCP proxy on loopback that injects faults into HTTP exchanges, from outside the code under test.

It sits between the app and Azurite or the model fake, relays everything, and applies a rule's action to the n-th
request that matches the rule. It does not interpret the requests.
"""

import asyncio
import contextlib
import re
from collections.abc import Sequence
from dataclasses import dataclass, field
from typing import Literal, NoReturn

import h11

from tests.support.loopback import MAX_WAIT_S, Gate, Loopback, Message, Wire


@dataclass(frozen=True)
class Pass:
    """Relay normally; the rule only counts the request."""


@dataclass(frozen=True)
class Close:
    """Drop the connection before forwarding the request, or after the target's answer (committed, not acknowledged)."""

    after_answer: bool = False
    reset: bool = True


@dataclass(frozen=True)
class Stall:
    """Hold the request, or the target's answer, until the rule is released or `seconds` have passed, then relay it.

    A held request is delivered even if the client has disconnected meanwhile, as in a slow network.
    """

    after_answer: bool = False
    seconds: float | None = None


@dataclass(frozen=True)
class Answer:
    """Answer in place of the target. Nothing is forwarded, unless `after_answer`: then the target handles it first."""

    status: int
    body: bytes = b""
    headers: tuple[tuple[str, str], ...] = ()
    after_answer: bool = False


@dataclass(frozen=True)
class Cut:
    """Relay the target's answer with only a part of its body, then close. `fraction`: that part, from 0 to 1.

    `framing` says how the body's end would have been recognised: by its length, by a last chunk, or not at all: with
    "close" a cut can't be noticed. An answer without a body is relayed whole.
    """

    fraction: float = 0.5
    framing: Literal["length", "chunked", "close"] = "length"


Action = Pass | Close | Stall | Answer | Cut


@dataclass(frozen=True)
class RecordedRequest:
    method: str
    path: str
    body: bytes


@dataclass(frozen=True)
class Match:
    """Selects requests: exact method; regular expressions for the path (with query) and the body."""

    method: str | None = None
    path: str = ""
    body: str = ""

    def matches(self, request: RecordedRequest, earlier: Sequence[RecordedRequest] = ()) -> bool:
        """`earlier`: the requests that the proxy has forwarded."""
        return (
            self.method in (None, request.method)
            and re.search(self.path, request.path) is not None
            and re.search(self.body.encode(), request.body, re.DOTALL) is not None
        )


@dataclass
class Rule:
    """Applies `action` to `times` matching requests, starting with the `nth` (the first is 1)."""

    match: Match
    action: Action
    nth: int
    times: int | None
    matched: int = 0
    hits: int = 0
    gate: Gate = field(default_factory=Gate)

    def applies_to(self, request: RecordedRequest, earlier: Sequence[RecordedRequest]) -> bool:
        if not self.match.matches(request, earlier):
            return False
        self.matched += 1
        return self.matched >= self.nth and (self.times is None or self.matched < self.nth + self.times)

    def wait(self, timeout: float = MAX_WAIT_S) -> None:
        """Wait until the action begins; with `after_answer` the target has then answered."""
        self.gate.wait(timeout)

    async def until_reached(self, timeout: float = MAX_WAIT_S) -> None:  # noqa: ASYNC109 - it bounds a thread, not a task
        await self.gate.until_reached(timeout)

    def release(self) -> None:
        self.gate.release()


class TcpProxy(Loopback):
    """`with TcpProxy(azurite_port) as proxy:` listens on `proxy.port`."""

    def __init__(self, target_port: int, port: int = 0) -> None:
        super().__init__(port)
        self.target_port = target_port
        self.seen: list[RecordedRequest] = []  # forwarded requests, in order
        self.busy = 0  # exchanges in progress
        self._rules: list[Rule] = []

    @property
    def endpoint(self) -> str:
        return f"http://127.0.0.1:{self.port}"

    def on(self, match: Match, action: Action, *, nth: int = 1, times: int | None = 1) -> Rule:
        """Add a rule. If several apply to a request, the oldest wins. `times=None` means always."""
        rule = Rule(match, action, nth, times)
        self._rules.append(rule)
        return rule

    def clear(self) -> None:
        """Remove all rules and release the requests that they hold."""
        rules, self._rules = self._rules, []
        for rule in rules:
            rule.release()

    def count(self, match: Match) -> int:
        """Number of matching requests that were forwarded."""
        seen = tuple(self.seen)
        return sum(match.matches(request, seen) for request in seen)

    def down(self) -> None:
        """Reset all connections and refuse new ones until `up`."""
        self.stop()

    def up(self) -> None:
        self.start()

    async def converse(self, wire: Wire) -> None:
        while request := await wire.message():
            self.busy += 1
            try:
                await self._exchange(wire, request)
            finally:
                self.busy -= 1
            if wire.http.our_state is not h11.DONE or wire.http.their_state is not h11.DONE:
                return
            wire.http.start_next_cycle()

    async def _exchange(self, wire: Wire, request: Message) -> None:
        assert isinstance(request.head, h11.Request)
        seen = RecordedRequest(request.head.method.decode(), request.head.target.decode(), request.body)
        action, gate = self._choose_action(seen)
        match action:
            case Pass():
                gate.arrive()
            case Answer(after_answer=False):
                gate.arrive()
                return await _answer(wire, action)
            case Close(after_answer=False):
                gate.arrive()
                _drop_connection(wire, action)
            case Stall(after_answer=False):
                await _hold(gate, action)
        self.seen.append(seen)
        # One connection per request: a pooled one that the target has closed would look like a fault.
        target = Wire(*await asyncio.open_connection("127.0.0.1", self.target_port), server=False)
        try:
            await _send(target, request)
            if isinstance(action, Pass):
                return self.relayed(seen, await wire.until_gone(_relay(target, wire)))
            answer = await target.message()
            if answer is None:
                raise ConnectionResetError("the target disconnected")
            match action:
                case Answer():
                    gate.arrive()
                    return await _answer(wire, action)
                case Close():
                    gate.arrive()
                    _drop_connection(wire, action)
                case Stall(after_answer=True):
                    await _hold(gate, action)
                case Cut() if answer.body:
                    gate.arrive()
                    await _cut(wire, answer, action)
            await _send(wire, answer)
        finally:
            target.close()

    def relayed(self, request: RecordedRequest, answer: Message) -> None:
        """Called with each answer that was relayed whole, for subclasses that look at them."""

    def _choose_action(self, request: RecordedRequest) -> tuple[Action, Gate]:
        matching = [rule for rule in tuple(self._rules) if rule.applies_to(request, self.seen)]
        if not matching:
            return Pass(), Gate()
        matching[0].hits += 1
        return matching[0].action, matching[0].gate


async def _hold(gate: Gate, stall: Stall) -> None:
    with contextlib.suppress(TimeoutError):
        await asyncio.wait_for(gate.enter(), stall.seconds)


def _drop_connection(wire: Wire, close: Close) -> NoReturn:
    wire.reset() if close.reset else wire.close()
    raise ConnectionAbortedError("connection lost by a proxy rule")


async def _answer(wire: Wire, answer: Answer) -> None:
    headers = [("Content-Length", str(len(answer.body))), *answer.headers]
    await wire.send(
        h11.Response(status_code=answer.status, headers=headers), h11.Data(data=answer.body), h11.EndOfMessage()
    )


async def _cut(wire: Wire, answer: Message, cut: Cut) -> NoReturn:
    assert isinstance(answer.head, h11.Response)
    body = answer.body[: int(len(answer.body) * cut.fraction)]
    headers = [
        (name, value)
        for name, value in answer.head.headers.raw_items()
        if name.lower() not in (b"content-length", b"transfer-encoding")
    ]
    if cut.framing == "length":
        headers.append((b"Content-Length", str(len(answer.body)).encode()))
    if cut.framing == "close":  # h11 would add chunks
        lines = [b"HTTP/1.1 %d Cut" % answer.head.status_code, *(b"%s: %s" % header for header in headers)]
        await wire.send_bytes(b"\r\n".join([*lines, b"connection: close", b"", body]))
    else:
        await wire.send(h11.Response(status_code=answer.head.status_code, headers=headers), h11.Data(data=body))
    wire.close()
    raise ConnectionAbortedError("answer cut by a proxy rule")


async def _send(wire: Wire, message: Message) -> None:
    await wire.send(_copy(message.head), h11.Data(data=message.body), h11.EndOfMessage())


async def _relay(target: Wire, wire: Wire) -> Message:
    """Relay chunk by chunk, so that streaming is preserved; returns the answer."""
    head = await target.event()
    if not isinstance(head, h11.Response):
        raise ConnectionResetError("the target disconnected")
    await wire.send(_copy(head))
    body = bytearray()
    while isinstance(event := await target.event(), h11.Data):
        body += event.data
        await wire.send(event)
    if not isinstance(event, h11.EndOfMessage):
        raise ConnectionResetError("the target disconnected")
    await wire.send(event)
    return Message(head, bytes(body))


def _copy(head: h11.Request | h11.Response) -> h11.Event:
    headers = head.headers.raw_items()
    if isinstance(head, h11.Request):
        return h11.Request(method=head.method, target=head.target, headers=headers)
    return h11.Response(status_code=head.status_code, headers=headers, reason=head.reason)
