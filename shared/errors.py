"""What can go wrong, as values. Nothing here chooses an HTTP status: `web` does, and `Said` carries what the model
service answered.

ChatError
├── InvalidRequest         the request is wrong; `param` names the field
│   ├── ContentFiltered    the service's content filter stopped the prompt
│   └── ContextTooLong     the conversation does not fit the model, even shortened
├── Unauthorized           no key, or a wrong one
├── ModelNotFound          the OpenAI-compatible routes know no such model
├── SessionNotFound        unknown, erased, being erased, or somebody else's: all the same to the caller
├── SessionBusy            another turn of this session is running
├── MessageTooLarge        more than this service takes, or more than one row can hold
├── UnsupportedMediaType   the body is not application/json
├── IdempotencyMismatch    the key was used with another request
├── StorageUnavailable     the tables can't be reached
└── UpstreamFailure        a service that we call; `maybe_billed`: whether the attempt may cost money
    ├── RateLimited
    ├── UpstreamError
    ├── UpstreamUnavailable
    └── UpstreamTimeout

Changed is not for callers: storage tells the rooms that a row is not as they thought.
"""

import math
from collections.abc import Mapping
from dataclasses import dataclass


@dataclass(frozen=True, slots=True)
class Said:
    """An error as the model service answered it. `headers`: those that callers may see."""

    status: int
    headers: Mapping[str, str]
    body: bytes


class ChatError(Exception):
    """Base of every error that a caller may see.

    `code` is stable and machine-readable; `message` says what is wrong and what to do; `param` names the offending
    field; `retry_after` is in seconds; `said` is what the model service itself answered, for those who speak its
    language.
    """

    code = "internal_error"
    said: Said | None = None

    def __init__(self, message: str, *, param: str | None = None, retry_after: int | None = None) -> None:
        super().__init__(message)
        self.message = message
        self.param = param
        self.retry_after = retry_after


class InvalidRequest(ChatError):
    code = "invalid_request"


class ContentFiltered(InvalidRequest):
    code = "content_filter"


class ContextTooLong(InvalidRequest):
    code = "context_too_long"


class Unauthorized(ChatError):
    code = "unauthorized"


class ModelNotFound(ChatError):
    code = "model_not_found"


class SessionNotFound(ChatError):
    code = "session_not_found"

    def __init__(self) -> None:
        super().__init__("There is no such session. POST to api/chat to begin one.", param="session_id")


class SessionBusy(ChatError):
    code = "session_busy"

    def __init__(self, retry_after: int = 1) -> None:
        super().__init__(
            "Another turn of this session is running. Wait for it to finish, then send this again.",
            param="session_id",
            retry_after=retry_after,
        )


class MessageTooLarge(ChatError):
    code = "message_too_large"

    def __init__(self, too_large: str) -> None:
        super().__init__(f"{too_large} Send less; an image can be sent as a link.")


class UnsupportedMediaType(ChatError):
    code = "unsupported_media_type"


class IdempotencyMismatch(ChatError):
    code = "idempotency_mismatch"


class StorageUnavailable(ChatError):
    code = "storage_unavailable"

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
    usual_pause: int | None = None

    def __init__(self, message: str, *, maybe_billed: bool, pause: float | None = None) -> None:
        super().__init__(message, retry_after=self.usual_pause if pause is None else max(1, math.ceil(pause)))
        self.maybe_billed = maybe_billed
        self.pause = pause


class RateLimited(UpstreamFailure):
    code = "rate_limited"
    usual_pause = 1


class UpstreamError(UpstreamFailure):
    code = "upstream_error"


class UpstreamUnavailable(UpstreamFailure):
    code = "upstream_unavailable"
    usual_pause = 5


class UpstreamTimeout(UpstreamFailure):
    code = "upstream_timeout"
    usual_pause = 5


class Changed(Exception):
    """A row is not as it was thought to be: there already, gone, or another version. Read again."""
