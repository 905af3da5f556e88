"""Information about the server."""

from typing import Literal

from pydantic import BaseModel


class AboutAnswer(BaseModel):
    """The default deployment, all deployments that callers may choose, for chat and for embeddings, and the region."""

    deployment: str
    deployments: list[str]
    embedding_deployments: list[str]
    region: str | None


class PeopleSignIn(BaseModel):
    """Where people sign in, by OAuth 2.0 at `{authority}/{tenant_id}/oauth2/v2.0/`, and for what: a client requests
    `scope` under the same `client_id`, which has no secret."""

    authority: str
    tenant_id: str
    client_id: str
    scope: str


class SignInAnswer(BaseModel):
    """How callers of `api/*` identify themselves: by a person's access token (`people`; null: not at all), a client
    key, or a function key."""

    people: PeopleSignIn | None
    client_keys: bool
    function_keys: bool


class HealthAnswer(BaseModel):
    status: Literal["ok"]
