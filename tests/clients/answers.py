"""What the fake model service answers the clients: it depends on the last user message, whatever else they send."""

import hashlib

from tests.support.azure_openai import Request
from tests.support.azure_openai_answers import JSON, Reply, compact, default_reply

REFUSE, FILTER = "Refuse this.", "Filter this."
SUMS = "Add 1 and 2, and 3 and 4. Then add both sums."  # three steps: two calls of `add`, one call, the answer
READ = "Read note.txt."  # two steps with the shell of Codex


def answer(request: Request) -> Reply:
    """An echo of all user messages, or of the results of the tools after the last one."""
    messages, tools = request.body["messages"], request.body.get("tools") or ()
    users = [number for number, message in enumerate(messages) if message["role"] == "user"]
    prompt = _text(messages[users[-1]])
    results = [_text(message) for message in messages[users[-1] :] if message["role"] == "tool"]
    names = {tool["function"]["name"] for tool in tools}
    if prompt == SUMS and "add" in names and len(results) < 3:
        return _calls(messages, "add", *([_sum(*results)] if results else [_sum(1, 2), _sum(3, 4)]))
    if prompt == READ and "exec_command" in names and not results:
        return _calls(messages, "exec_command", {"cmd": "cat note.txt"})
    if results:
        return Reply("results: " + ", ".join(results))
    if prompt == REFUSE:
        return Reply(refusal="No.")
    if prompt == FILTER:
        return Reply("Bad", finish_reason="content_filter")
    shape = request.body.get("response_format") or {"type": "text"}
    if request.body.get("tool_choice") not in (None, "auto", "none") or shape["type"] != "text":
        return default_reply(request.body)
    return Reply("echo: " + " | ".join(_text(messages[number]) for number in users))


def _text(message: JSON) -> str:
    content = message.get("content") or ""
    return content if isinstance(content, str) else "".join(part.get("text", "") for part in content)


def _sum(first: str | int, second: str | int) -> JSON:
    return {"a": int(first), "b": int(second)}


def _calls(messages: list[JSON], name: str, *arguments: JSON) -> Reply:
    digest = hashlib.sha256(compact(messages).encode()).hexdigest()[:20]  # so that ids differ from step to step
    return Reply(tool_calls=tuple((f"call_{digest}{n}", name, compact(each)) for n, each in enumerate(arguments)))
