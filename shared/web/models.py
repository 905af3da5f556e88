"""The deployments as OpenAI's and Azure OpenAI's models."""

from collections.abc import Mapping

from azurefunctions.extensions.http.fastapi import Request, Response

from shared.domain.principal import Principal
from shared.errors import MAX_SHOWN, InvalidRequest, ModelNotFound
from shared.services import Services
from shared.web.contract.models import DeploymentKind, ModelAnswer, ModelsAnswer
from shared.web.http import json_response, path_text


async def get_models(request: Request, app: Services, principal: Principal) -> Response:
    """Those for chat first, because clients choose the first one."""
    settings = app.settings.model
    names = (*sorted(settings.deployments), *sorted(settings.embedding_deployments))
    models = [_model(name, app) for name in names]
    return json_response(ModelsAnswer(object="list", data=models))


async def get_model(request: Request, app: Services, principal: Principal) -> Response:
    name, deployments = path_text(request, "model"), app.settings.model.all_deployments
    if name not in deployments:
        raise _not_found(name, deployments)
    return json_response(_model(name, app))


def chat_deployment(name: str, app: Services) -> str:
    """The name, if a deployment for chat has it. Raises ModelNotFound, or InvalidRequest if it is one for
    embeddings."""
    model = app.settings.model
    return _checked(name, model.deployments, model.embedding_deployments, made="makes embeddings, not chat")


def embedding_deployment(name: str, app: Services) -> str:
    """The same for a deployment that makes embeddings."""
    model = app.settings.model
    return _checked(name, model.embedding_deployments, model.deployments, made="is for chat, not for embeddings")


def _checked(name: str, right: Mapping[str, str], others: Mapping[str, str], *, made: str) -> str:
    if name in right:
        return name
    if name in others:
        raise InvalidRequest(f"Model {name!r} {made}. {_choice(right)}", param="model")
    raise _not_found(name, right)


def _not_found(name: str, deployments: Mapping[str, str]) -> ModelNotFound:
    return ModelNotFound(f"Model {name[:MAX_SHOWN]!r} does not exist. {_choice(deployments)}", param="model")


def _choice(deployments: Mapping[str, str]) -> str:
    if not deployments:  # there is always one for chat
        return "This app has no deployment for embeddings: its operator can set AZURE_OPENAI_EMBEDDING_DEPLOYMENTS."
    return f"Choose one of: {', '.join(sorted(deployments))}."


def _model(name: str, app: Services) -> ModelAnswer:
    kind: DeploymentKind = "embedding" if name in app.settings.model.embedding_deployments else "chat"
    return ModelAnswer(id=name, object="model", created=0, owned_by="azure-openai", kind=kind)
