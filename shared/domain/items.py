"""The items of a response, as OpenAI's Responses API has them, and the chat messages that they stand for.

A turn of that API stores the items of its input and output, because chat messages cannot express all of them. They are
stored without ids: an item's id is made from its place in the turn. A deleted item leaves None in its place.
https://platform.openai.com/docs/api-reference/responses/object
"""

from collections.abc import Iterator, Mapping, Sequence
from typing import Any, TypeAlias

from shared.domain.conversation import Item, Message

_Calls: TypeAlias = list[dict[str, Any]]
CALLS = {"function_call": "arguments", "custom_tool_call": "input"}  # types of calls, each with its text's field
OUTPUTS = ("function_call_output", "custom_tool_call_output")


def messages_of(items: Sequence[Item | None]) -> tuple[Message, ...]:
    """The chat messages of items. Calls that follow one another, and an answer's text beside them, are one message.
    Pictures and files of results follow the results as a user's message: services take them from no other role."""
    messages: list[dict[str, Any]] = []
    pictures: list[dict[str, Any]] = []  # of results
    open_answer = False  # the last message is an answer that further parts belong to
    for item in filter(None, items):
        kind = item["type"]
        if pictures and kind not in OUTPUTS:
            messages.append({"role": "user", "content": pictures})
            pictures = []
        if kind in CALLS or (kind == "message" and item["role"] == "assistant"):
            part = _answer_part(item)
            if open_answer and not (part.keys() & messages[-1].keys() - {"role", "tool_calls"}):
                part["tool_calls"] = [*messages[-1].get("tool_calls", ()), *part.get("tool_calls", ())]
                messages[-1] |= {name: value for name, value in part.items() if value}
            else:
                messages.append(part)
            open_answer = True
        elif kind == "message":
            messages.append({"role": _role(item["role"]), "content": _content(item["content"])})
            open_answer = False
        elif kind in OUTPUTS:
            content, shown = _result(item["output"])
            messages.append({"role": "tool", "tool_call_id": item["call_id"], "content": content})
            pictures += shown
            open_answer = False
    if pictures:
        messages.append({"role": "user", "content": pictures})
    for message in messages:
        if message["role"] == "assistant":
            message.setdefault("content", None if message.get("tool_calls") or "refusal" in message else "")
    return tuple(messages)


def paired(items: Sequence[Item]) -> list[Item]:
    """The items with each call's result directly behind the answer that made the call, as chat completions want it."""
    blocks: list[list[Item]] = []
    block_of: dict[str, list[Item]] = {}  # by call
    open_answer = False
    for item in items:
        kind = item["type"]
        if kind in OUTPUTS and item["call_id"] in block_of:
            block_of[item["call_id"]].append(item)
            open_answer = False
            continue
        is_answer = kind in (*CALLS, "reasoning") or item.get("role") == "assistant"
        if not (is_answer and open_answer):
            blocks.append([])
        blocks[-1].append(item)
        if kind in CALLS:
            block_of[item["call_id"]] = blocks[-1]
        open_answer = is_answer
    return [item for block in blocks for item in block]


def answer_of(output: Sequence[Item | None]) -> Message:
    """The assistant's message of a turn's output. Its content is empty if there is no output."""
    answers = messages_of(output)
    return answers[0] if answers else {"role": "assistant", "content": ""}


def items_of(message: Message, *, calls_first: bool = False) -> tuple[Item, ...]:
    """The items of one chat message. Of an answer: its text, then its calls; `calls_first`: the calls began before."""
    if message["role"] == "tool":
        return (
            {"type": OUTPUTS[0], "call_id": message.get("tool_call_id", ""), "output": message.get("content") or ""},
        )
    if message["role"] != "assistant":
        return ({"type": "message", "role": message["role"], "content": _parts(message.get("content") or "")},)
    calls = [_call_item(call) for call in message.get("tool_calls") or ()]
    texts = list(_answer_parts(message))
    answer: list[Item] = [{"type": "message", "role": "assistant", "content": texts}] if texts else []
    return tuple([*calls, *answer] if calls_first else [*answer, *calls])


def _answer_part(item: Item) -> dict[str, Any]:
    """What an item adds to the message of its answer."""
    if item["type"] in CALLS:
        kind = "function" if item["type"] == "function_call" else "custom"
        text = CALLS[item["type"]]
        call = {"id": item["call_id"], "type": kind, kind: {"name": item["name"], text: item[text]}}
        return {"role": "assistant", "tool_calls": [call]}
    parts = [item["content"]] if isinstance(item["content"], str) else item["content"]
    texts = [part if isinstance(part, str) else part.get("text") or "" for part in parts]
    refusals = [part["refusal"] for part in parts if isinstance(part, dict) and part.get("refusal")]
    message: dict[str, Any] = {"role": "assistant", "content": "".join(texts)}
    return {**message, "refusal": "".join(refusals)} if refusals else message


def _answer_parts(message: Message) -> Iterator[dict[str, Any]]:
    content = message.get("content")
    if isinstance(content, str) and content:
        yield {"type": "output_text", "text": content, "annotations": list(_annotations(message)), "logprobs": []}
    elif isinstance(content, list):  # an answer that a caller of openai/* sent
        yield from ({"type": "output_text", "text": part.get("text", ""), "annotations": []} for part in content)
    if refusal := message.get("refusal"):
        yield {"type": "refusal", "refusal": refusal}


def _annotations(message: Message) -> Iterator[dict[str, Any]]:
    """Chat nests an annotation below its type."""
    annotations = message.get("annotations")
    for each in annotations if isinstance(annotations, list) else ():
        if isinstance(each, dict) and isinstance(inner := each.get(str(each.get("type"))), dict):
            yield {"type": each["type"], **inner}


def _call_item(call: Mapping[str, Any]) -> Item:
    kind = "custom" if call.get("type") == "custom" else "function"
    inside, item = call.get(kind) or {}, "custom_tool_call" if kind == "custom" else "function_call"
    text = CALLS[item]
    return {"type": item, "call_id": call.get("id", ""), "name": inside.get("name", ""), text: inside.get(text, "")}


def _role(role: str) -> str:
    """Services that have no role `developer` take `system`; OpenAI treats both alike."""
    return "system" if role == "developer" else role


def _content(content: Any) -> Any:
    """Chat's content: plain text where possible, because not every service takes parts."""
    if isinstance(content, str):
        return content
    parts = [_chat_part(part) for part in content]
    return parts[0]["text"] if len(parts) == 1 and parts[0]["type"] == "text" else parts


def _result(output: Any) -> tuple[Any, list[dict[str, Any]]]:
    """A result's text, and its pictures and files, as parts."""
    if isinstance(output, str):
        return output, []
    parts = [_chat_part(part) for part in output]
    texts, others = [[part for part in parts if (part["type"] == "text") is text] for text in (True, False)]
    return "\n".join(part["text"] for part in texts) or ("The result follows." if others else ""), others


def _chat_part(part: Mapping[str, Any]) -> dict[str, Any]:
    match part["type"]:
        case "input_image":
            detail = {"detail": part["detail"]} if part.get("detail") else {}
            return {"type": "image_url", "image_url": {"url": part["image_url"], **detail}}
        case "input_file":
            return {"type": "file", "file": {name: part[name] for name in ("filename", "file_data") if part.get(name)}}
        case "refusal":
            return {"type": "text", "text": part["refusal"]}
        case _:
            return {"type": "text", "text": part["text"]}


def _parts(content: Any) -> list[dict[str, Any]]:
    """Content of a chat message that is not an answer, as an item has it."""
    if isinstance(content, str):
        return [{"type": "input_text", "text": content}]
    return [_input_part(part) for part in content]


def _input_part(part: Mapping[str, Any]) -> dict[str, Any]:
    match part:
        case {"type": "text", "text": text}:
            return {"type": "input_text", "text": text}
        case {"type": "image_url", "image_url": {"url": url, **rest}}:
            return {"type": "input_image", "image_url": url, "detail": rest.get("detail", "auto")}
        case {"type": "file", "file": dict(file)}:
            return {"type": "input_file", **file}
        case _:
            return {"type": "input_text", "text": str(part)}
