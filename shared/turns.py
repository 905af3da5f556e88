"""The heart: one turn of a conversation, from the post to the settled cost.

    read -> reserve in the session -> open in the ledger -> call the model -> settle the session -> answer -> the ledger

A turn runs in a task of its own: a caller that hangs up stops reading, and nothing else. This room knows the order of
things and no service: what it needs is handed in (`ports`).
"""

import asyncio
import logging
from collections.abc import Mapping
from contextlib import suppress
from dataclasses import dataclass, replace
from datetime import UTC, datetime
from typing import Any, TypeAlias

from shared.completion import Completion
from shared.conversation import Call, Entry, Session, State, Turn, Usage
from shared.errors import (
    Changed,
    ChatError,
    ContentFiltered,
    ContextTooLong,
    StorageUnavailable,
    UpstreamError,
    UpstreamFailure,
    UpstreamTimeout,
)
from shared.lease import persist
from shared.ports import Ledger, Model, Prompt
from shared.pricing import Prices, cost
from shared.reservation import Post, Replay, Reservations, Reserved

log = logging.getLogger(__name__)


@dataclass(frozen=True, slots=True)
class Started:
    """The turn is reserved."""

    session_id: str
    turn: int
    deployment: str
    replayed: bool = False  # its Idempotency-Key was answered before


@dataclass(frozen=True, slots=True)
class Delta:
    """A piece of the answer: content, refusal or tool_calls."""

    pieces: Mapping[str, Any]


@dataclass(frozen=True, slots=True)
class Answer:
    """The turn is settled."""

    session: Session
    turn: Turn


Event: TypeAlias = Started | Delta | Answer


class Running:
    """A turn as its caller sees it. Its queue never waits, so nobody's reading slows or stops the turn."""

    def __init__(self) -> None:
        self._queue: asyncio.Queue[Event | Exception] = asyncio.Queue()
        self.told = False  # whether a piece of the answer may have reached the caller

    def tell(self, event: Event | Exception) -> None:
        self.told = self.told or isinstance(event, Delta)
        self._queue.put_nowait(event)

    async def next(self) -> Event:
        """Started, then Deltas, then Answer. Raises what went wrong: a ChatError, or a bug's exception."""
        event = await self._queue.get()
        if isinstance(event, Exception):
            raise event
        return event


class Turns:
    def __init__(
        self, reservations: Reservations, *, ledger: Ledger, model: Model, prices: Prices, turn_timeout: float
    ) -> None:
        self._reservations = reservations
        self._ledger = ledger
        self._model = model
        self._prices = prices
        self._turn_timeout = turn_timeout  # seconds, retries included
        self._tasks: set[asyncio.Task[None]] = set()

    def take_turn(self, post: Post) -> Running:
        """Begin a turn. It goes on whether or not its events are read."""
        running = Running()
        task = asyncio.create_task(self._run(post, running))
        self._tasks.add(task)
        task.add_done_callback(self._tasks.discard)
        return running

    async def finish(self) -> None:
        """Wait for the turns that are running."""
        while self._tasks:
            await asyncio.wait(self._tasks)

    async def _run(self, post: Post, running: Running) -> None:
        deadline = asyncio.get_running_loop().time() + self._turn_timeout
        try:
            reserved = await self._reservations.reserve(post)
            if isinstance(reserved, Replay):
                _replay(reserved, running)
                return
            held = reserved.held
            running.tell(Started(held.session.id, held.turn.number, held.turn.call.deployment))
            async with held.renewing():
                await self._converse(reserved, running, deadline)
        except ChatError as error:
            running.tell(error)
        except Exception as error:
            log.exception("turn failed")
            running.tell(error)

    async def _converse(self, reserved: Reserved, running: Running, deadline: float) -> None:
        """Call the model, once more at most where the first call may have been billed, and settle what came of it."""
        for last in (False, True):
            entry = await self._enter(reserved, running)
            completion = Completion()
            try:
                endpoint, usage = await self._listen(reserved, entry.call, completion, running, deadline)
            except Exception as error:
                if not isinstance(error, ChatError):
                    log.exception("call %s", entry.call.id)
                outcome = _outcome(entry.call, error)
                again = not (last or running.told) and asyncio.get_running_loop().time() < deadline
                if again and await self._retry(reserved, entry, outcome, error):
                    continue
                await self._settle(reserved, entry, outcome, completion, running, error)
            else:
                outcome = self._settled(entry.call, endpoint, completion.model, usage)
                await self._settle(reserved, entry, outcome, completion, running)
            return

    async def _enter(self, reserved: Reserved, running: Running) -> Entry:
        """Open the call in the ledger. Only once that is acknowledged may anything be spent."""
        held, found = reserved.held, None
        call = held.turn.call
        entry = Entry(call=call, session_id=held.session.id, turn=held.turn.number, caller=reserved.post.caller)
        if datetime.now(UTC) < call.deadline:
            with suppress(Changed, StorageUnavailable):
                return await self._ledger.insert(entry)
            with suppress(StorageUnavailable):  # the row is there already: ours, its answer lost, or recovery's fence
                found = await self._ledger.find(call, entry.session_id, entry.turn)
        if found and found.call.state is State.OPEN:
            return found
        error = StorageUnavailable()
        running.tell(error)  # nothing was spent: the caller need not wait until that is written down
        failed = replace(call, state=State.FAILED, reason=error.code)
        await held.settle(failed, finish_reason="error", finished=datetime.now(UTC))
        if found:
            await self._ledger.settle(found, failed)
        raise error

    async def _listen(
        self, reserved: Reserved, call: Call, completion: Completion, running: Running, deadline: float
    ) -> tuple[str, Usage]:
        """Gather the answer and pass its pieces on; returns the endpoint that gave it, and what it used."""
        prompt = Prompt(
            call_id=call.id,
            deployment=call.deployment,
            messages=reserved.window.messages,
            max_tokens=reserved.max_tokens,
            options=reserved.post.options,
        )
        failure: UpstreamFailure = UpstreamError("The model's answer broke off. Send this again.", maybe_billed=True)
        endpoint = ""
        try:
            async with asyncio.timeout_at(deadline), self._model.stream(prompt) as stream:
                endpoint = stream.endpoint
                async for chunk in stream:
                    if pieces := completion.add(chunk):
                        running.tell(Delta(pieces))
        except TimeoutError:
            message = f"The turn took longer than {self._turn_timeout:g} s. Ask for less, or try again later."
            failure = UpstreamTimeout(message, maybe_billed=True)
        except UpstreamFailure as error:
            failure = error
        if completion.finish_reason is None or completion.usage is None:
            raise failure
        return endpoint, completion.usage  # the answer is whole, whatever became of the connection behind it

    async def _retry(self, reserved: Reserved, entry: Entry, failed: Call, error: Exception) -> bool:
        """Open another call in place of one that may have been billed. False where there is to be none."""
        window, held = reserved.window, reserved.held
        if isinstance(error, ContextTooLong):
            shorter = reserved.past.halved(window)
            if shorter is None:
                return False
            window = shorter
        elif failed.state is not State.UNACCOUNTED or not isinstance(error, UpstreamFailure):
            return False
        again = self._reservations.new_call(failed.deployment, window, reserved.max_tokens)
        try:
            if not await held.retry(failed, again, window):
                return False
        except StorageUnavailable:
            return False
        await persist(failed, lambda: self._ledger.settle(entry, failed))
        reserved.window = window
        return True

    def _settled(self, call: Call, endpoint: str, model: str | None, usage: Usage) -> Call:
        rates = self._prices.rates(call.deployment, model, prompt_tokens=usage.prompt_tokens)
        amount = cost(usage, rates) if rates else None
        return replace(call, state=State.SETTLED, usage=usage, rates=rates, cost=amount, model=model, endpoint=endpoint)

    async def _settle(
        self,
        reserved: Reserved,
        entry: Entry,
        outcome: Call,
        completion: Completion,
        running: Running,
        error: Exception | None = None,
    ) -> None:
        """The session first, then the caller's answer, then the ledger: a row that is final means its session is."""
        said = completion.message()
        sent = reserved.post.messages
        session, turn = await reserved.held.settle(
            outcome,
            messages=sent if error and not running.told else (*sent, said),
            finish_reason="error" if error else completion.finish_reason,
            finished=datetime.now(UTC),
            extras=completion.extras,
        )
        running.tell(error or Answer(session, turn))
        await persist(outcome, lambda: self._ledger.settle(entry, outcome))


def _replay(answered: Replay, running: Running) -> None:
    session, turn = answered.session, answered.turn
    running.tell(Started(session.id, turn.number, turn.call.deployment, replayed=True))
    pieces = {kind: turn.messages[-1].get(kind) for kind in ("content", "refusal", "tool_calls")}
    running.tell(Delta({kind: piece for kind, piece in pieces.items() if piece}))
    running.tell(Answer(session, turn))


def _outcome(call: Call, error: Exception) -> Call:
    """What a call that went wrong is to be counted as. A prompt that was refused after it was read may be billed: only
    401 and 429 are documented as free."""
    reason = error.code if isinstance(error, ChatError) else "internal_error"
    free = isinstance(error, ChatError) and not isinstance(error, ContentFiltered | ContextTooLong)
    if isinstance(error, UpstreamFailure):
        free = not error.maybe_billed
    return replace(call, state=State.FAILED if free else State.UNACCOUNTED, reason=reason)
