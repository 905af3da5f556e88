"""api/limits: the limits of callers, and what is used of them."""

from azurefunctions.extensions.http.fastapi import Request, Response

from shared.domain.principal import Principal
from shared.reports.limits import LimitUse
from shared.services import Services
from shared.web.contract.limits import BudgetAnswer, CallerLimits, LimitsAnswer, RateAnswer
from shared.web.http import json_response


async def get_limits(request: Request, app: Services, principal: Principal) -> Response:
    """The caller's own; all with a usage key."""
    uses = await (app.limits.all() if principal.reads_usage else app.limits.own(principal))
    return json_response(LimitsAnswer(limits=[_limit_answer(use) for use in uses]))


def _limit_answer(use: LimitUse) -> CallerLimits:
    limit, rates = use.limit, use.rates
    budgets = [
        BudgetAnswer(
            name=budget.name,
            limit_usd=budget.limit,
            spent_usd=budget.spent,
            held_usd=budget.held,
            remaining_usd=budget.remaining,
            resets_at=budget.resets_at,
        )
        for budget in use.budgets
    ]
    per_minute = []
    if rates and limit.requests_per_minute is not None:
        per_minute.append(("requests_per_minute", limit.requests_per_minute, rates.requests))
    if rates and limit.tokens_per_minute is not None:
        per_minute.append(("tokens_per_minute", limit.tokens_per_minute, rates.tokens))
    return CallerLimits(
        caller=limit.name,
        budgets=budgets,
        rates=[
            RateAnswer(name=name, limit=most, remaining=left, resets_at=rates.resets_at)
            for name, most, left in per_minute
            if rates
        ],
        max_tokens=limit.max_tokens,
        **({"fallback_deployment": limit.fallback_deployment} if limit.fallback_deployment else {}),
    )
