"""The chat completions format. https://platform.openai.com/docs/api-reference/chat"""

from collections.abc import Mapping, Sequence
from typing import Any

from shared.domain.conversation import Message
from shared.domain.window import bound
from shared.model.completion import Completion
from shared.model.tool_calls import sendable
from shared.turns.ports import AnswerReader

# Message fields that services accept.
_REQUEST_FIELDS = ("role", "content", "name", "refusal", "tool_calls", "tool_call_id", "function_call")


class ChatCompletions:
    """The chat completions dialect."""

    path = "/chat/completions"
    operation = "chat"
    may_stream = True

    def compose(
        self, messages: Sequence[Message], *, max_tokens: int | None, options: Mapping[str, Any]
    ) -> Mapping[str, Any]:
        return {
            "messages": [_sendable(message) for message in messages],
            **({} if max_tokens is None else {"max_completion_tokens": max_tokens}),
            "stream": True,
            "stream_options": {"include_usage": True},
            **options,
        }

    def prompt_bound(self, body: Mapping[str, Any]) -> int:
        return bound(body["messages"], {name: value for name, value in body.items() if name != "messages"})

    def has_audio(self, body: Mapping[str, Any]) -> bool:
        modalities = body.get("modalities")
        return (isinstance(modalities, list) and "audio" in modalities) or any(map(_has_audio, body["messages"]))

    def reader(self, body: Mapping[str, Any]) -> AnswerReader:
        return Completion(one_choice=body.get("n") in (None, 1))


def _has_audio(message: Message) -> bool:
    content = message.get("content")
    parts = content if isinstance(content, list) else []
    has_part = any(isinstance(part, dict) and part.get("type") == "input_audio" for part in parts)
    return has_part or bool(message.get("audio"))


def _sendable(message: Message) -> Message:
    """The message without empty fields and those that occur only in answers, such as reasoning_content."""
    sent = {name: value for name, value in message.items() if value and name in _REQUEST_FIELDS}
    if calls := message.get("tool_calls"):
        sent["tool_calls"] = [sendable(call) for call in calls]
    calls_something = "tool_calls" in sent or "function_call" in sent
    return {"role": message["role"], "content": None if calls_something else "", **sent}
