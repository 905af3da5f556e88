"""Errors as values: each class has a stable `code` and the HTTP `status` of its response.

ChatError
├── InvalidRequest         400 the request is invalid; `param` names the field
│   ├── ContentFiltered    400 the model service's content filter stopped the prompt
│   └── ContextTooLong     400 the prompt exceeds the model's context window, even after shortening
├── Unauthorized           401 no API key or access token, or an invalid one
├── Forbidden              403 the person is no administrator
├── ModelNotFound          404 openai/* only: unknown model
├── SessionNotFound        404 unknown, erased, being erased, or owned by another caller (the same error for all)
├── ParentNotFound         404 the turn to continue is unknown, erased, without an answer, or owned by another caller
├── ItemNotFound           404 openai/v1/responses and conversations only: an unknown item
├── StillRunning           409 the turn to continue has no answer yet
├── ErasureNotFound        404 the caller has not begun to erase all sessions
├── RouteNotFound          404 the path is no route
├── MethodNotAllowed       405 the path has other methods; they are in the header Allow
├── SessionBusy            409 another turn of this session is running
├── MessageTooLarge        413 the request body is too large, or the turn does not fit into storage
├── UnsupportedMediaType   415 the body is not application/json, or is compressed
├── BudgetExceeded         429 a budget in USD is used up until it is reset
├── LimitReached           429 a budget is held by calls that are running, or a rate limit is reached
├── IdempotencyMismatch    422 the idempotency key was used with another request
├── SignInUnavailable      503 the keys of the issuer of access tokens can't be read
├── StorageUnavailable     503 Table Storage is unavailable or rejects the app
└── UpstreamFailure        the model or email service failed; `maybe_billed`: True if the attempt may cost money
    ├── RateLimited        429
    ├── QuotaExhausted     429 the service's account has no credit left; no retry helps
    ├── UpstreamError      502
    ├── UpstreamUnavailable 503
    └── UpstreamTimeout    504

VersionConflict is internal: storage raises it if a row has changed since it was read.
"""

import math
from collections.abc import Mapping
from dataclasses import dataclass
from typing import Any

# Headers of the model service that callers may see, with those whose names begin with RATE_LIMIT.
UPSTREAM_HEADERS = ("retry-after", "retry-after-ms", "x-request-id", "apim-request-id")
RATE_LIMIT = "x-ratelimit-"

MAX_SHOWN = 100  # characters of an id or a name that a caller sent, in a message


@dataclass(frozen=True, slots=True)
class UpstreamResponse:
    """An error response of the model service. `headers`: those that callers may see."""

    status: int
    headers: Mapping[str, str]
    body: bytes


class ChatError(Exception):
    """Base of every error that a caller may see.

    `code` is stable and machine-readable; `message` says what is wrong and what to do; `param` names the offending
    field; `details` are further fields of the response; `retry_after` is in seconds; `upstream` is the model service's
    own response, for callers that use its format.
    """

    code = "internal_error"
    status = 500
    final = False  # True if no retry can help, although the status says so
    upstream: UpstreamResponse | None = None

    def __init__(
        self,
        message: str,
        *,
        param: str | None = None,
        retry_after: int | None = None,
        details: Mapping[str, Any] | None = None,
    ) -> None:
        super().__init__(message)
        self.details = details or {}
        self.message = message
        self.param = param
        self.retry_after = retry_after


class InvalidRequest(ChatError):
    code = "invalid_request"
    status = 400


class ContentFiltered(InvalidRequest):
    code = "content_filter"


class ContextTooLong(InvalidRequest):
    """`limit`: the tokens of the model's context window, if the service names them."""

    code = "context_too_long"

    def __init__(self, message: str, *, param: str | None = None, limit: int | None = None) -> None:
        super().__init__(message, param=param)
        self.limit = limit


class Unauthorized(ChatError):
    """`challenge`: the value of WWW-Authenticate; empty where people can't sign in."""

    code = "unauthorized"
    status = 401

    def __init__(self, message: str, *, challenge: str = "") -> None:
        super().__init__(message)
        self.challenge = challenge


class Forbidden(ChatError):
    code = "forbidden"
    status = 403


class SignInUnavailable(ChatError):
    code = "sign_in_unavailable"
    status = 503

    def __init__(self) -> None:
        super().__init__("Access tokens can't be checked at the moment: their issuer can't be reached.", retry_after=5)


class ModelNotFound(ChatError):
    code = "model_not_found"
    status = 404


class SessionNotFound(ChatError):
    code = "session_not_found"
    status = 404

    def __init__(self) -> None:
        message = "There is no such session, or it belongs to another caller. Start one with POST api/chat."
        super().__init__(message, param="session_id")


class ParentNotFound(ChatError):
    code = "parent_not_found"
    status = 404

    def __init__(self) -> None:
        message = "There is no such turn to continue: it is unknown, erased, or has no answer."
        super().__init__(message, param="branch_from")


class ItemNotFound(ChatError):
    code = "item_not_found"
    status = 404

    def __init__(self, item: str) -> None:
        super().__init__(f"Item with id '{item[:MAX_SHOWN]}' not found.")


class StillRunning(ChatError):
    code = "still_running"
    status = 409

    def __init__(self, retry_after: int = 1) -> None:
        message = "The turn to continue is still running. Wait for its answer, then retry."
        super().__init__(message, param="branch_from", retry_after=retry_after)


class ErasureNotFound(ChatError):
    code = "erasure_not_found"
    status = 404

    def __init__(self) -> None:
        super().__init__("No erasure was begun. Begin one with DELETE api/me/sessions.")


class RouteNotFound(ChatError):
    code = "route_not_found"
    status = 404


class MethodNotAllowed(ChatError):
    code = "method_not_allowed"
    status = 405


class SessionBusy(ChatError):
    code = "session_busy"
    status = 409

    def __init__(self, retry_after: int = 1) -> None:
        super().__init__(
            "Another turn of this session is running. Wait for it to finish, then retry.",
            param="session_id",
            retry_after=retry_after,
        )


class MessageTooLarge(ChatError):
    code = "message_too_large"
    status = 413

    def __init__(self, reason: str) -> None:
        super().__init__(f"{reason} Send less at once; images can be links.")


class UnsupportedMediaType(ChatError):
    code = "unsupported_media_type"
    status = 415


class BudgetExceeded(ChatError):
    """`details`: what the caller may see of the budget."""

    code = "budget_exceeded"
    status = 429
    final = True


class LimitReached(ChatError):
    """`rates`: domain.limits.RateStatus, what is left of the caller's limit per minute; None if it is another limit."""

    code = "rate_limited"
    status = 429

    def __init__(self, message: str, retry_after: int, rates: Any = None) -> None:
        super().__init__(message, retry_after=retry_after)
        self.rates = rates


class IdempotencyMismatch(ChatError):
    code = "idempotency_mismatch"
    status = 422


class StorageUnavailable(ChatError):
    code = "storage_unavailable"
    status = 503

    def __init__(
        self,
        message: str = "Table storage is unavailable. Retry in a few seconds.",
        *,
        retry_after: int = 5,
    ) -> None:
        super().__init__(message, retry_after=retry_after)


class UpstreamFailure(ChatError):
    """A service that this app calls failed.

    `maybe_billed`: the attempt may have cost money, so its call is unaccounted and not failed. `pause`: the seconds of
    the service's Retry-After.
    """

    code = "upstream_error"
    status = 502
    default_pause: int | None = None

    def __init__(self, message: str, *, maybe_billed: bool, pause: float | None = None) -> None:
        super().__init__(message, retry_after=self.default_pause if pause is None else max(1, math.ceil(pause)))
        self.maybe_billed = maybe_billed
        self.pause = pause


class RateLimited(UpstreamFailure):
    code = "rate_limited"
    status = 429
    default_pause = 1


class QuotaExhausted(UpstreamFailure):
    code = "insufficient_quota"  # OpenAI's, which its clients know
    status = 429
    final = True

    def __init__(self) -> None:
        super().__init__(
            "The model service refuses this app's account: its credit or budget is used up. Waiting does not help."
            " The operator must check the plan and billing of the model service account.",
            maybe_billed=False,
        )


class UpstreamError(UpstreamFailure):
    code = "upstream_error"
    status = 502


class UpstreamUnavailable(UpstreamFailure):
    code = "upstream_unavailable"
    status = 503
    default_pause = 5


class UpstreamTimeout(UpstreamFailure):
    code = "upstream_timeout"
    status = 504
    default_pause = 5


class VersionConflict(Exception):
    """A row has changed since it was read: it exists already, is deleted, or has another version. Read it again.
    `index`: of its write in the transaction, from 0; 0 if it is not known."""

    def __init__(self, code: str = "", index: int = 0) -> None:
        super().__init__(code)
        self.index = index
