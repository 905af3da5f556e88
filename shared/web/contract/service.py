"""What the service tells about itself."""

from typing import Literal

from pydantic import BaseModel


class AboutAnswer(BaseModel):
    """What the service tells of itself: the default deployment, all that may be chosen, and where it runs."""

    deployment: str
    deployments: list[str]
    region: str | None


class HealthAnswer(BaseModel):
    status: Literal["ok"]
