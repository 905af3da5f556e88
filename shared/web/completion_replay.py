"""A stored answer in the chat completions format, for a repeated Idempotency-Key."""

from typing import Any

from azurefunctions.extensions.http.fastapi import Response

from shared.domain.calls import Usage
from shared.domain.conversation import STOPPED, Turn
from shared.web.http import json_bytes, json_response, sse_frame

DONE = b"data: [DONE]\n\n"  # the end of a stream


def replay(turn: Turn, *, streamed: bool, usage: bool) -> Response:
    """The stored answer as a response of the model service, with every field of its message."""
    call, message = turn.call, turn.messages[-1]
    filtered = turn.extras.get("content_filter", {})
    choice = {"index": 0, "logprobs": turn.extras.get("logprobs"), "finish_reason": _finish_reason(turn)}
    common = {
        "id": f"chatcmpl-{call.id}",
        "created": int(turn.started.timestamp()),
        "model": call.model or call.deployment,
    }
    if "completion" in filtered:
        choice["content_filter_results"] = filtered["completion"]
    if "prompt" in filtered:
        common["prompt_filter_results"] = filtered["prompt"]
    tokens = openai_usage(turn.usage) if turn.usage else None
    headers = {"idempotent-replayed": "true"} | ({"x-truncated": "true"} if turn.truncated else {})
    if not streamed:
        choice["message"] = message
        completion = common | {"object": "chat.completion", "choices": [choice], "usage": tokens}
        return json_response(completion, headers=headers)
    calls = [{"index": at, **call} for at, call in enumerate(message.get("tool_calls") or ())]
    delta = {**message, "tool_calls": calls} if calls else message
    chunks: list[dict[str, Any]] = [{"choices": [choice | {"delta": delta}]}]
    if usage and tokens:
        chunks.append({"choices": [], "usage": tokens})
    chunk = common | {"object": "chat.completion.chunk"}
    frames = b"".join(sse_frame(json_bytes(chunk | content)) for content in chunks)
    return Response(frames + DONE, 200, headers, media_type="text/event-stream")


def _finish_reason(turn: Turn) -> str | None:
    """OpenAI's clients know no turn that was stopped."""
    return "stop" if turn.finish_reason == STOPPED else turn.finish_reason


def openai_usage(usage: Usage) -> dict[str, Any]:
    """Usage in the chat completions format."""
    return {
        "prompt_tokens": usage.prompt_tokens,
        "completion_tokens": usage.completion_tokens,
        "total_tokens": usage.total_tokens,
        "prompt_tokens_details": {
            "cached_tokens": usage.cached_tokens,
            "cache_write_tokens": usage.cache_write_tokens,
            "audio_tokens": usage.audio_prompt_tokens,
        },
        "completion_tokens_details": {
            "reasoning_tokens": usage.reasoning_tokens,
            "audio_tokens": usage.audio_completion_tokens,
        },
    }
