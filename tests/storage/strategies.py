"""Hypothesis strategies for values to store."""

from dataclasses import replace
from datetime import UTC, date, datetime, time, timedelta
from decimal import Decimal
from typing import Any

from hypothesis import strategies as st

from shared.domain.calls import Call, LedgerEntry, Rates, State, Totals, Usage
from shared.domain.conversation import Deletion, Kind, Lease, Message, Parent, Session, Turn
from shared.domain.limits import Counter

TIMES = st.datetimes(datetime(2020, 1, 1), datetime(2100, 1, 1), timezones=st.just(UTC))  # noqa: DTZ001
TEXT = st.text(st.characters(exclude_categories=["Cs"]), max_size=20)
SOME = st.none() | TEXT.filter(bool)
MONEY = st.decimals(0, 10**9, places=18)
TOKENS = st.integers(0, 2**62)
USAGES = st.builds(
    Usage,
    prompt_tokens=TOKENS,
    cached_tokens=TOKENS,
    cache_write_tokens=TOKENS,
    completion_tokens=TOKENS,
    reasoning_tokens=TOKENS,
    audio_prompt_tokens=TOKENS,
    audio_completion_tokens=TOKENS,
    unpriced_kinds=TOKENS,
)
RATES = st.builds(
    Rates,
    input=MONEY,
    cached_input=MONEY,
    cache_write=MONEY,
    output=MONEY,
    audio_input=st.none() | MONEY,
    audio_output=st.none() | MONEY,
)
SESSION_IDS = st.from_regex(r"\A[A-Za-z0-9][A-Za-z0-9._-]{0,63}\Z")
CALL_IDS = st.uuids().map(lambda uuid: uuid.hex)
CALLS = st.builds(
    Call,
    id=CALL_IDS,
    day=st.dates(date(2020, 1, 1), date(2100, 1, 1)),
    deadline=TIMES,
    deployment=TEXT.filter(bool),
    worst_case=st.none() | MONEY,
    step=st.integers(0, 9),
    state=st.sampled_from(State),
    usage=st.none() | USAGES,
    cost=st.none() | MONEY,
    rates=st.none() | RATES,
    model=SOME,
    endpoint=SOME,
    reason=SOME,
)
MINUTES = st.integers(0, 24 * 60 - 1)  # of a day
NAMES = st.from_regex(r"\A(total|anonymous|key:[A-Za-z0-9][A-Za-z0-9._-]{0,63})\Z")  # of limits


def minute_of_day(day: date, minute: int) -> datetime:
    return datetime.combine(day, time(), UTC) + timedelta(minutes=minute)


LIMITED_CALLS = st.builds(
    lambda call, minute, tokens: replace(call, minute=minute_of_day(call.day, minute), max_tokens=tokens),
    CALLS,
    MINUTES,
    TOKENS,
)
LIMITED_ENTRIES = st.builds(
    lambda call, session, turn, caller, limits, minute: LedgerEntry(
        call=call,
        session_id=session,
        turn=turn if session else 0,
        caller=caller,
        limits=tuple(limits),
        minute=minute_of_day(call.day, minute),
    ),
    LIMITED_CALLS,
    st.none() | SESSION_IDS,
    st.integers(1, 9_999_999_999),
    SOME,
    st.lists(NAMES, min_size=1, max_size=2, unique=True),
    MINUTES,
)
COUNTERS = st.builds(
    Counter,
    name=NAMES,
    month=st.dates(date(2020, 1, 1), date(2100, 1, 1)).map(lambda day: day.replace(day=1)),
    since=TIMES,
    minute=st.none() | TIMES,
    spent=MONEY,
    held=MONEY,
    day_spent=MONEY,
    day_held=MONEY,
    running=MONEY,
    day_running=MONEY,
    minute_tokens=TOKENS,
    minute_requests=TOKENS,
    etag=st.just("e"),
)
MESSAGES: st.SearchStrategy[Message] = st.fixed_dictionaries(
    {"role": st.sampled_from(["user", "assistant", "tool"]), "content": st.none() | TEXT},
    optional={"tool_call_id": TEXT, "tool_calls": st.lists(st.dictionaries(TEXT, TEXT, max_size=2), max_size=2)},
)
TURNS = st.builds(
    Turn,
    number=st.integers(1, 9_999_999_998),
    started=TIMES,
    calls=st.lists(CALLS | LIMITED_CALLS, min_size=1, max_size=2).map(tuple),
    messages=st.lists(MESSAGES, max_size=3).map(tuple),
    window_start=st.integers(1, 10**9),
    past_tokens=st.integers(0, 10**7),
    finished=st.none() | TIMES,
    finish_reason=SOME,
    truncated=st.lists(TEXT, max_size=2).map(tuple),
    extras=st.dictionaries(TEXT, st.lists(TEXT, max_size=2), max_size=2),
    etag=st.just("e"),
)
TOTALS = st.builds(
    Totals,
    usage=USAGES,
    cost=MONEY,
    unpriced_turns=TOKENS,
    unaccounted_calls=TOKENS,
    unaccounted=MONEY,
    unbounded_calls=TOKENS,
)
SESSIONS = st.builds(
    lambda parent, **fields: Session(parent=parent and parent[0], parent_created=parent and parent[1], **fields),
    parent=st.none() | st.tuples(st.builds(Parent, session_id=SESSION_IDS, turn=st.integers(1, 10**9)), TIMES),
    kind=st.sampled_from(Kind),
    metadata=st.dictionaries(TEXT, TEXT, max_size=2),
    id=SESSION_IDS,
    created=TIMES,
    updated=TIMES,
    system=TEXT,
    deployment=TEXT.filter(bool),
    owner=SOME,
    turns=st.integers(0, 9_999_999_998),
    totals=TOTALS,
    window_start=st.integers(1, 10**9),
    cleared_through=st.integers(0, 10**9),
    lease=st.none() | st.builds(Lease, call=CALL_IDS, until=TIMES),
    deletion=st.none() | st.builds(Deletion, id=CALL_IDS, erase=st.booleans()),
    first_key=SOME,
    etag=st.just("e"),
)


def stored(row: dict[str, Any]) -> dict[str, Any]:
    """The row as storage returns it: properties without a value are absent, money is text."""
    plain = {name: format(value, "f") if isinstance(value, Decimal) else value for name, value in row.items()}
    return {name: value for name, value in plain.items() if value is not None} | {"etag": "e"}
