"""A TCP proxy on loopback that breaks HTTP exchanges on purpose, from outside the code under test.

It stands before Azurite or the model's fake, relays what it is sent, and does what a rule says to the k-th request that
fits it. It never knows what the requests mean.
"""

import asyncio
import contextlib
import re
from dataclasses import dataclass, field
from typing import NoReturn

import h11

from tests.support.loopback import PATIENCE, Gate, Loopback, Message, Wire


@dataclass(frozen=True)
class Pass:
    """Relays as ever: the rule only notices the request."""


@dataclass(frozen=True)
class Close:
    """Loses the connection before forwarding the request, or after the target's answer (done, not acknowledged)."""

    after_answer: bool = False
    reset: bool = True


@dataclass(frozen=True)
class Stall:
    """Keeps the request, or the target's answer, until the rule is released or `seconds` have passed, then lets it go.

    A request that is kept is delivered late even where the client has gone meanwhile, as a slow network would.
    """

    after_answer: bool = False
    seconds: float | None = None


@dataclass(frozen=True)
class Answer:
    """Answers in the target's place; nothing is forwarded, or with `after_answer` it is and done all the same."""

    status: int
    body: bytes = b""
    headers: tuple[tuple[str, str], ...] = ()
    after_answer: bool = False


Action = Pass | Close | Stall | Answer


@dataclass(frozen=True)
class Seen:
    method: str
    path: str
    body: bytes


@dataclass(frozen=True)
class Match:
    """Which requests: an exact method, regular expressions found in the path (with its query) and in the body."""

    method: str | None = None
    path: str = ""
    body: str = ""

    def fits(self, request: Seen) -> bool:
        return (
            self.method in (None, request.method)
            and re.search(self.path, request.path) is not None
            and re.search(self.body.encode(), request.body, re.DOTALL) is not None
        )


@dataclass
class Rule:
    """From the `nth` fitting request on (the first is 1), for `times` of them, `action` is done."""

    match: Match
    action: Action
    nth: int
    times: int | None
    fitting: int = 0
    hits: int = 0
    gate: Gate = field(default_factory=Gate)

    def takes(self, request: Seen) -> bool:
        if not self.match.fits(request):
            return False
        self.fitting += 1
        return self.fitting >= self.nth and (self.times is None or self.fitting < self.nth + self.times)

    def wait(self, timeout: float = PATIENCE) -> None:
        """Until its action began; with `after_answer` the target has answered by then."""
        self.gate.wait(timeout)

    async def until_reached(self, timeout: float = PATIENCE) -> None:  # noqa: ASYNC109 - it bounds a thread, not a task
        await self.gate.until_reached(timeout)

    def release(self) -> None:
        self.gate.release()


class TcpProxy(Loopback):
    """`with TcpProxy(azurite_port) as proxy:` listens on `proxy.port`."""

    def __init__(self, target_port: int, port: int = 0) -> None:
        super().__init__(port)
        self.target_port = target_port
        self.seen: list[Seen] = []  # what was forwarded, in order
        self.busy = 0  # exchanges that have not ended
        self._rules: list[Rule] = []

    @property
    def endpoint(self) -> str:
        return f"http://127.0.0.1:{self.port}"

    def on(self, match: Match, action: Action, *, nth: int = 1, times: int | None = 1) -> Rule:
        """Adds a rule; where several take the same request, the one added first acts. `times=None` is for ever."""
        rule = Rule(match, action, nth, times)
        self._rules.append(rule)
        return rule

    def clear(self) -> None:
        """Drops all rules and lets go what they keep."""
        rules, self._rules = self._rules, []
        for rule in rules:
            rule.release()

    def count(self, match: Match) -> int:
        """How many requests that fit were forwarded."""
        return sum(match.fits(seen) for seen in tuple(self.seen))

    def down(self) -> None:
        """Resets every connection and refuses new ones, until `up`."""
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
        seen = Seen(request.head.method.decode(), request.head.target.decode(), request.body)
        action, gate = self._ruling(seen)
        match action:
            case Pass():
                gate.arrive()
            case Answer(after_answer=False):
                gate.arrive()
                return await _answer(wire, action)
            case Close(after_answer=False):
                gate.arrive()
                _lose(wire, action)
            case Stall(after_answer=False):
                await _keep(gate, action)
        self.seen.append(seen)
        # A connection for each request: a pooled one that the target had closed meanwhile would look like a fault.
        target = Wire(*await asyncio.open_connection("127.0.0.1", self.target_port), server=False)
        try:
            await _send(target, request)
            if isinstance(action, Pass):
                return await wire.until_gone(_relay(target, wire))
            answer = await target.message()
            if answer is None:
                raise ConnectionResetError("the target hung up")
            match action:
                case Answer():
                    gate.arrive()
                    return await _answer(wire, action)
                case Close():
                    gate.arrive()
                    _lose(wire, action)
                case Stall(after_answer=True):
                    await _keep(gate, action)
            await _send(wire, answer)
        finally:
            target.close()

    def _ruling(self, request: Seen) -> tuple[Action, Gate]:
        takers = [rule for rule in tuple(self._rules) if rule.takes(request)]
        if not takers:
            return Pass(), Gate()
        takers[0].hits += 1
        return takers[0].action, takers[0].gate


async def _keep(gate: Gate, stall: Stall) -> None:
    with contextlib.suppress(TimeoutError):
        await asyncio.wait_for(gate.enter(), stall.seconds)


def _lose(wire: Wire, close: Close) -> NoReturn:
    wire.reset() if close.reset else wire.close()
    raise ConnectionAbortedError("lost by a rule")


async def _answer(wire: Wire, answer: Answer) -> None:
    headers = [("Content-Length", str(len(answer.body))), *answer.headers]
    await wire.send(
        h11.Response(status_code=answer.status, headers=headers), h11.Data(data=answer.body), h11.EndOfMessage()
    )


async def _send(wire: Wire, message: Message) -> None:
    await wire.send(_copy(message.head), h11.Data(data=message.body), h11.EndOfMessage())


async def _relay(target: Wire, wire: Wire) -> None:
    """Piece by piece, so that a stream stays a stream."""
    while isinstance(event := await target.event(), h11.Response | h11.Data):
        await wire.send(_copy(event) if isinstance(event, h11.Response) else event)
    if not isinstance(event, h11.EndOfMessage):
        raise ConnectionResetError("the target hung up")
    await wire.send(event)


def _copy(head: h11.Request | h11.Response) -> h11.Event:
    headers = head.headers.raw_items()
    if isinstance(head, h11.Request):
        return h11.Request(method=head.method, target=head.target, headers=headers)
    return h11.Response(status_code=head.status_code, headers=headers, reason=head.reason)
