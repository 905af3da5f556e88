"""The email addresses in the settings, checked when an email is sent: a wrong one stops only the email."""

import re

from shared.settings import MailSettings, SettingsError

# The subset of RFC 5321 that needs no escaping in a header: ASCII, no quotes, and no `?`, which is part of an encoded
# word (=?utf-8?q?…?=, RFC 2047).
_ATOM, _LABEL = r"[A-Za-z0-9!#$%&'*+/=^_`{|}~-]+", "[A-Za-z0-9_-]+"
_ADDRESS = re.compile(rf"{_ATOM}(\.{_ATOM})*@{_LABEL}(\.{_LABEL})*")


def recipients(settings: MailSettings) -> tuple[str, ...]:
    """The addresses of SUMMARY_RECIPIENTS, which commas or semicolons separate. Raises SettingsError if one is
    malformed."""
    listed = filter(None, map(str.strip, re.split("[,;]", settings.recipients or "")))
    return tuple(_address("SUMMARY_RECIPIENTS", address) for address in listed)


def sender(settings: MailSettings) -> str:
    """The address of SUMMARY_SENDER; "" if it is absent. Raises SettingsError if it is malformed."""
    return _address("SUMMARY_SENDER", settings.sender) if settings.sender else ""


def _address(name: str, text: str) -> str:
    if _ADDRESS.fullmatch(text):
        return text
    other = next((character for character in text if not character.isascii()), None)
    problem = f"it contains {other!r}. Use ASCII; a domain can be written as xn--…" if other else "use name@example.com"
    raise SettingsError(name, f"is malformed: {text!r} is not an email address: {problem}.")
