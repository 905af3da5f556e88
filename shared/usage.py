"""The usage routes: what a day cost, as JSON or as the page that is mailed. Behind usage keys."""

import re
from datetime import UTC, date, datetime
from decimal import Decimal

from azurefunctions.extensions.http.fastapi import Request, Response

from shared import answers
from shared.contract import DaysAnswer, EmailAnswer
from shared.errors import InvalidRequest
from shared.letter import letter
from shared.services import Services
from shared.services import services as current_services
from shared.web import answering, json_response

MOST_DAYS = 92
_DATE = re.compile(r"[0-9]{4}-[0-9]{2}-[0-9]{2}")  # of the forms that fromisoformat takes, the one that is published
_QUALITY = re.compile(r"q=([01](?:\.[0-9]{0,3})?)")


async def fire() -> None:
    """What the timer does."""
    await current_services().delivery.fire(datetime.now(UTC))


@answering
async def get_day(request: Request, services: Services) -> Response:
    services.usage_keys.name(request.headers)
    now = datetime.now(UTC)
    summary = await services.reports.summary(_date(request.path_params["date"], "date", now), now)
    if _quality(request, "text/html") > _quality(request, "application/json"):
        return Response(letter(summary).html, media_type="text/html", headers=_PAGE)
    return json_response(answers.daily_answer(summary))


@answering
async def get_days(request: Request, services: Services) -> Response:
    services.usage_keys.name(request.headers)
    now = datetime.now(UTC)
    first, last = (_date(request.query_params.get(name), name, now) for name in ("from", "to"))
    if not 0 <= (last - first).days < MOST_DAYS:
        raise InvalidRequest(f"from and to are not 1 to {MOST_DAYS} days in their order.", param="to")
    days = [answers.day_totals(d.day, d.figures, final=d.final) for d in await services.reports.days(first, last, now)]
    total = sum((day.cost_usd for day in days), Decimal(0))
    return json_response(DaysAnswer(days=days, cost_usd=total))


@answering
async def post_email(request: Request, services: Services) -> Response:
    services.usage_keys.name(request.headers)
    now = datetime.now(UTC)
    day = _date(request.path_params["date"], "date", now)
    to = await services.delivery.send_again(day, now)
    return json_response(EmailAnswer(date=day, sent_to=list(to)))


# The page is the mail, whose styles stand inline; it runs and loads nothing.
_PAGE = {
    "content-security-policy": "default-src 'none'; style-src 'unsafe-inline'",
    "x-content-type-options": "nosniff",
    "cache-control": "no-store",
}


def _quality(request: Request, media_type: str) -> float:
    """How welcome it is by name, 0 to 1. https://www.rfc-editor.org/rfc/rfc9110#field.accept"""
    for accepted in request.headers.get("accept", "").lower().split(","):
        name, *parameters = (part.strip() for part in accepted.split(";"))
        if name == media_type:
            quality = next((_QUALITY.fullmatch(given) for given in parameters if given.startswith("q=")), None)
            return float(quality[1]) if quality else 1.0
    return 0.0


def _date(given: str | None, name: str, now: datetime) -> date:
    try:
        day = date.fromisoformat(given or "") if _DATE.fullmatch(given or "") else None
    except ValueError:
        day = None
    if day is None:
        raise InvalidRequest(f"{name} is not a date such as {now:%Y-%m-%d}.", param=name)
    if day > now.date() or day.year < 2000:
        raise InvalidRequest(f"{name} is not a UTC day up to today, {now:%Y-%m-%d}.", param=name)
    return day
