"""How amounts of USD, counts and days are written."""

from datetime import date
from decimal import Decimal

CENT = Decimal("0.01")


def dollars(amount: Decimal) -> str:
    """To the cent, for prose."""
    return "less than $0.01" if 0 < amount < CENT else f"${amount:,.2f}"


def about(amount: Decimal) -> str:
    """An average, which may have no last digit: to the cent, or four digits of what is less than a dollar."""
    return f"about ${amount:.{3 - amount.adjusted() if 0 < amount < 1 else 2}f}"


def exact(amount: Decimal, places: int = 2, sign: str = "") -> str:
    """Every digit, and at least `places` decimals. `sign` is "+" where a gain should show one."""
    return f"{amount:{sign}.{max(places, decimals(amount))}f}"


def decimals(amount: Decimal) -> int:
    """How many decimals the amount has, zeros at its end left out."""
    return len(f"{amount:f}".partition(".")[2].rstrip("0"))


def many(count: int, noun: str) -> str:
    return f"{count:,} {noun}" if count == 1 else f"{count:,} {noun}s"


def short(day: date) -> str:
    return f"{day:%a} {day.day:2} {day:%b}"


def change(cost: Decimal, before: Decimal) -> str:
    """A day's cost against the day before it, in a subject line."""
    if cost == before:
        return "no change on the day before"
    if not before:
        return "nothing the day before"
    if cost >= 10 * before:
        return f"{cost / before:,.0f} times the day before"
    return f"{_percent(cost, before):+}% on the day before"


def change_in_words(cost: Decimal, before: Decimal) -> str:
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
    """The change; -100 only where nothing was spent."""
    percent = round((cost - before) / before * 100)
    return max(percent, -99) if cost else percent
