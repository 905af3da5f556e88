"""The deployments as OpenAI's and Azure OpenAI's models."""

from azurefunctions.extensions.http.fastapi import Request, Response

from shared.domain.principal import Principal
from shared.errors import MAX_SHOWN, ModelNotFound
from shared.services import Services
from shared.web.contract.completions import ModelAnswer, ModelsAnswer
from shared.web.http import json_response, path_text


async def get_models(request: Request, app: Services, principal: Principal) -> Response:
    return json_response(ModelsAnswer(object="list", data=list(map(_model, sorted(app.settings.model.deployments)))))


async def get_model(request: Request, app: Services, principal: Principal) -> Response:
    return json_response(_model(existing_deployment(path_text(request, "model"), app)))


def existing_deployment(name: str, app: Services) -> str:
    """The name, if a deployment has it. Raises ModelNotFound."""
    deployments = app.settings.model.deployments
    if name not in deployments:
        listed = ", ".join(sorted(deployments))
        raise ModelNotFound(f"Model {name[:MAX_SHOWN]!r} does not exist. Choose one of: {listed}.", param="model")
    return name


def _model(name: str) -> ModelAnswer:
    return ModelAnswer(id=name, object="model", created=0, owned_by="azure-openai")
