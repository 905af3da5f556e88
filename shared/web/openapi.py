"""The OpenAPI 3.1 document, generated from the models that validate requests and define responses."""

from collections.abc import Mapping, Sequence
from functools import cache, partial
from typing import Any, get_args

from pydantic import BaseModel
from pydantic.json_schema import GenerateJsonSchema, JsonSchemaMode, JsonSchemaValue, models_json_schema
from pydantic_core import core_schema

from shared.web.contract import (
    chat,
    completions,
    conversations,
    fields,
    limits,
    models,
    responses,
    service,
    sessions,
    usage,
)
from shared.web.contract.responses import MAX_PAGE_ITEMS

JSON = dict[str, Any]
_REF = "#/components/schemas/{model}"
_REQUESTS = (
    chat.ChatRequest,
    sessions.SessionUpdate,
    completions.CompletionRequest,
    conversations.ConversationUpdate,
    conversations.NewConversation,
    conversations.NewItems,
    models.EmbeddingRequest,
    responses.ResponseRequest,
)
_ANSWERS = (
    service.AboutAnswer,
    chat.ChatAnswer,
    conversations.ConversationAnswer,
    usage.DailyAnswer,
    chat.DeltaEvent,
    usage.DaysAnswer,
    conversations.DeletedConversation,
    responses.DeletedResponse,
    usage.EmailAnswer,
    sessions.ErasureAnswer,
    fields.ErrorAnswer,
    chat.ErrorEvent,
    sessions.ExportAnswer,
    service.HealthAnswer,
    sessions.HistoryAnswer,
    sessions.ListedSession,
    sessions.SessionListAnswer,
    responses.ItemsAnswer,
    limits.LimitsAnswer,
    models.ModelAnswer,
    models.ModelsAnswer,
    responses.ResponseAnswer,
    sessions.SessionAnswer,
    service.SignInAnswer,
    chat.StartEvent,
    sessions.StopAnswer,
)
_SECURITY = {
    "functionKey": {"type": "apiKey", "in": "header", "name": "x-functions-key"},
    "clientKey": {
        "type": "http",
        "scheme": "bearer",
        "description": "One of CLIENT_KEYS; the header api-key is accepted too.",
    },
    "usageKey": {
        "type": "http",
        "scheme": "bearer",
        "description": "One of USAGE_KEYS; the header api-key is accepted too.",
    },
    "person": {
        "type": "http",
        "scheme": "bearer",
        "bearerFormat": "JWT",
        "description": "Where people sign in: a person's access token. GET /api/sign-in names the authority and the"
        " scope. Function keys are not taken there.",
    },
}
_ERRORS = {
    400: "The request is invalid; `param` names the field.",
    401: "The API key or access token is missing or invalid. Where people sign in, WWW-Authenticate names the authority"
    " and the scope.",
    403: "The person is no administrator.",
    404: "It does not exist, or is owned by another caller.",
    409: "Another turn of the session is running. Wait Retry-After seconds.",
    413: "The body, or the turn with its answer, is too large.",
    415: "The body is not application/json, or is compressed.",
    422: "The Idempotency-Key was used with another request.",
    429: "A rate limit of the model or of this app is reached: wait Retry-After seconds. Or a budget is used up until"
    " `resets_at`, or the model's account has no credit left: then x-should-retry is false.",
    500: "A bug or a wrong setting. The message contains the incident ID, which is also in the log.",
    502: "The model's answer broke off, or the email was rejected.",
    503: "Table storage, the model service or the issuer of access tokens can't be reached or rejects the app. Wait"
    " Retry-After seconds.",
    504: "The model's answer timed out.",
}
_REFUSAL_HEADERS = {
    "Retry-After": ("integer", "Seconds to wait."),
    "x-should-retry": ("string", "`false` if no retry can help before that."),
}
_RATE_HEADERS = {
    f"x-ratelimit-{name}-{kind}": (json_type, description.format(kind=kind))
    for kind in ("requests", "tokens")
    for name, json_type, description in (
        ("limit", "integer", "The caller's own limit of {kind} per minute."),
        ("remaining", "integer", "The {kind} that are left in this minute."),
        ("reset", "string", "Until the minute ends, such as `34s`."),
    )
}
_CLIENT: list[JSON] = [{"clientKey": []}, {"person": []}]  # on api/* a client key suffices where people sign in
_CHAT: list[JSON] = [{"functionKey": []}, {"functionKey": [], "clientKey": []}, *_CLIENT]
_OWNER: list[JSON] = [{"functionKey": [], "clientKey": []}, *_CLIENT]
_USAGE: list[JSON] = [{"usageKey": []}, {"person": []}]
_LIMITS: list[JSON] = [*_CHAT, {"functionKey": [], "usageKey": []}]
_ON_DISCONNECT = {
    "enum": ["finish", "stop"],
    "default": "finish",
    "description": "What happens to a streamed answer whose client disconnects.",
}
_NAME = {"type": "string", "minLength": 1}
_DATE = {"type": "string", "format": "date"}
_DAYS = (400, 401, 500, 503)
_STORAGE = (401, 404, 500, 503)
_TURN = tuple(status for status in _ERRORS if status != 403)
_RESPONSE_EVENTS = (
    "OpenAI's events of a response, from `response.created` to `response.completed`, `response.incomplete` or"
    " `response.failed`."
)
_CHUNKS = "Chunks as the model service sends them, then `[DONE]`."


@cache
def document() -> JSON:
    """The complete OpenAPI document."""
    return {
        "openapi": "3.1.0",
        "info": {
            "title": "Chat API",
            "version": "1",
            "description": "Amounts are exact: JSON numbers in plain digits, in USD. Times are UTC.",
            "license": {"name": "MIT", "identifier": "MIT"},
        },
        "servers": [{"url": "/"}],
        "paths": _paths(),
        "components": {"schemas": _schemas(), "securitySchemes": _SECURITY},
    }


class _Numbers(GenerateJsonSchema):
    """An amount is a number, written from the digits of its Decimal."""

    def decimal_schema(self, schema: core_schema.DecimalSchema) -> JsonSchemaValue:
        return {"type": "number"}


def _schemas() -> JSON:
    modes: list[tuple[type[BaseModel], JsonSchemaMode]] = [(model, "validation") for model in _REQUESTS]
    modes += [(model, "serialization") for model in _ANSWERS]
    _, schemas = models_json_schema(modes, ref_template=_REF, schema_generator=_Numbers)
    return dict(schemas["$defs"])


def _paths() -> JSON:
    session = _parameter("session_id", "path", _matching(fields.SESSION_ID))
    day = _parameter("date", "path", _DATE)
    key = _parameter("Idempotency-Key", "header", _matching(fields.IDEMPOTENCY_KEY), required=False)
    limit = _parameter("limit", "query", _up_to(fields.MAX_PAGE_TURNS), required=False)
    before = _parameter("before", "query", _up_to(fields.MAX_TURN_NUMBER), required=False)
    chunks = {"application/json": {"type": "object"}, "text/event-stream": _event(_text(_CHUNKS))}
    exported = _json("ExportAnswer") | {"text/markdown": _text("The messages, by turns.")}
    kind = _parameter("format", "query", {"enum": ["json", "markdown"], "default": "json"}, required=False)
    on_disconnect = _parameter("X-On-Disconnect", "header", _ON_DISCONNECT, required=False)
    session_header = _parameter("X-Session-Id", "header", _matching(fields.SESSION_ID), required=False)
    completion = partial(_operation, content=chunks, keys=_CLIENT, errors=_TURN, body="CompletionRequest", proxied=True)
    vectors = {"application/json": {"type": "object"}}
    embedding = partial(_operation, content=vectors, keys=_CLIENT, errors=_TURN, body="EmbeddingRequest", proxied=True)
    all_limits = partial(_operation, content=_json("LimitsAnswer"), errors=(401, 500, 503))
    model_list = partial(_operation, content=_json("ModelsAnswer"), keys=_CLIENT, errors=(401, 500))
    model = partial(_operation, content=_json("ModelAnswer"), keys=_CLIENT, errors=(401, 404, 500))
    version = _parameter("api-version", "query", {"type": "string"}, required=False)
    deployment, model_id = (_parameter(name, "path", _NAME) for name in ("deployment", "model"))
    turn = _json("ChatAnswer") | {"text/event-stream": _events()}
    page = _json("DailyAnswer") | {"text/html": _text("The same as an HTML page.")}
    return {
        "/api/chat": {
            "post": _operation(
                "One turn of a conversation", key, content=turn, keys=_CHAT, errors=_TURN, body="ChatRequest"
            )
        },
        "/api/sessions": {
            "get": _operation(
                "The caller's own sessions, newest use first",
                _parameter("limit", "query", _up_to(fields.MAX_PAGE_SESSIONS), required=False),
                _parameter("after", "query", {"type": "string"}, required=False),
                _parameter("archived", "query", {"type": "boolean", "default": False}, required=False),
                _parameter("search", "query", {"type": "string", "maxLength": fields.MAX_SEARCH_CHARS}, required=False),
                content=_json("SessionListAnswer"),
                keys=_OWNER,
                errors=(400, 401, 500, 503),
            )
        },
        "/api/sessions/{session_id}": {
            "get": _operation(
                "A session: settings and totals",
                session,
                content=_json("SessionAnswer"),
                keys=_CHAT,
                errors=(400, *_STORAGE),
            ),
            "patch": _operation(
                "Change a session's title, pin or archive it",
                session,
                content=_json("ListedSession"),
                keys=_CHAT,
                errors=(400, 409, *_STORAGE, 413, 415),
                body="SessionUpdate",
            ),
            "delete": _operation(
                "Erase a session; its ledger rows, which contain no content, are kept",
                session,
                keys=_CHAT,
                errors=(400, 409, *_STORAGE),
            ),
        },
        "/api/sessions/{session_id}/messages": {
            "get": _operation(
                "History by turns, newest first",
                session,
                limit,
                before,
                content=_json("HistoryAnswer"),
                keys=_CHAT,
                errors=(400, *_STORAGE),
            ),
            "delete": _operation(
                "Clear a session: delete its content, keep its totals",
                session,
                keys=_CHAT,
                errors=(400, 409, *_STORAGE),
            ),
        },
        "/api/sessions/{session_id}/export": {
            "get": _operation(
                "The whole conversation, oldest turn first",
                session,
                kind,
                content=exported,
                keys=_CHAT,
                errors=(400, *_STORAGE),
            )
        },
        "/api/sessions/{session_id}/claim": {
            "post": _operation(
                "Take over a session without an owner, once",
                session,
                content=_json("ListedSession"),
                keys=_OWNER,
                errors=(400, 409, *_STORAGE),
            )
        },
        "/api/sessions/{session_id}/stop": {
            "post": _operation(
                "Stop the running turn: the answer ends and what was generated is kept",
                session,
                content=_json("StopAnswer"),
                later="Another instance runs the turn and stops it within 10 s.",
                keys=_CHAT,
                errors=(400, 409, *_STORAGE),
            )
        },
        "/api/me/sessions": {
            "delete": _operation(
                "Erase all sessions of the caller",
                content=_json("ErasureAnswer"),
                later="Some are not erased yet. The server goes on; api/me/sessions/erasure shows the progress.",
                keys=_OWNER,
                errors=(401, 500, 503),
            )
        },
        "/api/me/sessions/erasure": {
            "get": _operation(
                "Progress of the last erasure of all sessions of the caller",
                content=_json("ErasureAnswer"),
                keys=_OWNER,
                errors=_STORAGE,
            )
        },
        "/api/about": {
            "get": _operation(
                "Information about the server",
                content=_json("AboutAnswer"),
                keys=_CHAT,
                errors=(401, 500),
            )
        },
        "/api/limits": {
            "get": all_limits("The caller's own limits and what is left of them; all with a usage key", keys=_LIMITS)
        },
        "/api/usage/limits": {"get": all_limits("All limits and what is left of them", keys=_USAGE)},
        "/api/usage/daily/{date}": {
            "get": _operation("The cost of a UTC day; today's so far", day, content=page, keys=_USAGE, errors=_DAYS)
        },
        "/api/usage/daily": {
            "get": _operation(
                "Totals per day, at most 92 of them",
                *(_parameter(name, "query", _DATE) for name in ("from", "to")),
                content=_json("DaysAnswer"),
                keys=_USAGE,
                errors=_DAYS,
            )
        },
        "/api/usage/daily/{date}/email": {
            "post": _operation(
                "Send a final day's summary again", day, content=_json("EmailAnswer"), keys=_USAGE, errors=(*_DAYS, 502)
            )
        },
        "/openai/v1/chat/completions": {
            "post": completion("OpenAI's chat completions", session_header, key, on_disconnect)
        },
        "/openai/deployments/{deployment}/chat/completions": {
            "post": completion(
                "Azure OpenAI's chat completions", deployment, version, session_header, key, on_disconnect
            )
        },
        "/openai/v1/embeddings": {"post": embedding("OpenAI's embeddings")},
        "/openai/deployments/{deployment}/embeddings": {
            "post": embedding("Azure OpenAI's embeddings", deployment, version)
        },
        "/openai/v1/models": {"get": model_list("The deployments that can be used as model, each with its kind")},
        "/openai/v1/models/{model}": {"get": model("A deployment", model_id)},
        "/openai/models": {"get": model_list("Azure OpenAI's list of models: the deployments", version)},
        "/openai/models/{model}": {"get": model("A deployment, as Azure OpenAI's model", model_id, version)},
        **_response_paths("/openai/v1/responses"),
        **_response_paths("/openai/responses", version),
        **_conversation_paths("/openai/v1/conversations"),
        **_conversation_paths("/openai/conversations", version),
        "/api/health": {"get": _operation("Liveness", content=_json("HealthAnswer"))},
        "/api/sign-in": {"get": _operation("How callers sign in", content=_json("SignInAnswer"))},
    }


def _response_paths(root: str, *version: JSON) -> JSON:
    """OpenAI's Responses API. `version`: of Azure OpenAI's paths, ignored."""
    key = _parameter("Idempotency-Key", "header", _matching(fields.IDEMPOTENCY_KEY), required=False)
    on_disconnect = _parameter("X-On-Disconnect", "header", _ON_DISCONNECT, required=False)
    response = _parameter("response_id", "path", _NAME)
    include, page = _included(), _page_of_items()
    stored = partial(_operation, keys=_CLIENT, errors=(400, *_STORAGE))
    answer = _json("ResponseAnswer") | {"text/event-stream": _event(_text(_RESPONSE_EVENTS))}
    cancel = stored("Refused: no response is generated in the background", response, *version)
    del cancel["responses"]["204"]
    return {
        root: {
            "post": _operation(
                "A response to input, which may continue another response or a conversation",
                *version,
                key,
                on_disconnect,
                content=answer,
                keys=_CLIENT,
                errors=_TURN,
                body="ResponseRequest",
                rates=True,
            )
        },
        f"{root}/{{response_id}}": {
            "get": stored("A stored response", response, include, *version, content=_json("ResponseAnswer")),
            "delete": stored(
                "Delete a response: its content, and not what it cost",
                response,
                *version,
                content=_json("DeletedResponse"),
                errors=(400, 409, *_STORAGE),
            ),
        },
        f"{root}/{{response_id}}/cancel": {"post": cancel},
        f"{root}/{{response_id}}/input_items": {
            "get": stored(
                "The items of a response's input, then those of the turns that it continues",
                response,
                *page,
                *version,
                content=_json("ItemsAnswer"),
            )
        },
    }


def _conversation_paths(root: str, *version: JSON) -> JSON:
    """OpenAI's Conversations API. `version`: of Azure OpenAI's paths, ignored."""
    conversation, item = (_parameter(name, "path", _NAME) for name in ("conversation_id", "item_id"))
    stored = partial(_operation, keys=_CLIENT, errors=(400, *_STORAGE))
    written = partial(_operation, keys=_CLIENT, errors=(400, *_STORAGE, 413, 415))
    answer, items = _json("ConversationAnswer"), _json("ItemsAnswer")
    one, all_items = f"{root}/{{conversation_id}}", f"{root}/{{conversation_id}}/items"
    new = written("Begin a conversation", *version, content=answer, body="NewConversation")
    update = written("Replace the metadata", conversation, *version, content=answer, body="ConversationUpdate")
    erased = _json("DeletedConversation")
    add = written("Append items", conversation, _included(), *version, content=items, body="NewItems")
    return {
        root: {"post": new},
        one: {
            "get": stored("A conversation", conversation, *version, content=answer),
            "post": update,
            "delete": stored(
                "Erase a conversation, its items and responses; its ledger rows, which contain no content, are kept",
                conversation,
                *version,
                content=erased,
            ),
        },
        all_items: {
            "get": stored("The items of a conversation", conversation, *_page_of_items(), *version, content=items),
            "post": add,
        },
        f"{all_items}/{{item_id}}": {
            "get": stored(
                "An item",
                conversation,
                item,
                _included(),
                *version,
                content={"application/json": {"type": "object"}},
            ),
            "delete": stored("Delete an item", conversation, item, *version, content=answer),
        },
    }


def _included() -> JSON:
    values = {"type": "array", "items": {"enum": [*get_args(responses.Include)]}}
    return _parameter("include", "query", values, required=False)


def _page_of_items() -> Sequence[JSON]:
    return (
        _included(),
        _parameter("limit", "query", _up_to(MAX_PAGE_ITEMS), required=False),
        _parameter("order", "query", {"enum": ["asc", "desc"], "default": "desc"}, required=False),
        _parameter("after", "query", {"type": "string"}, required=False),
    )


def _operation(
    summary: str,
    *parameters: JSON,
    content: Mapping[str, JSON] | None = None,
    later: str = "",
    keys: Sequence[JSON] = (),
    errors: Sequence[int] = (),
    body: str | None = None,
    proxied: bool = False,
    rates: bool = False,
) -> JSON:
    """`content`: of the response, by media type; none for a 204. `later`: what a 202 means, if there is one. `keys`:
    the accepted ways to authenticate. `proxied`: the model service's own errors are returned unchanged. `rates`:
    headers say what is left of the limits per minute."""
    rates = rates or proxied
    success: JSON = {"description": "Success"}
    if content:
        success["content"] = {kind: {"schema": schema} for kind, schema in content.items()}
    error = {"content": {kind: {"schema": schema} for kind, schema in _json("ErrorAnswer").items()}}
    responses = {"200" if content else "204": success}
    if later:
        responses["202"] = success | {"description": later}
    statuses = {*errors, *((401, 503) if keys else ()), *((403,) if keys is _USAGE else ())}
    responses |= {str(code): {"description": _ERRORS[code], **error} for code in sorted(statuses)}
    if 429 in errors:
        responses["429"]["headers"] = _headers(_REFUSAL_HEADERS | (_RATE_HEADERS if rates else {}))
    if rates:
        success["headers"] = _headers(_RATE_HEADERS)
    if proxied:
        responses["default"] = {"description": "The model service's own error and status", **error}
    operation: JSON = {"summary": summary, "responses": responses}
    if keys:
        operation["security"] = list(keys)
    if parameters:
        operation["parameters"] = list(parameters)
    if body:
        operation["requestBody"] = {"required": True, "content": {"application/json": {"schema": _ref(body)}}}
    return operation


def _headers(headers: Mapping[str, tuple[str, str]]) -> JSON:
    return {
        name: {"schema": {"type": kind}, "description": description} for name, (kind, description) in headers.items()
    }


def _json(model: str) -> JSON:
    return {"application/json": _ref(model)}


def _matching(pattern: str) -> JSON:
    return {"type": "string", "pattern": pattern}


def _up_to(maximum: int) -> JSON:
    return {"type": "integer", "minimum": 1, "maximum": maximum}


def _ref(model: str) -> JSON:
    return {"$ref": _REF.format(model=model)}


def _events() -> JSON:
    """The events of api/chat. A line that begins with a colon is a comment; one is sent after 15 s of silence."""
    kinds = {
        "start": chat.StartEvent,
        "delta": chat.DeltaEvent,
        "done": chat.ChatAnswer,
        "error": chat.ErrorEvent,
    }
    return {"oneOf": [_event(_json_text(model.__name__), name) for name, model in kinds.items()]}


def _event(data: JSON, name: str | None = None) -> JSON:
    properties = {"data": data} | ({"event": {"const": name}} if name else {})
    return {"type": "object", "properties": properties, "required": [*properties]}


def _json_text(model: str) -> JSON:
    return {"type": "string", "contentMediaType": "application/json", "contentSchema": _ref(model)}


def _text(description: str) -> JSON:
    return {"type": "string", "description": description}


def _parameter(name: str, where: str, schema: Mapping[str, Any], *, required: bool = True) -> JSON:
    return {"name": name, "in": where, "required": required, "schema": dict(schema)}
