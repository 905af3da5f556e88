"""Reads a stream of openai/v1/responses and checks the order of its events, their numbers and their ids.

The rules are those of OpenAI's reference and of the clients that were measured; they know nothing of the app. The
accumulator of OpenAI's SDK reads each stream too.
"""

import json
from typing import Any, cast

from openai import omit
from openai._models import construct_type_unchecked
from openai.lib.streaming.responses._responses import ResponseStreamState
from openai.types.responses import ResponseStreamEvent

JSON = dict[str, Any]
FIRST = ["response.created", "response.in_progress"]
ENDS = {"response.completed", "response.incomplete", "response.failed"}
_TEXTS = {  # of a part or a call: events -> the field with the whole text
    "response.output_text": "text",
    "response.refusal": "refusal",
    "response.function_call_arguments": "arguments",
    "response.custom_tool_call_input": "input",
}


def checked(body: str) -> list[JSON]:
    """The events of a complete stream, after they were checked."""
    *blocks, rest = body.split("\n\n")
    assert rest == ""
    events = [_event(block) for block in blocks if not block.startswith(":")]
    check(events)
    accumulate(events)
    return events


def _event(block: str) -> JSON:
    name, data = block.split("\n")
    event: JSON = json.loads(data.removeprefix("data: "))
    assert name == f"event: {event['type']}"
    return event


def check(events: list[JSON]) -> None:
    assert [event["sequence_number"] for event in events] == list(range(len(events)))
    assert [event["type"] for event in events[:2]] == FIRST
    assert [event["type"] in ENDS for event in events] == [False] * (len(events) - 1) + [True]
    *_, end = events
    first = events[0]["response"]
    assert first["output"] == []
    assert (first["status"], first["usage"]) == ("in_progress", None)
    for name in ("id", "created_at", "model"):
        assert events[1]["response"][name] == first[name] == end["response"][name]
    assert end["type"] == f"response.{end['response']['status']}"
    items = _items(events[2:-1], complete=end["type"] != "response.failed")
    if end["type"] != "response.failed":
        assert end["response"]["output"] == items


def accumulate(events: list[JSON]) -> None:
    """What the SDK's accumulator has after the last delta of each text and call is what the response ends with."""
    state = ResponseStreamState[Any](input_tools=omit, text_format=omit)
    snapshots: dict[tuple[int, int | None], str] = {}
    for event in events:
        typed = construct_type_unchecked(type_=cast("type[Any]", ResponseStreamEvent), value=event)
        for read in state.handle_event(typed):
            if read.type in ("response.output_text.delta", "response.function_call_arguments.delta"):
                snapshots[read.output_index, getattr(read, "content_index", None)] = read.snapshot
    if events[-1]["type"] == "response.failed":
        return
    output = events[-1]["response"]["output"]
    for (at, index), text in snapshots.items():
        assert text == (output[at]["arguments"] if index is None else output[at]["content"][index]["text"])


def _items(events: list[JSON], *, complete: bool) -> list[JSON]:
    """The finished items. One item is open at a time, in it one part, and what is whole is what the deltas say."""
    items = list[JSON]()
    item: JSON | None = None
    part: JSON | None = None
    parts = list[JSON]()
    text = ""
    done: str | None = None  # the whole text, once it was sent
    for event in events:
        kind = event["type"]
        assert event["output_index"] == len(items)
        if kind == "response.output_item.added":
            assert item is None, "two items are open"
            item, parts, text, done = event["item"], [], "", None
            assert item["status"] == "in_progress"
            assert item["id"] not in [each["id"] for each in items]
            assert item.get("content", []) == []
            continue
        assert item is not None, f"{kind} without an item"
        if kind == "response.output_item.done":
            assert part is None, "a part is open"
            last = event["item"]
            assert last["status"] in ("completed", "incomplete")
            assert {name: last[name] for name in ("id", "type")} == {name: item[name] for name in ("id", "type")}
            if last["type"] == "message":
                assert last["content"] == parts
            else:
                assert done is not None
                assert done in (last.get("arguments"), last.get("input"))
                assert (last["call_id"], last["name"]) == (item["call_id"], item["name"])
            items.append(last)
            item = None
            continue
        assert event["item_id"] == item["id"]
        if kind == "response.content_part.added":
            assert part is None, "two parts are open"
            part, text, done = event["part"], "", None
            assert event["content_index"] == len(parts)
            assert part.get("text", "") == part.get("refusal", "") == ""
        elif kind == "response.content_part.done":
            assert part is not None
            assert event["part"]["type"] == part["type"]
            assert done == event["part"].get("text", event["part"].get("refusal"))
            parts.append(event["part"])
            part = None
        elif kind == "response.output_text.annotation.added":
            assert part is not None
        else:
            name, _, what = kind.rpartition(".")
            field = _TEXTS[name]
            assert done is None
            assert (part is not None) == (item["type"] == "message")
            if what == "delta":
                assert event["delta"]
                text += event["delta"]
            else:
                done = event[field]
                assert done == text
    assert item is None or not complete
    return items
