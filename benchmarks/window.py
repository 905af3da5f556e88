"""Prompt tokens paid for one conversation, beside those of a naive sliding window: `python -m benchmarks.window`.

Plans every turn as the app does (`ComposedRequest.plan`, and `raise_call`, which moves the window), for a service with
a prompt cache as OpenAI's: cached are the first tokens of a prompt that an earlier prompt began with, in steps of 128,
at least 1,024, and nothing is ever evicted. The naive window drops its oldest message while the prompt does not fit. It
knows the exact number of tokens, which the app estimates until the service reports it. No server is involved.
"""

import argparse
import random
import uuid
from collections import deque
from collections.abc import Sequence
from dataclasses import dataclass, field, replace
from datetime import UTC, datetime, timedelta
from decimal import Decimal
from hashlib import sha256
from statistics import mean

from shared.domain.calls import Call, State, Usage
from shared.domain.conversation import Message, Session, Turn, TurnResult, raise_call
from shared.domain.principal import Principal
from shared.domain.window import MAX_TURNS
from shared.model.chat_completions import ChatCompletions
from shared.settings import Settings
from shared.turns.requests import ComposedRequest, TurnLimits
from tests.support.azure_openai_answers import CACHE_STEP_TOKENS, MESSAGE_TOKENS, MIN_CACHED_TOKENS, pieces

NOW = datetime(2026, 11, 20, tzinfo=UTC)
SYSTEM = "You are a helpful assistant of a small company. Answer in plain English, and say so if you do not know. " * 3
DISCOUNTS = (Decimal("0.1"), Decimal("0.5"))  # the price of a cached token over that of another
WORDS = ("order", "the", "of", "a", "delivery", "was", "answer", "window", "invoice", "is", "to", "number", "tomorrow")


@dataclass(frozen=True)
class Prompt:
    tokens: int
    cached: int
    history: int  # tokens of past messages

    def paid(self, discount: Decimal) -> Decimal:
        return self.tokens - self.cached * (1 - discount)


@dataclass
class Cache:
    """The prompts that a service has seen, as digests of their beginnings."""

    seen: set[bytes] = field(default_factory=set)

    def send(self, messages: Sequence[Message]) -> Prompt:
        tokens = [token for message in messages for token in tokens_of(message)]
        digest, cached, beginnings = sha256(), 0, list[bytes]()
        for end in range(CACHE_STEP_TOKENS, len(tokens) + 1, CACHE_STEP_TOKENS):
            digest.update("\0".join(tokens[end - CACHE_STEP_TOKENS : end]).encode())
            beginnings.append(digest.digest())
            cached = end if beginnings[-1] in self.seen else cached
        self.seen.update(beginnings)
        history = sum(len(tokens_of(message)) for message in messages[1:-1])
        return Prompt(len(tokens), cached if cached >= MIN_CACHED_TOKENS else 0, history)


def tokens_of(message: Message) -> list[str]:
    return [message["role"], *["|"] * (MESSAGE_TOKENS - 1), *pieces(message["content"])]


def text(chance: random.Random, tokens: int) -> str:
    """At least that many tokens."""
    words: list[str] = []
    length = 0
    while length < tokens:
        words.append(chance.choice(WORDS))
        length += len(pieces(f" {words[-1]}"))
    return " ".join(words)


def limits() -> TurnLimits:
    """The default settings."""
    settings = Settings.from_env(
        {
            "AZURE_OPENAI_ENDPOINT": "http://127.0.0.1:9",
            "AZURE_OPENAI_API_KEY": "unused",
            "TABLES_CONNECTION_STRING": "UseDevelopmentStorage=true",
        }
    )
    return TurnLimits(
        deployment="chat",
        deployments=frozenset({"chat"}),
        system_prompt=SYSTEM,
        context_tokens=settings.turns.context_tokens,
        max_tokens=settings.turns.max_tokens,
        max_answer_tokens=settings.turns.max_answer_tokens,
        turn_timeout=settings.turns.timeout,
    )


class App:
    """A session as the app keeps it."""

    def __init__(self, allowed: TurnLimits) -> None:
        self._limits, self._cache, self._dialect = allowed, Cache(), ChatCompletions()
        self._session = Session(id="s", created=NOW, updated=NOW, system=SYSTEM, deployment="chat")
        self._turns = deque[Turn](maxlen=MAX_TURNS)  # newest first, as storage reads them

    def take_turn(self, question: Message, answer: Message) -> Prompt:
        request = ComposedRequest(principal=Principal(None), dialect=self._dialect, messages=(question,))
        plan = request.plan(self._session, list(self._turns), self._limits)
        prompt = self._cache.send(plan.body["messages"])
        number = self._session.turns + 1
        call = Call(
            id=uuid.uuid4().hex, day=NOW.date(), deadline=NOW + timedelta(minutes=5), deployment="chat", worst_case=None
        )
        turn = Turn(
            number=number, started=NOW, calls=(call,), window_start=plan.window_start, past_tokens=plan.past_tokens
        )
        usage = Usage(
            prompt_tokens=prompt.tokens, cached_tokens=prompt.cached, completion_tokens=len(pieces(answer["content"]))
        )
        raised = raise_call(replace(self._session, turns=number), turn, replace(call, state=State.SETTLED, usage=usage))
        if raised is None:
            raise RuntimeError("the turn is not settled")
        self._session, turn = raised
        self._turns.appendleft(
            turn.with_result(TurnResult(messages=(question, answer), finish_reason="stop", finished=NOW))
        )
        return prompt


class Naive:
    """A list of messages, of which the oldest is dropped while the prompt does not fit."""

    def __init__(self, allowed: TurnLimits) -> None:
        self._budget, self._cache = allowed.context_tokens - allowed.max_tokens, Cache()
        self._history = deque[Message]()

    def take_turn(self, question: Message, answer: Message) -> Prompt:
        system = {"role": "system", "content": SYSTEM}
        sizes = deque(len(tokens_of(message)) for message in self._history)
        total = sum(sizes) + len(tokens_of(system)) + len(tokens_of(question))
        while total > self._budget:
            total -= sizes.popleft()
            self._history.popleft()
        prompt = self._cache.send([system, *self._history, question])
        self._history += (question, answer)
        return prompt


def main() -> None:
    parser = argparse.ArgumentParser(
        prog="python -m benchmarks.window", description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter
    )
    parser.add_argument("--turns", type=int, default=300)
    parser.add_argument("--question", type=int, nargs=2, default=(20, 100), help="least and most tokens of a message")
    parser.add_argument("--answer", type=int, nargs=2, default=(100, 400), help="least and most tokens of an answer")
    parser.add_argument("--seed", type=int, default=1)
    chosen = parser.parse_args()
    chance, allowed = random.Random(chosen.seed), limits()  # noqa: S311 - not a secret
    app, naive = App(allowed), Naive(allowed)
    prompts: list[tuple[Prompt, Prompt]] = []
    for _ in range(chosen.turns):
        question = {"role": "user", "content": text(chance, chance.randint(*chosen.question))}
        answer = {"role": "assistant", "content": text(chance, chance.randint(*chosen.answer))}
        prompts.append((app.take_turn(question, answer), naive.take_turn(question, answer)))
    print(
        f"{chosen.turns} turns, window of {allowed.context_tokens:,} tokens, seed {chosen.seed}; tokens of the prompts:"
    )
    for name, sent in zip(("this app", "naive window"), zip(*prompts, strict=True), strict=True):
        total, cached = sum(each.tokens for each in sent), sum(each.cached for each in sent)
        print(f"  {name:12} {total:>9,}, {cached / total:.0%} of them cached")
    share = mean(ours.history / theirs.history for ours, theirs in prompts if theirs.history)
    ratios = [
        sum(ours.paid(d) for ours, _ in prompts) / sum(theirs.paid(d) for _, theirs in prompts) for d in DISCOUNTS
    ]
    print("nothing ran beside it: it measures no time")
    print(
        f"history kept over the naive window's: {share:.2f}; tokens paid over the naive window's:"
        f" {', '.join(f'{ratio:.2f} with cached tokens at {d}' for ratio, d in zip(ratios, DISCOUNTS, strict=True))}"
    )


if __name__ == "__main__":
    main()
