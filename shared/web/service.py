"""Information about the server, and its health."""

from azurefunctions.extensions.http.fastapi import Request, Response

from shared.domain.principal import Principal
from shared.services import Services, people_settings
from shared.web.contract.service import AboutAnswer, HealthAnswer, PeopleSignIn, SignInAnswer
from shared.web.http import json_response


async def get_about(request: Request, app: Services, principal: Principal) -> Response:
    model = app.settings.model
    about = AboutAnswer(
        deployment=model.deployment,
        deployments=sorted(model.deployments),
        embedding_deployments=sorted(model.embedding_deployments),
        region=app.settings.azure.region,
    )
    return json_response(about)


def get_sign_in(request: Request) -> Response:
    """For clients that do not know yet how to sign in. Nothing in it is secret."""
    settings = people_settings()
    if settings is None:
        return json_response(SignInAnswer(people=None, client_keys=True, function_keys=True))
    people = PeopleSignIn(
        authority=settings.authority,
        tenant_id=settings.tenant_id,
        client_id=settings.client_id,
        scope=settings.own_scope,
    )
    accepted = settings.accepted
    return json_response(
        SignInAnswer(
            people=people if "people" in accepted else None, client_keys="keys" in accepted, function_keys=False
        )
    )


def get_health(request: Request) -> Response:
    """Liveness. It calls no other service, so a probe costs nothing."""
    return json_response(HealthAnswer(status="ok"))


def get_openapi(request: Request) -> Response:
    """The OpenAPI document. Like the health route, it needs no settings."""
    from shared.web.openapi import document

    return json_response(document())
