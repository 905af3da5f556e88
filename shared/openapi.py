"""The published contract, OpenAPI 3.1, made of the models that validate requests and shape answers. Pure."""

from collections.abc import Mapping
from functools import cache
from typing import Any

from pydantic import BaseModel
from pydantic.json_schema import GenerateJsonSchema, JsonSchemaMode, JsonSchemaValue, models_json_schema
from pydantic_core import core_schema

from shared import contract

JSON = dict[str, Any]
_REF = "#/components/schemas/{model}"
_REQUESTS = (contract.ChatRequest, contract.CompletionRequest)
_ANSWERS = (
    contract.AboutAnswer,
    contract.ChatAnswer,
    contract.DailyAnswer,
    contract.DeltaEvent,
    contract.DaysAnswer,
    contract.EmailAnswer,
    contract.ErrorAnswer,
    contract.ErrorEvent,
    contract.HealthAnswer,
    contract.HistoryAnswer,
    contract.ModelsAnswer,
    contract.SessionAnswer,
    contract.StartEvent,
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

    def str_schema(self, schema: core_schema.StringSchema) -> JsonSchemaValue:
        made = super().str_schema(schema)
        if "pattern" in made:  # the end of a text, in the words of ECMA-262
            made["pattern"] = made["pattern"].replace(r"\z", "$")
        return made


def _schemas() -> JSON:
    models: list[tuple[type[BaseModel], JsonSchemaMode]] = [(model, "validation") for model in _REQUESTS]
    models += [(model, "serialization") for model in _ANSWERS]
    _, made = models_json_schema(models, ref_template=_REF, schema_generator=_Numbers)
    return dict(made["$defs"])


def _paths() -> JSON:
    session = _parameter("session_id", "path", contract.SESSION_ID)
    date = _parameter("date", "path", {"type": "string", "format": "date"})
    key = _parameter(
        "Idempotency-Key", "header", {"type": "string", "pattern": contract.IDEMPOTENCY_KEY}, required=False
    )
    own = _parameter("X-Session-Id", "header", contract.SESSION_ID, required=False)
    chat: list[JSON] = [{"functionKey": []}, {"functionKey": [], "clientKey": []}]
    client: list[JSON] = [{"clientKey": []}]
    usage: list[JSON] = [{"usageKey": []}]
    completion: JSON = {
        "security": client,
        "parameters": [own, key],
        "requestBody": _body("CompletionRequest"),
        "responses": _responses(
            {
                "application/json": {"type": "object"},
                "text/event-stream": _event({"type": "string", "description": _CHUNKS}),
            },
            _TURN,
        )
        | {"default": {"description": "The model service's own error and status", **_refused()}},
    }
    version = _parameter("api-version", "query", {"type": "string"}, required=False)
    deployment = _parameter("deployment", "path", {"type": "string", "minLength": 1})
    return {
        "/api/chat": {
            "post": {
                "summary": "One turn of a conversation",
                "security": chat,
                "parameters": [key],
                "requestBody": _body("ChatRequest"),
                "responses": _responses(
                    {"application/json": _ref("ChatAnswer"), "text/event-stream": _events()}, _TURN
                ),
            }
        },
        "/api/sessions/{session_id}": {
            "get": {
                "summary": "A session: settings and totals",
                "security": chat,
                "parameters": [session],
                "responses": _responses({"application/json": _ref("SessionAnswer")}, (400, *_STORAGE)),
            },
            "delete": {
                "summary": "Erase a session; its ledger rows, which hold no content, stay",
                "security": chat,
                "parameters": [session],
                "responses": _responses({}, (400, 409, *_STORAGE), status=204),
            },
        },
        "/api/sessions/{session_id}/messages": {
            "get": {
                "summary": "History by turns, newest first",
                "security": chat,
                "parameters": [
                    session,
                    _parameter(
                        "limit",
                        "query",
                        {"type": "integer", "minimum": 1, "maximum": contract.LONGEST_PAGE},
                        required=False,
                    ),
                    _parameter(
                        "before",
                        "query",
                        {"type": "integer", "minimum": 1, "maximum": contract.MOST_BEFORE},
                        required=False,
                    ),
                ],
                "responses": _responses({"application/json": _ref("HistoryAnswer")}, (400, *_STORAGE)),
            },
            "delete": {
                "summary": "Forget what was said, keep the totals",
                "security": chat,
                "parameters": [session],
                "responses": _responses({}, (400, 409, *_STORAGE), status=204),
            },
        },
        "/api/about": {
            "get": {
                "summary": "What the service is",
                "security": [{"functionKey": []}],
                "responses": _responses({"application/json": _ref("AboutAnswer")}, (401, 500)),
            }
        },
        "/api/usage/daily/{date}": {
            "get": {
                "summary": "What a UTC day cost; today's as it stands",
                "security": usage,
                "parameters": [date],
                "responses": _responses(
                    {"application/json": _ref("DailyAnswer"), "text/html": _text("The same as a page.")},
                    (400, 401, 500, 503),
                ),
            }
        },
        "/api/usage/daily": {
            "get": {
                "summary": "Totals per day, at most 92 of them",
                "security": usage,
                "parameters": [
                    _parameter(name, "query", {"type": "string", "format": "date"}) for name in ("from", "to")
                ],
                "responses": _responses({"application/json": _ref("DaysAnswer")}, (400, 401, 500, 503)),
            }
        },
        "/api/usage/daily/{date}/email": {
            "post": {
                "summary": "Send a final day's summary again",
                "security": usage,
                "parameters": [date],
                "responses": _responses({"application/json": _ref("EmailAnswer")}, (400, 401, 500, 502, 503)),
            }
        },
        "/openai/v1/chat/completions": {"post": {"summary": "OpenAI's chat completions", **completion}},
        "/openai/deployments/{deployment}/chat/completions": {
            "post": {
                **completion,
                "summary": "Azure OpenAI's chat completions",
                "parameters": [deployment, version, *completion["parameters"]],
            }
        },
        "/openai/v1/models": {
            "get": {
                "summary": "The deployments that may be named as model",
                "security": client,
                "responses": _responses({"application/json": _ref("ModelsAnswer")}, (401, 500)),
            }
        },
        "/api/health": {
            "get": {"summary": "Alive", "responses": _responses({"application/json": _ref("HealthAnswer")}, ())}
        },
    }


def _ref(model: str) -> JSON:
    return {"$ref": _REF.format(model=model)}


def _events() -> JSON:
    """One of api/chat's events. A line that begins with a colon is a comment, sent where nothing else has come."""
    kinds = {
        "start": contract.StartEvent,
        "delta": contract.DeltaEvent,
        "done": contract.ChatAnswer,
        "error": contract.ErrorEvent,
    }
    return {"oneOf": [_event(_json_text(model.__name__), name) for name, model in kinds.items()]}


def _event(data: JSON, name: str | None = None) -> JSON:
    fields = {"data": data} | ({"event": {"const": name}} if name else {})
    return {"type": "object", "properties": fields, "required": [*fields]}


def _json_text(model: str) -> JSON:
    return {"type": "string", "contentMediaType": "application/json", "contentSchema": _ref(model)}


def _text(description: str) -> JSON:
    return {"type": "string", "description": description}


def _parameter(name: str, where: str, schema: Mapping[str, Any], *, required: bool = True) -> JSON:
    return {"name": name, "in": where, "required": required, "schema": dict(schema)}


def _body(model: str) -> JSON:
    return {"required": True, "content": {"application/json": {"schema": _ref(model)}}}


def _responses(content: Mapping[str, JSON], errors: tuple[int, ...], status: int = 200) -> JSON:
    done: JSON = {"description": "Done"}
    if content:
        done["content"] = {kind: {"schema": schema} for kind, schema in content.items()}
    return {str(status): done} | {str(code): {"description": _ERRORS[code], **_refused()} for code in sorted(errors)}


def _refused() -> JSON:
    return {"content": {"application/json": {"schema": _ref("ErrorAnswer")}}}
