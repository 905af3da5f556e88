"""The heart: one turn of a conversation, from the post to the settled cost.

    read -> reserve in the session -> open in the ledger -> call the model -> settle the session -> answer -> the ledger

A turn runs in a task of its own: a caller that hangs up stops reading, and nothing else. This room knows the order of
things and no service: what it needs is handed in (`ports`).
"""

import asyncio
import logging
from collections.abc import Awaitable, Mapping
from contextlib import suppress
from dataclasses import dataclass, field, replace
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
from shared.ports import Asking, Happened, Journal, Ledger, Model, Prompt
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
class Opened:
    """The model service answers, with these headers."""

    headers: Mapping[str, str]


@dataclass(frozen=True, slots=True)
class Delta:
    """A piece of the answer: content, refusal or calls; and the JSON that it came in."""

    pieces: Mapping[str, Any]
    data: bytes = b""
    only_usage: bool = False


@dataclass(frozen=True, slots=True)
class Answer:
    """The turn is settled. `data`: the answer as the service sent it, where that was not streamed."""

    session: Session
    turn: Turn
    data: bytes = b""


@dataclass(frozen=True, slots=True)
class Metered:
    """The call without a session is settled. `data`: as above."""

    data: bytes


Event: TypeAlias = Started | Opened | Delta | Answer | Metered


class Running:
    """A turn as its caller sees it, with or without the answer's `deltas`. Its queue never waits, so nobody's reading
    slows or stops the turn."""

    def __init__(self, *, deltas: bool) -> None:
        self._queue: asyncio.Queue[Event | Exception] = asyncio.Queue()
        self._deltas = deltas
        self.told = False  # whether a piece of the answer may have reached the caller

    def tell(self, event: Event | Exception) -> None:
        if isinstance(event, Delta):
            if not self._deltas:
                return
            self.told = True
        self._queue.put_nowait(event)

    async def next(self) -> Event:
        """Started, Opened, then Deltas, then Answer or Metered. Raises what went wrong: a ChatError, or a bug's
        exception."""
        event = await self._queue.get()
        if isinstance(event, Exception):
            raise event
        return event


@dataclass(frozen=True, slots=True)
class _Taken:
    """A turn that holds its session. `deadline`: on the event loop's clock."""

    reserved: Reserved
    running: Running
    deadline: float


@dataclass(slots=True)
class _Calling:
    """One call on its way, and what has come of it so far."""

    entry: Entry
    asking: Asking
    completion: Completion = field(default_factory=Completion)
    data: bytes = b""  # what came last
    begun: datetime = field(default_factory=lambda: datetime.now(UTC))
    first_token: datetime | None = None

    @property
    def call(self) -> Call:
        return self.entry.call

    @property
    def used(self) -> Usage | None:
        """What it used, once the answer is whole."""
        return self.completion.usage if self.completion.finish_reason is not None else None


class Turns:
    def __init__(
        self,
        reservations: Reservations,
        *,
        ledger: Ledger,
        model: Model,
        journal: Journal,
        prices: Prices,
        turn_timeout: float,
    ) -> None:
        self._reservations = reservations
        self._ledger = ledger
        self._model = model
        self._journal = journal
        self._prices = prices
        self._turn_timeout = turn_timeout  # seconds, retries included
        self._tasks: set[asyncio.Task[None]] = set()

    def take_turn(self, post: Post, *, deltas: bool) -> Running:
        """Begin a turn. It goes on whether or not its events are read."""
        return self._begin(self._reservations.reserve(post), deltas)

    def call(self, post: Post, *, deltas: bool) -> Running:
        """Call the model without a session: the ledger alone knows of it."""
        return self._begin(self._reservations.without_session(post), deltas)

    def _begin(self, reserving: Awaitable[Reserved | Replay], deltas: bool) -> Running:
        running = Running(deltas=deltas)
        task = asyncio.create_task(self._run(reserving, running))
        self._tasks.add(task)
        task.add_done_callback(self._tasks.discard)
        return running

    async def finish(self) -> None:
        """Wait for the turns that are running."""
        while self._tasks:
            await asyncio.wait(self._tasks)

    async def _run(self, reserving: Awaitable[Reserved | Replay], running: Running) -> None:
        deadline = asyncio.get_running_loop().time() + self._turn_timeout
        try:
            reserved = await reserving
            if isinstance(reserved, Replay):
                _replay(reserved, running)
                return
            held = reserved.held
            if held.session_id:
                running.tell(Started(held.session_id, held.number, held.call.deployment))
            async with held.renewing():
                await self._converse(_Taken(reserved, running, deadline))
        except ChatError as error:
            running.tell(error)
        except Exception as error:
            log.exception("turn failed")
            running.tell(error)

    async def _converse(self, taken: _Taken) -> None:
        """Call the model, once more at most where the first call may have been billed, and settle what came of it."""
        for last in (False, True):
            calling = self._calling(taken, await self._enter(taken))
            error: Exception | None = None
            try:
                usage = await self._listen(taken, calling)
            except Exception as failure:
                if not isinstance(failure, ChatError):
                    log.exception("call %s", calling.call.id)
                error, outcome = failure, _outcome(calling, failure)
            else:
                outcome = self._settled(calling, usage)
            self._record(taken, calling, outcome)
            if error is None or last or not await self._retry(taken, calling, outcome, error):
                await self._settle(taken, calling, outcome, error)
                return

    async def _enter(self, taken: _Taken) -> Entry:
        """Open the call in the ledger. Only once that is acknowledged may anything be spent."""
        held, found = taken.reserved.held, None
        call = held.call
        entry = Entry(call=call, session_id=held.session_id, turn=held.number, caller=taken.reserved.post.caller)
        with suppress(Changed, StorageUnavailable):
            if datetime.now(UTC) < call.deadline:
                found = await self._ledger.insert(entry)
        if found is None:
            with suppress(StorageUnavailable):  # the row is there already: ours, its answer lost, or recovery's fence
                found = await self._ledger.find(call, entry.session_id, entry.turn)
        if found and found.call.state is State.OPEN and datetime.now(UTC) < call.deadline:
            return found
        error = StorageUnavailable()
        taken.running.tell(error)  # nothing was spent: the caller need not wait until that is written down
        failed = replace(call, state=State.FAILED, reason=error.code)
        await held.settle(failed, finish_reason="error", finished=datetime.now(UTC))
        if found or datetime.now(UTC) < call.deadline:  # past which no row is made
            await persist(failed, lambda: self._ledger.settle(found or entry, failed))
        raise error

    def _calling(self, taken: _Taken, entry: Entry) -> _Calling:
        reserved = taken.reserved
        prompt = Prompt(
            call_id=entry.call.id,
            deployment=entry.call.deployment,
            body=reserved.body,
            as_sent=reserved.post.body is not None,
            deadline=taken.deadline,
        )
        return _Calling(entry, self._model.ask(prompt))

    async def _listen(self, taken: _Taken, calling: _Calling) -> Usage:
        """Gather the answer and pass its pieces on; returns what it used."""
        failure: UpstreamFailure = UpstreamError("The model's answer broke off. Send this again.", maybe_billed=True)
        try:
            async with asyncio.timeout_at(taken.deadline), calling.asking as answer:
                taken.running.tell(Opened(calling.asking.headers))
                async for calling.data in answer:
                    piece = calling.completion.add(calling.data)
                    if piece.shown:
                        calling.first_token = calling.first_token or datetime.now(UTC)
                    if piece.shown or taken.reserved.post.body is not None:
                        taken.running.tell(Delta(piece.shown, calling.data, piece.only_usage))
                if calling.used is None:  # said in here, so that the endpoint is passed over
                    raise failure
        except TimeoutError:
            message = f"The turn took longer than {self._turn_timeout:g} s. Ask for less, or try again later."
            failure = UpstreamTimeout(message, maybe_billed=calling.asking.attempts > 0)
        except UpstreamFailure as error:
            failure = error
        if (used := calling.used) is None:
            raise failure
        return used  # the answer is whole, whatever became of the connection behind it

    async def _retry(self, taken: _Taken, calling: _Calling, failed: Call, error: Exception) -> bool:
        """Open another call in place of one that may have been billed. False where there is to be none: a piece of the
        answer may have reached the caller, it is whole and only its usage is missing, or the turn's time is up, if not
        now then after the pause."""
        reserved, whole = taken.reserved, calling.completion.finish_reason is not None
        pause = self._model.pause(failed.deployment)
        if taken.running.told or whole or asyncio.get_running_loop().time() + pause >= taken.deadline:
            return False
        window, held = reserved.window, reserved.held
        if isinstance(error, ContextTooLong):
            shorter = reserved.past.halved(window) if reserved.past else None
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
        await persist(failed, lambda: self._ledger.settle(calling.entry, failed))
        reserved.window = window
        await asyncio.sleep(pause)
        return True

    def _settled(self, calling: _Calling, usage: Usage) -> Call:
        call, model = calling.call, calling.completion.model
        rates = self._prices.rates(call.deployment, model, prompt_tokens=usage.prompt_tokens)
        return replace(
            call,
            state=State.SETTLED,
            usage=usage,
            rates=rates,
            cost=cost(usage, rates) if rates else None,
            model=model,
            endpoint=calling.asking.endpoint,
        )

    async def _settle(self, taken: _Taken, calling: _Calling, outcome: Call, error: Exception | None = None) -> None:
        """The session first, then the caller's answer, then the ledger: a row that is final means its session is."""
        sent, completion = taken.reserved.post.messages, calling.completion
        settled = await taken.reserved.held.settle(
            outcome,
            messages=sent if error and not calling.first_token else (*sent, completion.message()),
            finish_reason="error" if error else completion.finish_reason,
            finished=datetime.now(UTC),
            extras=completion.extras,
        )
        taken.running.tell(error or (Answer(*settled, calling.data) if settled else Metered(calling.data)))
        await persist(outcome, lambda: self._ledger.settle(calling.entry, outcome))

    def _record(self, taken: _Taken, calling: _Calling, outcome: Call) -> None:
        body = taken.reserved.body
        self._journal.record(
            Happened(
                entry=calling.entry,
                call=outcome,
                attempts=calling.asking.attempts,
                max_tokens=body.get("max_completion_tokens") or body.get("max_tokens"),
                streamed=bool(body.get("stream")),
                finish_reason=calling.completion.finish_reason,
                begun=calling.begun,
                first_token=calling.first_token,
                finished=datetime.now(UTC),
            )
        )


def _replay(answered: Replay, running: Running) -> None:
    session, turn = answered.session, answered.turn
    running.tell(Started(session.id, turn.number, turn.call.deployment, replayed=True))
    said = turn.messages[-1]
    pieces = {kind: said.get(kind) for kind in ("content", "refusal")}
    pieces["tool_calls"] = [{"index": at, **call} for at, call in enumerate(said.get("tool_calls") or ())]
    running.tell(Delta({kind: piece for kind, piece in pieces.items() if piece}))
    running.tell(Answer(session, turn))


def _outcome(calling: _Calling, error: Exception) -> Call:
    """What a call that went wrong is to be counted as. A prompt that was refused after it was read may be billed: only
    401 and 429 are documented as free."""
    reason = error.code if isinstance(error, ChatError) else "internal_error"
    free = isinstance(error, ChatError) and not isinstance(error, ContentFiltered | ContextTooLong)
    if isinstance(error, UpstreamFailure):
        free = not error.maybe_billed
    state = State.FAILED if free else State.UNACCOUNTED
    return replace(calling.call, state=state, reason=reason, endpoint=calling.asking.endpoint)
