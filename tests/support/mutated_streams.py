"""Answers as no model service should send them: a valid stream or document, mutated by hypothesis.

The fake bills each of them USAGE. A mutation never changes a token count into another valid one: such an answer would
be wrong and not only odd.
"""

import json
from collections.abc import Callable
from copy import deepcopy
from dataclasses import dataclass
from typing import Any, TypeAlias

from hypothesis import strategies as st

from tests.support.rude_dialect import BOM, LINE_ENDS, NOISE
from tests.support.rude_upstream import USAGE, Raw, chunk, end, frame, text, usage, whole

JSON = dict[str, Any]
Draw: TypeAlias = Callable[..., Any]
Events: TypeAlias = list[JSON | bytes | str]
DONE = b"data: [DONE]\n\n"

TEXT = st.text(st.sampled_from("helo {}\n\u2028\u00e9\U0001f600"), max_size=5).map(text)
REASONING = st.sampled_from(["hm", ""]).map(lambda thought: chunk({"reasoning_content": thought}))
CALL = {"index": 0, "id": "a", "type": "function", "function": {"name": "look", "arguments": ""}}
TOOL_CALLS = [
    chunk({"tool_calls": [CALL]}),
    chunk({"tool_calls": [{"index": 0, "function": {"arguments": '{"x": 1}'}}]}),
    chunk({"tool_calls": [{**CALL, "index": 1, "id": "b", "function": {"name": "find", "arguments": "{}"}}]}),
]
OPENINGS: list[list[JSON]] = [
    [],
    [chunk({"role": "assistant", "content": ""})],
    [chunk(prompt_filter_results=[{"prompt_index": 0, "content_filter_results": {}}])],
]
JUNK: list[Any] = [
    None,
    True,
    -1,
    1.5,
    "text",
    "",
    [],
    {},
    [None],
    ["text"],
    {"text": "text"},
    "\ud83d",
    10**30,
    float("-inf"),
]
PLAIN_JUNK: list[Any] = [None, "text", [], {}, -1]  # for USAGE: no counts
ERROR = {"error": {"message": "the engine died", "type": "server_error", "code": 503}}


@dataclass(frozen=True)
class Mutated:
    """`content`: of the answer, if the mutations leave it whole and settled."""

    raw: Raw
    content: str | None = None

    @property
    def body(self) -> bytes:
        return b"".join(self.raw.parts)

    @property
    def is_document(self) -> bool:
        return self.body.removeprefix(BOM).lstrip().startswith(b"{")

    @property
    def lossless(self) -> bool:
        """Whether all of the body arrives: a reset discards what is not read yet."""
        return self.raw.ending == "clean"


@st.composite
def reframed(draw: Draw) -> Mutated:
    """A valid stream with other line ends and splits, and with noise between its chunks: the answer is the same."""
    chunks = draw(_valid())
    content = "".join(each["choices"][0]["delta"].get("content", "") for each in chunks if each["choices"])
    events = _with_noise(draw, chunks, at_most=3)
    body = _encoded(draw, events) + (DONE if draw(st.booleans()) else b"")
    return Mutated(Raw(_split(draw, body)), content)


@st.composite
def mutated(draw: Draw) -> Mutated:
    """A stream with up to three other mutations, perhaps cut."""
    events = draw(_valid())
    for mutate in draw(st.lists(st.sampled_from(MUTATIONS), max_size=3)):
        mutate(draw, events)
    return _sent(draw, _encoded(draw, _with_noise(draw, events, at_most=1)))


@st.composite
def with_running_usage(draw: Draw) -> Mutated:
    """A stream with the usage so far on most chunks. Its end is not clean if it is cut."""
    events = [each for each in draw(_valid()) if not each["choices"] or _says_something(each["choices"][0])]
    if draw(st.booleans()):
        events.pop()  # the usage-only chunk
    silent = draw(st.sets(_index(events), max_size=2))
    for at, each in enumerate(events):
        if each["choices"] and at not in silent:
            last = at >= len(events) - 2
            each["usage"] = USAGE if last else {**USAGE, "completion_tokens": 1, "total_tokens": 10}
    return _sent(draw, _encoded(draw, _with_noise(draw, events, at_most=2)), clean_cut=False)


def _says_something(choice: JSON) -> bool:
    return bool(choice["finish_reason"] or any(choice["delta"].values()))


@st.composite
def documents(draw: Draw) -> Mutated:
    """A completion that is not streamed, with up to two fields mutated, perhaps cut."""
    calls = [{name: each for name, each in CALL.items() if name != "index"}]
    message = draw(st.sampled_from([{"content": "hello"}, {"content": None, "tool_calls": calls}]))
    document = json.loads(whole(message, draw(st.sampled_from(["stop", "tool_calls"]))))
    for _ in range(draw(st.integers(0, 2))):
        _change_field(draw, [document])
    body = draw(st.sampled_from([b"", BOM, b"\n "])) + json.dumps(document).encode()
    cut = draw(st.none() | st.integers(0, len(body)))
    raw = Raw(
        _split(draw, body[:cut]),
        media_type="application/json",
        framing=draw(st.sampled_from(["chunked", "length"])),
        ending="clean" if cut is None else draw(st.sampled_from(["clean", "reset"])),
    )
    return Mutated(raw)


@st.composite
def _valid(draw: Draw) -> list[JSON]:
    """The chunks of a valid answer, usage last."""
    pieces = draw(st.lists(TEXT | REASONING, min_size=1, max_size=3))
    calls = draw(st.sampled_from([[], TOOL_CALLS]))
    chunks = [*draw(st.sampled_from(OPENINGS)), *pieces, *calls, end("tool_calls" if calls else "stop"), usage()]
    return deepcopy(chunks)


def _change_field(draw: Draw, events: Events) -> None:
    """Remove a field, or set it to null or another type; at any depth."""
    field: Any = draw(st.sampled_from([each for each in events if isinstance(each, dict)] or [{}]))
    junk = JUNK
    while field:
        name = draw(st.sampled_from([*field] if isinstance(field, dict) else range(len(field))))
        junk = PLAIN_JUNK if name == "usage" else junk
        inner = field[name]
        if not inner or not isinstance(inner, dict | list) or draw(st.booleans()):
            if isinstance(field, dict) and draw(st.booleans()):
                del field[name]
            else:
                field[name] = deepcopy(draw(st.sampled_from(junk)))
            return
        field = inner


def _replace_event(draw: Draw, events: Events) -> None:
    events[draw(_index(events))] = draw(st.sampled_from(NOISE))


def _repeat_event(draw: Draw, events: Events) -> None:
    events.insert(draw(_index(events)), deepcopy(events[draw(_index(events))]))


def _swap_events(draw: Draw, events: Events) -> None:
    one, other = draw(_index(events)), draw(_index(events))
    events[one], events[other] = events[other], events[one]


def _drop_event(draw: Draw, events: Events) -> None:
    del events[draw(_index(events))]
    events.append(b": \n\n")  # never empty


def _move_usage(draw: Draw, events: Events) -> None:
    """Report usage with another chunk, in its choice, or with all."""
    for place in draw(st.sets(_index(events), min_size=1)):
        each = events[place]
        if isinstance(each, dict):
            choices = each.get("choices")
            inside = isinstance(choices, list) and choices and isinstance(choices[0], dict) and draw(st.booleans())
            (choices[0] if choices and inside else each)["usage"] = dict(USAGE)
    events[:] = [each for each in events if not _is_usage(each)] or [b": \n\n"]


def _drop_finish_reason(draw: Draw, events: Events) -> None:
    """Leave it out, and the usage too in some."""
    for each in events:
        choices = each.get("choices") if isinstance(each, dict) else None
        for choice in choices if isinstance(choices, list) else ():
            if isinstance(choice, dict):
                choice.pop("finish_reason", None)
    if draw(st.booleans()):
        events[:] = [each for each in events if not _is_usage(each)] or [b": \n\n"]


def _insert_error(draw: Draw, events: Events) -> None:
    events.insert(draw(st.integers(0, len(events))), frame(ERROR))


MUTATIONS = [
    _change_field,
    _change_field,
    _change_field,
    _replace_event,
    _repeat_event,
    _swap_events,
    _drop_event,
    _move_usage,
    _drop_finish_reason,
    _insert_error,
]


def _index(events: Events) -> st.SearchStrategy[int]:
    return st.integers(0, len(events) - 1)


def _is_usage(event: JSON | bytes | str) -> bool:
    return isinstance(event, dict) and event.get("choices") == [] and bool(event.get("usage"))


def _with_noise(draw: Draw, events: Events, *, at_most: int) -> Events:
    events = [*events]
    for noise in draw(st.lists(st.sampled_from(NOISE), max_size=at_most)):
        events.insert(draw(st.integers(0, len(events))), noise)
    return events


def _encoded(draw: Draw, events: Events) -> bytes:
    ends = [draw(st.sampled_from(LINE_ENDS)) for _ in events]
    ascii_only = draw(st.booleans())
    frames = [_frame(each, ascii_only).replace(b"\n", line_end) for each, line_end in zip(events, ends, strict=True)]
    bom: bytes = draw(st.sampled_from([b"", BOM]))
    return bom + b"".join(frames)


def _frame(event: JSON | bytes | str, ascii_only: bool) -> bytes:
    if isinstance(event, dict) and not ascii_only:
        return b"data: %s\n\n" % json.dumps(event, ensure_ascii=False).encode("utf-8", "surrogatepass")
    return frame(event)


def _sent(draw: Draw, body: bytes, *, clean_cut: bool = True) -> Mutated:
    if _begins_with_error(body) and b'"usage"' in body:
        body = frame(ERROR)  # whether the service billed what it reports after an error is not defined
    body += draw(st.sampled_from([DONE, DONE, b"", DONE.strip(), DONE + DONE, DONE + frame(usage())]))
    framing = draw(st.sampled_from(["chunked", "chunked", "length", "close"]))
    cut = draw(st.none() | st.none() | st.integers(0, len(body)))
    endings = ["clean"] if cut is None else ["clean", "reset"] if clean_cut or framing == "close" else ["reset"]
    parts = _split(draw, body[:cut])
    billed = not _begins_with_error(body[:cut])
    return Mutated(Raw(parts, framing=framing, ending=draw(st.sampled_from(endings)), billed=billed))


def _begins_with_error(body: bytes) -> bool:
    return "error" in next(iter(objects_of(body)), {})


def _split(draw: Draw, body: bytes) -> tuple[bytes, ...]:
    places = sorted(draw(st.sets(st.integers(0, len(body)), max_size=4)))
    return tuple(body[start:stop] for start, stop in zip([0, *places], [*places, len(body)], strict=True))


def events_of(stream: bytes) -> list[tuple[bytes, bytes]]:
    """Name and data of each event by the standard, up to and including [DONE]. Pending data at the end of the stream
    counts if it is whole: JSON or [DONE]. https://html.spec.whatwg.org/multipage/server-sent-events.html"""
    lines = stream.removeprefix(BOM).replace(b"\r\n", b"\n").replace(b"\r", b"\n").split(b"\n")
    events, name, data = [], b"", list[bytes]()
    for line in lines[:-1] if not lines[-1] else lines:
        field, _, value = line.partition(b":")
        value = value.removeprefix(b" ")
        if field == b"data":
            data.append(value)
        elif field == b"event":
            name = value
        elif not line:
            events += [(name, b"\n".join(data))] if any(data) else []
            name, data = b"", []
    pending = b"\n".join(data)
    if pending == b"[DONE]" or parsed(pending) is not None:
        events.append((name, pending))
    ends = [at for at, (_, data) in enumerate(events) if data == b"[DONE]"]
    return events[: ends[0] + 1] if ends else events


def objects_of(stream: bytes) -> list[JSON]:
    return [each for each in (parsed(data) for _, data in events_of(stream)) if isinstance(each, dict)]


def parsed(data: bytes) -> Any:
    try:
        return json.loads(data.decode("utf-8", "replace"))
    except (ValueError, RecursionError):
        return None
