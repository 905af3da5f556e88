"""Prints the summary email of a made-up day as HTML. `docs/daily-summary.png` is a screenshot of it:

python -m docs.daily_summary > summary.html
chromium --headless --hide-scrollbars --screenshot=docs/daily-summary.png --window-size=720,2756 summary.html
"""

from datetime import date, timedelta
from decimal import Decimal

from shared.domain.calls import Usage
from shared.domain.daily import Adjustment, DailySummary, DayCost, Figures, SessionCost, UsageBreakdown
from shared.domain.hashing import sha256_hex
from shared.reports.summary_email import summary_email

DAY = date(2026, 11, 20)
COSTS = "8.104212 3.220109 2.981744 9.412034 10.770182 9.93881 10.205517 8.826603 3.517725 2.644918 9.87219 11.03926"
COSTS += " 11.421844 12.3370315"
SESSIONS = "0.4820175 0.391022 0.30718 0.2911045 0.250016 0.2200975 0.198114 0.17702 0.160333 0.158209"
MINI, LUNA = ("chat", "gpt-5.4-mini-2026-03-17"), ("fast", "gpt-5.6-luna-2026-07-09")


def share(cost: str, calls: int, prompt_tokens: int, completion_tokens: int) -> UsageBreakdown:
    return UsageBreakdown(
        cost=Decimal(cost), calls=calls, prompt_tokens=prompt_tokens, completion_tokens=completion_tokens
    )


def example() -> DailySummary:
    costs = [Decimal(cost) for cost in COSTS.split()]
    history = tuple(DayCost(day=DAY - timedelta(days=13 - n), cost=cost) for n, cost in enumerate(costs))
    figures = Figures(
        usage=Usage(
            prompt_tokens=13_804_412, cached_tokens=8_911_360, completion_tokens=1_780_218, reasoning_tokens=212_096
        ),
        cost=costs[-1],
        saved=Decimal("5.1120318"),
        sessions=412,
        turns=3_184,
        calls=3_239,
        failed=6,
        unaccounted=2,
        unaccounted_cost=Decimal("0.04127"),
        stopped=9,
        stopped_at_least=Decimal("0.0084105"),
        stopped_at_most=Decimal("0.16325"),
        models={
            MINI: share("11.8051275", 2_870, 12_011_954, 1_604_330),
            LUNA: share("0.531904", 361, 1_792_458, 175_888),
        },
        callers={
            "key:support-desk": share("7.2208115", 1_904, 8_006_559, 1_038_207),
            "key:handbook": share("3.90124", 1_012, 4_417_412, 551_468),
            "(no key)": share("1.21498", 315, 1_380_441, 190_543),
        },
        costliest=tuple(SessionCost(cost=Decimal(cost), session=sha256_hex(cost)[:32]) for cost in SESSIONS.split()),
    )
    adjustment = Adjustment(day=history[-2].day, difference=Decimal("0.0183205"), cost=history[-2].cost)
    month = sum(costs, Decimal("46.201877"))
    return DailySummary(
        day=DAY, final=True, figures=figures, history=history, month_to_date=month, adjustments=(adjustment,)
    )


if __name__ == "__main__":
    print(summary_email(example()).html)
