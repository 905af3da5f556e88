"""openai/*: OpenAI's models and embeddings."""

from typing import Any, Literal

from pydantic import BaseModel, ConfigDict, field_validator

DeploymentKind = Literal["chat", "embedding"]


class ModelAnswer(BaseModel):
    """`kind`: what the model is for; not part of OpenAI's format."""

    id: str
    object: Literal["model"]
    created: int
    owned_by: str
    kind: DeploymentKind


class ModelsAnswer(BaseModel):
    object: Literal["list"]
    data: list[ModelAnswer]


class EmbeddingRequest(BaseModel):
    """A request for embeddings: the fields that this app reads. All others are forwarded unchecked, as is `input`: a
    text, a list of texts, tokens, or a list of lists of tokens."""

    model_config = ConfigDict(extra="allow", strict=True)

    model: str | None = None
    input: Any
    stream: bool | None = None

    @field_validator("stream")
    @classmethod
    def _is_not_streamed(cls, stream: bool | None) -> bool | None:
        if stream:
            raise ValueError("should be false: embeddings are not streamed")
        return stream
