"""A response of the Responses API and its items, as they go out. All keys are always present.

https://platform.openai.com/docs/api-reference/responses/object
"""

from collections.abc import Mapping, Sequence
from typing import Any, Literal, TypeAlias

from shared.domain.calls import Usage
from shared.domain.conversation import STOPPED, Item, Turn
from shared.turns.conversations import PlacedItem
from shared.web.contract.responses import COST, LOGPROBS
from shared.web.responses.ids import item_id, response_id

JSON: TypeAlias = dict[str, Any]
Status: TypeAlias = Literal["completed", "incomplete", "in_progress", "failed"]
_INCOMPLETE = {"length": "max_output_tokens", "content_filter": "content_filter", STOPPED: STOPPED}
_FAILURES = {"rate_limited": "rate_limit_exceeded", "content_filter": "invalid_prompt"}


def response_object(
    echo: Mapping[str, Any], session_id: str, turn: Turn, include: Sequence[str] = (), *, running: bool = False
) -> JSON:
    """The response that a turn is. `echo`: what it repeats of its request, but for `model`, which names the deployment
    that answered. `include`: what the caller asks for beside the usual. `running`: it may still be answered."""
    status: Status = "in_progress" if running and turn.finished is None else status_of(turn)
    reason = _INCOMPLETE.get(turn.finish_reason or "")
    done = status in ("completed", "incomplete")
    return {
        **begun(echo, session_id, turn.number, int(turn.started.timestamp())),
        **({"model": turn.call.deployment} if turn.calls else {}),
        "completed_at": int(turn.finished.timestamp()) if turn.finished and status == "completed" else None,
        "status": status,
        "error": _failure(turn) if status == "failed" else None,
        "incomplete_details": {"reason": reason} if status == "incomplete" else None,
        "output": output_of(session_id, turn, include) if done else [],
        "usage": _usage(turn, include) if turn.usage else None,
        **_warnings(echo, turn),
    }


def begun(echo: Mapping[str, Any], session_id: str, number: int, created_at: int) -> JSON:
    """The response before its answer."""
    return {
        "id": response_id(session_id, number),
        "object": "response",
        "created_at": created_at,
        "completed_at": None,
        "status": "in_progress",
        "error": None,
        "incomplete_details": None,
        "output": [],
        "usage": None,
        **echo,
    }


def failed(response: JSON, failure: Mapping[str, Any]) -> JSON:
    """The response after its call failed. `failure`: the error's fields."""
    return {**response, "status": "failed", "error": failure_fields(failure["code"], failure["message"])}


def status_of(turn: Turn) -> Status:
    if turn.finish_reason == STOPPED:
        return "incomplete"
    if not turn.answered:  # also of a prompt that the content filter blocked
        return "failed"
    return "incomplete" if turn.finish_reason in _INCOMPLETE else "completed"


def output_of(session_id: str, turn: Turn, include: Sequence[str] = ()) -> list[JSON]:
    """The items of the answer."""
    status = "completed" if status_of(turn) == "completed" else "incomplete"
    first, items = len(turn.input), list[JSON]()
    for at, item in enumerate(turn.output):
        if item:
            items.append(_answer_item(session_id, turn, first + at, item, status, include))
    return items


def item_object(session_id: str, turn: int, index: int, item: Item, status: str = "completed") -> JSON:
    """An item with its id, and with all fields of its type. `index`: its place in the turn's input and output."""
    shown: JSON = {"id": item_id(session_id, turn, index, item), **item}
    if item["type"] == "message":
        shown["content"] = [_part(part) for part in item["content"]]
    if item["type"] != "reasoning":
        shown["status"] = status
    return shown


def placed_item(placed: PlacedItem, include: Sequence[str] = ()) -> JSON:
    """A stored item."""
    session_id, turn, index, item = placed.session_id, placed.turn, placed.at, placed.item
    if index < len(turn.input):
        return item_object(session_id, turn.number, index, item)
    status = "incomplete" if status_of(turn) == "incomplete" else "completed"
    return _answer_item(session_id, turn, index, item, status, include)


def _answer_item(session_id: str, turn: Turn, index: int, item: Item, status: str, include: Sequence[str]) -> JSON:
    shown = item_object(session_id, turn.number, index, item, status)
    if LOGPROBS in include and (logprobs := turn.extras.get("logprobs")):
        for part in (part for part in shown.get("content") or () if part["type"] == "output_text"):
            part["logprobs"] = token_logprobs(logprobs)
    return shown


def failure_fields(code: str | None, message: str) -> JSON:
    """The Vercel AI SDK wants a type beside OpenAI's code and message."""
    name = _FAILURES.get(code or "", "server_error")
    return {"code": name, "message": message, "type": "server_error" if name == "server_error" else name}


def _part(part: Mapping[str, Any]) -> JSON:
    return {"annotations": [], "logprobs": [], **part} if part["type"] == "output_text" else dict(part)


def _warnings(echo: Mapping[str, Any], turn: Turn) -> JSON:
    if not turn.truncated:
        return {}
    return {"warnings": [*echo.get("warnings", ()), f"Too large to be stored whole: {', '.join(turn.truncated)}."]}


def _failure(turn: Turn) -> JSON:
    reason = turn.call.reason if turn.calls else None
    return failure_fields(reason, f"The model call failed ({reason or 'interrupted'}).")


def _usage(turn: Turn, include: Sequence[str]) -> JSON:
    usage = response_usage(turn.usage) if turn.usage else {}
    return usage | ({"cost_usd": turn.cost} if COST in include else {})


def response_usage(usage: Usage) -> JSON:
    return {
        "input_tokens": usage.prompt_tokens,
        "input_tokens_details": {"cached_tokens": usage.cached_tokens, "cache_write_tokens": usage.cache_write_tokens},
        "output_tokens": usage.completion_tokens,
        "output_tokens_details": {"reasoning_tokens": usage.reasoning_tokens},
        "total_tokens": usage.total_tokens,
    }


def token_logprobs(logprobs: Any) -> list[JSON]:
    """Of a text's tokens. `logprobs`: those of a choice of chat completions, which has them in the same form."""
    content = logprobs.get("content") if isinstance(logprobs, Mapping) else None
    return [each for each in content if isinstance(each, dict)] if isinstance(content, list) else []
