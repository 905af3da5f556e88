"""The OpenAI-compatible routes: OpenAI's and Azure OpenAI's own wire format in and out, metered. Behind client keys.

A request goes on as it was sent and its answer comes back as the service sent it. Without X-Session-Id the ledger alone
knows of the call; with it the call is a turn of that session.
"""

import functools
from collections.abc import Mapping
from dataclasses import replace
from hashlib import sha256
from typing import Any

import orjson
from azurefunctions.extensions.http.fastapi import Request, Response

from shared import answers
from shared.completion import openai_usage
from shared.contract import CompletionRequest, ModelAnswer, ModelsAnswer
from shared.conversation import Turn
from shared.errors import ChatError, InvalidRequest, ModelNotFound
from shared.reservation import Post
from shared.services import Services
from shared.settings import Settings
from shared.turns import Answer, Delta, Event, Metered, Opened, Started
from shared.web import (
    answering,
    error_fields,
    event_stream,
    idempotency_key,
    json_response,
    read_body,
    refusal,
    relay,
    session_id,
    validated,
)

SESSION = "x-session-id"
DONE = b"data: [DONE]\n\n"
_TYPES = {401: "authentication_error", 429: "rate_limit_error"}  # by which people, not SDKs, tell errors apart


def _refused(error: Exception) -> Response:
    """The service's own answer where it is one, else ours in its shape; its status and headers are kept."""
    said = error.said if isinstance(error, ChatError) else None
    if said is None or said.status < 400:  # a redirection would lead around this app
        return refusal(*_error(error))
    if _is_error(said.body):
        return Response(said.body, said.status, said.headers, media_type="application/json")
    ours = refusal(*_error(error, said.status))
    ours.headers.update(said.headers)
    return ours


_compatible = functools.partial(answering, refused=_refused)


@_compatible
async def post_completion(request: Request, services: Services) -> Response:
    caller = services.client_keys.caller(request.headers)
    body = await read_body(request, services.settings.max_request_bytes)
    asked = validated(CompletionRequest, body)
    streamed = bool(asked.stream)
    post = _post(request, services.settings, asked, body, caller)
    begin = services.turns.take_turn if post.session_id else services.turns.call
    running = begin(post, deltas=streamed)
    event, headers = await running.next(), dict[str, str]()
    replayed = isinstance(event, Started) and event.replayed
    while not isinstance(event, Answer | Metered) and not (streamed and isinstance(event, Delta) and not replayed):
        if isinstance(event, Opened):
            headers |= event.headers
        event = await running.next()
    wants_usage = bool(asked.stream_options and asked.stream_options.include_usage)
    if replayed and isinstance(event, Answer):
        return _replay(event.turn, streamed=streamed, usage=wants_usage)
    if streamed:
        written = functools.partial(_written, usage=wants_usage)
        return event_stream(relay(event, running, written, _broken), headers)
    return Response(event.data, 200, headers, media_type="application/json")


@_compatible
async def get_models(request: Request, services: Services) -> Response:
    services.client_keys.name(request.headers)
    models = [
        ModelAnswer(id=name, object="model", created=0, owned_by="azure-openai")
        for name in sorted(services.settings.deployments)
    ]
    return json_response(ModelsAnswer(object="list", data=models))


def _post(request: Request, settings: Settings, asked: CompletionRequest, body: Mapping[str, Any], caller: str) -> Post:
    deployment = request.path_params.get("deployment") or asked.model
    if not deployment:
        raise InvalidRequest("Name a model: one of those that GET openai/v1/models lists.", param="model")
    if deployment not in settings.deployments:
        listed = ", ".join(sorted(settings.deployments))
        raise ModelNotFound(f"There is no model {deployment!r}. Choose one of: {listed}.", param="model")
    if body.get("service_tier") not in (None, "auto", "default"):
        message = "This service knows the prices of the default tier alone: leave service_tier out."
        raise InvalidRequest(message, param="service_tier")
    named = max(asked.max_tokens or 0, asked.max_completion_tokens or 0)
    longest = min(named or settings.max_output_tokens, settings.max_output_tokens)
    sent = {name: value for name, value in body.items() if name != "model"}
    if asked.stream:  # usage is always asked for; its chunk goes on only to who wanted it
        sent["stream_options"] = {**(body.get("stream_options") or {}), "include_usage": True}
    post = Post(messages=(), body=sent, deployment=deployment, max_tokens=longest * (asked.n or 1), caller=caller)
    given = request.headers.get(SESSION)
    if given is None:
        return post
    if (asked.n or 1) > 1:
        raise InvalidRequest("A turn of a session has one answer: leave n out, or X-Session-Id.", param="n")
    compared = {name: value for name, value in sent.items() if name not in ("stream", "stream_options")}
    said = orjson.dumps({**compared, "model": deployment}, option=orjson.OPT_SORT_KEYS)
    return replace(
        post,
        messages=asked.adds(),
        session_id=session_id(given, "X-Session-Id"),
        system=asked.system(),
        key=idempotency_key(request),
        fingerprint=sha256(said).hexdigest(),
    )


def _is_error(body: bytes) -> bool:
    """Whether it has OpenAI's shape. A gateway's own words are often a page, or JSON of another one."""
    try:
        said = orjson.loads(body)
    except orjson.JSONDecodeError:
        return False
    return isinstance(said, dict) and isinstance(said.get("error"), dict)


def _written(event: Event, *, usage: bool) -> bytes:
    match event:
        case Delta(_, data, only_usage) if usage or not only_usage:
            return b"data: %s\n\n" % data
        case Answer() | Metered():
            return DONE
        case _:
            return b""


def _broken(error: Exception) -> bytes:
    return b"data: %s\n\n" % answers.json_bytes({"error": _error(error)[0]})


def _error(error: Exception, said: int | None = None) -> tuple[dict[str, Any], int, int | None]:
    """The error in OpenAI's shape, its status, by default ours, and the seconds to wait."""
    fields, ours, retry_after = error_fields(error)
    status = said or ours
    kind = _TYPES.get(status, "invalid_request_error" if status < 500 else "server_error")
    return {**fields, "type": kind}, status, retry_after


def _replay(turn: Turn, *, streamed: bool, usage: bool) -> Response:
    """The stored answer, as the service would have sent it."""
    call, said = turn.call, turn.messages[-1]
    choice = {"index": 0, "logprobs": turn.extras.get("logprobs"), "finish_reason": turn.finish_reason}
    common = {
        "id": f"chatcmpl-{call.id}",
        "created": int(turn.started.timestamp()),
        "model": call.model or call.deployment,
    }
    used = openai_usage(call.usage) if call.usage else None
    headers = {"idempotent-replayed": "true"} | ({"x-truncated": "true"} if turn.truncated else {})
    if not streamed:
        whole = common | {"object": "chat.completion", "choices": [choice | {"message": said}], "usage": used}
        return json_response(whole, headers=headers)
    calls = [{"index": at, **call} for at, call in enumerate(said.get("tool_calls") or ())]
    delta = {**said, "tool_calls": calls} if calls else said
    chunks: list[dict[str, Any]] = [{"choices": [choice | {"delta": delta}]}]
    if usage:
        chunks.append({"choices": [], "usage": used})
    chunk = common | {"object": "chat.completion.chunk"}
    frames = b"".join(b"data: %s\n\n" % answers.json_bytes(chunk | each) for each in chunks)
    return Response(frames + DONE, 200, headers, media_type="text/event-stream")
