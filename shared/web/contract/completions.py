"""openai/*: OpenAI's chat completions."""

from typing import Annotated, Any

from pydantic import BaseModel, ConfigDict, Field

from shared.web.contract.fields import NonEmpty

INSTRUCTIONS = ("system", "developer")  # roles of messages that are instructions, not part of the conversation


class ChatMessage(BaseModel):
    """A message in OpenAI's format: the fields that this app reads."""

    model_config = ConfigDict(extra="allow", strict=True)

    role: NonEmpty
    content: str | list[dict[str, Any]] | None = None
    tool_call_id: str | None = None


class StreamOptions(BaseModel):
    model_config = ConfigDict(extra="allow", strict=True)

    include_usage: bool | None = None


class CompletionRequest(BaseModel):
    """A request in the chat completions format: the fields that this app reads. All others are forwarded unchecked."""

    model_config = ConfigDict(extra="allow", strict=True)

    model: str | None = None
    messages: Annotated[list[ChatMessage], Field(min_length=1, max_length=2_048)]  # OpenAI's own limit
    stream: bool | None = None
    stream_options: StreamOptions | None = None
    n: Annotated[int, Field(ge=1, le=128)] | None = None
    max_tokens: Annotated[int, Field(ge=1)] | None = None
    max_completion_tokens: Annotated[int, Field(ge=1)] | None = None

    def new_messages(self) -> tuple[dict[str, Any], ...]:
        """The messages after the last one of the assistant. A session does not store them yet."""
        messages = [message.model_dump(exclude_unset=True) for message in self.messages]
        last = max((index for index, message in enumerate(messages) if message["role"] == "assistant"), default=-1)
        return tuple(message for message in messages[last + 1 :] if message["role"] not in INSTRUCTIONS)

    def system(self) -> str:
        """The first system or developer message, as text."""
        for message in self.messages:
            if message.role in INSTRUCTIONS:
                content = message.content or ""
                parts = content if isinstance(content, list) else [{"text": content}]
                return "\n".join(str(part.get("text") or "") for part in parts)
        return ""
