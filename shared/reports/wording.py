"""Formats amounts in USD, counts and dates."""

from datetime import date
from decimal import Decimal

CENT = Decimal("0.01")


def dollars(amount: Decimal) -> str:
    """To the cent, for sentences."""
    return "less than $0.01" if 0 < amount < CENT else f"${amount:,.2f}"


def approximate(amount: Decimal) -> str:
    """An average, rounded to the cent, or to four significant digits below one dollar."""
    return f"about ${amount:.{3 - amount.adjusted() if 0 < amount < 1 else 2}f}"


def exact(amount: Decimal, places: int = 2, sign: str = "") -> str:
    """Every digit, with at least `places` decimals. With `sign="+"` positive amounts have a plus sign."""
    return f"{amount:{sign}.{max(places, decimals(amount))}f}"


def decimals(amount: Decimal) -> int:
    """The number of decimals, without trailing zeros."""
    return len(f"{amount:f}".partition(".")[2].rstrip("0"))


def pluralize(count: int, noun: str) -> str:
    return f"{count:,} {noun}" if count == 1 else f"{count:,} {noun}s"


def short_date(day: date) -> str:
    return f"{day:%a} {day.day:2} {day:%b}"


def month_name(day: date) -> str:
    return f"{day:%B}"


def change(cost: Decimal, before: Decimal) -> str:
    """A day's cost compared with the day before, for the subject."""
    if cost == before:
        return "unchanged from the day before"
    if not before:
        return "$0.00 the day before"
    if cost >= 10 * before:
        return f"{cost / before:,.0f} times the day before"
    return f"{_percent(cost, before):+}% from the day before"


def change_in_words(cost: Decimal, before: Decimal) -> str:
    """The same for a sentence that begins with "That is"."""
    if cost == before:
        return "the same as the day before"
    if not before:
        return "more than the day before, which cost nothing"
    percent = _percent(cost, before)
    if cost >= 10 * before:
        words = f"{cost / before:,.0f} times"
    elif percent:
        words = f"{abs(percent)}% {'more' if percent > 0 else 'less'} than"
    else:
        words = "about the same as"
    return f"{words} the day before ({dollars(before)})"


def _percent(cost: Decimal, before: Decimal) -> int:
    """The change in percent. It is -100 only if the cost is zero."""
    percent = round((cost - before) / before * 100)
    return max(percent, -99) if cost else percent
