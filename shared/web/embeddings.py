"""The OpenAI-compatible embeddings: a request is forwarded as it was sent, and metered."""

from azurefunctions.extensions.http.fastapi import Request, Response

from shared.domain.principal import Principal
from shared.services import Services
from shared.turns.events import Opened
from shared.turns.requests import ForwardedRequest
from shared.web.contract.models import EmbeddingRequest
from shared.web.http import read_body, validated
from shared.web.models import embedding_deployment
from shared.web.openai import answer, check_price, named_model, opened_headers


async def post_embeddings(request: Request, app: Services, principal: Principal) -> Response:
    body = await read_body(request, app.settings.turns.max_request_bytes)
    deployment = embedding_deployment(named_model(request, validated(EmbeddingRequest, body).model), app)
    check_price(body)
    forwarded = ForwardedRequest(
        principal=principal,
        dialect=app.embeddings,
        body={name: value for name, value in body.items() if name != "model"},
        deployment=deployment,
        max_tokens=0,
    )
    headers = dict[str, str]()
    async for event in app.turns.call(forwarded, deltas=False):
        if isinstance(event, Opened):
            headers = opened_headers(event, app)
    return answer(event, headers)
