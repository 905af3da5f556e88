"""openai/*: OpenAI's chat completions and models."""

from typing import Annotated, Any, Literal

from pydantic import BaseModel, ConfigDict, Field

from shared.web.contract.fields import NonEmpty

INSTRUCTIONS = ("system", "developer")  # roles of messages about the conversation, not in it


class ChatMessage(BaseModel):
    """A message of OpenAI's format, as far as this app reads it."""

    model_config = ConfigDict(extra="allow", strict=True)

    role: NonEmpty
    content: str | list[dict[str, Any]] | None = None
    tool_call_id: str | None = None


class StreamOptions(BaseModel):
    model_config = ConfigDict(extra="allow", strict=True)

    include_usage: bool | None = None


class CompletionRequest(BaseModel):
    """A request of OpenAI's chat completions format, as far as this app reads it; all else is the model service's."""

    model_config = ConfigDict(extra="allow", strict=True)

    model: str | None = None
    messages: Annotated[list[ChatMessage], Field(min_length=1, max_length=2_048)]  # as many as OpenAI takes
    stream: bool | None = None
    stream_options: StreamOptions | None = None
    n: Annotated[int, Field(ge=1, le=128)] | None = None
    max_tokens: Annotated[int, Field(ge=1)] | None = None
    max_completion_tokens: Annotated[int, Field(ge=1)] | None = None

    def new_messages(self) -> tuple[dict[str, Any], ...]:
        """The messages after the assistant's last one, which a session does not hold yet."""
        messages = [message.model_dump(exclude_unset=True) for message in self.messages]
        last = max((at for at, message in enumerate(messages) if message["role"] == "assistant"), default=-1)
        return tuple(message for message in messages[last + 1 :] if message["role"] not in INSTRUCTIONS)

    def system(self) -> str:
        """The first instructions, as text."""
        for message in self.messages:
            if message.role in INSTRUCTIONS:
                content = message.content or ""
                parts = content if isinstance(content, list) else [{"text": content}]
                return "\n".join(str(part.get("text") or "") for part in parts)
        return ""


class ModelAnswer(BaseModel):
    id: str
    object: Literal["model"]
    created: int
    owned_by: str


class ModelsAnswer(BaseModel):
    object: Literal["list"]
    data: list[ModelAnswer]
