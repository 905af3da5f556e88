"""Information about the server."""

from typing import Literal

from pydantic import BaseModel


class AboutAnswer(BaseModel):
    """The default deployment, all deployments that callers may choose, for chat and for embeddings, and the region."""

    deployment: str
    deployments: list[str]
    embedding_deployments: list[str]
    region: str | None


class HealthAnswer(BaseModel):
    status: Literal["ok"]
