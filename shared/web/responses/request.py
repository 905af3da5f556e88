"""A request for a response, translated: to a turn, to options of chat completions, and to what the response repeats.

The model service gets chat completions, the one dialect that Azure, llama.cpp, vLLM and Ollama all speak.
"""

from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass, replace
from hashlib import sha256
from typing import Any, TypeAlias

import orjson
from azurefunctions.extensions.http.fastapi import Request

from shared.domain.conversation import Item, Message, Parent
from shared.domain.items import messages_of, paired
from shared.domain.principal import Principal
from shared.errors import MAX_SHOWN, ItemNotFound
from shared.services import Services
from shared.turns.conversations import PlacedItem
from shared.turns.requests import ResponseRequest
from shared.web.contract import responses as contract
from shared.web.contract.response_items import InputItem, ItemReference
from shared.web.http import idempotency_key, json_bytes, read_body
from shared.web.models import chat_deployment
from shared.web.responses.errors import ConversationNotFound, Refused, unsupported
from shared.web.responses.ids import item_id, parse_conversation_id, parse_item_id, parse_response_id
from shared.web.responses.validation import validated

JSON: TypeAlias = dict[str, Any]
_UNSUPPORTED = {  # fields of OpenAI's, each with why it is refused
    "background": "Responses are not generated in the background here. Leave it out, and set stream if it takes long.",
    "background_options": "Responses are not generated in the background here. Leave it out.",
    "prompt": "There are no stored prompts here. Send instructions and input.",
    "context_management": "Leave it out, and set truncation to auto.",
    "moderation": "Leave it out.",
    "access_programs": "Leave it out.",
    "image": "Leave it out.",
    "prompt_cache_options": "The model service decides what it caches. Leave it out.",
}
_UNSUPPORTED_IN_TOOLS = ("async", "defer_loading", "allowed_callers", "output_schema")
# Hosted tools that Codex always sends: left out, unless tool_choice needs them.
_IGNORED_TOOLS = ("web_search", "namespace")
# They have the same names in chat completions.
_UNCHANGED_OPTIONS = ("temperature", "top_p", "user", "safety_identifier", "prompt_cache_key", "prompt_cache_retention")
_ECHOED = ("instructions", "previous_response_id", "max_output_tokens", "max_tool_calls", "parallel_tool_calls")
_NOT_COMPARED = ("stream", "stream_options", "client_metadata")  # a retry with the same Idempotency-Key may change them


@dataclass(frozen=True, slots=True, kw_only=True)
class ParsedRequest:
    """A valid request. `turn`: the request for its turn. `echo`: what the response repeats of it. `conversation`: the
    ID that the caller sent."""

    turn: ResponseRequest
    echo: Mapping[str, Any]
    include: Sequence[str]
    stored: bool
    streamed: bool
    previous_response_id: str | None
    conversation: str | None


async def parse_request(request: Request, app: Services, principal: Principal) -> ParsedRequest:
    """Raises InvalidRequest, ModelNotFound, ItemNotFound, MessageTooLarge and UnsupportedMediaType."""
    raw = await read_body(request, app.settings.turns.max_request_bytes)
    body = validated(contract.ResponseRequest, _supported(raw))
    conversation = body.conversation.id if isinstance(body.conversation, contract.ConversationId) else body.conversation
    _check_state(body, conversation)
    parent, session_id = _continued(body.previous_response_id), _conversation(conversation)
    deployment = chat_deployment(body.model, app)
    tools, warnings = _tools(body)
    max_tokens, requested = _max_tokens(app, principal, deployment, body)
    items = await new_items(app, principal, body.input)
    messages = messages_of(items)
    check_messages(messages)
    echo = _echo(body, tools, conversation) | ({"warnings": warnings} if warnings else {})
    compared = {name: each for name, each in raw.items() if name not in _NOT_COMPARED}
    turn = ResponseRequest(
        principal=principal,
        dialect=app.chat_completions,
        messages=messages,
        input=tuple(items),
        session_id=session_id,
        parent=parent,
        in_place=True,
        whole=body.truncation == "disabled",
        view=json_bytes(echo).decode() if body.store else None,
        idempotency_key=idempotency_key(request) if body.store else None,
        fingerprint=sha256(orjson.dumps(compared, option=orjson.OPT_SORT_KEYS)).hexdigest(),
        deployment=deployment,
        max_tokens=max_tokens,
        requested_max_tokens=requested,
        instructions=body.instructions or "",
        options=_options(body, tools),
    )
    if fallback := app.settings.limits.fallback(principal):
        max_tokens, requested = _max_tokens(app, principal, fallback, body)
        turn = replace(
            turn,
            fallback=replace(turn, deployment=fallback, max_tokens=max_tokens, requested_max_tokens=requested),
        )
    return ParsedRequest(
        turn=turn,
        echo=echo,
        include=body.include,
        stored=body.store,
        streamed=body.stream,
        previous_response_id=body.previous_response_id,
        conversation=conversation,
    )


def _supported(body: Mapping[str, Any]) -> JSON:
    """The body without what is empty and unsupported. Raises Refused for what is unsupported."""
    for name, reason in _UNSUPPORTED.items():
        if body.get(name) and body[name] != {"mode": "implicit"}:
            raise unsupported(name, f"'{name}' is not supported. {reason}")
    supported = {name: each for name, each in body.items() if name not in _UNSUPPORTED}
    if isinstance(tools := body.get("tools"), list):
        supported["tools"] = [_supported_tool(at, tool) for at, tool in enumerate(tools)]
    return supported


def _supported_tool(at: int, tool: Any) -> Any:
    if not isinstance(tool, dict) or tool.get("type") not in ("function", "custom"):
        return tool
    for name in _UNSUPPORTED_IN_TOOLS:
        if tool.get(name):
            raise unsupported(f"tools[{at}].{name}", f"'tools[{at}].{name}' is not supported. Leave it out.")
    return {name: each for name, each in tool.items() if name not in _UNSUPPORTED_IN_TOOLS}


def _check_state(body: contract.ResponseRequest, conversation: str | None) -> None:
    if body.previous_response_id and conversation:
        message = (
            "Mutually exclusive parameters: 'previous_response_id' and 'conversation'. Ensure you are only providing"
            " one of them."
        )
        raise Refused(message, param="previous_response_id", code="mutually_exclusive_parameters")
    if conversation and not body.store:
        message = (
            "A conversation keeps its responses: 'store' can't be false with 'conversation'. Leave one of them out."
        )
        raise unsupported("store", message, "unsupported_value")


def _continued(previous: str | None) -> Parent | None:
    if previous is None:
        return None
    if not previous.startswith("resp_"):
        message = f"Invalid 'previous_response_id': {previous[:MAX_SHOWN]!r}. Expected an ID that begins with 'resp_'."
        raise Refused(message, param="previous_response_id")
    session_id, turn = parse_response_id(previous, previous_not_found(previous))
    return Parent(session_id=session_id, turn=turn)


def previous_not_found(previous: str) -> Refused:
    message = f"Previous response with id '{previous[:MAX_SHOWN]}' not found."
    return Refused(message, param="previous_response_id", code="previous_response_not_found")


def _conversation(conversation: str | None) -> str | None:
    if conversation is None:
        return None
    if not conversation.startswith("conv_"):
        message = f"Invalid 'conversation': {conversation[:MAX_SHOWN]!r}. Expected an ID that begins with 'conv_'."
        raise Refused(message, param="conversation")
    return parse_conversation_id(conversation, ConversationNotFound(conversation))


async def new_items(app: Services, principal: Principal, sent: str | Sequence[InputItem]) -> list[Item]:
    """The items that are sent, and those that are referred to. Raises ItemNotFound."""
    if isinstance(sent, str):
        content = [{"type": "input_text", "text": sent}]
        return [{"type": "message", "role": "user", "content": content}] if sent else []
    return paired(
        [
            (await stored_item(app, principal, item.id)).item if isinstance(item, ItemReference) else item.item()
            for item in sent
        ]
    )


async def stored_item(app: Services, principal: Principal, text: str) -> PlacedItem:
    """The item with this id. Raises ItemNotFound, also if the id is that of another type of item."""
    error = ItemNotFound(text)
    placed = await app.conversations.item(*parse_item_id(text, error), principal)
    if placed is None or item_id(placed.session_id, placed.turn.number, placed.at, placed.item) != text:
        raise error
    return placed


def check_messages(messages: Sequence[Message]) -> None:
    """Raises Refused if there are none, or if a call among them has no result. Results of other calls belong to turns
    that are continued: see turns/requests.py."""
    if not messages:
        raise Refused("'input' is empty. Send at least one message.", param="input", code="")
    results = {message.get("tool_call_id") for message in messages}
    for call in (call["id"] for message in messages for call in message.get("tool_calls") or ()):
        if call not in results:
            raise Refused(f"No tool output found for function call {call[:MAX_SHOWN]}.", param="input", code="")


def _tools(body: contract.ResponseRequest) -> tuple[list[JSON], list[str]]:
    """The tools that the model is given, as the response repeats them, and a notice of those that are left out."""
    tools, left_out = list[JSON](), list[str]()
    for at, tool in enumerate(body.tools):
        if not isinstance(tool, contract.HostedTool):
            tools.append(tool.model_dump())
        elif not tool.type.startswith(_IGNORED_TOOLS):
            raise _hosted(tool.type, f"tools[{at}].type")
        else:
            left_out.append(tool.type)
    _check_choice(body.tool_choice, tools, left_out)
    names = ", ".join(sorted(set(left_out)))
    return tools, [f"Left out, because the model can't use them here: {names} tools."] if left_out else []


def _check_choice(choice: Any, tools: Sequence[JSON], left_out: Sequence[str]) -> None:
    """Raises Refused if the choice needs a tool that is not there."""
    if isinstance(choice, contract.HostedTool):
        raise _hosted(choice.type, "tool_choice.type")
    if choice == "required" and left_out and not tools:
        raise _hosted(left_out[0], "tool_choice")
    if isinstance(choice, contract.AllowedTools):
        for at, tool in enumerate(choice.tools):
            if tool.get("type") not in ("function", "custom"):
                raise _hosted(str(tool.get("type")), f"tool_choice.tools[{at}].type")


def _hosted(kind: str, param: str) -> Refused:
    supported = "Supported values of a tool's type are: 'function' and 'custom'."
    message = f"Hosted tools are not supported: '{kind[:MAX_SHOWN]}'. {supported}"
    return unsupported(param, message, "unsupported_value")


def _max_tokens(
    app: Services, principal: Principal, deployment: str, body: contract.ResponseRequest
) -> tuple[int, int | None]:
    """The most tokens that the answer can have, and the maximum to send, if any."""
    requested, maximum = body.max_output_tokens, app.max_output(deployment)
    allowed = app.settings.limits.max_tokens(principal, session=body.store)
    if allowed and requested and requested > allowed:
        raise Refused(f"max_output_tokens may be at most {allowed}.", param="max_output_tokens")
    if allowed and not requested:
        requested = min(allowed, maximum)
    return min(requested or maximum, maximum), requested


def _options(body: contract.ResponseRequest, tools: Sequence[JSON]) -> JSON:
    """The request's options in chat completions."""
    options = {name: value for name in _UNCHANGED_OPTIONS if (value := getattr(body, name)) is not None}
    if tools:
        options["tools"] = [_chat_tool(tool) for tool in tools]
        options["tool_choice"] = _chat_choice(body.tool_choice)
        if "parallel_tool_calls" in body.model_fields_set:
            options["parallel_tool_calls"] = body.parallel_tool_calls
    if (form := body.text.format) and form.type != "text":
        described = {name: each for name, each in form.model_dump().items() if name != "type" and each is not None}
        options["response_format"] = {"type": form.type} | ({form.type: described} if described else {})
    if body.text.verbosity:
        options["verbosity"] = body.text.verbosity
    if body.reasoning and body.reasoning.effort:
        options["reasoning_effort"] = body.reasoning.effort
    if body.top_logprobs or contract.LOGPROBS in body.include:
        options |= {"logprobs": True, "top_logprobs": body.top_logprobs or 0}
    return options


def _chat_tool(tool: Mapping[str, Any]) -> JSON:
    kind = tool["type"]
    inside = {name: value for name, value in tool.items() if name != "type" and value is not None}
    if kind == "custom" and inside.get("format", {}).get("type") == "grammar":
        grammar = {name: value for name, value in inside["format"].items() if name != "type"}
        inside["format"] = {"type": "grammar", "grammar": grammar}
    return {"type": kind, kind: inside}


def _chat_choice(choice: Any) -> Any:
    if isinstance(choice, contract.NamedTool):
        return {"type": choice.type, choice.type: {"name": choice.name}}
    if isinstance(choice, contract.AllowedTools):
        named = [{"type": each["type"], each["type"]: {"name": each.get("name")}} for each in choice.tools]
        return {"type": choice.type, choice.type: {"mode": choice.mode, "tools": named}}
    return choice


def _echo(body: contract.ResponseRequest, tools: Sequence[JSON], conversation: str | None) -> JSON:
    """What the response repeats of its request, all of it, with the defaults."""
    reasoning = body.reasoning or contract.ReasoningOptions()
    choice = body.tool_choice
    return {
        "model": body.model,
        **{name: getattr(body, name) for name in _ECHOED},
        "conversation": {"id": conversation} if conversation else None,
        "store": body.store,
        "background": False,
        "tools": list(tools),
        "tool_choice": choice if isinstance(choice, str) else choice.model_dump(),
        "text": dict(_echoed_text(body.text)),
        "reasoning": {
            "effort": reasoning.effort,
            "summary": reasoning.summary or reasoning.generate_summary,
        },
        "temperature": 1.0 if body.temperature is None else body.temperature,
        "top_p": 1.0 if body.top_p is None else body.top_p,
        "top_logprobs": body.top_logprobs or 0,
        "presence_penalty": 0.0,
        "frequency_penalty": 0.0,
        "truncation": body.truncation,
        "service_tier": "default",
        "metadata": body.metadata,
        "user": body.user,
        "safety_identifier": body.safety_identifier,
        "prompt_cache_key": body.prompt_cache_key,
        "prompt_cache_retention": body.prompt_cache_retention,
    }


def _echoed_text(text: contract.TextOptions) -> Iterator[tuple[str, Any]]:
    yield "format", text.format.model_dump() if text.format else {"type": "text"}
    if text.verbosity:
        yield "verbosity", text.verbosity
