"""Responses of the Azure OpenAI fake: tokens, chunks, bodies and errors in the service's wire format. No I/O.

The shapes follow Azure's v1 chat completions reference and observed responses; the tokenizer is our own.
"""

import hashlib
import json
import re
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import Any

JSON = dict[str, Any]
MESSAGE_TOKENS = 4
IMAGE_TOKENS = 765  # of a 1024 x 1024 image in high detail
CHUNK = "chat.completion.chunk"
# https://learn.microsoft.com/azure/ai-foundry/openai/how-to/prompt-caching
CACHE_STEP_TOKENS, MIN_CACHED_TOKENS = 128, 1024
ROLES = frozenset({"system", "developer", "user", "assistant", "tool", "function"})
SAFE: JSON = {kind: {"filtered": False, "severity": "safe"} for kind in ("hate", "self_harm", "sexual", "violence")}
VIOLENT = SAFE | {"violence": {"filtered": True, "severity": "high"}}
PROMPT_SAFE = SAFE | {"jailbreak": {"filtered": False, "detected": False}}


def pieces(text: str) -> list[str]:
    """The text split into tokens: at most one per character; joined, they are the text again."""
    return re.findall(r"\s?\w{1,4}|\s|[^\w\s]", text)


def message_tokens(message: JSON) -> int:
    content = message.get("content")
    parts = content if isinstance(content, list) else [{"type": "text", "text": content or ""}]
    tokens = sum(IMAGE_TOKENS if part["type"] == "image_url" else len(pieces(part.get("text", ""))) for part in parts)
    calls = [call[call["type"]] for call in message.get("tool_calls") or ()]
    texts = [call["name"] + call.get("arguments", call.get("input", "")) for call in calls]
    return MESSAGE_TOKENS + tokens + sum(len(pieces(text)) for text in texts)


def extra_tokens(body: JSON) -> int:
    """Tokens of tools and schemas, which the service puts before the messages."""
    return sum(len(pieces(compact(extra))) for extra in _extras(body))


def _extras(body: JSON) -> list[Any]:
    return [body[name] for name in ("tools", "response_format") if body.get(name)]


def prefixes(body: JSON) -> list[tuple[str, int]]:
    """Digest and token count of each prefix of the prompt, shortest first."""
    digest, tokens = (
        hashlib.sha256(compact([body["model"], *_extras(body)]).encode("utf-8", "replace")),
        extra_tokens(body),
    )
    result = []
    for message in body["messages"]:
        digest.update(compact(message).encode("utf-8", "replace"))
        tokens += message_tokens(message)
        result.append((digest.hexdigest(), tokens))
    return result


def compact(value: object) -> str:
    return json.dumps(value, ensure_ascii=False, separators=(",", ":"))


@dataclass(frozen=True)
class Reply:
    """A scripted model answer. Token counts that are None are computed."""

    text: str = ""
    finish_reason: str | None = None
    tool_calls: tuple[tuple[str, str, str], ...] = ()  # (id, name, arguments as JSON)
    refusal: str | None = None
    reasoning_tokens: int = 0
    prompt_tokens: int | None = None
    cached_tokens: int | None = None
    cache_write_tokens: int | None = None
    completion_tokens: int | None = None
    model: str | None = None


@dataclass(frozen=True)
class Tokens:
    prompt: int
    cached: int
    cache_write: int
    completion: int
    reasoning: int
    cache_write_reported: bool = False

    def usage(self) -> JSON:
        prompt_details = {"audio_tokens": 0, "cached_tokens": self.cached}
        return {
            "completion_tokens": self.completion,
            "completion_tokens_details": {
                "accepted_prediction_tokens": 0,
                "audio_tokens": 0,
                "reasoning_tokens": self.reasoning,
                "rejected_prediction_tokens": 0,
            },
            "prompt_tokens": self.prompt,
            "prompt_tokens_details": prompt_details
            | ({"cache_write_tokens": self.cache_write} if self.cache_write_reported else {}),
            "total_tokens": self.prompt + self.completion,
        }


def default_reply(body: JSON) -> Reply:
    """Deterministic: a call of the first tool if a tool is required, JSON if JSON is requested, else an echo."""
    text = "echo: " + last_user_text(body["messages"])
    choice = body.get("tool_choice")
    tools = {tool["function"]["name"]: tool["function"] for tool in body.get("tools") or () if "function" in tool}
    if tools and (choice == "required" or isinstance(choice, dict)):
        name = choice["function"]["name"] if isinstance(choice, dict) else next(iter(tools))
        arguments = compact(example(tools[name].get("parameters") or {}, text))
        digest = hashlib.sha256(compact(body["messages"]).encode("utf-8", "replace")).hexdigest()
        return Reply(tool_calls=((f"call_{digest[:24]}", name, arguments),))
    shape = body.get("response_format") or {}
    if shape.get("type") == "json_schema":
        return Reply(compact(example(shape["json_schema"].get("schema") or {}, text)))
    return Reply(compact({"answer": text}) if shape.get("type") == "json_object" else text)


def last_user_text(messages: Sequence[JSON]) -> str:
    content = next((message["content"] for message in reversed(messages) if message["role"] == "user"), "")
    return content if isinstance(content, str) else "".join(part.get("text", "") for part in content)


def example(schema: JSON, text: str) -> object:
    """A value that matches the schema; supports only the simple schemas that tests use."""
    if "enum" in schema:
        return schema["enum"][0]
    if "anyOf" in schema:
        return example(schema["anyOf"][0], text)
    match schema.get("type"):
        case "string":
            return text
        case "integer" | "number":
            return 7
        case "boolean":
            return True
        case "null":
            return None
        case "array":
            return [example(schema.get("items") or {}, text)]
    return {name: example(part, text) for name, part in (schema.get("properties") or {}).items()}


class Answer:
    """The answer to one request: tokens counted, cut to the requested maximum, ready to send as JSON or as events."""

    def __init__(
        self, body: JSON, reply: Reply, *, model: str, prompt_tokens: int, cached_tokens: int, chunk_tokens: int
    ) -> None:
        self._body, self._reply, self.model, self._chunk = body, reply, reply.model or model, chunk_tokens
        tokens = pieces(reply.text)
        limit = maximum_tokens(body)
        self._cut = limit is not None and len(tokens) + reply.reasoning_tokens > limit
        reasoning = min(reply.reasoning_tokens, limit) if limit is not None else reply.reasoning_tokens
        self._text_tokens = tokens[: limit - reasoning] if limit is not None else tokens
        self._identity = {
            "created": 1_790_000_000,
            "id": "chatcmpl-" + hashlib.sha256(repr((body, reply)).encode("utf-8", "replace")).hexdigest()[:29],
            "model": self.model,
            "system_fingerprint": "fp_0a1b2c3d4e",
        }
        self.tokens = self._count(prompt_tokens, cached_tokens, reasoning)

    def _count(self, prompt: int, cached: int, reasoning: int) -> Tokens:
        reply = self._reply
        output = len(self._text_tokens) + len(pieces(reply.refusal or ""))
        output += sum(len(pieces(name + arguments)) for _, name, arguments in reply.tool_calls)
        computed = output * (self._body.get("n") or 1) + reasoning
        if (limit := maximum_tokens(self._body)) is not None:  # also of a refusal and of calls, which are not cut
            computed = min(computed, limit * (self._body.get("n") or 1))
        prompt = prompt if reply.prompt_tokens is None else reply.prompt_tokens
        return Tokens(
            prompt=prompt,
            cached=min(cached, prompt) if reply.cached_tokens is None else reply.cached_tokens,
            cache_write=reply.cache_write_tokens or 0,
            completion=computed if reply.completion_tokens is None else reply.completion_tokens,
            reasoning=reasoning,
            cache_write_reported=reply.cache_write_tokens is not None,
        )

    @property
    def finish_reason(self) -> str:
        if self._reply.finish_reason or self._cut:
            return self._reply.finish_reason or "length"
        return "tool_calls" if self._reply.tool_calls else "stop"

    @property
    def _filtered(self) -> JSON:
        return VIOLENT if self.finish_reason == "content_filter" else SAFE

    def whole(self, usage: bool = True) -> JSON:
        message: JSON = {
            "annotations": [],
            "content": "".join(self._text_tokens) or None,
            "refusal": self._reply.refusal,
        }
        message["role"] = "assistant"
        if self._reply.tool_calls:
            message["tool_calls"] = [_call(*call) for call in self._reply.tool_calls]
        elif self._reply.refusal is None:
            message["content"] = message["content"] or ""
        choice: JSON = {
            "content_filter_results": self._filtered,
            "finish_reason": self.finish_reason,
            "message": message,
        }
        choice["logprobs"] = self._logprobs(self._text_tokens)
        return {
            "choices": [choice | {"index": index} for index in range(self._body.get("n") or 1)],
            **self._identity,
            "object": "chat.completion",
            "prompt_filter_results": [{"prompt_index": 0, "content_filter_results": PROMPT_SAFE}],
            **({"usage": self.tokens.usage()} if usage else {}),
        }

    def opening(self) -> list[JSON]:
        """The first chunk holds only the prompt's filter results, without choices or id; the roles follow."""
        filtered = [{"prompt_index": 0, "content_filter_results": PROMPT_SAFE}]
        first = {"choices": [], "created": 0, "id": "", "model": "", "object": "", "prompt_filter_results": filtered}
        return [first, *self._chunks({"content": "", "refusal": None, "role": "assistant"}, {})]

    def content(self) -> list[JSON]:
        text, refusal = self._groups(self._text_tokens), self._groups(pieces(self._reply.refusal or ""))
        chunks = [
            chunk for group in text for chunk in self._chunks({"content": "".join(group)}, SAFE, self._logprobs(group))
        ]
        chunks += [chunk for group in refusal for chunk in self._chunks({"refusal": "".join(group)}, SAFE)]
        for index, (call_id, name, arguments) in enumerate(self._reply.tool_calls):
            call = _call(call_id, name, "") | {"index": index}
            chunks += self._chunks({"tool_calls": [call]}, {})
            for group in self._groups(pieces(arguments)):
                piece = {"function": {"arguments": "".join(group)}, "index": index}
                chunks += self._chunks({"tool_calls": [piece]}, {})
        return chunks

    def closing(self, usage: bool = True) -> list[JSON]:
        chunks = self._chunks({}, self._filtered if self.finish_reason == "content_filter" else {}, None, True)
        if usage and self._wants_usage:
            chunks.append(self._identity | {"choices": [], "object": CHUNK, "usage": self.tokens.usage()})
        return chunks

    @property
    def _wants_usage(self) -> bool:
        return bool((self._body.get("stream_options") or {}).get("include_usage"))

    def _groups(self, tokens: list[str]) -> list[list[str]]:
        return [tokens[start : start + self._chunk] for start in range(0, len(tokens), self._chunk)]

    def _chunks(
        self, delta: JSON, filtered: Mapping[str, object], logprobs: JSON | None = None, last: bool = False
    ) -> list[JSON]:
        """The same delta for each of the `n` choices."""
        choice: JSON = {"content_filter_results": filtered, "delta": delta, "logprobs": logprobs}
        choice["finish_reason"] = self.finish_reason if last else None
        usage = {"usage": None} if self._wants_usage else {}
        head = self._identity | {"object": CHUNK} | usage
        return [head | {"choices": [choice | {"index": index}]} for index in range(self._body.get("n") or 1)]

    def _logprobs(self, tokens: list[str]) -> JSON | None:
        if not self._body.get("logprobs"):
            return None
        top = self._body.get("top_logprobs") or 0
        return {"content": [_logprob(token) | {"top_logprobs": [_logprob(token)] * top} for token in tokens]}


def maximum_tokens(body: JSON) -> int | None:
    limit = body.get("max_completion_tokens")
    return limit if limit is not None else body.get("max_tokens")


def _logprob(token: str) -> JSON:
    return {"bytes": list(token.encode("utf-8", "replace")), "logprob": -0.25, "token": token}


def _call(call_id: str, name: str, arguments: str) -> JSON:
    return {"function": {"arguments": arguments, "name": name}, "id": call_id, "type": "function"}


def invalid(message: str, param: str | None = None, code: str | None = None) -> JSON:
    return {"error": {"message": message, "type": "invalid_request_error", "param": param, "code": code}}


def check(body: JSON, rejected: frozenset[str]) -> JSON | None:
    """The error body if the service rejects the request, else None."""
    for name in sorted(rejected & body.keys()):
        if body[name] is None or (name in ("temperature", "top_p") and body[name] == 1):
            continue
        if name in ("temperature", "top_p"):
            allowed = "Only the default (1) value is supported."
            message = f"Unsupported value: '{name}' does not support {body[name]} with this model. {allowed}"
            return invalid(message, name, "unsupported_value")
        hint = " Use 'max_completion_tokens' instead." if name == "max_tokens" else ""
        message = f"Unsupported parameter: '{name}' is not supported with this model.{hint}"
        return invalid(message, name, "unsupported_parameter")
    messages = body.get("messages")
    if not isinstance(messages, list):
        return invalid("Missing required parameter: 'messages'.", "messages", "missing_required_parameter")
    if not messages:
        return invalid("Invalid 'messages': empty array. Expected an array with minimum length 1.", "messages")
    return _check_tools(body.get("tools") or ()) or _check_messages(messages)


def _check_tools(tools: Sequence[JSON]) -> JSON | None:
    for index, tool in enumerate(tools):
        kind = tool.get("type", "function")
        inside = tool.get(kind)
        if not isinstance(inside, dict) or not isinstance(inside.get("name"), str):
            name = f"tools[{index}].{kind}"
            return invalid(f"Missing required parameter: '{name}'.", name, "missing_required_parameter")
    return None


def _check_messages(messages: list[JSON]) -> JSON | None:
    pending: list[str] = []
    for index, message in enumerate(messages):
        role, where = message.get("role"), f"messages.[{index}].role"
        if role not in ROLES:
            return invalid(f"Invalid value: '{role}'. Supported values are: {sorted(ROLES)}.", where, "invalid_value")
        if role == "tool":
            if message.get("tool_call_id") not in pending:
                rule = "messages with role 'tool' must be a response to a preceeding message with 'tool_calls'."
                return invalid(f"Invalid parameter: {rule}", where)
            if any(part["type"] == "image_url" for part in message["content"] if isinstance(part, dict)):
                rule = "Image URLs are only allowed for messages with role 'user', but this message has role 'tool'."
                return invalid(f"Invalid 'messages[{index}]'. {rule}", where[:-5])
            pending.remove(message["tool_call_id"])
            continue
        if pending:
            break
        if message.get("content") is None and not (role == "assistant" and message.get("tool_calls")):
            return invalid("Invalid value for 'content': expected a string, got null.", where[:-4] + "content")
        pending = [call["id"] for call in message.get("tool_calls") or ()]
    if not pending:
        return None
    rule = "must be followed by tool messages responding to each 'tool_call_id'. The following tool_call_ids did not"
    return invalid(f"An assistant message with 'tool_calls' {rule} have response messages: {', '.join(pending)}", where)


def check_length(body: JSON, limit: int | None) -> JSON | None:
    prompt, answer = prefixes(body)[-1][1], maximum_tokens(body) or 0
    return too_long(limit, prompt, answer) if limit is not None and prompt + answer > limit else None


def too_long(limit: int, prompt: int, answer: int) -> JSON:
    request = f"you requested {prompt + answer} tokens ({prompt} in the messages, {answer} in the completion)"
    message = f"This model's maximum context length is {limit} tokens. However, {request}."
    reduce = "Please reduce the length of the messages or completion."
    return invalid(f"{message} {reduce}", "messages", "context_length_exceeded")


PROMPT_FILTERED: JSON = {
    "error": {
        "message": "The response was filtered due to the prompt triggering Azure OpenAI's content management policy. "
        "Please modify your prompt and retry. To learn more about our content filtering policies please read our "
        "documentation: https://go.microsoft.com/fwlink/?linkid=2198766",
        "type": None,
        "param": "prompt",
        "code": "content_filter",
        "status": 400,
        "innererror": {
            "code": "ResponsibleAIPolicyViolation",
            "content_filter_result": VIOLENT | {"jailbreak": {"filtered": False, "detected": False}},
        },
    }
}
STREAM_ERROR: JSON = {
    "error": {
        "message": "The server had an error while processing your request. Sorry about that!",
        "type": "server_error",
        "param": None,
        "code": None,
    }
}
BAD_TOKEN = "Unauthorized. Access token is missing, invalid, audience is incorrect, or have expired."
_ERRORS = {
    401: ("401", "Access denied due to invalid subscription key or wrong API endpoint. Make sure to provide a valid "
          "key for an active subscription and use a correct regional API endpoint for your resource."),
    403: ("AccessDenied", "Access denied due to Virtual Network/Firewall rules."),
    404: ("DeploymentNotFound", "The API deployment for this resource does not exist. If you created the deployment "
          "within the last 5 minutes, please wait a moment and try again."),
    408: ("Timeout", "The operation was timeout."),
    409: ("RequestConflict", "The resource is being modified by another request."),
    429: ("RateLimitReached", "Your requests to chat for this model have exceeded token rate limit. Please retry "
          "after 10 seconds."),
    500: ("InternalServerError", "The server had an error while processing your request. Sorry about that!"),
    503: ("ServiceUnavailable", "The service is temporarily unable to process your request. Please try again later."),
}  # fmt: skip


def error(status: int, message: str | None = None, param: str | None = None, code: str | None = None) -> JSON | str:
    """The body of an error response. `param` and `code` apply to 400; a gateway's 502 and 504 are HTML."""
    if status == 400:
        return invalid(message or "Bad request.", param, code)
    if status not in _ERRORS:
        return f"<html><head><title>{status}</title></head><body><h1>{message or 'Gateway error'}</h1></body></html>"
    default_code, default_message = _ERRORS[status]
    return {"error": {"code": default_code, "message": message or default_message}}
