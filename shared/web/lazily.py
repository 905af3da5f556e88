"""Handlers whose module is imported by the first request for one of them: a cold start for a chat turn does not pay."""

from importlib import import_module

from azurefunctions.extensions.http.fastapi import Request, Response

from shared.domain.principal import Principal
from shared.services import Services
from shared.web.http import Handler


class Lazily:
    """The handlers of a module, as attributes by their names. `module`: its whole name."""

    def __init__(self, module: str) -> None:
        self._module = module

    def __getattr__(self, name: str) -> Handler:
        async def handler(request: Request, app: Services, principal: Principal) -> Response:
            handle: Handler = getattr(import_module(self._module), name)
            return await handle(request, app, principal)

        return handler
