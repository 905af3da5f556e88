"""api/limits: the limits of callers, and what is used of them."""

from azurefunctions.extensions.http.fastapi import Request, Response

from shared.domain.principal import Principal
from shared.services import Services
from shared.web.answers import limit_answer
from shared.web.contract.limits import LimitsAnswer
from shared.web.http import json_response


async def get_limits(request: Request, app: Services, principal: Principal) -> Response:
    """The caller's own; all with a usage key."""
    uses = await (app.limits.all() if principal.reads_usage else app.limits.own(principal))
    return json_response(LimitsAnswer(limits=[limit_answer(use) for use in uses]))
