"""One turn of a conversation, from the request to the settled cost.

    read -> reserve in the session -> open in the ledger -> call the model -> settle the session -> answer -> the ledger

Each turn runs in its own task, so it continues after the client disconnects. docs/protocol.py specifies the order of
these steps and shows what breaks without each rule.
"""

import asyncio
import logging
from collections.abc import Awaitable
from contextlib import suppress
from dataclasses import dataclass, field, replace

from shared.domain.calls import Call, LedgerEntry, State
from shared.domain.clock import Clock
from shared.domain.conversation import Item, TurnResult
from shared.domain.items import items_of
from shared.domain.pricing import Prices
from shared.errors import (
    ChatError,
    ContextTooLong,
    StorageUnavailable,
    UpstreamError,
    UpstreamFailure,
    UpstreamTimeout,
)
from shared.turns.admission import Admission
from shared.turns.events import Answer, Delta, Metered, Opened, Started, TurnStream
from shared.turns.lease import ReservedTurn, persist
from shared.turns.open_call import OpenCall
from shared.turns.ports import CallLog, Ledger, Model, Plan, ServerEvent
from shared.turns.requests import AnyRequest, Request, UnstoredRequest
from shared.turns.reservation import Replay, Reservations

log = logging.getLogger(__name__)


@dataclass(slots=True, kw_only=True)
class _Run:
    """A running turn. `deadline`: monotonic seconds."""

    request: AnyRequest
    turn: ReservedTurn
    stream: TurnStream
    deadline: float
    ended: asyncio.Event = field(default_factory=asyncio.Event)


class Turns:
    """Runs turns. `turn_timeout`: seconds for a whole turn, including its retry."""

    def __init__(
        self,
        reservations: Reservations,
        admission: Admission,
        *,
        ledger: Ledger,
        model: Model,
        call_log: CallLog,
        prices: Prices,
        clock: Clock,
        turn_timeout: float,
    ) -> None:
        self._reservations = reservations
        self._admission = admission
        self._ledger = ledger
        self._model = model
        self._call_log = call_log
        self._prices = prices
        self._clock = clock
        self._turn_timeout = turn_timeout
        self._tasks: set[asyncio.Task[None]] = set()
        self._running: dict[str, _Run] = {}  # by session

    def take_turn(self, request: Request, *, deltas: bool) -> TurnStream:
        """Start a turn of a session. It continues even if its events are not read."""
        return self._begin(request, self._reservations.reserve(request), TurnStream(deltas=deltas))

    def call(self, request: UnstoredRequest, *, deltas: bool) -> TurnStream:
        """Call the model without a session: the call is stored only in the ledger."""
        return self._begin(request, self._reservations.without_session(request), TurnStream(deltas=deltas))

    async def stop(self, session_id: str, number: int) -> bool:
        """Stop a turn that runs in this process, and wait until it has ended. False if it does not run here."""
        run = self._running.get(session_id)
        if run is None or run.turn.number != number:
            return False
        run.stream.stop.request()
        await run.ended.wait()
        return True

    async def finish(self) -> None:
        """Wait for all running turns."""
        while self._tasks:
            await asyncio.wait(self._tasks)

    def _begin(
        self, request: AnyRequest, reserving: Awaitable[ReservedTurn | Replay], stream: TurnStream
    ) -> TurnStream:
        task = asyncio.create_task(self._run(request, reserving, stream))
        self._tasks.add(task)
        task.add_done_callback(self._tasks.discard)
        return stream

    async def _run(self, request: AnyRequest, reserving: Awaitable[ReservedTurn | Replay], stream: TurnStream) -> None:
        deadline = self._clock.monotonic() + self._turn_timeout
        try:
            turn = await reserving
            if isinstance(turn, Replay):
                _replay(turn, stream)
                return
            run = _Run(request=request, turn=turn, stream=stream, deadline=deadline)
            if turn.session_id:
                self._running[turn.session_id] = run
            try:
                async with turn.renewing(stream.stop):
                    await self._call_and_settle(run)
            finally:
                if turn.session_id and self._running.get(turn.session_id) is run:
                    del self._running[turn.session_id]
                run.ended.set()
        except ChatError as error:
            stream.fail(error)
        except Exception as error:
            log.exception("turn failed")
            stream.fail(error)

    async def _call_and_settle(self, run: _Run) -> None:
        """Call the model, retry at most once if the first call may have been billed, and settle the last call. A prompt
        that is too long is shortened until the model takes it, or nothing more can be dropped."""
        entry = await self._open(run)
        if run.turn.session_id:
            started = run.turn.turn.started
            run.stream.send(Started(run.turn.session_id, run.turn.number, entry.call.deployment, started))
        call, outcome = await self._call(run, entry)
        retried = False
        while not retried and (plan := self._retry_plan(run, call, outcome)) and await self._retry(run, outcome, plan):
            retried = not isinstance(call.error, ContextTooLong)
            call, outcome = await self._call(run, await self._open(run, replaces=(call.entry, outcome)))
        await self._settle(run, call, outcome)

    async def _open(self, run: _Run, replaces: tuple[LedgerEntry, Call] | None = None) -> LedgerEntry:
        return await self._admission.open(run.request, run.turn, replaces=replaces, on_failure=run.stream.fail)

    async def _call(self, run: _Run, entry: LedgerEntry) -> tuple[OpenCall, Call]:
        """Call the model. Returns the call and the outcome to settle."""
        plan = run.turn.plan
        upstream = self._model.call(plan, call_id=entry.call.id, deadline=run.deadline)
        call = OpenCall(entry, upstream, plan.dialect.reader(plan.body), self._clock.now())
        try:
            await self._read_answer(run, call)
            outcome = call.outcome(self._prices)
        except Exception as error:
            if not isinstance(error, ChatError):
                log.exception("call %s", entry.call.id)
            outcome = call.failed(error)
        if outcome.cost is not None and outcome.worst_case is not None and outcome.cost > outcome.worst_case:
            log.error(
                "call %s: its cost of %s USD is above its worst case of %s USD",
                outcome.id,
                outcome.cost,
                outcome.worst_case,
            )
        self._call_log.record(call.record(plan, outcome, self._clock.now()))
        return call, outcome

    async def _read_answer(self, run: _Run, call: OpenCall) -> None:
        """Read the answer and send its deltas to the stream. Sets `call.error` if the answer is not complete."""
        answer = call.answer
        try:
            async with self._clock.timeout_at(run.deadline), run.stream.stop.scope(), call.upstream as events:
                rates = self._admission.rates(run.request.principal, call.entry)
                plan = run.turn.plan
                run.stream.send(Opened(call.upstream.headers, plan.deployment, rates, plan.instead_of))
                async for event in events:
                    self._read_event(run, call, event)
                answer.end()
                if not answer.complete:  # raised inside the block so that the endpoint's circuit opens
                    message = "The model's answer broke off. Retry the request."
                    raise answer.error or UpstreamError(message, maybe_billed=True)
        except TimeoutError:
            if run.stream.stop.requested and self._clock.monotonic() < run.deadline:
                call.stopped = not answer.complete
                return
            message = f"The turn exceeded its timeout of {self._turn_timeout:g} s. Shorten the request, or retry later."
            call.error = UpstreamTimeout(message, maybe_billed=call.upstream.maybe_billed)
        except UpstreamFailure as error:
            call.error = error
        if answer.complete:
            call.error = None  # even if the connection failed after it

    def _read_event(self, run: _Run, call: OpenCall, event: ServerEvent) -> None:
        piece, plan = call.answer.add(event.data, event.name), run.turn.plan
        if piece is None or call.answer.error:
            return
        if piece.shown:
            call.first_token = call.first_token or self._clock.now()
        if piece.shown or plan.forwarded:
            sent = ServerEvent(piece.chunk) if plan.streamed and piece.chunk else event
            run.stream.send(Delta(piece.shown, sent, piece.only_usage))

    def _retry_plan(self, run: _Run, call: OpenCall, outcome: Call) -> Plan | None:
        """The plan for the retry; None if the failed call must not be retried: a delta may have reached the caller, the
        answer is complete and only its usage is missing, or no time is left."""
        pause = self._model.pause(outcome.deployment)
        if run.stream.delta_sent or call.answer.finish_reason is not None or run.stream.stop.requested:
            return None
        if self._clock.monotonic() + pause >= run.deadline:
            return None
        if isinstance(call.error, ContextTooLong):
            return run.turn.plan.shortened(call.error.limit)
        if isinstance(call.error, UpstreamFailure) and not call.error.final and outcome.state is State.UNACCOUNTED:
            return run.turn.plan
        return None

    async def _retry(self, run: _Run, outcome: Call, plan: Plan) -> bool:
        """Reserve a new call in place of the failed one, then wait as long as the service requires. False if the lease
        is lost or storage can't be reached."""
        new = self._reservations.new_call(run.request.principal, plan, reference=outcome.reference, step=outcome.step)
        try:
            if not await run.turn.retry(outcome, new, plan):
                return False
        except StorageUnavailable:
            return False
        with suppress(TimeoutError):  # stopped: the new call is not sent
            async with run.stream.stop.scope():
                await self._clock.sleep(self._model.pause(outcome.deployment))
        return True

    async def _settle(self, run: _Run, call: OpenCall, outcome: Call) -> None:
        """Settle the session, answer the caller, settle the ledger: a final row implies that its session is final."""
        messages = run.request.messages
        output: tuple[Item, ...] = ()
        if call.first_token or (call.error is None and not call.stopped):
            answer = call.answer.message(empty_fields=run.turn.plan.forwarded)
            messages = (*messages, answer)
            output = items_of(answer, calls_first=call.answer.calls_first) if run.request.input else ()
        result = TurnResult(
            messages=messages,
            output=output,
            finish_reason=call.finish_reason,
            finished=self._clock.now(),
            extras=call.answer.extras,
        )
        if call.stopped:
            _end_stopped(run, call)
        settled = await run.turn.settle(outcome, result)
        if call.error:
            run.stream.fail(call.error)
        else:
            document = call.answer.document() if run.turn.plan.forwarded else b""
            budgets = self._admission.budgets(run.request.principal, call.entry, outcome)
            instead_of = run.turn.plan.instead_of
            event = Answer(*settled, document, budgets, instead_of) if settled else Metered(document, run.turn.turn)
            run.stream.send(event)
        # The row of an erased session must not have its id, even if the row was inserted after the erasure.
        entry = replace(call.entry, session_id=None) if run.turn.erased else call.entry
        await persist(outcome, lambda: self._ledger.raise_call(entry, outcome), self._clock)
        if run.turn.erased:
            await self._reservations.leave(run.turn)


def _end_stopped(run: _Run, call: OpenCall) -> None:
    ending = ServerEvent(call.answer.stop())
    if run.turn.plan.forwarded:
        run.stream.send(Delta({}, ending))


def _replay(replay: Replay, stream: TurnStream) -> None:
    session, turn = replay.session, replay.turn
    stream.send(Started(session.id, turn.number, turn.call.deployment, turn.started, replayed=True))
    answer = turn.messages[-1]
    pieces = {kind: answer.get(kind) for kind in ("content", "refusal")}
    pieces["tool_calls"] = [{"index": at, **call} for at, call in enumerate(answer.get("tool_calls") or ())]
    stream.send(Delta({kind: piece for kind, piece in pieces.items() if piece}))
    stream.send(Answer(session, turn))
