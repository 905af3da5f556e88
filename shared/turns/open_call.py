"""A model call that is open in the ledger, and its outcome."""

from dataclasses import dataclass, replace
from datetime import datetime

from shared.domain.calls import Call, LedgerEntry, State, Usage
from shared.domain.pricing import Prices, cost
from shared.errors import ChatError, ContentFiltered, ContextTooLong, UpstreamFailure
from shared.turns.ports import AnswerReader, CallRecord, ModelCall, Plan


@dataclass(slots=True)
class OpenCall:
    """`data`: the latest JSON chunk, or the whole document. Times in UTC."""

    entry: LedgerEntry
    upstream: ModelCall
    answer: AnswerReader
    started: datetime
    first_token: datetime | None = None
    data: bytes = b""
    error: Exception | None = None

    @property
    def usage(self) -> Usage | None:
        """The token counts; None until the answer is complete."""
        return self.answer.usage if self.answer.finish_reason is not None else None

    def settled(self, usage: Usage, prices: Prices) -> Call:
        """The call with its cost, at the price of the model named in the answer."""
        opened, model = self.entry.call, self.answer.model
        rates = prices.rates(opened.deployment, model, prompt_tokens=usage.prompt_tokens)
        return replace(
            opened,
            state=State.SETTLED,
            usage=usage,
            rates=rates,
            cost=cost(usage, rates) if rates else None,
            model=model,
            endpoint=self.upstream.endpoint,
        )

    def failed(self, error: Exception) -> Call:
        """The call after this error: unaccounted if it may be billed, as a prompt may be that was read and rejected."""
        self.error = error
        reason = error.code if isinstance(error, ChatError) else "internal_error"
        free = isinstance(error, ChatError) and not isinstance(error, ContentFiltered | ContextTooLong)
        if isinstance(error, UpstreamFailure):
            free = not error.maybe_billed
        state = State.FAILED if free else State.UNACCOUNTED
        return replace(self.entry.call, state=state, reason=reason, endpoint=self.upstream.endpoint)

    def record(self, plan: Plan, outcome: Call, finished: datetime) -> CallRecord:
        return CallRecord(
            entry=self.entry,
            call=outcome,
            attempts=self.upstream.attempts,
            max_tokens=plan.requested_max_tokens,
            streamed=plan.streamed,
            finish_reason=self.answer.finish_reason,
            started=self.started,
            first_token=self.first_token,
            finished=finished,
        )
