"""Errors as values: each class has a stable `code` and the HTTP `status` that it is answered with.

ChatError
├── InvalidRequest         400 the request is wrong; `param` names the field
│   ├── ContentFiltered    400 the service's content filter stopped the prompt
│   └── ContextTooLong     400 the conversation does not fit the model, even shortened
├── Unauthorized           401 no API key, or an invalid one
├── ModelNotFound          404 the OpenAI-compatible routes know no such model
├── SessionNotFound        404 unknown, erased, being erased, or owned by another caller: callers can't tell which
├── SessionBusy            409 another turn of this session is running
├── MessageTooLarge        413 more than this service accepts, or more than storage can hold
├── UnsupportedMediaType   415 the body is not application/json
├── IdempotencyMismatch    422 the key was used with another request
├── StorageUnavailable     503 table storage can't be reached
└── UpstreamFailure        a service that this app calls failed; `maybe_billed`: whether the attempt may cost money
    ├── RateLimited        429
    ├── UpstreamError      502
    ├── UpstreamUnavailable 503
    └── UpstreamTimeout    504

VersionConflict is internal: storage raises it where a row is not the version that was read.
"""

import math
from collections.abc import Mapping
from dataclasses import dataclass


@dataclass(frozen=True, slots=True)
class UpstreamResponse:
    """An error as the model service answered it. `headers`: those that callers may see."""

    status: int
    headers: Mapping[str, str]
    body: bytes


class ChatError(Exception):
    """Base of every error that a caller may see.

    `code` is stable and machine-readable; `message` says what is wrong and what to do; `param` names the offending
    field; `retry_after` is in seconds; `upstream` is the model service's own answer, for callers that use its format.
    """

    code = "internal_error"
    status = 500
    upstream: UpstreamResponse | None = None

    def __init__(self, message: str, *, param: str | None = None, retry_after: int | None = None) -> None:
        super().__init__(message)
        self.message = message
        self.param = param
        self.retry_after = retry_after


class InvalidRequest(ChatError):
    code = "invalid_request"
    status = 400


class ContentFiltered(InvalidRequest):
    code = "content_filter"


class ContextTooLong(InvalidRequest):
    code = "context_too_long"


class Unauthorized(ChatError):
    code = "unauthorized"
    status = 401


class ModelNotFound(ChatError):
    code = "model_not_found"
    status = 404


class SessionNotFound(ChatError):
    code = "session_not_found"
    status = 404

    def __init__(self) -> None:
        super().__init__("There is no such session. POST to api/chat to begin one.", param="session_id")


class SessionBusy(ChatError):
    code = "session_busy"
    status = 409

    def __init__(self, retry_after: int = 1) -> None:
        super().__init__(
            "Another turn of this session is running. Wait for it to finish, then send this again.",
            param="session_id",
            retry_after=retry_after,
        )


class MessageTooLarge(ChatError):
    code = "message_too_large"
    status = 413

    def __init__(self, reason: str) -> None:
        super().__init__(f"{reason} Send less; an image can be sent as a link.")


class UnsupportedMediaType(ChatError):
    code = "unsupported_media_type"
    status = 415


class IdempotencyMismatch(ChatError):
    code = "idempotency_mismatch"
    status = 422


class StorageUnavailable(ChatError):
    code = "storage_unavailable"
    status = 503

    def __init__(
        self,
        message: str = "The conversation store can't be reached just now. Send this again in a few seconds.",
        *,
        retry_after: int = 5,
    ) -> None:
        super().__init__(message, retry_after=retry_after)


class UpstreamFailure(ChatError):
    """The model service did not answer as it should.

    `maybe_billed`: the attempt may have cost money, so its call is unaccounted rather than failed. `pause`: seconds
    that the service asks to wait.
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
    """A row is not as it was read: it exists already, is gone, or has another version. Read it again."""
