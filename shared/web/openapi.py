"""The published contract, OpenAPI 3.1, made from the models that validate requests and shape responses."""

from collections.abc import Mapping, Sequence
from functools import cache, partial
from typing import Any

from pydantic import BaseModel
from pydantic.json_schema import GenerateJsonSchema, JsonSchemaMode, JsonSchemaValue, models_json_schema
from pydantic_core import core_schema

from shared.web.contract import chat, completions, fields, service, usage

JSON = dict[str, Any]
_REF = "#/components/schemas/{model}"
_REQUESTS = (chat.ChatRequest, completions.CompletionRequest)
_ANSWERS = (
    service.AboutAnswer,
    chat.ChatAnswer,
    usage.DailyAnswer,
    chat.DeltaEvent,
    usage.DaysAnswer,
    usage.EmailAnswer,
    fields.ErrorAnswer,
    chat.ErrorEvent,
    service.HealthAnswer,
    chat.HistoryAnswer,
    completions.ModelsAnswer,
    chat.SessionAnswer,
    chat.StartEvent,
)
_SECURITY = {
    "functionKey": {"type": "apiKey", "in": "header", "name": "x-functions-key"},
    "clientKey": {"type": "http", "scheme": "bearer", "description": "One of CLIENT_KEYS; or in the header api-key."},
    "usageKey": {"type": "http", "scheme": "bearer", "description": "One of USAGE_KEYS; or in the header api-key."},
}
_ERRORS = {
    400: "The request is wrong; `param` names the field.",
    401: "A key is missing or wrong.",
    404: "There is no such thing, or it is somebody else's.",
    409: "Another turn of the session runs: wait Retry-After seconds.",
    413: "The body, or the turn with its answer, is too large.",
    415: "The body is not application/json.",
    422: "The Idempotency-Key was used with another request.",
    429: "The model's rate limit: wait Retry-After seconds.",
    500: "A bug, or a wrong setting; the log has it under the id in the message.",
    502: "The model's answer broke off, or the mail was not taken.",
    503: "The tables or the model service can't be reached, or do not let the app in: wait Retry-After seconds.",
    504: "The model did not answer in time.",
}
_CHAT: list[JSON] = [{"functionKey": []}, {"functionKey": [], "clientKey": []}]
_CLIENT: list[JSON] = [{"clientKey": []}]
_USAGE: list[JSON] = [{"usageKey": []}]
_DATE = {"type": "string", "format": "date"}
_DAYS = (400, 401, 500, 503)
_STORAGE = (401, 404, 500, 503)
_TURN = tuple(_ERRORS)
_CHUNKS = "Chunks as the model service sends them, and `[DONE]` at the end."


@cache
def document() -> JSON:
    """The whole contract."""
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
    """As the wire has them: an amount is a number, written from its Decimal's digits."""

    def decimal_schema(self, schema: core_schema.DecimalSchema) -> JsonSchemaValue:
        return {"type": "number"}


def _schemas() -> JSON:
    models: list[tuple[type[BaseModel], JsonSchemaMode]] = [(model, "validation") for model in _REQUESTS]
    models += [(model, "serialization") for model in _ANSWERS]
    _, made = models_json_schema(models, ref_template=_REF, schema_generator=_Numbers)
    return dict(made["$defs"])


def _paths() -> JSON:
    session = _parameter("session_id", "path", _matching(fields.SESSION_ID))
    day = _parameter("date", "path", _DATE)
    key = _parameter("Idempotency-Key", "header", _matching(fields.IDEMPOTENCY_KEY), required=False)
    limit = _parameter("limit", "query", _up_to(fields.MAX_PAGE_TURNS), required=False)
    before = _parameter("before", "query", _up_to(fields.MAX_TURN_NUMBER), required=False)
    chunks = {"application/json": {"type": "object"}, "text/event-stream": _event(_text(_CHUNKS))}
    own = _parameter("X-Session-Id", "header", _matching(fields.SESSION_ID), required=False)
    completion = partial(_operation, content=chunks, keys=_CLIENT, errors=_TURN, body="CompletionRequest", proxied=True)
    version = _parameter("api-version", "query", {"type": "string"}, required=False)
    deployment = _parameter("deployment", "path", {"type": "string", "minLength": 1})
    turn = _json("ChatAnswer") | {"text/event-stream": _events()}
    page = _json("DailyAnswer") | {"text/html": _text("The same as a page.")}
    return {
        "/api/chat": {
            "post": _operation(
                "One turn of a conversation", key, content=turn, keys=_CHAT, errors=_TURN, body="ChatRequest"
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
            "delete": _operation(
                "Erase a session; its ledger rows, which hold no content, stay",
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
                "Forget what was said, keep the totals", session, keys=_CHAT, errors=(400, 409, *_STORAGE)
            ),
        },
        "/api/about": {
            "get": _operation(
                "What the service is", content=_json("AboutAnswer"), keys=[{"functionKey": []}], errors=(401, 500)
            )
        },
        "/api/usage/daily/{date}": {
            "get": _operation("What a UTC day cost; today's as it stands", day, content=page, keys=_USAGE, errors=_DAYS)
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
        "/openai/v1/chat/completions": {"post": completion("OpenAI's chat completions", own, key)},
        "/openai/deployments/{deployment}/chat/completions": {
            "post": completion("Azure OpenAI's chat completions", deployment, version, own, key)
        },
        "/openai/v1/models": {
            "get": _operation(
                "The deployments that may be named as model",
                content=_json("ModelsAnswer"),
                keys=_CLIENT,
                errors=(401, 500),
            )
        },
        "/api/health": {"get": _operation("Alive", content=_json("HealthAnswer"))},
    }


def _operation(
    summary: str,
    *parameters: JSON,
    content: Mapping[str, JSON] | None = None,
    keys: Sequence[JSON] = (),
    errors: Sequence[int] = (),
    body: str | None = None,
    proxied: bool = False,
) -> JSON:
    """`content`: of the answer by media type, nothing where it is a 204. `keys`: the ways to be let in. `proxied`: what
    the model service refuses comes as it said it."""
    done: JSON = {"description": "Done"}
    if content:
        done["content"] = {kind: {"schema": schema} for kind, schema in content.items()}
    refused = {"content": {kind: {"schema": schema} for kind, schema in _json("ErrorAnswer").items()}}
    responses = {"200" if content else "204": done}
    responses |= {str(code): {"description": _ERRORS[code], **refused} for code in sorted(errors)}
    if proxied:
        responses["default"] = {"description": "The model service's own error and status", **refused}
    operation: JSON = {"summary": summary, "responses": responses}
    if keys:
        operation["security"] = list(keys)
    if parameters:
        operation["parameters"] = list(parameters)
    if body:
        operation["requestBody"] = {"required": True, "content": {"application/json": {"schema": _ref(body)}}}
    return operation


def _json(model: str) -> JSON:
    return {"application/json": _ref(model)}


def _matching(pattern: str) -> JSON:
    return {"type": "string", "pattern": pattern}


def _up_to(maximum: int) -> JSON:
    return {"type": "integer", "minimum": 1, "maximum": maximum}


def _ref(model: str) -> JSON:
    return {"$ref": _REF.format(model=model)}


def _events() -> JSON:
    """One of api/chat's events. A line that begins with a colon is a comment, sent where nothing else has come."""
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
