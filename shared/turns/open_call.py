"""A model call that is open in the ledger, and its outcome."""

from dataclasses import dataclass, replace
from datetime import datetime

from shared.domain.calls import ZERO, Call, LedgerEntry, State, Usage
from shared.domain.conversation import STOPPED
from shared.domain.pricing import Prices, cost
from shared.errors import ChatError, ContentFiltered, ContextTooLong, UpstreamFailure
from shared.turns.ports import AnswerReader, CallRecord, ModelCall, Plan


@dataclass(slots=True)
class OpenCall:
    """`error`: why there is no answer, or none that is whole. Times in UTC."""

    entry: LedgerEntry
    upstream: ModelCall
    answer: AnswerReader
    started: datetime
    first_token: datetime | None = None
    error: Exception | None = None
    stopped: bool = False  # before its end, on request

    @property
    def finish_reason(self) -> str | None:
        """As the turn keeps it: the answer's, or why there is none."""
        if isinstance(self.error, ContentFiltered):
            return "content_filter"
        if self.stopped:
            return STOPPED
        return "error" if self.error else self.answer.finish_reason

    def outcome(self, prices: Prices) -> Call:
        """The call once the answer is read: settled if its usage came, even where the answer broke off."""
        if self.answer.usage:
            return self._settled(self.answer.usage, prices)
        if self.stopped:
            return self._stopped(prices)
        return self.failed(self.error) if self.error else self._unaccounted("no_usage")

    def _stopped(self, prices: Prices) -> Call:
        """Settled if the service counted tokens as it generated them; free if no request can have been billed."""
        if self.answer.running_usage_is_exact and self.answer.running_usage:
            return self._settled(self.answer.running_usage, prices)
        if not self.upstream.maybe_billed:
            return replace(self.entry.call, state=State.FAILED, reason=STOPPED)
        at_least = self._settled(self.answer.running_usage, prices).cost if self.answer.running_usage else None
        stopped = self._unaccounted(STOPPED)
        return replace(stopped, state=State.STOPPED, at_least=at_least or ZERO)

    def _settled(self, usage: Usage, prices: Prices) -> Call:
        """At the price of the model and the service tier named in the answer."""
        opened, model = self.entry.call, self.answer.model
        if self.first_token and not usage.completion_tokens:  # something was generated
            usage = replace(usage, unpriced_kinds=usage.unpriced_kinds + 1)
        tier = self.answer.service_tier
        rates = prices.rates(opened.deployment, model, tier=tier, prompt_tokens=usage.prompt_tokens)
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
        if not free:
            return self._unaccounted(reason)
        return replace(self.entry.call, state=State.FAILED, reason=reason, endpoint=self.upstream.endpoint)

    def _unaccounted(self, reason: str) -> Call:
        state, model = State.UNACCOUNTED, self.answer.model
        return replace(self.entry.call, state=state, reason=reason, model=model, endpoint=self.upstream.endpoint)

    def record(self, plan: Plan, outcome: Call, finished: datetime) -> CallRecord:
        return CallRecord(
            entry=self.entry,
            call=outcome,
            operation=plan.dialect.operation,
            attempts=self.upstream.attempts,
            max_tokens=plan.requested_max_tokens,
            streamed=plan.streamed,
            finish_reason=self.answer.finish_reason,
            started=self.started,
            first_token=self.first_token,
            finished=finished,
        )
