"""api/usage: the cost of a day, as JSON or as the HTML of the summary email. What only these routes need
is imported by their first request."""

import re
from datetime import date, datetime

from azurefunctions.extensions.http.fastapi import Request, Response

from shared.domain.principal import Principal
from shared.errors import InvalidRequest
from shared.services import Services
from shared.web.http import json_response

MAX_DAYS = 92
_DATE = re.compile(r"[0-9]{4}-[0-9]{2}-[0-9]{2}")  # fromisoformat also accepts forms that the API does not document
_QUALITY = re.compile(r"q=([01](?:\.[0-9]{0,3})?)")
# The page is the HTML of the email: styles are inline, there are no scripts, and nothing is loaded.
_PAGE_HEADERS = {
    "content-security-policy": "default-src 'none'; style-src 'unsafe-inline'",
    "x-content-type-options": "nosniff",
    "cache-control": "no-store",
}


async def get_day(request: Request, app: Services, principal: Principal) -> Response:
    from shared.reports.summary_email import summary_email
    from shared.web.daily_answers import daily_answer

    summary = await app.reports.summary(_date(request.path_params["date"], "date", app.clock.now()))
    if _quality(request, "text/html") > _quality(request, "application/json"):
        return Response(summary_email(summary).html, media_type="text/html", headers=_PAGE_HEADERS)
    return json_response(daily_answer(summary))


async def get_days(request: Request, app: Services, principal: Principal) -> Response:
    from shared.web.daily_answers import days_answer

    now = app.clock.now()
    first, last = (_date(request.query_params.get(name), name, now) for name in ("from", "to"))
    if not 0 <= (last - first).days < MAX_DAYS:
        raise InvalidRequest(
            f"`from` must not be after `to`, and the range may span at most {MAX_DAYS} days.", param="to"
        )
    return json_response(days_answer(await app.reports.days(first, last)))


async def post_email(request: Request, app: Services, principal: Principal) -> Response:
    from shared.web.contract.usage import EmailAnswer

    day = _date(request.path_params["date"], "date", app.clock.now())
    recipients = await app.delivery.send_again(day)
    return json_response(EmailAnswer(date=day, sent_to=list(recipients)))


def _quality(request: Request, media_type: str) -> float:
    """The weight of exactly this type in Accept, 0 to 1. https://www.rfc-editor.org/rfc/rfc9110#field.accept"""
    for accepted in request.headers.get("accept", "").lower().split(","):
        name, *parameters = (part.strip() for part in accepted.split(";"))
        if name == media_type:
            quality = next((_QUALITY.fullmatch(each) for each in parameters if each.startswith("q=")), None)
            return float(quality[1]) if quality else 1.0
    return 0.0


def _date(text: str | None, name: str, now: datetime) -> date:
    try:
        day = date.fromisoformat(text or "") if _DATE.fullmatch(text or "") else None
    except ValueError:
        day = None
    if day is None:
        raise InvalidRequest(f"{name} must be a date such as {now:%Y-%m-%d}.", param=name)
    if day > now.date() or day.year < 2000:
        raise InvalidRequest(f"{name} must be a UTC day from 2000-01-01 to today, {now:%Y-%m-%d}.", param=name)
    return day
